"""Clients in every wire form against a provider that does everything wrong (checks E31–E37 of the threat model)."""

import asyncio
import gc
import json
import shutil
import socket
import ssl
import subprocess
import tracemalloc
import zlib
from contextlib import aclosing
from pathlib import Path
from time import monotonic

import openai.resources.chat  # noqa: F401  so that no test's clock counts a second of imports
import pytest

from services.clients import Ask, ClientError, Reasoning, Said, Text, Usage, Wishes
from services.clients.remote import Bounds
from tests.conftest import Until
from tests.services.clients.forms import ASK, CALM, KEY, Form, answering, ask, listen, only, reading, refused
from tests.services.clients.provider import CHUNKED_HEAD, STREAM_HEAD, Asked, Wire, chunked, provider, whole

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("in_time", "patient")]


async def test_a_piece_is_passed_on_before_the_next_one_comes(form: Form) -> None:
    proceed = asyncio.Event()

    async def script(asked: Asked, wire: Wire) -> None:
        await wire.send(STREAM_HEAD, form.event("first"))
        await proceed.wait()
        await wire.send(form.event(" second"), form.DONE)

    async with provider(script) as served:
        client = form.client(served.url, bounds=only(drain_seconds=0.1))
        async with aclosing(client.stream(ASK)) as pieces:
            assert await anext(pieces) == Text("first")
            proceed.set()
            assert [piece async for piece in pieces] == [Text(" second")]
        await client.aclose()


@pytest.mark.parametrize("key", ["sk-1\n", "sk-1\r\nX-Evil: 1", "schlüssel", "two words"])
async def test_a_key_that_cannot_be_one_is_refused_without_naming_it(form: Form, key: str) -> None:
    with pytest.raises(ValueError, match="characters that no key has") as caught:
        form.client("http://127.0.0.1:1/v1", key)
    assert key not in str(caught.value)


async def test_the_connection_is_used_again(form: Form) -> None:
    async def script(asked: Asked, wire: Wire) -> None:
        await wire.send(CHUNKED_HEAD, chunked(form.event("Hi"), form.FINISH, form.DONE))

    async with provider(script) as served:
        client = form.client(served.url, bounds=CALM)
        for _ in range(3):
            assert await listen(client) == ("Hi", None)
        await client.aclose()
        assert served.connections == 1


async def test_many_replies_at_once_each_get_their_own_text(form: Form) -> None:
    async def script(asked: Asked, wire: Wire) -> None:
        name = asked.json["model"]
        await wire.send(CHUNKED_HEAD, *(chunked(form.event(f"{name} "), end=False) for _ in range(5)), every=0.01)
        await wire.send(chunked(form.DONE))

    async with provider(script) as served:
        client = form.client(served.url, bounds=CALM)
        replies = await asyncio.gather(*(listen(client, Ask(f"m{n}", ASK.messages, 0)) for n in range(150)))
        await client.aclose()
    assert [text for text, _ in replies] == [f"m{n} " * 5 for n in range(150)]


# What a reply is made of


async def test_a_reply_that_is_done_ends_even_if_the_connection_does_not(form: Form) -> None:
    async def script(asked: Asked, wire: Wire) -> None:
        await wire.send(CHUNKED_HEAD, chunked(form.event("Hello"), form.FINISH, end=False))
        await wire.silence()

    async with provider(script) as served:
        assert await ask(form, served.url, bounds=only(closing_seconds=0.2)) == ("Hello", None)


async def test_text_holds_no_nul(form: Form) -> None:
    async with provider(answering(STREAM_HEAD, form.event("a\0b"), form.DONE)) as served:
        assert await ask(form, served.url) == ("a\ufffdb", None)


async def test_a_stream_may_be_cut_anywhere_and_reads_the_same(form: Form) -> None:
    stream = (
        b"\xef\xbb\xbf: hi\r\n\r\n"
        + form.event("Grüße 👩‍🚀")
        + form.event("\n\r\x0b\u2028\ufeff")
        + form.usage(1, 2)
        + form.DONE
    )
    for cut in range(len(stream) + 1):
        reply = reading(form)
        said = reply.feed(stream[:cut]) + reply.feed(stream[cut:]) + reply.close()
        assert "".join(piece.text for piece in said) == "Grüße 👩‍🚀\n\r\x0b\u2028\ufeff"
        assert reply.usage == Usage(1, 2)
        assert reply.ended


async def test_a_reply_that_may_be_a_tag_stands_where_the_provider_breaks_off(form: Form) -> None:
    heard: list[Said] = []
    async with provider(answering(STREAM_HEAD, form.event("<th"))) as served:
        client = form.client(served.url, KEY, bounds=CALM)
        with pytest.raises(ClientError):
            async for said in client.stream(ASK):
                heard.append(said)
        await client.aclose()
    assert heard == [Text("<th")]


async def test_32_reasoning_without_end_is_cut_where_a_reply_is(form: Form) -> None:
    heard: list[Said] = []
    piece = form.thought("hmm " * 250)

    async def script(asked: Asked, wire: Wire) -> None:
        await wire.send(STREAM_HEAD, *[piece] * 30, every=0.002)

    async with provider(script) as served:
        client = form.client(served.url, KEY, bounds=CALM)
        with pytest.raises(ClientError) as caught:
            async for said in client.stream(ASK):
                heard.append(said)
        await client.aclose()
    assert caught.value.code == "provider_broken"
    assert {type(said) for said in heard} == {Reasoning}
    assert sum(len(said.text) for said in heard if isinstance(said, Reasoning)) <= CALM.reply_characters


async def test_a_character_may_arrive_byte_by_byte(form: Form) -> None:
    stream = form.event("👩‍🚀 – ü") + form.DONE

    async def script(asked: Asked, wire: Wire) -> None:
        await wire.send(STREAM_HEAD, *(stream[n : n + 1] for n in range(len(stream))), every=0.0005)
        raise ConnectionError

    async with provider(script) as served:
        assert await ask(form, served.url) == ("👩‍🚀 – ü", None)


@pytest.mark.parametrize(
    ("prompt", "reply"), [(-1, 2), (2, -1), (10**30, 1), ("many", 1), (None, None), (1.5, 1), (True, 1)]
)
async def test_a_count_that_cannot_be_true_costs_nothing_but_itself(form: Form, prompt: object, reply: object) -> None:
    async with provider(answering(STREAM_HEAD, form.event("Hello"), form.usage(prompt, reply), form.DONE)) as served:
        assert await ask(form, served.url) == ("Hello", None)


# E31: cut off, at every point


async def test_nobody_listening_is_unreachable(form: Form) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        client = form.client(f"http://127.0.0.1:{port}/v1", KEY, bounds=CALM)
        with pytest.raises(ClientError) as caught:
            await listen(client)
        assert caught.value.code == "provider_unreachable"
        assert str(port) not in str(caught.value)
        with pytest.raises(ClientError, match="provider_unreachable"):
            await client.models()
        assert not await client.is_up()


@pytest.mark.parametrize("url", ["http://host.invalid/v1", "ftp://127.0.0.1/v1", "127.0.0.1:80", "http://"])
async def test_an_address_that_leads_nowhere_is_unreachable(form: Form, url: str) -> None:
    client = form.client(url, bounds=CALM)
    with pytest.raises(ClientError) as caught:
        await listen(client)
    assert caught.value.code == "provider_unreachable"


async def test_an_address_that_is_none_is_refused_at_once(form: Form) -> None:
    with pytest.raises(ValueError, match="URL"):
        form.client("http://[/")


async def test_a_backlog_that_never_accepts_is_unreachable_in_time(form: Form) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = []
        for _ in range(4):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(address)
        client = form.client(f"http://127.0.0.1:{address[1]}/v1", bounds=only(connect_seconds=0.3))
        with pytest.raises(ClientError) as caught:
            await listen(client)
        assert caught.value.code == "provider_unreachable"
        for one in waiting:
            one.close()


def steps_of(form: Form) -> tuple[bytes, ...]:
    return STREAM_HEAD, form.event("Hel"), form.event("lo"), form.FINISH, form.DONE


#: the wait in which a provider falls silent after so many steps; none after the last
SILENCES = (*["first_text_seconds"] * 2, *["idle_seconds"] * 2, "closing_seconds")


@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("fault", ["close", "reset", "half-close", "silence"])
async def test_a_provider_may_fail_at_any_point(form: Form, fault: str, steps: int) -> None:
    async def script(asked: Asked, wire: Wire) -> None:
        await wire.send(*steps_of(form)[:steps], every=0.01)
        if fault == "reset":
            wire.reset()
        elif fault == "half-close":
            wire.half_close()
            await wire.silence()
        elif fault == "silence":
            await wire.silence()
        raise ConnectionError

    bounds = only(drain_seconds=0.1, **dict.fromkeys(SILENCES[steps : steps + 1], 0.3)) if fault == "silence" else CALM
    if steps > 3:  # the model had said that it was done
        async with provider(script) as served:
            assert await ask(form, served.url, bounds=bounds) == ("Hello", None)
    else:
        error = await refused(form, script, bounds)
        assert error.code == ("provider_timeout" if fault == "silence" else "provider_broken")


async def test_a_cut_chunk_is_not_an_end(form: Form) -> None:
    cut = chunked(form.event("Hello"), form.FINISH[:20], end=False)[:-9]
    assert (await refused(form, answering(CHUNKED_HEAD, cut))).code == "provider_broken"


async def test_a_body_shorter_than_announced_is_not_an_end(form: Form) -> None:
    cut = whole(json.dumps(form.whole("x")).encode())[:-1]
    assert (await refused(form, answering(cut))).code == "provider_broken"


async def test_one_byte_a_second_is_silence(form: Form) -> None:
    async def script(asked: Asked, wire: Wire) -> None:
        await wire.send(STREAM_HEAD, form.event("Hello"))
        while True:
            await wire.send(b"d", every=0.05)

    assert (await refused(form, script, only(idle_seconds=0.3))).code == "provider_timeout"


async def test_endless_pings_end_with_the_time_of_a_reply(form: Form) -> None:
    async def script(asked: Asked, wire: Wire) -> None:
        await wire.send(STREAM_HEAD)
        while True:
            await wire.send(b": ping\n\n", every=0.05)

    started = monotonic()
    assert (await refused(form, script, only(reply_seconds=0.4))).code == "provider_timeout"
    assert monotonic() - started >= 0.4


async def test_a_reader_who_takes_long_does_not_make_the_provider_silent(form: Form) -> None:
    async with provider(answering(STREAM_HEAD, form.event("Hel"), form.event("lo"), form.DONE)) as served:
        client = form.client(served.url, bounds=only(idle_seconds=1))
        text = ""
        async with aclosing(client.stream(ASK)) as pieces:
            async for piece in pieces:
                await asyncio.sleep(1.5)
                text += piece.text if isinstance(piece, Text) else ""
        assert text == "Hello"


# E32: without end


#: what stands for an event of the wire form
TEXT, NOTHING = b"text", b"nothing"


async def flood(wire: Wire, piece: bytes) -> None:
    while True:
        await wire.send(piece)


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        pytest.param(STREAM_HEAD, TEXT, id="text"),
        pytest.param(STREAM_HEAD, NOTHING, id="events without text"),
        pytest.param(STREAM_HEAD, b": comment\n" * 1000, id="comments"),
        pytest.param(STREAM_HEAD, b"data: " + b"x" * 9000, id="a line"),
        pytest.param(STREAM_HEAD, b"data: 1\n" * 1000, id="an event"),
        pytest.param(STREAM_HEAD, b'{"choices": ' + b" " * 9000, id="a document"),
        pytest.param(STREAM_HEAD, b"\n" * 9000, id="blank lines"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 9000, id="a header"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"X: x\r\n" * 1000, id="headers"),
        pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, id="provisional answers"),
        pytest.param(CHUNKED_HEAD + chunked(b": x"), b"X: x\r\n" * 1000, id="trailers"),
        pytest.param(b"HTTP/1.1 500 X\r\n\r\n", b"x" * 9000, id="an error page"),
        pytest.param(b"", b"\0" * 9000, id="no HTTP at all"),
    ],
)
async def test_what_does_not_end_is_cut_and_memory_stays_flat(form: Form, head: bytes, piece: bytes) -> None:
    async def script(asked: Asked, wire: Wire) -> None:
        await wire.send(head)
        await flood(wire, {TEXT: form.event("word " * 100), NOTHING: form.event(None) * 100}.get(piece, piece))

    gc.collect()
    tracemalloc.start()
    try:
        error = await refused(form, script)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error.code in ("provider_broken", "provider_failed", "provider_timeout")
    assert peak < 4 << 20


async def test_a_slow_reader_slows_the_provider_down(form: Form) -> None:
    sent = 0

    async def script(asked: Asked, wire: Wire) -> None:
        nonlocal sent
        await wire.send(STREAM_HEAD)
        while True:
            await wire.send(form.event("word " * 2000))
            sent += 1

    async with provider(script) as served:
        client = form.client(served.url, bounds=Bounds())
        async with aclosing(client.stream(ASK)) as pieces:
            await anext(pieces)
            before = -1
            while before != sent:  # comes to rest, or the test never ends
                before = sent
                await asyncio.sleep(0.3)
            assert sent * 10_000 < 64 << 20
        await client.aclose()


async def test_a_compressed_bomb_is_not_unpacked(form: Form) -> None:
    bomb = zlib.compress(b" " * 50_000_000)
    for status in (200, 400):
        error = await refused(form, answering(whole(bomb, status=status, headers="Content-Encoding: deflate\r\n")))
        assert error.code == ("provider_broken" if status == 200 else "provider_refused")


# E33: every status


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (204, "provider_broken"),
        (206, "provider_broken"),
        (304, "provider_broken"),
        (400, "provider_refused"),
        (401, "provider_refused"),
        (402, "provider_refused"),
        (403, "provider_refused"),
        (404, "model_missing"),
        (408, "provider_timeout"),
        (413, "context_overflow"),
        (418, "provider_refused"),
        (422, "provider_refused"),
        (429, "provider_rate_limited"),
        (500, "provider_failed"),
        (502, "provider_failed"),
        (503, "provider_failed"),
        (529, "provider_failed"),
        (599, "provider_failed"),
        (999, "provider_failed"),
    ],
)
async def test_every_status_has_one_meaning(form: Form, status: int, code: str) -> None:
    body = (
        b"" if status in (204, 304) else f'{{"error": {{"message": "Incorrect API key {KEY} at 127.0.0.1"}}}}'.encode()
    )
    error = await refused(form, answering(whole(body, status=status)))
    assert error.code == code
    assert str(status) in error.detail


@pytest.mark.parametrize(
    ("status", "message", "code"),
    [
        (400, {"code": "context_length_exceeded", "message": "…"}, "context_overflow"),
        (400, {"type": "exceed_context_size_error", "message": "the request exceeds …"}, "context_overflow"),
        (400, {"message": "This model's maximum context length is 4096 tokens."}, "context_overflow"),
        (400, {"message": "prompt is too long: 210000 tokens > 200000 maximum"}, "context_overflow"),
        (500, {"message": "the input exceeds the context size"}, "context_overflow"),
        (400, {"code": "model_not_found"}, "model_missing"),
        (400, {"message": "model 'llama9' not found, try pulling it first"}, "model_missing"),
        (429, {"code": "insufficient_quota"}, "provider_rate_limited"),
        (401, {"message": "rate_limit, context length, overloaded"}, "provider_refused"),
    ],
)
async def test_what_an_error_says_counts_where_its_status_says_little(
    form: Form, status: int, message: object, code: str
) -> None:
    error = await refused(form, answering(whole(json.dumps({"error": message}).encode(), status=status)))
    assert error.code == code


@pytest.mark.parametrize(
    ("said", "because"),
    [
        ("`temperature` is deprecated for this model.", " because of “temperature”"),
        ("`temperature` and `top_p` cannot both be specified for this model.", " because of “temperature”"),
        ("temperature: Extra inputs are not permitted", " because of “temperature”"),
        (f"seed and top_pp: no, {KEY} at 127.0.0.1", ""),
        ("Unknown field. Known are: stop, verbosity", ""),
    ],
)
async def test_a_wish_that_is_refused_is_named_in_our_own_words(form: Form, said: str, because: str) -> None:
    answer = whole(json.dumps({"type": "error", "error": {"message": said}}).encode(), status=400)
    error = await refused(form, answering(answer), wishes=Wishes(temperature=0.5))
    assert error.code == "provider_refused"
    assert error.detail == f"The provider did not accept the request{because} (HTTP 400)."


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("soon", None),
        ("nan", None),
        ("1e99", None),
    ],
)
async def test_a_provider_says_how_long_to_wait(form: Form, value: str, seconds: float | None) -> None:
    error = await refused(form, answering(whole(b"{}", status=429, headers=f"Retry-After: {value}\r\n")))
    assert error.retry_after_seconds == seconds


async def test_an_error_whose_page_never_comes_is_still_that_error(form: Form) -> None:
    async def script(asked: Asked, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 503 X\r\nContent-Length: 99\r\n\r\n")
        await wire.silence()

    assert (await refused(form, script, only(error_seconds=0.2))).code == "provider_failed"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"message": f"key {KEY}", "type": "server_error"}, "provider_failed"),
        ("something", "provider_failed"),
        (["odd"], "provider_failed"),
        ({"code": 429, "message": "slow down"}, "provider_rate_limited"),
        ({"code": "rate_limit_exceeded"}, "provider_rate_limited"),
        ({"type": "overloaded_error"}, "provider_failed"),
        ({"message": "greater than the context length"}, "context_overflow"),
        ({"code": 404, "message": "no"}, "model_missing"),
    ],
)
async def test_an_error_inside_a_stream_keeps_the_text_before_it(form: Form, error: object, code: str) -> None:
    async with provider(answering(STREAM_HEAD, form.event("Hel"), form.error(error))) as served:
        client, text = form.client(served.url, KEY, bounds=CALM), ""
        with pytest.raises(ClientError) as caught:
            async for piece in client.stream(ASK):
                text += piece.text if isinstance(piece, Text) else ""
    assert text == "Hel"
    assert caught.value.code == code
    assert KEY not in str(caught.value)


async def test_a_web_page_is_not_a_reply(form: Form) -> None:
    error = await refused(form, answering(whole(b"<!doctype html><h1>It works!</h1>", kind="text/html")))
    assert error.code == "provider_broken"
    assert "web page" in error.detail


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b'"text"', b'{"error": null}', b"hello"])
async def test_an_answer_without_a_reply_is_broken(form: Form, body: bytes) -> None:
    assert (await refused(form, answering(whole(body)))).code == "provider_broken"


# E34


async def test_nothing_is_asked_twice(form: Form) -> None:
    for script in (answering(whole(b"{}", status=500)), answering(whole(b"{}", status=429)), answering()):
        async with provider(script) as served:
            with pytest.raises(ClientError):
                await ask(form, served.url)
            assert len(served.asked) == 1


# E36


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_refused(form: Form, status: int) -> None:
    async with provider(answering(whole(b"{}"))) as inner:
        error = await refused(form, answering(whole(b"", status=status, headers=f"Location: {inner.url}/inner\r\n")))
        assert error.code == "provider_broken"
        assert "redirect" in error.detail
        assert inner.asked == []


async def test_a_proxy_named_in_the_environment_is_used_except_for_this_machine(
    form: Form,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with provider(answering(STREAM_HEAD, form.event("Hello"), form.FINISH, form.DONE)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        assert await ask(form, "http://provider.invalid/v1") == ("Hello", None)
        assert proxy.asked[0].path == f"http://provider.invalid{form.path}"
        async with provider(answering(STREAM_HEAD, form.event("direct"), form.DONE)) as served:
            assert await ask(form, served.url) == ("direct", None)


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for this machine that nobody trusts, with its key in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    path = tmp_path_factory.mktemp("tls") / "loopback.pem"
    options = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=test"
    subprocess.run(
        [
            "openssl",
            "req",
            *options.split(),
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-keyout",
            path,
            "-out",
            f"{path}.crt",
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


async def test_a_reply_comes_over_tls_and_its_connection_is_used_again(
    form: Form, tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(asked: Asked, wire: Wire) -> None:
        await wire.send(CHUNKED_HEAD, chunked(*(form.event("word ") for _ in range(5000)), form.FINISH, form.DONE))

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with provider(script, tls) as served:
        client = form.client(served.url, bounds=only(reply_characters=1_000_000))
        for _ in range(3):
            assert await listen(client) == ("word " * 5000, None)
        assert served.connections == 1
        async with aclosing(client.stream(ASK)) as pieces:
            await anext(pieces)
        await client.aclose()


async def test_a_certificate_that_nobody_vouches_for_is_refused(form: Form, tls: ssl.SSLContext) -> None:
    async with provider(answering(STREAM_HEAD, form.event("Hello"), form.DONE), tls) as served:
        with pytest.raises(ClientError) as caught:
            await ask(form, served.url, bounds=Bounds())
        assert caught.value.code == "provider_unreachable"
        assert served.asked == []


# E39


@pytest.mark.parametrize("how", ["close", "cancel", "forget"])
async def test_stopping_closes_the_connection_at_once(form: Form, how: str) -> None:
    sent, closed = asyncio.Event(), asyncio.Event()

    async def script(asked: Asked, wire: Wire) -> None:
        await wire.send(STREAM_HEAD, form.event("Hello"))
        sent.set()
        await wire.silence()
        closed.set()
        raise ConnectionError

    async with provider(script) as served:
        client = form.client(served.url, bounds=CALM)
        if how == "cancel":
            task = asyncio.create_task(listen(client))
            await sent.wait()
            await asyncio.sleep(0.1)  # mostly, the reader waits for more by now; wherever it is, it is stopped
            task.cancel()
        else:
            pieces = client.stream(ASK)
            assert await anext(pieces) == Text("Hello")
            if how == "close":
                await pieces.aclose()
            else:
                del pieces
                gc.collect()
        await closed.wait()  # no other wait ends before that of the test
        await client.aclose()


async def test_what_a_stopped_reply_left_unread_is_in_no_other_reply(form: Form, until: Until) -> None:
    proceed = asyncio.Event()

    async def script(asked: Asked, wire: Wire) -> None:
        name = asked.json["model"]
        await wire.send(CHUNKED_HEAD, chunked(form.event(f"{name} begins"), end=False))
        await proceed.wait()
        await wire.send(chunked(form.event(f"{name} ends"), form.DONE))

    async with provider(script) as served:
        client = form.client(served.url, bounds=CALM)
        async with aclosing(client.stream(Ask("first", ASK.messages, 0))) as pieces:
            assert await anext(pieces) == Text("first begins")
            proceed.set()
            await until(lambda: all(one.is_reusable for one in client._http._transport._open))  # all of it has come
        assert await listen(client, Ask("second", ASK.messages, 0)) == ("second beginssecond ends", None)
        assert served.connections == 1
        await client.aclose()


async def test_closing_the_client_closes_every_connection(form: Form, until: Until) -> None:
    async def script(asked: Asked, wire: Wire) -> None:
        await wire.send(CHUNKED_HEAD, chunked(form.event("Hello"), form.DONE))

    async with provider(script) as served:
        client = form.client(served.url, bounds=CALM)
        await listen(client)
        assert served.open == 1
        await client.aclose()
        await until(lambda: served.open == 0)


# Probes


@pytest.mark.parametrize(
    ("answer", "up"),
    [
        (whole(b"{}"), True),
        (whole(b"", status=401), True),
        (whole(b"", status=404), True),
        (whole(b"", status=302), True),
        (whole(b"", status=500), False),
        (whole(b"", status=503), False),
        (b"SSH-2.0-OpenSSH_9.2\r\n", False),
        (b"", False),
    ],
)
async def test_any_answer_but_a_failure_means_up(form: Form, answer: bytes, up: bool) -> None:
    async with provider(answering(answer)) as served:
        client = form.client(served.url, KEY, bounds=CALM)
        assert await client.is_up() is up
        assert (served.asked[0].method, served.asked[0].path) == ("GET", "/v1/models")
        await client.aclose()


async def test_a_provider_that_says_nothing_is_down_in_time(form: Form) -> None:
    async with provider(lambda asked, wire: wire.silence()) as served:
        client = form.client(served.url, bounds=only(probe_seconds=0.2))
        assert not await client.is_up()
        await client.aclose()


@pytest.mark.parametrize(
    ("answer", "models"),
    [
        (whole(b'{"object": "list", "data": [{"id": "b"}, {"id": "a", "x": 1}, {"id": "b"}, {"id": ""}]}'), ("b", "a")),
        (whole(b'{"object": "list", "data": null}'), ()),
        (whole(b"{}", status=404), ()),
        (whole(b"", status=500), ()),
        (whole(b"<html>"), ()),
        (whole(b'{"data": [1]}'), ()),
    ],
)
async def test_models_lists_what_there_is(form: Form, answer: bytes, models: tuple[str, ...]) -> None:
    async with provider(answering(answer)) as served:
        client = form.client(served.url, KEY, bounds=CALM)
        assert await client.models() == models
        assert KEY in served.asked[0].headers.get("x-api-key", served.asked[0].headers.get("authorization", ""))
        await client.aclose()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (whole(b"{}", status=401), "provider_refused"),
        (whole(b"x" * 200_000), "provider_broken"),
        (b"", "provider_broken"),
    ],
)
async def test_models_that_cannot_be_asked_for_are_an_error(form: Form, answer: bytes, code: str) -> None:
    async with provider(answering(answer)) as served:
        client = form.client(served.url, KEY, bounds=CALM)
        with pytest.raises(ClientError) as caught:
            await client.models()
        assert caught.value.code == code
        await client.aclose()
