"""What the broker needs of a store: rows in, rows out, one fenced commit at a time.

Everything here is synchronous and is called from worker threads; implementations are thread-safe. Rows are frozen
dataclasses; no SQL type leaks out. There are two implementations, `sql.SqlStore` and `memory.MemoryStore`, and one
contract suite (tests/storage) that runs over both.

A queue's log in rows:

- a `SegmentRow` holds messages that were committed together and is never rewritten (but see `Commit.rewrites`);
- a `StateRow` beside it says which of its messages are deleted, once some but not all are;
- a `DeliveryRow` says what one receive took, until when, and how often each was received before;
- a `DeduplicationRow` holds what one commit must remember for idempotent sends.

The outcome of a commit is one of three: it returns (durable), it raises CommitFailed (nothing happened), or it raises
CommitUnknown (anybody's guess). Fenced is CommitFailed for good: another incarnation owns the slots.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import NewType, Protocol

LogId = NewType("LogId", int)
"""Names a log for ever; never used again after its resource is deleted."""


class StoreError(Exception):
    """Base of what a store raises. `str(error)` is fit for an operator to read."""


class StoreUnreachable(StoreError):
    """The database does not answer, or refuses the login."""


class StoreLocked(StoreError):
    """Another broker has the embedded store open."""


class SchemaTooNew(StoreError):
    """A newer Penstock wrote this store; this one must not touch it."""


class StoreFull(StoreError):
    """No space left; nothing was written."""


class CommitFailed(StoreError):
    """The commit certainly did not happen."""


class CommitUnknown(StoreError):
    """The commit may or may not have happened: call `acquire` again, then load what it touched anew."""


class Fenced(CommitFailed):
    """This incarnation may not commit any more; another one has taken over."""


class CorruptRow(StoreError):
    """A row's checksum does not fit its content. The row was put in quarantine: it is neither served nor deleted."""


@dataclasses.dataclass(frozen=True, slots=True)
class Incarnation:
    """One life of one broker. Each `acquire` makes a higher number; commits carry it and are refused once it is old."""

    node: str
    number: int


@dataclasses.dataclass(frozen=True, slots=True)
class ResourceRow:
    """A queue (later: topic, stream …). `attributes` is JSON text that only its service understands."""

    resource_id: int
    account: str
    region: str
    kind: str
    name: str
    log_id: LogId
    attributes: str
    version: int
    created_ms: int
    modified_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class CredentialRow:
    """An access key; `sealed_secret` is encrypted by the broker."""

    key_id: str
    account: str
    role: str
    description: str
    sealed_secret: bytes
    created_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class SegmentKey:
    """Finds a segment. `due_ms` is 0 for messages that were visible at once, else when they become visible."""

    log_id: LogId
    due_ms: int
    first: int


@dataclasses.dataclass(frozen=True, slots=True)
class SegmentRow:
    """Messages `first` to `first + count - 1`. `size_bytes` is what they count against limits (not the payload's length).
    `payload` is None only in rows loaded without it."""

    log_id: LogId
    due_ms: int
    first: int
    count: int
    size_bytes: int
    sent_ms: int
    payload: bytes | None

    @property
    def key(self) -> SegmentKey:
        """The row's key."""
        return SegmentKey(self.log_id, self.due_ms, self.first)


@dataclasses.dataclass(frozen=True, slots=True)
class StateRow:
    """`deleted` is a little-endian bit mask over the segment's indexes; counts and sizes are those of deleted messages."""

    log_id: LogId
    first: int
    deleted: bytes
    deleted_count: int
    deleted_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class DeliveryRow:
    """What one receive took. `number` comes from the log's sequence numbers. `runs` is opaque here (msgpack)."""

    log_id: LogId
    number: int
    visible_ms: int
    runs: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class DeduplicationRow:
    """What one commit must remember; forgotten by `Commit.forget_deduplication`. `number` makes the key unique in its log."""

    log_id: LogId
    at_ms: int
    number: int
    entries: bytes


@dataclasses.dataclass(slots=True)
class Commit:
    """Everything one commit writes, applied in the order of the fields, all or nothing.

    An upsert replaces the row with the same key. Deleting what is not there is no error. `trims` set a log's trim
    point: every segment with a lower first sequence number no longer exists for any load, and `sweep` removes it later.
    """

    upsert_resources: list[ResourceRow] = dataclasses.field(default_factory=list)
    """The log of a resource is created with it. A name belongs to one resource of its account, region and kind: CommitFailed for
    another one, also in the commit that deletes the first."""
    delete_resources: list[ResourceRow] = dataclasses.field(default_factory=list)
    """Its log becomes garbage: nothing of it is ever loaded again, `sweep` removes its rows."""
    reservations: list[tuple[LogId, int]] = dataclasses.field(default_factory=list)
    """(log, bound): sequence numbers below the bound may be in use from now on."""
    trims: list[tuple[LogId, int]] = dataclasses.field(default_factory=list)
    insert_segments: list[SegmentRow] = dataclasses.field(default_factory=list)
    delete_segments: list[SegmentKey] = dataclasses.field(default_factory=list)
    """Without their states: those are in `delete_states`."""
    rewrites: list[SegmentRow] = dataclasses.field(default_factory=list)
    """Replaces payload and size of a segment of the same key and count, when most of it is dead."""
    upsert_states: list[StateRow] = dataclasses.field(default_factory=list)
    delete_states: list[tuple[LogId, int]] = dataclasses.field(default_factory=list)
    upsert_deliveries: list[DeliveryRow] = dataclasses.field(default_factory=list)
    delete_deliveries: list[tuple[LogId, int]] = dataclasses.field(default_factory=list)
    insert_deduplication: list[DeduplicationRow] = dataclasses.field(default_factory=list)
    forget_deduplication: list[tuple[LogId, int]] = dataclasses.field(default_factory=list)
    """(log, before_ms): rows with a lower `at_ms` go."""
    upsert_credentials: list[CredentialRow] = dataclasses.field(default_factory=list)
    delete_credentials: list[str] = dataclasses.field(default_factory=list)

    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return not any(_parts_of(self))


_parts_of = operator.attrgetter(*(field.name for field in dataclasses.fields(Commit)))


@dataclasses.dataclass(frozen=True, slots=True)
class LogRow:
    """What is known of a log without its messages. `reserved`: the first sequence number that was never handed out.
    Totals count what is stored and not deleted, from the trim point on."""

    log_id: LogId
    reserved: int
    trimmed: int
    messages: int
    size_bytes: int
    delayed_messages: int
    """Those of segments due after the `now_ms` given to `load_log`."""
    last_due_ms: int = 0
    """When the last segment is due, or was; 0 if all were visible at once."""


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedSegment:
    """A segment with what is deleted of it (None: nothing)."""

    segment: SegmentRow
    state: StateRow | None


class Store(Protocol):
    """A store. Every method may block for as long as the database takes; none may be abandoned half way.

    Loads raise StoreError (StoreUnreachable …) and see every commit that returned before they were called. A segment
    whose checksum is wrong is put in quarantine, left out of the result and counted in `quarantined`."""

    @property
    def quarantined(self) -> int:
        """How many corrupt rows were met since the store was opened."""

    @property
    def full(self) -> bool:
        """Whether the disk is full: commits that add segments, deduplication rows, resources or credentials raise
        StoreFull, so keep them apart from deletes, which go through. Ends by itself when there is space again."""

    @property
    def is_quick(self) -> bool:
        """Whether a small commit, begun now, takes well below a millisecond as a rule: then it may be made in a thread that has
        other things to do. Never where the network is in between, nor while something else holds the store."""

    def acquire(self, node: str, address: str, now_ms: int) -> Incarnation:
        """Takes (or takes again) all slots for `node` under a new incarnation, after any commit still running under the
        old one has ended. From then on every commit of an older incarnation raises Fenced."""

    def commit(self, incarnation: Incarnation, commit: Commit) -> None:
        """Makes it durable in one transaction that holds the fence. CommitFailed, Fenced or CommitUnknown otherwise;
        StoreFull (nothing happened) when there is no space."""

    def sweep(self, incarnation: Incarnation, limit: int) -> int:
        """Removes up to `limit` rows that lie before their log's trim point or belong to no resource, in one commit like
        any other. Returns how many: fewer than `limit` means that nothing is left to remove."""

    def cluster_secret(self) -> bytes:
        """32 random bytes, made with the store: the key of receipt handles and cursors."""

    def load_resources(self) -> list[ResourceRow]:
        """Every resource."""

    def load_credentials(self) -> list[CredentialRow]:
        """Every access key."""

    def next_id(self, incarnation: Incarnation) -> int:
        """A number never given before, for resource and log ids: durable when it returns."""

    def load_log(self, log_id: LogId, now_ms: int) -> LogRow:
        """The log's row and totals. KeyError when there is no such log."""

    def load_deliveries(self, log_id: LogId, after: int, limit: int) -> list[DeliveryRow]:
        """Deliveries with number > `after` in order of number, at most `limit`."""

    def load_deduplication(self, log_id: LogId, since_ms: int) -> list[DeduplicationRow]:
        """Rows with at_ms >= since_ms in order."""

    def load_arrivals(
        self, log_id: LogId, after: tuple[int, int], until_due_ms: int, max_segments: int, max_bytes: int
    ) -> list[LoadedSegment]:
        """Segments with (due_ms, first) > `after` and due_ms <= `until_due_ms`, in that order, from the trim point on,
        with payload and state. Stops after `max_segments`, or after the one that brings the payloads to `max_bytes`."""

    def load_stream(self, log_id: LogId, position: int, max_segments: int, max_bytes: int) -> list[SegmentRow]:
        """Segments in the order of `first`, with payload, beginning with the one that contains `position`, or else the first
        after it, from the trim point on. Stops after `max_segments`, or after the one that brings the payloads to `max_bytes`.
        For logs whose segments all have due_ms 0 and no states; costs the same however long the log is."""

    def load_heads(self, log_id: LogId, position: int, limit: int) -> list[SegmentRow]:
        """Like `load_stream`, without payload, at most `limit`. Does not notice that a payload is corrupt."""

    def load_segments(self, keys: Sequence[SegmentKey]) -> list[LoadedSegment]:
        """These segments with payload and state, in the order of the keys; missing ones are left out."""

    def locate_segments(self, log_id: LogId, firsts: Sequence[int]) -> list[LoadedSegment]:
        """These segments by first sequence number alone, without payload, in any order; missing ones are left out."""

    def close(self) -> None:
        """Waits for running calls and lets go of the database and its lock."""
