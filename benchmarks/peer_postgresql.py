"""PostgreSQL: psycopg 3, the physical reference for rows, not a broker.

Batches: one INSERT of many rows, 4 threads. Singles in flight: psycopg's pipeline mode, one commit per 100 INSERTs, 4 threads.
Cycle: 2 producer and 2 consumer threads; DELETE … FOR UPDATE SKIP LOCKED RETURNING takes and deletes a batch in one statement,
so that it pays one commit where a broker pays for the receive and for the deletion.
"""

from __future__ import annotations

import secrets
import time
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from benchmarks.meter import SURPLUS_PAUSE_SECONDS, Meter, Work
from benchmarks.peer_redis import threads

SENDERS, PRODUCERS, CONSUMERS = 4, 2, 2
ERRORS = (psycopg.Error,)
PIPELINE = 100


def _connect(port: int) -> Any:
    return psycopg.connect(f"host=127.0.0.1 port={port} user=bench dbname=postgres", autocommit=True)


def _sql(text: LiteralString, work: Work) -> sql.Composed:
    return sql.SQL(text).format(sql.Identifier(work.queue))


def prepare(port: int, work: Work) -> None:
    """Makes the table."""
    with _connect(port) as connection:
        connection.execute(_sql("CREATE TABLE {} (id bigserial PRIMARY KEY, body bytea NOT NULL)", work))


def purge(port: int, work: Work) -> None:
    """Empties the table."""
    with _connect(port) as connection:
        connection.execute(_sql("TRUNCATE {}", work))


def send(meter: Meter, port: int, work: Work) -> None:
    """Sends alone."""
    _send(meter, port, work, 1 if work.batch == 1 and work.window == 1 else SENDERS)


def produce(meter: Meter, port: int, work: Work) -> None:
    """Sends beside a consumer."""
    _send(meter, port, work, PRODUCERS)


def _send(meter: Meter, port: int, work: Work, count: int) -> None:
    body = secrets.token_bytes(work.size_bytes)
    connections = [_connect(port) for _ in range(count)]
    one = _sql("INSERT INTO {} (body) VALUES (%b)", work)
    many = _sql("INSERT INTO {} (body) SELECT unnest(%b::bytea[])", work)
    bodies = ([body] * work.batch,)

    def loop(number: int) -> None:
        connection = connections[number]
        while not meter.stopped:
            if meter.too_far_ahead:
                time.sleep(0.001)
            elif work.batch > 1:
                connection.execute(many, bodies)
                meter.sent(work.batch, number)
            elif work.window == 1:
                connection.execute(one, (body,))
                meter.sent(1, number)
            else:
                with connection.pipeline(), connection.cursor() as cursor:
                    for _ in range(PIPELINE):
                        cursor.execute(one, (body,))
                meter.sent(PIPELINE, number)

    meter.ready()
    threads(count, loop)


def consume(meter: Meter, port: int, work: Work) -> None:
    """Takes and deletes."""
    connections = [_connect(port) for _ in range(CONSUMERS)]
    take = _sql(
        "DELETE FROM {0} WHERE id = ANY(ARRAY(SELECT id FROM {0} ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED))"
        " RETURNING id, body",
        work,
    )

    def loop(number: int) -> None:
        connection = connections[number]
        while not meter.stopped:
            if meter.overtakes:
                time.sleep(SURPLUS_PAUSE_SECONDS)
                continue
            rows = connection.execute(take, (work.batch,), binary=True).fetchall()
            meter.done(len(rows), number)
            if not rows:
                time.sleep(0.001)

    meter.ready()
    threads(CONSUMERS, loop)
