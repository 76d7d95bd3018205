"""A broker's start and its reload as an operator sees them: doors, certificates, and the file that seals keys."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from penstock import Client
from penstock.errors import PenstockError
from penstock_broker.access import load_sealing_key
from penstock_broker.cli.exits import Exit

from tests.broker_process import BrokerProcess, free_port, running_broker
from tests.cli.runner import PENSTOCK, Penstock, environment
from tests.clients.certificates import Authority

PATIENCE_SECONDS = 60.0


def logged(broker: BrokerProcess, event: str) -> list[dict[str, Any]]:
    """What the broker has logged under that name."""
    lines = [line for line in broker.log.read_text().splitlines() if line.startswith("{")]
    return [row for line in lines if (row := json.loads(line))["event"].startswith(event)]


def reload(broker: BrokerProcess, event: str) -> dict[str, Any]:
    """SIGHUP; the line that tells what became of it."""
    before = len(logged(broker, event))
    os.kill(broker.pid, signal.SIGHUP)
    end = time.monotonic() + PATIENCE_SECONDS
    while len(logged(broker, event)) == before:
        assert time.monotonic() < end and broker.is_running, broker.log.read_text()
        time.sleep(0.01)
    return logged(broker, event)[-1]


# Certificates


class Secured:
    """A broker behind TLS that wants certificates of `clients`, and the command line that shows one."""

    def __init__(self, folder: Path) -> None:
        for name in ("servers", "ours", "theirs"):
            (folder / name).mkdir()
        self.servers, self.ours, self.theirs = (Authority(folder / name) for name in ("servers", "ours", "theirs"))
        self.certificate, self.key = self.servers.issue("server")
        self.authorities = folder / "clients.pem"
        self.authorities.write_bytes(self.ours.file.read_bytes())
        tls = ["--tls-cert", self.certificate, "--tls-key", self.key, "--tls-client-ca", self.authorities]
        self.broker = BrokerProcess(folder, *map(str, tls))
        self.url = self.broker.url.replace("penstock:", "penstocks:")

    def ping(self, authority: Authority) -> int:
        """The exit code of a ping with a client certificate of that authority."""
        certificate, key = authority.issue("client")
        shown = ["--ca", str(self.servers.file), "--cert", str(certificate), "--cert-key", str(key)]
        return Penstock(self.url)("ping", *shown).code

    def client(self) -> Client:
        """A client with a certificate of `ours`."""
        context = self.servers.client()
        context.load_cert_chain(*self.ours.issue("client"))
        return Client(self.url, tls=context)

    def serial(self) -> int:
        """Of the certificate that a new connection gets."""
        context = self.servers.client()
        context.load_cert_chain(*self.ours.issue("client"))
        raw = socket.create_connection(("127.0.0.1", self.broker.port), PATIENCE_SECONDS)
        with raw, context.wrap_socket(raw, server_hostname="127.0.0.1") as secured:
            shown = secured.getpeercert()
        assert shown is not None
        return int(str(shown["serialNumber"]), 16)


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    secured = Secured(tmp_path)
    secured.broker.start(wait=False)
    try:
        while secured.ping(secured.ours):
            assert secured.broker.is_running
        yield secured
    finally:
        secured.broker.stop()


def test_certificate_and_key_that_do_not_fit_each_other_change_nothing(secured: Secured) -> None:
    before = secured.serial()
    other, other_key = secured.servers.issue("other")
    for mine, wrong in ((secured.certificate, other), (secured.key, other_key)):
        right = mine.read_bytes()
        mine.write_bytes(wrong.read_bytes())
        assert "KEY_VALUES_MISMATCH" in reload(secured.broker, "certificates not reloaded")["error"]
        assert secured.serial() == before and secured.ping(secured.ours) == Exit.OK
        mine.write_bytes(right)
    secured.servers.issue("server")
    reload(secured.broker, "configuration reloaded")
    assert secured.serial() != before and secured.ping(secured.ours) == Exit.OK


def test_new_authorities_of_client_certificates_are_taken_up_and_open_connections_stay(secured: Secured) -> None:
    assert secured.ping(secured.theirs) == Exit.NOT_REACHABLE
    with secured.client() as client:
        client.ping()
        secured.authorities.write_text("no certificates")
        reload(secured.broker, "certificates not reloaded")
        assert (secured.ping(secured.ours), secured.ping(secured.theirs)) == (Exit.OK, Exit.NOT_REACHABLE)
        secured.authorities.write_bytes(secured.theirs.file.read_bytes())
        reload(secured.broker, "configuration reloaded")
        assert (secured.ping(secured.ours), secured.ping(secured.theirs)) == (Exit.NOT_REACHABLE, Exit.OK)
        client.ping()


def test_tls_is_not_turned_on_by_a_reload(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).issue("server")
    file = tmp_path / "penstock.toml"
    file.write_text("")
    with running_broker(tmp_path, "--config", str(file)) as broker:
        file.write_text(f'tls_cert = "{certificate}"\ntls_key = "{key}"\n')
        assert "restart" in reload(broker, "certificates not reloaded")["error"]
        assert Penstock(broker.url)("ping").code == Exit.OK


# The metrics' door


def test_a_metrics_port_that_is_taken_ends_the_start_before_anything_is_announced_or_taken_over(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        metrics = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [*PENSTOCK, "serve", "--data", str(tmp_path), "--listen", f"127.0.0.1:{free_port()}", "--metrics", metrics]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == Exit.ADDRESS_IN_USE
    assert metrics in done.stderr and "metrics" in done.stderr
    assert "listen on" in done.stderr and "listening" not in done.stderr.lower() and "Traceback" not in done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_log_tells_where_the_metrics_are_also_when_the_system_chose_the_port(tmp_path: Path, host: str) -> None:
    with running_broker(tmp_path, "--metrics", f"{host}:0") as broker:
        (listening,) = logged(broker, "listening")
        with urllib.request.urlopen(f"http://{listening['metrics']}/readyz", timeout=30) as answer:
            assert answer.read() == b"ready\n"


# The file that seals keys


def test_keys_that_the_key_file_does_not_open_are_counted_at_the_start(tmp_path: Path) -> None:
    data = tmp_path / "data"
    offline = Penstock("penstock://127.0.0.1:1")
    old = offline("key", "create", "--role", "admin", "--data", str(data), "--json").row()
    (data / "sealing.key").rename(tmp_path / "lost.key")
    new = offline("key", "create", "--role", "admin", "--data", str(data), "--json").row()
    broker = BrokerProcess(tmp_path)

    def ping(key: dict[str, Any]) -> Any:
        names = {"PENSTOCK_KEY_ID": key["key_id"], "PENSTOCK_SECRET": key["secret"]}
        return Penstock(broker.url)("ping", env=environment(broker.url, **names))

    for key_file, refused, allowed in ((data / "sealing.key", old, new), (tmp_path / "lost.key", new, old)):
        broker = BrokerProcess(tmp_path, "--key-file", str(key_file))
        broker.log.write_text("")
        broker.start(wait=False)
        try:
            while ping(allowed).code:
                assert broker.is_running
            (line,) = logged(broker, "access keys cannot be opened")
            assert (line["level"], line["keys"], line["of"], line["key_file"]) == ("error", 1, 2, str(key_file))
            assert "AuthenticationFailed" in ping(refused).err
        finally:
            broker.stop()


def test_a_key_file_is_made_whole_also_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / secrets.token_hex(4)
    key = load_sealing_key(path)
    assert len(key) == 32 and load_sealing_key(path) == key
    assert [file.name for file in tmp_path.iterdir()] == [path.name] and path.stat().st_mode & 0o777 == 0o600


# Two brokers on one database


@pytest.mark.postgresql
def test_the_last_broker_started_wins_and_the_other_one_ends_naming_it(tmp_path: Path, postgresql_url: str) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first, second = (BrokerProcess(tmp_path / name, "--node", name, store=postgresql_url) for name in ("first", "second"))
    first.start()
    try:
        assert Penstock(first.url)("queue", "create", "jobs").code == Exit.OK
        second.start()
        with Client(first.url, request_timeout=2) as late, pytest.raises(PenstockError):
            late.queue("jobs").send(b"late")
        end = time.monotonic() + PATIENCE_SECONDS
        while first.is_running:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert first.stop() == Exit.FENCED
        assert f"taken over this one's slots: second at 127.0.0.1:{second.port}" in first.log.read_text()
        (line,) = logged(second, "took the store over from")
        assert line["event"].startswith(f"took the store over from first at 127.0.0.1:{first.port}")
        assert Penstock(second.url)("queue", "send", "jobs", "x").code == Exit.OK
        assert [row["body"] for row in Penstock(second.url).json("queue", "peek", "jobs")] == ["x"]
    finally:
        for broker in (first, second):
            if broker.is_running:
                broker.stop()


# The end


def test_signals_do_not_cut_short_the_closing_of_the_store(tmp_path: Path) -> None:
    code = """
import os, signal
from penstock_broker.cli.main import main
from penstock_storage.sql import SqlStore

close = SqlStore.close

def interrupted(self):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    close(self)
    print("closed", flush=True)

SqlStore.close = interrupted
main()
"""
    port = free_port()
    options = ["serve", "--data", str(tmp_path / "data"), "--metrics", "", "--listen", f"127.0.0.1:{port}"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *options], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as broker:
        with Client(f"penstock://127.0.0.1:{port}", connect_timeout=PATIENCE_SECONDS) as client:
            client.ping()
        broker.terminate()
        out, err = broker.communicate(timeout=PATIENCE_SECONDS)
    assert (broker.returncode, out) == (Exit.OK, b"closed\n"), err.decode()
