"""The registered consumers of this broker's streams: their names, and the subscriptions that push records to them.

A consumer is a name in its stream's row, so it is created, kept and deleted as a setting is. A subscription lives as long as its
connection: `streams.Subscription` says what comes next, and this pushes it. What a commit brings is pushed at once to everybody
who has credit, out of the shard's tip: those at the same place get the same encoded bytes, which exist once. Who is behind the
tip reads from the store, one page at a time, and only while its connection has room. Who has no credit gets nothing before it
gives some; nobody waits for anybody.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

import structlog
import trio
from penstock_protocol.errors import (
    InvalidRequest,
    LimitExceeded,
    PenstockError,
    PositionTrimmed,
    ResourceInUse,
    ShardDoesNotExist,
    StoreFailed,
    StreamConsumerDoesNotExist,
)
from penstock_protocol.session_messages import Empty
from penstock_protocol.stream_messages import (
    PushedRecords,
    RecordRun,
    StreamConsumer,
    StreamConsumerName,
    StreamName,
    SubscribeToShard,
    SubscriptionEnd,
)
from penstock_protocol.stream_messages import (
    StreamConsumers as StreamConsumersReply,
)
from penstock_storage.interface import Store, StoreError

from penstock_broker.call import Call, NotReady
from penstock_broker.counters import Counters
from penstock_broker.ports import Ports
from penstock_broker.stream_admin import StreamAdmin
from penstock_broker.stream_catalog import ShardRecord, StreamRecord
from penstock_broker.stream_service import READ_SEGMENTS, ShardRuntime, StreamService, Subscriber, behind_of, count_out, runs_of
from penstock_broker.streams import limits, settings
from penstock_broker.streams.shard import Shard
from penstock_broker.streams.subscription import Step, Subscription
from penstock_broker.streams.throughput import Bucket

log = structlog.get_logger()

_PAGE_BYTES: Final = limits.PUSH_BYTES + limits.SEGMENT_BYTES
"""What a page from the store takes, as a rule: it is promised to the connection meanwhile."""

_Bodies = dict[tuple[int, int], bytes]
"""Encoded pushes by the positions before and behind them."""


class StreamConsumers:
    """See the module. `start(function, *arguments)` starts a background task of the server."""

    def __init__(
        self,
        service: StreamService,
        admin: StreamAdmin,
        store: Store,
        ports: Ports,
        counters: Counters,
        start: Callable[..., None],
    ) -> None:
        self._service = service
        self._admin = admin
        self._store = store
        self._ports = ports
        self._counters = counters
        self._start = start
        self._found: dict[Call, int] = {}
        """Places that were searched for by time, for the moment until their subscription begins."""

    # Names

    def register(self, call: Call, request: StreamConsumerName) -> None:
        """RegisterStreamConsumer."""
        stream = self._service.stream(call.caller, request.stream)
        name = request.consumer
        settings.check_name(name, "consumer")
        if name in stream.consumers:
            self._when_durable(call, self._description(stream, name))
            return
        if len(stream.consumers) >= limits.MAX_CONSUMERS:
            raise LimitExceeded(f"a stream has at most {limits.MAX_CONSUMERS} registered consumers; deregister one first")
        new = dataclasses.replace(stream, consumers={**stream.consumers, name: self._ports.now_ms()})
        self._admin.change(call, stream, new, lambda: call.reply(self._description(new, name)))

    def deregister(self, call: Call, request: StreamConsumerName) -> None:
        """DeregisterStreamConsumer."""
        stream = self._service.stream(call.caller, request.stream)
        name = self._check(stream, request.consumer)
        consumers = {one: created_ms for one, created_ms in stream.consumers.items() if one != name}

        def done() -> None:
            for subscriber in self._subscribers(stream, name):
                self.end(subscriber, StreamConsumerDoesNotExist(f"consumer {name!r} was deregistered"))
            for runtime in self._runtimes(stream):
                runtime.forget(name)
            call.reply(Empty())

        self._admin.change(call, stream, dataclasses.replace(stream, consumers=consumers), done)

    def describe(self, call: Call, request: StreamConsumerName) -> None:
        """DescribeStreamConsumer."""
        stream = self._service.stream(call.caller, request.stream)
        self._when_durable(call, self._description(stream, self._check(stream, request.consumer)))

    def list_consumers(self, call: Call, request: StreamName) -> None:
        """ListStreamConsumers."""
        stream = self._service.stream(call.caller, request.stream)
        self._when_durable(call, StreamConsumersReply([self._description(stream, name) for name in sorted(stream.consumers)]))

    def _when_durable(self, call: Call, reply: StreamConsumer | StreamConsumersReply) -> None:
        """(While a commit's outcome is unknown the store may know of others: it is refused.)"""
        if self._service.lane.incarnation is not None:
            call.reply(reply)
        else:
            self._service.lane.submit(lambda error: call.reply(reply) if error is None else call.fail(error))

    @staticmethod
    def _check(stream: StreamRecord, name: str) -> str:
        if name not in stream.consumers:
            raise StreamConsumerDoesNotExist(f"stream {stream.name!r} has no registered consumer {name[:100]!r}")
        return name

    def _runtimes(self, stream: StreamRecord) -> list[ShardRuntime]:
        current = self._service.catalog.get(stream.place, stream.name) or stream
        runtimes = [self._service.runtimes.get(one.log_id) for one in current.shards.values()]
        return [one for one in runtimes if one is not None]

    def _subscribers(self, stream: StreamRecord, name: str) -> list[Subscriber]:
        return [one.subscribers[name] for one in self._runtimes(stream) if name in one.subscribers]

    def _description(self, stream: StreamRecord, name: str) -> StreamConsumer:
        created_ms = stream.consumers[name]
        arn = f"{stream.arn}/consumer/{name}:{created_ms // 1000}"
        return StreamConsumer(stream.name, name, arn, created_ms, *self.lag(stream, name))

    def lag(self, stream: StreamRecord, name: str) -> tuple[int, int]:
        """How many shards are pushed to a consumer, and how many of their records it has not been pushed yet, at most."""
        subscribers = self._subscribers(stream, name)
        lag = 0
        for one in subscribers:
            shard = one.runtime.shard
            lag += min(max(0, shard.end - one.subscription.position), shard.records)
        return len(subscribers), lag

    # Subscribing

    def subscribe(self, call: Call, request: SubscribeToShard) -> None:
        """SubscribeToShard. The session gives `call.waiter` credit and ends it."""
        found = self._found.pop(call, None)  # (Whatever becomes of this.)
        stream = self._service.stream(call.caller, request.stream)
        name = self._check(stream, request.consumer)
        if not 1 <= request.credit <= limits.MAX_CREDIT:
            raise InvalidRequest(f"credit = {request.credit}; it must be from 1 to {limits.MAX_CREDIT}")
        record = self._service.shard_record(stream, request.shard)
        position = self._service.place(record, request.start, request.position)
        runtime = self._service.runtime(record)
        if position is None:
            if found is None:
                raise NotReady(lambda: self._search(call, record, request.position))
            position = max(found, runtime.shard.trimmed)
        if position < runtime.shard.trimmed:
            raise PositionTrimmed(f"position = {position}; the oldest record of shard {request.shard} is {runtime.shard.trimmed}")
        before = runtime.subscribers.get(name)
        if before is not None:
            self.end(before, ResourceInUse(f"another subscription of consumer {name!r} to shard {request.shard} took over"))
        subscriber = Subscriber(call, runtime, name, Subscription(position, request.credit))
        runtime.subscribers[name] = subscriber
        call.waiter = subscriber
        behind_ms = behind_of(runtime.shard, position, [], self._ports.now_ms())
        call.push(PushedRecords(position, [], position, behind_ms))
        self._advance(subscriber, {})

    async def _search(self, call: Call, record: ShardRecord, at_ms: int) -> None:
        position = await self._service.position_at(record.log_id, at_ms)
        if not call.answered:
            self._found[call] = position

    def credit(self, subscriber: Subscriber, records: int) -> None:
        """Gives a subscription more credit."""
        subscriber.subscription.give(records)
        self._advance(subscriber, {})

    def unpark(self, subscriber: Subscriber) -> None:
        """Its connection has room again."""
        subscriber.parked = False
        self._advance(subscriber, {})

    def end(self, subscriber: Subscriber, error: PenstockError) -> None:
        """Pushes nothing more, and answers with the error; nothing happens when it has ended."""
        if self._leave(subscriber):
            subscriber.call.fail(error)

    @staticmethod
    def _leave(subscriber: Subscriber) -> bool:
        subscribers = subscriber.runtime.subscribers
        if subscribers.get(subscriber.consumer) is not subscriber:
            return False
        del subscribers[subscriber.consumer]
        subscriber.call.waiter = None
        return True

    # Pushing

    def serve(self, runtime: ShardRuntime) -> None:
        """There are new records, or the end of the shard: everybody gets what it may."""
        bodies: _Bodies = {}
        for subscriber in list(runtime.subscribers.values()):
            self._advance(subscriber, bodies)

    def _advance(self, subscriber: Subscriber, bodies: _Bodies) -> None:
        """Pushes as long as there is something in memory, credit, room in the connection, and the shard's limit lets it."""
        runtime, subscription, name = subscriber.runtime, subscriber.subscription, subscriber.consumer
        shard, session = runtime.shard, subscriber.call.session
        while runtime.subscribers.get(name) is subscriber and not (
            subscriber.loading or subscriber.parked or name in runtime.paced
        ):
            try:
                step = subscription.step(shard)
            except PositionTrimmed as error:
                self.end(subscriber, error)
                return
            if step is Step.WAIT:
                return
            if step is Step.END:
                self._finish(subscriber)
            elif not session.has_room:
                subscriber.parked = True
                session.park(subscriber.call)
            elif pause_ms := self._pause_ms(subscriber):
                runtime.paced.add(name)
                self._start(self._pace, runtime, name, pause_ms)
            elif isinstance(step, Step):
                subscriber.loading = True
                self._start(self._load, subscriber, subscriber.call)
            else:
                self._push(subscriber, step.runs, step.position, bodies)

    def _limit(self, subscriber: Subscriber) -> Bucket | None:
        """What its consumer's pushes have to pass, if the stream asks for limits."""
        found = self._service.catalog.of_log(subscriber.runtime.shard.log_id)
        throughput = None if found is None else subscriber.runtime.throughput(found[0].settings)
        return None if throughput is None else throughput.pushes(subscriber.consumer)

    def _pause_ms(self, subscriber: Subscriber) -> int:
        limit = self._limit(subscriber)
        return 0 if limit is None else limit.pause_ms(self._ports.now_ms())

    async def _pace(self, runtime: ShardRuntime, name: str, pause_ms: int) -> None:
        """Goes on when the limit lets more pass, with whoever is subscribed then. (So one task waits for each consumer, however
        often it subscribes.)"""
        await trio.sleep(pause_ms / 1000)
        runtime.paced.discard(name)
        subscriber = runtime.subscribers.get(name)
        if subscriber is not None:
            self._advance(subscriber, {})

    def _push(self, subscriber: Subscriber, runs: list[RecordRun], position: int, bodies: _Bodies) -> None:
        subscription, shard = subscriber.subscription, subscriber.runtime.shard
        place = (subscription.position, position)
        body = bodies.get(place)
        if body is None:
            body = bodies[place] = self._encoded(shard, subscription.position, runs, position)
        subscriber.call.push_body(body)
        records, size_bytes = count_out(shard, runs)
        if (limit := self._limit(subscriber)) is not None:
            limit.take(size_bytes)
        subscription.pushed(position, records)

    def _encoded(self, shard: Shard, start: int, runs: list[RecordRun], position: int) -> bytes:
        return PushedRecords(start, runs, position, behind_of(shard, position, runs, self._ports.now_ms())).encode()

    def _finish(self, subscriber: Subscriber) -> None:
        found = self._service.catalog.of_log(subscriber.runtime.shard.log_id)
        if found is None:
            self.end(subscriber, ShardDoesNotExist("the shard was deleted"))
        elif self._leave(subscriber):
            stream, record = found
            subscriber.call.reply(SubscriptionEnd(stream.children_of(record.range.shard)))

    async def _load(self, subscriber: Subscriber, call: Call) -> None:
        """Pushes a page from the store, once the connection has room for it."""
        subscription, shard = subscriber.subscription, subscriber.runtime.shard
        session = call.session
        await session.wait_room()
        if call.answered:
            return
        session.promise(_PAGE_BYTES)
        try:
            start, end, max_records = subscription.position, shard.end, subscription.max_records
            rows = await self._ports.in_thread(self._store.load_stream, shard.log_id, start, READ_SEGMENTS, limits.PUSH_BYTES)
            self._counters.loads += 1
            # (What was trimmed meanwhile may be missing: the next step says so.)
            if not call.answered and start >= shard.trimmed:
                runs, position = runs_of(rows, start, end, max_records, limits.PUSH_BYTES)
                if runs:
                    self._push(subscriber, runs, position, {})
                else:
                    subscription.pushed(position, 0)
        except StoreError as error:
            self._counters.load_errors += 1
            log.error("records not loaded", log=shard.log_id, error=str(error))
            self.end(subscriber, StoreFailed())
        finally:
            subscriber.loading = False
            session.promise(-_PAGE_BYTES)
        self._advance(subscriber, {})
