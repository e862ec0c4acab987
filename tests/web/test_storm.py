"""Many hands on one session at once; afterwards every book is balanced."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx
import pytest

from tests.web.running import Server
from tests.web.wire import JSON, assert_turn, create, ended, follow, session_of, streaming, text_of, turn_of

HANDS = 8
ACTS = 25
FINE = {200, 201, 204, 400, 404, 409, 410, 422, 429}


def act(client: httpx.Client, session_id: str, dice: random.Random) -> httpx.Response:
    """Something that somebody might do in a session."""
    session = session_of(client, session_id)
    turn_id = session["running_turn"]
    model = dice.choice(["fast", "smart", "guide", "none"])
    match dice.randrange(8):
        case 0 | 1:
            body = {"session_id": session_id, "prompt": f"/tokens {dice.randrange(30)} /delay 3ms"}
            return client.post("/chat", json=body)
        case 2:
            body = {"session_id": session_id, "prompt": "/tokens 5 /error 500 after 3", "model": model}
            return client.post("/chat", json=body)
        case 3 | 4:
            when = dice.choice(["next_turn", "stop", "idle"])
            version = dice.choice([None, session["version"]])
            body = {"session_id": session_id, "model": model, "when": when, "expected_version": version}
            return client.post("/models/switch", json=body)
        case 5 if turn_id is not None:
            return client.post(f"/chat/{turn_id}/stop", json={})
        case 6:
            return client.post(f"/session/{session_id}/rename", json={"title": f"storm {dice.randrange(9)}"})
        case _:
            return client.post(f"/session/{session_id}/extend", json={})


def all_turns(client: httpx.Client, session_id: str) -> list[dict[str, Any]]:
    found, cursor = [], ""
    while cursor is not None:
        page = client.get(f"/session/{session_id}/turns", params={"all": "true", "limit": 200, "cursor": cursor}).json()
        found, cursor = found + page["turns"], page["next_cursor"]
    return found


@pytest.fixture(params=["server", "postgres_server"], ids=["sqlite", "postgres"])
def either(request: pytest.FixtureRequest) -> Server:
    """A server on each database: what one serialises, the other has to lock."""
    found: Server = request.getfixturevalue(request.param)
    return found


def test_after_a_storm_every_book_is_balanced(either: Server) -> None:
    with either.guest(Accept=JSON) as client:
        session_id = create(client)["id"]

        def hand(number: int) -> set[int]:
            dice = random.Random(number)
            with either.guest(Accept=JSON) as one:
                one.cookies = client.cookies
                return {act(one, session_id, dice).status_code for _ in range(ACTS)}

        with (
            ThreadPoolExecutor(HANDS) as pool,
            streaming(client, f"/session/{session_id}/events") as watching,
        ):
            statuses = set().union(*pool.map(hand, range(HANDS)))
            assert statuses <= FINE
            if (running := session_of(client, session_id)["running_turn"]) is not None:
                ended(client, running)
            last = client.post("/chat", json={"session_id": session_id, "prompt": "the last word"}).json()
            told: dict[str, str] = {}
            for event in watching:
                if event.name == "delta":
                    turn_id = event.json["turn_id"]
                    told[turn_id] = told.get(turn_id, "") + event.json["text"]
                elif event.name == "end" and event.json["id"] == last["id"]:
                    break

        session = session_of(client, session_id)
        turns = all_turns(client, session_id)
        rows = client.get(f"/session/{session_id}/journal").json()["journal"][::-1]

        # Every turn has ended, none is lost, and each follows the one before.
        assert session["running_turn"] is None
        assert len(turns) == session["turn_count"] > 5
        assert {assert_turn(turn)["state"] for turn in turns} <= {"done", "stopped", "failed"}
        assert [turn["parent_id"] for turn in turns] == [None, *(turn["id"] for turn in turns[:-1])]
        # Whoever watched was told every reply, and nothing else (D 27).
        assert told == {turn["id"]: turn["reply"] for turn in turns if turn["reply"]}
        for turn in turns[-3:]:
            assert text_of(follow(client, turn["id"])) == turn["reply"]
        # The journal's switches are an unbroken chain that ends where the session is (I3). It shows the latest 200.
        switches = [row for row in rows if row["what"] == "model_switched"]
        assert len(switches) > 3
        for before, after in pairwise(switches):
            assert after["from"] == before["to"]
            assert after["to"] != before["to"]
            assert after["version"] > before["version"]
        assert session["last_model"] == switches[-1]["to"]
        # Nothing is held any more (I7).
        used = {one["name"]: one["used"] for one in client.get("/limits").json()["limits"]}
        assert used["concurrent_turns"] == 0
        assert [row["what"] for row in rows].count("turn_ended") <= len(turns)


@pytest.mark.parametrize("verb", ["stop", "switch", "close", "delete"])
def test_what_was_shown_is_kept_however_a_reply_is_ended(either: Server, verb: str) -> None:
    """The end comes while text is being written, again and again (I13)."""

    def hand(number: int) -> None:
        dice = random.Random(number)
        with either.guest(Accept=JSON) as reading, either.guest(Accept=JSON) as acting:
            reading.get("/models")
            acting.cookies = reading.cookies
            for _ in range(5):
                id = create(reading)["id"]
                body = {"session_id": id, "prompt": "/tokens 400 /delay 1ms"}
                with streaming(reading, "/chat", method="POST", json=body) as stream:
                    turn = stream.next("turn").json
                    time.sleep(dice.random() / 50)
                    if verb == "stop":
                        answer = acting.post(f"/chat/{turn['id']}/stop", json={})
                    elif verb == "switch":
                        switch = {"session_id": id, "model": "smart", "when": "stop"}
                        answer = acting.post("/models/switch", json=switch)
                    else:
                        answer = acting.post(f"/session/{id}/{verb}", json={})
                    assert answer.status_code < 300
                    events = stream.rest()
                if verb == "delete":
                    # Whichever is heard of first: that the reply was stopped, or that its session is gone.
                    assert events[-1].name in ("end", "gone")
                    continue
                assert events[-1].name == "end"
                assert events[-1].json["state"] in ("stopped", "done")
                assert text_of(events) == events[-1].json["reply"]
                assert turn_of(reading, turn["id"]) == events[-1].json

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hand, range(4)))
