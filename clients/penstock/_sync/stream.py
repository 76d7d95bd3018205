# Generated from clients/penstock/_async/stream.py by tools/generate_blocking_client.py (make sync-client): edit that file.
"""A stream as an application uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast, overload

from penstock import _backend_threads as backend
from penstock._sync.group import GroupConsumer
from penstock._sync.producer import Producer
from penstock._sync.putting import MAX_BATCH, Lanes, PutBatch
from penstock._sync.reader import Reader, Start, start_of
from penstock._sync.shards import Shards, list_shards
from penstock._sync.subscription import StreamConsumer
from penstock.errors import (
    InvalidRequest,
    PenstockError,
    PutFailed,
    RecordTooLarge,
    fresh,
)
from penstock.records import (
    Columns,
    OutgoingRecord,
    PutResults,
    Record,
    RecordBatch,
    ShardMap,
    hash_bytes,
    problem_of,
    record_bytes,
    size_of,
)
from penstock.types import (
    GroupDescription,
    PutResult,
    ShardInfo,
    StreamConsumerInfo,
    StreamInfo,
    StreamSettings,
    settings_to_wire,
)
from penstock_protocol import queue_messages as queues
from penstock_protocol import stream_messages as wire

if TYPE_CHECKING:
    from penstock._sync.client import Client


class Stream:
    """One stream by its name. Made by Client.stream or create_stream; making it talks to nobody.

    A record has data and a partition key; the MD5 of the key chooses the shard, so records of one key keep their order. Times
    are seconds. Every call may raise StreamDoesNotExist, NotConnected, RequestTimeout and the other typed errors of
    `penstock.errors`, each with `.retryable` and `.advice`."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self.name = name
        self.attach()

    def attach(self) -> None:
        """Takes up the client's connection; again when that began anew, in a child process."""
        self.link = self._client.link
        self.sequences = self._client.sequences
        self.shard_map = Shards(self.link, self.name)
        self._lanes = Lanes(self.link, self.name, self.sequences, self.shard_map, timeout=self.link.options.request_timeout)

    def __repr__(self) -> str:
        return f"<Stream {self.name!r}>"

    # Putting

    def put(
        self, data: bytes | str, key: str, *, hash_key: int | None = None, after: PutResult | Record | None = None
    ) -> PutResult:
        """Puts one record; when this returns it is durable. Concurrent puts travel together.

        `hash_key` (0 to 2**128 - 1) chooses the shard in place of the key's MD5. A put whose reply was lost is repeated without
        making a second record, also across a restart of the broker. After a cancellation the record may or may not have been
        put. What the limits of its shard do not let pass is put again until the time is over, and is ThroughputExceeded then.
        Raises RecordTooLarge, and InvalidRequest for a key that has not 1 to 256 characters.

        `after`: what the put of the record before it under that key has returned, or that record as it was read. This one comes
        behind it: with a greater sequence number in the same shard, or in a shard that has since taken over from that one.
        InvalidRequest when that is not so of it, for it lies in the shard of another key, or its number was never assigned.

            >>> stream = client.create_stream("clicks")
            >>> stream.put("a click", "visitor 1")
            PutResult(shard=0, sequence=...)
        """
        content = record_bytes(data)
        explicit = hash_bytes(hash_key)
        size_bytes = size_of(content, key)
        shards = self.shard_map.current or self.shard_map.get()
        problem = problem_of(content, key, shards.max_record_bytes)
        if isinstance(problem, RecordTooLarge):  # perhaps more is allowed by now
            problem = problem_of(content, key, (self.shard_map.renew()).max_record_bytes)
        if problem is not None:
            raise problem
        if after is not None:
            shards = self._known_to(shards, after)
        with self.link.mutex:
            shards = self._lanes.route(shards)
            shard = shards.shard_of(key, explicit)
            if after is None:
                batch, place = self._lanes.join(shard, content, key, explicit, size_bytes)
            else:
                if after.shard != shard and after.shard in shards.ids:
                    raise InvalidRequest(f"after a record of shard {after.shard}: the key belongs to shard {shard}")
                batch, place = PutBatch(Columns([content], [key], [explicit], size_bytes)), 0
                batch.after = after
                self._lanes.send(shard, batch)
        batch.done.wait()
        return batch.result(place)

    def _known_to(self, shards: ShardMap, after: PutResult | Record) -> ShardMap:
        """The shards, as new as a record is."""
        if after.shard > max(shards.ids):
            shards = self.shard_map.renew()
            if after.shard > max(shards.ids):
                raise InvalidRequest(f"after a record of shard {after.shard}: there never was one")
        return shards

    def put_many(
        self, records: Iterable[tuple[bytes | str, str] | OutgoingRecord], *, raise_on_failure: bool = True
    ) -> PutResults:
        """Puts many records, (data, key) or OutgoingRecord, in as few frames as possible; one result per record, in order.

        Each record answers for itself: with `raise_on_failure` any refusal raises PutFailed, which names the refused ones and
        has them, to put them again; without it the refusals stand among the results as errors. Records of a shard are put in
        their order, also where the shard's limits let only some pass at a time; a batch that fails as a whole holds back those of
        its shard after it. TypeError, before anything is put, when a record has no form on the wire. After a cancellation any of
        them may have been put.

            >>> stream = client.create_stream("clicks")
            >>> results = stream.put_many([(b"one", "visitor 1"), (b"two", "visitor 2")])
            >>> len(results), results.failures
            (2, {})
        """
        return self._put(Columns.of_rows(records), raise_on_failure)

    def put_columns(
        self,
        data: Sequence[bytes | str],
        keys: Sequence[str],
        hash_keys: Sequence[int | None] | None = None,
        *,
        raise_on_failure: bool = True,
    ) -> PutResults:
        """The same from columns: the fastest way, for no object is made of a record.

        >>> stream = client.create_stream("clicks")
        >>> results = stream.put_columns([b"one", b"two"], ["visitor 1", "visitor 2"])
        >>> results[1]
        PutResult(shard=0, sequence=...)
        """
        return self._put(Columns.of(data, keys, hash_keys), raise_on_failure)

    def _put(self, columns: Columns, raise_on_failure: bool) -> PutResults:
        if not len(columns):
            return PutResults(0, {}, [])
        shards = self.shard_map.current or self.shard_map.get()
        problems = columns.problems(shards.max_record_bytes)
        if problems:  # perhaps larger records are allowed by now
            shards = self.shard_map.renew()
            problems = columns.problems(shards.max_record_bytes)
        good: list[int] | None = None
        wanted = columns
        if problems:
            good = [place for place in range(len(columns)) if place not in problems]
            wanted = columns.pick(good)
        limit = self._lanes.limit_bytes(self.link.options.request_bytes)
        batches: list[tuple[list[int] | None, PutBatch]] = []
        first = []
        for shard, places, some in shards.group(wanted):
            chain = [PutBatch(piece) for piece in some.pieces(MAX_BATCH, limit)]
            for batch, following in pairwise(chain):
                batch.on_done = self._follower(shard, following)
            first.append((shard, chain[0]))
            start = 0
            for batch in chain:
                stop = start + len(batch)
                batches.append((_places(good, places, start, stop, len(columns)), batch))
                start = stop
        with self.link.mutex:
            for shard, batch in first:
                self._lanes.send(shard, batch)
        for _, batch in batches:
            batch.done.wait()
        results = PutResults(len(columns), problems, batches)
        if raise_on_failure:
            failures = results.failures
            if failures:
                self._raise(columns, failures, problems)
        return results

    def _follower(self, shard: int, following: PutBatch) -> Callable[[PutBatch], None]:
        """Sends the next batch of a shard once the one before it is there, or gives it up."""

        def on_done(batch: PutBatch) -> None:
            error = batch.error
            if error is None:
                with self.link.mutex:
                    self._lanes.send(shard, following)
            else:
                problem = type(error)(f"not put, because a batch before it failed: {error}")
                self._lanes.answer(following, -1, problem)

        return on_done

    @staticmethod
    def _raise(columns: Columns, failures: dict[int, PenstockError], problems: dict[int, PenstockError]) -> None:
        first = next(iter(failures.values()))
        if len(failures) == len(columns) and not problems:
            raise fresh(first)
        raise PutFailed(
            f"{len(failures)} of {len(columns)} records were not put; the first: {first}",
            failures,
            [columns.row(place) for place in failures],
        )

    def producer(
        self,
        *,
        max_records: int = 5_000,
        max_bytes: int = 1_048_576,
        linger: float = 0.01,
        compression: Literal["zstd"] | None = None,
        buffer_bytes: int = 64 * 1_048_576,
        delivery_timeout: float = 120.0,
        ordered: bool = True,
    ) -> Producer:
        """A buffer that records are put into without waiting for the broker: see Producer, and use it as `with`.

        `compression` needs `pip install 'penstock[zstd]'`, for readers too. `delivery_timeout` may be longer than the broker
        remembers what was put (15 minutes), but a repetition after that makes second records."""
        return Producer(
            self,
            max_records=max_records,
            max_bytes=max_bytes,
            linger=linger,
            compression=compression,
            buffer_bytes=buffer_bytes,
            delivery_timeout=delivery_timeout,
            ordered=ordered,
        )

    # Reading

    def read(
        self,
        shard: int,
        start: Start = "trim_horizon",
        *,
        idle_seconds: float | None = None,
        max_records: int = 10_000,
        max_bytes: int = 4 * 1_048_576,
        deaggregate: bool = True,
    ) -> Reader:
        """Reads one shard: batches of records, as they were put. `start`: "trim_horizon" (the oldest record), "latest" (what
        comes from now on), ("at", n), ("after", n) with a sequence number, or a datetime.

        Ends when the shard is closed and read out (its children have what came afterwards), or nothing came for `idle_seconds`;
        with 0 it reads what is there. A request brings whole batches, as many as it takes to reach `max_records` or `max_bytes`.
        One that the shard's limits do not let pass is asked again after a pause, as often as it takes.
        Records that were aggregated (by the Kinesis Producer Library) come as their user records; with `deaggregate=False` as
        they were put.

            >>> stream = client.create_stream("clicks")
            >>> sent = stream.put("a click", "visitor 1")
            >>> for batch in stream.read(0, ("at", sent.sequence), idle_seconds=0):
            ...     for record in batch:
            ...         print(record.key, record.text)
            visitor 1 a click
        """
        return Reader(self.link, self.name, shard, start, max_records, max_bytes, idle_seconds, deaggregate)

    def tail(
        self,
        start: Literal["trim_horizon", "latest"] | datetime = "latest",
        *,
        idle_seconds: float | None = None,
        max_records: int = 10_000,
        max_bytes: int = 4 * 1_048_576,
        deaggregate: bool = True,
    ) -> Reader:
        """Reads all shards at once from `start` on, and goes on with the children of shards that are split or merged, each when
        its parents were read out: so records of one key come in their order. Otherwise as `read`.

            >>> stream = client.create_stream("clicks")
            >>> sent = stream.put("a click", "visitor 1")
            >>> with stream.tail("trim_horizon") as batches:
            ...     for batch in batches:
            ...         print(batch.shard)
            ...         break
            0
        """
        return Reader(self.link, self.name, None, start, max_records, max_bytes, idle_seconds, deaggregate)

    # Consumer groups

    @overload
    def consume(
        self,
        group: str,
        *,
        start: Literal["trim_horizon", "latest"] = ...,
        checkpoint: Literal["auto", "manual"] = ...,
        session_seconds: float = ...,
        checkpoint_seconds: float = ...,
        batches: Literal[False] = ...,
        max_records: int = ...,
        max_bytes: int = ...,
        deaggregate: bool = ...,
    ) -> GroupConsumer[Record]: ...

    @overload
    def consume(
        self,
        group: str,
        *,
        start: Literal["trim_horizon", "latest"] = ...,
        checkpoint: Literal["auto", "manual"] = ...,
        session_seconds: float = ...,
        checkpoint_seconds: float = ...,
        batches: Literal[True],
        max_records: int = ...,
        max_bytes: int = ...,
        deaggregate: bool = ...,
    ) -> GroupConsumer[RecordBatch]: ...

    def consume(
        self,
        group: str,
        *,
        start: Literal["trim_horizon", "latest"] = "trim_horizon",
        checkpoint: Literal["auto", "manual"] = "auto",
        session_seconds: float = 10.0,
        checkpoint_seconds: float = 5.0,
        batches: bool = False,
        max_records: int = 10_000,
        max_bytes: int = 4 * 1_048_576,
        deaggregate: bool = True,
    ) -> GroupConsumer[Record] | GroupConsumer[RecordBatch]:
        """Reads the stream as one of the members of a consumer group, which share its shards: see GroupConsumer, and use it
        as `with`. The group is made when its first member comes; `start` says where it begins then.

        `session_seconds` (1 to 600): how long a member may be silent before its shards go to others; it says every third of
        that that it lives, also while the application is busy. `checkpoint`: "auto", or "manual" to say yourself how far you
        are. `batches`: RecordBatch after RecordBatch, as they were put, in place of single records. `deaggregate` as in `read`.

            >>> stream = client.create_stream("visits")
            >>> sent = stream.put("a visit", "visitor 1")
            >>> with stream.consume("analytics") as records:
            ...     for record in records:
            ...         print(record.key, record.text)
            ...         records.stop()
            visitor 1 a visit
        """
        make: Any = GroupConsumer
        consumer: GroupConsumer[Record] | GroupConsumer[RecordBatch] = make(
            self.link,
            self.name,
            group,
            start=start,
            checkpoint=checkpoint,
            session_seconds=session_seconds,
            checkpoint_seconds=checkpoint_seconds,
            batches=batches,
            max_records=max_records,
            max_bytes=max_bytes,
            deaggregate=deaggregate,
        )
        return consumer

    def groups(self) -> list[str]:
        """The names of the stream's consumer groups, in order."""
        return cast(wire.GroupNames, self.link.call(wire.StreamName(self.name), "ListGroups")).groups

    def describe_group(self, name: str) -> GroupDescription:
        """Who is in a consumer group, and how far it is in each shard. GroupDoesNotExist when it never had a member."""
        reply = self.link.call(wire.GroupName(self.name, name), "DescribeGroup")
        return GroupDescription.of(cast(wire.GroupDescription, reply))

    def reset_group(self, name: str, start: Literal["trim_horizon", "latest"] | datetime) -> GroupDescription:
        """Has a consumer group go on from another place: the oldest records, what comes from now on, or the first that arrived at
        a time or later. Members that are there hear of it with their next heartbeat, and begin again from there."""
        kind, position = start_of(start)
        reply = self.link.call(wire.ResetGroup(self.name, name, kind, position))
        return GroupDescription.of(cast(wire.GroupDescription, reply))

    def delete_group(self, name: str) -> None:
        """Deletes a consumer group with its checkpoints. One that still has members comes again with their next heartbeat, and
        begins at their `start`."""
        self.link.call(wire.GroupName(self.name, name), "DeleteGroup")

    # Registered consumers

    def register_consumer(self, name: str) -> StreamConsumer:
        """Registers a consumer, to which the broker pushes records: see StreamConsumer.subscribe. One that is registered
        already is taken as it is. LimitExceeded beyond 20 of a stream.

            >>> stream = client.create_stream("clicks")
            >>> stream.register_consumer("audit")
            <StreamConsumer 'audit' of 'clicks'>
        """
        reply = self.link.call(wire.StreamConsumerName(self.name, name), "RegisterStreamConsumer")
        return StreamConsumer(self.link, StreamConsumerInfo.of(cast(wire.StreamConsumer, reply)))

    def list_consumers(self) -> list[StreamConsumerInfo]:
        """The registered consumers of the stream, in order of their names."""
        reply = cast(wire.StreamConsumers, self.link.call(wire.StreamName(self.name), "ListStreamConsumers"))
        return [StreamConsumerInfo.of(one) for one in reply.consumers]

    def registered_consumer(self, name: str) -> StreamConsumer:
        """A consumer that was registered, as it stands (`.info`), for whoever may not register any; StreamConsumerDoesNotExist
        when there is none of that name."""
        reply = self.link.call(wire.StreamConsumerName(self.name, name), "DescribeStreamConsumer")
        return StreamConsumer(self.link, StreamConsumerInfo.of(cast(wire.StreamConsumer, reply)))

    def deregister_consumer(self, name: str) -> None:
        """Forgets a registered consumer; its subscriptions end with StreamConsumerDoesNotExist."""
        self.link.call(wire.StreamConsumerName(self.name, name), "DeregisterStreamConsumer")

    # The stream and its shards

    def describe(self) -> StreamInfo:
        """Settings, tags and the number of open shards."""
        return StreamInfo.of(cast(wire.StreamDescription, self.link.call(wire.StreamName(self.name), "DescribeStream")))

    def set(self, **settings: Unpack[StreamSettings]) -> StreamInfo:
        """Changes settings, named as in Client.create_stream; None resets one to its default."""
        request = wire.SetStreamSettings(self.name, settings_to_wire(cast(Mapping[str, Any], settings)))
        return StreamInfo.of(cast(wire.StreamDescription, self.link.call(request)))

    def tag(self, **tags: str) -> None:
        """Adds or replaces tags."""
        self.link.call(wire.TagStream(self.name, [queues.Tag(key, value) for key, value in tags.items()]))

    def untag(self, *keys: str) -> None:
        """Removes tags."""
        self.link.call(wire.UntagStream(self.name, list(keys)))

    def shards(self, state: Literal["all", "open", "closed"] = "all", *, at: datetime | None = None) -> list[ShardInfo]:
        """The shards whose records are still there, in order of their ids; `at`: only those that were open at that time."""
        done = backend.Event()
        outcome: list[tuple[list[wire.Shard], PenstockError | None]] = []

        def on_done(found: list[wire.Shard], error: PenstockError | None) -> None:
            outcome.append((found, error))
            done.set()

        at_ms = None if at is None else round(at.timestamp() * 1000)
        list_shards(self.link, wire.ListShards(self.name, state=state, at_ms=at_ms), on_done)
        done.wait()
        found, error = outcome[0]
        if error is not None:
            raise fresh(error)
        return [ShardInfo.of(shard) for shard in found]

    def split(self, shard: int, at: int | None = None) -> None:
        """Closes an open shard; its hashes below `at` and those from `at` on (None: half of them each) go to two new ones.

        InvalidShardRange when `at` is not strictly inside. Who puts and who tails follow by themselves."""
        self.link.call(wire.SplitShard(self.name, shard, hash_bytes(at)))

    def merge(self, shard: int, other: int) -> None:
        """Closes two open shards whose hashes are neighbours (else ShardsNotAdjacent); a new one takes over both."""
        self.link.call(wire.MergeShards(self.name, shard, other))

    def set_shard_count(self, shards: int) -> StreamInfo:
        """Splits and merges until there are so many open shards of even size."""
        return StreamInfo.of(cast(wire.StreamDescription, self.link.call(wire.SetShardCount(self.name, shards))))

    def delete_stream(self) -> None:
        """Deletes the stream with everything in it."""
        self.link.call(wire.StreamName(self.name), "DeleteStream")


def _places(good: list[int] | None, places: list[int] | None, start: int, stop: int, count: int) -> list[int] | None:
    """Where the records from `start` to `stop` of a shard stood in what was put; None: they are all of it."""
    if places is None:
        if good is None:
            return None if (start, stop) == (0, count) else list(range(start, stop))
        return good[start:stop]
    some = places[start:stop]
    return some if good is None else [good[place] for place in some]
