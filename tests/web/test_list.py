"""The list of sessions over HTTP: searched, arranged, deleted with a way back, small however much there is."""

import re
from uuid import UUID

import httpx
import pytest

from tests.web.running import Server
from tests.web.wire import BROWSER, HTMX, JSON, chat, create, problem

FORM = {"Accept": BROWSER}


def found(client: httpx.Client, **query: str) -> list[dict[str, object]]:
    return client.get("/session", params=query).raise_for_status().json()["sessions"]


def test_what_was_said_is_found_with_its_place(guest: httpx.Client) -> None:
    turn = chat(guest, "Where is <Carthage> & co?")
    chat(guest, "Something else")
    (one,) = found(guest, q="carthage")
    assert (one["id"], one["found"]) == (
        turn["session_id"],
        {"turn_id": turn["id"], "text": "Where is <Carthage> & co?", "marks": [[10, 18]]},
    )
    page = guest.get("/session?q=carthage", headers={"Accept": BROWSER}).text
    assert "Where is &lt;<mark>Carthage</mark>&gt; &amp; co?" in page
    link = re.search(r'href="(/session/[^"]+\?turn=[^"]+)"', page)
    assert link and link[1] == f"/session/{turn['session_id']}?turn={turn['id']}#turn-{turn['id']}"
    assert found(guest, q="nowhere to be found") == []
    assert all(one["found"] is None for one in found(guest))


def test_a_search_goes_on_where_a_page_ended_and_nowhere_else(guest: httpx.Client, visitor: httpx.Client) -> None:
    turns = [chat(guest, f"/text sundial {number}") for number in range(3)]
    seen, asked = [], {"q": "sundial", "limit": 2}
    while True:
        found = guest.get("/session", params=asked).json()
        seen += [one["found"]["turn_id"] for one in found["sessions"]]
        if found["next_cursor"] is None:
            break
        asked["cursor"] = found["next_cursor"]
        assert UUID(asked["cursor"].removeprefix("0-")) == UUID(turns[1]["id"])
    assert seen == [turn["id"] for turn in turns[::-1]]
    problem(visitor.get("/session", params=asked, headers={"Accept": JSON}), 400, "invalid_request")


def test_punctuation_alone_is_told_to_be_no_word(guest: httpx.Client) -> None:
    chat(guest, "a === b -> c ?? d 5 €")
    for q, told in (("===", True), ("-> ??", True), ("€", False), ("nowhere", False)):
        page = guest.get("/session", params={"q": q}, headers={"Accept": BROWSER}).text
        assert ("not for punctuation alone" in page) == told, q


def test_a_turn_that_was_found_is_shown_wherever_it_stands(guest: httpx.Client) -> None:
    first = chat(guest, "The very first")
    other = guest.post(f"/chat/{first['id']}/edit", json={"prompt": "Rather this"}).json()
    url = f"/session/{first['session_id']}"
    for turn, composer in ((other, True), (first, False)):
        page = guest.get(f"{url}?turn={turn['id']}", headers={"Accept": BROWSER}).text
        assert f'id="turn-{turn["id"]}"' in page
        assert ("Back to the newest messages" not in page) == composer == ('class="composer' in page)
    elsewhere = chat(guest, "In another session")
    assert guest.get(f"{url}?turn={elsewhere['id']}", headers={"Accept": BROWSER}).status_code == 404


@pytest.mark.parametrize(
    "q", ["%00", "%ED%A0%80", "%22", "*", "a%20AND", "%F0%9F%A6%8A", "x" * 4000, "NEAR(", "%25", "%5C"]
)
def test_whatever_is_looked_for_is_answered(guest: httpx.Client, q: str) -> None:
    for accept in ("application/json", BROWSER):
        assert guest.get(f"/session?q={q}", headers={"Accept": accept}).status_code in (200, 400)


@pytest.mark.parametrize("zone", ["-900", "900", "x"])
def test_a_place_behind_every_day_there_is_is_the_end(guest: httpx.Client, zone: str) -> None:
    """The last second that there is, is in some time zones none any more."""
    guest.cookies.set("tz", zone)
    last = guest.get("/session", params={"cursor": f"253402300799000000-{UUID(int=0)}"}, headers=FORM)
    assert last.status_code == 200


def test_a_session_is_arranged_by_forms_and_by_htmx(guest: httpx.Client) -> None:
    session = create(guest, title="Kept")
    url = f"/session/{session['id']}"
    for verb, field, value in (
        ("pin", "pinned", True), ("pin", "pinned", True), ("unpin", "pinned", False), ("archive", "archived", True),
        ("unarchive", "archived", False),
    ):  # fmt: skip
        assert guest.post(f"{url}/{verb}", json={}).json()[field] is value
        plain = guest.post(f"{url}/{verb}", data={"back": "list"}, headers=FORM)
        assert (plain.status_code, plain.headers["location"]) == (303, "/session")
        plain = guest.post(f"{url}/{verb}", data={}, headers=FORM)
        assert (plain.status_code, plain.headers["location"]) == (303, url)
        row = guest.post(f"{url}/{verb}", data={"back": "list"}, headers=HTMX).text
        assert f'hx-target="#row-{session["id"]}"' in row and ("Undo" in row) == (verb == "archive")
    guest.post(f"{url}/delete", json={}).raise_for_status()
    assert guest.post(f"{url}/delete", json={}).status_code == 204
    assert [one["id"] for one in found(guest, show="deleted")] == [session["id"]]
    assert found(guest, show="deleted")[0]["deleted_at"] is not None
    row = guest.post(f"{url}/restore", data={"back": "list"}, headers=HTMX).text
    assert "Kept" in row
    row = guest.post(f"{url}/delete", data={"back": "list"}, headers=HTMX).text
    assert "Deleted" in row and "/restore" in row and "Kept" not in row
    row = guest.post(f"{url}/delete", data={"back": "list", "for_good": "true"}, headers=HTMX).text
    assert "Deleted for good" in row and "/restore" not in row
    problem(guest.post(f"{url}/restore", json={}), 404, "session_not_found")


def test_the_way_back_is_offered_to_its_owner_alone(guest: httpx.Client, server: Server) -> None:
    session = create(guest, title="Secret plans")
    guest.post(f"/session/{session['id']}/delete", json={}).raise_for_status()
    url = f"/session?deleted={session['id']}"
    assert "Secret plans" in guest.get(url, headers={"Accept": BROWSER}).text
    with server.guest(Accept=BROWSER) as other:
        assert "Secret plans" not in other.get(url).text


def test_the_first_page_of_very_many_long_ones_is_small(visitor: httpx.Client) -> None:
    for number in range(50):
        visitor.post("/session/create", json={"title": f"{number} {'long title ' * 10}"})
    page = visitor.get("/session", headers={"Accept-Encoding": "gzip"})
    assert len(page.content) > 60_000 > page.num_bytes_downloaded


def test_an_end_that_is_near_is_told_in_the_list_and_at_the_top(guest: httpx.Client) -> None:
    session = create(guest, title="Soon over")
    for url in ("/session", f"/session/{session['id']}"):
        assert re.search(r"\d+ minutes left", guest.get(url, headers={"Accept": BROWSER}).text), url
    page = guest.get(f"/session/{session['id']}", headers={"Accept": BROWSER}).text
    assert re.search(r"Read-only in \d+ minutes</span><button class=\"quiet\">Extend", page)
