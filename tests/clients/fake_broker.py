"""A broker in threads that forgets everything, answers at once, and fails on command.

It speaks the real protocol through ServerConnection, over real sockets, so clients of every kind can be put in front of it.
Its queues know just enough: standard order, receipts, idempotent sends, visibility without time, push with credit. What a
test wants to go wrong is a list of faults per operation; each request of that operation takes the next one:

    broker.fault("SendMessages", AFTER, StoreFailed())     the first is applied and its connection dropped, the second refused

`broker.seen` is everything that was asked, in order. `python -m tests.clients.fake_broker PORT` serves until killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import hashlib
import hmac
import os
import socket
import ssl
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import anyio.lowlevel
import anyio.to_thread
from penstock_protocol import queue_messages as queues
from penstock_protocol import session_messages as session
from penstock_protocol.codec import Message
from penstock_protocol.connection import Request, ServerConnection
from penstock_protocol.errors import (
    AuthenticationFailed,
    AuthenticationRequired,
    Cancelled,
    InvalidMessage,
    MessageNotInFlight,
    PenstockError,
    QueueDoesNotExist,
)
from penstock_protocol.frames import DEFAULT_FRAME_BYTES

SEGMENT = 1_000
PATIENCE_SECONDS = 20.0


class Fault(enum.Enum):
    """What can happen to a request instead of an answer."""

    BEFORE = "the connection is dropped before the request is applied"
    AFTER = "the request is applied, the connection dropped, the reply lost"
    SILENT = "applied, never answered"
    HOLD = "applied, answered when the test calls release_held()"
    PASS = "nothing: answered as usual"


BEFORE, AFTER, SILENT, HOLD, PASS = Fault


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """One request as it arrived. `connection` counts from 1."""

    connection: int
    operation: str
    message: Any
    size_bytes: int


@dataclasses.dataclass(slots=True)
class StoredMessage:
    """A message and who holds it: `receipt` is empty while it is visible, `released` the last one of who gave it back (which
    still deletes it, as long as nobody else has received it)."""

    sequence: int
    body: bytes
    attributes: list[queues.Attribute] | None
    group: str | None
    receipt: bytes = b""
    released: bytes = b""
    received: int = 0

    def release(self) -> None:
        """Makes it visible again."""
        self.receipt, self.released = b"", self.receipt


@dataclasses.dataclass(slots=True, eq=False)
class Waiter:
    """A receive that waits, or a consumer (`credit` is not None)."""

    link: Link
    correlation: int
    max_messages: int
    credit: int | None = None
    release: bool = False
    held: set[int] = dataclasses.field(default_factory=set)
    given: int = 0
    pushed: int = 0


class FakeQueue:
    """One queue."""

    def __init__(self, log: int) -> None:
        self.log = log
        self.next_sequence = 0
        self.messages: dict[int, StoredMessage] = {}
        self.waiters: list[Waiter] = []

    @property
    def bodies(self) -> list[bytes]:
        """All messages that are not deleted."""
        return [message.body for message in self.messages.values()]

    @property
    def visible(self) -> list[bytes]:
        """Those that can be received."""
        return [message.body for message in self.messages.values() if not message.receipt]

    def take(self, count: int, delivery: int) -> list[queues.Delivery]:
        """Takes up to `count` messages, by segment."""
        taken: dict[tuple[int, int], list[StoredMessage]] = {}
        for message in self.messages.values():
            if count == 0:
                break
            if not message.receipt:
                message.receipt = delivery.to_bytes(16, "big")
                message.received += 1
                taken.setdefault((message.sequence // SEGMENT * SEGMENT, message.received), []).append(message)
                count -= 1
        return [
            queues.Delivery(
                delivery.to_bytes(16, "big"),
                first,
                [message.sequence - first for message in part],
                received,
                2_000,
                1_000,
                [message.body for message in part],
                [message.attributes for message in part],
                [message.group for message in part],
            )
            for (first, received), part in taken.items()
        ]


class Link:
    """One connection."""

    def __init__(self, broker: FakeBroker, sock: socket.socket, number: int) -> None:
        self.broker = broker
        self.sock = sock
        self.number = number
        self.connection = ServerConnection(broker.max_frame_bytes)
        self.producer = b""
        self.challenge = b""

    def send(self, data: bytes) -> None:
        """Writes; a peer that is gone does not matter here."""
        with contextlib.suppress(OSError):
            self.sock.sendall(data)

    def drop(self) -> None:
        """Cuts the connection."""
        self.connection.close()
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        """Reads until the peer is gone."""
        try:
            if self.broker.tls is not None:
                self.sock = self.broker.tls.wrap_socket(self.sock, server_side=True)
            while data := self.sock.recv(1 << 18):
                for event in self.connection.receive_data(data):
                    assert isinstance(event, Request), event
                    self.broker.handle(self, event)
        except PenstockError as error:
            self.send(self.connection.farewell(error))
        except OSError:
            pass  # the peer is gone, or the test dropped the connection
        finally:
            self.broker.gone(self)
            self.sock.close()


class FakeBroker:
    """See the module. A context manager; `url` is where it listens."""

    def __init__(
        self,
        *,
        port: int = 0,
        max_frame_bytes: int = DEFAULT_FRAME_BYTES,
        max_in_flight: int = 1024,
        key: tuple[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        mute: bool = False,
    ) -> None:
        self.max_frame_bytes = max_frame_bytes
        self.max_in_flight = max_in_flight
        self.key = key
        self.tls = tls
        self.mute = mute
        self.queues: dict[str, FakeQueue] = {}
        self.seen: list[Seen] = []
        self.links: list[Link] = []
        self.connections = 0
        self.most_in_flight = 0
        self.violations: list[str] = []
        self.repeated = 0
        self._open_calls: dict[Link, set[int]] = {}
        self._faults: dict[str, deque[Fault | PenstockError]] = {}
        self._held: list[tuple[Link, bytes, int]] = []
        self._answers: dict[tuple[bytes, int], queues.SendReply] = {}
        self._deliveries = 0
        self._changed = threading.Condition(threading.RLock())
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def url(self) -> str:
        """The address for a client."""
        return f"penstock{'s' if self.tls else ''}://127.0.0.1:{self.port}"

    def __enter__(self) -> FakeBroker:
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop_all()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._changed:
                self.connections += 1
                link = Link(self, sock, self.connections)
                self.links.append(link)
                self._changed.notify_all()
                thread = threading.Thread(target=link.run, daemon=True)
                self._threads.append(thread)
            thread.start()

    # What tests do

    def queue(self, name: str) -> FakeQueue:
        """The queue, made if need be."""
        with self._changed:
            return self.queues.setdefault(name, FakeQueue(len(self.queues) + 1))

    def fault(self, operation: str, *faults: Fault | PenstockError) -> None:
        """What happens to the next requests of an operation."""
        with self._changed:
            self._faults.setdefault(operation, deque()).extend(faults)

    def drop_all(self) -> None:
        """Cuts every connection."""
        with self._changed:
            for link in self.links:
                link.drop()

    def release_held(self) -> None:
        """Sends the answers that are held."""
        with self._changed:
            held, self._held = self._held, []
            for link, data, correlation in held:
                self._open_calls[link].discard(correlation)
                link.send(data)

    def asked(self, operation: str) -> list[Any]:
        """The messages of all requests of an operation, in order."""
        with self._changed:
            return [one.message for one in self.seen if one.operation == operation]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Returns once the condition holds; looked at whenever something has happened here."""
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE_SECONDS), "it did not happen"

    async def until(self, condition: Callable[[], bool]) -> None:
        """The same for asynchronous tests."""
        await anyio.to_thread.run_sync(self.wait_until, condition)

    # What clients see

    def gone(self, link: Link) -> None:
        """A connection has ended."""
        with self._changed:
            self.links.remove(link)
            self._open_calls.pop(link, None)
            for queue in self.queues.values():
                for waiter in [one for one in queue.waiters if one.link is link]:
                    self._end(queue, waiter)
            self._changed.notify_all()

    def handle(self, link: Link, request: Request) -> None:
        """Answers one request."""
        with self._changed:
            name = request.operation.name
            message = request.message()
            self.seen.append(Seen(link.number, name, message, len(request.body)))
            if not request.operation.one_way:
                calls = self._open_calls.setdefault(link, set())
                calls.add(request.correlation)
                self.most_in_flight = max(self.most_in_flight, len(calls))
            faults = self._faults.get(name)
            fault = faults.popleft() if faults else PASS
            if fault is BEFORE:
                link.drop()
            elif isinstance(fault, PenstockError):
                self._answer(link, request, fault)
            elif not (self.mute and name == "Hello"):
                try:
                    reply = self._apply(link, request, message)
                except PenstockError as error:
                    reply = error
                if fault is AFTER:
                    link.drop()
                elif fault is HOLD and reply is not None:
                    answer = link.connection.error if isinstance(reply, PenstockError) else link.connection.reply
                    data = answer(request.operation.code, request.correlation, reply)  # type: ignore[arg-type]  # each its own
                    self._held.append((link, data, request.correlation))
                elif fault is not SILENT and reply is not None:
                    self._answer(link, request, reply)
            self._changed.notify_all()

    def _answer(self, link: Link, request: Request, reply: Message | PenstockError) -> None:
        self._open_calls.get(link, set()).discard(request.correlation)
        if isinstance(reply, PenstockError):
            link.send(link.connection.error(request.operation.code, request.correlation, reply))
        else:
            link.send(link.connection.reply(request.operation.code, request.correlation, reply))

    def _apply(self, link: Link, request: Request, message: Any) -> Message | PenstockError | None:
        match message:
            case session.Hello():
                return self._hello(link, message)
            case session.Authenticate():
                assert self.key is not None
                signed = b"penstock-hello-1" + link.challenge + link.producer
                if not hmac.compare_digest(message.proof, hmac.new(self.key[1].encode(), signed, hashlib.sha256).digest()):
                    raise AuthenticationFailed()
                link.connection.open()
                return session.Empty()
            case session.Cancel():
                for queue in self.queues.values():
                    for waiter in [one for one in queue.waiters if one.link is link and one.correlation == message.correlation]:
                        self._end(queue, waiter)
                        if waiter.credit is None:
                            self._open_calls[link].discard(waiter.correlation)
                            link.send(link.connection.error(25, waiter.correlation, Cancelled()))
                        else:
                            self._open_calls[link].discard(waiter.correlation)
                            link.send(link.connection.reply(29, waiter.correlation, session.Empty()))
                return None
            case queues.Credit():
                self._credit(link, message)
                return None
            case queues.CreateQueue():
                self.queue(message.queue)
                return queues.QueueDescription(
                    message.queue, f"arn:{message.queue}", 1, 1, message.settings or [], message.tags or [], 0, 0, 0, 0, None, 1
                )
            case queues.SendMessages():
                return self._send(link, message)
            case queues.ReceiveMessages():
                return self._receive(link, request, message)
            case queues.Consume():
                queue = self._find(message.queue)
                waiter = Waiter(link, request.correlation, 500, message.credit, message.release, given=message.credit)
                queue.waiters.append(waiter)
                self._serve(queue)
                return None
            case queues.DeleteMessages() | queues.ChangeVisibility():
                return self._settle(message)
            case queues.ListQueues():
                names = sorted(name for name in self.queues if name.startswith(message.prefix) and name > message.after)
                return queues.QueueNames(names[:2], len(names) > 2)
        return session.Empty()

    def _hello(self, link: Link, message: session.Hello) -> session.HelloReply:
        link.producer = message.producer
        if self.key is not None:
            if not message.key_id:
                raise AuthenticationRequired()
            link.challenge = os.urandom(32)
            link.connection.challenge()
        else:
            link.connection.open()
        return session.HelloReply("fake", self.max_frame_bytes, self.max_in_flight, link.challenge, "a", "r")

    def _find(self, name: str) -> FakeQueue:
        queue = self.queues.get(name)
        if queue is None:
            raise QueueDoesNotExist(f"there is no queue {name!r}")
        return queue

    def _send(self, link: Link, message: queues.SendMessages) -> queues.SendReply:
        queue = self._find(message.queue)
        known = self._answers.get((link.producer, message.sequence))
        if known is not None:
            self.repeated += 1
            return known
        sequences: list[int] = []
        failures = []
        for index, body in enumerate(message.bodies):
            if body == b"refuse me":
                failures.append(queues.Failure(index, InvalidMessage.code, "refused, as it wanted"))
                continue
            attributes = message.attributes[index] if message.attributes else None
            group = message.groups[index] if message.groups else None
            stored = StoredMessage(queue.next_sequence, body, attributes, group)
            queue.messages[stored.sequence] = stored
            sequences.append(stored.sequence)
            queue.next_sequence += 1
        runs = [queues.Run(sequences[0], len(sequences))] if sequences else []
        reply = self._answers[link.producer, message.sequence] = queues.SendReply(queue.log, runs, failures)
        self._serve(queue)
        return reply

    def _receive(self, link: Link, request: Request, message: queues.ReceiveMessages) -> Message | None:
        queue = self._find(message.queue)
        self._deliveries += 1
        deliveries = queue.take(message.max_messages, self._deliveries)
        if deliveries or not message.wait_ms:
            return queues.ReceiveReply(queue.log, deliveries, 0)
        queue.waiters.append(Waiter(link, request.correlation, message.max_messages))
        return None

    def _serve(self, queue: FakeQueue) -> None:
        for waiter in list(queue.waiters):
            while True:
                self._deliveries += 1
                limit = waiter.max_messages if waiter.credit is None else min(waiter.credit, waiter.max_messages)
                deliveries = queue.take(limit, self._deliveries)
                if not deliveries:
                    break
                reply = queues.ReceiveReply(queue.log, deliveries, 0)
                connection = waiter.link.connection
                if waiter.credit is None:
                    queue.waiters.remove(waiter)
                    self._open_calls[waiter.link].discard(waiter.correlation)
                    waiter.link.send(connection.reply(25, waiter.correlation, reply))
                    break
                count = sum(len(delivery.bodies) for delivery in deliveries)
                waiter.credit -= count
                waiter.pushed += count
                waiter.held |= {self._deliveries}
                waiter.link.send(connection.push(29, waiter.correlation, reply))

    def _credit(self, link: Link, message: queues.Credit) -> None:
        for queue in self.queues.values():
            for waiter in queue.waiters:
                if waiter.link is link and waiter.correlation == message.correlation and waiter.credit is not None:
                    waiter.credit += message.messages
                    waiter.given += message.messages
                    self._serve(queue)
                    return
        self.violations.append(f"credit for {message.correlation}, which is no consumer")

    def _end(self, queue: FakeQueue, waiter: Waiter) -> None:
        queue.waiters.remove(waiter)
        if waiter.release:
            receipts = {number.to_bytes(16, "big") for number in waiter.held}
            for message in queue.messages.values():
                if message.receipt in receipts:
                    message.release()
            self._serve(queue)

    def _settle(self, message: queues.DeleteMessages | queues.ChangeVisibility) -> queues.ReceiptReply:
        queue = self._find(message.queue)
        failures = []
        for entry, receipt in enumerate(message.receipts):
            refused = 0
            for index in _bits(receipt.mask):
                stored = queue.messages.get(receipt.first + index)
                ours = stored is not None and stored.receipt == receipt.receipt
                if isinstance(message, queues.DeleteMessages):
                    if ours or (stored is not None and not stored.receipt and stored.released == receipt.receipt):
                        del queue.messages[receipt.first + index]
                elif not ours:
                    refused |= 1 << index
                elif stored is not None and message.timeouts_ms[entry] == 0:
                    stored.release()
            if refused:
                mask = refused.to_bytes((refused.bit_length() + 7) // 8, "little")
                failures.append(queues.ReceiptFailure(entry, mask, MessageNotInFlight.code, "not in flight"))
        self._serve(queue)
        return queues.ReceiptReply(failures)


async def turns(count: int = 50) -> None:
    """Lets every other task run until it waits for something."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


def _bits(mask: bytes) -> Iterator[int]:
    value = int.from_bytes(mask, "little")
    while value:
        low = value & -value
        yield low.bit_length() - 1
        value ^= low


if __name__ == "__main__":
    with FakeBroker(port=int(sys.argv[1])) as serving:
        serving.queue("jobs")
        print(serving.url, flush=True)
        threading.Event().wait()
