"""What happens in a simulated run of streams: clients put, read and reshard in a storm, it ends, everything is read once more.

`python -m tests.simulation.stream_story --seed 17` shows one seed with its history, `--seeds 0..1000` runs many.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import random
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final
from unittest import mock

import trio
from penstock_broker import stream_service
from penstock_broker.stream_catalog import SHARD, STREAM, StreamCatalog
from penstock_broker.stream_service import StreamService
from penstock_broker.streams import limits, settings
from penstock_broker.streams.shard import Shard
from penstock_protocol import queue_messages as q
from penstock_protocol import stream_messages as st
from penstock_protocol.errors import PenstockError, StreamDoesNotExist
from penstock_storage.interface import Commit
from penstock_storage.memory import MemoryStore

from tests.checkers.queues import DRAIN
from tests.checkers.stream_readers import complaints_of
from tests.checkers.streams import hash_of, untiled
from tests.simulation.link import Link, insist
from tests.simulation.story import line
from tests.simulation.stream_clients import STREAM as NAME
from tests.simulation.stream_clients import Follower, StreamClient, batch_of, records_of
from tests.simulation.stream_readers import Member, Subscriber
from tests.simulation.weather import Weather
from tests.simulation.world import World, simulate
from tests.torture.record import RecordedHistory

SMALL_LIMITS: Final[dict[str, tuple[int, ...]]] = {
    "SEGMENT_RECORDS": (1, 2, 4),
    "SEGMENT_BYTES": (20, 90),
    "TIP_BYTES": (1, 60),
    "RESERVE_SEQUENCES": (1, 4, 40),
    "TRIM_PAGE": (1, 2),
    "READ_SEGMENTS": (1, 2),
    "TIP_BUDGET_BYTES": (1, 100),
}
"""Limits that are made small on some seeds, so that a few records reach what takes millions otherwise."""

PASSES: Final = {"SHARD_RECORDS_IN": 1, "SHARD_BYTES_IN": 25, "SHARD_READS": 1, "SHARD_BYTES_OUT": 100}
"""What a shard lets pass per second, for each record that it takes, on seeds whose stream asks for limits."""

SWEEP_SECONDS: Final = 1.0
"""How often retention is looked after where it is short."""


@dataclasses.dataclass(frozen=True, slots=True)
class StreamWeather(Weather):
    """`reshard` is its weight among the operations, `kept` the retention and `expiry` the life of iterators in seconds (0: as
    long as usual), `small` the limits of streams that are made small, `passes` how many records a shard takes per second (0: as
    many as come). `members` are in one group, which is reset now and then
    where `resets` says so; `subscribers` are pushed to, and a `slow` one that gives no credit."""

    shards: int = 1
    followers: int = 1
    reshard: float = 0.0
    kept: float = 0.0
    expiry: float = 0.0
    small: tuple[tuple[str, int], ...] = ()
    passes: int = 0
    members: int = 0
    subscribers: int = 0
    slow: bool = False
    resets: float = 0.0


def drawn(chance: random.Random) -> StreamWeather:
    """A mix: what queues meet, and what streams alone do."""
    base = Weather.drawn(chance)
    small = chance.random() < 0.6
    return StreamWeather(
        **{field.name: getattr(base, field.name) for field in dataclasses.fields(base) if field.name != "limits"},
        shards=chance.choice((1, 1, 2, 3)),
        followers=chance.choice((0, 1, 1, 2)),
        reshard=chance.choice((0.0, 0.4, 1.2)),
        kept=chance.choice((0.0, 0.0, 0.0, 2.0, 6.0)),
        expiry=chance.choice((0.0, 0.0, 1.5)),
        small=tuple((name, chance.choice(values)) for name, values in SMALL_LIMITS.items() if small and chance.random() < 0.6),
        passes=chance.choice((0, 0, 0, 3, 8)),
        members=chance.choice((0, 0, 0, 2, 3)),
        subscribers=chance.choice((0, 0, 0, 1)),
        slow=chance.random() < 0.1,
        resets=chance.choice((0.0, 0.0, 1.0)),
    )


async def story(world: World) -> None:
    """See the module."""
    chance, weather = world.chance, world.weather
    assert isinstance(weather, StreamWeather)
    _note(
        world,
        "run",
        healthy=weather.is_healthy,
        retention=weather.kept or None,
        expiry=weather.expiry or limits.ITERATOR_MS / 1000,
        sweep=SWEEP_SECONDS,
        passes=weather.passes or None,
    )
    setup = Link(world, "setup")
    changes = [q.Setting("retention_ms", int(weather.kept * 1000))] if weather.kept else []
    if weather.passes:
        changes.append(q.Setting("enforce_shard_limits", True))
    await insist(setup, st.CreateStream(NAME, weather.shards, changes or None))
    await setup.close()
    world.stormy = True
    ends = trio.Event()
    async with trio.open_nursery() as world.limbo, trio.open_nursery() as followers:
        for number in range(weather.followers):
            followers.start_soon(Follower(world, f"f{number}", ends).run)
        for number in range(weather.members):
            followers.start_soon(Member(world, f"m{number}", ends).run)
        subscribers = [Subscriber(world, f"s{number}", ends) for number in range(weather.subscribers)]
        if weather.slow:
            subscribers.insert(0, Subscriber(world, "slow", ends, [one.through for one in subscribers]))
        for subscriber in subscribers:
            followers.start_soon(subscriber.run)
        async with trio.open_nursery() as outer:
            outer.start_soon(world.chaos)
            async with trio.open_nursery() as clients:
                for number in range(chance.randint(2, 4)):
                    clients.start_soon(StreamClient(world, f"c{number}").run)
            outer.cancel_scope.cancel()
        world.stormy = False
        if world.life is None:
            await world.start_broker()
        elif chance.random() < 0.5 and not weather.is_healthy:
            await world.restart()
        _note(world, "calm")
        ends.set()
    if weather.kept:
        await trio.sleep(chance.random() * 2 * weather.kept)
    await _look_into(world)
    await _try_everything(world)
    await Follower(world, DRAIN, ends).run()
    await _look_into(world)
    await _wait_and_leave(world)
    await _look_around(world)


def _note(world: World, name: str, value: Any = None, **arguments: Any) -> None:
    record = world.history.begin("world", name, trio.current_time(), **arguments)
    record.outcome, record.completed, record.value = "ok", trio.current_time(), value


def _complain(world: World, now: float, what: str, error: object) -> None:
    record = world.history.begin("world", "alive", now, what=what)
    record.outcome, record.completed, record.error = "fail", now, str(error)


async def _try_everything(world: World) -> None:
    """The rest works as well: a stream can be made, used, split and removed, and each open shard of the old one takes a put."""
    link = Link(world, "epilogue")
    step = "create"
    try:
        await insist(link, st.CreateStream("tmp", 2))
        step = "put"
        one = dataclasses.replace(batch_of(1, ["hello"], ["k"]), stream="tmp", sequence=1, acknowledged=1)
        put = await insist(link, one)
        step = "split"
        await insist(link, st.SplitShard("tmp", 1))
        step = "read"
        opened = await insist(link, st.OpenIterator("tmp", 1, "at", put.first))
        reply = await insist(link, st.ReadRecords(opened.iterator))
        assert [record.body for record in records_of(reply)] == ["hello"], reply
        assert (reply.next, reply.children) == (b"", [2, 3]), reply
        step = "remove"
        with contextlib.suppress(StreamDoesNotExist):  # (as a second try says)
            await insist(link, st.StreamName("tmp"), "DeleteStream")
        step = "put into the old one"
        for number, shard in enumerate((await insist(link, st.ListShards(NAME, state="open"))).shards):
            key = next(key for key in map(str, itertools.count()) if shard.low <= hash_of(key).to_bytes(16, "big") <= shard.high)
            body = f"epilogue-{number}"
            operation = world.history.begin("epilogue", "put", trio.current_time(), shard=shard.shard, bodies=[body], keys=[key])
            message = dataclasses.replace(batch_of(shard.shard, [body], [key]), sequence=2, acknowledged=2)
            operation.value = (await insist(link, message)).first
            operation.outcome, operation.completed = "ok", trio.current_time()
    except (PenstockError, AssertionError) as error:
        _complain(world, trio.current_time(), f"a stream cannot be used: {step}", repr(error))
    await link.close()


async def _wait_and_leave(world: World) -> None:
    """The last of the clients begins to wait at the tip of a shard and is gone."""
    client = StreamClient(world, "leaver")
    await client.list_shards()
    for shard in client.shards:
        cursor = None if shard.closed else await client.open_at(shard.shard, "latest")
        if cursor is not None:
            client.cursors.append(cursor)
    await client.abandon()


def _facts_of(shard: Shard) -> dict[str, Any]:
    """What a loaded shard believes that a fresh one has to believe as well."""
    return {
        "shard": shard.log_id,
        "end": shard.end,
        "trimmed": shard.trimmed,
        "closed": shard.closed,
        "records": shard.records,
        "bytes": shard.size_bytes,
        "arrived": shard.last_ms if shard.trimmed < shard.end else 0,
        "reserved": shard._reserved,
    }


def _answers_of(shard: Shard) -> set[tuple[bytes, int]]:
    return {(name, number) for name, known in shard._deduplication._producers.items() for number in known.answers}


async def _look_into(world: World) -> None:
    """At rest, what is in memory is compared with what the store says."""
    life = world.life
    assert life is not None and life.broker is not None
    broker = life.broker
    await broker.lane.wait_idle()
    service = broker.streams
    disk = MemoryStore(world.disk)
    fresh = StreamCatalog()
    fresh.replace(disk.load_resources())
    if broker.lane.is_healthy:
        _note(world, "memory", ({one.name: one for one in broker.stream_catalog}, {one.name: one for one in fresh}))
    store, service._store = service._store, disk
    try:
        for log_id, runtime in list(service.runtimes.items()):
            found = fresh.of_log(log_id)
            if runtime.shard.is_dirty or not broker.lane.is_healthy or found is None:
                continue
            stored = service._restore(log_id).shard
            if found[1].range.closed_ms is not None:
                stored.stay_closed(found[1].range.end)
            forgotten = set() if world.history.jumps else _answers_of(runtime.shard) - _answers_of(stored)
            believed = {**_facts_of(runtime.shard), "only in memory": sorted(forgotten)}
            _note(world, "memory", (believed, {**_facts_of(stored), "only in memory": []}))
    finally:
        service._store = store


async def _look_around(world: World) -> None:
    """With all clients gone, nothing of them is left in the broker."""
    assert world.life is not None and world.life.broker is not None
    broker = world.life.broker
    await trio.sleep(5)
    await broker.lane.wait_idle()
    service = broker.streams
    left = {
        "sessions": len(broker.sessions),
        "connections": broker.counters.connections,
        "waiters": sum(len(runtime.waiters) for runtime in service.runtimes.values()),
        "subscribers": sum(len(runtime.subscribers) for runtime in service.runtimes.values()),
        "deadlines": sum(entry[2] in entry[2].runtime.waiters for entry in service._deadlines),
        "loading": len(service._loading),
        "tips": sum(one.shard.tip_bytes - sum(s.blob_bytes for s in one.shard._tip) for one in service.runtimes.values()),
    }
    _note(world, "rest", {name: value for name, value in left.items() if value})


@contextlib.contextmanager
def _limits(weather: StreamWeather) -> Iterator[None]:
    """The limits of this seed are in force."""
    with contextlib.ExitStack() as stack:
        for name, value in weather.small:
            home = limits if hasattr(limits, name) else stream_service
            stack.enter_context(mock.patch.object(home, name, value))
        for name, value in PASSES.items() if weather.passes else ():
            stack.enter_context(mock.patch.object(limits, name, value * weather.passes))
        if weather.kept:
            rules = {"retention_ms": settings.between(1, limits.MAX_RETENTION_MS)}
            stack.enter_context(mock.patch.dict(settings.RULES, rules))
            stack.enter_context(mock.patch.object(stream_service, "RETENTION_SECONDS", SWEEP_SECONDS))
        if weather.expiry:
            stack.enter_context(mock.patch.object(limits, "ITERATOR_MS", int(weather.expiry * 1000)))
        yield


@contextlib.contextmanager
def _watching(world: World) -> Iterator[None]:
    """Looks at the shards in the store after each commit, and marks what happens inside the broker."""
    marks = world.marks
    apply, older, forget, trim = MemoryStore._apply, StreamService._read_older, StreamCatalog.forget, Shard.trim

    def watch_apply(store: MemoryStore, commit: Commit) -> None:
        apply(store, commit)
        if any(row.kind in (STREAM, SHARD) for row in (*commit.upsert_resources, *commit.delete_resources)):
            catalog = StreamCatalog()
            catalog.replace(row for _, row in sorted(world.disk.resources.items()))
            for record in catalog:
                _note(world, "tiling", untiled([shard.range.hashes for shard in record.open_shards]))
                if any(not set(shard.range.parents) <= set(record.shards) for shard in record.shards.values()):
                    marks["parent forgotten"] += 1

    async def watch_older(service: StreamService, *arguments: Any) -> None:
        marks["older records read"] += 1
        await older(service, *arguments)

    def watch_forget(catalog: StreamCatalog, *arguments: Any) -> None:
        marks["shard forgotten"] += 1
        forget(catalog, *arguments)

    def watch_trim(shard: Shard, bound: int, records: int, size_bytes: int) -> None:
        marks["trimmed"] += 1
        trim(shard, bound, records, size_bytes)

    with (
        mock.patch.object(MemoryStore, "_apply", watch_apply),
        mock.patch.object(StreamService, "_read_older", watch_older),
        mock.patch.object(StreamCatalog, "forget", watch_forget),
        mock.patch.object(Shard, "trim", watch_trim),
    ):
        yield


def run_seed(seed: int, weather: StreamWeather | None = None) -> tuple[World, list[str]]:
    """One run: the world after it, and what the checkers complain about."""
    weather = weather or drawn(random.Random(seed))
    world = World(seed, weather)
    try:
        with _limits(weather), _watching(world):
            simulate(world, story)
    except BaseExceptionGroup as error:
        if error.subgroup(KeyboardInterrupt) is not None:
            raise
        _complain(world, 0.0, "the run fell over", "".join(traceback.format_exception(error))[-2_000:])
    history = RecordedHistory(world.history.operations)
    history.jumps = world.history.jumps
    return world, complaints_of(history)


def report(world: World, complaints: list[str], tail: int = 25) -> str:
    """What there is to say about a seed that failed."""
    again = f"python -m tests.simulation.stream_story --seed {world.seed}"
    return "\n".join(
        [
            f"seed {world.seed}: {len(complaints)} complaints; again with: {again}",
            *(f"    {complaint}" for complaint in complaints[:5]),
            f"    {world.weather}",
            f"    {dict(sorted(world.marks.items()))}",
            *(f"    {line(one)[:300]}" for one in world.history.operations[len(world.history.operations) - tail :]),
        ]
    )


def main() -> int:
    """Returns 1 when a seed failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.stream_story", description=__doc__)
    parser.add_argument("--seed", type=int, help="one seed, with its whole history")
    parser.add_argument("--seeds", default="0..100", help="first..last (last not included)")
    options = parser.parse_args()
    if options.seed is not None:
        world, complaints = run_seed(options.seed)
        for one in world.history.operations:
            print(line(one))
        print(f"seed {world.seed}: {world.weather}; marks: {dict(sorted(world.marks.items()))}")
        for complaint in complaints:
            print("   ", complaint)
        print(world.trace_hash)
        return int(bool(complaints))
    first, _, last = options.seeds.partition("..")
    marks: Counter[str] = Counter()
    failed, operations = [], 0
    for seed in range(int(first), int(last)):
        world, complaints = run_seed(seed)
        marks += world.marks
        operations += len(world.history.operations)
        if complaints:
            failed.append(seed)
            print(report(world, complaints, tail=0), flush=True)
    print(f"{operations} operations, {len(failed)} seeds failed {failed[:20]}; marks: {dict(sorted(marks.items()))}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
