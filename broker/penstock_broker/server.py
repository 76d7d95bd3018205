"""The doors of a broker: listening sockets, TLS, signals, and the order of a stop.

Stop (SIGTERM or SIGINT): 1. no new connections, readiness is false; 2. waiting receives and consumers are answered with Draining,
what is being committed is still answered, for at most `drain_seconds`; 3. connections close; 4. background and last commit.
A second signal skips the waiting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
import trio
from penstock_storage.interface import Store

from penstock_broker.broker import Broker, BrokerOptions, running
from penstock_broker.ports import Ports

log = structlog.get_logger()

HANDSHAKE_SECONDS = 5.0
BACKLOG = 1024
KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 5))
"""A peer that vanished without a word is found out within two minutes: nothing it took or waits for is kept for ever."""


@dataclasses.dataclass(slots=True)
class ServerOptions:
    """Where a broker listens and how it stops. `tls` may be replaced while it runs: what connects from then on gets the new
    one, whole; the rest is read at the start."""

    host: str = "127.0.0.1"
    port: int = 4567
    tls: ssl.SSLContext | None = None
    max_connections: int = 10_500
    drain_seconds: float = 10.0


async def _accept(broker: Broker, options: ServerOptions, stream: trio.SocketStream) -> None:
    """One connection, from its TLS handshake to its end; its failure is its own."""
    if len(broker.sessions) + broker.handshakes >= options.max_connections:
        broker.counters.connections_failed["TooManyConnections"] += 1
        await trio.aclose_forcefully(stream)
        return
    transport: trio.abc.Stream = stream
    if options.tls is not None:
        secured = trio.SSLStream(stream, options.tls, server_side=True, https_compatible=True)
        broker.handshakes += 1
        try:
            with trio.fail_after(HANDSHAKE_SECONDS):
                await secured.do_handshake()
        except (trio.TooSlowError, trio.BrokenResourceError, ssl.SSLError) as error:
            broker.counters.connections_failed["HandshakeFailed"] += 1
            log.info("TLS handshake failed", reason=str(error))
            await trio.aclose_forcefully(stream)
            return
        finally:
            broker.handshakes -= 1
        transport = secured
    await broker.serve(transport)


async def run_server(
    store: Store,
    ports: Ports,
    broker_options: BrokerOptions,
    server_options: ServerOptions,
    sealing_key: bytes,
    *,
    beside: Callable[[Broker], Awaitable[None]] | None = None,
    on_reload: Callable[[Broker], None] | None = None,
    started: Callable[[Broker, int], None] | None = None,
) -> None:
    """Runs a broker until a signal ends it. `beside` runs along with it (the metrics endpoint); `on_reload` answers
    SIGHUP; `started` gets the broker and the port it listens on. OSError when the address cannot be had."""
    listeners = await trio.open_tcp_listeners(server_options.port, host=server_options.host, backlog=BACKLOG)
    with contextlib.ExitStack() as stack:
        async with trio.open_nursery() as watch:
            async with running(store, ports, broker_options, sealing_key) as broker, trio.open_nursery() as doors:
                connections = await doors.start(_connections, broker, server_options, listeners)
                if beside is not None:
                    doors.start_soon(beside, broker)
                if started is not None:
                    started(broker, listeners[0].socket.getsockname()[1])
                signals = stack.enter_context(trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
                async for number in signals:
                    if number == signal.SIGHUP:
                        if on_reload is not None:
                            on_reload(broker)
                        continue
                    break
                log.info("draining", connections=len(broker.sessions))
                async with trio.open_nursery() as draining:
                    draining.start_soon(_skip_on_signal, signals, draining.cancel_scope)
                    for listener in listeners:
                        await listener.aclose()
                    await broker.drain(server_options.drain_seconds)
                    draining.cancel_scope.cancel()
                # From here on a signal has nothing left to hurry: it must not kill what is being closed.
                watch.start_soon(_ignore, signals)
                connections.cancel()
                doors.cancel_scope.cancel()
            watch.cancel_scope.cancel()
    log.info("stopped")


async def _connections(
    broker: Broker,
    options: ServerOptions,
    listeners: list[trio.SocketListener],
    task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accepts connections, each in a task of its own, until the listeners are closed; then waits for the sessions."""

    async def handle(stream: trio.SocketStream) -> None:
        # (TCP_NODELAY is trio's doing.)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            stream.setsockopt(socket.IPPROTO_TCP, option, value)
        await _accept(broker, options, stream)

    async with trio.open_nursery() as sessions:
        task_status.started(sessions.cancel_scope)
        for listener in listeners:
            sessions.start_soon(_serve_listener, handle, listener, sessions)


async def _serve_listener(
    handle: Callable[[trio.SocketStream], Awaitable[None]], listener: trio.SocketListener, sessions: trio.Nursery
) -> None:
    try:
        await trio.serve_listeners(handle, [listener], handler_nursery=sessions)
    except* trio.ClosedResourceError:
        pass  # the drain closed it


async def _skip_on_signal(signals: Any, scope: trio.CancelScope) -> None:
    async for number in signals:
        if number != signal.SIGHUP:
            log.warning("second signal: not waiting any longer")
            scope.cancel()
            return


async def _ignore(signals: Any) -> None:
    async for _ in signals:
        pass
