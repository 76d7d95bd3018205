"""Sending: merging into frames, results per message, and retries that make no second message."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest
from penstock import AsyncClient, AsyncQueue, Attribute, OutgoingMessage, SendFailed, SentMessage
from penstock.errors import (
    ClientClosed,
    Draining,
    FrameTooLarge,
    InvalidMessage,
    NotConnected,
    OutcomeUnknown,
    Overloaded,
    PenstockError,
    QueueDoesNotExist,
    QueueFull,
    RequestTimeout,
    StoreFailed,
)

from tests.clients.fake_broker import AFTER, BEFORE, HOLD, SILENT, FakeBroker, turns

pytestmark = pytest.mark.anyio


def frames(broker: FakeBroker) -> list[int]:
    """How many messages each send frame had."""
    return [len(message.bodies) for message in broker.asked("SendMessages")]


async def send_all(queue: AsyncQueue, bodies: list[bytes], **properties: str) -> list[SentMessage | PenstockError]:
    """Sends each body in a task of its own; results in the order of the bodies."""
    results: dict[bytes, SentMessage | PenstockError] = {}

    async def one(body: bytes) -> None:
        try:
            results[body] = await queue.send(body, **properties)  # type: ignore[arg-type]  # str properties only
        except PenstockError as error:
            results[body] = error

    async with anyio.create_task_group() as tasks:
        for body in bodies:
            tasks.start_soon(one, body)
    return [results[body] for body in bodies]


async def test_a_lone_send_goes_out_at_once_in_a_frame_of_its_own(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        first = await queue.send("one")
        second = await queue.send(b"two")
    assert frames(broker) == [1, 1]
    assert (first.sequence, second.sequence) == (0, 1)
    assert broker.queue("jobs").bodies == [b"one", b"two"]


async def test_a_frame_larger_than_what_the_socket_takes_at_once_arrives_whole(broker: FakeBroker) -> None:
    bodies = [bytes([number]) * 1_000_000 for number in range(12)]
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        await queue.send_many(bodies)
        for body in bodies:
            await queue.send(body)
    assert broker.queue("jobs").bodies == bodies * 2


async def test_concurrent_sends_fill_the_next_frames_while_a_few_are_on_their_way(broker: FakeBroker) -> None:
    bodies = [b"%d" % number for number in range(2_000)]
    async with AsyncClient(broker.url) as client:
        results = await send_all(client.queue("jobs"), bodies)
    assert sum(frames(broker)) == 2_000
    assert len(frames(broker)) <= 12
    assert max(frames(broker)) == 500
    stored = broker.queue("jobs").messages
    assert all(
        isinstance(one, SentMessage) and stored[one.sequence].body == body for one, body in zip(results, bodies, strict=True)
    )


async def test_batches_that_nothing_can_join_wait_for_no_other_ones(broker: FakeBroker) -> None:
    broker.fault("SendMessages", *[HOLD] * 32)
    async with AsyncClient(broker.url) as client, anyio.create_task_group() as tasks:
        queue = client.queue("jobs")
        for _ in range(34):
            tasks.start_soon(queue.send_many, [b"one", b"two"])
        await broker.until(lambda: len(frames(broker)) == 32)
        tasks.start_soon(queue.send, b"alone")
        await turns()
        assert frames(broker) == [2] * 32
        broker.release_held()
    assert sorted(frames(broker)) == [1] + [2] * 34


async def test_batches_for_a_fifo_queue_go_one_after_the_other(broker: FakeBroker) -> None:
    broker.fault("SendMessages", HOLD)
    async with AsyncClient(broker.url) as client, anyio.create_task_group() as tasks:
        queue = client.queue("orders.fifo")
        for name in "abc":
            tasks.start_soon(queue.send_many, [OutgoingMessage(name, group="g", deduplication_id=name)])
            await broker.until(lambda: frames(broker) == [1])
            await turns()
        assert frames(broker) == [1]
        broker.release_held()
    assert broker.queue("orders.fifo").bodies == [b"a", b"b", b"c"]


async def test_each_message_of_a_merged_frame_gets_its_own_refusal(broker: FakeBroker) -> None:
    broker.fault("SendMessages", HOLD, HOLD, HOLD, HOLD)
    async with AsyncClient(broker.url) as client, anyio.create_task_group() as tasks:
        queue = client.queue("jobs")
        for _ in range(4):
            tasks.start_soon(queue.send, b"in front")
        await broker.until(lambda: len(frames(broker)) == 4)
        outcomes: list[list[SentMessage | PenstockError]] = []

        async def behind() -> None:
            outcomes.append(await send_all(queue, [b"good", b"refuse me", b"fine"]))

        tasks.start_soon(behind)
        await turns()
        broker.release_held()
    good, refused, fine = outcomes[0]
    assert isinstance(good, SentMessage) and isinstance(fine, SentMessage)
    assert isinstance(refused, InvalidMessage) and "as it wanted" in str(refused)
    assert frames(broker) == [1, 1, 1, 1, 3]


async def test_properties_travel_in_columns_beside_plain_messages(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        results = await client.queue("jobs").send_many(
            [
                b"plain",
                OutgoingMessage(
                    "rich", {"n": 1, "s": "text", "b": b"\x00", "x": Attribute("x", "Number.int", "5")}, 1.5, "g", "d", "trace"
                ),
                "text",
            ]
        )
    assert len(results) == 3
    [frame] = broker.asked("SendMessages")
    assert frame.bodies == [b"plain", b"rich", b"text"]
    assert frame.delays_ms == [None, 1_500, None]
    assert frame.groups == [None, "g", None]
    assert frame.deduplication_ids == [None, "d", None]
    assert frame.traces == [None, "trace", None]
    assert [(one.name, one.type, one.value) for one in frame.attributes[1]] == [
        ("n", "Number", "1"),
        ("s", "String", "text"),
        ("b", "Binary", b"\x00"),
        ("x", "Number.int", "5"),
    ]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"body": 5}, TypeError),
        ({"body": "x", "group": 5}, TypeError),
        ({"body": "x", "delay_seconds": -1}, InvalidMessage),
        ({"body": "x", "delay_seconds": float("nan")}, InvalidMessage),
        ({"body": "x", "attributes": {1: "one"}}, TypeError),
        ({"body": "\ud800"}, UnicodeEncodeError),
        ({"body": "x", "trace": "\ud800"}, UnicodeEncodeError),
    ],
)
async def test_what_has_no_form_on_the_wire_is_refused_before_it_can_spoil_a_frame(
    broker: FakeBroker, arguments: dict[str, object], error: type[Exception]
) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        with pytest.raises(error):
            await queue.send(**arguments)  # type: ignore[arg-type]  # wrong on purpose
        await queue.send("good")
    assert broker.queue("jobs").bodies == [b"good"]


async def test_send_many_sends_nothing_when_one_message_has_no_form(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        with pytest.raises(TypeError):
            await client.queue("jobs").send_many([b"one", 2])  # type: ignore[list-item]  # wrong on purpose
    assert frames(broker) == []


async def test_send_many_splits_by_the_frame_limit_that_the_broker_names() -> None:
    with FakeBroker(max_frame_bytes=40_000) as broker:
        broker.queue("jobs")
        async with AsyncClient(broker.url) as client:
            await client.ping()
            results = await client.queue("jobs").send_many([bytes([number]) * 1_000 for number in range(100)])
        assert [one.body[0] for one in broker.queue("jobs").messages.values()] == list(range(100))
        assert [result.sequence for result in results if isinstance(result, SentMessage)] == list(range(100))
        assert all(one.size_bytes <= 40_000 for one in broker.seen)


async def test_merged_singles_with_large_attributes_stay_below_the_frame_limit() -> None:
    with FakeBroker(max_frame_bytes=300_000) as broker:
        broker.queue("jobs")
        async with AsyncClient(broker.url) as client, anyio.create_task_group() as tasks:
            await client.ping()
            for _ in range(40):

                async def one() -> None:
                    await client.queue("jobs").send(b"x", attributes={"large": "ü" * 50_000})

                tasks.start_soon(one)
        assert len(broker.queue("jobs").messages) == 40
        assert all(one.size_bytes <= 300_000 for one in broker.seen)


async def test_many_small_attributes_stay_below_the_decoders_element_limit(broker: FakeBroker) -> None:
    message = OutgoingMessage(b"x", {f"a{number}": "v" for number in range(10)})
    async with AsyncClient(broker.url) as client:
        assert len(await client.queue("jobs").send_many([message] * 4_000)) == 4_000
    assert len(broker.queue("jobs").messages) == 4_000


async def test_a_single_message_beyond_the_frame_limit_fails_alone() -> None:
    with FakeBroker(max_frame_bytes=50_000) as broker:
        broker.queue("jobs")
        async with AsyncClient(broker.url) as client:
            await client.ping()
            results = await client.queue("jobs").send_many([b"a", b"b" * 60_000, b"c"], raise_on_failure=False)
            assert isinstance(results[0], SentMessage)
            assert isinstance(results[1], FrameTooLarge)
            with pytest.raises(FrameTooLarge):
                await client.queue("jobs").send(b"b" * 60_000)
            await client.queue("jobs").send(b"still fine")


async def test_send_many_raises_send_failed_with_places_and_what_was_sent(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
        with pytest.raises(SendFailed) as raised:
            await queue.send_many([b"a", b"refuse me", b"b", b"refuse me"])
        assert list(raised.value.failures) == [1, 3]
        assert [one.sequence for one in raised.value.sent if isinstance(one, SentMessage)] == [0, 1]
        results = await queue.send_many([b"refuse me", b"c"], raise_on_failure=False)
    assert isinstance(results[0], InvalidMessage)
    assert isinstance(results[1], SentMessage)


async def test_send_many_to_a_missing_queue_raises_that(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        with pytest.raises(QueueDoesNotExist):
            await client.queue("nowhere").send_many([b"x"] * 20_000)


async def test_a_frame_that_fails_as_a_whole_holds_back_the_frames_after_it(broker: FakeBroker) -> None:
    broker.fault("SendMessages", QueueFull("no room"))
    async with AsyncClient(broker.url) as client:
        results = await client.queue("orders.fifo").send_many([b"x"] * 25_000, raise_on_failure=False)
    assert len(results) == 25_000
    assert all(isinstance(result, QueueFull) for result in results)
    assert "not sent" in str(results[-1])
    assert frames(broker) == [10_000]


async def test_send_many_of_nothing_sends_nothing(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        assert await client.queue("jobs").send_many([]) == []
    assert frames(broker) == []


# Retries


async def test_a_send_whose_reply_was_lost_makes_no_second_message(broker: FakeBroker) -> None:
    broker.fault("SendMessages", AFTER)
    async with AsyncClient(broker.url) as client:
        sent = await client.queue("jobs").send(b"once")
    assert broker.queue("jobs").bodies == [b"once"]
    assert sent.sequence == 0
    first, second = broker.asked("SendMessages")
    assert first.sequence == second.sequence > 0
    assert broker.repeated == 1


async def test_a_send_lost_before_the_broker_saw_it_is_sent_again(broker: FakeBroker) -> None:
    broker.fault("SendMessages", BEFORE, BEFORE)
    async with AsyncClient(broker.url) as client:
        await client.queue("jobs").send(b"once")
    assert broker.queue("jobs").bodies == [b"once"]
    assert broker.connections == 3


async def test_every_frame_on_its_way_is_sent_again_with_its_own_number(broker: FakeBroker) -> None:
    broker.fault("SendMessages", SILENT, SILENT, SILENT, SILENT)
    async with AsyncClient(broker.url) as client, anyio.create_task_group() as tasks:
        queue = client.queue("jobs")
        for number in range(4):
            tasks.start_soon(queue.send, b"%d" % number)
        await broker.until(lambda: len(frames(broker)) == 4)
        broker.drop_all()
    assert sorted(broker.queue("jobs").bodies) == [b"0", b"1", b"2", b"3"]
    sequences = [message.sequence for message in broker.asked("SendMessages")]
    assert sequences[:4] == sequences[4:] == sorted(sequences[:4])


async def test_a_fifo_queue_has_one_frame_on_its_way_and_keeps_order_over_lost_connections(broker: FakeBroker) -> None:
    broker.fault("SendMessages", AFTER, BEFORE, StoreFailed(), AFTER, OutcomeUnknown())
    async with AsyncClient(broker.url) as client, anyio.create_task_group() as tasks:
        queue = client.queue("orders.fifo")
        for number in range(1_200):

            async def one(number: int) -> None:
                await queue.send(b"%d" % number, group="g")

            tasks.start_soon(one, number)
            await anyio.lowlevel.checkpoint()
    sent = [body for message in broker.asked("SendMessages") for body in message.bodies]
    stored = broker.queue("orders.fifo").bodies
    assert stored == sorted(stored, key=sent.index)
    assert stored == [b"%d" % number for number in range(1_200)]


async def test_numbers_ascend_and_everything_below_acknowledged_was_answered(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        for _ in range(3):
            await client.queue("jobs").send(b"x")
    assert [(one.sequence, one.acknowledged) for one in broker.asked("SendMessages")] == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize("trouble", [StoreFailed(), Overloaded(), Draining(), OutcomeUnknown()])
async def test_a_broker_in_trouble_is_asked_again_with_the_same_number(broker: FakeBroker, trouble: PenstockError) -> None:
    broker.fault("SendMessages", trouble, trouble)
    async with AsyncClient(broker.url) as client:
        await client.queue("jobs").send(b"once")
    assert {message.sequence for message in broker.asked("SendMessages")} == {1}
    assert len(frames(broker)) == 3


async def test_a_full_queue_is_the_callers_to_decide(broker: FakeBroker) -> None:
    broker.fault("SendMessages", QueueFull("max_messages = 5"))
    async with AsyncClient(broker.url) as client:
        with pytest.raises(QueueFull) as raised:
            await client.queue("jobs").send(b"x")
    assert raised.value.retryable
    assert frames(broker) == [1]


async def test_a_send_that_timed_out_is_never_sent_again(broker: FakeBroker) -> None:
    broker.fault("SendMessages", SILENT)
    async with AsyncClient(broker.url, request_timeout=0.2) as client:
        with pytest.raises(RequestTimeout):
            await client.queue("jobs").send(b"unknown")
        broker.drop_all()
        await client.queue("jobs").send(b"next")
    assert [message.bodies for message in broker.asked("SendMessages")] == [[b"unknown"], [b"next"]]


async def test_sends_that_wait_behind_others_end_within_their_own_time(broker: FakeBroker) -> None:
    broker.fault("SendMessages", *[SILENT] * 4)
    async with AsyncClient(broker.url, request_timeout=1) as client:
        await client.ping()
        results = await send_all(client.queue("orders.fifo"), [b"%d" % number for number in range(1_400)], group="g")
    assert all(isinstance(result, RequestTimeout) for result in results)


async def test_a_cancelled_send_disturbs_no_other_message_of_its_frame(broker: FakeBroker) -> None:
    broker.fault("SendMessages", HOLD)
    async with AsyncClient(broker.url) as client, anyio.create_task_group() as tasks:
        queue = client.queue("orders.fifo")
        tasks.start_soon(queue.send, b"in front")
        await broker.until(lambda: len(frames(broker)) == 1)
        scope = anyio.CancelScope()

        async def cancelled() -> None:
            with scope:
                await queue.send(b"cancelled")

        tasks.start_soon(cancelled)
        await turns()
        tasks.start_soon(queue.send, b"other")
        await turns()
        scope.cancel()
        await turns()
        broker.release_held()
    assert broker.queue("orders.fifo").bodies == [b"in front", b"cancelled", b"other"]


async def test_sends_that_wait_in_merged_frames_are_told_when_the_client_closes(broker: FakeBroker) -> None:
    broker.fault("SendMessages", SILENT)
    outcomes: list[SentMessage | PenstockError] = []
    async with anyio.create_task_group() as tasks, AsyncClient(broker.url) as client:

        async def send() -> None:
            outcomes.extend(await send_all(client.queue("orders.fifo"), [b"%d" % number for number in range(1_200)], group="g"))

        tasks.start_soon(send)
        await broker.until(lambda: len(frames(broker)) == 1)
        await turns()
    assert len(outcomes) == 1_200
    assert all(isinstance(outcome, ClientClosed) for outcome in outcomes)
    assert len(frames(broker)) == 1


async def test_sends_after_the_client_was_closed_say_so(broker: FakeBroker) -> None:
    async with AsyncClient(broker.url) as client:
        queue = client.queue("jobs")
    with pytest.raises(ClientClosed):
        await queue.send(b"x")
    with pytest.raises(ClientClosed):
        await queue.send_many([b"x"])


async def test_without_a_broker_the_first_sends_fail_soon_and_say_where_they_looked() -> None:
    with FakeBroker() as broker:
        url = broker.url
    async with AsyncClient(url, connect_timeout=0.2) as client:
        with pytest.raises(NotConnected) as raised:
            await client.queue("jobs").send(b"x")
    assert url.removeprefix("penstock://") in str(raised.value)
    assert raised.value.advice
