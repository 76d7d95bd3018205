"""What the simulation found, each as the shortest story that shows it."""

from __future__ import annotations

import pytest
from penstock_broker.queues import limits
from penstock_broker.queues.queue import LoadContent
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


def test_a_repeated_attempt_brings_each_group_in_order() -> None:
    bench = _fifo()
    bench.send(b"one", b"two", b"three", groups=["g", "g", "g"])
    bench.commit()
    (delivery,) = bench.receive(3, 30_000, "again")
    # The first one becomes a run of its own, behind the others.
    assert not bench.queue.change_visibility(receipts_of(delivery)[:1], [20_000], bench.now_ms)
    bench.commit()
    assert bodies_of(bench.receive(3, 30_000, "again")) == [b"one", b"two", b"three"]


def test_messages_are_received_although_the_content_of_delayed_ones_would_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONTENT_BYTES", 200)
    bench = Bench()
    bench.send(b"late" * 100, delays_ms=[60_000])
    bench.commit()
    bench.send(b"now")
    bench.commit()
    assert bench.queue.content_bytes <= 200
    assert bodies_of(bench.receive()) == [b"now"]


def test_delayed_messages_of_a_group_come_in_order_when_some_lost_their_content() -> None:
    bench = _fifo(delay_ms=1_000)
    bench.send(b"one", groups=["g"])
    bench.commit()
    bench.queue.shed()
    bench.now_ms += 500
    bench.send(b"two", groups=["g"])
    bench.commit()
    bench.now_ms += 2_000
    assert bodies_of(bench.receive()) == [b"one", b"two"]


def test_what_a_page_still_has_to_bring_is_not_overtaken_after_a_reload() -> None:
    bench = _fifo(delay_ms=1_000)
    for bodies, groups in (([b"zero"], ["g"]), ([b"one"], ["g"]), ([b"other", b"two"], ["h", "g"])):
        bench.send(*bodies, groups=groups)
        bench.commit()
    bench.now_ms += 2_000
    bench.queue.expire(bench.now_ms)
    # "zero" and "other" were received before; "one" and "two" wait behind "zero".
    taken = [bench.receive(1, 1_000), bench.receive(1, 1_000)]
    assert sorted(body for deliveries in taken for body in bodies_of(deliveries)) == [b"other", b"zero"]
    bench.commit()
    bench.now_ms += 2_000
    bench.reload()
    queue = bench.queue
    queue.receive(10, 2**30, 1_000, "", False, bench.now_ms)
    want = queue.wants()
    assert isinstance(want, LoadContent)
    queue.loaded_content(want, bench.store.load_segments(want.keys), bench.now_ms)
    reply, _ = queue.receive(10, 2**30, 1_000, "", False, bench.now_ms)
    assert reply is not None
    assert b"two" not in bodies_of(reply.deliveries)
    bench.commit()
    bench.now_ms += 2_000
    received = bodies_of(bench.receive()) + bodies_of(bench.receive())
    assert [body for body in received if body != b"other"] == [b"zero", b"one", b"two"]


def test_a_receive_attempt_is_remembered_from_its_last_answer_on() -> None:
    bench = _fifo()
    bench.send(b"one", b"two", groups=["g", "h"])
    bench.commit()
    (first,) = bench.receive(1, 30_000, "again")
    assert not bench.delete(*receipts_of(first))
    bench.now_ms += 200_000
    (second,) = bench.receive(1, 600_000, "again")
    bench.now_ms += 150_000
    # 350 seconds after the first answer, 150 after the second.
    assert bodies_of(bench.receive(1, 30_000, "again")) == bodies_of([second])


def test_the_size_of_a_queue_is_never_negative() -> None:
    bench = Bench()
    bench.send(b"x", b"x", b"x" * 100, b"x")
    bench.commit()
    (delivery,) = bench.receive(2)
    bench.commit()
    # Sizes are not known after a reload: what is deleted then counts its share.
    bench.reload()
    assert not bench.delete(*receipts_of(delivery))
    bench.commit()
    # With the next page they are.
    bench.reload()
    (rest,) = bench.receive(2)
    assert not bench.delete(receipts_of(rest)[0])
    assert bench.queue.messages == 1
    assert bench.queue.size_bytes >= 0
