"""The schema as Piccolo tables; the constraints and indexes stand in `migrations/`.

Ids are UUIDv7 made by the server, instants are aware and in UTC, money is in nano-units (10⁻⁹) of the currency.
A comment above a column tells its unit and who writes it.
"""

from piccolo.columns import (
    UUID,
    BigInt,
    Boolean,
    Date,
    Integer,
    Text,
    Timestamptz,
)
from piccolo.table import Table


class Account(Table, tablename="account"):
    """Somebody who owns sessions: a guest, a user or an admin."""

    id = UUID(primary_key=True, default=None)
    #: unique; what people and the journal see
    name = Text()
    #: guest · user · admin
    role = Text()
    #: the group whose limits and models apply
    group_name = Text()
    #: argon2id; NULL for guests
    password_hash = Text(null=True, default=None)
    #: the model of a session that names none; the account's own choice
    default_model = Text(null=True, default=None)
    disabled_at = Timestamptz(null=True, default=None)
    created_at = Timestamptz(default=None)


class Login(Table, tablename="login"):
    """A browser's sign-in; not a session, and its end touches none."""

    id = UUID(primary_key=True, default=None)
    account_id = UUID(default=None)
    #: SHA-256 of the cookie, hex
    token_hash = Text()
    #: what the browser calls itself, in a word or two
    browser = Text(default="")
    created_at = Timestamptz(default=None)
    #: when something was last done under it, give or take an hour; reading does not count
    last_used_at = Timestamptz(default=None)
    #: the absolute end
    expires_at = Timestamptz(default=None)
    revoked_at = Timestamptz(null=True, default=None)


class ApiToken(Table, tablename="api_token"):
    """A script's key, acting for an account within its scopes."""

    id = UUID(primary_key=True, default=None)
    account_id = UUID(default=None)
    name = Text()
    #: SHA-256 of the token, hex
    token_hash = Text()
    #: words of read · chat · admin, parted by spaces
    scopes = Text()
    created_at = Timestamptz(default=None)
    expires_at = Timestamptz(null=True, default=None)
    revoked_at = Timestamptz(null=True, default=None)


class ServiceAccount(Table, tablename="service_account"):
    """An account for programs: without a password and without logins, so admins may make tokens for it."""

    account_id = UUID(primary_key=True, default=None)
    created_at = Timestamptz(default=None)


class TemporaryPassword(Table, tablename="temporary_password"):
    """The account's password was set by somebody else; its owner replaces it before anything else."""

    account_id = UUID(primary_key=True, default=None)
    #: the name of whoever set it, as in the journal
    set_by = Text()
    set_at = Timestamptz(default=None)


class AccountSkeleton(Table, tablename="account_skeleton"):
    """How an account's name looks; no two accounts have the same. Written by `Accounts` when it makes an account."""

    #: as `services.names` makes it
    skeleton = Text(primary_key=True, default="")
    account_id = UUID(default=None)


class SetupLink(Table, tablename="setup_link"):
    """The one-time link that makes its visitor the first admin."""

    #: SHA-256 of the link's secret, hex
    token_hash = Text(primary_key=True, default="")
    created_at = Timestamptz(default=None)
    used_at = Timestamptz(null=True, default=None)


class Session(Table, tablename="session"):
    """A governed conversation. Written by SessionService alone."""

    id = UUID(primary_key=True, default=None)
    owner_id = UUID(default=None)
    #: given by hand; empty until then
    title = Text()
    #: how the first prompt begins: the title its owner sees until there is one, and nobody else ever
    opening = Text()
    #: what its model is told before everything else; its owner's text, set when it is made. Empty for nothing
    instructions = Text()
    #: page · script · auto · fork · import
    origin = Text()
    #: the one truth about the model; NULL until asked for or first used
    last_model = Text(null=True, default=None)
    #: an admin holds the model: the owner cannot switch it
    locked = Boolean(default=False)
    #: active · expired · closed; only `closed` is believed: `expired` notes that the sweep has seen its end pass
    state = Text()
    #: counts governed changes: the model, its lock, a new name, the state, an extension
    version = Integer(default=0)
    created_at = Timestamptz(default=None)
    last_activity_at = Timestamptz(default=None)
    #: an end set by hand; the policy may end it earlier
    expires_at = Timestamptz(null=True, default=None)
    #: the last turn of the transcript shown
    head_id = UUID(null=True, default=None)
    turn_count = Integer(default=0)
    #: what its ended turns cost; nothing of what a fork brought along
    cost_nanos = BigInt(default=0)
    #: its owner keeps it at the top of the list
    pinned = Boolean(default=False)
    #: its owner has put it out of the list
    archived = Boolean(default=False)
    #: when it was deleted; for a while its owner can have it back, and nobody else finds it
    deleted_at = Timestamptz(null=True, default=None)
    #: while turns that were copied into it are not all found yet: the last one that is, all zeros for none
    indexed_to = UUID(null=True, default=None)


class Turn(Table, tablename="turn"):
    """One prompt and its reply: a leased row while it runs, unchanged once it ended."""

    id = UUID(primary_key=True, default=None)
    session_id = UUID(default=None)
    #: the session's owner, repeated so that counting what runs needs no join
    owner_id = UUID(default=None)
    #: the turn before it; turns with one parent are siblings
    parent_id = UUID(null=True, default=None)
    #: turns on the path from the root to this one, both counted
    depth = Integer(default=1)
    #: the turn this is a copy of, in a fork or an import; nothing was called or charged for a copy. All zeros where a
    #: client told the turn as what came before
    copied_from = UUID(null=True, default=None)
    prompt = Text()
    #: NULL while it runs: the text is then in `turn_piece`
    reply = Text(null=True, default=None)
    #: what the model thought aloud; no part of the reply, and never told to a model again. Empty while it runs
    reasoning = Text(default="")
    #: the catalogue id of the model really called; empty where a client told the turn and no model is known
    model = Text()
    #: why that model: session · default · replacement · fallback · asked (for this turn alone); empty where nobody says
    model_source = Text(default="")
    #: the same as a sentence, of the moment when the turn was begun
    model_reason = Text(default="")
    #: running · done · stopped · failed · interrupted
    state = Text()
    error_code = Text(null=True, default=None)
    error_detail = Text(null=True, default=None)
    prompt_tokens = Integer(default=0)
    reply_tokens = Integer(default=0)
    #: the token counts are ours, not the provider's
    estimated = Boolean(default=True)
    cost_nanos = BigInt(default=0)
    #: what the turn may use at most, held while it runs
    reserved_tokens = BigInt(default=0)
    reserved_nanos = BigInt(default=0)
    #: earlier turns of the transcript that its model was not shown: they did not fit, or had no reply
    context_left_out = Integer(default=0)
    #: the process that runs it, and until when it may write
    lease_owner = UUID(default=None)
    lease_until = Timestamptz(default=None)
    created_at = Timestamptz(default=None)
    #: when the first text was stored, reasoning or reply
    first_text_at = Timestamptz(null=True, default=None)
    #: when the reply itself began
    first_reply_at = Timestamptz(null=True, default=None)
    ended_at = Timestamptz(null=True, default=None)

    #: no column, but its row of `turn_cap`: the tokens that a budget left its reply, and that limit's name
    capped: "tuple[int, str] | None" = None


class TurnCap(Table, tablename="turn_cap"):
    """A turn whose reply was cut to what a budget left it; of its copies too."""

    turn_id = UUID(primary_key=True, default=None)
    reply_tokens = BigInt(default=0)
    #: the budget: tokens_per_day, …
    limit_name = Text()


class TurnPiece(Table, tablename="turn_piece"):
    """Text of a running turn; the key is (turn_id, reasoning, start). Gone once the turn itself holds the whole."""

    turn_id = UUID(primary_key=True, default=None)
    #: of its reasoning, and not of its reply
    reasoning = Boolean(default=False)
    #: characters of the same before this piece
    start = Integer(default=0)
    text = Text()


class Said(Table, tablename="said"):
    """What can be searched of a turn, or of a title given by hand. Written by `db.search_index` alone."""

    #: in the order in which it was said
    no = BigInt(primary_key=True, default=0)
    session_id = UUID(default=None)
    #: NULL for the title
    turn_id = UUID(null=True, default=None)
    #: the session's owner, repeated
    owner_id = UUID(default=None)
    #: owner, session, and each word once, as `db.words` makes them; a tsvector on PostgreSQL
    words = Text()


class Reindexing(Table, tablename="reindexing"):
    """How far an index has been built anew; no row once all of it has. Written by the sweep."""

    #: `search`
    name = Text(primary_key=True)
    #: sessions up to this one are done
    after_session = UUID(default=None)


class Draft(Table, tablename="draft"):
    """What a session's owner has typed and not sent; taken away by the turn it becomes."""

    session_id = UUID(primary_key=True, default=None)
    text = Text()
    saved_at = Timestamptz(default=None)


class Model(Table, tablename="model"):
    """The catalogue: what may be used."""

    id = Text(primary_key=True, default="")
    provider = Text()
    #: the name the provider is asked for
    upstream = Text()
    label = Text()
    #: active · deprecated · retired · disabled
    state = Text()
    #: why, where the state is not `active`
    state_reason = Text(default="")
    replacement = Text(null=True, default=None)
    #: other names it answers to, parted by spaces
    aliases = Text(default="")
    #: who may use it, parted by spaces; empty for everybody
    group_names = Text(default="")
    #: 0 where it is not known
    context_tokens = Integer(default=0)
    max_reply_tokens = Integer(default=0)
    #: nano-money per token
    price_in_nanos = BigInt(default=0)
    price_out_nanos = BigInt(default=0)
    #: turns at once over all sessions; 0 for no limit
    concurrent_turns = Integer(default=0)
    #: order in lists, as configured
    position = Integer(default=0)
    #: `config`, or the admin whose change a restart must keep
    set_by = Text(default="config")


class AccountGroup(Table, tablename="account_group"):
    """What a group's sessions fall back to; the row `*` is the instance."""

    name = Text(primary_key=True, default="")
    default_model = Text(null=True, default=None)
    #: fallback · block
    on_missing_model = Text(default="fallback")
    set_by = Text(default="config")


class LimitRule(Table, tablename="limit_rule"):
    """One limit of one group (or of the instance, `*`); the key is (group_name, name)."""

    group_name = Text(primary_key=True, default="")
    #: a field of `services.policies.Policies`
    name = Text()
    #: as written in the configuration: "10/min burst 5", "3", "30d"
    value = Text()
    set_by = Text(default="config")


class RateBucket(Table, tablename="rate_bucket"):
    """A rate's state: the theoretical arrival time of GCRA, in microseconds since 1970."""

    key = Text(primary_key=True, default="")
    tat_us = BigInt(default=0)


class Usage(Table, tablename="usage"):
    """What an account's ended turns used of one model on one day; the key is (owner_id, day, model)."""

    owner_id = UUID(primary_key=True, default=None)
    day = Date(default=None)
    #: the catalogue id; empty for what was used before models were told apart
    model = Text(default="")
    turns = BigInt(default=0)
    tokens = BigInt(default=0)
    cost_nanos = BigInt(default=0)


class AddressUsage(Table, tablename="address_usage"):
    """What guests at one network address used on one day; the key is (address, day). Stays when a guest signs in."""

    #: a keyed hash of the address, or of the network around it
    address = Text(primary_key=True, default="")
    day = Date(default=None)
    tokens = BigInt(default=0)
    cost_nanos = BigInt(default=0)


class AddressTurn(Table, tablename="address_turn"):
    """A guest's running turn, under each address it counts for; gone once it has ended."""

    turn_id = UUID(primary_key=True, default=None)
    address = Text()


class AddressSession(Table, tablename="address_session"):
    """A guest's open session, under each address it counts for; gone once it has ended or is an account's."""

    session_id = UUID(primary_key=True, default=None)
    address = Text()


class Journal(Table, tablename="journal"):
    """Every decision, append-only, in the transaction of what it tells. Never holds message text or secrets."""

    id = UUID(primary_key=True, default=None)
    at = Timestamptz(default=None)
    #: guest · user · admin · token · system
    actor_kind = Text()
    #: an account, or the token that acts for one
    actor_id = UUID(null=True, default=None)
    actor_name = Text()
    #: the account a token acts for
    on_behalf_of = UUID(null=True, default=None)
    #: the account it concerns
    owner_id = UUID(null=True, default=None)
    session_id = UUID(null=True, default=None)
    turn_id = UUID(null=True, default=None)
    #: past tense: session_created, model_switched, …
    what = Text()
    #: done, or the code of the refusal
    outcome = Text(default="done")
    reason = Text(default="")
    from_value = Text(null=True, default=None)
    to_value = Text(null=True, default=None)
    #: the session's version afterwards
    version = Integer(null=True, default=None)
    request_id = Text(default="")


class RefusalCount(Table, tablename="refusal"):
    """Refusals of one actor, code and minute; the key is those three. Gone once the journal tells how many."""

    #: what the actor's rates are counted under
    rate_key = Text(primary_key=True, default="")
    code = Text()
    minute = Timestamptz(default=None)
    times = Integer(default=0)
    actor_kind = Text()
    actor_id = UUID(null=True, default=None)
    actor_name = Text()


class ModelMove(Table, tablename="model_move"):
    """An admin's order to put every live session of one model on another; a leased row while it runs."""

    id = UUID(primary_key=True, default=None)
    from_model = Text()
    to_model = Text()
    #: shown to the owner of each session
    reason = Text()
    #: running · done · stopped
    state = Text()
    admin_id = UUID(default=None)
    admin_name = Text()
    #: live sessions on `from_model` when it was ordered
    total = Integer(default=0)
    moved = Integer(default=0)
    #: refused one by one: closed meanwhile, or the owner may not use `to_model`
    skipped = Integer(default=0)
    #: the session it came to last, in the order of their ids
    last_session_id = UUID(null=True, default=None)
    #: the process that runs it, and until when
    lease_owner = UUID(null=True, default=None)
    lease_until = Timestamptz(null=True, default=None)
    #: why it stopped
    note = Text(default="")
    created_at = Timestamptz(default=None)
    ended_at = Timestamptz(null=True, default=None)


class Idempotency(Table, tablename="idempotency"):
    """One key, one effect; the key is (actor_id, verb, key)."""

    actor_id = UUID(primary_key=True, default=None)
    verb = Text()
    key = Text()
    #: SHA-256 of the request's content, hex
    fingerprint = Text()
    #: what the verb did, in its own words; empty until it has
    answer = Text(default="")
    created_at = Timestamptz(default=None)


class RenderTimeout(Table, tablename="render_timeout"):
    """A text or a block of code that took too long to render once, and is shown as it is written since."""

    #: SHA-256 of the text, hex
    digest = Text(primary_key=True, default="")
    created_at = Timestamptz(default=None)


TABLES: tuple[type[Table], ...] = (
    Account,
    Login,
    ApiToken,
    ServiceAccount,
    TemporaryPassword,
    AccountSkeleton,
    SetupLink,
    Session,
    Turn,
    TurnCap,
    TurnPiece,
    Said,
    Reindexing,
    Draft,
    Model,
    AccountGroup,
    LimitRule,
    RateBucket,
    Usage,
    AddressUsage,
    AddressTurn,
    AddressSession,
    Journal,
    RefusalCount,
    ModelMove,
    Idempotency,
    RenderTimeout,
)
