"""What the tests of clients share."""

import pytest

from services.clients import transport
from tests.conftest import limit
from tests.services.clients.forms import FORMS, Form


@pytest.fixture(params=FORMS, ids=lambda form: form.client.__name__)
def form(request: pytest.FixtureRequest) -> Form:
    return request.param


@pytest.fixture
def in_time(request: pytest.FixtureRequest) -> None:
    """Far more than any test needs, on any machine, and less than a wait of CALM."""
    limit(request.node, 60)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is not dropped because a slow machine takes long to ask again."""
    monkeypatch.setattr(transport, "IDLE_SECONDS", 120)
