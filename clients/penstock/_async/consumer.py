"""A consumer: messages that the broker pushes, with credit."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING

from penstock_protocol import codec
from penstock_protocol import queue_messages as wire
from penstock_protocol.session_messages import Cancel

from penstock import _backend_async as backend
from penstock._async.link import Request, operation_of
from penstock.errors import ClientClosed, PenstockError

if TYPE_CHECKING:
    from penstock._async.queue import AsyncMessage, AsyncQueue


class AsyncConsumer:
    """Made by AsyncQueue.consume. Iterating gives messages for ever; leaving the block cancels the consumer.

    Credit is given back in lumps as messages are taken out of the buffer. After a lost connection the consumer is opened
    again; what lay in the buffer is dropped when the broker released it, and delivered again."""

    def __init__(
        self,
        queue: AsyncQueue,
        message_type: type[AsyncMessage],
        credit: int,
        visibility_timeout: float | None,
        release_on_close: bool,
    ) -> None:
        self._queue = queue
        self._link = queue._link
        self._message_type = message_type
        self._credit = credit
        self._visibility_ms = None if visibility_timeout is None else round(visibility_timeout * 1000)
        self._release = release_on_close
        self._buffer: deque[AsyncMessage] = deque()
        self._arrived = backend.Event()
        self._request: Request | None = None
        self._owed = 0
        self._error: PenstockError | None = None
        self._closed = False

    async def __aenter__(self) -> AsyncConsumer:
        self._open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __aiter__(self) -> AsyncConsumer:
        if self._request is None and not self._closed:
            self._open()
        return self

    async def __anext__(self) -> AsyncMessage:
        message = await self.next()
        if message is None:
            raise StopAsyncIteration
        return message

    async def next(self, seconds: float | None = None) -> AsyncMessage | None:
        """The next message; None when the consumer was closed, or none came within `seconds`. Raises what ended the
        consumer (QueueDoesNotExist …). After a cancellation no message is lost: it stays in the buffer."""
        if self._request is None and not self._closed:
            self._open()
        deadline = None if seconds is None else backend.monotonic() + seconds
        while True:
            with self._link.mutex:
                if self._buffer:
                    message = self._buffer.popleft()
                    self._owed += 1
                    if self._owed * 2 >= self._credit or not self._buffer:
                        self._give_credit()
                    return message
                if self._error is not None:
                    raise type(self._error)(str(self._error))
                if self._closed:
                    return None
                self._arrived = arrived = backend.Event()
            if deadline is None:
                await arrived.wait()
            elif not await arrived.wait_for(max(0.0, deadline - backend.monotonic())):
                return None

    @property
    def buffered(self) -> int:
        """Messages that were pushed and not taken out yet."""
        return len(self._buffer)

    def _give_credit(self) -> None:
        if self._request is not None and self._request.correlation and self._owed:
            self._link.tell(wire.Credit(self._request.correlation, self._owed))
            self._owed = 0

    def _open(self) -> None:
        with self._link.mutex:
            self._owed = 0
            message = wire.Consume(self._queue.name, max(1, self._credit - len(self._buffer)), self._visibility_ms, self._release)
            request = Request(operation_of(message, None), message, self._ended, float("inf"), resend=False, on_push=self._pushed)
            self._request = request
        self._link.submit(request)

    def _pushed(self, message: codec.Message) -> None:
        assert isinstance(message, wire.ReceiveReply)
        with self._link.mutex:
            if self._closed:
                return
            for delivery in message.deliveries:
                self._buffer.extend(
                    [self._message_type(self._queue, message.log, delivery, place) for place in range(len(delivery.bodies))]
                )
            self._arrived.set()

    def _ended(self, reply: codec.Message | None, error: PenstockError | None) -> None:
        with self._link.mutex:
            if self._closed:
                return
            if error is not None and not isinstance(error, ClientClosed) and (error.retryable or error.code == 901):
                if self._release:
                    self._buffer.clear()
                again = True
            else:
                self._error = error
                self._closed = error is None
                again = False
                self._arrived.set()
        if again:
            self._link.after_pause(self._reopen)

    def _reopen(self) -> None:
        if not self._closed:
            self._open()

    def close(self) -> None:
        """Ends it. What is in the buffer becomes visible again at the broker; safe to call twice."""
        with self._link.mutex:
            if self._closed:
                return
            self._closed = True
            self._arrived.set()
            left = list(self._buffer)
            self._buffer.clear()
            request = self._request
        if request is not None:
            self._link.withdraw(request)
            if request.correlation:
                self._link.tell(Cancel(request.correlation))
        if left and not self._release:
            self._link.release_handles(self._queue.name, [message.handle for message in left])
