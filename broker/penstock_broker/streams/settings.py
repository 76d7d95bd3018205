"""The attributes of a stream: one table with name, type, default and rule."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from penstock_protocol.errors import InvalidAttribute, InvalidName
from penstock_protocol.queue_messages import Setting

from penstock_broker.streams import limits

_NAME: Final = re.compile(rf"[A-Za-z0-9_.-]{{1,{limits.MAX_NAME_LENGTH}}}\Z")

PROVISIONED: Final = "provisioned"
ON_DEMAND: Final = "on_demand"

Rule = Callable[[Any], str | None]
"""None when a value fits, else what is allowed."""


def between(low: int, high: int) -> Rule:
    """Whole numbers, both ends included."""
    return lambda value: None if type(value) is int and low <= value <= high else f"a whole number from {low} to {high}"


@dataclasses.dataclass(frozen=True, slots=True)
class StreamSettings:
    """Every attribute of a stream with its default."""

    retention_ms: int = limits.DEFAULT_RETENTION_MS
    max_record_bytes: int = limits.DEFAULT_RECORD_BYTES
    mode: str = PROVISIONED
    enforce_shard_limits: bool = False

    @property
    def has_shard_limits(self) -> bool:
        """Whether its shards let only so much pass per second. (Those of an on-demand stream never do: on one's own machine the
        machine is the limit.)"""
        return self.enforce_shard_limits and self.mode == PROVISIONED


RULES: Final[dict[str, Rule]] = {
    "retention_ms": between(limits.MIN_RETENTION_MS, limits.MAX_RETENTION_MS),
    "max_record_bytes": between(limits.MIN_RECORD_BYTES, limits.MAX_RECORD_BYTES),
    "mode": lambda value: None if value in (PROVISIONED, ON_DEMAND) else f"{PROVISIONED} or {ON_DEMAND}",
    "enforce_shard_limits": lambda value: None if type(value) is bool else "true or false",
}
"""Of each attribute."""

_DEFAULTS: Final = StreamSettings()


def check_name(name: str, kind: str) -> None:
    """Raises InvalidName with the name (cut) and the rule (Kinesis: CreateStream, RegisterStreamConsumer). `kind`: of what."""
    if _NAME.match(name) is None:
        raise InvalidName(f"{name[:100]!r} is not a {kind} name: 1 to {limits.MAX_NAME_LENGTH} letters, digits, and _ . -")


def changed(settings: StreamSettings, changes: Iterable[Setting]) -> StreamSettings:
    """The settings after the changes. InvalidAttribute names the first one that does not fit and what is allowed."""
    values: dict[str, Any] = {}
    for change in changes:
        rule = RULES.get(change.name)
        if rule is None:
            raise InvalidAttribute(f"unknown attribute {change.name[:100]!r}; there are {', '.join(RULES)}")
        value = getattr(_DEFAULTS, change.name) if change.value is None else change.value
        allowed = rule(value)
        if allowed is not None:
            raise InvalidAttribute(f"{change.name} = {str(value)[:100]!r}: it must be {allowed}")
        values[change.name] = value
    return dataclasses.replace(settings, **values)


def as_list(settings: StreamSettings) -> list[Setting]:
    """Every setting, in the order of the table."""
    return [Setting(name, getattr(settings, name)) for name in RULES]


def from_stored(values: dict[str, Any]) -> StreamSettings:
    """Settings as they were stored; names a newer version added are ignored."""
    return StreamSettings(**{name: value for name, value in values.items() if name in RULES})


def to_stored(settings: StreamSettings) -> dict[str, Any]:
    """What to store: only what differs from the defaults."""
    return {name: value for name in RULES if (value := getattr(settings, name)) != getattr(_DEFAULTS, name)}
