"""Every error that can cross the wire: one class each, numbered, with whose fault it is and what to do.

The classes are the table: `TABLE` is made from them and a test checks it for gaps and duplicates. The broker raises them
(or puts them beside a batch entry), the wire carries code and text, the client raises the same class again.
Numbers are never reused. 1 to 99 concern the connection, 100 to 199 any resource, 200 to 299 queues, 300 to 399 streams.
"""

from __future__ import annotations

import enum
from typing import ClassVar, Final


class Fault(enum.Enum):
    """Whose mistake an error is: it decides the log level, and what an HTTP gateway answers (4xx or 5xx)."""

    CALLER = "caller"
    BROKER = "broker"


class PenstockError(Exception):
    """The base of all typed errors. `str(error)` is the specific sentence, `advice` the general remedy."""

    code: ClassVar[int] = 0
    fault: ClassVar[Fault] = Fault.BROKER
    retryable: ClassVar[bool] = False
    advice: ClassVar[str] = ""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or self.advice)

    @property
    def name(self) -> str:
        """The error's name on the wire, in logs and in metrics: the class name."""
        return type(self).__name__


class ProtocolError(PenstockError):
    code = 1
    fault = Fault.CALLER
    advice = "The bytes do not follow PROTOCOL.md; the connection is closed. Use a current client."


class FrameTooLarge(PenstockError):
    code = 2
    fault = Fault.CALLER
    advice = "Split the request: a frame may not exceed the limit the broker named in its hello."


class UnknownOperation(PenstockError):
    code = 3
    fault = Fault.CALLER
    advice = "This broker does not know the operation; it is probably older than the client."


class InvalidRequest(PenstockError):
    code = 4
    fault = Fault.CALLER
    advice = "A field has the wrong type or a value outside its range; the text names it."


class VersionNotSupported(PenstockError):
    code = 5
    fault = Fault.CALLER
    advice = "Client and broker have no protocol version in common; update the older one."


class AuthenticationRequired(PenstockError):
    code = 6
    fault = Fault.CALLER
    advice = "This broker wants an access key: create one with `penstock key create` and give it to the client."


class AuthenticationFailed(PenstockError):
    code = 7
    fault = Fault.CALLER
    advice = "Key id or secret is wrong, or the key was deleted."


class NotPermitted(PenstockError):
    code = 8
    fault = Fault.CALLER
    advice = "The access key's role does not allow this operation."


class TooManyRequests(PenstockError):
    code = 9
    fault = Fault.CALLER
    retryable = True
    advice = "More requests are in flight on this connection than the broker named in its hello; wait for replies."


class Overloaded(PenstockError):
    code = 10
    retryable = True
    advice = "The broker is out of a bounded resource; retry with backoff."


class Draining(PenstockError):
    code = 11
    retryable = True
    advice = "The broker is stopping; connect again, to it or to another one."


class StoreFailed(PenstockError):
    code = 12
    retryable = True
    advice = "The store refused the commit; nothing of the request took effect. Retry with backoff."


class OutcomeUnknown(PenstockError):
    code = 13
    retryable = True
    advice = "The commit's outcome is not known. Sends are safe to retry on the same client; for others look first."


class InternalError(PenstockError):
    code = 14
    advice = "A defect in the broker; it was logged with the request id. Please report it."


class Cancelled(PenstockError):
    code = 15
    fault = Fault.CALLER
    advice = "The client cancelled the request before it was answered."


class Moved(PenstockError):
    code = 16
    retryable = True
    advice = "Another broker owns the resource now; the text is its address."


class SlowConsumer(PenstockError):
    code = 17
    fault = Fault.CALLER
    retryable = True
    advice = "The client did not read its replies fast enough and was cut off; read faster or ask for less."


class ResourceInUse(PenstockError):
    code = 100
    fault = Fault.CALLER
    advice = "Something of that name exists with other properties; choose another name or change it."


class InvalidName(PenstockError):
    code = 101
    fault = Fault.CALLER
    advice = "Names are 1 to 80 letters, digits, hyphens and underscores; FIFO queues end in .fifo (which counts)."


class InvalidAttribute(PenstockError):
    code = 102
    fault = Fault.CALLER
    advice = "An attribute is unknown or out of range; the text names it and what is allowed."


class LimitExceeded(PenstockError):
    code = 103
    fault = Fault.CALLER
    advice = "A quota is used up; the text names it."


class ResourceBusy(PenstockError):
    code = 104
    fault = Fault.CALLER
    retryable = True
    advice = "The resource is being changed; retry in a moment."


class KeyDoesNotExist(PenstockError):
    code = 105
    fault = Fault.CALLER
    advice = "There is no access key of that id."


class QueueDoesNotExist(PenstockError):
    code = 200
    fault = Fault.CALLER
    advice = "Create the queue first, or check account, region and spelling."


class MessageTooLarge(PenstockError):
    code = 201
    fault = Fault.CALLER
    advice = "Body and attributes together exceed the queue's max_message_bytes."


class InvalidMessage(PenstockError):
    code = 202
    fault = Fault.CALLER
    advice = "A message's attributes, group, deduplication id or delay break a rule; the text names it."


class ReceiptHandleInvalid(PenstockError):
    code = 203
    fault = Fault.CALLER
    advice = "The receipt handle was not issued for this queue."


class ReceiptHandleExpired(PenstockError):
    code = 204
    fault = Fault.CALLER
    advice = "The message was received again, or deleted, since this handle was issued. Use the newest handle."


class MessageNotInFlight(PenstockError):
    code = 205
    fault = Fault.CALLER
    advice = "The visibility timeout had already ended; receive the message again."


class TooManyInFlight(PenstockError):
    code = 206
    fault = Fault.CALLER
    retryable = True
    advice = "The queue's limit of messages in flight is reached; delete some, or raise max_in_flight."


class BatchEmpty(PenstockError):
    code = 207
    fault = Fault.CALLER
    advice = "A batch needs at least one entry."


class BatchTooLarge(PenstockError):
    code = 208
    fault = Fault.CALLER
    advice = "Split the batch; the text names the limit."


class MoveTaskDoesNotExist(PenstockError):
    code = 209
    fault = Fault.CALLER
    advice = "No move task of that id is running."


class NotADeadLetterQueue(PenstockError):
    code = 210
    fault = Fault.CALLER
    advice = "Messages can be moved back only from a queue that is some queue's dead-letter queue."


class PurgeInProgress(PenstockError):
    code = 211
    fault = Fault.CALLER
    retryable = True
    advice = "The queue is being purged already."


class QueueFull(PenstockError):
    code = 212
    fault = Fault.CALLER
    retryable = True
    advice = "The queue's max_messages or max_bytes is reached; nothing was stored. Work it off or raise the limit."


class StreamDoesNotExist(PenstockError):
    code = 300
    fault = Fault.CALLER
    advice = "Create the stream first, or look at the name, the account and the region."


class ShardDoesNotExist(PenstockError):
    code = 301
    fault = Fault.CALLER
    advice = "List the stream's shards: this one never was, or its records have aged out."


class ShardClosed(PenstockError):
    code = 302
    fault = Fault.CALLER
    advice = "The shard was split or merged and takes nothing more: list the shards, and put the records into the open ones."


class IteratorExpired(PenstockError):
    code = 303
    fault = Fault.CALLER
    advice = "An iterator is good for five minutes: open another after the last sequence number that was read."


class IteratorInvalid(PenstockError):
    code = 304
    fault = Fault.CALLER
    advice = "This is no iterator of this broker; open one with OpenIterator."


class RecordTooLarge(PenstockError):
    code = 305
    fault = Fault.CALLER
    advice = "Make the record smaller, or raise the stream's max_record_bytes."


class InvalidShardRange(PenstockError):
    code = 306
    fault = Fault.CALLER
    advice = "Split a shard strictly inside the hashes that it owns."


class ShardsNotAdjacent(PenstockError):
    code = 307
    fault = Fault.CALLER
    advice = "Merge two different open shards whose hashes are neighbours."


class GroupDoesNotExist(PenstockError):
    code = 308
    fault = Fault.CALLER
    advice = "No member of that consumer group was ever heard of; a group is made by its first heartbeat."


class CheckpointInvalid(PenstockError):
    code = 309
    fault = Fault.CALLER
    advice = "A checkpoint goes forward only, and not beyond the shard's last record. Reset the group to go back."


class MemberExpired(PenstockError):
    code = 310
    fault = Fault.CALLER
    advice = "The member was silent for longer than its session, and its shards may be another's: drop them, and join again."


class StreamConsumerDoesNotExist(PenstockError):
    code = 311
    fault = Fault.CALLER
    advice = "Register the consumer with the stream first, or look at its spelling; it may have been deregistered."


class PositionTrimmed(PenstockError):
    code = 312
    fault = Fault.CALLER
    advice = "Records from that sequence number on have aged out: nothing brings them back. Begin at trim_horizon, knowing that."


class ThroughputExceeded(PenstockError):
    code = 313
    fault = Fault.CALLER
    retryable = True
    advice = "The shard has let pass what it does per second: retry with backoff, spread the keys, or split the shard."


TABLE: Final[dict[int, type[PenstockError]]] = {cls.code: cls for cls in PenstockError.__subclasses__()}
"""Every error by its number."""


def error_from_wire(code: int, text: str) -> PenstockError:
    """The typed error of a code. A code from a newer broker becomes a plain PenstockError with that text."""
    cls = TABLE.get(code)
    return cls(text) if cls is not None else PenstockError(f"error {code}: {text}")
