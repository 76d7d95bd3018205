"""What is measured: every family with its value after known traffic, and that a real Prometheus can read it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import msgpack
import pytest
import trio
import trio.testing
from penstock import Client
from penstock_broker.broker import Broker
from penstock_broker.http import Endpoint
from penstock_broker.metrics import OTHER, BrokerCollector
from penstock_protocol import queue_messages as q
from penstock_protocol import session_messages as s
from penstock_protocol import stream_messages as st
from penstock_protocol.errors import BatchEmpty, PenstockError, QueueDoesNotExist, StoreFailed, StreamDoesNotExist
from penstock_storage.memory import Fault, MemoryStore
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.broker.inside import House, Peer, house, on_jumping_clock, receipts_of
from tests.broker_process import free_port, running_broker

PATIENCE_SECONDS = 60.0
PLACE = {"account": "000000000000", "region": "local"}


def _text(broker: Broker, one: House, max_queues: int = 1_000) -> str:
    status, content_type, body = Endpoint(broker, MemoryStore(one.disk), max_queues).answer("GET", "/metrics")
    assert status == 200 and content_type.startswith("text/plain")
    return body.decode()


def _samples(text: str) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def _value(samples: dict[str, list[Sample]], name: str, **labels: str) -> float:
    (sample,) = [one for one in samples[name] if labels.items() <= one.labels.items()]
    return sample.value


async def _put(client: Peer, stream: str, shard: int, *data: bytes, key: str = "k") -> None:
    keys = [key] * len(data)
    size = sum(map(len, data)) + sum(map(len, keys))
    await client.call(st.PutRecords(stream, shard, len(data), st.PLAIN, size, msgpack.packb([data, keys])))


async def _read(client: Peer, stream: str, shard: int) -> st.Records:
    iterator = await client.call(st.OpenIterator(stream, shard, "trim_horizon"))
    records = await client.call(st.ReadRecords(iterator.iterator))
    assert isinstance(records, st.Records)
    return records


async def _stream_traffic(client: Peer) -> None:
    """Part of the traffic: two shards, one of them split."""
    await client.call(st.CreateStream("clicks", 2))
    await client.call(st.CreateStream("untouched", 3))
    await _put(client, "clicks", 0, bytes(100), bytes(50))
    await _put(client, "clicks", 1, b"x")
    await client.call(st.SplitShard("clicks", 0))
    for _ in range(2):
        assert (await _read(client, "clicks", 0)).runs
    tip = await client.call(st.OpenIterator("clicks", 1, "latest"))
    await client.say(st.ReadRecords(tip.iterator, wait_ms=20_000))
    for shard in (2, 3):
        await client.call(st.OpenIterator("clicks", shard, "latest"))
    for member in (1, 2):
        joined = st.GroupHeartbeat("clicks", "team", bytes([member]) * 16, 60_000, joining=True)
        leases = (await client.call(joined)).leases
        if member == 1:
            lease = next(one for one in leases if one.shard == 0)
            checkpoint = st.Checkpoint(0, lease.lease, lease.position + 1)
            await client.call(st.GroupHeartbeat("clicks", "team", joined.member, 60_000, checkpoints=[checkpoint]))
    await client.call(st.GroupHeartbeat("clicks", "silent", bytes(16), 10_000, joining=True, start="latest"))


async def _traffic(one: House) -> Peer:
    """What the table of expectations was made for."""
    client = await one.client()
    await client.create("dead")
    await client.create("jobs", dead_letter_queue="dead", max_receive_count=1)
    await client.create("orders.fifo", content_based_deduplication=True)
    await client.create("quiet")
    await client.send("jobs", bytes(100), bytes(50), b"x")
    await client.send("jobs", b"later", delays_ms=[3_600_000])
    await client.send("orders.fifo", b"twice", b"twice", groups=["g", "g"])
    assert await client.receive("quiet") == []
    taken = await client.receive("jobs", 1, visibility_timeout_ms=1_000)
    await client.receive("jobs", 1)
    await trio.sleep(2)
    assert await client.receive("jobs", 1)
    assert taken and await client.receive("jobs", 1) == [], "the first goes to the dead-letter queue"
    (last, *_) = await client.receive("orders.fifo")
    await client.call(q.DeleteMessages("orders.fifo", receipts_of([last])))
    await client.call(q.StartMoveTask("dead", "quiet"))
    await trio.sleep(1)
    await client.create("short", retention_ms=60_000)
    await client.send("short", b"expires")
    await trio.sleep(85)
    await _stream_traffic(client)
    await client.call(st.StreamConsumerName("clicks", "audit"), "RegisterStreamConsumer")
    shards = (await client.call(st.ListShards("clicks", state="open"))).shards
    await client.wait(await client.say(st.SubscribeToShard("clicks", "audit", shards[0].shard, 1)))
    await trio.sleep(15)
    for message, expected in ((q.SendMessages("none", [b"x"]), QueueDoesNotExist), (q.DeleteMessages("jobs", []), BatchEmpty)):
        with pytest.raises(expected):
            await client.call(message)
    for _ in range(3):
        await client.call(s.Empty(), "Ping")
    bad = one.connect()
    await bad.write(b"rubbish!")
    await bad.end()
    return client


# (name, labels, value): what the traffic above must have left.
EXPECTED: list[tuple[str, dict[str, str], float]] = [
    ("penstock_queue_messages", {"queue": "jobs", "state": "visible"}, 2),
    ("penstock_queue_messages", {"queue": "jobs", "state": "in_flight"}, 0),
    ("penstock_queue_messages", {"queue": "jobs", "state": "delayed"}, 1),
    ("penstock_queue_messages", {"queue": "orders.fifo", "state": "visible"}, 0),
    ("penstock_queue_messages", {"queue": "dead", "state": "visible"}, 0),
    ("penstock_queue_bytes", {"queue": "jobs"}, 50 + 1 + 5),
    ("penstock_queue_bytes", {"queue": "dead"}, 0),
    ("penstock_queue_bytes", {"queue": "quiet"}, 100),
    ("penstock_queue_oldest_message_age_seconds", {"queue": "jobs"}, 103),
    ("penstock_queue_oldest_message_age_seconds", {"queue": "orders.fifo"}, 0),
    ("penstock_queue_waiters", {"queue": "jobs"}, 0),
    ("penstock_queue_sent_messages_total", {"queue": "jobs"}, 4),
    ("penstock_queue_sent_bytes_total", {"queue": "jobs"}, 156),
    ("penstock_queue_received_messages_total", {"queue": "jobs"}, 3),
    ("penstock_queue_received_bytes_total", {"queue": "jobs"}, 151),
    ("penstock_queue_deleted_messages_total", {"queue": "jobs"}, 0),
    ("penstock_queue_deleted_messages_total", {"queue": "orders.fifo"}, 1),
    ("penstock_queue_dead_lettered_messages_total", {"queue": "jobs"}, 1),
    ("penstock_queue_redriven_messages_total", {"queue": "dead"}, 1),
    ("penstock_queue_expired_messages_total", {"queue": "short"}, 1),
    ("penstock_queue_deduplicated_messages_total", {"queue": "orders.fifo"}, 1),
    ("penstock_queue_empty_receives_total", {"queue": "quiet"}, 1),
    ("penstock_queue_empty_receives_total", {"queue": "jobs"}, 1),
    ("penstock_queues", {}, 5),
    ("penstock_queues_loaded", {}, 5),
    ("penstock_stream_records", {"stream": "clicks"}, 3),
    ("penstock_stream_bytes", {"stream": "clicks"}, 154),
    ("penstock_stream_open_shards", {"stream": "clicks"}, 3),
    ("penstock_stream_waiters", {"stream": "clicks"}, 1),
    ("penstock_stream_newest_record_age_seconds", {"stream": "clicks"}, 15),
    ("penstock_stream_oldest_record_age_seconds", {"stream": "clicks"}, 15),
    ("penstock_stream_iterator_age_seconds", {"stream": "clicks"}, 0),
    ("penstock_stream_throttled_records_total", {"stream": "clicks"}, 0),
    ("penstock_stream_throttled_reads_total", {"stream": "clicks"}, 0),
    ("penstock_stream_put_records_total", {"stream": "clicks"}, 3),
    ("penstock_stream_put_bytes_total", {"stream": "clicks"}, 154),
    ("penstock_stream_read_records_total", {"stream": "clicks"}, 4),
    ("penstock_stream_read_bytes_total", {"stream": "clicks"}, 304),
    ("penstock_stream_trimmed_records_total", {"stream": "clicks"}, 0),
    ("penstock_stream_group_members", {"stream": "clicks", "group": "team"}, 2),
    ("penstock_stream_group_members", {"stream": "clicks", "group": "silent"}, 0),
    ("penstock_stream_group_lag_records", {"stream": "clicks", "group": "team"}, 2),
    ("penstock_stream_group_lag_records", {"stream": "clicks", "group": "silent"}, 0),
    ("penstock_stream_consumer_subscriptions", {"stream": "clicks", "consumer": "audit"}, 1),
    ("penstock_stream_consumer_lag_records", {"stream": "clicks", "consumer": "audit"}, 0),
    ("penstock_streams", {}, 2),
    ("penstock_shards_loaded", {}, 4),
    ("penstock_requests_total", {"operation": "PutRecords", "result": "ok"}, 2),
    ("penstock_requests_total", {"operation": "CreateQueue", "result": "ok"}, 5),
    ("penstock_requests_total", {"operation": "SendMessages", "result": "ok"}, 4),
    ("penstock_requests_total", {"operation": "SendMessages", "result": "QueueDoesNotExist"}, 1),
    ("penstock_requests_total", {"operation": "DeleteMessages", "result": "BatchEmpty"}, 1),
    ("penstock_requests_total", {"operation": "DeleteMessages", "result": "ok"}, 1),
    ("penstock_requests_total", {"operation": "StartMoveTask", "result": "ok"}, 1),
    ("penstock_requests_total", {"operation": "Ping", "result": "ok"}, 3),
    ("penstock_connections", {}, 1),
    ("penstock_connections_opened_total", {}, 2),
    ("penstock_connections_failed_total", {"reason": "ProtocolError"}, 1),
    ("penstock_store_commits_total", {"outcome": "failed"}, 0),
    ("penstock_store_commits_total", {"outcome": "unknown"}, 0),
    ("penstock_store_commits_total", {"outcome": "full"}, 0),
    ("penstock_store_commits_total", {"outcome": "fenced"}, 0),
    ("penstock_store_commit_running_seconds", {}, 0),
    ("penstock_store_loads_total", {}, 9),  # five queues and two shards
    ("penstock_store_load_errors_total", {}, 0),
    ("penstock_store_quarantined_rows", {}, 0),
    ("penstock_memory_content_limit_bytes", {}, 64 * 2**20),
    ("penstock_incarnation", {}, 1),
    ("penstock_ready", {}, 1),
]

OTHERS = {
    "penstock_received_bytes_total", "penstock_transmitted_bytes_total", "penstock_store_commit_seconds",
    "penstock_store_commit_requests", "penstock_memory_content_bytes", "penstock_slots_owned",
    "penstock_background_errors_total",
}  # fmt: skip
"""Families that are looked at in tests of their own."""


@on_jumping_clock
async def test_every_family_has_the_value_that_the_traffic_left() -> None:
    async with house() as one:
        client = await _traffic(one)
        samples = _samples(_text(one.broker, one))
        wrong = [
            (name, labels, value, got)
            for name, labels, value in EXPECTED
            if (got := round(_value(samples, name, **labels))) != value
        ]
        assert not wrong
        for name, labels, _ in EXPECTED:
            if "queue" in labels or "stream" in labels:
                assert PLACE.items() <= next(one for one in samples[name] if labels.items() <= one.labels.items()).labels.items()
        assert {one.labels["stream"] for one in samples["penstock_stream_records"]} == {"clicks"}, (
            "no shard of the other is loaded"
        )
        assert client


@on_jumping_clock
async def test_every_family_is_expected() -> None:
    async with house() as one:
        await _traffic(one)
        told = {metric.name for metric in BrokerCollector(one.broker, MemoryStore(one.disk), 10).collect()}
    covered = {name.removesuffix("_total") for name, _, _ in EXPECTED} | {name.removesuffix("_total") for name in OTHERS}
    assert told == covered


@on_jumping_clock
async def test_bytes_commits_and_memory_are_counted() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("jobs")
        before = _samples(_text(one.broker, one))
        for _ in range(4):
            await client.send("jobs", bytes(10_000))
        after = _samples(_text(one.broker, one))

        def grown(name: str, **labels: str) -> float:
            return _value(after, name, **labels) - _value(before, name, **labels)

        assert 40_000 < grown("penstock_received_bytes_total") < 41_000
        assert 0 < grown("penstock_transmitted_bytes_total") < 1_000
        assert grown("penstock_store_commits_total", outcome="ok") == 4
        assert grown("penstock_store_commit_seconds_count") == 4
        assert grown("penstock_store_commit_requests_count") == 4
        assert grown("penstock_store_commit_requests_sum") == 4
        assert grown("penstock_store_commit_requests_bucket", le="1") == 4
        assert grown("penstock_store_commit_requests_bucket", le="+Inf") == 4
        assert 40_000 <= grown("penstock_memory_content_bytes") < 45_000
        assert _value(after, "penstock_slots_owned") > 0
        assert "penstock_background_errors_total" not in after, "none yet"
        waiting = await client.say(q.ReceiveMessages("jobs", 1, visibility_timeout_ms=0))
        await client.wait(waiting)


@on_jumping_clock
async def test_waiting_receives_and_consumers_are_counted() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("jobs")
        await client.say(q.ReceiveMessages("jobs", 1, wait_ms=20_000))
        consumer = await client.say(q.Consume("jobs", 1))
        await client.call(s.Empty(), "Ping")
        await trio.testing.wait_all_tasks_blocked()
        assert _value(_samples(_text(one.broker, one)), "penstock_queue_waiters", queue="jobs") >= 2
        await client.say(s.Cancel(consumer))
        await client.wait(consumer)
        await trio.sleep(21)
        assert _value(_samples(_text(one.broker, one)), "penstock_queue_waiters", queue="jobs") == 0


@on_jumping_clock
async def test_failures_of_the_store_are_counted() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("jobs")
        for fault, outcome in ((Fault.FAIL, "failed"), (Fault.UNKNOWN_LOST, "unknown"), (Fault.FULL, "full")):
            one.faults["commit"] = fault
            with pytest.raises(PenstockError):
                await client.send("jobs", b"x")
            del one.faults["commit"]
            await trio.testing.wait_all_tasks_blocked()
            assert _value(_samples(_text(one.broker, one)), "penstock_store_commits_total", outcome=outcome) == 1
        one.faults["load"] = Fault.FAIL
        with pytest.raises(StoreFailed):
            await client.describe("jobs")
        del one.faults["load"]
        samples = _samples(_text(one.broker, one))
        assert _value(samples, "penstock_store_load_errors_total") == 1
        assert _value(samples, "penstock_incarnation") == 2


@on_jumping_clock
async def test_only_so_many_queues_have_series_of_their_own() -> None:
    async with house() as one:
        client = await one.client()
        for number in range(7):
            await client.create(f"q{number}")
            await client.send(f"q{number}", bytes(10), bytes(number))
        samples = _samples(_text(one.broker, one, max_queues=3))
        named = {sample.labels["queue"] for sample in samples["penstock_queue_bytes"]}
        assert named == {"q0", "q1", "q2", OTHER}
        assert _value(samples, "penstock_queue_messages", queue=OTHER, state="visible") == 8
        assert _value(samples, "penstock_queue_bytes", queue=OTHER) == 4 * 10 + 3 + 4 + 5 + 6
        assert _value(samples, "penstock_queue_sent_messages_total", queue=OTHER) == 8
        assert _value(samples, "penstock_queues") == 7
        none = _samples(_text(one.broker, one, max_queues=0))
        assert {sample.labels["queue"] for sample in none["penstock_queue_bytes"]} == {OTHER}
        await client.call(q.QueueName("q0"), "DeleteQueue")
        samples = _samples(_text(one.broker, one, max_queues=3))
        assert "q0" not in {sample.labels["queue"] for sample in samples["penstock_queue_bytes"]}


@on_jumping_clock
async def test_only_so_many_streams_have_series_of_their_own() -> None:
    async with house() as one:
        client = await one.client()
        for number in range(5):
            await client.call(st.CreateStream(f"s{number}", 2))
            await _put(client, f"s{number}", 0, bytes(10))
            await _put(client, f"s{number}", 1, bytes(number))
        samples = _samples(_text(one.broker, one, max_queues=3))
        for family in ("records", "bytes", "open_shards", "put_records_total", "read_bytes_total"):
            named = {sample.labels["stream"] for sample in samples[f"penstock_stream_{family}"]}
            assert named == {"s0", "s1", "s2", OTHER}
        assert _value(samples, "penstock_stream_records", stream="s2") == 2
        assert _value(samples, "penstock_stream_records", stream=OTHER) == 4
        assert _value(samples, "penstock_stream_bytes", stream=OTHER) == 2 * 11 + 3 + 4 + 2
        assert _value(samples, "penstock_stream_put_bytes_total", stream=OTHER) == 2 * 11 + 3 + 4 + 2
        assert _value(samples, "penstock_stream_open_shards", stream=OTHER) == 4
        none = _samples(_text(one.broker, one, max_queues=0))
        assert {sample.labels["stream"] for sample in none["penstock_stream_records"]} == {OTHER}
        await client.call(st.StreamName("s0"), "DeleteStream")
        samples = _samples(_text(one.broker, one, max_queues=3))
        assert "s0" not in {sample.labels["stream"] for sample in samples["penstock_stream_records"]}


@on_jumping_clock
async def test_only_so_many_groups_have_series_of_their_own_and_lag_is_told_when_it_is_known() -> None:
    async with house() as one:
        client = await one.client()
        await client.call(st.CreateStream("s", 2))
        await _put(client, "s", 0, b"a", b"b")
        for number in range(4):
            await client.call(st.GroupHeartbeat("s", f"g{number}", bytes(16), joining=True))
        await _put(client, "s", 1, b"c")
        samples = _samples(_text(one.broker, one, max_queues=2))
        for family, value in (("members", 1), ("lag_records", 3)):
            found = {one.labels["group"]: one.value for one in samples[f"penstock_stream_group_{family}"]}
            assert found == {"g0": value, "g1": value, OTHER: 2 * value}
        one.broker.streams.drop_all(StoreFailed())
        samples = _samples(_text(one.broker, one, max_queues=4))
        assert len(samples["penstock_stream_group_members"]) == 4
        assert "penstock_stream_group_lag_records" not in samples
        for number in range(4):
            await client.call(st.GroupName("s", f"g{number}"), "DeleteGroup")
        assert "penstock_stream_group_members" not in _samples(_text(one.broker, one, max_queues=2))


@on_jumping_clock
async def test_registered_consumers_have_series_of_their_own_as_far_as_those_go() -> None:
    async with house() as one:
        client = await one.client()
        await client.call(st.CreateStream("s", 2))
        for number in range(4):
            await client.call(st.StreamConsumerName("s", f"c{number}"), "RegisterStreamConsumer")
            for shard in range(number):
                await client.wait(await client.say(st.SubscribeToShard("s", f"c{number}", shard % 2, 1)))
        await _put(client, "s", 0, b"a")
        await _put(client, "s", 0, b"b", b"c")
        samples = _samples(_text(one.broker, one, max_queues=3))
        for family, values in (("subscriptions", [0, 1, 2, 2]), ("lag_records", [0, 2, 2, 2])):
            found = {one.labels["consumer"]: one.value for one in samples[f"penstock_stream_consumer_{family}"]}
            assert found == dict(zip(("c0", "c1", "c2", OTHER), values, strict=True))
        await client.call(st.StreamName("s"), "DeleteStream")
        assert "penstock_stream_consumer_subscriptions" not in _samples(_text(one.broker, one, max_queues=3))


@on_jumping_clock
async def test_what_a_shard_counted_stays_in_the_sums_of_its_stream_when_it_is_gone() -> None:
    async with house() as one:
        client = await one.client()
        await client.call(st.CreateStream("clicks", 2))
        collector = BrokerCollector(one.broker, MemoryStore(one.disk), 10)

        def values() -> dict[str, float]:
            found = {one.name: one.value for family in collector.collect() for one in family.samples if "stream" in one.labels}
            return {name.removeprefix("penstock_stream_"): value for name, value in found.items()}

        await _put(client, "clicks", 0, b"a", b"b")
        await _put(client, "clicks", 1, b"c")
        assert values()["put_records_total"] == 3
        one.faults["commit"] = Fault.FAIL
        with pytest.raises(PenstockError):
            await _put(client, "clicks", 1, b"d")
        del one.faults["commit"]
        assert values()["put_records_total"] == 4, "it was put, though it was not stored"
        await _put(client, "clicks", 1, b"e")
        assert (await _read(client, "clicks", 1)).runs
        assert values()["put_records_total"] == 5
        assert values()["records"] == 4
        await client.call(st.MergeShards("clicks", 0, 1))
        await trio.sleep(26 * 3600)
        after = values()
        assert (after["put_records_total"], after["read_records_total"], after["trimmed_records_total"]) == (5, 2, 4)
        assert (after["records"], after["bytes"], after["open_shards"]) == (0, 0, 1)
        assert [shard.shard for shard in (await client.call(st.ListShards("clicks"))).shards] == [2], "the parents are no more"


@on_jumping_clock
async def test_labels_come_from_closed_sets() -> None:
    async with house() as one, contextlib.AsyncExitStack():
        client = await one.client()
        for number in range(50):
            with pytest.raises(QueueDoesNotExist):
                await client.send(f"unknown-{number}", b"x")
            with pytest.raises(StreamDoesNotExist):
                await _put(client, f"unknown-{number}", 0, b"x")
            await (await one.client()).close()
            bad = one.connect()
            await bad.write(b"rubbish %d" % number)
            await bad.end()
        text = _text(one.broker, one)
        assert "unknown-" not in text and "rubbish" not in text
        assert len(_samples(text)["penstock_connections_failed_total"]) == 1


def test_the_scrape_follows_prometheus_conventions() -> None:
    texts = []

    @on_jumping_clock
    async def scrape() -> None:
        async with house() as one:
            await _traffic(one)
            texts.append(_text(one.broker, one))

    scrape()
    (text,) = texts
    for family in text_string_to_metric_families(text):
        if not family.name.startswith("penstock_"):
            continue
        assert family.documentation and not family.documentation.endswith(".")
        assert family.type in ("gauge", "counter", "histogram")
        assert re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", family.name)
        assert not re.search(r"_(ms|milliseconds|kb|mb|count|total)$", family.name), "base units, and suffixes of their own"
    promtool = shutil.which("promtool")
    if promtool is None:
        _missing("promtool")
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("penstock_")]
    assert complaints == []


def _missing(what: str) -> NoReturn:
    message = f"{what} is not installed (tools/install_test_services.sh installs it)"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


# Health


@on_jumping_clock
async def test_readiness_is_true_only_while_it_serves_and_liveness_always() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("jobs")
        endpoint = Endpoint(one.broker, MemoryStore(one.disk), 10)

        def ready() -> tuple[int, bytes]:
            status, _, body = endpoint.answer("GET", "/readyz")
            assert endpoint.answer("GET", "/healthz")[::2] == (200, b"alive\n")
            assert _value(_samples(_text(one.broker, one)), "penstock_ready") == (status == 200)
            return status, body

        assert ready() == (200, b"ready\n")
        one.faults.update(commit=Fault.UNKNOWN_LOST, acquire=Fault.FAIL)
        with pytest.raises(PenstockError):
            await client.send("jobs", b"x")
        assert ready() == (503, b"the store does not answer\n")
        assert _value(_samples(_text(one.broker, one)), "penstock_slots_owned") == 0
        assert _value(_samples(_text(one.broker, one)), "penstock_incarnation") == 0
        one.faults.clear()
        await trio.sleep(3)
        assert ready() == (200, b"ready\n")
        await one.broker.drain(1)
        assert ready() == (503, b"stopping\n")


@on_jumping_clock
async def test_the_endpoint_knows_three_paths_and_two_methods() -> None:
    async with house() as one:
        endpoint = Endpoint(one.broker, MemoryStore(one.disk), 10)
        for path in ("/", "/metrics/", "/secrets", "/metrics\0", "//metrics"):
            assert endpoint.answer("GET", path)[0] == 404
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get"):
            assert endpoint.answer(method, "/metrics")[0] == 405
        assert endpoint.answer("HEAD", "/healthz")[0] == 200


# A real process, and a real Prometheus


def _get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_real_broker_tells_its_health_also_while_it_drains(tmp_path: Path) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    with running_broker(tmp_path, "--metrics", metrics, "--drain-seconds", "3600") as broker:
        assert _get(metrics, "/healthz") == (200, "alive\n")
        assert _get(metrics, "/readyz") == (200, "ready\n")
        assert _get(metrics, "/nothing")[0] == 404
        with Client(broker.url) as client:
            queue = client.create_queue("jobs")
            for _ in range(8):
                queue.send(bytes(2**20))

        async def stuck() -> None:
            stream = await trio.open_tcp_stream("127.0.0.1", broker.port)
            peer = Peer(stream, "stuck")
            await peer.hello()
            for _ in range(8):
                await peer.say(q.ReceiveMessages("jobs", 1, max_bytes=2**20))
            deadline = trio.current_time() + PATIENCE_SECONDS
            while 'state="in_flight"} 8.0' not in (await trio.to_thread.run_sync(_get, metrics, "/metrics"))[1]:
                assert trio.current_time() < deadline
            os.kill(broker.pid, signal.SIGTERM)
            while (await trio.to_thread.run_sync(_get, metrics, "/readyz")) != (503, "stopping\n"):
                assert trio.current_time() < deadline
            assert (await trio.to_thread.run_sync(_get, metrics, "/healthz"))[0] == 200
            await stream.aclose()

        trio.run(stuck)


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A real Prometheus that scrapes one target every half second: its address and the target's."""
    if shutil.which("prometheus") is None:
        _missing("prometheus")
    target, address = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(
        "global: {scrape_interval: 500ms, scrape_timeout: 500ms}\n"
        f"scrape_configs: [{{job_name: penstock, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    command = ["prometheus", f"--config.file={configuration}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        yield address, target
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def _query(prometheus: str, expression: str) -> list[dict[str, Any]]:
    with contextlib.suppress(OSError):
        status, body = _get(prometheus, "/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        if status == 200:
            result: list[dict[str, Any]] = json.loads(body)["data"]["result"]
            return result
    return []


def _until(prometheus: str, expression: str, value: float) -> list[dict[str, Any]]:
    """Asks until the expression has that value."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        result = _query(prometheus, expression)
        if result and all(float(series["value"][1]) == value for series in result):
            return result
        assert time.monotonic() < deadline, f"{expression} is {result}, not {value}"
        time.sleep(0.1)


def test_a_real_prometheus_scrapes_and_evaluates(prometheus: tuple[str, str], tmp_path: Path) -> None:
    server, target = prometheus
    with running_broker(tmp_path, "--metrics", target) as broker, Client(broker.url) as client:
        queue = client.create_queue("jobs")
        queue.send_many([b"x" * 100] * 30)
        for message in queue.receive(10):
            message.delete()
        _until(server, 'up{job="penstock"}', 1)
        (series,) = _until(server, 'sum by (queue) (penstock_queue_messages{state="visible"})', 20)
        assert series["metric"] == {"queue": "jobs"}
        _until(server, "penstock_queue_sent_messages_total - penstock_queue_deleted_messages_total", 20)
        _until(server, "penstock_queue_sent_bytes_total / penstock_queue_sent_messages_total", 100)
        _until(server, "histogram_quantile(1, penstock_store_commit_seconds_bucket) > bool 0", 1)
        _until(server, 'sum(penstock_requests_total{result!="ok"}) or vector(0)', 0)
        _until(server, "penstock_ready * on (instance) up", 1)
        _until(server, "rate(process_cpu_seconds_total[1m]) >= bool 0", 1)
        queue.receive(5)
        _until(server, 'penstock_queue_messages{queue="jobs", state="in_flight"}', 5)
    _until(server, 'up{job="penstock"}', 0)
