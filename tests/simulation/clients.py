"""A client that does what the seed says, and writes down what it asked and what it was told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio
from penstock_protocol import queue_messages as q
from penstock_protocol.codec import Message
from penstock_protocol.errors import PenstockError

from tests.checkers.history import History, Operation, Received
from tests.simulation.link import Link
from tests.simulation.network import BROKEN
from tests.simulation.world import World

OPERATIONS = 22
"""Operations per client."""

UNCERTAIN = {"OutcomeUnknown"}
"""Errors that leave open what happened; any other error says that nothing did."""


class Held:
    """A message in a client's hands. `until`: it is hidden until then at least, by the client's knowledge."""

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


def _mask(data: bytes) -> int:
    return int.from_bytes(data, "little")


class SimulatedClient:
    """See the module."""

    def __init__(self, world: World, process: str) -> None:
        self.world = world
        self.process = process
        self.link = Link(world, process)
        self.held: dict[str, list[Held]] = {}
        self._sequence = 0
        self._bodies = 0
        self._attempts = 0
        self._ids: list[str] = []

    @property
    def history(self) -> History:
        """Where it writes."""
        return self.world.history

    def begin(self, name: str, **arguments: Any) -> Operation:
        """Writes down that it asks."""
        return self.history.begin(self.process, name, trio.current_time(), **arguments)

    async def ask(self, operation: Operation, message: Message, name: str | None = None) -> Any:
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
        finally:
            operation.life = self.world.lives
        operation.outcome, operation.completed = "ok", trio.current_time()
        self.world.trace(f"{self.process}:{operation.name}")
        return reply

    async def run(self) -> None:
        """A number of operations, then the end of the connection."""
        world, chance = self.world, self.world.chance
        weather = world.weather
        for _ in range(OPERATIONS):
            queue = "f.fifo" if chance.random() < weather.fifo else chance.choice(("q", "q", "p"))
            if weather.dead_letters and chance.random() < 0.05:
                queue = "dead.fifo" if queue.endswith(".fifo") else "dead"
            actions: list[tuple[float, Callable[[str], Awaitable[None]]]] = [
                (2, self.send),
                (2.5, self.receive),
                (2.5, self.delete),
                (0.7, self.stale),
                (0.7, self.change),
                (0.15, self.describe),
                (weather.purge * 10, self.purge),
                (weather.admin * 10, self.administer),
                (weather.redrive * 10 if weather.dead_letters else 0, self.redrive),
                (0.7 if queue.endswith(".fifo") else 0, self.attempt),
                (0 if queue.endswith(".fifo") else 0.8, self.consume),
            ]
            action = chance.choices([action for _, action in actions], [weight for weight, _ in actions])[0]
            await action(queue)
            await trio.sleep(chance.random() * 0.2)
        await self.link.close()

    async def send(self, queue: str) -> None:
        """Sends a batch; repeats it with the same number until it is answered or patience ends."""
        world, chance = self.world, self.world.chance
        if queue.startswith("dead") and chance.random() < 0.7:
            return
        fifo = queue.endswith(".fifo")
        count = chance.randint(1, 5)
        bodies = []
        for _ in range(count):
            self._bodies += 1
            bodies.append(f"{self.process}-{self._bodies}" + "." * chance.randint(0, world.weather.content))
        groups: list[str | None] | None = None
        ids: list[str] | None = None
        if fifo:
            groups = [f"g{chance.randint(0, 2)}" for _ in bodies]
            ids = list(bodies)
            if self._ids and chance.random() < 0.2:
                ids[0] = chance.choice(self._ids)
                world.marks["repeated id"] += 1
            self._ids = (self._ids + ids)[-20:]
        elif world.weather.groups and chance.random() < 0.7:
            groups = [chance.choice(("t0", "t1", None)) for _ in bodies]
        delays: list[float | None] | None = None
        if fifo and queue == "f.fifo" and world.fifo_delay:
            delays = [world.fifo_delay] * count
        elif not fifo and chance.random() < world.weather.delays:
            delays = [chance.choice((None, 0.0, 0.5, 1.5, 4.0)) for _ in bodies]
        texts = [chance.choice((None, f"of {body}")) for body in bodies] if chance.random() < 0.2 else None
        bad = {chance.choice(bodies)} if chance.random() < 0.08 else set()
        self._sequence += 1
        operation = self.begin(
            "send", queue=queue, bodies=bodies, groups=groups, ids=ids, delays=delays, texts=texts, bad=bad, answers=[]
        )
        wire_delays: list[int | None] | None = None
        if not fifo and (delays is not None or bad):
            wire_delays = [None if one is None else int(one * 1000) for one in delays or [None] * count]
        wire_groups = list(groups) if groups is not None else None
        for body in bad:
            # What breaks a rule: a FIFO message without a group, a delay of millions of years.
            if fifo and wire_groups is not None:
                wire_groups[bodies.index(body)] = None
            elif wire_delays is not None:
                wire_delays[bodies.index(body)] = 2**60
        message = q.SendMessages(
            queue,
            [body.encode() for body in bodies],
            None if texts is None else [None if one is None else [q.Attribute("text", "String", one)] for one in texts],
            wire_delays,
            wire_groups,
            None if ids is None else [*ids],
            sequence=self._sequence,
            acknowledged=self._sequence,
        )
        await self._send_until_answered(operation, message)

    async def _send_until_answered(self, operation: Operation, message: q.SendMessages) -> None:
        world, chance = self.world, self.world.chance
        unknown = False
        first_life = world.lives
        for _ in range(12):
            attempt = Operation(self.process, "send", {}, trio.current_time())
            reply = await self.ask(attempt, message)
            operation.error, operation.life = attempt.error, attempt.life
            if reply is not None:
                if unknown and world.lives != first_life:
                    world.marks["retry answered by a later life"] += 1
                operation.arguments["answers"].append(reply)
                if chance.random() < 0.1:
                    # As if the reply had been lost: the same again must be answered the same.
                    world.marks["repeated send"] += 1
                    again = await self.ask(Operation(self.process, "send", {}, 0), message)
                    if again is not None:
                        operation.arguments["answers"].append(again)
                self._take_answer(operation, reply)
                return
            unknown = unknown or attempt.outcome == "info"
            await trio.sleep(0.1 + chance.random() * 0.3)
        if not unknown:
            operation.outcome, operation.completed = "fail", trio.current_time()

    def _take_answer(self, operation: Operation, reply: q.SendReply) -> None:
        arguments = operation.arguments
        failed = {failure.index for failure in reply.failures}
        numbers = [run.first + place for run in reply.runs for place in range(run.count)]
        arguments["covered"] = len(numbers) + len(reply.failures)
        rest = iter(numbers)
        operation.value = [None if place in failed else next(rest, None) for place in range(len(arguments["bodies"]))]
        operation.outcome, operation.completed = "ok", trio.current_time()
        for identity, sequence in zip(arguments["ids"] or (), operation.value, strict=False):
            known = self.world.identities.setdefault((arguments["queue"], identity), (sequence, operation.life))
            if known[0] == sequence is not None and known[1] != operation.life:
                self.world.marks["deduplicated by a later life"] += 1

    def take(self, operation: Operation, queue: str, reply: q.ReceiveReply, visibility: float) -> None:
        """Writes down what came, and holds it."""
        found = []
        for delivery in reply.deliveries:
            indexes = delivery.indexes
            places = range(indexes, indexes + len(delivery.bodies)) if isinstance(indexes, int) else indexes
            for column, index in enumerate(places):
                attributes = delivery.attributes[column] if delivery.attributes is not None else None
                message = Received(
                    delivery.bodies[column].decode(),
                    delivery.first + index,
                    delivery.receive_count,
                    delivery.groups[column] if delivery.groups is not None else None,
                    delivery.sources[column] if delivery.sources is not None else None,
                    delivery.sent_ms if isinstance(delivery.sent_ms, int) else delivery.sent_ms[column],
                    str(attributes[0].value) if attributes else None,
                )
                if message.source is not None:
                    self.world.marks["dead letter received"] += 1
                found.append(message)
                held = Held(delivery.receipt, delivery.first, index, message, operation.invoked, operation.invoked + visibility)
                self.held.setdefault(queue, []).append(held)
        operation.value = found

    async def receive(self, queue: str) -> None:
        """Receives."""
        chance = self.world.chance
        visibility = chance.choice((0.3, 1.0, 3.0, 20.0))
        wait = chance.choice((0.0, 0.0, 1.0, 3.0))
        most = chance.randint(1, 6)
        operation = self.begin("receive", queue=queue, visibility=visibility, wait=wait, most=most)
        reply = await self.ask(operation, q.ReceiveMessages(queue, most, int(visibility * 1000), int(wait * 1000)))
        if reply is not None:
            self.take(operation, queue, reply, visibility)

    async def attempt(self, queue: str) -> None:
        """Receives twice with the same attempt id, as if the first reply had been lost."""
        chance = self.world.chance
        self._attempts += 1
        attempt = f"{self.process}-{self._attempts}"
        for _ in range(2):
            operation = self.begin("receive", queue=queue, visibility=3.0, wait=0.0, most=4, attempt=attempt)
            reply = await self.ask(operation, q.ReceiveMessages(queue, 4, 3_000, 0, attempt_id=attempt))
            if reply is not None:
                self.take(operation, queue, reply, 3.0)
            await trio.sleep(chance.random())

    async def consume(self, queue: str) -> None:
        """A consumer for a short time; some let what they were pushed go again at their end."""
        chance = self.world.chance
        start = trio.current_time()
        request = q.Consume(queue, chance.randint(1, 8), 20_000, chance.random() < 0.4)
        visibility = 0.0 if request.release else 20.0
        pushed: list[Operation] = []

        def take(reply: q.ReceiveReply, credit: int) -> None:
            operation = self.history.begin(
                self.process, "receive", start, queue=queue, visibility=visibility, wait=0.0, consumer=True, most=credit
            )
            operation.outcome, operation.completed = "ok", trio.current_time()
            self.take(operation, queue, reply, visibility)
            pushed.append(operation)
            self.world.marks["pushed"] += 1

        orderly = await self.link.consume(request, chance.random() * 2, gently=chance.random() < 0.6, take=take)
        if not orderly:
            # There may be more that was pushed and never read.
            self.history.begin(self.process, "receive", start, queue=queue, visibility=visibility, wait=0.0, consumer=True)

    async def delete(self, queue: str) -> None:
        """Deletes some of what it holds."""
        held = self.held.get(queue)
        if held:
            count = self.world.chance.randint(1, min(4, len(held)))
            # (One message by two handles in one request would be two answers for one name.)
            chosen = {one.message.body: one for one in self.world.chance.sample(held, count)}
            self.held[queue] = [one for one in held if one not in chosen.values()]
            await self.settle(queue, "delete", list(chosen.values()))

    async def stale(self, queue: str) -> None:
        """Deletes the oldest thing it holds: its handle may be long over."""
        held = self.held.get(queue)
        if held:
            await self.settle(queue, "delete", [held.pop(0)])

    async def change(self, queue: str) -> None:
        """Changes visibility, often to nothing."""
        held = self.held.get(queue)
        if held:
            await self.settle(queue, "change", [self.world.chance.choice(held)])

    async def settle(self, queue: str, name: str, chosen: list[Held]) -> None:
        """Deletes, or changes the visibility of, what it holds."""
        chance = self.world.chance
        operation = self.begin(
            name,
            queue=queue,
            bodies=[one.message.body for one in chosen],
            sequences=[one.message.sequence for one in chosen],
            counts=[one.message.count for one in chosen],
            visible_until=[one.until for one in chosen],
            received=min(one.received for one in chosen),
        )
        receipts = [one.to_receipt() for one in chosen]
        message: Message = q.DeleteMessages(queue, receipts)
        if name == "change":
            timeout = chance.choice((0, 0, 500, 5_000))
            operation.arguments["timeout"] = timeout / 1000
            message = q.ChangeVisibility(queue, receipts, [timeout] * len(receipts))
            for one in chosen:
                one.until = min(one.until, operation.invoked + timeout / 1000)
        reply = await self.ask(operation, message)
        if reply is not None:
            refused = {failure.entry for failure in reply.failures if _mask(failure.mask)}
            operation.value = {one.message.body for place, one in enumerate(chosen) if place in refused}
            if operation.value:
                self.world.marks["stale handle"] += 1

    async def redrive(self, queue: str) -> None:
        """Moves dead letters back."""
        source = "dead.fifo" if queue.endswith(".fifo") else "dead"
        destination = "f.fifo" if source == "dead.fifo" and self.world.chance.random() < 0.5 else ""
        operation = self.begin("redrive", queue=source)
        rate = self.world.chance.choice((0, 0, 3))
        if await self.ask(operation, q.StartMoveTask(source, destination, rate)) is not None:
            self.world.marks["redrive"] += 1

    async def purge(self, queue: str) -> None:
        """Purges."""
        if await self.ask(self.begin("purge", queue=queue), q.QueueName(queue), "PurgeQueue") is not None:
            self.world.marks["purge"] += 1

    async def describe(self, queue: str) -> None:
        """Asks for counts."""
        await self.ask_counts(queue)

    async def ask_counts(self, queue: str) -> Operation:
        """Asks for counts and writes them down: visible, in flight, delayed, bytes."""
        operation = self.begin("describe", queue=queue)
        reply = await self.ask(operation, q.QueueName(queue), "DescribeQueue")
        if reply is not None:
            operation.value = (reply.visible, reply.in_flight, reply.delayed, reply.bytes)
        return operation

    async def administer(self, queue: str) -> None:
        """Makes or removes a queue that nobody else uses, or changes a setting that changes nothing."""
        choice = self.world.chance.randrange(3)
        operation = self.begin("admin", queue="tmp", what=("create", "delete", "change")[choice])
        if choice == 0:
            await self.ask(operation, q.CreateQueue("tmp"))
        elif choice == 1:
            await self.ask(operation, q.QueueName("tmp"), "DeleteQueue")
        else:
            await self.ask(operation, q.SetQueueSettings(queue, [q.Setting("receive_wait_ms", 0)]))
