"""What a handler may ask for by name."""

from typing import TypeVar

from litestar.di import NamedDependency

from db.db_session import DbSession
from services.accounts import Accounts
from services.actor import Actor
from services.client_pool import ClientPool
from services.governance import Governance
from services.moves import Moves
from services.session_service import SessionService
from services.turn_log import Still, TurnLog

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
MayRead = NamedDependency[Still]

__all__ = ["Db", "Given", "Log", "Logins", "MayRead", "Moving", "Pool", "Ruling", "Sessions", "Who"]
