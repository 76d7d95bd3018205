"""What may go wrong on a seed, and how often: drawn per seed, so that every seed meets another mix ("swarm")."""

from __future__ import annotations

import dataclasses
import random
from typing import Final

SMALL_LIMITS: Final[dict[str, tuple[int, ...]]] = {
    "SEGMENT_MESSAGES": (2, 3, 8),
    "SEGMENT_BYTES": (16, 60),
    "WINDOW_MESSAGES": (4, 10),
    "FIFO_WINDOW_MESSAGES": (12, 40),
    "LOW_WATER_MESSAGES": (1, 3),
    "PAGE_SEGMENTS": (1, 2, 4),
    "PAGE_BYTES": (30, 200),
    "CONTENT_BYTES": (400, 3_000),
    "DELAYED_SEGMENTS": (2, 4),
    "RESERVE_SEQUENCES": (1, 4, 40),
    "DELIVERY_PAGE": (1, 3),
    "MOVE_BATCH": (1, 3),
    "PUSH_MESSAGES": (1, 3),
}
"""Limits that are made small on some seeds, so that a few messages reach what takes millions otherwise."""


@dataclasses.dataclass(frozen=True, slots=True)
class Weather:
    """Shares and rates. `limits` are the broker's limits that are made small."""

    crash: float = 0.0
    stop: float = 0.0
    fail: float = 0.0
    unknown: float = 0.0
    full: float = 0.0
    load_error: float = 0.0
    cut: float = 0.0
    limbo: float = 0.0
    lag: float = 0.0
    chop: float = 0.0
    jump: float = 0.0
    dead_letters: int = 0
    redrive: float = 0.0
    purge: float = 0.0
    admin: float = 0.0
    fifo: float = 0.5
    groups: bool = False
    retention: bool = False
    delays: float = 0.2
    content: int = 0
    limits: tuple[tuple[str, int], ...] = ()

    @property
    def is_healthy(self) -> bool:
        """Nothing goes wrong on this seed."""
        return not (
            self.crash or self.stop or self.fail or self.unknown or self.full or self.load_error or self.cut or self.limbo
        )

    @classmethod
    def drawn(cls, chance: random.Random) -> Weather:
        """A mix."""

        def some(share: float, most: float) -> float:
            return chance.uniform(0, most) if chance.random() < share else 0.0

        calm = chance.random() < 0.12
        storm = 0 if calm else 1
        small = chance.random() < 0.5
        return cls(
            crash=storm * some(0.6, 0.6),
            stop=storm * some(0.2, 0.3),
            fail=storm * some(0.4, 0.08),
            unknown=storm * some(0.5, 0.1),
            full=storm * some(0.2, 0.05),
            load_error=storm * some(0.3, 0.1),
            cut=storm * some(0.4, 0.3),
            limbo=storm * some(0.3, 0.05),
            lag=some(0.8, 0.05),
            chop=some(0.3, 0.3),
            jump=storm * some(0.25, 1.0),
            dead_letters=chance.choice((0, 0, 1, 2, 3)),
            redrive=some(0.5, 0.15),
            purge=some(0.15, 0.05),
            admin=some(0.2, 0.1),
            fifo=chance.choice((0.0, 0.5, 0.5, 1.0)),
            groups=chance.random() < 0.3,
            retention=chance.random() < 0.08,
            delays=some(0.5, 0.6),
            content=chance.choice((0, 0, 0, 40)),
            limits=tuple(
                (name, chance.choice(values)) for name, values in SMALL_LIMITS.items() if small and chance.random() < 0.6
            ),
        )
