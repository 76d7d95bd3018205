"""The producer: a bounded buffer, flushed by size and by time, that keeps order and makes no second record."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from penstock import AsyncClient, Client, OutgoingRecord, Producer, PutFailed, RecordBatch
from penstock._async import producer as producers
from penstock._async.putting import WAYS
from penstock._sync.putting import PutBatch
from penstock.errors import (
    ClientClosed,
    Draining,
    InvalidRequest,
    OutcomeUnknown,
    RecordTooLarge,
    RequestTimeout,
    StoreFailed,
    StreamDoesNotExist,
)

from tests.clients.fake_broker import AFTER, BEFORE, HOLD, SILENT, turns
from tests.clients.fake_streams import StreamBroker

pytestmark = pytest.mark.anyio

FOREVER = 1_000.0
"""A linger that no test lives to see."""


@pytest.fixture
def broker() -> Iterator[StreamBroker]:
    """A fake broker with the streams one (of one shard) and eight."""
    with StreamBroker() as fake:
        fake.stream("one")
        fake.stream("eight", 8)
        yield fake
        assert fake.violations == []


def frames(broker: StreamBroker) -> list[int]:
    """How many records each put had."""
    return [message.count for message in broker.asked("PutRecords")]


def data(broker: StreamBroker, name: str = "one") -> list[bytes]:
    return [one for one, _ in broker.stream(name).records]


async def test_a_full_batch_goes_out_at_once_and_the_rest_at_the_end(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        async with client.stream("one").producer(max_records=10, linger=FOREVER) as producer:
            for number in range(25):
                await producer.put(b"%d" % number, "k")
            await broker.until(lambda: frames(broker) == [10, 10])
        assert producer.delivered == 25
        assert producer.buffered_bytes == 0
    assert frames(broker) == [10, 10, 5]
    assert data(broker) == [b"%d" % number for number in range(25)]


async def test_bytes_fill_a_batch_as_well(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client, client.stream("one").producer(max_bytes=1_000, linger=FOREVER) as producer:
        await producer.put_columns([bytes(300)] * 7, ["k"] * 7)
        await producer.put(bytes(5_000), "k")
        for _ in range(4):
            await producer.put(bytes(300), "k")
    assert frames(broker) == [3, 3, 1, 1, 3, 1]


async def test_records_wait_no_longer_than_their_linger(broker: StreamBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producers, "LOOK_SECONDS", FOREVER)
    async with AsyncClient(broker.url) as client, client.stream("one").producer(linger=0.05) as producer:
        await producer.put(b"one", "k")
        assert frames(broker) == []
        await broker.until(lambda: frames(broker) == [1])
        await producer.put(b"two", "k")
        await broker.until(lambda: frames(broker) == [1, 1])


async def test_batches_grow_while_one_is_on_its_way(broker: StreamBroker) -> None:
    broker.fault("PutRecords", HOLD)
    async with AsyncClient(broker.url) as client, client.stream("one").producer(linger=0) as producer:
        await producer.put(b"first", "k")
        await broker.until(lambda: frames(broker) == [1])
        for number in range(100):
            await producer.put(b"%d" % number, "k")
        assert frames(broker) == [1]
        broker.release_held()
        await producer.flush()
        assert frames(broker) == [1, 100]


@pytest.mark.parametrize("name", ["one", "eight"])
async def test_many_records_are_grouped_by_shard_in_their_order(broker: StreamBroker, name: str) -> None:
    async with AsyncClient(broker.url) as client:
        async with client.stream(name).producer(max_records=300) as producer:
            for start in range(0, 5_000, 500):
                records = [(b"%d" % number, f"key {number % 100}") for number in range(start, start + 500)]
                await producer.put_many(records)
        assert producer.delivered == 5_000
    assert max(frames(broker)) == 300
    for shard in broker.stream(name).shards.values():
        numbers = [int(one) for one, _ in shard.records]
        assert numbers == sorted(numbers)
    assert sorted(map(int, data(broker, name))) == list(range(5_000))


async def test_columns_for_many_shards_travel_together_by_shard_not_call_by_call(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        async with client.stream("eight").producer(linger=FOREVER) as producer:
            for start in range(0, 200, 2):
                await producer.put_columns([b"%d" % start, b"%d" % (start + 1)], [f"key {start}", f"key {start + 1}"])
            assert frames(broker) == []
        assert producer.delivered == 200
    assert len(frames(broker)) == 8
    assert sorted(map(int, data(broker, "eight"))) == list(range(200))


async def test_columns_wait_no_longer_than_their_linger(broker: StreamBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producers, "LOOK_SECONDS", FOREVER)
    async with AsyncClient(broker.url) as client, client.stream("eight").producer(linger=0.05) as producer:
        await producer.put_columns([b"one"], ["k"])
        assert frames(broker) == []
        await broker.until(lambda: frames(broker) == [1])
        await producer.put_columns([b"two"], ["k"])
        await broker.until(lambda: frames(broker) == [1, 1])


async def test_a_record_put_after_columns_does_not_overtake_them(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client, client.stream("eight").producer(linger=FOREVER) as producer:
        await producer.put_columns([b"1", b"2"], ["k", "k"])
        await producer.put(b"3", "k")
        await producer.put_columns([b"4"], ["k"])
        await producer.flush()
        await producer.put_columns([b"5"], ["k"])
    assert data(broker, "eight") == [b"1", b"2", b"3", b"4", b"5"]
    assert frames(broker) == [4, 1]


async def test_with_many_shards_a_bounded_number_of_batches_is_on_its_way_and_all_have_their_turn(broker: StreamBroker) -> None:
    broker.stream("many", 100)
    broker.fault("PutRecords", *[HOLD] * WAYS)
    async with AsyncClient(broker.url) as client:
        async with client.stream("many").producer(linger=0) as producer:
            keys = [f"key {number}" for number in range(2_000)]
            await producer.put_columns([b"first"] * 2_000, keys)
            await broker.until(lambda: len(frames(broker)) == WAYS)
            await producer.put_columns([b"second"] * 2_000, keys)
            await turns()
            assert len(frames(broker)) == WAYS
            broker.release_held()
        assert producer.delivered == 4_000
    # Those whose turn came later had both in one batch.
    assert len(frames(broker)) == 100 + WAYS
    for shard in broker.stream("many").shards.values():
        assert sorted(shard.records, reverse=True, key=lambda record: record[0] == b"first") == shard.records


async def test_a_client_that_is_closed_tells_of_the_batches_of_a_thousand_shards(broker: StreamBroker) -> None:
    broker.stream("many", 1_000)
    broker.fault("PutRecords", *[HOLD] * WAYS)
    client = AsyncClient(broker.url)
    async with client:
        with pytest.raises((ClientClosed, PutFailed)):
            async with client.stream("many").producer(linger=0) as producer:
                await producer.put_columns([b"first"] * 20_000, [f"key {number}" for number in range(20_000)])
                await broker.until(lambda: len(frames(broker)) == WAYS)
                await client.aclose()
    assert producer.buffered_bytes == 0


async def test_order_is_kept_and_nothing_doubled_over_lost_connections_and_a_broker_in_trouble(broker: StreamBroker) -> None:
    broker.fault("PutRecords", AFTER, StoreFailed(), BEFORE, OutcomeUnknown(), Draining(), AFTER)
    async with AsyncClient(broker.url) as client, client.stream("one").producer(max_records=10) as producer:
        for number in range(200):
            await producer.put(b"%d" % number, "k")
    assert data(broker) == [b"%d" % number for number in range(200)]
    assert broker.repeated == 2


async def test_a_split_and_a_merge_in_the_middle_are_followed_in_order(broker: StreamBroker) -> None:
    stream = broker.stream("one")
    async with AsyncClient(broker.url) as client:
        async with client.stream("one").producer(max_records=20, linger=0) as producer:
            for number in range(2_000):
                await producer.put(b"%d" % number, f"key {number % 10}")
                if number == 500:
                    await broker.until(lambda: bool(stream.shards[0].records))
                    broker.split("one", 0)
                if number == 1_000:
                    await broker.until(lambda: bool(stream.shards[1].records and stream.shards[2].records))
                    broker.merge("one", 1, 2)
        assert producer.delivered == 2_000
    assert all(stream.shards[number].records for number in range(4))
    for key in range(10):
        numbers = [int(one) for one, owner in stream.records if owner == f"key {key}"]
        assert numbers == list(range(key, 2_000, 10))


@pytest.mark.parametrize("many", [False, True])
async def test_what_is_known_of_a_split_before_its_shard_has_answered_overtakes_nothing(broker: StreamBroker, many: bool) -> None:
    stream = broker.stream("two", 2)
    middle = stream.shards[1].low
    async with AsyncClient(broker.url) as client:
        async with client.stream("two").producer(linger=0) as producer:
            await producer.put(b"before", "k", hash_key=0)
            await producer.flush()
            broker.split("two", 0)
            broker.split("two", 1)
            broker.fault("PutRecords", HOLD)
            await producer.put(b"first", "k", hash_key=middle)  # its shard is closed, which is told late
            await broker.until(lambda: len(frames(broker)) == 2)
            await producer.put(b"x", "k", hash_key=0)  # this one hears of the new shards meanwhile
            await broker.until(lambda: len(broker.asked("ListShards")) == 3)
            await turns()
            for number in range(3):
                if many:
                    await producer.put_many([OutgoingRecord(b"later %d" % number, "k", middle)])
                else:
                    await producer.put(b"later %d" % number, "k", hash_key=middle)
                await turns()
            broker.release_held()
        assert producer.delivered == 6
    assert [one for one, _ in stream.shards[4].records] == [b"first", b"later 0", b"later 1", b"later 2"]
    assert b"x" in [one for one, _ in stream.records]


async def test_put_waits_while_the_buffer_is_full(broker: StreamBroker) -> None:
    broker.fault("PutRecords", HOLD)
    put = 0
    async with AsyncClient(broker.url) as client, anyio.create_task_group() as tasks:
        async with client.stream("one").producer(max_records=10, buffer_bytes=1_010, linger=0) as producer:

            async def work() -> None:
                nonlocal put
                for _ in range(100):
                    await producer.put(bytes(100), "k")
                    put += 1

            tasks.start_soon(work)
            await broker.until(lambda: len(frames(broker)) == 1)
            await turns(500)
            assert put == 10
            assert producer.buffered_bytes == 1_010
            broker.release_held()
            await broker.until(lambda: sum(frames(broker)) == 100)
        assert producer.delivered == 100


async def test_more_than_the_buffer_holds_is_taken_when_it_is_empty(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        async with client.stream("one").producer(buffer_bytes=10) as producer:
            await producer.put_columns([bytes(100)] * 50, ["k"] * 50)
            await producer.put(b"x", "k")
        assert producer.delivered == 51


async def test_failures_are_told_once_with_their_records(broker: StreamBroker) -> None:
    broker.fault("PutRecords", StreamDoesNotExist("gone"))
    async with AsyncClient(broker.url) as client:
        async with client.stream("one").producer(linger=FOREVER) as producer:
            await producer.put(b"a", "k")
            await producer.put(b"b", "l", hash_key=5)
            with pytest.raises(PutFailed) as raised:
                await producer.flush()
            assert raised.value.records == [OutgoingRecord(b"a", "k"), OutgoingRecord(b"b", "l", 5)]
            assert {place: type(one) for place, one in raised.value.failures.items()} == dict.fromkeys((0, 1), StreamDoesNotExist)
            await producer.put_many(raised.value.records)
            await producer.flush()
        assert producer.delivered == 2
        broker.fault("PutRecords", StreamDoesNotExist("gone"))
        with pytest.raises(PutFailed):
            async with client.stream("one").producer() as producer:
                await producer.put(b"c", "k")
    assert data(broker) == [b"a", b"b"]


async def test_a_failure_stops_the_next_put(broker: StreamBroker) -> None:
    broker.fault("PutRecords", StreamDoesNotExist("gone"))
    async with AsyncClient(broker.url) as client, client.stream("one").producer(linger=0) as producer:
        await producer.put(b"a", "k")
        with pytest.raises(PutFailed):
            while True:
                await producer.put(b"again", "k")
                await anyio.lowlevel.checkpoint()


async def test_a_record_that_cannot_be_put_disturbs_no_other(broker: StreamBroker) -> None:
    broker.stream("one").max_record_bytes = 10
    async with AsyncClient(broker.url) as client:
        with pytest.raises(PutFailed) as raised:
            async with client.stream("one").producer() as producer:
                with pytest.raises(RecordTooLarge):
                    await producer.put(bytes(11), "k")
                with pytest.raises(InvalidRequest):
                    await producer.put(b"x", "")
                with pytest.raises(TypeError):
                    await producer.put_many([(b"x", "k"), (5, "k")])  # type: ignore[list-item]  # that is the point
                await producer.put_many([(b"good", "k"), (bytes(11), "k"), (b"fine", "k")])
        assert raised.value.records == [OutgoingRecord(bytes(11), "k")]
        assert (producer.delivered, producer.buffered_bytes) == (2, 0)
    assert data(broker) == [b"good", b"fine"]


async def test_what_is_not_delivered_in_time_is_told(broker: StreamBroker) -> None:
    broker.fault("PutRecords", SILENT)
    async with AsyncClient(broker.url) as client:
        with pytest.raises(PutFailed) as raised:
            async with client.stream("one").producer(delivery_timeout=0.2) as producer:
                await producer.put(b"a", "k")
        assert isinstance(raised.value.failures[0], RequestTimeout)


async def test_compressed_batches_are_read_as_they_were_put(broker: StreamBroker) -> None:
    records = [(b"click %d " % number * 20, f"key {number}") for number in range(1_000)]
    async with AsyncClient(broker.url) as client, client.stream("one").producer(compression="zstd") as producer:
        await producer.put_many(records)
    [message] = broker.asked("PutRecords")
    assert message.codec == 1
    assert len(message.blob) * 5 < message.size_bytes
    assert broker.stream("one").records == records
    assert isinstance(RecordBatch(0, 0, 0, broker.stream("one").shards[0].batches[0][2]).data, list)


async def test_a_block_that_ends_with_an_error_sends_what_it_has(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        with pytest.raises(ZeroDivisionError):
            async with client.stream("one").producer(linger=FOREVER) as producer:
                await producer.put(b"a", "k")
                raise ZeroDivisionError
        with anyio.CancelScope() as scope:
            async with client.stream("one").producer(linger=FOREVER) as producer:
                await producer.put(b"b", "k")
                scope.cancel()
                await anyio.lowlevel.checkpoint()
    assert data(broker) == [b"a", b"b"]


async def test_a_producer_that_is_not_open_says_so(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        producer = client.stream("one").producer()
        with pytest.raises(ClientClosed):
            await producer.put(b"x", "k")
        async with producer:
            await producer.put(b"x", "k")
        with pytest.raises(ClientClosed):
            await producer.put_many([(b"x", "k")])


@pytest.mark.parametrize(
    "wrong",
    [{"max_records": 0}, {"max_records": 10_001}, {"max_bytes": 0}, {"buffer_bytes": 0}, {"linger": -1}, {"compression": "x"}],
)
async def test_options_out_of_range_are_refused(broker: StreamBroker, wrong: dict[str, Any]) -> None:
    async with AsyncClient(broker.url) as client:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            client.stream("one").producer(**wrong)


def test_a_flush_that_waits_in_another_thread_is_told_of_a_failure_when_it_wakes(
    broker: StreamBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.fault("PutRecords", StreamDoesNotExist("gone"))
    flushed = threading.Event()
    real = Producer._answered

    def answered(producer: Producer, batch: PutBatch) -> None:
        if batch.done.is_set():  # Who waits may be quicker than this thread: let it be.
            flushed.wait(10)
        real(producer, batch)

    monkeypatch.setattr(Producer, "_answered", answered)
    with Client(broker.url) as client, client.stream("one").producer(linger=FOREVER) as producer:
        producer.put(b"a", "k")
        try:
            with pytest.raises(PutFailed):
                producer.flush()
        finally:
            flushed.set()
    assert data(broker) == []
