"""What the blocking client needs: threads and sockets behind the names of `_backend_async`."""

from __future__ import annotations

import codecs
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

codecs.lookup("idna")
"""Connecting looks a name up, and the first time that imports this codec: a process that forks in that moment would leave its
child with an import that never ends, and so with a client that never connects. (So it is imported now.)"""

RECEIVE_BYTES = 262_144

DO_NOT_WAIT: int = getattr(socket, "MSG_DONTWAIT", 0)
"""The flag of a single send that must not block, where the system has one."""

ConnectionError_ = (OSError,)
"""What a broken connection raises."""

Mutex = threading.RLock
"""Keeps state consistent between the threads that share a client."""


class Event:
    """Set once; any number wait."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Wakes everybody."""
        self._event.set()

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._event.is_set()

    def wait(self) -> None:
        """Returns once it is set."""
        self._event.wait()

    def wait_for(self, seconds: float) -> bool:
        """Waits at most that long; whether it is set."""
        return self._event.wait(max(0.0, seconds))


class Stream:
    """A byte stream over TCP."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def send(self, data: bytes) -> None:
        """Sends all of it. One caller at a time."""
        self._socket.sendall(data)

    def send_now(self, data: bytes) -> int:
        """Sends what the socket takes without waiting; how much that was. While nobody is in `send`. What is wrong with the
        connection shows at the next `send`."""
        try:
            return self._socket.send(data, DO_NOT_WAIT) if DO_NOT_WAIT else 0
        except OSError:
            return 0

    def receive(self) -> bytes:
        """Some bytes; empty at the end of the stream."""
        return self._socket.recv(RECEIVE_BYTES)

    def close(self) -> None:
        """Closes at once; wakes a thread that receives."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._socket.close()

    def leave(self) -> None:
        """Lets go of it in a child process: the parent goes on with it, so nothing is sent and nothing shut down."""
        with contextlib.suppress(OSError):
            self._socket.close()


class TLSStream(Stream):
    """A byte stream over TLS. OpenSSL allows one thread at a time in a connection, and a thread that waits in its read would
    lock out the writer; so encryption is done in memory under a lock, and the socket is waited for outside of it."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        super().__init__(sock)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._lock = threading.Lock()
        self._handshake()

    def _handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            else:
                self._flush()
                return

    def _flush(self) -> None:
        """Writes what OpenSSL has encrypted, within the handshake."""
        data = self._outgoing.read()
        if data:
            self._socket.sendall(data)

    def _fill(self) -> None:
        data = self._socket.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError("the peer closed the connection within TLS")
        self._incoming.write(data)

    def send(self, data: bytes) -> None:
        """Sends all of it. One caller at a time."""
        with self._lock:
            self._tls.write(data)
            encrypted = self._outgoing.read()
        # Not under the lock: a broker that waits for this side to read would wait for a reader that waits for the lock.
        self._socket.sendall(encrypted)

    def send_now(self, data: bytes) -> int:
        """Nothing: writing in TLS may have to wait."""
        return 0

    def receive(self) -> bytes:
        """Some bytes; empty at the end of the stream."""
        while True:
            with self._lock:
                try:
                    return self._tls.read(RECEIVE_BYTES)
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLZeroReturnError:
                    return b""
            data = self._socket.recv(RECEIVE_BYTES)
            if not data:
                return b""
            with self._lock:
                self._incoming.write(data)


def connect(host: str, port: int, tls: ssl.SSLContext | None, seconds: float) -> Stream:
    """Connects within `seconds`; OSError (TimeoutError is one) otherwise."""
    sock = socket.create_connection((host, port), timeout=seconds)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = Stream(sock) if tls is None else TLSStream(sock, tls, host)
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return stream


class Tasks:
    """Background threads. Leaving the block waits for them, unless they were given up."""

    def __init__(self, *, serving: bool = False) -> None:
        del serving  # nothing cancels a thread, and no Ctrl-C meets one
        self._threads: list[threading.Thread] = []
        self._given_up = False

    def __enter__(self) -> Tasks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool | None:
        for thread in self._threads:
            if not self._given_up:
                thread.join()
        return None

    def spawn(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Starts a thread."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=function, args=arguments, daemon=True, name=f"penstock-{function.__name__}")
        self._threads.append(thread)
        thread.start()

    def cancel(self) -> None:
        """Threads cannot be cancelled: those that still run are left to themselves, and are no reason to stay for the process."""
        self._given_up = True


def monotonic() -> float:
    """Seconds of a clock that never jumps."""
    return time.monotonic()


def sleep(seconds: float) -> None:
    """Waits."""
    time.sleep(seconds)


def shielded(seconds: float) -> Any:
    """Nothing cancels a thread."""
    del seconds
    return contextlib.nullcontext()


STARTS_IN_BLOCK = False
"""A Client starts its threads at its first request: one that was made before a fork has none to lose."""
