"""A member's knowledge of its leases, to the millisecond: what it says, what it may still do, and what it has to stop."""

from __future__ import annotations

import itertools

from penstock.leases import Change, Lease, Membership
from penstock_protocol.stream_messages import Checkpoint, GroupLease, GroupLeases

SESSION = 9.0


def member(now: float = 100.0, *leases: GroupLease) -> Membership:
    """One that has joined, with a heartbeat sent at `now`."""
    names = itertools.count()
    membership = Membership("clicks", "analytics", SESSION, "latest", lambda: bytes([next(names)]) * 16)
    membership.heartbeat(now)
    membership.answered(GroupLeases(list(leases), []))
    return membership


def numbers(leases: list[Lease]) -> list[tuple[int, int]]:
    return [(lease.shard, lease.number) for lease in leases]


def begun(change: Change) -> list[tuple[int, int]]:
    return numbers(change.begun)


def stopped(change: Change) -> list[tuple[int, int]]:
    return numbers(change.stopped)


def test_the_first_heartbeat_joins_and_the_next_do_not() -> None:
    membership = Membership("clicks", "analytics", SESSION, "latest", lambda: bytes(16))
    first = membership.heartbeat(100.0)
    assert (first.stream, first.group, first.member, first.session_ms) == ("clicks", "analytics", bytes(16), 9_000)
    assert (first.joining, first.leaving, first.start) == (True, False, "latest")
    assert membership.heartbeat(101.0).joining, "it was not answered: perhaps nobody has heard it"
    membership.answered(GroupLeases([], []))
    assert not membership.heartbeat(102.0).joining


def test_two_members_have_two_names_of_16_bytes() -> None:
    one, other = (Membership("s", "g", 1.0, "latest").member for _ in range(2))
    assert len(one) == len(other) == 16 and one != other


def test_the_session_counts_from_before_the_heartbeat_was_sent_and_its_end_is_not_part_of_it() -> None:
    membership = Membership("clicks", "analytics", SESSION, "latest")
    assert not membership.is_valid(100.0)
    membership.heartbeat(100.0)
    assert not membership.is_valid(100.0), "sent is not heard"
    membership.answered(GroupLeases([], []))
    assert membership.is_valid(108.999) and not membership.is_valid(109.0)
    membership.heartbeat(105.0)
    assert not membership.is_valid(109.0)
    membership.answered(GroupLeases([], []))
    assert membership.is_valid(113.999) and not membership.is_valid(114.0)


def test_a_heartbeat_is_due_every_third_of_a_session_and_sooner_when_there_is_something_to_tell() -> None:
    membership = member(100.0, GroupLease(3, 7, 50, False))
    assert membership.due(1.0) == 103.0
    membership.leases[3].done = 51
    assert membership.due(1.0) == 101.0 and membership.due(5.0) == 103.0


def test_what_was_processed_travels_with_the_next_heartbeat_once() -> None:
    membership = member(100.0, GroupLease(3, 7, 50, False), GroupLease(4, 8, 0, False))
    lease = membership.leases[3]
    lease.taken, lease.done = 60, 55
    assert membership.heartbeat(101.0).checkpoints == [Checkpoint(3, 7, 55)]
    lease.done = 58
    assert lease.noted == 50
    change = membership.answered(GroupLeases([GroupLease(3, 7, 55, False), GroupLease(4, 8, 0, False)], []))
    assert (lease.noted, change.begun, change.stopped) == (55, [], [])
    assert membership.heartbeat(102.0).checkpoints == [Checkpoint(3, 7, 58)]
    membership.answered(GroupLeases([GroupLease(3, 7, 58, False), GroupLease(4, 8, 0, False)], []))
    assert membership.heartbeat(103.0).checkpoints == []


def test_a_checkpoint_of_a_lost_lease_is_not_noted() -> None:
    membership = member(100.0, GroupLease(3, 7, 50, False))
    lease = membership.leases[3]
    lease.taken = lease.done = 60
    membership.heartbeat(101.0)
    change = membership.answered(GroupLeases([], [3]))
    assert (lease.noted, lease.over, stopped(change), membership.leases) == (50, True, [(3, 7)], {})


def test_a_lease_with_another_number_begins_anew_at_its_position() -> None:
    membership = member(100.0, GroupLease(3, 7, 50, False))
    membership.leases[3].taken = 60
    membership.heartbeat(101.0)
    change = membership.answered(GroupLeases([GroupLease(3, 9, 0, False)], []))
    assert (stopped(change), begun(change)) == ([(3, 7)], [(3, 9)])
    assert (membership.leases[3].taken, membership.leases[3].done, membership.leases[3].start) == (0, 0, 0)


def test_a_shard_that_is_asked_for_goes_when_all_that_was_given_out_is_processed() -> None:
    membership = member(100.0, GroupLease(3, 7, 50, False), GroupLease(4, 8, 0, False))
    lease = membership.leases[3]
    lease.taken, lease.done = 60, 59
    membership.heartbeat(101.0)
    change = membership.answered(GroupLeases([GroupLease(3, 7, 59, True), GroupLease(4, 8, 0, False)], []))
    assert (stopped(change), begun(change)) == ([(3, 7)], [])
    assert not membership.is_urgent(102.0)
    message = membership.heartbeat(102.0)
    assert (message.checkpoints, message.released, lease.over) == ([], [], False)
    membership.answered(GroupLeases([GroupLease(3, 7, 59, True), GroupLease(4, 8, 0, False)], []))
    lease.done = 60
    assert membership.is_urgent(103.0)
    message = membership.heartbeat(103.0)
    assert (message.checkpoints, message.released, lease.over) == ([Checkpoint(3, 7, 60)], [3], True)
    assert stopped(membership.answered(GroupLeases([GroupLease(4, 8, 0, False)], []))) == [(3, 7)]
    assert lease.noted == 60


def test_a_shard_that_is_asked_for_goes_after_a_session_in_any_case() -> None:
    membership = member(100.0, GroupLease(3, 7, 50, False))
    lease = membership.leases[3]
    lease.taken = 60
    membership.heartbeat(101.0)
    membership.answered(GroupLeases([GroupLease(3, 7, 50, True)], []))
    membership.heartbeat(109.0)
    membership.answered(GroupLeases([GroupLease(3, 7, 50, True)], []))
    assert membership.due(5.0) == 110.0
    assert not membership.is_urgent(109.9) and membership.is_urgent(110.0)
    message = membership.heartbeat(110.0)
    assert (message.checkpoints, message.released) == ([], [3])


def test_a_shard_that_is_not_asked_for_any_more_goes_on_where_it_stopped() -> None:
    membership = member(100.0, GroupLease(3, 7, 50, False))
    lease = membership.leases[3]
    lease.taken = 60
    membership.heartbeat(101.0)
    membership.answered(GroupLeases([GroupLease(3, 7, 50, True)], []))
    membership.heartbeat(104.0)
    change = membership.answered(GroupLeases([GroupLease(3, 7, 50, False)], []))
    assert (begun(change), stopped(change), lease.taken, lease.is_asked_for) == ([(3, 7)], [], 60, False)


def test_a_shard_that_is_asked_for_at_once_is_never_begun() -> None:
    membership = member(100.0)
    membership.heartbeat(101.0)
    change = membership.answered(GroupLeases([GroupLease(3, 7, 50, True)], []))
    assert (begun(change), membership.is_urgent(101.0)) == ([], True)
    assert membership.heartbeat(101.0).released == [3]


def test_the_end_of_a_shard_is_urgent_for_its_children_wait() -> None:
    membership = member(100.0, GroupLease(3, 7, 50, False))
    lease = membership.leases[3]
    lease.taken, lease.done = 60, 60
    assert not membership.is_urgent(100.0)
    lease.ended = True
    assert membership.is_urgent(100.0)
    membership.heartbeat(101.0)
    membership.answered(GroupLeases([GroupLease(5, 9, 0, False)], []))
    assert lease.noted == 60 and not membership.is_urgent(101.0)


def test_an_expired_member_has_nothing_and_joins_under_another_name() -> None:
    membership = member(100.0, GroupLease(3, 7, 50, False))
    lease, name = membership.leases[3], membership.member
    membership.heartbeat(101.0)
    assert stopped(membership.expired()) == [(3, 7)]
    assert lease.over and not membership.leases and not membership.is_valid(101.0)
    message = membership.heartbeat(101.0)
    assert message.joining and message.member == membership.member != name
    assert (message.checkpoints, message.released) == ([], [])


def test_one_that_starts_anew_keeps_its_name() -> None:
    membership = member(100.0, GroupLease(3, 7, 50, False))
    name = membership.member
    assert stopped(membership.start_anew()) == [(3, 7)]
    message = membership.heartbeat(101.0)
    assert (message.joining, message.member) == (True, name)
