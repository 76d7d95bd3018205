"""Fixtures that every suite may use."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.postgresql import Cluster, find_binaries, run_cluster


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Cluster]:
    """A private PostgreSQL for the whole session (per worker of pytest-xdist); make a database of your own in it."""
    if find_binaries() is None:
        message = "PostgreSQL is not installed (looked for initdb)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    with run_cluster() as cluster:
        yield cluster


@pytest.fixture
def postgresql_url(postgresql: Cluster) -> Iterator[str]:
    """The URL of an empty database."""
    name = postgresql.create_database()
    yield postgresql.url(name)
    postgresql.drop_database(name)
