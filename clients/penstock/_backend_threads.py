"""What the blocking client needs: threads and sockets behind the names of `_backend_async`."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

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
    """A byte stream over TCP or TLS."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def send(self, data: bytes) -> None:
        """Sends all of it. One caller at a time."""
        self._socket.sendall(data)

    def receive(self) -> bytes:
        """Some bytes; empty at the end of the stream."""
        return self._socket.recv(262_144)

    def close(self) -> None:
        """Closes at once; wakes a thread that receives."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._socket.close()


def connect(host: str, port: int, tls: ssl.SSLContext | None, seconds: float) -> Stream:
    """Connects within `seconds`; OSError (TimeoutError is one) otherwise."""
    sock = socket.create_connection((host, port), timeout=seconds)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls is not None:
        sock = tls.wrap_socket(sock, server_hostname=host)
    sock.settimeout(None)
    return Stream(sock)


class Tasks:
    """Background threads. Leaving the block waits for them; `cancel` is for owners who then see to their end."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Tasks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool | None:
        for thread in self._threads:
            thread.join()
        return None

    def spawn(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Starts a thread."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=function, args=arguments, daemon=True, name=f"penstock-{function.__name__}")
        self._threads.append(thread)
        thread.start()

    def cancel(self) -> None:
        """Threads cannot be cancelled: they end by their own conditions."""


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


def cancelled_types() -> tuple[type[BaseException], ...]:
    """What a cancellation raises here: only an interrupt."""
    return (KeyboardInterrupt,)


STARTS_IN_BLOCK = False
"""A Client starts its threads at its first use."""
