"""What a body may be: exactly one array of plain values, bounded before it is built. Anything else is a typed error."""

from __future__ import annotations

import contextlib
import random
import tracemalloc
from typing import Any

import msgpack
import pytest
from penstock_protocol.codec import MAX_ARRAY_LENGTH, MAX_ELEMENTS, MAX_INTEGER, MAX_REPLY_ELEMENTS, Message, decode
from penstock_protocol.errors import InvalidRequest, ProtocolError
from penstock_protocol.frames import HELLO_FRAME_BYTES
from penstock_protocol.queue_messages import Attribute, Credit, Delivery, ReceiveMessages, ReceiveReply, SendMessages, Setting
from penstock_protocol.session_messages import CreateKey, Empty, Hello, KeyId

MIB = 2**20


def packed(*values: Any) -> bytes:
    return msgpack.packb(list(values))  # type: ignore[no-any-return]


def peak_bytes(body: bytes) -> int:
    """The most memory that refusing this body takes."""
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decode(body)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def elements_of(value: Any) -> int:
    """What an array counts against the limit."""
    return 1 + len(value) + sum(map(elements_of, value)) if isinstance(value, list) else 0


def array_of(length: int) -> bytes:
    return b"\xdc" + length.to_bytes(2, "big")


LONG = array_of(MAX_ARRAY_LENGTH)
COUNTED = b"\x92" + array_of(600) + bytes(600)
"""The beginning of a body with an array so long that everything is counted first; one more value belongs to it."""


def test_cve_2026_67414_many_small_arrays() -> None:
    """Many small legal arrays expand a hundredfold."""
    for one in (b"\x90", b"\x91\x90", b"\x91\xc0", array_of(0), b"\xdd\x00\x00\x00\x00"):
        body = array_of(120) + (array_of(1024) + one * 1024) * 120
        assert peak_bytes(body) < 16 * MIB


def test_cve_2026_67414_arrays_that_are_begun_and_never_filled() -> None:
    """Room for an array is made when it begins: three bytes became 131,072, as often as arrays nest."""
    for times in (10, 16, 17, 100, HELLO_FRAME_BYTES // 3):
        assert peak_bytes(LONG * times) < 4 * MIB
        assert peak_bytes((b"\x91" + LONG) * (times // 2)) < 4 * MIB
    for length in (16, 256, 512, 513, 1024, 4096):
        assert peak_bytes(array_of(length) * (HELLO_FRAME_BYTES // 3)) < 5 * MIB


@pytest.mark.parametrize("value", [b"\xa2ab", b"\xcd\x7f\x00", b"\xcb\x40" + bytes(7), b"\xc4\x02ab"])
def test_elements_are_counted_before_the_arrays_that_hold_them_are_complete(value: bytes) -> None:
    """Full arrays, each inside the last place of the one before: none is complete before all are."""
    level = LONG + value * (MAX_ARRAY_LENGTH - 1)
    assert peak_bytes(level * 40 + b"\xc0") < 16 * MIB
    level = array_of(512) + value * 511
    assert peak_bytes(level * 1023 + b"\xc0") < 40 * MIB


def test_arrays_that_texts_and_binaries_seem_to_hold_do_no_harm() -> None:
    bodies = [b"\xdc" * 200, b"\xdd\xff\xff\xff\xff" * 40, b"\xdc\xff"] * 300
    assert decode(packed("q", bodies, ["\u0712" * 100])) == ["q", bodies, ["\u0712" * 100]]


def test_the_count_before_building_agrees_with_the_count_while_building() -> None:
    """With and without the pass that counts first, the same is taken and the same refused."""
    chance = random.Random(7)

    def value(depth: int) -> Any:
        kinds: list[Any] = [0, 1, 2**7, 2**15, 2**31, 2**63, -1, -(2**7), -(2**15), -(2**31), -(2**63), True, None, 1.5]
        kinds += ["", "x" * 31, "x" * 32, "ü" * 200, "x" * 70_000, b"", b"\xdc" * 300, b"x" * 70_000]
        if depth and chance.random() < 0.5:
            return [value(depth - 1) for _ in range(chance.choice([0, 1, 15, 16, 20]))]
        return chance.choice(kinds)

    for _ in range(100):
        values = [value(2) for _ in range(3)]
        plain, counted = packed(*values), packed(*values, [0] * 600)
        assert decode(counted) == [*decode(plain), [0] * 600]
        for body in (plain, counted):
            with pytest.raises(ProtocolError):
                decode(body[:-1])
            with pytest.raises(ProtocolError):
                decode(body + b"\xc0")


@pytest.mark.parametrize(
    "value",
    [
        *(bytes([tag]) + b"\xdd" * width for tag, width in zip(range(0xCA, 0xD4), (4, 8, 1, 2, 4, 8, 1, 2, 4, 8), strict=True)),
        *(bytes([0xA0 + length]) + b"a" * length for length in range(32)),
        *(head + b"\xdd" * 200 for head in (b"\xc4\xc8", b"\xc5\x00\xc8", b"\xc6\x00\x00\x00\xc8")),
        *(head + b"\x5d" * 200 for head in (b"\xd9\xc8", b"\xda\x00\xc8", b"\xdb\x00\x00\x00\xc8")),
        *(bytes([tag]) for tag in (0x00, 0x7F, 0xC0, 0xC2, 0xC3, 0xE0, 0xFF)),
    ],
    ids=lambda value: value[:2].hex(),
)
def test_counting_steps_over_every_kind_of_value(value: bytes) -> None:
    """A step that is too short would find the beginning of a huge array, one that is too long the end."""
    assert decode(COUNTED + value)[1] == decode(b"\x91" + value)[0]
    trap = b"\x93" + COUNTED[1:] + value + array_of(1) + value
    assert len(decode(trap)[2]) == 1


def test_exactly_the_limit_of_elements_is_taken_and_one_more_is_refused_with_short_arrays_alone() -> None:
    group = [[1] * 249] * 100
    values: list[Any] = [group, group, group, [[1] * 249] * 97, []]
    rest = MAX_ELEMENTS - elements_of(values)
    assert 0 < rest < 512
    values[-1] = [1] * rest
    assert decode(packed(*values))
    values[-1] = [1] * (rest + 1)
    with pytest.raises(ProtocolError, match="more than 100000 array elements"):
        decode(packed(*values))


@pytest.mark.parametrize("per_array", [999, 15_999, 9])
def test_exactly_the_limit_of_elements_is_taken_and_one_more_is_refused(per_array: int) -> None:
    """Counted before building, while building, and both."""
    count = min(MAX_ELEMENTS // (per_array + 2) - 1, 5_000)
    arrays = [[1] * per_array for _ in range(count)]
    left = MAX_ELEMENTS - (per_array + 1) * count
    while left > MAX_ARRAY_LENGTH:
        arrays.append([1] * 9_999)
        left -= 10_000
    rest = left - (len(arrays) + 1 + 1) - 1  # the body is an array, too, and so is the last one
    assert decode(packed(*arrays, [1] * rest))
    with pytest.raises(ProtocolError, match="more than 100000 array elements"):
        decode(packed(*arrays, [1] * (rest + 1)))
    assert decode(packed(*arrays, [1] * (rest + 1)), MAX_REPLY_ELEMENTS)


def test_the_largest_receive_fits_into_a_reply() -> None:
    """10,000 messages with ten attributes each, from as many segments."""
    attributes = [Attribute(f"name-{index}", "String", "value") for index in range(10)]
    one: list[str | None] = ["x"]
    delivery = Delivery(bytes(16), 1, [0], 1, 1, [1], [b"x"], [attributes], one, one, one, one, [bytes(16)])
    body = ReceiveReply(1, [delivery] * 10_000, 1).encode()
    assert len(decode(body, MAX_REPLY_ELEMENTS)[1]) == 10_000


def test_one_array_has_a_longest_length() -> None:
    assert len(decode(packed([0] * MAX_ARRAY_LENGTH))[0]) == MAX_ARRAY_LENGTH
    with pytest.raises(ProtocolError):
        decode(packed([0] * (MAX_ARRAY_LENGTH + 1)))


@pytest.mark.parametrize(
    "body",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\x91\xdd\xff\xff\xff\xff",
        b"\x91\xdb\xff\xff\xff\xffab",
        b"\x91\xc6\xff\xff\xff\xffab",
        b"\x91\xc6\x7f\xff\xff\xff",
        b"\x91\xdf\xff\xff\xff\xff",
        b"\x91\xc9\xff\xff\xff\xff\x01",
        array_of(2**16 - 1),
    ],
)
def test_a_huge_length_in_a_small_body_takes_no_memory(body: bytes) -> None:
    assert peak_bytes(body) < MIB
    assert peak_bytes(COUNTED + body) < MIB


@pytest.mark.parametrize("depth", [1_025, 2_000, 16_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    assert peak_bytes(b"\x91" * depth + b"\xc0") < MIB


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "limits"),
        (b"\x91", "limits"),
        (b"\x92\xc0", "limits"),
        (b"\x91\xa5abc", "limits"),
        (b"\x91\xcf\x00", "limits"),
        (b"\x90\x00", "limits"),
        (b"\x90\x90", "limits"),
        (b"\xc0", "not an array"),
        (b"\x01", "not an array"),
        (b"\xa1a", "not an array"),
        (b"\xc4\x01a", "not an array"),
        (b"\xc1", "limits"),
        (b"\x91\xc1", "limits"),
        (b"\x80", "maps"),
        (b"\x91\x80", "maps"),
        (b"\x91\x81\xa1a\x01", "limits"),
        (b"\x91\xde\x00\x01\x01\x01", "limits"),
        (b"\x91\xd4\x05\x00", "limits"),
        (b"\x91\xd6\xff\x00\x00\x00\x00", "limits"),
        (b"\x91\xd8\xff" + bytes(16), "limits"),
        (b"\x91\xc7\x00\x05", "extension"),
        (b"\x91\xa1\xff", "limits"),
        (b"\x91\xa3\xed\xa0\x80", "limits"),
    ],
)
def test_what_is_not_the_subset_is_a_protocol_error(body: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        decode(body)


@pytest.mark.parametrize("tag", range(256))
def test_every_first_byte_gives_values_or_a_typed_error_with_and_without_counting(tag: int) -> None:
    for tail in (b"", b"\x00", bytes(9), b"\xff" * 9, b"\x00\x00\x00\x04abcd"):
        for head in (b"\x91", COUNTED):
            with contextlib.suppress(ProtocolError):
                assert type(decode(head + bytes([tag]) + tail)) is list


NO_INTEGERS = [-1, -(2**63), MAX_INTEGER + 1, 2**64 - 1, True, False, 1.0, float("nan"), float("inf"), "1", b"1", None, []]


@pytest.mark.parametrize("value", NO_INTEGERS)
def test_an_integer_is_from_0_to_2_to_the_63_minus_1_and_no_boolean_or_float(value: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"Credit\.messages must be an integer from 0 to 2\*\*63-1"):
        Credit.from_wire(decode(packed(1, value)))


@pytest.mark.parametrize("value", [0, 1, 127, 128, 2**32, MAX_INTEGER])
def test_every_integer_in_range_is_taken(value: int) -> None:
    assert Credit.from_wire(decode(packed(1, value))).messages == value


@pytest.mark.parametrize(
    ("cls", "values", "why"),
    [
        (KeyId, [b"k"], "KeyId.key_id must be a string"),
        (KeyId, [None], "KeyId.key_id must be a string"),
        (Hello, ["c", "text"], "Hello.producer must be binary"),
        (CreateKey, ["admin", 1], "CreateKey.description must be a string"),
        (SendMessages, ["q", b"x"], "SendMessages.bodies must be an array"),
        (SendMessages, ["q", ["x"]], "SendMessages.bodies must be an array of binaries"),
        (SendMessages, ["q", [[b"x"]]], "SendMessages.bodies must be an array of binaries"),
        (SendMessages, ["q", [b"x"], [["a", "String", "v"]]], "Attribute must be|SendMessages.attributes must be"),
        (SendMessages, ["q", [b"x"], [[["a", "String", 1]]]], "Attribute.value must be a string or binary"),
        (SendMessages, ["q", [b"x"], [[["a", "String"]]]], "Attribute.value is missing"),
        (SendMessages, ["q", [b"x"], None, [True]], "SendMessages.delays_ms must be"),
        (SendMessages, ["q", [b"x"], None, [1.0]], "SendMessages.delays_ms must be"),
        (SendMessages, ["q", [b"x"], None, None, [b"g"]], "SendMessages.groups must be"),
        (ReceiveMessages, ["q", 1, False], "ReceiveMessages.visibility_timeout_ms must be an integer .* or nil"),
        (Setting, ["n", 1.5], "Setting.value must be"),
        (Setting, ["n", [1]], "Setting.value must be"),
        (SendMessages, ["q"], "SendMessages.bodies is missing"),
        (SendMessages, [], "SendMessages.queue is missing"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(cls: type[Message], values: list[Any], why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        cls.from_wire(decode(packed(*values)))


def test_a_setting_keeps_the_type_it_was_sent_with() -> None:
    for value in (0, 1, True, False, "1", ["a"], [], None):
        kept = Setting.from_wire(decode(packed("n", value))).value
        assert kept == value
        assert type(kept) is type(value)


def test_a_message_that_is_no_array_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="Empty must be an array"):
        Empty.from_wire("text")


def test_cve_2023_46604_no_name_on_the_wire_becomes_code() -> None:
    """A wire message that named a class had it built. Here names are data: what a body holds never chooses a type."""
    for name in ("__class__", "os.system", "penstock_protocol.errors.ProtocolError", "!!python/object:os.system"):
        assert KeyId.from_wire(decode(packed(name))).key_id == name
        assert Setting.from_wire(decode(packed(name, name))).value == name
