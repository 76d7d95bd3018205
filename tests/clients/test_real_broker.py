"""The SDK against a real broker: everything once, and kill -9 in the middle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from penstock import AsyncClient, AsyncMessage, AsyncQueue, AsyncWorker, Backoff, Client, OutgoingMessage, SentMessage, Worker
from penstock.errors import (
    AuthenticationFailed,
    AuthenticationRequired,
    InvalidAttribute,
    InvalidMessage,
    InvalidRequest,
    MessageNotInFlight,
    NotPermitted,
    QueueDoesNotExist,
    QueueFull,
    ReceiptHandleInvalid,
    ResourceInUse,
)
from penstock.types import AttributeValue

from tests.broker_process import BrokerProcess, running_broker
from tests.clients.certificates import Authority

pytestmark = pytest.mark.anyio


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker that the test may kill."""
    with running_broker(tmp_path) as broker:
        yield broker


async def fresh_queue(client: AsyncClient, name: str, **settings: Any) -> AsyncQueue:
    """An empty queue of that name; the same broker serves many tests."""
    with contextlib.suppress(QueueDoesNotExist):
        await client.delete_queue(name)
    return await client.create_queue(name, **settings)


async def drained(queue: AsyncQueue) -> list[bytes]:
    """All bodies, received and deleted."""
    bodies = []
    while messages := await queue.receive(1_000, wait_seconds=0):
        bodies += [message.body for message in messages]
        await queue.delete_many(messages)
    return bodies


async def test_a_message_keeps_its_properties_on_its_way(real_broker: BrokerProcess) -> None:
    async with AsyncClient(real_broker.url) as client:
        queue = await fresh_queue(client, "properties")
        attributes: dict[str, AttributeValue] = {"n": 5, "f": 2.5, "s": "größe", "b": b"\x00\xff"}
        sent = await queue.send("hello", attributes=attributes, group="tenant", trace="00-trace")
        [message] = await queue.receive()
        assert (message.text, message.attributes, message.group, message.trace) == ("hello", attributes, "tenant", "00-trace")
        assert message.message_id == sent.message_id
        assert message.sequence == sent.sequence
        assert message.receive_count == 1
        await queue.change_visibility(message, 0)
        [again] = await queue.receive()
        assert again.receive_count == 2
        await queue.delete(again.receipt_handle)
        assert await queue.receive() == []


async def test_each_entry_of_a_batch_answers_for_itself(real_broker: BrokerProcess) -> None:
    async with AsyncClient(real_broker.url) as client:
        queue = await fresh_queue(client, "entries")
        bad = OutgoingMessage(b"bad", {"bad name!": "x"})
        results = await queue.send_many([b"a", bad, b"b"], raise_on_failure=False)
        assert isinstance(results[0], SentMessage) and isinstance(results[2], SentMessage)
        assert isinstance(results[1], InvalidMessage)
        assert await drained(queue) == [b"a", b"b"]


async def test_a_peek_brings_as_many_as_it_was_asked_for_however_large_they_are(real_broker: BrokerProcess) -> None:
    async with AsyncClient(real_broker.url) as client:
        queue = await fresh_queue(client, "large")
        for place in range(7):
            await queue.send(b"%d" % place + bytes(1_000_000))
        for limit in (1, 6, 7, 10):
            assert [one.body[:1] for one in await queue.peek(limit)] == [b"%d" % place for place in range(min(limit, 7))]
        with pytest.raises(InvalidRequest):
            await queue.peek(0)


async def test_settings_tags_counts_peeking_and_purging(real_broker: BrokerProcess) -> None:
    async with AsyncClient(real_broker.url) as client:
        queue = await fresh_queue(client, "settings", visibility_timeout=12.5, tags={"team": "red"})
        with pytest.raises(ResourceInUse):
            await client.create_queue("settings", visibility_timeout=99)
        with pytest.raises(InvalidAttribute):
            unknown: Any = {"no_such_setting": 1}
            await queue.set(**unknown)
        await queue.tag(stage="test")
        await queue.untag("team")
        info = await queue.set(max_messages=3)
        assert (info.settings["visibility_timeout_ms"], info.settings["max_messages"]) == (12_500, 3)
        await queue.send_many([b"a", b"b", b"c"])
        with pytest.raises(QueueFull):
            await queue.send(b"d")
        [message] = await queue.receive()
        info = await queue.describe()
        assert (info.visible, info.in_flight, info.messages, info.tags) == (2, 1, 3, {"stage": "test"})
        assert info.oldest_age_seconds is not None
        assert [one.body for one in await queue.peek(state="in_flight")] == [message.body]
        assert sorted([one.body async for one in queue.browse(page=2)]) == [b"a", b"b", b"c"]
        assert await queue.purge() == 3
        assert "settings" in [name async for name in client.list_queues("sett")]


async def test_failing_messages_go_to_the_dead_letter_queue_and_come_back_by_redrive(real_broker: BrokerProcess) -> None:
    async with AsyncClient(real_broker.url) as client:
        dead = await fresh_queue(client, "orders-dead")
        queue = await fresh_queue(client, "orders", dead_letter_queue=dead, max_receive_count=2)
        await queue.send_many([b"%d" % number for number in range(100)])
        broken = True

        async def handle(message: AsyncMessage) -> None:
            if broken and int(message.body) % 10 == 0:
                raise ValueError("broken")

        worker = AsyncWorker(queue, handle, backoff=Backoff(first=0))
        await worker.run(idle_seconds=0.3)
        assert (worker.processed, worker.failed) == (90, 20)
        assert await dead.dead_letter_sources() == ["orders"]
        [message] = await dead.peek(1)
        assert message.dead_letter_source == "orders"
        broken = False
        task = await dead.redrive()
        assert await task.wait() == 10
        assert (await dead.move_tasks())[0].status.task_id == task.status.task_id
        await worker.run(idle_seconds=0.3)
        assert worker.processed == 100
        assert (await queue.describe()).messages == (await dead.describe()).messages == 0


async def test_forged_and_stale_handles_are_told_apart(real_broker: BrokerProcess) -> None:
    async with AsyncClient(real_broker.url) as client:
        queue = await fresh_queue(client, "handles")
        other = await fresh_queue(client, "handles-2")
        await queue.send(b"x")
        [message] = await queue.receive()
        with pytest.raises(ReceiptHandleInvalid):
            await other.delete(message)
        await message.delete()
        await message.delete()
        with pytest.raises(MessageNotInFlight):
            await message.release()


async def test_a_consumer_gets_everything_and_leaves_the_rest(real_broker: BrokerProcess) -> None:
    async with AsyncClient(real_broker.url) as client:
        queue = await fresh_queue(client, "pushed")
        await queue.send_many([b"%d" % number for number in range(3_000)])
        bodies = []
        async with queue.consume(credit=200) as messages:
            async for message in messages:
                bodies.append(message.body)
                await message.delete() if len(bodies) % 500 == 0 else None
                if len(bodies) == 2_000:
                    break
        assert bodies == [b"%d" % number for number in range(2_000)]
        assert len(await drained(queue)) == 3_000 - 4


async def test_fifo_order_and_deduplication(real_broker: BrokerProcess) -> None:
    async with AsyncClient(real_broker.url) as client:
        queue = await fresh_queue(client, "order.fifo", content_based_deduplication=True)
        first = await queue.send("once", group="g")
        assert await queue.send("once", group="g") == first
        await queue.send_many([OutgoingMessage(f"{number}", group=f"g{number % 3}") for number in range(300)])
        seen: dict[str | None, list[int]] = {}

        async def handle(message: AsyncMessage) -> None:
            if message.text != "once":
                seen.setdefault(message.group, []).append(int(message.text))

        await AsyncWorker(queue, handle, concurrency=5).run(idle_seconds=0.3)
        assert {group: len(numbers) for group, numbers in seen.items()} == {"g0": 100, "g1": 100, "g2": 100}
        assert all(numbers == sorted(numbers) for numbers in seen.values())


async def test_keys_let_in_who_has_one_and_roles_say_what_is_allowed(own_broker: BrokerProcess) -> None:
    async with AsyncClient(own_broker.url) as client:
        admin = await client.create_key("admin", "first")
    async with AsyncClient(own_broker.url) as client:
        with pytest.raises(AuthenticationRequired):
            await client.ping()
    async with AsyncClient(own_broker.url, key_id=admin.key_id, secret="wrong") as client:
        with pytest.raises(AuthenticationFailed):
            await client.ping()
    async with AsyncClient(own_broker.url, key_id=admin.key_id, secret=admin.secret) as client:
        reader = await client.create_key("reader")
        assert {key.role: key.secret for key in await client.list_keys()} == {"admin": "", "reader": ""}
        await client.create_queue("jobs")
        async with AsyncClient(own_broker.url, key_id=reader.key_id, secret=reader.secret) as weak:
            with pytest.raises(NotPermitted):
                await weak.queue("jobs").send(b"x")
        await client.delete_key(reader.key_id)


async def test_mutual_tls_with_a_real_broker(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    flags = ("--tls-cert", str(certificate), "--tls-key", str(key), "--tls-client-ca", str(authority.file))
    broker = BrokerProcess(tmp_path, *flags)
    broker.start(wait=False)
    try:
        url = broker.url.replace("penstock://", "penstocks://")
        async with AsyncClient(url, tls=authority.client(certified=True), connect_timeout=30) as client:
            queue = await client.create_queue("secret")
            await queue.send(b"x" * 500_000)
            [message] = await queue.receive()
            assert len(message.body) == 500_000
        with Client(url, tls=authority.client(certified=True)) as blocking:
            assert blocking.queue("secret").describe().in_flight == 1
    finally:
        broker.stop()


# kill -9 in the middle


async def test_nothing_is_lost_or_doubled_when_the_broker_is_killed_under_sends(own_broker: BrokerProcess) -> None:
    async with AsyncClient(own_broker.url) as client:
        queue = await client.create_queue("jobs")
        acknowledged = []

        async def producer(number: int) -> None:
            for turn in range(100):
                await queue.send(b"%d/%d" % (number, turn))
                acknowledged.append(b"%d/%d" % (number, turn))

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(producer, number)
            for part in (400, 1_000):
                while len(acknowledged) < part:
                    await anyio.lowlevel.checkpoint()
                own_broker.kill()
                await anyio.to_thread.run_sync(own_broker.start)
        assert sorted(await drained(queue)) == sorted(acknowledged)
        assert len(acknowledged) == 2_000


async def test_fifo_order_survives_a_killed_broker(own_broker: BrokerProcess) -> None:
    async with AsyncClient(own_broker.url) as client:
        queue = await client.create_queue("order.fifo")
        sent: list[int] = []

        async def producer() -> None:
            for number in range(300):
                await queue.send(f"{number}", group="g", deduplication_id=f"{number}")
                sent.append(number)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(producer)
            while len(sent) < 100:
                await anyio.lowlevel.checkpoint()
            own_broker.kill()
            await anyio.to_thread.run_sync(own_broker.start)
        assert [int(body) for body in await drained(queue)] == list(range(300))


async def test_a_worker_outlives_killed_and_stopped_brokers(own_broker: BrokerProcess) -> None:
    done: set[bytes] = set()
    async with AsyncClient(own_broker.url) as client:
        queue = await client.create_queue("jobs", visibility_timeout=2)
        await queue.send_many([b"%d" % number for number in range(500)])
        worker: AsyncWorker

        async def handle(message: AsyncMessage) -> None:
            done.add(message.body)
            if len(done) == 500:
                worker.stop()

        worker = AsyncWorker(queue, handle, concurrency=5, visibility_timeout=2)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            while len(done) < 50:
                await anyio.lowlevel.checkpoint()
            own_broker.kill()
            await anyio.to_thread.run_sync(own_broker.start)
            while len(done) < 200:
                await anyio.lowlevel.checkpoint()
            assert await anyio.to_thread.run_sync(own_broker.stop) == 0
            await anyio.to_thread.run_sync(own_broker.start)
    assert len(done) == 500


def test_the_blocking_client_does_the_same(real_broker: BrokerProcess) -> None:
    with Client(real_broker.url) as client:
        queue = client.create_queue("blocking")
        queue.purge()
        queue.send_many([b"%d" % number for number in range(200)])
        seen = []
        worker = Worker(queue, lambda message: seen.append(message.body), concurrency=4)
        worker.run(idle_seconds=0.3)
        assert sorted(seen) == sorted(b"%d" % number for number in range(200))
        assert queue.describe().messages == 0
