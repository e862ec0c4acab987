"""Membership: what becomes of accounts once they are there, with their logins and tokens.

Everybody sees and ends their own logins and tokens and changes their own password; an admin does so for anybody, and
changes roles and groups. Who is asking at all is `services.accounts`' to answer: it looks at the rows for each call, so
what is changed here holds from the next one on, in every process, and open streams end at their next look.
"""

from typing import Any, Literal
from uuid import UUID

import msgspec

from db.db_session import DbSession
from db.tables import Account, ApiToken, Journal, Login, TemporaryPassword
from services.accounts import LOGIN_IDLE, Accounts, hash_of, require_group
from services.actor import Actor, require_admin, require_person
from services.errors import InvalidRequest, NotFound, Unauthenticated
from services.idempotency import Once
from services.text import REASON_CHARACTERS, checked_line, storable

Role = Literal["user", "admin"]
NO_ACCOUNT = "There is no such account."
NO_LOGIN, NO_TOKEN = "There is no such login.", "There is no such token."
LAST_ADMIN = "This is the last admin who can sign in. Make another one first."


class AccountPage(msgspec.Struct, frozen=True):
    """Part of the list of accounts, by name."""

    accounts: list[Account]
    #: the ids of those that are service accounts
    services: set[UUID]
    #: the name behind which the next part begins; None at the end
    next: str | None


class Activity(msgspec.Struct, frozen=True):
    """Part of what was done to an account, newest first."""

    rows: list[Journal]
    #: behind which the next part begins; None at the end
    next: UUID | None


class AccountState(msgspec.Struct, frozen=True):
    """An account as it is now."""

    account: Account
    #: it is for programs alone
    service: bool
    logins: list[Login]
    tokens: list[ApiToken]
    #: who has set its password, until its owner replaces it
    temporary: TemporaryPassword | None
    #: the last of what was done to it
    activity: Activity


class Membership:
    """The verbs about accounts that are there."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts, self._units, self.now = accounts, accounts.units, accounts.now

    # ------------------------------------------------------------ reading

    async def list_accounts(
        self, db_session: DbSession, *, actor: Actor, q: str = "", after: str = "", limit: int = 50
    ) -> AccountPage:
        """Everybody but guests. Raises Forbidden."""
        require_admin(actor)
        rows = await db_session.list_people(storable(q), storable(after), limit + 1)
        services = await db_session.list_service_accounts(row.id for row in rows)
        return AccountPage(rows[:limit], services, rows[limit - 1].name if len(rows) > limit else None)

    async def account(self, account_id: UUID, db_session: DbSession, *, actor: Actor) -> Account:
        """One's own account, or any for an admin. Raises NotFound, Unauthenticated."""
        if actor.kind == "guest":
            raise Unauthenticated()
        account = await db_session.find_account(account_id)
        if account is None or account.role == "guest" or (account.id != actor.id and not actor.is_admin):
            raise NotFound(NO_ACCOUNT)
        return account

    async def account_named(self, name: str, db_session: DbSession, *, actor: Actor) -> Account:
        """The same by its name. Raises NotFound, Unauthenticated."""
        account = await db_session.find_account_by_name(storable(name))
        return await self.account(account.id if account is not None else UUID(int=0), db_session, actor=actor)

    async def logins(self, account_id: UUID, db_session: DbSession, *, actor: Actor) -> list[Login]:
        """Where an account is signed in, newest first. Raises NotFound, Unauthenticated."""
        account = await self.account(account_id, db_session, actor=actor)
        return await db_session.list_logins(account.id, self.now(), self.now() - LOGIN_IDLE)

    async def tokens(self, account_id: UUID, db_session: DbSession, *, actor: Actor) -> list[ApiToken]:
        """The tokens that act for an account, newest first. Raises NotFound, Unauthenticated."""
        account = await self.account(account_id, db_session, actor=actor)
        return await db_session.list_api_tokens(account.id, self.now())

    async def whole(self, account_id: UUID, db_session: DbSession, *, actor: Actor) -> AccountState:
        """An account with everything that leads into it. Raises NotFound, Unauthenticated."""
        account, now = await self.account(account_id, db_session, actor=actor), self.now()
        return AccountState(
            account,
            await db_session.is_service_account(account.id),
            await db_session.list_logins(account.id, now, now - LOGIN_IDLE),
            await db_session.list_api_tokens(account.id, now),
            await db_session.find_temporary_password(account.id),
            await self.activity(account.id, db_session, actor=actor),
        )

    async def activity(
        self, account_id: UUID, db_session: DbSession, *, actor: Actor, before: UUID | None = None, limit: int = 10
    ) -> Activity:
        """What was done to an account and by whom, newest first. Raises NotFound, Unauthenticated."""
        account = await self.account(account_id, db_session, actor=actor)
        rows, behind = await db_session.list_account_decisions(account.id, limit, before=before)
        return Activity(rows, behind)

    # ------------------------------------------------------------ what an admin changes

    async def change_account(
        self,
        account_id: UUID,
        db_session: DbSession,
        *,
        actor: Actor,
        role: Role | msgspec.UnsetType = msgspec.UNSET,
        group: str | msgspec.UnsetType = msgspec.UNSET,
        disabled: bool | msgspec.UnsetType = msgspec.UNSET,
        reason: str = "",
        key: str | None = None,
    ) -> Account:
        """Change a role or a group, or take away and give back the way in; what is left out stays.

        A group that was the role's own follows the role. To disable somebody else needs a reason.
        Raises Forbidden, NotFound, InvalidRequest.
        """
        async with self._units.refusing("change_account", actor, db_session):
            reason = checked_line(reason, REASON_CHARACTERS, "reason")
        asked = (account_id, role, group, disabled, reason)
        async with self._units.once("change_account", key, asked, actor, db_session) as once:
            require_admin(actor)
            account = await self._locked(account_id, db_session, actor)
            if once.answer:
                return account
            if group is not msgspec.UNSET:
                await require_group(group, db_session)
            after = account.role if role is msgspec.UNSET else role
            ends = (account.disabled_at is not None) if disabled is msgspec.UNSET else disabled
            if account.role == "admin" and account.disabled_at is None and (after != "admin" or ends):
                await self._require_another_admin(db_session)
            if ends and account.disabled_at is None:
                _require_reason(account.id, actor, reason)
            place = account.group_name if account.group_name != account.role else after
            await self._move(account, after, place if group is msgspec.UNSET else group, reason, actor, db_session)
            if ends != (account.disabled_at is not None):
                await db_session.update(account, disabled_at=self.now() if ends else None)
                what = "account_disabled" if ends else "account_enabled"
                await self._record(what, account.id, actor, db_session, reason=reason)
                await self._end_logins(account, actor, db_session)
            return account

    async def set_password(
        self,
        account_id: UUID,
        password: str,
        db_session: DbSession,
        *,
        actor: Actor,
        temporary: bool = True,
        reason: str = "",
        key: str | None = None,
    ) -> Account:
        """Give an account another password and end all its logins; an admin's.

        It is temporary: its owner replaces it at the next sign-in. Only the command line may give one that stays.
        Raises Forbidden, NotFound, InvalidRequest.
        """
        async with self._units.refusing("set_password", actor, db_session):
            require_admin(actor)
            reason = checked_line(reason, REASON_CHARACTERS, "reason")
            await self.account(account_id, db_session, actor=actor)
            if await db_session.is_service_account(account_id):
                raise InvalidRequest("A service account has no password; programs use its tokens.")
            password_hash = await hash_of(password)
        asked = (account_id, self._accounts.sealed(password), reason)
        async with self._units.once("set_password", key, asked, actor, db_session) as once:
            account = await self._locked(account_id, db_session, actor)
            if not once.answer:
                temporary = temporary or actor.kind != "system"
                await self._put_password(account, password_hash, reason, actor, db_session, temporary=temporary)
            return account

    # ------------------------------------------------------------ what everybody changes

    async def change_password(
        self, old: str, new: str, db_session: DbSession, *, actor: Actor, address: Actor, key: str | None = None
    ) -> Account:
        """Change one's own password; every other login of the account ends. `address` is where attempts are counted.

        Raises RateLimited, InvalidRequest, Forbidden.
        """
        asked = (self._accounts.sealed(old), self._accounts.sealed(new))
        async with self._units.refusing("change_password", actor, db_session):
            require_person(actor)
            if await Once.answer_of("change_password", key, asked, actor, self.now(), db_session):
                return await self.account(actor.id, db_session, actor=actor)
            proved = await self._prove(old, address, actor, db_session)
            password_hash = await hash_of(new, field="new")
        async with self._units.once("change_password", key, asked, actor, db_session) as once:
            account = await self._locked(actor.id, db_session, actor)
            if once.answer:
                return account
            if account.password_hash != proved.password_hash:
                raise InvalidRequest("The password has been changed meanwhile.", field="old")
            await self._put_password(account, password_hash, "", actor, db_session)
            return account

    async def revoke_login(
        self, login_id: UUID, db_session: DbSession, *, actor: Actor, reason: str = "", key: str | None = None
    ) -> UUID:
        """End one login; whose it was. Somebody else's needs a reason.

        Raises NotFound, Unauthenticated, Forbidden, InvalidRequest.
        """
        async with self._units.refusing("revoke_login", actor, db_session):
            reason = checked_line(reason, REASON_CHARACTERS, "reason")
        async with self._units.once("revoke_login", key, _with(login_id, reason), actor, db_session) as once:
            require_person(actor)
            if once.answer:
                return UUID(once.answer)
            login = await db_session.find_login_by_id(login_id, self.now(), self.now() - LOGIN_IDLE)
            if login is None or (login.account_id != actor.id and not actor.is_admin):
                raise NotFound(NO_LOGIN)
            _require_reason(login.account_id, actor, reason)
            await self._locked(login.account_id, db_session, actor)
            if not await self._end_login(login, actor, db_session, reason):
                raise NotFound(NO_LOGIN)
            await once.remember(str(login.account_id))
            return login.account_id

    async def revoke_logins(
        self, account_id: UUID, db_session: DbSession, *, actor: Actor, reason: str = "", key: str | None = None
    ) -> int:
        """End every login of an account but the one that asks; how many. Somebody else's need a reason.

        Raises NotFound, Unauthenticated, InvalidRequest.
        """
        async with self._units.refusing("revoke_logins", actor, db_session):
            reason = checked_line(reason, REASON_CHARACTERS, "reason")
        async with self._units.once("revoke_logins", key, _with(account_id, reason), actor, db_session) as once:
            require_person(actor)
            if once.answer:
                return int(once.answer)
            account = await self._locked(account_id, db_session, actor)
            _require_reason(account.id, actor, reason)
            ended = await self._end_logins(account, actor, db_session, reason)
            await once.remember(str(ended))
            return ended

    async def revoke_token(
        self, token_id: UUID, db_session: DbSession, *, actor: Actor, reason: str = "", key: str | None = None
    ) -> UUID:
        """End a script's token; whose it was. Somebody else's needs a reason.

        Raises NotFound, Unauthenticated, Forbidden, InvalidRequest.
        """
        async with self._units.refusing("revoke_token", actor, db_session):
            reason = checked_line(reason, REASON_CHARACTERS, "reason")
        async with self._units.once("revoke_token", key, _with(token_id, reason), actor, db_session) as once:
            require_person(actor)
            if once.answer:
                return UUID(once.answer)
            token = await db_session.find_api_token_by_id(token_id)
            if token is None or (token.account_id != actor.id and not actor.is_admin):
                raise NotFound(NO_TOKEN)
            _require_reason(token.account_id, actor, reason)
            await self._locked(token.account_id, db_session, actor)
            if not await db_session.revoke_api_token(token.id, self.now()):
                raise NotFound(NO_TOKEN)
            told = {"reason": f"{token.name}: {reason}" if reason else token.name, "from_value": token.scopes}
            await self._record("token_revoked", token.account_id, actor, db_session, **told)
            await once.remember(str(token.account_id))
            return token.account_id

    # ------------------------------------------------------------ parts of verbs

    async def _locked(self, account_id: UUID, db_session: DbSession, actor: Actor) -> Account:
        """An account that nobody else changes until commit, nor who is an admin. Raises NotFound, Unauthenticated."""
        await db_session.lock("admins", f"account:{account_id}")
        return await self.account(account_id, db_session, actor=actor)

    async def _require_another_admin(self, db_session: DbSession) -> None:
        if await db_session.count_admins() < 2:
            raise InvalidRequest(LAST_ADMIN)

    async def _move(
        self, account: Account, role: str, group: str, reason: str, actor: Actor, db_session: DbSession
    ) -> None:
        """Give an account a role and a group."""
        before, after = f"{account.role}, group {account.group_name}", f"{role}, group {group}"
        if after != before:
            await db_session.update(account, role=role, group_name=group)
            told = {"reason": reason, "from_value": before, "to_value": after}
            await self._record("account_changed", account.id, actor, db_session, **told)

    async def _prove(self, password: str, address: Actor, actor: Actor, db_session: DbSession) -> Account:
        """One's own account, where one's password is right. Raises InvalidRequest, RateLimited."""
        # Whoever is signed in has attempts of their own, which no stranger uses up.
        here = msgspec.structs.replace(address, login_id=actor.login_id)
        try:
            return await self._accounts.prove(actor.name, password, db_session, actor=here)
        except Unauthenticated as error:
            refusal = InvalidRequest("This is not your current password.", field="old")
            refusal.account_id = actor.id
            raise refusal from error

    async def _put_password(
        self,
        account: Account,
        password_hash: str,
        reason: str,
        actor: Actor,
        db_session: DbSession,
        *,
        temporary: bool = False,
    ) -> None:
        await db_session.update(account, password_hash=password_hash)
        await db_session.drop_temporary_password(account.id)
        if temporary:
            await db_session.put_temporary_password(account.id, actor.name, self.now())
        told = {"reason": reason, "to_value": "temporary" if temporary else None}
        await self._record("password_changed", account.id, actor, db_session, **told)
        await self._end_logins(account, actor, db_session)

    async def _end_logins(self, account: Account, actor: Actor, db_session: DbSession, reason: str = "") -> int:
        """End every login of an account but the actor's own; how many."""
        living = await db_session.list_logins(account.id, self.now(), self.now() - LOGIN_IDLE)
        ended = [
            await self._end_login(login, actor, db_session, reason) for login in living if login.id != actor.login_id
        ]
        return sum(ended)

    async def _end_login(self, login: Login, actor: Actor, db_session: DbSession, reason: str) -> bool:
        """Whether it had not ended before, at another's hand."""
        ended = await db_session.revoke_login(login.id, self.now())
        if ended:
            await self._record("login_revoked", login.account_id, actor, db_session, reason=reason)
        return ended

    async def _record(self, what: str, account_id: UUID, actor: Actor, db_session: DbSession, **facts: Any) -> None:
        await db_session.record(what, actor, self.now(), owner_id=account_id, **facts)


def _require_reason(account_id: UUID, actor: Actor, reason: str) -> None:
    """Raise InvalidRequest unless the account is the actor's own, or its owner is told why."""
    if account_id != actor.id and not reason:
        raise InvalidRequest("Please give a reason; the owner of the account will see it.", field="reason")


def _with(id: UUID, reason: str) -> object:
    """What a key stands for; without a reason it is what it was before there were reasons."""
    return (id, reason) if reason else id
