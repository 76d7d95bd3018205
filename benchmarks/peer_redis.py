"""Redis streams: redis-py with the hiredis parser, which is its fastest set-up.

Singles in flight: pipelines of 100 XADD from 4 threads. Batches: one pipeline of XADD a batch, 4 threads. Cycle: `window`
producer threads (the harness measures 4 and 8 and quotes the better) and 4 consumer threads; XREADGROUP, then XACK and XDEL in
one pipeline. For batches of 100 and more the consumer reads up to 1,000 at once, which helps Redis. `appendfsync always` writes
and syncs once per turn of its event loop, before it answers. Found by trying 1 to 16 threads each: fewer are slower, more are
not faster; without hiredis the cycle is a third slower.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import redis

from benchmarks.meter import SURPLUS_PAUSE_SECONDS, Meter, Work

SENDERS, CONSUMERS = 4, 4
ERRORS = (redis.RedisError,)
SINGLES_PIPELINE, LARGE_READ = 100, 1000


def threads(count: int, work: Callable[[int], None]) -> None:
    """Runs `work(number)` in that many threads; an error in one is raised here."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # raised again below, in the process's main thread
            errors.append(error)

    running = [threading.Thread(target=guarded, args=(number,), daemon=True) for number in range(count)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]


def prepare(port: int, work: Work) -> None:
    """Makes the stream and its consumer group."""
    client: Any = redis.Redis(port=port)
    client.xgroup_create(work.queue, "g", id="0", mkstream=True)
    client.close()


def purge(port: int, work: Work) -> None:
    """Empties the stream."""
    client: Any = redis.Redis(port=port)
    client.delete(work.queue)
    client.xgroup_create(work.queue, "g", id="0", mkstream=True)
    client.close()


def send(meter: Meter, port: int, work: Work) -> None:
    """Sends alone."""
    one_at_a_time = work.batch == 1 and work.window == 1
    _send(meter, port, work, 1 if one_at_a_time else SENDERS)


def produce(meter: Meter, port: int, work: Work) -> None:
    """Sends beside a consumer."""
    _send(meter, port, work, work.window)


def _send(meter: Meter, port: int, work: Work, count: int) -> None:
    body = {"b": secrets.token_bytes(work.size_bytes)}
    clients: list[Any] = [redis.Redis(port=port) for _ in range(count)]
    for client in clients:
        client.ping()
    batch = work.batch if work.batch > 1 or work.window == 1 else SINGLES_PIPELINE

    def loop(number: int) -> None:
        client = clients[number]
        while not meter.stopped:
            if meter.too_far_ahead:
                time.sleep(0.001)
                continue
            if batch == 1:
                client.xadd(work.queue, body)
            else:
                pipe = client.pipeline(transaction=False)
                for _ in range(batch):
                    pipe.xadd(work.queue, body)
                pipe.execute()
            meter.sent(batch, number)

    meter.ready()
    threads(count, loop)


def consume(meter: Meter, port: int, work: Work) -> None:
    """Receives, acknowledges and deletes."""
    clients: list[Any] = [redis.Redis(port=port) for _ in range(CONSUMERS)]
    for client in clients:
        client.ping()
    most = LARGE_READ if work.batch >= 100 else work.batch

    def loop(number: int) -> None:
        client = clients[number]
        while not meter.stopped:
            if meter.overtakes:
                time.sleep(SURPLUS_PAUSE_SECONDS)
                continue
            answer = client.xreadgroup("g", f"c{number}", {work.queue: ">"}, count=most, block=200)
            if not answer:
                continue
            streams = answer.values() if isinstance(answer, dict) else [entries for _, entries in answer]
            for entries in streams:
                ids = [entry[0] for entry in _flat(entries)]
                pipe = client.pipeline(transaction=False)
                pipe.xack(work.queue, "g", *ids)
                pipe.xdel(work.queue, *ids)
                pipe.execute()
                meter.done(len(ids), number)

    meter.ready()
    threads(CONSUMERS, loop)


def _flat(entries: Any) -> Any:
    """redis-py answers with a list of entries, or (RESP3) with a list that holds that list."""
    return entries[0] if entries and isinstance(entries[0], list) else entries
