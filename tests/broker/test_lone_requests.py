"""A lone request goes the shortest way: committed where it was decided if the store is quick, answered without the writer."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from pathlib import Path

import pytest
import trio
import trio.testing
from penstock_broker.commit_thread import CommitThread
from penstock_broker.lane import QUICK_SECONDS, SLOW_SECONDS
from penstock_protocol import queue_messages as q
from penstock_storage.memory import Fault, MemoryStore
from penstock_storage.sql import SqlStore

from tests.broker.inside import Peer, house, on_jumping_clock
from tests.broker.test_lane import Bench, Ledger, _settled, bench


class Quick(MemoryStore):
    """Says that its commits are quick."""

    @property
    def is_quick(self) -> bool:
        return True


def _make_quick(one: Bench) -> None:
    one.lane._store = Quick(one.disk, one.faults.get)


@on_jumping_clock
async def test_a_lone_request_on_a_quick_store_needs_no_thread() -> None:
    async with bench() as one:
        _make_quick(one)
        one.threads.hold("commit")
        outcome = Ledger(one, "a").put("1")
        await _settled()
        assert outcome == [None] and one.stored() == ["1"]
        one.threads.release("commit")


@pytest.mark.parametrize(
    ("fault", "answer"),
    [(Fault.FAIL, "StoreFailed"), (Fault.FULL, "Overloaded"), (Fault.UNKNOWN_LOST, "OutcomeUnknown")],
)
@on_jumping_clock
async def test_a_lone_commit_that_goes_wrong_is_answered_so_and_its_memory_goes(fault: Fault, answer: str) -> None:
    async with bench() as one:
        _make_quick(one)
        one.faults["commit"] = fault
        outcome = Ledger(one, "a").put("1")
        await _settled()
        assert [error and error.name for error in outcome] == [answer]
        assert one.stored() == [] and ("a", "StoreFailed") in one.discarded


@on_jumping_clock
async def test_several_requests_at_once_are_committed_in_the_thread() -> None:
    async with bench() as one:
        _make_quick(one)
        one.threads.hold("commit")
        ledger = Ledger(one, "a")
        outcomes = [ledger.put("1"), ledger.put("2")]
        await _settled()
        assert outcomes == [[], []] and one.stored() == []
        one.threads.release("commit")
        await _settled()
        assert outcomes == [[None], [None]] and one.stored() == ["1", "2"]


@on_jumping_clock
async def test_after_a_slow_commit_the_event_loop_is_left_alone_for_a_while() -> None:
    async with bench() as one:
        one.threads.hold("commit")
        Ledger(one, "a").put("1")
        await trio.sleep(QUICK_SECONDS * 2)
        one.threads.release("commit")
        await _settled()
        _make_quick(one)
        one.threads.hold("commit")
        outcome = Ledger(one, "a").put("2")
        await _settled()
        assert outcome == []
        one.threads.release("commit")
        await _settled()
        assert outcome == [None]
        await trio.sleep(SLOW_SECONDS)
        one.threads.hold("commit")
        assert await _answered(one)
        one.threads.release("commit")


async def _answered(one: Bench) -> bool:
    outcome = Ledger(one, "a").put("3")
    await _settled()
    return outcome == [None]


def test_sqlite_is_quick_unless_something_else_writes(tmp_path: Path) -> None:
    store = SqlStore.open(f"sqlite:///{tmp_path / 'store.db'}", reserve_bytes=0)
    assert store.is_quick
    with store._database.transaction():
        assert not store.is_quick
    assert store.is_quick
    store.close()


def _failing() -> None:
    raise KeyError("no")


def test_the_commit_thread_returns_and_raises_what_the_call_does() -> None:
    async def main() -> None:
        thread = CommitThread()
        caller = threading.get_ident()
        assert await thread.run(threading.get_ident) not in (None, caller)
        assert await thread.run(sum, [1, 2]) == 3
        with pytest.raises(KeyError):
            await thread.run(_failing)
        assert await thread.run(sum, [3]) == 3

    trio.run(main)


def test_a_cancellation_waits_for_the_commit_thread() -> None:
    async def main() -> None:
        thread = CommitThread()
        begun, go = threading.Event(), threading.Event()
        ended: list[bool] = []

        def slow() -> None:
            begun.set()
            go.wait()
            ended.append(True)

        async def run() -> None:
            await thread.run(slow)
            ended.append(False)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.to_thread.run_sync(begun.wait)
            nursery.cancel_scope.cancel()
            go.set()
        assert ended == [True, False]

    trio.run(main)


def test_what_does_not_fit_into_the_socket_is_finished_by_the_writer() -> None:
    async def main() -> None:
        listener = await trio.open_tcp_listeners(0, host="127.0.0.1")
        listener[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        near = await trio.open_tcp_stream("127.0.0.1", listener[0].socket.getsockname()[1])
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        far = await listener[0].accept()
        async with house() as one:
            one._nursery.start_soon(one.broker.serve, far)
            peer = Peer(near, "peer")
            await peer.hello()
            await peer.create("q")
            bodies = [bytes([65 + number % 26]) * 12_000 for number in range(40)]
            for body in bodies:
                await peer.send("q", body)
            correlations = []
            for _ in bodies:  # One at a time, and nothing is read meanwhile: the socket fills up.
                correlations.append(await peer.say(q.ReceiveMessages("q", 1)))
                await trio.testing.wait_all_tasks_blocked(0.001)
            got = [(await peer.wait(number)).deliveries[0].bodies[0] for number in correlations]
            assert got == bodies
            await near.aclose()
        await listener[0].aclose()

    trio.run(main)


@on_jumping_clock
async def test_what_the_socket_takes_of_an_answer_is_not_written_twice() -> None:
    async with house() as one:
        peer = await one.client()
        await peer.create("q")
        await peer.send("q", b"x" * 12_000)
        (session,) = one.broker.sessions
        end, session._file = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(session._file, fcntl.F_SETPIPE_SZ, 4096)
        correlation = await peer.say(q.ReceiveMessages("q", 1))
        await trio.testing.wait_all_tasks_blocked()
        begun = os.read(end, 65_536)
        assert len(begun) == 4096
        os.close(end)
        os.close(session._file)
        session._file = None
        list(peer.connection.receive_data(begun))
        reply = await peer.wait(correlation)
        assert reply.deliveries[0].bodies == [b"x" * 12_000]
