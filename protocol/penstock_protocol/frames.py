"""The frame: a header of 16 bytes, then a msgpack body. PROTOCOL.md, section 2, draws it.

    0               4       5       6               8                              16
    +---------------+-------+-------+---------------+------------------------------+
    | body length   | kind  | flags | operation     | correlation                  |
    | u32           | u8    | u8    | u16           | u64                          |
    +---------------+-------+-------+---------------+------------------------------+

All integers are big endian. The length is judged before anything is allocated. Nothing here interprets the body.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

MAGIC: Final = b"PENSTOK1"
"""What a client writes first, before any frame: the name and the major version. 8 bytes."""

HEADER: Final = struct.Struct(">IBBHQ")
HEADER_BYTES: Final = HEADER.size

HELLO_FRAME_BYTES: Final = 16 * 1024
"""The largest body before authentication has succeeded (RELIABILITY 4.3: little work for strangers)."""

DEFAULT_FRAME_BYTES: Final = 16 * 1024 * 1024
"""The largest request afterwards, unless the broker's hello says otherwise (RELIABILITY 4.7)."""

ANSWER_FRAME_BYTES: Final = 2 * DEFAULT_FRAME_BYTES
"""What a client takes at least: a receive may bring 16 MiB of bodies, and their attributes beside them."""


class Kind(enum.IntEnum):
    """What a frame is. Any other number closes the connection."""

    REQUEST = 1
    """Client to broker; answered by exactly one REPLY or ERROR unless the operation's row says one-way."""
    REPLY = 2
    """Broker to client: the request with this correlation succeeded."""
    ERROR = 3
    """Broker to client: it did not; the body is an ErrorReply. Correlation 0: the connection itself is at fault."""
    PUSH = 4
    """Broker to client: one of many messages that belong to a request which is still open (consume)."""


KINDS: Final = frozenset(int(kind) for kind in Kind)


class Header(NamedTuple):
    """A decoded header. `length` is in bytes and counts the body alone."""

    length: int
    kind: int
    flags: int
    operation: int
    correlation: int


def pack_frame(kind: Kind, operation: int, correlation: int, body: bytes) -> bytes:
    """One frame as bytes. The caller has checked the body against the negotiated limit."""
    return HEADER.pack(len(body), kind, 0, operation, correlation) + body
