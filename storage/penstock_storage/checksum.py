"""Checksums of rows: CRC-32 over the key, the numbers and the bytes of a row.

SQLite has no checksum of its own: most flipped bits give silently wrong data. CRC-32 finds every single flip and every
burst of up to 32 bits; it is against decay, not against an attacker (who could write to the file anyway).

A segment has two: the head's, which is in the index too, so that a row read without its payload is checked as well; and
the whole row's, which goes on from the head's over the payload.
"""

from __future__ import annotations

import struct
from zlib import crc32

_pack_segment = struct.Struct("<4s6q").pack
_pack_state = struct.Struct("<4s4q").pack
_pack_delivery = struct.Struct("<4s3q").pack
_pack_deduplication = struct.Struct("<4s3q").pack


def segment_head(log_id: int, due_ms: int, first: int, count: int, size_bytes: int, sent_ms: int) -> int:
    """The checksum of a segment's numbers."""
    return crc32(_pack_segment(b"segm", log_id, due_ms, first, count, size_bytes, sent_ms))


def segment(head_checksum: int, payload: bytes) -> int:
    """The checksum of a whole segment."""
    return crc32(payload, head_checksum)


def state(log_id: int, first: int, deleted_count: int, deleted_bytes: int, deleted: bytes) -> int:
    """The checksum of a segment's state."""
    return crc32(deleted, crc32(_pack_state(b"stat", log_id, first, deleted_count, deleted_bytes)))


def delivery(log_id: int, number: int, visible_ms: int, runs: bytes) -> int:
    """The checksum of a delivery."""
    return crc32(runs, crc32(_pack_delivery(b"dlvr", log_id, number, visible_ms)))


def deduplication(log_id: int, at_ms: int, number: int, entries: bytes) -> int:
    """The checksum of a deduplication row."""
    return crc32(entries, crc32(_pack_deduplication(b"dedu", log_id, at_ms, number)))
