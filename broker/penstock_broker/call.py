"""A request on its way: who asked, and how to answer. It is answered exactly once."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from penstock_protocol.codec import Message
from penstock_protocol.errors import PenstockError
from penstock_protocol.operations import Operation


class Answerer(Protocol):
    """The session a call came from."""

    @property
    def max_frame_bytes(self) -> int:
        """No answer may be longer."""

    @property
    def has_room(self) -> bool:
        """Whether messages may be taken for it: what it has to write, and will have once commits are durable, is bounded."""

    async def wait_room(self) -> None:
        """Returns once there is room, or the connection is gone. A cancellation changes nothing."""

    def promise(self, size_bytes: int) -> None:
        """So much will have to be written after a commit (negative: that promise was kept, or came to nothing)."""

    def park(self, call: Call) -> None:
        """Has the dispatcher look after the call once there is room."""

    def answer(self, call: Call, message: Message | PenstockError) -> None:
        """Sends the reply or error."""

    def push(self, call: Call, message: Message) -> None:
        """Sends a push that belongs to the call."""

    def push_body(self, call: Call, body: bytes) -> None:
        """The same of a message that is encoded already: several connections may share its bytes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the tenant, the SDK client, and what it may do."""

    account: str
    region: str
    producer: bytes
    role: str
    key_id: str


@dataclasses.dataclass(slots=True, eq=False)
class Call:
    """One request. `size_bytes` is its body's length, for back pressure."""

    caller: Caller
    operation: Operation
    correlation: int
    size_bytes: int
    session: Answerer
    answered: bool = False
    waiter: Any = None
    """What waits for messages on its behalf, if anything does (a runtime.Waiter)."""
    preparing: bool = False
    """Whether its handler waits for something to be loaded."""

    def reply(self, message: Message) -> None:
        """Answers with success."""
        if not self.answered:
            self.answered = True
            self.session.answer(self, message)

    def fail(self, error: PenstockError) -> None:
        """Answers with an error."""
        if not self.answered:
            self.answered = True
            self.session.answer(self, error)

    def push(self, message: Message) -> None:
        """Sends one of many answers; nothing after the last."""
        if not self.answered:
            self.session.push(self, message)

    def push_body(self, body: bytes) -> None:
        """The same of a message that is encoded already."""
        if not self.answered:
            self.session.push_body(self, body)


class NotReady(Exception):
    """Raised by a handler that must wait for something first: `prepare` is awaited, then the handler is called again."""

    def __init__(self, prepare: Callable[[], Awaitable[None]]) -> None:
        super().__init__("not ready")
        self.prepare = prepare
