"""What a verb has changed on the page it was asked from: said, and marked where it stands."""

import msgspec

#: what a page says after a plain form, by the word in its address
SAID = {
    "saved": "Saved.",
    "account": "Account created.",
    "password": "Temporary password set.",
    "disabled": "Account disabled.",
    "enabled": "Account re-enabled.",
    "signed-out": "Signed out.",
    "revoked": "Token revoked.",
    "deleted": "Chat deleted. Its owner sees your name and your reason.",
    "stopped": "Bulk switch stopped.",
    "ordered": "Bulk switch started.",
}


class Changed(msgspec.Struct, frozen=True):
    """What was done, for templates."""

    text: str
    #: ids of the elements it changed
    marks: tuple[str, ...] = ()


def said_before(word: str) -> Changed | None:
    """What the address of a page says was done, after a plain form."""
    return Changed(SAID[word]) if word in SAID else None
