"""What is said about the connection itself, about access keys, and in every failed reply."""

from __future__ import annotations

import dataclasses

from penstock_protocol.codec import Message
from penstock_protocol.errors import PenstockError, error_from_wire


@dataclasses.dataclass(frozen=True, slots=True)
class Empty(Message):
    """A request or reply without content."""


@dataclasses.dataclass(frozen=True, slots=True)
class ErrorReply(Message):
    """The body of every ERROR frame."""

    code: int
    text: str

    def to_error(self) -> PenstockError:
        """The typed error the client raises."""
        return error_from_wire(self.code, self.text)

    @classmethod
    def of(cls, error: PenstockError) -> ErrorReply:
        """The wire form of a typed error; the text is cut at 1,000 characters."""
        return cls(error.code, str(error)[:1000])


@dataclasses.dataclass(frozen=True, slots=True)
class Hello(Message):
    """The first request. `producer` is 16 random bytes that name this client for idempotent sends, the same over
    reconnects; `account` and `region` choose the tenant, empty means the broker's default."""

    client: str
    producer: bytes
    account: str = ""
    region: str = ""
    key_id: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class HelloReply(Message):
    """The broker's limits. `challenge` is empty when no authentication is wanted, else 32 random bytes to sign."""

    server: str
    max_frame_bytes: int
    max_in_flight_requests: int
    challenge: bytes
    account: str
    region: str


@dataclasses.dataclass(frozen=True, slots=True)
class Authenticate(Message):
    """`proof` is HMAC-SHA256(secret, b"penstock-hello-1" + challenge + producer)."""

    proof: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Cancel(Message):
    """Ends a waiting receive or a consumer of this connection. One-way; the ended request is answered itself."""

    correlation: int


@dataclasses.dataclass(frozen=True, slots=True)
class CreateKey(Message):
    """Makes an access key. `role` is one of admin, user, producer, consumer, reader."""

    role: str
    description: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class AccessKey(Message):
    """An access key; `secret` is given once, by CreateKey, and empty ever after."""

    key_id: str
    secret: str
    role: str
    description: str
    created_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class KeyId(Message):
    """Names one access key."""

    key_id: str


@dataclasses.dataclass(frozen=True, slots=True)
class AccessKeys(Message):
    """All access keys of the account, without secrets."""

    keys: list[AccessKey]
