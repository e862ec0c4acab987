"""A verb's transaction: all or nothing, one effect for each idempotency key, a refusal noted once it is undone."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime

from db.db_session import DatabaseUnavailable, DbSession
from services import rates, refusals
from services.actor import SYSTEM, Actor
from services.errors import LimitReached, Refusal, StorageUnavailable
from services.idempotency import Once


class UnitOfWork:
    """Opens the transactions of verbs; a verb inside a verb joins, and the outermost answers for both."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.now = now

    @asynccontextmanager
    async def refusing(self, verb: str, actor: Actor, db_session: DbSession) -> AsyncIterator[None]:
        """Note what is refused in here, once it is undone; a verb inside another verb leaves that to it."""
        outermost = not db_session.in_transaction
        try:
            yield
        except Refusal as refusal:
            if outermost:
                await self._shorten(refusal, db_session)
                await refusals.note(refusal, verb, actor, self.now(), db_session)
            raise

    async def _shorten(self, refusal: Refusal, db_session: DbSession) -> None:
        """Put right the rates that a wrong clock had filled. Where even that fails, the next caller finds them so."""
        if isinstance(refusal, LimitReached) and refusal.ahead:
            with suppress(DatabaseUnavailable):
                async with db_session.transaction():
                    await rates.shorten(refusal.ahead, self.now(), db_session)

    @asynccontextmanager
    async def writing(self, db_session: DbSession, *, actor: Actor = SYSTEM, verb: str = "") -> AsyncIterator[None]:
        """All or nothing; what is done under a login keeps it alive. Raises StorageUnavailable."""
        outermost = not db_session.in_transaction
        async with self.refusing(verb, actor, db_session):
            try:
                async with db_session.transaction():
                    yield
                    if outermost and actor.login_id is not None and actor.login_is_stale:
                        await db_session.touch_login(actor.login_id, self.now())
            except DatabaseUnavailable as error:
                raise StorageUnavailable(error.told) from error

    @asynccontextmanager
    async def once(
        self, verb: str, key: str | None, content: object, actor: Actor, db_session: DbSession
    ) -> AsyncIterator[Once]:
        """The same with an idempotency key: a repeated one finds its first answer. Raises IdempotencyKeyReused."""
        async with self.writing(db_session, actor=actor, verb=verb):
            once = await Once.claim(verb, key, content, actor, self.now(), db_session)
            yield once
            await once.close()
