"""Which providers can be called now: a client for each, and whether it answers; and which ones are found nearby."""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Literal
from uuid import UUID

import msgspec

from services.clients import Client, ClientError
from services.clients.anthropic import AnthropicClient, Thinking
from services.clients.builtin import BuiltinClient
from services.clients.openai import OpenAIClient
from services.clients.remote import Bounds
from services.event_bus import EventBus, Hint, MemoryEventBus
from services.redaction import without_secrets

PROBE_EVERY_SECONDS = 30.0
#: a probe that takes longer is given up, whatever the client thinks
PROBE_SECONDS = 10.0

OPENAI_URL = "https://api.openai.com/v1"
ANTHROPIC_URL = "https://api.anthropic.com"
#: ids and usual ports of model servers on this machine
LOCAL_PORTS: Mapping[str, int] = {"ollama": 11434, "llamacpp": 8080, "lmstudio": 1234, "vllm": 8000}
DISCOVERY_SECONDS = 1.4
#: what processes tell each other about their providers goes under this id, which is no session's
NEWS = UUID(int=1)
#: news from further ahead is not believed: nothing could follow it
AHEAD_SECONDS = 3600.0

log = logging.getLogger(__name__)


class Provider(msgspec.Struct, frozen=True, forbid_unknown_fields=True, repr_omit_defaults=True):
    """One `[[providers]]` entry of the configuration, its secret resolved."""

    id: str
    kind: Literal["openai", "anthropic", "builtin"]
    #: ends where `/chat/completions` or `/messages` begins; for anthropic also before `/v1`. Default: their own
    base_url: str = ""
    api_key: str = ""
    #: read by the settings; nobody looks at it here
    api_key_file: str = ""
    #: for anthropic: how its models are asked to think
    reasoning: Thinking = 0

    def __repr__(self) -> str:
        """The key stays out of logs and tracebacks."""
        key = ", key set" if self.api_key else ""
        return f"Provider({self.id!r}, {self.kind!r}, {without_secrets(self.base_url)!r}{key})"


class UnknownProvider(KeyError):
    """No provider has this id."""


def client_for(provider: Provider, bounds: Bounds | None = None) -> Client:
    """The client that speaks to a provider. Raises ValueError for an address or a key that cannot be one."""
    match provider.kind:
        case "builtin":
            return BuiltinClient()
        case "openai":
            return OpenAIClient(provider.base_url or OPENAI_URL, provider.api_key, bounds=bounds)
        case "anthropic":
            return AnthropicClient(
                provider.base_url or ANTHROPIC_URL, provider.api_key, thinking=provider.reasoning, bounds=bounds
            )


class ClientPool:
    """A client for every provider, and what is last known of its health, here or in another process.

    What one process finds out, the others on its bus take over: pages, scripts and turns are told the same everywhere.
    The latest that anybody found out holds.
    """

    def __init__(
        self,
        providers: Iterable[Provider],
        *,
        bus: EventBus | None = None,
        connect: Callable[[Provider], Client] = client_for,
        probe_every_seconds: float = PROBE_EVERY_SECONDS,
    ) -> None:
        self._bus = bus or MemoryEventBus()
        self._clients: dict[str, Client] = {}
        #: {provider: when it was found out, in microseconds since 1970, and whether it answers}
        self._known: dict[str, tuple[int, bool]] = {}
        self._probed: list[str] = []
        self._probe_every_seconds = probe_every_seconds
        for provider in providers:
            if provider.id in self._clients:
                raise ValueError(f"Two providers are called “{provider.id}”.")
            try:
                self._clients[provider.id] = connect(provider)
            except ValueError as error:
                raise ValueError(f"Provider “{provider.id}”: {error}") from None
            if provider.kind == "builtin":
                self._known[provider.id] = (0, True)
            else:
                self._probed.append(provider.id)

    def has(self, provider_id: str) -> bool:
        return provider_id in self._clients

    @property
    def known(self) -> dict[str, bool]:
        """{provider: whether it answers} of those of which anything is known."""
        return {provider_id: up for provider_id, (_, up) in self._known.items()}

    def is_up(self, provider_id: str) -> bool | None:
        """The last known answer; None while nothing is known, False for one that is not configured here."""
        if not self.has(provider_id):
            return False
        return self._known[provider_id][1] if provider_id in self._known else None

    def client_of(self, provider_id: str) -> Client:
        """Raises UnknownProvider."""
        try:
            return self._clients[provider_id]
        except KeyError:
            raise UnknownProvider(provider_id) from None

    def note(self, provider_id: str, up: bool) -> None:
        """Learn from how a turn or a probe went, and let the other processes know what is new."""
        if provider_id in self._probed and self.is_up(provider_id) != up:
            before, _ = self._known.get(provider_id, (0, up))
            # Behind whatever it contradicts, whichever clock that was told by.
            self._learn(provider_id, max(time.time_ns() // 1000, before + 1), up)
            self._tell(provider_id)

    def _learn(self, provider_id: str, at: int, up: bool) -> None:
        """Take over what is newer than what is known, and set right who tells what is older: all end with the same."""
        known = self._known.get(provider_id, (0, False))
        if (at, up) < known:
            self._tell(provider_id)
        elif (at, up) > known and provider_id in self._probed:
            if self.is_up(provider_id) != up:
                log.log(logging.INFO if up else logging.WARNING, "provider %s is %s", provider_id, _word(up))
            self._known[provider_id] = (at, up)

    def _tell(self, provider_id: str) -> None:
        at, up = self._known[provider_id]
        self._bus.publish(Hint(NEWS, _word(up), offset=at, text=provider_id))

    async def watch(self) -> None:
        """Probe every provider now and again, and hear what others find out, until cancelled."""
        hearing = asyncio.create_task(self._hear())
        try:
            while True:
                await self.probe()
                await asyncio.sleep(self._probe_every_seconds)
        finally:
            hearing.cancel()

    async def _hear(self) -> None:
        with self._bus.subscribe(NEWS) as news:
            while True:
                await news.woken.wait()
                for hint in news.take():
                    if hint.kind in ("up", "down"):
                        if hint.offset <= (time.time() + AHEAD_SECONDS) * 1e6:
                            self._learn(hint.text, hint.offset, hint.kind == "up")
                    else:  # something was lost, here or there
                        for provider_id in self._probed:
                            if provider_id in self._known:
                                self._tell(provider_id)

    async def probe(self) -> None:
        """Ask every provider once, all at the same time; none can hold up or break the others."""
        await asyncio.gather(*(self._probe(provider_id) for provider_id in self._probed))

    async def _probe(self, provider_id: str) -> None:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                up = await self._clients[provider_id].is_up()
        except Exception:
            log.exception("provider %s could not be probed", provider_id)
            up = False
        self.note(provider_id, up)

    async def aclose(self) -> None:
        """Close every client; an error of one keeps no other open."""
        for closed in await asyncio.gather(*(each.aclose() for each in self._clients.values()), return_exceptions=True):
            if isinstance(closed, Exception):
                log.warning("a client did not close cleanly", exc_info=closed)


def _word(up: bool) -> str:
    return "up" if up else "down"


class Found(msgspec.Struct, frozen=True):
    """A provider that can be used without configuration."""

    provider: Provider
    #: those that can chat
    models: tuple[str, ...]
    #: a sentence where something is odd; else empty
    note: str = ""


async def discover(
    openai_api_key: str = "",
    anthropic_api_key: str = "",
    ports: Mapping[str, int] = LOCAL_PORTS,
    *,
    skip_ports: Iterable[int] = (),
) -> list[Found]:
    """Providers whose key is given, and model servers on loopback; takes `DISCOVERY_SECONDS` at most.

    What is not there is not mentioned; a key that cannot be used is, in its note. `skip_ports` are those we listen on.
    """
    skipped = frozenset(skip_ports)
    searches: list[Awaitable[Found | None]] = []
    if openai_api_key:
        searches.append(_found_by_key(Provider("openai", "openai", OPENAI_URL, openai_api_key), openai_chat_models))
    if anthropic_api_key:
        searches.append(_found_by_key(Provider("anthropic", "anthropic", ANTHROPIC_URL, anthropic_api_key), tuple))
    searches += [_found_nearby(name, port) for name, port in ports.items() if port not in skipped]
    return [found for found in await asyncio.gather(*searches) if found is not None]


async def _found_by_key(provider: Provider, chat_models: Callable[[Iterable[str]], tuple[str, ...]]) -> Found:
    try:
        models = chat_models(await _listed(provider, DISCOVERY_SECONDS))
    except ClientError as error:
        return Found(provider, (), error.detail)
    return Found(provider, models, "" if models else "It lists no models that chat.")


async def _found_nearby(name: str, port: int) -> Found | None:
    try:
        async with asyncio.timeout(DISCOVERY_SECONDS / 2):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        provider = Provider(name, "openai", f"http://127.0.0.1:{port}/v1")
        listed = await _listed(provider, DISCOVERY_SECONDS / 2)
    except (OSError, ClientError):  # nobody there, or somebody who is no model server
        return None
    models = tuple(model for model in listed if not _NO_CHAT_ANYWHERE.search(model))
    return Found(provider, models) if models else None


async def _listed(provider: Provider, seconds: float) -> tuple[str, ...]:
    try:
        client = client_for(provider, Bounds(probe_seconds=seconds))
    except ValueError as error:
        raise ClientError("provider_refused", str(error)) from None
    try:
        return await client.models()
    finally:
        await client.aclose()


_NO_CHAT_ANYWHERE = re.compile(r"embed|rerank|whisper|\btts\b", re.IGNORECASE)
_OPENAI_CHAT = re.compile(r"(?:gpt-|chatgpt-|o(?=\d))(\d+(?:\.\d+)?)?")
#: families that share the prefix and speak another interface
_OPENAI_OTHER = re.compile(
    r"audio|codex|computer-use|deep-research|embed|image|instruct|live|moderation|-pro\b|realtime|search|transcri|\btts\b"
)
_SNAPSHOT = re.compile(r"-(?:\d{4}-\d\d-\d\d|\d{4})$")


def openai_chat_models(names: Iterable[str]) -> tuple[str, ...]:
    """The models of OpenAI's list that chat, newest family first; dated snapshots only where there is no other."""
    listed = {name for name in names if _OPENAI_CHAT.match(name) and not _OPENAI_OTHER.search(name)}
    current = [name for name in listed if (plain := _SNAPSHOT.sub("", name)) == name or plain not in listed]

    def rank(name: str) -> tuple[bool, float, int, str]:
        version = _OPENAI_CHAT.match(name)
        return (not name.startswith("gpt-"), -float(version[1] or 0) if version else 0.0, len(name), name)

    return tuple(sorted(current, key=rank))
