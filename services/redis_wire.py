"""Redis as a wire between processes: one connection that is subscribed, one that publishes."""

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

log = logging.getLogger(__name__)

CHANNEL = "turnkeeper"
#: how long a connection may take to be made
CONNECT_SECONDS = 5.0


class RedisWire:
    """PUBLISH and SUBSCRIBE."""

    most_bytes = 1_000_000

    def __init__(self, url: str) -> None:
        self._url = url

    @asynccontextmanager
    async def connect(
        self, receive: Callable[[str], None], lost: Callable[[], None]
    ) -> AsyncIterator[Callable[[Sequence[str]], Awaitable[None]]]:
        """A connection on which everything is received from now on; `lost` is called when it breaks."""
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        client = Redis.from_url(
            self._url,
            decode_responses=True,
            socket_connect_timeout=CONNECT_SECONDS,
            # A connection that is made again in silence would lose messages in silence.
            retry=Retry(NoBackoff(), 0),
        )

        async def listen() -> None:
            async for message in inbox.listen():
                if message["type"] != "message":
                    return  # subscribed a second time: that was another connection
                receive(message["data"])

        def ended(listening: asyncio.Task[None]) -> None:
            if not listening.cancelled() and listening.exception() is not None:
                log.debug("the subscription ended", exc_info=listening.exception())
            lost()

        async def send(messages: Sequence[str]) -> None:
            for message in messages:
                await client.publish(channel, message)

        # Its databases share their channels; deployments with databases of their own should not.
        channel = f"{CHANNEL}:{client.connection_pool.connection_kwargs.get('db') or 0}"
        inbox = client.pubsub()
        listening: asyncio.Task[None] | None = None
        try:
            await inbox.subscribe(channel)
            await inbox.get_message(timeout=CONNECT_SECONDS)
            listening = asyncio.create_task(listen(), context=contextvars.Context())
            listening.add_done_callback(ended)
            yield send
        finally:
            if listening is not None:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
            await inbox.aclose()  # type: ignore[no-untyped-call]
            await client.aclose()
