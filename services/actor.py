"""Who asks: every verb takes an Actor, and there is no default."""

from typing import Literal
from uuid import UUID

import msgspec

Kind = Literal["guest", "user", "admin", "token", "system"]


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
    #: guest · user · admin: the account's role
    role: Literal["guest", "user", "admin"] = "user"
    #: what a token may do; None for a person
    scopes: frozenset[str] | None = None
    #: the token it came with; None for a person
    token_id: UUID | None = None
    request_id: str = ""

    @property
    def is_admin(self) -> bool:
        """Whether it may act on what others own."""
        if self.kind == "system":
            return True
        return self.role == "admin" and (self.scopes is None or "admin" in self.scopes)


#: the process itself: sweeps, the turn runner, the command line
SYSTEM = Actor(kind="system", id=UUID(int=0), name="system", group="admin", rate_key="system", role="admin")
