"""What only SQLite in a file can show: power-loss settings, the lock, a full disk, a failing COMMIT."""

from __future__ import annotations

import contextlib
import errno
import gc
import math
import os
import pathlib
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
from penstock_storage import sqlite
from penstock_storage.interface import (
    Commit,
    CommitFailed,
    CommitUnknown,
    LogId,
    SchemaTooNew,
    SegmentKey,
    StoreFull,
    StoreLocked,
    StoreUnreachable,
)
from penstock_storage.sql import SqlStore
from penstock_storage.sqlite import RESERVE_BYTES, SqliteDatabase, _configure

from tests.storage.rows import arrivals, firsts, queue, segment, state, with_queue

MIB = 1024 * 1024


def open_store(path: pathlib.Path, reserve_bytes: int = MIB) -> SqlStore:
    return SqlStore.open(f"sqlite:///{path}", reserve_bytes=reserve_bytes)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(path: pathlib.Path) -> Iterator[SqlStore]:
    store = open_store(path)
    yield store
    store.close()


def database_of(store: SqlStore) -> SqliteDatabase:
    return cast(SqliteDatabase, store._database)


def test_every_connection_is_durable_against_power_loss(store: SqlStore) -> None:
    def pragma(connection: Any, name: str) -> Any:
        return connection.execute(f"PRAGMA {name}", ()).fetchone()[0]

    writer = database_of(store)._cursor
    assert pragma(writer, "journal_mode") == "wal"
    assert pragma(writer, "synchronous") == 2
    assert pragma(writer, "page_size") == 8192
    assert pragma(writer, "auto_vacuum") == 2
    with database_of(store).read() as reader:
        assert pragma(reader, "synchronous") == 2
        assert pragma(reader, "query_only") == 1


def test_a_file_that_cannot_be_durable_is_refused() -> None:
    connection = sqlite3.connect(":memory:")
    with pytest.raises(StoreUnreachable, match="journal_mode=memory"):
        _configure(connection, read_only=False)
    connection.close()


def test_a_setting_that_did_not_take_is_refused() -> None:
    class Deaf:
        """Says yes to everything and stays with synchronous=NORMAL."""

        def cursor(self) -> Deaf:
            return self

        def execute(self, text: str) -> Deaf:
            self.answer = {"PRAGMA journal_mode": "wal", "PRAGMA synchronous": 1}.get(text)
            return self

        def fetchone(self) -> tuple[Any]:
            return (self.answer,)

    with pytest.raises(StoreUnreachable, match="synchronous=1"):
        _configure(cast(sqlite3.Connection, Deaf()), read_only=False)


def test_all_files_belong_to_their_owner_alone(store: SqlStore, path: pathlib.Path) -> None:
    with_queue(store)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert set(modes) == {"store.db", "store.db-wal", "store.db-shm", "store.db.lock", "store.db.reserve"}
    assert set(modes.values()) == {0o600}


def test_a_file_that_others_could_read_is_closed_to_them(path: pathlib.Path) -> None:
    path.touch(0o644)
    path.chmod(0o644)
    open_store(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_second_broker_is_locked_out_until_the_first_closes(store: SqlStore, path: pathlib.Path) -> None:
    with pytest.raises(StoreLocked):
        open_store(path)
    program = (
        "import sys\nfrom penstock_storage.sql import SqlStore\nfrom penstock_storage.interface import StoreLocked\n"
        "try:\n    SqlStore.open(sys.argv[1])\nexcept StoreLocked:\n    print('locked')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, f"sqlite:///{path}"], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("locked\n", 0), done.stderr
    store.close()
    open_store(path).close()


def test_a_newer_schema_is_left_alone_and_the_lock_let_go(store: SqlStore, path: pathlib.Path) -> None:
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    for _ in range(2):
        with pytest.raises(SchemaTooNew, match="9999"):
            open_store(path)


def test_what_is_no_database_cannot_be_opened(path: pathlib.Path) -> None:
    path.write_bytes(b"this is not a database, however long it is. " * 1000)
    with pytest.raises(StoreUnreachable):
        open_store(path)
    with pytest.raises(StoreUnreachable):
        open_store(path)
    with pytest.raises(StoreUnreachable):
        open_store(pathlib.Path("/proc/nowhere/store.db"))


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///x.db?mode=ro", "mysql://localhost/x", "nonsense"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError):
        SqlStore.open(url)


def test_a_killed_process_leaves_what_it_committed_and_nothing_else(path: pathlib.Path) -> None:
    program = """
import sys, time
from penstock_storage.interface import Commit
from penstock_storage.sql import SqlStore
from tests.storage.rows import segment, with_queue
store = SqlStore.open(sys.argv[1], reserve_bytes=0)
incarnation = with_queue(store)
for first in range(1, 11):
    store.commit(incarnation, Commit(insert_segments=[segment(7, first)]))
with store._database.transaction() as connection:
    connection.exec_driver_sql("DELETE FROM segments WHERE first < 5")
    print("now", flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, f"sqlite:///{path}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=pathlib.Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"now\n"
        process.send_signal(signal.SIGKILL)
    store = open_store(path)
    assert firsts(arrivals(store)) == list(range(1, 11))
    store.close()


def test_calls_after_close_are_refused(store: SqlStore) -> None:
    incarnation = with_queue(store)
    store.close()
    store.close()
    with pytest.raises(CommitFailed, match="closed"):
        store.commit(incarnation, Commit())
    with pytest.raises(StoreUnreachable, match="closed"):
        arrivals(store)


# COMMIT itself fails


class FailingCursor:
    """A cursor whose COMMIT raises, after it was done or instead."""

    def __init__(self, cursor: sqlite3.Cursor, applied: bool, code: int) -> None:
        self._cursor = cursor
        self._applied = applied
        self._code = code

    def execute(self, text: str, parameters: Any = ()) -> sqlite3.Cursor:
        if text == "COMMIT":
            if self._applied:
                self._cursor.execute(text)
            error = sqlite3.OperationalError("injected")
            error.sqlite_errorcode = self._code
            raise error
        return self._cursor.execute(text, parameters)

    def executemany(self, text: str, rows: Any) -> sqlite3.Cursor:
        return self._cursor.executemany(text, rows)


def make_commit_fail(store: SqlStore, applied: bool, code: int) -> None:
    database = database_of(store)
    database._cursor = cast(sqlite3.Cursor, FailingCursor(database._cursor, applied, code))


@pytest.mark.parametrize("applied", [True, False])
def test_an_error_of_commit_is_unknown_and_acquire_tells_the_truth(store: SqlStore, applied: bool) -> None:
    incarnation = with_queue(store)
    make_commit_fail(store, applied, sqlite3.SQLITE_IOERR)
    with pytest.raises(CommitUnknown):
        store.commit(incarnation, Commit(insert_segments=[segment(7, 1)]))
    for _ in range(2):
        with pytest.raises(CommitFailed, match="unknown outcome"):
            store.commit(incarnation, Commit(insert_segments=[segment(7, 2)]))
        with pytest.raises(CommitFailed, match="unknown outcome"):
            store.next_id(incarnation)
        with pytest.raises(CommitFailed, match="unknown outcome"):
            store.sweep(incarnation, 1)
    incarnation = store.acquire("node", "a", 2)
    assert firsts(arrivals(store)) == ([1] if applied else [])
    store.commit(incarnation, Commit(insert_segments=[segment(7, 3)]))
    assert firsts(arrivals(store))[-1] == 3


def test_no_space_at_commit_is_a_failure_and_not_unknown(store: SqlStore) -> None:
    incarnation = with_queue(store)
    cursor = database_of(store)._cursor
    make_commit_fail(store, False, sqlite3.SQLITE_FULL)
    with pytest.raises(StoreFull):
        store.commit(incarnation, Commit(insert_segments=[segment(7, 1)]))
    database_of(store)._cursor = cursor
    store.sweep(incarnation, 1)
    store.commit(incarnation, Commit(insert_segments=[segment(7, 2)]))
    assert firsts(arrivals(store)) == [2]


# A full disk


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file system of 120 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", str(directory)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode()}")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


@pytest.mark.root
def test_a_full_disk_refuses_sends_lets_deletes_through_and_recovers(
    small_disk: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock_storage.sqlite.RESERVE_RETRY_S", math.inf)  # however slow this machine is
    path = small_disk / "store.db"
    reserve = small_disk / "store.db.reserve"
    store = open_store(path, reserve_bytes=RESERVE_BYTES)
    try:
        incarnation = with_queue(store)
        stored = []
        with pytest.raises(StoreFull):
            for first in range(1, 1000):
                store.commit(incarnation, Commit(insert_segments=[segment(7, first, payload=b"x" * MIB)]))
                stored.append(first)
        assert store.full and not reserve.exists()
        assert 20 < len(stored) < 60
        assert firsts(arrivals(store)) == stored

        # Adding is refused at once, everything else goes on.
        with pytest.raises(StoreFull):
            store.commit(incarnation, Commit(insert_segments=[segment(7, 5000)], delete_segments=[SegmentKey(LogId(7), 0, 1)]))
        with pytest.raises(StoreFull):
            store.commit(incarnation, Commit(upsert_resources=[queue(8, 8)]))
        store.commit(incarnation, Commit(upsert_states=[state(7, 2)]))
        incarnation = store.acquire("node", "a", 2)
        for first in stored[5:]:
            store.commit(incarnation, Commit(delete_segments=[SegmentKey(LogId(7), 0, first)]))
        assert firsts(arrivals(store)) == stored[:5]

        # A sweep gives the space back and makes the reserve again; then sends are welcome.
        store.sweep(incarnation, 100)
        assert not store.full and reserve.stat().st_size == RESERVE_BYTES
        store.commit(incarnation, Commit(insert_segments=[segment(7, 6000)]))
    finally:
        store.close()
    store = open_store(path)
    assert firsts(arrivals(store)) == [*stored[:5], 6000]
    store.close()


@pytest.mark.parametrize("call", ["open", "posix_fallocate", "ftruncate"])
def test_a_reserve_that_cannot_even_be_created_refuses_sends_and_ends_nothing(
    store: SqlStore, path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    incarnation = with_queue(store)
    real_open = os.open

    def no_space(*arguments: Any) -> int:
        if call == "open" and not str(arguments[0]).endswith(".reserve"):
            return real_open(*arguments)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    database_of(store)._reserve.release()
    with monkeypatch.context() as full:
        full.setattr(sqlite, "RESERVE_RETRY_S", 0.0)
        full.setattr(os, call, no_space)
        for _ in range(2):
            with pytest.raises(StoreFull):
                store.commit(incarnation, Commit(insert_segments=[segment(7, 1)]))
            store.commit(incarnation, Commit(upsert_states=[state(7, 1)]))
            store.sweep(incarnation, 1)
        assert store.full
    assert not path.with_name("store.db.reserve").exists()
    store.sweep(incarnation, 1)
    assert not store.full
    store.commit(incarnation, Commit(insert_segments=[segment(7, 1)]))


def test_a_reserve_that_cannot_be_removed_ends_nothing(
    store: SqlStore, path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    incarnation = with_queue(store)
    reserve = path.with_name("store.db.reserve")
    reserve.unlink()
    reserve.mkdir()  # as good as a file system that went read-only
    make_commit_fail(store, False, sqlite3.SQLITE_FULL)
    with pytest.raises(StoreFull):
        store.commit(incarnation, Commit(insert_segments=[segment(7, 1)]))
    assert "cannot be removed" in caplog.text


@pytest.mark.root
def test_a_disk_that_is_full_at_the_start_still_serves(small_disk: pathlib.Path) -> None:
    path = small_disk / "store.db"
    store = open_store(path, reserve_bytes=0)
    store.commit(with_queue(store), Commit(insert_segments=[segment(7, 1), segment(7, 2)]))
    store.close()
    (small_disk / "ballast").write_bytes(bytes(80 * MIB))
    store = open_store(path, reserve_bytes=RESERVE_BYTES)
    try:
        assert store.full
        incarnation = store.acquire("node", "a", 2)
        store.commit(incarnation, Commit(delete_segments=[SegmentKey(LogId(7), 0, 1)]))
        assert firsts(arrivals(store)) == [2]
        with pytest.raises(StoreFull):
            store.commit(incarnation, Commit(insert_segments=[segment(7, 3)]))
        (small_disk / "ballast").unlink()
        store.sweep(incarnation, 1)
        assert not store.full
        store.commit(incarnation, Commit(insert_segments=[segment(7, 3)]))
    finally:
        store.close()


@pytest.mark.root
def test_a_disk_without_room_for_a_new_store_is_told_apart_however_full_it_is(small_disk: pathlib.Path) -> None:
    path, ballast = small_disk / "store.db", small_disk / "ballast"
    full_bytes = 0
    with ballast.open("wb", buffering=0) as file:
        for step_bytes in (MIB, 4096):
            with contextlib.suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), 0, full_bytes + step_bytes)
                    full_bytes += step_bytes
        outcomes = {}
        for free_pages in (*range(13), 20, 40, 70, 80, 100, 130, 400):
            os.truncate(ballast, full_bytes - free_pages * 4096)
            outcomes[free_pages] = "opened"
            try:
                with contextlib.closing(open_store(path, reserve_bytes=RESERVE_BYTES)) as store:
                    store.acquire("node", "a", 1)
            except StoreFull as error:
                assert "full" in str(error) or "no space" in str(error)
                outcomes[free_pages] = "full"
            gc.collect()  # (What was not opened is still held by its error.)
            for made in small_disk.glob("store.db*"):
                made.unlink()
            os.posix_fallocate(file.fileno(), 0, full_bytes)
    assert outcomes[0] == outcomes[70] == "full"
    assert outcomes[400] == "opened"


def test_space_is_given_back_after_a_backlog_is_gone(store: SqlStore, path: pathlib.Path) -> None:
    incarnation = with_queue(store)
    for first in range(1, 101):
        store.commit(incarnation, Commit(insert_segments=[segment(7, first, payload=b"x" * MIB)]))
    store.commit(incarnation, Commit(trims=[(LogId(7), 100)]))
    before = path.stat().st_size
    store.sweep(incarnation, 1000)
    store.sweep(incarnation, 1000)
    assert path.stat().st_size < before / 2
    assert firsts(arrivals(store)) == [100]


def test_the_wal_stays_bounded_while_readers_come_and_go(
    store: SqlStore, path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "WAL_ALARM_BYTES", 24 * MIB)
    monkeypatch.setattr(sqlite, "WAL_RETRY_S", 0.0)
    incarnation = with_queue(store)
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            store.load_log(LogId(7), 0)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for first in range(1, 101):
            store.commit(incarnation, Commit(insert_segments=[segment(7, first, payload=b"x" * MIB)]))
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert pathlib.Path(f"{path}-wal").stat().st_size <= 26 * MIB


class WatchedCursor:
    """A cursor that remembers the pragmas it ran."""

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self._cursor = cursor
        self.pragmas: list[str] = []

    def execute(self, text: str, parameters: Any = ()) -> sqlite3.Cursor:
        if text.startswith("PRAGMA"):
            self.pragmas.append(text)
        return self._cursor.execute(text, parameters)

    def executemany(self, text: str, rows: Any) -> sqlite3.Cursor:
        return self._cursor.executemany(text, rows)


def test_a_reader_that_stays_holds_up_commits_for_a_moment_now_and_then_but_not_each_of_them(
    store: SqlStore, path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = [1000.0]
    monkeypatch.setattr(sqlite, "WAL_ALARM_BYTES", 4 * MIB)
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    incarnation = with_queue(store)
    database = database_of(store)
    watched = WatchedCursor(database._cursor)
    database._cursor = cast(sqlite3.Cursor, watched)

    def commit(first: int) -> None:
        store.commit(incarnation, Commit(insert_segments=[segment(7, first, payload=b"x" * MIB)]))

    once = ["PRAGMA busy_timeout=100", "PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA busy_timeout=5000"]
    reader = sqlite3.connect(path)
    try:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM segments").fetchone()
        for first in range(1, 11):
            commit(first)
        assert watched.pragmas == once
        now_s[0] += sqlite.WAL_RETRY_S
        for first in range(11, 16):
            commit(first)
        assert watched.pragmas == once * 2
        assert "a reader keeps the WAL" in caplog.text
    finally:
        reader.close()
    now_s[0] += sqlite.WAL_RETRY_S
    commit(16)
    assert pathlib.Path(f"{path}-wal").stat().st_size == 0
    assert watched.pragmas == once * 3
    assert firsts(arrivals(store)) == list(range(1, 17))


@pytest.mark.parametrize(
    ("statement", "parameters", "expected"),
    [
        ("load_arrivals", (7, 0, 0, 9), "SEARCH segments USING INDEX sqlite_autoindex_segments_1 (log_id=? AND (due_ms,first)>"),
        ("load_totals", (0, 7, 0), "SEARCH segments USING COVERING INDEX segments_by_first (log_id=? AND first>"),
        ("load_stream", (9, 7, 9, 7), "SEARCH segments USING INDEX segments_by_first (log_id=? AND first>"),
        ("load_heads", (7, 9, 7), "SEARCH segments USING COVERING INDEX segments_by_first (log_id=? AND first>"),
        ("load_heads", (7, 9, 7), "SEARCH earlier USING COVERING INDEX segments_by_first (log_id=? AND first>? AND first<?)"),
        ("load_segments", (7, "[1]"), "SEARCH segments USING INDEX segments_by_first (log_id=? AND first=?)"),
        ("locate_segments", (7, "[1]"), "SEARCH segments USING COVERING INDEX segments_by_first (log_id=? AND first=?)"),
        ("load_deliveries", (7, 0), "SEARCH deliveries USING PRIMARY KEY (log_id=? AND number>"),
        ("load_deduplication", (7, 0), "SEARCH deduplication USING PRIMARY KEY (log_id=? AND at_ms>"),
        ("sweepable_segments", (7, 9, 9), "SEARCH segments USING COVERING INDEX segments_by_first (log_id=? AND first<"),
    ],
)
def test_loads_cost_what_they_return_and_not_what_is_stored(
    store: SqlStore, statement: str, parameters: tuple[Any, ...], expected: str
) -> None:
    with database_of(store).read() as reader:
        text = "EXPLAIN QUERY PLAN " + getattr(database_of(store).statements, statement)
        plan = [row[3] for row in reader.execute(text, parameters)]
    assert any(line.startswith(expected) for line in plan), plan
    assert not any(line.startswith(("SCAN segment", "SCAN deliveries", "USE TEMP B-TREE")) for line in plan), plan
