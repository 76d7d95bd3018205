"""Every resource the broker knows, by account, region, kind and name, with its settings as its service understands them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from penstock_storage.interface import LogId, ResourceRow

from penstock_broker.queues import settings as queue_settings
from penstock_broker.queues.settings import QueueSettings

QUEUE: Final = "queue"
MOVE_TASK: Final = "move-task"


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Place:
    """The tenant a resource belongs to."""

    account: str
    region: str


@dataclasses.dataclass(frozen=True, slots=True)
class QueueRecord:
    """A queue as it is configured."""

    resource_id: int
    place: Place
    name: str
    log_id: LogId
    settings: QueueSettings
    tags: dict[str, str]
    version: int
    created_ms: int
    modified_ms: int

    @property
    def arn(self) -> str:
        """The queue's ARN."""
        return f"arn:aws:sqs:{self.place.region}:{self.place.account}:{self.name}"

    def to_row(self) -> ResourceRow:
        """The row that restores it."""
        attributes = {"settings": queue_settings.to_stored(self.settings), "tags": self.tags}
        return ResourceRow(
            self.resource_id,
            self.place.account,
            self.place.region,
            QUEUE,
            self.name,
            self.log_id,
            json.dumps(attributes, separators=(",", ":"), sort_keys=True),
            self.version,
            self.created_ms,
            self.modified_ms,
        )

    @classmethod
    def from_row(cls, row: ResourceRow) -> QueueRecord:
        """The record of a stored queue."""
        attributes: dict[str, Any] = json.loads(row.attributes)
        return cls(
            row.resource_id,
            Place(row.account, row.region),
            row.name,
            row.log_id,
            queue_settings.from_stored(attributes["settings"]),
            attributes["tags"],
            row.version,
            row.created_ms,
            row.modified_ms,
        )


class QueueCatalog:
    """All queues. Changes are visible at once; whoever makes them has them committed."""

    def __init__(self) -> None:
        self._queues: dict[tuple[Place, str], QueueRecord] = {}

    def get(self, place: Place, name: str) -> QueueRecord | None:
        """The queue, or None."""
        return self._queues.get((place, name))

    def put(self, record: QueueRecord) -> None:
        """Adds or replaces."""
        self._queues[record.place, record.name] = record

    def replace(self, records: Iterable[QueueRecord]) -> None:
        """These are all there are. (Of two with one name the newer one counts.)"""
        self._queues = {}
        for record in records:
            self.put(record)

    def remove(self, record: QueueRecord) -> None:
        """Forgets; no error when it is not there, or when another queue has its name by now."""
        current = self._queues.get((record.place, record.name))
        if current is not None and current.log_id == record.log_id:
            del self._queues[record.place, record.name]

    def names(self, place: Place) -> list[str]:
        """The names in a place, sorted."""
        return sorted(name for where, name in self._queues if where == place)

    def sources_of(self, record: QueueRecord) -> list[str]:
        """The queues whose dead-letter queue this is, sorted."""
        return sorted(
            other.name
            for other in self._queues.values()
            if other.place == record.place and other.settings.dead_letter_queue == record.name
        )

    def __iter__(self) -> Iterator[QueueRecord]:
        return iter(list(self._queues.values()))

    def __len__(self) -> int:
        return len(self._queues)
