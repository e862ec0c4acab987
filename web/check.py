"""`turnkeeper check`: what would keep this deployment from working, or make it unsafe."""

import asyncio

import msgspec

from db import schema
from db.db_session import DatabaseUnavailable
from db.engine import open_engine
from db.health import Health
from db.version import version
from services.client_pool import ClientPool
from services.clients import Client, ClientError
from services.clients.remote import Answered
from services.shared_bus import try_out, wire_for
from web.descriptors import open_files, room_for_connections
from web.redaction import redacted
from web.settings import Settings
from web.welcome import the_models


class Finding(msgspec.Struct, frozen=True):
    what: str
    ok: bool
    detail: str


async def findings(settings: Settings, *, deploy: bool = False) -> list[Finding]:
    """Everything that was looked at."""
    found = [
        Finding("configuration", True, settings.config_file or "no turnkeeper.toml; defaults and the environment"),
        *await _database(settings),
        *await _live_events(settings),
        *await _providers(settings),
    ]
    files = open_files()
    found.append(Finding("open files", files >= 1024, _told_of(files)))
    found += _deployment(settings) if deploy else []
    return [msgspec.structs.replace(one, detail=redacted(one.detail, settings)) for one in found]


def _told_of(files: int) -> str:
    """What so many open files are enough for."""
    return (
        f"{files} allowed (ulimit -Hn); an open page takes one, and {room_for_connections(files)} clients may connect"
    )


async def _database(settings: Settings) -> list[Finding]:
    """The database, its schema, and whether it can be written to: as /readyz sees them."""
    kind = "SQLite" if settings.sqlite_path else "PostgreSQL"
    if settings.sqlite_path and not settings.sqlite_path.exists():
        return [
            Finding("database", True, f"{kind}; there is none at {settings.place} yet, “turnkeeper serve” makes it")
        ]
    engine = open_engine(settings.database_url)
    try:
        await engine.start()
        if not await schema.is_there(engine):
            return [Finding("database", True, f"{kind}; it is empty, “turnkeeper serve” makes its tables")]
        failed = await Health(engine).faults()
        if not failed and (late := await schema.start_fault(engine)):
            failed = {"schema": late}
    except DatabaseUnavailable as error:
        return [Finding("database", False, str(error))]
    finally:
        await engine.stop()
    details = {"database": kind, "schema": f"{schema.number()}, of Turnkeeper {version()}", "writing": "works"}
    found = []
    for check, detail in details.items():
        found.append(Finding(check, check not in failed, failed.get(check, detail)))  # type: ignore[call-overload]
        if check in failed:
            break
    return found


async def _live_events(settings: Settings) -> list[Finding]:
    wire, carrier = wire_for(settings.database_url, settings.redis_url), "Redis" if settings.redis_url else "PostgreSQL"
    if wire is None:
        return []
    try:
        await try_out(wire)
    except Exception as error:  # as many kinds as the drivers know
        return [Finding("live events", False, f"{carrier} does not carry them: {str(error) or 'no answer'}")]
    return [Finding("live events", True, f"{carrier} carries them between processes")]


async def _providers(settings: Settings) -> list[Finding]:
    models = await the_models(settings)
    pool = ClientPool(models.providers)
    try:
        faults = await asyncio.gather(*(_fault(pool.client_of(provider.id)) for provider in models.providers))
    finally:
        await pool.aclose()
    return [
        Finding(f"provider {provider.id}", not fault, fault or "answers")
        for provider, fault in zip(models.providers, faults, strict=True)
    ]


async def _fault(client: Client) -> str:
    """Why a provider would answer nobody; empty where it would."""
    if not await client.is_up():
        return "does not answer"
    try:
        await client.models()
    except Answered as answer:
        # With another status it may still chat: not every key may list models.
        return answer.detail if answer.status == 401 else ""
    except ClientError as error:
        return error.detail
    return ""


def _private(settings: Settings) -> list[Finding]:
    """Whether others on the machine are kept from an SQLite database."""
    path = settings.sqlite_path
    if path is None or not path.exists():
        return []
    folder = path.resolve().parent
    open_to_others = bool(folder.stat().st_mode & 0o077)
    told = f"others may look into {folder}; let it hold nothing else and be yours alone (chmod 700)"
    return [Finding("private files", not open_to_others, told if open_to_others else "ok")]


def _deployment(settings: Settings) -> list[Finding]:
    return [
        *_private(settings),
        Finding(
            "access",
            not settings.guests or settings.on_loopback,
            "guests may come in from the network" if settings.guests and not settings.on_loopback else "ok",
        ),
        Finding(
            "allowed hosts",
            settings.on_loopback or bool(settings.allowed_hosts),
            ", ".join(sorted(settings.hosts)) or "none; set TURNKEEPER_ALLOWED_HOSTS",
        ),
        Finding(
            "cookies",
            settings.on_loopback or bool(settings.trusted_proxies),
            _told_of_cookies(settings),
        ),
    ]


def _told_of_cookies(settings: Settings) -> str:
    """How they travel, and what to do where that is not safe."""
    if settings.trusted_proxies:
        return f"__Host- and Secure when {', '.join(settings.trusted_proxies)} says that it was reached by TLS"
    if settings.on_loopback:
        return "on loopback they need no TLS"
    return "they travel without TLS; put a TLS proxy in front, and name it in TURNKEEPER_TRUSTED_PROXIES"
