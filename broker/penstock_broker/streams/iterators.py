"""Iterators: opaque places in a shard that need no table.

An iterator carries log, position and the time it was issued, with a keyed hash over all of it: it cannot be forged, nor used for
another shard, and it is good for ITERATOR_MS (Kinesis: GetShardIterator).
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import struct
from typing import Final

from penstock_protocol.errors import IteratorExpired, IteratorInvalid
from penstock_storage.interface import LogId

from penstock_broker.streams import limits

_FIELDS: Final = struct.Struct(">QQQ")
_MAC_BYTES: Final = 8
_PERSON: Final = b"iterator"


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where reading goes on: `position` is the next sequence number."""

    log_id: LogId
    position: int


class Iterators:
    """Issues and checks them; `secret` is the cluster's, 32 bytes."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def issue(self, place: Place, now_ms: int) -> bytes:
        """An iterator: 32 bytes."""
        fields = _FIELDS.pack(place.log_id, place.position, now_ms)
        return fields + self._mac(fields)

    def check(self, iterator: bytes, now_ms: int) -> Place:
        """What it stands for. IteratorInvalid when it was not issued here, IteratorExpired when that was too long ago."""
        fields, mac = iterator[: _FIELDS.size], iterator[_FIELDS.size :]
        if len(iterator) != _FIELDS.size + _MAC_BYTES or not hmac.compare_digest(mac, self._mac(fields)):
            raise IteratorInvalid()
        log_id, position, issued_ms = _FIELDS.unpack(fields)
        if now_ms - issued_ms > limits.ITERATOR_MS:
            raise IteratorExpired()
        return Place(LogId(log_id), position)

    def _mac(self, fields: bytes) -> bytes:
        return hashlib.blake2b(fields, digest_size=_MAC_BYTES, key=self._secret, person=_PERSON).digest()
