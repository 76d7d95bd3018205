"""Starts each server the way its durability demands, on loopback, with data on the same real disk; ends it by its pid.

- Penstock: SQLite, WAL, synchronous=FULL. Survives power loss.
- Redis: appendonly yes, appendfsync always. Survives power loss.
- RabbitMQ: a quorum queue with one member fsyncs before it confirms. Survives power loss.
- PostgreSQL: synchronous_commit on, fsync on; a table with SKIP LOCKED is the physical reference for rows, not a broker.
- NATS JetStream: sync_interval always. Survives power loss.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PEERS = ("redis", "rabbitmq", "postgresql", "nats")


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Returns when something accepts connections there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on {port}")


def tree_rss(pid: int) -> int:
    """Resident bytes of a process and its children."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        waiting += children.get(one, [])
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total


class Server:
    """A running server."""

    def __init__(self, name: str, port: int, process: subprocess.Popen[bytes], durability: str = "power loss") -> None:
        self.name = name
        self.port = port
        self.process = process
        self.durability = durability

    @property
    def rss(self) -> int:
        """Resident bytes of its processes."""
        return tree_rss(self.process.pid)


@contextlib.contextmanager
def _process(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def running(name: str) -> Iterator[Server]:
    """A fresh server of that name for the block. FileNotFoundError when it is not installed."""
    folder = Path(tempfile.mkdtemp(prefix=f"bench-{name}-", dir=os.environ.get("BENCH_DIR")))
    folder.chmod(0o755)
    try:
        with _STARTERS[name](folder) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _penstock(folder: Path) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "penstock_broker", "serve", "--data", str(folder / "data")]
    command += ["--listen", f"127.0.0.1:{port}", "--metrics", "", "--log-format", "json"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PENSTOCK_")}
    with _process(command, folder, environment) as process:
        wait_for_port(port, process)
        yield Server("penstock", port, process)


@contextlib.contextmanager
def _redis(folder: Path) -> Iterator[Server]:
    program = _find("redis-server")
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    command += ["--appendonly", "yes", "--appendfsync", "always", "--daemonize", "no"]
    with _process(command, folder) as process:
        wait_for_port(port, process)
        yield Server("redis", port, process)


@contextlib.contextmanager
def _rabbitmq(folder: Path) -> Iterator[Server]:
    program = _find("rabbitmq-server", "/usr/lib/rabbitmq/bin/rabbitmq-server")
    port, distribution = free_port(), free_port()
    node = f"bench{port}@localhost"
    (folder / "rabbit.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{port}\nvm_memory_high_watermark.relative = 0.6\n")
    environment = dict(
        os.environ,
        HOME=str(folder),
        RABBITMQ_NODENAME=node,
        RABBITMQ_MNESIA_BASE=str(folder / "mnesia"),
        RABBITMQ_LOG_BASE=str(folder / "logs"),
        RABBITMQ_CONFIG_FILE=str(folder / "rabbit.conf"),
        RABBITMQ_ENABLED_PLUGINS_FILE=str(folder / "plugins"),
        RABBITMQ_DIST_PORT=str(distribution),
        ERL_EPMD_ADDRESS="127.0.0.1",
        LANG="C.UTF-8",
    )
    if os.geteuid() == 0 and Path("/usr/lib/rabbitmq/bin/rabbitmq-server").exists():
        program = "/usr/lib/rabbitmq/bin/rabbitmq-server"
    with _process([program], folder, environment) as process:
        wait_for_port(port, process, 90)
        yield Server("rabbitmq", port, process)


@contextlib.contextmanager
def _postgresql(folder: Path) -> Iterator[Server]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        raise FileNotFoundError("postgresql")
    programs, port, data = found[-1].parent, free_port(), folder / "data"
    as_user: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    initdb = [*as_user, str(programs / "initdb"), "-D", str(data), "-k", "-U", "bench", "--auth=trust"]
    subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    command = [*as_user, str(programs / "postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder)]
    command += ["-c", "synchronous_commit=on", "-c", "fsync=on", "-c", "shared_buffers=256MB", "-c", "max_wal_size=2GB"]
    with _process(command, folder) as process:
        wait_for_port(port, process)
        yield Server("postgresql", port, process)


@contextlib.contextmanager
def _nats(folder: Path) -> Iterator[Server]:
    program = _find("nats-server")
    port = free_port()
    (folder / "nats.conf").write_text(
        f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{folder}", sync_interval: always }}\n'
    )
    with _process([program, "-c", str(folder / "nats.conf")], folder) as process:
        wait_for_port(port, process)
        yield Server("nats", port, process)


def _find(*names: str) -> str:
    for name in names:
        path = shutil.which(name) or (name if Path(name).exists() else None)
        if path:
            return path
    raise FileNotFoundError(names[0])


_STARTERS = {"penstock": _penstock, "redis": _redis, "rabbitmq": _rabbitmq, "postgresql": _postgresql, "nats": _nats}
