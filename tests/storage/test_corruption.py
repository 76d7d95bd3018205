"""Decayed rows are never served, never dropped, and never silent."""

from __future__ import annotations

import logging
import pathlib
import random
import sqlite3
from typing import Any

import psycopg
import pytest
from penstock_storage.interface import Commit, LoadedSegment, LogId, SegmentKey, Store, StoreError
from penstock_storage.memory import MemoryDisk, MemoryStore
from penstock_storage.sql import SqlStore

from tests.storage.rows import arrivals, deduplication, delivery, firsts, segment, state, with_queue

LOG = LogId(7)


class Damaged:
    """A SQL store with a way to change rows behind its back."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.store = SqlStore.open(url, reserve_bytes=0)

    def tamper(self, statement: str, rows: int = 1) -> None:
        if self.url.startswith("sqlite"):
            connection = sqlite3.connect(self.url.removeprefix("sqlite:///"))
            assert connection.execute(statement).rowcount == rows
            connection.commit()
            connection.close()
        else:
            with psycopg.connect(self.url.replace("+psycopg", "")) as server:
                assert server.execute(statement.replace("X'", "'\\x").encode()).rowcount == rows

    def rows(self, query: str) -> list[Any]:
        with self.store._database.read() as reader:
            return [tuple(row) for row in reader.execute(query, ()).fetchall()]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def damaged(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Any:
    url = f"sqlite:///{tmp_path}/store.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    damaged = Damaged(url)
    yield damaged
    damaged.store.close()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE segments SET payload = X'00' WHERE first = 2",
        "UPDATE segments SET checksum = checksum + 1 WHERE first = 2",
        "UPDATE segments SET count = 3 WHERE first = 2",
        "UPDATE segments SET size_bytes = 1 WHERE first = 2",
        "UPDATE segments SET sent_ms = 6 WHERE first = 2",
        "UPDATE segments SET head_checksum = 0 WHERE first = 2",
    ],
)
def test_a_segment_with_a_wrong_checksum_is_left_out_and_copied(
    damaged: Damaged, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = damaged.store
    incarnation = with_queue(store)
    store.commit(incarnation, Commit(insert_segments=[segment(7, first) for first in (1, 2, 3)]))
    damaged.tamper(change)
    with caplog.at_level(logging.CRITICAL):
        for _ in range(2):
            assert firsts(arrivals(store)) == [1, 3]
            assert firsts(store.load_segments([SegmentKey(LOG, 0, first) for first in (3, 2, 1)])) == [3, 1]
    assert store.quarantined == 1
    assert len(caplog.records) == 1 and "corrupt row" in caplog.text
    assert damaged.rows("SELECT log_id, kind, key_1, key_2 FROM quarantine") == [(7, "segments", 0, 2)]
    assert store.load_log(LOG, 0).messages == 2
    # Nothing that happens to the row later takes the copy away.
    store.commit(incarnation, Commit(trims=[(LOG, 10)]))
    store.sweep(incarnation, 10)
    assert len(damaged.rows("SELECT content FROM quarantine")) == 1


def test_a_segment_read_without_its_payload_is_checked_too(damaged: Damaged) -> None:
    store = damaged.store
    store.commit(with_queue(store), Commit(insert_segments=[segment(7, 1), segment(7, 2)]))
    damaged.tamper("UPDATE segments SET count = 3 WHERE first = 2")
    assert firsts(store.locate_segments(LOG, [1, 2])) == [1]
    assert store.quarantined == 1


def test_a_page_is_filled_with_good_segments_however_many_are_corrupt(damaged: Damaged) -> None:
    store = damaged.store
    store.commit(with_queue(store), Commit(insert_segments=[segment(7, first) for first in range(1, 11)]))
    damaged.tamper("UPDATE segments SET payload = X'00' WHERE first IN (1, 2, 3, 5, 8)", 5)
    assert firsts(store.load_arrivals(LOG, (-1, -1), 0, 2, 10**6)) == [4, 6]
    assert firsts(store.load_arrivals(LOG, (0, 6), 0, 2, 10**6)) == [7, 9]
    assert firsts(store.load_arrivals(LOG, (0, 9), 0, 2, 10**6)) == [10]


def test_a_page_of_a_stream_is_filled_with_good_segments_however_many_are_corrupt(damaged: Damaged) -> None:
    store = damaged.store
    rows = [segment(7, 10 * number, 10, payload=b"x" * 100) for number in range(1, 11)]
    store.commit(with_queue(store), Commit(insert_segments=rows))
    damaged.tamper("UPDATE segments SET payload = X'00' WHERE first IN (10, 20, 30, 50, 80)", 5)
    for position, expected in [(0, [40, 60]), (15, [40, 60]), (30, [40, 60]), (45, [40, 60]), (70, [70, 90]), (95, [90, 100])]:
        assert [row.first for row in store.load_stream(LOG, position, 2, 10**6)] == expected, position
        assert [row.first for row in store.load_stream(LOG, position, 9, 101)] == expected, position
    assert [row.first for row in store.load_stream(LOG, 100, 2, 10**6)] == [100]
    assert store.quarantined == 5
    # Without payload nothing shows of it.
    assert [row.first for row in store.load_heads(LOG, 0, 4)] == [10, 20, 30, 40]
    damaged.tamper("UPDATE segments SET size_bytes = 1 WHERE first IN (10, 20, 30)", 3)
    assert [row.first for row in store.load_heads(LOG, 0, 2)] == [40, 50]


@pytest.mark.parametrize("count", [0, -1, 1, 11, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("position", [20, 25, 29, 30])
def test_a_corrupt_count_is_noticed_wherever_a_stream_is_read_from(damaged: Damaged, count: int, position: int) -> None:
    store = damaged.store
    store.commit(with_queue(store), Commit(insert_segments=[segment(7, first, 10) for first in (10, 20, 30)]))
    damaged.tamper("UPDATE segments SET count = COUNT WHERE first = 20".replace("COUNT", str(count)))
    expected = 1 if position < 30 else 0
    assert [row.first for row in store.load_heads(LOG, position, 9)] == [30]
    assert store.quarantined == expected
    assert [row.first for row in store.load_stream(LOG, position, 9, 10**6)] == [30]
    assert store.quarantined == expected
    assert damaged.rows("SELECT key_1, key_2 FROM quarantine") == [(0, 20)] * expected


def test_a_payload_that_decayed_to_nothing_is_not_served(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "store.db"
    damaged = Damaged(f"sqlite:///{path}")
    store = damaged.store
    store.commit(with_queue(store), Commit(insert_segments=[segment(7, 10, 10), segment(7, 20, 10)]))
    store.close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("UPDATE sqlite_master SET sql = replace(sql, 'payload BLOB NOT NULL', 'payload BLOB')")
    connection.commit()
    connection.close()
    damaged.tamper("UPDATE segments SET payload = NULL WHERE first = 10")
    for load in ("load_stream", "load_arrivals", "load_segments"):
        store = SqlStore.open(damaged.url, reserve_bytes=0)
        if load == "load_stream":
            assert [row.first for row in store.load_stream(LOG, 15, 9, 10**6)] == [20]
        elif load == "load_arrivals":
            assert firsts(arrivals(store)) == [20]
        else:
            assert firsts(store.load_segments([SegmentKey(LOG, 0, 10), SegmentKey(LOG, 0, 20)])) == [20]
        assert store.quarantined == 1, load
        store.close()


def test_a_segment_whose_state_is_corrupt_is_not_served_for_its_deleted_messages_would_come_back(
    damaged: Damaged,
) -> None:
    store = damaged.store
    rows = [segment(7, 1, 3), segment(7, 4, 3)]
    store.commit(with_queue(store), Commit(insert_segments=rows, upsert_states=[state(7, 1), state(7, 4)]))
    damaged.tamper("UPDATE segment_states SET deleted = X'00' WHERE first = 1")
    assert arrivals(store) == [LoadedSegment(rows[1], state(7, 4))]
    assert damaged.rows("SELECT kind FROM quarantine ORDER BY kind") == [("segment_states",), ("segments",)]
    assert store.load_log(LOG, 0).messages == 2


def test_a_state_that_lost_its_segment_is_noticed_when_the_log_is_loaded(damaged: Damaged) -> None:
    store = damaged.store
    store.commit(with_queue(store), Commit(insert_segments=[segment(7, 1, 3)], upsert_states=[state(7, 1)]))
    damaged.tamper("UPDATE segment_states SET first = 5 WHERE first = 1")
    store.load_log(LOG, 0)
    assert store.quarantined == 1


def test_corrupt_deliveries_and_deduplication_rows_are_left_out(damaged: Damaged) -> None:
    store = damaged.store
    store.commit(
        with_queue(store),
        Commit(
            upsert_deliveries=[delivery(7, number) for number in (1, 2, 3)],
            insert_deduplication=[deduplication(7, number, number) for number in (1, 2, 3)],
        ),
    )
    damaged.tamper("UPDATE deliveries SET visible_ms = 1 WHERE number = 1")
    damaged.tamper("UPDATE deduplication SET entries = X'00' WHERE number = 3")
    assert [row.number for row in store.load_deliveries(LOG, 0, 2)] == [2, 3]
    assert [row.number for row in store.load_deduplication(LOG, 0)] == [1, 2]
    assert store.quarantined == 2


def test_a_rewritten_segment_has_a_new_checksum(damaged: Damaged) -> None:
    store = damaged.store
    incarnation = with_queue(store)
    store.commit(incarnation, Commit(insert_segments=[segment(7, 1, payload=b"before")]))
    store.commit(incarnation, Commit(rewrites=[segment(7, 1, payload=b"after")]))
    assert arrivals(store)[0].segment.payload == b"after"


def test_a_rotten_segment_in_memory_goes_to_quarantine_too() -> None:
    disk = MemoryDisk()
    store = MemoryStore(disk)
    store.commit(with_queue(store), Commit(insert_segments=[segment(7, 1), segment(7, 2)]))
    disk.rotten.add(SegmentKey(LOG, 0, 1))
    for _ in range(2):
        assert firsts(arrivals(store)) == [2]
        assert store.quarantined == 1
        assert store.load_log(LOG, 0).messages == 1
    disk.rotten.add(SegmentKey(LOG, 0, 2))
    store.commit(with_queue(store), Commit(insert_segments=[segment(7, 3)]))
    assert [row.first for row in store.load_heads(LOG, 0, 9)] == [1, 2, 3]
    assert [row.first for row in store.load_stream(LOG, 0, 1, 10**6)] == [3]
    assert store.quarantined == 2


def test_no_flipped_bit_in_the_file_gives_wrong_data(tmp_path: pathlib.Path) -> None:
    """Flips one bit at a time, anywhere in the file. What is loaded must be what was stored: a row may be missing, but then
    the store says so."""
    path = tmp_path / "store.db"
    store = SqlStore.open(f"sqlite:///{path}", reserve_bytes=0)
    rows = [segment(7, first, 2, payload=bytes([first]) * 3000) for first in range(1, 41)]
    states = [state(7, first) for first in range(1, 41, 3)]
    store.commit(with_queue(store), Commit(insert_segments=rows, upsert_states=states))
    expected = arrivals(store)
    store.close()
    good = path.read_bytes()
    dice = random.Random(1)
    silent, caught, harmless = [], 0, 0
    for _ in range(150):
        position = dice.randrange(len(good) * 8)
        bad = bytearray(good)
        bad[position // 8] ^= 1 << position % 8
        path.write_bytes(bad)
        outcome = look(path, expected)
        caught += outcome == "caught"
        harmless += outcome == "harmless"
        if outcome == "silent":
            silent.append(position)
    assert silent == []
    assert caught > 30 and harmless > 0


def look(path: pathlib.Path, expected: list[LoadedSegment]) -> str:
    """What a broker would notice of one flipped bit."""
    try:
        store: Store = SqlStore.open(f"sqlite:///{path}", reserve_bytes=0)
    except StoreError:
        return "caught"
    try:
        log = store.load_log(LOG, 0)
        loaded = arrivals(store)
    except (StoreError, KeyError):
        return "caught"
    finally:
        store.close()
    assert [found for found in loaded if found not in expected] == []
    if store.quarantined:
        return "caught"
    living = sum(found.segment.count - (found.state.deleted_count if found.state else 0) for found in loaded)
    if log.messages != living:
        # The index that is counted and the one that is read disagree.
        return "caught"
    return "harmless" if loaded == expected else "silent"
