"""Segments in memory by a time of theirs, so that the oldest is found without a look at all of them.

What is gone, or has lost its oldest messages since, is put right when it comes to the front.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from penstock_broker.queues.segment import Segment


class Ages:
    """See the module. `segments` is what is in memory now; `time_of` only ever grows while messages of a segment end."""

    def __init__(self, segments: dict[int, Segment], time_of: Callable[[Segment], int]) -> None:
        self._segments = segments
        self._time_of = time_of
        self._heap: list[tuple[int, int, Segment]] = []

    def add(self, segment: Segment) -> None:
        """A segment came into memory, or turned out to be older than was known."""
        heapq.heappush(self._heap, (self._time_of(segment), segment.first, segment))
        if len(self._heap) > 64 + 2 * len(self._segments):
            self._heap = [(self._time_of(one), one.first, one) for one in self._segments.values()]
            heapq.heapify(self._heap)

    def oldest(self) -> int | None:
        """The time of the oldest; None when there is no segment."""
        heap = self._heap
        while heap:
            at_ms, first, segment = heap[0]
            if self._segments.get(first) is not segment:
                heapq.heappop(heap)
                continue
            now_at_ms = self._time_of(segment)
            if now_at_ms <= at_ms:
                return at_ms
            heapq.heapreplace(heap, (now_at_ms, first, segment))
        return None

    def take_until(self, bound_ms: int) -> Iterator[Segment]:
        """Takes out those that are not younger than `bound_ms`, the oldest first; those that live on are to be added again."""
        while (at_ms := self.oldest()) is not None and at_ms <= bound_ms:
            yield heapq.heappop(self._heap)[2]

    def clear(self) -> None:
        """There is no segment any more."""
        self._heap.clear()
