"""What a queue remembers of sends and receives: for how long, and what a full queue answers."""

from __future__ import annotations

import pytest
from penstock_broker.queues import limits
from penstock_protocol.errors import InvalidRequest, QueueFull
from penstock_protocol.queue_messages import Attribute

from tests.model.bench import Bench, bodies_of, receipts_of


def test_an_idle_queue_forgets_deduplication_ids_after_their_window() -> None:
    bench = Bench("q.fifo", content_based_deduplication=True)
    bench.send(*(b"%d" % number for number in range(100)), groups=["g"] * 100)
    bench.commit()
    for delivery in bench.receive(100):
        bench.delete(*receipts_of(delivery))
    bench.commit()
    queue = bench.queue
    deadline = queue.next_deadline()
    assert deadline is not None
    assert bench.now_ms + limits.DEDUPLICATION_WINDOW_MS <= deadline
    bench.now_ms = deadline
    queue.expire(bench.now_ms)
    assert not queue._deduplication._keys
    assert queue.next_deadline() is None


def test_an_id_that_was_used_again_after_its_window_is_remembered_for_another_one() -> None:
    bench = Bench("q.fifo")
    sequences = []
    for _ in range(2):
        reply = bench.send(b"x", groups=["g"], deduplication_ids=["id"])
        sequences.append(reply.runs[0].first)
        bench.commit()
        bench.now_ms += limits.DEDUPLICATION_WINDOW_MS
    bench.now_ms -= 1
    bench.reload()
    assert bench.send(b"x", groups=["g"], deduplication_ids=["id"]).runs[0].first == sequences[1] != sequences[0]


@pytest.mark.parametrize("attempt", ["x" * 129, "line\nbreak", "bell\x07"])
def test_an_attempt_id_is_short_and_printable(attempt: str) -> None:
    bench = Bench("q.fifo")
    with pytest.raises(InvalidRequest):
        bench.receive(attempt=attempt)
    assert bench.receive(attempt="x" * 128) == []


def test_attributes_count_against_the_size_of_a_queue() -> None:
    bench = Bench(max_bytes=1_000)
    with pytest.raises(QueueFull):
        bench.send(b"x", attributes=[[Attribute("a", "String", "y" * 1_000)]])
    assert bench.queue.messages == 0


@pytest.mark.parametrize("scope", ["queue", "message_group"])
def test_a_full_fifo_queue_answers_what_it_accepted_before_as_the_first_time(scope: str) -> None:
    bench = Bench("q.fifo", max_messages=1, deduplication_scope=scope)
    first = bench.send(b"x", groups=["g"], deduplication_ids=["1"])
    bench.commit()
    assert bench.send(b"x", groups=["g"], deduplication_ids=["1"]).runs == first.runs
    with pytest.raises(QueueFull):
        bench.send(b"x", groups=["g"], deduplication_ids=["2"])
    assert bodies_of(bench.receive()) == [b"x"]


def test_answers_of_a_producer_that_never_acknowledges_are_kept_for_a_window_only() -> None:
    bench = Bench()
    first = bench.send(b"x", sequence=1)
    bench.commit()
    assert bench.send(b"x", sequence=1).runs == first.runs
    sends = 1
    for _ in range(60):
        bench.now_ms += limits.MINUTE_MS
        sends += 1
        bench.send(b"x", sequence=sends)
        bench.commit()
    [producer] = bench.queue._deduplication._producers.values()
    assert len(producer.answers) <= 16
    again = bench.send(b"x", sequence=sends - 10)
    assert bench.queue.messages == sends, "within the window it is a retry"
    assert again.runs


def test_after_a_restart_only_answers_that_were_not_acknowledged_are_known() -> None:
    bench = Bench()
    replies = []
    for number in range(1, 101):
        replies.append(bench.send(b"x", sequence=number, acknowledged=max(1, number - 2)))
        bench.commit()
    bench.reload()
    [producer] = bench.queue._deduplication._producers.values()
    assert sorted(producer.answers) == [98, 99, 100]
    assert bench.send(b"x", sequence=100, acknowledged=98).runs == replies[-1].runs
    with pytest.raises(InvalidRequest):
        bench.send(b"x", sequence=97, acknowledged=98)
    assert bench.queue.messages == 100
