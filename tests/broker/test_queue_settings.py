"""Queues as things: made, described, changed, tagged, listed, looked into, emptied, deleted."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
from penstock_broker.queues import limits
from penstock_protocol import queue_messages as q
from penstock_protocol.errors import InvalidAttribute, LimitExceeded, MessageTooLarge, QueueDoesNotExist, ResourceInUse
from penstock_storage.memory import MemoryDisk

from tests.broker.inside import EPOCH_MS, Peer, bodies_of, house, on_jumping_clock, receipts_of

DEFAULTS: dict[str, Any] = {
    "visibility_timeout_ms": 30_000,
    "delay_ms": 0,
    "retention_ms": 345_600_000,
    "max_message_bytes": 1_048_576,
    "receive_wait_ms": 0,
    "dead_letter_queue": "",
    "max_receive_count": 10,
    "redrive_allow": "allow_all",
    "redrive_sources": [],
    "max_in_flight": 120_000,
    "max_messages": 0,
    "max_bytes": 0,
}
FIFO_DEFAULTS: dict[str, Any] = {
    "content_based_deduplication": False,
    "deduplication_scope": "queue",
    "fifo_throughput_limit": "per_queue",
}
OTHERS: dict[str, Any] = {
    "visibility_timeout_ms": 0,
    "delay_ms": 900_000,
    "retention_ms": 60_000,
    "max_message_bytes": 1_024,
    "receive_wait_ms": 20_000,
    "dead_letter_queue": "dead.fifo",
    "max_receive_count": 1_000,
    "redrive_allow": "by_queue",
    "redrive_sources": ["one.fifo", "two.fifo"],
    "max_in_flight": 1,
    "max_messages": 5,
    "max_bytes": 6,
    "content_based_deduplication": True,
    "deduplication_scope": "message_group",
    "fifo_throughput_limit": "per_message_group",
}
"""A value for each setting that is not its default."""


def _values(description: q.QueueDescription) -> dict[str, Any]:
    return {setting.name: setting.value for setting in description.settings}


async def _set(client: Peer, queue: str, **settings: Any) -> q.QueueDescription:
    reply = await client.call(q.SetQueueSettings(queue, [q.Setting(name, value) for name, value in settings.items()]))
    assert isinstance(reply, q.QueueDescription)
    return reply


@on_jumping_clock
async def test_a_new_queue_has_every_default() -> None:
    async with house() as one:
        client = await one.client()
        assert _values(await client.create("jobs")) == DEFAULTS
        assert _values(await client.create("jobs.fifo")) == DEFAULTS | FIFO_DEFAULTS
        description = await client.describe("jobs")
        assert (description.visible, description.in_flight, description.delayed, description.bytes) == (0, 0, 0, 0)
        assert description.oldest_ms is None and description.tags == []
        assert description.arn == "arn:aws:sqs:local:000000000000:jobs"
        assert description.created_ms == description.modified_ms == EPOCH_MS


@on_jumping_clock
async def test_every_setting_can_be_made_and_changed_survives_a_restart_and_goes_back_to_its_default() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        client = await one.client()
        assert set(OTHERS) == set(DEFAULTS | FIFO_DEFAULTS)
        await client.create("dead.fifo")
        assert _values(await client.create("made.fifo", **OTHERS)) == OTHERS
        await client.create("changed.fifo")
        await trio.sleep(5)
        changed = await _set(client, "changed.fifo", **OTHERS)
        assert _values(changed) == OTHERS and changed.modified_ms == EPOCH_MS + 5_000 and changed.created_ms == EPOCH_MS
    async with house(disk) as one:
        client = await one.client()
        for name in ("made.fifo", "changed.fifo"):
            assert _values(await client.describe(name)) == OTHERS
        reset = dict.fromkeys(OTHERS)
        assert _values(await _set(client, "made.fifo", **reset)) == DEFAULTS | FIFO_DEFAULTS
        assert _values(await _set(client, "changed.fifo", delay_ms=3)) == OTHERS | {"delay_ms": 3}, "the others stay"


@on_jumping_clock
async def test_settings_that_contradict_each_other_are_refused() -> None:
    async with house() as one:
        client = await one.client()
        with pytest.raises(InvalidAttribute, match="needs deduplication_scope"):
            await client.create("a.fifo", fifo_throughput_limit="per_message_group")
        with pytest.raises(InvalidAttribute, match="needs redrive_allow"):
            await client.create("a", redrive_sources=["b"])
        await client.create("b.fifo", deduplication_scope="message_group", fifo_throughput_limit="per_message_group")
        with pytest.raises(InvalidAttribute, match="needs deduplication_scope"):
            await _set(client, "b.fifo", deduplication_scope="queue")


@on_jumping_clock
async def test_changed_settings_hold_for_what_comes_after() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("jobs")
        await client.send("jobs", b"a", b"b")
        await client.receive("jobs", 1)
        await _set(client, "jobs", visibility_timeout_ms=5_000, delay_ms=8_000, max_message_bytes=1_024)
        await client.receive("jobs", 1)
        await trio.sleep(5)
        assert (await client.describe("jobs")).visible == 1
        (failure,) = (await client.send("jobs", bytes(1_025))).failures
        assert failure.code == MessageTooLarge.code
        await client.send("jobs", b"later")
        assert (await client.describe("jobs")).delayed == 1
        await _set(client, "jobs", retention_ms=60_000)
        await trio.sleep(61)
        assert (await client.describe("jobs")).visible == 1, "of the first two only their time is over"
        await trio.sleep(10)
        assert (await client.describe("jobs")).visible == 0


@on_jumping_clock
async def test_a_queue_that_exists_is_made_again_only_as_it_is() -> None:
    async with house() as one:
        client = await one.client()
        made = await client.create("jobs", delay_ms=5)
        await client.send("jobs", b"kept")
        same: tuple[dict[str, Any], ...] = ({}, {"delay_ms": 5})
        for settings in same:
            again = await client.create("jobs", **settings)
            assert (again.created_ms, _values(again)) == (made.created_ms, _values(made))
        other: tuple[dict[str, Any], ...] = ({"delay_ms": 6}, {"delay_ms": None}, {"retention_ms": 60_000, "delay_ms": 5})
        for settings in other:
            with pytest.raises(ResourceInUse, match=f"other settings: {next(iter(settings))}$"):
                await client.create("jobs", **settings)
        assert (await client.describe("jobs")).delayed + (await client.describe("jobs")).visible == 1


@on_jumping_clock
async def test_an_account_has_so_many_queues_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_QUEUES", 3)
    async with house() as one:
        client, other = await one.client(), await one.client(account="other")
        for number in range(3):
            await client.create(f"q{number}")
        with pytest.raises(LimitExceeded, match="at most 3 queues"):
            await client.create("q3")
        await other.create("q3")
        await client.call(q.QueueName("q0"), "DeleteQueue")
        await client.create("q3")


@on_jumping_clock
async def test_tags_are_added_replaced_and_removed() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        client = await one.client()
        await client.create("jobs", [q.Tag("team", "red"), q.Tag("stage", "test")])
        await client.call(q.TagQueue("jobs", [q.Tag("stage", "live"), q.Tag("schlüssel", "ß\n")]))
        await client.call(q.UntagQueue("jobs", ["team", "unknown"]))
    async with house(disk) as one:
        tags = (await (await one.client()).describe("jobs")).tags
        assert tags == [q.Tag("schlüssel", "ß\n"), q.Tag("stage", "live")]


@on_jumping_clock
async def test_queues_are_listed_by_name_prefix_and_page() -> None:
    async with house() as one:
        client = await one.client()
        names = [f"{kind}-{number:02}" for kind in ("a", "b") for number in range(12)]
        for name in random.Random(3).sample(names, len(names)):
            await client.create(name)
        listed: list[str] = []
        more, after = True, ""
        while more:
            reply = await client.call(q.ListQueues(prefix="b", after=after, limit=5))
            assert len(reply.queues) <= 5
            listed += reply.queues
            more, after = reply.more, reply.queues[-1]
        assert listed == names[12:]
        assert (await client.call(q.ListQueues())).queues == names
        assert (await client.call(q.ListQueues(prefix="c"))).queues == []


@on_jumping_clock
async def test_a_deleted_queue_is_gone_with_its_messages_and_can_be_made_anew() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        client = await one.client()
        await client.create("jobs", delay_ms=1)
        await client.send("jobs", b"old")
        await client.call(q.QueueName("jobs"), "DeleteQueue")
        for message, name in ((q.QueueName("jobs"), "DescribeQueue"), (q.SendMessages("jobs", [b"x"]), None)):
            with pytest.raises(QueueDoesNotExist):
                await client.call(message, name)
        assert _values(await client.create("jobs")) == DEFAULTS
        assert await client.receive("jobs") == []
        await client.send("jobs", b"new")
    async with house(disk) as one:
        client = await one.client()
        assert bodies_of(await client.receive("jobs")) == [b"new"]
        await trio.sleep(10)
        assert await client.receive("jobs") == []


@on_jumping_clock
async def test_a_purge_says_how_many_and_takes_all_of_them() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("jobs")
        await client.send("jobs", *[b"%d" % number for number in range(2_500)])
        await client.send("jobs", b"later", delays_ms=[60_000])
        held = receipts_of(await client.receive("jobs", 10))
        assert (await client.call(q.QueueName("jobs"), "PurgeQueue")).messages == 2_501
        assert (await client.call(q.QueueName("jobs"), "PurgeQueue")).messages == 0
        description = await client.describe("jobs")
        assert (description.visible, description.in_flight, description.delayed, description.bytes) == (0, 0, 0, 0)
        assert (await client.call(q.DeleteMessages("jobs", held))).failures == []
        await client.send("jobs", b"new")
        assert bodies_of(await client.receive("jobs")) == [b"new"]


# Looking without receiving


async def _peek(client: Peer, state: str, limit: int = 10) -> list[q.PeekedMessage]:
    """All pages."""
    found: list[q.PeekedMessage] = []
    after = b""
    while True:
        reply = await client.call(q.PeekMessages("jobs", state, limit, after))
        assert len(reply.messages) <= limit
        found += reply.messages
        after = reply.after
        if not after:
            return found


@on_jumping_clock
async def test_peeking_shows_messages_by_state_and_changes_nothing() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("jobs")
        attributes = [q.Attribute("a", "Number", "1")]
        await client.send("jobs", b"taken", b"back", b"waiting", groups=["g", None, "h"], attributes=[None, None, attributes])
        await client.send("jobs", b"later", delays_ms=[60_000])
        taken = await client.receive("jobs", 2)
        receipts = dict(zip(bodies_of(taken), receipts_of(taken), strict=True))
        assert len(receipts) == 2
        first, second = sorted(receipts)
        await client.call(q.ChangeVisibility("jobs", [receipts[first]], [0]))
        before = await client.describe("jobs")
        by_state = {state: await _peek(client, state) for state in ("any", "visible", "in_flight", "delayed")}
        names = {state: [message.body for message in found] for state, found in by_state.items()}
        assert sorted(names["any"]) == [b"back", b"later", b"taken", b"waiting"]
        assert names["in_flight"] == [second] and names["delayed"] == [b"later"]
        assert sorted(names["visible"]) == sorted({b"taken", b"back", b"waiting"} - {second})
        (in_flight,), (later,) = by_state["in_flight"], by_state["delayed"]
        assert (in_flight.state, in_flight.receive_count) == ("in_flight", 1)
        assert in_flight.visible_at_ms == EPOCH_MS + 30_000 + int(trio.current_time() * 1000)
        assert (later.state, later.receive_count, later.visible_at_ms) == ("delayed", 0, EPOCH_MS + 60_000)
        waiting = next(message for message in by_state["any"] if message.body == b"waiting")
        assert (waiting.attributes, waiting.group, waiting.source) == (attributes, "h", None)
        assert len(waiting.message_id) == 16
        after = await client.describe("jobs")
        assert (before.visible, before.in_flight, before.delayed) == (after.visible, after.in_flight, after.delayed) == (2, 1, 1)


@pytest.mark.parametrize("limit", [1, 7, 100, 1_000])
@on_jumping_clock
async def test_peeking_page_by_page_shows_every_message_once(limit: int) -> None:
    async with house() as one:
        client = await one.client()
        await client.create("jobs")
        count = 60 if limit == 1 else 2_345
        for start in range(0, count, 300):
            await client.send("jobs", *[b"%d" % number for number in range(start, min(start + 300, count))])
        taken = await client.receive("jobs", 20)
        await client.call(q.DeleteMessages("jobs", receipts_of(taken)[:10]))
        shown = [message.body for message in await _peek(client, "any", limit)]
        assert len(shown) == len(set(shown)) == count - 10
        assert len(await _peek(client, "visible", limit)) == count - 20
        assert len(await _peek(client, "in_flight", limit)) == 10


@on_jumping_clock
async def test_the_counts_and_the_age_of_a_queue_are_exact() -> None:
    async with house() as one:
        client = await one.client()
        await client.create("jobs")
        await client.send("jobs", bytes(10))
        await trio.sleep(100)
        attributes = [q.Attribute("name", "String", "value")]
        await client.send("jobs", bytes(20), attributes=[attributes])
        description = await client.describe("jobs")
        assert (description.visible, description.oldest_ms) == (2, EPOCH_MS)
        assert description.bytes == 10 + 20 + len("name") + len("String") + len("value")
        (receipt, *_) = receipts_of(await client.receive("jobs", 1))
        await client.call(q.DeleteMessages("jobs", [receipt]))
        description = await client.describe("jobs")
        assert (description.visible, description.oldest_ms) == (1, EPOCH_MS + 100_000)
        assert description.now_ms == EPOCH_MS + 100_000
