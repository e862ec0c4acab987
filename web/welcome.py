"""The start: which models there are, and what the terminal says about it."""

import logging
import sys
from pathlib import Path

import msgspec

from services.catalogue import ModelConfig
from services.client_pool import Found, Provider, discover
from web.settings import LOOPBACK, Settings

log = logging.getLogger(__name__)

BUILTIN = Provider(id="builtin", kind="builtin")
GUIDE = ModelConfig(id="guide", provider="builtin", label="Guide (searches the docs, no language model)")
ECHO = ModelConfig(id="echo", provider="builtin", label="Echo (repeats you, for trying things out)")


class Models(msgspec.Struct, frozen=True):
    """What this start can offer."""

    providers: list[Provider]
    models: list[ModelConfig]
    default_model: str | None
    found: list[Found]


class Start(msgspec.Struct, frozen=True):
    """What was settled once, before anything serves."""

    models: Models
    #: the migrations that ran
    migrated: list[str]
    #: of the link that makes the first admin; None where there is one
    setup_secret: str | None


async def the_models(settings: Settings) -> Models:
    """The configured models; without any, the built-in ones and whatever answers nearby."""
    if settings.models or settings.providers:
        default = settings.default_model or (settings.models[0].id if settings.models else None)
        return Models([BUILTIN, *settings.providers], settings.models, default, [])
    found = []
    if settings.discover:
        found = await discover(
            openai_api_key=settings.openai_api_key,
            anthropic_api_key=settings.anthropic_api_key,
            skip_ports=(settings.port,),
        )
    nearby = [
        ModelConfig(
            id=name if _unique(name, found) else f"{one.provider.id}/{name}", provider=one.provider.id, upstream=name
        )
        for one in found
        for name in one.models
    ]
    default = settings.default_model or (nearby[0].id if nearby else GUIDE.id)
    return Models([BUILTIN, *(one.provider for one in found)], [*nearby, GUIDE, ECHO], default, found)


def _unique(name: str, found: list[Found]) -> bool:
    return sum(name in one.models for one in found) == 1 and name not in (GUIDE.id, ECHO.id)


def greet(settings: Settings, start: Start) -> None:
    """Say on the terminal where it is, what was found, and what to do next."""
    models, migrated = start.models, start.migrated
    address = f"http://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{settings.port}"
    lines = ["", f"  Turnkeeper is at {address}"]
    if migrated:
        lines.append(f"  database   {_database(settings)}, {len(migrated)} migration(s) applied")
    else:
        lines.append(f"  database   {_database(settings)}")
    names = [model.id for model in models.models]
    lines.append(f"  models     {', '.join(names[:6])}{' …' if len(names) > 6 else ''}")
    lines += [f"  found      {one.provider.id}: {one.note or f'{len(one.models)} models'}" for one in models.found]
    if not models.found and not settings.models:
        lines.append("  found      no provider key in the environment and no model server on loopback;")
        lines.append("             the built-in models need neither")
    if settings.guests:
        lines.append("  access     anybody who reaches this address may chat as a guest")
    else:
        lines.append("  access     accounts only")
    if start.setup_secret:
        first, *others = public_addresses(settings) or [address]
        lines.append(f"  admin      become the admin, once: {first}/setup/{start.setup_secret}")
        if others:
            lines.append(f"             the same path also works at {', '.join(others)}")
    if settings.log_format == "json":
        log.info("%s", "; ".join(" ".join(line.split()).rstrip(";") for line in lines if line))
    else:
        print("\n".join(lines), "\n", file=sys.stderr, flush=True)


def public_addresses(settings: Settings) -> list[str]:
    """Where people reach the server by the names in `allowed_hosts`; behind a proxy, by https at its usual port."""
    names = [name for name in settings.allowed_hosts if name.lower() not in LOOPBACK]
    hosts = [f"[{name}]" if ":" in name else name for name in names]
    if settings.trusted_proxies:
        return [f"https://{host}" for host in hosts]
    return [f"http://{host}:{settings.port}" for host in hosts]


def _database(settings: Settings) -> str:
    return str(Path(settings.sqlite_path)) if settings.sqlite_path else "PostgreSQL"
