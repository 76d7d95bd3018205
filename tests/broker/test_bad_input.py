"""Anything a peer sends gets a typed error or a closed connection, in bounded memory, and disturbs nobody else."""

from __future__ import annotations

import contextlib
import dataclasses
import tracemalloc
import types
import typing
from collections.abc import AsyncIterator
from typing import Any

import msgpack
import pytest
import trio
from penstock_broker.broker import BrokerOptions
from penstock_broker.queues import limits
from penstock_broker.session import OUTBOX_BYTES, OUTBOX_PAUSE_BYTES, WRITE_STALL_SECONDS, SessionLimits
from penstock_protocol import queue_messages as q
from penstock_protocol import session_messages as s
from penstock_protocol.codec import Message
from penstock_protocol.errors import (
    BatchEmpty,
    BatchTooLarge,
    FrameTooLarge,
    InvalidAttribute,
    InvalidMessage,
    InvalidName,
    InvalidRequest,
    MessageNotInFlight,
    MessageTooLarge,
    PenstockError,
    ProtocolError,
    QueueDoesNotExist,
    ReceiptHandleExpired,
    ReceiptHandleInvalid,
    UnknownOperation,
    VersionNotSupported,
)
from penstock_protocol.frames import DEFAULT_FRAME_BYTES, HEADER, HELLO_FRAME_BYTES, MAGIC, Kind, pack_frame
from penstock_protocol.operations import OPERATIONS, Operation
from penstock_storage.memory import MemoryDisk

from tests.broker.inside import House, Peer, bodies_of, house, make_key, mask_of, on_jumping_clock, receipts_of

TWELVE_HOURS_MS = 12 * 3600 * 1000


@contextlib.asynccontextmanager
async def undisturbed(one: House, *, polls: bool = True) -> AsyncIterator[None]:
    """A healthy client that has sent, consumes and (unless it takes longer than a long poll) waits: at the end it lost
    nothing and noticed nothing."""
    client = await one.client()
    await client.create("healthy")
    await client.create("healthy-pushed")
    await client.create("healthy-empty")
    await client.send("healthy", b"acknowledged")
    memory = dict(one.broker.queues.runtimes)
    waiting = await client.say(q.ReceiveMessages("healthy-empty", 1, wait_ms=limits.MAX_WAIT_MS)) if polls else 0
    consumer = await client.say(q.Consume("healthy-pushed", 10))
    yield
    assert not await client.has_answer(consumer)
    if polls:
        assert not await client.has_answer(waiting)
        await client.send("healthy-empty", b"late")
        assert bodies_of((await client.wait(waiting)).deliveries) == [b"late"]
    await client.send("healthy-pushed", b"pushed")
    assert bodies_of((await client.wait(consumer, Kind.PUSH)).deliveries) == [b"pushed"]
    assert bodies_of(await client.receive("healthy")) == [b"acknowledged"]
    counters = one.broker.counters
    assert not counters.background_errors
    assert "InternalError" not in counters.connections_failed
    assert not [key for key in counters.requests if key[1] == "InternalError"]
    assert all(one.broker.queues.runtimes[log] is runtime for log, runtime in memory.items()), "memory was discarded"


# Bytes that are not the protocol


NOT_THE_PROTOCOL = {
    "HTTP": b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": bytes.fromhex("16030100c5010000c10303"),
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "another version": b"PENSTOK2" + bytes(16),
    "one wrong byte": b"PENSTOX",
    "zeros": bytes(4096),
}


@pytest.mark.parametrize("data", NOT_THE_PROTOCOL.values(), ids=NOT_THE_PROTOCOL.keys())
@on_jumping_clock
async def test_whoever_speaks_something_else_is_told_and_cut_off(data: bytes) -> None:
    async with house() as one, undisturbed(one):
        peer = one.connect()
        await peer.write(data)
        error = await peer.end()
        assert isinstance(error, VersionNotSupported if data.startswith(b"PENSTOK2") else ProtocolError)
        assert one.broker.counters.connections_failed == {error.name: 1}


@pytest.mark.parametrize("length", [HELLO_FRAME_BYTES + 1, DEFAULT_FRAME_BYTES, 2**32 - 1])
@on_jumping_clock
async def test_a_stranger_may_send_small_frames_only(length: int) -> None:
    async with house() as one, undisturbed(one):
        peer = one.connect()
        await peer.write(MAGIC + HEADER.pack(length, Kind.REQUEST, 0, 1, 1))
        assert isinstance(await peer.end(), FrameTooLarge)


@pytest.mark.parametrize("length", [65_537, 2**31, 2**32 - 1])
@on_jumping_clock
async def test_a_frame_beyond_the_limit_is_refused_by_its_header(length: int) -> None:
    async with house(limits=SessionLimits(max_frame_bytes=65_536)) as one, undisturbed(one):
        peer = await one.client()
        await peer.write(HEADER.pack(length, Kind.REQUEST, 0, 24, 9))
        assert isinstance(await peer.end(), FrameTooLarge)
        assert one.broker.counters.connections_failed == {"FrameTooLarge": 1}


@on_jumping_clock
async def test_a_frame_as_large_as_the_limit_is_taken() -> None:
    async with house(limits=SessionLimits(max_frame_bytes=65_536)) as one:
        peer = await one.client()
        await peer.create("jobs")
        overhead = len(q.SendMessages("jobs", [bytes(65_000)]).encode()) - 65_000
        await peer.send("jobs", bytes(65_536 - overhead))
        assert (await peer.describe("jobs")).visible == 1


@pytest.mark.parametrize(
    "header",
    [(0, 0, 3), (5, 0, 3), (255, 0, 3), (Kind.REQUEST, 1, 3), (Kind.REPLY, 0, 3), (Kind.ERROR, 0, 3), (Kind.PUSH, 0, 29)],
    ids=["kind 0", "kind 5", "kind 255", "a flag", "a reply", "an error", "a push"],
)
@on_jumping_clock
async def test_a_frame_that_no_client_may_send_ends_the_connection(header: tuple[int, int, int]) -> None:
    kind, flags, code = header
    async with house() as one, undisturbed(one):
        peer = await one.client()
        await peer.write(HEADER.pack(1, kind, flags, code, 9) + b"\x90")
        assert isinstance(await peer.end(), ProtocolError)


@on_jumping_clock
async def test_a_conversation_cut_at_any_byte_does_only_what_was_complete() -> None:
    async with house() as one, undisturbed(one):
        await (await one.client()).create("jobs")
        sample = one.connect()
        hello = sample.hello_bytes()
        whole = hello + sample.pack(q.SendMessages("jobs", [b"first"]))[1]
        data = whole + sample.pack(q.SendMessages("jobs", [b"second"]))[1]
        await sample.close()
        for length in range(len(data)):
            peer = one.connect()
            await peer.write(data[:length])
            await peer.close()
        await trio.testing.wait_all_tasks_blocked()
        assert len(one.broker.sessions) == 2, "the healthy client's, and that which made the queue"
        assert (await (await one.client()).describe("jobs")).visible == len(data) - len(whole)
        assert not one.broker.counters.connections_failed


@on_jumping_clock
async def test_a_conversation_in_single_bytes_is_understood() -> None:
    async with house() as one:
        await (await one.client()).create("jobs")
        peer = one.connect()
        hello = peer.hello_bytes()
        correlation, request = peer.pack(q.SendMessages("jobs", [b"first"]))
        for byte in hello + request:
            await peer.write(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        await peer.wait(1)
        assert (await peer.wait(correlation)).runs[0].count == 1


# Bodies that are not what they should be


def _bombs() -> dict[str, bytes]:
    many = msgpack.packb([[None] * 16_384] * 900)
    return {
        "an array that claims 4 billion elements": b"\xdd\xff\xff\xff\xff",
        "an array longer than any batch": b"\xdc\xff\xff" + b"\xc0" * 65_535,
        "a string that claims 4 GiB": b"\x91\xdb\xff\xff\xff\xff",
        "a binary that claims 4 GiB": b"\x91\xc6\xff\xff\xff\xff",
        "15 million arrays in each other": b"\x91" * 15_000_000 + b"\xc0",
        "15 million elements": many,
        "a million empty arrays": msgpack.packb([[[]] * 16_000] * 62),
        "a map": b"\x91\x81\xa1a\x01",
        "a map that claims 4 billion entries": b"\x91\xdf\xff\xff\xff\xff",
        "an extension": b"\x91\xd4\x01\x00",
        "an extension that claims 4 GiB": b"\x91\xc9\xff\xff\xff\xff\x01",
        "a timestamp": b"\x91\xd6\xff\x00\x00\x00\x00",
        "the byte that is never used": b"\xc1",
        "a string that is not UTF-8": b"\x91\xa2\xff\xfe",
        "a string with half a surrogate": b"\x91\xa3\xed\xa0\x80",
        "no array": b"\x2a",
        "two bodies": b"\x90\x90",
        "half a body": b"\x92\xa1a",
        "nothing": b"",
    }


BOMBS = _bombs()


@pytest.mark.parametrize("name", BOMBS)
@on_jumping_clock
async def test_a_body_beyond_the_limits_of_msgpack_is_refused_in_bounded_memory(name: str) -> None:
    body = BOMBS[name]
    async with house() as one, undisturbed(one):
        peer = await one.client()
        tracemalloc.start()
        try:
            await peer.write(pack_frame(Kind.REQUEST, 24, 9, body))
            with pytest.raises(ProtocolError):
                await peer.wait(9)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        # The frame itself is held as it is written, read, buffered and cut out; what is decoded adds almost nothing.
        assert peak < 5 * len(body) + 16 * 2**20
        assert await peer.call(s.Empty(), "Ping") == s.Empty(), "the connection goes on"


WRONG_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**63,
    2**64 - 1,
    1.5,
    "text",
    b"binary",
    [],
    [[]],
    [None],
    ["text"],
    [b"x"],
    [7],
)


def _fits(hint: Any, value: Any) -> bool:
    """Whether the annotation allows the value: written down once more, apart from the codec."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(option, value) for option in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(arguments[0], item) for item in value)
    if dataclasses.is_dataclass(hint):
        return isinstance(value, list) and _is_message(hint, value)
    if hint is type(None):
        return value is None
    if hint is int:
        return type(value) is int and 0 <= value < 2**63
    return type(value) is hint


def _is_message(cls: Any, values: list[Any]) -> bool:
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)
    required = sum(field.default is dataclasses.MISSING for field in fields)
    return len(values) >= required and all(_fits(hints[field.name], value) for field, value in zip(fields, values, strict=False))


def _some(hint: Any) -> Any:
    """A value that fits."""
    for value in (*WRONG_VALUES, ["", ""], ["", 0], ["role"], 7, [["", ""]], [["", 0]], [[b"", 0, b""]]):
        if _fits(hint, value):
            return value
    raise AssertionError(hint)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@on_jumping_clock
async def test_a_field_of_the_wrong_type_is_named(operation: Operation) -> None:
    async with house() as one, undisturbed(one):
        fields = dataclasses.fields(operation.request)  # type: ignore[arg-type]
        hints = typing.get_type_hints(operation.request)
        tried = 0
        for place, field in enumerate(fields):
            for value in WRONG_VALUES:
                if _fits(hints[field.name], value):
                    continue
                values = [_some(hints[other.name]) for other in fields]
                values[place] = value
                tried += 1
                await _is_refused(one, operation, values, field.name)
            if field.default is dataclasses.MISSING:
                await _is_refused(
                    one, operation, [_some(hints[other.name]) for other in fields[:place]], f"{field.name} is missing"
                )
        assert tried or not fields


async def _is_refused(one: House, operation: Operation, values: list[Any], names: str) -> None:
    in_handshake = operation.name in ("Hello", "Authenticate")
    peer = one.connect() if in_handshake else await one.client()
    body = msgpack.packb(values)
    if operation.name == "Authenticate":
        return  # its state needs a key: see test_access
    await peer.write((MAGIC if in_handshake else b"") + pack_frame(Kind.REQUEST, operation.code, 9, body))
    if in_handshake or operation.one_way:
        error = await peer.end()
    else:
        with pytest.raises(InvalidRequest) as caught:
            await peer.wait(9)
        error = caught.value
        await peer.close()
    assert isinstance(error, InvalidRequest)
    nested = ("Setting", "Tag", "Receipt", "Attribute", "Checkpoint")
    assert names in str(error) or any(f"{one}." in str(error) for one in nested)


@on_jumping_clock
async def test_an_unknown_operation_is_refused_and_the_connection_goes_on() -> None:
    async with house() as one, undisturbed(one):
        peer = await one.client()
        known = {operation.code for operation in OPERATIONS}
        for code in {0, 8, 15, 35, 63, 64, 255, 256, 65_535} - known:
            await peer.write(pack_frame(Kind.REQUEST, code, 1000 + code, b"\xc1 not even msgpack"))
            with pytest.raises(UnknownOperation, match=str(code)):
                await peer.wait(1000 + code)
        assert await peer.call(s.Empty(), "Ping") == s.Empty()
        assert not one.broker.counters.connections_failed


# The order of things


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one.name != "Hello"], ids=lambda operation: operation.name)
@on_jumping_clock
async def test_nothing_is_done_before_the_hello(operation: Operation) -> None:
    async with house() as one, undisturbed(one):
        peer = one.connect()
        await peer.write(MAGIC + pack_frame(Kind.REQUEST, operation.code, 1, b"\x91\xa4jobs"))
        assert isinstance(await peer.end(), ProtocolError)
        assert len(one.broker.catalog) == 3


@pytest.mark.parametrize(
    "operation", [one for one in OPERATIONS if one.name != "Authenticate"], ids=lambda operation: operation.name
)
@on_jumping_clock
async def test_nothing_is_done_between_hello_and_proof(operation: Operation) -> None:
    disk = MemoryDisk()
    key_id, _ = make_key(disk, "admin")
    async with house(disk) as one:
        peer = one.connect()
        await peer.hello(key_id=key_id)
        await peer.write(pack_frame(Kind.REQUEST, operation.code, 2, b"\x91\xa4jobs"))
        assert isinstance(await peer.end(), ProtocolError)
        assert len(one.broker.catalog) == 0


@pytest.mark.parametrize("name", ["Hello", "Authenticate"])
@on_jumping_clock
async def test_a_second_handshake_ends_that_connection_only(name: str) -> None:
    async with house() as one, undisturbed(one):
        peer = await one.client()
        again: Message = s.Hello("again", bytes(16)) if name == "Hello" else s.Authenticate(bytes(32))
        await peer.say(again)
        assert isinstance(await peer.end(), ProtocolError)


@pytest.mark.parametrize(
    "fields",
    [
        {"producer": b""},
        {"producer": bytes(15)},
        {"producer": bytes(17)},
        {"account": "a" * 256},
        {"account": "a\0b"},
        {"account": "no spaces"},
        {"region": "r" * 256},
        {"region": "\0"},
        {"region": "../.."},
    ],
    ids=repr,
)
@on_jumping_clock
async def test_a_hello_out_of_range_is_refused(fields: dict[str, Any]) -> None:
    async with house() as one, undisturbed(one):
        peer = one.connect()
        await peer.write(peer.hello_bytes(**fields))
        error = await peer.end()
        assert isinstance(error, InvalidRequest)
        assert next(iter(fields)) in str(error)


@on_jumping_clock
async def test_a_correlation_in_use_or_zero_ends_the_connection() -> None:
    async with house() as one, undisturbed(one):
        for correlation, again in ((7, 7), (0, None)):
            peer = await one.client()
            body = q.ReceiveMessages("healthy-empty", 1, wait_ms=1_000).encode()
            await peer.write(pack_frame(Kind.REQUEST, 25, correlation, body))
            if again is not None:
                await peer.write(pack_frame(Kind.REQUEST, 3, again, b"\x90"))
            assert isinstance(await peer.end(), ProtocolError)


@on_jumping_clock
async def test_what_names_no_request_in_flight_is_ignored() -> None:
    async with house() as one, undisturbed(one):
        peer = await one.client()
        await peer.create("jobs")
        ping = await peer.say(s.Empty(), "Ping")
        await peer.wait(ping)
        for correlation in (0, ping, 12_345, 2**63 - 1):
            await peer.say(s.Cancel(correlation))
            await peer.say(q.Credit(correlation, 5))
        waiting = await peer.say(q.ReceiveMessages("jobs", 1, wait_ms=1_000))
        await peer.say(q.Credit(waiting, 5))
        assert (await peer.wait(waiting)).deliveries == []
        assert await peer.call(s.Empty(), "Ping") == s.Empty()


# Values out of range


BAD_NAMES = [
    "",
    ".fifo",
    "a" * 81,
    "a" * 76 + ".fifo",
    "with space",
    "tab\t",
    "dot.dot",
    "sl/ash",
    "umlaut-ü",
    "nul\0",
    "a\n",
    "x.FIFO",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
@on_jumping_clock
async def test_a_name_that_breaks_the_rules_is_refused(name: str) -> None:
    async with house() as one, undisturbed(one):
        peer = await one.client()
        with pytest.raises(InvalidName):
            await peer.create(name)
        for message, operation in (
            (q.QueueName(name), "DescribeQueue"),
            (q.QueueName(name), "DeleteQueue"),
            (q.SendMessages(name, [b"x"]), None),
            (q.ReceiveMessages(name, 1), None),
            (q.Consume(name, 1), None),
        ):
            with pytest.raises(QueueDoesNotExist):
                await peer.call(message, operation)
        assert len(one.broker.catalog) == 3


@pytest.mark.parametrize("name", ["a", "a" * 80, "a" * 75 + ".fifo", "A_b-9", "9", "-"])
@on_jumping_clock
async def test_a_name_within_the_rules_is_taken(name: str) -> None:
    async with house() as one:
        assert (await (await one.client()).create(name)).queue == name


BAD_SETTINGS: list[tuple[str, Any]] = [
    ("visibility_timeout_ms", TWELVE_HOURS_MS + 1),
    ("visibility_timeout_ms", "30"),
    ("visibility_timeout_ms", True),
    ("delay_ms", limits.MAX_DELAY_MS + 1),
    ("retention_ms", 59_999),
    ("retention_ms", 14 * 24 * 3600 * 1000 + 1),
    ("max_message_bytes", 1_023),
    ("max_message_bytes", 1_048_577),
    ("receive_wait_ms", 20_001),
    ("dead_letter_queue", "not a name"),
    ("dead_letter_queue", "does-not-exist"),
    ("dead_letter_queue", "jobs"),
    ("dead_letter_queue", 5),
    ("max_receive_count", 0),
    ("max_receive_count", 1_001),
    ("redrive_allow", "sometimes"),
    ("redrive_sources", ["jobs"]),
    ("redrive_sources", [f"q{number}" for number in range(11)]),
    ("redrive_sources", ["not a name"]),
    ("redrive_sources", "jobs"),
    ("content_based_deduplication", True),
    ("deduplication_scope", "message_group"),
    ("fifo_throughput_limit", "per_message_group"),
    ("max_in_flight", 0),
    ("max_in_flight", 10_000_001),
    ("max_messages", 2**62 + 1),
    ("max_bytes", 2**62 + 1),
    ("no_such_attribute", 1),
    ("", 1),
]


@pytest.mark.parametrize("setting", BAD_SETTINGS, ids=lambda setting: f"{setting[0]}={str(setting[1])[:30]}")
@on_jumping_clock
async def test_an_attribute_out_of_range_is_named_and_changes_nothing(setting: tuple[str, Any]) -> None:
    name, value = setting
    async with house() as one, undisturbed(one):
        peer = await one.client()
        with pytest.raises(InvalidAttribute) as caught:
            await peer.create("jobs", **{name: value})
        assert name in str(caught.value)
        with pytest.raises(QueueDoesNotExist):
            await peer.describe("jobs")
        before = await peer.create("jobs")
        with pytest.raises(InvalidAttribute) as caught:
            await peer.call(q.SetQueueSettings("jobs", [q.Setting("delay_ms", 5), q.Setting(name, value)]))
        assert name in str(caught.value)
        assert (await peer.describe("jobs")).settings == before.settings


@pytest.mark.parametrize(
    "tags",
    [[q.Tag("", "v")], [q.Tag("k" * 129, "v")], [q.Tag("k", "v" * 257)], [q.Tag(f"k{number}", "") for number in range(51)]],
    ids=["no key", "long key", "long value", "51 tags"],
)
@on_jumping_clock
async def test_a_tag_out_of_range_is_refused(tags: list[q.Tag]) -> None:
    async with house() as one, undisturbed(one):
        peer = await one.client()
        with pytest.raises(InvalidAttribute):
            await peer.create("jobs", tags)
        await peer.create("jobs", [q.Tag("kept", "1")])
        with pytest.raises(InvalidAttribute):
            await peer.call(q.TagQueue("jobs", tags))
        assert (await peer.describe("jobs")).tags == [q.Tag("kept", "1")]


BAD_REQUESTS: list[tuple[Message, type[PenstockError]]] = [
    (q.SendMessages("jobs", []), BatchEmpty),
    (q.SendMessages("jobs", [b""] * 10_001), BatchTooLarge),
    (q.SendMessages("jobs", [b"a", b"b"], groups=["g"]), InvalidRequest),
    (q.SendMessages("jobs", [b"a"], delays_ms=[]), InvalidRequest),
    (q.SendMessages("jobs", [b"a"], attributes=[None, None]), InvalidRequest),
    (q.SendMessages("jobs", [b"a"], deduplication_ids=["a", "b"]), InvalidRequest),
    (q.SendMessages("jobs", [b"a"], traces=[]), InvalidRequest),
    (q.ReceiveMessages("jobs", 0), InvalidRequest),
    (q.ReceiveMessages("jobs", 10_001), InvalidRequest),
    (q.ReceiveMessages("jobs", 1, wait_ms=20_001), InvalidRequest),
    (q.ReceiveMessages("jobs", 1, visibility_timeout_ms=TWELVE_HOURS_MS + 1), InvalidRequest),
    (q.ReceiveMessages("jobs", 2**62, wait_ms=20_000), InvalidRequest),
    (q.DeleteMessages("jobs", []), BatchEmpty),
    (q.ChangeVisibility("jobs", [], []), BatchEmpty),
    (q.ChangeVisibility("jobs", [q.Receipt(bytes(16), 0, b"\1")], []), InvalidRequest),
    (q.ChangeVisibility("jobs", [q.Receipt(bytes(16), 0, b"\1")], [TWELVE_HOURS_MS + 1]), InvalidRequest),
    (q.Consume("jobs", 0), InvalidRequest),
    (q.Consume("jobs", 100_001), InvalidRequest),
    (q.Consume("jobs", 1, visibility_timeout_ms=TWELVE_HOURS_MS + 1), InvalidRequest),
    (q.PeekMessages("jobs", "asleep"), InvalidRequest),
    (q.PeekMessages("jobs", limit=0), InvalidRequest),
    (q.PeekMessages("jobs", limit=1_001), InvalidRequest),
    (q.PeekMessages("jobs", after=b"not a cursor"), InvalidRequest),
    (q.ListQueues(limit=0), InvalidRequest),
    (q.ListQueues(limit=10_001), InvalidRequest),
    (q.StartMoveTask("jobs", "jobs"), PenstockError),
    (q.MoveTaskId("move-1"), PenstockError),
    (s.CreateKey("emperor"), InvalidRequest),
    (s.CreateKey("admin", "x" * 201), InvalidRequest),
    (s.CreateKey("admin", "nul \0"), InvalidRequest),
    (s.KeyId("PSKNOTHING"), PenstockError),
]


@pytest.mark.parametrize("case", BAD_REQUESTS, ids=lambda case: str(case[0])[:70])
@on_jumping_clock
async def test_a_value_out_of_range_is_refused_and_changes_nothing(case: tuple[Message, type[PenstockError]]) -> None:
    message, expected = case
    async with house() as one, undisturbed(one):
        peer = await one.client()
        await peer.create("jobs")
        await peer.send("jobs", b"kept")
        with pytest.raises(expected) as caught:
            await peer.call(message, "CancelMoveTask" if isinstance(message, q.MoveTaskId) else None)
        assert caught.value.fault.value == "caller"
        assert str(caught.value)
        assert bodies_of(await peer.receive("jobs")) == [b"kept"]
        assert len(one.broker.keyring) == 0


@on_jumping_clock
async def test_a_cursor_from_anywhere_is_harmless() -> None:
    async with house() as one, undisturbed(one):
        peer = await one.client()
        await peer.create("jobs")
        await peer.send("jobs", *[b"%d" % number for number in range(20)])
        for after in (b"\xff" * 18, b"\0" * 18, b"\0" * 8 + b"\xff" * 10, bytes(range(18))):
            reply = await peer.call(q.PeekMessages("jobs", limit=5, after=after))
            assert len(reply.messages) <= 5


# Receipts


@on_jumping_clock
async def test_a_forged_receipt_deletes_nothing() -> None:
    async with house() as one, undisturbed(one):
        peer = await one.client()
        await peer.create("jobs")
        await peer.send("jobs", *[b"%d" % number for number in range(10)])
        taken = await peer.receive("jobs", 10)
        real = taken[0].receipt
        flipped = [real[:place] + bytes([real[place] ^ 1]) + real[place + 1 :] for place in range(len(real))]
        for forged in (b"", b"\0" * 16, b"\xff" * 16, real[:-1], real + b"\0", real * 1000, *flipped):
            receipt = q.Receipt(forged, taken[0].first, mask_of(*range(10)))
            (failure,) = (await peer.call(q.DeleteMessages("jobs", [receipt]))).failures
            assert (failure.entry, failure.code) == (0, ReceiptHandleInvalid.code)
            (failure,) = (await peer.call(q.ChangeVisibility("jobs", [receipt], [0]))).failures
            assert failure.code == ReceiptHandleInvalid.code
        description = await peer.describe("jobs")
        assert (description.visible, description.in_flight) == (0, 10)


@on_jumping_clock
async def test_a_receipt_is_good_for_its_own_queue_only() -> None:
    async with house() as one, undisturbed(one):
        peer = await one.client()
        for name in ("jobs", "others"):
            await peer.create(name)
            await peer.send(name, b"kept")
        (receipt,) = receipts_of(await peer.receive("jobs"))
        await peer.receive("others")
        for message in (q.DeleteMessages("others", [receipt]), q.ChangeVisibility("others", [receipt], [0])):
            (failure,) = (await peer.call(message)).failures
            assert failure.code == ReceiptHandleInvalid.code
        assert (await peer.describe("others")).in_flight == 1


@on_jumping_clock
async def test_a_receipt_is_no_good_for_a_queue_of_the_same_name_made_anew() -> None:
    async with house() as one:
        peer = await one.client()
        await peer.create("jobs")
        await peer.send("jobs", b"old")
        (receipt,) = receipts_of(await peer.receive("jobs"))
        await peer.call(q.QueueName("jobs"), "DeleteQueue")
        await peer.create("jobs")
        await peer.send("jobs", b"new")
        (failure,) = (await peer.call(q.DeleteMessages("jobs", [receipt]))).failures
        assert failure.code == ReceiptHandleInvalid.code


@on_jumping_clock
async def test_a_stale_receipt_does_not_delete_what_another_holds() -> None:
    async with house() as one, undisturbed(one):
        peer = await one.client()
        await peer.create("jobs")
        await peer.send("jobs", b"once")
        (stale,) = receipts_of(await peer.receive("jobs", visibility_timeout_ms=1_000))
        await trio.sleep(1.1)
        (fresh,) = receipts_of(await peer.receive("jobs"))
        (failure,) = (await peer.call(q.DeleteMessages("jobs", [stale]))).failures
        assert failure.code == ReceiptHandleExpired.code
        (failure,) = (await peer.call(q.ChangeVisibility("jobs", [stale], [0]))).failures
        assert failure.code == MessageNotInFlight.code
        assert (await peer.describe("jobs")).in_flight == 1
        assert (await peer.call(q.DeleteMessages("jobs", [fresh]))).failures == []
        assert (await peer.call(q.DeleteMessages("jobs", [fresh]))).failures == [], "what is gone is gone: success"


@on_jumping_clock
async def test_a_mask_beyond_the_delivery_deletes_only_what_was_received() -> None:
    async with house() as one, undisturbed(one):
        peer = await one.client()
        await peer.create("jobs")
        await peer.send("jobs", b"mine", b"waiting")
        (delivery,) = await peer.receive("jobs", 1)
        (failure,) = (
            await peer.call(q.DeleteMessages("jobs", [q.Receipt(delivery.receipt, delivery.first, b"\xff" * 65_536)]))
        ).failures
        assert failure.code == ReceiptHandleExpired.code
        assert failure.mask == mask_of(1)
        assert bodies_of(await peer.receive("jobs")) == [b"waiting"]
        elsewhere = q.Receipt(delivery.receipt, 2**62, b"\1")
        assert (await peer.call(q.DeleteMessages("jobs", [elsewhere]))).failures == []


# Batches


def _attribute(name: str = "a", kind: str = "String", value: str | bytes = "v") -> list[q.Attribute]:
    return [q.Attribute(name, kind, value)]


BAD_ENTRIES: dict[str, tuple[dict[str, Any], type[PenstockError]]] = {
    "too large": ({"body": bytes(1_025)}, MessageTooLarge),
    "too large with its attributes": ({"body": bytes(1_000), "attributes": _attribute(value="v" * 100)}, MessageTooLarge),
    "eleven attributes": ({"attributes": [q.Attribute(f"a{number}", "String", "v") for number in range(11)]}, InvalidMessage),
    "an attribute twice": ({"attributes": _attribute() * 2}, InvalidMessage),
    "an attribute without name": ({"attributes": _attribute("")}, InvalidMessage),
    "a long name": ({"attributes": _attribute("n" * 257)}, InvalidMessage),
    "a dot in front": ({"attributes": _attribute(".a")}, InvalidMessage),
    "a dot at the end": ({"attributes": _attribute("a.")}, InvalidMessage),
    "two dots": ({"attributes": _attribute("a..b")}, InvalidMessage),
    "a name of Amazon's": ({"attributes": _attribute("AWS.a")}, InvalidMessage),
    "another name of Amazon's": ({"attributes": _attribute("amazon.a")}, InvalidMessage),
    "a space in a name": ({"attributes": _attribute("a b")}, InvalidMessage),
    "an unknown type": ({"attributes": _attribute(kind="Float")}, InvalidMessage),
    "an empty value": ({"attributes": _attribute(value="")}, InvalidMessage),
    "text as binary": ({"attributes": _attribute(kind="Binary")}, InvalidMessage),
    "binary as text": ({"attributes": _attribute(value=b"v")}, InvalidMessage),
    "no number": ({"attributes": _attribute(kind="Number", value="twelve")}, InvalidMessage),
    "infinity": ({"attributes": _attribute(kind="Number", value="-inf")}, InvalidMessage),
    "a delay beyond measure": ({"delays_ms": limits.MAX_DELAY_MS + 1}, InvalidMessage),
    "a deduplication id": ({"deduplication_ids": "one"}, InvalidMessage),
    "an empty group": ({"groups": ""}, InvalidMessage),
    "a long group": ({"groups": "g" * 129}, InvalidMessage),
    "a group with a space": ({"groups": "a b"}, InvalidMessage),
    "a group with a line break": ({"groups": "a\n"}, InvalidMessage),
    "a long trace": ({"traces": "t" * 1_025}, InvalidMessage),
}
COLUMNS = ("attributes", "delays_ms", "groups", "deduplication_ids", "traces")


@on_jumping_clock
async def test_each_entry_of_a_batch_of_sends_answers_for_itself() -> None:
    async with house() as one, undisturbed(one):
        peer = await one.client()
        await peer.create("jobs", max_message_bytes=1_024)
        bodies: list[bytes] = []
        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        for entry, _ in BAD_ENTRIES.values():
            for place, values in enumerate(({}, entry)):
                bodies.append(values.get("body", b"good" if place == 0 else b"bad"))
                for name in COLUMNS:
                    columns[name].append(values.get(name))
        reply = await peer.send("jobs", *bodies, **columns)
        expected = [(2 * place + 1, error.code) for place, (_, error) in enumerate(BAD_ENTRIES.values())]
        assert [(failure.index, failure.code) for failure in reply.failures] == expected
        assert all(failure.text for failure in reply.failures)
        assert sum(run.count for run in reply.runs) == len(BAD_ENTRIES)
        assert bodies_of(await peer.receive("jobs", 100)) == [b"good"] * len(BAD_ENTRIES)


@on_jumping_clock
async def test_each_entry_of_a_fifo_batch_answers_for_itself() -> None:
    async with house() as one, undisturbed(one):
        peer = await one.client()
        await peer.create("orders.fifo")
        reply = await peer.send(
            "orders.fifo",
            *[b"%d" % number for number in range(5)],
            groups=["g", None, "g", "g", "g"],
            deduplication_ids=["0", "1", None, "3", "i" * 129],
            delays_ms=[None, None, None, 1_000, None],
        )
        assert [(failure.index, failure.code) for failure in reply.failures] == [
            (place, InvalidMessage.code) for place in (1, 2, 3, 4)
        ]
        assert bodies_of(await peer.receive("orders.fifo")) == [b"0"]


@on_jumping_clock
async def test_each_receipt_of_a_batch_answers_for_itself() -> None:
    async with house() as one, undisturbed(one):
        peer = await one.client()
        await peer.create("jobs")
        await peer.send("jobs", b"0", b"1", b"2")
        stale = receipts_of(await peer.receive("jobs", 1, visibility_timeout_ms=0))[0]
        good = receipts_of(await peer.receive("jobs", 3))
        batch = [good[0], q.Receipt(bytes(16), 0, b"\1"), stale, good[1]]
        failures = (await peer.call(q.ChangeVisibility("jobs", batch, [60_000] * 4))).failures
        assert [(failure.entry, failure.code) for failure in failures] == [
            (1, ReceiptHandleInvalid.code),
            (2, MessageNotInFlight.code),
        ]
        failures = (await peer.call(q.DeleteMessages("jobs", batch))).failures
        assert (1, ReceiptHandleInvalid.code) in [(failure.entry, failure.code) for failure in failures]
        assert {failure.entry for failure in failures} <= {1, 2}
        assert (await peer.describe("jobs")).in_flight == 1


# Too much of everything


@on_jumping_clock
async def test_beyond_its_requests_in_flight_a_connection_is_not_read() -> None:
    async with house(limits=SessionLimits(max_in_flight=4)) as one, undisturbed(one):
        peer = await one.client()
        await peer.create("jobs")
        waiting = [await peer.say(q.ReceiveMessages("jobs", 1, wait_ms=1_000 * (place + 1))) for place in range(4)]
        ping = await peer.say(s.Empty(), "Ping")
        assert not await peer.has_answer(ping)
        await peer.wait(waiting[0])
        await peer.wait(ping)
        for correlation in waiting[1:]:
            assert (await peer.wait(correlation)).deliveries == []


@on_jumping_clock
async def test_no_more_than_ten_thousand_wait_on_one_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_WAITERS", 3)
    async with house() as one:
        peer = await one.client()
        await peer.create("jobs")
        waiting = [await peer.say(q.ReceiveMessages("jobs", 1, wait_ms=20_000)) for _ in range(2)]
        await peer.say(q.Consume("jobs", 1))
        with pytest.raises(PenstockError, match="3 receives and consumers wait"):
            await peer.call(q.ReceiveMessages("jobs", 1, wait_ms=20_000))
        with pytest.raises(PenstockError, match="3 receives and consumers wait"):
            await peer.call(q.Consume("jobs", 1))
        await peer.say(s.Cancel(waiting[0]))
        await peer.say(q.ReceiveMessages("jobs", 1, wait_ms=20_000))
        await peer.send("jobs", b"x")
        assert bodies_of((await peer.wait(waiting[1])).deliveries) == [b"x"]


async def _fill(one: House, queue: str, megabytes: int) -> None:
    client = await one.client()
    await client.create(queue)
    for _ in range(megabytes):
        await client.send(queue, bytes(2**20))
    await client.close()


@on_jumping_clock
async def test_a_client_that_never_reads_is_cut_off_and_its_messages_are_not_lost() -> None:
    async with house() as one, undisturbed(one, polls=False):
        assert (WRITE_STALL_SECONDS, OUTBOX_PAUSE_BYTES) == (30, 8 * 2**20)
        await _fill(one, "jobs", 40)
        peer = one.connect(lockstep=True)
        await _open_in_lockstep(peer)
        session = next(session for session in one.broker.sessions if session._hello and session._hello.client == peer.name)
        largest = 0
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(WRITE_STALL_SECONDS + 1):
            while True:
                await peer.say(q.ReceiveMessages("jobs", 1, max_bytes=2**20))
                largest = max(largest, session._outbox_bytes)
        assert OUTBOX_PAUSE_BYTES < largest < OUTBOX_PAUSE_BYTES + 4 * 2**20, "it was not read any more"
        assert one.broker.counters.connections_failed == {"SlowConsumer": 1}
        await trio.testing.wait_all_tasks_blocked()
        assert session not in one.broker.sessions
        await trio.sleep(30)
        assert (await (await one.client()).describe("jobs")).visible == 40


@on_jumping_clock
async def test_a_client_that_asks_for_everything_at_once_and_never_reads_is_cut_off_sooner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("penstock_broker.session.OUTBOX_BYTES", 4 * 2**20)
    assert OUTBOX_BYTES == 64 * 2**20
    async with house() as one:
        await _fill(one, "jobs", 8)
        async with undisturbed(one):
            peer = one.connect(lockstep=True)
            await _open_in_lockstep(peer)
            one.threads.hold("commit")
            await peer.write(b"".join(peer.pack(q.ReceiveMessages("jobs", 1, max_bytes=2**20))[1] for _ in range(8)))
            await trio.testing.wait_all_tasks_blocked()
            one.threads.release("commit")
            await trio.testing.wait_all_tasks_blocked()
            assert one.broker.counters.connections_failed == {"SlowConsumer": 1}
        await trio.sleep(30)
        assert (await (await one.client()).describe("jobs")).visible == 8


async def _open_in_lockstep(peer: Peer) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.write, peer.hello_bytes())
        await peer.wait(1)


@on_jumping_clock
async def test_the_limits_of_the_hello_are_those_that_hold() -> None:
    limits_ = SessionLimits(max_frame_bytes=2**20, max_in_flight=7)
    async with house(options=BrokerOptions(session=limits_, account="one", region="two")) as one:
        reply = await one.connect().hello()
        assert (reply.max_frame_bytes, reply.max_in_flight_requests) == (2**20, 7)
        assert (reply.account, reply.region, reply.challenge) == ("one", "two", b"")
