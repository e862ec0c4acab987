"""A whole chat with a real llama.cpp behind Turnkeeper: page, stream, stop, and the counts it reports."""

import json
import time
from collections.abc import Iterator

import pytest

from tests.peers.llama_cpp import ENDLESS, REPLY, SO, THINKING, THOUGHT
from tests.web.running import Server, a_server

SETTINGS = """
default_model = "tiny"

[[providers]]
id = "local"
kind = "openai"
base_url = "{url}"

[[models]]
id = "tiny"
provider = "local"
label = "A tiny model"
price_in = 1.0
price_out = 2.0

[groups.guest]
sessions_created = "100/min burst 100"
turns = "100/min burst 100"
"""


@pytest.fixture(scope="module")
def llama_server(llama_cpp_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with a_server(tmp_path_factory.mktemp("llama"), SETTINGS.format(url=llama_cpp_url)) as running:
        yield running


def test_a_reply_is_streamed_and_counted(llama_server: Server) -> None:
    with llama_server.guest() as ann:
        turn = ann.post("/chat", json={"prompt": "Hello"}).raise_for_status().json()
    assert turn["state"] == "done", turn
    assert turn["reply"] == REPLY
    assert not turn["estimated"]
    assert turn["reply_tokens"] > 0
    assert turn["cost"] == pytest.approx((turn["prompt_tokens"] * 1.0 + turn["reply_tokens"] * 2.0) / 1e6)


def test_what_it_thinks_aloud_is_kept_apart(llama_server: Server) -> None:
    with llama_server.guest() as ann:
        turn = ann.post("/chat", json={"prompt": f"Hello{THINKING}"}).json()
    assert (turn["state"], turn["reasoning"].strip(), turn["reply"].strip()) == ("done", THOUGHT.strip(), SO.strip())
    assert turn["reply_tokens"] >= len((THOUGHT + SO).split()) + 2, "the tags are counted as well"


def test_the_second_turn_sends_the_first_along(llama_server: Server) -> None:
    with llama_server.guest() as ann:
        first = ann.post("/chat", json={"prompt": "Hello"}).json()
        second = ann.post("/chat", json={"prompt": "Hello", "session_id": first["session_id"]}).json()
    assert second["parent_id"] == first["id"]
    assert second["prompt_tokens"] > first["prompt_tokens"]


def test_a_stop_frees_the_model_and_keeps_the_text(llama_server: Server) -> None:
    with llama_server.guest() as ann:
        ann.get("/")
        with ann.stream(
            "POST", "/chat", json={"prompt": f"Go on {ENDLESS}"}, headers={"Accept": "text/event-stream"}
        ) as stream:
            lines, received = stream.iter_lines(), ""
            turn = json.loads(next(line for line in lines if line.startswith("data:"))[5:])
            for line in lines:
                if line.startswith("data:") and "offset" in (data := json.loads(line[5:])):
                    received += data["text"]
                    break
            begun = time.monotonic()
            stopped = ann.post(f"/chat/{turn['id']}/stop", json={}).json()
            rest = "".join(
                data["text"]
                for line in lines
                if line.startswith("data:") and "offset" in (data := json.loads(line[5:]))
            )
        assert stopped["state"] == "stopped"
        assert stopped["reply"] == received + rest
        # The server has two slots: a third turn gets one only if the stopped one gave its own back.
        for _ in range(3):
            again = ann.post("/chat", json={"prompt": "Hello"}).json()
            assert again["state"] == "done", again["error"]
        assert time.monotonic() - begun < 60
