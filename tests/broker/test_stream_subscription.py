"""A subscription of one shard, alone: what comes next, by where it is and what credit it has."""

from __future__ import annotations

import pytest
from penstock_broker.streams import limits
from penstock_broker.streams.shard import Reading, Shard
from penstock_broker.streams.subscription import Step, Subscription
from penstock_protocol.errors import PositionTrimmed

from tests.broker.test_stream_shard import Disk, all_of, new_shard, put


def filled(*batches: int) -> tuple[Shard, Disk]:
    """A shard with batches of so many records, each in a segment of its own."""
    shard, disk = new_shard(), Disk()
    for count in batches:
        put(shard, *[b"%d" % number for number in range(count)])
        disk.commit(shard)
    return shard, disk


def pushed(subscription: Subscription, shard: Shard) -> list[int]:
    """Pushes what comes next; the sequence numbers of it."""
    step = subscription.step(shard)
    assert isinstance(step, Reading)
    subscription.pushed(step.position, sum(batch.count for run in step.runs for batch in run.batches))
    return [sequence for sequence, _ in all_of(step)]


def test_what_is_there_is_pushed_up_to_the_credit_and_the_rest_when_there_is_more() -> None:
    shard, _ = filled(2, 2, 2)
    subscription = Subscription(0, 4)
    assert pushed(subscription, shard) == [0, 1, 2, 3]
    assert subscription.step(shard) is Step.WAIT
    subscription.give(1)
    assert pushed(subscription, shard) == [4, 5]
    assert subscription.step(shard) is Step.WAIT


def test_the_rest_of_a_batch_is_owed() -> None:
    shard, _ = filled(10, 1)
    subscription = Subscription(0, 1)
    assert pushed(subscription, shard) == list(range(10))
    subscription.give(9)
    assert subscription.step(shard) is Step.WAIT
    subscription.give(1)
    assert pushed(subscription, shard) == [10]


def test_at_the_tip_it_waits_whatever_its_credit() -> None:
    shard, disk = filled(1)
    subscription = Subscription(1, 5)
    assert subscription.step(shard) is Step.WAIT
    put(shard, b"new")
    assert subscription.step(shard) is Step.WAIT, "it is not durable yet"
    disk.commit(shard)
    assert pushed(subscription, shard) == [1]


def test_what_is_not_in_memory_is_loaded_but_only_with_credit() -> None:
    shard, _ = filled(3)
    shard.shed()
    assert Subscription(0, 1).step(shard) is Step.LOAD
    assert Subscription(0, 0).step(shard) is Step.WAIT


def test_a_closed_shard_ends_once_all_of_it_was_pushed_also_without_credit() -> None:
    shard, _ = filled(2)
    shard.close()
    subscription = Subscription(0, 2)
    assert pushed(subscription, shard) == [0, 1]
    assert subscription.step(shard) is Step.WAIT, "that it is closed is not durable yet"
    shard.seal()
    assert subscription.step(shard) is Step.END


def test_records_that_aged_out_are_not_skipped_in_silence() -> None:
    shard, _ = filled(2, 2)
    shard.trim(2, 2, 4)
    with pytest.raises(PositionTrimmed, match="records from 1 to 1"):
        Subscription(1, 5).step(shard)
    assert pushed(Subscription(2, 5), shard) == [2, 3]


def test_credit_and_pushes_are_bounded() -> None:
    subscription = Subscription(0, 5)
    subscription.give(10**9)
    assert subscription.credit == limits.MAX_CREDIT
    assert subscription.max_records == limits.PUSH_RECORDS


def test_many_segments_in_memory_are_read_from_the_middle_on_as_from_the_beginning() -> None:
    shard, _ = filled(*[1 + number % 3 for number in range(60)])
    everything = all_of(shard.read(0, 10_000, 10**6))
    for position in range(shard.end + 1):
        reading = shard.read(position, 10_000, 10**6)
        assert [one for one in all_of(reading) if one[0] >= position] == everything[position:]
        assert (shard.behind_ms(position, 2**50) == 0) == (position == shard.end)
