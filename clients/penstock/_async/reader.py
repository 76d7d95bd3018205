"""Reading: batches of records from one shard, or from all shards of a stream, in the order in which the broker took them.

A reader asks for more while the application works on what came last, up to a bound, and stops asking when nobody takes anything:
one that was forgotten costs nothing. Requests and replies go by callbacks under the link's mutex, without a task per shard.

Where a reader is, it knows itself: by the sequence number behind the last record it took in. So lost connections and expired
iterators cost no record and bring none twice.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Final, Literal, Self

from penstock_protocol import codec
from penstock_protocol import stream_messages as wire

from penstock import _backend_async as backend
from penstock._async.link import AsyncLink, Request, operation_of
from penstock._async.shards import list_shards
from penstock.errors import (
    ClientClosed,
    ConnectionLost,
    IteratorExpired,
    IteratorInvalid,
    NotConnected,
    PenstockError,
    ShardDoesNotExist,
    fresh,
)
from penstock.forks import FORKED
from penstock.records import RecordBatch

Start = Literal["trim_horizon", "latest"] | tuple[Literal["at", "after"], int] | datetime
"""Where reading begins: with the oldest record, with what comes from now on, at or after a sequence number, at a time."""

WAIT_SECONDS: Final = 20.0
"""How long the broker holds a read that has nothing to give."""

READ_AHEAD_BYTES: Final = 16 * 1_048_576
"""What may lie in a reader, before it stops asking for more."""

LOOK_SECONDS: Final = 5.0
"""How often somebody who waits looks whether the client is still there."""


ShardsFound = Callable[[list[wire.Shard], PenstockError | None], None]
"""Takes shards, or why there are none."""


class Cursor:
    """Where a reader is in one shard."""

    __slots__ = ("behind_ms", "ended", "is_dry", "iterator", "position", "renewed", "request", "shard", "start")

    def __init__(self, shard: int, start: str, position: int) -> None:
        self.shard = shard
        self.start = start
        self.position = position
        self.iterator = b""
        self.request: Request | None = None
        self.renewed = False
        self.is_dry = False
        self.ended = False
        self.behind_ms = 0


def start_of(start: Start) -> tuple[str, int]:
    """A start as the wire has it. ValueError when it is none."""
    if isinstance(start, datetime):
        return "time", max(0, math.ceil(start.timestamp() * 1000))
    if isinstance(start, tuple):
        kind, position = start
        if kind in ("at", "after"):
            return kind, position
    elif start in ("trim_horizon", "latest"):
        return start, 0
    raise ValueError(f"start = {start!r}: it must be 'trim_horizon', 'latest', ('at', n), ('after', n) or a datetime")


class AsyncReading:
    """What every reader is: cursors in shards, what came from them, and who takes it out."""

    def __init__(
        self,
        link: AsyncLink,
        stream: str,
        shard: int | None,
        start: Start,
        max_records: int,
        max_bytes: int,
        idle_seconds: float | None,
        deaggregate: bool,
    ) -> None:
        self._link = link
        self._stream = stream
        self._shard = shard
        self._start = start_of(start)
        if shard is None and self._start[0] in ("at", "after"):
            raise ValueError("a sequence number is a place in one shard: read that shard")
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._idle_seconds = idle_seconds
        self._deaggregate = deaggregate
        self._cursors: dict[int, Cursor] = {}
        self._parked: list[Cursor] = []
        self._pending = 0
        self._chosen: frozenset[int] = frozenset()
        self._known = 0
        self._ready: deque[RecordBatch] = deque()
        self._ready_bytes = 0
        self._takers: deque[backend.Event] = deque()
        self._was_useful = False
        self._is_begun = False
        self._closed = False
        self._error: PenstockError | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    async def next(self, seconds: float | None = None) -> RecordBatch | None:
        """The next batch; None at the end (the shard is closed and read out, the reader was closed), or when none came within
        `seconds`. Raises what ended the reader. After a cancellation no record is lost."""
        until = math.inf if seconds is None else backend.monotonic() + seconds
        while True:
            with self._link.mutex:
                if self._link.is_left:
                    raise ClientClosed(FORKED)
                if self._ready:
                    return self._take_out()
                if self._error is not None:
                    raise fresh(self._error)
                if self._is_over():
                    return None
                arrived = backend.Event()
                self._takers.append(arrived)
                if not self._is_begun:
                    self._is_begun = True
                    self._begin()
                self._resume()
            try:
                woken = await arrived.wait_for(min(LOOK_SECONDS, max(0.0, until - backend.monotonic())))
            except BaseException:
                self._leave(arrived)
                raise
            if not woken:
                self._leave(arrived)
                if backend.monotonic() >= until and not self._ready:
                    return None

    def close(self) -> None:
        """Ends it; safe to call twice."""
        with self._link.mutex:
            if self._closed:
                return
            self._closed = True
            self._ready.clear()
            self._wake()
            requests = [one.request for one in self._cursors.values() if one.request is not None]
            for request in requests:
                self._link.abandon(request)

    @property
    def behind_seconds(self) -> float:
        """How long ago the oldest record arrived that has not come here yet; 0 at the tip."""
        with self._link.mutex:
            return max((one.behind_ms for one in self._cursors.values() if not one.ended), default=0) / 1000

    @property
    def positions(self) -> dict[int, int]:
        """By shard, the sequence number behind the last record that was taken out: `("at", position)` goes on there."""
        with self._link.mutex:
            ahead: dict[int, int] = {one.shard: one.position for one in self._cursors.values() if one.start == "at"}
            for batch in reversed(self._ready):
                ahead[batch.shard] = batch.first
            return ahead

    # Taking out

    def _take_out(self) -> RecordBatch:
        batch = self._ready.popleft()
        self._ready_bytes -= batch.blob_bytes
        if self._parked and self._ready_bytes * 2 <= READ_AHEAD_BYTES:
            self._resume()
        return batch

    def _leave(self, arrived: backend.Event) -> None:
        """A taker goes. If it was woken already, it wakes another in its place."""
        with self._link.mutex:
            if arrived in self._takers:
                self._takers.remove(arrived)
            elif self._ready and self._takers:
                self._takers.popleft().set()

    def _wake(self) -> None:
        while self._takers:
            self._takers.popleft().set()

    def _is_over(self) -> bool:
        if self._closed or self._link.is_closed:
            return True
        if not self._is_begun or self._pending:
            return False
        return all(one.ended or one.is_dry for one in self._cursors.values())

    # Beginning: which shards

    def _begin(self) -> None:
        kind, position = self._start
        if self._shard is not None and kind != "latest":
            self._add(Cursor(self._shard, kind, position))
            return
        self._pending += 1
        request = wire.ListShards(self._stream)
        if self._shard is not None:
            request = wire.ListShards(self._stream, self._shard, 1)
            self._ask_one(request, self._found)
        else:
            list_shards(self._link, request, self._found)

    def _ask_one(self, request: wire.ListShards, on_done: ShardsFound) -> None:
        def on_page(reply: codec.Message | None, error: PenstockError | None) -> None:
            on_done(reply.shards if isinstance(reply, wire.Shards) else [], error)

        deadline = backend.monotonic() + self._link.options.request_timeout
        self._link.submit(Request(operation_of(request), request, on_page, deadline, resend=True))

    def _found(self, shards: list[wire.Shard], error: PenstockError | None) -> None:
        with self._link.mutex:
            self._pending -= 1
            if self._shard is not None:
                shards = [one for one in shards if one.shard == self._shard]
                if error is None and not shards:
                    error = ShardDoesNotExist(f"{self._stream} has no shard {self._shard}")
            if error is not None:
                self._fail(error)
                return
            for shard in self._first_shards(shards):
                kind, position = self._start
                self._add(Cursor(shard.shard, "at", shard.end) if kind == "latest" else Cursor(shard.shard, kind, position))
            self._wake()

    def _first_shards(self, shards: list[wire.Shard]) -> list[wire.Shard]:
        """Those to begin with: who has records after the start, and no parent among them. The others follow as children."""
        if self._shard is not None:
            return shards
        kind, position = self._start
        bound = {"latest": math.inf, "time": position}.get(kind, -1)
        chosen = {one.shard: one for one in shards if one.closed_ms is None or one.closed_ms >= bound}
        self._chosen = frozenset(chosen)
        self._known = max((one.shard for one in shards), default=-1) + 1
        return [one for one in chosen.values() if not any(parent in chosen for parent in one.parents)]

    def _add(self, cursor: Cursor) -> None:
        self._cursors[cursor.shard] = cursor
        self._open(cursor)

    # Reading on

    def _open(self, cursor: Cursor) -> None:
        if self._closed:
            return
        message = wire.OpenIterator(self._stream, cursor.shard, cursor.start, cursor.position)
        self._submit(cursor, message, self._link.options.request_timeout)

    def _read(self, cursor: Cursor) -> None:
        """Asks for more, or parks the cursor while there is enough, or nobody to take it."""
        if self._closed or self._error is not None:
            return
        if self._ready_bytes >= READ_AHEAD_BYTES or not (self._takers or self._ready):
            self._parked.append(cursor)
            return
        seconds = WAIT_SECONDS if self._idle_seconds is None else min(WAIT_SECONDS, self._idle_seconds)
        message = wire.ReadRecords(cursor.iterator, self._max_records, self._max_bytes, round(seconds * 1000))
        self._submit(cursor, message, seconds + self._link.options.request_timeout)

    def _resume(self) -> None:
        parked, self._parked = self._parked, []
        for cursor in parked:
            self._read(cursor)

    def _submit(self, cursor: Cursor, message: codec.Message, seconds: float) -> None:
        def on_done(reply: codec.Message | None, error: PenstockError | None) -> None:
            with self._link.mutex:
                cursor.request = None
                if error is not None:
                    self._trouble(cursor, error)
                elif isinstance(reply, wire.Iterator):
                    cursor.iterator = reply.iterator
                    self._was_useful = True
                    self._read(cursor)
                elif isinstance(reply, wire.Records):
                    self._take_in(cursor, reply)

        deadline = backend.monotonic() + seconds
        cursor.request = Request(operation_of(message), message, on_done, deadline, resend=True)
        self._link.submit(cursor.request)

    def _take_in(self, cursor: Cursor, reply: wire.Records) -> None:
        if self._closed:
            return
        cursor.renewed = False
        cursor.behind_ms = reply.behind_ms
        came = self._keep(cursor, reply.start, reply.runs)
        cursor.is_dry = not came and self._idle_seconds == 0
        cursor.iterator = reply.next
        if reply.next and not cursor.is_dry:
            self._read(cursor)
        elif not reply.next:
            cursor.ended = True
            if self._shard is None:
                self._follow(reply.children)
        if came or self._is_over():
            self._wake()

    def _keep(self, cursor: Cursor, start: int, runs: list[wire.RecordRun]) -> list[RecordBatch]:
        """Keeps the records from `start` on to be taken out; returns them."""
        came: list[RecordBatch] = []
        for run in runs:
            first = run.first
            for batch in run.batches:
                end = first + batch.count
                if end > start:
                    skip = max(0, start - first)
                    came.append(RecordBatch(cursor.shard, first, run.arrived_ms, batch, skip, self._deaggregate))
                    self._ready_bytes += len(batch.blob)
                first = end
            cursor.start, cursor.position = "at", first
        self._ready.extend(came)
        return came

    def _trouble(self, cursor: Cursor, error: PenstockError) -> None:
        if self._closed:
            return
        if isinstance(error, (IteratorExpired, IteratorInvalid)) and not cursor.renewed:
            cursor.renewed = True
            self._open(cursor)
        elif isinstance(error, ConnectionLost) or (error.retryable and (self._was_useful or not isinstance(error, NotConnected))):
            self._link.after_pause(lambda: self._try_again(cursor))
        elif isinstance(error, ClientClosed):
            self._closed = True
            self._wake()
        else:
            self._fail(error)

    def _try_again(self, cursor: Cursor) -> None:
        with self._link.mutex:
            if cursor.iterator:
                self._read(cursor)
            else:
                self._open(cursor)

    def _fail(self, error: PenstockError) -> None:
        self._error = error
        self._wake()

    # Children

    def _follow(self, children: list[int]) -> None:
        """A shard was read out. Its children come next, each once all of its parents are."""
        for child in children:
            if child not in self._cursors:
                self._pending += 1
                self._look_up(child)

    def _look_up(self, child: int) -> None:
        def found(shards: list[wire.Shard], error: PenstockError | None) -> None:
            with self._link.mutex:
                if error is not None and error.retryable and not self._closed:
                    self._link.after_pause(lambda: self._look_up(child))
                    return
                self._pending -= 1
                if error is not None:
                    self._fail(error)
                    return
                if not shards or shards[0].shard != child:
                    self._fail(ShardDoesNotExist(f"shard {child} of {self._stream} has aged out before it was read"))
                    return
                if child not in self._cursors and all(map(self._is_past, shards[0].parents)):
                    self._add(Cursor(child, "trim_horizon", 0))
                if self._is_over():
                    self._wake()

        self._ask_one(wire.ListShards(self._stream, child, 1), found)

    def _is_past(self, shard: int) -> bool:
        """Whether nothing of a shard is still to be read. (One that was there at the beginning and not chosen never is; all that
        came later are, though they may not have been reached yet.)"""
        cursor = self._cursors.get(shard)
        if cursor is not None:
            return cursor.ended
        return shard < self._known and shard not in self._chosen


class AsyncReader(AsyncReading):
    """Made by AsyncStream.read and tail. Iterating gives RecordBatch after RecordBatch; `async with` closes it at the end.

    Any number of tasks may take batches out of one reader; each batch goes to one of them."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RecordBatch:
        batch = await self.next(self._idle_seconds or None)
        if batch is None:
            raise StopAsyncIteration
        return batch
