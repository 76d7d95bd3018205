# Generated from clients/penstock/_async/group.py by tools/generate_blocking_client.py (make sync-client): edit that file.
"""A member of a consumer group: it reads the shards that the broker leases to it, and says how far it has come.

One task says that the member lives (`_live`), also while the application is busy: what was processed travels with it, and what
the broker answers (shards to begin with, to give up, lost ones) takes effect at once. Reading goes by the callbacks of the
reader, all shards into one buffer. `next` gives out what is there, as long as the member's session has not ended by its own
clock. What is known of the leases, and what follows from it, is in `penstock.leases`.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator
from itertools import takewhile
from types import TracebackType
from typing import Any, Final, Generic, Literal, Self, TypeVar, cast

from penstock import _backend_threads as backend
from penstock._sync.link import Link, Request, operation_of
from penstock._sync.reader import Cursor, Reader
from penstock.errors import (
    CheckpointInvalid,
    ClientClosed,
    LeaseLost,
    MemberExpired,
    PenstockError,
    RecordsUnreadable,
    RequestTimeout,
    ShardDoesNotExist,
    fresh,
)
from penstock.forks import FORKED
from penstock.leases import Change, Lease, Membership
from penstock.records import Record, RecordBatch
from penstock_protocol import codec
from penstock_protocol import stream_messages as wire

log = logging.getLogger("penstock")

Item = TypeVar("Item", bound=Record | RecordBatch)

HEARTBEAT: Final = "GroupHeartbeat"

LOOK_SECONDS: Final = 5.0
"""How often somebody who waits looks whether the client is still there."""

RECORDS_PER_TURN: Final = 256
"""Records that are given out before other tasks get a turn, the one that says that the member lives among them."""

LEAVE_SECONDS: Final = 5.0
"""How long leaving the group may take; after that the session ends by itself."""


class Intake(Reader):
    """Reads the shards it is told to, into one buffer. Children of shards are the broker's business: it leases them."""

    def __init__(
        self, link: Link, stream: str, max_records: int, max_bytes: int, deaggregate: bool, member: GroupConsumer[Any]
    ) -> None:
        super().__init__(link, stream, None, "trim_horizon", max_records, max_bytes, None, deaggregate)
        self._member = member
        self._is_begun = True
        self._was_useful = True

    # Under the mutex

    def begin(self, lease: Lease) -> None:
        """Reads a shard, from behind what was given out of it on."""
        self.drop(lease.shard)
        self._add(Cursor(lease.shard, "at", lease.taken))

    def drop(self, shard: int) -> None:
        """Reads no more of a shard; what is here of it is gone."""
        cursor = self._cursors.pop(shard, None)
        if cursor is None:
            return
        cursor.ended = True
        if cursor in self._parked:
            self._parked.remove(cursor)
        if cursor.request is not None:
            self._link.abandon(cursor.request)
        kept = [batch for batch in self._ready if batch.shard != shard]
        if len(kept) < len(self._ready):
            self._ready = deque(kept)
            self._ready_bytes = sum(batch.blob_bytes for batch in kept)
            self._resume()

    def take(self) -> RecordBatch | None:
        """The next batch that is here."""
        return self._take_out() if self._ready else None

    def expect(self) -> backend.Event:
        """Is set when there is something to look at; asks for more."""
        arrived = backend.Event()
        self._takers.append(arrived)
        self._resume()
        return arrived

    def forget(self, arrived: backend.Event) -> None:
        """Nobody waits for it any more."""
        if arrived in self._takers:
            self._takers.remove(arrived)

    def wake(self) -> None:
        """Has who waits look."""
        self._wake()

    def end(self, error: PenstockError | None) -> None:
        """Nothing is read any more."""
        if error is not None:
            self._fail(error)
        self.close()

    @property
    def error(self) -> PenstockError | None:
        """What ended it."""
        return self._error

    # What differs from other readers

    def _is_over(self) -> bool:
        return self._closed

    def _follow(self, children: list[int]) -> None:
        del children

    def _open(self, cursor: Cursor) -> None:
        if not cursor.ended:
            super()._open(cursor)

    def _read(self, cursor: Cursor) -> None:
        if not cursor.ended:
            super()._read(cursor)

    def _take_in(self, cursor: Cursor, reply: wire.Records) -> None:
        if cursor.ended:  # it was dropped as the reply came
            return
        super()._take_in(cursor, reply)
        if cursor.ended:
            self._member.read_out(cursor.shard, cursor.position)

    def _trouble(self, cursor: Cursor, error: PenstockError) -> None:
        if cursor.ended:
            return
        if isinstance(error, ShardDoesNotExist):  # it has aged out; the broker takes the lease back
            cursor.ended = True
            return
        super()._trouble(cursor, error)


class _Waiter:
    """Somebody who waits until a checkpoint is durable."""

    __slots__ = ("done", "error", "lease", "position")

    def __init__(self, lease: Lease, position: int) -> None:
        self.lease = lease
        self.position = position
        self.done = backend.Event()
        self.error: PenstockError | None = None

    def settle(self, error: PenstockError | None) -> None:
        self.error = error
        self.done.set()


class GroupConsumer(Generic[Item]):
    """Made by Stream.consume; used as `with`, whose beginning joins the group and whose end leaves it.

    Iterating gives the records (or batches) of the shards that the broker leases to this member: those of a shard in their order,
    and a child of a split or merge only when its parents were processed by the group, so records of one key come in order.
    When members come or go, shards move; one that another is to have is given up when what was given out of it is processed, and
    after `session_seconds` in any case. Nothing of a shard is given out that is not this member's for sure: when the broker
    cannot be reached for a session, iterating waits until it can.

    With checkpoint="auto" what was given out counts as processed when the next is asked for; that is told to the broker every
    `checkpoint_seconds`, when a shard is given up, and at the end. With "manual" it counts when `checkpoint` says so. What
    was not told comes again, to another member or later: each record is given out at least once.

    An aggregated record (KPL) is processed when its last user record is: what ends within it has all of it come again. When its
    shard is to move, the rest of it is given out before.

    One task takes out of one consumer; `checkpoint` and `stop` may be called by others."""

    def __init__(
        self,
        link: Link,
        stream: str,
        group: str,
        *,
        start: Literal["trim_horizon", "latest"],
        checkpoint: Literal["auto", "manual"],
        session_seconds: float,
        checkpoint_seconds: float,
        batches: bool,
        max_records: int,
        max_bytes: int,
        deaggregate: bool,
    ) -> None:
        if checkpoint not in ("auto", "manual"):
            raise ValueError(f"checkpoint = {checkpoint!r}; it must be 'auto' or 'manual'")
        if start not in ("trim_horizon", "latest"):
            raise ValueError(f"start = {start!r}; it must be 'trim_horizon' or 'latest'")
        if min(session_seconds, checkpoint_seconds) <= 0:
            raise ValueError("session_seconds and checkpoint_seconds must be more than 0")
        self._link = link
        self._group = group
        self._membership = Membership(stream, group, session_seconds, start)
        self._intake = Intake(link, stream, max_records, max_bytes, deaggregate, self)
        self._is_manual = checkpoint == "manual"
        self._checkpoint_seconds = checkpoint_seconds
        self._batches = batches
        self._tasks = backend.Tasks(serving=True)
        self._hand: tuple[Lease, int] | None = None
        self._lease: Lease | None = None
        self._rows: Iterator[Record] | None = None
        self._waiters: list[_Waiter] = []
        self._wake = backend.Event()
        self._hurry = False
        self._left = backend.Event()
        self._is_open = False
        self._stopped = False
        self._leaving = False
        self._taking = False
        self._turn = 0

    def __enter__(self) -> Self:
        self._tasks.__enter__()
        try:
            self._join()
        except BaseException as error:
            if not isinstance(error, PenstockError) or isinstance(error, RequestTimeout):
                self._say_goodbye()
            self._tasks.cancel()
            self._tasks.__exit__(type(error), error, error.__traceback__)
            raise
        self._is_open = True
        self._tasks.spawn(self._live)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        with self._link.mutex:
            self._leaving = True
            self._wake.set()
        try:
            if not self._link.is_left:
                with backend.shielded(LEAVE_SECONDS):
                    self._left.wait_for(LEAVE_SECONDS)
        finally:
            with self._link.mutex:
                self._is_open = False
                self._settle_all(LeaseLost("the consumer has left its group"))
            if not self._left.is_set():
                self._tasks.cancel()
            self._tasks.__exit__(None, None, None)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        item = self.next()
        if item is None:
            raise StopIteration
        return item

    def next(self, seconds: float | None = None) -> Item | None:
        """The next record, or batch; None after `stop`, or when none came within `seconds`. With automatic checkpoints that was
        given out before counts as processed now.

        Raises what ended the consumer (StreamDoesNotExist, NotPermitted …), and RecordsUnreadable for a batch that is broken:
        asking again goes on behind it. After a cancellation no record is lost."""
        until = math.inf if seconds is None else backend.monotonic() + seconds
        with self._link.mutex:
            if self._taking or not self._is_open:
                raise RuntimeError("one task takes out of a consumer, within its block")
            self._taking = True
        try:
            if self._turn >= RECORDS_PER_TURN:
                self._turn = 0
                backend.sleep(0)
            while True:
                with self._link.mutex:
                    if self._link.is_left:
                        raise ClientClosed(FORKED)
                    self._finish_hand()
                    item = None if self._stopped else self._take()
                    if item is not None:
                        return item
                    if self._intake.error is not None:
                        raise fresh(self._intake.error)
                    if self._stopped or self._link.is_closed:
                        return None
                    arrived = self._intake.expect()
                try:
                    woken = arrived.wait_for(min(LOOK_SECONDS, max(0.0, until - backend.monotonic())))
                finally:
                    with self._link.mutex:
                        self._intake.forget(arrived)
                if not woken and backend.monotonic() >= until:
                    return None
        finally:
            self._taking = False

    def checkpoint(self, at: Record | RecordBatch) -> None:
        """Everything of its shard up to that record or batch, which included, was processed; durable when this returns. (Of an
        aggregated record: up to before it, until it is the last one of it.)

        LeaseLost when the shard is not this member's any more, or was lost and came again since: it goes on from the last
        checkpoint, wherever it is. CheckpointInvalid when a later record was noted already. After a cancellation it may have
        been noted or not."""
        position = at.end
        last = at.sequence if isinstance(at, Record) else position - 1
        with self._link.mutex:
            if self._link.is_left:
                raise ClientClosed(FORKED)
            lease = self._membership.leases.get(at.shard)
            if lease is None or lease.over or not lease.start <= last < lease.taken:
                raise LeaseLost(f"shard {at.shard}, record {last}")
            if position < lease.noted:
                raise CheckpointInvalid(f"the checkpoint of shard {at.shard} is at {lease.noted} already")
            if position == lease.noted:
                return
            lease.done = max(lease.done, position)
            waiter = _Waiter(lease, position)
            self._waiters.append(waiter)
            self._hasten()
        waiter.done.wait()
        if waiter.error is not None:
            raise fresh(waiter.error)

    def stop(self) -> None:
        """Has iterating end. What was taken out can be finished, and noted, until the end of the block; safe to call twice."""
        with self._link.mutex:
            if not self._stopped:
                self._stopped = True
                self._rows = None
                self._intake.end(None)
                self._intake.wake()

    @property
    def member(self) -> str:
        """What this member is called in the group's description. It changes when its session ends."""
        return self._membership.member.hex()

    @property
    def shards(self) -> list[int]:
        """The shards that are leased to this member."""
        with self._link.mutex:
            return sorted(self._membership.leases)

    @property
    def behind_seconds(self) -> float:
        """How long ago the oldest record of its shards arrived that has not come here yet; 0 at the tip."""
        return self._intake.behind_seconds

    # Giving out; under the mutex

    def _finish_hand(self) -> None:
        """What was given out last is processed, if that is automatic."""
        if self._hand is None:
            return
        lease, position = self._hand
        self._hand = None
        if not self._is_manual:
            lease.done = max(lease.done, position)
            if lease.ended or lease.is_asked_for:
                self._look()

    def _take(self) -> Item | None:
        """The next item, if there is one that may be given out now."""
        if not self._membership.is_valid(backend.monotonic()):
            return None
        rows, lease = self._rows, self._lease
        if rows is not None:
            assert lease is not None
            record = None if lease.over else next(rows, None)
            if record is not None:
                lease.taken = record.sequence + 1
                self._turn += 1
                self._hand = lease, record.end if record.aggregated else lease.taken
                return cast(Item, record)
            self._rows = None
        while (batch := self._intake.take()) is not None:
            lease = self._membership.leases.get(batch.shard)
            if lease is None or lease.over or lease.is_asked_for or not batch.count:
                continue
            self._lease = lease
            try:
                if not self._batches:
                    self._rows = iter(batch)
                    return self._take()
            except RecordsUnreadable:
                lease.taken = batch.end
                self._hand = lease, lease.taken
                raise
            lease.taken = batch.end
            self._turn += batch.count
            self._hand = lease, lease.taken
            return cast(Item, batch)
        return None

    def read_out(self, shard: int, position: int) -> None:
        """The intake has read a closed shard to its end, which is that position."""
        lease = self._membership.leases.get(shard)
        if lease is not None:
            lease.ended = True
            if lease.done >= position:  # the broker finds out with the next heartbeat that nothing is left
                self._hasten()

    # Saying that it lives

    def _live(self) -> None:
        try:
            going = True
            while going:
                self._rest()
                going = self._beat()
        finally:
            self._left.set()

    def _rest(self) -> None:
        """Waits until the next heartbeat is due."""
        while True:
            with self._link.mutex:
                if self._hurry or self._leaving:
                    return
                pause = self._membership.due(self._checkpoint_seconds) - backend.monotonic()
                if pause <= 0:
                    return
                self._wake = wake = backend.Event()
            wake.wait_for(min(pause, self._checkpoint_seconds))

    def _join(self) -> None:
        """The first heartbeat: whatever is wrong is the caller's to know."""
        with self._link.mutex:
            message = self._membership.heartbeat(backend.monotonic())
        reply = self._link.call(message, HEARTBEAT)
        with self._link.mutex:
            self._heard(cast(wire.GroupLeases, reply))

    def _beat(self) -> bool:
        """One heartbeat; whether there is another to come. It is asked again over lost connections for as long as it takes: its
        time counts from its beginning, so one that took too long gives nothing to do but the next."""
        with self._link.mutex:
            self._hurry = False
            leaving = self._leaving
            message = self._membership.heartbeat(backend.monotonic(), leaving=leaving)
        try:
            reply = self._link.call(message, HEARTBEAT, timeout=math.inf)
        except PenstockError as error:
            with self._link.mutex:
                return self._refused(error) and not leaving
        with self._link.mutex:
            self._heard(cast(wire.GroupLeases, reply))
        return not leaving

    def _heard(self, reply: wire.GroupLeases) -> None:
        now = backend.monotonic()
        was_valid = self._membership.is_valid(now)
        self._apply(self._membership.answered(reply))
        self._look()
        if not was_valid:
            self._intake.wake()

    def _refused(self, error: PenstockError) -> bool:
        """A heartbeat has failed; whether to go on."""
        if isinstance(error, MemberExpired):
            if not self._leaving:
                log.warning("a member of group %s was silent for longer than its session: it joins again", self._group)
            self._apply(self._membership.expired())
            self._hasten()
        elif isinstance(error, CheckpointInvalid):
            self._settle_all(error)
            self._apply(self._membership.start_anew())
            self._hasten()
        elif not error.retryable:
            self._settle_all(error)
            self._intake.end(None if isinstance(error, ClientClosed) else error)
            self._stopped = self._stopped or isinstance(error, ClientClosed)
            self._intake.wake()
            return False
        return True

    def _apply(self, change: Change) -> None:
        """Begins and ends what the broker said; tells who waits for checkpoints."""
        for lease in change.stopped:
            self._intake.drop(lease.shard)
            if lease is self._lease and self._rows is not None:
                self._rows = None if lease.over else _begun(self._rows, lease.taken - 1)
        for lease in change.begun:
            self._intake.begin(lease)
        waiting, self._waiters = self._waiters, []
        for waiter in waiting:
            if waiter.lease.noted >= waiter.position:
                waiter.settle(None)
            elif waiter.lease.over:
                waiter.settle(LeaseLost(f"shard {waiter.lease.shard}, record {waiter.position - 1}"))
            else:
                self._waiters.append(waiter)

    def _settle_all(self, error: PenstockError) -> None:
        waiting, self._waiters = self._waiters, []
        for waiter in waiting:
            waiter.settle(error)

    def _look(self) -> None:
        if self._membership.is_urgent(backend.monotonic()):
            self._hasten()

    def _hasten(self) -> None:
        """The next heartbeat is sent at once."""
        self._hurry = True
        self._wake.set()

    def _say_goodbye(self) -> None:
        """Joining was given up, and may have succeeded."""
        with self._link.mutex:
            message = self._membership.heartbeat(backend.monotonic(), leaving=True)
        deadline = backend.monotonic() + self._link.options.request_timeout
        self._link.submit(Request(operation_of(message, HEARTBEAT), message, _ignore, deadline, resend=True))


def _begun(rows: Iterator[Record], sequence: int) -> Iterator[Record]:
    """What is left of an aggregated record of which something was given out."""
    return takewhile(lambda record: record.sequence == sequence, rows)


def _ignore(reply: codec.Message | None, error: PenstockError | None) -> None:
    del reply, error
