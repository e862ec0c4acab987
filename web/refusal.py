"""A refusal where the person is: the page the form stood on, the text that was typed, and the next steps as buttons."""

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any
from urllib.parse import unquote
from uuid import UUID

import msgspec
from litestar import Request

from web.answer import page_named
from web.forms import KEY_FIELD

HTML = "text/html"
#: how a page begins to tell of a refusal; one without it has no place for that
NOTICE = '<div id="notice" class="notice refusal"'
#: other models that are offered, each as a button
OFFERED = 3
#: headers of a form that are not those of a page
OF_THE_FORM = ("content-", "transfer-encoding", "idempotency-key", "accept", "expect", "hx-")
#: refusals after which the same request may do
AGAIN = {
    "rate_limited",
    "concurrency_limited",
    "budget_exhausted",
    "too_many_streams",
    "storage_unavailable",
    "internal",
    "idempotency_key_reused",
}
#: as HX-Source tells of a form
SOURCE = re.compile(r"form#form-[^\s'\"\\\\<>&]{1,200}")
LIMITS = {"rate_limited", "concurrency_limited", "budget_exhausted"}


class Step(msgspec.Struct, frozen=True):
    """One thing to do about a refusal: a link, a form of its own, or a button of a form that is on the page."""

    label: str
    url: str = ""
    #: what a form of its own sends
    fields: dict[str, str] | None = None
    #: the key it sends; empty for a new one
    key: str = ""
    #: the id of the form it belongs to, which has the text, and the model that goes along
    form: str = ""
    model: str = ""
    #: a link in another tab, so that what was typed stays in this one
    aside: bool = False


class Refused(msgspec.Struct, frozen=True):
    """What was refused, for templates."""

    problem: dict[str, Any]
    #: where the form was sent
    action: str
    #: what was typed, no passwords
    typed: dict[str, str]
    signed_out: bool
    #: the session in which it was asked, where the actor may know of it
    session_id: UUID | str | None
    #: the id of the form that was sent, where its page says what is wrong with it; empty elsewhere
    place: str = ""

    @property
    def code(self) -> str:
        return str(self.problem["code"])

    @property
    def text(self) -> str:
        """The name of the field that holds what somebody wrote; empty where nothing was written."""
        return "prompt" if "prompt" in self.typed and "parent_id" not in self.typed else ""

    @property
    def key(self) -> str:
        """The key to send again, so that what did arrive is not done twice; empty where the key is the trouble."""
        return "" if self.code == "idempotency_key_reused" else self.typed.get(KEY_FIELD, "")

    @property
    def fields(self) -> dict[str, str]:
        """What was sent, without its key."""
        return {name: value for name, value in self.typed.items() if name != KEY_FIELD}

    @property
    def resend(self) -> Step:
        """What is done with the text where the form it stood in is not on the page: what was asked, or what can be."""
        session = f"/session/{self.session_id}"
        fields = {name: value for name, value in self.fields.items() if name != self.text}
        if self.code == "session_not_found":
            fields.pop("session_id", None)
            return Step("Send in a new chat", "/chat", fields)
        if self.problem.get("can_fork") and not self.problem.get("can_reopen"):
            return Step("Continue in a copy", f"{session}/fork", {})
        return Step("Send again", self.action, fields, self.key)

    def given(self, action: str, field: str, default: str) -> str:
        """What was typed into a field of the form that was refused; `default` in every other form."""
        if action != self.action:
            return default
        return self.key or default if field == KEY_FIELD else self.typed.get(field, default)

    def sent(self, action: str, fields: Mapping[str, object]) -> dict[str, str]:
        """What was typed, where this form was sent with these fields; else nothing."""
        mine = action == self.action and all(self.typed.get(name) == str(value) for name, value in fields.items())
        return self.typed if mine else {}

    @property
    def steps(self) -> list[Step]:
        """What one can do next, the likeliest first."""
        return list(self._steps())

    def _steps(self) -> Iterator[Step]:
        problem, code = self.problem, self.code
        session = f"/session/{self.session_id}" if self.session_id else ""
        if self.signed_out:
            yield Step("Sign in", "/login", aside=True)
        if session and problem.get("can_reopen"):
            yield Step("Reopen", f"{session}/reopen", {})
        if session and problem.get("can_fork"):
            yield Step("Continue in a copy", f"{session}/fork", {"prompt": self.typed["prompt"]} if self.text else {})
        if code == "session_busy":
            yield Step("Stop the reply", f"/chat/{problem['running_turn']}/stop", {})
        yield from self._other_models(session)
        if code in AGAIN and not self.text and self.action:
            yield Step("Try again", self.action, self.fields, self.key)
        if code in LIMITS:
            yield Step("See your limits", "/limits")
        if code in ("session_quota", "session_not_found") and not self.signed_out:
            yield Step("Your chats", "/session")
        if code == "version_conflict" and session:
            yield Step("Show it as it is now", session)
        if code in ("model_locked", "forbidden") and session:
            yield Step("Open session history", f"{session}/journal")

    def _other_models(self, session: str) -> Iterator[Step]:
        """The same with a model that can be used."""
        code, asked = self.code, "model" in self.typed
        models = [str(model) for model in self.problem.get("alternatives", ())][:OFFERED]
        if (replacement := self.problem.get("replacement")) and asked:
            models = [str(replacement)]
        if code == "model_locked" and asked and not self.text and self.action.endswith("/retry"):
            fields = {name: value for name, value in self.fields.items() if name != "model"}
            yield Step("Retry without switching", self.action, fields, self.key)
        for model in models:
            if self.action == "/chat" and "session_id" in self.typed:
                yield Step(
                    f"Switch to {model}", "/models/switch", {"session_id": self.fields["session_id"], "model": model}
                )
            elif self.action == "/chat":
                yield Step(f"Send with {model}", self.action, self.fields, self.key, form="new-chat", model=model)
            elif self.text:
                turn = self.action.removeprefix("/chat/").removesuffix("/edit")
                yield Step(f"Send with {model}", form=f"turn-{turn}-edit-form", model=model)
            else:
                verb = "Retry with" if self.action.endswith("/retry") else "Use"
                yield Step(f"{verb} {model}", self.action, {**self.fields, "model": model})


def form_of(request: Request) -> str:
    """The id of the form that htmx sent, where it has a place for what is wrong with it: `form-…`; else nothing."""
    source = unquote(request.headers.get("hx-source", ""))
    return source.removeprefix("form#") if SOURCE.fullmatch(source) else ""


async def page_of(request: Request, refused: Refused) -> str | None:
    """The page that a refused form stood on, with the refusal in it; None where no such page can be shown.

    That is the page the browser names as the one it came from, else the nearest one at the form's URL or above it.
    """
    async for where in _places(request, refused):
        if NOTICE in (page := await asked_again(request, where, refused=refused) or ""):
            return page
    return None


async def _places(request: Request, refused: Refused) -> AsyncIterator[str]:
    if came_from := page_named(request, "referer"):
        yield came_from
    path = request.url.path
    # A form may stand on a page of the same URL; one that only takes what is sent shows none.
    yield path
    if refused.session_id:
        yield f"/session/{refused.session_id}"
    elif path.startswith("/chat/"):
        turn = path.split("/")[2]
        if (found := await asked_again(request, f"/chat/{turn}", accept="application/json")) is not None:
            yield f"/session/{msgspec.json.decode(found)['session_id']}"
    yield path
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        yield path


class _NoPage(Exception):
    """There is nothing at a place, or something else than was asked for."""


async def asked_again(request: Request, where: str, *, accept: str = HTML, **given: Any) -> str | None:
    """What a GET of `where` answers the one who sent the form; its templates know what is `given`. None for no page."""
    path, _, query = where.partition("?")
    headers = [
        pair for pair in request.scope["headers"] if not pair[0].decode("latin-1").lower().startswith(OF_THE_FORM)
    ]
    state: dict[str, Any] = {"request_id": request.state.get("request_id", ""), **given}
    scope: dict[str, Any] = {
        "type": "http",
        "http_version": request.scope["http_version"],
        "scheme": request.scope["scheme"],
        "server": request.scope["server"],
        "client": request.scope["client"],
        "asgi": request.scope.get("asgi", {"version": "3.0"}),
        "app": request.app,
        "litestar_app": request.app,
        "root_path": request.scope.get("root_path", ""),
        "method": "GET",
        "path": unquote(path),
        "raw_path": path.encode("latin-1", "replace"),
        "query_string": query.encode("latin-1", "replace"),
        "headers": [*headers, (b"accept", accept.encode())],
        "state": state,
    }
    body: list[bytes] = []

    async def send(message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            if message["status"] != 200 or not kind.startswith(accept.encode()):
                raise _NoPage
        body.append(message.get("body", b""))

    async def receive() -> Mapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    try:
        await request.app.state.pages(scope, receive, send)
    # What is raised while an answer is sent comes back as Litestar's own.
    except Exception:
        return None
    return b"".join(body).decode()
