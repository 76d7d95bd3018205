"""One connection to the broker that is kept up, and the requests on it.

`submit` never waits: it hands bytes to the writer task and returns; the reader task calls back. When the connection
breaks, requests that are safe to repeat are sent again, in their order, over the next one; the others end with
ConnectionLost. When the broker is in trouble (Draining, Overloaded …) a request is asked again after a pause. Every
request has a deadline, after which it is never sent again; a silent connection is pinged, and given up.

In the blocking client many threads call in here. `mutex` guards all state; nothing waits while holding it.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from penstock_protocol import codec
from penstock_protocol import queue_messages as queues
from penstock_protocol.connection import Answer, ClientConnection
from penstock_protocol.frames import Kind
from penstock_protocol.operations import BY_NAME, BY_REQUEST, Operation
from penstock_protocol.session_messages import Cancel, Empty

from penstock import _backend_async as backend
from penstock._async.hello import Welcome, say_hello
from penstock.errors import (
    AuthenticationFailed,
    AuthenticationRequired,
    Cancelled,
    ClientClosed,
    ConnectionLost,
    Fault,
    InvalidRequest,
    NotConnected,
    NotPermitted,
    OutcomeUnknown,
    PenstockError,
    RequestTimeout,
    ResourceBusy,
    ThroughputExceeded,
    TooManyRequests,
    VersionNotSupported,
    fresh,
)
from penstock.forks import FORKED
from penstock.options import Options
from penstock.types import ReceiptHandle, receipts_of, receipts_of_delivery

log = logging.getLogger("penstock")

REOPEN_SECONDS: Final = 0.1
"""How long a consumer that the broker has ended rests before it is opened again."""

LONGEST_LOOK_SECONDS: Final = 3_600.0
"""The timer looks at least so often: some clocks cannot wait for ever."""

KEEPALIVE_SECONDS: Final = 15.0
"""A connection that was silent for so long is pinged; after twice as long it is given up. Without it a consumer would wait for
ever on a broker whose machine lost its power."""

CLOSE_SECONDS: Final = 1.0
"""How long closing waits for messages that are being released."""

UNKNOWN_FRAME_BYTES: Final = 1_048_576 + 65_536
"""What a frame may hold before a broker has named its limit: one message of the largest size."""

_REFUSED = (AuthenticationFailed, AuthenticationRequired, NotPermitted, VersionNotSupported)
"""Waiting requests get these errors of a hello at once: trying again would not help them."""


@dataclasses.dataclass(slots=True, eq=False)
class Request:
    """One request on its way. `on_done(reply, error)` is called exactly once, with one of them. `resend`: it may be sent again
    although an earlier try may have taken effect. `deadline`: seconds of the monotonic clock; it bounds a consumer's
    opening only. `tries`: how often it was written."""

    operation: Operation
    message: codec.Message
    on_done: Callable[[codec.Message | None, PenstockError | None], None]
    deadline: float
    resend: bool
    on_push: Callable[[codec.Message], None] | None = None
    correlation: int = 0
    tries: int = 0
    refusals: int = 0
    abandoned: bool = False


class Outbox:
    """The bytes on their way to one connection. A writer task sends what has gathered since its last turn, so that many small
    frames cost one system call; a frame that is alone goes out at once, without waking it. The link's mutex guards it."""

    __slots__ = ("chunks", "ended", "is_sending", "stream", "wake")

    def __init__(self, stream: backend.Stream | None) -> None:
        self.stream = stream
        self.chunks: list[bytes] = []
        self.wake = backend.Event()
        self.is_sending = False
        self.ended = False

    def put(self, data: bytes, *, alone: bool) -> None:
        """Adds a frame. `alone`: no other is likely to come with it."""
        if alone and self.stream is not None and not self.is_sending and not self.chunks:
            data = data[self.stream.send_now(data) :]
        if data:
            self.chunks.append(data)
            self.wake.set()


def operation_of(message: codec.Message, name: str | None = None) -> Operation:
    """The operation a request message belongs to; a name where several share a message."""
    return BY_NAME[name] if name is not None else BY_REQUEST[type(message)]


class AsyncLink:
    """See the module. `run` is its task."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.mutex = backend.Mutex()
        self.tasks = backend.Tasks(serving=True)
        self.producer = os.urandom(16)
        self.max_frame_bytes = UNKNOWN_FRAME_BYTES
        self.is_started = False
        self._connection: ClientConnection | None = None
        self._stream: backend.Stream | None = None
        self._outbox = Outbox(None)
        self._max_in_flight = 1
        self._max_long = 1
        self._long = 0
        self._outstanding: dict[int, Request] = {}
        self._waiting: deque[Request] = deque()
        self._waiting_long: deque[Request] = deque()
        self._later: list[tuple[float, Request]] = []
        self._actions: list[tuple[float, Callable[[], None]]] = []
        self._look = backend.Event()
        self._look_at = math.inf
        self._releasing = 0
        self._released = backend.Event()
        self._last_problem = ""
        self._gave_up = ""
        self._was_connected = False
        self._was_useful = False
        self._started = math.inf
        self._heard = 0.0
        self._hello_until = math.inf
        self._ping: Request | None = None
        self._closed = backend.Event()
        self.is_left = False

    def start(self) -> None:
        """Begins to connect."""
        self.is_started = True
        self._started = backend.monotonic()
        self.tasks.spawn(self.run)

    def leave(self) -> None:
        """This is a child process now, and everything here the parent's: nothing is sent, locked or waited for any more."""
        self.mutex = backend.Mutex()
        self.is_left = True
        self._closed = backend.Event()
        self._closed.set()
        self._connection = None
        self._outstanding, self._later, self._actions = {}, [], []
        self._waiting.clear()
        self._waiting_long.clear()
        self._releasing = 0
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.leave()

    @property
    def is_closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._closed.is_set()

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection that requests can use right now."""
        return self._connection is not None

    # Requests

    def submit(self, request: Request) -> None:
        """Sends a request as soon as there is a connection with room for it."""
        error = self._enter(request)
        if error is not None:
            request.on_done(None, error)

    def _enter(self, request: Request) -> PenstockError | None:
        error: PenstockError | None = None
        with self.mutex:
            if not self.is_started and not backend.STARTS_IN_BLOCK and not self._closed.is_set():
                self.start()
            if self._closed.is_set():
                error = ClientClosed(FORKED if self.is_left else "")
            elif not self.is_started:
                error = ClientClosed("the client is not open yet: use it inside its `with` block")
            else:
                waiting = self._waiting_long if request.operation.waits else self._waiting
                if not waiting and self._has_room(request):
                    error = self._post(request)
                else:
                    waiting.append(request)
                    if not self._was_connected:
                        self._expect(self._started + self.options.connect_timeout)
                self._expect(request.deadline)
        return error

    def submit_made(
        self, make: Callable[[], Request], on_done: Callable[[codec.Message | None, PenstockError | None], None]
    ) -> None:
        """Makes a request and submits it. If anything ends that early, say a Ctrl-C that the program survives, `on_done` is told
        unless the request is on its way all the same: others wait for the batch that it carries."""
        request: Request | None = None
        try:
            request = make()
            error = self._enter(request)
        except BaseException:
            if request is None or not self._knows(request):
                on_done(None, Cancelled("not sent: the program was interrupted"))
            raise
        if error is not None:
            on_done(None, error)

    def _knows(self, request: Request) -> bool:
        waiting = self._waiting_long if request.operation.waits else self._waiting
        return request in waiting or self._outstanding.get(request.correlation) is request

    def _has_room(self, request: Request) -> bool:
        """Requests that may wait long leave room for the others: deletes are not held up by long polls."""
        if self._connection is None or len(self._outstanding) >= self._max_in_flight:
            return False
        return not request.operation.waits or self._long < self._max_long

    def _post(self, request: Request) -> PenstockError | None:
        assert self._connection is not None
        try:
            correlation, data = self._connection.request(request.operation, request.message)
        except PenstockError as error:
            return error
        except (TypeError, ValueError, OverflowError) as error:
            # A name that is no text, a number that is too large: that is the matter of this call, not of those who wait with it.
            return InvalidRequest(f"{request.operation.name} cannot be sent: {error}")
        request.correlation = correlation
        request.tries += 1
        self._outstanding[correlation] = request
        if request.operation.waits:
            self._long += 1
        others = self._long if request.operation.waits else len(self._outstanding) - self._long
        self._outbox.put(data, alone=others <= 1)
        return None

    def _post_waiting(self) -> list[tuple[Request, PenstockError]]:
        """Writes what there is room for. Returns what cannot be sent at all; the caller tells them without the mutex."""
        refused = []
        for waiting in (self._waiting, self._waiting_long):
            while waiting and self._has_room(waiting[0]):
                request = waiting.popleft()
                error = self._post(request)
                if error is not None:
                    refused.append((request, error))
        return refused

    def tell(self, message: codec.Message) -> None:
        """Sends a one-way message if there is a connection; else it is pointless and dropped."""
        with self.mutex:
            if self._connection is not None:
                _, data = self._connection.request(operation_of(message), message)
                self._outbox.put(data, alone=False)

    def is_on_the_way(self, request: Request) -> bool:
        """Whether it was written to the current connection and not answered yet."""
        return self._outstanding.get(request.correlation) is request

    def cancel(self, request: Request) -> None:
        """Asks the broker to end a waiting request. Nothing if it is not on the current connection."""
        with self.mutex:
            if self.is_on_the_way(request):
                self.tell(Cancel(request.correlation))

    def withdraw(self, request: Request) -> bool:
        """Takes back a request that is not on its way right now; whether it was one. Its `on_done` is not called any more."""
        with self.mutex:
            waiting = self._waiting_long if request.operation.waits else self._waiting
            if request in waiting:
                waiting.remove(request)
                return True
            kept = [(at, other) for at, other in self._later if other is not request]
            was_later = len(kept) < len(self._later)
            self._later = kept
            return was_later

    def abandon(self, request: Request) -> None:
        """Nobody waits for the answer any more: it is not sent again. Messages a receive brings all the same are released."""
        with self.mutex:
            request.abandoned = True
            if not self.withdraw(request) and request.operation.waits:
                self.cancel(request)

    def after_pause(self, action: Callable[[], None]) -> None:
        """Calls back in a moment, with the mutex free."""
        with self.mutex:
            at = backend.monotonic() + REOPEN_SECONDS
            self._actions.append((at, action))
            self._expect(at)

    async def call(
        self, message: codec.Message, name: str | None = None, *, resend: bool | None = None, timeout: float | None = None
    ) -> codec.Message:
        """Sends a request and waits for its reply. After a cancellation the request may still take effect; messages that a
        cancelled receive took are released."""
        operation = operation_of(message, name)
        done = backend.Event()
        outcome: list[tuple[codec.Message | None, PenstockError | None]] = []

        def on_done(reply: codec.Message | None, error: PenstockError | None) -> None:
            with self.mutex:
                outcome.append((reply, error))
                too_late = request.abandoned
            done.set()
            if too_late:
                self._orphaned(request, reply)

        deadline = backend.monotonic() + (self.options.request_timeout if timeout is None else timeout)
        request = Request(operation, message, on_done, deadline, operation.idempotent if resend is None else resend)
        self.submit(request)
        try:
            await done.wait()
        except BaseException:
            with self.mutex:
                self.abandon(request)
                arrived = outcome[0][0] if outcome else None
            self._orphaned(request, arrived)
            raise
        reply, error = outcome[0]
        if error is not None:
            raise error
        assert reply is not None
        return reply

    def _orphaned(self, request: Request, reply: codec.Message | None) -> None:
        """A reply that nobody takes. (The messages of an attempt stay taken: who repeats it may have got them already.)"""
        message = request.message
        if isinstance(reply, queues.ReceiveReply) and isinstance(message, queues.ReceiveMessages) and not message.attempt_id:
            self.release(message.queue, reply)

    # Releasing messages nobody took

    def release(self, queue: str, reply: queues.ReceiveReply) -> None:
        """Makes the messages of a reply visible again, in the background."""
        self._make_visible(queue, [receipts_of_delivery(delivery) for delivery in reply.deliveries])

    def release_handles(self, queue: str, handles: Iterable[ReceiptHandle]) -> None:
        """The same by handles."""
        self._make_visible(queue, receipts_of(handles))

    def _make_visible(self, queue: str, receipts: list[queues.Receipt]) -> None:
        if not receipts:
            return

        def on_done(reply: codec.Message | None, error: PenstockError | None) -> None:
            del reply
            if error is not None:
                log.info("messages of %s were not released; they come back after their visibility timeout: %s", queue, error)
            with self.mutex:
                self._releasing -= 1
                if not self._releasing:
                    self._released.set()

        message = queues.ChangeVisibility(queue, receipts, [0] * len(receipts))
        deadline = backend.monotonic() + self.options.request_timeout
        with self.mutex:
            if not self._releasing:
                self._released = backend.Event()
            self._releasing += 1
        self.submit(Request(operation_of(message), message, on_done, deadline, resend=True))

    # The connection

    async def run(self) -> None:
        """Connects, reads, connects again, until closed."""
        options = self.options
        self.tasks.spawn(self._keep_time)
        pause = options.first_pause
        place = 0
        while not self._closed.is_set():
            host, port = options.addresses[place % len(options.addresses)]
            place += 1
            self._was_useful = False
            stream: backend.Stream | None = None
            self._gave_up = ""
            try:
                stream = await backend.connect(host, port, options.tls, options.connect_timeout)
                with self.mutex:
                    self._stream = stream
                    self._hello_until = backend.monotonic() + options.connect_timeout
                    self._expect(self._hello_until)
                if not self._closed.is_set():
                    await self._use(stream, await say_hello(stream, options, self.producer))
            except (*backend.ConnectionError_, TimeoutError) as error:
                self._last_problem = f"{host}:{port}: {self._gave_up or error or type(error).__name__}"
            except PenstockError as error:
                self._last_problem = f"{host}:{port}: {error}"
                if isinstance(error, _REFUSED):
                    self._refuse(error)
            finally:
                self._lost()
                if stream is not None:
                    with backend.shielded(1):
                        await stream.aclose()
            if self._was_useful:
                pause = options.first_pause
            await self._closed.wait_for(pause * (0.5 + random.random()))
            pause = min(pause * 2, options.longest_pause)

    async def _use(self, stream: backend.Stream, welcome: Welcome) -> None:
        """Reads until the connection breaks or ends."""
        connection = welcome.connection
        with self.mutex:
            self._connection = connection
            self._was_connected = True
            self._hello_until = math.inf
            self._heard = backend.monotonic()
            self._expect(self._heard + KEEPALIVE_SECONDS)
            self._ping = None
            self.max_frame_bytes = connection.max_frame_bytes
            self._max_in_flight = max(1, welcome.max_in_flight - 1)
            self._max_long = max(1, self._max_in_flight * 3 // 4)
            self._long = 0
            self._outbox = outbox = Outbox(stream)
            refused = self._post_waiting()
        for request, problem in refused:
            request.on_done(None, problem)
        self.tasks.spawn(self._write, stream, outbox)
        for answer in welcome.early:
            self._take(answer)
        while True:
            data = await stream.receive()
            if not data:
                self._last_problem = "the broker closed the connection"
                return
            self._heard = backend.monotonic()
            for answer in connection.receive_data(data):
                self._take(answer)

    async def _write(self, stream: backend.Stream, outbox: Outbox) -> None:
        while True:
            with self.mutex:
                if outbox.ended:
                    return
                data = b"".join(outbox.chunks)
                outbox.chunks.clear()
                outbox.is_sending = bool(data)
                if not data:
                    outbox.wake = wake = backend.Event()
            if not data:
                await wake.wait()
                continue
            try:
                await stream.send(data)
            except backend.ConnectionError_:
                await stream.aclose()
                return

    def _take(self, answer: Answer) -> None:
        """An answer arrived. Whatever is wrong with it ends the connection."""
        if answer.kind is Kind.PUSH:
            with self.mutex:
                request = self._outstanding.get(answer.correlation)
            if request is not None and request.on_push is not None:
                request.on_push(answer.message())
            return
        reply: codec.Message | None = None
        error: PenstockError | None = None
        try:
            reply = answer.message()
        except PenstockError as failure:
            if answer.kind is not Kind.ERROR:
                raise
            error = failure
        refused: list[tuple[Request, PenstockError]] = []
        with self.mutex:
            self._was_useful = True
            request = self._outstanding.pop(answer.correlation, None)
            if request is None:
                return
            if request.operation.waits:
                self._long -= 1
            if self._waiting or self._waiting_long:
                refused = self._post_waiting()
            over = request.abandoned
            again = error is not None and not over and self._again(request, error)
        for other, problem in refused:
            other.on_done(None, problem)
        if over:
            self._orphaned(request, reply)
        elif not again:
            request.on_done(reply, error)

    def _again(self, request: Request, error: PenstockError) -> bool:
        """Whether a failed request is asked again after a pause: the broker was in trouble, and there is time left."""
        transient = error.fault is Fault.BROKER or isinstance(error, (TooManyRequests, ResourceBusy, ThroughputExceeded))
        if not error.retryable or not transient or request.on_push is not None or self._closed.is_set():
            return False
        if isinstance(error, OutcomeUnknown) and not request.resend:
            return False
        pause = min(self.options.first_pause * 2**request.refusals, self.options.longest_pause)
        at = backend.monotonic() + pause * (0.5 + random.random())
        request.refusals += 1
        if at >= request.deadline:
            return False
        self._later.append((at, request))
        self._expect(at)
        return True

    def _lost(self) -> None:
        """The connection is gone: what may be repeated waits for the next one."""
        failed = []
        with self.mutex:
            self._connection = None
            self._stream = None
            self._hello_until = math.inf
            self._outbox.ended = True
            self._outbox.wake.set()
            outstanding, self._outstanding = self._outstanding, {}
            for request in reversed(outstanding.values()):
                if request.abandoned:
                    continue
                if request.resend:
                    (self._waiting_long if request.operation.waits else self._waiting).appendleft(request)
                else:
                    failed.append(request)
        for request in reversed(failed):
            request.on_done(None, ConnectionLost(f"{request.operation.name}: {ConnectionLost.advice}"))

    def _refuse(self, error: PenstockError) -> None:
        """The broker does not let us in: whoever waits is told."""
        with self.mutex:
            waiting = [*self._waiting, *self._waiting_long]
            self._waiting.clear()
            self._waiting_long.clear()
        for request in waiting:
            request.on_done(None, fresh(error))

    # Time

    def _expect(self, at: float) -> None:
        """Something is due then: the timer looks no later. The caller holds the mutex."""
        if at < self._look_at:
            self._look_at = at
            self._look.set()

    async def _keep_time(self) -> None:
        """Ends requests whose time is over, repeats those whose pause is, and gives up dead connections. Sleeps in between."""
        while True:
            now = backend.monotonic()
            ended: list[tuple[Request, PenstockError]] = []
            with self.mutex:
                # (Not before: whoever closes in between would set an event that nobody looks at any more.)
                if self._closed.is_set():
                    return
                due = [request for at, request in self._later if at <= now]
                actions = [action for at, action in self._actions if at <= now]
                if due:
                    self._later = [(at, request) for at, request in self._later if at > now]
                if actions:
                    self._actions = [(at, action) for at, action in self._actions if at > now]
                ended += self._end_waiting(now)
                for request in [one for one in self._outstanding.values() if one.deadline <= now and one.on_push is None]:
                    if not request.abandoned:
                        self.abandon(request)
                        ended.append((request, RequestTimeout()))
                dead = self._dead_stream(now)
                self._look = look = backend.Event()
                self._look_at = at = self._next_look(now)
            for request, error in ended:
                request.on_done(None, error)
            for action in actions:
                action()
            for request in due:
                self.submit(request)
            if dead is not None:
                await dead.aclose()
            await look.wait_for(min(at - now, LONGEST_LOOK_SECONDS))

    def _next_look(self, now: float) -> float:
        """When something will be due, as far as is known now."""
        times = [at for at, _ in self._later]
        times += [at for at, _ in self._actions]
        times += [one.deadline for one in self._outstanding.values() if one.on_push is None and not one.abandoned]
        times += [one.deadline for one in self._waiting]
        times += [one.deadline for one in self._waiting_long]
        times.append(self._hello_until)
        if not self._was_connected and (self._waiting or self._waiting_long):
            times.append(self._started + self.options.connect_timeout)
        if self._connection is not None:
            silent = now - self._heard
            times.append(self._heard + (KEEPALIVE_SECONDS if silent < KEEPALIVE_SECONDS else 2 * KEEPALIVE_SECONDS))
        return min(times)

    def _end_waiting(self, now: float) -> list[tuple[Request, PenstockError]]:
        """Takes out of the waiting lists what has no time left. Before the first connection nobody waits longer than
        `connect_timeout`: a wrong address shows soon."""
        hopeless = not self._was_connected and now - self._started >= self.options.connect_timeout
        ended: list[tuple[Request, PenstockError]] = []
        for waiting in (self._waiting, self._waiting_long):
            late = [request for request in waiting if hopeless or request.deadline <= now]
            if late:
                kept = [request for request in waiting if not (hopeless or request.deadline <= now)]
                waiting.clear()
                waiting.extend(kept)
            for request in late:
                if request.tries or self._connection is not None:
                    ended.append((request, RequestTimeout()))
                else:
                    ended.append((request, NotConnected(self._not_connected())))
        return ended

    def _dead_stream(self, now: float) -> backend.Stream | None:
        """The stream to give up, if there is one; pings a silent one."""
        if self._stream is not None and now >= self._hello_until:
            self._gave_up = "no answer to the hello"
            self._hello_until = math.inf
            return self._stream
        if self._connection is None or now < self._heard + KEEPALIVE_SECONDS:
            return None
        if now >= self._heard + 2 * KEEPALIVE_SECONDS:
            self._gave_up = "the broker went silent"
            self._heard = now
            return self._stream
        if self._ping is None or not self.is_on_the_way(self._ping):
            self._ping = Request(BY_NAME["Ping"], Empty(), _ignore, math.inf, resend=False)
            self._post(self._ping)
        return None

    def _not_connected(self) -> str:
        places = ", ".join(f"{host}:{port}" for host, port in self.options.addresses)
        return f"no broker at {places} ({self._last_problem or 'still connecting'})"

    async def aclose(self) -> None:
        """Ends everything; requests without an answer get ClientClosed. Waits a moment for messages that are being released."""
        if self._releasing and self._connection is not None:
            with backend.shielded(CLOSE_SECONDS):
                await self._released.wait_for(CLOSE_SECONDS)
        with self.mutex:
            self._closed.set()
            self._look.set()
            stream = self._stream
            pending = [*self._outstanding.values(), *self._waiting, *self._waiting_long, *(one for _, one in self._later)]
            self._outstanding, self._later = {}, []
            self._waiting.clear()
            self._waiting_long.clear()
        for request in pending:
            if not request.abandoned:
                request.on_done(None, ClientClosed())
        if stream is not None:
            with backend.shielded(1):
                await stream.aclose()


def _ignore(reply: codec.Message | None, error: PenstockError | None) -> None:
    del reply, error
