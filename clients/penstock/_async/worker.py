"""A worker: takes messages from a queue, calls a handler, and sees to everything around it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from penstock import _backend_async as backend
from penstock._async.consumer import AsyncConsumer
from penstock._async.queue import AsyncMessage, AsyncQueue
from penstock.backoff import Backoff
from penstock.errors import PenstockError

log = logging.getLogger("penstock.worker")

LOOK_SECONDS = 0.1
"""How often `run` looks whether it was stopped: `stop` only sets a flag, so that signal handlers and threads may call it."""


class _Shift:
    """One `run`: who works in it, and how it ended. A hand that outlives its run (a thread) touches no later one."""

    def __init__(self, consumer: AsyncConsumer, hands: int) -> None:
        self.consumer = consumer
        self.hands = hands
        self.done = backend.Event()
        self.problems: list[PenstockError] = []


class AsyncWorker:
    """Works off a queue: `concurrency` messages at a time are handed to `handler`; one that returns is deleted, one that raises
    is released and comes back after `backoff`, until the queue's dead-letter setting takes it away.

    While a message is here, its visibility is renewed at half of `visibility_timeout`, so work may take as long as it takes
    (`renew=False`: it must be done within that time). `credit`: how many messages are fetched ahead.

        >>> async def handle(message):
        ...     print(message.text)
        >>> worker = AsyncWorker(queue, handle, concurrency=5)
        >>> await worker.run(idle_seconds=0.2)
        hello
        >>> worker.processed
        1

    `run` ends after `stop`, or after `idle_seconds` without a message: what is in hand is finished, for at most `grace` seconds,
    the rest goes back to the queue. `processed`, `failed` and `lost` (messages whose time ran out, or whose end could not be
    told to the broker) count.
    """

    def __init__(
        self,
        queue: AsyncQueue,
        handler: Callable[[AsyncMessage], Awaitable[Any]],
        *,
        concurrency: int = 10,
        visibility_timeout: float = 30.0,
        backoff: Backoff | None = None,
        grace: float = 30.0,
        renew: bool = True,
        credit: int | None = None,
    ) -> None:
        if concurrency < 1:
            raise ValueError("concurrency must be at least 1")
        if visibility_timeout <= 0:
            raise ValueError("visibility_timeout must be more than 0 seconds")
        self._queue = queue
        self._handler = handler
        self._concurrency = concurrency
        self._visibility_timeout = visibility_timeout
        self._backoff = backoff or Backoff()
        self._grace = grace
        self._renew = renew
        self._credit = credit if credit is not None else max(2 * concurrency, 10)
        self._mutex = backend.Mutex()
        self._in_hand: set[AsyncMessage] = set()
        self._stopping = False
        self.processed = 0
        self.failed = 0
        self.lost = 0

    def stop(self) -> None:
        """Has `run` end gracefully. May be called from a handler, a signal handler or another thread, before or while it runs."""
        self._stopping = True

    async def run(self, idle_seconds: float | None = None) -> None:
        """Works until stopped (or idle for `idle_seconds`). Raises what the consumer raises (QueueDoesNotExist …).

        When it is cancelled, or `grace` is over, handlers are cancelled and their messages released. (The blocking Worker
        cannot end a thread: it leaves it behind, and its message comes back after its visibility timeout.)"""
        async with (
            backend.Tasks() as tasks,
            self._queue.consume(
                credit=self._credit, visibility_timeout=self._visibility_timeout, release_on_close=False
            ) as consumer,
        ):
            shift = _Shift(consumer, self._concurrency)
            for _ in range(self._concurrency):
                tasks.spawn(self._loop, shift, idle_seconds)
            if self._renew:
                tasks.spawn(self._keep_visible, shift)
            while not self._stopping and not shift.done.is_set():
                await shift.done.wait_for(LOOK_SECONDS)
            consumer.close()
            if not await shift.done.wait_for(self._grace):
                log.warning("%d handlers did not end within %.0f seconds", len(self._in_hand), self._grace)
                shift.done.set()
                tasks.cancel()
        self._stopping = False
        if shift.problems:
            raise shift.problems[0]

    async def _loop(self, shift: _Shift, idle_seconds: float | None) -> None:
        """One of the hands."""
        consumer = shift.consumer
        idle_since = backend.monotonic()
        patience = 1.0 if idle_seconds is None else min(1.0, idle_seconds)
        try:
            while not self._stopping and not consumer.is_closed:
                message = await consumer.next(patience)
                if message is not None:
                    await self._handle(message)
                    idle_since = backend.monotonic()
                elif idle_seconds is not None and backend.monotonic() - idle_since >= idle_seconds and not self._in_hand:
                    return
        except PenstockError as error:
            shift.problems.append(error)
        finally:
            with self._mutex:
                shift.hands -= 1
                if not shift.hands:
                    shift.done.set()

    async def _handle(self, message: AsyncMessage) -> None:
        with self._mutex:
            self._in_hand.add(message)
        try:
            await self._handler(message)
        except Exception:
            log.exception("handler failed for message %s, received %d times", message.message_id, message.receive_count)
            succeeded = False
        except BaseException:
            self._queue.release_soon([message])
            raise
        else:
            succeeded = True
        finally:
            with self._mutex:
                self._in_hand.discard(message)
        try:
            if succeeded:
                await message.delete()
            else:
                await message.release(self._backoff.pause(message.receive_count))
        except PenstockError as error:
            log.warning("message %s is not ours any more: %s", message.message_id, error)
            self._count(lost=1)
        else:
            self._count(processed=int(succeeded), failed=int(not succeeded))

    def _count(self, *, processed: int = 0, failed: int = 0, lost: int = 0) -> None:
        with self._mutex:
            self.processed += processed
            self.failed += failed
            self.lost += lost

    async def _keep_visible(self, shift: _Shift) -> None:
        """Renews what is in hand and what waits for a hand, at half of the visibility timeout."""
        consumer = shift.consumer
        while not await shift.done.wait_for(self._visibility_timeout / 2):
            with self._mutex:
                held = [*self._in_hand, *consumer.buffered]
            for message, error in zip(held, await self._queue.renew(held, self._visibility_timeout), strict=True):
                if error is None:
                    continue
                if consumer.discard(message):
                    self._count(lost=1)
                elif message not in self._in_hand:
                    continue
                log.warning("visibility of message %s not renewed: %s", message.message_id, error)
