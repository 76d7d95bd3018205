"""The log of one shard, alone: what it accepts, what it gives out to be stored, what can be read when."""

from __future__ import annotations

import dataclasses
import tracemalloc
from typing import Any

import msgpack
import pytest
from penstock_broker.streams import batches, iterators, limits
from penstock_broker.streams.iterators import Iterators, Place
from penstock_broker.streams.shard import Reading, Segment, Shard, part_of
from penstock_broker.streams.throughput import Throughput
from penstock_protocol.errors import (
    BatchEmpty,
    BatchTooLarge,
    InvalidRequest,
    IteratorExpired,
    IteratorInvalid,
    PenstockError,
    RecordTooLarge,
    ShardClosed,
)
from penstock_protocol.queue_messages import Run
from penstock_protocol.stream_messages import PLAIN, ZSTD, PutRecords
from penstock_storage.interface import Commit, DeduplicationRow, LogId, LogRow, SegmentRow

LOG = LogId(7)
NOW_MS = 1_700_000_000_000
PRODUCER = b"p" * 16


def put_of(data: list[bytes], keys: list[str] | None = None, **fields: Any) -> PutRecords:
    """A plain batch."""
    keys = ["k"] * len(data) if keys is None else keys
    size_bytes = sum(map(len, data)) + sum(len(key.encode()) for key in keys)
    return dataclasses.replace(PutRecords("s", 0, len(data), PLAIN, size_bytes, msgpack.packb([data, keys])), **fields)


def new_shard() -> Shard:
    return Shard.restore(LogRow(LOG, 0, 0, 0, 0, 0), None, [])


def put(shard: Shard, *data: bytes, now_ms: int = NOW_MS, producer: bytes = PRODUCER, **fields: Any) -> int:
    return shard.put(put_of(list(data), **fields), producer, limits.DEFAULT_RECORD_BYTES, now_ms).first


class Disk:
    """What the commits of one shard have written."""

    def __init__(self) -> None:
        self.rows: list[SegmentRow] = []
        self.commits: list[Commit] = []
        self.reserved = 0
        self.trimmed = 0

    def commit(self, shard: Shard, now_ms: int = NOW_MS) -> bool:
        """One that is durable; whether anything became readable."""
        return self.finish(shard, self.begin(shard, now_ms))

    def begin(self, shard: Shard, now_ms: int = NOW_MS) -> list[Segment]:
        """One that runs."""
        commit = Commit()
        segments = shard.collect(commit, now_ms)
        self.commits.append(commit)
        return segments

    def finish(self, shard: Shard, segments: list[Segment]) -> bool:
        """It is durable."""
        commit = self.commits[-1]
        self.rows += commit.insert_segments
        for _, bound in commit.reservations:
            self.reserved = bound
        for _, bound in commit.trims:
            self.trimmed = bound
        return shard.publish(segments)

    def restored(self) -> Shard:
        """The shard in the next life."""
        rows = [row for row in self.rows if row.first >= self.trimmed]
        last = dataclasses.replace(rows[-1], payload=None) if rows else None
        row = LogRow(
            LOG, self.reserved, self.trimmed, sum(one.count for one in rows), sum(one.size_bytes for one in rows), 0
        )  # fmt: skip
        news = [one for commit in self.commits for one in commit.insert_deduplication]
        return Shard.restore(row, last, news)


def all_of(reading: Reading | None) -> list[tuple[int, bytes]]:
    """Sequence number and data of what was read."""
    assert reading is not None
    found = []
    for run in reading.runs:
        sequence = run.first
        for batch in run.batches:
            data, _ = msgpack.unpackb(batch.blob)
            found += [(sequence + place, one) for place, one in enumerate(data)]
            sequence += batch.count
    return found


def read(shard: Shard, position: int, max_records: int = 10_000, max_bytes: int = 10**9) -> Reading | None:
    return shard.read(position, max_records, max_bytes)


# Putting


def test_a_put_may_name_a_number_that_its_own_are_greater_than_and_that_must_have_been_assigned() -> None:
    shard = new_shard()
    with pytest.raises(InvalidRequest, match="after = 0"):
        put(shard, b"a", after=0)
    assert put(shard, b"a", b"b") == 0
    for beyond in (2, 3, 2**63 - 1):
        with pytest.raises(InvalidRequest, match="from 2 on"):
            put(shard, b"c", after=beyond)
    assert [put(shard, b"c", after=1), put(shard, b"d", after=0), put(shard, b"e", after=3)] == [2, 3, 4]
    assert shard.counters.records_in == 5


def test_what_was_put_before_a_crash_may_be_named_after_it() -> None:
    shard, disk = new_shard(), Disk()
    put(shard, b"a", b"b")
    disk.commit(shard)
    shard = disk.restored()
    assert put(shard, b"c", after=1) > 1
    with pytest.raises(InvalidRequest):
        put(shard, b"d", after=2**62)


def test_a_put_that_is_repeated_is_answered_as_the_first_time_whatever_it_comes_after() -> None:
    shard = new_shard()
    put(shard, b"a")
    assert [put(shard, b"b", sequence=1, after=0) for _ in range(2)] == [1, 1]


def test_records_get_consecutive_sequence_numbers_from_0() -> None:
    shard = new_shard()
    assert [put(shard, b"a", b"b"), put(shard, b"c"), put(shard, b"d")] == [0, 2, 3]


def test_nothing_is_readable_before_its_commit() -> None:
    shard, disk = new_shard(), Disk()
    put(shard, b"a")
    running = disk.begin(shard)
    assert read(shard, 0) == Reading([], 0)
    assert shard.end == 0
    assert disk.finish(shard, running)
    assert all_of(read(shard, 0)) == [(0, b"a")]
    assert shard.end == 1


def test_what_comes_while_a_commit_runs_goes_into_the_next() -> None:
    shard, disk = new_shard(), Disk()
    put(shard, b"a")
    running = disk.begin(shard)
    put(shard, b"b")
    disk.finish(shard, running)
    assert all_of(read(shard, 0)) == [(0, b"a")]
    assert shard.is_dirty
    disk.commit(shard)
    assert all_of(read(shard, 0)) == [(0, b"a"), (1, b"b")]
    assert not shard.is_dirty


def test_batches_that_wait_together_are_one_row_and_stay_as_they_came() -> None:
    shard, disk = new_shard(), Disk()
    one, other = put_of([b"a", b"b"], ["x", "größe"]), put_of([b"c"])
    for request in (one, other):
        shard.put(request, PRODUCER, limits.DEFAULT_RECORD_BYTES, NOW_MS)
    disk.commit(shard)
    (row,) = disk.rows
    assert (row.first, row.count, row.size_bytes, row.sent_ms, row.due_ms) == (0, 3, one.size_bytes + other.size_bytes, NOW_MS, 0)
    assert row.payload is not None
    assert [batch.blob for batch in batches.unpack(row.payload)] == [one.blob, other.blob]
    reading = read(shard, 0)
    assert reading is not None
    assert [batch.blob for run in reading.runs for batch in run.batches] == [one.blob, other.blob]


def test_a_segment_is_bounded_in_records_and_bytes_but_a_batch_is_never_cut() -> None:
    shard, disk = new_shard(), Disk()
    for _ in range(3):
        put(shard, *[b""] * (limits.SEGMENT_RECORDS // 2))
    put(shard, bytes(limits.SEGMENT_BYTES - 100))
    put(shard, bytes(200))
    shard.put(put_of([bytes(limits.MAX_RECORD_BYTES)]), PRODUCER, limits.MAX_RECORD_BYTES, NOW_MS)
    disk.commit(shard)
    assert [row.count for row in disk.rows] == [limits.SEGMENT_RECORDS, limits.SEGMENT_RECORDS // 2, 1, 1, 1]
    assert [row.first for row in disk.rows] == [0, 10_000, 15_000, 15_001, 15_002]


def test_arrival_times_never_fall_even_when_the_clock_does() -> None:
    shard, disk = new_shard(), Disk()
    for now_ms in (NOW_MS, NOW_MS - 60_000, NOW_MS + 1):
        put(shard, b"a", now_ms=now_ms)
        disk.commit(shard, now_ms)
    assert [row.sent_ms for row in disk.rows] == [NOW_MS, NOW_MS, NOW_MS + 1]
    shard = disk.restored()
    put(shard, b"b", now_ms=NOW_MS - 5)
    disk.commit(shard)
    assert disk.rows[-1].sent_ms == NOW_MS + 1


@pytest.mark.parametrize(
    ("error", "text", "fields"),
    [
        (BatchEmpty, "at least one", {"count": 0}),
        (BatchTooLarge, "10,?001", {"count": limits.MAX_BATCH + 1}),
        (BatchTooLarge, "bytes", {"size_bytes": limits.MAX_BATCH_BYTES + 1}),
        (InvalidRequest, "codec = 2", {"codec": 2}),
        (InvalidRequest, "empty blob", {"codec": ZSTD, "blob": b""}),
        (InvalidRequest, "size_bytes = 3", {"size_bytes": 3}),
        (InvalidRequest, "two arrays", {"blob": b""}),
        (InvalidRequest, "two arrays", {"blob": b"\xc1"}),
        (InvalidRequest, "two arrays", {"blob": msgpack.packb([[b"a", b"b"]])}),
        (InvalidRequest, "two arrays", {"blob": msgpack.packb({"a": 1})}),
        (InvalidRequest, "two arrays", {"blob": msgpack.packb([b"a", "k"])}),
        (InvalidRequest, "two arrays", {"blob": msgpack.packb([[b"a", b"b"], ["k", "k"]]) + b"\xc0"}),
        (InvalidRequest, "2 binaries", {"blob": msgpack.packb([[b"a"], ["k"]])}),
        (InvalidRequest, "2 binaries", {"blob": msgpack.packb([[b"a", b"b"], ["k"]])}),
        (InvalidRequest, "2 binaries", {"blob": msgpack.packb([[b"a", "b"], ["k", "k"]])}),
        (InvalidRequest, "2 binaries", {"blob": msgpack.packb([[b"a", b"b"], ["k", 1]])}),
        (InvalidRequest, "record 1", {"blob": msgpack.packb([[b"a", b"b"], ["k", ""]])}),
        (InvalidRequest, "record 0", {"blob": msgpack.packb([[b"a", b"b"], ["k" * 257, "k"]])}),
        (InvalidRequest, "two arrays", {"blob": b"\x92\x92\xc4\x01a\xc4\x01b\x92\xa1\xff\xa1k"}),
    ],
)
def test_a_batch_that_breaks_a_rule_is_refused_whole(error: type[PenstockError], text: str, fields: dict[str, Any]) -> None:
    shard = new_shard()
    with pytest.raises(error, match=text):
        put(shard, b"a", b"b", **fields)
    assert not shard.is_dirty
    assert put(shard, b"c") == 0


def test_a_long_batch_is_checked_like_a_short_one() -> None:
    count = 600  # (Short ones are unpacked in one go, long ones element by element.)
    data, keys = [b"x"] * count, ["k"] * count
    bad = {
        "an array among the data": [[*data[:-1], []], keys],
        "an array among the keys": [data, [*keys[:-1], ["k"]]],
        "a string among the data": [[*data[:-1], "x"], keys],
        "too few keys": [data, keys[:-1]],
        "too many keys": [data, [*keys, "k"]],
        "too much data": [[*data, b"x"], keys],
        "three columns": [data, keys, keys],
        "one column": [data],
    }
    size_bytes = 2 * count
    for columns in bad.values():
        with pytest.raises(InvalidRequest):
            batches.check(PutRecords("s", 0, count, PLAIN, size_bytes, msgpack.packb(columns)), 1024)
    good = msgpack.packb([data, keys])
    batches.check(PutRecords("s", 0, count, PLAIN, size_bytes, good), 1024)
    for blob in (good[:-1], good + b"\xc0", good[:-1] + b"\xc1", b"", good[:5]):
        with pytest.raises(InvalidRequest):
            batches.check(PutRecords("s", 0, count, PLAIN, size_bytes, blob), 1024)
    data[500] = bytes(1025)
    with pytest.raises(RecordTooLarge, match="record 500"):
        batches.check(PutRecords("s", 0, count, PLAIN, size_bytes + 1024, msgpack.packb([data, keys])), 1024)


def test_a_record_may_be_as_long_as_the_stream_allows_and_no_longer() -> None:
    shard = new_shard()
    request = put_of([b"a", bytes(2_048)])
    with pytest.raises(RecordTooLarge, match="record 1 has 2048 bytes; the stream allows 2047"):
        shard.put(request, PRODUCER, 2_047, NOW_MS)
    assert shard.put(request, PRODUCER, 2_048, NOW_MS).first == 0


@pytest.mark.parametrize("count", [2, 512, 10_000])
def test_a_hostile_blob_does_not_become_large_memory(count: int) -> None:
    """A million empty arrays, and arrays nested in arrays that each say they are long."""
    long = b"\xdc" + count.to_bytes(2, "big")
    hostile = [b"\x92" + long + (long + b"\x90" * count) * min(count, 1_000_000 // count), long * 10_000, b"\x92" * 1_000_000]
    for blob in hostile:
        request = PutRecords("s", 0, count, PLAIN, 2 * count, blob)
        tracemalloc.start()
        with pytest.raises(InvalidRequest):
            batches.check(request, limits.DEFAULT_RECORD_BYTES)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * 2**20


def test_a_compressed_batch_is_taken_at_its_word() -> None:
    shard, disk = new_shard(), Disk()
    assert put(shard, b"a", codec=ZSTD, blob=b"whatever", count=500, size_bytes=10_000) == 0
    assert put(shard, b"b") == 500
    disk.commit(shard)
    assert disk.rows[0].size_bytes == 10_002


# Idempotence


def test_the_same_put_again_is_answered_the_same_and_stored_once() -> None:
    shard, disk = new_shard(), Disk()
    assert put(shard, b"a", b"b", sequence=1) == 0
    assert put(shard, b"a", b"b", sequence=1) == 0
    disk.commit(shard)
    assert put(shard, b"a", b"b", sequence=1) == 0
    assert put(shard, b"c", sequence=2) == 2
    assert put(shard, b"c", sequence=2, producer=b"q" * 16) == 3
    disk.commit(shard)
    assert all_of(read(shard, 0)) == [(0, b"a"), (1, b"b"), (2, b"c"), (3, b"c")]


def test_a_put_without_a_number_is_stored_each_time() -> None:
    shard = new_shard()
    assert [put(shard, b"a"), put(shard, b"a")] == [0, 1]


def test_a_restarted_shard_answers_a_retry_the_same() -> None:
    shard, disk = new_shard(), Disk()
    put(shard, b"a", sequence=1)
    put(shard, b"b", b"c", sequence=2)
    disk.commit(shard)
    again = disk.restored()
    assert put(again, b"b", b"c", sequence=2) == 1
    assert not again.is_dirty
    assert put(again, b"d", sequence=3) >= disk.reserved


def test_an_answer_that_was_stored_before_there_were_limits_is_one_of_all_its_records() -> None:
    entries = bytes.fromhex(
        "959294c4107070707070707070707070707070707001919200019094c41070707070707070707070707070707070029192010290c40090909192c410"
        "7070707070707070707070707070707001"
    )
    last = SegmentRow(LOG, 0, 0, 3, 6, NOW_MS, None)
    shard = Shard.restore(LogRow(LOG, 3, 0, 3, 6, 0), last, [DeduplicationRow(LOG, NOW_MS, 3, entries)])
    request = put_of([b"b", b"c"], sequence=2, acknowledged=1, partial=True)
    assert shard.put(request, PRODUCER, limits.DEFAULT_RECORD_BYTES, NOW_MS, Throughput()) == Run(1, request.count)


def test_a_closed_shard_answers_a_retry_and_refuses_everything_else() -> None:
    shard, disk = new_shard(), Disk()
    put(shard, b"a", sequence=1)
    disk.commit(shard)
    shard.close()
    assert put(shard, b"a", sequence=1) == 0
    with pytest.raises(ShardClosed):
        put(shard, b"b", sequence=2)
    with pytest.raises(ShardClosed):
        put(shard, b"b")


def test_a_late_copy_of_an_acknowledged_put_is_refused() -> None:
    shard = new_shard()
    put(shard, b"a", sequence=1)
    put(shard, b"b", sequence=2, acknowledged=2)
    with pytest.raises(InvalidRequest):
        put(shard, b"a", sequence=1)


def test_a_put_that_was_refused_is_judged_anew() -> None:
    shard = new_shard()
    with pytest.raises(InvalidRequest):
        put(shard, b"a", sequence=1, size_bytes=99)
    assert put(shard, b"a", sequence=1) == 0


# Reading


def test_a_read_gives_whole_batches_until_a_limit_is_reached() -> None:
    shard, disk = new_shard(), Disk()
    for number in range(4):
        put(shard, *[b"%d%d" % (number, place) for place in range(5)])
        if number % 2:
            disk.commit(shard)
    taken = {
        (0, 1, 10**6): 5,
        (0, 5, 10**6): 5,
        (0, 6, 10**6): 10,
        (0, 11, 10**6): 15,
        (0, 10**6, 1): 5,
        (0, 10**6, 16): 10,
        (7, 1, 10**6): 10,
        (12, 100, 10**6): 20,
    }
    for (position, max_records, max_bytes), end in taken.items():
        reading = read(shard, position, max_records, max_bytes)
        assert reading is not None
        assert reading.position == end
        assert all_of(reading)[-1][0] == end - 1
        assert all_of(reading)[0][0] == position // 5 * 5, "the batch that holds it, whole"


def test_a_read_at_the_end_or_beyond_gives_nothing_and_stays() -> None:
    shard, disk = new_shard(), Disk()
    put(shard, b"a")
    disk.commit(shard)
    assert read(shard, 1) == Reading([], 1)
    assert read(shard, 2) == Reading([], 2)


def test_only_the_newest_records_stay_in_memory() -> None:
    shard, disk = new_shard(), Disk()
    for _ in range(5):
        put(shard, bytes(limits.TIP_BYTES // 4))
        disk.commit(shard)
    assert shard.tip_bytes <= limits.TIP_BYTES
    assert read(shard, 0) is None, "it is in the store"
    assert shard.behind_ms(0, NOW_MS) is None
    assert all_of(read(shard, 4))
    dropped = shard.tip_bytes
    assert shard.shed() == dropped
    assert shard.tip_bytes == 0
    assert read(shard, 4) is None
    assert read(shard, 5) == Reading([], 5)
    put(shard, b"next")
    disk.commit(shard)
    assert all_of(read(shard, 5)) == [(5, b"next")]


def test_one_batch_larger_than_the_tip_still_is_the_tip() -> None:
    shard, disk = new_shard(), Disk()
    put(shard, b"small")
    disk.commit(shard)
    shard.put(put_of([bytes(2 * limits.TIP_BYTES)]), PRODUCER, limits.MAX_RECORD_BYTES, NOW_MS)
    disk.commit(shard)
    assert read(shard, 0) is None
    assert len(all_of(read(shard, 1))) == 1


def test_a_part_of_a_stored_segment_begins_with_the_batch_that_holds_the_position() -> None:
    shard, disk = new_shard(), Disk()
    for number in range(3):
        put(shard, b"%d" % number, b"x")
    disk.commit(shard)
    (row,) = disk.rows
    assert row.payload is not None
    stored = batches.unpack(row.payload)
    for position, first in ((0, 0), (1, 0), (2, 2), (3, 2), (5, 4)):
        run, end = part_of(row.first, row.sent_ms, stored, position, 10_000, 10**6)
        assert (run.first, run.arrived_ms, len(run.batches), end) == (first, NOW_MS, 3 - first // 2, 6)
    run, end = part_of(row.first, row.sent_ms, stored, 1, 1, 10**6)
    assert (run.first, len(run.batches), end) == (0, 1, 2)


def test_how_far_behind_a_reader_is_is_the_age_of_the_next_record() -> None:
    shard, disk = new_shard(), Disk()
    assert shard.behind_ms(0, NOW_MS) == 0
    put(shard, b"a")
    disk.commit(shard)
    put(shard, b"b", now_ms=NOW_MS + 500)
    disk.commit(shard)
    assert [shard.behind_ms(place, NOW_MS + 2_000) for place in (0, 1, 2)] == [2_000, 1_500, 0]
    assert shard.behind_ms(0, NOW_MS - 5) == 1, "it is behind, whatever the clock says"


# Sequence numbers over crashes


def test_a_new_life_begins_beyond_every_number_that_may_have_been_used() -> None:
    shard, disk = new_shard(), Disk()
    put(shard, b"a")
    disk.commit(shard)
    put(shard, b"lost")
    disk.begin(shard)  # (The crash.)
    assert disk.commits[-1].reservations == [], "reserved long ago"
    again = disk.restored()
    first = put(again, b"b")
    assert first >= disk.reserved > 1
    disk.commit(again)
    assert disk.reserved > first
    assert [(row.first, row.count) for row in disk.rows] == [(0, 1), (first, 1)]


def test_numbers_are_reserved_in_the_commit_that_first_uses_them() -> None:
    shard, disk = new_shard(), Disk()
    total = 0
    while total <= limits.RESERVE_SEQUENCES + 20_000:
        put(shard, b"z", codec=ZSTD, count=10_000, size_bytes=10_000)
        disk.commit(shard)
        total += 10_000
        assert disk.reserved >= total
    assert len([commit for commit in disk.commits if commit.reservations]) == 2


def test_a_reader_passes_over_a_gap() -> None:
    shard, disk = new_shard(), Disk()
    put(shard, b"a")
    disk.commit(shard)
    again = disk.restored()
    assert again.end == 1, "what is put next is behind it, wherever that is"
    assert read(again, 1) == Reading([], 1)
    first = put(again, b"b")
    disk.commit(again)
    assert read(again, 1) is None, "memory cannot know what the store has between"
    assert all_of(read(again, first)) == [(first, b"b")]


# Trimming


def test_a_trim_is_by_segment_and_takes_nothing_from_the_rest() -> None:
    shard, disk = new_shard(), Disk()
    for number in range(3):
        put(shard, b"%d" % number, b"x")
        disk.commit(shard)
    assert (shard.records, shard.size_bytes) == (6, 12)
    shard.trim(4, 4, 8)
    assert (shard.trimmed, shard.records, shard.size_bytes, shard.counters.trimmed) == (4, 2, 4, 4)
    assert shard.is_dirty
    disk.commit(shard)
    assert disk.commits[-1].trims == [(LOG, 4)]
    assert all_of(read(shard, 0)) == [(4, b"2"), (5, b"x")]
    shard.trim(2, 2, 4)
    assert shard.trimmed == 4, "never back"
    assert not shard.is_dirty
    again = disk.restored()
    assert (again.trimmed, again.end, again.records, again.size_bytes) == (4, 6, 2, 4)


def test_a_shard_whose_records_are_all_gone_goes_on_counting() -> None:
    shard, disk = new_shard(), Disk()
    put(shard, b"a", b"b")
    disk.commit(shard)
    shard.trim(2, 2, 4)
    disk.commit(shard)
    assert shard.tip_bytes == 0
    assert put(shard, b"c") == 2
    again = disk.restored()
    assert (again.trimmed, again.end, again.records) == (2, 2, 0)
    assert put(again, b"d") >= disk.reserved


# Closing


def test_readers_learn_that_a_shard_is_closed_once_that_is_durable() -> None:
    """Before that there may be records to come, and there are no children to go on with."""
    shard, disk = new_shard(), Disk()
    put(shard, b"a")
    disk.commit(shard)
    put(shard, b"b")
    assert shard.close() == 2
    with pytest.raises(ShardClosed):
        put(shard, b"c")
    assert not shard.read_out(1)
    disk.commit(shard)
    assert not shard.read_out(2)
    shard.seal()
    assert not shard.read_out(1)
    assert shard.read_out(2)


def test_a_shard_that_was_closed_stays_so_in_the_next_life() -> None:
    shard, disk = new_shard(), Disk()
    put(shard, b"a")
    disk.commit(shard)
    end = shard.close()
    again = disk.restored()
    again.stay_closed(end)
    assert again.read_out(1)
    assert not again.read_out(0)
    with pytest.raises(ShardClosed):
        put(again, b"b")


# Iterators


def test_an_iterator_says_where_it_stands_for_five_minutes() -> None:
    issuer = Iterators(b"s" * 32)
    place = Place(LOG, 2**63 - 1)
    iterator = issuer.issue(place, NOW_MS)
    assert len(iterator) == 32
    assert issuer.check(iterator, NOW_MS + limits.ITERATOR_MS) == place
    assert Iterators(b"s" * 32).check(iterator, NOW_MS) == place, "also after a restart"
    with pytest.raises(IteratorExpired):
        issuer.check(iterator, NOW_MS + limits.ITERATOR_MS + 1)


def test_an_iterator_cannot_be_forged() -> None:
    issuer = Iterators(b"s" * 32)
    iterator = issuer.issue(Place(LOG, 5), NOW_MS)
    forged = [bytes([*iterator[:place], iterator[place] ^ 1, *iterator[place + 1 :]]) for place in range(32)]
    forged += [b"", bytes(32), iterator[:-1], iterator + b"x", Iterators(b"t" * 32).issue(Place(LOG, 5), NOW_MS)]
    for one in forged:
        with pytest.raises(IteratorInvalid):
            issuer.check(one, NOW_MS)
    assert iterators.Place(LOG, 5) == issuer.check(iterator, NOW_MS)
