"""What a stage is given and what it gives back."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path


class Failure(Exception):
    """A promise was broken in a way that ends the stage at once."""


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """What to do: until `deadline` (monotonic seconds), and no more than `count` if that is not 0. `show(done)` tells how
    far it is. `folder` is the stage's own and is removed after it."""

    deadline: float
    count: int
    seed: int
    plant: str
    postgresql: bool
    folder: Path
    show: Callable[[int], None]

    def goes_on(self, done: int, reserve_seconds: float = 0) -> bool:
        """Whether another one is to be done, with so much time kept for the end."""
        return (not self.count or done < self.count) and time.monotonic() < self.deadline - reserve_seconds


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What a stage has done, in one line, and what is wrong. `skipped`: why it did not run."""

    summary: str
    complaints: list[str] = dataclasses.field(default_factory=list)
    skipped: str = ""
