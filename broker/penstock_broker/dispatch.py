"""From a request to its handler, by the operation table: permission, decoding, waiting for what must be loaded, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from penstock_protocol.codec import Message
from penstock_protocol.connection import Request
from penstock_protocol.errors import Cancelled, Draining, InternalError, PenstockError
from penstock_protocol.session_messages import Empty

from penstock_broker.access import authorize
from penstock_broker.call import Answerer, Call, NotReady
from penstock_broker.lane import Lane
from penstock_broker.queue_service import QueueService
from penstock_broker.runtime import Waiter
from penstock_broker.stream_service import ReadWaiter, StreamService, Subscriber

log = structlog.get_logger()

Handler = Callable[[Call, Any], None]


class Dispatcher:
    """See the module. `start` runs a background task of the server."""

    def __init__(
        self,
        handlers: dict[str, Handler],
        queues: QueueService,
        streams: StreamService,
        lane: Lane,
        start: Callable[..., None],
    ) -> None:
        self._handlers = handlers
        self._queues = queues
        self._streams = streams
        self._lane = lane
        self._start = start
        self.draining = False

    def dispatch(self, call: Call, request: Request) -> None:
        """Has the request handled; whatever comes of it answers the call."""
        try:
            authorize(call.caller.role, call.operation)
            if self.draining:
                raise Draining()
            message = request.message()
        except PenstockError as error:
            call.fail(error)
            return
        self._handle(call, message)

    def _handle(self, call: Call, message: Message) -> None:
        try:
            self._handlers[call.operation.name](call, message)
        except NotReady as wait:
            call.preparing = True
            self._start(self._handle_later, call, message, wait)
        except PenstockError as error:
            call.fail(error)
        except Exception:
            log.exception("request failed", operation=call.operation.name)
            self._lane.distrust()
            call.fail(InternalError())

    async def _handle_later(self, call: Call, message: Message, wait: NotReady) -> None:
        try:
            await wait.prepare()
        except PenstockError as error:
            call.fail(error)
            return
        call.preparing = False
        if call.answered:
            return
        if self.draining and call.operation.waits:
            call.fail(Draining())
        else:
            self._handle(call, message)

    async def wait_room(self) -> None:
        """Returns when the commit lane takes more."""
        if not self._lane.has_room:
            await self._lane.wait_room()

    def cancel(self, call: Call) -> None:
        """The client wants no more of a waiting request."""
        if call.waiter is not None:
            self._end(call.waiter)
        elif call.preparing and call.operation.waits:
            # It would only begin to wait once its queue is loaded.
            if call.operation.reply is Empty:
                call.reply(Empty())
            else:
                call.fail(Cancelled())

    def credit(self, call: Call, count: int) -> None:
        """The client gives a consumer or a subscription credit."""
        if isinstance(call.waiter, Waiter):
            self._queues.credit(call.waiter, count)
        elif isinstance(call.waiter, Subscriber):
            self._streams.consumers.credit(call.waiter, count)

    def room(self, call: Call) -> None:
        """The connection of a parked call has room again."""
        if isinstance(call.waiter, Waiter):
            self._queues.unpark(call.waiter)
        elif isinstance(call.waiter, Subscriber):
            self._streams.consumers.unpark(call.waiter)

    def drain(self, call: Call) -> None:
        """Ends what waits. What was served already is answered when its commit is durable."""
        if call.waiter is not None:
            self._end(call.waiter, Draining())

    def gone(self, call: Call) -> None:
        """The client's connection is gone: nothing waits on its behalf any more."""
        call.answered = True
        if call.waiter is not None:
            self._end(call.waiter)

    def _end(self, waiter: Waiter | ReadWaiter | Subscriber, error: PenstockError | None = None) -> None:
        if isinstance(waiter, ReadWaiter):
            self._streams.end_waiter(waiter, error)
        elif isinstance(waiter, Subscriber):
            self._streams.consumers.end(waiter, error or Cancelled())
        else:
            self._queues.end_waiter(waiter, error)

    def ended(self, session: Answerer) -> None:
        """The connection is gone, and all its calls with it."""
        self._queues.session_ended(session)
