"""The named checkers for queues. Each takes a history and returns complaints; none means that it holds.

A message is known by its body, which is unique in a run; a stay of it in a queue by queue and sequence number (a
dead-lettered or moved message gets a new one). What a client was not told (outcome info) may have happened or not, at any
time after its invocation; the checkers claim only what holds either way. The last operations of a run, after all faults
have ended, are a census (the counts of each queue, by process "census"), a full drain by a fresh client (process "drain"), and
a description of each queue by the same.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from typing import Final

from tests.checkers.history import History, Operation, Received

CENSUS: Final = "census"
DRAIN: Final = "drain"
SLACK: Final = 0.002
"""Seconds: the broker's clock counts whole milliseconds."""

Checker = Callable[[History], list[str]]
Stay = tuple[str, int]


def _receives(history: History) -> list[tuple[Operation, Received]]:
    return [(one, message) for one in history.of("receive") for message in one.value]


def _stays(history: History) -> dict[Stay, list[tuple[Operation, Received]]]:
    """The receives of each stay, by count."""
    found: dict[Stay, list[tuple[Operation, Received]]] = defaultdict(list)
    for one, message in _receives(history):
        found[one.arguments["queue"], message.sequence].append((one, message))
    for receives in found.values():
        receives.sort(key=lambda pair: (pair[1].count, pair[0].completed))
    return found


def _sent(history: History, outcomes: tuple[str, ...] = ("ok",)) -> dict[str, Operation]:
    """Bodies that were certainly (ok) or possibly (info) stored, with their send. Refused entries are not in it."""
    found: dict[str, Operation] = {}
    for one in history.of("send", outcomes=outcomes):
        for place, body in enumerate(one.arguments["bodies"]):
            if one.outcome != "ok" or one.value[place] is not None:
                found.setdefault(body, one)
    return found


def _duplicates(history: History) -> set[str]:
    """Bodies that share a deduplication id with another body: only one of them need exist."""
    first: dict[tuple[str, str], str] = {}
    shared = set()
    for one in history.of("send", outcomes=("ok", "info")):
        for body, identity in zip(one.arguments["bodies"], one.arguments.get("ids") or [], strict=False):
            known = first.setdefault((one.arguments["queue"], identity), body)
            if known != body:
                shared |= {body, known}
    return shared


def _deleted(history: History) -> dict[str, list[Operation]]:
    """The deletes that may have ended a body."""
    found: dict[str, list[Operation]] = defaultdict(list)
    for one in history.of("delete", outcomes=("ok", "info")):
        for body in one.arguments["bodies"]:
            if one.outcome == "info" or body not in one.value:
                found[body].append(one)
    return found


def _unheard(history: History) -> dict[str, int]:
    """How many receives of each queue may have happened without anybody hearing of it."""
    found: dict[str, int] = defaultdict(int)
    for one in history.of("receive", outcomes=("info",)):
        found[one.arguments["queue"]] += 100 if one.arguments.get("consumer") else 1
    return found


def _buried(history: History) -> set[str]:
    """Bodies that were dead-lettered, or may be: they leave their place in the order."""
    found = {message.body for _, message in _receives(history) if message.source is not None}
    unheard = _unheard(history)
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for one, message in _receives(history):
        key = (one.arguments["queue"], message.body)
        counts[key] = max(counts[key], message.count)
    for body, send in _sent(history, ("ok", "info")).items():
        queue = send.arguments["queue"]
        allowed = history.facts(queue).allowed()
        if allowed and counts[queue, body] + unheard[queue] >= allowed:
            found.add(body)
    return found


def _purged(history: History, send: Operation) -> bool:
    """Whether a purge may have ended what was sent."""
    family = history.family(send.arguments["queue"])
    return any(
        one.arguments["queue"] in family and one.completed > send.invoked for one in history.of("purge", outcomes=("ok", "info"))
    )


def _may_have_expired(history: History, send: Operation) -> bool:
    times = [facts.retention for queue in history.family(send.arguments["queue"]) if (facts := history.facts(queue)).retention]
    return bool(times) and (bool(history.jumps) or history.ended - send.invoked >= min(times) - SLACK)


def lost(history: History) -> list[str]:
    """What was acknowledged was deleted (or may have been), purged, expired, or is there at the end."""
    drained = {message.body for one, message in _receives(history) if one.process == DRAIN}
    deleted = _deleted(history)
    excused = _duplicates(history)
    return [
        f"{body} was acknowledged at {send.completed:.3f} and is gone"
        for body, send in _sent(history).items()
        if body not in drained
        and body not in deleted
        and body not in excused
        and not _purged(history, send)
        and not _may_have_expired(history, send)
    ]


def phantom(history: History) -> list[str]:
    """What is received was sent (or may have been) to this queue or to one it is moved from, with these properties."""
    attempted = _sent(history, ("ok", "info"))
    complaints = []
    for one, message in _receives(history):
        send = attempted.get(message.body)
        if send is None:
            complaints.append(f"{message.body} was never sent")
            continue
        if one.arguments["queue"] not in history.family(send.arguments["queue"]):
            complaints.append(f"{message.body} was sent to {send.arguments['queue']} and received from {one.arguments['queue']}")
        place = send.arguments["bodies"].index(message.body)
        groups, texts = send.arguments.get("groups"), send.arguments.get("texts")
        if groups is not None and groups[place] != message.group:
            complaints.append(f"{message.body} was sent in group {groups[place]} and received in {message.group}")
        if texts is not None and texts[place] != message.text:
            complaints.append(f"{message.body} was sent with {texts[place]} and received with {message.text}")
    return complaints


def once(history: History) -> list[str]:
    """A send makes one message, however often it was retried: no body is there twice at the end, nor has it two
    sequence numbers in one queue unless it was moved."""
    complaints = []
    drained: dict[str, int] = defaultdict(int)
    for one, message in _receives(history):
        if one.process == DRAIN:
            drained[message.body] += 1
    complaints += [f"{body} is there {count} times" for body, count in drained.items() if count > 1]
    if not history.of("redrive", outcomes=("ok", "info")):
        sequences: dict[tuple[str, str], set[int]] = defaultdict(set)
        for one, message in _receives(history):
            sequences[one.arguments["queue"], message.body].add(message.sequence)
        complaints += [f"{key} has the sequences {sorted(found)}" for key, found in sequences.items() if len(found) > 1]
    return complaints


def resurrected(history: History) -> list[str]:
    """A receive invoked after a delete that succeeded never has the message: it was deleted then, or was gone already.
    What was deleted while it was certainly in flight is in no queue ever after."""
    complaints = []
    stays = _stays(history)
    changed = {
        (one.arguments["queue"], sequence)
        for one in history.of("change", outcomes=("ok", "info"))
        for sequence in one.arguments["sequences"]
    }
    bodies: dict[str, list[Operation]] = defaultdict(list)
    for one, message in _receives(history):
        bodies[message.body].append(one)
    for delete in history.of("delete"):
        rows = zip(delete.arguments["bodies"], delete.arguments["sequences"], delete.arguments["visible_until"], strict=True)
        for body, sequence, until in rows:
            if body in delete.value:
                continue
            stay = (delete.arguments["queue"], sequence)
            later = [one for one, _ in stays[stay]]
            if (
                delete.completed <= until
                and stay not in changed
                and not history.jumped(delete.arguments["received"], delete.completed)
            ):
                later = bodies[body]
            complaints += [
                f"{body} was deleted at {delete.completed:.3f} and received at {one.invoked:.3f}"
                for one in later
                if one.invoked > delete.completed
            ]
    for purge in history.of("purge"):
        complaints += [
            f"{message.body} was received (count {message.count}) before the purge at {purge.completed:.3f} and after it"
            for stay, receives in stays.items()
            if stay[0] == purge.arguments["queue"] and receives[0][0].completed < purge.invoked
            for one, message in receives
            if one.invoked > purge.completed
        ]
    return complaints


def handles(history: History) -> list[str]:
    """A handle from before the last receive deletes nothing: it is refused while the message lives."""
    complaints = []
    stays = _stays(history)
    deletes = _deleted(history)
    buried = _buried(history)
    sent = _sent(history, ("ok", "info"))
    for delete in history.of("delete"):
        arguments = delete.arguments
        newest: dict[tuple[str, int], int] = {}
        for body, sequence, count in zip(arguments["bodies"], arguments["sequences"], arguments["counts"], strict=True):
            newest[body, sequence] = max(newest.get((body, sequence), 0), count)
        for (body, sequence), count in newest.items():
            if body in delete.value or body in buried:
                continue
            if any(other is not delete and other.invoked <= delete.completed for other in deletes[body]):
                continue
            if body in sent and (_purged(history, sent[body]) or _may_have_expired(history, sent[body])):
                continue
            for receive, message in stays[arguments["queue"], sequence]:
                if message.count > count and receive.completed < delete.invoked:
                    complaints.append(
                        f"{body} was deleted at {delete.completed:.3f} by the handle of receive {count}, "
                        f"after receive {message.count} at {receive.completed:.3f}"
                    )
    return complaints


def visibility(history: History) -> list[str]:
    """A message in flight is given to nobody else, across restarts too. Changes of its visibility count from their invocation."""
    complaints = []
    changes: dict[tuple[str, int, int], list[Operation]] = defaultdict(list)
    for one in history.of("change", outcomes=("ok", "info")):
        for sequence, count in zip(one.arguments["sequences"], one.arguments["counts"], strict=True):
            changes[one.arguments["queue"], sequence, count].append(one)
    for (queue, sequence), receives in _stays(history).items():
        for first, message in receives:
            for second, other in receives:
                if other.count <= message.count or history.jumped(first.invoked, second.completed):
                    continue
                until = first.invoked + first.arguments["visibility"]
                perhaps = []
                for change in changes[queue, sequence, message.count]:
                    if change.invoked > second.completed:
                        continue
                    wanted = change.invoked + change.arguments["timeout"]
                    if change.outcome != "ok" or change.completed >= second.invoked:
                        perhaps.append(wanted)
                    elif message.body not in change.value:
                        until = wanted
                until = min([until, *perhaps])
                if second.completed < until - SLACK:
                    complaints.append(
                        f"{message.body} was received at {first.completed:.3f} and again at {second.completed:.3f}, "
                        f"hidden until {until:.3f}"
                    )
    return complaints


def delay(history: History) -> list[str]:
    """Nothing is received before its delay is over."""
    complaints = []
    due = {}
    for one in history.of("send", outcomes=("ok", "info")):
        for body, seconds in zip(one.arguments["bodies"], one.arguments.get("delays") or [], strict=False):
            if seconds:
                due[body] = (one.invoked, one.invoked + seconds)
    duplicates = _duplicates(history)
    for one, message in _receives(history):
        if message.body in due and message.body not in duplicates:
            start, end = due[message.body]
            if one.completed < end - SLACK and not history.jumped(start, one.completed):
                complaints.append(f"{message.body} was received at {one.completed:.3f}, due at {end:.3f}")
    return complaints


def retention(history: History) -> list[str]:
    """Nothing is given out long after its retention has ended. (That nothing goes early is `lost`.)"""
    complaints = []
    sent = _sent(history)
    redriven = bool(history.of("redrive", outcomes=("ok", "info")))
    for one, message in _receives(history):
        kept = history.facts(one.arguments["queue"]).retention
        send = sent.get(message.body)
        if not kept or send is None or redriven or history.jumps:
            continue
        longest = max((seconds or 0 for seconds in send.arguments.get("delays") or []), default=0)
        if one.invoked > send.completed + longest + kept + 5:
            complaints.append(f"{message.body} was sent at {send.completed:.3f} and is still there at {one.invoked:.3f}")
    return complaints


def receive_count(history: History) -> list[str]:
    """Each receive of a message has its own count, ascending in real time, and without gaps where nothing was lost."""
    complaints = []
    for receives in _stays(history).values():
        for (first, message), (second, other) in itertools.pairwise(receives):
            if message.count == other.count:
                attempt = first.arguments.get("attempt")
                if first is not second and (not attempt or attempt != second.arguments.get("attempt")):
                    complaints.append(f"{message.body} was twice received for the {message.count}. time")
            elif second.completed < first.invoked:
                complaints.append(f"{message.body} was received {other.count} times before it was {message.count} times")
            if history.is_certain and other.count > message.count + 1:
                complaints.append(f"{message.body} was received {other.count} times, right after {message.count}")
        if history.is_certain and receives[0][1].count != 1:
            complaints.append(f"the first receive of {receives[0][1].body} was its {receives[0][1].count}.")
    return complaints


def dead_letters(history: History) -> list[str]:
    """After max_receives receives a message is only ever given out by the dead-letter queue; not before; and it keeps the
    time of its sending on a standard queue."""
    complaints = []
    received: dict[tuple[str, str], int] = defaultdict(int)
    sent_ms: dict[str, int] = {}
    unheard = _unheard(history)
    redriven = bool(history.of("redrive", outcomes=("ok", "info")))
    for one, message in _receives(history):
        received[one.arguments["queue"], message.body] += 1
    for one, message in _receives(history):
        queue = one.arguments["queue"]
        allowed = history.facts(queue).allowed()
        if allowed and message.count > allowed:
            complaints.append(f"{message.body} was received {message.count} times; {allowed} are allowed")
        if message.source is not None:
            needed = history.facts(message.source).allowed()
            known = received[message.source, message.body] + unheard[message.source]
            if needed and known < needed:
                complaints.append(f"{message.body} was dead-lettered after at most {known} receives of {needed}")
            if not queue.endswith(".fifo") and not redriven and sent_ms.get(message.body, message.sent_ms) != message.sent_ms:
                complaints.append(
                    f"{message.body} was sent at {sent_ms[message.body]}, dead-lettered as sent at {message.sent_ms}"
                )
        elif not redriven:
            sent_ms.setdefault(message.body, message.sent_ms)
    return complaints


def batches(history: History) -> list[str]:
    """Each entry is answered exactly once and truly: the bad ones fail, the good ones do not; nobody gets more than asked."""
    complaints = []
    for one in history.of("send"):
        bodies = one.arguments["bodies"]
        if one.arguments.get("covered", len(bodies)) != len(bodies):
            complaints.append(f"the answer to {bodies} covers {one.arguments['covered']} entries")
        bad = one.arguments.get("bad", ())
        for body, sequence in zip(bodies, one.value, strict=True):
            if (sequence is None) != (body in bad):
                complaints.append(f"{body} is {'bad' if body in bad else 'good'} and got {sequence}")
    for one in history.of("receive"):
        most = one.arguments.get("most")
        if most is not None and len(one.value) > most:
            complaints.append(f"{len(one.value)} messages for a receive of {most} at {one.invoked:.3f}")
        names = [message.sequence for message in one.value]
        if len(set(names)) != len(names):
            complaints.append(f"one receive at {one.invoked:.3f} brought a message twice: {names}")
    return complaints


def counts(history: History) -> list[str]:
    """At rest the counts are exact: the census says what the drain finds, and after the drain every queue is empty."""
    complaints = [
        f"{one.arguments['queue']} is drained and says {one.value}"
        for one in history.of("describe")
        if one.process == DRAIN and any(one.value)
    ]
    census = [one for one in history.of("describe") if one.process == CENSUS]
    complaints += [f"{one.arguments['queue']} says {one.value}" for one in census if min(one.value) < 0]
    if census and not any(facts.retention for facts in history.queues.values()):
        told = sum(sum(one.value[:3]) for one in census)
        drained = [message for one, message in _receives(history) if one.process == DRAIN]
        if told != len(drained):
            complaints.append(f"the census counts {told} messages, the drain finds {len(drained)}")
        told_bytes = sum(one.value[3] for one in census)
        size = sum(len(message.body) + (len("textString" + message.text) if message.text else 0) for message in drained)
        # (Of a segment that was loaded without content sizes are estimates until it is empty.)
        if told_bytes != size and all(one.arguments["healthy"] for one in history.of("run")):
            complaints.append(f"the census counts {told_bytes} bytes, the drain finds {size}")
    return complaints


def longpoll(history: History) -> list[str]:
    """A waiting receive ends empty only at its timeout, and not while a message that nobody takes is visible."""
    complaints = [
        f"the receive at {one.invoked:.3f} ended empty after {one.completed - one.invoked:.3f}"
        for one in history.of("receive")
        if not one.value and one.arguments["wait"] > 0 and one.completed < one.invoked + one.arguments["wait"] - SLACK
    ]
    if not history.is_certain or history.jumps:
        return complaints
    margin = 1.0
    changed = {body for one in history.of("change", outcomes=("ok", "info")) for body in one.arguments["bodies"]}
    ends: dict[str, float] = {}
    for delete in history.of("delete"):
        for body in delete.arguments["bodies"]:
            ends[body] = min(ends.get(body, float("inf")), delete.invoked)
    for purge in history.of("purge", outcomes=("ok", "info")):
        for body, send in _sent(history).items():
            if send.arguments["queue"] == purge.arguments["queue"]:
                ends[body] = min(ends.get(body, float("inf")), purge.invoked)
    by_stay = _stays(history)
    free: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    for one in history.of("send"):
        for place, (body, sequence) in enumerate(zip(one.arguments["bodies"], one.value, strict=True)):
            queue = one.arguments["queue"]
            if sequence is None or body in changed or queue.endswith(".fifo"):
                continue
            delays = one.arguments.get("delays")
            start = one.completed + ((delays[place] or 0) if delays else 0)
            for receive, message in by_stay.get((queue, sequence), ()):
                free[queue].append((body, start, receive.invoked))
                start = receive.completed + receive.arguments["visibility"]
                allowed = history.facts(queue).allowed()
                if allowed and message.count >= allowed:
                    start = float("inf")
            free[queue].append((body, start, ends.get(body, float("inf"))))
    for one in history.of("receive"):
        if one.value or one.arguments["wait"] <= 0:
            continue
        for body, start, end in free[one.arguments["queue"]]:
            if max(start, one.invoked) < one.completed - margin and min(end, ends.get(body, end)) > one.completed:
                complaints.append(f"{body} was visible from {start:.3f}; the receive at {one.invoked:.3f} ended empty")
    return complaints


def fifo_sequence(history: History) -> list[str]:
    """A sequence number names one message, and sequence numbers follow the real time of sends, across restarts."""
    complaints = []
    bodies: dict[Stay, str] = {}
    excused = _duplicates(history)
    for one in history.of("send"):
        for body, sequence in zip(one.arguments["bodies"], one.value, strict=True):
            if sequence is None or body in excused:
                continue
            other = bodies.setdefault((one.arguments["queue"], sequence), body)
            if other != body:
                complaints.append(f"{body} and {other} have the sequence number {sequence}")
    for queue in {one.arguments["queue"] for one in history.of("send") if one.arguments["queue"].endswith(".fifo")}:
        last: list[tuple[float, int]] = []
        for one in sorted(history.of("send", queue), key=lambda send: send.invoked):
            numbers = [n for b, n in zip(one.arguments["bodies"], one.value, strict=True) if n is not None and b not in excused]
            if numbers != sorted(numbers):
                complaints.append(f"one send got {numbers}")
            earlier = [number for completed, number in last if completed < one.invoked]
            if numbers and earlier and min(numbers) < max(earlier):
                complaints.append(f"the send at {one.invoked:.3f} got {numbers}, an earlier one had {max(earlier)}")
            last += [(one.completed, number) for number in numbers]
    return complaints


def fifo_order(history: History) -> list[str]:
    """A message is given out only when every earlier one of its group was deleted (or may have been), or comes before it in
    the same receive. So a group with a message in flight is locked, across restarts too."""
    complaints = []
    deleted = _deleted(history)
    excused = _duplicates(history)
    buried = _buried(history)
    moved_from = {one.arguments["queue"] for one in history.of("redrive", outcomes=("ok", "info"))}
    by_group: dict[tuple[str, str], list[tuple[int, str, Operation, float]]] = defaultdict(list)
    for one in history.of("send"):
        queue = one.arguments["queue"]
        if not queue.endswith(".fifo"):
            continue
        for place, (body, group, sequence) in enumerate(
            zip(one.arguments["bodies"], one.arguments["groups"], one.value, strict=True)
        ):
            if sequence is not None and body not in excused:
                # (A message that is still delayed locks nothing.)
                wait = (one.arguments.get("delays") or [0] * len(one.arguments["bodies"]))[place] or 0
                by_group[queue, group].append((sequence, body, one, one.completed + wait + (SLACK if wait else 0)))
    for one, message in _receives(history):
        queue = one.arguments["queue"]
        if not queue.endswith(".fifo") or message.group is None:
            continue
        together = [other.sequence for other in one.value if other.group == message.group]
        if together != sorted(together):
            complaints.append(f"one receive brought {together}")
        for sequence, body, send, there in by_group[queue, message.group]:
            if sequence >= message.sequence or there >= one.invoked or sequence in together or body in buried:
                continue
            if history.jumps and (send.arguments.get("delays") or [0])[0]:
                continue
            if _purged(history, send) or _may_have_expired(history, send) or queue in moved_from:
                continue
            if not any(delete.invoked <= one.completed for delete in deleted[body]):
                complaints.append(f"{message.body} was received at {one.completed:.3f} before {body}, there since {there:.3f}")
    return complaints


def fifo_once(history: History) -> list[str]:
    """One deduplication id makes one message in 5 minutes: never are two of them seen, also when the first was deleted."""
    complaints = []
    if history.jumps or history.of("redrive", outcomes=("ok", "info")):
        return []
    identities: dict[tuple[str, str], tuple[str, float]] = {}
    for one in history.of("send", outcomes=("ok", "info")):
        for body, identity in zip(one.arguments["bodies"], one.arguments.get("ids") or [], strict=False):
            identities[one.arguments["queue"], body] = (identity, one.invoked)
    seen: dict[tuple[str, str], tuple[int, float]] = {}
    for one, message in _receives(history):
        known = identities.get((one.arguments["queue"], message.body))
        if known is None:
            continue
        identity, sent = known
        first = seen.setdefault((one.arguments["queue"], identity), (message.sequence, sent))
        if first[0] != message.sequence and abs(first[1] - sent) < 290:
            complaints.append(f"{identity} made the messages {first[0]} and {message.sequence}")
    return complaints


def deduplicated(history: History) -> list[str]:
    """The same deduplication id within 5 minutes gives the same sequence number, across restarts, also after a delete."""
    complaints = []
    seen: dict[tuple[str, str], tuple[int, float]] = {}
    for one in history.of("send"):
        for sequence, identity in zip(one.value, one.arguments.get("ids") or [], strict=False):
            if sequence is None:
                continue
            key = (one.arguments["queue"], identity)
            known = seen.setdefault(key, (sequence, one.completed))
            if known[0] != sequence and one.completed - known[1] < 290 and not history.jumps:
                complaints.append(f"{identity} gave {known[0]} and then {sequence}")
    return complaints


def attempts(history: History) -> list[str]:
    """The same receive attempt id brings the same messages again while they are in flight."""
    complaints = []
    first: dict[tuple[str, str], Operation] = {}
    for one in history.of("receive"):
        attempt = one.arguments.get("attempt")
        if not attempt:
            continue
        known = first.setdefault((one.arguments["queue"], attempt), one)
        if known is one or not known.value or history.jumped(known.invoked, one.completed):
            continue
        if known.completed < one.invoked and one.completed < known.invoked + known.arguments["visibility"] - SLACK:
            if any(
                purge.arguments["queue"] == one.arguments["queue"]
                and known.invoked < purge.completed
                and purge.invoked < one.completed
                for purge in history.of("purge", outcomes=("ok", "info"))
            ):
                continue
            before = sorted((message.sequence, message.count) for message in known.value)
            after = sorted((message.sequence, message.count) for message in one.value)
            if before != after:
                complaints.append(f"attempt {attempt} brought {before}, then {after}")
    return complaints


def retried(history: History) -> list[str]:
    """A send that was repeated with its number got the answer of the first time."""
    return [
        f"{one.arguments['bodies']} was answered {one.arguments['answers']}"
        for one in history.of("send")
        if len({str(answer) for answer in one.arguments.get("answers", ())}) > 1
    ]


def defects(history: History) -> list[str]:
    """Nothing failed silently: no defect was caught anywhere in the broker, and no reply said InternalError."""
    complaints = [f"defects in the broker: {one.value}" for one in history.of("life") if one.value]
    complaints += [f"{one.name} got {one.error}" for one in history.operations if "InternalError" in one.error]
    return complaints


def memory(history: History) -> list[str]:
    """What a loaded queue believes at rest is what the store would tell a fresh one."""
    return [
        f"memory says {one.value[0]}, the store {one.value[1]}" for one in history.of("memory") if one.value[0] != one.value[1]
    ]


def bounded(history: History) -> list[str]:
    """When all clients are gone nothing of them is left: no waiter, no call, no content that is counted and not there."""
    return [f"left behind: {one.value}" for one in history.of("rest") if one.value]


def alive(history: History) -> list[str]:
    """After the storm everything works again: queues are made and removed, moves end, the drain gets through."""
    return [f"{one.arguments['what']}: {one.error}" for one in history.of("alive", outcomes=("fail",))]


CHECKERS: Final[dict[str, Checker]] = {
    "q.lost": lost,
    "q.phantom": phantom,
    "q.once": once,
    "q.resurrect": resurrected,
    "q.handle": handles,
    "q.visibility": visibility,
    "q.delay": delay,
    "q.retention": retention,
    "q.rcount": receive_count,
    "q.dlq": dead_letters,
    "q.batch": batches,
    "q.count": counts,
    "q.longpoll": longpoll,
    "q.retry": retried,
    "f.seq": fifo_sequence,
    "f.order": fifo_order,
    "f.once": fifo_once,
    "f.dedup": deduplicated,
    "f.attempt": attempts,
    "c.unknown": defects,
    "c.mem": memory,
    "c.bound": bounded,
    "c.live": alive,
}
"""By their names: q for every queue, f for FIFO queues, c for the broker as a whole."""


def complaints_of(history: History) -> list[str]:
    """What all checkers have to say, each with its name."""
    return [f"{name}: {complaint}" for name, checker in CHECKERS.items() for complaint in checker(history)]
