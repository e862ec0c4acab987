"""What the tests of clients share."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.clients import transport
from tests.services.clients.forms import FORMS, Form


@pytest.fixture(params=FORMS, ids=lambda form: form.client.__name__)
def form(request: pytest.FixtureRequest) -> Form:
    return request.param


@pytest.fixture
async def in_time() -> AsyncIterator[None]:
    """Far more than any test needs, on any machine, and less than a wait of CALM."""
    async with asyncio.timeout(60):
        yield


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is not dropped because a slow machine takes long to ask again."""
    monkeypatch.setattr(transport, "IDLE_SECONDS", 120)
