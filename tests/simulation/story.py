"""What happens in a simulated run: queues are made, clients work in a storm, it ends, everything is counted and drained."""

from __future__ import annotations

import contextlib
import traceback
from typing import Any

import trio
from penstock_protocol import queue_messages as q
from penstock_protocol.errors import PenstockError, QueueDoesNotExist
from penstock_storage.memory import MemoryStore

from tests.checkers.history import Operation, QueueFacts
from tests.checkers.queues import CENSUS, DRAIN, complaints_of
from tests.simulation.clients import SimulatedClient
from tests.simulation.link import Link, insist
from tests.simulation.weather import Weather
from tests.simulation.world import World, simulate

QUEUES = ("q", "p", "f.fifo", "dead", "dead.fifo")


async def _set_up(world: World) -> None:
    weather, chance = world.weather, world.chance
    retention = 60.0 if weather.retention else None
    setup = Link(world, "setup")
    for name in reversed(QUEUES):
        settings = []
        dead_letter = None
        if weather.dead_letters and not name.startswith("dead"):
            dead_letter = "dead.fifo" if name.endswith(".fifo") else "dead"
            settings += [q.Setting("dead_letter_queue", dead_letter), q.Setting("max_receive_count", weather.dead_letters)]
        if retention:
            settings.append(q.Setting("retention_ms", int(retention * 1000)))
        if name == "f.fifo" and chance.random() < weather.delays:
            world.fifo_delay = 0.5
            settings.append(q.Setting("delay_ms", 500))
        world.history.queues[name] = QueueFacts(dead_letter, weather.dead_letters or None, retention)
        await insist(setup, q.CreateQueue(name, settings))
    await setup.close()


async def story(world: World) -> None:
    """See the module."""
    chance = world.chance
    started = world.history.begin("world", "run", trio.current_time(), healthy=world.weather.is_healthy)
    started.outcome, started.completed = "ok", trio.current_time()
    await _set_up(world)
    world.stormy = True
    async with trio.open_nursery() as world.limbo:
        async with trio.open_nursery() as outer:
            outer.start_soon(world.chaos)
            async with trio.open_nursery() as clients:
                for number in range(chance.randint(2, 5)):
                    clients.start_soon(SimulatedClient(world, f"c{number}").run)
            outer.cancel_scope.cancel()
        world.stormy = False
        if world.life is None:
            await world.start_broker()
        elif chance.random() < 0.5 and not world.weather.is_healthy:
            await world.restart()
    if world.weather.retention:
        await trio.sleep(chance.random() * 70)
    await _wait_for_moves(world)
    if not world.history.queues["q"].retention:
        census = SimulatedClient(world, CENSUS)
        for queue in QUEUES:
            await census.ask_counts(queue)
        await census.link.close()
    await _look_into(world)
    await _drain(world)
    await _try_everything(world)
    await _look_into(world)
    await _look_around(world)


def _complain(world: World, now: float, what: str, error: object) -> None:
    record = world.history.begin("world", "alive", now, what=what)
    record.outcome, record.completed, record.error = "fail", now, str(error)


async def _wait_for_moves(world: World) -> None:
    """Move tasks come to an end."""
    link = Link(world, "moves")
    for source in ("dead", "dead.fifo"):
        for _ in range(100):
            tasks = (await insist(link, q.ListMoveTasks(source, 10))).tasks
            if all(task.state not in ("RUNNING", "CANCELLING") for task in tasks):
                break
            await trio.sleep(2)
        else:
            _complain(world, trio.current_time(), "a move task does not end", tasks)
    await link.close()


async def _drain(world: World) -> None:
    """Receives and deletes everything there is, until each queue says that it is empty and nothing comes any more."""
    client = SimulatedClient(world, DRAIN)
    # Clocks may have been moved by an hour: whatever is in flight has to come back first.
    end = trio.current_time() + 120.0 + 3_700.0 * len(world.history.jumps)
    pause, empty = 0.5, 0
    while trio.current_time() < end and empty < 2:
        found = False
        for queue in QUEUES:
            operation = client.begin("receive", queue=queue, visibility=600.0, wait=0.0, most=100)
            reply = await client.ask(operation, q.ReceiveMessages(queue, 100, 600_000, 0))
            if reply is None:
                found = True
                continue
            client.take(operation, queue, reply, 600.0)
            if operation.value:
                found = True
                held, client.held[queue] = client.held[queue], []
                await client.settle(queue, "delete", held)
            else:
                world.history.operations.remove(operation)
        if not found:
            described = [await client.ask_counts(queue) for queue in QUEUES]
            rest = any(one.value is None or any(one.value) for one in described)
            empty = 0 if rest else empty + 1
            for one in described:
                world.history.operations.remove(one)
            pause = min(pause * 1.5, 300.0)
        else:
            pause = 0.5
        await trio.sleep(pause)
    for queue in QUEUES:
        await client.ask_counts(queue)
    await client.link.close()


async def _try_everything(world: World) -> None:
    """The rest works as well: a queue can be made, used and removed, whatever became of earlier tries."""
    link = Link(world, "epilogue")
    step = "create"
    try:
        with contextlib.suppress(QueueDoesNotExist):
            await insist(link, q.QueueName("tmp"), "DeleteQueue")
        await insist(link, q.CreateQueue("tmp"))
        step = "send"
        await insist(link, q.SendMessages("tmp", [b"hello"], sequence=1))
        step = "receive"
        reply = await insist(link, q.ReceiveMessages("tmp", 10, 60_000, 1_000))
        step = "delete"
        receipts = [q.Receipt(one.receipt, one.first, b"\x01") for one in reply.deliveries]
        assert len(receipts) == 1, reply
        await insist(link, q.DeleteMessages("tmp", receipts))
        step = "remove"
        await insist(link, q.QueueName("tmp"), "DeleteQueue")
    except (PenstockError, AssertionError) as error:
        _complain(world, trio.current_time(), f"a queue cannot be used: {step}", repr(error))
    await link.close()


def _facts_of(queue: Any, now_ms: int) -> dict[str, Any]:
    """What a loaded queue believes that a fresh one has to believe as well."""
    queue.sweep_soon(now_ms)
    queue.expire(now_ms)
    deliveries = {
        number: sorted((run.segment.first, run.mask, run.received, run.visible_ms) for run in delivery.all_runs())
        for number, delivery in queue.deliveries.items()
    }
    return {
        "name": queue.name,
        "messages": queue.messages,
        "bytes": queue.size_bytes,
        "in_flight": queue.in_flight,
        "deliveries": {number: runs for number, runs in deliveries.items() if runs},
        "reserved": queue._reserved,
        "trim": queue._trim,
    }


def _forgotten(believed: Any, stored: Any) -> list[str]:
    """What a queue remembers against repetition and the store does not. (The store may remember a little longer; memory
    may when a clock was set back.)"""
    mine, theirs = believed._deduplication, stored._deduplication
    return sorted(
        [f"id {key.hex()}" for key in mine._keys.keys() - theirs._keys.keys()]
        + [f"attempt {key}" for key in mine._attempts.keys() - theirs._attempts.keys()]
    )


async def _look_into(world: World) -> None:
    """At rest, what loaded queues believe is compared with what the store says."""
    life = world.life
    assert life is not None and life.broker is not None
    broker = life.broker
    await broker.lane.wait_idle()
    now_ms = life.now_ms()
    service = broker.queues
    store, service._store = service._store, MemoryStore(world.disk)
    try:
        for runtime in list(service.runtimes.values()):
            believed = {**_facts_of(runtime.queue, now_ms), "only in memory": []}
            if runtime.queue.is_dirty or not broker.lane.is_healthy:
                continue
            fresh = service._restore(runtime.record)
            runtime.queue._deduplication.expire(now_ms)
            stored = {
                **_facts_of(fresh, now_ms),
                "only in memory": [] if world.history.jumps else _forgotten(runtime.queue, fresh),
            }
            record = world.history.begin("world", "memory", trio.current_time())
            record.outcome, record.completed, record.value = "ok", trio.current_time(), (believed, stored)
    finally:
        service._store = store


async def _look_around(world: World) -> None:
    """With all clients gone, nothing of them is left in the broker."""
    assert world.life is not None and world.life.broker is not None
    broker = world.life.broker
    await trio.sleep(5)
    await broker.lane.wait_idle()
    left: dict[str, Any] = {
        "sessions": len(broker.sessions),
        "connections": broker.counters.connections,
        "waiters": sum(len(runtime.waiters) + len(runtime.consumers) for runtime in broker.queues.runtimes.values()),
        "content": broker.budget.used_bytes - sum(runtime.queue.content_bytes for runtime in broker.queues.runtimes.values()),
        "loading": len(broker.queues._loading),
    }
    for runtime in broker.queues.runtimes.values():
        queue = runtime.queue
        left[f"{queue.name}: content"] = queue.content_bytes - sum(one.memory_bytes() for one in queue.segments.values())
        left[f"{queue.name}: ready"] = queue._ready.messages - sum(run.mask.bit_count() for run in queue._ready.runs())
    record = world.history.begin("world", "rest", trio.current_time())
    record.outcome, record.completed = "ok", trio.current_time()
    record.value = {name: value for name, value in left.items() if value}


def run_seed(seed: int, weather: Weather | None = None) -> tuple[World, list[str]]:
    """One run: the world after it, and what the checkers complain about."""
    world = World(seed, weather)
    try:
        simulate(world, story)
    except BaseExceptionGroup as error:
        if error.subgroup(KeyboardInterrupt) is not None:
            raise
        _complain(world, 0.0, "the run fell over", "".join(traceback.format_exception(error))[-2_000:])
    return world, complaints_of(world.history)


def line(one: Operation) -> str:
    """One operation of a history, to be read."""
    what = f"{one.arguments} -> {one.value} {one.error}"
    return f"{one.invoked:9.3f} {one.completed:9.3f} {one.process:6} {one.name:8} {one.outcome:4} {what}"


def report(world: World, complaints: list[str], tail: int = 25) -> str:
    """What there is to say about a seed that failed: complaints, the weather, how to see it again, the end of its history."""
    return "\n".join(
        [
            f"seed {world.seed}: {len(complaints)} complaints; again with: python -m tests.simulation --seed {world.seed}",
            *(f"    {complaint}" for complaint in complaints[:5]),
            f"    {world.weather}",
            f"    {dict(sorted(world.marks.items()))}",
            *(f"    {line(one)[:300]}" for one in world.history.operations[len(world.history.operations) - tail :]),
        ]
    )
