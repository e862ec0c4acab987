"""Input structs, and what fills them: `reads()` from a form or JSON alike, `asks()` from the query."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import date
from typing import Annotated, Any, Literal, get_origin
from uuid import UUID
from weakref import WeakValueDictionary

import msgspec
from litestar import Request
from litestar.datastructures import FormMultiDict, UploadFile
from litestar.di import NamedDependency, Provide
from litestar.exceptions import ClientException

from services import stepwise
from services.actor import Actor
from services.errors import InvalidRequest
from services.text import storable, utf8, values_of
from web.bodies import check_values, too_many_fields


class CreateSession(msgspec.Struct, forbid_unknown_fields=True):
    model: str | None = None
    title: str = ""


class RenameSession(msgspec.Struct, forbid_unknown_fields=True):
    title: str


class OpenTranscript(msgspec.Struct, forbid_unknown_fields=True):
    #: shown to the owner
    reason: str


class CloseSession(msgspec.Struct, forbid_unknown_fields=True):
    #: needed where the session is somebody else's; its owner sees it
    reason: str = ""


class Arrange(msgspec.Struct, forbid_unknown_fields=True):
    #: where a page goes on: at the session, at the list, or at the desk of admins
    back: Literal["session", "list", "desk"] = "session"


class DeleteSession(Arrange):
    #: at once, and nobody can have it back
    for_good: bool = False
    #: needed where the session is somebody else's; its owner sees it
    reason: str = ""


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """A verb that needs no more than its URL."""


class SwitchModel(msgspec.Struct, forbid_unknown_fields=True):
    session_id: UUID
    #: an id or an alias
    model: str
    expected_version: int | None = None
    when: Literal["next_turn", "stop", "idle"] = "next_turn"
    reason: str = ""
    lock: bool | None = None


class Chat(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str
    session_id: UUID | None = None
    model: str | None = None
    #: the turn it follows; default: the last one
    parent_id: UUID | None = None
    expected_version: int | None = None


class KeepDraft(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str = ""
    #: sent along by the composer's form; the URL says which session it is
    session_id: UUID | None = None


class RetryTurn(msgspec.Struct, forbid_unknown_fields=True):
    model: str | None = None


class EditTurn(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str
    model: str | None = None


class ForkSession(msgspec.Struct, forbid_unknown_fields=True):
    #: the last turn that goes along; default: the last one
    turn_id: UUID | None = None
    #: the draft of the new session; default: that of a session that has ended
    prompt: str = ""


class SignIn(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    password: str
    next: str = "/"


class ReplacePassword(msgspec.Struct, forbid_unknown_fields=True):
    """A temporary password's place is taken by one's own."""

    #: what the refused sign-in has told
    ticket: str
    new: str
    next: str = "/"


class SetUp(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    password: str


class SiftSessions(msgspec.Struct):
    #: where the page before ended
    cursor: str = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=200)] = 50
    state: Literal["", "active", "expired", "closed"] = ""
    model: str = ""
    #: words to look for
    q: str = ""


class ListSessions(SiftSessions):
    #: default: what is in use, neither archived nor deleted; with `q` the archived too
    show: Literal["", "all", "pinned", "archived", "deleted"] = ""
    #: one that was just deleted, to offer the way back
    deleted: UUID | None = None


class ExportSession(msgspec.Struct):
    format: Literal["json", "md"] = "json"


class ExportSessions(msgspec.Struct):
    format: Literal["json", "md"] = "json"
    # Which ones, as in the list.
    state: Literal["", "active", "expired", "closed"] = ""
    model: str = ""
    q: str = ""
    show: Literal["all", "pinned", "archived"] = "all"


class ShowSession(msgspec.Struct):
    #: the last turn to show; default: the newest
    before: UUID | None = None
    #: a turn to show, wherever it stands
    turn: UUID | None = None


class ListTurns(msgspec.Struct):
    cursor: UUID | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=200)] = 50
    #: siblings too, oldest first
    all: bool = False
    #: a page to print: as many turns as one page holds, without controls
    print: bool = False


class FollowSession(msgspec.Struct):
    #: `<turn>:<offset>`, where there is no Last-Event-ID
    after: str = ""
    #: the version the reader has seen
    version: int | None = None


class ShowLogin(msgspec.Struct):
    #: where to go on to
    next: str = "/"


#: fields of forms that are not the verb's own: the hidden idempotency key
KEY_FIELD = "idempotency_key"
#: what no page ever gives back
SECRETS = frozenset(("password", "old", "new"))
#: what a form that asks for one gives back
BESIDE_SECRETS = ("name", "next", "ticket", "role", "group", "service", "reason", "account_id")
#: files that are decoded, and acted on, at a time
_FILES = asyncio.Semaphore(4)
#: of each actor one at a time
_FILES_OF: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()
#: how Litestar refuses a form of too many parts
TOO_MANY_PARTS = "Request Entity Too Large"
FORM_KINDS = ("application/x-www-form-urlencoded", "multipart/form-data")


def reads(form: type[msgspec.Struct]) -> Provide:
    """A dependency that fills `form` from the request's body. Raises InvalidRequest."""

    async def read(request: Request) -> Any:
        fields = await _fields(request, form)
        # Kept so that a refusal can give back what was typed; beside a password no more than who and where to.
        typed = {name: value for name, value in fields.items() if isinstance(value, str)}
        secret = not SECRETS.isdisjoint(field.name for field in msgspec.structs.fields(form))
        request.state.typed = {name: typed[name] for name in BESIDE_SECRETS if name in typed} if secret else typed
        key = fields.pop(KEY_FIELD, None)
        if not isinstance(key, str | None):
            raise InvalidRequest("An idempotency key is a text.", field=KEY_FIELD)
        request.state.key = request.headers.get("idempotency-key") or key or None
        return _converted(fields, form, strict=is_json(request))

    read.struct = form  # type: ignore[attr-defined]  # what web/openapi.py describes
    return Provide(read)


def acts(form: type[msgspec.Struct], view: type[msgspec.Struct] | None, status: int = 200) -> dict[str, Any]:
    """What a route needs that changes something: its form, its answer, and that a key makes it one effect."""
    return {
        "status_code": status,
        "dependencies": {"form": reads(form)},
        "opt": {"answers": view, "once": True},
    }


def takes(document: type[msgspec.Struct]) -> Provide:
    """A dependency that reads a file of `document`: as a JSON body, or in the field `file` of a form.

    Who asks is known before a large body is read. A place among the few that are worked on is taken once the body is
    there, and kept until the handler has answered, so nobody who sends slowly holds one. Raises InvalidRequest.
    """

    async def take(request: Request, actor: NamedDependency[Actor]) -> AsyncGenerator[Any, None]:
        file, typed = await _file(request)
        request.state.typed = {}
        request.state.key = request.headers.get("idempotency-key") or typed or None
        async with _FILES_OF.setdefault(actor.id, asyncio.Lock()), _FILES:
            try:
                read = await asyncio.to_thread(stepwise.decode, utf8(file), document)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise _malformed(error) from error
            del file
            yield read

    take.struct = document  # type: ignore[attr-defined]
    return Provide(take)


async def _file(request: Request) -> tuple[bytes, str]:
    """The bytes of a file that was sent, and the key of the form it came in."""
    if is_json(request):
        return await request.body(), ""
    if _kind(request) != "multipart/form-data":
        raise InvalidRequest("The body is neither JSON nor a form with a file.")
    try:
        form = await _form(request)
    except (UnicodeDecodeError, ValueError, LookupError) as error:  # the last one for a charset that nobody knows
        raise InvalidRequest("The body is neither JSON nor a form with a file.") from error
    file, key, names = form.get("file"), form.get(KEY_FIELD, ""), set(form.keys())
    if not isinstance(file, UploadFile) or not isinstance(key, str) or names - {"file", KEY_FIELD}:
        raise InvalidRequest("Choose a file.", field="file")
    if len(form) > len(names):
        raise InvalidRequest("Choose one file at a time.", field="file")
    return await file.read(), key


async def _form(request: Request) -> FormMultiDict:
    """A form of either kind. Raises BodyRefused where a multipart form has too many parts."""
    try:
        return await request.form()
    except ClientException as error:
        if error.detail == TOO_MANY_PARTS:
            raise too_many_fields() from error
        raise


def asks(query: type[msgspec.Struct]) -> Provide:
    """A dependency that fills `query` from the URL; fields it does not know are ignored.

    Raises InvalidRequest, also for text that no database can be asked for: a stream would find out in its midst.
    """

    def read(request: Request) -> Any:
        fields = {name: value for name, value in request.query_params.items() if value != ""}
        for name, value in fields.items():
            if name in query.__struct_encode_fields__:
                try:
                    storable(value)
                except InvalidRequest as refusal:
                    raise InvalidRequest(str(refusal), field=name) from refusal
        return _converted(fields, query, strict=False)

    read.struct = query  # type: ignore[attr-defined]
    return Provide(read, sync_to_thread=False)


def _converted(fields: dict[str, Any], struct: type[msgspec.Struct], *, strict: bool) -> Any:
    try:
        return msgspec.convert(fields, struct, strict=strict)
    except msgspec.ValidationError as error:
        raise _malformed(error, struct) from error


def _malformed(error: Exception, struct: type[msgspec.Struct] | None = None) -> InvalidRequest:
    """What is wrong with a body, and where; of a field that is one of few values, which they are."""
    what, _, where = str(error).partition(" - at `$.")
    field = where.rstrip("`") or None
    if what.startswith("Invalid enum value") and struct is not None:
        what = f"Possible are {', '.join(values_of(struct, field or ''))}"
    return InvalidRequest(f"{what}.", field=field)


def is_json(request: Request) -> bool:
    """Whether the body is JSON."""
    return _kind(request) == "application/json"


def _kind(request: Request) -> str:
    """The body's media type, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _fields(request: Request, struct: type[msgspec.Struct]) -> dict[str, Any]:
    body = await request.body()
    if body and not is_json(request) and _kind(request) not in FORM_KINDS:
        raise InvalidRequest("The body is neither JSON nor a form.")
    try:
        body = utf8(body) if is_json(request) else body
    except ValueError as error:
        raise _malformed(error) from error
    try:
        if is_json(request):
            check_values(body)
            fields = msgspec.json.decode(body or b"{}")
            if not isinstance(fields, dict):
                raise InvalidRequest("The body is a JSON object.")
            return fields
        form = await _form(request)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, LookupError) as error:
        raise InvalidRequest("The body is neither JSON nor a form.") from error
    given, known = list(form.multi_items()), msgspec.structs.fields(struct)
    # What is ticked comes once for each.
    many: dict[str, Any] = {field.encode_name: [] for field in known if get_origin(field.type) is list}
    for name, value in given:
        if name in many:
            many[name].append(value)
    given = [(name, value) for name, value in given if name not in many]
    if len(given) != len(dict(given)) or any(not isinstance(value, str) for _, value in given):
        raise InvalidRequest("A field of the form is given twice, or is a file.")
    # An empty field that is not a text was not filled in.
    unfilled = {field.encode_name for field in known if field.type is not str} | {KEY_FIELD}
    # Where leaving out and taking away are two things, an empty field takes away.
    cleared = {field.encode_name for field in known if field.default is msgspec.UNSET}
    return many | {
        name: None if value == "" and name in cleared else value
        for name, value in given
        if value != "" or name not in unfilled or name in cleared
    }


# ---------------------------------------------------------------- what admins decide


class ChangeModel(msgspec.Struct, forbid_unknown_fields=True):
    """What is left out stays; null, or an empty field of a form, takes away."""

    model: str
    state: Literal["active", "deprecated", "retired", "disabled"] | None = None
    state_reason: str | msgspec.UnsetType | None = msgspec.UNSET
    replacement: str | msgspec.UnsetType | None = msgspec.UNSET
    #: a list, or words parted by commas or spaces; null for everybody
    groups: list[str] | str | msgspec.UnsetType | None = msgspec.UNSET
    concurrent_turns: int | None = None
    #: for the journal
    reason: str = ""


class TestModel(msgspec.Struct, forbid_unknown_fields=True):
    model: str


class RestoreModel(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    reason: str = ""


class ChangeGroup(msgspec.Struct, forbid_unknown_fields=True):
    #: a new name makes a group; `*` is the server
    group: str
    default_model: str | msgspec.UnsetType | None = msgspec.UNSET
    on_missing_model: Literal["fallback", "block"] | None = None
    reason: str = ""


class RestoreGroup(msgspec.Struct, forbid_unknown_fields=True):
    group: str
    reason: str = ""


class ChangeLimit(msgspec.Struct, forbid_unknown_fields=True):
    group: str
    limit: str
    #: written as in the configuration; null gives the limit back to that
    value: str | None = None
    reason: str = ""


class PreviewMove(msgspec.Struct, rename={"from_model": "from", "to_model": "to"}):
    from_model: str = ""
    to_model: str = ""


class OrderMove(msgspec.Struct, forbid_unknown_fields=True, rename={"from_model": "from", "to_model": "to"}):
    from_model: str
    to_model: str
    #: shown to the owner of each session
    reason: str


class StopMove(msgspec.Struct, forbid_unknown_fields=True):
    move_id: UUID
    #: needed where another admin ordered the move, who sees it
    reason: str = ""


# ---------------------------------------------------------------- accounts


class ChangePassword(msgspec.Struct, forbid_unknown_fields=True):
    old: str
    new: str


class RevokeLogins(msgspec.Struct, forbid_unknown_fields=True):
    #: none for all of the account's but the one that asks
    login_id: UUID | None = None
    #: an admin's choice; default: one's own
    account_id: UUID | None = None
    #: needed where they are somebody else's, who sees it
    reason: str = ""


class CreateToken(msgspec.Struct, forbid_unknown_fields=True):
    #: what it is for
    name: str
    scope: Literal["read", "chat", "admin"] = "chat"
    #: the day at whose beginning (UTC) it ends; default: never
    expires_on: date | None = None
    #: an admin's choice; default: one's own
    account: str | None = None
    #: why, where it is for somebody else; the owner sees it
    reason: str = ""


class ListActivity(msgspec.Struct):
    #: where the page before ended
    cursor: UUID | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=200)] = 50


class RevokeToken(msgspec.Struct, forbid_unknown_fields=True):
    token_id: UUID
    #: needed where it is somebody else's, who sees it
    reason: str = ""


class ListAccounts(msgspec.Struct):
    #: where the page before ended
    cursor: str = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=200)] = 50
    #: part of the name
    q: str = ""


class CreateAccount(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    #: its owner replaces it at the first sign-in; a service account has none
    password: str = ""
    #: for programs alone
    service: bool = False
    role: Literal["user", "admin"] = "user"
    #: default: that of the role
    group: str = ""


class ChangeAccount(msgspec.Struct, forbid_unknown_fields=True):
    """What is left out stays."""

    account_id: UUID
    role: Literal["user", "admin"] | None = None
    group: str | None = None
    disabled: bool | None = None
    #: for the journal; needed to disable somebody else
    reason: str = ""


class SetPassword(msgspec.Struct, forbid_unknown_fields=True):
    account_id: UUID
    password: str
    #: for the journal
    reason: str = ""


# ---------------------------------------------------------------- what admins look through


class ExportJournal(msgspec.Struct):
    #: a name: what this account did, and what concerns it
    account: str = ""
    session_id: UUID | None = None
    what: str = ""
    outcome: Literal["", "done", "refused"] = ""
    #: days, both counted
    since: date | None = None
    until: date | None = None


class ListJournal(ExportJournal):
    #: where the page before ended
    cursor: UUID | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=200)] = 50


class ShowUsage(msgspec.Struct):
    by: Literal["day", "model", "group", "account"] = "day"
    #: how many, up to `last`
    days: Annotated[int, msgspec.Meta(ge=1, le=400)] = 30
    #: default: today
    last: date | None = None
    account: str = ""
    group: str = ""
    model: str = ""
    #: what the rows are sorted by, and what the chart of the page shows
    measure: Literal["tokens", "turns", "cost"] = "tokens"


class ShowDesk(SiftSessions):
    #: a name
    owner: str = ""
    group: str = ""
    #: only those in which a reply is being written
    running: bool = False
    sort: Literal["activity", "age", "cost", "turns"] = "activity"


class Act(msgspec.Struct, forbid_unknown_fields=True):
    session_ids: list[UUID]
    deed: Literal["switch", "lock", "unlock", "stop", "extend", "close"]
    #: for a switch
    model: str = ""
    #: shown to the owner of each
    reason: str = ""
