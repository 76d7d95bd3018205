"""What was received: deliveries, their rows, and the receipts that name them.

A delivery is what one receive took. Its number comes from the log's sequence numbers, so it is never used twice; a
receipt is the number and a keyed hash over number and log, so a receipt of another queue, or an invented one, is told
apart without any table. Which messages a delivery still holds decides the rest: received again, they belong to a newer one.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterator
from typing import Any, Final

import msgpack
from penstock_protocol.errors import ReceiptHandleInvalid
from penstock_storage.interface import DeliveryRow, LogId

from penstock_broker.queues.segment import Run, Segment, mask_bytes, mask_of

_RECEIPT: Final = struct.Struct(">Q8s")


class Delivery:
    """The messages of one receive, by segment."""

    __slots__ = ("number", "runs", "stored", "taken_ms")

    def __init__(self, number: int, taken_ms: int) -> None:
        self.number = number
        self.taken_ms = taken_ms
        self.runs: dict[int, list[Run]] = {}
        self.stored = False

    def add(self, run: Run) -> None:
        """The run belongs to this delivery now."""
        run.delivery = self
        self.runs.setdefault(run.segment.first, []).append(run)

    def prune(self, first: int) -> None:
        """Drops runs of a segment that have become empty."""
        runs = self.runs.get(first)
        if runs is not None:
            kept = [run for run in runs if run.mask]
            if kept:
                self.runs[first] = kept
            else:
                del self.runs[first]

    def all_runs(self) -> Iterator[Run]:
        """Every run."""
        for runs in self.runs.values():
            yield from runs

    def to_row(self, log_id: LogId) -> DeliveryRow:
        """The row that restores it."""
        runs = [
            (run.segment.first, mask_bytes(run.mask), run.received, run.first_received_ms, run.visible_ms, run.group)
            for runs in self.runs.values()
            for run in runs
        ]
        visible_ms = max((run[4] for run in runs), default=0)
        return DeliveryRow(log_id, self.number, visible_ms, msgpack.packb((self.taken_ms, runs)))


def unpack_runs(row: DeliveryRow) -> tuple[int, list[Any]]:
    """The inverse of `Delivery.to_row`: when it was taken, and the runs as (first, mask, received, first received,
    visible, group)."""
    taken_ms, runs = msgpack.unpackb(row.runs, raw=False)
    return taken_ms, [(first, mask_of(mask), *rest) for first, mask, *rest in runs]


def restored_run(segment: Segment, values: tuple[Any, ...]) -> Run:
    """A run of a delivery as it was stored."""
    _, mask, received, first_received_ms, visible_ms, group = values
    run = Run(segment, mask & ~segment.deleted, received, first_received_ms, group)
    run.visible_ms = visible_ms
    return run


class Receipts:
    """Makes and checks the receipts of one log."""

    def __init__(self, secret: bytes, log_id: LogId) -> None:
        self._secret = secret
        self._log = struct.pack(">Q", log_id)

    def issue(self, number: int) -> bytes:
        """The receipt of a delivery: 16 bytes."""
        return _RECEIPT.pack(number, self._mac(number))

    def check(self, receipt: bytes) -> int:
        """The delivery's number. ReceiptHandleInvalid when it was not issued for this log."""
        if len(receipt) != _RECEIPT.size:
            raise ReceiptHandleInvalid(f"a receipt has {_RECEIPT.size} bytes, not {len(receipt)}")
        number, mac = _RECEIPT.unpack(receipt)

        if not hmac.compare_digest(mac, self._mac(number)):
            raise ReceiptHandleInvalid()
        return int(number)

    def _mac(self, number: int) -> bytes:
        return hashlib.blake2b(self._log + struct.pack(">Q", number), digest_size=8, key=self._secret).digest()
