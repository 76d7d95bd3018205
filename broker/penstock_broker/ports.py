"""Everything the broker takes from outside: time, chance and threads. The simulation gives its own."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from penstock_broker.commit_thread import CommitThread

T = TypeVar("T")

LOAD_THREADS = 8
"""Store calls at a time besides the lane's: what loads a lot must not take all connections of the store."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ports:
    """`now_ms`: wall-clock milliseconds that never run backwards within one life. `random_bytes(n)`: unguessable bytes.
    `in_thread(function, *arguments)`: runs a blocking call elsewhere; it is never abandoned, so it may not be cancelled.
    `in_commit_thread`: likewise for the commit lane, one call at a time, and nothing is in its way; None: the same."""

    now_ms: Callable[[], int]
    random_bytes: Callable[[int], bytes]
    in_thread: Callable[..., Awaitable[Any]]
    in_commit_thread: Callable[..., Awaitable[Any]] | None = None


def steady_wall_clock() -> Callable[[], int]:
    """Milliseconds since the epoch: the wall clock at the start plus the monotonic clock since. A jump of the machine's
    clock while the broker runs moves no deadline."""
    start = time.time() - time.monotonic()

    def now_ms() -> int:
        return int((start + time.monotonic()) * 1000)

    return now_ms


def _in_thread(limiter: trio.CapacityLimiter) -> Callable[..., Awaitable[Any]]:
    async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
        """Runs it in a worker thread and waits until it ends, whatever is cancelled meanwhile."""
        with trio.CancelScope(shield=True):
            result = await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=False, limiter=limiter)
        return result  # noqa: RET504 - a scope might swallow, says the type checker

    return in_thread


def real_ports() -> Ports:
    """The ports of a broker in production."""
    loads = trio.CapacityLimiter(LOAD_THREADS)
    return Ports(steady_wall_clock(), secrets.token_bytes, _in_thread(loads), CommitThread().run)
