"""The commands, put together."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from typing import Any, Final

import click

from penstock_broker.cli import exits
from penstock_broker.cli.exits import Exit
from penstock_broker.cli.output import client_options, connected, console, escape, print_json, problems

EPILOG = "\b\nExit codes:\n" + exits.table()


COMMANDS: Final = {
    "serve": ("serve", "serve"),
    "config": ("serve", "show_config"),
    "queue": ("queues", "queue"),
    "stream": ("streams", "stream"),
    "key": ("keys", "key"),
    "bench": ("bench", "bench"),
    "demo": ("demo", "demo"),
}
"""Commands by module and name there. Each is imported when it is asked for: a send need not wait for SQL and event loops."""


class _Commands(click.Group):
    """Commands of the table, whose reader may go (`| head`): that is no failure. (click itself would end with 1.)"""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Without a command it is about all of them (--help, --version): what an installation lacks shows there."""
        if not args or args[0].startswith("-"):
            for name in self.list_commands(ctx):
                self.get_command(ctx, name)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names."""
        return sorted({*self.commands, *COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name."""
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            module, name = COMMANDS[cmd_name]
            self.add_command(getattr(importlib.import_module(f"penstock_broker.cli.{module}"), name), cmd_name)
        return super().get_command(ctx, cmd_name)

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
