"""The table of errors, and their way over the wire."""

from __future__ import annotations

import inspect

import penstock_protocol.errors as module
import pytest
from penstock_protocol.connection import ClientConnection, ServerConnection
from penstock_protocol.errors import TABLE, Fault, InternalError, PenstockError, error_from_wire
from penstock_protocol.session_messages import ErrorReply

RANGES = (range(1, 100), range(100, 200), range(200, 300), range(300, 400))


def test_every_error_class_is_in_the_table_once() -> None:
    classes = [
        value
        for _, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, PenstockError) and value is not PenstockError
    ]
    assert len({cls.code for cls in classes}) == len(classes)
    assert {cls.code: cls for cls in classes} == TABLE


def test_numbers_have_no_gaps() -> None:
    for numbers in RANGES:
        used = sorted(code for code in TABLE if code in numbers)
        assert used == list(range(numbers.start, numbers.start + len(used)))
    assert all(any(code in numbers for numbers in RANGES) for code in TABLE)


@pytest.mark.parametrize("cls", TABLE.values(), ids=lambda cls: cls.__name__)
def test_every_error_says_whose_fault_it_is_and_what_to_do(cls: type[PenstockError]) -> None:
    assert isinstance(cls.fault, Fault)
    assert isinstance(cls.retryable, bool)
    assert len(cls.advice) > 20
    assert cls.advice.endswith(".")
    assert str(cls()) == cls.advice


@pytest.mark.parametrize("cls", TABLE.values(), ids=lambda cls: cls.__name__)
def test_every_error_survives_the_wire(cls: type[PenstockError]) -> None:
    client = ClientConnection()
    client.opened(2**20)
    (answer,) = client.receive_data(ServerConnection().error(24, 5, cls("what exactly — ü")))
    with pytest.raises(cls, match="what exactly — ü") as caught:
        answer.message()
    assert type(caught.value) is cls
    assert caught.value.name == cls.__name__


def test_an_error_of_a_newer_broker_is_an_error_with_its_number_and_text() -> None:
    error = error_from_wire(9999, "something new")
    assert type(error) is PenstockError
    assert str(error) == "error 9999: something new"


def test_the_text_of_an_error_is_cut() -> None:
    assert len(ErrorReply.of(InternalError("x" * 5000)).text) == 1000
