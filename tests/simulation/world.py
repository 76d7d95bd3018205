"""The world of one seed: clock, network, disk and the broker's lives, all drawn from one generator.

The same seed gives the same run, step by step: trio's scheduler is made deterministic (as Hypothesis's plugin does it), the
clock is a MockClock, the store is in memory, "threads" run inline and then sleep for a drawn time, streams are in memory,
chopped and delayed. A crash cuts the broker from everything, at whatever step it is, then cancels it; what it had
committed is there for the next life, nothing else is.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import structlog
import trio
import trio._core._run as trio_run
import trio.testing
from penstock_broker import move_tasks, queue_service
from penstock_broker.broker import Broker, BrokerOptions, running
from penstock_broker.catalog import MOVE_TASK
from penstock_broker.lane import Lane
from penstock_broker.ports import Ports
from penstock_broker.queues import limits
from penstock_broker.queues.deduplication import Deduplication
from penstock_broker.queues.queue import LoadArrivals, Queue
from penstock_storage.interface import Commit, CommitUnknown, Incarnation, StoreUnreachable
from penstock_storage.memory import Fault, MemoryDisk, MemoryStore

from tests.checkers.history import History
from tests.simulation.network import SimulatedStream
from tests.simulation.weather import Weather

EPOCH_MS = 1_700_000_000_000

_CALLS_THAT_COMMIT = {"commit", "sweep", "next_id"}


class LateStore(MemoryStore):
    """A memory store whose commits of unknown outcome may become durable later: at the latest before the next
    incarnation, as a database does whose COMMIT was on its way when the connection broke."""

    def __init__(self, world: World, faults: Callable[[str], Fault | None]) -> None:
        super().__init__(world.disk, faults)
        self._world = world

    def commit(self, incarnation: Incarnation, commit: Commit) -> None:
        """Commits; what is unknown and lost may be late instead."""
        try:
            super().commit(incarnation, commit)
        except CommitUnknown:
            if self._world.next_is_late:
                self._world.next_is_late = False
                self._world.late.append(commit)
            raise

    def acquire(self, node: str, address: str, now_ms: int) -> Incarnation:
        """Whatever was on its way arrives before a new incarnation is given."""
        late, self._world.late = self._world.late, []
        for commit in late:
            self._apply(commit)
        return super().acquire(node, address, now_ms)


class Life:
    """One life of the broker, from its start to its end."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dead = False
        self.scope = trio.CancelScope()
        self.broker: Broker | None = None
        self.sessions: trio.Nursery | None = None
        self.streams: list[SimulatedStream] = []
        self.offset_ms = world.offset_ms
        self.ended = trio.Event()

    def now_ms(self) -> int:
        """The wall clock of this life."""
        return EPOCH_MS + self.offset_ms + int(trio.current_time() * 1000)

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a store call inline, between two drawn pauses; nothing of it happens once this life is over."""
        weather, chance = self.world.weather, self.world.chance
        gone = CommitUnknown("dead") if function.__name__ in _CALLS_THAT_COMMIT else StoreUnreachable("dead")
        with trio.CancelScope(shield=True):
            await trio.sleep(chance.random() * weather.lag)
            if self.dead:
                raise gone
            self.world.trace(function.__name__)
            try:
                result = function(*arguments)
            except Exception:
                self.world.watch_lost(function, arguments)
                raise
            finally:
                await trio.sleep(chance.random() * weather.lag)
            if self.dead:
                self.world.watch_lost(function, arguments)
                raise gone
            if isinstance(result, Queue) and result.in_flight:
                self.world.marks["loaded while messages are in flight"] += 1
            return result

    def faults(self, point: str) -> Fault | None:
        """What the store is told to get wrong."""
        world = self.world
        weather = world.weather
        if not world.stormy or self.broker is None:
            return None
        draw = world.chance.random()
        if point in ("load", "acquire"):
            if draw >= weather.load_error * (3 if point == "acquire" else 1):
                return None
            world.marks[f"{point} failed"] += 1
            return Fault.FAIL
        for share, fault in (
            (weather.fail, Fault.FAIL),
            (weather.unknown / 3, Fault.UNKNOWN_APPLIED),
            (weather.unknown * 2 / 3, Fault.UNKNOWN_LOST),
            (weather.full, Fault.FULL),
        ):
            if draw < share:
                name = fault.name
                if fault is Fault.UNKNOWN_LOST and point == "commit" and draw < share / 2:
                    world.next_is_late = True
                    name = "UNKNOWN_LATE"
                world.marks[name] += 1
                return fault
            draw -= share
        return None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Lives."""
        world = self.world
        store = LateStore(world, self.faults)
        ports = Ports(self.now_ms, world.chance.randbytes, self.in_thread)
        try:
            with self.scope:
                async with running(store, ports, BrokerOptions(), bytes(32)) as broker:
                    self.broker = broker
                    if any(task.state == move_tasks.RUNNING for task in broker.moves._tasks.values()):
                        world.marks["move task resumed after a restart"] += 1
                    async with trio.open_nursery() as sessions:
                        self.sessions = sessions
                        task_status.started()
                        await trio.sleep_forever()
        finally:
            self.write_down()
            self.ended.set()

    def write_down(self) -> None:
        """Records what went wrong inside the broker in this life."""
        record = self.world.history.begin("broker", "life", trio.current_time())
        record.outcome, record.completed, record.value = "ok", trio.current_time(), {}
        if self.broker is not None:
            counters = self.broker.counters
            record.value = dict(
                counters.background_errors + Counter({"InternalError": counters.connections_failed["InternalError"]})
            )

    def crash(self) -> None:
        """Cuts it off from everything, then ends it."""
        self.dead = True
        for stream in self.streams:
            stream.cut()
        self.scope.cancel()

    async def stop(self) -> None:
        """Ends it as SIGTERM does."""
        assert self.broker is not None and self.sessions is not None
        await self.broker.drain(2)
        self.sessions.cancel_scope.cancel()
        self.scope.cancel()
        await self.ended.wait()


class World:
    """See the module."""

    def __init__(self, seed: int, weather: Weather | None = None) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.weather = weather or Weather.drawn(self.chance)
        self.disk = MemoryDisk(hashlib.sha256(str(seed).encode()).digest())
        self.history = History()
        self.marks: Counter[str] = Counter()
        self.offset_ms = 0
        self.stormy = False
        self.lives = 0
        self.life: Life | None = None
        self.late: list[Commit] = []
        self.next_is_late = False
        self.limbo: trio.Nursery | None = None
        self.fifo_delay = 0.0
        self.identities: dict[tuple[str, str], tuple[int | None, int]] = {}
        self.nursery: trio.Nursery | None = None
        self._hash = hashlib.sha256()

    def trace(self, what: str) -> None:
        """A step that the run's hash covers."""
        self._hash.update(f"{what}@{trio.current_time():.9f};".encode())

    @property
    def trace_hash(self) -> str:
        """Names the run, step by step."""
        return self._hash.hexdigest()

    def watch_lost(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Marks what it was that a failed or lost commit had in it."""
        if function.__name__ != "commit" or self.life is None or self.life.broker is None:
            return
        commit: Commit = arguments[1]
        dead = {record.log_id for record in self.life.broker.catalog if record.name.startswith("dead")}
        if any(row.log_id in dead for row in commit.insert_segments):
            self.marks["commit into a dead-letter queue lost"] += 1
        if any(row.kind == MOVE_TASK for row in commit.upsert_resources) and commit.insert_segments:
            self.marks["commit of a move lost"] += 1
        if commit.trims:
            self.marks["commit of a purge lost"] += 1

    async def start_broker(self) -> None:
        """Starts the next life."""
        assert self.nursery is not None
        life = Life(self)
        await self.nursery.start(life.run)
        self.lives += 1
        self.life = life

    async def restart(self, *, gently: bool = False) -> None:
        """Ends the broker, by a crash or gently, and starts it again after a while, sometimes with another idea of the time."""
        assert self.life is not None
        life, self.life = self.life, None
        self.marks["stop" if gently else "crash"] += 1
        self.trace("stop" if gently else "crash")
        record = self.history.begin("world", "crash", trio.current_time(), gently=gently)
        record.outcome, record.completed = "ok", trio.current_time()
        if gently:
            await life.stop()
        else:
            life.crash()
        await trio.sleep(self.chance.random() * 0.5)
        if self.chance.random() < self.weather.jump:
            self.offset_ms += self.chance.choice((-3_600_000, -2_000, 1_500, 60_000))
            self.history.jumps.append(trio.current_time())
            self.marks["jump"] += 1
        await self.start_broker()

    def connect(self) -> SimulatedStream:
        """A connection to the broker that lives. OSError when none does."""
        life = self.life
        if life is None or life.sessions is None or life.broker is None or life.dead:
            raise ConnectionRefusedError
        near, far = trio.testing.memory_stream_pair()
        lag, chop = self.weather.lag, self.weather.chop
        client, server = SimulatedStream(near, self.chance, lag, chop), SimulatedStream(far, self.chance, lag, chop)
        life.streams += [client, server]
        life.sessions.start_soon(life.broker.serve, server)
        return client

    def deliver_late(self, stream: SimulatedStream, data: bytes) -> None:
        """The client gives up on the stream; the data arrives some seconds later all the same."""
        assert self.limbo is not None
        self.marks["limbo"] += 1
        self.limbo.start_soon(stream.deliver_late, data, self.chance.random() * 4)

    async def chaos(self) -> None:
        """Crashes, stops and cuts, now and then."""
        while True:
            await trio.sleep(0.2 + self.chance.random())
            if self.chance.random() < self.weather.crash:
                await self.restart()
            elif self.chance.random() < self.weather.stop:
                with trio.CancelScope(shield=True):
                    await self.restart(gently=True)
            elif self.life is not None and self.chance.random() < self.weather.cut and self.life.streams:
                self.marks["cut"] += 1
                stream = self.chance.choice(self.life.streams)
                stream.cut()
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await stream.aclose()

    async def run(self, main: Callable[[World], Any]) -> None:
        """Starts a broker, runs `main` beside it, ends."""
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            await self.start_broker()
            await main(self)
            if self.life is not None:
                self.life.crash()
                await self.life.ended.wait()
            nursery.cancel_scope.cancel()

    @contextlib.contextmanager
    def small_limits(self) -> Iterator[None]:
        """The limits of this seed are in force."""
        homes = {"DELIVERY_PAGE": queue_service, "PUSH_MESSAGES": queue_service, "MOVE_BATCH": move_tasks}
        with contextlib.ExitStack() as stack:
            for name, value in self.weather.limits:
                stack.enter_context(mock.patch.object(homes.get(name, limits), name, value))
            yield

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Marks what happens inside the broker, so that a campaign knows what it has tested."""
        marks = self.marks
        answered, wants, attempt, fail = Deduplication.answered, Queue.wants, Deduplication.attempt, Lane._fail

        def watch_answered(one: Deduplication, *arguments: Any) -> Any:
            found = answered(one, *arguments)
            if found is not None:
                marks["retry answered from memory"] += 1
            return found

        def watch_wants(one: Queue) -> Any:
            want = wants(one)
            if want is not None:
                kind = "content"
                if isinstance(want, LoadArrivals):
                    kind = "delayed messages" if want.until_due_ms else "messages"
                marks[f"page of {kind} loaded"] += 1
            return want

        def watch_attempt(one: Deduplication, *arguments: Any) -> Any:
            found = attempt(one, *arguments)
            if found is not None:
                marks["attempt repeated"] += 1
            return found

        def watch_fail(one: Lane, batch: Any, error: Any) -> None:
            if len(batch.callbacks) >= 3:
                marks["group commit lost whole"] += 1
            fail(one, batch, error)

        with (
            mock.patch.object(Deduplication, "answered", watch_answered),
            mock.patch.object(Deduplication, "attempt", watch_attempt),
            mock.patch.object(Queue, "wants", watch_wants),
            mock.patch.object(Lane, "_fail", watch_fail),
        ):
            yield


def simulate(world: World, main: Callable[[World], Any]) -> World:
    """Runs a world to its end under the deterministic scheduler."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    try:
        with (
            mock.patch.object(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
            mock.patch.object(trio_run, "_r", random.Random(world.seed + 1)),
            world.small_limits(),
            world.watching(),
        ):
            trio.run(world.run, main, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        structlog.reset_defaults()
    return world
