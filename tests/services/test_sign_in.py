"""Signing in, out and up: once for each key, and what is written down about it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from db.db_session import DatabaseUnavailable, DbSession
from db.engine import Engine
from db.tables import Account, Login, RateBucket, RefusalCount
from services.accounts import NOBODY, Accounts, Credentials, SignedIn
from services.actor import Actor
from services.errors import Forbidden, StorageUnavailable
from services.idempotency import KEPT, KEY_CHARACTERS
from services.refusals import settle
from tests.conftest import AtOnce, Clock, Everything, JournalRows, Refused, StorageFails, Waits
from tests.services.test_accounts import cheap_passwords  # noqa: F401 - a fixture, used by every test

PASSWORD = "correct horse"
KEY = "0123456789abcdef"
SECRET = b"a secret"


@pytest.fixture
def accounts(clock: Clock) -> Accounts:
    return Accounts(SECRET, guests=True, now=clock)


@pytest.fixture
async def account(accounts: Accounts, db_session: DbSession) -> Account:
    """The account ann."""
    return await accounts.create_account("ann", PASSWORD, db_session)


@pytest.fixture
def nobody(accounts: Accounts) -> Actor:
    return accounts.nobody("192.0.2.1", "request-1")


Signs = Callable[..., Awaitable[SignedIn]]


@pytest.fixture
def signs_in(accounts: Accounts, db_session: DbSession, account: Account, nobody: Actor) -> Signs:
    """Sign in as ann, unless something else is said."""

    async def sign_in(name: str = "ann", password: str = PASSWORD, key: str | None = KEY) -> SignedIn:
        return await accounts.sign_in(name, password, db_session, actor=nobody, key=key)

    return sign_in


Whose = Callable[[str], Awaitable[str]]


@pytest.fixture
def whose(accounts: Accounts, db_session: DbSession) -> Whose:
    """The name of the account that a login's cookie proves; empty for one that proves none."""

    async def whose(cookie: str) -> str:
        try:
            return (await accounts.authenticate(Credentials(None, cookie, "", "", ""), db_session)).name
        except Exception as error:
            assert getattr(error, "code", error) == "unauthenticated"
            return ""

    return whose


# ---------------------------------------------------------------- one key, one login


async def test_D1_a_repeated_sign_in_is_answered_with_the_first_ones_login(
    signs_in: Signs, everything: Everything, clock: Clock, whose: Whose
) -> None:
    first = await signs_in()
    before = await everything()
    clock.pass_(minutes=5)
    again = await signs_in()
    assert (again.cookie, again.actor) == (first.cookie, first.actor)
    after = await everything()
    assert after == before | {"rate_bucket": after["rate_bucket"]}, "written twice"
    assert await whose(first.cookie) == "ann"
    assert len(first.cookie) == 43


async def test_D1_ten_sign_ins_at_once_with_one_key_make_one_login(
    account: Account, clock: Clock, at_once: AtOnce, everything: Everything, journal: JournalRows
) -> None:
    def sign_in(number: int, db_session: DbSession) -> Awaitable[SignedIn]:
        # Each as another process and from another address, so that none is throttled.
        process = Accounts(SECRET, guests=True, now=clock)
        actor = process.nobody(f"192.0.2.{number}", f"request-{number}")
        return process.sign_in("ann", PASSWORD, db_session, actor=actor, key=KEY)

    results = await at_once(10, sign_in)
    assert results.codes == []
    assert len({signed_in.cookie for signed_in in results.done}) == 1
    assert len((await everything())["login"]) == 1
    assert len(await journal("signed_in")) == 1


async def test_D1_without_a_key_each_sign_in_is_a_login_of_its_own(signs_in: Signs, everything: Everything) -> None:
    cookies = {(await signs_in(key=key)).cookie for key in (None, "", None)}
    rows = await everything()
    assert (len(cookies), len(rows["login"]), rows["idempotency"]) == (3, 3, [])


async def test_D1_with_another_key_it_is_another_login(signs_in: Signs, everything: Everything) -> None:
    assert (await signs_in(key="one")).cookie != (await signs_in(key="two")).cookie
    assert len((await everything())["login"]) == 2


async def test_D1_a_login_that_was_signed_out_is_not_revived_by_its_key(
    signs_in: Signs, accounts: Accounts, db_session: DbSession, nobody: Actor, whose: Whose, journal: JournalRows
) -> None:
    old = (await signs_in()).cookie
    await accounts.sign_out(old, db_session, actor=nobody)
    new = (await signs_in()).cookie
    assert (await whose(old), await whose(new)) == ("", "ann")
    assert (await signs_in()).cookie == new
    assert len(await journal("signed_in")) == 2


async def test_D1_a_login_that_has_ended_is_not_revived_by_its_key(
    signs_in: Signs, db_session: DbSession, clock: Clock, whose: Whose
) -> None:
    old = (await signs_in()).cookie
    await Login.update({Login.expires_at: clock()}).where(Login.expires_at > clock())
    assert await whose(old) == ""
    await db_session.delete_spent(0, clock(), clock() - KEPT, 100)
    new = (await signs_in()).cookie
    assert (await whose(old), await whose(new)) == ("", "ann")


async def test_D1_also_after_signing_out_many_at_once_make_one_login(
    signs_in: Signs, accounts: Accounts, db_session: DbSession, nobody: Actor, at_once: AtOnce, everything: Everything
) -> None:
    old = (await signs_in()).cookie
    await accounts.sign_out(old, db_session, actor=nobody)
    results = await at_once(8, lambda _, db: accounts.sign_in("ann", PASSWORD, db, actor=nobody, key=KEY))
    assert results.codes == []
    (new,) = {signed_in.cookie for signed_in in results.done}
    assert new != old
    assert len((await everything())["login"]) == 2


async def test_D1_a_key_that_was_forgotten_makes_a_new_login(
    signs_in: Signs, db_session: DbSession, clock: Clock, whose: Whose
) -> None:
    first = (await signs_in()).cookie
    await db_session.delete_spent(0, clock(), clock.pass_(seconds=1), 100)
    second = (await signs_in()).cookie
    assert first != second
    assert (await whose(first), await whose(second)) == ("ann", "ann")


async def test_D1_the_same_key_for_another_account_is_refused(
    signs_in: Signs, accounts: Accounts, db_session: DbSession, refused: Refused
) -> None:
    await accounts.create_account("bob", "another horse", db_session)
    await signs_in()
    await signs_in("bob", "another horse", key="another")
    async with refused("idempotency_key_reused"):
        await signs_in("bob", "another horse")
    assert (await signs_in()).actor.name == "ann"


async def test_D1_a_key_tells_nothing_to_who_has_no_right_password(signs_in: Signs, accounts: Accounts) -> None:
    await signs_in()
    told = set()
    for name, key in (("ann", KEY), ("ann", "unused"), ("ann", None), ("eve", KEY), ("eve", "unused")):
        with pytest.raises(Exception) as raised:
            await signs_in(name, "wrong horse", key)
        told.add((getattr(raised.value, "code", ""), str(raised.value)))
    assert told == {("unauthenticated", "The name or the password is wrong.")}


async def test_D1_after_a_change_of_the_password_a_key_is_another_requests(
    signs_in: Signs, accounts: Accounts, db_session: DbSession, account: Account, refused: Refused
) -> None:
    await signs_in()
    changed = await accounts.create_account("elsewhere", "new horse", db_session)
    await Account.update({Account.password_hash: changed.password_hash}).where(Account.id == account.id)
    async with refused("idempotency_key_reused"):
        await signs_in(password="new horse")


async def test_D1_a_failed_sign_in_is_not_remembered(
    signs_in: Signs, storage_fails: StorageFails, everything: Everything
) -> None:
    for place in ("login", "journal", "commit"):
        with pytest.raises((StorageUnavailable, DatabaseUnavailable)):
            async with storage_fails(place):
                await signs_in()
        rows = await everything()
        assert (rows["login"], rows["idempotency"]) == ([], [])
    await signs_in()
    assert len((await everything())["login"]) == 1


async def test_D1_a_key_that_cannot_be_is_refused_before_anything_is_counted(signs_in: Signs, refused: Refused) -> None:
    for key in ("k" * (KEY_CHARACTERS + 1), "a\0b", "\ud800"):
        async with refused("invalid_request"):
            await signs_in(key=key)
    assert await RateBucket.count() == 0
    await signs_in(key="k" * KEY_CHARACTERS)


async def test_the_database_holds_neither_cookie_nor_key_nor_what_was_typed(
    signs_in: Signs, everything: Everything, clock: Clock, db_session: DbSession, nobody: Actor
) -> None:
    """SECURITY.md B 8: people type their password where the name belongs."""
    cookie = (await signs_in()).cookie
    with pytest.raises(Exception, match="wrong"):
        await signs_in("typed canary", "wrong horse")
    held = repr([await everything(), await RefusalCount.select()])
    for text in (cookie, KEY, PASSWORD, "wrong horse", "typed canary", "192.0.2.1"):
        assert text not in held
    other = Accounts(b"another secret", guests=True, now=clock)
    assert (await other.sign_in("ann", PASSWORD, db_session, actor=nobody, key=KEY)).cookie != cookie


# ---------------------------------------------------------------- what the journal tells


async def test_J1_signing_in_and_out_is_written_down_once(
    signs_in: Signs, accounts: Accounts, db_session: DbSession, account: Account, nobody: Actor, journal: JournalRows
) -> None:
    cookie = (await signs_in()).cookie
    await signs_in()
    for _ in range(2):
        await accounts.sign_out(cookie, db_session, actor=nobody)
    rows = (await journal())[1:]
    assert [row.what for row in rows] == ["signed_in", "signed_out"]
    for row in rows:
        assert (row.actor_kind, row.actor_id, row.actor_name, row.on_behalf_of) == ("user", account.id, "ann", None)
        assert (row.owner_id, row.session_id, row.outcome, row.reason) == (account.id, None, "done", "")
        assert (row.from_value, row.to_value, row.request_id) == (None, None, "request-1")


async def test_signing_out_ends_a_login_once_and_no_other(
    signs_in: Signs, accounts: Accounts, nobody: Actor, at_once: AtOnce, journal: JournalRows, whose: Whose
) -> None:
    first, second = (await signs_in(key=None)).cookie, (await signs_in(key=None)).cookie
    results = await at_once(5, lambda _, db: accounts.sign_out(first, db, actor=nobody))
    assert results.codes == []
    assert (await whose(first), await whose(second)) == ("", "ann")
    assert len(await journal("signed_out")) == 1


async def test_signing_out_without_a_login_writes_nothing(
    accounts: Accounts, db_session: DbSession, nobody: Actor, everything: Everything
) -> None:
    before = await everything()
    for cookie in ("", "of nobody", "\ud800"):
        await accounts.sign_out(cookie, db_session, actor=nobody)
    assert await everything() == before


async def test_J2_a_failed_sign_in_is_noted_and_the_others_of_a_minute_are_counted(
    signs_in: Signs, account: Account, journal: JournalRows, clock: Clock, nobody: Actor, db_session: DbSession
) -> None:
    for name in ("ann", "eve", *["ann"] * 5):
        with pytest.raises(Exception, match="wrong"):
            await signs_in(name, "wrong horse")
    # For each account by itself, so that its owner sees it; what nobody has is no name, and sometimes a password.
    anns, nobodys = await journal("refused")
    for row, owner in ((anns, account.id), (nobodys, None)):
        assert (row.actor_kind, row.actor_id, row.actor_name) == ("guest", NOBODY, "")
        assert (row.outcome, row.reason, row.owner_id) == ("unauthenticated", "sign_in", owner)
        assert (row.from_value, row.request_id) == (nobody.rate_key, "request-1")
    counts = {count.actor_id: (count.code, count.times) for count in await RefusalCount.objects()}
    assert counts == {account.id: ("unauthenticated", 6), NOBODY: ("unauthenticated", 1)}
    clock.pass_(minutes=1)
    with pytest.raises(Exception, match="wrong"):
        await signs_in("ann", "wrong horse")
    assert len(await journal("refused")) == 3
    await settle(clock, db_session)
    (row,) = await journal("refusals_counted")
    assert (row.owner_id, row.from_value, row.to_value) == (account.id, nobody.rate_key, "5")


async def test_J2_a_throttled_sign_in_and_a_reused_key_are_noted(
    signs_in: Signs, accounts: Accounts, db_session: DbSession, journal: JournalRows, clock: Clock
) -> None:
    await accounts.create_account("bob", PASSWORD, db_session)
    await signs_in()
    with pytest.raises(Exception, match="already used"):
        await signs_in("bob")
    for _ in range(11):
        with pytest.raises(Exception, match=r"wrong|Too many"):
            await signs_in("ann", "wrong horse")
    rows = {row.outcome: row for row in await journal("refused")}
    assert set(rows) == {"idempotency_key_reused", "unauthenticated", "rate_limited"}
    for row in rows.values():
        assert (row.actor_kind, row.actor_id, row.actor_name, row.reason) == ("guest", NOBODY, "", "sign_in")


async def test_C4_the_addresses_of_one_network_are_noted_as_one(accounts: Accounts) -> None:
    same = {accounts.nobody(address, "").rate_key for address in ("2001:db8::1", "2001:db8::2:3")}
    other = accounts.nobody("2001:db8:0:1::1", "").rate_key
    assert len(same) == 1 and other not in same and "2001" not in other


# ---------------------------------------------------------------- the first admin


@pytest.fixture
async def link(accounts: Accounts, db_session: DbSession) -> str:
    """The secret of the set-up link."""
    secret = await accounts.new_setup_link(db_session)
    assert secret is not None
    return secret


@pytest.fixture
def sets_up(accounts: Accounts, db_session: DbSession, nobody: Actor, link: str) -> Signs:
    """Become the admin ada, unless something else is said."""

    async def set_up(name: str = "ada", password: str = PASSWORD, key: str | None = KEY, **other: Any) -> SignedIn:
        asked = {"secret": link, "db_session": db_session, "actor": nobody} | other
        return await accounts.set_up(name=name, password=password, key=key, **asked)

    return set_up


async def test_D1_two_set_ups_at_once_with_one_key_are_both_signed_in_as_the_new_admin(
    sets_up: Signs, at_once: AtOnce, everything: Everything, journal: JournalRows, whose: Whose
) -> None:
    results = await at_once(5, lambda _, db: sets_up(db_session=db))
    assert results.codes == []
    assert len({signed_in.cookie for signed_in in results.done}) == 1
    assert {signed_in.actor.kind for signed_in in results.done} == {"admin"}
    assert await whose(results.done[0].cookie) == "ada"
    rows = await everything()
    assert (len(rows["account"]), len(rows["login"])) == (1, 1)
    assert [row.what for row in await journal()] == ["account_created", "signed_in"]


async def test_D1_a_repeated_set_up_is_answered_with_the_same_login_and_changes_nothing(
    sets_up: Signs, everything: Everything
) -> None:
    first = await sets_up()
    before = await everything()
    assert (await sets_up()).cookie == first.cookie
    after = await everything()
    assert after == before | {"rate_bucket": after["rate_bucket"]}


async def test_D1_a_repeated_set_up_proves_the_password_again(
    sets_up: Signs, accounts: Accounts, db_session: DbSession, nobody: Actor, refused: Refused, whose: Whose
) -> None:
    """The link and the key are in a log and on a page; neither is a way in."""
    first = await sets_up()
    async with refused("idempotency_key_reused"):
        await sets_up("eve")
    for _ in range(10):
        with pytest.raises(Exception, match="wrong"):
            await sets_up(password="wrong horse")
    with pytest.raises(Exception, match="Too many"):
        await sets_up(password="wrong horse")
    assert await whose(first.cookie) == "ada"


async def test_the_spent_link_is_no_way_in_under_another_key(
    sets_up: Signs, refused: Refused, everything: Everything
) -> None:
    await sets_up()
    for key in ("another", None, ""):
        async with refused("forbidden"):
            await sets_up(key=key)
    async with refused("idempotency_key_reused"):
        await sets_up(secret="another link")


async def test_a_signed_out_admin_comes_back_by_the_same_form_with_a_new_login(
    sets_up: Signs, accounts: Accounts, db_session: DbSession, nobody: Actor, whose: Whose
) -> None:
    old = (await sets_up()).cookie
    await accounts.sign_out(old, db_session, actor=nobody)
    new = (await sets_up()).cookie
    assert (await whose(old), await whose(new)) == ("", "ada")


async def test_J2_a_refused_set_up_is_noted(sets_up: Signs, journal: JournalRows) -> None:
    with pytest.raises(Exception, match="does not work"):
        await sets_up(secret="wrong")
    (row,) = await journal("refused")
    assert (row.outcome, row.reason, row.actor_id, row.actor_name) == ("forbidden", "set_up", NOBODY, "")


async def test_J2_a_name_that_cannot_be_is_noted_too(sets_up: Signs, journal: JournalRows) -> None:
    with pytest.raises(Exception, match="characters"):
        await sets_up(name="")
    with pytest.raises(Exception, match="idempotency key"):
        await sets_up(key="k" * (KEY_CHARACTERS + 1))
    (row,) = await journal("refused")
    assert (row.outcome, row.reason) == ("invalid_request", "set_up")


async def test_a_link_that_does_not_work_is_refused_before_anything_is_hashed(sets_up: Signs, refused: Refused) -> None:
    """A password that cannot be would be the answer if it had come to that."""
    async with refused("forbidden"):
        await sets_up(secret="wrong", password="short")
    async with refused("invalid_request"):
        await sets_up(password="short")


async def test_a_link_that_was_not_used_makes_no_second_admin(
    sets_up: Signs, accounts: Accounts, db_session: DbSession, refused: Refused, link: str
) -> None:
    await accounts.create_account("root", PASSWORD, db_session, role="admin")
    with pytest.raises(Exception, match="does not work"):
        await accounts.check_setup_link(link, db_session)
    async with refused("forbidden"):
        await sets_up()


async def test_a_link_made_while_another_is_used_is_dead_at_once(
    sets_up: Signs, accounts: Accounts, at_once: AtOnce, everything: Everything, db_session: DbSession
) -> None:
    async def either(number: int, db: DbSession) -> object:
        return await (sets_up(db_session=db, key=None) if number == 3 else accounts.new_setup_link(db))

    results = await at_once(8, either)
    assert results.codes in ([], ["forbidden"])
    rows = await everything()
    assert [row["role"] for row in rows["account"]] == ([] if results.codes else ["admin"])
    assert await accounts.new_setup_link(db_session) is None or results.codes


async def test_a_refused_set_up_leaves_the_link_for_the_next(sets_up: Signs, account: Account) -> None:
    with pytest.raises(Exception, match="already"):
        await sets_up("ann")
    assert (await sets_up()).actor.is_admin is True


async def test_an_admin_made_while_the_link_is_used_leaves_one_of_the_two(
    accounts: Accounts, engine: Engine, db_session: DbSession, link: str, nobody: Actor, waits: Waits
) -> None:
    made, go_on = asyncio.Event(), asyncio.Event()

    async def make() -> None:
        db = DbSession(engine)
        async with db.transaction():
            await accounts.create_account("boss", PASSWORD, db, role="admin")
            made.set()
            await go_on.wait()

    making = asyncio.create_task(make())
    await made.wait()
    setting_up = asyncio.create_task(accounts.set_up(link, "kim", PASSWORD, DbSession(engine), actor=nobody))
    await waits()
    go_on.set()
    await making
    with pytest.raises(Forbidden):
        await setting_up
    assert [row["name"] for row in await Account.select(Account.name)] == ["boss"]
