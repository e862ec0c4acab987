"""What the handlers of admins' pages share: the services at hand, who asks, and how an answer looks."""

from typing import Any

import msgspec
from litestar import Request, Response

from db.db_session import DbSession
from services.accounts import Accounts
from services.actor import Actor
from services.client_pool import ClientPool
from services.desk import Desk
from services.governance import Governance
from services.membership import Membership
from services.moves import Moves
from services.oversight import Oversight
from services.session_service import SessionService
from services.trials import Trials
from services.turn_log import TurnLog
from web.again import again
from web.answer import answer, page
from web.given import Db, Log, Logins, Members, Moving, Pool, Ruling, Sessions, Steering, Who


class Admin(msgspec.Struct, frozen=True):
    """One request of an admin's, with all that its handler asks. That it is an admin is the services' to say."""

    request: Request
    db_session: DbSession
    actor: Actor
    sessions: SessionService
    governance: Governance
    moves: Moves
    members: Membership
    logins: Accounts
    pool: ClientPool
    oversight: Oversight
    desk: Desk
    log: TurnLog
    trials: Trials

    @property
    def asks(self) -> dict[str, Any]:
        """Who asks for a verb, and under which key."""
        return {"actor": self.actor, "key": self.request.state.key}

    def page(self, template: str, view: msgspec.Struct, **context: Any) -> Response[Any]:
        return page(self.request, template, view, **context)

    def answer(self, view: msgspec.Struct, location: str, status: int = 200) -> Response[Any]:
        """Another page, after a verb; or what it tells a script."""
        return answer(self.request, None, view, location=location, status=status)

    def again(self, view: msgspec.Struct, where: str, done: str = "saved", **told: Any) -> Response[Any]:
        """The same page, after a verb, with what changed said and marked; or what it tells a script."""
        return again(self.request, view, where, done, **told)


def provide_admin(
    request: Request,
    db_session: Db,
    actor: Who,
    sessions: Sessions,
    governance: Ruling,
    moves: Moving,
    members: Members,
    logins: Logins,
    pool: Pool,
    log: Log,
    desk: Steering,
) -> Admin:
    return Admin(
        request,
        db_session,
        actor,
        sessions,
        governance,
        moves,
        members,
        logins,
        pool,
        Oversight(sessions),
        desk,
        log,
        Trials(sessions),
    )
