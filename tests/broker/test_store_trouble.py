"""A store that is full, hangs, or belongs to somebody else: what still works does, and the rest is told."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from penstock_broker.http import Endpoint
from penstock_broker.lane import FULL_PAUSE_MS, STALL_SECONDS
from penstock_protocol import queue_messages as q
from penstock_protocol import session_messages as s
from penstock_protocol.codec import Message
from penstock_protocol.errors import Overloaded
from penstock_storage.interface import Fenced
from penstock_storage.memory import Fault, MemoryDisk, MemoryStore

from tests.broker.inside import House, Peer, bodies_of, house, on_jumping_clock, receipts_of

HOUR_MS = 3_600_000


async def _fill_up(one: House, client: Peer) -> None:
    """From now on the store has no room, and the broker has met that."""
    one.faults["commit"] = Fault.FULL
    with pytest.raises(Overloaded):
        await client.send("jobs", b"too much")


# Full


@on_jumping_clock
async def test_on_a_full_store_no_delete_is_taken_down_by_a_send() -> None:
    async with house() as one:
        client, sender = await one.client(), await one.client()
        await client.create("jobs")
        await client.send("jobs", *[b"%d" % n for n in range(100)])
        receipts = receipts_of(await client.receive("jobs", 100, visibility_timeout_ms=HOUR_MS))
        await _fill_up(one, client)

        async def send() -> None:
            while True:
                with pytest.raises(Overloaded):
                    await sender.send("jobs", b"x")
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for receipt in receipts:
                assert not (await client.call(q.DeleteMessages("jobs", [receipt]))).failures
                await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
        assert trio.current_time() > 3 * FULL_PAUSE_MS / 1000


@on_jumping_clock
async def test_sends_go_on_once_there_is_room_without_anybody_having_tried() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("jobs")
        await _fill_up(one, client)
        await trio.sleep(5 * FULL_PAUSE_MS / 1000)
        assert one.broker.lane.refuses_sends()
        one.faults.clear()
        await trio.sleep(FULL_PAUSE_MS / 1000 + 0.1)
        await client.send("jobs", b"x")
        assert (await client.describe("jobs")).visible == 1


@on_jumping_clock
async def test_on_a_full_store_whatever_adds_is_refused_before_it_is_decided() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("jobs")
        await client.create("dead")
        await client.create("jobs.fifo")
        await client.create("source", dead_letter_queue="dead", max_receive_count=1)
        await _fill_up(one, client)
        one.threads.calls.clear()
        requests: list[Message] = [
            q.CreateQueue("more"),
            q.TagQueue("jobs", [q.Tag("a", "1")]),
            q.SetQueueSettings("jobs", [q.Setting("delay_ms", 1)]),
            q.StartMoveTask("dead"),
            q.ReceiveMessages("jobs.fifo", 1, attempt_id="a"),
            s.CreateKey("admin", ""),
        ]
        for request in requests:
            with pytest.raises(Overloaded):
                await client.call(request)
        assert "commit" not in one.threads.calls


@on_jumping_clock
async def test_on_a_full_store_a_message_that_should_move_waits_for_room() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("dead")
        await client.create("jobs", dead_letter_queue="dead", max_receive_count=1)
        await client.send("jobs", b"one")
        assert bodies_of(await client.receive("jobs", visibility_timeout_ms=0)) == [b"one"]
        await client.send("jobs", b"two")
        await _fill_up(one, client)
        assert bodies_of(await client.receive("jobs")) == [b"two"]
        assert not await client.receive("jobs", wait_ms=20_000), "it was received often enough"
        waiting = await client.say(q.ReceiveMessages("jobs", 1, wait_ms=20_000))
        one.faults.clear()
        await trio.sleep(FULL_PAUSE_MS / 1000 + 2)
        assert (await client.describe("dead")).visible == 1
        await client.send("jobs", b"three")
        assert bodies_of((await client.wait(waiting)).deliveries) == [b"three"]


@on_jumping_clock
async def test_a_move_task_waits_until_there_is_room() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("dead")
        await client.create("jobs", dead_letter_queue="dead", max_receive_count=1)
        await client.send("jobs", *[b"%d" % n for n in range(10)])
        for _ in range(2):
            await client.receive("jobs", visibility_timeout_ms=0)
        await client.call(q.StartMoveTask("dead", "", 1))
        await trio.sleep(1.5)
        await _fill_up(one, client)
        await trio.sleep(60)
        [task] = (await client.call(q.ListMoveTasks("dead", 1))).tasks
        assert task.state == "RUNNING"
        one.faults.clear()
        await trio.sleep(60)
        [task] = (await client.call(q.ListMoveTasks("dead", 1))).tasks
        assert (task.state, task.moved) == ("COMPLETED", 10)


# Silent, or somebody else's


@on_jumping_clock
async def test_a_broker_whose_commit_hangs_is_not_ready_and_shows_it() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("jobs")
        endpoint = Endpoint(one.broker, MemoryStore(one.disk), 10)
        one.threads.hold("commit")
        await client.say(q.SendMessages("jobs", [b"x"]))
        await trio.sleep(STALL_SECONDS - 1)
        assert endpoint.answer("GET", "/readyz")[0] == 200
        await trio.sleep(2)
        status, _, body = endpoint.answer("GET", "/readyz")
        assert (status, body) == (503, b"the store does not answer\n")
        assert b"penstock_store_commit_running_seconds 6." in endpoint.answer("GET", "/metrics")[2]
        one.threads.release("commit")
        await trio.testing.wait_all_tasks_blocked()
        assert endpoint.answer("GET", "/readyz")[0] == 200
        assert b"penstock_store_commit_running_seconds 0." in endpoint.answer("GET", "/metrics")[2]


@on_jumping_clock
async def test_a_broker_that_learns_from_a_sweep_that_it_was_taken_over_ends() -> None:
    disk = MemoryDisk()
    with pytest.raises(BaseExceptionGroup) as ended:
        async with house(disk):
            MemoryStore(disk).acquire("another", "", 0)
            await trio.sleep(60)
            pytest.fail("it did not notice")
    assert ended.value.subgroup(Fenced) is not None
