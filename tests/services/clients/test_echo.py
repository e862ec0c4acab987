"""The echo does what it is told, and nothing else."""

import asyncio
from time import monotonic, thread_time

import pytest

from services.clients import Ask, ClientError, Message, Text, Usage
from services.clients.echo import MAX_TOKENS, EchoClient, Plan

pytestmark = pytest.mark.anyio


async def told(prompt: str, max_reply_tokens: int = 0) -> tuple[list[str], Usage | None]:
    """The pieces of a reply, and what it cost."""
    pieces: list[str] = []
    async with asyncio.timeout(60):
        async for piece in EchoClient(silence_seconds=0.05).stream(
            Ask("echo", (Message("user", prompt),), max_reply_tokens)
        ):
            if isinstance(piece, Usage):
                return pieces, piece
            pieces.append(piece.text)
    return pieces, None


@pytest.mark.parametrize(
    "prompt", ["Hello", "Hello there, you two", "  two\n\n lines\t\n", "\n", "grüße 👩‍🚀 \u2028 x", "/odd a/b"]
)
async def test_the_prompt_comes_back_word_by_word(prompt: str) -> None:
    pieces, usage = await told(prompt)
    assert "".join(pieces) == prompt
    assert all(pieces)
    assert usage == Usage(len(pieces), len(pieces))


async def test_the_last_user_message_is_the_prompt() -> None:
    messages = (Message("user", "one"), Message("assistant", "one"), Message("user", "two"), Message("system", "x"))
    pieces = [piece async for piece in EchoClient().stream(Ask("echo", messages, 0))]
    assert pieces == [Text("two"), Usage(4, 1)]


async def test_nothing_asked_is_nothing_said() -> None:
    assert [piece async for piece in EchoClient().stream(Ask("echo", (), 0))] == [Usage(0, 0)]
    assert await told("") == ([], Usage(0, 0))


async def test_tokens_are_counted_out() -> None:
    pieces, usage = await told("/tokens 500")
    assert pieces == [f"tok{number} " for number in range(500)]
    assert usage == Usage(2, 500)


async def test_the_cap_on_the_reply_holds() -> None:
    pieces, usage = await told("/tokens 500 /error 500 after 400", max_reply_tokens=3)
    assert pieces == ["tok0 ", "tok1 ", "tok2 "]
    assert usage == Usage(6, 3)


async def test_a_text_can_be_given() -> None:
    pieces, _ = await told("ignored\n/text  Once upon  a /tokens 3\nignored too")
    assert pieces == ["Once ", "upon  ", "a ", "/tokens ", "3"]


async def test_a_delay_stands_between_tokens() -> None:
    started = monotonic()
    pieces, _ = await told("/tokens 5 /delay 20ms")
    assert len(pieces) == 5
    assert monotonic() - started >= 0.099


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("429", "provider_rate_limited"),
        ("500", "provider_failed"),
        ("503", "provider_failed"),
        ("401", "provider_refused"),
        ("404", "model_missing"),
        ("413", "context_overflow"),
        ("timeout", "provider_timeout"),
        ("unreachable", "provider_unreachable"),
        ("broken", "provider_broken"),
        ("200", "provider_broken"),
        ("nonsense", "provider_broken"),
    ],
)
async def test_an_error_comes_after_its_tokens(error: str, code: str) -> None:
    pieces: list[str] = []
    with pytest.raises(ClientError) as caught:
        async for piece in EchoClient().stream(Ask("echo", (Message("user", f"/error {error} after 10"),), 0)):
            assert isinstance(piece, Text)
            pieces.append(piece.text)
    assert pieces == [f"tok{number} " for number in range(10)]
    assert caught.value.code == code
    assert (caught.value.retry_after_seconds is not None) is (error in ("429", "503"))


async def test_an_error_may_come_first_or_cut_a_text() -> None:
    assert Plan.of("/error 500").tokens == ()
    assert Plan.of("one two three /error 500 after 2").tokens == ("one ", "two ")
    assert Plan.of("/error 500 after 9 one two").tokens == ("one ", "two")


async def test_a_hang_says_nothing_until_it_is_stopped_or_times_out() -> None:
    reply = EchoClient().stream(Ask("echo", (Message("user", "/hang after 3"),), 0))
    assert [await anext(reply) for _ in range(3)] == [Text("tok0 "), Text("tok1 "), Text("tok2 ")]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await anext(reply)
    await reply.aclose()
    with pytest.raises(ClientError, match="provider_timeout"):
        await told("/hang")


async def test_no_directive_can_ask_for_too_much() -> None:
    assert len(Plan.of("/tokens 99999999999").tokens) == MAX_TOKENS
    assert len(Plan.of("/hang after 99999999999").tokens) == MAX_TOKENS
    assert Plan.of("/delay 99999999999ms x").delay_seconds == 10


@pytest.mark.parametrize("unit", [" ", "x ", "/text ", "/tokens 1", "/hang after ", "9"])
async def test_long_prompts_cost_no_more_than_their_length(unit: str) -> None:
    def cost(times: int) -> float:
        """Seconds of this thread's CPU time, the least of three."""
        spent = []
        for _ in range(3):
            began = thread_time()
            Plan.of(unit * times)
            spent.append(thread_time() - began)
        return min(spent)

    # Twenty times the length costs about twenty times as much; where it grew with the square, it would be four hundred.
    assert cost(40_000) < 100 * max(cost(2_000), 0.0002)


async def test_others_get_their_turn_between_tokens() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await told("/tokens 100")
    task.cancel()
    assert turns >= 100


async def test_it_is_always_there() -> None:
    echo = EchoClient()
    assert await echo.is_up()
    assert await echo.models() == ("echo",)
    await echo.aclose()
