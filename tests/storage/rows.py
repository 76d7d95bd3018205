"""Short ways to say rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from penstock_storage.interface import (
    Commit,
    DeduplicationRow,
    DeliveryRow,
    Incarnation,
    LoadedSegment,
    LogId,
    ResourceRow,
    SegmentKey,
    SegmentRow,
    StateRow,
    Store,
)


class Home:
    """Where stores keep their rows: `store` is the one that is open, `restart` closes it and opens the next."""

    def __init__(self, make: Callable[[], Store]) -> None:
        self._make = make
        self.store = make()

    def restart(self) -> Store:
        self.store.close()
        self.store = self._make()
        return self.store

    def close(self) -> None:
        self.store.close()


def queue(resource_id: int, log_id: int, name: str = "") -> ResourceRow:
    return ResourceRow(resource_id, "acc", "eu", "queue", name or f"q{resource_id}", LogId(log_id), '{"a": "é"}', 1, 10, 20)


def segment(log_id: int, first: int, count: int = 1, due_ms: int = 0, payload: bytes = b"payload") -> SegmentRow:
    return SegmentRow(LogId(log_id), due_ms, first, count, 100 * count, 5, payload)


def state(log_id: int, first: int, deleted_count: int = 1) -> StateRow:
    return StateRow(LogId(log_id), first, b"\x01\x00\xff", deleted_count, 100 * deleted_count)


def delivery(log_id: int, number: int, visible_ms: int = 50) -> DeliveryRow:
    return DeliveryRow(LogId(log_id), number, visible_ms, b"runs\x00")


def deduplication(log_id: int, at_ms: int, number: int) -> DeduplicationRow:
    return DeduplicationRow(LogId(log_id), at_ms, number, b"entries\x00")


def with_queue(store: Store, log_id: int = 7) -> Incarnation:
    """Acquires, and makes a queue with that log."""
    incarnation = store.acquire("node", "127.0.0.1:1", 1)
    store.commit(incarnation, Commit(upsert_resources=[queue(log_id, log_id)]))
    return incarnation


def key(row: SegmentRow) -> SegmentKey:
    return row.key


def arrivals(store: Store, log_id: int = 7, until_due_ms: int = 10**15) -> list[LoadedSegment]:
    """Everything in the log."""
    return store.load_arrivals(LogId(log_id), (-1, -1), until_due_ms, 10_000, 10**9)


def firsts(found: Sequence[LoadedSegment]) -> list[int]:
    return [loaded.segment.first for loaded in found]
