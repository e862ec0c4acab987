"""Texts that took too long to render: remembered by their hash, so that no process tries them again."""

import hashlib
import logging
from collections.abc import Callable, Collection
from datetime import datetime

from db.db_session import DatabaseUnavailable, DbSession

log = logging.getLogger(__name__)

#: how many are remembered, the newest; a forgotten one costs its time limit once more
KEPT = 10_000
#: rows that one transaction deletes
FORGOTTEN_ROWS = 1_000


def digest_of(kind: str, text: str) -> str:
    """The name under which a text is remembered; `kind` says how it was to be rendered, as a block's language does."""
    return hashlib.sha256(f"{kind}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()


async def forget(db_session: DbSession) -> None:
    """Delete the oldest of too many."""
    while await db_session.delete_render_timeouts(KEPT, FORGOTTEN_ROWS) == FORGOTTEN_ROWS:
        pass


class RenderTimeouts:
    """The texts that took too long, of all processes on one database. It answers while the database does not."""

    def __init__(self, open_session: Callable[[], DbSession], now: Callable[[], datetime]) -> None:
        self._open_session, self._now = open_session, now
        #: found by this process: they count even where they could not be stored
        self._found: dict[str, None] = {}

    async def known(self, digests: Collection[str]) -> set[str]:
        """Those of these texts that took too long before."""
        found = {digest for digest in digests if digest in self._found}
        if rest := sorted(set(digests) - found):
            try:
                found |= await self._open_session().find_render_timeouts(rest)
            except DatabaseUnavailable as error:
                log.warning("texts that took too long to render cannot be looked up: %s", error)
        return found

    async def remember(self, digest: str) -> None:
        """Note a text that took too long."""
        self._found[digest] = None
        while len(self._found) > KEPT:
            self._found.pop(next(iter(self._found)))
        try:
            await self._open_session().add_render_timeout(digest, self._now())
        except DatabaseUnavailable as error:
            log.warning("a text that took too long to render could not be stored: %s", error)
