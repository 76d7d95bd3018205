"""The named checkers for streams. Each takes a history of one stream and returns complaints; none means that it holds.

A record is known by its data, which is unique in a run; its place is shard and sequence number. A history has

- `put`: one batch for one shard, with all its retries (`shard`, `bodies`, `keys`, `answers`; its value is the first
  sequence number). A batch that was refused because the shard is closed failed; its records are in later puts again. Where
  the SDK chooses the shard, one of unknown outcome has none.
- `open` and `read`: an iterator and what was read from it on. What belongs to one `open` has its `chain`, and each successful
  read of a chain begins where the last one ended. `issued` says when (from, to) the iterator of a read was given out.
- `shards`: what ListShards said, and `reshard`: a split, a merge or a change of the shard count.
- `run`: `retention`, `expiry` (of iterators) and `sweep` (how often retention is looked after) in seconds, or none; `passes`:
  how many records a shard takes per second, or none; `healthy`: nothing goes wrong.
- `calm`: from here on nothing goes wrong. `followed`: the process has read everything that was put before
  (unless `whole` is false: then it ended somewhere), parents before children.

What a client was not told (outcome info) may have happened or not, at any time after its invocation. The last operations are
a full read by a fresh client (process "drain").
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from tests.checkers.history import History, Operation
from tests.checkers.queues import DRAIN, SLACK, alive, bounded, defects, memory

Checker = Callable[[History], list[str]]
Place = tuple[int, int]

HASHES: Final = 1 << 128
PROMPT_SECONDS: Final = 1.0
"""A read that waits is answered within that time of a commit."""
CALM_SECONDS: Final = 5.0
"""What retention may take, on top of its sweep, once nothing goes wrong."""


class ReadRecord(NamedTuple):
    """A record of a read."""

    body: str
    key: str
    sequence: int
    arrived_ms: int = 0


class Reading(NamedTuple):
    """What a read brought. `ended`: the shard is closed and read out, `children` are where to go on."""

    records: list[ReadRecord]
    ended: bool = False
    behind_ms: int = 0
    children: tuple[int, ...] = ()


class ShardFacts(NamedTuple):
    """What ListShards said about one."""

    shard: int
    low: int
    high: int
    parents: tuple[int, ...]
    closed: bool
    first: int
    end: int


@dataclasses.dataclass(slots=True)
class Chain:
    """An iterator and the reads from it on, in their order. `known`: what was in its shard, as far as anybody was told;
    `numbers` are the sequence numbers of that, in order."""

    opened: Operation
    reads: list[Operation]
    known: dict[int, str]
    numbers: list[int]

    def between(self, after: float, before: float) -> Iterator[tuple[int, str]]:
        """What is known between two sequence numbers, with its number."""
        for place in range(bisect.bisect_right(self.numbers, after), len(self.numbers)):
            number = self.numbers[place]
            if number >= before:
                return
            yield number, self.known[number]


def hash_of(key: str) -> int:
    """Where a partition key lies (Kinesis: MD5 as an integer)."""
    return int.from_bytes(hashlib.md5(key.encode(), usedforsecurity=False).digest(), "big")


# What is there to know


def _reads(history: History) -> Iterator[tuple[Operation, ReadRecord]]:
    for one in history.of("read"):
        for record in one.value.records:
            yield one, record


def _placed(put: Operation) -> Iterator[tuple[Place, str, str]]:
    for offset, (body, key) in enumerate(zip(put.arguments["bodies"], put.arguments["keys"], strict=True)):
        yield (put.arguments["shard"], put.value + offset), body, key


def attempts_of(history: History) -> dict[str, list[Operation]]:
    """The puts that stored a record, or may have."""
    found: dict[str, list[Operation]] = defaultdict(list)
    for put in history.of("put", outcomes=("ok", "info")):
        for body in put.arguments["bodies"]:
            found[body].append(put)
    return found


def puts_by_key(history: History) -> dict[str, list[tuple[Operation, Place, str]]]:
    """The records that were acknowledged, with their put and their place."""
    found: dict[str, list[tuple[Operation, Place, str]]] = defaultdict(list)
    for put in history.of("put"):
        for place, body, key in _placed(put):
            found[key].append((put, place, body))
    return found


def known_of(history: History) -> dict[int, dict[int, str]]:
    """By shard and sequence number."""
    found: dict[int, dict[int, str]] = defaultdict(dict)
    for put in history.of("put"):
        for (shard, sequence), body, _ in _placed(put):
            found[shard].setdefault(sequence, body)
    for one, record in _reads(history):
        found[one.arguments["shard"]].setdefault(record.sequence, record.body)
    return found


def _shards(history: History) -> dict[int, ShardFacts]:
    """Every shard anybody heard of, by the last that was said about it."""
    return {one.shard: one for listed in history.of("shards") for one in listed.value}


def ancestors_of(history: History) -> dict[int, set[int]]:
    """Of each shard: its parents, and theirs."""
    shards = _shards(history)
    found: dict[int, set[int]] = {}
    for shard in sorted(shards):  # (A parent has a lower id.)
        parents = shards[shard].parents
        found[shard] = set(parents).union(*(found.get(parent, set()) for parent in parents))
    return found


def _chains(history: History) -> list[Chain]:
    known = known_of(history)
    reads: dict[str, list[Operation]] = defaultdict(list)
    for one in history.of("read"):
        reads[one.arguments["chain"]].append(one)
    numbers = {shard: sorted(found) for shard, found in known.items()}
    found = []
    for opened in history.of("open"):
        shard = opened.arguments["shard"]
        mine = sorted(reads[opened.arguments["chain"]], key=lambda one: one.completed)
        found.append(Chain(opened, mine, known[shard], numbers.get(shard, [])))
    return found


def _fact(history: History, name: str) -> float | None:
    for run in history.of("run"):
        value: float | None = run.arguments.get(name)
        return value
    return None


def may_be_gone(history: History, puts: list[Operation], at: float) -> bool:
    """Whether retention may have ended by then."""
    kept = _fact(history, "retention")
    if not kept or not puts:
        return False
    return bool(history.jumps) or at >= min(put.invoked for put in puts) + kept - SLACK


# Does it belong to a chain?


def _belongs(chain: Chain, sequence: int, puts: list[Operation], arrived_ms: int | None) -> bool:
    """Whether an iterator certainly comes by a record."""
    start, position = chain.opened.arguments["start"], chain.opened.arguments["position"]
    match start:
        case "at":
            return bool(sequence >= position)
        case "after":
            return bool(sequence > position)
        case "latest":
            return bool(puts) and min(put.invoked for put in puts) > chain.opened.completed
        case "time":
            return arrived_ms is not None and arrived_ms >= position
    return True


def _is_foreign(chain: Chain, sequence: int, puts: list[Operation], arrived_ms: int) -> bool:
    """Whether an iterator certainly begins behind a record."""
    start, position = chain.opened.arguments["start"], chain.opened.arguments["position"]
    before = any(put.outcome == "ok" and put.completed < chain.opened.invoked for put in puts)
    match start:
        case "at":
            return bool(sequence < position)
        case "after":
            return bool(sequence <= position)
        case "latest":
            return before
        case "time":
            return before and arrived_ms < position
    return False


def _arrivals(history: History) -> dict[str, int]:
    return {record.body: record.arrived_ms for _, record in _reads(history)}


# The checkers


def lost(history: History) -> list[str]:
    """What was acknowledged, or was ever read, is there at the end, unless its retention is over."""
    drained = {record.body for one, record in _reads(history) if one.process == DRAIN}
    attempts = attempts_of(history)
    complaints = [
        f"{body} was acknowledged at {put.completed:.3f} and is gone"
        for put in history.of("put")
        for body in put.arguments["bodies"]
        if body not in drained and not may_be_gone(history, attempts[body], history.ended)
    ]
    read = {record.body: one for one, record in _reads(history)}
    complaints += [
        f"{body} was read at {one.completed:.3f} and is gone"
        for body, one in read.items()
        if body not in drained and body in attempts and not may_be_gone(history, attempts[body], history.ended)
    ]
    return complaints


def offsets(history: History) -> list[str]:
    """A sequence number of a shard means one record, to everybody and for ever."""
    complaints = []
    known: dict[Place, tuple[str, str]] = {}
    arrived: dict[Place, int] = {}
    for put in history.of("put"):
        for place, body, key in _placed(put):
            if known.setdefault(place, (body, key)) != (body, key):
                complaints.append(f"{place} was given to {body} and to {known[place][0]}")
    for one, record in _reads(history):
        place = one.arguments["shard"], record.sequence
        if known.setdefault(place, (record.body, record.key)) != (record.body, record.key):
            complaints.append(f"{place} is {known[place]}, and was read as {(record.body, record.key)} at {one.completed:.3f}")
        if arrived.setdefault(place, record.arrived_ms) != record.arrived_ms:
            complaints.append(f"{place} arrived at {arrived[place]} and at {record.arrived_ms}")
    return complaints


def duplicates(history: History) -> list[str]:
    """A put makes one record of each of its own, however often it was retried, also when it had to be grouped again."""
    places: dict[str, set[Place]] = defaultdict(set)
    for put in history.of("put"):
        for place, body, _ in _placed(put):
            places[body].add(place)
    for one, record in _reads(history):
        places[record.body].add((one.arguments["shard"], record.sequence))
    return [f"{body} is at {sorted(found)}" for body, found in places.items() if len(found) > 1]


def phantom(history: History) -> list[str]:
    """What is read was put (or may have been) into this shard with this key, and the key belongs there."""
    complaints = []
    attempts = attempts_of(history)
    shards = _shards(history)
    for one, record in _reads(history):
        shard = one.arguments["shard"]
        found = [
            put
            for put in attempts.get(record.body, ())
            if put.arguments["shard"] in (shard, None)
            and put.arguments["keys"][put.arguments["bodies"].index(record.body)] == record.key
        ]
        if not found:
            complaints.append(f"{record.body} ({record.key}) was never put into shard {shard}, or was refused")
        elif shard in shards and not shards[shard].low <= hash_of(record.key) <= shards[shard].high:
            complaints.append(f"{record.body} is in shard {shard}, which does not own {record.key}")
    return complaints


def order(history: History) -> list[str]:
    """Records of a key follow each other as they were put: by sequence number, from parent to child, and in what a process reads
    that follows children. Arrival times never fall."""
    complaints = []
    ancestors = ancestors_of(history)
    delivered: dict[str, dict[str, int]] = defaultdict(dict)
    for process in {one.process for one in history.of("followed")}:
        mine = sorted((one for one in history.of("read") if one.process == process), key=lambda one: one.completed)
        for number, record in enumerate(record for one in mine for record in one.value.records):
            delivered[process].setdefault(record.body, number)
    for rows in puts_by_key(history).values():
        for first, place, body in rows:
            for second, other_place, other in rows:
                if first.completed >= second.invoked:
                    continue
                if place[0] == other_place[0]:
                    if place[1] >= other_place[1]:
                        complaints.append(f"{body} at {place} was put before {other} at {other_place}")
                elif other_place[0] in ancestors and place[0] not in ancestors[other_place[0]]:
                    complaints.append(f"{body} in shard {place[0]} was put before {other} in {other_place[0]}, no child of it")
                complaints += [
                    f"{process} read {other} before {body}, which was put first"
                    for process, numbers in delivered.items()
                    if numbers.get(other, math.inf) < numbers.get(body, -1)
                ]
    latest: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for one, record in _reads(history):
        if one.process == DRAIN:
            latest[one.arguments["shard"]].append((record.sequence, record.arrived_ms))
    for shard, times in latest.items():
        arrived = [at for _, at in sorted(times)]
        if arrived != sorted(arrived):
            complaints.append(f"arrival times of shard {shard} fall: {arrived}")
    return complaints


def monotonic(history: History) -> list[str]:
    """Sequence numbers ascend along a chain of reads."""
    complaints = []
    for chain in _chains(history):
        last = -1
        for one in chain.reads:
            for record in one.value.records:
                if record.sequence <= last:
                    complaints.append(f"{chain.opened.process} read {record.body} ({record.sequence}) after {last}")
                last = max(last, record.sequence)
    return complaints


def skipped(history: History) -> list[str]:
    """A chain leaves nothing out: not at its start, not between two reads, not within one, not at the end of a shard."""
    complaints = []
    attempts, arrivals = attempts_of(history), _arrivals(history)
    for chain in _chains(history):
        seen = -1
        for one in chain.reads:
            brought = {record.sequence for record in one.value.records}
            top = math.inf if one.value.ended else max(brought, default=-1)
            for sequence, body in chain.between(seen, top):
                if (
                    sequence not in brought
                    and _belongs(chain, sequence, attempts.get(body, []), arrivals.get(body))
                    and not may_be_gone(history, attempts.get(body, []), one.completed)
                ):
                    start = chain.opened.arguments["start"]
                    complaints.append(
                        f"{one.process} read shard {one.arguments['shard']} from {start} at {one.completed:.3f} up to "
                        f"{top} without {body} at {sequence}"
                    )
            seen = max([seen, *brought])
    return complaints


def iterators(history: History) -> list[str]:
    """An iterator begins where it was asked to begin; it is good for its time and not longer; a shard that was read out
    names its children."""
    complaints = []
    attempts = attempts_of(history)
    for chain in _chains(history):
        for one in chain.reads:
            complaints += [
                f"an iterator {chain.opened.arguments['start']} {chain.opened.arguments['position']} brought {record.body} "
                f"at {record.sequence}, arrived {record.arrived_ms}"
                for record in one.value.records
                if _is_foreign(chain, record.sequence, attempts.get(record.body, []), record.arrived_ms)
            ]
    expiry = _fact(history, "expiry")
    if expiry:
        for one in history.of("read"):
            begin, end = one.arguments["issued"]
            if one.invoked - end > expiry + SLACK and not history.jumped(begin, one.completed):
                complaints.append(f"an iterator of {end:.3f} was good at {one.invoked:.3f}")
        for one in history.of("read", outcomes=("fail",)):
            begin, end = one.arguments["issued"]
            early = one.completed - begin < expiry - SLACK
            if one.error == "IteratorExpired" and early and not history.jumped(begin, one.completed):
                complaints.append(f"an iterator of {begin:.3f} had expired at {one.completed:.3f}")
    shards = _shards(history)
    for one in history.of("read"):
        children = {shard.shard for shard in shards.values() if one.arguments["shard"] in shard.parents}
        if one.value.ended and set(one.value.children) != children and not _fact(history, "retention"):
            complaints.append(
                f"shard {one.arguments['shard']} was said to be read out at {one.completed:.3f}, its children to be "
                f"{list(one.value.children)}; they are {sorted(children)}"
            )
    return complaints


def unseen(history: History) -> list[str]:
    """Who follows a stream from its beginning sees each record once."""
    complaints = []
    attempts = attempts_of(history)
    for followed in history.of("followed"):
        seen: dict[str, int] = defaultdict(int)
        for one, record in _reads(history):
            if one.process == followed.process:
                seen[record.body] += 1
        complaints += [f"{followed.process} read {body} {count} times" for body, count in seen.items() if count > 1]
        complaints += [
            f"{followed.process} never saw {body}"
            for put in history.of("put")
            for body in put.arguments["bodies"]
            if put.completed < followed.invoked
            and followed.arguments.get("whole", True)
            and body not in seen
            and not may_be_gone(history, attempts[body], followed.completed)
        ]
    return complaints


def split(history: History) -> list[str]:
    """The open shards own every hash once, at every moment; a shard whose child has taken a record takes none any more."""
    complaints = []
    for one in history.of("shards"):
        problem = untiled([(shard.low, shard.high) for shard in one.value if not shard.closed])
        if problem and one.arguments.get("state", "all") != "closed":
            complaints.append(f"ListShards said at {one.completed:.3f}: {problem}")
    complaints += [f"the store had at {one.completed:.3f}: {one.value}" for one in history.of("tiling") if one.value]
    ancestors = ancestors_of(history)
    puts = history.of("put")
    younger: dict[int, Operation] = {}
    for put in sorted(puts, key=lambda one: one.completed):
        for shard in ancestors.get(put.arguments["shard"], ()):
            younger.setdefault(shard, put)
    for put in puts:
        first = younger.get(put.arguments["shard"])
        if first is not None and first.completed < put.invoked:
            complaints.append(
                f"shard {first.arguments['shard']} took a put at {first.completed:.3f}, "
                f"and its parent {put.arguments['shard']} one at {put.invoked:.3f}"
            )
    ends = {shard.shard: shard.end for shard in _shards(history).values() if shard.closed}
    for put in puts:
        shard = put.arguments["shard"]
        if shard in ends and put.value + len(put.arguments["bodies"]) > ends[shard]:
            complaints.append(f"shard {shard} is said to end before {ends[shard]} and has taken {put.value}")
    return complaints


def untiled(ranges: list[tuple[int, int]]) -> str:
    """What is wrong with the ranges of the open shards; nothing when they own each hash once."""
    expected = 0
    for low, high in sorted(ranges):
        if low != expected:
            return f"{'nobody owns' if low > expected else 'two shards own'} hash {min(low, expected):032x}"
        expected = high + 1
    return "" if expected == HASHES else f"nobody owns hash {expected:032x}"


def trimmed(history: History) -> list[str]:
    """Nothing is given out long after its retention is over. (That nothing goes early is `lost`, `skipped` and `unseen`.)"""
    kept, sweep = _fact(history, "retention"), _fact(history, "sweep") or 0.0
    calm = [one.completed for one in history.of("calm")]
    if not kept or not calm or history.jumps:
        return []
    attempts = attempts_of(history)
    complaints = []
    for one, record in _reads(history):
        ended = max((put.completed for put in attempts.get(record.body, ())), default=math.inf)
        if one.invoked > max(ended + kept, calm[0]) + sweep + CALM_SECONDS:
            complaints.append(f"{record.body} was put at {ended:.3f} and is still there at {one.invoked:.3f}")
    return complaints


def tip(history: History) -> list[str]:
    """Who is told that it is at the tip has read everything that was acknowledged before it asked."""
    complaints = []
    attempts, arrivals = attempts_of(history), _arrivals(history)
    for chain in _chains(history):
        seen = -1
        for one in chain.reads:
            seen = max([seen, *(record.sequence for record in one.value.records)])
            if one.value.behind_ms or one.value.ended:
                continue
            for sequence, body in chain.between(seen, math.inf):
                puts = attempts.get(body, [])
                if (
                    any(put.outcome == "ok" and put.completed < one.invoked for put in puts)
                    and _belongs(chain, sequence, puts, arrivals.get(body))
                    and not may_be_gone(history, puts, one.completed)
                ):
                    complaints.append(f"{one.process} was at the tip at {one.invoked:.3f} and had not seen {body} at {sequence}")
    return complaints


def waiting(history: History) -> list[str]:
    """A read that waits is answered when records come, and not only when its time is over."""
    complaints = []
    attempts, arrivals = attempts_of(history), _arrivals(history)
    for chain in _chains(history):
        seen = -1
        for one in chain.reads:
            late = one.completed - PROMPT_SECONDS
            if one.invoked < late and not one.value.records and not one.value.ended:
                for sequence, body in chain.between(seen, math.inf):
                    puts = attempts.get(body, [])
                    if (
                        any(put.outcome == "ok" and put.completed < late for put in puts)
                        and _belongs(chain, sequence, puts, arrivals.get(body))
                        and not may_be_gone(history, puts, one.completed)
                    ):
                        complaints.append(f"{one.process} waited until {one.completed:.3f} and was not given {body}")
            seen = max([seen, *(record.sequence for record in one.value.records)])
    return complaints


def retried(history: History) -> list[str]:
    """A put that was repeated with its number got the answer of the first time."""
    return [
        f"{put.arguments['bodies']} was answered {put.arguments['answers']}"
        for put in history.of("put")
        if len(set(put.arguments.get("answers", ()))) > 1
    ]


def limited(history: History) -> list[str]:
    """A shard takes no more records in any time than pass in it, those that pass at once, and one batch that is more than these.
    (Only where no shard is loaded anew: then that begins anew.)"""
    passes = _fact(history, "passes")
    if not passes or not _fact(history, "healthy") or history.jumps:
        return []
    complaints = []
    by_shard: dict[int, list[Operation]] = defaultdict(list)
    for put in history.of("put"):
        by_shard[put.arguments["shard"]].append(put)
    for shard, puts in by_shard.items():
        largest = max(len(put.arguments["bodies"]) for put in puts)
        for begin in {put.invoked for put in puts}:
            taken = 0
            for put in sorted((put for put in puts if put.invoked >= begin), key=lambda one: one.completed):
                taken += len(put.arguments["bodies"])
                if taken > passes * (1 + put.completed - begin) + max(0, largest - passes) + SLACK:
                    complaints.append(f"shard {shard} took {taken} records from {begin:.3f} to {put.completed:.3f}")
    return complaints


CHECKERS: Final[dict[str, Checker]] = {
    "s.lost": lost,
    "s.offsets": offsets,
    "s.dup": duplicates,
    "s.phantom": phantom,
    "s.order": order,
    "s.nonmono": monotonic,
    "s.poll-skip": skipped,
    "s.iter": iterators,
    "s.unseen": unseen,
    "s.split": split,
    "s.trim": trimmed,
    "s.tip": tip,
    "s.wait": waiting,
    "s.retry": retried,
    "s.limit": limited,
    "c.unknown": defects,
    "c.mem": memory,
    "c.bound": bounded,
    "c.live": alive,
}
"""By their names: s for streams, c for the broker as a whole."""


def complaints_of(history: History) -> list[str]:
    """What all checkers have to say, each with its name."""
    return [f"{name}: {complaint}" for name, checker in CHECKERS.items() for complaint in checker(history)]


def from_json(operation: Operation) -> Operation:
    """An operation that was read from a file gets its value's types back."""
    value: Any = operation.value
    if operation.name == "put":
        # (Its shard is known when it is over.)
        operation.arguments["shard"], operation.value = value if operation.outcome == "ok" else (None, None)
    elif operation.outcome == "ok" and operation.name == "read":
        records, ended, behind_ms, children = value
        operation.value = Reading([ReadRecord(*record) for record in records], ended, behind_ms, tuple(children))
    elif operation.outcome == "ok" and operation.name == "shards":
        operation.value = [ShardFacts(shard, low, high, tuple(parents), *rest) for shard, low, high, parents, *rest in value]
    return operation
