# Generated from clients/penstock/_async/producer.py by tools/generate_blocking_client.py (make sync-client): edit that file.
"""A producer: records are put into a buffer and sent from there, as fast as the broker takes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self

from penstock import _backend_threads as backend
from penstock._sync.putting import MAX_BATCH, Lanes, PutBatch
from penstock.errors import ClientClosed, PenstockError, PutFailed, RecordTooLarge
from penstock.forks import FORKED
from penstock.records import (
    Columns,
    OutgoingRecord,
    hash_bytes,
    problem_of,
    record_bytes,
    size_of,
    zstandard,
)
from penstock_protocol import stream_messages as wire

if TYPE_CHECKING:
    from penstock._sync.stream import Stream

RECORDS_PER_TURN: Final = 256
"""Records that are put one by one before other tasks get a turn, the one that sends among them."""

GATHERED_PER_SHARD: Final = 32
"""Records that come in columns are grouped by shard when there are so many for each on average: grouping has a cost for each
shard that gets any."""

LOOK_SECONDS: Final = 5.0
"""How often somebody who waits for room looks whether the client is still there, and the timer whether it is needed."""

CLOSE_SECONDS: Final = 5.0
"""How long a block that ends with an error waits for what was in the buffer."""


class Producer:
    """Made by Stream.producer; used as `with`, whose end sends everything and waits for it.

    `put` returns as soon as a record is in the buffer. A shard's batch is sent when it is full (`max_records`, `max_bytes`) or
    `linger` seconds old, and the one before it was answered; under load batches grow by themselves, for over all shards only 32
    are on their way at a time. When `buffer_bytes` wait for their answer, `put` waits. Batches are repeated over lost connections
    and restarts of the broker for `delivery_timeout` seconds, without making second records; records of a shard keep their order
    (unless `ordered` is False). A split or merge of shards is followed.

    What is refused for good, or could not be delivered in time, is told by PutFailed out of the next `put` or `flush`, or at
    the end of the block: `.records` has it. A record is told of once.

        >>> stream = client.create_stream("clicks")
        >>> with stream.producer(linger=0.01) as producer:
        ...     for number in range(1000):
        ...         producer.put(f"click {number}", f"visitor {number % 7}")
        >>> producer.delivered
        1000
    """

    def __init__(
        self,
        stream: Stream,
        *,
        max_records: int,
        max_bytes: int,
        linger: float,
        compression: Literal["zstd"] | None,
        buffer_bytes: int,
        delivery_timeout: float,
        ordered: bool,
    ) -> None:
        if not 1 <= max_records <= MAX_BATCH:
            raise ValueError(f"max_records = {max_records}; it must be 1 to {MAX_BATCH}")
        if min(max_bytes, buffer_bytes) < 1 or linger < 0:
            raise ValueError("max_bytes and buffer_bytes must be at least 1, linger 0 or more")
        if compression not in (None, "zstd"):
            raise ValueError(f"compression = {compression!r}; it must be None or 'zstd'")
        if compression is not None:
            zstandard()
        self._stream = stream
        self._link = stream.link
        self._buffer_bytes = buffer_bytes
        self._linger = linger
        self._lanes = Lanes(
            stream.link,
            stream.name,
            stream.sequences,
            stream.shard_map,
            timeout=delivery_timeout,
            ordered=ordered,
            max_records=max_records,
            max_bytes=max_bytes,
            codec=wire.PLAIN if compression is None else wire.ZSTD,
            linger=linger,
            on_done=self._answered,
            on_open=self._opened,
        )
        self._tasks = backend.Tasks()
        self._gathered = Columns([], [], None, 0)
        self._gathered_since = 0.0
        self._outstanding: dict[PutBatch, None] = {}
        self._failures: list[tuple[PenstockError, OutgoingRecord]] = []
        self._room = backend.Event()
        self._wake = backend.Event()
        self._look_at = math.inf
        self._is_open = False
        self._turn = 0
        self.delivered = 0
        """Records that the broker has stored."""
        self.buffered_bytes = 0
        """Data and keys that wait for their answer."""

    def __enter__(self) -> Self:
        self._tasks.__enter__()
        self._is_open = True
        self._tasks.spawn(self._keep_time)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._link.mutex:
            self._is_open = False
        try:
            if error is None:
                self.flush()
            else:
                with backend.shielded(CLOSE_SECONDS):
                    self._deliver(CLOSE_SECONDS)
        finally:
            with self._link.mutex:
                self._wake.set()
                self._room.set()
            self._tasks.__exit__(None, None, None)

    # Putting

    def put(self, data: bytes | str, key: str, *, hash_key: int | None = None) -> None:
        """Puts a record into the buffer; waits while that is full. InvalidRequest and RecordTooLarge are raised at once, and
        PutFailed for earlier records; this one was not taken then. After a cancellation it was not taken either."""
        content = record_bytes(data)
        explicit = hash_bytes(hash_key)
        size_bytes = size_of(content, key)
        shards = self._stream.shard_map.current or self._stream.shard_map.get()
        problem = problem_of(content, key, shards.max_record_bytes)
        if isinstance(problem, RecordTooLarge):  # perhaps more is allowed by now
            problem = problem_of(content, key, (self._stream.shard_map.renew()).max_record_bytes)
        if problem is not None:
            raise problem
        self._turn += 1
        if self._turn % RECORDS_PER_TURN == 0:
            backend.sleep(0)
        while True:
            with self._link.mutex:
                room = self._room_for(size_bytes)
                if room is None:
                    self._group()
                    shards = self._lanes.route(shards)
                    self._lanes.join(shards.shard_of(key, explicit), content, key, explicit, size_bytes)
                    return
            room.wait_for(LOOK_SECONDS)

    def put_many(self, records: Iterable[tuple[bytes | str, str] | OutgoingRecord]) -> None:
        """Puts many records into the buffer, (data, key) or OutgoingRecord, all at once when there is room for any. Records that
        cannot be put at all are told of as all failures are; the others are not held up."""
        self._put(Columns.of_rows(records))

    def put_columns(
        self, data: Sequence[bytes | str], keys: Sequence[str], hash_keys: Sequence[int | None] | None = None
    ) -> None:
        """The same from columns: the fastest way, for no object is made of a record.

        >>> stream = client.create_stream("clicks")
        >>> with stream.producer() as producer:
        ...     producer.put_columns([b"one", b"two"], ["visitor 1", "visitor 2"])
        """
        self._put(Columns.of(data, keys, hash_keys))

    def _put(self, columns: Columns) -> None:
        if not len(columns):
            return
        shards = self._stream.shard_map.current or self._stream.shard_map.get()
        if columns.problems(shards.max_record_bytes):  # perhaps larger records are allowed by now
            shards = self._stream.shard_map.renew()
        backend.sleep(0)
        while True:
            with self._link.mutex:
                room = self._room_for(columns.size_bytes)
                if room is None:
                    shards = self._stream.shard_map.current or shards
                    problems = columns.problems(shards.max_record_bytes)
                    if problems:
                        self._failures += [(problem, columns.row(place)) for place, problem in problems.items()]
                        taken = columns.pick([place for place in range(len(columns)) if place not in problems])
                        self.buffered_bytes -= columns.size_bytes - taken.size_bytes
                        columns = taken
                    self._gather(columns)
                    if not self._linger or len(self._gathered) >= GATHERED_PER_SHARD * len(shards.ids):
                        self._group()
                    return
            room.wait_for(LOOK_SECONDS)

    def _gather(self, columns: Columns) -> None:
        """Puts records behind those that wait to be grouped."""
        if not len(self._gathered):
            self._gathered_since = backend.monotonic()
            self._look_by(self._gathered_since + self._linger)
        self._gathered.extend(columns)

    def _group(self) -> None:
        """Those that waited for it come into their shards' batches."""
        if len(self._gathered):
            gathered, self._gathered = self._gathered, Columns([], [], None, 0)
            shards = self._stream.shard_map.current
            assert shards is not None  # `_put` looked
            for shard, _, some in self._lanes.route(shards).group(gathered):
                self._lanes.extend(shard, some, self._gathered_since)

    def _room_for(self, size_bytes: int) -> backend.Event | None:
        """Counts what comes in if there is room; else the event to wait for. An empty buffer takes anything."""
        if not self._is_open or self._link.is_closed:
            raise ClientClosed(FORKED if self._link.is_left else "the producer is not open: use it inside its `with` block")
        if self._failures:
            self._tell()
        if self.buffered_bytes and self.buffered_bytes + size_bytes > self._buffer_bytes:
            if self._room.is_set():
                self._room = backend.Event()
            return self._room
        self.buffered_bytes += size_bytes
        return None

    def _tell(self) -> None:
        """Raises what has failed since it was told last."""
        failures, self._failures = self._failures, []
        raise PutFailed(
            f"{len(failures)} records were not put; the first: {failures[0][0]}",
            {place: problem for place, (problem, _) in enumerate(failures)},
            [record for _, record in failures],
        )

    # What becomes of batches

    def _opened(self, batch: PutBatch) -> None:
        """The first record came into a batch; the mutex is held."""
        self._outstanding[batch] = None
        self._look_by(batch.due)

    def _look_by(self, due: float) -> None:
        """The task that keeps time looks then, if not before."""
        if due < self._look_at:
            self._look_at = due
            self._wake.set()

    def _answered(self, batch: PutBatch) -> None:
        failures = []
        if batch.has_failures:
            outcomes = batch.outcomes()
            failures = [(one, batch.columns.row(place)) for place, one in enumerate(outcomes) if isinstance(one, PenstockError)]
        with self._link.mutex:
            self._failures += failures
            self.delivered += len(batch) - len(failures)
            self.buffered_bytes -= batch.columns.size_bytes
            self._outstanding.pop(batch, None)
            self._room.set()

    def flush(self) -> None:
        """Sends everything that was put so far, and waits until it is durable. PutFailed when some of it is not, or was not
        before. After a cancellation it goes its way in the background."""
        self._deliver(math.inf)
        with self._link.mutex:
            if self._failures:
                self._tell()

    def _deliver(self, seconds: float) -> None:
        until = backend.monotonic() + seconds
        with self._link.mutex:
            self._group()
            self._lanes.ripen(math.inf)
            waiting = list(self._outstanding)
        for batch in waiting:
            while not batch.done.wait_for(min(LOOK_SECONDS, until - backend.monotonic())):
                if backend.monotonic() >= until or self._link.is_closed:
                    return

    def _keep_time(self) -> None:
        """Sends what has waited long enough for more."""
        while True:
            with self._link.mutex:
                if not self._is_open or self._link.is_closed:
                    return
                now = backend.monotonic()
                due = self._gathered_since + self._linger if len(self._gathered) else math.inf
                if due <= now:
                    self._group()
                    due = math.inf
                self._look_at = min(due, self._lanes.ripen(now))
                self._wake = wake = backend.Event()
                seconds = min(LOOK_SECONDS, self._look_at - now)
            wake.wait_for(seconds)
