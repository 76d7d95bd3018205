"""Each checker of groups and registered consumers complains about the histories it is made for, and none about sound ones."""

from __future__ import annotations

from typing import Any

import pytest

from tests.checkers.history import History, Operation
from tests.checkers.stream_readers import CHECKERS, Granted, Leases, complaints_of
from tests.checkers.streams import Reading, ReadRecord
from tests.checkers.test_stream_checkers import HOME, SPLIT, _drain, _history, _operation, _put, _record, _shards

A, B = "a", "b"


def _beat(
    at: float,
    member: str,
    *leases: Granted,
    lost: tuple[int, ...] = (),
    outcome: str = "ok",
    noted: tuple[Granted, ...] = (),
    released: tuple[int, ...] = (),
    **more: Any,
) -> Operation:
    """A heartbeat with a session of 10 s, and what it was answered."""
    given = {"joining": False, "leaving": False, "wrong": -1, **more}
    value = Leases(list(leases), list(lost)) if outcome == "ok" else None
    one = _operation(
        "heartbeat",
        at,
        at + 0.1,
        value,
        member,
        group="g",
        member=member,
        session=10.0,
        checkpoints=list(noted),
        released=list(released),
        **given,
    )
    one.outcome = outcome
    return one


def _done(at: float, *records: ReadRecord, shard: int = 0, lease: int | None = 1) -> Operation:
    return _operation("processed", at, at, None, A, group="g", shard=shard, lease=lease, records=list(records))


def _push(at: float, start: int, following: int, credit: int = 9, counts: tuple[int, ...] = (), chain: str = "s/1") -> Operation:
    more = {"credit": credit, "counts": list(counts), "start": start, "next": following}
    return _operation("read", at, at, Reading([]), "s", shard=0, chain=chain, wait=0, issued=(at, at), **more)


def _reset(at: float) -> Operation:
    return _operation("reset", at, at + 0.1, group="g")


ONE = Granted(0, 1, 0)
TWO = Granted(0, 2, 0)

BAD: list[tuple[str, str, History]] = [
    ("g.exclusive", "two members have one shard", _history(_beat(1, A, ONE), _beat(5, B, TWO))),
    ("g.exclusive", "a number is given twice", _history(_beat(1, A, ONE), _beat(50, B, ONE))),
    ("g.exclusive", "another heartbeat renews it", _history(_beat(1, A, ONE), _beat(9, A, ONE), _beat(15, B, TWO))),
    ("g.fence", "it never had the lease", _history(_beat(1, A), _beat(2, A, noted=(Granted(0, 1, 5),)))),
    (
        "g.fence",
        "another has the shard",
        _history(_beat(1, A, ONE), _beat(20, B, TWO), _beat(21, A, noted=(Granted(0, 1, 5),))),
    ),
    ("g.fence", "it gave it up", _history(_beat(1, A, ONE), _beat(2, A, released=(0,)), _beat(3, A, noted=(Granted(0, 1, 5),)))),
    ("g.fence", "the group was reset", _history(_beat(1, A, ONE), _reset(2), _beat(3, A, noted=(Granted(0, 1, 5),)))),
    (
        "g.forward",
        "fail-over begins before the checkpoint",
        _history(_beat(1, A, ONE), _beat(2, A, noted=(Granted(0, 1, 5),)), _beat(20, B, Granted(0, 2, 4))),
    ),
    ("g.forward", "a lower checkpoint is noted", _history(_beat(1, A, Granted(0, 1, 5)), _beat(2, A, Granted(0, 1, 4)))),
    (
        "g.forward",
        "a description goes back",
        _history(_beat(1, A, Granted(0, 1, 5)), _operation("positions", 3, 4, {0: 2}, group="g")),
    ),
    (
        "g.handed",
        "fail-over begins behind the checkpoint",
        _history(_beat(1, A, ONE), _beat(2, A, noted=(Granted(0, 1, 5),)), _beat(20, B, Granted(0, 2, 6))),
    ),
    ("g.handed", "what does not exist is noted", _history(_beat(1, A, ONE), _beat(2, A, noted=(Granted(0, 1, 99),), wrong=0))),
    ("g.lost", "a record was never processed", _history(_put(0, "a"), _operation("consumed", 50, 51, group="g"))),
    ("g.order", "numbers fall under a lease", _history(_done(1, _record(2, "b")), _done(2, _record(1, "a")))),
    ("g.order", "a record comes twice under a lease", _history(_done(1, _record(1, "a")), _done(2, _record(1, "a")))),
    (
        "g.order",
        "the child's record comes first",
        _history(
            _put(0, "a"),
            _put(0, "b", at=2, shard=HOME),
            _done(3, _record(0, "b"), lease=2, shard=HOME),
            _done(4, _record(0, "a")),
        ),
    ),
    (
        "g.children",
        "a child is given before its parent was processed",
        _history(_put(0, "a"), _shards(*SPLIT), _beat(5, A, Granted(HOME, 2, 0)), _done(6, _record(0, "a"))),
    ),
    ("u.credit", "something is pushed without credit", _history(_push(1, 0, 1, 0, (1,)))),
    ("u.credit", "a batch too many is pushed", _history(_push(1, 0, 3, 2, (2, 1)))),
    ("u.resume", "it goes on one late", _history(_push(1, 0, 3), _push(2, 4, 5))),
    ("u.resume", "it goes on one early", _history(_push(1, 0, 3), _push(2, 2, 5))),
]


@pytest.mark.parametrize(("name", "what", "history"), BAD, ids=[f"{name}: {what}" for name, what, _ in BAD])
def test_a_checker_complains(name: str, what: str, history: History) -> None:
    del what
    assert CHECKERS[name](history)


def test_every_checker_has_a_history_that_it_complains_about() -> None:
    assert {name for name, _, _ in BAD} == set(CHECKERS)


GOOD: list[tuple[str, History]] = [
    ("a lease that has expired", _history(_beat(1, A, ONE), _beat(11.01, B, TWO))),
    ("a lease that was given up", _history(_beat(1, A, ONE), _beat(2, A, released=(0,)), _beat(3, B, TWO))),
    (
        "a lease that may have been given up",
        _history(_beat(1, A, ONE), _beat(2, A, released=(0,), outcome="info"), _beat(3, B, TWO)),
    ),
    ("a member that left", _history(_beat(1, A, ONE), _beat(2, A, leaving=True), _beat(3, B, TWO))),
    ("a checkpoint that was lost", _history(_beat(1, A), _beat(2, A, noted=(Granted(0, 7, 5),), lost=(0,)))),
    (
        "a group that was reset",
        _history(_beat(1, A, ONE), _beat(2, A, ONE._replace(position=5), noted=(Granted(0, 1, 5),)), _reset(3), _beat(4, B, TWO)),
    ),
    (
        "fail-over from the last checkpoint, which may have been noted",
        _history(
            _put(0, "a", "b", "c"),
            _beat(1, A, ONE),
            _done(2, _record(0, "a"), _record(1, "b")),
            _beat(3, A, noted=(Granted(0, 1, 1),), outcome="info"),
            _beat(20, B, Granted(0, 2, 1)),
            _done(21, _record(1, "b"), _record(2, "c"), lease=2),
            _drain(_record(0, "a"), _record(1, "b"), _record(2, "c")),
            _operation("consumed", 50, 51, group="g"),
        ),
    ),
    ("a push of a whole batch, and on from there", _history(_push(1, 0, 7, 2, (7,)), _push(2, 7, 7), _push(3, 7, 8, 5, (1,)))),
]


@pytest.mark.parametrize(("what", "history"), GOOD, ids=[what for what, _ in GOOD])
def test_no_checker_complains_about_a_sound_history(what: str, history: History) -> None:
    del what
    history.operations.append(_operation("open", 0, 0, process="s", shard=0, start="trim_horizon", position=0, chain="s/1"))
    assert complaints_of(history) == []
