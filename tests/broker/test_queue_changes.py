"""Changes of one queue that are under way at the same time: each acknowledged one is in force, and a delete is the last word."""

from __future__ import annotations

import pytest
import trio.testing
from penstock_protocol import queue_messages as q
from penstock_protocol import session_messages as s
from penstock_protocol.codec import Message
from penstock_protocol.errors import QueueDoesNotExist, StoreFailed
from penstock_storage.memory import Fault, MemoryDisk

from tests.broker.inside import house, on_jumping_clock


def _settings(description: q.QueueDescription) -> dict[str, object]:
    return {setting.name: setting.value for setting in description.settings}


@on_jumping_clock
async def test_changes_at_the_same_time_are_all_in_force_and_after_a_restart_too() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        client = await one.client()
        await client.create("jobs", tags=[q.Tag("old", "0")])
        one.threads.hold("commit")
        requests: list[Message] = [
            q.TagQueue("jobs", [q.Tag("a", "1")]),
            q.TagQueue("jobs", [q.Tag("b", "2")]),
            q.SetQueueSettings("jobs", [q.Setting("visibility_timeout_ms", 5_000)]),
            q.UntagQueue("jobs", ["old"]),
            q.SetQueueSettings("jobs", [q.Setting("delay_ms", 7_000)]),
        ]
        waiting = []
        for message in requests:
            waiting.append(await client.say(message))
            await trio.testing.wait_all_tasks_blocked()  # the first is being committed, the others wait for the next
        one.threads.release("commit")
        for correlation in waiting:
            await client.wait(correlation)
        now = await client.describe("jobs")
    async with house(disk) as again:
        later = await (await again.client()).describe("jobs")
    for description in (now, later):
        assert description.tags == [q.Tag("a", "1"), q.Tag("b", "2")]
        assert _settings(description)["visibility_timeout_ms"] == 5_000
        assert _settings(description)["delay_ms"] == 7_000


@on_jumping_clock
async def test_a_change_that_failed_leaves_nothing_for_the_next_to_build_on() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("jobs")
        one.faults["commit"] = Fault.FAIL
        with pytest.raises(StoreFailed):
            await client.call(q.TagQueue("jobs", [q.Tag("a", "1")]))
        one.faults.clear()
        await client.call(q.TagQueue("jobs", [q.Tag("b", "2")]))
        assert (await client.describe("jobs")).tags == [q.Tag("b", "2")]


@on_jumping_clock
async def test_a_tag_while_a_delete_is_committed_does_not_bring_the_queue_back() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        client = await one.client()
        await client.create("jobs")
        one.threads.hold("commit")
        deleting = await client.say(q.QueueName("jobs"), "DeleteQueue")
        await trio.testing.wait_all_tasks_blocked()
        tagging = await client.say(q.TagQueue("jobs", [q.Tag("a", "1")]))
        await trio.testing.wait_all_tasks_blocked()
        one.threads.release("commit")
        await client.wait(deleting)
        with pytest.raises(QueueDoesNotExist):
            await client.wait(tagging)
        await client.call(s.Empty(), "Ping")
    assert not disk.resources
    async with house(disk) as again:
        assert not (await (await again.client()).call(q.ListQueues())).queues


@on_jumping_clock
async def test_a_queue_made_while_an_older_one_of_its_name_is_deleted_a_second_time_stays() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        client = await one.client()
        await client.create("jobs")
        # With ids at hand a create decides at once.
        one.broker.handlers["CreateQueue"].__self__._ids += [101, 102]  # type: ignore[attr-defined]
        one.threads.hold("commit")
        deleting = []
        for _ in range(2):
            deleting.append(await client.say(q.QueueName("jobs"), "DeleteQueue"))
            await trio.testing.wait_all_tasks_blocked()
        one.threads.release("commit")
        one.threads.hold("commit")  # lets the first one through
        await client.wait(deleting[0])
        made = await client.say(q.CreateQueue("jobs"))
        await trio.testing.wait_all_tasks_blocked()
        one.threads.release("commit")
        await client.wait(deleting[1])
        await client.wait(made)
        await client.send("jobs", b"x")
        assert (await client.call(q.ListQueues())).queues == ["jobs"]
    assert len(disk.resources) == 1
