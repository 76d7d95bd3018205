"""What commands print: tables for people, one JSON object per line for scripts; errors with their remedy."""

from __future__ import annotations

import base64
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, TypeVar

import click
from penstock import Client
from penstock.errors import NotConnected, PenstockError
from rich.console import Console
from rich.table import Table

from penstock_broker.cli.exits import Exit

console = Console(highlight=False, soft_wrap=True)
problems = Console(stderr=True, highlight=False, soft_wrap=True)

F = TypeVar("F", bound=Callable[..., Any])


def client_options(command: F) -> F:
    """The options every client command has."""
    command = click.option("--json", "as_json", is_flag=True, help="One JSON object per line, for scripts.")(command)
    return click.option("--url", default=None, help="Where the broker is (PENSTOCK_URL; default penstock://127.0.0.1:4567).")(
        command
    )


@contextlib.contextmanager
def connected(url: str | None, timeout: float = 10.0) -> Iterator[Client]:
    """A client for the block; its errors end the command with a sentence, a remedy and an exit code."""
    try:
        client = Client(url, request_timeout=timeout)
    except ValueError as error:
        fail(str(error), Exit.USAGE)
    with client:
        try:
            yield client
        except NotConnected as error:
            fail(f"{error}", Exit.NOT_REACHABLE, "Start one with: penstock serve")
        except PenstockError as error:
            fail(f"{error.name}: {error}", Exit.FAILED, "" if error.advice in str(error) else error.advice)
        except BrokenPipeError:
            sys.exit(Exit.OK)


def fail(sentence: str, code: Exit, advice: str = "") -> Any:
    """Says what is wrong, and what to do, to standard error; ends the process."""
    problems.print(f"[bold red]error:[/] {escape(sentence)}")
    if advice:
        problems.print(f"[dim]{escape(advice)}[/]")
    sys.exit(code)


def escape(text: str) -> str:
    """Text that rich prints as it is."""
    return text.replace("[", r"\[")


def print_json(value: Any) -> None:
    """One object on one line."""
    sys.stdout.write(json.dumps(value, default=_plain, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(type(value).__name__)


def body_fields(body: bytes) -> dict[str, str]:
    """A body as text where it is UTF-8, else as base64, so marked."""
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body": base64.b64encode(body).decode(), "encoding": "base64"}


def attribute_fields(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes for JSON: binary ones as base64, so marked."""
    return {
        name: {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        for name, value in attributes.items()
    }


def print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A table."""
    table = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    console.print(table)
