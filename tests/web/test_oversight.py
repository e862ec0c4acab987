"""/admin/journal and /admin/usage: as pages, as JSON, and as files."""

import csv
import io
import json
from collections.abc import Iterator
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest

from tests.web.people import PASSWORD
from tests.web.running import Server
from tests.web.wire import BROWSER, chat, create, is_page, problem

FORM = {"Accept": BROWSER}
CANARY = "canary-2c77-in-a-prompt"


@pytest.fixture
def asked(governed: Server, tokens: dict[str, str]) -> Iterator[dict[str, str]]:
    """What ola has just done: a reply, and a refusal, which nobody else's tests may have told of in the same minute."""
    with governed.script(tokens["ola"]) as ola:
        session = create(ola, title="Plans")
        chat(ola, CANARY, session_id=session["id"])
        problem(ola.post("/models/switch", json={"session_id": session["id"], "model": "none"}), 422, "model_unknown")
        yield {"session_id": str(session["id"])}


def test_the_journal_is_a_page_json_and_lines(boss: httpx.Client, asked: dict[str, str]) -> None:
    found = boss.get("/admin/journal", params=asked).json()
    assert [row["what"] for row in found["journal"]] == [
        "refused", "turn_ended", "turn_begun", "model_chosen", "session_created",
    ]  # fmt: skip
    assert {row["owner"]["name"] for row in found["journal"] if row["owner"]} == {"ola"}
    page = boss.get("/admin/journal", params=asked, headers=FORM)
    assert is_page(page) and "Model chosen" not in page.text and "model chosen" in page.text
    file = boss.get("/admin/journal/export", params=asked)
    assert file.headers["content-disposition"] == 'attachment; filename="turnkeeper-journal.jsonl"'
    assert [json.loads(line) for line in file.text.splitlines()] == found["journal"]
    for answer in (page, file):
        assert CANARY not in answer.text and "Plans" not in answer.text and PASSWORD not in answer.text
    refused = boss.get("/admin/journal", params={**asked, "outcome": "refused"}).json()["journal"]
    assert [(row["what"], row["outcome"]) for row in refused] == [("refused", "model_unknown")]


def test_the_journal_goes_on_where_a_page_ended(boss: httpx.Client, asked: dict[str, str]) -> None:
    whole = boss.get("/admin/journal", params=asked).json()["journal"]
    seen, cursor = [], None
    while True:
        found = boss.get("/admin/journal", params={**asked, "limit": 2, "cursor": cursor or ""}).json()
        seen += found["journal"]
        if not (cursor := found["next_cursor"]):
            break
    assert seen == whole
    page = boss.get("/admin/journal", params={**asked, "limit": 2}, headers=FORM)
    assert f"session_id={asked['session_id']}" in page.text and "cursor=" in page.text


@pytest.mark.parametrize("path", ["/admin/journal", "/admin/journal/export", "/admin/usage", "/admin/usage/export"])
def test_it_is_for_admins_and_odd_questions_are_refused(bob: httpx.Client, boss: httpx.Client, path: str) -> None:
    problem(bob.get(path), 403, "forbidden")
    for query in (
        "account=nobody",
        "since=tomorrow",
        "days=0",
        "by=colour",
        "what=a%00b",
        "last=9999-12-31",
        "until=9999-12-31",
    ):
        answer = boss.get(f"{path}?{query}")
        assert answer.status_code in (200, 400), query


def test_usage_is_a_chart_with_its_table_json_and_a_file(boss: httpx.Client, asked: dict[str, str]) -> None:
    for by, name in (("account", "ola"), ("group", "user"), ("model", "fast")):
        found = boss.get("/admin/usage", params={"by": by}).json()
        used = next(row for row in found["rows"] if row["name"] == name)
        assert used["turns"] >= 1 and used["tokens"] > 0 and used["cost"] > 0
        file = boss.get("/admin/usage/export", params={"by": by})
        assert file.headers["content-type"].startswith("text/csv")
        rows = list(csv.DictReader(io.StringIO(file.text)))
        assert {(row[by], int(row["turns"]), int(row["tokens"])) for row in rows} == {
            (row["name"], row["turns"], row["tokens"]) for row in found["rows"]
        }
    for measure in ("tokens", "turns", "cost"):
        page = boss.get("/admin/usage", params={"measure": measure, "days": 7, "account": "ola"}, headers=FORM)
        assert is_page(page) and page.text.count('class="column"') >= 7
        assert "style=" not in page.text
    days = boss.get("/admin/usage", params={"days": 2}).json()["rows"]
    assert len(days) == 2 and sum(day["turns"] for day in days) >= 1


def test_a_name_that_is_a_formula_is_text_in_a_spreadsheet(boss: httpx.Client) -> None:
    name = f"=HYPERLINK({uuid4().hex[:6]})"
    made = boss.post("/admin/accounts", json={"name": name, "service": True})
    assert made.status_code == 201
    token = boss.post("/account/tokens", json={"name": "x", "account": name}).json()["token"]
    with httpx.Client(base_url=boss.base_url, headers={"Authorization": f"Bearer {token}"}) as script:
        chat(script, "hello")
    file = boss.get("/admin/usage/export", params={"by": "account"})
    names = [row["account"] for row in csv.DictReader(io.StringIO(file.text))]
    assert f"'{name}" in names and name not in names
    assert boss.get(f"/admin/usage?by=account&account={quote(name)}", headers=FORM).status_code == 200
