"""Move tasks: all of it moves, to where it came from, for the queues that were asked about, and what was answered is durable."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from penstock_broker.queue_service import QueueService
from penstock_protocol import queue_messages as q
from penstock_protocol.errors import QueueDoesNotExist
from penstock_storage.memory import Fault, MemoryDisk

from tests.broker.inside import House, Peer, bodies_of, house, on_jumping_clock


async def _dead_letters(client: Peer, queue: str, dead: str, *bodies: bytes) -> None:
    """Messages of `queue` that were received too often and are in `dead`."""
    await client.create(dead)
    await client.create(queue, dead_letter_queue=dead, max_receive_count=1)
    await client.send(queue, *bodies)
    while await client.receive(queue, 1_000, visibility_timeout_ms=0):
        pass
    assert (await client.describe(dead)).visible == len(bodies)


async def _task(client: Peer, source: str) -> q.MoveTask:
    [task] = (await client.call(q.ListMoveTasks(source, 1))).tasks
    assert isinstance(task, q.MoveTask)
    return task


async def _ended(client: Peer, source: str) -> q.MoveTask:
    while True:
        task = await _task(client, source)
        if task.state not in ("RUNNING", "CANCELLING"):
            return task
        await trio.sleep(1)


@on_jumping_clock
async def test_a_move_waits_for_pages_that_the_store_does_not_give_at_once() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        await _dead_letters(await one.client(), "jobs", "dead", *[b"%d" % n for n in range(20)])
    async with house(disk) as one:
        client = await one.client()
        # The queue is loaded, its page is not.
        one.threads.hold("load_arrivals")
        assert (await client.describe("dead")).visible == 20
        await trio.testing.wait_all_tasks_blocked()
        one.faults["load"] = Fault.FAIL
        await client.call(q.StartMoveTask("dead"))
        one.threads.release("load_arrivals")
        await trio.sleep(5)
        assert (await _task(client, "dead")).state == "RUNNING"
        one.faults.clear()
        task = await _ended(client, "dead")
        assert (task.state, task.moved) == ("COMPLETED", 20)
        assert (await client.describe("jobs")).visible == 20


@on_jumping_clock
async def test_a_move_that_was_cancelled_stays_cancelled_after_a_crash() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        client = await one.client()
        await _dead_letters(client, "jobs", "dead", *[b"%d" % n for n in range(20)])
        started = await client.call(q.StartMoveTask("dead", "", 1))
        await trio.sleep(0.5)
        one.threads.hold("commit")
        cancelling = await client.say(q.MoveTaskId(started.task_id))
        assert not await client.has_answer(cancelling), "not before it is durable"
        one.threads.release("commit")
        assert (await client.wait(cancelling)).state in ("CANCELLING", "CANCELLED")
        rows = [row for row in disk.resources.values() if row.kind == "move-task"]
        assert all('"RUNNING"' not in row.attributes for row in rows)
    async with house(disk) as one:
        client = await one.client()
        await trio.sleep(30)
        task = await _task(client, "dead")
        assert task.state == "CANCELLED" and task.moved < 3


@on_jumping_clock
async def test_messages_go_back_to_the_queue_they_came_from_whatever_its_settings_are_now() -> None:
    async with house() as one:
        client = await one.client()
        await _dead_letters(client, "jobs", "dead", b"one", b"two")
        await client.create("other", dead_letter_queue="dead", max_receive_count=1)
        await client.call(q.SetQueueSettings("jobs", [q.Setting("dead_letter_queue", "")]))
        await client.call(q.StartMoveTask("dead"))
        task = await _ended(client, "dead")
        assert (task.state, task.moved, task.failure) == ("COMPLETED", 2, "")
        assert sorted(bodies_of(await client.receive("jobs"))) == [b"one", b"two"]
        assert not await client.receive("other")


@on_jumping_clock
async def test_messages_of_a_queue_that_is_gone_stay_and_the_task_says_so() -> None:
    async with house() as one:
        client = await one.client()
        await _dead_letters(client, "jobs", "dead", b"one")
        await client.create("other", dead_letter_queue="dead", max_receive_count=1)
        await client.call(q.QueueName("jobs"), "DeleteQueue")
        await client.call(q.StartMoveTask("dead"))
        task = await _ended(client, "dead")
        assert task.state == "FAILED" and "jobs" in task.failure
        assert (await client.describe("dead")).visible == 1


@on_jumping_clock
@pytest.mark.parametrize("gone", ["dead", "there"])
async def test_a_move_does_nothing_to_a_younger_queue_of_the_same_name(gone: str) -> None:
    async with house() as one:
        client = await one.client()
        await _dead_letters(client, "jobs", "dead", *[b"%d" % n for n in range(20)])
        await client.create("there")
        moves = _moves(one)
        started = await client.call(q.StartMoveTask("dead", "there", 1))
        await trio.sleep(2.5)
        await client.call(q.QueueName(gone), "DeleteQueue")
        await client.create(gone)
        await client.send("dead", b"new")
        await trio.sleep(10)
        [task] = [task for task in moves._tasks.values() if task.task_id == started.task_id]
        assert task.state == "FAILED" and task.moved < 5
        if gone == "dead":
            assert (await client.describe("dead")).visible == 1
            assert not (await client.call(q.ListMoveTasks("dead", 10))).tasks
        else:
            assert (await client.describe("there")).visible == 0


@on_jumping_clock
async def test_ended_tasks_of_queues_that_are_gone_are_forgotten() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        client = await one.client()
        for n in range(8):
            await _dead_letters(client, f"jobs-{n}", f"dead-{n}", b"x")
            await client.call(q.StartMoveTask(f"dead-{n}"))
            assert (await _ended(client, f"dead-{n}")).state == "COMPLETED"
            if n:
                for name in (f"jobs-{n}", f"dead-{n}"):
                    await client.call(q.QueueName(name), "DeleteQueue")
        assert len(_moves(one)._tasks) == 2
        assert sum(row.kind == "move-task" for row in disk.resources.values()) == 2
        assert (await _task(client, "dead-0")).state == "COMPLETED"
        with pytest.raises(QueueDoesNotExist):
            await client.call(q.ListMoveTasks("dead-1", 1))


def _moves(one: House) -> Any:
    assert isinstance(one.broker.queues, QueueService)
    return one.broker.moves
