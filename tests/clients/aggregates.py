"""Aggregated records for tests: bytes that AWS's own module has made, and a small encoder for any others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

MAGIC = b"\xf3\x89\x9a\xc2"

FOREIGN = bytes.fromhex(
    "f3899ac20a026b310a026b32120531323334351a0708001a036f6e651a09080110001a0374776f1a0b08001a076472656920c3a4"
    "0df84bf14c206b83eae72f0936162c02"
)
"""What aws_kinesis_agg 1.2.3 makes of FOREIGN_ROWS, the second with the explicit hash key 12345."""

FOREIGN_ROWS = [("k1", b"one"), ("k2", b"two"), ("k1", "drei ä".encode())]


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def field(number: int, value: int | bytes) -> bytes:
    """A field of a protobuf message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def user_record(index: int, data: bytes) -> bytes:
    """The field that holds a user record."""
    return field(3, field(1, index) + field(3, data))


def sealed(message: bytes) -> bytes:
    """A message with what belongs around it."""
    return MAGIC + message + hashlib.md5(message, usedforsecurity=False).digest()


def aggregate(rows: Iterable[tuple[str, bytes]]) -> bytes:
    """An aggregated record of (key, data)."""
    rows = list(rows)
    table = list(dict.fromkeys(key for key, _ in rows))
    keys = b"".join(field(1, key.encode()) for key in table)
    return sealed(keys + b"".join(user_record(table.index(key), data) for key, data in rows))
