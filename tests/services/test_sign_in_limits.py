"""Attempts to sign in (SECURITY 17, 58): guessing is slow from everywhere, and no stranger locks a name out."""

from collections.abc import Awaitable, Callable

import pytest

from db.db_session import DbSession
from services import sign_in_limits
from services.accounts import Accounts, Credentials
from services.actor import SYSTEM
from services.devices import REMEMBERED
from services.errors import InvalidRequest, RateLimited, Refusal
from services.membership import Membership
from tests.conftest import AtOnce, Clock, Everything
from tests.services.test_accounts import cheap_passwords  # noqa: F401 - a fixture, used by every test

PASSWORD, OTHER, WRONG = "correct horse", "battery staple", "wrong horse"
SECRET = b"a secret"


@pytest.fixture
def accounts(clock: Clock) -> Accounts:
    return Accounts(SECRET, guests=True, now=clock)


Attempts = Callable[..., Awaitable[str]]


@pytest.fixture
async def attempt(accounts: Accounts, db_session: DbSession, clock: Clock) -> Attempts:
    """One attempt at ann's account from an address: done, or the code of the refusal."""
    await accounts.create_account("ann", PASSWORD, db_session)

    async def attempt(address: str, password: str = WRONG, name: str = "ann", device: str = "") -> str:
        # Each as another process would.
        process = Accounts(SECRET, guests=True, now=clock)
        try:
            who = process.nobody(address, "request-1")
            await process.sign_in(name, password, db_session, actor=who, device=device)
        except Refusal as refusal:
            return refusal.code
        return "done"

    return attempt


@pytest.fixture
async def device(accounts: Accounts, attempt: Attempts, db_session: DbSession) -> str:
    """The cookie of a browser in which ann has signed in before."""
    who = accounts.nobody("192.0.2.1", "")
    return (await accounts.sign_in("ann", PASSWORD, db_session, actor=who)).device


async def test_58_ten_wrong_passwords_of_a_stranger_refuse_nobody_else(attempt: Attempts, clock: Clock) -> None:
    assert [await attempt("198.51.100.1") for _ in range(11)] == ["unauthenticated"] * 10 + ["rate_limited"]
    assert await attempt("198.51.100.1", PASSWORD) == "rate_limited", "the stranger has used up what is theirs"
    assert await attempt("198.51.100.2", PASSWORD) == "done"
    clock.pass_(seconds=59, microseconds=999_999)
    assert await attempt("198.51.100.1", PASSWORD) == "rate_limited"
    clock.pass_(microseconds=1)
    assert await attempt("198.51.100.1", PASSWORD) == "done"


async def test_58_a_name_under_attack_from_everywhere_lets_its_owner_in(
    attempt: Attempts, device: str, clock: Clock
) -> None:
    answers = [await attempt(f"2001:db8:0:{number:x}::1") for number in range(45) for _ in range(4)]
    # A hundred for the name, and then three for each address: what a guesser has with 45 of them.
    assert answers.count("unauthenticated") == 100 + 20 * 3
    assert await attempt("192.0.2.77", PASSWORD) == "done", "from an address that is new to the name"
    assert await attempt("192.0.2.1", PASSWORD, device=device) == "done"
    clock.pass_(hours=1)
    again = [await attempt(f"2001:db8:0:{number:x}::1") for number in range(45) for _ in range(4)]
    assert 100 <= again.count("unauthenticated") < answers.count("unauthenticated")


async def test_58_a_browser_that_signed_in_before_has_attempts_of_its_own(attempt: Attempts, device: str) -> None:
    for _ in range(30):
        await attempt("192.0.2.1")
        await attempt("192.0.2.1", name="somebody else")
    assert await attempt("192.0.2.1", PASSWORD) == "rate_limited"
    assert await attempt("192.0.2.1", PASSWORD, device=device) == "done"
    assert [await attempt("192.0.2.1", device=device) for _ in range(11)] == ["unauthenticated"] * 10 + ["rate_limited"]
    # It is ann's browser and nobody else's, and a cookie that we did not make is none.
    for cookie in (device[:-1], device.replace(".", "~"), "~" * 9, "a.b.c", "ü.ü.ü", f"{'0' * 32}.x.y"):
        assert await attempt("192.0.2.1", PASSWORD, device=cookie) == "rate_limited"
    # Nor does it help with another name: the address has ten left of its thirty.
    others = [await attempt("192.0.2.1", name=f"bob {number}", device=device) for number in range(11)]
    assert others == ["unauthenticated"] * 10 + ["rate_limited"]


async def test_a_browser_is_known_until_the_password_is_changed_and_for_five_accounts(
    accounts: Accounts, attempt: Attempts, device: str, db_session: DbSession
) -> None:
    who, cookie = accounts.nobody("192.0.2.9", ""), device
    for number in range(REMEMBERED - 1):
        await accounts.create_account(f"bob{number}x", PASSWORD, db_session)
        cookie = (await accounts.sign_in(f"bob{number}x", PASSWORD, db_session, actor=who, device=cookie)).device
    for _ in range(10):
        await attempt("192.0.2.9")
    assert await attempt("192.0.2.9", PASSWORD, device=cookie) == "done"
    await accounts.create_account("one more", PASSWORD, db_session)
    cookie = (await accounts.sign_in("one more", PASSWORD, db_session, actor=who, device=cookie)).device
    assert await attempt("192.0.2.9", PASSWORD, device=cookie) == "rate_limited"
    ann = await Membership(accounts).account_named("ann", db_session, actor=SYSTEM)
    await Membership(accounts).set_password(ann.id, OTHER, db_session, actor=SYSTEM, temporary=False)
    assert await attempt("192.0.2.9", OTHER, device=device) == "rate_limited"


async def test_one_address_tries_thirty_names_and_no_more(attempt: Attempts, everything: Everything) -> None:
    answers = [await attempt("203.0.113.9", name=f"somebody {number}") for number in range(31)]
    assert answers == ["unauthenticated"] * 30 + ["rate_limited"]
    before = await everything()
    for _ in range(20):
        assert await attempt("203.0.113.9") == "rate_limited"
    assert await everything() == before, "a refused attempt takes nothing of anybody's"


async def test_C4_the_addresses_of_one_network_guess_as_one(attempt: Attempts) -> None:
    answers = [await attempt(f"2001:db8::{number:x}") for number in range(11)]
    assert answers == ["unauthenticated"] * 10 + ["rate_limited"]
    assert await attempt("2001:db8:0:1::1") == "unauthenticated"


async def test_C5_twenty_attempts_at_once_over_processes_are_exactly_ten(
    attempt: Attempts, accounts: Accounts, clock: Clock, at_once: AtOnce
) -> None:
    def guess(_: int, db_session: DbSession) -> Awaitable[object]:
        process = Accounts(SECRET, guests=True, now=clock)
        return process.sign_in("ann", WRONG, db_session, actor=process.nobody("198.51.100.1", ""))

    together = await at_once(20, guess)
    assert together.codes == ["rate_limited"] * 10 + ["unauthenticated"] * 10
    # From as many addresses at once: a hundred for the name, then three of each.
    results = await at_once(
        120, lambda n, db: accounts.sign_in("eve", WRONG, db, actor=accounts.nobody(f"192.0.2.{n}", ""))
    )
    assert results.codes == ["unauthenticated"] * 120


async def test_a_sign_in_that_succeeds_takes_nothing(attempt: Attempts, device: str, everything: Everything) -> None:
    for _ in range(40):
        assert await attempt("192.0.2.1", PASSWORD) == "done"
        assert await attempt("192.0.2.1", PASSWORD, device=device) == "done"


async def test_58_whoever_is_signed_in_changes_the_password_whatever_strangers_try(
    accounts: Accounts, attempt: Attempts, db_session: DbSession
) -> None:
    here = accounts.nobody("198.51.100.1", "")
    cookie = (await accounts.sign_in("ann", PASSWORD, db_session, actor=here)).cookie
    ann = await accounts.authenticate(Credentials(None, cookie, "", "198.51.100.1", ""), db_session)
    for _ in range(11):
        await attempt("198.51.100.1")
    assert await attempt("198.51.100.1", PASSWORD) == "rate_limited"
    with pytest.raises(InvalidRequest) as raised:
        await Membership(accounts).change_password(WRONG, OTHER, db_session, actor=ann, address=here)
    assert raised.value.facts == {"field": "old"}
    await Membership(accounts).change_password(PASSWORD, OTHER, db_session, actor=ann, address=here)


async def test_the_wait_is_that_of_the_place_that_is_full(
    accounts: Accounts, attempt: Attempts, db_session: DbSession
) -> None:
    for _ in range(10):
        await attempt("198.51.100.1")
    with pytest.raises(RateLimited) as raised:
        await accounts.sign_in("ann", WRONG, db_session, actor=accounts.nobody("198.51.100.1", ""))
    assert raised.value.retry_after_seconds == 60


def test_the_longest_of_the_limits_is_known_to_whoever_puts_clocks_right() -> None:
    assert sign_in_limits.WINDOW_US == 3 * 60 * 60 * 1_000_000
