"""Planted bugs: each breaks one promise on purpose, and a run of seeds must notice. A rig that misses one proves nothing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any
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
from penstock_protocol.errors import OutcomeUnknown
from penstock_storage.interface import Commit

from tests.simulation.story import run_seed

MAX_SEEDS = 80

Plant = Callable[[], contextlib.AbstractContextManager[Any]]


def _replace(cls: type, name: str, make: Callable[[Any], Any]) -> Plant:
    """Replaces a method by what `make` makes of the original."""
    return lambda: mock.patch.object(cls, name, make(getattr(cls, name)))


def _ack_before_commit(original: Any) -> Any:
    def submit(self: Lane, callback: Any, size_bytes: int = 0) -> None:
        original(self, lambda _: None, size_bytes)
        callback(None)

    return submit


def _ack_on_exception(original: Any) -> Any:
    def fail(self: Lane, batch: Any, error: Any) -> None:
        callbacks, batch.callbacks = batch.callbacks, []
        original(self, batch, error)
        for callback in callbacks:
            callback(None)

    return fail


def _without(field: str) -> Callable[[Any], Any]:
    """A collect that forgets one table of the commit."""

    def make(original: Any) -> Any:
        def collect(self: Queue, commit: Commit, now_ms: int) -> Publication:
            kept = list(getattr(commit, field))
            publication = original(self, commit, now_ms)
            setattr(commit, field, kept)
            return publication  # type: ignore[no-any-return]

        return collect

    return make


def _publish_before_commit(original: Any) -> Any:
    def collect(self: Queue, commit: Commit, now_ms: int) -> Publication:
        publication = original(self, commit, now_ms)
        self.publish(publication)
        return Publication([], [])

    return collect


def _forget_answers(original: Any) -> Any:
    def collect(self: Deduplication, number: int, now_ms: int) -> Any:
        self._new_answers = []
        return original(self, number, now_ms)

    return collect


def _forget_keys(original: Any) -> Any:
    def collect(self: Deduplication, number: int, now_ms: int) -> Any:
        self._new_keys = []
        return original(self, number, now_ms)

    return collect


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


def _bury_without_ending(original: Any) -> Any:
    def bury(self: Queue, runs: Any) -> Iterator[Any]:
        with mock.patch.object(Queue, "_end", lambda *_: None):
            yield from original(self, runs)

    return bury


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
        return original(self, body, values, 0, now_ms)  # type: ignore[no-any-return]

    return append


def _visible_after_reload(original: Any) -> Any:
    def restored_run(segment: Any, values: Any) -> Any:
        run = original(segment, values)
        run.visible_ms = 0
        return run

    return restored_run


def _no_memory_of_the_dying(original: Any) -> Any:
    def loaded(self: Queue, *arguments: Any, **options: Any) -> Any:
        self._dying.clear()
        return original(self, *arguments, **options)

    return loaded


def _replies_to_the_wrong_waiter(original: Any) -> Any:
    async def commit(self: Lane, batch: Any) -> None:
        with mock.patch.object(QueueService, "settle", QueueService.settle):
            if len(batch.callbacks) > 1 and self.incarnation is not None:
                first = batch.callbacks.pop(0)
                first(None)
            await original(self, batch)

    return commit


def _keep_memory(original: Any) -> Any:
    del original

    def drop(self: QueueService, participant: Any, error: Any) -> None:
        """The memory stays."""

    return drop


def _unknown_is_failed(original: Any) -> Any:
    def fail(self: Lane, batch: Any, error: Any) -> None:
        with mock.patch("penstock_broker.lane.OutcomeUnknown", _CertainlyNot):
            original(self, batch, error)

    return fail


class _CertainlyNot(OutcomeUnknown):
    code = 12

    @property
    def name(self) -> str:
        return "StoreFailed"


def _never_wakes(original: Any) -> Any:
    del original
    return lambda self, runtime: None


BUGS: dict[str, Plant] = {
    "ack before commit": _replace(Lane, "submit", _ack_before_commit),
    "ack on commit exception": _replace(Lane, "_fail", _ack_on_exception),
    "memory kept after a failed commit": _replace(QueueService, "discarded", _keep_memory),
    "receive not committed": _replace(Queue, "collect", _without("upsert_deliveries")),
    "delete not committed": _replace(Queue, "collect", _without("delete_segments")),
    "partial delete not committed": _replace(Queue, "collect", _without("upsert_states")),
    "send not committed": _replace(Queue, "collect", _without("insert_segments")),
    "sequence numbers reused after reload": _replace(Queue, "collect", _without("reservations")),
    "publish before commit": _replace(Queue, "collect", _publish_before_commit),
    "idempotency answers only in memory": _replace(Deduplication, "collect", _forget_answers),
    "deduplication ids only in memory": _replace(Deduplication, "collect", _forget_keys),
    "retries are not recognised": _replace(Deduplication, "answered", lambda _: lambda *arguments: None),
    "receive count only in memory": _replace(Delivery, "to_row", _count_in_memory_only),
    "dead-letter move leaves a copy": _replace(Queue, "bury", _bury_without_ending),
    "delete ignores the handle's delivery": _replace(Queue, "delete", _delete_by_message_alone),
    "FIFO serves past a blocked head": _replace(Group, "bound", lambda _: lambda self: None),
    "group lock lost on reload": _replace(FifoReady, "restore", lambda _: lambda self, run: None),
    "delay ignored": _replace(Queue, "_append", _no_delay),
    "visibility timeout lost on reload": lambda: mock.patch.object(
        queue_module, "restored_run", _visible_after_reload(deliveries_module.restored_run)
    ),
    "a stale page brings back the dead": _replace(Queue, "loaded_arrivals", _no_memory_of_the_dying),
    "a reply before its commit": _replace(Lane, "_commit", _replies_to_the_wrong_waiter),
    "long poll is never woken": _replace(QueueService, "_serve", _never_wakes),
}
"""Each promise and how it is broken."""


def seeds_until_caught(name: str, first: int = 0) -> tuple[int, str]:
    """How many seeds it took, and the first complaint. Raises AssertionError when MAX_SEEDS did not notice."""
    for count, seed in enumerate(range(first, first + MAX_SEEDS), 1):
        with BUGS[name]():
            try:
                _, complaints = run_seed(seed)
            except (Exception, trio.Cancelled) as error:  # noqa: BLE001 - a broken broker may fall over in any way
                complaints = [f"the run fell over: {type(error).__name__}"]
        if complaints:
            return count, complaints[0]
    raise AssertionError(f"{MAX_SEEDS} seeds did not notice: {name}")


def main() -> int:
    """Prints a table of all of them."""
    missed = 0
    for name in BUGS:
        try:
            count, complaint = seeds_until_caught(name)
            print(f"{name:40} {count:3} seeds  {complaint[:100]}", flush=True)
        except AssertionError as error:
            missed += 1
            print(f"{name:40} MISSED  {error}", flush=True)
    print(f"{len(BUGS) - missed} of {len(BUGS)} planted bugs caught")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
