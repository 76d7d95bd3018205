"""Consumers: push with credit, reconnects, several takers, and what happens to messages nobody took."""

from __future__ import annotations

import asyncio
import threading

import anyio
import pytest
from penstock import AsyncClient, AsyncConsumer, Client, OutgoingMessage
from penstock._async import consumer as consumer_module
from penstock._async import link as link_module
from penstock._sync.link import Request
from penstock.errors import Draining, NotConnected, QueueDoesNotExist, StoreFailed
from penstock_protocol import queue_messages as queues

from tests.clients.fake_broker import FakeBroker, Waiter, turns

pytestmark = pytest.mark.anyio


def consumer_of(broker: FakeBroker) -> Waiter:
    """The broker's side of the only consumer."""
    [waiter] = broker.queue("jobs").waiters
    return waiter


async def pushed(broker: FakeBroker, count: int) -> None:
    """Returns once the only consumer was pushed so many messages."""
    await broker.until(lambda: [waiter.pushed for waiter in broker.queue("jobs").waiters] == [count])


async def take(consumer: AsyncConsumer, count: int) -> list[bytes]:
    """The next bodies."""
    bodies = []
    for _ in range(count):
        message = await consumer.next()
        assert message is not None
        bodies.append(message.body)
    return bodies


async def test_messages_are_pushed_in_order_as_they_come(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"a", b"b"])
        bodies = []
        async with queue.consume(credit=10) as messages:
            async for message in messages:
                bodies.append(message.body)
                await message.delete()
                if len(bodies) == 2:
                    await queue.send(b"c")
                if len(bodies) == 3:
                    break
    assert bodies == [b"a", b"b", b"c"]
    assert broker.queue("jobs").bodies == []


async def test_the_broker_never_pushes_more_than_the_credit(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"x"] * 50)
        async with queue.consume(credit=10) as messages:
            await pushed(broker, 10)
            assert consumer_of(broker).credit == 0
            await take(messages, 4)
            await client.ping()
            assert consumer_of(broker).pushed == 10
            await take(messages, 1)
            await pushed(broker, 15)
            await take(messages, 45)
    assert broker.violations == []


async def test_credit_is_given_back_in_lumps_of_half_of_it(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"x"] * 100)
        async with queue.consume(credit=10) as messages:
            await take(messages, 100)
    assert {message.messages for message in broker.asked("Credit")} == {5}
    assert len(broker.asked("Credit")) <= 20


async def test_a_credit_of_one_gives_one_message_at_a_time(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"a", b"b", b"c"])
        async with queue.consume(credit=1) as messages:
            assert await take(messages, 3) == [b"a", b"b", b"c"]


async def test_what_is_discarded_makes_room_for_more(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"old"] * 10)
        async with queue.consume(credit=10) as messages:
            await pushed(broker, 10)
            while len(messages.buffered) < 10:
                await turns()
            for message in messages.buffered:
                assert messages.discard(message)
            await queue.send_many([b"new"] * 10)
            assert await take(messages, 10) == [b"new"] * 10


async def test_large_messages_are_fetched_ahead_in_smaller_numbers(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "BUFFER_BYTES", 100_000)
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([bytes(10_000)] * 50)
        async with queue.consume() as messages:
            await pushed(broker, 10)  # one, before any size is known, then what fits
            for count in range(1, 41):
                await take(messages, 1)
                await client.ping()
                assert consumer_of(broker).given - count <= 10
            await queue.send_many([b"small"] * 8_000)
            await take(messages, 8_010)
    assert {message.credit for message in broker.asked("Consume")} == {1}
    assert max(message.messages for message in broker.asked("Credit")) >= 500


async def test_attributes_count_as_size_too(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "BUFFER_BYTES", 100_000)
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([OutgoingMessage(b"x", {"a": bytes(9_999)})] * 50)
        async with queue.consume() as messages:
            await pushed(broker, 10)
            await take(messages, 50)


async def test_a_stopped_consumer_gives_back_its_buffer_and_keeps_what_was_taken_out(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"in hand", b"buffered"])
        async with queue.consume(credit=3) as messages:
            in_hand = await messages.next()
            await pushed(broker, 2)
            messages.stop()
            await broker.until(lambda: broker.asked("ChangeVisibility") != [])
            await queue.send(b"late")
            await client.ping()
            assert b"in hand" not in broker.queue("jobs").visible
            assert await messages.next() is None
            assert in_hand is not None
            await in_hand.delete()
    assert sorted(broker.queue("jobs").visible) == [b"buffered", b"late"]


async def test_leaving_the_block_releases_what_was_not_deleted(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"a", b"b", b"c"])
        async with queue.consume(credit=10) as messages:
            async for message in messages:
                await message.delete()
                break
        await broker.until(lambda: not broker.queue("jobs").waiters)
        assert broker.queue("jobs").visible == [b"b", b"c"]


async def test_without_release_on_close_only_the_buffer_is_released(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"in hand", b"buffered", b"buffered too"])
        async with queue.consume(credit=10, release_on_close=False) as messages:
            in_hand = await messages.next()
        await broker.until(lambda: broker.queue("jobs").visible == [b"buffered", b"buffered too"])
        assert in_hand is not None
        await in_hand.delete()
    assert broker.queue("jobs").bodies == [b"buffered", b"buffered too"]


async def test_messages_pushed_while_the_consumer_ends_are_released(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        consumer = queue.consume(credit=10, release_on_close=False)
        async with consumer:
            await broker.until(lambda: bool(broker.queue("jobs").waiters))
            with client.link.mutex:
                consumer._closed = True  # the broker has not heard of it yet
            await queue.send(b"too late")
            consumer._closed = False
        await broker.until(lambda: broker.queue("jobs").visible == [b"too late"])


async def test_a_consumer_is_opened_again_after_its_connection_was_lost(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"a", b"b", b"c"])
        async with queue.consume(credit=2) as messages:
            first = await messages.next()
            assert first is not None
            await first.delete()
            broker.drop_all()
            await broker.until(lambda: len(broker.asked("Consume")) == 2)
            assert sorted(await take(messages, 2)) == [b"b", b"c"]
    assert broker.connections == 2
    assert [message.credit for message in broker.asked("Consume")] == [2, 2]


async def test_credit_of_a_lost_connection_never_reaches_the_next_one(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "REOPEN_SECONDS", 0.5)
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"x"] * 100)
        async with queue.consume(credit=10, release_on_close=False) as messages:
            await pushed(broker, 10)
            broker.drop_all()
            await broker.until(lambda: broker.connections == 2)
            await client.ping()
            await take(messages, 10)  # the connection is new, the consumer not there yet
            await client.ping()
            assert broker.asked("Credit") == []
            await take(messages, 90)
    assert broker.violations == []


async def test_with_its_buffer_kept_a_consumer_asks_only_for_what_it_has_room_for(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"%d" % number for number in range(10)])
        async with queue.consume(credit=4, release_on_close=False) as messages:
            await pushed(broker, 4)
            bodies = await take(messages, 1)
            broker.drop_all()
            await broker.until(lambda: len(broker.asked("Consume")) == 2)
            assert broker.asked("Consume")[1].credit == 1
            bodies += await take(messages, 9)
    assert bodies == [b"%d" % number for number in range(10)]


@pytest.mark.parametrize("trouble", [Draining(), StoreFailed()])
async def test_a_consumer_survives_a_broker_in_trouble(broker: FakeBroker, trouble: Draining | StoreFailed) -> None:
    broker.fault("Consume", trouble, trouble)
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        async with queue.consume() as messages:
            await queue.send(b"x")
            assert await take(messages, 1) == [b"x"]


async def test_a_consumer_of_a_missing_queue_raises_that_to_every_taker(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client, client.queue("nowhere").consume() as messages:
        for _ in range(2):
            with pytest.raises(QueueDoesNotExist):
                await messages.next()


async def test_a_consumer_without_a_broker_says_so_soon() -> None:
    with FakeBroker() as broker:
        url = broker.url
    async with AsyncClient(url, connect_timeout=0.2) as client:
        with pytest.raises(NotConnected):
            async for _ in client.queue("jobs").consume():
                pass


async def test_next_gives_none_when_nothing_comes_in_time(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client, client.queue("jobs").consume() as messages:
        assert await messages.next(0.01) is None


async def test_each_message_goes_to_one_of_many_takers(broker: FakeBroker) -> None:
    taken: list[bytes] = []
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        async with queue.consume(credit=20) as messages, anyio.create_task_group() as tasks:

            async def taker() -> None:
                taken.extend(await take(messages, 10))

            for _ in range(10):
                tasks.start_soon(taker)
            await turns()
            for number in range(100):
                tasks.start_soon(queue.send, b"%d" % number)
    assert sorted(taken) == sorted(b"%d" % number for number in range(100))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_taker_that_is_cancelled_after_it_was_woken_wakes_another(broker: FakeBroker) -> None:
    """Only asyncio's own Task.cancel can do that; asyncio.wait_for uses it."""
    async with AsyncClient(broker.url) as client, client.queue("jobs").consume(release_on_close=False) as messages:
        hasty = asyncio.create_task(messages.next())
        await turns()
        patient = asyncio.create_task(messages.next())
        await turns()
        delivery = queues.Delivery(bytes(16), 0, 0, 1, 1, 1, [b"x"])
        messages._pushed(queues.ReceiveReply(1, [delivery], 0))
        hasty.cancel()
        message = await patient
        assert hasty.cancelled()
        assert message is not None and message.body == b"x"


async def test_closing_wakes_who_waits(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        consumer = client.queue("jobs").consume()
        async with consumer, anyio.create_task_group() as tasks:

            async def taker() -> None:
                assert [message async for message in consumer] == []

            tasks.start_soon(taker)
            tasks.start_soon(taker)
            await turns()
            consumer.close()
            consumer.close()


def test_a_consumer_that_is_closed_while_another_thread_asks_anew_for_it_takes_nothing_any_more(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(broker.url) as client:
        link = client.link
        queue = client.queue("jobs")
        queue.send(b"first")
        consumer = queue.consume(credit=10)
        for message in consumer:
            message.delete()
            break
        real = link.submit
        tried, asked = threading.Event(), threading.Event()

        def close() -> None:
            if link.mutex.acquire(blocking=False):  # It can come in between.
                consumer.close()
                link.mutex.release()
            tried.set()
            consumer.close()

        closer = threading.Thread(target=close)

        def submit(request: Request) -> None:
            mine = request.operation.name == "Consume" and not asked.is_set()
            if mine:
                closer.start()
                tried.wait(10)
            real(request)
            if mine:
                asked.set()

        monkeypatch.setattr(link, "submit", submit)
        broker.drop_all()
        assert asked.wait(10)
        closer.join(10)
        client.ping()
        assert broker.queue("jobs").waiters == []
        queue.send(b"x")
        assert [message.body for message in queue.receive()] == [b"x"]
