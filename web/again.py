"""The answer to a verb of a page: the page it was asked from once more, with what changed said and marked."""

from typing import Any

import msgspec
from litestar import Request, Response

from web.answer import json, page_named, redirect, wants
from web.changed import SAID, Changed
from web.late import Late
from web.refusal import asked_again
from web.templating import render


def again(
    request: Request, view: msgspec.Struct, where: str, done: str, *, said: str = "", marks: tuple[str, ...] = (),
    status: int = 200,
) -> Response[Any]:  # fmt: skip
    """JSON to scripts; to htmx the page it shows, or `where`; to a plain form a redirect to the first mark on `where`.

    `done` is a word of SAID, and `said` tells more of it.
    """
    changed = Changed(said or SAID[done], marks)
    match wants(request):
        case "json" | "stream":
            return json(view, status)
        case "fragment":

            async def make() -> str:
                page = await asked_again(request, page_named(request, "hx-current-url") or where, changed=changed) or ""
                begin, end = page.find("<main "), page.find("</main>")
                main = page[begin : end + len("</main>")] if begin >= 0 else ""
                said = render("layout/again.html", changed=changed)
                # The page was rendered, and escaped, a moment ago.
                return f'{said}<hx-partial hx-target="#main" hx-swap="outerHTML">{main}</hx-partial>' if main else said

            return Late(make)
        case _:
            return redirect(f"{where}?done={done}{f'#{marks[0]}' if marks else ''}")
