"""The work for many messages grows as their number, not as its square. Counted in lines that are run, not in seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from penstock_broker.queues import fifo, ready
from penstock_protocol import queue_messages as q

from tests.model.bench import Bench, receipts_of


def _steps(function: Callable[[], object]) -> int:
    """How many lines were run, again each time."""
    count = 0

    def count_one(frame: Any, event: str, argument: Any) -> Any:
        del frame, event, argument
        nonlocal count
        count += 1
        return count_one

    before = sys.gettrace()
    sys.settrace(count_one)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def _assert_grows_evenly(work: Callable[[int], Callable[[], object]], few: int) -> None:
    """Ten times as much costs less than fifteen times as many lines."""
    assert _steps(work(10 * few)) < 15 * _steps(work(few))


def _taken(count: int, at_once: int) -> tuple[Bench, list[q.Receipt]]:
    """A FIFO queue with one group, of which `count` messages are in flight and a few wait behind them."""
    bench = Bench("q.fifo", content_based_deduplication=True)
    for start in range(0, count + 100, 100):
        bench.send(*(b"%d" % (start + place) for place in range(100)), groups=["g"] * 100)
        bench.commit()
    bench.page_in()
    receipts = []
    for _ in range(0, count, at_once):
        for delivery in bench.receive(at_once, 30_000):
            receipts += receipts_of(delivery)
    bench.commit()
    assert bench.queue.in_flight == len(receipts) == count
    return bench, receipts


def test_many_messages_of_one_group_return_at_once() -> None:
    def work(count: int) -> Callable[[], object]:
        bench, _ = _taken(count, count)
        bench.now_ms += 30_000
        return lambda: bench.queue.expire(bench.now_ms)

    _assert_grows_evenly(work, 300)


def test_many_messages_of_one_group_that_returned_are_taken_again() -> None:
    def work(count: int) -> Callable[[], object]:
        bench, _ = _taken(count, count)
        bench.now_ms += 30_000
        bench.queue.expire(bench.now_ms)
        return lambda: bench.queue.receive(count, 2**30, 30_000, "", False, bench.now_ms)

    _assert_grows_evenly(work, 300)


def test_many_messages_of_one_group_that_each_have_a_timeout_of_their_own_return() -> None:
    def work(count: int) -> Callable[[], object]:
        bench, receipts = _taken(count, count)
        timeouts = [40_000 + 10 * place for place in range(count)]
        bench.queue.change_visibility(receipts, timeouts, bench.now_ms)

        def let_pass() -> None:
            for _ in range(60):
                bench.now_ms += 1_000
                bench.queue.expire(bench.now_ms)

        return let_pass

    _assert_grows_evenly(work, 100)


def test_many_messages_with_delays_of_their_own_are_sent_and_published() -> None:
    def work(count: int) -> Callable[[], object]:
        bench = Bench()

        def send() -> None:
            bench.send(*[b"x"] * count, delays_ms=[60_000 + place for place in range(count)])
            bench.commit()

        return send

    _assert_grows_evenly(work, 300)


@pytest.mark.parametrize(("name", "kind"), [("q", ready.Tenant), ("q.fifo", fifo.Group)])
def test_the_messages_of_many_groups_end_at_once(name: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    # (So that a search through all groups is counted.)
    monkeypatch.setattr(kind, "__eq__", lambda one, other: one is other)
    monkeypatch.setattr(kind, "__hash__", lambda one: id(one))

    def work(count: int) -> Callable[[], object]:
        bench = Bench(name, retention_ms=60_000, content_based_deduplication=True)
        for age in range(2):
            bench.send(
                *(b"%d" % (age * count + place) for place in range(count)),
                groups=[f"g{age}-{place}" for place in range(count)],
            )
            bench.commit()
            bench.now_ms += 30_000
        assert bench.queue.messages == 2 * count
        bench.queue._ready._turn.rotate(count)
        bench.now_ms += 1_000
        return lambda: bench.queue.expire(bench.now_ms)

    _assert_grows_evenly(work, 300)
