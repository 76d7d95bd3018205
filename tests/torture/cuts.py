"""Power cuts: the disk of a loaded broker stops taking anything, the broker is gone, the journal is replayed, it starts again."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.torture import disk
from tests.torture.rig import Rig, check_file, figures, missing_marks, running_rig, shown
from tests.torture.stage import Failure, Task, Verdict

CLIENTS: Final = 2
PACE_SECONDS: Final = 0.03
STANDSTILL_SECONDS: Final = 10.0
LONG_RUN_CUTS: Final = 20
RESERVE_SECONDS: Final = 30.0


def run(task: Task) -> Verdict:
    """The file systems take turns: each has a broker, clients and a judgement of its own."""
    reason = disk.missing()
    if reason:
        return Verdict("", skipped=reason)
    disk.seclude()
    kinds = disk.kinds()
    complaints: list[str] = []
    summaries = []
    done = 0
    for place, kind in enumerate(kinds):
        folder = task.folder / kind
        folder.mkdir()
        # What is left, shared over the file systems that are left.
        left = len(kinds) - place
        count = -(-(task.count - done) // left) if task.count else 0
        deadline = time.monotonic() + (task.deadline - time.monotonic()) / left
        if task.count and not count:
            break
        share, text, found = _run_kind(task, kind, folder, count, deadline, done)
        done += share
        summaries.append(text)
        complaints += [f"{kind}: {one}" for one in found]
    return Verdict("; ".join(summaries), complaints)


@contextlib.contextmanager
def _mounted(kind: str, folder: Path) -> Iterator[disk.Disk]:
    drive = disk.Disk(kind, folder / "image", folder / "data")
    try:
        drive.mount()
        yield drive
    finally:
        drive.unmount()


def _run_kind(task: Task, kind: str, folder: Path, count: int, deadline: float, before: int) -> tuple[int, str, list[str]]:
    with _mounted(kind, folder) as drive, running_rig(folder, task.seed, task.plant) as rig:
        broker, chance = rig.broker, rig.chance
        broker.start()
        rig.prepare()
        if task.plant:
            os.sync()  # that queues are lost is found too easily
        rig.start_clients(CLIENTS, PACE_SECONDS)
        rig.wait_for_load()
        done = 0
        while (not count or done < count) and time.monotonic() < deadline - RESERVE_SECONDS:
            time.sleep(0.1 + chance.choice((0.1, 1.0)) * chance.random())
            _cut(rig, drive)
            done += 1
            task.show(before + done)
            broker.start()
            rig.wait_for_answers(chance.randint(1, CLIENTS))
        rig.stop_clients()
        broker.kill()
        broker.start()
        rig.take_stock()
        broker.stop()
        history, complaints = rig.judge()
        if done >= LONG_RUN_CUTS:
            complaints += missing_marks(history)
        complaints += check_file(folder / "data" / "penstock.db")
    return done, f"{done} power cuts on {kind}: {figures(history)}", shown(complaints)


def _cut(rig: Rig, drive: disk.Disk) -> None:
    """First the broker stands still, so that no reply leaves after the cut, as with a real loss of power."""
    os.kill(rig.broker.pid, signal.SIGSTOP)
    deadline = time.monotonic() + STANDSTILL_SECONDS
    while not _stands_still(rig.broker.pid):
        if time.monotonic() > deadline:
            raise Failure(f"the broker does not stop for SIGSTOP: {rig.broker.end_of_log()}")
        time.sleep(0.001)
    drive.cut()
    rig.broker.kill()
    rig.crashed()
    drive.unmount()
    drive.mount()


def _stands_still(pid: int) -> bool:
    """Whether no thread runs its own code any more: each is stopped, or will be when the kernel is done with its call."""
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(state in "TD" for state in states)
