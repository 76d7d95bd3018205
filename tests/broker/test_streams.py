"""Streams through a whole broker: what clients may do and see, what bad input gets, and what failures and time leave behind."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio
import trio.testing
from penstock_broker import session, stream_service
from penstock_broker.broker import BrokerOptions, running
from penstock_broker.ports import Ports
from penstock_broker.stream_catalog import StreamRecord
from penstock_broker.streams import limits, topology
from penstock_protocol import queue_messages as q
from penstock_protocol import session_messages as s
from penstock_protocol import stream_messages as st
from penstock_protocol.errors import (
    BatchTooLarge,
    Cancelled,
    Draining,
    InvalidAttribute,
    InvalidName,
    InvalidRequest,
    InvalidShardRange,
    IteratorExpired,
    IteratorInvalid,
    LimitExceeded,
    OutcomeUnknown,
    Overloaded,
    PenstockError,
    RecordTooLarge,
    ResourceBusy,
    ResourceInUse,
    ShardClosed,
    ShardDoesNotExist,
    ShardsNotAdjacent,
    StoreFailed,
    StreamDoesNotExist,
)
from penstock_storage.interface import Store
from penstock_storage.memory import Fault, MemoryDisk
from penstock_storage.sql import SqlStore

from tests.broker.inside import EPOCH_MS, SEALING_KEY, House, Peer, Threads, house, on_jumping_clock

HOUR_MS = 3_600_000
HOUR = 3_600.0
PROMPT = 2 * stream_service.RETENTION_SECONDS
"""Within that time retention has seen to everything."""


def batch_of(shard: int, data: list[bytes], key: str = "k", stream: str = "s", **fields: Any) -> st.PutRecords:
    """A plain batch of one key."""
    size_bytes = sum(map(len, data)) + len(data) * len(key.encode())
    return st.PutRecords(stream, shard, len(data), st.PLAIN, size_bytes, msgpack.packb([data, [key] * len(data)]), **fields)


async def put(peer: Peer, shard: int, *data: bytes, **fields: Any) -> int:
    reply = await peer.call(batch_of(shard, list(data), **fields))
    assert isinstance(reply, st.PutReply)
    return reply.first


async def iterator(peer: Peer, shard: int, start: str = "trim_horizon", position: int = 0, stream: str = "s") -> bytes:
    reply = await peer.call(st.OpenIterator(stream, shard, start, position))
    assert isinstance(reply, st.Iterator)
    return reply.iterator


async def read(peer: Peer, place: bytes, **options: Any) -> st.Records:
    reply = await peer.call(st.ReadRecords(place, **options))
    assert isinstance(reply, st.Records)
    return reply


def records_of(records: st.Records) -> list[tuple[int, bytes]]:
    """Sequence number and data of the records that are meant."""
    found = []
    for run in records.runs:
        sequence = run.first
        for batch in run.batches:
            data, keys = msgpack.unpackb(batch.blob)
            assert len(data) == len(keys) == batch.count
            found += [(sequence + place, one) for place, one in enumerate(data) if sequence + place >= records.start]
            sequence += batch.count
    return found


async def data_from(peer: Peer, shard: int, start: str = "trim_horizon", position: int = 0, **options: Any) -> list[bytes]:
    """What one read from there gives."""
    return [data for _, data in records_of(await read(peer, await iterator(peer, shard, start, position), **options))]


async def all_data(peer: Peer, shard: int, **options: Any) -> tuple[list[bytes], list[int]]:
    """Everything from the oldest record to the tip or the end, and the children."""
    place, found = await iterator(peer, shard), list[bytes]()
    while True:
        records = await read(peer, place, **options)
        found += [data for _, data in records_of(records)]
        if not records.next or not (records.runs or records.behind_ms):
            return found, records.children
        place = records.next


async def shards_of(peer: Peer, stream: str = "s", **options: Any) -> list[st.Shard]:
    return list((await peer.call(st.ListShards(stream, **options))).shards)


async def open_shards(peer: Peer, stream: str = "s") -> list[int]:
    """The open ones, in order of their hashes, which they own all, each once."""
    found = sorted(await shards_of(peer, stream, state="open"), key=lambda shard: shard.low)
    ranges = [(int.from_bytes(one.low, "big"), int.from_bytes(one.high, "big")) for one in found]
    assert topology.tiles(topology.Range(one.shard, *hashes) for one, hashes in zip(found, ranges, strict=True))
    return [one.shard for one in found]


async def everything(peer: Peer) -> list[bytes]:
    """All records of all shards: a parent's before its children's."""
    found: list[bytes] = []
    left = sorted(one.shard for one in await shards_of(peer))
    for shard in left:
        found += (await all_data(peer, shard))[0]
    return found


async def a_stream(one: House, shards: int = 1, **settings: int) -> Peer:
    """A client, and a stream "s"."""
    peer = await one.client()
    await peer.call(st.CreateStream("s", shards, [q.Setting(name, value) for name, value in settings.items()]))
    return peer


def record_of(one: House, name: str = "s") -> StreamRecord:
    return next(record for record in one.broker.stream_catalog if record.name == name)


def waiting(one: House) -> int:
    """How many reads wait."""
    return sum(len(runtime.waiters) for runtime in one.broker.streams.runtimes.values())


def settings_of(description: st.StreamDescription) -> dict[str, Any]:
    return {setting.name: setting.value for setting in description.settings}


# Streams


@on_jumping_clock
async def test_a_stream_is_created_described_listed_and_deleted() -> None:
    async with house() as one:
        peer = await one.client()
        made = await peer.call(st.CreateStream("s.1", 3, [q.Setting("retention_ms", 2 * HOUR_MS)], [q.Tag("team", "shop")]))
        assert made == st.StreamDescription(
            "s.1",
            "arn:aws:kinesis:local:000000000000:stream/s.1",
            EPOCH_MS,
            EPOCH_MS,
            [
                q.Setting("retention_ms", 2 * HOUR_MS),
                q.Setting("max_record_bytes", 1_048_576),
                q.Setting("mode", "provisioned"),
                q.Setting("enforce_shard_limits", False),
            ],
            [q.Tag("team", "shop")],
            3,
        )
        assert await peer.call(st.StreamName("s.1"), "DescribeStream") == made
        for name in ("a", "s.3", "s.2"):
            await peer.call(st.CreateStream(name))
        assert await peer.call(st.ListStreams()) == st.StreamNames(["a", "s.1", "s.2", "s.3"], False)
        assert await peer.call(st.ListStreams("s.", limit=2)) == st.StreamNames(["s.1", "s.2"], True)
        assert await peer.call(st.ListStreams("s.", "s.2", 2)) == st.StreamNames(["s.3"], False)
        assert await peer.call(st.StreamName("s.1"), "DeleteStream") == s.Empty()
        assert await peer.call(st.ListStreams()) == st.StreamNames(["a", "s.2", "s.3"], False)
        for message, name in ((st.StreamName("s.1"), "DescribeStream"), (st.StreamName("s.1"), "DeleteStream")):
            with pytest.raises(StreamDoesNotExist):
                await peer.call(message, name)


@on_jumping_clock
async def test_a_stream_that_exists_is_created_again_only_as_it_is() -> None:
    async with house() as one:
        peer = await a_stream(one, 2, retention_ms=2 * HOUR_MS)
        made = await peer.call(st.StreamName("s"), "DescribeStream")
        assert await peer.call(st.CreateStream("s", 2)) == made
        assert await peer.call(st.CreateStream("s", 2, [q.Setting("retention_ms", 2 * HOUR_MS)])) == made
        for other in (st.CreateStream("s", 1), st.CreateStream("s", 2, [q.Setting("retention_ms", 3 * HOUR_MS)])):
            with pytest.raises(ResourceInUse):
                await peer.call(other)
        assert await peer.call(st.StreamName("s"), "DescribeStream") == made


@on_jumping_clock
async def test_settings_and_tags_change_all_or_none() -> None:
    async with house() as one:
        peer = await a_stream(one)
        changed = await peer.call(st.SetStreamSettings("s", [q.Setting("retention_ms", HOUR_MS)]))
        assert settings_of(changed) == {
            "retention_ms": HOUR_MS,
            "max_record_bytes": 1_048_576,
            "mode": "provisioned",
            "enforce_shard_limits": False,
        }
        for wrong in ([q.Setting("retention_ms", HOUR_MS - 1)], [q.Setting("retention_ms", 366 * 24 * HOUR_MS)],
                      [q.Setting("max_record_bytes", 2_048), q.Setting("retention_ms", "1")], [q.Setting("mood", 1)],
                      [q.Setting("max_record_bytes", 1_023)], [q.Setting("max_record_bytes", True)],
                      [q.Setting("mode", "PROVISIONED")], [q.Setting("enforce_shard_limits", 1)]):  # fmt: skip
            with pytest.raises(InvalidAttribute):
                await peer.call(st.SetStreamSettings("s", wrong))
        assert await peer.call(st.StreamName("s"), "DescribeStream") == changed
        again = await peer.call(st.SetStreamSettings("s", [q.Setting("retention_ms", None)]))
        assert settings_of(again)["retention_ms"] == 24 * HOUR_MS
        await peer.call(st.TagStream("s", [q.Tag("a", "1"), q.Tag("b", "2")]))
        await peer.call(st.TagStream("s", [q.Tag("b", "3")]))
        await peer.call(st.UntagStream("s", ["a", "nothing"]))
        assert (await peer.call(st.StreamName("s"), "DescribeStream")).tags == [q.Tag("b", "3")]
        with pytest.raises(InvalidAttribute):
            await peer.call(st.TagStream("s", [q.Tag(f"t{number}", "") for number in range(50)]))


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ä", "a" * 129, "a\n"])
@on_jumping_clock
async def test_a_bad_name_is_refused(name: str) -> None:
    async with house() as one:
        peer = await one.client()
        with pytest.raises(InvalidName):
            await peer.call(st.CreateStream(name))


@on_jumping_clock
async def test_streams_and_queues_of_one_name_and_the_regions_are_apart() -> None:
    async with house() as one:
        here, there = await one.client(region="here"), await one.client(region="there")
        await here.create("s")
        for peer, data in ((here, b"here"), (there, b"there")):
            await peer.call(st.CreateStream("s"))
            await put(peer, 0, data)
        await here.send("s", b"message")
        assert await data_from(here, 0) == [b"here"]
        assert await data_from(there, 0) == [b"there"]
        await here.call(st.StreamName("s"), "DeleteStream")
        assert await data_from(there, 0) == [b"there"]
        assert (await here.describe("s")).visible == 1


@on_jumping_clock
async def test_a_stream_created_anew_is_empty_and_old_iterators_are_worth_nothing() -> None:
    async with house() as one:
        peer = await a_stream(one)
        await put(peer, 0, b"old")
        place = await iterator(peer, 0)
        await peer.call(st.StreamName("s"), "DeleteStream")
        await peer.call(st.CreateStream("s"))
        assert await data_from(peer, 0) == []
        with pytest.raises(ShardDoesNotExist):
            await read(peer, place)
        await put(peer, 0, b"new")
        assert await data_from(peer, 0) == [b"new"]


@on_jumping_clock
async def test_who_is_quick_may_put_into_a_stream_before_its_creator_knows_of_it() -> None:
    async with house() as one:
        peer, other = await one.client(), await one.client()
        one.threads.hold("commit")
        creating = await peer.say(st.CreateStream("s"))
        await trio.testing.wait_all_tasks_blocked()
        putting = await other.say(batch_of(0, [b"a"]))
        assert not await other.has_answer(putting)
        one.threads.release("commit")
        assert (await peer.wait(creating)).shards == 1
        assert await other.wait(putting) == st.PutReply(0)


@on_jumping_clock
async def test_a_creation_that_failed_leaves_nothing() -> None:
    async with house() as one:
        peer = await one.client()
        one.faults["commit"] = Fault.FAIL
        with pytest.raises(StoreFailed):
            await peer.call(st.CreateStream("s", 3))
        del one.faults["commit"]
        assert await peer.call(st.ListStreams()) == st.StreamNames([], False)
        await peer.call(st.CreateStream("s", 2))
        assert len(await open_shards(peer)) == 2


# Putting and reading


@on_jumping_clock
async def test_an_iterator_begins_at_five_kinds_of_places() -> None:
    async with house() as one:
        peer = await a_stream(one)
        for number in range(4):
            await put(peer, 0, b"%d" % (2 * number), b"%d" % (2 * number + 1))
            await trio.sleep(1)
        assert await data_from(peer, 0) == [b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7"]
        assert await data_from(peer, 0, "at", 3) == [b"3", b"4", b"5", b"6", b"7"]
        assert await data_from(peer, 0, "after", 3) == [b"4", b"5", b"6", b"7"]
        assert await data_from(peer, 0, "at", 8) == []
        assert await data_from(peer, 0, "time", EPOCH_MS) == [b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7"]
        assert await data_from(peer, 0, "time", EPOCH_MS + 1) == [b"2", b"3", b"4", b"5", b"6", b"7"]
        assert await data_from(peer, 0, "time", EPOCH_MS + 3_000) == [b"6", b"7"]
        assert await data_from(peer, 0, "time", 0) == [b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7"]
        late, latest = await iterator(peer, 0, "time", EPOCH_MS + 10**9), await iterator(peer, 0, "latest")
        await put(peer, 0, b"8")
        for place in (late, latest):
            assert records_of(await read(peer, place)) == [(8, b"8")]


@on_jumping_clock
async def test_a_read_in_the_middle_of_a_batch_gives_it_whole_and_says_where_to_start() -> None:
    async with house() as one:
        peer = await a_stream(one)
        await put(peer, 0, *[b"%d" % number for number in range(10)])
        records = await read(peer, await iterator(peer, 0, "at", 7))
        assert (records.shard, records.start, records.runs[0].first, records.runs[0].batches[0].count) == (0, 7, 0, 10)
        assert records_of(records) == [(7, b"7"), (8, b"8"), (9, b"9")]
        assert await data_from(peer, 0, "at", 9, max_records=1) == [b"9"]


@on_jumping_clock
async def test_reads_go_on_where_the_last_one_ended_whatever_their_limits() -> None:
    async with house() as one:
        peer = await a_stream(one)
        sent = []
        for number in range(60):
            data = [b"%d.%d" % (number, place) for place in range(number % 7 + 1)]
            await put(peer, 0, *data)
            sent += data
        for options in ({}, {"max_records": 1}, {"max_records": 13}, {"max_bytes": 1}, {"max_bytes": 50, "max_records": 9}):
            assert await all_data(peer, 0, **options) == (sent, [])
        small = await read(peer, await iterator(peer, 0), max_records=1)
        assert len(records_of(small)) == 1
        assert len(records_of(await read(peer, await iterator(peer, 0), max_records=4))) == 6, "1 + 2 + 3: whole batches"


@on_jumping_clock
async def test_old_records_come_from_the_store_page_by_page() -> None:
    async with house() as one:
        peer = await a_stream(one, max_record_bytes=4 * 2**20)
        sent = [bytes([number]) * 700_000 for number in range(20)]
        for data in sent:
            await put(peer, 0, data)
        (runtime,) = one.broker.streams.runtimes.values()
        assert runtime.shard.tip_bytes <= limits.TIP_BYTES
        one.threads.calls.clear()
        assert await all_data(peer, 0, max_bytes=2**20) == (sent, [])
        assert one.threads.calls.count("load_stream") == 9, "two of them in each, and the newest from memory"


@on_jumping_clock
async def test_the_tips_of_all_shards_have_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_service, "TIP_BUDGET_BYTES", 100_000)
    async with house() as one:
        peer = await a_stream(one, 8)
        for turn in range(5):
            for shard in range(8):
                await put(peer, shard, b"%d" % turn * 10_000)
                total = sum(runtime.shard.tip_bytes for runtime in one.broker.streams.runtimes.values())
                assert total <= 100_000
        for shard in range(8):
            assert (await all_data(peer, shard))[0] == [b"%d" % turn * 10_000 for turn in range(5)]
        await peer.call(st.StreamName("s"), "DeleteStream")
        assert one.broker.streams._tip_bytes == 0


@on_jumping_clock
async def test_how_far_behind_a_read_leaves_its_reader() -> None:
    async with house() as one:
        peer = await a_stream(one)
        place = await iterator(peer, 0)
        assert (await read(peer, place)).behind_ms == 0
        for _ in range(3):
            await put(peer, 0, b"x")
            await trio.sleep(10)
        behind = []
        for _ in range(3):
            records = await read(peer, place, max_records=1)
            behind.append(records.behind_ms)
            place = records.next
        assert behind == [20_000, 10_000, 0]


@on_jumping_clock
async def test_the_same_put_again_is_stored_once_also_after_a_restart() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        peer = await a_stream(one)
        assert [await put(peer, 0, b"a", b"b", sequence=1) for _ in range(3)] == [0, 0, 0]
        assert await put(peer, 0, b"c", sequence=2) == 2
        producer = peer.producer
    async with house(disk) as one:
        peer = one.connect()
        await peer.hello(producer=producer)
        assert await put(peer, 0, b"c", sequence=2) == 2
        await peer.call(st.SplitShard("s", 0))
        assert await put(peer, 0, b"c", sequence=2) == 2, "also when the shard was closed meanwhile"
        assert await all_data(peer, 0) == ([b"a", b"b", b"c"], [1, 2])


@on_jumping_clock
async def test_a_put_is_answered_when_it_is_durable() -> None:
    async with house() as one:
        peer = await a_stream(one)
        await put(peer, 0, b"a")
        one.threads.hold("commit")
        putting = await peer.say(batch_of(0, [b"b"]))
        assert not await peer.has_answer(putting)
        assert await data_from(peer, 0) == [b"a"], "and nobody has read it before"
        one.threads.release("commit")
        assert await peer.wait(putting) == st.PutReply(1)
        assert await data_from(peer, 0) == [b"a", b"b"]


# Reading at the tip


@on_jumping_clock
async def test_a_waiting_read_wakes_at_the_commit_and_not_before() -> None:
    async with house() as one:
        peer, putting = await a_stream(one), await one.client()
        waits = await peer.say(st.ReadRecords(await iterator(peer, 0, "latest"), wait_ms=20_000))
        await trio.sleep(3)
        one.threads.hold("commit")
        sent = await putting.say(batch_of(0, [b"a"]))
        await trio.sleep(4)
        assert not await peer.has_answer(waits)
        one.threads.release("commit")
        assert records_of(await peer.wait(waits)) == [(0, b"a")]
        assert 7 <= trio.current_time() < 7.1
        await putting.wait(sent)


@on_jumping_clock
async def test_one_record_wakes_everybody() -> None:
    async with house() as one:
        peer = await a_stream(one, 2)
        readers = [await one.client() for _ in range(20)]
        waits = [await reader.say(st.ReadRecords(await iterator(reader, 0), wait_ms=20_000)) for reader in readers]
        other = await peer.say(st.ReadRecords(await iterator(peer, 1), wait_ms=20_000))
        await trio.testing.wait_all_tasks_blocked()
        assert waiting(one) == 21
        await put(readers[0], 0, b"a")
        for reader, one_wait in zip(readers, waits, strict=True):
            assert records_of(await reader.wait(one_wait)) == [(0, b"a")]
        assert not await peer.has_answer(other), "another shard's reader waits on"


@on_jumping_clock
async def test_a_read_that_waited_in_vain_goes_on_where_it_was() -> None:
    async with house() as one:
        peer = await a_stream(one)
        await put(peer, 0, b"a")
        started = trio.current_time()
        records = await read(peer, await iterator(peer, 0, "latest"), wait_ms=5_000)
        assert 5 <= trio.current_time() - started < 5.1
        assert (records.runs, records.behind_ms, records.children) == ([], 0, [])
        await put(peer, 0, b"b")
        assert records_of(await read(peer, records.next)) == [(1, b"b")]
        assert waiting(one) == 0


@on_jumping_clock
async def test_a_waiting_read_is_forgotten_with_its_client_and_when_it_is_cancelled() -> None:
    async with house() as one:
        peer, leaving = await a_stream(one), await one.client()
        await leaving.say(st.ReadRecords(await iterator(leaving, 0), wait_ms=20_000))
        cancelled = await peer.say(st.ReadRecords(await iterator(peer, 0), wait_ms=20_000))
        await trio.testing.wait_all_tasks_blocked()
        assert waiting(one) == 2
        await leaving.close()
        await trio.testing.wait_all_tasks_blocked()
        assert waiting(one) == 1
        await peer.say(s.Cancel(cancelled))
        with pytest.raises(Cancelled):
            await peer.wait(cancelled)
        assert waiting(one) == 0
        await put(peer, 0, b"a")


@on_jumping_clock
async def test_many_reads_of_little_of_a_slow_client_bring_no_more_than_it_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "OUTBOX_PAUSE_BYTES", 100_000)
    monkeypatch.setattr(session, "OUTBOX_BYTES", 400_000)
    async with house() as one:
        peer = await a_stream(one, 40)
        for shard in range(40):
            await put(peer, shard, bytes(20_000))
        one.broker.streams.drop_all(StoreFailed())
        slow = one.connect(lockstep=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow.write, slow.hello_bytes())
            await slow.wait(1)
        reads = [slow.pack(st.ReadRecords(await iterator(peer, shard), max_bytes=1)) for shard in range(40)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow.write, b"".join(data for _, data in reads))
            await trio.testing.wait_all_tasks_blocked()
            assert one.threads.calls.count("load_stream") < 10, "what a read brings is a whole batch, whatever it asks for"
            found = [await slow.wait(correlation) for correlation, _ in reads]
        assert all(records_of(records) == [(0, bytes(20_000))] for records in found)
        assert not one.broker.counters.connections_failed


@on_jumping_clock
async def test_a_read_that_is_cancelled_while_its_shard_is_loaded_never_waits() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        await a_stream(one)
    async with house(disk) as one:
        peer = await one.client()
        one.threads.hold("_restore")
        opening = await peer.say(st.OpenIterator("s", 0, "latest"))
        await trio.testing.wait_all_tasks_blocked()
        one.threads.release("_restore")
        place = (await peer.wait(opening)).iterator
        one.broker.streams.drop_all(StoreFailed())
        one.threads.hold("_restore")
        reading = await peer.say(st.ReadRecords(place, wait_ms=20_000))
        await peer.say(s.Cancel(reading))
        with pytest.raises(Cancelled):
            await peer.wait(reading)
        one.threads.release("_restore")
        await trio.testing.wait_all_tasks_blocked()
        assert waiting(one) == 0


@on_jumping_clock
async def test_a_stop_ends_waiting_reads_and_lets_puts_be_answered() -> None:
    async with house() as one:
        peer = await a_stream(one)
        waits = await peer.say(st.ReadRecords(await iterator(peer, 0, "latest"), wait_ms=20_000))
        one.threads.hold("commit")
        putting = await peer.say(batch_of(0, [b"a"]))
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.broker.drain, 10)
            with pytest.raises(Draining):
                await peer.wait(waits)
            one.threads.release("commit")
            assert await peer.wait(putting) == st.PutReply(0)


@on_jumping_clock
async def test_deadlines_of_reads_that_were_answered_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_service, "MANY_DEADLINES", 50)
    async with house() as one:
        one.broker.streams._many_deadlines = 50
        peer = await a_stream(one)
        place = await iterator(peer, 0)
        for number in range(500):
            waits = await peer.say(st.ReadRecords(place, wait_ms=20_000))
            await trio.testing.wait_all_tasks_blocked()
            await put(peer, 0, b"%d" % number)
            place = (await peer.wait(waits)).next
            assert len(one.broker.streams._deadlines) <= 51
        started = trio.current_time()
        await read(peer, place, wait_ms=7_000)
        assert 7 <= trio.current_time() - started < 7.1


@pytest.mark.parametrize(
    ("start", "wait_ms", "records"), [("trim_horizon", 0, 4), ("tip", 0, 1), ("latest", 20_000, 1)], ids=["old", "tip", "waiting"]
)
@on_jumping_clock
async def test_a_client_that_asks_for_more_than_it_takes_is_neither_cut_off_nor_served_out_of_memory(
    start: str, wait_ms: int, records: int
) -> None:
    async with house() as one:
        peer, slow = await a_stream(one), one.connect(lockstep=True)
        await slow.hello()
        for number in range(4):
            await put(peer, 0, bytes([number]) * 2**20)
        place = await iterator(peer, 0, "at", 3) if start == "tip" else await iterator(peer, 0, start)
        requests = [slow.pack(st.ReadRecords(place, wait_ms=wait_ms)) for _ in range(80 // records)]
        await slow.write(b"".join(data for _, data in requests))  # (It writes no more until it reads.)
        await trio.testing.wait_all_tasks_blocked()
        if wait_ms:
            assert waiting(one) == len(requests)
            await put(peer, 0, bytes(2**20))
            await trio.testing.wait_all_tasks_blocked()
        held = max(session._outbox_bytes for session in one.broker.sessions)
        assert 2**20 < held <= 24 * 2**20, "some, and not all of it"
        for correlation, _ in requests:
            assert len(records_of(await slow.wait(correlation))) == records
        assert one.broker.counters.connections_failed == {}


# Splitting and merging


@on_jumping_clock
async def test_a_split_closes_its_shard_and_opens_two() -> None:
    async with house() as one:
        peer = await a_stream(one)
        await put(peer, 0, b"a", b"b")
        await trio.sleep(1)
        assert await peer.call(st.SplitShard("s", 0)) == s.Empty()
        middle = 1 << 127
        assert await shards_of(peer) == [
            st.Shard(0, bytes(16), b"\xff" * 16, [], EPOCH_MS, EPOCH_MS + 1_000, 0, 2, 2, 4, EPOCH_MS),
            st.Shard(1, bytes(16), (middle - 1).to_bytes(16, "big"), [0], EPOCH_MS + 1_000, None, 0, 0),
            st.Shard(2, middle.to_bytes(16, "big"), b"\xff" * 16, [0], EPOCH_MS + 1_000, None, 0, 0),
        ]
        with pytest.raises(ShardClosed):
            await put(peer, 0, b"c")
        assert await put(peer, 1, b"c") == 0
        assert await all_data(peer, 0) == ([b"a", b"b"], [1, 2])
        assert await all_data(peer, 1) == ([b"c"], [])
        assert (await peer.call(st.StreamName("s"), "DescribeStream")).shards == 2


@on_jumping_clock
async def test_a_merge_closes_two_shards_and_opens_one() -> None:
    async with house() as one:
        peer = await a_stream(one, 3)
        for shard in range(3):
            await put(peer, shard, b"%d" % shard)
        await peer.call(st.MergeShards("s", 2, 1))
        assert await open_shards(peer) == [0, 3]
        assert (await shards_of(peer))[3].parents == [1, 2]
        for shard in (1, 2):
            assert await all_data(peer, shard) == ([b"%d" % shard], [3])
        await put(peer, 3, b"3")
        await peer.call(st.MergeShards("s", 0, 3))
        assert await open_shards(peer) == [4]


@on_jumping_clock
async def test_a_split_may_be_anywhere_inside() -> None:
    async with house() as one:
        peer = await a_stream(one)
        await peer.call(st.SplitShard("s", 0, (1).to_bytes(16, "big")))
        await peer.call(st.SplitShard("s", 2, b"\xff" * 16))
        assert [(one.low, one.high) for one in await shards_of(peer, state="open")] == [
            (bytes(16), bytes(16)),
            ((1).to_bytes(16, "big"), b"\xff" * 15 + b"\xfe"),
            (b"\xff" * 16, b"\xff" * 16),
        ]
        assert await open_shards(peer) == [1, 3, 4]


@on_jumping_clock
async def test_the_shard_count_goes_up_and_down_and_every_record_is_found_from_its_parents() -> None:
    async with house() as one:
        peer = await a_stream(one)
        sent = []
        for turn, count in enumerate((1, 4, 100, 7, 12, 1)):
            assert (await peer.call(st.SetShardCount("s", count))).shards == count
            opened = await open_shards(peer)
            assert len(opened) == count
            for shard in opened[:10]:
                await put(peer, shard, b"%d in %d" % (turn, shard))
                sent.append(b"%d in %d" % (turn, shard))
        found, todo, done = [], [0], {0}
        for shard in todo:
            data, children = await all_data(peer, shard)
            found += data
            todo += [child for child in children if child not in done]
            done |= set(children)
        assert sorted(found) == sorted(sent)
        assert done == {one.shard for one in await shards_of(peer)}


@on_jumping_clock
async def test_as_many_shards_as_there_are_is_no_change() -> None:
    async with house() as one:
        peer = await a_stream(one, 5)
        assert (await peer.call(st.SetShardCount("s", 5))).shards == 5
        assert await open_shards(peer) == [0, 1, 2, 3, 4]


@on_jumping_clock
async def test_a_waiting_read_wakes_at_a_split_with_the_children() -> None:
    async with house() as one:
        peer, other = await a_stream(one), await one.client()
        waits = await peer.say(st.ReadRecords(await iterator(peer, 0, "latest"), wait_ms=20_000))
        await trio.testing.wait_all_tasks_blocked()
        one.threads.hold("commit")
        splitting = await other.say(st.SplitShard("s", 0))
        assert not await peer.has_answer(waits)
        one.threads.release("commit")
        records = await peer.wait(waits)
        assert (records.runs, records.next, records.children) == ([], b"", [1, 2])
        assert trio.current_time() < 1, "at once, not when its time is over"
        await other.wait(splitting)


@on_jumping_clock
async def test_a_reader_does_not_leave_a_shard_before_its_last_record() -> None:
    """Those that wait for the same commit as the split are still to come."""
    async with house() as one:
        peer, other = await a_stream(one), await one.client()
        await put(peer, 0, b"a")
        tip = await iterator(peer, 0, "latest")
        waits = await peer.say(st.ReadRecords(tip, wait_ms=20_000))
        one.threads.hold("commit")
        first = await other.say(batch_of(0, [b"b"]))  # (Runs; the next two wait together.)
        await trio.testing.wait_all_tasks_blocked()
        second, splitting = await other.say(batch_of(0, [b"c"])), await other.say(st.SplitShard("s", 0))
        await trio.testing.wait_all_tasks_blocked()
        early = await read(peer, tip)
        assert (early.runs, early.children) == ([], [])
        assert early.next, "the split is not durable, so this is not the end"
        one.threads.release("commit")
        for correlation in (first, second, splitting):
            await other.wait(correlation)
        records = await peer.wait(waits)
        found = records_of(records)
        while records.next:
            place = records.next
            records = await read(peer, place)
            found += records_of(records)
        assert found == [(1, b"b"), (2, b"c")]
        assert records.children == [1, 2]
        assert records_of(await read(peer, early.next)) == found


@on_jumping_clock
async def test_a_read_that_waits_gets_what_the_commit_of_the_split_brings() -> None:
    async with house() as one:
        peer, other = await a_stream(one), await one.client()
        await other.call(st.CreateStream("t"))
        waits = await peer.say(st.ReadRecords(await iterator(peer, 0, "latest"), wait_ms=20_000))
        one.threads.hold("commit")
        first = await other.say(batch_of(0, [b"x"], stream="t"))  # (Runs; the next two wait together.)
        await trio.testing.wait_all_tasks_blocked()
        last, splitting = await other.say(batch_of(0, [b"last"])), await other.say(st.SplitShard("s", 0))
        await trio.testing.wait_all_tasks_blocked()
        one.threads.release("commit")
        records = await peer.wait(waits)
        assert records_of(records) == [(0, b"last")]
        if records.next:
            records = await read(peer, records.next)
        assert (records.next, records.children) == (b"", [1, 2])
        for correlation in (first, last, splitting):
            await other.wait(correlation)


@on_jumping_clock
async def test_who_is_told_that_a_shard_is_closed_finds_its_children() -> None:
    async with house() as one:
        peer, other = await a_stream(one), await one.client()
        await put(peer, 0, b"a")
        one.threads.hold("commit")
        splitting = await peer.say(st.SplitShard("s", 0))
        await trio.testing.wait_all_tasks_blocked()
        late = await other.say(batch_of(0, [b"b"]))
        assert not await other.has_answer(late)
        assert await open_shards(peer) == [0]
        one.threads.release("commit")
        with pytest.raises(ShardClosed):
            await other.wait(late)
        assert await open_shards(other) == [1, 2]
        await peer.wait(splitting)


@on_jumping_clock
async def test_one_change_of_a_stream_at_a_time() -> None:
    async with house() as one:
        peer = await a_stream(one, 2)
        await put(peer, 0, b"a")
        await put(peer, 1, b"a")
        one.threads.hold("commit")
        splitting = await peer.say(st.SplitShard("s", 0))
        await trio.testing.wait_all_tasks_blocked()
        for message, name in (
            (st.SplitShard("s", 1), None),
            (st.MergeShards("s", 0, 1), None),
            (st.SetShardCount("s", 7), None),
            (st.SetStreamSettings("s", []), None),
            (st.TagStream("s", []), None),
            (st.StreamName("s"), "DeleteStream"),
        ):
            with pytest.raises(ResourceBusy):
                await peer.call(message, name)
        one.threads.release("commit")
        await peer.wait(splitting)
        await peer.call(st.SplitShard("s", 1))
        assert len(await open_shards(peer)) == 4


@on_jumping_clock
async def test_shards_are_listed_by_state_by_time_and_in_pages() -> None:
    async with house() as one:
        peer = await a_stream(one)
        await trio.sleep(10)
        await peer.call(st.SplitShard("s", 0))
        await trio.sleep(10)
        await peer.call(st.SplitShard("s", 1))

        async def listed(**options: Any) -> list[int]:
            return [shard.shard for shard in await shards_of(peer, **options)]

        assert await listed() == [0, 1, 2, 3, 4]
        assert await listed(state="open") == [2, 3, 4]
        assert await listed(state="closed") == [0, 1]
        assert await listed(at_ms=EPOCH_MS) == [0]
        assert await listed(at_ms=EPOCH_MS + 10_000) == [1, 2]
        assert await listed(at_ms=EPOCH_MS + 25_000) == [2, 3, 4]
        assert await listed(at_ms=EPOCH_MS - 1) == []
        assert await listed(at_ms=EPOCH_MS + 10_000, state="open") == [2]
        page = await peer.call(st.ListShards("s", 1, 2))
        assert ([shard.shard for shard in page.shards], page.more) == ([1, 2], True)
        page = await peer.call(st.ListShards("s", 3, 2))
        assert ([shard.shard for shard in page.shards], page.more) == ([3, 4], False)
        with pytest.raises(InvalidRequest):
            await listed(state="half open")


@on_jumping_clock
async def test_a_thousand_shards_are_opened_and_put_into() -> None:
    async with house() as one:
        peer = await a_stream(one)
        await peer.call(st.SetShardCount("s", 1_000))
        opened = await open_shards(peer)
        assert len(opened) == 1_000
        waits = [await peer.say(batch_of(shard, [b"%d" % shard])) for shard in opened]
        for correlation in waits:
            assert await peer.wait(correlation) == st.PutReply(0)
        with pytest.raises(LimitExceeded):
            await peer.call(st.SetShardCount("s", 9_999))


# Bad input


async def _bad(peer: Peer, name: str) -> None:
    outside = (1 << 126).to_bytes(16, "big")
    place = await iterator(peer, 0)
    match name:
        case "an oversized record":
            await put(peer, 0, bytes(1_048_577))
        case "an oversized batch":
            await put(peer, 0, *[bytes(1_000_000)] * 13)
        case "too many records":
            await peer.call(st.PutRecords("s", 0, 10_001, st.ZSTD, 20_000, b"x"))
        case "a batch that is not what it says":
            await peer.call(st.PutRecords("s", 0, 3, st.PLAIN, 4, msgpack.packb([[b"a", b"b"], ["k", "k"]])))
        case "an unknown codec":
            await peer.call(st.PutRecords("s", 0, 1, 2, 2, msgpack.packb([[b"a"], ["k"]])))
        case "a put into an unknown shard":
            await put(peer, 99, b"a")
        case "a put into an unknown stream":
            await put(peer, 0, b"a", stream="t")
        case "a split of an unknown shard":
            await peer.call(st.SplitShard("s", 99))
        case "an iterator of an unknown shard":
            await iterator(peer, 99)
        case "an iterator of an unknown kind":
            await iterator(peer, 0, "yesterday")
        case "an iterator beyond the tip":
            await iterator(peer, 0, "at", 10**6)
        case "an expired iterator":
            await trio.sleep(301)
            await read(peer, place)
        case "a forged iterator":
            await read(peer, bytes([*place[:15], place[15] ^ 1, *place[16:]]))
        case "no iterator":
            await read(peer, b"")
        case "a read of nothing":
            await read(peer, place, max_records=0)
        case "a read of too much":
            await read(peer, place, max_records=10_001)
        case "a read that waits too long":
            await read(peer, place, wait_ms=20_001)
        case "a split key outside its shard":
            await peer.call(st.SplitShard("s", 3, outside))
        case "a split key at the border":
            await peer.call(st.SplitShard("s", 0, bytes(16)))
        case "a split key of another length":
            await peer.call(st.SplitShard("s", 0, b"\x10"))
        case "a merge of shards that are no neighbours":
            await peer.call(st.MergeShards("s", 0, 2))
        case "a merge with itself":
            await peer.call(st.MergeShards("s", 0, 0))
        case "no shards at all":
            await peer.call(st.SetShardCount("s", 0))
        case "too many shards":
            await peer.call(st.SetShardCount("s", 10_001))
        case _:
            raise AssertionError(name)


BAD: dict[str, type[PenstockError]] = {
    "an oversized record": RecordTooLarge,
    "an oversized batch": BatchTooLarge,
    "too many records": BatchTooLarge,
    "a batch that is not what it says": InvalidRequest,
    "an unknown codec": InvalidRequest,
    "a put into an unknown shard": ShardDoesNotExist,
    "a put into an unknown stream": StreamDoesNotExist,
    "a split of an unknown shard": ShardDoesNotExist,
    "an iterator of an unknown shard": ShardDoesNotExist,
    "an iterator of an unknown kind": InvalidRequest,
    "an iterator beyond the tip": InvalidRequest,
    "an expired iterator": IteratorExpired,
    "a forged iterator": IteratorInvalid,
    "no iterator": IteratorInvalid,
    "a read of nothing": InvalidRequest,
    "a read of too much": InvalidRequest,
    "a read that waits too long": InvalidRequest,
    "a split key outside its shard": InvalidShardRange,
    "a split key at the border": InvalidShardRange,
    "a split key of another length": InvalidRequest,
    "a merge of shards that are no neighbours": ShardsNotAdjacent,
    "a merge with itself": ShardsNotAdjacent,
    "no shards at all": InvalidRequest,
    "too many shards": InvalidRequest,
}


@pytest.mark.parametrize("name", BAD)
@on_jumping_clock
async def test_bad_input_gets_a_typed_error_and_disturbs_nobody(name: str) -> None:
    async with house() as one:
        peer, reader = await a_stream(one, 4), await one.client()
        await put(peer, 0, b"kept")
        before = await shards_of(peer)
        waits = await reader.say(st.ReadRecords(await iterator(reader, 1), wait_ms=20_000))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(BAD[name]):
            await _bad(peer, name)
        if name != "an expired iterator":
            assert waiting(one) == 1
            await put(peer, 1, b"next")
            assert records_of(await reader.wait(waits)) == [(0, b"next")]
        assert await data_from(peer, 0) == [b"kept"]
        assert [shard.closed_ms for shard in await shards_of(peer)] == [shard.closed_ms for shard in before]


@on_jumping_clock
async def test_another_tenants_iterator_opens_nothing() -> None:
    async with house() as one:
        ours, theirs = await one.client(account="111111111111"), await one.client(account="222222222222")
        for peer in (ours, theirs):
            await peer.call(st.CreateStream("s"))
            await put(peer, 0, peer.name.encode())
        stolen = await iterator(ours, 0)
        with pytest.raises(IteratorInvalid):
            await read(theirs, stolen)
        assert await data_from(ours, 0) == [ours.name.encode()]


@on_jumping_clock
async def test_an_iterator_is_good_for_five_minutes_and_each_read_brings_another() -> None:
    async with house() as one:
        peer = await a_stream(one)
        first = place = await iterator(peer, 0)
        for number in range(5):
            await trio.sleep(299)
            await put(peer, 0, b"%d" % number)
            records = await read(peer, place)
            assert records_of(records) == [(number, b"%d" % number)]
            place = records.next
        with pytest.raises(IteratorExpired):
            await read(peer, first)


@on_jumping_clock
async def test_a_closed_shard_is_neither_split_nor_merged_nor_put_into() -> None:
    async with house() as one:
        peer = await a_stream(one, 2)
        await peer.call(st.SplitShard("s", 0))
        for message in (st.SplitShard("s", 0), st.MergeShards("s", 0, 1), st.MergeShards("s", 1, 0), batch_of(0, [b"a"])):
            with pytest.raises(ShardClosed):
                await peer.call(message)


# A store that fails


@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.UNKNOWN_APPLIED, Fault.UNKNOWN_LOST, Fault.FULL])
@on_jumping_clock
async def test_a_put_whose_commit_failed_is_stored_once_when_it_is_tried_again(fault: Fault) -> None:
    async with house() as one:
        peer = await a_stream(one)
        await put(peer, 0, b"a", sequence=1)
        one.faults["commit"] = fault
        with pytest.raises((StoreFailed, OutcomeUnknown, Overloaded)) as caught:
            await put(peer, 0, b"b", sequence=2)
        assert caught.value.retryable
        del one.faults["commit"]
        await trio.sleep(10)
        assert (await data_from(peer, 0))[:1] == [b"a"]
        first = await put(peer, 0, b"b", sequence=2)
        assert first == await put(peer, 0, b"b", sequence=2) >= 1
        last = await put(peer, 0, b"c", sequence=3)
        place, found = await iterator(peer, 0), list[tuple[int, bytes]]()
        while len(found) < 3:
            records = await read(peer, place)
            found += records_of(records)
            place = records.next
        assert found == [(0, b"a"), (first, b"b"), (last, b"c")]
        assert await all_data(peer, 0) == ([b"a", b"b", b"c"], [])


@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.UNKNOWN_APPLIED, Fault.UNKNOWN_LOST])
@on_jumping_clock
async def test_a_split_whose_commit_failed_happened_altogether_or_not_at_all(fault: Fault) -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        peer = await a_stream(one)
        await put(peer, 0, b"a")
        waits = await peer.say(st.ReadRecords(await iterator(peer, 0, "latest"), wait_ms=20_000))
        one.faults["commit"] = fault
        with pytest.raises((StoreFailed, OutcomeUnknown)):
            await peer.call(st.SplitShard("s", 0))
        with pytest.raises(StoreFailed):
            await peer.wait(waits)
        del one.faults["commit"]
        await trio.sleep(10)
        opened = await open_shards(peer)
        assert opened == ([1, 2] if fault is Fault.UNKNOWN_APPLIED else [0])
        for shard in opened:
            await put(peer, shard, b"%d" % shard)
        before = await everything(peer)
        assert before == [b"a", *(b"%d" % shard for shard in opened)]
        await peer.call(st.SetShardCount("s", 3))
    async with house(disk) as one:
        peer = await one.client()
        assert len(await open_shards(peer)) == 3
        assert await everything(peer) == before


@on_jumping_clock
async def test_what_was_put_while_a_split_failed_is_told_to_come_again() -> None:
    """It was refused because of a split that never was: that is no ShardClosed."""
    async with house() as one:
        peer, other = await a_stream(one), await one.client()
        await put(peer, 0, b"a")
        one.threads.hold("commit")
        one.faults["commit"] = Fault.FAIL
        splitting = await peer.say(st.SplitShard("s", 0))
        await trio.testing.wait_all_tasks_blocked()
        late = await other.say(batch_of(0, [b"b"]))
        await trio.testing.wait_all_tasks_blocked()
        one.threads.release("commit")
        for asking, correlation in ((peer, splitting), (other, late)):
            with pytest.raises(StoreFailed):
                await asking.wait(correlation)
        del one.faults["commit"]
        await put(other, 0, b"b")
        assert await all_data(peer, 0) == ([b"a", b"b"], [])


@on_jumping_clock
async def test_on_a_full_store_records_are_read_and_everything_that_adds_is_refused() -> None:
    async with house() as one:
        peer = await a_stream(one, 2)
        await put(peer, 0, b"a")
        one.faults["commit"] = Fault.FULL
        for _ in range(2):
            with pytest.raises(Overloaded):
                await put(peer, 0, b"b")
        for message in (st.CreateStream("t"), st.SplitShard("s", 0), st.SetStreamSettings("s", [])):
            with pytest.raises(Overloaded):
                await peer.call(message)
        assert one.broker.counters.commits["full"] == 1, "after the first nothing that adds takes a commit down"
        assert await data_from(peer, 0) == [b"a"]
        await peer.call(st.StreamName("s"), "DeleteStream")
        del one.faults["commit"]
        await trio.sleep(10)
        await peer.call(st.CreateStream("t"))


@on_jumping_clock
async def test_a_store_that_does_not_answer_loads_is_told_and_works_again_later() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        peer = await a_stream(one)
        await put(peer, 0, b"a")
    async with house(disk) as one:
        peer = await one.client()
        await trio.testing.wait_all_tasks_blocked()
        one.broker.streams.drop_all(StoreFailed())  # (Retention has loaded it.)
        one.faults["load"] = Fault.FAIL
        for message in (st.OpenIterator("s", 0, "latest"), st.ListShards("s"), batch_of(0, [b"b"])):
            with pytest.raises(StoreFailed):
                await peer.call(message)
        del one.faults["load"]
        place = await iterator(peer, 0)
        one.faults["load"] = Fault.FAIL
        with pytest.raises(StoreFailed):
            await read(peer, place)
        with pytest.raises(StoreFailed):
            await iterator(peer, 0, "time", 0)
        del one.faults["load"]
        assert records_of(await read(peer, place)) == [(0, b"a")]


@pytest.mark.parametrize("seed", range(6))
@on_jumping_clock
async def test_whatever_fails_nothing_acknowledged_is_lost_or_stored_twice(seed: int) -> None:
    """Puts and reshards under commits that fail, or of which nobody knows, and a restart in between."""
    chance = random.Random(seed)
    disk = MemoryDisk()
    acknowledged: list[bytes] = []
    sequence = 0
    for life in range(3):
        async with house(disk) as one:
            peer = one.connect()
            await peer.hello(producer=b"the same forever")
            if life == 0:
                await peer.call(st.CreateStream("s", 2))
            for _ in range(60):
                one.faults.clear()
                if chance.random() < 0.3:
                    one.faults["commit"] = chance.choice([Fault.FAIL, Fault.UNKNOWN_APPLIED, Fault.UNKNOWN_LOST])
                try:
                    opened = await open_shards(peer)
                    if chance.random() < 0.15:
                        await peer.call(st.SetShardCount("s", chance.randint(1, 6)))
                        continue
                    sequence += 1
                    data, shard = [b"%d.%d" % (sequence, place) for place in range(chance.randint(1, 4))], chance.choice(opened)
                    for _ in range(10):
                        try:
                            await put(peer, shard, *data, sequence=sequence)
                        except (StoreFailed, OutcomeUnknown):
                            one.faults.clear()
                            await trio.sleep(3)
                        else:
                            acknowledged += data
                            break
                except (StoreFailed, OutcomeUnknown):
                    one.faults.clear()
                    await trio.sleep(3)
            one.faults.clear()
            await trio.sleep(3)
            found = await everything(peer)
            assert sorted(found) == sorted(acknowledged)


# Retention


@on_jumping_clock
async def test_records_go_when_their_time_is_over_and_space_is_given_back() -> None:
    async with house() as one:
        peer = await a_stream(one, retention_ms=HOUR_MS)
        for number in range(10):
            await put(peer, 0, b"%d" % number, b"%d" % number)
            await trio.sleep(600)
        await trio.sleep(PROMPT)
        found = await data_from(peer, 0)
        assert found == [b"%d" % number for number in (5, 5, 6, 6, 7, 7, 8, 8, 9, 9)]
        (shard,) = await shards_of(peer)
        assert (shard.first, shard.end) == (10, 20)
        await trio.sleep(10)
        (log_id,) = one.broker.streams.runtimes
        assert sorted(row.first for row in one.disk.logs[log_id].segments.values()) == [10, 12, 14, 16, 18]
        await trio.sleep(HOUR + PROMPT)
        assert await data_from(peer, 0) == []
        await trio.sleep(10)
        assert one.disk.logs[log_id].segments == {}
        assert await put(peer, 0, b"later") == 20
        assert await data_from(peer, 0, "at", 3) == [b"later"], "what has aged out stands for the oldest"


@on_jumping_clock
async def test_retention_asks_the_store_only_when_something_may_be_old() -> None:
    async with house() as one:
        peer = await a_stream(one, 10, retention_ms=HOUR_MS)
        for shard in range(10):
            await put(peer, shard, b"x")
        await trio.sleep(PROMPT)
        one.threads.calls.clear()
        await trio.sleep(3_300)
        assert "load_heads" not in one.threads.calls
        await trio.sleep(200 + PROMPT)
        assert [shard.first for shard in await shards_of(peer)] == [1] * 10


@on_jumping_clock
async def test_a_changed_retention_holds_for_what_is_there() -> None:
    async with house() as one:
        peer = await a_stream(one, retention_ms=HOUR_MS)
        await put(peer, 0, b"a")
        await trio.sleep(1_800)
        await put(peer, 0, b"b")
        await peer.call(st.SetStreamSettings("s", [q.Setting("retention_ms", 48 * HOUR_MS)]))
        await trio.sleep(HOUR)
        assert await data_from(peer, 0) == [b"a", b"b"]
        await peer.call(st.SetStreamSettings("s", [q.Setting("retention_ms", HOUR_MS + 600_000)]))
        await trio.sleep(PROMPT)
        assert await data_from(peer, 0) == [b"b"]


@on_jumping_clock
async def test_a_read_goes_on_at_the_oldest_record_when_its_own_has_aged_out() -> None:
    async with house() as one:
        peer = await a_stream(one, retention_ms=HOUR_MS)
        await put(peer, 0, b"a", b"b")
        await trio.sleep(HOUR - 120)
        await put(peer, 0, b"c")
        place = await iterator(peer, 0)
        await trio.sleep(240)
        records = await read(peer, place)
        assert (records_of(records), records.start) == ([(2, b"c")], 2)


@on_jumping_clock
async def test_a_closed_shard_is_forgotten_with_its_last_record() -> None:
    async with house() as one:
        peer = await a_stream(one, retention_ms=HOUR_MS)
        await put(peer, 0, b"a")
        await peer.call(st.SplitShard("s", 0))
        await trio.sleep(1_800)
        await put(peer, 1, b"b")
        place = await iterator(peer, 0)
        await trio.sleep(1_790)
        assert [shard.shard for shard in await shards_of(peer)] == [0, 1, 2]
        place = await iterator(peer, 0)
        await trio.sleep(10 + PROMPT)
        assert [(shard.shard, shard.parents) for shard in await shards_of(peer)] == [(1, [0]), (2, [0])]
        with pytest.raises(ShardDoesNotExist):
            await read(peer, place)
        with pytest.raises(ShardDoesNotExist):
            await iterator(peer, 0)
        assert await data_from(peer, 1) == [b"b"]
        await trio.sleep(10)
        assert len(one.disk.logs) == 3, "its log is gone: a stream and two shards are left"
        await trio.sleep(2 * HOUR)
        assert [shard.shard for shard in await shards_of(peer)] == [1, 2], "open shards stay, empty or not"


@on_jumping_clock
async def test_a_link_between_shards_stays_as_long_as_a_reader_may_come_by() -> None:
    """A change of the count opens and closes shards at once: they lead from parents with records to open shards."""
    async with house() as one:
        peer = await a_stream(one, 2, retention_ms=HOUR_MS)
        await put(peer, 0, b"a")
        await peer.call(st.SetShardCount("s", 3))
        (link,) = [shard.shard for shard in await shards_of(peer, state="closed") if shard.parents == [0]]
        parent = one.broker.streams.runtimes[record_of(one).shards[0].log_id]
        await trio.sleep(PROMPT)
        parent.oldest_ms = 2**62  # (As if the store had failed to say that shard 0 is old.)
        await trio.sleep(HOUR)
        assert {0, link} <= {shard.shard for shard in await shards_of(peer)}
        _, children = await all_data(peer, 0)
        assert link in children
        parent.oldest_ms = None
        await trio.sleep(PROMPT)
        assert [shard.shard for shard in await shards_of(peer)] == sorted(await open_shards(peer))


@on_jumping_clock
async def test_a_shard_that_aged_out_while_settings_changed_does_not_come_back() -> None:
    async with house() as one:
        peer = await a_stream(one, retention_ms=HOUR_MS)
        await peer.call(st.SplitShard("s", 0))
        await trio.sleep(HOUR - 30)
        one.threads.hold("commit")
        await trio.sleep(PROMPT)
        changing = await peer.say(st.SetStreamSettings("s", [q.Setting("max_record_bytes", 2_048)]))
        await trio.testing.wait_all_tasks_blocked()
        one.threads.release("commit")
        assert settings_of(await peer.wait(changing))["max_record_bytes"] == 2_048
        await trio.testing.wait_all_tasks_blocked()
        assert [shard.shard for shard in await shards_of(peer)] == [1, 2]
        assert await open_shards(peer) == [1, 2]


@on_jumping_clock
async def test_a_trim_that_failed_is_made_up_for() -> None:
    async with house() as one:
        peer = await a_stream(one, retention_ms=HOUR_MS)
        await put(peer, 0, b"a")
        await trio.sleep(1_800)
        await put(peer, 0, b"b")
        one.faults["commit"] = Fault.FAIL
        await trio.sleep(1_800 + PROMPT)
        del one.faults["commit"]
        await trio.sleep(PROMPT)
        assert await data_from(peer, 0) == [b"b"]


# Real stores


@contextlib.asynccontextmanager
async def house_on(store: Store) -> AsyncIterator[House]:
    """A broker on this store."""
    threads, chance = Threads(), random.Random(7)
    ports = Ports(lambda: EPOCH_MS + int(trio.current_time() * 1000), chance.randbytes, threads.run)
    async with running(store, ports, BrokerOptions(), SEALING_KEY) as broker, trio.open_nursery() as nursery:
        yield House(broker, MemoryDisk(), threads, {}, nursery)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def test_on_a_real_store_records_survive_restarts_reshards_and_time(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/store.db" if kind == "sqlite" else request.getfixturevalue("postgresql_url")
    _through_restarts(url)


@on_jumping_clock
async def _through_restarts(url: str) -> None:
    store = SqlStore.open(url)
    sent: list[bytes] = []
    async with house_on(store) as one:
        peer = await a_stream(one, 2, max_record_bytes=2 * 2**20, retention_ms=HOUR_MS)
        for number in range(40):
            data = [b"%d.%d" % (number, place) for place in range(25)]
            assert await put(peer, number % 2, *data, sequence=number + 1) == number // 2 * 25
            sent += data
        await put(peer, 0, bytes(2 * 2**20), sequence=41)
        await peer.call(st.SetShardCount("s", 3))
        opened = await open_shards(peer)
        for shard in opened:
            await put(peer, shard, b"in %d" % shard)
            sent.append(b"in %d" % shard)
        sent.append(bytes(2 * 2**20))
        assert sorted(await everything(peer)) == sorted(sent)
        tip = await iterator(peer, opened[0], "latest")
        producer = peer.producer
    store.close()
    store = SqlStore.open(url)
    async with house_on(store) as one:
        peer = one.connect()
        await peer.hello(producer=producer)
        assert await open_shards(peer) == opened
        assert sorted(await everything(peer)) == sorted(sent)
        assert await put(peer, 1, *[b"39.%d" % place for place in range(25)], sequence=40) == 19 * 25
        assert await data_from(peer, 0, "at", 60, max_records=1) == [b"4.%d" % place for place in range(10, 25)]
        assert len(await data_from(peer, 0, "time", EPOCH_MS)) == 501
        first = await put(peer, opened[0], b"second life")
        assert records_of(await read(peer, tip)) == [(first, b"second life")]
        await trio.sleep(HOUR - 60)
        for shard in opened:
            await put(peer, shard, b"later")
        await trio.sleep(60 + PROMPT)
        assert await everything(peer) == [b"later"] * 3
        assert [shard.shard for shard in await shards_of(peer)] == sorted(opened)
        await trio.sleep(60)
        assert one.broker.lane.incarnation is not None
        assert store.sweep(one.broker.lane.incarnation, 100) == 0, "what has aged out was removed"
        await peer.call(st.StreamName("s"), "DeleteStream")
    store.close()
