"""`python -m benchmarks.growth`: what a record costs while a stream grows from empty to 100 million records, none simulated.

Penstock alone, on a server of its own: after every tenth of the records, the rate of puts and of reading from the beginning, the
processor time of broker and client for a record put, and the broker's memory. Needs disk: about 1.1
times the records' size, and 20 bytes a record.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import stream_penstock as client
from benchmarks.meter import Sample, Work, measure
from benchmarks.report import MIB
from benchmarks.servers import running

PARTS = 10
READ_BACK = 100_000
"""Of the first shard, again and again; it must have so many before the first look."""
KEEPS = 0.8
"""The median rate of the second half must be at least this share of the first half's."""


def _cost(sample: Sample) -> str:
    return f"{1e6 * sample.server_cores / sample.per_second:.2f} / {1e6 * sample.client_cores / sample.per_second:.2f}"


def main() -> int:
    """See the module's docstring. Exit code 1 when a rate fell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000_000)
    parser.add_argument("--size", type=int, default=16, help="bytes of a record (default 16)")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="a real disk")
    options = parser.parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    work = Work("growth", options.size, 500, 1, shards=options.shards)
    step = options.records // PARTS
    table = Table(title=f"{options.size}-byte records, {options.shards} shards", title_justify="left")
    for column in ("records before", "put/s", "µs for one, broker / client", "read from the beginning/s", "broker's MiB"):
        table.add_column(column, justify="right")
    puts, reads = [], []
    there = 0
    with running("penstock", options.folder) as server:
        client.prepare(server.port, work)
        for part in range(PARTS + 1):
            put = measure(server, [(client.append, work)], options.seconds)
            read = measure(server, [(client.read, dataclasses.replace(work, total=READ_BACK))], options.seconds)
            puts.append(put.per_second)
            reads.append(read.per_second)
            table.add_row(
                f"{there:,}", f"{put.per_second:,.0f}", _cost(put), f"{read.per_second:,.0f}", f"{put.rss_bytes / MIB:,.0f}"
            )
            console.print(f"[dim]{there:,} records: {put.per_second:,.0f} put/s, {read.per_second:,.0f} read/s[/]")
            if part < PARTS:
                measure(server, [(client.append, dataclasses.replace(work, total=step))], 0, total=step)
                there += step
    console.print(table)
    console.print("[dim](what each measurement put comes on top of the records before)[/]")
    half = len(puts) // 2
    kept = [statistics.median(rates[half:]) / statistics.median(rates[:half]) for rates in (puts, reads)]
    console.print(
        f"of the median rates of the first half the second kept: puts {kept[0]:.0%}, reads {kept[1]:.0%} (at least {KEEPS:.0%})"
    )
    return int(min(kept) < KEEPS)


if __name__ == "__main__":
    sys.exit(main())
