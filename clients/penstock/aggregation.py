"""Aggregated records: what the Kinesis Producer Library (KPL) has packed into one record, taken apart. No I/O.

The format is AWS's (amazon-kinesis-producer, aggregation-format.md): a magic number, a protobuf message AggregatedRecord, and its
MD5. Two messages are decoded here and nothing else of protobuf. What is not such a record in full is an ordinary one: bytes of
strangers never raise. It costs time and memory in proportion to the record; see docs/ARCHITECTURE.md for why it is our own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final, NamedTuple

MAGIC: Final = b"\xf3\x89\x9a\xc2"
DIGEST_BYTES: Final = 16

# protobuf: the lowest three bits of a field's tag
VARINT: Final = 0
LENGTH: Final = 2
FIXED: Final = {1: 8, 5: 4}
"""Bytes of the kinds that are only skipped. (Groups, 3 and 4, are no part of these messages.)"""

MAX_TAG: Final = (1 << 32) - 1
MAX_VARINT_BITS: Final = 70
"""A varint has at most 10 bytes of 7 bits."""

# AggregatedRecord
KEY_TABLE: Final = 1
HASH_KEY_TABLE: Final = 2
RECORDS: Final = 3

# Record
KEY_INDEX: Final = 1
HASH_KEY_INDEX: Final = 2
DATA: Final = 3


class UserRecords(NamedTuple):
    """What was in an aggregated record, as columns, in its order."""

    data: list[bytes]
    keys: list[str]


def user_records(record: bytes) -> UserRecords | None:
    """The user records of an aggregated record, one at least; None for any other data, also for what only begins like one."""
    if not record.startswith(MAGIC) or len(record) < len(MAGIC) + DIGEST_BYTES:
        return None
    message = record[len(MAGIC) : -DIGEST_BYTES]
    if hashlib.md5(message, usedforsecurity=False).digest() != record[-DIGEST_BYTES:]:
        return None
    try:
        found = _aggregated_record(message)
    except ValueError:
        return None
    return found if found.keys else None


def _aggregated_record(message: bytes) -> UserRecords:
    keys: list[str] = []
    hash_keys = 0
    records: list[bytes] = []
    for number, value in _fields(message):  # in any order, so the tables are whole only at the end
        if isinstance(value, int):
            continue
        if number == KEY_TABLE:
            keys.append(value.decode())
        elif number == HASH_KEY_TABLE:
            hash_keys += 1
        elif number == RECORDS:
            records.append(value)
    found = UserRecords([], [])
    for record in records:
        data, index = _record(record, len(keys), hash_keys)
        found.data.append(data)
        found.keys.append(keys[index])
    return found


def _record(message: bytes, keys: int, hash_keys: int) -> tuple[bytes, int]:
    """Its data, and its key's place in the table. (Where its explicit hash key would put it is not asked.)"""
    data: bytes | None = None
    index = -1
    hash_index = -1
    for number, value in _fields(message):
        if isinstance(value, bytes):
            if number == DATA:
                data = value
        elif number == KEY_INDEX:
            index = value
        elif number == HASH_KEY_INDEX:
            hash_index = value
    if data is None or not 0 <= index < keys or not hash_index < hash_keys:
        raise ValueError("data or key is missing, or an index is beyond its table")
    return data, index


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message that are varints or have a length, by number. ValueError when it is none."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if not number or tag > MAX_TAG:
            raise ValueError(f"no field has the tag {tag}")
        if kind == VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == LENGTH:
            size, at = _varint(message, at)
        elif kind in FIXED:
            size = FIXED[kind]
        else:
            raise ValueError(f"no field has the kind {kind}")
        end = at + size
        if end > len(message):
            raise ValueError("a field is longer than its message")
        if kind == LENGTH:
            yield number, message[at:end]
        at = end


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The varint at a place, and the place behind it."""
    value = 0
    for shift, byte in zip(range(0, MAX_VARINT_BITS, 7), message[at : at + MAX_VARINT_BITS // 7], strict=False):
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + shift // 7 + 1
    raise ValueError("a varint has no end")
