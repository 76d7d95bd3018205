"""A broker in this process: a store in memory, a clock that jumps, and raw clients that may break every rule.

`@on_jumping_clock` runs an asynchronous test under trio's MockClock: whenever nobody has anything to do, time jumps to the
next deadline, so nothing here sleeps.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import trio
import trio.testing
from penstock_broker.access import Keyring, proof_of
from penstock_broker.broker import Broker, BrokerOptions, running
from penstock_broker.ports import Ports
from penstock_broker.session import SessionLimits
from penstock_protocol import queue_messages as q
from penstock_protocol import session_messages as s
from penstock_protocol.codec import Message
from penstock_protocol.connection import HELLO, Answer, ClientConnection
from penstock_protocol.errors import PenstockError
from penstock_protocol.frames import Kind
from penstock_protocol.operations import BY_NAME, BY_REQUEST
from penstock_storage.interface import Commit
from penstock_storage.memory import Fault, MemoryDisk, MemoryStore

EPOCH_MS = 1_700_000_000_000
SEALING_KEY = bytes(range(32))
PATIENCE_SECONDS = 100_000.0
"""Of virtual time: a test that takes longer hangs."""

AsyncTest = Callable[..., Awaitable[None]]


def on_jumping_clock(test: AsyncTest) -> Callable[..., None]:
    """Runs the test under a clock that jumps to the next deadline whenever everything waits."""

    @functools.wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        async def patiently() -> None:
            with trio.fail_after(PATIENCE_SECONDS):
                await test(*arguments, **fixtures)

        try:
            trio.run(patiently, clock=trio.testing.MockClock(autojump_threshold=0))
        except BaseExceptionGroup as group:
            raise _only(group) from None

    return run


def _only(error: BaseException) -> BaseException:
    """The one exception of nested groups: what failed a test is worth seeing without the nurseries around it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


class Threads:
    """Where store calls run: at once, but those that are held back."""

    def __init__(self) -> None:
        self._held: dict[str, trio.Event] = {}
        self.calls: list[str] = []

    def hold(self, name: str) -> None:
        """Calls of that name wait from now on."""
        self._held[name] = trio.Event()

    def release(self, name: str) -> None:
        """They go on."""
        self._held.pop(name).set()

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """As Ports.in_thread wants it: never abandoned."""
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()
            held = self._held.get(function.__name__)
            if held is not None:
                await held.wait()
            self.calls.append(function.__name__)
            try:
                return function(*arguments)
            finally:
                await trio.lowlevel.checkpoint()


class Peer:
    """A client that writes whatever it is told, and reads when it is asked to."""

    def __init__(self, stream: trio.abc.Stream, name: str) -> None:
        self.stream = stream
        self.name = name
        self.producer = name.encode()[:16].ljust(16, b".")
        self.connection = ClientConnection()
        self.answers: list[Answer] = []
        self.farewell: PenstockError | None = None
        self.at_end = False

    async def write(self, data: bytes) -> None:
        """Bytes as they are."""
        await self.stream.send_all(data)

    def hello_bytes(self, **fields: Any) -> bytes:
        """Magic and Hello."""
        hello = s.Hello(**{"client": self.name, "producer": self.producer, **fields})
        return self.connection.preface() + self.connection.request(BY_NAME["Hello"], hello)[1]

    async def hello(self, **fields: Any) -> s.HelloReply:
        """Opens the connection (up to the challenge, if there is one)."""
        await self.write(self.hello_bytes(**fields))
        reply = await self.wait(1)
        assert isinstance(reply, s.HelloReply)
        return reply

    async def log_in(self, key_id: str, secret: str, **fields: Any) -> None:
        """Opens the connection with an access key."""
        reply = await self.hello(key_id=key_id, **fields)
        await self.call(s.Authenticate(proof_of(secret.encode(), reply.challenge, self.producer)))

    def pack(self, message: Message, name: str | None = None) -> tuple[int, bytes]:
        """A request's correlation and bytes."""
        return self.connection.request(BY_NAME[name] if name else BY_REQUEST[type(message)], message)

    async def say(self, message: Message, name: str | None = None) -> int:
        """Sends a request; returns its correlation."""
        correlation, data = self.pack(message, name)
        await self.write(data)
        return correlation

    async def call(self, message: Message, name: str | None = None) -> Any:
        """Sends a request and waits for its reply. Raises what it was refused with."""
        return await self.wait(await self.say(message, name))

    async def wait(self, correlation: int, kind: Kind | None = None) -> Any:
        """The next answer to that request (of that kind). EOFError when the connection ends instead."""
        while True:
            for place, answer in enumerate(self.answers):
                if answer.correlation == correlation and kind in (None, answer.kind):
                    del self.answers[place]
                    return answer.message()
            if self.at_end:
                raise EOFError(repr(self.farewell))
            await self.read()

    async def read(self) -> None:
        """Reads once; notes a farewell and the end."""
        try:
            data = await self.stream.receive_some(2**20)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if not data:
            self.at_end = True
            return
        try:
            for answer in self.connection.receive_data(bytes(data)):
                self.answers.append(answer)
                if answer.operation == HELLO and answer.kind is Kind.REPLY:
                    self.connection.opened(answer.message().max_frame_bytes)  # type: ignore[attr-defined]
        except PenstockError as error:
            self.farewell = error

    async def end(self) -> PenstockError | None:
        """Reads until the broker closes; what it said last."""
        while not self.at_end:
            await self.read()
        return self.farewell

    async def has_answer(self, correlation: int) -> bool:
        """Whether an answer to that request is here once everybody waits (for longer than a moment)."""
        with trio.move_on_after(0.001):
            while not self.at_end and not any(answer.correlation == correlation for answer in self.answers):
                await self.read()
        return any(answer.correlation == correlation for answer in self.answers)

    async def close(self) -> None:
        """Hangs up."""
        await trio.aclose_forcefully(self.stream)

    # What most tests do

    async def create(self, queue: str, tags: list[q.Tag] | None = None, **settings: Any) -> q.QueueDescription:
        """Creates a queue."""
        reply = await self.call(q.CreateQueue(queue, [q.Setting(name, value) for name, value in settings.items()], tags))
        assert isinstance(reply, q.QueueDescription)
        return reply

    async def describe(self, queue: str) -> q.QueueDescription:
        """DescribeQueue."""
        reply = await self.call(q.QueueName(queue), "DescribeQueue")
        assert isinstance(reply, q.QueueDescription)
        return reply

    async def send(self, queue: str, *bodies: bytes, **columns: Any) -> q.SendReply:
        """SendMessages."""
        reply = await self.call(q.SendMessages(queue, list(bodies), **columns))
        assert isinstance(reply, q.SendReply)
        return reply

    async def receive(self, queue: str, most: int = 10, **options: Any) -> list[q.Delivery]:
        """ReceiveMessages."""
        reply = await self.call(q.ReceiveMessages(queue, most, **options))
        assert isinstance(reply, q.ReceiveReply)
        return reply.deliveries


class House:
    """A running broker with what a test turns."""

    def __init__(self, broker: Broker, disk: MemoryDisk, threads: Threads, faults: dict[str, Fault], nursery: trio.Nursery):
        self.broker = broker
        self.disk = disk
        self.threads = threads
        self.faults = faults
        """What goes wrong at which point (acquire, commit, sweep, next_id, load) until it is taken out."""
        self._nursery = nursery
        self._numbers = itertools.count(1)

    def connect(self, *, lockstep: bool = False) -> Peer:
        """A connection that has not said anything. `lockstep`: what one side writes waits until the other reads it."""
        near, far = trio.testing.lockstep_stream_pair() if lockstep else trio.testing.memory_stream_pair()
        self._nursery.start_soon(self.broker.serve, far)
        return Peer(near, f"peer-{next(self._numbers)}")

    async def client(self, **hello: Any) -> Peer:
        """A connection that is open."""
        peer = self.connect()
        await peer.hello(**hello)
        return peer


@contextlib.asynccontextmanager
async def house(
    disk: MemoryDisk | None = None, *, limits: SessionLimits | None = None, options: BrokerOptions | None = None
) -> AsyncIterator[House]:
    """A broker for the time of the block. On the same disk the next one finds what was committed."""
    faults: dict[str, Fault] = {}
    threads = Threads()
    disk = disk or MemoryDisk()
    store = MemoryStore(disk, faults.get)
    chance = random.Random(7)
    ports = Ports(lambda: EPOCH_MS + int(trio.current_time() * 1000), chance.randbytes, threads.run)
    options = options or BrokerOptions(session=limits or SessionLimits())
    async with running(store, ports, options, SEALING_KEY) as broker, trio.open_nursery() as nursery:
        yield House(broker, disk, threads, faults, nursery)
        nursery.cancel_scope.cancel()


def make_key(disk: MemoryDisk, role: str, account: str = "000000000000", number: int = 0) -> tuple[str, str]:
    """Puts an access key into a store before its broker starts; id and secret."""
    row, secret = Keyring(SEALING_KEY, []).make(account, role, "", 0, random.Random(f"{role}{account}{number}").randbytes(64))
    store = MemoryStore(disk)
    store.commit(store.acquire("test", "", 0), Commit(upsert_credentials=[row]))
    return row.key_id, secret


def bodies_of(deliveries: list[q.Delivery]) -> list[bytes]:
    """All bodies."""
    return [body for delivery in deliveries for body in delivery.bodies]


def receipts_of(deliveries: list[q.Delivery]) -> list[q.Receipt]:
    """One receipt per message."""
    receipts = []
    for delivery in deliveries:
        first = delivery.indexes
        places = range(first, first + len(delivery.bodies)) if isinstance(first, int) else first
        receipts += [q.Receipt(delivery.receipt, delivery.first, mask_of(place)) for place in places]
    return receipts


def mask_of(*indexes: int) -> bytes:
    """A receipt's mask."""
    value = sum(1 << index for index in indexes)
    return value.to_bytes(math.ceil((value.bit_length() or 1) / 8), "little")
