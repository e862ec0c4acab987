"""Trying a model: what an admin learns of it, once for each key, written down, charged to nobody; on both databases."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from db.db_session import DbSession
from services.actor import Actor
from services.client_pool import ClientPool, Provider
from services.clients import Reasoning, Said, Text
from services.session_service import SessionService
from services.trials import Trials
from tests.conftest import AtOnce, Everything, JournalRows, Offer, Refused


@pytest.fixture
def trials(sessions: SessionService) -> Trials:
    return Trials(sessions)


async def test_a_model_answers_in_some_time_whatever_its_state_is(
    trials: Trials, db_session: DbSession, ada: Actor, everything: Everything, journal: JournalRows
) -> None:
    before = await everything()
    for name, model in (("fast", "fast"), ("quick", "fast"), ("off", "off"), ("old", "old"), ("hidden", "hidden")):
        trial = await trials.try_model(name, db_session, actor=ada)
        assert (trial.model, trial.reply, trial.code) == (model, "Say OK.", "")
        assert trial.first_text_seconds is not None and 0 <= trial.first_text_seconds <= trial.seconds
    after = await everything()
    assert [row.to_value for row in await journal("model_tested")] == ["fast", "fast", "off", "old", "hidden"]
    for table in ("turn", "usage", "session", "rate_bucket"):
        assert after[table] == before[table]


async def test_one_that_does_not_answer_says_why(
    trials: Trials, db_session: DbSession, ada: Actor, journal: JournalRows
) -> None:
    trial = await trials.try_model("far", db_session, actor=ada)
    assert (trial.code, trial.reply, trial.first_text_seconds) == ("provider_unreachable", "", None)
    assert trial.detail and "127.0.0.1" not in trial.detail
    assert [row.outcome for row in await journal("model_tested")] == ["provider_unreachable"]


async def test_one_that_falls_silent_is_given_up(
    trials: Trials, sessions: SessionService, db_session: DbSession, ada: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent:
        """A provider that is there and says nothing."""

        async def stream(self, ask: object) -> AsyncIterator[object]:
            await asyncio.Event().wait()
            yield

        async def aclose(self) -> None: ...

    sessions.pool = ClientPool([Provider("builtin", "builtin")], connect=lambda _: Silent())  # type: ignore[arg-type, return-value]
    monkeypatch.setattr("services.trials.TRIAL_SECONDS", 0.05)
    trial = await trials.try_model("fast", db_session, actor=ada)
    assert trial.code == "provider_timeout"


@pytest.mark.parametrize(
    ("said", "reply"),
    [([Reasoning("Let "), Reasoning("me see")], "Let me see"), ([Reasoning("Hm"), Text("OK")], "OK"), ([], "")],
)
async def test_one_that_comes_no_further_than_its_reasoning_has_answered(
    trials: Trials, sessions: SessionService, db_session: DbSession, ada: Actor, said: list[Said], reply: str
) -> None:
    """A short reply has no room for more."""

    class Thinking:
        async def stream(self, ask: object) -> AsyncIterator[Said]:
            for piece in said:
                yield piece

        async def aclose(self) -> None: ...

    sessions.pool = ClientPool([Provider("builtin", "builtin")], connect=lambda _: Thinking())  # type: ignore[arg-type, return-value]
    trial = await trials.try_model("fast", db_session, actor=ada)
    assert (trial.reply, trial.code) == (reply, "")


async def test_only_an_admin_tries_and_only_what_is_there(
    trials: Trials, db_session: DbSession, ann: Actor, ada: Actor, guest: Actor, script: Actor, refused: Refused,
    offer: Offer,
) -> None:  # fmt: skip
    for actor in (ann, guest, script):
        async with refused("forbidden"):
            await trials.try_model("fast", db_session, actor=actor)
    async with refused("model_unknown"):
        await trials.try_model("none", db_session, actor=ada)
    await offer(nowhere={"provider": "nobody"})
    async with refused("model_disabled"):
        await trials.try_model("nowhere", db_session, actor=ada)


async def test_D1_a_double_click_is_one_trial(
    trials: Trials, db_session: DbSession, ada: Actor, at_once: AtOnce, journal: JournalRows, refused: Refused
) -> None:
    first = await trials.try_model("fast", db_session, actor=ada, key="k")
    together = await at_once(3, lambda _, db: trials.try_model("fast", db, actor=ada, key="k"))
    assert [msgspec.structs.asdict(one) for one in together.done] == [msgspec.structs.asdict(first)] * 3
    assert len(await journal("model_tested")) == 1
    async with refused("idempotency_key_reused"):
        await trials.try_model("smart", db_session, actor=ada, key="k")
