"""One key, one effect: a repeated request is answered with what the first one did."""

import hashlib
from datetime import datetime, timedelta

from db.db_session import DbSession
from db.tables import Idempotency
from services.actor import Actor
from services.errors import IdempotencyKeyReused, InvalidRequest
from services.text import storable

KEY_CHARACTERS = 200
#: how long a key is remembered
KEPT = timedelta(hours=24)


class Once:
    """One key inside its transaction: the answer it already has, or the place for one."""

    def __init__(self, row: Idempotency | None, answer: str, db_session: DbSession) -> None:
        #: empty while nothing was done under this key
        self.answer = answer
        self._remembered = bool(answer)
        self._row, self._db_session = row, db_session

    @classmethod
    async def claim(
        cls, verb: str, key: str | None, content: object, actor: Actor, now: datetime, db_session: DbSession
    ) -> "Once":
        """Reserve a key until commit; another caller with the same key waits. Raises IdempotencyKeyReused."""
        if not checked_key(key):
            return cls(None, "", db_session)
        fingerprint = _fingerprint(content)
        row = Idempotency(actor_id=actor.id, verb=verb, key=key, fingerprint=fingerprint, created_at=now)
        held = await db_session.claim_key(row, now - KEPT)
        if held is not None and held.fingerprint != fingerprint:
            raise IdempotencyKeyReused()
        return cls(row, held.answer if held is not None else "", db_session)

    @classmethod
    async def answer_of(
        cls, verb: str, key: str | None, content: object, actor: Actor, now: datetime, db_session: DbSession
    ) -> str:
        """What this very request was answered under its key, or nothing: before what cannot be done twice."""
        row = await cls._find(verb, key, actor, now, db_session)
        return row.answer if row is not None and row.fingerprint == _fingerprint(content) else ""

    @classmethod
    async def is_done(cls, verb: str, key: str | None, actor: Actor, now: datetime, db_session: DbSession) -> bool:
        """Whether anything was done under a key, whatever was asked."""
        return await cls._find(verb, key, actor, now, db_session) is not None

    @classmethod
    async def _find(
        cls, verb: str, key: str | None, actor: Actor, now: datetime, db_session: DbSession
    ) -> Idempotency | None:
        """The row of a key that is still remembered."""
        return await db_session.find_key(actor.id, verb, key, now - KEPT) if checked_key(key) and key else None

    async def remember(self, answer: str) -> None:
        """Keep what was done, in the same transaction."""
        self._remembered = True
        if self._row is not None:
            await self._db_session.answer_key(self._row, answer)

    async def close(self) -> None:
        """Keep at least that something was done."""
        if not self._remembered:
            await self.remember("done")


def checked_key(key: str | None) -> str:
    """A key that a column can hold; empty for none. Raises InvalidRequest."""
    if len(key := storable(key or "")) > KEY_CHARACTERS:
        raise InvalidRequest(f"An idempotency key has at most {KEY_CHARACTERS} characters.")
    return key


def _fingerprint(content: object) -> str:
    return hashlib.sha256(repr(content).encode("utf-8", "backslashreplace")).hexdigest()
