"""Who owns which hashes: shards as ranges of 0 to 2**128 - 1, and the steps that split and merge them.

The open shards of a stream tile the whole range: no gap, no overlap. A step closes some and opens others over the same
hashes, so that after each of them this is still true.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterable
from typing import Final

from penstock_protocol.errors import InvalidShardRange, ShardClosed, ShardsNotAdjacent

HASHES: Final = 1 << 128
"""How many there are (Kinesis: the MD5 of the partition key as an integer)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """A shard's place: its id, its hashes (both ends included), where it came from, and when it was closed (None: it is open).

    `end` of a closed shard: the sequence number after its last record."""

    shard: int
    low: int
    high: int
    parents: tuple[int, ...] = ()
    created_ms: int = 0
    closed_ms: int | None = None
    end: int = 0

    @property
    def hashes(self) -> tuple[int, int]:
        """What it owns."""
        return self.low, self.high

    @property
    def is_open(self) -> bool:
        """Whether it takes records."""
        return self.closed_ms is None


Hashes = tuple[int, int]
"""From the first to the last, both included."""


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """A split of one or a merge of two: open shards that own `parents` are closed, shards that own `children` are opened."""

    parents: tuple[Hashes, ...]
    children: tuple[Hashes, ...]


def even(count: int) -> list[Hashes]:
    """`count` ranges of the same size, but for one hash."""
    bounds = [HASHES * place // count for place in range(count + 1)]
    return [(low, high - 1) for low, high in itertools.pairwise(bounds)]


def split(parent: Range, at: int | None) -> Step:
    """Two children: below `at` and from `at` on (None: the middle). InvalidShardRange when `at` is not strictly inside."""
    _check_open(parent)
    if at is None:
        at = parent.low + (parent.high - parent.low + 1) // 2
    if not parent.low < at <= parent.high:
        raise InvalidShardRange(f"shard {parent.shard} cannot be split at {at}: it owns {parent.low} to {parent.high}")
    return Step((parent.hashes,), ((parent.low, at - 1), (at, parent.high)))


def merge(one: Range, other: Range) -> Step:
    """One child over both. ShardsNotAdjacent when something lies between them."""
    _check_open(one)
    _check_open(other)
    first, second = sorted((one, other), key=lambda shard: shard.low)
    if first.shard == second.shard or first.high + 1 != second.low:
        raise ShardsNotAdjacent(f"shards {one.shard} and {other.shard} are no neighbours")
    return Step((first.hashes, second.hashes), ((first.low, second.high),))


def uniform(shards: Iterable[Range], count: int) -> list[Step]:
    """Steps, one after the other, from these open shards to `count` even ones: first splits make every border that is missing,
    then what lies between two borders is merged (Kinesis: UNIFORM_SCALING)."""
    borders = [low for low, _ in even(count)]
    steps: list[Step] = []
    pieces: list[Hashes] = []
    for low, high in sorted(shard.hashes for shard in shards):
        rest = low
        for border in borders[bisect.bisect_right(borders, low) : bisect.bisect_right(borders, high)]:
            steps.append(Step(((rest, high),), ((rest, border - 1), (border, high))))
            pieces.append((rest, border - 1))
            rest = border
        pieces.append((rest, high))
    known = set(borders)
    merged = pieces[0]
    for piece in pieces[1:]:
        if piece[0] in known:
            merged = piece
        else:
            steps.append(Step((merged, piece), ((merged[0], piece[1]),)))
            merged = (merged[0], piece[1])
    return steps


def tiles(shards: Iterable[Range]) -> bool:
    """Whether the open ones own every hash exactly once."""
    expected = 0
    for shard in sorted((one for one in shards if one.is_open), key=lambda one: one.low):
        if shard.low != expected or shard.high < shard.low:
            return False
        expected = shard.high + 1
    return expected == HASHES


def _check_open(shard: Range) -> None:
    if not shard.is_open:
        raise ShardClosed(f"shard {shard.shard} is closed: it cannot be split or merged again")
