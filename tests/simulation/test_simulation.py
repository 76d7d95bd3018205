"""The broker keeps its promises in the simulation, and the simulation notices when it does not."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.simulation.planted import BUGS, seeds_until_caught
from tests.simulation.story import run_seed

CHUNK = 25


@pytest.mark.parametrize("first", range(0, 500, CHUNK))
def test_no_checker_complains_about_any_seed(first: int) -> None:
    marks: Counter[str] = Counter()
    for seed in range(first, first + CHUNK):
        world, complaints = run_seed(seed)
        assert not complaints, (
            f"seed {seed}: {complaints[:3]}; again with: python -m tests.simulation --seed {seed}; {world.weather}"
        )
        marks += world.marks
    # What never happened was not tested.
    for mark in ("crash", "cut", "FAIL", "UNKNOWN_APPLIED", "UNKNOWN_LOST", "pushed", "repeated send", "stale handle"):
        assert marks[mark], f"{mark} never happened in seeds {first} to {first + CHUNK - 1}"


def test_the_same_seed_is_the_same_run_step_by_step() -> None:
    first, _ = run_seed(3)
    second, _ = run_seed(3)
    assert first.trace_hash == second.trace_hash
    other, _ = run_seed(4)
    assert other.trace_hash != first.trace_hash


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught(name: str) -> None:
    seeds_until_caught(name)
