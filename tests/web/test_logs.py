"""The log: one line for each event, with time, level, process and request, in which nobody can write a line himself."""

import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.web.running import SETTINGS, Server
from tests.web.test_workers import wait_until
from tests.web.wire import BROWSER, JSON
from web.logs import MORE, REQUEST_ID, JsonLines, TextLines, one_line
from web.occasionally import Occasionally

LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING|ERROR) (\d+) \[([0-9a-f]{16}|-)\] ([\w.]+): (.*)"
)
HOSTILE = "a\nb\rc\x1b[2Jd\x00e\u2028f\u202eg\x85h\ud800"


def record(message: str, *args: object, error: Exception | None = None) -> logging.LogRecord:
    told = (type(error), error, error.__traceback__) if error is not None else None
    return logging.LogRecord("web.test", logging.WARNING, __file__, 1, message, args, told)


def failed(text: str) -> Exception:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


def test_a_line_tells_time_level_process_and_request() -> None:
    assert (found := LINE.fullmatch(TextLines().format(record("%d went", 3)))) is not None
    assert found.groups()[0] == "WARNING" and found.groups()[2:] == ("-", "web.test", "3 went")
    token = REQUEST_ID.set("0123456789abcdef")
    try:
        assert "[0123456789abcdef]" in TextLines().format(record("x"))
        assert json.loads(JsonLines().format(record("x")))["request_id"] == "0123456789abcdef"
    finally:
        REQUEST_ID.reset(token)


def test_no_value_begins_a_line_of_its_own() -> None:
    told = TextLines().format(record("name %s", HOSTILE, error=failed(HOSTILE)))
    first, *rest = re.split(r"[\n\r\x85\u2028]", told)
    assert LINE.fullmatch(first)
    assert rest and all(line.startswith(MORE) for line in rest)
    assert not [one for one in told if not one.isprintable() and one != "\n"]
    assert one_line("äöü 🦊 “plain”") == "äöü 🦊 “plain”"


def test_each_further_line_of_a_message_is_marked_as_those_of_a_traceback_are() -> None:
    first, *rest = TextLines().format(record("Traceback:\n  File %s\nit fails\n", "x")).split("\n")
    assert LINE.fullmatch(first)
    assert rest == [f"{MORE}  File x", f"{MORE}it fails"]
    (alone,) = TextLines().format(record("\n")).split("\n")
    assert LINE.fullmatch(alone)


def test_as_json_each_event_is_an_object_on_one_line() -> None:
    told = JsonLines().format(record("name %s", HOSTILE, error=failed(HOSTILE)))
    assert told.isascii() or not re.search(r"[\n\r\x85\u2028]", told)
    event = json.loads(told)
    assert set(event) == {"time", "level", "process", "request_id", "logger", "message", "traceback"}
    assert event["level"] == "warning" and "ValueError" in event["traceback"]


def test_what_anybody_can_cause_is_a_line_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("web.occasionally.time.monotonic", lambda: now)
    line = Occasionally(logging.getLogger("web.test"), "it happened")
    for _ in range(5):
        line.tell()
    now += 60
    line.tell()
    assert [one.getMessage() for one in caplog.records] == [
        "it happened (1 since the last such line)",
        "it happened (5 since the last such line)",
    ]


@pytest.fixture(scope="module", params=["text", "json"])
def logging_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    environment = {"TURNKEEPER_LOG_FORMAT": request.param, "TURNKEEPER_ACCESS_LOG": "true"}
    server = Server(tmp_path_factory.mktemp("logs"), SETTINGS, **environment)
    server.program = "tests.web.spinning"
    server.start()
    yield server
    server.stop()


def events(server: Server) -> list[dict[str, str]]:
    """What the server has logged since it greeted, in either form."""
    if server.environment["TURNKEEPER_LOG_FORMAT"] == "json":
        return [json.loads(line) for line in server.output.splitlines()]
    logged = [line for line in server.output.split("chat as a guest\n", 1)[1].splitlines() if LINE.match(line)]
    named = ("level", "process", "request_id", "logger", "message")
    return [dict(zip(named, LINE.fullmatch(line).groups(), strict=True)) for line in logged]  # type: ignore[union-attr]


def test_an_error_in_the_log_has_the_request_id_that_the_page_shows(logging_server: Server) -> None:
    with logging_server.guest(Accept=JSON) as guest:
        answer = guest.get("/fail")
    assert answer.status_code == 500
    request_id = answer.json()["request_id"]
    assert answer.headers["x-request-id"] == request_id

    def errors() -> list[dict[str, str]]:
        return [event for event in events(logging_server) if event["level"].lower() == "error"]

    wait_until(errors)
    (error,) = errors()
    assert error["request_id"] == request_id and error["process"]
    assert "forged" in logging_server.output
    assert not [line for line in logging_server.output.splitlines() if re.match(r"2026-01-01|one$|\x1b", line)]


def test_each_request_is_a_line_without_its_query_and_without_any_text(logging_server: Server) -> None:
    with logging_server.guest(Accept=BROWSER) as guest:
        session = guest.post("/session/create", json={}, headers={"Accept": JSON}).json()["id"]
        answers = [
            guest.get(f"/session/{session}?before=canary-query"),
            guest.get("/canary-path?x=canary-query"),
            guest.get("/setup/canary-secret"),
            guest.get("/v1/models/canary-model"),
            guest.head("/session"),
            guest.get("/limits", headers={"Host": "elsewhere.example"}),
            guest.get("/limits", headers={"X-Filler": "x" * 70_000}),
        ]
    paths = [f"/session/{session}", "-", "/setup/…", "/v1/models/…", "/session", "-", "-"]
    methods = ["GET", "GET", "GET", "GET", "HEAD", "GET", "-"]
    for answer, method, path in zip(answers, methods, paths, strict=True):
        wanted, request_id = f"{method} {path} {answer.status_code} ", answer.headers["x-request-id"]

        def told(wanted: str = wanted, request_id: str = request_id) -> bool:
            return any(
                event["request_id"] == request_id
                and event["logger"] == "web.access"
                and re.fullmatch(re.escape(wanted) + r"\d+ ms", event["message"])
                for event in events(logging_server)
            )

        wait_until(told)
    assert "canary" not in logging_server.output


def test_without_access_log_requests_leave_no_line(server: Server) -> None:
    before = len(server.output)
    with server.guest() as guest:
        guest.get("/limits")
        guest.get("/nowhere")
    assert "web.access" not in server.output[before:]


def test_the_output_of_commands_is_as_it_was(server: Server, tmp_path: Path) -> None:
    told = server.run("session", "list", "--json")
    assert (told.returncode, told.stderr) == (0, ""), sys.version
    assert json.loads(told.stdout) is not None
