"""The consumer groups of this broker's streams: heartbeats in, decisions by `streams.Group`, leases out once they are durable.

A group is a resource of its own, written whole when a checkpoint, a lease or its members change; heartbeats that say nothing new
need no commit. When a commit fails, the group goes back to what the store last had.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from penstock_protocol.errors import (
    GroupDoesNotExist,
    InvalidRequest,
    LimitExceeded,
    MemberExpired,
    PenstockError,
    ResourceBusy,
    ShardDoesNotExist,
    StoreFailed,
)
from penstock_protocol.session_messages import Empty
from penstock_protocol.stream_messages import (
    GroupDescription,
    GroupHeartbeat,
    GroupLease,
    GroupLeases,
    GroupName,
    GroupNames,
    GroupShard,
    ResetGroup,
    StreamName,
)
from penstock_storage.interface import CommitUnknown, LogId, ResourceRow, Store, StoreError

from penstock_broker.call import Call, NotReady
from penstock_broker.catalog import Place
from penstock_broker.ports import Ports
from penstock_broker.stream_catalog import StreamRecord
from penstock_broker.stream_service import StreamService
from penstock_broker.streams import limits, settings
from penstock_broker.streams.group import Extent, Group

GROUP: Final = "group"
_MEMBER_BYTES: Final = 16
STARTS: Final = ("trim_horizon", "latest")


@dataclasses.dataclass(slots=True, eq=False)
class GroupRecord:
    """A group as it stands. `stored`: its state as the store last had it for certain."""

    resource_id: int
    stream_id: int
    place: Place
    created_ms: int
    group: Group
    stored: dict[str, Any]
    version: int = 1
    is_stored: bool = True
    """Whether the store has it at all."""
    unsaved: int = 0
    """Writes that are not durable yet."""
    is_going: bool = False
    """A commit is to delete it: what is written after it would stay for ever."""

    def to_row(self, values: dict[str, Any], modified_ms: int) -> ResourceRow:
        """The row that restores it."""
        return ResourceRow(
            self.resource_id,
            self.place.account,
            self.place.region,
            GROUP,
            f"{self.stream_id}/{self.group.name}",
            LogId(self.resource_id),
            json.dumps(values, separators=(",", ":"), sort_keys=True),
            self.version,
            self.created_ms,
            modified_ms,
        )

    @classmethod
    def from_row(cls, row: ResourceRow, now_ms: int) -> GroupRecord:
        """The record of a stored group."""
        stream_id, _, name = row.name.partition("/")
        values: dict[str, Any] = json.loads(row.attributes)
        group = Group.from_stored(name, values, now_ms)
        return cls(row.resource_id, int(stream_id), Place(row.account, row.region), row.created_ms, group, values, row.version)


class StreamGroups:
    """See the module."""

    def __init__(self, service: StreamService, store: Store, ports: Ports, start: Callable[..., None]) -> None:
        self._service = service
        self._start_task = start
        self._store = store
        self._ports = ports
        self._groups: dict[tuple[int, str], GroupRecord] = {}
        self._going: set[int] = set()
        """Streams (by resource id) that a commit is to delete."""
        self._ids: list[int] = []

    def replace(self, rows: Iterable[ResourceRow]) -> None:
        """These (of kind group) are all there are."""
        now_ms = self._ports.now_ms()
        records = [GroupRecord.from_row(row, now_ms) for row in rows if row.kind == GROUP]
        self._groups = {(record.stream_id, record.group.name): record for record in records}

    def restore(self) -> None:
        """Memory is not to be trusted: each group is what the store last had."""
        for record in list(self._groups.values()):
            self._restore(record)

    def _restore(self, record: GroupRecord) -> None:
        if record.is_stored:
            record.group = Group.from_stored(record.group.name, record.stored, self._ports.now_ms())
        else:
            del self._groups[record.stream_id, record.group.name]

    def going(self, stream: StreamRecord) -> None:
        """The stream is being deleted: its groups do not change until that is `gone` or `kept`."""
        self._going.add(stream.resource_id)

    def rows_of(self, stream: StreamRecord) -> list[ResourceRow]:
        """The rows of a stream's groups, to be deleted with it."""
        return [one.to_row(one.stored, one.created_ms) for one in self._of(stream)]

    def kept(self, stream: StreamRecord) -> None:
        """The stream was not deleted, or nobody knows."""
        self._going.discard(stream.resource_id)

    def gone(self, stream: StreamRecord) -> None:
        """The stream was deleted, and its groups with it."""
        self._going.discard(stream.resource_id)
        for record in self._of(stream):
            del self._groups[record.stream_id, record.group.name]

    def _of(self, stream: StreamRecord) -> list[GroupRecord]:
        return [record for record in self._groups.values() if record.stream_id == stream.resource_id]

    def _get(self, stream: StreamRecord, name: str) -> GroupRecord:
        record = self._groups.get((stream.resource_id, name))
        if record is None:
            raise GroupDoesNotExist(f"stream {stream.name!r} has no group {name[:100]!r}")
        return record

    def _changeable(self, stream: StreamRecord, name: str) -> GroupRecord | None:
        """The group, if there is one. ResourceBusy while it is being deleted, or its stream is."""
        record = self._groups.get((stream.resource_id, name))
        if stream.resource_id in self._going or (record is not None and record.is_going):
            raise ResourceBusy(f"the group {name[:100]!r} of stream {stream.name!r} is being deleted")
        return record

    def _extents(self, stream: StreamRecord) -> dict[int, Extent]:
        extents = {}
        self._service.need(stream.shards.values())
        for number, record in stream.shards.items():
            shard = self._service.runtime(record).shard
            extents[number] = Extent(record.range, shard.trimmed, shard.end)
        return extents

    # What metrics want to know

    def __iter__(self) -> Iterator[GroupRecord]:
        """All groups, in the order they were made."""
        return iter(sorted(self._groups.values(), key=lambda record: record.resource_id))

    def members(self, record: GroupRecord) -> int:
        """How many members live."""
        now_ms = self._ports.now_ms()
        return sum(member.deadline_ms > now_ms for member in record.group.members.values())

    def lag(self, stream: StreamRecord, record: GroupRecord) -> int | None:
        """How many records the group has still to process, at most (some sequence numbers have no record). None while a shard of
        the stream is not in memory."""
        lag = 0
        for number, one in stream.shards.items():
            runtime = self._service.runtimes.get(one.log_id)
            if runtime is None:
                return None
            shard = runtime.shard
            position = max(record.group.positions.get(number, 0), shard.trimmed)
            lag += min(max(0, shard.end - position), shard.records)
        return lag

    # Members

    def heartbeat(self, call: Call, request: GroupHeartbeat) -> None:
        """GroupHeartbeat."""
        stream = self._service.stream(call.caller, request.stream)
        if len(request.member) != _MEMBER_BYTES:
            raise InvalidRequest(f"member has {len(request.member)} bytes; it must have {_MEMBER_BYTES}")
        if not limits.MIN_SESSION_MS <= request.session_ms <= limits.MAX_SESSION_MS:
            raise InvalidRequest(
                f"session_ms = {request.session_ms}; it must be from {limits.MIN_SESSION_MS} to {limits.MAX_SESSION_MS}"
            )
        if request.start not in STARTS:
            raise InvalidRequest(f"start = {request.start[:50]!r}; it must be {' or '.join(STARTS)}")
        record = self._changeable(stream, request.group)
        extents = self._extents(stream)
        now_ms = self._ports.now_ms()
        if record is None:
            if not request.joining:
                raise MemberExpired("the group is gone")
            record = self._new(stream, request, extents, now_ms)
        group, member = record.group, request.member.hex()
        group.expire(now_ms)
        last = group.last_beat(member)
        if 0 < request.beat < last:
            raise InvalidRequest(f"heartbeat {request.beat} of this member comes after its {last}: nothing was done")
        repeated = 0 < request.beat == last  # the leases that it ended and began are what they are
        if request.joining:
            if not repeated:
                group.leave(member)
        elif member not in group.members:
            raise MemberExpired()
        if member not in group.members and len(group.members) >= limits.MAX_MEMBERS:
            raise LimitExceeded(f"a group has at most {limits.MAX_MEMBERS} members")
        if not group.heartbeat(member, request.session_ms, now_ms, request.beat):
            group.is_dirty = True
        lost = []
        try:
            for one in request.checkpoints or []:
                extent = extents.get(one.shard)
                if extent is None or not group.checkpoint(member, one.shard, one.lease, one.position, extent):
                    lost.append(one.shard)
            for shard in [] if repeated else request.released or []:
                group.release(member, shard)
            if request.leaving:
                group.leave(member)
        finally:
            group.balance(extents.values())
        leases = [
            GroupLease(shard, lease.number, self._start(group, extents, shard), lease.give_up)
            for shard, lease in sorted(group.leases.items())
            if lease.member == member
        ]
        self._when_durable(call, record, lambda: call.reply(GroupLeases(leases, lost)))

    @staticmethod
    def _start(group: Group, extents: dict[int, Extent], shard: int) -> int:
        extent = extents.get(shard)
        return max(group.positions.get(shard, 0), extent.trimmed if extent is not None else 0)

    def _new(self, stream: StreamRecord, request: GroupHeartbeat, extents: dict[int, Extent], now_ms: int) -> GroupRecord:
        settings.check_name(request.group, "group")
        if len(self._of(stream)) >= limits.MAX_GROUPS:
            raise LimitExceeded(f"a stream has at most {limits.MAX_GROUPS} consumer groups")
        if not self._ids:
            raise NotReady(self._fetch_id)
        group = Group(request.group)
        number = self._ids.pop()
        record = GroupRecord(number, stream.resource_id, stream.place, now_ms, group, group.to_stored(), is_stored=False)
        if request.start == "latest":
            group.start_at({shard: extent.end for shard, extent in extents.items()})
        group.is_dirty = True
        self._groups[stream.resource_id, request.group] = record
        return record

    async def _fetch_id(self) -> None:
        incarnation = self._service.lane.incarnation
        if incarnation is None:
            raise StoreFailed()
        try:
            self._ids.append(await self._ports.in_thread(self._store.next_id, incarnation))
        except StoreError as error:
            if isinstance(error, CommitUnknown):
                self._service.lane.doubt()
            raise StoreFailed() from error

    def _when_durable(self, call: Call, record: GroupRecord, answer: Callable[[], None]) -> None:
        """Answers once all that is known of the group now is durable; writes it where it is not."""
        if record.group.is_dirty:
            self._service.lane.check_adds()
            self._save(call, record, answer)
        elif record.unsaved or self._service.lane.incarnation is None:
            # (Between a commit of unknown outcome and the next incarnation the store may know of other leases: it is refused.)
            self._service.lane.submit(lambda error: answer() if error is None else call.fail(error))
        else:
            answer()

    def _save(self, call: Call, record: GroupRecord, answer: Callable[[], None]) -> None:
        record.unsaved += 1
        group = record.group
        values = group.to_stored()
        record.version += 1
        row = record.to_row(values, self._ports.now_ms())
        self._service.lane.write(lambda commit: commit.upsert_resources.append(row))

        def done(error: PenstockError | None) -> None:
            record.unsaved -= 1
            if error is None:
                record.stored, record.is_stored = values, True
                answer()
                return
            # (Of several that fail together the first restores it: what was decided since then stays.)
            if self._groups.get((record.stream_id, group.name)) is record and record.group is group:
                self._restore(record)
            call.fail(error)

        self._service.lane.submit(done)

    # Looking and setting

    def list_groups(self, call: Call, request: StreamName) -> None:
        """ListGroups."""
        stream = self._service.stream(call.caller, request.stream)
        call.reply(GroupNames(sorted(record.group.name for record in self._of(stream))))

    def describe(self, call: Call, request: GroupName) -> None:
        """DescribeGroup."""
        stream = self._service.stream(call.caller, request.stream)
        record = self._get(stream, request.group)
        extents = self._extents(stream)
        description = self._description(stream, record, extents)
        self._when_durable(call, record, lambda: call.reply(description))

    def _description(self, stream: StreamRecord, record: GroupRecord, extents: dict[int, Extent]) -> GroupDescription:
        group = record.group
        shards = [
            GroupShard(
                shard,
                bytes.fromhex(group.leases[shard].member) if shard in group.leases else None,
                self._start(group, extents, shard),
                extent.end,
                shard in group.finished,
            )
            for shard, extent in sorted(extents.items())
        ]
        members = [bytes.fromhex(member) for member in sorted(group.members)]
        return GroupDescription(stream.name, group.name, record.created_ms, members, shards)

    def reset(self, call: Call, request: ResetGroup) -> None:
        """ResetGroup."""
        stream = self._service.stream(call.caller, request.stream)
        self._get(stream, request.group)
        if request.start not in (*STARTS, "time"):
            raise InvalidRequest(f"start = {request.start[:50]!r}; it must be {', '.join(STARTS)} or time")
        if request.start == "time":
            self._start_task(self._reset_to_time, call, stream, request)
            return
        latest = request.start == "latest"
        positions = {shard: extent.end if latest else extent.trimmed for shard, extent in self._extents(stream).items()}
        self._reset(call, stream, request.group, positions)

    async def _reset_to_time(self, call: Call, stream: StreamRecord, request: ResetGroup) -> None:
        positions = {}
        try:
            for number, shard in stream.shards.items():
                with contextlib.suppress(ShardDoesNotExist):  # its last record has aged out meanwhile
                    positions[number] = await self._service.position_at(shard.log_id, request.position)
            # (Much may have happened since: splits, a deletion.)
            now = self._service.stream(call.caller, request.stream)
            if now.resource_id != stream.resource_id:
                raise GroupDoesNotExist(f"stream {stream.name!r} was deleted")
            self._reset(call, now, request.group, positions)
        except PenstockError as error:
            call.fail(error)
        except NotReady:  # Its memory was discarded meanwhile.
            call.fail(StoreFailed())

    def _reset(self, call: Call, stream: StreamRecord, name: str, positions: dict[int, int]) -> None:
        record = self._changeable(stream, name) or self._get(stream, name)
        extents = self._extents(stream)
        self._service.lane.check_adds()
        record.group.start_at(positions)
        record.group.balance(extents.values())
        description = self._description(stream, record, extents)
        self._save(call, record, lambda: call.reply(description))

    def delete(self, call: Call, request: GroupName) -> None:
        """DeleteGroup."""
        stream = self._service.stream(call.caller, request.stream)
        record = self._changeable(stream, request.group) or self._get(stream, request.group)
        row = record.to_row(record.stored, record.created_ms)
        record.is_going = True
        self._service.lane.write(lambda commit: commit.delete_resources.append(row))

        def done(error: PenstockError | None) -> None:
            record.is_going = False
            if error is not None:
                call.fail(error)
                return
            if self._groups.get((record.stream_id, record.group.name)) is record:
                del self._groups[record.stream_id, record.group.name]
            call.reply(Empty())

        self._service.lane.submit(done)
