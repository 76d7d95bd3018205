"""Messages on their way out: bodies and properties are checked and measured here, by whom they belong to.

Messages of many callers travel in one frame, so a value of the wrong type must be refused before it joins the others. What
a value means (names of attributes, limits) is judged by the broker, entry by entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from penstock_protocol import queue_messages as wire
from penstock_protocol.codec import MAX_INTEGER

from penstock.errors import InvalidMessage
from penstock.types import AttributeValue, OutgoingMessage, attributes_to_wire

COLUMNS: Final = ("attributes", "delays_ms", "groups", "deduplication_ids", "traces")
"""The properties of a message, as SendMessages names their columns."""


class Properties:
    """What a message has beside its body: values by column, and what they add to a frame."""

    __slots__ = ("elements", "size_bytes", "values")

    def __init__(self, values: dict[str, Any], size_bytes: int, elements: int) -> None:
        self.values = values
        self.size_bytes = size_bytes
        self.elements = elements


def body_bytes(body: bytes | str) -> bytes:
    """The body as bytes; text becomes UTF-8. TypeError for anything else."""
    if isinstance(body, bytes):
        return body
    if isinstance(body, str):
        return body.encode()
    raise TypeError(f"a message body is bytes or str, not {type(body).__name__}")


def milliseconds(seconds: float, name: str) -> int:
    """Seconds as the wire has them. InvalidMessage when it cannot be a duration."""
    if not 0 <= seconds <= MAX_INTEGER / 1000:
        raise InvalidMessage(f"{name} = {seconds!r}; it must be 0 or more seconds")
    return round(seconds * 1000)


def properties(
    attributes: Mapping[str, AttributeValue | wire.Attribute] | None,
    delay_seconds: float | None,
    group: str | None,
    deduplication_id: str | None,
    trace: str | None,
) -> Properties | None:
    """The properties that are there; None when there are none. TypeError or InvalidMessage when one cannot be sent."""
    values: dict[str, Any] = {}
    size_bytes = 48
    elements = len(COLUMNS)
    if attributes:
        values["attributes"] = converted = attributes_to_wire(attributes)
        for attribute in converted:
            value = attribute.value
            size_bytes += 20 + _text("an attribute's name", attribute.name) + _text("an attribute's type", attribute.type)
            size_bytes += len(value) if isinstance(value, bytes) else _text(f"attribute {attribute.name}", value)
            elements += 5
    if delay_seconds is not None:
        values["delays_ms"] = milliseconds(delay_seconds, "delay_seconds")
    for column, name, text in (
        ("groups", "group", group),
        ("deduplication_ids", "deduplication_id", deduplication_id),
        ("traces", "trace", trace),
    ):
        if text is not None:
            size_bytes += _text(name, text)
            values[column] = text
    return Properties(values, size_bytes, elements) if values else None


def _text(name: str, value: object) -> int:
    """The length of a text on the wire."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be str, not {type(value).__name__}")
    return len(value.encode())


def entry_of(message: bytes | str | OutgoingMessage) -> tuple[bytes, Properties | None]:
    """Body and properties of one message of a batch."""
    if not isinstance(message, OutgoingMessage):
        return body_bytes(message), None
    return body_bytes(message.body), properties(
        message.attributes, message.delay_seconds, message.group, message.deduplication_id, message.trace
    )
