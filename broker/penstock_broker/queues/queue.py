"""One queue as a state machine: decide in memory, hand out rows to commit, publish what is durable.

Life of a message: `send` puts it into an open segment; `collect` closes open segments into rows; after the commit
`publish` makes them visible (or leaves them in the store, when enough waits in memory); `receive` takes messages into a delivery;
`delete` ends them, `change_visibility` or the passing of time (`expire`) makes them visible again; a message received too
often is handed to the dead-letter queue. Each change marks what must be written; `collect` gathers it once per commit.

Memory holds: what is in flight, the visible messages served next (a window; the rest is paged in through
`wants` and `loaded`), delayed messages due first, and what deduplication needs. Content is dropped when it was delivered or
when `shed` asks, and loaded again when it is to be delivered.

The owner discards the whole object when a commit fails, and builds it anew with `Queue.restore`: there is no undo.
Nothing here waits; `now_ms` is wall-clock milliseconds.
"""

from __future__ import annotations

import copy
import dataclasses
import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from penstock_protocol import queue_messages as messages
from penstock_protocol.errors import (
    BatchEmpty,
    BatchTooLarge,
    InvalidMessage,
    InvalidRequest,
    MessageNotInFlight,
    PenstockError,
    QueueFull,
    ReceiptHandleExpired,
    ReceiptHandleInvalid,
    TooManyInFlight,
)
from penstock_storage.interface import (
    Commit,
    DeduplicationRow,
    DeliveryRow,
    LoadedSegment,
    LogId,
    LogRow,
    SegmentKey,
    SegmentRow,
    StateRow,
)

from penstock_broker.queues import limits
from penstock_broker.queues.ages import Ages
from penstock_broker.queues.deduplication import Deduplication, content_id, key_of
from penstock_broker.queues.deliveries import Delivery, Receipts, restored_run, unpack_runs
from penstock_broker.queues.entries import check_entry, check_shape
from penstock_broker.queues.fifo import FifoReady
from penstock_broker.queues.ready import StandardReady, Taken
from penstock_broker.queues.segment import (
    OVERHEAD_BYTES,
    Columns,
    Run,
    Segment,
    attributes_bytes,
    delivery_message,
    indexes_of,
    mask_bytes,
    mask_of,
)
from penstock_broker.queues.settings import QueueSettings, is_fifo

_FOREVER_MS = 2**62
_Timer = tuple[int, int, list[Run]]
"""When, a number that makes it unique, and the runs that become visible then unless something else was done to them."""


@dataclasses.dataclass(slots=True)
class Budget:
    """Message content in memory, over all queues."""

    limit_bytes: int
    used_bytes: int = 0


@dataclasses.dataclass(slots=True)
class Counters:
    """What happened since the queue was loaded: plain numbers, read when metrics are scraped."""

    sent: int = 0
    sent_bytes: int = 0
    received: int = 0
    received_bytes: int = 0
    deleted: int = 0
    redriven: int = 0
    dead_lettered: int = 0
    expired: int = 0
    deduplicated: int = 0
    empty_receives: int = 0


@dataclasses.dataclass(slots=True)
class _Open:
    """A segment that is still being filled."""

    first: int
    due_ms: int
    sent_ms: int
    columns: Columns = dataclasses.field(default_factory=Columns)
    size_bytes: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class LoadArrivals:
    """Ask the store for `load_arrivals` with these arguments (besides the limits), then call `loaded_arrivals`."""

    after: tuple[int, int]
    until_due_ms: int
    skips: int


@dataclasses.dataclass(frozen=True, slots=True)
class LoadContent:
    """Ask the store for `load_segments`, then call `loaded_content`."""

    keys: list[SegmentKey]


@dataclasses.dataclass(frozen=True, slots=True)
class Publication:
    """What one commit made durable."""

    segments: list[Segment]
    dead: list[int]
    """Segments whose rows are gone."""


class Queue:
    """See the module. `messages` and `size_bytes` count all that is not deleted, published or not."""

    def __init__(self, name: str, settings: QueueSettings, secret: bytes, budget: Budget, row: LogRow, now_ms: int) -> None:
        self.name = name
        self.settings = settings
        self.log_id: LogId = row.log_id
        self.fifo = is_fifo(name)
        self.counters = Counters()
        self.messages = row.messages
        self.size_bytes = row.size_bytes
        self.in_flight = 0
        self.content_bytes = 0
        self.deliveries: dict[int, Delivery] = {}
        self.segments: dict[int, Segment] = {}
        self._by_age = Ages(self.segments, lambda segment: segment.oldest_ms)
        self._by_end = Ages(self.segments, lambda segment: segment.kept_since_ms)
        """In the order in which retention ends."""
        self._budget = budget
        self._receipts = Receipts(secret, row.log_id)
        self._ready: StandardReady | FifoReady = FifoReady() if self.fifo else StandardReady()
        self._deduplication = Deduplication(row.log_id)
        self._next = row.reserved
        self._reserved = row.reserved
        self._trim = row.trimmed
        self._open: list[_Open] = []
        self._newest_open: dict[int, _Open] = {}
        """By the time when its messages are due."""
        self._committing: dict[int, Segment] = {}
        # Paging: what lies beyond the cursors is in the store only.
        self._cursor = (0, -1)
        self._delayed_cursor = (0, 2**63 - 1)
        self._more = row.messages > 0
        self._more_delayed = row.messages > 0
        self._skips = 0
        self._loaded_ms = now_ms
        self._unloaded_delayed = row.delayed_messages
        self._delayed: list[tuple[int, int, Segment]] = []
        self._delayed_messages = 0
        self._last_due_ms = row.last_due_ms
        self._missing: dict[int, Segment] = {}
        # Due, but without content; on a FIFO queue also what became due behind them.
        self._owed: dict[int, Segment] = {}
        # Due, in order, but there is no room yet; on a FIFO queue also while older messages are in the store only, which
        # never had a delay.
        self._due: deque[Segment] = deque()
        self._loading = False
        # Dead segments that a load may still bring: until their end is durable, and no load began before that.
        self._dying: set[int] = set()
        self._dead_late: list[int] = []
        # Segments that the page still has to bring, of which messages wait here already: quiet tenants wait for nobody's backlog.
        self._early: set[int] = set()
        # Timers and changes since the last collect.
        self._visibility: list[_Timer] = []
        self._timer_number = 0
        self._timed_runs = 0
        self._sweep_ms = now_ms
        self._dirty_deliveries: dict[int, Delivery] = {}
        self._dirty_segments: dict[int, Segment] = {}
        self._dead_deliveries: list[int] = []
        self._dead_segments: list[Segment] = []
        self._sparse: dict[int, Segment] = {}
        self._trimmed = False

    @classmethod
    def restore(
        cls,
        name: str,
        settings: QueueSettings,
        secret: bytes,
        budget: Budget,
        row: LogRow,
        deliveries: Iterable[DeliveryRow],
        touched: Iterable[LoadedSegment],
        deduplication: list[DeduplicationRow],
        now_ms: int,
    ) -> Queue:
        """The queue as the store knows it. `touched` are the segments that the deliveries name, without content."""
        queue = cls(name, settings, secret, budget, row, now_ms)
        for loaded in touched:
            segment = queue._segment_of(loaded)
            segment.arrived = False
            queue.segments[segment.first] = segment
            queue._note_age(segment)
            if segment.due_ms > now_ms:
                # It was received before, so it was due: the clock was set back since. It is not delayed again.
                queue._unloaded_delayed -= segment.live
        for delivery_row in deliveries:
            queue._restore_delivery(delivery_row, now_ms)
        queue._deduplication.restore(deduplication)
        return queue

    @staticmethod
    def segments_named(deliveries: Iterable[DeliveryRow]) -> list[int]:
        """The first sequence numbers of the segments that deliveries name: what `restore` needs as `touched`."""
        return sorted({values[0] for row in deliveries for values in unpack_runs(row)[1]})

    def _restore_delivery(self, row: DeliveryRow, now_ms: int) -> None:
        taken_ms, runs = unpack_runs(row)
        delivery = Delivery(row.number, taken_ms)
        delivery.stored = True
        for values in runs:
            segment = self.segments.get(values[0])
            if segment is None or segment.first < self._trim:
                continue
            run = restored_run(segment, values)
            if not run.mask:
                continue
            delivery.add(run)
            segment.taken |= run.mask
            if run.visible_ms > now_ms:
                run.waiting = False
                self.in_flight += run.mask.bit_count()
                self._ready.restore(run)
                self._start_timer([run], run.visible_ms)
            else:
                segment.again |= run.mask
                self._ready.put(run)
        if delivery.runs:
            self.deliveries[row.number] = delivery
        else:
            self._dead_deliveries.append(row.number)

    # Sending

    def send(self, request: messages.SendMessages, producer: bytes, now_ms: int) -> messages.SendReply:
        """Accepts a batch; entries that break a rule are failures in the reply. Raises when the batch as a whole is refused.

        The reply may be sent once the next commit of this queue is durable, also when it repeats an earlier answer."""
        if not request.bodies:
            raise BatchEmpty()
        if len(request.bodies) > limits.MAX_BATCH:
            raise BatchTooLarge(f"{len(request.bodies)} messages; at most {limits.MAX_BATCH} are allowed")
        check_shape(request)
        if request.sequence:
            answered = self._deduplication.answered(producer, request.sequence, request.acknowledged, now_ms)
            if answered is not None:
                return answered
        self._check_room(request, now_ms)
        plain = (
            not self.fifo
            and request.attributes is None
            and request.delays_ms is None
            and request.groups is None
            and request.deduplication_ids is None
            and request.traces is None
            and max(map(len, request.bodies)) <= self.settings.max_message_bytes
        )
        if plain:
            reply = messages.SendReply(self.log_id, self._append_plain(request.bodies, now_ms), [])
        else:
            reply = self._append_checked(request, now_ms)
        if request.sequence:
            self._deduplication.remember_answer(producer, request.sequence, reply, now_ms)
        return reply

    def _check_room(self, request: messages.SendMessages, now_ms: int) -> None:
        settings = self.settings
        if not (settings.max_messages or settings.max_bytes):
            return
        if self.fifo and self._adds_nothing(request, now_ms):
            return
        count = len(request.bodies)
        size_bytes = sum(map(len, request.bodies)) + sum(map(attributes_bytes, filter(None, request.attributes or ())))
        if settings.max_messages and self.messages + count > settings.max_messages:
            raise QueueFull(f"max_messages = {settings.max_messages}; {self.messages} are there")
        if settings.max_bytes and self.size_bytes + size_bytes > settings.max_bytes:
            raise QueueFull(f"max_bytes = {settings.max_bytes}; {self.size_bytes} are there")

    def _adds_nothing(self, request: messages.SendMessages, now_ms: int) -> bool:
        """Whether every message was accepted before: that is answered by a full queue too."""
        for index, body in enumerate(request.bodies):
            identity = request.deduplication_ids[index] if request.deduplication_ids else None
            if identity is None:
                identity = content_id(body)
            group = request.groups[index] if request.groups else None
            by_group = self.settings.deduplication_scope == "message_group"
            if self._deduplication.sequence_of(key_of(str(identity), str(group) if by_group else None), now_ms) is None:
                return False
        return True

    def _append_plain(self, bodies: list[bytes], now_ms: int) -> list[messages.Run]:
        due_ms = now_ms + self.settings.delay_ms if self.settings.delay_ms else 0
        runs = []
        start, total = 0, len(bodies)
        while start < total:
            open_ = self._open_segment(due_ms, now_ms)
            held = len(open_.columns.bodies)
            part = bodies[start : start + limits.SEGMENT_MESSAGES - held]
            size = sum(map(len, part))
            if open_.size_bytes + size > limits.SEGMENT_BYTES:
                part = _fitting(part, limits.SEGMENT_BYTES - open_.size_bytes, at_least_one=not held)
                size = sum(map(len, part))
            if not part:
                self._open_new(due_ms, now_ms)
                continue
            open_.columns.extend(part, {})
            open_.size_bytes += size
            runs.append(messages.Run(open_.first + held, len(part)))
            self._count_sent(len(part), size)
            start += len(part)
        return runs

    def _append_checked(self, request: messages.SendMessages, now_ms: int) -> messages.SendReply:
        settings = self.settings
        sequences: list[int] = []
        failures: list[messages.Failure] = []
        for index, body in enumerate(request.bodies):
            try:
                values = check_entry(request, index, settings, fifo=self.fifo)
                if self.fifo:
                    sequences.append(self._append_fifo(body, values, now_ms))
                else:
                    delay_ms = values.pop("delay_ms", settings.delay_ms)
                    sequences.append(self._append(body, values, now_ms + delay_ms if delay_ms else 0, now_ms))
            except PenstockError as error:
                failures.append(messages.Failure(index, error.code, str(error)))
        return messages.SendReply(self.log_id, _as_runs(sequences), failures)

    def _append_fifo(self, body: bytes, values: dict[str, Any], now_ms: int) -> int:
        settings = self.settings
        identity = values.get("deduplication_ids")
        if identity is None:
            if not settings.content_based_deduplication:
                raise InvalidMessage("a deduplication id is needed, or content_based_deduplication on the queue")
            identity = values["deduplication_ids"] = content_id(body)
        group = str(values["groups"]) if settings.deduplication_scope == "message_group" else None
        key = key_of(str(identity), group)
        known = self._deduplication.sequence_of(key, now_ms)
        if known is not None:
            self.counters.deduplicated += 1
            return known
        due_ms = self._due_ms(now_ms) if settings.delay_ms or self._last_due_ms else 0
        sequence = self._append(body, values, due_ms, now_ms)
        self._deduplication.remember_key(key, sequence, now_ms)
        return sequence

    def _due_ms(self, now_ms: int) -> int:
        """When a message sent now without a delay of its own is due.

        On a FIFO queue never before an older message that is still there, whatever the queue's delay was for that one: so
        the order of due times, in which segments are stored and loaded, is the order of sends."""
        due_ms = now_ms + self.settings.delay_ms if self.settings.delay_ms else 0
        if self.fifo:
            if not self.messages:
                self._last_due_ms = 0
            due_ms = self._last_due_ms = max(due_ms, self._last_due_ms)
        return due_ms

    def _append(self, body: bytes, values: dict[str, Any], due_ms: int, now_ms: int) -> int:
        size = len(body)
        attributes = values.get("attributes")
        if attributes:
            size += attributes_bytes(attributes)
        open_ = self._open_segment(due_ms, now_ms)
        held = len(open_.columns.bodies)
        if held and open_.size_bytes + size > limits.SEGMENT_BYTES:
            open_ = self._open_new(due_ms, now_ms)
            held = 0
        open_.columns.append(body, values)
        open_.size_bytes += size
        self._count_sent(1, size)
        return open_.first + held

    def _count_sent(self, count: int, size_bytes: int) -> None:
        self.messages += count
        self.size_bytes += size_bytes
        self.counters.sent += count
        self.counters.sent_bytes += size_bytes

    def _open_segment(self, due_ms: int, now_ms: int) -> _Open:
        # A FIFO queue only ever appends to its newest segment: sequence numbers are the order of sends.
        open_ = (self._open[-1] if self._open else None) if self.fifo else self._newest_open.get(due_ms)
        if open_ is not None and open_.due_ms == due_ms and len(open_.columns.bodies) < limits.SEGMENT_MESSAGES:
            return open_
        return self._open_new(due_ms, now_ms)

    def _open_new(self, due_ms: int, now_ms: int) -> _Open:
        open_ = _Open(self._next, due_ms, now_ms)
        self._next += limits.SEGMENT_MESSAGES
        self._open.append(open_)
        self._newest_open[due_ms] = open_
        return open_

    def adopt(self, columns: Columns, index: int, values: dict[str, Any], sent_ms: int, now_ms: int) -> None:
        """Takes over one message of another queue (dead-lettered or moved back) with the given properties."""
        row = columns.row(index)
        row.pop("sent_ms", None)
        row.pop("sources", None)
        row.pop("origins", None)
        row.update(values)
        if sent_ms != now_ms:
            row["sent_ms"] = sent_ms
        self._append(columns.bodies[index], row, self._due_ms(now_ms), now_ms)

    # Receiving

    def receive(
        self, max_messages: int, max_bytes: int, visibility_ms: int | None, attempt_id: str, dead_letter: bool, now_ms: int
    ) -> tuple[messages.ReceiveReply | None, Taken | None]:
        """Takes messages. (None, …): there is nothing to take now. The second part has dead runs, which the caller hands
        to the dead-letter queue with `bury`, in the same commit. Without `dead_letter` nothing is set aside as dead."""
        if not 1 <= max_messages <= limits.MAX_BATCH:
            raise InvalidRequest(f"max_messages = {max_messages}; it must be from 1 to {limits.MAX_BATCH}")
        if visibility_ms is None:
            visibility_ms = self.settings.visibility_timeout_ms
        elif visibility_ms > limits.MAX_VISIBILITY_TIMEOUT_MS:
            raise InvalidRequest(f"visibility_timeout_ms = {visibility_ms}; at most {limits.MAX_VISIBILITY_TIMEOUT_MS}")
        self.expire(now_ms)
        if attempt_id and self.fifo:
            if len(attempt_id) > limits.MAX_ID_LENGTH or not attempt_id.isprintable():
                raise InvalidRequest(f"a receive attempt id has at most {limits.MAX_ID_LENGTH} printable characters")
            again = self._repeat_attempt(attempt_id, now_ms + visibility_ms, now_ms)
            if again is not None:
                return again, None
        room = self.settings.max_in_flight - self.in_flight
        if room <= 0:
            if not self.fifo:
                raise TooManyInFlight(f"{self.in_flight} messages are in flight")
            return None, None
        max_received = self.settings.max_receive_count if dead_letter else 0
        taken = self._ready.take(min(max_messages, room), max_bytes, max_received, now_ms)
        if self._due:
            self._admit_due()
        for segment in taken.missing:
            self._missing[segment.first] = segment
        self._leave_deliveries(taken.dead)
        if not taken.runs:
            return None, taken
        number = self._next
        self._next += 1
        delivery = Delivery(number, now_ms)
        visible_ms = now_ms + visibility_ms
        if any(run.received for run in taken.runs):
            self._leave_deliveries(taken.runs)
        for run in taken.runs:
            if run.received:
                run.segment.again &= ~run.mask
            run.received += 1
            run.first_received_ms = run.first_received_ms or now_ms
            run.visible_ms = visible_ms
            run.waiting = False
            run.segment.taken |= run.mask
            delivery.add(run)
        self._start_timer(taken.runs, visible_ms)
        self.deliveries[number] = delivery
        self._dirty_deliveries[number] = delivery
        self.in_flight += taken.messages
        self.counters.received += taken.messages
        self.counters.received_bytes += taken.size_bytes
        if attempt_id and self.fifo:
            self._deduplication.remember_attempt(attempt_id, number, now_ms)
        reply = self._reply(delivery, taken.runs, visible_ms)
        # (What is dead still has to be read, by `bury`.)
        needed = {run.segment.first for run in taken.dead}
        for run in taken.runs:
            if run.segment.first not in needed:
                self._drop_delivered_content(run.segment)
        return reply, taken

    def _reply(self, delivery: Delivery, runs: list[Run], visible_ms: int) -> messages.ReceiveReply:
        """What is alike goes as one: a batch of many groups costs the wire and the client no more than one of none."""
        receipt = self._receipts.issue(delivery.number)
        if self.fifo:
            runs = sorted(runs, key=_lowest_sequence)
        deliveries = []
        start = runs[0]
        mask = 0
        for run in runs:
            if (
                run.segment is not start.segment
                or run.received != start.received
                or (run.first_received_ms != start.first_received_ms)
            ):
                deliveries.append(delivery_message(start, mask, receipt))
                start, mask = run, 0
            mask |= run.mask
        deliveries.append(delivery_message(start, mask, receipt))
        return messages.ReceiveReply(self.log_id, deliveries, visible_ms)

    def _repeat_attempt(self, attempt_id: str, visible_ms: int, now_ms: int) -> messages.ReceiveReply | None:
        number = self._deduplication.attempt(attempt_id, now_ms)
        delivery = self.deliveries.get(number) if number is not None else None
        if delivery is None:
            return None
        runs = list(delivery.all_runs())
        if any(run.waiting for run in runs):
            return None
        absent = [run.segment for run in runs if run.segment.columns is None]
        if absent:
            for segment in absent:
                self._missing[segment.first] = segment
            return messages.ReceiveReply(self.log_id, [], 0)
        for run in runs:
            run.visible_ms = visible_ms
        self._start_timer(runs, visible_ms)
        self._dirty_deliveries[delivery.number] = delivery
        return self._reply(delivery, runs, visible_ms)

    def knows_attempt(self, attempt_id: str, now_ms: int) -> bool:
        """Whether this receive attempt was answered before: repeating it needs nothing that is ready."""
        return bool(attempt_id) and self.fifo and self._deduplication.attempt(attempt_id, now_ms) in self.deliveries

    def _leave_deliveries(self, runs: list[Run]) -> None:
        """Runs that waited were taken anew: what is left of their old deliveries must be written."""
        left: dict[tuple[int, int], Delivery] = {}
        for run in runs:
            if run.delivery is not None:
                left[run.delivery.number, run.segment.first] = run.delivery
                run.delivery = None
        for (_, first), old in left.items():
            self._changed(old, first)

    def _changed(self, delivery: Delivery, first: int) -> None:
        delivery.prune(first)
        if delivery.runs:
            self._dirty_deliveries[delivery.number] = delivery
        elif self.deliveries.pop(delivery.number, None) is not None:
            self._dirty_deliveries.pop(delivery.number, None)
            if delivery.stored:
                self._dead_deliveries.append(delivery.number)

    def bury(self, runs: list[Run]) -> Iterator[tuple[Columns, int, Run]]:
        """Takes dead (or moved) runs out of this queue: first yields their messages for the queue that adopts them, and
        ends them when the last one was taken."""
        for run in runs:
            columns = run.segment.columns
            assert columns is not None
            for index in indexes_of(run.mask):
                yield columns, index, run
        for run in runs:
            self._end(run.segment, run.mask)
            self._drop_delivered_content(run.segment)

    def take_waiting(self, max_messages: int, now_ms: int) -> Taken:
        """Takes visible messages out without a delivery, for a move task; the caller buries them."""
        self.expire(now_ms)
        taken = self._ready.take(max_messages, limits.PAGE_BYTES, 0, now_ms)
        if self._due:
            self._admit_due()
        for segment in taken.missing:
            self._missing[segment.first] = segment
        self._leave_deliveries(taken.runs)
        for run in taken.runs:
            self._ready.leave(run, 0, now_ms)
        return taken

    def put_back(self, run: Run) -> None:
        """What `take_waiting` took waits again; its old delivery is not restored, its receives are."""
        if run.received:
            delivery = Delivery(self._next, 0)
            self._next += 1
            delivery.add(run)
            self.deliveries[delivery.number] = delivery
            self._dirty_deliveries[delivery.number] = delivery
        self._ready.put(run)

    # Ending and changing what was received

    def delete(self, receipts: list[messages.Receipt], now_ms: int) -> list[messages.ReceiptFailure]:
        """Deletes messages by receipt. A message that is gone already is success; one that was received again is
        ReceiptHandleExpired, and so is, on a FIFO queue, one whose visibility timeout has ended (SQS)."""
        self.expire(now_ms)
        failures: list[messages.ReceiptFailure] = []
        for entry, receipt in enumerate(receipts):
            try:
                number = self._receipts.check(receipt.receipt)
            except ReceiptHandleInvalid as error:
                failures.append(messages.ReceiptFailure(entry, receipt.mask, error.code, str(error)))
                continue
            wanted = mask_of(receipt.mask)
            segment = self.segments.get(receipt.first)
            if segment is None:
                continue
            wanted &= segment.all_mask & ~segment.deleted
            if not wanted:
                continue
            delivery = self.deliveries.get(number)
            done = 0
            if delivery is not None:
                for run in delivery.runs.get(receipt.first, ()):
                    hit = run.mask & wanted
                    if hit and not (self.fifo and run.waiting):
                        self._delete_from(run, hit, now_ms)
                        done |= hit
                if done:
                    self.counters.deleted += done.bit_count()
                    self._end(segment, done)
                    self._changed(delivery, receipt.first)
            if done != wanted:
                error_ = ReceiptHandleExpired()
                failures.append(messages.ReceiptFailure(entry, mask_bytes(wanted & ~done), error_.code, str(error_)))
        return failures

    def _delete_from(self, run: Run, mask: int, now_ms: int) -> None:
        count = mask.bit_count()
        if run.waiting:
            self._ready.shrink(run, mask)
        else:
            run.mask &= ~mask
            self.in_flight -= count
            self._ready.settle(run, count, now_ms - run.delivery.taken_ms, now_ms)

    def _end(self, segment: Segment, mask: int) -> None:
        """Messages are no more, whatever the way."""
        before = segment.deleted_bytes
        count = segment.delete(mask)
        segment.taken &= ~mask
        segment.again &= ~mask
        self.messages -= count
        self.size_bytes -= segment.deleted_bytes - before
        if segment.live:
            self._dirty_segments[segment.first] = segment
            self._note_sparse(segment)
        elif self.segments.pop(segment.first, None) is not None:
            self._dirty_segments.pop(segment.first, None)
            self._missing.pop(segment.first, None)
            self._dead_segments.append(segment)
            self._dying.add(segment.first)
            self._early.discard(segment.first)
            self._drop_content(segment)

    def change_visibility(
        self, receipts: list[messages.Receipt], timeouts_ms: list[int], now_ms: int
    ) -> list[messages.ReceiptFailure]:
        """Hides messages in flight for another timeout from now on; 0 makes them visible at once."""
        if len(timeouts_ms) != len(receipts):
            raise InvalidRequest(f"{len(timeouts_ms)} timeouts for {len(receipts)} receipts")
        if timeouts_ms and max(timeouts_ms) > limits.MAX_VISIBILITY_TIMEOUT_MS:
            raise InvalidRequest(f"a visibility timeout is at most {limits.MAX_VISIBILITY_TIMEOUT_MS} ms")
        self.expire(now_ms)
        failures: list[messages.ReceiptFailure] = []
        for entry, (receipt, timeout_ms) in enumerate(zip(receipts, timeouts_ms, strict=True)):
            wanted = mask_of(receipt.mask)
            try:
                delivery = self.deliveries.get(self._receipts.check(receipt.receipt))
            except ReceiptHandleInvalid as error:
                failures.append(messages.ReceiptFailure(entry, receipt.mask, error.code, str(error)))
                continue
            done = 0
            if delivery is not None:
                for run in list(delivery.runs.get(receipt.first, ())):
                    hit = run.mask & wanted
                    if hit and not run.waiting:
                        self._set_visibility(run, hit, timeout_ms, now_ms)
                        done |= hit
            if done != wanted:
                error_ = MessageNotInFlight()
                failures.append(messages.ReceiptFailure(entry, mask_bytes(wanted & ~done), error_.code, str(error_)))
        return failures

    def _set_visibility(self, run: Run, mask: int, timeout_ms: int, now_ms: int) -> None:
        delivery: Delivery = run.delivery
        if mask != run.mask:
            part = run.split(mask)
            delivery.add(part)
            self._ready.adopt_split(run, part)
            run = part
        run.visible_ms = now_ms + timeout_ms
        self._dirty_deliveries[delivery.number] = delivery
        if timeout_ms:
            self._start_timer([run], run.visible_ms)
        else:
            self._return(run, now_ms)

    def release(self, number: int, now_ms: int) -> bool:
        """Makes what is left in flight of a delivery visible; whether there was any."""
        delivery = self.deliveries.get(number)
        released = False
        if delivery is not None:
            for run in list(delivery.all_runs()):
                if not run.waiting and run.mask:
                    self._set_visibility(run, run.mask, 0, now_ms)
                    released = True
        return released

    def _return(self, run: Run, now_ms: int) -> None:
        """A run in flight is visible again."""
        count = run.mask.bit_count()
        self.in_flight -= count
        self._ready.leave(run, now_ms - run.delivery.taken_ms, now_ms)
        run.waiting = True
        run.segment.again |= run.mask
        self._ready.put(run)

    # Time

    def _start_timer(self, runs: list[Run], visible_ms: int) -> None:
        self._timer_number += 1
        heapq.heappush(self._visibility, (visible_ms, self._timer_number, runs))
        self._timed_runs += len(runs)
        if self._timed_runs > 1000 and self._timed_runs > 4 * len(self.deliveries) + 2 * self.in_flight:
            timers = [(timer[0], timer[1], running) for timer in self._visibility if (running := _running(timer))]
            heapq.heapify(timers)
            self._visibility = timers
            self._timed_runs = sum(len(timer[2]) for timer in timers)

    def expire(self, now_ms: int) -> bool:
        """Lets time pass: visibility timeouts end, delayed messages become due, retention ends. Whether anything became
        visible. Only the end of retention leaves something to commit."""
        woke = False
        timers = self._visibility
        while timers and timers[0][0] <= now_ms:
            timer = heapq.heappop(timers)
            self._timed_runs -= len(timer[2])
            for run in _running(timer):
                self._return(run, now_ms)
                woke = True
        while self._delayed and self._delayed[0][0] <= now_ms:
            _, _, segment = heapq.heappop(self._delayed)
            self._delayed_messages -= segment.live
            self._due.append(segment)
        woke = self._admit_due() or woke
        if now_ms >= self._sweep_ms:
            self._expire_old(now_ms)
        if self.fifo:
            self._deduplication.expire(now_ms)
        return woke

    @property
    def _admits(self) -> bool:
        """Whether the first of what is due may become visible now."""
        if not self._due or (self.fifo and self._more):
            return False
        # (What never had a delay and waits in the store has its turn too.)
        bound = self._low_water // 2 if self._more else self._window
        return self._ready.messages < bound and self._has_content_room and not self._missing

    def _admit_due(self) -> bool:
        """Makes visible what is due, as far as there is room in memory. Whether there was any."""
        woke = False
        asked_bytes = 0
        admits = self._admits
        while admits:
            segment = self._due.popleft()
            if self.segments.get(segment.first) is segment and segment.live:
                if segment.columns is None:
                    asked_bytes += segment.size_bytes + OVERHEAD_BYTES * segment.count
                woke = self._arrive(segment) or woke
            # (What is without content is asked for a page at a time.)
            admits = asked_bytes < limits.PAGE_BYTES if asked_bytes and self._due else self._admits
        return woke

    def _arrive(self, segment: Segment) -> bool:
        """Messages of a resident segment become visible for the first time."""
        if segment.columns is None or (self.fifo and self._owed):
            segment.arrived = False
            self._owed[segment.first] = segment
            if segment.columns is None:
                self._missing[segment.first] = segment
            return False
        segment.arrived = True
        mask = segment.all_mask & ~segment.deleted & ~segment.taken
        if mask:
            self._ready.arrive(segment, mask)
        return mask != 0

    def _expire_old(self, now_ms: int) -> None:
        """Retention: messages older than the queue keeps them are deleted, in flight or not."""
        bound = now_ms - self.settings.retention_ms
        firsts = set()
        for segment in self._by_end.take_until(bound):
            old = segment.sent_until(bound)
            self.counters.expired += old.bit_count()
            self._end(segment, old)
            firsts.add(segment.first)
            if segment.live:
                self._by_end.add(segment)
        if firsts:
            self._drop_deleted_runs(firsts, now_ms)
        oldest = self._by_end.oldest()
        ends_ms = (now_ms if oldest is None else oldest) + self.settings.retention_ms
        self._sweep_ms = max(ends_ms, now_ms + limits.SECOND_MS)

    def _drop_deleted_runs(self, firsts: set[int], now_ms: int) -> None:
        """Messages of these segments ended while they waited or were in flight: nobody has them any more."""
        self._ready.drop_deleted()
        for delivery in [one for one in self.deliveries.values() if not firsts.isdisjoint(one.runs)]:
            for first in firsts.intersection(delivery.runs):
                for run in delivery.runs[first]:
                    gone = run.mask & run.segment.deleted
                    run.mask &= ~gone
                    if gone and not run.waiting:
                        self.in_flight -= gone.bit_count()
                        self._ready.settle(run, gone.bit_count(), 0, now_ms)
                self._changed(delivery, first)

    def sweep_soon(self, now_ms: int) -> None:
        """The retention changed: look for what is too old at the next `expire`."""
        self._sweep_ms = now_ms

    def next_deadline(self) -> int | None:
        """When `expire` has something to do next; None while nothing waits for time."""
        timers = self._visibility
        while timers and not _running(timers[0]):
            self._timed_runs -= len(heapq.heappop(timers)[2])
        deadline = timers[0][0] if timers else _FOREVER_MS
        if self._delayed:
            deadline = min(deadline, self._delayed[0][0])
        if self._due and self._admits:
            deadline = min(deadline, self._due[0].due_ms)
        if self.segments:
            deadline = min(deadline, self._sweep_ms)
        if self.fifo and (forget_ms := self._deduplication.next_deadline()) is not None:
            deadline = min(deadline, forget_ms)
        return deadline if deadline < _FOREVER_MS else None

    # Committing

    @property
    def is_dirty(self) -> bool:
        """Whether `collect` would write anything."""
        return bool(
            self._open
            or self._dirty_deliveries
            or self._dirty_segments
            or self._dead_deliveries
            or self._dead_segments
            or self._trimmed
            or self._deduplication.has_news
        )

    def collect(self, commit: Commit, now_ms: int) -> Publication:
        """Adds everything that changed to the commit. What is returned goes to `publish` when it is durable."""
        log_id = self.log_id
        segments = []
        for open_ in self._open:
            count = len(open_.columns.bodies)
            if not count:
                continue
            if open_.first + limits.SEGMENT_MESSAGES == self._next:
                self._next = open_.first + count
            sent_ms = open_.sent_ms
            if open_.columns.sent_ms is not None:
                sent_ms = max(sent_ms if sent is None else sent for sent in open_.columns.sent_ms)
            segment = Segment(open_.first, count, open_.due_ms, sent_ms, open_.size_bytes, open_.columns)
            segments.append(segment)
            commit.insert_segments.append(
                SegmentRow(
                    log_id, segment.due_ms, segment.first, count, segment.size_bytes, segment.sent_ms, open_.columns.pack()
                )
            )
        self._open, self._newest_open = [], {}
        self._committing.update((segment.first, segment) for segment in segments)
        if self._trimmed:
            commit.trims.append((log_id, self._trim))
            self._trimmed = False
        for segment in self._dead_segments:
            commit.delete_segments.append(segment.key(log_id))
            if segment.stored_state:
                commit.delete_states.append((log_id, segment.first))
        self._rewrite_sparse(commit)
        for segment in self._dirty_segments.values():
            commit.upsert_states.append(
                StateRow(log_id, segment.first, mask_bytes(segment.deleted), segment.count - segment.live, segment.deleted_bytes)
            )
            segment.stored_state = True
        for number in self._dead_deliveries:
            commit.delete_deliveries.append((log_id, number))
        for delivery in self._dirty_deliveries.values():
            commit.upsert_deliveries.append(delivery.to_row(log_id))
            delivery.stored = True
        dead = [segment.first for segment in self._dead_segments]
        self._dead_segments, self._dirty_segments = [], {}
        self._dead_deliveries, self._dirty_deliveries = [], {}
        if self._deduplication.has_news:
            commit.insert_deduplication.append(self._deduplication.collect(self._next, now_ms))
            self._next += 1
        forgotten = self._deduplication.forget(now_ms)
        if forgotten is not None:
            commit.forget_deduplication.append((log_id, forgotten))
        if self._next > self._reserved:
            self._reserved = self._next + limits.RESERVE_SEQUENCES
            commit.reservations.append((log_id, self._reserved))
        return Publication(segments, dead)

    def _note_sparse(self, segment: Segment) -> None:
        """A segment that is mostly dead is rewritten, once its content happens to be in memory."""
        if (
            segment.deleted
            and segment.columns is not None
            and segment.size_bytes >= limits.REWRITE_BYTES
            and 4 * segment.living_bytes < segment.size_bytes
        ):
            self._sparse[segment.first] = segment

    def _rewrite_sparse(self, commit: Commit) -> None:
        for first in list(self._sparse)[: limits.REWRITES]:
            segment = self._sparse.pop(first)
            if self.segments.get(first) is not segment or segment.columns is None:
                continue
            before = segment.living_bytes
            self._count_content(-segment.memory_bytes())
            segment.keep_living()
            self._count_content(segment.memory_bytes())
            self.size_bytes += segment.living_bytes - before
            commit.rewrites.append(
                SegmentRow(
                    self.log_id,
                    segment.due_ms,
                    first,
                    segment.count,
                    segment.size_bytes,
                    segment.sent_ms,
                    segment.columns.pack(),
                )
            )
            self._dirty_segments[first] = segment

    def publish(self, publication: Publication) -> bool:
        """The commit is durable: its messages may be received. Whether any became visible now."""
        woke = False
        if self._loading:
            self._dead_late += publication.dead
        else:
            self._dying.difference_update(publication.dead)
        for segment in publication.segments:
            del self._committing[segment.first]
            if segment.first < self._trim or segment.first in self.segments or segment.first in self._dying:
                continue  # purged, or a load was quicker
            if segment.due_ms:
                self._publish_delayed(segment)
            elif self._more or self._ready.messages >= self._window or self.content_bytes > limits.CONTENT_BYTES:
                self._more = True
                self._skips += 1
                woke = True
                self._admit_quiet(segment)
            elif (segment.due_ms, segment.first) > self._cursor:
                self._cursor = (0, segment.first)
                self._hold(segment)
                woke = self._arrive(segment) or woke
        return woke

    def _admit_quiet(self, segment: Segment) -> None:
        """Lets messages of tenants that have nothing here wait here at once, although the rest of the segment stays in the
        store only: they count as taken when its page comes."""
        if isinstance(self._ready, FifoReady):
            return
        self._ready.note_sent(segment)
        if len(self._early) >= limits.EARLY_SEGMENTS:
            return
        mask = self._ready.newcomers(segment)
        if mask and self.content_bytes < 2 * limits.CONTENT_BYTES:
            segment.arrived = False
            segment.taken = mask
            self._early.add(segment.first)
            self._hold(segment)
            self._ready.arrive(segment, mask)

    @property
    def _window(self) -> int:
        return limits.FIFO_WINDOW_MESSAGES if self.fifo else limits.WINDOW_MESSAGES

    @property
    def _low_water(self) -> int:
        # A FIFO queue wants its whole window in memory: the group that can be served may be far behind.
        return limits.FIFO_WINDOW_MESSAGES if self.fifo else limits.LOW_WATER_MESSAGES

    def _publish_delayed(self, segment: Segment) -> None:
        key = (segment.due_ms, segment.first)
        held = len(self._delayed) + len(self._due)
        if key > self._delayed_cursor and (self._more_delayed or held >= limits.DELAYED_SEGMENTS):
            self._more_delayed = True
            self._skips += 1
            self._unloaded_delayed += segment.count
            return
        self._delayed_cursor = max(self._delayed_cursor, key)
        self._hold(segment)
        self._push_delayed(segment)
        if held >= 2 * limits.DELAYED_SEGMENTS:
            self._leave_last_delayed()

    def _leave_last_delayed(self) -> None:
        """Keeps those due first in memory and leaves the others to the store."""
        ordered = sorted([(segment.due_ms, segment.first, segment) for segment in self._due] + self._delayed)
        delayed = {segment.first for _, _, segment in self._delayed}
        kept = ordered[: limits.DELAYED_SEGMENTS]
        for entry in ordered[limits.DELAYED_SEGMENTS :]:
            segment = entry[2]
            if segment.taken or self.segments.get(segment.first) is not segment:
                kept.append(entry)
                continue
            if segment.first in delayed:
                self._delayed_messages -= segment.live
            if segment.due_ms > self._loaded_ms:
                self._unloaded_delayed += segment.live
            self._drop_content(segment)
            del self.segments[segment.first]
        self._due = deque(entry[2] for entry in kept if entry[1] not in delayed)
        self._delayed = [entry for entry in kept if entry[1] in delayed]
        self._delayed_cursor = ordered[limits.DELAYED_SEGMENTS - 1][:2]
        self._more_delayed = True
        self._skips += 1

    def _push_delayed(self, segment: Segment) -> None:
        heapq.heappush(self._delayed, (segment.due_ms, segment.first, segment))
        self._delayed_messages += segment.live
        self._drop_excess_content(segment)

    def _drop_excess_content(self, segment: Segment) -> None:
        if self.content_bytes > limits.CONTENT_BYTES and segment.columns is not None:
            self._drop_content(segment)

    def _hold(self, segment: Segment) -> None:
        self.segments[segment.first] = segment
        self._note_age(segment)
        self._count_content(segment.memory_bytes())

    def _note_age(self, segment: Segment) -> None:
        self._by_age.add(segment)
        self._by_end.add(segment)

    def _take_content(self, segment: Segment, payload: bytes) -> None:
        segment.columns = Columns.unpack(payload)
        self._count_content(segment.memory_bytes())
        if segment.note_times():
            self._note_age(segment)

    def _count_content(self, change_bytes: int) -> None:
        self.content_bytes += change_bytes
        self._budget.used_bytes += change_bytes

    def _drop_content(self, segment: Segment) -> None:
        self._count_content(-segment.memory_bytes())
        segment.columns = None

    def _drop_delivered_content(self, segment: Segment) -> None:
        if segment.columns is not None and (
            segment.first in self._early or not segment.all_mask & ~segment.deleted & ~(segment.taken ^ segment.again)
        ):
            self._drop_content(segment)

    def shed(self) -> None:
        """Drops all content from memory; it is loaded again when it is to be delivered."""
        for segment in self.segments.values():
            if segment.columns is not None:
                self._drop_content(segment)

    # Paging

    def wants(self) -> LoadArrivals | LoadContent | None:
        """What should be loaded now; at most one load is under way. The owner calls `loaded_…` or drops the queue."""
        if self._loading:
            return None
        want: LoadArrivals | LoadContent | None = None
        if self._missing:
            want = LoadContent(self._missing_page())
        elif self._more and self._ready.messages < self._low_water and self._has_content_room:
            if self.fifo and self.content_bytes >= limits.CONTENT_BYTES:
                # All that waits is locked: its content makes room for groups that can be served.
                self.shed()
            want = LoadArrivals(self._cursor, 0, self._skips)
        elif self._more_delayed and not (self.fifo and self._more) and self._has_delayed_room:
            want = LoadArrivals(self._delayed_cursor, _FOREVER_MS, self._skips)
        self._loading = want is not None
        return want

    @property
    def _has_delayed_room(self) -> bool:
        # (The next page comes after all that is in memory: while something due waits there for room, it has time.)
        held = len(self._delayed) + len(self._due)
        return held < limits.DELAYED_SEGMENTS // 2 and not (self._due and self.content_bytes > limits.CONTENT_BYTES)

    def _missing_page(self) -> list[SegmentKey]:
        keys: list[SegmentKey] = []
        room = limits.PAGE_BYTES
        for segment in self._missing.values():
            if keys and (room < segment.size_bytes or len(keys) == limits.PAGE_SEGMENTS):
                break
            room -= segment.size_bytes
            keys.append(segment.key(self.log_id))
        return keys

    @property
    def _has_content_room(self) -> bool:
        # What is in memory may be content that is not served now (delayed, in flight, or of a locked group): with nothing
        # ready a page is needed whatever it costs.
        return self.content_bytes < limits.CONTENT_BYTES or not self._ready.can_serve

    def _segment_of(self, loaded: LoadedSegment) -> Segment:
        row, state = loaded.segment, loaded.state
        columns = Columns.unpack(row.payload) if row.payload is not None else None
        segment = Segment(row.first, row.count, row.due_ms, row.sent_ms, row.size_bytes, columns)
        if state is not None:
            segment.deleted = mask_of(state.deleted)
            segment.live = row.count - state.deleted_count
            segment.deleted_bytes = state.deleted_bytes
            segment.stored_state = True
        return segment

    def loaded_arrivals(self, want: LoadArrivals, rows: list[LoadedSegment], *, complete: bool, now_ms: int) -> bool:
        """Takes up a page; `complete` says that the store had no more. Whether anything became visible."""
        woke = False
        delayed = want.until_due_ms != 0
        committing = self._committing
        for loaded in rows:
            row = loaded.segment
            key = (row.due_ms, row.first)
            if delayed:
                self._delayed_cursor = max(self._delayed_cursor, key)
            elif row.first not in committing:
                self._cursor = max(self._cursor, key)
            if row.first < self._trim or row.first in committing:
                continue  # (What is being committed is about to be published.)
            segment = self.segments.get(row.first)
            was_due = row.due_ms <= now_ms or segment is not None
            if segment is None:
                if row.first in self._dying:
                    continue
                segment = self._segment_of(loaded)
                self._hold(segment)
                if row.due_ms > self._loaded_ms:
                    self._unloaded_delayed -= segment.live
            elif segment.arrived:
                continue
            elif segment.columns is None and row.payload is not None:
                self._take_content(segment, row.payload)
            self._missing.pop(segment.first, None)
            self._early.discard(segment.first)
            self._note_sparse(segment)
            if was_due and row.due_ms:
                segment.arrived = True
                self._due.append(segment)
                self._drop_excess_content(segment)
            elif was_due:
                woke = self._arrive(segment) or woke
            else:
                segment.arrived = True
                self._push_delayed(segment)
            self._drop_delivered_content(segment)
        self._load_ended()
        if delayed:
            self._more_delayed = not complete or want.skips != self._skips
        else:
            self._more = not complete or want.skips != self._skips
        woke = self._admit_due() or woke
        if woke or rows:
            self._sweep_ms = min(self._sweep_ms, now_ms)
        return woke

    def loaded_content(self, want: LoadContent, rows: list[LoadedSegment], now_ms: int) -> bool:
        """Takes up content that was missing. Segments the store could not give (quarantined) are taken out of service."""
        self._load_ended()
        woke = False
        given = {loaded.segment.first: loaded for loaded in rows}
        for key in want.keys:
            segment = self._missing.pop(key.first, None)
            if segment is None or self.segments.get(key.first) is not segment:
                continue
            loaded = given.get(key.first)
            if loaded is None or loaded.segment.payload is None:
                self._quarantine(segment, now_ms)
                continue
            if segment.columns is None:
                self._take_content(segment, loaded.segment.payload)
                self._note_sparse(segment)
            woke = True
        self._pay_owed()
        return woke

    def _pay_owed(self) -> None:
        """What was due and has its content now becomes visible: on a FIFO queue in order, so only up to the first without.

        (A segment of which messages had been received when the queue was loaded is not owed: its page brings it.)"""
        owed, self._owed = self._owed, {}
        for segment in owed.values():
            if self.segments.get(segment.first) is segment and segment.live:
                self._arrive(segment)
        self._admit_due()

    @property
    def may_load(self) -> bool:
        """Whether a load is under way, or needed before it is certain that nothing can be received now."""
        beyond = self._more and self._ready.messages < self._low_water and not self._ready.can_serve
        return self._loading or bool(self._missing) or beyond or self._admits

    def load_failed(self) -> None:
        """The load raised: it may be asked for again."""
        self._load_ended()

    def _load_ended(self) -> None:
        self._loading = False
        self._dying.difference_update(self._dead_late)
        self._dead_late = []

    def _quarantine(self, segment: Segment, now_ms: int) -> None:
        """The store cannot give a segment's content: serve nothing of it, whoever has it, and leave its row alone."""
        if segment.first in self._dirty_segments:
            # (Its state still says what was deleted, not what is lost.)
            self._dirty_segments[segment.first] = copy.copy(segment)
        lost = segment.all_mask & ~segment.deleted
        before = segment.deleted_bytes
        self.messages -= segment.delete(lost)
        self.size_bytes -= segment.deleted_bytes - before
        self._drop_content(segment)
        del self.segments[segment.first]
        self._missing.pop(segment.first, None)
        self._owed.pop(segment.first, None)
        self._early.discard(segment.first)
        self._drop_deleted_runs({segment.first}, now_ms)

    # The whole queue

    def purge(self, now_ms: int) -> int:
        """Deletes everything, in flight and delayed too; returns how many messages. Sends decided before count as purged."""
        count = self.messages
        for open_ in self._open:
            open_.columns = Columns()
        self._open, self._newest_open = [], {}
        self._trim = self._next
        self._trimmed = True
        self._ready = FifoReady() if self.fifo else StandardReady()
        self.shed()
        self.segments.clear()
        self._by_age.clear()
        self._by_end.clear()
        for delivery in self.deliveries.values():
            if delivery.stored:
                self._dead_deliveries.append(delivery.number)
            for run in delivery.all_runs():
                run.mask = 0
        self.deliveries.clear()
        self._dirty_deliveries.clear()
        self._dirty_segments.clear()
        self._dead_segments.clear()
        self._sparse.clear()
        self._visibility.clear()
        self._timed_runs = 0
        self._delayed.clear()
        self._missing.clear()
        self._owed.clear()
        self._due.clear()
        self._early.clear()
        self.messages = self.size_bytes = self.in_flight = 0
        self._delayed_messages = self._unloaded_delayed = 0
        self._more = self._more_delayed = False
        self._skips += 1
        self._cursor = (0, self._trim - 1)
        self._delayed_cursor = (0, 2**63 - 1)
        self._sweep_ms = now_ms
        return count

    def taken_of(self, first: int) -> list[Run]:
        """The runs of a segment that were received, whether in flight or waiting again."""
        return [run for delivery in self.deliveries.values() for run in delivery.runs.get(first, ())]

    @property
    def delayed(self) -> int:
        """Messages that are not due yet (of those in the store only: that were not when they were left there)."""
        return self._delayed_messages + self._unloaded_delayed

    @property
    def visible(self) -> int:
        """Messages that could be received now."""
        waiting = sum(len(open_.columns.bodies) for open_ in self._open) + sum(one.count for one in self._committing.values())
        return max(0, self.messages - self.in_flight - self.delayed - waiting)

    @property
    def oldest_ms(self) -> int | None:
        """The send time of the oldest message; what is only in the store is younger than what is in memory."""
        return self._by_age.oldest()

    @property
    def has_ready(self) -> bool:
        """Whether a receive might find something in memory."""
        return self._ready.messages > 0


def _running(timer: _Timer) -> list[Run]:
    """The runs that still wait for this timer."""
    visible_ms, _, runs = timer
    return [run for run in runs if run.mask and not run.waiting and run.visible_ms == visible_ms]


def _lowest_sequence(run: Run) -> int:
    return run.lowest_sequence


def _fitting(bodies: list[bytes], room: int, *, at_least_one: bool) -> list[bytes]:
    """The longest prefix that has at most `room` bytes."""
    count = 0
    for body in bodies:
        room -= len(body)
        if room < 0:
            break
        count += 1
    return bodies[: max(count, 1 if at_least_one else 0)]


def _as_runs(sequences: list[int]) -> list[messages.Run]:
    runs: list[list[int]] = []
    for sequence in sequences:
        if runs and runs[-1][0] + runs[-1][1] == sequence:
            runs[-1][1] += 1
        else:
            runs.append([sequence, 1])
    return [messages.Run(first, count) for first, count in runs]
