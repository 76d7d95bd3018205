"""Run by Alembic for each upgrade; the connection and its transaction belong to the caller (see migrate.py)."""

from __future__ import annotations

from alembic import context

from penstock_storage.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
