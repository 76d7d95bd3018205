"""The table of operations. Dispatch, permissions, metrics, the reference page and the fuzzer are made from it."""

from __future__ import annotations

import dataclasses
import enum
from typing import Final

from penstock_protocol import queue_messages as queues
from penstock_protocol import session_messages as session
from penstock_protocol import stream_messages as streams
from penstock_protocol.codec import Message


class Permission(enum.Enum):
    """What a role may be allowed to do. NONE: part of the connection, allowed to all who are connected."""

    NONE = "none"
    READ = "read"
    SEND = "send"
    RECEIVE = "receive"
    MANAGE = "manage"
    ADMINISTER = "administer"


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """One row. `waits`: the reply may come much later (long poll). `push`: PUSH frames with that message come before the reply.
    `one_way`: there is no reply. `idempotent`: the same request again does no harm, so a client may retry it."""

    code: int
    name: str
    request: type[Message]
    reply: type[Message]
    permission: Permission
    idempotent: bool = False
    waits: bool = False
    push: type[Message] | None = None
    one_way: bool = False

    @property
    def pushes(self) -> bool:
        """Whether PUSH frames come before the reply."""
        return self.push is not None


_P = Permission

OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(1, "Hello", session.Hello, session.HelloReply, _P.NONE, idempotent=True),
    Operation(2, "Authenticate", session.Authenticate, session.Empty, _P.NONE),
    Operation(3, "Ping", session.Empty, session.Empty, _P.NONE, idempotent=True),
    Operation(4, "Cancel", session.Cancel, session.Empty, _P.NONE, one_way=True),
    Operation(5, "CreateKey", session.CreateKey, session.AccessKey, _P.ADMINISTER),
    Operation(6, "ListKeys", session.Empty, session.AccessKeys, _P.ADMINISTER, idempotent=True),
    Operation(7, "DeleteKey", session.KeyId, session.Empty, _P.ADMINISTER, idempotent=True),
    Operation(16, "CreateQueue", queues.CreateQueue, queues.QueueDescription, _P.MANAGE, idempotent=True),
    Operation(17, "DeleteQueue", queues.QueueName, session.Empty, _P.MANAGE),
    Operation(18, "ListQueues", queues.ListQueues, queues.QueueNames, _P.READ, idempotent=True),
    Operation(19, "DescribeQueue", queues.QueueName, queues.QueueDescription, _P.READ, idempotent=True),
    Operation(20, "SetQueueSettings", queues.SetQueueSettings, queues.QueueDescription, _P.MANAGE, idempotent=True),
    Operation(21, "TagQueue", queues.TagQueue, session.Empty, _P.MANAGE, idempotent=True),
    Operation(22, "UntagQueue", queues.UntagQueue, session.Empty, _P.MANAGE, idempotent=True),
    Operation(23, "PurgeQueue", queues.QueueName, queues.PurgeReply, _P.MANAGE, idempotent=True),
    Operation(24, "SendMessages", queues.SendMessages, queues.SendReply, _P.SEND),
    Operation(25, "ReceiveMessages", queues.ReceiveMessages, queues.ReceiveReply, _P.RECEIVE, waits=True),
    Operation(26, "DeleteMessages", queues.DeleteMessages, queues.ReceiptReply, _P.RECEIVE, idempotent=True),
    Operation(27, "ChangeVisibility", queues.ChangeVisibility, queues.ReceiptReply, _P.RECEIVE, idempotent=True),
    Operation(28, "PeekMessages", queues.PeekMessages, queues.PeekReply, _P.READ, idempotent=True),
    Operation(29, "Consume", queues.Consume, session.Empty, _P.RECEIVE, waits=True, push=queues.ReceiveReply),
    Operation(30, "Credit", queues.Credit, session.Empty, _P.RECEIVE, one_way=True),
    Operation(31, "StartMoveTask", queues.StartMoveTask, queues.MoveTask, _P.MANAGE),
    Operation(32, "CancelMoveTask", queues.MoveTaskId, queues.MoveTask, _P.MANAGE, idempotent=True),
    Operation(33, "ListMoveTasks", queues.ListMoveTasks, queues.MoveTasks, _P.READ, idempotent=True),
    Operation(34, "ListDeadLetterSources", queues.QueueName, queues.QueueNames, _P.READ, idempotent=True),
    Operation(48, "CreateStream", streams.CreateStream, streams.StreamDescription, _P.MANAGE, idempotent=True),
    Operation(49, "DeleteStream", streams.StreamName, session.Empty, _P.MANAGE),
    Operation(50, "ListStreams", streams.ListStreams, streams.StreamNames, _P.READ, idempotent=True),
    Operation(51, "DescribeStream", streams.StreamName, streams.StreamDescription, _P.READ, idempotent=True),
    Operation(52, "SetStreamSettings", streams.SetStreamSettings, streams.StreamDescription, _P.MANAGE, idempotent=True),
    Operation(53, "TagStream", streams.TagStream, session.Empty, _P.MANAGE, idempotent=True),
    Operation(54, "UntagStream", streams.UntagStream, session.Empty, _P.MANAGE, idempotent=True),
    Operation(55, "ListShards", streams.ListShards, streams.Shards, _P.READ, idempotent=True),
    Operation(56, "SplitShard", streams.SplitShard, session.Empty, _P.MANAGE),
    Operation(57, "MergeShards", streams.MergeShards, session.Empty, _P.MANAGE),
    Operation(58, "SetShardCount", streams.SetShardCount, streams.StreamDescription, _P.MANAGE, idempotent=True),
    Operation(59, "PutRecords", streams.PutRecords, streams.PutReply, _P.SEND),
    Operation(60, "OpenIterator", streams.OpenIterator, streams.Iterator, _P.RECEIVE, idempotent=True),
    Operation(61, "ReadRecords", streams.ReadRecords, streams.Records, _P.RECEIVE, idempotent=True, waits=True),
    Operation(64, "GroupHeartbeat", streams.GroupHeartbeat, streams.GroupLeases, _P.RECEIVE, idempotent=True),
    Operation(65, "ListGroups", streams.StreamName, streams.GroupNames, _P.READ, idempotent=True),
    Operation(66, "DescribeGroup", streams.GroupName, streams.GroupDescription, _P.READ, idempotent=True),
    Operation(67, "ResetGroup", streams.ResetGroup, streams.GroupDescription, _P.MANAGE, idempotent=True),
    Operation(68, "DeleteGroup", streams.GroupName, session.Empty, _P.MANAGE),
    Operation(69, "RegisterStreamConsumer", streams.StreamConsumerName, streams.StreamConsumer, _P.MANAGE, idempotent=True),
    Operation(70, "DescribeStreamConsumer", streams.StreamConsumerName, streams.StreamConsumer, _P.READ, idempotent=True),
    Operation(71, "ListStreamConsumers", streams.StreamName, streams.StreamConsumers, _P.READ, idempotent=True),
    Operation(72, "DeregisterStreamConsumer", streams.StreamConsumerName, session.Empty, _P.MANAGE),
    Operation(
        73,
        "SubscribeToShard",
        streams.SubscribeToShard,
        streams.SubscriptionEnd,
        _P.RECEIVE,
        waits=True,
        push=streams.PushedRecords,
    ),
)

BY_CODE: Final = {operation.code: operation for operation in OPERATIONS}
BY_REQUEST: Final = {
    operation.request: operation
    for operation in OPERATIONS
    if operation.request
    not in (session.Empty, queues.QueueName, streams.StreamName, streams.GroupName, streams.StreamConsumerName)
}
BY_NAME: Final = {operation.name: operation for operation in OPERATIONS}

ROLES: Final[dict[str, frozenset[Permission]]] = {
    "admin": frozenset(Permission),
    "user": frozenset({_P.NONE, _P.READ, _P.SEND, _P.RECEIVE, _P.MANAGE}),
    "producer": frozenset({_P.NONE, _P.READ, _P.SEND}),
    "consumer": frozenset({_P.NONE, _P.READ, _P.RECEIVE}),
    "reader": frozenset({_P.NONE, _P.READ}),
}
"""What each role of an access key may do."""
