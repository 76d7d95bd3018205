"""Consumer groups through a whole broker: what members are told is durable, and no shard is in two hands whatever fails."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from penstock_broker.streams import limits
from penstock_protocol import stream_messages as st
from penstock_protocol.errors import (
    CheckpointInvalid,
    GroupDoesNotExist,
    InvalidName,
    InvalidRequest,
    LimitExceeded,
    MemberExpired,
    OutcomeUnknown,
    Overloaded,
    PenstockError,
    ResourceBusy,
    StoreFailed,
    StreamDoesNotExist,
)
from penstock_protocol.session_messages import Empty
from penstock_storage.memory import Fault, MemoryDisk
from penstock_storage.sql import SqlStore

from tests.broker.inside import EPOCH_MS, House, Peer, house, make_key, on_jumping_clock
from tests.broker.test_streams import a_stream, house_on, put

A, B, C = (bytes([number]) * 16 for number in (1, 2, 3))
SESSION = 10.0


async def beat(peer: Peer, member: bytes, group: str = "g", stream: str = "s", **fields: Any) -> st.GroupLeases:
    reply = await peer.call(st.GroupHeartbeat(stream, group, member, **fields))
    assert isinstance(reply, st.GroupLeases)
    return reply


async def join(peer: Peer, member: bytes, **fields: Any) -> st.GroupLeases:
    return await beat(peer, member, joining=True, **fields)


async def described(peer: Peer, group: str = "g", stream: str = "s") -> st.GroupDescription:
    reply = await peer.call(st.GroupName(stream, group), "DescribeGroup")
    assert isinstance(reply, st.GroupDescription)
    return reply


async def groups_of(peer: Peer, stream: str = "s") -> list[str]:
    return list((await peer.call(st.StreamName(stream), "ListGroups")).groups)


def shards_in(leases: st.GroupLeases) -> list[int]:
    return [lease.shard for lease in leases.leases]


def lease_of(leases: st.GroupLeases, shard: int) -> int:
    return next(lease.lease for lease in leases.leases if lease.shard == shard)


def positions_in(description: st.GroupDescription) -> dict[int, int]:
    return {shard.shard: shard.position for shard in description.shards}


def kept(disk: MemoryDisk) -> list[str]:
    """The names of the groups in the store."""
    return [row.name.partition("/")[2] for row in disk.resources.values() if row.kind == "group"]


@contextlib.contextmanager
def held(one: House, call: str) -> Iterator[None]:
    """Calls of the store wait for the end of the block, also when a test fails in it."""
    one.threads.hold(call)
    try:
        yield
    finally:
        one.threads.release(call)


# What is said is durable


@on_jumping_clock
async def test_a_member_hears_of_its_leases_when_they_are_durable() -> None:
    async with house() as one:
        peer, other = await a_stream(one, 2), await one.client()
        await join(peer, A)
        with held(one, "commit"):
            joining = await peer.say(st.GroupHeartbeat("s", "g", B, joining=True))
            assert not await peer.has_answer(joining)
            silent = await other.say(st.GroupHeartbeat("s", "g", A))
            assert not await other.has_answer(silent), "it says what a commit that runs is to make durable"
            looking = await other.say(st.GroupName("s", "g"), "DescribeGroup")
            assert not await other.has_answer(looking)
        assert shards_in(await peer.wait(joining)) == []
        assert shards_in(await other.wait(silent)) == [0, 1]
        assert (await other.wait(looking)).members == [A, B]


@on_jumping_clock
async def test_a_heartbeat_that_says_nothing_new_costs_no_commit() -> None:
    async with house() as one:
        peer = await a_stream(one, 2)
        await join(peer, A)
        before = one.broker.counters.commits["ok"]
        for _ in range(10):
            await beat(peer, A)
        assert one.broker.counters.commits["ok"] == before


@on_jumping_clock
async def test_a_restart_keeps_checkpoints_and_leases_and_gives_members_a_whole_session() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        peer = await a_stream(one, 2)
        await put(peer, 0, b"a", b"b", b"c")
        leases = await join(peer, A)
        told = await beat(peer, A, checkpoints=[st.Checkpoint(0, lease_of(leases, 0), 2)])
        before = await described(peer)
        await trio.sleep(SESSION - 1)
    async with house(disk) as one:
        peer = await one.client()
        assert await described(peer) == before
        assert positions_in(before) == {0: 2, 1: 0}
        await trio.sleep(SESSION - 1)
        assert await beat(peer, A) == told
        assert shards_in(await join(peer, B)) == []
        await beat(peer, A, leaving=True)
        assert {lease.lease for lease in (await beat(peer, B)).leases}.isdisjoint(lease.lease for lease in told.leases)


@on_jumping_clock
async def test_children_are_leased_when_their_parent_was_processed_to_its_end() -> None:
    async with house() as one:
        peer = await a_stream(one)
        await put(peer, 0, b"a", b"b")
        number = lease_of(await join(peer, A), 0)
        await peer.call(st.SplitShard("s", 0))
        assert shards_in(await beat(peer, A)) == [0]
        assert shards_in(await beat(peer, A, checkpoints=[st.Checkpoint(0, number, 1)])) == [0]
        done = await beat(peer, A, checkpoints=[st.Checkpoint(0, number, 2)])
        assert (shards_in(done), done.lost) == ([1, 2], [])
        assert [(one.shard, one.finished) for one in (await described(peer)).shards] == [(0, True), (1, False), (2, False)]
        again = await beat(peer, A, checkpoints=[st.Checkpoint(0, number, 2)])
        assert (again.leases, again.lost) == (done.leases, [0]), "said again it changes nothing"


@on_jumping_clock
async def test_a_group_begins_at_the_oldest_records_or_with_new_ones() -> None:
    async with house() as one:
        peer = await a_stream(one, 2)
        await put(peer, 0, b"a", b"b", b"c")
        old, new = await join(peer, A, group="old"), await join(peer, A, group="new", start="latest")
        assert [lease.position for lease in old.leases] == [0, 0]
        assert [lease.position for lease in new.leases] == [3, 0]
        assert [lease.position for lease in (await join(peer, B, group="old", start="latest")).leases] == []
        assert positions_in(await described(peer, "old")) == {0: 0, 1: 0}, "only the first member says where"
        assert await groups_of(peer) == ["new", "old"]


# Members


@on_jumping_clock
async def test_a_member_that_was_silent_is_told_that_it_expired_and_its_shards_go_to_others() -> None:
    async with house() as one:
        peer = await a_stream(one, 2)
        leases = await join(peer, A)
        await trio.sleep(SESSION / 2)
        assert shards_in(await join(peer, B)) == []
        await trio.sleep(SESSION / 2)
        assert shards_in(await beat(peer, B)) == [0, 1]
        with pytest.raises(MemberExpired):
            await beat(peer, A, checkpoints=[st.Checkpoint(0, lease_of(leases, 0), 0)])
        assert (await described(peer)).members == [B]
        assert shards_in(await join(peer, A)) == []


@on_jumping_clock
async def test_who_never_joined_and_whose_group_is_gone_has_expired() -> None:
    async with house() as one:
        peer = await a_stream(one)
        with pytest.raises(MemberExpired):
            await beat(peer, A)
        assert await groups_of(peer) == []
        await join(peer, A)
        with pytest.raises(MemberExpired):
            await beat(peer, B)


@on_jumping_clock
async def test_a_shard_moves_when_its_owner_has_given_it_up_and_to_its_checkpoint() -> None:
    async with house() as one:
        peer = await a_stream(one, 2)
        await put(peer, 1, b"a", b"b", b"c")
        leases = await join(peer, A)
        assert shards_in(await join(peer, B)) == []
        asked = await beat(peer, A)
        assert [(lease.shard, lease.give_up) for lease in asked.leases] == [(0, False), (1, True)]
        assert shards_in(await beat(peer, B)) == []
        checkpoint = st.Checkpoint(1, lease_of(leases, 1), 2)
        assert shards_in(await beat(peer, A, checkpoints=[checkpoint], released=[1, 7])) == [0]
        (moved,) = (await beat(peer, B)).leases
        assert (moved.shard, moved.position, moved.give_up) == (1, 2, False)
        late = await beat(peer, A, checkpoints=[st.Checkpoint(1, lease_of(leases, 1), 3)], released=[1])
        assert late.lost == [1], "the old lease counts for nothing"
        assert (await beat(peer, B)).leases == [moved]
        assert positions_in(await described(peer))[1] == 2


@on_jumping_clock
async def test_a_heartbeat_that_comes_late_or_again_ends_no_lease() -> None:
    async with house() as one:
        peer = await a_stream(one, 2)
        joined = await join(peer, A, beat=1)
        assert (await join(peer, A, beat=1)).leases == joined.leases, "the same join over another connection"
        anew = await join(peer, A, beat=2)
        assert {lease.lease for lease in anew.leases}.isdisjoint(lease.lease for lease in joined.leases)
        with pytest.raises(InvalidRequest):
            await join(peer, A, beat=1)
        released = await beat(peer, A, released=[1], beat=3)
        assert lease_of(released, 1) != lease_of(anew, 1), "it is given back to the only member, and begins anew"
        assert (await beat(peer, A, released=[1], beat=3)).leases == released.leases
        assert (await beat(peer, A, beat=4)).leases == released.leases
        with pytest.raises(InvalidRequest):
            await beat(peer, A, released=[1], beat=3)
        with pytest.raises(InvalidRequest):
            await beat(peer, A, leaving=True, beat=3)
        assert (await beat(peer, A, beat=5)).leases == released.leases


@on_jumping_clock
async def test_who_leaves_or_joins_anew_has_nothing_and_others_get_it_at_once() -> None:
    async with house() as one:
        peer = await a_stream(one, 2)
        first = await join(peer, A)
        await join(peer, B)
        again = await join(peer, A)
        assert shards_in(await beat(peer, B)) == [1]
        assert shards_in(again) == [0]
        assert lease_of(again, 0) != lease_of(first, 0)
        assert (await beat(peer, A, leaving=True)).leases == []
        assert shards_in(await beat(peer, B)) == [0, 1]
        with pytest.raises(MemberExpired):
            await beat(peer, A)


# Checkpoints


@on_jumping_clock
async def test_a_checkpoint_goes_forward_up_to_the_tip_and_only_for_who_has_the_lease() -> None:
    async with house() as one:
        peer = await a_stream(one, 2)
        await put(peer, 0, b"a", b"b", b"c")
        number = lease_of(await join(peer, A), 0)
        await join(peer, B)
        await beat(peer, A, checkpoints=[st.Checkpoint(0, number, 2)])
        for position in (4, 1):
            with pytest.raises(CheckpointInvalid):
                await beat(peer, A, checkpoints=[st.Checkpoint(0, number, position)])
        for member, lease in ((B, number), (A, number + 100)):
            assert (await beat(peer, member, checkpoints=[st.Checkpoint(0, lease, 3), st.Checkpoint(9, 1, 0)])).lost == [0, 9]
        assert positions_in(await described(peer)) == {0: 2, 1: 0}
        assert (await beat(peer, A, checkpoints=[st.Checkpoint(0, number, 2)])).lost == []
        await beat(peer, A, checkpoints=[st.Checkpoint(0, number, 3)])
        shard = (await described(peer)).shards[0]
        assert (shard.member, shard.position, shard.end, shard.finished) == (A, 3, 3, False)


# Setting back, deleting


@on_jumping_clock
async def test_a_reset_goes_to_the_oldest_records_the_tip_or_a_time_and_ends_all_leases() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        peer = await a_stream(one)
        for _ in range(3):
            await put(peer, 0, b"a", b"b")
            await trio.sleep(1)
        number = lease_of(await join(peer, A), 0)
        for start, at_ms, position in (
            ("latest", 0, 6),
            ("trim_horizon", 0, 0),
            ("time", EPOCH_MS + 1, 2),
            ("time", EPOCH_MS + 2_000, 4),
            ("time", EPOCH_MS + 10**9, 6),
            ("time", 0, 0),
        ):
            reply = await peer.call(st.ResetGroup("s", "g", start, at_ms))
            assert reply == await described(peer)
            assert positions_in(reply) == {0: position}
            told = await beat(peer, A, checkpoints=[st.Checkpoint(0, number, 6)])
            assert told.lost == [0]
            assert [lease.position for lease in told.leases] == [position]
            assert lease_of(told, 0) != number
            number = lease_of(told, 0)
    async with house(disk) as one:
        assert positions_in(await described(await one.client())) == {0: 0}


@on_jumping_clock
async def test_after_a_reset_children_wait_for_their_parents_again() -> None:
    async with house() as one:
        peer = await a_stream(one)
        await put(peer, 0, b"a")
        number = lease_of(await join(peer, A), 0)
        await peer.call(st.SplitShard("s", 0))
        assert shards_in(await beat(peer, A, checkpoints=[st.Checkpoint(0, number, 1)])) == [1, 2]
        await peer.call(st.ResetGroup("s", "g", "trim_horizon"))
        assert shards_in(await beat(peer, A)) == [0]
        await peer.call(st.ResetGroup("s", "g", "latest"))
        assert shards_in(await beat(peer, A)) == [1, 2]


@on_jumping_clock
async def test_a_deleted_group_is_forgotten_and_made_anew_by_who_joins() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        peer = await a_stream(one)
        await put(peer, 0, b"a")
        number = lease_of(await join(peer, A), 0)
        await beat(peer, A, checkpoints=[st.Checkpoint(0, number, 1)])
        assert await peer.call(st.GroupName("s", "g"), "DeleteGroup") == Empty()
        assert (await groups_of(peer), kept(disk)) == ([], [])
        with pytest.raises(MemberExpired):
            await beat(peer, A)
        assert [lease.position for lease in (await join(peer, A)).leases] == [0]
        assert kept(disk) == ["g"]


@on_jumping_clock
async def test_what_a_group_does_while_it_is_deleted_brings_it_not_back() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        peer, other = await a_stream(one), await one.client()
        await join(peer, A)
        for message, name in ((st.GroupName("s", "g"), "DeleteGroup"), (st.StreamName("s"), "DeleteStream")):
            with held(one, "commit"):
                deleting = await peer.say(message, name)
                await trio.testing.wait_all_tasks_blocked()
                for again, operation in (
                    (st.GroupHeartbeat("s", "g", B, joining=True), "GroupHeartbeat"),
                    (st.ResetGroup("s", "g", "latest"), "ResetGroup"),
                    (st.GroupName("s", "g"), "DeleteGroup"),
                ):
                    with pytest.raises(ResourceBusy), trio.fail_after(1):
                        await other.call(again, operation)
            await peer.wait(deleting)
            assert kept(disk) == []
            if name == "DeleteGroup":
                await join(peer, A)
        await peer.call(st.CreateStream("s"))
        assert await groups_of(peer) == []
        assert shards_in(await join(peer, A)) == [0]


@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.UNKNOWN_LOST])
@on_jumping_clock
async def test_a_group_whose_deletion_failed_goes_on(fault: Fault) -> None:
    async with house() as one:
        peer = await a_stream(one)
        await join(peer, A)
        for message, name in ((st.GroupName("s", "g"), "DeleteGroup"), (st.StreamName("s"), "DeleteStream")):
            one.faults["commit"] = fault
            with pytest.raises((StoreFailed, OutcomeUnknown)):
                await peer.call(message, name)
            del one.faults["commit"]
            await trio.sleep(3)
            assert shards_in(await beat(peer, A)) == [0]


@on_jumping_clock
async def test_a_reset_to_a_time_that_is_overtaken_by_a_deletion_brings_nothing_back() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        peer, other = await a_stream(one), await one.client()
        await put(peer, 0, b"a")
        await join(peer, A)
        with held(one, "_position_at"):
            resetting = await other.say(st.ResetGroup("s", "g", "time", EPOCH_MS))
            await trio.testing.wait_all_tasks_blocked()
            await peer.call(st.GroupName("s", "g"), "DeleteGroup")
        with pytest.raises(GroupDoesNotExist):
            await other.wait(resetting)
        assert kept(disk) == []


@on_jumping_clock
async def test_a_reset_to_a_time_while_a_shard_is_split_lets_children_wait_for_it() -> None:
    async with house() as one:
        peer, other = await a_stream(one), await one.client()
        await put(peer, 0, b"a")
        number = lease_of(await join(peer, A), 0)
        await beat(peer, A, checkpoints=[st.Checkpoint(0, number, 1)])
        with held(one, "_position_at"):
            resetting = await other.say(st.ResetGroup("s", "g", "time", EPOCH_MS))
            await trio.testing.wait_all_tasks_blocked()
            await peer.call(st.SplitShard("s", 0))
            assert shards_in(await beat(peer, A)) == [1, 2]
        assert positions_in(await other.wait(resetting)) == {0: 0, 1: 0, 2: 0}
        assert shards_in(await beat(peer, A)) == [0]


@on_jumping_clock
async def test_a_stream_takes_its_groups_with_it() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        peer = await a_stream(one)
        await peer.call(st.CreateStream("t"))
        for group in ("g", "h"):
            await join(peer, A, group=group)
        await join(peer, A, stream="t")
        await peer.call(st.StreamName("s"), "DeleteStream")
        assert kept(disk) == ["g"]
        with pytest.raises(StreamDoesNotExist):
            await beat(peer, A)
        await peer.call(st.CreateStream("s"))
        assert await groups_of(peer) == []
    async with house(disk) as one:
        peer = await one.client()
        assert (await groups_of(peer), await groups_of(peer, "t")) == ([], ["g"])


# A store that fails


@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.UNKNOWN_APPLIED, Fault.UNKNOWN_LOST])
@on_jumping_clock
async def test_a_group_whose_first_commit_failed_is_there_whole_or_not_at_all(fault: Fault) -> None:
    async with house() as one:
        peer = await a_stream(one)
        one.faults["commit"] = fault
        with pytest.raises((StoreFailed, OutcomeUnknown)):
            await join(peer, A)
        del one.faults["commit"]
        await trio.sleep(3)
        assert await groups_of(peer) == (["g"] if fault is Fault.UNKNOWN_APPLIED else [])
        assert shards_in(await join(peer, A)) == [0]
        assert kept(one.disk) == ["g"]


@on_jumping_clock
async def test_while_nobody_knows_what_the_store_has_no_member_is_told_what_it_has() -> None:
    async with house() as one:
        peer = await a_stream(one, 2)
        await join(peer, A)
        await join(peer, B)
        one.faults["commit"], one.faults["acquire"] = Fault.UNKNOWN_APPLIED, Fault.FAIL
        with pytest.raises(OutcomeUnknown):
            await beat(peer, A, released=[1])
        for _ in range(3):
            with pytest.raises(StoreFailed):
                await beat(peer, A)
            await trio.sleep(0.3)
        one.faults.clear()
        await trio.sleep(3)
        assert (shards_in(await beat(peer, A)), shards_in(await beat(peer, B))) == ([0], [1])


@on_jumping_clock
async def test_on_a_full_store_members_that_say_nothing_new_go_on_and_others_are_told_to_wait() -> None:
    async with house() as one:
        peer = await a_stream(one)
        await put(peer, 0, b"a")
        number = lease_of(await join(peer, A), 0)
        one.faults["commit"] = Fault.FULL
        with pytest.raises(Overloaded):
            await put(peer, 0, b"b")
        assert shards_in(await beat(peer, A)) == [0]
        for message in (
            st.GroupHeartbeat("s", "g", A, checkpoints=[st.Checkpoint(0, number, 1)]),
            st.GroupHeartbeat("s", "h", A, joining=True),
            st.ResetGroup("s", "g", "latest"),
        ):
            with pytest.raises(Overloaded):
                await peer.call(message)
        assert one.broker.counters.commits["full"] == 1, "they take no commit down"
        del one.faults["commit"]
        await trio.sleep(5)
        assert (await beat(peer, A, checkpoints=[st.Checkpoint(0, number, 1)])).lost == []
        assert positions_in(await described(peer)) == {0: 1}


class Members:
    """Members that do at random what members may do, and what each of them believes to have.

    A member has what the last answer said, but for what it released since, for a session from when it asked."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.has: dict[bytes, dict[int, st.GroupLease]] = {}
        self.until: dict[bytes, float] = {}
        self.noted: dict[int, int] = {}
        """By shard, the checkpoint that was acknowledged."""
        self.said: list[st.GroupHeartbeat] = []
        """All heartbeats: copies of them may come late, from connections that were lost."""

    def check(self) -> None:
        now = trio.current_time()
        owners: dict[int, bytes] = {}
        for member, leases in self.has.items():
            for shard in leases if self.until[member] > now else ():
                assert owners.setdefault(shard, member) == member, f"shard {shard} is in two hands"

    async def step(self, peer: Peer) -> None:
        if self.said and self.chance.random() < 0.2:
            with contextlib.suppress(InvalidRequest, MemberExpired, CheckpointInvalid, StoreFailed, OutcomeUnknown):
                await peer.call(self.chance.choice(self.said[-6:]))
        member = self.chance.choice([A, B, C])
        mine = self.has.get(member)
        if mine is None or self.chance.random() < 0.05:
            self.has[member], self.until[member] = {}, 0.0
            request = st.GroupHeartbeat("s", "g", member, joining=True, beat=len(self.said) + 1)
        else:
            released = [shard for shard, lease in mine.items() if lease.give_up and self.chance.random() < 0.7]
            checkpoints = []
            for shard, lease in mine.items():
                if self.chance.random() < 0.3:
                    position = max(lease.position, self.noted.get(shard, 0))
                    checkpoints.append(st.Checkpoint(shard, lease.lease, min(position + 1, 8)))
            for shard in released:
                del mine[shard]
            leaving = self.chance.random() < 0.05
            if leaving:
                mine.clear()
            request = st.GroupHeartbeat(
                "s", "g", member, leaving=leaving, checkpoints=checkpoints, released=released, beat=len(self.said) + 1
            )
        self.said.append(request)
        asked = trio.current_time()
        try:
            reply = await peer.call(request)
        except MemberExpired:
            del self.has[member]
            return
        except (StoreFailed, OutcomeUnknown):
            return
        for one in request.checkpoints or []:
            if one.shard not in reply.lost:
                self.noted[one.shard] = max(self.noted.get(one.shard, 0), one.position)
        if request.leaving:
            del self.has[member]
            return
        self.has[member], self.until[member] = {lease.shard: lease for lease in reply.leases}, asked + SESSION
        for lease in reply.leases:
            assert lease.position >= self.noted.get(lease.shard, 0), "an acknowledged checkpoint was lost"


@pytest.mark.parametrize("seed", range(12))
@on_jumping_clock
async def test_whatever_fails_no_shard_is_in_two_hands_and_no_acknowledged_checkpoint_is_lost(seed: int) -> None:
    chance, disk = random.Random(seed), MemoryDisk()
    members = Members(chance)
    for life in range(3):
        async with house(disk) as one:
            peer = await one.client()
            if life == 0:
                await peer.call(st.CreateStream("s", 5))
                for shard in range(5):
                    await put(peer, shard, *[b"x"] * 8)
            for _ in range(120):
                one.faults.clear()
                if chance.random() < 0.2:
                    one.faults["commit"] = chance.choice([Fault.FAIL, Fault.UNKNOWN_APPLIED, Fault.UNKNOWN_LOST])
                    if chance.random() < 0.5:
                        one.faults["acquire"] = Fault.FAIL
                await members.step(peer)
                members.check()
                await trio.sleep(chance.choice([0, 0, 0.1, 1, 4]))
            one.faults.clear()
            await trio.sleep(5)
    assert members.noted


# Who may see what, and bad input


@on_jumping_clock
async def test_another_tenants_groups_are_not_there() -> None:
    disk = MemoryDisk()
    keys = [make_key(disk, "user", account) for account in ("111111111111", "222222222222")]
    async with house(disk) as one:
        ours, theirs = one.connect(), one.connect()
        for peer, key in zip((ours, theirs), keys, strict=True):
            await peer.log_in(*key)
        await ours.call(st.CreateStream("s", 2))
        await join(ours, A)
        for message, name in ((st.StreamName("s"), "ListGroups"), (st.GroupName("s", "g"), "DescribeGroup"),
                              (st.GroupName("s", "g"), "DeleteGroup"), (st.ResetGroup("s", "g", "latest"), "ResetGroup"),
                              (st.GroupHeartbeat("s", "g", A), "GroupHeartbeat")):  # fmt: skip
            with pytest.raises(StreamDoesNotExist):
                await theirs.call(message, name)
        await theirs.call(st.CreateStream("s"))
        assert await groups_of(theirs) == []
        with pytest.raises(MemberExpired):
            await beat(theirs, A)
        assert shards_in(await join(theirs, A)) == [0]
        await theirs.call(st.GroupName("s", "g"), "DeleteGroup")
        assert shards_in(await beat(ours, A)) == [0, 1]


BAD: list[tuple[dict[str, Any], type[PenstockError]]] = [
    *(({"group": name}, InvalidName) for name in ("", "a b", "a/b", "ä", "a" * 129, "a\n")),
    *(({"member": member}, InvalidRequest) for member in (b"", b"x" * 15, b"x" * 17)),
    *(({"session_ms": session_ms}, InvalidRequest) for session_ms in (-1, 0, 999, 600_001)),
    *(({"start": start}, InvalidRequest) for start in ("", "time", "after", "Latest")),
    ({"stream": "none"}, StreamDoesNotExist),
]


@pytest.mark.parametrize(("fields", "error"), BAD, ids=str)
@on_jumping_clock
async def test_a_bad_heartbeat_is_refused_and_makes_no_group(fields: dict[str, Any], error: type[PenstockError]) -> None:
    async with house() as one:
        peer = await a_stream(one)
        with pytest.raises(error):
            await peer.call(st.GroupHeartbeat(**{"stream": "s", "group": "g", "member": A, "joining": True, **fields}))
        assert (await groups_of(peer), kept(one.disk)) == ([], [])
        assert shards_in(await join(peer, A, session_ms=600_000, group="a" * 128)) == [0]


@on_jumping_clock
async def test_what_names_no_group_and_no_place_is_refused() -> None:
    async with house() as one:
        peer = await a_stream(one)
        await join(peer, A)
        for message, name in ((st.GroupName("s", "no"), "DescribeGroup"), (st.GroupName("s", "no"), "DeleteGroup"),
                              (st.ResetGroup("s", "no", "time"), "ResetGroup")):  # fmt: skip
            with pytest.raises(GroupDoesNotExist):
                await peer.call(message, name)
        for start in ("", "at", "after", "Time"):
            with pytest.raises(InvalidRequest):
                await peer.call(st.ResetGroup("s", "g", start))
        largest = 2**63 - 1
        assert (await beat(peer, A, checkpoints=[st.Checkpoint(0, largest, largest)], released=[largest])).lost == [0]
        assert (await beat(peer, A, checkpoints=[st.Checkpoint(largest, 1, 0)])).lost == [largest]


@on_jumping_clock
async def test_a_stream_has_only_so_many_groups_and_a_group_so_many_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_GROUPS", 2)
    monkeypatch.setattr(limits, "MAX_MEMBERS", 2)
    async with house() as one:
        peer = await a_stream(one)
        for group in ("g", "h"):
            await join(peer, A, group=group)
        with pytest.raises(LimitExceeded, match="2 consumer groups"):
            await join(peer, A, group="i")
        await join(peer, B)
        with pytest.raises(LimitExceeded, match="2 members"):
            await join(peer, C)
        await join(peer, A), await join(peer, B)
        await peer.call(st.GroupName("s", "h"), "DeleteGroup")
        await join(peer, A, group="i")
        await beat(peer, B, leaving=True)
        await join(peer, C)
        assert (await described(peer)).members == [A, C]


# Real stores


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def test_on_a_real_store_groups_survive_restarts_and_go_with_their_stream(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/store.db" if kind == "sqlite" else request.getfixturevalue("postgresql_url")
    _through_a_restart(url)


@on_jumping_clock
async def _through_a_restart(url: str) -> None:
    longest = "g" * limits.MAX_NAME_LENGTH
    store = SqlStore.open(url)
    async with house_on(store) as one:
        peer = await a_stream(one, 2)
        await put(peer, 0, b"a", b"b", b"c")
        for group in (longest, "g"):
            number = lease_of(await join(peer, A, group=group), 0)
            told = await beat(peer, A, group=group, checkpoints=[st.Checkpoint(0, number, 2)])
        await peer.call(st.GroupName("s", "g"), "DeleteGroup")
        await join(peer, A, group="g")
        before = await described(peer, longest)
    store.close()
    store = SqlStore.open(url)
    async with house_on(store) as one:
        peer = await one.client()
        assert await groups_of(peer) == ["g", longest]
        assert await described(peer, longest) == before
        assert positions_in(before) == {0: 2, 1: 0}
        assert positions_in(await described(peer, "g")) == {0: 0, 1: 0}
        assert await beat(peer, A, group=longest) == told
        reset = await peer.call(st.ResetGroup("s", longest, "time", EPOCH_MS + 1))
        assert positions_in(reset) == {0: 3, 1: 0}
        await peer.call(st.StreamName("s"), "DeleteStream")
        assert [row.kind for row in store.load_resources()] == []
    store.close()
