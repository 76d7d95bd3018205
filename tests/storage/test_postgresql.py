"""What only a real PostgreSQL can show: fences between brokers, and commits of unknown outcome."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from penstock_storage.interface import (
    Commit,
    CommitFailed,
    CommitUnknown,
    Fenced,
    Incarnation,
    SchemaTooNew,
    StoreFull,
    StoreUnreachable,
)
from penstock_storage.postgresql import _failed, _numbered
from penstock_storage.sql import SqlStore

from tests.postgresql import Cluster
from tests.storage.rows import arrivals, firsts, queue, segment, with_queue

pytestmark = pytest.mark.postgresql

FENCE = b"SELECT 1 FROM fences WHERE node = %s AND incarnation = %s FOR SHARE"  # What a commit of another broker holds.


@pytest.fixture
def store(postgresql_url: str) -> Iterator[SqlStore]:
    store = SqlStore.open(postgresql_url)
    yield store
    store.close()


@pytest.fixture
def other(postgresql_url: str, store: SqlStore) -> Iterator[SqlStore]:
    """A second broker on the same database."""
    other = SqlStore.open(postgresql_url)
    yield other
    other.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def connect(url: str) -> psycopg.Connection[Any]:
    return psycopg.connect(url.replace("+psycopg", ""))


def wait_for_backend(url: str, wait: str, busy: Future[Any]) -> int:
    """The process id of the backend of this database that waits for `wait`, as soon as there is one."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        while not busy.done():
            row = connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = %s", (wait,)
            ).fetchone()
            if row is not None:
                return int(row[0])
    raise AssertionError(f"it ended without waiting: {busy.exception() or busy.result()}")


def test_an_old_owner_cannot_commit_after_a_take_over(store: SqlStore, other: SqlStore) -> None:
    old = with_queue(store)
    store.commit(old, Commit(insert_segments=[segment(7, 1)]))
    new = other.acquire("other", "127.0.0.1:2", 2)
    with pytest.raises(Fenced):
        store.commit(old, Commit(insert_segments=[segment(7, 2)]))
    with pytest.raises(Fenced):
        store.next_id(old)
    other.commit(new, Commit(insert_segments=[segment(7, 3)]))
    assert firsts(arrivals(other)) == [1, 3]
    assert firsts(arrivals(store)) == [1, 3]


def test_a_running_commit_delays_the_take_over_and_is_seen_by_it(
    store: SqlStore, other: SqlStore, postgresql_url: str, threads: ThreadPoolExecutor
) -> None:
    old = with_queue(store)
    with connect(postgresql_url) as running:
        assert running.execute(FENCE, (old.node, old.number)).rowcount == 1
        running.execute("UPDATE logs SET reserved = 4711 WHERE log_id = 7")
        take_over = threads.submit(other.acquire, "other", "b", 2)
        wait_for_backend(postgresql_url, "transactionid", take_over)
        assert other.load_log(queue(7, 7).log_id, 0).reserved == 0
        running.commit()
        new = take_over.result()
    assert other.load_log(queue(7, 7).log_id, 0).reserved == 4711
    with pytest.raises(Fenced):
        store.commit(old, Commit())
    other.commit(new, Commit())


@pytest.mark.parametrize("outcome", ["commit", "rollback"])
def test_a_commit_that_meets_a_running_take_over_waits_for_its_outcome(
    store: SqlStore, postgresql_url: str, threads: ThreadPoolExecutor, outcome: str
) -> None:
    old = with_queue(store)
    with connect(postgresql_url) as taker:
        taker.execute("UPDATE fences SET incarnation = incarnation + 1")
        commit = threads.submit(store.commit, old, Commit(insert_segments=[segment(7, 1)]))
        wait_for_backend(postgresql_url, "transactionid", commit)
        getattr(taker, outcome)()
        if outcome == "commit":
            with pytest.raises(Fenced):
                commit.result()
        else:
            commit.result()
    assert firsts(arrivals(store)) == ([] if outcome == "commit" else [1])


def test_a_fence_row_that_is_not_there_fences(store: SqlStore, postgresql_url: str) -> None:
    incarnation = with_queue(store)
    with connect(postgresql_url) as connection:
        connection.execute("DELETE FROM fences")
    with pytest.raises(Fenced):
        store.commit(incarnation, Commit(insert_segments=[segment(7, 1)]))
    assert arrivals(store) == []


def test_a_fenced_store_is_good_again_after_it_acquires(store: SqlStore, other: SqlStore) -> None:
    old = with_queue(store)
    other.acquire("other", "b", 2)
    for _ in range(3):
        with pytest.raises(Fenced):
            store.commit(old, Commit(insert_segments=[segment(7, 1)]))
    new = store.acquire("node", "a", 3)
    store.commit(new, Commit(insert_segments=[segment(7, 1)]))
    assert firsts(arrivals(other)) == [1]


def test_concurrent_acquires_get_different_numbers_and_one_of_them_wins(
    store: SqlStore, other: SqlStore, threads: ThreadPoolExecutor
) -> None:
    with_queue(store)
    owners = [("a", store), ("b", other), ("c", store), ("d", other)]
    acquired = [threads.submit(broker.acquire, node, "x", 1) for node, broker in owners * 3]
    incarnations = [future.result() for future in acquired]
    assert len({incarnation.number for incarnation in incarnations}) == 12
    last = max(incarnations, key=lambda incarnation: incarnation.number)
    for incarnation in incarnations:
        if incarnation != last:
            with pytest.raises(Fenced):
                store.commit(incarnation, Commit())
    store.commit(last, Commit())


def test_concurrent_first_opens_make_one_schema(postgresql_url: str, threads: ThreadPoolExecutor) -> None:
    start = threading.Barrier(4)

    def open_store() -> bytes:
        start.wait()
        store = SqlStore.open(postgresql_url)
        try:
            return store.cluster_secret()
        finally:
            store.close()

    secrets = {future.result() for future in [threads.submit(open_store) for _ in range(4)]}
    assert len(secrets) == 1


def test_a_newer_schema_is_left_alone(store: SqlStore, postgresql_url: str) -> None:
    with connect(postgresql_url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaTooNew, match="9999"):
        SqlStore.open(postgresql_url)


# Commits of unknown outcome


@pytest.fixture
def absent_standby(postgresql: Cluster) -> Iterator[Callable[[], None]]:
    """Call it to make every commit wait for a synchronous standby that never comes."""
    with psycopg.connect(postgresql.conninfo(), autocommit=True) as admin:

        def demand(standby: str = "nobody") -> None:
            admin.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{standby}'".encode())
            admin.execute("SELECT pg_reload_conf()")
            while True:
                with psycopg.connect(postgresql.conninfo()) as fresh:
                    row = fresh.execute("SHOW synchronous_standby_names").fetchone()
                if row == (standby,):
                    return

        yield demand
        demand("")


@pytest.mark.parametrize("end", ["pg_cancel_backend", "pg_terminate_backend"])
def test_a_commit_that_is_torn_from_its_wait_for_the_standby_is_unknown(
    store: SqlStore,
    postgresql_url: str,
    postgresql: Cluster,
    threads: ThreadPoolExecutor,
    absent_standby: Callable[..., None],
    end: str,
) -> None:
    incarnation = with_queue(store)
    absent_standby()
    commit = threads.submit(store.commit, incarnation, Commit(insert_segments=[segment(7, 1)]))
    backend = wait_for_backend(postgresql_url, "SyncRep", commit)
    with psycopg.connect(postgresql.conninfo(), autocommit=True) as admin:
        admin.execute(f"SELECT {end}({backend})".encode())
    with pytest.raises(CommitUnknown):
        commit.result()
    absent_standby("")
    # PostgreSQL shows the rows although no standby has them; what matters is that nothing goes on under this incarnation.
    refused(store, incarnation)
    again = store.acquire("node", "a", 2)
    assert firsts(arrivals(store)) == [1]
    store.commit(again, Commit(insert_segments=[segment(7, 2)]))
    assert firsts(arrivals(store)) == [1, 2]


def test_a_take_over_waits_for_a_commit_that_waits_for_the_standby_and_sees_its_rows(
    store: SqlStore,
    other: SqlStore,
    postgresql_url: str,
    threads: ThreadPoolExecutor,
    absent_standby: Callable[..., None],
) -> None:
    """The lock of a real commit: it is held to the very end, and the loader after the take-over sees the last batch."""
    old = with_queue(store)
    absent_standby()
    commit = threads.submit(store.commit, old, Commit(insert_segments=[segment(7, 1)]))
    wait_for_backend(postgresql_url, "SyncRep", commit)
    take_over = threads.submit(other.acquire, "other", "b", 2)
    wait_for_backend(postgresql_url, "transactionid", take_over)
    assert not commit.done()
    absent_standby("")
    commit.result()
    other.commit(take_over.result(), Commit())
    assert firsts(arrivals(other)) == [1]
    with pytest.raises(Fenced):
        store.commit(old, Commit())


def test_any_warning_makes_a_commit_unknown(store: SqlStore, postgresql_url: str) -> None:
    incarnation = with_queue(store)
    with connect(postgresql_url) as connection:
        connection.execute(
            "CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE WARNING 'careful'; RETURN NULL; END $$"
        )
        connection.execute(
            "CREATE CONSTRAINT TRIGGER warn AFTER INSERT ON segments DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION warn()"
        )
    store.commit(incarnation, Commit(upsert_resources=[queue(8, 8)]))
    with pytest.raises(CommitUnknown, match="careful"):
        store.commit(incarnation, Commit(insert_segments=[segment(7, 1)]))
    refused(store, incarnation)


def test_an_error_of_commit_itself_is_unknown(store: SqlStore, postgresql_url: str) -> None:
    incarnation = with_queue(store)
    with connect(postgresql_url) as connection:
        connection.execute(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'too late'; END $$"
        )
        connection.execute(
            "CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON segments DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION fail()"
        )
    with pytest.raises(CommitUnknown, match="too late"):
        store.commit(incarnation, Commit(insert_segments=[segment(7, 1)]))
    refused(store, incarnation)
    store.commit(store.acquire("node", "a", 2), Commit())
    assert arrivals(store) == []


def test_a_connection_that_dies_makes_the_commit_unknown_and_acquire_heals_it(store: SqlStore, postgresql_url: str) -> None:
    incarnation = with_queue(store)
    store.commit(incarnation, Commit(insert_segments=[segment(7, 1)]))
    assert firsts(arrivals(store)) == [1]
    end_all_sessions(postgresql_url)
    with pytest.raises(CommitUnknown):
        store.commit(incarnation, Commit(insert_segments=[segment(7, 2)]))
    refused(store, incarnation)
    assert firsts(arrivals(store)) == [1]
    again = store.acquire("node", "a", 2)
    store.commit(again, Commit(insert_segments=[segment(7, 3)]))
    assert firsts(arrivals(store)) == [1, 3]


def test_a_load_on_a_dead_connection_fails_and_the_next_one_connects_anew(store: SqlStore, postgresql_url: str) -> None:
    with_queue(store)
    arrivals(store)
    end_all_sessions(postgresql_url)
    with pytest.raises(StoreUnreachable):
        arrivals(store)
    assert arrivals(store) == []


def test_a_statement_that_fails_is_a_failed_commit_and_the_next_one_succeeds(store: SqlStore) -> None:
    incarnation = with_queue(store)
    for _ in range(3):
        with pytest.raises(CommitFailed):
            store.commit(incarnation, Commit(insert_segments=[segment(7, 1), segment(7, 1)]))
    store.commit(incarnation, Commit(insert_segments=[segment(7, 1)]))
    assert firsts(arrivals(store)) == [1]


def test_a_database_that_is_not_there_cannot_be_reached(postgresql: Cluster) -> None:
    with pytest.raises(StoreUnreachable, match="nowhere"):
        SqlStore.open(postgresql.url("nowhere"))


def test_asynchronous_commits_are_refused(postgresql_url: str) -> None:
    with connect(postgresql_url) as connection:
        name = connection.info.dbname
        connection.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off'.encode())
    with pytest.raises(StoreUnreachable, match="synchronous_commit"):
        SqlStore.open(postgresql_url)


def test_sessions_give_up_their_locks_when_their_broker_stands_still(store: SqlStore, postgresql_url: str) -> None:
    with_queue(store)
    with store._database.transaction() as connection:
        timeout = connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar()
        isolation = connection.exec_driver_sql("SHOW transaction_isolation").scalar()
    assert (timeout, isolation) == ("3s", "read committed")


def test_no_space_is_its_own_error() -> None:
    assert isinstance(_failed("53100", "could not extend file"), StoreFull)
    assert not isinstance(_failed("23505", "duplicate key"), StoreFull)


def test_placeholders_are_numbered_for_the_server() -> None:
    assert _numbered("SELECT %s::BIGINT, %s") == b"SELECT $1::BIGINT, $2"
    assert _numbered("COMMIT") == b"COMMIT"


def refused(store: SqlStore, incarnation: Incarnation) -> None:
    """Until acquire, nothing of this incarnation is committed any more."""
    with pytest.raises(CommitFailed, match="unknown outcome"):
        store.commit(incarnation, Commit(insert_segments=[segment(7, 99)]))
    with pytest.raises(CommitFailed, match="unknown outcome"):
        store.next_id(incarnation)
    with pytest.raises(CommitFailed, match="unknown outcome"):
        store.sweep(incarnation, 10)


def end_all_sessions(url: str) -> None:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
