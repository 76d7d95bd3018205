"""Metrics for Prometheus, made from plain counters when somebody asks: nothing is paid per message.

Labels come from closed sets, but for names of queues, streams and consumer groups: at most `max_queues` of each have series of
their own, the rest is summed up as `__other__`. A queue that is loaded again after a failed commit starts its counters anew;
Prometheus takes that for a reset. A stream is the sum of its loaded shards, and what shards had counted that are gone stays in
the sum: else it would fall whenever one of many is loaded again or ages out, and Prometheus would count all the others twice. A
group has no lag while a shard of its stream is not loaded: a sum without it would look better than it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Final

from penstock_storage.interface import LogId, Store
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from penstock_broker.broker import Broker
from penstock_broker.counters import Histogram
from penstock_broker.streams.shard import Counters as ShardCounters

OTHER: Final = "__other__"
_Row = tuple[list[str], list[int | None]]
"""The labels and the values of something that has a series in each of some families."""

_COUNTERS: Final = (
    ("sent", "sent_messages", "Messages sent to the queue"),
    ("sent_bytes", "sent_bytes", "Bytes of messages sent to the queue"),
    ("received", "received_messages", "Messages received from the queue, every receive counts"),
    ("received_bytes", "received_bytes", "Bytes of messages received from the queue"),
    ("deleted", "deleted_messages", "Messages deleted by consumers"),
    ("redriven", "redriven_messages", "Messages moved back out of this dead-letter queue"),
    ("dead_lettered", "dead_lettered_messages", "Messages moved from this queue to its dead-letter queue"),
    ("expired", "expired_messages", "Messages dropped at the end of their retention"),
    ("deduplicated", "deduplicated_messages", "Sends that repeated a deduplication id"),
    ("empty_receives", "empty_receives", "Receives that found nothing in time"),
)
_STREAM_COUNTERS: Final = (
    ("records_in", "put_records", "Records put into the stream"),
    ("bytes_in", "put_bytes", "Bytes of records put, data and keys"),
    ("records_out", "read_records", "Records given to readers, every reader counts"),
    ("bytes_out", "read_bytes", "Bytes of records given to readers, data and keys"),
    ("trimmed", "trimmed_records", "Records given up at the end of their retention"),
    ("throttled_records", "throttled_records", "Records refused because their shard's limits let no more pass"),
    ("throttled_reads", "throttled_reads", "Reads refused because the shard's limits let no more pass"),
)
_STREAM_GAUGES: Final = (
    ("records", "records", "Records in the stream"),
    ("bytes", "bytes", "Bytes of records in the stream, data and keys"),
    ("shards", "open_shards", "Shards that take records"),
    ("waiters", "waiters", "Reads that wait at the tip"),
)


@dataclasses.dataclass(slots=True)
class _Seen:
    """What one stream's shards counted, up to the latest scrape: `gone` are those that were dropped from memory since."""

    shards: dict[LogId, ShardCounters] = dataclasses.field(default_factory=dict)
    gone: list[int] = dataclasses.field(default_factory=lambda: [0] * len(_STREAM_COUNTERS))

    def totals(self, loaded: dict[LogId, ShardCounters]) -> list[int]:
        """The stream's counters, which never fall."""
        for log_id, counters in self.shards.items():
            if loaded.get(log_id) is not counters:
                self.gone = _plus(self.gone, counters)
        self.shards = loaded
        totals = self.gone
        for counters in loaded.values():
            totals = _plus(totals, counters)
        return totals


def _plus(totals: list[int], counters: ShardCounters) -> list[int]:
    return [total + getattr(counters, name) for total, (name, _, _) in zip(totals, _STREAM_COUNTERS, strict=True)]


class BrokerCollector(Collector):
    """Everything about one broker."""

    def __init__(self, broker: Broker, store: Store, max_queues: int) -> None:
        self._broker = broker
        self._store = store
        self._max_queues = max_queues
        self._seen: dict[int, _Seen] = {}
        """By resource id of the stream."""

    def collect(self) -> Iterable[Metric]:
        """The samples of this moment."""
        yield from self._queues()
        yield from self._streams()
        yield from self._groups()
        yield from self._consumers()
        yield from self._requests()
        yield from self._store_metrics()

    def _queues(self) -> Iterable[Metric]:
        broker = self._broker
        labels = ["account", "region", "queue"]
        messages = GaugeMetricFamily("penstock_queue_messages", "Messages by state", labels=[*labels, "state"])
        size = GaugeMetricFamily("penstock_queue_bytes", "Bytes of messages in the queue", labels=labels)
        age = GaugeMetricFamily(
            "penstock_queue_oldest_message_age_seconds", "Age of the oldest message", labels=labels, unit="seconds"
        )
        waiters = GaugeMetricFamily("penstock_queue_waiters", "Waiting receives and consumers", labels=labels)
        counters = [CounterMetricFamily(f"penstock_queue_{name}", text, labels=labels) for _, name, text in _COUNTERS]
        now_ms = broker.now_ms()
        rest = {"visible": 0, "in_flight": 0, "delayed": 0, "bytes": 0}
        rest_counts = [0] * len(_COUNTERS)
        runtimes = sorted(broker.queues.runtimes.values(), key=lambda runtime: runtime.record.resource_id)
        for place, runtime in enumerate(runtimes):
            queue, record = runtime.queue, runtime.record
            states = {"visible": queue.visible, "in_flight": queue.in_flight, "delayed": queue.delayed}
            if place >= self._max_queues:
                for state, count in states.items():
                    rest[state] += count
                rest["bytes"] += queue.size_bytes
                for number, (attribute, _, _) in enumerate(_COUNTERS):
                    rest_counts[number] += getattr(queue.counters, attribute)
                continue
            names = [record.place.account, record.place.region, record.name]
            for state, count in states.items():
                messages.add_metric([*names, state], count)
            size.add_metric(names, queue.size_bytes)
            oldest = queue.oldest_ms
            age.add_metric(names, 0 if oldest is None else max(0, now_ms - oldest) / 1000)
            waiters.add_metric(names, runtime.waiting)
            for family, (attribute, _, _) in zip(counters, _COUNTERS, strict=True):
                family.add_metric(names, getattr(queue.counters, attribute))
        if len(runtimes) > self._max_queues:
            names = ["", "", OTHER]
            for state in ("visible", "in_flight", "delayed"):
                messages.add_metric([*names, state], rest[state])
            size.add_metric(names, rest["bytes"])
            for family, count in zip(counters, rest_counts, strict=True):
                family.add_metric(names, count)
        known = GaugeMetricFamily("penstock_queues", "Queues that exist")
        known.add_metric([], len(broker.catalog))
        loaded = GaugeMetricFamily("penstock_queues_loaded", "Queues in memory: the others have no series yet")
        loaded.add_metric([], len(runtimes))
        yield from (messages, size, age, waiters, *counters, known, loaded)

    def _streams(self) -> Iterable[Metric]:
        broker = self._broker
        labels = ["account", "region", "stream"]
        gauges = [GaugeMetricFamily(f"penstock_stream_{name}", text, labels=labels) for _, name, text in _STREAM_GAUGES]
        age = GaugeMetricFamily(
            "penstock_stream_newest_record_age_seconds", "Time since the newest record arrived", labels=labels, unit="seconds"
        )
        oldest_age = GaugeMetricFamily(
            "penstock_stream_oldest_record_age_seconds", "Time since the oldest record arrived", labels=labels, unit="seconds"
        )
        iterator_age = GaugeMetricFamily(
            "penstock_stream_iterator_age_seconds",
            "Age of the last record that a read brought lately, the highest of all shards; 0 at the tip",
            labels=labels,
            unit="seconds",
        )
        counters = [CounterMetricFamily(f"penstock_stream_{name}", text, labels=labels) for _, name, text in _STREAM_COUNTERS]
        families: list[GaugeMetricFamily | CounterMetricFamily] = [*gauges, *counters]
        now_ms = broker.now_ms()
        runtimes = broker.streams.runtimes
        rest: list[int] = []
        told = 0
        seen, self._seen = self._seen, {}
        for record in sorted(broker.stream_catalog, key=lambda one: one.resource_id):
            loaded = {one.log_id: runtimes[one.log_id] for one in record.shards.values() if one.log_id in runtimes}
            if not loaded and record.resource_id not in seen:
                continue
            self._seen[record.resource_id] = history = seen.get(record.resource_id) or _Seen()
            values = {
                "records": sum(one.shard.records for one in loaded.values()),
                "bytes": sum(one.shard.size_bytes for one in loaded.values()),
                "shards": sum(one.range.is_open for one in record.shards.values()),
                "waiters": sum(len(one.waiters) for one in loaded.values()),
            }
            row = [values[name] for name, _, _ in _STREAM_GAUGES]
            row += history.totals({log_id: one.shard.counters for log_id, one in loaded.items()})
            told += 1
            if told > self._max_queues:
                rest = [one + other for one, other in zip(rest, row, strict=True)] if rest else row
                continue
            names = [record.place.account, record.place.region, record.name]
            for family, value in zip(families, row, strict=True):
                family.add_metric(names, value)
            if newest := max((one.shard.last_ms for one in loaded.values()), default=0):
                age.add_metric(names, max(0, now_ms - newest) / 1000)
            oldest = [one.oldest_ms for one in loaded.values() if one.oldest_ms is not None]
            if oldest:
                oldest_age.add_metric(names, max(0, now_ms - min(oldest)) / 1000)
            behind = [found for one in loaded.values() if (found := one.iterator_age.at(now_ms)) is not None]
            if behind:
                iterator_age.add_metric(names, max(behind) / 1000)
        for family, value in zip(families, rest, strict=False):
            family.add_metric(["", "", OTHER], value)
        yield from (*families, age, oldest_age, iterator_age)
        yield _gauge("penstock_streams", "Streams that exist", len(broker.stream_catalog))
        yield _gauge("penstock_shards_loaded", "Shards in memory: the others count in no series yet", len(runtimes))

    def _groups(self) -> Iterable[Metric]:
        groups = self._broker.stream_groups
        labels = ["account", "region", "stream", "group"]
        members = GaugeMetricFamily("penstock_stream_group_members", "Members of the consumer group that live", labels=labels)
        lag = GaugeMetricFamily("penstock_stream_group_lag_records", "Records the group has still to process", labels=labels)
        streams = {record.resource_id: record for record in self._broker.stream_catalog}
        rows: list[_Row] = []
        for record in groups:
            stream = streams.get(record.stream_id)
            if stream is not None:
                names = [stream.place.account, stream.place.region, stream.name, record.group.name]
                rows.append((names, [groups.members(record), groups.lag(stream, record)]))
        yield from self._limited((members, lag), rows)

    def _consumers(self) -> Iterable[Metric]:
        consumers = self._broker.stream_consumers
        labels = ["account", "region", "stream", "consumer"]
        subscriptions = GaugeMetricFamily(
            "penstock_stream_consumer_subscriptions", "Shards that are pushed to the registered consumer", labels=labels
        )
        lag = GaugeMetricFamily(
            "penstock_stream_consumer_lag_records", "Records of those that were not pushed to it yet", labels=labels
        )
        rows: list[_Row] = []
        for stream in sorted(self._broker.stream_catalog, key=lambda one: one.resource_id):
            for name in sorted(stream.consumers):
                names = [stream.place.account, stream.place.region, stream.name, name]
                rows.append((names, list(consumers.lag(stream, name))))
        yield from self._limited((subscriptions, lag), rows)

    def _limited(self, families: tuple[GaugeMetricFamily, ...], rows: list[_Row]) -> Iterable[Metric]:
        """A series for each of the first rows, and one of the sums of all others. A value that is not known has none."""
        for names, values in rows[: self._max_queues]:
            for family, value in zip(families, values, strict=True):
                if value is not None:
                    family.add_metric(names, value)
        rest = rows[self._max_queues :]
        if rest:
            for place, family in enumerate(families):
                family.add_metric(["", "", OTHER, OTHER], sum(values[place] or 0 for _, values in rest))
        yield from families

    def _requests(self) -> Iterable[Metric]:
        counters = self._broker.counters
        requests = CounterMetricFamily("penstock_requests", "Requests answered", labels=["operation", "result"])
        for (operation, result), count in sorted(counters.requests.items()):
            requests.add_metric([operation, result], count)
        yield requests
        yield _gauge("penstock_connections", "Open connections", counters.connections)
        yield _counter("penstock_connections_opened", "Connections accepted", counters.connections_opened)
        closed = CounterMetricFamily(
            "penstock_connections_failed", "Connections the broker closed because of an error", labels=["reason"]
        )
        for reason, count in sorted(counters.connections_failed.items()):
            closed.add_metric([reason], count)
        yield closed
        yield _counter("penstock_received_bytes", "Bytes read from clients", counters.bytes_in)
        yield _counter("penstock_transmitted_bytes", "Bytes written to clients", counters.bytes_out)
        defects = CounterMetricFamily("penstock_background_errors", "Defects caught in background tasks", labels=["task"])
        for task, count in sorted(counters.background_errors.items()):
            defects.add_metric([task], count)
        yield defects

    def _store_metrics(self) -> Iterable[Metric]:
        broker = self._broker
        counters, lane, budget = broker.counters, broker.lane, broker.budget
        commits = CounterMetricFamily("penstock_store_commits", "Commits by outcome", labels=["outcome"])
        for outcome in ("ok", "failed", "unknown", "full", "fenced"):
            commits.add_metric([outcome], counters.commits[outcome])
        yield commits
        yield _histogram("penstock_store_commit_seconds", "Time a commit took", counters.commit_seconds)
        yield _gauge("penstock_store_commit_running_seconds", "Time the running commit has taken so far", lane.commit_seconds)
        yield _histogram("penstock_store_commit_requests", "Requests one commit answered", counters.commit_requests)
        yield _counter("penstock_store_loads", "Pages and queues loaded from the store", counters.loads)
        yield _counter("penstock_store_load_errors", "Loads that failed", counters.load_errors)
        yield _gauge("penstock_store_quarantined_rows", "Corrupt rows met since the start", self._store.quarantined)
        yield _gauge("penstock_memory_content_bytes", "Message content in memory", budget.used_bytes)
        yield _gauge("penstock_memory_content_limit_bytes", "Most message content in memory", budget.limit_bytes)
        incarnation = lane.incarnation
        yield _gauge("penstock_incarnation", "Incarnation of this broker; 0 without", incarnation.number if incarnation else 0)
        yield _gauge("penstock_slots_owned", "Slots this broker owns", broker.slots_owned if incarnation else 0)
        yield _gauge("penstock_ready", "Whether this broker serves", int(broker.is_ready))


def _gauge(name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], value)
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    family = CounterMetricFamily(name, text)
    family.add_metric([], value)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    family = HistogramMetricFamily(name, text)
    total = 0
    buckets = []
    for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((str(bound), float(total)))
    family.add_metric([], buckets, histogram.total)
    return family
