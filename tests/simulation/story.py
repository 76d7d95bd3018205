"""What happens in a simulated run: clients that send, receive, delete and misbehave; then a full drain by a fresh one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import trio
from penstock_protocol import queue_messages as q
from penstock_protocol.codec import Message
from penstock_protocol.connection import Answer, ClientConnection
from penstock_protocol.errors import PenstockError
from penstock_protocol.frames import Kind
from penstock_protocol.operations import BY_NAME, BY_REQUEST
from penstock_protocol.session_messages import Hello

from tests.checkers.history import History, Operation, Received
from tests.checkers.queues import DRAIN, complaints_of
from tests.simulation.world import Weather, World, simulate

OPERATIONS = 25
"""Operations per client."""

UNCERTAIN = {"OutcomeUnknown"}
"""Errors that leave open what happened; any other error says that nothing did."""

BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, EOFError, trio.TooSlowError)


class Link:
    """One client's connection: one request at a time."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.producer = name.encode().ljust(16, b".")
        self._stream: Any = None
        self._connection = ClientConnection()
        self._answers: list[Answer] = []

    async def _open(self) -> None:
        if self._stream is not None:
            return
        stream = self.world.connect()
        self._stream, self._connection, self._answers = stream, ClientConnection(), []
        hello = BY_NAME["Hello"]
        _, data = self._connection.request(hello, Hello(self.name, self.producer))
        await stream.send_all(self._connection.preface() + data)
        (await self._next()).message()
        self._connection.opened(2**24)

    async def _next(self) -> Answer:
        while not self._answers:
            data = await self._stream.receive_some(65536)
            if not data:
                raise EOFError
            self._answers += list(self._connection.receive_data(bytes(data)))
        return self._answers.pop(0)

    async def close(self) -> None:
        """Ends the connection; the next request makes a new one."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with contextlib.suppress(*BROKEN):
                await trio.aclose_forcefully(stream)

    async def call(self, message: Message, name: str | None = None, patience: float = 60) -> Any:
        """The reply. One of BROKEN when the connection broke, PenstockError when the broker refused."""
        operation = BY_NAME[name] if name else BY_REQUEST[type(message)]
        try:
            with trio.fail_after(patience):
                await self._open()
                correlation, data = self._connection.request(operation, message)
                await self._stream.send_all(data)
                while True:
                    answer = await self._next()
                    if answer.correlation == correlation:
                        return answer.message()
        except BROKEN:
            await self.close()
            raise

    async def consume(self, request: q.Consume, seconds: float) -> AsyncIterator[q.ReceiveReply]:
        """What a consumer is pushed in that time. BROKEN or PenstockError end it early."""
        try:
            await self._open()
            correlation, data = self._connection.request(BY_NAME["Consume"], request)
            await self._stream.send_all(data)
            with trio.move_on_after(seconds):
                while True:
                    answer = await self._next()
                    if answer.correlation != correlation:
                        continue
                    message = answer.message()
                    if answer.kind is not Kind.PUSH:
                        return
                    assert isinstance(message, q.ReceiveReply)
                    yield message
        finally:
            await self.close()


class Held:
    """A message in a client's hands."""

    def __init__(self, receipt: bytes, first: int, index: int, message: Received, received: float, until: float) -> None:
        self.receipt = receipt
        self.first = first
        self.index = index
        self.message = message
        self.received = received
        self.until = until

    def to_receipt(self) -> q.Receipt:
        """What deletes it."""
        mask = 1 << self.index
        return q.Receipt(self.receipt, self.first, mask.to_bytes((mask.bit_length() + 7) // 8, "little"))


class SimulatedClient:
    """A client that does what the seed says, and writes down what it was told."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.process = f"c{number}"
        self.link = Link(world, self.process)
        self.held: dict[str, list[Held]] = {}
        self._sequence = 0
        self._bodies = 0
        self._ids: list[str] = []

    @property
    def history(self) -> History:
        """Where it writes."""
        return self.world.history

    async def _ask(self, operation: Operation, message: Message, name: str | None = None) -> Any:
        """One try; sets the outcome. None unless ok."""
        try:
            reply = await self.link.call(message, name)
        except PenstockError as error:
            operation.error = error.name
            if error.name not in UNCERTAIN:
                operation.outcome, operation.completed = "fail", trio.current_time()
            return None
        except BROKEN as error:
            operation.error = type(error).__name__
            return None
        operation.outcome, operation.completed = "ok", trio.current_time()
        self.world.trace(f"{self.process}:{operation.name}")
        return reply

    async def run(self) -> None:
        """A number of operations, then the end of the connection."""
        chance = self.world.chance
        for _ in range(OPERATIONS):
            queue = chance.choice(self.world_queues())
            actions = [self.send, self.send, self.receive, self.receive, self.receive, self.delete, self.delete, self.delete]
            actions += [self.change, self.stale]
            if not queue.endswith(".fifo"):
                actions.append(self.consume)
            if self.world.weather.redrive and self.world.weather.dead_letters:
                actions.append(self.redrive)
            await chance.choice(actions)(queue)
            await trio.sleep(chance.random() * 0.2)
        await self.link.close()

    def world_queues(self) -> list[str]:
        """The queues of this world that clients use."""
        return ["q", "f.fifo"] if self.world.weather.fifo else ["q"]

    async def send(self, queue: str) -> None:
        """Sends a batch; repeats it with the same number until it is answered or patience ends."""
        chance = self.world.chance
        fifo = queue.endswith(".fifo")
        count = chance.randint(1, 5)
        bodies = []
        for _ in range(count):
            self._bodies += 1
            bodies.append(f"{self.process}-{self._bodies}")
        groups = [f"g{chance.randint(0, 2)}" for _ in bodies] if fifo else None
        ids = None
        if fifo:
            ids = list(bodies)
            if self._ids and chance.random() < 0.15:
                ids[0] = chance.choice(self._ids)
                self.world.marks["repeated id"] += 1
            self._ids = (self._ids + ids)[-20:]
        delays = [chance.choice((None, None, 0.5, 1.5)) for _ in bodies] if not fifo and chance.random() < 0.2 else None
        self._sequence += 1
        operation = self.history.begin(
            self.process,
            "send",
            trio.current_time(),
            queue=queue,
            bodies=bodies,
            groups=groups,
            ids=ids,
            delays=delays,
            answers=[],
        )
        message = q.SendMessages(
            queue,
            [body.encode() for body in bodies],
            delays_ms=None if delays is None else [None if one is None else int(one * 1000) for one in delays],
            groups=groups,  # type: ignore[arg-type]
            deduplication_ids=ids,  # type: ignore[arg-type]
            sequence=self._sequence,
            acknowledged=self._sequence,
        )
        unknown = False
        for _ in range(12):
            attempt = Operation(self.process, "send", {}, trio.current_time())
            reply = await self._ask(attempt, message)
            operation.error = attempt.error
            if reply is not None:
                operation.arguments["answers"].append(reply)
                if chance.random() < 0.1:
                    # As if the reply had been lost: the same again must be answered the same.
                    self.world.marks["repeated send"] += 1
                    again = await self._ask(Operation(self.process, "send", {}, 0), message)
                    if again is not None:
                        operation.arguments["answers"].append(again)
                failed = {failure.index for failure in reply.failures}
                numbers = iter([run.first + place for run in reply.runs for place in range(run.count)])
                operation.value = [None if place in failed else next(numbers) for place in range(count)]
                operation.outcome, operation.completed = "ok", trio.current_time()
                return
            unknown = unknown or attempt.outcome == "info"
            await trio.sleep(0.1 + chance.random() * 0.3)
        if not unknown:
            operation.outcome, operation.completed = "fail", trio.current_time()

    def _take(self, operation: Operation, queue: str, reply: q.ReceiveReply, visibility: float) -> None:
        found = []
        for delivery in reply.deliveries:
            indexes = delivery.indexes
            places = range(indexes, indexes + len(delivery.bodies)) if isinstance(indexes, int) else indexes
            for column, index in enumerate(places):
                message = Received(
                    delivery.bodies[column].decode(),
                    delivery.first + index,
                    delivery.receive_count,
                    delivery.groups[column] if delivery.groups is not None else None,
                    delivery.sources[column] if delivery.sources is not None else None,
                )
                found.append(message)
                held = Held(delivery.receipt, delivery.first, index, message, operation.invoked, operation.invoked + visibility)
                self.held.setdefault(queue, []).append(held)
        operation.value = found

    def _max_receives(self, queue: str) -> int | None:
        return 3 if self.world.weather.dead_letters and queue == "q" else None

    async def receive(self, queue: str) -> None:
        """Receives."""
        chance = self.world.chance
        visibility = chance.choice((0.3, 1.0, 3.0, 20.0))
        wait = chance.choice((0.0, 0.0, 1.0, 3.0))
        operation = self.history.begin(
            self.process,
            "receive",
            trio.current_time(),
            queue=queue,
            visibility=visibility,
            wait=wait,
            max_receive_count=self._max_receives(queue),
        )
        reply = await self._ask(
            operation, q.ReceiveMessages(queue, chance.randint(1, 6), int(visibility * 1000), int(wait * 1000))
        )
        if reply is not None:
            self._take(operation, queue, reply, visibility)

    async def consume(self, queue: str) -> None:
        """A consumer for a short time, that lets what it was pushed go again at its end."""
        chance = self.world.chance
        credit = chance.randint(1, 8)
        start = trio.current_time()
        request = q.Consume(queue, credit, 20_000, chance.random() < 0.5)
        with contextlib.suppress(PenstockError, *BROKEN):
            async for reply in self.link.consume(request, chance.random() * 2):
                operation = self.history.begin(
                    self.process,
                    "receive",
                    start,
                    queue=queue,
                    visibility=0.0 if request.release else 20.0,
                    wait=0.0,
                    consumer=True,
                    max_receive_count=self._max_receives(queue),
                )
                operation.outcome, operation.completed = "ok", trio.current_time()
                self._take(operation, queue, reply, 0.0 if request.release else 20.0)
                self.world.marks["pushed"] += 1

    async def delete(self, queue: str) -> None:
        """Deletes some of what it holds."""
        held = self.held.get(queue)
        if held:
            count = self.world.chance.randint(1, min(4, len(held)))
            chosen = [held.pop(self.world.chance.randrange(len(held))) for _ in range(count)]
            await self._settle(queue, "delete", chosen)

    async def stale(self, queue: str) -> None:
        """Deletes the oldest thing it holds: its handle may be long over."""
        held = self.held.get(queue)
        if held:
            await self._settle(queue, "delete", [held.pop(0)])

    async def change(self, queue: str) -> None:
        """Changes visibility, often to nothing."""
        held = self.held.get(queue)
        if held:
            await self._settle(queue, "change", [self.world.chance.choice(held)])

    async def _settle(self, queue: str, name: str, chosen: list[Held]) -> None:
        chance = self.world.chance
        operation = self.history.begin(
            self.process,
            name,
            trio.current_time(),
            queue=queue,
            bodies=[one.message.body for one in chosen],
            counts=[one.message.count for one in chosen],
            visible_until=[one.until for one in chosen],
            received=min(one.received for one in chosen),
        )
        receipts = [one.to_receipt() for one in chosen]
        message: Message = q.DeleteMessages(queue, receipts)
        if name == "change":
            timeout = chance.choice((0, 0, 500, 5_000))
            message = q.ChangeVisibility(queue, receipts, [timeout] * len(receipts))
            for one in chosen:
                one.until = min(one.until, operation.invoked + timeout / 1000)
        reply = await self._ask(operation, message)
        if reply is not None:
            refused = {failure.entry for failure in reply.failures}
            done = {one.message.body for place, one in enumerate(chosen) if place not in refused}
            operation.value = {one.message.body for one in chosen} - done
            if operation.value:
                self.world.marks["stale handle"] += 1

    async def redrive(self, queue: str) -> None:
        """Moves dead letters back."""
        operation = self.history.begin(self.process, "redrive", trio.current_time(), queue="dead")
        if await self._ask(operation, q.StartMoveTask("dead")) is not None:
            self.world.marks["redrive"] += 1


async def _insist(link: Link, message: Message, name: str | None = None) -> Any:
    """Asks until there is an answer; gives up on the run after 200 tries."""
    for _ in range(200):
        try:
            return await link.call(message, name)
        except PenstockError as error:
            if not error.retryable:
                raise
        except BROKEN:
            pass
        await trio.sleep(0.1)
    raise AssertionError("the broker does not come back")


async def story(world: World) -> None:
    """Queues are made, clients work in the storm, the storm ends, everything is drained."""
    chance = world.chance
    started = world.history.begin("world", "run", trio.current_time(), healthy=world.weather.is_healthy)
    started.outcome = "ok"
    setup = Link(world, "setup")
    await _insist(setup, q.CreateQueue("dead"))
    settings = [q.Setting("dead_letter_queue", "dead"), q.Setting("max_receive_count", 3)] if world.weather.dead_letters else []
    await _insist(setup, q.CreateQueue("q", settings))
    await _insist(setup, q.CreateQueue("f.fifo"))
    await setup.close()
    world.stormy = True
    async with trio.open_nursery() as outer:
        outer.start_soon(world.chaos)
        async with trio.open_nursery() as clients:
            for number in range(chance.randint(2, 5)):
                clients.start_soon(SimulatedClient(world, number).run)
        outer.cancel_scope.cancel()
    world.healed = True
    if world.life is None or chance.random() < 0.7:
        if world.life is None:
            await world.start_broker()
        else:
            await world.restart()
    await _drain(world)


async def _drain(world: World) -> None:
    """Receives and deletes everything there is, then asks each queue whether it is empty."""
    client = SimulatedClient(world, 99)
    client.process = DRAIN
    client.link = Link(world, DRAIN)
    queues = ["q", "f.fifo", "dead"]
    empty_since = trio.current_time()
    # Clocks may have been moved by an hour: whatever is in flight has to come back first.
    patience = 30.0 + 3_700.0 * len(world.history.jumps)
    while trio.current_time() - empty_since < patience:
        for queue in queues:
            operation = world.history.begin(
                DRAIN, "receive", trio.current_time(), queue=queue, visibility=600.0, wait=0.0, moved=True
            )
            reply = await client._ask(operation, q.ReceiveMessages(queue, 100, 600_000, 0))
            if reply is None:
                await trio.sleep(0.5)
                continue
            client._take(operation, queue, reply, 600.0)
            if operation.value:
                if operation.value and queue == "dead":
                    world.marks["dead letter"] += 1
                empty_since = trio.current_time()
                held, client.held[queue] = client.held[queue], []
                await client._settle(queue, "delete", held)
            else:
                world.history.operations.remove(operation)
        await trio.sleep(0.5 if not world.history.jumps else 20.0)
    for queue in queues:
        operation = world.history.begin(DRAIN, "describe", trio.current_time(), queue=queue)
        reply = await client._ask(operation, q.QueueName(queue), "DescribeQueue")
        if reply is not None:
            operation.value = (reply.visible, reply.in_flight, reply.delayed, reply.bytes)
    await client.link.close()


def run_seed(seed: int, weather: Weather | None = None) -> tuple[World, list[str]]:
    """One run: the world after it, and what the checkers complain about."""
    world = simulate(World(seed, weather), story)
    return world, complaints_of(world.history)
