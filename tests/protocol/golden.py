"""The golden vectors: frames as bytes and what they say, in `vectors.json`, one a line.

The file is only ever added to: what was once written is what peers of that time send. A vector has

    name          what it is about
    kind          REQUEST, REPLY, ERROR or PUSH
    operation     its name; empty: 0, the connection itself
    correlation   the header's number
    type, fields  the message; bytes are {"hex": …}, a nested message is the list of its fields
    decode_only   true: the frame is read as this message, but is not how this version writes it
    frame         the whole frame, in hex
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from pathlib import Path
from typing import Any

from penstock_protocol import queue_messages, session_messages, stream_messages
from penstock_protocol.codec import Message
from penstock_protocol.frames import Kind
from penstock_protocol.operations import BY_NAME

PATH = Path(__file__).with_name("vectors.json")

MESSAGES: dict[str, type[Message]] = {
    name: value
    for module in (session_messages, queue_messages, stream_messages)
    for name, value in inspect.getmembers(module, inspect.isclass)
    if issubclass(value, Message) and value is not Message
}
"""Every message there is, by its name."""


@dataclasses.dataclass(frozen=True)
class Vector:
    """See the module. `message` is the typed message of `type` and `fields`."""

    name: str
    kind: Kind
    operation: str
    correlation: int
    message: Message
    decode_only: bool
    frame: bytes

    @property
    def code(self) -> int:
        """The operation's number."""
        return BY_NAME[self.operation].code if self.operation else 0


def fields_of(cls: type[Message]) -> tuple[dataclasses.Field[Any], ...]:
    """The fields of a message type, in the order of the wire."""
    return dataclasses.fields(cls)  # type: ignore[arg-type]  # every message is a dataclass


def from_json(value: Any) -> Any:
    """A field as it stands in a decoded frame."""
    if isinstance(value, dict):
        return bytes.fromhex(value["hex"])
    if isinstance(value, list):
        return [from_json(item) for item in value]
    return value


def _vector(row: dict[str, Any]) -> Vector:
    cls = MESSAGES[row["type"]]
    names = [field.name for field in fields_of(cls)]
    fields = row["fields"]
    assert list(fields) == names[: len(fields)], f"{row['name']}: fields are {', '.join(fields)}"
    return Vector(
        row["name"],
        Kind[row["kind"]],
        row["operation"],
        row["correlation"],
        cls.from_wire([from_json(value) for value in fields.values()]),
        row.get("decode_only", False),
        bytes.fromhex(row["frame"]),
    )


@functools.cache
def vectors() -> tuple[Vector, ...]:
    """All of them, in the order of the file."""
    return tuple(_vector(row) for row in json.loads(PATH.read_text(encoding="utf-8")))


def vector(name: str) -> Vector:
    """The one of that name."""
    return next(one for one in vectors() if one.name == name)
