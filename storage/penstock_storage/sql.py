"""The store in a SQL database: SQLite in a file, or PostgreSQL and its relatives.

A `Commit` is turned into steps (one statement with many rows each) and given to the database's kind (sqlite.py,
postgresql.py), which runs them in one fenced transaction. Loads verify each row's checksum; a row that fails is copied into
`quarantine`, left out, logged and counted. What the statements are is in statements.py.

After CommitUnknown this store refuses every commit of that incarnation, whatever the caller does: only `acquire` helps.
"""

from __future__ import annotations

import logging
import os
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from penstock_storage import schema
from penstock_storage.database import Database, Step
from penstock_storage.interface import (
    Commit,
    CommitFailed,
    CommitUnknown,
    CredentialRow,
    DeduplicationRow,
    DeliveryRow,
    Fenced,
    Incarnation,
    LoadedSegment,
    LogId,
    LogRow,
    ResourceRow,
    SegmentKey,
    SegmentRow,
    StoreFull,
    StoreUnreachable,
)
from penstock_storage.load import Loader
from penstock_storage.migrate import migrate
from penstock_storage.slots import SLOTS
from penstock_storage.steps import adds, steps_of
from penstock_storage.sweep import sweep_steps

logger = logging.getLogger(__name__)


class SqlStore:
    """A store in a SQL database. Made by `SqlStore.open`; thread-safe."""

    def __init__(self, database: Database) -> None:
        """For `open`."""
        self._database = database
        self._loader = Loader(database)
        self._state_lock = threading.Lock()
        self._doubtful = 0
        """Incarnations up to this number have had a commit of unknown outcome."""
        try:
            self._prepare()
        except BaseException:
            database.close()
            raise

    @classmethod
    def open(cls, url: str, *, reserve_bytes: int | None = None) -> SqlStore:
        """Opens or makes a store: `sqlite:///relative.db`, `sqlite:////absolute.db`, `postgresql+psycopg://…`.

        `reserve_bytes` is the room that SQLite keeps for deletes on a full disk. Raises StoreUnreachable, StoreLocked,
        SchemaTooNew, and ValueError for a URL that is neither."""
        try:
            parsed = sa.make_url(url)
        except sa.exc.ArgumentError as error:
            raise ValueError(f"not a database URL: {error}") from error
        if parsed.drivername in ("sqlite", "sqlite+pysqlite"):
            if not parsed.database or parsed.database == ":memory:" or parsed.query:
                raise ValueError("a SQLite store is a file: sqlite:///path, without parameters")
            from penstock_storage.sqlite import RESERVE_BYTES, SqliteDatabase

            return cls(SqliteDatabase(pathlib.Path(parsed.database), RESERVE_BYTES if reserve_bytes is None else reserve_bytes))
        if parsed.drivername in ("postgresql", "postgresql+psycopg"):
            from penstock_storage.postgresql import PostgresqlDatabase

            return cls(PostgresqlDatabase(parsed.set(drivername="postgresql+psycopg")))
        raise ValueError(f"a store is sqlite:///path or postgresql+psycopg://…, not {parsed.drivername}")

    @property
    def quarantined(self) -> int:
        """How many corrupt rows were met since the store was opened."""
        return self._loader.quarantined

    @property
    def full(self) -> bool:
        """Whether commits that add messages are refused for want of space."""
        return self._database.full

    @property
    def is_quick(self) -> bool:
        """See Store.is_quick."""
        return self._database.is_quick

    def acquire(self, node: str, address: str, now_ms: int) -> Incarnation:
        """See Store.acquire. Committed before it returns; every load afterwards is a transaction of its own and so sees
        the last commit of the incarnation before."""
        self._database.renew()
        before = self.owner()
        try:
            incarnation = self._acquire(node, address, now_ms)
        except StoreFull:
            if not self._database.make_room():
                raise
            incarnation = self._acquire(node, address, now_ms)
        if before not in (None, (node, address)):
            logger.warning("took the store over from %s at %s: if that broker still runs, it ends now", *before)
        return incarnation

    def owner(self) -> tuple[str, str] | None:
        """Node and address of the broker that acquired last."""
        return self._loader.owner()

    def _acquire(self, node: str, address: str, now_ms: int) -> Incarnation:
        fences, nodes, slots = schema.fences, schema.nodes, schema.slots
        with self._database.transaction() as connection:
            # This row orders concurrent acquires among each other.
            number = _count_up(connection, "incarnation")
            # Waits until every commit that holds a fence has ended; afterwards all of them find another number.
            connection.execute(sa.update(fences).values(incarnation=number))
            connection.execute(_replace(connection, fences, node=node, incarnation=number))
            connection.execute(_replace(connection, nodes, node=node, address=address, heartbeat_ms=now_ms))
            connection.execute(sa.update(slots).values(node=node, incarnation=number))
        return Incarnation(node, number)

    def commit(self, incarnation: Incarnation, commit: Commit) -> None:
        """See Store.commit."""
        self._run(incarnation, steps_of(self._database.statements, commit), adds(commit))

    def sweep(self, incarnation: Incarnation, limit: int) -> int:
        """See Store.sweep. On SQLite it also gives free space back to the file system."""
        self._refuse_doubtful(incarnation)
        with self._database.read() as reader:
            steps, removed = sweep_steps(self._database.statements, reader, limit)
        self._run(incarnation, steps, False)
        self._database.maintain()
        return removed

    def cluster_secret(self) -> bytes:
        """32 random bytes, made with the store."""
        return self._loader.cluster_secret()

    def load_resources(self) -> list[ResourceRow]:
        """Every resource."""
        return self._loader.load_resources()

    def load_credentials(self) -> list[CredentialRow]:
        """Every access key."""
        return self._loader.load_credentials()

    def put_credential(self, row: CredentialRow) -> None:
        """Stores an access key without being its broker: takes no slots, so it fences nobody. A running broker learns of it
        at its next start. Raises StoreError."""
        [(text, rows)] = steps_of(self._database.statements, Commit(upsert_credentials=[row]))
        self._database.note(text, rows[0])

    def drop_credential(self, key_id: str) -> None:
        """Removes an access key, likewise."""
        [(text, rows)] = steps_of(self._database.statements, Commit(delete_credentials=[key_id]))
        self._database.note(text, rows[0])

    def next_id(self, incarnation: Incarnation) -> int:
        """See Store.next_id."""
        self._refuse_doubtful(incarnation)
        try:
            with self._database.transaction() as connection:
                fences = schema.fences
                held = connection.execute(
                    sa.select(fences.c.node)
                    .where(fences.c.node == incarnation.node, fences.c.incarnation == incarnation.number)
                    .with_for_update(read=True)
                ).first()
                if held is None:
                    raise Fenced(f"{incarnation} was taken over")
                return _count_up(connection, "next_id")
        except CommitUnknown:
            self._doubt(incarnation)
            raise

    def load_log(self, log_id: LogId, now_ms: int) -> LogRow:
        """See Store.load_log."""
        return self._loader.load_log(log_id, now_ms)

    def load_deliveries(self, log_id: LogId, after: int, limit: int) -> list[DeliveryRow]:
        """See Store.load_deliveries."""
        return self._loader.load_deliveries(log_id, after, limit)

    def load_deduplication(self, log_id: LogId, since_ms: int) -> list[DeduplicationRow]:
        """See Store.load_deduplication."""
        return self._loader.load_deduplication(log_id, since_ms)

    def load_arrivals(
        self, log_id: LogId, after: tuple[int, int], until_due_ms: int, max_segments: int, max_bytes: int
    ) -> list[LoadedSegment]:
        """See Store.load_arrivals."""
        return self._loader.load_arrivals(log_id, after, until_due_ms, max_segments, max_bytes)

    def load_stream(self, log_id: LogId, position: int, max_segments: int, max_bytes: int) -> list[SegmentRow]:
        """See Store.load_stream."""
        return self._loader.load_stream(log_id, position, max_segments, max_bytes)

    def load_heads(self, log_id: LogId, position: int, limit: int) -> list[SegmentRow]:
        """See Store.load_heads."""
        return self._loader.load_heads(log_id, position, limit)

    def load_segments(self, keys: Sequence[SegmentKey]) -> list[LoadedSegment]:
        """See Store.load_segments."""
        return self._loader.load_segments(keys)

    def locate_segments(self, log_id: LogId, firsts: Sequence[int]) -> list[LoadedSegment]:
        """See Store.locate_segments."""
        return self._loader.locate_segments(log_id, firsts)

    def close(self) -> None:
        """See Store.close."""
        self._database.close()

    def _prepare(self) -> None:
        """Schema and first rows."""
        try:
            with self._database.transaction() as connection:
                if not migrate(connection):
                    return
                first: list[dict[str, Any]] = [
                    {"name": "incarnation", "number": 0, "content": None},
                    {"name": "next_id", "number": 0, "content": None},
                    {"name": "cluster_secret", "number": None, "content": os.urandom(32)},
                ]
                known = set(connection.execute(sa.select(schema.meta.c.name)).scalars())
                rows = [row for row in first if row["name"] not in known]
                if rows:
                    connection.execute(sa.insert(schema.meta), rows)
                if connection.execute(sa.select(sa.func.count()).select_from(schema.slots)).scalar() == 0:
                    connection.execute(sa.insert(schema.slots), [{"slot": slot} for slot in range(SLOTS)])
        except (CommitFailed, CommitUnknown) as error:
            raise StoreUnreachable(f"cannot make the schema: {error}") from error

    def _run(self, incarnation: Incarnation, steps: Sequence[Step], adds_anything: bool) -> None:
        self._refuse_doubtful(incarnation)
        try:
            self._database.commit(incarnation, steps, adds_anything)
        except CommitUnknown:
            self._doubt(incarnation)
            raise

    def _refuse_doubtful(self, incarnation: Incarnation) -> None:
        if incarnation.number <= self._doubtful:
            raise CommitFailed(f"a commit of {incarnation} has an unknown outcome; acquire again")

    def _doubt(self, incarnation: Incarnation) -> None:
        with self._state_lock:
            self._doubtful = max(self._doubtful, incarnation.number)


def _count_up(connection: sa.Connection, name: str) -> int:
    meta = schema.meta
    number = connection.execute(
        sa.update(meta).where(meta.c.name == name).values(number=meta.c.number + 1).returning(meta.c.number)
    ).scalar_one()
    return int(number)


def _replace(connection: sa.Connection, table: sa.Table, **values: Any) -> sa.Executable:
    """An upsert, which SQLAlchemy has per dialect."""
    from sqlalchemy.dialects import postgresql, sqlite

    keys = [column.name for column in table.primary_key]
    others = {name: value for name, value in values.items() if name not in keys}
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table).values(**values).on_conflict_do_update(index_elements=keys, set_=others)
    return sqlite.insert(table).values(**values).on_conflict_do_update(index_elements=keys, set_=others)
