"""The stores under contract: each test that takes `home` runs over all of them."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

import pytest
from penstock_storage.interface import Store
from penstock_storage.memory import MemoryDisk, MemoryStore
from penstock_storage.sql import SqlStore

from tests.storage.rows import Home


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def home(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Home]:
    """Somewhere to open stores in, empty at first."""
    make: Callable[[], Store]
    if request.param == "memory":
        disk = MemoryDisk(b"s" * 32)

        def make() -> Store:
            return MemoryStore(disk)
    else:
        url = f"sqlite:///{tmp_path}/store.db"
        if request.param == "postgresql":
            url = request.getfixturevalue("postgresql_url")

        def make() -> Store:
            return SqlStore.open(url, reserve_bytes=1024 * 1024)

    home = Home(make)
    yield home
    home.close()
