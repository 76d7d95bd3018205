"""The errors of the SDK: all of the broker's, and those that arise before or without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock_protocol.errors import (
    AuthenticationFailed,
    AuthenticationRequired,
    BatchEmpty,
    BatchTooLarge,
    Cancelled,
    CheckpointInvalid,
    Draining,
    Fault,
    FrameTooLarge,
    GroupDoesNotExist,
    InternalError,
    InvalidAttribute,
    InvalidMessage,
    InvalidName,
    InvalidRequest,
    InvalidShardRange,
    IteratorExpired,
    IteratorInvalid,
    KeyDoesNotExist,
    LimitExceeded,
    MemberExpired,
    MessageNotInFlight,
    MessageTooLarge,
    Moved,
    MoveTaskDoesNotExist,
    NotADeadLetterQueue,
    NotPermitted,
    OutcomeUnknown,
    Overloaded,
    PenstockError,
    PositionTrimmed,
    ProtocolError,
    PurgeInProgress,
    QueueDoesNotExist,
    QueueFull,
    ReceiptHandleExpired,
    ReceiptHandleInvalid,
    RecordTooLarge,
    ResourceBusy,
    ResourceInUse,
    ShardClosed,
    ShardDoesNotExist,
    ShardsNotAdjacent,
    SlowConsumer,
    StoreFailed,
    StreamConsumerDoesNotExist,
    StreamDoesNotExist,
    ThroughputExceeded,
    TooManyInFlight,
    TooManyRequests,
    UnknownOperation,
    VersionNotSupported,
)

if TYPE_CHECKING:
    from penstock.records import OutgoingRecord
    from penstock.types import SentMessage


class NotConnected(PenstockError):
    """The broker could not be reached within the request's time; nothing was sent."""

    code = 900
    fault = Fault.BROKER
    retryable = True
    advice = "Is the broker running, and the address right? The client keeps trying in the background."


class ConnectionLost(PenstockError):
    """The connection broke after the request was sent, and it may not simply be sent again: its outcome is unknown.

    After a receive: ask again. Messages that a lost reply had taken come back after their visibility timeout."""

    code = 901
    fault = Fault.BROKER
    retryable = False
    advice = "Look whether it took effect before you ask again."


class RequestTimeout(PenstockError):
    """No answer came within the request's time: its outcome is unknown. The client does not send it again, so asking again may do
    it twice (a send: make a second message, unless a deduplication id prevents that)."""

    code = 902
    fault = Fault.BROKER
    retryable = True
    advice = "The broker is slow or unreachable, and the outcome unknown; raise request_timeout or look at its metrics."


class ClientClosed(PenstockError):
    """The client was closed."""

    code = 903
    fault = Fault.CALLER
    advice = "Use the client inside its `with` block."


class SendFailed(PenstockError):
    """Some messages of a batch were refused: `failures` maps their places in the batch to errors, `sent` has the others."""

    code = 904
    fault = Fault.CALLER
    advice = "Look at .failures: each entry answers for itself."

    def __init__(
        self, message: str = "", failures: dict[int, PenstockError] | None = None, sent: list[SentMessage] | None = None
    ) -> None:
        super().__init__(message)
        self.failures = failures or {}
        self.sent = sent or []


class PutFailed(PenstockError):
    """Some records were refused: `failures` maps their places in what was put to errors, `records` has them in the same order, to
    put them again. A producer counts the places from 0 among those that failed since it told last."""

    code = 905
    fault = Fault.CALLER
    advice = "Look at .failures: each record answers for itself. What failed is in .records."

    def __init__(
        self,
        message: str = "",
        failures: dict[int, PenstockError] | None = None,
        records: list[OutgoingRecord] | None = None,
    ) -> None:
        super().__init__(message)
        self.failures = failures or {}
        self.records = records or []


class RecordsUnreadable(PenstockError):
    """The records of a batch cannot be unpacked: its producer has packed something else than it said."""

    code = 906
    fault = Fault.CALLER
    advice = "Read on behind the batch (its .end), and look at the program that put it."


class LeaseLost(PenstockError):
    """A checkpoint of a shard that is not this member's any more, or was lost and came again since the record was given out:
    it was not noted, or was and the answer got lost. The shard goes on from its last checkpoint, here or at another member."""

    code = 907
    fault = Fault.CALLER
    advice = "Go on with the next record. What came after the last checkpoint is processed again, by whoever has the shard."


def fresh(error: PenstockError) -> PenstockError:
    """A copy to raise: one error object raised in many tasks would mix their tracebacks."""
    return type(error)(str(error))


__all__ = [
    "AuthenticationFailed",
    "AuthenticationRequired",
    "BatchEmpty",
    "BatchTooLarge",
    "Cancelled",
    "CheckpointInvalid",
    "ClientClosed",
    "ConnectionLost",
    "Draining",
    "Fault",
    "FrameTooLarge",
    "GroupDoesNotExist",
    "InternalError",
    "InvalidAttribute",
    "InvalidMessage",
    "InvalidName",
    "InvalidRequest",
    "InvalidShardRange",
    "IteratorExpired",
    "IteratorInvalid",
    "KeyDoesNotExist",
    "LeaseLost",
    "LimitExceeded",
    "MemberExpired",
    "MessageNotInFlight",
    "MessageTooLarge",
    "MoveTaskDoesNotExist",
    "Moved",
    "NotADeadLetterQueue",
    "NotConnected",
    "NotPermitted",
    "OutcomeUnknown",
    "Overloaded",
    "PenstockError",
    "PositionTrimmed",
    "ProtocolError",
    "PurgeInProgress",
    "PutFailed",
    "QueueDoesNotExist",
    "QueueFull",
    "ReceiptHandleExpired",
    "ReceiptHandleInvalid",
    "RecordTooLarge",
    "RecordsUnreadable",
    "RequestTimeout",
    "ResourceBusy",
    "ResourceInUse",
    "SendFailed",
    "ShardClosed",
    "ShardDoesNotExist",
    "ShardsNotAdjacent",
    "SlowConsumer",
    "StoreFailed",
    "StreamConsumerDoesNotExist",
    "StreamDoesNotExist",
    "ThroughputExceeded",
    "TooManyInFlight",
    "TooManyRequests",
    "UnknownOperation",
    "VersionNotSupported",
]
