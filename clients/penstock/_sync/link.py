# Generated from clients/penstock/_async/link.py by tools/generate_blocking_client.py (make sync-client): edit that file.
"""One connection to the broker that is kept up, and the requests on it.

`submit` never waits: it queues bytes for the writer task and returns; the reader task calls back. When the connection
breaks, requests that are safe to repeat are sent again, in their order, over the next one; the others end with
ConnectionLost. A retryable error is asked again after a pause. Every request has a deadline.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import random
from collections import deque
from collections.abc import Callable

from penstock import _backend_threads as backend
from penstock.errors import (
    AuthenticationFailed,
    AuthenticationRequired,
    ClientClosed,
    ConnectionLost,
    NotConnected,
    PenstockError,
    ProtocolError,
    RequestTimeout,
    VersionNotSupported,
)
from penstock.options import Options
from penstock.types import ReceiptHandle, receipts_of
from penstock_protocol import codec
from penstock_protocol import queue_messages as queues
from penstock_protocol.connection import Answer, ClientConnection
from penstock_protocol.frames import Kind
from penstock_protocol.operations import BY_NAME, BY_REQUEST, Operation
from penstock_protocol.session_messages import Authenticate, Cancel, Hello, HelloReply

CLIENT_NAME = "penstock-python/0.1"
TICK = 0.1
"""Seconds between looks at deadlines and retries."""

_FATAL = (AuthenticationFailed, AuthenticationRequired, VersionNotSupported, ProtocolError)
"""Connecting again would not help: requests get these errors."""


class Request:
    """One request on its way. `on_done(reply, error)` is called once, with one of them. `resend`: it may be sent again
    after a lost connection or a retryable error."""

    __slots__ = ("attempts", "correlation", "deadline", "message", "on_done", "on_push", "operation", "resend")

    def __init__(
        self,
        operation: Operation,
        message: codec.Message,
        on_done: Callable[[codec.Message | None, PenstockError | None], None],
        deadline: float,
        *,
        resend: bool,
        on_push: Callable[[codec.Message], None] | None = None,
    ) -> None:
        self.operation = operation
        self.message = message
        self.on_done = on_done
        self.deadline = deadline
        self.resend = resend
        self.on_push = on_push
        self.correlation = 0
        self.attempts = 0


def operation_of(message: codec.Message, name: str | None) -> Operation:
    """The operation a request message belongs to; a name where several share a message."""
    return BY_NAME[name] if name is not None else BY_REQUEST[type(message)]


class Link:
    """See the module. `run` is its task; `mutex` guards everything."""

    def __init__(self, options: Options, mutex: backend.Mutex) -> None:
        self.options = options
        self.mutex = mutex
        self.producer = os.urandom(16)
        self._connection: ClientConnection | None = None
        self._stream: backend.Stream | None = None
        self._max_in_flight = 1
        self._outstanding: dict[int, Request] = {}
        self._waiting: deque[Request] = deque()
        self._later: list[tuple[float, Request]] = []
        self._actions: list[Callable[[], None]] = []
        self._outbox: list[bytes] = []
        self._to_write = backend.Event()
        self._fatal: PenstockError | None = None
        self._last_problem = ""
        self._closed = backend.Event()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    # Requests

    def submit(self, request: Request) -> None:
        """Sends a request as soon as there is a connection with room for it."""
        with self.mutex:
            error: PenstockError | None = None
            if self._closed.is_set():
                error = ClientClosed()
            elif self._fatal is not None:
                error = type(self._fatal)(str(self._fatal))
            elif self._connection is not None and not self._waiting and len(self._outstanding) < self._max_in_flight:
                error = self._post(request)
            else:
                self._waiting.append(request)
        if error is not None:
            request.on_done(None, error)

    def _post(self, request: Request) -> PenstockError | None:
        assert self._connection is not None
        try:
            correlation, data = self._connection.request(request.operation, request.message)
        except PenstockError as error:
            return error
        request.correlation = correlation
        if not request.operation.one_way:
            self._outstanding[correlation] = request
        self._outbox.append(data)
        self._to_write.set()
        return None

    def _post_waiting(self) -> None:
        while self._waiting and self._connection is not None and len(self._outstanding) < self._max_in_flight:
            request = self._waiting.popleft()
            error = self._post(request)
            if error is not None:
                request.on_done(None, error)

    def tell(self, message: codec.Message) -> None:
        """Sends a one-way message if there is a connection; else it is pointless and dropped."""
        with self.mutex:
            if self._connection is not None:
                _, data = self._connection.request(operation_of(message, None), message)
                self._outbox.append(data)
                self._to_write.set()

    def abandon(self, request: Request) -> None:
        """Nobody waits for the answer any more. Messages that a receive brings all the same are released."""
        with self.mutex:
            if request in self._waiting:
                self._waiting.remove(request)
                return
            request.on_done = self._orphan(request)
            if request.operation.waits and self._outstanding.get(request.correlation) is request:
                self.tell(Cancel(request.correlation))

    def _orphan(self, request: Request) -> Callable[[codec.Message | None, PenstockError | None], None]:
        def on_done(reply: codec.Message | None, error: PenstockError | None) -> None:
            if isinstance(reply, queues.ReceiveReply) and isinstance(request.message, queues.ReceiveMessages):
                self.release(request.message.queue, reply)

        return on_done

    def release(self, queue: str, reply: queues.ReceiveReply) -> None:
        """Makes messages visible again that nobody took out of a reply."""
        receipts = []
        for delivery in reply.deliveries:
            indexes = delivery.indexes
            mask = 0
            for index in range(indexes, indexes + len(delivery.bodies)) if isinstance(indexes, int) else indexes:
                mask |= 1 << index
            receipts.append(
                queues.Receipt(delivery.receipt, delivery.first, mask.to_bytes((mask.bit_length() + 7) // 8, "little"))
            )
        self._make_visible(queue, receipts)

    def release_handles(self, queue: str, handles: list[ReceiptHandle]) -> None:
        """The same by handles."""
        self._make_visible(queue, receipts_of(handles)[0])

    def _make_visible(self, queue: str, receipts: list[queues.Receipt]) -> None:
        if receipts:
            message = queues.ChangeVisibility(queue, receipts, [0] * len(receipts))
            deadline = backend.monotonic() + self.options.request_timeout
            self.submit(Request(operation_of(message, None), message, _ignore, deadline, resend=True))

    def withdraw(self, request: Request) -> None:
        """A request that was not sent yet is not to be sent."""
        with self.mutex:
            if request in self._waiting:
                self._waiting.remove(request)

    def after_pause(self, action: Callable[[], None]) -> None:
        """Calls back after a pause."""
        with self.mutex:
            self._actions.append(action)

    def call(
        self, message: codec.Message, name: str | None = None, *, resend: bool | None = None, timeout: float | None = None
    ) -> codec.Message:
        """Sends a request and waits for its reply. After a cancellation the request may still take effect."""
        operation = operation_of(message, name)
        done = backend.Event()
        outcome: list[tuple[codec.Message | None, PenstockError | None]] = []

        def on_done(reply: codec.Message | None, error: PenstockError | None) -> None:
            outcome.append((reply, error))
            done.set()

        deadline = backend.monotonic() + (self.options.request_timeout if timeout is None else timeout)
        again = operation.idempotent if resend is None else resend
        request = Request(operation, message, on_done, deadline, resend=again)
        self.submit(request)
        try:
            done.wait()
        finally:
            if not outcome:
                self.abandon(request)
        reply, error = outcome[0]
        if error is not None:
            raise error
        assert reply is not None
        return reply

    # The connection

    def run(self, tasks: backend.Tasks) -> None:
        """Connects, reads, connects again, until closed."""
        tasks.spawn(self._tick)
        pause = self.options.first_pause
        place = 0
        while not self._closed.is_set():
            host, port = self.options.addresses[place % len(self.options.addresses)]
            place += 1
            try:
                stream = backend.connect(host, port, self.options.tls, self.options.connect_timeout)
            except (OSError, TimeoutError) as error:
                self._last_problem = f"{host}:{port}: {error or type(error).__name__}"
                self._pause(pause)
                pause = min(pause * 2, self.options.longest_pause)
                continue
            try:
                connection, early = self._handshake(stream)
            except (*backend.ConnectionError_, TimeoutError) as error:
                self._last_problem = f"{host}:{port}: no hello: {error or type(error).__name__}"
                stream.close()
                self._pause(pause)
                pause = min(pause * 2, self.options.longest_pause)
                continue
            except PenstockError as error:
                stream.close()
                if isinstance(error, _FATAL):
                    self._fail_for_good(error)
                    return
                self._last_problem = str(error)
                self._pause(pause)
                pause = min(pause * 2, self.options.longest_pause)
                continue
            pause = self.options.first_pause
            self._use(stream, connection, early, tasks)
            if not self._closed.is_set():
                self._pause(pause * random.random())

    def _pause(self, seconds: float) -> None:
        self._closed.wait_for(seconds * (0.5 + random.random()))

    def _handshake(self, stream: backend.Stream) -> tuple[ClientConnection, list[Answer]]:
        """Says hello and proves who it is; returns the open connection."""
        options = self.options
        connection = ClientConnection()
        hello = Hello(CLIENT_NAME, self.producer, options.account, options.region, options.key_id)
        _, data = connection.request(BY_NAME["Hello"], hello)
        stream.send(connection.preface() + data)
        answers = self._answers(stream, connection)
        reply = answers.pop(0).message()
        assert isinstance(reply, HelloReply)
        if reply.challenge:
            signed = b"penstock-hello-1" + reply.challenge + self.producer
            proof = hmac.new(options.secret.encode(), signed, hashlib.sha256).digest()
            _, data = connection.request(BY_NAME["Authenticate"], Authenticate(proof))
            stream.send(data)
            answers = self._answers(stream, connection)
            answers.pop(0).message()
        connection.opened(reply.max_frame_bytes)
        self._max_in_flight = max(1, reply.max_in_flight_requests - 1)
        return connection, answers

    def _answers(self, stream: backend.Stream, connection: ClientConnection) -> list[Answer]:
        while True:
            data = stream.receive()
            if not data:
                raise OSError("the broker closed the connection")
            answers = list(connection.receive_data(data))
            if answers:
                return answers

    def _use(self, stream: backend.Stream, connection: ClientConnection, early: list[Answer], tasks: backend.Tasks) -> None:
        """Reads until the connection breaks."""
        ended = backend.Event()
        with self.mutex:
            self._stream = stream
            self._connection = connection
            self._outbox = []
            self._to_write = backend.Event()
            self._post_waiting()
        tasks.spawn(self._write, stream, ended)
        try:
            for answer in early:
                self._take(answer)
            while True:
                data = stream.receive()
                if not data:
                    break
                for answer in connection.receive_data(data):
                    self._take(answer)
        except backend.ConnectionError_ as error:
            self._last_problem = str(error) or type(error).__name__
        except PenstockError as error:
            self._last_problem = str(error)
        finally:
            ended.set()
            self._lost()
            with backend.shielded(1):
                stream.close()

    def _write(self, stream: backend.Stream, ended: backend.Event) -> None:
        while not ended.is_set():
            with self.mutex:
                data = b"".join(self._outbox)
                self._outbox = []
                if not data:
                    self._to_write = wake = backend.Event()
            if not data:
                wake.wait()
                continue
            try:
                stream.send(data)
            except backend.ConnectionError_:
                stream.close()
                return

    def _take(self, answer: Answer) -> None:
        if answer.kind is Kind.PUSH:
            request = self._outstanding.get(answer.correlation)
            if request is not None and request.on_push is not None:
                request.on_push(answer.message())
            return
        with self.mutex:
            request = self._outstanding.pop(answer.correlation, None)
            if self._waiting:
                self._post_waiting()
        if request is None:
            return
        reply: codec.Message | None = None
        error: PenstockError | None = None
        try:
            reply = answer.message()
        except PenstockError as refused:
            error = refused
        if error is not None and error.retryable and request.resend and not self._closed.is_set():
            pause = min(self.options.first_pause * 2**request.attempts, self.options.longest_pause)
            at = backend.monotonic() + pause * (0.5 + random.random())
            request.attempts += 1
            if at < request.deadline:
                with self.mutex:
                    self._later.append((at, request))
                return
        request.on_done(reply, error)

    def _lost(self) -> None:
        """The connection is gone: what may be repeated waits for the next one."""
        with self.mutex:
            self._connection = None
            self._stream = None
            outstanding, self._outstanding = self._outstanding, {}
            self._to_write.set()
            again = [request for request in outstanding.values() if request.resend]
            self._waiting.extendleft(reversed(again))
        for request in outstanding.values():
            if not request.resend:
                request.on_done(None, ConnectionLost(f"{request.operation.name}: {ConnectionLost.advice}"))

    def _fail_for_good(self, error: PenstockError) -> None:
        with self.mutex:
            self._fatal = error
            waiting, self._waiting = self._waiting, deque()
        for request in waiting:
            request.on_done(None, type(error)(str(error)))

    def _tick(self) -> None:
        """Ends requests whose time is over and repeats those whose pause is."""
        while not self._closed.is_set():
            self._closed.wait_for(TICK)
            now = backend.monotonic()
            with self.mutex:
                due = [request for at, request in self._later if at <= now]
                self._later = [(at, request) for at, request in self._later if at > now]
                late = [request for request in self._waiting if request.deadline <= now]
                if late:
                    self._waiting = deque(request for request in self._waiting if request.deadline > now)
                overdue = [request for request in self._outstanding.values() if request.deadline <= now]
                callbacks = [request.on_done for request in overdue]
                for request in overdue:
                    self.abandon(request)
                    request.deadline = float("inf")
                connected = self._connection is not None
                actions, self._actions = self._actions, []
            for action in actions:
                action()
            for request in due:
                self.submit(request)
            for request in late:
                problem = RequestTimeout() if connected or request.attempts else NotConnected(self._not_connected())
                request.on_done(None, problem)
            for callback in callbacks:
                callback(None, RequestTimeout())

    def _not_connected(self) -> str:
        places = ", ".join(f"{host}:{port}" for host, port in self.options.addresses)
        return f"no broker at {places} ({self._last_problem or 'still connecting'})"

    def close(self) -> None:
        """Ends everything; requests without an answer get ClientClosed."""
        with self.mutex:
            self._closed.set()
            stream = self._stream
            pending = [*self._outstanding.values(), *self._waiting, *(request for _, request in self._later)]
            self._outstanding, self._waiting, self._later = {}, deque(), []
            self._to_write.set()
        for request in pending:
            request.on_done(None, ClientClosed())
        if stream is not None:
            with backend.shielded(1):
                stream.close()


def _ignore(reply: codec.Message | None, error: PenstockError | None) -> None:
    del reply, error
