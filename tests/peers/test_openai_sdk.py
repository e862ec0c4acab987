"""OpenAI's own client, unchanged, against a real server: what it asks, what it understands, when it asks again."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.web.running import Server, a_server
from tests.web.wire import HTMX, JSON, STREAM, session_of, streaming

SETTINGS = """
default_model = "fast"

[[models]]
id = "fast"
provider = "builtin"
upstream = "echo"
aliases = ["quick"]

[[models]]
id = "smart"
provider = "builtin"
upstream = "echo"

[[models]]
id = "a/b"
provider = "builtin"
upstream = "echo"

[[models]]
id = "off"
provider = "builtin"
upstream = "echo"
state = "disabled"
replacement = "fast"

[[models]]
id = "hidden"
provider = "builtin"
upstream = "echo"
groups = ["admin"]

[groups.user]
sessions_created = "6000/min burst 1000"
turns = "6000/min burst 1000"
switches = "6000/min burst 1000"
concurrent_turns = 20

[groups.slow]
turns = "30/min burst 1"

[groups.poor]
tokens_per_day = 265
"""
HELLO: list[Any] = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with a_server(tmp_path_factory.mktemp("v1"), SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def people(open_server: Server) -> dict[str, str]:
    return open_server.people("ann", "bob", "sam::slow", "pia::poor")


def sdk(server: Server, token: str, **settings: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=token, **{"max_retries": 0, "timeout": 60} | settings)


@pytest.fixture
def client(open_server: Server, people: dict[str, str]) -> Iterator[openai.OpenAI]:
    with sdk(open_server, people["ann"]) as made:
        yield made


@pytest.fixture
def ann(open_server: Server, people: dict[str, str]) -> Iterator[httpx.Client]:
    """The same account by our own interface."""
    with open_server.script(people["ann"]) as made:
        yield made


def completed(client: openai.OpenAI, messages: list[Any] = HELLO, **asked: Any) -> tuple[Any, str]:
    """An answer, and the session that it is in."""
    raw = client.chat.completions.with_raw_response.create(**{"model": "fast", "messages": messages} | asked)
    return raw.parse(), raw.headers["x-turnkeeper-session"]


def refusal(client: openai.OpenAI, kind: type[openai.APIStatusError], **asked: Any) -> openai.APIStatusError:
    with pytest.raises(kind) as raised:
        completed(client, **asked)
    return raised.value


# ---------------------------------------------------------------- answers


def test_the_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fast", "smart", "a/b", "session"]


def test_one_model_is_told_of_by_its_id_or_an_alias(client: openai.OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    for name, id in (("fast", "fast"), ("quick", "fast"), ("a/b", "a/b"), ("session", "session")):
        assert client.models.retrieve(name) == listed[id]
    absent = [_told(client, name) for name in ("none", "hidden", "off", "fast/none", "é\n<")]
    assert {status for status, _ in absent} == {404}
    assert len({body for _, body in absent}) == 1, "hidden, switched off and absent are the same"


def _told(client: openai.OpenAI, name: str) -> tuple[int, str]:
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve(name)
    assert raised.value.code == "not_found"
    return raised.value.status_code, raised.value.response.text


def test_a_completion_is_a_turn_in_a_session(client: openai.OpenAI, ann: httpx.Client) -> None:
    answer, session_id = completed(client)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Hello there", "stop")
    assert (answer.model, answer.object) == ("fast", "chat.completion")
    (turn,) = ann.get(f"/session/{session_id}/turns").json()["turns"]
    assert answer.id == f"chatcmpl-{turn['id']}"
    assert (turn["prompt"], turn["reply"], turn["state"]) == ("Hello there", "Hello there", "done")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (turn["prompt_tokens"], turn["reply_tokens"])
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0


@pytest.mark.parametrize("usage", [True, False])
def test_a_streamed_completion_is_the_same_text(client: openai.OpenAI, ann: httpx.Client, usage: bool) -> None:
    text = "one \u2028two\r\nthree\x85 four \u2029🦊 data: [DONE]\n\ndata: {}"
    options: Any = {"stream_options": {"include_usage": True}} if usage else {}
    with client.chat.completions.with_streaming_response.create(
        model="quick", messages=[{"role": "user", "content": text}], stream=True, **options
    ) as response:
        session_id = response.headers["x-turnkeeper-session"]
        assert "turns" in response.headers["ratelimit"]
        chunks = list(response.parse())
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text.replace(
        "\r\n", "\n"
    )
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.model for chunk in chunks} == {"fast"}
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - usage) + [True] * usage
    (turn,) = ann.get(f"/session/{session_id}/turns").json()["turns"]
    assert {chunk.id for chunk in chunks} == {f"chatcmpl-{turn['id']}"}


def test_reasoning_stands_beside_the_content(client: openai.OpenAI) -> None:
    asked = "/reason Let me see\n/text Forty-two"
    message = completed(client, [{"role": "user", "content": asked}])[0].choices[0].message
    assert (message.content, message.reasoning_content) == ("Forty-two", "Let me see")
    told = [{"role": "user", "content": "Hi"}, message.model_dump(), {"role": "user", "content": asked}]
    chunks = client.chat.completions.create(model="fast", messages=told, stream=True)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "Forty-two"
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "Let me see"
    message = completed(client)[0].choices[0].message
    assert "reasoning_content" not in message.model_dump()


def test_a_turn_appears_live_on_the_page_of_its_session(
    open_server: Server, client: openai.OpenAI, ann: httpx.Client
) -> None:
    _, session_id = completed(client)
    with streaming(ann, f"/session/{session_id}/events", accept="text/html", headers=HTMX) as page:
        asked = client.chat.completions.create(
            model="session",
            messages=[{"role": "user", "content": "/tokens 30 /delay 20ms"}],
            stream=True,
            extra_headers={"X-Turnkeeper-Session": session_id},
        )
        first = next(chunk for chunk in asked if chunk.choices[0].delta.content)
        turn_id = first.id.removeprefix("chatcmpl-")
        assert any(f"turn-{turn_id}" in event.data for event in page)
        list(asked)
        assert any("tok29" in event.data for event in page)


def test_the_async_client_works_too(open_server: Server, people: dict[str, str]) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{open_server.url}/v1", api_key=people["ann"]) as client:
            stream = await client.chat.completions.create(model="fast", messages=HELLO, stream=True)
            return [chunk.choices[0].delta.content or "" async for chunk in stream]

    with ThreadPoolExecutor(1) as pool:  # a loop of its own
        import asyncio

        assert "".join(pool.submit(asyncio.run, ask()).result(20)) == "Hello there"


# ---------------------------------------------------------------- context


def test_a_session_goes_on_by_metadata_or_header(client: openai.OpenAI, ann: httpx.Client) -> None:
    _, session_id = completed(client)
    for named in ({"metadata": {"session_id": session_id}}, {"extra_headers": {"X-Turnkeeper-Session": session_id}}):
        # What the client tells again, in whatever form, is the session's own already.
        called = {"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}
        again = [
            *HELLO,
            {"role": "assistant", "content": None, "tool_calls": [called]},
            {"role": "tool", "content": "x", "tool_call_id": "1"},
            {"role": "user", "content": "One that was not answered"},
            {"role": "user", "content": "And then?"},
        ]
        answer, where = completed(client, again, **named)
        assert (where, answer.choices[0].message.content) == (session_id, "And then?")
    turns = ann.get(f"/session/{session_id}/turns").json()["turns"]
    assert [turn["prompt"] for turn in turns] == ["Hello there", "And then?", "And then?"]


def test_without_a_session_what_was_told_is_the_beginning_of_a_new_one(
    client: openai.OpenAI, ann: httpx.Client
) -> None:
    told = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Very "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "One"},
        {"role": "user", "content": "and two"},
        {"role": "assistant", "content": "1, 2"},
        {"role": "user", "content": "Three"},
    ]
    _, session_id = completed(client, told)
    found = ann.get(f"/session/{session_id}/turns").json()
    assert found["instructions"] == "Be brief.\n\nVery brief."
    assert [(turn["prompt"], turn["reply"], turn["model"]) for turn in found["turns"]] == [
        ("One\n\nand two", "1, 2", ""),
        ("Three", "Three", "fast"),
    ]
    page = ann.get(f"/session/{session_id}", headers={"Accept": "text/html"}).text
    assert "Very brief." in page and "told by a script" in page
    assert completed(client, [told[0], told[1], told[-1]], metadata={"session_id": session_id})[1] == session_id
    other = [{"role": "system", "content": "Be long."}, told[-1]]
    assert refusal(client, openai.BadRequestError, messages=other, metadata={"session_id": session_id}).code


def test_the_model_is_the_sessions_own_or_switches_it(client: openai.OpenAI, ann: httpx.Client) -> None:
    _, session_id = completed(client, model="smart")
    named = {"metadata": {"session_id": session_id}}
    assert completed(client, model="session", **named)[0].model == "smart"
    assert completed(client, model="quick", **named)[0].model == "fast"
    assert session_of(ann, session_id)["last_model"] == "fast"
    assert completed(client, model="session")[0].model == "fast"


def test_a_key_sends_once(client: openai.OpenAI, ann: httpx.Client) -> None:
    answers = [completed(client, extra_headers={"Idempotency-Key": "once"}) for _ in range(2)]
    assert answers[0] == answers[1]
    assert ann.get(f"/session/{answers[0][1]}").json()["turn_count"] == 1


def test_a_cap_cuts_the_reply_and_says_so(client: openai.OpenAI) -> None:
    for cap in ({"max_tokens": 3}, {"max_completion_tokens": 3}):
        answer, _ = completed(client, [{"role": "user", "content": "/tokens 9"}], **cap)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("tok0 tok1 tok2 ", "length")
    assert completed(client, temperature=0.2, top_p=0.9, stop=["x"], seed=1, user="me", n=1)[0].choices


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"extra_body": {"top_k": 4}}, None),
        ({"max_tokens": 0}, "max_tokens"),
        ({"metadata": {"session_id": "x"}}, "metadata"),
        ({"messages": []}, "messages"),
        ({"messages": HELLO * 2001}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [*HELLO, {"role": "system", "content": "x"}, *HELLO]}, "messages"),
        ({"messages": [*HELLO, {"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages"),
        (
            {
                "messages": [
                    *HELLO,
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}],
                    },
                    *HELLO,
                ]
            },
            "messages",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, "prompt"),
    ],
    ids=lambda asked: str(asked)[:60],
)
def test_what_cannot_be_honoured_is_refused_by_name(client: openai.OpenAI, asked: Any, param: str | None) -> None:
    error = refusal(client, openai.BadRequestError, **asked)
    assert (error.code, error.param, error.type) == ("invalid_request", param, "invalid_request_error")
    assert error.request_id and error.message


def test_every_refusal_has_the_class_that_the_client_knows(
    open_server: Server, people: dict[str, str], client: openai.OpenAI
) -> None:
    with sdk(open_server, people["bob"]) as bob, sdk(open_server, "tk_nobody") as nobody:
        _, foreign = completed(bob)
        busy = bob.chat.completions.create(
            model="fast", messages=[{"role": "user", "content": "/tokens 99 /delay 50ms"}], stream=True
        )
        chunk = next(busy)
        told = [
            refusal(nobody, openai.AuthenticationError),
            refusal(client, openai.NotFoundError, metadata={"session_id": foreign}),
            refusal(client, openai.UnprocessableEntityError, model="hidden"),
            refusal(client, openai.UnprocessableEntityError, model="off"),
        ]
        with open_server.script(people["bob"]) as own:
            session_id = own.get(f"/chat/{chunk.id.removeprefix('chatcmpl-')}").json()["session_id"]
            told.append(refusal(bob, openai.ConflictError, metadata={"session_id": session_id}))
            own.post(f"/chat/{chunk.id.removeprefix('chatcmpl-')}/stop", json={}).raise_for_status()
        assert [one.choices[0].finish_reason for one in busy][-1] == "length"
    assert [error.code for error in told] == [
        "unauthenticated",
        "session_not_found",
        "model_unknown",
        "model_disabled",
        "session_busy",
    ]
    assert [error.response.headers["x-should-retry"] for error in told] == ["false"] * 4 + ["true"]


def test_its_own_retry_meets_a_freed_place(open_server: Server, people: dict[str, str]) -> None:
    with sdk(open_server, people["sam"], max_retries=2) as patient, sdk(open_server, people["sam"]) as hasty:
        completed(patient)
        error = refusal(hasty, openai.RateLimitError)
        assert (error.code, error.type, error.response.headers["retry-after"]) == (
            "rate_limited",
            "rate_limit_error",
            "2",
        )
        begun = time.monotonic()
        completed(patient)
        assert time.monotonic() - begun > 0.4


def test_a_budget_is_not_asked_for_again(open_server: Server, people: dict[str, str]) -> None:
    with sdk(open_server, people["pia"], max_retries=2) as client:
        completed(client)
        too_long = [{"role": "user", "content": "Hello there " * 20}]
        for error, code in (
            (refusal(client, openai.RateLimitError), "budget_exhausted"),
            (refusal(client, openai.UnprocessableEntityError, messages=too_long), "over_budget"),
        ):
            assert (error.code, error.response.headers["x-should-retry"]) == (code, "false")
            assert error.request.headers["x-stainless-retry-count"] == "0"


def test_a_reply_that_fails_is_an_error_and_is_not_begun_twice(
    open_server: Server, people: dict[str, str], ann: httpx.Client
) -> None:
    failing = [{"role": "user", "content": "/tokens 3 /error 500 after 2"}]
    with sdk(open_server, people["ann"], max_retries=2) as client:
        before = len(ann.get("/session?limit=200").json()["sessions"])
        error = refusal(client, openai.InternalServerError, messages=failing)
        assert (error.status_code, error.code, error.type) == (502, "provider_failed", "server_error")
        assert len(ann.get("/session?limit=200").json()["sessions"]) == before + 1
        stream = client.chat.completions.create(model="fast", messages=failing, stream=True)  # type: ignore[call-overload]
        text = ""
        with pytest.raises(openai.APIError) as raised:
            for chunk in stream:
                text += chunk.choices[0].delta.content or ""
        assert (raised.value.code, text) == ("provider_failed", "tok0 tok1 ")


def test_a_stream_that_nobody_reads_any_more_is_written_to_its_end(client: openai.OpenAI, ann: httpx.Client) -> None:
    with client.chat.completions.create(
        model="fast", messages=[{"role": "user", "content": "/tokens 20 /delay 10ms"}], stream=True
    ) as stream:
        turn_id = next(iter(stream)).id.removeprefix("chatcmpl-")
    with streaming(ann, f"/chat/{turn_id}/events", accept=STREAM) as events:
        assert events.rest()[-1].json["reply"].split()[-1] == "tok19"


def test_no_url_below_v1_answers_in_another_form(ann: httpx.Client) -> None:
    for method, url, status, code in (
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/chat/completions", 400, "invalid_request"),
    ):
        answer = ann.request(method, url, headers={"Accept": "text/html"}, content=b"{")
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert answer.headers["content-type"] == JSON
