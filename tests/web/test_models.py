"""/models: what may be used, and pointing a session at one."""

import html
import re
import time
from collections.abc import Callable
from uuid import uuid4

import httpx
import pytest

from tests.web.running import Server
from tests.web.wire import (
    ABSENT,
    BROWSER,
    HTMX,
    JSON,
    MODEL,
    SOON,
    SWITCH,
    assert_session,
    begin,
    chat,
    create,
    hidden_fields,
    is_fragment,
    is_page,
    problem,
    session_of,
    soon,
    streaming,
    turn_of,
)

FORM = {"Accept": BROWSER}
BUSY = "/tokens 1000 /delay 20ms"


def switch(client: httpx.Client, session_id: str, model: str, **fields: object) -> httpx.Response:
    return client.post("/models/switch", json={"session_id": session_id, "model": model, **fields})


# ---------------------------------------------------------------- the list


def test_the_list_has_each_model_and_the_default(guest: httpx.Client) -> None:
    answer = guest.get("/models")
    assert answer.status_code == 200
    assert set(answer.json()) == {"models", "default"}
    assert answer.json()["default"] == "fast"
    assert [model["id"] for model in answer.json()["models"]] == ["fast", "smart", "guide"]
    for model in answer.json()["models"]:
        assert set(model) == MODEL
    assert answer.json()["models"][0] | {"provider_up": None} == {
        "id": "fast",
        "label": "Fast",
        "state": "active",
        "provider_up": None,
        "context_tokens": 0,
        "price_in": 0.0,
        "price_out": 0.0,
        "replacement": None,
    }


def test_the_list_is_a_page_too(visitor: httpx.Client) -> None:
    page = visitor.get("/models")
    assert is_page(page)
    assert "Smart" in page.text


def test_states_prices_and_replacements_are_told(newcomer: Callable[..., httpx.Client]) -> None:
    models = {model["id"]: model for model in newcomer().get("/models").json()["models"]}
    assert models["off"]["state"] == "disabled"
    assert (models["old"]["state"], models["old"]["replacement"]) == ("retired", "smart")
    assert (models["aging"]["state"], models["aging"]["replacement"]) == ("deprecated", "fast")
    assert (models["fast"]["price_in"], models["fast"]["price_out"]) == (1.0, 2.0)
    assert models["small"]["context_tokens"] == 40


def test_a_provider_that_is_down_shows_as_down(newcomer: Callable[..., httpx.Client]) -> None:
    client = newcomer()
    deadline = time.monotonic() + 60
    while True:
        models = {model["id"]: model for model in client.get("/models").json()["models"]}
        if models["far"]["provider_up"] is not None:
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert models["far"]["provider_up"] is False
    assert "does not answer" in client.get("/models", headers=FORM).text


def test_only_those_who_may_use_a_model_see_it(
    newcomer: Callable[..., httpx.Client], bob: httpx.Client, boss: httpx.Client
) -> None:
    for client in (newcomer(), bob):
        answer = client.get("/models")
        assert "hidden" not in answer.text
        page = client.get("/models", headers=FORM).text.lower()
        assert "hidden" not in page.replace('type="hidden"', "").replace('aria-hidden="true"', "")
    assert "hidden" in {model["id"] for model in boss.get("/models").json()["models"]}


# ---------------------------------------------------------------- the switch in three forms


def test_a_script_switches(guest: httpx.Client) -> None:
    session = create(guest)
    answer = switch(guest, session["id"], "smart", reason="it is cleverer")
    assert answer.status_code == 200
    told = answer.json()
    assert set(told) == SWITCH
    assert (told["changed"], told["from"], told["to"], told["effective"]) == (True, None, "smart", "now")
    assert told["warnings"] == []
    assert told["version"] == told["session"]["version"] == session["version"] + 1
    now = assert_session(told["session"])
    assert now["last_model"] == "smart"
    assert now["current_model"]["source"] == "session"
    assert "it is cleverer" in now["current_model"]["reason"]
    assert session_of(guest, session["id"]) == now
    assert chat(guest, "hello", session_id=session["id"])["model"] == "smart"


def test_a_form_switches(guest: httpx.Client) -> None:
    session = create(guest)
    page = guest.get(f"/session/{session['id']}", headers=FORM).text
    fields = hidden_fields(page, "/models/switch")
    assert fields["session_id"] == session["id"]
    answer = guest.post("/models/switch", data={**fields, "model": "smart"}, headers=FORM)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/session/{session['id']}")
    again = guest.post("/models/switch", data={**fields, "model": "smart"}, headers=FORM)
    assert again.status_code == 303
    assert session_of(guest, session["id"])["version"] == session["version"] + 1


def test_htmx_switches(guest: httpx.Client) -> None:
    session = create(guest)
    answer = guest.post("/models/switch", data={"session_id": session["id"], "model": "smart"}, headers=HTMX)
    assert answer.status_code == 200
    assert is_fragment(answer)
    for target in (f"#session-{session['id']}-head", "#notice"):
        assert f'hx-target="{target}"' in answer.text
    assert f'id="session-{session["id"]}-model"' in answer.text
    assert "Now on smart." in answer.text


def test_a_page_that_has_the_answer_to_a_switch_is_not_told_again(guest: httpx.Client) -> None:
    session = create(guest)
    with streaming(guest, f"/session/{session['id']}/events?version={session['version']}", headers=HTMX) as page:
        answer = guest.post("/models/switch", data={"session_id": session["id"], "model": "smart"}, headers=HTMX)
        told = html.unescape(page.next().data)
    (shown,) = re.findall(r'data-seal="([^"]+)"', answer.text)
    other = f"#session-{session['id']}-head:not([data-seal='{shown}'])"
    assert f'hx-target="{other}" hx-swap="outerHTML"' in told
    assert f'hx-target="main:has({other}):not(:has(.head .htmx-request)) ~ #status"' in told
    (before,) = re.findall(r'data-seal="([^"]+)"', guest.get(f"/session/{create(guest)['id']}", headers=FORM).text)
    assert before != shown


def test_the_same_model_is_no_switch(guest: httpx.Client) -> None:
    session = create(guest, model="smart")
    answer = switch(guest, session["id"], "smart")
    assert answer.status_code == 200
    assert answer.json()["changed"] is False
    assert answer.json()["version"] == session["version"]
    assert session_of(guest, session["id"]) == session


def test_choosing_the_default_pins_it(guest: httpx.Client) -> None:
    session = create(guest)
    answer = switch(guest, session["id"], "fast")
    assert answer.json()["changed"] is True
    assert answer.json()["session"]["current_model"]["source"] == "session"


def test_an_alias_is_the_model_behind_it(newcomer: Callable[..., httpx.Client]) -> None:
    client = newcomer()
    session = create(client, model="smart")
    answer = switch(client, session["id"], "quick")
    assert answer.json()["to"] == "fast"
    assert switch(client, session["id"], "fast").json()["changed"] is False


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"model": "smart"}, "session_id"),
        ({"session_id": ABSENT}, "model"),
        ({"session_id": "x", "model": "smart"}, "session_id"),
        ({"session_id": 5, "model": "smart"}, "session_id"),
        ({"session_id": ABSENT, "model": None}, "model"),
        ({"session_id": ABSENT, "model": "smart", "when": "tomorrow"}, "when"),
        ({"session_id": ABSENT, "model": "smart", "expected_version": "1"}, "expected_version"),
        ({"session_id": ABSENT, "model": "smart", "expected_version": 1.5}, "expected_version"),
        ({"session_id": ABSENT, "model": "smart", "lock": "yes"}, "lock"),
        ({"session_id": ABSENT, "model": "smart", "reason": "x" * 501}, "reason"),
        ({"session_id": ABSENT, "model": "smart", "version": 1}, "version"),
    ],
)
def test_a_wrong_field_is_refused_and_named(guest: httpx.Client, fields: dict[str, object], field: str) -> None:
    told = problem(guest.post("/models/switch", json=fields), 400, "invalid_request")
    assert field in (told.get("field", ""), *told["detail"].split("`"))


@pytest.mark.parametrize("model", ["none", "", " ", "FAST", "fast ", "switch", "x" * 5000, "\0", "ﬀ", "../fast"])
def test_an_unknown_model_is_refused_and_changes_nothing(guest: httpx.Client, model: str) -> None:
    session = create(guest)
    problem(switch(guest, session["id"], model), 422, "model_unknown")
    assert session_of(guest, session["id"]) == session


def test_a_hidden_model_is_refused_like_an_absent_one(newcomer: Callable[..., httpx.Client]) -> None:
    client = newcomer()
    session = create(client)
    hidden = problem(switch(client, session["id"], "hidden"), 422, "model_unknown")
    absent = problem(switch(client, session["id"], "absent"), 422, "model_unknown")
    for told in (hidden, absent):
        del told["request_id"]
    assert hidden | {"detail": hidden["detail"].replace("hidden", "absent")} == absent


@pytest.mark.parametrize(
    ("model", "code", "use"), [("off", "model_disabled", "fast"), ("old", "model_retired", "smart")]
)
def test_a_model_that_is_off_names_its_replacement(
    newcomer: Callable[..., httpx.Client], model: str, code: str, use: str
) -> None:
    client = newcomer()
    session = create(client)
    for answer in (
        switch(client, session["id"], model),
        client.post("/session/create", json={"model": model}),
        client.post("/chat", json={"session_id": session["id"], "prompt": "x", "model": model}),
    ):
        assert problem(answer, 422, code)["replacement"] == use
    assert session_of(client, session["id"]) == session


def test_a_deprecated_model_still_serves_and_says_so(newcomer: Callable[..., httpx.Client]) -> None:
    client = newcomer()
    session = create(client, model="aging")
    assert session["current_model"]["usable"] is True
    assert chat(client, "hello", session_id=session["id"])["model"] == "aging"


def test_a_provider_that_is_down_is_a_warning_on_a_switch_and_503_on_a_turn(
    newcomer: Callable[..., httpx.Client],
) -> None:
    client = newcomer()
    test_a_provider_that_is_down_shows_as_down(lambda: client)
    session = create(client)
    answer = switch(client, session["id"], "far")
    assert answer.status_code == 200
    assert answer.json()["warnings"] == ["provider_down"]
    refused = client.post("/chat", json={"session_id": session["id"], "prompt": "hello"})
    problem(refused, 503, "model_unavailable")
    assert session_of(client, session["id"])["turn_count"] == 0
    assert session_of(client, session["id"])["current_model"]["id"] == "far"


def test_a_stale_version_is_a_conflict_that_tells_the_current_state(guest: httpx.Client) -> None:
    session = create(guest)
    first = switch(guest, session["id"], "smart", expected_version=session["version"])
    assert first.status_code == 200
    told = problem(switch(guest, session["id"], "fast", expected_version=session["version"]), 409, "version_conflict")
    assert (told["current_model"], told["version"]) == ("smart", first.json()["version"])
    assert session_of(guest, session["id"])["last_model"] == "smart"
    assert switch(guest, session["id"], "fast", expected_version=told["version"]).status_code == 200


def test_of_twenty_switches_with_one_version_one_wins(guest: httpx.Client) -> None:
    from concurrent.futures import ThreadPoolExecutor

    session = create(guest, model="guide")
    with ThreadPoolExecutor(20) as pool:
        answers = list(
            pool.map(
                lambda number: switch(guest, session["id"], ("fast", "smart")[number % 2], expected_version=1),
                range(20),
            )
        )
    won = [answer for answer in answers if answer.status_code == 200 and answer.json()["changed"]]
    assert len(won) == 1
    same = {answer.status_code for answer in answers if answer not in won}
    assert same <= {200, 409}
    assert session_of(guest, session["id"])["version"] == 2
    rows = guest.get(f"/session/{session['id']}/journal").json()["journal"]
    assert [row["what"] for row in rows].count("model_switched") == 1


def test_an_owner_cannot_lock(guest: httpx.Client) -> None:
    session = create(guest)
    for lock in (True, False):
        problem(switch(guest, session["id"], "smart", lock=lock), 403, "forbidden")
    assert session_of(guest, session["id"]) == session


# ---------------------------------------------------------------- while a reply is written


def test_the_running_reply_keeps_its_model_and_the_next_has_the_new_one(guest: httpx.Client) -> None:
    turn = begin(guest, "/hang after 3")
    id = turn["session_id"]
    told = switch(guest, id, "smart").json()
    assert (told["changed"], told["effective"]) == (True, "next_turn")
    assert told["session"]["running_turn"] == turn["id"]
    assert (turn_of(guest, turn["id"])["state"], turn_of(guest, turn["id"])["model"]) == ("running", "fast")
    guest.post(f"/chat/{turn['id']}/stop", json={}).raise_for_status()
    assert turn_of(guest, turn["id"])["model"] == "fast"
    assert chat(guest, "next", session_id=id)["model"] == "smart"


def test_a_switch_can_stop_the_reply(guest: httpx.Client) -> None:
    with streaming(guest, "/chat", method="POST", json={"prompt": BUSY}) as stream:
        turn = stream.next("turn").json
        shown = stream.next("delta").json["text"]
        told = switch(guest, turn["session_id"], "smart", when="stop").json()
        assert told["effective"] == "now"
        assert told["session"]["running_turn"] is None
        assert stream.rest()[-1].name == "end"
    kept = turn_of(guest, turn["id"])
    assert kept["state"] == "stopped"
    assert kept["reply"].startswith(shown)


def test_a_switch_that_wants_an_idle_session_is_refused_while_it_is_busy(guest: httpx.Client) -> None:
    turn = begin(guest, BUSY)
    id = turn["session_id"]
    told = problem(switch(guest, id, "smart", when="idle"), 409, "session_busy")
    assert told["running_turn"] == turn["id"]
    assert session_of(guest, id)["last_model"] == "fast"
    guest.post(f"/chat/{turn['id']}/stop", json={}).raise_for_status()
    assert switch(guest, id, "smart", when="idle").status_code == 200


# ---------------------------------------------------------------- who is told


def test_every_open_stream_shows_the_new_model_within_a_second(guest: httpx.Client) -> None:
    session = create(guest)
    url = f"/session/{session['id']}/events?version={session['version']}"
    with streaming(guest, url) as script, streaming(guest, url, headers=HTMX) as page:
        began = time.monotonic()
        with soon(lambda: switch(guest, session["id"], "smart")):
            told = script.next("session").json
            assert assert_session(told)["current_model"]["id"] == "smart"
            shown = page.next().data
            assert time.monotonic() - began < SOON
        assert f"session-{session['id']}-model" in shown
        assert "smart" in shown


def test_a_page_that_missed_a_switch_is_told_by_the_version_it_brings(guest: httpx.Client) -> None:
    session = create(guest)
    switch(guest, session["id"], "smart").raise_for_status()
    with streaming(guest, f"/session/{session['id']}/events?version={session['version']}") as stream:
        assert stream.next("session").json["current_model"]["id"] == "smart"


# ---------------------------------------------------------------- twice


def test_one_key_is_one_switch_with_one_answer(guest: httpx.Client) -> None:
    session = create(guest)
    key = {"Idempotency-Key": uuid4().hex}
    body = {"session_id": session["id"], "model": "smart"}
    first = guest.post("/models/switch", json=body, headers=key)
    again = guest.post("/models/switch", json=body, headers=key)
    assert first.json() == again.json()
    assert again.json()["changed"] is True
    assert session_of(guest, session["id"])["version"] == session["version"] + 1
    problem(guest.post("/models/switch", json=body | {"model": "fast"}, headers=key), 422, "idempotency_key_reused")


def test_a_key_of_one_verb_is_free_for_another(guest: httpx.Client) -> None:
    key = {"Idempotency-Key": uuid4().hex}
    session = guest.post("/session/create", json={}, headers=key).json()
    body = {"session_id": session["id"], "model": "smart"}
    assert guest.post("/models/switch", json=body, headers=key).status_code == 200
    assert guest.post("/chat", json={"session_id": session["id"], "prompt": "x"}, headers=key).status_code == 200


def test_the_second_answer_is_not_the_first_ones_of_somebody_else(guest: httpx.Client, stranger: httpx.Client) -> None:
    key = {"Idempotency-Key": uuid4().hex, "Accept": JSON}
    session = create(guest)
    body = {"session_id": session["id"], "model": "smart"}
    guest.post("/models/switch", json=body, headers=key).raise_for_status()
    problem(stranger.post("/models/switch", json=body, headers=key), 404, "session_not_found")


def test_the_model_of_a_prompt_switches_the_session(server: Server, guest: httpx.Client) -> None:
    session = create(guest)
    turn = chat(guest, "hello", session_id=session["id"], model="smart")
    assert turn["model"] == "smart"
    assert session_of(guest, session["id"])["last_model"] == "smart"
