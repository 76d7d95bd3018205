"""What the broker counts as it goes: plain numbers that cost nothing per message, turned into metrics when scraped."""

from __future__ import annotations

import bisect
import dataclasses
from collections import Counter
from typing import Final

SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
BATCH: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Histogram:
    """Counts of values at or below each bound, the last for all above, and the sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclasses.dataclass(slots=True)
class Counters:
    """Since the broker started."""

    requests: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    """By operation and result ("ok" or the error's name)."""
    connections: int = 0
    connections_opened: int = 0
    connections_failed: Counter[str] = dataclasses.field(default_factory=Counter)
    """Connections that the broker closed, by the error's name."""
    bytes_in: int = 0
    bytes_out: int = 0
    commits: Counter[str] = dataclasses.field(default_factory=Counter)
    """By outcome: ok, failed, unknown, full, fenced."""
    commit_seconds: Histogram = dataclasses.field(default_factory=lambda: Histogram(SECONDS))
    commit_requests: Histogram = dataclasses.field(default_factory=lambda: Histogram(BATCH))
    """Requests that one commit answered."""
    loads: int = 0
    load_errors: int = 0
    background_errors: Counter[str] = dataclasses.field(default_factory=Counter)
    """Defects caught at the edge of a background service, by its name."""
