"""Who owns which hashes: whatever is split and merged, the open shards own every hash exactly once."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_broker.streams import limits, topology
from penstock_broker.streams.topology import HASHES, Range, Step
from penstock_protocol.errors import InvalidShardRange, ShardClosed, ShardsNotAdjacent

PROFILE = settings(max_examples=100, deadline=None)


class Shards:
    """The shards of a stream, as steps change them."""

    def __init__(self, ranges: list[topology.Hashes]) -> None:
        self.all = [Range(number, low, high) for number, (low, high) in enumerate(ranges)]

    @property
    def open(self) -> list[Range]:
        return sorted((one for one in self.all if one.is_open), key=lambda one: one.low)

    def take(self, step: Step) -> None:
        """Carries it out; its parents must be open shards, its children own what they owned."""
        parents = []
        for hashes in step.parents:
            (parent,) = [one for one in self.open if one.hashes == hashes]
            parents.append(parent)
        owned = sum(high - low + 1 for low, high in step.parents)
        assert owned == sum(high - low + 1 for low, high in step.children)
        for parent in parents:
            self.all[parent.shard] = dataclasses.replace(parent, closed_ms=1)
        for low, high in step.children:
            self.all.append(Range(len(self.all), low, high, tuple(one.shard for one in parents)))
        assert topology.tiles(self.all)


@st.composite
def tilings(draw: st.DrawFn) -> list[topology.Hashes]:
    """Ranges that own every hash once: even ones, and ones with any borders, also of a single hash."""
    if draw(st.booleans()):
        return topology.even(draw(st.integers(1, 40)))
    near = st.sampled_from([1, 2, HASHES - 1, HASHES // 2, HASHES // 2 + 1, HASHES // 3, HASHES // 4])
    borders = sorted(draw(st.sets(st.one_of(st.integers(1, HASHES - 1), near), max_size=12)))
    return [(low, high - 1) for low, high in zip([0, *borders], [*borders, HASHES], strict=True)]


@PROFILE
@given(st.integers(1, 2_000))
def test_even_shards_tile_and_differ_by_one_hash_at_most(count: int) -> None:
    ranges = topology.even(count)
    assert len(ranges) == count
    assert topology.tiles(Range(number, *hashes) for number, hashes in enumerate(ranges))
    sizes = {high - low for low, high in ranges}
    assert max(sizes) - min(sizes) <= 1


@PROFILE
@given(tilings(), st.integers(1, 60))
def test_any_shards_become_even_ones_by_splits_and_merges_of_shards_that_exist(ranges: list[topology.Hashes], count: int) -> None:
    shards = Shards(ranges)
    for step in topology.uniform(shards.open, count):
        assert (len(step.parents), len(step.children)) in ((1, 2), (2, 1))
        shards.take(step)
    assert [one.hashes for one in shards.open] == topology.even(count)


@PROFILE
@given(st.integers(1, 60))
def test_as_many_even_shards_as_there_are_take_no_step(count: int) -> None:
    assert topology.uniform(Shards(topology.even(count)).open, count) == []


@PROFILE
@given(st.integers(1, 40), st.integers(1, 6))
def test_a_multiple_is_reached_without_a_merge_and_a_fraction_without_a_split(count: int, factor: int) -> None:
    up = topology.uniform(Shards(topology.even(count)).open, count * factor)
    down = topology.uniform(Shards(topology.even(count * factor)).open, count)
    assert len(up) == len(down) == count * factor - count
    assert all(len(step.parents) == 1 for step in up)
    assert all(len(step.parents) == 2 for step in down)


def test_one_shard_becomes_ten_thousand_and_one_again() -> None:
    """Each step costs the same, however many there are."""
    steps = topology.uniform(Shards(topology.even(1)).open, limits.MAX_SHARDS)
    assert len(steps) == limits.MAX_SHARDS - 1
    opened = [Range(number, *hashes) for number, hashes in enumerate(topology.even(limits.MAX_SHARDS))]
    assert len(topology.uniform(opened, 1)) == limits.MAX_SHARDS - 1
    assert topology.tiles(opened)


@settings(PROFILE, max_examples=40)
@given(tilings(), st.data())
def test_splits_and_merges_in_any_order_tile(ranges: list[topology.Hashes], data: st.DataObject) -> None:
    shards = Shards(ranges)
    for _ in range(8):
        place = data.draw(st.integers(0, len(shards.open) - 1))
        one = shards.open[place]
        if place + 1 < len(shards.open) and data.draw(st.booleans()):
            pair = [one, shards.open[place + 1]]
            shards.take(topology.merge(*(pair if data.draw(st.booleans()) else reversed(pair))))
        elif one.low < one.high:
            at = data.draw(st.none() | st.integers(one.low + 1, one.high))
            step = topology.split(one, at)
            assert at is None or step.children[1][0] == at
            shards.take(step)


def test_a_split_in_the_middle_gives_both_children_the_same() -> None:
    step = topology.split(Range(0, 0, HASHES - 1), None)
    assert step == Step(((0, HASHES - 1),), ((0, HASHES // 2 - 1), (HASHES // 2, HASHES - 1)))
    assert topology.split(Range(0, 10, 11), None).children == ((10, 10), (11, 11))


@pytest.mark.parametrize("at", [0, 9, 10, 21, HASHES - 1])
def test_a_split_key_must_lie_inside_its_shard(at: int) -> None:
    with pytest.raises(InvalidShardRange, match="10 to 20"):
        topology.split(Range(3, 10, 20), at)


def test_a_shard_of_one_hash_cannot_be_split() -> None:
    for at in (None, 5):
        with pytest.raises(InvalidShardRange):
            topology.split(Range(0, 5, 5), at)


def test_shards_that_are_no_neighbours_cannot_be_merged() -> None:
    one, two, three = (Range(number, *hashes) for number, hashes in enumerate(topology.even(3)))
    for pair in ((one, three), (three, one), (two, two)):
        with pytest.raises(ShardsNotAdjacent):
            topology.merge(*pair)


def test_closed_shards_are_neither_split_nor_merged() -> None:
    one, two = (Range(number, *hashes) for number, hashes in enumerate(topology.even(2)))
    closed = dataclasses.replace(one, closed_ms=1)
    with pytest.raises(ShardClosed):
        topology.split(closed, None)
    for pair in ((closed, two), (two, closed)):
        with pytest.raises(ShardClosed):
            topology.merge(*pair)


def test_a_gap_an_overlap_and_a_missing_end_are_seen() -> None:
    one, two, three = (Range(number, *hashes) for number, hashes in enumerate(topology.even(3)))
    assert topology.tiles([three, one, two])
    closed = dataclasses.replace(one, closed_ms=1)
    for wrong in ([one, three], [one, two], [two, three], [one, one, two, three], [], [closed, two, three]):
        assert not topology.tiles(wrong)
