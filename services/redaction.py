"""Addresses without the secrets in them."""

import re
from urllib.parse import urlsplit, urlunsplit

HIDDEN = "(set)"
#: a part of a path that nobody reads: some gateways take their key there
KEY_IN_PATH = re.compile(r"(?<=/)(?=[^/]*\d)[\w-]{24,}(?=/|$)")


def without_secrets(url: str) -> str:
    """An address whose user, password, query and fragment are hidden, and what in its path looks like a key."""
    try:
        parts = urlsplit(url)
        if not parts.netloc and "@" in parts.path and parts.scheme != "sqlite":
            return HIDDEN  # mistyped: nobody knows what of it is the password
        _, at, place = parts.netloc.rpartition("@")
        path = KEY_IN_PATH.sub(HIDDEN, parts.path) if parts.scheme.startswith("http") else parts.path
        if not (at or parts.query or parts.fragment or path != parts.path):
            return url
        netloc = f"{HIDDEN}@{place}" if at else parts.netloc
        query = "&".join(_pair(pair) for pair in parts.query.split("&") if pair)
        return urlunsplit(
            parts._replace(netloc=netloc, path=path, query=query, fragment=HIDDEN if parts.fragment else "")
        )
    except ValueError:
        return HIDDEN


def _pair(pair: str) -> str:
    name, is_named, _ = pair.partition("=")
    return f"{name}={HIDDEN}" if is_named else HIDDEN
