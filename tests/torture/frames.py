"""Random and mutated frames: millions through the protocol alone, thousands of byte streams at a real broker."""

from __future__ import annotations

import importlib.util
import time
from collections import Counter
from typing import Final

from tests.torture.crew import CORES, Crew, resident_bytes
from tests.torture.rig import TorturedBroker
from tests.torture.stage import Task, Verdict

GROWTH_BYTES: Final = 64 * 2**20
"""What a process of the crew may grow by after its first chunk."""
BROKER_GROWTH_BYTES: Final = 192 * 2**20
"""What the broker may grow by: its memory for content is 64 MiB, and the streams make queues."""
STREAMS: Final = 20_000
SOCKETS_SHARE: Final = 0.4


def run(task: Task) -> Verdict:
    """First the sockets, for a share of the time, then frames until the task is done."""
    started = time.monotonic()
    streams, complaints = _throw(task, started + (task.deadline - started) * SOCKETS_SHARE)
    text = "mutated frames: tests/protocol/mutate.py is not there"
    if importlib.util.find_spec("tests.protocol") and importlib.util.find_spec("tests.protocol.mutate"):
        text, found = _mutate(task)
        complaints += found
    return Verdict(f"{text}; {streams}", complaints)


def _mutate(task: Task) -> tuple[str, list[str]]:
    marks: Counter[str] = Counter()
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    done = 0
    started = time.monotonic()
    with Crew("frames", task.seed) as crew:
        for answer in crew.answers(task.deadline):
            done += answer["done"]
            marks.update(answer["marks"])
            first.setdefault(answer["worker"], answer["resident"])
            last[answer["worker"]] = answer["resident"]
            task.show(done)
            if not task.goes_on(done):
                break
    seconds = time.monotonic() - started
    growth = max((last[worker] - first[worker] for worker in last), default=0)
    complaints = [f"a process grew by {growth:,} bytes"] if growth > GROWTH_BYTES else []
    found = ", ".join(f"{name} {count:,}" for name, count in marks.most_common(8))
    text = f"{done:,} frames in {CORES} processes, {done / seconds:,.0f}/s, memory grew by {growth / 2**20:.1f} MiB ({found})"
    return text, complaints


def _throw(task: Task, deadline: float) -> tuple[str, list[str]]:
    """See streams.py."""
    broker = TorturedBroker(task.folder, "")
    complaints: list[str] = []
    done = answers = healthy = first = peak = 0
    try:
        broker.start()
        with Crew("sockets", task.seed, str(broker.port), str(STREAMS // CORES)) as crew:
            for answer in crew.answers(deadline):
                done += answer["done"]
                answers += answer["answers"]
                healthy += answer["healthy"]
                complaints += answer["complaints"]
                resident = resident_bytes(broker.pid)
                first, peak = first or resident, max(peak, resident)
                if not broker.is_running:
                    break
        if broker.is_running:
            code = broker.stop()
            complaints += [f"the broker ended with {code}"] if code else []
        else:
            complaints.append(f"the broker fell over:\n{broker.end_of_log()}")
        complaints += [f"log: {line}" for line in broker.complaints()]
    finally:
        broker.put_down()
    if not healthy:
        complaints.append("the healthy connection was never served")
    if peak - first > BROKER_GROWTH_BYTES:
        complaints.append(f"the broker grew from {first:,} to {peak:,} bytes")
    text = (
        f"{done:,} mutated streams over sockets, {answers:,} answers, {healthy:,} rounds of a healthy connection, "
        f"broker {first / 2**20:.0f} MiB, at most {peak / 2**20:.0f} MiB"
    )
    return text, complaints
