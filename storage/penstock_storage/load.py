"""Reads rows and verifies them.

A row whose checksum is wrong is copied into `quarantine`, logged once, counted, and left out of every result. The row itself
stays where it is until its log is trimmed or deleted; the copy stays for good. A segment whose state is corrupt is left
out too: to serve it could bring deleted messages back.

Pages are filled with good rows: a page that comes back short means that there is nothing more, whatever was corrupt.
"""

from __future__ import annotations

import json
import logging
import struct
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from penstock_storage import checksum
from penstock_storage.database import Database
from penstock_storage.interface import (
    CredentialRow,
    DeduplicationRow,
    DeliveryRow,
    LoadedSegment,
    LogId,
    LogRow,
    ResourceRow,
    SegmentKey,
    SegmentRow,
    StateRow,
    StoreError,
)
from penstock_storage.schema import credentials, meta, nodes, resources, slots
from penstock_storage.statements import LOCATED_WIDTH, SEGMENT_HEAD

logger = logging.getLogger(__name__)

FIRSTS_AT_ONCE = 1000
"""How many segments one statement looks up."""

NO_STATE = (None,) * (LOCATED_WIDTH - len(SEGMENT_HEAD))


class Loader:
    """Loads for SqlStore. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._statements = database.statements
        self._lock = threading.Lock()
        self._corrupt: set[tuple[int, str, int, int]] = set()

    @property
    def quarantined(self) -> int:
        """How many corrupt rows were met."""
        return len(self._corrupt)

    def cluster_secret(self) -> bytes:
        """See Store.cluster_secret."""
        with self._database.read() as reader:
            text = self._compile(sa.select(meta.c.content).where(meta.c.name == sa.literal_column("'cluster_secret'")))
            row = reader.execute(text, ()).fetchone()
        if row is None:
            raise StoreError("the store has no cluster secret: it was not made by Penstock, or is damaged")
        return bytes(row[0])

    def owner(self) -> tuple[str, str] | None:
        """See SqlStore.owner."""
        owner = sa.select(nodes.c.node, nodes.c.address).join_from(slots, nodes, slots.c.node == nodes.c.node)
        text = self._compile(owner.where(slots.c.slot == sa.literal_column("0")))
        with self._database.read() as reader:
            row = reader.execute(text, ()).fetchone()
        return None if row is None else (row[0], row[1])

    def load_resources(self) -> list[ResourceRow]:
        """See Store.load_resources."""
        columns = resources.c
        text = self._compile(
            sa.select(
                columns.resource_id, columns.account, columns.region, columns.kind, columns.name, columns.log_id,
                columns.attributes, columns.version, columns.created_ms, columns.modified_ms,
            ).order_by(columns.resource_id)
        )  # fmt: skip
        with self._database.read() as reader:
            return [ResourceRow(*row) for row in reader.execute(text, ()).fetchall()]

    def load_credentials(self) -> list[CredentialRow]:
        """See Store.load_credentials."""
        columns = credentials.c
        text = self._compile(
            sa.select(
                columns.key_id, columns.account, columns.role, columns.description, columns.sealed_secret,
                columns.created_ms,
            ).order_by(columns.key_id)
        )  # fmt: skip
        with self._database.read() as reader:
            return [CredentialRow(*row) for row in reader.execute(text, ()).fetchall()]

    def load_log(self, log_id: LogId, now_ms: int) -> LogRow:
        """See Store.load_log. Sums over an index, less what is deleted, less what is in quarantine.

        Reads all states, for one whose key has decayed would otherwise go unnoticed and its deleted messages come back."""
        statements = self._statements
        with self._database.read() as reader:
            row = reader.execute(statements.load_log, (log_id,)).fetchone()
            if row is None:
                raise KeyError(log_id)
            reserved, trimmed = row
            stored = reader.execute(statements.load_totals, (now_ms, log_id, trimmed)).fetchone()
            messages, size_bytes, delayed, last_due_ms = (int(total or 0) for total in stored)
            deleted: dict[int, tuple[int, int]] = {}
            hidden: set[tuple[int, int]] = set()
            for first, count, deleted_bytes, stored_sum, mask, due_ms in reader.execute(
                statements.load_states, (log_id, trimmed)
            ).fetchall():
                if self._verified_state(log_id, first, mask, count, deleted_bytes, stored_sum) is None:
                    hidden.add((due_ms, first))
                elif due_ms is not None:
                    deleted[first] = (count, deleted_bytes)
                    messages -= count
                    size_bytes -= deleted_bytes
                    delayed -= count if due_ms > now_ms else 0
            for kind, due_ms, first in reader.execute(statements.load_quarantined, (log_id,)).fetchall():
                if kind == "segments" and first >= trimmed:
                    hidden.add((due_ms, first))
            for due_ms, first in hidden:
                size = reader.execute(statements.load_segment_size, (log_id, due_ms, first)).fetchone()
                if size is not None:
                    deleted_count, deleted_bytes = deleted.get(first, (0, 0))
                    messages -= size[0] - deleted_count
                    size_bytes -= size[1] - deleted_bytes
                    delayed -= size[0] - deleted_count if due_ms > now_ms else 0
        return LogRow(log_id, reserved, trimmed, messages, size_bytes, delayed, last_due_ms)

    def load_deliveries(self, log_id: LogId, after: int, limit: int) -> list[DeliveryRow]:
        """See Store.load_deliveries."""
        found: list[DeliveryRow] = []
        more = limit > 0
        while more:
            more = False
            with self._database.read() as reader:
                parameters = (log_id, after, limit) if self._database.limits_rows else (log_id, after)
                for number, visible_ms, stored_sum, runs in reader.execute(self._statements.load_deliveries, parameters):
                    after = number
                    try:
                        good = checksum.delivery(log_id, number, visible_ms, runs) == stored_sum
                    except (struct.error, TypeError):
                        good = False  # The flip changed a value's type.
                    if good:
                        found.append(DeliveryRow(log_id, number, visible_ms, bytes(runs)))
                        if len(found) == limit:
                            return found
                    else:
                        fields = {"visible_ms": visible_ms, "checksum": stored_sum}
                        self._quarantine(log_id, "deliveries", number, 0, fields, runs)
                        more = self._database.limits_rows
        return found

    def load_deduplication(self, log_id: LogId, since_ms: int) -> list[DeduplicationRow]:
        """See Store.load_deduplication."""
        found = []
        with self._database.read() as reader:
            for at_ms, number, stored_sum, entries in reader.execute(self._statements.load_deduplication, (log_id, since_ms)):
                try:
                    good = checksum.deduplication(log_id, at_ms, number, entries) == stored_sum
                except (struct.error, TypeError):
                    good = False
                if good:
                    found.append(DeduplicationRow(log_id, at_ms, number, bytes(entries)))
                else:
                    self._quarantine(log_id, "deduplication", at_ms, number, {"checksum": stored_sum}, entries)
        return found

    def load_arrivals(
        self, log_id: LogId, after: tuple[int, int], until_due_ms: int, max_segments: int, max_bytes: int
    ) -> list[LoadedSegment]:
        """See Store.load_arrivals."""
        found: list[LoadedSegment] = []
        total_bytes = 0
        more = max_segments > 0
        while more:
            more = False
            parameters: tuple[int, ...] = (log_id, *after, until_due_ms)
            if self._database.limits_rows:
                parameters += (max_segments, log_id, max(1, max_bytes - total_bytes))
            with self._database.read() as reader:
                for row in reader.execute(self._statements.load_arrivals, parameters):
                    after = (row[1], row[2])
                    loaded = self._verified(row)
                    if loaded is None:
                        more = self._database.limits_rows
                        continue
                    found.append(loaded)
                    total_bytes += len(row[-1])
                    if len(found) == max_segments or total_bytes >= max_bytes:
                        return found
        return found

    def load_stream(self, log_id: LogId, position: int, max_segments: int, max_bytes: int) -> list[SegmentRow]:
        """See Store.load_stream."""
        parameters = (position, log_id, position, log_id)
        return self._load_from(self._statements.load_stream, parameters, position, max_segments, max_bytes)

    def load_heads(self, log_id: LogId, position: int, limit: int) -> list[SegmentRow]:
        """See Store.load_heads."""
        return self._load_from(self._statements.load_heads, (log_id, position, log_id), position, limit, None)

    def _load_from(
        self, text: str, parameters: tuple[int, ...], position: int, max_segments: int, max_bytes: int | None
    ) -> list[SegmentRow]:
        """Rows of SEGMENT_HEAD and, with `max_bytes`, checksum and payload: in order, from the one that contains the position."""
        found: list[SegmentRow] = []
        total_bytes = 0
        after = -1
        more = max_segments > 0
        while more:
            more, seen = False, 0
            limits: tuple[int, ...] = ()
            if self._database.limits_rows:
                limits = (after, max_segments) if max_bytes is None else (after, max_segments, max(1, max_bytes - total_bytes))
            with self._database.read() as reader:
                for row in reader.execute(text, parameters + limits):
                    after, seen = row[2], seen + 1
                    segment = self._verified_in_stream(row, position)
                    if segment is None:
                        more = self._database.limits_rows
                    elif segment.first + segment.count > position:
                        found.append(segment)
                        total_bytes += len(segment.payload or b"")
                        if len(found) == max_segments or (max_bytes is not None and total_bytes >= max_bytes):
                            return found
            # A full page that one segment before the position was on.
            more = more or (self._database.limits_rows and seen == max_segments)
        return found

    def load_segments(self, keys: Sequence[SegmentKey]) -> list[LoadedSegment]:
        """See Store.load_segments."""
        wanted: defaultdict[LogId, list[int]] = defaultdict(list)
        for key in keys:
            wanted[key.log_id].append(key.first)
        found = {}
        for log_id, firsts in wanted.items():
            for loaded in self._load_firsts(self._statements.load_segments, log_id, firsts):
                found[loaded.segment.key] = loaded
        return [found[key] for key in keys if key in found]

    def locate_segments(self, log_id: LogId, firsts: Sequence[int]) -> list[LoadedSegment]:
        """See Store.locate_segments."""
        return self._load_firsts(self._statements.locate_segments, log_id, firsts)

    def _load_firsts(self, text: str, log_id: LogId, firsts: Sequence[int]) -> list[LoadedSegment]:
        found = []
        for start in range(0, len(firsts), FIRSTS_AT_ONCE):
            some = self._database.firsts(firsts[start : start + FIRSTS_AT_ONCE])
            with self._database.read() as reader:
                rows: Iterable[Any] = reader.execute(text, (log_id, some)).fetchall()
            for row in rows:
                loaded = self._verified(row)
                if loaded is not None:
                    found.append(loaded)
        return found

    def _verified(self, row: Any) -> LoadedSegment | None:
        """A row of SEGMENT_HEAD, STATE and perhaps checksum and payload; None when it goes to quarantine."""
        log_id, due_ms, first, count, size_bytes, sent_ms, head_sum, deleted, deleted_count, deleted_bytes, state_sum = row[
            :LOCATED_WIDTH
        ]
        payload = row[-1] if len(row) > LOCATED_WIDTH else None
        try:
            good = checksum.segment_head(log_id, due_ms, first, count, size_bytes, sent_ms) == head_sum
            if len(row) > LOCATED_WIDTH:
                good = good and checksum.segment(head_sum, row[-1]) == row[-2]
        except (struct.error, TypeError):
            good = False
        state = None
        if deleted is not None or state_sum is not None:
            state = self._verified_state(log_id, first, deleted, deleted_count, deleted_bytes, state_sum)
            good = good and state is not None
        if not good:
            fields = {
                "count": count, "size_bytes": size_bytes, "sent_ms": sent_ms, "head_checksum": head_sum,
                "checksum": row[-2] if len(row) > LOCATED_WIDTH else None,
            }  # fmt: skip
            self._quarantine(log_id, "segments", due_ms, first, fields, payload)
            return None
        payload = None if payload is None else bytes(payload)
        return LoadedSegment(SegmentRow(log_id, due_ms, first, count, size_bytes, sent_ms, payload), state)

    def _verified_in_stream(self, row: Any, position: int) -> SegmentRow | None:
        """A row of SEGMENT_HEAD and perhaps checksum and payload; None when it goes to quarantine.

        The payload of a segment that ends before the position was not read."""
        head, content = (*row[: len(SEGMENT_HEAD)], *NO_STATE), row[len(SEGMENT_HEAD) :]
        if content and content[-1] is None:
            loaded = self._verified(head)
            if loaded is None or loaded.segment.first + loaded.segment.count <= position:
                return None if loaded is None else loaded.segment
        loaded = self._verified((*head, *content))
        return None if loaded is None else loaded.segment

    def _verified_state(
        self, log_id: LogId, first: int, deleted: Any, deleted_count: int, deleted_bytes: int, stored_sum: int
    ) -> StateRow | None:
        """The state, or None when it goes to quarantine."""
        try:
            if checksum.state(log_id, first, deleted_count, deleted_bytes, deleted) == stored_sum:
                return StateRow(log_id, first, bytes(deleted), deleted_count, deleted_bytes)
        except (struct.error, TypeError):
            pass  # The flip changed a value's type: like a wrong checksum.
        fields = {"deleted_count": deleted_count, "deleted_bytes": deleted_bytes, "checksum": stored_sum}
        self._quarantine(log_id, "segment_states", first, 0, fields, deleted)
        return None

    def _quarantine(self, log_id: int, kind: str, key_1: int, key_2: int, fields: dict[str, Any], content: Any) -> None:
        with self._lock:
            key = (log_id, kind, key_1, key_2)
            if key in self._corrupt:
                return
            self._corrupt.add(key)
        logger.critical(
            "corrupt row in %s of log %d, key (%d, %d): its checksum is wrong; it is not served any more",
            kind, log_id, key_1, key_2,
        )  # fmt: skip
        raw = content if isinstance(content, bytes) else str(content).encode()
        row = (log_id, kind, key_1, key_2, json.dumps(fields, default=repr), raw)
        try:
            self._database.note(self._statements.insert_quarantine, row)
        except StoreError as error:
            # The row itself is still there, and is left out as long as this store is open.
            logger.error("could not copy a corrupt row of log %d to the quarantine: %s", log_id, error)

    def _compile(self, statement: sa.Select[Any]) -> str:
        return str(statement.compile(dialect=self._database.dialect))
