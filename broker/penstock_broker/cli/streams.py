"""`penstock stream …`: what can be done with streams."""

from __future__ import annotations

import dataclasses
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

import click
from penstock import (
    GroupConsumer,
    GroupDescription,
    PutFailed,
    PutResult,
    Reader,
    Record,
    ShardInfo,
    Stream,
    StreamInfo,
    Subscription,
)
from penstock.errors import (
    GroupDoesNotExist,
    InvalidRequest,
    PenstockError,
    RecordsUnreadable,
    RecordTooLarge,
    StreamDoesNotExist,
)
from rich.progress import Progress

from penstock_broker.cli.exits import Exit
from penstock_broker.cli.output import (
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
SHARD = click.IntRange(min=0)
HASH_BITS = 128
MEMBER_DIGITS = 8
"""Of a member's name in a table; --json has all of them."""
IDLE_SECONDS = 2.0
"""So long without a record, and a group is read: its members need a heartbeat or two to hand shards over."""

Start: TypeAlias = Literal["trim_horizon", "latest"] | tuple[Literal["at", "after"], int] | datetime


@click.group()
def stream() -> None:
    """Create, fill, read and reshard streams."""


def setting_options(command: Any) -> Any:
    """Options for the settings of a stream."""
    command = click.option(
        "--enforce-shard-limits/--no-enforce-shard-limits",
        default=None,
        help="Whether a shard lets pass only what one of Kinesis does per second.",
    )(command)
    command = click.option(
        "--mode", type=click.Choice(["provisioned", "on_demand"]), help="on_demand: no limits per shard in any case."
    )(command)
    command = click.option("--max-record-bytes", type=int, help="Largest data of a record.")(command)
    return click.option("--retention", type=seconds, help="Seconds a record is kept.")(command)


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def hash_key(value: Any) -> int:
    """A hash on the command line: decimal, or hexadecimal after 0x."""
    try:
        number = int(value, 0)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << HASH_BITS:
        raise click.BadParameter(f"{value!r} is not a number from 0 to 2**{HASH_BITS} - 1 (hexadecimal after 0x)")
    return number


def put_place(value: Any) -> PutResult:
    """Where a record was put, as it is told: SHARD:NUMBER."""
    shard, _, sequence = text(value).partition(":")
    if not (shard.isdecimal() and sequence.isdecimal()):
        raise click.BadParameter(f"{value!r} is not SHARD:NUMBER, a shard and a sequence number in it")
    return PutResult(int(shard), int(sequence))


def start(value: Any) -> Start:
    """Where reading begins. A time without a zone is local."""
    kind, _, place = text(value).partition(":")
    if value in ("trim_horizon", "latest"):
        return "trim_horizon" if value == "trim_horizon" else "latest"
    if kind in ("at", "after") and place.isdecimal():
        return ("at" if kind == "at" else "after"), int(place)
    try:
        return datetime.fromisoformat(value).astimezone()
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{value!r} is not trim_horizon, latest, at:NUMBER, after:NUMBER or a time (ISO 8601)") from None


@stream.command()
@click.argument("name", type=text)
@click.option("--shards", type=COUNT, default=1, show_default=True, help="So many shards, of even size.")
@setting_options
@click.option("--tag", "tags", multiple=True, type=pair, metavar="KEY=VALUE", help="A tag; may be repeated.")
@client_options
def create(name: str, shards: int, tags: tuple[tuple[str, str], ...], url: str | None, as_json: bool, **settings: Any) -> None:
    """Create a stream."""
    with connected(url) as client:
        info = client.create_stream(name, shards, tags=dict(tags), **_given(settings)).describe()
    if as_json:
        print_json(_info(info))
    else:
        console.print(f"stream [bold]{escape(name)}[/] is there: {escape(info.arn)}")


@stream.command("set")
@click.argument("name", type=text)
@setting_options
@click.option(
    "--default",
    "defaults",
    multiple=True,
    type=text,
    metavar="SETTING",
    help="Back to its default, such as retention; may be repeated.",
)
@client_options
def change(name: str, defaults: tuple[str, ...], url: str | None, as_json: bool, **settings: Any) -> None:
    """Change settings of a stream; those not named stay."""
    unnamed: dict[str, Any] = {setting.replace("-", "_").removesuffix("_ms"): None for setting in defaults}
    if not unnamed and not _given(settings):
        fail("name at least one setting: penstock stream set --help lists them", Exit.USAGE)
    with connected(url) as client:
        info = client.stream(name).set(**unnamed, **_given(settings))
    if as_json:
        print_json(_info(info))
    else:
        console.print(f"stream [bold]{escape(name)}[/] changed")


def _info(info: StreamInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "arn": info.arn,
        "created_at": info.created_at,
        "modified_at": info.modified_at,
        "open_shards": info.shards,
        "settings": info.settings,
        "tags": info.tags,
    }


@stream.command("list")
@click.argument("prefix", default="", type=text)
@client_options
def list_streams(prefix: str, url: str | None, as_json: bool) -> None:
    """List streams whose names start with PREFIX."""
    with connected(url) as client:
        infos = list(_described(client.stream(name) for name in client.streams(prefix)))
    if as_json:
        for info in infos:
            print_json(_info(info))
        return
    if not infos:
        console.print(
            "no streams" + (f" whose names start with {escape(prefix)}" if prefix else " yet: penstock stream create NAME")
        )
        return
    rows = [[info.name, f"{info.shards:,}", _age(info.settings["retention_ms"] / 1000)] for info in infos]
    print_table("", ["stream", "open shards", "retention"], rows)


def _described(streams: Iterable[Stream]) -> Iterator[StreamInfo]:
    for one in streams:
        try:
            yield one.describe()
        except StreamDoesNotExist:  # deleted since it was listed
            continue


def _age(age: float | None) -> str:
    if age is None:
        return "-"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if age >= size:
            return f"{age / size:.1f} {unit}"
    return f"{age:.0f} s"


@stream.command()
@click.argument("name", type=text)
@click.option(
    "--state", type=click.Choice(["all", "open", "closed"]), default="all", show_default=True, help="Only these shards."
)
@client_options
def show(name: str, state: Literal["all", "open", "closed"], url: str | None, as_json: bool) -> None:
    """Show a stream: settings, tags, and its shards with their hashes.

    A shard's records have sequence numbers from FIRST on, all below END; a restart of the broker skips some numbers."""
    with connected(url) as client:
        source = client.stream(name)
        info = source.describe()
        shards = source.shards(state)
    if as_json:
        print_json({**_info(info), "shards": [_shard(shard) for shard in shards]})
        return
    rows: list[list[Any]] = [
        ["arn", info.arn],
        ["open shards", f"{info.shards:,}"],
        *([setting, value] for setting, value in info.settings.items()),
        *([f"tag {key}", value] for key, value in info.tags.items()),
    ]
    print_table(name, ["", ""], rows)
    now = datetime.now(UTC)
    table = [
        [
            shard.shard,
            "open" if shard.is_open else "closed",
            _hash(shard.low),
            _hash(shard.high),
            ", ".join(map(str, shard.parents)) or "-",
            shard.first,
            shard.end,
            f"{shard.records:,}",
            _age(None if shard.oldest_at is None else max(0.0, (now - shard.oldest_at).total_seconds())),
        ]
        for shard in shards
    ]
    print_table("", ["shard", "state", "hashes from", "to", "parents", "first", "end", "records", "oldest"], table)


def _hash(value: int) -> str:
    """The first digits of a hash, for a table that fits a terminal; --json has all of them."""
    return f"0x{value >> (HASH_BITS - 32):08x}…"


def _shard(shard: ShardInfo) -> dict[str, Any]:
    """A shard for JSON. Its hashes are texts: few readers of JSON have numbers of 128 bits."""
    return {
        "shard": shard.shard,
        "state": "open" if shard.is_open else "closed",
        "low": str(shard.low),
        "high": str(shard.high),
        "parents": shard.parents,
        "created_at": shard.created_at,
        "closed_at": shard.closed_at,
        "first": shard.first,
        "end": shard.end,
        "records": shard.records,
        "size_bytes": shard.size_bytes,
        "oldest_at": shard.oldest_at,
    }


@stream.command()
@click.argument("name", type=text)
@click.argument("tags", nargs=-1, required=True, type=pair, metavar="KEY=VALUE…")
@client_options
def tag(name: str, tags: tuple[tuple[str, str], ...], url: str | None, as_json: bool) -> None:
    """Add or replace tags of a stream."""
    with connected(url) as client:
        client.stream(name).tag(**dict(tags))
        info = client.stream(name).describe()
    _say_tags(info, as_json)


@stream.command()
@click.argument("name", type=text)
@click.argument("keys", nargs=-1, required=True, type=text, metavar="KEY…")
@client_options
def untag(name: str, keys: tuple[str, ...], url: str | None, as_json: bool) -> None:
    """Remove tags of a stream."""
    with connected(url) as client:
        client.stream(name).untag(*keys)
        info = client.stream(name).describe()
    _say_tags(info, as_json)


def _say_tags(info: StreamInfo, as_json: bool) -> None:
    if as_json:
        print_json({"name": info.name, "tags": info.tags})
    elif info.tags:
        print_table("", ["tag", "value"], [[key, value] for key, value in info.tags.items()])
    else:
        console.print("no tags", style="dim")


@stream.command()
@click.argument("name", type=text)
@click.argument("data", required=False)
@click.option(
    "--file", "path", type=click.Path(exists=True, dir_okay=False, readable=True), help="The data is this file's content."
)
@click.option("--lines", is_flag=True, help="One record per line of standard input.")
@click.option("--key", type=text, help="Partition key: records of one key keep their order (default: a random one for each).")
@click.option("--key-separator", type=text, help="With --lines: a line's key is what is before the first such text.")
@click.option("--hash-key", "explicit", type=hash_key, help="Chooses the shard in place of the key's MD5.")
@click.option("--after", type=put_place, metavar="SHARD:NUMBER", help="Where the record before it under its key was put.")
@client_options
def put(
    name: str,
    data: str | None,
    path: str | None,
    lines: bool,
    key: str | None,
    key_separator: str | None,
    explicit: int | None,
    after: PutResult | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Put a record, or many.

    DATA, a file, standard input (DATA is -), or each of its lines. What is said to be put is durable. An error that ends
    --lines may leave lines put that were not counted."""
    if sum((data is not None, path is not None, lines)) != 1:
        fail("give exactly one of DATA (- for standard input), --file and --lines", Exit.USAGE)
    if key_separator is not None and (not lines or key is not None or not key_separator):
        fail("--key-separator is some text, belongs to --lines, and takes the place of --key", Exit.USAGE)
    if after is not None and (lines or (key is None and explicit is None)):
        fail("--after is about one record, of a --key (or --hash-key)", Exit.USAGE)
    with connected(url) as client:
        target = client.stream(name)
        if lines:
            _put_lines(target, _splitter(key, key_separator), explicit, as_json)
            return
        content = Path(path).read_bytes() if path else sys.stdin.buffer.read() if data == "-" else os.fsencode(str(data))
        done = target.put(content, _random_key() if key is None else key, hash_key=explicit, after=after)
    if as_json:
        print_json({"shard": done.shard, "sequence": done.sequence})
    else:
        console.print(f"put into shard {done.shard} as {done.sequence}")


def _random_key() -> str:
    return secrets.token_hex(8)


def _splitter(key: str | None, separator: str | None) -> Callable[[bytes], tuple[bytes, str]]:
    """What makes data and key of a line. ValueError says what is wrong with it."""
    if separator is None:
        return lambda line: (line, _random_key() if key is None else key)
    mark = separator.encode()

    def split(line: bytes) -> tuple[bytes, str]:
        head, found, rest = line.partition(mark)
        if not found:
            raise ValueError(f"there is no {separator!r} after a key")
        try:
            return rest, head.decode()
        except UnicodeDecodeError:
            raise ValueError("its key is not UTF-8") from None

    return split


def _put_lines(target: Stream, split: Callable[[bytes], tuple[bytes, str]], explicit: int | None, as_json: bool) -> None:
    """Puts standard input through a producer; a refused line is told and does not hold up the others."""
    refused = 0
    failure: PenstockError | None = None
    hidden = as_json or not problems.is_terminal
    producer = target.producer()
    with Progress("[progress.description]{task.description}", console=problems, transient=True, disable=hidden) as progress:
        bar = progress.add_task("")
        try:
            with producer:
                for place, line in enumerate(sys.stdin.buffer, 1):
                    try:
                        data, key = split(line.rstrip(b"\r\n"))
                        producer.put(data, key, hash_key=explicit)
                    except (ValueError, InvalidRequest, RecordTooLarge) as error:
                        refused += 1
                        said = f"{error.name}: {error}" if isinstance(error, PenstockError) else str(error)
                        problems.print(f"[bold red]error:[/] line {place}: {escape(said)}")
                    if place % 1_000 == 0:
                        progress.update(bar, description=f"{producer.delivered:,} put")
        except PutFailed as error:
            failure = error
    if as_json:
        print_json({"put": producer.delivered, "refused": refused})
    else:
        console.print(f"put {producer.delivered:,} records")
    if failure is not None:
        raise failure
    if refused:
        sys.exit(Exit.FAILED)


START_HELP = "trim_horizon (the oldest record), latest, or a time (ISO 8601)"
raw_option = click.option(
    "--raw", is_flag=True, help="Records that the Kinesis Producer Library has aggregated as they were put."
)


@stream.command()
@click.argument("name", type=text)
@click.option("--from", "begin", type=start, default="latest", show_default=True, help=f"Begin there: {START_HELP}.")
@click.option("--max", "limit", type=COUNT, help="End after so many records.")
@click.option("--consumer", type=text, help="Pushed to this registered consumer, in place of reading.")
@raw_option
@client_options
def tail(name: str, begin: Start, limit: int | None, consumer: str | None, raw: bool, url: str | None, as_json: bool) -> None:
    """Follow a stream: print records of all shards as they come, also of shards that splits and merges open, until Ctrl-C."""
    if isinstance(begin, tuple):
        fail("a sequence number is a place in one shard: penstock stream read --shard", Exit.USAGE)
    with connected(url) as client:
        if problems.is_terminal and not as_json:
            problems.print("[dim]Ctrl-C ends[/]")
        source = client.stream(name)
        if consumer is None:
            _print_all(source.tail(begin, deaggregate=not raw), limit, as_json)
        else:
            registered = source.registered_consumer(consumer)
            _print_all(registered.subscribe(start=begin, deaggregate=not raw), limit, as_json)


@stream.command()
@click.argument("name", type=text)
@click.option("--shard", type=SHARD, help="Only this one (default: all of them).")
@click.option(
    "--from",
    "begin",
    type=start,
    default="trim_horizon",
    show_default=True,
    help=f"Begin there: {START_HELP}; with --shard also at:NUMBER or after:NUMBER, a sequence number.",
)
@click.option("--group", type=text, help="As a member of this consumer group: what it has not processed; --from if it is new.")
@click.option("--max", "limit", type=COUNT, help="At most so many records.")
@raw_option
@client_options
def read(
    name: str, shard: int | None, begin: Start, group: str | None, limit: int | None, raw: bool, url: str | None, as_json: bool
) -> None:
    """Print the records that are there, shard by shard in their order. Exit code 4: there was none.

    With --group what is printed counts as processed. Members that are there share the shards, so this may print a part."""
    if group is not None and (shard is not None or begin not in ("trim_horizon", "latest")):
        fail("a consumer group has its own places: --group goes with --from trim_horizon or latest alone", Exit.USAGE)
    with connected(url) as client:
        source = client.stream(name)
        if group is not None:
            consumer = source.consume(group, start="latest" if begin == "latest" else "trim_horizon", deaggregate=not raw)
            found = _print_group(consumer, limit, as_json)
            _end_read(found, as_json)
            return
        if shard is not None:
            batches = source.read(shard, begin, idle_seconds=0, deaggregate=not raw)
        elif isinstance(begin, tuple):
            fail("a sequence number is a place in one shard: give --shard", Exit.USAGE)
        else:
            batches = source.tail(begin, idle_seconds=0, deaggregate=not raw)
        found = _print_all(batches, limit, as_json)
    _end_read(found, as_json)


def _end_read(found: int, as_json: bool) -> None:
    if not found:
        if not as_json:
            console.print("no record", style="dim")
        sys.exit(Exit.NOTHING)


def _print_all(reader: Reader | Subscription, limit: int | None, as_json: bool) -> int:
    """Prints records until there are no more or `limit` is reached; how many. Batches that cannot be unpacked are told, and make
    the command fail at its end."""
    count = unreadable = 0
    with reader:
        for batch in iter(reader.next, None):
            try:
                records = list(batch)
            except RecordsUnreadable as error:
                unreadable += 1
                where = f"shard {batch.shard}, records {batch.first} to {batch.end - 1}"
                problems.print(f"[bold red]error:[/] {where}: {escape(f'{error.name}: {error}')}")
                continue
            except ImportError as error:
                fail(str(error), Exit.FAILED)
            for record in records[: None if limit is None else limit - count]:
                _print_record(record, as_json)
                count += 1
            if count == limit:
                break
    if unreadable:
        sys.exit(Exit.FAILED)
    return count


def _print_group(consumer: GroupConsumer[Record], limit: int | None, as_json: bool) -> int:
    """Prints what a member of the group gets, as `_print_all` does."""
    count = unreadable = 0
    with consumer:
        while True:
            try:
                record = consumer.next(IDLE_SECONDS)
            except RecordsUnreadable as error:
                unreadable += 1
                problems.print(f"[bold red]error:[/] {escape(f'{error.name}: {error}')}")
                continue
            except ImportError as error:
                fail(str(error), Exit.FAILED)
            if record is None:
                break
            _print_record(record, as_json)
            count += 1
            if count == limit:
                consumer.stop()  # (The next round counts the last one as processed.)
    if unreadable:
        sys.exit(Exit.FAILED)
    return count


def _print_record(record: Record, as_json: bool) -> None:
    fields = body_fields(record.data)
    data = fields.pop("body")
    if as_json:
        place = {"shard": record.shard, "sequence": record.sequence}
        if record.aggregated:
            place |= {"sub_sequence": record.sub_sequence}
        print_json({**place, "key": record.key, "arrived_at": record.arrived_at, "data": data, **fields})
        return
    sequence = f"{record.sequence}.{record.sub_sequence}" if record.aggregated else f"{record.sequence}"
    details = f"  shard {record.shard}, {sequence}, key {record.key}, {record.arrived_at:%Y-%m-%d %H:%M:%S}Z"
    print_text(data, ("  (base64)" if fields else "") + details)


@stream.command()
@click.argument("name", type=text)
@click.argument("shards", type=COUNT)
@client_options
def reshard(name: str, shards: int, url: str | None, as_json: bool) -> None:
    """Split and merge until there are SHARDS open shards of even size."""
    with connected(url, timeout=60.0) as client:
        info = client.stream(name).set_shard_count(shards)
    if as_json:
        print_json(_info(info))
    else:
        console.print(f"stream [bold]{escape(name)}[/] has {info.shards:,} open shards")


@stream.command()
@click.argument("name", type=text)
@click.argument("shard", type=SHARD)
@click.option("--at", type=hash_key, help="The first hash of the second half (default: the middle).")
@client_options
def split(name: str, shard: int, at: int | None, url: str | None, as_json: bool) -> None:
    """Split an open shard into two."""
    with connected(url) as client:
        client.stream(name).split(shard, at)
        children = _children(client.stream(name), {shard})
    _say_children(f"shard {shard} is closed", children, as_json)


@stream.command()
@click.argument("name", type=text)
@click.argument("shard", type=SHARD)
@click.argument("other", type=SHARD)
@client_options
def merge(name: str, shard: int, other: int, url: str | None, as_json: bool) -> None:
    """Merge two open shards that are neighbours into one."""
    with connected(url) as client:
        client.stream(name).merge(shard, other)
        children = _children(client.stream(name), {shard, other})
    _say_children(f"shards {shard} and {other} are closed", children, as_json)


def _children(source: Stream, parents: set[int]) -> list[ShardInfo]:
    return [one for one in source.shards() if parents == set(one.parents)]


def _say_children(sentence: str, children: list[ShardInfo], as_json: bool) -> None:
    if as_json:
        for child in children:
            print_json(_shard(child))
    else:
        console.print(f"{sentence}; what comes goes into {' and '.join(str(child.shard) for child in children)}")


@stream.command()
@click.argument("name", type=text)
@click.option("--yes", is_flag=True, help="Do not ask (nor does --json).")
@client_options
def delete(name: str, yes: bool, url: str | None, as_json: bool) -> None:
    """Delete a stream with everything in it."""
    if not yes and not as_json:
        confirm(f"Delete the stream {name} with everything in it?")
    with connected(url) as client:
        client.delete_stream(name)
    if as_json:
        print_json({"deleted": name})
    else:
        console.print(f"stream {escape(name)} deleted")


# Consumer groups


def group_start(value: Any) -> Literal["trim_horizon", "latest"] | datetime:
    """Where a group goes on: a sequence number would be a place in one shard only."""
    found = start(value)
    if isinstance(found, tuple):
        raise click.BadParameter(f"{value!r} is a place in one shard: it must be trim_horizon, latest or a time (ISO 8601)")
    return found


@stream.command("groups")
@click.argument("name", type=text)
@client_options
def list_groups(name: str, url: str | None, as_json: bool) -> None:
    """List the consumer groups of a stream, with how many members each has and how many records it is behind."""
    with connected(url) as client:
        source = client.stream(name)
        found = list(_described_groups(source, source.groups()))
    if as_json:
        for one in found:
            print_json(_group(one))
        return
    if not found:
        console.print("no consumer groups: the first member makes one", style="dim")
        return
    print_table("", ["group", "members", "lag"], [[one.name, f"{len(one.members):,}", f"{one.lag:,}"] for one in found])


def _described_groups(source: Stream, names: Iterable[str]) -> Iterator[GroupDescription]:
    for name in names:
        try:
            yield source.describe_group(name)
        except GroupDoesNotExist:  # deleted since it was listed
            continue


def _group(one: GroupDescription) -> dict[str, Any]:
    return {"stream": one.stream, "group": one.name, "created_at": one.created_at, "members": one.members, "lag": one.lag}


def _say_group(one: GroupDescription, as_json: bool) -> None:
    shards = [
        {
            "shard": shard.shard,
            "member": shard.member,
            "position": shard.position,
            "end": shard.end,
            "lag": shard.lag,
            "finished": shard.finished,
        }
        for shard in one.shards
    ]
    if as_json:
        print_json({**_group(one), "shards": shards})
        return
    rows = [["members", f"{len(one.members):,}"], ["lag", f"{one.lag:,}"], ["created", f"{one.created_at:%Y-%m-%d %H:%M:%S}Z"]]
    print_table(one.name, ["", ""], rows)
    table = [
        [
            shard.shard,
            "finished" if shard.finished else (shard.member or "-")[:MEMBER_DIGITS],
            shard.position,
            shard.end,
            f"{shard.lag:,}",
        ]
        for shard in one.shards
    ]
    print_table("", ["shard", "member", "position", "end", "lag"], table)


@stream.command()
@click.argument("name", type=text)
@click.argument("group", type=text)
@client_options
def group(name: str, group: str, url: str | None, as_json: bool) -> None:
    """Show a consumer group: who has which shard, how far it has come, and how many records it is behind."""
    with connected(url) as client:
        found = client.stream(name).describe_group(group)
    _say_group(found, as_json)


@stream.command()
@click.argument("name", type=text)
@click.argument("group", type=text)
@click.option(
    "--to",
    "place",
    type=group_start,
    required=True,
    metavar="PLACE",
    help="trim_horizon (the oldest records), latest, or a time.",
)
@client_options
def reset(name: str, group: str, place: Literal["trim_horizon", "latest"] | datetime, url: str | None, as_json: bool) -> None:
    """Have a consumer group go on from another place: what comes after it is processed, again if need be."""
    with connected(url) as client:
        found = client.stream(name).reset_group(group, place)
    if as_json:
        _say_group(found, as_json)
    else:
        console.print(f"group [bold]{escape(group)}[/] is {found.lag:,} records behind now")


@stream.command()
@click.argument("name", type=text)
@click.argument("group", type=text)
@click.option("--yes", is_flag=True, help="Do not ask (nor does --json).")
@client_options
def forget(name: str, group: str, yes: bool, url: str | None, as_json: bool) -> None:
    """Delete a consumer group: how far it has come is forgotten, the records stay."""
    if not yes and not as_json:
        confirm(f"Forget how far the group {group} has come in the stream {name}?")
    with connected(url) as client:
        client.stream(name).delete_group(group)
    if as_json:
        print_json({"deleted": group, "stream": name})
    else:
        console.print(f"group {escape(group)} forgotten")


# Registered consumers


@stream.command()
@click.argument("name", type=text)
@client_options
def consumers(name: str, url: str | None, as_json: bool) -> None:
    """List the registered consumers of a stream, with how many shards are pushed to each and how many records it is behind."""
    with connected(url) as client:
        found = client.stream(name).list_consumers()
    if as_json:
        for one in found:
            print_json(dataclasses.asdict(one))
    elif not found:
        console.print("no registered consumers: penstock stream register", style="dim")
    else:
        rows = [[one.name, f"{one.subscriptions:,}", f"{one.lag:,}", f"{one.created_at:%Y-%m-%d %H:%M:%S}Z"] for one in found]
        print_table("", ["consumer", "shards", "lag", "registered"], rows)


@stream.command()
@click.argument("name", type=text)
@click.argument("consumer", type=text)
@client_options
def register(name: str, consumer: str, url: str | None, as_json: bool) -> None:
    """Register a consumer, to which records are pushed: `tail --consumer`, or the SDK. One that is there stays as it is."""
    with connected(url) as client:
        found = client.stream(name).register_consumer(consumer).info
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        console.print(f"consumer [bold]{escape(consumer)}[/] registered: {escape(found.arn)}")


@stream.command()
@click.argument("name", type=text)
@click.argument("consumer", type=text)
@click.option("--yes", is_flag=True, help="Do not ask (nor does --json).")
@client_options
def deregister(name: str, consumer: str, yes: bool, url: str | None, as_json: bool) -> None:
    """Deregister a consumer: what is pushed to it ends, the records stay."""
    if not yes and not as_json:
        confirm(f"Push nothing more to the consumer {consumer} of the stream {name}?")
    with connected(url) as client:
        client.stream(name).deregister_consumer(consumer)
    if as_json:
        print_json({"deregistered": consumer, "stream": name})
    else:
        console.print(f"consumer {escape(consumer)} deregistered")
