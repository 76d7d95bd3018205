"""Penstock's side of the stream scenarios: the asynchronous SDK on trio, nothing that an application could not do.

Batches to one shard: 4 tasks that await `put_columns`. Singles pipelined: `Producer.put`, whose buffer does what the peers'
clients do with a window of unacknowledged messages; what counts is `Producer.delivered`. Singles awaited: 1,000 tasks that each
await `stream.put`. Many shards: `Producer.put_columns`, which groups records by shard. Read back: one reader that unpacks every
record, from the beginning again and again. Everything counted is durable.
"""

from __future__ import annotations

import itertools
import secrets
import struct
import time
from collections.abc import Awaitable, Callable

import trio
from penstock import AsyncClient, AsyncStream, PenstockError

from benchmarks.meter import PAUSE_SECONDS, Meter, Work

SENDERS = 4
SINGLES_PER_LOOK = 100
KEYS = 10_000
BATCH_SECONDS = 0.005
ERRORS = (PenstockError,)
INDEX = struct.Struct(">Q")


def _client(port: int) -> AsyncClient:
    return AsyncClient(f"penstock://127.0.0.1:{port}")


def prepare(port: int, work: Work) -> None:
    """Makes the stream."""

    async def create() -> None:
        async with _client(port) as client:
            await client.create_stream(work.queue, work.shards)

    trio.run(create)


def append(meter: Meter, port: int, work: Work) -> None:
    """Puts records."""
    trio.run(_append, meter, port, work)


def read(meter: Meter, port: int, work: Work) -> None:
    """Reads the `total` records that are there, again and again."""
    trio.run(_read, meter, port, work)


def tip_put(meter: Meter, port: int, work: Work) -> None:
    """Puts one record after the other, and notes when each was answered."""
    trio.run(_tip_put, meter, port, work)


def tip_read(meter: Meter, port: int, work: Work) -> None:
    """Waits at the tip, and notes when each record is there."""
    trio.run(_tip_read, meter, port, work)


def paced_put(meter: Meter, port: int, work: Work) -> None:
    """Puts a batch, waits for its answer, pauses: as many batches a second whoever listens."""
    trio.run(_paced_put, meter, port, work)


def subscribed(meter: Meter, port: int, work: Work) -> None:
    """As many registered consumers as the window says, each on a connection of its own."""
    trio.run(_subscribed, meter, port, work)


async def _tasks(count: int, task: Callable[[], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(task)


async def _append(meter: Meter, port: int, work: Work) -> None:
    data = [secrets.token_bytes(work.size_bytes) for _ in range(work.batch)]
    numbers = itertools.count()
    columns = [[f"key-{(first + place) % KEYS}" for place in range(work.batch)] for first in range(0, KEYS, work.batch)]

    async with _client(port) as client:
        stream: AsyncStream = client.stream(work.queue)
        await stream.describe()

        async def awaited() -> None:
            while not meter.stopped:
                await stream.put(data[0], f"key-{next(numbers) % KEYS}")
                meter.sent(1)

        async def batches() -> None:
            while not meter.stopped:
                await stream.put_columns(data, columns[next(numbers) % len(columns)])
                meter.sent(work.batch)

        async def buffered() -> None:
            told = 0
            async with stream.producer() as producer:
                while not meter.stopped:
                    if work.batch > 1:
                        await producer.put_columns(data, columns[next(numbers) % len(columns)])
                    else:
                        for _ in range(SINGLES_PER_LOOK):
                            await producer.put(data[0], f"key-{next(numbers) % KEYS}")
                    told, news = producer.delivered, producer.delivered - told
                    meter.sent(news)

        meter.ready()
        if work.extra == "awaited":
            await _tasks(work.window, awaited)
        elif work.batch > 1 and work.shards == 1:
            await _tasks(SENDERS, batches)
        else:
            await buffered()


async def _read(meter: Meter, port: int, work: Work) -> None:
    async with _client(port) as client:
        stream = client.stream(work.queue)
        await stream.describe()
        meter.ready()
        while not meter.stopped:
            count = 0
            async with stream.read(0) as batches:
                async for batch in batches:
                    meter.done(len(batch.data))
                    count += len(batch)
                    if count >= work.total or meter.stopped:
                        break


async def _tip_put(meter: Meter, port: int, work: Work) -> None:
    rest = secrets.token_bytes(work.size_bytes - INDEX.size)
    async with _client(port) as client:
        stream = client.stream(work.queue)
        await stream.describe()
        meter.ready()
        for number in range(meter.stamps):
            if meter.stopped:
                return
            content = INDEX.pack(number) + rest
            meter.stamp("put", number, time.monotonic())
            await stream.put(content, "key")
            meter.stamp("acknowledged", number, time.monotonic())
            meter.sent(1)
            await trio.sleep(PAUSE_SECONDS)


async def _tip_read(meter: Meter, port: int, work: Work) -> None:
    async with _client(port) as client:
        stream = client.stream(work.queue)
        async with stream.read(0) as batches:
            await stream.describe()
            meter.ready()
            while not meter.stopped:
                batch = await batches.next(0.2)
                for data in batch.data if batch is not None else ():
                    meter.stamp("seen", INDEX.unpack_from(data)[0], time.monotonic())
                    meter.done(1)


async def _paced_put(meter: Meter, port: int, work: Work) -> None:
    data = [secrets.token_bytes(work.size_bytes) for _ in range(work.batch)]
    keys = ["key"] * work.batch
    async with _client(port) as client:
        stream = client.stream(work.queue)
        await stream.describe()
        meter.ready()
        due = trio.current_time()
        while not meter.stopped:
            await stream.put_columns(data, keys)
            meter.sent(work.batch)
            due += BATCH_SECONDS
            await trio.sleep_until(due)


async def _subscribed(meter: Meter, port: int, work: Work) -> None:
    begun = 0

    async def one(number: int) -> None:
        nonlocal begun
        async with _client(port) as client:
            consumer = await client.stream(work.queue).register_consumer(f"consumer-{number}")
            async with consumer.subscribe(0, "trim_horizon") as records:
                # A first look, so that it is subscribed before anything is put.
                with trio.move_on_after(0.1):
                    await records.next(0)
                begun += 1
                if begun == work.window:
                    meter.ready()
                while not meter.stopped:
                    batch = await records.next(0.2)
                    if batch is not None:
                        meter.done(len(batch.data))

    async with trio.open_nursery() as nursery:
        for number in range(work.window):
            nursery.start_soon(one, number)
