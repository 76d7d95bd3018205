"""Broken frames by the million: what may come in is answered, refused with a typed error, or ends its connection.

`run(inputs, seed)` makes that many frames out of the golden vectors, by turning bits, lying about lengths, splicing, cutting,
exchanging fields and inventing msgpack, and feeds each to a broker's end, a client's end, or to one operation's message. It
raises Escaped, with the bytes and the seed, when anything but a PenstockError comes out, or when a buffer outgrows its limit.
`python -m tests.protocol.mutate INPUTS SEED` does so from the command line.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable

import msgpack
from penstock_protocol.connection import Answer, ClientConnection, Request, ServerConnection, State
from penstock_protocol.errors import PenstockError
from penstock_protocol.frames import ANSWER_FRAME_BYTES, HEADER_BYTES, MAGIC, Kind
from penstock_protocol.operations import OPERATIONS

from tests.protocol.golden import vectors

LIMIT = 4_096
"""The frame limit of the broker's end: small, so that lengths are often beyond it."""

_CODES = [operation.code for operation in OPERATIONS]
_SCALARS: list[object] = [
    None, True, False, 0, 1, 127, 128, 255, 2**16, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**31), -(2**63),
    0.0, 1.5, float("nan"), float("inf"), "", "q", "orders.fifo", "x" * 40, "\U0001f600", "\x00", b"", b"x", b"\xdc" * 20,
    bytes(16), [], [[]], [None], [0, 1], [b"a", b"b"], ["a"], {}, {"a": 1}, {1: 2}, msgpack.ExtType(5, b"x"),
    [1, 2.5, "x", b"y", None, True], [["n", "String", "v"]],
]  # fmt: skip
_TOKENS = [msgpack.packb(value) for value in _SCALARS] + [
    b"\xdc\x40\x00", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdd\x00\x00\x40\x00", b"\xdb\xff\xff\xff\xff", b"\xda\x00\x05",
    b"\xc6\x7f\xff\xff\xff", b"\xc5\x00\x01", b"\xdf\xff\xff\xff\xff", b"\xde\x00\x01", b"\xc9\x00\x00\x00\x01\x00",
    b"\xc7\x00\x05", b"\xd6\xff\x00\x00\x00\x00", b"\xc1", b"\xa3\xed\xa0\x80", b"\x91" * 50, b"\xd9\x01\xff", b"\x9f", b"\x93",
]  # fmt: skip
"""Single values in msgpack, and beginnings of some that lie."""

_FRAMES = [(one.kind, one.frame) for one in vectors() if not one.name.startswith("error ") or "newer" in one.name]
_BODIES = [frame[HEADER_BYTES:] for _, frame in _FRAMES]
_PACKED_FIELDS = [[msgpack.packb(value) for value in msgpack.unpackb(body)] for body in _BODIES]


class Escaped(AssertionError):
    """Something came out that must not."""


class _Source:
    """Random numbers, cheap: one big one is cut into small ones."""

    __slots__ = ("_bits", "_chance", "_left")

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._bits, self._left = 0, 0

    def below(self, bound: int) -> int:
        """From 0 to bound - 1, evenly enough."""
        if self._left < 24:
            self._bits, self._left = self._chance.getrandbits(24 * 200), 24 * 200
        value = self._bits & 0xFFFFFF
        self._bits >>= 24
        self._left -= 24
        return value % bound

    def some_bytes(self, count: int) -> bytes:
        """So many random bytes."""
        return self._chance.randbytes(count)


def _flip_bit(source: _Source, frame: bytes) -> bytes:
    at = source.below(len(frame))
    return frame[:at] + bytes((frame[at] ^ 1 << source.below(8),)) + frame[at + 1 :]


def _set_byte(source: _Source, frame: bytes) -> bytes:
    at = source.below(len(frame))
    return frame[:at] + bytes((source.below(256),)) + frame[at + 1 :]


def _flip_body(source: _Source, frame: bytes) -> bytes:
    at = HEADER_BYTES + source.below(len(frame) - HEADER_BYTES)
    return frame[:at] + bytes((frame[at] ^ 1 << source.below(8),)) + frame[at + 1 :]


def _lie_about_length(source: _Source, frame: bytes) -> bytes:
    lengths = (0, 1, len(frame) - HEADER_BYTES - 1, len(frame), LIMIT, LIMIT + 1, 2**31, 2**32 - 1)
    return max(0, lengths[source.below(8)]).to_bytes(4, "big") + frame[4:]


def _cut(source: _Source, frame: bytes) -> bytes:
    return frame[: source.below(len(frame))]


def _cut_body(source: _Source, frame: bytes) -> bytes:
    return _framed(frame, frame[HEADER_BYTES : HEADER_BYTES + source.below(len(frame) - HEADER_BYTES)])


def _insert_token(source: _Source, frame: bytes) -> bytes:
    at = HEADER_BYTES + source.below(len(frame) - HEADER_BYTES + 1)
    return _framed(frame, frame[HEADER_BYTES:at] + _TOKENS[source.below(len(_TOKENS))] + frame[at:])


def _splice(source: _Source, frame: bytes) -> bytes:
    other = _BODIES[source.below(len(_BODIES))]
    at = HEADER_BYTES + source.below(len(frame) - HEADER_BYTES + 1)
    return _framed(frame, frame[HEADER_BYTES:at] + other[source.below(len(other)) :])


def _other_operation(source: _Source, frame: bytes) -> bytes:
    return frame[:6] + _CODES[source.below(len(_CODES))].to_bytes(2, "big") + frame[8:]


def _other_body(source: _Source, frame: bytes) -> bytes:
    return _framed(frame, _BODIES[source.below(len(_BODIES))])


def _other_field(source: _Source, frame: bytes) -> bytes:
    fields = _PACKED_FIELDS[source.below(len(_PACKED_FIELDS))].copy()
    if fields:
        fields[source.below(len(fields))] = _TOKENS[source.below(len(_TOKENS))]
    return _framed(frame, b"\xdc" + len(fields).to_bytes(2, "big") + b"".join(fields))


def _own_field(source: _Source, frame: bytes, fields: list[bytes]) -> bytes:
    """One field of the right message with a value of another type."""
    if not fields:
        return frame
    fields = fields.copy()
    fields[source.below(len(fields))] = _TOKENS[source.below(len(_TOKENS))]
    return _framed(frame, bytes((0x90 | len(fields),)) + b"".join(fields))


def _random_values(source: _Source, frame: bytes) -> bytes:
    count = source.below(14)
    tokens = [_TOKENS[source.below(len(_TOKENS))] for _ in range(count)]
    return _framed(frame, bytes((0x90 | count,)) + b"".join(tokens))


def _random_body(source: _Source, frame: bytes) -> bytes:
    return _framed(frame, source.some_bytes(source.below(40)))


def _random_bytes(source: _Source, frame: bytes) -> bytes:
    del frame
    return source.some_bytes(source.below(64))


def _whole(source: _Source, frame: bytes) -> bytes:
    del source
    return frame


def _framed(frame: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + frame[4:HEADER_BYTES] + body


Mutation = Callable[[_Source, bytes], bytes]

_MUTATIONS: tuple[Mutation, ...] = (
    _flip_bit, _flip_body, _flip_body, _set_byte, _lie_about_length, _cut, _cut_body, _insert_token, _insert_token, _splice,
    _other_operation, _other_body, _other_field, _random_values, _random_values, _random_body, _random_bytes, _whole,
)  # fmt: skip


def _open_server() -> ServerConnection:
    server = ServerConnection(LIMIT)
    for _ in server.receive_data(MAGIC):
        pass
    server.open()
    return server


def _open_client() -> ClientConnection:
    client = ClientConnection()
    client.opened(LIMIT)
    return client


def run(inputs: int, seed: int) -> Counter[str]:
    """Feeds that many frames; what became of them, by name: "ok", or the error's. Escaped when the rules do not hold."""
    source = _Source(seed)
    seen: Counter[str] = Counter()
    server, client = _open_server(), _open_client()
    mutations, ways = len(_MUTATIONS), len(_MUTATIONS) + 3
    for number in range(inputs):
        place = source.below(len(_FRAMES))
        kind, frame = _FRAMES[place]
        way = source.below(ways)
        data = _MUTATIONS[way](source, frame) if way < mutations else _own_field(source, frame, _PACKED_FIELDS[place])
        try:
            if kind is Kind.REQUEST:
                if number % 64 == 63:
                    _stranger(source, data)
                for event in server.receive_data(data):
                    if isinstance(event, Request):
                        event.message()
                        seen["ok"] += 1
                    else:
                        seen[event.error.name] += 1
                if server._reader.buffered_bytes > LIMIT + HEADER_BYTES + len(data):
                    raise Escaped(f"the broker's end holds {server._reader.buffered_bytes} bytes")
            else:
                for answer in client.receive_data(data):
                    answer.message()
                    seen["ok"] += 1
                if client._reader.buffered_bytes > ANSWER_FRAME_BYTES + HEADER_BYTES + len(data):
                    raise Escaped(f"the client's end holds {client._reader.buffered_bytes} bytes")
        except PenstockError as error:
            seen[error.name] += 1
        except Exception as error:
            raise Escaped(f"input {number} of seed {seed}, {data.hex()}: {type(error).__name__}: {error}") from error
        # What ended its connection, or waits for more than comes, makes room for the next.
        if server.state is State.CLOSED or server._reader.buffered_bytes:
            server = _open_server()
        if client.state is State.CLOSED or client._reader.buffered_bytes:
            client = _open_client()
    return seen


def _stranger(source: _Source, data: bytes) -> None:
    """The same bytes from somebody who did not say hello: nothing but a hello may come of it."""
    server = ServerConnection(LIMIT)
    start = MAGIC if source.below(2) else MAGIC[: source.below(9)]
    try:
        for event in server.receive_data(start + data):
            if not isinstance(event, Request) or event.operation.name != "Hello":
                raise Escaped(f"before hello: {event} of {data.hex()}")
            event.message()
    except PenstockError:
        pass


def check_every_message(body: bytes) -> Counter[str]:
    """Reads one body as the request and as the reply of every operation, and as an error."""
    seen: Counter[str] = Counter()
    for operation in OPERATIONS:
        kinds = (Kind.REPLY, Kind.ERROR, Kind.PUSH)
        reads = [Request(operation, 1, body).message, *(Answer(kind, operation.code, 1, body).message for kind in kinds)]
        for read in reads:
            try:
                read()
                seen["ok"] += 1
            except PenstockError as error:
                seen[error.name] += 1
    return seen


def random_body(source: random.Random) -> bytes:
    """A body as `run` makes them."""
    cheap = _Source(source.getrandbits(32))
    _, frame = _FRAMES[cheap.below(len(_FRAMES))]
    return _MUTATIONS[cheap.below(len(_MUTATIONS))](cheap, frame)[HEADER_BYTES:]


def main() -> None:
    """The command line."""
    inputs, seed = int(sys.argv[1]), int(sys.argv[2])
    start = time.process_time()
    seen = run(inputs, seed)
    print(f"{inputs} inputs, {inputs / (time.process_time() - start):,.0f} a second of one core: {dict(seen.most_common())}")


if __name__ == "__main__":
    main()
