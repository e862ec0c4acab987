"""No query of an admission, a page or a stream reads a table from end to end, however many rows there are.

What is explained is what the verbs really send: the test listens at the engine.
"""

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

import db.db_session
from db.db_session import DbSession, Piece, new_id
from db.engine import Engine
from db.tables import TABLES, Login
from services.accounts import Accounts, Credentials
from services.actor import Actor
from services.clients import Usage
from services.desk import Desk, Wanted
from services.errors import Refusal
from services.oversight import Asked, Oversight
from services.readers import Readers
from services.readers import everybody as everybody_may
from services.reads import Reads
from services.session_service import SessionService
from tests.conftest import Clock, Configure, Offer
from tests.db.crowd import crowd

ROWS, OWNERS = 20_000, 2_000
#: tables with as many rows as somebody has configured
SMALL = {"reindexing", "model", "account_group", "limit_rule", "model_move"}
#: what lists of sessions go along
ALONG = {
    "session_by_activity",
    "session_by_cost",
    "session_by_turns",
    "session_of_owner",
    "session_open",
    "session_listed",
    "session_pinned",
    "session_archived",
    "session_deleted",
    "session_pkey",
    "sqlite_autoindex_session_1",
}
#: indexes that hold nothing but what runs at this moment, or what the next sweep has to do
RUNNING = re.compile(r"turn_running|session_to_index")


class Heard:
    """Every statement sent to an engine, with the arguments it had first."""

    def __init__(self) -> None:
        self.statements: dict[str, list[Any]] = {}


@pytest.fixture
def heard(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Heard:
    heard, run = Heard(), engine.run

    async def listened(sql: str, args: Sequence[Any] = ()) -> list[Any]:
        heard.statements.setdefault(sql, list(args))
        return await run(sql, args)

    monkeypatch.setattr(engine, "run", listened)
    return heard


async def plan_of(sql: str, args: Sequence[Any], engine: Engine) -> list[str]:
    """What a statement reads from end to end: a table, or the whole of an index; and at least one line for it."""
    if engine.engine_type == "sqlite":
        rows = await engine.run(f"EXPLAIN QUERY PLAN {sql}", args)
        return [row["detail"] for row in rows]
    (row,) = await engine.run(f"EXPLAIN (FORMAT JSON) {sql}", args)
    plan = json.loads(row["QUERY PLAN"])[0]["Plan"]
    told = [told_as_sqlite(node) for node in nodes_of(plan) if "Relation Name" in node or "Index Name" in node]
    return told + ["Sort" for node in nodes_of(plan) if node["Node Type"] == "Sort"]


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes_of(part | {"Limited": plan["Node Type"] == "Limit"})


def told_as_sqlite(node: dict[str, Any]) -> str:
    """One node of PostgreSQL's plan in SQLite's words."""
    table = node.get("Relation Name", node.get("Index Name"))
    if node["Node Type"] in ("ModifyTable", "Bitmap Heap Scan", "Tid Scan"):
        return f"{node['Node Type']} {table}"
    first = node.get("Limited") and "Filter" not in node  # as many as are wanted, from the end of an index
    verb = "SEARCH" if "Index Cond" in node or first else "SCAN"
    return f"{verb} {table} USING INDEX {node['Index Name']}" if "Index Name" in node else f"{verb} {table}"


def whole(plan: Sequence[str]) -> list[str]:
    """The lines that read a table, or an index of more than what runs, from end to end."""
    found = []
    tables = {table._meta.tablename for table in TABLES} - SMALL
    for line in plan:
        match = re.match(r"SCAN (\w+)(?: USING (?:COVERING )?INDEX (\w+))?", line)
        if match and match[1] in tables and not RUNNING.match(match[2] or ""):
            found.append(line)
    return found


async def test_neither_an_admission_nor_a_page_scans_sessions_turns_journal_or_keys(
    sessions: SessionService, db_session: DbSession, engine: Engine, ann: Actor, ada: Actor, session_id: UUID,
    configure: Configure, offer: Offer, clock: Clock, heard: Heard, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    await configure(
        "user", sessions_created="100/min", turns="100/min", switches="100/min", concurrent_turns=9,
        open_sessions=900, tokens_per_day=10**9, money_per_month=10**6, idle="30d", absolute="300d",
    )  # fmt: skip
    await configure("*", concurrent_turns=50)
    await offer(fast={"concurrent_turns": 20}, smart={"concurrent_turns": 20})
    accounts, now = Accounts(b"secret" * 8, guests=False, now=clock), clock()
    dates = {"created_at": now, "last_used_at": now, "expires_at": clock() + timedelta(days=1)}
    await db_session.add(Login(id=new_id(), account_id=ann.id, token_hash="none", **dates))
    await accounts.create_token(ann.name, "one of many", ("chat",), db_session)
    await crowd(ROWS, session_id, sessions, ann, engine, owners=OWNERS)
    if engine.engine_type == "postgres":  # which keeps its figures by itself; SQLite goes without
        await engine.run("ANALYZE")
    heard.statements.clear()

    await sessions.upkeep.forget(db_session)  # while next to nothing is spent: else a part of the table is most of it
    made = await sessions.create_session(db_session, actor=ann, model="smart", key="create")
    await sessions.create_session(db_session, actor=ann, model="smart", key="create")
    await sessions.ensure_session(None, db_session, actor=ann)
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, model="smart", key="begin")).turn
    await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, model="smart", key="begin")
    await sessions.switch_model(session_id, "fast", db_session, actor=ann, key="switch")
    await sessions.append([Piece(session_id, turn.id, 0, "Hello")], db_session)
    await sessions.heartbeat([turn.id], db_session)
    await sessions.finish_turn(turn.id, db_session, state="done", usage=Usage(3, 4))
    await sessions.begin_turn(session_id, "And?", db_session, actor=ann)
    await sessions.switch_model(session_id, "smart", db_session, actor=ada, when="stop", reason="costs")
    retried = await sessions.retry_turn(turn.id, db_session, actor=ann, model="fast")
    await sessions.stop_turn(retried.turn.id, db_session, actor=ann)
    edited = await sessions.edit_turn(turn.id, "Hello!", db_session, actor=ann)
    for refused in (
        lambda: sessions.begin_turn(session_id, "Hello", db_session, actor=ann),
        lambda: sessions.switch_model(session_id, "fast", db_session, actor=ann, when="idle"),
        lambda: sessions.switch_model(session_id, "fast", db_session, actor=ann, expected_version=0),
        lambda: sessions.create_session(db_session, actor=ann, model="off"),
        lambda: sessions.get_session(UUID(int=1), db_session, actor=ann),
    ):
        with pytest.raises(Refusal):
            await refused()
    clock.pass_(minutes=1)  # the lease lapses
    await sessions.begin_turn(session_id, "Again", db_session, actor=ann)
    await sessions.allowances(db_session, actor=ann)
    clock.pass_(days=31)
    await sessions.reopen_session(made.row.id, db_session, actor=ann, key="reopen")
    await sessions.sweep(db_session, thorough=False)
    assert edited.turn.id != turn.id

    # What pages and streams read.
    await sessions.upkeep.put_right(db_session, rates=True)
    live, reads = await sessions.get_session(session_id, db_session, actor=ann), Reads(sessions)
    path = (await reads.transcript(live, db_session, actor=ann)).turns
    await reads.transcript(live, db_session, actor=ann, last=path[0].id)
    await reads.siblings(live, db_session, actor=ann, after=path[0].id)
    await reads.timeline(made.row.id, db_session, actor=ann)
    await sessions.glances([(session_id, ann.id), (made.row.id, ann.id)], db_session)
    proofs = [Credentials("tk_none", "", "", "", ""), Credentials(None, "cookie", "", "", "")]
    assert await accounts.still([(proof, ann) for proof in proofs], db_session) == [False, False]

    statements = {sql: args for sql, args in heard.statements.items() if "INSERT INTO" not in sql or "SELECT" in sql}
    text = " ".join(statements)
    for table in ("session", "turn", "journal", "idempotency", "rate_bucket", "usage", "refusal", "turn_piece"):
        assert re.search(rf'\b(FROM|UPDATE|INTO) "?{table}\b', " ".join(heard.statements)), table
    assert len(statements) > 20 and "WITH RECURSIVE" in text
    plans = {sql: await plan_of(sql, args, engine) for sql, args in statements.items()}
    assert {sql: whole(plan) for sql, plan in plans.items() if whole(plan)} == {}
    assert any(line.startswith("SEARCH") for plan in plans.values() for line in plan)
    # The test would see one.
    assert whole(await plan_of("SELECT * FROM turn WHERE prompt = 'x'", (), engine))

    # A list goes along an index in the order in which it is shown, from where it begins and not past where it ends.
    monkeypatch.setattr(db.db_session, "LOOKED_ROWS", 200)
    heard.statements.clear()
    for everybody, actor in ((False, ann), (True, ada)):
        for wanted in (
            {},
            {"state": "closed"},
            {"state": "active"},
            {"state": "expired"},
            {"model": "none"},
            {"q": "%x"},
            *([{"show": show} for show in ("", "pinned", "archived", "deleted")] if not everybody else []),
        ):
            page = await sessions.list_sessions(db_session, actor=actor, everybody=everybody, **wanted)
            if page.next is not None:
                await sessions.list_sessions(db_session, actor=actor, everybody=everybody, after=page.next, **wanted)
    wanted_on_desk = [{"sort": sort} for sort in ("age", "cost", "turns")]
    wanted_on_desk += [{"owner": "ann", "sort": "activity"}, {"group": "user"}, {"group": "none", "sort": "cost"}]
    desk = Desk(sessions, Readers(sessions, lambda: db_session, everybody_may, asyncio.Event(), 9), lambda: db_session)
    for asked in wanted_on_desk:
        seen = await desk.look(Wanted(**asked), db_session, actor=ada)
        if seen.next is not None:
            await desk.look(Wanted(**asked), db_session, actor=ada, after=seen.next)
    await sessions.upkeep.lapsed_sessions(db_session)
    ordered = re.compile(r"ORDER BY (session\.)?(last_activity_at|id|cost_nanos|turn_count|deleted_at)\b")
    lists = {sql: args for sql, args in heard.statements.items() if ordered.search(sql)}
    assert len(lists) > 15
    for sql, args in lists.items():
        plan = await plan_of(sql, args, engine)
        assert "SCAN session" not in plan, plan
        indexes = {found[1] for line in plan if (found := re.search(r"INDEX (session\w+|\w+_session_1)", line))}
        assert indexes, plan
        # PostgreSQL knows how many rows there are of what: here a handful are open, and it may well sort those.
        if engine.engine_type == "sqlite":
            assert indexes <= ALONG, plan
            assert not any("TEMP B-TREE FOR ORDER BY" in line for line in plan), plan

    # What was said is found along its index, and the newest of it without sorting all that was found.
    heard.statements.clear()
    for q in ("hello", "hel", "hello nowhere", "nowhere"):
        page = await sessions.list_sessions(db_session, actor=ann, q=q, limit=1)
        if page.next is not None:
            await sessions.list_sessions(db_session, actor=ann, q=q, limit=1, after=page.next)
    assert any("said" in sql for sql in heard.statements)
    for sql, args in list(heard.statements.items()):
        plan = await plan_of(sql, args, engine)
        assert whole(plan) == [], (sql, plan)
        if "FROM said_words" in sql:
            assert not any("TEMP B-TREE" in line for line in plan), plan

    # The journal is looked through along an index too, whatever is asked of it, and the running ones are few.
    heard.statements.clear()
    oversight, day = Oversight(sessions), clock().date()
    for asked in (
        Asked(),
        Asked(account="ann"),
        Asked(what="turn_begun"),
        Asked(session_id=session_id),
        Asked(since=day),
        Asked(until=day),
    ):
        await oversight.journal(asked, db_session, actor=ada, before=UUID(int=2**127))
    await oversight.kinds(db_session, actor=ada)
    for by in ("day", "model", "group", "account"):
        await oversight.usage(by, db_session, actor=ada)
        await oversight.usage(by, db_session, actor=ada, account="ann")
    await desk.look(Wanted(running=True), db_session, actor=ada)
    looked = {sql: args for sql, args in heard.statements.items() if re.search(r"FROM (journal|usage|turn)\b", sql)}
    assert len(looked) > 12
    plans = {sql: await plan_of(sql, args, engine) for sql, args in looked.items()}
    if engine.engine_type == "postgres":  # which reads a day's usage whole where it is all there is
        plans = {sql: plan for sql, plan in plans.items() if "FROM usage" not in sql and 'FROM "usage"' not in sql}
    assert len(plans) > 6
    assert {sql: whole(plan) for sql, plan in plans.items() if whole(plan)} == {}, plans
