"""Streams through the SDK against a real broker: everything once, and kill -9 in the middle."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from penstock import AsyncClient, AsyncReader, AsyncStream, Client, OutgoingRecord, PutResult
from penstock.errors import (
    InvalidAttribute,
    InvalidName,
    InvalidRequest,
    InvalidShardRange,
    RecordTooLarge,
    ResourceInUse,
    ShardsNotAdjacent,
    StreamDoesNotExist,
)
from penstock.records import HASHES

from tests.broker_process import BrokerProcess, running_broker
from tests.clients.aggregates import FOREIGN, FOREIGN_ROWS, aggregate

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def own_broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker that the test may kill, on each kind of store."""
    store = request.getfixturevalue("postgresql_url") if request.param == "postgresql" else ""
    with running_broker(tmp_path, store=store) as broker:
        yield broker


async def fresh_stream(client: AsyncClient, name: str, shards: int = 1, **settings: Any) -> AsyncStream:
    """An empty stream of that name; the same broker serves many tests."""
    with contextlib.suppress(StreamDoesNotExist):
        await client.delete_stream(name)
    return await client.create_stream(name, shards, **settings)


async def numbers(reader: AsyncReader) -> list[int]:
    return [int(record.data) async for batch in reader for record in batch]


def check_order(found: list[int], count: int) -> None:
    """Everything once, and the records of each key in their order."""
    assert sorted(found) == list(range(count))
    for key in range(20):
        assert [number for number in found if number % 20 == key] == list(range(key, count, 20))


def rows(start: int, stop: int) -> list[tuple[bytes, str]]:
    return [(b"%d" % number, f"key {number % 20}") for number in range(start, stop)]


async def test_records_come_back_as_they_were_put_from_the_shard_that_their_key_has(real_broker: BrokerProcess) -> None:
    async with AsyncClient(real_broker.url) as client:
        stream = await fresh_stream(client, "round", 4)
        began = datetime.now(UTC) - timedelta(seconds=5)
        one = await stream.put("ä", "schlüssel")
        many = await stream.put_many([(b"", "a"), OutgoingRecord(b"\x00\xff", "b", HASHES - 1)])
        expected = int.from_bytes(hashlib.md5("schlüssel".encode(), usedforsecurity=False).digest(), "big") * 4 // HASHES
        assert (one.shard, one.sequence, many[1]) == (expected, 0, PutResult(3, 0 if expected != 3 else 1))
        records = [record async for batch in stream.tail("trim_horizon", idle_seconds=0) for record in batch]
        assert {(record.data, record.key) for record in records} == {("ä".encode(), "schlüssel"), (b"", "a"), (b"\x00\xff", "b")}
        assert all(began < record.arrived_at < began + timedelta(minutes=5) for record in records)
        assert [len(batch) async for batch in stream.read(expected, began, idle_seconds=0)]
        assert [len(batch) async for batch in stream.read(3, "latest", idle_seconds=0)] == []


async def test_streams_are_made_listed_changed_and_deleted(real_broker: BrokerProcess) -> None:
    async with AsyncClient(real_broker.url) as client:
        stream = await fresh_stream(client, "settings", 2, retention=7_200, tags={"team": "red"})
        await client.create_stream("settings", 2, retention=7_200)
        with pytest.raises(ResourceInUse):
            await client.create_stream("settings", 2, retention=9_999)
        with pytest.raises(InvalidName):
            await client.create_stream("no good!")
        with pytest.raises(InvalidAttribute):
            await stream.set(retention=5)
        await stream.tag(stage="test")
        await stream.untag("team")
        info = await stream.set(max_record_bytes=2_000)
        assert (info.settings["retention_ms"], info.settings["max_record_bytes"]) == (7_200_000, 2_000)
        info = await stream.describe()
        assert (info.name, info.shards, info.tags) == ("settings", 2, {"stage": "test"})
        with pytest.raises(RecordTooLarge):
            await stream.put(bytes(2_001), "k")
        assert "settings" in [name async for name in client.streams("sett")]
        await client.delete_stream("settings")
        with pytest.raises(StreamDoesNotExist):
            await stream.put(b"x", "k")


async def test_what_is_more_than_passes_is_put_and_read_once_and_in_order_all_the_same(real_broker: BrokerProcess) -> None:
    async with AsyncClient(real_broker.url) as client:
        stream = await fresh_stream(client, "limited", enforce_shard_limits=True)
        async with stream.producer(max_records=300, linger=0.001) as producer:
            await producer.put_many(rows(0, 600))
            await stream.put_many([(b"x", "other")] * 700)
            await producer.put_many(rows(600, 1_200))
        found = [record async for batch in stream.read(0, idle_seconds=0, max_records=200) for record in batch]
        check_order([int(one.data) for one in found if one.key != "other"], 1_200)
        assert len(found) == 1_900


async def test_a_limit_that_somebody_else_has_lowered_refuses_only_what_is_too_large(real_broker: BrokerProcess) -> None:
    async with AsyncClient(real_broker.url) as client, AsyncClient(real_broker.url) as other:
        stream = await fresh_stream(client, "lowered")
        await stream.put(b"first", "k")
        await other.stream("lowered").set(max_record_bytes=1_024)
        results = await stream.put_many([(b"good", "k"), (bytes(2_000), "k"), (b"fine", "k")], raise_on_failure=False)
        assert {place: type(error) for place, error in results.failures.items()} == {1: RecordTooLarge}
        assert [one.data async for batch in stream.read(0, idle_seconds=0) for one in batch] == [b"first", b"good", b"fine"]


async def test_splits_merges_and_a_new_shard_count_are_followed_by_producers_and_readers(real_broker: BrokerProcess) -> None:
    async with AsyncClient(real_broker.url) as client, anyio.create_task_group() as tasks:
        stream = await fresh_stream(client, "reshard")
        found: list[int] = []
        tail = stream.tail("trim_horizon", idle_seconds=10)

        async def read() -> None:
            while len(found) < 20_000:
                batch = await tail.next(20)
                assert batch is not None
                found.extend(int(one) for one in batch.data)
            tail.close()

        tasks.start_soon(read)
        other = AsyncClient(real_broker.url)
        async with other, stream.producer(max_records=50, linger=0.001) as producer:
            for start in range(0, 20_000, 100):
                await producer.put_many(rows(start, start + 100))
                if start == 4_000:
                    await other.stream("reshard").split(0)
                if start == 8_000:
                    await other.stream("reshard").split(1, 12_345)
                if start == 12_000:
                    await other.stream("reshard").merge(4, 2)
                if start == 16_000:
                    await other.stream("reshard").set_shard_count(2)
        assert producer.delivered == 20_000
    check_order(found, 20_000)
    async with AsyncClient(real_broker.url) as client:
        stream = client.stream("reshard")
        shards = await stream.shards()
        assert len(await stream.shards("open")) == 2
        assert shards[1].parents == [0] and not shards[1].is_open and shards[-1].is_open
        check_order(await numbers(stream.tail("trim_horizon", idle_seconds=0)), 20_000)
        with pytest.raises(InvalidShardRange):
            await stream.split(shards[-1].shard, 0)
        with pytest.raises((ShardsNotAdjacent, InvalidShardRange)):
            await stream.merge(shards[-1].shard, shards[-1].shard)


async def test_a_producer_and_a_tail_go_on_over_kill_9_with_everything_once_and_in_order(own_broker: BrokerProcess) -> None:
    async with AsyncClient(own_broker.url) as client, anyio.create_task_group() as tasks:
        stream = await client.create_stream("killed", 4)
        found: list[int] = []
        tail = stream.tail("trim_horizon")

        async def read() -> None:
            while len(found) < 6_000:
                batch = await tail.next()
                assert batch is not None
                found.extend(int(one) for one in batch.data)
            tail.close()

        tasks.start_soon(read)
        async with stream.producer(max_records=20, linger=0.001) as producer:
            for start in range(0, 6_000, 20):
                await producer.put_many(rows(start, start + 20))
                if start == 3_000:
                    own_broker.kill()
                    await anyio.to_thread.run_sync(own_broker.start)
        assert producer.delivered == 6_000
    check_order(found, 6_000)


async def test_registered_consumers_get_everything_once_and_in_order_over_splits_and_kill_9(own_broker: BrokerProcess) -> None:
    async with AsyncClient(own_broker.url) as client, anyio.create_task_group() as tasks:
        stream = await client.create_stream("pushed", 2)
        found: dict[str, list[int]] = {"audit": [], "mail": []}

        async def take(name: str, credit: int) -> None:
            consumer = await stream.register_consumer(name)
            async with consumer.subscribe(None, "trim_horizon", credit=credit) as records:
                async for record in records:
                    found[name].append(int(record.data))
                    if len(found[name]) == 4_000:
                        return

        tasks.start_soon(take, "audit", 10_000)
        tasks.start_soon(take, "mail", 3)
        async with stream.producer(max_records=20, linger=0.001) as producer:
            for start in range(0, 4_000, 20):
                await producer.put_many(rows(start, start + 20))
                if start == 1_000:
                    await stream.split(0)
                if start == 2_000:
                    own_broker.kill()
                    await anyio.to_thread.run_sync(own_broker.start)
                if start == 3_000:
                    await stream.set_shard_count(2)
    for numbers_of_one in found.values():
        check_order(numbers_of_one, 4_000)


async def test_compressed_and_large_records_make_their_round(real_broker: BrokerProcess) -> None:
    async with AsyncClient(real_broker.url) as client:
        stream = await fresh_stream(client, "compressed", 2, max_record_bytes=10 * 1_048_576)
        async with stream.producer(compression="zstd") as producer:
            await producer.put_many(rows(0, 5_000))
        assert sorted(await numbers(stream.tail("trim_horizon", idle_seconds=0))) == list(range(5_000))
        large = await stream.put(bytes(10 * 1_048_576), "k")
        [batch] = [batch async for batch in stream.read(large.shard, ("at", large.sequence), idle_seconds=0)]
        assert batch.data == [bytes(10 * 1_048_576)]


@pytest.mark.parametrize("compression", [None, "zstd"])
async def test_aggregated_records_are_taken_apart_on_every_way_of_reading(real_broker: BrokerProcess, compression: Any) -> None:
    async with AsyncClient(real_broker.url) as client:
        stream = await fresh_stream(client, "aggregated", 2)
        async with stream.producer(compression=compression, max_records=2) as producer:
            for data in (b"before", FOREIGN, b"between", aggregate([("x", b"%d" % place) for place in range(2_000)]), b"after"):
                await producer.put(data, "k", hash_key=0)
        expected = [("k", b"before", 0, 0)]
        expected += [(key, data, 1, place) for place, (key, data) in enumerate(FOREIGN_ROWS)]
        expected += [("k", b"between", 2, 0), *(("x", b"%d" % place, 3, place) for place in range(2_000)), ("k", b"after", 4, 0)]

        def rows_of(records: list[Any]) -> list[tuple[str, bytes, int, int]]:
            return [(one.key, one.data, one.sequence, one.sub_sequence) for one in records]

        read = [record async for batch in stream.read(0, idle_seconds=0) for record in batch]
        tailed = [record async for batch in stream.tail("trim_horizon", idle_seconds=0) for record in batch]
        assert rows_of(read) == rows_of(tailed) == expected
        consumer = await stream.register_consumer("audit")
        async with consumer.subscribe(None, "trim_horizon", credit=1) as records:
            assert rows_of([await anext(records) for _ in expected]) == expected
            assert records.positions[0] == 5
        async with stream.consume("g") as members:
            assert rows_of([await members.next() for _ in expected]) == expected
            assert await members.next(0.01) is None
        assert [shard.position for shard in (await stream.describe_group("g")).shards] == [5, 0]

        raw = [one async for batch in stream.read(0, ("at", 1), idle_seconds=0, deaggregate=False) for one in batch]
        assert [(one.data, one.key, one.sequence) for one in raw[:2]] == [(FOREIGN, "k", 1), (b"between", "k", 2)]
        async with consumer.subscribe(0, ("at", 1), deaggregate=False) as records:
            assert (await anext(records)).data == FOREIGN


async def test_user_records_whose_keys_belong_to_other_shards_are_given_also_after_a_split(real_broker: BrokerProcess) -> None:
    rows = [(f"key {place}", b"%d" % place) for place in range(50)]  # half of their hashes are the other shard's
    async with AsyncClient(real_broker.url) as client:
        stream = await fresh_stream(client, "astray", 2)
        await stream.put(aggregate(rows), "k", hash_key=0)
        await stream.split(0)
        await stream.put(aggregate(rows), "k", hash_key=0)
        assert await numbers(stream.tail("trim_horizon", idle_seconds=0)) == [*range(50), *range(50)]


async def test_a_record_is_put_after_another_of_its_key_also_over_splits_and_merges(real_broker: BrokerProcess) -> None:
    async with AsyncClient(real_broker.url) as client, AsyncClient(real_broker.url) as other:
        stream = await fresh_stream(client, "ordered", 2)
        last = await stream.put(b"0", "k", hash_key=0)
        for number in range(1, 10):
            following = await stream.put(b"%d" % number, "k", hash_key=0, after=last)
            assert following.shard != last.shard or following.sequence > last.sequence
            last = following
            if number == 3:
                await other.stream("ordered").split(last.shard)
            if number == 6:
                await other.stream("ordered").merge(2, 3)
        assert last.shard == 4
        records = [record async for batch in stream.tail("trim_horizon", idle_seconds=0) for record in batch]
        assert [int(record.data) for record in records] == list(range(10))
        stale = other.stream("ordered")
        assert (await stale.put(b"10", "k", hash_key=0, after=records[-1])).sequence > records[-1].sequence
        for wrong in (PutResult(4, last.sequence + 100), PutResult(1, 0), PutResult(77, 0)):
            with pytest.raises(InvalidRequest):
                await stream.put(b"never", "k", hash_key=0, after=wrong)
        assert (await stream.put(b"11", "k", hash_key=0)).sequence == last.sequence + 2


def test_the_blocking_client_puts_reads_and_tails(real_broker: BrokerProcess) -> None:
    with Client(real_broker.url) as client:
        with contextlib.suppress(StreamDoesNotExist):
            client.delete_stream("blocking")
        stream = client.create_stream("blocking", 2)
        with stream.producer(linger=0.001) as producer:
            for data, key in rows(0, 1_000):
                producer.put(data, key)
        stream.put_many(rows(1_000, 2_000))
        found = [int(one) for batch in stream.tail("trim_horizon", idle_seconds=0) for one in batch.data]
        check_order(found, 2_000)
        with stream.register_consumer("audit").subscribe(None, "trim_horizon") as records:
            found = [int(next(records).data) for _ in range(2_000)]
            assert sum(records.positions.values()) == 2_000
            [info] = stream.list_consumers()
            assert (info.name, info.subscriptions, info.lag) == ("audit", 2, 0)
        check_order(found, 2_000)
        stream.deregister_consumer("audit")
        assert stream.list_consumers() == []
        sent = stream.put(FOREIGN, "k")
        [batch] = stream.read(sent.shard, ("at", sent.sequence), idle_seconds=0)
        assert [(one.key, one.data) for one in batch] == FOREIGN_ROWS
