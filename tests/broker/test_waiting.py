"""Receives and consumers that wait: bounded by what their connection takes, ended without a loss, and free while idle."""

from __future__ import annotations

import dataclasses
import gc
import sys
import weakref
from typing import Any
from unittest import mock

import pytest
import trio
import trio.testing
from penstock_broker import session
from penstock_broker.session import SessionLimits
from penstock_protocol import queue_messages as q
from penstock_protocol import session_messages as s
from penstock_protocol.errors import Cancelled, Draining, StoreFailed
from penstock_protocol.frames import Kind
from penstock_storage.memory import Fault, MemoryDisk

from tests.broker.inside import House, Peer, bodies_of, house, on_jumping_clock

HOUR_MS = 3_600_000


async def _slow_client(one: House) -> Peer:
    """What the broker writes to it waits until it reads."""
    peer = one.connect(lockstep=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.write, peer.hello_bytes())
        await peer.wait(1)
    return peer


async def _pushed(peer: Peer, correlation: int, count: int, pause_seconds: float = 0) -> list[q.Delivery]:
    """So many messages of a consumer, or more; after each read it does something else for a while."""
    deliveries: list[q.Delivery] = []
    while len(bodies_of(deliveries)) < count:
        while not any(answer.correlation == correlation for answer in peer.answers):
            assert not peer.at_end, peer.farewell
            await peer.read()
            await trio.sleep(pause_seconds)
        deliveries += (await peer.wait(correlation, Kind.PUSH)).deliveries
    return deliveries


# What a connection takes


@on_jumping_clock
async def test_a_consumer_that_reads_slowly_but_steadily_is_never_cut_off() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("dead")
        await client.create("big", dead_letter_queue="dead", max_receive_count=1)
        for _ in range(6):
            await client.send("big", *[bytes(500_000)] * 4)
        slow = await _slow_client(one)
        consumer = await slow.say(q.Consume("big", 1_000, HOUR_MS))
        deliveries = await _pushed(slow, consumer, 24, pause_seconds=session.WRITE_STALL_SECONDS - 1)
        assert trio.current_time() > 20 * session.WRITE_STALL_SECONDS
        assert len(bodies_of(deliveries)) == 24
        assert not one.broker.counters.connections_failed
        assert (await client.describe("dead")).visible == 0


@on_jumping_clock
async def test_a_consumer_that_does_not_read_takes_no_more_than_its_outbox_holds() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("big")
        for _ in range(15):
            await client.send("big", *[bytes(500_000)] * 4)
        slow = await _slow_client(one)
        consumer = await slow.say(q.Consume("big", 1_000, HOUR_MS))
        await trio.testing.wait_all_tasks_blocked()
        taken = (await client.describe("big")).in_flight
        assert 8 <= taken <= 20
        others = 0
        while deliveries := await client.receive("big", 10, visibility_timeout_ms=HOUR_MS):
            others += len(bodies_of(deliveries))
        assert others == 60 - taken, "what it does not take is there for others"
        assert len(bodies_of(await _pushed(slow, consumer, taken))) == taken
        await client.send("big", b"more")
        assert bodies_of(await _pushed(slow, consumer, 1)) == [b"more"], "it is served again once it has read"


@on_jumping_clock
async def test_receives_of_one_connection_are_served_as_fast_as_it_reads_also_those_that_do_not_wait() -> None:
    with mock.patch.object(session, "OUTBOX_PAUSE_BYTES", 100_000), mock.patch.object(session, "OUTBOX_BYTES", 400_000):
        async with house() as one:
            client = await one.client()
            await client.create("jobs")
            for _ in range(40):
                await client.send("jobs", bytes(20_000))
            slow = await _slow_client(one)
            receives = [slow.pack(q.ReceiveMessages("jobs", 1, HOUR_MS)) for _ in range(41)]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(slow.write, b"".join(data for _, data in receives))
                await trio.testing.wait_all_tasks_blocked()
                assert (await client.describe("jobs")).in_flight < 10
                counts = [len(bodies_of((await slow.wait(correlation)).deliveries)) for correlation, _ in receives]
                assert sorted(counts) == [0, *[1] * 40], "one found nothing left"
            assert not one.broker.counters.connections_failed


@on_jumping_clock
async def test_a_queue_that_is_deleted_tells_also_those_that_wait_for_their_connection() -> None:
    with mock.patch.object(session, "OUTBOX_PAUSE_BYTES", 10_000):
        async with house() as one:
            client = await one.client()
            await client.create("jobs")
            await client.send("jobs", *[bytes(20_000)] * 3)
            slow = await _slow_client(one)
            served, parked = [await slow.say(q.ReceiveMessages("jobs", 1, HOUR_MS, 20_000)) for _ in range(2)]
            await trio.testing.wait_all_tasks_blocked()
            [runtime] = one.broker.queues.runtimes.values()
            assert len(runtime.parked) == runtime.waiting == 1
            await client.call(q.QueueName("jobs"), "DeleteQueue")
            assert (await slow.wait(served)).deliveries
            with pytest.raises(Exception, match="deleted"):
                await slow.wait(parked)


@on_jumping_clock
async def test_what_a_receive_or_a_push_brings_fits_into_a_frame() -> None:
    async with house(limits=SessionLimits(max_frame_bytes=2**16)) as one:
        client = await one.client()
        await client.create("jobs")
        for _ in range(10):
            await client.send("jobs", *[bytes(10_000)] * 3)
        assert len(bodies_of(await client.receive("jobs", 30))) == 5
        consumer = await client.say(q.Consume("jobs", 25))
        for _ in range(5):
            assert len(bodies_of((await client.wait(consumer, Kind.PUSH)).deliveries)) == 5


@on_jumping_clock
async def test_requests_that_wait_for_a_queue_to_be_loaded_are_bounded_in_bytes() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        await (await one.client()).create("jobs")
    with mock.patch.object(session, "MAX_IN_FLIGHT_BYTES", 100_000):
        async with house(disk) as one:
            client = await one.client()
            one.threads.hold("_restore")
            sends = [await client.say(q.SendMessages("jobs", [bytes(30_000)])) for _ in range(20)]
            await trio.testing.wait_all_tasks_blocked()
            [connection] = one.broker.sessions
            assert len(connection._calls) < 12  # one read may bring several
            one.threads.release("_restore")
            for correlation in sends:
                await client.wait(correlation)
            assert (await client.describe("jobs")).visible == 20


# Ending without a loss


@on_jumping_clock
@pytest.mark.parametrize("consumes", [False, True])
async def test_what_was_taken_for_a_client_that_is_gone_before_the_commit_is_visible_again(consumes: bool) -> None:
    async with house() as one:
        client, gone = await one.client(), await one.client()
        await client.create("jobs")
        await client.send("jobs", b"one")
        one.threads.hold("commit")
        await gone.say(q.Consume("jobs", 1, HOUR_MS) if consumes else q.ReceiveMessages("jobs", 1, HOUR_MS))
        await trio.testing.wait_all_tasks_blocked()
        await gone.close()
        await trio.testing.wait_all_tasks_blocked()
        one.threads.release("commit")
        assert bodies_of(await client.receive("jobs", wait_ms=1_000)) == [b"one"]


@on_jumping_clock
async def test_what_a_gone_client_took_under_an_attempt_id_is_left_to_the_repeated_attempt() -> None:
    async with house() as one:
        client, gone = await one.client(), await one.client()
        await client.create("jobs.fifo")
        await client.send("jobs.fifo", b"one", groups=["g"], deduplication_ids=["d"])
        one.threads.hold("commit")
        await gone.say(q.ReceiveMessages("jobs.fifo", 1, HOUR_MS, attempt_id="a"))
        await trio.testing.wait_all_tasks_blocked()
        await gone.close()
        await trio.testing.wait_all_tasks_blocked()
        one.threads.release("commit")
        assert not await client.receive("jobs.fifo", wait_ms=1_000)
        assert bodies_of(await client.receive("jobs.fifo", attempt_id="a")) == [b"one"]


@on_jumping_clock
async def test_a_release_is_repeated_until_it_is_durable() -> None:
    async with house() as one:
        client, gone = await one.client(), await one.client()
        await client.create("jobs")
        await client.send("jobs", b"one")
        consumer = await gone.say(q.Consume("jobs", 1, HOUR_MS, True))
        await gone.wait(consumer, Kind.PUSH)
        one.faults["commit"] = Fault.FAIL
        await gone.close()
        await trio.testing.wait_all_tasks_blocked()
        one.faults.clear()
        assert bodies_of(await client.receive("jobs", wait_ms=10_000)) == [b"one"]


@on_jumping_clock
async def test_what_a_consumer_held_when_its_queue_was_dropped_is_released_when_its_connection_ends() -> None:
    async with house() as one:
        client, holder = await one.client(), await one.client()
        await client.create("jobs")
        await client.send("jobs", b"one", b"two")
        consumer = await holder.say(q.Consume("jobs", 1, HOUR_MS, True))
        await holder.wait(consumer, Kind.PUSH)
        one.faults["commit"] = Fault.FAIL
        with pytest.raises(StoreFailed):
            await client.send("jobs", b"three")
        one.faults.clear()
        with pytest.raises(StoreFailed):
            await holder.wait(consumer)
        assert (await client.describe("jobs")).in_flight == 1, "its client may still be at work on it"
        await holder.close()
        await trio.testing.wait_all_tasks_blocked()
        now = await client.describe("jobs")
        assert (now.in_flight, now.visible) == (0, 2)


@on_jumping_clock
async def test_a_drain_answers_a_long_poll_that_is_being_committed_with_its_messages() -> None:
    async with house() as one:
        client, poller = await one.client(), await one.client()
        await client.create("jobs")
        polls = [await poller.say(q.ReceiveMessages("jobs", 1, HOUR_MS, 20_000)) for _ in range(2)]
        await trio.testing.wait_all_tasks_blocked()
        sending = await client.say(q.SendMessages("jobs", [b"one"]))
        await client.wait(sending)
        one.threads.hold("commit")
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.broker.drain, 10)
            with pytest.raises(Draining):
                await poller.wait(polls[1])
            one.threads.release("commit")
            assert bodies_of((await poller.wait(polls[0])).deliveries) == [b"one"]


@on_jumping_clock
async def test_a_drain_ends_a_receive_whose_queue_is_still_being_loaded() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        await (await one.client()).create("jobs")
    async with house(disk) as one:
        client = await one.client()
        one.threads.hold("_restore")
        poll = await client.say(q.ReceiveMessages("jobs", 1, wait_ms=20_000))
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.broker.drain, 10)
            await trio.testing.wait_all_tasks_blocked()
            one.threads.release("_restore")
            with pytest.raises(Draining):
                await client.wait(poll)
        assert trio.current_time() < 1


@on_jumping_clock
async def test_a_receive_or_consumer_that_is_cancelled_while_its_queue_is_loaded_takes_nothing() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        client = await one.client()
        await client.create("jobs")
        await client.send("jobs", b"one")
    async with house(disk) as one:
        client = await one.client()
        one.threads.hold("_restore")
        consumer = await client.say(q.Consume("jobs", 10, HOUR_MS))
        poll = await client.say(q.ReceiveMessages("jobs", 1, HOUR_MS, 20_000))
        for correlation in (consumer, poll):
            await client.say(s.Cancel(correlation))
        assert await client.wait(consumer) == s.Empty()
        with pytest.raises(Cancelled):
            await client.wait(poll)
        one.threads.release("_restore")
        assert bodies_of(await client.receive("jobs", wait_ms=1_000)) == [b"one"]
        [runtime] = one.broker.queues.runtimes.values()
        assert not runtime.waiting


# Free while idle


@on_jumping_clock
async def test_receives_are_served_in_turn_and_each_ends_at_its_own_time() -> None:
    async with house() as one:
        client, poller = await one.client(), await one.client()
        await client.create("jobs")
        polls = [await poller.say(q.ReceiveMessages("jobs", 1, HOUR_MS, 1_000 + 7_919 * n % 10_000)) for n in range(500)]
        await trio.testing.wait_all_tasks_blocked()
        await client.send("jobs", *[b"%d" % n for n in range(100)])
        for n in range(100):
            assert bodies_of((await poller.wait(polls[n])).deliveries) == [b"%d" % n]
        started = trio.current_time()
        for n in sorted(range(100, 500), key=lambda n: 7_919 * n % 10_000):
            assert not (await poller.wait(polls[n])).deliveries
            assert trio.current_time() - started == pytest.approx(1 + 7_919 * n % 10_000 / 1_000, abs=0.01)
        [runtime] = one.broker.queues.runtimes.values()
        assert not runtime.waiting and not runtime.waiters and runtime.next_deadline() is None


@on_jumping_clock
async def test_looking_after_a_queue_costs_the_same_however_many_wait() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("jobs")
        [runtime] = one.broker.queues.runtimes.values()

        def cost() -> int:
            steps = 0

            def count(*_: Any) -> None:
                nonlocal steps
                steps += 1

            before = sys.getprofile()
            sys.setprofile(count)
            try:
                one.broker.queues.settle(runtime)
            finally:
                sys.setprofile(before)
            return steps

        costs = []
        for more in (3, 600):
            poller = await one.client()
            for _ in range(more):
                await poller.say(q.ReceiveMessages("jobs", 1, wait_ms=20_000))
            await trio.testing.wait_all_tasks_blocked()
            costs.append(cost())
        assert runtime.waiting == 603
        assert costs[0] == costs[1]


@on_jumping_clock
async def test_alarms_that_were_overtaken_and_queues_that_are_gone_are_not_kept() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("jobs")
        await client.send("jobs", b"one")
        await client.receive("jobs", visibility_timeout_ms=12 * HOUR_MS)
        for _ in range(300):
            assert not await client.receive("jobs", wait_ms=100)
        assert len(one.broker.queues._alarms) < 100
        queues = []
        for n in range(20):
            await client.create(f"short-{n}")
            await client.send(f"short-{n}", b"x")
            queues.append(weakref.ref(one.broker.queues.runtime(_caller(one), f"short-{n}").queue))
            await client.call(q.QueueName(f"short-{n}"), "DeleteQueue")
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        assert not [queue for queue in queues if queue() is not None]


def _caller(one: House) -> Any:
    [connection] = one.broker.sessions
    return connection._caller


@on_jumping_clock
async def test_a_receive_ends_in_time_also_when_its_time_is_over_between_two_looks_at_the_clock() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("q")
        service = one.broker.queues
        real, looks = service._ports.now_ms, 0

        def creeping() -> int:
            nonlocal looks
            looks += 1
            return real() + looks

        service._ports = dataclasses.replace(service._ports, now_ms=creeping)
        for later_ms in range(1, 12):
            first = await client.say(q.ReceiveMessages("q", 1, wait_ms=100))
            second = await client.say(q.ReceiveMessages("q", 1, wait_ms=100 + later_ms))
            with trio.fail_after(10):
                assert (await client.wait(first)).deliveries == []
                assert (await client.wait(second)).deliveries == []
