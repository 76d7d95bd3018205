"""RabbitMQ, a quorum queue with one member: pika's SelectConnection, its fastest connection.

Sends: persistent messages, publisher confirms, `window` of them unconfirmed (1: one at a time); the harness measures windows
of 500 and 2,000 and quotes the better. Cycle: a producer with a window of 2,000, a consumer with one acknowledgement per
batch; prefetches of 1,000 and 4,000 are measured and the better quoted. A quorum queue syncs its log before it confirms.
Acknowledgements of deliveries have no reply in AMQP, so RabbitMQ's deletions count when they are written to the socket, which
helps RabbitMQ.
"""

from __future__ import annotations

import secrets
from typing import Any

import pika
import pika.exceptions

from benchmarks.meter import SURPLUS_PAUSE_SECONDS, Meter, Work

ERRORS = (pika.exceptions.AMQPError,)
PRODUCER_WINDOW = 2000


def _parameters(port: int) -> Any:
    return pika.ConnectionParameters("127.0.0.1", port, heartbeat=0)


def prepare(port: int, work: Work) -> None:
    """Declares the queue."""
    connection = pika.BlockingConnection(_parameters(port))
    connection.channel().queue_declare(work.queue, durable=True, arguments={"x-queue-type": "quorum"})
    connection.close()


def purge(port: int, work: Work) -> None:
    """Empties the queue."""
    connection = pika.BlockingConnection(_parameters(port))
    connection.channel().queue_purge(work.queue)
    connection.close()


class _Publisher:
    """Keeps a window of unconfirmed messages full until it is told to stop, then waits for the last confirms."""

    def __init__(self, meter: Meter, work: Work, window: int) -> None:
        self.meter, self.work, self.window = meter, work, window
        self.body = secrets.token_bytes(work.size_bytes)
        self.properties = pika.BasicProperties(delivery_mode=2)
        self.unconfirmed: set[int] = set()
        self.lowest = self.published = 0
        self.paused = False
        self.connection: Any = None
        self.channel: Any = None

    def on_open(self, connection: Any) -> None:
        """Connected."""
        self.connection = connection
        connection.channel(on_open_callback=self.on_channel)

    def on_channel(self, channel: Any) -> None:
        """The channel is open."""
        self.channel = channel
        channel.confirm_delivery(self.on_confirm, callback=self.on_confirming)

    def on_confirming(self, _: Any) -> None:
        """Confirms are on: begin together with the others."""
        self.meter.ready()
        self.fill()

    def on_confirm(self, frame: Any) -> None:
        """One message or all up to one are safe."""
        if not isinstance(frame.method, pika.spec.Basic.Ack):
            raise RuntimeError(f"refused: {frame.method}")
        tag = frame.method.delivery_tag
        before = len(self.unconfirmed)
        if frame.method.multiple:
            self.unconfirmed.difference_update(range(self.lowest + 1, tag + 1))
            self.lowest = max(self.lowest, tag)
        else:
            self.unconfirmed.discard(tag)
        self.meter.sent(before - len(self.unconfirmed))
        self.fill()

    def fill(self) -> None:
        """Publishes until the window is full; closes when told to stop."""
        if self.meter.stopped:
            if not self.unconfirmed and self.connection.is_open:
                self.connection.close()
            return
        if self.meter.too_far_ahead:
            if not self.paused:
                self.paused = True
                self.connection.ioloop.call_later(0.001, self.resume)
            return
        while len(self.unconfirmed) < self.window:
            self.published += 1
            self.unconfirmed.add(self.published)
            self.channel.basic_publish("", self.work.queue, self.body, self.properties)

    def resume(self) -> None:
        """The pause is over."""
        self.paused = False
        self.fill()


def _run(port: int, on_open: Any) -> None:
    def on_close(connection: Any, reason: Any) -> None:
        connection.ioloop.stop()
        if not isinstance(reason, pika.exceptions.ConnectionClosedByClient):
            raise RuntimeError(f"RabbitMQ closed the connection: {reason!r}")

    def on_error(connection: Any, error: Any) -> None:
        raise RuntimeError(f"cannot connect to RabbitMQ: {error!r}")

    connection = pika.SelectConnection(
        _parameters(port), on_open_callback=on_open, on_close_callback=on_close, on_open_error_callback=on_error
    )
    connection.ioloop.start()


def send(meter: Meter, port: int, work: Work) -> None:
    """Sends alone."""
    _run(port, _Publisher(meter, work, work.window).on_open)


def produce(meter: Meter, port: int, work: Work) -> None:
    """Sends beside a consumer."""
    _run(port, _Publisher(meter, work, PRODUCER_WINDOW).on_open)


def consume(meter: Meter, port: int, work: Work) -> None:
    """Receives and acknowledges."""
    pending = newest = 0
    waits = False

    def on_open(connection: Any) -> None:
        def poll() -> None:
            if meter.stopped:
                connection.close()
            else:
                connection.ioloop.call_later(0.05, poll)

        def on_message(channel: Any, method: Any, _: Any, __: Any) -> None:
            nonlocal pending, newest
            pending, newest = pending + 1, method.delivery_tag
            if pending >= work.batch and not waits:
                acknowledge(channel)

        def acknowledge(channel: Any) -> None:
            nonlocal pending, waits
            waits = meter.overtakes and channel.is_open
            if waits:
                # What is not acknowledged takes room of the prefetch, so no more comes meanwhile.
                connection.ioloop.call_later(SURPLUS_PAUSE_SECONDS, lambda: acknowledge(channel))
            elif channel.is_open:
                channel.basic_ack(newest, multiple=True)
                meter.done(pending)
                pending = 0

        def on_channel(channel: Any) -> None:
            channel.basic_qos(prefetch_count=work.window, callback=lambda _: begin(channel))

        def begin(channel: Any) -> None:
            meter.ready()
            channel.basic_consume(work.queue, on_message)
            poll()

        connection.channel(on_open_callback=on_channel)

    _run(port, on_open)
