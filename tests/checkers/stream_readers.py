"""The named checkers for consumer groups (g) and registered consumers (u), on top of those for streams.

A history of a stream has in addition

- `heartbeat`: of a `member` of a `group`, with its `session` in seconds, `joining`, `leaving`, the `checkpoints` it brings, the
  shards `released`, and whether one of its checkpoints is `wrong` on purpose; its value is Leases.
- `processed`: a member has processed `records` of a `shard`, under a `lease` (none: not known) that was its own by its own clock.
- `positions`: what DescribeGroup said, by shard; `reset`: a ResetGroup to the oldest records.
- `consumed`: a group was asked how far it is after everything had been put, and all of it was processed.

What is pushed to a subscription is a `read` of a chain that goes on when it is resumed, with the `credit` there was by the
client's count, the sizes of its batches (`counts`), `start` and `next`.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import defaultdict
from typing import Final, NamedTuple

from tests.checkers import streams
from tests.checkers.history import History, Operation
from tests.checkers.queues import SLACK
from tests.checkers.streams import Checker, ReadRecord

Shard = tuple[str, int]
"""A shard as a group has it."""


class Granted(NamedTuple):
    """A lease, as a reply named it."""

    shard: int
    lease: int
    position: int


class Leases(NamedTuple):
    """What a heartbeat was answered. `lost`: shards whose checkpoints were not noted."""

    leases: list[Granted]
    lost: list[int]


class Seen(NamedTuple):
    """A position that somebody was told, by whatever operation."""

    operation: Operation
    position: int


# What is there to know


def _heartbeats(history: History) -> list[Operation]:
    """Those that were answered."""
    return history.of("heartbeat")


def _resets(history: History) -> list[Operation]:
    """Those that happened or may have."""
    return history.of("reset", outcomes=("ok", "info"))


def _gives_up(one: Operation, shard: int) -> bool:
    return one.arguments["leaving"] or one.arguments["joining"] or shard in one.arguments["released"]


def _grants(history: History) -> dict[Shard, list[tuple[Operation, Granted]]]:
    """By shard, in the order in which they were told."""
    found: dict[Shard, list[tuple[Operation, Granted]]] = defaultdict(list)
    for one in sorted(_heartbeats(history), key=lambda one: one.completed):
        for granted in one.value.leases:
            found[one.arguments["group"], granted.shard].append((one, granted))
    return found


def _noted(one: Operation) -> list[Granted]:
    """The checkpoints of a heartbeat that were taken."""
    return [checkpoint for checkpoint in one.arguments["checkpoints"] if checkpoint.shard not in one.value.lost]


def _processed(history: History) -> list[tuple[Operation, ReadRecord]]:
    """In the order in which it happened."""
    found = sorted(history.of("processed"), key=lambda one: one.completed)
    return [(one, record) for one in found for record in one.arguments["records"]]


def _first_processed(history: History) -> dict[tuple[str, str], float]:
    """When a group came by a record, for the first time."""
    found: dict[tuple[str, str], float] = {}
    for one, record in _processed(history):
        found.setdefault((one.arguments["group"], record.body), one.completed)
    return found


def _seen(history: History) -> dict[Shard, list[Seen]]:
    """The positions that were told."""
    found: dict[Shard, list[Seen]] = defaultdict(list)
    for one in _heartbeats(history):
        for granted in one.value.leases:
            found[one.arguments["group"], granted.shard].append(Seen(one, granted.position))
    for one in history.of("positions"):
        for shard, position in one.value.items():
            found[one.arguments["group"], shard].append(Seen(one, position))
    return found


# Groups


def exclusive(history: History) -> list[str]:
    """Two members never have one shard: from when a member is told of a lease until it gives it up, or its session is over since
    it asked. No number of a lease is given twice."""
    complaints = []
    resets = _resets(history)
    members: dict[tuple[str, str], list[Operation]] = defaultdict(list)
    for one in history.of("heartbeat", outcomes=("ok", "info", "fail")):
        members[one.arguments["group"], one.arguments["member"]].append(one)
    spans: dict[Shard, list[tuple[float, float, str, int]]] = defaultdict(list)
    owners: dict[tuple[str, int], tuple[str, int]] = {}
    for (group, member), mine in members.items():
        mine.sort(key=lambda one: one.invoked)
        for place, one in enumerate(mine):
            if one.outcome != "ok":
                continue
            until = one.invoked + one.arguments["session"]
            for reset in resets:
                if reset.completed >= one.invoked:
                    until = min(until, reset.invoked)
            for granted in one.value.leases:
                if owners.setdefault((group, granted.lease), (member, granted.shard)) != (member, granted.shard):
                    complaints.append(f"lease {granted.lease} is {owners[group, granted.lease]} and {(member, granted.shard)}")
                end = until
                for later in mine[place + 1 :]:
                    if later.invoked >= end:
                        break
                    if _gives_up(later, granted.shard):
                        end = later.invoked
                        break
                if end > one.completed:
                    spans[group, granted.shard].append((one.completed, end, member, granted.lease))
    for (_, shard), found in spans.items():
        held: dict[str, float] = {}
        for start, end, member, lease in sorted(found):
            complaints += [
                f"{member} was given shard {shard} (lease {lease}) at {start:.3f}, and {other} has it until {until:.3f}"
                for other, until in held.items()
                if other != member and until > start + SLACK
            ]
            held[member] = max(held.get(member, 0.0), end)
    return complaints


def fenced(history: History) -> list[str]:
    """A checkpoint counts under a lease that the member was given and has not lost: no later one of that shard is somebody's, it
    did not give it up, and the group was not reset."""
    complaints = []
    grants = _grants(history)
    resets = history.of("reset")
    for one in _heartbeats(history):
        group, member = one.arguments["group"], one.arguments["member"]
        for checkpoint in _noted(one):
            before = [(other, granted) for other, granted in grants[group, checkpoint.shard] if other.completed <= one.invoked]
            mine = [
                other for other, granted in before if other.arguments["member"] == member and granted.lease == checkpoint.lease
            ]
            what = f"{member} moved shard {checkpoint.shard} to {checkpoint.position} at {one.completed:.3f}"
            if not mine:
                complaints.append(f"{what} under lease {checkpoint.lease}, which it never had")
                continue
            if any(granted.lease > checkpoint.lease and other.completed < one.invoked for other, granted in before):
                complaints.append(f"{what} under lease {checkpoint.lease}, and there was a later one")
            told = mine[-1].completed
            if any(reset.invoked > told and reset.completed < one.invoked for reset in resets):
                complaints.append(f"{what}, and the group had been reset")
            if any(
                other.arguments["member"] == member
                and other.arguments["group"] == group
                and told < other.invoked
                and other.completed < one.invoked
                and _gives_up(other, checkpoint.shard)
                for other in _heartbeats(history)
            ):
                complaints.append(f"{what}, and had given it up")
    return complaints


def forward(history: History) -> list[str]:
    """A position never goes back, but for a reset: who asks is told no lower one than was told or noted before."""
    complaints = []
    resets = _resets(history)
    told = _seen(history)
    observed = {shard: list(found) for shard, found in told.items()}
    for one in _heartbeats(history):
        for checkpoint in _noted(one):
            told[one.arguments["group"], checkpoint.shard].append(Seen(one, checkpoint.position))
    for (group, shard), found in observed.items():
        tops: dict[float, list[tuple[float, int]]] = {}
        for now in found:
            # (Whatever was told before a reset was over counts for nothing behind it.)
            since = max((reset.completed for reset in resets if reset.invoked <= now.operation.completed), default=-math.inf)
            if since not in tops:
                after = [other for other in told[group, shard] if other.operation.invoked > since]
                after.sort(key=lambda other: other.operation.completed)
                highest = itertools.accumulate((other.position for other in after), max)
                tops[since] = [(other.operation.completed, top) for other, top in zip(after, highest, strict=True)]
            place = bisect.bisect_left(tops[since], (now.operation.invoked, 0))
            top = tops[since][place - 1][1] if place else 0
            if now.position < top and since <= now.operation.invoked:
                complaints.append(
                    f"{group} was at {top} in shard {shard} and is at {now.position} at {now.operation.completed:.3f}"
                )
    return complaints


def handed_out(history: History) -> list[str]:
    """A group is never further than a member said, and nobody's word counts for what does not exist."""
    complaints = [
        f"{one.arguments['member']} said what was wrong at {one.completed:.3f}, and was believed: {_noted(one)}"
        for one in _heartbeats(history)
        if one.arguments["wrong"] in {checkpoint.shard for checkpoint in _noted(one)}
    ]
    if history.of("run")[0].arguments.get("retention"):
        return complaints
    said: dict[Shard, list[tuple[float, int]]] = defaultdict(list)
    for one in sorted(history.of("heartbeat", outcomes=("ok", "info", "fail")), key=lambda one: one.invoked):
        for checkpoint in one.arguments["checkpoints"]:
            if checkpoint.shard != one.arguments["wrong"]:
                rows = said[one.arguments["group"], checkpoint.shard]
                rows.append((one.invoked, max(checkpoint.position, rows[-1][1] if rows else 0)))
    for (group, shard), observed in _seen(history).items():
        rows = said[group, shard]
        for now in observed:
            place = bisect.bisect_right(rows, (now.operation.completed, math.inf))
            most = rows[place - 1][1] if place else 0
            if now.position > most:
                complaints.append(f"{group} is at {now.position} in shard {shard}, and nobody was further than {most}")
    return complaints


def unprocessed(history: History) -> list[str]:
    """A group has processed each record that was acknowledged, unless its retention is over."""
    complaints = []
    attempts = streams.attempts_of(history)
    first = _first_processed(history)
    for consumed in history.of("consumed"):
        group = consumed.arguments["group"]
        complaints += [
            f"{group} never processed {body}"
            for put in history.of("put")
            if put.completed < consumed.invoked
            for body in put.arguments["bodies"]
            if (group, body) not in first and not streams.may_be_gone(history, attempts[body], consumed.completed)
        ]
    return complaints


def in_order(history: History) -> list[str]:
    """Under one lease numbers ascend; and of two records of a key that were put one after the other a group processes the
    second never before the first."""
    complaints = []
    last: dict[tuple[str, int], int] = {}
    for one, record in _processed(history):
        if one.arguments["lease"] is None:
            continue
        lease = one.arguments["group"], one.arguments["lease"]
        if record.sequence <= last.get(lease, -1):
            complaints.append(f"{lease} processed {record.body} ({record.sequence}) after {last[lease]}")
        last[lease] = record.sequence
    numbers: dict[str, dict[str, int]] = defaultdict(dict)
    for number, (one, record) in enumerate(_processed(history)):
        numbers[one.arguments["group"]].setdefault(record.body, number)
    for rows in streams.puts_by_key(history).values() if numbers else ():
        for first, _, body in rows:
            for second, _, other in rows:
                if first.completed < second.invoked:
                    complaints += [
                        f"{group} processed {other} before {body}, which was put first"
                        for group, found in numbers.items()
                        if found.get(other, math.inf) < found.get(body, -1)
                    ]
    return complaints


def children_last(history: History) -> list[str]:
    """A shard is leased when its group has processed everything in its parents, and theirs."""
    complaints = []
    grants = _grants(history)
    if not grants:
        return []
    ancestors, known, attempts = streams.ancestors_of(history), streams.known_of(history), streams.attempts_of(history)
    first = _first_processed(history)
    for (group, shard), found in grants.items():
        numbers: set[int] = set()
        for one, granted in found:
            if granted.lease in numbers:
                continue
            numbers.add(granted.lease)
            complaints += [
                f"{group} gave shard {shard} out at {one.completed:.3f}, and {body} in {parent} was not processed"
                for parent in sorted(ancestors.get(shard, ()))
                for body in known[parent].values()
                if first.get((group, body), math.inf) > one.completed
                and not streams.may_be_gone(history, attempts.get(body, []), one.completed)
            ]
    return complaints


# Registered consumers


def credited(history: History) -> list[str]:
    """Nothing is pushed without credit, and no more than there was but for the rest of a batch."""
    return [
        f"{one.process} was pushed {one.arguments['counts']} at {one.completed:.3f} with a credit of {one.arguments['credit']}"
        for one in history.of("read")
        if one.arguments.get("counts") and sum(one.arguments["counts"][:-1]) >= max(0, one.arguments["credit"])
        if one.arguments["credit"] <= 0 or len(one.arguments["counts"]) > 1
    ]


def resumed(history: History) -> list[str]:
    """Each push begins where the one before it ended, also in a subscription that goes on where another one ended."""
    complaints = []
    expected: dict[str, int] = {}
    for one in sorted(history.of("read"), key=lambda one: one.completed):
        if "next" not in one.arguments:
            continue
        chain, start = one.arguments["chain"], one.arguments["start"]
        if expected.setdefault(chain, start) != start:
            complaints.append(f"{one.process} is pushed from {start} on at {one.completed:.3f}, and was at {expected[chain]}")
        expected[chain] = one.arguments["next"]
    return complaints


CHECKERS: Final[dict[str, Checker]] = {
    "g.exclusive": exclusive,
    "g.fence": fenced,
    "g.forward": forward,
    "g.handed": handed_out,
    "g.lost": unprocessed,
    "g.order": in_order,
    "g.children": children_last,
    "u.credit": credited,
    "u.resume": resumed,
}
"""By their names: g for groups, u for registered consumers."""


def complaints_of(history: History) -> list[str]:
    """What all checkers of streams and of their readers have to say, each with its name."""
    found = streams.complaints_of(history)
    return found + [f"{name}: {complaint}" for name, checker in CHECKERS.items() for complaint in checker(history)]
