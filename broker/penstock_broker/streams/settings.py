"""The attributes of a stream: one table with name, type, default and rule."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any, Final

from penstock_protocol.errors import InvalidAttribute, InvalidName
from penstock_protocol.queue_messages import Setting

from penstock_broker.streams import limits

_NAME: Final = re.compile(rf"[A-Za-z0-9_.-]{{1,{limits.MAX_NAME_LENGTH}}}\Z")


@dataclasses.dataclass(frozen=True, slots=True)
class StreamSettings:
    """Every attribute of a stream with its default."""

    retention_ms: int = limits.DEFAULT_RETENTION_MS
    max_record_bytes: int = limits.DEFAULT_RECORD_BYTES


RANGES: Final[dict[str, tuple[int, int]]] = {
    "retention_ms": (limits.MIN_RETENTION_MS, limits.MAX_RETENTION_MS),
    "max_record_bytes": (limits.MIN_RECORD_BYTES, limits.MAX_RECORD_BYTES),
}
"""The lowest and the highest value of each."""

_DEFAULTS: Final = StreamSettings()


def check_name(name: str, kind: str) -> None:
    """Raises InvalidName with the name (cut) and the rule (Kinesis: CreateStream, RegisterStreamConsumer). `kind`: of what."""
    if _NAME.match(name) is None:
        raise InvalidName(f"{name[:100]!r} is not a {kind} name: 1 to {limits.MAX_NAME_LENGTH} letters, digits, and _ . -")


def changed(settings: StreamSettings, changes: Iterable[Setting]) -> StreamSettings:
    """The settings after the changes. InvalidAttribute names the first one that does not fit and what is allowed."""
    values: dict[str, Any] = {}
    for change in changes:
        if change.name not in RANGES:
            raise InvalidAttribute(f"unknown attribute {change.name[:100]!r}; there are {', '.join(RANGES)}")
        value = getattr(_DEFAULTS, change.name) if change.value is None else change.value
        low, high = RANGES[change.name]
        if type(value) is not int or not low <= value <= high:
            raise InvalidAttribute(f"{change.name} = {str(value)[:100]!r}: it must be a whole number from {low} to {high}")
        values[change.name] = value
    return dataclasses.replace(settings, **values)


def as_list(settings: StreamSettings) -> list[Setting]:
    """Every setting, in the order of the table."""
    return [Setting(name, getattr(settings, name)) for name in RANGES]


def from_stored(values: dict[str, Any]) -> StreamSettings:
    """Settings as they were stored; names a newer version added are ignored."""
    return StreamSettings(**{name: value for name, value in values.items() if name in RANGES})


def to_stored(settings: StreamSettings) -> dict[str, Any]:
    """What to store: only what differs from the defaults."""
    return {name: value for name in RANGES if (value := getattr(settings, name)) != getattr(_DEFAULTS, name)}
