"""What a handler may ask for by name."""

from typing import TypeVar

from litestar.di import NamedDependency

from db.db_session import DbSession
from services.accounts import Accounts, Credentials
from services.actor import Actor
from services.client_pool import ClientPool
from services.desk import Desk
from services.governance import Governance
from services.membership import Membership
from services.moves import Moves
from services.session_service import SessionService
from services.turn_log import TurnLog
from web.rendering import Renderer

T = TypeVar("T")

Given = NamedDependency[T]
Sessions = NamedDependency[SessionService]
Db = NamedDependency[DbSession]
Who = NamedDependency[Actor]
Logins = NamedDependency[Accounts]
Log = NamedDependency[TurnLog]
Pool = NamedDependency[ClientPool]
Ruling = NamedDependency[Governance]
Moving = NamedDependency[Moves]
Members = NamedDependency[Membership]
Steering = NamedDependency[Desk]
Proof = NamedDependency[Credentials]
Rendering = NamedDependency[Renderer]

__all__ = [
    "Db",
    "Given",
    "Log",
    "Logins",
    "Members",
    "Moving",
    "Pool",
    "Proof",
    "Rendering",
    "Ruling",
    "Sessions",
    "Steering",
    "Who",
]
