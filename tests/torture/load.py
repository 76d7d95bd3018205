"""The load: one client process. `python -m tests.torture.load URL FILE NAME SEED PACE` works until its standard input ends.

Each process has two clients: a patient one, whose requests outlast every restart of the broker, so that the SDK's retries
bring all of them to an end, and a hasty one, whose requests often end with an unknown outcome. NAME says which event
loop: processes with an even number use trio, the others asyncio.

A body is its unique name and what follows from it, so that a single wrong byte shows; histories have the name alone.
"""

from __future__ import annotations

import contextlib
import random
import sys
import time
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import anyio
from penstock import AsyncClient, AsyncMessage, OutgoingMessage, SentMessage
from penstock.errors import MessageNotInFlight, NotConnected, PenstockError, ReceiptHandleExpired
from penstock.types import ReceivedMessage

from tests.checkers.history import QueueFacts
from tests.torture.record import Recorder

MAX_RECEIVES: Final = 3
QUEUES: Final = {
    "q": QueueFacts("dead", MAX_RECEIVES),
    "p": QueueFacts(),
    "f.fifo": QueueFacts("dead.fifo", MAX_RECEIVES),
    "e.fifo": QueueFacts(),
    "dead": QueueFacts(),
    "dead.fifo": QueueFacts(),
}
"""What the load works on. (Of a queue with a dead-letter queue less can be claimed once receives are lost; so there are
queues without one.)"""

PATIENCE_SECONDS: Final = 60.0
HASTE_SECONDS: Final = 0.7
VISIBILITY_SECONDS: Final = (0.5, 1.0, 2.0, 4.0)
GROUPS_LIVE_SECONDS: Final = 20.0
"""New message groups after that time: checking their order costs the square of their size."""
POISON: Final = 30
"""One message in so many is never deleted where there is a dead-letter queue."""
LONGEST_BODY_BYTES: Final = 3_000


def body_of(name: str) -> bytes:
    """The one body of that name."""
    check = zlib.crc32(name.encode())
    length = check % LONGEST_BODY_BYTES if check % 7 == 0 else check % 200
    return f"{name}|{check:08x}|".encode() + random.Random(check).randbytes(length)


def name_of(body: bytes) -> str:
    """The name of a body; of one that nobody can have sent, a name that nobody used."""
    name = body.partition(b"|")[0].decode(errors="replace")
    return name if body_of(name) == body else f"broken body {body[:60]!r} of {len(body)} bytes"


def describe(message: ReceivedMessage) -> list[Any]:
    """A message as histories have it."""
    text = message.attributes.get("text")
    return [
        name_of(message.body),
        message.sequence,
        message.receive_count,
        message.group,
        message.dead_letter_source,
        round(message.sent_at.timestamp() * 1000),
        None if text is None else str(text),
    ]


class Load:
    """The tasks of one process."""

    def __init__(self, recorder: Recorder, name: str, seed: int, pace: float) -> None:
        self.recorder = recorder
        self.name = name
        self.chance = random.Random(f"{seed} {name}")
        self.pace = pace
        self.stopped = anyio.Event()
        self._bodies = 0
        self._attempts = 0
        self._identities: list[str] = []

    async def run(self, url: str) -> None:
        """Works until standard input ends."""
        patient = AsyncClient(url, request_timeout=PATIENCE_SECONDS, connect_timeout=PATIENCE_SECONDS)
        hasty = AsyncClient(url, request_timeout=HASTE_SECONDS, connect_timeout=PATIENCE_SECONDS)
        async with patient, hasty, anyio.create_task_group() as tasks:
            for client in (patient, patient, hasty):
                tasks.start_soon(self._repeat, self._send, client)
                tasks.start_soon(self._repeat, self._send_fifo, client)
                tasks.start_soon(self._repeat, self._receive, client)
            for _ in range(2):
                tasks.start_soon(self._repeat, self._receive, patient)
            await anyio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
            self.stopped.set()

    async def _repeat(self, action: Callable[[AsyncClient], Awaitable[None]], client: AsyncClient) -> None:
        while not self.stopped.is_set():
            await action(client)
            with anyio.move_on_after(self.chance.random() * 2 * self.pace):
                await self.stopped.wait()

    def _new_name(self) -> str:
        self._bodies += 1
        return f"{self.name}-{self._bodies}"

    # Sending

    async def _send(self, client: AsyncClient) -> None:
        """Some messages to a standard queue: alone, with properties, or as a batch."""
        chance = self.chance
        queue = chance.choice(("q", "p"))
        names = [self._new_name() for _ in range(chance.choice((1, 1, 1, 3, 10)))]
        delays = [chance.choice((0.3, 1.5)) if chance.random() < 0.05 else 0 for _ in names]
        texts = [f"of {name}" if chance.random() < 0.2 else None for name in names]
        groups = [chance.choice(("t0", "t1", None)) if queue == "p" else None for _ in names]
        operation = self.recorder.begin("send", queue=queue, bodies=names, delays=delays, texts=texts, groups=groups)
        messages = [
            OutgoingMessage(body_of(name), {"text": text} if text else {}, delay_seconds=delay or None, group=group)
            for name, delay, text, group in zip(names, delays, texts, groups, strict=True)
        ]
        await self._finish_send(client, queue, operation, messages)

    async def _send_fifo(self, client: AsyncClient) -> None:
        """The same to a FIFO queue. Some repeat a deduplication id."""
        chance = self.chance
        queue = chance.choice(("e.fifo", "e.fifo", "f.fifo"))
        names = [self._new_name() for _ in range(chance.choice((1, 1, 2, 5)))]
        age = int(time.monotonic() / GROUPS_LIVE_SECONDS)
        groups = [f"g{age}-{chance.randrange(5)}" for _ in names]
        identities = [f"{queue}:{name}" for name in names]
        known = [one for one in self._identities if one.startswith(f"{queue}:")]
        if known and chance.random() < 0.1:
            identities[0] = chance.choice(known)
        self._identities = (self._identities + identities)[-40:]
        operation = self.recorder.begin("send", queue=queue, bodies=names, groups=groups, ids=identities)
        messages = [
            OutgoingMessage(body_of(name), group=group, deduplication_id=identity)
            for name, group, identity in zip(names, groups, identities, strict=True)
        ]
        await self._finish_send(client, queue, operation, messages)

    async def _finish_send(self, client: AsyncClient, queue: str, operation: int, messages: list[OutgoingMessage]) -> None:
        try:
            results = await client.queue(queue).send_many(messages)
        except NotConnected as error:
            # That promises that nothing was sent.
            self.recorder.end(operation, outcome="fail", error=repr(error))
        except PenstockError as error:
            self.recorder.end(operation, outcome="info", error=repr(error))
        else:
            self.recorder.end(operation, [one.sequence for one in results if isinstance(one, SentMessage)])

    # Receiving

    async def _receive(self, client: AsyncClient) -> None:
        """Receives, and deletes most of it: at once, a little later, too late, or never."""
        chance = self.chance
        queue = chance.choice(("q", "p", "e.fifo", "f.fifo"))
        visibility = chance.choice(VISIBILITY_SECONDS)
        messages = None
        if queue == "e.fifo" and chance.random() < 0.2:
            # As if the first reply had been lost: the same attempt again brings the same messages.
            self._attempts += 1
            attempt = f"{self.name}-{self._attempts}"
            await self._take(client, queue, visibility, attempt)
            messages = await self._take(client, queue, visibility, attempt)
        else:
            messages = await self._take(client, queue, visibility)
        if not messages:
            return
        started, taken = messages
        fate = chance.random()
        if fate < 0.08:
            return
        until = started + visibility
        if fate < 0.2:
            timeout = chance.choice((0.0, 0.3, 3.0))
            one = chance.choice(taken)
            until = min(until, time.monotonic() + timeout)
            await self._change(client, queue, one, timeout)
        if fate < 0.26:
            with anyio.move_on_after(visibility * 1.2):
                await self.stopped.wait()
        async with anyio.create_task_group() as tasks:
            for message in taken:
                if QUEUES[queue].dead_letter and zlib.crc32(message.body) % POISON == 0:
                    continue
                tasks.start_soon(self._delete, client, queue, message, started, until)

    async def _take(
        self, client: AsyncClient, queue: str, visibility: float, attempt: str = ""
    ) -> tuple[float, list[AsyncMessage]] | None:
        most = self.chance.randint(1, 20)
        wait = self.chance.choice((0.0, 0.2, 0.2))
        if attempt:
            most, wait = 10, 0.0
        started = time.monotonic()
        operation = self.recorder.begin("receive", queue=queue, visibility=visibility, wait=wait, most=most, attempt=attempt)
        try:
            taken = await client.queue(queue).receive(most, wait_seconds=wait, visibility_timeout=visibility, attempt_id=attempt)
        except PenstockError as error:
            self.recorder.end(operation, outcome="info", error=repr(error))
            return None
        self.recorder.end(operation, [describe(message) for message in taken])
        return (started, taken) if taken else None

    def _settling(self, name: str, queue: str, message: AsyncMessage, **more: Any) -> int:
        more |= {"bodies": [name_of(message.body)], "sequences": [message.sequence], "counts": [message.receive_count]}
        return self.recorder.begin(name, queue=queue, **more)

    async def _delete(self, client: AsyncClient, queue: str, message: AsyncMessage, received: float, until: float) -> None:
        operation = self._settling("delete", queue, message, received=received, visible_until=[until])
        try:
            await client.queue(queue).delete(message)
        except (ReceiptHandleExpired, MessageNotInFlight):
            self.recorder.end(operation, [name_of(message.body)])
        except PenstockError as error:
            self.recorder.end(operation, outcome="info", error=repr(error))
        else:
            self.recorder.end(operation, [])

    async def _change(self, client: AsyncClient, queue: str, message: AsyncMessage, timeout: float) -> None:
        """(Of a refused change nobody knows whether an earlier try, whose reply was lost, had worked.)"""
        operation = self._settling("change", queue, message, timeout=timeout)
        try:
            await client.queue(queue).change_visibility(message, timeout)
        except PenstockError as error:
            self.recorder.end(operation, outcome="info", error=repr(error))
        else:
            self.recorder.end(operation, [])


def main() -> None:
    """See the module."""
    url, path, name, seed, pace = sys.argv[1:]
    recorder = Recorder(Path(path), name)

    async def run() -> None:
        await Load(recorder, name, int(seed), float(pace)).run(url)

    with contextlib.closing(recorder):
        anyio.run(run, backend="trio" if int(name.removeprefix("c")) % 2 == 0 else "asyncio")


if __name__ == "__main__":
    main()
