"""Runs `penstock` as a user does: in this process where that is the same, in one of its own where it is not."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from unittest.mock import patch

import click
from penstock_broker.cli import main
from penstock_broker.cli.main import cli

INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # who started the tests may have ignored it
from penstock_broker.cli import main
main()
"""
PENSTOCK = [sys.executable, "-c", INTERRUPTIBLE]


def command_tree() -> dict[tuple[str, ...], click.Command]:
    """Every command there is, by its words; groups too."""
    tree: dict[tuple[str, ...], click.Command] = {(): cli}
    for name in cli.list_commands(click.Context(cli)):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        tree[name,] = command
        if isinstance(command, click.Group):
            tree.update({(name, child): found for child, found in command.commands.items()})
    return tree


class Done(NamedTuple):
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    def rows(self) -> list[dict[str, Any]]:
        """Its standard output as JSON: one object on each line, and nothing else."""
        rows = [json.loads(line) for line in self.out.splitlines()]
        assert all(isinstance(row, dict) for row in rows)
        return rows

    def row(self) -> dict[str, Any]:
        """Its only one."""
        assert self.code == 0, self
        (row,) = self.rows()
        return row


def environment(url: str = "", **more: str) -> dict[str, str]:
    """This process's environment without settings of Penstock, but with these."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    return {**clean, **({"PENSTOCK_URL": url} if url else {}), **more, "COLUMNS": "200"}


@contextlib.contextmanager
def _standard_input(content: bytes) -> Iterator[None]:
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")
    try:
        yield
    finally:
        sys.stdin = before


class Penstock:
    """The command line, which finds a broker in its environment."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Done:
        """Runs one command in this process, through the same entry point."""
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
        err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
        code: Any = 0
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            _standard_input(stdin),
            patch.object(sys, "argv", ["penstock", *arguments]),
            patch.dict(os.environ, dict(env) if env is not None else environment(self.url), clear=True),
        ):
            try:
                main()
            except SystemExit as end:
                code = end.code
        texts = []
        for stream in (out, err):
            stream.flush()
            assert isinstance(stream.buffer, io.BytesIO)
            texts.append(stream.buffer.getvalue().decode())
        return Done(int(code or 0), *texts)

    def json(self, *arguments: str, stdin: bytes = b"") -> list[dict[str, Any]]:
        """Runs one command with --json; its rows."""
        done = self(*arguments, "--json", stdin=stdin)
        assert done.code == 0, done
        return done.rows()

    def process(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Starts one command in a process of its own."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
        started: subprocess.Popen[bytes] = subprocess.Popen([*PENSTOCK, *arguments], env=environment(self.url), **options)
        self._processes.append(started)
        return started

    def close(self) -> None:
        """Ends processes that still run, and closes their pipes."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait(30)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
