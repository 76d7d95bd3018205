"""Connections: how many, how long they may say nothing, TLS, and that those that end leave nothing behind."""

from __future__ import annotations

import contextlib
import gc
import resource
import socket
import ssl
import struct
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing
from penstock import Client
from penstock_broker.broker import Broker, BrokerOptions
from penstock_broker.ports import real_ports
from penstock_broker.server import HANDSHAKE_SECONDS, ServerOptions, _accept, run_server
from penstock_broker.session import HELLO_SECONDS, Session
from penstock_broker.tls import make_context
from penstock_protocol import queue_messages as q
from penstock_protocol import session_messages as s
from penstock_protocol.errors import ProtocolError
from penstock_protocol.frames import HEADER, MAGIC, Kind, pack_frame
from penstock_storage.memory import MemoryDisk, MemoryStore

from tests.broker.inside import SEALING_KEY, House, Peer, house, make_key, on_jumping_clock
from tests.broker_process import free_port, running_broker
from tests.clients.certificates import Authority

IDLE_CONNECTIONS = 10_000
CONNECTION_BYTES = 40 * 1024
"""What one idle connection may cost the broker (a session with its two tasks, buffers and socket)."""


# Silence


@pytest.mark.parametrize(
    "first",
    [
        b"",
        MAGIC[:3],
        MAGIC,
        MAGIC + HEADER.pack(100, Kind.REQUEST, 0, 1, 1),
        MAGIC + HEADER.pack(100, Kind.REQUEST, 0, 1, 1) + b"x",
    ],
    ids=["nothing", "half the magic", "the magic", "a header", "half a frame"],
)
@on_jumping_clock
async def test_whoever_does_not_say_hello_in_time_is_cut_off(first: bytes) -> None:
    async with house() as one:
        peer = one.connect()
        if first:
            await peer.write(first)
        started = trio.current_time()
        assert isinstance(await peer.end(), ProtocolError)
        assert trio.current_time() - started == HELLO_SECONDS
        assert one.broker.counters.connections_failed == {"ProtocolError": 1}


@on_jumping_clock
async def test_saying_hello_one_byte_at_a_time_does_not_gain_time() -> None:
    async with house() as one:
        peer = one.connect()
        started = trio.current_time()
        with contextlib.suppress(trio.BrokenResourceError):
            for byte in peer.hello_bytes():
                await peer.write(bytes([byte]))
                await trio.sleep(0.9)
        assert isinstance(await peer.end(), ProtocolError)
        assert trio.current_time() - started < HELLO_SECONDS + 1


@on_jumping_clock
async def test_whoever_does_not_prove_who_they_are_in_time_is_cut_off() -> None:
    disk = MemoryDisk()
    key_id, _ = make_key(disk, "admin")
    async with house(disk) as one:
        peer = one.connect()
        started = trio.current_time()
        await trio.sleep(3)
        await peer.hello(key_id=key_id)
        assert isinstance(await peer.end(), ProtocolError)
        assert trio.current_time() - started == HELLO_SECONDS, "from the start of the connection, not from the hello"


@on_jumping_clock
async def test_an_open_connection_may_say_nothing_for_hours() -> None:
    async with house() as one:
        peer = await one.client()
        await trio.sleep(2 * 3600)
        assert await peer.call(s.Empty(), "Ping") == s.Empty()


# The end of connections


@on_jumping_clock
async def test_connections_that_end_in_any_way_leave_nothing_behind() -> None:
    async with house() as one:
        await (await one.client()).create("jobs")
        (runtime,) = one.broker.queues.runtimes.values()

        async def come_and_go(number: int) -> None:
            peer = one.connect()
            if number % 5 == 0:
                await peer.write(MAGIC[:5])
            elif number % 5 == 1:
                await peer.write(b"rubbish!")
            else:
                await peer.hello()
                await peer.say(q.ReceiveMessages("jobs", 1, wait_ms=20_000))
                await peer.say(q.Consume("jobs", 5, release=True))
                if number % 5 == 2:
                    await peer.write(pack_frame(Kind.REQUEST, 24, 50, b"\x91"))
                elif number % 5 == 3:
                    await peer.write(pack_frame(Kind.PUSH, 24, 50, b"\x91"))
                    await peer.end()
            await peer.close()

        for number in range(500):
            await come_and_go(number)
        await trio.testing.wait_all_tasks_blocked()
        counters = one.broker.counters
        assert counters.connections == len(one.broker.sessions) == 1
        assert counters.connections_opened == 501
        assert not runtime.waiters and not runtime.consumers
        gc.collect()
        assert sum(isinstance(thing, Session) for thing in gc.get_objects()) == 1
        assert not counters.background_errors and "InternalError" not in counters.connections_failed


# TLS, over streams in memory


def _dial(one: House, options: ServerOptions, nursery: trio.Nursery) -> trio.abc.Stream:
    near, far = trio.testing.memory_stream_pair()
    nursery.start_soon(_accept, one.broker, options, cast(trio.SocketStream, far))
    return near


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@on_jumping_clock
async def test_a_client_speaks_through_tls(authority: Authority) -> None:
    async with house() as one, trio.open_nursery() as nursery:
        stream = _dial(one, ServerOptions(tls=authority.server()), nursery)
        peer = Peer(trio.SSLStream(stream, authority.client(), server_hostname="127.0.0.1"), "tls")
        await peer.hello()
        assert await peer.call(s.Empty(), "Ping") == s.Empty()
        nursery.cancel_scope.cancel()


@on_jumping_clock
async def test_with_mutual_tls_a_client_without_certificate_gets_nowhere(authority: Authority) -> None:
    options = ServerOptions(tls=authority.server(mutual=True))
    async with house() as one, trio.open_nursery() as nursery:
        stranger = trio.SSLStream(_dial(one, options, nursery), authority.client(), server_hostname="127.0.0.1")
        with pytest.raises(trio.BrokenResourceError):
            # (With TLS 1.3 a client learns of its refusal when it first reads.)
            await stranger.send_all(MAGIC)
            await stranger.receive_some()
        assert one.broker.counters.connections_failed == {"HandshakeFailed": 1}
        assert one.broker.counters.connections_opened == 0
        friend = trio.SSLStream(_dial(one, options, nursery), authority.client(certified=True), server_hostname="127.0.0.1")
        await Peer(friend, "friend").hello()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("first", [b"", b"\x16\x03\x01\x00\xc5", MAGIC, b"GET / HTTP/1.1\r\n\r\n"], ids=repr)
@on_jumping_clock
async def test_a_handshake_that_comes_to_nothing_is_given_up(first: bytes, authority: Authority) -> None:
    async with house() as one, trio.open_nursery() as nursery:
        stream = _dial(one, ServerOptions(tls=authority.server()), nursery)
        started = trio.current_time()
        if first:
            await stream.send_all(first)
        with contextlib.suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
        assert trio.current_time() - started <= HANDSHAKE_SECONDS
        await trio.testing.wait_all_tasks_blocked()
        assert one.broker.counters.connections_failed == {"HandshakeFailed": 1}
        assert one.broker.handshakes == 0


@on_jumping_clock
async def test_handshakes_count_as_connections(authority: Authority) -> None:
    options = ServerOptions(tls=authority.server(), max_connections=3)
    async with house() as one, trio.open_nursery() as nursery:
        for _ in range(3):
            _dial(one, options, nursery)
        await trio.testing.wait_all_tasks_blocked()
        assert await _dial(one, options, nursery).receive_some() == b""
        assert one.broker.counters.connections_failed == {"TooManyConnections": 1}
        await trio.sleep(HANDSHAKE_SECONDS + 0.1)
        stream = _dial(one, options, nursery)
        await Peer(trio.SSLStream(stream, authority.client(), server_hostname="127.0.0.1"), "tls").hello()
        nursery.cancel_scope.cancel()


# The listening socket


class Door:
    """A server on a free port of this machine, and those who call."""

    def __init__(self, broker: Broker, port: int) -> None:
        self.broker = broker
        self._port = port
        self.peers: list[Peer] = []

    async def dial(self) -> Peer:
        """A connection that has not said anything."""
        peer = Peer(await trio.open_tcp_stream("127.0.0.1", self._port), f"peer {len(self.peers)}")
        self.peers.append(peer)
        return peer

    async def sessions_become(self, count: int) -> None:
        """Waits until the broker has noticed who is gone."""
        while len(self.broker.sessions) != count:  # noqa: ASYNC110 - the test's time is limited
            await trio.sleep(0.01)


@contextlib.asynccontextmanager
async def _door(options: ServerOptions) -> AsyncIterator[Door]:
    send, receive = trio.open_memory_channel[Door](1)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                await run_server(
                    MemoryStore(MemoryDisk()),
                    real_ports(),
                    BrokerOptions(),
                    options,
                    SEALING_KEY,
                    started=lambda broker, port: send.send_nowait(Door(broker, port)),
                )

            nursery.start_soon(serve)
            door = await receive.receive()
            yield door
            for peer in door.peers:
                await peer.close()
            nursery.cancel_scope.cancel()


def test_beyond_max_connections_a_connection_is_closed_and_the_others_go_on() -> None:
    async def main() -> None:
        async with _door(ServerOptions(port=0, max_connections=3)) as door:
            peers = [await door.dial() for _ in range(3)]
            for peer in peers:
                await peer.hello()
            assert await (await door.dial()).end() is None
            assert door.broker.counters.connections_failed == {"TooManyConnections": 1}
            for peer in peers:
                await peer.call(s.Empty(), "Ping")
            await peers[0].close()
            await door.sessions_become(2)
            await (await door.dial()).hello()

    trio.run(main)


def test_a_peer_that_vanishes_without_a_word_is_found_out() -> None:
    async def main() -> None:
        async with _door(ServerOptions(port=0)) as door:
            peer = await door.dial()
            await peer.hello()
            [session] = door.broker.sessions
            assert isinstance(session._stream, trio.SocketStream)
            option = session._stream.socket.getsockopt
            assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            idle, interval, count = (
                option(socket.IPPROTO_TCP, name) for name in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle + interval * count <= 120
            assert option(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1, "and no answer waits for an acknowledgement"

    trio.run(main)


def test_a_connection_that_is_reset_harms_nobody() -> None:
    async def main() -> None:
        async with _door(ServerOptions(port=0)) as door:
            healthy = await door.dial()
            await healthy.hello()
            await healthy.create("jobs")
            for _ in range(50):
                peer = await door.dial()
                await peer.hello()
                await peer.say(q.ReceiveMessages("jobs", 1, wait_ms=20_000))
                assert isinstance(peer.stream, trio.SocketStream)
                peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await peer.close()
            await door.sessions_become(1)
            await healthy.send("jobs", b"not lost to the dead")
            assert len(await healthy.receive("jobs")) == 1
            assert "InternalError" not in door.broker.counters.connections_failed

    trio.run(main)


# Ten thousand, in a process of its own


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Room for ten thousand sockets in this process (and in those it starts)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = IDLE_CONNECTIONS + 1_000
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    except (ValueError, OSError) as error:
        pytest.fail(f"{wanted} file descriptors are needed, {hard} are allowed: {error}")
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def _gauge(metrics: str, name: str) -> float:
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=30) as response:
        for line in response.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
    raise AssertionError(name)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("many_descriptors")
def test_ten_thousand_idle_connections_cost_little_and_one_more_is_refused(tmp_path: Path) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    hello = MAGIC + pack_frame(Kind.REQUEST, 1, 1, s.Hello("idle", bytes(16)).encode())
    with contextlib.ExitStack() as stack:
        limit = IDLE_CONNECTIONS + 1
        broker = stack.enter_context(running_broker(tmp_path, "--metrics", metrics, "--max-connections", str(limit)))
        client = stack.enter_context(Client(broker.url, connect_timeout=30, request_timeout=60))
        queue = client.create_queue("jobs")
        queue.send(b"before")
        empty = _resident_bytes(broker.pid)
        idle = []
        for number in range(IDLE_CONNECTIONS):
            # Few ports are left on a busy machine: so several addresses of the loopback network.
            source = (f"127.0.1.{1 + number // 2_000}", 0)
            one = stack.enter_context(socket.create_connection(("127.0.0.1", broker.port), 30, source))
            one.sendall(hello)
            idle.append(one)
        for one in idle:
            assert len(one.recv(4_096)) > HEADER.size
        assert _gauge(metrics, "penstock_connections") == limit
        cost = (_resident_bytes(broker.pid) - empty) / IDLE_CONNECTIONS
        assert cost < CONNECTION_BYTES, f"{cost:.0f} bytes per idle connection"
        with socket.create_connection(("127.0.0.1", broker.port), 30) as refused:
            assert refused.recv(1) == b""
        queue.send(b"after")
        assert sorted(message.body for message in queue.receive(10)) == [b"after", b"before"]
        for one in idle:
            one.close()
        while _gauge(metrics, "penstock_connections") > 1:
            client.ping()
        queue.send(b"at last")
        print(f"{cost:.0f} bytes per idle connection")


def test_a_door_takes_tls_1_2_or_later_and_wants_certificates_when_it_has_authorities(
    authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue("again")
    context = make_context(str(certificate), str(key), "")
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_NONE
    mutual = make_context(str(certificate), str(key), str(authority.file))
    assert mutual.verify_mode == ssl.CERT_REQUIRED
    with pytest.raises(OSError, match="No such file"):
        make_context(str(tmp_path / "missing.pem"), str(key), "")
    with pytest.raises(ssl.SSLError):
        make_context(str(certificate), str(authority.issue("another")[1]), "")
