"""The Python SDK of Penstock: `Client` (blocking, thread-safe) and `AsyncClient` (trio and asyncio).

from penstock import Client

with Client() as client:
    queue = client.create_queue("jobs")
    queue.send("hello")
    for message in queue.receive(10, wait_seconds=1):
        print(message.text)
        message.delete()
"""

from penstock_protocol.queue_messages import Attribute

from penstock._async.client import AsyncClient
from penstock._async.consumer import AsyncConsumer
from penstock._async.queue import AsyncMessage, AsyncMoveTask, AsyncQueue
from penstock._async.worker import AsyncWorker
from penstock._sync.client import Client
from penstock._sync.consumer import Consumer
from penstock._sync.queue import Message, MoveTask, Queue
from penstock._sync.worker import Worker
from penstock.backoff import Backoff
from penstock.errors import PenstockError, SendFailed
from penstock.types import (
    AccessKeyInfo,
    OutgoingMessage,
    PeekedMessage,
    QueueInfo,
    ReceiptHandle,
    SentMessage,
)

__all__ = [
    "AccessKeyInfo",
    "AsyncClient",
    "AsyncConsumer",
    "AsyncMessage",
    "AsyncMoveTask",
    "AsyncQueue",
    "AsyncWorker",
    "Attribute",
    "Backoff",
    "Client",
    "Consumer",
    "Message",
    "MoveTask",
    "OutgoingMessage",
    "PeekedMessage",
    "PenstockError",
    "Queue",
    "QueueInfo",
    "ReceiptHandle",
    "SendFailed",
    "SentMessage",
    "Worker",
]
