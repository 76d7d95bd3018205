"""A loaded queue with those who wait for its messages."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

from penstock_broker.call import Call
from penstock_broker.catalog import QueueRecord
from penstock_broker.queues.queue import Queue


@dataclasses.dataclass(slots=True, eq=False)
class Waiter:
    """A receive that waits, or a consumer. `credit` is None for a receive, which takes up to `max_messages` once."""

    call: Call
    runtime: Runtime
    max_messages: int
    max_bytes: int
    visibility_ms: int | None
    attempt_id: str
    deadline_ms: int
    credit: int | None = None
    release: bool = False
    held: set[int] = dataclasses.field(default_factory=set)
    """Deliveries of a consumer that asked for their release at its end."""


Alarm = list[Any]
"""When, a number that makes it unique, and the runtime: None once the alarm does not count any more."""


@dataclasses.dataclass(slots=True, eq=False)
class Runtime:
    """One loaded queue. Dropped (never mended) when a commit of it fails."""

    record: QueueRecord
    queue: Queue
    waiters: OrderedDict[Waiter, None] = dataclasses.field(default_factory=OrderedDict)
    """Who is served, in this order: receives, and consumers that have credit."""
    parked: dict[Waiter, None] = dataclasses.field(default_factory=dict)
    """Those of them that are not served before their connection has written more."""
    consumers: dict[Waiter, None] = dataclasses.field(default_factory=dict)
    receives: int = 0
    """How many of the waiters are receives."""
    repeats: dict[Waiter, None] = dataclasses.field(default_factory=dict)
    """Receives whose attempt may have been answered before: all that they wait for is content from the store."""
    alarm: Alarm | None = None
    """What the timer was last told."""
    used: int = 0
    """Grows with each use: the least recently used queue gives up memory first."""
    dropped: bool = False
    awaits_dead_letter: bool = False
    """Its dead-letter queue is being loaded for those who wait."""
    burying: int = 0
    """Commits on their way that move messages to the dead-letter queue: until then they are in neither."""
    awaits_room: bool = False
    """The store is full, and messages are to move to the dead-letter queue before anybody is served."""
    _deadlines: list[tuple[int, int, Waiter]] = dataclasses.field(default_factory=list)
    _attempts: dict[str, dict[Waiter, None]] = dataclasses.field(default_factory=dict)
    _parked_receives: int = 0
    _numbers: Iterator[int] = dataclasses.field(default_factory=itertools.count)

    @property
    def waiting(self) -> int:
        """Receives and consumers, whatever they wait for."""
        return len(self.consumers) + self.receives + self._parked_receives

    def wait(self, waiter: Waiter) -> None:
        """Puts it behind the others."""
        self.waiters[waiter] = None
        if waiter.credit is not None:
            return
        self.receives += 1
        if waiter.attempt_id:
            self._attempts.setdefault(waiter.attempt_id, {})[waiter] = None
            self.repeats[waiter] = None
        heapq.heappush(self._deadlines, (waiter.deadline_ms, next(self._numbers), waiter))
        if len(self._deadlines) > 64 + 2 * self.receives:
            self._deadlines = [entry for entry in self._deadlines if entry[2] in self.waiters]
            heapq.heapify(self._deadlines)

    def leave(self, waiter: Waiter) -> bool:
        """It waits no more; whether it did."""
        if waiter in self.waiters:
            del self.waiters[waiter]
            self.receives -= waiter.credit is None
        elif waiter in self.parked:
            del self.parked[waiter]
            self._parked_receives -= waiter.credit is None
        else:
            return False
        if waiter.attempt_id and waiter.credit is None:
            self.repeats.pop(waiter, None)
            others = self._attempts.get(waiter.attempt_id)
            if others is not None:
                others.pop(waiter, None)
                if not others:
                    del self._attempts[waiter.attempt_id]
        return True

    def park(self, waiter: Waiter) -> None:
        """It is not served before its connection has room."""
        self.leave(waiter)
        self.parked[waiter] = None
        self._parked_receives += waiter.credit is None

    def attempt_answered(self, attempt_id: str) -> None:
        """Who waits with the same attempt id gets the same answer."""
        if attempt_id:
            self.repeats.update(self._attempts.get(attempt_id, {}))

    def next_deadline(self) -> int | None:
        """When the next receive has waited long enough. None: nobody waits for time."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][2] not in self.waiters:
            heapq.heappop(deadlines)
        return deadlines[0][0] if deadlines else None

    def overdue(self, now_ms: int) -> Iterable[Waiter]:
        """Takes out the receives that have waited long enough."""
        while (deadline := self.next_deadline()) is not None and deadline <= now_ms:
            waiter = heapq.heappop(self._deadlines)[2]
            self.leave(waiter)
            yield waiter
