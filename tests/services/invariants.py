"""The invariants of docs/rules.md, each a function named after its id: what must hold of the rows, whatever was done.

Elsewhere: I1 in tests/test_architecture.py, I12 in tests/web/test_routes.py, and those that compare a call with what
it left behind (I5, I6, I9, I11) in test_invariants.py.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import date
from typing import Any
from uuid import UUID

from db.db_session import DbSession
from db.engine import Engine
from db.search_index import text_of
from db.tables import TABLES
from db.words import mark_of, words_of
from services.actor import Actor
from services.errors import Refusal
from services.event_bus import Hint
from services.outcomes import LiveSession, TurnOrder
from services.policies import DEFAULT_LIMITS, Policies
from services.text import tokens_of
from services.turns import LEASE
from tests.conftest import Clock

Row = dict[str, Any]
Rows = dict[str, list[Row]]
#: journal rows of refusals, which a refused call may leave behind
BOOKKEEPING = ("refused", "refusals_counted")


async def all_rows(engine: Engine) -> Rows:
    """Every row of every table."""
    names = [table._meta.tablename for table in TABLES]
    async with engine.transaction():  # on one connection; each of its own would take as long again
        return {name: sorted(map(dict, await engine.run(f"SELECT * FROM {name}")), key=repr) for name in names}


def effects(rows: Rows) -> Rows:
    """The rows without the bookkeeping of refusals."""
    journal = [row for row in rows["journal"] if row["what"] not in BOOKKEEPING]
    return {**rows, "journal": journal, "refusal": []}


class Ledger:
    """What the database has said so far, to hold against what it says now."""

    def __init__(self, engine: Engine, clock: Clock, published: list[Hint], started: list[TurnOrder]) -> None:
        self._engine, self._clock, self._published, self._started = engine, clock, published, started
        self.rows: Rows = {table._meta.tablename: [] for table in TABLES}
        self._journal: dict[UUID, Row] = {}
        self._ended: dict[UUID, Row] = {}
        self._text: dict[Strand, str] = {}
        #: of every turn that ever ended: whose, when, tokens, nano-money
        self._charges: dict[UUID, tuple[UUID, date, int, int]] = {}
        #: owners of turns that began and vanished without having been seen
        self._unseen: set[UUID] = set()
        self._refusals: Counter[tuple[str, str, Any]] = Counter()
        self._hints = 0

    # ------------------------------------------------------------ what is told to it

    def note(self, refusal: Refusal, actor: Actor) -> None:
        """Somebody was refused."""
        self._refusals[actor.name, refusal.code, self._clock().replace(second=0, microsecond=0)] += 1

    def give(self, guest: UUID, owner: UUID) -> None:
        """What a guest used is an account's now."""
        self._charges = {
            turn_id: (owner if whose == guest else whose, *used) for turn_id, (whose, *used) in self._charges.items()
        }  # type: ignore[assignment]

    # ------------------------------------------------------------ what must hold

    async def check(self, live: list[LiveSession], db_session: DbSession, *, alone: bool = True) -> None:
        """Take in what the rows say now; `alone`: only one call was made since the last time."""
        before, rows = self.rows, await all_rows(self._engine)
        self.rows = rows
        owners = {session["id"]: session["owner_id"] for session in before["session"]}
        for session in rows["session"]:
            if (owner_id := owners.get(session["id"], session["owner_id"])) != session["owner_id"]:
                self.give(owner_id, session["owner_id"])
        turns_of = _by_session(rows["turn"])
        J4_no_row_of_the_journal_changes(self._journal, rows)
        G6_an_ended_turn_never_changes(self._ended, rows)
        for turn in self._started:
            I4_the_model_of_a_turn_is_the_one_called(turn, rows)
        self._started.clear()
        I2_one_running_turn_per_session(rows)
        I7_no_slot_is_held_longer_than_a_lease(rows, self._clock)
        self._charge(before, rows, alone)
        I8_what_was_used_is_the_sum_of_the_turns(self._charges.values(), self._unseen, rows)
        await I8_what_is_reserved_is_the_sum_of_what_runs(rows, self._clock, db_session)
        text = text_of_turns(rows)
        I13_nothing_is_shown_that_is_not_stored(self._published[self._hints :], self._text, text)
        self._hints = len(self._published)
        for session_id, switches in _by_session(rows["journal"], "model_chosen", "model_switched").items():
            I3_the_switches_form_one_chain(session_id, switches, rows)
        for session in rows["session"]:
            the_turns_form_a_tree(session, turns_of[session["id"]])
            the_journal_tells_everything(session, turns_of[session["id"]], rows["journal"])
        the_index_holds_what_is_said(rows)
        there = {session["id"] for session in rows["session"] if session["deleted_at"] is None}
        assert {session.row.id for session in live} == there
        for session in live:
            I10_no_session_outlives_its_absolute_end(session, rows, self._clock)
        J2_the_first_refusal_is_journalled_and_the_others_counted(self._refusals, rows)
        self._journal = {row["id"]: row for row in rows["journal"]}
        self._ended |= {row["id"]: row for row in rows["turn"] if row["state"] != "running"}
        self._text = text

    def _charge(self, before: Rows, rows: Rows, alone: bool) -> None:
        """Remember what each turn cost that has ended since; also of one that was stopped by its session's deletion."""
        for turn in rows["turn"]:
            if turn["state"] != "running" and turn["copied_from"] is None and turn["id"] not in self._charges:
                tokens = turn["prompt_tokens"] + turn["reply_tokens"]
                self._charges[turn["id"]] = turn["owner_id"], turn["ended_at"].date(), tokens, turn["cost_nanos"]
        there = {turn["id"] for turn in rows["turn"]}
        was = {turn["id"]: turn for turn in before["turn"]}
        for row in rows["journal"]:
            turn_id = row["turn_id"]
            if row["what"] == "turn_begun" and turn_id not in there and turn_id not in self._charges:
                if alone:
                    self._charges[turn_id] = _cost_if_stopped(was[turn_id], before, self._clock().date())
                else:
                    self._charges[turn_id] = row["owner_id"], self._clock().date(), 0, 0
                    self._unseen.add(row["owner_id"])


def the_books_are_balanced(rows: Rows) -> None:
    """What holds of any rows that nobody writes to at the moment, however they came about; no turn may be deleted."""
    I2_one_running_turn_per_session(rows)
    text_of_turns(rows)
    ended = [turn for turn in rows["turn"] if turn["state"] != "running"]
    writing = {piece["turn_id"] for piece in rows["turn_piece"]}
    assert not writing & {turn["id"] for turn in ended}
    charges = [
        (turn["owner_id"], turn["ended_at"].date(), turn["prompt_tokens"] + turn["reply_tokens"], turn["cost_nanos"])
        for turn in ended
        if turn["copied_from"] is None
    ]
    I8_what_was_used_is_the_sum_of_the_turns(charges, set(), rows)
    the_index_holds_what_is_said(rows)
    turns_of = _by_session(rows["turn"])
    for session_id, switches in _by_session(rows["journal"], "model_chosen", "model_switched").items():
        I3_the_switches_form_one_chain(session_id, switches, rows)
    journal_of = _by_session(rows["journal"])
    for session in rows["session"]:
        the_turns_form_a_tree(session, turns_of[session["id"]])
        the_journal_tells_everything(session, turns_of[session["id"]], journal_of[session["id"]])


def _cost_if_stopped(turn: Row, rows: Rows, day: date) -> tuple[UUID, date, int, int]:
    texts = text_of_turns(rows)
    reply_tokens = sum(tokens_of(texts[turn["id"], reasoning]) for reasoning in (False, True))
    prices = [(row["price_in_nanos"], row["price_out_nanos"]) for row in rows["model"] if row["id"] == turn["model"]]
    price_in, price_out = prices[0] if prices else (0, 0)
    tokens = turn["prompt_tokens"] + reply_tokens
    return turn["owner_id"], day, tokens, turn["prompt_tokens"] * price_in + reply_tokens * price_out


def _by_session(rows: list[Row], *what: str) -> dict[UUID, list[Row]]:
    of: dict[UUID, list[Row]] = defaultdict(list)
    for row in rows:
        if not what or row["what"] in what:
            of[row["session_id"]].append(row)
    return of


#: of which turn, and whether it is its reasoning
Strand = tuple[UUID, bool]


def text_of_turns(rows: Rows) -> dict[Strand, str]:
    """What each turn has written and reasoned; pieces must join without gap or overlap."""
    texts = {(turn["id"], False): turn["reply"] or "" for turn in rows["turn"]}
    texts |= {(turn["id"], True): turn["reasoning"] for turn in rows["turn"]}
    for piece in sorted(rows["turn_piece"], key=lambda piece: piece["start"]):
        strand = piece["turn_id"], bool(piece["reasoning"])
        assert piece["start"] == len(texts[strand])
        texts[strand] += piece["text"]
    return texts


def policies_of(group: str, rows: Rows) -> Policies:
    """A group's limits, as the rows say; those it does not set are those of `user`."""
    limits: dict[str, str] = {}
    for name in ("user", group):
        set_ = {row["name"]: row["value"] for row in rows["limit_rule"] if row["group_name"] == name}
        limits |= {**DEFAULT_LIMITS.get(name, {}), **set_}
    return Policies.parse(limits)


def I2_one_running_turn_per_session(rows: Rows) -> None:
    running = [turn["session_id"] for turn in rows["turn"] if turn["state"] == "running"]
    assert len(set(running)) == len(running)


def I3_the_switches_form_one_chain(session_id: UUID, switches: list[Row], rows: Rows) -> None:
    links = sorted(switches, key=lambda row: row["version"])
    models = [row["to_value"] for row in links]
    assert [row["from_value"] for row in links] == [None, *models][: len(models)]
    assert [row["what"] for row in links] == ["model_chosen", *["model_switched"] * len(links)][: len(links)]
    for session in rows["session"]:
        if session["id"] == session_id:
            assert session["last_model"] == models[-1]


def I4_the_model_of_a_turn_is_the_one_called(order: TurnOrder, rows: Rows) -> None:
    for turn in rows["turn"]:
        if turn["id"] == order.turn_id:
            assert order.ask.model == f"upstream of {turn['model']}"
            (begun,) = (row for row in rows["journal"] if row["turn_id"] == turn["id"] and row["what"] == "turn_begun")
            assert begun["to_value"] == turn["model"]


def I7_no_slot_is_held_longer_than_a_lease(rows: Rows, clock: Clock) -> None:
    for turn in rows["turn"]:
        if turn["state"] == "running":
            assert turn["lease_until"] <= clock() + LEASE
        assert turn["copied_from"] is None or turn["state"] != "running"


def I8_what_was_used_is_the_sum_of_the_turns(charges: Any, unseen: set[UUID], rows: Rows) -> None:
    used: Counter[tuple[UUID, date, str]] = Counter()
    for owner_id, day, tokens, cost in charges:
        used[owner_id, day, "tokens"] += tokens
        used[owner_id, day, "money"] += cost
    counted: Counter[tuple[UUID, date, str]] = Counter()
    for row in rows["usage"]:
        counted[row["owner_id"], row["day"], "tokens"] += row["tokens"]
        counted[row["owner_id"], row["day"], "money"] += row["cost_nanos"]
    for place in {*used, *counted}:
        assert counted[place] == used[place] or (place[0] in unseen and counted[place] > used[place]), place


async def I8_what_is_reserved_is_the_sum_of_what_runs(rows: Rows, clock: Clock, db_session: DbSession) -> None:
    reserved: dict[UUID, Counter[str]] = defaultdict(Counter)
    for turn in rows["turn"]:
        if turn["state"] == "running" and turn["lease_until"] > clock():
            reserved[turn["owner_id"]].update(tokens=turn["reserved_tokens"], nanos=turn["reserved_nanos"])
    for account in rows["account"]:
        held = reserved[account["id"]]
        assert await db_session.reserved_of(account["id"], clock()) == (held["tokens"], held["nanos"])


def I10_no_session_outlives_its_absolute_end(live: LiveSession, rows: Rows, clock: Clock) -> None:
    (group,) = (account["group_name"] for account in rows["account"] if account["id"] == live.row.owner_id)
    lifetime = policies_of(group, rows).lifetime
    ends = [live.row.expires_at] if live.row.expires_at is not None else []
    ends += [live.row.last_activity_at + lifetime.idle] if lifetime.idle else []
    ends += [live.row.created_at + lifetime.absolute] if lifetime.absolute else []
    assert live.deadline == min(ends, default=None)
    over = live.deadline is not None and clock() >= live.deadline
    assert live.state == ("closed" if live.row.state == "closed" else "expired" if over else "active")


def I13_nothing_is_shown_that_is_not_stored(
    hints: list[Hint], before: Mapping[Strand, str], now: Mapping[Strand, str]
) -> None:
    for strand, text in before.items():
        assert now.get(strand, text).startswith(text)
    for hint in hints:
        if hint.text and hint.turn_id is not None and (told := now.get((hint.turn_id, hint.kind == "reasoning"))):
            assert told[hint.offset :].startswith(hint.text)


def G6_an_ended_turn_never_changes(ended: Mapping[UUID, Row], rows: Rows) -> None:
    for turn in rows["turn"]:
        then = ended.get(turn["id"], turn)
        assert turn == {**then, "owner_id": turn["owner_id"]}  # its session may have been adopted


def J4_no_row_of_the_journal_changes(journal: Mapping[UUID, Row], rows: Rows) -> None:
    now = {row["id"]: row for row in rows["journal"]}
    assert {id: now.get(id) for id in journal} == journal


def J2_the_first_refusal_is_journalled_and_the_others_counted(
    refusals: Counter[tuple[str, str, Any]], rows: Rows
) -> None:
    first = [
        (row["actor_name"], row["outcome"], row["at"].replace(second=0, microsecond=0))
        for row in rows["journal"]
        if row["what"] == "refused"
    ]
    assert len(set(first)) == len(first)
    assert set(first) == set(refusals), set(first) ^ set(refusals)
    for row in rows["refusal"]:
        assert row["times"] == refusals[row["actor_name"], row["code"], row["minute"]], row


def the_index_holds_what_is_said(rows: Rows) -> None:
    """Every turn once, and every title given by hand, for its owner alone; copies as far as their session says."""
    far = {session["id"]: session["indexed_to"] for session in rows["session"]}
    said = {
        (session["id"], None): words_of(session["title"], session["owner_id"], session["id"])
        for session in rows["session"]
        if session["title"]
    }
    for turn in rows["turn"]:
        if turn["copied_from"] and (to := far[turn["session_id"]]) is not None and turn["id"] > to:
            continue
        told = text_of(turn["prompt"], turn["reply"])
        said[turn["session_id"], turn["id"]] = words_of(told, turn["owner_id"], turn["session_id"])
    assert len(rows["said"]) == len(said)
    for row in rows["said"]:
        # PostgreSQL tells them in its own order, each in quotes.
        held = set(re.findall("[^ ']+", row["words"]))
        assert held == set(said[row["session_id"], row["turn_id"]].split())
        assert mark_of(row["owner_id"]) in held


def the_turns_form_a_tree(session: Row, turns: list[Row]) -> None:
    depths = {None: 0} | {turn["id"]: turn["depth"] for turn in turns}
    assert all(turn["depth"] == depths[turn["parent_id"]] + 1 for turn in turns)
    assert all(turn["owner_id"] == session["owner_id"] for turn in turns)
    assert session["turn_count"] == len(turns)
    assert session["head_id"] in ({turn["id"] for turn in turns} or {None})


def the_journal_tells_everything(session: Row, turns: list[Row], journal: list[Row]) -> None:
    told = [row for row in journal if row["session_id"] == session["id"] and row["what"] not in BOOKKEEPING]
    assert {row["version"] for row in told} == set(range(session["version"] + 1))
    assert [row["version"] for row in told if row["what"] == "session_created"] == [0]
    begun = sorted(row["turn_id"] for row in told if row["what"] == "turn_begun")
    assert begun == sorted(turn["id"] for turn in turns if turn["copied_from"] is None)
    ended = sorted((row["turn_id"], row["outcome"]) for row in told if row["what"] == "turn_ended")
    own = [turn for turn in turns if turn["copied_from"] is None and turn["state"] != "running"]
    assert ended == sorted((turn["id"], turn["state"]) for turn in own)
