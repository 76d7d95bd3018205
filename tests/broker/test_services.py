"""What runs in the background all the time goes on after a defect."""

from __future__ import annotations

from unittest import mock

import trio
import trio.testing
from penstock_broker.queues.queue import Queue
from penstock_protocol import queue_messages as q
from penstock_storage.memory import MemoryDisk

from tests.broker.inside import bodies_of, house, on_jumping_clock


@on_jumping_clock
async def test_a_defect_in_the_time_of_one_queue_does_not_end_time_for_the_others() -> None:
    async with house() as one:
        client = await one.client()
        for name in ("bad", "good"):
            await client.create(name)
        await client.send("bad", b"x")
        await client.receive("bad", visibility_timeout_ms=1_000)
        expire, failures = Queue.expire, 2

        def broken(queue: Queue, now_ms: int) -> bool:
            nonlocal failures
            if queue.name == "bad" and failures:
                failures -= 1
                raise ValueError("a defect")
            return expire(queue, now_ms)

        with mock.patch.object(Queue, "expire", broken):
            await trio.sleep(3)
            assert one.broker.counters.background_errors["run_timer"] == 1
            await client.send("good", b"y", delays_ms=[1_000])
            started = trio.current_time()
            assert bodies_of(await client.receive("good", wait_ms=5_000)) == [b"y"]
            assert trio.current_time() - started < 2
        assert not await client.receive("good", wait_ms=2_000)
        assert bodies_of(await client.receive("bad", wait_ms=5_000)) == [b"x"]


@on_jumping_clock
async def test_a_commit_that_ends_after_the_background_has_nobody_to_tell_and_does_no_harm() -> None:
    async def release_later() -> None:
        await trio.sleep(1)
        one.threads.release("commit")

    disk = MemoryDisk()
    async with trio.open_nursery() as outside, house(disk) as one:
        client = await one.client()
        one.broker.handlers["CreateQueue"].__self__._ids += [101, 102]  # type: ignore[attr-defined]
        one.threads.hold("commit")
        await client.say(q.CreateQueue("jobs"))
        await trio.testing.wait_all_tasks_blocked()
        outside.start_soon(release_later)
    assert [row.name for row in disk.resources.values()] == ["jobs"]
