"""Fixtures of the command line's tests."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.broker_process import BrokerProcess, running_broker
from tests.cli.runner import Penstock


@pytest.fixture(scope="session")
def cli_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A real broker, shared by the tests that leave it running."""
    with running_broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture
def penstock(cli_broker: BrokerProcess) -> Iterator[Penstock]:
    """The command line beside that broker."""
    command = Penstock(cli_broker.url)
    yield command
    command.close()


@pytest.fixture
def name(penstock: Penstock) -> str:
    """An empty queue of the test's own."""
    queue = f"q-{secrets.token_hex(4)}"
    assert penstock("queue", "create", queue).code == 0
    return queue
