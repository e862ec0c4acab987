"""What machines ask: alive, ready, and how the interface looks."""

from typing import Any

from litestar import Request, Response, get

from db.db_session import DatabaseUnavailable
from web.answer import json
from web.given import Db
from web.openapi import describe
from web.views import HealthView


@get("/healthz", opt={"answers": HealthView, "open": True})
async def healthz() -> Response[Any]:
    """Alive."""
    return json(HealthView("ok"))


@get("/readyz", opt={"answers": HealthView, "open": True, "also": (503,)})
async def readyz(request: Request, db_session: Db) -> Response[Any]:
    """Can serve; 503 while draining or without its database."""
    if request.app.state.draining.is_set():
        return json(HealthView("draining"), 503)
    try:
        await db_session.has_admin()
    except DatabaseUnavailable:
        return json(HealthView("no database"), 503)
    return json(HealthView("ready"))


@get("/openapi.json", opt={"answers": "json", "open": True})
async def show_openapi(request: Request) -> Response[Any]:
    """The description of this interface, OpenAPI 3.1."""
    return json(describe(request.app))
