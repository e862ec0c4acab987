"""/metrics and /docs: figures that are true and tell of nobody, and the interface to read."""

import re
from pathlib import Path

import httpx
import pytest

from tests.markdown import read, section, spans, table
from tests.web.running import Server, a_server
from tests.web.wire import BROWSER, JSON, begin, chat, create, is_page, problem

Samples = dict[tuple[str, str], float]


def samples(text: str) -> Samples:
    """{(name, labels): value}, read strictly (exposition format 0.0.4)."""
    found: Samples = {}
    announced, kinds = "", {}
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("#"):
            _, word, name, rest = line.split(" ", 3)
            assert word in ("HELP", "TYPE") and rest
            if word == "TYPE":
                assert name not in kinds and rest in ("counter", "gauge", "histogram")
                kinds[name] = rest
            announced = name
            continue
        told = re.fullmatch(r'(\w+)(?:\{((?:\w+="(?:[^"\\\n]|\\[\\"n])*",?)*)\})? (\S+)', line)
        assert told, line
        assert told[1].removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") == announced
        assert (told[1], told[2] or "") not in found
        found[told[1], told[2] or ""] = float(told[3])
    return found


@pytest.fixture
def watched(tmp_path: Path) -> Server:
    with a_server(tmp_path, TURNKEEPER_TRUSTED_PROXIES="127.0.0.1") as running:
        yield running  # type: ignore[misc]


def test_the_figures_tell_what_happened(watched: Server) -> None:
    with watched.guest(Accept=JSON) as guest:
        chat(guest, "/tokens 7", model="fast")
        chat(guest, "/error 500", model="smart")
        problem(guest.get("/nowhere"), 404, "not_found")
        assert guest.get("/" + "x" * 9_000).status_code == 414
        running = begin(guest, "/tokens 900 /delay 50ms", model="fast")
        answer = guest.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        found = samples(answer.text)
        assert found["turnkeeper_turns_ended_total", 'model="fast",state="done"'] == 1
        assert found["turnkeeper_turns_ended_total", 'model="smart",state="failed"'] == 1
        assert found["turnkeeper_tokens_total", 'model="fast",kind="reply"'] == 7
        assert found["turnkeeper_turns_running", ""] == 1
        assert found["turnkeeper_refusals_total", 'code="not_found"'] == 1
        assert found["turnkeeper_answers_total", 'status="404"'] == 1
        # What is refused before it is a request counts too.
        assert found["turnkeeper_refusals_total", 'code="uri_too_long"'] == 1
        assert found["turnkeeper_answers_total", 'status="414"'] == 1
        assert found["turnkeeper_first_text_seconds_count", 'model="fast"'] == 1
        buckets = [value for (name, _), value in found.items() if name == "turnkeeper_first_text_seconds_bucket"]
        assert buckets == sorted(buckets) and buckets[-1] == 1
        assert found["process_resident_memory_bytes", ""] > 1e7
        assert found["process_open_fds", ""] < found["process_max_fds", ""]
        guest.post(f"/chat/{running['id']}/stop", json={}).raise_for_status()
        after = samples(guest.get("/metrics").text)
        assert after["turnkeeper_turns_ended_total", 'model="fast",state="stopped"'] == 1
        assert after["turnkeeper_turns_running", ""] == 0
        assert running["session_id"] not in answer.text and "guest" not in answer.text


def test_from_elsewhere_it_is_an_admins(watched: Server) -> None:
    tokens = watched.people("ann", "ada:admin")
    there = {"X-Forwarded-For": "203.0.113.9"}
    with watched.guest(Accept=JSON) as guest:
        assert guest.get("/metrics").status_code == 200
        problem(guest.get("/metrics", headers=there), 403, "forbidden")
        # A proxy on this machine stands for somebody else, whoever it says that is.
        problem(guest.get("/metrics", headers={"X-Forwarded-For": "127.0.0.1"}), 403, "forbidden")
    for name, status in (("ann", 403), ("ada", 200)):
        with watched.script(tokens[name]) as script:
            assert script.get("/metrics", headers=there).status_code == status


def test_every_metric_is_documented_and_no_other(server: Server) -> None:
    with server.guest() as guest:
        names = set(re.findall(r"^# TYPE (\w+) ", guest.get("/metrics").text, re.MULTILINE))
    documented = {spans(row[0])[0] for row in table(section(read("docs/operate.md"), "Watching over it"))}
    assert names == documented


# ---------------------------------------------------------------- /docs


def test_the_interface_can_be_read_without_javascript(server: Server, visitor: httpx.Client) -> None:
    page = visitor.get("/docs", headers={"Accept": BROWSER})
    assert is_page(page)
    description = visitor.get("/openapi.json").json()
    for path, item in description["paths"].items():
        for method, operation in item.items():
            assert f"<code>{method.upper()} {path}</code>" in page.text
            assert f'id="{operation["operationId"]}"' in page.text
    ids = re.findall(r' id="([^"]+)"', page.text)
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r'href="#([^"]+)"', page.text)) - {"main"}
    assert len(targets) > 20 and targets <= set(ids)
    assert not re.search(r"https?://(?!www\.w3\.org)", page.text.replace(server.url, ""))
    assert create(server.guest(Accept=JSON))["state"] == "active"


def test_a_script_gets_the_description_itself(guest: httpx.Client) -> None:
    assert guest.get("/docs").json() == guest.get("/openapi.json").json()
