"""Consumer groups through the SDK against a real broker: members come, go and die, shards are split and merged, the broker is
killed, and every record is given out at least once, those of a key in their order."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import anyio
import pytest
from penstock import AsyncClient, AsyncGroupConsumer, AsyncStream, Client, LeaseLost, Record
from penstock.errors import GroupDoesNotExist, InvalidName, InvalidRequest, StreamDoesNotExist

from tests.broker_process import BrokerProcess, running_broker
from tests.clients.aggregates import aggregate

pytestmark = pytest.mark.anyio

KEYS = 20


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker that the test may kill."""
    with running_broker(tmp_path) as broker:
        yield broker


async def fresh_stream(client: AsyncClient, name: str, shards: int = 1) -> AsyncStream:
    """An empty stream of that name; the same broker serves many tests."""
    with contextlib.suppress(StreamDoesNotExist):
        await client.delete_stream(name)
    return await client.create_stream(name, shards)


def rows(start: int, stop: int) -> list[tuple[bytes, str]]:
    return [(b"%d" % number, f"key {number % KEYS}") for number in range(start, stop)]


class Tally:
    """What all members of a group were given, in the order of the whole; who waits looks whenever there is more."""

    def __init__(self) -> None:
        self.found: list[int] = []
        self.by_member: dict[str, int] = {}
        self.members: dict[str, AsyncGroupConsumer[Record]] = {}
        self._changed = anyio.Event()

    def add(self, name: str, record: Record) -> None:
        self.found.append(int(record.data))
        self.by_member[name] = self.by_member.get(name, 0) + 1
        self.change()

    def change(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(60):
            while not condition():
                await self._changed.wait()

    async def read(self, stream: AsyncStream, name: str, session_seconds: float = 60.0) -> None:
        """A member, until it is stopped."""
        async with stream.consume("g", session_seconds=session_seconds) as records:
            self.members[name] = records
            self.change()
            async for record in records:
                self.add(name, record)
        del self.members[name]
        self.change()

    def hurry(self) -> None:
        """Has all members say that they live: what they are to give up or begin with does not wait for its turn."""
        for one in self.members.values():
            one._hasten()

    async def put(self, stream: AsyncStream, start: int, stop: int) -> None:
        """Puts numbers, never far ahead of those who read."""
        for number in range(start, stop, 20):
            await stream.put_many(rows(number, number + 20))
            await self.until(lambda number=number: len(self.found) > number - 200)  # type: ignore[misc]  # no inference
            self.hurry()

    async def put_until(self, stream: AsyncStream, start: int, condition: Callable[[], bool]) -> int:
        """Puts until the condition holds; the next number."""
        with anyio.fail_after(60):
            while not condition():
                await self.put(stream, start, start + 20)
                start += 20
        return start

    def check(self, count: int) -> None:
        """Everything once, and the records of each key in their order."""
        assert sorted(self.found) == list(range(count))
        for key in range(KEYS):
            assert [number for number in self.found if number % KEYS == key] == list(range(key, count, KEYS))


@pytest.fixture
async def client(real_broker: BrokerProcess) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(real_broker.url) as client:
        yield client


async def test_members_that_come_and_go_share_the_shards_while_those_are_split_and_merged(real_broker: BrokerProcess) -> None:
    tally = Tally()
    async with AsyncClient(real_broker.url) as client, AsyncClient(real_broker.url) as other:
        stream = await fresh_stream(client, "shared", 4)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tally.read, stream, "a")
            tasks.start_soon(tally.read, other.stream("shared"), "b")
            count = await tally.put_until(stream, 0, lambda: all(tally.by_member.get(name, 0) > 50 for name in "ab"))
            tasks.start_soon(tally.read, other.stream("shared"), "c")
            count = await tally.put_until(stream, count, lambda: tally.by_member.get("c", 0) > 50)
            assert sorted(len(one.shards) for one in tally.members.values()) == [1, 1, 2]
            await stream.split(0)
            await stream.merge(1, 2)
            count = await tally.put_until(
                stream, count, lambda: {4, 5, 6} <= {shard for one in tally.members.values() for shard in one.shards}
            )
            tally.members["c"].stop()
            await tally.until(lambda: "c" not in tally.members)
            await stream.merge(4, 5)
            await stream.split(3)
            count = await tally.put_until(
                stream, count, lambda: {7, 8, 9} <= {shard for one in tally.members.values() for shard in one.shards}
            )
            await tally.until(lambda: len(tally.found) == count)
            for one in list(tally.members.values()):
                one.stop()
        tally.check(count)
        info = await stream.describe_group("g")
        assert (info.members, info.lag) == ([], 0)
        assert [one.shard for one in info.shards if one.finished] == [0, 1, 2, 3, 4, 5]


async def test_members_go_on_over_kill_9_of_the_broker_with_everything_once_and_in_order(own_broker: BrokerProcess) -> None:
    tally = Tally()
    async with AsyncClient(own_broker.url) as client, AsyncClient(own_broker.url) as other:
        stream = await client.create_stream("killed", 4)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tally.read, stream, "a")
            tasks.start_soon(tally.read, other.stream("killed"), "b")
            count = await tally.put_until(stream, 0, lambda: all(tally.by_member.get(name, 0) > 50 for name in "ab"))
            own_broker.kill()
            await anyio.to_thread.run_sync(own_broker.start)
            await stream.split(0)
            await tally.put(stream, count, count + 1_000)
            await tally.until(lambda: len(tally.found) == count + 1_000)
            for one in list(tally.members.values()):
                one.stop()
        tally.check(count + 1_000)


async def test_a_new_member_goes_on_where_the_last_one_left(client: AsyncClient) -> None:
    stream = await fresh_stream(client, "goes-on", 2)
    await stream.put_many(rows(0, 100))
    found: list[int] = []
    for _ in range(4):
        async with stream.consume("g") as records:
            async for record in records:
                found.append(int(record.data))
                if len(found) % 25 == 0:
                    records.stop()
    assert sorted(found) == list(range(100))


async def test_a_group_that_begins_at_the_latest_record_sees_only_what_comes_afterwards(client: AsyncClient) -> None:
    stream = await fresh_stream(client, "latest", 2)
    await stream.put_many(rows(0, 50))
    async with stream.consume("g", start="latest") as records:
        await stream.put("new", "k")
        record = await records.next(20)
        assert record is not None and record.text == "new"
    async with stream.consume("g", start="trim_horizon") as records:  # that is for groups that are new
        record = await records.next(20)
        assert record is not None and record.text == "new", "it was not finished"


async def test_groups_are_listed_described_reset_and_deleted(client: AsyncClient) -> None:
    stream = await fresh_stream(client, "described", 2)
    began = datetime.now(UTC) - timedelta(hours=1)
    await stream.put_many(rows(0, 100))
    with pytest.raises(GroupDoesNotExist):
        await stream.describe_group("g")
    with pytest.raises(InvalidName):
        await stream.consume("no good!").__aenter__()
    with pytest.raises(InvalidRequest):
        await stream.consume("g", session_seconds=0.5).__aenter__()
    async with stream.consume("g") as records, stream.consume("h"):
        assert await stream.groups() == ["g", "h"]
        info = await stream.describe_group("g")
        assert (info.stream, info.name, info.members, info.lag) == ("described", "g", [records.member], 100)
        assert [(one.shard, one.member, one.position) for one in info.shards] == [(0, records.member, 0), (1, records.member, 0)]
        assert timedelta(hours=1) < info.created_at - began < timedelta(hours=2)
        for _ in range(100):
            assert await records.next(20) is not None
        assert await records.next(0.01) is None
        for start, count in (("trim_horizon", 100), ("latest", 0), (began, 100)):
            info = await stream.reset_group("g", start)  # type: ignore[arg-type]  # a tuple of both kinds
            assert info.lag == count
            records._hasten()
            for _ in range(count):
                assert await records.next(20) is not None
            assert await records.next(0.01) is None
        with pytest.raises(ValueError, match="trim_horizon"):
            await stream.reset_group("g", "sometime")  # type: ignore[arg-type]
    await stream.delete_group("g")
    assert await stream.groups() == ["h"]
    with pytest.raises(GroupDoesNotExist):
        await stream.delete_group("g")


async def test_a_record_of_before_a_reset_cannot_be_checkpointed(client: AsyncClient) -> None:
    stream = await fresh_stream(client, "reset")
    await stream.put_many(rows(0, 10))
    async with stream.consume("g", checkpoint="manual") as records:
        taken = [await records.next(20) for _ in range(10)]
        assert taken[4] is not None and taken[9] is not None
        await records.checkpoint(taken[4])
        assert (await stream.describe_group("g")).shards[0].position == 5
        await stream.reset_group("g", "trim_horizon")
        with pytest.raises(LeaseLost):
            await records.checkpoint(taken[9])
        again = await records.next(20)
        assert again is not None and again.sequence == 0
        assert (await stream.describe_group("g")).shards[0].position == 0


MEMBER = """
    import os, signal, sys
    from penstock import Client

    url, stream = sys.argv[1:]
    with Client(url) as client, client.stream(stream).consume("g", checkpoint="manual", session_seconds=3) as records:
        print("joined", flush=True)
        for command in sys.stdin:
            if command == "die\\n":
                os.kill(os.getpid(), signal.SIGKILL)
            record = records.next()
            if command == "note\\n":
                records.checkpoint(record)
            print(record.shard, record.sequence, record.text, flush=True)
"""


class Child:
    """A member in a process of its own, that takes a record when told so."""

    def __init__(self, broker: BrokerProcess, stream: str) -> None:
        command = [sys.executable, "-c", textwrap.dedent(MEMBER), broker.url, stream]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Child:
        assert self._out.readline() == "joined\n"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._in.close()
        self._out.close()

    @property
    def _in(self) -> IO[str]:
        assert self.process.stdin is not None
        return self.process.stdin

    @property
    def _out(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def tell(self, command: str) -> None:
        self._in.write(f"{command}\n")
        self._in.flush()

    def heard(self) -> tuple[int, int, int]:
        """The next record that it was given: shard, sequence number, data."""
        shard, sequence, data = self._out.readline().split()
        return int(shard), int(sequence), int(data)

    def take(self, command: str = "take") -> tuple[int, int, int]:
        self.tell(command)
        return self.heard()


async def test_the_shards_of_a_member_that_was_killed_go_on_elsewhere_from_its_last_checkpoints(
    real_broker: BrokerProcess,
) -> None:
    async with AsyncClient(real_broker.url) as client:
        stream = await fresh_stream(client, "dies", 2)
        await stream.put_many(rows(0, 200))
        noted: dict[int, int] = {}
        seen: set[int] = set()
        with Child(real_broker, "dies") as child:
            for turn in range(150):
                shard, sequence, data = child.take("note" if turn % 10 == 9 else "take")
                assert sequence >= noted.get(shard, 0)
                seen.add(data)
                if turn % 10 == 9:
                    noted[shard] = sequence + 1
            child.tell("die")
            assert child.process.wait(20) == -signal.SIGKILL
        async with stream.consume("g", session_seconds=2) as records:
            places: list[tuple[int, int]] = []
            numbers: list[int] = []
            while seen | set(numbers) != set(range(200)):
                record = await records.next(30)
                assert record is not None
                places.append((record.shard, record.sequence))
                numbers.append(int(record.data))
            for shard in range(2):
                sequences = [sequence for one, sequence in places if one == shard]
                assert not sequences or sequences == list(range(noted.get(shard, 0), sequences[-1] + 1))
            assert (await stream.describe_group("g")).members == [records.member]


async def test_who_follows_a_member_that_was_killed_in_an_aggregated_record_gets_all_of_it(real_broker: BrokerProcess) -> None:
    async with AsyncClient(real_broker.url) as client:
        stream = await fresh_stream(client, "torn")
        await stream.put_many([("0", "k"), (aggregate([("k", b"1"), ("k", b"2"), ("k", b"3")]), "k"), ("4", "k")])
        with Child(real_broker, "torn") as child:
            assert [child.take(command) for command in ("note", "note", "take")] == [(0, 0, 0), (0, 1, 1), (0, 1, 2)]
            child.tell("die")
            assert child.process.wait(20) == -signal.SIGKILL
        async with stream.consume("g", session_seconds=2) as records:
            found = [await records.next(30) for _ in range(4)]
            assert [one.text for one in found if one is not None] == ["1", "2", "3", "4"]


async def test_a_member_that_was_paused_gives_out_nothing_of_the_shards_that_others_got(real_broker: BrokerProcess) -> None:
    async with AsyncClient(real_broker.url) as client:
        stream = await fresh_stream(client, "pauses")
        await stream.put_many(rows(0, 100))
        with Child(real_broker, "pauses") as child:
            assert [child.take("note")[2] for _ in range(10)] == list(range(10))
            os.kill(child.process.pid, signal.SIGSTOP)
            async with stream.consume("g", session_seconds=60) as records:
                with anyio.fail_after(30):
                    while not records.shards:
                        records._hasten()
                        await client.ping()
                for number in range(10, 100):
                    record = await records.next(20)
                    assert record is not None and int(record.data) == number
                os.kill(child.process.pid, signal.SIGCONT)
                child.tell("note")
                assert await records.next(0.01) is None
                with anyio.fail_after(30):  # it has joined again, under another name
                    while len((await stream.describe_group("g")).members) != 2:
                        await client.ping()
            await stream.put(b"100", "k")
            assert child.heard() == (0, 100, 100)


def test_the_blocking_client_shares_shards_and_goes_on(real_broker: BrokerProcess) -> None:
    with Client(real_broker.url) as client:
        with contextlib.suppress(StreamDoesNotExist):
            client.delete_stream("blocking-group")
        stream = client.create_stream("blocking-group", 4)
        stream.put_many(rows(0, 1_000))
        found = []
        for batches in (400, 600):
            with stream.consume("g") as records:
                for count, record in enumerate(records, 1):
                    found.append(int(record.data))
                    if count == batches:
                        records.stop()
        assert sorted(found) == list(range(1_000))
        assert stream.describe_group("g").lag == 0
