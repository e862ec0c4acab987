"""Who asks: every verb takes an Actor, and there is no default."""

from typing import Literal
from uuid import UUID

import msgspec

from db.tables import Account
from services.errors import Forbidden, Unauthenticated

Kind = Literal["guest", "user", "admin", "token", "system"]


#: how many times a group's limits hold for the guests of an IPv6 /56 and of a /48
NETWORK_SHARES = (4, 16)


class Actor(msgspec.Struct, frozen=True):
    """Somebody or something that asks for a verb now."""

    kind: Kind
    #: the account it acts for; for a guest, the id its cookie proves
    id: UUID
    name: str
    #: the group whose limits and models apply
    group: str
    #: what a rate is counted under: the account, or a guest's hashed network address
    rate_key: str
    #: of a guest: the hashed networks around its address, the narrowest first; empty where there are none
    networks: tuple[str, ...] = ()
    #: guest · user · admin: the account's role
    role: Literal["guest", "user", "admin"] = "user"
    #: what a token may do; None for a person
    scopes: frozenset[str] | None = None
    #: the token it came with, or the system where that acts for an account; None for a person
    token_id: UUID | None = None
    #: the login it came with; None for a token, a guest and the system
    login_id: UUID | None = None
    #: that login has not been noted as used for a while
    login_is_stale: bool = False
    request_id: str = ""

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """What a guest is counted under besides its cookie, and how many times its group's limits hold there.

        One address has what one guest has: a cookie that is thrown away gains nothing.
        """
        if self.kind != "guest":
            return ()
        return ((self.rate_key, 1), *zip(self.networks, NETWORK_SHARES, strict=False))

    @property
    def is_admin(self) -> bool:
        """Whether it may act on what others own."""
        if self.kind == "system":
            return True
        return self.role == "admin" and (self.scopes is None or "admin" in self.scopes)


#: the id of everybody who has not proved one
NOBODY = UUID(int=0)
#: the process itself: sweeps, the turn runner, the command line
SYSTEM = Actor(kind="system", id=UUID(int=0), name="system", group="admin", rate_key="system", role="admin")


#: what follows an operator's name in the journal
VIA_COMMAND_LINE = "via command line"


def operator(name: str) -> Actor:
    """Somebody who has the machine, and acts by the command line: as the system, under a name."""
    return msgspec.structs.replace(SYSTEM, name=f"{name} {VIA_COMMAND_LINE}")


def acting_for(account: Account, by: Actor = SYSTEM) -> Actor:
    """The system, or an operator, where it makes something that is an account's own."""
    return msgspec.structs.replace(by, id=account.id, group=account.group_name, token_id=SYSTEM.id)


def require_admin(actor: Actor) -> None:
    """Raise Forbidden unless the actor may change what is not its own."""
    if not actor.is_admin:
        raise Forbidden("Only an admin may see and change this.")


def require_person(actor: Actor) -> None:
    """Raise Unauthenticated, Forbidden unless the actor may change an account: a script may with an admin's token."""
    if actor.kind == "guest":
        raise Unauthenticated()
    if actor.kind == "token" and not actor.is_admin:
        raise Forbidden("A script cannot change its account; sign in.")
