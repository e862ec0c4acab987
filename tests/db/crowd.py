"""Many rows at once, made by the database itself as copies of one row."""

from uuid import UUID

from piccolo.table import Table

from db.db_session import DbSession, Piece
from db.engine import Engine
from db.tables import (
    Account,
    AddressSession,
    AddressTurn,
    AddressUsage,
    ApiToken,
    Draft,
    Idempotency,
    Journal,
    Login,
    RateBucket,
    Said,
    Session,
    Turn,
    TurnCap,
    TurnPiece,
    Usage,
)
from db.words import mark_of
from services.actor import Actor
from services.session_service import SessionService


async def crowd(
    rows: int, session_id: UUID, sessions: SessionService, actor: Actor, engine: Engine, *, owners: int = 1
) -> None:
    """Add `rows` sessions, turns, pieces, journal rows, keys and rates; fifty sessions are open.

    The owners share the sessions, `actor` among them. Every other turn and journal row is in `session_id`.
    """
    db_session = DbSession(engine)
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=actor, key="crowd")).turn
    await sessions.finish_turn(turn.id, db_session, state="done")
    earlier = "STRFTIME('%Y-%m-%d %H:%M:%f', one.last_activity_at, '-' || n || ' seconds') || '+00:00'"
    id, other_owner = _id("n"), _id(f"1000000000 + n % {owners}")
    place, words = "one.no + n", f"replace(one.words, '{mark_of(actor.id)}', '_other')"
    if engine.engine_type == "postgres":
        place, words = "NEXTVAL(PG_GET_SERIAL_SEQUENCE('said', 'no'))", "one.words"
        id, other_owner = f"CAST({id} AS UUID)", f"CAST({other_owner} AS UUID)"
        earlier = "one.last_activity_at - n * INTERVAL '1 second'"
    mine = f"n % {owners} = 0"
    owner = f"CASE WHEN {mine} THEN one.owner_id ELSE {other_owner} END"
    inside = f"CASE WHEN n % 2 = 0 THEN one.session_id ELSE {id} END"
    number = "CAST(n AS TEXT)"
    await _copy(Account, f"one.id = '{actor.id}'", owners - 1, id=other_owner, name=f"'owner ' || {number}")
    await _copy(
        Session, f"one.id = '{session_id}'", rows,
        id=id, owner_id=owner, last_activity_at=earlier, head_id="NULL",
        state="CASE WHEN n <= 50 THEN 'active' ELSE 'closed' END",
    )  # fmt: skip
    await sessions.keep_draft(session_id, "half", db_session, actor=actor)
    await _copy(Draft, f"one.session_id = '{session_id}'", rows, session_id=id)
    await _copy(Turn, f"one.id = '{turn.id}'", rows, id=id, owner_id=owner, session_id=inside)
    await _copy(
        Said, f"one.turn_id = '{turn.id}'", rows,
        no=place, turn_id=id, owner_id=owner, session_id=inside,
        words=f"CASE WHEN {mine} THEN one.words ELSE {words} END",
    )  # fmt: skip
    begun = f"one.turn_id = '{turn.id}' AND one.what = 'turn_begun'"
    what = "CASE WHEN n % 3 = 0 THEN 'model_switched' WHEN n % 50 = 1 THEN 'model_chosen' ELSE one.what END"
    await _copy(Journal, begun, rows, id=id, owner_id=owner, session_id=inside, what=what, version="n")
    await db_session.add(AddressTurn(turn_id=turn.id, address="address 0"))
    await db_session.add(AddressSession(session_id=session_id, address="address 0"))
    await db_session.add(AddressUsage(address="address 0", day=turn.created_at.date(), tokens=1, cost_nanos=1))
    await _copy(AddressTurn, f"one.turn_id = '{turn.id}'", rows, turn_id=id, address=f"'address ' || {number}")
    await _copy(
        AddressSession, f"one.session_id = '{session_id}'", rows, session_id=id, address=f"'address ' || {number}"
    )
    await _copy(AddressUsage, "one.address = 'address 0'", rows, address=f"'address ' || {number}")
    await db_session.add(TurnCap(turn_id=turn.id, reply_tokens=300, limit_name="tokens_per_day"))
    await _copy(TurnCap, f"one.turn_id = '{turn.id}'", rows, turn_id=id)
    await db_session.add_pieces([Piece(turn.session_id, turn.id, 0, "Hello")], turn.created_at)
    await _copy(TurnPiece, f"one.turn_id = '{turn.id}'", rows, turn_id=id)
    for table in (Login, ApiToken):  # if the actor has one
        mine = f"one.account_id = '{actor.id}'"
        await _copy(table, mine, rows, id=id, token_hash=f"one.token_hash || {number}")
    await _copy(Idempotency, "one.key = 'crowd'", rows, key=f"'key ' || {number}")
    await _copy(Usage, f"one.owner_id = '{actor.id}'", rows, owner_id=id)
    bucket = f"one.key = (SELECT MIN(key) FROM rate_bucket WHERE key LIKE '%{actor.rate_key}:%')"
    await _copy(RateBucket, bucket, rows, key=f"'crowd ' || {number}")


def _id(number: str) -> str:
    """An id made of a number, in the words that SQLite and PostgreSQL share."""
    digits = f"SUBSTR(CAST(100000000000 + {number} AS TEXT), 1, 12)"
    return f"SUBSTR({digits}, 5, 8) || '-0000-7000-8000-' || {digits}"


async def _copy(table: type[Table], which: str, times: int, **changed: str) -> None:
    """Copy the row `one`, with other expressions of `n` in some columns."""
    names = [column._meta.name for column in table.all_columns()]
    chosen = ", ".join(changed.get(name, f"one.{name}") for name in names)
    await table.raw(
        f"INSERT INTO {table._meta.tablename} ({', '.join(names)}) "
        f"WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {times}) "
        f"SELECT {chosen} FROM {table._meta.tablename} AS one CROSS JOIN numbers WHERE {which} AND {times} > 0"
    )
