"""When a message can be received: visibility timeouts, delays, retention and limits of a queue (SEMANTICS 2.1)."""

from __future__ import annotations

import pytest
from penstock_broker.queues import limits
from penstock_protocol import queue_messages as q
from penstock_protocol.errors import MessageNotInFlight, QueueFull, ReceiptHandleExpired, TooManyInFlight

from tests.model.bench import Bench, bodies_of, receipts_of

SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000


def _sent(*bodies: bytes, name: str = "q", **settings: object) -> Bench:
    bench = Bench(name, **settings)
    if bodies:
        bench.send(*bodies)
        bench.commit()
    return bench


def _counts(bench: Bench) -> tuple[int, int, int]:
    return bench.queue.visible, bench.queue.in_flight, bench.queue.delayed


def _take(bench: Bench, most: int = 10, visibility_ms: int | None = None) -> list[q.Delivery]:
    """Receives with the queue's own visibility timeout unless told."""
    while True:
        bench.page_in()
        reply, taken = bench.queue.receive(most, 2**30, visibility_ms, "", False, bench.now_ms)
        if reply is not None and reply.deliveries:
            return reply.deliveries
        if not (taken is not None and taken.missing) and not bench.queue.may_load:
            return []


def test_a_received_message_is_hidden_for_the_queues_timeout_and_then_comes_again() -> None:
    bench = _sent(b"x", visibility_timeout_ms=7 * SECOND)
    assert bodies_of(_take(bench)) == [b"x"]
    assert _counts(bench) == (0, 1, 0)
    bench.now_ms += 7 * SECOND - 1
    assert _take(bench) == []
    bench.now_ms += 1
    assert bodies_of(_take(bench)) == [b"x"]


def test_the_default_timeout_is_thirty_seconds_and_a_receive_may_name_its_own() -> None:
    bench = _sent(b"a", b"b")
    _take(bench, 1)
    _take(bench, 1, visibility_ms=12 * HOUR)
    bench.now_ms += 30 * SECOND
    assert bodies_of(_take(bench)) == [b"a"]
    bench.now_ms += 12 * HOUR - 30 * SECOND - 1
    assert bodies_of(_take(bench)) == [b"a"]
    bench.now_ms += 1
    assert bodies_of(_take(bench)) == [b"b"]


def test_with_a_timeout_of_zero_a_message_is_visible_at_once() -> None:
    bench = _sent(b"x")
    for count in range(1, 4):
        (delivery,) = _take(bench, visibility_ms=0)
        assert delivery.receive_count == count


def test_receives_are_counted_and_the_first_one_is_remembered_also_over_a_restart() -> None:
    bench = _sent(b"x")
    first_ms = bench.now_ms
    for count in range(1, 5):
        (delivery,) = _take(bench, visibility_ms=SECOND)
        assert (delivery.receive_count, delivery.first_received_ms) == (count, first_ms)
        bench.commit()
        bench.reload()
        bench.now_ms += SECOND
        bench.queue.expire(bench.now_ms)


def test_changing_the_visibility_counts_from_now_for_the_messages_named_only() -> None:
    bench = _sent(b"a", b"b", b"c")
    (delivery,) = _take(bench, visibility_ms=10 * SECOND)
    a, b, c = receipts_of(delivery)
    bench.now_ms += 9 * SECOND
    assert bench.queue.change_visibility([a, b], [20 * SECOND, 0], bench.now_ms) == []
    assert _counts(bench) == (1, 2, 0)
    assert bodies_of(_take(bench)) == [b"b"]
    bench.now_ms += SECOND
    assert bodies_of(_take(bench)) == [b"c"]
    bench.now_ms += 19 * SECOND - 1
    assert b"a" not in bodies_of(_take(bench))
    bench.now_ms += 1
    assert b"a" in bodies_of(_take(bench))
    assert c is not None


def test_the_visibility_of_what_is_not_in_flight_cannot_be_changed() -> None:
    bench = _sent(b"x")
    (delivery,) = _take(bench, visibility_ms=SECOND)
    bench.now_ms += SECOND
    (failure,) = bench.queue.change_visibility(receipts_of(delivery), [MINUTE], bench.now_ms)
    assert failure.code == MessageNotInFlight.code
    (again,) = _take(bench)
    bench.delete(*receipts_of(again))
    (failure,) = bench.queue.change_visibility(receipts_of(again), [MINUTE], bench.now_ms)
    assert failure.code == MessageNotInFlight.code


def test_a_late_delete_counts_on_a_standard_queue_unless_the_message_was_received_again() -> None:
    bench = _sent(b"a", b"b")
    a, b = receipts_of(_take(bench, visibility_ms=SECOND)[0])
    bench.now_ms += SECOND
    assert bench.delete(a) == []
    assert bodies_of(_take(bench)) == [b"b"]
    (failure,) = bench.delete(b)
    assert failure.code == ReceiptHandleExpired.code
    assert _counts(bench) == (0, 1, 0)


def test_a_late_delete_does_not_count_on_a_fifo_queue() -> None:
    bench = Bench("q.fifo", content_based_deduplication=True)
    bench.send(b"x", groups=["g"])
    bench.commit()
    (delivery,) = _take(bench, visibility_ms=SECOND)
    bench.now_ms += SECOND
    (failure,) = bench.delete(*receipts_of(delivery))
    assert failure.code == ReceiptHandleExpired.code
    assert bodies_of(_take(bench)) == [b"x"]


def test_what_was_in_flight_at_a_restart_stays_hidden_as_long_as_it_was_to_be() -> None:
    bench = _sent(b"a", b"b")
    (delivery,) = _take(bench, visibility_ms=MINUTE)
    bench.delete(receipts_of(delivery)[0])
    bench.commit()
    bench.reload()
    assert _counts(bench) == (0, 1, 0)
    bench.now_ms += MINUTE - 1
    assert bench.receive() == []
    bench.now_ms += 1
    assert bodies_of(bench.receive()) == [b"b"]


def test_nothing_is_received_before_its_commit_is_durable() -> None:
    bench = Bench()
    bench.send(b"x")
    assert bench.receive() == []
    assert _counts(bench) == (0, 0, 0)
    bench.commit()
    assert bodies_of(bench.receive()) == [b"x"]


# Delays


def test_a_message_is_delayed_by_its_own_delay_or_else_by_the_queues() -> None:
    bench = Bench(delay_ms=10 * SECOND)
    bench.send(b"queue's", b"none", b"long", delays_ms=[None, 0, HOUR])
    bench.commit()
    assert _counts(bench) == (1, 0, 2)
    assert bodies_of(bench.receive()) == [b"none"]
    bench.now_ms += 10 * SECOND - 1
    assert bench.receive() == []
    bench.now_ms += 1
    assert bodies_of(bench.receive()) == [b"queue's"]
    bench.now_ms += HOUR
    assert b"long" in bodies_of([*bench.receive(), *bench.receive()])


def test_the_native_protocol_delays_for_a_year_also_over_a_restart() -> None:
    bench = Bench()
    bench.send(b"x", delays_ms=[365 * DAY])
    bench.commit()
    bench.now_ms += 365 * DAY - 1
    bench.reload()
    assert bench.receive() == [] and _counts(bench) == (0, 0, 1)
    assert bench.queue.next_deadline() is not None
    bench.now_ms += 1
    assert bodies_of(bench.receive()) == [b"x"]


def test_the_next_deadline_is_when_something_happens_next() -> None:
    bench = Bench()
    assert bench.queue.next_deadline() is None
    bench.send(b"a", b"b", delays_ms=[5 * SECOND, 9 * SECOND])
    bench.commit()
    bench.queue.expire(bench.now_ms)
    assert bench.queue.next_deadline() == bench.now_ms + 5 * SECOND
    bench.now_ms += 5 * SECOND
    bench.receive(visibility_ms=3 * SECOND)
    assert bench.queue.next_deadline() == bench.now_ms + 3 * SECOND
    bench.receive()
    bench.now_ms += 3 * SECOND
    bench.queue.expire(bench.now_ms)
    assert bench.queue.next_deadline() == bench.now_ms + SECOND


# Retention


@pytest.mark.parametrize("in_flight", [False, True])
def test_a_message_older_than_the_retention_is_gone_in_flight_or_not(in_flight: bool) -> None:
    bench = _sent(b"old", retention_ms=MINUTE)
    if in_flight:
        bench.receive(visibility_ms=HOUR)
    bench.now_ms += 30 * SECOND
    bench.send(b"young")
    bench.commit()
    bench.now_ms += 30 * SECOND
    bench.queue.expire(bench.now_ms)
    assert bodies_of(bench.receive()) == [b"young"]
    assert bench.queue.counters.expired == 1
    assert bench.queue.messages == 1 and bench.queue.in_flight == 1
    bench.commit()
    bench.reload()
    assert bench.queue.messages == 1


def test_the_default_retention_is_four_days() -> None:
    bench = _sent(b"x")
    bench.now_ms += 4 * DAY - SECOND
    bench.queue.expire(bench.now_ms)
    assert bench.queue.messages == 1
    bench.now_ms += SECOND
    bench.queue.expire(bench.now_ms)
    assert bench.queue.messages == 0


# Limits


def test_a_standard_queue_refuses_receives_beyond_its_messages_in_flight() -> None:
    bench = _sent(b"a", b"b", b"c", max_in_flight=2)
    assert len(bodies_of(_take(bench))) == 2, "as many as there is room for"
    with pytest.raises(TooManyInFlight):
        _take(bench)
    bench.now_ms += 30 * SECOND
    assert len(bodies_of(_take(bench))) == 2


def test_a_fifo_queue_beyond_its_messages_in_flight_gives_nothing() -> None:
    bench = Bench("q.fifo", content_based_deduplication=True, max_in_flight=1)
    bench.send(b"a", b"b", groups=["g", "h"])
    bench.commit()
    (delivery,) = _take(bench)
    assert _take(bench) == []
    bench.delete(*receipts_of(delivery))
    assert bodies_of(_take(bench)) == [b"b"]


def test_the_default_limit_in_flight_is_that_of_sqs() -> None:
    assert limits.MAX_IN_FLIGHT == 120_000
    assert Bench().settings.max_in_flight == 120_000


def test_a_queue_takes_no_more_messages_or_bytes_than_it_may_hold() -> None:
    bench = Bench(max_messages=3)
    bench.send(b"a", b"b")
    with pytest.raises(QueueFull, match="max_messages = 3; 2 are there"):
        bench.send(b"c", b"d")
    bench.send(b"c")
    bench.commit()
    assert bench.queue.visible == 3
    bench.delete(*receipts_of(bench.receive()[0])[:1])
    bench.send(b"d")
    small = Bench(max_bytes=10)
    small.send(bytes(10))
    with pytest.raises(QueueFull, match="max_bytes = 10"):
        small.send(b"x")


def test_a_receive_brings_about_as_many_bytes_as_asked_for_but_one_message_at_least() -> None:
    bench = _sent(*[bytes(100)] * 10)
    reply, _ = bench.queue.receive(10, 250, None, "", False, bench.now_ms)
    assert reply is not None and len(bodies_of(reply.deliveries)) == 2
    reply, _ = bench.queue.receive(10, 1, None, "", False, bench.now_ms)
    assert reply is not None and len(bodies_of(reply.deliveries)) == 1


def test_a_purge_takes_everything_in_flight_and_delayed_too() -> None:
    bench = Bench()
    bench.send(b"a", b"b", b"c", delays_ms=[None, None, HOUR])
    bench.commit()
    (delivery,) = bench.receive(1)
    bench.send(b"not committed yet")
    assert bench.queue.purge(bench.now_ms) == 4
    assert _counts(bench) == (0, 0, 0) and bench.queue.size_bytes == 0
    assert bench.delete(*receipts_of(delivery)) == [], "what is gone is gone"
    bench.commit()
    bench.reload()
    assert bench.queue.messages == 0 and bench.receive() == []
