"""Older and newer peers understand each other: fields are only added at the end, with a default."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import pytest
from penstock_protocol.codec import Message, decode
from penstock_protocol.errors import InvalidRequest

from tests.protocol.golden import MESSAGES, fields_of, vectors


def example(cls: type[Message]) -> Message | None:
    """A golden message of that type, also one inside another."""
    stack: list[Any] = [one.message for one in vectors()]
    while stack:
        value = stack.pop()
        if type(value) is cls:
            return value
        if isinstance(value, list):
            stack += value
        elif isinstance(value, Message):
            stack += [getattr(value, field.name) for field in fields_of(type(value))]
    return None


@pytest.mark.parametrize("name", MESSAGES)
def test_fields_that_a_newer_peer_adds_are_ignored(name: str) -> None:
    message = example(MESSAGES[name])
    assert message is not None
    values = decode(message.encode())
    for more in ([1], ["new", None, [[b"x"]], -1, 1.5, True], [None] * 100):
        assert MESSAGES[name].from_wire(decode(msgpack.packb([*values, *more]))) == message


@pytest.mark.parametrize("name", MESSAGES)
def test_fields_that_an_older_peer_does_not_know_get_their_defaults_and_others_are_missed(name: str) -> None:
    cls = MESSAGES[name]
    message = example(cls)
    assert message is not None
    values = decode(message.encode())
    fields = fields_of(cls)
    for count in range(len(fields)):
        if fields[count].default is dataclasses.MISSING:
            with pytest.raises(InvalidRequest, match=f"{name}.{fields[count].name} is missing"):
                cls.from_wire(values[:count])
        else:
            older = cls.from_wire(values[:count])
            assert [getattr(older, field.name) for field in fields[:count]] == [getattr(message, f.name) for f in fields[:count]]
            assert all(getattr(older, field.name) == field.default for field in fields[count:])


@pytest.mark.parametrize("name", MESSAGES)
def test_a_field_with_a_default_is_never_followed_by_one_without(name: str) -> None:
    has_default = [field.default is not dataclasses.MISSING for field in fields_of(MESSAGES[name])]
    assert has_default == sorted(has_default)
    assert all(field.default_factory is dataclasses.MISSING for field in fields_of(MESSAGES[name]))
