"""What is said about queues. Names are SQS's; durations are milliseconds (`_ms`), sizes bytes (`_bytes`).

Batches are columns, not rows: `bodies` and, beside it, a column for each property, which is nil when no message of the
batch has that property. So a batch of plain bodies costs one array, on the wire and in the broker.

Messages of one queue are stored in segments. A message is named by its segment's first sequence number and its index in it;
its sequence number is their sum. A receipt names messages of one segment that were received together.
"""

from __future__ import annotations

import dataclasses

from penstock_protocol.codec import Message


@dataclasses.dataclass(frozen=True, slots=True)
class Attribute(Message):
    """A message attribute. `type` is String, Number or Binary, optionally followed by a dot and a label; `value` is
    binary exactly for Binary types."""

    name: str
    type: str
    value: str | bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Setting(Message):
    """One queue attribute by its name, see PROTOCOL.md section 6; nil resets it to its default."""

    name: str
    value: int | str | bool | list[str] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Tag(Message):
    """A tag of a resource."""

    key: str
    value: str


@dataclasses.dataclass(frozen=True, slots=True)
class QueueName(Message):
    """Names a queue of the connection's account and region."""

    queue: str


@dataclasses.dataclass(frozen=True, slots=True)
class CreateQueue(Message):
    """Creates a queue; one that exists with the same settings is success, with others ResourceInUse."""

    queue: str
    settings: list[Setting] | None = None
    tags: list[Tag] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class QueueDescription(Message):
    """A queue with all its settings (defaults included), tags, and counts that are exact at `now_ms`.

    `oldest_ms` is the send time of the oldest message that is not deleted, nil for an empty queue."""

    queue: str
    arn: str
    created_ms: int
    modified_ms: int
    settings: list[Setting]
    tags: list[Tag]
    visible: int
    in_flight: int
    delayed: int
    bytes: int
    oldest_ms: int | None
    now_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class ListQueues(Message):
    """Queues whose name starts with `prefix`, in name order, after the name `after`, at most `limit`."""

    prefix: str = ""
    after: str = ""
    limit: int = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class QueueNames(Message):
    """`more` says that further names follow the last one."""

    queues: list[str]
    more: bool


@dataclasses.dataclass(frozen=True, slots=True)
class SetQueueSettings(Message):
    """Changes some settings; those not named stay."""

    queue: str
    settings: list[Setting]


@dataclasses.dataclass(frozen=True, slots=True)
class TagQueue(Message):
    """Adds or replaces tags."""

    queue: str
    tags: list[Tag]


@dataclasses.dataclass(frozen=True, slots=True)
class UntagQueue(Message):
    """Removes tags; unknown keys are ignored."""

    queue: str
    keys: list[str]


@dataclasses.dataclass(frozen=True, slots=True)
class SendMessages(Message):
    """Sends a batch. Each column has one element per body, or is nil.

    `delays_ms`: nil elements take the queue's delay. `groups`: the message group of a FIFO queue, the tenant of a
    standard one. `deduplication_ids`: FIFO only. `traces`: a trace context that is no attribute and not counted.

    `sequence` (from 1, ascending per producer) makes the send idempotent: the same producer and sequence again answers
    what was answered the first time. 0: not idempotent. `acknowledged`: every lower sequence of this producer has been
    answered, so the broker may forget it."""

    queue: str
    bodies: list[bytes]
    attributes: list[list[Attribute] | None] | None = None
    delays_ms: list[int | None] | None = None
    groups: list[str | None] | None = None
    deduplication_ids: list[str | None] | None = None
    traces: list[str | None] | None = None
    sequence: int = 0
    acknowledged: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Run(Message):
    """`count` consecutive sequence numbers from `first`."""

    first: int
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class Failure(Message):
    """What went wrong with one entry of a batch; `index` is its place in the request."""

    index: int
    code: int
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class SendReply(Message):
    """`runs` covers the accepted entries in their order, `failures` the others. The message id of an entry is `log` and
    its sequence number, as 16 big-endian bytes."""

    log: int
    runs: list[Run]
    failures: list[Failure]


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiveMessages(Message):
    """Takes up to `max_messages` (and about `max_bytes`) messages and hides them for `visibility_timeout_ms` (nil: the queue's).

    With nothing to take it waits up to `wait_ms` (nil: the queue's). `attempt_id` (FIFO) makes it repeatable for 5 minutes."""

    queue: str
    max_messages: int
    visibility_timeout_ms: int | None = None
    wait_ms: int | None = 0
    max_bytes: int = 4 * 1024 * 1024
    attempt_id: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Delivery(Message):
    """Messages of one segment, received together the same number of times.

    `receipt` (16 bytes) with `first` and an index is what deletes one. `indexes` is the lowest index when the messages
    are consecutive, else the list. `sent_ms` is one time for all or a column. The other columns are as in SendMessages;
    `sources` names the queue that a dead-letter queue's message came from; `origins` the message ids of moved messages
    (nil: derived from the sequence number)."""

    receipt: bytes
    first: int
    indexes: int | list[int]
    receive_count: int
    first_received_ms: int
    sent_ms: int | list[int]
    bodies: list[bytes]
    attributes: list[list[Attribute] | None] | None = None
    groups: list[str | None] | None = None
    deduplication_ids: list[str | None] | None = None
    traces: list[str | None] | None = None
    sources: list[str | None] | None = None
    origins: list[bytes | None] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiveReply(Message):
    """Answers ReceiveMessages, and is what a consumer is pushed. No deliveries: nothing arrived in time."""

    log: int
    deliveries: list[Delivery]
    visible_until_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class Receipt(Message):
    """Messages of one delivery: `mask` has bit i (little endian) set for index i."""

    receipt: bytes
    first: int
    mask: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class DeleteMessages(Message):
    """Deletes received messages."""

    queue: str
    receipts: list[Receipt]


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiptFailure(Message):
    """The messages of entry `entry` in `mask` were refused."""

    entry: int
    mask: bytes
    code: int
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiptReply(Message):
    """Answers DeleteMessages and ChangeVisibility: everything not named in `failures` was done."""

    failures: list[ReceiptFailure]


@dataclasses.dataclass(frozen=True, slots=True)
class ChangeVisibility(Message):
    """Hides messages in flight for another `timeouts_ms[i]` from now; 0 makes them visible at once."""

    queue: str
    receipts: list[Receipt]
    timeouts_ms: list[int]


@dataclasses.dataclass(frozen=True, slots=True)
class PurgeReply(Message):
    """How many messages a purge removed."""

    messages: int


@dataclasses.dataclass(frozen=True, slots=True)
class PeekMessages(Message):
    """Looks without receiving. `state`: any, visible, in_flight or delayed. Messages are listed by (due time, sequence
    number); `after` is the cursor of the previous page, empty for the first."""

    queue: str
    state: str = "any"
    limit: int = 10
    after: bytes = b""


@dataclasses.dataclass(frozen=True, slots=True)
class PeekedMessage(Message):
    """One message as the store has it. `visible_at_ms` is 0 for one that was visible from the start."""

    sequence: int
    message_id: bytes
    state: str
    sent_ms: int
    visible_at_ms: int
    receive_count: int
    body: bytes
    attributes: list[Attribute] | None
    group: str | None
    deduplication_id: str | None
    source: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class PeekReply(Message):
    """A page. `after` is the cursor for the next one, empty when this was the last."""

    messages: list[PeekedMessage]
    after: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Consume(Message):
    """Opens a consumer: deliveries are pushed as ReceiveReply frames with this request's correlation, never more
    messages than there is credit. It ends (with an Empty reply) when cancelled, or with an error.

    `release`: what is still in flight from this consumer becomes visible when it ends."""

    queue: str
    credit: int
    visibility_timeout_ms: int | None = None
    release: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Credit(Message):
    """Gives a consumer `messages` more credit. One-way."""

    correlation: int
    messages: int


@dataclasses.dataclass(frozen=True, slots=True)
class StartMoveTask(Message):
    """Moves the visible messages of dead-letter queue `source` to `destination`, or, when that is empty, each to the
    queue it came from. `messages_per_second` 0: as fast as possible."""

    source: str
    destination: str = ""
    messages_per_second: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class MoveTaskId(Message):
    """Names a move task."""

    task_id: str


@dataclasses.dataclass(frozen=True, slots=True)
class MoveTask(Message):
    """A move task. `state`: RUNNING, COMPLETED, CANCELLING, CANCELLED, FAILED. `to_move`: what was there at the start."""

    task_id: str
    source: str
    destination: str
    state: str
    messages_per_second: int
    moved: int
    to_move: int
    started_ms: int
    failure: str


@dataclasses.dataclass(frozen=True, slots=True)
class ListMoveTasks(Message):
    """The newest move tasks of a source queue, newest first."""

    source: str
    limit: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class MoveTasks(Message):
    """Answers ListMoveTasks."""

    tasks: list[MoveTask]
