"""Registered consumers through a whole broker: their names, and what is pushed to them, each at its own pace."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from penstock_broker import session
from penstock_broker.stream_service import Subscriber
from penstock_broker.streams import limits
from penstock_protocol import queue_messages as q
from penstock_protocol import session_messages as s
from penstock_protocol import stream_messages as st
from penstock_protocol.errors import (
    Cancelled,
    Draining,
    InvalidName,
    InvalidRequest,
    LimitExceeded,
    PenstockError,
    PositionTrimmed,
    ResourceBusy,
    ResourceInUse,
    ShardDoesNotExist,
    StoreFailed,
    StreamConsumerDoesNotExist,
    StreamDoesNotExist,
)
from penstock_protocol.frames import Kind
from penstock_storage.memory import Fault, MemoryDisk

from tests.broker.inside import EPOCH_MS, House, Peer, house, on_jumping_clock
from tests.broker.test_bad_input import _open_in_lockstep
from tests.broker.test_streams import HOUR, HOUR_MS, PROMPT, a_stream, batch_of, put, records_of

NAME = st.StreamConsumerName("s", "audit")
ARN = f"arn:aws:kinesis:local:000000000000:stream/s/consumer/audit:{EPOCH_MS // 1000}"


async def register(peer: Peer, name: str = "audit", stream: str = "s") -> st.StreamConsumer:
    reply = await peer.call(st.StreamConsumerName(stream, name), "RegisterStreamConsumer")
    assert isinstance(reply, st.StreamConsumer)
    return reply


async def names(peer: Peer) -> list[str]:
    return [one.consumer for one in (await peer.call(st.StreamName("s"), "ListStreamConsumers")).consumers]


async def describe(peer: Peer, name: str = "audit") -> st.StreamConsumer:
    reply = await peer.call(st.StreamConsumerName("s", name), "DescribeStreamConsumer")
    assert isinstance(reply, st.StreamConsumer)
    return reply


def subscribers(one: House) -> list[Subscriber]:
    return [other for runtime in one.broker.streams.runtimes.values() for other in runtime.subscribers.values()]


class Subscribed:
    """A subscription as a client sees it."""

    def __init__(self, peer: Peer, correlation: int, begun: st.PushedRecords) -> None:
        self.peer = peer
        self.correlation = correlation
        self.begun = begun

    async def push(self) -> st.PushedRecords:
        """The next one."""
        found = await self.peer.wait(self.correlation)
        assert isinstance(found, st.PushedRecords)
        return found

    async def records(self) -> list[tuple[int, bytes]]:
        """Sequence number and data of the next push."""
        push = await self.push()
        assert push.runs
        return records_of(st.Records(0, push.start, push.runs, b"", 0, []))

    async def data(self) -> list[bytes]:
        return [data for _, data in await self.records()]

    async def give(self, records: int) -> None:
        await self.peer.say(q.Credit(self.correlation, records))

    async def is_silent(self) -> bool:
        """Whether nothing comes."""
        return not await self.peer.has_answer(self.correlation)


async def subscribe(
    peer: Peer, start: str = "latest", position: int = 0, *, credit: int = 1_000, name: str = "audit", shard: int = 0
) -> Subscribed:
    correlation = await peer.say(st.SubscribeToShard("s", name, shard, credit, start, position))
    begun = await peer.wait(correlation)
    assert isinstance(begun, st.PushedRecords)
    assert not begun.runs
    return Subscribed(peer, correlation, begun)


# Names


@on_jumping_clock
async def test_a_consumer_is_registered_described_listed_and_deregistered() -> None:
    async with house() as one:
        peer = await a_stream(one)
        made = await register(peer)
        assert made == st.StreamConsumer("s", "audit", ARN, EPOCH_MS, 0, 0)
        await trio.sleep(60)
        assert await register(peer) == made, "once more is no change"
        assert await describe(peer) == made
        await register(peer, "a.b-c_1")
        assert await names(peer) == ["a.b-c_1", "audit"]
        assert await peer.call(NAME, "DeregisterStreamConsumer") == s.Empty()
        assert await names(peer) == ["a.b-c_1"]
        for operation in ("DescribeStreamConsumer", "DeregisterStreamConsumer"):
            with pytest.raises(StreamConsumerDoesNotExist):
                await peer.call(NAME, operation)
        with pytest.raises(StreamDoesNotExist):
            await register(peer, stream="other")


@on_jumping_clock
async def test_a_consumer_outlives_the_broker_and_changes_of_its_stream_and_ends_with_it() -> None:
    disk = MemoryDisk()
    async with house(disk) as one:
        peer = await a_stream(one)
        made = await register(peer)
        await peer.call(st.SetStreamSettings("s", [q.Setting("retention_ms", HOUR_MS)]))
        await peer.call(st.SplitShard("s", 0))
    async with house(disk) as one:
        peer = await one.client()
        assert await describe(peer) == made
        await peer.call(st.StreamName("s"), "DeleteStream")
        await peer.call(st.CreateStream("s"))
        assert await names(peer) == []


@on_jumping_clock
async def test_a_registration_is_answered_when_it_is_durable_and_one_that_failed_leaves_nothing() -> None:
    async with house() as one:
        peer = await a_stream(one)
        one.threads.hold("commit")
        registering = await peer.say(NAME, "RegisterStreamConsumer")
        assert not await peer.has_answer(registering)
        with pytest.raises(ResourceBusy):
            await register(peer, "other")
        with pytest.raises(StreamConsumerDoesNotExist):
            await peer.call(st.SubscribeToShard("s", "audit", 0, 1))
        one.faults["commit"] = Fault.FAIL
        one.threads.release("commit")
        with pytest.raises(StoreFailed):
            await peer.wait(registering)
        del one.faults["commit"]
        assert await names(peer) == []
        await register(peer)


@on_jumping_clock
async def test_a_stream_has_only_so_many_consumers() -> None:
    async with house() as one:
        peer = await a_stream(one)
        for number in range(limits.MAX_CONSUMERS):
            await register(peer, f"c{number}")
        with pytest.raises(LimitExceeded, match="at most 20"):
            await register(peer)
        await register(peer, "c7")
        await peer.call(st.StreamConsumerName("s", "c7"), "DeregisterStreamConsumer")
        await register(peer)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ä", "a" * 129, "a\n"])
@on_jumping_clock
async def test_a_bad_name_is_refused(name: str) -> None:
    async with house() as one:
        peer = await a_stream(one)
        with pytest.raises(InvalidName):
            await register(peer, name)


# Subscriptions


@on_jumping_clock
async def test_a_place_that_was_searched_for_in_vain_is_not_remembered() -> None:
    async with house() as one:
        peer, other = await a_stream(one), await one.client()
        await register(peer)
        await put(peer, 0, b"a")
        one.threads.hold("_position_at")
        subscribing = await peer.say(st.SubscribeToShard("s", "audit", 0, 1, "time", EPOCH_MS))
        await trio.testing.wait_all_tasks_blocked()
        await other.call(st.StreamConsumerName("s", "audit"), "DeregisterStreamConsumer")
        one.threads.release("_position_at")
        with pytest.raises(StreamConsumerDoesNotExist):
            await peer.wait(subscribing)
        assert one.broker.stream_consumers._found == {}


@pytest.mark.parametrize(
    ("start", "position", "first"),
    [("trim_horizon", 0, 0), ("at", 3, 3), ("after", 3, 4), ("at", 6, 6), ("latest", 0, 6), ("time", EPOCH_MS + 1, 2)],
)
@on_jumping_clock
async def test_a_subscription_begins_at_five_kinds_of_places_and_says_where(start: str, position: int, first: int) -> None:
    async with house() as one:
        peer = await a_stream(one)
        await register(peer)
        for number in range(3):
            await put(peer, 0, b"%d" % (2 * number), b"%d" % (2 * number + 1))
            await trio.sleep(1)
        subscription = await subscribe(peer, start, position)
        assert (subscription.begun.start, subscription.begun.next) == (first, first)
        assert (subscription.begun.behind_ms > 0) == (first < 6)
        found = await subscription.data() if first < 6 else []
        await put(peer, 0, b"6")
        assert found + await subscription.data() == [b"%d" % number for number in range(first, 7)]


@on_jumping_clock
async def test_records_are_pushed_when_they_are_durable_and_say_where_to_go_on() -> None:
    async with house() as one:
        peer, other = await a_stream(one), await one.client()
        await register(peer)
        subscription = await subscribe(other)
        one.threads.hold("commit")
        putting = await peer.say(batch_of(0, [b"a", b"b"]))
        assert await subscription.is_silent()
        one.threads.release("commit")
        push = await subscription.push()
        assert (push.start, push.next, push.behind_ms) == (0, 2, 0)
        await peer.wait(putting)
        await other.close()
        again = await subscribe(peer, "at", push.next)
        await put(peer, 0, b"c")
        assert await again.records() == [(2, b"c")]


@on_jumping_clock
async def test_no_more_is_pushed_than_there_is_credit_for_but_for_the_rest_of_a_batch() -> None:
    async with house() as one:
        peer = await a_stream(one)
        await register(peer)
        for number in range(5):
            await put(peer, 0, b"%d" % number)
        await put(peer, 0, *[b"x"] * 4)
        subscription = await subscribe(peer, "trim_horizon", credit=2)
        assert await subscription.data() == [b"0", b"1"]
        assert await subscription.is_silent()
        await subscription.give(4)
        assert await subscription.data() == [b"2", b"3", b"4", b"x", b"x", b"x", b"x"]
        await put(peer, 0, b"y")
        await subscription.give(3)
        assert await subscription.is_silent(), "three were owed"
        await subscription.give(1)
        assert await subscription.data() == [b"y"]


@on_jumping_clock
async def test_every_consumer_gets_everything_and_a_slow_one_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "OUTBOX_PAUSE_BYTES", 1_000)
    async with house() as one:
        peer = await a_stream(one)
        quick, slow = await one.client(), one.connect(lockstep=True)
        await _open_in_lockstep(slow)
        for name in ("quick", "slow", "poor"):
            await register(peer, name)
        # One has no credit left, and one reads nothing: both stand in the way of nobody.
        poor = await subscribe(peer, credit=1, name="poor")
        sluggish = await subscribe(slow, credit=100_000, name="slow")
        subscription = await subscribe(quick, credit=100_000, name="quick")
        for number in range(50):
            await put(peer, 0, b"%d" % number + b"." * 300)
            assert await subscription.records() == [(number, b"%d" % number + b"." * 300)]
        assert await poor.records() == [(0, b"0" + b"." * 300)]
        assert await poor.is_silent()
        outbox = next(other._outbox_bytes for other in one.broker.sessions if other._hello and other._hello.client == slow.name)
        assert 1_000 < outbox < 2_000, "no more is kept for it than that"
        found: list[int] = []
        while len(found) < 50:
            found += [sequence for sequence, _ in await sluggish.records()]
        assert found == list(range(50))


@on_jumping_clock
async def test_who_is_at_the_tip_shares_one_encoding_and_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    bodies: set[int] = set()
    async with house() as one:
        consumers = one.broker.stream_consumers
        encode, push_body = consumers._encoded, session.Session.push_body

        def encoding(*arguments: Any) -> bytes:
            encoded.append(1)
            return encode(*arguments)

        def pushing(self: session.Session, call: Any, body: bytes) -> None:
            bodies.add(id(body))
            kept.append(body)
            push_body(self, call, body)

        kept: list[bytes] = []
        monkeypatch.setattr(consumers, "_encoded", encoding)
        monkeypatch.setattr(session.Session, "push_body", pushing)
        peer = await a_stream(one)
        everybody = []
        for number in range(10):
            await register(peer, f"c{number}")
            everybody.append(await subscribe(await one.client(), name=f"c{number}"))
        one.threads.calls.clear()
        await put(peer, 0, b"a")
        assert [await subscription.data() for subscription in everybody] == [[b"a"]] * 10
        assert (len(encoded), len(bodies), len(kept)) == (1, 1, 10)
        assert one.threads.calls.count("load_stream") == 0


@on_jumping_clock
async def test_who_is_behind_is_brought_to_the_tip_from_the_store_a_page_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TIP_BYTES", 100)
    monkeypatch.setattr(limits, "PUSH_BYTES", 200)
    async with house() as one:
        peer = await a_stream(one)
        await register(peer)
        for number in range(40):
            await put(peer, 0, b"%d" % number + b"." * 50)
        subscription = await subscribe(peer, "trim_horizon", credit=39)
        found: list[int] = []
        while len(found) < 39:
            push = await subscription.records()
            assert len(push) <= 4
            found += [sequence for sequence, _ in push]
        assert await subscription.is_silent()
        await subscription.give(2)
        await put(peer, 0, b"last")
        while len(found) < 41:
            found += [sequence for sequence, _ in await subscription.records()]
        assert found == list(range(41))
        assert one.threads.calls.count("load_stream") >= 8


@on_jumping_clock
async def test_lag_is_what_was_not_pushed_yet() -> None:
    async with house() as one:
        peer = await a_stream(one, 2)
        await register(peer)
        first = await subscribe(peer, credit=2)
        await subscribe(peer, shard=1)
        await put(peer, 0, b"a", b"b")
        await put(peer, 0, b"c")
        await first.push()
        found = await describe(peer)
        assert (found.subscriptions, found.lag) == (2, 1)
        await first.give(10)
        await first.push()
        assert (await describe(peer)).lag == 0


# Their end


@on_jumping_clock
async def test_a_split_shard_is_pushed_to_its_end_and_names_its_children() -> None:
    async with house() as one:
        peer = await a_stream(one)
        await register(peer)
        await put(peer, 0, b"a", b"b")
        late = await subscribe(peer, "trim_horizon")
        assert await late.data() == [b"a", b"b"]
        await peer.call(st.SplitShard("s", 0))
        assert await peer.wait(late.correlation, Kind.REPLY) == st.SubscriptionEnd([1, 2])
        assert subscribers(one) == []
        later = await subscribe(peer, "after", 0, credit=1)
        assert await later.records() == [(1, b"b")]
        assert await peer.wait(later.correlation, Kind.REPLY) == st.SubscriptionEnd([1, 2])


@on_jumping_clock
async def test_a_subscription_ends_when_it_is_cancelled_and_when_its_connection_does() -> None:
    async with house() as one:
        peer, other = await a_stream(one), await one.client()
        await register(peer)
        subscription = await subscribe(peer)
        await peer.say(s.Cancel(subscription.correlation))
        with pytest.raises(Cancelled):
            await peer.wait(subscription.correlation)
        await subscription.give(5)
        await subscribe(other)
        await other.close()
        await trio.testing.wait_all_tasks_blocked()
        assert subscribers(one) == []
        await put(peer, 0, b"a")


@on_jumping_clock
async def test_a_new_subscription_takes_over_from_the_one_before() -> None:
    async with house() as one:
        peer, other = await a_stream(one), await one.client()
        await register(peer)
        await register(peer, "mail")
        before, mail = await subscribe(peer), await subscribe(peer, name="mail")
        after = await subscribe(other)
        with pytest.raises(ResourceInUse, match="took over"):
            await before.push()
        await put(peer, 0, b"a")
        assert await after.data() == await mail.data() == [b"a"]


@on_jumping_clock
async def test_subscriptions_end_with_their_consumer_their_stream_and_the_broker() -> None:
    async with house() as one:
        peer = await a_stream(one)
        for name, ends, error in (
            ("audit", lambda: peer.call(NAME, "DeregisterStreamConsumer"), StreamConsumerDoesNotExist),
            ("mail", lambda: one.broker.drain(5), Draining),
        ):
            await register(peer, name)
            subscription = await subscribe(peer, name=name)
            await ends()
            with pytest.raises(error):
                await subscription.push()
    async with house() as one:
        peer = await a_stream(one)
        await register(peer)
        subscription = await subscribe(peer)
        await peer.call(st.StreamName("s"), "DeleteStream")
        with pytest.raises(StreamDoesNotExist):
            await subscription.push()


@on_jumping_clock
async def test_a_commit_that_failed_ends_subscriptions_and_what_was_acknowledged_is_pushed_to_the_next() -> None:
    async with house() as one:
        peer = await a_stream(one)
        await register(peer)
        subscription = await subscribe(peer)
        await put(peer, 0, b"a")
        push = await subscription.push()
        one.faults["commit"] = Fault.FAIL
        with pytest.raises(StoreFailed):
            await put(peer, 0, b"lost")
        with pytest.raises(StoreFailed):
            await subscription.push()
        del one.faults["commit"]
        await put(peer, 0, b"b")
        again = await subscribe(peer, "at", push.next)
        assert await again.data() == [b"b"]


@on_jumping_clock
async def test_a_load_that_fails_ends_that_subscription_alone() -> None:
    async with house() as one:
        peer = await a_stream(one)
        await register(peer)
        await register(peer, "mail")
        await put(peer, 0, b"a")
        tip = await subscribe(peer, name="mail")
        next(iter(one.broker.streams.runtimes.values())).shard.shed()
        one.faults["load"] = Fault.FAIL
        old = await peer.say(st.SubscribeToShard("s", "audit", 0, 5, "trim_horizon"))
        await peer.wait(old, Kind.PUSH)
        with pytest.raises(StoreFailed):
            await peer.wait(old)
        del one.faults["load"]
        await put(peer, 0, b"b")
        assert await tip.data() == [b"b"]


@on_jumping_clock
async def test_what_aged_out_before_it_was_pushed_is_told() -> None:
    async with house() as one:
        peer = await a_stream(one, retention_ms=HOUR_MS)
        await register(peer)
        await put(peer, 0, b"a")
        await put(peer, 0, b"b")
        subscription = await subscribe(peer, "trim_horizon", credit=1)
        assert await subscription.data() == [b"a"]
        await trio.sleep(HOUR + PROMPT)
        await subscription.give(1)
        with pytest.raises(PositionTrimmed):
            await subscription.push()
        with pytest.raises(PositionTrimmed):
            await peer.call(st.SubscribeToShard("s", "audit", 0, 1, "at", 1))
        assert (await subscribe(peer, "trim_horizon")).begun.next == 2


@on_jumping_clock
async def test_what_ages_out_while_it_is_loaded_is_told_and_not_skipped() -> None:
    async with house() as one:
        peer = await a_stream(one, retention_ms=HOUR_MS)
        await register(peer)
        await put(peer, 0, b"a")
        await trio.sleep(HOUR - 60)
        await put(peer, 0, b"b")
        next(iter(one.broker.streams.runtimes.values())).shard.shed()
        one.threads.hold("load_stream")
        subscription = await subscribe(peer, "trim_horizon")
        await trio.sleep(60 + PROMPT)
        one.threads.release("load_stream")
        with pytest.raises(PositionTrimmed):
            await subscription.push()
        assert await (await subscribe(peer, "trim_horizon")).records() == [(1, b"b")]


_REFUSED: list[tuple[type[PenstockError], dict[str, Any]]] = [
    (StreamDoesNotExist, {"stream": "other"}),
    (StreamConsumerDoesNotExist, {"consumer": "other"}),
    (ShardDoesNotExist, {"shard": 7}),
    (InvalidRequest, {"credit": 0}),
    (InvalidRequest, {"credit": limits.MAX_CREDIT + 1}),
    (InvalidRequest, {"start": "yesterday"}),
    (InvalidRequest, {"start": "at", "position": 2}),
    (InvalidRequest, {"start": "after", "position": 2**63 - 1}),
]


@pytest.mark.parametrize(("error", "fields"), _REFUSED)
@on_jumping_clock
async def test_a_subscription_that_makes_no_sense_is_refused_and_disturbs_no_other(
    error: type[PenstockError], fields: dict[str, Any]
) -> None:
    async with house() as one:
        peer = await a_stream(one)
        await register(peer)
        await put(peer, 0, b"a")
        subscription = await subscribe(peer)
        asked = {"stream": "s", "consumer": "audit", "shard": 0, "credit": 1, **fields}
        with pytest.raises(error):
            await peer.call(st.SubscribeToShard(**asked))
        await put(peer, 0, b"b")
        assert await subscription.data() == [b"b"]
