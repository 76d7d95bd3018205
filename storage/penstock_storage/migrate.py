"""Brings a database's schema up to date when a store is opened.

The usual case is one SELECT. Otherwise Alembic runs the missing steps inside the caller's transaction: both SQLite and
PostgreSQL change schemas transactionally, so a crash half way leaves the old schema.

It refuses a database that a newer Penstock has touched: what that one wrote may mean something else.
"""

from __future__ import annotations

import sqlalchemy as sa

from penstock_storage.interface import SchemaTooNew
from penstock_storage.schema import VERSION

_ADVISORY_LOCK = 0x70656E73746F636B
"""Held on PostgreSQL while the schema is looked at, so that concurrent first opens come one after the other."""


def migrate(connection: sa.Connection) -> bool:
    """Upgrades the schema within the open transaction of `connection`. Whether there was anything to do.

    Raises SchemaTooNew."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
    version = None
    if sa.inspect(connection).has_table("alembic_version"):
        version = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    if version == VERSION:
        return False

    # Importing Alembic takes longer than opening a store that is up to date.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "penstock_storage:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if version is not None and version not in known:
        raise SchemaTooNew(
            f"the store has schema version {version}; this Penstock knows versions up to {VERSION}. "
            "Run the newer Penstock that wrote it."
        )
    command.upgrade(config, "head")
    return True
