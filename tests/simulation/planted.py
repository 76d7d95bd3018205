"""Planted bugs: each breaks one promise on purpose, and a few seeds must notice. A rig that misses one proves nothing.

`python -m tests.simulation.planted` prints which checker caught which bug, and after how many seeds.
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

import trio
from penstock_broker.lane import Lane
from penstock_broker.queue_service import QueueService
from penstock_broker.queues import deliveries as deliveries_module
from penstock_broker.queues import queue as queue_module
from penstock_broker.queues.deduplication import Deduplication
from penstock_broker.queues.deliveries import Delivery
from penstock_broker.queues.fifo import FifoReady, Group
from penstock_broker.queues.queue import Publication, Queue
from penstock_broker.queues.ready import StandardReady
from penstock_protocol import queue_messages as q
from penstock_storage.interface import Commit, StoreError

from tests.simulation.story import run_seed
from tests.simulation.weather import Weather

MAX_SEEDS: Final = 60

CALM: Final = dict.fromkeys(("crash", "stop", "fail", "unknown", "full", "load_error", "cut", "limbo", "jump"), 0.0)

Plant = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclasses.dataclass(frozen=True)
class Bug:
    """`weather` is what the bug shows best in, on top of what a seed draws."""

    plant: Plant
    weather: dict[str, Any] = dataclasses.field(default_factory=dict)


def _replaced(cls: type, name: str, make: Callable[[Any], Any], **weather: Any) -> Bug:
    """A method replaced by what `make` makes of the original."""
    return Bug(lambda: mock.patch.object(cls, name, make(getattr(cls, name))), weather)


def _nothing(*_: Any, **__: Any) -> None:
    """Does nothing."""


def _no_more(original: Any) -> Any:
    del original
    return lambda *arguments, **options: None


# Commits


def _ack_before_commit(original: Any) -> Any:
    async def commit(self: Lane, batch: Any) -> None:
        if not batch.rows:
            callbacks, batch.callbacks = batch.callbacks, []
            for callback in callbacks:
                callback(None)
        await original(self, batch)

    return commit


def _ack_on_exception(original: Any) -> Any:
    def fail(self: Lane, batch: Any, error: Any) -> None:
        callbacks, batch.callbacks = batch.callbacks, []
        original(self, batch, error)
        for callback in callbacks:
            callback(None)

    return fail


def _answer_at_once(original: Any) -> Any:
    def handle(self: QueueService, call: Any, request: Any) -> None:
        def at_once(one: Any, reply: Any) -> None:
            one.reply(reply)

        def delivered_at_once(waiter: Any, reply: Any, number: int) -> None:
            waiter.call.reply(reply)

        with (
            mock.patch.object(self, "_when_durable", at_once),
            mock.patch.object(self, "_deliver_when_durable", delivered_at_once),
        ):
            original(self, call, request)

    return handle


def _ack_the_first_of_a_group(original: Any) -> Any:
    async def commit(self: Lane, batch: Any) -> None:
        if len(batch.callbacks) > 1:
            batch.callbacks.pop(0)(None)
        await original(self, batch)

    return commit


def _without(field: str) -> Callable[[Any], Any]:
    """A collect that forgets one table of the commit."""

    def make(original: Any) -> Any:
        def collect(self: Queue, commit: Commit, now_ms: int) -> Publication:
            kept = list(getattr(commit, field))
            publication: Publication = original(self, commit, now_ms)
            setattr(commit, field, kept)
            return publication

        return collect

    return make


# What is remembered


def _forget_new(field: str) -> Callable[[Any], Any]:
    def make(original: Any) -> Any:
        def collect(self: Deduplication, number: int, now_ms: int) -> Any:
            setattr(self, field, [])
            return original(self, number, now_ms)

        return collect

    return make


def _store_late_copies(original: Any) -> Any:
    def answered(self: Deduplication, producer: bytes, sequence: int, acknowledged: int, now_ms: int) -> Any:
        known = self._producers.get(producer)
        if known is not None:
            known.acknowledged = 0
        return original(self, producer, sequence, acknowledged, now_ms)

    return answered


def _count_in_memory_only(original: Any) -> Any:
    def to_row(self: Delivery, log_id: Any) -> Any:
        counts = [(run, run.received) for run in self.all_runs()]
        for run, _ in counts:
            run.received = 1
        row = original(self, log_id)
        for run, count in counts:
            run.received = count
        return row

    return to_row


def _change_in_memory_only(original: Any) -> Any:
    def set_visibility(self: Queue, run: Any, mask: int, timeout_ms: int, now_ms: int) -> None:
        before = dict(self._dirty_deliveries)
        original(self, run, mask, timeout_ms, now_ms)
        self._dirty_deliveries = before

    return set_visibility


def _visible_after_reload(original: Any) -> Any:
    def restored_run(segment: Any, values: Any) -> Any:
        run = original(segment, values)
        run.visible_ms = 0
        return run

    return restored_run


def _purge_in_memory_only(original: Any) -> Any:
    def purge(self: Queue, now_ms: int) -> int:
        count: int = original(self, now_ms)
        self._trimmed = False
        return count

    return purge


def _purge_forgets_what_is_in_flight(original: Any) -> Any:
    def purge(self: Queue, now_ms: int) -> int:
        kept = {number: delivery for number, delivery in self.deliveries.items() if delivery.stored}
        segments = {run.segment.first: run.segment for delivery in kept.values() for run in delivery.all_runs()}
        masks = [(run, run.mask) for delivery in kept.values() for run in delivery.all_runs() if not run.waiting]
        count: int = original(self, now_ms)
        for run, mask in masks:
            run.mask = mask
            self._ready.restore(run)
            self._start_timer([run], run.visible_ms)
        self.deliveries.update(kept)
        self.segments.update(segments)
        return count

    return purge


# Dead letters


def _bury_without_ending(original: Any) -> Any:
    def bury(self: Queue, runs: Any) -> Iterator[Any]:
        with mock.patch.object(Queue, "_end", _nothing):
            yield from original(self, runs)

    return bury


def _bury_in_two_commits(original: Any) -> Any:
    def bury(self: QueueService, source: Any, dead: Any, target: Any, now_ms: int) -> None:
        moved: list[Any] = []
        with mock.patch.object(target.queue, "adopt", lambda *arguments: moved.append(arguments)):
            original(self, source, dead, target, now_ms)

        async def afterwards() -> None:
            await trio.sleep(0.1)
            for arguments in moved:
                target.queue.adopt(*arguments)
            self.settle(target)

        self._start(afterwards)

    return bury


def _bury_one_early(original: Any) -> Any:
    def take(self: Any, limit: int, max_bytes: int, max_received: int, now_ms: int) -> Any:
        return original(self, limit, max_bytes, max(1, max_received - 1) if max_received else 0, now_ms)

    return take


def _never_bury(original: Any) -> Any:
    def take(self: Any, limit: int, max_bytes: int, max_received: int, now_ms: int) -> Any:
        del max_received
        return original(self, limit, max_bytes, 0, now_ms)

    return take


# Receipts, time, order


def _delete_by_message_alone(original: Any) -> Any:
    def delete(self: Queue, receipts: Any, now_ms: int) -> Any:
        failures = original(self, receipts, now_ms)
        for failure in failures:
            first = receipts[failure.entry].first
            segment = self.segments.get(first)
            if segment is None:
                continue
            wanted = int.from_bytes(failure.mask, "little") & ~segment.deleted
            for delivery in list(self.deliveries.values()):
                for run in list(delivery.runs.get(first, ())):
                    if run.mask & wanted:
                        self._delete_from(run, run.mask & wanted, now_ms)
                self._changed(delivery, first)
        return []

    return delete


def _no_delay(original: Any) -> Any:
    def append(self: Queue, body: bytes, values: Any, due_ms: int, now_ms: int) -> int:
        del due_ms
        sequence: int = original(self, body, values, 0, now_ms)
        return sequence

    return append


def _never_expire(original: Any) -> Any:
    del original

    def expire_old(self: Queue, now_ms: int) -> None:
        self._sweep_ms = now_ms + 60_000

    return expire_old


def _expire_early(original: Any) -> Any:
    def expire_old(self: Queue, now_ms: int) -> None:
        original(self, now_ms + self.settings.retention_ms * 3 // 4)
        self._sweep_ms = now_ms + 1_000

    return expire_old


def _hide_failures(original: Any) -> Any:
    def append_checked(self: Queue, request: Any, now_ms: int) -> q.SendReply:
        reply = original(self, request, now_ms)
        return q.SendReply(reply.log, reply.runs, [])

    return append_checked


def _no_memory_of_the_dying(original: Any) -> Any:
    def loaded(self: Queue, *arguments: Any, **options: Any) -> Any:
        self._dying.clear()
        return original(self, *arguments, **options)

    return loaded


def _failed_loads_are_empty(original: Any) -> Any:
    async def page_in(self: QueueService, runtime: Any, want: Any) -> None:
        class Store:
            def __getattr__(self, name: str) -> Any:
                def load(*arguments: Any) -> Any:
                    try:
                        return getattr(store, name)(*arguments)
                    except StoreError:
                        return []

                load.__name__ = name
                return load

        store = self._store
        with mock.patch.object(self, "_store", Store()):
            await original(self, runtime, want)

    return page_in


def _give_credit(original: Any) -> Any:
    def offer(self: QueueService, runtime: Any, waiter: Any) -> bool:
        if waiter.credit:
            waiter.credit = 50
        served: bool = original(self, runtime, waiter)
        return served

    return offer


def _forget_to_count(original: Any) -> Any:
    def delete_from(self: Queue, run: Any, mask: int, now_ms: int) -> None:
        before = self.in_flight
        original(self, run, mask, now_ms)
        if not run.mask:
            self.in_flight = before

    return delete_from


BUGS: Final[dict[str, Bug]] = {
    "ack before commit": _replaced(Lane, "_commit", _ack_before_commit, crash=0.6, lag=0.05),
    "ack on a commit's exception": _replaced(Lane, "_fail", _ack_on_exception, fail=0.1),
    "a delete is acknowledged before its commit": _replaced(QueueService, "delete", _answer_at_once, crash=0.6, lag=0.05),
    "a receive is answered before its commit": _replaced(QueueService, "receive", _answer_at_once, fail=0.1, lag=0.05),
    "the first of a group commit is answered too early": _replaced(Lane, "_commit", _ack_the_first_of_a_group, fail=0.1),
    "memory is kept after a failed commit": _replaced(QueueService, "discarded", _no_more, fail=0.1),
    "an unknown sweep or id is taken for a failed one": _replaced(Lane, "doubt", _no_more, unknown=0.3, admin=0.1),
    "sends are not committed": _replaced(Queue, "collect", _without("insert_segments"), crash=0.6),
    "receives are not committed": _replaced(Queue, "collect", _without("upsert_deliveries"), crash=0.6),
    "deletes are not committed": _replaced(Queue, "collect", _without("delete_segments"), crash=0.6),
    "deletes of a part are not committed": _replaced(Queue, "collect", _without("upsert_states"), crash=0.6),
    "sequence numbers are used again after a reload": _replaced(Queue, "collect", _without("reservations"), crash=0.6),
    "answers of sends are kept in memory only": _replaced(
        Deduplication, "collect", _forget_new("_new_answers"), crash=0.6, cut=0.5, unknown=0.1, fifo=0.0
    ),
    "deduplication ids are kept in memory only": _replaced(
        Deduplication, "collect", _forget_new("_new_keys"), crash=0.6, fifo=1.0, jump=0.0
    ),
    "receive attempts are kept in memory only": _replaced(
        Deduplication, "collect", _forget_new("_new_attempts"), crash=0.8, fifo=1.0, jump=0.0
    ),
    "retries of sends are not recognised": _replaced(Deduplication, "answered", _no_more),
    "late copies of sends are stored": _replaced(Deduplication, "answered", _store_late_copies, limbo=0.2, fifo=0.0),
    "receive counts are kept in memory only": _replaced(Delivery, "to_row", _count_in_memory_only, crash=0.6),
    "changes of visibility are kept in memory only": _replaced(
        Queue, "_set_visibility", _change_in_memory_only, crash=0.6, jump=0.0
    ),
    "visibility timeouts end at a reload": Bug(
        lambda: mock.patch.object(queue_module, "restored_run", _visible_after_reload(deliveries_module.restored_run)),
        {"crash": 0.6, "jump": 0.0},
    ),
    "group locks end at a reload": _replaced(FifoReady, "restore", lambda _: lambda self, run: None, fifo=1.0, crash=0.6),
    "a purge is kept in memory only": _replaced(Queue, "purge", _purge_in_memory_only, purge=0.1, crash=0.6),
    "a purge forgets what is in flight": _replaced(Queue, "purge", _purge_forgets_what_is_in_flight, purge=0.1),
    "a dead-letter move leaves a copy": _replaced(Queue, "bury", _bury_without_ending, dead_letters=1),
    "a dead-letter move is two commits": _replaced(
        QueueService, "_bury", _bury_in_two_commits, dead_letters=1, crash=0.6, fifo=0.0
    ),
    "messages are dead-lettered too early": _replaced(StandardReady, "take", _bury_one_early, dead_letters=3, fifo=0.0),
    "messages are never dead-lettered": _replaced(StandardReady, "take", _never_bury, dead_letters=1, fifo=0.0),
    "a delete ignores the handle's delivery": _replaced(Queue, "delete", _delete_by_message_alone),
    "a delay is ignored": _replaced(Queue, "_append", _no_delay, delays=0.6),
    "retention is ignored": _replaced(Queue, "_expire_old", _never_expire, retention=True, jump=0.0, redrive=0.0),
    "retention ends early": _replaced(Queue, "_expire_old", _expire_early, retention=True, jump=0.0),
    "failures of a batch are not told": _replaced(Queue, "_append_checked", _hide_failures),
    "a stale page brings back the dead": _replaced(
        Queue, "loaded_arrivals", _no_memory_of_the_dying, crash=0.6, lag=0.05, limits=(("PAGE_SEGMENTS", 4),), fifo=0.0
    ),
    "a page that could not be loaded counts as empty": _replaced(
        QueueService, "_page_in", _failed_loads_are_empty, load_error=0.1, crash=0.6
    ),
    "long polls are never woken": _replaced(QueueService, "_serve", _no_more, **CALM, fifo=0.0),
    "waiters outlive their clients": _replaced(QueueService, "end_waiter", _no_more, cut=0.5),
    "counts drift": _replaced(Queue, "_delete_from", _forget_to_count),
    "a FIFO group is served past what is in flight": _replaced(Group, "bound", lambda _: lambda self: None, fifo=1.0),
    "pushes know no credit": _replaced(QueueService, "_offer", _give_credit, fifo=0.0),
}
"""Each promise and how it is broken."""


def seeds_until_caught(name: str, first: int = 0) -> tuple[int, str]:
    """How many seeds it took, and the first complaint. Raises AssertionError when MAX_SEEDS did not notice."""
    bug = BUGS[name]
    for count, seed in enumerate(range(first, first + MAX_SEEDS), 1):
        weather = dataclasses.replace(Weather.drawn(random.Random(seed)), **bug.weather)
        with bug.plant():
            _, complaints = run_seed(seed, weather)
        if complaints:
            return count, complaints[0]
    raise AssertionError(f"{MAX_SEEDS} seeds did not notice: {name}")


def main() -> int:
    """Prints a table of all of them (or those named). Returns 1 when one was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.planted", description=__doc__)
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
