"""What a shard lets pass per second, when its stream asks for limits (PROTOCOL.md section 7).

Each limit is a token bucket: it holds what may pass in one second, is full at first, and fills at its rate. What is larger than
the bucket passes when it is full, for else it never would; the bucket then owes the rest, and nothing passes until that is paid.
So over any time no more passes than the rate, one bucket and one such debt.

What is pushed to a registered consumer has to pass a bucket of its own, beside the one of all reads (Kinesis: enhanced fan-out).

`now_ms` is wall-clock milliseconds. A clock that is set back fills nothing until it goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from penstock_broker.streams import limits


class Bucket:
    """Lets `rate` units pass per second (`rate` thousandths per millisecond, so nothing is ever rounded)."""

    __slots__ = ("_at_ms", "_level", "rate")

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._level = 1_000 * rate
        """In thousandths of a unit."""
        self._at_ms = 0

    def room(self, now_ms: int) -> int:
        """How many units are there now; below 0: so many are owed."""
        self._level = min(1_000 * self.rate, self._level + self.rate * max(0, now_ms - self._at_ms))
        self._at_ms = now_ms
        return self._level // 1_000

    def pause_ms(self, now_ms: int) -> int:
        """How long until there is a whole unit; 0: there is one."""
        return 0 if self.room(now_ms) > 0 else -(-(1_000 - self._level) // self.rate)

    def lets_pass(self, units: int, now_ms: int) -> bool:
        """Whether so many pass at once: they are there, or the bucket is full."""
        return min(units, self.rate) <= self.room(now_ms)

    def take(self, units: int) -> None:
        """They pass."""
        self._level -= 1_000 * units


class Throughput:
    """The limits of one shard."""

    __slots__ = ("_pushes", "bytes_in", "bytes_out", "reads", "records_in")

    def __init__(self) -> None:
        self.records_in = Bucket(limits.SHARD_RECORDS_IN)
        self.bytes_in = Bucket(limits.SHARD_BYTES_IN)
        self.reads = Bucket(limits.SHARD_READS)
        self.bytes_out = Bucket(limits.SHARD_BYTES_OUT)
        self._pushes: dict[str, Bucket] = {}

    def take_records(self, count: int, size_bytes: int, sizes: Callable[[], Sequence[int]] | None, now_ms: int) -> int:
        """How many of a batch's first records pass now. `sizes` gives those of its records, if it may be cut: as many pass then
        as fit, one at least when the buckets are full. Otherwise all pass or none."""
        records, room = self.records_in.room(now_ms), self.bytes_in.room(now_ms)
        taken, paid = count, size_bytes
        if count > records or size_bytes > room:
            if sizes is None:
                passes = self.records_in.lets_pass(count, now_ms) and self.bytes_in.lets_pass(size_bytes, now_ms)
                taken, paid = (count, size_bytes) if passes else (0, 0)
            else:
                taken, paid = self._first_of(sizes(), records, room)
        self.records_in.take(taken)
        self.bytes_in.take(paid)
        return taken

    def _first_of(self, sizes: Sequence[int], records: int, room: int) -> tuple[int, int]:
        taken = paid = 0
        for size in itertools.islice(sizes, max(0, records)):
            wanted = paid + size if taken else min(size, self.bytes_in.rate)
            if wanted > room:
                break
            taken += 1
            paid += size
        return taken, paid

    def take_read(self, now_ms: int) -> bool:
        """Whether a read passes now. `pay_read` takes what it brings when that is known."""
        if not self.reads.lets_pass(1, now_ms) or self.bytes_out.room(now_ms) <= 0:
            return False
        self.reads.take(1)
        return True

    def pay_read(self, size_bytes: int) -> None:
        """A read brought so many bytes."""
        self.bytes_out.take(size_bytes)

    def pushes(self, consumer: str) -> Bucket:
        """The bytes of what is pushed to a registered consumer; whoever deregisters it says `forget`."""
        bucket = self._pushes.get(consumer)
        if bucket is None:
            bucket = self._pushes[consumer] = Bucket(limits.SHARD_BYTES_OUT)
        return bucket

    def forget(self, consumer: str) -> None:
        """There is no such registered consumer any more."""
        self._pushes.pop(consumer, None)
