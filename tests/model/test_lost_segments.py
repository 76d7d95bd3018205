"""What is left of a queue when the store cannot give the content of a segment any more."""

from __future__ import annotations

import pytest
from penstock_storage.interface import SegmentKey

from tests.model.bench import LOG, Bench, bodies_of, receipts_of


def _lose(bench: Bench) -> SegmentKey:
    """The content of the only segment is in no memory, and decays in the store."""
    (segment,) = bench.queue.segments.values()
    bench.queue.shed()
    bench.disk.rotten.add(segment.key(LOG))
    return segment.key(LOG)


@pytest.mark.parametrize("name", ["q", "q.fifo"])
def test_messages_in_flight_of_a_lost_segment_are_in_flight_no_more_and_block_nothing(name: str) -> None:
    bench = Bench(name, content_based_deduplication=True)
    fifo = name != "q"
    bench.send(b"one", b"two", b"three", groups=["a", "b", "a"] if fifo else None)
    bench.commit()
    first = bench.receive(1, 1_000)
    bench.receive(1, 60_000)
    bench.commit()
    _lose(bench)
    bench.now_ms += 1_000
    assert bench.receive() == []
    queue = bench.queue
    assert (queue.messages, queue.size_bytes, queue.in_flight, queue.visible) == (0, 0, 0, 0)
    assert (queue.content_bytes, queue.deliveries) == (0, {})
    bench.now_ms += 60_000
    queue.expire(bench.now_ms)
    bench.send(b"healthy", groups=["a"] if fifo else None)
    bench.commit()
    assert bodies_of(bench.receive()) == [b"healthy"]
    assert (queue.messages, queue.in_flight) == (1, 1)
    assert queue.wants() is None
    assert bench.delete(*receipts_of(first[0])) == []


def test_messages_that_wait_again_of_a_lost_segment_do_not_stand_in_front_of_others() -> None:
    bench = Bench()
    bench.send(b"one", b"two")
    bench.commit()
    bench.receive(1, 1_000)
    bench.receive(1, 2_000)
    bench.commit()
    _lose(bench)
    bench.now_ms += 1_000
    bench.queue.expire(bench.now_ms)
    assert bench.receive() == []
    bench.now_ms += 1_000
    bench.send(b"healthy")
    bench.commit()
    assert bodies_of(bench.receive()) == [b"healthy"]
    assert bench.queue.in_flight == 1


def test_the_row_of_a_lost_segment_is_left_alone_with_what_was_deleted_of_it() -> None:
    bench = Bench()
    bench.send(b"one", b"two", b"three")
    bench.commit()
    (delivery,) = bench.receive(1, 30_000)
    bench.commit()
    key = _lose(bench)
    bench.delete(*receipts_of(delivery))
    assert bench.receive() == []
    bench.commit()
    log = bench.disk.logs[LOG]
    assert key.first in {row.first for row in log.segments.values()}
    assert (log.states[key.first].deleted, log.states[key.first].deleted_count) == (b"\x01", 1)
