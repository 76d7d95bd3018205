"""Segments of which most is deleted give their room back, and nothing else changes."""

from __future__ import annotations

import dataclasses

import pytest
from penstock_protocol.queue_messages import Attribute
from penstock_storage.interface import SegmentRow

from tests.model.bench import LOG, Bench, bodies_of, receipts_of

BODIES = [b"%03d" % number + b"x" * 2_000 for number in range(100)]


def _row(bench: Bench) -> SegmentRow:
    (row,) = bench.disk.logs[LOG].segments.values()
    return row


@pytest.mark.parametrize("name", ["q", "q.fifo"])
def test_a_segment_that_is_mostly_dead_is_rewritten_with_its_living_rest(name: str) -> None:
    bench = Bench(name, content_based_deduplication=True)
    attributes = [[Attribute("n", "Number", str(number))] for number in range(100)]
    bench.send(*BODIES, groups=[f"g{number % 7}" for number in range(100)], attributes=attributes)
    bench.commit()
    (delivery,) = bench.receive(100, 10_000)
    bench.commit()
    receipts = receipts_of(delivery)
    rest = [number for number in range(100) if number % 10 == 3]
    assert not bench.delete(*(receipt for number, receipt in enumerate(receipts) if number not in rest))
    bench.commit()
    before = _row(bench)
    bench.now_ms += 10_000
    again = bench.receive(1, 10_000)
    bench.commit()
    assert len(_row(bench).payload or b"") < len(before.payload or b"") // 5
    assert bench.queue.size_bytes == _row(bench).size_bytes == sum(len(BODIES[one]) + len(f"nNumber{one}") for one in rest)
    assert bench.store.load_log(LOG, 0).size_bytes == bench.queue.size_bytes
    bench.reload()
    bench.now_ms += 10_000
    got = bench.receive(100)
    assert sorted(bodies_of(got)) == [BODIES[one] for one in rest]
    assert bodies_of(again)[0] in bodies_of(got)
    assert {one[0].value for delivery in got for one in delivery.attributes or [] if one} == {str(one) for one in rest}
    for delivery in got:
        bench.delete(*receipts_of(delivery))
    assert (bench.queue.messages, bench.queue.size_bytes, bench.queue.content_bytes) == (0, 0, 0)


def test_what_is_not_mostly_dead_or_small_is_left_as_it_was_written() -> None:
    for bodies, deleted in ((BODIES, 60), ([b"small"] * 100, 95)):
        bench = Bench()
        bench.send(*bodies)
        bench.commit()
        before = _row(bench)
        (delivery,) = bench.receive(100, 10_000)
        assert not bench.delete(*receipts_of(delivery)[:deleted])
        bench.commit()
        bench.now_ms += 10_000
        bench.receive(1)
        bench.commit()
        assert dataclasses.asdict(_row(bench)) == dataclasses.asdict(before)


def test_a_segment_is_rewritten_at_once_while_some_of_it_was_never_received() -> None:
    bench = Bench()
    bench.send(*BODIES)
    bench.commit()
    (delivery,) = bench.receive(80, 10_000)
    assert not bench.delete(*receipts_of(delivery))
    bench.commit()
    assert _row(bench).size_bytes == bench.queue.size_bytes == 20 * 2_003
    assert bench.receive(100)[0].bodies == BODIES[80:]


def test_messages_that_wait_again_keep_the_content_that_was_loaded_for_them() -> None:
    bench = Bench()
    bench.send(*BODIES)
    bench.commit()
    bench.receive(100, 10_000)
    bench.now_ms += 10_000
    assert bodies_of(bench.receive(1)) == BODIES[:1]
    assert bench.queue.content_bytes > 0
    reply, _ = bench.queue.receive(99, 2**30, 10_000, "", False, bench.now_ms)
    assert reply is not None
    assert bodies_of(reply.deliveries) == BODIES[1:]
    assert bench.queue.content_bytes == 0
