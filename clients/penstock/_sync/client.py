# Generated from clients/penstock/_async/client.py by tools/generate_blocking_client.py (make sync-client): edit that file.
"""The client: one connection to the broker, shared by everything an application does."""

from __future__ import annotations

import ssl
import weakref
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Unpack, cast

from penstock import _backend_threads as backend
from penstock import forks
from penstock._sync.batching import Sequences
from penstock._sync.link import Link
from penstock._sync.queue import Queue
from penstock._sync.stream import Stream
from penstock.options import make_options
from penstock.types import (
    AccessKeyInfo,
    QueueSettings,
    StreamSettings,
    settings_to_wire,
)
from penstock_protocol import queue_messages as wire
from penstock_protocol import session_messages as session
from penstock_protocol import stream_messages as streams


class Client:
    """A client of a Penstock broker.

        >>> with Client() as client:
        ...     queue = client.create_queue("jobs")
        ...     sent = queue.send("hello")
        ...     [message] = queue.receive()
        ...     message.delete()

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
        self.link = Link(options)
        self.sequences = Sequences()
        self._queues: weakref.WeakValueDictionary[str, Queue] = weakref.WeakValueDictionary()
        self._streams: dict[str, Stream] = {}  # kept, for they are few, and know their shards
        forks.watch(self)

    def __enter__(self) -> Client:
        if backend.STARTS_IN_BLOCK:
            self.link.tasks.__enter__()
            self.link.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool | None:
        self.close()
        if backend.STARTS_IN_BLOCK:
            self.link.tasks.cancel()
        return self.link.tasks.__exit__(kind, error, trace)

    def close(self) -> None:
        """Closes the connection; requests without an answer get ClientClosed."""
        self.link.close()

    def forked(self) -> None:
        """This is a child process now; called by itself. The blocking client begins anew: queues can be used as before, messages
        that the parent has received be deleted here. What the parent's threads were sending is theirs to send."""
        left = self.link
        was_closed = left.is_closed
        left.leave()
        if not (was_closed or backend.STARTS_IN_BLOCK):
            self.link = Link(left.options)
            self.sequences = Sequences()
            for queue in self._queues.values():
                queue.attach()
            for stream in self._streams.values():
                stream.attach()

    # Queues

    def queue(self, name: str) -> Queue:
        """A queue by its name, whether it exists or not: nobody is asked."""
        with self.link.mutex:
            queue = self._queues.get(name)
            if queue is None:
                queue = self._queues[name] = Queue(self, name)
            return queue

    def create_queue(self, name: str, *, tags: Mapping[str, str] | None = None, **settings: Unpack[QueueSettings]) -> Queue:
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
        self.link.call(request)
        return self.queue(name)

    def delete_queue(self, name: str) -> None:
        """Deletes a queue with everything in it."""
        self.queue(name).delete_queue()

    def list_queues(self, prefix: str = "") -> Iterator[str]:
        """The names of all queues that start with `prefix`, in order."""
        after = ""
        while True:
            reply = cast(wire.QueueNames, self.link.call(wire.ListQueues(prefix, after)))
            for name in reply.queues:
                yield name
            if not reply.more:
                return
            after = reply.queues[-1]

    # Streams

    def stream(self, name: str) -> Stream:
        """A stream by its name, whether it exists or not: nobody is asked."""
        with self.link.mutex:
            stream = self._streams.get(name)
            if stream is None:
                stream = self._streams[name] = Stream(self, name)
            return stream

    def create_stream(
        self, name: str, shards: int = 1, *, tags: Mapping[str, str] | None = None, **settings: Unpack[StreamSettings]
    ) -> Stream:
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
        self.link.call(request)
        return self.stream(name)

    def delete_stream(self, name: str) -> None:
        """Deletes a stream with everything in it."""
        self.stream(name).delete_stream()
        self._streams.pop(name, None)

    def streams(self, prefix: str = "") -> Iterator[str]:
        """The names of all streams that start with `prefix`, in order."""
        after = ""
        while True:
            reply = cast(streams.StreamNames, self.link.call(streams.ListStreams(prefix, after)))
            for name in reply.streams:
                yield name
            if not reply.more:
                return
            after = reply.streams[-1]

    # Access keys

    def create_key(self, role: str = "user", description: str = "") -> AccessKeyInfo:
        """Makes an access key; `role`: admin, user, producer, consumer or reader. The secret is told this once.

        The first key closes the broker to everyone without one."""
        return _key(cast(session.AccessKey, self.link.call(session.CreateKey(role, description))))

    def list_keys(self) -> list[AccessKeyInfo]:
        """All access keys of the account, without their secrets."""
        reply = cast(session.AccessKeys, self.link.call(session.Empty(), "ListKeys"))
        return [_key(key) for key in reply.keys]

    def delete_key(self, key_id: str) -> None:
        """Takes an access key out of force for new connections."""
        self.link.call(session.KeyId(key_id))

    def ping(self) -> float:
        """Asks the broker for a sign of life; returns the seconds it took."""
        started = backend.monotonic()
        self.link.call(session.Empty(), "Ping")
        return backend.monotonic() - started


def _key(key: session.AccessKey) -> AccessKeyInfo:
    created = datetime.fromtimestamp(key.created_ms / 1000, UTC)
    return AccessKeyInfo(key.key_id, key.secret, key.role, key.description, created)
