# Generated from clients/penstock/_async/shards.py by tools/generate_blocking_client.py (make sync-client): edit that file.
"""What a client knows of a stream's shards: listed page by page, and kept until the broker says that a shard is closed.

Loading goes by callbacks, without a task of its own: whoever hears ShardClosed in the middle of putting can begin it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from penstock import _backend_threads as backend
from penstock._sync.link import Link, Request, operation_of
from penstock.errors import PenstockError, ResourceBusy, fresh
from penstock.records import ShardMap
from penstock_protocol import codec
from penstock_protocol import stream_messages as wire

LOOKS: Final = 10
"""How often the shards are listed anew while they do not fit together, for they are being split as they are read."""


def list_shards(
    link: Link,
    request: wire.ListShards,
    on_done: Callable[[list[wire.Shard], PenstockError | None], None],
) -> None:
    """Lists shards, all pages of them, in the background."""
    found: list[wire.Shard] = []

    def on_page(reply: codec.Message | None, error: PenstockError | None) -> None:
        if isinstance(reply, wire.Shards):
            found.extend(reply.shards)
            if reply.more:
                ask(reply.shards[-1].shard + 1)
                return
        on_done(found, error)

    def ask(start: int) -> None:
        message = wire.ListShards(request.stream, start, request.limit, request.state, request.at_ms)
        deadline = backend.monotonic() + link.options.request_timeout
        link.submit(Request(operation_of(message), message, on_page, deadline, resend=True))

    ask(request.start)


class Shards:
    """The open shards of one stream, as far as this client knows."""

    def __init__(self, link: Link, stream: str) -> None:
        self._link = link
        self._stream = stream
        self._waiting: list[Callable[[PenstockError | None], None]] = []
        self._looks = 0
        self._max_record_bytes = 0
        self.current: ShardMap | None = None

    def get(self) -> ShardMap:
        """The shards; asks for them the first time."""
        return self.current or self.renew()

    def renew(self) -> ShardMap:
        """The shards, asked for anew."""
        done = backend.Event()
        problems: list[PenstockError | None] = []

        def loaded(error: PenstockError | None) -> None:
            problems.append(error)
            done.set()

        self.refresh(loaded)
        done.wait()
        problem = problems[0]
        if problem is not None:
            raise fresh(problem)
        current = self.current
        assert current is not None
        return current

    def refresh(self, on_done: Callable[[PenstockError | None], None]) -> None:
        """Asks for them in the background; all who want that at once share one answer."""
        with self._link.mutex:
            self._waiting.append(on_done)
            if len(self._waiting) > 1:
                return
            self._looks = 0
        message = wire.StreamName(self._stream)
        deadline = backend.monotonic() + self._link.options.request_timeout
        operation = operation_of(message, "DescribeStream")
        self._link.submit(Request(operation, message, self._described, deadline, resend=True))

    def _described(self, reply: codec.Message | None, error: PenstockError | None) -> None:
        if not isinstance(reply, wire.StreamDescription):
            self._end(error)
            return
        limits = {one.name: one.value for one in reply.settings}
        limit = limits.get("max_record_bytes")
        self._max_record_bytes = limit if isinstance(limit, int) else codec.MAX_INTEGER
        self._list()

    def _list(self) -> None:
        list_shards(self._link, wire.ListShards(self._stream, state="open"), self._listed)

    def _listed(self, found: list[wire.Shard], error: PenstockError | None) -> None:
        if error is None and not ShardMap.is_whole(found):
            self._looks += 1
            if self._looks < LOOKS:
                self._link.after_pause(self._list)
                return
            error = ResourceBusy(f"the shards of {self._stream} do not fit together")
        if error is None:
            self.current = ShardMap(found, self._max_record_bytes)
        self._end(error)

    def _end(self, error: PenstockError | None) -> None:
        with self._link.mutex:
            waiting, self._waiting = self._waiting, []
        for on_done in waiting:
            on_done(error)
