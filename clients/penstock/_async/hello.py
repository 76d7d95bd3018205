"""Opening a connection: hello, and the proof of who we are. PROTOCOL.md, section 3."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac

from penstock_protocol.connection import Answer, ClientConnection
from penstock_protocol.operations import BY_NAME
from penstock_protocol.session_messages import Authenticate, Hello, HelloReply

from penstock import _backend_async as backend
from penstock.errors import ProtocolError
from penstock.options import Options

CLIENT_NAME = "penstock-python/0.1"


@dataclasses.dataclass(frozen=True, slots=True)
class Welcome:
    """An open connection: what was read beyond the handshake, and how many requests may be in flight."""

    connection: ClientConnection
    early: list[Answer]
    max_in_flight: int


async def say_hello(stream: backend.Stream, options: Options, producer: bytes) -> Welcome:
    """Opens a connection on a fresh stream. Raises the broker's refusal (AuthenticationFailed …), ProtocolError when this is no
    broker, and what a broken connection raises. The caller bounds its time and closes the stream."""
    connection = ClientConnection()
    hello = Hello(CLIENT_NAME, producer, options.account, options.region, options.key_id)
    _, data = connection.request(BY_NAME["Hello"], hello)
    await stream.send(connection.preface() + data)
    answers = await _answers(stream, connection)
    reply = answers.pop(0).message()
    if not isinstance(reply, HelloReply):
        raise ProtocolError(f"hello was answered with {type(reply).__name__}")
    if reply.challenge:
        signed = b"penstock-hello-1" + reply.challenge + producer
        proof = hmac.new(options.secret.encode(), signed, hashlib.sha256).digest()
        _, data = connection.request(BY_NAME["Authenticate"], Authenticate(proof))
        await stream.send(data)
        answers = await _answers(stream, connection)
        answers.pop(0).message()
    connection.opened(reply.max_frame_bytes)
    return Welcome(connection, answers, reply.max_in_flight_requests)


async def _answers(stream: backend.Stream, connection: ClientConnection) -> list[Answer]:
    while True:
        data = await stream.receive()
        if not data:
            raise OSError("the broker closed the connection")
        answers = list(connection.receive_data(data))
        if answers:
            return answers
