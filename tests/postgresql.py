"""A private PostgreSQL for tests: a cluster of its own in a temporary directory, gone when the tests end.

It has page checksums and real processes, but no fsync: power cuts are tested elsewhere.
"""

from __future__ import annotations

import glob
import os
import pathlib
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.broker_process import free_port


def find_binaries() -> pathlib.Path | None:
    """The directory with initdb, the newest version's; None when PostgreSQL is not installed."""
    found = glob.glob("/usr/lib/postgresql/*/bin/initdb") + glob.glob("/usr/local/pgsql/bin/initdb")
    if found:
        return pathlib.Path(max(found, key=_version)).parent
    initdb = shutil.which("initdb")
    return pathlib.Path(initdb).resolve().parent if initdb else None


def _version(path: str) -> tuple[int, str]:
    digits = [part for part in path.split("/") if part.isdigit()]
    return (int(digits[0]) if digits else 0, path)


class Cluster:
    """One running PostgreSQL. It listens on 127.0.0.1 and on a socket in its own directory."""

    def __init__(self, binaries: pathlib.Path, directory: pathlib.Path, port: int) -> None:
        """For `run_cluster`."""
        self._binaries = binaries
        self._directory = directory
        self.port = port

    @property
    def log(self) -> str:
        """What the server wrote."""
        return (self._directory / "log").read_text(errors="replace")

    def url(self, database: str) -> str:
        """The URL of a database as SqlStore.open takes it."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def conninfo(self, database: str = "postgres") -> str:
        """The same for psycopg.connect."""
        return f"host=127.0.0.1 port={self.port} user=postgres dbname={database}"

    def create_database(self) -> str:
        """Makes an empty database and returns its name."""
        name = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(self.conninfo(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return name

    def drop_database(self, name: str) -> None:
        """Drops a database and whatever is connected to it."""
        with psycopg.connect(self.conninfo(), autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        options = (
            f"-p {self.port} -h 127.0.0.1 -k {self._directory} -c fsync=off -c max_connections=200 "
            "-c shared_buffers=32MB -c log_min_messages=warning"
        )
        self._run("pg_ctl", "-D", str(self._directory / "data"), "-l", str(self._directory / "log"), "-w",
                  "-o", options, "start")  # fmt: skip

    def stop(self, mode: str = "fast") -> None:
        """Stops the server: smart, fast or immediate (which is a crash)."""
        self._run("pg_ctl", "-D", str(self._directory / "data"), "-w", "-m", mode, "stop")

    def initialize(self) -> None:
        """Makes the empty cluster."""
        self._run("initdb", "-D", str(self._directory / "data"), "-U", "postgres", "-A", "trust", "-k",
                  "-E", "UTF8", "--locale=C", "-N")  # fmt: skip

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root.
            command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]
        # Output goes to a file: the server inherits a pipe and would keep it open.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd="/", check=False)
            if done.returncode:
                output.seek(0)
                raise RuntimeError(f"{program} failed: {output.read().decode(errors='replace')}")


@contextmanager
def run_cluster() -> Iterator[Cluster]:
    """Runs a PostgreSQL as long as the context lasts. Raises RuntimeError when it is not installed or does not start."""
    binaries = find_binaries()
    if binaries is None:
        raise RuntimeError("PostgreSQL is not installed")
    directory = pathlib.Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    try:
        if os.geteuid() == 0:
            shutil.chown(directory, "postgres", "postgres")
        cluster = Cluster(binaries, directory, free_port())
        cluster.initialize()
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop("immediate")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
