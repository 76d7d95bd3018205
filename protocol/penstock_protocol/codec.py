"""Messages as msgpack arrays, decoded with explicit limits and checked field by field.

A message is a frozen dataclass that derives from `Message`. On the wire it is an array of its fields in order. Fields are
only ever added at the end, with a default: a decoder ignores fields it does not know and fills in those it misses.
Maps and extension types are never used, so they are refused; the number of array elements is bounded over the whole body,
so small bytes cannot become large memory (RELIABILITY 4.6). msgpack's own limits hold for each array alone and make room for an
array when it begins: what could add up is counted before anything is built (`_measure`).

The check of a field is built once from its annotation: int (0 to 2**63-1, never a bool), str, bytes, bool, None, unions of
these, list[...], and nested messages. What a value means is not judged here.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, ClassVar, Final, Self

import msgpack

from penstock_protocol.errors import InvalidRequest, ProtocolError

MAX_ELEMENTS: Final = 100_000
"""The most array elements one request may hold in all; each array counts as one more."""

MAX_REPLY_ELEMENTS: Final = 1_000_000
"""The same for what a broker answers: the largest receive, with all attributes, from as many segments as messages."""

MAX_ARRAY_LENGTH: Final = 16_384
"""The longest single array: more than any batch."""

MAX_INTEGER: Final = 2**63 - 1

_SHORT_ARRAY: Final = 512
"""Arrays up to this length are built without counting first: nested as deep as msgpack nests them, they take four megabytes, and
what is in them some twenty-five."""

type_check = Callable[[Any], Any]
"""Takes a decoded value, returns it (nested messages: as their class) or raises _Mismatch."""


class _Mismatch(ValueError):
    pass


class Message:
    """Base of everything that is said on the wire. Subclasses are `@dataclass(frozen=True, slots=True)`."""

    __slots__ = ()
    _plans: ClassVar[dict[type[Message], list[tuple[str, type_check, Any]]]] = {}

    def to_wire(self) -> list[Any]:
        """The fields in order; nested messages are left to the packer."""
        return [getattr(self, name) for name, _, _ in _plan(type(self))]

    def encode(self) -> bytes:
        """The msgpack body."""
        return typing.cast(bytes, msgpack.packb(self.to_wire(), default=_nested))

    @classmethod
    def from_wire(cls, values: Any) -> Self:
        """Builds and checks the message from decoded msgpack. InvalidRequest names the field that does not fit."""
        plan = _plan(cls)
        if type(values) is not list:
            raise InvalidRequest(f"{cls.__name__} must be an array")
        known = len(values)
        arguments = []
        for position, (name, check, default) in enumerate(plan):
            if position >= known:
                if default is dataclasses.MISSING:
                    raise InvalidRequest(f"{cls.__name__}.{name} is missing")
                break
            try:
                arguments.append(check(values[position]))
            except _Mismatch as mismatch:
                raise InvalidRequest(f"{cls.__name__}.{name} must be {mismatch}") from None
        return cls(*arguments)


def _nested(value: Any) -> Any:
    if isinstance(value, Message):
        return value.to_wire()
    raise TypeError(f"{type(value).__name__} cannot be encoded")


def _plan(cls: type[Message]) -> list[tuple[str, type_check, Any]]:
    plan = Message._plans.get(cls)
    if plan is None:
        hints = typing.get_type_hints(cls)
        plan = [
            (field.name, _check_of(hints[field.name]), field.default)
            for field in dataclasses.fields(cls)  # type: ignore[arg-type]  # every subclass is a dataclass
        ]
        Message._plans[cls] = plan
    return plan


def _check_of(hint: Any) -> type_check:
    origin = typing.get_origin(hint)
    if hint is int:
        return _check_int
    if hint in (str, bytes, bool):
        return _exactly(hint)
    if hint is type(None):
        return _check_none
    if origin is list:
        return _list_of(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return _any_of([_check_of(option) for option in typing.get_args(hint)])
    if isinstance(hint, type) and issubclass(hint, Message):
        return _message_of(hint)
    raise TypeError(f"no wire form for {hint!r}")


def _check_int(value: Any) -> Any:
    if type(value) is int and 0 <= value <= MAX_INTEGER:
        return value
    raise _Mismatch("an integer from 0 to 2**63-1")


def _check_none(value: Any) -> Any:
    if value is None:
        return value
    raise _Mismatch("nil")


def _exactly(wanted: type) -> type_check:
    names = {str: "a string", bytes: "binary", bool: "a boolean"}

    def check(value: Any) -> Any:
        if type(value) is wanted:
            return value
        raise _Mismatch(names[wanted])

    return check


def _list_of(element: Any) -> type_check:
    one = _check_of(element)
    plain: set[type] | None = {element} if element in (str, bytes) else None

    def check(value: Any) -> Any:
        if type(value) is not list:
            raise _Mismatch("an array")
        if plain is not None:
            if set(map(type, value)) <= plain:
                return value
            raise _Mismatch(f"an array of {'strings' if element is str else 'binaries'}")
        return [one(item) for item in value]

    return check


def _any_of(options: list[type_check]) -> type_check:
    def check(value: Any) -> Any:
        complaints = []
        for option in options:
            try:
                return option(value)
            except _Mismatch as mismatch:
                complaints.append(str(mismatch))
        raise _Mismatch(" or ".join(complaints))

    return check


def _message_of(cls: type[Message]) -> type_check:
    def check(value: Any) -> Any:
        if type(value) is not list:
            raise _Mismatch(f"a {cls.__name__} (an array)")
        return cls.from_wire(value)

    return check


def _refuse_map(_: Any) -> Any:
    raise ProtocolError("maps are not part of the protocol")


def _refuse_extension(code: int, _: bytes) -> Any:
    raise ProtocolError(f"extension type {code} is not part of the protocol")


# The length of a value by its first byte. Positive: the whole value. Negative: so many bytes follow that hold the length of what
# follows them. 0: arrays, maps, extensions, and the byte that msgpack does not use.
_SIZES: Final[list[int]] = [0] * 256
for _first, _size in (
    *((first, 1) for first in (*range(0x80), *range(0xE0, 0x100), 0xC0, 0xC2, 0xC3)),
    *((0xA0 + length, 1 + length) for length in range(32)),
    *((0xCC, 2), (0xCD, 3), (0xCE, 5), (0xCF, 9), (0xD0, 2), (0xD1, 3), (0xD2, 5), (0xD3, 9), (0xCA, 5), (0xCB, 9)),
    *((0xC4, -1), (0xC5, -2), (0xC6, -4), (0xD9, -1), (0xDA, -2), (0xDB, -4)),
):
    _SIZES[_first] = _size


def _measure(body: bytes, max_elements: int) -> None:
    """Counts the elements that the arrays of a body say they have, building nothing. ProtocolError when they are too many."""
    sizes, position, elements, left = _SIZES, 0, 0, 1
    outer: list[int] = []
    try:
        while True:
            while not left:
                if not outer:
                    return
                left = outer.pop()
            left -= 1
            tag = body[position]
            size = sizes[tag]
            if size > 0:
                position += size
            elif size == -1:
                position += 2 + body[position + 1]
            elif size == -2:
                position += 3 + (body[position + 1] << 8 | body[position + 2])
            elif size:
                position += 5 + int.from_bytes(body[position + 1 : position + 5], "big")
            else:
                width = 2 if tag == 0xDC else 4 if tag == 0xDD else 0
                if not width and not 0x90 <= tag <= 0x9F:
                    return  # refused by type as soon as it is built
                position += 1
                length = int.from_bytes(body[position : position + width], "big") if width else tag & 0x0F
                position += width
                elements += length + 1
                if elements > max_elements:
                    raise ProtocolError(f"more than {max_elements} array elements in one frame")
                outer.append(left)
                left = length
    except IndexError:
        raise ProtocolError("the body is not msgpack within the limits: it ends too early") from None


def decode(body: bytes, max_elements: int = MAX_ELEMENTS) -> list[Any]:
    """Decodes one msgpack body into lists and scalars. ProtocolError when it is not exactly one array within the limits."""
    try:
        # Most bodies have only short arrays: of these even the deepest nest is small.
        values = _build(body, max_elements, _SHORT_ARRAY)
    except ProtocolError:
        raise
    except (ValueError, msgpack.UnpackException, RecursionError):
        _measure(body, max_elements)
        try:
            values = _build(body, max_elements, MAX_ARRAY_LENGTH)
        except ProtocolError:
            raise
        except (ValueError, msgpack.UnpackException, RecursionError) as error:
            raise ProtocolError(f"the body is not msgpack within the limits: {error}") from None
    if type(values) is not list:
        raise ProtocolError("the body is not an array")
    return values


def _build(body: bytes, max_elements: int, max_array_length: int) -> Any:
    """The values of a body, whose arrays have a longest length. What msgpack raises, or ProtocolError."""
    elements = 0

    def count(values: list[Any]) -> list[Any]:
        nonlocal elements
        elements += len(values) + 1
        if elements > max_elements:
            raise ProtocolError(f"more than {max_elements} array elements in one frame")
        return values

    size = len(body)
    return msgpack.unpackb(
        body,
        raw=False,
        strict_map_key=True,
        list_hook=count,
        object_hook=_refuse_map,
        ext_hook=_refuse_extension,
        max_str_len=size,
        max_bin_len=size,
        max_array_len=max_array_length,
        max_map_len=0,
        max_ext_len=0,
    )
