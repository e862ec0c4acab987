"""/admin/usage — what was used, by day, model, group and account."""

import csv
import io
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from litestar import Response, get

from web.admin import Admin
from web.answer import download
from web.forms import ShowUsage, asks
from web.given import Given
from web.views import UsageView

CSV = "text/csv"


@get("/admin/usage", dependencies={"asked": asks(ShowUsage)}, opt={"answers": UsageView})
async def show_usage(asked: Given[ShowUsage], admin: Given[Admin]) -> Response[Any]:
    """What was used in the last days, as a chart with its table."""
    groups = await admin.governance.groups(admin.db_session, actor=admin.actor)
    models = await admin.sessions.models(admin.db_session, actor=admin.actor)
    return admin.page(
        "admin/usage.html",
        await _view(asked, admin),
        query=asked,
        groups=[group.name for group in groups if group.name != "*"],
        models=[entry.id for entry in models],
    )


@get("/admin/usage/export", dependencies={"asked": asks(ShowUsage)}, opt={"answers": None, "file": CSV})
async def export_usage(asked: Given[ShowUsage], admin: Given[Admin]) -> Response[Any]:
    """The same as a file for a spreadsheet."""
    view, table = await _view(asked, admin), io.StringIO()
    writer = csv.writer(table)
    writer.writerow([asked.by, "turns", "tokens", "cost"])
    for row in view.rows:
        writer.writerow([_plain(row.name), row.turns, row.tokens, f"{row.cost:.9f}"])

    async def whole() -> AsyncGenerator[bytes, None]:
        yield table.getvalue().encode()

    return download(whole(), CSV, f"usage-by-{asked.by}.csv")


async def _view(asked: ShowUsage, admin: Admin) -> UsageView:
    query = msgspec.structs.asdict(asked)
    return UsageView.of(await admin.oversight.usage(query.pop("by"), admin.db_session, actor=admin.actor, **query))


def _plain(text: str) -> str:
    """A text that no spreadsheet takes for a formula (CWE-1236)."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
