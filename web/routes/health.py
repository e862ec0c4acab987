"""What machines ask: alive, ready, and how the interface looks."""

from typing import Any

from litestar import Request, Response, get

from db.schema import number
from db.version import version
from services.actor import require_admin
from web.actor import on_this_machine, provide_actor
from web.answer import json, page
from web.given import Db, Log, Pool, Sessions, Who
from web.metrics import TEXT as METRICS
from web.metrics import Gauges, families, text
from web.openapi import describe
from web.reference import reference_of
from web.views import HealthView


@get("/healthz", opt={"answers": HealthView, "open": True})
async def healthz() -> Response[Any]:
    """Alive."""
    return json(HealthView("ok"))


@get("/readyz", opt={"answers": HealthView, "open": True, "also": (503,)})
async def readyz(request: Request) -> Response[Any]:
    """Can serve; 503 while draining, and without a database that has the right schema and can be written to."""
    if request.app.state.draining.is_set():
        return json(HealthView("draining"), 503)
    failed = await request.app.state.health.faults()
    if failed:
        return json(HealthView("no database" if "database" in failed else "not ready", failed), 503)
    return json(HealthView("ready"))


@get("/metrics", opt={"answers": "text", "file": "text/plain"})
async def show_metrics(request: Request, db_session: Db, sessions: Sessions, pool: Pool, log: Log) -> Response[Any]:
    """Figures of this process for Prometheus; for admins, and for whoever asks on the machine itself."""
    if not on_this_machine(request):
        require_admin(await provide_actor(request, db_session))
    running = await sessions.turns_running(db_session)
    gauges = Gauges(running, len(log.readers), pool.known, version(), number())
    return Response(text(families(request.app.state.counts, gauges)), media_type=METRICS)


@get("/docs", opt={"answers": "json"})
async def show_docs(request: Request, actor: Who) -> Response[Any]:
    """This interface to read, a URL at a time; the same description as /openapi.json to scripts."""
    description = describe(request.app)
    return page(request, "docs.html", description, reference=reference_of(description))


@get("/openapi.json", opt={"answers": "json", "open": True})
async def show_openapi(request: Request) -> Response[Any]:
    """The description of this interface, OpenAPI 3.1."""
    return json(describe(request.app))
