"""Move tasks: the messages of a dead-letter queue go back, some at a time, each move in one commit.

A task is a resource, so it survives a restart and goes on where it was. It takes visible messages only; it ends when it
has moved as many as were there at its start, or finds none left. A moved message is a new message: new id, new send
time, no receives (SQS). Without a destination each goes to the queue it came from, whatever that queue's settings say now.
A task belongs to the queues that had its names when it began: to others of their names it does nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable

import structlog
import trio
from penstock_protocol import queue_messages as messages
from penstock_protocol.errors import (
    InvalidRequest,
    MoveTaskDoesNotExist,
    NotADeadLetterQueue,
    PenstockError,
    QueueDoesNotExist,
    ResourceBusy,
    StoreFailed,
)
from penstock_storage.interface import LogId, ResourceRow, Store, StoreError

from penstock_broker.call import Call, NotReady
from penstock_broker.catalog import MOVE_TASK, Place, QueueRecord
from penstock_broker.ports import Ports
from penstock_broker.queue_service import QueueService
from penstock_broker.queues import limits
from penstock_broker.queues.segment import Columns, Run
from penstock_broker.queues.settings import is_fifo
from penstock_broker.runtime import Runtime

log = structlog.get_logger()

RUNNING, COMPLETED, CANCELLING, CANCELLED, FAILED = "RUNNING", "COMPLETED", "CANCELLING", "CANCELLED", "FAILED"
MOVE_BATCH = 500
KEPT_TASKS = 10
"""Ended tasks that are remembered per source."""


@dataclasses.dataclass(slots=True, eq=False)
class Task:
    """One move task as it stands."""

    resource_id: int
    place: Place
    source: str
    destination: str
    state: str
    messages_per_second: int
    moved: int
    to_move: int
    started_ms: int
    failure: str = ""
    source_log: int = 0
    destination_log: int = 0

    @property
    def task_id(self) -> str:
        """Its name."""
        return f"move-{self.resource_id}"

    def to_message(self) -> messages.MoveTask:
        """Its wire form."""
        return messages.MoveTask(
            self.task_id,
            self.source,
            self.destination,
            self.state,
            self.messages_per_second,
            self.moved,
            self.to_move,
            self.started_ms,
            self.failure,
        )

    def to_row(self) -> ResourceRow:
        """The row that restores it."""
        values = {
            "source": self.source,
            "destination": self.destination,
            "state": self.state,
            "messages_per_second": self.messages_per_second,
            "moved": self.moved,
            "to_move": self.to_move,
            "failure": self.failure,
            "source_log": self.source_log,
            "destination_log": self.destination_log,
        }
        return ResourceRow(
            self.resource_id,
            self.place.account,
            self.place.region,
            MOVE_TASK,
            self.task_id,
            LogId(self.resource_id),
            json.dumps(values, separators=(",", ":"), sort_keys=True),
            1,
            self.started_ms,
            self.started_ms,
        )

    @classmethod
    def from_row(cls, row: ResourceRow) -> Task:
        """The task of a stored row."""
        return cls(row.resource_id, Place(row.account, row.region), started_ms=row.created_ms, **json.loads(row.attributes))


class MoveTasks:
    """All move tasks. `start` runs a background task of the server."""

    def __init__(self, service: QueueService, store: Store, ports: Ports, start: Callable[..., None]) -> None:
        self._service = service
        self._store = store
        self._ports = ports
        self._start = start
        self._tasks: dict[int, Task] = {}
        self._ids: list[int] = []
        self._origins: dict[int, set[str]] = {}
        """By running task: the queues that its messages turned out to come from."""

    def restore(self, row: ResourceRow) -> None:
        """Takes up a stored task; `resume` runs those that were running."""
        task = Task.from_row(row)
        self._tasks[task.resource_id] = task

    def resume(self) -> None:
        """Runs the tasks that a stop interrupted."""
        for task in self._tasks.values():
            if not task.source_log:
                self._adopt_names(task)
            if task.state == RUNNING:
                self._start(self._run, task)
            elif task.state == CANCELLING:
                task.state = CANCELLED

    def _adopt_names(self, task: Task) -> None:
        """A task that was stored before tasks knew more than names."""
        for name, field in ((task.source, "source_log"), (task.destination, "destination_log")):
            record = self._service.catalog.get(task.place, name)
            if record is not None:
                setattr(task, field, record.log_id)

    def learn(self, rows: Iterable[ResourceRow]) -> None:
        """Takes up tasks whose start had an unknown outcome and has happened."""
        for row in rows:
            if row.resource_id not in self._tasks:
                self.restore(row)
                task = self._tasks[row.resource_id]
                if task.state == RUNNING:
                    self._start(self._run, task)

    def _of(self, record: QueueRecord) -> list[Task]:
        return sorted(
            (task for task in self._tasks.values() if task.source_log == record.log_id),
            key=lambda task: task.resource_id,
            reverse=True,
        )

    def _orphans(self) -> list[Task]:
        """Ended tasks of queues that are gone."""
        logs = {record.log_id for record in self._service.catalog}
        ended = [task for task in self._tasks.values() if task.state not in (RUNNING, CANCELLING)]
        return [task for task in ended if task.source_log not in logs]

    async def _fetch_id(self) -> None:
        incarnation = self._service.lane.incarnation
        if incarnation is None:
            raise StoreFailed()
        try:
            self._ids.append(await self._ports.in_thread(self._store.next_id, incarnation))
        except StoreError as error:
            self._service.lane.failed_outside(error)
            raise StoreFailed() from error

    def begin(self, call: Call, request: messages.StartMoveTask) -> None:
        """StartMoveTask."""
        runtime = self._service.runtime(call.caller, request.source)
        record = runtime.record
        if not self._service.catalog.sources_of(record):
            raise NotADeadLetterQueue(f"{request.source!r} is no queue's dead-letter queue")
        if request.messages_per_second > limits.MAX_MOVE_RATE * 1000:
            raise InvalidRequest(f"messages_per_second = {request.messages_per_second} is too many")
        destination = None
        if request.destination:
            destination = self._service.record(call.caller, request.destination)
            if destination.log_id == record.log_id:
                raise InvalidRequest("destination: a queue's messages cannot be moved to itself")
            if is_fifo(destination.name) != is_fifo(record.name):
                raise InvalidRequest("destination: messages are moved between FIFO queues, or between standard queues")
        known = self._of(record)
        if any(task.state in (RUNNING, CANCELLING) for task in known):
            raise ResourceBusy(f"a move task of {request.source!r} is running; one at a time")
        if not self._ids:
            raise NotReady(self._fetch_id)
        self._service.lane.check_adds()
        now_ms = self._ports.now_ms()
        task = Task(
            self._ids.pop(),
            record.place,
            record.name,
            request.destination,
            RUNNING,
            request.messages_per_second,
            0,
            runtime.queue.visible,
            now_ms,
            source_log=record.log_id,
            destination_log=destination.log_id if destination is not None else 0,
        )
        self._tasks[task.resource_id] = task
        forgotten = known[KEPT_TASKS - 1 :] + self._orphans()
        for old in forgotten:
            del self._tasks[old.resource_id]
        row = task.to_row()
        lane = self._service.lane
        lane.write(lambda commit: commit.upsert_resources.append(row))
        lane.write(lambda commit: commit.delete_resources.extend(old.to_row() for old in forgotten))

        def done(error: PenstockError | None) -> None:
            if error is not None:
                self._tasks.pop(task.resource_id, None)
                call.fail(error)
                return
            call.reply(task.to_message())
            self._start(self._run, task)

        lane.submit(done)

    def cancel(self, call: Call, request: messages.MoveTaskId) -> None:
        """CancelMoveTask."""
        for task in self._tasks.values():
            if task.task_id == request.task_id and task.place == Place(call.caller.account, call.caller.region):
                self._cancel(call, task)
                return
        raise MoveTaskDoesNotExist(f"there is no move task {request.task_id[:50]!r}")

    def _cancel(self, call: Call, task: Task) -> None:
        lane = self._service.lane
        lane.check_adds()
        if task.state == RUNNING:
            task.state = CANCELLING
            lane.write(lambda commit: commit.upsert_resources.append(task.to_row()))

        def done(error: PenstockError | None) -> None:
            if error is None:
                call.reply(task.to_message())
            else:
                call.fail(error)

        lane.submit(done)

    def list_tasks(self, call: Call, request: messages.ListMoveTasks) -> None:
        """ListMoveTasks."""
        record = self._service.record(call.caller, request.source)
        tasks = self._of(record)[: max(1, min(request.limit, KEPT_TASKS))]
        call.reply(messages.MoveTasks([task.to_message() for task in tasks]))

    async def _run(self, task: Task) -> None:
        """Moves batch after batch; ends the task with COMPLETED, CANCELLED or FAILED."""
        started = trio.current_time()
        moved_here = 0
        empty_rounds = 0
        while task.state == RUNNING and task.moved < task.to_move:
            limit = min(MOVE_BATCH, task.to_move - task.moved)
            if task.messages_per_second:
                due = started + moved_here / task.messages_per_second
                await trio.sleep_until(due)
                limit = min(limit, max(1, task.messages_per_second // 10))
            try:
                moved = await self._move(task, limit)
            except PenstockError as error:
                if not error.retryable:
                    task.state, task.failure = FAILED, str(error)
                    break
                log.warning("move task waits", task=task.task_id, error=str(error))
                await trio.sleep(0.5)
                continue
            if moved is None:
                await trio.sleep(0.05)
                continue
            moved_here += moved
            empty_rounds = 0 if moved else empty_rounds + 1
            if empty_rounds > 3:
                break
            if not moved:
                await trio.sleep(0.05)
        if task.state == RUNNING:
            task.state = COMPLETED
        elif task.state == CANCELLING:
            task.state = CANCELLED
        self._origins.pop(task.resource_id, None)
        log.info("move task ended", task=task.task_id, state=task.state, moved=task.moved, failure=task.failure)
        await self._save(task)

    async def _save(self, task: Task) -> None:
        while True:
            try:
                self._service.lane.check_adds()
                await self._service.lane.commit(lambda commit: commit.upsert_resources.append(task.to_row()))
            except PenstockError:
                await trio.sleep(0.5)
            else:
                return

    def _record(self, task: Task, name: str, log_id: int) -> QueueRecord:
        record = self._service.catalog.get(task.place, name)
        if record is None or record.log_id != log_id:
            raise QueueDoesNotExist(f"the queue {name!r} was deleted")
        return record

    async def _move(self, task: Task, limit: int) -> int | None:
        """Moves up to `limit` messages in one commit; returns how many. None: something has to be loaded first."""
        service = self._service
        service.lane.check_adds()
        source_record = self._record(task, task.source, task.source_log)
        await service.load(source_record)
        if task.destination:
            names = [self._record(task, task.destination, task.destination_log).name]
        else:
            names = sorted({*service.catalog.sources_of(source_record), *self._origins.get(task.resource_id, ())})
        for name in names:
            await self._load(task.place, name)
        # Nothing waits from here to the commit: a queue that was dropped while another was loaded must not be used.
        source = service.runtimes.get(source_record.log_id)
        targets = {name: runtime for name in names if (runtime := self._loaded(task.place, name)) is not None}
        if source is None:
            raise StoreFailed()
        now_ms = self._ports.now_ms()
        taken = source.queue.take_waiting(limit, now_ms)
        if not taken.runs and (taken.missing or source.queue.may_load):
            service.settle(source)
            return None
        moving, unknown = len(taken.runs), ""
        for place, run in enumerate(taken.runs):
            absent = [name for name in self._names(task, run) if name not in targets]
            if absent:
                moving, unknown = place, absent[0]
                break
        else:
            absent = []
        for rest in taken.runs[moving:]:
            source.queue.put_back(rest)
        moved = self._bury(task, source, taken.runs[:moving], targets, now_ms)
        for runtime in targets.values():
            service.lane.touch(runtime.queue)
        if absent:
            service.settle(source)
        await self._finish(task, source, moved)
        if not absent:
            return moved
        if service.catalog.get(task.place, unknown) is None:
            name = repr(unknown) if unknown else "no queue"
            raise QueueDoesNotExist(f"messages came from {name}, which does not exist: name a destination")
        self._origins.setdefault(task.resource_id, set()).add(unknown)
        return moved or None

    async def _finish(self, task: Task, source: Runtime, moved: int) -> None:
        if not moved:
            return
        self._service.lane.touch(source.queue)
        task.moved += moved
        try:
            await self._service.lane.commit(lambda commit: commit.upsert_resources.append(task.to_row()))
        except PenstockError:
            task.moved -= moved
            raise

    async def _load(self, place: Place, name: str) -> None:
        record = self._service.catalog.get(place, name)
        if record is not None:
            await self._service.load(record)

    def _loaded(self, place: Place, name: str) -> Runtime | None:
        """None when there is no such queue; StoreFailed when it is not loaded."""
        record = self._service.catalog.get(place, name)
        if record is None:
            return None
        runtime = self._service.runtimes.get(record.log_id)
        if runtime is None:
            raise StoreFailed()
        return runtime

    def _names(self, task: Task, run: Run) -> list[str]:
        """The queue each message of a run goes to."""
        columns = run.segment.columns
        assert columns is not None
        if task.destination:
            return [task.destination]
        sources = columns.sources or [None] * run.segment.count
        return sorted({sources[index] or "" for index in range(run.segment.count) if run.mask >> index & 1})

    def _bury(self, task: Task, source: Runtime, runs: list[Run], targets: dict[str, Runtime], now_ms: int) -> int:
        """Hands messages to the queues they go to. All runs at once: the content of a segment goes when none needs it."""
        moved = 0
        columns: Columns
        for columns, index, _ in source.queue.bury(runs):
            name = task.destination
            if not name:
                assert columns.sources is not None
                name = str(columns.sources[index])
            targets[name].queue.adopt(columns, index, {}, now_ms, now_ms)
            source.queue.counters.redriven += 1
            moved += 1
        return moved
