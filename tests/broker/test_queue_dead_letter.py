"""Dead-letter queues and move tasks: what goes there, as what, who allows it, and the way back (SEMANTICS 2.1)."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from penstock_broker.move_tasks import KEPT_TASKS
from penstock_protocol import queue_messages as q
from penstock_protocol.errors import (
    InvalidAttribute,
    InvalidRequest,
    MoveTaskDoesNotExist,
    NotADeadLetterQueue,
    ResourceBusy,
)
from penstock_storage.memory import MemoryDisk

from tests.broker.inside import EPOCH_MS, Peer, bodies_of, house, on_jumping_clock, receipts_of


async def _burdened(client: Peer, *bodies: bytes, suffix: str = "", times: int = 1, **columns: Any) -> None:
    """Queues "jobs" and "dead" with these messages in the second."""
    await client.create("dead" + suffix)
    await client.create("jobs" + suffix, dead_letter_queue="dead" + suffix, max_receive_count=times)
    await client.send("jobs" + suffix, *bodies, **columns)
    await _fail(client, "jobs" + suffix, len(bodies), times)


async def _fail(client: Peer, queue: str, count: int, times: int = 1) -> None:
    """Receives everything that often without deleting it, and once more."""
    for _ in range(times):
        taken = 0
        while taken < count:
            taken += len(bodies_of(await client.receive(queue, 100, visibility_timeout_ms=500)))
        await trio.sleep(0.6)
    assert await client.receive(queue, 100) == []


async def _finished(client: Peer, source: str = "dead") -> q.MoveTask:
    """The newest move task, once it has ended."""
    while True:
        (task,) = (await client.call(q.ListMoveTasks(source))).tasks
        if task.state not in ("RUNNING", "CANCELLING"):
            assert isinstance(task, q.MoveTask)
            return task
        await trio.sleep(0.05)


@pytest.mark.parametrize("times", [1, 3])
@on_jumping_clock
async def test_after_so_many_receives_a_message_goes_to_the_dead_letter_queue(times: int) -> None:
    async with house() as one:
        client = await one.client()
        await client.create("dead")
        await client.create("jobs", dead_letter_queue="dead", max_receive_count=times)
        await client.send("jobs", b"x")
        for count in range(1, times + 1):
            (delivery,) = await client.receive("jobs", visibility_timeout_ms=1_000)
            assert delivery.receive_count == count
            assert (await client.describe("dead")).visible == 0
            await trio.sleep(1)
        assert await client.receive("jobs") == []
        assert ((await client.describe("jobs")).visible, (await client.describe("dead")).visible) == (0, 1)


@on_jumping_clock
async def test_who_finds_nothing_because_all_went_to_the_dead_letter_queue_hears_it_when_it_is_there() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("dead")
        await client.create("jobs", dead_letter_queue="dead", max_receive_count=1)
        await client.send("jobs", b"x", b"y")
        await client.receive("jobs", 10, visibility_timeout_ms=500)
        await trio.sleep(1)
        one.threads.hold("commit")
        empty = await client.say(q.ReceiveMessages("jobs", 10))
        with trio.move_on_after(5):
            await client.wait(empty)
            pytest.fail("answered while the messages were in neither queue")
        one.threads.release("commit")
        assert (await client.wait(empty)).deliveries == []
        assert [bodies_of(await client.receive("dead", 10))] == [[b"x", b"y"]]


@on_jumping_clock
async def test_a_standard_message_keeps_its_send_time_attributes_id_and_source() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("dead")
        reply = None
        await client.create("jobs", dead_letter_queue="dead", max_receive_count=1)
        attributes = [q.Attribute("a", "String", "v")]
        reply = await client.send("jobs", b"x", attributes=[attributes], groups=["tenant"], traces=["trace"])
        await trio.sleep(100)
        await _fail(client, "jobs", 1)
        (delivery,) = await client.receive("dead")
        assert delivery.sent_ms in (EPOCH_MS, [EPOCH_MS])
        assert (delivery.attributes, delivery.groups, delivery.traces) == ([attributes], ["tenant"], ["trace"])
        assert delivery.sources == ["jobs"]
        message_id = reply.log.to_bytes(8, "big") + reply.runs[0].first.to_bytes(8, "big")
        assert delivery.origins == [message_id]
        assert delivery.receive_count == 1, "counted anew"


@on_jumping_clock
async def test_a_fifo_message_is_sent_anew_when_it_goes_there_and_keeps_its_group() -> None:
    async with house() as one:
        client = await one.client()
        await _burdened(client, b"1", b"2", suffix=".fifo", groups=["g", "g"], deduplication_ids=["a", "b"])
        deliveries = await client.receive("dead.fifo")
        assert bodies_of(deliveries) == [b"1", b"2"]
        for delivery in deliveries:
            times = delivery.sent_ms if isinstance(delivery.sent_ms, list) else [delivery.sent_ms]
            assert all(sent_ms > EPOCH_MS for sent_ms in times)
            assert set(delivery.groups or []) == {"g"} and set(delivery.sources or []) == {"jobs.fifo"}


@on_jumping_clock
async def test_only_a_queue_of_the_same_kind_can_be_the_dead_letter_queue() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("dead")
        await client.create("dead.fifo")
        for name, target in (("jobs", "dead.fifo"), ("jobs.fifo", "dead")):
            with pytest.raises(InvalidAttribute, match=r"must be FIFO"):
                await client.create(name, dead_letter_queue=target)


@on_jumping_clock
async def test_a_dead_letter_queue_says_whose_it_is() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("nobodys", redrive_allow="deny_all")
        await client.create("theirs", redrive_allow="by_queue", redrive_sources=["jobs", "others"])
        with pytest.raises(InvalidAttribute, match="does not permit 'jobs'"):
            await client.create("jobs", dead_letter_queue="nobodys")
        with pytest.raises(InvalidAttribute, match="does not permit 'strangers'"):
            await client.create("strangers", dead_letter_queue="theirs")
        await client.create("jobs", dead_letter_queue="theirs")
        with pytest.raises(InvalidAttribute, match="does not permit"):
            await client.call(q.SetQueueSettings("jobs", [q.Setting("dead_letter_queue", "nobodys")]))
        assert (await client.call(q.QueueName("theirs"), "ListDeadLetterSources")).queues == ["jobs"]
        assert (await client.call(q.QueueName("nobodys"), "ListDeadLetterSources")).queues == []


@on_jumping_clock
async def test_without_its_dead_letter_queue_a_message_is_served_on() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("dead")
        await client.create("jobs", dead_letter_queue="dead", max_receive_count=1)
        await client.call(q.QueueName("dead"), "DeleteQueue")
        await client.send("jobs", b"x")
        for count in range(1, 4):
            (delivery,) = await client.receive("jobs", visibility_timeout_ms=0)
            assert delivery.receive_count == count


@on_jumping_clock
async def test_dead_letter_queues_follow_on_each_other() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("deader")
        await client.create("dead", dead_letter_queue="deader", max_receive_count=1)
        await client.create("jobs", dead_letter_queue="dead", max_receive_count=1)
        await client.send("jobs", b"x")
        await _fail(client, "jobs", 1)
        await _fail(client, "dead", 1)
        (delivery,) = await client.receive("deader")
        assert (delivery.bodies, delivery.sources) == ([b"x"], ["dead"])


# The way back


@on_jumping_clock
async def test_messages_go_back_to_where_each_came_from_as_new_ones() -> None:
    async with house() as one:
        client = await one.client()
        await _burdened(client, b"from jobs")
        await client.create("others", dead_letter_queue="dead", max_receive_count=1)
        await client.send("others", b"from others")
        await _fail(client, "others", 1)
        before = await client.receive("dead", visibility_timeout_ms=0)
        ids = {origin for delivery in before for origin in delivery.origins or []}
        assert sorted(bodies_of(before)) == [b"from jobs", b"from others"]
        started = await client.call(q.StartMoveTask("dead"))
        assert (started.state, started.source, started.destination, started.to_move) == ("RUNNING", "dead", "", 2)
        task = await _finished(client)
        assert (task.state, task.moved, task.failure) == ("COMPLETED", 2, "")
        for name in ("jobs", "others"):
            (delivery,) = await client.receive(name)
            assert delivery.bodies == [f"from {name}".encode()]
            assert delivery.receive_count == 1 and delivery.sources is None and delivery.origins is None
            sent_ms = delivery.sent_ms if isinstance(delivery.sent_ms, int) else delivery.sent_ms[0]
            assert sent_ms >= started.started_ms
        assert len(ids) == 2 and (await client.describe("dead")).visible == 0


@on_jumping_clock
async def test_messages_go_to_the_destination_that_is_named() -> None:
    async with house() as one:
        client = await one.client()
        await _burdened(client, *[b"%d" % number for number in range(1_234)])
        await client.create("elsewhere")
        await client.call(q.StartMoveTask("dead", "elsewhere"))
        assert (await _finished(client)).moved == 1_234
        assert (await client.describe("elsewhere")).visible == 1_234
        assert (await client.describe("jobs")).visible == 0


@on_jumping_clock
async def test_a_fifo_dead_letter_queue_goes_back_in_order() -> None:
    async with house() as one:
        client = await one.client()
        await _burdened(client, b"1", b"2", b"3", suffix=".fifo", groups=["g"] * 3, deduplication_ids=["a", "b", "c"])
        await client.call(q.StartMoveTask("dead.fifo"))
        assert (await _finished(client, "dead.fifo")).moved == 3
        assert bodies_of(await client.receive("jobs.fifo")) == [b"1", b"2", b"3"]


@pytest.mark.parametrize("rate", [1, 5, 50])
@on_jumping_clock
async def test_a_move_keeps_to_its_rate(rate: int) -> None:
    async with house() as one:
        client = await one.client()
        await _burdened(client, *[b"x"] * 60)
        started = trio.current_time()
        await client.call(q.StartMoveTask("dead", messages_per_second=rate))
        seen: list[tuple[float, int]] = []
        while (await client.describe("dead")).visible:
            moved = (await client.describe("jobs")).visible
            seen.append((trio.current_time() - started, moved))
            await trio.sleep(0.1)
        assert (await _finished(client)).moved == 60
        assert all(moved <= max(1, rate // 10) + rate * seconds + 1 for seconds, moved in seen)
        assert seen[-1][0] == pytest.approx(60 / rate, abs=1.5)


@on_jumping_clock
async def test_a_move_that_is_cancelled_stops_and_leaves_the_rest() -> None:
    async with house() as one:
        client = await one.client()
        await _burdened(client, *[b"x"] * 60)
        task = await client.call(q.StartMoveTask("dead", messages_per_second=10))
        await trio.sleep(2)
        with pytest.raises(ResourceBusy):
            await client.call(q.StartMoveTask("dead"))
        assert (await client.call(q.MoveTaskId(task.task_id))).state == "CANCELLING"
        ended = await _finished(client)
        assert ended.state == "CANCELLED" and 15 <= ended.moved <= 25
        assert (await client.describe("jobs")).visible == ended.moved
        assert (await client.describe("dead")).visible == 60 - ended.moved
        assert (await client.call(q.MoveTaskId(task.task_id))).state == "CANCELLED", "again it changes nothing"
        await client.call(q.StartMoveTask("dead"))
        assert (await _finished(client)).moved == 60 - ended.moved


@on_jumping_clock
async def test_a_move_goes_on_after_a_restart() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        client = await one.client()
        await _burdened(client, *[b"%d" % number for number in range(60)])
        await client.call(q.StartMoveTask("dead", messages_per_second=10))
        await trio.sleep(2)
    async with house(disk) as one:
        client = await one.client()
        task = await _finished(client)
        assert (task.state, task.moved) == ("COMPLETED", 60)
        bodies = bodies_of(await client.receive("jobs", 100)) + bodies_of(await client.receive("jobs", 100))
        assert sorted(bodies) == sorted(b"%d" % number for number in range(60))


@on_jumping_clock
async def test_a_move_to_a_queue_that_is_gone_fails_and_loses_nothing() -> None:
    async with house() as one:
        client = await one.client()
        await _burdened(client, b"x")
        await client.create("others", dead_letter_queue="dead")
        await client.call(q.QueueName("jobs"), "DeleteQueue")
        await client.call(q.StartMoveTask("dead"))
        task = await _finished(client)
        assert task.state == "FAILED" and "'jobs'" in task.failure and task.moved == 0
        assert bodies_of(await client.receive("dead")) == [b"x"]


@on_jumping_clock
async def test_only_a_dead_letter_queue_can_be_moved_and_only_to_its_own_kind() -> None:
    async with house() as one:
        client = await one.client()
        await _burdened(client, b"x")
        await client.create("other.fifo")
        with pytest.raises(NotADeadLetterQueue):
            await client.call(q.StartMoveTask("jobs"))
        for destination in ("dead", "other.fifo"):
            with pytest.raises(InvalidRequest, match="destination"):
                await client.call(q.StartMoveTask("dead", destination))
        with pytest.raises(InvalidRequest, match="messages_per_second"):
            await client.call(q.StartMoveTask("dead", messages_per_second=2**40))
        with pytest.raises(MoveTaskDoesNotExist):
            await client.call(q.MoveTaskId("move-12345"))
        assert (await client.call(q.ListMoveTasks("dead"))).tasks == []


@on_jumping_clock
async def test_the_newest_tasks_are_listed_first_and_old_ones_are_forgotten() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        client = await one.client()
        await _burdened(client, b"x")
        ids = []
        for _ in range(KEPT_TASKS + 3):
            ids.append((await client.call(q.StartMoveTask("dead"))).task_id)
            await _finished(client)
        assert len((await client.call(q.ListMoveTasks("dead"))).tasks) == 1
        listed = [task.task_id for task in (await client.call(q.ListMoveTasks("dead", 100))).tasks]
        assert listed == ids[: -KEPT_TASKS - 1 : -1]
    async with house(disk) as one:
        client = await one.client()
        assert [task.task_id for task in (await client.call(q.ListMoveTasks("dead", 100))).tasks] == listed


@on_jumping_clock
async def test_what_is_in_flight_or_comes_later_is_not_moved() -> None:
    async with house() as one:
        client = await one.client()
        await _burdened(client, b"1", b"2", b"3")
        (held, *_) = receipts_of(await client.receive("dead", 1, visibility_timeout_ms=60_000))
        started = await client.call(q.StartMoveTask("dead"))
        assert started.to_move == 2
        assert (await _finished(client)).moved == 2
        assert (await client.describe("dead")).in_flight == 1
        assert (await client.call(q.DeleteMessages("dead", [held]))).failures == []
