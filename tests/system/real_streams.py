"""Real records through a real stream: the flights that left New York in 2013, one record each, the aircraft as partition key.

    python -m tests.system.real_streams --records 336776 --store postgresql

Four producer processes put them (two with `put_many`, two with a Producer) while the stream goes from 8 shards to 16 and to 4.
A consumer group works them off meanwhile: member processes join, one leaves, one is killed with -9 and replaced. Each member
writes down what it processed before it says so with a checkpoint. From these journals `Pass` walks the pass that the checkpoints
describe, shard by shard: what was handled in it is each record exactly once, in order per key, and equal to the data frame.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, BinaryIO, Final

from penstock import Client, LeaseLost, RecordBatch, ShardInfo, Stream

from tests.broker_process import running_broker
from tests.system.real_data import figures, frame, prove_equal, shown, store_url

PRODUCERS: Final = 4
FIRST_SHARDS: Final = 8
MOST_SHARDS: Final = 16
LAST_SHARDS: Final = 4
BATCH: Final = 250
READ: Final = 500
CHECKPOINT_RECORDS: Final = 2_000
IDLE_SECONDS: Final = 0.1
SESSION_SECONDS: Final = 5.0
CATCH_SECONDS: Final = 10.0
LIMIT_SECONDS: Final = 900.0
GROUP: Final = "analytics"
NO_AIRCRAFT: Final = "unknown"
GATES: Final = (1 / 3, 1 / 2, 2 / 3, 5 / 6)
"""Before this share of its records a producer waits: until the shards are about to be split, until they are, until they are about
to be merged, until they are. So records come before, during and after each change, however quick producers are."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What all processes know."""

    url: str
    records: int


# Producers

_gates: Sequence[Event]


def _start_producer(gates: Sequence[Event]) -> None:
    global _gates
    _gates = gates


def key_of(values: dict[str, Any]) -> str:
    """The partition key of a flight."""
    return values["tailnum"] or NO_AIRCRAFT


def _parts(plan: Plan, number: int) -> Iterator[list[tuple[str, str]]]:
    """A producer's records in batches: all flights of its aircraft, in their order. It waits at the GATES."""
    flights = frame(plan.records)
    keys = flights["tailnum"].fillna(NO_AIRCRAFT)
    mine = flights[[zlib.crc32(key.encode()) % PRODUCERS == number for key in keys]]
    bodies = mine.to_json(orient="records", lines=True).splitlines()
    rows = list(zip(bodies, mine["tailnum"].fillna(NO_AIRCRAFT), strict=True))
    for start in range(0, len(rows), BATCH):
        for share, gate in zip(GATES, _gates, strict=True):
            if start >= len(rows) * share and not gate.wait(LIMIT_SECONDS):
                raise TimeoutError(f"the shards were not changed within {LIMIT_SECONDS} s")
        yield rows[start : start + BATCH]


def put_batches(plan: Plan, number: int) -> int:
    """A producer that waits for each batch. Returns how many records were acknowledged."""
    with Client(plan.url) as client:
        stream = client.stream("flights")
        return sum(len(stream.put_many(part)) for part in _parts(plan, number))


def put_buffered(plan: Plan, number: int) -> int:
    """One that puts record by record into a buffer. Returns how many were acknowledged."""
    with Client(plan.url) as client:
        with client.stream("flights").producer(linger=0.005) as producer:
            for part in _parts(plan, number):
                for body, key in part:
                    producer.put(body, key)
        return producer.delivered


# Members of the group, and what they write down


class Journal:
    """What a member did, appended by single writes: nothing of it is lost with the process."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def handled(self, batch: RecordBatch) -> None:
        """These records were processed."""
        rows = b"".join(b"%s\t%s\n" % (key.encode(), data) for key, data in zip(batch.keys, batch.data, strict=True))
        self._file.write(b"P %d %d %d %d\n" % (time.monotonic_ns(), batch.shard, batch.first, len(batch)) + rows)

    def note(self, kind: bytes, batch: RecordBatch) -> None:
        """A checkpoint behind this batch is about to be asked for ("I"), is durable ("C"), or was refused ("L")."""
        self._file.write(b"%s %d %d %d 0\n" % (kind, time.monotonic_ns(), batch.shard, batch.end))


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A line of a journal, with the rows that follow it. `position`: the first record of "P", and behind the last of others."""

    kind: str
    at: int
    shard: int
    position: int
    rows: list[bytes]
    member: str


def read_journal(path: Path) -> Iterator[Entry]:
    """A journal from its beginning."""
    lines = iter(path.read_bytes().splitlines()) if path.exists() else iter(())
    for line in lines:
        kind, at, shard, position, count = line.split(b" ")
        rows = [next(lines) for _ in range(int(count))]
        yield Entry(kind.decode(), int(at), int(shard), int(position), rows, path.name)


def consume(plan: Plan, path: Path, leave: Event) -> None:
    """A member of the group until it is to leave: processes batches, and checkpoints its shards every CHECKPOINT_RECORDS
    records, when nothing comes, and at its end."""
    going = True

    def stop_when_told() -> None:
        nonlocal going
        leave.wait()
        going = False

    threading.Thread(target=stop_when_told, daemon=True).start()
    with Client(plan.url) as client, path.open("ab", buffering=0) as file:
        journal = Journal(file)
        members = client.stream("flights").consume(
            GROUP, checkpoint="manual", session_seconds=SESSION_SECONDS, batches=True, max_records=READ
        )
        with members as batches:
            since = 0
            last: dict[int, RecordBatch] = {}
            while going:
                batch = batches.next(IDLE_SECONDS)
                if batch is not None:
                    before = last.get(batch.shard)
                    if before is not None and before.end != batch.first:
                        journal.note(b"L", before)  # the shard was lost, and has come again
                    journal.handled(batch)
                    last[batch.shard] = batch
                    since += len(batch)
                if batch is None or since >= CHECKPOINT_RECORDS or not going:
                    for one in last.values():
                        journal.note(b"I", one)
                        try:
                            batches.checkpoint(one)
                        except LeaseLost:
                            journal.note(b"L", one)
                        else:
                            journal.note(b"C", one)
                    last.clear()
                    since = 0


class Crew:
    """The member processes."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._context = multiprocessing.get_context("spawn")
        self._members: dict[str, tuple[BaseProcess, Event]] = {}
        self.killed: set[str] = set()
        self.joined = 0

    def join(self) -> None:
        """One more member."""
        self.joined += 1
        name = f"member-{self.joined}"
        leave = self._context.Event()  # (its own: a killed process must leave nothing locked that others use)
        process = self._context.Process(target=consume, args=(self._plan, self._folder / name, leave), daemon=True)
        process.start()
        self._members[name] = process, leave

    def leave(self) -> None:
        """The longest-serving member stops as it should."""
        name = next(iter(self._members))
        process, leave = self._members.pop(name)
        leave.set()
        process.join(LIMIT_SECONDS)
        assert process.exitcode == 0, f"{name} ended with {process.exitcode}"

    def leave_all(self) -> None:
        """Everybody stops."""
        for _, leave in self._members.values():
            leave.set()
        while self._members:
            self.leave()

    def kill(self) -> None:
        """kill -9 for the longest-serving member, at a moment at which it has processed what it has not said, if that comes
        within CATCH_SECONDS; another replaces it. It is stopped first, to look."""
        name = next(iter(self._members))
        process, _ = self._members.pop(name)
        assert process.pid is not None
        try:
            end = time.monotonic() + CATCH_SECONDS
            _until(lambda: self._is_caught(process.pid, self._folder / name) or time.monotonic() > end, f"{name} is caught")
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.join(LIMIT_SECONDS)
        self.killed.add(name)
        self.join()

    def _is_caught(self, pid: int | None, journal: Path) -> bool:
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        _until(lambda: _is_stopped(pid), "it stands still")
        last = [entry.kind for entry in read_journal(journal)][-1:]
        if last == ["P"]:
            return True
        os.kill(pid, signal.SIGCONT)
        return False

    def kill_all(self) -> None:
        """What is left when something went wrong."""
        for process, _ in self._members.values():
            process.kill()

    def entries(self) -> list[Entry]:
        """All that was written down, in the order of time."""
        found = [entry for path in self._folder.iterdir() for entry in read_journal(path)]
        return sorted(found, key=lambda entry: entry.at)


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")


def _until(condition: Callable[[], bool], what: str, running: Iterable[Future[Any]] = ()) -> None:
    """Returns when the condition holds. Raises what a process raised."""
    end = time.monotonic() + LIMIT_SECONDS
    while not condition():
        for future in running:
            if future.done():
                future.result()
        if time.monotonic() > end:
            raise TimeoutError(f"after {LIMIT_SECONDS} s still not: {what}")
        time.sleep(0.02)


# The proof


class Pass:
    """The pass over the stream that the checkpoints describe. Entries are fed in the order of time; AssertionError when

    - a record is passed over, or handled again although a checkpoint had passed it,
    - records are handled again for another reason than that their member was killed or was told that it lost its lease,
    - a member begins at another place than a checkpoint (which may be durable though who asked for it never heard so)."""

    def __init__(self, killed: Iterable[str]) -> None:
        self._killed = frozenset(killed)
        self._rows: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
        self._owner: dict[int, str] = {}
        self._noted: dict[int, int] = defaultdict(int)
        self._asked: dict[int, set[int]] = defaultdict(set)
        self._refused: set[tuple[int, str | None]] = set()
        self._moved: set[tuple[int, str | None]] = set()
        self.again_killed = 0
        self.again_moved = 0

    def feed(self, entry: Entry) -> None:
        """What one member did next."""
        shard, position = entry.shard, entry.position
        if entry.kind == "I":
            self._asked[shard].add(position)
        elif entry.kind == "L":
            self._refused.add((shard, entry.member))
        elif entry.kind == "C":
            self._noted[shard] = max(self._noted[shard], position)
            assert position <= len(self._rows[shard]), f"shard {shard}: a checkpoint at {position}, and nobody handled that"
        else:
            self._handled(entry)

    def _handled(self, entry: Entry) -> None:
        shard, rows = entry.shard, self._rows[entry.shard]
        owner = self._owner.get(shard)
        again = len(rows) - entry.position
        assert again >= 0, f"shard {shard}: records {len(rows)} to {entry.position} were passed over"
        if again or entry.member != owner:
            noted = self._noted[shard]
            assert entry.position >= noted, f"shard {shard}: {entry.position} again, behind the checkpoint {noted}"
            assert entry.position in {noted, *self._asked[shard]}, f"shard {shard}: {entry.position} is no checkpoint"
        if again and owner in self._killed and entry.member != owner:
            self.again_killed += again
        elif again:
            self._moved.add((shard, owner))
            self.again_moved += again
        del rows[entry.position :]
        self._owner[shard] = entry.member
        rows += [(entry.at, row) for row in entry.rows]

    def finish(self, shards: Iterable[ShardInfo]) -> None:
        """Everything was handled and checkpointed, to the end of each shard."""
        assert self._moved <= self._refused, f"handled again without a reason: {self._moved - self._refused}"
        ends = {shard.shard: shard.end for shard in shards if shard.end}
        assert {shard: len(rows) for shard, rows in self._rows.items() if rows} == ends
        assert {shard: noted for shard, noted in self._noted.items() if noted} == ends

    def values(self) -> list[dict[str, Any]]:
        """The records of the pass in the order in which they were handled, of whatever shard; their keys are right."""
        found = sorted((row for rows in self._rows.values() for row in rows), key=lambda row: row[0])
        result = []
        for _, row in found:
            key, _, body = row.partition(b"\t")
            values = json.loads(body)
            assert key.decode() == key_of(values)
            result.append(values)
        return result


def prove_order(values: Iterable[dict[str, Any]]) -> int:
    """Records of a key were handled in the order in which they were put, whatever shards they were in. Returns how many keys."""
    last: dict[str, int] = {}
    for one in values:
        key = key_of(one)
        assert last.get(key, -1) < one["record"], f"{key}: record {one['record']} after {last[key]}"
        last[key] = one["record"]
    return len(last)


# The story


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """The numbers of one run, in the order of its story."""

    store: str
    records_put: int
    partition_keys: int
    in_the_8_shards: int
    in_the_16_shards: int
    in_the_4_shards: int
    shards_in_all: int
    members: int
    members_killed: int
    handled: int
    handled_again_after_the_kill: int
    handled_again_after_a_move: int
    once_in_the_checkpointed_pass: int
    seconds: float
    records_per_second: float

    def table(self) -> str:
        """As lines."""
        rows = dataclasses.asdict(self).items()
        return "\n".join(f"{name.replace('_', ' '):<32}{shown(value):>14}" for name, value in rows)


def _grow(stream: Stream) -> None:
    """From 8 to 16: two single splits, the others by the number of shards."""
    stream.split(0)
    stream.split(1)
    stream.set_shard_count(MOST_SHARDS)


def _shrink(stream: Stream) -> None:
    """From 16 to 4: one single merge, the others by the number of shards."""
    low, high = sorted(stream.shards("open"), key=lambda one: one.low)[:2]
    stream.merge(low.shard, high.shard)
    stream.set_shard_count(LAST_SHARDS)


def run(url: str, store: str, records: int, folder: Path) -> Report:
    """The whole story against the broker at `url`; journals go into `folder`. AssertionError when anything is missing, changed,
    out of order or handled once more than the checkpoints say."""
    plan = Plan(url, records)
    gates = [multiprocessing.get_context("spawn").Event() for _ in GATES]
    context = multiprocessing.get_context("spawn")
    with (
        Client(url) as client,
        ProcessPoolExecutor(PRODUCERS, context, initializer=_start_producer, initargs=(gates,)) as processes,
    ):
        stream = client.create_stream("flights", shards=FIRST_SHARDS)
        crew = Crew(plan, folder)
        generations: list[frozenset[int]] = [frozenset(one.shard for one in stream.shards("open"))]

        def reshard(change: Callable[[Stream], None]) -> None:
            about_to, done = gates[2 * len(generations) - 2 : 2 * len(generations)]
            about_to.set()
            change(stream)
            done.set()
            generations.append(frozenset(one.shard for one in stream.shards("open")))

        steps: list[tuple[float, Callable[[], None]]] = [
            (0.05, crew.join),
            (0.15, lambda: reshard(_grow)),
            (0.40, lambda: reshard(_shrink)),
            (0.45, crew.kill),  # (No producer waits any more: the victim has something to do.)
            (0.60, crew.leave),
            (0.75, crew.join),
        ]
        producers: list[Future[int]] = []
        try:
            started = time.monotonic_ns()
            crew.join()
            crew.join()
            producers = [processes.submit(put_buffered if n % 2 else put_batches, plan, n) for n in range(PRODUCERS)]
            _until(lambda: GROUP in stream.groups(), "the group is there", producers)
            for share, step in steps:
                _until(lambda goal=share * records: _processed(stream) >= goal, f"{share:.0%} are processed", producers)  # type: ignore[misc]
                step()
            put = sum(producer.result(LIMIT_SECONDS) for producer in producers)
            _until(lambda: stream.describe_group(GROUP).lag == 0, "nothing is left")
            crew.leave_all()
        finally:
            for gate in gates:
                gate.set()
            crew.kill_all()
        shards = stream.shards()
        positions = {one.shard: (one.position, one.end) for one in stream.describe_group(GROUP).shards}

    assert put == records
    assert sum(shard.end for shard in shards) == records, "a record was put twice, or not"
    assert all(position == end for position, end in positions.values()), f"the group stands at {positions}"
    assert [len(one) for one in generations] == [FIRST_SHARDS, MOST_SHARDS, LAST_SHARDS]
    entries = crew.entries()
    checkpointed = Pass(crew.killed)
    for entry in entries:
        checkpointed.feed(entry)
    checkpointed.finish(shards)
    values = checkpointed.values()
    assert len(values) == len({one["record"] for one in values}) == records
    keys = prove_order(values)
    prove_equal(records, values)

    held = {shard.shard: shard.end for shard in shards}
    first, second, third = (sum(held[shard] for shard in one) for one in generations)
    handled = sum(len(entry.rows) for entry in entries)
    assert handled == records + checkpointed.again_killed + checkpointed.again_moved
    seconds = (max(entry.at for entry in entries) - started) / 1e9
    return Report(
        store=store,
        records_put=put,
        partition_keys=keys,
        in_the_8_shards=first,
        in_the_16_shards=second,
        in_the_4_shards=third,
        shards_in_all=len(shards),
        members=crew.joined,
        members_killed=len(crew.killed),
        handled=handled,
        handled_again_after_the_kill=checkpointed.again_killed,
        handled_again_after_a_move=checkpointed.again_moved,
        once_in_the_checkpointed_pass=len(values),
        seconds=seconds,
        records_per_second=records / seconds,
    )


def _processed(stream: Stream) -> int:
    """How many records the group's checkpoints have passed."""
    return sum(shard.position for shard in stream.describe_group(GROUP).shards)


def main() -> None:
    """Runs it by hand, and prints the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--records", type=int, default=336_776, help="how many of the 336,776 flights")
    parser.add_argument("--store", choices=["sqlite", "postgresql"], default="sqlite")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-")))
        journals = folder / "journals"
        journals.mkdir()
        url = stack.enter_context(store_url(arguments.store))
        broker = stack.enter_context(running_broker(folder, store=url))
        report = run(broker.url, arguments.store, arguments.records, journals)
    print(report.table())
    destinations = figures(frame(arguments.records), "dest").sort_values("flights", ascending=False)
    print("\nequal to the data frame, record by record, in order for each aircraft; the three most frequent destinations:")
    print(destinations.head(3).to_string())


if __name__ == "__main__":
    main()
