"""What becomes of clients when their process forks: servers and task queues do that after their application was imported.

A connection, its threads and its locks belong to the parent. In the child each client is told, before any other code runs
there: a Client begins anew (connection, threads, and a producer id of its own, so that the broker never takes its sends for
the parent's), an AsyncClient says what to do.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

FORKED = "the client was opened before this process was forked; make a new one here, after the fork"
"""What an AsyncClient, or a consumer that was open, says in a child process."""


class Forkable(Protocol):
    """Who wants to know."""

    def forked(self) -> None:
        """This is a child process now."""


_clients: weakref.WeakSet[Forkable] = weakref.WeakSet()


def watch(client: Forkable) -> None:
    """From now on it is told."""
    _clients.add(client)


def _tell() -> None:
    for client in list(_clients):
        client.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tell)
