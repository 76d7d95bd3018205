"""What a member of a consumer group knows: its shards, how far each was processed, and how long it may go on without a word.

Pure: heartbeats go out as messages and come back as replies, and `now` is an argument (seconds of a clock that never jumps).
The member counts its session from before a heartbeat was sent, the broker from when it came: so the member stops first.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Final

from penstock_protocol import stream_messages as wire

BEATS_PER_SESSION: Final = 3
"""Two heartbeats may get lost before the session is over."""


def random_member() -> bytes:
    """A name that no other member has."""
    return os.urandom(16)


@dataclasses.dataclass(slots=True, eq=False)
class Lease:
    """A shard that is this member's. `start`: where it began; `taken`: behind what the application was given; `done`: behind what
    it has processed; `noted`: what of that is durable at the broker. `give_up_by`: another member is to have it, by then at the
    latest. `ended`: it is closed, and was read out."""

    shard: int
    number: int
    start: int
    taken: int = -1
    done: int = -1
    noted: int = -1
    give_up_by: float = math.inf
    ended: bool = False
    over: bool = False
    """It is this member's no more, or was just given back."""

    def __post_init__(self) -> None:
        self.taken = self.done = self.noted = self.start

    @property
    def is_asked_for(self) -> bool:
        """Whether another member is to have it: nothing more of it may be given out."""
        return self.give_up_by != math.inf

    def can_go(self, now: float) -> bool:
        """Whether it can be given back: it is asked for, and all that was given out is processed, or that took too long."""
        return self.is_asked_for and (self.done >= self.taken or now >= self.give_up_by)


@dataclasses.dataclass(slots=True)
class Change:
    """What a reply has changed: leases that begin, and those of which nothing may be given out any more."""

    begun: list[Lease] = dataclasses.field(default_factory=list)
    stopped: list[Lease] = dataclasses.field(default_factory=list)


class Membership:
    """See the module. One heartbeat is under way at a time: `heartbeat`, then `answered`, `expired` or `start_anew`."""

    def __init__(
        self,
        stream: str,
        group: str,
        session_seconds: float,
        start: str,
        new_member: Callable[[], bytes] = random_member,
    ) -> None:
        self._stream = stream
        self._group = group
        self._session = session_seconds
        self._start = start
        self._new_member = new_member
        self.member = new_member()
        self.leases: dict[int, Lease] = {}
        self.valid_until = -math.inf
        self._joining = True
        self._sent: list[tuple[Lease, int]] = []
        self._sent_at = -math.inf
        self._beat = 0

    def is_valid(self, now: float) -> bool:
        """Whether the leases are this member's for sure."""
        return now < self.valid_until

    @property
    def has_news(self) -> bool:
        """Whether more was processed than the broker knows."""
        return any(lease.done > lease.noted for lease in self.leases.values())

    def is_urgent(self, now: float) -> bool:
        """Whether somebody waits for the next heartbeat: for a shard that can be given up, or for the children of one that is
        done with."""
        return any(
            lease.can_go(now) or (lease.ended and lease.done >= lease.taken and lease.done > lease.noted)
            for lease in self.leases.values()
        )

    def due(self, checkpoint_seconds: float) -> float:
        """When the next heartbeat is to be sent, if nothing happens until then."""
        at = self._sent_at + self._session / BEATS_PER_SESSION
        if self.has_news:
            at = min(at, self._sent_at + checkpoint_seconds)
        return min(at, *(lease.give_up_by for lease in self.leases.values()), math.inf)

    def heartbeat(self, now: float, *, leaving: bool = False) -> wire.GroupHeartbeat:
        """What to say now. A shard that is given back with it is not this member's from here on."""
        self._sent_at = now
        self._beat += 1
        self._sent = [(lease, lease.done) for lease in self.leases.values() if lease.done > lease.noted]
        released = [lease for lease in self.leases.values() if lease.can_go(now)]
        for lease in released:
            lease.over = True
        return wire.GroupHeartbeat(
            self._stream,
            self._group,
            self.member,
            round(self._session * 1000),
            self._joining,
            leaving,
            self._start,
            [wire.Checkpoint(lease.shard, lease.number, position) for lease, position in self._sent],
            [lease.shard for lease in released],
            self._beat,
        )

    def answered(self, reply: wire.GroupLeases) -> Change:
        """The broker has heard the heartbeat."""
        self._joining = False
        self.valid_until = self._sent_at + self._session
        for lease, position in self._sent:
            if lease.shard not in reply.lost:
                lease.noted = max(lease.noted, position)
        change = Change()
        given = {one.shard: one for one in reply.leases}
        for lease in list(self.leases.values()):
            one = given.get(lease.shard)
            if lease.over or one is None or one.lease != lease.number:
                self._stop(lease, change)
        for one in reply.leases:
            known = self.leases.get(one.shard)
            if known is None:
                known = self.leases[one.shard] = Lease(one.shard, one.lease, one.position)
                if not one.give_up:
                    change.begun.append(known)
            elif known.is_asked_for and not one.give_up:  # whoever it was for does not need it any more
                known.give_up_by = math.inf
                change.begun.append(known)
            elif one.give_up and not known.is_asked_for:
                change.stopped.append(known)
            if one.give_up and not known.is_asked_for:
                known.give_up_by = self._sent_at + self._session
        return change

    def expired(self) -> Change:
        """The broker does not know this member any more: nothing is its own, and it joins again under another name."""
        self.member = self._new_member()
        return self.start_anew()

    def start_anew(self) -> Change:
        """Nothing is this member's any more, by its own choice; it joins again."""
        self._joining = True
        self.valid_until = -math.inf
        change = Change()
        for lease in list(self.leases.values()):
            self._stop(lease, change)
        return change

    def _stop(self, lease: Lease, change: Change) -> None:
        lease.over = True
        del self.leases[lease.shard]
        change.stopped.append(lease)
