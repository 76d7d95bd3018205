"""What is measured, as data: each scenario, which systems take part with which work, and what must be reached.

Adding a scenario is adding a row. How each peer is driven, and why that is its fastest sensible set-up, stands in its module.
"""

from __future__ import annotations

import dataclasses
import importlib
from types import ModuleType

from benchmarks.meter import Sample, Work, measure
from benchmarks.servers import NotInstalled, Server

SINGLES = 1000
PREFETCHES: dict[str, tuple[int, ...]] = {"rabbitmq": (1000, 4000)}
ALL = ("penstock", "redis", "rabbitmq", "postgresql", "nats")
BATCHING = ("penstock", "redis", "postgresql")
MODULES = {
    "penstock": "benchmarks.penstock_client",
    "redis": "benchmarks.peer_redis",
    "rabbitmq": "benchmarks.peer_rabbitmq",
    "postgresql": "benchmarks.peer_postgresql",
    "nats": "benchmarks.peer_nats",
}


@dataclasses.dataclass(frozen=True)
class Scenario:
    """`kind` is send or cycle; the rest is as in Work. `windows`: where a system has several, each is measured on a server of
    its own, and the best is quoted."""

    name: str
    kind: str
    batch: int
    systems: tuple[str, ...]
    windows: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    groups: int = 0
    extra: str = ""


SCENARIOS = (
    Scenario("send, one at a time", "send", 1, ALL),
    Scenario(
        "send, singles pipelined",
        "send",
        1,
        ALL,
        {"penstock": (SINGLES,), "redis": (400,), "rabbitmq": (500, 2000), "postgresql": (400,), "nats": (500,)},
    ),
    Scenario("send, batches of 10", "send", 10, BATCHING),
    Scenario("send, batches of 100", "send", 100, BATCHING),
    Scenario("send, batches of 500", "send", 500, BATCHING),
    Scenario("send, batches of 1,000", "send", 1000, BATCHING),
    Scenario("cycle, batches of 10", "cycle", 10, ALL, PREFETCHES),
    Scenario("cycle, batches of 100", "cycle", 100, ALL, PREFETCHES),
    Scenario("cycle, batches of 1,000", "cycle", 1000, BATCHING),
    Scenario("FIFO cycle, 1,000 groups", "cycle", 100, ("penstock",), groups=1000),
    Scenario("FIFO cycle, 1,000 groups, high throughput", "cycle", 100, ("penstock",), groups=1000, extra="high throughput"),
)

DEMANDS = (
    ("cycle, batches of 100", "redis", 1.5),
    ("cycle, batches of 100", "rabbitmq", 5.0),
    ("send, batches of 500", "redis", 1.2),
    ("send, singles pipelined", "rabbitmq", 1.0),
    ("send, one at a time", "rabbitmq", 1.0),
)
"""Scenario, peer, and how many times its rate Penstock must reach."""
FIFO_SCENARIO, FIFO_DEMAND = "FIFO cycle, 1,000 groups", 25_000
BACKLOG_KEEPS, BACKLOG_COSTS_MIB = 0.8, 150
"""With a million messages waiting: the share of the throughput that must remain, and the memory they may add."""


def client_of(system: str) -> ModuleType:
    """The module that drives a system. NotInstalled when its Python client is missing."""
    try:
        return importlib.import_module(MODULES[system])
    except ModuleNotFoundError as error:
        raise NotInstalled(f"the Python package {error.name} is not installed") from error


def works(scenario: Scenario, system: str, size_bytes: int) -> list[Work]:
    """One Work per window to try."""
    suffix = ".fifo" if scenario.groups else ""
    return [
        Work(f"bench{suffix}", size_bytes, scenario.batch, window, scenario.groups, extra=scenario.extra)
        for window in scenario.windows.get(system, (1,))
    ]


def run(server: Server, scenario: Scenario, work: Work, seconds: float) -> Sample:
    """Makes the queue and measures once."""
    client = client_of(server.name)
    client.prepare(server.port, work)
    if scenario.kind == "send":
        return measure(server, [(client.send, work)], seconds)
    return measure(server, [(client.produce, work), (client.consume, work)], seconds)
