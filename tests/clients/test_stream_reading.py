"""Reading records: from any place, on over lost connections and expired iterators, and over splits and merges in order."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from penstock import AsyncClient, AsyncReader, Record, RecordBatch
from penstock.errors import (
    IteratorExpired,
    IteratorInvalid,
    NotConnected,
    Overloaded,
    ShardDoesNotExist,
    StreamDoesNotExist,
    ThroughputExceeded,
)

from tests.clients.fake_broker import AFTER, BEFORE, turns
from tests.clients.fake_streams import StreamBroker

pytestmark = pytest.mark.anyio


@pytest.fixture
def broker() -> Iterator[StreamBroker]:
    """A fake broker with the streams one (of one shard) and four."""
    with StreamBroker() as fake:
        fake.stream("one")
        fake.stream("four", 4)
        yield fake
        assert fake.violations == []


async def put(client: AsyncClient, name: str, start: int, stop: int) -> None:
    """Puts numbers, ten in a batch, each under a key of its last digits."""
    for first in range(start, stop, 10):
        await client.stream(name).put_many([(b"%d" % number, f"key {number % 20}") for number in range(first, first + 10)])


async def numbers(reader: AsyncReader) -> list[int]:
    return [int(record.data) async for batch in reader for record in batch]


async def take(reader: AsyncReader, count: int) -> list[int]:
    """The next records, so many at least."""
    found: list[int] = []
    while len(found) < count:
        batch = await reader.next()
        assert batch is not None
        found += [int(one) for one in batch.data]
    return found


def check_order(found: list[int], count: int) -> None:
    """Everything once, and the records of each key in their order."""
    assert sorted(found) == list(range(count))
    for key in range(20):
        assert [number for number in found if number % 20 == key] == list(range(key, count, 20))


async def test_a_shard_is_read_from_its_oldest_record_on(broker: StreamBroker) -> None:
    broker.now_ms = 5_000
    async with AsyncClient(broker.url) as client:
        await put(client, "one", 0, 30)
        batches = [batch async for batch in client.stream("one").read(0, idle_seconds=0)]
    assert [(batch.first, len(batch), batch.shard) for batch in batches] == [(0, 10, 0), (10, 10, 0), (20, 10, 0)]
    assert list(batches[1])[3] == Record(b"13", "key 13", 13, 0, 5_000)
    assert batches[1].arrived_at == datetime.fromtimestamp(5, UTC)


@pytest.mark.parametrize(
    ("start", "first"),
    [
        ("trim_horizon", 0),
        (("at", 0), 0),
        (("at", 13), 13),
        (("after", 13), 14),
        (("after", 29), 30),
        ("latest", 30),
        (datetime.fromtimestamp(1, UTC), 0),
        (datetime.fromtimestamp(1.5, UTC), 10),
        (datetime.fromtimestamp(9, UTC), 30),
    ],
)
async def test_reading_begins_where_it_is_told(broker: StreamBroker, start: Any, first: int) -> None:
    async with AsyncClient(broker.url) as client:
        await put(client, "one", 0, 10)
        broker.now_ms = 2_000
        await put(client, "one", 10, 30)
        assert await numbers(client.stream("one").read(0, start, idle_seconds=0)) == list(range(first, 30))


async def test_more_is_asked_for_while_the_application_works_on_what_came(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        await put(client, "one", 0, 100)
        async with client.stream("one").read(0, max_records=10) as reader:
            assert await take(reader, 10) == list(range(10))
            await broker.until(lambda: broker.waiting_reads == 1)
            assert reader.positions == {0: 10}
            assert await take(reader, 90) == list(range(10, 100))
            assert (reader.behind_seconds, reader.positions) == (0, {0: 100})
        await broker.until(lambda: broker.waiting_reads == 0)


async def test_a_reader_that_is_full_asks_for_no_more(broker: StreamBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock._async.reader.READ_AHEAD_BYTES", 300)
    async with AsyncClient(broker.url) as client:
        await put(client, "one", 0, 200)
        reader = client.stream("one").read(0, max_records=10)
        found = await take(reader, 10)
        await turns(500)
        await client.ping()
        asked = len(broker.asked("ReadRecords"))
        assert asked < 6
        assert reader.behind_seconds == 0.5
        assert found + await take(reader, 190) == list(range(200))
        assert len(broker.asked("ReadRecords")) >= 20
        reader.close()


async def test_a_reader_that_was_forgotten_stops_asking(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        await put(client, "one", 0, 10)
        reader = client.stream("one").read(0)
        assert await take(reader, 10) == list(range(10))
        await broker.until(lambda: broker.waiting_reads == 1)
        broker.end_waiting_reads()
        await client.ping()
        assert broker.waiting_reads == 0
        await put(client, "one", 10, 20)
        assert await take(reader, 10) == list(range(10, 20))


async def test_reading_ends_when_nothing_came_for_a_while(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        await put(client, "one", 0, 10)
        assert await numbers(client.stream("one").read(0, idle_seconds=0.1)) == list(range(10))
        reader = client.stream("one").read(0, "latest")
        assert await reader.next(0.05) is None
        await put(client, "one", 10, 20)
        assert await take(reader, 10) == list(range(10, 20))


async def test_what_comes_at_the_tip_is_given_at_once(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client, anyio.create_task_group() as tasks:
        reader = client.stream("one").read(0, "latest")
        found: list[int] = []

        async def read() -> None:
            found.extend(await take(reader, 20))

        tasks.start_soon(read)
        await broker.until(lambda: broker.waiting_reads == 1)
        await put(client, "one", 0, 20)
    assert found == list(range(20))


async def test_latest_means_from_now_on_whatever_happens_to_the_iterator(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        await put(client, "one", 0, 10)
        reader = client.stream("one").read(0, "latest")
        assert await reader.next(0.05) is None
        broker.end_waiting_reads()
        await client.ping()
        broker.expire_iterators()
        await put(client, "one", 10, 20)
        assert await take(reader, 10) == list(range(10, 20))


@pytest.mark.parametrize("trouble", [BEFORE, AFTER, IteratorExpired(), IteratorInvalid(), Overloaded(), ThroughputExceeded()])
async def test_nothing_is_lost_or_read_twice_whatever_happens_to_a_read(broker: StreamBroker, trouble: Any) -> None:
    async with AsyncClient(broker.url) as client:
        await put(client, "one", 0, 50)
        broker.fault("OpenIterator", BEFORE, AFTER)
        for _ in range(3):
            reader = client.stream("one").read(0, ("at", 5), idle_seconds=0, max_records=10)
            found = await take(reader, 1)
            broker.fault("ReadRecords", trouble)
            assert found + await numbers(reader) == list(range(5, 50))


async def test_an_iterator_that_is_refused_again_and_again_ends_the_reader(broker: StreamBroker) -> None:
    broker.fault("ReadRecords", IteratorInvalid(), IteratorInvalid())
    async with AsyncClient(broker.url) as client:
        reader = client.stream("one").read(0)
        for _ in range(2):
            with pytest.raises(IteratorInvalid):
                await reader.next()


async def test_what_is_not_there_is_told(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        starts: list[Any] = ["trim_horizon", "latest"]
        for start in starts:
            with pytest.raises(StreamDoesNotExist):
                await client.stream("nowhere").read(0, start).next()
            with pytest.raises(ShardDoesNotExist):
                await client.stream("one").read(7, start).next()
        with pytest.raises(StreamDoesNotExist):
            await client.stream("nowhere").tail().next()
        wrong: list[Any] = ["newest", ("before", 1), 5]
        for start in wrong:
            with pytest.raises(ValueError, match="start"):
                client.stream("one").read(0, start)
        at: Any = ("at", 5)
        with pytest.raises(ValueError, match="one shard"):
            client.stream("one").tail(at)


async def test_without_a_broker_reading_fails_soon_and_closing_the_client_ends_it(broker: StreamBroker) -> None:
    with StreamBroker() as gone:
        url = gone.url
    async with AsyncClient(url, connect_timeout=0.2) as client:
        with pytest.raises(NotConnected):
            await client.stream("one").read(0).next()
    async with AsyncClient(broker.url) as client, anyio.create_task_group() as tasks:
        outcome: list[RecordBatch | None] = []

        async def read() -> None:
            outcome.append(await client.stream("one").read(0).next())

        tasks.start_soon(read)
        await broker.until(lambda: broker.waiting_reads == 1)
        await client.aclose()
    assert outcome == [None]


async def test_several_tasks_share_a_reader_and_a_cancelled_one_loses_nothing(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client, anyio.create_task_group() as tasks:
        reader = client.stream("one").read(0)
        found: list[int] = []

        async def read() -> None:
            async for batch in reader:
                found.extend(int(one) for one in batch.data)

        for _ in range(3):
            tasks.start_soon(read)
        with anyio.move_on_after(0.05):
            await reader.next()
        await put(client, "one", 0, 100)
        while len(found) < 100:
            await anyio.lowlevel.checkpoint()
        assert sorted(found) == list(range(100))
        reader.close()
        assert await reader.next() is None


# Splits and merges


async def test_a_closed_shard_ends_when_it_is_read_out(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        await put(client, "one", 0, 20)
        broker.split("one", 0)
        await put(client, "one", 20, 40)
        assert await numbers(client.stream("one").read(0)) == list(range(20))


async def test_children_are_read_once_all_their_parents_were(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        await put(client, "four", 0, 200)
        broker.split("four", 1)
        await put(client, "four", 200, 400)
        broker.merge("four", 5, 2)
        await put(client, "four", 400, 600)
        broker.merge("four", 0, 4)
        await put(client, "four", 600, 800)
        check_order(await numbers(client.stream("four").tail("trim_horizon", idle_seconds=0, max_records=10)), 800)


async def test_a_tail_at_the_tip_follows_splits_and_merges(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        await client.stream("one").put(b"before", "k")
        async with client.stream("one").tail() as tail:
            assert await tail.next(0.05) is None
            found: list[int] = []
            for start in (0, 100, 200):
                await put(client, "one", start, start + 100)
                if start == 0:
                    broker.split("one", 0)
                elif start == 100:
                    broker.merge("one", 1, 2)
                found += await take(tail, 100)
        check_order(found, 300)


async def test_a_tail_from_a_time_begins_with_the_shards_that_were_open_then(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        await put(client, "one", 0, 100)
        broker.now_ms = 2_000
        broker.split("one", 0)
        broker.now_ms = 3_000
        await put(client, "one", 100, 200)
        broker.now_ms = 4_000
        broker.split("one", 1)
        await put(client, "one", 200, 300)
        stream = client.stream("one")
        found = await numbers(stream.tail(datetime.fromtimestamp(3, UTC), idle_seconds=0))
        assert sorted(found) == list(range(100, 300))
        assert sorted(await numbers(stream.tail(datetime.fromtimestamp(1, UTC), idle_seconds=0))) == list(range(300))
        assert broker.asked("OpenIterator")[0].shard == 1


async def test_a_child_that_has_aged_out_is_told(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        await put(client, "one", 0, 10)
        tail = client.stream("one").tail("trim_horizon")
        assert len(await take(tail, 10)) == 10
        await broker.until(lambda: broker.waiting_reads == 1)
        shards = broker.stream("one").shards
        with broker._changed:
            shards[0].children = [1]
            shards[0].closed_ms = 5
            broker._serve_readers()
        with pytest.raises(ShardDoesNotExist):
            await tail.next()
