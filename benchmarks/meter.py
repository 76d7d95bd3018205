"""One way of counting for every system: client processes add to shared counters, the harness reads them at two moments.

The harness starts the client processes, waits until each has its connections, lets them run `warm_seconds`, reads the
counters, waits `seconds`, reads them again, and only then tells them to stop. So connecting, starting and stopping cost
nobody anything, and no client can report a window of its own. A message counts when the server has acknowledged it: as sent when
its send is answered, as done when its deletion is. A complete cycle is the smaller of the two counts.

In a cycle neither side runs away from the other, for every system alike: the producer stays at most AHEAD messages in front of
the consumer, so that a fast producer does not take the processor from its own consumer; and the consumer at most SURPLUS in front
of the producer, which it can be where a backlog waits. (Without that a million waiting messages were not kept but worked off, at
up to a third more than was sent meanwhile, and the cycle, which is the slower side, seemed to cost what the faster side took.)

To measure times between processes, each stamps what it sees of a numbered record, by the clock they share (CLOCK_MONOTONIC).
"""

from __future__ import annotations

import ctypes
import dataclasses
import multiprocessing
import time
from collections.abc import Callable
from typing import Any, Literal

from benchmarks import machine
from benchmarks.servers import Server

AHEAD = 50_000
SURPLUS = 10_000
SURPLUS_PAUSE_SECONDS = 0.01
"""How long each of a consumer's tasks or threads sleeps before it looks again: it has many, and looking costs processor time."""
SLOTS = 16
PAUSE_SECONDS = 0.002
"""Between two records whose times are measured."""
MOMENTS = ("put", "acknowledged", "seen")
_CONTEXT = multiprocessing.get_context("spawn")


@dataclasses.dataclass(frozen=True)
class Work:
    """What a client does. `batch` 1 with `window` 1: one at a time; `batch` 1 with a larger window: that many singles in
    flight; a larger batch: batches. `groups`: of a FIFO queue. `total`: stop after that many messages (0: when told); for a read,
    how many are there. `queue` is the stream's name too, `shards` its shards."""

    queue: str
    size_bytes: int = 256
    batch: int = 1
    window: int = 1
    groups: int = 0
    total: int = 0
    extra: str = ""
    shards: int = 1


class Meter:
    """The shared counters, as a client process sees them."""

    def __init__(self, roles: int, total: int, ahead: int, stamps: int = 0) -> None:
        self._sent: Any = _CONTEXT.RawArray(ctypes.c_int64, SLOTS)
        self._done: Any = _CONTEXT.RawArray(ctypes.c_int64, SLOTS)
        self._flags: Any = _CONTEXT.RawArray(ctypes.c_int8, 2 + roles)  # go, stop, then one "ready" per role
        self._stamps: dict[str, Any] = {moment: _CONTEXT.RawArray(ctypes.c_double, stamps) for moment in MOMENTS}
        self._total, self._ahead = total, ahead
        self.stamps = stamps
        self.role = 0

    def ready(self) -> None:
        """Says that this process can begin, and blocks until all can."""
        self._flags[2 + self.role] = 1
        while not self._flags[0]:
            time.sleep(0.001)

    @property
    def stopped(self) -> bool:
        """Whether to stop now."""
        return bool(self._flags[1]) or bool(self._total and sum(self._sent) >= self._total)

    @property
    def too_far_ahead(self) -> bool:
        """Whether the producer should wait a moment for its consumer."""
        return bool(self._ahead) and sum(self._sent) - sum(self._done) >= self._ahead

    @property
    def overtakes(self) -> bool:
        """Whether the consumer should wait a moment for its producer, so that what waits goes on waiting."""
        return bool(self._ahead) and sum(self._done) - sum(self._sent) >= SURPLUS

    def sent(self, count: int, slot: int = 0) -> None:
        """That many messages were acknowledged. Each thread has its own slot."""
        self._sent[slot] += count

    def done(self, count: int, slot: int = 0) -> None:
        """That many deletions were acknowledged."""
        self._done[slot] += count

    def stamp(self, moment: Literal["put", "acknowledged", "seen"], number: int, seconds: float) -> None:
        """When something happened to a record; its number is below `stamps`."""
        self._stamps[moment][number] = seconds

    def stamped(self) -> list[tuple[float, float, float]]:
        """For the harness: the moments of every record that has all three, in their order."""
        return [moments for moments in zip(*(self._stamps[moment] for moment in MOMENTS), strict=True) if all(moments)]

    def counts(self) -> tuple[int, int]:
        """Sent and done so far."""
        return sum(self._sent), sum(self._done)

    def all_ready(self) -> bool:
        """For the harness."""
        return all(self._flags[2:])

    def go(self) -> None:
        """For the harness: lets everybody begin."""
        self._flags[0] = 1

    def stop(self) -> None:
        """For the harness: tells everybody to stop."""
        self._flags[1] = 1


Client = Callable[[Meter, int, Work], None]


@dataclasses.dataclass(frozen=True)
class Sample:
    """One measurement. Processor figures are cores: 1.0 is one core fully used. Memory is bytes at the end of the window."""

    per_second: float
    sent_per_second: float
    server_cores: float
    client_cores: float
    other_cores: float
    rss_bytes: int


def _child(client: Client, meter: Meter, role: int, port: int, work: Work) -> None:
    meter.role = role
    client(meter, port, work)


class ClientFailed(RuntimeError):
    """A client process ended too early or with an error; its traceback is on stderr."""


def measure(
    server: Server,
    clients: list[tuple[Client, Work]],
    seconds: float,
    warm_seconds: float = 1.0,
    total: int = 0,
    meter: Meter | None = None,
) -> Sample:
    """Runs the clients at once, each in its own process. With `total` it fills instead: the whole run is the window. Who only
    reads is a client that sends nothing: what is done counts.

    Raises ClientFailed; no client process is left behind, whatever happens."""
    cycle = len(clients) > 1
    meter = meter or Meter(len(clients), total, AHEAD if cycle else 0)
    processes = [
        _CONTEXT.Process(target=_child, args=(client, meter, role, server.port, work), daemon=True)
        for role, (client, work) in enumerate(clients)
    ]
    for process in processes:
        process.start()
    try:
        _wait(processes, meter.all_ready, 60)
        meter.go()
        if not total:
            _wait_seconds(processes, warm_seconds)
        servers, own = machine.tree(server.process.pid), [process.pid or 0 for process in processes]
        before = (meter.counts(), time.monotonic(), machine.cpu_seconds(servers), machine.cpu_seconds(own))
        busy = machine.busy_seconds()
        if total:
            while meter.counts()[0] < total:
                _wait_seconds(processes, 0.02, may_end=True)
        else:
            _wait_seconds(processes, seconds)
        counts, now = meter.counts(), time.monotonic()
        elapsed = now - before[1]
        server_cores = (machine.cpu_seconds(servers) - before[2]) / elapsed
        client_cores = (machine.cpu_seconds(own) - before[3]) / elapsed
        others = (machine.busy_seconds() - busy) / elapsed - server_cores - client_cores
        rss_bytes = server.rss_bytes
        meter.stop()
        for process in processes:
            process.join(30)
            if process.exitcode != 0:
                raise ClientFailed(f"a client of {server.name} ended with {process.exitcode}")
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
    sent, done = counts[0] - before[0][0], counts[1] - before[0][1]
    rate = min(sent, done) if cycle else sent or done
    return Sample(rate / elapsed, sent / elapsed, server_cores, client_cores, max(0.0, others), rss_bytes)


def _wait(processes: list[Any], condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        _wait_seconds(processes, 0.01)
        if time.monotonic() > end:
            raise ClientFailed(f"a client was not ready after {seconds:.0f} s")


def _wait_seconds(processes: list[Any], seconds: float, may_end: bool = False) -> None:
    """Sleeps, and notices when a client dies meanwhile."""
    end = time.monotonic() + seconds
    while True:
        for process in processes:
            if process.exitcode is not None and not (may_end and process.exitcode == 0):
                raise ClientFailed(f"a client ended early with {process.exitcode}")
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, 0.1))
