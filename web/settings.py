"""The settings, and the only reader of the environment.

Flag > environment `TURNKEEPER_*` (`*_FILE` for secrets) > `turnkeeper.toml` > default. An unknown key or a wrong value
stops the start with the path of the key.
"""

import difflib
import logging
import os
import re
import secrets
import tomllib
from collections.abc import Collection, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

import msgspec

from db.private import create, make_folder, tighten
from services.catalogue import EVERYBODY, ModelConfig
from services.client_pool import Provider
from services.clients.anthropic import MIN_REASONING_TOKENS
from services.configuration import GroupConfig, InstanceConfig
from services.policies import COUNT_WRITTEN, MONEY_WRITTEN, RATE_WRITTEN, SPAN_WRITTEN, check_rule, parse_zone
from services.redaction import without_secrets
from services.text import listed, utf8, values_of

log = logging.getLogger(__name__)

PREFIX = "TURNKEEPER_"
#: what the environment says under names of its own
NOT_IN_A_FILE = {"openai_api_key", "anthropic_api_key", "config_file"}
#: settings that are lists of words
LISTS = ("allowed_hosts", "trusted_proxies", "aliases", "groups")
#: limits that `[groups."*"]` takes
SERVER_LIMITS = ("concurrent_turns",)
#: how a limit is written, where its value has another type
WRITTEN = {
    "sessions_created": RATE_WRITTEN,
    "turns": RATE_WRITTEN,
    "switches": RATE_WRITTEN,
    "concurrent_turns": COUNT_WRITTEN,
    "open_sessions": COUNT_WRITTEN,
    "tokens_per_day": COUNT_WRITTEN,
    "tokens_per_month": COUNT_WRITTEN,
    "money_per_day": MONEY_WRITTEN,
    "money_per_month": MONEY_WRITTEN,
    "idle": SPAN_WRITTEN,
    "absolute": SPAN_WRITTEN,
}
#: the tables that the file may hold, and what stands in them
TABLES: dict[str, type[msgspec.Struct]] = {
    "$.groups": GroupConfig,
    "$.providers": Provider,
    "$.models": ModelConfig,
}
#: with a path to a file
_SQLITE_URL = re.compile("sqlite:///(?!:memory:)[^?#]*[^?#/]")
_UNKNOWN = re.compile("Object contains unknown field `(.*)`")
#: of the widest network of proxies, by the version of IP: those of private addresses are not wider
WIDEST_PROXIES = {4: 8, 6: 7}
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class SettingsError(Exception):
    """The configuration cannot be used; the text names the key."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a deployment sets."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 8000
    #: `sqlite:///relative.db`, `sqlite:////absolute.db` or `postgresql://…`
    database_url: str = "sqlite:///var/turnkeeper.db"
    #: carries live events between processes: `redis://…`; default: PostgreSQL does
    redis_url: str = ""
    #: who may come in: anybody (`guests`) or accounts only; default: guests on loopback
    access: Literal["", "guests", "accounts"] = ""
    #: whether an admin may read somebody else's chat, with a reason that its owner sees
    admins_read: bool = False
    #: names the server answers to; default: loopback names and `host`
    allowed_hosts: list[str] = []
    #: addresses whose X-Forwarded-For counts
    trusted_proxies: list[str] = []
    #: proves guests' cookies; default: made once and kept in `secret_key_file`
    secret_key: str = ""
    secret_key_file: str = "var/secret.key"
    #: whether provider keys in the environment and model servers on loopback are looked for
    discover: bool = True
    default_model: str | None = None
    #: where the days and months of budgets begin
    time_zone: str = "UTC"
    #: how standard error is written: lines to read, or a JSON object for each event
    log_format: Literal["text", "json"] = "text"
    #: whether each request is logged
    access_log: bool = False
    #: how long a worker may not answer before another takes its place; 0 for ever
    worker_timeout_seconds: Annotated[int, msgspec.Meta(ge=0)] = 10
    providers: list[Provider] = []
    models: list[ModelConfig] = []
    groups: dict[str, GroupConfig] = {}
    openai_api_key: str = ""
    anthropic_api_key: str = ""
    #: the file these came from; empty without one
    config_file: str = ""

    def __repr__(self) -> str:
        # It stands in tracebacks, and a traceback in the log.
        return f"Settings({self.config_file!r})"

    @property
    def guests(self) -> bool:
        """Whether a browser without an account may use it."""
        return (self.access or ("guests" if self.on_loopback else "accounts")) == "guests"

    @property
    def on_loopback(self) -> bool:
        return self.host in LOOPBACK

    @property
    def hosts(self) -> frozenset[str]:
        """The names in a Host header that are answered."""
        return frozenset(name.lower() for name in (self.allowed_hosts or [*LOOPBACK, self.host]))

    @property
    def rules(self) -> dict[str, GroupConfig]:
        """What holds for each group, and under `*` for the instance."""
        everybody = msgspec.structs.asdict(self.groups.get(EVERYBODY, GroupConfig()))
        return {**self.groups, EVERYBODY: InstanceConfig(**everybody, time_zone=self.time_zone)}

    @property
    def sqlite_path(self) -> Path | None:
        parts = urlsplit(self.database_url)
        return Path(unquote(parts.path)[1:]) if parts.scheme == "sqlite" else None

    @property
    def place(self) -> str:
        """Where the database is, without its password."""
        return str(self.sqlite_path.absolute()) if self.sqlite_path else without_secrets(self.database_url)

    def secret(self) -> bytes:
        """The secret key; made and kept at the first start."""
        if self.secret_key:
            return self.secret_key.encode()
        path = Path(self.secret_key_file)
        try:
            if not path.exists():
                _make_secret(path)
        except OSError as error:
            raise SettingsError(f"secret_key_file: {path} cannot be made: {error.strerror}") from error
        key = _read_secret("secret_key_file", str(path))
        if len(key) < 32:
            raise SettingsError(f"secret_key_file: {path} holds fewer than 32 characters; delete it to make a new one")
        if tighten(path):
            log.warning("%s was open to others on this machine; now only its owner may use it", path)
        return key.encode()


def _make_secret(path: Path) -> None:
    """Of two processes that start at once, one makes it and both read it whole."""
    make_folder(path.parent)
    whole = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = create(whole)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48))
        os.link(whole, path)
    except FileExistsError:
        pass
    finally:
        whole.unlink()


def load(environ: Mapping[str, str], **flags: Any) -> Settings:
    """Read the settings. Raises SettingsError."""
    path = Path(environ.get(f"{PREFIX}CONFIG", "turnkeeper.toml"))
    values: dict[str, Any] = {}
    if path.exists():
        values = _read_toml(path)
        if foreign := values.keys() & NOT_IN_A_FILE:
            raise SettingsError(f"{path}: $.{min(foreign)}: there is no such key")
        values["config_file"] = str(path)
    elif f"{PREFIX}CONFIG" in environ:
        raise SettingsError(f"{PREFIX}CONFIG: there is no file {path}")
    from_environment = _from_environment(environ)
    values |= from_environment
    given = {name: flag for name, flag in flags.items() if flag is not None}
    values |= given
    _split_lists(values)
    for name in ("openai_api_key", "anthropic_api_key"):
        values[name] = environ.get(name.upper(), "")
    server = values["groups"].get(EVERYBODY) if isinstance(values.get("groups"), dict) else None
    if isinstance(server, dict) and "time_zone" in server:
        raise SettingsError(
            f'{path}: $.groups.*.time_zone: it stands at the top of the file: time_zone = "Europe/Berlin"'
        )
    try:
        settings = msgspec.convert(values, Settings, strict=False)
        return _checked(msgspec.structs.replace(settings, providers=_with_keys(settings.providers, environ)))
    except msgspec.ValidationError as error:
        raise SettingsError(_told(error, values, path, from_environment)) from error
    except SettingsError as error:
        key = str(error).partition(":")[0].removeprefix("$.")
        raise SettingsError(f"{_whence(key, path, from_environment.keys() | given.keys())}{error}") from error


def shown(settings: Settings) -> dict[str, Any]:
    """The effective settings, secrets hidden."""
    values = msgspec.to_builtins(settings)
    for holder, names in ((values, ("secret_key", "openai_api_key", "anthropic_api_key")),):
        for name in names:
            holder[name] = "(set)" if holder[name] else ""
    for provider in values["providers"]:
        provider["api_key"] = "(set)" if provider["api_key"] else ""
        provider["base_url"] = without_secrets(provider["base_url"])
    values["database_url"] = without_secrets(settings.database_url)
    values["redis_url"] = without_secrets(settings.redis_url)
    return values


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(utf8(path.read_bytes()).decode())
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise SettingsError(f"{path}: {error}") from error
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    scalars = {
        "host",
        "port",
        "database_url",
        "redis_url",
        "access",
        "admins_read",
        "secret_key",
        "secret_key_file",
        "discover",
        "default_model",
        "time_zone",
        "log_format",
        "access_log",
        "worker_timeout_seconds",
    }
    lists = {"allowed_hosts", "trusted_proxies"}
    values: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith(PREFIX) or name == f"{PREFIX}CONFIG":
            continue
        key = name.removeprefix(PREFIX).lower()
        if key in lists:
            values[key] = listed(text)
        elif key in scalars:
            values[key] = text
        elif key.removesuffix("_file") in ("database_url", "redis_url", "secret_key"):
            if name.removesuffix("_FILE") in environ:
                raise SettingsError(f"{name}: {name.removesuffix('_FILE')} is set too; which one is meant?")
            values[key.removesuffix("_file")] = _read_secret(name, text)
        else:
            known = ", ".join(f"{PREFIX}{one.upper()}" for one in sorted(scalars | lists))
            raise SettingsError(f"{name}: there is no such setting; there are {known}")
    return values


def _split_lists(values: dict[str, Any]) -> None:
    """A list may be typed as a list or as a text, its words parted by commas or blanks."""
    models = values.get("models")
    for holder in (values, *(models if isinstance(models, list) else ())):
        for name in LISTS if isinstance(holder, dict) else ():
            typed = holder.get(name)
            typed = [typed] if isinstance(typed, str) else typed
            # The tables of groups have the name of a model's list.
            if isinstance(typed, list) and all(isinstance(one, str) for one in typed):
                holder[name] = [word for one in typed for word in (listed(one) or [one])]


def _with_keys(providers: list[Provider], environ: Mapping[str, str]) -> list[Provider]:
    """Providers with their keys: `$NAME` from the environment, or the text of `api_key_file`."""
    resolved = []
    for place, provider in enumerate(providers):
        key = provider.api_key
        if key.startswith("$"):
            if key[1:] not in environ:
                raise SettingsError(f"$.providers[{place}].api_key: {key[1:]} is not in the environment")
            key = environ[key[1:]]
        elif provider.api_key_file:
            key = _read_secret(f"$.providers[{place}].api_key_file", provider.api_key_file)
        resolved.append(msgspec.structs.replace(provider, api_key=key, api_key_file=""))
    return resolved


def _check_url(key: str, url: str) -> None:
    """Raise SettingsError where the host or port of a URL cannot be read. The text shows nothing of it: no password."""
    try:
        hosts = urlsplit(url).netloc.rpartition("@")[2]
        for host in hosts.split(","):  # PostgreSQL's may have several
            _ = urlsplit(f"//{host}").port
    except ValueError as error:
        raise SettingsError(
            f"{key}: its host or port cannot be read; they are written like 127.0.0.1:5432 or [::1]:5432, and in a "
            "user or password %2F stands for /, %3F for ?, %23 for #, %40 for @, %5B for ["
        ) from error


def _check_proxy(proxy: str) -> None:
    """Raise SettingsError where this is no address or network whose forwarded addresses could be believed."""
    if proxy == "*":
        raise SettingsError("trusted_proxies: “*” would let anybody choose their address; name the proxies")
    try:
        network = ip_network(proxy) if "/" in proxy else ip_network(ip_address(proxy))
    except ValueError as error:
        raise SettingsError(
            f"trusted_proxies: “{proxy}” is no address such as 10.0.0.1 and no network such as 10.0.0.0/8"
        ) from error
    if network.prefixlen < WIDEST_PROXIES[network.version]:
        raise SettingsError(
            f"trusted_proxies: “{proxy}” is so much of the internet that others could choose their address; name the "
            "proxies"
        )


def _checked(settings: Settings) -> Settings:
    _check_url("database_url", settings.database_url)
    _check_url("redis_url", settings.redis_url)
    if urlsplit(settings.database_url).scheme not in ("sqlite", "postgresql", "postgres"):
        raise SettingsError("database_url: it begins with sqlite:/// or postgresql://")
    if settings.database_url.startswith("sqlite") and not _SQLITE_URL.fullmatch(settings.database_url):
        raise SettingsError(
            "database_url: SQLite's is sqlite:///var/turnkeeper.db, or sqlite:////srv/turnkeeper.db with a path from "
            "the root; ? and # in a path are %3F and %23, and a database in memory would be gone with its server"
        )
    if settings.redis_url and not re.match(r"rediss?://[^/?]+(/\d*)?(\?.*)?$|unix://", settings.redis_url):
        raise SettingsError("redis_url: it is redis://host:port/number, or begins with rediss:// or unix://")
    for proxy in settings.trusted_proxies:
        _check_proxy(proxy)
    if settings.secret_key and len(settings.secret_key) < 32:
        raise SettingsError("secret_key: it needs 32 characters or more")
    try:
        parse_zone(settings.time_zone)
    except ValueError as error:
        raise SettingsError(f"time_zone: {error}") from error
    if settings.groups.get(EVERYBODY, GroupConfig()).default_model is not None:
        raise SettingsError("$.groups.*.default_model: for the whole instance it stands at the top, as default_model")
    for name, group in settings.groups.items():
        if listed(name) != [name]:
            raise SettingsError(f"$.groups.{name}: the name of a group is one word")
        for limit, value in group.limits().items():
            if name == EVERYBODY and limit not in SERVER_LIMITS:
                there = ", ".join(SERVER_LIMITS)
                text = f"this is a limit of groups, and for the server as a whole there is {there}"
                raise SettingsError(f"$.groups.*.{limit}: {text}; set it in [groups.user], which other groups follow")
            try:
                check_rule(limit, value, name)
            except ValueError as error:
                raise SettingsError(f"$.groups.{name}.{limit}: {error}") from error
    providers = {"builtin"} | {provider.id for provider in settings.providers}
    if len(providers) <= len(settings.providers):
        raise SettingsError("$.providers: two have the same id (“builtin” is taken)")
    for place, provider in enumerate(settings.providers):
        _check_url(f"$.providers[{place}].base_url", provider.base_url)
        if provider.base_url and urlsplit(provider.base_url).scheme not in ("http", "https"):
            raise SettingsError(f"$.providers[{place}].base_url: it begins with http:// or https://")
        if provider.reasoning and provider.kind != "anthropic":
            raise SettingsError(f"$.providers[{place}].reasoning: only a provider of kind “anthropic” is asked for it")
        if provider.reasoning != "adaptive" and 0 != provider.reasoning < MIN_REASONING_TOKENS:
            raise SettingsError(
                f"$.providers[{place}].reasoning: it is “adaptive”, 0, or {MIN_REASONING_TOKENS} or more"
            )
    ids = [model.id for model in settings.models]
    names = set(ids)
    for place, model in enumerate(settings.models):
        if model.replacement is not None and model.replacement not in ids:
            raise SettingsError(f"$.models[{place}].replacement: there is no model {model.replacement!r}")
        for alias in model.aliases:
            if alias in names or not alias or any(character.isspace() for character in alias):
                raise SettingsError(f"$.models[{place}].aliases: {alias!r} is taken, or no name")
            names.add(alias)
        if model.provider not in providers:
            raise SettingsError(f"$.models[{place}].provider: there is no provider {model.provider!r}")
        if ids.index(model.id) != place:
            raise SettingsError(f"$.models[{place}].id: {model.id!r} is there twice")
        if "session" in (model.id, *model.aliases):
            raise SettingsError(f"$.models[{place}].id: “session” is what scripts call a session's own model")
        if not model.id or len(model.id) > 100 or any(character.isspace() for character in model.id):
            raise SettingsError(f"$.models[{place}].id: an id has 1 to 100 characters and no space")
    defaults = {"$.default_model": settings.default_model}
    defaults |= {f"$.groups.{name}.default_model": group.default_model for name, group in settings.groups.items()}
    for key, default in defaults.items():
        if default is not None and settings.models and default not in ids:
            raise SettingsError(f"{key}: there is no model {default!r}")
    return settings


def _read_secret(key: str, path: str) -> str:
    try:
        return utf8(Path(path).read_bytes()).decode().strip()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(f"{key}: {path} cannot be read: {why}") from error


def _told(
    error: msgspec.ValidationError, values: Mapping[str, Any], path: Path, from_environment: Collection[str]
) -> str:
    """Where the wrong value stands, then what is wrong with it."""
    what, _, where = str(error).partition(" - at `")
    where = where.rstrip("`") or "$"
    if where.startswith("$.groups[...]"):
        name = next(name for name, group in values["groups"].items() if not _fits(group, GroupConfig))
        where = where.replace("[...]", f".{name}", 1)
        what = WRITTEN.get(where.rpartition(".")[2], what)
    if (unknown := _UNKNOWN.fullmatch(what)) is not None:
        what = _unknown(unknown[1], where)
    if what.startswith("Invalid enum value"):
        what = f"possible are {', '.join(values_of(_kind_at(where), where.rpartition('.')[2]))}"
    key = where.removeprefix("$.").partition("[")[0]
    return f"{PREFIX}{key.upper()}: {what}" if key in from_environment else f"{_whence(key, path)}{where}: {what}"


def _whence(key: str, path: Path, from_environment: Collection[str] = ()) -> str:
    """The file in which a key stands, before what is wrong with it; nothing where it may stand elsewhere."""
    return f"{path}: " if path.exists() and key not in from_environment else ""


def _fits(value: object, kind: type) -> bool:
    try:
        msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError:
        return False
    return True


def _kind_at(where: str) -> type[msgspec.Struct]:
    """What the keys at this place belong to."""
    return next((kind for table, kind in TABLES.items() if where.startswith(table)), Settings)


def _unknown(key: str, where: str) -> str:
    """That there is no such key, and what may be meant."""
    kind = _kind_at(where)
    known = sorted({field.encode_name for field in msgspec.structs.fields(kind)} - NOT_IN_A_FILE)
    near = difflib.get_close_matches(key, known, 1)
    return f"there is no key “{key}”; " + (f"did you mean “{near[0]}”?" if near else f"there are {', '.join(known)}")
