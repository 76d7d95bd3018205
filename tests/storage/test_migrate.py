"""The schema that migrations make is the schema that the code expects."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from penstock_broker.queues.settings import check_queue_name
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


def test_of_resources_with_one_name_the_older_ones_get_names_of_their_own(
    engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config()
    config.set_main_option("script_location", "penstock_storage:migrations")
    config.set_main_option("path_separator", "os")
    names = {1: "jobs", 2: "x" * 75 + ".fifo", 3: "jobs", 4: "x" * 75 + ".fifo", 5: "jobs", 6: "other"}

    def row(resource_id: int, name: str, account: str = "a") -> dict[str, Any]:
        texts = {"account": account, "region": "r", "kind": "queue", "name": name, "attributes": "{}"}
        numbers = dict.fromkeys(("version", "created_ms", "modified_ms"), 1)
        return {"slot": resource_id * 10, "resource_id": resource_id, "log_id": resource_id, **texts, **numbers}

    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        stored = [row(resource_id, name) for resource_id, name in names.items()] + [row(7, "jobs", "another account")]
        connection.execute(sa.insert(schema.resources), stored)
    with engine.begin() as connection:
        assert migrate(connection)
        rows = connection.execute(sa.select(schema.resources.c.resource_id, schema.resources.c.name))
        found = {one.resource_id: one.name for one in rows}
        assert found == names | {1: "jobs-older-1", 2: "x" * 67 + "-older-2.fifo", 3: "jobs-older-3", 7: "jobs"}
        assert max(map(len, found.values())) == 80
        for name in found.values():
            check_queue_name(name)
    assert caplog.text.count("the store had two resources of one name") == 3
    with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
        connection.execute(sa.insert(schema.resources), [row(8, "jobs")])


def test_the_newest_migration_is_the_version_that_opening_expects() -> None:
    config = Config()
    config.set_main_option("script_location", "penstock_storage:migrations")
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_current_head() == schema.VERSION


def test_every_key_that_grows_begins_with_the_log_or_the_slot() -> None:
    small = {"meta", "nodes", "fences", "credentials", "policies"}
    (by_name,) = schema.resources.indexes  # unique over all slots
    for table in schema.metadata.tables.values():
        if table.name not in small:
            assert next(iter(table.primary_key)).name in ("log_id", "slot"), table.name
        for index in table.indexes - {by_name}:
            assert next(iter(index.columns)).name in ("log_id", "slot"), index.name
