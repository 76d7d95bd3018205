"""What is measured, as data: each scenario, which systems take part with which work, and what must be reached.

Adding a scenario is adding a row. How each peer is driven, and why that is its fastest sensible set-up, stands in its module.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from types import ModuleType

from benchmarks.meter import Sample, Work, measure
from benchmarks.servers import NotInstalled, Server

SINGLES = 1000
CYCLES: dict[str, tuple[int, ...]] = {"penstock": (4, 16), "redis": (4, 8), "rabbitmq": (1000, 4000)}
FIFO_CYCLES: dict[str, tuple[int, ...]] = {"penstock": (4, 8)}
ALL = ("penstock", "redis", "rabbitmq", "postgresql", "nats")
BATCHING = ("penstock", "redis", "postgresql")
STREAMS = ("penstock", "redis", "rabbitmq-streams", "postgresql", "nats", "kinesalite")
SHARDED = ("penstock", "redis", "postgresql", "kinesalite")
PIPELINED = {
    "penstock": (SINGLES,),
    "redis": (400,),
    "rabbitmq-streams": (2000, 10_000),
    "postgresql": (400,),
    "nats": (500,),
    "kinesalite": (16,),
}
UNCONFIRMED = {"rabbitmq-streams": (2000, 10_000), "nats": (500,)}
AT_A_TIME = {"redis": (500, 1000, 5000), "postgresql": (1000, 5000)}
RECORDS = 1_000_000
FEWER_RECORDS = {"nats": 20_000, "kinesalite": 20_000}
"""What is put before it is read back; of those that would take minutes to fill, less. They read it again and again."""
MODULES = {
    "penstock": "benchmarks.penstock_client",
    "redis": "benchmarks.peer_redis",
    "rabbitmq": "benchmarks.peer_rabbitmq",
    "postgresql": "benchmarks.peer_postgresql",
    "nats": "benchmarks.peer_nats",
}
STREAM_MODULES = {
    "penstock": "benchmarks.stream_penstock",
    "redis": "benchmarks.stream_redis",
    "rabbitmq-streams": "benchmarks.stream_rabbitmq",
    "postgresql": "benchmarks.stream_postgresql",
    "nats": "benchmarks.stream_nats",
    "kinesalite": "benchmarks.stream_kinesalite",
}


@dataclasses.dataclass(frozen=True)
class Scenario:
    """`kind` is one of KINDS; the rest is as in Work. `windows`: where a system has several, each is measured on a server of
    its own, and the best is quoted. `size_bytes`: 0 is that of --size."""

    name: str
    kind: str
    batch: int
    systems: tuple[str, ...]
    windows: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    groups: int = 0
    extra: str = ""
    size_bytes: int = 0
    shards: int = 1


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
    Scenario("cycle, batches of 10", "cycle", 10, ALL, CYCLES),
    Scenario("cycle, batches of 100", "cycle", 100, ALL, CYCLES),
    Scenario("cycle, batches of 1,000", "cycle", 1000, BATCHING, CYCLES),
    Scenario("FIFO cycle, 1,000 groups", "cycle", 100, ("penstock",), FIFO_CYCLES, groups=1000),
    Scenario(
        "FIFO cycle, 1,000 groups, high throughput",
        "cycle",
        100,
        ("penstock",),
        FIFO_CYCLES,
        groups=1000,
        extra="high throughput",
    ),
    Scenario("append, batches of 500", "append", 500, STREAMS, UNCONFIRMED),
    Scenario("append, batches of 500, 1 KiB", "append", 500, STREAMS, UNCONFIRMED, size_bytes=1024),
    Scenario("append, singles pipelined", "append", 1, STREAMS, PIPELINED),
    Scenario("append, singles awaited by 1,000 tasks", "append", 1, ("penstock",), PIPELINED, extra="awaited"),
    Scenario("append to 8 shards", "append", 500, SHARDED, shards=8),
    Scenario("append to 64 shards", "append", 500, SHARDED, shards=64),
    Scenario("append to 256 shards", "append", 500, SHARDED, shards=256),
    Scenario("read back", "read", 500, STREAMS, AT_A_TIME),
)

DEMANDS = (
    ("cycle, batches of 100", "redis", 1.5),
    ("cycle, batches of 100", "rabbitmq", 5.0),
    ("send, batches of 500", "redis", 1.2),
    ("send, singles pipelined", "rabbitmq", 1.0),
    ("send, one at a time", "rabbitmq", 1.0),
    ("append, batches of 500", "redis", 2.5),
    ("append, batches of 500", "rabbitmq-streams", 1.0),
    ("read back", "redis", 1.2),
)
"""Scenario, peer, and how many times its rate Penstock must reach."""
FIFO_SCENARIO, FIFO_DEMAND = "FIFO cycle, 1,000 groups", 25_000
BACKLOG_KEEPS, BACKLOG_COSTS_MIB = 0.8, 150
"""With a million messages waiting: the share of the throughput that must remain, and the memory they may add."""


def client_of(system: str, modules: Mapping[str, str] = MODULES) -> ModuleType:
    """The module of that table that drives a system. NotInstalled when its Python client is missing."""
    try:
        return importlib.import_module(modules[system])
    except ModuleNotFoundError as error:
        raise NotInstalled(f"the Python package {error.name} is not installed") from error


def clients_of(system: str) -> list[ModuleType]:
    """All modules that drive a system. NotInstalled when a Python client is missing."""
    return [client_of(system, modules) for modules in (MODULES, STREAM_MODULES) if system in modules]


def works(scenario: Scenario, system: str, size_bytes: int) -> list[Work]:
    """One Work per window to try."""
    suffix = ".fifo" if scenario.groups else ""
    return [
        Work(
            f"bench{suffix}",
            scenario.size_bytes or size_bytes,
            scenario.batch,
            window,
            scenario.groups,
            extra=scenario.extra,
            shards=scenario.shards,
        )
        for window in scenario.windows.get(system, (1,))
    ]


def _send(server: Server, client: ModuleType, work: Work, seconds: float) -> Sample:
    return measure(server, [(client.send, work)], seconds)


def _cycle(server: Server, client: ModuleType, work: Work, seconds: float) -> Sample:
    return measure(server, [(client.produce, work), (client.consume, work)], seconds)


def _append(server: Server, client: ModuleType, work: Work, seconds: float) -> Sample:
    return measure(server, [(client.append, work)], seconds)


def _read(server: Server, client: ModuleType, work: Work, seconds: float) -> Sample:
    count = FEWER_RECORDS.get(server.name, RECORDS)
    filling = dataclasses.replace(work, window=max(UNCONFIRMED.get(server.name, (1,))))
    measure(server, [(client.append, filling)], 0, total=count)
    return measure(server, [(client.read, dataclasses.replace(work, total=count))], seconds)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of scenario: whose modules drive it, and how it is measured."""

    modules: dict[str, str]
    measure: Callable[[Server, ModuleType, Work, float], Sample]


KINDS = {
    "send": Kind(MODULES, _send),
    "cycle": Kind(MODULES, _cycle),
    "append": Kind(STREAM_MODULES, _append),
    "read": Kind(STREAM_MODULES, _read),
}


def run(server: Server, scenario: Scenario, work: Work, seconds: float) -> Sample:
    """Makes the queue or stream and measures once."""
    kind = KINDS[scenario.kind]
    client = client_of(server.name, kind.modules)
    client.prepare(server.port, work)
    return kind.measure(server, client, work, seconds)
