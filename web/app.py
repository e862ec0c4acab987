"""create_app: the one place where things are wired; no logic."""

import asyncio
import contextlib
import gc
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any
from uuid import UUID

from litestar import Litestar, Router
from litestar.config.compression import CompressionConfig
from litestar.datastructures import CacheControlHeader, State
from litestar.di import Provide
from litestar.static_files import create_static_files_router

from db.db_session import DbSession
from db.engine import open_engine
from db.health import Health
from services.accounts import Accounts
from services.client_pool import ClientPool
from services.configuration import configured
from services.counts import Counts
from services.desk import Desk
from services.governance import Governance
from services.membership import Membership
from services.moves import MoveRunner, Moves
from services.render_timeouts import RenderTimeouts
from services.session_service import SessionService, utc_now
from services.shared_bus import bus_for
from services.turn_log import TurnLog
from services.turn_runner import TurnRunner
from web.actor import provide_actor, provide_proof
from web.admin import provide_admin
from web.bodies import FIELDS
from web.descriptors import room_for_streams
from web.errors import HANDLERS
from web.guard import Guard
from web.live import provide_controls
from web.rendering import Renderer
from web.routes import ROUTES
from web.settings import Settings
from web.shelf import provide_shelf
from web.templating import STATIC
from web.welcome import Models

#: new objects until the young are looked through, and how often until the older are
COLLECTED = (10_000, 10, 10)


def create_app(
    settings: Settings,
    models: Models,
    ready: Callable[[], None],
    *,
    worker: UUID | None = None,
    dead: Sequence[UUID] = (),
) -> Litestar:
    """The application for one process, on a database that is prepared; tells when it is `ready`.

    `dead` are workers in whose place this one is.
    """
    engine = open_engine(settings.database_url)
    # SQLite serves one process, so whatever still runs there is left over from one that died.
    alone = engine.engine_type == "sqlite"
    draining, drained = asyncio.Event(), asyncio.Event()
    bus, counts = bus_for(settings.database_url, settings.redis_url), Counts()
    accounts = Accounts(settings.secret(), guests=settings.guests, now=utc_now, admins_read=settings.admins_read)

    def open_session() -> DbSession:
        return DbSession(engine)

    @asynccontextmanager
    async def serving(app: Litestar) -> AsyncIterator[None]:
        await engine.start()
        pool = ClientPool(models.providers, bus=bus)
        sessions = SessionService(pool, bus, worker=worker, counts=counts, admins_read=settings.admins_read)
        runner = sessions.runner = TurnRunner(sessions, pool, lambda: DbSession(engine, urgent=True))
        said = configured(models.models, settings.rules, models.default_model)
        governance, moves = Governance(sessions.units, said, sessions.now), Moves(sessions)
        mover = MoveRunner(moves, sessions.worker, open_session)
        await bus.open()
        if dead:
            await sessions.succeed(dead, open_session())
        await sessions.sweep(open_session(), alone=alone)
        log = TurnLog(sessions, bus, open_session, drained, accounts.still, room_for_streams())
        renderer = Renderer(RenderTimeouts(open_session, sessions.now))
        app.state.update(pool=pool, sessions=sessions, log=log, renderer=renderer)
        app.state.update(governance=governance, moves=moves, desk=Desk(sessions, log.readers, open_session))
        await runner.open()
        await mover.open(alone=alone)
        watch = asyncio.create_task(pool.watch())
        drain = asyncio.create_task(_drain(draining, runner, drained))
        with _drained_by_signals(draining):
            ready()
            _spare_the_collector()
            try:
                yield
            finally:
                draining.set()
                await mover.close()
                await drain
                await renderer.close()
                watch.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watch
                await bus.close()
                await pool.aclose()
                await engine.stop()

    app = Litestar(
        route_handlers=[*ROUTES, _static()],
        dependencies={
            "db_session": Provide(open_session, sync_to_thread=False),
            "actor": Provide(provide_actor),
            "controls": Provide(provide_controls),
            "shelf": Provide(provide_shelf, sync_to_thread=False),
            "proof": Provide(provide_proof, sync_to_thread=False),
            "sessions": _from_state("sessions"),
            "log": _from_state("log"),
            "pool": _from_state("pool"),
            "renderer": _from_state("renderer"),
            "governance": _from_state("governance"),
            "moves": _from_state("moves"),
            "desk": _from_state("desk"),
            "logins": _from_state("accounts"),
            "members": _from_state("members"),
            "admin": Provide(provide_admin, sync_to_thread=False),
        },
        exception_handlers=HANDLERS,
        lifespan=[serving],
        state=State(
            {
                "accounts": accounts,
                "members": Membership(accounts),
                "draining": draining,
                "health": Health(engine),
                "engine": engine,
                "counts": counts,
            }
        ),
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,
        multipart_form_part_limit=FIELDS,
        # Not what streams: its frames go out as they come.
        compression_config=CompressionConfig(
            backend="gzip", gzip_compress_level=6, exclude=["/events$", "^/chat", "^/v1/chat", "^/session/import$"]
        ),
    )
    # What a refused form is answered with is asked for once more, inside of what guards requests from outside.
    app.state["pages"] = app.asgi_handler
    # Around the whole application: what the router itself refuses is guarded too.
    app.asgi_handler = Guard(app.asgi_handler, settings.hosts, counts)
    return app


async def _drain(draining: asyncio.Event, runner: TurnRunner, drained: asyncio.Event) -> None:
    """When the server is told to stop: end the turns, so that their readers see it, and then the streams."""
    await draining.wait()
    await runner.close()
    drained.set()


def _spare_the_collector() -> None:
    """What is here by now stays, and is not looked through again; what many open streams hold only seldom.

    A full collection stops everybody for as long as it takes: a tenth of a second with 2,000 streams, and it came at
    every few requests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTED)


def _from_state(name: str) -> Provide:
    def provide(state: State) -> Any:
        return state[name]

    return Provide(provide, sync_to_thread=False)


def _static() -> Router:
    return create_static_files_router(
        path="/static",
        directories=[STATIC],
        cache_control=CacheControlHeader(max_age=365 * 86400, public=True, immutable=True),
    )


@contextlib.contextmanager
def _drained_by_signals(draining: asyncio.Event) -> Any:
    """Hear of a stop before the server does: it waits for open streams, and would for ever."""
    loop = asyncio.get_running_loop()
    before: dict[signal.Signals, Any] = {}

    def drain(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(draining.set)
        if callable(handler := before.get(signal.Signals(number))):
            handler(number, frame)

    for name in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError):  # not in the main thread: nobody sends signals there
            before[name] = signal.signal(name, drain)
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
