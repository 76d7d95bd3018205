"""The schema that migrations make is the schema that the code expects."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from penstock_storage import schema
from penstock_storage.migrate import migrate


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def engine(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Any:
    url = f"sqlite:///{tmp_path}/store.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    engine = sa.create_engine(url)
    yield engine
    engine.dispose()


def test_migrations_make_what_the_schema_says(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        assert migrate(connection)
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
    with engine.begin() as connection:
        assert not migrate(connection)


def test_a_migration_that_is_rolled_back_leaves_nothing(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        migrate(connection)
        connection.rollback()
    assert sa.inspect(engine).get_table_names() == []


def test_the_newest_migration_is_the_version_that_opening_expects() -> None:
    config = Config()
    config.set_main_option("script_location", "penstock_storage:migrations")
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_current_head() == schema.VERSION


def test_every_key_that_grows_begins_with_the_log_or_the_slot() -> None:
    small = {"meta", "nodes", "fences", "credentials", "policies"}
    for table in schema.metadata.tables.values():
        if table.name not in small:
            assert next(iter(table.primary_key)).name in ("log_id", "slot"), table.name
        for index in table.indexes:
            assert next(iter(index.columns)).name in ("log_id", "slot"), index.name
