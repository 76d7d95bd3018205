"""What a queue remembers so that nothing is done twice: answered sends, deduplication ids, receive attempts.

- A producer (one SDK client) numbers its sends; the answer of each is kept until the producer says that it has it
  (`acknowledged`), or for PRODUCER_WINDOW_MS.
- A FIFO queue keeps deduplication ids for 5 minutes from the first send, also after the message is deleted (SQS).
- A receive attempt id is kept for 5 minutes (SQS: ReceiveRequestAttemptId).

New memories are written with the commit that makes them true: one row per commit.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from typing import Any

import msgpack
from penstock_protocol.errors import InvalidRequest
from penstock_protocol.queue_messages import Failure, Run, SendReply
from penstock_storage.interface import DeduplicationRow, LogId

from penstock_broker.queues import limits

KEY_BYTES = 16


@dataclasses.dataclass(slots=True)
class _Producer:
    answers: dict[int, tuple[int, SendReply]]
    """When, and what, the oldest first."""
    used_ms: int
    acknowledged: int = 0
    """Every lower number has been answered, and its answer forgotten: what comes with one is a late copy."""

    def acknowledge(self, acknowledged: int) -> None:
        """Forgets what the producer says that it has. (From the front only: a send must not cost a look at all of them.)"""
        self.acknowledged = max(self.acknowledged, acknowledged)
        while self.answers and (oldest := next(iter(self.answers))) < self.acknowledged:
            del self.answers[oldest]

    def forget(self, before_ms: int) -> None:
        """Forgets answers that are too old to be asked for again, also of a producer that never acknowledges."""
        while self.answers and self.answers[oldest := next(iter(self.answers))][0] < before_ms:
            del self.answers[oldest]


def key_of(deduplication_id: str, group: str | None) -> bytes:
    """The key under which a deduplication id is kept; with a group when the scope is the group."""
    scoped = deduplication_id if group is None else f"{group}\0{deduplication_id}"
    return hashlib.blake2b(scoped.encode(), digest_size=KEY_BYTES).digest()


def content_id(body: bytes) -> str:
    """The deduplication id of content-based deduplication: SHA-256 of the body only (SQS)."""
    return hashlib.sha256(body).hexdigest()


class Deduplication:
    """The memory of one queue."""

    def __init__(self, log_id: LogId) -> None:
        self._log_id = log_id
        self._producers: dict[bytes, _Producer] = {}
        self._keys: dict[bytes, int] = {}
        self._keys_by_age: deque[tuple[int, list[bytes], list[int]]] = deque()
        """Those of one moment together, with their sequence numbers."""
        self._attempts: dict[str, int] = {}
        self._attempts_by_age: deque[tuple[int, str, int]] = deque()
        self._new_answers: list[tuple[bytes, int, SendReply]] = []
        self._new_keys: list[tuple[bytes, int]] = []
        self._new_attempts: list[tuple[str, int]] = []
        self._forgotten_ms = 0

    def answered(self, producer: bytes, sequence: int, acknowledged: int, now_ms: int) -> SendReply | None:
        """The answer a send got before, if this is a retry. Also forgets what the producer has acknowledged.

        InvalidRequest for a send that was acknowledged: a copy that the network kept back is not to be stored again."""
        known = self._producers.get(producer)
        if known is None:
            return None
        if sequence < known.acknowledged:
            raise InvalidRequest(f"sequence {sequence} was answered, and acknowledged, before")
        known.used_ms = now_ms
        known.acknowledge(acknowledged)
        _, answer = known.answers.get(sequence, (0, None))
        return answer

    def remember_answer(self, producer: bytes, sequence: int, reply: SendReply, now_ms: int) -> None:
        """The send was decided; a retry gets the same reply."""
        known = self._producers.get(producer)
        if known is None:
            known = self._producers[producer] = _Producer({}, now_ms)
        known.answers[sequence] = (now_ms, reply)
        known.used_ms = now_ms
        self._new_answers.append((producer, sequence, reply))

    def sequence_of(self, key: bytes, now_ms: int) -> int | None:
        """The sequence number of the message that used this deduplication id in the last 5 minutes."""
        self.expire(now_ms)
        return self._keys.get(key)

    def remember_key(self, key: bytes, sequence: int, now_ms: int) -> None:
        """A message with this deduplication id was accepted."""
        self._keys[key] = sequence
        by_age = self._keys_by_age
        if by_age and (newest := by_age[-1])[0] == now_ms:
            newest[1].append(key)
            newest[2].append(sequence)
        else:
            by_age.append((now_ms, [key], [sequence]))
        self._new_keys.append((key, sequence))

    def attempt(self, attempt_id: str, now_ms: int) -> int | None:
        """The delivery that answered this receive attempt in the last 5 minutes."""
        self.expire(now_ms)
        return self._attempts.get(attempt_id)

    def remember_attempt(self, attempt_id: str, number: int, now_ms: int) -> None:
        """A delivery answered this attempt."""
        self._attempts[attempt_id] = number
        self._attempts_by_age.append((now_ms, attempt_id, number))
        self._new_attempts.append((attempt_id, number))

    def expire(self, now_ms: int) -> None:
        """Forgets deduplication ids and attempts whose window has ended."""
        keys = self._keys_by_age
        bound = now_ms - limits.DEDUPLICATION_WINDOW_MS
        while keys and keys[0][0] <= bound:
            _, of_then, sequences = keys.popleft()
            for key, sequence in zip(of_then, sequences, strict=True):
                if self._keys.get(key) == sequence:
                    del self._keys[key]
        attempts = self._attempts_by_age
        bound = now_ms - limits.ATTEMPT_WINDOW_MS
        while attempts and attempts[0][0] <= bound:
            _, attempt_id, number = attempts.popleft()
            if self._attempts.get(attempt_id) == number:
                del self._attempts[attempt_id]

    def next_deadline(self) -> int | None:
        """When `expire` is worth while, should nothing else happen: a minute after something could be forgotten."""
        oldest = [by_age[0][0] for by_age in (self._keys_by_age, self._attempts_by_age) if by_age]
        return min(oldest) + limits.DEDUPLICATION_WINDOW_MS + limits.MINUTE_MS if oldest else None

    @property
    def has_news(self) -> bool:
        """Whether the next commit has something to remember."""
        return bool(self._new_answers or self._new_keys or self._new_attempts)

    def collect(self, number: int, now_ms: int) -> DeduplicationRow:
        """The row for the next commit; what is new counts as written from here on."""
        acknowledged = {
            producer: known.acknowledged
            for producer in {producer for producer, _, _ in self._new_answers}
            if (known := self._producers.get(producer)) is not None and known.acknowledged
        }
        entries = msgpack.packb(
            (
                [
                    (producer, sequence, [(run.first, run.count) for run in reply.runs], _failures(reply))
                    for producer, sequence, reply in self._new_answers
                ],
                b"".join(key for key, _ in self._new_keys),
                [sequence for _, sequence in self._new_keys],
                self._new_attempts,
                list(acknowledged.items()),
            )
        )
        self._new_answers, self._new_keys, self._new_attempts = [], [], []
        return DeduplicationRow(self._log_id, now_ms, number, entries)

    def forget(self, now_ms: int) -> int | None:
        """Once a minute: drops silent producers and old answers; returns the age bound below which rows may go, else None."""
        if now_ms - self._forgotten_ms < limits.MINUTE_MS:
            return None
        self._forgotten_ms = now_ms
        self.expire(now_ms)
        bound = now_ms - limits.PRODUCER_WINDOW_MS
        for producer in [name for name, known in self._producers.items() if known.used_ms < bound]:
            del self._producers[producer]
        for known in self._producers.values():
            known.forget(bound)
        return bound

    def restore(self, rows: list[DeduplicationRow]) -> None:
        """Takes up what earlier commits wrote."""
        for row in rows:
            answers, keys, sequences, attempts, acknowledged = _unpack(row.entries)
            for producer, sequence, runs, failures in answers:
                reply = SendReply(self._log_id, [Run(first, count) for first, count in runs], [Failure(*one) for one in failures])
                known = self._producers.setdefault(producer, _Producer({}, row.at_ms))
                known.answers[sequence] = (row.at_ms, reply)
                known.used_ms = max(known.used_ms, row.at_ms)
            for producer, number in acknowledged:
                self._producers[producer].acknowledge(number)
            of_row: list[bytes] = []
            for place, sequence in enumerate(sequences):
                key = keys[place * KEY_BYTES : (place + 1) * KEY_BYTES]
                self._keys[key] = sequence
                of_row.append(key)
            if of_row:
                self._keys_by_age.append((row.at_ms, of_row, sequences))
            for attempt_id, number in attempts:
                self._attempts[attempt_id] = number
                self._attempts_by_age.append((row.at_ms, attempt_id, number))


def _failures(reply: SendReply) -> list[tuple[int, int, str]]:
    return [(failure.index, failure.code, failure.text) for failure in reply.failures]


def _unpack(entries: bytes) -> Any:
    fields = msgpack.unpackb(entries, raw=False, max_array_len=len(entries))
    return fields if len(fields) > 4 else [*fields, []]  # earlier versions did not store what was acknowledged
