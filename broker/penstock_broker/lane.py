"""The commit lane: everything that waits is written in one transaction, and only then is it true.

Queues (and whoever else keeps state) mark themselves dirty; requests leave a callback. The lane takes all of that at
once, has the rows written in a thread (a lone request's on a quick store at once: `_store_it`), then publishes and calls
back. While one commit runs the next one fills.

The outcome of a commit is ok, failed or unknown. After anything but ok the memory of every participant it touched, and of
every participant that changed since, is discarded: it may hold what the store does not. After unknown the lane takes a
new incarnation before it commits again; the store makes sure that the lost commit has ended by then.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import structlog
import trio
from penstock_protocol.errors import OutcomeUnknown, Overloaded, PenstockError, StoreFailed
from penstock_storage.interface import (
    Commit,
    CommitUnknown,
    Fenced,
    Incarnation,
    Store,
    StoreError,
    StoreFull,
)

from penstock_broker.counters import Counters
from penstock_broker.ports import Ports

log = structlog.get_logger()

MAX_PENDING_BYTES = 64 * 1024 * 1024
"""Request bytes that may wait for a commit; beyond it no socket is read."""

FULL_PAUSE_MS = 2_000
"""While the store is full it is asked so often whether it still is."""

STALL_SECONDS = 5.0
"""A commit that takes longer means that the store does not answer. (It is waited for all the same: nobody knows its outcome.)"""

QUICK_SECONDS = 0.05
"""What a commit may take at the most for the next lone one to be made in the event loop's own thread. (SQLite's checkpoints,
once in thousands of commits, take some 20 ms; whatever waits for a commit waits for them anyway.)"""

SLOW_SECONDS = 10.0
"""How long no commit is made there after one took longer: a disk that stalls holds the event loop up once, not all the time."""

LONE_BYTES = 64 * 1024
"""The largest request that is committed there."""

RETRY_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Pauses between attempts to reach the store again; the last one repeats."""


class Participant(Protocol):
    """Whoever keeps state that the lane commits."""

    def collect(self, commit: Commit, now_ms: int) -> Any:
        """Adds its changes; what it returns is given to `publish`."""

    def publish(self, publication: Any) -> bool:
        """They are durable. Whether anything became visible."""


Callback = Callable[[PenstockError | None], None]
"""Called once: None when the commit is durable, else why not."""


@dataclasses.dataclass(slots=True)
class _Batch:
    participants: dict[int, Participant] = dataclasses.field(default_factory=dict)
    callbacks: list[Callback] = dataclasses.field(default_factory=list)
    rows: list[Callable[[Commit], None]] = dataclasses.field(default_factory=list)
    size_bytes: int = 0


class Lane:
    """One commit after the other. `published` is called with each participant after its publish, `discarded` with each
    whose memory is not to be trusted any more, `discard_all` when nobody's is. `learn` reads what is kept in memory for
    good (StoreError when it cannot) and returns what puts that in force; it is called after a doubt. `something` is a commit
    that adds a row but changes nothing, to find out whether there is room again; None: there is nothing to write."""

    def __init__(
        self,
        store: Store,
        ports: Ports,
        counters: Counters,
        node: str,
        address: str,
        *,
        published: Callable[[Participant, bool], None],
        discarded: Callable[[Participant, PenstockError], None],
        discard_all: Callable[[PenstockError], None],
        learn: Callable[[], Awaitable[Callable[[], None]]],
        something: Callable[[], Commit | None] = lambda: None,
    ) -> None:
        self._store = store
        self._ports = ports
        self._in_thread = ports.in_commit_thread or ports.in_thread
        self._counters = counters
        self._node = node
        self._address = address
        self._published = published
        self._discarded = discarded
        self._discard_all = discard_all
        self._learn = learn
        self._something = something
        self._distrusted = False
        self._batch = _Batch()
        self._running_bytes = 0
        self._work = trio.Event()
        self._room = trio.Event()
        self._idle = trio.Event()
        self._idle.set()
        self._full_until_ms: int | None = None
        self._fenced: Fenced | None = None
        self._commit_started: float | None = None
        self._slow_until = 0.0
        self.incarnation: Incarnation | None = None

    @property
    def is_healthy(self) -> bool:
        """Whether commits are being made."""
        return self.incarnation is not None and self.commit_seconds <= STALL_SECONDS

    @property
    def commit_seconds(self) -> float:
        """How long the commit that runs now has been running; 0 when none does."""
        return 0.0 if self._commit_started is None else trio.current_time() - self._commit_started

    def refuses_sends(self) -> bool:
        """Whether the store is full."""
        return self._full_until_ms is not None

    def check_adds(self) -> None:
        """For what adds to the store: Overloaded while it is full. It would take down what else is in its commit."""
        if self.refuses_sends():
            raise Overloaded("the store is full: nothing was stored; deletes still work")

    @property
    def has_room(self) -> bool:
        """Whether more requests may be read."""
        return self._batch.size_bytes + self._running_bytes < MAX_PENDING_BYTES

    async def wait_room(self) -> None:
        """Returns once there is room. A cancellation changes nothing."""
        while not self.has_room:
            self._room = trio.Event() if self._room.is_set() else self._room
            await self._room.wait()

    def touch(self, participant: Participant) -> None:
        """It has changes for the next commit."""
        self._batch.participants[id(participant)] = participant
        self._work.set()

    def write(self, rows: Callable[[Commit], None]) -> None:
        """Adds rows of its own to the next commit."""
        self._batch.rows.append(rows)
        self._work.set()

    def submit(self, callback: Callback, size_bytes: int = 0) -> None:
        """Calls back after the next commit, which has everything that was touched so far. Never called from within submit."""
        self._batch.callbacks.append(callback)
        self._batch.size_bytes += size_bytes
        self._work.set()

    async def commit(self, rows: Callable[[Commit], None] | None = None) -> None:
        """Waits for the next commit. Raises what went wrong with it. After a cancellation the commit goes on all the same."""
        done = trio.Event()
        outcome: list[PenstockError | None] = []

        def callback(error: PenstockError | None) -> None:
            outcome.append(error)
            done.set()

        if rows is not None:
            self.write(rows)
        self.submit(callback)
        await done.wait()
        if outcome[0] is not None:
            raise outcome[0]

    def distrust(self) -> None:
        """A defect may have left memory half changed: what waits for the next commit is refused, and all memory is discarded
        once no commit runs. Nothing acknowledged is affected."""
        self._distrusted = True
        self._work.set()

    def doubt(self) -> None:
        """A commit outside of the lane (sweep, a new id) has an unknown outcome: the store refuses this incarnation from now
        on, so the lane takes a new one before it commits again."""
        self.incarnation = None
        self._work.set()

    def failed_outside(self, error: StoreError) -> None:
        """A commit outside of the lane failed: draws the same conclusions as from one of its own."""
        if isinstance(error, CommitUnknown):
            self.doubt()
        elif isinstance(error, Fenced):
            self._fenced = error
            self._work.set()

    async def acquire(self) -> None:
        """Takes the slots under a new incarnation. StoreError when the store cannot be reached."""
        self.incarnation = None
        self.incarnation = await self._in_thread(self._store.acquire, self._node, self._address, self._ports.now_ms())

    async def wait_idle(self) -> None:
        """Returns once nothing waits and nothing runs."""
        while self._batch.callbacks or self._batch.participants or self._batch.rows or not self._idle.is_set():
            if self._idle.is_set():
                # The store is being found again (or a commit is about to begin): what waits is told of it, and so are we.
                with contextlib.suppress(PenstockError):
                    await self.commit()
            await self._idle.wait()
            await trio.lowlevel.checkpoint()

    async def run(self) -> None:
        """Commits until cancelled. Raises Fenced when another incarnation has taken over: the broker must end."""
        while True:
            await self._wait_work()
            self._work = trio.Event()
            if self._idle.is_set():  # (Who waits for the one before waits for this one as well.)
                self._idle = trio.Event()
            batch, self._batch = self._batch, _Batch()
            self._running_bytes = batch.size_bytes
            if self._fenced is not None:
                self._fail(batch, self._fenced)
                raise self._fenced
            if self._distrusted:
                self._distrusted = False
                self._discard_all(StoreFailed())
                for callback in batch.callbacks:
                    callback(StoreFailed())
            elif self.incarnation is None:
                self._refuse(batch)
            else:
                await self._commit(batch)
            self._running_bytes = 0
            if not self._work.is_set():
                self._idle.set()
            self._room.set()
            if self.incarnation is None:
                await self._recover()

    async def _wait_work(self) -> None:
        """Returns when there is something to commit, or to find out about a full store."""
        if self._full_until_ms is None:
            await self._work.wait()
            return
        with trio.move_on_after(max(0, self._full_until_ms - self._ports.now_ms()) / 1000):
            await self._work.wait()
        if self._ports.now_ms() >= self._full_until_ms:
            await self._ask_for_room()

    async def _ask_for_room(self) -> None:
        """Sends would take down what shares their commit, so while the store is full it is asked without any."""
        commit = self._something()
        if commit is None or self.incarnation is None:
            self._full_until_ms = None
            return
        try:
            await self._store_it(self.incarnation, commit, lone=False)
        except (CommitUnknown, Fenced) as error:
            self.failed_outside(error)
        except StoreError:
            self._full_until_ms = self._ports.now_ms() + FULL_PAUSE_MS
        else:
            self._full_until_ms = None

    async def _commit(self, batch: _Batch) -> None:
        incarnation = self.incarnation
        assert incarnation is not None
        commit = Commit()
        now_ms = self._ports.now_ms()
        publications = [(participant, participant.collect(commit, now_ms)) for participant in batch.participants.values()]
        for rows in batch.rows:
            rows(commit)
        took: float | None = None
        if not commit.is_empty():
            started = trio.current_time()
            try:
                await self._store_it(incarnation, commit, lone=len(batch.callbacks) == 1 and batch.size_bytes <= LONE_BYTES)
            except StoreError as error:
                self._fail(batch, error)
                if isinstance(error, Fenced):
                    raise
                return
            took = trio.current_time() - started
        # Everything is in force before anybody is told: who hears that a shard is closed must see its last records. Who waits for
        # what is new is served last, while those who were answered are at work again.
        woken = [(participant, participant.publish(publication)) for participant, publication in publications]
        for callback in batch.callbacks:
            callback(None)
        for participant, woke in woken:
            self._published(participant, woke)
        if took is not None:
            self._counters.commits["ok"] += 1
            self._counters.commit_seconds.observe(took)
            self._counters.commit_requests.observe(len(batch.callbacks))

    async def _store_it(self, incarnation: Incarnation, commit: Commit, *, lone: bool) -> None:
        """In the commits' thread, so that the event loop goes on; but a lone request on a quick store here and now, for to wake a
        thread and to be woken by it takes as long again as half the commit. A store that was slow is not trusted for a while."""
        self._commit_started = started = trio.current_time()
        try:
            if lone and started >= self._slow_until and self._store.is_quick:
                self._store.commit(incarnation, commit)
            else:
                with trio.CancelScope(shield=True):
                    await self._in_thread(self._store.commit, incarnation, commit)
        finally:
            self._commit_started = None
            ended = trio.current_time()
            if ended - started > QUICK_SECONDS:
                self._slow_until = ended + SLOW_SECONDS

    def _fail(self, batch: _Batch, error: StoreError) -> None:
        """The batch did not become durable, or nobody knows: its memory and what was built on it goes."""
        outcome: PenstockError
        if isinstance(error, CommitUnknown):
            kind, outcome = "unknown", OutcomeUnknown()
            self.incarnation = None
        elif isinstance(error, StoreFull):
            kind, outcome = "full", Overloaded("the store is full: nothing was stored; deletes still work")
            self._full_until_ms = self._ports.now_ms() + FULL_PAUSE_MS
        else:
            kind, outcome = "fenced" if isinstance(error, Fenced) else "failed", StoreFailed()
        self._counters.commits[kind] += 1
        log.error("commit failed", outcome=kind, error=str(error), requests=len(batch.callbacks))
        later, self._batch = self._batch, _Batch()
        for participant in (batch.participants | later.participants).values():
            self._discarded(participant, StoreFailed())
        for callback in batch.callbacks:
            callback(outcome)
        for callback in later.callbacks:
            callback(StoreFailed())

    async def _recover(self) -> None:
        """Gets a new incarnation, however long it takes; what asks meanwhile is refused at once."""
        attempt = 0
        while self.incarnation is None:
            put_in_force: Callable[[], None] | None = None
            try:
                with trio.CancelScope(shield=True):
                    await self.acquire()
                    put_in_force = await self._learn()
            except StoreError as error:
                self.incarnation = None
                log.error("store not reachable", error=str(error))
                await trio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
                attempt += 1
            batch, self._batch = self._batch, _Batch()
            self._room.set()
            if put_in_force is not None:
                # A commit of unknown outcome may have landed after a queue was loaded anew: only now it certainly has, or
                # never will. All memory goes before anybody is told, for who is told may ask for more at once.
                self._discard_all(StoreFailed())
                put_in_force()
            self._refuse(batch)

    def _refuse(self, batch: _Batch) -> None:
        """What waits was decided while nothing could be committed: nothing of it happened."""
        for participant in batch.participants.values():
            self._discarded(participant, StoreFailed())
        for callback in batch.callbacks:
            callback(StoreFailed())
