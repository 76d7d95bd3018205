"""Members of a consumer group and registered consumers that do what the seed says, by the SDK's rules, and write down what they
asked and what they were told."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import trio
from penstock_protocol import stream_messages as st
from penstock_protocol.errors import PenstockError

from tests.checkers.stream_readers import Granted, Leases
from tests.checkers.streams import Reading
from tests.simulation.link import PATIENCE_SECONDS, Link
from tests.simulation.network import BROKEN
from tests.simulation.stream_clients import FOLLOW_SECONDS, GONE, HOLDING_BACK, STREAM, Cursor, StreamClient, records_of
from tests.simulation.world import World

GROUP: Final = "g"
FAR: Final = 10**9
"""No shard has so many records."""
NOBODY: Final = -1


@dataclasses.dataclass(slots=True)
class Holding:
    """A lease in a member's hands. `done`: the next sequence number to be processed; `told`: the checkpoint that the broker has.
    `noted`: the one
    that was noted under it. `going`: it tried to give it up and does not know whether it did."""

    lease: int
    done: int
    told: int
    noted: int = 0
    cursor: Cursor | None = None
    give_up: bool = False
    going: bool = False
    read_out: bool = False


class Member(StreamClient):
    """Reads in a group until `ends` is set and the group has processed everything: by turns it lives, is silent for longer than
    its session, leaves, dies and comes back, says what is wrong, or what was right once."""

    def __init__(self, world: World, process: str, ends: trio.Event) -> None:
        super().__init__(world, process)
        self._ends = ends
        self._lives = 0
        self._born()

    def _born(self) -> None:
        self._lives += 1
        self._member = self.world.chance.randbytes(16)
        self._beat = 0
        self._session = self.world.chance.choice((1.0, 2.0, 5.0))
        self._joined = False
        self._until = 0.0
        self._leases: dict[int, Holding] = {}
        self._lost: list[Granted] = []

    async def run(self) -> None:
        """See the class."""
        chance = self.world.chance
        deadline = float("inf")
        while True:
            final = self._ends.is_set()
            if final:
                deadline = min(deadline, trio.current_time() + FOLLOW_SECONDS)
            if trio.current_time() > deadline:
                self.complain("the group does not get through", self._leases)
                break
            await self._turn()
            if final and await self._is_through():
                await self._heartbeat(leaving=True)
                break
            if not final:
                await self._stumble()
            await trio.sleep(0.1 + chance.random() * 0.5)
        await self.link.close()

    def complain(self, what: str, error: object) -> None:
        """A wait does not end."""
        record = self.begin("alive", what=f"{self.process}: {what}")
        record.outcome, record.completed, record.error = "fail", trio.current_time(), str(error)

    async def _stumble(self) -> None:
        """What members do now and then, and should not, or must."""
        world, chance = self.world, self.world.chance
        weather: Any = world.weather
        draw = chance.random()
        if draw < 0.05:
            world.marks["member paused"] += 1
            await trio.sleep(self._session * (0.7 + chance.random()))
        elif draw < 0.08:
            world.marks["member left"] += 1
            await self._heartbeat(leaving=True)
            await trio.sleep(chance.random())
            self._born()
        elif draw < 0.13:
            world.marks["member died"] += 1
            await self.link.close()
            self._born()
            await trio.sleep(chance.random())
        elif draw < 0.15:
            world.marks["member joined anew"] += 1
            self._forget()
            await self._heartbeat()
        elif draw < 0.15 + 0.05 * weather.resets:
            reset = self.begin("reset", group=GROUP)
            world.marks["group reset"] += await self.ask(reset, st.ResetGroup(STREAM, GROUP, "trim_horizon")) is not None

    def _forget(self) -> None:
        """It has no lease any more, as far as it knows."""
        self._lost += [Granted(shard, one.lease, one.done) for shard, one in self._leases.items()]
        self._leases, self._joined = {}, False

    # Heartbeats

    async def _heartbeat(self, *, leaving: bool = False) -> None:
        chance = self.world.chance
        joining = not self._joined
        told = {shard: one.done for shard, one in self._leases.items() if one.done > one.told and chance.random() < 0.7}
        released = [shard for shard, one in self._leases.items() if one.give_up and (one.going or chance.random() < 0.7)]
        told |= {shard: self._leases[shard].done for shard in (*released, *(self._leases if leaving else ()))}
        checkpoints = [Granted(shard, self._leases[shard].lease, position) for shard, position in told.items()]
        wrong = self._add_wrong(checkpoints) if not (joining or leaving or self._ends.is_set()) else NOBODY
        for shard in released:
            self._leases[shard].going = True
        operation = self.begin(
            "heartbeat",
            group=GROUP,
            member=self._member.hex()[:8],
            session=self._session,
            joining=joining,
            leaving=leaving,
            checkpoints=checkpoints,
            released=released,
            wrong=wrong,
        )
        self._beat += 1
        notes = [st.Checkpoint(one.shard, one.lease, one.position) for one in checkpoints]
        reply = await self.ask(
            operation,
            st.GroupHeartbeat(
                STREAM,
                GROUP,
                self._member,
                int(self._session * 1000),
                joining,
                leaving,
                "trim_horizon",
                notes,
                released,
                self._beat,
            ),
        )
        if reply is not None:
            operation.value = Leases([Granted(one.shard, one.lease, one.position) for one in reply.leases], list(reply.lost))
            self._take_in(operation, reply)
        elif joining and operation.outcome == "info":
            self.world.marks["join of unknown outcome"] += 1
        elif operation.error == "MemberExpired":
            self.world.marks["member expired"] += 1
            self._forget()
        elif operation.error == "CheckpointInvalid":
            self.world.marks["checkpoint refused"] += 1
            if wrong == NOBODY:
                self._forget()  # (As after a reset.)

    def _add_wrong(self, checkpoints: list[Granted]) -> int:
        """Sometimes a checkpoint too many: under a lease that was lost, or of what does not exist. The shard that is wrong."""
        chance = self.world.chance
        used = {one.shard for one in checkpoints}
        old = [one for one in self._lost if one.shard not in used]
        if old and chance.random() < 0.3:
            self.world.marks["checkpoint under a lost lease"] += 1
            one = chance.choice(old)
            checkpoints.append(one._replace(position=one.position + chance.choice((0, 0, 1))))
            return NOBODY
        free = [shard for shard, one in self._leases.items() if shard not in used and not one.going]
        if not free or chance.random() > 0.12:
            return NOBODY
        shard = max(free, key=lambda one: self._leases[one].noted) if chance.random() < 0.5 else chance.choice(free)
        held = self._leases[shard]
        back = held.noted > 0 and chance.random() < 0.6
        checkpoints.append(Granted(shard, held.lease, held.noted - 1 if back else FAR))
        return shard

    def _take_in(self, operation: Any, reply: st.GroupLeases) -> None:
        marks = self.world.marks
        self._joined = not operation.arguments["leaving"]
        self._until = operation.invoked + self._session
        if reply.lost:
            marks["checkpoint not noted"] += 1
        noted = {one.shard: one.position for one in operation.arguments["checkpoints"] if one.shard not in reply.lost}
        before, self._leases = self._leases, {}
        for one in reply.leases:
            held = before.get(one.shard)
            if held is None or held.lease != one.lease:
                held = Holding(one.lease, one.position, one.position)
                marks["lease given"] += 1
                if one.position:
                    marks["lease given behind a checkpoint"] += 1
            held.noted = max(held.noted, noted.get(one.shard, 0))
            held.told = max(held.told, held.noted)
            held.give_up, held.going = one.give_up, False
            if one.give_up:
                marks["lease to be given up"] += 1
            self._leases[one.shard] = held
        now = {one.lease for one in self._leases.values()}
        self._lost += [Granted(shard, one.lease, one.done) for shard, one in before.items() if one.lease not in now]
        self._lost = self._lost[-4:]

    # Reading

    async def _turn(self) -> None:
        """Says that it lives, and reads once in each of its shards."""
        await self._heartbeat()
        for shard, held in list(self._leases.items()):
            if not (held.read_out or held.going or held.give_up or trio.current_time() >= self._until):
                await self._process(shard, held)

    async def _process(self, shard: int, held: Holding) -> None:
        chance = self.world.chance
        if held.cursor is None:
            held.cursor = await self.open_at(shard, "at", held.done)
        if held.cursor is None:
            return
        operation = await self.read_on(
            held.cursor, chance.choice((2, 100)), 0.0 if self._ends.is_set() else chance.choice((0.0, 0.3))
        )
        if operation.error == HOLDING_BACK:
            held.cursor = None
        if operation.value is None or trio.current_time() >= self._until:
            if operation.value is not None:
                self.world.marks["read for nothing"] += 1
                held.cursor = None
            return
        records = operation.value.records
        if records:
            done = self.begin("processed", group=GROUP, shard=shard, lease=held.lease, records=records)
            done.outcome, done.completed = "ok", trio.current_time()
            held.done = records[-1].sequence + 1
        held.read_out = operation.value.ended

    async def _is_through(self) -> bool:
        """Whether the group has processed everything."""
        before = trio.current_time()
        operation = self.begin("positions", group=GROUP)
        reply = await self.ask(operation, st.GroupName(STREAM, GROUP), "DescribeGroup")
        if reply is None:
            return False
        operation.value = {one.shard: one.position for one in reply.shards}
        if any(one.position < one.end for one in reply.shards):
            return False
        operation = self.begin("consumed", group=GROUP)
        operation.invoked, operation.outcome, operation.completed = before, "ok", trio.current_time()
        return True


class Subscriber(StreamClient):
    """A registered consumer that follows the whole stream from its beginning, parents before children, each shard on a connection
    of its own, until `ends` is set and everything was pushed. A slow one gives no credit before all of `others` are through."""

    def __init__(self, world: World, process: str, ends: trio.Event, others: list[trio.Event] | None = None) -> None:
        super().__init__(world, process)
        self._ends = ends
        self._others = others
        self.through = trio.Event()
        self._begun: set[int] = set()
        self._done: set[int] = set()
        self._positions: dict[int, int] = {}
        self._registered = False
        self._following = 0
        self._all_ended = trio.Event()

    async def run(self) -> None:
        """See the class."""
        world, chance = self.world, self.world.chance
        followed = self.begin("followed")
        deadline = float("inf")
        async with trio.open_nursery() as nursery:
            while True:
                final = self._ends.is_set()
                if final:
                    deadline = min(deadline, trio.current_time() + FOLLOW_SECONDS * (2 if self._others else 1))
                if trio.current_time() > deadline:
                    self.history.operations.remove(followed)
                    self._complain("does not get through", (self.shards, self._positions))
                    nursery.cancel_scope.cancel()
                    break
                if not self._registered:
                    operation = self.begin("register")
                    self._registered = await self.ask(operation, self._name(), "RegisterStreamConsumer") is not None
                before = trio.current_time()
                if await self.list_shards():
                    for one in self._ready():
                        self._begun.add(one)
                        nursery.start_soon(self._follow, one)
                    if final and all(
                        one.shard in self._done or self._positions.get(one.shard, -1) >= one.end for one in self.shards
                    ):
                        followed.invoked, followed.outcome, followed.completed = before, "ok", trio.current_time()
                        self.through.set()
                        break
                if not final and self._registered and chance.random() < 0.02:
                    world.marks["consumer deregistered"] += 1
                    self._registered = False
                    await self.ask(self.begin("deregister"), self._name(), "DeregisterStreamConsumer")
                await trio.sleep(0.2 + chance.random() * 0.5)
            await self._end(nursery)
        self.through.set()
        await self.link.close()

    def _complain(self, what: str, error: object) -> None:
        record = self.begin("alive", what=f"{self.process} {what}")
        record.outcome, record.completed, record.error = "fail", trio.current_time(), str(error)

    def _name(self) -> st.StreamConsumerName:
        return st.StreamConsumerName(STREAM, self.process)

    def _ready(self) -> list[int]:
        listed = {one.shard for one in self.shards}
        return [
            one.shard
            for one in self.shards
            if one.shard not in self._begun and all(parent in self._done or parent not in listed for parent in one.parents)
        ]

    async def _end(self, nursery: trio.Nursery) -> None:
        """Each subscription that is still open ends when the consumer is no more."""
        if self.world.chance.random() < 0.5:
            nursery.cancel_scope.cancel()
            return
        self._begun = set(self._done)  # (Nobody subscribes again.)
        self._all_ended = trio.Event()
        if not self._following:
            self._all_ended.set()
        gone = False
        while not gone:
            operation = self.begin("deregister")
            gone = await self.ask(operation, self._name(), "DeregisterStreamConsumer") is not None
            gone = gone or operation.error == "StreamConsumerDoesNotExist"
            await trio.sleep(0.1)
        with trio.move_on_after(PATIENCE_SECONDS) as scope:
            await self._all_ended.wait()
        if scope.cancelled_caught:
            self._complain("is deregistered and is not told", self._positions)
        nursery.cancel_scope.cancel()

    async def _follow(self, shard: int) -> None:
        """Everything of a shard, in as many subscriptions as it takes."""
        world, chance = self.world, self.world.chance
        link = Link(world, f"{self.process}/{shard}")
        chain = ""
        self._following += 1
        try:
            while shard in self._begun:
                position = self._positions.get(shard, -1)
                start = "trim_horizon" if position < 0 else "at"
                if not chain:
                    self._chains += 1
                    chain = f"{self.process}/{self._chains}"
                    opened = self.begin("open", shard=shard, start=start, position=max(0, position), chain=chain)
                credit = 1 if self._others is not None else chance.choice((1, 3, 20))
                request = st.SubscribeToShard(STREAM, self.process, shard, credit, start, max(0, position))
                try:
                    if opened.outcome != "ok":
                        opened.invoked = trio.current_time()
                    else:
                        world.marks["subscription resumed"] += 1
                    self._read(shard, chain, Reading([], True, 0, tuple(await self._subscribe(link, request, chain, opened))))
                    break
                except PenstockError as error:
                    if error.name in GONE:
                        break
                    world.marks[f"subscription ended: {error.name}"] += 1
                    self._registered = self._registered and error.name != "StreamConsumerDoesNotExist"
                    if error.name == "PositionTrimmed":
                        # (Not from the horizon on: one that is not durable yet may be further back after a crash.)
                        first = next((one.first for one in self.shards if one.shard == shard), 0)
                        self._positions[shard] = max(position, first)
                        chain = ""
                except BROKEN:
                    pass
                await trio.sleep(0.05 + chance.random() * 0.3)
            self._done.add(shard)
        finally:
            self._following -= 1
            if not self._following:
                self._all_ended.set()
            with trio.CancelScope(shield=True):
                await link.close()

    def _read(self, shard: int, chain: str, reading: Reading, **more: Any) -> None:
        now = trio.current_time()
        operation = self.begin("read", shard=shard, chain=chain, wait=0.0, issued=(now, now), **more)
        operation.outcome, operation.completed, operation.value = "ok", now, reading

    async def _subscribe(self, link: Link, request: st.SubscribeToShard, chain: str, opened: Any) -> list[int]:
        """Takes what is pushed until the shard is read out; its children. Ends early in many ways."""
        chance = self.world.chance
        credit = request.credit

        def take(push: st.PushedRecords) -> None:
            nonlocal credit
            if opened.outcome != "ok":
                opened.outcome, opened.completed = "ok", trio.current_time()
            counts = [batch.count for run in push.runs for batch in run.batches]
            # (How far it is behind was true when it was pushed: 1 claims nothing.)
            reading = Reading(records_of(push), False, 1, ())  # type: ignore[arg-type]  # it has what is needed
            self._read(request.shard, chain, reading, credit=credit, counts=counts, start=push.start, next=push.next)
            credit -= sum(counts)
            self._positions[request.shard] = push.next
            self.world.marks["records pushed"] += len(counts)

        def more() -> int:
            nonlocal credit
            if self._others is not None and not (self._ends.is_set() and all(one.is_set() for one in self._others)):
                return 0
            if credit > 0 and (self._ends.is_set() or chance.random() < 0.7):  # (In the end nothing but a commit wakes it.)
                return 0
            given = chance.choice((1, 4, 30)) + max(0, -credit)
            credit += given
            return given

        seconds = float("inf") if self._ends.is_set() or chance.random() < 0.7 else chance.random() * 3
        return await link.subscribe(request, take, more, seconds)
