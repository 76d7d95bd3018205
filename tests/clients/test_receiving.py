"""Receiving and settling: what a message knows, cancellation, merged deletes and visibility changes."""

from __future__ import annotations

import uuid

import anyio
import pytest
from penstock import AsyncClient, AsyncMessage, ReceiptHandle
from penstock.errors import (
    ConnectionLost,
    Draining,
    InvalidRequest,
    MessageNotInFlight,
    PenstockError,
    ReceiptHandleInvalid,
    RequestTimeout,
    TooManyInFlight,
)

from tests.clients.fake_broker import AFTER, BEFORE, HOLD, SILENT, FakeBroker

pytestmark = pytest.mark.anyio


async def test_a_received_message_knows_everything_about_itself(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        sent = await queue.send("größe", attributes={"n": 5, "f": 1.5, "s": "x", "b": b"\x01"}, group="tenant")
        [message] = await queue.receive()
    assert message.body == "größe".encode()
    assert message.text == "größe"
    assert message.attributes == {"n": 5, "f": 1.5, "s": "x", "b": b"\x01"}
    assert (message.group, message.deduplication_id, message.trace, message.dead_letter_source) == ("tenant", None, None, None)
    assert (message.sequence, message.receive_count) == (0, 1)
    assert message.message_id == sent.message_id == str(uuid.UUID(bytes=bytes([*[0] * 7, 1, *[0] * 8])))
    assert message.sent_at.timestamp() == 1
    assert message.first_received_at.timestamp() == 2
    assert ReceiptHandle.parse(message.receipt_handle) == message.handle
    assert message.message_id in repr(message)


async def test_an_empty_queue_gives_an_empty_list(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        assert await client.queue("jobs").receive(10, wait_seconds=0) == []


async def test_a_long_poll_is_answered_when_a_message_comes(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client, anyio.create_task_group() as tasks:
        queue = client.queue("jobs")

        async def poll() -> None:
            [message] = await queue.receive(wait_seconds=20)
            assert message.body == b"x"

        tasks.start_soon(poll)
        await broker.until(lambda: bool(broker.queue("jobs").waiters))
        await queue.send(b"x")


async def test_a_cancelled_long_poll_is_cancelled_at_the_broker_too(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: queue.receive(wait_seconds=20))
            await broker.until(lambda: bool(broker.queue("jobs").waiters))
            tasks.cancel_scope.cancel()
        await broker.until(lambda: not broker.queue("jobs").waiters)
        await queue.send(b"x")
        assert broker.queue("jobs").visible == [b"x"]


async def test_messages_that_reach_a_cancelled_receive_are_released(broker: FakeBroker) -> None:
    broker.fault("ReceiveMessages", HOLD)
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"a", b"b"])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(queue.receive, 10)
            await broker.until(lambda: len(broker.asked("ReceiveMessages")) == 1)
            tasks.cancel_scope.cancel()
        assert broker.queue("jobs").visible == []
        broker.release_held()
        await broker.until(lambda: broker.queue("jobs").visible == [b"a", b"b"])


async def test_messages_that_reach_a_receive_after_its_time_are_released(broker: FakeBroker) -> None:
    broker.fault("ReceiveMessages", HOLD)
    async with AsyncClient(broker.url, request_timeout=0.2) as client:
        queue = client.queue("jobs")
        await queue.send(b"a")
        with pytest.raises(RequestTimeout):
            await queue.receive(wait_seconds=0)
        broker.release_held()
        await broker.until(lambda: broker.queue("jobs").visible == [b"a"])


async def test_messages_of_a_receive_attempt_stay_taken_for_whoever_repeats_it(broker: FakeBroker) -> None:
    broker.fault("ReceiveMessages", HOLD, HOLD)
    async with AsyncClient(broker.url, request_timeout=0.2) as client:
        queue = client.queue("orders.fifo")
        await queue.send_many([b"a", b"b"])
        with pytest.raises(RequestTimeout):
            await queue.receive(wait_seconds=0, attempt_id="late")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: queue.receive(wait_seconds=0, attempt_id="cancelled"))
            await broker.until(lambda: len(broker.asked("ReceiveMessages")) == 2)
            tasks.cancel_scope.cancel()
        broker.release_held()
        await client.ping()
        await client.ping()
    assert broker.asked("ChangeVisibility") == []
    assert broker.queue("orders.fifo").visible == []


async def test_messages_released_in_the_background_are_released_before_the_client_closes(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"a", b"b"])
        queue.release_soon(await queue.receive(2))
    assert broker.queue("jobs").visible == [b"a", b"b"]


async def test_a_receive_is_not_repeated_blindly_when_its_connection_is_lost(broker: FakeBroker) -> None:
    broker.fault("ReceiveMessages", AFTER)
    async with AsyncClient(broker.url) as client:
        with pytest.raises(ConnectionLost):
            await client.queue("jobs").receive()
    assert len(broker.asked("ReceiveMessages")) == 1


async def test_a_receive_with_an_attempt_id_is_repeated(broker: FakeBroker) -> None:
    broker.fault("ReceiveMessages", AFTER)
    async with AsyncClient(broker.url) as client:
        assert await client.queue("jobs").receive(attempt_id="one") == []
    assert [message.attempt_id for message in broker.asked("ReceiveMessages")] == ["one", "one"]


async def test_a_receive_answered_by_a_stopping_broker_is_asked_again(broker: FakeBroker) -> None:
    broker.fault("ReceiveMessages", Draining())
    async with AsyncClient(broker.url) as client:
        assert await client.queue("jobs").receive() == []
    assert len(broker.asked("ReceiveMessages")) == 2


async def test_too_many_in_flight_is_the_callers_to_decide(broker: FakeBroker) -> None:
    broker.fault("ReceiveMessages", TooManyInFlight())
    async with AsyncClient(broker.url) as client:
        with pytest.raises(TooManyInFlight):
            await client.queue("jobs").receive()


async def test_long_polls_leave_room_for_other_requests() -> None:
    with FakeBroker(max_in_flight=9) as broker:
        broker.queue("jobs")
        async with AsyncClient(broker.url) as client, anyio.create_task_group() as tasks:
            queue = client.queue("jobs")
            for _ in range(20):
                tasks.start_soon(lambda: queue.receive(wait_seconds=20))
            await broker.until(lambda: len(broker.queue("jobs").waiters) == 6)
            await client.ping()
            await queue.send_many([b"x"] * 20)
        assert broker.most_in_flight <= 9
        assert broker.queue("jobs").visible == []


# Settling


async def received(client: AsyncClient, count: int) -> list[AsyncMessage]:
    """Messages in hand."""
    queue = client.queue("jobs")
    await queue.send_many([b"%d" % number for number in range(count)])
    return await queue.receive(count)


async def test_concurrent_deletes_travel_in_one_frame_per_delivery(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        messages = await received(client, 1_000)
        async with anyio.create_task_group() as tasks:
            for message in messages:
                tasks.start_soon(message.delete)
    assert broker.queue("jobs").bodies == []
    frames = broker.asked("DeleteMessages")
    assert len(frames) <= 6
    assert all(len(frame.receipts) == 1 for frame in frames)


async def test_delete_many_settles_messages_of_many_deliveries_in_one_frame(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many([b"x"] * 50)
        messages = [message for _ in range(50) for message in await queue.receive()]
        await queue.delete_many(messages)
    assert broker.queue("jobs").bodies == []
    [frame] = broker.asked("DeleteMessages")
    assert len(frame.receipts) == 50


async def test_more_receipts_than_an_array_may_hold_are_split_over_frames(broker: FakeBroker) -> None:
    handles = [ReceiptHandle(number.to_bytes(16, "big"), 0, 0) for number in range(10_000)]
    async with AsyncClient(broker.url) as client:
        await client.queue("jobs").delete_many(handles)
    assert [len(frame.receipts) for frame in broker.asked("DeleteMessages")] == [4_000, 4_000, 2_000]


async def test_a_message_can_be_deleted_by_the_text_of_its_handle(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        [message] = await received(client, 1)
        await client.queue("jobs").delete(message.receipt_handle)
        with pytest.raises(ReceiptHandleInvalid):
            await client.queue("jobs").delete("nonsense")
    assert broker.queue("jobs").bodies == []


async def test_each_message_of_a_merged_change_gets_its_own_refusal(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        first, second, third = await received(client, 3)
        await second.release()
        outcomes: dict[int, PenstockError | None] = {}

        async def change(message: AsyncMessage) -> None:
            try:
                await client.queue("jobs").change_visibility(message, 60)
                outcomes[message.sequence] = None
            except PenstockError as error:
                outcomes[message.sequence] = error

        async with anyio.create_task_group() as tasks:
            for message in (first, second, third):
                tasks.start_soon(change, message)
    assert (outcomes[0], outcomes[2]) == (None, None)
    assert isinstance(outcomes[1], MessageNotInFlight)


async def test_renewing_tells_the_outcome_of_each_message(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        messages = await received(client, 3)
        await messages[1].release()
        outcomes = await client.queue("jobs").renew(messages, 60)
    assert [type(outcome) for outcome in outcomes] == [type(None), MessageNotInFlight, type(None)]


async def test_deletes_and_releases_are_repeated_when_their_reply_was_lost(broker: FakeBroker) -> None:
    broker.fault("DeleteMessages", AFTER, BEFORE)
    broker.fault("ChangeVisibility", AFTER, BEFORE)
    async with AsyncClient(broker.url) as client:
        first, second = await received(client, 2)
        await first.delete()
        await second.release()
    assert broker.queue("jobs").visible == [b"1"]
    assert len(broker.asked("DeleteMessages")) == len(broker.asked("ChangeVisibility")) == 3


@pytest.mark.parametrize("seconds", [-1, 43_201, float("nan")])
async def test_a_visibility_timeout_out_of_range_is_refused_before_it_can_spoil_a_frame(
    broker: FakeBroker, seconds: float
) -> None:
    async with AsyncClient(broker.url) as client:
        [message] = await received(client, 1)
        with pytest.raises(InvalidRequest):
            await client.queue("jobs").change_visibility(message, seconds)
    assert broker.asked("ChangeVisibility") == []


async def test_a_request_that_is_not_answered_ends_with_its_time(broker: FakeBroker) -> None:
    broker.fault("Ping", SILENT)
    async with AsyncClient(broker.url, request_timeout=0.2) as client:
        with pytest.raises(RequestTimeout):
            await client.ping()
        await client.ping()


async def test_queues_are_listed_page_by_page(broker: FakeBroker) -> None:
    for name in ("jobs-a", "jobs-b", "jobs-c", "jobs-d"):
        broker.queue(name)
    async with AsyncClient(broker.url) as client:
        assert [name async for name in client.list_queues("jobs")] == ["jobs", "jobs-a", "jobs-b", "jobs-c", "jobs-d"]
    assert len(broker.asked("ListQueues")) == 3


async def test_settings_are_seconds_here_and_milliseconds_on_the_wire(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        dead = client.queue("jobs")
        queue = await client.create_queue(
            "new", visibility_timeout=1.5, delay=2, dead_letter_queue=dead, max_receive_count=3, tags={"team": "red"}
        )
        assert queue is client.queue("new")
    [message] = broker.asked("CreateQueue")
    assert {one.name: one.value for one in message.settings} == {
        "visibility_timeout_ms": 1_500,
        "delay_ms": 2_000,
        "dead_letter_queue": "jobs",
        "max_receive_count": 3,
    }
    assert [(tag.key, tag.value) for tag in message.tags] == [("team", "red")]
