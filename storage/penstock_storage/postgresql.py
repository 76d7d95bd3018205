"""PostgreSQL and what speaks like it, through psycopg.

- **The fence**: each commit takes FOR SHARE on its node's fence row, at READ COMMITTED. The statement divides by the number of
  rows it locked, so that a missing row is an error (22012) and not an empty result: the rest of the transaction, with
  COMMIT, is already on its way behind it.
- **One flush**: BEGIN, fence, rows, COMMIT leave as one pipeline. A broker that is stopped half way holds no lock, and a
  commit costs one round trip. psycopg's own pipeline waits for the socket after every row, so this uses libpq through
  `psycopg.pq`, which also tells exactly which statement an error belongs to.
- **Outcomes**: an ERROR of a statement before COMMIT, on a connection that lives on, means that nothing happened: the
  server skips COMMIT then. Everything else that is not a clean COMMIT is unknown: an error of COMMIT, a lost connection, and
  any WARNING (01000 "canceling wait for synchronous replication" comes with a COMMIT that looks good).
- A commit is never cancelled and has no timeout of its own. TCP gives up on a peer that is gone after seconds.

It never reads from a standby: target_session_attrs=read-write. A connection pooler in between must keep sessions.
"""

from __future__ import annotations

import logging
import select
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import psycopg
import psycopg.pq
import sqlalchemy as sa
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus
from psycopg.pq.abc import PGconn, PGresult

from penstock_storage.database import Gate, Reader, ReaderCursor, Step
from penstock_storage.interface import (
    CommitFailed,
    CommitUnknown,
    Fenced,
    Incarnation,
    StoreError,
    StoreFull,
    StoreUnreachable,
)
from penstock_storage.statements import compile_statements

logger = logging.getLogger(__name__)

CONNECTIONS = 8
"""For commits, and as many again for loads."""
POOL_WAIT_S = 60.0
CONNECT_ARGUMENTS: dict[str, str | int] = {
    "connect_timeout": 2,
    "tcp_user_timeout": 3000,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "target_session_attrs": "read-write",
    "application_name": "penstock",
    # A broker that is stopped inside one of the rare interactive transactions must not hold its locks for long.
    "options": "-c idle_in_transaction_session_timeout=3000 -c default_transaction_isolation=read\\ committed",
}
"""With TCP's defaults a cut-off primary holds a broker up for minutes. What the URL says goes before these."""
TOO_WEAK = ("off", "local")
"""Values of synchronous_commit that answer before a commit is as durable as the server is configured for."""

DISK_FULL = "53100"
DIVISION_BY_ZERO = "22012"
INTEGRITY_CLASS = "23"


class PostgresqlDatabase:
    """One database. See the module's docstring."""

    limits_rows = True

    def __init__(self, url: sa.URL) -> None:
        """Does not connect yet."""
        self._gate = Gate()
        self._generation = 0
        """Connections made under an older one are not used any more."""
        self._looked_at = False
        """Whether the server's own durability was looked at."""
        arguments = {name: value for name, value in CONNECT_ARGUMENTS.items() if name not in url.query}
        if "options" in url.query:
            # Settings of both; the server takes the later one of two of one name.
            arguments["options"] = f"{CONNECT_ARGUMENTS['options']} {' '.join(url.normalized_query['options'])}"
            url = url.difference_update_query(["options"])
        self._where = url.render_as_string(hide_password=True)
        self._write_engine = self._make_engine(url, arguments, "READ COMMITTED")
        # Each statement of a load is its own transaction: one round trip, and nothing is ever left open.
        self._read_engine = self._make_engine(url, arguments, "AUTOCOMMIT")
        # Never connects: it only compiles, with positional parameters.
        self.dialect = sa.create_engine("postgresql+psycopg://", paramstyle="format").dialect
        self.statements = compile_statements(self.dialect)

    @property
    def is_quick(self) -> bool:
        """Never: the network is in between."""
        return False

    @property
    def full(self) -> bool:
        """Never known beforehand: PostgreSQL says so with each commit."""
        return False

    def commit(self, incarnation: Incarnation, steps: Sequence[Step], adds: bool) -> None:
        """One transaction in one flush. See Database.commit."""
        fence: Step = (self.statements.check_fence, [(incarnation.node, incarnation.number)])
        with self._gate:
            try:
                pooled = self._connect(self._write_engine)
            except StoreUnreachable as error:
                raise CommitFailed(str(error)) from error
            try:
                self._commit(pooled, incarnation, [fence, *steps])
            finally:
                pooled.close()

    def _commit(self, pooled: sa.PoolProxiedConnection, incarnation: Incarnation, steps: Sequence[Step]) -> None:
        connection = cast("psycopg.Connection[Any]", pooled.driver_connection)
        prepared = cast("dict[str, bytes]", pooled.info.setdefault("penstock_prepared", {}))
        warnings = cast("list[str]", pooled.info["penstock_warnings"])
        warnings.clear()
        pipeline = _Pipeline(connection.pgconn, prepared)
        try:
            pipeline.commit(steps)
            if warnings:
                raise CommitUnknown(f"COMMIT came with a warning: {'; '.join(warnings)}")
        except Fenced as error:
            raise Fenced(f"{incarnation} was taken over") from error
        except CommitUnknown as error:
            logger.error("the outcome of a commit is unknown: %s", error)
            # Where one connection died, the idle ones most likely did too.
            self._generation += 1
            raise
        finally:
            if not pipeline.clean or warnings:
                pooled.invalidate()

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """A writing transaction through SQLAlchemy."""
        with self._gate:
            try:
                connection = self._write_engine.connect()
            except (psycopg.Error, sa.exc.SQLAlchemyError) as error:
                raise self._unreachable(error) from error
            try:
                warnings = cast("list[str]", connection.connection.info["penstock_warnings"])
                try:
                    yield connection
                except sa.exc.DBAPIError as error:
                    if error.connection_invalidated:
                        raise self._unreachable(error) from error
                    raise _failed(getattr(error.orig, "sqlstate", None), str(error.orig)) from error
                warnings.clear()
                try:
                    connection.commit()
                except sa.exc.DBAPIError as error:
                    connection.invalidate()
                    raise CommitUnknown(f"COMMIT failed: {error.orig}") from error
                if warnings:
                    connection.invalidate()
                    raise CommitUnknown(f"COMMIT came with a warning: {'; '.join(warnings)}")
            finally:
                connection.close()

    def note(self, text: str, row: tuple[Any, ...]) -> None:
        """See Database.note."""
        # Not a reading connection: the caller may hold one, and all of them may be such callers.
        with self.transaction() as connection:
            connection.exec_driver_sql(text, row)

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A connection on which every statement sees everything that is committed."""
        with self._gate:
            pooled = self._connect(self._read_engine)
            try:
                yield _BinaryReader(cast("psycopg.Connection[Any]", pooled.driver_connection))
            except psycopg.Error as error:
                pooled.invalidate(error)
                if isinstance(error, psycopg.OperationalError):
                    # The other idle connections are most likely dead too.
                    self._generation += 1
                    raise self._unreachable(error) from error
                raise StoreError(f"cannot read {self._where}: {error}") from error
            finally:
                pooled.close()

    def firsts(self, firsts: Sequence[int]) -> list[int]:
        """An array."""
        return list(firsts)

    def make_room(self) -> bool:
        """There is no reserve."""
        return False

    def renew(self) -> None:
        """Connections in doubt were left behind when the doubt arose."""

    def maintain(self) -> None:
        """Autovacuum does it."""

    def close(self) -> None:
        """Waits for running calls, then closes all connections."""
        if self._gate.close():
            self._write_engine.dispose()
            self._read_engine.dispose()

    def _make_engine(self, url: sa.URL, arguments: dict[str, str | int], isolation_level: Any) -> sa.Engine:
        engine = sa.create_engine(
            url,
            connect_args=arguments,
            isolation_level=isolation_level,
            poolclass=sa.QueuePool,
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=POOL_WAIT_S,
            pool_use_lifo=True,
        )
        sa.event.listen(engine, "connect", self._watch)
        sa.event.listen(engine, "checkout", self._refuse_old)
        return engine

    def _connect(self, engine: sa.Engine) -> sa.PoolProxiedConnection:
        try:
            return engine.raw_connection()
        except (psycopg.Error, sa.exc.SQLAlchemyError) as error:
            raise self._unreachable(error) from error

    def _refuse_old(self, connection: object, record: sa.pool.ConnectionPoolEntry, proxy: object) -> None:
        """Makes the pool replace a connection from before the last loss."""
        if record.info["penstock_generation"] != self._generation:
            raise sa.exc.DisconnectionError("from before a loss")

    def _watch(self, connection: psycopg.Connection[Any], record: sa.pool.ConnectionPoolEntry) -> None:
        """Refuses a session that is not durable, and collects what the server warns of."""
        warnings: list[str] = []
        record.info["penstock_warnings"] = warnings
        record.info["penstock_generation"] = self._generation

        def note(diagnostic: psycopg.errors.Diagnostic) -> None:
            if diagnostic.severity_nonlocalized == "WARNING":
                warnings.append(f"{diagnostic.sqlstate} {diagnostic.message_primary}")
                logger.warning("the database warns: %s", warnings[-1])

        connection.add_notice_handler(note)
        # Setting it to what it is keeps a later change of the server's configuration out of this session.
        row = connection.execute(
            "SELECT set_config('synchronous_commit', current_setting('synchronous_commit'), false)"
        ).fetchone()
        connection.commit()
        if row is None or row[0] in TOO_WEAK:
            connection.close()
            raise psycopg.OperationalError(f"synchronous_commit is {row and row[0]}: acknowledged commits could be lost")
        if not self._looked_at:
            self._looked_at = True
            for (name,) in connection.execute(
                "SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off'"
            ):
                logger.warning("the database server runs with %s = off: a power cut may damage it", name)
            connection.commit()

    def _unreachable(self, error: BaseException) -> StoreUnreachable:
        return StoreUnreachable(f"cannot reach {self._where}: {error}")


class _BinaryReader:
    """Asks for results in the binary format, which spares PostgreSQL and psycopg the hex of payloads."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def execute(self, query: str, parameters: Any, /) -> ReaderCursor:
        """Runs one statement and fetches its whole result."""
        return self._connection.execute(query.encode(), parameters, binary=True)


class _Pipeline:
    """One transaction in one flush on libpq's pipeline mode."""

    def __init__(self, pgconn: PGconn, prepared: dict[str, bytes]) -> None:
        self._pgconn = pgconn
        self._prepared = prepared
        self._new: dict[str, bytes] = {}
        self.clean = True
        """Whether the connection can be used again."""

    def commit(self, steps: Sequence[Step]) -> None:
        """Raises CommitFailed, Fenced, StoreFull or CommitUnknown."""
        self.clean = False
        try:
            commands = self._queue(steps)
        except psycopg.Error as error:
            # COMMIT was not queued; closing the connection rolls back whatever was sent.
            raise CommitFailed(f"could not send: {error}") from error
        try:
            # From here on COMMIT may reach the server, whatever happens.
            self._pgconn.send_query_params(b"COMMIT", None)
            self._pgconn.pipeline_sync()
            self._flush()
            failed = self._collect(commands)
        except (psycopg.Error, OSError) as error:
            raise CommitUnknown(f"the connection was lost during a commit: {error}") from error
        if failed is None:
            self._pgconn.exit_pipeline_mode()
            self._prepared.update(self._new)
            self.clean = True
            return
        self._raise(*failed)

    def _queue(self, steps: Sequence[Step]) -> int:
        """Hands everything but COMMIT to libpq. Returns the number of commands, with COMMIT."""
        pgconn = self._pgconn
        pgconn.enter_pipeline_mode()
        pgconn.send_query_params(b"BEGIN ISOLATION LEVEL READ COMMITTED", None)
        commands = 1
        for text, rows in steps:
            name = self._prepared.get(text) or self._new.get(text)
            if name is None:
                name = b"penstock_%d" % (len(self._prepared) + len(self._new))
                pgconn.send_prepare(name, _numbered(text))
                self._new[text] = name
                commands += 1
            for row in rows:
                pgconn.send_query_prepared(name, [_encode(value) for value in row], [_format(value) for value in row])
            commands += len(rows)
        return commands + 1

    def _flush(self) -> None:
        """Sends everything, reading meanwhile, so that neither side waits for the other with full buffers."""
        pgconn = self._pgconn
        while pgconn.flush():
            if self._wait(select.POLLIN | select.POLLOUT) & select.POLLIN:
                pgconn.consume_input()

    def _collect(self, commands: int) -> tuple[bool, PGresult] | None:
        """Reads all results. None when all is well, else (was it COMMIT itself, the first bad result)."""
        first_bad: tuple[bool, PGresult] | None = None
        for position in range(1, commands + 1):
            while (result := self._next_result()) is not None:
                last = position == commands
                status = result.status
                if status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK) or (last and result.command_status != b"COMMIT"):
                    first_bad = first_bad or (last, result)
        result = self._next_result()
        if result is None or result.status != ExecStatus.PIPELINE_SYNC or self._pgconn.status != ConnStatus.OK:
            raise psycopg.OperationalError("the pipeline did not end as it should")
        return first_bad

    def _next_result(self) -> PGresult | None:
        while self._pgconn.is_busy():
            self._wait(select.POLLIN)
            self._pgconn.consume_input()
        return self._pgconn.get_result()

    def _wait(self, events: int) -> int:
        poll = select.poll()
        poll.register(self._pgconn.socket, events)
        return poll.poll()[0][1]

    def _raise(self, was_commit: bool, result: PGresult) -> NoReturn:
        """Ends the transaction and says what the bad result means."""
        state = (result.error_field(DiagnosticField.SQLSTATE) or b"").decode()
        message = (result.error_message or b"no message").decode("utf-8", "replace").strip()
        severity = result.error_field(DiagnosticField.SEVERITY_NONLOCALIZED)
        if was_commit or severity != b"ERROR":
            raise CommitUnknown(f"COMMIT failed: {state} {message}")
        self._pgconn.exit_pipeline_mode()
        rolled_back = self._pgconn.exec_(b"ROLLBACK")
        # Statements prepared in this flush may exist or not, and other errors may be the connection's own fault (a prepared
        # statement that is gone): then only a new connection is sure.
        expected = state == DIVISION_BY_ZERO or state.startswith(INTEGRITY_CLASS)
        self.clean = expected and rolled_back.status == ExecStatus.COMMAND_OK and not self._new
        if state == DIVISION_BY_ZERO:
            raise Fenced(message)
        raise _failed(state, message)


def _numbered(text: str) -> bytes:
    """psycopg's placeholders as the server's."""
    parts = text.split("%s")
    return "".join(f"{part}${number}" for number, part in enumerate(parts[:-1], 1)).encode() + parts[-1].encode()


def _encode(value: Any) -> bytes | None:
    """A parameter: bytes as they are (binary format), numbers and text as text."""
    if value is None or isinstance(value, bytes):
        return value
    return str(value).encode()


def _format(value: Any) -> int:
    return 1 if isinstance(value, bytes) else 0


def _failed(state: str | None, message: str) -> StoreError:
    """What an error before COMMIT means: nothing happened."""
    return StoreFull(message) if state == DISK_FULL else CommitFailed(message)
