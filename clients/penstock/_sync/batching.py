# Generated from clients/penstock/_async/batching.py by tools/generate_blocking_client.py (make sync-client): edit that file.
"""Merging: concurrent single sends (deletes, visibility changes) of one queue travel in one frame.

While a batch is on its way the next one fills, as in the broker's commit lane. A lone message goes out at once; under
load batches grow by themselves. All who share a batch wait for one event and pick their result by their place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from penstock import _backend_threads as backend
from penstock._sync.link import Link, Request, operation_of
from penstock.errors import PenstockError
from penstock.types import ReceiptHandle, SentMessage
from penstock_protocol import codec
from penstock_protocol import queue_messages as wire
from penstock_protocol.errors import error_from_wire

BATCH_MESSAGES = 500
BATCH_BYTES = 1_048_576
CONCURRENT_BATCHES = 4
"""Batches on their way per queue. A FIFO queue has one: the order of sends must survive a retry."""

_COLUMNS = ("attributes", "delays_ms", "groups", "deduplication_ids", "traces")


def fresh(error: PenstockError) -> PenstockError:
    """A copy to raise: one error object shared by many tasks would mix their tracebacks."""
    return type(error)(str(error))


class Sequences:
    """Numbers the sends of one client, so that the broker tells a retry from a new send."""

    def __init__(self) -> None:
        self._next = 1
        self._open: dict[int, None] = {}

    def take(self) -> tuple[int, int]:
        """A new number, and the bound below which everything was answered. The caller holds the mutex."""
        number = self._next
        self._next += 1
        self._open[number] = None
        return number, next(iter(self._open))

    def done(self, number: int) -> None:
        """It was answered."""
        self._open.pop(number, None)


class SendBatch:
    """Messages that are sent together: columns, and after `done` the answer."""

    __slots__ = ("bodies", "columns", "done", "error", "failures", "log", "sequences", "single_run", "size_bytes")

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.columns: dict[str, list[Any]] = {}
        self.size_bytes = 0
        self.done = backend.Event()
        self.error: PenstockError | None = None
        self.failures: dict[int, PenstockError] = {}
        self.log = 0
        self.single_run = -1
        self.sequences: list[int] = []

    def add(self, body: bytes, values: dict[str, Any] | None) -> int:
        """Adds a message; returns its place."""
        place = len(self.bodies)
        self.bodies.append(body)
        self.size_bytes += len(body)
        if values or self.columns:
            for name in _COLUMNS:
                value = values.get(name) if values else None
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


class Sender:
    """The sends of one queue."""

    def __init__(self, link: Link, queue: str, sequences: Sequences) -> None:
        self._link = link
        self._queue = queue
        self._sequences = sequences
        self._concurrent = 1 if queue.endswith(".fifo") else CONCURRENT_BATCHES
        self._open = SendBatch()
        self._full: deque[SendBatch] = deque()
        self._on_the_way = 0
        self._operation = operation_of(wire.SendMessages("", []), None)

    def join(self, body: bytes, values: dict[str, Any] | None) -> tuple[SendBatch, int]:
        """Puts a message into the open batch; sends it if nothing holds it back."""
        with self._link.mutex:
            batch = self._open
            if batch.bodies and (len(batch.bodies) >= BATCH_MESSAGES or batch.size_bytes + len(body) > BATCH_BYTES):
                self._full.append(batch)
                batch = self._open = SendBatch()
            place = batch.add(body, values)
            if self._on_the_way < self._concurrent:
                self._send_next()
        return batch, place

    def send_batch(self, batch: SendBatch) -> None:
        """Sends a batch of its own, behind what waits already."""
        with self._link.mutex:
            if self._open.bodies:
                self._full.append(self._open)
                self._open = SendBatch()
            self._full.append(batch)
            if self._on_the_way < self._concurrent:
                self._send_next()

    def _send_next(self) -> None:
        if self._full:
            batch = self._full.popleft()
        elif self._open.bodies:
            batch = self._open
            self._open = SendBatch()
        else:
            return
        self._on_the_way += 1
        number, acknowledged = self._sequences.take()

        def on_done(reply: codec.Message | None, error: PenstockError | None) -> None:
            with self._link.mutex:
                self._sequences.done(number)
                self._on_the_way -= 1
                self._send_next()
            batch.answer(reply, error)

        deadline = backend.monotonic() + self._link.options.request_timeout
        message = batch.to_wire(self._queue, number, acknowledged)
        self._link.submit(Request(self._operation, message, on_done, deadline, resend=True))


class _ReceiptBatch:
    """Handles that are settled together, merged by delivery as they come."""

    __slots__ = ("count", "done", "error", "failures", "masks", "order", "timeouts")

    def __init__(self) -> None:
        self.masks: list[int] = []
        self.order: dict[tuple[bytes, int, int], int] = {}
        self.timeouts: list[int] = []
        self.count = 0
        self.done = backend.Event()
        self.error: PenstockError | None = None
        self.failures: list[wire.ReceiptFailure] = []

    def add(self, handle: ReceiptHandle, timeout_ms: int) -> tuple[int, int]:
        key = (handle.receipt, handle.first, timeout_ms)
        place = self.order.get(key)
        if place is None:
            place = self.order[key] = len(self.masks)
            self.masks.append(0)
            self.timeouts.append(timeout_ms)
        bit = 1 << handle.index
        self.masks[place] |= bit
        self.count += 1
        return place, bit

    def receipts(self) -> list[wire.Receipt]:
        return [
            wire.Receipt(receipt, first, mask.to_bytes((mask.bit_length() + 7) // 8, "little"))
            for (receipt, first, _), mask in zip(self.order, self.masks, strict=True)
        ]

    def check(self, place: int, bit: int) -> None:
        """Raises if this handle was refused."""
        if self.error is not None:
            raise fresh(self.error)
        for failure in self.failures:
            if failure.entry == place and int.from_bytes(failure.mask, "little") & bit:
                raise error_from_wire(failure.code, failure.text)


class Settler:
    """The deletes or the visibility changes of one queue: `make(receipts, timeouts)` builds the request."""

    def __init__(
        self, link: Link, make: Callable[[list[wire.Receipt], list[int]], wire.DeleteMessages | wire.ChangeVisibility]
    ) -> None:
        self._link = link
        self._make = make
        self._open = _ReceiptBatch()
        self._on_the_way = 0

    def join(self, handles: list[ReceiptHandle], timeout_ms: int) -> tuple[_ReceiptBatch, list[tuple[int, int]]]:
        """Adds handles to the open batch; sends it if nothing holds it back."""
        with self._link.mutex:
            batch = self._open
            places = [batch.add(handle, timeout_ms) for handle in handles]
            if self._on_the_way < CONCURRENT_BATCHES:
                self._send_next()
        return batch, places

    def _send_next(self) -> None:
        batch = self._open
        if not batch.count:
            return
        self._open = _ReceiptBatch()
        self._on_the_way += 1

        def on_done(reply: codec.Message | None, error: PenstockError | None) -> None:
            with self._link.mutex:
                self._on_the_way -= 1
                self._send_next()
            if isinstance(reply, wire.ReceiptReply):
                batch.failures = reply.failures
            batch.error = error
            batch.done.set()

        message = self._make(batch.receipts(), batch.timeouts)
        deadline = backend.monotonic() + self._link.options.request_timeout
        self._link.submit(Request(operation_of(message, None), message, on_done, deadline, resend=True))
