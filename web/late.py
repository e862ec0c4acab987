"""An answer whose body is made while it is sent: a handler or an error handler returns it without waiting."""

from collections.abc import Awaitable, Callable
from typing import Any

from litestar import Litestar, Request, Response
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

Make = Callable[[], Awaitable[str]]


class Late(Response[bytes]):
    """HTML that `make` returns once the answer is due; an exception in it is refused as one of the handler's."""

    def __init__(self, make: Make, status: int = 200) -> None:
        super().__init__(b"", status_code=status, media_type="text/html")
        self._make = make

    def to_asgi_response(self, app: Litestar | None, request: Request[Any, Any, Any], **given: Any) -> ASGIResponse:
        return _Sent(super().to_asgi_response(app, request, **given), self._make)


class _Sent(ASGIResponse):
    __slots__ = ("_empty", "_make")

    def __init__(self, empty: ASGIResponse, make: Make) -> None:
        self._empty, self._make = empty, make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._empty.body = (await self._make()).encode()
        self._empty.headers["content-length"] = str(len(self._empty.body))
        await self._empty(scope, receive, send)
