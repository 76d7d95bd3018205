"""Consumer groups, alone: whatever members do, no shard is in two hands, nobody has much more than another, and children wait."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_broker.streams import topology
from penstock_broker.streams.group import Extent, Group
from penstock_broker.streams.topology import Range
from penstock_protocol.errors import CheckpointInvalid

SESSION_MS = 10_000


def shards(count: int, end: int = 100) -> dict[int, Extent]:
    """So many open shards with `end` records each."""
    return {number: Extent(Range(number, low, high), 0, end) for number, (low, high) in enumerate(topology.even(count))}


def split(extents: dict[int, Extent], shard: int, end: int = 100) -> None:
    """Closes a shard and opens two with `end` records each."""
    parent = extents[shard]
    step = topology.split(parent.range, None)
    extents[shard] = dataclasses.replace(parent, range=dataclasses.replace(parent.range, closed_ms=1, end=parent.end))
    for low, high in step.children:
        number = max(extents) + 1
        extents[number] = Extent(Range(number, low, high, (shard,)), 0, end)


def ancestors(extents: dict[int, Extent], shard: int) -> set[int]:
    """A shard's parents, and theirs."""
    parents = extents[shard].range.parents
    return {*parents, *(one for parent in parents for one in ancestors(extents, parent))}


def joined(extents: dict[int, Extent], *members: str) -> Group:
    """A group with these members, each of which has done what it was asked to."""
    group = Group("g")
    for member in members:
        group.heartbeat(member, SESSION_MS, 0)
        settle(group, extents)
    return group


def settle(group: Group, extents: dict[int, Extent]) -> None:
    """Everybody gives up what it is asked for, until nobody is asked."""
    group.balance(extents.values())
    while asked := [(shard, lease.member) for shard, lease in group.leases.items() if lease.give_up]:
        for shard, member in asked:
            group.release(member, shard)
        group.balance(extents.values())


def number_of(group: Group, shard: int) -> int:
    return group.leases[shard].number


def test_one_member_has_all_shards() -> None:
    extents = shards(4)
    assert joined(extents, "a").shards_of("a") == [0, 1, 2, 3]


def test_a_second_member_gets_its_share_once_the_first_has_given_it_up() -> None:
    extents = shards(4)
    group = joined(extents, "a")
    group.heartbeat("b", SESSION_MS, 0)
    group.balance(extents.values())
    assert group.shards_of("b") == []
    assert [shard for shard, lease in group.leases.items() if lease.give_up] == [2, 3]
    group.release("a", 3)
    group.balance(extents.values())
    assert (group.shards_of("a"), group.shards_of("b")) == ([0, 1, 2], [3])


def test_who_is_silent_for_its_session_loses_its_shards_to_others() -> None:
    extents = shards(4)
    group = joined(extents, "a", "b")
    group.heartbeat("b", SESSION_MS, SESSION_MS - 1)
    assert group.expire(SESSION_MS)
    group.balance(extents.values())
    assert group.shards_of("b") == [0, 1, 2, 3]


def test_a_checkpoint_counts_only_under_its_own_lease() -> None:
    extents = shards(1)
    group = joined(extents, "a")
    old = number_of(group, 0)
    assert group.checkpoint("a", 0, old, 10, extents[0])
    assert not group.checkpoint("b", 0, old, 20, extents[0])
    group.leave("a")
    group.heartbeat("a", SESSION_MS, 0)
    group.balance(extents.values())
    assert not group.checkpoint("a", 0, old, 20, extents[0])
    assert group.positions == {0: 10}


def test_a_checkpoint_goes_neither_back_nor_beyond_the_tip() -> None:
    extents = shards(1, end=100)
    group = joined(extents, "a")
    number = number_of(group, 0)
    group.checkpoint("a", 0, number, 50, extents[0])
    for position in (49, 101):
        with pytest.raises(CheckpointInvalid):
            group.checkpoint("a", 0, number, position, extents[0])
    assert group.positions == {0: 50}


def test_a_reset_takes_the_leases_with_it() -> None:
    extents = shards(1)
    group = joined(extents, "a")
    old = number_of(group, 0)
    group.checkpoint("a", 0, old, 90, extents[0])
    group.start_at({0: 5})
    group.balance(extents.values())
    assert not group.checkpoint("a", 0, old, 100, extents[0])
    assert group.positions == {0: 5} and group.shards_of("a") == [0]


def test_children_begin_when_their_parent_was_read_out() -> None:
    extents = shards(1)
    group = joined(extents, "a")
    split(extents, 0)
    group.balance(extents.values())
    assert group.shards_of("a") == [0]
    assert group.checkpoint("a", 0, number_of(group, 0), 100, extents[0])
    group.balance(extents.values())
    assert group.shards_of("a") == [1, 2] and group.finished == {0}


def test_grandchildren_wait_also_where_the_shard_between_was_closed_before_it_had_a_record() -> None:
    extents = shards(1)
    split(extents, 0, end=0)
    split(extents, 2)
    group = joined(extents, "a")
    assert group.shards_of("a") == [0] and group.finished == set()
    group.checkpoint("a", 0, number_of(group, 0), 99, extents[0])
    group.balance(extents.values())
    assert group.shards_of("a") == [0]
    group.checkpoint("a", 0, number_of(group, 0), 100, extents[0])
    group.balance(extents.values())
    assert group.shards_of("a") == [1, 3, 4] and group.finished == {0, 2}


def test_a_shard_that_is_closed_after_its_last_checkpoint_is_finished_too() -> None:
    extents = shards(1)
    group = joined(extents, "a")
    group.checkpoint("a", 0, number_of(group, 0), 100, extents[0])
    split(extents, 0)
    group.balance(extents.values())
    assert group.shards_of("a") == [1, 2]


def test_a_parent_that_has_aged_out_holds_nobody_up() -> None:
    extents = shards(1)
    split(extents, 0)
    del extents[0]
    assert joined(extents, "a").shards_of("a") == [1, 2]


def test_a_group_is_restored_as_it_was() -> None:
    extents = shards(3)
    group = joined(extents, "a", "b")
    group.checkpoint("a", 0, number_of(group, 0), 7, extents[0])
    again = Group.from_stored("g", group.to_stored(), 1_000)
    assert again.to_stored() == group.to_stored()
    assert again.next_deadline() == 1_000 + SESSION_MS
    again.balance(extents.values())
    assert not again.is_dirty


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.sampled_from(["join", "leave", "release", "read", "split", "open", "wait"])),
        max_size=40,
    )
)
def test_whatever_members_do_shards_are_shared_evenly_and_in_order(steps: list[tuple[str, str]]) -> None:
    extents = shards(4)
    group = Group("g")
    now_ms = 0
    owners: dict[int, str] = {}
    for member, what in steps:
        now_ms += 1_000
        if what == "join":
            group.heartbeat(member, SESSION_MS, now_ms)
        elif what == "leave":
            group.leave(member)
            owners = {shard: owner for shard, owner in owners.items() if owner != member}
        elif what == "release":
            for shard in group.shards_of(member):
                if group.leases[shard].give_up:
                    group.release(member, shard)
                    del owners[shard]
        elif what == "read":
            for shard in group.shards_of(member):
                assert group.checkpoint(member, shard, number_of(group, shard), extents[shard].end, extents[shard])
        elif what in ("split", "open") and len(extents) < 12:
            end = 100 if what == "split" else 0
            split(extents, max(shard for shard, extent in extents.items() if extent.range.is_open), end)
        for silent in [name for name, one in group.members.items() if one.deadline_ms <= now_ms]:
            owners = {shard: owner for shard, owner in owners.items() if owner != silent}
        group.expire(now_ms)
        group.balance(extents.values())
        for shard in [shard for shard in owners if shard in group.finished]:
            del owners[shard]
        for shard, lease in group.leases.items():
            # A lease goes on until its owner gave it up, was given up itself, or had read it out.
            assert owners.setdefault(shard, lease.member) == lease.member
            for one in ancestors(extents, shard):
                assert one in group.finished and group.positions.get(one, 0) >= extents[one].end
    settle(group, extents)
    if group.members:
        loads = [len(group.shards_of(name)) for name in group.members]
        assert max(loads) - min(loads) <= 1
        readable = [
            shard
            for shard, extent in extents.items()
            if shard not in group.finished and all(parent in group.finished for parent in extent.range.parents)
        ]
        assert sum(loads) == len(readable)
