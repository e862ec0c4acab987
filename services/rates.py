"""Places in a rate's bucket: taken in one statement, and never awaited for longer than the rate lasts.

A bucket that reaches further than a full one was written by a clock that has been set back since. It counts as full:
whoever comes is told the wait of a full bucket, and once the refused verb is undone the bucket is shortened to that, so
that the wait told is the wait there is. Nobody is let in by it.
"""

from collections.abc import Callable, Mapping
from datetime import datetime

import msgspec

from db.db_session import DbSession
from services.policies import Allowance, Rate, microseconds


class Place(msgspec.Struct, frozen=True):
    """What became of asking one bucket for a place."""

    #: as it stood before
    before: Allowance
    #: as it stands now; None where it is full
    after: Allowance | None
    #: {bucket: microseconds of a full one} where it reaches further than that
    ahead: Mapping[str, int]


async def take(bucket: str, name: str, rate: Rate, now: Callable[[], datetime], db_session: DbSession) -> Place:
    """One place of a bucket, where there is one."""
    at = now()
    tat = await db_session.take_from_bucket(bucket, microseconds(at), rate.interval_us, rate.burst)
    if tat is not None:
        before = rate.allowance(name, tat - rate.interval_us, at)
        return Place(before, rate.allowance(name, tat, at), {})
    # Read again after the wait for others: what they have taken meanwhile is no wrong clock's.
    tat, at = await db_session.bucket_tat(bucket), now()
    ahead = {bucket: rate.window_us} if tat > microseconds(at) + rate.window_us else {}
    return Place(rate.allowance(name, tat, at), None, ahead)


async def shorten(ahead: Mapping[str, int], now: datetime, db_session: DbSession) -> None:
    """Let buckets that a wrong clock has written be full, and no fuller."""
    for bucket, window_us in sorted(ahead.items()):
        await db_session.shorten_bucket(bucket, microseconds(now) + window_us)
