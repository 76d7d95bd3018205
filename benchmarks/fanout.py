"""What registered consumers at the tip of a stream cost the broker: its processor time with none, one and ten of them, while one
process puts batches at a steady rate. Each consumer has a connection of its own; all are in one process, for two processors have
to do for everybody. A round in which a consumer fell behind does not count.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from benchmarks import stream_penstock as client
from benchmarks.meter import Meter, Sample, Work, measure
from benchmarks.servers import running

CONSUMERS = (0, 1, 10)
BATCH = 100
MOST = 2.0
"""Ten must cost less than so many times what one does."""
BEHIND = 0.98


@dataclasses.dataclass(frozen=True)
class Fanout:
    """One round: the sample of each number of consumers."""

    samples: dict[int, Sample]

    def microseconds(self, consumers: int) -> float:
        """The broker's processor time for a record that was put."""
        sample = self.samples[consumers]
        return 1e6 * sample.server_cores / sample.sent_per_second


def run(folder: Path, size_bytes: int, seconds: float) -> Fanout:
    """One round, each number on a server of its own with its data below `folder`. RuntimeError when a consumer fell behind."""
    return Fanout({consumers: _measure(folder, size_bytes, seconds, consumers) for consumers in CONSUMERS})


def _measure(folder: Path, size_bytes: int, seconds: float, consumers: int) -> Sample:
    work = Work("fanout", size_bytes, BATCH, consumers)
    with running("penstock", folder) as server:
        client.prepare(server.port, work)
        clients = [(client.paced_put, work), (client.subscribed, work)] if consumers else [(client.paced_put, work)]
        meter = Meter(len(clients), 0, 0)
        sample = measure(server, clients, seconds, meter=meter)
    sent, done = meter.counts()
    if done < consumers * sent * BEHIND:
        raise RuntimeError(f"{consumers} consumers got {done:,} records of {consumers} times {sent:,}")
    return sample
