"""What is said about streams. A record is never unpacked on its way: a batch is packed by its producer, stored as it came, and
unpacked by whoever reads it.

A batch is `count` records of one shard with consecutive sequence numbers. Its `blob` holds, for codec 0 (plain), msgpack of
two arrays of that length: the data (binaries) and the partition keys (strings); for codec 1 (zstd) the same as one Zstandard
frame. `size_bytes` is the sum of the lengths of data and of keys in UTF-8.

A shard owns the hashes from `low` to `high`, both 16 big-endian bytes and both included; the open shards of a stream tile all
2**128.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from penstock_protocol.codec import Message
from penstock_protocol.queue_messages import Setting, Tag

PLAIN: Final = 0
ZSTD: Final = 1


@dataclasses.dataclass(frozen=True, slots=True)
class StreamName(Message):
    """Names a stream of the connection's account and region."""

    stream: str


@dataclasses.dataclass(frozen=True, slots=True)
class CreateStream(Message):
    """Creates a stream with `shards` even shards; one that exists with the same settings is success, with others
    ResourceInUse."""

    stream: str
    shards: int = 1
    settings: list[Setting] | None = None
    tags: list[Tag] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class StreamDescription(Message):
    """A stream with all its settings (defaults included) and tags. `shards` counts the open ones."""

    stream: str
    arn: str
    created_ms: int
    modified_ms: int
    settings: list[Setting]
    tags: list[Tag]
    shards: int


@dataclasses.dataclass(frozen=True, slots=True)
class ListStreams(Message):
    """Streams whose name starts with `prefix`, in name order, after the name `after`, at most `limit`."""

    prefix: str = ""
    after: str = ""
    limit: int = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class StreamNames(Message):
    """`more` says that further names follow the last one."""

    streams: list[str]
    more: bool


@dataclasses.dataclass(frozen=True, slots=True)
class SetStreamSettings(Message):
    """Changes some settings; those not named stay."""

    stream: str
    settings: list[Setting]


@dataclasses.dataclass(frozen=True, slots=True)
class TagStream(Message):
    """Adds or replaces tags."""

    stream: str
    tags: list[Tag]


@dataclasses.dataclass(frozen=True, slots=True)
class UntagStream(Message):
    """Removes tags; unknown keys are ignored."""

    stream: str
    keys: list[str]


@dataclasses.dataclass(frozen=True, slots=True)
class ListShards(Message):
    """Shards from id `start` on, in order of id, at most `limit`. `state`: all, open or closed. `at_ms`: only those that were
    open at that time (nil: at any)."""

    stream: str
    start: int = 0
    limit: int = 1000
    state: str = "all"
    at_ms: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Shard(Message):
    """A shard. `parents`: the shards it came from (one after a split, two after a merge). `closed_ms` is nil while it is open.
    `first`: the sequence number that reading begins with (the trim horizon); `end`: the one after its last record. `records` and
    `size_bytes` count what can be read; `oldest_ms`: when the oldest of it arrived, nil when there is none."""

    shard: int
    low: bytes
    high: bytes
    parents: list[int]
    created_ms: int
    closed_ms: int | None
    first: int
    end: int
    records: int = 0
    size_bytes: int = 0
    oldest_ms: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Shards(Message):
    """`more` says that further shards follow the last one."""

    shards: list[Shard]
    more: bool


@dataclasses.dataclass(frozen=True, slots=True)
class SplitShard(Message):
    """Closes an open shard; its hashes below `at` and those from `at` on go to two new ones. `at`: strictly inside, nil: the
    middle."""

    stream: str
    shard: int
    at: bytes | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class MergeShards(Message):
    """Closes two open shards whose hashes are neighbours; a new one takes over both."""

    stream: str
    shard: int
    other: int


@dataclasses.dataclass(frozen=True, slots=True)
class SetShardCount(Message):
    """Splits and merges until there are `shards` open ones of even size."""

    stream: str
    shards: int


@dataclasses.dataclass(frozen=True, slots=True)
class PutRecords(Message):
    """Appends a batch to an open shard, whole or not at all; with `partial` perhaps only its first records, when the shard's
    limits let no more pass. The client chose the shard by the MD5 of the records' keys, or by their explicit hash keys.
    `sequence` and `acknowledged` make it idempotent, as in SendMessages. `after`: a sequence number that the shard has assigned;
    those of the batch are greater."""

    stream: str
    shard: int
    count: int
    codec: int
    size_bytes: int
    blob: bytes
    sequence: int = 0
    acknowledged: int = 0
    partial: bool = False
    after: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class PutReply(Message):
    """The sequence number of the batch's first record; the others follow it one by one. `taken`: so many, the first ones, were
    stored; nil: all."""

    first: int
    taken: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class OpenIterator(Message):
    """A place to read from. `start`: trim_horizon, latest, at, after (the sequence number `position`) or time (the first record
    that arrived at `position` ms or later)."""

    stream: str
    shard: int
    start: str
    position: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Iterator(Message):
    """An opaque place in a shard, good for 5 minutes."""

    iterator: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class ReadRecords(Message):
    """Reads whole batches from an iterator on: as many as it takes to reach `max_records` or `max_bytes`, one at least. At the
    tip it waits up to `wait_ms` for the next."""

    iterator: bytes
    max_records: int = 10_000
    max_bytes: int = 4 * 1024 * 1024
    wait_ms: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Batch(Message):
    """Records as their producer packed them."""

    count: int
    codec: int
    size_bytes: int
    blob: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class RecordRun(Message):
    """Batches that follow each other without a gap from sequence number `first` on, and arrived together."""

    first: int
    arrived_ms: int
    batches: list[Batch]


@dataclasses.dataclass(frozen=True, slots=True)
class Records(Message):
    """Answers ReadRecords. Records before sequence number `start` (of a batch that began earlier) are not meant. `next`: the
    iterator behind the last record; empty when the shard is closed and read out: go on with `children` then. `behind_ms`: how
    long ago the oldest record that was not read arrived, 0 at the tip."""

    shard: int
    start: int
    runs: list[RecordRun]
    next: bytes
    behind_ms: int
    children: list[int]


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint(Message):
    """All records of a shard before sequence number `position` were processed, under the lease of that number."""

    shard: int
    lease: int
    position: int


@dataclasses.dataclass(frozen=True, slots=True)
class GroupHeartbeat(Message):
    """A member of a consumer group lives, and says what it did. `member`: 16 random bytes. `session_ms`: how long it may be
    silent.

    `joining`: it is new (or starts anew) and has no shard; the first heartbeat of a group makes it, with `start` (trim_horizon or
    latest) as the place where it begins. `leaving`: it stops, and its shards are free. `released`: shards it gives up because
    it was asked to; what it had processed of them is in `checkpoints`. `beat`: this member's heartbeats in their order, from 1
    (0: it does not say), so that one which a lost connection had held up does not end leases that began after it."""

    stream: str
    group: str
    member: bytes
    session_ms: int = 10_000
    joining: bool = False
    leaving: bool = False
    start: str = "trim_horizon"
    checkpoints: list[Checkpoint] | None = None
    released: list[int] | None = None
    beat: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class GroupLease(Message):
    """A shard that a member has to read, from sequence number `position` on. `lease`: a number that each lease of the group has
    for itself; another one than before means to begin anew at `position`. `give_up`: another member is to have it; process
    nothing more of it, and release it."""

    shard: int
    lease: int
    position: int
    give_up: bool


@dataclasses.dataclass(frozen=True, slots=True)
class GroupLeases(Message):
    """All that the member has now. `lost`: shards of its checkpoints whose lease was not its own any more; nothing of those was
    noted."""

    leases: list[GroupLease]
    lost: list[int]


@dataclasses.dataclass(frozen=True, slots=True)
class GroupName(Message):
    """Names a consumer group of a stream."""

    stream: str
    group: str


@dataclasses.dataclass(frozen=True, slots=True)
class GroupNames(Message):
    """The consumer groups of a stream, in name order."""

    groups: list[str]


@dataclasses.dataclass(frozen=True, slots=True)
class GroupShard(Message):
    """What a group did of a shard: who has it (nil: nobody), the next sequence number to be processed, and the one behind the
    shard's last record: the difference is its lag. `finished`: nothing is left of it."""

    shard: int
    member: bytes | None
    position: int
    end: int
    finished: bool


@dataclasses.dataclass(frozen=True, slots=True)
class GroupDescription(Message):
    """A consumer group as it stands."""

    stream: str
    group: str
    created_ms: int
    members: list[bytes]
    shards: list[GroupShard]


@dataclasses.dataclass(frozen=True, slots=True)
class ResetGroup(Message):
    """Sets all checkpoints of a group: to trim_horizon, latest, or the first records that arrived at `position` ms or later
    (time). Members lose their shards and get them again from there on."""

    stream: str
    group: str
    start: str
    position: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class StreamConsumerName(Message):
    """Names a registered consumer of a stream."""

    stream: str
    consumer: str


@dataclasses.dataclass(frozen=True, slots=True)
class StreamConsumer(Message):
    """A registered consumer. `subscriptions`: how many shards are pushed to it now; `lag`: how many records of those it has not
    been pushed yet."""

    stream: str
    consumer: str
    arn: str
    created_ms: int
    subscriptions: int
    lag: int


@dataclasses.dataclass(frozen=True, slots=True)
class StreamConsumers(Message):
    """The registered consumers of a stream, in name order."""

    consumers: list[StreamConsumer]


@dataclasses.dataclass(frozen=True, slots=True)
class SubscribeToShard(Message):
    """Has the records of a shard pushed to a registered consumer, as they come: never more than there is `credit` for, but for
    the rest of a batch. `start` and `position` as in OpenIterator."""

    stream: str
    consumer: str
    shard: int
    credit: int
    start: str = "latest"
    position: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class PushedRecords(Message):
    """What a subscription pushes. Records before sequence number `start` are not meant. `next`: the sequence number to go on
    with, also in another subscription. `behind_ms` as in Records."""

    start: int
    runs: list[RecordRun]
    next: int
    behind_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class SubscriptionEnd(Message):
    """The shard is closed, and everything in it was pushed: go on with `children`."""

    children: list[int]
