"""Penstock's side of each scenario, over the asynchronous SDK on trio. One process unless the scenario says two."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import secrets
import time
from typing import Any

import trio

from penstock import AsyncClient, AsyncQueue, OutgoingMessage

TASKS = 1000


def _url(port: int) -> str:
    return f"penstock://127.0.0.1:{port}"


async def _queue(client: AsyncClient, name: str) -> AsyncQueue:
    fifo = {"deduplication_scope": "message_group"} if name.endswith(".fifo") else {}
    return await client.create_queue(name, max_in_flight=10_000_000, visibility_timeout=600, **fifo)


async def _send_one(port: int, name: str, size: int, seconds: float) -> float:
    body = secrets.token_bytes(size)
    async with AsyncClient(_url(port)) as client:
        queue = await _queue(client, name)
        await queue.send(body)
        started, count = time.monotonic(), 0
        while time.monotonic() < started + seconds:
            await queue.send(body)
            count += 1
        return count / (time.monotonic() - started)


async def _send_singles(port: int, name: str, size: int, seconds: float, total: int = 0) -> float:
    body = secrets.token_bytes(size)
    count = 0
    async with AsyncClient(_url(port)) as client:
        queue = await _queue(client, name)
        started = time.monotonic()

        async def loop() -> None:
            nonlocal count
            while (count < total) if total else (time.monotonic() < started + seconds):
                count += 1
                await queue.send(body)

        async with trio.open_nursery() as nursery:
            for _ in range(TASKS):
                nursery.start_soon(loop)
        return count / (time.monotonic() - started)


async def _send_batches(port: int, name: str, size: int, seconds: float, batch: int, total: int = 0) -> float:
    bodies = [secrets.token_bytes(size) for _ in range(batch)]
    count = 0
    async with AsyncClient(_url(port)) as client:
        queue = await _queue(client, name)
        started = time.monotonic()

        async def loop() -> None:
            nonlocal count
            while (count < total) if total else (time.monotonic() < started + seconds):
                count += batch
                await queue.send_many(bodies)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(loop)
        return count / (time.monotonic() - started)


async def _produce(port: int, name: str, size: int, seconds: float, batch: int, groups: int) -> int:
    body = secrets.token_bytes(size)
    number, count = itertools.count(), 0
    prefix = secrets.token_hex(4)
    async with AsyncClient(_url(port)) as client:
        queue = client.queue(name)
        end = time.monotonic() + seconds

        async def loop() -> None:
            nonlocal count
            while time.monotonic() < end:
                messages: list[bytes | str | OutgoingMessage] = [body] * batch
                if groups:
                    numbers = [next(number) for _ in range(batch)]
                    messages = [
                        OutgoingMessage(body, group=f"g{one % groups}", deduplication_id=f"{prefix}{one}") for one in numbers
                    ]
                await queue.send_many(messages)
                count += batch

        async with trio.open_nursery() as nursery:
            for _ in range(1 if groups else 2):
                nursery.start_soon(loop)
    return count


async def _consume(port: int, name: str, seconds: float, batch: int, pipelines: int) -> int:
    count = 0
    async with AsyncClient(_url(port)) as client:
        queue = client.queue(name)
        end = time.monotonic() + seconds

        async def loop() -> None:
            nonlocal count
            while time.monotonic() < end:
                messages = await queue.receive(batch, wait_seconds=0.2)
                if messages:
                    await queue.delete_many(messages)
                    count += len(messages)

        async with trio.open_nursery() as nursery:
            for _ in range(pipelines):
                nursery.start_soon(loop)
    return count


async def _create(port: int, name: str) -> None:
    async with AsyncClient(_url(port)) as client:
        await _queue(client, name)


def _run(function: Any, *arguments: Any, result: Any = None) -> Any:
    value = trio.run(functools.partial(function, *arguments))
    if result is not None:
        result.put(value)
    return value


def cycle(port: int, name: str, size: int, seconds: float, batch: int, groups: int = 0) -> float:
    """A producer and a consumer process at once; messages that went the whole way, per second."""
    trio.run(_create, port, name)
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    producer = context.Process(target=_run, args=(_produce, port, name, size, seconds, batch, groups))
    consumer = context.Process(target=_run, args=(_consume, port, name, seconds, batch, 4), kwargs={"result": results})
    producer.start()
    consumer.start()
    count = results.get(timeout=seconds + 60)
    producer.join()
    consumer.join()
    return float(count) / seconds


def one_at_a_time(port: int, name: str, size: int, seconds: float) -> float:
    """Each send awaited."""
    return float(_run(_send_one, port, name, size, seconds))


def singles(port: int, name: str, size: int, seconds: float, total: int = 0) -> float:
    """1,000 tasks, each awaiting one send after the other; the SDK merges them."""
    return float(_run(_send_singles, port, name, size, seconds, total))


def batches(port: int, name: str, size: int, seconds: float, batch: int, total: int = 0) -> float:
    """Four tasks that send batches."""
    return float(_run(_send_batches, port, name, size, seconds, batch, total))
