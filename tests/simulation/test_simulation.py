"""The broker keeps its promises in the simulation, whatever the weather; and the simulation is the same each time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.simulation.story import report, run_seed

SEEDS = 500
CHUNK = 25

ALWAYS = {"crash", "pushed", "repeated send", "stale handle", "retry answered from memory", "page of messages loaded"}
"""What 25 seeds always meet."""

SOMETIMES = {
    *ALWAYS,
    "FAIL",
    "FULL",
    "UNKNOWN_APPLIED",
    "UNKNOWN_LATE",
    "UNKNOWN_LOST",
    "acquire failed",
    "attempt repeated",
    "commit into a dead-letter queue lost",
    "commit of a move lost",
    "commit of a purge lost",
    "consumer cancelled",
    "cut",
    "dead letter received",
    "deduplicated by a later life",
    "group commit lost whole",
    "jump",
    "limbo",
    "load failed",
    "loaded while messages are in flight",
    "move task resumed after a restart",
    "page of content loaded",
    "page of delayed messages loaded",
    "purge",
    "redrive",
    "repeated id",
    "retry answered by a later life",
    "stop",
}
"""What a campaign of all seeds must have met: what never happened was not tested."""


def _check_campaign(folder: Path, first: int, marks: Counter[str]) -> None:
    """Leaves the marks of a chunk; whoever finds those of all chunks there judges the campaign."""
    folder.mkdir(exist_ok=True)
    (folder / f"{first}.part").write_text(json.dumps(marks))
    (folder / f"{first}.part").rename(folder / f"{first}.json")
    files = list(folder.glob("*.json"))
    if len(files) == SEEDS // CHUNK:
        total: Counter[str] = Counter()
        for file in files:
            total.update(json.loads(file.read_text()))
        assert not {mark for mark in SOMETIMES if not total[mark]}, f"never happened; what did: {total}"


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_no_checker_complains_about_any_seed(first: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    marks: Counter[str] = Counter()
    for seed in range(first, first + CHUNK):
        world, complaints = run_seed(seed)
        assert not complaints, report(world, complaints)
        marks += world.marks
    assert not {mark for mark in ALWAYS if not marks[mark]}, f"never happened in seeds {first} to {first + CHUNK - 1}"
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    _check_campaign(shared / "simulation-marks", first, marks)


def test_the_same_seed_is_the_same_run_step_by_step() -> None:
    first, _ = run_seed(3)
    second, _ = run_seed(3)
    assert first.trace_hash == second.trace_hash
    other, _ = run_seed(4)
    assert other.trace_hash != first.trace_hash


def test_another_process_runs_a_seed_the_same_way() -> None:
    here, _ = run_seed(3)
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seed", "3"], capture_output=True, text=True, env=environment, check=True
    )
    assert here.trace_hash in done.stdout
