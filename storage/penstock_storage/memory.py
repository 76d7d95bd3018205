"""The store in memory, for simulation: same contract, no disk, and faults on demand.

A `MemoryDisk` is what survives: open a new `MemoryStore` on it and everything that was committed is there, and nothing
else. Several stores may be open on one disk at once, like several brokers on one database; fences keep them apart.

It reads no clock and rolls no dice: the same calls give the same answers. Faults come from a callable that the owner
gives; it is asked at each point by name and says what goes wrong there.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Sequence

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
    StateRow,
    StoreFull,
    StoreUnreachable,
)
from penstock_storage.steps import adds


class Fault(enum.Enum):
    """What goes wrong. Loads know only one way to fail: each of these makes them raise StoreUnreachable."""

    FAIL = "CommitFailed, nothing happened"
    FULL = "StoreFull if it adds something, nothing happened; otherwise no fault"
    UNKNOWN_APPLIED = "CommitUnknown, and it is durable"
    UNKNOWN_LOST = "CommitUnknown, and nothing happened"


Faults = Callable[[str], Fault | None]
"""Asked with `acquire`, `commit`, `sweep`, `next_id` or `load`."""


@dataclasses.dataclass(slots=True)
class _Log:
    reserved: int = 0
    trimmed: int = 0
    swept: int = 0
    garbage: bool = False
    segments: dict[tuple[int, int], SegmentRow] = dataclasses.field(default_factory=dict)
    order: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    """The keys of `segments`, sorted."""
    due_of: dict[int, int] = dataclasses.field(default_factory=dict)
    """Due time by first sequence number."""
    states: dict[int, StateRow] = dataclasses.field(default_factory=dict)
    deliveries: dict[int, DeliveryRow] = dataclasses.field(default_factory=dict)
    deduplication: dict[tuple[int, int], DeduplicationRow] = dataclasses.field(default_factory=dict)


class MemoryDisk:
    """What is durable. Shared by the stores that are opened on it, one after the other or at the same time."""

    def __init__(self, secret: bytes = bytes(32)) -> None:
        """An empty disk. `secret` is what `cluster_secret` returns."""
        self.secret = secret
        self.lock = threading.RLock()
        self.rotten: set[SegmentKey] = set()
        """Segments whose content has decayed: put keys here to see them go to quarantine."""
        self.commits = 0
        """How many commits became durable."""
        self.counters = {"incarnation": 0, "next_id": 0}
        self.fences: dict[str, int] = {}
        self.resources: dict[int, ResourceRow] = {}
        self.credentials: dict[str, CredentialRow] = {}
        self.logs: dict[LogId, _Log] = {}


def _name(resource: ResourceRow) -> tuple[str, str, str, str]:
    return resource.account, resource.region, resource.kind, resource.name


class MemoryStore:
    """A store on a MemoryDisk. Thread-safe."""

    def __init__(self, disk: MemoryDisk, faults: Faults | None = None) -> None:
        """Opens the disk. `faults` may be None for none."""
        self._disk = disk
        self._faults = faults
        self._doubtful = 0
        self._closed = False
        self._met: set[SegmentKey] = set()
        self._full = False

    @property
    def quarantined(self) -> int:
        """How many decayed segments were met by this store."""
        return len(self._met)

    @property
    def is_quick(self) -> bool:
        """Never: so the simulation decides when a commit ends."""
        return False

    @property
    def full(self) -> bool:
        """Whether the last commit that added something met Fault.FULL."""
        return self._full

    def acquire(self, node: str, address: str, now_ms: int) -> Incarnation:
        """See Store.acquire."""
        with self._disk.lock:
            fault = self._ask("acquire")
            if fault is not None and fault is not Fault.UNKNOWN_APPLIED:
                raise StoreUnreachable("injected")
            number = self._count_up("incarnation")
            self._disk.fences = dict.fromkeys([*self._disk.fences, node], number)
            if fault is Fault.UNKNOWN_APPLIED:
                raise CommitUnknown("injected")
            return Incarnation(node, number)

    def commit(self, incarnation: Incarnation, commit: Commit) -> None:
        """See Store.commit."""
        with self._disk.lock:
            adding = adds(commit)
            applied = self._fence("commit", incarnation, adding)
            if applied is not Fault.UNKNOWN_LOST:
                self._check(commit)
                self._apply(commit)
                self._disk.commits += 1
            self._full = self._full and not adding
            self._finish(applied, incarnation)

    def sweep(self, incarnation: Incarnation, limit: int) -> int:
        """See Store.sweep."""
        with self._disk.lock:
            applied = self._fence("sweep", incarnation, False)
            removed = 0
            if applied is not Fault.UNKNOWN_LOST:
                removed = self._sweep(limit)
            self._finish(applied, incarnation)
            return removed

    def cluster_secret(self) -> bytes:
        """The disk's secret."""
        self._load()
        return self._disk.secret

    def load_resources(self) -> list[ResourceRow]:
        """See Store.load_resources."""
        with self._disk.lock:
            self._load()
            return [row for _, row in sorted(self._disk.resources.items())]

    def load_credentials(self) -> list[CredentialRow]:
        """See Store.load_credentials."""
        with self._disk.lock:
            self._load()
            return [row for _, row in sorted(self._disk.credentials.items())]

    def next_id(self, incarnation: Incarnation) -> int:
        """See Store.next_id."""
        with self._disk.lock:
            applied = self._fence("next_id", incarnation, False)
            number = 0 if applied is Fault.UNKNOWN_LOST else self._count_up("next_id")
            self._finish(applied, incarnation)
            return number

    def load_log(self, log_id: LogId, now_ms: int) -> LogRow:
        """See Store.load_log."""
        with self._disk.lock:
            self._load()
            log = self._living(log_id)
            if log is None:
                raise KeyError(log_id)
            messages = size_bytes = delayed = last_due_ms = 0
            for row in log.segments.values():
                if row.first < log.trimmed or row.key in self._met:
                    continue
                state = log.states.get(row.first)
                living = row.count - (state.deleted_count if state else 0)
                messages += living
                size_bytes += row.size_bytes - (state.deleted_bytes if state else 0)
                delayed += living if row.due_ms > now_ms else 0
                last_due_ms = max(last_due_ms, row.due_ms)
            return LogRow(log_id, log.reserved, log.trimmed, messages, size_bytes, delayed, last_due_ms)

    def load_deliveries(self, log_id: LogId, after: int, limit: int) -> list[DeliveryRow]:
        """See Store.load_deliveries."""
        with self._disk.lock:
            self._load()
            log = self._living(log_id)
            if log is None:
                return []
            numbers = sorted(number for number in log.deliveries if number > after and number >= log.trimmed)
            return [log.deliveries[number] for number in numbers[: max(0, limit)]]

    def load_deduplication(self, log_id: LogId, since_ms: int) -> list[DeduplicationRow]:
        """See Store.load_deduplication."""
        with self._disk.lock:
            self._load()
            log = self._living(log_id)
            if log is None:
                return []
            return [row for key, row in sorted(log.deduplication.items()) if key[0] >= since_ms]

    def load_arrivals(
        self, log_id: LogId, after: tuple[int, int], until_due_ms: int, max_segments: int, max_bytes: int
    ) -> list[LoadedSegment]:
        """See Store.load_arrivals."""
        with self._disk.lock:
            self._load()
            log = self._living(log_id)
            found: list[LoadedSegment] = []
            total_bytes = 0
            if log is None or max_segments <= 0:
                return found
            for position in range(bisect_right(log.order, after), len(log.order)):
                key = log.order[position]
                if key[0] > until_due_ms:
                    break
                loaded = self._read(log, key, True)
                if loaded is None:
                    continue
                found.append(loaded)
                total_bytes += len(loaded.segment.payload or b"")
                if len(found) == max_segments or total_bytes >= max_bytes:
                    break
            return found

    def load_stream(self, log_id: LogId, position: int, max_segments: int, max_bytes: int) -> list[SegmentRow]:
        """See Store.load_stream."""
        with self._disk.lock:
            self._load()
            found: list[SegmentRow] = []
            total_bytes = 0
            for row in self._stream(log_id, position):
                if len(found) >= max_segments or (found and total_bytes >= max_bytes):
                    break
                log = self._disk.logs[log_id]
                loaded = self._read(log, (row.due_ms, row.first), True)
                if loaded is not None:
                    found.append(loaded.segment)
                    total_bytes += len(loaded.segment.payload or b"")
            return found

    def load_heads(self, log_id: LogId, position: int, limit: int) -> list[SegmentRow]:
        """See Store.load_heads."""
        with self._disk.lock:
            self._load()
            rows = itertools.islice(self._stream(log_id, position), max(0, limit))
            return [dataclasses.replace(row, payload=None) for row in rows]

    def load_segments(self, keys: Sequence[SegmentKey]) -> list[LoadedSegment]:
        """See Store.load_segments."""
        with self._disk.lock:
            self._load()
            found = []
            for key in keys:
                log = self._living(key.log_id)
                loaded = self._read(log, (key.due_ms, key.first), True) if log else None
                if loaded is not None:
                    found.append(loaded)
            return found

    def locate_segments(self, log_id: LogId, firsts: Sequence[int]) -> list[LoadedSegment]:
        """See Store.locate_segments. Decay shows only where the payload is read."""
        with self._disk.lock:
            self._load()
            log = self._living(log_id)
            if log is None:
                return []
            found = []
            for first in dict.fromkeys(firsts):
                if first in log.due_of:
                    loaded = self._read(log, (log.due_of[first], first), False)
                    if loaded is not None:
                        found.append(loaded)
            return found

    def close(self) -> None:
        """From now on this store cannot reach its disk."""
        self._closed = True

    # Faults and fences

    def _ask(self, point: str) -> Fault | None:
        if self._closed:
            raise StoreUnreachable("the store is closed")
        return self._faults(point) if self._faults is not None else None

    def _load(self) -> None:
        if self._ask("load") is not None:
            raise StoreUnreachable("injected")

    def _fence(self, point: str, incarnation: Incarnation, adding: bool) -> Fault | None:
        """The fault that is still to come, once fence and space are given."""
        if self._closed:
            raise CommitFailed("the store is closed")
        if incarnation.number <= self._doubtful:
            raise CommitFailed(f"a commit of {incarnation} has an unknown outcome; acquire again")
        fault = self._ask(point)
        if fault is Fault.FAIL:
            raise CommitFailed("injected")
        if self._disk.fences.get(incarnation.node) != incarnation.number:
            raise Fenced(f"{incarnation} was taken over")
        if fault is Fault.FULL:
            if adding:
                self._full = True
                raise StoreFull("injected")
            return None
        return fault

    def _finish(self, applied: Fault | None, incarnation: Incarnation) -> None:
        if applied is not None:
            self._doubtful = max(self._doubtful, incarnation.number)
            raise CommitUnknown("injected")

    def _count_up(self, name: str) -> int:
        self._disk.counters[name] += 1
        return self._disk.counters[name]

    # Rows

    def _living(self, log_id: LogId) -> _Log | None:
        log = self._disk.logs.get(log_id)
        return None if log is None or log.garbage else log

    def _read(self, log: _Log, key: tuple[int, int], with_payload: bool) -> LoadedSegment | None:
        row = log.segments.get(key)
        if row is None or row.first < log.trimmed or row.key in self._met:
            return None
        if with_payload and row.key in self._disk.rotten:
            self._met.add(row.key)
            return None
        return LoadedSegment(row if with_payload else dataclasses.replace(row, payload=None), log.states.get(row.first))

    def _stream(self, log_id: LogId, position: int) -> Iterator[SegmentRow]:
        """What load_stream and load_heads read, whether it has decayed or not."""
        log = self._living(log_id)
        if log is None:
            return
        start = max(bisect_right(log.order, (0, position)) - 1, bisect_left(log.order, (0, log.trimmed)))
        for at in range(start, len(log.order)):
            row = log.segments[log.order[at]]
            if row.first + row.count > position:
                yield row

    def _check(self, commit: Commit) -> None:
        """Refuses before anything is applied what a database would refuse half way."""
        names = {}
        if commit.upsert_resources:
            names = {_name(resource): resource.resource_id for resource in self._disk.resources.values()}
        for resource in commit.upsert_resources:
            if names.setdefault(_name(resource), resource.resource_id) != resource.resource_id:
                raise CommitFailed(f"there is a {resource.kind} {resource.name} already")
        new = set()
        for segment in (*commit.insert_segments, *commit.rewrites):
            if segment.payload is None:
                raise ValueError("a segment that was loaded without its payload cannot be written")
        for row in commit.insert_segments:
            log = self._disk.logs.get(row.log_id)
            if row.key in new or (log is not None and (row.due_ms, row.first) in log.segments):
                raise CommitFailed(f"there is a segment {row.key} already")
            new.add(row.key)
        seen = set()
        for entry in commit.insert_deduplication:
            log = self._disk.logs.get(entry.log_id)
            key = (entry.log_id, entry.at_ms, entry.number)
            if key in seen or (log is not None and key[1:] in log.deduplication):
                raise CommitFailed(f"there is a deduplication row {key} already")
            seen.add(key)

    def _apply(self, commit: Commit) -> None:
        disk = self._disk
        for resource in commit.upsert_resources:
            disk.resources[resource.resource_id] = resource
            disk.logs.setdefault(resource.log_id, _Log())
        for resource in commit.delete_resources:
            disk.resources.pop(resource.resource_id, None)
            if resource.log_id in disk.logs:
                disk.logs[resource.log_id].garbage = True
        for log_id, bound in commit.reservations:
            if log_id in disk.logs:
                disk.logs[log_id].reserved = max(disk.logs[log_id].reserved, bound)
        for log_id, bound in commit.trims:
            if log_id in disk.logs:
                disk.logs[log_id].trimmed = max(disk.logs[log_id].trimmed, bound)
        for row in commit.insert_segments:
            if row.log_id in disk.logs:
                log = disk.logs[row.log_id]
                log.segments[(row.due_ms, row.first)] = row
                log.due_of[row.first] = row.due_ms
                insort(log.order, (row.due_ms, row.first))
        for key in commit.delete_segments:
            if key.log_id in disk.logs:
                _drop(disk.logs[key.log_id], (key.due_ms, key.first))
        for row in commit.rewrites:
            log_of_row = disk.logs.get(row.log_id)
            old = log_of_row.segments.get((row.due_ms, row.first)) if log_of_row else None
            if log_of_row and old and old.count == row.count:
                log_of_row.segments[(row.due_ms, row.first)] = row
        for state in commit.upsert_states:
            if state.log_id in disk.logs:
                disk.logs[state.log_id].states[state.first] = state
        for log_id, first in commit.delete_states:
            if log_id in disk.logs:
                disk.logs[log_id].states.pop(first, None)
        for delivery in commit.upsert_deliveries:
            if delivery.log_id in disk.logs:
                disk.logs[delivery.log_id].deliveries[delivery.number] = delivery
        for log_id, number in commit.delete_deliveries:
            if log_id in disk.logs:
                disk.logs[log_id].deliveries.pop(number, None)
        for entry in commit.insert_deduplication:
            if entry.log_id in disk.logs:
                disk.logs[entry.log_id].deduplication[(entry.at_ms, entry.number)] = entry
        for log_id, before_ms in commit.forget_deduplication:
            if log_id in disk.logs:
                rows = disk.logs[log_id].deduplication
                for old_key in [old_key for old_key in rows if old_key[0] < before_ms]:
                    del rows[old_key]
        for credential in commit.upsert_credentials:
            disk.credentials[credential.key_id] = credential
        for key_id in commit.delete_credentials:
            disk.credentials.pop(key_id, None)

    def _sweep(self, limit: int) -> int:
        removed = 0
        for log_id, log in sorted(self._disk.logs.items()):
            if not log.garbage and log.swept >= log.trimmed:
                continue
            everything = log.garbage
            for key in [key for key in log.order if everything or key[1] < log.trimmed][: limit - removed]:
                _drop(log, key)
                removed += 1
            for table in (log.states, log.deliveries):
                for number in sorted(n for n in table if everything or n < log.trimmed)[: limit - removed]:
                    del table[number]
                    removed += 1
            if everything:
                for old_key in sorted(log.deduplication)[: limit - removed]:
                    del log.deduplication[old_key]
                    removed += 1
            if removed >= limit:
                break
            log.swept = log.trimmed
            if everything:
                del self._disk.logs[log_id]
        return removed


def _drop(log: _Log, key: tuple[int, int]) -> None:
    if log.segments.pop(key, None) is not None:
        del log.order[bisect_left(log.order, key)]
        log.due_of.pop(key[1], None)
