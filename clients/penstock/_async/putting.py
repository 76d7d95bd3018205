"""Putting: records are gathered by shard, and a shard's batches go their way one behind the other.

A lane is the way to one shard. While as many batches as are allowed are on their way the next one fills, so that batches grow by
themselves under load. With one on its way at a time (`ordered`), which is what a producer does, records of a shard keep their
order over lost connections and failed commits; several at once are for callers who wait for each record anyway.

When the shard's limits let only the first records of a batch pass (`taken`), the others go next, as a put of their own; when they
let none pass, the link asks again after a pause. So throttling changes no order either.

When a shard is closed (split, merged), its lane stops; the shards are listed anew, and everything that stands in the lane is
grouped again, in its order. Others may have been closed with it, whose answers are still to come: until they are here, records
are grouped by the shards of before and wait in those lanes (`route`), for what is put later must not overtake what comes back.
Everything here runs under the link's mutex, or is called back by the link.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final

from penstock_protocol import codec
from penstock_protocol import stream_messages as wire

from penstock import _backend_async as backend
from penstock._async.batching import FRAME_RESERVE, Sequences
from penstock._async.link import AsyncLink, Request, operation_of
from penstock._async.shards import AsyncShards
from penstock.errors import (
    NotConnected,
    PenstockError,
    RecordTooLarge,
    RequestTimeout,
    ShardClosed,
    ThroughputExceeded,
    fresh,
)
from penstock.records import RECORD_OVERHEAD, Columns, Record, ShardMap, pack
from penstock.types import PutResult

BATCH_RECORDS: Final = 500
"""Singles in one batch."""

BATCH_BYTES: Final = 1_048_576
"""Of singles in one batch. One larger record travels alone."""

MAX_BATCH: Final = 10_000
"""Records in one batch that a broker takes."""

CONCURRENT_BATCHES: Final = 4
"""Batches on their way per shard before another goes out that could still grow."""

FULL_BATCHES: Final = 16
"""The same for one that cannot: so many callers at once need not wait for each other's commits."""

WAYS: Final = 32
"""Batches on their way over all shards of a producer. Beyond that lanes take turns, and their batches grow meanwhile: what a
record costs follows from how many share a batch, not from how many shards there are."""

CLOSED_LOOKS: Final = 50
"""How often a shard that says it is closed may still be listed as open before its records are given up."""


class PutBatch:
    """Records of one shard that are put together, and after `done` the outcome. `taken`: so many of the first ones were stored
    ahead of the others, each time with shard, first sequence number and count. `whole`: it is a part of that batch, whose shard
    was closed, and holds its records of these places (among those that were not taken). `ripe`: it need not wait for more
    records. `after`: the record that it is to come after."""

    __slots__ = (
        "after",
        "columns",
        "deadline",
        "done",
        "due",
        "error",
        "first",
        "is_over",
        "on_done",
        "parts",
        "refusal",
        "ripe",
        "shard",
        "taken",
        "whole",
    )

    def __init__(self, columns: Columns | None = None, on_done: Callable[[PutBatch], None] | None = None) -> None:
        self.columns = Columns([], [], None, 0) if columns is None else columns
        self.after: PutResult | Record | None = None
        self.shard = -1
        self.first = -1
        self.deadline = 0.0
        self.due = math.inf
        self.ripe = True
        self.refusal: PenstockError | None = None
        self.error: PenstockError | None = None
        self.done = backend.Event()
        self.on_done = on_done
        self.taken: list[tuple[int, int, int]] = []
        self.whole: PutBatch | None = None
        self.is_over = False
        self.parts: list[tuple[list[int], PutBatch]] = []

    def __len__(self) -> int:
        return len(self.columns)

    def has_room(self, size_bytes: int, max_records: int, max_bytes: int) -> bool:
        """Whether one more record fits in. An empty batch takes any."""
        count = len(self.columns)
        return not count or (
            count < max_records and self.columns.size_bytes + size_bytes + RECORD_OVERHEAD * (count + 1) <= max_bytes
        )

    @property
    def rest(self) -> Columns:
        """The records that are still to be put."""
        return self.columns.part(sum(count for _, _, count in self.taken), len(self)) if self.taken else self.columns

    def outcomes(self) -> list[PutResult | PenstockError]:
        """What became of each record, in order."""
        done: list[PutResult | PenstockError] = [
            PutResult(shard, sequence) for shard, first, count in self.taken for sequence in range(first, first + count)
        ]
        count = len(self) - len(done)
        if self.error is not None:
            return done + [self.error] * count
        if not self.parts:
            shard = self.shard
            return done + [PutResult(shard, sequence) for sequence in range(self.first, self.first + count)]
        found: dict[int, PutResult | PenstockError] = {}
        for places, part in self.parts:
            found.update(zip(places, part.outcomes(), strict=True))
        return done + [found[place] for place in range(count)]

    def result(self, place: int) -> PutResult:
        """What became of one record; raises its error."""
        if self.error is None and not self.parts and not self.taken:
            return PutResult(self.shard, self.first + place)
        outcome = self.error if self.error is not None and not self.taken else self.outcomes()[place]
        if isinstance(outcome, PenstockError):
            raise fresh(outcome)
        return outcome

    @property
    def has_failures(self) -> bool:
        """Whether any record was refused."""
        return self.error is not None or any(part.has_failures for _, part in self.parts)


class Lane:
    """The batches of one shard. `held`: it sends nothing, for the shard is closed, or said that a record is too large.
    `asked`: the shards are being listed anew for it. `waits`: it stands in the line of those that may send next."""

    __slots__ = ("asked", "full", "held", "looks", "on_the_way", "open", "sending", "shard", "waits")

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.open = PutBatch()
        self.full: deque[PutBatch] = deque()
        self.on_the_way = 0
        self.sending = False
        self.held = False
        self.asked = False
        self.looks = 0
        self.waits = False

    def drain(self) -> list[PutBatch]:
        """Takes out everything that is not on its way."""
        batches = [*self.full, self.open] if len(self.open) else list(self.full)
        self.full.clear()
        self.open = PutBatch()
        return batches


class AsyncLanes:
    """The lanes of one stream, or of one producer. `timeout`: how long a batch may take in all. `linger`: how long a batch that
    is not full waits for more records. `on_open` is told when one begins to wait."""

    def __init__(
        self,
        link: AsyncLink,
        stream: str,
        sequences: Sequences,
        shards: AsyncShards,
        *,
        timeout: float,
        ordered: bool = False,
        max_records: int = BATCH_RECORDS,
        max_bytes: int = BATCH_BYTES,
        codec: int = wire.PLAIN,
        linger: float = 0.0,
        on_done: Callable[[PutBatch], None] | None = None,
        on_open: Callable[[PutBatch], None] | None = None,
    ) -> None:
        self._link = link
        self._stream = stream
        self._sequences = sequences
        self._shards = shards
        self._timeout = timeout
        self._concurrent = 1 if ordered else CONCURRENT_BATCHES
        self._concurrent_full = 1 if ordered else FULL_BATCHES
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._codec = codec
        self._linger = linger
        self._on_done = on_done
        self._on_open = on_open
        self._lanes: dict[int, Lane] = {}
        self._on_the_way = 0
        self._line: deque[Lane] = deque()
        self._turning = False
        self._route: ShardMap | None = None
        self._operation = operation_of(wire.PutRecords("", 0, 0, 0, 0, b""))

    def limit_bytes(self, wanted: int) -> int:
        """How much a batch may hold, as far as the broker's frame limit is known."""
        return min(wanted, self._link.max_frame_bytes - FRAME_RESERVE)

    # What callers do; under the mutex

    def route(self, known: ShardMap) -> ShardMap:
        """The shards to group records by: those known last, or the ones before while something is on its way to one that is
        closed by now. `known`: what the caller found, if nothing is known here."""
        if self._route is not self._shards.current:
            for batch, problem in self._follow():
                self.answer(batch, -1, problem)
        return self._route or known

    def join(self, shard: int, data: bytes, key: str, explicit: bytes | None, size_bytes: int) -> tuple[PutBatch, int]:
        """Puts a record into the shard's open batch; sends it if nothing holds it back."""
        lane = self._lane(shard)
        batch = lane.open
        if not len(batch):
            self._begin(batch, backend.monotonic())
        elif not batch.has_room(size_bytes, self._max_records, self.limit_bytes(self._max_bytes)):
            batch = self._next_open(lane)
            self._begin(batch, backend.monotonic())
        place = batch.columns.add(data, key, explicit, size_bytes)
        if len(batch) >= self._max_records:
            self._next_open(lane)
        if lane.full or (lane.open.ripe and lane.on_the_way < self._concurrent):
            self._pump(lane)
        return batch, place

    def extend(self, shard: int, columns: Columns, since: float) -> None:
        """Puts many records of one shard behind what is gathered for it already; they have waited since then."""
        lane = self._lane(shard)
        limit = self.limit_bytes(self._max_bytes)
        start, count = 0, len(columns)
        while start < count:
            batch = lane.open
            if not len(batch):
                self._begin(batch, since)
            room = max(1, self._max_records - len(batch))
            piece = next(columns.part(start, count).pieces(room, limit))
            if len(batch) and not batch.has_room(piece.size_bytes + RECORD_OVERHEAD * len(piece), self._max_records, limit):
                self._next_open(lane)
                continue
            batch.columns.extend(piece)
            start += len(piece)
            if len(batch) >= self._max_records:
                self._next_open(lane)
        self._pump(lane)

    def send(self, shard: int, batch: PutBatch) -> None:
        """Sends a batch of its own, behind what waits already."""
        if not batch.deadline:
            batch.deadline = backend.monotonic() + self._timeout
        lane = self._lane(shard)
        if len(lane.open):
            self._next_open(lane)
        lane.full.append(batch)
        self._pump(lane)

    def ripen(self, now: float) -> float:
        """Sends batches whose time to wait for more is over; returns when the next one's is."""
        soonest = math.inf
        for lane in list(self._lanes.values()):
            batch = lane.open
            if not len(batch) or batch.ripe:
                continue
            if batch.due <= now:
                batch.ripe = True
                self._pump(lane)
            else:
                soonest = min(soonest, batch.due)
        return soonest

    def answer(self, batch: PutBatch, first: int, error: PenstockError | None) -> None:
        """A batch's outcome: who waits is woken, and with the last part of a batch who waits for all of it."""
        batch.first = first
        batch.error = error
        if batch.on_done is not None:
            batch.on_done(batch)
        batch.done.set()
        whole = batch.whole
        while whole is not None:
            with self._link.mutex:
                if whole.is_over or not all(part.done.is_set() for _, part in whole.parts):
                    return
                whole.is_over = True
            if whole.on_done is not None:
                whole.on_done(whole)
            whole.done.set()
            whole = whole.whole

    # Inside

    def _lane(self, shard: int) -> Lane:
        lane = self._lanes.get(shard)
        if lane is None:
            lane = self._lanes[shard] = Lane(shard)
        return lane

    def _is_gone(self, shard: int) -> bool:
        """Whether a shard is closed, as far as is known."""
        return self._shards.current is not None and shard not in self._shards.current.ids

    def _begin(self, batch: PutBatch, since: float) -> None:
        """The first record comes into a batch."""
        batch.deadline = since + self._timeout
        batch.on_done = self._on_done
        if self._linger:
            batch.ripe = False
            batch.due = since + self._linger
        if self._on_open is not None:
            self._on_open(batch)

    def _next_open(self, lane: Lane) -> PutBatch:
        """The open batch takes no more records; the one that does now."""
        if len(lane.open):
            lane.full.append(lane.open)
        lane.open = PutBatch()
        return lane.open

    def _pump(self, lane: Lane) -> None:
        """Sends what may be sent. A loop with a guard, for a batch may be answered while it is being submitted."""
        if lane.sending or lane.held:
            return
        lane.sending = True
        try:  # (A Ctrl-C may come anywhere: those who put later must not wait for ever.)
            while not lane.held:
                if self._on_the_way >= WAYS:
                    if not lane.waits and (lane.full or (len(lane.open) and lane.open.ripe)):
                        lane.waits = True
                        self._line.append(lane)
                    break
                if lane.full and lane.on_the_way < self._concurrent_full:
                    batch = lane.full.popleft()
                elif not lane.full and len(lane.open) and lane.open.ripe and lane.on_the_way < self._concurrent:
                    batch = lane.open
                    lane.open = PutBatch()
                else:
                    break
                if batch.deadline <= backend.monotonic():
                    self.answer(batch, -1, self._too_late(batch))
                    continue
                self._submit(lane, batch)
        finally:
            lane.sending = False

    def _next_lanes(self) -> None:
        """Those that wait for a way go on, as far as there are any. (With a guard, as in `_pump`.)"""
        if self._turning:
            return
        self._turning = True
        try:
            while self._line and self._on_the_way < WAYS:
                lane = self._line.popleft()
                lane.waits = False
                self._pump(lane)
        finally:
            self._turning = False

    def _too_late(self, batch: PutBatch) -> PenstockError:
        if batch.taken:
            return ThroughputExceeded()
        return RequestTimeout() if self._link.is_connected else NotConnected()

    def _submit(self, lane: Lane, batch: PutBatch) -> None:
        number, acknowledged = self._sequences.take()
        columns = batch.rest
        batch.shard = lane.shard

        def on_done(reply: codec.Message | None, error: PenstockError | None) -> None:
            with self._link.mutex:
                self._sequences.done(number)
                lane.on_the_way -= 1
                self._on_the_way -= 1
                again = isinstance(error, (ShardClosed, RecordTooLarge)) and batch.refusal is None
                refused: list[tuple[PutBatch, PenstockError]] = []
                throttled = isinstance(reply, wire.PutReply) and reply.taken is not None and reply.taken < len(columns)
                if isinstance(reply, wire.PutReply) and reply.taken is not None and throttled:
                    batch.taken.append((lane.shard, reply.first, reply.taken))
                    lane.full.appendleft(batch)
                elif again:
                    batch.refusal = error
                    lane.full.appendleft(batch)
                if self._is_gone(lane.shard):
                    refused = self._follow()
                elif again:
                    self._hold(lane)
                self._next_lanes()
                if not again:
                    self._pump(lane)
            if not again and not throttled:
                self.answer(batch, reply.first if isinstance(reply, wire.PutReply) else -1, error)
            for one, problem in refused:
                self.answer(one, -1, problem)

        def make() -> Request:
            message = wire.PutRecords(
                self._stream,
                lane.shard,
                len(columns),
                self._codec,
                columns.size_bytes,
                pack(columns, self._codec),
                number,
                acknowledged,
                True,
                batch.after.sequence if batch.after is not None and batch.after.shard == lane.shard else None,
            )
            return Request(self._operation, message, on_done, batch.deadline, resend=True)

        lane.on_the_way += 1
        self._on_the_way += 1
        self._link.submit_made(make, on_done)

    # Shards that are closed

    def _hold(self, lane: Lane) -> None:
        lane.held = True
        if not lane.asked:
            lane.asked = True
            self._shards.refresh(lambda error: self._refreshed(lane, error))

    def _refreshed(self, lane: Lane, error: PenstockError | None) -> None:
        """The shards were listed anew."""
        refused: list[tuple[PutBatch, PenstockError]] = []
        with self._link.mutex:
            if self._lanes.get(lane.shard) is not lane:  # it was emptied as another heard of the new shards
                return
            shards = self._shards.current
            assert shards is not None
            if error is None and lane.shard in shards.ids and any(isinstance(one.refusal, ShardClosed) for one in lane.full):
                lane.looks += 1
                if lane.looks < CLOSED_LOOKS:
                    self._link.after_pause(lambda: self._shards.refresh(lambda problem: self._refreshed(lane, problem)))
                    return
                error = ShardClosed(f"shard {lane.shard} takes no records, and is listed as open")
            lane.asked = False
            lane.looks = 0
            if error is None and lane.shard not in shards.ids:
                refused = self._follow()
            else:
                lane.held = False
                for batch in lane.drain():
                    if error is None:
                        refused += self._regroup(shards, batch)
                    else:
                        refused.append((batch, error))
        for batch, problem in refused:
            self.answer(batch, -1, problem)

    def _follow(self) -> list[tuple[PutBatch, PenstockError]]:
        """Goes over to the shards known last, once nothing is on its way to those that are closed. Returns what can't be sent."""
        shards = self._shards.current
        assert shards is not None
        gone = [lane for lane in self._lanes.values() if lane.shard not in shards.ids]
        for lane in gone:
            lane.held = True
        if any(lane.on_the_way for lane in gone):
            return []
        self._route = shards
        batches = [batch for lane in gone for batch in lane.drain()]
        for lane in gone:
            del self._lanes[lane.shard]
        refused: list[tuple[PutBatch, PenstockError]] = []
        for batch in batches:
            refused += self._regroup(shards, batch)
        return refused

    def _regroup(self, shards: ShardMap, batch: PutBatch) -> list[tuple[PutBatch, PenstockError]]:
        """Sends the records of a batch to where they belong now; returns what can't be sent."""
        columns, refusal = batch.rest, batch.refusal
        problems = columns.problems(shards.max_record_bytes)
        if isinstance(refusal, RecordTooLarge) and not problems:
            return [(batch, refusal)]
        batch.refusal = None
        batch.ripe = True
        groups: list[tuple[int, list[int] | None, Columns]]
        refused: list[tuple[PutBatch, PenstockError]] = []
        if problems:
            good = [place for place in range(len(columns)) if place not in problems]
            groups = [
                (shard, good if places is None else [good[place] for place in places], some)
                for shard, places, some in shards.group(columns.pick(good))
            ]
        else:
            groups = shards.group(columns)
            if len(groups) == 1:
                self.send(groups[0][0], batch)
                return []
        parts = []
        for shard, places, some in groups:
            assert places is not None
            part = PutBatch(some)
            part.whole, part.deadline = batch, batch.deadline
            batch.parts.append((places, part))
            parts.append((shard, part))
        for place, problem in problems.items():
            part = PutBatch(columns.pick([place]))
            part.whole = batch
            batch.parts.append(([place], part))
            refused.append((part, problem))
        for shard, part in parts:
            self.send(shard, part)
        return refused
