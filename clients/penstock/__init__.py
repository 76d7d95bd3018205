"""The Python SDK of Penstock: `Client` (blocking, thread-safe) and `AsyncClient` (trio and asyncio).

from penstock import Client

with Client() as client:
    queue = client.create_queue("jobs")
    queue.send("hello")
    for message in queue.receive(10, wait_seconds=1):
        print(message.text)
        message.delete()
"""

from penstock_protocol.queue_messages import Attribute

from penstock._async.client import AsyncClient
from penstock._async.consumer import AsyncConsumer
from penstock._async.queue import AsyncMessage, AsyncMoveTask, AsyncQueue
from penstock._async.worker import AsyncWorker
from penstock._sync.client import Client
from penstock._sync.consumer import Consumer
from penstock._sync.queue import Message, MoveTask, Queue
from penstock._sync.worker import Worker
from penstock.backoff import Backoff
from penstock.errors import (
    AuthenticationFailed,
    AuthenticationRequired,
    BatchEmpty,
    BatchTooLarge,
    Cancelled,
    ClientClosed,
    ConnectionLost,
    Draining,
    Fault,
    FrameTooLarge,
    InternalError,
    InvalidAttribute,
    InvalidMessage,
    InvalidName,
    InvalidRequest,
    KeyDoesNotExist,
    LimitExceeded,
    MessageNotInFlight,
    MessageTooLarge,
    Moved,
    MoveTaskDoesNotExist,
    NotADeadLetterQueue,
    NotConnected,
    NotPermitted,
    OutcomeUnknown,
    Overloaded,
    PenstockError,
    ProtocolError,
    PurgeInProgress,
    QueueDoesNotExist,
    QueueFull,
    ReceiptHandleExpired,
    ReceiptHandleInvalid,
    RequestTimeout,
    ResourceBusy,
    ResourceInUse,
    SendFailed,
    SlowConsumer,
    StoreFailed,
    TooManyInFlight,
    TooManyRequests,
    UnknownOperation,
    VersionNotSupported,
)
from penstock.types import (
    AccessKeyInfo,
    AttributeValue,
    OutgoingMessage,
    PeekedMessage,
    QueueInfo,
    QueueSettings,
    ReceiptHandle,
    ReceivedMessage,
    SentMessage,
)

__all__ = [
    "AccessKeyInfo",
    "AsyncClient",
    "AsyncConsumer",
    "AsyncMessage",
    "AsyncMoveTask",
    "AsyncQueue",
    "AsyncWorker",
    "Attribute",
    "AttributeValue",
    "AuthenticationFailed",
    "AuthenticationRequired",
    "Backoff",
    "BatchEmpty",
    "BatchTooLarge",
    "Cancelled",
    "Client",
    "ClientClosed",
    "ConnectionLost",
    "Consumer",
    "Draining",
    "Fault",
    "FrameTooLarge",
    "InternalError",
    "InvalidAttribute",
    "InvalidMessage",
    "InvalidName",
    "InvalidRequest",
    "KeyDoesNotExist",
    "LimitExceeded",
    "Message",
    "MessageNotInFlight",
    "MessageTooLarge",
    "MoveTask",
    "MoveTaskDoesNotExist",
    "Moved",
    "NotADeadLetterQueue",
    "NotConnected",
    "NotPermitted",
    "OutcomeUnknown",
    "OutgoingMessage",
    "Overloaded",
    "PeekedMessage",
    "PenstockError",
    "ProtocolError",
    "PurgeInProgress",
    "Queue",
    "QueueDoesNotExist",
    "QueueFull",
    "QueueInfo",
    "QueueSettings",
    "ReceiptHandle",
    "ReceiptHandleExpired",
    "ReceiptHandleInvalid",
    "ReceivedMessage",
    "RequestTimeout",
    "ResourceBusy",
    "ResourceInUse",
    "SendFailed",
    "SentMessage",
    "SlowConsumer",
    "StoreFailed",
    "TooManyInFlight",
    "TooManyRequests",
    "UnknownOperation",
    "VersionNotSupported",
    "Worker",
]
