"""The bytes of every message, both ways. What once was on the wire stays readable."""

from __future__ import annotations

import hashlib
import hmac
from typing import cast

import pytest
from penstock_protocol.codec import Message
from penstock_protocol.connection import Answer, ClientConnection, Request, ServerConnection
from penstock_protocol.errors import TABLE, PenstockError
from penstock_protocol.frames import MAGIC, Kind, pack_frame
from penstock_protocol.operations import BY_NAME, OPERATIONS
from penstock_protocol.queue_messages import ReceiveReply
from penstock_protocol.session_messages import Authenticate, ErrorReply, Hello, HelloReply

from tests.protocol.golden import MESSAGES, PATH, Vector, fields_of, vector, vectors

PUBLISHED_LINES = 196
PUBLISHED_SHA256 = "4b41e564c48e78bb85695b79cce2e09b69d501d9230bc0f38f3a42b2e5315443"
"""The vectors that releases know. Add a line at the end of the file, then put the new number and digest here; a change of an
old line is a change of the protocol that old peers do not know about. Only the mark `decode_only` may be added to one, when its
message has got another field: the digest leaves it out."""

REQUESTS = [one for one in vectors() if one.kind is Kind.REQUEST]
ANSWERS = [one for one in vectors() if one.kind is not Kind.REQUEST and one.correlation]
WRITTEN = [one for one in vectors() if not one.decode_only]


def named(one: object) -> str:
    return cast(Vector, one).name.replace(" ", "_")


def open_server() -> ServerConnection:
    server = ServerConnection()
    assert list(server.receive_data(MAGIC)) == []
    server.open()
    return server


def open_client() -> ClientConnection:
    client = ClientConnection()
    client.opened(2**24)
    return client


@pytest.mark.parametrize("one", WRITTEN, ids=named)
def test_a_message_is_written_as_exactly_the_golden_bytes(one: Vector) -> None:
    assert pack_frame(one.kind, one.code, one.correlation, one.message.encode()) == one.frame


@pytest.mark.parametrize("one", [one for one in vectors() if one.decode_only], ids=named)
def test_only_a_message_that_is_written_otherwise_is_spared_that(one: Vector) -> None:
    assert pack_frame(one.kind, one.code, one.correlation, one.message.encode()) != one.frame


@pytest.mark.parametrize("one", REQUESTS, ids=named)
def test_the_broker_reads_every_golden_request(one: Vector) -> None:
    server = ServerConnection()
    list(server.receive_data(MAGIC))
    if one.operation == "Authenticate":
        server.challenge()
    elif one.operation != "Hello":
        server.open()
    (event,) = server.receive_data(one.frame)
    assert isinstance(event, Request)
    assert (event.operation, event.correlation) == (BY_NAME[one.operation], one.correlation)
    assert event.message() == one.message


@pytest.mark.parametrize("one", ANSWERS, ids=named)
def test_the_client_reads_every_golden_answer(one: Vector) -> None:
    (answer,) = open_client().receive_data(one.frame)
    assert (answer.kind, answer.operation, answer.correlation) == (one.kind, one.code, one.correlation)
    if one.kind is not Kind.ERROR:
        assert answer.message() == one.message
        return
    assert isinstance(one.message, ErrorReply)
    with pytest.raises(PenstockError) as caught:
        answer.message()
    assert type(caught.value) is TABLE.get(one.message.code, PenstockError)
    assert one.message.text in str(caught.value)


@pytest.mark.parametrize("one", WRITTEN, ids=named)
def test_each_end_writes_the_golden_bytes(one: Vector) -> None:
    server = ServerConnection()
    if one.kind is Kind.REQUEST:
        client = open_client()
        written = b""
        for _ in range(one.correlation):  # the client numbers from 1
            number, written = client.request(BY_NAME[one.operation], one.message)
        assert number == one.correlation
        assert written == one.frame
    elif one.kind is Kind.REPLY:
        assert server.reply(one.code, one.correlation, one.message) == one.frame
    elif one.kind is Kind.PUSH:
        assert server.push(one.code, one.correlation, one.message) == one.frame
    elif one.message.code in TABLE:  # type: ignore[attr-defined]  # an ERROR frame holds an ErrorReply
        error = cast(ErrorReply, one.message).to_error()
        assert (server.error(one.code, one.correlation, error) if one.correlation else server.farewell(error)) == one.frame


def test_every_operation_has_a_golden_request_and_a_golden_reply() -> None:
    requests = {one.operation for one in WRITTEN if one.kind is Kind.REQUEST}
    replies = {one.operation for one in WRITTEN if one.kind is Kind.REPLY}
    names = {operation.name for operation in OPERATIONS}
    assert names - requests == set()
    assert names - replies == set()


def test_every_operation_that_pushes_has_a_golden_push() -> None:
    assert {one.operation for one in vectors() if one.kind is Kind.PUSH} == {row.name for row in OPERATIONS if row.pushes}


def test_every_error_has_a_golden_frame() -> None:
    codes = {one.message.code for one in vectors() if isinstance(one.message, ErrorReply)}
    assert set(TABLE) - codes == set()


def test_every_field_of_every_message_is_in_a_golden_vector_with_a_value_of_its_own() -> None:
    """A field that only ever holds its default might be forgotten on the way, or stand in the wrong place."""
    seen: dict[str, set[str]] = {name: set() for name in MESSAGES}

    def look(value: object) -> None:
        if isinstance(value, list):
            for item in value:
                look(item)
        elif isinstance(value, Message):
            for field in fields_of(type(value)):
                inner = getattr(value, field.name)
                if inner not in (None, "", b"", 0, [], field.default):
                    seen[type(value).__name__].add(field.name)
                look(inner)

    for one in vectors():
        look(one.message)
    missing = {name: {field.name for field in fields_of(cls)} - seen[name] for name, cls in MESSAGES.items()}
    assert {name: fields for name, fields in missing.items() if fields} == {}


def test_names_are_unique() -> None:
    names = [one.name for one in vectors()]
    assert len(set(names)) == len(names)


def test_published_vectors_never_change() -> None:
    lines = PATH.read_text(encoding="utf-8").splitlines()[1:-1]
    published = "\n".join(line.rstrip(",") for line in lines[:PUBLISHED_LINES]).replace('"decode_only": true, ', "")
    assert hashlib.sha256(published.encode()).hexdigest() == PUBLISHED_SHA256
    assert len(lines) == PUBLISHED_LINES, "new vectors: count them in"


def test_the_golden_hello_is_signed_as_the_specification_says() -> None:
    hello, challenged = vector("hello").message, vector("hello with a challenge").message
    proof = vector("authenticate").message
    assert isinstance(hello, Hello)
    assert isinstance(challenged, HelloReply)
    assert isinstance(proof, Authenticate)
    signed = b"penstock-hello-1" + challenged.challenge + hello.producer
    assert proof.proof == hmac.new(b"correct horse", signed, hashlib.sha256).digest()


def test_the_golden_dialogue_opens_a_connection_with_a_key_and_without() -> None:
    for names in (["hello", "authenticate"], ["hello without a key"]):
        server, client = ServerConnection(), ClientConnection()
        replies = {"hello": "hello with a challenge", "authenticate": "authenticated"}
        to_server = client.preface()
        answers: list[Answer] = []
        for name in names:
            operation, message = BY_NAME[vector(name).operation], vector(name).message
            _, data = client.request(operation, message)
            assert data == vector(name).frame
            (event,) = server.receive_data(to_server + data)
            to_server = b""
            assert isinstance(event, Request)
            assert event.message() == message
            reply = vector(replies[name] if len(names) == 2 else "hello that wants no proof")
            if reply.name == "hello with a challenge":
                server.challenge()
            else:
                server.open()
            data = server.reply(event.operation.code, event.correlation, reply.message)
            assert data == reply.frame
            answers += client.receive_data(data)
            assert answers[-1].message() == reply.message
        client.opened(2**24)
        assert client.state is server.state


def test_a_push_is_what_a_receive_answers() -> None:
    (answer,) = open_client().receive_data(vector("push").frame)
    assert isinstance(answer.message(), ReceiveReply)
