"""Shards that let only so much pass: what is throttled is put again in its order, once, and told when its time is over."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from penstock import (
    AsyncClient,
    AsyncStream,
    OutgoingRecord,
    PutFailed,
    PutResult,
    PutResults,
    ThroughputExceeded,
    _backend_async,
)
from penstock._async import putting

from tests.clients.fake_broker import AFTER, BEFORE, HOLD
from tests.clients.fake_streams import StreamBroker

pytestmark = pytest.mark.anyio

RECORDS = [(b"%d" % number, f"key {number % 7}") for number in range(20)]
NEVER = [0] * 10_000


@pytest.fixture
def broker() -> Iterator[StreamBroker]:
    """A fake broker with the streams one (of one shard) and two."""
    with StreamBroker() as fake:
        fake.stream("one")
        fake.stream("two", 2)
        yield fake
        assert fake.violations == []


def puts(broker: StreamBroker) -> list[tuple[int, int]]:
    """Number and count of each put, as the broker saw them."""
    return [(message.sequence, message.count) for message in broker.asked("PutRecords")]


def named(broker: StreamBroker, name: str, results: PutResults) -> list[tuple[bytes, str]]:
    """The records that results name."""
    records = {number: shard.records for number, shard in broker.stream(name).shards.items()}
    assert all(isinstance(one, PutResult) for one in results)
    return [records[one.shard][one.sequence] for one in results if isinstance(one, PutResult)]


async def test_what_did_not_pass_is_put_again_in_its_order_with_a_number_of_its_own(broker: StreamBroker) -> None:
    broker.stream("one").room = [3, 0, 0, 2]
    async with AsyncClient(broker.url) as client:
        results = await client.stream("one").put_many(RECORDS)
    assert list(results) == [PutResult(0, sequence) for sequence in range(20)]
    assert broker.stream("one").records == RECORDS
    (first, _), (second, _), *_ = puts(broker)
    assert puts(broker) == [(first, 20), (second, 17), (second, 17), (second, 17), (puts(broker)[-1][0], 15)]
    assert len({first, second, puts(broker)[-1][0]}) == 3


async def test_only_the_shard_that_is_throttled_waits(broker: StreamBroker) -> None:
    broker.stream("two").room = [2]
    async with AsyncClient(broker.url) as client:
        results = await client.stream("two").put_many(RECORDS)
    assert named(broker, "two", results) == RECORDS
    assert len(puts(broker)) == 3


async def test_single_records_answer_for_themselves(broker: StreamBroker) -> None:
    broker.stream("one").room = [1, 2, 0, 3]
    results: dict[int, PutResult] = {}
    async with AsyncClient(broker.url) as client, anyio.create_task_group() as tasks:
        stream = client.stream("one")

        async def put(place: int) -> None:
            results[place] = await stream.put(*RECORDS[place])

        for place in range(20):
            tasks.start_soon(put, place)
    stored = broker.stream("one").records
    assert sorted(stored) == sorted(RECORDS)
    assert [stored[results[place].sequence] for place in range(20)] == RECORDS


@pytest.mark.parametrize("trouble", [AFTER, BEFORE], ids=["answer lost", "put lost"])
async def test_a_part_whose_answer_was_lost_makes_no_second_record(broker: StreamBroker, trouble: Any) -> None:
    broker.stream("one").room = [5, 0, 4]
    broker.fault("PutRecords", trouble)
    async with AsyncClient(broker.url) as client:
        results = await client.stream("one").put_many(RECORDS)
    assert broker.stream("one").records == RECORDS == named(broker, "one", results)
    assert broker.repeated == (trouble is AFTER)


async def test_a_producer_keeps_the_order_of_a_throttled_shard(broker: StreamBroker) -> None:
    broker.stream("one").room = [1, 0, 3, 1, 2, 1, 0, 1]
    broker.fault("PutRecords", AFTER, BEFORE)
    async with AsyncClient(broker.url) as client:
        async with client.stream("one").producer(max_records=4, linger=0.001) as producer:
            for data, key in RECORDS:
                await producer.put(data, key)
        assert (producer.delivered, producer.buffered_bytes) == (20, 0)
    assert broker.stream("one").records == RECORDS


async def test_a_compressed_batch_passes_whole(broker: StreamBroker) -> None:
    broker.stream("one").room = [0, 1]
    async with AsyncClient(broker.url) as client, client.stream("one").producer(compression="zstd") as producer:
        await producer.put_many(RECORDS)
    assert broker.stream("one").records == RECORDS
    assert [count for _, count in puts(broker)] == [20, 20]


async def _split_behind_a_part(broker: StreamBroker, stream: AsyncStream) -> PutResults:
    """Puts the records; when the first of them have passed, and before that is known, their shard is split."""
    found: list[PutResults] = []
    broker.fault("PutRecords", HOLD)
    async with anyio.create_task_group() as tasks:

        async def put() -> None:
            found.append(await stream.put_many(RECORDS))

        tasks.start_soon(put)
        await broker.until(lambda: len(broker.stream("one").records) == 3)
        broker.split("one", 0)
        broker.release_held()
    return found[0]


async def test_the_rest_of_a_batch_goes_to_the_children_of_its_shard(broker: StreamBroker) -> None:
    broker.stream("one").room = [3, 1, 0, 2]
    async with AsyncClient(broker.url) as client:
        results = await _split_behind_a_part(broker, client.stream("one"))
    assert named(broker, "one", results) == RECORDS
    assert {one.shard for one in results if isinstance(one, PutResult)} == {0, 1, 2}
    for shard in broker.stream("one").shards.values():
        assert shard.records == [record for record in RECORDS if record in shard.records], "in their order"
    assert len(broker.stream("one").records) == 20


async def test_what_never_passes_is_told_record_by_record(broker: StreamBroker) -> None:
    broker.stream("one").room = [4, *NEVER]
    async with AsyncClient(broker.url) as client:
        # (A try that is on its way when the time is over would be RequestTimeout: what became of it is unknown.)
        client.link.options = dataclasses.replace(client.link.options, first_pause=1e6, longest_pause=1e6)
        stream = client.stream("one")
        with pytest.raises(PutFailed) as raised:
            await stream.put_many(RECORDS)
        assert list(raised.value.failures) == list(range(4, 20))
        assert all(isinstance(one, ThroughputExceeded) for one in raised.value.failures.values())
        assert raised.value.records == [OutgoingRecord(data, key) for data, key in RECORDS[4:]]
        with pytest.raises(ThroughputExceeded):
            await stream.put(b"x", "k")
    assert broker.stream("one").records == RECORDS[:4]


async def test_what_was_cut_off_when_its_time_is_over_was_throttled(
    broker: StreamBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = broker.stream("one")
    stream.room = [4]
    clock = _backend_async.monotonic

    class Backend:
        """Hours go by as soon as some records are stored."""

        monotonic = staticmethod(lambda: clock() + (1e6 if stream.records else 0.0))

        def __getattr__(self, name: str) -> Any:
            return getattr(_backend_async, name)

    monkeypatch.setattr(putting, "backend", Backend())
    async with AsyncClient(broker.url) as client:
        with pytest.raises(PutFailed) as raised:
            await client.stream("one").put_many(RECORDS)
    assert list(raised.value.failures) == list(range(4, 20))
    assert {type(one) for one in raised.value.failures.values()} == {ThroughputExceeded}
    assert len(puts(broker)) == 1


async def test_a_producer_tells_what_was_not_delivered_in_time(broker: StreamBroker) -> None:
    broker.stream("one").room = [4, *NEVER]
    async with AsyncClient(broker.url) as client:
        with pytest.raises(PutFailed) as raised:
            async with client.stream("one").producer(delivery_timeout=0.3) as producer:
                await producer.put_many(RECORDS)
        assert producer.delivered == 4
    assert [(one.data, one.key) for one in raised.value.records] == RECORDS[4:]


async def test_a_reader_asks_again_and_reads_everything_once(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        stream = client.stream("one")
        await stream.put_many(RECORDS)
        broker.fault("ReadRecords", *[ThroughputExceeded()] * 3)
        async with stream.read(0, idle_seconds=0) as batches:
            found = [record.data async for batch in batches for record in batch]
    assert found == [data for data, _ in RECORDS]
    assert len(broker.asked("ReadRecords")) == 5
