"""How old messages are: retention and the oldest message's age hold for each of them, at a cost that does not grow."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

from penstock_broker.queues.ages import Ages
from penstock_broker.queues.segment import Columns, Segment

from tests.model.bench import Bench, bodies_of, receipts_of


def _bury(bench: Bench, *ages_ms: int) -> None:
    """Messages that were sent so long ago arrive as dead letters, in one commit."""
    columns = Columns()
    for place, age_ms in enumerate(ages_ms):
        columns.append(f"{age_ms}".encode(), {})
        bench.queue.adopt(columns, place, {}, bench.now_ms - age_ms, bench.now_ms)
    bench.commit()


def test_dead_letters_of_one_commit_end_each_at_its_own_time() -> None:
    bench = Bench(retention_ms=60_000)
    start_ms = bench.now_ms
    _bury(bench, 59_000, 0, 30_000)
    assert bench.queue.oldest_ms == start_ms - 59_000
    left = []
    for seconds in (0, 1, 29, 30, 31, 59, 60):
        bench.now_ms = start_ms + seconds * 1_000
        bench.queue.expire(bench.now_ms)
        left.append((bench.queue.messages, bench.queue.oldest_ms))
    ages = (59_000, 30_000, 0)
    assert left == [(3 - gone, start_ms - ages[gone] if gone < 3 else None) for gone in (0, 1, 1, 2, 2, 2, 3)]
    assert bench.queue.counters.expired == 3
    bench.commit()
    assert not bench.queue.segments


def test_they_do_after_a_restart_and_while_others_are_in_flight() -> None:
    bench = Bench(retention_ms=60_000)
    _bury(bench, 59_000, 0, 30_000)
    assert bodies_of(bench.receive(1)) == [b"59000"]
    bench.commit()
    bench.reload()
    bench.page_in()
    bench.now_ms += 2_000
    bench.queue.expire(bench.now_ms)
    assert (bench.queue.messages, bench.queue.in_flight) == (2, 0)
    bench.queue.shed()
    bench.now_ms += 30_000
    bench.queue.expire(bench.now_ms)
    assert bench.queue.messages == 1
    assert bodies_of(bench.receive(10)) == [b"0"]


def test_the_oldest_age_is_that_of_what_is_left() -> None:
    bench = Bench()
    start_ms = bench.now_ms
    _bury(bench, 50_000, 40_000)
    bench.now_ms += 1_000
    bench.send(b"new")
    bench.commit()
    for expected_ms in (start_ms - 50_000, start_ms - 40_000, start_ms + 1_000):
        assert bench.queue.oldest_ms == expected_ms
        [delivery] = bench.receive(1)
        bench.delete(*receipts_of(delivery))
    assert bench.queue.oldest_ms is None


def test_ages_find_the_oldest_whatever_came_and_went() -> None:
    chance = random.Random(7)
    segments: dict[int, Segment] = {}
    ages = Ages(segments, lambda segment: segment.oldest_ms)
    for first in range(2_000):
        columns = Columns()
        for _ in range(3):
            columns.append(b"", {"sent_ms": chance.randrange(1_000)})
        sent = columns.sent_ms
        assert sent is not None
        segments[first] = Segment(first, 3, 0, max(one or 0 for one in sent), 0, columns)
        ages.add(segments[first])
        if chance.random() < 0.7:
            gone = chance.choice(list(segments))
            segments[gone].delete(1 << chance.randrange(3))
            if chance.random() < 0.8 or not segments[gone].live:
                del segments[gone]
        assert ages.oldest() == min((one.oldest_ms for one in segments.values()), default=None)
    bound_ms = 700
    taken = list(ages.take_until(bound_ms))
    assert {one.first for one in taken} == {one.first for one in segments.values() if one.oldest_ms <= bound_ms}


def _calls(function: Callable[[], Any]) -> int:
    count = 0

    def step(frame: object, event: str, argument: object) -> None:
        nonlocal count
        del frame, event, argument
        count += 1

    before = sys.getprofile()
    sys.setprofile(step)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


def test_to_look_for_what_is_old_costs_as_much_with_many_segments_as_with_few() -> None:
    costs = []
    for count in (10, 2_000):
        bench = Bench(retention_ms=600_000)
        for _ in range(count):
            bench.send(b"x")
            bench.commit()
            bench.now_ms += 10
        bench.queue.expire(bench.now_ms)
        assert len(bench.queue.segments) == count

        def look(bench: Bench = bench) -> None:
            bench.queue.sweep_soon(bench.now_ms)
            bench.queue.expire(bench.now_ms)
            assert bench.queue.oldest_ms is not None

        costs.append(_calls(look))
    assert costs[0] == costs[1]
