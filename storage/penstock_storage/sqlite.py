"""SQLite, the embedded default: one file, one writer, one broker.

- **Durable**: WAL with synchronous=FULL, read back after each connect. Every weaker setting lost acknowledged commits in
  power cuts.
- **One broker**: `<file>.lock` is held with flock while the store is open. The system lets go of it when the process ends.
- **One writer**: a lock here, one connection, BEGIN IMMEDIATE. Loads use other connections, which see the last commit.
- **A full disk stops sends, not deletes**: a full SQLite cannot even delete. So `<file>.reserve` keeps room that is let go when
  the disk is full; from then on commits that add anything are refused until the reserve is back.
- **Errors**: an error before COMMIT means that nothing happened. An error of COMMIT itself means unknown, with one
  exception: SQLITE_FULL. It comes from a write of the WAL that did not fit, before the frame that would make the
  transaction valid was whole, so nothing happened. (An fsync that fails for want of space is SQLITE_IOERR_FSYNC.)

It does not retry anything, and it never runs with a file that something else holds open for writing.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import pathlib
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import sqlalchemy as sa

from penstock_storage.database import Gate, Reader, Step
from penstock_storage.interface import (
    CommitFailed,
    CommitUnknown,
    Fenced,
    Incarnation,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreUnreachable,
)
from penstock_storage.statements import compile_statements

logger = logging.getLogger(__name__)

PAGE_BYTES = 8192
"""A commit writes every page that it touched, whole. With 16 KiB one of sends, receives and deletes in batches of 100 takes a
tenth longer; with 4 KiB so does working off a backlog, for a segment lies on more pages then."""
CHECKPOINT_PAGES = 4000
"""The WAL is copied into the file when it has so many pages: 32 MiB."""
WAL_LIMIT_BYTES = 64 * 1024 * 1024
"""What the WAL's file is cut back to after a checkpoint."""
WAL_ALARM_BYTES = 4 * WAL_LIMIT_BYTES
"""Beyond this the writer waits for the readers, because they keep the WAL from being started anew."""
WAL_WAIT_MS = 100
"""How long it waits for them: far longer than the broker's own loads take, far shorter than anybody's backup."""
WAL_RETRY_S = 5.0
"""How long commits go on before the next try, after one that waited in vain."""
RESERVE_BYTES = 64 * 1024 * 1024
"""More than the pages that a WAL of CHECKPOINT_PAGES may add to the file, with the WAL of some thousand deletes."""
BUSY_TIMEOUT_MS = 5000
"""How long to wait for somebody else's tool (a backup, a shell) that holds the file."""
READERS = 8
LITTLE_ROOM_BYTES = 1024 * 1024
"""With less than that free on its disk, SQLite's I/O errors are about space: a new store takes more."""
RESERVE_RETRY_S = 1.0
"""How often it is tried to make the reserve again."""
VACUUM_PAGES = 4096
"""How much one sweep gives back to the file system: 32 MiB, so that it does not hold up commits for long."""


class SqliteDatabase:
    """One file. See the module's docstring."""

    limits_rows = False

    def __init__(self, path: pathlib.Path, reserve_bytes: int = RESERVE_BYTES) -> None:
        """Opens or makes the file. Raises StoreLocked, StoreFull, StoreUnreachable."""
        self._path = path
        self._reserve = _Reserve(path.with_name(path.name + ".reserve"), reserve_bytes)
        self._gate = Gate()
        self._write_lock = threading.Lock()
        self._wal_tried_s = -WAL_RETRY_S
        """When it was last waited for readers in vain."""
        self._lock_file = _lock(path)
        try:
            _create_private(path)
            self._reserve.ensure()
            self._writer_engine = self._make_engine(read_only=False)
            self._reader_engine = self._make_engine(read_only=True)
            self.dialect = self._writer_engine.dialect
            self.statements = compile_statements(self.dialect)
            self._connect()
            _sync_directory(path.parent)
        except (OSError, sqlite3.Error, sa.exc.DBAPIError) as error:
            os.close(self._lock_file)
            raise _not_opened(path, error) from error
        except StoreError:
            os.close(self._lock_file)
            raise

    @property
    def full(self) -> bool:
        """Whether commits that add anything are refused."""
        return not self._reserve.held

    @property
    def is_quick(self) -> bool:
        """Unless something else is being written, or space is being given back."""
        return not self._write_lock.locked()

    def commit(self, incarnation: Incarnation, steps: Sequence[Step], adds: bool) -> None:
        """One transaction. See Database.commit."""
        with self._gate, self._write_lock:
            if adds and self.full and not self._reserve.ensure_now_and_then():
                raise StoreFull(f"no space left on the disk of {self._path}: sends are refused until there is")
            try:
                self._commit(incarnation, steps)
            except StoreFull:
                self._reserve.release()
                self._checkpoint(BUSY_TIMEOUT_MS)
                if adds:
                    raise
                self._commit(incarnation, steps)
            self._bound_wal()

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """A writing transaction through SQLAlchemy."""
        with self._gate, self._write_lock:
            if self._connection.closed:
                raise CommitFailed("a commit has an unknown outcome; acquire again")
            try:
                self._connection.begin()
                yield self._connection
            except sa.exc.DBAPIError as error:
                self._roll_back()
                raise self._failed(error.orig or error) from error
            except BaseException:
                self._roll_back()
                raise
            try:
                self._connection.commit()
            except sa.exc.DBAPIError as error:
                raise self._commit_error(error.orig or error) from error

    def note(self, text: str, row: tuple[Any, ...]) -> None:
        """See Database.note."""
        with self.transaction() as connection:
            connection.exec_driver_sql(text, row)

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A reading connection whose statements see one state."""
        with self._gate:
            try:
                pooled = self._reader_engine.raw_connection()
            except (sqlite3.Error, sa.exc.SQLAlchemyError) as error:
                raise StoreUnreachable(f"cannot read {self._path}: {error}") from error
            try:
                connection = cast(sqlite3.Connection, pooled.driver_connection)
                connection.execute("BEGIN")
                try:
                    yield connection
                finally:
                    connection.rollback()
            except sqlite3.Error as error:
                pooled.invalidate(error)
                raise StoreError(f"cannot read {self._path}: {error}") from error
            finally:
                pooled.close()

    def firsts(self, firsts: Sequence[int]) -> str:
        """A JSON array: one parameter however many numbers there are."""
        return json.dumps(list(firsts))

    def make_room(self) -> bool:
        """Lets go of the reserve."""
        with self._gate, self._write_lock:
            self._reserve.release()
            self._checkpoint(BUSY_TIMEOUT_MS)
            return True

    def renew(self) -> None:
        """Opens the writer's connection anew, so that nothing is left of what was in doubt."""
        with self._gate, self._write_lock:
            self._reconnect()

    def maintain(self) -> None:
        """Gives free pages back to the file system once a quarter of the file is free, and makes the reserve again."""
        with self._gate, self._write_lock:
            try:
                free = self._cursor.execute("PRAGMA freelist_count").fetchone()[0]
                pages = self._cursor.execute("PRAGMA page_count").fetchone()[0]
                if free and (self.full or (free > VACUUM_PAGES and free * 4 > pages)):
                    # Not execute: it takes only the first of the many steps, one for each page.
                    self._cursor.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
                    self._checkpoint()
            except sqlite3.Error as error:
                # Nothing but space depends on it, and the next sweep tries again.
                logger.warning("could not give space of %s back: %s", self._path, error)
            if self.full:
                self._reserve.ensure()

    def close(self) -> None:
        """Waits for running calls. Closing the last connection moves the WAL into the file."""
        if self._gate.close():
            self._reader_engine.dispose()
            self._disconnect()
            self._writer_engine.dispose()
            os.close(self._lock_file)

    # Connections

    def _make_engine(self, read_only: bool) -> sa.Engine:
        engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(self._path)),
            poolclass=sa.QueuePool,
            pool_size=READERS if read_only else 1,
            max_overflow=0,
            # Pooled connections wander between the broker's worker threads, one at a time.
            connect_args={"check_same_thread": False, "isolation_level": None, "cached_statements": 256},
        )

        def configure(connection: sqlite3.Connection, record: object) -> None:
            _configure(connection, read_only)

        def begin_immediate(connection: sa.Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        sa.event.listen(engine, "connect", configure)
        if not read_only:
            sa.event.listen(engine, "begin", begin_immediate)
        return engine

    def _connect(self) -> None:
        self._connection = self._writer_engine.connect()
        driver = cast(sqlite3.Connection, self._connection.connection.driver_connection)
        self._cursor = driver.cursor()

    def _disconnect(self) -> None:
        with suppress(sqlite3.Error, sa.exc.SQLAlchemyError):
            # It goes away because its state is in doubt or because the store closes; a failure changes nothing.
            self._connection.invalidate()
            self._connection.close()

    def _reconnect(self) -> None:
        self._disconnect()
        try:
            self._connect()
        except (sqlite3.Error, sa.exc.SQLAlchemyError) as error:
            raise _not_opened(self._path, error) from error

    # Committing

    def _commit(self, incarnation: Incarnation, steps: Sequence[Step]) -> None:
        cursor = self._cursor
        try:
            cursor.execute("BEGIN IMMEDIATE")
            held = cursor.execute(self.statements.check_fence, (incarnation.node, incarnation.number)).fetchone()
            if held is None:
                raise Fenced(f"{incarnation} was taken over")
            for text, rows in steps:
                if len(rows) == 1:
                    cursor.execute(text, rows[0])
                else:
                    cursor.executemany(text, rows)
        except sqlite3.Error as error:
            self._roll_back()
            raise self._failed(error) from error
        except BaseException:
            self._roll_back()
            raise
        try:
            cursor.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._commit_error(error) from error

    def _failed(self, error: BaseException) -> StoreError:
        """What an error before COMMIT means: nothing happened."""
        if _lacks_room(self._path, error):
            return StoreFull(f"no space left on the disk of {self._path} ({error})")
        return CommitFailed(str(error))

    def _commit_error(self, error: BaseException) -> StoreError:
        """What a failed COMMIT means; afterwards no transaction is open."""
        if _is_full(error):
            self._roll_back()
            return StoreFull(f"no space left on the disk of {self._path} ({error})")
        logger.error("COMMIT failed on %s, its outcome is unknown: %s", self._path, error)
        self._disconnect()
        return CommitUnknown(f"COMMIT failed: {error}")

    def _roll_back(self) -> None:
        """Ends the transaction; a connection that cannot even do that is closed, which does it too."""
        try:
            if self._connection.in_transaction():
                self._connection.rollback()
            elif cast(sqlite3.Connection, self._connection.connection.driver_connection).in_transaction:
                self._cursor.execute("ROLLBACK")
        except (sqlite3.Error, sa.exc.SQLAlchemyError) as error:
            logger.warning("ROLLBACK failed on %s: %s", self._path, error)
            self._reconnect()

    def _bound_wal(self) -> None:
        """Keeps readers that come and go without a pause from growing the WAL for ever. One that stays costs a short wait now
        and then: the WAL grows on meanwhile."""
        if time.monotonic() - self._wal_tried_s < WAL_RETRY_S:
            return
        try:
            size_bytes = os.stat(f"{self._path}-wal").st_size
        except OSError as error:
            # The commit is durable whatever this says.
            logger.critical("the WAL of %s cannot be looked at: %s", self._path, error)
            return
        if size_bytes > WAL_ALARM_BYTES and not self._checkpoint():
            self._wal_tried_s = time.monotonic()
            logger.warning("a reader keeps the WAL of %s growing: %d bytes", self._path, size_bytes)

    def _checkpoint(self, wait_ms: int = WAL_WAIT_MS) -> bool:
        """Moves the WAL into the file, waiting for readers, and cuts it to nothing. False when a reader was in the way."""
        cursor = self._cursor
        try:
            cursor.execute(f"PRAGMA busy_timeout={wait_ms}").fetchall()
            try:
                busy = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            finally:
                cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}").fetchall()
        except sqlite3.Error as error:
            # What is committed is durable in the WAL; only space depends on this, and it is tried again.
            logger.warning("checkpoint of %s failed: %s", self._path, error)
            return False
        return not busy


class _Reserve:
    """A file whose only content is the room it takes."""

    def __init__(self, path: pathlib.Path, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self._tried_s = 0.0
        self.held = False

    def ensure(self) -> bool:
        """Makes the file if there is room for it. Whether it is there now."""
        self._tried_s = time.monotonic()
        if self._size_bytes == 0:
            self.held = True
            return True
        try:
            # (Not even its name may fit.)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(file, 0, self._size_bytes)
                os.ftruncate(file, self._size_bytes)
            finally:
                os.close(file)
        except OSError as error:
            logger.error("no room for the reserve %s: sends are refused (%s)", self._path, error)
            self._remove()
            return False
        if not self.held:
            logger.info("reserve %s of %d bytes is there", self._path, self._size_bytes)
        self.held = True
        return True

    def ensure_now_and_then(self) -> bool:
        """`ensure`, but not at each of thousands of refused sends."""
        return time.monotonic() - self._tried_s >= RESERVE_RETRY_S and self.ensure()

    def release(self) -> None:
        """Lets go of the room."""
        if self.held:
            logger.error("the disk is full: released the reserve %s, sends are refused", self._path)
        self._tried_s = time.monotonic()
        self._remove()

    def _remove(self) -> None:
        self.held = False
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            # Whoever commits goes on: SQLite itself says whether there is room.
            logger.critical("the reserve %s cannot be removed: %s", self._path, error)


def _configure(connection: sqlite3.Connection, read_only: bool) -> None:
    """Sets and reads back what durability rests on. Raises StoreUnreachable."""
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    if not read_only:
        # These two only have an effect on an empty file.
        cursor.execute(f"PRAGMA page_size={PAGE_BYTES}")
        cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
        cursor.execute(f"PRAGMA journal_size_limit={WAL_LIMIT_BYTES}")
        # Debian builds SQLite with secure_delete: every page that a deleted segment lay on would be zeroed and written once more,
        # which doubles what a message costs the disk. FAST zeroes what is written anyway.
        cursor.execute("PRAGMA secure_delete=FAST")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA cache_size=-32768")
    cursor.execute("PRAGMA temp_store=MEMORY")
    journal_mode = cursor.execute("PRAGMA journal_mode").fetchone()[0]
    synchronous = cursor.execute("PRAGMA synchronous").fetchone()[0]
    if (journal_mode, synchronous) != ("wal", 2):
        raise StoreUnreachable(
            f"SQLite runs with journal_mode={journal_mode} and synchronous={synchronous}; Penstock is only durable "
            "with WAL and FULL (2). Some network file systems cannot do WAL: put the store on a local disk."
        )
    if read_only:
        cursor.execute("PRAGMA query_only=ON")
    cursor.close()


def _lock(path: pathlib.Path) -> int:
    """Takes the lock file; the descriptor holds it. Raises StoreLocked, StoreFull, StoreUnreachable."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _not_opened(path, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        raise StoreLocked(f"another broker has {path} open") from error
    return file


def _create_private(path: pathlib.Path) -> None:
    """Makes the file readable by its owner alone, also when it was there before. SQLite gives WAL the same mode."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if stat.S_IMODE(os.fstat(file).st_mode) != 0o600:
            os.fchmod(file, 0o600)
    finally:
        os.close(file)


def _sync_directory(path: pathlib.Path) -> None:
    """Makes the names of new files durable."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _is_full(error: Any) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _lacks_room(path: pathlib.Path, error: BaseException) -> bool:
    """Whether want of space is behind an error of anything but COMMIT. (SQLite calls it an I/O error where it makes the WAL's
    index, and cannot even open files that have no room for their names.)"""
    if _is_full(error) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return True
    if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        return False
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < LITTLE_ROOM_BYTES


def _not_opened(path: pathlib.Path, error: Exception) -> StoreError:
    """What it means that a file, or a connection to it, could not be opened."""
    cause = getattr(error, "orig", None) or error
    if _lacks_room(path, cause):
        return StoreFull(f"no space left on the disk of {path}: it cannot be opened ({cause})")
    return StoreUnreachable(f"cannot open {path}: {cause}")
