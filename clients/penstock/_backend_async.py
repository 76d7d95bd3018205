"""What the asynchronous client needs of its event loop, over anyio (trio and asyncio).

`_backend_threads` has the same names for the blocking client, which is generated from the asynchronous one. Nothing else in
the SDK touches sockets, clocks or tasks.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, cast

import anyio
import anyio.abc
import anyio.lowlevel

ConnectionError_ = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)
"""What a broken connection raises."""


class Mutex:
    """Keeps state consistent: nothing to do where only one task runs at a time and none waits inside."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class Event:
    """Set once; any number wait."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        """Wakes everybody."""
        self._event.set()

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Returns once it is set; if it is, at once: whoever waits for many events gives way to others no more than once."""
        if not self._event.is_set():
            await self._event.wait()

    async def wait_for(self, seconds: float) -> bool:
        """Waits at most that long; whether it is set."""
        with anyio.move_on_after(seconds):
            await self._event.wait()
        return self._event.is_set()


class Stream:
    """A byte stream over TCP or TLS."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream
        self._socket: socket.socket | None = None
        if isinstance(stream, anyio.abc.SocketStream):
            # trio's is a plain socket that nobody buffers for. asyncio's transports do, and hide it behind another type.
            raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610  # this is not Django's
            self._socket = raw if isinstance(raw, socket.socket) else None

    async def send(self, data: bytes) -> None:
        """Sends all of it. One caller at a time."""
        await self._stream.send(data)

    def send_now(self, data: bytes) -> int:
        """Sends what the socket takes without waiting; how much that was. While nobody is in `send`. What is wrong with the
        connection shows at the next `send`."""
        try:
            return self._socket.send(data) if self._socket is not None else 0
        except OSError:
            return 0

    async def receive(self) -> bytes:
        """Some bytes; empty at the end of the stream."""
        try:
            return await self._stream.receive(262_144)
        except anyio.EndOfStream:
            return b""

    async def aclose(self) -> None:
        """Closes at once; wakes a task that receives."""
        with contextlib.suppress(OSError):
            await anyio.aclose_forcefully(self._stream)

    def leave(self) -> None:
        """In a child process: it belongs to the event loop, and that to the parent."""


async def connect(host: str, port: int, tls: ssl.SSLContext | None, seconds: float) -> Stream:
    """Connects within `seconds`; OSError or TimeoutError otherwise."""
    with anyio.fail_after(seconds):
        if tls is not None:
            return Stream(await anyio.connect_tcp(host, port, ssl_context=tls, tls_hostname=host, tls_standard_compatible=False))
        return Stream(await anyio.connect_tcp(host, port))


class Tasks:
    """Background tasks that end, at the latest, with the block. `serving`: they serve what the block does, so neither its
    cancellation nor a Ctrl-C that happens to meet them ends them, only `cancel`: until then cleanup in the block can use them."""

    def __init__(self, *, serving: bool = False) -> None:
        self._group: anyio.abc.TaskGroup | None = None
        self._serving = serving
        self._shields: set[anyio.CancelScope] = set()
        self._is_over = False

    async def __aenter__(self) -> Tasks:
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Waits for the tasks. An error of the block itself leaves as it is, not wrapped into a group: that there are tasks is
        nothing its handlers should have to know."""
        assert self._group is not None
        if error is None or isinstance(error, anyio.get_cancelled_exc_class()):
            return await self._group.__aexit__(kind, error, trace)
        self._group.cancel_scope.cancel()
        await self._group.__aexit__(None, None, None)
        return None

    def spawn(self, function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> None:
        """Starts a task."""
        assert self._group is not None, "used outside its block: `async with`"
        if self._serving:
            self._group.start_soon(_undisturbed(self._serve), function, *arguments)
        else:
            self._group.start_soon(function, *arguments)

    async def _serve(self, function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> None:
        if self._is_over:
            return
        with anyio.CancelScope(shield=True) as scope:
            self._shields.add(scope)
            try:
                await function(*arguments)
            finally:
                self._shields.discard(scope)

    def cancel(self) -> None:
        """Ends all tasks."""
        self._is_over = True
        for scope in list(self._shields):
            scope.cancel()
        if self._group is not None:
            self._group.cancel_scope.cancel()


def _undisturbed(function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """The function, as one in which no Ctrl-C is raised: trio raises it wherever it finds Python at work, and tells the main
    task of it in this case. (asyncio cancels the main task anyway.)"""
    trio = sys.modules.get("trio")
    return cast(Callable[..., Coroutine[Any, Any, Any]], trio.lowlevel.enable_ki_protection(function)) if trio else function


def monotonic() -> float:
    """Seconds of a clock that never jumps."""
    return anyio.current_time()


async def sleep(seconds: float) -> None:
    """Waits."""
    await anyio.sleep(seconds)


def shielded(seconds: float) -> Any:
    """A block whose cleanup may talk to the broker although the caller was cancelled, for at most `seconds`."""
    return anyio.move_on_after(seconds, shield=True)


STARTS_IN_BLOCK = True
"""An AsyncClient is used as `async with`: its tasks need a place to live."""
