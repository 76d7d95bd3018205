"""Planted bugs of streams: each breaks one promise on purpose, and a few seeds must notice.

`python -m tests.simulation.stream_planted` prints which checker caught which bug, and after how many seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final
from unittest import mock

from penstock_broker import stream_service
from penstock_broker.lane import Lane
from penstock_broker.queues.deduplication import Deduplication
from penstock_broker.stream_admin import StreamAdmin
from penstock_broker.stream_catalog import ShardRecord
from penstock_broker.stream_consumers import StreamConsumers
from penstock_broker.stream_groups import GroupRecord, StreamGroups
from penstock_broker.stream_service import StreamService
from penstock_broker.streams import batches
from penstock_broker.streams import limits as stream_limits
from penstock_broker.streams import shard as shard_module
from penstock_broker.streams.group import Group, Lease
from penstock_broker.streams.iterators import Iterators
from penstock_broker.streams.shard import Shard
from penstock_broker.streams.subscription import Subscription
from penstock_broker.streams.throughput import Bucket, Throughput
from penstock_protocol.errors import ShardClosed, ThroughputExceeded

from tests.simulation.planted import (
    CALM,
    Bug,
    _ack_before_commit,
    _ack_on_exception,
    _ack_the_first_of_a_group,
    _forget_new,
    _no_more,
    _replaced,
    _store_late_copies,
    _without,
)
from tests.simulation.stream_story import drawn, run_seed

MAX_SEEDS: Final = 60


def _patched(home: Any, name: str, make: Callable[[Any], Any], **weather: Any) -> Bug:
    """A function of a module replaced by what `make` makes of the original."""
    return Bug(lambda: mock.patch.object(home, name, make(getattr(home, name))), weather)


# Commits


def _answer_puts_at_once(original: Any) -> Any:
    def put(self: StreamService, call: Any, request: Any) -> None:
        def submit(done: Any, size_bytes: int = 0) -> None:
            done(None)

        with mock.patch.object(self.lane, "submit", submit):
            original(self, call, request)

    return put


def _publish_before_commit(original: Any) -> Any:
    def collect(self: Shard, *arguments: Any) -> Any:
        self.publish(original(self, *arguments))
        return []

    return collect


def _close_forgets_what_waits(original: Any) -> Any:
    def close(self: Shard) -> int:
        self._open.clear()
        end: int = original(self)
        return end

    return close


# Shards that close


def _close_nothing(original: Any) -> Any:
    del original
    return lambda self: self._taken_end


def _closed_before_remembered(original: Any) -> Any:
    def put(self: Shard, *arguments: Any) -> Any:
        if self.closed:
            raise ShardClosed
        return original(self, *arguments)

    return put


def _read_out_before_durable(original: Any) -> Any:
    del original
    return lambda self, position: self.closed and position >= self.end


def _read_out_before_read(original: Any) -> Any:
    del original
    return lambda self, position: self.sealed


def _closing_in_memory_only(original: Any) -> Any:
    def to_row(self: ShardRecord, *arguments: Any) -> Any:
        opened = dataclasses.replace(self.range, closed_ms=None, end=0)
        return original(dataclasses.replace(self, range=opened), *arguments)

    return to_row


def _one_child_too_few(original: Any) -> Any:
    def reshard(self: StreamAdmin, call: Any, record: Any, steps: Any, answer: Any) -> None:
        write = self._service.lane.write

        def forgetful(rows: Any) -> None:
            def without_last(commit: Any) -> None:
                rows(commit)
                commit.upsert_resources.pop()

            write(without_last)

        with mock.patch.object(self._service.lane, "write", forgetful):
            original(self, call, record, steps, answer)

    return reshard


def _forgotten_shards_come_back(original: Any) -> Any:
    del original
    return lambda self, record: record


# Reads


def _off_by_one_at_trim(original: Any) -> Any:
    def iterator(self: StreamService, log_id: Any, position: int) -> Any:
        runtime = self.runtimes.get(log_id)
        trimmed = runtime is not None and position == runtime.shard.trimmed and position > 0
        return original(self, log_id, position + trimmed)

    return iterator


def _skip_like_a_gap(original: Any) -> Any:
    def runs_of(rows: Any, position: int, end: int, *arguments: Any) -> Any:
        runs, behind = original(rows, position, end, *arguments)
        return runs, max(end, behind)

    return runs_of


def _lose_the_rest_of_a_batch(original: Any) -> Any:
    def part_of(first: int, arrived_ms: int, given: Any, position: int, *arguments: Any) -> Any:
        run, end = original(first, arrived_ms, given, position, *arguments)
        if run.batches and run.first < position:
            dropped = run.batches[0]
            run = dataclasses.replace(run, first=run.first + dropped.count, batches=run.batches[1:])
        return run, end

    return part_of


@contextlib.contextmanager
def _without_rests() -> Iterator[None]:
    lossy = _lose_the_rest_of_a_batch(shard_module.part_of)
    with mock.patch.object(shard_module, "part_of", lossy), mock.patch.object(stream_service, "part_of", lossy):
        yield


def _from_the_batch(original: Any) -> Any:
    def reply(self: StreamService, call: Any, runtime: Any, start: int, runs: Any, position: int) -> None:
        original(self, call, runtime, runs[0].first if runs else start, runs, position)

    return reply


def _after_is_at(original: Any) -> Any:
    def open_iterator(self: StreamService, call: Any, request: Any) -> None:
        start = "at" if request.start == "after" else request.start
        original(self, call, dataclasses.replace(request, start=start))

    return open_iterator


def _latest_is_the_last(original: Any) -> Any:
    def open_iterator(self: StreamService, call: Any, request: Any) -> None:
        reply = call.reply

        def earlier(message: Any) -> None:
            place = self._iterators.check(message.iterator, self._ports.now_ms())
            reply(self._iterator(place.log_id, max(0, place.position - 1)))

        if request.start == "latest":
            with mock.patch.object(type(call), "reply", lambda _, message: earlier(message)):
                original(self, call, request)
        else:
            original(self, call, request)

    return open_iterator


def _time_one_late(original: Any) -> Any:
    def position_at(self: StreamService, *arguments: Any) -> int:
        position: int = original(self, *arguments)
        return position + 1

    return position_at


def _always_at_the_tip(original: Any) -> Any:
    del original
    return lambda self, position, now_ms: 0


def _never_expire(original: Any) -> Any:
    def check(self: Iterators, iterator: bytes, now_ms: int) -> Any:
        del now_ms
        return original(self, iterator, 0)

    return check


def _expire_early(original: Any) -> Any:
    def check(self: Iterators, iterator: bytes, now_ms: int) -> Any:
        return original(self, iterator, now_ms + 1_000)

    return check


# Limits


def _everything_passes(original: Any) -> Any:
    del original
    return lambda self, count, *arguments: count


def _nothing_is_paid(original: Any) -> Any:
    del original
    return lambda self, units: None


def _never_full_again(original: Any) -> Any:
    def room(self: Bucket, now_ms: int) -> int:
        del now_ms
        return int(original(self, 1))

    return room


def _store_what_was_refused(original: Any) -> Any:
    def first_of(request: Any, count: int) -> Any:
        del count
        return original(request, request.count)

    return first_of


def _store_and_refuse(original: Any) -> Any:
    def let_pass(self: Shard, request: Any, throughput: Any, now_ms: int) -> int:
        try:
            taken: int = original(self, request, throughput, now_ms)
        except ThroughputExceeded:
            self._append(batches.first_of(request, request.count), now_ms)
            raise
        return taken

    return let_pass


def _say_that_all_were_taken(original: Any) -> Any:
    def put(self: Shard, request: Any, *arguments: Any) -> Any:
        run = original(self, request, *arguments)
        return dataclasses.replace(run, count=request.count)

    return put


def _remember_that_all_were_taken(original: Any) -> Any:
    def remember(self: Deduplication, producer: bytes, sequence: int, reply: Any, now_ms: int) -> None:
        runs = [dataclasses.replace(run, count=run.count + 1) for run in reply.runs]
        original(self, producer, sequence, dataclasses.replace(reply, runs=runs), now_ms)

    return remember


# Retention and time


def _retain_less(original: Any) -> Any:
    async def retain(self: StreamService, log_id: Any) -> None:
        now_ms = self._ports.now_ms
        with mock.patch.object(self, "_ports", dataclasses.replace(self._ports, now_ms=lambda: now_ms() + 1_500)):
            await original(self, log_id)

    return retain


async def _retain_nothing(self: StreamService, log_id: Any) -> None:
    del self, log_id


def _arrival_by_the_clock(original: Any) -> Any:
    def restore(row: Any, last: Any, deduplication: Any) -> Shard:
        shard: Shard = original(row, last, deduplication)
        shard.last_ms = 0
        return shard

    return restore


# Groups


def _take_at_once(original: Any) -> Any:
    def even_out(self: Group, loads: dict[str, int]) -> None:
        original(self, loads)
        for shard, lease in list(self.leases.items()):
            if lease.give_up:
                least = min(loads, key=lambda name: len(self.shards_of(name)))
                self.leases[shard] = Lease(least, self._next_lease)
                self._next_lease += 1
                self.is_dirty = True

    return even_out


def _over_with_the_life(original: Any) -> Any:
    def from_stored(name: str, values: Any, now_ms: int) -> Group:
        group: Group = original(name, values, now_ms)
        for member in group.members.values():
            member.deadline_ms = now_ms
        return group

    return from_stored


def _children_at_once(original: Any) -> Any:
    del original
    return lambda self, extent, known: extent.range.shard not in self.finished


def _believe_everybody(original: Any) -> Any:
    def checkpoint(self: Group, member: str, shard: int, number: int, position: int, extent: Any) -> bool:
        lease = self.leases.get(shard)
        found: bool = lease is not None and original(self, lease.member, shard, lease.number, position, extent)
        return found

    return checkpoint


def _go_back(original: Any) -> Any:
    def checkpoint(self: Group, member: str, shard: int, number: int, position: int, extent: Any) -> bool:
        lease, before = self.leases.get(shard), self.positions.get(shard, 0)
        if lease is not None and (lease.member, lease.number) == (member, number) and position < before:
            self.positions[shard] = position
            self.is_dirty = True
        found: bool = original(self, member, shard, number, position, extent)
        return found

    return checkpoint


def _beyond_the_tip(original: Any) -> Any:
    def checkpoint(self: Group, member: str, shard: int, number: int, position: int, extent: Any) -> bool:
        found: bool = original(self, member, shard, number, position, dataclasses.replace(extent, end=max(extent.end, position)))
        return found

    return checkpoint


def _fail_over_to_the_tip(original: Any) -> Any:
    def balance(self: Group, extents: Any) -> None:
        extents = list(extents)
        before = {lease.number for lease in self.leases.values()}
        original(self, extents)
        for extent in extents:
            lease = self.leases.get(extent.range.shard)
            if lease is not None and lease.number not in before and lease.number > len(extents):
                self.positions[extent.range.shard] = extent.end

    return balance


def _answer_heartbeats_at_once(original: Any) -> Any:
    def save(self: StreamGroups, call: Any, record: Any, answer: Any) -> None:
        answer()
        original(self, call, record, lambda: None)

    return save


def _checkpoints_in_memory_only(original: Any) -> Any:
    def to_row(self: GroupRecord, values: Any, modified_ms: int) -> Any:
        return original(self, {**values, "positions": {}}, modified_ms)

    return to_row


def _reset_leaves_leases(original: Any) -> Any:
    def start_at(self: Group, positions: Any) -> None:
        leases = dict(self.leases)
        original(self, positions)
        self.leases = leases

    return start_at


# Registered consumers


def _resume_elsewhere(by: int) -> Callable[[Any], Any]:
    def make(original: Any) -> Any:
        def subscribe(self: StreamConsumers, call: Any, request: Any) -> None:
            if request.start == "at" and request.position + by >= 0:
                request = dataclasses.replace(request, position=request.position + by)
            original(self, call, request)

        return subscribe

    return make


def _credit_is_not_counted(original: Any) -> Any:
    def pushed(self: Subscription, position: int, records: int) -> None:
        del records
        original(self, position, 0)

    return pushed


def _whole_pushes(original: Any) -> Any:
    del original
    return property(lambda self: stream_limits.PUSH_RECORDS)


def _wait_for_the_slow(original: Any) -> Any:
    def serve(self: StreamConsumers, runtime: Any) -> None:
        if all(one.subscription.credit > 0 for one in runtime.subscribers.values()):
            original(self, runtime)

    return serve


@contextlib.contextmanager
def _answer_before_publish() -> Iterator[None]:
    """The lane calls back, publishes, and serves who waits, in that order."""
    publish, published = Shard.publish, StreamService.published
    kept: dict[Shard, Any] = {}

    def later(self: Shard, segments: Any) -> bool:
        kept[self] = segments
        return bool(segments)

    def now(self: StreamService, shard: Shard, *, woke: bool) -> None:
        publish(shard, kept.pop(shard))
        published(self, shard, woke=woke)

    with mock.patch.object(Shard, "publish", later), mock.patch.object(StreamService, "published", now):
        yield


IN_GROUP: Final = {"members": 3}
PUSHED: Final = {"subscribers": 2}

BUGS: Final[dict[str, Bug]] = {
    "replies leave before their commit": _replaced(Lane, "_commit", _ack_before_commit, crash=0.6, lag=0.05),
    "replies say ok after a failed commit": _replaced(Lane, "_fail", _ack_on_exception, fail=0.1),
    "the first of a group commit is answered too early": _replaced(
        Lane, "_commit", _ack_the_first_of_a_group, fail=0.3, lag=0.05, reshard=0.0
    ),
    "a put is acknowledged before its commit": _replaced(StreamService, "put", _answer_puts_at_once, crash=0.6, lag=0.05),
    "records are readable before their commit": _replaced(Shard, "collect", _publish_before_commit, fail=0.1, lag=0.05),
    "memory is kept after a failed commit": _replaced(StreamService, "discarded", _no_more, fail=0.1),
    "puts are not committed": _replaced(Shard, "collect", _without("insert_segments"), crash=0.6),
    "sequence numbers are used again after a reload": _replaced(Shard, "collect", _without("reservations"), crash=0.6),
    "answers of puts are kept in memory only": _replaced(
        Deduplication, "collect", _forget_new("_new_answers"), crash=0.6, cut=0.5, unknown=0.1
    ),
    "retries of puts are not recognised": _replaced(Deduplication, "answered", _no_more, cut=0.5),
    "late copies of puts are stored": _replaced(Deduplication, "answered", _store_late_copies, limbo=0.2),
    "a closed shard does not remember what it answered": _replaced(Shard, "put", _closed_before_remembered, reshard=1.2),
    "a close forgets what waits for its commit": _replaced(
        Shard, "close", _close_forgets_what_waits, reshard=1.2, lag=0.05, passes=0
    ),
    "parent and child take records": _replaced(Shard, "close", _close_nothing, reshard=1.2),
    "a shard is closed in memory only": _replaced(ShardRecord, "to_row", _closing_in_memory_only, reshard=1.2),
    "a child is not committed": _replaced(StreamAdmin, "_reshard", _one_child_too_few, reshard=1.2),
    "children are named before the parent is closed": _replaced(
        Shard, "read_out", _read_out_before_durable, reshard=1.2, lag=0.05, kept=0.0
    ),
    "children are named before the parent is read out": _replaced(Shard, "read_out", _read_out_before_read, reshard=1.2),
    "an iterator begins one late at the trim horizon": _replaced(StreamService, "_iterator", _off_by_one_at_trim, kept=2.0),
    "an iterator after a record begins at it": _replaced(StreamService, "open_iterator", _after_is_at),
    "an iterator at the tip begins before it": _replaced(StreamService, "open_iterator", _latest_is_the_last),
    "an iterator at a time begins one late": _replaced(StreamService, "_position_at", _time_one_late),
    "iterators never expire": _replaced(Iterators, "check", _never_expire, expiry=1.5, jump=0.0),
    "iterators expire early": _replaced(Iterators, "check", _expire_early, expiry=1.5, jump=0.0),
    "records that were not read are taken for a gap": _patched(
        stream_service, "runs_of", _skip_like_a_gap, small=(("TIP_BYTES", 1), ("READ_SEGMENTS", 1))
    ),
    "a read from within a batch loses its rest": Bug(_without_rests),
    "a read from within a batch brings its beginning": _replaced(StreamService, "_reply", _from_the_batch),
    "everybody is told to be at the tip": _replaced(Shard, "behind_ms", _always_at_the_tip),
    "reads that wait are never woken": _replaced(StreamService, "_serve", _no_more, **CALM),
    "waiting reads outlive their clients": _replaced(StreamService, "end_waiter", _no_more, cut=0.8, stop=0.3),
    "limits refuse nothing": _replaced(Throughput, "take_records", _everything_passes, passes=3, **CALM),
    "what passes is not paid for": _replaced(Bucket, "take", _nothing_is_paid, passes=3, **CALM),
    "a bucket is never full again": _replaced(Bucket, "room", _never_full_again, passes=3, **CALM),
    "records that a limit cut off are stored": _patched(batches, "first_of", _store_what_was_refused, passes=3),
    "a put that was throttled is stored": _replaced(Shard, "_let_pass", _store_and_refuse, passes=3),
    "a put that was cut off says that all is stored": _replaced(Shard, "put", _say_that_all_were_taken, passes=3),
    "a retry of what was cut off is answered otherwise": _replaced(
        Deduplication, "remember_answer", _remember_that_all_were_taken, passes=3, cut=0.5
    ),
    "trims are kept in memory only": _replaced(Shard, "collect", _without("trims"), kept=2.0, crash=0.6),
    "retention is ignored": Bug(
        lambda: mock.patch.object(StreamService, "_retain", _retain_nothing), {"kept": 2.0, "jump": 0.0, "crash": 0.0}
    ),
    "retention ends early": _replaced(StreamService, "_retain", _retain_less, kept=6.0, jump=0.0),
    "a shard that has aged out comes back": _replaced(
        StreamAdmin, "_current", _forgotten_shards_come_back, kept=2.0, reshard=3.0, lag=0.05, jump=0.0, admin=0.4
    ),
    "arrival times go back with the clock": Bug(
        lambda: mock.patch.object(Shard, "restore", _arrival_by_the_clock(Shard.restore)), {"jump": 1.0, "crash": 0.6}
    ),
    "callers are told before a commit is in force": Bug(
        _answer_before_publish, {"lag": 0.05, "reshard": 3.0, "followers": 2, "kept": 0.0, **PUSHED}
    ),
    "a lease is given to two members": _replaced(Group, "_even_out", _take_at_once, shards=3, **IN_GROUP),
    "sessions end with the broker's life": Bug(
        lambda: mock.patch.object(Group, "from_stored", _over_with_the_life(Group.from_stored)),
        {"crash": 0.3, "stop": 0.3, **IN_GROUP},
    ),
    "members that are silent keep their leases": _replaced(Group, "expire", _no_more, **IN_GROUP),
    "a child is given before its parent is read out": _replaced(
        Group, "_can_begin", _children_at_once, reshard=1.2, kept=0.0, **IN_GROUP
    ),
    "a checkpoint of who lost the lease is taken": _replaced(Group, "checkpoint", _believe_everybody, **IN_GROUP),
    "a checkpoint goes back": _replaced(Group, "checkpoint", _go_back, **IN_GROUP),
    "a checkpoint beyond the tip is taken": _replaced(Group, "checkpoint", _beyond_the_tip, **IN_GROUP),
    "fail-over goes on at the tip": _replaced(Group, "balance", _fail_over_to_the_tip, kept=0.0, **IN_GROUP),
    "heartbeats are answered before their commit": _replaced(
        StreamGroups, "_save", _answer_heartbeats_at_once, crash=0.6, lag=0.05, **IN_GROUP
    ),
    "checkpoints are kept in memory only": _replaced(
        GroupRecord, "to_row", _checkpoints_in_memory_only, crash=0.6, kept=0.0, **IN_GROUP
    ),
    "a reset leaves members their leases": _replaced(Group, "start_at", _reset_leaves_leases, resets=4.0, **IN_GROUP),
    "a subscription is resumed one record late": _replaced(StreamConsumers, "subscribe", _resume_elsewhere(1), cut=0.5, **PUSHED),
    "a subscription is resumed one record early": _replaced(
        StreamConsumers, "subscribe", _resume_elsewhere(-1), cut=0.5, **PUSHED
    ),
    "records are pushed beyond the credit": _replaced(Subscription, "max_records", _whole_pushes, **PUSHED),
    "what is pushed costs no credit": _replaced(Subscription, "pushed", _credit_is_not_counted, **PUSHED),
    "a slow subscriber holds the others up": _replaced(StreamConsumers, "serve", _wait_for_the_slow, slow=True, **PUSHED),
    "subscriptions are never served": _replaced(StreamConsumers, "serve", _no_more, **PUSHED),
    "subscriptions outlive their consumer": _replaced(StreamConsumers, "_subscribers", lambda _: lambda *_: [], **PUSHED),
}
"""Each promise and how it is broken."""


def seeds_until_caught(name: str, first: int = 0) -> tuple[int, str]:
    """How many seeds it took, and the first complaint. Raises AssertionError when MAX_SEEDS did not notice."""
    bug = BUGS[name]
    for count, seed in enumerate(range(first, first + MAX_SEEDS), 1):
        weather = dataclasses.replace(drawn(random.Random(seed)), **bug.weather)
        with bug.plant():
            _, complaints = run_seed(seed, weather)
        if complaints:
            return count, complaints[0]
    raise AssertionError(f"{MAX_SEEDS} seeds did not notice: {name}")


def main() -> int:
    """Prints a table of all of them (or those named). Returns 1 when one was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.stream_planted", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = parser.parse_args().names or list(BUGS)
    missed = 0
    for name in names:
        try:
            count, complaint = seeds_until_caught(name)
            print(f"{name:50} {count:3} seeds  {complaint.splitlines()[0][:90]}", flush=True)
        except AssertionError as error:
            missed += 1
            print(f"{name:50} MISSED     {error}", flush=True)
    print(f"{len(names) - missed} of {len(names)} planted bugs caught")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
