"""A refused form is answered with the page it stood on: the refusal in it, the text kept, the next step a button."""

import re
from collections.abc import Callable
from html import unescape

import httpx
import pytest

from tests.web.running import Server
from tests.web.wire import ABSENT, BROWSER, HTMX, JSON, begin, chat, create, is_page

FORM = {"Accept": BROWSER}
HIDDEN = r'<input type="hidden" name="([^"]+)"(?: autocomplete="off")? value="([^"]*)"'
AREA = r'<textarea[^>]* name="([^"]+)"[^>]*>([^<]*)</textarea>'


def post(client: httpx.Client, path: str, came_from: str = "", **fields: str) -> httpx.Response:
    """Send a form as a browser does that runs no JavaScript."""
    referer = {"Referer": str(client.base_url.join(came_from))} if came_from else {}
    return client.post(path, data=fields, headers=FORM | referer)


def test_a_refused_edit_is_the_session_with_the_edit_open(guest: httpx.Client) -> None:
    turn = chat(guest, "the first question")
    url = f"/session/{turn['session_id']}"
    running = begin(guest, "/hang", session_id=turn["session_id"])["id"]
    answer = post(guest, f"/chat/{turn['id']}/edit", url, prompt="another <question>", idempotency_key="k" * 20)
    assert answer.status_code == 409 and is_page(answer)
    assert 'data-code="session_busy"' in answer.text and "the first question" in answer.text
    assert 'class="edit" open' in answer.text
    assert answer.text.count("another &lt;question&gt;") == 1
    assert f'action="/chat/{running}/stop"' in answer.text and "Stop the reply" in answer.text
    assert 'value="kkkkkkkkkkkkkkkkkkkk"' in answer.text
    guest.post(f"/chat/{running}/stop", json={}).raise_for_status()


@pytest.mark.parametrize(
    "came_from",
    ["", "/chat/{turn}/retry", "https://elsewhere.example/", "//elsewhere", "/%00", "http://[::1", "//[x]/"],
)
def test_a_refused_retry_finds_its_session_whatever_the_browser_says(guest: httpx.Client, came_from: str) -> None:
    turn = chat(guest, "asked before")
    running = begin(guest, "/hang", session_id=turn["session_id"])["id"]
    answer = guest.post(
        f"/chat/{turn['id']}/retry",
        data={},
        headers=FORM | ({"Referer": came_from.format(turn=turn["id"])} if came_from else {}),
    )
    assert answer.status_code == 409 and "asked before" in answer.text
    assert f'action="/chat/{running}/stop"' in answer.text
    guest.post(f"/chat/{running}/stop", json={}).raise_for_status()


@pytest.mark.parametrize("named", ["http://[::1", "http://[x]/", "//[::1]:x]/"])
def test_what_is_no_address_is_no_page_one_came_from(guest: httpx.Client, named: str) -> None:
    session = create(guest, title="still here")
    answer = guest.post(f"/session/{ABSENT}/rename", data={"title": "x"}, headers=FORM | {"Referer": named})
    assert answer.status_code == 404 and "still here" in answer.text
    moved = guest.post(f"/session/{session['id']}/pin", headers=HTMX | {"HX-Current-URL": named})
    assert moved.status_code == 200 and "still here" in moved.text


@pytest.mark.parametrize("named", ["/login", "/login?next=/session", "/session"])
def test_the_text_is_shown_also_where_the_page_one_came_from_has_no_place_for_it(
    guest: httpx.Client, named: str
) -> None:
    answer = post(guest, "/chat", named, session_id=ABSENT, prompt="half a thought")
    assert answer.status_code == 404 and 'data-code="session_not_found"' in answer.text
    assert "half a thought</textarea>" in answer.text


def test_a_stream_named_as_the_page_one_came_from_is_not_followed(guest: httpx.Client) -> None:
    turn = chat(guest, "asked before")
    url = f"/session/{turn['session_id']}"
    for named in (f"{url}/events", f"{url}/export", "/metrics", "/static/js/page.js", "/logout"):
        answer = post(guest, f"{url}/rename", named, title="x" * 121)
        assert answer.status_code == 400 and "asked before" in answer.text


@pytest.mark.parametrize("verb", ["rename", "extend", "close", "delete", "pin", "archive", "fork", "reopen"])
def test_every_verb_on_a_session_that_is_gone_leads_to_the_list(guest: httpx.Client, verb: str) -> None:
    create(guest, title="still here")
    fields = {"title": "x"} if verb == "rename" else {}
    answer = post(guest, f"/session/{ABSENT}/{verb}", f"/session/{ABSENT}", **fields)
    assert answer.status_code == 404 and "still here" in answer.text
    assert 'data-code="session_not_found"' in answer.text


def test_an_ended_session_is_shown_with_the_text_and_a_copy_is_offered(guest: httpx.Client) -> None:
    turn = chat(guest, "asked before")
    url = f"/session/{turn['session_id']}"
    guest.post(f"{url}/close", json={}).raise_for_status()
    answer = post(guest, "/chat", url, session_id=turn["session_id"], prompt="half a thought")
    assert answer.status_code == 410
    assert "asked before" in answer.text and "half a thought" in answer.text
    assert f'action="{url}/fork" hx-post' in answer.text and "Continue in a copy" in answer.text


def pressed(client: httpx.Client, page: str, label: str) -> httpx.Response:
    """What a browser without JavaScript gets that sends the form of this button as it stands in the page."""
    for action, form in re.findall(r'<form[^>]* action="([^"]+)"[^>]*>(.*?)</form>', page, re.S):
        if re.search(rf"<button[^>]*>{label}</button>", form):
            found = re.findall(HIDDEN, form) + re.findall(AREA, form)
            fields = {name: unescape(text).removeprefix("\n") for name, text in found}
            answer = client.post(action, data=fields, headers=FORM, follow_redirects=True)
            assert answer.status_code == 200, answer.text
            return answer
    raise AssertionError(f"there is no button {label}")


@pytest.mark.parametrize("verb", ["say", "edit"])
@pytest.mark.parametrize("why", ["closed", "deleted"])
def test_what_was_written_into_a_chat_that_has_ended_goes_on_where_it_can(
    guest: httpx.Client, why: str, verb: str
) -> None:
    """ "Send again" into a chat that was closed or deleted could never work, and the copy was empty."""
    turn = chat(guest, "asked before")
    url = f"/session/{turn['session_id']}"
    guest.post(f"{url}/{why.removesuffix('d')}", json={}).raise_for_status()
    fields = {"session_id": turn["session_id"]} if verb == "say" else {}
    path = "/chat" if verb == "say" else f"/chat/{turn['id']}/edit"
    answer = post(guest, path, url, prompt="half a <thought>", **fields)
    assert answer.status_code in (404, 410) and "half a &lt;thought&gt;" in answer.text
    assert "Send again" not in answer.text
    label = "Continue in a copy" if why == "closed" else "Send in a new chat"
    begin = answer.text.index('id="notice"')
    # A button beside what was refused, and that of the composer.
    for part in (answer.text[begin:], answer.text[begin:].partition('class="ended-note"')[2])[: 1 + (why == "closed")]:
        shown = pressed(guest, part, label)
        assert "half a &lt;thought&gt;" in shown.text and str(shown.url) != url
        assert ("asked before" in shown.text[shown.text.index("<main ") :]) == (why == "closed")


def test_a_limit_offers_the_same_again_with_the_same_key(newcomer: Callable[..., httpx.Client]) -> None:
    client = newcomer()
    turn = chat(client, "one", model="fast")
    retry = f"/chat/{turn['id']}/retry"
    client.post(retry, json={}).raise_for_status()
    answer = client.post(retry, data={"model": "smart", "idempotency_key": "q" * 20}, headers=HTMX)
    assert answer.status_code == 429
    notice = answer.text[answer.text.index('id="notice"') :]
    assert f'action="{retry}"' in notice and 'value="qqqqqqqqqqqqqqqqqqqq"' in notice
    assert 'name="model" value="smart"' in notice and "Try again" in notice
    # It is heard without its buttons and its countdown.
    heard = answer.text[: answer.text.index('id="notice"')]
    assert "Try again" not in heard and "button" not in heard
    page = post(client, retry, f"/session/{turn['session_id']}", model="smart", idempotency_key="q" * 20)
    assert page.status_code == 429 and page.headers["retry-after"] and 'name="model" value="smart"' in page.text


def test_a_provider_that_is_down_names_the_models_that_are_not(newcomer: Callable[..., httpx.Client]) -> None:
    client = newcomer()
    sent = {"prompt": "to <nobody>", "model": "far"}
    found = client.post("/chat", json=sent, headers={"Accept": JSON})
    while found.status_code != 503:  # until the first look at the provider is over
        assert found.json()["error"]["code"] != "", found.text
        client.post(f"/session/{found.json()['session_id']}/delete", json={})
        found = client.post("/chat", json=sent, headers={"Accept": JSON})
    others = found.json()["alternatives"]
    assert others[0] == "fast" and set(others) >= {"fast", "smart"}
    assert not {"far", "hidden", "off", "old"} & set(others)
    page = post(client, "/chat", "/", **sent)
    assert page.status_code == 503 and is_page(page)
    assert 'id="new-chat"' in page.text and '<option value="far" selected>' in page.text
    assert "to &lt;nobody&gt;</textarea>" in page.text
    assert "Send with fast" in page.text and 'name="model" value="fast"' in page.text
    assert 'data-pick="fast"' in client.post("/chat", data=sent, headers=HTMX).text


def test_the_page_is_the_one_that_asks_and_nobody_elses(guest: httpx.Client, stranger: httpx.Client) -> None:
    url = f"/session/{chat(stranger, 'a secret of the stranger')['session_id']}"
    answer = post(guest, f"/session/{ABSENT}/rename", url, title="x")
    assert answer.status_code == 404 and "a secret" not in answer.text


def test_a_form_that_is_refused_where_no_page_can_be_shown_says_so_by_itself(server: Server) -> None:
    with server.guest(Accept=BROWSER) as client:
        answer = client.post("/nowhere/at/all", data={"prompt": "kept"}, headers={"Origin": server.url})
        assert answer.status_code in (404, 405) and is_page(answer)
