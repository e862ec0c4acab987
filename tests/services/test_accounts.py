"""Who is asking: authenticate, passwords, tokens, guests, the first admin."""

import asyncio
import threading
from datetime import timedelta
from uuid import UUID

import pytest
from argon2 import PasswordHasher

import services.accounts
from db.db_session import DbSession
from db.engine import Engine
from db.tables import Account, ApiToken
from services.accounts import Accounts, Credentials
from services.actor import Actor
from services.errors import InvalidRequest, Refusal
from tests.conftest import AtOnce, Clock, Everything, JournalRows, Refused

PASSWORD = "correct horse"
REAL_HASHER, REAL_DECOY = services.accounts._hasher, services.accounts._DECOY


@pytest.fixture(autouse=True)
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash with the least that argon2 takes, so that a sign-in does not cost a tenth of a second."""
    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr(services.accounts, "_DECOY", hasher.hash("nobody"))
    monkeypatch.setattr(services.accounts, "_hasher", lambda: hasher)


@pytest.fixture
def accounts(clock: Clock) -> Accounts:
    return Accounts(b"a secret", guests=True, now=clock)


def given(bearer: str | None = None, login: str = "", guest: str = "", address: str = "192.0.2.1") -> Credentials:
    return Credentials(bearer, login, guest, address, "request-1")


def nobody(address: str = "192.0.2.1") -> Actor:
    return Accounts(b"a secret", guests=True, now=Clock()).nobody(address, "request-1")


async def test_signing_in_proves_an_account_until_signing_out(
    accounts: Accounts, db_session: DbSession, refused: Refused
) -> None:
    account = await accounts.create_account("ann", PASSWORD, db_session)
    cookie = (await accounts.sign_in(" ann ", PASSWORD, db_session, actor=nobody())).cookie
    actor = await accounts.authenticate(given(login=cookie), db_session)
    assert (actor.kind, actor.id, actor.name, actor.group) == ("user", account.id, "ann", "user")
    assert (actor.rate_key, actor.role, actor.scopes) == (f"account:{account.id}", "user", None)
    assert (actor.request_id, actor.is_admin) == ("request-1", False)
    await accounts.sign_out(cookie, db_session, actor=nobody())
    async with refused("unauthenticated"):
        await accounts.authenticate(given(login=cookie), db_session)


async def test_a_login_ends_after_thirty_days_whatever_is_done_under_it(
    accounts: Accounts, db_session: DbSession, clock: Clock, refused: Refused
) -> None:
    await accounts.create_account("ann", PASSWORD, db_session)
    cookie = (await accounts.sign_in("ann", PASSWORD, db_session, actor=nobody())).cookie
    for days, hours, minutes in ((10, 0, 0), (10, 0, 0), (9, 23, 59)):
        clock.pass_(days=days, hours=hours, minutes=minutes)
        actor = await accounts.authenticate(given(login=cookie), db_session)
        async with accounts.units.writing(db_session, actor=actor):
            pass
    clock.pass_(minutes=1)
    async with refused("unauthenticated"):
        await accounts.authenticate(given(login=cookie), db_session)


async def test_a_login_ends_after_fourteen_days_in_which_nothing_was_done_under_it(
    accounts: Accounts, db_session: DbSession, clock: Clock, refused: Refused, everything: Everything
) -> None:
    await accounts.create_account("ann", PASSWORD, db_session)
    cookie = (await accounts.sign_in("ann", PASSWORD, db_session, actor=nobody())).cookie
    clock.pass_(days=13)
    actor = await accounts.authenticate(given(login=cookie), db_session)
    async with refused("invalid_request"), accounts.units.writing(db_session, actor=actor):
        raise InvalidRequest
    async with accounts.units.writing(db_session, actor=actor):
        pass
    # Only looking, as a page, a stream and its heartbeat do, keeps nothing alive.
    before = await everything()
    clock.pass_(days=13, hours=23, minutes=59)
    assert (await accounts.authenticate(given(login=cookie), db_session)).login_is_stale
    assert await everything() == before
    clock.pass_(minutes=1)
    async with refused("unauthenticated"):
        await accounts.authenticate(given(login=cookie), db_session)


async def test_the_use_of_a_login_is_noted_once_an_hour(
    accounts: Accounts, db_session: DbSession, clock: Clock, everything: Everything
) -> None:
    await accounts.create_account("ann", PASSWORD, db_session)
    cookie = (await accounts.sign_in("ann", PASSWORD, db_session, actor=nobody())).cookie
    noted = []
    for _ in range(3):
        clock.pass_(minutes=40)
        actor = await accounts.authenticate(given(login=cookie), db_session)
        async with accounts.units.writing(db_session, actor=actor):
            pass
        noted.append((await everything())["login"][0]["last_used_at"])
    beginning = clock() - timedelta(minutes=120)
    assert noted == [beginning, beginning + timedelta(minutes=80), beginning + timedelta(minutes=80)]


async def test_a_wrong_name_and_a_wrong_password_are_told_alike(accounts: Accounts, db_session: DbSession) -> None:
    await accounts.create_account("ann", PASSWORD, db_session)
    told = set()
    for name, password in (("ann", "wrong horse"), ("eve", PASSWORD), ("a\0b", PASSWORD), ("", "")):
        with pytest.raises(Exception) as raised:
            await accounts.sign_in(name, password, db_session, actor=nobody())
        told.add((getattr(raised.value, "code", repr(raised.value)), str(raised.value)))
    assert told == {("unauthenticated", "The name or the password is wrong.")}


async def test_a_token_acts_for_its_account_within_its_scopes(accounts: Accounts, db_session: DbSession) -> None:
    await accounts.create_account("ada", PASSWORD, db_session, role="admin")
    for asked, scopes, is_admin in (
        (("read",), {"read"}, False),
        (("chat",), {"read", "chat"}, False),
        (("admin",), {"read", "chat", "admin"}, True),
    ):
        token = await accounts.create_token("ada", "ci", asked, db_session)
        assert token.startswith("tk_") and len(token) > 40
        actor = await accounts.authenticate(given(bearer=token), db_session)
        assert (actor.kind, actor.name, actor.scopes, actor.is_admin) == ("token", "ada", scopes, is_admin)


async def test_a_token_that_is_wrong_revoked_or_over_is_refused_even_beside_a_good_cookie(
    accounts: Accounts, db_session: DbSession, clock: Clock, refused: Refused
) -> None:
    await accounts.create_account("ann", PASSWORD, db_session)
    cookie = (await accounts.sign_in("ann", PASSWORD, db_session, actor=nobody())).cookie
    revoked = await accounts.create_token("ann", "one", ("chat",), db_session)
    await ApiToken.update({ApiToken.revoked_at: clock()}).where(ApiToken.name == "one")
    over = await accounts.create_token("ann", "two", ("chat",), db_session)
    await ApiToken.update({ApiToken.expires_at: clock() + timedelta(days=1)}).where(ApiToken.name == "two")
    assert (await accounts.authenticate(given(bearer=over), db_session)).name == "ann"
    clock.pass_(days=1)
    for bearer in (revoked, over, "tk_wrong", ""):
        async with refused("unauthenticated"):
            await accounts.authenticate(given(bearer=bearer, login=cookie), db_session)


async def test_a_token_cannot_have_more_than_its_account(
    accounts: Accounts, db_session: DbSession, refused: Refused
) -> None:
    await accounts.create_account("ann", PASSWORD, db_session)
    async with refused("forbidden"):
        await accounts.create_token("ann", "ci", ("admin",), db_session)
    async with refused("invalid_request"):
        await accounts.create_token("ann", "ci", ("write",), db_session)
    async with refused("invalid_request"):
        await accounts.create_token("eve", "ci", ("read",), db_session)


async def test_O4_a_disabled_account_is_refused_at_its_next_call(
    accounts: Accounts, db_session: DbSession, clock: Clock, refused: Refused
) -> None:
    account = await accounts.create_account("ann", PASSWORD, db_session)
    cookie = (await accounts.sign_in("ann", PASSWORD, db_session, actor=nobody())).cookie
    token = await accounts.create_token("ann", "ci", ("chat",), db_session)
    await Account.update({Account.disabled_at: clock()}).where(Account.id == account.id)
    for credentials in (given(login=cookie), given(bearer=token)):
        async with refused("unauthenticated"):
            await accounts.authenticate(credentials, db_session)
    with pytest.raises(Exception, match="wrong"):
        await accounts.sign_in("ann", PASSWORD, db_session, actor=nobody())


async def test_O4_a_changed_role_holds_at_the_next_call(accounts: Accounts, db_session: DbSession) -> None:
    account = await accounts.create_account("ada", PASSWORD, db_session, role="admin")
    token = await accounts.create_token("ada", "ci", ("admin",), db_session)
    assert (await accounts.authenticate(given(bearer=token), db_session)).is_admin is True
    await Account.update({Account.role: "user", Account.group_name: "user"}).where(Account.id == account.id)
    assert (await accounts.authenticate(given(bearer=token), db_session)).is_admin is False


async def test_C1_a_guests_id_is_proved_by_our_signature(
    accounts: Accounts, db_session: DbSession, clock: Clock, everything: Everything, refused: Refused
) -> None:
    cookie = accounts.new_guest_cookie()
    actor = await accounts.authenticate(given(guest=cookie), db_session)
    name, signature = cookie.split(".")
    assert (actor.kind, actor.role, actor.group, actor.id) == ("guest", "guest", "guest", UUID(hex=name))
    assert actor.is_admin is False
    assert (await everything())["account"] == []
    other = Accounts(b"another secret", guests=True, now=clock)
    forged = UUID(int=7).hex
    for bad in ("", ".", name, f"{name}.", f"{forged}.{signature}", other.new_guest_cookie(), "x.y", f"{name}.ü"):
        async with refused("unauthenticated"):
            await accounts.authenticate(given(guest=bad), db_session)


async def test_without_guests_there_are_none(db_session: DbSession, clock: Clock, refused: Refused) -> None:
    accounts = Accounts(b"a secret", guests=False, now=clock)
    async with refused("unauthenticated"):
        await accounts.authenticate(given(guest=accounts.new_guest_cookie()), db_session)


async def test_names_and_passwords_that_cannot_be_are_refused(
    accounts: Accounts, db_session: DbSession, refused: Refused
) -> None:
    for name, password in (
        ("", PASSWORD),
        (" ", PASSWORD),
        ("x" * 81, PASSWORD),
        ("a\nb", PASSWORD),
        ("a\0b", PASSWORD),
        ("guest-1", PASSWORD),
        ("Guest-1", PASSWORD),
        ("System", PASSWORD),  # what the journal calls the command line
        ("a\u202eb", PASSWORD),
        ("ann", "short"),
        ("ann", "Password123"),
        ("ann", "x" * 1001),
    ):
        async with refused("invalid_request"):
            await accounts.create_account(name, password, db_session)


def test_a_password_costs_what_OWASP_asks_for() -> None:
    hasher = REAL_HASHER()
    assert (hasher.memory_cost, hasher.time_cost, hasher.parallelism) == (65536, 3, 4)
    assert f"m={hasher.memory_cost},t={hasher.time_cost},p={hasher.parallelism}" in REAL_DECOY


async def test_a_name_is_somebodys_once(accounts: Accounts, at_once: AtOnce, everything: Everything) -> None:
    results = await at_once(3, lambda _, db: accounts.create_account("ann", PASSWORD, db))
    assert (len(results.done), results.codes) == (1, ["invalid_request"] * 2)
    (row,) = (await everything())["account"]
    assert row["password_hash"].startswith("$argon2id$") and PASSWORD not in row["password_hash"]


async def test_the_set_up_link_makes_one_admin_once(
    accounts: Accounts, db_session: DbSession, at_once: AtOnce, journal: JournalRows, refused: Refused
) -> None:
    first = await accounts.new_setup_link(db_session)
    secret = await accounts.new_setup_link(db_session)
    assert first is not None and secret is not None
    async with refused("forbidden"):
        await accounts.check_setup_link(first, db_session)
    await accounts.check_setup_link(secret, db_session)
    results = await at_once(3, lambda n, db: accounts.set_up(secret, f"ada{n}", PASSWORD, db, actor=nobody()))
    (signed_in,) = results.done
    assert results.codes == ["forbidden"] * 2
    assert (await accounts.authenticate(given(login=signed_in.cookie), db_session)).is_admin is True
    assert len(await journal("account_created")) == 1
    assert await accounts.new_setup_link(db_session) is None
    async with refused("forbidden"):
        await accounts.set_up(secret, "eve", PASSWORD, db_session, actor=nobody())


# ---------------------------------------------------------------- passwords


async def test_a_password_is_its_exact_characters_however_many(accounts: Accounts, db_session: DbSession) -> None:
    long = "x" * 999 + "y"
    for name, password, others in (
        ("ann", " correct horse ", ("correct horse", " correct horse", "Correct horse ")),
        ("bob", "pässwörter", ("pa\u0308sswo\u0308rter", "passworter")),
        ("cat", long, (long[:-1], long[:64], long[:72], "x" * 1000)),
    ):
        await accounts.create_account(name, password, db_session)
        assert (await accounts.sign_in(name, password, db_session, actor=nobody())).actor.name == name
        for other in others:
            with pytest.raises(Refusal, match="wrong"):
                await accounts.sign_in(name, other, db_session, actor=nobody())


async def test_no_more_than_two_passwords_are_hashed_at_once(
    accounts: Accounts, at_once: AtOnce, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, running, most, pairs = services.accounts._hasher(), [], [], threading.Barrier(2)

    class Counting:
        """Hashes as the real one does, and counts how many do so at once."""

        def hash(self, password: str) -> str:
            running.append(password)
            most.append(len(running))
            pairs.wait(30)
            running.remove(password)
            return real.hash(password)

    monkeypatch.setattr(services.accounts, "_hasher", Counting)
    made = await at_once(8, lambda number, db: accounts.create_account(f"ann{number}", f"{PASSWORD} {number}", db))
    assert len(made.done) == 8
    assert max(most) == 2


async def test_a_sign_in_brings_a_hash_up_to_todays_parameters_even_two_at_once(
    accounts: Accounts, db_session: DbSession, at_once: AtOnce, everything: Everything, monkeypatch: pytest.MonkeyPatch
) -> None:
    await accounts.create_account("ann", PASSWORD, db_session)
    today = PasswordHasher(time_cost=2, memory_cost=16, parallelism=1)
    monkeypatch.setattr(services.accounts, "_hasher", lambda: today)
    signed_in = await at_once(3, lambda _, db: accounts.sign_in("ann", PASSWORD, db, actor=nobody(), key="k"))
    assert len({one.cookie for one in signed_in.done}) == 1 and signed_in.codes == []
    (row,) = (await everything())["account"]
    assert not today.check_needs_rehash(row["password_hash"])
    await accounts.sign_in("ann", PASSWORD, db_session, actor=nobody())
    assert (await everything())["account"] == [row]


async def test_a_sign_in_that_meets_a_change_of_the_password_is_no_way_in(
    accounts: Accounts, db_session: DbSession, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = await accounts.create_account("ann", PASSWORD, db_session)
    today = PasswordHasher(time_cost=2, memory_cost=16, parallelism=1)
    changed = today.hash("another one")

    class Meanwhile:
        """The password is changed while its old hash is being renewed."""

        check_needs_rehash, verify = today.check_needs_rehash, today.verify

        def hash(self, password: str) -> str:
            asyncio.run_coroutine_threadsafe(DbSession(engine).update(account, password_hash=changed), loop).result(10)
            account.password_hash = before
            return today.hash(password)

    before, loop = account.password_hash, asyncio.get_running_loop()
    monkeypatch.setattr(services.accounts, "_hasher", Meanwhile)
    with pytest.raises(Refusal, match="wrong"):
        await accounts.sign_in("ann", PASSWORD, db_session, actor=nobody())
    assert (await db_session.find_account(account.id)).password_hash == changed  # type: ignore[union-attr]


async def test_a_name_nobody_has_costs_the_same_hashing_as_one_somebody_has(
    accounts: Accounts, db_session: DbSession, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same time for both, shown without a clock: as many hashes, with the same parameters."""
    await accounts.create_account("ann", PASSWORD, db_session)
    off = await accounts.create_account("off", PASSWORD, db_session)
    await db_session.update(off, disabled_at=clock())
    real, verified = services.accounts._hasher(), []

    class Watched:
        """Verifies as the real one does, and remembers what it was asked."""

        check_needs_rehash = real.check_needs_rehash

        def verify(self, password_hash: str, password: str) -> bool:
            verified.append(password_hash.rsplit("$", 2)[0])
            return bool(real.verify(password_hash, password))

    monkeypatch.setattr(services.accounts, "_hasher", Watched)
    for name, password in (("ann", "wrong horse"), ("nobody", PASSWORD), ("off", PASSWORD), ("a\0", "")):
        with pytest.raises(Refusal, match="wrong"):
            await accounts.sign_in(name, password, db_session, actor=nobody())
    assert len(verified) == 4 and len(set(verified)) == 1
    assert REAL_DECOY.rsplit("$", 2)[0] == REAL_HASHER().hash(PASSWORD).rsplit("$", 2)[0]
