# Generated from clients/penstock/_async/queue.py by tools/generate_blocking_client.py (make sync-client): edit that file.
"""A queue as an application uses it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Unpack, cast

from penstock import _backend_threads as backend
from penstock._sync.batching import SendBatch, Sender, Settler, batches_of
from penstock._sync.consumer import Consumer
from penstock.errors import InvalidRequest, PenstockError, SendFailed, fresh
from penstock.outgoing import body_bytes, properties
from penstock.types import (
    AttributeValue,
    OutgoingMessage,
    PeekedMessage,
    QueueInfo,
    QueueSettings,
    ReceiptHandle,
    ReceivedMessage,
    SentMessage,
    milliseconds,
    settings_to_wire,
)
from penstock_protocol import queue_messages as wire

if TYPE_CHECKING:
    from penstock._sync.client import Client

LONGEST_VISIBILITY_SECONDS: Final = 12 * 3600
"""SQS: a visibility timeout is at most 12 hours. Checked here, for changes of many callers travel in one frame."""


class Message(ReceivedMessage):
    """A received message with what can be done about it."""

    __slots__ = ()

    def delete(self) -> None:
        """It was worked off: removes it for good. See Queue.delete."""
        self._queue.delete(self)

    def release(self, delay: float = 0) -> None:
        """It was not: makes it visible again, at once or after `delay` seconds."""
        self._queue.change_visibility(self, delay)


def visibility_ms(seconds: float) -> int:
    """Seconds as the wire has them; InvalidRequest when they are no visibility timeout."""
    if not 0 <= seconds <= LONGEST_VISIBILITY_SECONDS:
        raise InvalidRequest(f"a visibility timeout is 0 to {LONGEST_VISIBILITY_SECONDS} seconds, not {seconds!r}")
    return round(seconds * 1000)


def _collect(batch: SendBatch, results: list[SentMessage | PenstockError]) -> PenstockError | None:
    """Waits for a batch and adds its results; returns the error of the whole batch, if it has one."""
    batch.done.wait()
    results += batch.results()
    return batch.error


class Queue:
    """One queue by its name. Made by Client.queue or create_queue; making it talks to nobody.

    Times are seconds. Every call may raise QueueDoesNotExist, NotConnected, RequestTimeout and the other typed errors of
    `penstock.errors`, each with `.retryable` and `.advice`."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self.name = name
        self.attach()

    def attach(self) -> None:
        """Takes up the client's connection; again when that began anew, in a child process."""
        client, name = self._client, self.name
        self._link = client.link
        self._sender = Sender(client.link, name, client.sequences)
        self._deletes = Settler(client.link, lambda receipts, _: wire.DeleteMessages(name, receipts), releases=False)
        self._changes = Settler(
            client.link, lambda receipts, timeouts: wire.ChangeVisibility(name, receipts, timeouts), releases=True
        )

    def __repr__(self) -> str:
        return f"<Queue {self.name!r}>"

    # Sending

    def send(
        self,
        body: bytes | str,
        *,
        attributes: Mapping[str, AttributeValue | wire.Attribute] | None = None,
        delay_seconds: float | None = None,
        group: str | None = None,
        deduplication_id: str | None = None,
        trace: str | None = None,
    ) -> SentMessage:
        """Sends one message; when this returns it is durable. Concurrent sends travel together.

        A send whose reply was lost is repeated without making a second message, also across a restart of the broker.
        After a cancellation the message may or may not have been sent. Raises MessageTooLarge, InvalidMessage, QueueFull.

            >>> sent = queue.send("hello", attributes={"kind": "greeting"})
            >>> sent.message_id
            '00000000-0000-...'
        """
        more = None
        if attributes or delay_seconds is not None or group is not None or deduplication_id is not None or trace is not None:
            more = properties(attributes, delay_seconds, group, deduplication_id, trace)
        batch, place = self._sender.join(body_bytes(body), more)
        batch.done.wait()
        return batch.result(place)

    def send_many(
        self, messages: Iterable[bytes | str | OutgoingMessage], *, raise_on_failure: bool = True
    ) -> list[SentMessage | PenstockError]:
        """Sends many messages in as few frames as possible; returns one result per message, in order.

        Each message answers for itself: with `raise_on_failure` any refusal raises SendFailed, which names the refused
        ones and lists the others' results; without it the refusals stand in the list as errors. A frame that fails as
        a whole (QueueDoesNotExist, QueueFull, RequestTimeout …) holds back those after it; if nothing was sent, its error
        is raised. TypeError, before anything is sent, when a message has no form on the wire. After a cancellation any of
        them may have been sent.

            >>> results = queue.send_many([b"one", b"two", b"three"])
            >>> len(results)
            3
        """
        sender = self._sender
        limit_bytes = sender.limit_bytes(self._link.options.request_bytes)
        results: list[SentMessage | PenstockError] = []
        on_the_way: deque[SendBatch] = deque()
        refused: PenstockError | None = None
        for batch in batches_of(messages, limit_bytes):
            if refused is None and len(on_the_way) >= sender.concurrent:
                refused = _collect(on_the_way.popleft(), results)
            if refused is None:
                sender.send_batch(batch)
            else:
                batch.answer(None, type(refused)(f"not sent, because a batch before it failed: {refused}"))
            on_the_way.append(batch)
        for batch in on_the_way:
            refused = _collect(batch, results) or refused
        failures = {place: result for place, result in enumerate(results) if isinstance(result, PenstockError)}
        if failures and raise_on_failure:
            if refused is not None and len(failures) == len(results):
                raise fresh(refused)
            first = next(iter(failures.values()))
            raise SendFailed(
                f"{len(failures)} of {len(results)} messages were refused; the first: {first}",
                failures,
                [result for result in results if isinstance(result, SentMessage)],
            )
        return results

    # Receiving

    def receive(
        self,
        max_messages: int = 1,
        *,
        wait_seconds: float | None = None,
        visibility_timeout: float | None = None,
        attempt_id: str = "",
    ) -> list[Message]:
        """Takes up to `max_messages` messages; they are hidden from others for `visibility_timeout` (default: the queue's).

        Waits up to `wait_seconds` (at most 20; default: the queue's receive_wait) for a message. An empty list means
        that none came. After a cancellation or a RequestTimeout nothing stays taken: what arrives late is released again; but
        with an `attempt_id` (FIFO) it stays taken until its visibility timeout, for whoever repeats the attempt.

            >>> for message in queue.receive(10, wait_seconds=1):
            ...     print(message.text)
            ...     message.delete()
            hello
        """
        request = wire.ReceiveMessages(
            self.name,
            max_messages,
            None if visibility_timeout is None else visibility_ms(visibility_timeout),
            None if wait_seconds is None else milliseconds(wait_seconds, "wait_seconds"),
            attempt_id=attempt_id,
        )
        patience = 20 if wait_seconds is None else wait_seconds
        reply = cast(
            wire.ReceiveReply,
            self._link.call(request, resend=bool(attempt_id), timeout=patience + self._link.options.request_timeout),
        )
        return [
            Message(self, reply.log, delivery, place) for delivery in reply.deliveries for place in range(len(delivery.bodies))
        ]

    def consume(self, *, credit: int = 1000, visibility_timeout: float | None = None, release_on_close: bool = True) -> Consumer:
        """A stream of messages that the broker pushes as they come: never more than `credit` messages that the
        application has not taken out yet. Goes on after a reconnect. Use it as `with` and `for`:

            >>> with queue.consume(credit=100) as messages:
            ...     for message in messages:
            ...         message.delete()
            ...         break

        `release_on_close`: what was pushed and not deleted becomes visible again when the consumer ends.
        """
        hidden_ms = None if visibility_timeout is None else visibility_ms(visibility_timeout)
        return Consumer(self, Message, credit, hidden_ms, release_on_close)

    # Settling

    @staticmethod
    def _handle(message: ReceivedMessage | ReceiptHandle | str) -> tuple[bytes, int, int]:
        return ReceiptHandle.parse(message).parts if isinstance(message, str) else message.parts

    def delete(self, message: ReceivedMessage | ReceiptHandle | str) -> None:
        """Removes a received message for good; durable when this returns. One that is gone already is fine.

        Raises ReceiptHandleExpired when it was received again since."""
        self._settle(self._deletes, [self._handle(message)], 0)

    def delete_many(self, messages: Iterable[ReceivedMessage | ReceiptHandle | str]) -> None:
        """Removes received messages; raises the first refusal, after all others were removed."""
        self._settle(self._deletes, [self._handle(message) for message in messages], 0)

    def change_visibility(self, message: ReceivedMessage | ReceiptHandle | str, seconds: float) -> None:
        """Hides a message in flight for another `seconds` from now; 0 makes it visible at once.

        Raises MessageNotInFlight when its visibility timeout is over."""
        self._settle(self._changes, [self._handle(message)], visibility_ms(seconds))

    def change_visibility_many(self, messages: Iterable[ReceivedMessage | ReceiptHandle | str], seconds: float) -> None:
        """The same for many; raises the first refusal, after all others were changed."""
        self._settle(self._changes, [self._handle(message) for message in messages], visibility_ms(seconds))

    def _settle(self, settler: Settler, handles: list[tuple[bytes, int, int]], timeout_ms: int) -> None:
        waited_for = None
        for batch, entry, bit in settler.join(handles, timeout_ms):
            if batch is not waited_for:
                batch.done.wait()
                waited_for = batch
            if batch.error is not None or batch.failures:
                batch.check(entry, bit)

    def release_soon(self, messages: Iterable[ReceivedMessage]) -> None:
        """Makes messages visible again in the background: for cleaning up where nothing can be waited for. Closing the client
        waits a moment for it; what does not get through comes back after its visibility timeout."""
        self._link.release_handles(self.name, [message.handle for message in messages])

    def renew(self, messages: Iterable[ReceivedMessage], seconds: float) -> list[PenstockError | None]:
        """Hides messages in flight for another `seconds` from now; returns what became of each, in order: None, or its error."""
        places = self._changes.join([message.parts for message in messages], visibility_ms(seconds))
        outcomes: list[PenstockError | None] = []
        for batch, entry, bit in places:
            batch.done.wait()
            outcomes.append(batch.problem(entry, bit))
        return outcomes

    # Looking

    def peek(self, limit: int = 10, *, state: str = "any") -> list[PeekedMessage]:
        """Looks at up to `limit` messages without receiving them; `state`: any, visible, in_flight or delayed."""
        found: list[PeekedMessage] = []
        after = b""
        while True:
            # (A page may be short, or empty, although more follows.)
            request = wire.PeekMessages(self.name, state, limit - len(found), after)
            reply = cast(wire.PeekReply, self._link.call(request))
            found += map(PeekedMessage.of, reply.messages)
            after = reply.after
            if not after or len(found) >= limit:
                return found

    def browse(self, *, state: str = "any", page: int = 100) -> Iterator[PeekedMessage]:
        """All messages, page by page, without receiving them."""
        after = b""
        while True:
            reply = cast(wire.PeekReply, self._link.call(wire.PeekMessages(self.name, state, page, after)))
            for message in reply.messages:
                yield PeekedMessage.of(message)
            after = reply.after
            if not after:
                return

    def describe(self) -> QueueInfo:
        """Settings, tags and exact counts."""
        return QueueInfo.of(cast(wire.QueueDescription, self._link.call(wire.QueueName(self.name), "DescribeQueue")))

    # Changing the queue

    def set(self, **settings: Unpack[QueueSettings]) -> QueueInfo:
        """Changes settings, named as in Client.create_queue; None resets one to its default."""
        request = wire.SetQueueSettings(self.name, settings_to_wire(cast(Mapping[str, Any], settings)))
        return QueueInfo.of(cast(wire.QueueDescription, self._link.call(request)))

    def tag(self, **tags: str) -> None:
        """Adds or replaces tags."""
        self._link.call(wire.TagQueue(self.name, [wire.Tag(key, value) for key, value in tags.items()]))

    def untag(self, *keys: str) -> None:
        """Removes tags."""
        self._link.call(wire.UntagQueue(self.name, list(keys)))

    def purge(self) -> int:
        """Deletes all messages, also those in flight and delayed; returns how many."""
        return cast(wire.PurgeReply, self._link.call(wire.QueueName(self.name), "PurgeQueue")).messages

    def delete_queue(self) -> None:
        """Deletes the queue with everything in it."""
        self._link.call(wire.QueueName(self.name), "DeleteQueue")

    # Dead letters

    def dead_letter_sources(self) -> list[str]:
        """The queues that use this one as their dead-letter queue."""
        return cast(wire.QueueNames, self._link.call(wire.QueueName(self.name), "ListDeadLetterSources")).queues

    def redrive(self, destination: str = "", *, messages_per_second: int = 0) -> MoveTask:
        """Moves this dead-letter queue's visible messages to `destination`, or each to the queue it came from.

        Returns at once; the task goes on in the broker, also across restarts: see MoveTask."""
        request = wire.StartMoveTask(self.name, getattr(destination, "name", destination), messages_per_second)
        return MoveTask(self, cast(wire.MoveTask, self._link.call(request)))

    def move_tasks(self, limit: int = 10) -> list[MoveTask]:
        """The newest move tasks from this queue, newest first."""
        reply = cast(wire.MoveTasks, self._link.call(wire.ListMoveTasks(self.name, limit)))
        return [MoveTask(self, task) for task in reply.tasks]


class MoveTask:
    """A running or ended move of dead-lettered messages. `status` is as of the last look."""

    def __init__(self, queue: Queue, status: wire.MoveTask) -> None:
        self._queue = queue
        self.status = status

    @property
    def is_running(self) -> bool:
        """Whether it was still going on at the last look."""
        return self.status.state in ("RUNNING", "CANCELLING")

    @property
    def moved(self) -> int:
        """Messages moved so far."""
        return self.status.moved

    def refresh(self) -> None:
        """Looks again."""
        for task in self._queue.move_tasks():
            if task.status.task_id == self.status.task_id:
                self.status = task.status

    def wait(self, poll_seconds: float = 0.1) -> int:
        """Waits until it has ended; returns how many messages were moved. A failed task raises PenstockError with the reason."""
        while self.is_running:
            backend.sleep(poll_seconds)
            self.refresh()
        if self.status.state == "FAILED":
            raise PenstockError(f"move task {self.status.task_id} failed: {self.status.failure}")
        return self.status.moved

    def cancel(self) -> None:
        """Stops it; what was moved stays moved."""
        self.status = cast(wire.MoveTask, self._queue._link.call(wire.MoveTaskId(self.status.task_id)))
