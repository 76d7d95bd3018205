"""The streams of this broker: puts and reads in, decisions by `streams.Shard`, commits through the lane, replies out.

A put is a plain function: it decides against memory, and its reply waits for the commit. A read at the tip is answered from
memory, an older one from the store in a thread; neither needs a commit, for only what is durable is readable. A read with
nothing to give waits at its shard until the next commit brings records or its time is over.

Retention looks at the oldest segments of each shard now and then, and moves the trim horizon; the sweeper removes the rows.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import structlog
import trio
from penstock_protocol.errors import (
    Cancelled,
    InvalidRequest,
    IteratorInvalid,
    LimitExceeded,
    PenstockError,
    ShardClosed,
    ShardDoesNotExist,
    StoreFailed,
    StreamDoesNotExist,
    ThroughputExceeded,
)
from penstock_protocol.stream_messages import Iterator, OpenIterator, PutRecords, PutReply, ReadRecords, RecordRun, Records
from penstock_storage.interface import LogId, SegmentRow, Store, StoreError

from penstock_broker.call import Call, Caller, NotReady
from penstock_broker.catalog import Place
from penstock_broker.counters import Counters
from penstock_broker.lane import Lane
from penstock_broker.ports import Ports
from penstock_broker.queues.limits import PRODUCER_WINDOW_MS
from penstock_broker.stream_catalog import ShardRecord, StreamCatalog, StreamRecord
from penstock_broker.streams import batches, iterators, limits
from penstock_broker.streams.ages import IteratorAge
from penstock_broker.streams.iterators import Iterators
from penstock_broker.streams.settings import StreamSettings
from penstock_broker.streams.shard import Shard, part_of
from penstock_broker.streams.subscription import Subscription
from penstock_broker.streams.throughput import Throughput

if TYPE_CHECKING:
    from penstock_broker.stream_consumers import StreamConsumers

log = structlog.get_logger()

READ_SEGMENTS = 1_000
RETENTION_SECONDS = 60.0
"""How often retention is looked after: records may live so much longer."""
TIP_BUDGET_BYTES = 64 * 1024 * 1024
"""The tips of all shards together; those written longest ago give theirs up."""
MANY_DEADLINES = 1_000
STARTS = ("trim_horizon", "latest", "at", "after", "time")


@dataclasses.dataclass(slots=True, eq=False)
class ShardRuntime:
    """One loaded shard with the reads that wait at its tip. Dropped (never mended) when a commit of it fails."""

    shard: Shard
    waiters: dict[ReadWaiter, None] = dataclasses.field(default_factory=dict)
    subscribers: dict[str, Subscriber] = dataclasses.field(default_factory=dict)
    """Whom its records are pushed to, by the name of the registered consumer."""
    paced: set[str] = dataclasses.field(default_factory=set)
    """Registered consumers that wait until their limit lets more pass."""
    used: int = 0
    dropped: bool = False
    tip_bytes: int = 0
    """What the service counts for it."""
    oldest_ms: int | None = None
    """When its oldest record arrived; None: it has none."""
    iterator_age: IteratorAge = dataclasses.field(default_factory=IteratorAge)
    _throughput: Throughput | None = None

    def throughput(self, settings: StreamSettings) -> Throughput | None:
        """What it lets pass, if its stream asks for limits."""
        if not settings.has_shard_limits:
            return None
        if self._throughput is None:
            self._throughput = Throughput()
        return self._throughput

    def forget(self, consumer: str) -> None:
        """That registered consumer is no more."""
        if self._throughput is not None:
            self._throughput.forget(consumer)


@dataclasses.dataclass(slots=True, eq=False)
class ReadWaiter:
    """A read that waits for the next records."""

    call: Call
    runtime: ShardRuntime
    request: ReadRecords
    position: int
    deadline_ms: int


@dataclasses.dataclass(slots=True, eq=False)
class Subscriber:
    """A registered consumer that the records of a shard are pushed to (`stream_consumers.py`)."""

    call: Call
    runtime: ShardRuntime
    consumer: str
    subscription: Subscription
    loading: bool = False
    """Whether its next records are on their way from the store."""
    parked: bool = False
    """Whether it waits for its connection to have room."""


class StreamService:
    """See the module. `start(function, *arguments)` starts a background task of the server."""

    def __init__(
        self,
        store: Store,
        catalog: StreamCatalog,
        ports: Ports,
        counters: Counters,
        secret: bytes,
        start: Callable[..., None],
    ) -> None:
        self.catalog = catalog
        self.lane: Lane
        self.consumers: StreamConsumers
        self.runtimes: dict[LogId, ShardRuntime] = {}
        self._store = store
        self._ports = ports
        self._counters = counters
        self._iterators = Iterators(secret)
        self._start = start
        self._loading: dict[LogId, trio.Event] = {}
        self._generation = 0
        """Grows when all memory is discarded: what was read before must not be used."""
        self._uses = 0
        self._tip_bytes = 0
        self._deadlines: list[tuple[int, int, ReadWaiter]] = []
        """Also of reads that were answered meanwhile, but never more than half of it."""
        self._many_deadlines = MANY_DEADLINES
        self._numbers = itertools.count()
        self._earlier = trio.Event()

    # Finding shards

    def stream(self, caller: Caller, name: str) -> StreamRecord:
        """The stream's record, or StreamDoesNotExist."""
        record = self.catalog.get(Place(caller.account, caller.region), name)
        if record is None:
            raise StreamDoesNotExist(f"there is no stream {name[:100]!r}")
        return record

    def shard_record(self, stream: StreamRecord, shard: int) -> ShardRecord:
        """The shard's record, or ShardDoesNotExist."""
        record = stream.shards.get(shard)
        if record is None:
            raise ShardDoesNotExist(f"stream {stream.name!r} has no shard {shard}")
        return record

    def runtime(self, record: ShardRecord) -> ShardRuntime:
        """The loaded shard, or NotReady to load it."""
        runtime = self.runtimes.get(record.log_id)
        if runtime is None:
            raise NotReady(lambda: self.load(record.log_id))
        self._uses += 1
        runtime.used = self._uses
        return runtime

    def need(self, records: Iterable[ShardRecord]) -> None:
        """NotReady to load those that are not loaded."""
        missing = [record.log_id for record in records if record.log_id not in self.runtimes]
        if missing:
            raise NotReady(lambda: self._load_all(missing))

    async def _load_all(self, log_ids: list[LogId]) -> None:
        for log_id in log_ids:
            try:
                await self.load(log_id)
            except ShardDoesNotExist:
                if self.catalog.of_log(log_id) is not None:
                    raise

    async def load(self, log_id: LogId) -> None:
        """Loads a shard unless it is there; whoever comes second waits for the first. StoreFailed when the store fails."""
        if log_id in self.runtimes:
            return
        running = self._loading.get(log_id)
        if running is not None:
            await running.wait()
            return
        self._loading[log_id] = done = trio.Event()
        generation = self._generation
        try:
            try:
                runtime = await self._ports.in_thread(self._restore, log_id)
            except KeyError:
                await self.lane.commit()  # Its stream may be waiting for the commit that creates it.
                runtime = await self._ports.in_thread(self._restore, log_id)
        except KeyError:
            raise ShardDoesNotExist("the shard was deleted") from None
        except StoreError as error:
            self._counters.load_errors += 1
            log.error("shard not loaded", log=log_id, error=str(error))
            raise StoreFailed("the shard could not be loaded from the store") from error
        finally:
            del self._loading[log_id]
            done.set()
        self._counters.loads += 1
        found = self.catalog.of_log(log_id)
        if generation != self._generation:
            raise StoreFailed("the store was in doubt while the shard was loaded")
        if found is not None:
            one = found[1].range
            if one.closed_ms is not None:
                runtime.shard.stay_closed(one.end)
            self.runtimes[log_id] = runtime

    def _restore(self, log_id: LogId) -> ShardRuntime:
        """Runs in a thread."""
        now_ms = self._ports.now_ms()
        row = self._store.load_log(log_id, now_ms)
        last = self._last(log_id, row.trimmed, row.reserved)
        oldest = self._store.load_heads(log_id, row.trimmed, 1) if last is not None else []
        shard = Shard.restore(row, last, self._store.load_deduplication(log_id, now_ms - PRODUCER_WINDOW_MS))
        return ShardRuntime(shard, oldest_ms=oldest[0].sent_ms if oldest else None)

    # The lane's side

    def published(self, shard: Shard, *, woke: bool) -> None:
        """A commit with this shard's changes is durable."""
        runtime = self.runtimes.get(shard.log_id)
        if runtime is None or runtime.shard is not shard:
            return
        if woke and runtime.oldest_ms is None:
            runtime.oldest_ms = shard.tip_ms
        if woke and runtime.waiters:
            self._serve(runtime)
        if woke and runtime.subscribers:
            self.consumers.serve(runtime)
        if shard.is_dirty:
            self.lane.touch(shard)
        if woke:
            self._bound_memory(runtime)

    def discarded(self, shard: Shard, error: PenstockError) -> None:
        """A commit failed: the shard's memory goes, and whoever waits for it is told."""
        runtime = self.runtimes.get(shard.log_id)
        if runtime is not None and runtime.shard is shard:
            self.drop(runtime, error)

    def drop(self, runtime: ShardRuntime, error: PenstockError) -> None:
        """Forgets a loaded shard."""
        runtime.dropped = True
        self.runtimes.pop(runtime.shard.log_id, None)
        self._tip_bytes -= runtime.tip_bytes
        runtime.tip_bytes = 0
        for waiter in runtime.waiters:
            waiter.call.waiter = None
            waiter.call.fail(error)
        runtime.waiters.clear()
        for subscriber in list(runtime.subscribers.values()):
            self.consumers.end(subscriber, error)

    def drop_all(self, error: PenstockError) -> None:
        """Forgets every loaded shard, and those that are being loaded."""
        self._generation += 1
        for runtime in list(self.runtimes.values()):
            self.drop(runtime, error)

    def _bound_memory(self, grown: ShardRuntime) -> None:
        self._tip_bytes += grown.shard.tip_bytes - grown.tip_bytes
        grown.tip_bytes = grown.shard.tip_bytes
        if self._tip_bytes <= TIP_BUDGET_BYTES:
            return
        with_tips = [one for one in self.runtimes.values() if one.tip_bytes and one is not grown]
        for runtime in sorted(with_tips, key=lambda one: one.used):
            # (Some more than needed, so that this is not for every commit.)
            self._tip_bytes -= runtime.tip_bytes
            runtime.tip_bytes = 0
            runtime.shard.shed()
            if self._tip_bytes <= TIP_BUDGET_BYTES * 3 // 4:
                return

    # Putting

    def put(self, call: Call, request: PutRecords) -> None:
        """PutRecords."""
        stream = self.stream(call.caller, request.stream)
        runtime = self.runtime(self.shard_record(stream, request.shard))
        self.lane.check_adds()
        shard = runtime.shard
        run, refusal = None, None
        throughput = runtime.throughput(stream.settings)
        try:
            run = shard.put(
                request, call.caller.producer, stream.settings.max_record_bytes, self._ports.now_ms(), throughput
            )  # fmt: skip
        except ShardClosed as error:
            if shard.sealed:
                raise
            # It is being closed: once that is durable, nothing of this batch is ever stored, and the children are there.
            refusal = error
        self.lane.touch(shard)

        def done(error: PenstockError | None) -> None:
            if error is None and run is not None:
                call.reply(PutReply(run.first, run.count if run.count < request.count else None))
            else:
                call.fail(error or refusal or ShardClosed())

        self.lane.submit(done, call.size_bytes)

    # Reading

    def open_iterator(self, call: Call, request: OpenIterator) -> None:
        """OpenIterator."""
        record = self.shard_record(self.stream(call.caller, request.stream), request.shard)
        position = self.place(record, request.start, request.position)
        if position is None:
            self._start(self._find_time, call, record.log_id, request.position)
        else:
            call.reply(self._iterator(record.log_id, position))

    def place(self, record: ShardRecord, start: str, position: int) -> int | None:
        """Where reading a shard begins; None for a time, which has to be searched for. InvalidRequest when it is no place."""
        if start not in STARTS:
            raise InvalidRequest(f"start = {start[:50]!r}; it must be one of {', '.join(STARTS)}")
        shard = self.runtime(record).shard
        if start in ("at", "after") and position > shard.end:
            raise InvalidRequest(f"position = {position}; the shard ends before {shard.end}")
        return {"trim_horizon": shard.trimmed, "latest": shard.end, "at": position, "after": position + 1}.get(start)

    def _iterator(self, log_id: LogId, position: int) -> Iterator:
        return Iterator(self._iterators.issue(iterators.Place(log_id, position), self._ports.now_ms()))

    async def _find_time(self, call: Call, log_id: LogId, at_ms: int) -> None:
        try:
            call.reply(self._iterator(log_id, await self.position_at(log_id, at_ms)))
        except PenstockError as error:
            call.fail(error)

    async def position_at(self, log_id: LogId, at_ms: int) -> int:
        """The first record that arrived at that time or later, or the end. Raises StoreFailed and ShardDoesNotExist."""
        try:
            return int(await self._ports.in_thread(self._position_at, log_id, at_ms))
        except StoreError as error:
            log.error("shard not searched", log=log_id, error=str(error))
            raise StoreFailed() from error
        except KeyError:
            raise ShardDoesNotExist("the shard was deleted") from None

    def _position_at(self, log_id: LogId, at_ms: int) -> int:
        """The first record that arrived at that time or later, or the end: a search by halves, for arrival times never fall.
        Runs in a thread."""
        row = self._store.load_log(log_id, self._ports.now_ms())
        low, high = row.trimmed, row.reserved
        while low < high:
            middle = (low + high) // 2
            heads = self._store.load_heads(log_id, middle, 1)
            if heads and heads[0].sent_ms < at_ms:
                low = heads[0].first + heads[0].count
            else:
                high = middle
        return low

    def _last(self, log_id: LogId, low: int, high: int) -> SegmentRow | None:
        """The newest segment with records from `low` to `high`, without payload: a search by halves."""
        last = None
        while low < high:
            middle = (low + high) // 2
            heads = self._store.load_heads(log_id, middle, 1)
            if heads:
                last = heads[0]
                low = last.first + last.count
            else:
                high = middle
        return last

    def read(self, call: Call, request: ReadRecords) -> None:
        """ReadRecords."""
        if not 1 <= request.max_records <= limits.MAX_READ_RECORDS:
            raise InvalidRequest(f"max_records = {request.max_records}; it must be from 1 to {limits.MAX_READ_RECORDS}")
        if request.wait_ms > limits.MAX_WAIT_MS:
            raise InvalidRequest(f"wait_ms = {request.wait_ms}; at most {limits.MAX_WAIT_MS}")
        now_ms = self._ports.now_ms()
        place = self._iterators.check(request.iterator, now_ms)
        found = self.catalog.of_log(place.log_id)
        if found is None:
            raise ShardDoesNotExist("the shard that the iterator belongs to is gone")
        stream, record = found
        if stream.place != Place(call.caller.account, call.caller.region):
            raise IteratorInvalid()
        runtime = self.runtime(record)
        shard = runtime.shard
        throughput = runtime.throughput(stream.settings)
        if throughput is not None and not throughput.take_read(now_ms):
            shard.counters.throttled_reads += 1
            raise ThroughputExceeded(
                f"a shard of this stream gives {limits.SHARD_READS} reads and {limits.SHARD_BYTES_OUT} bytes per second"
            )
        reading = shard.read(place.position, request.max_records, self._max_bytes(request))
        if reading is None or (reading.runs and not call.session.has_room):
            self._start(self._read_older, call, runtime, place.position, request)
        elif reading.runs or not request.wait_ms or shard.read_out(reading.position):
            self._reply(call, runtime, place.position, reading.runs, reading.position)
        else:
            self._wait(call, runtime, reading.position, request, now_ms)

    @staticmethod
    def _max_bytes(request: ReadRecords) -> int:
        return max(1, min(request.max_bytes, limits.MAX_READ_BYTES))

    def _wait(self, call: Call, runtime: ShardRuntime, position: int, request: ReadRecords, now_ms: int) -> None:
        if len(runtime.waiters) >= limits.MAX_WAITERS:
            raise LimitExceeded(f"{limits.MAX_WAITERS} reads wait at this shard")
        waiter = ReadWaiter(call, runtime, request, position, now_ms + request.wait_ms)
        runtime.waiters[waiter] = None
        call.waiter = waiter
        heapq.heappush(self._deadlines, (waiter.deadline_ms, next(self._numbers), waiter))
        if len(self._deadlines) > self._many_deadlines:
            self._deadlines = [one for one in self._deadlines if one[2] in one[2].runtime.waiters]
            heapq.heapify(self._deadlines)
            self._many_deadlines = max(MANY_DEADLINES, 2 * len(self._deadlines))
        if self._deadlines[0][2] is waiter:
            self._earlier.set()

    def end_waiter(self, waiter: ReadWaiter, error: PenstockError | None = None) -> None:
        """A waiting read ends without records: its client is gone or wants no more, or the broker stops."""
        waiter.runtime.waiters.pop(waiter, None)
        waiter.call.waiter = None
        waiter.call.fail(error or Cancelled())

    def _serve(self, runtime: ShardRuntime) -> None:
        """Answers all who wait: a record is for everybody."""
        waiters, runtime.waiters = runtime.waiters, {}
        for waiter in waiters:
            request = waiter.request
            waiter.call.waiter = None
            reading = runtime.shard.read(waiter.position, request.max_records, self._max_bytes(request))
            if reading is None or (reading.runs and not waiter.call.session.has_room):
                self._start(self._read_older, waiter.call, runtime, waiter.position, request)
            else:
                self._reply(waiter.call, runtime, waiter.position, reading.runs, reading.position)

    def closed(self, log_id: LogId) -> None:
        """A shard takes nothing more: reads at its end learn of its children."""
        runtime = self.runtimes.get(log_id)
        if runtime is not None:
            runtime.shard.seal()
            self._serve(runtime)
            self.consumers.serve(runtime)

    async def _read_older(self, call: Call, runtime: ShardRuntime, position: int, request: ReadRecords) -> None:
        """Reads from the store, once the connection has room for it."""
        session = call.session
        await session.wait_room()
        if call.answered:
            return
        shard = runtime.shard
        position = max(position, shard.trimmed)
        end = shard.end
        max_bytes = self._max_bytes(request)
        promised = max(max_bytes, limits.MAX_BATCH_BYTES)
        session.promise(promised)
        try:
            rows = await self._ports.in_thread(self._store.load_stream, shard.log_id, position, READ_SEGMENTS, max_bytes)
            self._counters.loads += 1
            runs, behind = runs_of(rows, position, end, request.max_records, max_bytes)
            self._reply(call, runtime, position, runs, behind)
        except StoreError as error:
            self._counters.load_errors += 1
            log.error("records not loaded", log=shard.log_id, error=str(error))
            call.fail(StoreFailed())
        finally:
            session.promise(-promised)

    def _reply(self, call: Call, runtime: ShardRuntime, start: int, runs: list[RecordRun], position: int) -> None:
        shard = runtime.shard
        found = self.catalog.of_log(shard.log_id)
        if found is None:
            call.fail(ShardDoesNotExist("the shard was deleted"))
            return
        stream, record = found
        now_ms = self._ports.now_ms()
        over = shard.read_out(position)
        following = b"" if over else self._iterators.issue(iterators.Place(shard.log_id, position), now_ms)
        children = stream.children_of(record.range.shard) if over else []
        behind_ms = behind_of(shard, position, runs, now_ms)
        _, size_bytes = count_out(shard, runs)
        if (throughput := runtime.throughput(stream.settings)) is not None:
            throughput.pay_read(size_bytes)
        runtime.iterator_age.note(max(0, now_ms - runs[-1].arrived_ms) if runs else 0, now_ms)
        call.reply(Records(record.range.shard, max(start, shard.trimmed), runs, following, behind_ms, children))

    # Time

    async def run_timer(self) -> None:
        """Answers reads whose time is over."""
        while True:
            now_ms = self._ports.now_ms()
            while self._deadlines and self._deadlines[0][0] <= now_ms:
                waiter = heapq.heappop(self._deadlines)[2]
                if waiter.runtime.waiters.pop(waiter, self) is None:
                    waiter.call.waiter = None
                    self._reply(waiter.call, waiter.runtime, waiter.position, [], waiter.position)
            while self._deadlines and self._deadlines[0][2] not in self._deadlines[0][2].runtime.waiters:
                heapq.heappop(self._deadlines)
            pause = (self._deadlines[0][0] - now_ms) / 1000 if self._deadlines else float("inf")
            self._earlier = trio.Event()
            with trio.move_on_after(pause):
                await self._earlier.wait()

    async def run_retention(self) -> None:
        """Looks after what is too old, in all streams, for ever."""
        while True:
            for stream in self.catalog:
                for record in list(stream.shards.values()):
                    if self.catalog.of_log(record.log_id) is None:
                        continue  # It is gone meanwhile.
                    try:
                        await self._retain(record.log_id)
                    except PenstockError as error:
                        log.warning("retention waits", stream=stream.name, shard=record.range.shard, error=str(error))
            await trio.sleep(RETENTION_SECONDS)

    async def _retain(self, log_id: LogId) -> None:
        await self.load(log_id)
        while (runtime := self.runtimes.get(log_id)) is not None and (found := self.catalog.of_log(log_id)) is not None:
            bound_ms = self._ports.now_ms() - found[0].settings.retention_ms
            if runtime.oldest_ms is not None and runtime.oldest_ms > bound_ms:
                return
            shard = runtime.shard
            try:
                heads = await self._ports.in_thread(self._store.load_heads, log_id, shard.trimmed, limits.TRIM_PAGE)
            except StoreError as error:
                raise StoreFailed(str(error)) from error
            if runtime.dropped:
                return
            old = [head for head in heads if head.sent_ms <= bound_ms and head.first < shard.end]  # (Arrival times never fall.)
            if old:
                shard.trim(old[-1].first + old[-1].count, sum(one.count for one in old), sum(one.size_bytes for one in old))
                self.lane.touch(shard)
                await self.lane.commit()
            if len(old) < limits.TRIM_PAGE:
                runtime.oldest_ms = heads[len(old)].sent_ms if len(heads) > len(old) else shard.tip_ms
                await self._forget(log_id, bound_ms)
                return

    async def _forget(self, log_id: LogId, bound_ms: int) -> None:
        """A closed shard whose last record has aged out is no more: its children are where reading begins."""
        found = self.catalog.of_log(log_id)
        runtime = self.runtimes.get(log_id)
        if found is None or runtime is None or runtime.shard.trimmed < runtime.shard.end:
            return
        stream, record = found
        if record.range.closed_ms is None or record.range.closed_ms > bound_ms:
            return
        if any(parent in stream.shards for parent in record.range.parents):
            return  # A reader of theirs comes by here.
        row = record.to_row(stream.place, stream.modified_ms)
        await self.lane.commit(lambda commit: commit.delete_resources.append(row))
        current = self.catalog.of_log(log_id)
        if current is not None:
            self.catalog.forget(current[0], record.range.shard)
        if (runtime := self.runtimes.get(log_id)) is not None:
            self.drop(runtime, ShardDoesNotExist("the shard's last record has aged out"))


def behind_of(shard: Shard, position: int, runs: list[RecordRun], now_ms: int) -> int:
    """How long ago the record at `position`, behind what was just read, arrived; 0 at the tip."""
    behind_ms = shard.behind_ms(position, now_ms)
    if behind_ms is None:
        # (What is not in memory is older than what is, and no older than what was just read.)
        behind_ms = max(1, now_ms - runs[-1].arrived_ms) if runs else 1
    return behind_ms


def count_out(shard: Shard, runs: list[RecordRun]) -> tuple[int, int]:
    """Counts what leaves; how many records that is, and how many bytes of them."""
    records = sum(batch.count for run in runs for batch in run.batches)
    size_bytes = sum(batch.size_bytes for run in runs for batch in run.batches)
    shard.counters.records_out += records
    shard.counters.bytes_out += size_bytes
    return records, size_bytes


def runs_of(rows: list[SegmentRow], position: int, end: int, max_records: int, max_bytes: int) -> tuple[list[RecordRun], int]:
    """What a read takes of stored segments, and the sequence number behind it: the end where none is stored up to there, for then
    a crash left a gap."""
    runs: list[RecordRun] = []
    for row in rows:
        if row.first >= end:
            break
        assert row.payload is not None
        run, position = part_of(row.first, row.sent_ms, batches.unpack(row.payload), position, max_records, max_bytes)
        runs.append(run)
        max_records -= sum(one.count for one in run.batches)
        max_bytes -= sum(one.size_bytes for one in run.batches)
        if max_records <= 0 or max_bytes <= 0 or position < row.first + row.count:
            break
    return (runs, position) if runs else (runs, end)
