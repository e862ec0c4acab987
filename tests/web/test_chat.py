"""/chat: a reply waited for, a reply streamed, and streams that are left, resumed and stopped."""

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from itertools import islice
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from services.text import normalized_lines
from tests.web.running import Server
from tests.web.wire import (
    ABSENT,
    BROWSER,
    HTMX,
    JSON,
    SOON,
    STREAM,
    Event,
    as_browsers_read,
    assert_turn,
    begin,
    beside,
    chat,
    create,
    ended,
    follow,
    hidden_fields,
    is_fragment,
    is_page,
    problem,
    session_of,
    soon,
    streaming,
    text_of,
    turn_of,
)

FORM = {"Accept": BROWSER}
SLOW = "/tokens 1000 /delay 20ms"
BRIEF = "/tokens 40 /delay 10ms"


def say(client: httpx.Client, prompt: str, **fields: object) -> list[Event]:
    """A whole turn as its stream tells it; every rule of a stream is asserted."""
    with streaming(client, "/chat", method="POST", json={"prompt": prompt, **fields}) as stream:
        events = stream.rest()
        raw = stream.frames.raw
    assert stream.frames.retry
    assert as_browsers_read(raw) == events, "two readers disagree"
    assert_whole(events)
    return events


def assert_whole(events: list[Event], already: str = "") -> None:
    """`turn` first, reasoning and deltas that join without gap or double, `end` last."""
    assert [events[0].name, events[-1].name] == ["turn", "end"]
    assert {event.name for event in events[1:-1]} <= {"reasoning", "delta", "turn"}
    turn, end = assert_turn(events[0].json), assert_turn(events[-1].json)
    assert turn["id"] == end["id"]
    texts = {"reasoning": "", "delta": already}
    for event in events[1:-1]:
        if event.name in texts:
            assert event.json["turn_id"] == turn["id"]
            assert event.json["offset"] == len(texts[event.name])
            assert event.json["text"]
            texts[event.name] += event.json["text"]
            thought = f":{len(texts['reasoning'])}" if texts["reasoning"] else ""
            assert event.id == f"{turn['id']}:{len(texts['delta'])}{thought}"
    assert texts == {"reasoning": end["reasoning"], "delta": end["reply"]}


# ---------------------------------------------------------------- the answer in its forms


def test_json_waits_for_the_whole_reply(guest: httpx.Client) -> None:
    began = time.monotonic()
    answer = guest.post("/chat", json={"prompt": "/tokens 20 /delay 20ms"})
    assert time.monotonic() - began > 0.35
    assert answer.status_code == 200
    assert answer.headers["content-type"] == JSON
    turn = assert_turn(answer.json())
    assert turn["state"] == "done"
    assert turn["reply"] == "".join(f"tok{number} " for number in range(20))
    assert turn["prompt"] == "/tokens 20 /delay 20ms"
    assert (turn["model"], turn["parent_id"], turn["error"]) == ("fast", None, None)
    assert turn["reply_tokens"] == 20
    assert turn["prompt_tokens"] > 0
    assert turn["estimated"] is False
    assert turn["created_at"] <= turn["first_text_at"] <= turn["ended_at"]
    assert turn_of(guest, turn["id"]) == turn


def test_a_stream_begins_with_the_turn_and_ends_with_it(guest: httpx.Client) -> None:
    events = say(guest, BRIEF)
    assert events[0].json["state"] == "running"
    assert events[0].json["reply"] == ""
    assert events[-1].json["state"] == "done"
    assert events[-1].json == turn_of(guest, events[0].json["id"])
    assert len(events) > 4, "it came at once"


def test_a_stream_is_not_to_be_kept_or_held_back(guest: httpx.Client) -> None:
    with streaming(guest, "/chat", method="POST", json={"prompt": "x"}) as stream:
        headers = stream.response.headers
        assert "no-store" in headers["cache-control"]
        assert headers["x-accel-buffering"] == "no"
        assert "ratelimit" in headers
        assert "content-length" not in headers


def test_text_is_streamed_while_it_is_written(guest: httpx.Client) -> None:
    with streaming(guest, "/chat", method="POST", json={"prompt": SLOW}) as stream:
        turn = stream.next("turn").json
        began = time.monotonic()
        for _ in range(4):
            stream.next("delta")
        assert time.monotonic() - began < 15  # the whole takes 20 s
    guest.post(f"/chat/{turn['id']}/stop", json={}).raise_for_status()


def test_a_form_is_sent_on_to_the_session(visitor: httpx.Client) -> None:
    answer = visitor.post("/chat", data={"prompt": "from a form", "model": ""})
    assert answer.status_code == 303
    page = visitor.get(answer.headers["location"])
    assert is_page(page)
    assert "from a form" in page.text


def test_htmx_gets_the_running_turn(guest: httpx.Client) -> None:
    session = create(guest)
    answer = guest.post("/chat", data={"session_id": session["id"], "prompt": SLOW}, headers=HTMX)
    assert answer.status_code == 200
    assert is_fragment(answer)
    turn_id = session_of(guest, session["id"])["running_turn"]
    assert f'hx-target="#after-{session["id"]}"' in answer.text
    for id in (f"turn-{turn_id}", f"turn-{turn_id}-reply", f"after-{turn_id}"):
        assert f'id="{id}"' in answer.text
    for part in ("send", "key", "limits"):
        assert f"#session-{session['id']}-{part}" in answer.text
    assert f'action="/chat/{turn_id}/stop"' in answer.text
    stopped = guest.post(f"/chat/{turn_id}/stop", data={}, headers=HTMX)
    assert is_fragment(stopped)
    assert f'hx-target="#turn-{turn_id}"' in stopped.text
    assert 'data-state="stopped"' in stopped.text


def test_a_page_streams_fragments_by_the_same_ids(guest: httpx.Client) -> None:
    session = create(guest)
    with streaming(guest, f"/session/{session['id']}/events", headers=HTMX) as stream:
        turn = begin(guest, BRIEF, session_id=session["id"])
        shown, last = "", ""
        while "data-state=" not in shown or 'data-state="running"' in shown:
            event = stream.next()
            assert event.name == "", "htmx swaps unnamed events only"
            shown, last = event.data, event.id or last
    assert f'hx-target="#turn-{turn["id"]}"' in shown
    assert last == f"{turn['id']}:end"


# ---------------------------------------------------------------- what text may hold

ODD = {
    "carriage returns": "/text a\rb\r\rc",
    "a line separator": "one\u2028two\u2029three\x85four",
    "an event in lines": "x\n\nevent: end\ndata: {}\n\nid: 1\n",
    "an event in carriage returns": "x\r\revent: end\rdata: {}\r\r",
    "both line ends": "x\r\n\r\nevent: gone\r\ndata: {}\r\n\r\n",
    "data lines": "data: one\ndata: two\n: a comment\nretry: 1\nid: 0\n",
    "a byte order mark": "\ufeff\ufeffx",
    "emoji": "👩‍🚀👨‍👩‍👧‍👦 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ok",
    "marks": "e\u0301 ä \u202eright to left\u202c",
    "html": "<hx-partial hx-target='#notice'>x</hx-partial><script>1</script>&amp;",
    "controls": "a\x01\x02\x1b[31mb\x7fc\x0bd",
    "the last code point": "\U0010ffff \ufffe \uffff",
    "json": '{"turn_id": "x", "offset": 0, "text": "\\u0000"}',
    "blanks": " x  \t y ",
    "a word without end": "x" * 20_000,
}


@pytest.mark.parametrize("prompt", ODD.values(), ids=ODD)
def test_odd_text_comes_back_whole_and_forges_no_event(guest: httpx.Client, prompt: str) -> None:
    events = say(guest, prompt)
    reply, asked = events[-1].json["reply"], normalized_lines(prompt)
    assert reply == (asked if not prompt.startswith("/text ") else reply)
    assert text_of(events) == reply
    assert events[-1].json["prompt"] == asked
    again = follow(guest, events[-1].json["id"])
    assert text_of(again) == reply


def test_a_reply_keeps_its_line_ends_and_forges_no_event(guest: httpx.Client) -> None:
    id = chat(guest, "one")["session_id"]
    file = guest.get(f"/session/{id}/export").json()
    replies = [text for text in ODD.values() if "\r" in text]
    assert len(replies) > 2
    for reply in replies:
        file["sessions"][0]["turns"][0] |= {"reply": reply, "prompt": "asked\r\nso"}
        made = guest.post("/session/import", json=file, headers={"Accept": JSON}).json()["sessions"][0]["id"]
        (turn,) = guest.get(f"/session/{made}/turns").json()["turns"]
        assert (turn["reply"], turn["prompt"]) == (reply, "asked\nso")
        assert text_of(follow(guest, turn["id"])) == reply


def test_a_line_ends_in_one_way_whichever_way_it_comes(guest: httpx.Client) -> None:
    forms = {"Accept": "text/html"}
    session = guest.post("/chat", data={"prompt": "a\r\nb\rc\nd"}, headers=forms).headers["location"]
    (first,) = guest.get(f"{session}/turns").json()["turns"]
    guest.post(f"/chat/{first['id']}/stop", data={}, headers=forms)
    edited = guest.post(f"/chat/{first['id']}/edit", json={"prompt": "a\r\nb\rc\nd"}).json()
    by_v1 = {"model": "fast", "messages": [{"role": "user", "content": "a\r\nb\rc\nd"}]}
    answer = guest.post("/v1/chat/completions", json=by_v1)
    (third,) = guest.get(f"/session/{answer.headers['x-turnkeeper-session']}/turns").json()["turns"]
    assert {first["prompt"], edited["prompt"], third["prompt"]} == {"a\nb\nc\nd"}
    guest.post(f"{session}/draft", data={"prompt": "x\r\ny"}, headers=forms)
    assert "x\ny</textarea>" in guest.get(session, headers=forms).text
    # As many lines as a browser counts fit, and one more does not.
    longest = "x\r\n" * 50_000
    assert guest.post("/chat", data={"prompt": longest}, headers=forms).status_code == 303
    assert guest.post("/chat", data={"prompt": f"{longest}x"}, headers=forms).status_code == 413


def test_one_key_is_one_message_whichever_way_its_lines_end(guest: httpx.Client) -> None:
    key = {"Idempotency-Key": "the-same-message-twice"}
    first = chat(guest, "a\nb")["session_id"]
    sent = {"session_id": first, "prompt": "c\r\nd"}
    one = guest.post("/chat", json=sent, headers=key).json()
    again = guest.post("/chat", json=sent | {"prompt": "c\nd"}, headers=key).json()
    assert one["id"] == again["id"]


def test_reasoning_comes_beside_the_reply_and_goes_on_at_any_place(guest: httpx.Client) -> None:
    events = say(guest, "/reason Let\u2028 me 🦊 see\n/text It is forty-two")
    turn = assert_turn(events[-1].json)
    assert (turn["reply"], turn["reasoning"]) == ("It is forty-two", "Let\u2028 me 🦊 see")
    assert (text_of(events), text_of(events, "reasoning")) == (turn["reply"], turn["reasoning"])
    assert turn["first_text_at"] <= turn["first_reply_at"] <= turn["ended_at"]
    assert turn["reply_tokens"] == 7, "a provider counts both"
    for place in [event.id for event in events if event.id] + [f"{turn['id']}:3", f"{turn['id']}:15:1"]:
        offset, _, thought = place.partition(":")[2].partition(":")
        rest = follow(guest, turn["id"], place)
        ended = offset == "end"
        assert text_of(rest) == ("" if ended else turn["reply"][int(offset) :])
        assert text_of(rest, "reasoning") == ("" if ended else turn["reasoning"][int(thought or 0) :])
        assert rest[-1].json == turn
    again = chat(guest, "And?", session_id=turn["session_id"])
    assert again["prompt_tokens"] == len(f"{turn['prompt']} {turn['reply']} And?".split()), "no model is told it again"


@pytest.mark.parametrize("prompt", ODD.values(), ids=ODD)
def test_odd_text_forges_no_event_on_a_page(guest: httpx.Client, prompt: str) -> None:
    session = create(guest)
    turn = chat(guest, prompt, session_id=session["id"])
    with streaming(guest, f"/session/{session['id']}/events", headers=HTMX) as stream:
        seen = []
        while not seen or seen[-1].id != f"{turn['id']}:end":
            seen.append(stream.next())
        assert as_browsers_read(stream.frames.raw) == seen
        assert all(event.name == "" for event in seen)
        assert "<script>" not in stream.frames.raw.decode()


def test_nul_and_lone_surrogates_are_refused(guest: httpx.Client) -> None:
    problem(guest.post("/chat", json={"prompt": "a\0b"}), 400, "invalid_request")
    body = rb'{"prompt": "a\ud800b"}'
    problem(guest.post("/chat", content=body, headers={"Content-Type": JSON}), 400, "invalid_request")


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t ", None, 5, ["x"], {}])
def test_a_prompt_must_say_something(guest: httpx.Client, prompt: object) -> None:
    assert problem(guest.post("/chat", json={"prompt": prompt}), 400, "invalid_request")["field"] == "prompt"


@pytest.mark.parametrize("fields", [{"stream": True}, {"parent": ABSENT}, {"messages": []}, {"turn_id": ABSENT}])
def test_a_field_nobody_knows_is_refused(guest: httpx.Client, fields: dict[str, object]) -> None:
    told = problem(guest.post("/chat", json={"prompt": "x", **fields}), 400, "invalid_request")
    assert next(iter(fields)) in told["detail"]
    assert guest.get("/session").json()["sessions"] == []


# ---------------------------------------------------------------- failures of the model

FAULTS = {
    "429": "provider_rate_limited",
    "500": "provider_error",
    "401": "provider_refused",
    "broken": "provider_broken",
    "timeout": "provider_timeout",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_reply_that_fails_keeps_what_was_written_and_says_why(guest: httpx.Client, fault: str) -> None:
    events = say(guest, f"/tokens 20 /error {fault} after 10")
    end = events[-1].json
    assert end["state"] == "failed"
    assert end["reply"] == "".join(f"tok{number} " for number in range(10))
    assert end["error"]["code"]
    assert end["error"]["detail"]
    again = guest.post("/chat", json={"prompt": f"/error {fault}", "session_id": end["session_id"]})
    assert again.status_code == 200
    assert again.json()["state"] == "failed"
    page = guest.get(f"/session/{end['session_id']}", headers=FORM).text
    assert 'data-state="failed"' in page
    assert chat(guest, "and on", session_id=end["session_id"])["state"] == "done"


# ---------------------------------------------------------------- resume


@pytest.fixture(scope="module")
def told(server: Server) -> "tuple[httpx.Client, dict[str, object]]":
    """A guest with an ended turn of many pieces and odd characters."""
    client = server.guest(Accept=JSON)
    return client, chat(client, "/text eins\x0b👩‍🚀 zwei\u2028 ünd data: x {} drei vier 🏴󠁧󠁢󠁥󠁮󠁧󠁿 fünf /delay 3ms")


def test_an_ended_turn_is_told_again_from_every_character_on(told: "tuple[httpx.Client, dict[str, str]]") -> None:
    client, turn = told
    reply = turn["reply"]
    assert len(reply) > 30
    for offset in range(len(reply) + 1):
        events = follow(client, turn["id"], f"{turn['id']}:{offset}")
        assert_whole(events, reply[:offset])


def test_a_running_turn_goes_on_where_each_reader_left_it(guest: httpx.Client) -> None:
    """Cut after every event, go on from its id: the pieces join without loss or double."""
    turn = begin(guest, SLOW)
    url, text, position = f"/chat/{turn['id']}/events", "", ""
    for _ in range(8):
        with streaming(guest, url, after=position) as stream:
            event = stream.next("delta")
            assert event.json["offset"] == len(text)
            text, position = text + event.json["text"], event.id
    guest.post(f"/chat/{turn['id']}/stop", json={}).raise_for_status()
    rest = follow(guest, turn["id"], position)
    assert_whole(rest, text)
    assert "".join(f"tok{number} " for number in range(1000)).startswith(rest[-1].json["reply"])


def test_a_running_turn_is_told_from_every_character_that_was_shown(guest: httpx.Client) -> None:
    with streaming(guest, "/chat", method="POST", json={"prompt": SLOW}) as stream:
        turn = stream.next("turn").json
        shown = ""
        while len(shown) < 40:
            shown += stream.next("delta").json["text"]
    for offset in range(0, len(shown) + 1, 3):
        with streaming(guest, f"/chat/{turn['id']}/events", after=f"{turn['id']}:{offset}") as stream:
            assert stream.next("turn").json["id"] == turn["id"]
            first = stream.next("delta").json
            assert first["offset"] == offset
            assert (shown[:offset] + first["text"]).startswith(shown) or shown.startswith(
                shown[:offset] + first["text"]
            )
    guest.post(f"/chat/{turn['id']}/stop", json={}).raise_for_status()


def test_after_the_end_there_is_nothing_more(told: "tuple[httpx.Client, dict[str, str]]") -> None:
    client, turn = told
    for position in (f"{turn['id']}:{len(turn['reply'])}", f"{turn['id']}:end"):
        events = follow(client, turn["id"], position)
        assert [event.name for event in events] == ["turn", "end"]
        assert events[-1].json == turn


ABSURD = (
    "x", ":", "::", "-", f"{ABSENT}:3", f"{ABSENT}:end", "0", "99999999999999999999999999", "null", "../../etc",
    "%00", "’", "{}", "a" * 5000, f"{ABSENT}", f"{ABSENT}:1:1",
)  # fmt: skip


@pytest.mark.parametrize("position", ABSURD)
def test_a_position_that_is_not_of_this_turn_is_the_beginning(
    told: "tuple[httpx.Client, dict[str, str]]", position: str
) -> None:
    client, turn = told
    with streaming(client, f"/chat/{turn['id']}/events", headers={"Last-Event-ID": position.encode()}) as stream:
        assert_whole(stream.rest())


@pytest.mark.parametrize("offset", ["-1", "-99999", "x", "1.5", "", "0x10", "1e3", "٣" * 400])
def test_an_offset_that_is_no_number_is_the_beginning(told: "tuple[httpx.Client, dict[str, str]]", offset: str) -> None:
    client, turn = told
    position = f"{turn['id']}:{offset}".encode()
    with streaming(client, f"/chat/{turn['id']}/events", headers={"Last-Event-ID": position}) as stream:
        assert_whole(stream.rest())


@pytest.mark.parametrize("offset", ["1000", "2147483648", "99999999999999999999999999", "9" * 4000])
def test_an_offset_beyond_an_ended_reply_tells_its_end(
    told: "tuple[httpx.Client, dict[str, str]]", offset: str
) -> None:
    client, turn = told
    events = follow(client, turn["id"], f"{turn['id']}:{offset}")
    assert [event.name for event in events] == ["turn", "end"]
    assert events[-1].json["reply"] == turn["reply"]


@pytest.mark.parametrize("offset", ["100000", "99999999999999999999", "end"])
def test_an_offset_from_the_future_loses_nothing(guest: httpx.Client, offset: str) -> None:
    """Whoever claims to have seen more than there is gets the whole reply with `end`, at the latest."""
    turn = begin(guest, "/tokens 20 /delay 10ms")
    events = follow(guest, turn["id"], f"{turn['id']}:{offset}")
    assert events[-1].name == "end"
    assert events[-1].json["reply"] == "".join(f"tok{number} " for number in range(20))
    reply = events[-1].json["reply"]
    for event in events:
        if event.name == "delta":
            assert reply[event.json["offset"] :].startswith(event.json["text"])


def test_two_readers_see_the_same(guest: httpx.Client) -> None:
    turn = begin(guest, "/tokens 40 /delay 10ms")
    with ThreadPoolExecutor(6) as pool:
        seen = list(pool.map(lambda _: follow(guest, turn["id"]), range(6)))
    for events in seen:
        assert_whole(events)
        assert text_of(events) == seen[0][-1].json["reply"]
        assert events[-1] == seen[0][-1]


def test_a_session_stream_tells_turn_after_turn(guest: httpx.Client) -> None:
    session = create(guest, model="fast")
    with streaming(guest, f"/session/{session['id']}/events") as stream:
        for prompt in ("first words", "second words"):
            turn = begin(guest, prompt, session_id=session["id"])
            assert stream.next("turn").json["id"] == turn["id"]
            text = ""
            for event in stream:
                if event.name == "end":
                    assert event.json["reply"] == text == prompt
                    assert event.id == f"{turn['id']}:end"
                    break
                assert event.name == "delta"
                text += event.json["text"]


def test_a_session_stream_resumes_behind_what_was_seen(guest: httpx.Client) -> None:
    session = create(guest)
    turns = [chat(guest, f"{word} and more", session_id=session["id"]) for word in ("one", "two", "three")]
    url = f"/session/{session['id']}/events"

    def told_after(position: str) -> str:
        found = ""
        with streaming(guest, url, after=position) as stream:
            for event in stream:
                if event.name == "delta":
                    found += event.json["text"]
                if event.name == "end" and event.json["id"] == turns[-1]["id"]:
                    return found
        raise AssertionError

    whole = "".join(turn["reply"] for turn in turns)
    assert told_after("") == whole
    assert told_after(f"{turns[0]['id']}:end") == whole[len(turns[0]["reply"]) :]
    assert told_after(f"{turns[1]['id']}:3") == turns[1]["reply"][3:] + turns[2]["reply"]
    assert told_after(f"{ABSENT}:5") == whole
    with streaming(guest, f"{url}?after={turns[1]['id']}:end") as stream:
        assert stream.next("turn").json["id"] == turns[2]["id"]


def test_a_position_in_anothers_reply_or_on_another_branch_is_the_beginning(
    guest: httpx.Client, stranger: httpx.Client
) -> None:
    theirs = chat(stranger, "not for others")
    first = chat(guest, "one two three")
    left = chat(guest, "four five", session_id=first["session_id"])
    again = guest.post(f"/chat/{left['id']}/retry", json={}).json()
    for place in (theirs["id"], left["id"]):
        for offset in ("3", "end"):
            with streaming(guest, f"/session/{first['session_id']}/events", after=f"{place}:{offset}") as stream:
                events = [stream.next(name) for name in ("turn", "delta", "end") * 2]
            assert [event.json["id"] for event in events if event.name == "turn"] == [first["id"], again["id"]]
            assert text_of(events) == first["reply"] + again["reply"]
            assert "not for others" not in stream.frames.raw.decode()


def test_the_header_counts_where_there_are_two_positions(guest: httpx.Client) -> None:
    """A reconnecting browser sends the address it began with, and the id it has seen since."""
    session = create(guest)
    turns = [chat(guest, word, session_id=session["id"]) for word in ("one", "two", "three")]
    url = f"/session/{session['id']}/events?after={turns[0]['id']}:end"
    with streaming(guest, url, after=f"{turns[1]['id']}:end") as stream:
        assert stream.next("turn").json["id"] == turns[2]["id"]


def test_a_stop_with_a_key_is_one_stop(guest: httpx.Client) -> None:
    turn, key = begin(guest, SLOW), {"Idempotency-Key": uuid4().hex}
    first = guest.post(f"/chat/{turn['id']}/stop", json={}, headers=key)
    again = guest.post(f"/chat/{turn['id']}/stop", json={}, headers=key)
    assert (first.status_code, first.json()) == (again.status_code, again.json())


def test_a_stream_that_was_read_to_its_end_tells_nothing_twice(guest: httpx.Client) -> None:
    session = create(guest)
    turn = chat(guest, "once", session_id=session["id"])
    url = f"/session/{session['id']}/events"
    with (
        streaming(guest, url, after=f"{turn['id']}:end") as stream,
        soon(lambda: chat(guest, "twice", session_id=session["id"])),
    ):
        assert stream.next().json["prompt"] == "twice"


def test_a_deleted_session_ends_its_streams(guest: httpx.Client) -> None:
    session = create(guest)
    with (
        streaming(guest, f"/session/{session['id']}/events") as stream,
        soon(lambda: guest.post(f"/session/{session['id']}/delete", json={}).raise_for_status()),
    ):
        assert [event.name for event in stream.rest()] == ["gone"]


def test_a_reply_in_a_deleted_session_ends_its_stream(guest: httpx.Client) -> None:
    with streaming(guest, "/chat", method="POST", json={"prompt": SLOW}) as stream:
        turn = stream.next("turn").json
        with soon(lambda: guest.post(f"/session/{turn['session_id']}/delete", json={}).raise_for_status()):
            last = stream.rest()[-1]
    # It was stopped first, and that is its end.
    assert last.name == "gone" or (last.name == "end" and last.json["state"] == "stopped")


# ---------------------------------------------------------------- refused before the first byte


@pytest.mark.parametrize("accept", [STREAM, JSON])
def test_a_refusal_is_never_inside_a_200(guest: httpx.Client, stranger: httpx.Client, accept: str) -> None:
    foreign = create(stranger)["id"]
    closed = create(guest)["id"]
    guest.post(f"/session/{closed}/close", json={}).raise_for_status()
    running = begin(guest, SLOW)
    before = guest.get("/session").json()
    for body, status, code in (
        ({"session_id": ABSENT, "prompt": "x"}, 404, "session_not_found"),
        ({"session_id": foreign, "prompt": "x"}, 404, "session_not_found"),
        ({"session_id": closed, "prompt": "x"}, 410, "session_closed"),
        ({"session_id": running["session_id"], "prompt": "x"}, 409, "session_busy"),
        ({"session_id": running["session_id"], "prompt": "x", "model": "none"}, 422, "model_unknown"),
        ({"session_id": "none", "prompt": "x"}, 400, "invalid_request"),
        ({"session_id": running["session_id"], "prompt": "x", "expected_version": 99}, 409, "version_conflict"),
    ):
        problem(guest.post("/chat", json=body, headers={"Accept": accept}), status, code)
    for url in (f"/chat/{ABSENT}/events", f"/session/{ABSENT}/events", f"/session/{foreign}/events"):
        problem(guest.get(url, headers={"Accept": accept}), 404, "session_not_found")
    guest.post(f"/chat/{running['id']}/stop", json={}).raise_for_status()
    after = guest.get("/session").json()
    assert [one["id"] for one in after["sessions"]] == [one["id"] for one in before["sessions"]]


def test_a_busy_session_names_the_running_turn(guest: httpx.Client) -> None:
    turn = begin(guest, SLOW)
    refused = problem(
        guest.post("/chat", json={"session_id": turn["session_id"], "prompt": "me too"}), 409, "session_busy"
    )
    assert refused["running_turn"] == turn["id"]
    page = guest.post("/chat", data={"session_id": turn["session_id"], "prompt": "me too"}, headers=FORM)
    assert page.status_code == 409
    assert "me too" in page.text
    guest.post(f"/chat/{turn['id']}/stop", json={}).raise_for_status()
    assert session_of(guest, turn["session_id"])["turn_count"] == 1


# ---------------------------------------------------------------- auto-create


def test_without_an_id_a_session_is_made_and_named_in_the_first_event(guest: httpx.Client) -> None:
    events = say(guest, "hello there")
    id = events[0].json["session_id"]
    session = session_of(guest, id)
    assert session["turn_count"] == 1
    assert session["title"] == "hello there"
    rows = guest.get(f"/session/{id}/journal").json()["journal"]
    assert (rows[-1]["what"], rows[-1]["reason"]) == ("session_created", "auto")


def test_an_untouched_session_is_used_again(guest: httpx.Client) -> None:
    untouched = create(guest)
    assert chat(guest, "hello")["session_id"] == untouched["id"]
    assert chat(guest, "hello")["session_id"] != untouched["id"]
    assert len(guest.get("/session").json()["sessions"]) == 2


def test_a_session_with_a_title_or_a_model_is_not_untouched(guest: httpx.Client) -> None:
    made = {create(guest, title="mine")["id"], create(guest, model="smart")["id"]}
    assert chat(guest, "hello")["session_id"] not in made


def test_a_strangers_untouched_session_is_not_used(guest: httpx.Client, stranger: httpx.Client) -> None:
    theirs = create(stranger)
    mine = chat(guest, "hello")["session_id"]
    assert mine != theirs["id"]
    assert session_of(stranger, theirs["id"])["turn_count"] == 0


@pytest.mark.parametrize("id", [ABSENT, "9a249134-2c94-4596-9254-3c691bcf4515", "00000000-0000-0000-0000-000000000000"])
def test_an_unknown_id_never_makes_a_session(guest: httpx.Client, id: str) -> None:
    for headers in ({"Accept": JSON}, {"Accept": STREAM}, HTMX, FORM):
        assert guest.post("/chat", json={"session_id": id, "prompt": "x"}, headers=headers).status_code == 404
    assert guest.get("/session").json()["sessions"] == []


def test_a_refused_auto_create_leaves_nothing(newcomer: Callable[..., httpx.Client]) -> None:
    """A3: over the limit of turns, no session is left behind; over that of sessions, no stream begins."""
    client = newcomer()
    for _ in range(2):
        chat(client, "hello")
    problem(client.post("/chat", json={"prompt": "third"}, headers={"Accept": STREAM}), 429, "rate_limited")
    assert len(client.get("/session").json()["sessions"]) == 2


def test_a_thousand_reads_make_no_row(guest: httpx.Client) -> None:
    turn = chat(guest, "hello")
    id = turn["session_id"]
    before = (session_of(guest, id), guest.get(f"/session/{id}/journal").json(), guest.get("/session").json())
    urls = [f"/chat/{turn['id']}/events", f"/session/{id}", f"/chat/{turn['id']}", f"/chat/{ABSENT}/events", "/session"]
    with ThreadPoolExecutor(4) as pool:
        statuses = set(pool.map(lambda number: guest.get(urls[number % len(urls)]).status_code, range(300)))
    assert statuses == {200, 404}
    for _ in range(20):
        with streaming(guest, f"/session/{id}/events", after=f"{turn['id']}:0") as stream:
            stream.next("end")
    assert (session_of(guest, id), guest.get(f"/session/{id}/journal").json(), guest.get("/session").json()) == before


def test_opening_pages_makes_no_session(server: Server) -> None:
    with server.guest(Accept=BROWSER) as fresh:
        for path in ("/", "/session", "/models", "/limits", "/login", f"/session/{ABSENT}", f"/chat/{ABSENT}"):
            fresh.get(path)
        assert fresh.get("/session", headers={"Accept": JSON}).json()["sessions"] == []


# ---------------------------------------------------------------- stop, leave


def test_another_client_can_stop_and_the_text_is_kept(server: Server, guest: httpx.Client) -> None:
    with streaming(guest, "/chat", method="POST", json={"prompt": SLOW}) as stream:
        turn = stream.next("turn").json
        shown = stream.next("delta").json["text"]
        with server.guest(Accept=JSON) as other_tab:
            other_tab.cookies = guest.cookies
            stopped = other_tab.post(f"/chat/{turn['id']}/stop", json={})
        began = time.monotonic()
        rest = stream.rest()
        assert time.monotonic() - began < SOON
    assert stopped.status_code == 200
    kept = assert_turn(stopped.json())
    assert kept["state"] == "stopped"
    assert rest[-1].json == kept
    assert kept["reply"] == shown + text_of(rest)
    time.sleep(0.2)
    assert turn_of(guest, turn["id"]) == kept


def test_stopping_twice_is_stopping_once(guest: httpx.Client) -> None:
    turn = begin(guest, SLOW)
    first = guest.post(f"/chat/{turn['id']}/stop", json={})
    again = guest.post(f"/chat/{turn['id']}/stop", json={})
    assert first.json() == again.json()
    done = chat(guest, "hello")
    assert guest.post(f"/chat/{done['id']}/stop", json={}).json() == done


def test_a_stop_by_form_leads_back_to_the_session(guest: httpx.Client) -> None:
    turn = begin(guest, SLOW)
    answer = guest.post(f"/chat/{turn['id']}/stop", data={}, headers=FORM)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/session/{turn['session_id']}")
    assert turn_of(guest, turn["id"])["state"] == "stopped"


def test_a_stop_refuses_a_field_it_does_not_know(guest: httpx.Client) -> None:
    turn = chat(guest, "hello")
    problem(guest.post(f"/chat/{turn['id']}/stop", json={"x": 1}), 400, "invalid_request")


def test_a_closed_tab_does_not_end_the_reply(guest: httpx.Client) -> None:
    turn = begin(guest, "/tokens 30 /delay 15ms")
    with streaming(guest, f"/chat/{turn['id']}/events") as stream:
        stream.next("delta")
    kept = ended(guest, turn["id"])
    assert kept["state"] == "done"
    assert kept["reply"] == "".join(f"tok{number} " for number in range(30))


def test_a_script_that_hangs_up_does_not_end_the_reply(guest: httpx.Client) -> None:
    session = create(guest)
    body = json.dumps({"session_id": session["id"], "prompt": "/tokens 40 /delay 20ms"})
    head = (
        f"POST /chat HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: tk_guest={guest.cookies['tk_guest']}\r\n"
        f"Sec-Fetch-Site: same-origin\r\nAccept: {JSON}\r\n"
        f"Content-Type: {JSON}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", guest.base_url.port)) as script:
        script.sendall(f"{head}{body}".encode())
        while not (begun := turns_of(guest, session["id"])):
            time.sleep(0.01)
        assert begun[0]["state"] == "running" or begun[0]["reply"]
    last = ended(guest, begun[0]["id"])
    assert (last["state"], len(last["reply"].split())) == ("done", 40)


def test_a_reply_that_hangs_is_stopped_at_once(guest: httpx.Client) -> None:
    with streaming(guest, "/chat", method="POST", json={"prompt": "/hang after 3"}) as stream:
        turn = stream.next("turn").json
        stream.next("delta")
        began = time.monotonic()
        assert guest.post(f"/chat/{turn['id']}/stop", json={}).json()["state"] == "stopped"
        stream.rest()
        assert time.monotonic() - began < SOON


# ---------------------------------------------------------------- twice


def test_one_key_is_one_turn(guest: httpx.Client) -> None:
    key = {"Idempotency-Key": uuid4().hex}
    first = guest.post("/chat", json={"prompt": "once"}, headers=key)
    again = guest.post("/chat", json={"prompt": "once"}, headers=key)
    assert first.json() == again.json()
    assert len(guest.get("/session").json()["sessions"]) == 1
    with streaming(guest, "/chat", method="POST", json={"prompt": "once"}, headers=key) as stream:
        events = stream.rest()
    assert_whole(events)
    assert events[-1].json == first.json()
    problem(guest.post("/chat", json={"prompt": "other"}, headers=key), 422, "idempotency_key_reused")


def test_a_double_click_is_one_turn(guest: httpx.Client) -> None:
    session = create(guest)
    fields = {"session_id": session["id"], "prompt": "/tokens 20 /delay 20ms", "idempotency_key": uuid4().hex}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: guest.post("/chat", data=fields, headers=HTMX), range(4)))
    assert {answer.status_code for answer in answers} == {200}
    assert session_of(guest, session["id"])["turn_count"] == 1
    ids = {answer.text.split('id="turn-')[1][:36] for answer in answers}
    assert len(ids) == 1
    assert UUID(ids.pop())


def test_twenty_prompts_at_once_are_one_turn_and_nineteen_refusals(guest: httpx.Client) -> None:
    session = create(guest)
    with ThreadPoolExecutor(20) as pool:
        asking = [
            pool.submit(guest.post, "/chat", json={"session_id": session["id"], "prompt": f"/hang after {number}"})
            for number in range(20)
        ]
        answers = [one.result() for one in islice(as_completed(asking), 19)]
        running = session_of(guest, session["id"])["running_turn"]
        guest.post(f"/chat/{running}/stop", json={}).raise_for_status()
    assert [answer.status_code for answer in answers] == [409] * 19
    assert sorted(one.result().status_code for one in asking) == [200] + [409] * 19
    assert session_of(guest, session["id"])["turn_count"] == 1


def test_a_key_sent_again_while_the_reply_is_written_follows_that_reply(guest: httpx.Client) -> None:
    key = {"Idempotency-Key": uuid4().hex}
    body = {"prompt": "/tokens 40 /delay 10ms"}
    with streaming(guest, "/chat", method="POST", json=body, headers=key) as stream:
        turn = stream.next("turn").json
        stream.next("delta")
    with streaming(guest, "/chat", method="POST", json=body, headers=key) as stream:
        events = stream.rest()
    assert_whole(events)
    assert events[0].json["id"] == turn["id"]
    assert events[-1].json["state"] == "done"


# ---------------------------------------------------------------- what happens to one who waits


def test_a_script_that_waits_is_told_of_a_stop(guest: httpx.Client) -> None:
    session = create(guest)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(guest.post, "/chat", json={"session_id": session["id"], "prompt": SLOW})
        while (running := session_of(guest, session["id"])["running_turn"]) is None:
            time.sleep(0.02)
        stopped = guest.post(f"/chat/{running}/stop", json={}).json()
        assert waiting.result(60).json() == stopped


def test_a_script_that_waits_in_a_session_that_is_deleted_is_told_so(guest: httpx.Client) -> None:
    session = create(guest)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(guest.post, "/chat", json={"session_id": session["id"], "prompt": SLOW})
        while session_of(guest, session["id"])["running_turn"] is None:
            time.sleep(0.02)
        guest.post(f"/session/{session['id']}/delete", json={}).raise_for_status()
        problem(waiting.result(60), 404, "session_not_found")


# ---------------------------------------------------------------- silence


@pytest.fixture(scope="module", autouse=True)
def silence(server: Server) -> "Future[tuple[float, int, str]]":
    """What a stream in which nothing happens sends first, after how long, beside all the other tests."""

    def listen() -> tuple[float, int, str]:
        with server.guest(Accept=JSON) as client:
            session = create(client, model="smart")
            began = time.monotonic()
            with streaming(client, f"/session/{session['id']}/events") as stream:
                for chunk in stream.response.iter_raw():
                    list(stream.frames.feed(chunk))
                    if stream.frames.comments:
                        break
            return time.monotonic() - began, session["version"], stream.frames.comments[0]

    return beside(listen)


def test_a_silent_stream_sends_a_comment_in_time_with_the_version(
    silence: "Future[tuple[float, int, str]]",
) -> None:
    seconds, version, comment = silence.result(60)
    assert seconds < 15 + SOON
    assert str(version) in comment


# ---------------------------------------------------------------- asking again


def turns_of(client: httpx.Client, session_id: str) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = client.get(f"/session/{session_id}/turns").json()["turns"]
    return turns


def shown(client: httpx.Client, session_id: str, **query: str) -> list[tuple[str, str]]:
    """Prompts and models of a session's branch."""
    turns = client.get(f"/session/{session_id}/turns", params=query).json()["turns"]
    return [(turn["prompt"], turn["model"]) for turn in turns]


def test_retry_and_edit_stand_beside_the_first_and_are_the_branch_that_is_shown(guest: httpx.Client) -> None:
    one = chat(guest, "one")
    id = one["session_id"]
    two = chat(guest, "two", session_id=id)
    retried = assert_turn(guest.post(f"/chat/{two['id']}/retry", json={}).json())
    assert (retried["prompt"], retried["parent_id"], retried["state"]) == ("two", one["id"], "done")
    edited = guest.post(f"/chat/{two['id']}/edit", json={"prompt": "deux", "model": "smart"}).json()
    assert (edited["prompt"], edited["reply"], edited["parent_id"]) == ("deux", "deux", one["id"])
    assert shown(guest, id) == [("one", "fast"), ("deux", "smart")]
    assert shown(guest, id, all="true") == [("one", "fast"), ("two", "fast"), ("two", "fast"), ("deux", "smart")]
    assert turn_of(guest, two["id"]) == two
    session = session_of(guest, id)
    assert (session["last_model"], session["turn_count"]) == ("fast", 4)
    assert chat(guest, "three", session_id=id)["parent_id"] == edited["id"]
    branch = chat(guest, "zwei", session_id=id, parent_id=one["id"])
    assert shown(guest, id) == [("one", "fast"), ("zwei", "fast")]
    assert branch["parent_id"] == one["id"]


def test_G5_continue_follows_a_reply_that_did_not_come_to_its_end(guest: httpx.Client) -> None:
    turn = begin(guest, "/tokens 300 /delay 5ms")
    with streaming(guest, f"/chat/{turn['id']}/events") as stream:
        stream.next("delta")
    guest.post(f"/chat/{turn['id']}/stop", json={}).raise_for_status()
    page = guest.get(f"/session/{turn['session_id']}", headers=FORM).text
    form = hidden_fields(page, "/chat")
    assert (form["parent_id"], form["prompt"]) == (turn["id"], "Continue where you stopped.")
    answer = guest.post("/chat", data=form, headers=FORM)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/session/{turn['session_id']}")
    more = ended(guest, next(one["id"] for one in turns_of(guest, turn["session_id"]) if one["id"] != turn["id"]))
    assert (more["parent_id"], more["state"]) == (turn["id"], "done")


def test_there_is_nothing_to_continue_where_nothing_was_said(guest: httpx.Client) -> None:
    turn = begin(guest, "/hang")
    guest.post(f"/chat/{turn['id']}/stop", json={}).raise_for_status()
    page = guest.get(f"/session/{turn['session_id']}", headers=FORM).text
    assert f'action="/chat/{turn["id"]}/retry"' in page
    assert "Continue where you stopped" not in page


def test_a_retry_is_a_stream_a_form_and_a_page_too(guest: httpx.Client) -> None:
    turn = chat(guest, "one two")
    url = f"/chat/{turn['id']}/retry"
    with streaming(guest, url, method="POST", json={}) as stream:
        events = stream.rest()
    assert (events[0].name, events[-1].name, text_of(events)) == ("turn", "end", "one two")
    for headers in (FORM, HTMX):
        answer = guest.post(f"/chat/{turn['id']}/edit", data={"prompt": "three"}, headers=headers)
        assert answer.status_code in (200, 303)
        # What changed of the page, or the page.
        leads_to = answer.headers.get("location")
        assert leads_to == f"/session/{turn['session_id']}" or f"session-{turn['session_id']}-log" in answer.text
        ended(guest, session_of(guest, turn["session_id"])["running_turn"] or turn["id"])
    assert shown(guest, turn["session_id"]) == [("three", "fast")]


def test_what_is_asked_again_is_checked_as_any_message(guest: httpx.Client, stranger: httpx.Client) -> None:
    turn = chat(guest, "one")
    for url, body in ((f"/chat/{turn['id']}/retry", {}), (f"/chat/{turn['id']}/edit", {"prompt": "x"})):
        problem(guest.post(url, json=body | {"model": "none"}), 422, "model_unknown")
        problem(guest.post(url, json=body | {"surprise": 1}), 400, "invalid_request")
        problem(stranger.post(url, json=body), 404, "session_not_found")
        problem(guest.post(url.replace(turn["id"], ABSENT), json=body), 404, "session_not_found")
    problem(guest.post(f"/chat/{turn['id']}/edit", json={"prompt": " "}), 400, "invalid_request")
    running = begin(guest, "/tokens 300 /delay 20ms", session_id=turn["session_id"])
    problem(guest.post(f"/chat/{turn['id']}/retry", json={}), 409, "session_busy")
    guest.post(f"/chat/{running['id']}/stop", json={}).raise_for_status()
    assert turn_of(guest, turn["id"]) == turn
