"""Those who wait for messages: long polls, consumers with credit, what wakes them, and what is left when they go."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from penstock_protocol import queue_messages as q
from penstock_protocol import session_messages as s
from penstock_protocol.errors import Cancelled, QueueDoesNotExist
from penstock_protocol.frames import Kind

from tests.broker.inside import House, Peer, bodies_of, house, on_jumping_clock, receipts_of


async def _poll(client: Peer, wait_ms: int | None = 20_000, most: int = 10, queue: str = "jobs", **options: Any) -> int:
    return await client.say(q.ReceiveMessages(queue, most, wait_ms=wait_ms, **options))


async def _answered(client: Peer, correlation: int) -> tuple[list[bytes], float]:
    """What a receive got, and when."""
    reply = await client.wait(correlation)
    return bodies_of(reply.deliveries), trio.current_time()


async def _two(one: House, **settings: Any) -> tuple[Peer, Peer]:
    """Two clients of the queue "jobs"."""
    first, second = await one.client(), await one.client()
    await first.create("jobs", **settings)
    return first, second


@on_jumping_clock
async def test_a_long_poll_wakes_at_a_send() -> None:
    async with house() as one:
        waiting, sending = await _two(one)
        poll = await _poll(waiting)
        await trio.sleep(7)
        await sending.send("jobs", b"x")
        assert await _answered(waiting, poll) == ([b"x"], 7)


@on_jumping_clock
async def test_a_long_poll_wakes_at_the_end_of_a_delay() -> None:
    async with house() as one:
        waiting, sending = await _two(one)
        await sending.send("jobs", b"x", delays_ms=[5_000])
        poll = await _poll(waiting)
        bodies, seconds = await _answered(waiting, poll)
        assert bodies == [b"x"] and 5 <= seconds < 5.01


@on_jumping_clock
async def test_a_long_poll_wakes_at_the_end_of_a_visibility_timeout() -> None:
    async with house() as one:
        waiting, taking = await _two(one)
        await taking.send("jobs", b"x")
        await taking.receive("jobs", visibility_timeout_ms=6_000)
        poll = await _poll(waiting)
        bodies, seconds = await _answered(waiting, poll)
        assert bodies == [b"x"] and 6 <= seconds < 6.01


@on_jumping_clock
async def test_a_long_poll_wakes_when_a_message_is_given_back() -> None:
    async with house() as one:
        waiting, taking = await _two(one)
        await taking.send("jobs", b"x")
        receipts = receipts_of(await taking.receive("jobs"))
        poll = await _poll(waiting)
        await trio.sleep(3)
        await taking.call(q.ChangeVisibility("jobs", receipts, [0]))
        assert await _answered(waiting, poll) == ([b"x"], 3)


@on_jumping_clock
async def test_a_long_poll_on_a_fifo_queue_wakes_when_the_group_is_free() -> None:
    async with house() as one:
        waiting, taking = await one.client(), await one.client()
        await taking.create("jobs.fifo", content_based_deduplication=True)
        await taking.send("jobs.fifo", b"1", b"2", groups=["g", "g"])
        receipts = receipts_of(await taking.receive("jobs.fifo", 1))
        poll = await _poll(waiting, queue="jobs.fifo")
        await trio.sleep(4)
        await taking.call(q.DeleteMessages("jobs.fifo", receipts))
        assert await _answered(waiting, poll) == ([b"2"], 4)


@on_jumping_clock
async def test_a_long_poll_ends_empty_when_its_time_is_over() -> None:
    async with house() as one:
        waiting, _ = await _two(one)
        bodies, seconds = await _answered(waiting, await _poll(waiting, 20_000))
        assert bodies == [] and 20 <= seconds < 20.01
        assert await _answered(waiting, await _poll(waiting, 0)) == ([], seconds)


@on_jumping_clock
async def test_a_receive_that_names_no_time_waits_as_long_as_the_queue_says() -> None:
    async with house() as one:
        waiting, _ = await _two(one, receive_wait_ms=9_000)
        bodies, seconds = await _answered(waiting, await _poll(waiting, None))
        assert bodies == [] and 9 <= seconds < 9.01


@on_jumping_clock
async def test_who_came_first_is_served_first() -> None:
    async with house() as one:
        await _two(one)
        peers = [await one.client() for _ in range(5)]
        polls = [await _poll(peer, most=1) for peer in peers]
        await trio.testing.wait_all_tasks_blocked()
        for number in range(5):
            await (await one.client()).send("jobs", b"%d" % number)
        assert [(await _answered(peer, poll))[0] for peer, poll in zip(peers, polls, strict=True)] == [
            [b"%d" % number] for number in range(5)
        ]


@on_jumping_clock
async def test_a_receive_that_does_not_wait_overtakes_nobody() -> None:
    async with house() as one:
        first, second = await _two(one)
        poll = await _poll(first, most=1)
        await trio.testing.wait_all_tasks_blocked()
        sent = await second.say(q.SendMessages("jobs", [b"x"]))
        assert await second.receive("jobs", 1) == []
        assert (await _answered(first, poll))[0] == [b"x"]
        await second.wait(sent)


@on_jumping_clock
async def test_a_waiting_receive_can_be_cancelled() -> None:
    async with house() as one:
        waiting, sending = await _two(one)
        poll = await _poll(waiting)
        await waiting.say(s.Cancel(poll))
        with pytest.raises(Cancelled):
            await waiting.wait(poll)
        await sending.send("jobs", b"x")
        assert bodies_of(await sending.receive("jobs")) == [b"x"]


@on_jumping_clock
async def test_who_has_gone_is_forgotten_and_gets_nothing() -> None:
    async with house() as one:
        waiting, sending = await _two(one)
        await _poll(waiting)
        await _poll(waiting)
        await waiting.say(q.Consume("jobs", 10))
        await trio.testing.wait_all_tasks_blocked()
        (runtime,) = one.broker.queues.runtimes.values()
        assert len(runtime.waiters) == 3 and len(runtime.consumers) == 1
        await waiting.close()
        await trio.testing.wait_all_tasks_blocked()
        assert not runtime.waiters and not runtime.consumers
        await sending.send("jobs", b"x")
        (delivery,) = await sending.receive("jobs")
        assert delivery.receive_count == 1


@on_jumping_clock
async def test_who_waits_is_told_when_the_queue_is_deleted() -> None:
    async with house() as one:
        waiting, deleting = await _two(one)
        poll, consumer = await _poll(waiting), await waiting.say(q.Consume("jobs", 1))
        await trio.testing.wait_all_tasks_blocked()
        await deleting.call(q.QueueName("jobs"), "DeleteQueue")
        for correlation in (poll, consumer):
            with pytest.raises(QueueDoesNotExist):
                await waiting.wait(correlation)


# Consumers


async def _pushed(peer: Peer, consumer: int, count: int) -> tuple[list[bytes], list[q.Delivery]]:
    bodies: list[bytes] = []
    deliveries: list[q.Delivery] = []
    while len(bodies) < count:
        reply = await peer.wait(consumer, Kind.PUSH)
        deliveries += reply.deliveries
        bodies += bodies_of(reply.deliveries)
    return bodies, deliveries


@on_jumping_clock
async def test_a_consumer_is_pushed_what_it_has_credit_for_and_no_more() -> None:
    async with house() as one:
        peer, sending = await _two(one)
        await sending.send("jobs", *[b"%d" % number for number in range(10)])
        consumer = await peer.say(q.Consume("jobs", 3))
        assert (await _pushed(peer, consumer, 3))[0] == [b"0", b"1", b"2"]
        assert not await peer.has_answer(consumer)
        await peer.say(q.Credit(consumer, 2))
        assert (await _pushed(peer, consumer, 2))[0] == [b"3", b"4"]
        assert not await peer.has_answer(consumer)
        assert (await sending.describe("jobs")).in_flight == 5


@on_jumping_clock
async def test_a_push_comes_after_its_commit() -> None:
    async with house() as one:
        peer, sending = await _two(one)
        consumer = await peer.say(q.Consume("jobs", 3))
        await sending.send("jobs", b"x")
        await _pushed(peer, consumer, 1)
        await sending.send("jobs", b"y", delays_ms=[5_000])
        one.threads.hold("commit")
        await trio.sleep(6)
        assert not await peer.has_answer(consumer)
        one.threads.release("commit")
        assert (await _pushed(peer, consumer, 1))[0] == [b"y"]


@on_jumping_clock
async def test_consumers_share_what_comes() -> None:
    async with house() as one:
        _, sending = await _two(one)
        peers = [await one.client() for _ in range(3)]
        consumers = [await peer.say(q.Consume("jobs", 1)) for peer in peers]
        await trio.testing.wait_all_tasks_blocked()
        await sending.send("jobs", b"0", b"1", b"2", b"3")
        got = [(await _pushed(peer, consumer, 1))[0] for peer, consumer in zip(peers, consumers, strict=True)]
        assert sorted(got) == [[b"0"], [b"1"], [b"2"]]
        await peers[1].say(q.Credit(consumers[1], 1))
        assert (await _pushed(peers[1], consumers[1], 1))[0] == [b"3"]


@on_jumping_clock
async def test_a_cancelled_consumer_gets_nothing_any_more_not_even_for_late_credit() -> None:
    async with house() as one:
        peer, sending = await _two(one)
        await sending.send("jobs", b"1", b"2")
        consumer = await peer.say(q.Consume("jobs", 1))
        await _pushed(peer, consumer, 1)
        one.threads.hold("commit")
        await sending.say(q.SendMessages("jobs", [b"3"]))
        await trio.testing.wait_all_tasks_blocked()
        await peer.say(s.Cancel(consumer))
        await peer.say(q.Credit(consumer, 5))
        await trio.testing.wait_all_tasks_blocked()
        one.threads.release("commit")
        assert await peer.wait(consumer) == s.Empty()
        assert not await peer.has_answer(consumer)
        description = await sending.describe("jobs")
        assert (description.visible, description.in_flight) == (2, 1)


@pytest.mark.parametrize("release", [True, False])
@pytest.mark.parametrize("gently", [True, False])
@on_jumping_clock
async def test_what_a_consumer_leaves_is_visible_at_once_if_it_asked_for_that(gently: bool, release: bool) -> None:
    async with house() as one:
        peer, sending = await _two(one)
        await sending.send("jobs", b"done", b"left", b"left too")
        consumer = await peer.say(q.Consume("jobs", 3, release=release))
        _, deliveries = await _pushed(peer, consumer, 3)
        await peer.call(q.DeleteMessages("jobs", receipts_of(deliveries)[:1]))
        if gently:
            await peer.say(s.Cancel(consumer))
            await peer.wait(consumer)
        else:
            await peer.close()
        await trio.testing.wait_all_tasks_blocked()
        description = await sending.describe("jobs")
        assert (description.visible, description.in_flight) == ((2, 0) if release else (0, 2))


@on_jumping_clock
async def test_a_consumer_hides_messages_for_the_time_it_named() -> None:
    async with house() as one:
        peer, sending = await _two(one)
        await sending.send("jobs", b"x")
        consumer = await peer.say(q.Consume("jobs", 2, visibility_timeout_ms=3_000))
        (_, first), started = await _pushed(peer, consumer, 1), trio.current_time()
        (_, second) = await _pushed(peer, consumer, 1)
        assert 3 <= trio.current_time() - started < 3.01
        assert [delivery.receive_count for delivery in (*first, *second)] == [1, 2]


@on_jumping_clock
async def test_at_the_limit_in_flight_a_consumer_waits_until_there_is_room() -> None:
    async with house() as one:
        peer, sending = await _two(one, max_in_flight=2)
        await sending.send("jobs", b"1", b"2", b"3")
        consumer = await peer.say(q.Consume("jobs", 10))
        _, deliveries = await _pushed(peer, consumer, 2)
        assert not await peer.has_answer(consumer)
        await peer.call(q.DeleteMessages("jobs", receipts_of(deliveries)[:1]))
        assert (await _pushed(peer, consumer, 1))[0] == [b"3"]


# Idempotent sends


@on_jumping_clock
async def test_a_send_that_is_repeated_makes_no_second_message_also_over_a_restart() -> None:
    async with house() as one:
        client, _ = await _two(one)
        disk = one.disk
        first = await client.send("jobs", b"x", sequence=1)
        assert await client.send("jobs", b"x", sequence=1) == first
    async with house(disk) as one:
        again = one.connect()
        again.producer = client.producer
        await again.hello()
        assert await again.send("jobs", b"x", sequence=1) == first
        assert (await again.describe("jobs")).visible == 1
        other = one.connect()
        other.producer = b"another producer"
        await other.hello()
        await other.send("jobs", b"x", sequence=1)
        await again.send("jobs", b"x", sequence=2)
        await again.send("jobs", b"x")
        assert (await again.describe("jobs")).visible == 4


@on_jumping_clock
async def test_a_repeat_in_the_same_commit_is_answered_once_for_both() -> None:
    async with house() as one:
        client, _ = await _two(one)
        one.threads.hold("commit")
        sent = [await client.say(q.SendMessages("jobs", [b"x"], sequence=1)) for _ in range(3)]
        await trio.testing.wait_all_tasks_blocked()
        one.threads.release("commit")
        replies = [await client.wait(correlation) for correlation in sent]
        assert replies[0] == replies[1] == replies[2]
        assert (await client.describe("jobs")).visible == 1
