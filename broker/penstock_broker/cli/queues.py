"""`penstock queue …`: what can be done with queues."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click
from penstock import Attribute, Message, OutgoingMessage, PeekedMessage, QueueInfo
from penstock.errors import PenstockError
from rich.progress import Progress

from penstock_broker.cli.exits import Exit
from penstock_broker.cli.output import (
    attribute_fields,
    body_fields,
    client_options,
    connected,
    console,
    escape,
    fail,
    print_json,
    print_table,
)


@click.group()
def queue() -> None:
    """Create, fill, empty and look into queues."""


def setting_options(command: Any) -> Any:
    """Options for the settings of a queue."""
    options = [
        click.option("--visibility-timeout", type=float, help="Seconds a received message is hidden."),
        click.option("--delay", type=float, help="Seconds until a sent message is visible."),
        click.option("--retention", type=float, help="Seconds a message is kept."),
        click.option("--receive-wait", type=float, help="Seconds a receive waits by default."),
        click.option("--max-message-bytes", type=int, help="Largest message."),
        click.option("--dead-letter-queue", help="Where messages go that were received too often."),
        click.option("--max-receive-count", type=int, help="How often is too often."),
        click.option("--max-in-flight", type=int, help="Messages in flight at a time."),
        click.option("--max-messages", type=int, help="Messages the queue holds (0: no limit)."),
        click.option("--max-bytes", type=int, help="Bytes the queue holds (0: no limit)."),
        click.option(
            "--content-based-deduplication/--no-content-based-deduplication", default=None, help="FIFO: the body is the id."
        ),
        click.option("--deduplication-scope", type=click.Choice(["queue", "message_group"]), help="FIFO."),
        click.option("--fifo-throughput-limit", type=click.Choice(["per_queue", "per_message_group"]), help="FIFO."),
        click.option(
            "--redrive-allow", type=click.Choice(["allow_all", "deny_all", "by_queue"]), help="Who may dead-letter here."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


@queue.command()
@click.argument("name")
@setting_options
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="A tag; may be repeated.")
@client_options
def create(name: str, tags: tuple[str, ...], url: str | None, as_json: bool, **settings: Any) -> None:
    """Create a queue. A name that ends in .fifo makes a FIFO queue."""
    pairs = dict(tag.partition("=")[::2] for tag in tags)
    with connected(url) as client:
        info = client.create_queue(name, tags=pairs, **_given(settings)).describe()
    if as_json:
        print_json(_info(info))
    else:
        console.print(f"queue [bold]{escape(name)}[/] is there: {escape(info.arn)}")


@queue.command("set")
@click.argument("name")
@setting_options
@client_options
def change(name: str, url: str | None, as_json: bool, **settings: Any) -> None:
    """Change settings of a queue; those not named stay."""
    with connected(url) as client:
        info = client.queue(name).set(**_given(settings))
    if as_json:
        print_json(_info(info))
    else:
        console.print(f"queue [bold]{escape(name)}[/] changed")


def _info(info: QueueInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "arn": info.arn,
        "created_at": info.created_at,
        "modified_at": info.modified_at,
        "visible": info.visible,
        "in_flight": info.in_flight,
        "delayed": info.delayed,
        "bytes": info.size_bytes,
        "oldest_age_seconds": info.oldest_age_seconds,
        "settings": info.settings,
        "tags": info.tags,
    }


@queue.command("list")
@click.argument("prefix", default="")
@client_options
def list_queues(prefix: str, url: str | None, as_json: bool) -> None:
    """List queues whose names start with PREFIX."""
    with connected(url) as client:
        infos = [client.queue(name).describe() for name in client.list_queues(prefix)]
    if as_json:
        for info in infos:
            print_json(_info(info))
        return
    if not infos:
        console.print(
            "no queues" + (f" whose names start with {escape(prefix)!r}" if prefix else " yet: penstock queue create NAME")
        )
        return
    rows = [[info.name, f"{info.visible:,}", f"{info.in_flight:,}", f"{info.delayed:,}", _age(info)] for info in infos]
    print_table("", ["queue", "visible", "in flight", "delayed", "oldest"], rows)


def _age(info: QueueInfo) -> str:
    seconds = info.oldest_age_seconds
    if seconds is None:
        return "-"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


@queue.command()
@click.argument("name")
@client_options
def show(name: str, url: str | None, as_json: bool) -> None:
    """Show a queue: counts, settings, tags."""
    with connected(url) as client:
        info = client.queue(name).describe()
        sources = client.queue(name).dead_letter_sources()
    if as_json:
        print_json({**_info(info), "dead_letter_sources": sources})
        return
    rows: list[list[Any]] = [
        ["arn", info.arn],
        ["visible", f"{info.visible:,}"],
        ["in flight", f"{info.in_flight:,}"],
        ["delayed", f"{info.delayed:,}"],
        ["bytes", f"{info.size_bytes:,}"],
        ["oldest message", _age(info)],
        *([setting, value] for setting, value in info.settings.items()),
        *([f"tag {key}", value] for key, value in info.tags.items()),
    ]
    if sources:
        rows.append(["dead letters of", ", ".join(sources)])
    print_table(name, ["", ""], rows)


@queue.command()
@click.argument("name")
@click.argument("body", required=False)
@click.option("--file", "path", type=click.Path(exists=True, dir_okay=False), help="The body is this file's content.")
@click.option("--lines", is_flag=True, help="One message per line of standard input.")
@click.option("--group", help="Message group (FIFO: needed; standard: the tenant).")
@click.option("--deduplication-id", help="FIFO: sends with the same id within 5 minutes make one message.")
@click.option("--delay", "delay_seconds", type=float, help="Seconds until it is visible.")
@click.option("--attribute", "attributes", multiple=True, metavar="NAME=VALUE", help="A text attribute; may be repeated.")
@client_options
def send(
    name: str,
    body: str | None,
    path: str | None,
    lines: bool,
    group: str | None,
    deduplication_id: str | None,
    delay_seconds: float | None,
    attributes: tuple[str, ...],
    url: str | None,
    as_json: bool,
) -> None:
    """Send BODY, a file, standard input (BODY is -), or each of its lines."""
    if sum((body is not None, path is not None, lines)) != 1:
        fail("give exactly one of BODY (- for standard input), --file and --lines", Exit.USAGE)
    values: dict[str, Any] = {
        "attributes": {key: Attribute(key, "String", value) for key, _, value in (pair.partition("=") for pair in attributes)},
        "delay_seconds": delay_seconds,
        "group": group,
        "deduplication_id": deduplication_id,
    }
    with connected(url) as client:
        target = client.queue(name)
        if lines:
            _send_lines(target, values, as_json)
            return
        content = Path(path).read_bytes() if path else sys.stdin.buffer.read() if body == "-" else str(body).encode()
        sent = target.send(content, **values)
    if as_json:
        print_json({"message_id": sent.message_id, "sequence": sent.sequence})
    else:
        console.print(f"sent {sent.message_id}")


def _send_lines(target: Any, values: dict[str, Any], as_json: bool) -> None:
    count = 0
    batch: list[OutgoingMessage] = []

    def flush() -> int:
        results = target.send_many(batch)
        if as_json:
            for sent in results:
                print_json({"message_id": sent.message_id, "sequence": sent.sequence})
        batch.clear()
        return len(results)

    for line in sys.stdin.buffer:
        batch.append(OutgoingMessage(line.rstrip(b"\r\n"), **values))
        if len(batch) == 500:
            count += flush()
    if batch:
        count += flush()
    if not as_json:
        console.print(f"sent {count:,} messages")


def _message(message: Message) -> dict[str, Any]:
    return {
        "message_id": message.message_id,
        "sequence": message.sequence,
        "receipt_handle": message.receipt_handle,
        "receive_count": message.receive_count,
        "sent_at": message.sent_at,
        "group": message.group,
        "deduplication_id": message.deduplication_id,
        "dead_letter_source": message.dead_letter_source,
        "attributes": attribute_fields(message.attributes),
        **body_fields(message.body),
    }


@queue.command()
@click.argument("name")
@click.option("--max", "max_messages", type=int, default=1, show_default=True, help="At most so many.")
@click.option("--wait", "wait_seconds", type=float, default=0.0, show_default=True, help="Seconds to wait for one (at most 20).")
@click.option("--visibility-timeout", type=float, help="Seconds they are hidden (default: the queue's).")
@click.option("--delete", is_flag=True, help="Delete them once they are printed.")
@client_options
def receive(
    name: str,
    max_messages: int,
    wait_seconds: float,
    visibility_timeout: float | None,
    delete: bool,
    url: str | None,
    as_json: bool,
) -> None:
    """Receive messages and print them. Exit code 4: there was none."""
    with connected(url) as client:
        source = client.queue(name)
        messages = source.receive(max_messages, wait_seconds=wait_seconds, visibility_timeout=visibility_timeout)
        for message in messages:
            if as_json:
                print_json(_message(message))
            else:
                _print_body(message.body, f"{message.message_id}  received {message.receive_count}x", message.attributes)
        sys.stdout.flush()
        if delete and messages:
            source.delete_many(messages)
    if not messages:
        if not as_json:
            console.print("no message", style="dim")
        sys.exit(Exit.NOTHING)


def _print_body(body: bytes, heading: str, attributes: dict[str, Any]) -> None:
    console.print(f"[dim]{escape(heading)}[/]")
    for name, value in attributes.items():
        console.print(f"[dim]  {escape(name)} = {escape(repr(value))}[/]")
    fields = body_fields(body)
    sys.stdout.flush()
    console.print(escape(fields["body"]) + (" [dim](base64)[/]" if "encoding" in fields else ""))


@queue.command()
@click.argument("name")
@click.option("--max", "limit", type=int, default=10, show_default=True, help="At most so many.")
@click.option(
    "--state", type=click.Choice(["any", "visible", "in_flight", "delayed"]), default="any", show_default=True, help="Only these."
)
@client_options
def peek(name: str, limit: int, state: str, url: str | None, as_json: bool) -> None:
    """Look at messages without receiving them."""
    with connected(url) as client:
        found = 0
        for message in client.queue(name).browse(state=state, page=min(limit, 500)):
            if found == limit:
                break
            found += 1
            if as_json:
                print_json(_peeked(message))
            else:
                heading = f"{message.message_id}  {message.state}, received {message.receive_count}x"
                _print_body(message.body, heading, message.attributes)
    if not found and not as_json:
        console.print("no message", style="dim")


def _peeked(message: PeekedMessage) -> dict[str, Any]:
    return {
        "message_id": message.message_id,
        "sequence": message.sequence,
        "state": message.state,
        "sent_at": message.sent_at,
        "visible_at": message.visible_at,
        "receive_count": message.receive_count,
        "group": message.group,
        "deduplication_id": message.deduplication_id,
        "dead_letter_source": message.dead_letter_source,
        "attributes": attribute_fields(message.attributes),
        **body_fields(message.body),
    }


@queue.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@client_options
def purge(name: str, yes: bool, url: str | None, as_json: bool) -> None:
    """Delete all messages of a queue."""
    if not yes and not as_json:
        click.confirm(f"Delete all messages of {name}?", abort=True)
    with connected(url) as client:
        count = client.queue(name).purge()
    if as_json:
        print_json({"purged": count})
    else:
        console.print(f"deleted {count:,} messages")


@queue.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@client_options
def delete(name: str, yes: bool, url: str | None, as_json: bool) -> None:
    """Delete a queue with everything in it."""
    if not yes and not as_json:
        click.confirm(f"Delete the queue {name} with everything in it?", abort=True)
    with connected(url) as client:
        client.delete_queue(name)
    if as_json:
        print_json({"deleted": name})
    else:
        console.print(f"queue {escape(name)} deleted")


@queue.command()
@click.argument("name")
@click.option("--to", "destination", default="", help="Move to this queue (default: each to where it came from).")
@click.option("--rate", "messages_per_second", type=int, default=0, help="At most so many messages a second.")
@client_options
def redrive(name: str, destination: str, messages_per_second: int, url: str | None, as_json: bool) -> None:
    """Move the messages of a dead-letter queue back."""
    with connected(url) as client:
        task = client.queue(name).redrive(destination, messages_per_second=messages_per_second)
        total = task.status.to_move
        if as_json:
            task.wait()
        else:
            with Progress(console=console, transient=True) as progress:
                bar = progress.add_task("moving", total=total)
                while task.is_running:
                    time.sleep(0.1)
                    task.refresh()
                    progress.update(bar, completed=task.moved)
        if task.status.state == "FAILED":
            raise PenstockError(f"the move failed after {task.moved} messages: {task.status.failure}")
    if as_json:
        print_json({"moved": task.moved, "state": task.status.state})
    else:
        console.print(f"moved {task.moved:,} messages")
