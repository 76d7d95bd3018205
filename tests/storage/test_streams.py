"""What every store promises of logs that are read by position, over memory, SQLite and PostgreSQL."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from penstock_storage.interface import Commit, CommitFailed, LogId, ResourceRow, SegmentRow

from tests.storage.rows import Home, arrivals, firsts, queue, segment, with_queue

LOG = LogId(7)


def numbers(rows: Sequence[SegmentRow]) -> list[int]:
    return [row.first for row in rows]


def shard(number: int) -> ResourceRow:
    return dataclasses.replace(queue(number, number, f"stream/{number:012}"), kind="shard")


def test_a_stream_is_read_from_the_segment_that_contains_the_position_or_the_first_after_it(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    rows = [segment(7, 10, 5, payload=b"a"), segment(7, 15, 3, payload=b""), segment(7, 30, 1, payload=b"\x00c")]
    neighbours = [segment(6, 12), segment(8, 31)]
    store.commit(incarnation, Commit(upsert_resources=[queue(6, 6), queue(8, 8)]))
    store.commit(incarnation, Commit(insert_segments=[*rows, *neighbours]))
    for position, expected in [
        (0, [10, 15, 30]),
        (9, [10, 15, 30]),
        (10, [10, 15, 30]),
        (14, [10, 15, 30]),
        (15, [15, 30]),
        (17, [15, 30]),
        (18, [30]),
        (29, [30]),
        (30, [30]),
        (31, []),
        (2**62, []),
    ]:
        whole, heads = store.load_stream(LOG, position, 100, 10**6), store.load_heads(LOG, position, 100)
        assert numbers(whole) == expected, position
        assert whole == [row for row in rows if row.first in expected]
        assert heads == [dataclasses.replace(row, payload=None) for row in whole]
    assert store.load_stream(LogId(99), 0, 100, 10**6) == []
    assert store.load_heads(LogId(99), 0, 100) == []


def test_a_stream_is_read_in_pages_of_so_many_segments(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    rows = [segment(7, 10 * number, 4) for number in range(1, 8)]
    # In whatever order they were stored.
    store.commit(incarnation, Commit(insert_segments=rows[::-1]))

    def whole(position: int, limit: int) -> list[SegmentRow]:
        return store.load_stream(LOG, position, limit, 10**6)

    def heads(position: int, limit: int) -> list[SegmentRow]:
        return store.load_heads(LOG, position, limit)

    for load in (whole, heads):
        seen: list[int] = []
        position = 0
        while page := load(position, 3):
            assert len(page) == min(3, 7 - len(seen))
            seen += numbers(page)
            position = page[-1].first + page[-1].count
        assert seen == numbers(rows)
        # A position in a gap, or inside a segment, costs no segment of the page.
        assert numbers(load(14, 2)) == [20, 30]
        assert numbers(load(23, 2)) == [20, 30]
        assert numbers(load(64, 1)) == [70]
        assert load(0, 0) == [] and load(0, -1) == []


def test_a_page_of_a_stream_ends_with_the_segment_that_fills_the_bytes(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    rows = [segment(7, 10 * number, 4, payload=b"x" * 100) for number in range(1, 9)]
    store.commit(incarnation, Commit(insert_segments=rows))
    for max_bytes, expected in [(0, 1), (1, 1), (100, 1), (101, 2), (350, 4), (10_000, 8)]:
        assert len(store.load_stream(LOG, 10, 100, max_bytes)) == expected, max_bytes
    # What ends before the position does not count.
    assert numbers(store.load_stream(LOG, 14, 100, 101)) == [20, 30]
    assert numbers(store.load_stream(LOG, 13, 100, 101)) == [10, 20]
    assert numbers(store.load_stream(LOG, 14, 100, 0)) == [20]


def test_nothing_of_a_stream_is_read_from_before_its_trim_point(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    rows = [segment(7, 10 * number, 10) for number in range(1, 8)]
    store.commit(incarnation, Commit(insert_segments=rows))
    # The last one is inside a segment, which goes with it.
    for trim, expected in [(10, 10), (30, 30), (45, 50)]:
        store.commit(incarnation, Commit(trims=[(LOG, trim)]))
        for _ in ("before the sweep", "after it"):
            for position in (0, 10, 29, 30, 45, 49):
                first = max(expected, position // 10 * 10)
                assert numbers(store.load_stream(LOG, position, 1, 10**6)) == [first], (trim, position)
                assert numbers(store.load_heads(LOG, position, 1)) == [first], (trim, position)
            assert numbers(store.load_heads(LOG, 55, 9)) == [50, 60, 70]
            store.sweep(incarnation, 1000)
    store.commit(incarnation, Commit(trims=[(LOG, 1000)]))
    assert store.load_stream(LOG, 0, 9, 10**6) == [] and store.load_heads(LOG, 0, 9) == []


def test_nothing_is_read_of_a_deleted_stream(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    store.commit(incarnation, Commit(insert_segments=[segment(7, 1)]))
    store.commit(incarnation, Commit(delete_resources=[queue(7, 7)]))
    assert store.load_stream(LOG, 0, 9, 10**6) == [] and store.load_heads(LOG, 0, 9) == []


def test_a_stream_may_have_sequence_numbers_as_large_as_64_bits(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    large = 2**63 - 2
    store.commit(incarnation, Commit(insert_segments=[segment(7, 1), segment(7, large)], reservations=[(LOG, large)]))
    for position in (2, large - 1, large):
        assert numbers(store.load_stream(LOG, position, 9, 10**6)) == [large]
        assert numbers(store.load_heads(LOG, position, 9)) == [large]
    assert store.load_stream(LOG, large + 1, 9, 10**6) == [] and store.load_heads(LOG, large + 1, 9) == []
    assert numbers(store.load_heads(LOG, 0, 9)) == [1, large]


def test_hundreds_of_shards_are_made_and_deleted_in_one_commit_each_with_a_log_of_its_own(home: Home) -> None:
    store, incarnation = home.store, home.store.acquire("node", "127.0.0.1:1", 1)
    stream = dataclasses.replace(queue(1, 1, "stream"), kind="stream")
    shards = [shard(number) for number in range(100, 400)]
    store.commit(incarnation, Commit(upsert_resources=[stream, *shards]))
    rows = [segment(row.log_id, row.resource_id) for row in shards]
    bounds = [(row.log_id, 1000 + row.resource_id) for row in shards]
    store.commit(incarnation, Commit(insert_segments=rows, reservations=bounds))
    store = home.restart()
    incarnation = store.acquire("node", "127.0.0.1:1", 2)
    assert store.load_resources() == [stream, *shards]
    for row, stored in zip(shards, rows, strict=True):
        assert store.load_log(row.log_id, 0).reserved == 1000 + row.resource_id
        assert store.load_stream(row.log_id, 0, 9, 10**6) == [stored]
    with pytest.raises(CommitFailed):
        store.commit(incarnation, Commit(upsert_resources=[dataclasses.replace(shard(400), name=shards[-1].name)]))
    closed = [dataclasses.replace(row, attributes='{"closed_ms": 9}', version=2) for row in shards]
    store.commit(incarnation, Commit(upsert_resources=closed))
    assert store.load_resources() == [stream, *closed]
    assert store.load_stream(shards[0].log_id, 0, 9, 10**6) == [rows[0]]
    gone, kept = closed[:299], closed[299]
    store.commit(incarnation, Commit(delete_resources=gone))
    assert store.load_resources() == [stream, kept]
    for row in gone:
        with pytest.raises(KeyError):
            store.load_log(row.log_id, 0)
        assert store.load_stream(row.log_id, 0, 9, 10**6) == []
    assert store.sweep(incarnation, 1000) == 299
    assert store.sweep(incarnation, 1000) == 0
    assert store.load_stream(kept.log_id, 0, 9, 10**6) == [rows[-1]]
    assert firsts(arrivals(store, kept.log_id)) == [399]
