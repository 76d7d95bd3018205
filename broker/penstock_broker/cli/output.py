"""What commands print: tables for people, one JSON object per line for scripts; errors with their remedy.

What comes out of a message is shown, never obeyed: control characters and markup appear as text, in tables and JSON alike.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import re
import ssl
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, NoReturn, TypeVar

import click
from penstock import Client
from penstock.errors import NotConnected, PenstockError
from rich import markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from penstock_broker.cli.exits import Exit

CONNECT_SECONDS = 3.0
"""How long a command waits for a broker that does not answer: it may just be starting."""


class _Console(Console):
    """A console that leaves a reader who has gone (`| head`) to `main`."""

    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704 - called within the handler


console = _Console(highlight=False, soft_wrap=True, emoji=False)
problems = _Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What terminals obey and lines end with: C0 but tab and newline, C1, separators, direction marks, halves of characters."""
_NOT_ON_A_LINE = re.compile(r"[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")

F = TypeVar("F", bound=Callable[..., Any])


def seconds(value: Any) -> float:
    """A duration on the command line: a finite number of seconds, not negative."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise click.BadParameter(f"{value!r} is not a number of seconds from 0")
    return number


def text(value: Any) -> str:
    """A text that can travel: the shell may pass any bytes."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise click.BadParameter(f"{value!r} is not UTF-8") from None
    return str(value)


def pair(value: Any) -> tuple[str, str]:
    """NAME=VALUE as two texts."""
    name, separator, rest = text(value).partition("=")
    if not separator or not name:
        raise click.BadParameter(f"{value!r} is not NAME=VALUE")
    return name, rest


def client_options(command: F) -> F:
    """The options every client command has. Those of TLS are for `connection`, which finds them in click's context."""
    for flag, name, variable, what in (
        ("--cert-key", "cert_key", "PENSTOCK_CERT_KEY", "Its private key (PEM), if in a file of its own."),
        ("--cert", "cert", "PENSTOCK_CERT", "Certificate (PEM) to show to the broker (mutual TLS)."),
        ("--ca", "ca", "PENSTOCK_CA", "Authorities (PEM) to trust with penstocks:// (default: the system's)."),
    ):
        command = click.option(
            flag,
            name,
            envvar=variable,
            metavar="FILE",
            help=f"{what} [{variable}]",
            expose_value=False,
            callback=_keep,
        )(command)
    command = click.option("--json", "as_json", is_flag=True, help="One JSON object per line, for scripts.")(command)
    where = "Where the broker is, penstocks:// for TLS [PENSTOCK_URL; default penstock://127.0.0.1:4567]"
    return click.option("--url", default=None, help=where)(command)


def _keep(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    ctx.meta[f"penstock.{param.name}"] = value


def tls_context() -> ssl.SSLContext | None:
    """The context of --ca, --cert and --cert-key; None when none was given. Ends the process for a file that does not fit."""
    meta = click.get_current_context().meta
    ca, cert, cert_key = (meta.get(f"penstock.{name}") for name in ("ca", "cert", "cert_key"))
    if cert_key and not cert:
        fail("--cert-key belongs to --cert: give both", Exit.USAGE)
    if not ca and not cert:
        return None
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert:
            context.load_cert_chain(cert, cert_key)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        fail(f"--ca {ca}, --cert {cert}: {error}" if ca and cert else f"--ca {ca}: {error}" if ca else f"--cert {cert}: {error}",
             Exit.USAGE)  # fmt: skip
    return context


@contextlib.contextmanager
def connected(url: str | None, timeout: float = 10.0) -> Iterator[Client]:
    """A client for the block; its errors end the command with a sentence, a remedy and an exit code."""
    try:
        client = Client(url, tls=tls_context(), connect_timeout=CONNECT_SECONDS, request_timeout=timeout)
    except ValueError as error:
        fail(str(error), Exit.USAGE)
    with client:
        try:
            yield client
        except NotConnected as error:
            fail(f"{error}", Exit.NOT_REACHABLE, "Start one with: penstock serve")
        except PenstockError as error:
            fail(f"{error.name}: {error}", Exit.FAILED, "" if error.advice in str(error) else error.advice)


def fail(sentence: str, code: Exit, advice: str = "") -> NoReturn:
    """Says what is wrong, and what to do, to standard error; ends the process."""
    problems.print(f"[bold red]error:[/] {escape(sentence)}")
    if advice:
        problems.print(f"[dim]{escape(advice)}[/]")
    sys.exit(code)


def visible(content: str) -> str:
    """Text whose control characters are written out (\\x1b), so that no terminal obeys them."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), content)


def escape(content: str) -> str:
    """Text that rich prints as it is, control characters written out."""
    return markup.escape(visible(content))


def print_text(content: str, note: str = "") -> None:
    """A text from a message, as it is, control characters written out."""
    console.print(Text.assemble(visible(content), (visible(note), "dim")))


def confirm(question: str) -> None:
    """Goes on only after a yes."""
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        click.echo(err=True)
        agreed = False
    if not agreed:
        fail("nothing was deleted", Exit.FAILED, "--yes does not ask")


def print_json(value: Any) -> None:
    """One object on one line."""
    line = json.dumps(value, default=_plain, ensure_ascii=not str(sys.stdout.encoding).lower().startswith("utf"))
    sys.stdout.write(_NOT_ON_A_LINE.sub(lambda match: f"\\u{ord(match[0]):04x}", line) + "\n")
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
