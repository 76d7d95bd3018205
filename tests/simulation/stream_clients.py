"""Clients of a stream that do what the seed says, by the SDK's rules, and write down what they asked and what they were told."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgpack
import trio
from penstock_protocol import stream_messages as st
from penstock_protocol.codec import Message

from tests.checkers.history import Operation
from tests.checkers.streams import Reading, ReadRecord, ShardFacts, hash_of
from tests.simulation.clients import SimulatedClient
from tests.simulation.world import EPOCH_MS, World

STREAM: Final = "s"
OPERATIONS: Final = 16
"""Operations per client."""
KEYS: Final = 5
GROUPINGS: Final = 6
"""How often records are grouped by shard again."""
MOST_SHARDS: Final = 5
FOLLOW_SECONDS: Final = 120.0
"""Who follows a stream in calm weather has read everything within that time."""
GONE: Final = ("ShardDoesNotExist", "StreamDoesNotExist")
HOLDING_BACK: Final = "IteratorExpired"


def batch_of(shard: int, bodies: list[str], keys: list[str], codec: int = st.PLAIN) -> st.PutRecords:
    """The put of a batch. (What the broker believes to be compressed it does not look into; so it need not be.)"""
    data = [body.encode() for body in bodies]
    size = sum(map(len, data)) + sum(len(key.encode()) for key in keys)
    return st.PutRecords(STREAM, shard, len(data), codec, size, msgpack.packb([data, keys]))


def records_of(reply: st.Records) -> list[ReadRecord]:
    """The records of a reply that are meant."""
    found = []
    for run in reply.runs:
        sequence = run.first
        for batch in run.batches:
            data, keys = msgpack.unpackb(batch.blob, raw=False)
            assert len(data) == len(keys) == batch.count
            for body, key in zip(data, keys, strict=True):
                if sequence >= reply.start:
                    found.append(ReadRecord(body.decode(), key, sequence, run.arrived_ms))
                sequence += 1
    return found


@dataclasses.dataclass(slots=True)
class Cursor:
    """Where a client is in a shard. `issued`: when it asked for the iterator, and when it got it."""

    shard: int
    chain: str
    iterator: bytes
    issued: tuple[float, float]
    last: int = -1


class StreamClient(SimulatedClient):
    """See the module."""

    def __init__(self, world: World, process: str) -> None:
        super().__init__(world, process)
        self.shards: list[ShardFacts] = []
        self.cursors: list[Cursor] = []
        self._chains = 0
        self._beside = 0
        self._puts: dict[int, tuple[Operation, st.PutRecords]] = {}

    async def run(self) -> None:
        """A number of operations, then the end of the connection."""
        world, chance = self.world, self.world.chance
        weather: Any = world.weather
        actions: list[tuple[float, Callable[[], Awaitable[object]]]] = [
            (3, self.put),
            (1, self.open),
            (4, self.read),
            (0.4, self.read_again),
            (0.6, self.repeat),
            (0.3, self.list_shards),
            (weather.reshard, self.reshard),
            (0.15, self.put_wrongly),
            (0.3 if weather.expiry else 0, self.outwait),
            (0.15, self.abandon),
            (weather.admin * 5, self.tag),
        ]
        for _ in range(OPERATIONS):
            await chance.choices([action for _, action in actions], [weight for weight, _ in actions])[0]()
            await trio.sleep(chance.random() * 0.2)
        await self.link.close()

    # Puts

    def _new_records(self) -> list[tuple[str, str]]:
        chance = self.world.chance
        found = []
        for _ in range(chance.choice((1, 1, 2, 3, 5))):
            self._bodies += 1
            body = f"{self.process}-{self._bodies}" + "." * chance.randint(0, self.world.weather.content)
            found.append((body, f"k{chance.randrange(KEYS)}"))
        return found

    async def put(self) -> None:
        """Puts records: grouped by shard, and again when a shard turns out to be closed."""
        records = self._new_records()
        for grouping in range(GROUPINGS):
            if grouping or not self.shards:
                await self.list_shards()
            groups: dict[int, list[tuple[str, str]]] = {}
            homeless = []
            for record in records:
                where = hash_of(record[1])
                shard = next((one.shard for one in self.shards if not one.closed and one.low <= where <= one.high), None)
                if shard is None:
                    homeless.append(record)
                else:
                    groups.setdefault(shard, []).append(record)
            records = homeless
            for shard, group in groups.items():
                again = await self._put_group(shard, group)
                if again:
                    self.world.marks["grouped again"] += 1
                    records += again
            if not records:
                return
            await trio.sleep(0.1 + self.world.chance.random() * 0.3)

    async def _put_group(self, shard: int, group: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Puts records of one shard, those that its limits cut off after the others; returns what has to be grouped again."""
        chance, limited = self.world.chance, bool(getattr(self.world.weather, "passes", 0))
        while group:
            bodies, keys = [body for body, _ in group], [key for _, key in group]
            codec = st.ZSTD if chance.random() < 0.2 else st.PLAIN
            self._sequence += 1
            message = dataclasses.replace(
                batch_of(shard, bodies, keys, codec),
                sequence=self._sequence,
                acknowledged=self._sequence,
                partial=limited and chance.random() < 0.7,
            )
            operation = self.begin("put", shard=shard, bodies=bodies, keys=keys, answers=[])
            if await self._put_until_answered(operation, message):
                return group
            group = group[len(operation.arguments["bodies"]) :]
        return []

    async def _put_until_answered(self, operation: Operation, message: st.PutRecords) -> bool:
        world, chance = self.world, self.world.chance
        unknown = False
        first_life = world.lives
        for _ in range(12):
            attempt = Operation(self.process, "put", {}, trio.current_time())
            reply = await self.ask(attempt, message)
            operation.error, operation.life = attempt.error, attempt.life
            if reply is not None:
                if unknown and world.lives != first_life:
                    world.marks["retry answered by a later life"] += 1
                operation.arguments["answers"].append((reply.first, reply.taken))
                if reply.taken is not None:
                    # The others were refused; they are in a put of their own, if they are tried again.
                    world.marks["cut off"] += 1
                    for name in ("bodies", "keys"):
                        operation.arguments[name] = operation.arguments[name][: reply.taken]
                operation.outcome, operation.completed, operation.value = "ok", trio.current_time(), reply.first
                self._puts[message.shard] = operation, message
                return False
            if attempt.error in ("ShardClosed", *GONE):
                # That says that nothing of it was stored, whatever became of earlier tries.
                if unknown:
                    world.marks["retry met a closed shard"] += 1
                operation.outcome, operation.completed = "fail", trio.current_time()
                return True
            unknown = unknown or attempt.outcome == "info"
            world.marks["throttled"] += attempt.error == "ThroughputExceeded"
            await trio.sleep(0.1 + chance.random() * 0.3)
        if not unknown:
            operation.outcome, operation.completed = "fail", trio.current_time()
        return False

    async def repeat(self) -> None:
        """As if the reply had been lost: the last put into some shard again, however long ago, closed or not."""
        if not self._puts:
            return
        shard = self.world.chance.choice(list(self._puts))
        operation, message = self._puts[shard]
        attempt = Operation(self.process, "put", {}, 0)
        again = await self.ask(attempt, message)
        if again is not None:
            operation.arguments["answers"].append((again.first, again.taken))
            self.world.marks["repeated put"] += 1
            if any(one.shard == shard and one.closed for one in self.shards):
                self.world.marks["repeated put to a closed shard"] += 1
        elif attempt.error == "ShardClosed":
            operation.arguments["answers"].append(attempt.error)

    async def put_wrongly(self) -> None:
        """A batch that breaks a rule in one record: all of it is refused."""
        if not self.shards:
            return
        bodies = [body for body, _ in self._new_records()]
        message = batch_of(self.world.chance.choice(self.shards).shard, [*bodies, "x"], ["k"] * len(bodies) + ["k" * 257])
        await self.ask(self.begin("put", shard=message.shard, bodies=bodies, keys=["k"] * len(bodies), answers=[]), message)

    # Shards

    async def list_shards(self) -> bool:
        """Looks at the shards; whether that worked."""
        operation = self.begin("shards")
        reply = await self.ask(operation, st.ListShards(STREAM))
        if reply is not None:
            operation.value = self.shards = [
                ShardFacts(
                    one.shard,
                    int.from_bytes(one.low, "big"),
                    int.from_bytes(one.high, "big"),
                    tuple(one.parents),
                    one.closed_ms is not None,
                    one.first,
                    one.end,
                )
                for one in reply.shards
            ]
        return reply is not None

    async def reshard(self) -> None:
        """Splits, merges, or sets the number of shards."""
        world, chance = self.world, self.world.chance
        opened = sorted((one for one in self.shards if not one.closed), key=lambda one: one.low)
        if not opened:
            await self.list_shards()
            return
        kind = chance.choice(("split", "merge", "count"))
        message: Message = st.SetShardCount(STREAM, chance.randint(1, MOST_SHARDS))
        if kind == "split" and len(opened) < MOST_SHARDS:
            one = chance.choice(opened)
            third = one.low + (one.high - one.low) // 3
            at = third.to_bytes(16, "big") if chance.random() < 0.3 else None
            message = st.SplitShard(STREAM, one.shard, at)
        elif kind == "merge" and len(opened) > 1:
            place = chance.randrange(len(opened) - 1)
            message = st.MergeShards(STREAM, opened[place + 1].shard, opened[place].shard)
        else:
            kind = "count"
        async with trio.open_nursery() as nursery:
            over = trio.Event()
            if chance.random() < 0.3:
                for _ in range(2):
                    nursery.start_soon(self._put_beside, over)
                await trio.sleep(chance.random() * 2 * world.weather.lag)
            if await self.ask(self.begin("reshard", what=str(message)), message) is not None:
                world.marks[f"reshard by {kind}"] += 1
                await self.list_shards()
            over.set()

    async def _put_beside(self, over: trio.Event) -> None:
        """Somebody puts one after the other all the while, so that the last records of a shard and its end are in one commit."""
        self._beside += 1
        other = StreamClient(self.world, f"{self.process}+{self._beside}")
        other.shards = list(self.shards)
        for _ in range(4):
            if not over.is_set():
                await other.put()
        await other.link.close()

    async def tag(self) -> None:
        """Changes something that changes nothing."""
        await self.ask(self.begin("tag"), st.UntagStream(STREAM, ["nothing"]))

    # Reads

    async def open(self) -> None:
        """Opens an iterator somewhere."""
        chance = self.world.chance
        if not self.shards:
            await self.list_shards()
        if not self.shards:
            return
        one = chance.choice(self.shards)
        start = chance.choice(("trim_horizon", "latest", "at", "after", "time"))
        position = 0
        if start in ("at", "after"):
            position = chance.randint(one.first, max(one.first, one.end))
        elif start == "time":
            now_ms = EPOCH_MS + self.world.offset_ms + int(trio.current_time() * 1000)
            position = now_ms - chance.choice((0, 300, 1_000, 5_000, 100_000))
        cursor = await self.open_at(one.shard, start, position)
        if cursor is not None:
            self.cursors = [*self.cursors[-3:], cursor]

    async def open_at(self, shard: int, start: str, position: int = 0) -> Cursor | None:
        """An iterator, unless that fails."""
        self._chains += 1
        chain = f"{self.process}/{self._chains}"
        operation = self.begin("open", shard=shard, start=start, position=position, chain=chain)
        reply = await self.ask(operation, st.OpenIterator(STREAM, shard, start, position))
        if reply is None:
            if operation.error in GONE:
                self.cursors = [one for one in self.cursors if one.shard != shard]
            return None
        last = {"at": position - 1, "after": position}.get(start, -1)
        return Cursor(shard, chain, reply.iterator, (operation.invoked, operation.completed), last)

    async def read(self) -> None:
        """Reads on somewhere."""
        chance = self.world.chance
        if not self.cursors:
            await self.open()
        if not self.cursors:
            return
        cursor = chance.choice(self.cursors)
        operation = await self.read_on(cursor, chance.choice((1, 2, 5, 100)), chance.choice((0.0, 0.0, 1.0, 3.0)))
        if operation.error in (HOLDING_BACK, *GONE) or (operation.value is not None and operation.value.ended):
            self.cursors.remove(cursor)

    async def read_again(self) -> None:
        """Reads twice from the same iterator, as if the first reply had been lost: nothing may differ but what is new."""
        if not self.cursors:
            return
        cursor = self.world.chance.choice(self.cursors)
        other = dataclasses.replace(cursor)
        first = await self.read_on(other, 100, 0, 1_000_000)
        second = await self.read_on(cursor, 100, 0, 1_000_000)
        # The chain goes on with the second one; so the first is not told of as a part of it.
        self.history.operations.remove(first)
        if first.value is None or second.value is None:
            return
        self.world.marks["read twice"] += 1
        lost = set(first.value.records) - set(second.value.records)
        if lost and not getattr(self.world.weather, "kept", 0):
            record = self.begin("alive", what="a second read from the same iterator brings less")
            record.outcome, record.completed, record.error = "fail", trio.current_time(), str(lost)
        if second.value.ended:
            self.cursors.remove(cursor)

    async def read_on(self, cursor: Cursor, most: int, wait: float, max_bytes: int = 0) -> Operation:
        """One read; the cursor moves on when there is an answer."""
        operation = self.begin("read", shard=cursor.shard, chain=cursor.chain, most=most, wait=wait, issued=cursor.issued)
        max_bytes = max_bytes or self.world.chance.choice((10, 1_000_000))
        reply = await self.ask(operation, st.ReadRecords(cursor.iterator, most, max_bytes, int(wait * 1000)))
        if reply is None:
            if operation.error == HOLDING_BACK:
                self.world.marks["iterator expired"] += 1
            return operation
        reading = Reading(records_of(reply), not reply.next, reply.behind_ms, tuple(reply.children))
        operation.value = reading
        marks = self.world.marks
        if reply.runs and reply.runs[0].first < reply.start:
            marks["read from within a batch"] += 1
        for record in reading.records:
            if record.sequence > cursor.last + 1 and cursor.last >= 0:
                marks["gap passed"] += 1
            cursor.last = record.sequence
        if wait and reading.records and operation.completed - operation.invoked > 0.3:
            marks["waited for records"] += 1
        if reading.ended:
            marks["shard read out"] += 1
        cursor.iterator, cursor.issued = reply.next, (operation.invoked, operation.completed)
        return operation

    async def outwait(self) -> None:
        """Lets its iterators grow old."""
        weather: Any = self.world.weather
        await trio.sleep(weather.expiry * (0.7 + 0.6 * self.world.chance.random()))

    async def abandon(self) -> None:
        """Begins to wait for records and is gone soon after."""
        if self.cursors:
            with trio.move_on_after(self.world.chance.random() * 0.5):
                await self.read_on(self.world.chance.choice(self.cursors), 100, 20.0)
            await self.link.close()


class Follower(StreamClient):
    """Reads everything from the beginning, parents before children, until `ends` is set and it has seen all."""

    def __init__(self, world: World, process: str, ends: trio.Event) -> None:
        super().__init__(world, process)
        self._ends = ends
        self._done: set[int] = set()
        self._started: set[int] = set()

    async def run(self) -> None:
        """See the class."""
        chance = self.world.chance
        operation = self.begin("followed")
        deadline = float("inf")
        while True:
            if self._ends.is_set():
                deadline = min(deadline, trio.current_time() + FOLLOW_SECONDS)
            if trio.current_time() > deadline:
                self.history.operations.remove(operation)
                record = self.begin("alive", what=f"{self.process} does not get through")
                record.outcome, record.completed, record.error = "fail", trio.current_time(), str(self.cursors)
                break
            final = self._ends.is_set()
            before = trio.current_time()
            if await self._turn(chance.choice((2, 100))) and final:
                # (It began after everything had ended: `invoked` says what it has to have seen.)
                operation.invoked = before
                operation.outcome, operation.completed = "ok", trio.current_time()
                break
            await trio.sleep(0.05 + chance.random() * 0.3)
        await self.link.close()

    async def _turn(self, most: int) -> bool:
        """Reads once everywhere; whether there is nothing more to be read."""
        if not await self.list_shards():
            return False
        listed = {one.shard for one in self.shards}
        at_tip = True
        for one in self.shards:
            ready = all(parent in self._done or parent not in listed for parent in one.parents)
            if one.shard in self._started or not ready:
                continue
            cursor = await self.open_at(one.shard, "trim_horizon")
            at_tip = False
            if cursor is not None:
                self._started.add(one.shard)
                self.cursors.append(cursor)
        for cursor in list(self.cursors):
            wait = 0.0 if self._ends.is_set() else self.world.chance.choice((0.0, 1.0))
            operation = await self.read_on(cursor, most, wait)
            reading = operation.value
            if operation.error == HOLDING_BACK:
                start = ("trim_horizon", 0) if cursor.last < 0 else ("after", cursor.last)
                reopened = await self.open_at(cursor.shard, *start)
                if reopened is not None:
                    self.cursors[self.cursors.index(cursor)] = reopened
            elif operation.error in GONE or (reading is not None and reading.ended):
                self._finish(cursor)
            elif reading is not None and not reading.records and not reading.behind_ms:
                continue
            at_tip = False
        return at_tip and self._started >= {one.shard for one in self.shards}

    def _finish(self, cursor: Cursor) -> None:
        self.cursors.remove(cursor)
        self._done.add(cursor.shard)
