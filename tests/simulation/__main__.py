"""Runs seeds: `python -m tests.simulation --seed 17`, `--seeds 0..1000`, or `--minutes 5`."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

import trio

from tests.simulation.story import run_seed


def main() -> int:
    """Returns 1 when a seed failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--seeds", default="0..100")
    parser.add_argument("--minutes", type=float)
    options = parser.parse_args()
    first, _, last = options.seeds.partition("..")
    seeds = [options.seed] if options.seed is not None else range(int(first), int(last) if last else int(first) + 1)
    end = time.monotonic() + options.minutes * 60 if options.minutes else None
    marks: Counter[str] = Counter()
    failed, count, operations = [], 0, 0
    for seed in seeds if end is None else iter(range(int(first), 10**9)):
        if end is not None and time.monotonic() > end:
            break
        try:
            world, complaints = run_seed(seed)
        except (Exception, trio.Cancelled) as error:
            print(f"seed {seed}: {error!r}")
            failed.append(seed)
            if options.seed is not None:
                raise
            continue
        marks += world.marks
        count += 1
        operations += len(world.history.operations)
        if complaints:
            failed.append(seed)
            print(f"seed {seed}: {len(complaints)} complaints; {world.weather}")
            for complaint in complaints[:5]:
                print("   ", complaint)
        if options.seed is not None:
            for one in world.history.operations:
                times = f"{one.invoked:9.3f} {one.completed:9.3f} {one.process:5} {one.name:8} {one.outcome:4}"
                print(f"{times} {one.arguments} -> {one.value} {one.error}")
            print(world.trace_hash)
    print(f"{count} seeds, {operations} operations, {len(failed)} failed {failed[:20]}; marks: {dict(sorted(marks.items()))}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
