"""What the simulation found in the broker, each as the shortest story that shows it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from unittest import mock

import pytest
import trio
from penstock_protocol import queue_messages as q
from penstock_protocol.errors import InvalidRequest, OutcomeUnknown, StoreFailed
from penstock_storage.interface import Commit, CommitUnknown, Incarnation, StoreUnreachable

from tests.simulation.link import Link, insist
from tests.simulation.weather import Weather
from tests.simulation.world import World, simulate

Story = Callable[[World, Link], Awaitable[None]]


def _tell(story: Story) -> World:
    """Runs a story in good weather; nothing may have failed silently."""

    async def main(world: World) -> None:
        await story(world, Link(world, "teller"))

    world = simulate(World(1, Weather()), main)
    assert not [one.value for one in world.history.of("life") if one.value]
    return world


async def _receive(link: Link, queue: str, most: int = 10, visibility_ms: int = 30_000, wait_ms: int = 1_000) -> list[bytes]:
    reply = await insist(link, q.ReceiveMessages(queue, most, visibility_ms, wait_ms))
    return [body for delivery in reply.deliveries for body in delivery.bodies]


async def _dead_letter(link: Link, queue: str, dead: str, *bodies: bytes) -> None:
    """Has bodies sent and received until they are in the dead-letter queue."""
    await insist(link, q.CreateQueue(dead))
    await insist(link, q.CreateQueue(queue, [q.Setting("dead_letter_queue", dead), q.Setting("max_receive_count", 1)]))
    columns = [f"g{place}" for place in range(len(bodies))] if queue.endswith(".fifo") else None
    ids = [body.decode() for body in bodies] if queue.endswith(".fifo") else None
    await insist(link, q.SendMessages(queue, list(bodies), groups=columns, deduplication_ids=ids))  # type: ignore[arg-type]
    assert len(await _receive(link, queue, visibility_ms=0)) == len(bodies)
    assert await _receive(link, queue, wait_ms=0) == []


async def _move(link: Link, source: str, destination: str = "") -> q.MoveTask:
    await insist(link, q.StartMoveTask(source, destination))
    for _ in range(100):
        (task,) = (await insist(link, q.ListMoveTasks(source, 1))).tasks
        if task.state != "RUNNING":
            assert isinstance(task, q.MoveTask)
            return task
        await trio.sleep(0.1)
    raise AssertionError("the move task does not end")


def test_messages_that_were_received_from_a_dead_letter_queue_can_be_moved() -> None:
    async def story(world: World, link: Link) -> None:
        await _dead_letter(link, "f.fifo", "dead.fifo", b"one", b"two", b"three")
        assert len(await _receive(link, "dead.fifo", visibility_ms=0)) == 3
        task = await _move(link, "dead.fifo")
        assert (task.state, task.moved) == ("COMPLETED", 3)
        assert sorted(await _receive(link, "f.fifo")) == [b"one", b"three", b"two"]

    _tell(story)


def test_what_a_failing_move_task_has_moved_is_there_after_a_crash() -> None:
    async def story(world: World, link: Link) -> None:
        await _dead_letter(link, "q", "dead", b"one")
        # A message that came from no queue cannot go back, and ends the task after the first was moved.
        await insist(link, q.SendMessages("dead", [b"two"]))
        task = await _move(link, "dead")
        assert (task.state, task.moved) == ("FAILED", 1)
        await world.restart()
        assert await _receive(link, "q") == [b"one"]
        assert await _receive(link, "dead") == [b"two"]

    _tell(story)


def test_a_waiting_receive_does_not_forget_the_dead_letter_queue_when_that_was_dropped() -> None:
    async def story(world: World, link: Link) -> None:
        await _dead_letter(link, "q", "dead", b"one")
        await insist(link, q.SendMessages("q", [b"two"]))
        assert await _receive(link, "q", visibility_ms=2_000) == [b"two"]
        other = Link(world, "other")
        got: list[list[bytes]] = []

        async def wait() -> None:
            got.append(await _receive(other, "q", wait_ms=5_000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.5)
            assert world.life is not None and world.life.broker is not None
            queues = world.life.broker.queues
            (dead,) = [runtime for runtime in queues.runtimes.values() if runtime.record.name == "dead"]
            queues.drop(dead, StoreFailed())
        assert got == [[]]
        assert sorted(await _receive(link, "dead")) == [b"one", b"two"]

    _tell(story)


def test_messages_are_not_moved_between_fifo_and_standard_queues() -> None:
    async def story(world: World, link: Link) -> None:
        await _dead_letter(link, "q", "dead", b"one")
        await insist(link, q.CreateQueue("f.fifo"))
        with pytest.raises(InvalidRequest):
            await link.call(q.StartMoveTask("dead", "f.fifo"))
        assert await _receive(link, "dead") == [b"one"]

    _tell(story)


def test_what_was_loaded_before_a_late_commit_landed_is_not_believed() -> None:
    async def story(world: World, link: Link) -> None:
        await insist(link, q.CreateQueue("q"))
        await insist(link, q.SendMessages("q", [b"zero"]))
        assert world.life is not None and world.life.broker is not None
        broker = world.life.broker
        store = broker.queues._store
        commit, acquire = store.commit, store.acquire
        late: list[tuple[Incarnation, Commit]] = []

        def broken(incarnation: Incarnation, rows: Commit) -> None:
            late.append((incarnation, rows))
            raise CommitUnknown("the connection broke")

        def slow(node: str, address: str, now_ms: int) -> Incarnation:
            if not loaded:
                raise StoreUnreachable("not yet")
            for incarnation, rows in late:
                commit(incarnation, rows)
            return acquire(node, address, now_ms)

        loaded: list[bool] = []
        with mock.patch.object(store, "commit", broken), mock.patch.object(store, "acquire", slow):
            send = q.SendMessages("q", [b"one"], sequence=1)
            with pytest.raises(OutcomeUnknown):
                await link.call(send)
            # The queue is loaded while the commit is still on its way, then the commit lands.
            await link.call(q.QueueName("q"), "DescribeQueue")
            loaded.append(True)
            await trio.sleep(3)
        await insist(link, send)
        await world.restart()
        assert await _receive(link, "q") == [b"zero", b"one"]

    _tell(story)


def test_a_queue_whose_removal_had_an_unknown_outcome_can_be_made_again() -> None:
    async def story(world: World, link: Link) -> None:
        await insist(link, q.CreateQueue("q"))
        assert world.life is not None and world.life.broker is not None
        store = world.life.broker.queues._store
        commit = store.commit

        def broken(incarnation: Incarnation, rows: Commit) -> None:
            commit(incarnation, rows)
            raise CommitUnknown("the connection broke")

        with mock.patch.object(store, "commit", broken), pytest.raises(OutcomeUnknown):
            await link.call(q.QueueName("q"), "DeleteQueue")
        await trio.sleep(3)
        await link.call(q.CreateQueue("q"))
        await link.call(q.SendMessages("q", [b"one"]))
        await world.restart()
        assert await _receive(link, "q") == [b"one"]

    _tell(story)
