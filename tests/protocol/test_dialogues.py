"""The states of both ends, as dialogues: this comes in, that comes out. No way leads past the handshake."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from penstock_protocol.connection import Answer, ClientConnection, Refused, Request, ServerConnection, State
from penstock_protocol.errors import (
    AuthenticationFailed,
    Draining,
    FrameTooLarge,
    InvalidRequest,
    PenstockError,
    ProtocolError,
    UnknownOperation,
    VersionNotSupported,
)
from penstock_protocol.frames import HEADER, MAGIC, Kind, pack_frame
from penstock_protocol.operations import BY_NAME, OPERATIONS, Operation
from penstock_protocol.queue_messages import QueueName, SendMessages
from penstock_protocol.session_messages import Authenticate, Empty, Hello

from tests.protocol.golden import vector

HELLO = vector("hello").frame
AUTHENTICATE = vector("authenticate").frame
PING = vector("ping").frame


@dataclasses.dataclass
class Step:
    """What is fed (or done), and what must come of it: names of operations, or the error that ends the connection."""

    give: bytes | str
    expect: list[str] | type[PenstockError]
    state: State


def events_of(server: ServerConnection, data: bytes) -> list[str]:
    return [
        event.operation.name if isinstance(event, Request) else f"refused {event.operation}"
        for event in server.receive_data(data)
    ]


M, H, A, O, C = State.MAGIC, State.HELLO, State.AUTHENTICATION, State.OPEN, State.CLOSED  # noqa: E741  # a table of letters

SERVER_DIALOGUES: dict[str, list[Step]] = {
    "without keys: magic, hello, open": [
        Step(MAGIC, [], H),
        Step(HELLO, ["Hello"], H),
        Step("open", [], O),
        Step(PING + PING, ["Ping", "Ping"], O),
    ],
    "with keys: magic, hello, challenge, proof, open": [
        Step(MAGIC + HELLO, ["Hello"], H),
        Step("challenge", [], A),
        Step(AUTHENTICATE, ["Authenticate"], A),
        Step("open", [], O),
        Step(PING, ["Ping"], O),
    ],
    "magic in pieces": [Step(MAGIC[:3], [], M), Step(MAGIC[3:7], [], M), Step(MAGIC[7:] + HELLO, ["Hello"], H)],
    "a wrong magic is known by its first byte": [Step(b"G", ProtocolError, C)],
    "HTTP is not the protocol": [Step(b"GET / HTTP/1.1\r\n", ProtocolError, C)],
    "TLS where there is none": [Step(b"\x16\x03\x01\x02\x00\x01", ProtocolError, C)],
    "no magic at all": [Step(HELLO, ProtocolError, C)],
    "another version of the protocol": [Step(b"PENSTOK2", VersionNotSupported, C)],
    "another version of the protocol, in pieces": [Step(b"PENSTOK", [], M), Step(b"9", VersionNotSupported, C)],
    "the magic twice": [Step(MAGIC + MAGIC + HELLO, FrameTooLarge, C)],
    "nothing but hello before hello": [Step(MAGIC, [], H), Step(PING, ProtocolError, C)],
    "authenticate before hello": [Step(MAGIC + AUTHENTICATE, ProtocolError, C)],
    "an unknown operation before hello": [Step(MAGIC + pack_frame(Kind.REQUEST, 9999, 1, b"\x90"), ProtocolError, C)],
    "a request right behind the hello, before it was judged": [Step(MAGIC + HELLO + PING, ProtocolError, C)],
    "hello instead of a proof": [Step(MAGIC + HELLO, ["Hello"], H), Step("challenge", [], A), Step(HELLO, ProtocolError, C)],
    "a request instead of a proof": [Step(MAGIC + HELLO, ["Hello"], H), Step("challenge", [], A), Step(PING, ProtocolError, C)],
    "a request right behind the proof, before it was judged": [
        Step(MAGIC + HELLO, ["Hello"], H),
        Step("challenge", [], A),
        Step(AUTHENTICATE + PING, ProtocolError, C),
    ],
    "hello on an open connection": [Step(MAGIC + HELLO, ["Hello"], H), Step("open", [], O), Step(HELLO, ProtocolError, C)],
    "authenticate without a challenge": [
        Step(MAGIC + HELLO, ["Hello"], H),
        Step("open", [], O),
        Step(AUTHENTICATE, ProtocolError, C),
    ],
    "an unknown operation is refused alone": [
        Step(MAGIC + HELLO, ["Hello"], H),
        Step("open", [], O),
        Step(pack_frame(Kind.REQUEST, 9999, 7, b"\xc1") + PING, ["refused 9999", "Ping"], O),
    ],
    "a reply from a client": [
        Step(MAGIC + HELLO, ["Hello"], H),
        Step("open", [], O),
        Step(pack_frame(Kind.REPLY, 3, 7, b"\x90"), ProtocolError, C),
    ],
    "an unknown kind": [Step(MAGIC + HEADER.pack(0, 9, 0, 1, 1), ProtocolError, C)],
    "kind zero": [Step(MAGIC + HEADER.pack(0, 0, 0, 1, 1), ProtocolError, C)],
    "a flag": [Step(MAGIC + HEADER.pack(0, 1, 1, 1, 1), ProtocolError, C)],
    "after the owner closed it nothing is taken": [
        Step(MAGIC + HELLO, ["Hello"], H),
        Step("open", [], O),
        Step("close", [], C),
        Step(PING, [], C),
    ],
    "after a violation nothing is taken": [Step(b"G", ProtocolError, C), Step(MAGIC + HELLO, [], C)],
}


@pytest.mark.parametrize("name", SERVER_DIALOGUES)
def test_the_brokers_end(name: str) -> None:
    server = ServerConnection()
    for step in SERVER_DIALOGUES[name]:
        if isinstance(step.give, str):
            getattr(server, step.give)()
        elif isinstance(step.expect, list):
            assert events_of(server, step.give) == step.expect
        else:
            with pytest.raises(step.expect):
                events_of(server, step.give)
        assert server.state is step.state


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda row: row.name)
def test_no_operation_leads_past_the_handshake(operation: Operation) -> None:
    """Every operation in every state before OPEN: only the one that is awaited comes through."""
    code = operation.code
    for state, allowed in ((State.HELLO, 1), (State.AUTHENTICATION, 2)):
        server = ServerConnection()
        list(server.receive_data(MAGIC))
        if state is State.AUTHENTICATION:
            server.challenge()
        frame = pack_frame(Kind.REQUEST, code, 1, b"\x90")
        if code == allowed:
            assert len(list(server.receive_data(frame))) == 1
        else:
            with pytest.raises(ProtocolError, match=f"operation {code} in state {state.value}"):
                list(server.receive_data(frame))


def test_secnote_2026_16_a_request_in_the_same_packet_as_a_failed_login_is_not_given_out() -> None:
    """A parser's fast path that skips the login."""
    server = ServerConnection()
    list(server.receive_data(MAGIC + HELLO))
    server.challenge()
    events = server.receive_data(AUTHENTICATE + PING)
    assert isinstance(next(events), Request)
    server.farewell(AuthenticationFailed())
    assert list(events) == []


def test_a_farewell_is_an_error_with_correlation_zero_and_the_client_raises_it() -> None:
    server, client = ServerConnection(), ClientConnection()
    data = server.farewell(Draining("the broker stops"))
    assert server.state is State.CLOSED
    with pytest.raises(Draining, match="the broker stops"):
        list(client.receive_data(data))
    assert client.state is State.CLOSED


def test_a_bad_body_is_an_error_of_its_request_alone() -> None:
    server = ServerConnection()
    list(server.receive_data(MAGIC))
    server.open()
    bad, wrong, good = server.receive_data(
        pack_frame(Kind.REQUEST, 24, 1, b"\xc1") + pack_frame(Kind.REQUEST, 24, 2, b"\x91\x01") + PING
    )
    assert isinstance(bad, Request)
    assert isinstance(wrong, Request)
    assert isinstance(good, Request)
    with pytest.raises(ProtocolError):
        bad.message()
    with pytest.raises(InvalidRequest, match=r"SendMessages\.queue must be a string"):
        wrong.message()
    assert good.message() == Empty()


def test_a_refused_operation_is_told_with_its_correlation() -> None:
    server = ServerConnection()
    list(server.receive_data(MAGIC))
    server.open()
    (event,) = server.receive_data(pack_frame(Kind.REQUEST, 500, 2**64 - 1, b""))
    assert isinstance(event, Refused)
    assert (event.correlation, event.operation, type(event.error)) == (2**64 - 1, 500, UnknownOperation)


# The client's end


def hello_sent(client: ClientConnection) -> None:
    client.request(BY_NAME["Hello"], Hello("c", bytes(16)))


def proof_sent(client: ClientConnection) -> None:
    hello_sent(client)
    client.request(BY_NAME["Authenticate"], Authenticate(bytes(32)))


def is_open(client: ClientConnection) -> None:
    client.opened(2**20)


REPLY_1 = vector("hello that wants no proof").frame
REPLY_2 = vector("authenticated").frame
PONG = vector("pong").frame
PUSH = vector("push").frame

CLIENT_TABLE: list[tuple[str, Callable[[ClientConnection], None], bytes, type[PenstockError] | None]] = [
    ("the hello's reply", hello_sent, REPLY_1, None),
    ("another reply before hello's", hello_sent, PONG, ProtocolError),
    ("a push before hello's reply", hello_sent, PUSH, ProtocolError),
    ("authenticated without a proof", hello_sent, REPLY_2, ProtocolError),
    ("the proof's reply", proof_sent, REPLY_2, None),
    ("a second hello's reply", proof_sent, REPLY_1, ProtocolError),
    ("another reply before the proof's", proof_sent, PONG, ProtocolError),
    ("a reply", is_open, PONG, None),
    ("a push", is_open, PUSH, None),
    ("a request from the broker", is_open, PING, ProtocolError),
    ("an unknown kind", is_open, HEADER.pack(0, 5, 0, 3, 1), ProtocolError),
    ("a flag", is_open, HEADER.pack(0, 2, 128, 3, 1), ProtocolError),
    ("a reply without a correlation", is_open, pack_frame(Kind.REPLY, 3, 0, b"\x90"), ProtocolError),
    ("a push without a correlation", is_open, pack_frame(Kind.PUSH, 29, 0, b"\x90"), ProtocolError),
    ("a farewell", is_open, vector("farewell").frame, ProtocolError),
    ("a farewell that is none", is_open, pack_frame(Kind.ERROR, 0, 0, b"\x90"), InvalidRequest),
    ("a frame beyond what a client takes", is_open, HEADER.pack(2**25 + 1, 2, 0, 3, 1), FrameTooLarge),
]


@pytest.mark.parametrize(("name", "prepare", "data", "error"), CLIENT_TABLE, ids=[row[0] for row in CLIENT_TABLE])
def test_the_clients_end(
    name: str, prepare: Callable[[ClientConnection], None], data: bytes, error: type[PenstockError] | None
) -> None:
    client = ClientConnection()
    prepare(client)
    if error is None:
        assert len(list(client.receive_data(data))) == 1
        assert client.state is not State.CLOSED
    else:
        with pytest.raises(error):
            list(client.receive_data(data))
        assert client.state is State.CLOSED
        assert list(client.receive_data(PONG)) == []


def test_a_client_numbers_its_requests_from_one() -> None:
    client = ClientConnection()
    client.opened(2**20)
    assert [client.request(BY_NAME["Ping"], Empty())[0] for _ in range(3)] == [1, 2, 3]


def test_a_client_refuses_to_write_what_the_broker_would_not_read() -> None:
    client = ClientConnection()
    client.opened(1000)
    with pytest.raises(FrameTooLarge, match="SendMessages of 10"):
        client.request(BY_NAME["SendMessages"], SendMessages("q", [bytes(1000)]))
    assert client.request(BY_NAME["Ping"], Empty())[0] == 1


def test_a_push_that_the_operation_does_not_have_is_refused() -> None:
    with pytest.raises(ProtocolError, match="Ping has no pushes"):
        Answer(Kind.PUSH, 3, 1, b"\x90").message()


def test_a_reply_to_an_operation_nobody_knows_is_refused() -> None:
    with pytest.raises(ProtocolError, match="unknown operation 500"):
        Answer(Kind.REPLY, 500, 1, b"\x90").message()


def test_requests_are_answered_in_any_order() -> None:
    server, client = ServerConnection(), ClientConnection()
    client.opened(2**20)
    list(server.receive_data(MAGIC))
    server.open()
    first, one = client.request(BY_NAME["DeleteQueue"], QueueName("a"))
    second, two = client.request(BY_NAME["Ping"], Empty())
    asked = [event for event in server.receive_data(one + two) if isinstance(event, Request)]
    data = b"".join(server.reply(event.operation.code, event.correlation, Empty()) for event in reversed(asked))
    assert [(answer.correlation, answer.operation) for answer in client.receive_data(data)] == [(second, 3), (first, 17)]
