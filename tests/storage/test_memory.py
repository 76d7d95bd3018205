"""The store for simulation: faults on demand, several brokers on one disk, and nothing that is not asked for."""

from __future__ import annotations

import pytest
from penstock_storage.interface import (
    Commit,
    CommitFailed,
    CommitUnknown,
    Fenced,
    LogId,
    SegmentKey,
    StoreFull,
    StoreUnreachable,
)
from penstock_storage.memory import Fault, MemoryDisk, MemoryStore

from tests.storage.rows import arrivals, firsts, segment, with_queue

LOG = LogId(7)


class Script:
    """Faults to come, by point."""

    def __init__(self) -> None:
        self.next: dict[str, Fault] = {}
        self.asked: list[str] = []

    def __call__(self, point: str) -> Fault | None:
        self.asked.append(point)
        return self.next.pop(point, None)


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk()


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def store(disk: MemoryDisk, script: Script) -> MemoryStore:
    return MemoryStore(disk, script)


def test_a_failed_commit_did_not_happen_and_the_next_one_may(store: MemoryStore, script: Script) -> None:
    incarnation = with_queue(store)
    script.next["commit"] = Fault.FAIL
    with pytest.raises(CommitFailed):
        store.commit(incarnation, Commit(insert_segments=[segment(7, 1)]))
    store.commit(incarnation, Commit(insert_segments=[segment(7, 2)]))
    assert firsts(arrivals(store)) == [2]


@pytest.mark.parametrize(("fault", "expected"), [(Fault.UNKNOWN_APPLIED, [1]), (Fault.UNKNOWN_LOST, [])])
def test_an_unknown_commit_happened_or_not_and_all_is_refused_until_acquire(
    disk: MemoryDisk, store: MemoryStore, script: Script, fault: Fault, expected: list[int]
) -> None:
    incarnation = with_queue(store)
    script.next["commit"] = fault
    with pytest.raises(CommitUnknown):
        store.commit(incarnation, Commit(insert_segments=[segment(7, 1)]))
    assert firsts(arrivals(store)) == firsts(arrivals(MemoryStore(disk))) == expected
    for refused in (
        lambda: store.commit(incarnation, Commit()),
        lambda: store.sweep(incarnation, 1),
        lambda: store.next_id(incarnation),
    ):
        with pytest.raises(CommitFailed, match="unknown outcome"):
            refused()
    store.commit(store.acquire("node", "a", 2), Commit(insert_segments=[segment(7, 2)]))
    assert firsts(arrivals(store)) == [*expected, 2]


def test_a_full_disk_refuses_what_adds_and_lets_deletes_through(store: MemoryStore, script: Script) -> None:
    incarnation = with_queue(store)
    store.commit(incarnation, Commit(insert_segments=[segment(7, 1)]))
    script.next["commit"] = Fault.FULL
    with pytest.raises(StoreFull):
        store.commit(incarnation, Commit(insert_segments=[segment(7, 2)]))
    assert store.full
    script.next["commit"] = Fault.FULL
    store.commit(incarnation, Commit(delete_segments=[SegmentKey(LOG, 0, 1)]))
    assert store.full
    store.commit(incarnation, Commit(insert_segments=[segment(7, 3)]))
    assert not store.full
    assert firsts(arrivals(store)) == [3]


def test_loads_fail_on_demand(store: MemoryStore, script: Script) -> None:
    with_queue(store)
    for load in (
        store.load_resources,
        store.load_credentials,
        store.cluster_secret,
        lambda: store.load_log(LOG, 0),
        lambda: store.load_deliveries(LOG, 0, 1),
        lambda: store.load_deduplication(LOG, 0),
        lambda: arrivals(store),
        lambda: store.load_segments([]),
        lambda: store.locate_segments(LOG, []),
    ):
        script.next["load"] = Fault.FAIL
        with pytest.raises(StoreUnreachable):
            load()
        load()


def test_an_acquire_that_fails_leaves_the_owner_and_one_that_is_unknown_may_fence_it(store: MemoryStore, script: Script) -> None:
    incarnation = with_queue(store)
    script.next["acquire"] = Fault.FAIL
    with pytest.raises(StoreUnreachable):
        store.acquire("other", "b", 2)
    store.commit(incarnation, Commit())
    script.next["acquire"] = Fault.UNKNOWN_APPLIED
    with pytest.raises(CommitUnknown):
        store.acquire("other", "b", 2)
    with pytest.raises(Fenced):
        store.commit(incarnation, Commit())


def test_two_brokers_on_one_disk_fence_each_other(disk: MemoryDisk, store: MemoryStore) -> None:
    old = with_queue(store)
    other = MemoryStore(disk)
    new = other.acquire("other", "b", 2)
    with pytest.raises(Fenced):
        store.commit(old, Commit(insert_segments=[segment(7, 1)]))
    other.commit(new, Commit(insert_segments=[segment(7, 2)]))
    assert firsts(arrivals(store)) == [2]


def test_a_closed_store_reaches_its_disk_no_more(disk: MemoryDisk, store: MemoryStore) -> None:
    incarnation = with_queue(store)
    store.close()
    with pytest.raises(CommitFailed):
        store.commit(incarnation, Commit(insert_segments=[segment(7, 1)]))
    with pytest.raises(StoreUnreachable):
        arrivals(store)
    with pytest.raises(StoreUnreachable):
        store.acquire("node", "a", 2)
    assert arrivals(MemoryStore(disk)) == []


def test_every_point_is_asked_by_its_name(store: MemoryStore, script: Script) -> None:
    incarnation = with_queue(store)
    store.next_id(incarnation)
    store.sweep(incarnation, 1)
    store.load_resources()
    assert script.asked == ["acquire", "commit", "next_id", "sweep", "load"]
