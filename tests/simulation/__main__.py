"""Runs seeds: `python -m tests.simulation --seed 17` (with its history), `--seeds 0..1000`, or `--minutes 5`."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.story import line, report, run_seed


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="one seed, with its whole history")
    parser.add_argument("--seeds", default="0..100", help="first..last (last not included)")
    parser.add_argument("--minutes", type=float, help="seeds from the first on, for that time")
    return parser.parse_args()


def main() -> int:
    """Returns 1 when a seed failed."""
    options = _options()
    if options.seed is not None:
        world, complaints = run_seed(options.seed)
        for one in world.history.operations:
            print(line(one))
        print(f"seed {world.seed}: {world.weather}; marks: {dict(sorted(world.marks.items()))}")
        for complaint in complaints:
            print("   ", complaint)
        print(world.trace_hash)
        return int(bool(complaints))
    first, _, last = options.seeds.partition("..")
    end = time.monotonic() + options.minutes * 60 if options.minutes else None
    marks: Counter[str] = Counter()
    failed, count, operations = [], 0, 0
    for seed in range(int(first), int(last) if last and end is None else 2**31):
        if end is not None and time.monotonic() > end:
            break
        count += 1
        world, complaints = run_seed(seed)
        marks += world.marks
        operations += len(world.history.operations)
        if complaints:
            failed.append(seed)
            print(report(world, complaints, tail=0), flush=True)
    print(f"{count} seeds, {operations} operations, {len(failed)} failed {failed[:20]}; marks: {dict(sorted(marks.items()))}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
