"""Export and import: nothing is lost on the way, nothing foreign goes along, and no file breaks anything."""

import json
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from db.db_session import DbSession, Piece
from services.actor import Actor
from services.brought import Brought
from services.clients import Usage
from services.errors import NotFound, RateLimited, Refusal
from services.markdown_file import plain, quoted
from services.session_service import SessionService
from services.transfer import PAGE_TURNS, Document, Taken, Transfer
from tests.conftest import AtOnce, Clock, Configure, Everything, Refused

NASTY = [
    "plain",
    "two\nlines\r\nthree\rfour\n",
    "\n\n  leading and trailing \n\n",
    "# a heading\n## You · now\n> a quote\n```\nnever closed",
    "\ufeffbom \u2028 \u2029 \x85 \x0b \x0c \x1b[31m \u202e rtl \u0301",
    "=cmd|' /C calc'!A0\n@SUM(1)\n+1\n-1\t=",
    '"quotes", \\back\\slashes\\, </script><img src=x onerror=alert(1)>, {{ 7*7 }}',
    "🦊👩‍👩‍👧‍👦 日本語 ŝ \U0010ffff \ue000",
    "x" * 5000,
]


@pytest.fixture
def transfer(sessions: SessionService) -> Transfer:
    return Transfer(sessions)


async def whole(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def exported(transfer: Transfer, ids: list[UUID], db_session: DbSession, actor: Actor) -> Document:
    return msgspec.json.decode(await whole(transfer.as_json(ids, db_session, actor=actor)), type=Document)


async def taken(
    transfer: Transfer, document: Document, db_session: DbSession, actor: Actor, key: str = ""
) -> list[Taken]:
    return [step async for step in transfer.take(document, db_session, actor=actor, key=key or None)]


def essence(document: Document) -> list[dict[str, Any]]:
    """What must come back: everything but ids, and what holds only where it was made."""
    found = []
    for session in document.sessions:
        places = {turn.id: place for place, turn in enumerate(session.turns)}
        facts = msgspec.to_builtins(session)
        for name in ("id", "origin", "state", "created_at", "last_activity_at"):
            del facts[name]
        facts["head_id"] = places.get(session.head_id)  # type: ignore[arg-type]
        for turn, record in zip(facts["turns"], session.turns, strict=True):
            turn["parent_id"] = places.get(record.parent_id)  # type: ignore[arg-type]
            turn["copied_from"] = str(record.copied_from or record.id)
            del turn["id"]
        found.append(facts)
    return found


async def a_conversation(sessions: SessionService, db_session: DbSession, actor: Actor, clock: Clock) -> UUID:
    """A session with instructions, branches, and a turn of every ended state."""
    begun = await sessions.begin_turn(
        None, NASTY[0], db_session, actor=actor, model="smart", brought=Brought.told(NASTY[1], [("told", "before")])
    )
    id, turn = begun.turn.session_id, begun.turn
    states = ("done", "failed", "stopped", "interrupted")
    for place, text in enumerate(NASTY):
        clock.pass_(seconds=1.000001)
        state = states[place % 4]
        await sessions.finish_turn(
            turn.id,
            db_session,
            state=state,  # type: ignore[arg-type]
            tail=text,
            usage=Usage(place, 7 * place) if place % 2 else None,
            error=("provider_failed", "It broke.") if state == "failed" else None,
        )
        clock.pass_(days=1)
        if place % 3 == 2:
            turn = (await sessions.retry_turn(turn.id, db_session, actor=actor, model="fast")).turn
        else:
            turn = (await sessions.begin_turn(id, text, db_session, actor=actor)).turn
    await sessions.finish_turn(turn.id, db_session, state="done", tail="the end")
    await sessions.rename_session(id, "A title: *stars* & <b>", db_session, actor=actor)
    return id


# ---------------------------------------------------------------- there and back


async def test_30_what_was_exported_comes_back_to_the_byte(
    sessions: SessionService, transfer: Transfer, db_session: DbSession, ann: Actor, bob: Actor, clock: Clock
) -> None:
    id = await a_conversation(sessions, db_session, ann, clock)
    before = await exported(transfer, [id], db_session, ann)
    clock.pass_(days=3)
    (step,) = await taken(transfer, before, db_session, bob)
    assert step.session is not None and step.refusal is None
    after = await exported(transfer, [step.session.row.id], db_session, bob)
    assert essence(after) == essence(before)
    (session,) = after.sessions
    assert [turn.reply for turn in session.turns[1 : len(NASTY) + 1]] == NASTY
    assert {turn.state for turn in session.turns} == {"done", "failed", "stopped", "interrupted"}
    assert len({turn.parent_id for turn in session.turns}) < len(session.turns)
    assert session.id != id and {turn.id for turn in session.turns}.isdisjoint(
        turn.id for turn in before.sessions[0].turns
    )
    assert step.session.row.owner_id == bob.id
    # And once more, from what came in.
    (again,) = await taken(transfer, after, db_session, ann)
    assert again.session is not None
    assert essence(await exported(transfer, [again.session.row.id], db_session, ann)) == essence(before)


async def test_an_imported_session_goes_on(
    sessions: SessionService, transfer: Transfer, db_session: DbSession, ann: Actor, clock: Clock
) -> None:
    id = await a_conversation(sessions, db_session, ann, clock)
    (step,) = await taken(transfer, await exported(transfer, [id], db_session, ann), db_session, ann)
    assert step.session is not None
    begun = await sessions.begin_turn(step.session.row.id, "and on", db_session, actor=ann)
    assert begun.turn.parent_id == step.session.row.head_id
    ended = await sessions.finish_turn(begun.turn.id, db_session, state="done", tail="it goes")
    assert (ended.copied_from, ended.depth) == (None, begun.turn.depth)


async def test_a_reply_that_is_being_written_goes_along_as_far_as_it_is(
    sessions: SessionService, transfer: Transfer, db_session: DbSession, ann: Actor
) -> None:
    begun = await sessions.begin_turn(None, "one", db_session, actor=ann)
    id = begun.turn.session_id
    await sessions.append([Piece(id, begun.turn.id, 0, "so far")], db_session)
    document = await exported(transfer, [id], db_session, ann)
    (turn,) = document.sessions[0].turns
    assert (turn.state, turn.reply, turn.ended_at) == ("running", "so far", None)
    (step,) = await taken(transfer, document, db_session, ann)
    assert step.session is not None and step.session.running_turn is None
    (turn,) = (await exported(transfer, [step.session.row.id], db_session, ann)).sessions[0].turns
    assert (turn.state, turn.reply, turn.error_code) == ("interrupted", "so far", "interrupted")
    assert turn.ended_at is not None


async def test_a_reply_that_ends_while_it_is_exported_is_whole(
    sessions: SessionService, transfer: Transfer, db_session: DbSession, ann: Actor
) -> None:
    begun = await sessions.begin_turn(None, "one", db_session, actor=ann)
    id, turn_id = begun.turn.session_id, begun.turn.id
    await sessions.append([Piece(id, turn_id, 0, "so far")], db_session)

    class Late(DbSession):
        """Between the row and its text, the turn ends."""

        async def text_of(self, turn_id: UUID) -> str:
            await sessions.finish_turn(turn_id, db_session, state="done", tail=" and to the end")
            return await super().text_of(turn_id)

    (session,) = (await exported(transfer, [id], Late(db_session.engine), ann)).sessions
    assert [(turn.state, turn.reply) for turn in session.turns] == [("done", "so far and to the end")]


async def test_a_long_session_comes_in_pieces_and_whole(
    sessions: SessionService, transfer: Transfer, db_session: DbSession, ann: Actor
) -> None:
    count = 2 * PAGE_TURNS + 3
    told = Brought.told("", [(f"prompt {place}", f"reply {place}") for place in range(count)])
    live = await sessions.import_session(told, db_session, actor=ann)
    pieces = [piece async for piece in transfer.as_json([live.row.id], db_session, actor=ann)]
    assert max(map(len, pieces)) < len(b"".join(pieces)) / 2
    document = msgspec.json.decode(b"".join(pieces), type=Document)
    assert [turn.prompt for turn in document.sessions[0].turns] == [f"prompt {place}" for place in range(count)]
    text = (await whole(transfer.as_markdown([live.row.id], db_session, actor=ann))).decode()
    assert re.findall(r"^> prompt (\d+)$", text, re.MULTILINE) == [str(place) for place in range(count)]


async def test_all_sessions_are_one_file_and_what_is_deleted_meanwhile_is_left_out(
    sessions: SessionService, transfer: Transfer, db_session: DbSession, ann: Actor, bob: Actor, clock: Clock
) -> None:
    ids = []
    for place in range(5):
        clock.pass_(minutes=1)
        ids.append((await sessions.create_session(db_session, actor=ann, title=f"number {place}")).row.id)
    await sessions.create_session(db_session, actor=bob)
    chosen = await transfer.choose(db_session, actor=ann)
    assert chosen == ids[::-1]
    assert await transfer.choose(db_session, actor=ann, q="number 3") == [ids[3]]
    pieces = transfer.as_json(chosen, db_session, actor=ann)
    text = await anext(pieces)
    await sessions.delete_session(ids[2], db_session, actor=ann)
    text += await whole(pieces)
    titles = [session.title for session in msgspec.json.decode(text, type=Document).sessions]
    assert titles == ["number 4", "number 3", "number 1", "number 0"]
    assert json.loads(await whole(transfer.as_json([], db_session, actor=ann)))["sessions"] == []


async def test_O1_nothing_foreign_goes_along_not_even_for_an_admin(
    sessions: SessionService, transfer: Transfer, db_session: DbSession, ann: Actor, bob: Actor, ada: Actor
) -> None:
    id = (await sessions.create_session(db_session, actor=ann)).row.id
    with pytest.raises(NotFound):
        await transfer.require(id, db_session, actor=bob)
    with pytest.raises(Refusal) as raised:
        await transfer.require(id, db_session, actor=ada)
    assert raised.value.code == "forbidden"
    for who in (bob, ada):
        assert await transfer.choose(db_session, actor=who) == []
    assert json.loads(await whole(transfer.as_json([id], db_session, actor=bob)))["sessions"] == []


async def test_I6_an_export_writes_nothing(
    sessions: SessionService,
    transfer: Transfer,
    db_session: DbSession,
    ann: Actor,
    clock: Clock,
    everything: Everything,
) -> None:
    id = await a_conversation(sessions, db_session, ann, clock)
    before = await everything()
    await whole(transfer.as_json(await transfer.choose(db_session, actor=ann), db_session, actor=ann))
    await whole(transfer.as_markdown([id], db_session, actor=ann))
    assert await everything() == before


async def test_E4_an_ended_session_can_be_exported(
    sessions: SessionService, transfer: Transfer, db_session: DbSession, ann: Actor, clock: Clock
) -> None:
    closed, over = [(await sessions.create_session(db_session, actor=ann)).row.id for _ in range(2)]
    await sessions.close_session(closed, db_session, actor=ann)
    clock.pass_(days=31)
    document = await exported(transfer, [closed, over], db_session, ann)
    assert [session.state for session in document.sessions] == ["closed", "expired"]
    steps = await taken(transfer, document, db_session, ann)
    assert [step.session.state for step in steps if step.session is not None] == ["active", "active"]


# ---------------------------------------------------------------- limits, twice, at once


async def test_a_limit_ends_an_import_which_goes_on_under_its_key(
    sessions: SessionService,
    transfer: Transfer,
    db_session: DbSession,
    ann: Actor,
    clock: Clock,
    configure: Configure,
    everything: Everything,
) -> None:
    ids = [(await sessions.create_session(db_session, actor=ann, title=str(place))).row.id for place in range(5)]
    document = await exported(transfer, ids, db_session, ann)
    clock.pass_(hours=1)
    await configure("user", sessions_created="2/min")
    steps = await taken(transfer, document, db_session, ann, "a key")
    assert [(step.done, step.of) for step in steps] == [(1, 5), (2, 5), (2, 5)]
    assert isinstance(steps[-1].refusal, RateLimited)
    before = await everything()
    with pytest.raises(RateLimited):
        await taken(transfer, document, db_session, ann)
    assert await everything() == before
    clock.pass_(seconds=steps[-1].refusal.retry_after_seconds)
    await configure("user", sessions_created="0")
    again = await taken(transfer, document, db_session, ann, "a key")
    assert [step.done for step in again] == [1, 2, 3, 4, 5]
    made = [step.session.row.id for step in again if step.session is not None]
    assert made[:2] == [step.session.row.id for step in steps if step.session is not None]
    assert len((await everything())["session"]) == 10
    await sessions.delete_session(made[0], db_session, actor=ann)
    assert [step.done for step in await taken(transfer, document, db_session, ann, "a key")] == [1, 2, 3, 4]


async def test_D1_the_same_file_at_once_under_one_key_comes_in_once(
    sessions: SessionService,
    transfer: Transfer,
    db_session: DbSession,
    ann: Actor,
    at_once: AtOnce,
    everything: Everything,
) -> None:
    id = (await sessions.begin_turn(None, "one", db_session, actor=ann)).turn.session_id
    document = await exported(transfer, [id, id], db_session, ann)
    together = await at_once(5, lambda _, db: taken(transfer, document, db, ann, "k"))
    assert not together.refusals
    rows = await everything()
    assert (len(rows["session"]), len(rows["turn"])) == (3, 3)


# ---------------------------------------------------------------- hostile files


def record(**changes: Any) -> dict[str, Any]:
    turn = {
        "id": str(uuid4()),
        "parent_id": None,
        "prompt": "p",
        "reply": "r",
        "model": "m",
        "state": "done",
        "error_code": None,
        "error_detail": None,
        "prompt_tokens": 0,
        "reply_tokens": 0,
        "estimated": False,
        "cost_nanos": 0,
        "context_left_out": 0,
        "created_at": "2026-05-04T12:00:00Z",
        "first_text_at": None,
        "ended_at": "2026-05-04T12:00:00Z",
        "copied_from": None,
    }
    return turn | changes


def document(*turns: dict[str, Any], **changes: Any) -> dict[str, Any]:
    session = {
        "id": str(uuid4()),
        "title": "t",
        "opening": "o",
        "instructions": "",
        "origin": "page",
        "state": "active",
        "last_model": None,
        "created_at": "2026-05-04T12:00:00Z",
        "last_activity_at": "2026-05-04T12:00:00Z",
        "head_id": None,
        "turns": list(turns),
    }
    return {
        "format": "turnkeeper-sessions/1",
        "exported_at": "2026-05-04T12:00:00Z",
        "sessions": [session | changes],
    }


ONE, TWO = str(uuid4()), str(uuid4())
#: what the form of the file refuses already
MISSHAPEN: list[Any] = [
    {}, [], None, document() | {"format": "turnkeeper-sessions/2"}, document() | {"more": 1}, document(more=1),
    document(record(more=1)), document(record(prompt=None)), document(record(reply=7)), document(record(id="x")),
    document(record(state="gone")), document(record(prompt_tokens=-1)), document(record(prompt_tokens=2**31)),
    document(record(cost_nanos=2**63)), document(record(cost_nanos=1e400)),
    document(record(created_at="2026-05-04T12:00:00")), document(record(created_at="yesterday")),
    document(record(model="x" * 201)), document(turns=None), document(title=None),
]  # fmt: skip
#: what it lets through and no row may hold
IMPOSSIBLE: list[Any] = [
    document(record(parent_id=ONE)),
    document(record(id=ONE, parent_id=ONE)),
    document(record(id=ONE, parent_id=TWO), record(id=TWO)),
    document(record(id=ONE), record(id=ONE)),
    document(head_id=ONE),
    document(record(), head_id=ONE),
    document(record(created_at="0001-01-01T00:00:00+23:59")),
    document(record(ended_at="9999-12-31T23:59:59-23:59")),
    document(record(prompt="\0")),
    document(record(reply="\0")),
    document(record(model="\0")),
    document(record(prompt="x" * 100_001)),
    document(title="x" * 121),
    document(title="\u2028"),
    document(instructions="\0"),
]


@pytest.mark.parametrize("file", MISSHAPEN, ids=lambda file: json.dumps(file)[-60:])
def test_a_file_of_another_form_is_none(file: Any) -> None:
    with pytest.raises(msgspec.MsgspecError):
        msgspec.json.decode(json.dumps(file), type=Document)


async def test_what_no_row_may_hold_is_refused_before_anything_is_made(
    transfer: Transfer, db_session: DbSession, ann: Actor, refused: Refused
) -> None:
    for file in IMPOSSIBLE:
        file["sessions"].insert(0, document(record())["sessions"][0])
        found = msgspec.json.decode(json.dumps(file), type=Document)
        async with refused("invalid_request"):
            await taken(transfer, found, db_session, ann)


async def test_what_is_odd_and_possible_comes_in(transfer: Transfer, db_session: DbSession, ann: Actor) -> None:
    odd = document(
        record(id=ONE, prompt="", reply="", model="", created_at="1970-01-01T00:00:00+14:00".replace("1970", "1971")),
        record(id=TWO, parent_id=ONE, state="running", ended_at=None, model="a *model*\nof lines"),
        record(parent_id=ONE, cost_nanos=2**62, prompt_tokens=2**31 - 1, created_at="8999-12-31T23:59:59.999999Z"),
        head_id=TWO,
        title="",
        opening="",
        last_model="no such",
        origin="import",
        state="closed",
    )
    (step,) = await taken(transfer, msgspec.json.decode(json.dumps(odd), type=Document), db_session, ann)
    assert step.session is not None
    found = await exported(transfer, [step.session.row.id], db_session, ann)
    assert [turn.cost_nanos for turn in found.sessions[0].turns] == [0, 0, 2**62]
    assert await whole(transfer.as_markdown([step.session.row.id], db_session, actor=ann))


async def test_lines_of_prompts_and_instructions_end_in_one_way_and_replies_stay(
    transfer: Transfer, db_session: DbSession, ann: Actor
) -> None:
    lines = "a\r\nb\rc\n"
    file = json.dumps(document(record(prompt=lines, reply=lines, reasoning=lines), instructions=lines))
    (step,) = await taken(transfer, msgspec.json.decode(file, type=Document), db_session, ann)
    assert step.session is not None
    found = (await exported(transfer, [step.session.row.id], db_session, ann)).sessions[0]
    assert (found.turns[0].prompt, found.instructions) == ("a\nb\nc\n", "a\nb\nc\n")
    assert (found.turns[0].reply, found.turns[0].reasoning) == (lines, lines)


# ---------------------------------------------------------------- Markdown


FEW = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@FEW
@given(st.text(st.sampled_from("a \n\r#>`-=*~\t|\u2028\x85"), max_size=40) | st.text())
def test_a_quote_holds_every_line_and_gives_the_text_back(text: str) -> None:
    quote = quoted(text)
    assert quote.endswith("\n")
    lines = re.split("(\r\n|\n|\r)", quote[:-1])
    assert all(line.startswith("> ") for line in lines[::2])
    assert "".join(line[2:] if place % 2 == 0 else line for place, line in enumerate(lines)) == text


@FEW
@given(st.text())
def test_plain_text_is_one_line_without_markup(text: str) -> None:
    line = plain(text)
    assert not re.search(r"(?<!\\)(?:\\\\)*[#*_<`\[&~|]", line.replace("\\\\", ""))
    assert len(line.splitlines()) <= 1


async def test_a_transcript_to_read_has_no_headings_but_ours(
    sessions: SessionService, transfer: Transfer, db_session: DbSession, ann: Actor, clock: Clock
) -> None:
    id = await a_conversation(sessions, db_session, ann, clock)
    text = (await whole(transfer.as_markdown([id, id], db_session, actor=ann))).decode()
    live = await sessions.get_session(id, db_session, actor=ann)
    lines = re.split("\r\n|\n|\r", text)
    path = await db_session.list_path(live.row.head_id, 1000)
    assert len([line for line in lines if re.match(r" {0,3}## ", line)]) == 2 * (1 + 2 * len(path))
    assert len([line for line in lines if re.match(r" {0,3}# ", line)]) == 2
    assert f"Left out: {live.row.turn_count - len(path)} on other branches." in lines
    assert "# A title\\: \\*stars\\* \\& \\<b\\>" in lines
    for turn in path:
        assert quoted(turn.prompt) in text and quoted(turn.reply or "") in text
    assert timedelta(0) <= clock() - live.row.created_at
