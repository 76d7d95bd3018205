"""Starts each server the way its durability demands, on free loopback ports, with its data on a real disk; ends it by its pid.

| system | set-up | an acknowledged message survives |
|---|---|---|
| Penstock | SQLite, WAL, synchronous=FULL | power loss |
| Redis | appendonly yes, appendfsync always | power loss |
| RabbitMQ | a quorum queue with one member: syncs its log before it confirms | power loss |
| PostgreSQL | fsync on, synchronous_commit on | power loss |
| NATS JetStream 2.10 or later | file storage, sync_interval always | power loss |
| RabbitMQ streams | one member; a stream does not sync before it confirms | a crash of the server |
| Kinesalite | LevelDB, which is not told to sync | a crash of the server |

Each measurement gets a fresh server in a fresh folder. A server does not outlive the harness: it is ended when its block
is left, and asks the kernel for a SIGTERM should the harness be killed. A peer that is missing or too old is NotInstalled.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import machine

PEERS = ("redis", "rabbitmq", "postgresql", "nats", "rabbitmq-streams", "kinesalite")
NOT_SYNCED = ("rabbitmq-streams", "kinesalite")
DURABILITY = dict.fromkeys(("penstock", *PEERS), "power loss") | dict.fromkeys(NOT_SYNCED, "a server's crash")
OLDEST_NATS = (2, 10)  # sync_interval: earlier servers refuse the setting and sync every two minutes
END_SECONDS = 20


class NotInstalled(Exception):
    """Says which program is missing or too old."""


def free_ports(count: int) -> list[int]:
    """Different ports nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]


def free_port() -> int:
    """A port nobody listens on."""
    return free_ports(1)[0]


class Server:
    """A running server. `rss_bytes` is that of its whole process tree."""

    def __init__(self, name: str, port: int, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.port = port
        self.process = process

    @property
    def rss_bytes(self) -> int:
        """Resident bytes now."""
        return machine.tree_rss_bytes(self.process.pid)


def versions(systems: list[str]) -> dict[str, str]:
    """What is installed of each system; "" for what is not."""
    found = {}
    for name in systems:
        try:
            found[name] = _VERSIONS[name]()
        except NotInstalled:
            found[name] = ""
    return found


@contextlib.contextmanager
def running(name: str, parent: Path) -> Iterator[Server]:
    """A fresh server of that name for the block, its data in a folder below `parent` that goes with it.

    Raises NotInstalled, or RuntimeError with the end of its log when it does not start."""
    folder = Path(tempfile.mkdtemp(prefix=f"bench-{name}-", dir=parent))
    folder.chmod(0o755)
    try:
        with _STARTERS[name](folder) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _find(program: str, *folders: str) -> str:
    for folder in (str(Path(sys.executable).parent), *folders):
        if (path := Path(folder, program)).exists():
            return str(path)
    if found := shutil.which(program):
        return found
    raise NotInstalled(f"{program} is not installed")


def _wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    tail = log.read_text(errors="replace")[-500:]
    raise RuntimeError(f"{process.args!r} does not listen (exit code {process.poll()}): {tail}")


@contextlib.contextmanager
def _process(
    command: list[str], folder: Path, port: int, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The process, listening. Ended with SIGTERM; what of its tree is still there after END_SECONDS is killed, pid by pid."""
    if setpriv := shutil.which("setpriv"):
        command = [setpriv, "--pdeathsig", "TERM", *command]
    path = folder / f"log-{port}"
    with path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
    try:
        _wait_for_port(port, process, path)
        yield process
    finally:
        pids = machine.tree(process.pid)
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            process.wait()


@contextlib.contextmanager
def _penstock(folder: Path) -> Iterator[Server]:
    port, metrics = free_ports(2)
    command = [_find("penstock"), "serve", "--data", str(folder / "data")]
    command += ["--listen", f"127.0.0.1:{port}", "--metrics", f"127.0.0.1:{metrics}", "--log-format", "json"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PENSTOCK_")}
    with _process(command, folder, port, environment) as process:
        yield Server("penstock", port, process)


@contextlib.contextmanager
def _redis(folder: Path) -> Iterator[Server]:
    port = free_port()
    command = [_find("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    command += ["--appendonly", "yes", "--appendfsync", "always", "--daemonize", "no"]
    with _process(command, folder, port) as process:
        yield Server("redis", port, process)


RABBITMQ_FOLDER = "/usr/lib/rabbitmq/bin"


@contextlib.contextmanager
def _rabbitmq(folder: Path, name: str = "rabbitmq") -> Iterator[Server]:
    program = _find("rabbitmq-server", RABBITMQ_FOLDER)
    port, names, streams, distribution = free_ports(4)
    settings = f"listeners.tcp.1 = 127.0.0.1:{port}\nvm_memory_high_watermark.relative = 0.6\n"
    if name == "rabbitmq-streams":
        settings += f"stream.listeners.tcp.1 = 127.0.0.1:{streams}\nstream.advertised_host = 127.0.0.1\n"
        settings += f"stream.advertised_port = {streams}\n"
        (folder / "plugins").write_text("[rabbitmq_stream].\n")
    (folder / "rabbit.conf").write_text(settings)
    environment = dict(
        os.environ,
        HOME=str(folder),
        RABBITMQ_NODENAME=f"bench{port}@localhost",
        RABBITMQ_MNESIA_BASE=str(folder / "mnesia"),
        RABBITMQ_LOG_BASE=str(folder / "logs"),
        RABBITMQ_CONFIG_FILE=str(folder / "rabbit.conf"),
        RABBITMQ_ENABLED_PLUGINS_FILE=str(folder / "plugins"),
        RABBITMQ_DIST_PORT=str(distribution),
        ERL_EPMD_ADDRESS="127.0.0.1",
        ERL_EPMD_PORT=str(names),
        LANG="C.UTF-8",
    )
    # Its name server is ours as well: one that RabbitMQ starts by itself would stay for ever.
    epmd = [_find("epmd"), "-port", str(names), "-address", "127.0.0.1"]
    with _process(epmd, folder, names, environment), _process([program], folder, port, environment) as process:
        if name == "rabbitmq-streams":
            _wait_for_port(streams, process, folder / f"log-{port}")
        yield Server(name, streams if name == "rabbitmq-streams" else port, process)


def _postgresql_programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        raise NotInstalled("postgresql is not installed")
    return found[-1].parent


@contextlib.contextmanager
def _postgresql(folder: Path) -> Iterator[Server]:
    programs, port, data = _postgresql_programs(), free_port(), folder / "data"
    as_user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "postgres", "postgres")
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    initdb = [*as_user, str(programs / "initdb"), "-D", str(data), "-U", "bench", "--auth=trust"]
    subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    command = [*as_user, str(programs / "postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder)]
    command += ["-c", "synchronous_commit=on", "-c", "fsync=on", "-c", "shared_buffers=256MB", "-c", "max_wal_size=2GB"]
    ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port), "-t", "1"]
    with _process(command, folder, port) as process:
        end = time.monotonic() + 60
        while subprocess.run(ready, check=False).returncode:  # it listens before it lets anybody in
            if time.monotonic() > end:
                raise RuntimeError("PostgreSQL listens, but is not ready")
            time.sleep(0.05)
        yield Server("postgresql", port, process)


@contextlib.contextmanager
def _nats(folder: Path) -> Iterator[Server]:
    program, port = _nats_program(), free_port()
    configuration = folder / "nats.conf"
    configuration.write_text(f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{folder}/data", sync_interval: always }}\n')
    with _process([program, "-c", str(configuration)], folder, port) as process:
        yield Server("nats", port, process)


def _nats_program() -> str:
    program = _find("nats-server")
    version = _version(program)
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_NATS:
        raise NotInstalled(f"nats-server {version} has no sync_interval; 2.10 or later is needed")
    return program


@contextlib.contextmanager
def _kinesalite(folder: Path) -> Iterator[Server]:
    port = free_port()
    command = [_find("kinesalite"), "--port", str(port), "--path", str(folder / "data")]
    command += ["--createStreamMs", "10", "--shardLimit", "1000"]
    with _process(command, folder, port) as process:
        yield Server("kinesalite", port, process)


def _kinesalite_version() -> str:
    return str(json.loads((Path(_find("kinesalite")).resolve().parent / "package.json").read_text())["version"])


def _output(command: list[str]) -> str:
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout


def _first_number(text: str) -> str:
    found = re.search(r"\d+(\.\d+)+", text)
    return found.group() if found else "?"


def _rabbitmq_version() -> str:
    _find("rabbitmq-server", RABBITMQ_FOLDER)
    found = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*"))
    return found[-1].name.partition("-")[2] if found else "?"


def _version(program: str) -> str:
    return _first_number(_output([program, "--version"]))


_VERSIONS: dict[str, Callable[[], str]] = {
    "penstock": lambda: _version(_find("penstock")),
    "redis": lambda: _version(_find("redis-server")),
    "rabbitmq": _rabbitmq_version,
    "postgresql": lambda: _version(str(_postgresql_programs() / "postgres")),
    "nats": lambda: _version(_nats_program()),
    "rabbitmq-streams": _rabbitmq_version,
    "kinesalite": _kinesalite_version,
}

_STARTERS: dict[str, Callable[[Path], contextlib.AbstractContextManager[Server]]] = {
    "penstock": _penstock,
    "redis": _redis,
    "rabbitmq": _rabbitmq,
    "postgresql": _postgresql,
    "nats": _nats,
    "rabbitmq-streams": functools.partial(_rabbitmq, name="rabbitmq-streams"),
    "kinesalite": _kinesalite,
}
