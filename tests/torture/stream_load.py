"""The load on a stream: one client process. `python -m tests.torture.stream_load URL FILE NAME SEED PACE`, as tests.torture.load.

A patient client's puts outlast every restart of the broker; a hasty one's often end with an unknown outcome. Two readers
follow the stream from its beginning, others look into a shard here and there, and all the while shards are split and merged.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import anyio
from penstock import AsyncClient
from penstock.errors import NotConnected, PenstockError, ResourceBusy, ShardClosed
from penstock.records import OutgoingRecord, Record, RecordBatch
from penstock.types import PutResult, ShardInfo

from tests.torture.load import HASTE_SECONDS, PATIENCE_SECONDS, Load, body_of, name_of
from tests.torture.record import Recorder

STREAM: Final = "s"
SHARDS: Final = 2
MOST_SHARDS: Final = 6
KEYS: Final = 5
KEYS_LIVE_SECONDS: Final = 2.0
"""New keys after that time: checking their order costs the square of their size."""
RESHARD_SECONDS: Final = 1.5
LOOK_SECONDS: Final = 0.5


def described(record: Record) -> list[str | int]:
    """A record as histories have it."""
    return [name_of(record.data), record.key, record.sequence, record.arrived_ms]


def facts(shard: ShardInfo) -> list[object]:
    """A shard as histories have it."""
    return [shard.shard, shard.low, shard.high, shard.parents, not shard.is_open, shard.first, shard.end]


class Chains:
    """Writes down what a process reads, as one chain per shard."""

    def __init__(self, recorder: Recorder, process: str) -> None:
        self._recorder = recorder
        self._process = process
        self._begun: set[int] = set()

    def open(self, shard: int, start: str, position: int = 0) -> None:
        """Reading begins there."""
        self._begun.add(shard)
        opening = {"shard": shard, "start": start, "position": position, "chain": f"{self._process}/{shard}"}
        self._recorder.end(self._recorder.begin("open", self._process, **opening))

    def take(self, batch: RecordBatch) -> None:
        """A batch came; of a shard that was not opened, from its beginning."""
        chain = f"{self._process}/{batch.shard}"
        if batch.shard not in self._begun:
            self.open(batch.shard, "trim_horizon")
        now = time.monotonic()
        reading = {"shard": batch.shard, "chain": chain, "wait": 0.0, "issued": [now, now]}
        operation = self._recorder.begin("read", self._process, **reading)
        # (How far it is behind is not known here; 1 claims nothing.)
        self._recorder.end(operation, [[described(record) for record in batch], False, 1, []])


class StreamLoad(Load):
    """The tasks of one process."""

    async def run(self, url: str) -> None:
        """Works until standard input ends."""
        patient = AsyncClient(url, request_timeout=PATIENCE_SECONDS, connect_timeout=PATIENCE_SECONDS)
        hasty = AsyncClient(url, request_timeout=HASTE_SECONDS, connect_timeout=PATIENCE_SECONDS)
        async with patient, hasty, anyio.create_task_group() as tasks:
            for client in (patient, patient, hasty):
                tasks.start_soon(self._repeat, self._put, client)
                tasks.start_soon(self._repeat, self._put_many, client)
            tasks.start_soon(self._follow, patient)
            tasks.start_soon(self._repeat, self._look, patient)
            if self.name == "c0":
                # (Reshards are few, and kills seldom meet one: who does not wait for the broker to be back is left in doubt.)
                for client in (patient, hasty):
                    tasks.start_soon(self._repeat, self._reshard, client)
            await anyio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
            self.stopped.set()

    def _new_record(self) -> OutgoingRecord:
        age = int(time.monotonic() / KEYS_LIVE_SECONDS)
        return OutgoingRecord(body_of(self._new_name()), f"k{age}-{self.chance.randrange(KEYS)}")

    def _begin_put(self, record: OutgoingRecord) -> int:
        assert isinstance(record.data, bytes)
        return self.recorder.begin("put", bodies=[name_of(record.data)], keys=[record.key])

    def _end_put(self, operation: int, result: PutResult | PenstockError) -> None:
        if isinstance(result, PutResult):
            self.recorder.end(operation, [result.shard, result.sequence])
        else:
            # NotConnected promises that nothing was sent.
            outcome = "fail" if isinstance(result, NotConnected) else "info"
            self.recorder.end(operation, outcome=outcome, error=repr(result))

    async def _put(self, client: AsyncClient) -> None:
        """One record; it travels with those of other tasks."""
        record = self._new_record()
        operation = self._begin_put(record)
        try:
            result: PutResult | PenstockError = await client.stream(STREAM).put(record.data, record.key)
        except PenstockError as error:
            result = error
        self._end_put(operation, result)

    async def _put_many(self, client: AsyncClient) -> None:
        """Some records at once; each answers for itself."""
        records = [self._new_record() for _ in range(self.chance.choice((2, 5, 20)))]
        operations = [self._begin_put(record) for record in records]
        try:
            results = list(await client.stream(STREAM).put_many(records, raise_on_failure=False))
        except PenstockError as error:
            results = [error] * len(records)
        for operation, result in zip(operations, results, strict=True):
            self._end_put(operation, result)

    async def _follow(self, client: AsyncClient) -> None:
        """Reads everything from the beginning, children after their parents, until the end."""
        process = f"{self.name}-follower"
        chains = Chains(self.recorder, process)
        reader = client.stream(STREAM).tail("trim_horizon", max_records=self.chance.choice((3, 1_000)))
        async with reader:
            while not self.stopped.is_set():
                batch = await reader.next(LOOK_SECONDS)
                if batch is not None:
                    chains.take(batch)
        operation = self.recorder.begin("followed", process, whole=False)
        self.recorder.end(operation)

    async def _look(self, client: AsyncClient) -> None:
        """Reads a little from somewhere in a shard."""
        chance, stream = self.chance, client.stream(STREAM)
        listed = await self._shards(client)
        if not listed:
            return
        shard = chance.choice(listed)
        position = chance.randint(shard.first, max(shard.first, shard.end))
        kind = chance.choice(("at", "after", "time", "trim_horizon"))
        self._bodies += 1
        process = f"{self.name}-look-{self._bodies}"
        chains = Chains(self.recorder, process)
        if kind == "time":
            when = datetime.now(UTC) - timedelta(seconds=chance.random() * 3)
            position = math.ceil(when.timestamp() * 1000)
            reader = stream.read(shard.shard, when, idle_seconds=LOOK_SECONDS, max_records=20)
        elif kind == "trim_horizon":
            reader = stream.read(shard.shard, "trim_horizon", idle_seconds=LOOK_SECONDS, max_records=20)
        else:
            start = ("at", position) if kind == "at" else ("after", position)
            reader = stream.read(shard.shard, start, idle_seconds=LOOK_SECONDS, max_records=20)  # type: ignore[arg-type]
        chains.open(shard.shard, kind, position)
        try:
            for _ in range(chance.randint(1, 10)):
                batch = await reader.next(LOOK_SECONDS)
                if batch is None:
                    break
                chains.take(batch)
        except PenstockError as error:
            self.recorder.note("looked", outcome="info", error=repr(error))
        finally:
            reader.close()
        with anyio.move_on_after(LOOK_SECONDS):
            await self.stopped.wait()

    async def _shards(self, client: AsyncClient) -> list[ShardInfo]:
        operation = self.recorder.begin("shards")
        try:
            listed = await client.stream(STREAM).shards()
        except PenstockError as error:
            self.recorder.end(operation, outcome="info", error=repr(error))
            return []
        self.recorder.end(operation, [facts(shard) for shard in listed])
        return listed

    async def _reshard(self, client: AsyncClient) -> None:
        """Splits a shard, merges two, or sets their number."""
        chance, stream = self.chance, client.stream(STREAM)
        opened = sorted((one for one in await self._shards(client) if one.is_open), key=lambda one: one.low)
        kind = chance.choice(("split", "merge", "count")) if opened else "count"
        operation = self.recorder.begin("reshard", what=kind)
        try:
            if kind == "split" and len(opened) < MOST_SHARDS:
                await stream.split(chance.choice(opened).shard)
            elif kind == "merge" and len(opened) > 1:
                place = chance.randrange(len(opened) - 1)
                await stream.merge(opened[place].shard, opened[place + 1].shard)
            else:
                await stream.set_shard_count(chance.randint(1, MOST_SHARDS))
        except (ShardClosed, ResourceBusy):
            self.recorder.end(operation, outcome="info")  # A repetition, and the first try had worked.
        except PenstockError as error:
            self.recorder.end(operation, outcome="info", error=repr(error))
        else:
            self.recorder.end(operation)
        with anyio.move_on_after(RESHARD_SECONDS * chance.random()):
            await self.stopped.wait()


def main() -> None:
    """See the module."""
    url, path, name, seed, pace = sys.argv[1:]
    recorder = Recorder(Path(path), name)

    async def run() -> None:
        await StreamLoad(recorder, name, int(seed), float(pace)).run(url)

    with contextlib.closing(recorder):
        anyio.run(run, backend="trio" if int(name.removeprefix("c")) % 2 == 0 else "asyncio")


if __name__ == "__main__":
    main()
