"""The client: one connection to the broker, shared by everything an application does."""

from __future__ import annotations

import ssl
import weakref
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Unpack, cast

from penstock_protocol import queue_messages as wire
from penstock_protocol import session_messages as session
from penstock_protocol import stream_messages as streams

from penstock import _backend_async as backend
from penstock import forks
from penstock._async.batching import Sequences
from penstock._async.link import AsyncLink
from penstock._async.queue import AsyncQueue
from penstock._async.stream import AsyncStream
from penstock.options import make_options
from penstock.types import AccessKeyInfo, QueueSettings, StreamSettings, settings_to_wire


class AsyncClient:
    """A client of a Penstock broker.

        >>> async with AsyncClient() as client:
        ...     queue = await client.create_queue("jobs")
        ...     sent = await queue.send("hello")
        ...     [message] = await queue.receive()
        ...     await message.delete()

    `url` (default: PENSTOCK_URL, then the local broker) is penstock://[key:secret@]host:port, several hosts separated by
    commas; penstocks:// is TLS, with `tls` as its context (client certificates, private authorities). `key_id` and `secret`
    (default: from the URL, then PENSTOCK_KEY_ID and PENSTOCK_SECRET) prove who you are. `account` and `region` choose the tenant.

    The connection is made at the first need and kept up. Each request has `request_timeout` seconds in all; within them
    the client connects again, and repeats what is safe to repeat: sends (without making second messages), deletes,
    visibility changes, and everything that only reads.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        key_id: str | None = None,
        secret: str | None = None,
        tls: ssl.SSLContext | None = None,
        account: str = "",
        region: str = "",
        connect_timeout: float = 5.0,
        request_timeout: float = 30.0,
    ) -> None:
        options = make_options(url, key_id, secret, tls, account, region, connect_timeout, request_timeout)
        self.link = AsyncLink(options)
        self.sequences = Sequences()
        self._queues: weakref.WeakValueDictionary[str, AsyncQueue] = weakref.WeakValueDictionary()
        self._streams: dict[str, AsyncStream] = {}  # kept, for they are few, and know their shards
        forks.watch(self)

    async def __aenter__(self) -> AsyncClient:
        if backend.STARTS_IN_BLOCK:
            await self.link.tasks.__aenter__()
            self.link.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        await self.aclose()
        if backend.STARTS_IN_BLOCK:
            self.link.tasks.cancel()
        return await self.link.tasks.__aexit__(kind, error, trace)

    async def aclose(self) -> None:
        """Closes the connection; requests without an answer get ClientClosed."""
        await self.link.aclose()

    def forked(self) -> None:
        """This is a child process now; called by itself. The blocking client begins anew: queues can be used as before, messages
        that the parent has received be deleted here. What the parent's threads were sending is theirs to send."""
        left = self.link
        was_closed = left.is_closed
        left.leave()
        if not (was_closed or backend.STARTS_IN_BLOCK):
            self.link = AsyncLink(left.options)
            self.sequences = Sequences()
            for queue in self._queues.values():
                queue.attach()
            for stream in self._streams.values():
                stream.attach()

    # Queues

    def queue(self, name: str) -> AsyncQueue:
        """A queue by its name, whether it exists or not: nobody is asked."""
        with self.link.mutex:
            queue = self._queues.get(name)
            if queue is None:
                queue = self._queues[name] = AsyncQueue(self, name)
            return queue

    async def create_queue(
        self, name: str, *, tags: Mapping[str, str] | None = None, **settings: Unpack[QueueSettings]
    ) -> AsyncQueue:
        """Creates a queue, or finds it if it exists with these settings (else ResourceInUse).

        A name that ends in `.fifo` makes a FIFO queue. Settings (seconds and bytes): visibility_timeout (30), delay (0),
        retention (4 days), receive_wait (0), max_message_bytes (1 MiB), dead_letter_queue (name or queue),
        max_receive_count (10), redrive_allow ("allow_all", "deny_all", "by_queue"), redrive_sources, max_in_flight (120,000),
        max_messages and max_bytes (0: no limit); FIFO: content_based_deduplication (False), deduplication_scope
        ("queue", "message_group"), fifo_throughput_limit ("per_queue", "per_message_group").
        InvalidName and InvalidAttribute say what is allowed.
        """
        request = wire.CreateQueue(
            name,
            settings_to_wire(cast(Mapping[str, Any], settings)),
            [wire.Tag(key, value) for key, value in (tags or {}).items()],
        )
        await self.link.call(request)
        return self.queue(name)

    async def delete_queue(self, name: str) -> None:
        """Deletes a queue with everything in it."""
        await self.queue(name).delete_queue()

    async def list_queues(self, prefix: str = "") -> AsyncIterator[str]:
        """The names of all queues that start with `prefix`, in order."""
        after = ""
        while True:
            reply = cast(wire.QueueNames, await self.link.call(wire.ListQueues(prefix, after)))
            for name in reply.queues:
                yield name
            if not reply.more:
                return
            after = reply.queues[-1]

    # Streams

    def stream(self, name: str) -> AsyncStream:
        """A stream by its name, whether it exists or not: nobody is asked."""
        with self.link.mutex:
            stream = self._streams.get(name)
            if stream is None:
                stream = self._streams[name] = AsyncStream(self, name)
            return stream

    async def create_stream(
        self, name: str, shards: int = 1, *, tags: Mapping[str, str] | None = None, **settings: Unpack[StreamSettings]
    ) -> AsyncStream:
        """Creates a stream of `shards` even shards, or finds it if it exists with these settings (else ResourceInUse).

        Settings: retention (seconds; 24 hours), max_record_bytes (1 MiB), mode ("provisioned", "on_demand"),
        enforce_shard_limits (False). InvalidName and InvalidAttribute say what is allowed.
        """
        request = streams.CreateStream(
            name,
            shards,
            settings_to_wire(cast(Mapping[str, Any], settings)),
            [wire.Tag(key, value) for key, value in (tags or {}).items()],
        )
        await self.link.call(request)
        return self.stream(name)

    async def delete_stream(self, name: str) -> None:
        """Deletes a stream with everything in it."""
        await self.stream(name).delete_stream()
        self._streams.pop(name, None)

    async def streams(self, prefix: str = "") -> AsyncIterator[str]:
        """The names of all streams that start with `prefix`, in order."""
        after = ""
        while True:
            reply = cast(streams.StreamNames, await self.link.call(streams.ListStreams(prefix, after)))
            for name in reply.streams:
                yield name
            if not reply.more:
                return
            after = reply.streams[-1]

    # Access keys

    async def create_key(self, role: str = "user", description: str = "") -> AccessKeyInfo:
        """Makes an access key; `role`: admin, user, producer, consumer or reader. The secret is told this once.

        The first key closes the broker to everyone without one."""
        return _key(cast(session.AccessKey, await self.link.call(session.CreateKey(role, description))))

    async def list_keys(self) -> list[AccessKeyInfo]:
        """All access keys of the account, without their secrets."""
        reply = cast(session.AccessKeys, await self.link.call(session.Empty(), "ListKeys"))
        return [_key(key) for key in reply.keys]

    async def delete_key(self, key_id: str) -> None:
        """Takes an access key out of force for new connections."""
        await self.link.call(session.KeyId(key_id))

    async def ping(self) -> float:
        """Asks the broker for a sign of life; returns the seconds it took."""
        started = backend.monotonic()
        await self.link.call(session.Empty(), "Ping")
        return backend.monotonic() - started


def _key(key: session.AccessKey) -> AccessKeyInfo:
    created = datetime.fromtimestamp(key.created_ms / 1000, UTC)
    return AccessKeyInfo(key.key_id, key.secret, key.role, key.description, created)
