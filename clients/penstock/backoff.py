"""How long to wait before trying again."""

from __future__ import annotations

import dataclasses
import random


@dataclasses.dataclass(frozen=True, slots=True)
class Backoff:
    """How long a failed message rests before it is tried again: first * factor ** (receives - 1) seconds, at most
    `maximum`; with `jitter` a random part between half and all of it."""

    first: float = 1.0
    factor: float = 2.0
    maximum: float = 300.0
    jitter: bool = True

    def pause(self, receive_count: int) -> float:
        """Seconds after the given number of receives."""
        seconds = min(self.maximum, self.first * self.factor ** min(receive_count - 1, 64))
        return seconds * (0.5 + random.random() / 2) if self.jitter else seconds
