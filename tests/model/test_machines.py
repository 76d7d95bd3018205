"""Random histories of one queue against a short reference, with a crash, a failed or an unknown commit between any two steps.

The reference holds two states: what is durable and what is in memory. A commit makes the one the other; whatever forgets
memory goes back. `PENSTOCK_MODEL_EXAMPLES` sets how many histories are tried (drawn anew each time then; the default few
are always the same).
"""

from __future__ import annotations

import copy
import dataclasses
import os
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from penstock_broker.queues import limits
from penstock_protocol import queue_messages as q
from penstock_storage.memory import Fault

from tests.model.bench import Bench, receipts_of

MOSTLY = st.sampled_from((True, True, True, False))
EXAMPLES = int(os.environ.get("PENSTOCK_MODEL_EXAMPLES", "0"))

SMALL = {
    "SEGMENT_MESSAGES": 3,
    "SEGMENT_BYTES": 40,
    "WINDOW_MESSAGES": 5,
    "FIFO_WINDOW_MESSAGES": 1_000,
    "LOW_WATER_MESSAGES": 2,
    "DELAYED_SEGMENTS": 2,
    "CONTENT_BYTES": 1_500,
    "RESERVE_SEQUENCES": 5,
    "REWRITE_BYTES": 10,
    "REWRITES": 1,
}
"""Limits that a few messages reach."""


@dataclasses.dataclass
class Message:
    """A message that is not deleted. It is in flight while it was received and `visible_ms` is ahead."""

    body: bytes
    group: str | None
    visible_ms: int
    count: int = 0
    receipt: bytes = b""
    published: bool = False

    def waits(self, now_ms: int) -> bool:
        """Whether it could be received, groups aside."""
        return self.published and self.visible_ms <= now_ms

    def in_flight(self, now_ms: int) -> bool:
        """Whether somebody has it."""
        return self.count > 0 and self.visible_ms > now_ms


@dataclasses.dataclass
class State:
    """All that there is to know."""

    messages: dict[int, Message] = dataclasses.field(default_factory=dict)
    receipts: list[tuple[int, q.Receipt]] = dataclasses.field(default_factory=list)
    ids: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    answers: dict[int, tuple[q.SendReply, bytes]] = dataclasses.field(default_factory=dict)
    attempts: dict[str, tuple[bytes, int]] = dataclasses.field(default_factory=dict)
    sends: int = 0


class QueueMachine(RuleBasedStateMachine):
    """What standard and FIFO queues have in common."""

    name = "q"

    def __init__(self) -> None:
        super().__init__()
        self.patches = [mock.patch.object(limits, name, value) for name, value in SMALL.items()]
        for patch in self.patches:
            patch.start()
        self.bench = Bench(self.name)
        self.memory = State()
        self.durable = State()
        self.bodies = 0

    def teardown(self) -> None:
        """The limits are large again."""
        for patch in self.patches:
            patch.stop()

    # What changes nothing but memory

    def _send(self, count: int, *, numbered: bool, **columns: Any) -> q.SendReply:
        bodies = [f"body {self.bodies + place}".encode() for place in range(count)]
        self.bodies += count
        state = self.memory
        state.sends += numbered
        reply = self.bench.send(*bodies, sequence=state.sends if numbered else 0, acknowledged=1, **columns)
        if numbered:
            state.answers[state.sends] = (reply, bodies[0])
        numbers = [run.first + place for run in reply.runs for place in range(run.count)]
        assert len(numbers) == count and not reply.failures
        groups = columns.get("groups") or [None] * count
        delays = columns.get("delays_ms") or [0] * count
        ids = columns.get("deduplication_ids") or [None] * count
        for body, group, delay_ms, identity, number in zip(bodies, groups, delays, ids, numbers, strict=True):
            known = state.ids.get(identity) if identity else None
            # (After a reload the window counts from the commit of the send: it may end a little later, never earlier.)
            if known is not None and (number == known[0] or known[1] + limits.DEDUPLICATION_WINDOW_MS > self.bench.now_ms):
                assert number == known[0]
                continue
            assert number not in state.messages
            if identity:
                state.ids[identity] = (number, self.bench.now_ms)
            state.messages[number] = Message(body, group, self.bench.now_ms + delay_ms if delay_ms else 0)
        return reply

    @precondition(lambda self: self.memory.answers)
    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        """A retry is answered as the first time, and adds nothing."""
        number = data.draw(st.sampled_from(sorted(self.memory.answers)))
        reply, body = self.memory.answers[number]
        assert self.bench.send(body, sequence=number, acknowledged=1) == reply

    def _commit_mostly(self, commits: bool) -> None:
        # (Left to themselves, random rules seldom commit, and then there is nothing to receive.)
        if commits:
            self.commit(None)

    @rule(most=st.integers(1, 6), visibility_ms=st.sampled_from((0, 1_000, 30_000)), commits=MOSTLY)
    def receive(self, most: int, visibility_ms: int, commits: bool) -> None:
        """What comes was there to be had; nothing comes only when nothing was."""
        self._commit_mostly(commits)
        self._take(self.bench.receive(most, visibility_ms), most, visibility_ms)

    def _take(self, deliveries: list[q.Delivery], most: int, visibility_ms: int) -> None:
        now_ms, state = self.bench.now_ms, self.memory
        taken: list[int] = []
        servable = self._servable()
        for delivery in deliveries:
            indexes = delivery.indexes
            places = range(indexes, indexes + len(delivery.bodies)) if isinstance(indexes, int) else indexes
            for body, index, receipt in zip(delivery.bodies, places, receipts_of(delivery), strict=True):
                number = delivery.first + index
                message = state.messages[number]
                assert number in servable and number not in taken
                assert (body, message.count + 1) == (message.body, delivery.receive_count)
                taken.append(number)
                message.count += 1
                message.receipt = delivery.receipt
                state.receipts.append((number, receipt))
        assert len(taken) <= most
        assert taken or not servable
        self._check_order(taken)
        for number in taken:
            state.messages[number].visible_ms = now_ms + visibility_ms

    def _servable(self) -> set[int]:
        """What a receive may bring now."""
        return {number for number, message in self.memory.messages.items() if message.waits(self.bench.now_ms)}

    def _check_order(self, taken: list[int]) -> None:
        """A standard queue promises none."""

    def _is_valid(self, number: int, receipt: q.Receipt) -> bool:
        message = self.memory.messages[number]
        return message.receipt == receipt.receipt

    @precondition(lambda self: self.memory.receipts)
    @rule(data=st.data(), commits=MOSTLY)
    def delete(self, data: st.DataObject, commits: bool) -> None:
        """By a receipt of the last receive it is gone; an older one is refused; what is gone is gone."""
        self._commit_mostly(commits)
        chosen = data.draw(st.lists(st.sampled_from(self.memory.receipts), min_size=1, max_size=3))
        expected = []
        for entry, (number, receipt) in enumerate(chosen):
            if number not in self.memory.messages:
                continue
            if self._is_valid(number, receipt):
                del self.memory.messages[number]
            else:
                expected.append(entry)
        failures = self.bench.delete(*(receipt for _, receipt in chosen))
        assert [failure.entry for failure in failures] == expected

    @precondition(lambda self: self.memory.receipts)
    @rule(data=st.data(), timeout_ms=st.sampled_from((0, 0, 5_000)))
    def change_visibility(self, data: st.DataObject, timeout_ms: int) -> None:
        """It works on what is in flight by that receipt."""
        number, receipt = data.draw(st.sampled_from(self.memory.receipts))
        message = self.memory.messages.get(number)
        works = message is not None and message.receipt == receipt.receipt and message.in_flight(self.bench.now_ms)
        failures = self.bench.queue.change_visibility([receipt], [timeout_ms], self.bench.now_ms)
        assert bool(failures) == (not works)
        if message is not None and works:
            message.visible_ms = self.bench.now_ms + timeout_ms

    @rule()
    def purge(self) -> None:
        """Everything goes."""
        assert self.bench.queue.purge(self.bench.now_ms) == len(self.memory.messages)
        self.memory.messages.clear()

    @rule()
    def shed(self) -> None:
        """Content leaves memory."""
        self.bench.queue.shed()

    @rule(milliseconds=st.sampled_from((1, 500, 1_000, 30_000, 200_000)))
    def pass_time(self, milliseconds: int) -> None:
        """Time passes."""
        self.bench.now_ms += milliseconds

    # What makes memory durable, or forgets it

    @rule(fault=st.sampled_from((None, None, None, Fault.FAIL, Fault.UNKNOWN_APPLIED, Fault.UNKNOWN_LOST)))
    def commit(self, fault: Fault | None) -> None:
        """All or nothing."""
        outcome = self.bench.commit(fault)
        if outcome == "ok" or fault is Fault.UNKNOWN_APPLIED:
            for message in self.memory.messages.values():
                message.published = True
            self.durable = copy.deepcopy(self.memory)
        else:
            self.memory = copy.deepcopy(self.durable)

    @rule()
    def crash(self) -> None:
        """What was not committed is gone."""
        self.bench.reload()
        self.memory = copy.deepcopy(self.durable)

    # What always holds

    @rule()
    def count(self) -> None:
        """Counts are exact once pages are in."""
        queue, now_ms = self.bench.queue, self.bench.now_ms
        self.bench.page_in()
        queue.expire(now_ms)
        self.bench.page_in()
        living = self.memory.messages.values()
        delayed = sum(message.published and not message.count and message.visible_ms > now_ms for message in living)
        assert (queue.messages, queue.in_flight) == (len(living), sum(message.in_flight(now_ms) for message in living))
        assert queue.visible + queue.delayed == delayed + sum(message.waits(now_ms) for message in living)
        # (What became due behind a full window, in the store, is still counted as delayed.)
        assert queue.delayed == delayed or (queue._due and queue.delayed > delayed)
        assert living or queue.size_bytes == 0

    @invariant()
    def content_is_counted(self) -> None:
        """What is in memory is what is said to be."""
        queue = self.bench.queue
        held = sum(segment.memory_bytes() for segment in queue.segments.values())
        assert queue.content_bytes == self.bench.budget.used_bytes == held
        assert queue._ready.messages == sum(run.mask.bit_count() for run in queue._ready.runs())


class StandardMachine(QueueMachine):
    """Adds delays of single messages, and tenants."""

    @rule(
        entries=st.lists(
            st.tuples(st.sampled_from((None, None, 0, 1_000, 60_000)), st.sampled_from((None, "a", "a", "b", "c"))),
            min_size=1,
            max_size=5,
        ),
        numbered=st.booleans(),
        tenants=st.booleans(),
    )
    def send(self, entries: list[tuple[int | None, str | None]], numbered: bool, tenants: bool) -> None:
        """Sends a batch."""
        delays = [delay for delay, _ in entries]
        groups = [group for _, group in entries] if tenants else None
        self._send(len(entries), numbered=numbered, delays_ms=delays if any(delays) else None, groups=groups)


class FifoMachine(QueueMachine):
    """Adds groups, deduplication and receive attempts."""

    name = "q.fifo"

    @initialize(delay_ms=st.sampled_from((0, 0, 1_000)))
    def choose_delay(self, delay_ms: int) -> None:
        """Some queues delay everything."""
        self.delay_ms = delay_ms
        self.bench = Bench(self.name, delay_ms=delay_ms)

    @rule(delay_ms=st.sampled_from((0, 0, 1_000, 30_000)))
    def change_delay(self, delay_ms: int) -> None:
        """The delay of what is sent from now on; nothing overtakes what was sent before."""
        self.bench.queue.settings = self.bench.settings = dataclasses.replace(self.bench.settings, delay_ms=delay_ms)
        self.delay_ms = delay_ms

    @rule(entries=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30)), min_size=1, max_size=5), numbered=st.booleans())
    def send(self, entries: list[tuple[str, int]], numbered: bool) -> None:
        """Sends a batch; ids repeat now and then."""
        groups = [group for group, _ in entries]
        ids = [f"id-{identity}" for _, identity in entries]
        before = set(self.memory.messages)
        self._send(len(entries), numbered=numbered, groups=groups, deduplication_ids=ids)
        for number, message in self.memory.messages.items():
            if number not in before:
                message.visible_ms = self.bench.queue._open[-1].due_ms
                assert message.visible_ms >= (self.bench.now_ms + self.delay_ms if self.delay_ms else 0)

    @rule(
        most=st.integers(1, 4),
        visibility_ms=st.sampled_from((1_000, 30_000)),
        attempt=st.sampled_from(("x", "y")),
        commits=MOSTLY,
    )
    def receive_attempt(self, most: int, visibility_ms: int, attempt: str, commits: bool) -> None:
        """The same attempt brings the same again while all of it is in flight."""
        self._commit_mostly(commits)
        state, now_ms = self.memory, self.bench.now_ms
        deliveries = self.bench.receive(most, visibility_ms, attempt)
        receipt, at_ms = state.attempts.get(attempt, (b"", 0))
        left = {number for number, message in state.messages.items() if receipt and message.receipt == receipt}
        came = {delivery.receipt for delivery in deliveries}
        remembered = came == {receipt} or at_ms + limits.ATTEMPT_WINDOW_MS > now_ms
        if left and remembered and all(state.messages[one].in_flight(now_ms) for one in left):
            bodies = sorted(body for delivery in deliveries for body in delivery.bodies)
            assert bodies == sorted(state.messages[number].body for number in left)
            assert came == {receipt}
            for number in left:
                state.messages[number].visible_ms = now_ms + visibility_ms
            return
        self._take(deliveries, most, visibility_ms)
        if deliveries:
            state.attempts[attempt] = (deliveries[0].receipt, now_ms)

    def _servable(self) -> set[int]:
        now_ms = self.bench.now_ms
        found: set[int] = set()
        locked = set()
        for number, message in sorted(self.memory.messages.items()):
            if message.in_flight(now_ms):
                locked.add(message.group)
            elif message.waits(now_ms) and message.group not in locked:
                found.add(number)
        return found

    def _check_order(self, taken: list[int]) -> None:
        for group in "ab":
            mine = [number for number in taken if self.memory.messages[number].group == group]
            assert mine == sorted(mine)
            waiting = [
                number
                for number, message in sorted(self.memory.messages.items())
                if message.group == group and (number in mine or message.waits(self.bench.now_ms))
            ]
            assert mine == waiting[: len(mine)]

    def _is_valid(self, number: int, receipt: q.Receipt) -> bool:
        return super()._is_valid(number, receipt) and self.memory.messages[number].in_flight(self.bench.now_ms)


PROFILE = settings(
    max_examples=EXAMPLES or 150,
    stateful_step_count=40,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

TestStandardQueue = StandardMachine.TestCase
TestStandardQueue.settings = PROFILE
TestFifoQueue = FifoMachine.TestCase
TestFifoQueue.settings = PROFILE
