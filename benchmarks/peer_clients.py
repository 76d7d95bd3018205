"""The peers' side of each scenario, each with the fastest sensible Python client set-up, acknowledged durably.

Redis: streams; XADD in pipelines, 4 threads for batches; XREADGROUP, XACK and XDEL. RabbitMQ: pika's SelectConnection with
publisher confirms and a window; consumer with prefetch 1,000 and one acknowledgement per 100. PostgreSQL: psycopg 3, one
multi-row INSERT per batch; DELETE … FOR UPDATE SKIP LOCKED RETURNING. NATS: publish_async with a window; pull consumer.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any


def _threads(count: int, work: Callable[[], int]) -> float:
    totals: list[int] = []
    threads = [threading.Thread(target=lambda: totals.append(work())) for _ in range(count)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(totals) / (time.monotonic() - started)


def _both(produce: Callable[..., Any], consume: Callable[..., Any], seconds: float, *arguments: Any) -> float:
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    producer = context.Process(target=produce, args=(*arguments, seconds))
    consumer = context.Process(target=_report, args=(consume, (*arguments, seconds), results))
    producer.start()
    consumer.start()
    count = results.get(timeout=seconds + 60)
    producer.join()
    consumer.join()
    return float(count) / seconds


def _report(work: Callable[..., int], arguments: tuple[Any, ...], results: Any) -> None:
    results.put(work(*arguments))


class Redis:
    """redis-py."""

    @staticmethod
    def send(port: int, size: int, seconds: float, batch: int) -> float:
        """XADD; one command a batch of 1, else pipelines from 4 threads."""
        import redis

        body = secrets.token_bytes(size)

        def work() -> int:
            client = redis.Redis(port=port)
            end, count = time.monotonic() + seconds, 0
            while time.monotonic() < end:
                if batch == 1:
                    client.xadd("s", {"b": body})
                else:
                    pipe = client.pipeline(transaction=False)
                    for _ in range(batch):
                        pipe.xadd("s", {"b": body})
                    pipe.execute()
                count += batch
            return count

        return _threads(1 if batch == 1 else 4, work)

    @staticmethod
    def cycle(port: int, size: int, seconds: float, batch: int) -> float:
        """A producer and a consumer process."""
        import redis

        client = redis.Redis(port=port)
        client.delete("c")
        client.xgroup_create("c", "g", id="0", mkstream=True)
        return _both(_redis_produce, _redis_consume, seconds, port, size, batch)


def _redis_produce(port: int, size: int, batch: int, seconds: float) -> None:
    import redis

    body = secrets.token_bytes(size)

    def work() -> int:
        client = redis.Redis(port=port)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pipe = client.pipeline(transaction=False)
            for _ in range(batch):
                pipe.xadd("c", {"b": body})
            pipe.execute()
        return 0

    _threads(2, work)


def _redis_consume(port: int, size: int, batch: int, seconds: float) -> int:
    import redis

    counts: list[int] = []

    def work() -> int:
        name = secrets.token_hex(4)
        client = redis.Redis(port=port)
        end, count = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            answer: Any = client.xreadgroup("g", name, {"c": ">"}, count=max(batch, 1000 if batch >= 100 else batch), block=200)
            for _, entries in answer or ():
                ids = [entry[0] for entry in entries]
                pipe = client.pipeline(transaction=False)
                pipe.xack("c", "g", *ids)
                pipe.xdel("c", *ids)
                pipe.execute()
                count += len(ids)
        counts.append(count)
        return count

    _threads(2, work)
    return sum(counts)


class RabbitMQ:
    """pika."""

    @staticmethod
    def send(port: int, size: int, seconds: float, window: int) -> float:
        """Persistent messages to a quorum queue, at most `window` unconfirmed."""
        publisher = _Publisher(port, "s", size, window, time.monotonic() + seconds + 1)
        publisher.seconds = seconds
        return publisher.run() / seconds

    @staticmethod
    def cycle(port: int, size: int, seconds: float, batch: int) -> float:
        """A publisher and a consumer process."""
        _rabbit_declare(port, "c")
        return _both(_rabbit_produce, _rabbit_consume, seconds, port, size, batch)


def _rabbit_declare(port: int, name: str) -> None:
    import pika

    connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port))
    connection.channel().queue_declare(name, durable=True, arguments={"x-queue-type": "quorum"})
    connection.close()


class _Publisher:
    """A SelectConnection that keeps a window of unconfirmed messages full."""

    def __init__(self, port: int, queue: str, size: int, window: int, end: float) -> None:
        self.port, self.queue, self.window, self.end = port, queue, window, end
        self.body = secrets.token_bytes(size)
        self.sent = self.confirmed = 0
        self.seconds = 0.0

    def run(self) -> int:
        """Publishes until the end; returns the confirmed count."""
        import pika

        _rabbit_declare(self.port, self.queue)
        properties = pika.BasicProperties(delivery_mode=2)

        def on_open(connection: Any) -> None:
            connection.channel(on_open_callback=on_channel)

        def on_channel(channel: Any) -> None:
            if self.seconds:
                self.end = time.monotonic() + self.seconds

            def on_confirm(frame: Any) -> None:
                tag = frame.method.delivery_tag
                self.confirmed = max(self.confirmed, tag) if frame.method.multiple else self.confirmed + 1
                if frame.method.multiple:
                    self.confirmed = tag
                fill()

            def fill() -> None:
                if time.monotonic() > self.end:
                    if connection.is_open:
                        connection.close()
                    return
                while self.sent - self.confirmed < self.window:
                    channel.basic_publish("", self.queue, self.body, properties)
                    self.sent += 1

            channel.confirm_delivery(on_confirm, callback=lambda _: fill())

        parameters = pika.ConnectionParameters("127.0.0.1", self.port)
        connection = pika.SelectConnection(parameters, on_open_callback=on_open)
        with contextlib.suppress(Exception):
            connection.ioloop.start()
        return self.confirmed


def _rabbit_produce(port: int, size: int, batch: int, seconds: float) -> None:
    publisher = _Publisher(port, "c", size, 2000 if batch >= 100 else 20 * batch, time.monotonic() + seconds + 5)
    publisher.seconds = seconds
    publisher.run()


def _rabbit_consume(port: int, size: int, batch: int, seconds: float) -> int:
    import pika

    state = {"count": 0, "pending": 0}
    end = time.monotonic() + seconds + 0.5

    def on_open(connection: Any) -> None:
        connection.channel(on_open_callback=on_channel)

    def on_channel(channel: Any) -> None:
        def on_message(channel_: Any, method: Any, _: Any, __: Any) -> None:
            state["pending"] += 1
            if state["pending"] >= batch:
                channel_.basic_ack(method.delivery_tag, multiple=True)
                state["count"] += state["pending"]
                state["pending"] = 0
                if time.monotonic() > end and connection.is_open:
                    connection.close()

        channel.basic_qos(prefetch_count=1000)
        channel.basic_consume("c", on_message)

    connection = pika.SelectConnection(pika.ConnectionParameters("127.0.0.1", port), on_open_callback=on_open)
    connection.ioloop.call_later(seconds + 1.5, lambda: connection.close() if connection.is_open else None)
    with contextlib.suppress(Exception):
        connection.ioloop.start()
    return state["count"]


class PostgreSQL:
    """psycopg 3."""

    @staticmethod
    def _connect(port: int) -> Any:
        import psycopg

        return psycopg.connect(f"host=127.0.0.1 port={port} user=bench dbname=postgres", autocommit=True)

    @classmethod
    def send(cls, port: int, size: int, seconds: float, batch: int) -> float:
        """One INSERT of many rows a batch, 4 threads (1 for single rows)."""
        with cls._connect(port) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS q (id bigserial PRIMARY KEY, body bytea)")
        body = secrets.token_bytes(size)

        def work() -> int:
            with cls._connect(port) as connection:
                end, count = time.monotonic() + seconds, 0
                while time.monotonic() < end:
                    connection.execute("INSERT INTO q (body) SELECT unnest(%b::bytea[])", ([body] * batch,))
                    count += batch
                return count

        return _threads(1 if batch == 1 else 4, work)

    @classmethod
    def cycle(cls, port: int, size: int, seconds: float, batch: int) -> float:
        """A producer and a consumer process."""
        with cls._connect(port) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS c (id bigserial PRIMARY KEY, body bytea)")
        return _both(_postgresql_produce, _postgresql_consume, seconds, port, size, batch)


def _postgresql_produce(port: int, size: int, batch: int, seconds: float) -> None:
    body = secrets.token_bytes(size)

    def work() -> int:
        with PostgreSQL._connect(port) as connection:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                connection.execute("INSERT INTO c (body) SELECT unnest(%b::bytea[])", ([body] * batch,))
        return 0

    _threads(2, work)


def _postgresql_consume(port: int, size: int, batch: int, seconds: float) -> int:
    counts: list[int] = []
    take = (
        "DELETE FROM c WHERE id = ANY(ARRAY(SELECT id FROM c ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED)) RETURNING id, body"
    )

    def work() -> int:
        with PostgreSQL._connect(port) as connection:
            end, count = time.monotonic() + seconds, 0
            while time.monotonic() < end:
                count += len(connection.execute(take, (batch,)).fetchall())
            counts.append(count)
            return count

    _threads(2, work)
    return sum(counts)


class Nats:
    """nats-py."""

    @staticmethod
    def send(port: int, size: int, seconds: float, window: int) -> float:
        """publish_async with a window of acknowledgements."""
        return asyncio.run(_nats_send(port, size, seconds, window))


async def _nats_send(port: int, size: int, seconds: float, window: int) -> float:
    import nats

    client = await nats.connect(f"nats://127.0.0.1:{port}")
    stream = client.jetstream(publish_async_max_pending=window)
    await stream.add_stream(name="s", subjects=["s"])
    body = secrets.token_bytes(size)
    started, count = time.monotonic(), 0
    while time.monotonic() < started + seconds:
        if window == 1:
            await stream.publish("s", body)
            count += 1
        else:
            pending = [await stream.publish_async("s", body) for _ in range(window)]
            await asyncio.gather(*pending)
            count += window
    elapsed = time.monotonic() - started
    await client.close()
    return count / elapsed
