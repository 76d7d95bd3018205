"""More of what `make test` runs a little of: seeds of the simulation, and random histories of the state machines."""

from __future__ import annotations

from tests.torture.crew import CORES, Crew
from tests.torture.stage import Task, Verdict


def run_seeds(task: Task) -> Verdict:
    """The deterministic simulation from the task's seed on."""
    done = operations = 0
    complaints: list[str] = []
    with Crew("seeds", task.seed) as crew:
        for answer in crew.answers(task.deadline):
            done += answer["done"]
            operations += answer["operations"]
            complaints += answer["complaints"]
            task.show(done)
            if not task.goes_on(done):
                break
    return Verdict(f"{done:,} seeds from {task.seed} on, {operations:,} operations, {len(complaints)} failed", complaints)


def run_machines(task: Task) -> Verdict:
    """Hypothesis's state machines against the short model."""
    done = 0
    complaints: list[str] = []
    with Crew("machines", task.seed) as crew:
        for answer in crew.answers(task.deadline):
            done += answer["done"]
            complaints += answer["complaints"]
            task.show(done)
            if not task.goes_on(done):
                break
    text = f"{done:,} random histories of standard and FIFO queues in {CORES} processes, {len(complaints)} failed"
    return Verdict(text, complaints)
