"""The world of one seed: clock, network, disk and the broker's lives, all drawn from one generator.

The same seed gives the same run, step by step: trio's scheduler is made deterministic (as Hypothesis's plugin does it), the
clock is a MockClock, the store is in memory, "threads" run inline and then sleep for a drawn time, streams are in memory,
chopped and delayed. A crash cuts the broker from everything, at whatever step it is, then cancels it; what it had
committed is there for the next life, nothing else is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import structlog
import trio
import trio._core._run as trio_run
import trio.testing
from penstock_broker.broker import Broker, BrokerOptions, running
from penstock_broker.ports import Ports
from penstock_storage.interface import CommitUnknown, StoreUnreachable
from penstock_storage.memory import Fault, MemoryDisk, MemoryStore

from tests.checkers.history import History

EPOCH_MS = 1_700_000_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class Weather:
    """How likely what is. Drawn per seed, so that every seed meets another mix."""

    crash: float
    fail: float
    unknown: float
    full: float
    load_error: float
    cut: float
    lag: float
    chop: float
    jump: float
    dead_letters: bool
    redrive: bool
    fifo: bool

    @property
    def is_healthy(self) -> bool:
        """Nothing goes wrong on this seed."""
        return not (self.crash or self.fail or self.unknown or self.full or self.load_error or self.cut)

    @classmethod
    def drawn(cls, chance: random.Random) -> Weather:
        """A mix."""

        def some(share: float, most: float) -> float:
            return chance.uniform(0, most) if chance.random() < share else 0.0

        calm = chance.random() < 0.1
        return cls(
            crash=0 if calm else some(0.6, 0.6),
            fail=0 if calm else some(0.4, 0.08),
            unknown=0 if calm else some(0.5, 0.08),
            full=0 if calm else some(0.2, 0.05),
            load_error=0 if calm else some(0.3, 0.1),
            cut=0 if calm else some(0.5, 0.1),
            lag=some(0.8, 0.05),
            chop=some(0.3, 0.3),
            jump=some(0.3, 1.0),
            dead_letters=chance.random() < 0.5,
            redrive=chance.random() < 0.4,
            fifo=chance.random() < 0.6,
        )


class SimulatedStream(trio.abc.Stream):
    """One end of a connection that delays, chops, and can be cut."""

    def __init__(self, inner: trio.abc.Stream, world: World) -> None:
        self._inner = inner
        self._world = world
        self.is_cut = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Sends, in pieces when the weather is so."""
        data = bytes(data)
        chance, weather = self._world.chance, self._world.weather
        while data:
            size = chance.randint(1, len(data)) if weather.chop and chance.random() < weather.chop else len(data)
            if weather.lag:
                await trio.sleep(chance.random() * weather.lag)
            if self.is_cut:
                raise trio.BrokenResourceError
            await self._inner.send_all(data[:size])
            data = data[size:]

    async def wait_send_all_might_not_block(self) -> None:
        """Never blocks."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receives what is there."""
        if self.is_cut:
            raise trio.BrokenResourceError
        data = await self._inner.receive_some(max_bytes)
        if self.is_cut:
            raise trio.BrokenResourceError
        return data

    async def aclose(self) -> None:
        """Closes."""
        await self._inner.aclose()

    def cut(self) -> None:
        """From now on nothing arrives and nothing leaves."""
        self.is_cut = True


class Life:
    """One life of the broker, from its start to its crash."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dead = False
        self.scope = trio.CancelScope()
        self.broker: Broker | None = None
        self.sessions: trio.Nursery | None = None
        self.streams: list[SimulatedStream] = []
        self.offset_ms = world.offset_ms

    def now_ms(self) -> int:
        """The wall clock of this life."""
        return EPOCH_MS + self.offset_ms + int(trio.current_time() * 1000)

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a store call inline, between two drawn pauses; nothing of it happens once this life is over."""
        weather, chance = self.world.weather, self.world.chance
        with trio.CancelScope(shield=True):
            await trio.sleep(chance.random() * weather.lag)
            if self.dead:
                raise CommitUnknown("dead") if function.__name__ == "commit" else StoreUnreachable("dead")
            self.world.trace(function.__name__)
            try:
                result = function(*arguments)
            finally:
                await trio.sleep(chance.random() * weather.lag)
            if self.dead:
                raise CommitUnknown("dead") if function.__name__ == "commit" else StoreUnreachable("dead")
            return result

    def faults(self, point: str) -> Fault | None:
        """What the store is told to get wrong."""
        world = self.world
        weather = world.weather
        if world.healed or not world.stormy or self.broker is None:
            return None
        draw = world.chance.random()
        if point == "load":
            return Fault.FAIL if draw < weather.load_error else None
        if point == "commit":
            for share, fault in (
                (weather.fail, Fault.FAIL),
                (weather.unknown / 2, Fault.UNKNOWN_APPLIED),
                (weather.unknown / 2, Fault.UNKNOWN_LOST),
                (weather.full, Fault.FULL),
            ):
                if draw < share:
                    world.marks[fault.name] += 1
                    return fault
                draw -= share
        return None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Lives."""
        world = self.world
        store = MemoryStore(world.disk, self.faults)
        ports = Ports(self.now_ms, world.chance.randbytes, self.in_thread)
        with self.scope:
            async with running(store, ports, BrokerOptions(), bytes(32)) as broker:
                self.broker = broker
                async with trio.open_nursery() as sessions:
                    self.sessions = sessions
                    task_status.started()
                    await trio.sleep_forever()
        self.write_down()

    def write_down(self) -> None:
        """Records what went wrong inside the broker in this life."""
        record = self.world.history.begin("broker", "life", trio.current_time())
        record.outcome, record.value = "ok", dict(self.broker.counters.background_errors) if self.broker is not None else {}

    def crash(self) -> None:
        """Cuts it off from everything, then ends it."""
        self.dead = True
        for stream in self.streams:
            stream.cut()
        self.scope.cancel()


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
        self.healed = False
        self.life: Life | None = None
        self._hash = hashlib.sha256()
        self._nursery: trio.Nursery | None = None

    def trace(self, what: str) -> None:
        """A step that the run's hash covers."""
        self._hash.update(f"{what}@{trio.current_time():.9f};".encode())

    @property
    def trace_hash(self) -> str:
        """Names the run, step by step."""
        return self._hash.hexdigest()

    async def start_broker(self) -> None:
        """Starts the next life."""
        assert self._nursery is not None
        life = Life(self)
        await self._nursery.start(life.run)
        self.life = life

    async def restart(self) -> None:
        """Crashes the broker and starts it again after a while, sometimes with another idea of the time."""
        assert self.life is not None
        self.marks["crash"] += 1
        self.trace("crash")
        self.life.crash()
        self.life = None
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
        client, server = SimulatedStream(near, self), SimulatedStream(far, self)
        life.streams += [client, server]
        life.sessions.start_soon(life.broker.serve, server)
        return client

    async def chaos(self) -> None:
        """Crashes and cuts, now and then."""
        while True:
            await trio.sleep(0.2 + self.chance.random())
            if self.chance.random() < self.weather.crash:
                await self.restart()
            elif self.life is not None and self.chance.random() < self.weather.cut * 3 and self.life.streams:
                self.marks["cut"] += 1
                stream = self.chance.choice(self.life.streams)
                stream.cut()
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await stream.aclose()

    async def run(self, main: Callable[[World], Any]) -> None:
        """Starts a broker, runs `main` beside it, ends."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self.start_broker()
            await main(self)
            if self.life is not None:
                self.life.write_down()
                self.life.crash()
            nursery.cancel_scope.cancel()


def simulate(world: World, main: Callable[[World], Any]) -> World:
    """Runs a world to its end under the deterministic scheduler."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    before = trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[attr-defined]
    trio_run._r = random.Random(world.seed + 1)
    try:
        trio.run(world.run, main, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r = before  # type: ignore[attr-defined]
        structlog.reset_defaults()
    return world
