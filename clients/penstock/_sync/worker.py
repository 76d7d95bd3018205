# Generated from clients/penstock/_async/worker.py by tools/generate_blocking_client.py (make sync-client): edit that file.
"""A worker: takes messages from a queue, calls a handler, and sees to everything around it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

from penstock import _backend_threads as backend
from penstock._sync.consumer import Consumer
from penstock._sync.queue import Message, Queue, visibility_ms
from penstock.backoff import Backoff
from penstock.buffers import GroupBuffer
from penstock.errors import PenstockError

log = logging.getLogger("penstock.worker")

LOOK_SECONDS = 0.1
"""How often `run` looks whether it was stopped: `stop` only sets a flag, so that signal handlers and threads may call it."""


@dataclasses.dataclass(slots=True, eq=False)
class Held:
    """A message that a hand works on: its newest delivery, and how it ended, once it did (the broker is being told then)."""

    message: Message
    succeeded: bool | None = None


class Supply(Consumer):
    """A worker's consumer, which knows what is in hand.

    A message may come again while a hand works on it: its connection was lost, and the broker has released it. Then its newer
    delivery takes the place of the older one, so that it is not worked on twice and can be deleted in the end. Of a FIFO queue
    one message of a group is in hand at a time."""

    def __init__(self, queue: Queue, credit: int, visibility_ms: int, release_on_close: bool) -> None:
        super().__init__(queue, Message, credit, visibility_ms, release_on_close)
        self._held: dict[tuple[int, int], Held] = {}
        self._groups: GroupBuffer[Message] | None = None
        if queue.name.endswith(".fifo"):
            self._buffer = self._groups = GroupBuffer()

    def _take_out(self) -> Message | None:
        message = super()._take_out()
        if message is not None:
            self._held[message.place] = Held(message)
        return message

    def _take_in(self, messages: list[Message]) -> None:
        fresh_ones = []
        for message in messages:
            held = self._held.get(message.place)
            if held is None or held.succeeded is False:
                fresh_ones.append(message)
            else:
                held.message = message
        super()._take_in(fresh_ones)

    def held(self, message: Message) -> Held:
        """What is known of a message that was taken out."""
        return self._held[message.place]

    @property
    def is_ordered(self) -> bool:
        """Whether messages of a group come one after the other."""
        return self._groups is not None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in hand."""
        return not self._held

    @property
    def kept(self) -> list[Message]:
        """What is ours and shall stay so: in hand and not ended, or in the buffer."""
        with self._link.mutex:
            return [*(held.message for held in self._held.values() if held.succeeded is None), *self._buffer]

    def is_in_hand(self, message: Message) -> bool:
        """Whether this very delivery is being worked on."""
        with self._link.mutex:
            held = self._held.get(message.place)
            return held is not None and held.message is message and held.succeeded is None

    def give_back_behind(self, message: Message) -> None:
        """Gives back what waits here behind a message of its group that comes again: it has to come after it."""
        if self._groups is not None:
            with self._link.mutex:
                self._give_back(self._groups.take_line(message.group))
                self._give_credit()

    def let_go(self, held: Held) -> None:
        """A hand is done with it; the next one of its group may be taken out."""
        message = held.message
        with self._link.mutex:
            if self._held.get(message.place) is held:
                del self._held[message.place]
            if self._groups is not None:
                self._groups.let_go(message.group)
                self._wake(self._groups.available)


class _Shift:
    """One `run`: who works in it, and how it ended. A hand that outlives its run (a thread) touches no later one."""

    def __init__(self, supply: Supply, hands: int) -> None:
        self.supply = supply
        self.hands = hands
        self.done = backend.Event()
        self.problems: list[PenstockError] = []


class Worker:
    """Works off a queue: `concurrency` messages at a time are handed to `handler`; one that returns is deleted, one that raises
    is released and comes back after `backoff`, until the queue's dead-letter setting takes it away.

    While a message is here, its visibility is renewed at half of `visibility_timeout`, so work may take as long as it takes
    (`renew=False`: it must be done within that time). `credit`: how many messages are fetched ahead. When this process dies,
    the broker releases what it had at once (`release_on_disconnect=False`: after `visibility_timeout`; then also a lost
    connection or the end of `run` releases nothing that is in hand or rests after a failure).

    Of a FIFO queue one message of a group is in hand at a time, and a message that failed or was lost comes again before those
    behind it: they go back as well, unless it was its last try before the dead-letter queue.

        >>> def handle(message):
        ...     print(message.text)
        >>> worker = Worker(queue, handle, concurrency=5)
        >>> worker.run(idle_seconds=0.2)
        hello
        >>> worker.processed
        1

    `run` ends after `stop`, or after `idle_seconds` with a connection and without a message: what is in hand is finished, for
    at most `grace` seconds, the rest goes back to the queue. `processed`, `failed` and `lost` (messages whose time ran out, or
    whose end could not be told to the broker) count.
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
        release_on_disconnect: bool = True,
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
        self._release = release_on_disconnect
        self._mutex = backend.Mutex()
        self._stopping = False
        self.processed = 0
        self.failed = 0
        self.lost = 0

    def stop(self) -> None:
        """Has `run` end gracefully. May be called from a handler, a signal handler or another thread, before or while it runs."""
        self._stopping = True

    def run(self, idle_seconds: float | None = None) -> None:
        """Works until stopped (or idle for `idle_seconds`). Raises what the consumer raises (QueueDoesNotExist …).

        When it is cancelled, or `grace` is over, handlers are cancelled and their messages released. (The blocking Worker
        cannot end a thread: it leaves it behind, and its message goes back to the queue nevertheless.)"""
        supply = Supply(self._queue, self._credit, visibility_ms(self._visibility_timeout), self._release)
        with backend.Tasks() as tasks, supply:
            shift = _Shift(supply, self._concurrency)
            for _ in range(self._concurrency):
                tasks.spawn(self._loop, shift, idle_seconds)
            if self._renew:
                tasks.spawn(self._keep_visible, shift)
            while not self._stopping and not shift.done.is_set():
                shift.done.wait_for(LOOK_SECONDS)
            supply.stop()
            if not shift.done.wait_for(self._grace):
                log.warning("%d hands did not end within %.0f seconds", shift.hands, self._grace)
                shift.done.set()
                tasks.cancel()
        self._stopping = False
        if shift.problems:
            raise shift.problems[0]

    def _loop(self, shift: _Shift, idle_seconds: float | None) -> None:
        """One of the hands."""
        supply = shift.supply
        idle_since = backend.monotonic()
        patience = 1.0 if idle_seconds is None else min(1.0, idle_seconds)
        try:
            while not self._stopping and not supply.is_closed:
                message = supply.next(patience)
                if message is not None:
                    self._handle(supply, message)
                    idle_since = backend.monotonic()
                elif not supply.is_open:
                    idle_since = backend.monotonic()  # there may be messages that nobody can tell us of
                elif idle_seconds is not None and backend.monotonic() - idle_since >= idle_seconds and supply.is_idle:
                    return
        except PenstockError as error:
            shift.problems.append(error)
        finally:
            with self._mutex:
                shift.hands -= 1
                if not shift.hands:
                    shift.done.set()

    def _handle(self, supply: Supply, message: Message) -> None:
        held = supply.held(message)
        try:
            try:
                self._handler(message)
            except Exception:
                log.exception("handler failed for message %s, received %d times", message.message_id, message.receive_count)
                held.succeeded = False
                self._give_back(supply, held)
            else:
                held.succeeded = True
                self._delete(supply, held)
        except BaseException:
            if held.succeeded is None:
                supply.give_back_behind(message)
                self._queue.release_soon([held.message])
            raise
        finally:
            supply.let_go(held)

    def _delete(self, supply: Supply, held: Held) -> None:
        """The message was worked off. Its delivery is deleted; if a newer one came in between, that one."""
        message = None
        while message is not held.message:
            message = held.message
            try:
                message.delete()
            except PenstockError as error:
                if message is held.message:
                    self._lost(message, error)
                    supply.give_back_behind(message)
            else:
                self._count(processed=1)
                return

    def _give_back(self, supply: Supply, held: Held) -> None:
        """The message failed: it comes again after a pause, and those behind it after it."""
        message = held.message
        if supply.is_ordered and not self._was_last_try(message):
            supply.give_back_behind(message)
        try:
            message.release(self._backoff.pause(message.receive_count))
        except PenstockError as error:
            self._lost(message, error)
            supply.give_back_behind(message)
        else:
            self._count(failed=1)

    def _lost(self, message: Message, error: PenstockError) -> None:
        log.warning("message %s is not ours any more: %s", message.message_id, error)
        self._count(lost=1)

    def _was_last_try(self, message: Message) -> bool:
        """Whether a message that failed goes to the dead-letter queue now. Then those behind it go on: sent back, they would be
        received once more for each of its failures, and follow it there."""
        try:
            settings = (self._queue.describe()).settings
        except PenstockError:
            return False
        return bool(settings["dead_letter_queue"]) and message.receive_count >= settings["max_receive_count"]

    def _count(self, *, processed: int = 0, failed: int = 0, lost: int = 0) -> None:
        with self._mutex:
            self.processed += processed
            self.failed += failed
            self.lost += lost

    def _keep_visible(self, shift: _Shift) -> None:
        """Renews what is in hand and what waits for a hand, at half of the visibility timeout."""
        supply = shift.supply
        while not shift.done.wait_for(self._visibility_timeout / 2):
            kept = supply.kept
            for message, error in zip(kept, self._queue.renew(kept, self._visibility_timeout), strict=True):
                if error is None:
                    continue
                if supply.discard(message):
                    self._count(lost=1)
                    supply.give_back_behind(message)
                elif not supply.is_in_hand(message):
                    continue
                log.warning("visibility of message %s not renewed: %s", message.message_id, error)
