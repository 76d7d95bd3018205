"""One `Queue` on a store in memory, without broker, network or event loop: what the lane and the service do, in plain calls."""

from __future__ import annotations

from typing import Any

from penstock_broker.queues.queue import Budget, LoadContent, Queue
from penstock_broker.queues.settings import QueueSettings
from penstock_protocol import queue_messages as q
from penstock_storage.interface import Commit, CommitUnknown, LogId, ResourceRow, StoreError
from penstock_storage.memory import Fault, MemoryDisk, MemoryStore

LOG = LogId(7)
START_MS = 1_700_000_000_000
PRODUCER = b"producer........"


class Bench:
    """`now_ms` is the clock: set it forward. Every change is in memory until `commit`; `reload` forgets what was not."""

    def __init__(self, name: str = "q", **settings: Any) -> None:
        self.disk = MemoryDisk()
        self.fault: Fault | None = None
        self.store = MemoryStore(self.disk, lambda point: self.fault if point == "commit" else None)
        self.incarnation = self.store.acquire("bench", "", START_MS)
        self.store.commit(
            self.incarnation,
            Commit(upsert_resources=[ResourceRow(1, "0", "local", "queue", name, LOG, "{}", 1, START_MS, START_MS)]),
        )
        self.name = name
        self.settings = QueueSettings(**settings)
        self.budget = Budget(2**40)
        self.now_ms = START_MS
        self.queue = self._restored()

    def _restored(self) -> Queue:
        store = self.store
        deliveries = store.load_deliveries(LOG, -1, 100_000)
        touched = store.locate_segments(LOG, Queue.segments_named(deliveries))
        return Queue.restore(
            self.name,
            self.settings,
            self.disk.secret,
            self.budget,
            store.load_log(LOG, self.now_ms),
            deliveries,
            touched,
            store.load_deduplication(LOG, 0),
            self.now_ms,
        )

    def reload(self) -> None:
        """As after a crash: only what was committed is known."""
        self.queue.shed()
        self.queue = self._restored()

    def commit(self, fault: Fault | None = None) -> str:
        """ok, failed or unknown; after all but ok the queue is loaded anew."""
        commit = Commit()
        publication = self.queue.collect(commit, self.now_ms)
        self.fault = fault
        try:
            if not commit.is_empty():
                self.store.commit(self.incarnation, commit)
        except StoreError as error:
            self.fault = None
            if isinstance(error, CommitUnknown):
                self.incarnation = self.store.acquire("bench", "", self.now_ms)
            self.reload()
            return "unknown" if isinstance(error, CommitUnknown) else "failed"
        finally:
            self.fault = None
        self.queue.publish(publication)
        return "ok"

    def page_in(self, limit: int = 1_000) -> None:
        """Loads until the queue wants no more."""
        for _ in range(limit):
            want = self.queue.wants()
            if want is None:
                return
            if isinstance(want, LoadContent):
                self.queue.loaded_content(want, self.store.load_segments(want.keys), self.now_ms)
            else:
                rows = self.store.load_arrivals(LOG, want.after, want.until_due_ms, 3, 1_000)
                complete = len(rows) < 3 and sum(len(row.segment.payload or b"") for row in rows) < 1_000
                self.queue.loaded_arrivals(want, rows, complete=complete, now_ms=self.now_ms)
        raise AssertionError("the queue never has enough")

    def send(self, *bodies: bytes, sequence: int = 0, acknowledged: int = 0, **columns: Any) -> q.SendReply:
        """Sends, in memory."""
        request = q.SendMessages(self.name, list(bodies), sequence=sequence, acknowledged=acknowledged, **columns)
        return self.queue.send(request, PRODUCER, self.now_ms)

    def receive(self, most: int = 10, visibility_ms: int = 30_000, attempt: str = "") -> list[q.Delivery]:
        """Receives what there is, after loading what is needed for it."""
        for _ in range(1_000):
            self.page_in()
            reply, taken = self.queue.receive(most, 2**30, visibility_ms, attempt, False, self.now_ms)
            if reply is not None and reply.deliveries:
                return reply.deliveries
            if reply is None and not (taken is not None and taken.missing) and not self.queue.may_load:
                return []
        raise AssertionError("the queue never answers")

    def delete(self, *receipts: q.Receipt) -> list[q.ReceiptFailure]:
        """Deletes, in memory."""
        return self.queue.delete(list(receipts), self.now_ms)


def receipts_of(delivery: q.Delivery) -> list[q.Receipt]:
    """One receipt per message."""
    indexes = delivery.indexes
    places = range(indexes, indexes + len(delivery.bodies)) if isinstance(indexes, int) else indexes
    return [q.Receipt(delivery.receipt, delivery.first, (1 << index).to_bytes(index // 8 + 1, "little")) for index in places]


def bodies_of(deliveries: list[q.Delivery]) -> list[bytes]:
    """All bodies."""
    return [body for delivery in deliveries for body in delivery.bodies]
