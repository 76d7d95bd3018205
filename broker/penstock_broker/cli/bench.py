"""`penstock bench`: a quick look at what this broker does on this machine. The full benchmark, with peers, is `make bench`."""

from __future__ import annotations

import functools
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable

import click
import trio
from penstock import AsyncClient, AsyncQueue
from penstock.errors import NotConnected, PenstockError
from rich.progress import Progress

from penstock_broker.cli.exits import Exit
from penstock_broker.cli.output import client_options, console, fail, print_json, print_table, tls_context
from penstock_broker.cli.output import seconds as seconds_type

CLEANUP_SECONDS = 10.0
"""How long a benchmark that was interrupted waits for its queue to be deleted."""

Step = Callable[[AsyncQueue, bytes, float], Awaitable[int]]


async def _one_at_a_time(queue: AsyncQueue, body: bytes, end: float) -> int:
    count = 0
    while trio.current_time() < end:
        await queue.send(body)
        count += 1
    return count


async def _singles(queue: AsyncQueue, body: bytes, end: float) -> int:
    counts: list[int] = []

    async def loop() -> None:
        counts.append(await _one_at_a_time(queue, body, end))

    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            nursery.start_soon(loop)
    return sum(counts)


async def _batches(size: int, queue: AsyncQueue, body: bytes, end: float) -> int:
    counts = [0] * 4

    async def loop(place: int) -> None:
        while trio.current_time() < end:
            await queue.send_many([body] * size)
            counts[place] += size

    async with trio.open_nursery() as nursery:
        for place in range(len(counts)):
            nursery.start_soon(loop, place)
    return sum(counts)


async def _drain(queue: AsyncQueue, body: bytes, end: float) -> int:
    del body
    count = 0
    while trio.current_time() < end:
        messages = await queue.receive(500)
        if not messages:
            break
        await queue.delete_many(messages)
        count += len(messages)
    return count


STEPS: tuple[tuple[str, Step], ...] = (
    ("send, one at a time", _one_at_a_time),
    ("send, 1,000 tasks", _singles),
    ("send, batches of 100", functools.partial(_batches, 100)),
    ("send, batches of 500", functools.partial(_batches, 500)),
    ("receive and delete, batches of 500", _drain),
)


@click.command()
@click.option("--seconds", type=seconds_type, default=2.0, show_default=True, help="How long each step takes.")
@click.option("--size", type=click.IntRange(min=0), default=256, show_default=True, help="Bytes of a message.")
@client_options
def bench(seconds: float, size: int, url: str | None, as_json: bool) -> None:
    """Measure a running broker for some seconds, in a queue that is deleted afterwards."""
    try:
        results = trio.run(_bench, seconds, size, url, tls_context(), not as_json)
    except* NotConnected as group:
        fail(str(group.exceptions[0]), Exit.NOT_REACHABLE, "Start one with: penstock serve")
    except* PenstockError as group:
        fail(str(group.exceptions[0]), Exit.FAILED)
    else:
        if as_json:
            print_json(results)
        else:
            print_table("", ["step", "messages/s"], [[name, f"{rate:,.0f}"] for name, rate in results.items()])
            console.print("durable: every message was on disk before its send returned", style="dim")


async def _bench(seconds: float, size: int, url: str | None, tls: ssl.SSLContext | None, visible: bool) -> dict[str, float]:
    name = f"bench-{secrets.token_hex(4)}"
    body = secrets.token_bytes(size)
    results: dict[str, float] = {}
    async with AsyncClient(url, tls=tls, request_timeout=10) as client:
        try:
            queue = await client.create_queue(name)
            with Progress(console=console, transient=True, disable=not visible or not console.is_terminal) as progress:
                bar = progress.add_task("measuring", total=len(STEPS))
                for title, step in STEPS:
                    progress.update(bar, description=title)
                    started = time.monotonic()
                    count = await step(queue, body, trio.current_time() + seconds)
                    results[title] = count / (time.monotonic() - started)
                    progress.advance(bar)
        finally:
            with trio.move_on_after(CLEANUP_SECONDS, shield=True):
                await client.create_queue(name)  # one that was interrupted may be under way: a delete could overtake it
                await client.delete_queue(name)
    return results
