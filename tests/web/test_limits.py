"""/limits and every refusal that a limit makes: body, headers and the wait agree."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.web.running import Server, a_server
from tests.web.wire import (
    ALLOWANCE,
    BROWSER,
    HTMX,
    INSTANT,
    JSON,
    SOON,
    begin,
    chat,
    create,
    is_fragment,
    is_page,
    problem,
    session_of,
)

FORM = {"Accept": BROWSER}
Newcomer = Callable[..., httpx.Client]


def fields(header: str) -> dict[str, dict[str, int | str]]:
    """{name: parameters} of a RateLimit header, in its order (draft-ietf-httpapi-ratelimit-headers-10)."""
    found = {}
    for item in header.split(", "):
        parts = re.fullmatch(r'"(\w+)"((?:;\w+=(?:\d+|"[a-z-]+"))+)', item)
        assert parts, header
        assert parts[1] not in found, header
        pairs = re.findall(r';(\w+)=(?:(\d+)|"([a-z-]+)")', parts[2])
        found[parts[1]] = {name: int(number) if number else text for name, number, text in pairs}
    return found


def told_by(answer: httpx.Response) -> dict[str, dict[str, int | str]]:
    """{name of a limit: q, r, t, w and qu}, the tightest first."""
    policies, states = fields(answer.headers["ratelimit-policy"]), fields(answer.headers["ratelimit"])
    assert list(policies) == list(states)
    return {name: policies[name] | states[name] for name in states}


def assert_agree(answer: httpx.Response, told: dict[str, Any]) -> None:
    """The headers of a 429 say what its body says."""
    assert int(answer.headers["retry-after"]) == told["retry_after_seconds"] > 0
    name, limit = next(iter(told_by(answer).items()))
    assert name == told["limit"]
    scale = 1_000_000 if limit.get("qu") == "micro-money" else 1
    assert (limit["q"], limit["r"]) == (round(told["size"] * scale), round(told["remaining"] * scale))
    if told.get("resets_at"):
        assert INSTANT.fullmatch(str(told["resets_at"]))
        left = (datetime.fromisoformat(str(told["resets_at"])) - datetime.now(UTC)).total_seconds()
        assert limit["t"] == told["retry_after_seconds"]
        assert -1 < told["retry_after_seconds"] - left < 2 + SOON  # some of it has passed meanwhile


# ---------------------------------------------------------------- before trying


def test_every_limit_is_told_before_it_is_met(newcomer: Newcomer) -> None:
    client = newcomer()
    answer = client.get("/limits")
    assert answer.status_code == 200
    assert set(answer.json()) == {"limits"}
    limits = {one["name"]: one for one in answer.json()["limits"]}
    assert set(limits) == {"turns", "switches", "sessions_created", "concurrent_turns", "open_sessions"}
    for one in limits.values():
        assert set(one) == ALLOWANCE
        assert one["remaining"] == one["size"] - one["used"]
        assert one["used"] == 0
    assert (limits["turns"]["size"], limits["sessions_created"]["size"], limits["open_sessions"]["size"]) == (2, 3, 3)
    assert limits["turns"]["window_seconds"] == 60
    assert limits["open_sessions"]["window_seconds"] == 0


def test_what_is_used_is_told(newcomer: Newcomer) -> None:
    client = newcomer()
    session = create(client)
    chat(client, "hello", session_id=session["id"])
    limits = {one["name"]: one for one in client.get("/limits").json()["limits"]}
    assert limits["sessions_created"]["used"] == 1
    assert limits["open_sessions"]["used"] == 1
    assert limits["turns"]["used"] == 1
    assert INSTANT.fullmatch(limits["turns"]["resets_at"])


def test_looking_uses_nothing(newcomer: Newcomer) -> None:
    client = newcomer()
    before = client.get("/limits").json()
    for _ in range(5):
        client.get("/limits")
        client.get("/models")
        client.get("/session")
    after = client.get("/limits").json()
    for one in (*before["limits"], *after["limits"]):
        one.pop("resets_at")
    assert after == before


def test_limits_are_a_page_too(newcomer: Newcomer) -> None:
    page = newcomer().get("/limits", headers=FORM)
    assert is_page(page)
    assert "<meter" in page.text


# ---------------------------------------------------------------- rates


def test_turns_are_limited_and_the_wait_suffices(newcomer: Newcomer, pass_: Callable[[float], None]) -> None:
    client = newcomer()
    id = create(client)["id"]
    first = client.post("/chat", json={"session_id": id, "prompt": "one"})
    limits = told_by(first)
    assert list(limits) == ["turns", "concurrent_turns"]
    assert (limits["turns"]["r"], limits["turns"]["q"], limits["turns"].get("qu")) == (1, 2, None)
    # The reply has ended, and its slot is free again.
    assert limits["concurrent_turns"] == {"q": 1, "qu": "concurrent-requests", "r": 1}
    second = client.post("/chat", json={"session_id": id, "prompt": "two"})
    assert told_by(second)["turns"]["r"] == 0
    third = client.post("/chat", json={"session_id": id, "prompt": "three"})
    told = problem(third, 429, "rate_limited")
    assert (told["limit"], told["size"], told["remaining"]) == ("turns", 2, 0)
    assert_agree(third, told)
    assert session_of(client, id)["turn_count"] == 2
    pass_(told["retry_after_seconds"])
    assert client.post("/chat", json={"session_id": id, "prompt": "three"}).status_code == 200


def test_a_stream_is_refused_before_its_first_byte(newcomer: Newcomer) -> None:
    client = newcomer()
    id = create(client)["id"]
    for prompt in ("one", "two"):
        chat(client, prompt, session_id=id)
    refused = client.post("/chat", json={"session_id": id, "prompt": "three"}, headers={"Accept": "text/event-stream"})
    assert_agree(refused, problem(refused, 429, "rate_limited"))


def test_a_refused_form_keeps_the_typed_text_and_counts_down(newcomer: Newcomer) -> None:
    client = newcomer()
    id = create(client)["id"]
    for prompt in ("one", "two"):
        chat(client, prompt, session_id=id)
    page = client.post("/chat", data={"session_id": id, "prompt": "typed with care"}, headers=FORM)
    assert page.status_code == 429
    assert is_page(page)
    assert "typed with care" in page.text
    wait = int(page.headers["retry-after"])
    assert f'data-countdown="{wait}"' in page.text
    fragment = client.post("/chat", data={"session_id": id, "prompt": "typed"}, headers=HTMX)
    assert fragment.status_code == 429
    assert is_fragment(fragment)
    assert "data-countdown=" in fragment.text
    assert "ratelimit" in fragment.headers


def test_new_sessions_are_limited(newcomer: Newcomer, pass_: Callable[[float], None]) -> None:
    client = newcomer()
    for left in (2, 1, 0):
        made = client.post("/session/create", json={})
        limits = told_by(made)
        assert (list(limits), limits["sessions_created"]["r"]) == (["sessions_created", "open_sessions"], left)
        assert limits["open_sessions"] == {"q": 3, "qu": "sessions", "r": 2}
        client.post(f"/session/{made.json()['id']}/delete", json={}).raise_for_status()
    refused = client.post("/session/create", json={})
    told = problem(refused, 429, "rate_limited")
    assert told["limit"] == "sessions_created"
    assert_agree(refused, told)
    assert client.get("/session").json()["sessions"] == []
    pass_(told["retry_after_seconds"])
    assert client.post("/session/create", json={}).status_code == 201


def test_switches_are_limited_and_a_no_op_is_free(newcomer: Newcomer) -> None:
    client = newcomer()
    id = create(client)["id"]
    for model in ("fast", "smart", "smart", "smart", "fast"):
        answer = client.post("/models/switch", json={"session_id": id, "model": model})
        assert answer.status_code == 200
    refused = client.post("/models/switch", json={"session_id": id, "model": "smart"})
    told = problem(refused, 429, "rate_limited")
    assert told["limit"] == "switches"
    assert_agree(refused, told)
    assert session_of(client, id)["last_model"] == "fast"
    assert client.post("/models/switch", json={"session_id": id, "model": "fast"}).status_code == 200


def test_refusals_use_nothing(newcomer: Newcomer) -> None:
    client = newcomer()
    session = create(client)
    for _ in range(5):
        problem(client.post("/chat", json={"session_id": session["id"], "prompt": ""}), 400, "invalid_request")
        problem(
            client.post("/chat", json={"session_id": session["id"], "prompt": "x", "model": "none"}),
            422,
            "model_unknown",
        )
        problem(client.post("/session/create", json={"model": "none"}), 422, "model_unknown")
    limits = {one["name"]: one["used"] for one in client.get("/limits").json()["limits"]}
    assert (limits["turns"], limits["sessions_created"]) == (0, 1)


def test_guests_of_one_address_share_a_rate_and_those_of_another_do_not(newcomer: Newcomer) -> None:
    first, same, other = newcomer(address="10.9.9.9"), newcomer(address="10.9.9.9"), newcomer(address="10.9.9.8")
    for _ in range(3):
        first.post(f"/session/{create(first)['id']}/close", json={}).raise_for_status()
    problem(same.post("/session/create", json={}), 429, "rate_limited")
    assert other.post("/session/create", json={}).status_code == 201


def test_L9_57_a_guest_who_throws_the_cookie_away_gains_nothing_but_a_new_list(newcomer: Newcomer) -> None:
    address = "10.9.7.7"
    first = newcomer(address=address)
    turn = begin(first, "/tokens 500 /delay 20ms")
    for _ in range(2):
        fresh = newcomer(address=address)
        assert fresh.get("/session").json()["sessions"] == []
        slots = {one["name"]: one for one in fresh.get("/limits").json()["limits"]}["concurrent_turns"]
        assert (slots["used"], slots["remaining"]) == (1, 0)
        refused = fresh.post("/chat", json={"prompt": "again"})
        told = problem(refused, 429, "concurrency_limited")
        assert "from your network" in told["detail"]
        assert_agree(refused, told)
    assert newcomer(address="10.9.7.8").post("/chat", json={"prompt": "elsewhere"}).status_code == 200
    first.post(f"/chat/{turn['id']}/stop", json={}).raise_for_status()
    assert newcomer(address=address).post("/chat", json={"prompt": "again"}).status_code == 200


def test_guests_of_one_ipv6_network_share_a_rate(newcomer: Newcomer) -> None:
    addresses = [f"2001:db8:0:1::{number}" for number in range(1, 5)]
    clients = [newcomer(address=address) for address in addresses]
    for client in clients[:3]:
        client.post(f"/session/{create(client)['id']}/close", json={}).raise_for_status()
    problem(clients[3].post("/session/create", json={}), 429, "rate_limited")
    assert newcomer(address="2001:db8:0:2::1").post("/session/create", json={}).status_code == 201


def test_a_forwarded_address_counts_only_from_a_trusted_proxy(tmp_path: Path) -> None:
    """Litestar's CVE-2025-59152: a limit dodged by a header that anybody can send."""
    with a_server(tmp_path, '[groups.guest]\nsessions_created = "1/min burst 1"') as strict:
        statuses = []
        for number in range(3):
            forged = {"X-Forwarded-For": f"10.7.7.{number}", "Forwarded": f"for=10.7.7.{number}"}
            with strict.guest(Accept=JSON, **forged, **{"X-Real-IP": f"10.7.7.{number}"}) as client:
                statuses.append(client.post("/session/create", json={}).status_code)
    assert statuses == [201, 429, 429]


# ---------------------------------------------------------------- open things


def test_replies_at_once_are_limited(newcomer: Newcomer) -> None:
    client = newcomer()
    turn = begin(client, "/tokens 500 /delay 20ms")
    other = create(client)
    refused = client.post("/chat", json={"session_id": other["id"], "prompt": "second"})
    told = problem(refused, 429, "concurrency_limited")
    assert (told["limit"], told["size"], told["remaining"]) == ("concurrent_turns", 1, 0)
    assert_agree(refused, told)
    client.post(f"/chat/{turn['id']}/stop", json={}).raise_for_status()
    assert chat(client, "second", session_id=other["id"])["state"] == "done"


def test_open_sessions_are_a_quota_and_not_a_rate(newcomer: Newcomer) -> None:
    address = "10.8.8.8"
    client = newcomer(address=address)
    made = [create(client) for _ in range(3)]
    client.headers["x-forwarded-for"] = "10.8.8.9"
    refused = client.post("/session/create", json={})
    told = problem(refused, 409, "session_quota")
    assert (told["limit"], told["size"], told["used"]) == ("open_sessions", 3, 3)
    assert "retry-after" not in refused.headers
    client.post(f"/session/{made[0]['id']}/close", json={}).raise_for_status()
    assert client.post("/session/create", json={}).status_code == 201


def test_a_budget_is_held_while_a_reply_runs_and_refuses_what_does_not_fit(
    governed: Server, tokens: dict[str, str]
) -> None:
    with governed.script(tokens["pia"]) as pia:
        turn = begin(pia, "/tokens 300 /delay 20ms")
        other = create(pia)
        # What is left does not do for this and the shortest of replies.
        refused = pia.post("/chat", json={"session_id": other["id"], "prompt": "x" * 2400})
        told = problem(refused, 429, "budget_exhausted")
        assert (told["limit"], told["size"]) == ("tokens_per_day", 5000)
        assert told["remaining"] < 4096
        assert_agree(refused, told)
        pia.post(f"/chat/{turn['id']}/stop", json={}).raise_for_status()
        assert chat(pia, "second", session_id=other["id"])["state"] == "done"
        limits = {one["name"]: one for one in pia.get("/limits").json()["limits"]}
        assert 0 < limits["tokens_per_day"]["used"] < 2000


def test_L5_a_stream_tells_the_slot_it_holds(newcomer: Newcomer) -> None:
    client = newcomer()
    body = {"prompt": "/tokens 100 /delay 20ms"}
    with client.stream("POST", "/chat", json=body, headers={"Accept": "text/event-stream"}) as answer:
        limits = told_by(answer)
        refused = client.post("/chat", json={"prompt": "second"})
    assert next(iter(limits)) == "concurrent_turns"
    assert {name: limit["r"] for name, limit in limits.items()} == {
        "concurrent_turns": 0,
        "turns": 1,
        "sessions_created": 2,
        "open_sessions": 2,
    }
    assert next(iter(told_by(refused))) == problem(refused, 429, "concurrency_limited")["limit"] == "concurrent_turns"


GOVERNED = """
time_zone = "Asia/Kolkata"

[[models]]
id = "fast"
provider = "builtin"
upstream = "echo"
label = "Fast"
price_in = 0.15
price_out = 2.0
max_reply_tokens = 1000
concurrent_turns = 7

[groups."*"]
concurrent_turns = 40

[groups.guest]
turns = "6000/min burst 2000"
money_per_day = 0.0025
money_per_month = 12.5
tokens_per_day = 50000
tokens_per_month = 900000
"""


def test_L4_L5_L7_every_budget_is_told_and_money_is_money(tmp_path: Path) -> None:
    with a_server(tmp_path, GOVERNED) as server, server.guest(Accept=JSON) as client:
        session = create(client)
        limits = {one["name"]: one for one in client.get("/limits").json()["limits"]}
        assert {name: (one["size"], one["remaining"], one["model"]) for name, one in limits.items()} == {
            "turns": (2000, 2000, None),
            "switches": (10, 10, None),
            "sessions_created": (5, 4, None),
            "concurrent_turns": (2, 2, None),
            "concurrent_turns_of_model": (7, 7, "fast"),
            "concurrent_turns_of_instance": (40, 40, None),
            "open_sessions": (50, 49, None),
            "tokens_per_day": (50_000, 50_000, None),
            "tokens_per_month": (900_000, 900_000, None),
            "money_per_day": (0.0025, 0.0025, None),
            "money_per_month": (12.5, 12.5, None),
        }
        # Midnight in India.
        assert all(limits[name]["resets_at"].endswith("T18:30:00Z") for name in limits if "_per_" in name)
        # "Hello" is asked for at 6 tokens: what is held is 6 × 0.15 and 1000 × 2 millionths.
        turn = begin(client, "/tokens 300 /delay 20ms", session_id=session["id"])
        refused = client.post("/chat", json={"prompt": "Hello"})
        told = problem(refused, 429, "budget_exhausted")
        assert (told["limit"], told["size"]) == ("money_per_day", 0.0025)
        assert 0.0004 < told["remaining"] < 0.0005
        assert_agree(refused, told)
        assert set(told_by(refused)) == limits.keys() - {"switches", "sessions_created", "open_sessions"}
        client.post(f"/chat/{turn['id']}/stop", json={}).raise_for_status()
        after = {one["name"]: one for one in client.get("/limits").json()["limits"]}["money_per_day"]
        assert 0 < after["used"] < 0.0015
        assert after["used"] + after["remaining"] == pytest.approx(0.0025, abs=1e-9)
        page = client.get("/limits", headers=FORM).text
        for words in ("money today", "money this month", "tokens today", "tokens this month", "replies at once of fast",
                      "replies at once on this server", "of 0.0025", "of 12.50", "of 900,000"):  # fmt: skip
            assert words in page
        assert page.count("<meter") == page.count(' left"></meter>') == len(limits)
        home = client.get("/", headers=FORM).text
        assert "left of 12.50 money this month" in home
        assert "2500000" not in page + home


def test_of_twenty_sessions_at_once_exactly_the_burst_is_made(newcomer: Newcomer) -> None:
    client = newcomer()
    client.get("/models")
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: client.post("/session/create", json={}), range(20)))
    codes = [answer.json().get("code", "") for answer in answers]
    assert codes.count("") == 3
    assert set(codes) <= {"", "rate_limited", "session_quota"}
    assert len(client.get("/session").json()["sessions"]) == 3


def test_of_twenty_replies_at_once_exactly_the_slots_are_begun(newcomer: Newcomer) -> None:
    client = newcomer()
    ids = [create(client)["id"] for _ in range(3)]
    with ThreadPoolExecutor(20) as pool:
        asking = [
            pool.submit(client.post, "/chat", json={"session_id": ids[number % 3], "prompt": "/hang"})
            for number in range(20)
        ]
        refused = [one.result() for one in islice(as_completed(asking), 19)]
        (running,) = filter(None, (session_of(client, id)["running_turn"] for id in ids))
        client.post(f"/chat/{running}/stop", json={}).raise_for_status()
    assert {answer.status_code for answer in refused} <= {409, 429}
    assert {answer.json()["code"] for answer in refused} <= {"concurrency_limited", "session_busy", "rate_limited"}
    assert [one.result().status_code for one in asking].count(200) == 1
    assert sum(session_of(client, id)["turn_count"] for id in ids) == 1


# ---------------------------------------------------------------- sizes


def test_a_prompt_has_an_end(guest: httpx.Client) -> None:
    session = create(guest)
    told = problem(
        guest.post("/chat", json={"session_id": session["id"], "prompt": "x" * 100_001}), 413, "prompt_too_long"
    )
    assert told["size"] == 100_000
    assert session_of(guest, session["id"])["turn_count"] == 0
    turn = chat(guest, "y" * 100_000, session_id=session["id"])
    assert turn["prompt"] == "y" * 100_000
    assert turn["reply"] == "y" * 100_000


@pytest.mark.parametrize("prompt", ["€", "👩‍🚀"])
def test_the_longest_prompt_fits_in_a_form_whatever_it_is_written_in(guest: httpx.Client, prompt: str) -> None:
    """100,000 characters are promised; percent-encoded they are up to 1.2 MB."""
    text = (prompt * 100_000)[:100_000].strip()
    answer = guest.post("/chat", data={"prompt": text}, headers=FORM)
    assert answer.status_code == 303, answer.text[:300]


def test_a_text_that_cannot_fit_the_model_is_refused(newcomer: Newcomer) -> None:
    client = newcomer()
    session = create(client, model="small")
    problem(client.post("/chat", json={"session_id": session["id"], "prompt": "word " * 60}), 422, "context_overflow")
    assert session_of(client, session["id"])["turn_count"] == 0


def test_what_of_the_transcript_did_not_fit_is_told(bob: httpx.Client) -> None:
    session = create(bob, model="small")
    turns = [chat(bob, "four words are here", session_id=session["id"]) for _ in range(6)]
    assert turns[0]["context_left_out"] == 0
    assert turns[-1]["context_left_out"] > 0


def test_a_repeated_key_uses_the_rate_once(newcomer: Newcomer) -> None:
    client = newcomer()
    id = create(client)["id"]
    key = {"Idempotency-Key": uuid4().hex}
    for _ in range(5):
        assert client.post("/chat", json={"session_id": id, "prompt": "x"}, headers=key).status_code == 200
    assert session_of(client, id)["turn_count"] == 1
