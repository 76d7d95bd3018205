# Generated from clients/penstock/_async/batching.py by tools/generate_blocking_client.py (make sync-client): edit that file.
"""Merging: concurrent single sends (deletes, visibility changes) of one queue travel in one frame.

While a few batches are on their way the next one fills, as in the broker's commit lane. A lone message goes out at once; under
load batches grow by themselves. All who share a batch wait for one event and pick their result by their place: no future
per message.

Everything here runs under the link's mutex, or is called back by the link.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

from penstock import _backend_threads as backend
from penstock._sync.link import Link, Request, operation_of
from penstock.errors import (
    MessageNotInFlight,
    NotConnected,
    PenstockError,
    ReceiptHandleExpired,
    RequestTimeout,
    fresh,
)
from penstock.outgoing import COLUMNS, Properties, entry_of
from penstock.types import OutgoingMessage, SentMessage, mask_bytes
from penstock_protocol import codec
from penstock_protocol import queue_messages as wire
from penstock_protocol.errors import error_from_wire

BATCH_MESSAGES: Final = 500
"""Singles in one frame: half of a segment in the broker."""

BATCH_BYTES: Final = 1_048_576
"""Of singles in one frame. One larger message travels alone."""

BATCH_ELEMENTS: Final = 50_000
"""Array elements in one frame: half of what a broker decodes (codec.MAX_ELEMENTS)."""

BATCH_RECEIPTS: Final = 4_000
"""Receipts in one frame: far below codec.MAX_ARRAY_LENGTH."""

MAX_BATCH: Final = 10_000
"""Messages in one frame that a broker takes."""

CONCURRENT_BATCHES: Final = 4
"""Batches of merged singles on their way per queue: the next one fills meanwhile. A FIFO queue has one of any kind: the order
of sends must survive a retry."""

CONCURRENT_FULL_BATCHES: Final = 32
"""Batches on their way per queue that nothing can join any more, because they are full or came as one: to hold them back would
only cost time. (Four tasks that send 100 each time wait for the broker; sixteen keep it busy, and reach half as much again.)"""

FRAME_RESERVE: Final = 4_096
"""Bytes of a frame that are not messages: the queue's name, numbers, headers of arrays."""


class Sequences:
    """Numbers the sends of one client, so that the broker tells a retry from a new send. The caller holds the mutex."""

    def __init__(self) -> None:
        self._next = 1
        self._open: dict[int, None] = {}

    def take(self) -> tuple[int, int]:
        """A new number, and the bound below which everything was answered."""
        number = self._next
        self._next += 1
        self._open[number] = None
        return number, next(iter(self._open))

    def done(self, number: int) -> None:
        """It was answered, or is never sent again."""
        self._open.pop(number, None)


class SendBatch:
    """Messages that are sent together: columns, and after `done` the answer."""

    __slots__ = (
        "bodies",
        "columns",
        "deadline",
        "done",
        "elements",
        "error",
        "failures",
        "log",
        "sequences",
        "single_run",
        "size_bytes",
    )

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.columns: dict[str, list[Any]] = {}
        self.size_bytes = 0
        self.elements = 0
        self.deadline = 0.0
        self.done = backend.Event()
        self.error: PenstockError | None = None
        self.failures: dict[int, PenstockError] = {}
        self.log = 0
        self.single_run = -1
        self.sequences: list[int] = []

    def has_room(self, body: bytes, more: Properties | None, messages: int, limit_bytes: int) -> bool:
        """Whether a message fits in as well. An empty batch takes any."""
        size_bytes = self.size_bytes + len(body)
        elements = self.elements
        if more is not None:
            size_bytes += more.size_bytes
            elements += more.elements
        return not self.bodies or (len(self.bodies) < messages and size_bytes <= limit_bytes and elements < BATCH_ELEMENTS)

    def add(self, body: bytes, more: Properties | None) -> int:
        """Adds a message; returns its place."""
        place = len(self.bodies)
        self.bodies.append(body)
        self.size_bytes += len(body) + 5
        self.elements += 1
        if more is not None or self.columns:
            values: dict[str, Any] = {}
            if more is not None:
                self.size_bytes += more.size_bytes
                self.elements += more.elements
                values = more.values
            self.elements += len(COLUMNS)
            for name in COLUMNS:
                value = values.get(name)
                column = self.columns.get(name)
                if column is not None:
                    column.append(value)
                elif value is not None:
                    self.columns[name] = [*([None] * place), value]
        return place

    def to_wire(self, queue: str, sequence: int, acknowledged: int) -> wire.SendMessages:
        """The request."""
        column = self.columns.get
        return wire.SendMessages(
            queue,
            self.bodies,
            column("attributes"),
            column("delays_ms"),
            column("groups"),
            column("deduplication_ids"),
            column("traces"),
            sequence,
            acknowledged,
        )

    def answer(self, reply: codec.Message | None, error: PenstockError | None) -> None:
        """Takes up the reply and wakes who waits."""
        if isinstance(reply, wire.SendReply):
            self.log = reply.log
            if len(reply.runs) == 1 and not reply.failures:
                self.single_run = reply.runs[0].first
            else:
                accepted = iter([run.first + offset for run in reply.runs for offset in range(run.count)])
                self.failures = {one.index: error_from_wire(one.code, one.text) for one in reply.failures}
                self.sequences = [-1 if place in self.failures else next(accepted) for place in range(len(self.bodies))]
        self.error = error
        self.done.set()

    def result(self, place: int) -> SentMessage:
        """The outcome of one message; raises its error."""
        if self.error is not None:
            raise fresh(self.error)
        if self.single_run >= 0:
            return SentMessage(self.log, self.single_run + place)
        failure = self.failures.get(place)
        if failure is not None:
            raise failure
        return SentMessage(self.log, self.sequences[place])

    def results(self) -> list[SentMessage | PenstockError]:
        """The outcomes of all messages, in order."""
        if self.error is not None:
            return [self.error] * len(self.bodies)
        log = self.log
        if self.single_run >= 0:
            return [SentMessage(log, sequence) for sequence in range(self.single_run, self.single_run + len(self.bodies))]
        failures = self.failures
        return [failures.get(place) or SentMessage(log, sequence) for place, sequence in enumerate(self.sequences)]


def batches_of(messages: Iterable[bytes | str | OutgoingMessage], limit_bytes: int) -> list[SendBatch]:
    """Messages in as few batches as possible. TypeError or InvalidMessage when one cannot be sent."""
    rows = list(messages)
    if len(rows) <= MAX_BATCH and set(map(type, rows)) == {bytes}:
        plain = SendBatch()
        plain.bodies = cast(list[bytes], rows)
        plain.size_bytes = sum(map(len, plain.bodies)) + 5 * len(rows)
        if plain.size_bytes <= limit_bytes:
            return [plain]
    batches: list[SendBatch] = []
    for message in rows:
        body, more = entry_of(message)
        if not batches or not batches[-1].has_room(body, more, MAX_BATCH, limit_bytes):
            batches.append(SendBatch())
        batches[-1].add(body, more)
    return batches


class Sender:
    """The sends of one queue."""

    def __init__(self, link: Link, queue: str, sequences: Sequences) -> None:
        self._link = link
        self._queue = queue
        self._sequences = sequences
        is_fifo = queue.endswith(".fifo")
        self.concurrent = 1 if is_fifo else CONCURRENT_BATCHES
        self._concurrent_full = 1 if is_fifo else CONCURRENT_FULL_BATCHES
        self._open = SendBatch()
        self._full: deque[SendBatch] = deque()
        self._on_the_way = 0
        self._sending = False
        self._operation = operation_of(wire.SendMessages("", []))

    def limit_bytes(self, wanted: int) -> int:
        """How much a batch may hold, as far as the broker's frame limit is known."""
        return min(wanted, self._link.max_frame_bytes - FRAME_RESERVE)

    def join(self, body: bytes, more: Properties | None) -> tuple[SendBatch, int]:
        """Puts a message into the open batch; sends it if nothing holds it back."""
        with self._link.mutex:
            batch = self._open
            if batch.bodies:
                if not batch.has_room(body, more, BATCH_MESSAGES, self.limit_bytes(BATCH_BYTES)):
                    self._full.append(batch)
                    batch = self._open = self._new_batch()
            elif not batch.deadline:
                batch.deadline = backend.monotonic() + self._link.options.request_timeout
            place = batch.add(body, more)
            if self._full or self._on_the_way < self.concurrent:
                self._send_next()
        return batch, place

    def _new_batch(self) -> SendBatch:
        batch = SendBatch()
        batch.deadline = backend.monotonic() + self._link.options.request_timeout
        return batch

    def send_batch(self, batch: SendBatch) -> None:
        """Sends a batch of its own, behind what waits already."""
        with self._link.mutex:
            batch.deadline = backend.monotonic() + self._link.options.request_timeout
            if self._open.bodies:
                self._full.append(self._open)
                self._open = SendBatch()
            self._full.append(batch)
            self._send_next()

    def _send_next(self) -> None:
        """Sends what may be sent. A loop with a guard, for a batch may be answered while it is being submitted."""
        if self._sending:
            return
        self._sending = True
        try:  # (A Ctrl-C may come anywhere: those who send later must not wait for ever.)
            while self._on_the_way < (self._concurrent_full if self._full else self.concurrent):
                if self._full:
                    batch = self._full.popleft()
                elif self._open.bodies:
                    batch = self._open
                    self._open = SendBatch()
                else:
                    break
                if batch.deadline <= backend.monotonic():
                    batch.answer(None, RequestTimeout() if self._link.is_connected else NotConnected())
                    continue
                self._submit(batch)
        finally:
            self._sending = False

    def _submit(self, batch: SendBatch) -> None:
        number, acknowledged = self._sequences.take()

        def on_done(reply: codec.Message | None, error: PenstockError | None) -> None:
            with self._link.mutex:
                self._sequences.done(number)
                self._on_the_way -= 1
                self._send_next()
            batch.answer(reply, error)

        def make() -> Request:
            message = batch.to_wire(self._queue, number, acknowledged)
            return Request(self._operation, message, on_done, batch.deadline, resend=True)

        self._on_the_way += 1
        self._link.submit_made(make, on_done)


class ReceiptBatch:
    """Handles that are settled together, merged by delivery as they come; after `done` the answer."""

    __slots__ = ("_entries", "_masks", "_timeouts", "deadline", "done", "error", "failures")

    def __init__(self) -> None:
        self._entries: dict[tuple[bytes, int, int], int] = {}
        self._masks: list[int] = []
        self._timeouts: list[int] = []
        self.deadline = 0.0
        self.done = backend.Event()
        self.error: PenstockError | None = None
        self.failures: list[wire.ReceiptFailure] = []

    def __len__(self) -> int:
        return len(self._masks)

    def add(self, receipt: bytes, first: int, index: int, timeout_ms: int) -> tuple[int, int]:
        """Adds a handle, in its parts; returns its entry and its bit there."""
        key = (receipt, first, timeout_ms)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = len(self._masks)
            self._masks.append(0)
            self._timeouts.append(timeout_ms)
        bit = 1 << index
        self._masks[entry] |= bit
        return entry, bit

    def to_wire(self) -> tuple[list[wire.Receipt], list[int]]:
        """Receipts and timeouts."""
        masks = zip(self._entries, self._masks, strict=True)
        return [wire.Receipt(receipt, first, mask_bytes(mask)) for (receipt, first, _), mask in masks], self._timeouts

    def answer(self, reply: codec.Message | None, error: PenstockError | None, tries: int) -> None:
        """Takes up the reply and wakes who waits. What a repeated release finds not in flight, the first try has released."""
        if isinstance(reply, wire.ReceiptReply):
            gone = (MessageNotInFlight.code, ReceiptHandleExpired.code) if tries > 1 else ()
            self.failures = [one for one in reply.failures if one.code not in gone or self._timeouts[one.entry] != 0]
        self.error = error
        self.done.set()

    def problem(self, entry: int, bit: int) -> PenstockError | None:
        """The refusal of this handle, if it was refused."""
        if self.error is not None:
            return fresh(self.error)
        for failure in self.failures:
            if failure.entry == entry and int.from_bytes(failure.mask, "little") & bit:
                return error_from_wire(failure.code, failure.text)
        return None

    def check(self, entry: int, bit: int) -> None:
        """Raises if this handle was refused."""
        problem = self.problem(entry, bit)
        if problem is not None:
            raise problem


Place = tuple[ReceiptBatch, int, int]
"""Where a handle is: its batch, its entry, its bit."""


class Settler:
    """The deletes or the visibility changes of one queue: `make(receipts, timeouts)` builds the request, `releases` says that a
    timeout of 0 means a release."""

    def __init__(
        self,
        link: Link,
        make: Callable[[list[wire.Receipt], list[int]], wire.DeleteMessages | wire.ChangeVisibility],
        *,
        releases: bool,
    ) -> None:
        self._link = link
        self._make = make
        self._releases = releases
        self._open = ReceiptBatch()
        self._full: deque[ReceiptBatch] = deque()
        self._on_the_way = 0
        self._sending = False

    def join(self, handles: Iterable[tuple[bytes, int, int]], timeout_ms: int) -> list[Place]:
        """Adds handles, in their parts, to the open batch; sends it if nothing holds it back."""
        places = []
        with self._link.mutex:
            batch = self._open
            for receipt, first, index in handles:
                if len(batch) >= BATCH_RECEIPTS:
                    self._full.append(batch)
                    batch = self._open = ReceiptBatch()
                places.append((batch, *batch.add(receipt, first, index, timeout_ms)))
                if not batch.deadline:
                    batch.deadline = backend.monotonic() + self._link.options.request_timeout
            self._send_next()
        return places

    def _send_next(self) -> None:
        if self._sending:
            return
        self._sending = True
        try:
            while self._on_the_way < CONCURRENT_BATCHES:
                if self._full:
                    batch = self._full.popleft()
                elif len(self._open):
                    batch = self._open
                    self._open = ReceiptBatch()
                else:
                    break
                if batch.deadline <= backend.monotonic():
                    batch.answer(None, RequestTimeout() if self._link.is_connected else NotConnected(), 0)
                    continue
                self._submit(batch)
        finally:
            self._sending = False

    def _submit(self, batch: ReceiptBatch) -> None:
        request: Request | None = None

        def on_done(reply: codec.Message | None, error: PenstockError | None) -> None:
            with self._link.mutex:
                self._on_the_way -= 1
                self._send_next()
            batch.answer(reply, error, request.tries if request is not None and self._releases else 0)

        def make() -> Request:
            nonlocal request
            message = self._make(*batch.to_wire())
            request = Request(operation_of(message), message, on_done, batch.deadline, resend=True)
            return request

        self._on_the_way += 1
        self._link.submit_made(make, on_done)
