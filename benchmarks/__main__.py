"""`python -m benchmarks`: interleaved rounds, medians, ratios, and whether each demanded ratio is reached.

Figures are messages per second, 256-byte bodies, everything on one machine that servers and clients share. They move with
the machine: only ratios of one run mean something.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import penstock_client as ours
from benchmarks.peer_clients import Nats, PostgreSQL, RabbitMQ, Redis
from benchmarks.servers import PEERS, Server, running

BACKLOG = 1_000_000
console = Console(highlight=False)

Measure = Callable[[Server, int, float], float]


def _ours(name: str, measure: Callable[..., float], *arguments: int) -> Measure:
    return lambda server, size, seconds: measure(server.port, name, size, seconds, *arguments)


SCENARIOS: dict[str, dict[str, Measure]] = {
    "send, one at a time": {
        "penstock": _ours("one", ours.one_at_a_time),
        "redis": lambda server, size, seconds: Redis.send(server.port, size, seconds, 1),
        "rabbitmq": lambda server, size, seconds: RabbitMQ.send(server.port, size, seconds, 1),
        "postgresql": lambda server, size, seconds: PostgreSQL.send(server.port, size, seconds, 1),
        "nats": lambda server, size, seconds: Nats.send(server.port, size, seconds, 1),
    },
    "send, singles pipelined": {
        "penstock": _ours("singles", ours.singles),
        "redis": lambda server, size, seconds: Redis.send(server.port, size, seconds, 100),
        "rabbitmq": lambda server, size, seconds: max(RabbitMQ.send(server.port, size, seconds / 2, w) for w in (500, 2000)),
        "nats": lambda server, size, seconds: Nats.send(server.port, size, seconds, 500),
    },
    "send, batches of 10": {
        "penstock": _ours("b10", ours.batches, 10),
        "redis": lambda server, size, seconds: Redis.send(server.port, size, seconds, 10),
        "postgresql": lambda server, size, seconds: PostgreSQL.send(server.port, size, seconds, 10),
    },
    "send, batches of 100": {
        "penstock": _ours("b100", ours.batches, 100),
        "redis": lambda server, size, seconds: Redis.send(server.port, size, seconds, 100),
        "postgresql": lambda server, size, seconds: PostgreSQL.send(server.port, size, seconds, 100),
    },
    "send, batches of 500": {
        "penstock": _ours("b500", ours.batches, 500),
        "redis": lambda server, size, seconds: Redis.send(server.port, size, seconds, 500),
        "postgresql": lambda server, size, seconds: PostgreSQL.send(server.port, size, seconds, 500),
    },
    "cycle, batches of 10": {
        "penstock": _ours("c10", ours.cycle, 10),
        "redis": lambda server, size, seconds: Redis.cycle(server.port, size, seconds, 10),
        "rabbitmq": lambda server, size, seconds: RabbitMQ.cycle(server.port, size, seconds, 10),
        "postgresql": lambda server, size, seconds: PostgreSQL.cycle(server.port, size, seconds, 10),
    },
    "cycle, batches of 100": {
        "penstock": _ours("c100", ours.cycle, 100),
        "redis": lambda server, size, seconds: Redis.cycle(server.port, size, seconds, 100),
        "rabbitmq": lambda server, size, seconds: RabbitMQ.cycle(server.port, size, seconds, 100),
        "postgresql": lambda server, size, seconds: PostgreSQL.cycle(server.port, size, seconds, 100),
    },
    "FIFO cycle, 1,000 groups": {"penstock": _ours("f.fifo", ours.cycle, 100, 1000)},
}

DEMANDS = (
    ("cycle, batches of 100", "redis", 1.5),
    ("cycle, batches of 100", "rabbitmq", 5.0),
    ("send, batches of 500", "redis", 1.2),
    ("send, singles pipelined", "rabbitmq", 1.0),
    ("send, one at a time", "rabbitmq", 1.0),
)
FIFO_DEMAND = 25_000
BACKLOG_LOSS, BACKLOG_RSS = 0.2, 150 * 2**20


def measure(systems: list[str], names: list[str], size: int, seconds: float, rounds: int) -> dict[str, dict[str, list[float]]]:
    """All rounds of all scenarios; every measurement has a fresh server."""
    results: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    missing = set()
    for turn in range(rounds):
        for name in names:
            for system in systems:
                if system not in SCENARIOS[name] or system in missing:
                    continue
                try:
                    with running(system) as server:
                        rate = SCENARIOS[name][system](server, size, seconds)
                except (FileNotFoundError, ModuleNotFoundError) as error:
                    missing.add(system)
                    console.print(f"[dim]{system} is not installed ({error})[/]")
                    continue
                results[name].setdefault(system, []).append(rate)
                console.print(f"[dim]round {turn + 1}: {name}: {system} {rate:,.0f}/s[/]")
    return results


def backlog(size: int, seconds: float) -> dict[str, float]:
    """Sends and cycle with nothing and with a million messages waiting, and what the million costs in memory."""
    results: dict[str, float] = {}
    with running("penstock") as server:
        ours.batches(server.port, "warm", size, 1.0, 100)
        results["sends, 0 waiting"] = ours.batches(server.port, "empty", size, seconds, 100)
        results["cycle, 0 waiting"] = ours.cycle(server.port, "empty-cycle", size, seconds, 100)
        results["RSS, 0 waiting (MiB)"] = server.rss / 2**20
    for kind, fill in (("batches of 500", 500), ("one per send call", 1)):
        with running("penstock") as server:
            ours.batches(server.port, "warm", size, 1.0, 100)
            ours.cycle(server.port, "warm-cycle", size, 1.0, 100)
            before = server.rss
            if fill == 1:
                ours.singles(server.port, "full", size, 0, BACKLOG)
            else:
                ours.batches(server.port, "full", size, 0, fill, BACKLOG)
            results[f"RSS the million adds, sent in {kind} (MiB)"] = (server.rss - before) / 2**20
            results[f"RSS, a million waiting, sent in {kind} (MiB)"] = server.rss / 2**20
            results[f"sends, a million waiting, sent in {kind}"] = ours.batches(server.port, "full", size, seconds, 100)
            results[f"cycle, a million waiting, sent in {kind}"] = ours.cycle(server.port, "full", size, seconds, 100)
            results[f"RSS afterwards, sent in {kind} (MiB)"] = server.rss / 2**20
    return results


def main() -> int:
    """Returns 1 when a demanded ratio was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=256, help="bytes of a message")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--scenarios", default="", help="only those whose names contain this")
    parser.add_argument("--no-backlog", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    systems = ["penstock", *(peer for peer in options.peers.split(",") if peer)]
    names = [name for name in SCENARIOS if options.scenarios in name]
    results = measure(systems, names, options.size, options.seconds, options.rounds)
    medians = {name: {key: statistics.median(found) for key, found in of.items()} for name, of in results.items()}
    table = Table(title=f"messages/s, {options.size} bytes, median of {options.rounds}; all survive power loss", box=None)
    table.add_column("")
    for system in systems:
        table.add_column(system, justify="right")
    for name, rates in medians.items():
        table.add_row(name, *(f"{rates[system]:,.0f}" if system in rates else "" for system in systems))
    console.print(table)
    reached = _demands(medians)
    waiting = {} if options.no_backlog else backlog(options.size, options.seconds)
    for name, value in waiting.items():
        console.print(f"{name:60} {value:12,.0f}")
    if waiting:
        reached = _backlog_demands(waiting) and reached
    if options.json:
        options.json.write_text(json.dumps({"rounds": results, "medians": medians, "backlog": waiting}, indent=1))
    return int(not reached)


def _demands(medians: dict[str, dict[str, float]]) -> bool:
    good = True
    for name, peer, ratio in DEMANDS:
        rates = medians.get(name, {})
        if "penstock" in rates and peer in rates:
            found = rates["penstock"] / rates[peer]
            good = good and found >= ratio
            console.print(f"{name}: {found:.2f} times {peer} (at least {ratio}): {'reached' if found >= ratio else 'MISSED'}")
    fifo = medians.get("FIFO cycle, 1,000 groups", {}).get("penstock")
    if fifo is not None:
        good = good and fifo >= FIFO_DEMAND
        console.print(f"FIFO cycle: {fifo:,.0f}/s (at least {FIFO_DEMAND:,}): {'reached' if fifo >= FIFO_DEMAND else 'MISSED'}")
    return good


def _backlog_demands(waiting: dict[str, float]) -> bool:
    good = True
    for kind in ("batches of 500", "one per send call"):
        for what in ("sends", "cycle"):
            kept = waiting[f"{what}, a million waiting, sent in {kind}"] / waiting[f"{what}, 0 waiting"]
            good = good and kept >= 1 - BACKLOG_LOSS
            verdict = "reached" if kept >= 1 - BACKLOG_LOSS else "MISSED"
            console.print(f"{what} with a million waiting ({kind}): {kept:.0%} (at least {1 - BACKLOG_LOSS:.0%}): {verdict}")
        added = waiting[f"RSS the million adds, sent in {kind} (MiB)"]
        verdict = "reached" if added * 2**20 < BACKLOG_RSS else "MISSED"
        good = good and added * 2**20 < BACKLOG_RSS
        console.print(f"memory of the million ({kind}): {added:.0f} MiB (less than {BACKLOG_RSS / 2**20:.0f}): {verdict}")
    return good


if __name__ == "__main__":
    sys.exit(main())
