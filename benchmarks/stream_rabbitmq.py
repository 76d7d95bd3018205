"""RabbitMQ streams, its stream protocol: rstream on uvloop.

Batches: `send_batch` of 500 with up to `window` messages unconfirmed; windows of 2,000 and 10,000 are measured and the better
quoted. Singles pipelined: the same with `send_batch` of 100, for rstream's own buffering is sent only twice a second. Read back:
a subscription from the first offset, bodies as they are, not decoded as AMQP, which helps RabbitMQ. A stream does not sync before
it confirms: what is confirmed survives a crash of the server, not a power cut.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
import time
from typing import Any

import rstream
import uvloop
from rstream.exceptions import ServerError

from benchmarks.meter import PAUSE_SECONDS, Meter, Work

ERRORS = (ServerError,)
SINGLES_BATCH = 100
CREDIT = 100
INDEX = struct.Struct(">Q")


def _place(port: int) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": port, "username": "guest", "password": "guest", "load_balancer_mode": True}


def prepare(port: int, work: Work) -> None:
    """Makes the stream."""

    async def run() -> None:
        async with rstream.Producer(**_place(port)) as producer:
            await producer.create_stream(work.queue)

    uvloop.run(run())


def append(meter: Meter, port: int, work: Work) -> None:
    """Publishes."""
    uvloop.run(_append(meter, port, work))


def read(meter: Meter, port: int, work: Work) -> None:
    """Reads the `total` messages that are there, again and again."""
    uvloop.run(_read(meter, port, work))


def tip_put(meter: Meter, port: int, work: Work) -> None:
    """Publishes one message after the other, and notes when each was confirmed."""
    uvloop.run(_tip_put(meter, port, work))


def tip_read(meter: Meter, port: int, work: Work) -> None:
    """Waits at the tip, and notes when each message is there."""
    uvloop.run(_tip_read(meter, port, work))


async def _append(meter: Meter, port: int, work: Work) -> None:
    body = secrets.token_bytes(work.size_bytes)
    batch = [body] * (work.batch if work.batch > 1 else SINGLES_BATCH)
    unconfirmed, refused = 0, 0
    fewer = asyncio.Event()

    def on_confirm(status: Any) -> None:
        nonlocal unconfirmed, refused
        unconfirmed -= 1
        if status.is_confirmed:
            meter.sent(1)
        else:
            refused += 1
        fewer.set()

    async with rstream.Producer(**_place(port)) as producer:
        meter.ready()
        while not meter.stopped:
            while unconfirmed + len(batch) > work.window and not meter.stopped:
                fewer.clear()
                await fewer.wait()
            unconfirmed += len(batch)
            await producer.send_batch(work.queue, batch, on_publish_confirm=on_confirm)
            if refused:
                raise RuntimeError(f"{refused} messages were refused")
        while unconfirmed:
            fewer.clear()
            await fewer.wait()


async def _read(meter: Meter, port: int, work: Work) -> None:
    meter.ready()
    while not meter.stopped:
        count = 0
        over = asyncio.Event()

        def on_message(_: Any, __: Any, over: asyncio.Event = over) -> None:
            nonlocal count
            count += 1
            meter.done(1)
            if count >= work.total or meter.stopped:
                over.set()

        async with rstream.Consumer(**_place(port)) as consumer:
            first = rstream.ConsumerOffsetSpecification(rstream.OffsetType.FIRST, None)
            await consumer.subscribe(work.queue, on_message, offset_specification=first, initial_credit=CREDIT)
            await over.wait()


async def _tip_put(meter: Meter, port: int, work: Work) -> None:
    rest = secrets.token_bytes(work.size_bytes - INDEX.size)
    async with rstream.Producer(**_place(port)) as producer:
        meter.ready()
        for number in range(meter.stamps):
            if meter.stopped:
                return
            body = INDEX.pack(number) + rest
            meter.stamp("put", number, time.monotonic())
            await producer.send_wait(work.queue, body)
            meter.stamp("acknowledged", number, time.monotonic())
            meter.sent(1)
            await asyncio.sleep(PAUSE_SECONDS)


async def _tip_read(meter: Meter, port: int, work: Work) -> None:
    def on_message(body: Any, _: Any) -> None:
        meter.stamp("seen", INDEX.unpack_from(body)[0], time.monotonic())
        meter.done(1)

    async with rstream.Consumer(**_place(port)) as consumer:
        first = rstream.ConsumerOffsetSpecification(rstream.OffsetType.FIRST, None)
        await consumer.subscribe(work.queue, on_message, offset_specification=first, initial_credit=CREDIT)
        meter.ready()
        while not meter.stopped:
            await asyncio.sleep(0.05)
