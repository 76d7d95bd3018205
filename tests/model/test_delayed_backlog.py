"""Delayed messages, more of them than fit into memory, before and after they are due."""

from __future__ import annotations

import pytest
from penstock_broker.queues import limits

from tests.model.bench import Bench, bodies_of, receipts_of


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "WINDOW_MESSAGES": 50,
        "FIFO_WINDOW_MESSAGES": 50,
        "LOW_WATER_MESSAGES": 25,
        "CONTENT_BYTES": 20_000,
        "PAGE_BYTES": 5_000,
        "DELAYED_SEGMENTS": 30,
    }.items():
        monkeypatch.setattr(limits, name, value)


def _drain(bench: Bench) -> list[bytes]:
    got: list[bytes] = []
    while deliveries := bench.receive(7):
        assert bench.queue.content_bytes < 2 * limits.CONTENT_BYTES
        got += bodies_of(deliveries)
        for delivery in deliveries:
            bench.delete(*receipts_of(delivery))
        bench.commit()
    return got


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("name", ["q", "q.fifo"])
def test_what_became_due_waits_in_memory_only_as_far_as_the_window(name: str, restarts: bool) -> None:
    bench = Bench(name, delay_ms=1, content_based_deduplication=True)
    for number in range(200):
        bench.send(*(b"%d" % (10 * number + place) for place in range(10)), groups=["a", "b"] * 5 if bench.queue.fifo else None)
        bench.commit()
        bench.now_ms += 2
        bench.queue.expire(bench.now_ms)
    if restarts:
        bench.reload()
    bench.page_in()
    bench.queue.expire(bench.now_ms)
    queue = bench.queue
    assert queue._ready.messages <= limits.WINDOW_MESSAGES + 10
    assert len(queue.segments) <= 3 * limits.DELAYED_SEGMENTS
    assert queue.messages == queue.visible + queue.delayed == 2_000
    got = _drain(bench)
    if queue.fifo:
        for group in range(2):
            mine = [int(body) for body in got if int(body) % 2 == group]
            assert mine == sorted(mine)
    assert sorted(map(int, got)) == list(range(2_000))
    assert (queue.messages, queue.delayed, queue.visible, queue.content_bytes) == (0, 0, 0, 0)
    bench.now_ms += 10 * limits.MINUTE_MS
    queue.expire(bench.now_ms)
    assert queue.next_deadline() is None


@pytest.mark.parametrize("restarts", [False, True])
def test_large_messages_with_a_delay_leave_their_content_to_the_store(restarts: bool) -> None:
    bench = Bench()
    for number in range(25):
        bench.send(b"%02d" % number + b"x" * 3_000, delays_ms=[60_000 + number])
        bench.commit()
    if restarts:
        bench.reload()
    bench.page_in()
    assert bench.queue.content_bytes < limits.CONTENT_BYTES + 4_000
    assert bench.queue.delayed == 25
    bench.now_ms += 70_000
    assert sorted(int(body[:2]) for body in _drain(bench)) == list(range(25))


def test_delayed_messages_that_are_due_do_not_keep_out_what_never_had_a_delay() -> None:
    bench = Bench()
    for number in range(60):
        bench.send(*[b"plain %d" % number] * 5)
        bench.send(*[b"late %d" % number] * 5, delays_ms=[1] * 5)
        bench.commit()
        bench.now_ms += 2
        bench.queue.expire(bench.now_ms)
    got = _drain(bench)
    assert len(got) == 600
    assert {body[:4] for body in got[:200]} == {b"plai", b"late"}


def test_what_is_due_behind_a_full_window_is_no_deadline_until_there_is_room() -> None:
    bench = Bench(delay_ms=1)
    for _ in range(20):
        bench.send(*[b"x"] * 10)
        bench.commit()
    bench.now_ms += 1
    bench.queue.expire(bench.now_ms)
    deadline = bench.queue.next_deadline()
    assert deadline is not None
    assert deadline > bench.now_ms
    bench.receive(40)
    assert bench.queue.has_ready
    deadline = bench.queue.next_deadline()
    assert deadline is not None
    assert deadline > bench.now_ms
