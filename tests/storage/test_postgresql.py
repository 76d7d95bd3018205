"""What only a real PostgreSQL can show: fences between brokers, and commits of unknown outcome."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import psycopg
import pytest
from penstock_storage.interface import (
    Commit,
    CommitFailed,
    CommitUnknown,
    Fenced,
    Incarnation,
    LogId,
    SchemaTooNew,
    StoreFull,
    StoreUnreachable,
)
from penstock_storage.postgresql import PostgresqlDatabase, _failed, _numbered, _Pipeline
from penstock_storage.sql import SqlStore
from penstock_storage.steps import steps_of

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
    assert (store.owner(), other.owner()) == (("other", "127.0.0.1:2"),) * 2
    other.commit(new, Commit(insert_segments=[segment(7, 3)]))
    assert firsts(arrivals(other)) == [1, 3]
    assert firsts(arrivals(store)) == [1, 3]


def test_a_take_over_from_another_broker_is_visible_a_restart_is_not(
    store: SqlStore, other: SqlStore, caplog: pytest.LogCaptureFixture
) -> None:
    assert store.owner() is None
    store.acquire("node", "a", 1)
    store.acquire("node", "a", 2)
    assert "took the store over" not in caplog.text
    other.acquire("node", "b", 3)
    assert "took the store over from node at a" in caplog.text


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


def test_any_warning_makes_an_acquire_unknown(store: SqlStore, postgresql_url: str) -> None:
    with connect(postgresql_url) as connection:
        connection.execute(
            "CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE WARNING 'careful'; RETURN NULL; END $$"
        )
        connection.execute(
            "CREATE CONSTRAINT TRIGGER warn AFTER INSERT OR UPDATE ON nodes DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION warn()"
        )
    with pytest.raises(CommitUnknown, match="careful"):
        store.acquire("node", "a", 1)


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


def set_for_database(url: str, setting: str, value: str) -> None:
    with connect(url) as connection:
        connection.execute(f'ALTER DATABASE "{connection.info.dbname}" SET {setting} = {value}'.encode())


@pytest.mark.parametrize("value", ["off", "local"])
def test_commits_that_are_answered_too_early_are_refused(postgresql_url: str, value: str) -> None:
    set_for_database(postgresql_url, "synchronous_commit", value)
    with pytest.raises(StoreUnreachable, match=f"synchronous_commit is {value}"):
        SqlStore.open(postgresql_url)


@pytest.mark.parametrize("value", ["on", "remote_write", "remote_apply"])
def test_commits_that_are_at_least_on_disk_are_welcome(postgresql_url: str, value: str) -> None:
    set_for_database(postgresql_url, "synchronous_commit", value)
    SqlStore.open(postgresql_url).close()


def test_a_session_stays_as_durable_as_it_began(store: SqlStore, postgresql: Cluster) -> None:
    """A reload of the server's configuration changes sessions that are open, but for what they set themselves."""
    with_queue(store)
    with psycopg.connect(postgresql.conninfo(), autocommit=True) as admin, store._database.read() as reader:
        before = reader.execute("SELECT pg_backend_pid()", ()).fetchone()
        try:
            admin.execute("ALTER SYSTEM SET synchronous_commit = off")
            admin.execute("ALTER SYSTEM SET deadlock_timeout = '7s'")  # to see that the reload has arrived
            admin.execute("SELECT pg_reload_conf()")
            while reader.execute("SHOW deadlock_timeout", ()).fetchone() != ("7s",):
                pass
            assert reader.execute("SHOW synchronous_commit", ()).fetchone() == ("on",)
            assert reader.execute("SELECT pg_backend_pid()", ()).fetchone() == before
        finally:
            admin.execute("ALTER SYSTEM RESET ALL")
            admin.execute("SELECT pg_reload_conf()")


def test_a_server_that_does_not_flush_is_named_once(postgresql_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """As the tests' own, which runs with fsync = off."""
    store = SqlStore.open(postgresql_url)
    with_queue(store)
    arrivals(store)
    store.close()
    warned = [record.getMessage() for record in caplog.records if "power cut" in record.getMessage()]
    assert warned == ["the database server runs with fsync = off: a power cut may damage it"]


def test_sessions_give_up_their_locks_when_their_broker_stands_still(store: SqlStore, postgresql_url: str) -> None:
    with_queue(store)
    assert settings(store) == ("3s", "read committed", '"$user", public')
    with pytest.raises(CommitUnknown), store._database.transaction() as connection:
        connection.exec_driver_sql("UPDATE fences SET incarnation = incarnation + 1")
        connection.exec_driver_sql("SET idle_in_transaction_session_timeout = '1ms'")
        with connect(postgresql_url) as other:
            other.execute("SELECT 1 FROM fences FOR UPDATE")


def test_options_of_the_url_are_added_to_what_safety_needs(postgresql_url: str) -> None:
    store = SqlStore.open(f"{postgresql_url}?options=-c%20search_path%3Dpublic")
    with_queue(store)
    assert settings(store) == ("3s", "read committed", "public")
    store.close()
    store = SqlStore.open(f"{postgresql_url}?options=-c%20idle_in_transaction_session_timeout%3D9s")
    assert settings(store)[0] == "9s"
    store.close()


def settings(store: SqlStore) -> tuple[Any, ...]:
    with store._database.transaction() as connection:
        names = ("idle_in_transaction_session_timeout", "transaction_isolation", "search_path")
        return tuple(connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names)


@pytest.mark.parametrize("engine", ["_write_engine", "_read_engine"])
def test_a_server_that_vanished_is_noticed_in_seconds(store: SqlStore, engine: str) -> None:
    pooled = getattr(store._database, engine).raw_connection()
    try:
        with socket.socket(fileno=os.dup(pooled.driver_connection.pgconn.socket)) as tcp:
            assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 3000
            assert tcp.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 2
            assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 1
            assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
    finally:
        pooled.close()


def test_a_server_that_takes_connections_and_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf, pytest.raises(StoreUnreachable, match="timeout"):
        SqlStore.open(f"postgresql+psycopg://postgres@127.0.0.1:{deaf.getsockname()[1]}/x")


def test_a_server_that_only_reads_is_none(postgresql_url: str) -> None:
    SqlStore.open(postgresql_url).close()
    set_for_database(postgresql_url, "default_transaction_read_only", "on")
    with pytest.raises(StoreUnreachable, match="read-only"):
        SqlStore.open(postgresql_url)


class Recorder:
    """A libpq connection that remembers what it was asked, in order."""

    def __init__(self, pgconn: Any) -> None:
        self._pgconn = pgconn
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._pgconn, name)
        if not callable(value):
            return value

        def call(*arguments: Any) -> Any:
            self.calls.append(name if name != "send_query_params" else arguments[0].decode().split()[0])
            return value(*arguments)

        return call


def test_a_commit_is_on_its_way_whole_before_anything_is_waited_for(store: SqlStore) -> None:
    incarnation = with_queue(store)
    database = cast(PostgresqlDatabase, store._database)
    steps = steps_of(database.statements, Commit(insert_segments=[segment(7, 1), segment(7, 2)], trims=[(LogId(7), 1)]))
    fence = (database.statements.check_fence, [(incarnation.node, incarnation.number)])
    database._generation += 1  # a new connection, with nothing prepared
    pooled = database._write_engine.raw_connection()
    try:
        recorder = Recorder(cast(Any, pooled.driver_connection).pgconn)
        _Pipeline(cast(Any, recorder), {}).commit([fence, *steps])
    finally:
        pooled.close()
    sent = [call for call in recorder.calls if call.startswith("send") or call.isupper()]
    assert sent == ["BEGIN", "send_prepare", "send_query_prepared", "send_prepare", "send_query_prepared", "send_prepare",
                    *["send_query_prepared"] * 2, "COMMIT"]  # fmt: skip
    assert recorder.calls.count("pipeline_sync") == 1
    waits = {"flush", "consume_input", "is_busy", "get_result"}
    assert not waits & set(recorder.calls[: recorder.calls.index("pipeline_sync")])
    assert firsts(arrivals(store)) == [1, 2]


@pytest.mark.parametrize("plan", ["force_custom_plan", "force_generic_plan"])
def test_a_page_of_a_stream_costs_what_it_returns_and_not_what_is_stored(store: SqlStore, postgresql_url: str, plan: str) -> None:
    incarnation = with_queue(store)
    store.commit(incarnation, Commit(upsert_resources=[queue(8, 8)]))
    rows = [segment(log_id, 10 * number, 10) for number in range(2000) for log_id in (7, 8)]
    store.commit(incarnation, Commit(insert_segments=rows))
    statements = store._database.statements
    with psycopg.connect(postgresql_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE segments")
        connection.execute(f"SET plan_cache_mode = {plan}".encode())
        for text, arguments in [
            (statements.load_stream, "(10003, 7, 10003, 7, -1, 20, 1000000)"),
            (statements.load_heads, "(7, 10003, 7, -1, 20)"),
        ]:
            connection.execute(b"PREPARE load AS " + _numbered(text))
            explained = connection.execute(f"EXPLAIN (ANALYZE, COSTS OFF) EXECUTE load{arguments}".encode()).fetchall()
            connection.execute("DEALLOCATE load")
            lines = [line.strip() for (line,) in explained]
            kind = "Index Scan" if text == statements.load_stream else "Index Only Scan"
            assert any(line.startswith(f"->  {kind} using segments_by_first on segments (") for line in lines), lines
            assert any(
                line.startswith("->  Index Only Scan Backward using segments_by_first on segments earlier") for line in lines
            )
            assert not [line for line in lines if "Seq Scan" in line or "Bitmap" in line or "Sort" in line]
            assert not [line for line in lines if line.startswith("Rows Removed")], "it walks over what it does not return"


def test_a_page_of_a_stream_is_limited_on_the_server(store: SqlStore) -> None:
    incarnation = with_queue(store)
    rows = [segment(7, 10 * number, 5, payload=bytes([number]) * 100) for number in range(9)]
    store.commit(incarnation, Commit(insert_segments=rows))

    def sent(position: int, max_segments: int, max_bytes: int) -> list[tuple[int, int | None]]:
        parameters = (position, 7, position, 7, -1, max_segments, max_bytes)
        with store._database.read() as reader:
            found = reader.execute(store._database.statements.load_stream, parameters).fetchall()
        return [(row[2], None if row[-1] is None else len(row[-1])) for row in found]

    assert sent(12, 9, 201) == [(10, 100), (20, 100), (30, 100)]
    assert sent(12, 2, 10**6) == [(10, 100), (20, 100)]
    # The head before the position comes to be verified, but not its payload.
    assert sent(15, 9, 200) == [(10, None), (20, 100), (30, 100)]
    assert sent(1000, 9, 200) == [(80, None)]


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
