"""The small HTTP endpoint beside the broker: /metrics, /healthz, /readyz. Served by hypercorn on trio.

/healthz says that the process lives; /readyz that it serves: the store answers, the slots are owned, no stop is under way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import hypercorn.trio
import trio
from hypercorn.config import Config as HypercornConfig
from penstock_storage.interface import Store
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from penstock_broker.broker import Broker
from penstock_broker.metrics import BrokerCollector

_TEXT: Final = "text/plain; charset=utf-8"
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Endpoint:
    """The ASGI application."""

    def __init__(self, broker: Broker, store: Store, max_queues: int) -> None:
        self._broker = broker
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(BrokerCollector(broker, store, max_queues))

    def answer(self, method: str, path: str) -> tuple[int, str, bytes]:
        """Status, content type and body."""
        if method not in ("GET", "HEAD"):
            return 405, _TEXT, b"only GET and HEAD\n"
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        if path == "/healthz":
            return 200, _TEXT, b"alive\n"
        if path == "/readyz":
            reason = self._broker.not_ready_because()
            return (200, _TEXT, b"ready\n") if reason is None else (503, _TEXT, f"{reason}\n".encode())
        return 404, _TEXT, b"there are /metrics, /healthz and /readyz\n"

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Send) -> None:
        """One ASGI call."""
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        if scope["type"] != "http":
            return
        status, content_type, body = self.answer(scope["method"], scope["path"])
        headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def serve_endpoint(broker: Broker, store: Store, address: str, max_queues: int) -> None:
    """Serves until cancelled. OSError when the address cannot be had."""
    config = HypercornConfig()
    config.bind = [address]
    config.accesslog = None
    config.errorlog = None
    config.keep_alive_timeout = 60
    config.read_timeout = 10
    config.h11_max_incomplete_size = 16 * 1024
    config.graceful_timeout = 1
    endpoint: Any = Endpoint(broker, store, max_queues)
    await hypercorn.trio.serve(endpoint, config, shutdown_trigger=trio.sleep_forever)
