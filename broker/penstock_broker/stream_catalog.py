"""Every stream the broker knows, with its shards. Both are resources, so that each shard has a log of its own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from penstock_storage.interface import LogId, ResourceRow

from penstock_broker.catalog import Place
from penstock_broker.streams import settings as stream_settings
from penstock_broker.streams.settings import StreamSettings
from penstock_broker.streams.topology import Range

STREAM: Final = "stream"
SHARD: Final = "shard"


@dataclasses.dataclass(frozen=True, slots=True)
class ShardRecord:
    """A shard as it is configured. `stream_id` is its stream's resource id."""

    resource_id: int
    log_id: LogId
    stream_id: int
    range: Range

    def to_row(self, place: Place, modified_ms: int) -> ResourceRow:
        """The row that restores it."""
        one = self.range
        attributes = {
            "stream": self.stream_id,
            "shard": one.shard,
            "low": str(one.low),
            "high": str(one.high),
            "parents": list(one.parents),
            "closed_ms": one.closed_ms,
            "end": one.end,
        }
        return ResourceRow(
            self.resource_id,
            place.account,
            place.region,
            SHARD,
            f"{self.stream_id}/{one.shard:012}",
            self.log_id,
            json.dumps(attributes, separators=(",", ":"), sort_keys=True),
            1 if one.is_open else 2,
            one.created_ms,
            modified_ms,
        )

    @classmethod
    def from_row(cls, row: ResourceRow) -> ShardRecord:
        """The record of a stored shard."""
        values: dict[str, Any] = json.loads(row.attributes)
        one = Range(
            values["shard"],
            int(values["low"]),
            int(values["high"]),
            tuple(values["parents"]),
            row.created_ms,
            values["closed_ms"],
            values["end"],
        )
        return cls(row.resource_id, row.log_id, values["stream"], one)


@dataclasses.dataclass(frozen=True, slots=True)
class StreamRecord:
    """A stream as it is configured. `shards` by id, closed ones too until their last record has aged out."""

    resource_id: int
    place: Place
    name: str
    log_id: LogId
    settings: StreamSettings
    tags: dict[str, str]
    version: int
    created_ms: int
    modified_ms: int
    next_shard: int
    shards: dict[int, ShardRecord] = dataclasses.field(default_factory=dict)
    consumers: dict[str, int] = dataclasses.field(default_factory=dict)
    """When each registered consumer was registered, by its name. They are part of the stream's row: they go with it."""

    @property
    def arn(self) -> str:
        """The stream's ARN."""
        return f"arn:aws:kinesis:{self.place.region}:{self.place.account}:stream/{self.name}"

    @property
    def open_shards(self) -> list[ShardRecord]:
        """Those that take records, in order of their hashes."""
        return sorted((one for one in self.shards.values() if one.range.is_open), key=lambda one: one.range.low)

    def children_of(self, shard: int) -> list[int]:
        """The shards that came out of one."""
        return sorted(one.range.shard for one in self.shards.values() if shard in one.range.parents)

    def to_row(self) -> ResourceRow:
        """The row that restores it, but for its shards."""
        attributes = {
            "settings": stream_settings.to_stored(self.settings),
            "tags": self.tags,
            "next_shard": self.next_shard,
        }
        if self.consumers:
            attributes["consumers"] = self.consumers
        return ResourceRow(
            self.resource_id,
            self.place.account,
            self.place.region,
            STREAM,
            self.name,
            self.log_id,
            json.dumps(attributes, separators=(",", ":"), sort_keys=True),
            self.version,
            self.created_ms,
            self.modified_ms,
        )

    @classmethod
    def from_row(cls, row: ResourceRow) -> StreamRecord:
        """The record of a stored stream, without shards."""
        values: dict[str, Any] = json.loads(row.attributes)
        return cls(
            row.resource_id,
            Place(row.account, row.region),
            row.name,
            row.log_id,
            stream_settings.from_stored(values["settings"]),
            values["tags"],
            row.version,
            row.created_ms,
            row.modified_ms,
            values["next_shard"],
            consumers=values.get("consumers", {}),
        )


class StreamCatalog:
    """All streams. Changes are visible at once; whoever makes them has them committed."""

    def __init__(self) -> None:
        self._streams: dict[tuple[Place, str], StreamRecord] = {}
        self._by_log: dict[LogId, tuple[Place, str, int]] = {}

    def get(self, place: Place, name: str) -> StreamRecord | None:
        """The stream, or None."""
        return self._streams.get((place, name))

    def of_log(self, log_id: LogId) -> tuple[StreamRecord, ShardRecord] | None:
        """The shard of a log with its stream, or None."""
        found = self._by_log.get(log_id)
        stream = self._streams.get(found[:2]) if found is not None else None
        if found is None or stream is None:
            return None
        shard = stream.shards.get(found[2])
        return (stream, shard) if shard is not None and shard.log_id == log_id else None

    def put(self, record: StreamRecord) -> None:
        """Adds or replaces, with its shards."""
        self.remove(record)
        self._streams[record.place, record.name] = record
        for shard in record.shards.values():
            self._by_log[shard.log_id] = (record.place, record.name, shard.range.shard)

    def remove(self, record: StreamRecord) -> None:
        """Forgets whatever has its name; no error when nothing has."""
        old = self._streams.pop((record.place, record.name), None)
        if old is not None:
            for shard in old.shards.values():
                self._by_log.pop(shard.log_id, None)

    def forget(self, record: StreamRecord, shard: int) -> None:
        """A shard of a stream is no more."""
        shards = {number: one for number, one in record.shards.items() if number != shard}
        self.put(dataclasses.replace(record, shards=shards))

    def replace(self, rows: Iterable[ResourceRow]) -> None:
        """These (of kinds stream and shard) are all there are."""
        self._streams, self._by_log = {}, {}
        by_id: dict[int, StreamRecord] = {}
        shards: list[ShardRecord] = []
        for row in rows:
            if row.kind == STREAM:
                by_id[row.resource_id] = StreamRecord.from_row(row)
            elif row.kind == SHARD:
                shards.append(ShardRecord.from_row(row))
        for shard in shards:
            # (A shard whose stream is gone is removed with it, in one commit: there is none.)
            if shard.stream_id in by_id:
                by_id[shard.stream_id].shards[shard.range.shard] = shard
        for record in by_id.values():
            self.put(record)

    def names(self, place: Place) -> list[str]:
        """The names in a place, sorted."""
        return sorted(name for where, name in self._streams if where == place)

    def __iter__(self) -> Iterator[StreamRecord]:
        return iter(list(self._streams.values()))

    def __len__(self) -> int:
        return len(self._streams)
