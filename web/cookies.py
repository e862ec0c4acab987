"""The Cookie header with what is ours in it alone.

Other programs on the same host set cookies too, and anybody can send one. To parse a value in quotes takes a time that
grows with the square of its length: 60 KB of backslashes held the loop for ten seconds.
"""

import re
from collections.abc import Iterable

#: ours have no quotes and no backslashes, and are short
OURS = re.compile(rb'(?:^|;)[ \t]*((?:(?:__Host-)?tk_[a-z]{1,20}|tz)=[^;"\\]{0,1024})(?=;|$)')


def only_ours(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The same headers, in whose cookies only ours are left."""
    return [(name, b"; ".join(OURS.findall(value)) if name == b"cookie" else value) for name, value in headers]
