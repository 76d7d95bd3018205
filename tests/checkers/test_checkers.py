"""Each checker complains about the histories it is made for, and none about sound ones."""

from __future__ import annotations

from typing import Any

import pytest

from tests.checkers.history import History, Operation, QueueFacts, Received
from tests.checkers.queues import CENSUS, CHECKERS, DRAIN, complaints_of


def _operation(name: str, start: float, end: float, value: Any = None, process: str = "c0", **arguments: Any) -> Operation:
    return Operation(process, name, arguments, start, "ok", end, value)


def _send(body: str, at: float = 0.0, sequence: int | None = 1, queue: str = "q", **arguments: Any) -> Operation:
    given: dict[str, Any] = {"ids": [body], "delays": None, "answers": [], **arguments}
    if queue.endswith(".fifo"):
        given.setdefault("groups", ["g"])
    return _operation("send", at, at + 0.1, [sequence], queue=queue, bodies=[body], **given)


def _receive(
    body: str, at: float, count: int = 1, sequence: int = 1, queue: str = "q", process: str = "c1", **arguments: Any
) -> Operation:
    given: dict[str, Any] = {"visibility": 30.0, "wait": 0.0, **arguments}
    source = given.pop("source", None)
    sent_ms = given.pop("sent_ms", 0)
    group = "g" if queue.endswith(".fifo") else None
    message = Received(body, sequence, count, group, source, sent_ms)
    return _operation("receive", at, at + 0.1, [message], process, queue=queue, **given)


def _settle(name: str, body: str, at: float, count: int = 1, sequence: int = 1, queue: str = "q", **arguments: Any) -> Operation:
    given: dict[str, Any] = {"visible_until": [at + 30], "received": at - 1, **arguments}
    return _operation(name, at, at + 0.1, set(), queue=queue, bodies=[body], sequences=[sequence], counts=[count], **given)


def _info(operation: Operation) -> Operation:
    operation.outcome, operation.completed, operation.value = "info", float("inf"), None
    return operation


def _history(*operations: Operation, healthy: bool = True, **queues: QueueFacts) -> History:
    return History([_operation("run", 0, 0, healthy=healthy), *operations], queues=dict(queues))


def _describe(process: str, *value: int) -> Operation:
    return _operation("describe", 99, 99, value, process, queue="q")


LIMITED = QueueFacts("dead", 2)
DEAD = QueueFacts()
F = "f.fifo"

BAD: list[tuple[str, str, History]] = [
    ("q.lost", "an acknowledged message is gone", _history(_send("a"))),
    ("q.lost", "it was purged before it was sent", _history(_operation("purge", 0, 1, queue="q"), _send("a", 2))),
    (
        "q.lost",
        "it is gone before its retention ended",
        _history(_send("a", 10), _receive("b", 30, process=DRAIN), _send("b", 11, 2), q=QueueFacts(retention=60)),
    ),
    ("q.phantom", "a message nobody sent", _history(_receive("x", 1))),
    ("q.phantom", "a message from another queue", _history(_send("a"), _receive("a", 1, queue="p"))),
    ("q.phantom", "a message of another group", _history(_send("a", 0, 1, F, groups=["h"]), _receive("a", 1, queue=F))),
    ("q.phantom", "an attribute that changed", _history(_send("a", texts=["t"]), _receive("a", 1))),
    (
        "q.once",
        "two copies at the end",
        _history(_send("a"), *(_receive("a", 90 + n, sequence=n, process=DRAIN) for n in (1, 2))),
    ),
    ("q.once", "two sequence numbers in one queue", _history(_send("a"), _receive("a", 1), _receive("a", 1, sequence=2))),
    (
        "q.resurrect",
        "a deleted message comes back",
        _history(_send("a"), _receive("a", 1), _settle("delete", "a", 2), _receive("a", 3, 2)),
    ),
    (
        "q.resurrect",
        "a deleted message turns up in the dead-letter queue",
        _history(_send("a"), _receive("a", 1), _settle("delete", "a", 2), _receive("a", 3, queue="dead", sequence=9, source="q")),
    ),
    (
        "q.resurrect",
        "a purged message comes back",
        _history(_send("a"), _receive("a", 1), _operation("purge", 2, 2.1, queue="q"), _receive("a", 40, 2)),
    ),
    (
        "q.handle",
        "a stale handle deletes",
        _history(_send("a"), _receive("a", 1), _receive("a", 40, 2), _settle("delete", "a", 41, count=1)),
    ),
    ("q.visibility", "two hold the same message", _history(_send("a"), _receive("a", 1), _receive("a", 2, 2))),
    (
        "q.visibility",
        "a longer timeout is forgotten",
        _history(_send("a"), _receive("a", 1, visibility=3.0), _settle("change", "a", 2, timeout=60.0), _receive("a", 20, 2)),
    ),
    ("q.delay", "a delayed message comes early", _history(_send("a", delays=[5.0]), _receive("a", 1))),
    ("q.retention", "a message outlives its retention", _history(_send("a"), _receive("a", 100), q=QueueFacts(retention=60))),
    ("q.rcount", "a receive is counted twice", _history(_send("a"), _receive("a", 1), _receive("a", 40, 1))),
    ("q.rcount", "a count goes back", _history(_send("a"), _receive("a", 1, 2), _receive("a", 40, 1))),
    ("q.rcount", "a count leaves one out", _history(_send("a"), _receive("a", 1), _receive("a", 40, 3))),
    ("q.rcount", "the first count is not 1", _history(_send("a"), _receive("a", 1, 2))),
    ("q.dlq", "too many receives", _history(_send("a"), _receive("a", 1, 3), q=LIMITED, dead=DEAD)),
    (
        "q.dlq",
        "dead before its time",
        _history(_send("a"), _receive("a", 1), _receive("a", 40, queue="dead", sequence=2, source="q"), q=LIMITED, dead=DEAD),
    ),
    (
        "q.dlq",
        "a dead letter with a new time",
        _history(
            _send("a"),
            _receive("a", 1),
            _receive("a", 40, 2),
            _receive("a", 80, queue="dead", sequence=2, source="q", sent_ms=5),
            q=LIMITED,
            dead=DEAD,
        ),
    ),
    ("q.batch", "a good entry is refused", _history(_send("a", sequence=None))),
    ("q.batch", "a bad entry is accepted", _history(_send("a", bad={"a"}))),
    ("q.batch", "an entry is not answered", _history(_send("a", covered=0))),
    ("q.batch", "more than was asked for", _history(_send("a"), _receive("a", 1, most=0))),
    (
        "q.batch",
        "twice in one receive",
        _history(_send("a"), _operation("receive", 1, 1, [Received("a", 1, 1, None)] * 2, queue="q", visibility=1.0, wait=0.0)),
    ),
    ("q.count", "counts that are off", _history(_describe(DRAIN, 1, 0, 0, 5))),
    ("q.count", "negative counts", _history(_describe(CENSUS, 1, 0, -1, 0))),
    (
        "q.count",
        "a census that does not fit",
        _history(_send("a"), _describe(CENSUS, 2, 0, 0, 2), _receive("a", 99, process=DRAIN)),
    ),
    (
        "q.longpoll",
        "a waiting receive that was not woken",
        _history(_send("a"), _operation("receive", 1, 4, [], queue="q", wait=3.0, visibility=1.0)),
    ),
    (
        "q.longpoll",
        "not woken by the end of a visibility timeout",
        _history(
            _send("a"), _receive("a", 1, visibility=2.0), _operation("receive", 2, 12, [], queue="q", wait=10.0, visibility=1.0)
        ),
    ),
    (
        "q.longpoll",
        "empty before its time",
        _history(_operation("receive", 1, 2, [], queue="q", wait=3.0, visibility=1.0)),
    ),
    ("q.retry", "a retry that was answered differently", _history(_send("a", answers=["one", "other"]))),
    ("f.seq", "a sequence number given twice", _history(_send("a"), _send("b", 1))),
    ("f.seq", "sequence numbers against time", _history(_send("a", 0, 5, F), _send("b", 1, 4, F))),
    ("f.order", "a later message first", _history(_send("a", 0, 1, F), _send("b", 1, 2, F), _receive("b", 3, 1, 2, F))),
    (
        "f.order",
        "a group is not locked",
        _history(_send("a", 0, 1, F), _send("b", 1, 2, F), _receive("a", 3, 1, 1, F), _receive("b", 4, 1, 2, F)),
    ),
    (
        "f.once",
        "one id, two messages",
        _history(
            _send("a", 0, 1, F, ids=["x"]), _send("b", 1, 2, F, ids=["x"]), _receive("a", 3, 1, 1, F), _receive("b", 4, 1, 2, F)
        ),
    ),
    ("f.dedup", "one id, two sequence numbers", _history(_send("a", 0, 1, F, ids=["x"]), _send("b", 1, 2, F, ids=["x"]))),
    (
        "f.attempt",
        "another message for the same attempt",
        _history(
            _send("a", 0, 1, F),
            _receive("a", 1, 1, 1, F, attempt="t"),
            _receive("b", 2, 1, 2, F, attempt="t"),
            _send("b", 0, 2, F),
        ),
    ),
    ("c.unknown", "a defect in the background", _history(_operation("life", 0, 9, {"task": 1}, "broker"))),
    ("c.mem", "memory that differs from the store", _history(_operation("memory", 9, 9, ({"messages": 1}, {"messages": 2})))),
    ("c.bound", "a waiter without a client", _history(_operation("rest", 9, 9, {"waiters": 1}))),
    ("c.live", "something that never works again", _history(Operation("world", "alive", {"what": "move"}, 9, "fail", 9))),
]

SOUND: list[tuple[str, History]] = [
    (
        "a short life",
        _history(
            _send("a"),
            _receive("a", 1),
            _receive("a", 40, 2),
            _settle("delete", "a", 41, count=2),
            _send("b", 50, 2),
            _describe(CENSUS, 1, 0, 0, 1),
            _receive("b", 90, sequence=2, process=DRAIN),
            _settle("delete", "b", 91, sequence=2),
            _describe(DRAIN, 0, 0, 0, 0),
        ),
    ),
    ("a delete nobody knows about", _history(_send("a"), _receive("a", 1), _info(_settle("delete", "a", 2)), healthy=False)),
    ("a delete nobody knows about that did nothing", _history(
        _send("a"), _receive("a", 1), _info(_settle("delete", "a", 2)), _receive("a", 50, 2, process=DRAIN), healthy=False
    )),
    ("a send nobody knows about", _history(_info(_send("a")), _receive("a", 9, process=DRAIN), healthy=False)),
    ("a receive nobody knows about", _history(
        _send("a"), _info(_receive("a", 1)), _receive("a", 40, 2, process=DRAIN), healthy=False
    )),
    ("visible again at once", _history(
        _send("a"), _receive("a", 1), _settle("change", "a", 2, timeout=0.0), _receive("a", 2.2, 2, process=DRAIN)
    )),
    ("a group worked off", _history(
        _send("a", 0, 1, F), _send("b", 1, 2, F), _receive("a", 3, 1, 1, F), _settle("delete", "a", 4, 1, 1, F),
        _receive("b", 5, 1, 2, F, process=DRAIN),
    )),
    ("dead letters", _history(
        _send("a"), _receive("a", 1), _receive("a", 40, 2), _receive("a", 80, queue="dead", source="q", process=DRAIN),
        q=LIMITED, dead=DEAD,
    )),
    ("expired", _history(_send("a"), _send("b", 99, 2), _receive("b", 100, 1, 2, process=DRAIN), q=QueueFacts(retention=60))),
    ("purged", _history(_send("a"), _operation("purge", 2, 2.1, queue="q"))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "history"), [(name, history) for name, _, history in BAD], ids=[what for _, what, _ in BAD])
def test_the_checker_complains(name: str, history: History) -> None:
    assert CHECKERS[name](history)


def test_every_checker_has_a_history_that_it_complains_about() -> None:
    assert {name for name, _, _ in BAD} == set(CHECKERS)


@pytest.mark.parametrize("history", [history for _, history in SOUND], ids=[what for what, _ in SOUND])
def test_nobody_complains_about_a_sound_history(history: History) -> None:
    assert complaints_of(history) == []


def test_a_checker_knows_no_clock_that_was_moved() -> None:
    history = _history(
        _send("a"), _receive("a", 1), _receive("a", 2, 2), _send("b", delays=[60.0], sequence=2), _receive("b", 3, 1, 2)
    )
    history.jumps.append(1.5)
    assert not CHECKERS["q.visibility"](history)
    assert not CHECKERS["q.delay"](history)
