"""A loaded queue with those who wait for its messages."""

from __future__ import annotations

import dataclasses
from collections import deque

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


@dataclasses.dataclass(slots=True, eq=False)
class Runtime:
    """One loaded queue. Dropped (never mended) when a commit of it fails."""

    record: QueueRecord
    queue: Queue
    waiters: deque[Waiter] = dataclasses.field(default_factory=deque)
    """Who is served next: receives, and consumers that have credit."""
    consumers: set[Waiter] = dataclasses.field(default_factory=set)
    alarm_ms: int = 0
    """The deadline the timer was last told; 0: none."""
    used: int = 0
    """Grows with each use: the least recently used queue gives up memory first."""
    dropped: bool = False
    awaits_dead_letter: bool = False
    """Its dead-letter queue is being loaded for those who wait."""
