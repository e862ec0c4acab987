"""Hostile text on a real server: others are answered, it stops when told, and nothing is tried again (SECURITY 53)."""

import os
import re
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.web.running import Server, a_server
from tests.web.wire import BROWSER, chat, create

FORM = {"Accept": BROWSER}
#: blocks that froze the server or took it many seconds, and one that is well-behaved
BLOCKS = {
    "scala": '"' + "\\" * 56,
    "systemd": "[a]\na=" + " " * 1_400,
    "smithy": "a" + " " * 3_000,
    "tads3": "<" * 3_000,
    "fish": '"' + "\\" * 60,
    "c": "a" + " " * 15_000,
    "python": "def good(): pass",
}
SAYS = re.compile(r"a block of code took too long")


def children(server: Server) -> set[int]:
    """The processes that a server has started."""
    assert server.process is not None
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError, ValueError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == server.process.pid:
                found.add(int(stat.parent.name))
    return found


def gone(processes: set[int]) -> bool:
    """Whether they have ended; one that nobody has waited for yet has."""
    left = set()
    for process in processes:
        with suppress(OSError):
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                left.add(process)
    return not left


def shown(guest: httpx.Client, session: str) -> str:
    page = guest.get(f"/session/{session}", headers=FORM)
    assert page.status_code == 200
    return page.text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def test_53_no_code_block_keeps_others_from_being_answered_also_after_a_restart(folder: Path) -> None:
    prompt = "\n\n".join(f"```{language}\n{code}\n```" for language, code in BLOCKS.items())
    with a_server(folder, TURNKEEPER_SECRET_KEY="one that stays the same, long enough") as server:
        assert not children(server), "nothing runs beside it before there is something to render"
        guest = server.guest()
        session = create(guest)["id"]
        assert chat(guest, prompt, session_id=session)["reply"].count("```") == 2 * len(BLOCKS)
        pages: list[str] = []
        reader = threading.Thread(target=lambda: pages.append(shown(guest, session)))
        reader.start()
        answered = 0
        other = server.guest()
        while reader.is_alive() or not answered:
            assert other.get("/healthz").status_code == 200
            answered += 1
        reader.join()
        assert answered >= 3, "others were answered while the page was made"
        assert pages[0].count('<div class="code">') == len(BLOCKS)
        assert pages[0].count('class="hl-keyword"') == 2, "def and pass, and nothing else"
        assert len(SAYS.findall(server.output)) == 1, "of C alone: the others are on no list"
        assert shown(guest, session).count("hl-keyword") == 2
        assert 0 < len(children(server)) <= 2
        cookies, rendering = dict(guest.cookies), children(server)
        assert server.stop() == 0
        assert gone(rendering)
        server.output = ""
        server.start()
        guest = server.guest()
        guest.cookies.update(cookies)
        assert shown(guest, session).count("hl-keyword") == 2
        assert not SAYS.findall(server.output), "nothing was tried again"
        # Killed, it leaves nobody behind.
        rendering = children(server)
        assert rendering
        server.stop(signal.SIGKILL)
        deadline = time.monotonic() + 60
        while not gone(rendering):
            assert time.monotonic() < deadline, "a process outlived the server"
            time.sleep(0.02)


def test_53_a_process_that_is_killed_while_it_renders_costs_its_colours_once(server: Server) -> None:
    guest = server.guest()
    session = create(guest)["id"]
    chat(guest, f"```python\ndef first_{os.getpid()}(): pass\n```", session_id=session)
    assert "hl-keyword" in shown(guest, session)
    for process in children(server):
        os.kill(process, signal.SIGKILL)
    chat(guest, f"```python\ndef second_{os.getpid()}(): pass\n```", session_id=session)
    assert shown(guest, session).count("hl-keyword") == 4
