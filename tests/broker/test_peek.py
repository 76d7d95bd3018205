"""Looking into a queue: a bounded piece at a time, for those who still listen, and never in the way of a commit."""

from __future__ import annotations

import threading

import trio
import trio.testing
from penstock_broker import ports, queue_admin
from penstock_broker.session import SessionLimits
from penstock_protocol import queue_messages as q

from tests.broker.inside import Peer, house, on_jumping_clock

HOUR_MS = 3_600_000


async def _browse(client: Peer, **options: object) -> tuple[list[q.PeekedMessage], int]:
    """Everything, and how many calls it took."""
    found: list[q.PeekedMessage] = []
    after, calls = b"", 0
    while True:
        reply: q.PeekReply = await client.call(q.PeekMessages("jobs", **options, after=after))  # type: ignore[arg-type]
        found += reply.messages
        after, calls = reply.after, calls + 1
        if not after:
            return found, calls


@on_jumping_clock
async def test_a_peek_that_finds_nothing_reads_a_bounded_piece_and_tells_where_to_go_on() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("jobs")
        pages = 3 * queue_admin.PEEK_PAGES
        for _ in range(pages):
            await client.send("jobs", bytes(queue_admin.PEEK_PAGE_BYTES))
        await client.send("jobs", b"late", delays_ms=[HOUR_MS])
        one.threads.calls.clear()
        reply = await client.call(q.PeekMessages("jobs", "delayed", 10))
        assert not reply.messages and reply.after
        assert one.threads.calls.count("load_arrivals") == queue_admin.PEEK_PAGES
        found, calls = await _browse(client, state="delayed", limit=10)
        assert [message.body for message in found] == [b"late"] and 3 <= calls <= 5


@on_jumping_clock
async def test_pages_of_peeks_are_all_messages_once_whatever_their_size_and_the_limit_of_a_frame() -> None:
    async with house(limits=SessionLimits(max_frame_bytes=2**17)) as one:
        client = await one.client()
        await client.create("jobs")
        bodies = [b"%03d" % n + bytes((0, 100, 30_000, 90_000, 10)[n % 5]) for n in range(50)]
        for body in bodies:
            await client.send("jobs", body)
        for limit in (1, 7, 1_000):
            found, _ = await _browse(client, state="any", limit=limit)
            assert [message.body for message in found] == bodies


@on_jumping_clock
async def test_a_peek_tells_what_was_received_and_how_often() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("jobs")
        await client.send("jobs", *[b"%d" % n for n in range(6)])
        await client.receive("jobs", 2, visibility_timeout_ms=HOUR_MS)
        await client.receive("jobs", 2, visibility_timeout_ms=0)
        found, _ = await _browse(client, state="any", limit=4)
        states = [(message.state, message.receive_count) for message in found]
        assert states == [("in_flight", 1)] * 2 + [("visible", 1)] * 2 + [("visible", 0)] * 2


@on_jumping_clock
async def test_a_peek_ends_when_its_client_is_gone_and_few_read_at_a_time() -> None:
    async with house() as one:
        client, gone = await one.client(), await one.client()
        await client.create("jobs")
        for _ in range(20):
            await client.send("jobs", bytes(queue_admin.PEEK_PAGE_BYTES))
        one.threads.hold("load_arrivals")
        for _ in range(50):
            await gone.say(q.PeekMessages("jobs", "delayed", 10))
        await trio.testing.wait_all_tasks_blocked()
        await gone.close()
        await trio.testing.wait_all_tasks_blocked()
        one.threads.calls.clear()
        one.threads.release("load_arrivals")
        await client.call(q.PeekMessages("jobs", "any", 1))
        assert one.threads.calls.count("load_arrivals") < 10, "fifty peeks would read all of the queue"


@on_jumping_clock
async def test_peeks_of_a_client_that_does_not_read_wait() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("jobs")
        for _ in range(4):
            await client.send("jobs", bytes(1_000_000))
        slow = one.connect(lockstep=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow.write, slow.hello_bytes())
            await slow.wait(1)
        peeks = [slow.pack(q.PeekMessages("jobs", "any", 10)) for _ in range(30)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow.write, b"".join(data for _, data in peeks))
            await trio.testing.wait_all_tasks_blocked()
            assert one.threads.calls.count("load_arrivals") < 30, "some five for each of them: a few peeks"
            for correlation, _ in peeks:
                assert len((await slow.wait(correlation)).messages) == 4
        assert not one.broker.counters.connections_failed


def test_loads_that_take_all_their_threads_leave_one_for_the_commit_lane() -> None:
    async def main() -> None:
        real = ports.real_ports()
        assert real.in_commit_thread is not None
        go_on, done = threading.Event(), 0

        async def load() -> None:
            nonlocal done
            await real.in_thread(go_on.wait, 60)
            done += 1

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(5 * ports.LOAD_THREADS):
                    nursery.start_soon(load)
                await trio.testing.wait_all_tasks_blocked()
                assert await real.in_commit_thread(lambda: "committed") == "committed"
                assert not done
                go_on.set()

    trio.run(main)
