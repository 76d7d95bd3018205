"""The log of one shard as a state machine: decide in memory, hand out rows to commit, publish what is durable.

A put adds its batch to the open segment; `collect` closes that into a row; after the commit `publish` makes it readable and keeps
it in memory while it belongs to the tip, the newest records, where most readers are. Older records are read from the store,
whole segments at a time. `trim` moves the trim horizon by segments.

The owner discards the whole object when a commit fails, and builds it anew with `Shard.restore`: there is no undo. Nothing
here waits; `now_ms` is wall-clock milliseconds.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections import deque

from penstock_protocol import queue_messages
from penstock_protocol.errors import InvalidRequest, ShardClosed, ThroughputExceeded
from penstock_protocol.queue_messages import Run
from penstock_protocol.stream_messages import PLAIN, Batch, PutRecords, RecordRun
from penstock_storage.interface import Commit, DeduplicationRow, LogId, LogRow, SegmentRow

from penstock_broker.queues.deduplication import Deduplication
from penstock_broker.streams import batches, limits
from penstock_broker.streams.throughput import Throughput


@dataclasses.dataclass(slots=True)
class Counters:
    """What happened since the shard was loaded."""

    records_in: int = 0
    bytes_in: int = 0
    records_out: int = 0
    bytes_out: int = 0
    trimmed: int = 0
    throttled_records: int = 0
    throttled_reads: int = 0


@dataclasses.dataclass(slots=True)
class Segment:
    """Batches that are committed together."""

    first: int
    arrived_ms: int
    batches: list[Batch] = dataclasses.field(default_factory=list)
    count: int = 0
    size_bytes: int = 0
    blob_bytes: int = 0

    def run(self) -> RecordRun:
        """Its wire form."""
        return RecordRun(self.first, self.arrived_ms, self.batches)


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """What a read found in memory: the runs, and the sequence number behind them."""

    runs: list[RecordRun]
    position: int


class Shard:
    """See the module. `end` is the sequence number behind the last record that is readable, `trimmed` the first that is kept."""

    def __init__(self, log_id: LogId, row: LogRow) -> None:
        self.log_id = log_id
        self.counters = Counters()
        self.records = row.messages
        self.size_bytes = row.size_bytes
        self.trimmed = row.trimmed
        self.end = row.reserved
        self.closed = False
        """It takes nothing more; whether that is durable, `sealed` says."""
        self.sealed = False
        self.last_ms = 0
        self._next = row.reserved
        self._reserved = row.reserved
        self._taken_end = row.reserved
        """Behind the last record that was accepted, durable or not."""
        self._open: list[Segment] = []
        self._tip: deque[Segment] = deque()
        self._tip_bytes = 0
        self._deduplication = Deduplication(log_id)
        self._trim_moved = False

    @classmethod
    def restore(cls, row: LogRow, last: SegmentRow | None, deduplication: list[DeduplicationRow]) -> Shard:
        """The shard as the store knows it. `last`: its newest segment, without payload; what comes next gets numbers beyond all
        that were reserved, for a life that crashed may have handed them out."""
        shard = cls(row.log_id, row)
        shard.end = shard._taken_end = row.trimmed
        if last is not None:
            shard.last_ms = last.sent_ms
            shard.end = shard._taken_end = last.first + last.count
        shard._deduplication.restore(deduplication)
        return shard

    def stay_closed(self, end: int) -> None:
        """It was closed in an earlier life, with that as the sequence number behind its last record."""
        self.closed = self.sealed = True
        self.end = self._taken_end = end

    # Putting

    def put(
        self, request: PutRecords, producer: bytes, max_record_bytes: int, now_ms: int, throughput: Throughput | None = None
    ) -> Run:
        """Accepts a batch and returns its sequence numbers, or raises why not. It is accepted whole, but for what `throughput`
        does not let pass: the last records of a `partial` one. The reply may be sent once the next commit of this shard is
        durable, also when it repeats an earlier answer."""
        if request.sequence:
            answered = self._deduplication.answered(producer, request.sequence, request.acknowledged, now_ms)
            if answered is not None:
                return answered.runs[0]
        if self.closed:
            raise ShardClosed()
        batches.check(request, max_record_bytes)
        if request.after is not None and request.after >= self._next:
            raise InvalidRequest(f"after = {request.after}: the shard has assigned no sequence number from {self._next} on")
        taken = request.count if throughput is None else self._let_pass(request, throughput, now_ms)
        run = Run(self._append(batches.first_of(request, taken), now_ms), taken)
        if request.sequence:
            self._deduplication.remember_answer(
                producer, request.sequence, queue_messages.SendReply(self.log_id, [run], []), now_ms
            )
        return run

    def _let_pass(self, request: PutRecords, throughput: Throughput, now_ms: int) -> int:
        """How many records of a batch its limits let pass, one at least, or ThroughputExceeded."""
        sizes = (lambda: batches.sizes(request)) if request.partial and request.codec == PLAIN else None
        taken = throughput.take_records(request.count, request.size_bytes, sizes, now_ms)
        self.counters.throttled_records += request.count - taken
        if not taken:
            raise ThroughputExceeded(
                f"a shard of this stream takes {limits.SHARD_RECORDS_IN} records and {limits.SHARD_BYTES_IN} bytes per second"
            )
        return taken

    def _append(self, batch: Batch, now_ms: int) -> int:
        blob_bytes = len(batch.blob)
        segment = self._open[-1] if self._open else None
        if (
            segment is None
            or segment.count + batch.count > limits.SEGMENT_RECORDS
            or segment.blob_bytes + blob_bytes > limits.SEGMENT_BYTES
        ):
            self.last_ms = max(self.last_ms, now_ms)
            segment = Segment(self._next, self.last_ms)
            self._open.append(segment)
        first = segment.first + segment.count
        segment.batches.append(batch)
        segment.count += batch.count
        segment.size_bytes += batch.size_bytes
        segment.blob_bytes += blob_bytes
        self._next = self._taken_end = first + batch.count
        self.counters.records_in += batch.count
        self.counters.bytes_in += batch.size_bytes
        return first

    def close(self) -> int:
        """Takes nothing more; returns the sequence number behind the last record that it ever took."""
        self.closed = True
        return self._taken_end

    def seal(self) -> None:
        """That it is closed is durable, and so is the last record."""
        self.sealed = True

    # Reading

    def read(self, position: int, max_records: int, max_bytes: int) -> Reading | None:
        """Readable batches from the one that holds `position` on, as far as they are in memory. None: they are in the store."""
        position = max(position, self.trimmed)
        if position >= self.end:
            return Reading([], position)
        if not self._tip or position < self._tip[0].first:
            return None
        runs: list[RecordRun] = []
        for place in range(self._place_of(position), len(self._tip)):
            segment = self._tip[place]
            end = segment.first + segment.count
            run, position = part_of(segment.first, segment.arrived_ms, segment.batches, position, max_records, max_bytes)
            runs.append(run)
            max_records -= sum(one.count for one in run.batches)
            max_bytes -= sum(one.size_bytes for one in run.batches)
            if max_records <= 0 or max_bytes <= 0 or position < end:
                break
        return Reading(runs, position)

    def read_out(self, position: int) -> bool:
        """Whether nothing will ever come at that position."""
        return self.sealed and position >= self.end

    def behind_ms(self, position: int, now_ms: int) -> int | None:
        """How long ago the record at `position` arrived, 1 at the least (it may have been in this millisecond, or the clock was
        set back since); 0 at the tip alone. None when it is not in memory."""
        if position >= self.end:
            return 0
        if not self._tip or position < self._tip[0].first:
            return None
        return max(1, now_ms - self._tip[self._place_of(position)].arrived_ms)

    def _place_of(self, position: int) -> int:
        """Which segment of the tip holds `position`, or is the first behind it: a search by halves, for they may be many."""
        return bisect.bisect_left(self._tip, position, key=lambda segment: segment.first + segment.count - 1)

    # Trimming

    def trim(self, bound: int, records: int, size_bytes: int) -> None:
        """Records before `bound`, which begins a segment (or is the end), are given up: so many, of that size."""
        if bound <= self.trimmed:
            return
        self.trimmed = bound
        self._trim_moved = True
        self.records -= records
        self.size_bytes -= size_bytes
        self.counters.trimmed += records
        while self._tip and self._tip[0].first + self._tip[0].count <= bound:
            self._tip_bytes -= self._tip.popleft().blob_bytes

    def shed(self) -> int:
        """Drops the tip from memory; returns how many bytes."""
        dropped, self._tip_bytes = self._tip_bytes, 0
        self._tip.clear()
        return dropped

    @property
    def tip_ms(self) -> int | None:
        """When the oldest record arrived that is in memory; None: there is none."""
        return self._tip[0].arrived_ms if self._tip else None

    @property
    def tip_bytes(self) -> int:
        """What is kept in memory."""
        return self._tip_bytes

    # Committing

    @property
    def is_dirty(self) -> bool:
        """Whether `collect` would write anything."""
        return bool(self._open or self._trim_moved or self._deduplication.has_news)

    def collect(self, commit: Commit, now_ms: int) -> list[Segment]:
        """Adds everything that changed to the commit. What is returned goes to `publish` when it is durable."""
        segments, self._open = self._open, []
        for segment in segments:
            payload = batches.pack(segment.batches)
            commit.insert_segments.append(
                SegmentRow(self.log_id, 0, segment.first, segment.count, segment.size_bytes, segment.arrived_ms, payload)
            )
        if self._trim_moved:
            commit.trims.append((self.log_id, self.trimmed))
            self._trim_moved = False
        if self._deduplication.has_news:
            commit.insert_deduplication.append(self._deduplication.collect(self._next, now_ms))
        forgotten = self._deduplication.forget(now_ms)
        if forgotten is not None:
            commit.forget_deduplication.append((self.log_id, forgotten))
        if self._next > self._reserved:
            self._reserved = self._next + limits.RESERVE_SEQUENCES
            commit.reservations.append((self.log_id, self._reserved))
        return segments

    def publish(self, segments: list[Segment]) -> bool:
        """The commit is durable: its records may be read. Whether there are any."""
        for segment in segments:
            self.end = segment.first + segment.count
            self.records += segment.count
            self.size_bytes += segment.size_bytes
            self._tip.append(segment)
            self._tip_bytes += segment.blob_bytes
        while len(self._tip) > 1 and self._tip_bytes > limits.TIP_BYTES:
            self._tip_bytes -= self._tip.popleft().blob_bytes
        return bool(segments)


def part_of(
    first: int, arrived_ms: int, given: list[Batch], position: int, max_records: int, max_bytes: int
) -> tuple[RecordRun, int]:
    """The batches of a segment from the one that holds `position` on, until a limit is reached but one at least; and the sequence
    number behind them."""
    begin, end = first, first
    taken: list[Batch] = []
    for batch in given:
        end += batch.count
        if end <= position:
            begin = end
            continue
        taken.append(batch)
        max_records -= batch.count
        max_bytes -= batch.size_bytes
        if max_records <= 0 or max_bytes <= 0:
            break
    return RecordRun(begin, arrived_ms, taken), end
