"""What /readyz and `turnkeeper check` look at: seldom, shared, and never waited for."""

import asyncio
from typing import Any

import pytest

from db import health, schema
from db.engine import Engine
from db.health import Health
from tests.conftest import StorageFails


@pytest.fixture
async def writes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written by the checks."""
    await engine.run("DELETE FROM write_probe")
    run, seen = engine.run, list[str]()

    async def noted(sql: str, args: Any = ()) -> list[Any]:
        if "write_probe" in sql:
            seen.append(sql)
        return await run(sql, args)

    monkeypatch.setattr(engine, "run", noted)
    return seen


async def test_many_who_ask_share_one_write_and_nothing_is_journalled(
    engine: Engine, writes: list[str], everything: Any
) -> None:
    before = await everything()
    one = Health(engine)
    for _ in range(3):
        assert await asyncio.gather(*(one.faults() for _ in range(20))) == [{}] * 20
    assert len(writes) == 1
    assert await everything() == before


async def test_a_disk_that_is_full_is_told_and_then_that_it_is_not(
    engine: Engine, writes: list[str], storage_fails: StorageFails, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(health, "BAD_SECONDS", 0.0)
    one = Health(engine)
    async with storage_fails("write_probe"):
        for _ in range(3):
            assert await one.faults() == {"writing": health.UNWRITABLE}
    assert await one.faults() == {}
    assert [record.getMessage() for record in caplog.records] == [
        health.UNWRITABLE,
        "the check of writing is passed again",
    ]


async def test_a_disk_with_hardly_any_room_is_full(
    engine: Engine, writes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "ROOM_BYTES", 2**62)
    assert await Health(engine).faults() == ({"writing": health.UNWRITABLE} if engine.engine_type == "sqlite" else {})


async def test_a_wrong_schema_is_told_beside_the_rest(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def wrong(engine: Engine) -> str:
        return "It lacks something."

    monkeypatch.setattr(schema, "fault", wrong)
    assert await Health(engine).faults() == {"schema": "It lacks something."}


async def test_a_write_that_waits_for_others_keeps_nobody_who_asks(
    engine: Engine, writes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Health(engine)
    assert await one.faults() == {}
    monkeypatch.setattr(health, "ASK_SECONDS", 0.05)
    monkeypatch.setitem(health.GOOD_SECONDS, "database", 3600.0)
    monkeypatch.setitem(health.GOOD_SECONDS, "writing", 0.0)
    async with engine.transaction():
        await engine.run("UPDATE write_probe SET id = 1")
        asked = await asyncio.create_task(one.faults())  # in a task of its own: not in this transaction
        assert asked == {}
        assert list(one._running) == ["writing"]
        assert await asyncio.create_task(one.faults()) == {}
    assert len(writes) == 3
    while one._running:
        await asyncio.sleep(0.01)
