"""Creating, describing, changing and resharding streams.

A reshard closes shards and opens others in one commit, which also holds whatever the closed ones had accepted before. From the
moment it is decided they refuse records; the children take them once the commit is durable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from penstock_protocol.errors import (
    InvalidRequest,
    LimitExceeded,
    PenstockError,
    ResourceBusy,
    ResourceInUse,
    StoreFailed,
    StreamDoesNotExist,
)
from penstock_protocol.queue_messages import Tag
from penstock_protocol.session_messages import Empty
from penstock_protocol.stream_messages import (
    CreateStream,
    ListShards,
    ListStreams,
    MergeShards,
    SetShardCount,
    SetStreamSettings,
    Shards,
    SplitShard,
    StreamDescription,
    StreamName,
    StreamNames,
    TagStream,
    UntagStream,
)
from penstock_protocol.stream_messages import Shard as ShardMessage
from penstock_storage.interface import Commit, LogId, Store, StoreError

from penstock_broker.call import Call, NotReady
from penstock_broker.catalog import Place
from penstock_broker.ports import Ports
from penstock_broker.queues.settings import merged_tags
from penstock_broker.stream_catalog import ShardRecord, StreamRecord
from penstock_broker.stream_groups import StreamGroups
from penstock_broker.stream_service import StreamService
from penstock_broker.streams import limits, settings, topology
from penstock_broker.streams.topology import Range, Step

MAX_LISTED = 1_000
_HASH_BYTES = 16
_STATES = ("all", "open", "closed")


class StreamAdmin:
    """Handlers that change what there is."""

    def __init__(self, service: StreamService, groups: StreamGroups, store: Store, ports: Ports) -> None:
        self._service = service
        self._groups = groups
        self._catalog = service.catalog
        self._store = store
        self._ports = ports
        self._ids: list[int] = []
        self._changing: set[int] = set()
        """Streams (by resource id) with a change that is not durable yet: one at a time."""

    # Streams

    def create(self, call: Call, request: CreateStream) -> None:
        """CreateStream."""
        settings.check_name(request.stream, "stream")
        place = Place(call.caller.account, call.caller.region)
        wanted = settings.changed(settings.StreamSettings(), request.settings or [])
        tags = merged_tags({}, request.tags or [])
        _check_count(request.shards)
        existing = self._catalog.get(place, request.stream)
        if existing is not None:
            asked = {setting.name for setting in request.settings or []}
            differing = [name for name in asked if getattr(wanted, name) != getattr(existing.settings, name)]
            if len(existing.open_shards) != request.shards:
                differing.append("shards")
            if differing:
                raise ResourceInUse(f"stream {request.stream!r} exists with other settings: {', '.join(sorted(differing))}")
            self._when_durable(call, lambda: self._description(existing))
            return
        if len(self._catalog) >= limits.MAX_STREAMS and len(self._catalog.names(place)) >= limits.MAX_STREAMS:
            raise LimitExceeded(f"an account has at most {limits.MAX_STREAMS} streams")
        self._need_ids(1 + request.shards)
        self._service.lane.check_adds()
        now_ms = self._ports.now_ms()
        number = self._ids.pop()
        record = StreamRecord(
            number, place, request.stream, LogId(number), wanted, tags, 1, now_ms, now_ms, request.shards
        )  # fmt: skip
        for shard, (low, high) in enumerate(topology.even(request.shards)):
            record.shards[shard] = self._new_shard(record, Range(shard, low, high, (), now_ms))
        self._catalog.put(record)
        rows = [record.to_row(), *(shard.to_row(place, now_ms) for shard in record.shards.values())]
        self._service.lane.write(lambda commit: commit.upsert_resources.extend(rows))

        def done(error: PenstockError | None) -> None:
            if error is not None:
                if self._catalog.get(place, request.stream) is record:
                    self._catalog.remove(record)
                call.fail(error)
            else:
                call.reply(self._description(record))

        self._service.lane.submit(done)

    def delete(self, call: Call, request: StreamName) -> None:
        """DeleteStream: with everything in it, at once."""
        record = self._service.stream(call.caller, request.stream)
        self._begin(record)
        self._groups.going(record)
        rows = [record.to_row(), *(shard.to_row(record.place, record.modified_ms) for shard in record.shards.values())]
        self._service.lane.write(lambda commit: commit.delete_resources.extend([*rows, *self._groups.rows_of(record)]))

        def done(error: PenstockError | None) -> None:
            self._changing.discard(record.resource_id)
            if error is not None:
                self._groups.kept(record)
                call.fail(error)
                return
            self._catalog.remove(record)
            self._groups.gone(record)
            for shard in record.shards.values():
                runtime = self._service.runtimes.get(shard.log_id)
                if runtime is not None:
                    self._service.drop(runtime, StreamDoesNotExist(f"stream {record.name!r} was deleted"))
            call.reply(Empty())

        self._service.lane.submit(done)

    def list_streams(self, call: Call, request: ListStreams) -> None:
        """ListStreams."""
        place = Place(call.caller.account, call.caller.region)
        names = [name for name in self._catalog.names(place) if name.startswith(request.prefix) and name > request.after]
        limit = max(1, min(request.limit, MAX_LISTED))
        call.reply(StreamNames(names[:limit], len(names) > limit))

    def describe(self, call: Call, request: StreamName) -> None:
        """DescribeStream."""
        call.reply(self._description(self._service.stream(call.caller, request.stream)))

    def _description(self, record: StreamRecord) -> StreamDescription:
        return StreamDescription(
            record.name,
            record.arn,
            record.created_ms,
            record.modified_ms,
            settings.as_list(record.settings),
            [Tag(key, value) for key, value in sorted(record.tags.items())],
            len(record.open_shards),
        )

    def change_settings(self, call: Call, request: SetStreamSettings) -> None:
        """SetStreamSettings."""
        record = self._service.stream(call.caller, request.stream)
        new = dataclasses.replace(record, settings=settings.changed(record.settings, request.settings))
        self.change(call, record, new, lambda: call.reply(self._description(self._current(record))))

    def tag(self, call: Call, request: TagStream) -> None:
        """TagStream."""
        record = self._service.stream(call.caller, request.stream)
        new = dataclasses.replace(record, tags=merged_tags(record.tags, request.tags))
        self.change(call, record, new, lambda: call.reply(Empty()))

    def untag(self, call: Call, request: UntagStream) -> None:
        """UntagStream."""
        record = self._service.stream(call.caller, request.stream)
        tags = {key: value for key, value in record.tags.items() if key not in request.keys}
        self.change(call, record, dataclasses.replace(record, tags=tags), lambda: call.reply(Empty()))

    # Shards

    def list_shards(self, call: Call, request: ListShards) -> None:
        """ListShards."""
        record = self._service.stream(call.caller, request.stream)
        if request.state not in _STATES:
            raise InvalidRequest(f"state = {request.state[:50]!r}; it must be one of {', '.join(_STATES)}")
        limit = max(1, min(request.limit, MAX_LISTED))
        chosen = [
            shard
            for number, shard in sorted(record.shards.items())
            if number >= request.start and _matches(shard.range, request.state, request.at_ms)
        ]
        self._service.need(chosen[:limit])
        found = []
        for shard in chosen[:limit]:
            one, runtime = shard.range, self._service.runtime(shard)
            found.append(
                ShardMessage(
                    one.shard, one.low.to_bytes(_HASH_BYTES, "big"), one.high.to_bytes(_HASH_BYTES, "big"), list(one.parents),
                    one.created_ms, one.closed_ms, runtime.shard.trimmed, runtime.shard.end,
                    runtime.shard.records, runtime.shard.size_bytes, runtime.oldest_ms,
                )
            )  # fmt: skip
        call.reply(Shards(found, len(chosen) > limit))

    def split(self, call: Call, request: SplitShard) -> None:
        """SplitShard."""
        record = self._service.stream(call.caller, request.stream)
        if request.at is not None and len(request.at) != _HASH_BYTES:
            raise InvalidRequest(f"at has {len(request.at)} bytes; a hash has {_HASH_BYTES}")
        at = None if request.at is None else int.from_bytes(request.at, "big")
        step = topology.split(self._service.shard_record(record, request.shard).range, at)
        self._reshard(call, record, [step], lambda: call.reply(Empty()))

    def merge(self, call: Call, request: MergeShards) -> None:
        """MergeShards."""
        record = self._service.stream(call.caller, request.stream)
        one = self._service.shard_record(record, request.shard).range
        other = self._service.shard_record(record, request.other).range
        self._reshard(call, record, [topology.merge(one, other)], lambda: call.reply(Empty()))

    def set_shard_count(self, call: Call, request: SetShardCount) -> None:
        """SetShardCount."""
        record = self._service.stream(call.caller, request.stream)
        _check_count(request.shards)
        steps = topology.uniform([shard.range for shard in record.open_shards], request.shards)
        self._reshard(call, record, steps, lambda: call.reply(self._description(self._current(record))))

    def _reshard(self, call: Call, record: StreamRecord, steps: list[Step], answer: Callable[[], None]) -> None:
        """Carries out steps one after the other, in one commit. A shard that one of them opens and a later one closes never takes
        a record; it is kept as a link between parent and child."""
        children = sum(len(step.children) for step in steps)
        opened = record.open_shards
        if len(opened) + sum(len(step.children) - len(step.parents) for step in steps) > limits.MAX_SHARDS:
            raise LimitExceeded(f"a stream has at most {limits.MAX_SHARDS} open shards")
        if len(opened) + children > 2 * limits.MAX_SHARDS:
            raise LimitExceeded(f"this would take {children} new shards on the way; halve or double their number first")
        self._need_ids(children)
        self._service.need(opened)  # (All that may be closed.)
        self._service.lane.check_adds()
        self._begin(record)
        now_ms = self._ports.now_ms()
        shards = dict(record.shards)
        owners = {shard.range.hashes: shard.range.shard for shard in opened}
        next_shard = record.next_shard
        touched: dict[int, ShardRecord] = {}
        for step in steps:
            parents = tuple(owners.pop(hashes) for hashes in step.parents)
            for parent in parents:
                old = shards[parent]
                runtime = self._service.runtimes.get(old.log_id)
                end = 0
                if runtime is not None:
                    end = runtime.shard.close()
                    self._service.lane.touch(runtime.shard)
                closed = dataclasses.replace(old.range, closed_ms=now_ms, end=end)
                shards[parent] = touched[parent] = dataclasses.replace(old, range=closed)
            for low, high in step.children:
                child = self._new_shard(record, Range(next_shard, low, high, parents, now_ms))
                shards[next_shard] = touched[next_shard] = child
                owners[low, high] = next_shard
                next_shard += 1
        new = dataclasses.replace(
            record, shards=shards, next_shard=next_shard, version=record.version + 1, modified_ms=now_ms
        )  # fmt: skip
        assert topology.tiles(shard.range for shard in shards.values())
        rows = [new.to_row(), *(shard.to_row(record.place, now_ms) for shard in touched.values())]

        def write(commit: Commit) -> None:
            commit.upsert_resources.extend(rows)

        self._service.lane.write(write)

        def done(error: PenstockError | None) -> None:
            self._changing.discard(record.resource_id)
            if error is not None:
                call.fail(error)
                return
            # (A shard that has aged out since is not to come back.)
            self._catalog.put(dataclasses.replace(new, shards=self._current(record).shards | touched))
            for shard in touched.values():
                if not shard.range.is_open:
                    self._service.closed(shard.log_id)
            answer()

        self._service.lane.submit(done)

    def _new_shard(self, record: StreamRecord, one: Range) -> ShardRecord:
        number = self._ids.pop()
        return ShardRecord(number, LogId(number), record.resource_id, one)

    # What they share

    def _current(self, record: StreamRecord) -> StreamRecord:
        return self._catalog.get(record.place, record.name) or record

    def _begin(self, record: StreamRecord) -> None:
        if record.resource_id in self._changing:
            raise ResourceBusy(f"stream {record.name!r} is being changed; one change at a time")
        self._changing.add(record.resource_id)

    def change(self, call: Call, record: StreamRecord, new: StreamRecord, answer: Callable[[], None]) -> None:
        """Puts a changed record in force once it is durable."""
        self._service.lane.check_adds()
        self._begin(record)
        new = dataclasses.replace(new, version=record.version + 1, modified_ms=self._ports.now_ms())
        row = new.to_row()
        self._service.lane.write(lambda commit: commit.upsert_resources.append(row))

        def done(error: PenstockError | None) -> None:
            self._changing.discard(record.resource_id)
            if error is not None:
                call.fail(error)
                return
            self._catalog.put(dataclasses.replace(new, shards=self._current(record).shards))
            answer()

        self._service.lane.submit(done)

    def _when_durable(self, call: Call, answer: Callable[[], StreamDescription]) -> None:
        def done(error: PenstockError | None) -> None:
            if error is not None:
                call.fail(error)
            else:
                call.reply(answer())

        self._service.lane.submit(done)

    def _need_ids(self, count: int) -> None:
        if len(self._ids) < count:
            missing = count - len(self._ids)
            raise NotReady(lambda: self._fetch_ids(missing))

    async def _fetch_ids(self, count: int) -> None:
        incarnation = self._service.lane.incarnation
        if incarnation is None:
            raise StoreFailed()
        try:
            for _ in range(count):
                self._ids.append(await self._ports.in_thread(self._store.next_id, incarnation))
        except StoreError as error:
            self._service.lane.failed_outside(error)
            raise StoreFailed() from error


def _check_count(shards: int) -> None:
    if not 1 <= shards <= limits.MAX_SHARDS:
        raise InvalidRequest(f"shards = {shards}; it must be from 1 to {limits.MAX_SHARDS}")


def _matches(one: Range, state: str, at_ms: int | None) -> bool:
    if at_ms is not None and not one.created_ms <= at_ms < (2**63 if one.closed_ms is None else one.closed_ms):
        return False
    return state == "all" or one.is_open == (state == "open")
