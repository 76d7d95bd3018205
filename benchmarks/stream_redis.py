"""Redis Streams: redis-py with the hiredis parser, which is its fastest set-up.

Batches: one pipeline of XADD a batch, 4 threads; to many shards each XADD of a pipeline goes to the next of that many streams.
Singles pipelined: pipelines of 100 XADD, 4 threads. Read back: XRANGE from behind the last id on, 500, 1,000 or 5,000 entries at
a time; the best is quoted. Tip: XREAD that blocks. `appendfsync always` writes and syncs once per turn of its event loop, before
it answers. Redis is spared the partition key: an entry has one field.
"""

from __future__ import annotations

import secrets
import struct
import time
from typing import Any

import redis

from benchmarks.meter import PAUSE_SECONDS, Meter, Work
from benchmarks.peer_redis import SINGLES_PIPELINE, threads

SENDERS = 4
ERRORS = (redis.RedisError,)
INDEX = struct.Struct(">Q")


def _names(work: Work) -> list[str]:
    return [f"{work.queue}-{shard}" for shard in range(work.shards)]


def prepare(port: int, work: Work) -> None:
    """Makes nothing: the first XADD does."""


def append(meter: Meter, port: int, work: Work) -> None:
    """Adds entries."""
    body = {"b": secrets.token_bytes(work.size_bytes)}
    clients: list[Any] = [redis.Redis(port=port) for _ in range(SENDERS)]
    for client in clients:
        client.ping()
    batch = work.batch if work.batch > 1 else SINGLES_PIPELINE
    names = _names(work)

    def loop(number: int) -> None:
        client = clients[number]
        while not meter.stopped:
            pipe = client.pipeline(transaction=False)
            for place in range(batch):
                pipe.xadd(names[place % len(names)], body)
            pipe.execute()
            meter.sent(batch, number)

    meter.ready()
    threads(SENDERS, loop)


def read(meter: Meter, port: int, work: Work) -> None:
    """Reads the `total` entries that are there, again and again, `window` at a time."""
    client: Any = redis.Redis(port=port)
    client.ping()
    (name,) = _names(work)
    meter.ready()
    while not meter.stopped:
        after, count = "-", 0
        while count < work.total and not meter.stopped:
            entries = client.xrange(name, after, count=work.window)
            count += len([fields[b"b"] for _, fields in entries])
            meter.done(len(entries))
            after = f"({entries[-1][0].decode()}"


def tip_put(meter: Meter, port: int, work: Work) -> None:
    """Adds one entry after the other, and notes when each was answered."""
    client: Any = redis.Redis(port=port)
    rest = secrets.token_bytes(work.size_bytes - INDEX.size)
    (name,) = _names(work)
    client.ping()
    meter.ready()
    for number in range(meter.stamps):
        if meter.stopped:
            return
        body = {"b": INDEX.pack(number) + rest}
        meter.stamp("put", number, time.monotonic())
        client.xadd(name, body)
        meter.stamp("acknowledged", number, time.monotonic())
        meter.sent(1)
        time.sleep(PAUSE_SECONDS)


def tip_read(meter: Meter, port: int, work: Work) -> None:
    """Waits at the tip, and notes when each entry is there."""
    client: Any = redis.Redis(port=port)
    client.ping()
    (name,) = _names(work)
    after = b"0"
    meter.ready()
    while not meter.stopped:
        answer = client.xread({name: after}, block=200)
        for _, entries in answer.items() if isinstance(answer, dict) else answer or ():
            flat = entries[0] if isinstance(answer, dict) else entries
            for _, fields in flat:
                meter.stamp("seen", INDEX.unpack_from(fields[b"b"])[0], time.monotonic())
                meter.done(1)
            after = flat[-1][0]
