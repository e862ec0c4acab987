"""/admin/journal — every decision, and what was refused."""

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from litestar import Response, get

from services.oversight import Asked, Decision
from web.admin import Admin
from web.answer import download
from web.forms import ExportJournal, ListJournal, asks
from web.given import Given, Proof
from web.views import AdminDecisionView, AdminJournalView

LINES = "application/jsonl"


@get("/admin/journal", dependencies={"asked": asks(ListJournal)}, opt={"answers": AdminJournalView})
async def list_journal(asked: Given[ListJournal], admin: Given[Admin]) -> Response[Any]:
    """The journal, newest first."""
    found = await admin.oversight.journal(
        _wanted(asked), admin.db_session, actor=admin.actor, before=asked.cursor, limit=asked.limit
    )
    kinds = await admin.oversight.kinds(admin.db_session, actor=admin.actor)
    view = AdminJournalView([AdminDecisionView.whole(one) for one in found.decisions], found.next)
    return admin.page("admin/journal.html", view, query=asked, kinds=kinds)


@get("/admin/journal/export", dependencies={"asked": asks(ExportJournal)}, opt={"answers": None, "file": LINES})
async def export_journal(asked: Given[ExportJournal], admin: Given[Admin], proof: Proof) -> Response[Any]:
    """The same as a file, a line of JSON for each decision, to its end."""
    parts = await admin.oversight.whole_journal(_wanted(asked), admin.db_session, actor=admin.actor)

    async def lines() -> AsyncGenerator[bytes, None]:
        async for part in parts:
            (may,) = await admin.logins.still([(proof, admin.actor)], admin.db_session)
            if not may:
                return
            yield _lines(part)

    return download(lines(), LINES, "journal.jsonl")


def _wanted(asked: ExportJournal) -> Asked:
    return Asked(**{name: getattr(asked, name) for name in Asked.__struct_fields__})


def _lines(part: list[Decision]) -> bytes:
    return b"".join(msgspec.json.encode(AdminDecisionView.whole(one)) + b"\n" for one in part)
