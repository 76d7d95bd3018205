"""The attributes of a queue: one table with name, type, default and rule, from which checking and listing follow."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from penstock_protocol.errors import InvalidAttribute, InvalidName
from penstock_protocol.queue_messages import Setting, Tag

from penstock_broker.queues import limits

_NAME: Final = re.compile(r"[A-Za-z0-9_-]+\Z")

Rule = Callable[[Any], str | None]
"""Takes a value, returns what is allowed when the value is not, else None."""


def _between(low: int, high: int) -> Rule:
    def rule(value: Any) -> str | None:
        return None if type(value) is int and low <= value <= high else f"a whole number from {low} to {high}"

    return rule


def _one_of(*allowed: str) -> Rule:
    def rule(value: Any) -> str | None:
        return None if value in allowed else " or ".join(allowed)

    return rule


def _flag(value: Any) -> str | None:
    return None if type(value) is bool else "true or false"


def _queue_or_empty(value: Any) -> str | None:
    return None if type(value) is str and (value == "" or is_queue_name(value)) else "a queue name, or empty for none"


def _queue_names(value: Any) -> str | None:
    fits = type(value) is list and len(value) <= limits.MAX_REDRIVE_SOURCES and all(map(is_queue_name, value))
    return None if fits else f"at most {limits.MAX_REDRIVE_SOURCES} queue names"


@dataclasses.dataclass(frozen=True, slots=True)
class QueueSettings:
    """Every attribute of a queue with its default. Durations in ms, sizes in bytes, 0 is "no limit" for the max_ ones of ours."""

    visibility_timeout_ms: int = limits.DEFAULT_VISIBILITY_TIMEOUT_MS
    delay_ms: int = 0
    retention_ms: int = limits.DEFAULT_RETENTION_MS
    max_message_bytes: int = limits.MAX_MESSAGE_BYTES
    receive_wait_ms: int = 0
    dead_letter_queue: str = ""
    max_receive_count: int = 10
    redrive_allow: str = "allow_all"
    redrive_sources: list[str] = dataclasses.field(default_factory=list)
    content_based_deduplication: bool = False
    deduplication_scope: str = "queue"
    fifo_throughput_limit: str = "per_queue"
    max_in_flight: int = limits.MAX_IN_FLIGHT
    max_messages: int = 0
    max_bytes: int = 0


_RULES: Final[dict[str, Rule]] = {
    "visibility_timeout_ms": _between(0, limits.MAX_VISIBILITY_TIMEOUT_MS),
    "delay_ms": _between(0, limits.MAX_DELAY_MS),
    "retention_ms": _between(limits.MIN_RETENTION_MS, limits.MAX_RETENTION_MS),
    "max_message_bytes": _between(limits.MIN_MESSAGE_LIMIT_BYTES, limits.MAX_MESSAGE_BYTES),
    "receive_wait_ms": _between(0, limits.MAX_WAIT_MS),
    "dead_letter_queue": _queue_or_empty,
    "max_receive_count": _between(1, limits.MAX_RECEIVE_COUNT),
    "redrive_allow": _one_of("allow_all", "deny_all", "by_queue"),
    "redrive_sources": _queue_names,
    "content_based_deduplication": _flag,
    "deduplication_scope": _one_of("queue", "message_group"),
    "fifo_throughput_limit": _one_of("per_queue", "per_message_group"),
    "max_in_flight": _between(1, 10_000_000),
    "max_messages": _between(0, 2**62),
    "max_bytes": _between(0, 2**62),
}

_FIFO_ONLY: Final = frozenset({"content_based_deduplication", "deduplication_scope", "fifo_throughput_limit"})
_DEFAULTS: Final = QueueSettings()


def is_fifo(name: str) -> bool:
    """Whether a queue of that name is a FIFO queue."""
    return name.endswith(limits.FIFO_SUFFIX)


def is_queue_name(name: object) -> bool:
    """Whether it follows the rules of queue names (SQS: CreateQueue)."""
    if type(name) is not str or len(name) > limits.MAX_NAME_LENGTH:
        return False
    return _NAME.match(name.removesuffix(limits.FIFO_SUFFIX)) is not None


def check_queue_name(name: str) -> None:
    """Raises InvalidName with the name (cut) and the rule."""
    if not is_queue_name(name):
        raise InvalidName(f"{name[:100]!r} is not a queue name: {InvalidName.advice}")


def changed(settings: QueueSettings, changes: Iterable[Setting], *, fifo: bool) -> QueueSettings:
    """The settings after the changes. InvalidAttribute names the first one that does not fit and what is allowed."""
    values: dict[str, Any] = {}
    for change in changes:
        rule = _RULES.get(change.name)
        if rule is None:
            raise InvalidAttribute(f"unknown attribute {change.name[:100]!r}; there are {', '.join(_RULES)}")
        if change.name in _FIFO_ONLY and not fifo and change.value is not None:
            raise InvalidAttribute(f"{change.name} is for FIFO queues only")
        value = getattr(_DEFAULTS, change.name) if change.value is None else change.value
        allowed = rule(value)
        if allowed is not None:
            raise InvalidAttribute(f"{change.name} = {str(value)[:100]!r}: it must be {allowed}")
        values[change.name] = value
    result = dataclasses.replace(settings, **values)
    if result.fifo_throughput_limit == "per_message_group" and result.deduplication_scope != "message_group":
        raise InvalidAttribute("fifo_throughput_limit = per_message_group needs deduplication_scope = message_group")
    if result.redrive_sources and result.redrive_allow != "by_queue":
        raise InvalidAttribute("redrive_sources needs redrive_allow = by_queue")
    if result.dead_letter_queue and is_fifo(result.dead_letter_queue) != fifo:
        raise InvalidAttribute("the dead-letter queue of a FIFO queue must be FIFO, that of a standard queue standard")
    return result


def as_list(settings: QueueSettings, *, fifo: bool) -> list[Setting]:
    """Every setting that the kind of queue has, in the order of the table."""
    return [Setting(name, getattr(settings, name)) for name in _RULES if fifo or name not in _FIFO_ONLY]


def from_stored(values: dict[str, Any]) -> QueueSettings:
    """Settings as they were stored; names a newer version added are ignored."""
    known = {field.name for field in dataclasses.fields(QueueSettings)}
    return QueueSettings(**{name: value for name, value in values.items() if name in known})


def to_stored(settings: QueueSettings) -> dict[str, Any]:
    """What to store: only what differs from the defaults."""
    return {name: value for name in _RULES if (value := getattr(settings, name)) != getattr(_DEFAULTS, name)}


def merged_tags(tags: dict[str, str], changes: Iterable[Tag]) -> dict[str, str]:
    """The tags after adding; InvalidAttribute when one is too long or there are too many."""
    result = dict(tags)
    for tag in changes:
        if not 1 <= len(tag.key) <= limits.MAX_TAG_KEY or len(tag.value) > limits.MAX_TAG_VALUE:
            raise InvalidAttribute(
                f"tag {tag.key[:50]!r}: keys have 1 to {limits.MAX_TAG_KEY}, values up to {limits.MAX_TAG_VALUE} characters"
            )
        result[tag.key] = tag.value
    if len(result) > limits.MAX_TAGS:
        raise InvalidAttribute(f"{len(result)} tags; at most {limits.MAX_TAGS} are allowed")
    return result
