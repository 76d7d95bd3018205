"""Streams keep their promises in the simulation, whatever the weather; planted bugs are noticed, a seed is the same each time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.simulation.stream_planted import BUGS, seeds_until_caught
from tests.simulation.stream_story import report, run_seed

SEEDS = 500
CHUNK = 50

ALWAYS = {"crash", "grouped again", "gap passed", "older records read", "retry answered from memory", "shard read out", "trimmed"}
"""What 50 seeds always meet."""

SOMETIMES = {
    *ALWAYS,
    "FAIL",
    "FULL",
    "UNKNOWN_APPLIED",
    "UNKNOWN_LATE",
    "UNKNOWN_LOST",
    "acquire failed",
    "checkpoint not noted",
    "checkpoint refused",
    "checkpoint under a lost lease",
    "consumer deregistered",
    "cut",
    "cut off",
    "group reset",
    "iterator expired",
    "jump",
    "lease given behind a checkpoint",
    "lease to be given up",
    "limbo",
    "load failed",
    "member died",
    "member expired",
    "member joined anew",
    "member left",
    "member paused",
    "parent forgotten",
    "read for nothing",
    "read from within a batch",
    "read twice",
    "records pushed",
    "repeated put",
    "repeated put to a closed shard",
    "reshard by count",
    "reshard by merge",
    "reshard by split",
    "retry answered by a later life",
    "retry met a closed shard",
    "shard forgotten",
    "stop",
    "throttled",
    "subscription ended: Cancelled",
    "subscription ended: StreamConsumerDoesNotExist",
    "subscription resumed",
    "waited for records",
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
def test_no_checker_complains_about_any_seed_of_streams(first: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    marks: Counter[str] = Counter()
    for seed in range(first, first + CHUNK):
        world, complaints = run_seed(seed)
        assert not complaints, report(world, complaints)
        marks += world.marks
    assert not {mark for mark in ALWAYS if not marks[mark]}, f"never happened in seeds {first} to {first + CHUNK - 1}"
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    _check_campaign(shared / "stream-simulation-marks", first, marks)


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_of_streams_is_caught(name: str) -> None:
    seeds_until_caught(name)


def test_a_seed_of_streams_is_the_same_run_in_another_process() -> None:
    here, _ = run_seed(3)
    again, _ = run_seed(3)
    assert here.trace_hash == again.trace_hash
    assert run_seed(4)[0].trace_hash != here.trace_hash
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    command = [sys.executable, "-m", "tests.simulation.stream_story", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert here.trace_hash in done.stdout
