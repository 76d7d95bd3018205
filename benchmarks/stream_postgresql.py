"""PostgreSQL: psycopg 3, the physical reference for a log as rows, not a broker.

Batches: one INSERT of many rows, 4 threads; with many shards each row has a shard, and the primary key begins with it. Singles
pipelined: psycopg's pipeline mode, one commit per 100 INSERTs, 4 threads. Read back: SELECT behind the last id, 1,000 or 5,000
rows at a time, the better is quoted. Tip: the INSERT notifies, a reader that LISTENs selects. (Ids are not given in the order of
commits: a real log needs more than this, which helps PostgreSQL.)
"""

from __future__ import annotations

import secrets
import struct
import time
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from benchmarks.meter import PAUSE_SECONDS, Meter, Work
from benchmarks.peer_redis import threads

SENDERS = 4
PIPELINE = 100
ERRORS = (psycopg.Error,)
INDEX = struct.Struct(">Q")


def _connect(port: int) -> Any:
    return psycopg.connect(f"host=127.0.0.1 port={port} user=bench dbname=postgres", autocommit=True)


def _sql(text: LiteralString, work: Work) -> sql.Composed:
    return sql.SQL(text).format(sql.Identifier(work.queue))


def prepare(port: int, work: Work) -> None:
    """Makes the table."""
    table = "CREATE TABLE {} (shard int NOT NULL, id bigserial, body bytea NOT NULL, PRIMARY KEY (shard, id))"
    with _connect(port) as connection:
        connection.execute(_sql(table, work))


def append(meter: Meter, port: int, work: Work) -> None:
    """Inserts."""
    body = secrets.token_bytes(work.size_bytes)
    connections = [_connect(port) for _ in range(SENDERS)]
    one = _sql("INSERT INTO {} (shard, body) VALUES (0, %b)", work)
    many = _sql("INSERT INTO {} (shard, body) SELECT * FROM unnest(%b::int[], %b::bytea[])", work)
    rows = ([place % work.shards for place in range(work.batch)], [body] * work.batch)

    def loop(number: int) -> None:
        connection = connections[number]
        while not meter.stopped:
            if work.batch > 1:
                connection.execute(many, rows)
                meter.sent(work.batch, number)
            else:
                with connection.pipeline(), connection.cursor() as cursor:
                    for _ in range(PIPELINE):
                        cursor.execute(one, (body,))
                meter.sent(PIPELINE, number)

    meter.ready()
    threads(SENDERS, loop)


def read(meter: Meter, port: int, work: Work) -> None:
    """Reads the `total` rows that are there, again and again, `window` at a time."""
    select = _sql("SELECT id, body FROM {} WHERE shard = 0 AND id > %s ORDER BY id LIMIT %s", work)
    with _connect(port) as connection:
        meter.ready()
        while not meter.stopped:
            after = count = 0
            while count < work.total and not meter.stopped:
                rows = connection.execute(select, (after, work.window), binary=True).fetchall()
                count += len(rows)
                meter.done(len(rows))
                after = rows[-1][0]


def tip_put(meter: Meter, port: int, work: Work) -> None:
    """Inserts one row after the other, and notes when each was answered."""
    rest = secrets.token_bytes(work.size_bytes - INDEX.size)
    insert = _sql(
        "WITH one AS (INSERT INTO {} (shard, body) VALUES (0, %b) RETURNING id) SELECT pg_notify('tip', '') FROM one", work
    )
    with _connect(port) as connection:
        meter.ready()
        for number in range(meter.stamps):
            if meter.stopped:
                return
            body = INDEX.pack(number) + rest
            meter.stamp("put", number, time.monotonic())
            connection.execute(insert, (body,))
            meter.stamp("acknowledged", number, time.monotonic())
            meter.sent(1)
            time.sleep(PAUSE_SECONDS)


def tip_read(meter: Meter, port: int, work: Work) -> None:
    """Waits for notifications, and notes when each row is there."""
    select = _sql("SELECT id, body FROM {} WHERE shard = 0 AND id > %s ORDER BY id", work)
    after = 0
    with _connect(port) as connection:
        connection.execute("LISTEN tip")
        meter.ready()
        while not meter.stopped:
            for _ in connection.notifies(timeout=0.2, stop_after=1):
                pass
            rows = connection.execute(select, (after,), binary=True).fetchall()
            for _, body in rows:
                meter.stamp("seen", INDEX.unpack_from(body)[0], time.monotonic())
                meter.done(1)
            after = rows[-1][0] if rows else after
