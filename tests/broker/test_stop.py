"""Stop and start: a drain answers what can be answered, in bounded time; what prevents a start is one clear sentence."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from penstock import Client
from penstock_broker.cli.exits import Exit
from penstock_protocol import queue_messages as q
from penstock_protocol import session_messages as s
from penstock_protocol.errors import Draining, PenstockError

from tests.broker.inside import Peer, house, on_jumping_clock
from tests.broker_process import BrokerProcess, free_port, running_broker
from tests.clients.certificates import Authority

PATIENCE_SECONDS = 30.0


# In this process, on a clock that jumps


@on_jumping_clock
async def test_a_drain_tells_who_waits_and_answers_what_is_being_committed() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("jobs")
        waiting = await client.say(q.ReceiveMessages("jobs", 1, wait_ms=20_000))
        consumer = await client.say(q.Consume("jobs", 1))
        await trio.testing.wait_all_tasks_blocked()
        one.threads.hold("commit")
        sender = await one.client()
        sending = await sender.say(q.SendMessages("jobs", [b"in flight"]))
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.broker.drain, 10)
            for correlation in (waiting, consumer):
                with pytest.raises(Draining):
                    await client.wait(correlation)
            assert one.broker.not_ready_because() == "stopping"
            assert not await sender.has_answer(sending)
            with pytest.raises(Draining):
                await client.call(s.Empty(), "Ping")
            one.threads.release("commit")
        assert trio.current_time() < 1, "it ends as soon as everything is answered"
        assert (await sender.wait(sending)).runs[0].count == 1


@on_jumping_clock
async def test_a_drain_does_not_wait_for_ever() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("jobs")
        one.threads.hold("commit")
        await client.say(q.SendMessages("jobs", [b"x"]))
        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
        await one.broker.drain(7)
        assert trio.current_time() - started == 7
        one.threads.release("commit")


@on_jumping_clock
async def test_a_drain_waits_until_replies_are_written() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("jobs")
        await client.send("jobs", bytes(1_000))
        reader = one.connect(lockstep=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.write, reader.hello_bytes())
            await reader.wait(1)
        correlation = await reader.say(q.PeekMessages("jobs"))
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.broker.drain, 20)
            await trio.sleep(5)
            assert nursery.child_tasks, "the drain is over before the reply was read"
            assert len((await reader.wait(correlation)).messages) == 1
        assert trio.current_time() < 6


@on_jumping_clock
async def test_what_waits_for_a_commit_when_the_broker_ends_is_committed() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("jobs")
        one.threads.hold("commit")
        await client.say(q.SendMessages("jobs", [b"x"]))
        await trio.testing.wait_all_tasks_blocked()
        await client.say(q.SendMessages("jobs", [b"y"]))
        await trio.testing.wait_all_tasks_blocked()
        one.threads.release("commit")
        disk = one.disk
    async with house(disk) as one:
        assert (await (await one.client()).describe("jobs")).visible == 2


# Signals to a real process


@contextlib.asynccontextmanager
async def _peer(broker: BrokerProcess, buffer_bytes: int = 0) -> AsyncIterator[Peer]:
    """An open connection; with `buffer_bytes` its socket takes little before it is read."""
    raw = socket.socket()
    if buffer_bytes:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    connected = trio.socket.from_stdlib_socket(raw)
    await connected.connect(("127.0.0.1", broker.port))
    peer = Peer(trio.SocketStream(connected), "peer")
    try:
        await peer.hello()
        yield peer
    finally:
        await peer.close()


def _within(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            await test()

    trio.run(main)


def _signal(broker: BrokerProcess, number: int = signal.SIGTERM) -> None:
    os.kill(broker.pid, number)


def _logged(broker: BrokerProcess, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in broker.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


async def _until_logged(broker: BrokerProcess, event: str, count: int = 1) -> None:
    while len(_logged(broker, event)) < count:  # noqa: ASYNC110 - another process; the test's time is limited
        await trio.sleep(0.02)


def _ended(broker: BrokerProcess) -> int:
    """Waits for the end of a broker that is stopping; its exit code."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while broker.is_running:
        assert time.monotonic() < deadline, "it does not stop"
        time.sleep(0.02)
    return broker.stop()


async def _exit_code(broker: BrokerProcess, number: int = signal.SIGTERM) -> int:
    _signal(broker, number)
    return await trio.to_thread.run_sync(_ended, broker)


def test_sigterm_answers_who_waits_and_ends_with_success(tmp_path: Path) -> None:
    with running_broker(tmp_path, "--drain-seconds", "3600") as broker:

        async def test() -> None:
            async with _peer(broker) as peer:
                await peer.create("jobs")
                waiting = await peer.say(q.ReceiveMessages("jobs", 1, wait_ms=20_000))
                consumer = await peer.say(q.Consume("jobs", 1))
                await peer.call(s.Empty(), "Ping")
                _signal(broker)
                for correlation in (waiting, consumer):
                    with pytest.raises(Draining):
                        await peer.wait(correlation)
                assert await peer.end() is None

        _within(test)
        assert _ended(broker) == Exit.OK
        assert _logged(broker, "draining") and _logged(broker, "stopped")


def test_sigterm_under_load_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    with running_broker(tmp_path) as broker:
        acknowledged: list[int] = []

        async def producer(peer: Peer, number: int) -> None:
            with contextlib.suppress(PenstockError, EOFError, trio.BrokenResourceError):
                for place in range(100_000):
                    await peer.send("jobs", b"%d-%d" % (number, place))
                    acknowledged.append(place)
                    if len(acknowledged) == 300:
                        _signal(broker)

        async def test() -> None:
            async with contextlib.AsyncExitStack() as stack:
                peers = [await stack.enter_async_context(_peer(broker)) for _ in range(8)]
                await peers[0].create("jobs")
                async with trio.open_nursery() as nursery:
                    for number, peer in enumerate(peers):
                        nursery.start_soon(producer, peer, number)

        _within(test)
        assert _ended(broker) == Exit.OK
        assert len(acknowledged) >= 300
        broker.start()
        with Client(broker.url) as client:
            # (A drain answers everything, so that nothing was stored without an answer.)
            assert client.queue("jobs").describe().visible == len(acknowledged)


BIG_MESSAGES = 8
"""Of 1 MiB: more than both ends' sockets hold, less than what makes a broker stop reading."""


def _fill(broker: BrokerProcess) -> None:
    with Client(broker.url) as client:
        queue = client.create_queue("jobs")
        for _ in range(BIG_MESSAGES):
            queue.send(bytes(2**20))


@contextlib.asynccontextmanager
async def _stuck(broker: BrokerProcess) -> AsyncIterator[tuple[Peer, Peer, list[int]]]:
    """A client that has asked for more than the sockets hold and does not read, and another one."""
    async with _peer(broker) as other, _peer(broker, 65_536) as slow:
        asked = [await slow.say(q.ReceiveMessages("jobs", 1, max_bytes=2**20)) for _ in range(BIG_MESSAGES)]
        while (await other.describe("jobs")).in_flight < BIG_MESSAGES:
            await trio.lowlevel.checkpoint()
        yield other, slow, asked


def test_a_stop_waits_for_a_client_that_reads_slowly_and_it_gets_everything(tmp_path: Path) -> None:
    with running_broker(tmp_path, "--drain-seconds", "3600") as broker:
        _fill(broker)

        async def test() -> None:
            async with _stuck(broker) as (_, slow, asked):
                _signal(broker)
                await _until_logged(broker, "draining")
                await trio.sleep(0.1)
                assert broker.is_running
                for correlation in asked:
                    (delivery,) = (await slow.wait(correlation)).deliveries
                    assert delivery.bodies == [bytes(2**20)]

        _within(test)
        assert _ended(broker) == Exit.OK
        assert not _logged(broker, "second signal: not waiting any longer")


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_waits_for_nobody(tmp_path: Path, first: int) -> None:
    with running_broker(tmp_path, "--drain-seconds", "3600") as broker:
        _fill(broker)

        async def test() -> None:
            async with _stuck(broker):
                _signal(broker, first)
                await _until_logged(broker, "draining")
                _signal(broker, signal.SIGHUP)
                await trio.sleep(0.1)
                assert broker.is_running, "SIGHUP does not hurry it"
                assert await _exit_code(broker) == Exit.OK

        _within(test)
        assert _logged(broker, "second signal: not waiting any longer")


def test_a_stop_waits_no_longer_than_it_was_told(tmp_path: Path) -> None:
    with running_broker(tmp_path, "--drain-seconds", "0.3") as broker:
        _fill(broker)

        async def test() -> None:
            async with _stuck(broker):
                assert await _exit_code(broker) == Exit.OK

        _within(test)


def test_while_it_drains_nobody_new_gets_in(tmp_path: Path) -> None:
    with running_broker(tmp_path, "--drain-seconds", "3600") as broker:
        _fill(broker)

        async def test() -> None:
            async with _stuck(broker) as (other, _, _):
                _signal(broker)
                await _until_logged(broker, "draining")
                while True:
                    try:
                        stream = await trio.open_tcp_stream("127.0.0.1", broker.port)
                    except OSError:
                        break
                    await stream.aclose()
                with pytest.raises(Draining):
                    await other.call(s.Empty(), "Ping")

        _within(test)
        assert _ended(broker) == Exit.OK


# SIGHUP


def test_sighup_takes_up_the_log_level_and_keeps_the_old_one_when_the_file_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text('log_level = "info"\n')
    with running_broker(tmp_path, "--config", str(file)) as broker:

        async def knock() -> None:
            """A connection that the broker logs about at level info."""
            stream = await trio.open_tcp_stream("127.0.0.1", broker.port)
            await stream.send_all(b"rubbish!")
            while await stream.receive_some():
                pass
            await stream.aclose()

        async def test() -> None:
            await knock()
            await _until_logged(broker, "connection closed")
            file.write_text("log_level = 7\n")
            _signal(broker, signal.SIGHUP)
            await _until_logged(broker, "configuration not reloaded")
            (refusal,) = _logged(broker, "configuration not reloaded")
            assert "log_level" in refusal["error"] and "debug or info" in refusal["error"]
            await knock()
            await _until_logged(broker, "connection closed", 2)
            file.write_text('log_level = "debug"\n')
            _signal(broker, signal.SIGHUP)
            await _until_logged(broker, "configuration reloaded")
            file.write_text('log_level = "error"\n')
            _signal(broker, signal.SIGHUP)
            async with _peer(broker) as peer:
                await peer.call(s.Empty(), "Ping")
                for _ in range(20):
                    before = len(_logged(broker, "connection closed"))
                    await knock()
                    if len(_logged(broker, "connection closed")) == before:
                        return
            raise AssertionError("it still logs at level info")

        _within(test)


def _serial(port: int, authority: Authority) -> int:
    raw = socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)
    with raw, authority.client().wrap_socket(raw, server_hostname="127.0.0.1") as secured:
        certificate = secured.getpeercert()
    assert certificate is not None
    return int(str(certificate["serialNumber"]), 16)


def test_sighup_takes_up_a_new_certificate_and_old_connections_stay(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    options = ("--tls-cert", str(certificate), "--tls-key", str(key))
    broker = BrokerProcess(tmp_path, *options)
    broker.start(wait=False)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                first = _serial(broker.port, authority)
                break
            except OSError:
                assert time.monotonic() < deadline and broker.is_running
        url = broker.url.replace("penstock://", "penstocks://")
        with Client(url, tls=authority.client()) as client:
            client.ping()
            for content, event in ((b"no certificate", "certificates not reloaded"), (None, "configuration reloaded")):
                if content is None:
                    authority.issue("server")
                else:
                    certificate.write_bytes(content)
                _signal(broker, signal.SIGHUP)
                while not _logged(broker, event):
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                if content is not None:
                    assert _serial(broker.port, authority) == first, "the old one goes on"
            assert _serial(broker.port, authority) != first
            client.ping()
    finally:
        assert broker.stop() == Exit.OK


# What prevents a start


def _serve(*options: str, data: Path, expected: Exit, **environment: str) -> str:
    """Runs `penstock serve`, which must end by itself with that code; the one sentence it says."""
    command = [sys.executable, "-m", "penstock_broker", "serve", "--data", str(data), "--metrics", ""]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=60, env=inherited | {"COLUMNS": "1000"} | environment
    )
    assert done.returncode == expected, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    return sentence


def _listen() -> str:
    return f"127.0.0.1:{free_port()}"


def test_an_address_in_use_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert address in _serve("--listen", address, data=tmp_path, expected=Exit.ADDRESS_IN_USE)
        said = _serve("--listen", _listen(), "--metrics", address, data=tmp_path, expected=Exit.ADDRESS_IN_USE)
        assert address in said


def test_an_address_that_is_not_ours_is_said(tmp_path: Path) -> None:
    said = _serve("--listen", "192.0.2.1:4567", "--insecure", data=tmp_path, expected=Exit.ADDRESS_IN_USE)
    assert "192.0.2.1:4567" in said


def test_data_that_another_broker_has_open_is_said(tmp_path: Path) -> None:
    with running_broker(tmp_path) as broker:
        said = _serve("--listen", _listen(), data=tmp_path / "data", expected=Exit.STORE_LOCKED)
        assert str(tmp_path) in said
        assert broker.is_running
        with Client(broker.url) as client:
            client.ping()


def test_a_store_that_cannot_be_reached_is_said_without_its_password(tmp_path: Path) -> None:
    url = f"postgresql+psycopg://penstock:geheim@127.0.0.1:{free_port()}/penstock"
    said = _serve("--listen", _listen(), "--store", url, data=tmp_path, expected=Exit.STORE_UNREACHABLE)
    assert "geheim" not in said


def test_a_data_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said = _serve("--listen", _listen(), data=tmp_path / "file" / "data", expected=Exit.STORE_UNREACHABLE)
    assert str(tmp_path / "file") in said


def test_data_that_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "penstock.db").write_bytes(b"something else entirely, and long enough to be looked at" * 100)
    assert "penstock.db" in _serve("--listen", _listen(), data=tmp_path, expected=Exit.STORE_UNREACHABLE)
    assert (tmp_path / "penstock.db").read_bytes().startswith(b"something else"), "it is left alone"


def test_data_of_a_newer_penstock_is_said_and_left_alone(tmp_path: Path) -> None:
    with running_broker(tmp_path):
        pass
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / "penstock.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    assert "9999" in _serve("--listen", _listen(), data=tmp_path / "data", expected=Exit.SCHEMA_TOO_NEW)
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / "penstock.db")) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("9999",)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    if os.geteuid() != 0:
        message = "mounting a small file system needs root"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.root
def test_a_full_disk_is_said(small_disk: Path) -> None:
    with (small_disk / "filler").open("wb", buffering=0) as filler:
        with contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4_096))
        filler.truncate(filler.tell() - 65_536)  # less than an empty store takes
    said = _serve("--listen", _listen(), data=small_disk / "data", expected=Exit.DISK_FULL)
    assert "space" in said or "full" in said


BAD_CONFIGURATION: dict[str, tuple[list[str], dict[str, str], tuple[str, ...]]] = {
    "a flag": (["--log-level", "loud"], {}, ("log_level", "loud", "debug or info")),
    "a variable": ([], {"PENSTOCK_MAX_CONNECTIONS": "many"}, ("max_connections", "many", "PENSTOCK_MAX_CONNECTIONS")),
    "no address": (["--listen", "4567"], {}, ("listen", "4567", "host:port")),
    "no such file": (["--config", "/does/not/exist.toml"], {}, ("/does/not/exist.toml",)),
    "half of TLS": (["--tls-cert", "a.pem"], {}, ("tls_cert", "tls_key")),
    "no certificate": (["--tls-cert", "/no.pem", "--tls-key", "/no.key"], {}, ("/no.pem",)),
    "no URL": (["--store", "mysql://localhost/x"], {}, ("store", "mysql")),
    "everybody": (["--listen", "0.0.0.0:0"], {}, ("0.0.0.0:0", "loopback", "access keys")),
    "a short key file": (["--key-file", "/dev/null"], {}, ("/dev/null", "32 bytes")),
}


@pytest.mark.parametrize("name", BAD_CONFIGURATION)
def test_a_bad_configuration_names_the_key_and_what_is_allowed(name: str, tmp_path: Path) -> None:
    flags, variables, names = BAD_CONFIGURATION[name]
    listen = [] if "--listen" in flags else ["--listen", _listen()]
    said = _serve(*listen, *flags, data=tmp_path / "data", expected=Exit.USAGE, **variables)
    for expected in names:
        assert expected in said


@pytest.mark.postgresql
def test_a_broker_that_was_taken_over_ends_and_says_so(tmp_path: Path, postgresql_url: str) -> None:
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
    with running_broker(tmp_path / "old", store=postgresql_url) as old, Client(old.url, request_timeout=2) as client:
        client.create_queue("jobs")
        with running_broker(tmp_path / "new", store=postgresql_url) as new:
            with contextlib.suppress(PenstockError):
                client.queue("jobs").send(b"too late")
            assert _ended(old) == Exit.FENCED
            said = old.log.read_text()
            assert "Traceback" not in said and "another broker has taken over" in said
            with Client(new.url) as other:
                assert other.queue("jobs").describe().visible == 0
