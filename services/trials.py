"""Trying a model: a short question past sessions and limits, and whether and how fast an answer comes."""

import asyncio
import time
from contextlib import aclosing
from typing import Any

import msgspec

from db.db_session import DbSession
from services.actor import Actor, require_admin
from services.catalogue import Entry
from services.clients import Ask, ClientError, Message, Reasoning, Text
from services.errors import ModelDisabled, UnknownModel
from services.idempotency import Once
from services.session_service import SessionService

#: short to answer, for every kind of model
QUESTION = (Message("user", "Say OK."),)
REPLY_TOKENS = 16
REPLY_CHARACTERS = 200
#: an answer that takes longer is none
TRIAL_SECONDS = 20.0


class Trial(msgspec.Struct, frozen=True):
    """What came of it."""

    model: str
    #: how the answer begins, or what was thought where that was all; empty where it is kept to itself
    reply: str
    first_text_seconds: float | None
    seconds: float
    #: why no answer came, as a failed turn has it; empty where one did
    code: str = ""
    detail: str = ""


class Trials:
    """Asks models for admins."""

    def __init__(self, sessions: SessionService) -> None:
        self._sessions, self._units, self.now = sessions, sessions.units, sessions.now

    async def try_model(self, name: str, db_session: DbSession, *, actor: Actor, key: str | None = None) -> Trial:
        """Ask a model something short, whatever its state is. Raises Forbidden, UnknownModel, ModelDisabled."""
        async with self._units.refusing("try_model", actor, db_session):
            require_admin(actor)
            if before := await Once.answer_of("try_model", key, name, actor, self.now(), db_session):
                return msgspec.json.decode(before, type=Trial)
            known = await self._sessions.models(db_session, actor=actor)
            entry = next((one for one in known if name in (one.id, *one.aliases)), None)
            if entry is None:
                raise UnknownModel(f"There is no model “{name[:80]}”.")
            if not self._sessions.pool.has(entry.provider):
                raise ModelDisabled(f"The provider of “{entry.label}” is not configured.")
        # No transaction waits for a provider.
        trial = await self._ask(entry)
        async with self._units.once("try_model", key, name, actor, db_session) as once:
            if once.answer:
                return msgspec.json.decode(once.answer, type=Trial)
            told: dict[str, Any] = {"outcome": trial.code or "done", "to_value": entry.id}
            await db_session.record("model_tested", actor, self.now(), **told)
            await once.remember(msgspec.json.encode(trial).decode())
            return trial

    async def _ask(self, entry: Entry) -> Trial:
        began, first, reply, thought = time.monotonic(), None, "", ""
        code = detail = ""
        client = self._sessions.pool.client_of(entry.provider)
        try:
            async with (
                asyncio.timeout(TRIAL_SECONDS),
                aclosing(client.stream(Ask(entry.upstream, QUESTION, REPLY_TOKENS))) as pieces,
            ):
                async for piece in pieces:
                    if isinstance(piece, Reasoning | Text):
                        first = first if first is not None else time.monotonic() - began
                    if isinstance(piece, Text):
                        reply = (reply + piece.text)[:REPLY_CHARACTERS]
                    elif isinstance(piece, Reasoning):
                        thought = (thought + piece.text)[:REPLY_CHARACTERS]
        except ClientError as error:
            code, detail = error.code, error.detail
        except TimeoutError:
            code, detail = "provider_timeout", f"No answer came within {TRIAL_SECONDS:.0f} seconds."
        return Trial(entry.id, reply or thought, first, time.monotonic() - began, code, detail)
