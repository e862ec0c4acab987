"""DbSession: the unit of work and the named queries; the only place that knows SQLite from PostgreSQL.

A query outside a transaction stands alone. `transaction()` opens one, or joins the one that is open: only the
outermost commits. Rows come as Piccolo objects with the attributes of `db.tables`; rules live in `services`.
"""

from bisect import bisect
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import date, datetime
from itertools import accumulate, islice
from typing import Any, Literal, NamedTuple, TypeVar
from uuid import UUID

import msgspec
import uuid_utils
from piccolo.columns import Column
from piccolo.columns.combination import WhereRaw
from piccolo.table import Table

from db import search_index
from db.engine import Conflict, DatabaseUnavailable, Engine
from db.tables import (
    Account,
    AccountGroup,
    AccountSkeleton,
    ApiToken,
    Draft,
    Idempotency,
    Journal,
    LimitRule,
    Login,
    Model,
    ModelMove,
    RateBucket,
    RefusalCount,
    Reindexing,
    RenderTimeout,
    Said,
    ServiceAccount,
    Session,
    SetupLink,
    TemporaryPassword,
    Turn,
    TurnCap,
    TurnPiece,
    Usage,
)
from db.words import Asked

__all__ = [
    "Conflict",
    "DatabaseUnavailable",
    "DbSession",
    "Piece",
    "Written",
    "changes_between",
    "first_id",
    "new_id",
    "snapshot",
]

Row = TypeVar("Row", bound=Table)
#: said in the SQL itself: PostgreSQL finds no partial index behind a bound value
RUNNING = WhereRaw("turn.state = 'running'")
_OPEN = "session.state <> 'closed' AND session.deleted_at IS NULL"
OPEN = WhereRaw(_OPEN)
#: an account that somebody signs in to
_A_PERSONS = WhereRaw("NOT EXISTS (SELECT 1 FROM service_account WHERE service_account.account_id = account.id)")
#: nothing typed in it waits to be sent
_NO_DRAFT = WhereRaw("NOT EXISTS (SELECT 1 FROM draft WHERE draft.session_id = session.id)")
#: the way back from a turn (its id) to the beginning, at most so many turns of it (a number)
_PATH = (
    "WITH RECURSIVE path (id, parent_id, depth) AS (SELECT id, parent_id, 1 FROM turn WHERE id = {} UNION ALL "
    "SELECT turn.id, turn.parent_id, path.depth + 1 FROM turn JOIN path ON turn.id = path.parent_id "
    "WHERE path.depth < {})"
)
#: what the replies of turns were cut to; a copy's is its original's
_CAPPED = (
    "turn_cap.reply_tokens AS capped_to, turn_cap.limit_name AS capped_by FROM turn "
    "LEFT JOIN turn_cap ON turn_cap.turn_id = COALESCE(turn.copied_from, turn.id)"
)
#: what lists of sessions can be sorted by; ids are in the order in which they were made
SORTED_BY = {
    "activity": "last_activity_at",
    "age": "id",
    "cost": "cost_nanos",
    "turns": "turn_count",
    "deletion": "deleted_at",
}
#: what lists of sessions leave out; said as the partial indexes say it
SHOWN = {
    "": "session.deleted_at IS NULL AND NOT session.archived",
    "all": "session.deleted_at IS NULL",
    "pinned": "session.deleted_at IS NULL AND NOT session.archived AND session.pinned",
    "archived": "session.deleted_at IS NULL AND session.archived",
    "deleted": "session.deleted_at IS NOT NULL",
}
#: turns that one statement writes
COPY_ROWS = 100
#: sessions whose turns one statement gives away
GIVEN_SESSIONS = 1000

#: texts that one statement looks for
LOOKED_DIGESTS = 500
#: how many sessions one look goes through, where it cannot be said beforehand how many are meant
LOOKED_ROWS = 10_000


class Piece(NamedTuple):
    """Text that was added to a running turn."""

    session_id: UUID
    turn_id: UUID
    #: characters of its reply, or of its reasoning, before this text
    start: int
    text: str
    reasoning: bool = False


class Written(NamedTuple):
    """What a turn has written so far."""

    reply: str = ""
    reasoning: str = ""


def new_id() -> UUID:
    """A UUIDv7: ordered by the time it was made (RFC 9562 §5.7)."""
    return UUID(int=uuid_utils.uuid7().int)


def first_id(at: datetime) -> UUID:
    """The lowest id that can have been made at `at`, to the millisecond."""
    return UUID(int=max(0, int(at.timestamp() * 1000)) << 80)


class DbSession:
    """One caller's view of the database."""

    def __init__(self, engine: Engine, *, urgent: bool = False) -> None:
        self.engine = engine
        self._urgent = urgent
        self._rules: tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]] | None = None

    # ------------------------------------------------------------ unit of work

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """All or nothing. On SQLite it holds the one write lock from the start."""
        outermost = self.engine.own_transaction() is None
        async with self.engine.transaction(urgent=self._urgent):
            try:
                yield
            finally:
                if outermost:
                    self._rules = None

    @property
    def in_transaction(self) -> bool:
        """Whether this task has one open."""
        return self.engine.own_transaction() is not None

    async def changed_elsewhere(self) -> bool:
        """Whether another process has changed anything since this was asked before; False where the bus tells of it."""
        return await self.engine.changed_elsewhere()

    def after_commit(self, callback: Callable[[], None], in_doubt: Callable[[], None] | None = None) -> None:
        """Call `callback` when the open transaction is committed, `in_doubt` when that failed; neither may wait."""
        transaction = self.engine.own_transaction()
        assert transaction is not None, "after_commit needs an open transaction"
        transaction.after_commit(callback, in_doubt)

    async def lock(self, *names: str) -> None:
        """Until commit, no other transaction that locks one of these names goes on. SQLite's writer already waits.

        Two that wait for each other never end, so every transaction takes what it locks in one order, rows and names
        alike: the idempotency key · `setup`, `names`, `configuration`, `moves`, `sign_in:…`, `login:…`, `admins`,
        `account:…` · the move · `auto:…` · sessions by id · turns by id · usage, by owner and by address ·
        `owner:…`, `address:…`, `model:…`, `instance` · the buckets of rates · logins.
        """
        if self._postgres:
            for name in names:
                await self.engine.run("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", [name])

    @property
    def _postgres(self) -> bool:
        return self.engine.engine_type == "postgres"

    async def add(self, row: Table) -> None:
        """Insert a row. Raises Conflict where its key is taken."""
        await type(row).insert(row)

    async def update(self, row: Table, **changes: Any) -> None:
        """Change columns of a row by its primary key, and on the object."""
        if not changes:
            return
        table = type(row)
        key = table._meta.primary_key
        values: dict[Column | str, Any] = {getattr(table, name): value for name, value in changes.items()}
        await table.update(values).where(key == getattr(row, key._meta.name))
        for name, value in changes.items():
            setattr(row, name, value)

    async def _object(self, table: type[Row], *where: Any, lock: bool = False) -> Row | None:
        query = table.objects().where(*where).limit(1)
        if lock and self._postgres:
            query = query.lock_rows("UPDATE")
        rows = await query
        return rows[0] if rows else None

    async def _rows(self, table: type[Row], sql: str, *args: Any) -> list[Row]:
        return [table(**row, _exists_in_db=True) for row in await table.raw(sql, *args)]

    # ------------------------------------------------------------ accounts

    async def find_account(self, account_id: UUID, *, lock: bool = False) -> Account | None:
        """With `lock` nobody makes a session of this account's until commit, and whoever is about to is waited for."""
        return await self._object(Account, Account.id == account_id, lock=lock)

    async def find_account_by_name(self, name: str) -> Account | None:
        return await self._object(Account, Account.name == name)

    async def add_account_once(self, account: Account) -> None:
        """Insert an account unless its id is there already."""
        await Account.insert(account).on_conflict(target=Account.id, action="DO NOTHING")

    async def list_accounts(self, ids: Iterable[UUID]) -> dict[UUID, Account]:
        wanted = list(set(ids))
        rows = await Account.objects().where(Account.id.is_in(wanted)) if wanted else []
        return {row.id: row for row in rows}

    async def has_admin(self) -> bool:
        """Whether somebody is an admin; a service account cannot sign in, so it does not count."""
        return bool(await Account.exists().where(Account.role == "admin", _A_PERSONS))

    async def add_setup_link(self, token_hash: str, now: datetime) -> None:
        """Make `token_hash` the one link that works."""
        await SetupLink.delete().where(SetupLink.used_at.is_null())
        await SetupLink.insert(SetupLink(token_hash=token_hash, created_at=now))

    async def has_setup_link(self, token_hash: str) -> bool:
        return bool(await SetupLink.exists().where(SetupLink.token_hash == token_hash, SetupLink.used_at.is_null()))

    async def use_setup_link(self, token_hash: str, now: datetime) -> bool:
        """Spend the link; of several at once one is told True."""
        spent = await (
            SetupLink.update({SetupLink.used_at: now})
            .where(SetupLink.token_hash == token_hash, SetupLink.used_at.is_null())
            .returning(SetupLink.token_hash)
        )
        return bool(spent)

    async def list_people(self, q: str, after: str, limit: int) -> list[Account]:
        """Accounts that are not guests', by name, from the one behind `after` on."""
        return await self._rows(
            Account,
            f"SELECT {_columns(Account)} FROM account WHERE role <> 'guest' AND name > {{}} "  # noqa: S608
            "AND LOWER(name) LIKE {} ESCAPE '!' ORDER BY name LIMIT {}",
            after,
            f"%{_escaped(q.lower())}%",
            limit,
        )

    async def find_account_that_looks_like(self, skeletons: Sequence[str]) -> str | None:
        """The name of an account that has one of these skeletons."""
        rows = await AccountSkeleton.raw(
            "SELECT account.name FROM account_skeleton JOIN account ON account.id = account_skeleton.account_id "  # noqa: S608
            f"WHERE skeleton IN ({_marks(skeletons)}) ORDER BY account.id LIMIT 1",
            *skeletons,
        )
        return rows[0]["name"] if rows else None

    async def add_skeletons(self, account_id: UUID, skeletons: Sequence[str]) -> None:
        """Note how a name looks, as far as no other account's does."""
        for skeleton in skeletons:
            await AccountSkeleton.raw(
                "INSERT INTO account_skeleton (skeleton, account_id) VALUES ({}, {}) ON CONFLICT (skeleton) DO NOTHING",
                skeleton,
                account_id,
            )

    async def list_people_without_skeleton(self, after: str, limit: int) -> list[Account]:
        """Accounts that are not guests' and of whose names it is not noted how they look, by name."""
        return await self._rows(
            Account,
            f"SELECT {_columns(Account)} FROM account WHERE role <> 'guest' AND name > {{}} AND NOT EXISTS "  # noqa: S608
            "(SELECT 1 FROM account_skeleton WHERE account_skeleton.account_id = account.id) ORDER BY name LIMIT {}",
            after,
            limit,
        )

    async def count_admins(self) -> int:
        """Those that may sign in."""
        return int(await Account.count().where(Account.role == "admin", Account.disabled_at.is_null(), _A_PERSONS))

    async def is_service_account(self, account_id: UUID) -> bool:
        return bool(await ServiceAccount.exists().where(ServiceAccount.account_id == account_id))

    async def list_service_accounts(self, ids: Iterable[UUID]) -> set[UUID]:
        """Of these the ones that are service accounts."""
        wanted = list(set(ids))
        query = ServiceAccount.select(ServiceAccount.account_id)
        return {
            row["account_id"] for row in (await query.where(ServiceAccount.account_id.is_in(wanted)) if wanted else [])
        }

    async def find_temporary_password(self, account_id: UUID) -> TemporaryPassword | None:
        """Who has set the password of an account, where that was not its owner."""
        return await self._object(TemporaryPassword, TemporaryPassword.account_id == account_id)

    async def put_temporary_password(self, account_id: UUID, set_by: str, set_at: datetime) -> None:
        """Note that the password of an account is not its owner's own."""
        await self.drop_temporary_password(account_id)
        await TemporaryPassword.insert(TemporaryPassword(account_id=account_id, set_by=set_by, set_at=set_at))

    async def drop_temporary_password(self, account_id: UUID) -> None:
        """Note that the password of an account is its owner's own."""
        await TemporaryPassword.delete().where(TemporaryPassword.account_id == account_id)

    async def find_login(self, token_hash: str, now: datetime, used_after: datetime) -> Login | None:
        """A login that has not ended and was used since."""
        return await self._object(Login, Login.token_hash == token_hash, *_living(now, used_after))

    async def find_login_by_id(self, login_id: UUID, now: datetime, used_after: datetime) -> Login | None:
        return await self._object(Login, Login.id == login_id, *_living(now, used_after))

    async def list_logins(self, account_id: UUID, now: datetime, used_after: datetime) -> list[Login]:
        """The living logins of an account, newest first."""
        living = Login.objects().where(Login.account_id == account_id, *_living(now, used_after))
        return await living.order_by(Login.id, ascending=False)

    async def touch_login(self, login_id: UUID, now: datetime) -> None:
        """Note that a login was used."""
        await Login.update({Login.last_used_at: now}).where(Login.id == login_id, Login.revoked_at.is_null())

    async def revoke_login(self, login_id: UUID, now: datetime) -> bool:
        """End a login; of several at once one is told True."""
        ending = Login.update({Login.revoked_at: now}).where(Login.id == login_id, Login.revoked_at.is_null())
        return bool(await ending.returning(Login.id))

    async def list_api_tokens(self, account_id: UUID, now: datetime) -> list[ApiToken]:
        """The living tokens of an account, newest first."""
        living = ApiToken.objects().where(
            ApiToken.account_id == account_id,
            ApiToken.revoked_at.is_null(),
            (ApiToken.expires_at.is_null()) | (ApiToken.expires_at > now),
        )
        return await living.order_by(ApiToken.id, ascending=False)

    async def find_api_token_by_id(self, token_id: UUID) -> ApiToken | None:
        """A token that was not revoked."""
        return await self._object(ApiToken, ApiToken.id == token_id, ApiToken.revoked_at.is_null())

    async def revoke_api_token(self, token_id: UUID, now: datetime) -> bool:
        """End a token; of several at once one is told True."""
        ending = ApiToken.update({ApiToken.revoked_at: now}).where(
            ApiToken.id == token_id, ApiToken.revoked_at.is_null()
        )
        return bool(await ending.returning(ApiToken.id))

    async def logins_of(
        self, token_hashes: Sequence[str], now: datetime, used_after: datetime
    ) -> dict[str, tuple[UUID, datetime, Account]]:
        """{hash: its id, when it was last used, and whose it is} of the logins that live."""
        if not token_hashes:
            return {}
        rows = await Login.raw(
            "SELECT login.token_hash AS proof, login.id AS login_id, login.last_used_at AS used_at, "  # noqa: S608
            f"{_columns(Account)} FROM login JOIN account ON account.id = login.account_id "
            f"WHERE login.token_hash IN ({_marks(token_hashes)}) AND login.revoked_at IS NULL "
            "AND login.expires_at > {} AND login.last_used_at > {}",
            *token_hashes,
            now,
            used_after,
        )
        return {
            row.pop("proof"): (row.pop("login_id"), row.pop("used_at"), Account(**row, _exists_in_db=True))
            for row in map(dict, rows)
        }

    async def api_tokens_of(self, token_hashes: Sequence[str], now: datetime) -> dict[str, tuple[UUID, str, Account]]:
        """{hash: its id, its scopes, and for whom it acts} of the tokens that live."""
        if not token_hashes:
            return {}
        rows = await ApiToken.raw(
            "SELECT api_token.token_hash AS proof, api_token.id AS token_id, api_token.scopes AS scopes, "  # noqa: S608
            f"{_columns(Account)} FROM api_token JOIN account ON account.id = api_token.account_id "
            f"WHERE api_token.token_hash IN ({_marks(token_hashes)}) AND api_token.revoked_at IS NULL "
            "AND (api_token.expires_at IS NULL OR api_token.expires_at > {})",
            *token_hashes,
            now,
        )
        return {
            row.pop("proof"): (row.pop("token_id"), row.pop("scopes"), Account(**row, _exists_in_db=True))
            for row in map(dict, rows)
        }

    # ------------------------------------------------------------ catalogue and limits

    async def rules(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
        """The rows of model, account_group and limit_rule; read once per transaction."""
        inside = self.engine.own_transaction() is not None
        if self._rules is not None and inside:
            return self._rules
        # One statement, so that all three are of the same moment on PostgreSQL too.
        (row,) = await self.engine.run(self._rules_sql)
        models, groups, limits = (msgspec.json.decode(row[name]) for name in ("models", "groups", "limits"))
        models.sort(key=lambda model: (model["position"], model["id"]))
        groups.sort(key=lambda group: group["name"])
        limits.sort(key=lambda limit: (limit["group_name"], limit["name"]))
        if inside:
            self._rules = models, groups, limits
        return models, groups, limits

    @property
    def _rules_sql(self) -> str:
        array, object = ("json_agg", "json_build_object") if self._postgres else ("json_group_array", "json_object")
        columns = [
            f"(SELECT COALESCE({array}({object}({_pairs(table)})), '[]') FROM {table._meta.tablename}) AS {name}"  # noqa: S608
            for table, name in ((Model, "models"), (AccountGroup, "groups"), (LimitRule, "limits"))
        ]
        return f"SELECT {', '.join(columns)}"

    def forget_rules(self) -> None:
        """The next look at the rules is a new one: this transaction has written some."""
        self._rules = None

    async def take_from_bucket(self, key: str, now_us: int, interval_us: int, burst: int) -> int | None:
        """Take one place of a rate in one statement (GCRA); the new arrival time, or None where it is full."""
        taken = await RateBucket.raw(
            "INSERT INTO rate_bucket (key, tat_us) VALUES ({}, {}) ON CONFLICT (key) DO UPDATE SET tat_us = "
            "CASE WHEN rate_bucket.tat_us > {} THEN rate_bucket.tat_us ELSE {} END + {} "
            "WHERE rate_bucket.tat_us <= {} RETURNING tat_us",
            key,
            now_us + interval_us,
            now_us,
            now_us,
            interval_us,
            now_us + (burst - 1) * interval_us,
        )
        return int(taken[0]["tat_us"]) if taken else None

    async def give_back_to_bucket(self, key: str, interval_us: int) -> None:
        """Undo one taking."""
        await RateBucket.raw("UPDATE rate_bucket SET tat_us = tat_us - {} WHERE key = {}", interval_us, key)

    async def shorten_bucket(self, key: str, tat_us: int) -> None:
        """Let a bucket reach no further than `tat_us`."""
        await RateBucket.raw("UPDATE rate_bucket SET tat_us = {} WHERE key = {} AND tat_us > {}", tat_us, key, tat_us)

    async def bucket_tat(self, key: str) -> int:
        """The bucket's theoretical arrival time in microseconds; 0 where it was never used."""
        rows = await RateBucket.select(RateBucket.tat_us).where(RateBucket.key == key)
        return int(rows[0]["tat_us"]) if rows else 0

    async def add_usage(
        self, owner_id: UUID, day: date, model: str, tokens: int, cost_nanos: int, *, turns: int = 1
    ) -> None:
        await Usage.raw(
            "INSERT INTO usage (owner_id, day, model, turns, tokens, cost_nanos) VALUES ({}, {}, {}, {}, {}, {}) "
            "ON CONFLICT (owner_id, day, model) DO UPDATE SET turns = usage.turns + excluded.turns, "
            "tokens = usage.tokens + excluded.tokens, cost_nanos = usage.cost_nanos + excluded.cost_nanos",
            owner_id,
            day,
            model,
            turns,
            tokens,
            cost_nanos,
        )

    async def usage_between(self, owner_id: UUID, first: date, end: date) -> tuple[int, int]:
        """Tokens and nano-money used by ended turns from the day `first` on, before the day `end`."""
        rows = await Usage.raw(
            "SELECT COALESCE(SUM(tokens), 0) AS tokens, COALESCE(SUM(cost_nanos), 0) AS cost_nanos "
            "FROM usage WHERE owner_id = {} AND day >= {} AND day < {}",
            owner_id,
            first,
            end,
        )
        return int(rows[0]["tokens"]), int(rows[0]["cost_nanos"])

    async def sum_usage(
        self,
        by: Literal["", "account", "group", "model", "day"],
        first: date,
        last: date,
        *,
        limit: int,
        account_id: UUID | None = None,
        group: str = "",
        model: str = "",
        most: Literal["tokens", "turns", "cost_nanos"] = "tokens",
    ) -> list[tuple[Any, int, int, int]]:
        """(name, turns, tokens, nano-money) of what was used from `first` to `last`: for each, or all.

        Those with the most of a figure come first.
        """
        named = {
            "": "''",
            "account": "account.name",
            "group": "account.group_name",
            "model": "usage.model",
            "day": "usage.day",
        }
        where, args = ["usage.day >= {}", "usage.day <= {}"], [first, last]
        for condition, value in (
            ("usage.owner_id = {}", account_id),
            ("account.group_name = {}", group),
            ("usage.model = {}", model),
        ):
            if value:
                where.append(condition)
                args.append(value)  # type: ignore[arg-type]
        rows = await Usage.raw(
            f"SELECT {named[by]} AS name, COALESCE(SUM(usage.turns), 0) AS turns, "  # noqa: S608
            "COALESCE(SUM(usage.tokens), 0) AS tokens, COALESCE(SUM(usage.cost_nanos), 0) AS cost_nanos "
            "FROM usage JOIN account ON account.id = usage.owner_id "
            f"WHERE {' AND '.join(where)} {f'GROUP BY {named[by]}' if by else ''} "
            f"ORDER BY SUM(usage.{most}) DESC, SUM(usage.tokens) DESC, name LIMIT {{}}",
            *args,
            limit,
        )
        return [(row["name"], int(row["turns"]), int(row["tokens"]), int(row["cost_nanos"])) for row in rows]

    # ------------------------------------------------------------ sessions

    async def find_session(
        self, session_id: UUID, owner_id: UUID | None, *, lock: bool = False, deleted_after: datetime | None = None
    ) -> Session | None:
        """A session of `owner_id`, or anybody's for None; `lock` keeps others from changing it until commit.

        One that was deleted is not there, unless it was after `deleted_after`.
        """
        mine = [] if owner_id is None else [Session.owner_id == owner_id]
        there: Any = Session.deleted_at.is_null()
        if deleted_after is not None:
            there = there | (Session.deleted_at > deleted_after)
        return await self._object(Session, Session.id == session_id, there, *mine, lock=lock)

    async def list_owned(self, pairs: Iterable[tuple[UUID, UUID]]) -> dict[tuple[UUID, UUID], Session]:
        """Those of the (session, owner) pairs that are there."""
        wanted = set(pairs)
        if not wanted:
            return {}
        rows = await Session.objects().where(
            Session.id.is_in([id for id, _ in wanted]),
            Session.owner_id.is_in(list({owner for _, owner in wanted})),
            Session.deleted_at.is_null(),
        )
        return {key: row for row in rows if (key := (row.id, row.owner_id)) in wanted}

    async def erase_session(self, session_id: UUID) -> None:
        """Take away a session with its turns and their words; its journal stays."""
        await Session.delete().where(Session.id == session_id)

    async def erase_turns(self, session_id: UUID, limit: int) -> bool:
        """Take away some of a session's turns with their words; whether these were the last."""
        these = "SELECT id FROM turn WHERE session_id = {} ORDER BY id LIMIT {}"
        await TurnCap.raw(f"DELETE FROM turn_cap WHERE turn_id IN ({these})", session_id, limit)  # noqa: S608
        gone = await Turn.raw(f"DELETE FROM turn WHERE id IN ({these}) RETURNING id", session_id, limit)  # noqa: S608
        return len(gone) < limit

    async def lock_deleted_session(self, session_id: UUID, deleted_before: datetime) -> Session | None:
        """One that was deleted then or earlier; until commit nobody else changes it."""
        return await self._object(Session, Session.id == session_id, Session.deleted_at <= deleted_before, lock=True)

    async def list_deleted_sessions(self, deleted_before: datetime, limit: int) -> list[UUID]:
        """Those that were deleted then or earlier, the earliest first."""
        rows = await Session.raw(
            "SELECT id FROM session WHERE deleted_at IS NOT NULL AND deleted_at <= {} ORDER BY deleted_at LIMIT {}",
            deleted_before,
            limit,
        )
        return [row["id"] for row in rows]

    async def count_open_sessions(
        self, owner_id: UUID, now: datetime, active_after: datetime | None, created_after: datetime | None
    ) -> int:
        """Sessions of one owner that are neither closed nor past their end."""
        query = Session.count().where(
            Session.owner_id == owner_id,
            OPEN,
            (Session.expires_at.is_null()) | (Session.expires_at > now),
        )
        if active_after is not None:
            query = query.where(Session.last_activity_at > active_after)
        if created_after is not None:
            query = query.where(Session.created_at > created_after)
        return int(await query)

    async def find_untouched_session(self, owner_id: UUID, created_after: datetime) -> Session | None:
        """The newest session of one owner in which nothing has happened yet."""
        query = (
            Session.objects()
            .where(
                Session.owner_id == owner_id,
                OPEN,
                Session.turn_count == 0,
                Session.version == 0,
                Session.title == "",
                Session.locked.eq(False),
                # Untouched, so it was last active when it was made: a range of the index.
                Session.last_activity_at > created_after,
                _NO_DRAFT,
            )
            .order_by(Session.last_activity_at, ascending=False)
            .limit(1)
        )
        # One that somebody begins to use at this moment is passed over.
        rows = await (query.lock_rows("UPDATE", skip_locked=True) if self._postgres else query)
        return rows[0] if rows else None

    async def list_sessions(
        self,
        *,
        owner_id: UUID | None,
        limit: int,
        ends: "Ends",
        now: datetime,
        after: "Place | None" = None,
        state: str = "",
        model: str = "",
        q: str = "",
        group: str = "",
        running: bool = False,
        sort: Literal["activity", "age", "cost", "turns", "deletion"] = "activity",
        show: Literal["", "all", "pinned", "archived", "deleted"] = "all",
        deleted_after: datetime | None = None,
    ) -> tuple[list[Session], "Place | None"]:
        """Highest first, by activity the newest; and behind which session to go on, if that is worth it.

        `owner_id=None` for everybody's. What is looked for among very many is looked for in part: then there may be
        fewer than `limit`, or none, and still a place to go on from.
        """
        column = SORTED_BY[sort]
        where: list[str] = [SHOWN[show]]
        args: list[Any] = []
        if deleted_after is not None:
            where.append("session.deleted_at > {}")
            args.append(deleted_after)
        if owner_id is not None:
            where.append("session.owner_id = {}")
            args.append(owner_id)
        if running:
            where.append("session.id IN (SELECT session_id FROM turn WHERE state = 'running' AND lease_until > {})")
            args.append(now)
        if after is not None:
            where.append(f"(session.{column}, session.id) < ({{}}, {{}})")
            args += list(after)
        edge = await self._edge(column, where, args) if state or model or q or group else None
        if edge is not None:
            where.append(f"(session.{column}, session.id) >= ({{}}, {{}})")
            args += list(edge)
        if q:
            # Whoever looks through everybody's sessions sees only titles given by hand.
            where.append("LOWER(session.title) LIKE {} ESCAPE '!'")
            args.append(f"%{_escaped(q.lower())}%")
        alike, told = _alike(ends, now, state, model, group)
        where += alike
        args += told
        rows = await self._rows(
            Session,
            f"SELECT {_columns(Session)} FROM session JOIN account ON account.id = session.owner_id "  # noqa: S608 - values are bound
            f"WHERE {' AND '.join(where)} ORDER BY session.{column} DESC, session.id DESC LIMIT {{}}",
            *args,
            limit + 1,
        )
        if len(rows) > limit:
            return rows[:limit], (getattr(rows[limit - 1], column), rows[limit - 1].id)
        return rows, edge

    async def pick_sessions(
        self,
        session_ids: Sequence[UUID],
        *,
        owner_id: UUID,
        ends: "Ends",
        now: datetime,
        state: str = "",
        model: str = "",
        show: Literal["", "all", "pinned", "archived", "deleted"] = "all",
        deleted_after: datetime | None = None,
    ) -> dict[UUID, Session]:
        """Those of one owner's sessions that a list would show."""
        alike, told = _alike(ends, now, state, model, "")
        if deleted_after is not None:
            alike.append("session.deleted_at > {}")
            told.append(deleted_after)
        rows = await self._rows(
            Session,
            f"SELECT {_columns(Session)} FROM session JOIN account ON account.id = session.owner_id "  # noqa: S608 - values are bound
            # COALESCE, so that the ids bound it: one owner may have very many more.
            f"WHERE session.id IN ({_marks(session_ids)}) AND COALESCE(session.owner_id, session.id) = {{}} "
            f"AND {' AND '.join([SHOWN[show], *alike])}",
            *session_ids,
            owner_id,
            *told,
        )
        return {row.id: row for row in rows}

    async def _edge(self, column: str, where: Sequence[str], args: Sequence[Any]) -> "Place | None":
        """The last session that one look comes to; None where it comes to the end."""
        rows = await Session.raw(
            f"SELECT {column} AS place, id FROM session WHERE {' AND '.join(where)} "  # noqa: S608
            f"ORDER BY {column} DESC, id DESC LIMIT 1 OFFSET {{}}",
            *args,
            LOOKED_ROWS - 1,
        )
        return (rows[0]["place"], rows[0]["id"]) if rows else None

    async def lock_sessions_of(self, owner_id: UUID) -> list[Session]:
        """All sessions of one owner, oldest first; until commit nobody else changes them."""
        query = Session.objects().where(Session.owner_id == owner_id).order_by(Session.id)
        return await (query.lock_rows("UPDATE") if self._postgres else query)

    async def give_turns_and_usage(self, session_ids: Sequence[UUID], owner_id: UUID, new_owner_id: UUID) -> None:
        """Make another's the turns of these sessions, which are locked, and all that their owner used."""
        for start in range(0, len(session_ids), GIVEN_SESSIONS):
            some = session_ids[start : start + GIVEN_SESSIONS]
            await Turn.raw(
                "UPDATE turn SET owner_id = {} WHERE id IN (SELECT id FROM turn "  # noqa: S608
                f"WHERE session_id IN ({_marks(some)}) ORDER BY id{' FOR UPDATE' if self._postgres else ''})",
                new_owner_id,
                *some,
            )
            await search_index.give(self.engine, some, owner_id, new_owner_id)
        for used in await Usage.select().where(Usage.owner_id == owner_id).order_by(Usage.day, Usage.model):
            figures = used["tokens"], used["cost_nanos"]
            await self.add_usage(new_owner_id, used["day"], used["model"], *figures, turns=used["turns"])
        await Usage.delete().where(Usage.owner_id == owner_id)

    async def list_lapsed_sessions(
        self, ends: "Ends", now: datetime, after: UUID | None, limit: int
    ) -> tuple[list[UUID], UUID | None]:
        """Sessions marked active whose end has passed, in the order of their ids, and behind which to go on.

        No more are looked at than `LOOKED_ROWS`. None: this was the end.
        """
        behind, args = ("session.id > {}", [after]) if after is not None else ("1 = 1", [])
        rows = await Session.raw(
            f"SELECT id FROM session WHERE {behind} ORDER BY id LIMIT 1 OFFSET {{}}",  # noqa: S608
            *args,
            LOOKED_ROWS - 1,
        )
        edge = rows[0]["id"] if rows else None
        over, ended = _over(ends, now)
        rows = await Session.raw(
            "SELECT session.id FROM session JOIN account ON account.id = session.owner_id "  # noqa: S608
            f"WHERE {behind} {'AND session.id <= {} ' if edge is not None else ''}"
            f"AND session.state = 'active' AND session.deleted_at IS NULL AND ({over}) ORDER BY session.id LIMIT {{}}",
            *args,
            *([edge] if edge is not None else []),
            *ended,
            limit,
        )
        found = [row["id"] for row in rows]
        return found, found[-1] if len(found) == limit else edge

    # ------------------------------------------------------------ turns

    async def find_turn(self, turn_id: UUID, *, lock: bool = False) -> Turn | None:
        found = await self._turns(
            f"WHERE turn.id = {{}}{' FOR UPDATE OF turn' if lock and self._postgres else ''}", turn_id
        )
        return found[0] if found else None

    async def _turns(self, where: str, *args: Any) -> list[Turn]:
        """Turns with what their replies were cut to."""
        turns = []
        for row in await Turn.raw(f"SELECT {_columns(Turn)}, {_CAPPED} {where}", *args):
            columns = dict(row)
            tokens, limit = columns.pop("capped_to"), columns.pop("capped_by")
            turn = Turn(**columns, _exists_in_db=True)
            turn.capped = (int(tokens), limit) if tokens is not None else None
            turns.append(turn)
        return turns

    async def add_turn(self, turn: Turn) -> None:
        """Insert a turn, with what its reply is cut to."""
        await self.add(turn)
        if turn.capped is not None:
            tokens, limit = turn.capped
            await self.add(TurnCap(turn_id=turn.id, reply_tokens=tokens, limit_name=limit))

    async def find_running_turn(self, session_id: UUID) -> Turn | None:
        """The turn marked running, its lease alive or not; until commit nobody else writes to it."""
        return await self._object(Turn, Turn.session_id == session_id, RUNNING, lock=True)

    async def list_running_turns(self, session_ids: Sequence[UUID], now: datetime) -> dict[UUID, tuple[UUID, str]]:
        """{session id: (running turn id, its model)} of those that have one with a living lease."""
        if not session_ids:
            return {}
        rows = await Turn.select(Turn.id, Turn.session_id, Turn.model).where(
            Turn.session_id.is_in(list(session_ids)), RUNNING, Turn.lease_until > now
        )
        return {row["session_id"]: (row["id"], row["model"]) for row in rows}

    async def list_figures(
        self, session_ids: Sequence[UUID], now: datetime
    ) -> dict[UUID, tuple[UUID, str, datetime, datetime | None, int]]:
        """{session id: (turn, model, begun, first text, characters but for the last pieces)} of what runs."""
        if not session_ids:
            return {}
        rows = await Turn.raw(
            "SELECT session_id, id, model, created_at, first_text_at, "  # noqa: S608
            f"{_begins_last('FALSE')} + {_begins_last('TRUE')} AS characters "
            f"FROM turn WHERE session_id IN ({_marks(session_ids)}) AND state = 'running' AND lease_until > {{}}",
            *session_ids,
            now,
        )
        return {
            row["session_id"]: (row["id"], row["model"], row["created_at"], row["first_text_at"], row["characters"])
            for row in rows
        }

    async def list_lapsed_turns(self, now: datetime, limit: int) -> list[UUID]:
        """Turns marked running that nobody runs any more, the longest so first."""
        rows = (
            await Turn.select(Turn.id).where(RUNNING, Turn.lease_until <= now).order_by(Turn.lease_until).limit(limit)
        )
        return [row["id"] for row in rows]

    async def list_lapsed_turns_of(self, owner_id: UUID, now: datetime) -> list[Turn]:
        """Those of one owner, whose use is not booked yet; rarely any."""
        return await Turn.objects().where(Turn.owner_id == owner_id, RUNNING, Turn.lease_until <= now)

    async def list_turns_not_leased_to(self, worker: UUID) -> list[UUID]:
        """What other processes run, or ran when they died; as many as there are slots."""
        rows = await Turn.select(Turn.id).where(RUNNING, Turn.lease_owner != worker)
        return [row["id"] for row in rows]

    async def count_running_turns(self, now: datetime, *, owner_id: UUID | None = None, model: str = "") -> int:
        """Held slots: rows that run and whose lease lives."""
        query = Turn.count().where(RUNNING, Turn.lease_until > now)
        if owner_id is not None:
            query = query.where(Turn.owner_id == owner_id)
        if model:
            query = query.where(Turn.model == model)
        return int(await query)

    async def reserved_of(self, owner_id: UUID, now: datetime) -> tuple[int, int]:
        """Tokens and nano-money that an owner's running turns hold."""
        rows = await Turn.raw(
            "SELECT COALESCE(SUM(reserved_tokens), 0) AS tokens, COALESCE(SUM(reserved_nanos), 0) AS nanos "
            "FROM turn WHERE owner_id = {} AND state = 'running' AND lease_until > {}",
            owner_id,
            now,
        )
        return int(rows[0]["tokens"]), int(rows[0]["nanos"])

    async def list_path(self, last_id: UUID | None, limit: int) -> list[Turn]:
        """The last `limit` turns of the transcript that ends with `last_id`, oldest first."""
        if last_id is None:
            return []
        rows = await self._turns(f"WHERE turn.id IN ({_PATH} SELECT id FROM path)", last_id, limit)  # noqa: S608
        by_id = {row.id: row for row in rows}
        path: list[Turn] = []
        following = by_id.get(last_id)
        while following is not None:
            path.append(following)
            following = by_id.get(following.parent_id)
        return path[::-1]

    async def list_path_ids(self, last_id: UUID | None, limit: int) -> list[UUID]:
        """The same without their texts."""
        ordered = "SELECT turn.id FROM path JOIN turn ON turn.id = path.id ORDER BY path.depth DESC"
        return [row["id"] for row in await Turn.raw(f"{_PATH} {ordered}", last_id, limit)]

    async def list_siblings(
        self, session_id: UUID, parent_ids: Iterable[UUID | None]
    ) -> dict[UUID | None, list[tuple[UUID, int]]]:
        """{parent: the turns after it in the order they were begun}, for these parents; None is the beginning.

        Turns with the same number ask the same.
        """
        named = [id for id in parent_ids if id is not None]
        rows = await Turn.raw(
            "SELECT parent_id, id, DENSE_RANK() OVER (PARTITION BY parent_id ORDER BY prompt) AS asked "  # noqa: S608
            "FROM turn WHERE session_id = {} "
            f"AND (parent_id IS NULL{f' OR parent_id IN ({_marks(named)})' if named else ''}) ORDER BY id",
            session_id,
            *named,
        )
        found: dict[UUID | None, list[tuple[UUID, int]]] = {}
        for row in rows:
            found.setdefault(row["parent_id"], []).append((row["id"], row["asked"]))
        return found

    async def find_lock(self, session_id: UUID) -> Journal | None:
        """Who locked a session's model last, and why."""
        rows = await self._rows(
            Journal,
            f"SELECT {_columns(Journal)} FROM journal "  # noqa: S608
            "WHERE session_id = {} AND what = 'model_locked' ORDER BY id DESC LIMIT 1",
            session_id,
        )
        return rows[0] if rows else None

    async def find_newest_below(self, turn: Turn) -> UUID:
        """The newest turn of the branches that go through `turn`, or itself: the end of one of them."""
        rows = await Turn.raw(
            "WITH RECURSIVE below (id) AS (SELECT id FROM turn WHERE id = {} UNION ALL SELECT turn.id FROM turn "
            "JOIN below ON turn.parent_id = below.id WHERE turn.session_id = {}) "
            "SELECT id FROM below ORDER BY id DESC LIMIT 1",
            turn.id,
            turn.session_id,
        )
        newest: UUID = rows[0]["id"]
        return newest

    async def copy_turns(self, path: Sequence[UUID], session_id: UUID) -> list[UUID]:
        """Put copies of a path, oldest first, into another session; their ids. What they say stays where it is."""
        ids = [new_id() for _ in path]
        copies = enumerate(zip(path, ids, [None, *ids], strict=False), start=1)
        own = {
            "id": "copy.id",
            "session_id": "copy.session_id",
            "parent_id": "copy.parent_id",
            "depth": "copy.depth",
            "copied_from": "COALESCE(turn.copied_from, turn.id)",
        }
        names = [column._meta.name for column in Turn.all_columns()]
        told = ", ".join(own.get(name, f"turn.{name}") for name in names)
        while some := list(islice(copies, COPY_ROWS)):
            values = [value for depth, (of, id, parent_id) in some for value in (of, id, parent_id, depth, session_id)]
            rows = self._listed(["UUID", "UUID", "UUID", "INTEGER", "UUID"], len(some))
            await self.engine.run(
                f"WITH copy (of, id, parent_id, depth, session_id) AS (VALUES {rows}) "  # noqa: S608
                f"INSERT INTO turn ({', '.join(names)}) SELECT {told} FROM copy JOIN turn ON turn.id = copy.of",
                values,
            )
        return ids

    async def add_turns(self, turns: Iterable[Mapping[str, Any]]) -> None:
        """Insert many turns, each with a value for every column; past Piccolo, which takes 20 times as long.

        They are not found until `index_turns` has come to them.
        """
        names = [column._meta.name for column in Turn.all_columns()]
        turns = iter(turns)
        while rows := list(islice(turns, COPY_ROWS)):
            values = [row[name] for row in rows for name in names]
            listed = self._listed([""] * len(names), len(rows))
            await self.engine.run(f"INSERT INTO turn ({', '.join(names)}) VALUES {listed}", values)  # noqa: S608

    def _listed(self, types: Sequence[str], rows: int) -> str:
        """The places of values as the driver knows them, so many rows; with types where nothing else tells them."""
        if not self._postgres:
            return ", ".join([f"({', '.join('?' * len(types))})"] * rows)
        places = (f"${place}" + (f"::{kind}" if kind else "") for place, kind in enumerate([*types] * rows, start=1))
        return ", ".join([f"({', '.join(islice(places, len(types)))})" for _ in range(rows)])

    async def list_all_turns(self, session_id: UUID, after: UUID | None, limit: int) -> list[Turn]:
        """Every turn of a session, siblings too, oldest first."""
        behind, args = ("AND turn.id > {} ", [after]) if after is not None else ("", [])
        return await self._turns(
            f"WHERE turn.session_id = {{}} {behind}ORDER BY turn.id LIMIT {{}}", session_id, *args, limit
        )

    async def renew_leases(self, turn_ids: Sequence[UUID], worker: UUID, now: datetime, until: datetime) -> None:
        """Extend the leases of turns a worker runs; a lapsed one is lost for good."""
        if not turn_ids:
            return
        await Turn.raw(
            "UPDATE turn SET lease_until = {} WHERE id IN (SELECT id FROM turn "  # noqa: S608
            f"WHERE id IN ({_marks(turn_ids)}) AND state = 'running' AND lease_owner = {{}} AND lease_until > {{}} "
            f"ORDER BY id{' FOR UPDATE' if self._postgres else ''})",
            until,
            *turn_ids,
            worker,
            now,
        )

    async def end_leases(self, workers: Sequence[UUID], now: datetime) -> None:
        """Let the leases of dead workers lapse at once: of their turns, and of the moves they ran."""
        await Turn.raw(
            "UPDATE turn SET lease_until = {} WHERE id IN (SELECT id FROM turn "  # noqa: S608
            f"WHERE state = 'running' AND lease_owner IN ({_marks(workers)}) AND lease_until > {{}} "
            f"ORDER BY id{' FOR UPDATE' if self._postgres else ''})",
            now,
            *workers,
            now,
        )
        await ModelMove.update({ModelMove.lease_until: now}).where(
            ModelMove.state == "running", ModelMove.lease_owner.is_in(list(workers))
        )

    async def list_held_turns(
        self, turn_ids: Sequence[UUID], worker: UUID, now: datetime, *, lock: bool = True
    ) -> set[UUID]:
        """Those of `turn_ids` that `worker` may still write to; with `lock` nobody ends them until commit."""
        rows = await Turn.raw(
            f"SELECT id FROM turn WHERE id IN ({_marks(turn_ids)}) "  # noqa: S608
            # In one order, as the leases are renewed: two that lock several turns must not wait for each other.
            "AND state = 'running' AND lease_owner = {} AND lease_until > {} ORDER BY id"
            + (" FOR NO KEY UPDATE" if lock and self._postgres else ""),
            *turn_ids,
            worker,
            now,
        )
        return {row["id"] for row in rows}

    async def add_pieces(self, pieces: Sequence[Piece], now: datetime) -> None:
        """Append text to running turns."""
        values = ", ".join(["({}, {}, {}, {})"] * len(pieces))
        await TurnPiece.raw(
            # Again after a commit whose acknowledgement was lost: the same place, the same text or more of it.
            f"INSERT INTO turn_piece (turn_id, reasoning, start, text) VALUES {values} "  # noqa: S608
            "ON CONFLICT (turn_id, reasoning, start) DO UPDATE SET text = excluded.text",
            *(value for piece in pieces for value in (piece.turn_id, piece.reasoning, piece.start, piece.text)),
        )
        replying = {piece.turn_id for piece in pieces if not (piece.start or piece.reasoning)}
        thinking = {piece.turn_id for piece in pieces if piece.reasoning and not piece.start} - replying
        # Each row once: of one that is written twice PostgreSQL locks the session too, which comes before turns.
        if replying:
            await Turn.raw(
                "UPDATE turn SET first_text_at = COALESCE(first_text_at, {}), first_reply_at = {} "  # noqa: S608
                f"WHERE id IN ({_marks([*replying])}) AND first_reply_at IS NULL",
                now,
                now,
                *replying,
            )
        if thinking:
            begun = Turn.update({Turn.first_text_at: now}).where(Turn.id.is_in([*thinking]))
            await begun.where(Turn.first_text_at.is_null())

    async def list_pieces(
        self, turn_id: UUID, end_after: int = 0, limit: int = 1000, *, reasoning: bool = False
    ) -> list[tuple[int, str]]:
        """(start, text) of the reply, or of the reasoning, from the piece that holds the character `end_after` on."""
        rows = await TurnPiece.raw(
            "SELECT start, text FROM turn_piece WHERE turn_id = {} AND reasoning = {} AND start >= COALESCE("
            "(SELECT MAX(start) FROM turn_piece WHERE turn_id = {} AND reasoning = {} AND start <= {}), 0) "
            "ORDER BY start LIMIT {}",
            turn_id,
            reasoning,
            turn_id,
            reasoning,
            end_after,
            limit,
        )
        return [(row["start"], row["text"]) for row in rows]

    async def text_of(self, turn_id: UUID) -> Written:
        """The whole text of a running turn so far."""
        # Joined where it lies: a row for each of very many pieces would weigh a hundred times what the text does.
        joined = "STRING_AGG(text, '' ORDER BY start)" if self._postgres else "GROUP_CONCAT(text, '')"
        reply, reasoning = (
            f"(SELECT {joined} FROM (SELECT start, text FROM turn_piece "  # noqa: S608
            f"WHERE turn_id = {{}} AND reasoning = {of} ORDER BY start) AS pieces)"
            for of in ("FALSE", "TRUE")
        )
        (row,) = await TurnPiece.raw(f"SELECT {reply} AS reply, {reasoning} AS reasoning", turn_id, turn_id)
        return Written(row["reply"] or "", row["reasoning"] or "")

    async def delete_pieces(self, turn_id: UUID) -> None:
        await TurnPiece.delete().where(TurnPiece.turn_id == turn_id)

    # ------------------------------------------------------------ what can be searched

    async def index_turn(self, turn: Turn) -> None:
        """Let a turn be found by what is said in it now."""
        await search_index.put(self.engine, [_text_of(snapshot(turn))])

    async def index_turns(self, session: Session, limit: int, characters: int) -> None:
        """Let some more turns of a session that is locked be found, from the one behind `indexed_to` on."""
        rows = await Turn.raw(
            "SELECT id, session_id, owner_id, prompt, reply FROM turn WHERE session_id = {} AND id > {} "
            "ORDER BY id LIMIT {}",
            session.id,
            session.indexed_to,
            limit,
        )
        told = [_text_of(row) for row in rows]
        some = told[: 1 + bisect(list(accumulate(len(text) for *_, text in told)), characters)]
        if some:
            await search_index.put(self.engine, some)
        over = len(some) == len(rows) < limit
        await self.update(session, indexed_to=None if over else some[-1][1])

    async def list_sessions_to_index(self, limit: int) -> list[UUID]:
        """Those that hold turns which are not found yet."""
        rows = await Session.raw("SELECT id FROM session WHERE indexed_to IS NOT NULL ORDER BY id LIMIT {}", limit)
        return [row["id"] for row in rows]

    async def index_title(self, session: Session) -> None:
        """Let a session be found by the title given by hand, and no longer by the one before."""
        await Said.delete().where(Said.session_id == session.id, Said.turn_id.is_null())
        if session.title:
            await search_index.put(self.engine, [(session.id, None, session.owner_id, session.title)])

    async def find_reindexing(self) -> UUID | None:
        """The session up to which the index has been built anew; None once all of it has."""
        rows = await Reindexing.select(Reindexing.after_session).where(Reindexing.name == "search")
        return rows[0]["after_session"] if rows else None

    async def list_session_ids(self, after: UUID, limit: int) -> list[UUID]:
        rows = await Session.raw("SELECT id FROM session WHERE id > {} ORDER BY id LIMIT {}", after, limit)
        return [row["id"] for row in rows]

    async def reindex_to(self, session_id: UUID | None) -> None:
        """Note how far the index has been built anew; None once all of it has."""
        if session_id is None:
            await Reindexing.delete().where(Reindexing.name == "search")
        else:
            await Reindexing.update({Reindexing.after_session: session_id}).where(
                Reindexing.name == "search", Reindexing.after_session < session_id
            )

    async def renew_title(self, session: Session) -> None:
        """Let a session be found by the words of its title as they are made today."""
        await search_index.renew_title(self.engine, session.id, session.owner_id, session.title)

    async def list_hits(self, asked: Asked, owner_id: UUID, before: int, limit: int) -> list[search_index.Hit]:
        """Where one owner's turns and titles hold every word, the newest first, of those numbered below `before`."""
        return await search_index.find(self.engine, asked, owner_id, before, limit)

    async def find_hit(self, id: UUID, owner_id: UUID) -> int | None:
        """The number of one owner's turn, or of a session's title, in the index."""
        rows = await Said.raw(
            "SELECT no FROM said WHERE turn_id = {} AND owner_id = {} UNION ALL "
            "SELECT no FROM said WHERE session_id = {} AND turn_id IS NULL AND owner_id = {}",
            id,
            owner_id,
            id,
            owner_id,
        )
        return int(rows[0]["no"]) if rows else None

    async def has_later_hit(self, asked: Asked, session_id: UUID, after: int) -> bool:
        return await search_index.holds_later(self.engine, asked, session_id, after)

    async def list_texts(self, turn_ids: Sequence[UUID], characters: int) -> dict[UUID, tuple[str, str]]:
        """{turn: its prompt and its reply, each so far}; the reply is empty while it runs."""
        if not turn_ids:
            return {}
        rows = await Turn.raw(
            "SELECT id, SUBSTR(prompt, 1, {}) AS prompt, SUBSTR(COALESCE(reply, ''), 1, {}) AS reply "  # noqa: S608
            f"FROM turn WHERE id IN ({_marks(turn_ids)})",
            characters,
            characters,
            *turn_ids,
        )
        return {row["id"]: (row["prompt"], row["reply"]) for row in rows}

    # ------------------------------------------------------------ drafts

    async def find_draft(self, session_id: UUID) -> str:
        """What was typed in a session and not sent; empty for nothing."""
        found = await self._object(Draft, Draft.session_id == session_id)
        return found.text if found is not None else ""

    async def keep_draft(self, session_id: UUID, text: str, now: datetime) -> None:
        await Draft.raw(
            "INSERT INTO draft (session_id, text, saved_at) VALUES ({}, {}, {}) ON CONFLICT (session_id) "
            "DO UPDATE SET text = excluded.text, saved_at = excluded.saved_at",
            session_id,
            text,
            now,
        )

    async def drop_draft(self, session_id: UUID) -> None:
        await Draft.delete().where(Draft.session_id == session_id)

    # ------------------------------------------------------------ idempotency and journal

    async def claim_key(self, row: Idempotency, forgotten: datetime) -> Idempotency | None:
        """Reserve a key until commit; the row that holds it since `forgotten`, or None when it is ours now."""
        claimed = await Idempotency.raw(
            "INSERT INTO idempotency (actor_id, verb, key, fingerprint, answer, created_at) "
            "VALUES ({}, {}, {}, {}, '', {}) ON CONFLICT (actor_id, verb, key) DO UPDATE SET "
            "fingerprint = excluded.fingerprint, answer = '', created_at = excluded.created_at "
            "WHERE idempotency.created_at < {} RETURNING key",
            row.actor_id,
            row.verb,
            row.key,
            row.fingerprint,
            row.created_at,
            forgotten,
        )
        if claimed:
            return None
        return await self._object(
            Idempotency,
            Idempotency.actor_id == row.actor_id,
            Idempotency.verb == row.verb,
            Idempotency.key == row.key,
        )

    async def answer_key(self, row: Idempotency, answer: str) -> None:
        await Idempotency.update({Idempotency.answer: answer}).where(
            Idempotency.actor_id == row.actor_id, Idempotency.verb == row.verb, Idempotency.key == row.key
        )

    async def find_key(self, actor_id: UUID, verb: str, key: str, since: datetime) -> Idempotency | None:
        """A key with its answer, where something was done under it since."""
        return await self._object(
            Idempotency,
            Idempotency.actor_id == actor_id,
            Idempotency.verb == verb,
            Idempotency.key == key,
            Idempotency.created_at >= since,
        )

    async def delete_spent(self, now_us: int, now: datetime, keys_before: datetime, limit: int) -> int:
        """Drop rates that are whole again, logins that have ended and old keys, each in a transaction of its own.

        Returns how many there were of the kind that had most, at most `limit`.
        """
        kinds: tuple[tuple[type[Table], str, Any], ...] = (
            (RateBucket, "tat_us <= {}", now_us),
            (Login, "expires_at <= {}", now),
            (Idempotency, "created_at < {}", keys_before),
        )
        most = 0
        for table, condition, value in kinds:
            gone = await table.raw(self._taking(table, condition, "1 AS one"), value, limit)
            most = max(most, len(gone))
        return most

    def _taking(self, table: type[Table], condition: str, returning: str) -> str:
        """A statement that takes away some rows of a kind; two at once take different ones."""
        name = table._meta.tablename
        # By where a row lies: PostgreSQL would look through the whole table for a list of keys.
        these = f"rowid IN (SELECT rowid FROM {name} WHERE {condition} LIMIT {{}})"  # noqa: S608
        if self._postgres:
            some = f"SELECT ctid FROM {name} WHERE {condition} LIMIT {{}} FOR UPDATE SKIP LOCKED"  # noqa: S608
            these = f"ctid = ANY(ARRAY({some}))"
        return f"DELETE FROM {name} WHERE {these} RETURNING {returning}"  # noqa: S608

    async def find_render_timeouts(self, digests: Sequence[str]) -> set[str]:
        """Which of these texts took too long to render."""
        found: set[str] = set()
        for start in range(0, len(digests), LOOKED_DIGESTS):
            some = digests[start : start + LOOKED_DIGESTS]
            rows = await RenderTimeout.select(RenderTimeout.digest).where(RenderTimeout.digest.is_in(list(some)))
            found |= {row["digest"] for row in rows}
        return found

    async def add_render_timeout(self, digest: str, at: datetime) -> None:
        """Remember a text that took too long to render; another process may have done so already."""
        await RenderTimeout.raw(
            "INSERT INTO render_timeout (digest, created_at) VALUES ({}, {}) ON CONFLICT (digest) DO NOTHING",
            digest,
            at,
        )

    async def delete_render_timeouts(self, keep: int, limit: int) -> int:
        """Forget the oldest of more than `keep` texts that took too long; how many of them, at most `limit`."""
        rows = await RenderTimeout.raw(
            "DELETE FROM render_timeout WHERE digest IN (SELECT digest FROM render_timeout "
            "WHERE created_at < (SELECT created_at FROM render_timeout ORDER BY created_at DESC LIMIT 1 OFFSET {}) "
            "LIMIT {}) RETURNING 1 AS one",
            keep - 1,
            limit,
        )
        return len(rows)

    async def is_leased_beyond(self, until: datetime) -> bool:
        """Whether a turn or a move is leased for longer."""
        rows = await Turn.raw(
            "SELECT 1 AS one WHERE EXISTS (SELECT 1 FROM turn WHERE state = 'running' AND lease_until > {}) "
            "OR EXISTS (SELECT 1 FROM model_move WHERE state = 'running' AND lease_until > {})",
            until,
            until,
        )
        return bool(rows)

    async def shorten_leases(self, beyond: datetime, until: datetime) -> None:
        """Let the leases of turns and moves that reach beyond a time end earlier."""
        for name in ("turn", "model_move"):
            await Turn.raw(
                f"UPDATE {name} SET lease_until = {{}} WHERE id IN (SELECT id FROM {name} "  # noqa: S608
                f"WHERE state = 'running' AND lease_until > {{}} ORDER BY id{' FOR UPDATE' if self._postgres else ''})",
                until,
                beyond,
            )

    async def shorten_rates(self, fullest_us: Mapping[str, int], limit: int = 1000) -> int:
        """Let buckets of rates ({name: how far one can reach}) that reach further end there. Returns how many."""
        shortened = 0
        for name, us in fullest_us.items():
            beyond = "SELECT key FROM rate_bucket WHERE tat_us > {} AND key LIKE {} LIMIT {}"
            # Looked for first: a statement that writes has to wait for its turn on SQLite.
            if rows := await RateBucket.raw(beyond, us, f"{name}:%", limit):
                keys = [row["key"] for row in rows]
                await RateBucket.raw(
                    f"UPDATE rate_bucket SET tat_us = {{}} WHERE tat_us > {{}} AND key IN ({_marks(keys)})",  # noqa: S608
                    us,
                    us,
                    *keys,
                )
            shortened += len(rows)
        return shortened

    async def record(self, what: str, actor: Any, at: datetime, **facts: Any) -> None:
        """Write one decision into the journal: past tense, who (an Actor), when, and columns of `Journal`."""
        await self.add(
            Journal(
                id=new_id(),
                at=at,
                actor_kind=actor.kind,
                actor_id=actor.token_id or actor.id,
                actor_name=actor.name,
                on_behalf_of=actor.id if actor.token_id is not None else None,
                request_id=actor.request_id,
                what=what,
                **facts,
            )
        )

    async def count_refusal(self, code: str, actor: Any, minute: datetime) -> int:
        """Count one refusal of an actor's; how many there are in this minute now."""
        rows = await RefusalCount.raw(
            "INSERT INTO refusal (rate_key, code, minute, times, actor_kind, actor_id, actor_name) "
            "VALUES ({}, {}, {}, 1, {}, {}, {}) "
            "ON CONFLICT (rate_key, code, minute) DO UPDATE SET times = refusal.times + 1 RETURNING times",
            actor.rate_key,
            code,
            minute,
            actor.kind,
            actor.id,
            actor.name,
        )
        return int(rows[0]["times"])

    async def take_refusals_before(self, minute: datetime, limit: int) -> list[RefusalCount]:
        """Take away the counts of minutes that are over."""
        columns = ", ".join(column._meta.name for column in RefusalCount._meta.columns)
        return await self._rows(RefusalCount, self._taking(RefusalCount, "minute < {}", columns), minute, limit)

    async def list_journal(self, session_id: UUID, limit: int = 200) -> list[Journal]:
        """A session's decisions, newest first."""
        return await (
            Journal.objects().where(Journal.session_id == session_id).order_by(Journal.id, ascending=False).limit(limit)
        )

    async def list_decisions(
        self,
        *,
        limit: int,
        before: UUID | None = None,
        after: UUID | None = None,
        account_id: UUID | None = None,
        session_id: UUID | None = None,
        what: str = "",
        refused: bool | None = None,
    ) -> list[Journal]:
        """The whole journal, newest first, between two ids; `account_id`: what it did and what concerns it."""
        where, args = ["1 = 1"], []
        for condition, value in (
            ("id < {}", before),
            ("id >= {}", after),
            ("session_id = {}", session_id),
            ("what = {}", what),
        ):
            if value:
                where.append(condition)
                args.append(value)
        if refused is not None:
            where.append(f"what {'' if refused else 'NOT '}IN ('refused', 'refusals_counted')")
        newest = "ORDER BY id DESC LIMIT {}"
        if account_id is None:
            told = f"SELECT {_columns(Journal)} FROM journal WHERE {' AND '.join(where)} {newest}"  # noqa: S608
            return await self._rows(Journal, told, *args, limit)
        # One look at each index, none of them longer than the answer.
        said = " AND ".join(where)
        parts = " UNION ".join(
            f"SELECT id FROM (SELECT id FROM journal WHERE {said} AND {column} = {{}} {newest}) AS {name}"  # noqa: S608
            for column, name in (("owner_id", "about"), ("actor_id", "by_it"), ("on_behalf_of", "for_it"))
        )
        told = f"SELECT {_columns(Journal)} FROM journal WHERE id IN ({parts}) {newest}"  # noqa: S608
        return await self._rows(Journal, told, *([*args, account_id, limit] * 3), limit)

    async def list_account_decisions(
        self, account_id: UUID, limit: int, *, before: UUID | None = None
    ) -> tuple[list[Journal], UUID | None]:
        """What was done to an account itself, newest first, and the id behind which there is more.

        One look goes through a bounded part of what concerns the account; of the rest the next one tells.
        """
        behind, args = ("AND id < {}", [account_id, before]) if before is not None else ("", [account_id])
        newest = f"FROM journal WHERE owner_id = {{}} {behind} ORDER BY id DESC LIMIT {{}}"
        rows = await self._rows(
            Journal,
            f"SELECT {_columns(Journal)} FROM journal WHERE id IN (SELECT id FROM "  # noqa: S608
            f"(SELECT id, what, session_id, reason, from_value {newest}) AS lately "
            f"WHERE session_id IS NULL AND {_OF_ACCOUNTS}) ORDER BY id DESC LIMIT {{}}",
            *args,
            LOOKED_ROWS,
            limit + 1,
        )
        if len(rows) > limit:
            return rows[:limit], rows[limit - 1].id
        last = await Journal.raw(f"SELECT id {newest} OFFSET {{}}", *args, 1, LOOKED_ROWS - 1)
        return rows, last[0]["id"] if last else None

    async def list_kinds_of_decisions(self) -> list[str]:
        """Every word for a decision that stands in the journal; one look at the index for each."""
        rows = await Journal.raw(
            "WITH RECURSIVE kind (what) AS (SELECT MIN(what) FROM journal UNION ALL "
            "SELECT (SELECT MIN(journal.what) FROM journal WHERE journal.what > kind.what) FROM kind "
            "WHERE kind.what IS NOT NULL) SELECT what FROM kind WHERE what IS NOT NULL"
        )
        return [row["what"] for row in rows]

    async def list_switches(self, session_id: UUID, limit: int) -> list[Journal]:
        """The last decisions about a session's model, oldest first: its switches, and before them its first model."""
        rows = await self._rows(
            Journal,
            f"SELECT {_columns(Journal)} FROM journal WHERE session_id = {{}} AND what = 'model_switched' "  # noqa: S608
            "ORDER BY version DESC LIMIT {}",
            session_id,
            limit,
        )
        if len(rows) < limit:
            first = f"SELECT {_columns(Journal)} FROM journal WHERE session_id = {{}} "  # noqa: S608
            rows += await self._rows(Journal, f"{first} AND what = 'model_chosen' LIMIT 1", session_id)
        return rows[::-1]

    async def list_last_switches(self, session_ids: Sequence[UUID]) -> dict[UUID, Journal]:
        """{session id: the decision that put it on its model}."""
        if not session_ids:
            return {}
        rows = await self._rows(
            Journal,
            # One look at each index for a session, however often its model was switched.
            f"SELECT {_columns(Journal)} FROM journal WHERE id IN (SELECT COALESCE((SELECT one.id FROM journal AS one "  # noqa: S608
            "WHERE one.session_id = session.id AND one.what = 'model_switched' ORDER BY one.version DESC LIMIT 1), "
            "(SELECT one.id FROM journal AS one WHERE one.session_id = session.id AND one.what = 'model_chosen' "
            f"LIMIT 1)) FROM session WHERE session.id IN ({_marks(session_ids)}))",
            *session_ids,
        )
        return {row.session_id: row for row in rows}

    async def list_last_decisions(self, what: str, session_ids: Sequence[UUID]) -> dict[UUID, Journal]:
        """{session id: the last decision of this kind about it}."""
        if not session_ids:
            return {}
        rows = await self._rows(
            Journal,
            f"SELECT {_columns(Journal)} FROM journal WHERE id IN (SELECT (SELECT one.id FROM journal AS one "  # noqa: S608
            "WHERE one.session_id = session.id AND one.what = {} ORDER BY one.id DESC LIMIT 1) "
            f"FROM session WHERE session.id IN ({_marks(session_ids)}))",
            what,
            *session_ids,
        )
        return {row.session_id: row for row in rows}

    # ------------------------------------------------------------ governance and moves

    async def drop_rule(self, row: Model | AccountGroup | LimitRule) -> None:
        """Take away a model, a group or a limit by its key."""
        if isinstance(row, Model):
            await Model.delete().where(Model.id == row.id)
        elif isinstance(row, AccountGroup):
            await AccountGroup.delete().where(AccountGroup.name == row.name)
        else:
            await LimitRule.delete().where(LimitRule.group_name == row.group_name, LimitRule.name == row.name)

    async def list_rule_changes(self, limit: int, *, of_state: bool = False) -> list[Journal]:
        """What was decided about models, groups, limits and moves, newest first; `of_state`: about a model's state."""
        told = "what = 'model_changed' AND to_value LIKE '%: state %'"
        if not of_state:
            told = (
                "what IN ('model_changed', 'group_changed', 'limit_changed', "
                "'move_ordered', 'move_stopped', 'move_ended')"
            )
        return await self._rows(
            Journal,
            f"SELECT {_columns(Journal)} FROM journal WHERE session_id IS NULL AND {told} ORDER BY id DESC LIMIT {{}}",  # noqa: S608
            limit,
        )

    async def count_sessions_on(
        self, model: str, ends: "Ends", now: datetime, open_to: Sequence[str]
    ) -> tuple[int, int, int, int]:
        """Live sessions on a model; of them with a running turn, locked, and with an owner outside `open_to`.

        Nobody is outside of no groups at all.
        """
        over, args = _over(ends, now)
        outside = f"account.group_name NOT IN ({_marks(open_to)})" if open_to else "1 = 0"
        (row,) = await Session.raw(
            "SELECT COUNT(*) AS total, "  # noqa: S608
            "COALESCE(SUM(CASE WHEN EXISTS (SELECT 1 FROM turn WHERE turn.session_id = session.id "
            "AND turn.state = 'running' AND turn.lease_until > {}) THEN 1 ELSE 0 END), 0) AS running, "
            "COALESCE(SUM(CASE WHEN session.locked THEN 1 ELSE 0 END), 0) AS locked, "
            f"COALESCE(SUM(CASE WHEN {outside} THEN 1 ELSE 0 END), 0) AS outside "
            "FROM session JOIN account ON account.id = session.owner_id "
            f"WHERE session.last_model = {{}} AND {_OPEN} AND NOT ({over})",
            now,
            *open_to,
            model,
            *args,
        )
        return int(row["total"]), int(row["running"]), int(row["locked"]), int(row["outside"])

    async def list_sessions_on(
        self, model: str, ends: "Ends", now: datetime, after: UUID | None, limit: int
    ) -> list[Session]:
        """Live sessions on a model, in the order of their ids."""
        over, args = _over(ends, now)
        return await self._rows(
            Session,
            f"SELECT {_columns(Session)} FROM session JOIN account ON account.id = session.owner_id "  # noqa: S608
            f"WHERE session.last_model = {{}} AND {_OPEN} AND NOT ({over}) "
            f"{'AND session.id > {} ' if after is not None else ''}ORDER BY session.id LIMIT {{}}",
            model,
            *args,
            *([after] if after is not None else []),
            limit,
        )

    async def find_move(self, move_id: UUID, *, lock: bool = False) -> ModelMove | None:
        return await self._object(ModelMove, ModelMove.id == move_id, lock=lock)

    async def list_moves(self, limit: int, *, state: str = "") -> list[ModelMove]:
        """Orders to move sessions, newest first."""
        query = ModelMove.objects().order_by(ModelMove.id, ascending=False).limit(limit)
        return await (query.where(ModelMove.state == state) if state else query)

    async def claim_move(self, worker: UUID, now: datetime, until: datetime, *, alone: bool = False) -> UUID | None:
        """Lease the oldest running move that nobody holds; `alone`: or that another process held."""
        rows = await ModelMove.raw(
            "UPDATE model_move SET lease_owner = {}, lease_until = {} WHERE id = ("  # noqa: S608
            "SELECT id FROM model_move WHERE state = 'running' AND (lease_until IS NULL OR lease_until <= {}"
            f"{' OR lease_owner <> {}' if alone else ''}) "
            f"ORDER BY id LIMIT 1{' FOR UPDATE SKIP LOCKED' if self._postgres else ''}) RETURNING id",
            worker,
            until,
            now,
            *([worker] if alone else []),
        )
        return rows[0]["id"] if rows else None

    async def renew_move(self, move_id: UUID, worker: UUID, until: datetime) -> None:
        """Move the end of the lease of a move that `worker` holds."""
        await ModelMove.update({ModelMove.lease_until: until}).where(
            ModelMove.id == move_id, ModelMove.lease_owner == worker, ModelMove.state == "running"
        )


#: a condition on journal: it tells of an account itself, and not of what its owner does or is refused
_OF_ACCOUNTS = (
    "(what IN ('account_created', 'account_changed', 'account_disabled', 'account_enabled', 'password_changed', "
    "'login_revoked', 'signed_in', 'signed_out', 'token_created', 'token_revoked') "
    "OR (what = 'refused' AND reason IN ('sign_in', 'replace_password', 'change_password')) "
    "OR (what = 'refusals_counted' AND from_value LIKE 'address:%'))"
)
#: where a session stands in a list: what the list is sorted by, and its id
Place = tuple[Any, UUID]
#: {group: (active before, created before)} that make a session of the group over; "" for every other group
Ends = Mapping[str, tuple[datetime | None, datetime | None]]


def _over(ends: Ends, now: datetime) -> tuple[str, list[Any]]:
    """A condition on session and account: its end has passed."""
    conditions: list[str] = ["(session.expires_at IS NOT NULL AND session.expires_at <= {})"]
    args: list[Any] = [now]
    named = [group for group in ends if group]
    for group, (active_before, created_before) in ends.items():
        whose = "account.group_name = {}" if group else f"account.group_name NOT IN ({_marks(named)})"
        for column, before in (("last_activity_at", active_before), ("created_at", created_before)):
            if before is not None:
                conditions.append(f"({whose} AND session.{column} <= {{}})")
                args += [*([group] if group else named), before]
    return " OR ".join(conditions), args


def _alike(ends: Ends, now: datetime, state: str, model: str, group: str) -> tuple[list[str], list[Any]]:
    """Conditions on session and account: what a list was asked for."""
    where, args = list[str](), list[Any]()
    for condition, value in (
        # COALESCE, so that no index of models is taken: the order of the list is what bounds it.
        ("COALESCE(session.last_model, '') = {}", model),
        ("account.group_name = {}", group),
    ):
        if value:
            where.append(condition)
            args.append(value)
    if state == "closed":
        where.append("session.state = 'closed'")
    elif state:
        over, ended = _over(ends, now)
        where.append(f"session.state <> 'closed' AND {'' if state == 'expired' else 'NOT '}({over})")
        args += ended
    return where, args


def _text_of(turn: Mapping[str, Any]) -> search_index.Text:
    """What the index is told of a turn's columns."""
    text = search_index.text_of(turn["prompt"], turn["reply"])
    return turn["session_id"], turn["id"], turn["owner_id"], text


def _columns(table: type[Table]) -> str:
    """The columns of a table that this program knows; a later one may have added others to it."""
    return ", ".join(f"{table._meta.tablename}.{column._meta.name}" for column in table._meta.columns)


def _pairs(table: type[Table]) -> str:
    """A row as the arguments of a function that makes a JSON object."""
    names = [column._meta.name for column in table._meta.columns]
    return ", ".join(f"'{name}', {name}" for name in names)


def _living(now: datetime, used_after: datetime) -> tuple[Any, ...]:
    """A condition on login: neither revoked nor over, by age or for want of use."""
    return Login.revoked_at.is_null(), Login.expires_at > now, Login.last_used_at > used_after


def _begins_last(reasoning: str) -> str:
    """Where the last piece of the reply, or of the reasoning, of a turn begins; 0 where there is none."""
    newest = "SELECT MAX(start) FROM turn_piece WHERE turn_piece.turn_id = turn.id AND turn_piece.reasoning"
    return f"COALESCE(({newest} = {reasoning}), 0)"


def _marks(values: Sequence[Any]) -> str:
    return ", ".join(["{}"] * len(values))


def _escaped(text: str) -> str:
    return text.replace("!", "!!").replace("%", "!%").replace("_", "!_")


def changes_between(before: Mapping[str, Any], row: Table) -> dict[str, Any]:
    """The columns of `row` that differ from the snapshot `before`."""
    return {name: value for name, old in before.items() if (value := getattr(row, name)) != old}


def snapshot(row: Table) -> dict[str, Any]:
    """The columns of a row as they are now."""
    return {column._meta.name: getattr(row, column._meta.name) for column in row.all_columns()}
