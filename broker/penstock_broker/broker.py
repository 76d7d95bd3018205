"""A broker without its doors: store, lane, services and background tasks, put together and run.

    nursery of the lane          commits until everything above has ended
      nursery of the background  the timer, page-ins, move tasks, the sweeper
        the doors                (server.py) accept connections and run sessions

The three levels are the stages of a stop: the doors close and drain, then the background ends, then the last commit.
The simulation runs this very class over an in-memory store and in-memory streams.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
import trio
from penstock_protocol.codec import Message
from penstock_protocol.errors import InternalError, PenstockError
from penstock_protocol.session_messages import Empty
from penstock_storage.interface import Commit, Fenced, Store, StoreError
from penstock_storage.slots import SLOTS

from penstock_broker.access import Keyring
from penstock_broker.call import Call
from penstock_broker.catalog import MOVE_TASK, QUEUE, QueueCatalog, QueueRecord
from penstock_broker.counters import Counters
from penstock_broker.dispatch import Dispatcher, Handler
from penstock_broker.key_admin import KeyAdmin
from penstock_broker.lane import Lane, Participant
from penstock_broker.move_tasks import MoveTasks
from penstock_broker.ports import Ports
from penstock_broker.queue_admin import QueueAdmin
from penstock_broker.queue_service import QueueService
from penstock_broker.queues.queue import Budget
from penstock_broker.session import Session, SessionLimits
from penstock_broker.stream_admin import StreamAdmin
from penstock_broker.stream_catalog import StreamCatalog
from penstock_broker.stream_consumers import StreamConsumers
from penstock_broker.stream_groups import StreamGroups
from penstock_broker.stream_service import StreamService
from penstock_broker.streams.shard import Shard

log = structlog.get_logger()

SWEEP_ROWS = 1_000
SWEEP_IDLE_SECONDS = 5.0
RESTART_SECONDS = 1.0
"""The pause before a background service goes on after a defect."""


@dataclasses.dataclass(frozen=True, slots=True)
class BrokerOptions:
    """What a broker is told. `address` is how others reach it; `content_bytes` bounds message content in memory."""

    node: str = "broker"
    address: str = ""
    account: str = "000000000000"
    region: str = "local"
    content_bytes: int = 64 * 1024 * 1024
    session: SessionLimits = dataclasses.field(default_factory=SessionLimits)
    server_name: str = "penstock/0.1"


class Broker:
    """See the module. Built by `running`."""

    def __init__(self, store: Store, ports: Ports, options: BrokerOptions, sealing_key: bytes, nursery: trio.Nursery) -> None:
        self._store = store
        self._ports = ports
        self._options = options
        self._sealing_key = sealing_key
        self._background = nursery
        self.counters = Counters()
        self.catalog = QueueCatalog()
        self.stream_catalog = StreamCatalog()
        self.sessions: set[Session] = set()
        self.handshakes = 0
        """Connections that are no sessions yet: they count as connections."""
        self.ready = False
        self.budget = Budget(options.content_bytes)
        self.slots_owned = SLOTS
        self.background_ended = False
        """Set once its background tasks are to end, before the last commit of a stop."""

    def now_ms(self) -> int:
        """The broker's clock."""
        return self._ports.now_ms()

    def not_ready_because(self) -> str | None:
        """Why this broker does not serve; None when it does."""
        if not self.ready:
            return "stopping"
        return None if self.lane.is_healthy else "the store does not answer"

    @property
    def is_ready(self) -> bool:
        """Whether it serves."""
        return self.not_ready_because() is None

    async def load(self) -> None:
        """Takes the slots and loads what there is. StoreError when the store does not play along."""
        store, ports, options = self._store, self._ports, self._options
        secret = await ports.in_thread(store.cluster_secret)
        self.queues = QueueService(store, self.catalog, ports, self.counters, secret, self.budget, self._start)
        self.streams = StreamService(store, self.stream_catalog, ports, self.counters, secret, self._start)
        self.lane = self.queues.lane = self.streams.lane = Lane(
            store,
            ports,
            self.counters,
            options.node,
            options.address,
            published=self._published,
            discarded=self._discarded,
            discard_all=self._discard_all,
            learn=self._learn,
            something=self._something,
        )
        await self.lane.acquire()
        self.moves = MoveTasks(self.queues, store, ports, self._start)
        rows = await ports.in_thread(store.load_resources)
        self.stream_catalog.replace(rows)
        self.stream_groups = StreamGroups(self.streams, store, ports, self._start)
        self.stream_groups.replace(rows)
        for row in rows:
            if row.kind == QUEUE:
                self.catalog.put(QueueRecord.from_row(row))
            elif row.kind == MOVE_TASK:
                self.moves.restore(row)
        self.keyring = Keyring(self._sealing_key, await ports.in_thread(store.load_credentials))
        admin = QueueAdmin(self.queues, store, ports, self._start)
        stream_admin = StreamAdmin(self.streams, self.stream_groups, store, ports)
        consumers = StreamConsumers(self.streams, stream_admin, store, ports, self.counters, self._start)
        self.stream_consumers = self.streams.consumers = consumers
        keys = KeyAdmin(self.keyring, self.lane, ports)
        handlers: dict[str, Handler] = {
            "Ping": _ping,
            "CreateKey": keys.create,
            "ListKeys": keys.list_keys,
            "DeleteKey": keys.delete,
            "CreateQueue": admin.create,
            "DeleteQueue": admin.delete,
            "ListQueues": admin.list_queues,
            "DescribeQueue": admin.describe,
            "SetQueueSettings": admin.change_settings,
            "TagQueue": admin.tag,
            "UntagQueue": admin.untag,
            "PurgeQueue": admin.purge,
            "SendMessages": self.queues.send,
            "ReceiveMessages": self.queues.receive,
            "DeleteMessages": self.queues.delete,
            "ChangeVisibility": self.queues.change_visibility,
            "PeekMessages": admin.peek,
            "Consume": self.queues.consume,
            "StartMoveTask": self.moves.begin,
            "CancelMoveTask": self.moves.cancel,
            "ListMoveTasks": self.moves.list_tasks,
            "ListDeadLetterSources": admin.sources,
            "CreateStream": stream_admin.create,
            "DeleteStream": stream_admin.delete,
            "ListStreams": stream_admin.list_streams,
            "DescribeStream": stream_admin.describe,
            "SetStreamSettings": stream_admin.change_settings,
            "TagStream": stream_admin.tag,
            "UntagStream": stream_admin.untag,
            "ListShards": stream_admin.list_shards,
            "SplitShard": stream_admin.split,
            "MergeShards": stream_admin.merge,
            "SetShardCount": stream_admin.set_shard_count,
            "PutRecords": self.streams.put,
            "OpenIterator": self.streams.open_iterator,
            "ReadRecords": self.streams.read,
            "GroupHeartbeat": self.stream_groups.heartbeat,
            "ListGroups": self.stream_groups.list_groups,
            "DescribeGroup": self.stream_groups.describe,
            "ResetGroup": self.stream_groups.reset,
            "DeleteGroup": self.stream_groups.delete,
            "RegisterStreamConsumer": consumers.register,
            "DescribeStreamConsumer": consumers.describe,
            "ListStreamConsumers": consumers.list_consumers,
            "DeregisterStreamConsumer": consumers.deregister,
            "SubscribeToShard": consumers.subscribe,
        }
        self.handlers = handlers
        self.dispatcher = Dispatcher(handlers, self.queues, self.streams, self.lane, self._start)

    def _published(self, participant: Participant, woke: bool) -> None:
        """A commit with the changes of a queue or a shard is durable."""
        if isinstance(participant, Shard):
            self.streams.published(participant, woke=woke)
        else:
            self.queues.published(participant, woke)

    def _discarded(self, participant: Participant, error: PenstockError) -> None:
        """A commit failed: the memory of what it touched goes."""
        if isinstance(participant, Shard):
            self.streams.discarded(participant, error)
        else:
            self.queues.discarded(participant, error)

    def _discard_all(self, error: PenstockError) -> None:
        """All memory goes."""
        self.queues.drop_all(error)
        self.streams.drop_all(error)
        self.stream_groups.restore()

    def _something(self) -> Commit | None:
        """A row that is in the store already."""
        for record in self.catalog:
            return Commit(upsert_resources=[record.to_row()])
        return None

    async def _learn(self) -> Callable[[], None]:
        """Reads the resources again: a commit of unknown outcome may have made, changed or removed some."""
        rows = await self._ports.in_thread(self._store.load_resources)
        credentials = await self._ports.in_thread(self._store.load_credentials)

        def put_in_force() -> None:
            self.catalog.replace(QueueRecord.from_row(row) for row in rows if row.kind == QUEUE)
            self.stream_catalog.replace(rows)
            self.stream_groups.replace(rows)
            self.moves.learn(row for row in rows if row.kind == MOVE_TASK)
            self.keyring.replace(credentials)

        return put_in_force

    def _start(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Starts a background task; a defect in it is logged and counted, and costs nothing else. (What the last commit of
        a stop would start has nobody left to serve.)"""
        if not self.background_ended:
            self._background.start_soon(self._guarded, function, *arguments)

    async def _guarded(self, function: Callable[..., Any], *arguments: Any) -> None:
        try:
            await function(*arguments)
        except Exception:
            self.counters.background_errors[function.__name__] += 1
            log.exception("background task failed", task=function.__name__)
            self.lane.distrust()
            for argument in arguments:
                if isinstance(argument, Call):
                    argument.fail(InternalError())

    async def _kept(self, function: Callable[[], Any]) -> None:
        """Runs a service that never ends by itself: after a defect it goes on, for without it time stands still for everybody."""
        while True:
            await self._guarded(function)
            await trio.sleep(RESTART_SECONDS)

    def resume(self) -> None:
        """Starts what runs in the background all the time, and the move tasks that a stop interrupted."""
        self._background.start_soon(self._kept, self.queues.run_timer)
        self._background.start_soon(self._kept, self.streams.run_timer)
        self._background.start_soon(self._kept, self.streams.run_retention)
        self._background.start_soon(self._kept, self._sweep)
        self.moves.resume()
        self.ready = True

    def warm_up(self) -> None:
        """Loads every queue in the background, one by one: then all of them have metrics."""
        self._start(self._load_all)

    async def _load_all(self) -> None:
        for record in self.catalog:
            if self.catalog.get(record.place, record.name) is None:
                continue
            try:
                await self.queues.load(record)
            except PenstockError as error:
                log.warning("queue not loaded", queue=record.name, error=str(error))

    async def _sweep(self) -> None:
        """Removes what was purged or deleted, a little at a time; sleeps while there is nothing."""
        while True:
            incarnation = self.lane.incarnation
            removed = 0
            if incarnation is not None:
                try:
                    removed = await self._ports.in_thread(self._store.sweep, incarnation, SWEEP_ROWS)
                except StoreError as error:
                    log.warning("sweep failed", error=str(error))
                    self.lane.failed_outside(error)
            await trio.sleep(0.05 if removed >= SWEEP_ROWS else SWEEP_IDLE_SECONDS)

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serves one connection to its end."""
        options = self._options
        session = Session(
            stream,
            self.dispatcher,
            self.keyring,
            self.counters,
            options.session,
            self._ports.random_bytes,
            (options.account, options.region),
            options.server_name,
        )
        self.sessions.add(session)
        try:
            await session.run()
        finally:
            self.sessions.discard(session)

    async def drain(self, seconds: float) -> None:
        """Answers what waits with Draining and lets what is being committed be answered, for at most `seconds`."""
        self.ready = False
        self.dispatcher.draining = True
        with trio.move_on_after(seconds):
            for session in list(self.sessions):
                session.drain()
            while not all(session.is_idle for session in self.sessions):
                await self.lane.wait_idle()
                await trio.sleep(0.01)


async def _run_lane(lane: Lane, stop: Callable[[], None]) -> None:
    try:
        await lane.run()
    except Fenced:
        stop()
        raise


def _ping(call: Call, _: Message) -> None:
    call.reply(Empty())


@asynccontextmanager
async def running(store: Store, ports: Ports, options: BrokerOptions, sealing_key: bytes) -> AsyncIterator[Broker]:
    """A running broker for the time of the block. Leaving it ends the background, then commits what is still waiting.

    Raises Fenced out of the block when another broker has taken over."""
    async with trio.open_nursery() as lane_nursery:
        async with trio.open_nursery() as background:
            broker = Broker(store, ports, options, sealing_key, background)
            await broker.load()
            lane_nursery.start_soon(_run_lane, broker.lane, lane_nursery.cancel_scope.cancel)
            broker.resume()
            try:
                yield broker
            finally:
                broker.background_ended = True
                background.cancel_scope.cancel()
        with trio.move_on_after(5, shield=True):
            await broker.lane.wait_idle()
        lane_nursery.cancel_scope.cancel()
