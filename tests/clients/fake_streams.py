"""The fake broker with streams: shards are split and merged, batches kept as they came, iterators expire when a test says so."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from typing import Any

import msgpack
from penstock.records import RecordBatch
from penstock_protocol import stream_messages as streams
from penstock_protocol.codec import Message
from penstock_protocol.connection import Request
from penstock_protocol.errors import (
    Cancelled,
    InvalidRequest,
    IteratorExpired,
    PenstockError,
    RecordTooLarge,
    ResourceInUse,
    ShardClosed,
    ShardDoesNotExist,
    StreamConsumerDoesNotExist,
    StreamDoesNotExist,
    ThroughputExceeded,
)
from penstock_protocol.queue_messages import Credit, Setting
from penstock_protocol.session_messages import Empty

from tests.clients.fake_broker import FakeBroker, Link

HASHES = 1 << 128


@dataclasses.dataclass(slots=True)
class FakeShard:
    """One shard: its batches with the sequence number and the time of each."""

    number: int
    low: int
    high: int
    parents: list[int]
    created_ms: int = 0
    closed_ms: int | None = None
    children: list[int] = dataclasses.field(default_factory=list)
    batches: list[tuple[int, int, streams.Batch]] = dataclasses.field(default_factory=list)
    end: int = 0
    trimmed: int = 0

    def wire(self) -> streams.Shard:
        low, high = self.low.to_bytes(16, "big"), self.high.to_bytes(16, "big")
        return streams.Shard(self.number, low, high, self.parents, self.created_ms, self.closed_ms, self.trimmed, self.end)

    @property
    def records(self) -> list[tuple[bytes, str]]:
        """Everything in it."""
        return [(one.data, one.key) for first, at, batch in self.batches for one in RecordBatch(self.number, first, at, batch)]


@dataclasses.dataclass(slots=True, eq=False)
class FakeSubscription:
    """A shard that is pushed to a registered consumer."""

    link: Link
    request: Request
    stream: str
    consumer: str
    shard: int
    position: int
    credit: int


@dataclasses.dataclass(slots=True, eq=False)
class FakeStream:
    """One stream."""

    shards: dict[int, FakeShard] = dataclasses.field(default_factory=dict)
    max_record_bytes: int = 1_048_576
    consumers: set[str] = dataclasses.field(default_factory=set)
    room: list[int] | None = None
    """How many records each of the next puts may store (of one that may not be cut: whether any); then no limit again."""

    @property
    def open(self) -> list[FakeShard]:
        """In the order of their hashes."""
        return sorted((one for one in self.shards.values() if one.closed_ms is None), key=lambda one: one.low)

    @property
    def records(self) -> list[tuple[bytes, str]]:
        """Of all shards, in the order of the shards."""
        return [record for _, shard in sorted(self.shards.items()) for record in shard.records]

    def add(self, low: int, high: int, parents: list[FakeShard], now_ms: int) -> FakeShard:
        number = len(self.shards)
        shard = self.shards[number] = FakeShard(number, low, high, [one.number for one in parents], now_ms)
        for parent in parents:
            parent.closed_ms = now_ms
            parent.children.append(number)
        return shard


class StreamBroker(FakeBroker):
    """See the module. `now_ms` is its clock; `stale_lists` lists of shards are as they were before the last split or merge."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.streams: dict[str, FakeStream] = {}
        self.now_ms = 1_000
        self.stale_lists = 0
        self._before: list[streams.Shard] = []
        self._iterators: dict[bytes, tuple[str, int, int]] = {}
        self._readers: list[tuple[Link, Request, streams.ReadRecords, tuple[str, int, int]]] = []
        self.subscriptions: list[FakeSubscription] = []
        self._put: dict[tuple[bytes, str, int, int], streams.PutReply] = {}
        self._numbers = itertools.count()

    def __enter__(self) -> StreamBroker:
        super().__enter__()
        return self

    # What tests do

    def stream(self, name: str, shards: int = 1) -> FakeStream:
        """The stream, made if need be."""
        with self._changed:
            if name not in self.streams:
                stream = self.streams[name] = FakeStream()
                for number in range(shards):
                    stream.add(HASHES * number // shards, HASHES * (number + 1) // shards - 1, [], self.now_ms)
            return self.streams[name]

    def split(self, name: str, number: int, at: int | None = None) -> None:
        """Closes a shard and opens two."""
        with self._changed:
            stream = self.streams[name]
            self._before = [one.wire() for one in stream.shards.values()]
            shard = stream.shards[number]
            middle = (shard.low + shard.high + 1) // 2 if at is None else at
            stream.add(shard.low, middle - 1, [shard], self.now_ms)
            stream.add(middle, shard.high, [shard], self.now_ms)
            self._serve_readers()

    def merge(self, name: str, one: int, other: int) -> None:
        """Closes two shards and opens one."""
        with self._changed:
            stream = self.streams[name]
            self._before = [one.wire() for one in stream.shards.values()]
            both = [stream.shards[one], stream.shards[other]]
            stream.add(min(one.low for one in both), max(one.high for one in both), both, self.now_ms)
            self._serve_readers()

    def expire_iterators(self) -> None:
        """No iterator that was given out is good any more; who waits with one is not disturbed."""
        with self._changed:
            self._iterators.clear()

    @property
    def waiting_reads(self) -> int:
        """Reads that wait at a tip."""
        return len(self._readers)

    # What clients see

    def gone(self, link: Link) -> None:
        """A connection has ended."""
        with self._changed:
            self._readers = [one for one in self._readers if one[0] is not link]
            self.subscriptions = [one for one in self.subscriptions if one.link is not link]
            super().gone(link)

    def _stream(self, name: str) -> FakeStream:
        if name not in self.streams:
            raise StreamDoesNotExist(f"there is no stream {name!r}")
        return self.streams[name]

    def _describe(self, name: str) -> streams.StreamDescription:
        stream = self._stream(name)
        settings = [Setting("retention_ms", 86_400_000), Setting("max_record_bytes", stream.max_record_bytes)]
        return streams.StreamDescription(name, f"arn:{name}", 1, 1, settings, [], len(stream.open))

    def _apply(self, link: Link, request: Request, message: Any) -> Message | PenstockError | None:
        match message:
            case streams.CreateStream():
                self.stream(message.stream, message.shards)
                return self._describe(message.stream)
            case streams.StreamName() if request.operation.name == "ListStreamConsumers":
                stream = self._stream(message.stream)
                return streams.StreamConsumers([self._consumer(message.stream, name) for name in sorted(stream.consumers)])
            case streams.StreamConsumerName():
                return self._name(message, request.operation.name)
            case streams.SubscribeToShard():
                self._subscribe(link, request, message)
                return None
            case Credit():
                for one in self.subscriptions:
                    if one.link is link and one.request.correlation == message.correlation:
                        one.credit += message.messages
                self._push()
            case streams.StreamName():
                if request.operation.name == "DescribeStream":
                    return self._describe(message.stream)
                self._stream(message.stream)
                del self.streams[message.stream]
                return Empty()
            case streams.ListStreams():
                names = sorted(name for name in self.streams if name.startswith(message.prefix) and name > message.after)
                return streams.StreamNames(names[:2], len(names) > 2)
            case streams.ListShards():
                return self._list(message)
            case streams.SplitShard():
                self.split(message.stream, message.shard, None if message.at is None else int.from_bytes(message.at, "big"))
            case streams.MergeShards():
                self.merge(message.stream, message.shard, message.other)
            case streams.SetStreamSettings():
                stream = self._stream(message.stream)
                for setting in message.settings:
                    if setting.name == "max_record_bytes":
                        assert isinstance(setting.value, int)
                        stream.max_record_bytes = setting.value
                return self._describe(message.stream)
            case streams.PutRecords():
                return self._put_records(link, message)
            case streams.OpenIterator():
                return self._open_iterator(message)
            case streams.ReadRecords():
                return self._read(link, request, message)
            case _:
                for one in list(self.subscriptions):
                    if one.link is link and one.request.correlation == getattr(message, "correlation", 0):
                        self.end(one, Cancelled())
                for reader in list(self._readers):
                    if reader[0] is link and reader[1].correlation == getattr(message, "correlation", 0):
                        self._readers.remove(reader)
                return super()._apply(link, request, message)
        return Empty()

    def _list(self, message: streams.ListShards) -> streams.Shards:
        shards = [one.wire() for one in self._stream(message.stream).shards.values()]
        if self.stale_lists and message.state == "open":
            self.stale_lists -= 1
            shards = self._before
        shards = [one for one in shards if one.shard >= message.start and (message.state != "open" or one.closed_ms is None)]
        limit = min(message.limit, 3)
        return streams.Shards(shards[:limit], len(shards) > limit)

    def _put_records(self, link: Link, message: streams.PutRecords) -> streams.PutReply:
        stream = self._stream(message.stream)
        shard = stream.shards[message.shard]
        known = self._put.get((link.producer, message.stream, message.shard, message.sequence))
        if known is not None:
            self.repeated += 1
            return known
        if shard.closed_ms is not None:
            raise ShardClosed(f"shard {shard.number} is closed")
        if message.after is not None and message.after >= shard.end:
            raise InvalidRequest(f"after = {message.after}")
        batch = streams.Batch(message.count, message.codec, message.size_bytes, message.blob)
        records = list(RecordBatch(shard.number, shard.end, self.now_ms, batch, deaggregate=False))
        size_bytes = sum(len(one.data) + len(one.key.encode()) for one in records)
        if (len(records), size_bytes) != (message.count, message.size_bytes):
            self.violations.append(f"a batch of {len(records)} records, {size_bytes} bytes, was sent as {message}")
        if max(len(one.data) for one in records) > stream.max_record_bytes:
            raise RecordTooLarge(f"the stream allows {stream.max_record_bytes}")
        taken = message.count
        if stream.room:
            taken = min(taken, stream.room.pop(0))
            if message.codec != streams.PLAIN or not message.partial:
                taken = message.count if taken else 0
            if not taken:
                raise ThroughputExceeded("no room")
        if taken < message.count:
            some = records[:taken]
            size_bytes = sum(len(one.data) + len(one.key.encode()) for one in some)
            blob = msgpack.packb([[one.data for one in some], [one.key for one in some]])
            batch = streams.Batch(taken, message.codec, size_bytes, blob)
        reply = streams.PutReply(shard.end, taken if taken < message.count else None)
        self._put[link.producer, message.stream, message.shard, message.sequence] = reply
        shard.batches.append((shard.end, self.now_ms, batch))
        shard.end += taken
        self._serve_readers()
        return reply

    def _iterator(self, place: tuple[str, int, int]) -> bytes:
        iterator = next(self._numbers).to_bytes(32, "big")
        self._iterators[iterator] = place
        return iterator

    def _open_iterator(self, message: streams.OpenIterator) -> streams.Iterator:
        shard = self._stream(message.stream).shards.get(message.shard)
        if shard is None:
            raise ShardDoesNotExist(f"there is no shard {message.shard}")
        later = [first for first, at, _ in shard.batches if at >= message.position]
        position = {
            "trim_horizon": shard.trimmed,
            "latest": shard.end,
            "at": message.position,
            "after": message.position + 1,
            "time": later[0] if later else shard.end,
        }[message.start]
        return streams.Iterator(self._iterator((message.stream, message.shard, position)))

    def _read(self, link: Link, request: Request, message: streams.ReadRecords) -> Message | None:
        place = self._iterators.get(message.iterator)
        if place is None:
            raise IteratorExpired()
        reply = self._records(place, message)
        if reply.runs or not reply.next or not message.wait_ms:
            return reply
        self._readers.append((link, request, message, place))
        if message.wait_ms < 5_000:
            timer = threading.Timer(message.wait_ms / 1_000, self._wait_is_over, [request])
            timer.daemon = True
            timer.start()
        return None

    def _wait_is_over(self, request: Request) -> None:
        with self._changed:
            for reader in [one for one in self._readers if one[1] is request]:
                self._readers.remove(reader)
                self._answer(reader[0], request, self._records(reader[3], reader[2]))

    def end_waiting_reads(self) -> None:
        """Answers all reads that wait at a tip with nothing, as when their time is over."""
        with self._changed:
            for reader in list(self._readers):
                self._wait_is_over(reader[1])

    def _records(self, place: tuple[str, int, int], message: streams.ReadRecords) -> streams.Records:
        name, number, position = place
        shard = self._stream(name).shards[number]
        runs: list[streams.RecordRun] = []
        start = position
        left = message.max_records
        for first, at, batch in shard.batches:
            if first + batch.count <= position or left <= 0:
                continue
            runs.append(streams.RecordRun(first, at, [batch]))
            position = first + batch.count
            left -= batch.count
        over = shard.closed_ms is not None and position >= shard.end
        following = b"" if over else self._iterator((name, number, position))
        behind = 0 if position >= shard.end else 500
        return streams.Records(number, start, runs, following, behind, shard.children if over else [])

    # Registered consumers

    def _consumer(self, stream: str, name: str) -> streams.StreamConsumer:
        count = sum((one.stream, one.consumer) == (stream, name) for one in self.subscriptions)
        return streams.StreamConsumer(stream, name, f"arn:{stream}:{name}", 1_000, count, 0)

    def _name(self, message: streams.StreamConsumerName, operation: str) -> Message:
        consumers = self._stream(message.stream).consumers
        if operation == "RegisterStreamConsumer":
            consumers.add(message.consumer)
        elif message.consumer not in consumers:
            raise StreamConsumerDoesNotExist(f"there is no consumer {message.consumer}")
        elif operation == "DeregisterStreamConsumer":
            consumers.remove(message.consumer)
            for one in [one for one in self.subscriptions if one.consumer == message.consumer]:
                self.end(one, StreamConsumerDoesNotExist())
            return Empty()
        return self._consumer(message.stream, message.consumer)

    def _subscribe(self, link: Link, request: Request, message: streams.SubscribeToShard) -> None:
        stream = self._stream(message.stream)
        if message.consumer not in stream.consumers:
            raise StreamConsumerDoesNotExist(f"there is no consumer {message.consumer}")
        place = self._open_iterator(streams.OpenIterator(message.stream, message.shard, message.start, message.position)).iterator
        position = self._iterators.pop(place)[2]
        for one in [one for one in self.subscriptions if (one.consumer, one.shard) == (message.consumer, message.shard)]:
            self.end(one, ResourceInUse("another took over"))
        one = FakeSubscription(link, request, message.stream, message.consumer, message.shard, position, message.credit)
        self.subscriptions.append(one)
        self._say(one, [])
        self._push()

    def _say(self, one: FakeSubscription, runs: list[streams.RecordRun]) -> None:
        start = one.position
        for run in runs:
            one.position = run.first + sum(batch.count for batch in run.batches)
        behind_ms = 500 if one.position < self.streams[one.stream].shards[one.shard].end else 0
        message = streams.PushedRecords(start, runs, one.position, behind_ms)
        one.link.send(one.link.connection.push(one.request.operation.code, one.request.correlation, message))

    def end(self, one: FakeSubscription, answer: PenstockError | Message) -> None:
        """Ends a subscription."""
        self.subscriptions.remove(one)
        self._answer(one.link, one.request, answer)

    def _push(self) -> None:
        for one in list(self.subscriptions):
            shard = self.streams[one.stream].shards[one.shard]
            for first, at, batch in shard.batches:
                if one.credit > 0 and first + batch.count > one.position:
                    one.credit -= batch.count
                    self._say(one, [streams.RecordRun(first, at, [batch])])
            if shard.closed_ms is not None and one.position >= shard.end:
                self.end(one, streams.SubscriptionEnd(shard.children))
        self._changed.notify_all()

    def _serve_readers(self) -> None:
        self._push()
        for reader in list(self._readers):
            link, request, message, place = reader
            reply = self._records(place, message)
            if reply.runs or not reply.next:
                self._readers.remove(reader)
                self._answer(link, request, reply)
        self._changed.notify_all()
