"""`penstock queue …`: what can be done with queues."""

from __future__ import annotations

import base64
import binascii
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from penstock import Attribute, Message, MoveTask, OutgoingMessage, PeekedMessage, Queue, QueueInfo, ReceiptHandle
from penstock.errors import PenstockError, QueueDoesNotExist
from rich.progress import Progress

from penstock_broker.cli.exits import Exit
from penstock_broker.cli.output import (
    attribute_fields,
    body_fields,
    client_options,
    confirm,
    connected,
    console,
    escape,
    fail,
    pair,
    print_json,
    print_table,
    print_text,
    problems,
    seconds,
    text,
)

COUNT = click.IntRange(min=1)


@click.group()
def queue() -> None:
    """Create, fill, empty and look into queues."""


def setting_options(command: Any) -> Any:
    """Options for the settings of a queue."""
    options = [
        click.option("--visibility-timeout", type=seconds, help="Seconds a received message is hidden."),
        click.option("--delay", type=seconds, help="Seconds until a sent message is visible."),
        click.option("--retention", type=seconds, help="Seconds a message is kept."),
        click.option("--receive-wait", type=seconds, help="Seconds a receive waits by default."),
        click.option("--max-message-bytes", type=int, help="Largest message."),
        click.option("--dead-letter-queue", type=text, help="Where messages go that were received too often."),
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
        click.option(
            "--redrive-source", "redrive_sources", multiple=True, type=text, help="Who, with by_queue; may be repeated."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """What was named, as the SDK takes it."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in settings.items() if value not in (None, ())
    }


@queue.command()
@click.argument("name", type=text)
@setting_options
@click.option("--tag", "tags", multiple=True, type=pair, metavar="KEY=VALUE", help="A tag; may be repeated.")
@client_options
def create(name: str, tags: tuple[tuple[str, str], ...], url: str | None, as_json: bool, **settings: Any) -> None:
    """Create a queue. A name that ends in .fifo makes a FIFO queue."""
    with connected(url) as client:
        info = client.create_queue(name, tags=dict(tags), **_given(settings)).describe()
    if as_json:
        print_json(_info(info))
    else:
        console.print(f"queue [bold]{escape(name)}[/] is there: {escape(info.arn)}")


@queue.command("set")
@click.argument("name", type=text)
@setting_options
@click.option(
    "--default",
    "defaults",
    multiple=True,
    type=text,
    metavar="SETTING",
    help="Back to its default, such as dead-letter-queue; may be repeated.",
)
@client_options
def change(name: str, defaults: tuple[str, ...], url: str | None, as_json: bool, **settings: Any) -> None:
    """Change settings of a queue; those not named stay."""
    unnamed: dict[str, Any] = {setting.replace("-", "_").removesuffix("_ms"): None for setting in defaults}
    if not unnamed and not _given(settings):
        fail("name at least one setting: penstock queue set --help lists them", Exit.USAGE)
    with connected(url) as client:
        info = client.queue(name).set(**unnamed, **_given(settings))
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
@click.argument("prefix", default="", type=text)
@client_options
def list_queues(prefix: str, url: str | None, as_json: bool) -> None:
    """List queues whose names start with PREFIX."""
    with connected(url) as client:
        infos = list(_described(client.queue(name) for name in client.list_queues(prefix)))
    if as_json:
        for info in infos:
            print_json(_info(info))
        return
    if not infos:
        console.print(
            "no queues" + (f" whose names start with {escape(prefix)}" if prefix else " yet: penstock queue create NAME")
        )
        return
    rows = [[info.name, f"{info.visible:,}", f"{info.in_flight:,}", f"{info.delayed:,}", _age(info)] for info in infos]
    print_table("", ["queue", "visible", "in flight", "delayed", "oldest"], rows)


def _described(queues: Iterable[Queue]) -> Iterator[QueueInfo]:
    for one in queues:
        try:
            yield one.describe()
        except QueueDoesNotExist:  # deleted since it was listed
            continue


def _age(info: QueueInfo) -> str:
    age = info.oldest_age_seconds
    if age is None:
        return "-"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if age >= size:
            return f"{age / size:.1f} {unit}"
    return f"{age:.0f} s"


@queue.command()
@click.argument("name", type=text)
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
        *([setting, "-" if value in (None, "", []) else value] for setting, value in info.settings.items()),
        *([f"tag {key}", value] for key, value in info.tags.items()),
    ]
    if sources:
        rows.append(["dead letters of", ", ".join(sources)])
    print_table(name, ["", ""], rows)


@queue.command()
@click.argument("name", type=text)
@click.argument("tags", nargs=-1, required=True, type=pair, metavar="KEY=VALUE…")
@client_options
def tag(name: str, tags: tuple[tuple[str, str], ...], url: str | None, as_json: bool) -> None:
    """Add or replace tags of a queue."""
    with connected(url) as client:
        client.queue(name).tag(**dict(tags))
        info = client.queue(name).describe()
    _say_tags(info, as_json)


@queue.command()
@click.argument("name", type=text)
@click.argument("keys", nargs=-1, required=True, type=text, metavar="KEY…")
@client_options
def untag(name: str, keys: tuple[str, ...], url: str | None, as_json: bool) -> None:
    """Remove tags of a queue."""
    with connected(url) as client:
        client.queue(name).untag(*keys)
        info = client.queue(name).describe()
    _say_tags(info, as_json)


def _say_tags(info: QueueInfo, as_json: bool) -> None:
    if as_json:
        print_json({"name": info.name, "tags": info.tags})
    elif info.tags:
        print_table("", ["tag", "value"], [[key, value] for key, value in info.tags.items()])
    else:
        console.print("no tags", style="dim")


def attribute(value: Any) -> Attribute:
    """NAME=VALUE or NAME:TYPE=VALUE; a Binary value is base64."""
    head, content = pair(value)
    name, _, kind = head.partition(":")
    if kind.partition(".")[0] != "Binary":
        return Attribute(name, kind or "String", content)
    try:
        return Attribute(name, kind, base64.b64decode(content, validate=True))
    except binascii.Error:
        raise click.BadParameter(f"the value of {name} is not base64") from None


@queue.command()
@click.argument("name", type=text)
@click.argument("body", required=False)
@click.option(
    "--file", "path", type=click.Path(exists=True, dir_okay=False, readable=True), help="The body is this file's content."
)
@click.option("--lines", is_flag=True, help="One message per line of standard input.")
@click.option("--group", type=text, help="Message group (FIFO: needed; standard: the tenant).")
@click.option("--deduplication-id", type=text, help="FIFO: sends with the same id within 5 minutes make one message.")
@click.option("--delay", "delay_seconds", type=seconds, help="Seconds until it is visible.")
@click.option(
    "--attribute",
    "attributes",
    multiple=True,
    type=attribute,
    metavar="NAME[:TYPE]=VALUE",
    help="An attribute; TYPE is String, Number or Binary (in base64). May be repeated.",
)
@client_options
def send(
    name: str,
    body: str | None,
    path: str | None,
    lines: bool,
    group: str | None,
    deduplication_id: str | None,
    delay_seconds: float | None,
    attributes: tuple[Attribute, ...],
    url: str | None,
    as_json: bool,
) -> None:
    """Send a message, or many.

    BODY, a file, standard input (BODY is -), or each of its lines. What is said to be sent is durable."""
    if sum((body is not None, path is not None, lines)) != 1:
        fail("give exactly one of BODY (- for standard input), --file and --lines", Exit.USAGE)
    values: dict[str, Any] = {
        "attributes": {one.name: one for one in attributes},
        "delay_seconds": delay_seconds,
        "group": group,
        "deduplication_id": deduplication_id,
    }
    with connected(url) as client:
        target = client.queue(name)
        if lines:
            _send_lines(target, values, as_json)
            return
        content = Path(path).read_bytes() if path else sys.stdin.buffer.read() if body == "-" else os.fsencode(str(body))
        sent = target.send(content, **values)
    if as_json:
        print_json({"message_id": sent.message_id, "sequence": sent.sequence})
    else:
        console.print(f"sent {sent.message_id}")


def _send_lines(target: Queue, values: dict[str, Any], as_json: bool) -> None:
    """Sends standard input in batches; a refused line is told and does not hold up the others."""
    sent = refused = 0
    hidden = as_json or not problems.is_terminal
    with Progress("[progress.description]{task.description}", console=problems, transient=True, disable=hidden) as progress:
        bar = progress.add_task("")
        for batch in _batches(sys.stdin.buffer):
            messages = [OutgoingMessage(line, **values) for line in batch]
            for place, result in enumerate(target.send_many(messages, raise_on_failure=False), sent + refused + 1):
                if isinstance(result, PenstockError):
                    refused += 1
                    problems.print(f"[bold red]error:[/] line {place}: {escape(f'{result.name}: {result}')}")
                else:
                    sent += 1
                    if as_json:
                        print_json({"message_id": result.message_id, "sequence": result.sequence})
            progress.update(bar, description=f"{sent:,} sent")
    if not as_json:
        console.print(f"sent {sent:,} messages")
    if refused:
        sys.exit(Exit.FAILED)


def _batches(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for line in lines:
        batch.append(line.rstrip(b"\r\n"))
        if len(batch) == 500:
            yield batch
            batch = []
    if batch:
        yield batch


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
@click.argument("name", type=text)
@click.option("--max", "max_messages", type=COUNT, default=1, show_default=True, help="At most so many.")
@click.option("--wait", "wait_seconds", type=seconds, help="Seconds to wait for one, at most 20 (default: the queue's).")
@click.option("--visibility-timeout", type=seconds, help="Seconds they are hidden (default: the queue's).")
@click.option("--delete", is_flag=True, help="Delete them once they are printed.")
@client_options
def receive(
    name: str,
    max_messages: int,
    wait_seconds: float | None,
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
                heading = f"{message.message_id}  received {message.receive_count}x"
                details = {"group": message.group, "dead_letter_source": message.dead_letter_source}
                if not delete:
                    details["receipt_handle"] = message.receipt_handle
                _print_message(message.body, heading, details, message.attributes)
        sys.stdout.flush()
        if delete and messages:
            source.delete_many(messages)
    if not messages:
        if not as_json:
            console.print("no message", style="dim")
        sys.exit(Exit.NOTHING)


def _print_message(body: bytes, heading: str, details: dict[str, str | None], attributes: dict[str, Any]) -> None:
    print_text("", heading)
    for name, value in details.items():
        if value is not None:
            print_text("", f"  {name} {value}")
    for name, value in attributes.items():
        print_text("", f"  {name} = {value!r}")
    fields = body_fields(body)
    print_text(fields["body"], "  (base64)" if "encoding" in fields else "")


@queue.command()
@click.argument("name", type=text)
@click.option("--max", "limit", type=COUNT, default=10, show_default=True, help="At most so many.")
@click.option(
    "--state", type=click.Choice(["any", "visible", "in_flight", "delayed"]), default="any", show_default=True, help="Only these."
)
@client_options
def peek(name: str, limit: int, state: str, url: str | None, as_json: bool) -> None:
    """Look at messages without receiving them. Exit code 4: there was none."""
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
                details = {"group": message.group, "dead_letter_source": message.dead_letter_source}
                _print_message(message.body, heading, details, message.attributes)
    if not found:
        if not as_json:
            console.print("no message", style="dim")
        sys.exit(Exit.NOTHING)


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
@click.argument("name", type=text)
@click.option("--yes", is_flag=True, help="Do not ask (nor does --json).")
@client_options
def purge(name: str, yes: bool, url: str | None, as_json: bool) -> None:
    """Delete all messages of a queue."""
    if not yes and not as_json:
        confirm(f"Delete all messages of {name}?")
    with connected(url) as client:
        count = client.queue(name).purge()
    if as_json:
        print_json({"purged": count})
    else:
        console.print(f"deleted {count:,} messages")


@queue.command()
@click.argument("name", type=text)
@click.option("--yes", is_flag=True, help="Do not ask (nor does --json).")
@client_options
def delete(name: str, yes: bool, url: str | None, as_json: bool) -> None:
    """Delete a queue with everything in it."""
    if not yes and not as_json:
        confirm(f"Delete the queue {name} with everything in it?")
    with connected(url) as client:
        client.delete_queue(name)
    if as_json:
        print_json({"deleted": name})
    else:
        console.print(f"queue {escape(name)} deleted")


def receipt_handle(value: Any) -> ReceiptHandle:
    """A receipt handle as `receive` prints it."""
    try:
        return ReceiptHandle.parse(text(value))
    except PenstockError as error:
        raise click.BadParameter(str(error)) from None


@queue.command()
@click.argument("name", type=text)
@click.argument("handles", nargs=-1, required=True, type=receipt_handle, metavar="RECEIPT_HANDLE…")
@client_options
def settle(name: str, handles: tuple[ReceiptHandle, ...], url: str | None, as_json: bool) -> None:
    """Delete received messages: they are worked off.

    RECEIPT_HANDLE is what `receive` printed."""
    with connected(url) as client:
        client.queue(name).delete_many(handles)
    if as_json:
        print_json({"settled": len(handles)})
    else:
        console.print(f"deleted {len(handles):,} messages")


@queue.command()
@click.argument("name", type=text)
@click.argument("handles", nargs=-1, required=True, type=receipt_handle, metavar="RECEIPT_HANDLE…")
@click.option("--after", "after_seconds", type=seconds, default=0.0, show_default=True, help="Seconds until they are visible.")
@client_options
def release(name: str, handles: tuple[ReceiptHandle, ...], after_seconds: float, url: str | None, as_json: bool) -> None:
    """Make received messages visible again.

    At once or later; RECEIPT_HANDLE is what `receive` printed."""
    with connected(url) as client:
        client.queue(name).change_visibility_many(handles, after_seconds)
    if as_json:
        print_json({"released": len(handles), "after_seconds": after_seconds})
    else:
        console.print(f"released {len(handles):,} messages" + (f", visible in {after_seconds:g} s" if after_seconds else ""))


def _move(task: MoveTask) -> dict[str, Any]:
    status = task.status
    return {
        "task_id": status.task_id,
        "source": status.source,
        "destination": status.destination or None,
        "state": status.state,
        "moved": status.moved,
        "to_move": status.to_move,
        "failure": status.failure or None,
    }


@queue.command()
@click.argument("name", type=text)
@click.option("--to", "destination", default="", type=text, help="Move to this queue (default: each to where it came from).")
@click.option("--rate", "messages_per_second", type=click.IntRange(min=0), default=0, help="At most so many messages a second.")
@click.option("--no-wait", is_flag=True, help="Return once it has begun; the broker goes on, also after a restart.")
@client_options
def redrive(name: str, destination: str, messages_per_second: int, no_wait: bool, url: str | None, as_json: bool) -> None:
    """Move the messages of a dead-letter queue back."""
    with connected(url) as client:
        task = client.queue(name).redrive(destination, messages_per_second=messages_per_second)
        if not no_wait:
            with Progress(console=problems, transient=True, disable=as_json or not problems.is_terminal) as progress:
                bar = progress.add_task("moving", total=task.status.to_move)
                while task.is_running:
                    time.sleep(0.05)
                    task.refresh()
                    progress.update(bar, completed=task.moved)
            task.wait()  # raises when it failed
    if as_json:
        print_json(_move(task))
    elif no_wait:
        console.print(f"moving {task.status.to_move:,} messages; look: penstock queue moves {escape(name)}")
    else:
        console.print(f"moved {task.moved:,} messages")


@queue.command()
@click.argument("name", type=text)
@click.option("--cancel", is_flag=True, help="Stop the one that is running; what was moved stays moved.")
@client_options
def moves(name: str, cancel: bool, url: str | None, as_json: bool) -> None:
    """List the redrives of a dead-letter queue, newest first. Exit code 4: there was none."""
    with connected(url) as client:
        tasks = client.queue(name).move_tasks()
        if cancel:
            tasks = [task for task in tasks if task.is_running]
            for task in tasks:
                task.cancel()
    for task in tasks if as_json else ():
        print_json(_move(task))
    if not as_json and tasks:
        columns = ["state", "moved", "of", "to", "failure"]
        rows = [[row["state"], row["moved"], row["to_move"], row["destination"] or "their sources", row["failure"] or "-"]
                for row in map(_move, tasks)]  # fmt: skip
        print_table("", columns, rows)
    if not tasks:
        if not as_json:
            console.print("no redrive is running" if cancel else "no redrives", style="dim")
        sys.exit(Exit.NOTHING)
