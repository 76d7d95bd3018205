"""What SqlStore needs of one kind of database: the seam between sqlite.py and postgresql.py.

Each knows how to connect safely, how to run one fenced commit, and what its driver's errors mean. It knows nothing of
queues: a commit arrives here as steps of SQL text and rows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol

import sqlalchemy as sa

from penstock_storage.interface import CommitFailed, Incarnation, StoreUnreachable
from penstock_storage.statements import Statements

Step = tuple[str, Sequence[tuple[Any, ...]]]
"""One statement's text, and the rows to run it with."""


class Reader(Protocol):
    """A driver's connection, as far as sqlite3 and psycopg agree."""

    def execute(self, query: str, parameters: Any, /) -> ReaderCursor:
        """Runs one statement."""


class ReaderCursor(Protocol):
    """A driver's cursor, as far as sqlite3 and psycopg agree."""

    def fetchone(self) -> Any:
        """The next row, or None."""

    def fetchall(self) -> list[Any]:
        """All rows that are left."""

    def __iter__(self) -> Iterator[Any]:
        """Row by row."""


class Database(Protocol):
    """One database with its engine, pools and error mapping. Thread-safe."""

    statements: Statements
    dialect: sa.Dialect
    limits_rows: bool
    """Whether results come whole, so that statements carry limits. Otherwise cursors go as far as they are read."""

    @property
    def full(self) -> bool:
        """Whether commits that add messages are refused for want of space."""

    @property
    def is_quick(self) -> bool:
        """See Store.is_quick."""

    def commit(self, incarnation: Incarnation, steps: Sequence[Step], adds: bool) -> None:
        """BEGIN, fence, steps, COMMIT. Raises what Store.commit raises. `adds`: it needs space."""

    def transaction(self) -> AbstractContextManager[sa.Connection]:
        """A writing transaction for what is rare. Errors inside it and of its COMMIT are mapped like those of `commit`.

        StoreError raised inside rolls back and passes."""

    def note(self, text: str, row: tuple[Any, ...]) -> None:
        """One small write without a fence, that is right whoever does it. Raises StoreError."""

    def read(self) -> AbstractContextManager[Reader]:
        """A driver's connection that sees everything committed before. Driver errors become StoreError."""

    def firsts(self, firsts: Sequence[int]) -> Any:
        """Sequence numbers as the parameter `firsts` of a statement."""

    def make_room(self) -> bool:
        """Called when something that must be possible meets a full disk. Whether it is worth another try."""

    def renew(self) -> None:
        """Called by acquire, before it looks at anything: lets go of connections whose state is in doubt."""

    def maintain(self) -> None:
        """Called after each sweep: gives space back."""

    def close(self) -> None:
        """Waits for running calls, then lets go of everything."""


class Gate:
    """Counts the calls that are under way, so that `close` can wait for them and refuse later ones. A context manager."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)
        self._inside = 0
        self._closed = False

    def __enter__(self) -> None:
        with self._lock:
            if self._closed:
                raise StoreClosed("the store is closed")
            self._inside += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._inside -= 1
            if self._closed:
                self._condition.notify_all()

    def close(self) -> bool:
        """Lets nobody in any more and waits until everybody is out. False when it was closed before."""
        with self._condition:
            first = not self._closed
            self._closed = True
            self._condition.wait_for(lambda: self._inside == 0)
            return first


class StoreClosed(CommitFailed, StoreUnreachable):
    """Called after `close`: for a commit it means that nothing happened, for a load that nobody answers."""
