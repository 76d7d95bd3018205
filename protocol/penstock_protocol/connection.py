"""Both ends of a connection as state machines without I/O: bytes in, events out; messages in, bytes out.

`ServerConnection` and `ClientConnection` share the reading of frames. Neither knows sockets, time or threads. The states:

    server:  MAGIC -> HELLO -> (AUTHENTICATION ->) OPEN -> CLOSED
    client:  HELLO -> (AUTHENTICATION ->) OPEN -> CLOSED

Nothing but Hello is accepted in HELLO, nothing but Authenticate in AUTHENTICATION, and neither of them in OPEN; there is no
faster way past them. A violation raises ProtocolError (or FrameTooLarge, VersionNotSupported); the connection is CLOSED
then, and the owner sends `farewell(error)` and closes the socket. What arrives in CLOSED is dropped.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Generator, Iterator

from penstock_protocol.codec import MAX_REPLY_ELEMENTS, Message, decode
from penstock_protocol.errors import FrameTooLarge, PenstockError, ProtocolError, UnknownOperation, VersionNotSupported
from penstock_protocol.frames import (
    ANSWER_FRAME_BYTES,
    DEFAULT_FRAME_BYTES,
    HEADER,
    HEADER_BYTES,
    HELLO_FRAME_BYTES,
    KINDS,
    MAGIC,
    Kind,
    pack_frame,
)
from penstock_protocol.operations import BY_CODE, Operation
from penstock_protocol.session_messages import ErrorReply

HELLO = 1
AUTHENTICATE = 2


class State(enum.Enum):
    """Where a connection is in its life."""

    MAGIC = "magic"
    HELLO = "hello"
    AUTHENTICATION = "authentication"
    OPEN = "open"
    CLOSED = "closed"


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A request arrived. `body` is the raw msgpack; `message()` checks it, so that a bad field is that request's error only."""

    operation: Operation
    correlation: int
    body: bytes

    def message(self) -> Message:
        """The typed request. InvalidRequest or ProtocolError when it does not fit its type."""
        return self.operation.request.from_wire(decode(self.body))


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """A request arrived that names no known operation: answer it with `error`; the connection goes on."""

    correlation: int
    operation: int
    error: PenstockError


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A reply, error or push arrived at the client."""

    kind: Kind
    operation: int
    correlation: int
    body: bytes

    def message(self) -> Message:
        """The typed reply of its operation (for a push: what it pushes). Raises what an ERROR frame carries."""
        if self.kind is Kind.ERROR:
            raise ErrorReply.from_wire(decode(self.body)).to_error()
        operation = BY_CODE.get(self.operation)
        if operation is None:
            raise ProtocolError(f"reply to unknown operation {self.operation}")
        if self.kind is Kind.PUSH:
            if operation.push is None:
                raise ProtocolError(f"{operation.name} has no pushes")
            return operation.push.from_wire(decode(self.body, MAX_REPLY_ELEMENTS))
        return operation.reply.from_wire(decode(self.body, MAX_REPLY_ELEMENTS))


class FrameReader:
    """Cuts a byte stream into (kind, operation, correlation, body). Holds at most one frame of `limit` bytes and what
    one read brought beyond it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Adds bytes as they came from the socket."""
        self._buffer += data

    @property
    def buffered_bytes(self) -> int:
        """How much is waiting for the rest of its frame."""
        return len(self._buffer)

    def take(self, count: int) -> bytes | None:
        """Exactly `count` bytes, or None when they are not there yet."""
        if len(self._buffer) < count:
            return None
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def peek(self, count: int) -> bytes:
        """Up to `count` bytes without taking them."""
        return bytes(self._buffer[:count])

    def frames(self) -> Generator[tuple[int, int, int, bytes], None, None]:
        """Every complete frame. FrameTooLarge and ProtocolError are raised from the header alone, before its body is
        awaited. The limit is read anew for each frame."""
        buffer = self._buffer
        start = 0
        try:
            while len(buffer) - start >= HEADER_BYTES:
                length, kind, flags, operation, correlation = HEADER.unpack_from(buffer, start)
                if length > self.limit:
                    raise FrameTooLarge(f"frame of {length} bytes; the limit is {self.limit}")
                if kind not in KINDS or flags:
                    raise ProtocolError(f"frame of kind {kind}, flags {flags}")
                end = start + HEADER_BYTES + length
                if len(buffer) < end:
                    break
                body = bytes(memoryview(buffer)[start + HEADER_BYTES : end])
                start = end
                yield kind, operation, correlation, body
        finally:
            del buffer[:start]


class ServerConnection:
    """The broker's end. Feed it bytes with `receive_data`, answer with `reply`, `error` and `push`."""

    def __init__(self, max_frame_bytes: int = DEFAULT_FRAME_BYTES) -> None:
        self.state = State.MAGIC
        self._max_frame_bytes = max_frame_bytes
        self._reader = FrameReader(HELLO_FRAME_BYTES)

    def receive_data(self, data: bytes) -> Iterator[Request | Refused]:
        """The requests that `data` completes. Raises ProtocolError or FrameTooLarge when the peer breaks the rules."""
        if self.state is State.CLOSED:
            return
        reader = self._reader
        reader.feed(data)
        if self.state is State.MAGIC:
            start = reader.peek(len(MAGIC))
            if start[:-1] == MAGIC[:-1] and start != MAGIC:
                self._fail(VersionNotSupported(f"this broker speaks version {MAGIC[-1:].decode()} of the protocol"))
            if not MAGIC.startswith(start):
                self._fail(ProtocolError("this is not the Penstock protocol (wrong magic)"))
            if reader.take(len(MAGIC)) is None:
                return
            self.state = State.HELLO
        frames = reader.frames()
        try:
            for kind, code, correlation, body in frames:
                if kind != Kind.REQUEST:
                    raise ProtocolError(f"a client may only send requests, not kind {kind}")
                if self.state is not State.OPEN or code in (HELLO, AUTHENTICATE):
                    self._expect_handshake(code)
                operation = BY_CODE.get(code)
                if operation is None:
                    yield Refused(correlation, code, UnknownOperation(f"operation {code} is not known"))
                else:
                    yield Request(operation, correlation, body)
                if self.state is State.CLOSED:
                    return
        except (ProtocolError, FrameTooLarge):
            self.state = State.CLOSED
            raise
        finally:
            frames.close()

    def _expect_handshake(self, code: int) -> None:
        wanted = {State.HELLO: HELLO, State.AUTHENTICATION: AUTHENTICATE}.get(self.state)
        if code != wanted:
            raise ProtocolError(f"operation {code} in state {self.state.value}")

    def _fail(self, error: PenstockError) -> None:
        self.state = State.CLOSED
        raise error

    def challenge(self) -> None:
        """Hello was answered with a challenge: only Authenticate is accepted now."""
        self.state = State.AUTHENTICATION

    def open(self) -> None:
        """The client is who it says: everything is accepted, up to the full frame size."""
        self.state = State.OPEN
        self._reader.limit = self._max_frame_bytes

    def close(self) -> None:
        """No further request is taken from what was read."""
        self.state = State.CLOSED

    def reply(self, operation: int, correlation: int, message: Message) -> bytes:
        """The bytes of a reply."""
        return pack_frame(Kind.REPLY, operation, correlation, message.encode())

    def push(self, operation: int, correlation: int, message: Message) -> bytes:
        """The bytes of a push."""
        return pack_frame(Kind.PUSH, operation, correlation, message.encode())

    def push_header(self, operation: int, correlation: int, body: bytes) -> bytes:
        """What stands before a push whose body is encoded already, for several connections share it."""
        return HEADER.pack(len(body), Kind.PUSH, 0, operation, correlation)

    def error(self, operation: int, correlation: int, error: PenstockError) -> bytes:
        """The bytes of a failed reply."""
        return pack_frame(Kind.ERROR, operation, correlation, ErrorReply.of(error).encode())

    def farewell(self, error: PenstockError) -> bytes:
        """The last bytes before closing because of `error`: an ERROR with correlation 0."""
        self.state = State.CLOSED
        return self.error(0, 0, error)


class ClientConnection:
    """The client's end: numbers requests and hands out the answers with their correlation."""

    def __init__(self) -> None:
        self.state = State.HELLO
        self.max_frame_bytes = HELLO_FRAME_BYTES
        self._reader = FrameReader(ANSWER_FRAME_BYTES)
        self._next_correlation = 1

    def preface(self) -> bytes:
        """What to write first."""
        return MAGIC

    def opened(self, max_frame_bytes: int) -> None:
        """The handshake is over; the broker's limit for requests, from its hello."""
        self.state = State.OPEN
        self.max_frame_bytes = max_frame_bytes
        self._reader.limit = max(max_frame_bytes, ANSWER_FRAME_BYTES)

    def request(self, operation: Operation, message: Message) -> tuple[int, bytes]:
        """A new correlation and the bytes. FrameTooLarge when it is beyond the broker's limit; nothing is numbered then."""
        body = message.encode()
        if len(body) > self.max_frame_bytes:
            raise FrameTooLarge(f"{operation.name} of {len(body)} bytes; the broker's limit is {self.max_frame_bytes}")
        if operation.code == AUTHENTICATE and self.state is State.HELLO:
            self.state = State.AUTHENTICATION
        correlation = self._next_correlation
        self._next_correlation += 1
        return correlation, pack_frame(Kind.REQUEST, operation.code, correlation, body)

    def receive_data(self, data: bytes) -> Iterator[Answer]:
        """The answers that `data` completes. Raises ProtocolError or FrameTooLarge when the broker breaks the rules, and
        the error of a farewell (an ERROR with correlation 0)."""
        if self.state is State.CLOSED:
            return
        self._reader.feed(data)
        frames = self._reader.frames()
        try:
            for kind, operation, correlation, body in frames:
                answer = Answer(Kind(kind), operation, correlation, body)
                if not correlation:
                    self._farewell(answer)
                self._expect(answer)
                yield answer
        except PenstockError:
            self.state = State.CLOSED
            raise
        finally:
            frames.close()

    def _farewell(self, answer: Answer) -> None:
        if answer.kind is not Kind.ERROR:
            raise ProtocolError(f"{answer.kind.name} without a correlation")
        answer.message()

    def _expect(self, answer: Answer) -> None:
        if answer.kind is Kind.REQUEST:
            raise ProtocolError("a broker sends no requests")
        wanted = {State.HELLO: HELLO, State.AUTHENTICATION: AUTHENTICATE}.get(self.state)
        if wanted is not None and (answer.operation != wanted or answer.kind is Kind.PUSH):
            raise ProtocolError(f"{answer.kind.name} of operation {answer.operation} in state {self.state.value}")
