"""Browsers that have signed in before, as each of them proves it: a signed cookie, of which nothing is stored.

It lets nobody in. It only gives the browser a place of its own among the attempts to sign in to an account, so that
what strangers try does not lock its owner out. The password is part of the signature: a change of it ends them all.
"""

import base64
import hmac
import secrets
from collections.abc import Callable
from uuid import UUID

from db.tables import Account

#: accounts that one browser is remembered for, the last ones
REMEMBERED = 5

#: seals a text so that only this server can make the same
Seal = Callable[[bytes], bytes]


def device_of(cookie: str, account: Account, seal: Seal) -> str:
    """What the browser's attempts at an account are counted under; empty where it has not signed in to it before."""
    for entry in _entries(cookie):
        name, nonce, signature = entry.split(".")
        if name == account.id.hex and hmac.compare_digest(signature, _signature(account, nonce, seal)):
            return _text(seal(b"device:" + nonce.encode() + account.id.bytes))
    return ""


def remembering(cookie: str, account: Account, seal: Seal) -> str:
    """The cookie of a browser that has just signed in to an account, beside those it has signed in to before."""
    others = [entry for entry in _entries(cookie) if not entry.startswith(account.id.hex)]
    nonce = secrets.token_urlsafe(9)
    return "~".join([f"{account.id.hex}.{nonce}.{_signature(account, nonce, seal)}", *others][:REMEMBERED])


def _entries(cookie: str) -> list[str]:
    """What looks like an entry of a cookie of ours, the last ones first."""
    return [entry for entry in cookie.split("~")[:REMEMBERED] if entry.isascii() and _is_entry(entry.split("."))]


def _is_entry(parts: list[str]) -> bool:
    try:
        return len(parts) == 3 and all(len(part) < 64 for part in parts) and bool(UUID(hex=parts[0]))
    except ValueError:
        return False


def _signature(account: Account, nonce: str, seal: Seal) -> str:
    return _text(seal(f"browser:{account.id.hex}:{nonce}:{account.password_hash}".encode()))


def _text(sealed: bytes) -> str:
    return base64.urlsafe_b64encode(sealed[:18]).decode()
