"""Records without a broker: which shard has them, how they are packed, and what a reader refuses to unpack."""

from __future__ import annotations

import hashlib
import random
from datetime import UTC, datetime
from typing import Any

import msgpack
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as some
from penstock import InvalidRequest, OutgoingRecord, Record, RecordBatch, RecordsUnreadable, RecordTooLarge
from penstock.records import HASHES, Columns, ShardMap, hash_bytes, pack
from penstock_protocol.stream_messages import PLAIN, ZSTD, Batch, Shard


def shard_map(*bounds: int, max_record_bytes: int = 1_048_576) -> ShardMap:
    """Shards 0, 1, 2 … whose hashes begin at 0 and at the bounds."""
    lows = [0, *bounds]
    highs = [*(one - 1 for one in bounds), HASHES - 1]
    return ShardMap(shards(lows, highs), max_record_bytes)


def shards(lows: list[int], highs: list[int]) -> list[Shard]:
    both = zip(lows, highs, strict=True)
    return [Shard(n, a.to_bytes(16, "big"), b.to_bytes(16, "big"), [], 0, None, 0, 0) for n, (a, b) in enumerate(both)]


def batch_of(columns: Columns, codec: int = PLAIN, **changes: Any) -> Batch:
    values: dict[str, Any] = {"count": len(columns), "size_bytes": columns.size_bytes, "blob": pack(columns, codec)}
    values |= changes
    return Batch(values["count"], codec, values["size_bytes"], values["blob"])


# Which shard


@given(some.lists(some.integers(1, HASHES - 1), max_size=20, unique=True), some.text(min_size=1, max_size=300))
def test_a_record_belongs_to_the_shard_whose_range_holds_the_md5_of_its_key(bounds: list[int], key: str) -> None:
    bounds.sort()
    key = key.encode(errors="ignore").decode() or "k"
    hashed = int.from_bytes(hashlib.md5(key.encode(), usedforsecurity=False).digest(), "big")
    expected = sum(bound <= hashed for bound in bounds)
    assert shard_map(*bounds).shard_of(key) == expected


@given(some.lists(some.tuples(some.text("abcä", min_size=1, max_size=3), some.none() | some.integers(0, HASHES - 1))))
def test_grouping_puts_every_record_where_it_would_go_alone_and_keeps_the_order(rows: list[tuple[str, int | None]]) -> None:
    shards = shard_map(HASHES // 3, HASHES // 2)
    records = [OutgoingRecord(b"%d" % place, key, explicit) for place, (key, explicit) in enumerate(rows)]
    seen: list[int] = []
    for shard, places, columns in shards.group(Columns.of_rows(records)):
        places = list(range(len(rows))) if places is None else places
        assert places == sorted(places)
        assert columns.data == [b"%d" % place for place in places]
        assert [shards.shard_of(rows[place][0], hash_bytes(rows[place][1])) for place in places] == [shard] * len(places)
        assert columns.size_bytes == sum(len(columns.data[n]) + len(columns.keys[n].encode()) for n in range(len(columns)))
        seen += places
    assert sorted(seen) == list(range(len(rows)))


def test_shards_fit_together_when_they_have_every_hash_once() -> None:
    assert ShardMap.is_whole(shards([0], [HASHES - 1]))
    assert ShardMap.is_whole(shards([100, 0], [HASHES - 1, 99]))
    assert not ShardMap.is_whole(shards([0, 101], [99, HASHES - 1]))
    assert not ShardMap.is_whole(shards([0, 99], [99, HASHES - 1]))
    assert not ShardMap.is_whole(shards([0], [99]))
    assert not ShardMap.is_whole([])


# Columns


def test_records_of_every_shape_become_columns() -> None:
    columns = Columns.of_rows([(b"a", "k"), OutgoingRecord("ä", "ö", 7), ("c", "k")])
    assert (columns.data, columns.keys, columns.size_bytes) == ([b"a", "ä".encode(), b"c"], ["k", "ö", "k"], 8)
    assert columns.hashes == [None, (7).to_bytes(16, "big"), None]
    assert columns.row(1) == OutgoingRecord("ä".encode(), "ö", 7)
    assert len(Columns.of_rows([])) == 0


@pytest.mark.parametrize(
    ("records", "error"),
    [
        ([(5, "k")], TypeError),
        ([(b"x", b"k")], TypeError),
        ([(b"x",)], TypeError),
        ([(b"x", "\ud800")], UnicodeEncodeError),
        ([OutgoingRecord(b"x", "k", HASHES)], InvalidRequest),
        ([OutgoingRecord(b"x", "k", -1)], InvalidRequest),
    ],
)
def test_what_has_no_form_on_the_wire_is_refused_at_once(records: list[Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Columns.of_rows(records)


def test_each_record_that_breaks_a_rule_is_named() -> None:
    columns = Columns.of([b"x", b"x", b"y" * 11, b"y" * 10, b"x"], ["", "k" * 257, "k", "k" * 256, "k"])
    problems = columns.problems(10)
    assert list(problems) == [0, 1, 2]
    assert isinstance(problems[0], InvalidRequest) and isinstance(problems[1], InvalidRequest)
    assert isinstance(problems[2], RecordTooLarge) and "11 bytes" in str(problems[2])


@given(some.lists(some.integers(0, 50), max_size=60), some.integers(1, 20), some.integers(1, 200))
def test_pieces_are_within_the_limits_or_one_record_and_lose_nothing(sizes: list[int], records: int, limit: int) -> None:
    columns = Columns.of([b"x" * size for size in sizes], ["k"] * len(sizes))
    pieces = list(columns.pieces(records, limit))
    assert [len(data) for piece in pieces for data in piece.data] == sizes
    assert all(len(piece) == 1 or (len(piece) <= records and len(pack(piece, PLAIN)) <= limit + 11) for piece in pieces)


# Packing


@pytest.mark.parametrize("codec", [PLAIN, ZSTD])
def test_what_was_packed_is_unpacked(codec: int) -> None:
    rng = random.Random(5)
    columns = Columns.of([rng.randbytes(size) for size in (0, 1, 255, 70_000)], ["a", "ä" * 256, "c", "d"])
    batch = RecordBatch(3, 100, 1_500, batch_of(columns, codec))
    assert (batch.data, batch.keys, len(batch), batch.first, batch.end) == (columns.data, columns.keys, 4, 100, 104)
    assert list(batch)[1] == Record(columns.data[1], "ä" * 256, 101, 3, 1_500)
    assert type(list(batch)[1]) is Record
    assert batch.arrived_at == datetime.fromtimestamp(1.5, UTC) == next(iter(batch)).arrived_at


def test_records_before_the_start_are_skipped() -> None:
    batch = RecordBatch(0, 100, 0, batch_of(Columns.of([b"a", b"b", b"c"], ["1", "2", "3"])), 2)
    assert [(one.data, one.key, one.sequence) for one in batch] == [(b"c", "3", 102)]
    assert (len(batch), batch.first, batch.end, batch.data, batch.keys) == (1, 102, 103, [b"c"], ["3"])


def test_a_batch_is_unpacked_when_it_is_looked_at_and_no_sooner() -> None:
    batch = RecordBatch(0, 5, 0, Batch(10, PLAIN, 5, b"rubbish"))
    assert (batch.count, batch.end, bool(batch)) == (10, 15, True)
    with pytest.raises(RecordsUnreadable):
        list(batch)
    with pytest.raises(RecordsUnreadable):
        len(batch)


GOOD = Columns.of([b"a", b"b"], ["1", "2"])


@pytest.mark.parametrize(
    "batch",
    [
        Batch(2, PLAIN, 4, b""),
        Batch(2, PLAIN, 4, pack(GOOD, PLAIN) + b"x"),
        Batch(3, PLAIN, 4, pack(GOOD, PLAIN)),
        Batch(1, PLAIN, 4, pack(GOOD, PLAIN)),
        Batch(2, PLAIN, 4, msgpack.packb([["a", "b"], ["1", "2"]])),
        Batch(2, PLAIN, 4, msgpack.packb([[b"a", b"b"], [b"1", b"2"]])),
        Batch(2, PLAIN, 4, msgpack.packb([[b"a", b"b"], ["1"]])),
        Batch(2, PLAIN, 4, msgpack.packb([[b"a", [b"b"]], ["1", "2"]])),
        Batch(2, PLAIN, 4, msgpack.packb({1: 2})),
        Batch(2, PLAIN, 4, b"\x91" * 5_000),
        Batch(2, 7, 4, pack(GOOD, PLAIN)),
        Batch(2, ZSTD, 4, b"rubbish"),
        Batch(2, ZSTD, 4, pack(GOOD, ZSTD)[:-1]),
        Batch(2, ZSTD, 4, pack(GOOD, ZSTD) + b"x"),
    ],
)
def test_a_batch_that_is_not_what_it_says_is_refused(batch: Batch) -> None:
    with pytest.raises(RecordsUnreadable):
        list(RecordBatch(0, 0, 0, batch))


@pytest.mark.parametrize("declares", [True, False])
def test_a_compressed_batch_gets_no_more_memory_than_it_declared(declares: bool) -> None:
    bomb = Columns.of([bytes(50_000_000)], ["k"])
    blob = zstandard.ZstdCompressor(write_content_size=declares).compress(pack(bomb, PLAIN))
    assert len(blob) < 10_000
    with pytest.raises(RecordsUnreadable):
        list(RecordBatch(0, 0, 0, Batch(1, ZSTD, 1_000, blob)))
    whole = RecordBatch(0, 0, 0, Batch(1, ZSTD, bomb.size_bytes, blob))
    assert whole.data == bomb.data
