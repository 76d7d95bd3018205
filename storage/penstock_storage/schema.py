"""The tables, as SQLAlchemy Core sees them.

Plain on purpose: 64-bit integers, text and bytes; no foreign keys, no sequences, no triggers, so that the schema runs on
SQLite, PostgreSQL and the distributed engines that speak like PostgreSQL. Every key that grows begins with the log or
the slot, so that a distributed engine keeps one log's rows together. The one exception are the names of resources, which are
unique over all slots: an engine whose unique keys must begin with the slot keeps `resources`, which is small, whole on each
of its nodes. (A foreign key would also be no fence: its check
takes FOR KEY SHARE, which a take-over does not wait for.)

The tables are made by migrations/, not from here; a test compares the two.
"""

from __future__ import annotations

import sqlalchemy as sa

VERSION = "0002"
"""The newest migration."""

metadata = sa.MetaData()

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("number", sa.BigInteger),
    sa.Column("content", sa.LargeBinary),
    sqlite_with_rowid=False,
)
"""Counters (`incarnation`, `next_id`) and the cluster's secret."""

nodes = sa.Table(
    "nodes",
    metadata,
    sa.Column("node", sa.String(255), primary_key=True),
    sa.Column("address", sa.String(255), nullable=False),
    sa.Column("heartbeat_ms", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""Heartbeats. Apart from `fences`, so that renewing a lease never waits for a commit."""

fences = sa.Table(
    "fences",
    metadata,
    sa.Column("node", sa.String(255), primary_key=True),
    sa.Column("incarnation", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""The row that each commit of a node locks for sharing, and that a take-over changes."""

slots = sa.Table(
    "slots",
    metadata,
    sa.Column("slot", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("node", sa.String(255)),
    sa.Column("incarnation", sa.BigInteger),
)

resources = sa.Table(
    "resources",
    metadata,
    sa.Column("slot", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("resource_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("account", sa.String(255), nullable=False),
    sa.Column("region", sa.String(255), nullable=False),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("log_id", sa.BigInteger, nullable=False),
    sa.Column("attributes", sa.Text, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("modified_ms", sa.BigInteger, nullable=False),
    sa.Index("resources_by_name", "account", "region", "kind", "name", unique=True),
)

logs = sa.Table(
    "logs",
    metadata,
    sa.Column("log_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("slot", sa.BigInteger, nullable=False),
    sa.Column("reserved", sa.BigInteger, nullable=False),
    sa.Column("trimmed", sa.BigInteger, nullable=False),
    sa.Column("swept", sa.BigInteger, nullable=False),
    sa.Column("garbage", sa.BigInteger, nullable=False),
)
"""`swept`: the trim point up to which `sweep` is done. `garbage`: 1 once the log's resource is deleted."""

segments = sa.Table(
    "segments",
    metadata,
    sa.Column("log_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("due_ms", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("first", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("count", sa.BigInteger, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("sent_ms", sa.BigInteger, nullable=False),
    sa.Column("head_checksum", sa.BigInteger, nullable=False),
    sa.Column("checksum", sa.BigInteger, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    # All but the payload: counting a log and finding a segment by number read this index alone.
    sa.Index("segments_by_first", "log_id", "first", "due_ms", "count", "size_bytes", "sent_ms", "head_checksum"),
)

segment_states = sa.Table(
    "segment_states",
    metadata,
    sa.Column("log_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("first", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("deleted_count", sa.BigInteger, nullable=False),
    sa.Column("deleted_bytes", sa.BigInteger, nullable=False),
    sa.Column("checksum", sa.BigInteger, nullable=False),
    sa.Column("deleted", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("log_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("visible_ms", sa.BigInteger, nullable=False),
    sa.Column("checksum", sa.BigInteger, nullable=False),
    sa.Column("runs", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

deduplication = sa.Table(
    "deduplication",
    metadata,
    sa.Column("log_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at_ms", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("checksum", sa.BigInteger, nullable=False),
    sa.Column("entries", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

cursors = sa.Table(
    "cursors",
    metadata,
    sa.Column("log_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("cursor_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("checksum", sa.BigInteger, nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
"""Positions of subscriptions and sinks. Nothing writes it yet."""

credentials = sa.Table(
    "credentials",
    metadata,
    sa.Column("key_id", sa.String(128), primary_key=True),
    sa.Column("account", sa.String(255), nullable=False),
    sa.Column("role", sa.String(64), nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("sealed_secret", sa.LargeBinary, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
)

policies = sa.Table(
    "policies",
    metadata,
    sa.Column("account", sa.String(255), primary_key=True),
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("modified_ms", sa.BigInteger, nullable=False),
)
"""Permission documents. Nothing writes it yet."""

quarantine = sa.Table(
    "quarantine",
    metadata,
    sa.Column("log_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(64), primary_key=True),
    sa.Column("key_1", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("key_2", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("fields", sa.Text, nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
)
"""Copies of rows whose checksum was wrong, as they were read. `kind` is the table; key_1 and key_2 are the rest of the
key in that table; `fields` is a JSON object of the columns that are not bytes, `content` the one that is."""
