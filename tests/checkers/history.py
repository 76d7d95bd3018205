"""The history of a run: one record per operation of a client, with its outcome: ok, fail or info (nobody knows)."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(slots=True)
class Operation:
    """`invoked` and `completed` are seconds of the driver's clock; `completed` is infinite for info. `outcome` is ok, fail
    (certainly nothing happened) or info."""

    process: str
    name: str
    arguments: dict[str, Any]
    invoked: float
    outcome: str = "info"
    completed: float = float("inf")
    value: Any = None
    error: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Received:
    """One message of a receive."""

    body: str
    sequence: int
    count: int
    group: str | None
    source: str | None = None


@dataclasses.dataclass(slots=True)
class History:
    """Operations in the order of their invocation, and when the broker's wall clock was moved."""

    operations: list[Operation] = dataclasses.field(default_factory=list)
    jumps: list[float] = dataclasses.field(default_factory=list)

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

    def jumped(self, start: float, end: float) -> bool:
        """Whether the wall clock was moved in between."""
        return any(start <= at <= end for at in self.jumps)
