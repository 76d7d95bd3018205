"""Who is served next in a standard queue: oldest first, quiet tenants before noisy ones.

A message group id on a standard queue names a tenant (SQS calls this fair queues). A tenant is noisy while it has at least
NOISY_IN_FLIGHT messages in flight and more than NOISY_SHARE of all in flight, or more than NOISY_SHARE of the
recent processing time. Quiet tenants are served in turn; noisy ones, least in flight first, only when no quiet one
waits. Messages without a group are one more quiet participant. A tenant is forgotten when nothing of it waits or is
in flight, so the memory of noise ends with its backlog; and it is quiet when it has sent nothing for NOISE_LASTS_MS.

Only messages whose content is in memory can be taken. What is missing is reported, and the caller loads it.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable

from penstock_broker.queues import limits
from penstock_broker.queues.segment import Run, Segment, lowest


@dataclasses.dataclass(slots=True)
class Taken:
    """What a take brought: runs to deliver, runs to dead-letter, and segments whose content must be loaded first."""

    runs: list[Run] = dataclasses.field(default_factory=list)
    dead: list[Run] = dataclasses.field(default_factory=list)
    missing: list[Segment] = dataclasses.field(default_factory=list)
    messages: int = 0
    size_bytes: int = 0

    def pull(self, run: Run, limit: int, max_bytes: int, max_received: int, ceiling: int = 0) -> Run | None:
        """Takes what fits out of `run`: up to `limit` messages and `max_bytes` in all, but one at least, and only indexes
        below `ceiling` if given. Returns what was taken out of it; its `mask` is what stays. None: content is missing."""
        segment = run.segment
        if segment.columns is None:
            self.missing.append(segment)
            return None
        count = limit - self.messages
        available = run.mask if not ceiling else run.mask & ((1 << ceiling) - 1)
        waiting = available.bit_count()
        dead = run.received >= max_received > 0
        if not dead:
            count = min(count, waiting)
            size = segment.bytes_of(available)
            if self.size_bytes + size > max_bytes:
                room = max_bytes - self.size_bytes
                count = min(count, max(room * waiting // size, 0 if self.runs else 1))
            if count <= 0:
                return Run(segment, 0)
        else:
            count = waiting
        taken = run.split(lowest(available, count))
        if dead:
            self.dead.append(taken)
        else:
            self.runs.append(taken)
            self.messages += count
            self.size_bytes += segment.bytes_of(taken.mask)
        return taken


class Tenant:
    """One participant of a fair queue: what of it waits, and how much of the service it has had."""

    __slots__ = ("in_flight", "name", "newest_ms", "processing", "processing_at_ms", "queued", "runs")

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.runs: deque[Run] = deque()
        self.in_flight = 0
        self.processing = 0.0
        self.processing_at_ms = 0
        self.queued = False
        self.newest_ms = 0
        """When it sent its newest message, as far as that is known here."""

    def note_sent(self, segment: Segment) -> None:
        """Messages of it are in this segment."""
        self.newest_ms = max(self.newest_ms, segment.sent_ms, segment.due_ms)

    def add_processing(self, amount_ms: float, now_ms: int) -> float:
        """Adds processing time to the decaying sum; returns the sum."""
        age = now_ms - self.processing_at_ms
        if age > 0:
            self.processing *= 0.5 ** (age / limits.PROCESSING_HALF_LIFE_MS)
            self.processing_at_ms = now_ms
        self.processing += amount_ms
        return self.processing


class StandardReady:
    """The visible messages of a standard queue that are in memory."""

    def __init__(self) -> None:
        self.messages = 0
        self._plain = Tenant(None)
        self._tenants: dict[str, Tenant] = {}
        self._turn: deque[Tenant] = deque()
        self._total = Tenant(None)

    @property
    def can_serve(self) -> bool:
        """Whether a take would find anything."""
        return bool(self._turn)

    def arrive(self, segment: Segment, mask: int) -> None:
        """Messages became visible for the first time; their content is in memory if they have groups."""
        groups = segment.columns.groups if segment.columns is not None else None
        if groups is None:
            self.put(Run(segment, mask))
            return
        by_group: dict[str | None, int] = {}
        for index, group in enumerate(groups):
            by_group[group] = by_group.get(group, 0) | (1 << index)
        for group, of_group in by_group.items():
            if of_group & mask:
                self.put(Run(segment, of_group & mask, group=group))

    def note_sent(self, segment: Segment) -> None:
        """New messages stay in the store only: their tenants go on."""
        groups = segment.columns.groups if segment.columns is not None else None
        for name in set(groups or ()):
            if name is not None and (tenant := self._tenants.get(name)) is not None:
                tenant.note_sent(segment)

    def newcomers(self, segment: Segment) -> int:
        """The messages of tenants of which nothing waits here."""
        groups = segment.columns.groups if segment.columns is not None else None
        if groups is None:
            return 0
        new = {name for name in set(groups) if name is not None and not ((known := self._tenants.get(name)) and known.runs)}
        return sum(1 << index for index, name in enumerate(groups) if name in new) if new else 0

    def put(self, run: Run) -> None:
        """Messages wait (again), behind what waits in memory."""
        self.messages += run.mask.bit_count()
        tenant = self._plain if run.group is None else self._tenants.get(run.group)
        if tenant is None:
            assert run.group is not None
            tenant = self._tenants[run.group] = Tenant(run.group)
        if run.group is not None:
            tenant.note_sent(run.segment)
        tenant.runs.append(run)
        if not tenant.queued:
            tenant.queued = True
            self._turn.append(tenant)

    def take(self, limit: int, max_bytes: int, max_received: int, now_ms: int) -> Taken:
        """Takes up to `limit` messages; those received `max_received` times already (0: no bound) are set aside as dead."""
        taken = Taken()
        while taken.messages < limit and self._turn:
            tenant = self._turn[0] if len(self._turn) == 1 else self._choose(now_ms)
            run = tenant.runs[0]
            before = run.mask.bit_count()
            pulled = taken.pull(run, limit, max_bytes, max_received) if before else run
            count = before - run.mask.bit_count()
            self.messages -= count
            if tenant.name is not None and pulled is not None and not (taken.dead and taken.dead[-1] is pulled):
                tenant.in_flight += count
            if not run.mask:
                tenant.runs.popleft()
            if not tenant.runs:
                tenant.queued = False
                self._turn.remove(tenant)
                self._forget_if_idle(tenant)
            elif len(self._turn) > 1:
                self._turn.remove(tenant)
                self._turn.append(tenant)
            if pulled is None or (before and not count):
                break
        self._total.in_flight += taken.messages
        return taken

    def _choose(self, now_ms: int) -> Tenant:
        noisy = []
        for tenant in self._turn:
            if not self._is_noisy(tenant, now_ms):
                return tenant
            noisy.append(tenant)
        return min(noisy, key=lambda tenant: tenant.in_flight)

    def _is_noisy(self, tenant: Tenant, now_ms: int) -> bool:
        if tenant.name is None or now_ms - tenant.newest_ms >= limits.NOISE_LASTS_MS:
            return False
        if tenant.in_flight >= limits.NOISY_IN_FLIGHT and tenant.in_flight > limits.NOISY_SHARE * self._total.in_flight:
            return True
        total = self._total.add_processing(0.0, now_ms)
        return total > 0 and tenant.add_processing(0.0, now_ms) > max(limits.NOISY_SHARE * total, limits.NOISY_PROCESSING_MS)

    def settle(self, run: Run, count: int, held_ms: int, now_ms: int) -> None:
        """`count` messages of a run in flight were deleted; its mask is already without them."""
        self._total.in_flight -= count
        self._total.add_processing(held_ms * count, now_ms)
        if run.group is None:
            return
        tenant = self._tenants.get(run.group)
        if tenant is not None:
            tenant.in_flight -= count
            tenant.add_processing(held_ms * count, now_ms)
            self._forget_if_idle(tenant)

    def leave(self, run: Run, held_ms: int, now_ms: int) -> None:
        """A run is in flight no more: it is about to be put back, or goes elsewhere."""
        self.settle(run, run.mask.bit_count(), held_ms, now_ms)

    def shrink(self, run: Run, mask: int) -> None:
        """Messages of a waiting run were deleted by an old handle. An empty run is passed over by the next take."""
        self.messages -= (run.mask & mask).bit_count()
        run.mask &= ~mask

    def restore(self, run: Run) -> None:
        """Messages that were in flight when the queue was loaded."""
        count = run.mask.bit_count()
        self._total.in_flight += count
        if run.group is not None:
            # (A group that only has messages in flight is known, too.)
            tenant = self._tenants.setdefault(run.group, Tenant(run.group))
            tenant.in_flight += count
            tenant.note_sent(run.segment)

    def adopt_split(self, run: Run, part: Run) -> None:
        """A run in flight was split; both parts stay in flight."""

    def _forget_if_idle(self, tenant: Tenant) -> None:
        if tenant.name is not None and not tenant.runs and tenant.in_flight <= 0:
            self._tenants.pop(tenant.name, None)

    def runs(self) -> Iterable[Run]:
        """Everything that waits."""
        for tenant in self._turn:
            yield from tenant.runs

    def drop_deleted(self) -> None:
        """Takes out messages whose segments marked them deleted meanwhile (retention)."""
        idle = []
        for tenant in self._turn:
            kept: deque[Run] = deque()
            for run in tenant.runs:
                gone = run.mask & run.segment.deleted
                if gone:
                    self.messages -= gone.bit_count()
                    run.mask &= ~gone
                if run.mask:
                    kept.append(run)
            tenant.runs = kept
            if not kept:
                tenant.queued = False
                idle.append(tenant)
        if idle:
            self._turn = deque(tenant for tenant in self._turn if tenant.queued)
        for tenant in idle:
            self._forget_if_idle(tenant)
