"""Registered consumers of a stream: the broker pushes records to them, each subscription with credit of its own.

A subscription is a reader whose cursors do not ask: each has an open SubscribeToShard request. Where it is, it knows itself, by
the pushes that came, so after a lost connection it subscribes again from there.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Final, Self

from penstock_protocol import codec
from penstock_protocol import queue_messages as queues
from penstock_protocol import stream_messages as wire

from penstock import _backend_async as backend
from penstock._async.link import AsyncLink, Request, operation_of
from penstock._async.reader import AsyncReading, Cursor, Start
from penstock.errors import PenstockError
from penstock.records import Record, RecordBatch
from penstock.types import StreamConsumerInfo

BUFFER_BYTES: Final = 32 * 1_048_576
"""What may lie in a subscription, by the sizes seen so far, over all its shards: large records are fetched ahead in smaller
numbers. Batches come whole, so there may be one more of each shard."""

LARGEST_RECORD_BYTES: Final = 1_048_576
"""What a record is taken to hold before one was seen."""

MAX_CREDIT: Final = 100_000


class AsyncStreamConsumer:
    """A registered consumer of a stream. Made by AsyncStream.register_consumer; its subscriptions are made here."""

    def __init__(self, link: AsyncLink, info: StreamConsumerInfo) -> None:
        self._link = link
        self.info = info

    @property
    def name(self) -> str:
        """Its name, one of its own in the stream."""
        return self.info.name

    def __repr__(self) -> str:
        return f"<StreamConsumer {self.name!r} of {self.info.stream!r}>"

    def subscribe(
        self, shard: int | None = None, start: Start = "latest", *, credit: int = 10_000, deaggregate: bool = True
    ) -> AsyncSubscription:
        """Has records pushed as they come, of one shard or of all (then it goes on with the children of shards that are split or
        merged, each when its parents were read out). `start`: "trim_horizon" (the oldest record), "latest" (what comes from now
        on), a datetime, or, in one shard, ("at", n) and ("after", n) with a sequence number.

        `credit` (1 to 100,000): how many records of a shard may have come here that were not taken out, but for the rest of a
        batch; fewer when they are large. A consumer has one subscription to a shard at a time: a new one, also of another
        process, ends the one before with ResourceInUse. `deaggregate` as in AsyncStream.read.

            >>> stream = await client.create_stream("clicks")
            >>> consumer = await stream.register_consumer("audit")
            >>> sent = await stream.put("a click", "visitor 1")
            >>> async with consumer.subscribe(0, ("at", sent.sequence)) as records:
            ...     async for record in records:
            ...         print(record.key, record.text)
            ...         break
            visitor 1 a click
        """
        return AsyncSubscription(self._link, self.info.stream, self.name, shard, start, credit, deaggregate)


class AsyncSubscription(AsyncReading):
    """Made by AsyncStreamConsumer.subscribe. Iterating gives Record after Record, `next` the same as batches; `async with` ends
    it. It begins at the first look.

    It ends by itself when a single shard is closed and read out. Raises StreamConsumerDoesNotExist when the consumer was
    deregistered, PositionTrimmed when records aged out before they were pushed, ResourceInUse when another took over. Any number
    of tasks may take records out; each goes to one of them. After a cancellation none is lost."""

    def __init__(
        self, link: AsyncLink, stream: str, consumer: str, shard: int | None, start: Start, credit: int, deaggregate: bool
    ) -> None:
        if not 1 <= credit <= MAX_CREDIT:
            raise ValueError(f"credit = {credit}: it must be from 1 to {MAX_CREDIT}")
        super().__init__(link, stream, shard, start, 0, 0, None, deaggregate)
        self._consumer = consumer
        self._credit = credit
        self._record_bytes = LARGEST_RECORD_BYTES
        self._has_seen = False
        self._given: Counter[int] = Counter()
        """By shard: how many records the broker may push now."""
        self._held: Counter[int] = Counter()
        """By shard: how many came and were not taken out."""
        self._opened: deque[Record] = deque()
        """The rest of the batch that was taken out last."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record:
        while True:
            with self._link.mutex:
                if self._opened and not self._closed:
                    return self._opened.popleft()
            batch = await self.next()
            if batch is None:
                raise StopAsyncIteration
            with self._link.mutex:
                self._opened.extend(batch)

    @property
    def positions(self) -> dict[int, int]:
        """By shard, the sequence number behind the last record that was taken out: `("at", position)` goes on there."""
        with self._link.mutex:
            found = super().positions
            for record in reversed(self._opened):
                found[record.shard] = record.sequence
            return found

    # Credit

    def _window(self) -> int:
        """How many records of a shard may be here."""
        affordable = BUFFER_BYTES // max(1, len(self._cursors)) // max(1, self._record_bytes)
        return max(1, min(self._credit, affordable))

    def _give_credit(self, cursor: Cursor) -> None:
        """Lets the broker push what there is room for, if that is half of all room."""
        window = self._window()
        room = window - self._held[cursor.shard] - self._given[cursor.shard]
        request = cursor.request
        if room > 0 and room * 2 >= window and request is not None and self._link.is_on_the_way(request):
            self._given[cursor.shard] += room
            self._link.tell(queues.Credit(request.correlation, room))

    def _take_out(self) -> RecordBatch:
        batch = super()._take_out()
        self._held[batch.shard] -= batch.count
        self._give_credit(self._cursors[batch.shard])
        return batch

    # Pushes in place of reads

    def _open(self, cursor: Cursor) -> None:
        if self._closed or self._error is not None:
            return
        room = self._window() - self._held[cursor.shard]
        if room <= 0:
            self._link.after_pause(lambda: self._try_again(cursor))
            return
        self._given[cursor.shard] = room
        message = wire.SubscribeToShard(self._stream, self._consumer, cursor.shard, room, cursor.start, cursor.position)

        def on_push(push: codec.Message) -> None:
            assert isinstance(push, wire.PushedRecords)
            with self._link.mutex:
                self._pushed(cursor, push)

        def on_done(reply: codec.Message | None, error: PenstockError | None) -> None:
            with self._link.mutex:
                cursor.request = None
                if error is not None:
                    self._trouble(cursor, error)
                elif isinstance(reply, wire.SubscriptionEnd):
                    self._ended(cursor, reply.children)

        deadline = float("inf") if self._was_useful else backend.monotonic() + self._link.options.request_timeout
        cursor.request = Request(operation_of(message), message, on_done, deadline, False, on_push)
        self._link.submit(cursor.request)

    def _pushed(self, cursor: Cursor, push: wire.PushedRecords) -> None:
        if self._closed:
            return
        self._was_useful = True
        pushed = sum(batch.count for run in push.runs for batch in run.batches)
        came = self._keep(cursor, push.start, push.runs)
        # (Also a subscription that has got nothing yet goes on where it began.)
        cursor.start, cursor.position, cursor.behind_ms = "at", push.next, push.behind_ms
        self._given[cursor.shard] -= pushed
        if came:
            self._held[cursor.shard] += sum(batch.count for batch in came)
            seen = sum(batch.blob_bytes for batch in came) // max(1, pushed)
            self._record_bytes = max(seen, self._record_bytes * 7 // 8 if self._has_seen else 0)
            self._has_seen = True
            self._wake()
        self._give_credit(cursor)

    def _ended(self, cursor: Cursor, children: list[int]) -> None:
        cursor.ended = True
        if self._shard is None:
            self._follow(children)
        if self._is_over():
            self._wake()
