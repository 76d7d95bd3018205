"""PROTOCOL.md says what the code does: its tables, its examples in bytes, and the sections that the code refers to."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import re
import types
import typing
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zstandard
from penstock_broker.queues.settings import QueueSettings, as_list, changed
from penstock_broker.streams import batches, limits, settings
from penstock_broker.streams.settings import StreamSettings
from penstock_protocol.codec import MAX_ARRAY_LENGTH, MAX_ELEMENTS, MAX_REPLY_ELEMENTS, Message
from penstock_protocol.errors import TABLE, InvalidAttribute
from penstock_protocol.frames import ANSWER_FRAME_BYTES, DEFAULT_FRAME_BYTES, HEADER_BYTES, HELLO_FRAME_BYTES, MAGIC, Kind
from penstock_protocol.operations import OPERATIONS, ROLES, Operation, Permission
from penstock_protocol.queue_messages import Setting
from penstock_protocol.stream_messages import PutRecords

from tests.protocol.golden import MESSAGES, fields_of, vector

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "protocol/PROTOCOL.md").read_text(encoding="utf-8")
_NUMBERS = re.findall(r"^## (\d+)\.", TEXT, re.MULTILINE)
SECTIONS = dict(zip(_NUMBERS, re.split(r"^## \d+\..*$", TEXT, flags=re.MULTILINE)[1:], strict=True))


def rows_after(start: str, text: str = TEXT) -> list[list[str]]:
    """The table that begins with this line, cell by cell, without its two head lines."""
    lines = text[text.index(start) :].split("\n")
    found = []
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    assert found
    return found


def type_name(hint: Any) -> str:
    """A field's type as the specification writes it."""
    origin = typing.get_origin(hint)
    if origin is list:
        return f"[{type_name(typing.get_args(hint)[0])}]"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(type_name, typing.get_args(hint)))
    names = {int: "int", str: "text", bytes: "bin", bool: "bool", type(None): "nil"}
    return names.get(hint) or str(hint.__name__)


def default_name(default: Any) -> str:
    """A default as the specification writes it."""
    if default is dataclasses.MISSING:
        return "required"
    plain = {None: "nil", False: "false", True: "true", "": '`""`', b"": "empty"}
    if default.__class__ is not int and not isinstance(default, list) and default in plain:
        return plain[default]
    return str(default) if isinstance(default, int) else f"`{default}`"


def yes(value: bool) -> str:
    return "yes" if value else "no"


def test_the_table_of_operations_is_the_codes() -> None:
    assert rows_after("| Code | Operation |") == [
        [
            str(row.code),
            f"[{row.name}](#{row.name.lower()}-{row.code})",
            row.request.__name__,
            "none" if row.one_way else row.reply.__name__,
            row.permission.value,
            yes(row.idempotent),
            ", ".join(name for name in ("waits", "pushes", "one-way") if getattr(row, name.replace("-", "_"))),
        ]
        for row in OPERATIONS
    ]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda row: row.name)
def test_every_operation_has_its_own_text_with_errors_that_exist(operation: Operation) -> None:
    heading = f"### {operation.name} ({operation.code})\n"
    assert TEXT.count(heading) == 1
    text = re.split(r"^###? ", TEXT[TEXT.index(heading) + 4 :], maxsplit=1, flags=re.MULTILINE)[0]
    errors = re.search(r"^Errors: (.*?)\n\n", text + "\n\n", re.MULTILINE | re.DOTALL)
    assert errors is not None
    names = set(re.findall(r"\b[A-Z]\w+", errors[1])) - {"In"}
    assert names <= {cls.__name__ for cls in TABLE.values()}
    assert names or "none" in errors[1]


@pytest.mark.parametrize("name", MESSAGES)
def test_the_fields_of_every_message_are_the_codes(name: str) -> None:
    cls: type[Message] = MESSAGES[name]
    if not fields_of(cls):
        assert f"**{name}** has no fields." in TEXT
        return
    assert TEXT.count(f"**{name}**\n") == 1
    rows = rows_after("| Place | Field |", TEXT[TEXT.index(f"**{name}**\n") :])
    hints = typing.get_type_hints(cls)
    assert [row[:4] for row in rows] == [
        [str(place), f"`{field.name}`", f"`{type_name(hints[field.name])}`", default_name(field.default)]
        for place, field in enumerate(fields_of(cls))
    ]
    assert all(row[4] for row in rows)


def test_the_table_of_errors_is_the_codes() -> None:
    assert rows_after("| Number | Name |") == [
        [str(code), cls.__name__, cls.fault.value, yes(cls.retryable), cls.advice] for code, cls in sorted(TABLE.items())
    ]


def test_the_table_of_roles_is_the_codes() -> None:
    assert rows_after("| Role |") == [
        [f"`{role}`", *(yes(permission in allowed) for permission in Permission)] for role, allowed in ROLES.items()
    ]


def test_the_table_of_queue_attributes_is_the_brokers() -> None:
    hints = typing.get_type_hints(QueueSettings)
    for_all = {setting.name for setting in as_list(QueueSettings(), fifo=False)}
    expected = []
    for setting in as_list(QueueSettings(), fifo=True):
        with pytest.raises(InvalidAttribute) as caught:
            changed(QueueSettings(), [Setting(setting.name, b"")], fifo=True)  # type: ignore[arg-type]  # no attribute is binary
        expected.append(
            [
                f"`{setting.name}`",
                f"`{type_name(hints[setting.name])}`",
                default_name(setting.value),
                str(caught.value).split(": it must be ", 1)[1],
                "both" if setting.name in for_all else "FIFO",
            ]
        )
    assert [row[:5] for row in rows_after("| Name | Type |", SECTIONS["6"])] == expected


def test_the_table_of_stream_attributes_is_the_brokers() -> None:
    hints = typing.get_type_hints(StreamSettings)
    expected = []
    for setting in settings.as_list(StreamSettings()):
        with pytest.raises(InvalidAttribute) as caught:
            settings.changed(StreamSettings(), [Setting(setting.name, "")])
        rule = str(caught.value).split(": it must be ", 1)[1]
        expected.append([f"`{setting.name}`", f"`{type_name(hints[setting.name])}`", default_name(setting.value), rule])
    assert [row[:4] for row in rows_after("| Name | Type |", SECTIONS["7"])] == expected


def test_the_table_of_kinds_is_the_codes() -> None:
    assert [row[:2] for row in rows_after("| Kind | Name |")] == [[str(int(kind)), kind.name] for kind in Kind]


@pytest.mark.parametrize(
    ("section", "number"),
    [
        ("2", HELLO_FRAME_BYTES),
        ("2", DEFAULT_FRAME_BYTES),
        ("2", ANSWER_FRAME_BYTES),
        ("4", MAX_ARRAY_LENGTH),
        ("4", MAX_ELEMENTS),
        ("4", MAX_REPLY_ELEMENTS),
        ("7", limits.MAX_BATCH),
        ("7", limits.MAX_BATCH_BYTES),
        ("7", limits.MAX_KEY),
        ("7", limits.MAX_SHARDS),
        ("7", limits.MAX_STREAMS),
        ("7", limits.ITERATOR_MS // 60_000),
        ("7", limits.MAX_GROUPS),
        ("7", limits.MAX_MEMBERS),
        ("7", limits.MAX_CONSUMERS),
        ("7", limits.MAX_CREDIT),
        ("8", limits.MAX_NAME_LENGTH),
        ("8", limits.MAX_READ_RECORDS),
        ("8", limits.MAX_READ_BYTES),
        ("8", limits.MAX_WAIT_MS),
        ("8", limits.MIN_SESSION_MS),
        ("8", limits.MAX_SESSION_MS),
    ],
)
def test_limits_are_named(section: str, number: int) -> None:
    assert f"{number:,}" in SECTIONS[section]


def test_the_magic_and_the_header_are_those_of_the_code() -> None:
    assert MAGIC.hex(" ") in SECTIONS["2"]
    assert HEADER_BYTES == 16
    widths = [int(bits) // 8 for bits in re.findall(r"\bu(8|16|32|64)\b", SECTIONS["2"])]
    assert widths == [4, 1, 1, 2, 8]


def test_sections_are_where_the_code_says_they_are() -> None:
    headings = dict(re.findall(r"^## (\d+)\. (.*)$", TEXT, re.MULTILINE))
    assert headings["2"] == "Frames"
    assert headings["3"] == "The connection"
    assert headings["6"] == "Queue attributes"
    assert headings["7"] == "Streams"
    assert "### Hello and authentication" in SECTIONS["3"]
    for source in [*ROOT.glob("protocol/**/*.py"), *ROOT.glob("broker/**/*.py"), *ROOT.glob("clients/**/*.py")]:
        for number in re.findall(r"PROTOCOL\.md,? section (\d+)", source.read_text(encoding="utf-8")):
            assert number in headings, source


def test_every_link_leads_somewhere() -> None:
    headings = re.findall(r"^##+ (.*)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(#([^)]*)\)", TEXT)
    assert links
    assert set(links) <= anchors


EXAMPLES = re.findall(r"\(vector `(.+?)`\):\n\n((?:    .*\n)+)", SECTIONS["11"])


@pytest.mark.parametrize(("name", "block"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_the_example_in_bytes_is_the_golden_vector(name: str, block: str) -> None:
    written = "".join(re.match(r"    ((?:[0-9a-f]{2} )*[0-9a-f]{2})", line)[1] for line in block.splitlines())  # type: ignore[index]
    assert bytes.fromhex(written) == vector(name).frame


def test_the_example_has_a_send_and_a_receive() -> None:
    assert {"send one", "sent", "receive", "received one"} <= {name for name, _ in EXAMPLES}


def test_the_example_of_a_batch_is_the_blob_of_the_golden_put() -> None:
    block = next(one for one in re.findall(r"((?:^    .*\n)+)", SECTIONS["7"], re.MULTILINE) if one.startswith("    92  "))
    written = bytes.fromhex("".join(re.match(r"    ((?:[0-9a-f]{2} )*[0-9a-f]{2})", line)[1] for line in block.splitlines()))  # type: ignore[index]
    plain, compressed = vector("put two records").message, vector("put two records compressed").message
    assert isinstance(plain, PutRecords)
    assert isinstance(compressed, PutRecords)
    assert plain.blob == written
    assert zstandard.decompress(compressed.blob) == written
    data, keys = msgpack.unpackb(written)
    assert [f'"{one.decode()}"' for one in data] + [f'"{one}"' for one in keys] == re.findall(r"\[\d\]:.*?(\"\w+\")", block)
    size_bytes = sum(map(len, data)) + sum(len(key.encode()) for key in keys)
    assert f"`count` {len(data)}, `codec` 0, `size_bytes` {size_bytes}" in SECTIONS["7"]
    for one in (plain, compressed):
        assert (one.count, one.size_bytes) == (len(data), size_bytes)
        batches.check(one, limits.DEFAULT_RECORD_BYTES)


def test_the_example_of_a_proof_is_right() -> None:
    values = dict(re.findall(r"^    (secret|producer|challenge|proof) +(.+)$", SECTIONS["3"], re.MULTILINE))
    signed = b"penstock-hello-1" + bytes.fromhex(values["challenge"]) + bytes.fromhex(values["producer"])
    assert hmac.new(values["secret"].encode(), signed, hashlib.sha256).hexdigest() == values["proof"]


def test_lines_fit() -> None:
    assert [line for line in TEXT.splitlines() if len(line) > 130 and not line.startswith("|")] == []
