"""What a reader at the tip of a stream waits: one process puts a record, pauses, puts the next; another waits for each.

Three moments of each record are noted: just before it is put, when the put was acknowledged, and when the reader has it in its
hands. The reader may be first: then the time from the acknowledgement to it is negative, and told as it is.
"""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path

from benchmarks.meter import Meter, Work, measure
from benchmarks.scenarios import STREAM_MODULES, client_of
from benchmarks.servers import running

SYSTEMS = ("penstock", "redis", "rabbitmq-streams", "postgresql", "nats")
STAMPS = 100_000
WARM = 50
"""The first records do not count."""


@dataclasses.dataclass(frozen=True)
class Times:
    """Median and 99th percentile, in milliseconds."""

    median_ms: float
    p99_ms: float

    @classmethod
    def of(cls, seconds: list[float]) -> Times:
        """Of some measured times."""
        ordered = sorted(seconds)
        return cls(statistics.median(ordered) * 1000, ordered[int(len(ordered) * 0.99)] * 1000)


@dataclasses.dataclass(frozen=True)
class Tip:
    """One round: how long an acknowledgement took, from it to the reader, and from the put to the reader; of `count` records."""

    acknowledged: Times
    to_reader: Times
    whole: Times
    count: int


def run(system: str, folder: Path, size_bytes: int, seconds: float) -> Tip:
    """One round of one system, on a server of its own with its data below `folder`. RuntimeError when hardly anything came."""
    client = client_of(system, STREAM_MODULES)
    work = Work("tip", size_bytes)
    meter = Meter(2, 0, 0, STAMPS)
    with running(system, folder) as server:
        client.prepare(server.port, work)
        measure(server, [(client.tip_put, work), (client.tip_read, work)], seconds, meter=meter)
    moments = meter.stamped()[WARM:]
    if not moments:
        raise RuntimeError("hardly a record came to the reader")
    return Tip(
        Times.of([acknowledged - put for put, acknowledged, _ in moments]),
        Times.of([seen - acknowledged for _, acknowledged, seen in moments]),
        Times.of([seen - put for put, _, seen in moments]),
        len(moments),
    )
