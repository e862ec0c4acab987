"""URL → engine: SQLite with one fair writer, PostgreSQL with a pool; both safe to cancel.

Piccolo's own engines open a connection per query (SQLite) or leak one when a transaction is cancelled (PostgreSQL).
These keep its queries and migrations and replace only how connections are held:

- A transaction belongs to the task that opened it. Child tasks inherit the context variable but not the transaction.
- Commit or rollback, release, and the after-commit callbacks are one shielded step: a cancelled caller leaves
  nothing half done.
- Driver errors leave here as `DatabaseUnavailable` or `Conflict`.
"""

import asyncio
import fcntl
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any
from urllib.parse import unquote, urlsplit

import aiosqlite
import asyncpg
from piccolo.apps.migrations.tables import Migration
from piccolo.engine.postgres import PostgresEngine
from piccolo.engine.sqlite import SQLiteEngine, dict_factory
from piccolo.querystring import QueryString
from piccolo.table import Table

from db import piccolo_conf
from db.private import make_database, tighten_database
from db.tables import TABLES
from db.whole import whole

log = logging.getLogger(__name__)

#: how long a writer waits for another process's transaction before it gives up
BUSY_SECONDS = 10.0
#: how long one statement may take on PostgreSQL, and how long one of a migration, or the wait for another process's
COMMAND_SECONDS, MIGRATION_SECONDS = 30.0, 86_400.0
#: how long one look at SQLite's write lock lasts; SQLite looks again after 1, 2, 5, 10 … 100 ms
LOOK_MS = 5
SQLITE_READERS = 3
POSTGRES_CONNECTIONS = 10
#: of them, those that only urgent transactions have
URGENT_CONNECTIONS = 2
#: Piccolo finds the engine for its migrations through this module
os.environ.setdefault("PICCOLO_CONF", "db.piccolo_conf")


class DatabaseUnavailable(Exception):
    """The database did not answer, is locked, full or read-only; what was asked did not happen."""

    #: what people are told of it
    told = "The database does not answer."


class DatabaseFull(DatabaseUnavailable):
    """There is no room on its disk."""

    told = "The database's disk is full."


class DatabaseReadOnly(DatabaseUnavailable):
    """It takes no writes: a file without the right to write, a standby, or an admin's setting."""

    told = "The database may only be read now."


class Conflict(Exception):
    """A unique key or a constraint stands against the write."""


class _Transaction:
    """A transaction of one task; nested use joins the outer one, which alone commits."""

    def __init__(self, engine: "Engine", *, urgent: bool = False) -> None:
        self.engine = engine
        #: it does not queue up behind the others
        self.urgent = urgent
        self.parent = engine.own_transaction()
        self.task = asyncio.current_task()
        self.connection: Any = None
        self.callbacks: list[Callable[[], None]] = []
        self.doubts: list[Callable[[], None]] = []

    async def __aenter__(self) -> "_Transaction":
        if self.parent is not None:
            return self.parent
        await self.begin()
        self.engine.current_transaction.set(self)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.parent is not None:
            return
        # None, not reset(token): the exit may run in another context than the entry (a cancelled generator).
        self.engine.current_transaction.set(None)
        await whole(self._end(commit=error is None))

    def after_commit(self, callback: Callable[[], None], in_doubt: Callable[[], None] | None = None) -> None:
        """Call `callback` once the outermost transaction is committed; never when it is rolled back.

        `in_doubt` is called instead where the commit failed: whether it came through, only the rows can tell.
        """
        self.callbacks.append(callback)
        if in_doubt is not None:
            self.doubts.append(in_doubt)

    async def _end(self, commit: bool) -> None:
        try:
            await self.end(commit)
        except DatabaseUnavailable:
            if commit:
                self._call(self.doubts)
            raise
        if commit:
            self._call(self.callbacks)

    def _call(self, callbacks: list[Callable[[], None]]) -> None:
        for callback in callbacks:
            try:
                callback()
            except Exception:
                log.exception("an after-commit callback failed")

    async def begin(self) -> None:
        raise NotImplementedError

    async def end(self, commit: bool) -> None:
        raise NotImplementedError

    async def run(self, sql: str, args: Sequence[Any] = ()) -> list[Any]:
        raise NotImplementedError


class _OwnTransactions:
    """The part that both engines share: whose transaction is it, and where does a statement go."""

    current_transaction: Any
    engine_type: str
    #: what transactions that are not urgent have to pass
    ordinary: asyncio.Semaphore
    transaction_class: type[_Transaction]

    async def changed_elsewhere(self) -> bool:
        """Whether another process may have committed since this was asked before; where nothing else tells of it."""
        return False

    def own_transaction(self) -> _Transaction | None:
        """The open transaction of this very task, if there is one."""
        transaction = self.current_transaction.get()
        if transaction is None or transaction.task is not asyncio.current_task():
            return None
        return transaction

    def transaction(self, *_: Any, urgent: bool = False, **__: Any) -> Any:
        """All or nothing; `urgent` for what keeps replies alive, which no crowd of others may hold up."""
        return self.transaction_class(self, urgent=urgent)  # type: ignore[arg-type]

    def transaction_exists(self) -> bool:
        return self.own_transaction() is not None

    async def run_querystring(self, querystring: QueryString, in_pool: bool = True) -> list[Any]:
        sql, args = querystring.compile_string(engine_type=self.engine_type)
        return await self.run(sql, args)

    async def run_ddl(self, ddl: str, in_pool: bool = True) -> list[Any]:
        return await self.run(ddl)

    async def run(self, sql: str, args: Sequence[Any] = ()) -> list[Any]:
        """Run one statement: in this task's transaction, or on its own."""
        if (transaction := self.own_transaction()) is not None:
            return await transaction.run(sql, args)
        return await self.run_alone(sql, args)

    async def run_alone(self, sql: str, args: Sequence[Any]) -> list[Any]:
        raise NotImplementedError


# ---------------------------------------------------------------- SQLite


class SqliteTransaction(_Transaction):
    engine: "SqliteEngine"

    async def begin(self) -> None:
        taken = False
        try:
            # One limit for all that is waited for: behind a lock that stays, nobody waits for those in front of him.
            async with asyncio.timeout(BUSY_SECONDS):
                # Only the first of the others stands at the lock, so what is urgent waits for one of them at most.
                async with nullcontext() if self.urgent else self.engine.ordinary:
                    taken = await self.engine.writing.acquire()
                self.connection = await self.engine.writer()
                async with self.engine.next_to_write():
                    while not await _sqlite(self._begun()):
                        pass
        except BaseException as error:
            if taken:
                # The BEGIN may still happen behind a cancellation: its rollback queues up after it.
                await whole(self.end(commit=False))
            if isinstance(error, TimeoutError):
                raise DatabaseUnavailable("its write lock did not come free in time") from error
            raise

    async def _begun(self) -> bool:
        """One attempt; False while another process writes."""
        try:
            await self.connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            return False
        return True

    async def run(self, sql: str, args: Sequence[Any] = ()) -> list[Any]:
        return list(await _sqlite(self.connection.execute_fetchall(sql, args)))

    async def end(self, commit: bool) -> None:
        try:
            if self.connection is None:
                return
            if commit:
                try:
                    await _sqlite(self.connection.execute("COMMIT"))
                    return
                except BaseException:
                    await self._rollback()
                    raise
            await self._rollback()
        finally:
            self.engine.writing.release()

    async def _rollback(self) -> None:
        try:
            await self.connection.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            if "no transaction is active" not in str(error):
                await self.engine.drop_writer()


class SqliteEngine(_OwnTransactions, SQLiteEngine):
    """SQLite in WAL mode: one writer behind a fair lock, a few readers, one thread hop per statement."""

    transaction_class = SqliteTransaction

    def __init__(self, path: str) -> None:
        super().__init__(path=path, timeout=BUSY_SECONDS)
        self.writing = asyncio.Lock()
        self.ordinary = asyncio.Semaphore(1)
        self._writer: aiosqlite.Connection | None = None
        self._data_version: int | None = None
        self._folder: int | None = None
        # A semaphore lets in whoever waits longest; a queue would let whoever asks again at once push in.
        self._reading = asyncio.Semaphore(SQLITE_READERS)
        self._readers: list[aiosqlite.Connection] = []

    async def changed_elsewhere(self) -> bool:
        if self._writer is None:
            return False
        # Counts what others than this connection commit, and in this process nobody else does.
        (row,) = await _sqlite(self._writer.execute_fetchall("PRAGMA data_version"))
        before, self._data_version = self._data_version, row["data_version"]
        # On a connection that is asked for the first time nobody knows.
        return before != self._data_version

    async def writer(self) -> aiosqlite.Connection:
        if self._writer is None:
            self._writer, self._data_version = await self._connect(), None
        return self._writer

    @asynccontextmanager
    async def next_to_write(self) -> AsyncIterator[None]:
        """No other process begins to write before us: a lock on the folder, held until the transaction has begun.

        SQLite has no queue: it lets in whoever asks at the right moment, so a busy process shuts the others out. Here
        it finds somebody in front of it. Only fairness depends on this lock; who writes is still SQLite's to say.
        """
        if self._folder is None:
            self._folder = _folder_of(self.path)
        try:
            while not _locked(self._folder):  # noqa: ASYNC110 - other processes cannot set an Event
                await asyncio.sleep(0.001)
            yield
        finally:
            _unlock(self._folder)

    async def drop_writer(self) -> None:
        """Forget a writer whose state is unknown; the next transaction opens another."""
        writer, self._writer = self._writer, None
        if writer is not None:
            await writer.close()

    async def _connect(self, *, readonly: bool = False) -> aiosqlite.Connection:
        async def opened() -> aiosqlite.Connection:
            connection = aiosqlite.connect(**self.connection_kwargs)
            # A process must be able to end while a connection is still open somewhere.
            connection._thread.daemon = True
            await connection
            try:
                connection.row_factory = dict_factory  # type: ignore[assignment]
                await connection.execute("PRAGMA journal_mode = WAL")
                # Safe against a killed process; a power cut may lose the last commits, never the file.
                await connection.execute("PRAGMA synchronous = NORMAL")
                await connection.execute("PRAGMA foreign_keys = ON")
                await connection.execute(f"PRAGMA query_only = {int(readonly)}")
                if not readonly:
                    await connection.execute(f"PRAGMA busy_timeout = {LOOK_MS}")
            except BaseException:
                await connection.close()
                raise
            return connection

        return await _sqlite(whole(opened(), aiosqlite.Connection.close))

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[aiosqlite.Connection]:
        async with self._reading:
            connection = self._readers.pop() if self._readers else await self._connect(readonly=True)
            try:
                yield connection
            finally:
                self._readers.append(connection)

    async def run_alone(self, sql: str, args: Sequence[Any]) -> list[Any]:
        if sql.lstrip()[:8].upper().startswith(("SELECT", "PRAGMA", "EXPLAIN", "WITH")):
            async with self._reader() as connection:
                return list(await _sqlite(connection.execute_fetchall(sql, args)))
        async with self.transaction() as transaction:
            return await transaction.run(sql, args)

    async def start(self) -> None:
        try:
            database = make_database(self.path)
        except OSError as error:
            raise DatabaseUnavailable(f"{self.path}: {error.strerror}") from error
        # It counts what others commit from now on.
        await self.writer()
        # Not before it is known to be a database: a file that was named by mistake is left as it is.
        for path in tighten_database(database):
            log.warning("%s was open to others on this machine; now only its owner may use it", path)
        await self.changed_elsewhere()

    async def stop(self) -> None:
        async with self.writing:
            await self.drop_writer()
            if self._folder is not None:
                os.close(self._folder)
                self._folder = None
            for _ in range(SQLITE_READERS):
                await self._reading.acquire()
            while self._readers:
                await self._readers.pop().close()
            for _ in range(SQLITE_READERS):
                self._reading.release()


def _folder_of(path: str) -> int:
    try:
        return os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    except OSError as error:
        raise DatabaseUnavailable(f"{path}: {error.strerror}") from error


def _locked(folder: int) -> bool:
    """One attempt; True also where the file system knows no such lock."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _unlock(folder: int) -> None:
    with suppress(OSError):
        fcntl.flock(folder, fcntl.LOCK_UN)


async def _sqlite(operation: Awaitable[Any]) -> Any:
    try:
        return await operation
    except sqlite3.IntegrityError as error:
        raise Conflict(str(error)) from error
    except (sqlite3.OperationalError, sqlite3.DatabaseError) as error:
        if _is_programming(error):
            raise
        kinds = {sqlite3.SQLITE_FULL: DatabaseFull, sqlite3.SQLITE_READONLY: DatabaseReadOnly}
        kind = kinds.get((getattr(error, "sqlite_errorcode", None) or 0) & 0xFF, DatabaseUnavailable)
        raise kind(str(error)) from error


def _is_programming(error: sqlite3.Error) -> bool:
    """A wrong statement is a bug and must stay visible as one."""
    text = str(error)
    return isinstance(error, sqlite3.ProgrammingError) or "syntax error" in text or "no such" in text


# ---------------------------------------------------------------- PostgreSQL


class PostgresTransaction(_Transaction):
    engine: "PooledPostgresEngine"
    queued = False
    #: how long one statement may take; None for as long as any other
    seconds: float | None = None

    async def begin(self) -> None:
        try:
            await self._queue()
            pool = self.pool = await self.engine.started_pool()
            self.connection = await _postgres(lambda: _acquired(pool))
            await _postgres(self._started)
        except BaseException:
            await whole(self._abandon())
            raise

    async def _queue(self) -> None:
        """Leave some connections to what is urgent."""
        if self.urgent:
            return
        try:
            async with asyncio.timeout(BUSY_SECONDS):
                self.queued = await self.engine.ordinary.acquire()
        except TimeoutError as error:
            raise DatabaseUnavailable("no connection came free in time") from error

    async def _started(self) -> None:
        self.transaction = self.connection.transaction()
        await self.transaction.start()

    async def run(self, sql: str, args: Sequence[Any] = ()) -> list[Any]:
        return await _postgres(lambda: self.connection.fetch(sql, *args, timeout=self.seconds))

    async def end(self, commit: bool) -> None:
        try:
            await _postgres(self.transaction.commit if commit else self.transaction.rollback)
        except DatabaseUnavailable:
            # A rollback on a lost connection has already happened on the other side.
            if commit:
                raise
        finally:
            await self._release()

    async def _abandon(self) -> None:
        """The BEGIN may have happened behind a cancellation: undo it before the connection goes back."""
        try:
            if self.connection is not None and self.connection.is_in_transaction():
                await _postgres(lambda: self.connection.execute("ROLLBACK"))
        except (DatabaseUnavailable, asyncpg.InterfaceError):
            pass  # a lost connection has rolled back on the other side, and the pool has it back already
        finally:
            await self._release()

    async def _release(self) -> None:
        try:
            if self.connection is not None:
                await _released(self.pool, self.connection)
        finally:
            if self.queued:
                self.queued = False
                self.engine.ordinary.release()


async def _acquired(pool: asyncpg.Pool) -> Any:
    """A connection; when the caller is cancelled meanwhile, it goes back."""
    return await whole(pool.acquire(timeout=BUSY_SECONDS), lambda connection: _released(pool, connection))


async def _released(pool: asyncpg.Pool, connection: Any) -> None:
    """Give a connection back. One that was lost the pool has dropped by then; what was done on it is done."""
    try:
        await pool.release(connection, timeout=BUSY_SECONDS)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError) as error:
        log.warning("a database connection was lost: %s", error)


class PooledPostgresEngine(_OwnTransactions, PostgresEngine):
    """PostgreSQL through one pool of connections."""

    transaction_class = PostgresTransaction

    def __init__(self, url: str) -> None:
        self._starting = asyncio.Lock()
        self._stopped = False
        self.ordinary = asyncio.Semaphore(POSTGRES_CONNECTIONS - URGENT_CONNECTIONS)
        super().__init__(config={"dsn": url, "database": None})

    async def check_version(self) -> None:
        """Piccolo would connect here, while the engine is only being made."""

    async def started_pool(self) -> asyncpg.Pool:
        async with self._starting:
            if self._stopped:
                raise DatabaseUnavailable("this process is stopping")
            if self.pool is None:
                self.pool = await _postgres(
                    lambda: asyncpg.create_pool(
                        dsn=self.config["dsn"],
                        # None is kept open for its own sake: while there is no server, the pool would try in vain.
                        min_size=0,
                        max_size=POSTGRES_CONNECTIONS,
                        timeout=BUSY_SECONDS,
                        command_timeout=COMMAND_SECONDS,
                    )
                )
        return self.pool

    async def run_alone(self, sql: str, args: Sequence[Any]) -> list[Any]:
        pool = await self.started_pool()
        if pool.get_idle_size():
            return await _postgres(lambda: pool.fetch(sql, *args))
        # A connection has to be made, which a cancelled caller must not leave half done.
        connection = await _postgres(lambda: _acquired(pool))
        try:
            return await _postgres(lambda: connection.fetch(sql, *args))
        finally:
            await _released(pool, connection)

    async def start(self) -> None:
        self._stopped = False
        await self.run("SELECT 1")

    async def stop(self) -> None:
        self._stopped = True
        pool, self.pool = self.pool, None
        if pool is not None:
            try:
                async with asyncio.timeout(BUSY_SECONDS):
                    await pool.close()
            except TimeoutError:
                pool.terminate()


async def _postgres(operation: Callable[[], Awaitable[Any]]) -> Any:
    """Not an awaitable: what the pool has taken back fails where its method is looked up."""
    try:
        return await operation()
    except asyncpg.IntegrityConstraintViolationError as error:
        raise Conflict(str(error)) from error
    except (
        asyncpg.PostgresConnectionError,
        asyncpg.OperatorInterventionError,
        asyncpg.InsufficientResourcesError,
        asyncpg.TransactionRollbackError,
        asyncpg.ReadOnlySQLTransactionError,
        asyncpg.QueryCanceledError,
        asyncpg.LockNotAvailableError,
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InvalidCatalogNameError,
        asyncpg.PostgresSystemError,
        asyncpg.InternalServerError,
        # Another process has changed the schema under a prepared statement; the next one is prepared anew.
        asyncpg.InvalidCachedStatementError,
        asyncpg.InterfaceError,
        # A connection that broke in the middle of something.
        asyncpg.InternalClientError,
        OSError,
        TimeoutError,
    ) as error:
        kinds = {asyncpg.DiskFullError: DatabaseFull, asyncpg.ReadOnlySQLTransactionError: DatabaseReadOnly}
        raise kinds.get(type(error), DatabaseUnavailable)(str(error) or "it did not answer in time") from error


# ---------------------------------------------------------------- either

Engine = SqliteEngine | PooledPostgresEngine


def open_engine(url: str) -> Engine:
    """Make the engine for `url` and bind the tables to it; `sqlite:///relative`, `sqlite:////absolute`, `postgresql://…`."""
    engine: Engine
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        engine = SqliteEngine(unquote(parts.path)[1:])
    elif parts.scheme in ("postgresql", "postgres"):
        engine = PooledPostgresEngine(url)
    else:
        raise ValueError(f"the database URL must begin with sqlite:/// or postgresql://, not {parts.scheme!r}")
    piccolo_conf.DB = engine  # type: ignore[attr-defined]
    tables: tuple[type[Table], ...] = (*TABLES, Migration)
    for table in tables:
        table._meta._db = engine
    return engine


async def migrate(engine: Engine) -> list[str]:
    """Bring the schema up to date, also when several start at once; the migrations that ran. Raises WrongSchema."""
    from db import schema  # which needs the engines

    return await schema.migrate(engine)
