"""Addresses without the secrets in them."""

from urllib.parse import urlsplit, urlunsplit

HIDDEN = "(set)"


def without_secrets(url: str) -> str:
    """An address whose user, password, query and fragment are hidden: each of them may be a key."""
    try:
        parts = urlsplit(url)
        _, at, place = parts.netloc.rpartition("@")
        if not (at or parts.query or parts.fragment):
            return url
        netloc = f"{HIDDEN}@{place}" if at else parts.netloc
        query = "&".join(_pair(pair) for pair in parts.query.split("&") if pair)
        return urlunsplit(parts._replace(netloc=netloc, query=query, fragment=HIDDEN if parts.fragment else ""))
    except ValueError:
        return HIDDEN


def _pair(pair: str) -> str:
    name, is_named, _ = pair.partition("=")
    return f"{name}={HIDDEN}" if is_named else HIDDEN
