"""Names that look like another's, or hide something, are refused (SECURITY 59); those of before keep working."""

import pytest

from db.db_session import DbSession
from db.tables import Account, AccountSkeleton
from services import accounts as accounts_module
from services.accounts import Accounts
from services.actor import Actor
from services.errors import InvalidRequest, Refusal
from services.governance import Governance
from services.names import checked_name, look_alike, skeletons
from services.session_service import SessionService
from tests.conftest import AtOnce, Clock, Everything, Refused, an_actor
from tests.services.test_accounts import cheap_passwords  # noqa: F401 - a fixture, used by every test

PASSWORD = "correct horse"
#: beside `ada`; each is typed by somebody who wants to be taken for her, or by mistake
LIKE_ADA = {
    "a capital": "Ada",
    "capitals": "ADA",
    "Cyrillic letters": "\u0430\u0501\u0430",
    "fullwidth letters": "\uff41\uff44\uff41",
    "mathematical letters": "\U0001d41a\U0001d41d\U0001d41a",
    "blanks around it": "  ada ",
}
#: what nobody is called
HIDDEN = {
    "one Cyrillic letter": "\u0430da",
    "one Greek letter": "ad\u03b1",
    "a Hangul filler": "ada\u3164",
    "a halfwidth filler": "\uffa0ada",
    "a zero-width space": "a\u200bda",
    "a zero-width joiner": "a\u200dda",
    "a word joiner": "ada\u2060",
    "a soft hyphen": "a\u00adda",
    "a byte-order mark": "\ufeffada",
    "a variation selector": "ada\ufe0f",
    "a grapheme joiner": "a\u034fda",
    "a tag": "ada\U000e0061",
    "a blank of Braille": "ada\u2800",
    "right to left": "\u202eada",
    "an isolate": "\u2067ada\u2069",
    "a mark of direction": "ada\u200f",
    "a line below": "a\u0332da",
    "a stroke through it": "ad\u0338a",
    "a circle around it": "ada\u20dd",
    "a heap of marks": "ad" + "\u0301" * 9 + "a",
    "a mark on nothing": "\u0301ada",
    "a mark on a digit": "ada1\u0301",
    "a blank of no width": "a\u2009da",
    "a private character": "ada\ue000",
    "no character": "ada\u0378",
    "a half": "ada\ud800",
    "a line": "a\nda",
    "only fillers": "\u3164\u3164",
}
#: what people are called, in many alphabets
GOOD = (
    "ada", "Jean-Luc Ponty", "O’Brien", "José", "Zoë", "Søren", "Łukasz", "Ọlá\u0301ńrewájú", "Nguyễn Thị Bích",
    "Анна Иванова",
    "Анна Smith", "Ελένη", "محمد", "מֹשֶׁה", "नमस्ते", "สมชาย", "李雷", "はなこ", "김철수",
    "ada-2", "ops@example", "😀", "straße",
)  # fmt: skip


@pytest.fixture
def accounts(clock: Clock) -> Accounts:
    return Accounts(b"a secret", guests=True, now=clock)


@pytest.mark.parametrize("name", LIKE_ADA.values(), ids=LIKE_ADA)
async def test_59_a_name_that_looks_like_anothers_is_refused(
    accounts: Accounts, db_session: DbSession, refused: Refused, name: str
) -> None:
    await accounts.create_account("ada", PASSWORD, db_session)
    async with refused("invalid_request") as told:
        await accounts.create_account(name, PASSWORD, db_session)
    assert told.facts == {"field": "name"}
    assert "ada" in str(told.refusal)


@pytest.mark.parametrize("name", HIDDEN.values(), ids=HIDDEN)
def test_59_a_name_that_hides_something_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        checked_name(name)


@pytest.mark.parametrize("name", ["you", "You", "y\uff4fu", "Somebody", "SYSTEM", "guest", "Guest-12"])
async def test_59_nobody_is_called_what_pages_call_somebody_else(
    accounts: Accounts, db_session: DbSession, refused: Refused, name: str
) -> None:
    """An admin with the name "you" switched, and the page of the session's owner told that its owner had."""
    async with refused("invalid_request") as told:
        await accounts.create_account(name, PASSWORD, db_session)
    assert told.facts == {"field": "name"} and "nobody's name" in str(told.refusal)


def test_names_of_people_are_taken_and_kept_apart() -> None:
    for name in GOOD:
        assert checked_name(checked_name(name)) == checked_name(name), name
    alike = [(one, other) for one in GOOD for other in GOOD if one < other and look_alike(one, other)]
    assert alike == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Iris", "lris"), ("paul1", "paull"), ("rn", "m"), ("ann0", "annO"),
        ("jose\u0301", "josé"), ("straße", "STRASSE"),
        ("o'brien", "o’brien"), ("ı", "i"), ("ﬁn", "fin"), ("Ⅷ", "VIII"), ("a  b", "a b"),
    ],
)  # fmt: skip
def test_59_look_alikes_are_known_in_both_directions(one: str, other: str) -> None:
    one, other = checked_name(one), checked_name(other)
    assert look_alike(one, other) and look_alike(other, one)


def test_59_no_skeleton_is_longer_than_an_index_takes() -> None:
    assert all(len(one.encode()) <= 500 for one in skeletons("\ufdfa" * 80))
    assert look_alike("\ufdfa" * 80, "\ufdfa" * 80) and not look_alike("\ufdfa" * 80, "\ufdfa" * 79)


async def test_59_of_twenty_who_take_look_alikes_at_once_one_has_it(
    accounts: Accounts, at_once: AtOnce, everything: Everything, clock: Clock
) -> None:
    names = ["ada", "Ada", "ADA", "\u0430\u0501\u0430", "\uff41\uff44\uff41"] * 4

    async def create(number: int, db_session: DbSession) -> object:
        process = Accounts(b"a secret", guests=True, now=clock)
        return await process.create_account(names[number], PASSWORD, db_session)

    together = await at_once(20, create)
    assert (len(together.done), together.codes) == (1, ["invalid_request"] * 19)
    rows = await everything()
    assert len(rows["account"]) == 1 and len(rows["account_skeleton"]) == 2


async def test_59_accounts_of_before_are_known_also_where_they_look_alike_themselves(
    accounts: Accounts, db_session: DbSession, clock: Clock, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were made by a release that did not look: they stay, sign in, and nobody becomes a third of them."""
    monkeypatch.setattr(accounts_module, "SKELETONS_AT_ONCE", 2)
    await accounts.create_account("hash", PASSWORD, db_session)
    (hashed,) = await Account.objects().where(Account.name == "hash")
    await AccountSkeleton.delete(force=True)
    old = ["ada", "Ada", "\u0430da", "ada\u3164", "jose\u0301", *(f"person {number}" for number in range(5))]
    for name in old:
        row = an_actor(name)
        facts = {"role": "user", "group_name": "user", "password_hash": hashed.password_hash, "created_at": clock()}
        await db_session.add(Account(id=row.id, name=name, **facts))
    await accounts.create_account("somebody else", PASSWORD, db_session)
    for name in ("aDa", "ADA", "PERSON 3", "José"):
        async with refused("invalid_request"):
            await accounts.create_account(name, PASSWORD, db_session)
    for name in old:
        signed_in = await accounts.sign_in(name, PASSWORD, db_session, actor=accounts.nobody("192.0.2.1", ""))
        assert signed_in.actor.name == name


async def test_a_name_is_found_however_it_was_typed(accounts: Accounts, db_session: DbSession) -> None:
    """macOS types é as two characters in some places."""
    await accounts.create_account("jose\u0301", PASSWORD, db_session)
    nobody = accounts.nobody("192.0.2.1", "")
    for typed in ("josé", "jose\u0301", " josé "):
        assert (await accounts.sign_in(typed, PASSWORD, db_session, actor=nobody)).actor.name == "jos\u00e9"
    with pytest.raises(Refusal, match="wrong"):
        await accounts.sign_in("jose", PASSWORD, db_session, actor=nobody)


async def test_59_nothing_is_hidden_in_the_name_of_a_token(
    accounts: Accounts, db_session: DbSession, refused: Refused
) -> None:
    await accounts.create_account("ada", PASSWORD, db_session)
    for name in ("ci\u202e", "c\u200bi", "ci\u3164"):
        async with refused("invalid_request"):
            await accounts.create_token("ada", name, ("read",), db_session)


@pytest.mark.parametrize("name", ["Admin", "\u0430dmin", "user\u3164", "us\u0435r", "\uff55ser", "guest\u200b"])
async def test_59_a_group_that_looks_like_another_is_refused(
    sessions: SessionService, db_session: DbSession, ada: Actor, refused: Refused, name: str
) -> None:
    governance = Governance(sessions.units, {}, sessions.now)
    async with refused("invalid_request") as told:
        await governance.set_group(name, db_session, actor=ada)
    assert told.facts == {"field": "group"}
    await governance.set_group("Praktikanten", db_session, actor=ada)
    async with refused("invalid_request"):
        await governance.set_group("praktikanten", db_session, actor=ada)
    await governance.set_group("Praktikanten", db_session, actor=ada, on_missing_model="block")
