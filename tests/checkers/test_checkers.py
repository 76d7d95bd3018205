"""Each checker complains about the history it is made for, and about no sound one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.checkers import queues
from tests.checkers.history import History, Operation, Received


def _operation(name: str, start: float, end: float, value: Any = None, process: str = "c0", **arguments: Any) -> Operation:
    return Operation(process, name, arguments, start, "ok", end, value)


def _send(body: str, at: float = 0.0, sequence: int = 1, queue: str = "q", **arguments: Any) -> Operation:
    given: dict[str, Any] = {"groups": ["g"], "ids": [body], "delays": None, "answers": [], **arguments}
    return _operation("send", at, at + 0.1, [sequence], queue=queue, bodies=[body], **given)


def _receive(
    body: str, at: float, count: int = 1, sequence: int = 1, queue: str = "q", process: str = "c1", **arguments: Any
) -> Operation:
    given: dict[str, Any] = {"visibility": 30.0, "wait": 0.0, **arguments}
    group = "g" if queue.endswith(".fifo") else None
    return _operation("receive", at, at + 0.1, [Received(body, sequence, count, group)], process, queue=queue, **given)


def _delete(body: str, at: float, count: int = 1, queue: str = "q") -> Operation:
    return _operation(
        "delete", at, at + 0.1, set(), queue=queue, bodies=[body], counts=[count], visible_until=[at + 30], received=at - 1
    )


def _history(*operations: Operation) -> History:
    return History([_operation("run", 0, 0, healthy=True), *operations])


DRAINED = _receive("a", 90, process=queues.DRAIN)

BAD: dict[str, tuple[queues.Checker, History]] = {
    "an acknowledged message is gone": (queues.lost, _history(_send("a"))),
    "a message nobody sent": (queues.phantom, _history(_receive("x", 1))),
    "two copies at the end": (
        queues.once,
        _history(_send("a"), DRAINED, _receive("a", 91, sequence=2, process=queues.DRAIN)),
    ),
    "a deleted message comes back": (
        queues.resurrected,
        _history(_send("a"), _receive("a", 1), _delete("a", 2), _receive("a", 3, 2)),
    ),
    "a stale handle deletes": (
        queues.handles,
        _history(_send("a"), _receive("a", 1), _receive("a", 40, 2), _delete("a", 41, count=1)),
    ),
    "two hold the same message": (queues.visibility, _history(_send("a"), _receive("a", 1), _receive("a", 2, 2))),
    "a delayed message comes early": (queues.delay, _history(_send("a", delays=[5.0]), _receive("a", 1))),
    "a receive is counted twice": (queues.receive_count, _history(_send("a"), _receive("a", 1), _receive("a", 40, 1))),
    "too many receives": (queues.dead_letters, _history(_send("a"), _receive("a", 1, 4, max_receive_count=3))),
    "counts that are off": (
        queues.counts,
        _history(_operation("describe", 99, 99, (1, 0, 0, 5), queues.DRAIN, queue="q")),
    ),
    "a waiting receive that was not woken": (
        queues.longpoll,
        _history(_send("a"), _operation("receive", 1, 4, [], queue="q", wait=3.0, visibility=1.0)),
    ),
    "a sequence number given twice": (queues.fifo_sequence, _history(_send("a"), _send("b", 1))),
    "sequence numbers against time": (
        queues.fifo_sequence,
        _history(_send("a", 0, 5, "f.fifo"), _send("b", 1, 4, "f.fifo")),
    ),
    "a later message first": (
        queues.fifo_order,
        _history(_send("a", 0, 1, "f.fifo"), _send("b", 1, 2, "f.fifo"), _receive("b", 3, 1, 2, "f.fifo")),
    ),
    "a deduplication id that made two messages": (
        queues.deduplicated,
        _history(_send("a", 0, 1, "f.fifo", ids=["x"]), _send("b", 1, 2, "f.fifo", ids=["x"])),
    ),
    "a retry that was answered differently": (queues.retried, _history(_send("a", answers=["one", "other"]))),
    "a defect in the background": (queues.defects, _history(_operation("life", 0, 9, {"task": 1}, "broker"))),
}


@pytest.mark.parametrize("name", BAD)
def test_the_checker_complains(name: str) -> None:
    checker, history = BAD[name]
    assert checker(history)


def test_every_checker_has_a_history_that_it_complains_about() -> None:
    assert {checker for checker, _ in BAD.values()} == set(queues.CHECKERS)


def test_nobody_complains_about_a_sound_history() -> None:
    sound = _history(_send("a"), _receive("a", 1), _receive("a", 40, 2), _delete("a", 41, count=2), _send("b", 50, 2), DRAINED_B)
    assert queues.complaints_of(sound) == []


DRAINED_B = _receive("b", 90, sequence=2, process=queues.DRAIN)
