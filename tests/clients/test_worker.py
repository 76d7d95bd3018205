"""Workers: success, failure with backoff, renewal, and a graceful end."""

from __future__ import annotations

import logging

import anyio
import pytest
from penstock import AsyncClient, AsyncMessage, AsyncWorker, Backoff
from penstock.errors import QueueDoesNotExist, RequestTimeout

from tests.clients.fake_broker import FakeBroker, turns

pytestmark = pytest.mark.anyio


async def test_every_message_is_handled_and_deleted(broker: FakeBroker) -> None:
    seen: list[bytes] = []
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"%d" % number for number in range(200)])

        async def handle(message: AsyncMessage) -> None:
            seen.append(message.body)

        worker = AsyncWorker(queue, handle, concurrency=7)
        await worker.run(idle_seconds=0.05)
    assert sorted(seen) == sorted(b"%d" % number for number in range(200))
    assert broker.queue("jobs").bodies == []
    assert (worker.processed, worker.failed, worker.lost) == (200, 0, 0)


async def test_no_more_handlers_run_at_once_than_allowed(broker: FakeBroker) -> None:
    running = most = 0
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"x"] * 30)

        async def handle(message: AsyncMessage) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await anyio.lowlevel.checkpoint()
            running -= 1

        await AsyncWorker(queue, handle, concurrency=3).run(idle_seconds=0.05)
    assert most == 3


async def test_a_failed_message_is_released_with_backoff_logged_and_counted(
    broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"good", b"bad"])

        async def handle(message: AsyncMessage) -> None:
            if message.body == b"bad":
                raise ValueError("cannot work with this")

        worker = AsyncWorker(queue, handle, backoff=Backoff(first=7, jitter=False))
        with caplog.at_level(logging.ERROR, "penstock.worker"):
            await worker.run(idle_seconds=0.05)
    assert (worker.processed, worker.failed) == (1, 1)
    assert "cannot work with this" in caplog.text
    assert broker.queue("jobs").bodies == [b"bad"]
    assert 7_000 in [timeout for message in broker.asked("ChangeVisibility") for timeout in message.timeouts_ms]


async def test_a_message_that_failed_at_once_comes_again_and_succeeds(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send(b"x")
        counts = []

        async def handle(message: AsyncMessage) -> None:
            counts.append(message.receive_count)
            if message.receive_count < 3:
                raise ValueError("not yet")

        await AsyncWorker(queue, handle, backoff=Backoff(first=0)).run(idle_seconds=0.05)
    assert counts == [1, 2, 3]
    assert broker.queue("jobs").bodies == []


async def test_visibility_is_renewed_for_messages_in_hand_and_in_the_buffer(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"in hand", b"waiting"])
        renewed = anyio.Event()

        async def handle(message: AsyncMessage) -> None:
            await renewed.wait()

        worker = AsyncWorker(queue, handle, concurrency=1, visibility_timeout=0.1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run, 0.05)
            await broker.until(lambda: len(broker.asked("ChangeVisibility")) >= 2)
            renewed.set()
    [receipt] = broker.asked("ChangeVisibility")[0].receipts
    assert receipt.mask == b"\x03"
    assert broker.asked("ChangeVisibility")[0].timeouts_ms == [100]
    assert (worker.processed, worker.lost) == (2, 0)


async def test_a_buffered_message_that_is_not_ours_any_more_is_not_handled(broker: FakeBroker) -> None:
    seen = []
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"in hand", b"taken away"])
        gone = anyio.Event()

        async def handle(message: AsyncMessage) -> None:
            seen.append(message.body)
            await gone.wait()

        worker = AsyncWorker(queue, handle, concurrency=1, visibility_timeout=0.1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run, 0.05)
            await broker.until(lambda: len(broker.queue("jobs").visible) == 0)
            broker.queue("jobs").messages[1].receipt = b"somebody else's"
            while not worker.lost:
                await turns()
                await broker.until(lambda: len(broker.asked("ChangeVisibility")) >= 1)
            gone.set()
    assert seen == [b"in hand"]


async def test_stop_finishes_what_is_in_hand_and_releases_the_rest(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"first", b"second", b"third"])
        worker: AsyncWorker

        async def handle(message: AsyncMessage) -> None:
            worker.stop()
            await turns()

        worker = AsyncWorker(queue, handle, concurrency=1)
        await worker.run()
        await broker.until(lambda: broker.queue("jobs").visible == [b"second", b"third"])
    assert broker.queue("jobs").bodies == [b"second", b"third"]
    assert worker.processed == 1


async def test_handlers_that_outlive_the_grace_are_cancelled_and_their_messages_released(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send(b"endless")
        worker: AsyncWorker

        async def handle(message: AsyncMessage) -> None:
            worker.stop()
            await anyio.sleep_forever()

        worker = AsyncWorker(queue, handle, grace=0.05)
        await worker.run()
    assert broker.queue("jobs").visible == [b"endless"]
    assert (worker.processed, worker.failed) == (0, 0)


async def test_a_cancelled_worker_releases_everything(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"in hand", b"in the buffer"])
        started = anyio.Event()

        async def handle(message: AsyncMessage) -> None:
            started.set()
            await anyio.sleep_forever()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(AsyncWorker(queue, handle, concurrency=1).run)
            await started.wait()
            tasks.cancel_scope.cancel()
    assert sorted(broker.queue("jobs").visible) == [b"in hand", b"in the buffer"]


async def test_a_worker_goes_on_after_a_lost_connection(broker: FakeBroker) -> None:
    seen = []
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send(b"before")

        async def handle(message: AsyncMessage) -> None:
            seen.append(message.body)
            if message.body == b"before":
                broker.drop_all()
                await queue.send(b"after")
            else:
                worker.stop()

        worker = AsyncWorker(queue, handle, concurrency=1)
        await worker.run()
    assert seen == [b"before", b"after"]
    assert broker.queue("jobs").bodies == []


async def test_a_worker_is_not_idle_while_it_has_no_connection(broker: FakeBroker) -> None:
    seen = []
    async with AsyncClient(broker.url) as client, anyio.create_task_group() as tasks:
        queue = client.queue("jobs")

        async def handle(message: AsyncMessage) -> None:
            seen.append(message.body)

        tasks.start_soon(AsyncWorker(queue, handle).run, 1)
        await broker.until(lambda: broker.asked("Consume") != [])
        broker.mute = True  # connections are taken, hellos not answered
        broker.drop_all()
        with anyio.move_on_after(1.5):
            await anyio.sleep_forever()
        broker.mute = False
        broker.drop_all()
        await queue.send(b"x")
    assert seen == [b"x"]


async def test_what_ends_the_consumer_ends_the_worker(broker: FakeBroker) -> None:
    async def handle(message: AsyncMessage) -> None:
        raise AssertionError("there is nothing to handle")

    async with AsyncClient(broker.url) as client:
        with pytest.raises(QueueDoesNotExist):
            await AsyncWorker(client.queue("nowhere"), handle).run()


async def test_a_delete_that_fails_counts_as_lost(broker: FakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    broker.fault("DeleteMessages", RequestTimeout("as the test wants it"))
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send(b"x")

        async def handle(message: AsyncMessage) -> None:
            pass

        worker = AsyncWorker(queue, handle)
        with caplog.at_level(logging.WARNING, "penstock.worker"):
            await worker.run(idle_seconds=0.05)
    assert (worker.processed, worker.lost) == (0, 1)
    assert "not ours any more" in caplog.text


@pytest.mark.parametrize(("receives", "seconds"), [(1, 1.0), (2, 2.0), (3, 4.0), (9, 256.0), (10, 300.0), (1_000, 300.0)])
async def test_backoff_grows_up_to_its_maximum(receives: int, seconds: float) -> None:
    assert Backoff(jitter=False).pause(receives) == seconds
    assert seconds / 2 <= Backoff().pause(receives) <= seconds


async def test_settings_that_make_no_sense_are_refused(broker: FakeBroker) -> None:
    async def handle(message: AsyncMessage) -> None:
        pass

    async with AsyncClient(broker.url) as client:
        with pytest.raises(ValueError, match="concurrency"):
            AsyncWorker(client.queue("jobs"), handle, concurrency=0)
        with pytest.raises(ValueError, match="visibility_timeout"):
            AsyncWorker(client.queue("jobs"), handle, visibility_timeout=0)
        with pytest.raises(ValueError, match="credit"):
            await AsyncWorker(client.queue("jobs"), handle, credit=0).run()
