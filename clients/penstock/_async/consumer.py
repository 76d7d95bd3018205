"""A consumer: messages that the broker pushes, with credit."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from penstock_protocol import codec
from penstock_protocol import queue_messages as wire

from penstock import _backend_async as backend
from penstock._async.link import Request, operation_of
from penstock.buffers import Buffer
from penstock.errors import ClientClosed, ConnectionLost, NotConnected, PenstockError, fresh
from penstock.forks import FORKED
from penstock.types import size_bytes

if TYPE_CHECKING:
    from penstock._async.queue import AsyncMessage, AsyncQueue


BUFFER_BYTES: Final = 32 * 1_048_576
"""How much may lie in the buffer, by the sizes seen so far: large messages are fetched ahead in smaller numbers."""

LARGEST_MESSAGE_BYTES: Final = 1_048_576
"""What a message is taken to hold before one was seen."""


class AsyncConsumer:
    """Made by AsyncQueue.consume. Iterating gives messages for ever; leaving the block ends the consumer.

    Credit: the broker may have pushed at most `credit` messages that were not taken out here, and fewer when they are large:
    as many as BUFFER_BYTES holds of them, judging by those that came before. It is given back in lumps of half of it, as
    messages are taken out. After a lost connection the consumer is opened again; with `release_on_close` what lay in the
    buffer is released (a broker that crashed could not), and comes again.

    Any number of tasks may take messages out of one consumer; each message goes to one of them."""

    def __init__(
        self,
        queue: AsyncQueue,
        message_type: type[AsyncMessage],
        credit: int,
        visibility_ms: int | None,
        release_on_close: bool,
    ) -> None:
        if credit < 1:
            raise ValueError("credit must be at least 1")
        self._queue = queue
        self._link = queue._link
        self._message_type = message_type
        self._credit = credit
        self._visibility_ms = visibility_ms
        self._release = release_on_close
        self._buffer: Buffer[AsyncMessage] = Buffer()
        self._takers: deque[backend.Event] = deque()
        self._request: Request | None = None
        self._message_bytes = LARGEST_MESSAGE_BYTES
        self._window = min(credit, self._affordable())
        self._given = 0
        self._opened = False
        self._error: PenstockError | None = None
        self._stopped = False
        self._closed = False

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AsyncMessage:
        message = await self.next()
        if message is None:
            raise StopAsyncIteration
        return message

    async def next(self, seconds: float | None = None) -> AsyncMessage | None:
        """The next message; None when the consumer was closed, or none came within `seconds`. Raises what ended the
        consumer (QueueDoesNotExist, NotConnected when there never was a broker …). After a cancellation no message is lost: it
        stays in the buffer."""
        deadline = None if seconds is None else backend.monotonic() + seconds
        while True:
            with self._link.mutex:
                if self._link.is_left:
                    raise ClientClosed(FORKED)
                if self._request is None and not self._closed and self._error is None:
                    self._open()
                message = self._take_out()
                if message is not None:
                    return message
                if self._error is not None:
                    raise fresh(self._error)
                if self.is_closed:
                    return None
                arrived = backend.Event()
                self._takers.append(arrived)
            try:
                if deadline is None:
                    await arrived.wait()
                else:
                    await arrived.wait_for(max(0.0, deadline - backend.monotonic()))
            except BaseException:
                self._leave(arrived)
                raise
            with self._link.mutex:
                if arrived in self._takers:
                    self._takers.remove(arrived)
                    return None

    def _leave(self, arrived: backend.Event) -> None:
        """A taker was cancelled. If it was woken already, it wakes another in its place."""
        with self._link.mutex:
            if arrived in self._takers:
                self._takers.remove(arrived)
            elif self._buffer.available:
                self._wake(1)

    def _take_out(self) -> AsyncMessage | None:
        """The next message, if there is one to give out."""
        message = self._buffer.take()
        if message is not None:
            self._give_credit()
        return message

    def _take_in(self, messages: list[AsyncMessage]) -> None:
        """Messages were pushed."""
        self._buffer.add(messages)

    def _affordable(self) -> int:
        """How many messages the buffer has room for in all."""
        return max(1, BUFFER_BYTES // max(1, self._message_bytes))

    def _room(self) -> int:
        """For how many more messages there is room, beside those that the broker may push already."""
        return min(self._window - self._buffer.available, self._affordable() - len(self._buffer)) - self._given

    def _give_credit(self) -> None:
        """Lets the broker push what there is room for, if that is half of all room: called whenever there may be more of it, for
        whoever makes room and does not tell has the consumer wait for ever."""
        room = self._room()
        request = self._request
        if room > 0 and room * 2 >= self._window and request is not None and self._link.is_on_the_way(request):
            self._given += room
            self._link.tell(wire.Credit(request.correlation, room))

    def _wake(self, count: int) -> None:
        while count > 0 and self._takers:
            self._takers.popleft().set()
            count -= 1

    @property
    def is_closed(self) -> bool:
        """Whether it has ended: no message will come any more."""
        return self._closed or self._stopped

    @property
    def is_open(self) -> bool:
        """Whether the broker has been asked for messages, over a connection that stands."""
        with self._link.mutex:
            return self._request is not None and self._link.is_on_the_way(self._request)

    @property
    def buffered(self) -> list[AsyncMessage]:
        """Messages that were pushed and not taken out yet."""
        with self._link.mutex:
            return list(self._buffer)

    def discard(self, message: AsyncMessage) -> bool:
        """Takes one message out of the buffer, for it is not ours any more; whether it was there."""
        with self._link.mutex:
            if not self._buffer.remove(message):
                return False
            self._give_credit()
            return True

    def _open(self) -> None:
        """Asks for messages, as many as there is room for. The first time there must be a broker soon; later it is waited for."""
        with self._link.mutex:
            if self.is_closed or (self._request is not None and self._link.is_on_the_way(self._request)):
                return
            self._given = 0
            self._given = room = max(0, self._room())
            if not room:
                self._link.after_pause(self._open)
                return
            deadline = float("inf") if self._opened else backend.monotonic() + self._link.options.request_timeout
            message = wire.Consume(self._queue.name, room, self._visibility_ms, self._release)
            request = Request(operation_of(message), message, self._ended, deadline, False, self._pushed)
            self._request = request
            # (Whoever closes the consumer now finds the request where it can be taken back.)
            self._link.submit(request)

    def _pushed(self, message: codec.Message) -> None:
        assert isinstance(message, wire.ReceiveReply)
        queue = self._queue
        with self._link.mutex:
            if self.is_closed:
                if not (self._closed and self._release):
                    self._link.release(queue.name, message)
                return
            before = self._buffer.available
            pushed = [
                self._message_type(queue, message.log, delivery, place)
                for delivery in message.deliveries
                for place in range(len(delivery.bodies))
            ]
            if pushed:
                seen = sum(map(size_bytes, message.deliveries)) // len(pushed)
                self._message_bytes = max(seen, self._message_bytes * 7 // 8 if self._opened else 0)
                self._window = min(self._credit, self._affordable())
            self._opened = True
            self._given -= len(pushed)
            self._take_in(pushed)
            self._give_credit()
            self._wake(self._buffer.available - before)

    def _ended(self, reply: codec.Message | None, error: PenstockError | None) -> None:
        """The broker has ended the consumer, or the connection has."""
        with self._link.mutex:
            if self.is_closed:
                return
            lost = isinstance(error, ConnectionLost)
            if lost or reply is not None or (error is not None and error.retryable and not self._is_first_failure(error)):
                self._opened = self._opened or lost
                if self._release:
                    self._give_back(self._buffer.clear())
                self._link.after_pause(self._open)
            else:
                if not isinstance(error, ClientClosed):
                    self._error = error
                else:
                    self._closed = True
                self._wake(len(self._takers))

    def _is_first_failure(self, error: PenstockError) -> bool:
        return isinstance(error, NotConnected) and not self._opened

    def stop(self) -> None:
        """Has no more messages come: what lies in the buffer, or is pushed from now on, goes back to the queue. What was taken
        out stays leased until `close`, so that it can be finished; safe to call twice."""
        with self._link.mutex:
            if self.is_closed:
                return
            self._stopped = True
            self._give_back(self._buffer.clear())
            self._wake(len(self._takers))

    def close(self) -> None:
        """Ends it. What was pushed and not taken out becomes visible again at the broker; safe to call twice."""
        with self._link.mutex:
            if self._closed:
                return
            self._closed = True
            left = self._buffer.clear()
            if not self._release:
                self._give_back(left)
            request = self._request
            self._wake(len(self._takers))
            if request is not None and not self._link.withdraw(request):
                self._link.cancel(request)

    def _give_back(self, messages: list[AsyncMessage]) -> None:
        if messages:
            self._link.release_handles(self._queue.name, [message.handle for message in messages])
