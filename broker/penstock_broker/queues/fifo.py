"""Who is served next in a FIFO queue: each message group in order, groups in turn.

The rule (SQS, SEMANTICS 2.1): of a group, the visible messages are served in the order of their sequence numbers, up to
the first one that is in flight. So a group with its oldest message in flight is locked, and after a visibility
timeout it is served only up to its first message that is still invisible. Delayed messages are not here yet, so they
lock nothing.

Groups that can be served stand in one circle. A take drains one group before it turns to the next, as SQS does; what it
took locks that group, so a hot group cannot starve another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from heapq import heapify, heappop, heappush, heapreplace

from penstock_broker.queues.ready import Taken
from penstock_broker.queues.segment import Run, Segment


class Group:
    """A message group: what waits, in order, and what is in flight.

    Both are heaps, so that ten thousand messages of one group may come back at once. A run is found by the sequence number it
    had when it was put in; what has left `in_flight` since, or begins later now, is noticed when it comes to the top."""

    __slots__ = ("in_flight", "name", "queued", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting: list[tuple[int, int, Run]] = []
        self.in_flight: list[tuple[int, int, Run]] = []
        self.queued = False

    def bound(self) -> int | None:
        """The lowest sequence number in flight; None when nothing is."""
        heap = self.in_flight
        while heap:
            sequence, _, run = heap[0]
            if not run.locks:
                heappop(heap)
            elif run.lowest_sequence != sequence:
                heapreplace(heap, _entry(run))
            else:
                return sequence
        return None

    def can_serve(self) -> bool:
        """Whether its first waiting message comes before everything in flight."""
        if not self.waiting:
            return False
        bound = self.bound()
        return bound is None or self.waiting[0][0] < bound

    def insert(self, run: Run) -> None:
        """Puts a run where its sequence number belongs."""
        mask = run.mask
        heappush(self.waiting, (run.segment.first + (mask & -mask).bit_length() - 1, id(run), run))

    def lock(self, run: Run) -> None:
        """The run is in flight from now on, until its `locks` ends."""
        run.locks = True
        mask = run.mask
        heappush(self.in_flight, (run.segment.first + (mask & -mask).bit_length() - 1, id(run), run))

    def keep_living(self) -> None:
        """Drops waiting runs that have become empty, and finds the others by the first message they still have."""
        self.waiting = [_entry(run) for _, _, run in self.waiting if run.mask]
        heapify(self.waiting)


def _entry(run: Run) -> tuple[int, int, Run]:
    # (The id tells apart a run that left from another with the same first message: runs themselves have no order.)
    return (run.lowest_sequence, id(run), run)


class FifoReady:
    """The visible messages of a FIFO queue that are in memory."""

    def __init__(self) -> None:
        self.messages = 0
        self._groups: dict[str, Group] = {}
        self._turn: deque[Group] = deque()

    @property
    def can_serve(self) -> bool:
        """Whether a take would find anything: not everything that waits is locked."""
        return bool(self._turn)

    def arrive(self, segment: Segment, mask: int) -> None:
        """Messages became visible for the first time; their content is in memory."""
        assert segment.columns is not None and segment.columns.groups is not None
        by_group: dict[str, int] = {}
        bit = 1
        for group in segment.columns.groups:
            if mask & bit:
                by_group[group] = by_group.get(group, 0) | bit
            bit <<= 1
        for name, of_group in by_group.items():
            self.put(Run(segment, of_group, group=name))

    def put(self, run: Run) -> None:
        """Messages wait (again) at their place in their group.

        Messages that come back are kept one by one: between them others may be in flight, and come back later."""
        assert run.group is not None
        self.messages += run.mask.bit_count()
        group = self._groups.get(run.group)
        if group is None:
            group = self._groups[run.group] = Group(run.group)
        while run.received and run.mask & (run.mask - 1):
            single = run.split(run.mask & -run.mask)
            if single.delivery is not None:
                single.delivery.add(single)
            group.insert(single)
        group.insert(run)
        self._update(group)

    def _update(self, group: Group) -> None:
        if group.queued:
            return
        if group.can_serve():
            group.queued = True
            self._turn.append(group)
        elif not group.waiting and group.bound() is None:
            self._groups.pop(group.name, None)

    def take(self, limit: int, max_bytes: int, max_received: int, now_ms: int) -> Taken:
        """Takes up to `limit` messages, group by group; those received `max_received` times already are set aside as dead."""
        del now_ms
        taken = Taken()
        blocked: list[Group] = []
        while taken.messages < limit and self._turn:
            group = self._turn.popleft()
            group.queued = False
            bound = group.bound()
            full = False
            served = False
            while group.waiting and taken.messages < limit:
                sequence, _, run = group.waiting[0]
                ceiling = 0
                if bound is not None:
                    ceiling = bound - run.segment.first
                    if sequence >= bound:
                        break
                before = run.mask.bit_count()
                pulled = taken.pull(run, limit, max_bytes, max_received, ceiling)
                count = before - run.mask.bit_count()
                self.messages -= count
                if pulled is None or not count:
                    full = pulled is not None
                    blocked.append(group)
                    break
                if not run.mask:
                    heappop(group.waiting)
                elif count:
                    heapreplace(group.waiting, _entry(run))
                if not (taken.dead and taken.dead[-1] is pulled):
                    pulled.locks = served = True
                    heappush(group.in_flight, (sequence, id(pulled), pulled))
                elif not group.waiting:
                    break
            if not served and group not in blocked:
                self._update(group)
            if full or len(taken.missing) > 8:
                break
        for group in blocked:
            self._update(group)
        return taken

    def settle(self, run: Run, count: int, held_ms: int, now_ms: int) -> None:
        """`count` messages of a run in flight were deleted; its mask is already without them."""
        del count, held_ms, now_ms
        self._settle(run, gone=not run.mask)

    def leave(self, run: Run, held_ms: int, now_ms: int) -> None:
        """A run is in flight no more: it is about to be put back, or goes elsewhere."""
        del held_ms, now_ms
        self._settle(run, gone=True)

    def _settle(self, run: Run, *, gone: bool) -> None:
        assert run.group is not None
        group = self._groups.get(run.group)
        if group is not None:
            if gone:
                run.locks = False
            self._update(group)

    def shrink(self, run: Run, mask: int) -> None:
        """Messages of a waiting run were deleted."""
        assert run.group is not None
        self.messages -= (run.mask & mask).bit_count()
        run.mask &= ~mask
        group = self._groups.get(run.group)
        if group is not None and not run.mask:
            group.keep_living()
            if group.queued and not group.can_serve():
                group.queued = False
                self._turn.remove(group)
            self._update(group)

    def restore(self, run: Run) -> None:
        """Messages that were in flight when the queue was loaded."""
        assert run.group is not None
        group = self._groups.get(run.group)
        if group is None:
            group = self._groups[run.group] = Group(run.group)
        group.lock(run)

    def adopt_split(self, run: Run, part: Run) -> None:
        """A run in flight was split; both parts stay in flight."""
        assert run.group is not None
        self._groups[run.group].lock(part)

    def runs(self) -> Iterable[Run]:
        """Everything that waits."""
        for group in self._groups.values():
            for _, _, run in group.waiting:
                yield run

    def drop_deleted(self) -> None:
        """Takes out messages whose segments marked them deleted meanwhile (retention)."""
        groups = list(self._groups.values())
        for group in groups:
            for _, _, run in group.waiting:
                gone = run.mask & run.segment.deleted
                if gone:
                    self.messages -= gone.bit_count()
                    run.mask &= ~gone
            group.keep_living()
            group.queued = group.queued and group.can_serve()
        self._turn = deque(group for group in self._turn if group.queued)
        for group in groups:
            self._update(group)
