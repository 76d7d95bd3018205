"""Mutated byte streams: what a client writes in its life, with damage, thrown at a real broker over real sockets.

All the while a healthy client of another account sends, receives and deletes, and must be answered.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

import trio
from penstock import AsyncClient
from penstock.errors import PenstockError
from penstock_protocol import queue_messages as q
from penstock_protocol import session_messages as s
from penstock_protocol.codec import Message
from penstock_protocol.connection import ClientConnection
from penstock_protocol.errors import InternalError
from penstock_protocol.frames import HEADER_BYTES
from penstock_protocol.operations import BY_NAME, BY_REQUEST

ATTACKERS: Final = 8
REPORT_STREAMS: Final = 100
ANSWER_SECONDS: Final = 30.0
NAMES: Final = ("a", "b", "c.fifo", "dead", "no such queue", "", "x" * 81)
NUMBERS: Final = (0, 1, 2, 10, 10_001, 2**31, 2**63 - 1, 2**64 - 1, -1)
TELLING: Final = (0x00, 0x7F, 0x80, 0x90, 0xC0, 0xC1, 0xC4, 0xC6, 0xD9, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF, 0xFF)
"""Bytes that mean something to msgpack: lengths, arrays, maps, nothing."""


def _requests(chance: random.Random) -> list[tuple[str, Message]]:
    """One request of most operations, with small random content."""
    name = chance.choice(NAMES)
    receipt = q.Receipt(chance.randbytes(chance.choice((16, 24, 40))), chance.choice((0, 1, 5)), chance.randbytes(2))
    bodies = [chance.randbytes(chance.randrange(300)) for _ in range(chance.choice((1, 1, 3, 30)))]
    groups = ["g" for _ in bodies] if name.endswith(".fifo") else None
    text = q.Attribute("text", chance.choice(("String", "Number", "Binary", "")), chance.choice(("1", b"\x00")))
    send = q.SendMessages(
        name,
        [*bodies],
        [[text]] * len(bodies) if chance.random() < 0.3 else None,
        groups=[*groups] if groups else None,
        deduplication_ids=[str(place) for place in range(len(bodies))] if groups else None,
        sequence=chance.randrange(5),
        acknowledged=chance.randrange(5),
    )
    settings = [q.Setting(chance.choice(("visibility_timeout_ms", "delay_ms", "nonsense")), chance.choice(NUMBERS[:6]))]
    requests: list[Message] = [
        q.CreateQueue(chance.choice(NAMES), chance.choice((None, settings)), [q.Tag("k", "v")]),
        send,
        send,
        q.ReceiveMessages(
            name, chance.choice(NUMBERS[1:5]), 1_000, chance.choice((0, 0, 20_000)), attempt_id="a" * (len(name) % 3)
        ),
        q.DeleteMessages(name, [receipt]),
        q.ChangeVisibility(name, [receipt], [chance.choice(NUMBERS[:6])]),
        q.PeekMessages(name, chance.choice(("any", "visible", "?")), 10, chance.randbytes(chance.choice((0, 8)))),
        q.Consume(name, chance.choice(NUMBERS[1:6]), release=True),
        q.Credit(chance.randrange(9), chance.choice(NUMBERS[:6])),
        s.Cancel(chance.randrange(9)),
        q.TagQueue(name, [q.Tag("k", "v" * chance.choice((1, 300)))]),
        q.UntagQueue(name, ["k"]),
        q.SetQueueSettings(name, settings),
        q.ListQueues("", "", chance.choice((1, 1_000))),
        q.StartMoveTask("dead", name, 0),
        q.MoveTaskId("x"),
    ]
    found = [(BY_REQUEST[type(one)].name, one) for one in requests]
    return found + [(operation, q.QueueName(name)) for operation in ("DescribeQueue", "PurgeQueue", "ListDeadLetterSources")]


def stream_of(chance: random.Random) -> bytes:
    """What a client may have written, with damage at a few places, or nothing of the kind at all."""
    if chance.random() < 0.03:
        return chance.randbytes(chance.randrange(2_000))
    connection = ClientConnection()
    hello = s.Hello("torture", chance.randbytes(16), chance.choice(("", "1" * 12)))
    parts = [connection.preface(), connection.request(BY_NAME["Hello"], hello)[1]]
    connection.opened(16 * 2**20)
    for name, message in chance.choices(_requests(chance), k=chance.randrange(1, 12)):
        parts.append(connection.request(BY_NAME[name], message)[1])
    # Most damage is done behind the hello: before it little is listened to.
    damaged = chance.choices(range(len(parts)), [0.1, 0.3] + [1.0] * (len(parts) - 2), k=chance.choice((0, 1, 1, 2, 5)))
    for place in damaged:
        parts[place] = _damage(parts[place], chance)
    if chance.random() < 0.1:
        chance.shuffle(parts)
    return b"".join(parts)


def _damage(data: bytes, chance: random.Random) -> bytes:
    if not data:
        return chance.randbytes(3)
    place = chance.randrange(len(data))
    kind = chance.randrange(8)
    if kind == 0:
        return data[:place] + bytes((data[place] ^ 1 << chance.randrange(8),)) + data[place + 1 :]
    if kind == 1:
        return data[:place]
    if kind == 2:
        return data[:place] + chance.randbytes(chance.randrange(1, 40)) + data[place:]
    if kind == 3:
        return data[:place] + data[place + chance.randrange(1, 9) :]
    if kind == 4:
        return data[:place] + bytes((chance.choice(TELLING),)) + data[place + 1 :]
    if kind == 5:
        # Another length than the body has, or another operation.
        start = chance.choice((0, 4, 6, 8))
        return data[:start] + chance.randbytes(2) + data[start + 2 :]
    if kind == 6:
        # A body of its own under a header that fits.
        body = bytes(chance.choice(TELLING) for _ in range(chance.randrange(1, 60)))
        return len(body).to_bytes(4, "big") + data[4:HEADER_BYTES] + body
    return data + data[place:]


class _Attack:
    def __init__(self, port: int, streams: int, seed: int, say: Callable[..., None]) -> None:
        self._port = port
        self._left = streams
        self._seed = seed
        self._say = say
        self._done = 0
        self._answers = 0
        self._healthy = 0
        self._complaints: list[str] = []

    async def run(self) -> None:
        async with trio.open_nursery() as outer:
            outer.start_soon(self._be_healthy)
            async with trio.open_nursery() as attackers:
                for _ in range(ATTACKERS):
                    attackers.start_soon(self._throw)
            outer.cancel_scope.cancel()
        self._report()

    def _report(self) -> None:
        self._say(done=self._done, answers=self._answers, healthy=self._healthy, complaints=self._complaints)
        self._done = self._answers = self._healthy = 0
        self._complaints = []

    async def _be_healthy(self) -> None:
        """One connection, made once."""
        name = f"healthy-{self._seed}"
        async with AsyncClient(
            f"penstock://127.0.0.1:{self._port}", account="222222222222", request_timeout=ANSWER_SECONDS
        ) as client:
            queue = await client.create_queue(name)
            number = 0
            while True:
                number += 1
                try:
                    await queue.send(str(number))
                    [message] = await queue.receive(1, wait_seconds=5)
                    await message.delete()
                except (PenstockError, ValueError) as error:
                    self._complaints.append(f"the healthy connection got {error!r}")
                    return
                if message.text != str(number):
                    self._complaints.append(f"the healthy connection sent {number} and got {message.text}")
                self._healthy += 1
                await trio.sleep(0.005)

    async def _throw(self) -> None:
        while self._left > 0:
            self._left -= 1
            seed = self._seed * 1_000_000_007 + self._left
            try:
                with trio.fail_after(ANSWER_SECONDS):
                    await self._throw_one(random.Random(seed))
            except trio.TooSlowError:
                self._complaints.append(f"stream {seed}: the broker neither answers nor closes")
            self._done += 1
            if self._done >= REPORT_STREAMS:
                self._report()

    async def _throw_one(self, chance: random.Random) -> None:
        data = stream_of(chance)
        stream = await trio.open_tcp_stream("127.0.0.1", self._port)
        connection = ClientConnection()
        connection.opened(16 * 2**20)
        async with stream:
            try:
                cut = chance.randrange(len(data) + 1)
                await stream.send_all(data[:cut])
                await stream.send_all(data[cut:])
                if chance.random() < 0.1:
                    return  # gone without a word
                await stream.send_eof()
                async for received in stream:
                    for answer in connection.receive_data(bytes(received)):
                        self._answers += 1
                        try:
                            answer.message()
                        except InternalError as error:
                            self._complaints.append(f"{data!r} was answered with {error!r}")
                        except PenstockError:
                            pass  # a typed error is a good answer
            except trio.BrokenResourceError:
                pass  # it hung up while we were writing
            except PenstockError as error:
                if isinstance(error, InternalError):
                    self._complaints.append(f"{data!r} was answered with {error!r}")


def attack(port: int, streams: int, seed: int, say: Callable[..., Any]) -> None:
    """Throws so many streams."""
    trio.run(_Attack(port, streams, seed, say).run)
