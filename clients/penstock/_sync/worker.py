# Generated from clients/penstock/_async/worker.py by tools/generate_blocking_client.py (make sync-client): edit that file.
"""A worker: takes messages from a queue, calls a handler, and sees to everything around it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from penstock import _backend_threads as backend
from penstock._sync.queue import Message, Queue
from penstock.backoff import Backoff
from penstock.errors import PenstockError

log = logging.getLogger("penstock.worker")


class Worker:
    """Works off a queue: `concurrency` messages at a time are handed to `handler`; one that returns is deleted, one that raises
    is released and comes back after `backoff`, until the queue's dead-letter setting takes it away.

    While a handler runs, its message's visibility is renewed at half of `visibility_timeout`, so work may take as long as
    it takes.

        >>> def handle(message):
        ...     print(message.text)
        >>> worker = Worker(queue, handle, concurrency=5)
        >>> worker.run(idle_seconds=0.2)

    `run` ends after `stop`, or after `idle_seconds` without a message: what is in hand is finished, for at most `grace` seconds,
    the rest goes back to the queue. `processed`, `failed` and `lost` (messages whose time ran out) count.
    """

    def __init__(
        self,
        queue: Queue,
        handler: Callable[[Message], Any],
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
        self._queue = queue
        self._handler = handler
        self._concurrency = concurrency
        self._visibility_timeout = visibility_timeout
        self._backoff = backoff or Backoff()
        self._grace = grace
        self._renew = renew
        self._credit = credit if credit is not None else max(2 * concurrency, 10)
        self._mutex = backend.Mutex()
        self._in_hand: dict[int, Message] = {}
        self._next_hand = 0
        self._stopping = backend.Event()
        self._running = 0
        self._done = backend.Event()
        self.processed = 0
        self.failed = 0
        self.lost = 0

    def stop(self) -> None:
        """Has `run` end gracefully. May be called from a handler, a signal handler or another thread."""
        self._stopping.set()

    def run(self, idle_seconds: float | None = None) -> None:
        """Works until stopped (or idle for `idle_seconds`). Raises what the consumer raises (QueueDoesNotExist …)."""
        self._running = self._concurrency
        self._done = backend.Event()
        with (
            backend.Tasks() as tasks,
            self._queue.consume(
                credit=self._credit, visibility_timeout=self._visibility_timeout, release_on_close=False
            ) as consumer,
        ):
            problems: list[PenstockError] = []
            for _ in range(self._concurrency):
                tasks.spawn(self._loop, consumer, idle_seconds, problems)
            if self._renew:
                tasks.spawn(self._keep_visible)
            while not self._stopping.is_set() and not self._done.is_set():
                self._done.wait_for(0.1)
            self._stopping.set()
            consumer.close()
            if not self._done.wait_for(self._grace):
                log.warning("%d handlers did not end within %.0f seconds", len(self._in_hand), self._grace)
                tasks.cancel()
        if problems:
            raise problems[0]

    def _loop(self, consumer: Any, idle_seconds: float | None, problems: list[PenstockError]) -> None:
        idle = 0.0
        try:
            while not self._stopping.is_set():
                step = 0.25 if idle_seconds is None else min(0.25, idle_seconds)
                message = consumer.next(step)
                if message is None:
                    idle += step
                    if idle_seconds is not None and idle >= idle_seconds and not self._in_hand:
                        return
                    continue
                idle = 0.0
                self._handle(message)
        except PenstockError as error:
            problems.append(error)
        finally:
            with self._mutex:
                self._running -= 1
                if not self._running:
                    self._done.set()

    def _handle(self, message: Message) -> None:
        with self._mutex:
            hand = self._next_hand
            self._next_hand += 1
            self._in_hand[hand] = message
        try:
            self._handler(message)
        except Exception:
            log.exception("handler failed for message %s, received %d times", message.message_id, message.receive_count)
            failed = True
        else:
            failed = False
        finally:
            with self._mutex:
                self._in_hand.pop(hand, None)
        try:
            if failed:
                message.release(self._backoff.pause(message.receive_count))
            else:
                message.delete()
        except PenstockError as error:
            log.warning("message %s is not ours any more: %s", message.message_id, error)
            with self._mutex:
                self.lost += 1
            return
        with self._mutex:
            if failed:
                self.failed += 1
            else:
                self.processed += 1

    def _keep_visible(self) -> None:
        """Renews what is in hand, at half of the visibility timeout."""
        while not self._done.is_set():
            if self._done.wait_for(self._visibility_timeout / 2):
                return
            with self._mutex:
                held = list(self._in_hand.values())
            for message in held:
                try:
                    self._queue.change_visibility(message, self._visibility_timeout)
                except PenstockError as error:
                    log.warning("visibility of message %s not renewed: %s", message.message_id, error)
