"""Workers and FIFO queues, and what becomes of messages in hand when a connection or a process is lost. A real broker."""

from __future__ import annotations

import contextlib
import logging
import sys
import textwrap
from typing import Any

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream
from penstock import AsyncClient, AsyncMessage, AsyncQueue, AsyncWorker, Backoff, OutgoingMessage
from penstock.errors import QueueDoesNotExist

from tests.broker_process import BrokerProcess
from tests.clients.fake_broker import FakeBroker, turns

pytestmark = pytest.mark.anyio


async def fresh_queue(client: AsyncClient, name: str, **settings: Any) -> AsyncQueue:
    """An empty queue of that name; the same broker serves many tests."""
    with contextlib.suppress(QueueDoesNotExist):
        await client.delete_queue(name)
    return await client.create_queue(name, **settings)


def released(broker: FakeBroker) -> list[int]:
    """Which places were made visible again, as masks."""
    return [
        int.from_bytes(receipt.mask, "little")
        for message in broker.asked("ChangeVisibility")
        for receipt, timeout_ms in zip(message.receipts, message.timeouts_ms, strict=True)
        if not timeout_ms
    ]


def grouped(*names: str) -> list[OutgoingMessage]:
    """Messages like a1, whose group is a."""
    return [OutgoingMessage(name, group=name[0], deduplication_id=name) for name in names]


async def test_one_message_of_a_group_is_handled_at_a_time_and_groups_side_by_side(real_broker: BrokerProcess) -> None:
    running: set[str | None] = set()
    done: list[str] = []
    most = 0
    async with AsyncClient(real_broker.url) as client:
        queue = await fresh_queue(client, "side-by-side.fifo")
        for group in "abc":
            await queue.send_many(grouped(*[f"{group}{number:02}" for number in range(30)]))

        async def handle(message: AsyncMessage) -> None:
            nonlocal most
            assert message.group not in running
            running.add(message.group)
            most = max(most, len(running))
            await turns(5)
            running.remove(message.group)
            done.append(message.text)

        worker = AsyncWorker(queue, handle, concurrency=4)
        await worker.run(idle_seconds=0.3)
    assert most == 3
    assert (worker.processed, worker.failed, worker.lost) == (90, 0, 0)
    for group in "abc":
        assert [text for text in done if text[0] == group] == [f"{group}{number:02}" for number in range(30)]


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_a_message_that_fails_comes_again_before_those_behind_it(real_broker: BrokerProcess, concurrency: int) -> None:
    tried: list[str] = []
    async with AsyncClient(real_broker.url) as client:
        queue = await fresh_queue(client, f"failing-{concurrency}.fifo")
        await queue.send_many(grouped("a1", "a2", "a3", "a4", "b1", "b2"))

        async def handle(message: AsyncMessage) -> None:
            tried.append(message.text)
            if message.text == "a2" and message.receive_count < 3:
                raise ValueError("not yet")

        worker = AsyncWorker(queue, handle, concurrency=concurrency, backoff=Backoff(first=0.05, factor=1))
        await worker.run(idle_seconds=0.5)
    assert [text for text in tried if text[0] == "a"] == ["a1", "a2", "a2", "a2", "a3", "a4"]
    assert [text for text in tried if text[0] == "b"] == ["b1", "b2"]
    assert (worker.processed, worker.failed, worker.lost) == (6, 2, 0)


async def test_a_message_that_goes_to_the_dead_letter_queue_takes_nobody_with_it(real_broker: BrokerProcess) -> None:
    done: list[str] = []
    async with AsyncClient(real_broker.url) as client:
        dead = await fresh_queue(client, "poison-dead.fifo")
        queue = await fresh_queue(client, "poison.fifo", dead_letter_queue=dead, max_receive_count=3)
        await queue.send_many(grouped("a1", "a2", "a3", "a4"))

        async def handle(message: AsyncMessage) -> None:
            if message.text == "a1":
                raise ValueError("never")
            done.append(message.text)

        worker = AsyncWorker(queue, handle, concurrency=2, backoff=Backoff(first=0))
        await worker.run(idle_seconds=0.5)
        assert [message.body for message in await dead.peek()] == [b"a1"]
        assert (await queue.describe()).messages == 0
    assert done == ["a2", "a3", "a4"]
    assert (worker.processed, worker.failed, worker.lost) == (3, 3, 0)


async def test_messages_that_are_lost_from_a_group_take_those_behind_them_back(broker: FakeBroker) -> None:
    seen: list[bytes] = []
    async with AsyncClient(broker.url) as client:
        queue = client.queue("orders.fifo")
        await queue.send_many(grouped("a1", "a2", "a3", "a4"))
        lost = anyio.Event()

        async def handle(message: AsyncMessage) -> None:
            seen.append(message.body)
            await lost.wait()

        worker = AsyncWorker(queue, handle, concurrency=2, visibility_timeout=0.1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            await broker.until(lambda: broker.queue("orders.fifo").visible == [])
            broker.queue("orders.fifo").messages[1].receipt = b"somebody else's"
            await broker.until(lambda: 0b1100 in released(broker))
            assert (worker.lost, seen) == (1, [b"a1"])
            tasks.cancel_scope.cancel()


async def test_a_message_that_comes_again_while_it_is_in_hand_is_not_handled_twice(real_broker: BrokerProcess) -> None:
    seen: list[str] = []
    async with AsyncClient(real_broker.url) as client:
        queue = await fresh_queue(client, "blip.fifo")
        await queue.send_many(grouped("a1", "a2", "b1"))

        async def handle(message: AsyncMessage) -> None:
            seen.append(message.text)
            if message.text != "a1":
                return
            [stream] = [client.link._stream]
            assert stream is not None
            await stream.aclose()  # the broker releases what this connection had
            while (await queue.peek(1, state="in_flight")) == [] or (await queue.peek(1))[0].receive_count < 2:
                await anyio.lowlevel.checkpoint()  # and pushes it again
            await client.ping()

        worker = AsyncWorker(queue, handle, concurrency=2)
        await worker.run(idle_seconds=0.5)
        assert (await queue.describe()).messages == 0
    assert seen.count("a1") == 1
    assert [text for text in seen if text[0] == "a"] == ["a1", "a2"]


async def test_without_release_at_disconnect_what_is_in_hand_stays_leased(broker: FakeBroker) -> None:
    seen: list[bytes] = []
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"x"])

        async def handle(message: AsyncMessage) -> None:
            seen.append(message.body)
            broker.drop_all()
            await broker.until(lambda: len(broker.asked("Consume")) == 2)
            await client.ping()
            assert broker.queue("jobs").visible == []

        await AsyncWorker(queue, handle, release_on_disconnect=False).run(idle_seconds=0.05)
    assert seen == [b"x"]
    assert {message.release for message in broker.asked("Consume")} == {False}


WORKER = textwrap.dedent("""
    import os, sys, threading
    from penstock import Client, Worker

    with Client(sys.argv[1]) as client:
        def handle(message):
            print(message.text, flush=True)
            threading.Event().wait()
        Worker(client.queue("crash"), handle, concurrency=1, visibility_timeout=3_600).run()
""")


async def test_what_a_killed_worker_had_comes_back_at_once(real_broker: BrokerProcess) -> None:
    async with AsyncClient(real_broker.url) as client:
        queue = await fresh_queue(client, "crash")
        await queue.send_many([b"in hand", b"in the buffer"])
        async with await anyio.open_process([sys.executable, "-c", WORKER, real_broker.url], stderr=None) as process:
            try:
                assert process.stdout is not None
                # An unbuffered interpreter writes a line and its end apart.
                assert await BufferedByteReceiveStream(process.stdout).receive_until(b"\n", 100) == b"in hand"
            finally:
                process.kill()  # or leaving this block would wait for it
        bodies: list[bytes] = []
        while len(bodies) < 2:
            bodies += [message.body for message in await queue.receive(10, wait_seconds=20)]
    assert sorted(bodies) == [b"in hand", b"in the buffer"]


async def test_a_stopped_worker_keeps_what_is_in_hand_until_it_is_done(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"in hand", b"in the buffer"])

        async def handle(message: AsyncMessage) -> None:
            worker.stop()
            await broker.until(lambda: broker.queue("jobs").visible == [b"in the buffer"])

        worker = AsyncWorker(queue, handle, concurrency=1)
        await worker.run()
    assert (worker.processed, worker.lost) == (1, 0)
    assert broker.queue("jobs").bodies == [b"in the buffer"]


async def test_a_delete_that_comes_too_late_gives_back_those_behind_it(
    broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("orders.fifo")
        await queue.send_many(grouped("a1", "a2", "a3"))
        broker.fault("DeleteMessages", QueueDoesNotExist("as the test wants it"))

        async def handle(message: AsyncMessage) -> None:
            worker.stop()

        worker = AsyncWorker(queue, handle, concurrency=1)
        with caplog.at_level(logging.WARNING, "penstock.worker"):
            await worker.run()
    assert released(broker)[0] == 0b110
    assert worker.lost == 1
