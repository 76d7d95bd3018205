"""What waiting messages cost: rates and resident memory with none and with a million of them.

Two fresh servers per round and way of filling. The first has a cycle and then sends, each with nothing waiting. The second has a
cycle to warm up, is purged, and its memory is noted ("0 waiting"); it never held a backlog, whose freed but kept memory would
hide what the next one costs. Then the backlog is sent, in batches of 500 where the system has batches, else singles in flight,
and for Penstock also one message per send call; memory is noted; the same cycle and sends run with the backlog waiting. What the
backlog costs is the highest memory noted while it waits, less that of 0 waiting.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from benchmarks.meter import Sample, Work, measure
from benchmarks.scenarios import CYCLES, SINGLES, client_of
from benchmarks.servers import Server, running

TOO_SLOW_TO_FILL = {"nats": "with sync_interval always, filling would take minutes"}
SETTLE_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Fill:
    """How the backlog gets there."""

    name: str
    batch: int
    window: int


IN_BATCHES = Fill("sent in batches of 500", 500, 1)
ONE_PER_CALL = Fill("sent one per call", 1, SINGLES)
FILLS = {
    "penstock": (IN_BATCHES, ONE_PER_CALL),
    "redis": (IN_BATCHES,),
    "postgresql": (IN_BATCHES,),
    "rabbitmq": (Fill("sent one per call", 1, 2000),),
}


@dataclasses.dataclass(frozen=True)
class Waiting:
    """One round. Rates per second, memory in bytes."""

    cycle_empty: Sample
    send_empty: Sample
    rss_empty: int
    fill_per_second: float
    rss_full: int
    send_full: Sample
    cycle_full: Sample
    rss_highest: int


def run(system: str, folder: Path, fill: Fill, size_bytes: int, seconds: float, backlog: int) -> Waiting:
    """One round of one system, on servers of its own with their data below `folder`."""
    client = client_of(system)
    batching = system != "rabbitmq"
    work = Work("work", size_bytes, 100, max(CYCLES.get(system, (1,))))
    sends = work if batching else dataclasses.replace(work, batch=1, window=2000)

    def cycle(server: Server) -> Sample:
        return measure(server, [(client.produce, work), (client.consume, work)], seconds)

    def send(server: Server) -> Sample:
        return measure(server, [(client.send, sends)], seconds)

    with running(system, folder) as server:
        client.prepare(server.port, work)
        cycle_empty = cycle(server)
        client.purge(server.port, work)
        send_empty = send(server)
    with running(system, folder) as server:
        client.prepare(server.port, work)
        cycle(server)
        client.purge(server.port, work)
        time.sleep(SETTLE_SECONDS)
        rss_empty = server.rss_bytes
        filling = dataclasses.replace(work, batch=fill.batch, window=fill.window, total=backlog)
        filled = measure(server, [(client.send, filling)], 0, total=backlog)
        time.sleep(SETTLE_SECONDS)
        rss_full = server.rss_bytes
        # The cycle first: it leaves the backlog as it is, the sends add to it.
        cycle_full = cycle(server)
        send_full = send(server)
    highest = max(rss_full, filled.rss_bytes, cycle_full.rss_bytes, send_full.rss_bytes)
    return Waiting(cycle_empty, send_empty, rss_empty, filled.per_second, rss_full, send_full, cycle_full, highest)
