"""What the simulation found, each as the shortest story that shows it."""

from __future__ import annotations

import pytest
from penstock_protocol.errors import InvalidRequest
from penstock_storage.interface import Commit

from tests.model.bench import Bench, bodies_of, receipts_of


def _fifo(**settings: object) -> Bench:
    return Bench("f.fifo", content_based_deduplication=True, **settings)


def test_content_that_two_loads_bring_is_counted_once() -> None:
    bench = Bench()
    bench.send(b"one", b"two")
    bench.commit()
    bench.receive(1, 1_000)
    bench.commit()
    bench.now_ms += 2_000
    bench.reload()
    # One load brings the content for the message that was received before, another the arrivals of the same segment.
    assert len(bodies_of(bench.receive(1, 1_000)) + bodies_of(bench.receive(1, 1_000))) == 2
    queue = bench.queue
    assert queue.content_bytes == sum(segment.memory_bytes() for segment in queue.segments.values())


def test_a_late_copy_of_an_acknowledged_send_is_refused() -> None:
    bench = Bench()
    bench.send(b"one", sequence=1, acknowledged=1)
    bench.send(b"two", sequence=2, acknowledged=2)
    bench.commit()
    with pytest.raises(InvalidRequest):
        bench.send(b"one", sequence=1, acknowledged=1)
    bench.commit()
    assert bodies_of(bench.receive()) == [b"one", b"two"]


def test_nothing_of_an_expired_message_stays() -> None:
    bench = Bench(retention_ms=60_000)
    bench.send(b"one", b"two")
    bench.commit()
    bench.receive(2, 1_000)
    bench.commit()
    bench.now_ms += 2_000
    bench.queue.expire(bench.now_ms)
    bench.now_ms += 70_000
    bench.queue.expire(bench.now_ms)
    assert bench.queue.messages == 0
    assert not bench.queue.deliveries
    bench.commit()
    assert not bench.store.load_deliveries(bench.queue.log_id, -1, 10)


def test_a_repeated_attempt_brings_the_same_messages_although_their_content_has_left_memory() -> None:
    bench = _fifo()
    bench.send(b"one", b"two", groups=["g", "g"])
    bench.commit()
    first = bench.receive(attempt="again")
    bench.commit()
    bench.reload()
    again = bench.receive(attempt="again")
    assert bodies_of(again) == bodies_of(first) == [b"one", b"two"]
    assert [delivery.receive_count for delivery in again] == [1]
    assert not bench.delete(*receipts_of(again[0]))


def test_what_is_sent_after_a_purge_is_received() -> None:
    bench = Bench()
    bench.send(b"one")
    bench.commit()
    assert bench.queue.purge(bench.now_ms) == 1
    bench.commit()
    bench.send(b"two")
    bench.commit()
    assert bodies_of(bench.receive()) == [b"two"]


def test_a_clock_that_was_set_back_delays_nothing_again() -> None:
    bench = Bench()
    bench.send(b"one", b"two", b"three", delays_ms=[1_000, 1_000, 1_000])
    bench.commit()
    bench.now_ms += 2_000
    (delivery,) = bench.receive(2)
    assert not bench.delete(receipts_of(delivery)[0])
    bench.commit()
    bench.now_ms -= 3_600_000
    bench.reload()
    assert bodies_of(bench.receive()) == [b"three"]
    assert (bench.queue.delayed, bench.queue.in_flight, bench.queue.messages) == (0, 2, 2)


def test_delayed_messages_that_a_page_brings_before_their_commit_returns_are_counted_once() -> None:
    bench = Bench()
    bench.send(b"one", delays_ms=[1_000])
    bench.commit()
    bench.reload()
    bench.send(b"two", b"three", delays_ms=[5_000, 5_000])
    commit = Commit()
    publication = bench.queue.collect(commit, bench.now_ms)
    bench.store.commit(bench.incarnation, commit)
    bench.page_in()
    bench.queue.publish(publication)
    assert bench.queue.delayed == 3
    bench.now_ms += 10_000
    assert bodies_of(bench.receive()) == [b"one", b"two", b"three"]
    assert bench.queue.delayed == 0
