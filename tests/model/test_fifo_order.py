"""The order of a FIFO queue whose delay changes, in memory and after a restart."""

from __future__ import annotations

import dataclasses

import pytest
from penstock_broker.queues import limits

from tests.model.bench import Bench, bodies_of, receipts_of


def _bench(delay_ms: int) -> Bench:
    return Bench("f.fifo", content_based_deduplication=True, delay_ms=delay_ms)


def _set_delay(bench: Bench, delay_ms: int) -> None:
    bench.queue.settings = bench.settings = dataclasses.replace(bench.settings, delay_ms=delay_ms)


def _send(bench: Bench, body: bytes) -> None:
    bench.send(body, groups=["g"])
    bench.commit()


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("later_ms", [0, 1_000])
def test_a_message_does_not_overtake_one_that_was_sent_with_a_longer_delay(later_ms: int, restarts: bool) -> None:
    bench = _bench(10_000)
    _send(bench, b"one")
    _set_delay(bench, later_ms)
    if restarts:
        bench.reload()
    _send(bench, b"two")
    bench.now_ms += 9_999
    bench.queue.expire(bench.now_ms)
    assert bench.receive() == []
    bench.now_ms += 1
    assert bodies_of(bench.receive()) == [b"one", b"two"]


def test_what_was_sent_with_a_delay_comes_first_after_a_restart_too() -> None:
    bench = _bench(1_000)
    _send(bench, b"one")
    bench.now_ms += 5_000
    bench.queue.expire(bench.now_ms)
    _set_delay(bench, 0)
    _send(bench, b"two")
    bench.reload()
    assert bodies_of(bench.receive(1)) == [b"one"]
    assert bench.receive() == []


def test_a_queue_that_was_empty_forgets_the_delay_it_had() -> None:
    bench = _bench(10_000)
    _send(bench, b"one")
    bench.now_ms += 10_000
    assert not bench.delete(*receipts_of(bench.receive()[0]))
    _set_delay(bench, 0)
    _send(bench, b"two")
    assert bodies_of(bench.receive()) == [b"two"]


def test_what_is_due_waits_for_older_messages_that_are_in_the_store_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FIFO_WINDOW_MESSAGES", 2)
    bench = _bench(0)
    for number in range(8):
        _send(bench, b"%d" % number)
    _set_delay(bench, 1_000)
    _send(bench, b"8")
    bench.now_ms += 1_000
    bench.queue.expire(bench.now_ms)
    got = []
    for _ in range(9):
        (delivery,) = bench.receive(1)
        got += delivery.bodies
        bench.delete(*receipts_of(delivery))
        bench.commit()
    assert got == [b"%d" % number for number in range(9)]


def test_a_group_behind_much_content_of_a_locked_group_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONTENT_BYTES", 2_000)
    bench = _bench(0)
    for number in range(40):
        bench.send(b"%04d" % number + b"x" * 200, groups=["hot"])
        bench.commit()
    bench.send(b"other", groups=["other"])
    bench.commit()
    (first,) = bench.receive(1)
    assert bodies_of(bench.receive(1)) == [b"other"]
    assert bench.queue.content_bytes < 2 * limits.CONTENT_BYTES
    # Nothing of the locked group was lost or moved by that.
    bench.delete(*receipts_of(first))
    got = []
    for _ in range(39):
        (delivery,) = bench.receive(1)
        got += delivery.bodies
        bench.delete(*receipts_of(delivery))
        bench.commit()
    assert [int(body[:4]) for body in got] == list(range(1, 40))


def test_a_receive_without_anything_to_serve_looks_no_further_than_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FIFO_WINDOW_MESSAGES", 20)
    bench = _bench(0)
    for number in range(40):
        bench.send(b"%d" % number, groups=["hot"])
        bench.commit()
    bench.send(b"other", groups=["other"])
    bench.commit()
    bench.receive(1)
    assert bench.receive(1) == []
    assert not bench.queue.may_load
