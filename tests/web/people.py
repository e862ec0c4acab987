"""`python -m tests.web.people bob boss:admin brie::brief` makes several accounts at once and prints a token for each.

The command line does the same one by one, and starting it takes longer than most tests.
"""

import asyncio
import os
import sys
from functools import cache

from argon2 import PasswordHasher

import services.accounts
from db.db_session import DbSession
from db.engine import open_engine
from services.accounts import Accounts
from services.session_service import utc_now
from web.settings import load

PASSWORD = "correct horse battery"


class Once(PasswordHasher):
    """Everybody has the same password, so it is hashed once, at its full cost."""

    hash = cache(PasswordHasher.hash)  # type: ignore[assignment]


async def make(people: list[str]) -> None:
    settings, hasher = load(os.environ), Once()
    services.accounts._hasher = lambda: hasher
    accounts = Accounts(settings.secret(), guests=settings.guests, now=utc_now)
    engine = open_engine(settings.database_url)
    await engine.start()
    for person in people:
        name, role, group = [*person.split(":"), "", ""][:3]
        db_session = DbSession(engine)
        await accounts.create_account(name, PASSWORD, db_session, role=role or "user", group=group)  # type: ignore[arg-type]
        scope = "admin" if role == "admin" else "chat"
        print(await accounts.create_token(name, "test", (scope,), db_session))
    await engine.stop()


if __name__ == "__main__":
    asyncio.run(make(sys.argv[1:]))
