"""Each checker of streams complains about the histories it is made for, and none about sound ones."""

from __future__ import annotations

from typing import Any

import pytest

from tests.checkers.history import History, Operation
from tests.checkers.queues import DRAIN
from tests.checkers.streams import CHECKERS, HASHES, Reading, ReadRecord, ShardFacts, complaints_of, hash_of, untiled

KEY = "k"
TOP = HASHES - 1


def _operation(name: str, since: float, until: float, value: Any = None, process: str = "c0", **arguments: Any) -> Operation:
    return Operation(process, name, arguments, since, "ok", until, value)


def _put(first: int, *bodies: str, at: float = 0.0, shard: int = 0, key: str = KEY, **arguments: Any) -> Operation:
    given = {"answers": [first], **arguments}
    return _operation("put", at, at + 0.1, first, shard=shard, bodies=list(bodies), keys=[key] * len(bodies), **given)


def _info(put: Operation, outcome: str = "info") -> Operation:
    put.outcome, put.completed, put.value = outcome, float("inf"), None
    return put


def _record(sequence: int, body: str, key: str = KEY, arrived: int = 0) -> ReadRecord:
    return ReadRecord(body, key, sequence, arrived)


def _chain(
    *readings: Reading,
    at: float = 90.0,
    start: str = "trim_horizon",
    position: int = 0,
    shard: int = 0,
    process: str = "c1",
    lasts: float = 0.1,
    issued: float | None = None,
) -> list[Operation]:
    """An iterator and the reads from it on, a second apart."""
    name = f"{process}/{shard}/{start}/{at}"
    found = [_operation("open", at, at + 0.1, process=process, shard=shard, start=start, position=position, chain=name)]
    for number, reading in enumerate(readings, 1):
        got = at + number - 1 if issued is None else issued
        found.append(
            _operation(
                "read", at + number, at + number + lasts, reading, process, shard=shard, chain=name, wait=0, issued=(got, got)
            )
        )
    return found


def _read(*records: ReadRecord, **more: Any) -> Reading:
    return Reading(list(records), **more)


def _shards(*facts: ShardFacts, at: float = 80.0) -> Operation:
    return _operation("shards", at, at + 0.1, list(facts))


WHOLE = ShardFacts(0, 0, TOP, (), False, 0, 9)
PARENT = ShardFacts(0, 0, TOP, (), True, 0, 5)
MIDDLE = HASHES // 2
LEFT = ShardFacts(1, 0, MIDDLE - 1, (0,), False, 0, 0)
RIGHT = ShardFacts(2, MIDDLE, TOP, (0,), False, 0, 0)
SPLIT = (PARENT, LEFT, RIGHT)
HOME = 1 if hash_of(KEY) < MIDDLE else 2


def _drain(*records: ReadRecord, shard: int = 0, at: float = 90.0) -> list[Operation]:
    return _chain(_read(*records), shard=shard, at=at, process=DRAIN)


def _history(*parts: Operation | list[Operation], jumps: tuple[float, ...] = (), **run: Any) -> History:
    operations = [_operation("run", 0, 0, healthy=True, **{"expiry": 300.0, **run})]
    for part in parts:
        operations += part if isinstance(part, list) else [part]
    return History(operations, jumps=list(jumps))


BAD: list[tuple[str, str, History]] = [
    ("s.lost", "an acknowledged record is gone", _history(_put(0, "a"), _drain())),
    ("s.lost", "a record of a batch is gone", _history(_put(0, "a", "b"), _drain(_record(0, "a")))),
    (
        "s.lost",
        "what somebody read is gone, though its put was never answered",
        _history(_info(_put(0, "a")), _chain(_read(_record(0, "a")), at=1), _drain()),
    ),
    ("s.lost", "it is gone before its retention ended", _history(_put(0, "a", at=50), _drain(), retention=60.0)),
    ("s.offsets", "two puts got one number", _history(_put(0, "a"), _put(0, "b"), _drain(_record(0, "a")))),
    (
        "s.offsets",
        "a number means two records",
        _history(_put(0, "a"), _info(_put(0, "b")), _chain(_read(_record(0, "b")), at=1), _drain(_record(0, "a"))),
    ),
    (
        "s.offsets",
        "a record arrived twice",
        _history(_put(0, "a"), _chain(_read(_record(0, "a", arrived=5)), at=1), _drain(_record(0, "a", arrived=6))),
    ),
    ("s.dup", "a retry made a second record", _history(_put(0, "a"), _drain(_record(0, "a"), _record(1, "a")))),
    (
        "s.dup",
        "a put that was grouped again is there twice",
        _history(_put(0, "a"), _put(0, "a", at=2, shard=HOME), _drain(_record(0, "a")), _shards(*SPLIT)),
    ),
    ("s.phantom", "a record nobody put", _history(_drain(_record(0, "x")))),
    ("s.phantom", "a record of a batch that was refused", _history(_info(_put(0, "a"), "fail"), _drain(_record(0, "a")))),
    ("s.phantom", "a record with another key", _history(_put(0, "a"), _drain(_record(0, "a", key="other")))),
    ("s.phantom", "a record of another shard", _history(_put(0, "a", shard=1), _drain(_record(0, "a")))),
    (
        "s.phantom",
        "a record in a shard that does not own its key",
        _history(_put(0, "a", shard=3 - HOME), _drain(_record(0, "a"), shard=3 - HOME), _shards(*SPLIT)),
    ),
    ("s.order", "the later put has the lower number", _history(_put(5, "a"), _put(1, "b", at=2))),
    (
        "s.order",
        "the later put is in the parent",
        _history(_put(0, "a", shard=HOME), _put(3, "b", at=2), _shards(*SPLIT)),
    ),
    (
        "s.order",
        "a reader has the child first",
        _history(
            _put(0, "a"),
            _put(0, "b", at=2, shard=HOME),
            _shards(*SPLIT),
            _chain(_read(_record(0, "b")), shard=HOME, at=10, process="f0"),
            _chain(_read(_record(0, "a")), at=20, process="f0"),
            _operation("followed", 0, 30, process="f0"),
        ),
    ),
    (
        "s.order",
        "arrival times fall",
        _history(_put(0, "a"), _put(1, "b", at=2), _drain(_record(0, "a", arrived=9), _record(1, "b", arrived=8))),
    ),
    ("s.nonmono", "a number comes twice", _history(_chain(_read(_record(1, "a")), _read(_record(1, "a"))))),
    ("s.nonmono", "numbers fall within a read", _history(_chain(_read(_record(2, "b"), _record(1, "a"))))),
    (
        "s.poll-skip",
        "a record is left out between two reads",
        _history(_put(0, "a", "b", "c"), _chain(_read(_record(0, "a")), _read(_record(2, "c")))),
    ),
    (
        "s.poll-skip",
        "a record is left out within a read",
        _history(_put(0, "a", "b", "c"), _drain(_record(0, "a"), _record(2, "c"))),
    ),
    ("s.poll-skip", "the first record is left out", _history(_put(0, "a", "b"), _drain(_record(1, "b")))),
    (
        "s.poll-skip",
        "an iterator at a number begins one late",
        _history(_put(0, "a", "b", "c"), _chain(_read(_record(2, "c")), start="at", position=1)),
    ),
    (
        "s.poll-skip",
        "an iterator at the tip leaves out what came after it",
        _history(_put(0, "a", at=5), _put(1, "b", at=6), _chain(_read(_record(1, "b")), start="latest", at=1)),
    ),
    ("s.poll-skip", "a shard is said to be read out", _history(_put(0, "a", "b"), _chain(_read(_record(0, "a"), ended=True)))),
    ("s.iter", "at begins too early", _history(_put(0, "a"), _chain(_read(_record(0, "a")), start="at", position=1))),
    ("s.iter", "after begins at it", _history(_put(0, "a"), _chain(_read(_record(0, "a")), start="after", position=0))),
    ("s.iter", "the tip has old records", _history(_put(0, "a"), _chain(_read(_record(0, "a")), start="latest"))),
    (
        "s.iter",
        "a time brings what arrived before",
        _history(_put(0, "a"), _chain(_read(_record(0, "a", arrived=4)), start="time", position=5)),
    ),
    ("s.iter", "an iterator outlives its time", _history(_chain(_read(), at=400, issued=10.0))),
    ("s.iter", "the children are not named", _history(_shards(*SPLIT), _chain(_read(ended=True, children=(1,))))),
    ("s.unseen", "a follower missed a record", _history(_put(0, "a"), _operation("followed", 50, 60, process="f0"))),
    (
        "s.unseen",
        "a follower saw a record twice",
        _history(
            _put(0, "a"),
            *[_chain(_read(_record(0, "a")), at=at, process="f0") for at in (10, 20)],
            _operation("followed", 50, 60, process="f0"),
        ),
    ),
    ("s.split", "nobody owns some hashes", _history(_shards(PARENT, LEFT))),
    ("s.split", "two own the same", _history(_shards(WHOLE, LEFT, RIGHT))),
    ("s.split", "the store had a hole", _history(_operation("tiling", 1, 1, "nobody owns hash 0"))),
    (
        "s.split",
        "the parent takes a record after its child",
        _history(_put(0, "a", shard=HOME), _put(3, "b", at=2, key="else"), _shards(*SPLIT)),
    ),
    ("s.split", "a closed shard has taken more than it says", _history(_put(5, "a"), _shards(*SPLIT))),
    (
        "s.trim",
        "a record outlives its retention",
        _history(
            _put(0, "a"), _operation("calm", 5, 5), _chain(_read(_record(0, "a")), at=30), _drain(), retention=10.0, sweep=1.0
        ),
    ),
    ("s.tip", "the tip is not the tip", _history(_put(0, "a", "b"), _drain(_record(0, "a")))),
    (
        "s.tip",
        "an iterator at the tip misses what came",
        _history(_put(0, "a", at=5), _chain(_read(), _read(), start="latest", at=3.5)),
    ),
    (
        "s.wait",
        "a read slept through a put",
        _history(_put(0, "a", at=95), _chain(_read(behind_ms=7), at=90, lasts=10)),
    ),
    ("s.retry", "a retry got another answer", _history(_put(0, "a", answers=[0, 4]), _drain(_record(0, "a")))),
    (
        "s.limit",
        "a shard took more than passes",
        _history(_put(0, "a", "b", at=1), _put(2, "c", at=1.1), _drain(*(_record(n, c) for n, c in enumerate("abc"))), passes=2),
    ),
    ("c.unknown", "a defect was caught", _history(_operation("life", 0, 9, {"run_retention": 1}))),
    ("c.mem", "memory is not what the store has", _history(_operation("memory", 9, 9, ({"end": 4}, {"end": 3})))),
    ("c.bound", "something is left", _history(_operation("rest", 9, 9, {"waiters": 1}))),
]


@pytest.mark.parametrize(("name", "what", "history"), BAD, ids=[f"{name}: {what}" for name, what, _ in BAD])
def test_a_checker_complains(name: str, what: str, history: History) -> None:
    del what
    assert CHECKERS[name](history)


def test_an_iterator_that_expires_early_and_a_stream_that_does_not_work_are_complained_about() -> None:
    early = Operation("c1", "read", {"shard": 0, "chain": "x", "issued": (10.0, 10.1)}, 20, "fail", 20.1, None, "IteratorExpired")
    assert CHECKERS["s.iter"](_history(early))
    assert CHECKERS["c.live"](_history(Operation("world", "alive", {"what": "put"}, 0, "fail", 1, None, "no answer")))


def test_every_checker_has_a_history_that_it_complains_about() -> None:
    assert {name for name, _, _ in BAD} | {"c.live"} == set(CHECKERS)


GOOD: list[tuple[str, History]] = [
    ("nothing happened", _history()),
    (
        "limits let pass what they do, and a batch that is more when nothing has passed for a second",
        _history(
            _put(0, "a", "b", "c", at=1),
            _put(3, "d", at=2.5),
            _drain(*(_record(n, c) for n, c in enumerate("abcd"))),
            passes=2,
        ),
    ),
    (
        "puts, reads from everywhere, the tip",
        _history(
            _put(0, "a", "b"),
            _put(2, "c", at=1),
            _chain(_read(_record(0, "a"), _record(1, "b"), behind_ms=3), _read(_record(2, "c")), at=10),
            _chain(_read(_record(1, "b"), _record(2, "c")), start="at", position=1, at=20),
            _chain(_read(_record(2, "c")), start="after", position=1, at=30),
            _chain(_read(), start="latest", at=40),
            _drain(_record(0, "a"), _record(1, "b"), _record(2, "c")),
            _shards(WHOLE),
            _operation("followed", 85, 95, process=DRAIN),
        ),
    ),
    (
        "a split with a put that had to be grouped again, followed by a reader",
        _history(
            _put(0, "a"),
            _info(_put(0, "b", at=2), "fail"),
            _put(0, "b", at=3, shard=HOME),
            _shards(*SPLIT),
            _chain(_read(_record(0, "a"), ended=True, children=(1, 2)), at=84, process=DRAIN),
            _chain(_read(_record(0, "b")), shard=HOME, at=90, process=DRAIN),
            _operation("followed", 83, 95, process=DRAIN),
        ),
    ),
    ("a put of unknown outcome that did not happen", _history(_info(_put(0, "a")), _drain())),
    ("a put of unknown outcome that happened", _history(_info(_put(0, "a")), _drain(_record(7, "a")))),
    ("a gap after a crash", _history(_put(0, "a"), _put(50, "b", at=2), _drain(_record(0, "a"), _record(50, "b")))),
    ("a record that has aged out", _history(_put(0, "a"), _put(1, "b", at=50), _drain(_record(1, "b")), retention=60.0)),
    (
        "a clock that was set forward",
        _history(_put(0, "a", at=88), _drain(), jumps=(89.0,), retention=60.0),
    ),
    (
        "a time that had not come yet",
        _history(
            _put(0, "a", at=5),
            _chain(_read(_record(0, "a", arrived=4)), start="time", position=9, at=1),
            _drain(_record(0, "a", arrived=4)),
        ),
    ),
]


@pytest.mark.parametrize(("what", "history"), GOOD, ids=[what for what, _ in GOOD])
def test_no_checker_complains_about_a_sound_history(what: str, history: History) -> None:
    del what
    assert complaints_of(history) == []


def test_ranges_that_own_each_hash_once_are_tiles() -> None:
    assert untiled([(0, TOP)]) == untiled([(MIDDLE, TOP), (0, MIDDLE - 1)]) == ""
    assert untiled([]) and untiled([(1, TOP)]) and untiled([(0, MIDDLE), (MIDDLE, TOP)]) and untiled([(0, TOP - 1)])
