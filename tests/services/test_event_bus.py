"""Hints between processes over a real PostgreSQL and a real Redis, cut and silenced: late, and never wrong."""

import asyncio
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from uuid import UUID, uuid4

import asyncpg
import pytest
from redis.asyncio import Redis

from db.db_session import DbSession, Piece
from db.engine import Engine
from db.wire import PostgresWire
from services import shared_bus
from services.actor import Actor
from services.client_pool import NEWS, ClientPool, Provider
from services.event_bus import Hint, MemoryEventBus, Subscription
from services.redis_wire import RedisWire
from services.session_service import SessionService
from services.shared_bus import MISSED, OUTGOING, SharedEventBus, Wire
from services.turn_log import Changed, Delta, Ended, Event, Position, TurnLog
from tests.conftest import Clock, Orders, Until
from tests.servers import a_redis, free_port

SESSION, OTHER, TURN = uuid4(), uuid4(), uuid4()
TEXT = "Zwölf Boxkämpfer 🦊 e\u0301 \u2028 \0 'jagen' \"Viktor\"\n"


class Counted:
    """A real wire, whose messages are counted."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.most_bytes = wire.most_bytes
        self.sent: list[str] = []
        self.connections = 0

    @asynccontextmanager
    async def connect(
        self, receive: Callable[[str], None], lost: Callable[[], None]
    ) -> AsyncIterator[Callable[[Sequence[str]], Awaitable[None]]]:
        async with self._wire.connect(receive, lost) as send:
            self.connections += 1

            async def counted(messages: Sequence[str]) -> None:
                self.sent += messages
                await send(messages)

            yield counted


class Carrier:
    """What carries the hints, and the ways in which it fails."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind, self.url = kind, url

    def wire(self) -> Counted:
        return Counted(PostgresWire(self.url) if self.kind == "postgres" else RedisWire(self.url))

    async def cut(self) -> int:
        """End every connection of ours from the other side; how many there were."""
        if self.kind == "postgres":
            connection = await asyncpg.connect(self.url)
            ended = await connection.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'turnkeeper events'"
            )
            await connection.close()
            return len(ended)
        async with Redis.from_url(self.url) as client:
            return int(await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes"))


@pytest.fixture(params=["postgres", "redis"])
def carrier(request: pytest.FixtureRequest) -> Carrier:
    return Carrier(request.param, request.getfixturevalue(f"{request.param}_url"))


Buses = Callable[[Wire], Awaitable[SharedEventBus]]


@pytest.fixture
async def opened() -> AsyncIterator[Buses]:
    """Opens buses, each as a process of its own would."""
    async with AsyncExitStack() as stack:

        async def an_open_bus(wire: Wire) -> SharedEventBus:
            bus = SharedEventBus(wire)
            await bus.open()
            stack.push_async_callback(bus.close)
            return bus

        yield an_open_bus


def quiet(subscription: Subscription) -> list[Hint]:
    """What has come but for the advice to look."""
    return [hint for hint in subscription.take() if hint != MISSED]


async def settled(*subscriptions: Subscription, until: Until) -> None:
    """Wait until everybody is told to look, as each loss and each new connection does."""
    await until(lambda: all(MISSED in one.hints for one in subscriptions))
    for one in subscriptions:
        one.take()


async def comes(subscription: Subscription, hint: Hint, *, until: Until) -> None:
    await until(lambda: hint in subscription.hints)


# ---------------------------------------------------------------- one process


async def test_a_hint_reaches_those_who_watch_its_session_and_nobody_else() -> None:
    bus = MemoryEventBus()
    await bus.open()
    with bus.subscribe(SESSION) as first, bus.subscribe(SESSION) as second, bus.subscribe(OTHER) as other:
        bus.publish(Hint(SESSION, "session"))
        assert first.take() == second.take() == [Hint(SESSION, "session")]
        assert other.take() == []
    bus.publish(Hint(SESSION, "session"))
    assert first.take() == []
    await bus.close()


# ---------------------------------------------------------------- several


async def test_a_hint_is_here_at_once_and_there_soon_and_nowhere_twice(
    carrier: Carrier, opened: Buses, until: Until
) -> None:
    here, there = await opened(carrier.wire()), await opened(carrier.wire())
    with here.subscribe(SESSION) as mine, there.subscribe(SESSION) as theirs, there.subscribe(OTHER) as others:
        hints = [
            Hint(SESSION, "turn_begun", TURN),
            *(Hint(SESSION, "text", TURN, at, TEXT[at : at + 3]) for at in range(0, len(TEXT), 3)),
            Hint(SESSION, "turn_ended", TURN),
            Hint(SESSION, "session"),
        ]
        for hint in hints:
            here.publish(hint)
            assert quiet(mine) == [hint], "it took a way around"
        last = Hint(SESSION, "last", TURN)
        here.publish(last)
        await comes(theirs, last, until=until)
        assert quiet(theirs) == [*hints, last]
        # What comes back to its sender is not told again.
        there.publish(last)
        await until(lambda: list(mine.hints).count(last) > 1)
        assert quiet(mine) == [last, last]
        assert quiet(others) == []


async def test_what_is_committed_together_goes_out_together_and_nothing_while_nothing_happens(
    carrier: Carrier, opened: Buses, until: Until
) -> None:
    """One message for a tick of all turns, however many run."""
    wire = carrier.wire()
    here, there = await opened(wire), await opened(carrier.wire())
    sessions = [uuid4() for _ in range(64)]
    with there.subscribe(sessions[-1]) as theirs:
        wire.sent.clear()
        for tick in range(3):
            for session in sessions:
                here.publish(Hint(session, "text", TURN, tick * 5, "five "))
            await comes(theirs, Hint(sessions[-1], "text", TURN, tick * 5, "five "), until=until)
        await asyncio.sleep(0.2)
        # PostgreSQL takes 8,000 bytes at once. A message that says nothing only asks whether the wire still carries.
        said = [message for message in wire.sent if not message.endswith("[]")]
        assert len(said) <= (6 if carrier.kind == "postgres" else 3)
        assert len(wire.sent) <= 6


async def test_text_that_is_too_long_is_left_to_the_rows(carrier: Carrier, opened: Buses, until: Until) -> None:
    wire = carrier.wire()
    wire.most_bytes = min(wire.most_bytes, 7999)
    here, there = await opened(wire), await opened(carrier.wire())
    with there.subscribe(SESSION) as theirs:
        for size in [*range(7800, 8020), 20_000, 1_000_000]:
            hint = Hint(SESSION, "text", TURN, 0, "x" * size)
            here.publish(hint)
            await until(lambda: any(one != MISSED for one in theirs.hints))
            assert quiet(theirs) in ([hint], [Hint(SESSION, "more", TURN)])
        assert all(len(message.encode()) <= wire.most_bytes for message in wire.sent)
        here.publish(Hint(SESSION, "text", TURN, 0, "ü" * 5000))
        here.publish(Hint(SESSION, "session"))
        await comes(theirs, Hint(SESSION, "session"), until=until)
        assert quiet(theirs) == [Hint(SESSION, "more", TURN), Hint(SESSION, "session")]


async def test_what_is_no_hint_is_passed_over(
    carrier: Carrier, opened: Buses, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    wire = carrier.wire()
    here, there = await opened(wire), await opened(carrier.wire())
    with there.subscribe(SESSION) as theirs:
        async with carrier.wire().connect(lambda _: None, lambda: None) as send:
            await send(["nonsense", "0123456789abcdef[[1]]", "0123456789abcdef{}", "é" * 16 + "[]"])
        here.publish(Hint(SESSION, "session"))
        await comes(theirs, Hint(SESSION, "session"), until=until)
        assert quiet(theirs) == [Hint(SESSION, "session")]
    assert caplog.records == []


async def test_more_than_can_be_sent_makes_the_others_look_instead(
    carrier: Carrier, opened: Buses, until: Until
) -> None:
    here, there = await opened(carrier.wire()), await opened(carrier.wire())
    last = Hint(SESSION, "turn_ended", TURN)
    with there.subscribe(SESSION) as theirs, there.subscribe(OTHER) as others:
        for number in range(OUTGOING + 10):
            here.publish(Hint(SESSION, "text", TURN, number, "x"))
        here.publish(last)
        assert len(here._outgoing) < 20
        await comes(theirs, last, until=until)
        await comes(others, MISSED, until=until)


async def test_the_last_hints_of_a_process_that_stops_are_sent(carrier: Carrier, opened: Buses, until: Until) -> None:
    stopping, there = SharedEventBus(carrier.wire()), await opened(carrier.wire())
    await stopping.open()
    with there.subscribe(SESSION) as theirs:
        stopping.publish(Hint(SESSION, "turn_ended", TURN))
        await stopping.close()
        await comes(theirs, Hint(SESSION, "turn_ended", TURN), until=until)
    stopping.publish(Hint(SESSION, "turn_ended", TURN))


async def test_who_comes_and_goes_having_missed_nothing_makes_nobody_look(
    carrier: Carrier, opened: Buses, until: Until
) -> None:
    there = await opened(carrier.wire())
    with there.subscribe(SESSION) as theirs:
        for number in range(3):
            command = SharedEventBus(carrier.wire())
            await command.open()
            command.publish(Hint(SESSION, "session", offset=number))
            await command.close()
            await comes(theirs, Hint(SESSION, "session", offset=number), until=until)
        # What is told again by itself is not missed.
        early = SharedEventBus(carrier.wire())
        early.publish(Hint(OTHER, "up", offset=1, text="near"))
        await early.open()
        early.publish(Hint(SESSION, "session", offset=3))
        await comes(theirs, Hint(SESSION, "session", offset=3), until=until)
        await early.close()
        assert MISSED not in theirs.hints


# ---------------------------------------------------------------- cuts


async def test_after_a_cut_everybody_looks_and_hints_come_again(
    carrier: Carrier, opened: Buses, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    wires = [carrier.wire(), carrier.wire()]
    here, there = [await opened(wire) for wire in wires]
    with here.subscribe(SESSION) as mine, there.subscribe(SESSION) as theirs:
        await settled_down(mine, theirs)
        for cut in range(1, 4):
            assert await carrier.cut() >= 2
            await until(lambda: all(wire.connections > cut for wire in wires))  # noqa: B023
            await settled(mine, theirs, until=until)
            hint = Hint(SESSION, "text", TURN, cut, TEXT)
            here.publish(hint)
            assert hint in mine.hints
            await comes(theirs, hint, until=until)
            mine.take()
            there.publish(hint)
            await comes(mine, hint, until=until)
            await settled_down(mine, theirs)
    told = [record.getMessage() for record in caplog.records]
    assert any("come late" in line for line in told) and any("come again" in line for line in told)
    assert not any(record.exc_info or record.levelno > logging.WARNING for record in caplog.records)


async def settled_down(*subscriptions: Subscription) -> None:
    await asyncio.sleep(0.05)
    for one in subscriptions:
        one.take()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers look every 20 ms, and what is broken is soon tried again; a start does not wait for it."""
    monkeypatch.setattr(shared_bus, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(shared_bus, "SEND_SECONDS", 0.2)
    monkeypatch.setattr(shared_bus, "PAUSE_SECONDS", (0.05, 0.1))


@pytest.mark.usefixtures("hasty")
async def test_while_redis_is_away_readers_look_for_themselves_and_nothing_else_suffers(
    opened: Buses, until: Until, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, hint = free_port(), Hint(SESSION, "session")
    carrier = Carrier("redis", f"redis://:secret@127.0.0.1:{port}/0")
    here, there = await opened(carrier.wire()), await opened(carrier.wire())
    monkeypatch.setattr(shared_bus, "SEND_SECONDS", 60)  # what lives must not be given up because the machine is slow
    with here.subscribe(SESSION) as mine, there.subscribe(SESSION) as theirs:
        for _ in range(2):
            for _ in range(3):
                here.publish(hint)
                assert hint in mine.hints
                await settled(mine, theirs, until=until)
            assert here._outgoing == []
            with ExitStack() as stack:
                # Beside the loop: a start takes a moment, in which readers look on.
                await asyncio.to_thread(stack.enter_context, a_redis(port, "secret"))
                await until(lambda: here._connected.is_set() and there._connected.is_set())
                await settled(mine, theirs, until=until)
                await settled_down(mine, theirs)
                here.publish(hint)
                await comes(theirs, hint, until=until)
                await asyncio.to_thread(stack.close)
            await until(lambda: not here._connected.is_set() and not there._connected.is_set())
    assert "secret" not in caplog.text
    assert not any(record.exc_info for record in caplog.records)


async def test_a_wire_that_falls_silent_without_breaking_is_given_up(
    opened: Buses, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_bus, "PAUSE_SECONDS", (0.05, 0.1))
    monkeypatch.setattr(shared_bus, "LOOK_SECONDS", 0.02)
    with a_redis(free_port()) as url:
        here, there = await opened(RedisWire(url)), await opened(RedisWire(url))
        with there.subscribe(SESSION) as theirs:
            async with Redis.from_url(url) as client:
                redis = int((await client.info("server"))["process_id"])
            with monkeypatch.context() as meanwhile:
                # For no longer than it is silent: what lives must not be given up because the machine is slow.
                meanwhile.setattr(shared_bus, "PULSE_SECONDS", 0.2)
                meanwhile.setattr(shared_bus, "SEND_SECONDS", 0.2)
                here.publish(Hint(SESSION, "session"))  # neither waits for a pulse of the usual length
                there.publish(Hint(SESSION, "session"))
                await comes(theirs, Hint(SESSION, "session"), until=until)
                os.kill(redis, signal.SIGSTOP)
                try:
                    await until(lambda: not here._connected.is_set() and not there._connected.is_set())
                    await settled(theirs, until=until)
                finally:
                    os.kill(redis, signal.SIGCONT)
            await until(lambda: here._connected.is_set() and there._connected.is_set())
            await settled(theirs, until=until)
            here.publish(Hint(SESSION, "session"))
            await comes(theirs, Hint(SESSION, "session"), until=until)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("kind", ["postgres", "redis"])
async def test_whoever_lets_us_in_and_says_nothing_is_tried_again(opened: Buses, until: Until, kind: str) -> None:
    came: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: came.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    url = f"redis://127.0.0.1:{port}" if kind == "redis" else f"postgresql://ann:secret@127.0.0.1:{port}/x"
    async with silent:
        bus = await opened(Carrier(kind, url).wire())
        with bus.subscribe(SESSION) as mine:
            await settled(mine, until=until)
            await until(lambda: len(came) > 2)
            bus.publish(Hint(SESSION, "session"))
            assert quiet(mine) == [Hint(SESSION, "session")]
        for writer in came:
            writer.close()


@pytest.mark.usefixtures("hasty")
async def test_the_more_readers_there_are_the_longer_each_waits_for_its_next_look(
    opened: Buses, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_bus, "LOOKS_A_SECOND", 1000)
    bus = await opened(RedisWire(f"redis://127.0.0.1:{free_port()}"))
    with ExitStack() as stack:
        watching = [stack.enter_context(bus.subscribe(uuid4())) for _ in range(300)]
        await until(lambda: all(MISSED in one.hints for one in watching))
        for one in watching:
            one.take()
        began = asyncio.get_running_loop().time()
        await until(lambda: sum(len(one.hints) for one in watching) >= 300)
        looks = sum(len(one.hints) for one in watching)
        assert looks <= 1000 * (asyncio.get_running_loop().time() - began) + 300


# ---------------------------------------------------------------- whole streams


class Reading:
    """A reader in another process than the turn."""

    def __init__(self, log: TurnLog, session_id: UUID, actor: Actor) -> None:
        self.events: list[Event] = []
        self.text = ""
        self.task = asyncio.create_task(self._read(log, session_id, actor))

    async def _read(self, log: TurnLog, session_id: UUID, actor: Actor) -> None:
        async for event in log.follow_session(session_id, Position(version=0), actor):
            self.events.append(event)
            if isinstance(event, Delta):
                assert event.offset == len(self.text)
                self.text += event.text


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
@pytest.mark.parametrize("cut", [0, 2, 7, 100])
async def test_I13_a_reader_in_another_process_misses_nothing_however_often_the_wire_is_cut(
    carrier: Carrier, sessions: SessionService, engine: Engine, pool: ClientPool, clock: Clock, orders: Orders,
    ann: Actor, db_session: DbSession, opened: Buses, until: Until, monkeypatch: pytest.MonkeyPatch, cut: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(shared_bus, "PAUSE_SECONDS", (0.01, 0.05))
    here, there = await opened(carrier.wire()), await opened(carrier.wire())
    writing, reading_side = SessionService(pool, here, now=clock), SessionService(pool, there, now=clock)
    writing.runner = orders
    log = TurnLog(reading_side, there, lambda: DbSession(engine), asyncio.Event())
    session_id = (await writing.create_session(db_session, actor=ann)).row.id
    reading = Reading(log, session_id, ann)
    await until(lambda: there._watching)
    turn = (await writing.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    text = "".join(f"{number} äöü 🦊 " for number in range(60))
    for number, start in enumerate(range(0, len(text), 20)):
        if cut and number % cut == 1:
            await carrier.cut()
        await writing.append([Piece(session_id, turn.id, start, text[start : start + 20])], db_session)
        if not cut:
            await until(lambda: len(reading.text) >= start)  # noqa: B023
    await writing.switch_model(session_id, "smart", db_session, actor=ann)
    await writing.finish_turn(turn.id, db_session, state="done", tail="!")
    await until(lambda: any(isinstance(event, Ended) for event in reading.events))
    assert reading.text == text + "!"
    await until(
        lambda: any(isinstance(event, Changed) and event.session.current.id == "smart" for event in reading.events)
    )
    reading.task.cancel()
    await asyncio.gather(reading.task, return_exceptions=True)


async def test_a_wire_that_is_given_up_while_it_connects_leaves_nothing(carrier: Carrier, until: Until) -> None:
    """At every moment of it. An error that nobody has asked for would be raised at the end of the test."""

    async def connect() -> None:
        async with carrier.wire().connect(lambda _: None, lambda: None):
            pass

    for moment in range(40):
        connecting = asyncio.create_task(connect())
        for _ in range(moment):
            await asyncio.sleep(0)
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
    while await carrier.cut():
        await asyncio.sleep(0.01)
    gc.collect()
    await asyncio.sleep(0)


# ---------------------------------------------------------------- what goes along besides


async def test_M8_what_one_process_finds_out_about_a_provider_the_others_tell_too(
    carrier: Carrier, opened: Buses, until: Until
) -> None:
    async with asyncio.TaskGroup() as tasks:
        buses = [await opened(carrier.wire()) for _ in range(3)]
        # Nobody is there, so their own probe finds it down. It is over before they are told anything else.
        near = Provider("near", "openai", f"http://127.0.0.1:{free_port()}/v1")
        pools = [ClientPool([near], bus=bus) for bus in buses]
        hearing = [tasks.create_task(pool._hear()) for pool in pools]
        await asyncio.gather(*(pool.probe() for pool in pools))
        assert [pool.is_up("near") for pool in pools] == [False] * 3
        everywhere = [True, False, True, False]
        for pool, up in zip([*pools, pools[0]], everywhere, strict=True):
            pool.note("near", up)
            await until(lambda: {pool.is_up("near") for pool in pools} == {up})  # noqa: B023
        # Two at once say the opposite: whichever holds, all agree.
        pools[1].note("near", True)
        pools[2].note("near", True)
        pools[0].note("near", False)
        pools[2].note("near", False)
        await until(lambda: len({pool.is_up("near") for pool in pools}) == 1)
        # What a broken wire withheld is told when there is another.
        await carrier.cut()
        for pool in (pools[0], pools[1], pools[0]):
            pool.note("near", not pool.is_up("near"))
        last = pools[0].is_up("near")
        await until(lambda: {pool.is_up("near") for pool in pools} == {last})
        # What nothing could follow is not believed.
        buses[0].publish(Hint(NEWS, "down" if last else "up", offset=2**64 - 1, text="near"))
        pools[0].note("near", not last)
        await until(lambda: {pool.is_up("near") for pool in pools} == {not last})
        pools[1].note("near", bool(last))
        await until(lambda: {pool.is_up("near") for pool in pools} == {last})
        # Who does not know that provider does not learn of it.
        pools[1].note("elsewhere", True)
        assert [set(pool.known) for pool in pools] == [{"near"}] * 3
        for task in hearing:
            task.cancel()
    for pool in pools:
        await pool.aclose()
