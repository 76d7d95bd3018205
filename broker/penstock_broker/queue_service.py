"""The queues of this broker: requests in, decisions by `queues.Queue`, commits through the lane, replies out.

A handler is a plain function: it decides against memory, submits the reply to the lane, and returns. What must be
awaited first (a queue that is not in memory, an id from the store) is raised as NotReady; the dispatcher awaits it and calls the
handler again. So between a check and the change that relies on it nothing else runs, and there are no locks.

After every handler, commit, load and timer `settle` looks after the queue: serves who waits, starts the next load, tells the
timer, tells the lane.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Callable
from typing import Any

import structlog
import trio
from penstock_protocol import queue_messages as messages
from penstock_protocol.errors import (
    BatchEmpty,
    Cancelled,
    InvalidRequest,
    LimitExceeded,
    PenstockError,
    QueueDoesNotExist,
    StoreFailed,
    TooManyInFlight,
)
from penstock_protocol.session_messages import Empty
from penstock_storage.interface import DeliveryRow, LoadedSegment, LogId, Store, StoreError

from penstock_broker.call import Answerer, Call, Caller, NotReady
from penstock_broker.catalog import Place, QueueCatalog, QueueRecord
from penstock_broker.counters import Counters
from penstock_broker.lane import Lane, Participant
from penstock_broker.ports import Ports
from penstock_broker.queues import limits
from penstock_broker.queues.queue import Budget, LoadArrivals, LoadContent, Queue
from penstock_broker.queues.segment import Run
from penstock_broker.runtime import Alarm, Runtime, Waiter

log = structlog.get_logger()

DELIVERY_PAGE = 10_000
PUSH_MESSAGES = 500
"""The most messages one push carries."""
RELEASE_SECONDS = 1.0
"""The pause before a release that failed is tried again."""
PUSH_BYTES = 1024 * 1024
"""A push ends with the message before the one that brings it beyond this."""


class QueueService:
    """See the module. `start(function, *arguments)` starts a background task of the server."""

    def __init__(
        self,
        store: Store,
        catalog: QueueCatalog,
        ports: Ports,
        counters: Counters,
        secret: bytes,
        budget: Budget,
        start: Callable[..., None],
    ) -> None:
        self.catalog = catalog
        self.lane: Lane
        self._store = store
        self._ports = ports
        self._counters = counters
        self._secret = secret
        self._budget = budget
        self._start = start
        self.runtimes: dict[LogId, Runtime] = {}
        self._loading: dict[LogId, trio.Event] = {}
        self._generation = 0
        """Grows when all memory is discarded: what was read before must not be used."""
        self._alarms: list[Alarm] = []
        self._alarm_number = 0
        self._leftovers: dict[Answerer, list[tuple[QueueRecord, set[int]]]] = {}
        """What ended consumers of a connection hold in flight, to be released when it ends."""
        self._earlier = trio.Event()
        self._uses = 0

    # Finding queues

    def record(self, caller: Caller, name: str) -> QueueRecord:
        """The queue's record, or QueueDoesNotExist."""
        record = self.catalog.get(Place(caller.account, caller.region), name)
        if record is None:
            raise QueueDoesNotExist(f"there is no queue {name[:100]!r}")
        return record

    def runtime(self, caller: Caller, name: str) -> Runtime:
        """The loaded queue (and its dead-letter queue is loaded as well), or NotReady to load it."""
        return self.runtime_of(self.record(caller, name))

    def runtime_of(self, record: QueueRecord) -> Runtime:
        """Likewise, by record."""
        runtime = self.runtimes.get(record.log_id)
        dead_letter = self._dead_letter_record(record)
        if runtime is None or (dead_letter is not None and dead_letter.log_id not in self.runtimes):
            raise NotReady(lambda: self._load_chain(record))
        self._uses += 1
        runtime.used = self._uses
        return runtime

    def _dead_letter_record(self, record: QueueRecord) -> QueueRecord | None:
        name = record.settings.dead_letter_queue
        return self.catalog.get(record.place, name) if name else None

    async def _load_chain(self, record: QueueRecord) -> None:
        """Loads a queue and its dead-letter queue."""
        await self.load(record)
        dead_letter = self._dead_letter_record(record)
        if dead_letter is not None:
            await self.load(dead_letter)

    async def load(self, record: QueueRecord) -> None:
        """Loads a queue unless it is there; whoever comes second waits for the first. StoreFailed when the store fails."""
        if record.log_id in self.runtimes:
            return
        running = self._loading.get(record.log_id)
        if running is not None:
            await running.wait()
            return
        self._loading[record.log_id] = done = trio.Event()
        generation = self._generation
        try:
            queue = await self._ports.in_thread(self._restore, record)
        except KeyError:
            raise QueueDoesNotExist(f"queue {record.name!r} was deleted") from None
        except StoreError as error:
            self._counters.load_errors += 1
            log.error("queue not loaded", queue=record.name, error=str(error))
            raise StoreFailed("the queue could not be loaded from the store") from error
        finally:
            del self._loading[record.log_id]
            done.set()
        self._counters.loads += 1
        if generation != self._generation:
            queue.shed()
            raise StoreFailed("the store was in doubt while the queue was loaded")
        current = self.catalog.get(record.place, record.name)
        if current is not None and current.log_id == record.log_id:
            queue.settings = current.settings
            self.runtimes[record.log_id] = runtime = Runtime(current, queue)
            self.settle(runtime)

    def _restore(self, record: QueueRecord) -> Queue:
        """Runs in a thread."""
        store, log_id, now_ms = self._store, record.log_id, self._ports.now_ms()
        row = store.load_log(log_id, now_ms)
        deliveries: list[DeliveryRow] = []
        while True:
            page = store.load_deliveries(log_id, deliveries[-1].number if deliveries else -1, DELIVERY_PAGE)
            deliveries += page
            if len(page) < DELIVERY_PAGE:
                break
        touched: list[LoadedSegment] = []
        firsts = Queue.segments_named(deliveries)
        for start in range(0, len(firsts), 500):
            touched += store.locate_segments(log_id, firsts[start : start + 500])
        deduplication = store.load_deduplication(log_id, now_ms - limits.PRODUCER_WINDOW_MS)
        return Queue.restore(
            record.name, record.settings, self._secret, self._budget, row, deliveries, touched, deduplication, now_ms
        )

    # The lane's side

    def published(self, participant: Participant, woke: bool) -> None:
        """A commit with this queue's changes is durable."""
        assert isinstance(participant, Queue)
        runtime = self.runtimes.get(participant.log_id)
        if runtime is not None and runtime.queue is participant:
            self.settle(runtime)

    def discarded(self, participant: Participant, error: PenstockError) -> None:
        """A commit failed: the queue's memory goes, and whoever waits for it is told."""
        assert isinstance(participant, Queue)
        runtime = self.runtimes.get(participant.log_id)
        if runtime is not None and runtime.queue is participant:
            self.drop(runtime, error)

    def drop(self, runtime: Runtime, error: PenstockError) -> None:
        """Forgets a loaded queue."""
        runtime.dropped = True
        runtime.queue.shed()
        self.runtimes.pop(runtime.record.log_id, None)
        self._silence(runtime)
        for waiter in runtime.consumers:
            if waiter.held:
                # Its client may still be at work on them: they are released when the connection ends.
                self._leftovers.setdefault(waiter.call.session, []).append((runtime.record, waiter.held))
        for waiter in [*runtime.waiters, *runtime.parked, *runtime.consumers]:
            runtime.leave(waiter)
            waiter.call.fail(error)
        runtime.consumers.clear()

    def drop_all(self, error: PenstockError) -> None:
        """Forgets every loaded queue, and those that are being loaded."""
        self._generation += 1
        for runtime in list(self.runtimes.values()):
            self.drop(runtime, error)

    def settle(self, runtime: Runtime) -> None:
        """Looks after a queue that something was done to: see the module."""
        if runtime.dropped:
            return
        queue = runtime.queue
        if runtime.repeats:
            self._repeat_attempts(runtime)
        if runtime.waiters and queue.has_ready:
            self._serve(runtime)
        if runtime.waiters:
            self._time_out(runtime)
        want = queue.wants()
        if want is not None:
            self._start(self._page_in, runtime, want)
        if queue.is_dirty:
            self.lane.touch(queue)
        self._set_alarm(runtime)
        self._bound_memory(runtime)

    def retention_changed(self, runtime: Runtime) -> None:
        """Settings changed: what depends on time is looked at anew."""
        runtime.queue.sweep_soon(self._ports.now_ms())
        self.settle(runtime)

    def _when_durable(self, call: Call, reply: Any) -> None:
        def done(error: PenstockError | None) -> None:
            if error is None:
                call.reply(reply)
            else:
                call.fail(error)

        self.lane.submit(done, call.size_bytes)

    # Paging

    async def _page_in(self, runtime: Runtime, want: LoadArrivals | LoadContent) -> None:
        queue = runtime.queue
        try:
            if isinstance(want, LoadContent):
                rows = await self._ports.in_thread(self._store.load_segments, want.keys)
            else:
                rows = await self._ports.in_thread(
                    self._store.load_arrivals,
                    queue.log_id,
                    want.after,
                    want.until_due_ms,
                    limits.PAGE_SEGMENTS,
                    limits.PAGE_BYTES,
                )
        except StoreError as error:
            self._counters.load_errors += 1
            log.error("page not loaded", queue=queue.name, error=str(error))
            await trio.sleep(1.0)
            queue.load_failed()
            self.settle(runtime)
            return
        self._counters.loads += 1
        if runtime.dropped:
            return  # its content would count against the budget for ever
        now_ms = self._ports.now_ms()
        if isinstance(want, LoadContent):
            queue.loaded_content(want, rows, now_ms)
        else:
            # A page ends early only when a limit was reached.
            payload = sum(len(one.segment.payload or b"") for one in rows)
            complete = len(rows) < limits.PAGE_SEGMENTS and payload < limits.PAGE_BYTES
            queue.loaded_arrivals(want, rows, complete=complete, now_ms=now_ms)
        self.settle(runtime)

    def _bound_memory(self, keep: Runtime) -> None:
        """Queues not used for longest give up content until the budget holds."""
        if self._budget.used_bytes <= self._budget.limit_bytes:
            return
        for runtime in sorted(self.runtimes.values(), key=lambda one: one.used):
            if runtime is not keep and runtime.queue.content_bytes:
                runtime.queue.shed()
                if self._budget.used_bytes <= self._budget.limit_bytes:
                    return

    # Sending, receiving, deleting

    def send(self, call: Call, request: messages.SendMessages) -> None:
        """SendMessages."""
        runtime = self.runtime(call.caller, request.queue)
        self.lane.check_adds()
        reply = runtime.queue.send(request, call.caller.producer, self._ports.now_ms())
        self.lane.touch(runtime.queue)
        self._when_durable(call, reply)

    def receive(self, call: Call, request: messages.ReceiveMessages) -> None:
        """ReceiveMessages."""
        runtime = self.runtime(call.caller, request.queue)
        if request.attempt_id and runtime.queue.fifo:
            self.lane.check_adds()  # it has to be remembered
        wait_ms = runtime.record.settings.receive_wait_ms if request.wait_ms is None else request.wait_ms
        if wait_ms > limits.MAX_WAIT_MS:
            raise InvalidRequest(f"wait_ms = {wait_ms}; at most {limits.MAX_WAIT_MS}")
        waiter = Waiter(
            call,
            runtime,
            _fitting(request.max_messages, call),
            min(request.max_bytes, reply_bytes(call)),
            request.visibility_timeout_ms,
            request.attempt_id,
            self._ports.now_ms() + wait_ms,
        )
        if not call.session.has_room:
            self._check_waiters(runtime)
            call.waiter = waiter
            self._park(runtime, waiter)
        # Those who came before are served first.
        elif runtime.receives or not self._offer(runtime, waiter):
            self._check_waiters(runtime)
            call.waiter = waiter
            runtime.wait(waiter)
        self.settle(runtime)

    def _check_waiters(self, runtime: Runtime) -> None:
        if runtime.waiting >= limits.MAX_WAITERS:
            raise LimitExceeded(f"{limits.MAX_WAITERS} receives and consumers wait on this queue")

    def _offer(self, runtime: Runtime, waiter: Waiter) -> bool:
        """Tries to serve a waiter; whether it got something. A consumer at the limit of messages in flight just waits."""
        queue = runtime.queue
        now_ms = self._ports.now_ms()
        limit = waiter.max_messages if waiter.credit is None else min(waiter.credit, waiter.max_messages)
        dead_letter = self._dead_letter_runtime(runtime)
        if dead_letter is None and self._dead_letter_record(runtime.record) is not None:
            # It was dropped after this waiter came. Without it a message might be given out too often.
            if not runtime.awaits_dead_letter:
                runtime.awaits_dead_letter = True
                self._start(self._load_dead_letter, runtime)
            return False
        if runtime.awaits_room:
            return False
        while True:
            try:
                reply, taken = queue.receive(
                    limit, waiter.max_bytes, waiter.visibility_ms, waiter.attempt_id, dead_letter is not None, now_ms
                )
            except TooManyInFlight:
                if waiter.credit is None:
                    raise
                return False
            if taken is not None and taken.dead:
                assert dead_letter is not None
                if self.lane.refuses_sends():
                    self._put_off(runtime, taken.dead)
                    break
                self._bury(runtime, taken.dead, dead_letter, now_ms)
                if reply is None and not taken.missing:
                    continue
            break
        if reply is None:
            return False
        if not reply.deliveries:
            return False
        self.lane.touch(queue)
        number = int.from_bytes(reply.deliveries[0].receipt[:8], "big")
        if waiter.credit is None:
            runtime.attempt_answered(waiter.attempt_id)
        else:
            waiter.credit -= sum(len(delivery.bodies) for delivery in reply.deliveries)
            if waiter.release:
                waiter.held.add(number)
                if len(waiter.held) > 64:
                    waiter.held = {one for one in waiter.held if one in queue.deliveries}
        self._deliver_when_durable(waiter, reply, number)
        return True

    def _deliver_when_durable(self, waiter: Waiter, reply: messages.ReceiveReply, number: int) -> None:
        """Sends what was taken once that is durable. Whoever is gone by then never had it: it is released."""
        call, session = waiter.call, waiter.call.session
        size_bytes = sum([sum(map(len, delivery.bodies)) for delivery in reply.deliveries])
        session.promise(size_bytes)

        def done(error: PenstockError | None) -> None:
            if error is not None:
                call.fail(error)
            elif call.answered:
                if not (waiter.attempt_id and waiter.runtime.queue.fifo):  # (Else whoever repeats the attempt gets it.)
                    self._release(waiter.runtime, {number})
            elif waiter.credit is None:
                call.reply(reply)
            else:
                call.push(reply)
            session.promise(-size_bytes)

        self.lane.submit(done, call.size_bytes if waiter.credit is None else 0)

    def _park(self, runtime: Runtime, waiter: Waiter) -> None:
        runtime.park(waiter)
        waiter.call.session.park(waiter.call)

    def unpark(self, waiter: Waiter) -> None:
        """The connection of a waiter has room again."""
        runtime = waiter.runtime
        if waiter in runtime.parked:
            runtime.leave(waiter)
            if waiter.credit != 0:
                runtime.wait(waiter)
            self.settle(runtime)

    def _dead_letter_runtime(self, runtime: Runtime) -> Runtime | None:
        record = self._dead_letter_record(runtime.record)
        return self.runtimes.get(record.log_id) if record is not None else None

    def _put_off(self, runtime: Runtime, dead: list[Run]) -> None:
        """A full store takes no message that moves: this queue serves nobody until there is room."""
        for run in dead:
            runtime.queue.put_back(run)
        runtime.awaits_room = True
        self._start(self._wait_for_room, runtime)

    async def _wait_for_room(self, runtime: Runtime) -> None:
        while self.lane.refuses_sends() and not runtime.dropped:  # noqa: ASYNC110 - rare, and for nobody in particular
            await trio.sleep(1.0)
        runtime.awaits_room = False
        self.settle(runtime)

    async def _load_dead_letter(self, runtime: Runtime) -> None:
        """Loads the dead-letter queue that waiters of this queue need, however long it takes."""
        while not runtime.dropped and self._dead_letter_runtime(runtime) is None:
            record = self._dead_letter_record(runtime.record)
            if record is None:
                break
            try:
                await self.load(record)
            except PenstockError:
                await trio.sleep(1.0)
        runtime.awaits_dead_letter = False
        self.settle(runtime)

    def _bury(self, source: Runtime, dead: list[Run], target: Runtime, now_ms: int) -> None:
        """Moves messages to the dead-letter queue, in the commit that everything else of now is in."""
        fifo = source.queue.fifo
        for columns, index, run in source.queue.bury(dead):
            segment = run.segment
            own = columns.sent_ms[index] if columns.sent_ms is not None else None
            sent_ms = segment.sent_ms if own is None else own
            origin = columns.origins[index] if columns.origins is not None else None
            values = {
                "sources": source.record.name,
                "origins": origin or messages_id(source.queue.log_id, segment.first + index),
            }
            # SQS: a standard queue keeps the enqueue time, a FIFO queue resets it.
            target.queue.adopt(columns, index, values, now_ms if fifo else sent_ms, now_ms)
            source.queue.counters.dead_lettered += 1
        self.lane.touch(source.queue)
        self.lane.touch(target.queue)
        source.burying += 1

        def buried(_: PenstockError | None) -> None:
            source.burying -= 1

        self.lane.submit(buried)

    def _serve(self, runtime: Runtime) -> None:
        """Serves who waits, in turn, while there is something."""
        waiters = runtime.waiters
        for _ in range(len(waiters)):
            if not waiters or not runtime.queue.has_ready:
                return
            waiter = next(iter(waiters))
            if not waiter.call.session.has_room:
                self._park(runtime, waiter)
                continue
            try:
                if not self._offer(runtime, waiter):
                    return
            except PenstockError as error:
                self._stop(waiter)
                waiter.call.fail(error)
                continue
            if waiter.credit:
                waiters.move_to_end(waiter)
            else:
                runtime.leave(waiter)

    def _repeat_attempts(self, runtime: Runtime) -> None:
        """Answers receives that were answered before, and waited for nothing but content from the store."""
        now_ms = self._ports.now_ms()
        for waiter in list(runtime.repeats):
            if not runtime.queue.knows_attempt(waiter.attempt_id, now_ms):
                del runtime.repeats[waiter]
            elif not waiter.call.session.has_room:
                self._park(runtime, waiter)
            else:
                try:
                    served = self._offer(runtime, waiter)
                except PenstockError as error:
                    waiter.call.fail(error)
                    served = True
                if served:
                    runtime.leave(waiter)

    def _time_out(self, runtime: Runtime) -> None:
        """Answers receives that have waited long enough; none while a load may still bring something. That there is nothing is
        told once what was taken out for the dead-letter queue can be found there."""
        now_ms = self._ports.now_ms()
        deadline = runtime.next_deadline()
        if deadline is None or deadline > now_ms or runtime.queue.may_load:
            return
        for waiter in runtime.overdue(now_ms):
            runtime.queue.counters.empty_receives += 1
            nothing = messages.ReceiveReply(runtime.queue.log_id, [], 0)
            if runtime.burying:
                self._when_durable(waiter.call, nothing)
            else:
                waiter.call.reply(nothing)

    def delete(self, call: Call, request: messages.DeleteMessages) -> None:
        """DeleteMessages."""
        runtime = self.runtime(call.caller, request.queue)
        if not request.receipts:
            raise BatchEmpty()
        failures = runtime.queue.delete(request.receipts, self._ports.now_ms())
        self.settle(runtime)
        self._when_durable(call, messages.ReceiptReply(failures))

    def change_visibility(self, call: Call, request: messages.ChangeVisibility) -> None:
        """ChangeVisibility."""
        runtime = self.runtime(call.caller, request.queue)
        if not request.receipts:
            raise BatchEmpty()
        failures = runtime.queue.change_visibility(request.receipts, request.timeouts_ms, self._ports.now_ms())
        self.settle(runtime)
        self._when_durable(call, messages.ReceiptReply(failures))

    # Consumers

    def consume(self, call: Call, request: messages.Consume) -> None:
        """Consume. The session gives `call.waiter` credit and ends it."""
        runtime = self.runtime(call.caller, request.queue)
        if not 1 <= request.credit <= limits.MAX_BATCH * 10:
            raise InvalidRequest(f"credit = {request.credit}; it must be from 1 to {limits.MAX_BATCH * 10}")
        visibility_ms = request.visibility_timeout_ms
        if visibility_ms is not None and visibility_ms > limits.MAX_VISIBILITY_TIMEOUT_MS:
            raise InvalidRequest(f"visibility_timeout_ms = {visibility_ms}; at most {limits.MAX_VISIBILITY_TIMEOUT_MS}")
        self._check_waiters(runtime)
        waiter = Waiter(
            call,
            runtime,
            _fitting(PUSH_MESSAGES, call),
            min(PUSH_BYTES, reply_bytes(call)),
            visibility_ms,
            "",
            2**62,
            credit=request.credit,
            release=request.release,
        )
        runtime.consumers[waiter] = None
        runtime.wait(waiter)
        call.waiter = waiter
        self.settle(runtime)

    def credit(self, waiter: Waiter, count: int) -> None:
        """Gives a consumer more credit."""
        runtime = waiter.runtime
        if runtime.dropped or waiter.credit is None or waiter not in runtime.consumers:
            return  # (A consumer that was cancelled would get messages that nobody sends on.)
        if waiter.credit <= 0 and count > 0 and waiter in runtime.consumers and waiter not in runtime.parked:
            runtime.wait(waiter)
        waiter.credit = min(waiter.credit + count, limits.MAX_BATCH * 10)
        self.settle(runtime)

    def end_waiter(self, waiter: Waiter, error: PenstockError | None = None) -> None:
        """Ends a waiting receive or a consumer; nothing happens when it waits no more. It is answered with the error, or else
        as one that was cancelled (nothing when its connection is gone)."""
        if not self._stop(waiter):
            return
        if error is not None:
            waiter.call.fail(error)
        elif waiter.credit is None:
            waiter.call.fail(Cancelled())
        elif not waiter.call.answered:
            self._when_durable(waiter.call, Empty())
        self.settle(waiter.runtime)

    def _stop(self, waiter: Waiter) -> bool:
        """Nothing is taken for it any more; whether it still waited."""
        runtime = waiter.runtime
        waited = runtime.leave(waiter)
        if waiter not in runtime.consumers:
            return waited
        del runtime.consumers[waiter]
        if waiter.held:
            self._release(runtime, waiter.held)
        return True

    def _release(self, runtime: Runtime, numbers: set[int]) -> None:
        """What is left in flight of these deliveries becomes visible, even if the commit of it fails."""
        if runtime.dropped:
            self._start(self._release_later, runtime.record, numbers)
            return
        now_ms = self._ports.now_ms()
        if sum(runtime.queue.release(number, now_ms) for number in sorted(numbers)):

            def done(error: PenstockError | None) -> None:
                if error is not None:
                    self._start(self._release_later, runtime.record, numbers, RELEASE_SECONDS)

            self.lane.submit(done)
            self.settle(runtime)

    async def _release_later(self, record: QueueRecord, numbers: set[int], pause_seconds: float = 0) -> None:
        """Likewise for a queue that has to be loaded first, however long that takes."""
        await trio.sleep(pause_seconds)
        while True:
            current = self.catalog.get(record.place, record.name)
            if current is None or current.log_id != record.log_id:
                return
            with contextlib.suppress(PenstockError):  # counted and logged where it was raised
                await self.load(current)
            runtime = self.runtimes.get(record.log_id)
            if runtime is not None:
                self._release(runtime, numbers)
                return
            await trio.sleep(RELEASE_SECONDS)

    def session_ended(self, session: Answerer) -> None:
        """A connection is gone: what its consumers held before their queue was dropped is released."""
        for record, numbers in self._leftovers.pop(session, ()):
            self._start(self._release_later, record, numbers)

    # Time

    def _set_alarm(self, runtime: Runtime) -> None:
        deadline = runtime.queue.next_deadline()
        if runtime.waiters:
            # While a load may bring something nobody is sent away: all are looked after when it ends. (Whether one is overdue
            # does not count here: it may have become so since `_time_out` looked, and nobody would look again.)
            waited = runtime.next_deadline()
            if waited is not None and (deadline is None or waited < deadline) and not runtime.queue.may_load:
                deadline = waited
        if deadline is None or deadline >= 2**61:
            return
        if runtime.alarm is not None and runtime.alarm[0] <= deadline:
            return
        self._silence(runtime)
        self._alarm_number += 1
        if not self._alarms or deadline < self._alarms[0][0]:
            self._earlier.set()
        runtime.alarm = [deadline, self._alarm_number, runtime]
        heapq.heappush(self._alarms, runtime.alarm)
        if len(self._alarms) > 64 + 2 * len(self.runtimes):
            self._alarms = [alarm for alarm in self._alarms if alarm[2] is not None]
            heapq.heapify(self._alarms)

    def _silence(self, runtime: Runtime) -> None:
        if runtime.alarm is not None:
            runtime.alarm[2] = None
            runtime.alarm = None

    def next_deadline(self) -> int | None:
        """When `tick` has something to do."""
        return self._alarms[0][0] if self._alarms else None

    def tick(self) -> None:
        """Lets time pass for every queue whose alarm is due."""
        now_ms = self._ports.now_ms()
        while self._alarms and self._alarms[0][0] <= now_ms:
            runtime = heapq.heappop(self._alarms)[2]
            if runtime is None:
                continue
            runtime.alarm = None
            runtime.queue.expire(now_ms)
            self.settle(runtime)

    async def run_timer(self) -> None:
        """Sleeps until the next deadline, for ever: the only clock of all queues."""
        while True:
            self._earlier = trio.Event()
            deadline = self.next_deadline()
            if deadline is None:
                await self._earlier.wait()
                continue
            seconds = (deadline - self._ports.now_ms()) / 1000
            with trio.move_on_after(max(0.0, seconds)):
                await self._earlier.wait()
            await trio.lowlevel.checkpoint()
            self.tick()


def reply_bytes(call: Call) -> int:
    """How much content an answer may have: the frame's limit, less an eighth for all else that it says."""
    return call.session.max_frame_bytes * 7 // 8


def _fitting(count: int, call: Call) -> int:
    """At most so many messages that what is said about each fits as well."""
    return min(count, call.session.max_frame_bytes // 64)


def messages_id(log_id: LogId, sequence: int) -> bytes:
    """A message id: the log and the sequence number, 16 bytes."""
    return log_id.to_bytes(8, "big") + sequence.to_bytes(8, "big")
