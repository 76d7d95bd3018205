"""How far behind the readers of a shard are, from what reads brought: the highest age of a last record lately.

Several readers at different places share one shard, and metrics are looked at now and then; so the highest age stands for a
minute, and nothing is known of a shard that nobody has read for two.
"""

from __future__ import annotations

from typing import Final

WINDOW_MS: Final = 60_000


class IteratorAge:
    """See the module. `now_ms` is wall-clock milliseconds."""

    __slots__ = ("_age_ms", "_at_ms")

    def __init__(self) -> None:
        self._age_ms = 0
        self._at_ms = 0

    def note(self, age_ms: int, now_ms: int) -> None:
        """A read brought a last record of that age; 0 when it brought none, for it is at the tip."""
        if age_ms >= self._age_ms or now_ms - self._at_ms >= WINDOW_MS:
            self._age_ms, self._at_ms = age_ms, now_ms

    def at(self, now_ms: int) -> int | None:
        """The highest of the last minute or two; None: nobody read."""
        return self._age_ms if now_ms - self._at_ms < 2 * WINDOW_MS else None
