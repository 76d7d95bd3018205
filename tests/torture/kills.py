"""kill -9 at random times, also while the broker starts; clients work on through it."""

from __future__ import annotations

import contextlib
import time
from typing import Final

from tests.postgresql import run_cluster
from tests.torture.rig import Rig, check_file, figures, missing_marks, running_rig, shown
from tests.torture.stage import Task, Verdict

CLIENTS: Final = 3
PACE_SECONDS: Final = 0.03
LONG_RUN_KILLS: Final = 20
FIRST_STARTS: Final = 3
"""Kills of a broker that has not made its store yet."""
RESERVE_SECONDS: Final = 30.0
"""Kept for the drain and the judgement."""


def kill_under_load(task: Task, rig: Rig) -> tuple[int, int, float]:
    """Kills the rig's broker again and again, lets its clients end, and takes stock. How many kills it were, how many of them
    while the broker started, and how long it was gone in all."""
    broker, chance = rig.broker, rig.chance
    first_starts = 0 if task.count and task.count < LONG_RUN_KILLS else FIRST_STARTS
    for _ in range(first_starts):
        broker.start(wait=False)
        time.sleep(chance.random() * 1.2)
        broker.kill()
    broker.start()
    rig.prepare()
    rig.start_clients(CLIENTS, PACE_SECONDS)
    rig.wait_for_load()
    done = starting = first_starts
    down = 0.0
    while task.goes_on(done, RESERVE_SECONDS):
        time.sleep(chance.choice((0.05, 0.3, 1.0)) * chance.random())
        broker.kill()
        rig.crashed()
        done += 1
        task.show(done)
        lost = time.monotonic()
        broker.start(wait=False)
        if chance.random() < 0.15 and task.goes_on(done, RESERVE_SECONDS):
            time.sleep(chance.random() * 1.2)
            broker.kill()
            rig.crashed()
            done += 1
            starting += 1
            task.show(done)
            broker.start(wait=False)
        broker.wait_ready()
        down += time.monotonic() - lost
        if chance.random() < 0.9:
            rig.wait_for_answers(chance.randint(1, CLIENTS))
    rig.stop_clients()
    # What is left is what the store has: the census asks a broker that knows nothing else.
    broker.kill()
    broker.start()
    rig.take_stock()
    broker.stop()
    return done, starting, down


def run(task: Task) -> Verdict:
    """Kills, drains, judges."""
    with contextlib.ExitStack() as stack:
        store = ""
        if task.postgresql:
            cluster = stack.enter_context(run_cluster())
            store = cluster.url(cluster.create_database())
        rig = stack.enter_context(running_rig(task.folder, task.seed, task.plant, store))
        done, starting, down = kill_under_load(task, rig)
        history, complaints = rig.judge()
        if done >= LONG_RUN_KILLS:
            complaints += missing_marks(history)
        if not store:
            complaints += check_file(task.folder / "data" / "penstock.db")
    database = "PostgreSQL" if task.postgresql else "SQLite"
    times = f"{starting} of a starting broker; {down / max(1, done):.2f} s to be back"
    return Verdict(f"{done} kills on {database} ({times}): {figures(history)}", shown(complaints))
