"""Quiet tenants of a standard queue whose backlog is larger than what waits in memory."""

from __future__ import annotations

import pytest
from penstock_broker.queues import limits

from tests.model.bench import Bench, bodies_of, receipts_of


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A noisy tenant has more in the store than the window holds."""
    monkeypatch.setattr(limits, "WINDOW_MESSAGES", 50)
    monkeypatch.setattr(limits, "LOW_WATER_MESSAGES", 25)
    bench = Bench()
    for number in range(40):
        bench.send(*(b"noise %d" % (10 * number + place) for place in range(10)), groups=["noisy"] * 10)
        bench.commit()
    return bench


def _drain(bench: Bench) -> list[bytes]:
    got = []
    while deliveries := bench.receive(7):
        got += bodies_of(deliveries)
        for delivery in deliveries:
            bench.delete(*receipts_of(delivery))
        bench.commit()
    return got


def test_a_quiet_tenant_waits_for_nobodys_backlog(bench: Bench) -> None:
    bench.receive(40)
    bench.send(b"quiet", groups=["quiet"])
    bench.commit()
    assert b"quiet" in bodies_of(bench.receive(2))


def test_a_quiet_message_that_was_committed_together_with_noise_is_served_once(bench: Bench) -> None:
    bench.send(b"noise a", b"quiet", b"noise b", groups=["noisy", "quiet", "noisy"])
    bench.commit()
    got = _drain(bench)
    assert len(got) == len(set(got)) == 403
    assert got.index(b"quiet") < 20
    assert (bench.queue.messages, bench.queue.size_bytes, bench.queue.content_bytes) == (0, 0, 0)
    assert not bench.queue.segments


def test_a_quiet_message_that_returns_and_a_restart_lose_and_double_nothing(bench: Bench) -> None:
    bench.send(b"noise a", b"quiet", b"noise b", groups=["noisy", "quiet", "noisy"])
    bench.commit()
    assert b"quiet" in bodies_of(bench.receive(40, 1_000))
    bench.commit()
    bench.now_ms += 1_000
    bench.queue.expire(bench.now_ms)
    bench.reload()
    got = _drain(bench)
    assert len(got) == len(set(got)) == 403


def test_what_is_served_before_its_page_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EARLY_SEGMENTS", 5)
    before = len(bench.queue.segments)
    for number in range(20):
        bench.send(b"quiet %d" % number, groups=[f"tenant-{number}"])
        bench.commit()
    assert len(bench.queue.segments) == before + 5
    assert len(set(_drain(bench))) == 420
    bench.send(b"quiet", groups=["tenant"])
    bench.commit()
    assert bodies_of(bench.receive()) == [b"quiet"]
