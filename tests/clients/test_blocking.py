"""The blocking client: generated, thread-safe, and merging the sends of many threads."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from penstock import Backoff, Client, Message, Queue, SentMessage, Worker
from penstock import _backend_threads as threads
from penstock._sync.batching import ReceiptBatch, SendBatch
from penstock.errors import Cancelled, ClientClosed, NotConnected, QueueDoesNotExist, RequestTimeout
from penstock.records import pack

from tests.clients.certificates import Authority
from tests.clients.fake_broker import AFTER, BEFORE, HOLD, SILENT, FakeBroker
from tests.clients.fake_streams import StreamBroker

ROOT = Path(__file__).resolve().parents[2]


def test_the_generated_client_is_fresh() -> None:
    command = [sys.executable, "tools/generate_blocking_client.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_asynchronous_is_left_in_the_blocking_client() -> None:
    for path in (ROOT / "clients/penstock/_sync").glob("*.py"):
        text = path.read_text()
        assert "await " not in text and "async " not in text and "anyio" not in text, path


def test_a_message_makes_its_round(broker: FakeBroker) -> None:
    with Client(broker.url) as client:
        queue = client.queue("jobs")
        sent = queue.send("hello", attributes={"n": 1})
        [message] = queue.receive(10)
        assert (message.text, message.attributes, message.message_id) == ("hello", {"n": 1}, sent.message_id)
        message.delete()
    assert broker.queue("jobs").bodies == []


def test_sends_of_many_threads_travel_together(broker: FakeBroker) -> None:
    broker.fault("SendMessages", HOLD, HOLD, HOLD, HOLD)
    with Client(broker.url) as client, ThreadPoolExecutor(64) as pool:
        queue = client.queue("jobs")
        first = [pool.submit(queue.send, b"first %d" % number) for number in range(4)]
        broker.wait_until(lambda: len(broker.asked("SendMessages")) == 4)
        rest = [pool.submit(queue.send, b"%d" % number) for number in range(60)]
        while len(queue._sender._open.bodies) < 60:
            threading.Event().wait(0.001)
        broker.release_held()
        results = [one.result() for one in (*first, *rest)]
    assert len({result.sequence for result in results}) == 64
    assert [len(message.bodies) for message in broker.asked("SendMessages")] == [1, 1, 1, 1, 60]
    stored = broker.queue("jobs").messages
    assert all(stored[one.result().sequence].body == b"%d" % number for number, one in enumerate(rest))


def test_a_frame_larger_than_what_the_socket_takes_at_once_arrives_whole(broker: FakeBroker) -> None:
    bodies = [bytes([number]) * 1_000_000 for number in range(2)]
    with Client(broker.url) as client:
        queue = client.queue("jobs")
        client.ping()
        stream = client.link._stream
        assert stream is not None
        stream._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
        queue.send_many(bodies)
        for body in bodies:
            queue.send(body)
    assert broker.connections == 1
    assert broker.queue("jobs").bodies == bodies * 2


def test_many_threads_share_a_client_without_losing_or_mixing_anything(broker: FakeBroker) -> None:
    def work(number: int, queue: Queue) -> list[SentMessage]:
        return [queue.send(b"%d/%d" % (number, turn)) for turn in range(100)]

    with Client(broker.url) as client, ThreadPoolExecutor(16) as pool:
        running = [pool.submit(work, number, client.queue("jobs")) for number in range(16)]
        for number, one in enumerate(running):
            for turn, sent in enumerate(one.result()):
                assert broker.queue("jobs").messages[sent.sequence].body == b"%d/%d" % (number, turn)
        taken = [pool.submit(client.queue("jobs").receive, 100) for _ in range(16)]
        deleted = [pool.submit(message.delete) for one in taken for message in one.result()]
        assert len([one.result() for one in deleted]) == 1_600
    assert broker.queue("jobs").bodies == []


def test_threads_keep_going_through_lost_connections_without_second_messages(broker: FakeBroker) -> None:
    broker.fault("SendMessages", *[AFTER, BEFORE] * 2)
    with Client(broker.url) as client, ThreadPoolExecutor(8) as pool:
        queue = client.queue("jobs")
        for one in [pool.submit(queue.send, b"%d" % number) for number in range(200)]:
            one.result()
    assert sorted(broker.queue("jobs").bodies) == sorted(b"%d" % number for number in range(200))


def test_two_threads_get_the_same_queue(broker: FakeBroker) -> None:
    with Client(broker.url) as client, ThreadPoolExecutor(8) as pool:
        queues = list(pool.map(client.queue, ["jobs"] * 100))
        assert all(queue is queues[0] for queue in queues)


def test_a_client_forgets_queues_that_nobody_uses(broker: FakeBroker) -> None:
    with Client(broker.url) as client:
        kept = client.queue("jobs")
        for number in range(1_000):
            client.queue(f"reply-{number}")
        gc.collect()
        assert list(client._queues) == ["jobs"]
        assert client.queue("jobs") is kept


def test_a_consumer_iterates_and_is_cancelled_by_leaving_the_block(broker: FakeBroker) -> None:
    with Client(broker.url) as client:
        queue = client.queue("jobs")
        queue.send_many([b"%d" % number for number in range(30)])
        bodies = []
        with queue.consume(credit=7) as messages:
            for message in messages:
                bodies.append(message.body)
                message.delete()
                if len(bodies) == 25:
                    break
        broker.wait_until(lambda: not broker.queue("jobs").waiters)
    assert bodies == [b"%d" % number for number in range(25)]
    assert len(broker.queue("jobs").visible) == 5


def test_a_worker_runs_plain_functions_in_threads(broker: FakeBroker) -> None:
    together = threading.Barrier(4, timeout=10)
    failed_once = []

    def handle(message: Message) -> None:
        if message.body == b"bad" and message.receive_count == 1:
            failed_once.append(message.sequence)
            raise ValueError("not yet")
        if message.body == b"together":
            together.wait()

    with Client(broker.url) as client:
        queue = client.queue("jobs")
        queue.send_many([b"together"] * 4 + [b"bad"])
        worker = Worker(queue, handle, concurrency=4, backoff=Backoff(first=0))
        worker.run(idle_seconds=0.05)
    assert broker.queue("jobs").bodies == []
    assert (worker.processed, worker.failed, len(failed_once)) == (5, 1, 1)


def test_a_worker_leaves_a_handler_behind_that_outlives_its_grace(broker: FakeBroker) -> None:
    free = threading.Event()
    with Client(broker.url) as client:
        queue = client.queue("jobs")
        queue.send(b"endless")
        worker: Worker

        def handle(message: Message) -> None:
            worker.stop()
            free.wait(10)

        worker = Worker(queue, handle, concurrency=2, grace=0.05)
        worker.run()
        assert worker.processed == 0
        assert {thread.name for thread in threading.enumerate()} >= {"penstock-_loop"}
        free.set()
        for thread in threading.enumerate():
            if thread.name in ("penstock-_loop", "penstock-_keep_visible"):
                thread.join(10)
                assert not thread.is_alive()
        broker.wait_until(lambda: broker.queue("jobs").bodies == [])


def test_a_client_needs_no_block(broker: FakeBroker) -> None:
    client = Client(broker.url)
    client.queue("jobs").send(b"x")
    client.close()
    with pytest.raises(ClientClosed):
        client.ping()


def test_errors_and_ends_of_time_are_the_same_as_in_the_asynchronous_client(broker: FakeBroker) -> None:
    broker.fault("Ping", SILENT)
    with Client(broker.url, request_timeout=0.2) as client:
        with pytest.raises(RequestTimeout):
            client.ping()
        with pytest.raises(QueueDoesNotExist):
            client.queue("nowhere").send(b"x")
        assert list(client.list_queues("jo")) == ["jobs"]


def test_without_a_broker_the_first_call_fails_soon() -> None:
    with FakeBroker() as broker:
        url = broker.url
    with Client(url, connect_timeout=0.2) as client, pytest.raises(NotConnected):
        client.ping()


def test_one_tls_connection_carries_both_directions_at_once(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with FakeBroker(tls=authority.server(mutual=True)) as broker:
        broker.queue("jobs")
        with Client(broker.url, tls=authority.client(certified=True)) as client, ThreadPoolExecutor(8) as pool:
            queue = client.queue("jobs")
            bodies = [os.urandom(50_000) for _ in range(60)]
            for one in [pool.submit(queue.send, body) for body in bodies]:
                one.result()
            received = [message.body for one in [pool.submit(queue.receive, 10) for _ in range(6)] for message in one.result()]
        assert sorted(received) == sorted(bodies)
        with Client(broker.url, connect_timeout=0.3) as client, pytest.raises(NotConnected):
            client.ping()


def test_a_client_that_is_closed_while_its_timer_wakes_ends_at_once(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(broker.url)
    client.ping()
    link = client.link
    woken, closed = threading.Event(), threading.Event()
    real = threads.monotonic

    def monotonic() -> float:
        # Between a look of the timer and its taking of the mutex, somebody closes the client.
        if woken.is_set() and not closed.is_set() and threading.current_thread().name == "penstock-_keep_time":
            with link.mutex:
                link._closed.set()
                link._look.set()
            closed.set()
        return real()

    monkeypatch.setattr(threads, "monotonic", monotonic)
    woken.set()
    with link.mutex:
        link._look.set()
    assert closed.wait(10)
    timers = [thread for thread in threading.enumerate() if thread.name == "penstock-_keep_time"]
    for thread in timers:
        thread.join(10)
    assert not [thread.name for thread in timers if thread.is_alive()]
    client.close()


def test_over_tls_a_reader_goes_on_while_a_writer_waits_for_a_peer_that_reads_nothing_until_it_is_read(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    size = 8_000_000
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(2) as pool:

        def peer() -> int:
            sock, _ = listener.accept()
            with authority.server().wrap_socket(sock, server_side=True) as tls:
                tls.settimeout(10)
                got = len(tls.recv(1))  # The writer has begun.
                tls.sendall(bytes(size))
                while got < size:
                    got += len(tls.recv(1 << 18))
                return got

        def write() -> None:
            stream.send(bytes(size))

        taken = pool.submit(peer)
        stream = threads.connect("127.0.0.1", listener.getsockname()[1], authority.client(), 10)
        try:
            written = pool.submit(write)
            received = 0
            while received < size and (data := stream.receive()):
                received += len(data)
            written.result()
            assert (received, taken.result()) == (size, size)
        finally:
            stream.close()


@pytest.mark.parametrize("operation", ["send", "send_many", "delete", "put", "put_many"])
def test_after_many_calls_that_a_ctrl_c_has_ended_the_next_one_still_works(
    operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted = True

    def interrupt(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            if interrupted:
                raise KeyboardInterrupt
            return real(*arguments)

        return step

    # In the middle of what makes a request of a batch.
    monkeypatch.setattr(SendBatch, "to_wire", interrupt(SendBatch.to_wire))
    monkeypatch.setattr(ReceiptBatch, "to_wire", interrupt(ReceiptBatch.to_wire))
    monkeypatch.setattr("penstock._sync.putting.pack", interrupt(pack))
    with StreamBroker() as broker:
        broker.queue("jobs")
        broker.stream("clicks")
        with Client(broker.url, request_timeout=5) as client:
            queue, stream = client.queue("jobs"), client.stream("clicks")
            interrupted = False
            queue.send(b"held")
            [held] = queue.receive()
            calls: dict[str, Callable[[], object]] = {
                "send": lambda: queue.send(b"x"),
                "send_many": lambda: queue.send_many([b"x", b"y"]),
                "delete": held.delete,
                "put": lambda: stream.put(b"x", "k"),
                "put_many": lambda: stream.put_many([(b"x", "k"), (b"y", "k")]),
            }
            worked: list[object] = []

            def work() -> None:
                nonlocal interrupted
                interrupted = True
                for _ in range(20):
                    with contextlib.suppress(KeyboardInterrupt):
                        calls[operation]()
                interrupted = False
                worked.append(calls[operation]())

            thread = threading.Thread(target=work, daemon=True)  # (So that one that hangs does not hold up the other tests.)
            thread.start()
            thread.join(8)
            assert len(worked) == 1


@pytest.mark.parametrize("operation", ["send", "delete", "put"])
def test_who_shares_a_batch_with_a_call_that_a_ctrl_c_has_ended_is_told(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fuse = threading.Event()

    def interrupt(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            if fuse.is_set() and threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            return real(*arguments)

        return step

    monkeypatch.setattr(SendBatch, "to_wire", interrupt(SendBatch.to_wire))
    monkeypatch.setattr(ReceiptBatch, "to_wire", interrupt(ReceiptBatch.to_wire))
    monkeypatch.setattr("penstock._sync.putting.pack", interrupt(pack))
    names = {"send": "SendMessages", "delete": "DeleteMessages", "put": "PutRecords"}
    with StreamBroker() as broker, ThreadPoolExecutor(8) as pool:
        broker.queue("jobs")
        broker.stream("clicks")
        with Client(broker.url, request_timeout=10) as client:
            queue, stream = client.queue("jobs"), client.stream("clicks")
            stream.put(b"x", "k")
            queue.send_many([b"x"] * 8)
            received = queue.receive(8)

            def call(number: int) -> None:
                if operation == "send":
                    queue.send(b"x")
                elif operation == "delete":
                    received[number].delete()
                else:
                    stream.put(b"x", "k")

            before = len(broker.asked(names[operation]))
            broker.fault(names[operation], *[HOLD] * 4)
            on_the_way = [pool.submit(call, number) for number in range(4)]
            broker.wait_until(lambda: len(broker.asked(names[operation])) == before + 4)
            behind = [pool.submit(call, number) for number in range(4, 6)]  # these wait, in one batch
            waiting: dict[str, Callable[[], int]] = {
                "send": lambda: len(queue._sender._open.bodies),
                "delete": lambda: sum(mask.bit_count() for mask in queue._deletes._open._masks),
                "put": lambda: sum(len(lane.open) for lane in stream._lanes._lanes.values()),
            }
            broker.wait_until(lambda: waiting[operation]() == 2)
            # Room for one more: this thread's own call takes the others' along.
            queue._sender.concurrent = stream._lanes._concurrent = 5
            monkeypatch.setattr("penstock._sync.batching.CONCURRENT_BATCHES", 5)
            fuse.set()
            with pytest.raises(KeyboardInterrupt):
                call(6)
            fuse.clear()
            outcomes = [future.exception(15) for future in behind]
            assert [type(outcome) for outcome in outcomes] == [Cancelled, Cancelled]
            assert all("interrupted" in str(outcome) for outcome in outcomes)
            broker.release_held()
            assert [future.exception(15) for future in on_the_way] == [None] * 4
            call(7)


def test_a_ctrl_c_while_a_refusal_is_told_tells_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real = SendBatch.answer

    def interrupted(batch: SendBatch, reply: Any, error: Any) -> None:
        real(batch, reply, error)
        raise KeyboardInterrupt

    with FakeBroker() as broker:
        client = Client(broker.url)
        queue = client.queue("jobs")
        client.close()
        monkeypatch.setattr(SendBatch, "answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            queue.send(b"x")
        assert queue._sender._on_the_way == 0
