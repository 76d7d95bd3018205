"""A member of a consumer group against a broker that does what the test says: leases come, go and are lost at the worst time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import msgpack
import pytest
from penstock import AsyncClient, AsyncGroupConsumer, Client, LeaseLost, Record, RecordBatch
from penstock.errors import (
    CheckpointInvalid,
    MemberExpired,
    NotPermitted,
    Overloaded,
    RecordsUnreadable,
    StreamDoesNotExist,
)
from penstock_protocol import stream_messages as wire
from penstock_protocol.codec import Message
from penstock_protocol.connection import Request
from penstock_protocol.errors import PenstockError

from tests.clients.aggregates import aggregate
from tests.clients.fake_broker import AFTER, BEFORE, HOLD, Link
from tests.clients.fake_streams import StreamBroker
from tests.clients.test_forks import run

pytestmark = pytest.mark.anyio

BEAT = "GroupHeartbeat"


class GroupBroker(StreamBroker):
    """Gives every member the leases that the test has set, shard by shard: (number, position, give_up)."""

    def __init__(self) -> None:
        super().__init__()
        self.leases: dict[int, tuple[int, int, bool]] = {}
        self.lost: list[int] = []
        self.members: set[bytes] = set()
        self.noted: dict[int, int] = {}

    def __enter__(self) -> GroupBroker:
        super().__enter__()
        return self

    @property
    def beats(self) -> list[Any]:
        """All heartbeats."""
        return self.asked(BEAT)

    def lease(self, shard: int, number: int, position: int = 0, *, give_up: bool = False) -> None:
        """From the next heartbeat on."""
        with self._changed:
            self.leases[shard] = number, position, give_up

    def _apply(self, link: Link, request: Request, message: Any) -> Message | PenstockError | None:
        if not isinstance(message, wire.GroupHeartbeat):
            return super()._apply(link, request, message)
        self._stream(message.stream)
        if message.joining:
            self.members.add(message.member)
        elif message.member not in self.members:
            raise MemberExpired
        for one in message.checkpoints or []:
            number, _, give_up = self.leases.get(one.shard, (0, 0, False))
            if number == one.lease and one.shard not in self.lost:
                self.leases[one.shard] = number, one.position, give_up
                self.noted[one.shard] = one.position
        for shard in message.released or []:
            self.leases.pop(shard, None)
        if message.leaving:
            self.members.discard(message.member)
        leases = [wire.GroupLease(shard, *lease) for shard, lease in self.leases.items() if shard not in self.lost]
        return wire.GroupLeases(leases, [one.shard for one in message.checkpoints or [] if one.shard in self.lost])


@pytest.fixture
def broker() -> Iterator[GroupBroker]:
    """A fake broker with the stream two, of two shards with 100 records each, both leased from their beginning on."""
    with GroupBroker() as fake:
        fake.stream("two", 2)
        with Client(fake.url) as client:
            for shard in range(2):
                for start in range(0, 100, 10):
                    client.stream("two").put_columns(
                        [b"%d" % number for number in range(start, start + 10)], ["k"] * 10, [shard << 127] * 10
                    )
            fake.lease(0, 1)
        yield fake
        assert fake.violations == []


async def take(records: AsyncGroupConsumer[Record], count: int) -> list[int]:
    """The sequence numbers of the next records."""
    found = []
    for _ in range(count):
        record = await records.next()
        assert record is not None
        found.append(record.sequence)
    return found


async def beat(records: AsyncGroupConsumer[Any]) -> None:
    """Has a heartbeat sent now, and returns once its answer was heard. (The first that is heard may have been under way.)"""
    real = records._heard
    for _ in range(2):
        heard = anyio.Event()

        def hear(reply: wire.GroupLeases, heard: anyio.Event = heard) -> None:
            real(reply)
            heard.set()

        with pytest.MonkeyPatch.context() as patch, anyio.fail_after(20):
            patch.setattr(records, "_heard", hear)
            records._hasten()
            await heard.wait()


async def test_records_come_from_where_the_lease_begins_and_what_was_given_out_counts_when_the_next_is_asked_for(
    broker: GroupBroker,
) -> None:
    broker.lease(0, 1, 40)
    async with AsyncClient(broker.url) as client, client.stream("two").consume("g", session_seconds=60) as records:
        assert await take(records, 10) == list(range(40, 50))
        await beat(records)
        assert broker.noted == {0: 49}
        assert await take(records, 50) == list(range(50, 100))
        assert await records.next(0.01) is None
        await beat(records)
        assert broker.noted == {0: 100}


async def test_leaving_tells_the_last_checkpoints_and_what_was_not_finished_comes_again(broker: GroupBroker) -> None:
    async with AsyncClient(broker.url) as client:
        async with client.stream("two").consume("g", session_seconds=60) as records:
            await take(records, 10)
        assert (broker.noted, broker.members, broker.beats[-1].leaving) == ({0: 9}, set(), True)
        with pytest.raises(ZeroDivisionError):
            async with client.stream("two").consume("g", session_seconds=60) as records:
                assert await take(records, 11) == list(range(9, 20))
                raise ZeroDivisionError
        assert (broker.noted, broker.members) == ({0: 19}, set())


async def test_one_that_is_stopped_ends_its_loop_and_everything_it_gave_out_counts(broker: GroupBroker) -> None:
    async with AsyncClient(broker.url) as client:
        async with client.stream("two").consume("g", session_seconds=60) as records:
            async for record in records:
                if record.sequence == 49:
                    records.stop()
        assert broker.noted == {0: 50}


async def test_a_cancelled_member_still_leaves(broker: GroupBroker) -> None:
    async with AsyncClient(broker.url) as client:
        with anyio.CancelScope() as scope:
            async with client.stream("two").consume("g", session_seconds=60) as records:
                await take(records, 10)
                scope.cancel()
                await anyio.lowlevel.checkpoint()
        assert (broker.noted, broker.members) == ({0: 9}, set())


async def test_a_member_lives_while_the_application_is_busy(broker: GroupBroker) -> None:
    async with AsyncClient(broker.url) as client, client.stream("two").consume("g", session_seconds=0.3) as records:
        await take(records, 1)
        await broker.until(lambda: len(broker.beats) >= 6)
        assert len(broker.members) == 1
        assert await take(records, 99) == list(range(1, 100))


async def test_nothing_is_given_out_when_the_session_may_have_ended_until_a_heartbeat_succeeds(broker: GroupBroker) -> None:
    found: list[int] = []

    async def go_on() -> None:
        found.extend(await take(records, 90))

    async with AsyncClient(broker.url) as client, client.stream("two").consume("g", session_seconds=60) as records:
        await take(records, 10)
        broker.fault(BEAT, HOLD)
        records._hasten()
        await broker.until(lambda: bool(broker._held))
        records._membership.valid_until = anyio.current_time()
        assert await records.next(0.01) is None
        assert records._rows is not None, "there was more to give out"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(go_on)
            await anyio.wait_all_tasks_blocked()
            assert not found
            [arrived] = records._intake._takers
            broker.release_held()
            with anyio.fail_after(20):
                await arrived.wait()
        assert found == list(range(10, 100))


async def test_an_expired_member_drops_all_it_has_and_joins_again_under_another_name(broker: GroupBroker) -> None:
    async with AsyncClient(broker.url) as client, client.stream("two").consume("g", session_seconds=60) as records:
        await take(records, 10)
        name = records.member
        broker.members.clear()
        broker.leases.clear()
        broker.lease(0, 2, 5)
        await beat(records)
        await broker.until(lambda: len(broker.members) == 1)
        assert await take(records, 3) == [5, 6, 7]
        assert records.member != name and broker.members == {bytes.fromhex(records.member)}
        assert not [one for one in broker.beats[-1].checkpoints if one.lease == 1]


async def test_a_lease_with_another_number_begins_anew(broker: GroupBroker) -> None:
    async with AsyncClient(broker.url) as client, client.stream("two").consume("g", session_seconds=60) as records:
        await take(records, 15)
        broker.lease(0, 2, 3)
        await beat(records)
        assert await take(records, 97) == list(range(3, 100))


async def test_a_lost_shard_is_given_out_no_more_and_the_others_go_on(broker: GroupBroker) -> None:
    broker.lease(1, 2)
    async with AsyncClient(broker.url) as client, client.stream("two").consume("g", session_seconds=60) as records:
        seen = [await records.next() for _ in range(30)]
        assert {record.shard for record in seen if record is not None} <= {0, 1}
        del broker.leases[0]
        cursor = records._intake._cursors[0]
        await beat(records)
        assert records.shards == [1] and not [batch for batch in records._intake._ready if batch.shard == 0]
        run = wire.RecordRun(0, 1_000, [broker.streams["two"].shards[0].batches[0][2]])
        records._intake._take_in(cursor, wire.Records(0, 0, [run], b"", 0, []))  # its last read is answered only now
        assert not [batch for batch in records._intake._ready if batch.shard == 0]
        rest = []
        while (record := await records.next(0.05)) is not None:
            rest.append(record)
        assert {record.shard for record in rest} == {1}
        assert [one.sequence for one in (*seen, *rest) if one is not None and one.shard == 1] == list(range(100))


async def test_a_shard_that_is_asked_for_is_given_up_when_what_was_given_out_is_finished(broker: GroupBroker) -> None:
    async with (
        AsyncClient(broker.url) as client,
        client.stream("two").consume("g", session_seconds=600, checkpoint_seconds=600) as records,
    ):
        await take(records, 10)
        broker.lease(0, 1, give_up=True)
        await beat(records)
        assert not any(one.released for one in broker.beats)
        assert await records.next(0.05) is None, "it gives nothing more out"
        await broker.until(lambda: any(one.released for one in broker.beats))
        [message] = [one for one in broker.beats if one.released]
        assert (message.checkpoints, message.released) == ([wire.Checkpoint(0, 1, 10)], [0])
        assert broker.noted == {0: 10} and not broker.leases


async def test_a_shard_that_nobody_wants_any_more_goes_on_where_it_stopped(broker: GroupBroker) -> None:
    async with AsyncClient(broker.url) as client, client.stream("two").consume("g", session_seconds=60) as records:
        await take(records, 15)
        broker.lease(0, 1, give_up=True)
        await beat(records)
        broker.lease(0, 1)
        await beat(records)
        assert await take(records, 85) == list(range(15, 100))


async def test_manual_checkpoints_are_durable_when_they_return_and_only_they_count(broker: GroupBroker) -> None:
    stream = "two"
    async with AsyncClient(broker.url) as client:
        async with client.stream(stream).consume("g", checkpoint="manual", session_seconds=60) as records:
            taken = [await records.next() for _ in range(20)]
            assert isinstance(taken[4], Record) and isinstance(taken[2], Record) and isinstance(taken[9], Record)
            await records.checkpoint(taken[4])
            assert broker.noted == {0: 5}
            await records.checkpoint(taken[4])
            with pytest.raises(CheckpointInvalid):
                await records.checkpoint(taken[2])
            with pytest.raises(LeaseLost):
                await records.checkpoint(Record(b"", "k", 20, 0, 0))
            with pytest.raises(LeaseLost):
                await records.checkpoint(Record(b"", "k", 0, 1, 0))
            async with anyio.create_task_group() as tasks:
                for place in (5, 9, 7):
                    one = taken[place]
                    assert isinstance(one, Record)
                    tasks.start_soon(records.checkpoint, one)
            assert broker.noted == {0: 10}
            await records.next()
        assert broker.noted == {0: 10}


async def test_a_checkpoint_of_a_lost_shard_says_so(broker: GroupBroker) -> None:
    async with (
        AsyncClient(broker.url) as client,
        client.stream("two").consume("g", checkpoint="manual", session_seconds=60) as records,
    ):
        record = await records.next()
        assert record is not None
        broker.lost.append(0)
        with pytest.raises(LeaseLost):
            await records.checkpoint(record)
        assert await records.next(0.01) is None
        broker.lost.clear()
        broker.lease(0, 3, 1)
        await beat(records)
        await take(records, 1)
        with pytest.raises(LeaseLost):  # the record was given out under another lease
            await records.checkpoint(record)
        assert broker.noted == {}


async def test_a_checkpoint_that_an_expired_member_waits_for_is_lost(broker: GroupBroker) -> None:
    async with (
        AsyncClient(broker.url) as client,
        client.stream("two").consume("g", checkpoint="manual", session_seconds=60) as records,
    ):
        record = await records.next()
        assert record is not None
        broker.members.clear()
        with pytest.raises(LeaseLost):
            await records.checkpoint(record)


async def test_a_checkpoint_that_the_broker_refuses_is_told_and_the_member_starts_anew(broker: GroupBroker) -> None:
    async with (
        AsyncClient(broker.url) as client,
        client.stream("two").consume("g", checkpoint="manual", session_seconds=60) as records,
    ):
        record = await records.next()
        assert record is not None
        broker.fault(BEAT, CheckpointInvalid())
        with pytest.raises(CheckpointInvalid):
            await records.checkpoint(record)
        assert await take(records, 2) == [0, 1]
        assert broker.beats[-1].joining and len(broker.members) == 1


@pytest.mark.parametrize("fault", [BEFORE, AFTER, Overloaded()])
async def test_heartbeats_go_on_over_lost_connections_and_a_broker_in_trouble(broker: GroupBroker, fault: Any) -> None:
    async with (
        AsyncClient(broker.url) as client,
        client.stream("two").consume("g", checkpoint="manual", session_seconds=60) as records,
    ):
        record = await records.next()
        assert record is not None
        broker.fault(BEAT, fault)
        await records.checkpoint(record)
        assert broker.noted == {0: 1}
        assert await take(records, 99) == list(range(1, 100))


async def test_what_the_broker_refuses_for_good_ends_the_member(broker: GroupBroker) -> None:
    async with AsyncClient(broker.url) as client:
        with pytest.raises(StreamDoesNotExist):
            await client.stream("none").consume("g").__aenter__()
        async with client.stream("two").consume("g", checkpoint="manual", session_seconds=60) as records:
            record = await records.next()
            assert record is not None
            broker.fault(BEAT, NotPermitted())
            with pytest.raises(NotPermitted):
                await records.checkpoint(record)
            with pytest.raises(NotPermitted):
                while True:
                    await records.next()


async def test_who_is_cancelled_while_joining_says_goodbye(broker: GroupBroker) -> None:
    broker.fault(BEAT, HOLD)
    async with AsyncClient(broker.url) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.stream("two").consume("g").__aenter__)
            await broker.until(lambda: len(broker.beats) == 1)
            tasks.cancel_scope.cancel()
        await broker.until(lambda: len(broker.beats) == 2)
        assert broker.beats[1].leaving and broker.beats[1].member == broker.beats[0].member


async def test_a_batch_that_is_broken_is_told_and_passed_over_when_the_next_is_asked_for(broker: GroupBroker) -> None:
    broken = wire.Batch(3, wire.PLAIN, 3, msgpack.packb([[b"a"], ["k"]]))
    shard = broker.streams["two"].shards[0]
    good = shard.batches[0][2]
    shard.batches = [(100, 1_000, broken), (103, 1_000, good), (113, 1_000, broken)]
    shard.end = 116
    broker.lease(0, 1, 100)
    async with AsyncClient(broker.url) as client, client.stream("two").consume("g", session_seconds=60) as records:
        with pytest.raises(RecordsUnreadable):
            await records.next()
        assert await take(records, 10) == list(range(103, 113))
        with pytest.raises(RecordsUnreadable):
            await records.next()
        await beat(records)
        assert broker.noted == {0: 113}
        assert await records.next(0.01) is None
        await beat(records)
        assert broker.noted == {0: 116}


# Aggregated records


@pytest.fixture
def with_aggregated(broker: GroupBroker) -> GroupBroker:
    """Behind the hundred records of shard 0, an aggregated one with the user records a to d, and an ordinary one, e."""
    with Client(broker.url) as client:
        record = aggregate((f"key {letter}", letter.encode()) for letter in "abcd")
        client.stream("two").put_columns([record, b"e"], ["k"] * 2, [0] * 2)
    broker.lease(0, 1, 100)
    return broker


async def letters(records: AsyncGroupConsumer[Record], count: int) -> str:
    """The data of the next records."""
    return "".join([record.text for _ in range(count) if (record := await records.next()) is not None])


async def test_an_aggregated_record_counts_as_processed_with_its_last_user_record(with_aggregated: GroupBroker) -> None:
    broker = with_aggregated
    async with AsyncClient(broker.url) as client, client.stream("two").consume("g", session_seconds=60) as records:
        assert await letters(records, 4) == "abcd"
        await beat(records)
        assert broker.noted == {}
        assert await letters(records, 1) == "e"
        await beat(records)
        assert broker.noted == {0: 101}
        assert await records.next(0.01) is None
    assert broker.noted == {0: 102}


async def test_who_ends_in_the_middle_of_an_aggregated_record_leaves_it_to_the_next_as_a_whole(
    with_aggregated: GroupBroker,
) -> None:
    broker = with_aggregated
    async with AsyncClient(broker.url) as client:
        async with client.stream("two").consume("g", session_seconds=60) as records:
            assert await letters(records, 3) == "abc"
        assert broker.noted == {}
        broker.lease(0, 2, 100)
        async with client.stream("two").consume("g", session_seconds=60) as records:
            assert await letters(records, 5) == "abcde"


async def test_a_member_that_expires_in_the_middle_of_an_aggregated_record_gets_it_again_as_a_whole(
    with_aggregated: GroupBroker,
) -> None:
    broker = with_aggregated
    async with AsyncClient(broker.url) as client, client.stream("two").consume("g", session_seconds=60) as records:
        assert await letters(records, 2) == "ab"
        broker.members.clear()
        broker.lease(0, 2, 100)
        await beat(records)
        assert await letters(records, 5) == "abcde"


async def test_of_a_shard_that_is_to_move_the_aggregated_record_that_was_begun_is_given_out_to_its_end(
    with_aggregated: GroupBroker,
) -> None:
    broker = with_aggregated
    async with AsyncClient(broker.url) as client, client.stream("two").consume("g", session_seconds=60) as records:
        assert await letters(records, 1) == "a"
        broker.lease(0, 1, 100, give_up=True)
        await beat(records)
        assert await letters(records, 3) == "bcd"
        await beat(records)
        assert broker.leases[0][0] == 1  # the last one is being processed
        assert await records.next(0.01) is None
        await broker.until(lambda: 0 not in broker.leases)
        assert broker.noted == {0: 101}


async def test_of_a_shard_that_is_to_move_no_aggregated_record_is_begun(with_aggregated: GroupBroker) -> None:
    broker = with_aggregated
    broker.lease(0, 1, 99)
    async with AsyncClient(broker.url) as client, client.stream("two").consume("g", session_seconds=60) as records:
        assert await letters(records, 1) == "99"
        broker.lease(0, 1, 99, give_up=True)
        await beat(records)
        assert await records.next(0.01) is None
        await broker.until(lambda: broker.noted == {0: 100})


async def test_nothing_of_an_aggregated_record_is_given_out_when_its_shard_was_lost(with_aggregated: GroupBroker) -> None:
    broker = with_aggregated
    async with AsyncClient(broker.url) as client, client.stream("two").consume("g", session_seconds=60) as records:
        assert await letters(records, 2) == "ab"
        broker.leases.clear()
        await beat(records)
        assert await records.next(0.01) is None


async def test_a_shard_that_need_not_move_after_all_goes_on_behind_the_aggregated_record(with_aggregated: GroupBroker) -> None:
    broker = with_aggregated
    async with AsyncClient(broker.url) as client, client.stream("two").consume("g", session_seconds=60) as records:
        assert await letters(records, 2) == "ab"
        broker.lease(0, 1, 100, give_up=True)
        await beat(records)
        broker.lease(0, 1, 100)
        await beat(records)
        assert await letters(records, 3) == "cde"


async def test_a_checkpoint_within_an_aggregated_record_is_up_to_before_it(with_aggregated: GroupBroker) -> None:
    broker = with_aggregated
    broker.lease(0, 1, 99)
    async with (
        AsyncClient(broker.url) as client,
        client.stream("two").consume("g", checkpoint="manual", session_seconds=60) as records,
    ):
        taken = [record for _ in range(5) if (record := await records.next()) is not None]
        for record, noted in zip(taken, [100, 100, 100, 100, 101], strict=True):
            await records.checkpoint(record)
            assert broker.noted == {0: noted}
        with pytest.raises(CheckpointInvalid):
            await records.checkpoint(taken[1])


async def test_the_first_user_record_that_a_lease_brings_may_be_checkpointed(with_aggregated: GroupBroker) -> None:
    broker = with_aggregated
    async with (
        AsyncClient(broker.url) as client,
        client.stream("two").consume("g", checkpoint="manual", session_seconds=60) as records,
    ):
        record = await records.next()
        assert record is not None
        await records.checkpoint(record)
        assert broker.noted == {}


async def test_a_member_may_have_aggregated_records_as_they_were_put(with_aggregated: GroupBroker) -> None:
    broker = with_aggregated
    async with (
        AsyncClient(broker.url) as client,
        client.stream("two").consume("g", session_seconds=60, deaggregate=False) as records,
    ):
        assert await take(records, 2) == [100, 101]


async def test_that_a_closed_shard_was_processed_is_told_at_once_for_its_children_wait(broker: GroupBroker) -> None:
    broker.lease(0, 1, 98)
    broker.split("two", 0)
    async with (
        AsyncClient(broker.url) as client,
        client.stream("two").consume("g", session_seconds=600, checkpoint_seconds=600) as records,
    ):
        assert await take(records, 2) == [98, 99]
        assert await records.next(0.01) is None
        await broker.until(lambda: broker.noted == {0: 100})


async def test_a_shard_that_closes_after_all_was_processed_is_told_at_once(broker: GroupBroker) -> None:
    async with (
        AsyncClient(broker.url) as client,
        client.stream("two").consume("g", session_seconds=600, checkpoint_seconds=600) as records,
    ):
        await take(records, 100)
        assert await records.next(0.01) is None
        await beat(records)
        count = len(broker.beats)
        broker.split("two", 0)
        await broker.until(lambda: len(broker.beats) > count)


async def test_other_tasks_get_their_turn_while_there_is_always_more(broker: GroupBroker) -> None:
    with Client(broker.url) as other:
        other.stream("two").put_columns([b""] * 2_000, ["k"] * 2_000, [0] * 2_000)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with (
        AsyncClient(broker.url) as client,
        client.stream("two").consume("g", session_seconds=60) as records,
        anyio.create_task_group() as tasks,
    ):
        await take(records, 200)
        tasks.start_soon(count)
        await anyio.lowlevel.checkpoint()
        began = turns
        await take(records, 1_800)
        assert turns - began >= 6
        tasks.cancel_scope.cancel()


async def test_batches_come_as_they_were_put_and_are_checkpointed_whole(broker: GroupBroker) -> None:
    async with (
        AsyncClient(broker.url) as client,
        client.stream("two").consume("g", batches=True, checkpoint="manual", session_seconds=60) as batches,
    ):
        batch = await batches.next()
        assert isinstance(batch, RecordBatch) and (batch.first, len(batch)) == (0, 10)
        batch = await batches.next()
        assert batch is not None
        await batches.checkpoint(batch)
        assert broker.noted == {0: 20}


async def test_one_task_takes_out_of_a_consumer_within_its_block(broker: GroupBroker) -> None:
    broker.leases.clear()
    async with AsyncClient(broker.url) as client:
        records = client.stream("two").consume("g", session_seconds=60)
        with pytest.raises(RuntimeError):
            await records.next()
        async with records, anyio.create_task_group() as tasks:
            tasks.start_soon(records.next, 20)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(RuntimeError):
                await records.next()
            records.stop()


@pytest.mark.parametrize(
    "options", [{"checkpoint": "never"}, {"start": "at"}, {"session_seconds": 0}, {"checkpoint_seconds": -1}]
)
async def test_wrong_options_are_refused_before_anybody_is_asked(broker: GroupBroker, options: dict[str, Any]) -> None:
    async with AsyncClient(broker.url) as client:
        with pytest.raises(ValueError, match=r"must be"):
            client.stream("two").consume("g", **options)


def test_the_blocking_member_does_the_same(broker: GroupBroker) -> None:
    with Client(broker.url) as client:
        with client.stream("two").consume("g", session_seconds=0.3) as records:
            assert [record.sequence for record, _ in zip(records, range(10), strict=False)] == list(range(10))
            broker.wait_until(lambda: len(broker.beats) >= 6)
            record = records.next()
            assert record is not None
            records.checkpoint(record)
            assert broker.noted == {0: record.sequence + 1}
        assert not broker.members


def test_a_member_belongs_to_the_process_that_made_it(broker: GroupBroker) -> None:
    script = """
        import os, sys
        from penstock import Client, ClientClosed

        with Client(sys.argv[1]) as client, client.stream("two").consume("g") as records:
            assert records.next().sequence == 0
            pid = os.fork()
            if not pid:
                try:
                    records.next()
                except ClientClosed:
                    records.__exit__(None, None, None)
                    os._exit(7)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
            assert records.next().sequence == 1
    """
    run(script, broker.url)
    assert broker.noted == {0: 1} and not broker.members
    assert [one.leaving for one in broker.beats].count(True) == 1


async def test_a_client_that_is_closed_ends_its_members_at_once(broker: GroupBroker) -> None:
    client = AsyncClient(broker.url)
    async with client, client.stream("two").consume("g", session_seconds=60) as records:
        await take(records, 100)
        await client.aclose()
        assert await records.next(20) is None
