"""What the SDK hands out and takes in: messages, receipts, descriptions. No I/O."""

from __future__ import annotations

import base64
import dataclasses
import struct
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, Protocol, TypedDict

from penstock_protocol import queue_messages as wire
from penstock_protocol import stream_messages as streams
from penstock_protocol.codec import MAX_INTEGER

_HANDLE = struct.Struct(">16sQH")

AttributeValue = str | bytes | int | float
"""A message attribute in Python: text, binary or a number."""


def attributes_to_wire(attributes: Mapping[str, AttributeValue | wire.Attribute]) -> list[wire.Attribute]:
    """Python values become String, Binary or Number attributes; wire.Attribute gives any other type."""
    result = []
    for name, value in attributes.items():
        if isinstance(value, wire.Attribute):
            result.append(value)
        elif isinstance(value, bytes):
            result.append(wire.Attribute(name, "Binary", value))
        elif isinstance(value, str):
            result.append(wire.Attribute(name, "String", value))
        else:
            result.append(wire.Attribute(name, "Number", str(value)))
    return result


def attributes_from_wire(attributes: list[wire.Attribute] | None) -> dict[str, AttributeValue]:
    """Numbers become int or float, the rest text or bytes."""
    result: dict[str, AttributeValue] = {}
    for attribute in attributes or ():
        value: AttributeValue = attribute.value
        if attribute.type.startswith("Number") and isinstance(value, str):
            try:
                value = int(value)
            except ValueError:
                value = float(value)
        result[attribute.name] = value
    return result


def milliseconds(seconds: float, name: str) -> int:
    """Seconds as the wire has them. ValueError when they are no duration."""
    if not 0 <= seconds <= MAX_INTEGER / 2000:
        raise ValueError(f"{name} = {seconds!r}; it must be a number of seconds, 0 or more")
    return round(seconds * 1000)


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


class SentMessage(NamedTuple):
    """A message the broker has stored. `sequence` ascends within the queue; `log` names the queue's log for ever."""

    log: int
    sequence: int

    @property
    def message_id(self) -> str:
        """Its id, as a UUID's text."""
        return message_id_text(self.log.to_bytes(8, "big") + self.sequence.to_bytes(8, "big"))


@dataclasses.dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """One message of a batch with its properties; see Queue.send."""

    body: bytes | str
    attributes: Mapping[str, AttributeValue | wire.Attribute] | None = None
    delay_seconds: float | None = None
    group: str | None = None
    deduplication_id: str | None = None
    trace: str | None = None


def message_id_text(raw: bytes) -> str:
    """16 bytes as a UUID's text."""
    return str(uuid.UUID(bytes=raw))


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiptHandle:
    """Names one received message: the receipt of its delivery, its segment and its index there."""

    receipt: bytes
    first: int
    index: int

    @property
    def parts(self) -> tuple[bytes, int, int]:
        """Receipt, segment and index."""
        return self.receipt, self.first, self.index

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(_HANDLE.pack(self.receipt, self.first, self.index)).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> ReceiptHandle:
        """The handle of its text form. ReceiptHandleInvalid when it is none."""
        from penstock_protocol.errors import ReceiptHandleInvalid

        try:
            raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            return cls(*_HANDLE.unpack(raw))
        except (ValueError, struct.error) as error:
            raise ReceiptHandleInvalid(f"{text[:60]!r} is not a receipt handle") from error


class ReceivedMessage:
    """A received message. Everything but `body` is worked out when asked for, so that receiving many is cheap."""

    __slots__ = ("_delivery", "_log", "_place", "_queue", "body")

    def __init__(self, queue: Any, log: int, delivery: wire.Delivery, place: int) -> None:
        self._queue = queue
        self._log = log
        self._delivery = delivery
        self._place = place
        self.body: bytes = delivery.bodies[place]

    def _column(self, name: str) -> Any:
        column = getattr(self._delivery, name)
        return None if column is None else column[self._place]

    @property
    def index(self) -> int:
        """Its index in its segment."""
        indexes = self._delivery.indexes
        return indexes + self._place if isinstance(indexes, int) else indexes[self._place]

    @property
    def place(self) -> tuple[int, int]:
        """Its log and sequence number there: the same whenever it is received from this queue."""
        return self._log, self.sequence

    @property
    def text(self) -> str:
        """The body as UTF-8 text; UnicodeDecodeError when it is none."""
        return self.body.decode()

    @property
    def attributes(self) -> dict[str, AttributeValue]:
        """Its attributes."""
        return attributes_from_wire(self._column("attributes"))

    @property
    def group(self) -> str | None:
        """Its message group."""
        value: str | None = self._column("groups")
        return value

    @property
    def deduplication_id(self) -> str | None:
        """Its deduplication id, given or computed."""
        value: str | None = self._column("deduplication_ids")
        return value

    @property
    def trace(self) -> str | None:
        """The trace context it was sent with."""
        value: str | None = self._column("traces")
        return value

    @property
    def dead_letter_source(self) -> str | None:
        """The queue it was dead-lettered from."""
        value: str | None = self._column("sources")
        return value

    @property
    def sequence(self) -> int:
        """Its sequence number in the queue."""
        return self._delivery.first + self.index

    @property
    def message_id(self) -> str:
        """Its id."""
        origin = self._column("origins")
        return message_id_text(origin or self._log.to_bytes(8, "big") + self.sequence.to_bytes(8, "big"))

    @property
    def receive_count(self) -> int:
        """How often it was received, this time included."""
        return self._delivery.receive_count

    @property
    def sent_at(self) -> datetime:
        """When it was sent."""
        sent = self._delivery.sent_ms
        return _time(sent if isinstance(sent, int) else sent[self._place])

    @property
    def first_received_at(self) -> datetime:
        """When it was received for the first time."""
        return _time(self._delivery.first_received_ms)

    @property
    def parts(self) -> tuple[bytes, int, int]:
        """Its handle without an object: receipt, segment and index."""
        delivery = self._delivery
        return delivery.receipt, delivery.first, self.index

    @property
    def handle(self) -> ReceiptHandle:
        """What deletes it or changes its visibility."""
        return ReceiptHandle(*self.parts)

    @property
    def receipt_handle(self) -> str:
        """The handle as text, for another process."""
        return str(self.handle)

    def __repr__(self) -> str:
        return f"<Message {self.message_id} of {len(self.body)} bytes, received {self.receive_count} times>"


def mask_bytes(mask: int) -> bytes:
    """A mask of indexes as the wire has it."""
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


def receipts_of(handles: Iterable[ReceiptHandle]) -> list[wire.Receipt]:
    """Merges handles of the same delivery and segment into one receipt each."""
    masks: dict[tuple[bytes, int], int] = {}
    for handle in handles:
        key = (handle.receipt, handle.first)
        masks[key] = masks.get(key, 0) | 1 << handle.index
    return [wire.Receipt(receipt, first, mask_bytes(mask)) for (receipt, first), mask in masks.items()]


def receipts_of_delivery(delivery: wire.Delivery) -> wire.Receipt:
    """The receipt of all messages of a delivery."""
    indexes = delivery.indexes
    mask = 0
    for index in range(indexes, indexes + len(delivery.bodies)) if isinstance(indexes, int) else indexes:
        mask |= 1 << index
    return wire.Receipt(delivery.receipt, delivery.first, mask_bytes(mask))


def size_bytes(delivery: wire.Delivery) -> int:
    """What the messages of a delivery hold: bodies and the values of attributes."""
    size = sum(map(len, delivery.bodies))
    if delivery.attributes is not None:
        size += sum(len(one.value) for attributes in delivery.attributes for one in attributes or ())
    return size


@dataclasses.dataclass(frozen=True, slots=True)
class QueueInfo:
    """A queue as it is: all settings (wire names, ms and bytes), tags, and counts."""

    name: str
    arn: str
    created_at: datetime
    modified_at: datetime
    settings: dict[str, Any]
    tags: dict[str, str]
    visible: int
    in_flight: int
    delayed: int
    size_bytes: int
    oldest_age_seconds: float | None

    @property
    def messages(self) -> int:
        """All messages: visible, in flight and delayed."""
        return self.visible + self.in_flight + self.delayed

    @classmethod
    def of(cls, description: wire.QueueDescription) -> QueueInfo:
        """From its wire form."""
        oldest = description.oldest_ms
        return cls(
            description.queue,
            description.arn,
            _time(description.created_ms),
            _time(description.modified_ms),
            {setting.name: setting.value for setting in description.settings},
            {tag.key: tag.value for tag in description.tags},
            description.visible,
            description.in_flight,
            description.delayed,
            description.bytes,
            None if oldest is None else max(0.0, (description.now_ms - oldest) / 1000),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class PeekedMessage:
    """A message as it lies in the queue; `state` is visible, in_flight or delayed."""

    message_id: str
    sequence: int
    state: str
    sent_at: datetime
    visible_at: datetime | None
    receive_count: int
    body: bytes
    attributes: dict[str, AttributeValue]
    group: str | None
    deduplication_id: str | None
    dead_letter_source: str | None

    @classmethod
    def of(cls, message: wire.PeekedMessage) -> PeekedMessage:
        """From its wire form."""
        return cls(
            message_id_text(message.message_id),
            message.sequence,
            message.state,
            _time(message.sent_ms),
            _time(message.visible_at_ms) if message.visible_at_ms else None,
            message.receive_count,
            message.body,
            attributes_from_wire(message.attributes),
            message.group,
            message.deduplication_id,
            message.source,
        )


class PutResult(NamedTuple):
    """A record the broker has stored. `sequence` ascends within the shard."""

    shard: int
    sequence: int


@dataclasses.dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream as it is: all settings (wire names, ms and bytes), tags, and how many shards are open."""

    name: str
    arn: str
    created_at: datetime
    modified_at: datetime
    settings: dict[str, Any]
    tags: dict[str, str]
    shards: int

    @classmethod
    def of(cls, description: streams.StreamDescription) -> StreamInfo:
        """From its wire form."""
        return cls(
            description.stream,
            description.arn,
            _time(description.created_ms),
            _time(description.modified_ms),
            {setting.name: setting.value for setting in description.settings},
            {tag.key: tag.value for tag in description.tags},
            description.shards,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class ShardInfo:
    """A shard: it has the hashes from `low` to `high`, both included. `parents`: the shards it came from. `first`: the sequence
    number that reading begins with, `end`: the one behind its last record. `records` and `size_bytes` count what can be read;
    `oldest_at`: when the oldest of it arrived, None when there is none."""

    shard: int
    low: int
    high: int
    parents: list[int]
    created_at: datetime
    closed_at: datetime | None
    first: int
    end: int
    records: int = 0
    size_bytes: int = 0
    oldest_at: datetime | None = None

    @property
    def is_open(self) -> bool:
        """Whether records can be put into it."""
        return self.closed_at is None

    @classmethod
    def of(cls, shard: streams.Shard) -> ShardInfo:
        """From its wire form."""
        return cls(
            shard.shard,
            int.from_bytes(shard.low, "big"),
            int.from_bytes(shard.high, "big"),
            shard.parents,
            _time(shard.created_ms),
            None if shard.closed_ms is None else _time(shard.closed_ms),
            shard.first,
            shard.end,
            shard.records,
            shard.size_bytes,
            None if shard.oldest_ms is None else _time(shard.oldest_ms),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class GroupShard:
    """What a consumer group did of a shard: the `member` that has it (None: nobody), the next sequence number to be processed,
    and the one behind the shard's last record. `finished`: it is closed, and nothing is left of it."""

    shard: int
    member: str | None
    position: int
    end: int
    finished: bool

    @property
    def lag(self) -> int:
        """How many records are still to be processed at most: a crash of the broker may have left out sequence numbers."""
        return max(0, self.end - self.position)


@dataclasses.dataclass(frozen=True, slots=True)
class GroupDescription:
    """A consumer group as it stands: its members, and how far it is in each shard."""

    stream: str
    name: str
    created_at: datetime
    members: list[str]
    shards: list[GroupShard]

    @property
    def lag(self) -> int:
        """Of all shards."""
        return sum(shard.lag for shard in self.shards)

    @classmethod
    def of(cls, description: streams.GroupDescription) -> GroupDescription:
        """From its wire form."""
        return cls(
            description.stream,
            description.group,
            _time(description.created_ms),
            [member.hex() for member in description.members],
            [
                GroupShard(one.shard, None if one.member is None else one.member.hex(), one.position, one.end, one.finished)
                for one in description.shards
            ],
        )


@dataclasses.dataclass(frozen=True, slots=True)
class StreamConsumerInfo:
    """A registered consumer of a stream. `subscriptions`: how many shards are pushed to it now; `lag`: how many records of those
    it has not been pushed yet, at most."""

    stream: str
    name: str
    arn: str
    created_at: datetime
    subscriptions: int
    lag: int

    @classmethod
    def of(cls, consumer: streams.StreamConsumer) -> StreamConsumerInfo:
        """From its wire form."""
        return cls(
            consumer.stream,
            consumer.consumer,
            consumer.arn,
            _time(consumer.created_ms),
            consumer.subscriptions,
            consumer.lag,
        )


class StreamSettings(TypedDict, total=False):
    """Settings of a stream, as create_stream and set take them; None is the default."""

    retention: float | None
    """Seconds that a record is kept: an hour to 365 days (24 hours)."""
    max_record_bytes: int | None
    """Data of one record: 1 KiB to 10 MiB (1 MiB)."""
    mode: Literal["provisioned", "on_demand"] | None
    """on_demand: no limits per shard, whatever enforce_shard_limits says (provisioned)."""
    enforce_shard_limits: bool | None
    """Whether a shard lets pass only 1,000 records and 1 MiB in, 5 reads and 2 MiB out per second, as in Kinesis (false)."""


@dataclasses.dataclass(frozen=True, slots=True)
class AccessKeyInfo:
    """An access key; `secret` only right after its creation."""

    key_id: str
    secret: str
    role: str
    description: str
    created_at: datetime


class Named(Protocol):
    """A queue object."""

    @property
    def name(self) -> str:
        """Its name."""


class QueueSettings(TypedDict, total=False):
    """Settings of a queue, as create_queue and set take them; None is the default. Times are seconds."""

    visibility_timeout: float | None
    """How long a received message is hidden: 0 to 12 hours (30)."""
    delay: float | None
    """How long a new message is hidden (0)."""
    retention: float | None
    """How long a message is kept: 60 seconds to 14 days (4 days)."""
    receive_wait: float | None
    """How long a receive waits that names no time itself: 0 to 20 (0)."""
    max_message_bytes: int | None
    """Body and attributes of one message (1 MiB)."""
    dead_letter_queue: str | Named | None
    """Where messages go that were received max_receive_count times (none)."""
    max_receive_count: int | None
    """Receives before a message goes there (10)."""
    redrive_allow: Literal["allow_all", "deny_all", "by_queue"] | None
    """Which queues may use this one as their dead-letter queue."""
    redrive_sources: list[str] | None
    """Those that may, with by_queue."""
    max_in_flight: int | None
    """Messages that may be received and not yet deleted (120,000)."""
    max_messages: int | None
    """Messages the queue may hold (0: no limit)."""
    max_bytes: int | None
    """Bytes of bodies the queue may hold (0: no limit)."""
    content_based_deduplication: bool | None
    """FIFO: the SHA-256 of the body is the deduplication id where none is given (False)."""
    deduplication_scope: Literal["queue", "message_group"] | None
    """FIFO: within what a deduplication id counts."""
    fifo_throughput_limit: Literal["per_queue", "per_message_group"] | None
    """FIFO: kept for SQS; there is no such limit here."""


_DURATIONS = {"visibility_timeout", "delay", "retention", "receive_wait"}


def settings_to_wire(settings: Mapping[str, Any]) -> list[wire.Setting]:
    """Python settings to wire settings: visibility_timeout, delay, retention and receive_wait are seconds; a queue object as
    dead_letter_queue becomes its name; everything else goes as it is."""
    result = []
    for name, value in settings.items():
        if name in _DURATIONS:
            result.append(wire.Setting(f"{name}_ms", None if value is None else milliseconds(value, name)))
        else:
            result.append(wire.Setting(name, value if value is None else getattr(value, "name", value)))
    return result
