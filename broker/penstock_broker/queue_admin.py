"""Creating, describing and changing queues; looking into them without receiving."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable

import trio
from penstock_protocol import queue_messages as messages
from penstock_protocol.errors import (
    InvalidAttribute,
    InvalidRequest,
    LimitExceeded,
    PenstockError,
    QueueDoesNotExist,
    ResourceInUse,
    StoreFailed,
)
from penstock_protocol.session_messages import Empty
from penstock_storage.interface import Commit, LoadedSegment, LogId, Store, StoreError

from penstock_broker.call import Call, NotReady
from penstock_broker.catalog import Place, QueueRecord
from penstock_broker.ports import Ports
from penstock_broker.queue_service import QueueService, messages_id, reply_bytes
from penstock_broker.queues import limits, settings
from penstock_broker.queues.segment import Columns, Run, attributes_bytes, indexes_of, mask_of
from penstock_broker.runtime import Runtime

_CURSOR = struct.Struct(">QQH")
_STATES = ("any", "visible", "in_flight", "delayed")
PEEK_LIMIT = 1_000
PEEK_BYTES = 4 * 1024 * 1024
"""A peek ends before the message that brings its content beyond this (or beyond a frame)."""
PEEK_PAGE_BYTES = 512 * 1024
PEEK_PAGES = 8
"""A peek reads so much of the queue, then tells where to go on, whether it has found enough or not."""
PEEKS = 2
"""Peeks that read at a time; the others wait."""


@dataclasses.dataclass(slots=True)
class _Found:
    """What a peek has found so far."""

    most: int
    most_bytes: int
    messages: list[messages.PeekedMessage] = dataclasses.field(default_factory=list)
    size_bytes: int = 0
    is_enough: bool = False

    def takes(self, size_bytes: int) -> bool:
        """Whether one more message fits; if not, this is the end."""
        self.size_bytes += size_bytes
        self.is_enough = len(self.messages) >= self.most or (self.size_bytes > self.most_bytes and bool(self.messages))
        return not self.is_enough


class QueueAdmin:
    """Handlers that change what there is. `start` runs a background task of the server."""

    def __init__(self, service: QueueService, store: Store, ports: Ports, start: Callable[..., None]) -> None:
        self._service = service
        self._catalog = service.catalog
        self._store = store
        self._ports = ports
        self._start = start
        self._ids: list[int] = []
        self._versions = 0
        self._peeks = trio.CapacityLimiter(PEEKS)
        self._pending: dict[int, QueueRecord] = {}
        """By resource id: the newest record that waits for its commit. What changes next builds on it."""

    async def _fetch_ids(self) -> None:
        incarnation = self._service.lane.incarnation
        if incarnation is None:
            raise StoreFailed()
        try:
            self._ids += [await self._ports.in_thread(self._store.next_id, incarnation) for _ in range(2)]
        except StoreError as error:
            self._service.lane.failed_outside(error)
            raise StoreFailed() from error

    def create(self, call: Call, request: messages.CreateQueue) -> None:
        """CreateQueue."""
        settings.check_queue_name(request.queue)
        fifo = settings.is_fifo(request.queue)
        place = Place(call.caller.account, call.caller.region)
        wanted = settings.changed(settings.QueueSettings(), request.settings or [], fifo=fifo)
        tags = settings.merged_tags({}, request.tags or [])
        existing = self._catalog.get(place, request.queue)
        if existing is not None:
            # SQS: the same attributes again are success, others an error; attributes not named are not compared.
            asked = {setting.name for setting in request.settings or []}
            now = self._newest(existing).settings
            differing = [name for name in asked if getattr(wanted, name) != getattr(now, name)]
            if differing:
                raise ResourceInUse(f"queue {request.queue!r} exists with other settings: {', '.join(sorted(differing))}")
            self._describe_when_durable(call, existing)
            return
        self._check_dead_letter(place, request.queue, wanted)
        if len(self._catalog) >= limits.MAX_QUEUES and len(self._catalog.names(place)) >= limits.MAX_QUEUES:
            raise LimitExceeded(f"an account has at most {limits.MAX_QUEUES} queues")
        if len(self._ids) < 2:
            raise NotReady(self._fetch_ids)
        self._service.lane.check_adds()
        resource_id, log_id = self._ids.pop(), LogId(self._ids.pop())
        now_ms = self._ports.now_ms()
        record = QueueRecord(resource_id, place, request.queue, log_id, wanted, tags, 1, now_ms, now_ms)
        self._catalog.put(record)
        self._service.lane.write(lambda commit: commit.upsert_resources.append(record.to_row()))

        def done(error: PenstockError | None) -> None:
            if error is None:
                self._start(self._describe_later, call, record)
            else:
                self._catalog.remove(record)
                call.fail(error)

        self._service.lane.submit(done)

    def _check_dead_letter(self, place: Place, name: str, wanted: settings.QueueSettings) -> None:
        target_name = wanted.dead_letter_queue
        if not target_name:
            return
        if target_name == name:
            raise InvalidAttribute("dead_letter_queue: a queue cannot be its own dead-letter queue")
        target = self._catalog.get(place, target_name)
        if target is None:
            raise InvalidAttribute(f"dead_letter_queue = {target_name!r}: there is no such queue")
        allowed = target.settings.redrive_allow
        if allowed == "deny_all" or (allowed == "by_queue" and name not in target.settings.redrive_sources):
            raise InvalidAttribute(f"dead_letter_queue = {target_name!r}: its redrive_allow setting does not permit {name!r}")

    def _change(self, call: Call, record: QueueRecord, after: Callable[[QueueRecord], None]) -> None:
        """Puts a changed record in force once it is durable."""
        self._service.lane.check_adds()
        self._pending[record.resource_id] = record

        def exists() -> QueueRecord | None:
            current = self._catalog.get(record.place, record.name)
            return current if current is not None and current.resource_id == record.resource_id else None

        def rows(commit: Commit) -> None:
            # A delete that was committed meanwhile is the last word: the row would bring the queue back.
            if exists() is not None:
                commit.upsert_resources.append(record.to_row())

        def done(error: PenstockError | None) -> None:
            if self._pending.get(record.resource_id) is record:
                del self._pending[record.resource_id]
            if error is not None:
                call.fail(error)
                return
            current = exists()
            if current is None:
                call.fail(QueueDoesNotExist())
                return
            if record.version > current.version:
                self._catalog.put(record)
                runtime = self._service.runtimes.get(record.log_id)
                if runtime is not None:
                    runtime.record = record
                    runtime.queue.settings = record.settings
                    self._service.retention_changed(runtime)
            after(record)

        self._service.lane.write(rows)
        self._service.lane.submit(done)

    def _newest(self, record: QueueRecord) -> QueueRecord:
        return self._pending.get(record.resource_id, record)

    def _next_version(self, record: QueueRecord) -> int:
        """Versions of changes that are under way at once still differ."""
        self._versions = max(self._versions, record.version) + 1
        return self._versions

    def change_settings(self, call: Call, request: messages.SetQueueSettings) -> None:
        """SetQueueSettings."""
        record = self._newest(self._service.record(call.caller, request.queue))
        changed = settings.changed(record.settings, request.settings, fifo=settings.is_fifo(record.name))
        if changed.dead_letter_queue != record.settings.dead_letter_queue:
            self._check_dead_letter(record.place, record.name, changed)
        new = dataclasses.replace(record, settings=changed, version=self._next_version(record), modified_ms=self._ports.now_ms())
        self._change(call, new, lambda done: self._start(self._describe_later, call, done))

    def tag(self, call: Call, request: messages.TagQueue) -> None:
        """TagQueue."""
        record = self._newest(self._service.record(call.caller, request.queue))
        tags = settings.merged_tags(record.tags, request.tags)
        new = dataclasses.replace(record, tags=tags, version=self._next_version(record))
        self._change(call, new, lambda _: call.reply(Empty()))

    def untag(self, call: Call, request: messages.UntagQueue) -> None:
        """UntagQueue."""
        record = self._newest(self._service.record(call.caller, request.queue))
        tags = {key: value for key, value in record.tags.items() if key not in request.keys}
        new = dataclasses.replace(record, tags=tags, version=self._next_version(record))
        self._change(call, new, lambda _: call.reply(Empty()))

    def delete(self, call: Call, request: messages.QueueName) -> None:
        """DeleteQueue."""
        record = self._service.record(call.caller, request.queue)
        self._service.lane.write(lambda commit: commit.delete_resources.append(record.to_row()))

        def done(error: PenstockError | None) -> None:
            if error is not None:
                call.fail(error)
                return
            self._catalog.remove(record)
            runtime = self._service.runtimes.get(record.log_id)
            if runtime is not None:
                self._service.drop(runtime, QueueDoesNotExist("the queue was deleted"))
            call.reply(Empty())

        self._service.lane.submit(done)

    def list_queues(self, call: Call, request: messages.ListQueues) -> None:
        """ListQueues."""
        if not 1 <= request.limit <= 10_000:
            raise InvalidRequest(f"limit = {request.limit}; it must be from 1 to 10000")
        names = [
            name
            for name in self._catalog.names(Place(call.caller.account, call.caller.region))
            if name.startswith(request.prefix) and name > request.after
        ]
        call.reply(messages.QueueNames(names[: request.limit], len(names) > request.limit))

    def sources(self, call: Call, request: messages.QueueName) -> None:
        """ListDeadLetterSources."""
        record = self._service.record(call.caller, request.queue)
        call.reply(messages.QueueNames(self._catalog.sources_of(record), False))

    def describe(self, call: Call, request: messages.QueueName) -> None:
        """DescribeQueue."""
        runtime = self._service.runtime(call.caller, request.queue)
        runtime.queue.expire(self._ports.now_ms())
        self._service.settle(runtime)
        call.reply(self.description(runtime))

    def _describe_when_durable(self, call: Call, record: QueueRecord) -> None:
        def done(error: PenstockError | None) -> None:
            if error is None:
                self._start(self._describe_later, call, record)
            else:
                call.fail(error)

        self._service.lane.submit(done)

    async def _describe_later(self, call: Call, record: QueueRecord) -> None:
        try:
            await self._service.load(record)
        except PenstockError as error:
            call.fail(error)
            return
        runtime = self._service.runtimes.get(record.log_id)
        if runtime is None:
            call.fail(StoreFailed())
        else:
            call.reply(self.description(runtime))

    def description(self, runtime: Runtime) -> messages.QueueDescription:
        """Everything about a loaded queue."""
        record, queue = runtime.record, runtime.queue
        return messages.QueueDescription(
            record.name,
            record.arn,
            record.created_ms,
            record.modified_ms,
            settings.as_list(record.settings, fifo=queue.fifo),
            [messages.Tag(key, value) for key, value in sorted(record.tags.items())],
            queue.visible,
            queue.in_flight,
            queue.delayed,
            queue.size_bytes,
            queue.oldest_ms,
            self._ports.now_ms(),
        )

    def purge(self, call: Call, request: messages.QueueName) -> None:
        """PurgeQueue."""
        runtime = self._service.runtime(call.caller, request.queue)
        count = runtime.queue.purge(self._ports.now_ms())
        self._service.settle(runtime)

        def done(error: PenstockError | None) -> None:
            if error is None:
                call.reply(messages.PurgeReply(count))
            else:
                call.fail(error)

        self._service.lane.submit(done)

    def peek(self, call: Call, request: messages.PeekMessages) -> None:
        """PeekMessages."""
        runtime = self._service.runtime(call.caller, request.queue)
        if request.state not in _STATES:
            raise InvalidRequest(f"state = {request.state[:50]!r}; it must be {', '.join(_STATES)}")
        if not 1 <= request.limit <= PEEK_LIMIT:
            raise InvalidRequest(f"limit = {request.limit}; it must be from 1 to {PEEK_LIMIT}")
        if request.after and len(request.after) != _CURSOR.size:
            raise InvalidRequest("after is not a cursor of this operation")
        self._start(self._peek, call, runtime, request)

    async def _peek(self, call: Call, runtime: Runtime, request: messages.PeekMessages) -> None:
        async with self._peeks:
            await call.session.wait_room()
            due_ms, first, start = _CURSOR.unpack(request.after) if request.after else (0, 0, 0)
            goes_on: tuple[int, int, int] | None = (min(due_ms, 2**62), min(first, 2**62), start)
            found = _Found(request.limit, min(PEEK_BYTES, reply_bytes(call)))
            for _ in range(PEEK_PAGES):
                if goes_on is None or found.is_enough or call.answered:
                    break
                due_ms, first, start = goes_on
                try:
                    page = await self._ports.in_thread(
                        self._store.load_arrivals, runtime.queue.log_id, (due_ms, first - 1), 2**62, 200, PEEK_PAGE_BYTES
                    )
                except StoreError:
                    call.fail(StoreFailed())
                    return
                goes_on = self._peek_page(runtime, page, request.state, start, found)
        call.reply(messages.PeekReply(found.messages, _CURSOR.pack(*goes_on) if goes_on is not None else b""))

    def _peek_page(
        self, runtime: Runtime, page: list[LoadedSegment], state: str, start: int, found: _Found
    ) -> tuple[int, int, int] | None:
        """Adds a page's messages, of the first segment those from `start`; returns where to go on. None: nowhere."""
        taken: dict[int, dict[int, Run]] = {loaded.segment.first: {} for loaded in page}
        for delivery in runtime.queue.deliveries.values():
            for first, runs in delivery.runs.items():
                if first in taken:
                    for run in runs:
                        taken[first].update(dict.fromkeys(indexes_of(run.mask), run))
        goes_on = None
        for loaded in page:
            row = loaded.segment
            stopped = self._peek_segment(runtime, loaded, state, start, taken[row.first], found)
            if stopped is not None:
                return row.due_ms, row.first, stopped
            start = 0
            goes_on = (row.due_ms, row.first + 1, 0)
        return goes_on

    def _peek_segment(
        self, runtime: Runtime, loaded: LoadedSegment, state: str, start: int, taken: dict[int, Run], found: _Found
    ) -> int | None:
        """Adds a segment's messages; returns the index to go on with when enough was found."""
        row = loaded.segment
        assert row.payload is not None
        columns = Columns.unpack(row.payload)
        deleted = mask_of(loaded.state.deleted) if loaded.state is not None else 0
        now_ms = self._ports.now_ms()
        for index in range(start, row.count):
            if deleted >> index & 1:
                continue
            run = taken.get(index)
            received, visible_ms = (0, row.due_ms) if run is None else (run.received, run.visible_ms)
            now = "visible"
            if visible_ms > now_ms:
                now = "in_flight" if received else "delayed"
            if state not in ("any", now):
                continue
            values = columns.row(index)
            if not found.takes(len(columns.bodies[index]) + attributes_bytes(values.get("attributes") or [])):
                return index
            found.messages.append(
                messages.PeekedMessage(
                    row.first + index,
                    values.get("origins") or messages_id(runtime.queue.log_id, row.first + index),
                    now,
                    values.get("sent_ms", row.sent_ms),
                    visible_ms,
                    received,
                    columns.bodies[index],
                    values.get("attributes"),
                    values.get("groups"),
                    values.get("deduplication_ids"),
                    values.get("sources"),
                )
            )
        return None
