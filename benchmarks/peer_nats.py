"""NATS JetStream, file storage, sync_interval always: nats-py on uvloop.

Singles in flight: publish_async with a window of 500. Cycle: a work-queue stream; the producer publishes asynchronously with that
window, the consumer fetches a batch from a pull consumer and acknowledges each message (an acknowledgement has no reply, so
deletions count when they are written, which helps NATS). JetStream has no batch of sends that is one request.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import nats
import nats.errors
import uvloop

from benchmarks.meter import SURPLUS_PAUSE_SECONDS, Meter, Work

ERRORS = (nats.errors.Error,)
WINDOW = 500


async def _connect(port: int) -> Any:
    return await nats.connect(f"nats://127.0.0.1:{port}", pending_size=64 * 2**20)


def prepare(port: int, work: Work) -> None:
    """Makes the stream and its pull consumer."""

    async def run() -> None:
        from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StorageType

        client = await _connect(port)
        stream = client.jetstream()
        await stream.add_stream(
            name=work.queue, subjects=[work.queue], retention=RetentionPolicy.WORK_QUEUE, storage=StorageType.FILE
        )
        await stream.add_consumer(
            work.queue, ConsumerConfig(durable_name="c", ack_policy=AckPolicy.EXPLICIT, max_ack_pending=100_000)
        )
        await client.close()

    uvloop.run(run())


def purge(port: int, work: Work) -> None:
    """Empties the stream."""

    async def run() -> None:
        client = await _connect(port)
        await client.jetstream().purge_stream(work.queue)
        await client.close()

    uvloop.run(run())


def send(meter: Meter, port: int, work: Work) -> None:
    """Sends alone."""
    uvloop.run(_send(meter, port, work, work.window))


def produce(meter: Meter, port: int, work: Work) -> None:
    """Sends beside a consumer."""
    uvloop.run(_send(meter, port, work, WINDOW))


def consume(meter: Meter, port: int, work: Work) -> None:
    """Receives and acknowledges."""
    uvloop.run(_consume(meter, port, work))


async def _send(meter: Meter, port: int, work: Work, window: int) -> None:
    client = await _connect(port)
    stream = client.jetstream(publish_async_max_pending=max(2 * window, 100))
    body = secrets.token_bytes(work.size_bytes)
    free = asyncio.Semaphore(window)
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
        if meter.too_far_ahead:
            await asyncio.sleep(0.001)
        elif window == 1:
            await stream.publish(work.queue, body)
            meter.sent(1)
        else:
            await free.acquire()
            (await stream.publish_async(work.queue, body)).add_done_callback(acknowledged)
    if failures:
        raise failures[0]
    if window > 1:
        for _ in range(window):
            await free.acquire()
    await client.close()


async def _consume(meter: Meter, port: int, work: Work) -> None:
    client = await _connect(port)
    subscription = await client.jetstream().pull_subscribe_bind("c", work.queue)
    meter.ready()
    while not meter.stopped:
        if meter.overtakes:
            await asyncio.sleep(SURPLUS_PAUSE_SECONDS)
            continue
        try:
            messages = await subscription.fetch(work.batch, timeout=0.2)
        except nats.errors.TimeoutError:
            continue  # nothing came within 0.2 s: look whether to stop
        for message in messages:
            await message.ack()
        await client.flush()
        meter.done(len(messages))
    await client.close()
