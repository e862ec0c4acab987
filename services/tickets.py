"""Tickets: what proves for a while that somebody has just proved a temporary password, and replaces it.

Nothing of a ticket is stored. The password is part of its seal, so it is worth nothing once the password is another.
"""

import base64
import hmac
from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from db.tables import Account

#: seals a text so that only this server can make the same
Seal = Callable[[bytes], bytes]


def ticket_for(account: Account, until: datetime, seal: Seal) -> str:
    """A ticket that replaces the password of an account until then."""
    stamp = f"{account.id.hex}.{int(until.timestamp())}"
    return f"{stamp}.{_sealed(stamp, account, seal)}"


def named_by(ticket: str, now: datetime) -> UUID | None:
    """The account that a ticket names and does not prove yet; None for one that is no ticket, or over."""
    name, _, rest = ticket.partition(".")
    try:
        account_id, until = UUID(hex=name), int(rest.partition(".")[0])
    except ValueError:
        return None
    return account_id if until > now.timestamp() else None


def proves(ticket: str, account: Account, seal: Seal) -> bool:
    """Whether a ticket is ours, and of an account's present password."""
    stamp, _, sealed = ticket.rpartition(".")
    return hmac.compare_digest(sealed.encode("utf-8", "replace"), _sealed(stamp, account, seal).encode())


def _sealed(stamp: str, account: Account, seal: Seal) -> str:
    text = seal(f"ticket:{stamp}:{account.password_hash}".encode())
    return base64.urlsafe_b64encode(text).decode().rstrip("=")
