"""A stream as an application uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast, overload

from penstock_protocol import queue_messages as queues
from penstock_protocol import stream_messages as wire

from penstock import _backend_async as backend
from penstock._async.group import AsyncGroupConsumer
from penstock._async.producer import AsyncProducer
from penstock._async.putting import MAX_BATCH, AsyncLanes, PutBatch
from penstock._async.reader import AsyncReader, Start, start_of
from penstock._async.shards import AsyncShards, list_shards
from penstock._async.subscription import AsyncStreamConsumer
from penstock.errors import InvalidRequest, PenstockError, PutFailed, RecordTooLarge, fresh
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

if TYPE_CHECKING:
    from penstock._async.client import AsyncClient


class AsyncStream:
    """One stream by its name. Made by AsyncClient.stream or create_stream; making it talks to nobody.

    A record has data and a partition key; the MD5 of the key chooses the shard, so records of one key keep their order. Times
    are seconds. Every call may raise StreamDoesNotExist, NotConnected, RequestTimeout and the other typed errors of
    `penstock.errors`, each with `.retryable` and `.advice`."""

    def __init__(self, client: AsyncClient, name: str) -> None:
        self._client = client
        self.name = name
        self.attach()

    def attach(self) -> None:
        """Takes up the client's connection; again when that began anew, in a child process."""
        self.link = self._client.link
        self.sequences = self._client.sequences
        self.shard_map = AsyncShards(self.link, self.name)
        self._lanes = AsyncLanes(self.link, self.name, self.sequences, self.shard_map, timeout=self.link.options.request_timeout)

    def __repr__(self) -> str:
        return f"<Stream {self.name!r}>"

    # Putting

    async def put(
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

            >>> stream = await client.create_stream("clicks")
            >>> await stream.put("a click", "visitor 1")
            PutResult(shard=0, sequence=...)
        """
        content = record_bytes(data)
        explicit = hash_bytes(hash_key)
        size_bytes = size_of(content, key)
        shards = self.shard_map.current or await self.shard_map.get()
        problem = problem_of(content, key, shards.max_record_bytes)
        if isinstance(problem, RecordTooLarge):  # perhaps more is allowed by now
            problem = problem_of(content, key, (await self.shard_map.renew()).max_record_bytes)
        if problem is not None:
            raise problem
        if after is not None:
            shards = await self._known_to(shards, after)
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
        await batch.done.wait()
        return batch.result(place)

    async def _known_to(self, shards: ShardMap, after: PutResult | Record) -> ShardMap:
        """The shards, as new as a record is."""
        if after.shard > max(shards.ids):
            shards = await self.shard_map.renew()
            if after.shard > max(shards.ids):
                raise InvalidRequest(f"after a record of shard {after.shard}: there never was one")
        return shards

    async def put_many(
        self, records: Iterable[tuple[bytes | str, str] | OutgoingRecord], *, raise_on_failure: bool = True
    ) -> PutResults:
        """Puts many records, (data, key) or OutgoingRecord, in as few frames as possible; one result per record, in order.

        Each record answers for itself: with `raise_on_failure` any refusal raises PutFailed, which names the refused ones and
        has them, to put them again; without it the refusals stand among the results as errors. Records of a shard are put in
        their order, also where the shard's limits let only some pass at a time; a batch that fails as a whole holds back those of
        its shard after it. TypeError, before anything is put, when a record has no form on the wire. After a cancellation any of
        them may have been put.

            >>> stream = await client.create_stream("clicks")
            >>> results = await stream.put_many([(b"one", "visitor 1"), (b"two", "visitor 2")])
            >>> len(results), results.failures
            (2, {})
        """
        return await self._put(Columns.of_rows(records), raise_on_failure)

    async def put_columns(
        self,
        data: Sequence[bytes | str],
        keys: Sequence[str],
        hash_keys: Sequence[int | None] | None = None,
        *,
        raise_on_failure: bool = True,
    ) -> PutResults:
        """The same from columns: the fastest way, for no object is made of a record.

        >>> stream = await client.create_stream("clicks")
        >>> results = await stream.put_columns([b"one", b"two"], ["visitor 1", "visitor 2"])
        >>> results[1]
        PutResult(shard=0, sequence=...)
        """
        return await self._put(Columns.of(data, keys, hash_keys), raise_on_failure)

    async def _put(self, columns: Columns, raise_on_failure: bool) -> PutResults:
        if not len(columns):
            return PutResults(0, {}, [])
        shards = self.shard_map.current or await self.shard_map.get()
        problems = columns.problems(shards.max_record_bytes)
        if problems:  # perhaps larger records are allowed by now
            shards = await self.shard_map.renew()
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
            await batch.done.wait()
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
    ) -> AsyncProducer:
        """A buffer that records are put into without waiting for the broker: see AsyncProducer, and use it as `async with`.

        `compression` needs `pip install 'penstock[zstd]'`, for readers too. `delivery_timeout` may be longer than the broker
        remembers what was put (15 minutes), but a repetition after that makes second records."""
        return AsyncProducer(
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
    ) -> AsyncReader:
        """Reads one shard: batches of records, as they were put. `start`: "trim_horizon" (the oldest record), "latest" (what
        comes from now on), ("at", n), ("after", n) with a sequence number, or a datetime.

        Ends when the shard is closed and read out (its children have what came afterwards), or nothing came for `idle_seconds`;
        with 0 it reads what is there. A request brings whole batches, as many as it takes to reach `max_records` or `max_bytes`.
        One that the shard's limits do not let pass is asked again after a pause, as often as it takes.
        Records that were aggregated (by the Kinesis Producer Library) come as their user records; with `deaggregate=False` as
        they were put.

            >>> stream = await client.create_stream("clicks")
            >>> sent = await stream.put("a click", "visitor 1")
            >>> async for batch in stream.read(0, ("at", sent.sequence), idle_seconds=0):
            ...     for record in batch:
            ...         print(record.key, record.text)
            visitor 1 a click
        """
        return AsyncReader(self.link, self.name, shard, start, max_records, max_bytes, idle_seconds, deaggregate)

    def tail(
        self,
        start: Literal["trim_horizon", "latest"] | datetime = "latest",
        *,
        idle_seconds: float | None = None,
        max_records: int = 10_000,
        max_bytes: int = 4 * 1_048_576,
        deaggregate: bool = True,
    ) -> AsyncReader:
        """Reads all shards at once from `start` on, and goes on with the children of shards that are split or merged, each when
        its parents were read out: so records of one key come in their order. Otherwise as `read`.

            >>> stream = await client.create_stream("clicks")
            >>> sent = await stream.put("a click", "visitor 1")
            >>> async with stream.tail("trim_horizon") as batches:
            ...     async for batch in batches:
            ...         print(batch.shard)
            ...         break
            0
        """
        return AsyncReader(self.link, self.name, None, start, max_records, max_bytes, idle_seconds, deaggregate)

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
    ) -> AsyncGroupConsumer[Record]: ...

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
    ) -> AsyncGroupConsumer[RecordBatch]: ...

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
    ) -> AsyncGroupConsumer[Record] | AsyncGroupConsumer[RecordBatch]:
        """Reads the stream as one of the members of a consumer group, which share its shards: see AsyncGroupConsumer, and use it
        as `async with`. The group is made when its first member comes; `start` says where it begins then.

        `session_seconds` (1 to 600): how long a member may be silent before its shards go to others; it says every third of
        that that it lives, also while the application is busy. `checkpoint`: "auto", or "manual" to say yourself how far you
        are. `batches`: RecordBatch after RecordBatch, as they were put, in place of single records. `deaggregate` as in `read`.

            >>> stream = await client.create_stream("visits")
            >>> sent = await stream.put("a visit", "visitor 1")
            >>> async with stream.consume("analytics") as records:
            ...     async for record in records:
            ...         print(record.key, record.text)
            ...         records.stop()
            visitor 1 a visit
        """
        make: Any = AsyncGroupConsumer
        consumer: AsyncGroupConsumer[Record] | AsyncGroupConsumer[RecordBatch] = make(
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

    async def groups(self) -> list[str]:
        """The names of the stream's consumer groups, in order."""
        return cast(wire.GroupNames, await self.link.call(wire.StreamName(self.name), "ListGroups")).groups

    async def describe_group(self, name: str) -> GroupDescription:
        """Who is in a consumer group, and how far it is in each shard. GroupDoesNotExist when it never had a member."""
        reply = await self.link.call(wire.GroupName(self.name, name), "DescribeGroup")
        return GroupDescription.of(cast(wire.GroupDescription, reply))

    async def reset_group(self, name: str, start: Literal["trim_horizon", "latest"] | datetime) -> GroupDescription:
        """Has a consumer group go on from another place: the oldest records, what comes from now on, or the first that arrived at
        a time or later. Members that are there hear of it with their next heartbeat, and begin again from there."""
        kind, position = start_of(start)
        reply = await self.link.call(wire.ResetGroup(self.name, name, kind, position))
        return GroupDescription.of(cast(wire.GroupDescription, reply))

    async def delete_group(self, name: str) -> None:
        """Deletes a consumer group with its checkpoints. One that still has members comes again with their next heartbeat, and
        begins at their `start`."""
        await self.link.call(wire.GroupName(self.name, name), "DeleteGroup")

    # Registered consumers

    async def register_consumer(self, name: str) -> AsyncStreamConsumer:
        """Registers a consumer, to which the broker pushes records: see AsyncStreamConsumer.subscribe. One that is registered
        already is taken as it is. LimitExceeded beyond 20 of a stream.

            >>> stream = await client.create_stream("clicks")
            >>> await stream.register_consumer("audit")
            <StreamConsumer 'audit' of 'clicks'>
        """
        reply = await self.link.call(wire.StreamConsumerName(self.name, name), "RegisterStreamConsumer")
        return AsyncStreamConsumer(self.link, StreamConsumerInfo.of(cast(wire.StreamConsumer, reply)))

    async def list_consumers(self) -> list[StreamConsumerInfo]:
        """The registered consumers of the stream, in order of their names."""
        reply = cast(wire.StreamConsumers, await self.link.call(wire.StreamName(self.name), "ListStreamConsumers"))
        return [StreamConsumerInfo.of(one) for one in reply.consumers]

    async def registered_consumer(self, name: str) -> AsyncStreamConsumer:
        """A consumer that was registered, as it stands (`.info`), for whoever may not register any; StreamConsumerDoesNotExist
        when there is none of that name."""
        reply = await self.link.call(wire.StreamConsumerName(self.name, name), "DescribeStreamConsumer")
        return AsyncStreamConsumer(self.link, StreamConsumerInfo.of(cast(wire.StreamConsumer, reply)))

    async def deregister_consumer(self, name: str) -> None:
        """Forgets a registered consumer; its subscriptions end with StreamConsumerDoesNotExist."""
        await self.link.call(wire.StreamConsumerName(self.name, name), "DeregisterStreamConsumer")

    # The stream and its shards

    async def describe(self) -> StreamInfo:
        """Settings, tags and the number of open shards."""
        return StreamInfo.of(cast(wire.StreamDescription, await self.link.call(wire.StreamName(self.name), "DescribeStream")))

    async def set(self, **settings: Unpack[StreamSettings]) -> StreamInfo:
        """Changes settings, named as in AsyncClient.create_stream; None resets one to its default."""
        request = wire.SetStreamSettings(self.name, settings_to_wire(cast(Mapping[str, Any], settings)))
        return StreamInfo.of(cast(wire.StreamDescription, await self.link.call(request)))

    async def tag(self, **tags: str) -> None:
        """Adds or replaces tags."""
        await self.link.call(wire.TagStream(self.name, [queues.Tag(key, value) for key, value in tags.items()]))

    async def untag(self, *keys: str) -> None:
        """Removes tags."""
        await self.link.call(wire.UntagStream(self.name, list(keys)))

    async def shards(self, state: Literal["all", "open", "closed"] = "all", *, at: datetime | None = None) -> list[ShardInfo]:
        """The shards whose records are still there, in order of their ids; `at`: only those that were open at that time."""
        done = backend.Event()
        outcome: list[tuple[list[wire.Shard], PenstockError | None]] = []

        def on_done(found: list[wire.Shard], error: PenstockError | None) -> None:
            outcome.append((found, error))
            done.set()

        at_ms = None if at is None else round(at.timestamp() * 1000)
        list_shards(self.link, wire.ListShards(self.name, state=state, at_ms=at_ms), on_done)
        await done.wait()
        found, error = outcome[0]
        if error is not None:
            raise fresh(error)
        return [ShardInfo.of(shard) for shard in found]

    async def split(self, shard: int, at: int | None = None) -> None:
        """Closes an open shard; its hashes below `at` and those from `at` on (None: half of them each) go to two new ones.

        InvalidShardRange when `at` is not strictly inside. Who puts and who tails follow by themselves."""
        await self.link.call(wire.SplitShard(self.name, shard, hash_bytes(at)))

    async def merge(self, shard: int, other: int) -> None:
        """Closes two open shards whose hashes are neighbours (else ShardsNotAdjacent); a new one takes over both."""
        await self.link.call(wire.MergeShards(self.name, shard, other))

    async def set_shard_count(self, shards: int) -> StreamInfo:
        """Splits and merges until there are so many open shards of even size."""
        return StreamInfo.of(cast(wire.StreamDescription, await self.link.call(wire.SetShardCount(self.name, shards))))

    async def delete_stream(self) -> None:
        """Deletes the stream with everything in it."""
        await self.link.call(wire.StreamName(self.name), "DeleteStream")


def _places(good: list[int] | None, places: list[int] | None, start: int, stop: int, count: int) -> list[int] | None:
    """Where the records from `start` to `stop` of a shard stood in what was put; None: they are all of it."""
    if places is None:
        if good is None:
            return None if (start, stop) == (0, count) else list(range(start, stop))
        return good[start:stop]
    some = places[start:stop]
    return some if good is None else [good[place] for place in some]
