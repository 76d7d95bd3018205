"""A raw client: the real protocol over a simulated connection, one request at a time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import trio
from penstock_protocol import queue_messages as q
from penstock_protocol import stream_messages as st
from penstock_protocol.codec import Message
from penstock_protocol.connection import Answer, ClientConnection
from penstock_protocol.errors import PenstockError
from penstock_protocol.frames import Kind
from penstock_protocol.operations import BY_NAME, BY_REQUEST
from penstock_protocol.session_messages import Cancel, Hello

from tests.simulation.network import BROKEN, SimulatedStream
from tests.simulation.world import World

PATIENCE_SECONDS = 40.0
"""A request is answered within that time on a connection that lives, or something hangs."""


class Link:
    """One client's connection; made anew when it broke."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.producer = name.encode().ljust(16, b".")
        self._stream: SimulatedStream | None = None
        self._connection = ClientConnection()
        self._answers: list[Answer] = []

    async def _open(self) -> SimulatedStream:
        if self._stream is not None:
            return self._stream
        stream = self.world.connect()
        self._stream, self._connection, self._answers = stream, ClientConnection(), []
        _, data = self._connection.request(BY_NAME["Hello"], Hello(self.name, self.producer))
        await stream.send_all(self._connection.preface() + data)
        (await self._next(stream)).message()
        self._connection.opened(2**24)
        return stream

    async def _next(self, stream: SimulatedStream) -> Answer:
        while not self._answers:
            data = await stream.receive_some(65536)
            if not data:
                raise EOFError
            self._answers += list(self._connection.receive_data(bytes(data)))
        return self._answers.pop(0)

    async def close(self) -> None:
        """Ends the connection; the next request makes a new one."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with contextlib.suppress(*BROKEN):
                await trio.aclose_forcefully(stream)

    async def call(self, message: Message, name: str | None = None) -> Any:
        """The reply. One of BROKEN when the connection broke, PenstockError when the broker refused."""
        operation = BY_NAME[name] if name else BY_REQUEST[type(message)]
        world = self.world
        try:
            with trio.fail_after(PATIENCE_SECONDS):
                stream = await self._open()
                correlation, data = self._connection.request(operation, message)
                if world.stormy and world.weather.limbo and world.chance.random() < world.weather.limbo:
                    self._stream = None
                    world.deliver_late(stream, data)
                    raise trio.BrokenResourceError
                await stream.send_all(data)
                while True:
                    answer = await self._next(stream)
                    if answer.correlation == correlation:
                        return answer.message()
        except trio.TooSlowError:
            if self._stream is not None and not self._stream.is_cut:
                record = world.history.begin(self.name, "alive", trio.current_time(), what=f"{operation.name} is not answered")
                record.outcome, record.error = "fail", str(message)[:200]
            await self.close()
            raise
        except BROKEN:
            await self.close()
            raise

    async def consume(
        self, request: q.Consume, seconds: float, *, gently: bool, take: Callable[[q.ReceiveReply, int], None]
    ) -> bool:
        """A consumer for that time: hands each push, and the credit it had, to `take`; gives more credit now and then.
        `gently`: it is cancelled at the end, else its connection is closed. Whether it ended in an orderly way: everything
        it was ever pushed was taken then."""
        try:
            with trio.fail_after(seconds + PATIENCE_SECONDS):
                ended = await self._consume(request, seconds, gently=gently, take=take)
        except (PenstockError, *BROKEN):
            ended = False
        if not ended:
            await self.close()
        return ended

    async def _consume(
        self, request: q.Consume, seconds: float, *, gently: bool, take: Callable[[q.ReceiveReply, int], None]
    ) -> bool:
        chance = self.world.chance
        stream = await self._open()
        correlation, data = self._connection.request(BY_NAME["Consume"], request)
        await stream.send_all(data)
        credit = request.credit
        cancelled = False
        end = trio.current_time() + seconds
        while True:
            with trio.move_on_at(end) as scope:
                answer = await self._next(stream)
            if scope.cancelled_caught:
                if not gently or cancelled:
                    return False
                cancelled, end = True, math.inf
                _, data = self._connection.request(BY_NAME["Cancel"], Cancel(correlation))
                await stream.send_all(data)
                continue
            if answer.correlation != correlation:
                continue
            message = answer.message()
            if answer.kind is not Kind.PUSH:
                self.world.marks["consumer cancelled"] += 1
                return True
            assert isinstance(message, q.ReceiveReply)
            take(message, credit)
            credit -= sum(len(delivery.bodies) for delivery in message.deliveries)
            if not cancelled and chance.random() < 0.5:
                more = chance.randint(1, 4)
                credit += more
                _, data = self._connection.request(BY_NAME["Credit"], q.Credit(correlation, more))
                await stream.send_all(data)

    async def subscribe(
        self, request: st.SubscribeToShard, take: Callable[[st.PushedRecords], None], more: Callable[[], int], seconds: float
    ) -> list[int]:
        """A subscription: hands each push to `take`, and gives the credit that `more` says, now and then. The children of the
        shard when it was read out; one of BROKEN, or PenstockError, as it ends otherwise. After that time it is cancelled."""
        try:
            return await self._subscribe(request, take, more, trio.current_time() + seconds)
        except BROKEN:
            await self.close()
            raise

    async def _subscribe(
        self, request: st.SubscribeToShard, take: Callable[[st.PushedRecords], None], more: Callable[[], int], end: float
    ) -> list[int]:
        with trio.fail_after(PATIENCE_SECONDS):
            stream = await self._open()
            correlation, data = self._connection.request(BY_NAME["SubscribeToShard"], request)
            await stream.send_all(data)
        cancelled = False
        while True:
            with trio.move_on_after(0.5) as scope:
                answer = await self._next(stream)
            if scope.cancelled_caught or answer.kind is Kind.PUSH:
                if not scope.cancelled_caught and answer.correlation == correlation:
                    take(answer.message())  # type: ignore[arg-type]
                given = 0 if cancelled else more()
                if given:
                    _, data = self._connection.request(BY_NAME["Credit"], q.Credit(correlation, given))
                    await stream.send_all(data)
                if trio.current_time() >= end and not cancelled:
                    cancelled, end = True, trio.current_time() + PATIENCE_SECONDS
                    _, data = self._connection.request(BY_NAME["Cancel"], Cancel(correlation))
                    await stream.send_all(data)
                elif cancelled and trio.current_time() >= end:
                    raise trio.TooSlowError
            elif answer.correlation == correlation:
                reply = answer.message()
                return list(reply.children)  # type: ignore[attr-defined]


async def insist(link: Link, message: Message, name: str | None = None) -> Any:
    """Asks until there is an answer; raises AssertionError after 200 tries."""
    error: BaseException | None = None
    for _ in range(200):
        try:
            return await link.call(message, name)
        except PenstockError as refused:
            if not refused.retryable:
                raise
            error = refused
        except BROKEN as broken:
            error = broken
        await trio.sleep(0.1)
    raise AssertionError(f"no answer to {message}: {error!r}")
