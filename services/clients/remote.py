"""What every provider over HTTP is owed and held to, whichever wire form it speaks.

One pool of connections, bounds on time and bytes, one meaning for each failure, no redirects. Nothing is retried but
what crossed the end of its connection: a retry belongs where the user sees it, and must never make two bills.
"""

import asyncio
import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, ClassVar, NoReturn
from urllib.parse import urlsplit
from urllib.request import getproxies

import msgspec

from services.clients import Ask, ClientError, Said
from services.clients.wire import Reply, broken, models_of, refusal_of

if TYPE_CHECKING:
    import httpx2


class Bounds(msgspec.Struct, frozen=True):
    """How much of a provider is borne before it is cut off. Silence means: no complete line."""

    connect_seconds: float = 5.0
    #: silence before the first text; a local model loads and reads the prompt meanwhile
    first_text_seconds: float = 120.0
    #: silence after it
    idle_seconds: float = 60.0
    #: silence after the model said it is done, when only its usage may be missing
    closing_seconds: float = 2.0
    #: how long a complete answer may take to say so, for its connection to be kept
    drain_seconds: float = 0.1
    #: from the request to the last byte
    reply_seconds: float = 3600.0
    #: its reasoning counted too
    reply_characters: int = 1_000_000
    reply_bytes: int = 256 << 20
    event_bytes: int = 1 << 20
    #: what comes in one piece: a reply that is not streamed, a list of models
    document_bytes: int = 8 << 20
    #: the part of an error page that is looked at, and the wait for it
    error_bytes: int = 64 << 10
    error_seconds: float = 2.0
    #: `is_up` and `models`
    probe_seconds: float = 3.0


class Answered(ClientError):
    """An answer came, and its status is not 200."""

    def __init__(self, status: int, meaning: ClientError) -> None:
        super().__init__(meaning.code, meaning.detail, meaning.retry_after_seconds)
        self.status = status


class RemoteClient(ABC):
    """One provider behind one pool of connections; nothing is imported or opened before the first question.

    What is particular to a wire form is abstract here.
    """

    #: reads the bytes of one answer
    wire_form: ClassVar[type[Reply]]

    def __init__(self, base_url: str, api_key: str = "", *, bounds: Bounds | None = None) -> None:
        if not (api_key.isascii() and api_key.isprintable()) or " " in api_key:
            raise ValueError("The key holds characters that no key has. Did a line end or a space come along?")
        self._base_url = base_url
        self._api_key = api_key
        self._host = urlsplit(base_url).hostname or ""
        self._bounds = bounds or Bounds()
        self._loading = asyncio.Lock()
        self._http: httpx2.AsyncClient | None = None

    @property
    @abstractmethod
    def _headers(self) -> Mapping[str, str]:
        """What goes with every request: the key, under the name the provider knows."""

    @abstractmethod
    def _answer(self, ask: Ask) -> "AbstractAsyncContextManager[httpx2.Response]":
        """Ask for the reply; an answer whose body is unread."""

    async def stream(self, ask: Ask) -> AsyncGenerator[Said, None]:
        """Yield the reply, one `Reasoning` and one `Text` for all that came at once. Raises ClientError."""
        bounds, now = self._bounds, asyncio.get_running_loop().time
        reply = self.wire_form(max_event_bytes=bounds.event_bytes, max_document_bytes=bounds.document_bytes)
        silence, last_moment = bounds.first_text_seconds, now() + bounds.reply_seconds
        received = characters = 0
        async with AsyncExitStack() as connection:
            try:
                async with asyncio.timeout(silence):
                    answer = await connection.enter_async_context(self._answer(ask))
                chunks, heard_at = answer.aiter_raw(), now()
                while not reply.ended:
                    async with asyncio.timeout_at(min(heard_at + silence, last_moment)):
                        chunk = await anext(chunks, b"")
                    said = reply.feed(chunk) if chunk else reply.close()
                    received += len(chunk)
                    characters += sum(len(piece.text) for piece in said)
                    if received > bounds.reply_bytes or characters > bounds.reply_characters:
                        raise broken("The reply is longer than a reply may be, and was cut off.")
                    if said:
                        silence = bounds.idle_seconds
                    for piece in said:
                        yield piece
                    if reply.finished:
                        silence = bounds.closing_seconds
                    if said or b"\n" in chunk:
                        heard_at = now()
                if reply.failure is not None:
                    raise reply.failure
                async with asyncio.timeout(bounds.drain_seconds):
                    while await anext(chunks, b""):
                        pass
            except Exception as error:
                for piece in reply.let_go():
                    yield piece
                if not reply.finished:
                    _raise_as_client_error(error)
        if reply.usage is not None:
            yield reply.usage

    async def is_up(self) -> bool:
        """Whether anything but a failure (5xx) comes back within `probe_seconds`."""
        try:
            await self._list()
        except Answered as answer:
            return answer.status < 500
        except ClientError:
            return False
        return True

    async def models(self) -> tuple[str, ...]:
        """Upstream names in the provider's order; some servers have no list. Raises ClientError."""
        try:
            return models_of(await self._list())
        except Answered as answer:
            if answer.status in (401, 403):
                raise
            return ()

    async def aclose(self) -> None:
        """Close the pool."""
        if self._http is not None:
            await self._http.aclose()

    async def _list(self) -> bytes:
        try:
            async with asyncio.timeout(self._bounds.probe_seconds):
                http = await self._loaded_http()
                async with http.stream("GET", "models") as answer:
                    return await _read(answer, self._bounds.document_bytes)
        except Exception as error:
            _raise_as_client_error(error)

    async def _loaded_http(self) -> "httpx2.AsyncClient":
        async with self._loading:
            if self._http is None:
                self._http = await asyncio.to_thread(self._load_http)
            return self._http

    def _load_http(self) -> "httpx2.AsyncClient":
        import httpx2

        from services.clients.transport import Transport

        # No proxy stands between this machine and itself; elsewhere httpx2's own transport knows how to use one.
        needs_proxy = not _is_loopback(self._host) and bool(getproxies())
        return httpx2.AsyncClient(
            base_url=self._base_url,
            headers={**self._headers, "Accept-Encoding": "identity"},
            follow_redirects=False,
            event_hooks={"response": [self._refuse]},
            transport=None if needs_proxy else Transport(self._base_url, connect_seconds=self._bounds.connect_seconds),
            # For httpx2's own transport. The waits for text are counted above, by the line; here any byte would do. And
            # who may ask at once is decided elsewhere: a second queue would look like a slow provider.
            timeout=httpx2.Timeout(None, connect=self._bounds.connect_seconds),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        )

    async def _refuse(self, answer: "httpx2.Response") -> None:
        """Raise for every answer that is not a plain 200, before anybody reads its body without a bound."""
        if answer.status_code != 200:
            body = b""
            with suppress(Exception):  # an error whose page fails to come is still that error
                async with asyncio.timeout(self._bounds.error_seconds):
                    body = await _read(answer, self._bounds.error_bytes)
            meaning = refusal_of(answer.status_code, body, answer.headers, answer.request.content)
            raise Answered(answer.status_code, meaning)
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise broken("The provider sent a compressed reply, which was not asked for.")


async def _read(answer: "httpx2.Response", max_bytes: int) -> bytes:
    """A whole body. Raises ClientError if it is longer than `max_bytes`."""
    body = bytearray()
    async for chunk in answer.aiter_raw():
        body += chunk
        if len(body) > max_bytes:
            raise broken("The provider's answer is too large.")
    return bytes(body)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _raise_as_client_error(error: Exception) -> NoReturn:
    """Say what went wrong on the way in the words of `ClientError`."""
    import httpx2

    if isinstance(error, ClientError):
        raise error
    if isinstance(error, TimeoutError):
        raise ClientError("provider_timeout", "The provider fell silent.") from error
    causes = (error, error.__cause__)  # an SDK wraps what its transport raised
    unreachable = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.UnsupportedProtocol, httpx2.InvalidURL)
    if any(isinstance(cause, unreachable) for cause in causes):
        raise ClientError("provider_unreachable", "The provider cannot be reached.") from error
    if any(isinstance(cause, httpx2.TransportError | ssl.SSLError) for cause in causes):
        raise broken("The provider broke off the connection.") from error
    raise broken("The provider's answer makes no sense.") from error
