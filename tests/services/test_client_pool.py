"""What can be called, what is known of it, and what is found nearby."""

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator

import msgspec
import pytest

from services import client_pool
from services.client_pool import ClientPool, Found, Provider, UnknownProvider, discover, openai_chat_models
from services.clients import Ask, Client, ClientError, Message, Said, Text, Usage
from services.clients.anthropic import AnthropicClient
from services.clients.openai import OpenAIClient
from tests.conftest import Until, limit
from tests.services.clients.provider import Asked, Wire, provider, whole

pytestmark = pytest.mark.anyio

KEY = "sk-canary-81b2"
BUILTIN = Provider(id="builtin", kind="builtin")


@pytest.fixture(autouse=True)
def in_time(request: pytest.FixtureRequest) -> None:
    limit(request.node, 60)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine finds what is nearby too."""
    monkeypatch.setattr(client_pool, "DISCOVERY_SECONDS", 120)


class Fake:
    """A provider whose health a test sets; its probe may also fail in ways it must not."""

    def __init__(self, up: bool | Exception = True, seconds: float = 0) -> None:
        self.up, self.seconds = up, seconds
        self.probes = 0
        self.closed = False

    async def stream(self, ask: Ask) -> AsyncGenerator[Said, None]:
        yield Text("x")

    async def is_up(self) -> bool:
        self.probes += 1
        await asyncio.sleep(self.seconds)
        if isinstance(self.up, Exception):
            raise self.up
        return self.up

    async def models(self) -> tuple[str, ...]:
        return ()

    async def aclose(self) -> None:
        self.closed = True
        if isinstance(self.up, Exception):
            raise self.up


def pool_of(**fakes: Fake) -> ClientPool:
    providers = [Provider(id=name, kind="openai") for name in fakes]
    return ClientPool(providers, connect=lambda provider: fakes[provider.id], probe_every_seconds=0.02)


async def test_the_builtin_provider_serves_two_models_and_is_always_up() -> None:
    pool = ClientPool([BUILTIN])
    assert pool.has("builtin")
    assert pool.is_up("builtin") is True
    client = pool.client_of("builtin")
    assert await client.models() == ("guide", "echo")
    pieces = [piece async for piece in client.stream(Ask("echo", (Message("user", "Hi"),), 0))]
    assert pieces == [Text("Hi"), Usage(1, 1)]
    pool.note("builtin", False)
    assert pool.is_up("builtin") is True
    await pool.aclose()


async def test_a_builtin_model_that_is_none_is_missing() -> None:
    with pytest.raises(ClientError) as caught:
        async for _ in ClientPool([BUILTIN]).client_of("builtin").stream(Ask("gpt", (), 0)):
            pass
    assert caught.value.code == "model_missing"


async def test_a_provider_nobody_configured_does_not_answer() -> None:
    pool = ClientPool([BUILTIN])
    assert not pool.has("nobody")
    assert pool.is_up("nobody") is False
    with pytest.raises(UnknownProvider, match="nobody"):
        pool.client_of("nobody")
    pool.note("nobody", True)
    assert pool.is_up("nobody") is False


async def test_every_kind_gets_its_client() -> None:
    kinds = [Provider("a", "openai", "http://127.0.0.1:9/v1", KEY), Provider("b", "anthropic", api_key=KEY)]
    pool = ClientPool(kinds)
    assert isinstance(pool.client_of("a"), OpenAIClient)
    assert isinstance(pool.client_of("b"), AnthropicClient)
    assert pool.is_up("a") is None
    await pool.aclose()


async def test_a_provider_is_asked_to_think_as_its_entry_says() -> None:
    async with provider(lambda asked, wire: wire.send(whole(b"{}"))) as served:
        for reasoning, wanted in (("adaptive", "adaptive"), (2048, "enabled"), (0, None)):
            pool = ClientPool([Provider("a", "anthropic", served.url, KEY, reasoning=reasoning)])
            with pytest.raises(ClientError):
                await anext(pool.client_of("a").stream(Ask("m", (Message("user", "Hi"),), 0)))
            assert served.asked[-1].json.get("thinking", {}).get("type") == wanted
            await pool.aclose()


async def test_two_providers_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="builtin"):
        ClientPool([BUILTIN, BUILTIN])


async def test_a_key_that_cannot_be_one_stops_the_start_and_is_not_shown() -> None:
    with pytest.raises(ValueError, match="Provider “a”") as caught:
        ClientPool([Provider("a", "openai", api_key=f"{KEY}\n")])
    assert KEY not in str(caught.value)


async def test_a_key_is_never_shown() -> None:
    one = Provider("a", "openai", "http://x/v1", KEY)
    for shown in (repr(one), str(one), f"{one}", repr([one]), repr(Found(one, ("m",), "")), repr(ClientPool([one]))):
        assert KEY not in shown
    assert "key set" in repr(one)


async def test_a_provider_is_read_strictly() -> None:
    assert msgspec.convert({"id": "a", "kind": "openai"}, Provider) == Provider("a", "openai")
    for wrong in ({"id": "a", "kind": "other"}, {"id": "a", "kind": "openai", "url": "x"}, {"kind": "openai"}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, Provider)


async def test_a_turn_tells_what_a_probe_would(caplog: pytest.LogCaptureFixture) -> None:
    pool = pool_of(a=Fake())
    assert pool.is_up("a") is None
    with caplog.at_level(logging.INFO):
        pool.note("a", False)
        pool.note("a", False)
        assert pool.is_up("a") is False
        pool.note("a", True)
        assert pool.is_up("a") is True
    assert [record.message for record in caplog.records] == ["provider a is down", "provider a is up"]


async def test_a_dead_provider_shows_as_down_and_comes_back(until: Until) -> None:
    a, b = Fake(up=False), Fake()
    pool = pool_of(a=a, b=b)
    watch = asyncio.create_task(pool.watch())
    await until(lambda: (pool.is_up("a"), pool.is_up("b")) == (False, True))
    a.up = True
    await until(lambda: pool.is_up("a"))
    watch.cancel()


async def test_watching_outlives_errors_and_one_slow_provider_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    broken, slow, quick = Fake(up=RuntimeError("bug")), Fake(seconds=600), Fake(seconds=0.01)
    pool = pool_of(broken=broken, slow=slow, quick=quick)
    watch = asyncio.create_task(pool.watch())
    await until(lambda: pool.is_up("quick"))
    assert slow.probes == 1 and pool.is_up("slow") is None
    watch.cancel()

    monkeypatch.setattr(client_pool, "PROBE_SECONDS", 0.1)
    watch = asyncio.create_task(pool.watch())
    await until(lambda: pool.is_up("slow") is False and broken.probes >= 3)
    assert pool.is_up("broken") is False
    assert not watch.done()
    watch.cancel()


async def test_closing_closes_every_client_even_if_one_fails() -> None:
    fakes = {"a": Fake(up=RuntimeError("bug")), "b": Fake()}
    await pool_of(**fakes).aclose()
    assert all(fake.closed for fake in fakes.values())


# Discovery


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


async def listing(asked: Asked, wire: Wire) -> None:
    names = ["llama3.2:3b", "nomic-embed-text", "qwen3-instruct"]
    await wire.send(whole(msgspec.json.encode({"object": "list", "data": [{"id": name} for name in names]})))


def port_of(url: str) -> int:
    return int(url.split(":")[2].split("/")[0])


async def test_nothing_nearby_is_silence_and_costs_nothing() -> None:
    assert await discover(ports={"a": closed_port(), "b": closed_port()}) == []  # in the time of this test


async def test_a_model_server_nearby_is_found_with_the_models_that_chat() -> None:
    async with provider(listing) as served:
        (found,) = await discover(ports={"ollama": port_of(served.url), "vllm": closed_port()})
    assert found == Found(Provider("ollama", "openai", served.url), ("llama3.2:3b", "qwen3-instruct"), "")


async def test_our_own_port_is_not_asked() -> None:
    async with provider(listing) as served:
        port = port_of(served.url)
        assert await discover(ports={"vllm": port}, skip_ports=(port,)) == []
        assert served.connections == 0


@pytest.mark.parametrize(
    "answer",
    [
        whole(b"<html>hello"),
        whole(b'{"status": "ok"}'),
        whole(b"", status=404),
        b"220 smtp\r\n",
        whole(b'{"data": []}'),
    ],
)
async def test_other_servers_on_those_ports_are_left_alone(answer: bytes) -> None:
    async def script(asked: Asked, wire: Wire) -> None:
        await wire.send(answer)
        raise ConnectionError

    async with provider(script) as served:
        assert await discover(ports={"llamacpp": port_of(served.url)}) == []


async def test_a_server_that_never_answers_does_not_hold_up_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_pool, "DISCOVERY_SECONDS", 3)
    async with provider(lambda asked, wire: wire.silence()) as silent, provider(listing) as served:
        found = await discover(ports={"a": port_of(silent.url), "b": port_of(served.url)})
    assert [one.provider.id for one in found] == ["b"]


async def test_keys_find_their_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(asked: Asked, wire: Wire) -> None:
        if "x-api-key" in asked.headers:
            assert asked.headers["x-api-key"] == KEY
            names = ["claude-b", "claude-a"]
        else:
            assert asked.headers["authorization"] == f"Bearer {KEY}"
            names = ["gpt-4o", "gpt-9", "whisper-1"]
        await wire.send(whole(msgspec.json.encode({"data": [{"id": name} for name in names]})))

    async with provider(script) as served:
        monkeypatch.setattr(client_pool, "OPENAI_URL", served.url)
        monkeypatch.setattr(client_pool, "ANTHROPIC_URL", served.url)
        openai, anthropic = await discover(KEY, KEY, ports={})
    assert openai == Found(Provider("openai", "openai", served.url, KEY), ("gpt-9", "gpt-4o"), "")
    assert anthropic == Found(Provider("anthropic", "anthropic", served.url, KEY), ("claude-b", "claude-a"), "")


async def test_a_key_that_cannot_be_used_is_reported_without_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(asked: Asked, wire: Wire) -> None:
        await wire.send(whole(b'{"error": {"message": "no"}}', status=401))

    monkeypatch.setattr(client_pool, "ANTHROPIC_URL", f"http://127.0.0.1:{closed_port()}/v1")
    async with provider(script) as served:
        monkeypatch.setattr(client_pool, "OPENAI_URL", served.url)
        openai, anthropic = await discover(KEY, KEY, ports={})
        (odd,) = await discover(f"{KEY}\n", ports={})
    assert "key" in openai.note
    assert "401" in openai.note
    assert anthropic.note == "The provider cannot be reached."
    assert "characters" in odd.note
    assert KEY not in openai.note + anthropic.note + odd.note
    assert openai.models == anthropic.models == odd.models == ()


async def test_of_openais_list_only_what_chats_is_kept() -> None:
    chat = (
        "gpt-5.1 gpt-5 gpt-5-nano gpt-4o gpt-4-0613 gpt-4-1106 gpt-4o-mini gpt-3.5-turbo chatgpt-4o-latest o3 o3-mini"
    )
    other = """gpt-4o-2024-08-06 gpt-4o-audio-preview gpt-4o-realtime-preview gpt-image-1 gpt-5-pro gpt-5.1-codex sora-2
        gpt-3.5-turbo-instruct o1-pro o3-deep-research whisper-1 tts-1 text-embedding-3-small dall-e-3 gpt-4o-transcribe
        omni-moderation-latest babbage-002 gpt-4o-search-preview gpt-4o-mini-tts codex-mini-latest ft:gpt-4o:x
        computer-use-preview"""
    listed = sorted([*chat.split(), *other.split()])
    assert openai_chat_models(listed) == tuple(chat.split())


async def test_a_fake_is_a_client() -> None:
    client: Client = Fake()
    assert await client.is_up()
