"""Penstock's side of each scenario: the asynchronous SDK on trio, nothing that an application could not do.

Singles: 1,000 tasks that each await `queue.send(body)`; the SDK merges them. Batches: 4 tasks that await `send_many`. Cycle:
a producer with `window` tasks, and a consumer with five times as many that receive, then delete what they received; the harness
measures windows of 4 and 16 and quotes the better (FIFO: a producer with one task, so that order within a group means something,
and a consumer with `window` tasks). Each call is awaited, so that everything counted is durable.
"""

from __future__ import annotations

import functools
import itertools
import secrets
from collections.abc import Awaitable, Callable

import trio
from penstock import AsyncClient, AsyncQueue, OutgoingMessage, PenstockError

from benchmarks.meter import SURPLUS_PAUSE_SECONDS, Meter, Work

SENDERS, CONSUMERS_PER_PRODUCER = 4, 5
ERRORS = (PenstockError,)


def _client(port: int) -> AsyncClient:
    return AsyncClient(f"penstock://127.0.0.1:{port}")


def prepare(port: int, work: Work) -> None:
    """Makes the queue. `work.extra` "high throughput" makes a FIFO queue with deduplication and limits per message group."""

    async def create() -> None:
        async with _client(port) as client:
            if work.extra == "high throughput":
                await client.create_queue(
                    work.queue, deduplication_scope="message_group", fifo_throughput_limit="per_message_group"
                )
            else:
                await client.create_queue(work.queue)

    trio.run(create)


def purge(port: int, work: Work) -> None:
    """Empties the queue."""

    async def run() -> None:
        async with _client(port) as client:
            await client.queue(work.queue).purge()

    trio.run(run)


async def _tasks(count: int, task: Callable[[], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(task)


def send(meter: Meter, port: int, work: Work) -> None:
    """Sends alone."""
    trio.run(functools.partial(_send, meter, port, work, SENDERS))


def produce(meter: Meter, port: int, work: Work) -> None:
    """Sends beside a consumer."""
    trio.run(functools.partial(_send, meter, port, work, 1 if work.groups else work.window))


def consume(meter: Meter, port: int, work: Work) -> None:
    """Receives and deletes."""
    trio.run(_consume, meter, port, work)


async def _send(meter: Meter, port: int, work: Work, tasks: int) -> None:
    body = secrets.token_bytes(work.size_bytes)
    bodies = [secrets.token_bytes(work.size_bytes) for _ in range(work.batch)]
    number, prefix = itertools.count(), secrets.token_hex(4)

    def batch() -> list[bytes] | list[OutgoingMessage]:
        if not work.groups:
            return bodies
        numbers = (next(number) for _ in bodies)
        return [
            OutgoingMessage(body, group=f"g{one % work.groups}", deduplication_id=f"{prefix}-{one}")
            for body, one in zip(bodies, numbers, strict=True)
        ]

    async with _client(port) as client:
        queue: AsyncQueue = client.queue(work.queue)
        await queue.describe()

        async def singles() -> None:
            while not meter.stopped:
                await queue.send(body)
                meter.sent(1)

        async def batches() -> None:
            while not meter.stopped:
                if meter.too_far_ahead:
                    await trio.sleep(0.001)
                    continue
                await queue.send_many(batch())
                meter.sent(work.batch)

        meter.ready()
        await (_tasks(work.window, singles) if work.batch == 1 else _tasks(tasks, batches))


async def _consume(meter: Meter, port: int, work: Work) -> None:
    async with _client(port) as client:
        queue = client.queue(work.queue)
        await queue.describe()

        async def loop() -> None:
            while not meter.stopped:
                if meter.overtakes:
                    await trio.sleep(SURPLUS_PAUSE_SECONDS)
                    continue
                messages = await queue.receive(work.batch, wait_seconds=0.2)
                if messages:
                    await queue.delete_many(messages)
                    meter.done(len(messages))

        meter.ready()
        await _tasks(work.window if work.groups else CONSUMERS_PER_PRODUCER * work.window, loop)
