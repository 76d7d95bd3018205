"""Medians, tables and verdicts from what was measured. Prints to a rich console; decides nothing about how to measure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable

from rich.console import Console
from rich.table import Table

from benchmarks.backlog import FILLS, TOO_SLOW_TO_FILL, Waiting
from benchmarks.fanout import CONSUMERS, MOST, Fanout
from benchmarks.meter import Sample
from benchmarks.scenarios import BACKLOG_COSTS_MIB, BACKLOG_KEEPS, DEMANDS, FIFO_DEMAND, FIFO_SCENARIO
from benchmarks.servers import DURABILITY
from benchmarks.tip import Times, Tip

Rounds = dict[str, dict[str, list[Sample]]]
"""Scenario, system, one sample a round."""
Waitings = dict[tuple[str, str], list[Waiting]]
"""System and how its backlog was sent, one a round."""
Tips = dict[str, list[Tip]]
"""System, one a round."""
BUSY_CORES = 0.3
TIP_MS = 5.0
MIB = 2**20


def median(samples: Iterable[Sample]) -> float:
    """Messages per second."""
    return statistics.median(sample.per_second for sample in samples)


def rates(console: Console, rounds: Rounds, systems: list[str], versions: dict[str, str], size_bytes: int) -> None:
    """The table of figures, and how much of the machine others took meanwhile."""
    systems = [system for system in systems if any(system in found for found in rounds.values())]
    table = Table(title=f"messages/s, {size_bytes}-byte bodies, median (lowest to highest round)", title_justify="left")
    table.add_column("an acknowledged message survives")
    for system in systems:
        table.add_column(f"{system} {versions.get(system, '')}\n{DURABILITY[system]}", justify="right")
    for name, found in rounds.items():
        cells = []
        for system in systems:
            samples = found.get(system)
            if not samples:
                cells.append("")
                continue
            low, high = min(one.per_second for one in samples), max(one.per_second for one in samples)
            cells.append(f"{median(samples):,.0f}\n[dim]{low:,.0f} to {high:,.0f}[/]")
        table.add_row(name, *cells)
    console.print(table)
    others = [sample.other_cores for found in rounds.values() for samples in found.values() for sample in samples]
    if others:
        middle, most = statistics.median(others), max(others)
        console.print(f"other processes used {middle:.2f} cores in the median measurement, {most:.2f} in the worst")
        if most > BUSY_CORES:
            console.print("[yellow]the machine was not quiet: do not quote these figures[/]")


def demands(console: Console, rounds: Rounds) -> list[bool]:
    """The ratios that must be reached; one verdict for each that was measured."""
    verdicts = []
    table = Table(title="what must be reached", title_justify="left")
    for column in ("", "found", "at least", ""):
        table.add_column(column)
    for name, peer, wanted in DEMANDS:
        found = rounds.get(name, {})
        if not found.get("penstock") or not found.get(peer):
            table.add_row(f"{name}, against {peer}", "not measured", f"{wanted}", "")
            continue
        ratio = median(found["penstock"]) / median(found[peer])
        verdicts.append(ratio >= wanted)
        table.add_row(f"{name}, against {peer}", f"{ratio:.2f} times", f"{wanted}", _word(verdicts[-1]))
    if fifo := rounds.get(FIFO_SCENARIO, {}).get("penstock"):
        verdicts.append(median(fifo) >= FIFO_DEMAND)
        table.add_row(FIFO_SCENARIO, f"{median(fifo):,.0f}/s", f"{FIFO_DEMAND:,}/s", _word(verdicts[-1]))
    console.print(table)
    return verdicts


def tips(console: Console, found: Tips) -> list[bool]:
    """The table of what a reader at the tip waits, and the verdict."""
    table = Table(title="at the tip of a stream, one record at a time, ms: median / 99th percentile", title_justify="left")
    for column in ("", "put to acknowledged", "acknowledged to reader", "put to reader", "records"):
        table.add_column(column, justify="right" if column else "left")
    for system, rounds in found.items():
        cells = []
        for times in _TIMES:
            middle = statistics.median(times(one).median_ms for one in rounds)
            cells.append(f"{middle:.2f} / {statistics.median(times(one).p99_ms for one in rounds):.2f}")
        table.add_row(system, *cells, f"{sum(one.count for one in rounds):,}")
    console.print(table)
    if "penstock" not in found:
        return []
    middle = statistics.median(one.to_reader.median_ms for one in found["penstock"])
    console.print(f"acknowledged to reader: {middle:.2f} ms (at most {TIP_MS} ms): {_word(middle <= TIP_MS)}")
    return [middle <= TIP_MS]


def fanouts(console: Console, found: list[Fanout]) -> list[bool]:
    """What registered consumers cost the broker."""
    costs = {number: statistics.median(one.microseconds(number) for one in found) for number in CONSUMERS}
    rate = statistics.median(sample.sent_per_second for one in found for sample in one.samples.values())
    told = ", ".join(f"{cost:.1f} with {number}" for number, cost in costs.items())
    console.print(
        f"registered consumers at the tip, {rate:,.0f} records/s: the broker's µs of processor for a record put: {told}"
    )
    ratio = costs[10] / costs[1]
    console.print(f"ten registered consumers: {ratio:.2f} times one (less than {MOST}): {_word(ratio < MOST)}")
    return [ratio < MOST]


_TIMES: tuple[Callable[[Tip], Times], ...] = (lambda one: one.acknowledged, lambda one: one.to_reader, lambda one: one.whole)


def backlog(console: Console, waitings: Waitings, count: int, systems: list[str]) -> list[bool]:
    """The table of what waiting messages cost; verdicts for Penstock."""

    def middle(rounds: list[Waiting], value: Callable[[Waiting], float]) -> float:
        return statistics.median(value(one) for one in rounds)

    table = Table(title=f"with {count:,} messages waiting (memory is that of the process tree, MiB)", title_justify="left")
    for column in ("", "sends, 0", "waiting", "cycle, 0", "waiting", "RSS, 0", "waiting", "highest", "filled at/s"):
        table.add_column(column, justify="right" if column else "left")
    verdicts, lines = [], []
    for (system, fill), rounds in waitings.items():
        send_empty = middle(rounds, lambda one: one.send_empty.per_second)
        send_full = middle(rounds, lambda one: one.send_full.per_second)
        cycle_empty = middle(rounds, lambda one: one.cycle_empty.per_second)
        cycle_full = middle(rounds, lambda one: one.cycle_full.per_second)
        cost = middle(rounds, lambda one: one.rss_highest - one.rss_empty) / MIB
        table.add_row(
            f"{system}, {fill}",
            *(f"{value:,.0f}" for value in (send_empty, send_full, cycle_empty, cycle_full)),
            *(f"{middle(rounds, v) / MIB:,.0f}" for v in _MEMORY),
            f"{middle(rounds, lambda one: one.fill_per_second):,.0f}",
        )
        for what, kept in (("sends", send_full / send_empty), ("cycle", cycle_full / cycle_empty)):
            lines.append((system, f"{what} kept, {fill}", f"{kept:.0%}", f"{BACKLOG_KEEPS:.0%}", kept > BACKLOG_KEEPS))
        lines.append((system, f"memory, {fill}", f"{cost:,.0f} MiB", f"under {BACKLOG_COSTS_MIB}", cost < BACKLOG_COSTS_MIB))
    console.print(table)
    for system in systems:
        if system in TOO_SLOW_TO_FILL:
            console.print(f"[dim]{system} is left out: {TOO_SLOW_TO_FILL[system]}[/]")
        elif not any((system, fill.name) in waitings for fill in FILLS[system]):
            console.print(f"[dim]{system} was not measured[/]")
    for system, what, found, wanted, good in lines:
        if system == "penstock":
            verdicts.append(good)
            console.print(f"{what}: {found} ({wanted}): {_word(good)}")
    return verdicts


_MEMORY: tuple[Callable[[Waiting], float], ...] = (
    lambda one: one.rss_empty,
    lambda one: one.rss_full,
    lambda one: one.rss_highest,
)


def _word(good: bool) -> str:
    return "[green]reached[/]" if good else "[bold red]MISSED[/]"
