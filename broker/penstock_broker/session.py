"""One connection: bytes in, calls to the dispatcher, answers out. Whatever goes wrong here ends here.

Two tasks: the reader feeds the protocol and dispatches; the writer sends what the outbox holds. The reader stops reading
while too many requests are in flight, the outbox is long, or the commit lane has no room: back pressure reaches the
client through its socket. Waiting receives and consumers of a connection whose outbox is long are not served before it is
shorter, so whoever reads steadily, however slowly, gets everything. A client that reads nothing for WRITE_STALL_SECONDS,
or lets OUTBOX_BYTES pile up with other answers, is cut off.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections import deque
from collections.abc import Awaitable, Callable

import structlog
import trio
from penstock_protocol import queue_messages as queues
from penstock_protocol.codec import Message
from penstock_protocol.connection import Refused, Request, ServerConnection, State
from penstock_protocol.errors import (
    AuthenticationFailed,
    AuthenticationRequired,
    InternalError,
    InvalidRequest,
    PenstockError,
    ProtocolError,
    SlowConsumer,
)
from penstock_protocol.frames import DEFAULT_FRAME_BYTES
from penstock_protocol.session_messages import Authenticate, Cancel, Empty, Hello, HelloReply

from penstock_broker.access import Keyring
from penstock_broker.call import Call, Caller
from penstock_broker.counters import Counters
from penstock_broker.dispatch import Dispatcher

log = structlog.get_logger()

READ_BYTES = 256 * 1024
OUTBOX_BYTES = 64 * 1024 * 1024
OUTBOX_PAUSE_BYTES = 8 * 1024 * 1024
WRITE_BYTES = 256 * 1024
"""Written at a time: within WRITE_STALL_SECONDS the client must have taken so much, or what is left."""
AT_ONCE_BYTES = 16 * 1024
"""The largest answer that does not go through the writer."""
WRITE_STALL_SECONDS = 30.0
HELLO_SECONDS = 5.0
MAX_IN_FLIGHT_REQUESTS = 1024
MAX_IN_FLIGHT_BYTES = 32 * 1024 * 1024
"""Of requests of one connection that were read and not answered, whatever they wait for; one more request may go beyond."""
_PLACE = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""An account or region: part of ARNs, of keys in the store, and of metrics' labels."""


@dataclasses.dataclass(frozen=True, slots=True)
class SessionLimits:
    """What one connection may use."""

    max_frame_bytes: int = DEFAULT_FRAME_BYTES
    max_in_flight: int = MAX_IN_FLIGHT_REQUESTS


class Session:
    """See the module."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        dispatcher: Dispatcher,
        keyring: Keyring,
        counters: Counters,
        limits: SessionLimits,
        random_bytes: Callable[[int], bytes],
        default_place: tuple[str, str],
        server_name: str,
    ) -> None:
        self._stream = stream
        self._file: int | None = None
        self._receive: Callable[[int], Awaitable[bytes | bytearray]] = stream.receive_some
        if isinstance(stream, trio.SocketStream):
            self._file = stream.socket.fileno()
            self._receive = stream.socket.recv  # raises OSError, and costs less
        self._dispatcher = dispatcher
        self._keyring = keyring
        self._counters = counters
        self._limits = limits
        self._random_bytes = random_bytes
        self._default_place = default_place
        self._server_name = server_name
        self._connection = ServerConnection(limits.max_frame_bytes)
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0
        self._promised_bytes = 0
        self._parked: deque[Call] = deque()
        self._written = trio.Event()
        self._to_write = trio.Event()
        self._calls: dict[int, Call] = {}
        self._calls_bytes = 0
        self._caller: Caller | None = None
        self._hello: Hello | None = None
        self._challenge = b""
        self._closing = False
        self._gone = False
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        """Serves the connection to its end. Never raises but for cancellation."""
        self._counters.connections += 1
        self._counters.connections_opened += 1
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    await self._read()
                    self._closing = True
                    self._to_write.set()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the peer is gone: nothing to tell, nothing to keep
        except* Exception as group:
            self._counters.connections_failed[InternalError.__name__] += 1
            log.exception("connection failed", exc_info=group, client=self._hello.client if self._hello else None)
        finally:
            self._counters.connections -= 1
            for call in list(self._calls.values()):
                self._dispatcher.gone(call)
            self._calls.clear()
            self._dispatcher.ended(self)
            self._gone = True
            self._written.set()
            self._file = None  # The number may be another connection's soon.
            with trio.move_on_after(1, shield=True):
                await trio.aclose_forcefully(self._stream)

    def drain(self) -> None:
        """Ends the session soon: what waits is answered with Draining, what is being committed is still answered."""
        for call in list(self._calls.values()):
            self._dispatcher.drain(call)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in flight and everything was written."""
        return not self._calls and not self._outbox_bytes

    # Reading

    async def _read(self) -> None:
        connection = self._connection
        deadline = trio.current_time() + HELLO_SECONDS
        try:
            while connection.state is not State.CLOSED:
                if self._caller is not None:
                    data = await self._receive_some()
                else:
                    with trio.CancelScope(deadline=deadline) as scope:
                        data = await self._receive_some()
                    if scope.cancelled_caught:
                        raise ProtocolError(f"no valid hello within {HELLO_SECONDS} seconds")
                if not data:
                    return
                self._counters.bytes_in += len(data)
                for event in connection.receive_data(bytes(data)):
                    if isinstance(event, Refused):
                        self._send(connection.error(event.operation, event.correlation, event.error))
                    else:
                        self._take(event)
                    if self._is_busy:
                        await self._wait_room()
                await self._wait_room()
        except PenstockError as error:
            self._counters.connections_failed[error.name] += 1
            log.info("connection closed", error=error.name, reason=str(error))
            self._send(connection.farewell(error))

    async def _receive_some(self) -> bytes | bytearray:
        try:
            return await self._receive(READ_BYTES)
        except OSError as error:
            raise trio.BrokenResourceError from error

    async def _wait_room(self) -> None:
        """Back pressure: returns when another request may be read."""
        while self._is_busy or self._outbox_bytes > OUTBOX_PAUSE_BYTES:
            await self._next_write()
        await self._dispatcher.wait_room()

    async def _next_write(self) -> None:
        if self._written.is_set():
            self._written = trio.Event()
        await self._written.wait()

    @property
    def _is_busy(self) -> bool:
        return len(self._calls) >= self._limits.max_in_flight or self._calls_bytes > MAX_IN_FLIGHT_BYTES

    def _take(self, request: Request) -> None:
        if self._caller is None:
            self._handshake(request)
            return
        if request.operation.one_way:
            self._one_way(request)
            return
        if request.correlation in self._calls or not request.correlation:
            raise ProtocolError(f"correlation {request.correlation} is in use")
        call = Call(self._caller, request.operation, request.correlation, len(request.body), self)
        self._calls[request.correlation] = call
        self._calls_bytes += call.size_bytes
        self._dispatcher.dispatch(call, request)

    def _handshake(self, request: Request) -> None:
        message = request.message()
        connection = self._connection
        if isinstance(message, Hello):
            if len(message.producer) != 16:
                raise InvalidRequest("Hello.producer must have 16 bytes")
            for name, value in (("account", message.account), ("region", message.region)):
                if value and _PLACE.fullmatch(value) is None:
                    raise InvalidRequest(f"Hello.{name} must be 1 to 64 letters, digits, hyphens and underscores")
            self._hello = message
            required = self._keyring.required
            if required and not message.key_id:
                raise AuthenticationRequired()
            account, region = self._default_place
            if required:
                self._challenge = self._random_bytes(32)
                connection.challenge()
            else:
                self._open(message.account or account, "admin", "")
            reply = HelloReply(
                self._server_name,
                self._limits.max_frame_bytes,
                self._limits.max_in_flight,
                self._challenge,
                message.account or account,
                message.region or region,
            )
            self._send(connection.reply(request.operation.code, request.correlation, reply))
        elif isinstance(message, Authenticate) and self._hello is not None:
            hello = self._hello
            row = self._keyring.check(hello.key_id, self._challenge, hello.producer, message.proof)
            if hello.account and hello.account != row.account:
                raise AuthenticationFailed("the access key belongs to another account")
            self._open(row.account, row.role, row.key_id)
            self._send(connection.reply(request.operation.code, request.correlation, Empty()))

    def _open(self, account: str, role: str, key_id: str) -> None:
        assert self._hello is not None
        region = self._hello.region or self._default_place[1]
        self._caller = Caller(account, region, self._hello.producer, role, key_id)
        self._connection.open()

    def _one_way(self, request: Request) -> None:
        message = request.message()
        if isinstance(message, Cancel):
            call = self._calls.get(message.correlation)
            if call is not None:
                self._dispatcher.cancel(call)
        elif isinstance(message, queues.Credit):
            call = self._calls.get(message.correlation)
            if call is not None:
                self._dispatcher.credit(call, message.messages)

    # Answering

    def answer(self, call: Call, message: Message | PenstockError) -> None:
        """Sends a call's reply or error; the call is over."""
        if self._calls.pop(call.correlation, None) is None:
            return
        self._calls_bytes -= call.size_bytes
        code = call.operation.code
        if isinstance(message, PenstockError):
            self._counters.requests[call.operation.name, message.name] += 1
            self._send(self._connection.error(code, call.correlation, message))
        else:
            self._counters.requests[call.operation.name, "ok"] += 1
            self._send(self._connection.reply(code, call.correlation, message))

    def push(self, call: Call, message: Message) -> None:
        """Sends one of a call's many answers."""
        if call.correlation in self._calls:
            self._send(self._connection.push(call.operation.code, call.correlation, message))

    def push_body(self, call: Call, body: bytes) -> None:
        """See call.Answerer."""
        if call.correlation in self._calls:
            self._send(self._connection.push_header(call.operation.code, call.correlation, body))
            self._send(body)

    @property
    def max_frame_bytes(self) -> int:
        """See call.Answerer."""
        return self._limits.max_frame_bytes

    @property
    def has_room(self) -> bool:
        """See call.Answerer."""
        return self._outbox_bytes + self._promised_bytes <= OUTBOX_PAUSE_BYTES

    async def wait_room(self) -> None:
        """See call.Answerer."""
        while not (self.has_room or self._gone):
            await self._next_write()

    def promise(self, size_bytes: int) -> None:
        """See call.Answerer."""
        self._promised_bytes += size_bytes
        if size_bytes < 0:
            self._written.set()
            if self._parked:
                self._serve_parked()

    def park(self, call: Call) -> None:
        """See call.Answerer."""
        self._parked.append(call)

    def _serve_parked(self) -> None:
        while self._parked and self.has_room:
            self._dispatcher.room(self._parked.popleft())

    def _send(self, data: bytes) -> None:
        if not self._calls and not self._outbox_bytes and self._sent_at_once(data):
            return
        self._outbox.append(data)
        self._outbox_bytes += len(data)
        self._to_write.set()
        if self._outbox_bytes > OUTBOX_BYTES:
            self._cut_off()

    def _sent_at_once(self, data: bytes) -> bool:
        """The last answer that a connection waits for goes straight into its socket if there is room for all of it. (While others
        are to come, the writer sends them together.)"""
        if self._file is None or len(data) > AT_ONCE_BYTES:
            return False
        try:
            sent = os.write(self._file, data)
        except OSError:
            return False  # no room, or the peer is gone: the writer meets the same, and waits or ends
        if sent < len(data):
            self._outbox.append(data[sent:])
            self._outbox_bytes += len(data) - sent
            self._to_write.set()
        self._counters.bytes_out += sent
        self._written.set()
        return True

    def _cut_off(self) -> None:
        if not self._scope.cancel_called:
            self._counters.connections_failed[SlowConsumer.__name__] += 1
            log.warning("slow consumer cut off", client=self._hello.client if self._hello else None)
            self._scope.cancel()

    async def _write(self) -> None:
        while True:
            if not self._outbox:
                if self._closing:
                    return
                self._to_write = trio.Event()
                await self._to_write.wait()
                continue
            data = b"".join(self._outbox)
            self._outbox = []
            for start in range(0, len(data), WRITE_BYTES):
                piece = data[start : start + WRITE_BYTES]
                with trio.move_on_after(WRITE_STALL_SECONDS) as scope:
                    await self._stream.send_all(piece)
                if scope.cancelled_caught:
                    self._cut_off()
                    return
                self._outbox_bytes -= len(piece)
                self._counters.bytes_out += len(piece)
                self._written.set()
                if self._parked:
                    self._serve_parked()
