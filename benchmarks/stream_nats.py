"""NATS JetStream, file storage, sync_interval always: nats-py on uvloop.

Batches and singles pipelined: publish_async with a window of 500, for JetStream has no batch of publishes that is one request.
Read back and tip: an ordered consumer, to which the server pushes.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
import time
from typing import Any

import nats
import nats.errors
import nats.js.errors
import uvloop
from nats.js.api import DeliverPolicy, StorageType

from benchmarks.meter import PAUSE_SECONDS, Meter, Work

ERRORS = (nats.errors.Error, nats.js.errors.Error)
INDEX = struct.Struct(">Q")


async def _connect(port: int) -> Any:
    return await nats.connect(f"nats://127.0.0.1:{port}", pending_size=64 * 2**20)


def prepare(port: int, work: Work) -> None:
    """Makes the stream."""

    async def run() -> None:
        client = await _connect(port)
        await client.jetstream().add_stream(name=work.queue, subjects=[work.queue], storage=StorageType.FILE)
        await client.close()

    uvloop.run(run())


def append(meter: Meter, port: int, work: Work) -> None:
    """Publishes."""
    uvloop.run(_append(meter, port, work))


def read(meter: Meter, port: int, work: Work) -> None:
    """Reads the `total` messages that are there, again and again."""
    uvloop.run(_read(meter, port, work))


def tip_put(meter: Meter, port: int, work: Work) -> None:
    """Publishes one message after the other, and notes when each was answered."""
    uvloop.run(_tip_put(meter, port, work))


def tip_read(meter: Meter, port: int, work: Work) -> None:
    """Waits at the tip, and notes when each message is there."""
    uvloop.run(_tip_read(meter, port, work))


async def _append(meter: Meter, port: int, work: Work) -> None:
    client = await _connect(port)
    stream = client.jetstream(publish_async_max_pending=2 * work.window)
    body = secrets.token_bytes(work.size_bytes)
    free = asyncio.Semaphore(work.window)
    failures: list[BaseException] = []

    def acknowledged(future: asyncio.Future[Any]) -> None:
        error = future.exception()
        if error is None:
            meter.sent(1)
        else:
            failures.append(error)
        free.release()

    meter.ready()
    while not meter.stopped and not failures:
        await free.acquire()
        (await stream.publish_async(work.queue, body)).add_done_callback(acknowledged)
    if failures:
        raise failures[0]
    for _ in range(work.window):
        await free.acquire()
    await client.close()


async def _subscribe(client: Any, work: Work) -> Any:
    return await client.jetstream().subscribe(
        work.queue, ordered_consumer=True, deliver_policy=DeliverPolicy.ALL, pending_msgs_limit=-1, pending_bytes_limit=-1
    )


async def _read(meter: Meter, port: int, work: Work) -> None:
    client = await _connect(port)
    meter.ready()
    while not meter.stopped:
        subscription, count = await _subscribe(client, work), 0
        while count < work.total and not meter.stopped:
            try:
                await subscription.next_msg(0.2)
            except nats.errors.TimeoutError:
                continue  # look whether to stop
            count += 1
            meter.done(1)
        await subscription.unsubscribe()
    await client.close()


async def _tip_put(meter: Meter, port: int, work: Work) -> None:
    client = await _connect(port)
    stream = client.jetstream()
    rest = secrets.token_bytes(work.size_bytes - INDEX.size)
    meter.ready()
    for number in range(meter.stamps):
        if meter.stopped:
            break
        body = INDEX.pack(number) + rest
        meter.stamp("put", number, time.monotonic())
        await stream.publish(work.queue, body)
        meter.stamp("acknowledged", number, time.monotonic())
        meter.sent(1)
        await asyncio.sleep(PAUSE_SECONDS)
    await client.close()


async def _tip_read(meter: Meter, port: int, work: Work) -> None:
    client = await _connect(port)
    subscription = await _subscribe(client, work)
    meter.ready()
    while not meter.stopped:
        try:
            message = await subscription.next_msg(0.2)
        except nats.errors.TimeoutError:
            continue  # look whether to stop
        meter.stamp("seen", INDEX.unpack_from(message.data)[0], time.monotonic())
        meter.done(1)
    await client.close()
