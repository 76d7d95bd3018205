"""Decide, commit, publish: nothing is answered before it is durable, and what is not durable never happened."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from penstock_broker import lane as lane_module
from penstock_broker import session as session_module
from penstock_broker.counters import Counters
from penstock_broker.lane import FULL_PAUSE_MS, Lane, Participant
from penstock_broker.ports import Ports
from penstock_broker.queues.queue import Publication
from penstock_protocol import queue_messages as q
from penstock_protocol import session_messages as s
from penstock_protocol.codec import Message
from penstock_protocol.errors import OutcomeUnknown, Overloaded, PenstockError, QueueDoesNotExist, StoreFailed
from penstock_storage.interface import Commit, CommitFailed, CredentialRow, Fenced
from penstock_storage.memory import Fault, MemoryDisk, MemoryStore

from tests.broker.inside import EPOCH_MS, House, Peer, Threads, bodies_of, house, on_jumping_clock, receipts_of

HOUR_MS = 3_600_000


class Ledger:
    """A participant that writes one row per entry, and remembers what it was told."""

    def __init__(self, bench: Bench, name: str) -> None:
        self._bench = bench
        self.name = name
        self.entries: list[str] = []
        self.events: list[str] = []

    def put(self, entry: str) -> list[PenstockError | None]:
        """Changes it and asks for the commit; what the callback gets is in the list."""
        outcome: list[PenstockError | None] = []

        def done(error: PenstockError | None) -> None:
            outcome.append(error)
            self.events.append(f"{entry} answered")

        self.entries.append(entry)
        self._bench.lane.touch(self)
        self._bench.lane.submit(done, 100)
        return outcome

    def collect(self, commit: Commit, now_ms: int) -> Publication:
        """Writes its entries."""
        commit.upsert_credentials += [CredentialRow(entry, "0", "reader", "", b"", now_ms) for entry in self.entries]
        self.events.append(f"{'+'.join(self.entries)} collected")
        self.entries = []
        return Publication([], [])

    def publish(self, publication: Publication) -> bool:
        """They are durable."""
        self.events.append("published")
        return False


class Bench:
    """A lane over a store in memory, with what it reports."""

    def __init__(self) -> None:
        self.disk = MemoryDisk()
        self.faults: dict[str, Fault] = {}
        self.store = MemoryStore(self.disk, self.faults.get)
        self.threads = Threads()
        self.counters = Counters()
        self.discarded: list[tuple[str, str]] = []
        self.discarded_all: list[str] = []
        self.learned = 0
        ports = Ports(lambda: EPOCH_MS + int(trio.current_time() * 1000), random.Random(1).randbytes, self.threads.run)
        self.lane = Lane(
            self.store,
            ports,
            self.counters,
            "node",
            "",
            published=self._published,
            discarded=self._discard,
            discard_all=lambda error: self.discarded_all.append(error.name),
            learn=self._learn,
        )

    def _published(self, participant: Participant, woke: bool) -> None:
        assert isinstance(participant, Ledger)
        participant.events.append("served")

    def _discard(self, participant: Participant, error: PenstockError) -> None:
        assert isinstance(participant, Ledger)
        self.discarded.append((participant.name, error.name))

    async def _learn(self) -> Callable[[], None]:
        def put_in_force() -> None:
            self.learned += 1

        return put_in_force

    def stored(self) -> list[str]:
        """What is durable."""
        return sorted(row.key_id for row in MemoryStore(self.disk).load_credentials())


@contextlib.asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    """A lane that runs."""
    one = Bench()
    await one.lane.acquire()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.lane.run)
        yield one
        nursery.cancel_scope.cancel()


async def _settled() -> None:
    await trio.testing.wait_all_tasks_blocked()


@on_jumping_clock
async def test_who_asked_is_answered_after_the_commit_is_in_force_and_before_who_waits_is_served() -> None:
    async with bench() as one:
        ledger = Ledger(one, "a")
        one.threads.hold("commit")
        outcome = ledger.put("1")
        await _settled()
        assert outcome == [] and ledger.events == ["1 collected"] and one.stored() == []
        one.threads.release("commit")
        await _settled()
        assert ledger.events == ["1 collected", "published", "1 answered", "served"]
        assert outcome == [None] and one.stored() == ["1"]


@on_jumping_clock
async def test_while_one_commit_runs_the_next_one_fills() -> None:
    async with bench() as one:
        ledger, other = Ledger(one, "a"), Ledger(one, "b")
        one.threads.hold("commit")
        first = ledger.put("1")
        await _settled()
        rest = [ledger.put("2"), other.put("3"), ledger.put("4")]
        await _settled()
        assert first == [] and rest == [[], [], []]
        one.threads.release("commit")
        await _settled()
        assert first == [None] and rest == [[None]] * 3
        assert one.threads.calls.count("commit") == 2
        assert one.counters.commits == {"ok": 2}
        assert one.counters.commit_requests.total == 4


@on_jumping_clock
async def test_with_nothing_to_write_the_store_is_not_asked() -> None:
    async with bench() as one:
        await one.lane.commit()
        assert "commit" not in one.threads.calls


@pytest.mark.parametrize(
    ("fault", "error", "outcome", "stored"),
    [
        (Fault.FAIL, StoreFailed, "failed", []),
        (Fault.FULL, Overloaded, "full", []),
        (Fault.UNKNOWN_LOST, OutcomeUnknown, "unknown", []),
        (Fault.UNKNOWN_APPLIED, OutcomeUnknown, "unknown", ["1"]),
    ],
)
@on_jumping_clock
async def test_after_a_bad_commit_all_that_was_built_on_it_is_discarded(
    fault: Fault, error: type[PenstockError], outcome: str, stored: list[str]
) -> None:
    async with bench() as one:
        ledger, later, bystander = Ledger(one, "a"), Ledger(one, "later"), Ledger(one, "bystander")
        assert bystander.events == []
        one.threads.hold("commit")
        one.faults["commit"] = fault
        answer = ledger.put("1")
        await _settled()
        built_on_it = later.put("2")
        one.threads.release("commit")
        await _settled()
        del one.faults["commit"]
        assert [type(got) for got in answer] == [error]
        assert [type(got) for got in built_on_it] == [StoreFailed]
        assert one.discarded == [("a", "StoreFailed"), ("later", "StoreFailed")]
        assert one.stored() == stored
        assert one.counters.commits == {outcome: 1}
        assert "published" not in ledger.events
        assert Ledger(one, "new").put("3") == []
        await _settled()
        assert one.stored() == [*stored, "3"]


@on_jumping_clock
async def test_after_an_unknown_outcome_a_new_incarnation_begins_and_everything_is_learned_anew() -> None:
    async with bench() as one:
        before = one.lane.incarnation
        assert before is not None
        one.faults["commit"] = Fault.UNKNOWN_LOST
        Ledger(one, "a").put("1")
        await _settled()
        del one.faults["commit"]
        after = one.lane.incarnation
        assert after is not None and after.number > before.number
        assert one.discarded_all == ["StoreFailed"] and one.learned == 1
        with pytest.raises(CommitFailed):
            one.store.commit(before, Commit(delete_credentials=["x"]))


@on_jumping_clock
async def test_after_a_failed_commit_the_incarnation_stays() -> None:
    async with bench() as one:
        before = one.lane.incarnation
        one.faults["commit"] = Fault.FAIL
        Ledger(one, "a").put("1")
        await _settled()
        assert one.lane.incarnation is before and one.learned == 0 and one.lane.is_healthy


@on_jumping_clock
async def test_while_the_store_cannot_be_reached_everybody_is_refused_at_once_and_it_is_tried_again() -> None:
    async with bench() as one:
        one.faults.update(commit=Fault.UNKNOWN_LOST, acquire=Fault.FAIL)
        Ledger(one, "a").put("1")
        await _settled()
        del one.faults["commit"]
        assert not one.lane.is_healthy
        for number in range(5):
            await trio.sleep(3)
            refused = Ledger(one, f"while {number}").put(f"w{number}")
            await trio.sleep(2.1)
            assert [type(error) for error in refused] == [StoreFailed]
        attempts = one.threads.calls.count("acquire")
        assert 10 < attempts < 25, "with longer and longer pauses"
        del one.faults["acquire"]
        await trio.sleep(2.1)
        assert one.lane.is_healthy and one.learned == 1
        accepted = Ledger(one, "after").put("after")
        await _settled()
        assert accepted == [None] and one.stored() == ["after"]


@on_jumping_clock
async def test_a_full_store_refuses_sends_for_a_while_and_then_one_is_tried_again() -> None:
    async with bench() as one:
        assert not one.lane.refuses_sends()
        one.faults["commit"] = Fault.FULL
        Ledger(one, "a").put("1")
        await _settled()
        assert one.lane.refuses_sends()
        await trio.sleep(FULL_PAUSE_MS / 1000 + 0.01)
        assert not one.lane.refuses_sends()


@on_jumping_clock
async def test_a_fenced_lane_answers_who_waits_and_ends() -> None:
    one = Bench()
    await one.lane.acquire()
    MemoryStore(one.disk).acquire("another", "", 0)
    waiting = Ledger(one, "a").put("1")
    with pytest.raises(Fenced):
        await one.lane.run()
    assert [type(error) for error in waiting] == [StoreFailed]
    assert one.counters.commits == {"fenced": 1} and one.stored() == []


@on_jumping_clock
async def test_after_a_defect_what_waits_is_refused_and_all_memory_goes() -> None:
    async with bench() as one:
        ledger = Ledger(one, "a")
        waiting = ledger.put("1")
        one.lane.distrust()
        await _settled()
        assert [type(error) for error in waiting] == [StoreFailed]
        assert one.discarded_all == ["StoreFailed"] and one.stored() == [] and ledger.events == ["1 answered"]
        one.lane.distrust()
        await _settled()
        assert len(one.discarded_all) == 2, "also when nothing waits"


@on_jumping_clock
async def test_a_defect_does_not_touch_the_commit_that_runs() -> None:
    async with bench() as one:
        one.threads.hold("commit")
        running = Ledger(one, "a").put("1")
        await _settled()
        one.lane.distrust()
        one.threads.release("commit")
        await _settled()
        assert running == [None] and one.stored() == ["1"] and one.discarded_all == ["StoreFailed"]


@on_jumping_clock
async def test_after_a_doubt_nothing_is_committed_under_the_old_incarnation() -> None:
    async with bench() as one:
        before = one.lane.incarnation
        one.lane.doubt()
        refused = Ledger(one, "a").put("1")
        await _settled()
        assert [type(error) for error in refused] == [StoreFailed]
        assert one.lane.incarnation is not None and before is not None
        assert one.lane.incarnation.number > before.number and one.stored() == []


@on_jumping_clock
async def test_whoever_stops_waiting_for_a_commit_does_not_stop_it() -> None:
    async with bench() as one:
        one.threads.hold("commit")
        with trio.move_on_after(1):
            await one.lane.commit(lambda commit: commit.upsert_credentials.append(CredentialRow("1", "0", "reader", "", b"", 0)))
        one.threads.release("commit")
        await _settled()
        assert one.stored() == ["1"]


@on_jumping_clock
async def test_wait_idle_returns_once_nothing_waits_and_nothing_runs() -> None:
    async with bench() as one:
        with trio.fail_after(1):
            await one.lane.wait_idle()
        one.threads.hold("commit")
        Ledger(one, "a").put("1")
        with trio.move_on_after(1) as scope:
            await one.lane.wait_idle()
        assert scope.cancelled_caught
        Ledger(one, "b").put("2")
        one.threads.release("commit")
        with trio.fail_after(1):
            await one.lane.wait_idle()
        assert one.stored() == ["1", "2"]


@on_jumping_clock
async def test_wait_idle_sleeps_while_the_store_is_sought_until_what_waits_was_refused() -> None:
    async with bench() as one:
        one.faults.update(commit=Fault.UNKNOWN_LOST, acquire=Fault.FAIL)
        Ledger(one, "a").put("1")
        await _settled()
        refused = Ledger(one, "b").put("2")
        with trio.fail_after(5):  # (By a clock that goes on only when everybody sleeps.)
            await one.lane.wait_idle()
        assert [type(error) for error in refused] == [StoreFailed] and not one.lane.is_healthy


@on_jumping_clock
async def test_there_is_no_room_while_too_many_bytes_wait_or_are_being_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "MAX_PENDING_BYTES", 250)
    async with bench() as one:
        one.threads.hold("commit")
        Ledger(one, "a").put("1")
        await _settled()
        assert one.lane.has_room
        Ledger(one, "b").put("2")
        assert one.lane.has_room
        Ledger(one, "c").put("3")
        assert not one.lane.has_room
        with trio.move_on_after(1) as scope:
            await one.lane.wait_room()
        assert scope.cancelled_caught
        one.threads.release("commit")
        with trio.fail_after(1):
            await one.lane.wait_room()
        assert one.lane.has_room


@pytest.mark.parametrize("why", ["a defect", "a commit of unknown outcome"])
@on_jumping_clock
async def test_all_memory_is_gone_before_anybody_is_told_for_who_is_told_may_ask_again_at_once(why: str) -> None:
    async with bench() as one:
        gone_when_told: list[list[str]] = []

        def told(error: PenstockError | None) -> None:
            assert isinstance(error, StoreFailed)
            gone_when_told.append(list(one.discarded_all))

        if why == "a defect":
            one.lane.submit(told, 100)
            one.lane.distrust()
        else:
            one.threads.hold("acquire")
            one.faults["commit"] = Fault.UNKNOWN_LOST
            Ledger(one, "a").put("1")
            await _settled()
            del one.faults["commit"]
            one.lane.submit(told, 100)
            one.threads.release("acquire")
        await _settled()
        assert gone_when_told == [["StoreFailed"]]


@on_jumping_clock
async def test_who_waits_for_room_goes_on_once_all_was_refused_also_while_the_store_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lane_module, "MAX_PENDING_BYTES", 250)
    async with bench() as one:
        one.faults.update(commit=Fault.UNKNOWN_LOST, acquire=Fault.FAIL)
        Ledger(one, "a").put("1")
        await _settled()
        refused = [Ledger(one, f"while {number}").put(f"w{number}") for number in range(3)]
        assert not one.lane.has_room
        with trio.fail_after(60):
            await one.lane.wait_room()
        assert not one.lane.is_healthy
        assert [type(error) for answer in refused for error in answer] == [StoreFailed] * 3


# The same, seen by clients


async def _prepared(one: House) -> Peer:
    client = await one.client()
    await client.create("dead")
    await client.create("jobs", dead_letter_queue="dead")
    await client.send("jobs", b"1", b"2", b"3")
    return client


Change = Callable[[Peer], Awaitable[tuple[Message, str | None]]]


async def _receipts(client: Peer) -> list[q.Receipt]:
    return receipts_of(await client.receive("jobs", 1))


async def _send(_: Peer) -> tuple[Message, str | None]:
    return q.SendMessages("jobs", [b"4"]), None


async def _receive(_: Peer) -> tuple[Message, str | None]:
    return q.ReceiveMessages("jobs", 2), None


async def _delete(client: Peer) -> tuple[Message, str | None]:
    return q.DeleteMessages("jobs", await _receipts(client)), None


async def _change_visibility(client: Peer) -> tuple[Message, str | None]:
    return q.ChangeVisibility("jobs", await _receipts(client), [0]), None


async def _purge(_: Peer) -> tuple[Message, str | None]:
    return q.QueueName("jobs"), "PurgeQueue"


async def _create(_: Peer) -> tuple[Message, str | None]:
    return q.CreateQueue("new"), None


async def _delete_queue(_: Peer) -> tuple[Message, str | None]:
    return q.QueueName("jobs"), "DeleteQueue"


async def _set(_: Peer) -> tuple[Message, str | None]:
    return q.SetQueueSettings("jobs", [q.Setting("delay_ms", 7_000)]), None


async def _tag(_: Peer) -> tuple[Message, str | None]:
    return q.TagQueue("jobs", [q.Tag("a", "b")]), None


async def _untag(_: Peer) -> tuple[Message, str | None]:
    return q.UntagQueue("jobs", ["old"]), None


async def _create_key(_: Peer) -> tuple[Message, str | None]:
    return s.CreateKey("admin"), None


async def _move(_: Peer) -> tuple[Message, str | None]:
    return q.StartMoveTask("dead"), None


CHANGES: list[Change] = [
    _send, _receive, _delete, _change_visibility, _purge, _create, _delete_queue, _set, _tag, _untag, _create_key, _move,
]  # fmt: skip


def _state(one: House) -> list[Any]:
    """Everything that is durable, as rows."""
    store = MemoryStore(one.disk)
    rows: list[Any] = [*store.load_resources(), *store.load_credentials()]
    for row in store.load_resources():
        if row.kind == "queue":
            rows += [store.load_log(row.log_id, EPOCH_MS).messages, *store.load_deliveries(row.log_id, -1, 100)]
            rows += store.load_arrivals(row.log_id, (0, -1), 2**62, 100, 2**30)
    return rows


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@on_jumping_clock
async def test_no_change_is_answered_before_it_is_durable(change: Change) -> None:
    async with house() as one:
        client = await _prepared(one)
        message, name = await change(client)
        before = _state(one)
        one.threads.hold("commit")
        correlation = await client.say(message, name)
        assert not await client.has_answer(correlation)
        assert _state(one) == before
        one.threads.release("commit")
        await client.wait(correlation)
        assert _state(one) != before


@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.UNKNOWN_LOST], ids=lambda fault: fault.name)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@on_jumping_clock
async def test_a_change_whose_commit_failed_is_refused_and_never_happened(change: Change, fault: Fault) -> None:
    async with house() as one:
        client = await _prepared(one)
        message, name = await change(client)
        before = _state(one)
        one.faults["commit"] = fault
        with pytest.raises(StoreFailed if fault is Fault.FAIL else OutcomeUnknown) as caught:
            await client.call(message, name)
        assert caught.value.retryable
        del one.faults["commit"]
        await _settled()
        assert _state(one) == before
        assert not one.broker.counters.background_errors
        description = await client.describe("jobs")
        assert description.visible + description.in_flight == 3
        assert (description.tags, description.settings) == ([], (await client.describe("jobs")).settings)
        with pytest.raises(QueueDoesNotExist):
            await client.describe("new")
        assert len(one.broker.keyring) == 0
        if change is not _delete_queue:
            await client.call(message, name)
            assert _state(one) != before, "tried again, it happens"


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@on_jumping_clock
async def test_a_change_of_unknown_outcome_that_did_happen_is_seen_afterwards(change: Change) -> None:
    async with house() as one:
        client = await _prepared(one)
        message, name = await change(client)
        before = _state(one)
        one.faults["commit"] = Fault.UNKNOWN_APPLIED
        with pytest.raises(OutcomeUnknown):
            await client.call(message, name)
        del one.faults["commit"]
        await _settled()
        assert _state(one) != before
        stored = {row.name for row in MemoryStore(one.disk).load_resources() if row.kind == "queue"}
        assert {record.name for record in one.broker.catalog} == stored, "the broker has learned it"
        assert len(one.broker.keyring) == len(MemoryStore(one.disk).load_credentials())


@on_jumping_clock
async def test_with_a_full_store_sends_are_refused_while_deletes_go_on() -> None:
    async with house() as one:
        client = await _prepared(one)
        receipts = receipts_of(await client.receive("jobs", 3))
        one.faults["commit"] = Fault.FULL
        with pytest.raises(Overloaded):
            await client.send("jobs", b"4")
        commits = one.broker.counters.commits["full"]
        with pytest.raises(Overloaded):
            await client.send("jobs", b"5")
        assert one.broker.counters.commits["full"] == commits, "the store was not even asked"
        assert (await client.call(q.DeleteMessages("jobs", receipts))).failures == []
        del one.faults["commit"]
        await trio.sleep(FULL_PAUSE_MS / 1000 + 0.01)
        await client.send("jobs", b"6")
        assert bodies_of(await client.receive("jobs")) == [b"6"]


@on_jumping_clock
async def test_waiting_receives_and_consumers_are_told_when_their_queue_is_loaded_anew() -> None:
    async with house() as one:
        client = await _prepared(one)
        await client.create("empty")
        waiting = await client.say(q.ReceiveMessages("empty", 1, wait_ms=20_000))
        consumer = await client.say(q.Consume("empty", 1))
        one.faults["commit"] = Fault.FAIL
        with pytest.raises(StoreFailed):
            await client.send("empty", b"x")
        for correlation in (waiting, consumer):
            with pytest.raises(StoreFailed):
                await client.wait(correlation)


@on_jumping_clock
async def test_one_failed_commit_takes_no_other_queue_with_it() -> None:
    async with house() as one:
        client = await _prepared(one)
        await client.create("other")
        waiting = await client.say(q.ReceiveMessages("other", 1, wait_ms=20_000))
        one.faults["commit"] = Fault.FAIL
        with pytest.raises(StoreFailed):
            await client.send("jobs", b"x")
        del one.faults["commit"]
        await client.send("other", b"y")
        assert bodies_of((await client.wait(waiting)).deliveries) == [b"y"]


@on_jumping_clock
async def test_while_the_lane_has_no_room_no_socket_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "MAX_PENDING_BYTES", 1_000)
    async with house() as one:
        client = await _prepared(one)
        other = await one.client()
        one.threads.hold("commit")
        sent = [await client.say(q.SendMessages("jobs", [bytes(600)])) for _ in range(3)]
        pinged = await client.say(s.Empty(), "Ping")
        await _settled()
        first = await other.say(s.Empty(), "Ping")
        second = await other.say(s.Empty(), "Ping")
        assert not await client.has_answer(pinged)
        assert await other.has_answer(first), "its read was waiting already"
        assert not await other.has_answer(second)
        one.threads.release("commit")
        for correlation in (*sent, pinged):
            await client.wait(correlation)
        await other.wait(second)


@on_jumping_clock
async def test_a_fenced_broker_ends_with_that_error() -> None:
    disk = MemoryDisk()
    with pytest.raises(BaseExceptionGroup) as caught:
        async with house(disk) as one:
            client = await _prepared(one)
            MemoryStore(disk).acquire("another", "", 0)
            with pytest.raises((StoreFailed, EOFError)):
                await client.send("jobs", b"x")
            await trio.sleep_forever()
    assert caught.group_contains(Fenced, depth=None)


@on_jumping_clock
async def test_a_receive_that_waited_for_its_connection_is_not_served_from_memory_that_an_unknown_outcome_has_spoilt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "OUTBOX_PAUSE_BYTES", 1_000)
    async with house() as one:
        first, second = await one.client(), await one.client()
        names = ["a", "b", "c.fifo"]
        for name in names:
            await first.create(name)
            ordered: dict[str, Any] = {"groups": ["g"] * 3, "deduplication_ids": ["0", "1", "2"]} if name == "c.fifo" else {}
            await first.send(name, *[bytes(1_000)] * 3, **ordered)
        one.threads.hold("commit")
        # The first is served, the others wait for room in the connection; each has it for a moment when the one before it failed.
        asked = [await first.say(q.ReceiveMessages(name, 10, HOUR_MS, wait_ms=20_000)) for name in names]
        await _settled()
        assert sum(len(runtime.parked) for runtime in one.broker.queues.runtimes.values()) == 2
        one.threads.hold("acquire")
        one.faults["commit"] = Fault.UNKNOWN_LOST
        one.threads.release("commit")
        await _settled()
        del one.faults["commit"]
        one.threads.hold("commit")
        one.threads.release("acquire")
        await _settled()
        also = await second.say(q.ReceiveMessages("c.fifo", 10, HOUR_MS))
        await _settled()
        one.threads.release("commit")
        holders = 0
        for client, correlation in ((first, asked[2]), (second, also)):
            with contextlib.suppress(StoreFailed):
                holders += bool((await client.wait(correlation)).deliveries)
        assert holders == 1, "a group's messages are with one client at a time"
