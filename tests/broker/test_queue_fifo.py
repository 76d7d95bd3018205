"""FIFO queues: order in each group, groups in turn, exactly-once sends, repeated receives (SEMANTICS 2.1)."""

from __future__ import annotations

import pytest
from penstock_protocol import queue_messages as q

from tests.model.bench import Bench, bodies_of, receipts_of

SECOND, MINUTE = 1_000, 60_000


def _fifo(*entries: str, **settings: object) -> Bench:
    """A queue with messages "group:body"."""
    bench = Bench("q.fifo", **{"content_based_deduplication": True, **settings})
    _send(bench, *entries)
    return bench


def _send(bench: Bench, *entries: str, ids: list[str | None] | None = None) -> q.SendReply | None:
    if not entries:
        return None
    groups = [entry.split(":")[0] for entry in entries]
    reply = bench.send(*[entry.encode() for entry in entries], groups=groups, deduplication_ids=ids)
    bench.commit()
    return reply


def _bodies(deliveries: list[q.Delivery]) -> list[str]:
    return [body.decode() for body in bodies_of(deliveries)]


def _receipts(deliveries: list[q.Delivery]) -> dict[str, q.Receipt]:
    return {
        body.decode(): receipt
        for delivery in deliveries
        for body, receipt in zip(delivery.bodies, receipts_of(delivery), strict=True)
    }


def test_a_group_is_locked_while_one_of_its_messages_is_in_flight() -> None:
    bench = _fifo("g:1", "g:2", "h:1")
    taken = bench.receive(1)
    assert _bodies(taken) == ["g:1"]
    assert _bodies(bench.receive()) == ["h:1"]
    assert bench.receive() == []
    bench.delete(_receipts(taken)["g:1"])
    assert _bodies(bench.receive()) == ["g:2"]


def test_one_receive_may_take_several_messages_of_a_group_in_order() -> None:
    bench = _fifo("g:1", "g:2", "g:3", "g:4")
    taken = bench.receive(3)
    assert _bodies(taken) == ["g:1", "g:2", "g:3"]
    bench.delete(_receipts(taken)["g:1"])
    assert bench.receive() == [], "two are in flight still"
    bench.delete(_receipts(taken)["g:2"], _receipts(taken)["g:3"])
    assert _bodies(bench.receive()) == ["g:4"]


def test_a_group_is_served_up_to_its_first_message_that_is_still_invisible() -> None:
    bench = _fifo("g:1", "g:2", "g:3", "g:4")
    receipts = _receipts(bench.receive(3, visibility_ms=MINUTE))
    bench.queue.change_visibility([receipts["g:1"], receipts["g:3"]], [0, 0], bench.now_ms)
    assert _bodies(bench.receive()) == ["g:1"], "not g:3, which comes after g:2"
    bench.now_ms += MINUTE
    assert _bodies(bench.receive()) == ["g:1", "g:2", "g:3", "g:4"]


def test_after_a_timeout_a_group_starts_again_at_its_first_message() -> None:
    bench = _fifo("g:1", "g:2")
    bench.receive(1, visibility_ms=SECOND)
    bench.now_ms += SECOND
    assert _bodies(bench.receive(10)) == ["g:1", "g:2"]


def test_a_hot_group_starves_nobody() -> None:
    bench = _fifo(*[f"hot:{number}" for number in range(50)], "a:1", "b:1", "c:1")
    served = [_bodies(bench.receive(1))[0] for _ in range(4)]
    assert served == ["hot:0", "a:1", "b:1", "c:1"]


def test_groups_take_turns_over_many_receives() -> None:
    bench = _fifo(*[f"{group}:{number}" for number in range(5) for group in "abc"])
    served = []
    for _ in range(15):
        taken = bench.receive(1)
        served += _bodies(taken)
        bench.delete(*_receipts(taken).values())
    for start in range(0, 15, 3):
        assert {name[0] for name in served[start : start + 3]} == {"a", "b", "c"}
    for group in "abc":
        assert [name for name in served if name[0] == group] == [f"{group}:{number}" for number in range(5)]


def test_delayed_messages_do_not_lock_their_group_and_come_in_order() -> None:
    bench = _fifo("g:1")
    bench.settings = bench.queue.settings = type(bench.settings)(content_based_deduplication=True, delay_ms=10 * SECOND)
    _send(bench, "g:2")
    bench.queue.settings = type(bench.settings)(content_based_deduplication=True, delay_ms=0)
    assert _bodies(bench.receive()) == ["g:1"]
    bench.now_ms += 30 * SECOND
    assert _bodies(bench.receive()) == ["g:1", "g:2"]


def test_the_order_of_a_group_survives_restarts_between_any_two_steps() -> None:
    bench = _fifo("g:1", "g:2", "h:1", "g:3")
    taken = _receipts(bench.receive(2, visibility_ms=MINUTE))
    bench.commit()
    bench.reload()
    assert _bodies(bench.receive(10, visibility_ms=MINUTE)) == ["h:1"]
    bench.delete(taken["g:1"])
    bench.commit()
    bench.reload()
    assert bench.receive() == []
    bench.now_ms += MINUTE
    assert [body for body in _bodies(bench.receive()) if body != "h:1"] == ["g:2", "g:3"]


def test_sequence_numbers_of_a_group_ascend() -> None:
    bench = _fifo()
    numbers = []
    for number in range(20):
        reply = _send(bench, f"g:{number}")
        assert reply is not None
        numbers.append(reply.runs[0].first)
        if number % 5 == 0:
            bench.reload()
    assert numbers == sorted(set(numbers))


# Deduplication


def test_a_repeated_id_is_answered_with_the_first_message_and_stores_nothing() -> None:
    bench = _fifo()
    first, second = _send(bench, "g:1", ids=["one"]), _send(bench, "g:other body", ids=["one"])
    assert first is not None and second is not None
    assert second.runs == first.runs and second.failures == []
    assert _bodies(bench.receive()) == ["g:1"]
    assert bench.queue.counters.deduplicated == 1


def test_an_id_is_remembered_for_five_minutes_from_the_first_send_also_after_the_delete_and_a_restart() -> None:
    bench = _fifo()
    _send(bench, "g:1", ids=["one"])
    bench.delete(*_receipts(bench.receive()).values())
    bench.commit()
    bench.now_ms += 5 * MINUTE - 1
    bench.reload()
    _send(bench, "g:2", ids=["one"])
    assert bench.receive() == []
    bench.now_ms += 1
    _send(bench, "g:3", ids=["one"])
    assert _bodies(bench.receive()) == ["g:3"]


def test_without_an_id_the_body_alone_is_the_id() -> None:
    bench = _fifo()
    reply = bench.send(
        b"same", b"same", b"other", b"same",
        groups=["g", "h", "g", "g"],
        attributes=[None, None, None, [q.Attribute("a", "String", "b")]],
    )  # fmt: skip
    bench.commit()
    assert reply.failures == []
    assert sorted(bodies_of(bench.receive())) == [b"other", b"same"]


def test_an_own_id_beats_the_content() -> None:
    bench = _fifo()
    bench.send(b"same", b"same", groups=["g", "g"], deduplication_ids=["one", "two"])
    bench.commit()
    assert bodies_of(bench.receive()) == [b"same", b"same"]


@pytest.mark.parametrize(("scope", "expected"), [("queue", 1), ("message_group", 2)])
def test_the_scope_says_whether_groups_share_ids(scope: str, expected: int) -> None:
    bench = _fifo(deduplication_scope=scope)
    bench.send(b"x", b"x", groups=["g", "h"], deduplication_ids=["one", "one"])
    bench.commit()
    assert bench.queue.visible == expected


def test_groups_and_ids_that_read_alike_together_are_different() -> None:
    bench = _fifo(deduplication_scope="message_group")
    bench.send(b"1", b"2", groups=["a", "ab"], deduplication_ids=["bc", "c"])
    bench.commit()
    assert bench.queue.visible == 2


# Receive attempts


def test_a_repeated_attempt_brings_the_same_messages_and_starts_their_timeout_again() -> None:
    bench = _fifo("g:1", "h:1")
    first = bench.receive(1, visibility_ms=10 * SECOND, attempt="try")
    bench.now_ms += 9 * SECOND
    again = bench.receive(1, visibility_ms=10 * SECOND, attempt="try")
    assert _bodies(again) == _bodies(first)
    assert again[0].receive_count == first[0].receive_count == 1
    bench.now_ms += 9 * SECOND
    assert _bodies(bench.receive(1)) == ["h:1"]
    assert bench.delete(*_receipts(again).values()) == []


def test_an_attempt_whose_messages_are_visible_again_is_a_new_receive() -> None:
    bench = _fifo("g:1")
    bench.receive(1, visibility_ms=SECOND, attempt="try")
    bench.now_ms += SECOND
    (delivery,) = bench.receive(1, attempt="try")
    assert delivery.receive_count == 2


def test_an_attempt_is_forgotten_after_five_minutes() -> None:
    bench = _fifo("g:1", "h:1")
    bench.receive(1, visibility_ms=60 * MINUTE, attempt="try")
    bench.now_ms += 5 * MINUTE
    assert _bodies(bench.receive(1, attempt="try")) == ["h:1"]


def test_on_a_standard_queue_an_attempt_id_means_nothing() -> None:
    bench = Bench()
    bench.send(b"a", b"b")
    bench.commit()
    assert [bodies_of(bench.receive(1, attempt="try")) for _ in range(2)] == [[b"a"], [b"b"]]
