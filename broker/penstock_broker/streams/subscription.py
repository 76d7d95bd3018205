"""A subscription of a shard as a state machine: where it is, what credit it has, and what comes next.

It keeps no records: those lie in the shard's tip, once for all, or in the store. Nothing here waits.
"""

from __future__ import annotations

import dataclasses
import enum

from penstock_protocol.errors import PositionTrimmed

from penstock_broker.streams import limits
from penstock_broker.streams.shard import Reading, Shard


class Step(enum.Enum):
    """What comes next, where it is not a push."""

    WAIT = "wait"
    """Nothing, until there are records or credit."""
    LOAD = "load"
    """Its next records are in the store."""
    END = "end"
    """The shard is closed, and all of it was pushed."""


@dataclasses.dataclass(slots=True, eq=False)
class Subscription:
    """`position`: the next sequence number to be pushed. `credit`: how many records may be pushed; below 0 after a batch that had
    more."""

    position: int
    credit: int

    def give(self, records: int) -> None:
        """So many more may be pushed."""
        self.credit = min(self.credit + records, limits.MAX_CREDIT)

    @property
    def max_records(self) -> int:
        """How many records the next push may bring, but for the rest of a batch."""
        return min(self.credit, limits.PUSH_RECORDS)

    def step(self, shard: Shard) -> Reading | Step:
        """What to push now, or what else to do. PositionTrimmed when records that it was to get have aged out."""
        if self.position < shard.trimmed:
            raise PositionTrimmed(f"records from {self.position} to {shard.trimmed - 1} have aged out")
        if shard.read_out(self.position):
            return Step.END
        if self.credit <= 0:
            return Step.WAIT
        reading = shard.read(self.position, self.max_records, limits.PUSH_BYTES)
        if reading is None:
            return Step.LOAD
        return reading if reading.runs else Step.WAIT

    def pushed(self, position: int, records: int) -> None:
        """So many records were pushed, and `position` is behind them."""
        self.position = position
        self.credit -= records
