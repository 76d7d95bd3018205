"""Tortures Penstock: `python -m tests.torture --minutes 10`, or `make torture MINUTES=10 ARGS='--only kills --kills 100'`.

Stages: kills (kill -9 under load), streams (the same under a load of streams), cuts (power cuts; root), seeds (simulation),
machines (state machines), frames (random and mutated frames). What is counted runs until its count is reached, the others
share the minutes; nothing runs beyond them.
Exit code 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.torture import cuts, frames, kills, seeds, stream_kills
from tests.torture.stage import Failure, Task, Verdict

STAGES: Final[dict[str, tuple[Callable[[Task], Verdict], float]]] = {
    "kills": (kills.run, 3),
    "streams": (stream_kills.run, 2),
    "cuts": (cuts.run, 2),
    "seeds": (seeds.run_seeds, 2),
    "machines": (seeds.run_machines, 1),
    "frames": (frames.run, 2),
}
"""What each does, and its share of the time."""

PLANTED_IN: Final = {"early-ack": ("kills", "streams"), "weak-sync": ("cuts",)}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10, help="for everything (10)")
    parser.add_argument("--only", default=",".join(STAGES), metavar="STAGE,…", help="these stages")
    parser.add_argument("--kills", type=int, default=0, help="so many kill -9")
    parser.add_argument("--streams", type=int, default=0, help="so many kill -9 with a load of streams")
    parser.add_argument("--cuts", type=int, default=0, help="so many power cuts")
    parser.add_argument("--seeds", type=int, default=0, help="so many seeds of the simulation")
    parser.add_argument("--machines", type=int, default=0, help="so many histories of the state machines")
    parser.add_argument("--frames", type=int, default=0, help="so many frames")
    parser.add_argument("--seed", type=int, help="what random choices start from (default: the time)")
    parser.add_argument("--postgresql", action="store_true", help="kill brokers on a private PostgreSQL instead of SQLite")
    parser.add_argument("--plant", choices=sorted(PLANTED_IN), default="", help="with a bug that has to be found")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave histories and logs of what was broken there")
    options = parser.parse_args()
    unknown = [name for name in options.only.split(",") if name not in STAGES]
    if unknown:
        parser.error(f"no such stage: {', '.join(unknown)}; there are {', '.join(STAGES)}")
    options.stages = [name for name in STAGES if name in options.only.split(",")]
    if options.plant and not set(PLANTED_IN[options.plant]) & set(options.stages):
        parser.error(f"{options.plant} is looked for by {' and '.join(PLANTED_IN[options.plant])}")
    return options


def _interrupt_once(*_: object) -> None:
    """The first signal ends everything; cleaning up is not interrupted by another one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _keep(folder: Path, target: Path) -> None:
    for path in folder.rglob("*"):
        if path.suffix in (".jsonl", ".log"):
            kept = target / path.relative_to(folder)
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, kept)


def _run_stage(name: str, options: argparse.Namespace, seed: int, deadline: float, console: Console) -> Verdict:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    count = getattr(options, name)
    plant = options.plant if options.plant and name in PLANTED_IN[options.plant] else ""
    folder = Path(tempfile.mkdtemp(prefix=f"penstock-{name}-"))
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            line = progress.add_task(name, total=count or None)

            def show(done: int) -> None:
                progress.update(line, completed=done)

            task = Task(deadline, count, seed, plant, options.postgresql, folder, show)
            try:
                verdict = STAGES[name][0](task)
            except Failure as failure:
                verdict = Verdict("ended at once", [str(failure)])
            except Exception:  # noqa: BLE001  # whatever fell over, the other stages go on, and it is a failure
                verdict = Verdict("fell over", [traceback.format_exc()])
        if options.keep and verdict.complaints:
            _keep(folder, options.keep / name)
        return verdict
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Returns 1 when a stage has complaints."""
    options = _options()
    console = Console(soft_wrap=True, highlight=False)
    seed = int(time.time()) if options.seed is None else options.seed
    deadline = time.monotonic() + options.minutes * 60
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt_once)
    console.print(f"{', '.join(options.stages)}; at most {options.minutes:g} minutes; again with: --seed {seed}", markup=False)
    broken = 0
    with contextlib.suppress(KeyboardInterrupt):
        for place, name in enumerate(options.stages):
            started = time.monotonic()
            weights = [STAGES[other][1] for other in options.stages[place:]]
            share = 1.0 if getattr(options, name) else weights[0] / sum(weights)
            verdict = _run_stage(name, options, seed, started + (deadline - started) * share, console)
            broken += bool(verdict.complaints)
            state = "skipped" if verdict.skipped else "BROKEN" if verdict.complaints else "ok"
            text = verdict.skipped or verdict.summary
            console.print(f"{name}: {state}: {text} [{time.monotonic() - started:.0f} s]", markup=False)
            for complaint in verdict.complaints:
                console.print(f"    {complaint}", markup=False)
        return int(bool(broken))
    console.print("interrupted", markup=False)
    return 130


if __name__ == "__main__":
    sys.exit(main())
