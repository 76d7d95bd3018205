"""The rules for what may be sent: one check per entry of a batch, and the columns of those that pass."""

from __future__ import annotations

import re
from typing import Any, Final

from penstock_protocol.errors import InvalidMessage, InvalidRequest, MessageTooLarge
from penstock_protocol.queue_messages import Attribute, SendMessages

from penstock_broker.queues import limits
from penstock_broker.queues.segment import attributes_bytes
from penstock_broker.queues.settings import QueueSettings

_ATTRIBUTE_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+\Z")
_ATTRIBUTE_TYPE: Final = re.compile(r"(String|Number|Binary)(\.[^\x00-\x1f]{1,249})?\Z")
_ID: Final = re.compile(rf"[!-~]{{1,{limits.MAX_ID_LENGTH}}}\Z")

COLUMNS: Final = ("attributes", "delays_ms", "groups", "deduplication_ids", "traces")


def check_shape(request: SendMessages) -> None:
    """Raises InvalidRequest when a column does not have one element per body."""
    count = len(request.bodies)
    for name in COLUMNS:
        column = getattr(request, name)
        if column is not None and len(column) != count:
            raise InvalidRequest(f"{name} has {len(column)} elements for {count} bodies")


def check_attributes(attributes: list[Attribute]) -> None:
    """Raises InvalidMessage with the attribute and the rule it breaks (SQS: message attributes)."""
    if len(attributes) > limits.MAX_ATTRIBUTES:
        raise InvalidMessage(f"{len(attributes)} attributes; at most {limits.MAX_ATTRIBUTES} are allowed")
    names = set()
    for attribute in attributes:
        name = attribute.name
        if name in names:
            raise InvalidMessage(f"attribute {name[:100]!r} is there twice")
        names.add(name)
        if not 1 <= len(name) <= limits.MAX_ATTRIBUTE_NAME or _ATTRIBUTE_NAME.match(name) is None:
            raise InvalidMessage(
                f"attribute name {name[:100]!r}: 1 to {limits.MAX_ATTRIBUTE_NAME} letters, digits, hyphens, underscores and dots"
            )
        if name.startswith(".") or name.endswith(".") or ".." in name or name.lower().startswith(("aws.", "amazon.")):
            raise InvalidMessage(f"attribute name {name[:100]!r}: no dot at an end or doubled, no AWS. or Amazon. in front")
        if _ATTRIBUTE_TYPE.match(attribute.type) is None:
            raise InvalidMessage(f"attribute {name!r} has type {attribute.type[:50]!r}; String, Number or Binary are allowed")
        binary = attribute.type.startswith("Binary")
        if binary != (type(attribute.value) is bytes):
            raise InvalidMessage(f"attribute {name!r} of type {attribute.type} has {'text' if binary else 'binary'} as value")
        if not attribute.value:
            raise InvalidMessage(f"attribute {name!r} is empty")
        if attribute.type.startswith("Number") and not _is_number(str(attribute.value)):
            raise InvalidMessage(f"attribute {name!r} is no number: {str(attribute.value)[:50]!r}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii() and not text.strip("+-").lower().startswith(("inf", "nan")) and "_" not in text


def check_entry(request: SendMessages, index: int, settings: QueueSettings, *, fifo: bool) -> dict[str, Any]:
    """One entry's properties (without body). Raises InvalidMessage or MessageTooLarge."""
    size = len(request.bodies[index])
    values: dict[str, Any] = {}
    attributes = request.attributes[index] if request.attributes is not None else None
    if attributes:
        check_attributes(attributes)
        size += attributes_bytes(attributes)
        values["attributes"] = attributes
    if size > settings.max_message_bytes:
        raise MessageTooLarge(f"the message has {size} bytes; the queue allows {settings.max_message_bytes}")
    group = request.groups[index] if request.groups is not None else None
    if group is not None and _ID.match(group) is None:
        raise InvalidMessage(f"message group id: 1 to {limits.MAX_ID_LENGTH} printable ASCII characters")
    if fifo and group is None:
        raise InvalidMessage("a message of a FIFO queue needs a message group id")
    values["groups"] = group
    identity = request.deduplication_ids[index] if request.deduplication_ids is not None else None
    if identity is not None:
        if not fifo:
            raise InvalidMessage("deduplication ids are for FIFO queues")
        if _ID.match(identity) is None:
            raise InvalidMessage(f"deduplication id: 1 to {limits.MAX_ID_LENGTH} printable ASCII characters")
        values["deduplication_ids"] = identity
    trace = request.traces[index] if request.traces is not None else None
    if trace is not None:
        if len(trace) > limits.MAX_TRACE:
            raise InvalidMessage(f"a trace context has at most {limits.MAX_TRACE} characters")
        values["traces"] = trace
    delay = request.delays_ms[index] if request.delays_ms is not None else None
    if delay is not None:
        if fifo:
            raise InvalidMessage("a message of a FIFO queue cannot have its own delay; set the queue's delay_ms")
        if delay > limits.MAX_DELAY_MS:
            raise InvalidMessage(f"delay of {delay} ms; at most {limits.MAX_DELAY_MS} are allowed")
        values["delay_ms"] = delay
    return values
