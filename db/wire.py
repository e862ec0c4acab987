"""PostgreSQL as a wire between processes: one long-lived connection that listens and notifies."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import asyncpg

from db.whole import whole

CHANNEL = "turnkeeper"
#: how long a connection may take to be made, a statement to run, and a connection to say goodbye
CONNECT_SECONDS = 5.0
CLOSE_SECONDS = 1.0


class PostgresWire:
    """LISTEN and NOTIFY."""

    #: PostgreSQL takes "less than 8000 bytes"
    most_bytes = 7999

    def __init__(self, url: str) -> None:
        self._url = url

    @asynccontextmanager
    async def connect(
        self, receive: Callable[[str], None], lost: Callable[[], None]
    ) -> AsyncIterator[Callable[[Sequence[str]], Awaitable[None]]]:
        """A connection on which everything is received from now on; `lost` is called when it breaks."""
        connection = await whole(self._connected(), lambda unwanted: unwanted.close(timeout=CLOSE_SECONDS))

        def received(_connection: object, _pid: object, _channel: object, message: object) -> None:
            receive(str(message))

        async def send(messages: Sequence[str]) -> None:
            await connection.execute(
                "SELECT pg_notify($1, message) FROM unnest($2::text[]) AS message", CHANNEL, list(messages)
            )

        try:
            connection.add_termination_listener(lambda _: lost())
            await connection.add_listener(CHANNEL, received)
            yield send
        finally:
            try:
                await connection.close(timeout=CLOSE_SECONDS)
            finally:
                connection.terminate()

    async def _connected(self) -> asyncpg.Connection:
        return await asyncpg.connect(
            self._url,
            timeout=CONNECT_SECONDS,
            command_timeout=CONNECT_SECONDS,
            # A hint need not outlive a power cut, so its commit waits for no disk.
            server_settings={"application_name": "turnkeeper events", "synchronous_commit": "off"},
        )
