"""What an admin does for somebody else reads nothing of theirs, and is seen by them (SECURITY 56; RULES O2, O5)."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from db.db_session import DbSession
from services.accounts import Accounts, Credentials, SignedIn
from services.actor import SYSTEM, Actor, operator
from services.errors import PasswordChangeRequired, Refusal, Unauthenticated
from services.membership import Membership
from tests.conftest import AtOnce, Clock, Everything, JournalRows, Refused, StorageFails
from tests.services.test_accounts import cheap_passwords  # noqa: F401 - a fixture, used by every test
from web import activity

PASSWORD, TEMPORARY, OWN = "correct horse", "battery staple", "a password of mine"
SECRET = b"a secret"


@pytest.fixture
def accounts(clock: Clock) -> Accounts:
    return Accounts(SECRET, guests=True, now=clock)


@pytest.fixture
def reading(clock: Clock) -> Accounts:
    """The same where admins may read chats."""
    return Accounts(SECRET, guests=True, now=clock, admins_read=True)


@pytest.fixture
def membership(accounts: Accounts) -> Membership:
    return Membership(accounts)


@pytest.fixture
def nobody(accounts: Accounts) -> Actor:
    return accounts.nobody("192.0.2.1", "request-1")


SignsIn = Callable[..., Awaitable[SignedIn]]


@pytest.fixture
def signs_in(accounts: Accounts, db_session: DbSession, nobody: Actor) -> SignsIn:
    async def sign_in(name: str, password: str = PASSWORD, key: str | None = None) -> SignedIn:
        return await accounts.sign_in(name, password, db_session, actor=nobody, key=key, browser="Firefox on Linux")

    return sign_in


@pytest.fixture
async def people(accounts: Accounts, db_session: DbSession, signs_in: SignsIn, nobody: Actor) -> dict[str, Actor]:
    """Ann and bob, who are users, and ada, who is the admin; each is signed in."""
    found = {}
    for name in ("ann", "bob", "ada"):
        await accounts.create_account(name, PASSWORD, db_session, role="admin" if name == "ada" else "user")
        given = Credentials(None, (await signs_in(name)).cookie, "", "192.0.2.1", "request-1")
        found[name] = await accounts.authenticate(given, db_session)
    return found


@pytest.fixture
def ann(people: dict[str, Actor]) -> Actor:
    return people["ann"]


@pytest.fixture
def ada(people: dict[str, Actor]) -> Actor:
    return people["ada"]


Tells = Callable[[], Awaitable[list[str]]]


@pytest.fixture
def told(membership: Membership, db_session: DbSession, ann: Actor) -> Tells:
    """What ann sees of what was done to her account: what, by whom and why, oldest first."""

    async def told() -> list[str]:
        found = await membership.activity(ann.id, db_session, actor=ann, limit=100)
        assert found.next is None
        rows = [f"{row.what} {row.actor_name} {row.reason}".strip() for row in reversed(found.rows)]
        return rows[2:]  # made, and signed in

    return told


# ---------------------------------------------------------------- tokens


async def test_56_an_admins_token_for_somebody_is_refused_where_admins_do_not_read(
    accounts: Accounts, db_session: DbSession, ann: Actor, ada: Actor, refused: Refused, told: Tells
) -> None:
    for reason in ("", "I want to look."):
        async with refused("forbidden"):
            await accounts.create_token("ann", "x", ("read",), db_session, actor=ada, reason=reason)
    # By a script of the admin's as well.
    token = await accounts.create_token("ada", "ci", ("admin",), db_session, actor=ada)
    script = await accounts.authenticate(Credentials(token, "", "", "", ""), db_session)
    async with refused("forbidden"):
        await accounts.create_token("ann", "x", ("read",), db_session, actor=script)
    assert await told() == []


async def test_56_where_admins_read_it_needs_a_reason_and_its_owner_sees_it_also_once_it_is_revoked(
    reading: Accounts, membership: Membership, db_session: DbSession, ann: Actor, ada: Actor, refused: Refused,
    told: Tells,
) -> None:  # fmt: skip
    async with refused("invalid_request") as why:
        await reading.create_token("ann", "x", ("read",), db_session, actor=ada)
    assert why.facts == {"field": "reason"}
    token = await reading.create_token("ann", "x", ("read",), db_session, actor=ada, reason="She is away.")
    assert (await reading.authenticate(Credentials(token, "", "", "", ""), db_session)).id == ann.id
    (row,) = await membership.tokens(ann.id, db_session, actor=ann)
    await membership.revoke_token(row.id, db_session, actor=ada, reason="No longer.")
    assert [one.split()[:2] for one in await told()] == [["token_created", "ada"], ["token_revoked", "ada"]]
    assert "x: She is away." in (await told())[0]


async def test_a_service_account_has_tokens_and_neither_a_password_nor_a_login(
    accounts: Accounts, membership: Membership, db_session: DbSession, ada: Actor, signs_in: SignsIn, refused: Refused
) -> None:
    async with refused("invalid_request"):
        await accounts.create_account("robot", PASSWORD, db_session, service=True, actor=ada)
    robot = await accounts.create_account("robot", "", db_session, service=True, actor=ada)
    token = await accounts.create_token("robot", "nightly", ("chat",), db_session, actor=ada)
    assert (await accounts.authenticate(Credentials(token, "", "", "", ""), db_session)).name == "robot"
    async with refused("invalid_request"):
        await membership.set_password(robot.id, TEMPORARY, db_session, actor=ada)
    for password in ("", PASSWORD, TEMPORARY):
        with pytest.raises(Refusal, match="wrong"):
            await signs_in("robot", password)
    state = await membership.whole(robot.id, db_session, actor=ada)
    assert (state.service, state.logins, state.temporary, len(state.tokens)) == (True, [], None, 1)
    page = await membership.list_accounts(db_session, actor=ada)
    assert page.services == {robot.id}


async def test_a_service_account_is_no_admin_who_can_sign_in(
    accounts: Accounts, membership: Membership, db_session: DbSession, ada: Actor, refused: Refused
) -> None:
    await accounts.create_account("robot", "", db_session, role="admin", service=True, actor=ada)
    for change in ({"role": "user"}, {"disabled": True, "reason": "x"}):
        async with refused("invalid_request"):
            await membership.change_account(ada.id, db_session, actor=ada, **change)


async def test_where_only_a_service_account_is_an_admin_the_set_up_link_works(
    accounts: Accounts, db_session: DbSession
) -> None:
    await accounts.create_account("robot", "", db_session, role="admin", service=True)
    assert await accounts.new_setup_link(db_session) is not None


# ---------------------------------------------------------------- passwords


async def test_56_a_password_that_an_admin_sets_shows_nothing_until_it_is_replaced(
    accounts: Accounts, membership: Membership, db_session: DbSession, ann: Actor, ada: Actor, signs_in: SignsIn,
    nobody: Actor, told: Tells, everything: Everything,
) -> None:  # fmt: skip
    await membership.set_password(ann.id, TEMPORARY, db_session, actor=ada, reason="Forgotten.")
    logins = (await everything())["login"]
    with pytest.raises(PasswordChangeRequired) as raised:
        await signs_in("ann", TEMPORARY, key="k")
    assert (await everything())["login"] == logins, "there is a login already"
    ticket = str(raised.value.facts["ticket"])
    signed_in = await accounts.replace_password(ticket, OWN, db_session, actor=nobody, browser="Firefox")
    assert signed_in.actor.name == "ann" and signed_in.device
    for password in (TEMPORARY, PASSWORD):
        with pytest.raises(Refusal, match="wrong"):
            await signs_in("ann", password)
    assert (await signs_in("ann", OWN)).actor.name == "ann"
    assert (await everything())["temporary_password"] == []
    assert [one for one in await told() if "signed_in" not in one] == [
        "password_changed ada Forgotten.",
        "login_revoked ada",
        "refused  sign_in",
        "password_changed ann",
        "refused  sign_in",
    ]
    kept = repr(await everything())
    assert not any(text in kept for text in (TEMPORARY, OWN, ticket))


async def test_the_first_password_of_an_account_that_an_admin_makes_is_temporary(
    accounts: Accounts, membership: Membership, db_session: DbSession, ada: Actor, signs_in: SignsIn
) -> None:
    made = await accounts.create_account("eve", TEMPORARY, db_session, actor=ada)
    state = await membership.whole(made.id, db_session, actor=ada)
    assert state.temporary is not None and state.temporary.set_by == "ada"
    with pytest.raises(PasswordChangeRequired):
        await signs_in("eve", TEMPORARY)
    # Whoever has the machine may give one that stays, and is named.
    root = operator("root")
    await accounts.create_account("max", TEMPORARY, db_session, actor=root, temporary=True)
    with pytest.raises(PasswordChangeRequired):
        await signs_in("max", TEMPORARY)
    await membership.set_password(made.id, OWN, db_session, actor=root, temporary=False)
    assert (await signs_in("eve", OWN)).actor.id == made.id
    last = (await membership.activity(made.id, db_session, actor=ada)).rows
    assert "root via command line" in {row.actor_name for row in last}


async def test_a_ticket_is_worth_nothing_once_it_is_old_used_forged_or_the_password_is_another(
    accounts: Accounts, membership: Membership, db_session: DbSession, ann: Actor, ada: Actor, signs_in: SignsIn,
    nobody: Actor, clock: Clock, refused: Refused,
) -> None:  # fmt: skip
    async def ticket_for(password: str) -> str:
        with pytest.raises(PasswordChangeRequired) as raised:
            await signs_in("ann", password)
        return str(raised.value.facts["ticket"])

    async def spent(ticket: str) -> None:
        async with refused("forbidden"):
            await accounts.replace_password(ticket, OWN, db_session, actor=nobody)

    await membership.set_password(ann.id, TEMPORARY, db_session, actor=ada)
    ticket = await ticket_for(TEMPORARY)
    name, until, seal = ticket.split(".")
    other = Accounts(b"another secret", guests=True, now=clock)
    for forged in (
        "", "..", ticket[:-1], f"{name}.{int(until) + 9}.{seal}", f"{ada.id.hex}.{until}.{seal}", f"{name}.9e9.{seal}",
        f"{name}.{until}.ü", f"{UUID(int=7).hex}.{until}.{seal}", f"{name}.{'9' * 5000}.{seal}",
    ):  # fmt: skip
        await spent(forged)
    async with refused("forbidden"):
        await other.replace_password(ticket, OWN, db_session, actor=nobody)
    for bad in (TEMPORARY, "short", "password123", "a\0" * 9):
        async with refused("invalid_request"):
            await accounts.replace_password(ticket, bad, db_session, actor=nobody)
    await membership.set_password(ann.id, "another temporary", db_session, actor=ada)
    await spent(ticket)
    ticket = await ticket_for("another temporary")
    clock.pass_(minutes=15)
    await spent(ticket)
    ticket = await ticket_for("another temporary")
    await membership.change_account(ann.id, db_session, actor=ada, disabled=True, reason="x")
    await spent(ticket)
    await membership.change_account(ann.id, db_session, actor=ada, disabled=False)
    await accounts.replace_password(ticket, OWN, db_session, actor=nobody)
    await spent(ticket)


async def test_D1_of_many_who_replace_a_temporary_password_at_once_one_does_and_a_double_click_is_one_login(
    accounts: Accounts, membership: Membership, db_session: DbSession, ann: Actor, ada: Actor, signs_in: SignsIn,
    nobody: Actor, at_once: AtOnce, journal: JournalRows,
) -> None:  # fmt: skip
    await membership.set_password(ann.id, TEMPORARY, db_session, actor=ada)
    with pytest.raises(PasswordChangeRequired) as raised:
        await signs_in("ann", TEMPORARY)
    ticket = str(raised.value.facts["ticket"])
    together = await at_once(
        8, lambda number, db: accounts.replace_password(ticket, f"{OWN} {number}", db, actor=nobody)
    )
    assert (len(together.done), together.codes) == (1, ["forbidden"] * 7)
    assert len([row for row in await journal("password_changed") if row.from_value == "temporary"]) == 1
    await membership.set_password(ann.id, TEMPORARY, db_session, actor=ada)
    with pytest.raises(PasswordChangeRequired) as raised:
        await signs_in("ann", TEMPORARY)
    ticket = str(raised.value.facts["ticket"])
    together = await at_once(4, lambda _, db: accounts.replace_password(ticket, OWN, db, actor=nobody, key="k"))
    assert together.codes == [] and len({one.cookie for one in together.done}) == 1


async def test_a_failing_database_replaces_nothing(
    accounts: Accounts, membership: Membership, db_session: DbSession, ann: Actor, ada: Actor, signs_in: SignsIn,
    nobody: Actor, storage_fails: StorageFails, everything: Everything,
) -> None:  # fmt: skip
    await membership.set_password(ann.id, TEMPORARY, db_session, actor=ada)
    with pytest.raises(PasswordChangeRequired) as raised:
        await signs_in("ann", TEMPORARY)
    before = await everything()
    for place in ("login", "journal", "commit"):
        async with storage_fails(place):
            with pytest.raises(Refusal) as failed:
                await accounts.replace_password(
                    str(raised.value.facts["ticket"]), OWN, db_session, actor=nobody, key="k"
                )
            assert failed.value.code == "storage_unavailable"
    assert await everything() == before


async def test_a_sign_in_under_way_while_an_admin_sets_a_password_is_no_way_in(
    accounts: Accounts, membership: Membership, db_session: DbSession, ann: Actor, ada: Actor, nobody: Actor,
    monkeypatch: pytest.MonkeyPatch, everything: Everything,
) -> None:  # fmt: skip
    prove = accounts.prove

    async def proved_and_then(*args: Any, **asked: Any) -> Any:
        account = await prove(*args, **asked)
        await membership.set_password(ann.id, TEMPORARY, db_session, actor=ada)
        await db_session.drop_temporary_password(ann.id)  # what the sign-in looks at next
        return account

    monkeypatch.setattr(accounts, "prove", proved_and_then)
    with pytest.raises(Refusal, match="wrong"):
        await accounts.sign_in("ann", PASSWORD, db_session, actor=nobody)
    assert all(row["revoked_at"] for row in (await everything())["login"] if row["account_id"] == ann.id)


# ---------------------------------------------------------------- what its owner sees


async def test_O5_everything_that_is_done_to_an_account_is_seen_by_its_owner(
    accounts: Accounts, membership: Membership, db_session: DbSession, ann: Actor, ada: Actor, signs_in: SignsIn,
    told: Tells, clock: Clock,
) -> None:  # fmt: skip
    await signs_in("ann")
    await accounts.create_token("ann", "ci", ("chat",), db_session, actor=operator("root"))
    (token,) = await membership.tokens(ann.id, db_session, actor=ada)
    await membership.revoke_token(token.id, db_session, actor=ada, reason="Leaked.")
    await membership.change_account(ann.id, db_session, actor=ada, role="admin", reason="She helps.")
    await membership.change_account(ann.id, db_session, actor=ada, role="user")
    await membership.revoke_logins(ann.id, db_session, actor=ada, reason="A lost laptop.")
    await membership.change_account(ann.id, db_session, actor=ada, disabled=True, reason="Away.")
    await membership.change_account(ann.id, db_session, actor=ada, disabled=False)
    with pytest.raises(Refusal, match="wrong"):
        await signs_in("ann", "wrong horse")
    await membership.set_password(ann.id, TEMPORARY, db_session, actor=ada, reason="Asked for.")
    assert [one for one in await told() if not one.startswith("login_revoked")] == [
        "signed_in ann",
        "token_created root via command line ci",
        "token_revoked ada ci: Leaked.",
        "account_changed ada She helps.",
        "account_changed ada",
        "account_disabled ada Away.",
        "account_enabled ada",
        "refused  sign_in",
        "password_changed ada Asked for.",
    ]
    assert "login_revoked ada A lost laptop." in await told()


async def test_O5_a_disabled_account_that_is_tried_is_not_told_of_a_wrong_password(
    accounts: Accounts, membership: Membership, db_session: DbSession, ann: Actor, ada: Actor, signs_in: SignsIn
) -> None:
    """Whoever tries learns what they always do; the owner, and who looks after accounts, learn why."""
    await signs_in("ann")
    await membership.change_account(ann.id, db_session, actor=ada, disabled=True, reason="Away.")
    for password in (PASSWORD, "wrong horse"):
        with pytest.raises(Unauthenticated, match="wrong"):
            await signs_in("ann", password)
    await membership.change_account(ann.id, db_session, actor=ada, disabled=False)
    with pytest.raises(Unauthenticated, match="wrong"):
        await signs_in("ann", "wrong horse")
    rows = (await membership.activity(ann.id, db_session, actor=ann)).rows
    assert [one.text for one in activity.told(rows, ann.id, mine=True) if one.what == "refused"] == [
        "Somebody tried to sign in with a wrong password",
        "Somebody tried to sign in while the account was disabled",
    ]


async def test_O5_the_activity_goes_on_page_by_page_and_is_nobody_elses(
    accounts: Accounts, membership: Membership, db_session: DbSession, people: dict[str, Actor], ann: Actor,
    ada: Actor, refused: Refused, monkeypatch: pytest.MonkeyPatch, nobody: Actor,
) -> None:  # fmt: skip
    for number in range(7):
        await accounts.create_token("ann", f"ci {number}", ("read",), db_session, actor=ann)
    whole = (await membership.activity(ann.id, db_session, actor=ann, limit=100)).rows
    for looked in (10_000, 3):  # also where one look does not reach the next of them
        monkeypatch.setattr("db.db_session.LOOKED_ROWS", looked)
        seen, before = [], None
        while True:
            found = await membership.activity(ann.id, db_session, actor=ann, before=before, limit=4)
            seen += [row.id for row in found.rows]
            if (before := found.next) is None:
                break
        assert seen == [row.id for row in whole] and len(seen) == 9
    assert (await membership.activity(ann.id, db_session, actor=ada)).rows
    for actor, code in ((people["bob"], "session_not_found"), (nobody, "unauthenticated")):
        async with refused(code):
            await membership.activity(ann.id, db_session, actor=actor)


async def test_O5_what_its_owner_chats_is_no_security_activity(
    membership: Membership, db_session: DbSession, ann: Actor, clock: Clock, told: Tells
) -> None:
    await db_session.record("session_created", ann, clock(), owner_id=ann.id, session_id=ann.id)
    await db_session.record("refused", ann, clock(), outcome="rate_limited", reason="begin_turn", owner_id=ann.id)
    await db_session.record("configuration_applied", SYSTEM, clock() + timedelta(seconds=1))
    assert await told() == []
