"""The commands, put together."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

import click

from penstock_broker.cli import exits
from penstock_broker.cli.bench import bench
from penstock_broker.cli.demo import demo
from penstock_broker.cli.exits import Exit
from penstock_broker.cli.keys import key
from penstock_broker.cli.output import client_options, connected, console, escape, print_json, problems
from penstock_broker.cli.queues import queue
from penstock_broker.cli.serve import serve, show_config

EPILOG = "\b\nExit codes:\n" + exits.table()


class _Commands(click.Group):
    """Commands whose reader may go (`| head`): that is no failure. (click itself would end with 1.)"""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _silence_stdout()
            return Exit.OK


@click.group(cls=_Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="penstock")
def cli() -> None:
    """Penstock: a durable message broker on your own machines.

    Start one with `penstock serve`; see what it does with `penstock demo`.
    """


@cli.command()
@client_options
def ping(url: str | None, as_json: bool) -> None:
    """Ask the broker for a sign of life."""
    with connected(url, timeout=5.0) as client:
        client.ping()
        seconds = client.ping()
    if as_json:
        print_json({"seconds": seconds})
    else:
        console.print(f"alive, {seconds * 1000:.2f} ms")


for command in (serve, show_config, queue, key, bench, demo):
    cli.add_command(command)


def main() -> None:
    """The entry point: runs the command and ends the process with a code of the table."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a character is no reason to fail
    try:
        code = cli.main(prog_name="penstock", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        code = Exit.USAGE
    except (click.Abort, KeyboardInterrupt):
        code = Exit.INTERRUPTED
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        code = Exit.INTERRUPTED
    except BrokenPipeError:
        code = Exit.OK
        _silence_stdout()
    except OSError as error:
        problems.print(f"[bold red]error:[/] {escape(str(error))}")
        code = Exit.FAILED
        _silence_stdout()
    sys.exit(code)


def _silence_stdout() -> None:
    """Standard output cannot be written: what is still in its buffer must not fail again when Python ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
