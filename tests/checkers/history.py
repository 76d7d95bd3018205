"""The history of a run: one record per operation of a client, with its outcome: ok, fail or info (nobody knows)."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(slots=True)
class Operation:
    """`invoked` and `completed` are seconds of the driver's clock; `completed` is infinite for info. `outcome` is ok, fail
    (certainly nothing happened) or info. `life` counts the broker's lives at the end of the operation."""

    process: str
    name: str
    arguments: dict[str, Any]
    invoked: float
    outcome: str = "info"
    completed: float = float("inf")
    value: Any = None
    error: str = ""
    life: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Received:
    """One message of a receive. `sent_ms` is what the broker says about its sending; `text` its attribute."""

    body: str
    sequence: int
    count: int
    group: str | None
    source: str | None = None
    sent_ms: int = 0
    text: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class QueueFacts:
    """How a queue is set up for the whole run. Times in seconds."""

    dead_letter: str | None = None
    max_receives: int | None = None
    retention: float | None = None

    def allowed(self) -> int | None:
        """How often a message may be received at most."""
        return self.max_receives if self.dead_letter else None


@dataclasses.dataclass(slots=True)
class History:
    """Operations in the order of their invocation, and when the broker's wall clock was moved."""

    operations: list[Operation] = dataclasses.field(default_factory=list)
    jumps: list[float] = dataclasses.field(default_factory=list)
    queues: dict[str, QueueFacts] = dataclasses.field(default_factory=dict)

    def begin(self, process: str, name: str, now: float, **arguments: Any) -> Operation:
        """A client asks."""
        operation = Operation(process, name, arguments, now)
        self.operations.append(operation)
        return operation

    def of(self, name: str, queue: str | None = None, outcomes: tuple[str, ...] = ("ok",)) -> list[Operation]:
        """The operations of that name (and queue) with one of these outcomes."""
        return [
            one
            for one in self.operations
            if one.name == name and one.outcome in outcomes and (queue is None or one.arguments["queue"] == queue)
        ]

    def facts(self, queue: str) -> QueueFacts:
        """How the queue is set up."""
        return self.queues.get(queue, QueueFacts())

    def family(self, queue: str) -> set[str]:
        """The queue and where its messages may be moved to."""
        found = {queue}
        for name, facts in self.queues.items():
            if name == queue and facts.dead_letter:
                found.add(facts.dead_letter)
        for name, facts in self.queues.items():
            if facts.dead_letter == queue:
                found.add(name)
        return found

    def jumped(self, start: float, end: float) -> bool:
        """Whether the wall clock was moved in between."""
        return any(start <= at <= end for at in self.jumps)

    @property
    def is_certain(self) -> bool:
        """Whether every outcome is known and no broker was lost on the way."""
        return all(one.outcome != "info" for one in self.operations) and not self.of("crash")

    @property
    def ended(self) -> float:
        """When the last operation completed."""
        return max((one.completed for one in self.operations if one.completed != float("inf")), default=0.0)
