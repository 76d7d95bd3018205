"""What every store promises, over memory, SQLite and PostgreSQL."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
from penstock_storage.interface import (
    Commit,
    CommitFailed,
    CredentialRow,
    Fenced,
    Incarnation,
    LoadedSegment,
    LogId,
    SegmentKey,
    SegmentRow,
)

from tests.storage.rows import (
    Home,
    arrivals,
    deduplication,
    delivery,
    firsts,
    queue,
    segment,
    state,
    with_queue,
)

LOG = LogId(7)


def test_a_new_store_is_empty(home: Home) -> None:
    assert home.store.load_resources() == []
    assert home.store.load_credentials() == []
    assert home.store.quarantined == 0
    assert not home.store.full
    with pytest.raises(KeyError):
        home.store.load_log(LOG, 0)
    assert arrivals(home.store) == []
    assert home.store.load_deliveries(LOG, 0, 10) == []
    assert home.store.load_deduplication(LOG, 0) == []


def test_the_cluster_secret_stays_the_same(home: Home) -> None:
    secret = home.store.cluster_secret()
    assert len(secret) == 32
    assert home.restart().cluster_secret() == secret


def test_what_was_committed_is_there_after_a_restart(home: Home) -> None:
    incarnation = with_queue(home.store)
    credential = CredentialRow("AK1", "acc", "admin", "für alle", b"\x00sealed", 3)
    rows = [segment(7, 1, 3, payload=b"\x00\xff" * 9), segment(7, 4), segment(7, 5, due_ms=99, payload=b"")]
    home.store.commit(
        incarnation,
        Commit(
            reservations=[(LOG, 1000)],
            insert_segments=rows,
            upsert_states=[state(7, 1)],
            upsert_deliveries=[delivery(7, 6)],
            insert_deduplication=[deduplication(7, 5, 6)],
            upsert_credentials=[credential],
        ),
    )
    store = home.restart()
    assert store.load_resources() == [queue(7, 7)]
    assert store.load_credentials() == [credential]
    assert arrivals(store) == [
        LoadedSegment(rows[0], state(7, 1)),
        LoadedSegment(rows[1], None),
        LoadedSegment(rows[2], None),
    ]
    assert store.load_deliveries(LOG, 0, 10) == [delivery(7, 6)]
    assert store.load_deduplication(LOG, 0) == [deduplication(7, 5, 6)]
    log = store.load_log(LOG, 50)
    assert (log.reserved, log.trimmed, log.messages, log.size_bytes, log.delayed_messages) == (1000, 0, 4, 400, 1)


def test_an_empty_commit_checks_the_fence(home: Home) -> None:
    incarnation = with_queue(home.store)
    home.store.commit(incarnation, Commit())
    home.store.acquire("node", "a", 2)
    with pytest.raises(Fenced):
        home.store.commit(incarnation, Commit())


def test_a_name_belongs_to_one_resource_of_its_account_region_and_kind(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    mine, other = queue(7, 7), queue(8, 8, "q7")
    with pytest.raises(CommitFailed):
        store.commit(incarnation, Commit(upsert_resources=[other], insert_segments=[segment(7, 1)]))
    with pytest.raises(CommitFailed):
        store.commit(incarnation, Commit(upsert_resources=[queue(8, 8, "new"), queue(9, 9, "new")]))
    with pytest.raises(CommitFailed):
        store.commit(incarnation, Commit(upsert_resources=[other], delete_resources=[mine]))
    assert store.load_resources() == [mine] and arrivals(store) == []
    elsewhere = [
        dataclasses.replace(queue(10, 10, "q7"), account="another"),
        dataclasses.replace(queue(11, 11, "q7"), region="another"),
        dataclasses.replace(queue(12, 12, "q7"), kind="another"),
    ]
    changed = dataclasses.replace(mine, version=2)
    store.commit(incarnation, Commit(upsert_resources=[changed, *elsewhere]))
    assert store.load_resources() == [changed, *elsewhere]
    store.commit(incarnation, Commit(delete_resources=[changed]))
    store.commit(incarnation, Commit(upsert_resources=[other]))
    assert store.load_resources() == [other, *elsewhere]


def test_an_upsert_replaces_and_a_delete_of_nothing_is_no_error(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    changed = dataclasses.replace(queue(7, 7), attributes="{}", version=2)
    store.commit(
        incarnation,
        Commit(
            upsert_resources=[changed],
            upsert_states=[state(7, 1)],
            upsert_deliveries=[delivery(7, 6)],
            insert_segments=[segment(7, 1, 3)],
        ),
    )
    store.commit(incarnation, Commit(upsert_states=[state(7, 1, 2)], upsert_deliveries=[delivery(7, 6, 77)]))
    assert store.load_resources() == [changed]
    assert arrivals(store) == [LoadedSegment(segment(7, 1, 3), state(7, 1, 2))]
    assert store.load_deliveries(LOG, 0, 10) == [delivery(7, 6, 77)]
    for _ in range(2):
        store.commit(
            incarnation,
            Commit(
                delete_segments=[SegmentKey(LOG, 0, 1)],
                delete_states=[(LOG, 1)],
                delete_deliveries=[(LOG, 6)],
                delete_credentials=["nobody"],
            ),
        )
    assert arrivals(store) == []
    assert store.load_deliveries(LOG, 0, 10) == []
    assert store.load_log(LOG, 0).messages == 0


def test_a_commit_applies_its_fields_in_their_order(home: Home) -> None:
    """A segment that is inserted and deleted in one commit is gone, and so for the others."""
    store, incarnation = home.store, with_queue(home.store)
    store.commit(
        incarnation,
        Commit(
            insert_segments=[segment(7, 1), segment(7, 2)],
            delete_segments=[SegmentKey(LOG, 0, 1)],
            upsert_states=[state(7, 2)],
            delete_states=[(LOG, 2)],
            upsert_deliveries=[delivery(7, 3), delivery(7, 3, 60)],
            insert_deduplication=[deduplication(7, 5, 1), deduplication(7, 6, 2)],
            forget_deduplication=[(LOG, 6)],
        ),
    )
    assert arrivals(store) == [LoadedSegment(segment(7, 2), None)]
    assert store.load_deliveries(LOG, 0, 9) == [delivery(7, 3, 60)]
    assert store.load_deduplication(LOG, 0) == [deduplication(7, 6, 2)]


def test_a_refused_commit_leaves_nothing_behind(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    store.commit(incarnation, Commit(insert_segments=[segment(7, 1)]))
    with pytest.raises(CommitFailed) as caught:
        store.commit(
            incarnation,
            Commit(
                upsert_resources=[queue(8, 8)],
                reservations=[(LOG, 99)],
                insert_segments=[segment(7, 2), segment(7, 1)],
                upsert_deliveries=[delivery(7, 3)],
            ),
        )
    assert not isinstance(caught.value, Fenced)
    assert store.load_resources() == [queue(7, 7)]
    assert store.load_log(LOG, 0).reserved == 0
    assert firsts(arrivals(store)) == [1]
    assert store.load_deliveries(LOG, 0, 10) == []
    store.commit(incarnation, Commit(insert_segments=[segment(7, 2)]))
    assert firsts(arrivals(home.restart())) == [1, 2]


def test_a_segment_without_payload_is_never_written(home: Home) -> None:
    incarnation = with_queue(home.store)
    with pytest.raises(ValueError, match="without its payload"):
        home.store.commit(incarnation, Commit(insert_segments=[dataclasses.replace(segment(7, 1), payload=None)]))
    home.store.commit(incarnation, Commit(insert_segments=[segment(7, 1)]))


def test_a_rewrite_replaces_payload_and_size(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    store.commit(incarnation, Commit(insert_segments=[segment(7, 1, 3)]))
    smaller = SegmentRow(LOG, 0, 1, 3, 120, 5, b"rest")
    store.commit(incarnation, Commit(rewrites=[smaller]))
    assert arrivals(home.restart()) == [LoadedSegment(smaller, None)]
    assert home.store.load_log(LOG, 0).size_bytes == 120
    assert home.store.quarantined == 0


def test_reservations_and_trim_points_only_grow(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    store.commit(incarnation, Commit(reservations=[(LOG, 500)], trims=[(LOG, 50)]))
    store.commit(incarnation, Commit(reservations=[(LOG, 400)], trims=[(LOG, 40)]))
    log = store.load_log(LOG, 0)
    assert (log.reserved, log.trimmed) == (500, 50)


def test_changing_a_resource_keeps_its_log(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    store.commit(incarnation, Commit(reservations=[(LOG, 500)]))
    store.commit(incarnation, Commit(upsert_resources=[queue(7, 7)]))
    assert store.load_log(LOG, 0).reserved == 500


def test_ids_are_never_given_twice(home: Home) -> None:
    incarnation = home.store.acquire("node", "a", 1)
    given = [home.store.next_id(incarnation) for _ in range(3)]
    incarnation = home.restart().acquire("node", "a", 1)
    given += [home.store.next_id(incarnation) for _ in range(3)]
    assert given == sorted(set(given))


def test_every_acquire_makes_a_higher_number_and_fences_the_one_before(home: Home) -> None:
    first = with_queue(home.store)
    second = home.store.acquire("node", "a", 2)
    other = home.store.acquire("other", "b", 3)
    again = home.restart().acquire("node", "a", 4)
    numbers = [first.number, second.number, other.number, again.number]
    assert numbers == sorted(set(numbers))
    for old in (first, second, other):
        with pytest.raises(Fenced):
            home.store.commit(old, Commit(insert_segments=[segment(7, 1)]))
        with pytest.raises(Fenced):
            home.store.next_id(old)
    with pytest.raises(Fenced):
        home.store.commit(Incarnation("stranger", again.number), Commit())
    home.store.commit(again, Commit(insert_segments=[segment(7, 1)]))
    assert firsts(arrivals(home.store)) == [1]


def test_arrivals_come_by_due_time_then_number_in_pages(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    rows = [segment(7, first, due_ms=due_ms) for first, due_ms in [(5, 0), (1, 0), (2, 300), (3, 100), (4, 300)]]
    rows.append(segment(8, 1))
    store.commit(incarnation, Commit(upsert_resources=[queue(8, 8)], insert_segments=rows))
    expected = [(0, 1), (0, 5), (100, 3), (300, 2), (300, 4)]
    seen: list[tuple[int, int]] = []
    after = (-1, -1)
    while page := store.load_arrivals(LOG, after, 1000, 2, 10**6):
        assert len(page) <= 2
        seen += [(loaded.segment.due_ms, loaded.segment.first) for loaded in page]
        after = seen[-1]
    assert seen == expected
    assert firsts(store.load_arrivals(LOG, (0, 1), 100, 10, 10**6)) == [5, 3]
    assert firsts(store.load_arrivals(LOG, (0, 2), 299, 10, 10**6)) == [5, 3]
    assert store.load_arrivals(LOG, (300, 4), 10**9, 10, 10**6) == []
    assert store.load_arrivals(LOG, (-1, -1), 1000, 0, 10**6) == []


def test_a_page_ends_with_the_segment_that_fills_the_bytes(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    store.commit(incarnation, Commit(insert_segments=[segment(7, n, payload=b"x" * 100) for n in range(1, 9)]))
    for max_bytes, expected in [(1, 1), (100, 1), (101, 2), (350, 4), (10_000, 8), (0, 1)]:
        assert len(store.load_arrivals(LOG, (-1, -1), 0, 100, max_bytes)) == expected, max_bytes


def test_segments_are_loaded_by_key_in_the_order_asked_and_missing_ones_left_out(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    rows = [segment(7, 1), segment(7, 2, due_ms=9), segment(8, 1)]
    store.commit(incarnation, Commit(upsert_resources=[queue(8, 8)], insert_segments=rows, upsert_states=[state(7, 2)]))
    keys = [rows[2].key, SegmentKey(LOG, 0, 99), rows[1].key, SegmentKey(LOG, 8, 1), rows[0].key]
    assert store.load_segments(keys) == [
        LoadedSegment(rows[2], None),
        LoadedSegment(rows[1], state(7, 2)),
        LoadedSegment(rows[0], None),
    ]
    assert store.load_segments([]) == []


def test_segments_are_located_by_number_alone_without_payload(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    rows = [segment(7, number, due_ms=number % 3) for number in range(1, 2500)]
    store.commit(incarnation, Commit(insert_segments=rows, upsert_states=[state(7, 5)]))
    found = store.locate_segments(LOG, [*range(2400, 0, -1), 9999])
    assert sorted(firsts(found)) == list(range(1, 2401))
    by_first = {loaded.segment.first: loaded for loaded in found}
    assert by_first[5] == LoadedSegment(dataclasses.replace(rows[4], payload=None), state(7, 5))
    assert by_first[6] == LoadedSegment(dataclasses.replace(rows[5], payload=None), None)
    assert store.locate_segments(LOG, []) == []


def test_deliveries_come_by_number_in_pages(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    store.commit(incarnation, Commit(upsert_deliveries=[delivery(7, number) for number in (9, 3, 12, 5)]))
    assert [row.number for row in store.load_deliveries(LOG, 0, 3)] == [3, 5, 9]
    assert [row.number for row in store.load_deliveries(LOG, 9, 3)] == [12]
    assert store.load_deliveries(LOG, 12, 3) == []


def test_deduplication_is_loaded_in_order_from_a_time_on(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    rows = [deduplication(7, at_ms, number) for at_ms, number in [(30, 1), (10, 9), (10, 2), (20, 3)]]
    store.commit(incarnation, Commit(insert_deduplication=rows))
    assert [(row.at_ms, row.number) for row in store.load_deduplication(LOG, 10)] == [(10, 2), (10, 9), (20, 3), (30, 1)]
    assert [row.at_ms for row in store.load_deduplication(LOG, 20)] == [20, 30]
    store.commit(incarnation, Commit(forget_deduplication=[(LOG, 20)]))
    assert [row.at_ms for row in store.load_deduplication(LOG, 0)] == [20, 30]


def test_totals_count_what_is_stored_and_not_deleted_from_the_trim_point_on(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    rows = [segment(7, 1, 5), segment(7, 10, 4), segment(7, 20, 3, due_ms=500), segment(7, 30, 2, due_ms=900)]
    states = [state(7, 1, 2), state(7, 10, 1), state(7, 20, 1)]
    store.commit(incarnation, Commit(insert_segments=rows, upsert_states=states, trims=[(LOG, 10)]))
    log = store.load_log(LOG, 100)
    assert (log.messages, log.size_bytes, log.delayed_messages) == (3 + 2 + 2, 700, 4)
    assert store.load_log(LOG, 500).delayed_messages == 2
    assert store.load_log(LOG, 899).delayed_messages == 2
    assert store.load_log(LOG, 900).delayed_messages == 0
    assert store.load_log(LOG, 900).last_due_ms == 900
    store.commit(incarnation, Commit(delete_segments=[rows[2].key, rows[3].key], delete_states=[(LOG, 20)]))
    assert store.load_log(LOG, 900).last_due_ms == 0
    store.commit(incarnation, Commit(delete_segments=[rows[1].key], delete_states=[(LOG, 10)]))
    assert store.load_log(LOG, 900).last_due_ms == 0


def test_what_is_before_the_trim_point_is_gone_for_every_load_and_swept_later(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    rows = [segment(7, number) for number in range(1, 21)]
    store.commit(
        incarnation,
        Commit(
            insert_segments=rows,
            upsert_states=[state(7, 1), state(7, 15)],
            upsert_deliveries=[delivery(7, 4), delivery(7, 16)],
            insert_deduplication=[deduplication(7, 1, 1)],
        ),
    )
    store.commit(incarnation, Commit(trims=[(LOG, 11)]))
    for _ in range(2):
        assert firsts(arrivals(store)) == list(range(11, 21))
        assert firsts(store.load_segments([row.key for row in rows])) == list(range(11, 21))
        assert sorted(firsts(store.locate_segments(LOG, range(1, 21)))) == list(range(11, 21))
        assert [row.number for row in store.load_deliveries(LOG, 0, 10)] == [16]
        assert len(store.load_deduplication(LOG, 0)) == 1
        assert store.load_log(LOG, 0).messages == 9
        removed = []
        while (count := store.sweep(incarnation, 5)) == 5:
            removed.append(count)
        removed.append(count)
        assert sum(removed) in (12, 0)
        assert store.sweep(incarnation, 5) == 0


def test_a_deleted_resource_takes_its_log_with_it(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    store.commit(
        incarnation,
        Commit(
            upsert_resources=[queue(8, 8, "other")],
            insert_segments=[segment(7, 1), segment(7, 2, due_ms=5), segment(8, 1)],
            upsert_states=[state(7, 1)],
            upsert_deliveries=[delivery(7, 3)],
            insert_deduplication=[deduplication(7, 1, 1)],
        ),
    )
    store.commit(incarnation, Commit(delete_resources=[queue(7, 7)]))
    for expected in (5, 0):
        assert store.load_resources() == [queue(8, 8, "other")]
        with pytest.raises(KeyError):
            store.load_log(LOG, 0)
        assert arrivals(store) == []
        assert store.load_segments([SegmentKey(LOG, 0, 1)]) == []
        assert store.locate_segments(LOG, [1, 2]) == []
        assert store.load_deliveries(LOG, 0, 10) == []
        assert store.load_deduplication(LOG, 0) == []
        assert store.sweep(incarnation, 100) == expected
    assert firsts(arrivals(store, 8)) == [1]


def test_a_sweep_is_fenced(home: Home) -> None:
    old = with_queue(home.store)
    home.store.commit(old, Commit(insert_segments=[segment(7, 1)], trims=[(LOG, 2)]))
    new = home.store.acquire("node", "a", 2)
    with pytest.raises(Fenced):
        home.store.sweep(old, 10)
    assert home.store.sweep(new, 10) == 1
    with pytest.raises(Fenced):
        home.store.sweep(old, 10)


def test_large_payloads_and_many_rows_pass(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    big = segment(7, 1, payload=bytes(range(256)) * 4096 * 3)
    store.commit(incarnation, Commit(insert_segments=[big, *(segment(7, n) for n in range(2, 1500))]))
    found = arrivals(store)
    assert len(found) == 1499
    assert found[0].segment == big


def test_threads_may_commit_and_load_at_the_same_time(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)

    def work(thread: int) -> None:
        for number in range(20):
            store.commit(incarnation, Commit(insert_segments=[segment(7, thread * 100 + number)]))
            assert store.load_segments([SegmentKey(LOG, 0, thread * 100 + number)])

    with ThreadPoolExecutor(5) as threads:
        for done in [threads.submit(work, thread) for thread in range(5)]:
            done.result()
    assert len(arrivals(store)) == 100


def test_numbers_may_be_as_large_as_64_bits(home: Home) -> None:
    store, incarnation = home.store, with_queue(home.store)
    large = 2**63 - 2
    store.commit(
        incarnation,
        Commit(reservations=[(LOG, large)], insert_segments=[segment(7, large, due_ms=large)]),
    )
    assert arrivals(store, until_due_ms=large)[0].segment.first == large
    assert store.load_log(LOG, 0).reserved == large
