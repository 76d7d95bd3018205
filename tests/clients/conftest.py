"""Fixtures of the SDK's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.broker_process import BrokerProcess, running_broker
from tests.clients.fake_broker import FakeBroker


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Every asynchronous test runs on both event loops."""
    return str(request.param)


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    """A fake broker with the queues jobs and orders.fifo."""
    with FakeBroker() as fake:
        fake.queue("jobs")
        fake.queue("orders.fifo")
        yield fake
        assert fake.violations == []


@pytest.fixture(scope="session")
def real_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A real broker on SQLite, shared by the tests that leave it running."""
    with running_broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker
