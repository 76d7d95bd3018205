"""The commands, put together."""

from __future__ import annotations

import click

from penstock_broker.cli import exits
from penstock_broker.cli.bench import bench
from penstock_broker.cli.demo import demo
from penstock_broker.cli.keys import key
from penstock_broker.cli.output import client_options, connected, console, print_json
from penstock_broker.cli.queues import queue
from penstock_broker.cli.serve import serve, show_config

EPILOG = "\b\nExit codes:\n" + exits.table()


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
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
    """The entry point."""
    cli(prog_name="penstock")
