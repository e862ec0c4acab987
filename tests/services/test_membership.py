"""What becomes of accounts: who may see and change whose, with their logins and tokens; on both databases."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest

from db.db_session import DbSession
from db.tables import Account
from services.accounts import Accounts, Credentials
from services.actor import SYSTEM, Actor
from services.errors import Refusal
from services.membership import Membership
from tests.conftest import AtOnce, Clock, Configuration, Everything, JournalRows, Refused, StorageFails
from tests.services.test_accounts import cheap_passwords  # noqa: F401 - a fixture, used by every test

PASSWORD, OTHER = "correct horse", "battery staple"
ABSENT = UUID("01890000-0000-7000-8000-0000000000aa")


@pytest.fixture
def accounts(clock: Clock) -> Accounts:
    return Accounts(b"a secret", guests=True, now=clock)


@pytest.fixture
def membership(accounts: Accounts) -> Membership:
    return Membership(accounts)


@pytest.fixture
def nobody(accounts: Accounts) -> Actor:
    return accounts.nobody("192.0.2.1", "request-1")


Come = Callable[[str], Awaitable[Actor]]


@pytest.fixture
async def come(accounts: Accounts, db_session: DbSession, nobody: Actor) -> Come:
    """Sign somebody in; ann and bob are users, ada is the admin."""
    for name, role in (("ann", "user"), ("bob", "user"), ("ada", "admin")):
        await accounts.create_account(name, PASSWORD, db_session, role=role)  # type: ignore[arg-type]

    async def come(name: str, password: str = PASSWORD) -> Actor:
        cookie = (await accounts.sign_in(name, password, db_session, actor=nobody)).cookie
        return await accounts.authenticate(Credentials(None, cookie, "", "192.0.2.1", "request-1"), db_session)

    return come


@pytest.fixture
async def ann(come: Come) -> Actor:
    return await come("ann")


@pytest.fixture
async def bob(come: Come) -> Actor:
    return await come("bob")


@pytest.fixture
async def ada(come: Come) -> Actor:
    return await come("ada")


@pytest.fixture
async def scripts(accounts: Accounts, db_session: DbSession, ann: Actor, ada: Actor) -> list[Actor]:
    """Tokens of ann's, read and chat, and ada's without the scope of an admin."""
    made = []
    for name, scope in (("ann", "read"), ("ann", "chat"), ("ada", "chat")):
        token = await accounts.create_token(name, "ci", (scope,), db_session)
        made.append(await accounts.authenticate(Credentials(token, "", "", "", ""), db_session))
    return made


Verb = Callable[[Membership, DbSession, Actor, Any], Awaitable[Any]]
#: each with somebody's account, login and token
OF_ANYBODY: dict[str, Verb] = {
    "account": lambda m, db, actor, whose: m.account(whose["account"], db, actor=actor),
    "logins": lambda m, db, actor, whose: m.logins(whose["account"], db, actor=actor),
    "tokens": lambda m, db, actor, whose: m.tokens(whose["account"], db, actor=actor),
    "revoke_login": lambda m, db, actor, whose: m.revoke_login(whose["login"], db, actor=actor, reason="x"),
    "revoke_logins": lambda m, db, actor, whose: m.revoke_logins(whose["account"], db, actor=actor, reason="x"),
    "revoke_token": lambda m, db, actor, whose: m.revoke_token(whose["token"], db, actor=actor, reason="x"),
}
OF_ADMINS: dict[str, Verb] = {
    "list_accounts": lambda m, db, actor, whose: m.list_accounts(db, actor=actor),
    "change_account": lambda m, db, actor, whose: m.change_account(
        whose["account"], db, actor=actor, disabled=True, reason="x"
    ),
    "set_password": lambda m, db, actor, whose: m.set_password(whose["account"], OTHER, db, actor=actor),
}


@pytest.fixture
async def anns(accounts: Accounts, membership: Membership, db_session: DbSession, ann: Actor) -> dict[str, UUID | None]:
    """The ids of what is ann's."""
    await accounts.create_token("ann", "ci", ("chat",), db_session)
    (token,) = await membership.tokens(ann.id, db_session, actor=ann)
    return {"account": ann.id, "login": ann.login_id, "token": token.id}


@pytest.mark.parametrize("verb", OF_ANYBODY)
async def test_what_is_anothers_is_not_there(
    membership: Membership, db_session: DbSession, bob: Actor, anns: Any, refused: Refused, verb: str
) -> None:
    said = set()
    for whose in (anns, dict.fromkeys(anns, ABSENT)):
        async with refused("session_not_found") as told:
            await OF_ANYBODY[verb](membership, db_session, bob, whose)
        said.add(str(told.refusal))
    assert len(said) == 1


@pytest.mark.parametrize("verb", OF_ANYBODY)
@pytest.mark.parametrize("who", ["ann", "ada"])
async def test_ones_own_is_seen_and_ended_and_an_admin_does_so_for_everybody(
    membership: Membership, db_session: DbSession, ann: Actor, ada: Actor, anns: Any, verb: str, who: str
) -> None:
    actor = ann if who == "ann" else ada
    await OF_ANYBODY[verb](membership, db_session, actor, anns)
    left = {
        "revoke_login": await membership.logins(ann.id, db_session, actor=ann),
        # The login that asks for it stays.
        "revoke_logins": (await membership.logins(ann.id, db_session, actor=ann)) if who == "ada" else [],
        "revoke_token": await membership.tokens(ann.id, db_session, actor=ann),
    }
    assert left.get(verb, []) == []


@pytest.mark.parametrize("verb", OF_ADMINS)
async def test_only_an_admin_lists_and_changes_accounts(
    membership: Membership,
    db_session: DbSession,
    ann: Actor,
    anns: Any,
    scripts: list[Actor],
    refused: Refused,
    verb: str,
) -> None:
    for actor in (ann, *scripts):
        async with refused("forbidden"):
            await OF_ADMINS[verb](membership, db_session, actor, anns)


async def test_a_script_changes_no_account_and_a_guest_has_none(
    accounts: Accounts, membership: Membership, db_session: DbSession, nobody: Actor, anns: Any,
    scripts: list[Actor], refused: Refused,
) -> None:  # fmt: skip
    for verb in ("revoke_login", "revoke_logins", "revoke_token"):
        for script in scripts:
            async with refused("forbidden"):
                await OF_ANYBODY[verb](membership, db_session, script, anns)
    for verb, call in OF_ANYBODY.items():
        async with refused("unauthenticated"):
            await call(membership, db_session, nobody, anns)
        assert verb
    for script in scripts:
        async with refused("forbidden"):
            await membership.change_password(PASSWORD, OTHER, db_session, actor=script, address=nobody)
        async with refused("forbidden"):
            await accounts.create_token(script.name, "more", ("read",), db_session, actor=script)
        assert len(await membership.tokens(script.id, db_session, actor=script)) >= 1


async def test_guests_are_not_listed_and_the_list_goes_on_by_name(
    accounts: Accounts, membership: Membership, db_session: DbSession, ada: Actor, clock: Clock
) -> None:
    await db_session.add(Account(id=ABSENT, name="guest-1", role="guest", group_name="guest", created_at=clock()))
    seen, after = [], ""
    while True:
        page = await membership.list_accounts(db_session, actor=ada, after=after, limit=1)
        seen += [one.name for one in page.accounts]
        if page.next is None:
            break
        after = page.next
    assert seen == ["ada", "ann", "bob"]
    found = await membership.list_accounts(db_session, actor=SYSTEM, q="B")
    assert [one.name for one in found.accounts] == ["bob"]
    assert (await membership.list_accounts(db_session, actor=ada, q="%")).accounts == []
    assert (await membership.account_named("ann", db_session, actor=ada)).name == "ann"
    with pytest.raises(Refusal):
        await membership.account_named("guest-1", db_session, actor=ada)


# ---------------------------------------------------------------- roles, groups, and the way in


async def test_a_role_takes_its_group_along_and_is_written_down(
    membership: Membership, db_session: DbSession, ann: Actor, ada: Actor, journal: JournalRows, clock: Clock
) -> None:
    changed = await membership.change_account(ann.id, db_session, actor=ada, role="admin", reason="She helps.")
    assert (changed.role, changed.group_name) == ("admin", "admin")
    await membership.change_account(ann.id, db_session, actor=ada, role="admin")
    (row,) = await journal("account_changed")
    assert (row.actor_name, row.owner_id, row.reason, row.at) == ("ada", ann.id, "She helps.", clock())
    assert (row.from_value, row.to_value) == ("user, group user", "admin, group admin")
    changed = await membership.change_account(ann.id, db_session, actor=ada, role="user", group="admin")
    changed = await membership.change_account(ann.id, db_session, actor=ada, role="user")
    assert (changed.role, changed.group_name) == ("user", "admin")


async def test_a_group_has_to_be_there(
    membership: Membership, accounts: Accounts, db_session: DbSession, ann: Actor, ada: Actor, refused: Refused,
    configuration: Configuration,
) -> None:  # fmt: skip
    await configuration.begin()
    for group in ("nowhere", "*", ""):
        async with refused("invalid_request"):
            await membership.change_account(ann.id, db_session, actor=ada, group=group)
    async with refused("invalid_request"):
        await accounts.create_account("eve", PASSWORD, db_session, group="nowhere", actor=ada)
    changed = await membership.change_account(ann.id, db_session, actor=ada, group="guest")
    assert (changed.role, changed.group_name) == ("user", "guest")


async def test_who_is_disabled_is_out_and_comes_back_by_signing_in_again(
    accounts: Accounts, membership: Membership, db_session: DbSession, come: Come, ann: Actor, ada: Actor,
    nobody: Actor, journal: JournalRows, refused: Refused,
) -> None:  # fmt: skip
    token = await accounts.create_token("ann", "ci", ("chat",), db_session)
    await membership.change_account(ann.id, db_session, actor=ada, disabled=True, reason="Left.")
    async with refused("unauthenticated"):
        await accounts.authenticate(Credentials(token, "", "", "", ""), db_session)
    with pytest.raises(Refusal, match="wrong"):
        await accounts.sign_in("ann", PASSWORD, db_session, actor=nobody)
    await membership.change_account(ann.id, db_session, actor=ada, disabled=True)
    await membership.change_account(ann.id, db_session, actor=ada, disabled=False)
    assert await membership.logins(ann.id, db_session, actor=ada) == []
    assert (await come("ann")).id == ann.id
    assert [row.reason for row in await journal("account_disabled")] == ["Left."]
    assert len(await journal("account_enabled")) == 1


async def test_the_last_admin_stays_one_even_of_two_who_demote_each_other_at_once(
    accounts: Accounts, membership: Membership, db_session: DbSession, come: Come, ada: Actor, at_once: AtOnce,
    refused: Refused,
) -> None:  # fmt: skip
    for change in ({"role": "user"}, {"disabled": True}):
        async with refused("invalid_request"):
            await membership.change_account(ada.id, db_session, actor=ada, **change)
    await accounts.create_account("eva", PASSWORD, db_session, role="admin")
    eva = await come("eva")

    async def demote(number: int, db: DbSession) -> Account:
        victim, by = ((ada, eva), (eva, ada))[number]
        return await membership.change_account(victim.id, db, actor=by, role="user")

    together = await at_once(2, demote)
    assert (len(together.done), together.codes) == (1, ["invalid_request"])
    assert await db_session.count_admins() == 1


# ---------------------------------------------------------------- passwords


async def test_a_changed_password_ends_every_other_login_and_keeps_this_one(
    accounts: Accounts, membership: Membership, db_session: DbSession, come: Come, ann: Actor, nobody: Actor,
    journal: JournalRows,
) -> None:  # fmt: skip
    await come("ann")
    await membership.change_password(PASSWORD, OTHER, db_session, actor=ann, address=nobody, key="k")
    assert [one.id for one in await membership.logins(ann.id, db_session, actor=ann)] == [ann.login_id]
    with pytest.raises(Refusal, match="wrong"):
        await accounts.sign_in("ann", PASSWORD, db_session, actor=nobody)
    assert (await come("ann", OTHER)).id == ann.id
    assert len(await journal("password_changed")) == len(await journal("login_revoked")) == 1
    # A double click, whose old password is no longer right.
    await membership.change_password(PASSWORD, OTHER, db_session, actor=ann, address=nobody, key="k")
    assert len(await journal("password_changed")) == 1


async def test_a_password_is_changed_only_by_who_knows_it_and_guesses_are_counted(
    membership: Membership, db_session: DbSession, ann: Actor, nobody: Actor, clock: Clock, refused: Refused
) -> None:
    codes = []
    for _ in range(11):
        with pytest.raises(Refusal) as raised:
            await membership.change_password("wrong horse", OTHER, db_session, actor=ann, address=nobody)
        codes.append(raised.value.code)
    assert codes == ["invalid_request"] * 10 + ["rate_limited"]
    with pytest.raises(Refusal, match="Too many"):
        await membership.change_password(PASSWORD, OTHER, db_session, actor=ann, address=nobody)
    clock.pass_(minutes=1)
    with pytest.raises(Refusal, match="characters"):
        await membership.change_password(PASSWORD, "short", db_session, actor=ann, address=nobody)


async def test_of_two_changes_of_a_password_at_once_one_holds(
    membership: Membership, db_session: DbSession, ann: Actor, nobody: Actor, at_once: AtOnce, journal: JournalRows
) -> None:
    async def change(number: int, db: DbSession) -> None:
        await membership.change_password(PASSWORD, f"{OTHER} {number}", db, actor=ann, address=nobody)

    together = await at_once(4, change)
    assert (len(together.done), together.codes) == (1, ["invalid_request"] * 3)
    assert len(await journal("password_changed")) == 1


async def test_a_login_and_a_token_end_once_however_many_end_them_at_once(
    accounts: Accounts, membership: Membership, db_session: DbSession, ann: Actor, ada: Actor, come: Come,
    at_once: AtOnce, journal: JournalRows,
) -> None:  # fmt: skip
    other, who = await come("ann"), [ann, ada]
    await accounts.create_token("ann", "laptop", ("chat",), db_session, actor=ann)
    (token,) = await membership.tokens(ann.id, db_session, actor=ann)
    assert other.login_id is not None
    for what, end in (
        ("login_revoked", lambda n, db: membership.revoke_login(other.login_id, db, actor=who[n % 2], reason="x")),
        ("token_revoked", lambda n, db: membership.revoke_token(token.id, db, actor=who[n % 2], reason="x")),
    ):
        together = await at_once(6, end)
        assert (len(together.done), together.codes) == (1, ["session_not_found"] * 5), what
        assert len(await journal(what)) == 1


async def test_an_admin_gives_a_password_and_every_login_ends(
    accounts: Accounts, membership: Membership, db_session: DbSession, come: Come, ann: Actor, ada: Actor,
    everything: Everything,
) -> None:  # fmt: skip
    for _ in range(2):
        await membership.set_password(ann.id, OTHER, db_session, actor=ada, reason="Forgotten.", key="k")
    assert await membership.logins(ann.id, db_session, actor=ada) == []
    with pytest.raises(Refusal, match="temporary"):
        await come("ann", OTHER)
    rows = await everything()
    kept = repr({name: rows[name] for name in ("idempotency", "journal")})
    assert OTHER not in kept and accounts.sealed(OTHER) not in kept
    assert [row["reason"] for row in rows["journal"] if row["what"] == "password_changed"] == ["Forgotten."]


# ---------------------------------------------------------------- accounts and tokens, once for each key


async def test_D1_an_account_is_made_once_for_each_key(
    accounts: Accounts, db_session: DbSession, ada: Actor, ann: Actor, at_once: AtOnce, refused: Refused
) -> None:
    async def create(_: int, db: DbSession) -> UUID:
        return (await accounts.create_account("eve", PASSWORD, db, actor=ada, key="k")).id

    together = await at_once(4, create)
    assert (len(set(together.done)), together.codes) == (1, [])
    async with refused("invalid_request"):
        await accounts.create_account("eve", PASSWORD, db_session, actor=ada)
    async with refused("forbidden"):
        await accounts.create_account("max", PASSWORD, db_session, actor=ann)


async def test_D1_a_token_is_made_once_for_each_key_and_told_the_same(
    accounts: Accounts,
    membership: Membership,
    db_session: DbSession,
    ann: Actor,
    at_once: AtOnce,
    everything: Everything,
) -> None:
    async def create(_: int, db: DbSession) -> str:
        return await accounts.create_token("ann", "ci", ("chat",), db, actor=ann, key="k")

    together = await at_once(4, create)
    (token,) = set(together.done)
    assert (await accounts.authenticate(Credentials(token, "", "", "", ""), db_session)).id == ann.id
    assert len(await membership.tokens(ann.id, db_session, actor=ann)) == 1
    assert token not in repr(await everything())
    other = await accounts.create_token("ann", "ci", ("chat",), db_session, actor=ann)
    assert other != token


async def test_nobody_makes_a_token_of_another(
    accounts: Accounts, db_session: DbSession, ann: Actor, nobody: Actor, refused: Refused
) -> None:
    async with refused("forbidden"):
        await accounts.create_token("bob", "mine", ("read",), db_session, actor=ann)
    async with refused("unauthenticated"):
        await accounts.create_token("bob", "mine", ("read",), db_session, actor=nobody)
    async with refused("invalid_request"):
        await accounts.create_token("ann", " ", ("read",), db_session, actor=ann)


async def test_a_failing_database_changes_nothing(
    membership: Membership, db_session: DbSession, ann: Actor, ada: Actor, anns: Any, storage_fails: StorageFails,
    everything: Everything,
) -> None:  # fmt: skip
    before = await everything()
    for place in ("journal", "commit"):
        async with storage_fails(place):
            for verb in (*OF_ADMINS.values(), *OF_ANYBODY.values()):
                try:
                    await verb(membership, db_session, ada, anns)
                except Refusal as refusal:
                    assert refusal.code == "storage_unavailable"
    assert await everything() == before


#: what takes something from an account, by what the journal calls it
TAKING: dict[str, Callable[[Membership, DbSession, Actor, Any, str], Awaitable[Any]]] = {
    "account_disabled": lambda m, db, actor, whose, why: m.change_account(
        whose["account"], db, actor=actor, disabled=True, reason=why
    ),
    "login_revoked": lambda m, db, actor, whose, why: m.revoke_login(whose["login"], db, actor=actor, reason=why),
    "logins_revoked": lambda m, db, actor, whose, why: m.revoke_logins(whose["account"], db, actor=actor, reason=why),
    "token_revoked": lambda m, db, actor, whose, why: m.revoke_token(whose["token"], db, actor=actor, reason=why),
}


@pytest.mark.parametrize("what", TAKING)
async def test_O2_nothing_is_taken_from_somebody_elses_account_without_a_reason(
    membership: Membership, db_session: DbSession, ann: Actor, ada: Actor, anns: Any, what: str, refused: Refused,
    everything: Everything, journal: JournalRows,
) -> None:  # fmt: skip
    before = await everything()
    async with refused("invalid_request") as told:
        await TAKING[what](membership, db_session, ada, anns, " ")
    assert told.refusal.facts["field"] == "reason"
    assert await everything() == before
    await TAKING[what](membership, db_session, ada, anns, "a lost laptop")
    rows = await journal(what.replace("logins", "login"))
    assert rows and all(row.owner_id == ann.id and row.reason.endswith("a lost laptop") for row in rows)


@pytest.mark.parametrize("what", ["login_revoked", "logins_revoked", "token_revoked"])
async def test_ones_own_is_ended_without_a_reason(
    membership: Membership, db_session: DbSession, ann: Actor, anns: Any, what: str
) -> None:
    await TAKING[what](membership, db_session, ann, anns, "")
