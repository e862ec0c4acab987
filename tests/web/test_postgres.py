"""The same server on PostgreSQL: a whole conversation, and a stop that loses nothing."""

import json
import signal

from tests.web.running import Server


def test_a_conversation_with_a_switch(postgres_server: Server) -> None:
    with postgres_server.guest() as ann:
        session = ann.post("/session/create", json={}).raise_for_status().json()
        first = ann.post("/chat", json={"session_id": session["id"], "prompt": "one two three"}).json()
        switch = ann.post("/models/switch", json={"session_id": session["id"], "model": "smart"}).json()
        second = ann.post("/chat", json={"session_id": session["id"], "prompt": "four"}).json()
        turns = ann.get(f"/session/{session['id']}/turns", headers={"Accept": "application/json"}).json()["turns"]
    assert (first["state"], first["reply"], first["model"]) == ("done", "one two three", "fast")
    assert (switch["changed"], switch["from"], switch["to"]) == (True, "fast", "smart")
    assert second["model"] == "smart"
    assert [turn["id"] for turn in turns] == [first["id"], second["id"]]


def test_a_page_is_rendered(postgres_server: Server) -> None:
    with postgres_server.guest(Accept="text/html") as ann:
        assert "Turnkeeper" in ann.get("/").text
        shown = ann.post("/chat", data={"prompt": "hello there"}, follow_redirects=True)
        assert shown.status_code == 200
        assert "hello there" in shown.text


def test_a_stop_of_the_server_keeps_what_was_written(postgres_server: Server) -> None:
    with postgres_server.guest() as ann:
        ann.get("/")
        stopping: list[int] = []
        assert postgres_server.process is not None
        received, turn_id = "", ""
        asked = {"prompt": "/tokens 1000 /delay 20ms"}
        with ann.stream("POST", "/chat", json=asked, headers={"Accept": "text/event-stream"}) as stream:
            for line in stream.iter_lines():
                if not line.startswith("data:"):
                    continue
                data = json.loads(line[5:])
                turn_id = turn_id or data["id"]
                received += data["text"] if "offset" in data else ""
                if len(received) > 200 and not stopping:
                    stopping.append(len(received))
                    postgres_server.process.send_signal(signal.SIGTERM)
        assert postgres_server.stop() == 0
        postgres_server.start()
        kept = ann.get(f"/chat/{turn_id}", headers={"Accept": "application/json"}).json()
    assert kept["state"] == "interrupted"
    assert kept["reply"].startswith(received)
    assert stopping and len(received) >= stopping[0]
