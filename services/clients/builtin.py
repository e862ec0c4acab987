"""The models that are always there, behind one provider."""

from collections.abc import AsyncGenerator, Mapping

from services.clients import Ask, Client, ClientError, Said
from services.clients.echo import EchoClient
from services.clients.guide import GuideClient


class BuiltinClient:
    """Passes a question to the built-in model it names."""

    def __init__(self, clients: Mapping[str, Client] | None = None) -> None:
        self._clients = clients or {"guide": GuideClient(), "echo": EchoClient()}

    def stream(self, ask: Ask) -> AsyncGenerator[Said, None]:
        """Raises ClientError at once for a name that is none of them."""
        if ask.model not in self._clients:
            raise ClientError("model_missing", "There is no such built-in model.")
        return self._clients[ask.model].stream(ask)

    async def is_up(self) -> bool:
        return True

    async def models(self) -> tuple[str, ...]:
        return tuple(self._clients)

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.aclose()
