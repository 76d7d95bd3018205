"""A real broker in a process of its own, for tests: started on a free port, killed, started again on the same data."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from penstock import Client

READY_SECONDS = 30.0
STOP_SECONDS = 20.0


LISTENERS = range(10_000, 32_000)
"""Ports that the system gives to nobody by itself (it takes those from 32,768 on): else one of thousands of connections of a test
beside this one could get the port between its choice and its use."""


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    while True:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", random.choice(LISTENERS))) as listener:
            return int(listener.getsockname()[1])


class BrokerProcess:
    """`penstock serve` over `folder`. It keeps its port and its data over restarts; `options` are more of its flags."""

    def __init__(self, folder: Path, *options: str, store: str = "") -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"penstock://127.0.0.1:{self.port}"
        self.log = folder / "broker.log"
        self._options = [*options, "--store", store] if store else list(options)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    def start(self, *, wait: bool = True) -> None:
        """Starts it and, with `wait`, returns when it answers. RuntimeError with its log when it ends instead."""
        command = [sys.executable, "-m", "penstock_broker", "serve", "--data", str(self.folder / "data")]
        command += ["--listen", f"127.0.0.1:{self.port}", "--metrics", "", "--log-format", "json", *self._options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.kill()
                raise

    def wait_ready(self) -> None:
        """Returns when it answers."""
        with Client(self.url, connect_timeout=READY_SECONDS, request_timeout=READY_SECONDS) as client:
            client.ping()

    def kill(self) -> None:
        """kill -9: nothing is tidied up."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(STOP_SECONDS)

    def stop(self) -> int:
        """SIGTERM, as an operator stops it; returns its exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None


@contextlib.contextmanager
def running_broker(folder: Path, *options: str, store: str = "") -> Iterator[BrokerProcess]:
    """A started broker for the block; stopped at its end, killed if that takes too long."""
    broker = BrokerProcess(folder, *options, store=store)
    broker.start()
    try:
        yield broker
    finally:
        if broker.is_running:
            broker.stop()
