"""Limits of shards: the buckets alone against a model in fractions, then what clients of a whole broker are let do and when."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import msgpack
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as some
from penstock_broker.metrics import BrokerCollector
from penstock_broker.streams import batches, limits
from penstock_broker.streams.ages import WINDOW_MS, IteratorAge
from penstock_broker.streams.throughput import Bucket, Throughput
from penstock_protocol import queue_messages as q
from penstock_protocol import stream_messages as st
from penstock_protocol.errors import InvalidRequest, ThroughputExceeded
from penstock_storage.memory import Fault, MemoryStore

from tests.broker.inside import EPOCH_MS, House, Peer, house, on_jumping_clock
from tests.broker.test_stream_consumers import Subscribed, register, subscribe
from tests.broker.test_streams import a_stream, all_data, batch_of, iterator, open_shards, put, read, shards_of

SECOND = 1_000
PASSES = limits.SHARD_RECORDS_IN


async def limited(one: House, shards: int = 1) -> Peer:
    """A client, and a stream "s" that asks for limits."""
    return await a_stream(one, shards, enforce_shard_limits=True)


def rows(start: int, count: int) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


def counted(one: House) -> dict[str, float]:
    """The metrics of the stream."""
    families = BrokerCollector(one.broker, MemoryStore(one.disk), 10).collect()
    found = {sample.name: sample.value for family in families for sample in family.samples if "stream" in sample.labels}
    return {name.removeprefix("penstock_stream_"): value for name, value in found.items()}


# The buckets


@given(
    some.integers(1, 2_000),
    some.lists(some.tuples(some.integers(-50, 3_000), some.integers(1, 5_000)), max_size=60),
)
def test_a_bucket_is_what_the_model_says_and_never_lets_more_pass_than_its_rate(rate: int, steps: list[tuple[int, int]]) -> None:
    bucket = Bucket(rate)
    level, now_ms = Fraction(rate), EPOCH_MS
    passed = filled = largest = 0
    for elapsed_ms, units in steps:
        now_ms += elapsed_ms
        filled += max(0, elapsed_ms)
        level = min(Fraction(rate), level + Fraction(rate * max(0, elapsed_ms), 1_000))
        passes = bucket.lets_pass(units, now_ms)
        assert passes == (level >= min(units, rate))
        assert bucket.room(now_ms) == level // 1
        pause_ms = bucket.pause_ms(now_ms)
        assert level + Fraction(rate * pause_ms, 1_000) >= 1
        assert not pause_ms or level + Fraction(rate * (pause_ms - 1), 1_000) < 1
        if passes:
            bucket.take(units)
            level -= units
            passed, largest = passed + units, max(largest, units)
    assert passed <= rate + Fraction(rate * filled, 1_000) + max(0, largest - rate)


@given(
    some.lists(some.integers(1, 2_000_000), min_size=1, max_size=30),
    some.integers(0, limits.SHARD_RECORDS_IN),
    some.integers(0, limits.SHARD_BYTES_IN),
)
def test_of_a_batch_that_may_be_cut_as_many_of_the_first_records_pass_as_fit(
    sizes: list[int], records_gone: int, bytes_gone: int
) -> None:
    throughput = Throughput()
    assert throughput.records_in.room(EPOCH_MS) == limits.SHARD_RECORDS_IN
    throughput.records_in.take(records_gone)
    throughput.bytes_in.room(EPOCH_MS)
    throughput.bytes_in.take(bytes_gone)
    records, room = limits.SHARD_RECORDS_IN - records_gone, limits.SHARD_BYTES_IN - bytes_gone
    expected = max((count for count in range(len(sizes) + 1) if count <= records and sum(sizes[:count]) <= room), default=0)
    if not expected and records and not bytes_gone:
        expected = 1  # the first alone is larger than the bucket, which is full
    assert throughput.take_records(len(sizes), sum(sizes), lambda: sizes, EPOCH_MS) == expected
    assert throughput.records_in.room(EPOCH_MS) == records - expected
    assert throughput.bytes_in.room(EPOCH_MS) == room - sum(sizes[:expected])


def test_what_is_larger_than_a_bucket_passes_when_it_is_full_and_is_paid_for_after() -> None:
    throughput = Throughput()
    large = 3 * limits.SHARD_BYTES_IN
    assert throughput.take_records(1, large, None, EPOCH_MS) == 1
    assert throughput.take_records(1, 1, None, EPOCH_MS + 2 * SECOND) == 0
    assert throughput.take_records(1, 1, None, EPOCH_MS + 2 * SECOND + 1) == 1
    assert throughput.take_records(1, large, None, EPOCH_MS + 3 * SECOND) == 0, "it is not full again"
    assert throughput.take_records(1, large, None, EPOCH_MS + 4 * SECOND) == 1


def test_a_read_passes_when_the_bytes_of_earlier_ones_are_paid() -> None:
    throughput = Throughput()
    assert [throughput.take_read(EPOCH_MS) for _ in range(6)] == [True] * 5 + [False]
    assert throughput.take_read(EPOCH_MS + 200)
    assert not throughput.take_read(EPOCH_MS + 399)
    throughput.pay_read(4 * limits.SHARD_BYTES_OUT)
    assert not throughput.take_read(EPOCH_MS + 3_000)
    assert throughput.take_read(EPOCH_MS + 3_201)


def test_the_highest_iterator_age_stands_for_a_minute_and_is_unknown_when_nobody_reads() -> None:
    age = IteratorAge()
    assert age.at(EPOCH_MS) is None
    age.note(7_000, EPOCH_MS)
    age.note(0, EPOCH_MS + 1)
    assert age.at(EPOCH_MS + 1) == 7_000
    age.note(9_000, EPOCH_MS + 2)
    age.note(0, EPOCH_MS + 2 + WINDOW_MS)
    assert age.at(EPOCH_MS + 2 + WINDOW_MS) == 0
    assert age.at(EPOCH_MS + 2 + 3 * WINDOW_MS) is None


# A whole broker


@on_jumping_clock
async def test_limits_are_enforced_only_when_a_provisioned_stream_asks_for_them() -> None:
    async with house() as one:
        peer = await a_stream(one)
        settings: dict[str, bool | str] = {"enforce_shard_limits": True, "mode": "on_demand"}

        async def load() -> list[st.PutReply]:
            return [await peer.call(batch_of(0, rows(0, PASSES), partial=True)) for _ in range(3)]

        assert all(reply.taken is None for reply in await load())
        await peer.call(st.SetStreamSettings("s", [q.Setting(name, value) for name, value in settings.items()]))
        assert all(reply.taken is None for reply in await load())
        place = await iterator(peer, 0)
        for _ in range(10):
            await read(peer, place, max_bytes=1)
        await peer.call(st.SetStreamSettings("s", [q.Setting("mode", "provisioned")]))
        with pytest.raises(ThroughputExceeded):
            await load()
        await peer.call(st.SetStreamSettings("s", [q.Setting("enforce_shard_limits", None)]))
        assert all(reply.taken is None for reply in await load())


@on_jumping_clock
async def test_the_first_records_of_a_batch_pass_and_each_of_the_others_is_throttled() -> None:
    async with house() as one:
        peer = await limited(one)
        assert await peer.call(batch_of(0, rows(0, PASSES + 500), partial=True)) == st.PutReply(0, PASSES)
        with pytest.raises(ThroughputExceeded):
            await peer.call(batch_of(0, rows(PASSES, 500), partial=True))
        await trio.sleep(0.2)
        assert await peer.call(batch_of(0, rows(PASSES, 500), partial=True)) == st.PutReply(PASSES, 200)
        await trio.sleep(1)
        assert await peer.call(batch_of(0, rows(PASSES + 200, 300), partial=True)) == st.PutReply(PASSES + 200)
        assert (await all_data(peer, 0))[0] == rows(0, PASSES + 500)
        assert counted(one)["throttled_records_total"] == 500 + 500 + 300
        assert counted(one)["put_records_total"] == PASSES + 500
        (shard,) = await shards_of(peer)
        assert shard.size_bytes == sum(len(data) + 1 for data in rows(0, PASSES + 500)), "what was cut off is not counted"


@on_jumping_clock
async def test_a_batch_that_may_not_be_cut_is_stored_whole_or_not_at_all() -> None:
    async with house() as one:
        peer = await limited(one)
        assert await put(peer, 0, *rows(0, 2 * PASSES)) == 0
        packed = dataclasses.replace(batch_of(0, [b"z"], partial=True), codec=st.ZSTD, blob=b"not looked into")
        await trio.sleep(1)
        for request in (batch_of(0, [b"x"]), packed):
            with pytest.raises(ThroughputExceeded):
                await peer.call(request)
        await trio.sleep(0.1)
        assert await peer.call(packed) == st.PutReply(2 * PASSES)
        assert (await shards_of(peer))[0].records == 2 * PASSES + 1


@on_jumping_clock
async def test_bytes_in_are_limited_and_a_record_above_the_limit_has_a_second_of_its_own() -> None:
    async with house() as one:
        peer = await limited(one)
        await peer.call(st.SetStreamSettings("s", [q.Setting("max_record_bytes", 4 * 2**20)]))
        assert await peer.call(batch_of(0, [bytes(2**19)] * 3, partial=True)) == st.PutReply(0, 1), "the keys count as well"
        with pytest.raises(ThroughputExceeded):
            await peer.call(batch_of(0, [bytes(3 * 2**20)], partial=True))
        await trio.sleep(1)
        assert await peer.call(batch_of(0, [bytes(3 * 2**20), b"x"], partial=True)) == st.PutReply(1, 1)
        await trio.sleep(2)
        with pytest.raises(ThroughputExceeded):
            await put(peer, 0, b"x")
        await trio.sleep(0.001)
        assert await put(peer, 0, b"x") == 2


@on_jumping_clock
async def test_what_a_shard_owes_it_owes_after_a_while_without_limits_too() -> None:
    async with house() as one:
        peer = await limited(one)
        assert await put(peer, 0, *rows(0, 4 * PASSES)) == 0
        await peer.call(st.SetStreamSettings("s", [q.Setting("enforce_shard_limits", False)]))
        await put(peer, 0, *rows(0, 4 * PASSES))
        await peer.call(st.SetStreamSettings("s", [q.Setting("enforce_shard_limits", True)]))
        await trio.sleep(3)
        with pytest.raises(ThroughputExceeded):
            await put(peer, 0, b"x")
        await trio.sleep(0.001)
        await put(peer, 0, b"x")


@on_jumping_clock
async def test_a_batch_that_breaks_a_rule_is_refused_for_that_and_takes_nothing_from_the_limits() -> None:
    async with house() as one:
        peer = await limited(one)
        for _ in range(3):
            with pytest.raises(InvalidRequest):
                await peer.call(dataclasses.replace(batch_of(0, rows(0, PASSES), partial=True), size_bytes=1))
        assert await put(peer, 0, *rows(0, PASSES)) == 0
        assert counted(one)["throttled_records_total"] == 0


@on_jumping_clock
async def test_each_shard_has_limits_of_its_own_and_a_split_makes_room() -> None:
    async with house() as one:
        peer = await limited(one, 2)
        for shard in (0, 1):
            assert await put(peer, shard, *rows(0, PASSES)) == 0
        await peer.call(st.SplitShard("s", 0))
        for shard in await open_shards(peer):
            if shard == 1:
                with pytest.raises(ThroughputExceeded):
                    await put(peer, shard, b"x")
            else:
                assert await put(peer, shard, b"x") == 0


@on_jumping_clock
async def test_a_put_that_is_repeated_is_answered_as_before_and_not_throttled_also_after_a_restart() -> None:
    async with house() as one:
        peer = await limited(one)
        request = batch_of(0, rows(0, PASSES + 1), partial=True, sequence=1)
        assert await peer.call(request) == st.PutReply(0, PASSES)
        await trio.sleep(1)
        assert await peer.call(request) == st.PutReply(0, PASSES)
        assert await peer.call(batch_of(0, rows(PASSES, 1), partial=True, sequence=2, acknowledged=2)) == st.PutReply(PASSES)
        one.broker.streams.drop_all(ThroughputExceeded())
        again = batch_of(0, rows(PASSES, 1), partial=True, sequence=2, acknowledged=2)
        assert await peer.call(again) == st.PutReply(PASSES)
        assert (await all_data(peer, 0))[0] == rows(0, PASSES + 1)


@on_jumping_clock
async def test_a_put_that_was_throttled_may_come_again_with_its_number() -> None:
    async with house() as one:
        peer = await limited(one)
        await put(peer, 0, *rows(0, PASSES), sequence=1)
        request = batch_of(0, [b"x"], sequence=2)
        with pytest.raises(ThroughputExceeded):
            await peer.call(request)
        await trio.sleep(0.1)
        assert await peer.call(request) == st.PutReply(PASSES)


@on_jumping_clock
async def test_a_part_whose_commit_failed_is_stored_once_when_it_is_tried_again() -> None:
    async with house() as one:
        peer = await limited(one)
        await put(peer, 0, b"first")
        one.faults["commit"] = Fault.FAIL
        request = batch_of(0, rows(0, 2 * PASSES), partial=True, sequence=5)
        with pytest.raises(Exception, match="store"):
            await peer.call(request)
        del one.faults["commit"]
        await trio.sleep(1)
        reply = await peer.call(request)
        assert reply.taken == PASSES
        assert (await all_data(peer, 0))[0] == [b"first", *rows(0, PASSES)]


@on_jumping_clock
async def test_five_reads_a_second_pass_and_as_many_bytes() -> None:
    async with house() as one:
        peer = await limited(one)
        for _ in range(6):
            await put(peer, 0, bytes(2**20 - 1))
            await trio.sleep(1)
        place, tip = await iterator(peer, 0), await iterator(peer, 0, "latest")
        for _ in range(5):
            await read(peer, tip)
        for where in (tip, place):
            with pytest.raises(ThroughputExceeded):
                await read(peer, where)
        assert counted(one)["throttled_reads_total"] == 2
        await trio.sleep(1)
        assert len((await read(peer, place)).runs) == 4, "twice what passes in a second"
        for where in (place, tip):
            await trio.sleep(0.5)
            with pytest.raises(ThroughputExceeded):
                await read(peer, where)
        await trio.sleep(0.01)
        assert len((await read(peer, place)).runs) == 4


@on_jumping_clock
async def test_a_read_that_waits_gets_what_comes() -> None:
    async with house() as one:
        peer, other = await limited(one), await one.client()
        tip = await iterator(peer, 0, "latest")
        waiting = await other.say(st.ReadRecords(tip, wait_ms=20_000))
        for _ in range(4):
            await read(peer, tip)
        with pytest.raises(ThroughputExceeded):
            await read(peer, tip)
        await put(peer, 0, b"x")
        assert (await other.wait(waiting)).runs


# What is pushed

RECORD = 2**20 - 1
"""With its key, half of what passes to a consumer in a second."""


async def kept(one: House, count: int = 7) -> Peer:
    """A client, and a stream "s" that asks for limits since some records of a MiB were put."""
    peer = await a_stream(one)
    for _ in range(count):
        await put(peer, 0, bytes(RECORD))
    await peer.call(st.SetStreamSettings("s", [q.Setting("enforce_shard_limits", True)]))
    return peer


async def pushed_at(subscription: Subscribed, count: int) -> list[float]:
    """When the next pushes came, of one record each, in seconds from the first on, to 10 ms."""
    times = []
    for _ in range(count):
        assert len(await subscription.records()) == 1
        times.append(trio.current_time())
    return [round(one - times[0], 2) for one in times]


@on_jumping_clock
async def test_each_registered_consumer_is_pushed_two_mib_a_second_whatever_others_read() -> None:
    async with house() as one:
        peer = await kept(one)
        found: dict[str, list[float]] = {}

        async def consume(name: str) -> None:
            found[name] = await pushed_at(await subscribe(await one.client(), "trim_horizon", name=name), 7)

        async with trio.open_nursery() as nursery:
            for name in ("audit", "mail"):
                await register(peer, name)
                nursery.start_soon(consume, name)
            assert len((await read(peer, await iterator(peer, 0))).runs) == 4
        assert found == {name: [0, 0, 0, 0.5, 1, 1.5, 2] for name in ("audit", "mail")}
        await read(peer, await iterator(peer, 0))  # (Which would not pass, had the pushes been paid for as reads.)


@on_jumping_clock
async def test_subscribing_anew_brings_nothing_sooner_and_registering_anew_does() -> None:
    async with house() as one:
        peer = await kept(one)
        await register(peer)
        assert await pushed_at(await subscribe(await one.client(), "trim_horizon"), 3) == [0, 0, 0]
        again = await subscribe(await one.client(), "trim_horizon")
        assert await again.is_silent()
        await trio.sleep(0.4)
        again = await subscribe(await one.client(), "trim_horizon")
        await trio.sleep(0.09)
        assert await again.is_silent()
        assert await pushed_at(again, 4) == [0, 0.5, 1, 1.5]
        await peer.call(st.StreamConsumerName("s", "audit"), "DeregisterStreamConsumer")
        await register(peer)
        assert await pushed_at(await subscribe(await one.client(), "trim_horizon"), 3) == [0, 0, 0]


@on_jumping_clock
async def test_pushes_are_not_paced_when_the_stream_asks_for_no_limits_any_more() -> None:
    async with house() as one:
        peer = await kept(one)
        await register(peer)
        subscription = await subscribe(await one.client(), "trim_horizon")
        assert await pushed_at(subscription, 3) == [0, 0, 0]
        await peer.call(st.SetStreamSettings("s", [q.Setting("mode", "on_demand")]))
        assert await pushed_at(subscription, 4) == [0, 0, 0, 0]


# What a shard holds, and how old it is


@on_jumping_clock
async def test_a_shard_tells_how_much_it_holds_and_since_when() -> None:
    async with house() as one:
        peer = await a_stream(one, retention_ms=3_600_000)

        async def told() -> tuple[int, int, int | None]:
            (shard,) = await shards_of(peer)
            return shard.records, shard.size_bytes, None if shard.oldest_ms is None else shard.oldest_ms - EPOCH_MS

        assert await told() == (0, 0, None)
        await put(peer, 0, b"ab", b"c")
        await trio.sleep(1_800)
        await put(peer, 0, b"d")
        assert await told() == (3, 7, 0)
        one.broker.streams.drop_all(ThroughputExceeded())
        assert await told() == (3, 7, 0)
        await trio.sleep(1_900)
        assert await told() == (1, 2, 1_800_000)
        assert counted(one)["oldest_record_age_seconds"] == 1_900
        await trio.sleep(1_900)
        assert await told() == (0, 0, None)
        assert "oldest_record_age_seconds" not in counted(one)
        await put(peer, 0, b"e")
        assert await told() == (1, 2, 5_600_000)


@on_jumping_clock
async def test_iterator_age_is_that_of_the_last_record_a_read_brought() -> None:
    async with house() as one:
        peer = await a_stream(one, 2)
        assert "iterator_age_seconds" not in counted(one)
        await put(peer, 0, b"a")
        await trio.sleep(30)
        await put(peer, 0, b"b")
        place = (await read(peer, await iterator(peer, 0), max_records=1)).next
        assert counted(one)["iterator_age_seconds"] == 30
        await read(peer, await iterator(peer, 1))
        assert counted(one)["iterator_age_seconds"] == 30, "the highest of all shards"
        await trio.sleep(60)
        last = await read(peer, place)
        assert counted(one)["iterator_age_seconds"] == 60
        await trio.sleep(60)
        await read(peer, last.next)
        assert counted(one)["iterator_age_seconds"] == 0, "at the tip"
        await trio.sleep(120)
        assert "iterator_age_seconds" not in counted(one), "nobody reads"


def test_what_is_cut_off_leaves_a_batch_as_if_it_had_come_so() -> None:
    request = batch_of(0, [b"one", b"two", b"three"], key="größe")
    first = batches.first_of(request, 2)
    assert first == st.Batch(2, st.PLAIN, 6 + 2 * 7, msgpack.packb([[b"one", b"two"], ["größe"] * 2]))
    assert batches.sizes(request) == [10, 10, 12]
