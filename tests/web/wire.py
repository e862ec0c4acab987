"""What goes over the wire, as docs/http.md writes it down: the forms, problems, and event streams read two ways."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import httpx

from tests.web.running import Server

T = TypeVar("T")

#: what the browsers send when one follows a link
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
JSON = "application/json"
STREAM = "text/event-stream"
PROBLEM = "application/problem+json"
HTMX = {"HX-Request": "true", "Accept": "text/html"}

SESSION = {
    "id", "title", "owner", "state", "last_model", "current_model", "locked", "version", "created_at",
    "last_activity_at", "expires_at", "turn_count", "running_turn", "pinned", "archived", "deleted_at", "ending",
    "found",
}  # fmt: skip
OWNER = {"id", "name"}
CURRENT_MODEL = {"id", "source", "usable", "reason", "wanted"}
TURN = {
    "id", "session_id", "parent_id", "prompt", "reply", "reasoning", "model", "model_source", "model_reason", "state",
    "error", "prompt_tokens", "reply_tokens", "estimated", "cost", "context_left_out", "reply_cap",
    "created_at", "first_text_at", "first_reply_at", "ended_at",
}  # fmt: skip
SWITCH = {"changed", "from", "to", "version", "effective", "warnings", "session"}
MODEL = {"id", "label", "state", "provider_up", "context_tokens", "price_in", "price_out", "replacement"}
ALLOWANCE = {"name", "size", "used", "remaining", "resets_at", "window_seconds", "model"}
PROBLEM_KEYS = {"type", "title", "status", "code", "detail", "request_id"}

ABSENT = "01890000-0000-7000-8000-000000000000"
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")
STREAM_SECONDS = 90
#: how late may be what comes within a second on a quiet machine: less than what else would bring it, which is a
#: heartbeat, and the first one comes after 7.5 s or later
SOON = 7.0
#: within which whoever loses the right to a stream is sent away (O4)
SENT_AWAY_SECONDS = 5.0


# ---------------------------------------------------------------- forms


def assert_session(found: dict[str, Any]) -> dict[str, Any]:
    assert set(found) == SESSION
    assert set(found["owner"]) == OWNER
    assert set(found["current_model"]) == CURRENT_MODEL
    assert str(UUID(found["id"])) == found["id"]
    assert found["state"] in ("active", "expired", "closed")
    assert isinstance(found["version"], int) and isinstance(found["turn_count"], int)
    for name in ("created_at", "last_activity_at"):
        assert INSTANT.fullmatch(found[name]), found[name]
    assert found["expires_at"] is None or INSTANT.fullmatch(found["expires_at"])
    return found


def assert_turn(found: dict[str, Any]) -> dict[str, Any]:
    assert set(found) == TURN
    assert str(UUID(found["id"])) == found["id"]
    assert found["state"] in ("running", "done", "stopped", "failed", "interrupted")
    assert found["error"] is None or set(found["error"]) == {"code", "detail"}
    assert (found["ended_at"] is None) == (found["state"] == "running")
    for name in ("created_at", "first_text_at", "first_reply_at", "ended_at"):
        assert found[name] is None or INSTANT.fullmatch(found[name])
    return found


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem that an answer must be (RFC 9457)."""
    assert response.status_code == status, (response.status_code, response.text)
    assert response.headers["content-type"].partition(";")[0] == PROBLEM, response.headers["content-type"]
    found: dict[str, Any] = response.json()
    assert set(found) >= PROBLEM_KEYS
    assert found["code"] == code, found
    assert found["status"] == status
    assert found["type"] == f"urn:turnkeeper:{code}"
    assert found["title"] and found["detail"]
    assert found["request_id"] and found["request_id"] == response.headers["x-request-id"]
    return found


def refused(response: httpx.Response, status: int, code: str) -> None:
    """A refusal in the form of its URL: OpenAI's below /v1, a problem everywhere else."""
    if response.request.url.path.startswith("/v1/"):
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    else:
        problem(response, status, code)


def is_page(response: httpx.Response) -> bool:
    """Whether it is a whole HTML page."""
    return response.headers.get("content-type", "").startswith("text/html") and "<!doctype html>" in response.text


def is_fragment(response: httpx.Response) -> bool:
    """Whether it is HTML to swap into a page."""
    return response.headers.get("content-type", "").startswith("text/html") and "<!doctype" not in response.text.lower()


def hidden_fields(html: str, action: str) -> dict[str, str]:
    """The hidden fields of the first form of a page that goes to `action`."""
    form = re.search(rf'<form[^>]*action="{re.escape(action)}"[^>]*>(.*?)</form>', html, re.S)
    assert form, f"no form goes to {action}"
    found = {}
    for tag in re.findall(r"<input[^>]*>", form[1]):
        if 'type="hidden"' in tag:
            name, value = re.search(r'name="([^"]*)"', tag), re.search(r'value="([^"]*)"', tag)
            assert name and value
            found[name[1]] = value[1]
    return found


# ---------------------------------------------------------------- streams


class Event(NamedTuple):
    """One event of a stream; `name` is empty for a page's."""

    name: str
    data: str
    id: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class Frames:
    """A strict reader: `\\n` only, one field per line, nothing that a script would not expect."""

    def __init__(self) -> None:
        self.raw = b""
        self.comments: list[str] = []
        self.retry: int | None = None
        self._read = 0

    def feed(self, chunk: bytes) -> Iterator[Event]:
        self.raw += chunk
        while (end := self.raw.find(b"\n\n", self._read)) >= 0:
            block = self.raw[self._read : end].decode("utf-8", "strict")
            self._read = end + 2
            assert "\r" not in block and "\0" not in block
            event, id, data = "", "", []
            for line in block.split("\n"):
                field, _, value = line.partition(": ")
                if line.startswith(":"):
                    self.comments.append(line)
                elif field == "retry":
                    self.retry = int(value)
                elif field == "event":
                    event = value
                elif field == "id":
                    id = value
                else:
                    assert field == "data", line
                    data.append(value)
            if data:
                yield Event(event, "\n".join(data), id)


def as_browsers_read(raw: bytes) -> list[Event]:
    """The events of a whole stream by the letter of the HTML standard (§9.2.6), which knows three line ends."""
    found, event, id, data = [], "", "", ""
    for line in re.split("\r\n|\r|\n", raw.decode("utf-8").removeprefix("\ufeff")):
        if not line:
            if data:
                found.append(Event(event, data.removesuffix("\n"), id))
            event, data, id = "", "", ""
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                event = value
            elif field == "data":
                data += value + "\n"
            elif field == "id" and "\0" not in value:
                id = value
    return found


class Stream:
    """An open stream, read event by event."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.frames = Frames()
        self._events = self._all()

    def _all(self) -> Iterator[Event]:
        deadline = time.monotonic() + STREAM_SECONDS
        for chunk in self.response.iter_raw():
            assert time.monotonic() < deadline, f"the stream does not end: {self.frames.raw[-500:]!r}"
            yield from self.frames.feed(chunk)

    def __iter__(self) -> Iterator[Event]:
        return self._events

    def next(self, name: str = "") -> Event:
        """The next event, of one kind if named; those before it are dropped."""
        for event in self._events:
            if not name or event.name == name:
                return event
        raise AssertionError(f"the stream ended without an event {name!r}: {self.frames.raw[-500:]!r}")

    def rest(self) -> list[Event]:
        """Everything until the server closes."""
        return list(self._events)


@contextmanager
def streaming(
    client: httpx.Client, url: str, *, after: str = "", method: str = "GET", accept: str = STREAM, **request: Any
) -> Iterator[Stream]:
    """An open stream; leaving the block is closing the tab."""
    headers = {"Accept": accept, **request.pop("headers", {})} | ({"Last-Event-ID": after} if after else {})
    with client.stream(method, url, headers=headers, **request) as response:
        if response.status_code != 200:
            response.read()
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].partition(";")[0] == STREAM
        yield Stream(response)


def follow(client: httpx.Client, turn_id: str, after: str = "") -> list[Event]:
    """A turn's stream to its end."""
    with streaming(client, f"/chat/{turn_id}/events", after=after) as stream:
        return stream.rest()


def text_of(events: list[Event], name: str = "delta") -> str:
    """The text of all deltas, or of all `reasoning`, each in its place."""
    text = ""
    for event in events:
        if event.name == name:
            assert set(event.json) == {"turn_id", "offset", "text"}
            text += event.json["text"]
    return text


def beside(act: Callable[[], T]) -> "Future[T]":
    """Do something slow while other tests run; nobody waits for it but who asks."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(act())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done


@contextmanager
def soon(act: Callable[[], Any], seconds: float = 0.2) -> Iterator[None]:
    """Do something a moment after the block has begun; whatever it raises is raised at the block's end."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(lambda: (time.sleep(seconds), act()))
        yield
        done.result(STREAM_SECONDS)


class _Pulse(threading.Thread):
    """Asks a server something small again and again, and how long that takes at worst."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port, self._over, self._asked_at = port, threading.Event(), time.monotonic()
        self._worst = 0.0

    def run(self) -> None:
        while not self._over.wait(0.05):
            self._asked_at = time.monotonic()
            # A connection of its own, so that all who serve there come to be asked.
            with closing(HTTPConnection("127.0.0.1", self._port, STREAM_SECONDS)) as connection:
                connection.request("GET", "/readyz")
                connection.getresponse().read()
            self._worst = max(self._worst, time.monotonic() - self._asked_at)

    def worst(self) -> float:
        """So far, whether an answer has come or not."""
        return max(self._worst, time.monotonic() - self._asked_at)

    def stop(self) -> None:
        self._over.set()
        self.join(STREAM_SECONDS)


@contextmanager
def within(seconds: float, *servers: Server) -> Iterator[None]:
    """What the block waits for has come in time.

    The machine may be busy with other things: a look at who may still read, its answer and the end of the stream may
    each come as late as the same servers are meanwhile with any answer.
    """
    pulses, began = [_Pulse(server.port) for server in servers], time.monotonic()
    for pulse in pulses:
        pulse.start()
    try:
        yield
        took, late = time.monotonic() - began, max(pulse.worst() for pulse in pulses)
    finally:
        for pulse in pulses:
            pulse.stop()
    assert took < seconds + 3 * late, (took, late)


# ---------------------------------------------------------------- verbs


def create(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    """A new session."""
    response = client.post("/session/create", json=fields)
    assert response.status_code == 201, response.text
    return assert_session(response.json())


def chat(client: httpx.Client, prompt: str, **fields: Any) -> dict[str, Any]:
    """A whole turn."""
    response = client.post("/chat", json={"prompt": prompt, **fields}, headers={"Accept": JSON})
    assert response.status_code == 200, response.text
    return assert_turn(response.json())


def begin(client: httpx.Client, prompt: str, **fields: Any) -> dict[str, Any]:
    """A turn that runs on; nobody reads it."""
    with streaming(client, "/chat", method="POST", json={"prompt": prompt, **fields}) as stream:
        return assert_turn(stream.next("turn").json)


def turn_of(client: httpx.Client, turn_id: str) -> dict[str, Any]:
    response = client.get(f"/chat/{turn_id}", headers={"Accept": JSON})
    assert response.status_code == 200, response.text
    return assert_turn(response.json())


def session_of(client: httpx.Client, session_id: str) -> dict[str, Any]:
    response = client.get(f"/session/{session_id}", headers={"Accept": JSON})
    assert response.status_code == 200, response.text
    return assert_session(response.json())


def ended(client: httpx.Client, turn_id: str, seconds: float = 60) -> dict[str, Any]:
    """A turn once it has ended."""
    deadline = time.monotonic() + seconds
    while True:
        turn = turn_of(client, turn_id)
        if turn["state"] != "running":
            return turn
        assert time.monotonic() < deadline, f"the turn still runs: {turn}"
        time.sleep(0.03)
