"""A large file is decoded in short steps, to the same, and with the same complaints."""

from typing import Any

import msgspec
import pytest

from services import stepwise
from services.stepwise import TOGETHER, decode
from services.transfer import Document, SessionRecord, TurnRecord

ID, AT = "0197f6a0-0000-7000-8000-000000000001", "2026-05-04T12:00:00Z"


def filled(struct: type[msgspec.Struct], **values: Any) -> dict[str, Any]:
    """An object with all required fields."""
    kinds = {"format": "turnkeeper-sessions/1", "origin": "page", "state": "active", "estimated": True}
    kinds |= dict.fromkeys(("exported_at", "created_at", "last_activity_at"), AT) | {"id": ID}
    numbers = dict.fromkeys(("prompt_tokens", "reply_tokens", "cost_nanos", "context_left_out"), 0)
    nothing = dict.fromkeys(
        ("parent_id", "head_id", "last_model", "error_code", "error_detail", "first_text_at", "ended_at", "copied_from")
    )
    known: dict[str, Any] = kinds | numbers | nothing
    return {
        field.name: known.get(field.name, "") for field in msgspec.structs.fields(struct) if field.required
    } | values


def turn(**values: Any) -> dict[str, Any]:
    return filled(TurnRecord, state="done", **values)


def document(*sessions: Any, **values: Any) -> bytes:
    return msgspec.json.encode(filled(Document, sessions=list(sessions), **values))


def session(*turns: Any, **values: Any) -> dict[str, Any]:
    return filled(SessionRecord, turns=list(turns), **values)


@pytest.mark.parametrize(
    "file",
    [
        document(),
        document(session(), session(turn(prompt='a, [b] {c} \\ " ü 🦊'))),
        document(session(*[turn(reasoning=str(number)) for number in range(2 * TOGETHER + 1)])),
    ],
)
def test_it_is_the_same_as_in_one_step(file: bytes) -> None:
    assert decode(file, Document) == msgspec.json.decode(file, type=Document)


WRONG = {
    "no object": b"[]",
    "no JSON": document(session(turn()))[:-3],
    "no UTF-8": document(session(turn(prompt="xyz"))).replace(b"xyz", b"\xff\xfe"),
    "an unknown field": document(x=1),
    "a missing field": b'{"format": "turnkeeper-sessions/1", "sessions": []}',
    "another format": document(format="x"),
    "no list": document().replace(b"[]", b"{}"),
    "no session": document(session(), 1),
    "no turns": document(session(), session() | {"turns": 1}),
    "no turn": document(session(turn(), [])),
    "a wrong turn behind many": document(session(*[turn()] * (TOGETHER + 3), turn(prompt=1))),
    "an unknown field of a turn": document(session(turn(zzz=1))),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_complains_of_the_same_at_the_same_place(name: str) -> None:
    told = []
    for attempt in (lambda: decode(WRONG[name], Document), lambda: msgspec.json.decode(WRONG[name], type=Document)):
        with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError, RecursionError)) as error:
            attempt()
        told.append((type(error.value), str(error.value)))
    exact = isinstance(told[0][0], type) and issubclass(told[0][0], msgspec.ValidationError)
    assert told[0] == told[1] if exact else told[0][0] == told[1][0]


def test_depth_is_refused() -> None:
    deep = document(session(turn(prompt="x"))).replace(b'"x"', b"[" * 5_000 + b"]" * 5_000)
    with pytest.raises((msgspec.MsgspecError, RecursionError)):
        decode(deep, Document)


def test_no_step_decodes_more_than_a_few_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step holds the interpreter, also in a thread of its own."""
    whole, largest = msgspec.json.decode, 0

    def seen(data: Any, *, type: Any) -> Any:
        nonlocal largest
        found = whole(data, type=type)
        if isinstance(found, list):
            largest = max(largest, len(found))
        return found

    monkeypatch.setattr(stepwise.msgspec.json, "decode", seen)
    assert len(decode(document(session(*[turn()] * 1_000)), Document).sessions[0].turns) == 1_000
    assert largest == TOGETHER
