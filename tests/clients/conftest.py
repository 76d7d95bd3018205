"""Fixtures of the SDK's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
