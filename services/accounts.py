"""Accounts, passwords, logins, tokens: who is asking, for every transport, in one `authenticate`."""

import asyncio
import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import cache
from ipaddress import ip_address, ip_network
from typing import Literal
from unicodedata import normalize
from uuid import UUID

import msgspec

from db.db_session import Conflict, DbSession, new_id
from db.tables import Account, ApiToken, Login, ServiceAccount
from services import rates, shortages, tickets
from services.actor import NOBODY, SYSTEM, VIA_COMMAND_LINE, Actor, require_admin, require_person
from services.catalogue import EVERYBODY
from services.devices import device_of, remembering
from services.errors import (
    Forbidden,
    InvalidRequest,
    NotFound,
    PasswordChangeRequired,
    RateLimited,
    Refusal,
    Unauthenticated,
)
from services.idempotency import checked_key
from services.names import checked_name, look_alike, require_visible, skeletons
from services.policies import Rate
from services.sign_in_limits import Attempt
from services.text import REASON_CHARACTERS, checked_line, storable
from services.unit_of_work import UnitOfWork

LOGIN = timedelta(days=30)
#: what pages and the journal call somebody who is not an account of that name
RESERVED = (SYSTEM.name, "you", "somebody", "guest")
#: a login under which nothing was done for so long has ended
LOGIN_IDLE = timedelta(days=14)
#: the use of a login is noted no more often than this
LOGIN_NOTED = timedelta(hours=1)
#: how long a temporary password that was just proved can be replaced
TICKET = timedelta(minutes=15)
TOKEN_NAME_CHARACTERS = 80
#: accounts whose names are noted in one transaction
SKELETONS_AT_ONCE = 200
PASSWORD_CHARACTERS = (8, 1000)
SCOPES = ("read", "chat", "admin")
#: of those long enough, the ones that are tried first
COMMON_PASSWORDS = """
    password password1 passw0rd password123 12345678 123456789 1234567890 11111111 00000000 87654321 88888888
    qwertyui qwertyuiop qwerty123 1q2w3e4r 1qaz2wsx asdfghjk asdfghjkl zxcvbnm1 iloveyou sunshine princess football
    baseball superman trustno1 welcome1 letmein1 admin123 administrator changeme turnkeeper abcdefgh abcd1234 abc12345
    whatever starwars computer internet michelle jennifer
"""
#: what each scope brings along
_IMPLIED = {"read": {"read"}, "chat": {"read", "chat"}, "admin": {"read", "chat", "admin"}}
LINK_IS_SPENT = "This set-up link does not work any more. A restart prints a new one while there is no admin."
TICKET_IS_SPENT = "This page is too old, or the password was changed already. Sign in again."
ASK_THE_OWNER = (
    "On this server admins do not read chats, and a token could. “{}” can create it on their own account page. "
    "For a program, make a service account and create the token for that."
)
WRONG = "The name or the password is wrong."
#: argon2 takes 64 MiB each time
_HASHING = asyncio.Semaphore(2)
_DECOY = "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHRzb21lc2FsdA$6k7mYbvA0QBMgo/6rTnTrf8vm1KQn0iRxFUTsjtSJhA"


class Credentials(msgspec.Struct, frozen=True):
    """What a request brings to say who it is."""

    #: the token of `Authorization: Bearer`; None without that header
    bearer: str | None
    login_cookie: str
    guest_cookie: str
    #: the network address it comes from
    address: str
    request_id: str


class SignedIn(msgspec.Struct, frozen=True):
    """Who has just proved an account, and the cookie that proves it from now on."""

    actor: Actor
    cookie: str
    #: the cookie by which the browser has a place of its own when it signs in again
    device: str = ""


class Accounts:
    """Accounts and the ways to prove one."""

    def __init__(self, secret: bytes, *, guests: bool, now: Callable[[], datetime], admins_read: bool = False) -> None:
        self._secret = secret
        #: whether an admin may read somebody else's chats, so that a token for them gives no more than that
        self.admins_read = admins_read
        #: whether a browser without an account may use it
        self.guests = guests
        self.now = now
        self.units = UnitOfWork(now)

    # ------------------------------------------------------------ who is asking

    async def authenticate(self, given: Credentials, db_session: DbSession) -> Actor:
        """The one answer to who asks. Raises Unauthenticated."""
        (found,) = await self._who_ask([given], db_session)
        if isinstance(found, Unauthenticated):
            raise found
        return found

    async def still(self, readers: Sequence[tuple[Credentials, Actor]], db_session: DbSession) -> list[bool]:
        """For each whether the same credentials still make the same actor."""
        found = await self._who_ask([given for given, _ in readers], db_session)
        return [
            isinstance(now, Actor) and (now.id, now.role, now.scopes) == (actor.id, actor.role, actor.scopes)
            for now, (_, actor) in zip(found, readers, strict=True)
        ]

    async def _who_ask(self, given: Sequence[Credentials], db_session: DbSession) -> list[Actor | Unauthenticated]:
        """The same for many, in a statement for tokens and one for logins."""
        bearers = {one.bearer: _hash(one.bearer) for one in given if one.bearer is not None}
        cookies = {
            one.login_cookie: _hash(one.login_cookie) for one in given if one.bearer is None and one.login_cookie
        }
        now = self.now()
        tokens = await db_session.api_tokens_of(sorted(bearers.values()), now)
        logins = await db_session.logins_of(sorted(cookies.values()), now, now - LOGIN_IDLE)
        found: list[Actor | Unauthenticated] = []
        for one in given:
            if one.bearer is not None:
                token = tokens.get(bearers[one.bearer])
                found.append(_script(*token, one) if token else Unauthenticated("This token is not valid."))
            elif (login := logins.get(cookies.get(one.login_cookie, ""))) is not None:
                found.append(_visitor(*login, one, now))
            else:
                found.append(self._guest(one))
        return found

    def _guest(self, given: Credentials) -> Actor | Unauthenticated:
        guest_id = self.guest_of(given.guest_cookie)
        if not self.guests or guest_id is None:
            return Unauthenticated()
        return Actor(
            kind="guest",
            id=guest_id,
            name=f"guest-{guest_id.hex[-12:]}",
            group="guest",
            rate_key=self._rate_key(given.address),
            networks=self._networks(given.address),
            role="guest",
            request_id=given.request_id,
        )

    def nobody(self, address: str, request_id: str) -> Actor:
        """Somebody who is about to prove an account. Without a name: what is typed there is sometimes a password."""
        return Actor(
            kind="guest",
            id=NOBODY,
            name="",
            group="guest",
            rate_key=self._rate_key(address),
            role="guest",
            request_id=request_id,
        )

    async def find_login(self, cookie: str, db_session: DbSession) -> Login | None:
        """The living login that a cookie proves."""
        now = self.now()
        return await db_session.find_login(_hash(cookie), now, now - LOGIN_IDLE)

    # ------------------------------------------------------------ guests

    def new_guest_cookie(self) -> str:
        """A cookie that proves a guest id of ours; nothing is stored until the guest makes something."""
        guest_id = new_id()
        return f"{guest_id.hex}.{self._signature(guest_id)}"

    def guest_of(self, cookie: str) -> UUID | None:
        """The guest id a cookie proves; None for one we did not make."""
        name, _, signature = cookie.partition(".")
        try:
            guest_id = UUID(hex=name)
        except ValueError:
            return None
        return guest_id if hmac.compare_digest(signature.encode(), self._signature(guest_id).encode()) else None

    def _signature(self, guest_id: UUID) -> str:
        return self._sealed(b"guest:" + guest_id.bytes).hex()

    def sealed(self, password: str) -> str:
        """A password as the content of a request is kept; only this server could try others against it."""
        return self._sealed(b"password:" + password.encode("utf-8", "surrogatepass")).hex()

    def _sealed(self, text: bytes) -> bytes:
        """What only this server makes of a text, and nobody reads back."""
        return hmac.new(self._secret, text, hashlib.sha256).digest()

    def _networks(self, address: str) -> tuple[str, ...]:
        """The networks around an IPv6 address, a /56 and a /48, as keys: who has one of these has many a /64."""
        try:
            parsed = ip_address(address)
        except ValueError:
            return ()
        if parsed.version == 4 or getattr(parsed, "ipv4_mapped", None):
            return ()
        blocks = (str(ip_network((parsed, size), strict=False)) for size in (56, 48))
        return tuple(f"network:{self._sealed(b'address:' + block.encode()).hex()[:32]}" for block in blocks)

    def _rate_key(self, address: str) -> str:
        """A network address as a rate's key: IPv6 by /64, and never readable in the database."""
        try:
            parsed = ip_address(address)
            # ::ffff:192.0.2.1 is what a dual-stack listener calls an IPv4 address.
            parsed = getattr(parsed, "ipv4_mapped", None) or parsed
            block = str(ip_network((parsed, 64), strict=False)) if parsed.version == 6 else str(parsed)
        except ValueError:
            block = address
        return f"address:{self._sealed(b'address:' + block.encode()).hex()[:32]}"

    # ------------------------------------------------------------ accounts

    async def create_account(
        self,
        name: str,
        password: str,
        db_session: DbSession,
        *,
        role: Literal["user", "admin"] = "user",
        group: str = "",
        service: bool = False,
        temporary: bool = False,
        actor: Actor = SYSTEM,
        key: str | None = None,
    ) -> Account:
        """Make an account; only an admin may. Raises Forbidden, InvalidRequest.

        A `service` account is for programs: it has no password and no logins. A password that an admin gives is
        always `temporary`; the command line may give one that stays.
        """
        temporary = not service and (temporary or actor.kind != "system")
        async with self.units.refusing("create_account", actor, db_session):
            require_admin(actor)
            if service and password:
                raise InvalidRequest("A service account has no password; programs use its tokens.", field="password")
            account = await self._new_account(name, None if service else password, role, group)
            await self._know_names(db_session)
        content = (account.name, self.sealed(password), role, group, *(("service",) if service else ()))
        async with self.units.once("create_account", key, content, actor, db_session) as once:
            if once.answer:
                return await self._made_before(UUID(once.answer), db_session)
            await require_group(account.group_name, db_session)
            await self._add(account, actor, db_session, service=service)
            if temporary:
                await db_session.put_temporary_password(account.id, actor.name, self.now())
            await once.remember(str(account.id))
            return account

    async def _made_before(self, account_id: UUID, db_session: DbSession) -> Account:
        account = await db_session.find_account(account_id)
        if account is None:
            raise NotFound("The account that this key made is gone.")
        return account

    async def _new_account(
        self, name: str, password: str | None, role: Literal["user", "admin"], group: str = ""
    ) -> Account:
        """An account not yet written: hashing takes a while, and no transaction waits for it. Raises InvalidRequest."""
        name = checked_name(name)
        folded = name.casefold()
        reserved = any(look_alike(name, one) for one in RESERVED)
        if reserved or folded.startswith("guest-") or folded.endswith(VIA_COMMAND_LINE):
            raise InvalidRequest(f"“{name}” is nobody's name: pages or the journal use it for others.", field="name")
        return Account(
            id=new_id(),
            name=name,
            role=role,
            group_name=group or role,
            password_hash=await hash_of(password) if password is not None else None,
            created_at=self.now(),
        )

    async def _add(self, account: Account, actor: Actor, db_session: DbSession, *, service: bool = False) -> None:
        try:
            async with db_session.transaction():
                if account.role == "admin":
                    # Whoever uses the set-up link at this moment sees it, or is seen.
                    await db_session.lock("setup")
                await db_session.lock("names")
                if (other := await db_session.find_account_that_looks_like(skeletons(account.name))) is not None:
                    raise InvalidRequest(_taken(account.name, other), field="name")
                await db_session.add(account)
                await db_session.add_skeletons(account.id, skeletons(account.name))
                if service:
                    await db_session.add(ServiceAccount(account_id=account.id, created_at=self.now()))
                told = f"{account.role}, service account" if service else account.role
                await db_session.record("account_created", actor, self.now(), owner_id=account.id, to_value=told)
        except Conflict as error:
            raise InvalidRequest(_taken(account.name, account.name), field="name") from error

    async def _know_names(self, db_session: DbSession) -> None:
        """Note how the names of accounts look that were made before that was noted; of two alike the first counts."""
        after = ""
        while rows := await db_session.list_people_without_skeleton(after, SKELETONS_AT_ONCE):
            async with self.units.writing(db_session):
                await db_session.lock("names")
                for row in rows:
                    await db_session.add_skeletons(row.id, skeletons(row.name))
            after = rows[-1].name

    async def create_token(
        self,
        account_name: str,
        name: str,
        scopes: tuple[str, ...],
        db_session: DbSession,
        *,
        expires_at: datetime | None = None,
        reason: str = "",
        actor: Actor = SYSTEM,
        key: str | None = None,
    ) -> str:
        """Make a script's token. Its text is told only here; a repeated key is told the same again, for a day.

        An admin makes tokens for service accounts; for somebody else only where admins may read chats, and with a
        reason. Raises Forbidden, InvalidRequest.
        """
        async with self.units.refusing("create_token", actor, db_session):
            name = require_visible(checked_line(name, TOKEN_NAME_CHARACTERS, "name"), field="name")
            reason = checked_line(reason, REASON_CHARACTERS, "reason")
            if not name:
                raise InvalidRequest("Please say what the token is for.", field="name")
            if wrong := set(scopes) - set(SCOPES):
                raise InvalidRequest(f"There is no scope {', '.join(sorted(wrong))}; there are {', '.join(SCOPES)}.")
            if expires_at is not None and expires_at <= self.now():
                raise InvalidRequest("A token ends in the future, or never.", field="expires_at")
        content = (account_name, name, scopes, expires_at, *((reason,) if reason else ()))
        async with self.units.once("create_token", key, content, actor, db_session) as once:
            require_person(actor)
            if account_name != actor.name:
                require_admin(actor)
            if once.answer:
                return self._token(UUID(once.answer), key or "")
            account = await db_session.find_account_by_name(_nameable(account_name))
            if account is None or account.role == "guest":
                raise InvalidRequest(f"There is no account “{account_name}”.", field="account")
            await self._require_may_act_for(account, reason, actor, db_session)
            if "admin" in scopes and account.role != "admin":
                raise Forbidden(f"“{account_name}” is not an admin, so its token cannot be one.")
            token_id, now = new_id(), self.now()
            token = self._token(token_id, key) if key else f"tk_{secrets.token_urlsafe(32)}"
            row = ApiToken(
                id=token_id,
                account_id=account.id,
                name=name,
                token_hash=_hash(token),
                scopes=" ".join(scopes),
                created_at=now,
                expires_at=expires_at,
            )
            await db_session.add(row)
            told = {"to_value": " ".join(scopes), "reason": f"{name}: {reason}" if reason else name}
            await db_session.record("token_created", actor, now, owner_id=account.id, **told)
            await once.remember(str(token_id))
            return token

    async def _require_may_act_for(self, account: Account, reason: str, actor: Actor, db_session: DbSession) -> None:
        """Raise Forbidden, InvalidRequest where a token would let an admin read what is not the admin's."""
        if account.id == actor.id or actor.kind == "system" or await db_session.is_service_account(account.id):
            return
        if not self.admins_read:
            raise Forbidden(ASK_THE_OWNER.format(account.name))
        if not reason:
            raise InvalidRequest(f"Please give a reason; “{account.name}” will see it.", field="reason")

    def _token(self, token_id: UUID, key: str) -> str:
        """The text of a token that was made under a key: always the same, so that it need not be kept."""
        return f"tk_{_text(self._sealed(b'token:' + token_id.bytes + key.encode()))}"

    # ------------------------------------------------------------ logins

    async def sign_in(
        self,
        name: str,
        password: str,
        db_session: DbSession,
        *,
        actor: Actor,
        key: str | None = None,
        browser: str = "",
        device: str = "",
    ) -> SignedIn:
        """Check a password and make a login; `actor` is nobody yet. A temporary password makes none.

        `browser` is what a list of logins calls it, `device` the cookie by which it is known from before.
        Raises Unauthenticated, PasswordChangeRequired, RateLimited.
        """
        key = checked_key(key)
        async with self.units.refusing("sign_in", actor, db_session):
            account = await self.prove(name, password, db_session, actor=actor, device=device)
            if await db_session.find_temporary_password(account.id) is not None:
                raise self._change_required(account)
        return self._known_again(await self._signed_in(account, key, actor, browser, db_session), account, device)

    def _known_again(self, signed_in: SignedIn, account: Account, device: str) -> SignedIn:
        """The same with the cookie by which the browser is known the next time."""
        return msgspec.structs.replace(signed_in, device=self.remembering(account, device))

    def remembering(self, account: Account, device: str) -> str:
        """The cookie of a browser that its owner has signed in with; `device` is the one it has."""
        return remembering(device, account, self._sealed)

    def _change_required(self, account: Account) -> PasswordChangeRequired:
        """The refusal of a temporary password, with the ticket to replace it."""
        until = self.now() + TICKET
        ticket = tickets.ticket_for(account, until, self._sealed)
        refusal = PasswordChangeRequired(name=account.name, ticket=ticket, expires_at=until)
        refusal.account_id = account.id
        return refusal

    async def replace_password(
        self,
        ticket: str,
        password: str,
        db_session: DbSession,
        *,
        actor: Actor,
        key: str | None = None,
        browser: str = "",
        device: str = "",
    ) -> SignedIn:
        """Put one's own password in the place of a temporary one that was just proved, and sign in.

        `actor` is nobody yet. Raises Forbidden, InvalidRequest.
        """
        async with self.units.refusing("replace_password", actor, db_session):
            key = checked_key(key)
            account, password_hash = await self._holder_of(ticket, db_session), ""
            if account is not None:
                if await _verified(account.password_hash, password):
                    raise InvalidRequest("This is the temporary password. Choose another one.", field="new")
                password_hash = await hash_of(password, field="new")
        async with self.units.once("replace_password", self._kept(key), _hash(ticket), actor, db_session) as once:
            if not once.answer:
                if account is None or not await self._is_still(account, db_session):
                    raise Forbidden(TICKET_IS_SPENT)
                await db_session.update(account, password_hash=password_hash)
                await db_session.drop_temporary_password(account.id)
                person = _person(account, actor.request_id)
                told = {"owner_id": account.id, "from_value": "temporary"}
                await db_session.record("password_changed", person, self.now(), **told)
                signed_in = await self._signed_in(account, key, actor, browser, db_session)
                await once.remember(str(account.id))
                return self._known_again(signed_in, account, device)
        # A double click: the ticket is spent, and the new password proves that it is the same person.
        again = await db_session.find_account(UUID(once.answer))
        return await self.sign_in(
            again.name if again else "", password, db_session, actor=actor, key=key, browser=browser, device=device
        )

    async def _holder_of(self, ticket: str, db_session: DbSession) -> Account | None:
        """The account whose temporary password a ticket lets replace now; None for a ticket that is worth nothing."""
        account_id = tickets.named_by(ticket, self.now())
        account = await db_session.find_account(account_id) if account_id is not None else None
        if account is None or account.password_hash is None or account.disabled_at is not None:
            return None
        right = tickets.proves(ticket, account, self._sealed)
        return account if right and await db_session.find_temporary_password(account.id) is not None else None

    async def _is_still(self, account: Account, db_session: DbSession) -> bool:
        """Whether an account that was proved has the same password and its way in, and keeps both until commit."""
        await db_session.lock(f"account:{account.id}")
        now = await db_session.find_account(account.id)
        return now is not None and now.password_hash == account.password_hash and now.disabled_at is None

    async def prove(
        self, name: str, password: str, db_session: DbSession, *, actor: Actor, device: str = ""
    ) -> Account:
        """The account that has this name and password, as far as attempts are left (`services.sign_in_limits`).

        `device` is a cookie of `services.devices`, or for who is signed in the login. No transaction waits for the
        hashing. Raises Unauthenticated, RateLimited.
        """
        account = await self._named(name, db_session)
        place = f"login:{actor.login_id}" if actor.login_id else account and device_of(device, account, self._sealed)
        known_as = account.name if account is not None else _nameable(name)
        attempt = Attempt(self._sealed(b"name:" + known_as.encode()).hex()[:32], actor.rate_key, place or "")
        try:
            async with self.units.writing(db_session):
                # All of them or none: an address that is refused must not use up what the owner of the name has.
                taken = await self._take_attempts(attempt, db_session)
            known = account is not None and account.password_hash is not None and account.disabled_at is None
            right = await _verified(account.password_hash if known and account else _DECOY, password)
            if account is None or not known or not right:
                wrong = Unauthenticated(WRONG)
                # Told to its owner alone, and whatever the password was.
                wrong.outcome = "account_disabled" if account is not None and account.disabled_at is not None else ""
                raise wrong
        except Refusal as refusal:
            refusal.account_id = account.id if account is not None else None
            raise
        async with self.units.writing(db_session):
            for bucket, rate in taken:
                await db_session.give_back_to_bucket(bucket, rate.interval_us)
        return await self._rehashed(account, password, db_session)

    async def _named(self, name: str, db_session: DbSession) -> Account | None:
        """Whose name somebody typed; nobody signs in as a guest."""
        name = _nameable(name)
        # Names are kept composed; those of old, however they were typed.
        account = await db_session.find_account_by_name(name) or await db_session.find_account_by_name(
            normalize("NFC", name)
        )
        return account if account is not None and account.role != "guest" else None

    async def _rehashed(self, account: Account, password: str, db_session: DbSession) -> Account:
        """An account whose password was just proved, its hash made as hashes are made today."""
        if not _hasher().check_needs_rehash(account.password_hash):
            return account
        password_hash = await _hashed(password)
        async with self.units.writing(db_session):
            await db_session.lock(f"account:{account.id}")
            current = await db_session.find_account(account.id)
            if current is None or current.password_hash == account.password_hash:
                await db_session.update(account, password_hash=password_hash)
                return account
        # Another sign-in was first, or the password has been changed.
        if not await _verified(current.password_hash, password):
            raise Unauthenticated(WRONG)
        return current

    async def _take_attempts(self, attempt: Attempt, db_session: DbSession) -> list[tuple[str, Rate]]:
        """One attempt to sign in of each place that counts; what was taken. Raises RateLimited."""
        asked: list[tuple[tuple[str, Rate], rates.Place]] = []

        async def take(place: tuple[str, Rate]) -> bool:
            asked.append((place, await rates.take(place[0], "sign_ins", place[1], self.now, db_session)))
            return asked[-1][1].after is not None

        got = [await take(place) for place in attempt.needed]
        if attempt.loose is not None and not await take(attempt.loose):
            got.append(await take(attempt.tight))
        if not all(got):
            now = self.now()
            full = [place.before for of, place in asked if place.after is None and of != attempt.loose]
            longest = max(full, key=lambda one: one.retry_after_seconds(now))
            # All that a wrong clock has filled are put right together: one after the other each would be a wait.
            ahead = {bucket: us for _, place in asked for bucket, us in place.ahead.items()}
            raise RateLimited(shortages.too_quick(longest), longest, now, ahead=ahead)
        return [of for of, place in asked if place.after is not None]

    async def _signed_in(
        self, account: Account, key: str, actor: Actor, browser: str, db_session: DbSession
    ) -> SignedIn:
        """A new login of an account that was just proved; a key whose login still lives is answered with that one.

        A key is no secret: it stands in a page, and a script may choose it. So it proves nothing. It is looked at
        after the password; who has the key and not the password is told what everybody is told, and who comes with
        another right password learns only that the key is taken. Neither the key nor the row it leads to makes a
        cookie without the server's secret, and the key itself is kept sealed, so the database and the secret together
        make none either. The row names a login, not a cookie: one that was signed out or has ended stays so, and the
        key moves on to a new login under a new id.
        """
        person, kept = _person(account, actor.request_id), self._kept(key)
        # The hash stands for the password: after a change of it the same request is another one.
        content = (account.id, account.password_hash)
        async with self.units.writing(db_session, actor=actor, verb="sign_in"):
            if kept:
                # The claim alone would let two go on at once that find its login ended.
                await db_session.lock(f"sign_in:{kept}")
            if not await self._is_still(account, db_session):
                raise Unauthenticated(WRONG)
            async with self.units.once("sign_in", kept, content, actor, db_session) as once:
                if once.answer:
                    cookie = self._cookie(UUID(once.answer), key)
                    if await self.find_login(cookie, db_session) is not None:
                        return SignedIn(person, cookie)
                login_id, now = new_id(), self.now()
                cookie = self._cookie(login_id, key) if key else secrets.token_urlsafe(32)
                await db_session.add(
                    Login(
                        id=login_id,
                        account_id=account.id,
                        token_hash=_hash(cookie),
                        browser=browser,
                        created_at=now,
                        last_used_at=now,
                        expires_at=now + LOGIN,
                    )
                )
                await db_session.record("signed_in", person, now, owner_id=account.id, to_value=browser or None)
                await once.remember(str(login_id))
                return SignedIn(person, cookie)

    def _kept(self, key: str) -> str:
        """A key as the database keeps it."""
        return key and self._sealed(b"key:" + key.encode()).hex()

    def _cookie(self, login_id: UUID, key: str) -> str:
        """The cookie of a login that was made under a key: always the same, so that it need not be kept."""
        return _text(self._sealed(b"login:" + login_id.bytes + key.encode()))

    async def sign_out(self, login_cookie: str, db_session: DbSession, *, actor: Actor) -> None:
        """End the login of a cookie. It needs no key: a login ends once, and another one is not meant."""
        token_hash, now = _hash(login_cookie), self.now()
        async with self.units.writing(db_session, actor=actor, verb="sign_out"):
            await db_session.lock(f"login:{token_hash}")
            login = await self.find_login(login_cookie, db_session)
            account = await db_session.find_account(login.account_id) if login is not None else None
            if login is not None and account is not None and await db_session.revoke_login(login.id, now):
                await db_session.record("signed_out", _person(account, actor.request_id), now, owner_id=account.id)

    # ------------------------------------------------------------ the first admin

    async def new_setup_link(self, db_session: DbSession) -> str | None:
        """The secret of a one-time link that makes its visitor the admin; None where there is an admin."""
        async with db_session.transaction():
            await db_session.lock("setup")
            if await db_session.has_admin():
                return None
            secret = secrets.token_urlsafe(24)
            await db_session.add_setup_link(_hash(secret), self.now())
        return secret

    async def check_setup_link(self, secret: str, db_session: DbSession) -> None:
        """Raises Forbidden for a link that does not work (any more)."""
        if not await self._has_setup_link(secret, db_session):
            raise Forbidden(LINK_IS_SPENT)

    async def _has_setup_link(self, secret: str, db_session: DbSession) -> bool:
        return await db_session.has_setup_link(_hash(secret)) and not await db_session.has_admin()

    async def set_up(
        self,
        secret: str,
        name: str,
        password: str,
        db_session: DbSession,
        *,
        actor: Actor,
        key: str | None = None,
        browser: str = "",
        device: str = "",
    ) -> SignedIn:
        """Spend the link: make the admin and sign in. Of two at once one is refused, unless both have one key."""
        async with self.units.refusing("set_up", actor, db_session):
            key, account = checked_key(key), None
            # Hashing is for those who have a link that works; whoever repeats a key proves the password below.
            if await self._has_setup_link(secret, db_session):
                account = await self._new_account(name, password, "admin")
                await self._know_names(db_session)
        content = (_hash(secret), name.strip())
        async with self.units.once("set_up", self._kept(key), content, actor, db_session) as once:
            if not once.answer:
                await db_session.lock("setup")
                if account is None or await db_session.has_admin():
                    raise Forbidden(LINK_IS_SPENT)
                if not await db_session.use_setup_link(_hash(secret), self.now()):
                    raise Forbidden(LINK_IS_SPENT)
                await self._add(account, SYSTEM, db_session)
                signed_in = await self._signed_in(account, key, actor, browser, db_session)
                return self._known_again(signed_in, account, device)
        # Link and key may be known to others by now; that it is the same person is for the password to prove.
        return await self.sign_in(name, password, db_session, actor=actor, key=key, browser=browser, device=device)


def _visitor(
    login_id: UUID, used_at: datetime, account: Account, given: Credentials, now: datetime
) -> Actor | Unauthenticated:
    """Whoever signed in to an account."""
    person = _enabled(account, given)
    if isinstance(person, Unauthenticated):
        return person
    return msgspec.structs.replace(person, login_id=login_id, login_is_stale=now - used_at >= LOGIN_NOTED)


def _script(token_id: UUID, words: str, account: Account, given: Credentials) -> Actor | Unauthenticated:
    """Whoever acts for an account by a token, within its scopes."""
    person = _enabled(account, given)
    if isinstance(person, Unauthenticated):
        return person
    scopes = frozenset().union(*(_IMPLIED.get(scope, set()) for scope in words.split()))
    return msgspec.structs.replace(person, kind="token", scopes=scopes, token_id=token_id)


def _enabled(account: Account, given: Credentials) -> Actor | Unauthenticated:
    """The account that a proof leads to, unless it was disabled."""
    if account.disabled_at is not None:
        return Unauthenticated("This account is disabled.")
    return _person(account, given.request_id)


def _person(account: Account, request_id: str) -> Actor:
    """An account's owner, as an actor."""
    role: Literal["user", "admin"] = "admin" if account.role == "admin" else "user"
    return Actor(
        kind=role,
        id=account.id,
        name=account.name,
        group=account.group_name,
        rate_key=f"account:{account.id}",
        role=role,
        request_id=request_id,
    )


async def require_group(name: str, db_session: DbSession) -> None:
    """Raise InvalidRequest unless there is such a group; before the first start there are none, and any will do."""
    _, groups, _ = await db_session.rules()
    if groups and name not in {group["name"] for group in groups} - {EVERYBODY}:
        raise InvalidRequest(f"There is no group “{name[:80]}”.", field="group")


def _nameable(name: str) -> str:
    """A name as it may be looked for; what no column can hold becomes a name that nobody has."""
    return name.strip().encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _taken(name: str, other: str) -> str:
    """Why a name cannot be had."""
    if name == other:
        return f"There is an account “{name}” already."
    return f"“{name}” looks like “{other}”, which is an account already. Choose another name."


def _text(sealed: bytes) -> str:
    return base64.urlsafe_b64encode(sealed).decode().rstrip("=")


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


@cache
def _hasher():  # type: ignore[no-untyped-def]
    from argon2 import PasswordHasher

    return PasswordHasher()


async def hash_of(password: str, *, field: str = "password") -> str:
    """The hash of a password that may be one, as it is called in a form. Raises InvalidRequest."""
    low, high = PASSWORD_CHARACTERS
    if not low <= len(storable(password)) <= high:
        raise InvalidRequest(f"A password has {low} to {high} characters.", field=field)
    if password.lower() in COMMON_PASSWORDS.split():
        raise InvalidRequest("This is one of the passwords that are tried first. Choose another.", field=field)
    return await _hashed(password)


async def _hashed(password: str) -> str:
    async with _HASHING:
        return await asyncio.to_thread(lambda: _hasher().hash(password))


async def _verified(password_hash: str | None, password: str) -> bool:
    from argon2.exceptions import Argon2Error, InvalidHashError

    def verify() -> bool:
        try:
            return bool(_hasher().verify(password_hash, password))
        except (Argon2Error, InvalidHashError):
            return False

    async with _HASHING:
        return await asyncio.to_thread(verify)
