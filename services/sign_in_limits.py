"""How many attempts to sign in there are: for a name from an address, for an address, for a name, for a browser.

A stranger who guesses is slowed down, and locks nobody out:

- a name from one address: 10 at once, one more a minute;
- an address, whatever names it tries: 30 at once, one more a minute;
- a name, from all addresses together: 100 at once, 100 an hour. Once these are used up, an address that is new to the
  name still has 3 attempts, and one more an hour: its owner comes in, and a guesser needs another address for each
  three guesses;
- a browser that has signed in to the account before has 10 attempts of its own, one more a minute, and uses up none of
  the others: nothing that strangers do refuses it.

IPv6 counts by /64. An attempt that succeeds is given back. A refused attempt takes nothing.
"""

from datetime import timedelta

import msgspec

from services.policies import Rate

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
#: one name from one address
PAIR = Rate(1, MINUTE, 10)
#: one address, whatever it tries
ADDRESS = Rate(1, MINUTE, 30)
#: one name, from wherever
NAME = Rate(100, HOUR, 100)
#: one name from one address, once many addresses try that name
CROWDED = Rate(1, HOUR, 3)
#: a browser that has signed in before
DEVICE = Rate(1, MINUTE, 10)
#: the longest that any of them lasts
WINDOW_US = max(rate.window_us for rate in (PAIR, ADDRESS, NAME, CROWDED, DEVICE))


class Attempt(msgspec.Struct, frozen=True):
    """Whose attempt to sign in it is, in words that tell no name and no address."""

    #: of the name, the account's or not
    name: str
    address: str
    #: of a browser that has signed in to this account before; empty for another
    device: str = ""

    @property
    def needed(self) -> list[tuple[str, Rate]]:
        """The places that it takes, with their rates; of two at once none waits for the other for ever."""
        if self.device:
            return [(f"sign_in:device:{self.device}", DEVICE)]
        return [(f"sign_in:pair:{self.name}:{self.address}", PAIR), (f"sign_in:{self.address}", ADDRESS)]

    @property
    def loose(self) -> tuple[str, Rate] | None:
        """A place that it takes as well, where there is one; where there is none, `tight` is needed instead."""
        return None if self.device else (f"sign_in:name:{self.name}", NAME)

    @property
    def tight(self) -> tuple[str, Rate]:
        return f"sign_in:crowded:{self.name}:{self.address}", CROWDED
