"""Putting records: merged by shard, one result each, repeated without a second record, and regrouped after a split."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from penstock import AsyncClient, AsyncStream, OutgoingRecord, PutFailed, PutResult
from penstock._sync.putting import Lanes, PutBatch
from penstock.errors import (
    ClientClosed,
    InvalidRequest,
    OutcomeUnknown,
    PenstockError,
    RecordTooLarge,
    RequestTimeout,
    ResourceBusy,
    ShardClosed,
    StoreFailed,
    StreamDoesNotExist,
)

from tests.clients.fake_broker import AFTER, BEFORE, HOLD, SILENT, turns
from tests.clients.fake_streams import HASHES, StreamBroker

pytestmark = pytest.mark.anyio


@pytest.fixture
def broker() -> Iterator[StreamBroker]:
    """A fake broker with the streams one (of one shard) and eight."""
    with StreamBroker() as fake:
        fake.stream("one")
        fake.stream("eight", 8)
        yield fake
        assert fake.violations == []


def frames(broker: StreamBroker) -> list[tuple[int, int]]:
    """Shard and number of records of each put."""
    return [(message.shard, message.count) for message in broker.asked("PutRecords")]


async def put_all(stream: AsyncStream, records: list[tuple[bytes, str]]) -> list[PutResult | PenstockError]:
    """Puts each record in a task of its own; results in their order."""
    results: dict[int, PutResult | PenstockError] = {}

    async def one(place: int, data: bytes, key: str) -> None:
        try:
            results[place] = await stream.put(data, key)
        except PenstockError as error:
            results[place] = error

    async with anyio.create_task_group() as tasks:
        for place, (data, key) in enumerate(records):
            tasks.start_soon(one, place, data, key)
    return [results[place] for place in range(len(records))]


def rows(count: int) -> list[tuple[bytes, str]]:
    return [(b"%d" % number, f"key {number % 50}") for number in range(count)]


def stored(broker: StreamBroker, name: str, results: Iterable[PutResult | PenstockError]) -> list[bytes]:
    """The data that results name."""
    records = {number: shard.records for number, shard in broker.stream(name).shards.items()}
    found = []
    for result in results:
        assert isinstance(result, PutResult), result
        found.append(records[result.shard][result.sequence][0])
    return found


def data_of(records: list[tuple[bytes, str]]) -> list[bytes]:
    return [data for data, _ in records]


async def test_a_lone_put_goes_out_at_once(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        stream = client.stream("one")
        assert [await stream.put("ä", "k"), await stream.put(b"two", "k")] == [PutResult(0, 0), PutResult(0, 1)]
    assert frames(broker) == [(0, 1), (0, 1)]
    assert broker.stream("one").records == [("ä".encode(), "k"), (b"two", "k")]


async def test_shards_are_listed_once_and_page_by_page(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        await put_all(client.stream("eight"), rows(100))
        await client.stream("eight").put_many(rows(100))
    assert [message.start for message in broker.asked("ListShards")] == [0, 3, 6]


async def test_concurrent_puts_travel_together_by_shard(broker: StreamBroker) -> None:
    records = rows(2_000)
    async with AsyncClient(broker.url) as client:
        await client.stream("eight").put(b"first", "k")
        results = await put_all(client.stream("eight"), records)
    assert len(frames(broker)) < 60
    assert stored(broker, "eight", results) == data_of(records)


async def test_an_explicit_hash_key_chooses_the_shard(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        stream = client.stream("eight")
        results = [await stream.put(b"x", "k", hash_key=HASHES * number // 8) for number in range(8)]
        assert [one.shard for one in results] == list(range(8))
        many = await stream.put_many([OutgoingRecord(b"x", "k", HASHES * (number + 1) // 8 - 1) for number in range(8)])
        assert [one.shard for one in many if isinstance(one, PutResult)] == list(range(8))
        with pytest.raises(InvalidRequest):
            await stream.put(b"x", "k", hash_key=HASHES)


async def test_many_records_go_in_one_frame_per_shard_with_a_result_each(broker: StreamBroker) -> None:
    records = rows(1_000)
    async with AsyncClient(broker.url) as client:
        results = await client.stream("eight").put_many(records)
        columns = await client.stream("one").put_columns([data for data, _ in records], [key for _, key in records])
    assert sorted({shard for shard, _ in frames(broker)[:8]}) == list(range(8))
    assert len(frames(broker)) == 9
    assert stored(broker, "eight", results) == data_of(records)
    assert list(columns) == [PutResult(0, number) for number in range(1_000)]
    assert (columns[5], columns[-1:], len(columns), columns.failures) == (PutResult(0, 5), [PutResult(0, 999)], 1_000, {})


async def test_nothing_is_sent_for_no_records(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        assert list(await client.stream("nowhere").put_many([])) == []
    assert broker.seen == []


async def test_each_record_answers_for_itself(broker: StreamBroker) -> None:
    broker.stream("eight").max_record_bytes = 10
    records = [(b"good", "k"), (b"x" * 11, "k"), (b"fine", ""), (b"good too", "l")]
    async with AsyncClient(broker.url) as client:
        stream = client.stream("eight")
        results = await stream.put_many(records, raise_on_failure=False)
        assert stored(broker, "eight", [results[0], results[3]]) == [b"good", b"good too"]
        assert isinstance(results[1], RecordTooLarge) and isinstance(results[2], InvalidRequest)
        with pytest.raises(PutFailed) as raised:
            await stream.put_many(records)
        assert list(raised.value.failures) == [1, 2]
        assert raised.value.records == [OutgoingRecord(b"x" * 11, "k"), OutgoingRecord(b"fine", "")]
        with pytest.raises(RecordTooLarge):
            await stream.put(b"x" * 11, "k")
        with pytest.raises(InvalidRequest):
            await stream.put(b"x", "")


async def test_what_has_no_form_on_the_wire_disturbs_nobody(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        stream = client.stream("one")
        wrong: list[tuple[Any, Any]] = [(5, "k"), (b"x", "\ud800"), (b"x", 5), (b"x", None)]
        for data, key in wrong:
            with pytest.raises((TypeError, UnicodeEncodeError)):
                await stream.put(data, key)
            with pytest.raises((TypeError, UnicodeEncodeError)):
                await stream.put_many([(b"good", "k"), (data, key)])
    assert frames(broker) == []


async def test_a_put_whose_reply_was_lost_makes_no_second_record(broker: StreamBroker) -> None:
    broker.fault("PutRecords", AFTER, BEFORE, StoreFailed(), OutcomeUnknown())
    async with AsyncClient(broker.url) as client:
        assert await client.stream("one").put(b"once", "k") == PutResult(0, 0)
    assert broker.stream("one").records == [(b"once", "k")]
    assert broker.repeated == 1
    assert len({message.sequence for message in broker.asked("PutRecords")}) == 1


async def test_batches_of_a_shard_follow_each_other_and_hold_back_what_is_behind_a_failure(broker: StreamBroker) -> None:
    big = [(bytes(1_000_000), "k") for _ in range(10)]
    async with AsyncClient(broker.url, request_timeout=1) as client:
        stream = client.stream("one")
        results = await stream.put_many(big)
        assert [one.sequence for one in results if isinstance(one, PutResult)] == list(range(10))
        assert [count for _, count in frames(broker)] == [4, 4, 2]
        broker.fault("PutRecords", StreamDoesNotExist("gone"))
        results = await stream.put_many(big, raise_on_failure=False)
        assert len(results.failures) == 10 and "not put, because" in str(results[9])
        assert [count for _, count in frames(broker)] == [4, 4, 2, 4]
        broker.fault("PutRecords", SILENT)
        with pytest.raises(RequestTimeout):
            await stream.put_many(big)


async def test_a_stream_that_is_not_there_is_told(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        with pytest.raises(StreamDoesNotExist):
            await client.stream("nowhere").put(b"x", "k")
        with pytest.raises(StreamDoesNotExist):
            await client.stream("nowhere").put_many([(b"x", "k")])
        stream = await client.create_stream("nowhere", 2)
        assert await stream.put(b"x", "k")
        gone = client.stream("one")
    with pytest.raises(ClientClosed):
        await gone.put(b"x", "k")


# Splits and merges


async def test_records_for_a_closed_shard_go_to_its_children_in_their_order(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        stream = client.stream("one")
        await stream.put(b"before", "k")
        broker.split("one", 0)
        records = rows(3_000)
        results = await stream.put_many(records)
        singles = await put_all(stream, records)
    assert {one.shard for one in results if isinstance(one, PutResult)} == {1, 2}
    for outcome in (results, singles):
        assert stored(broker, "one", outcome) == data_of(records)
    for number in (1, 2):
        first = [one.sequence for one in results if isinstance(one, PutResult) and one.shard == number]
        assert first == sorted(first)
    assert len(broker.stream("one").records) == 6_001
    assert [message.shard for message in broker.asked("PutRecords")].count(0) == 2


async def test_a_split_in_the_middle_of_everything_loses_and_doubles_nothing(broker: StreamBroker) -> None:
    broker.fault("PutRecords", *[HOLD] * 5)
    records = rows(2_000)
    results: list[PutResult | PenstockError] = []
    async with AsyncClient(broker.url) as client, anyio.create_task_group() as tasks:
        stream = client.stream("one")

        async def put() -> None:
            results.extend(await put_all(stream, records))

        tasks.start_soon(put)
        await broker.until(lambda: len(frames(broker)) >= 5)
        await turns()
        broker.split("one", 0)
        broker.split("one", 1)
        broker.merge("one", 4, 2)
        broker.release_held()
    assert len(broker.stream("one").records) == 2_000
    assert stored(broker, "one", results) == data_of(records)


async def test_a_retry_of_what_was_put_before_the_split_answers_as_the_first_time(broker: StreamBroker) -> None:
    broker.fault("PutRecords", AFTER)
    async with AsyncClient(broker.url) as client:
        stream = client.stream("one")
        await stream.shards()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.put, b"once", "k")
            await broker.until(lambda: len(frames(broker)) >= 1)
            broker.split("one", 0)
    assert broker.stream("one").records == [(b"once", "k")]


async def test_a_list_of_shards_that_is_behind_is_read_again(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        stream = client.stream("one")
        await stream.put(b"before", "k")
        broker.split("one", 0)
        broker.stale_lists = 2
        result = await stream.put(b"x", "k")
    assert result.shard in (1, 2)
    assert len(frames(broker)) == 3


async def test_shards_that_do_not_fit_together_are_read_again(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        shards = broker.stream("one").shards
        shards[0].low = 1
        with pytest.raises(ResourceBusy):
            await client.stream("one").put(b"x", "k")
        shards[0].low = 0
        await client.stream("one").put(b"x", "k")


async def test_a_shard_that_stays_closed_is_given_up(broker: StreamBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock._async.putting.CLOSED_LOOKS", 2)
    broker.fault("PutRecords", ShardClosed())
    async with AsyncClient(broker.url) as client:
        with pytest.raises(ShardClosed):
            await client.stream("one").put(b"x", "k")
        await client.stream("one").put(b"x", "k")


async def test_a_limit_that_was_lowered_refuses_the_records_that_are_too_large_and_no_others(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        stream = client.stream("one")
        await stream.put(b"before", "k")
        broker.stream("one").max_record_bytes = 10
        results = await stream.put_many([(b"good", "k"), (b"x" * 11, "k"), (b"fine", "k")], raise_on_failure=False)
    assert isinstance(results[1], RecordTooLarge) and list(results.failures) == [1]
    assert stored(broker, "one", [results[2]]) == [b"fine"]


async def test_a_limit_that_was_raised_holds_nobody_back(broker: StreamBroker) -> None:
    broker.stream("one").max_record_bytes = 10
    async with AsyncClient(broker.url) as client:
        stream = client.stream("one")
        for limit, name in ((11, "put"), (12, "put_many"), (13, "producer.put"), (14, "producer.put_many")):
            data = bytes(limit)
            with pytest.raises(PenstockError):
                await stream.put(data, "k")
            broker.stream("one").max_record_bytes = limit
            if name == "put":
                await stream.put(data, "k")
            elif name == "put_many":
                await stream.put_many([(data, "k")])
            else:
                async with stream.producer() as producer:
                    if name == "producer.put":
                        await producer.put(data, "k")
                    else:
                        await producer.put_many([(data, "k")])
    assert [len(data) for data, _ in broker.stream("one").records] == [11, 12, 13, 14]


async def test_a_cancelled_put_disturbs_no_other_record_of_its_frame(broker: StreamBroker) -> None:
    broker.fault("PutRecords", HOLD, HOLD, HOLD, HOLD)
    async with AsyncClient(broker.url) as client, anyio.create_task_group() as tasks:
        stream = client.stream("one")
        await stream.shard_map.get()
        for number in range(4):
            tasks.start_soon(stream.put, b"%d" % number, "k")
        await broker.until(lambda: len(frames(broker)) == 4)
        scope = anyio.CancelScope()

        async def cancelled() -> None:
            with scope:
                await stream.put(b"cancelled", "k")

        tasks.start_soon(cancelled)
        await turns()
        tasks.start_soon(stream.put, b"other", "k")
        await turns()
        scope.cancel()
        await turns()
        broker.release_held()
    assert [data for data, _ in broker.stream("one").records][4:] == [b"cancelled", b"other"]


async def test_streams_are_made_listed_changed_and_deleted(broker: StreamBroker) -> None:
    async with AsyncClient(broker.url) as client:
        for name in ("c", "d", "e"):
            await client.create_stream(name, 2, retention=3_600, tags={"team": "red"})
        assert [name async for name in client.streams()] == ["c", "d", "e", "eight", "one"]
        created = broker.asked("CreateStream")[0]
        assert [(one.name, one.value) for one in created.settings] == [("retention_ms", 3_600_000)]
        stream = client.stream("c")
        assert (await stream.describe()).shards == 2
        assert (await stream.set(max_record_bytes=2_000)).settings["max_record_bytes"] == 2_000
        await stream.tag(stage="test")
        await stream.untag("team")
        await stream.split(0, 5)
        await stream.merge(1, 3)
        found = await stream.shards()
        assert [(one.shard, one.parents, one.is_open) for one in found] == [
            (0, [], False),
            (1, [], False),
            (2, [0], True),
            (3, [0], False),
            (4, [1, 3], True),
        ]
        assert (found[2].low, found[2].high, found[4].low, found[4].high) == (0, 4, 5, HASHES - 1)
        assert [one.shard for one in await stream.shards("open")] == [2, 4]
        assert client.stream("c") is stream
        await client.delete_stream("c")
        with pytest.raises(StreamDoesNotExist):
            await stream.describe()


def test_who_waits_for_a_batch_that_went_in_parts_wakes_after_its_outcome_was_told() -> None:
    told: list[bool] = []
    whole = PutBatch(on_done=lambda batch: told.append(batch.done.wait_for(0)))
    part = PutBatch()
    part.whole, whole.parts = whole, [([], part)]
    lanes = Lanes.__new__(Lanes)
    lanes._link = SimpleNamespace(mutex=threading.RLock())  # type: ignore[assignment]  # all that an answer asks of it
    lanes.answer(part, 0, None)
    assert told == [False]
    assert whole.done.wait_for(0)
