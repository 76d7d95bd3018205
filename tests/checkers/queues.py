"""The named checkers for queues. Each takes a history and returns complaints; none means that it holds.

A message is known by its body, which is unique in a run. The last operations of a run are a full drain by a fresh
client (process "drain"), after all faults have ended, and a description of each queue.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Final

from tests.checkers.history import History, Operation, Received

DRAIN: Final = "drain"

Checker = Callable[[History], list[str]]


def _receives(history: History) -> list[tuple[Operation, Received]]:
    return [(one, message) for one in history.of("receive") for message in one.value]


def _sent(history: History, outcomes: tuple[str, ...] = ("ok",)) -> dict[str, Operation]:
    """Bodies that were certainly (ok) or possibly (info) stored, with their send. Refused entries are not in it."""
    found = {}
    for one in history.of("send", outcomes=outcomes):
        for place, body in enumerate(one.arguments["bodies"]):
            if one.outcome != "ok" or one.value[place] is not None:
                found.setdefault(body, one)
    return found


def _duplicates(history: History) -> set[str]:
    """Bodies that were sent under a deduplication id that another body had before: they need not exist."""
    first: dict[tuple[str, str], str] = {}
    later = set()
    for one in history.of("send", outcomes=("ok", "info")):
        for body, identity in zip(one.arguments["bodies"], one.arguments.get("ids") or [], strict=False):
            key = (one.arguments["queue"], identity)
            if first.setdefault(key, body) != body:
                later.add(body)
                later.add(first[key])
    return later


def _deleted(history: History) -> dict[str, list[Operation]]:
    found = defaultdict(list)
    for one in history.of("delete", outcomes=("ok", "info")):
        for body in one.arguments["bodies"]:
            if one.outcome == "info" or body not in one.value:
                found[body].append(one)
    return found


def lost(history: History) -> list[str]:
    """q.lost: what was acknowledged was deleted (or may have been), or is there at the end."""
    drained = {message.body for one, message in _receives(history) if one.process == DRAIN}
    deleted = _deleted(history)
    excused = _duplicates(history)
    purged = history.of("purge", outcomes=("ok", "info"))
    return [
        f"q.lost: {body} was acknowledged at {send.completed:.3f} and is gone"
        for body, send in _sent(history).items()
        if body not in drained
        and body not in deleted
        and body not in excused
        and not any(one.arguments["queue"] == send.arguments["queue"] and one.completed > send.invoked for one in purged)
    ]


def phantom(history: History) -> list[str]:
    """q.phantom: what is received was sent, or may have been."""
    attempted = set(_sent(history, ("ok", "info")))
    return [f"q.phantom: {message.body} was never sent" for _, message in _receives(history) if message.body not in attempted]


def once(history: History) -> list[str]:
    """q.once: a send makes one message, however often it was retried: no body is there twice at the end, and until it is
    moved between queues a body has one sequence number."""
    complaints = []
    drained: dict[str, int] = defaultdict(int)
    for one, message in _receives(history):
        if one.process == DRAIN:
            drained[message.body] += 1
    complaints += [f"q.once: {body} is there {count} times" for body, count in drained.items() if count > 1]
    if not history.of("redrive", outcomes=("ok", "info")):
        sequences: dict[tuple[str, str], set[int]] = defaultdict(set)
        for one, message in _receives(history):
            sequences[one.arguments["queue"], message.body].add(message.sequence)
        complaints += [f"q.once: {key} has the sequences {found}" for key, found in sequences.items() if len(found) > 1]
    return complaints


def resurrected(history: History) -> list[str]:
    """q.resurrect: a receive invoked after an effective delete returned never has the message."""
    complaints = []
    received: dict[tuple[str, str], list[Operation]] = defaultdict(list)
    for one, message in _receives(history):
        received[one.arguments["queue"], message.body].append(one)
    for delete in history.of("delete"):
        for body, until in zip(delete.arguments["bodies"], delete.arguments["visible_until"], strict=True):
            if body in delete.value or delete.completed > until or history.jumped(delete.arguments["received"], delete.completed):
                continue
            complaints += [
                f"q.resurrect: {body} deleted at {delete.completed:.3f}, received at {receive.invoked:.3f}"
                for receive in received[delete.arguments["queue"], body]
                if receive.invoked > delete.completed
            ]
    return complaints


def handles(history: History) -> list[str]:
    """q.handle: a handle from before the last receive deletes nothing: it is refused while the message lives."""
    complaints = []
    receives: dict[tuple[str, str], list[tuple[Operation, Received]]] = defaultdict(list)
    for one, message in _receives(history):
        receives[one.arguments["queue"], message.body].append((one, message))
    deletes = _deleted(history)
    buried = _buried(history)
    for delete in history.of("delete"):
        newest = dict(zip(delete.arguments["bodies"], delete.arguments["counts"], strict=True))
        for body, count in zip(delete.arguments["bodies"], delete.arguments["counts"], strict=True):
            newest[body] = max(newest[body], count)
        for body, count in newest.items():
            if body in delete.value or body in buried:
                continue
            if any(other is not delete and other.invoked <= delete.completed for other in deletes[body]):
                continue
            for receive, message in receives[delete.arguments["queue"], body]:
                if message.count > count and receive.completed < delete.invoked:
                    complaints.append(
                        f"q.handle: {body} was deleted at {delete.completed:.3f} by the handle of receive {count}, "
                        f"after receive {message.count} at {receive.completed:.3f}"
                    )
    return complaints


def visibility(history: History) -> list[str]:
    """q.visibility: a message in flight is given to nobody else, across restarts too."""
    complaints = []
    receives: dict[tuple[str, int], list[tuple[Operation, Received]]] = defaultdict(list)
    for one, message in _receives(history):
        receives[one.arguments["queue"], message.sequence].append((one, message))
    changes: dict[str, list[Operation]] = defaultdict(list)
    for one in history.of("change", outcomes=("ok", "info")):
        for body in one.arguments["bodies"]:
            changes[body].append(one)
    for found in receives.values():
        for first, message in found:
            hidden_until = first.invoked + first.arguments["visibility"]
            for second, _ in found:
                if second is first or second.completed >= hidden_until - 0.002 or second.completed <= first.completed:
                    continue
                if second.invoked < first.invoked or history.jumped(first.invoked, second.completed):
                    continue
                if any(change.invoked <= second.completed for change in changes[message.body]):
                    continue
                if first.arguments.get("consumer") or second.arguments.get("consumer"):
                    continue
                complaints.append(
                    f"q.visibility: {message.body} received at {first.completed:.3f} and again at {second.completed:.3f}, "
                    f"hidden until {hidden_until:.3f}"
                )
    return complaints


def delay(history: History) -> list[str]:
    """q.delay: nothing is received before its delay is over."""
    complaints = []
    due = {}
    for one in history.of("send", outcomes=("ok", "info")):
        for body, seconds in zip(one.arguments["bodies"], one.arguments.get("delays") or [], strict=False):
            if seconds:
                due[body] = (one.invoked, one.invoked + seconds)
    for one, message in _receives(history):
        if message.body in due:
            start, end = due[message.body]
            # (The broker's clock counts whole milliseconds.)
            if one.completed < end - 0.002 and not history.jumped(start, one.completed):
                complaints.append(f"q.delay: {message.body} received at {one.completed:.3f}, due at {end:.3f}")
    return complaints


def receive_count(history: History) -> list[str]:
    """q.rcount: each receive of a message has its own count: none is given out twice."""
    seen: dict[tuple[str, int, int], Operation] = {}
    complaints = []
    for one, message in _receives(history):
        key = (one.arguments["queue"], message.sequence, message.count)
        if key in seen and seen[key] is not one:
            complaints.append(f"q.rcount: {message.body} was twice received for the {message.count}. time")
        seen[key] = one
    return complaints


def dead_letters(history: History) -> list[str]:
    """q.dlq: after max_receive_count receives a message is only ever given out by the dead-letter queue."""
    complaints = []
    for one, message in _receives(history):
        allowed = one.arguments.get("max_receive_count")
        if allowed and message.count > allowed:
            complaints.append(f"q.dlq: {message.body} was received {message.count} times; {allowed} are allowed")
    return complaints


def counts(history: History) -> list[str]:
    """q.count: after the drain every queue says that it is empty."""
    return [
        f"q.count: {one.arguments['queue']} is drained and says {one.value}"
        for one in history.of("describe")
        if one.process == DRAIN and any(one.value)
    ]


def longpoll(history: History) -> list[str]:
    """q.longpoll: a waiting receive on a healthy broker does not end empty while a message that nobody takes is visible."""
    if not all(one.arguments["healthy"] for one in history.of("run")):
        return []
    complaints = []
    taken: dict[str, float] = {}
    for one in history.of("receive", outcomes=("ok", "info")):
        for message in one.value or ():
            taken[message.body] = min(taken.get(message.body, float("inf")), one.invoked)
    unknown = any(one.outcome == "info" for one in history.operations)
    for one in history.of("receive"):
        if one.value or one.arguments["wait"] <= 0 or unknown or one.arguments["queue"].endswith(".fifo"):
            continue
        for body, send in _sent(history).items():
            if send.arguments["queue"] != one.arguments["queue"] or any(send.arguments.get("delays") or ()):
                continue
            if send.completed < one.invoked and taken.get(body, float("inf")) > one.completed:
                complaints.append(f"q.longpoll: {body} was there, the receive at {one.invoked:.3f} ended empty")
    return complaints


def fifo_sequence(history: History) -> list[str]:
    """f.seq: a sequence number names one message, and sequence numbers follow the real time of sends, across restarts."""
    complaints = []
    bodies: dict[tuple[str, int], str] = {}
    excused = _duplicates(history)
    for one in history.of("send"):
        for body, sequence in zip(one.arguments["bodies"], one.value, strict=True):
            if sequence is None or body in excused:
                continue
            other = bodies.setdefault((one.arguments["queue"], sequence), body)
            if other != body:
                complaints.append(f"f.seq: {body} and {other} have the sequence number {sequence}")
    for queue in {one.arguments["queue"] for one in history.of("send") if one.arguments["queue"].endswith(".fifo")}:
        last: list[tuple[float, int]] = []
        for one in sorted(history.of("send", queue), key=lambda send: send.invoked):
            numbers = [n for b, n in zip(one.arguments["bodies"], one.value, strict=True) if n is not None and b not in excused]
            earlier = [number for completed, number in last if completed < one.invoked]
            if numbers and earlier and min(numbers) < max(earlier):
                complaints.append(f"f.seq: send at {one.invoked:.3f} got {numbers}, an earlier one had {max(earlier)}")
            last += [(one.completed, number) for number in numbers]
    return complaints


def fifo_order(history: History) -> list[str]:
    """f.order and f.exclusive: a message is given out only when every earlier one of its group was deleted, or comes
    before it in the same receive."""
    complaints = []
    deleted = _deleted(history)
    excused = _duplicates(history)
    buried = _buried(history)
    by_group: dict[tuple[str, str], list[tuple[int, str, float]]] = defaultdict(list)
    for one in history.of("send"):
        queue = one.arguments["queue"]
        if queue.endswith(".fifo"):
            for body, group, sequence in zip(one.arguments["bodies"], one.arguments["groups"], one.value, strict=True):
                if sequence is not None and body not in excused:
                    by_group[queue, group].append((sequence, body, one.completed))
    for one, message in _receives(history):
        queue = one.arguments["queue"]
        if not queue.endswith(".fifo") or message.group is None or one.arguments.get("moved"):
            continue
        together = [other.sequence for other in one.value if other.group == message.group]
        if together != sorted(together):
            complaints.append(f"f.order: one receive brought {together}")
        for sequence, body, sent in by_group[queue, message.group]:
            if sequence >= message.sequence or sent >= one.invoked or sequence in together or body in buried:
                continue
            if not any(delete.invoked <= one.completed for delete in deleted[body]):
                complaints.append(f"f.order: {message.body} received at {one.completed:.3f} before {body}, sent at {sent:.3f}")
    return complaints


def _buried(history: History) -> set[str]:
    """Bodies that were dead-lettered, or may be: they leave their place in the order."""
    found = set()
    for one, message in _receives(history):
        allowed = one.arguments.get("max_receive_count")
        if message.source is not None or (allowed and message.count >= allowed):
            found.add(message.body)
    return found


def deduplicated(history: History) -> list[str]:
    """f.dedup: the same deduplication id within 5 minutes gives the same sequence number."""
    complaints = []
    seen: dict[tuple[str, str], tuple[int, float]] = {}
    for one in history.of("send"):
        for sequence, identity in zip(one.value, one.arguments.get("ids") or [], strict=False):
            if sequence is None:
                continue
            key = (one.arguments["queue"], identity)
            known = seen.setdefault(key, (sequence, one.completed))
            if known[0] != sequence and one.completed - known[1] < 290 and not history.jumps:
                complaints.append(f"f.dedup: {identity} gave {known[0]} and then {sequence}")
    return complaints


def retried(history: History) -> list[str]:
    """q.retry: a send that was repeated with its number got the answer of the first time."""
    return [
        f"q.retry: {one.arguments['bodies']} was answered {one.arguments['answers']}"
        for one in history.of("send")
        if len({str(answer) for answer in one.arguments.get("answers", ())}) > 1
    ]


def defects(history: History) -> list[str]:
    """c.unknown: nothing failed silently: no defect was caught anywhere in the broker."""
    complaints = [f"c.unknown: background errors {one.value}" for one in history.of("life") if one.value]
    complaints += [f"c.unknown: {one.name} got {one.error}" for one in history.operations if "InternalError" in one.error]
    return complaints


CHECKERS: Final[tuple[Checker, ...]] = (
    lost,
    phantom,
    once,
    resurrected,
    handles,
    visibility,
    delay,
    receive_count,
    dead_letters,
    counts,
    longpoll,
    fifo_sequence,
    fifo_order,
    deduplicated,
    retried,
    defects,
)


def complaints_of(history: History) -> list[str]:
    """What all checkers have to say."""
    return [complaint for checker in CHECKERS for complaint in checker(history)]
