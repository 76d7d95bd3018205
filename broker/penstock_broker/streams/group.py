"""A consumer group as a state machine: members, leases, checkpoints.

Each shard of the stream that can be read is leased to one member at a time. A shard can be read once all its parents have
been read out by the group, and theirs before them (a parent may have been closed without a record), so that records of one key
are processed in order over splits and merges. Members say that they live (`heartbeat`); one that is silent for its session loses
its leases. When members come or go, leases move so that nobody has two more than another: the owner is asked to give a lease up,
and only when it has, or its session has ended, another gets it. So two members never have one shard. (Kinesis: the leases of the
Kinesis Client Library, without its table.)

What is durable (`to_stored`) are checkpoints, finished shards and who has which lease; when members were last heard of is not:
a restart gives each a whole session again. Nothing here waits; `now_ms` is wall-clock milliseconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from penstock_protocol.errors import CheckpointInvalid

from penstock_broker.streams.topology import Range


@dataclasses.dataclass(frozen=True, slots=True)
class Extent:
    """A shard of the stream as it stands. `end`: the sequence number behind its last record; `trimmed`: the first one kept."""

    range: Range
    trimmed: int
    end: int

    def is_finished_at(self, position: int) -> bool:
        """Whether nothing is left to be read from there on, for ever."""
        return not self.range.is_open and position >= self.end


@dataclasses.dataclass(slots=True)
class Member:
    """One process that reads. `deadline_ms`: when it is given up unless it is heard of. `beat`: its last heartbeat's number."""

    session_ms: int
    deadline_ms: int
    beat: int = 0


@dataclasses.dataclass(slots=True)
class Lease:
    """A shard in a member's hands. `number` tells it from every other lease of the group, earlier ones of the same shard and
    member too. `give_up`: somebody else is to have it."""

    member: str
    number: int
    give_up: bool = False


class Group:
    """See the module. `positions`: by shard, the next sequence number to be processed; else a shard begins at its horizon."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.positions: dict[int, int] = {}
        self.finished: set[int] = set()
        self.leases: dict[int, Lease] = {}
        self.members: dict[str, Member] = {}
        self._next_lease = 1
        self.is_dirty = False
        """Whether what is durable has changed since `to_stored`."""

    # Members

    def last_beat(self, member: str) -> int:
        """The number of the member's last heartbeat; 0: it said none. (A restart forgets: no connection outlives it.)"""
        known = self.members.get(member)
        return 0 if known is None else known.beat

    def heartbeat(self, member: str, session_ms: int, now_ms: int, beat: int = 0) -> bool:
        """The member lives. Whether it was known: if not, it is a member from now on, with no lease yet."""
        known = self.members.get(member)
        if known is None:
            self.members[member] = Member(session_ms, now_ms + session_ms, beat)
            return False
        known.beat = max(known.beat, beat)
        known.session_ms = session_ms
        known.deadline_ms = now_ms + session_ms
        return True

    def leave(self, member: str) -> None:
        """The member stops: its leases are free at once."""
        self.members.pop(member, None)
        for shard in self.shards_of(member):
            self._free(shard)

    def expire(self, now_ms: int) -> bool:
        """Gives up members that were silent for too long; whether there were any."""
        silent = [name for name, member in self.members.items() if member.deadline_ms <= now_ms]
        for name in silent:
            self.leave(name)
        return bool(silent)

    def next_deadline(self) -> int | None:
        """When `expire` has something to do next."""
        return min((member.deadline_ms for member in self.members.values()), default=None)

    # What they did

    def checkpoint(self, member: str, shard: int, number: int, position: int, extent: Extent) -> bool:
        """Everything before `position` was processed. False, and nothing changes, when the member does not have that lease (any
        more). CheckpointInvalid for a position behind the last record or before the checkpoint."""
        lease = self.leases.get(shard)
        if lease is None or lease.member != member or lease.number != number:
            return False
        if position > extent.end:
            raise CheckpointInvalid(f"shard {shard} ends before {extent.end}; there is no record {position - 1}")
        if position < self.positions.get(shard, 0):
            raise CheckpointInvalid(f"the checkpoint of shard {shard} is at {self.positions[shard]} already; reset it to go back")
        if self.positions.get(shard) != position:
            self.positions[shard] = position
            self.is_dirty = True
        if extent.is_finished_at(position):
            self._finish(shard)
        return True

    def release(self, member: str, shard: int) -> None:
        """The member gives a lease up; nothing happens when it is not its own."""
        lease = self.leases.get(shard)
        if lease is not None and lease.member == member:
            self._free(shard)

    def start_at(self, positions: Mapping[int, int]) -> None:
        """Sets checkpoints, also back. All leases end, so that what members still say of them counts for nothing, and children
        wait for parents again."""
        for shard, position in positions.items():
            self.positions[shard] = position
            self.finished.discard(shard)
        self.leases.clear()
        self.is_dirty = True

    # Who gets what

    def shards_of(self, member: str) -> list[int]:
        """The shards that a member has, in order."""
        return sorted(shard for shard, lease in self.leases.items() if lease.member == member)

    def balance(self, extents: Iterable[Extent]) -> None:
        """Gives free leases to those who have the fewest, and asks for leases of those who have too many."""
        known = {extent.range.shard: extent for extent in extents}
        for shard in [shard for shard in self.positions if shard not in known]:
            del self.positions[shard]
            self.is_dirty = True
        self.finished &= known.keys()
        for shard in [shard for shard in self.leases if shard not in known]:
            self._free(shard)
        for shard, extent in sorted(known.items()):  # parents before their children
            # (A shard that was closed after its last record was processed: nobody has to say so again. One that never had a
            # record is as little done with as its parents, for its children wait for it alone.)
            position = max(self.positions.get(shard, 0), extent.trimmed)
            if extent.is_finished_at(position) and self._can_begin(extent, known):
                self._finish(shard)
        loads = dict.fromkeys(sorted(self.members), 0)
        for shard, lease in list(self.leases.items()):
            if lease.member in loads:
                loads[lease.member] += 1
            else:
                self._free(shard)
        if not loads:
            return
        for shard in sorted(known):
            if shard not in self.leases and self._can_begin(known[shard], known):
                least = min(loads, key=lambda name: loads[name])
                self.leases[shard] = Lease(least, self._next_lease)
                self._next_lease += 1
                loads[least] += 1
                self.is_dirty = True
        self._even_out(loads)

    def _even_out(self, loads: dict[str, int]) -> None:
        """Those with more than their share are asked for the rest: the share is the same for all but for one lease, and who has
        more keeps it."""
        share, more = divmod(sum(loads.values()), len(loads))
        for place, name in enumerate(sorted(loads, key=lambda name: (-loads[name], name))):
            surplus = loads[name] - share - (place < more)
            for shard in reversed(self.shards_of(name)):
                self.leases[shard].give_up = surplus > 0
                surplus -= 1

    def _can_begin(self, extent: Extent, known: Mapping[int, Extent]) -> bool:
        shard = extent.range.shard
        return shard not in self.finished and all(
            parent in self.finished or parent not in known for parent in extent.range.parents
        )

    def _finish(self, shard: int) -> None:
        self.finished.add(shard)
        self.leases.pop(shard, None)
        self.is_dirty = True

    def _free(self, shard: int) -> None:
        if self.leases.pop(shard, None) is not None:
            self.is_dirty = True

    # What is kept

    def to_stored(self) -> dict[str, Any]:
        """What restores it, as JSON has it."""
        self.is_dirty = False
        return {
            "positions": {str(shard): position for shard, position in self.positions.items()},
            "finished": sorted(self.finished),
            "leases": {str(shard): [lease.member, lease.number] for shard, lease in self.leases.items()},
            "next_lease": self._next_lease,
            "sessions": {name: member.session_ms for name, member in self.members.items()},
        }

    @classmethod
    def from_stored(cls, name: str, values: dict[str, Any], now_ms: int) -> Group:
        """The group as it was kept; each member has a whole session from now on to be heard of."""
        group = cls(name)
        group.positions = {int(shard): position for shard, position in values["positions"].items()}
        group.finished = set(values["finished"])
        group.leases = {int(shard): Lease(member, number) for shard, (member, number) in values["leases"].items()}
        group._next_lease = values["next_lease"]
        group.members = {member: Member(session_ms, now_ms + session_ms) for member, session_ms in values["sessions"].items()}
        return group
