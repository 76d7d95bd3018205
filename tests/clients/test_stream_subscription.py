"""Registered consumers: what the broker pushes comes once and in order, with credit, over lost connections, splits and merges."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from penstock import AsyncClient, AsyncSubscription, Record
from penstock.errors import (
    Draining,
    NotConnected,
    PositionTrimmed,
    ResourceInUse,
    StoreFailed,
    StreamConsumerDoesNotExist,
    StreamDoesNotExist,
)
from penstock.types import StreamConsumerInfo

from tests.clients.fake_broker import AFTER, BEFORE, turns
from tests.clients.fake_streams import StreamBroker
from tests.clients.test_stream_reading import check_order, put

pytestmark = pytest.mark.anyio


@pytest.fixture
def broker() -> Iterator[StreamBroker]:
    """A fake broker with the streams one (of one shard) and four."""
    with StreamBroker() as fake:
        fake.stream("one")
        fake.stream("four", 4)
        yield fake
        assert fake.violations == []


async def take(subscription: AsyncSubscription, count: int) -> list[int]:
    """The next records."""
    return [int((await anext(subscription)).data) for _ in range(count)]


async def test_consumers_are_registered_listed_described_and_deregistered(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        stream = client.stream("one")
        consumer = await stream.register_consumer("audit")
        info = StreamConsumerInfo("one", "audit", "arn:one:audit", datetime.fromtimestamp(1, UTC), 0, 0)
        assert (consumer.name, consumer.info) == ("audit", info)
        await stream.register_consumer("audit")
        await stream.register_consumer("a")
        assert [one.name for one in await stream.list_consumers()] == ["a", "audit"]
        assert (await stream.registered_consumer("audit")).info == info
        await stream.deregister_consumer("audit")
        with pytest.raises(StreamConsumerDoesNotExist):
            await stream.registered_consumer("audit")
        with pytest.raises(StreamDoesNotExist):
            await client.stream("none").register_consumer("audit")


async def test_records_come_as_they_are_put(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        await put(client, "one", 0, 20)
        consumer = await client.stream("one").register_consumer("audit")
        async with consumer.subscribe(0, "trim_horizon") as records:
            assert await anext(records) == Record(b"0", "key 0", 0, 0, 1_000)
            assert await take(records, 19) == list(range(1, 20))
            assert records.behind_seconds == 0
            await put(client, "one", 20, 30)
            assert await take(records, 10) == list(range(20, 30))
        await broker.until(lambda: not broker.subscriptions)
        assert [record async for record in records] == []


@pytest.mark.parametrize(
    ("start", "first"),
    [("trim_horizon", 0), (("at", 13), 13), (("after", 13), 14), ("latest", 30), (datetime.fromtimestamp(1.5, UTC), 10)],
)
async def test_a_subscription_begins_where_it_is_told(broker: StreamBroker, start: Any, first: int) -> None:
    async with AsyncClient(broker.url) as client:
        await put(client, "one", 0, 10)
        broker.now_ms = 2_000
        await put(client, "one", 10, 30)
        consumer = await client.stream("one").register_consumer("audit")
        async with consumer.subscribe(0, start) as records:
            if first == 30:
                assert await records.next(0) is None
                await broker.until(lambda: len(broker.subscriptions) == 1)
            found = await take(records, 30 - first)
            await put(client, "one", 30, 40)
            assert found + await take(records, 10) == list(range(first, 40))
            assert records.positions == {0: 40}


async def test_the_broker_may_never_push_more_than_the_credit_but_for_the_rest_of_a_batch(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        await put(client, "one", 0, 200)
        consumer = await client.stream("one").register_consumer("audit")
        async with consumer.subscribe(0, "trim_horizon", credit=25) as records:
            assert await take(records, 1) == [0]
            await turns(200)
            await client.ping()
            # (The batch that was opened counts as taken out: thirty may be pushed beyond it.)
            assert broker.subscriptions[0].position <= 40
            assert await take(records, 199) == list(range(1, 200))


async def test_large_records_are_fetched_ahead_in_small_numbers(broker: StreamBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock._async.subscription.BUFFER_BYTES", 300)
    monkeypatch.setattr("penstock._async.subscription.LARGEST_RECORD_BYTES", 100)
    async with AsyncClient(broker.url) as client:
        await put(client, "one", 0, 200)
        consumer = await client.stream("one").register_consumer("audit")
        async with consumer.subscribe(0, "trim_horizon", credit=10_000) as records:
            found = await take(records, 10)
            await turns(200)
            await client.ping()
            assert broker.subscriptions[0].position < 60
            assert found + await take(records, 190) == list(range(200))


@pytest.mark.parametrize("credit", [0, 100_001])
async def test_a_credit_out_of_range_is_refused_at_once(broker: StreamBroker, credit: int) -> None:
    async with AsyncClient(broker.url) as client:
        consumer = await client.stream("one").register_consumer("audit")
        with pytest.raises(ValueError, match="from 1 to 100000"):
            consumer.subscribe(credit=credit)


async def test_after_a_lost_connection_it_goes_on_without_a_gap_or_a_repetition(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        await put(client, "one", 0, 100)
        consumer = await client.stream("one").register_consumer("audit")
        async with consumer.subscribe(0, "trim_horizon", credit=30) as records:
            found = []
            for _ in range(10):
                found += await take(records, 10)
                broker.drop_all()
            await put(client, "one", 100, 110)
            assert found + await take(records, 10) == list(range(110))
        assert len(broker.asked("SubscribeToShard")) > 3


@pytest.mark.parametrize("fault", [BEFORE, AFTER, Draining(), StoreFailed()])
async def test_trouble_at_the_broker_is_waited_out(broker: StreamBroker, fault: Any) -> None:
    broker.fault("SubscribeToShard", fault, fault)
    async with AsyncClient(broker.url) as client:
        await put(client, "one", 0, 20)
        consumer = await client.stream("one").register_consumer("audit")
        async with consumer.subscribe(0, "trim_horizon") as records:
            assert await take(records, 20) == list(range(20))


async def test_a_subscription_that_waited_for_latest_misses_nothing_over_a_lost_connection(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        await put(client, "one", 0, 10)
        consumer = await client.stream("one").register_consumer("audit")
        async with consumer.subscribe(0) as records:
            assert await records.next(0) is None
            await broker.until(lambda: len(broker.subscriptions) == 1)
            broker.drop_all()
            await put(client, "one", 10, 20)
            assert await take(records, 10) == list(range(10, 20))


async def test_all_shards_come_and_children_after_their_parents(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        await put(client, "four", 0, 100)
        consumer = await client.stream("four").register_consumer("audit")
        async with consumer.subscribe(None, "trim_horizon", credit=20) as records:
            found = await take(records, 60)
            broker.split("four", 1)
            broker.merge("four", 2, 3)
            await put(client, "four", 100, 200)
            broker.split("four", 0)
            await put(client, "four", 200, 300)
            found += await take(records, 240)
        check_order(found, 300)


async def test_a_single_shard_ends_when_it_is_read_out(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        await put(client, "one", 0, 20)
        broker.split("one", 0)
        consumer = await client.stream("one").register_consumer("audit")
        records = consumer.subscribe(0, "trim_horizon")
        assert [int(record.data) async for record in records] == list(range(20))


async def test_what_ends_it_is_raised_after_what_came_before(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        await put(client, "one", 0, 20)
        stream = client.stream("one")
        consumer = await stream.register_consumer("audit")
        async with consumer.subscribe(0, "trim_horizon") as records:
            assert await take(records, 1) == [0]
            await broker.until(lambda: broker.subscriptions[0].position == 20)
            await stream.deregister_consumer("audit")
            assert await take(records, 19) == list(range(1, 20))
            with pytest.raises(StreamConsumerDoesNotExist):
                await anext(records)
        consumer = await stream.register_consumer("audit")
        async with consumer.subscribe(0) as before, consumer.subscribe(0) as after:
            assert await before.next(0) is None
            await broker.until(lambda: len(broker.subscriptions) == 1)
            assert await after.next(0) is None
            with pytest.raises(ResourceInUse):
                await anext(before)
            broker.fault("SubscribeToShard", PositionTrimmed())
            with pytest.raises(PositionTrimmed):
                await anext(consumer.subscribe(0, ("at", 3)))


async def test_without_a_broker_it_says_so() -> None:
    async with AsyncClient("penstock://127.0.0.1:1", connect_timeout=0.05) as client:
        with pytest.raises(NotConnected):
            await client.stream("one").register_consumer("audit")


async def test_where_it_begins_is_known_before_the_first_record_comes(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        await put(client, "one", 0, 30)
        consumer = await client.stream("one").register_consumer("audit")
        async with consumer.subscribe(0, datetime.fromtimestamp(9, UTC)) as records:
            assert await records.next(0) is None
            await broker.until(lambda: len(broker.subscriptions) == 1)
            await client.ping()
            assert records.positions == {0: 30}


async def test_taking_out_can_be_cancelled_without_losing_a_record(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        consumer = await client.stream("one").register_consumer("audit")
        async with consumer.subscribe(0, "trim_horizon") as records:
            for number in range(0, 50, 10):
                assert await records.next(0) is None
                await put(client, "one", number, number + 10)
                assert await take(records, 10) == list(range(number, number + 10))
