"""Segments and runs: messages that were stored together, and some of them that share a fate.

A segment's messages are told apart by their index; a set of them is a bit mask (a Python int), so that taking, deleting
and counting a batch is one operation on an int and not one per message.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterator
from typing import Any, Final

import msgpack
from penstock_protocol.codec import Message
from penstock_protocol.queue_messages import Attribute, Delivery
from penstock_storage.interface import LogId, SegmentKey

OVERHEAD_BYTES: Final = 80
"""What a message costs in memory besides its content, roughly, for the payload budget."""

_COLUMNS: Final = ("attributes", "groups", "deduplication_ids", "traces", "sent_ms", "sources", "origins")


@dataclasses.dataclass(slots=True)
class Columns:
    """The content of a segment, column by column. A column is None when no message has that property."""

    bodies: list[bytes] = dataclasses.field(default_factory=list)
    attributes: list[Any] | None = None
    groups: list[Any] | None = None
    deduplication_ids: list[Any] | None = None
    traces: list[Any] | None = None
    sent_ms: list[Any] | None = None
    """Only where it differs from the segment's: messages that were moved keep their own (dead-letter queues)."""
    sources: list[Any] | None = None
    """The queue a moved message came from."""
    origins: list[Any] | None = None
    """The message id (16 bytes) a moved message had before, where it keeps it."""

    def append(self, body: bytes, values: dict[str, Any]) -> None:
        """Adds one message with the properties it has."""
        before = len(self.bodies)
        self.bodies.append(body)
        for name in _COLUMNS:
            column = getattr(self, name)
            value = values.get(name)
            if column is not None:
                column.append(value)
            elif value is not None:
                setattr(self, name, [None] * before + [value])

    def extend(self, bodies: list[bytes], columns: dict[str, list[Any] | None]) -> None:
        """Adds many messages at once: the cheap way."""
        before = len(self.bodies)
        self.bodies += bodies
        for name in _COLUMNS:
            column = getattr(self, name)
            values = columns.get(name)
            if values is not None:
                if column is None:
                    setattr(self, name, [None] * before + values)
                else:
                    column += values
            elif column is not None:
                column += [None] * len(bodies)

    def row(self, index: int) -> dict[str, Any]:
        """The properties of one message, without its body."""
        return {name: column[index] for name in _COLUMNS if (column := getattr(self, name)) and column[index] is not None}

    def pack(self) -> bytes:
        """The payload of a segment row."""
        fields = [self.bodies, *(getattr(self, name) for name in _COLUMNS)]
        return msgpack.packb(fields, default=_wire)  # type: ignore[no-any-return]

    @classmethod
    def unpack(cls, payload: bytes) -> Columns:
        """The columns of a payload that `pack` made (and whose checksum the store verified)."""
        fields = msgpack.unpackb(payload, raw=False, max_array_len=len(payload), max_bin_len=len(payload))
        columns = cls(*fields)
        if columns.attributes is not None:
            columns.attributes = [
                None if of is None else [Attribute(name, type_, value) for name, type_, value in of] for of in columns.attributes
            ]
        return columns


def _wire(value: Any) -> Any:
    if isinstance(value, Message):
        return value.to_wire()
    raise TypeError(f"{type(value).__name__} cannot be stored")


class Segment:
    """Messages committed together, what is deleted of them, and their content while it is in memory."""

    __slots__ = (
        "again",
        "arrived",
        "columns",
        "count",
        "deleted",
        "deleted_bytes",
        "due_ms",
        "first",
        "live",
        "sent_ms",
        "size_bytes",
        "sizes",
        "stored_state",
        "taken",
        "times",
    )

    def __init__(
        self,
        first: int,
        count: int,
        due_ms: int,
        sent_ms: int,
        size_bytes: int,
        columns: Columns | None,
        sizes: int | array[int] | None = None,
    ) -> None:
        self.first = first
        self.count = count
        self.due_ms = due_ms
        self.sent_ms = sent_ms
        self.size_bytes = size_bytes
        self.columns = columns
        self.sizes = sizes if sizes is not None else (sizes_of(columns) if columns is not None else None)
        self.times: array[int] | None = None
        """When each message was sent, where that differs (of dead-lettered ones); `sent_ms` is the newest."""
        self.note_times()
        self.deleted = 0
        self.deleted_bytes = 0
        self.live = count
        self.stored_state = False
        self.taken = 0
        self.again = 0
        """Of what was taken: what waits again, so that its content is needed."""
        self.arrived = True

    @property
    def all_mask(self) -> int:
        """Every index."""
        return (1 << self.count) - 1

    def key(self, log_id: LogId) -> SegmentKey:
        """Where the store keeps it."""
        return SegmentKey(log_id, self.due_ms, self.first)

    def note_times(self) -> bool:
        """Learns from its content when each message was sent; whether that is news. It is kept when the content is dropped."""
        if self.times is not None or self.columns is None or self.columns.sent_ms is None:
            return False
        self.times = array("q", [self.sent_ms if one is None else one for one in self.columns.sent_ms])
        return True

    @property
    def oldest_ms(self) -> int:
        """When the oldest message that is left was sent (as far as is known without content)."""
        if self.times is None:
            return self.sent_ms
        return min((self.times[index] for index in indexes_of(self.all_mask & ~self.deleted)), default=self.sent_ms)

    @property
    def kept_since_ms(self) -> int:
        """From when the retention of that message counts: a delayed one is kept from when it was due."""
        return max(self.oldest_ms, self.due_ms)

    def sent_until(self, bound_ms: int) -> int:
        """The messages that are left and were sent no later."""
        left = self.all_mask & ~self.deleted
        if self.times is None:
            return left if self.sent_ms <= bound_ms else 0
        return sum(1 << index for index in indexes_of(left) if self.times[index] <= bound_ms)

    def bytes_of(self, mask: int) -> int:
        """What these messages count against limits. Exact while sizes are known, else their share of the segment."""
        sizes = self.sizes
        if sizes is None:
            return self.size_bytes * mask.bit_count() // self.count
        if isinstance(sizes, int):
            return sizes * mask.bit_count()
        return sum(sizes[index] for index in indexes_of(mask))

    def delete(self, mask: int) -> int:
        """Marks messages deleted; returns how many were not yet."""
        gone = mask & ~self.deleted
        count = gone.bit_count()
        if count:
            self.deleted |= gone
            self.live -= count
            # (The last one takes what is left, and none takes more: without its content in memory a message's size is only
            # its share.)
            wanted = self.deleted_bytes + self.bytes_of(gone)
            self.deleted_bytes = min(wanted, self.size_bytes) if self.live else self.size_bytes
        return count

    @property
    def living_bytes(self) -> int:
        """What is not deleted counts against limits."""
        return self.size_bytes - self.deleted_bytes

    def keep_living(self) -> None:
        """Forgets the content of what is deleted, at its place; sizes are exact from here on."""
        assert self.columns is not None
        kept = Columns()
        for index, body in enumerate(self.columns.bodies):
            if self.deleted >> index & 1:
                kept.append(b"", {})
            else:
                kept.append(body, self.columns.row(index))
        self.columns = kept
        sizes = sizes_of(kept)
        self.sizes = sizes
        self.size_bytes = sizes * self.count if isinstance(sizes, int) else sum(sizes)
        self.deleted_bytes = 0

    def memory_bytes(self) -> int:
        """About what its content costs in memory."""
        return self.size_bytes + OVERHEAD_BYTES * self.count if self.columns is not None else 0


def sizes_of(columns: Columns) -> int | array[int]:
    """The size of each message, as one number when all are alike."""
    sizes = list(map(len, columns.bodies))
    if columns.attributes is not None:
        for index, attributes in enumerate(columns.attributes):
            if attributes:
                sizes[index] += attributes_bytes(attributes)
    if sizes.count(sizes[0]) == len(sizes):
        return sizes[0]
    return array("I", sizes)


def attributes_bytes(attributes: list[Attribute]) -> int:
    """What attributes count against a message's limit: names, types and values (SQS: SendMessage)."""
    total = 0
    for attribute in attributes:
        value = attribute.value
        total += len(attribute.name.encode()) + len(attribute.type.encode())
        total += len(value) if type(value) is bytes else len(value.encode())  # type: ignore[union-attr]
    return total


class Run:
    """Messages of one segment that were received the same number of times (and, where that matters, share a group).

    A run waits, or is in flight. Once received it belongs to the delivery of its last receive, also while it waits again:
    an old receipt handle still works then."""

    __slots__ = ("delivery", "first_received_ms", "group", "locks", "mask", "received", "segment", "visible_ms", "waiting")

    def __init__(
        self, segment: Segment, mask: int, received: int = 0, first_received_ms: int = 0, group: str | None = None
    ) -> None:
        self.segment = segment
        self.mask = mask
        self.received = received
        self.first_received_ms = first_received_ms
        self.group = group
        self.visible_ms = 0
        self.delivery: Any = None
        self.waiting = True
        self.locks = False
        """On a FIFO queue: it is in flight and holds its group."""

    def split(self, mask: int) -> Run:
        """Takes the messages in `mask` out into a run of their own, alike in all else."""
        self.mask &= ~mask
        part = Run(self.segment, mask, self.received, self.first_received_ms, self.group)
        part.visible_ms = self.visible_ms
        part.delivery = self.delivery
        part.waiting = self.waiting
        return part

    @property
    def lowest_sequence(self) -> int:
        """The sequence number of its first message."""
        return self.segment.first + (self.mask & -self.mask).bit_length() - 1


def lowest(mask: int, count: int) -> int:
    """The `count` lowest set bits."""
    if mask.bit_count() <= count:
        return mask
    shift = (mask & -mask).bit_length() - 1
    block = ((1 << count) - 1) << shift
    if mask & block == block:
        return block
    kept = 0
    for _ in range(count):
        bit = mask & -mask
        kept |= bit
        mask ^= bit
    return kept


def indexes_of(mask: int) -> Iterator[int]:
    """The indexes in a mask, ascending."""
    while mask:
        bit = mask & -mask
        yield bit.bit_length() - 1
        mask ^= bit


def mask_bytes(mask: int) -> bytes:
    """A mask as little-endian bytes."""
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


def mask_of(data: bytes) -> int:
    """The inverse of `mask_bytes`."""
    return int.from_bytes(data, "little")


def delivery_message(run: Run, mask: int, receipt: bytes) -> Delivery:
    """The wire form of messages that were taken: `run` and others like it, `mask` in all. Their content is in memory."""
    segment = run.segment
    columns = segment.columns
    assert columns is not None
    start = (mask & -mask).bit_length() - 1
    stop = mask.bit_length()
    indexes: int | list[int]
    if mask.bit_count() == stop - start:
        indexes = start
        whole = start == 0 and stop == segment.count
        picked = [
            column if column is None or whole else column[start:stop]
            for column in (columns.bodies, *(getattr(columns, name) for name in _COLUMNS))
        ]
    else:
        indexes = list(indexes_of(mask))
        picked = [
            None if column is None else [column[index] for index in indexes]
            for column in (columns.bodies, *(getattr(columns, name) for name in _COLUMNS))
        ]
    bodies, attributes, groups, deduplication_ids, traces, sent, sources, origins = picked
    sent_ms: int | list[int] = segment.sent_ms
    if sent is not None:
        sent_ms = [segment.sent_ms if one is None else one for one in sent]
    return Delivery(
        receipt,
        segment.first,
        indexes,
        run.received,
        run.first_received_ms,
        sent_ms,
        bodies or [],
        attributes,
        groups,
        deduplication_ids,
        traces,
        sources,
        origins,
    )
