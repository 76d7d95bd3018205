"""kill -9 at random times under a load of streams: puts, readers and reshards go on through it."""

from __future__ import annotations

import contextlib

from penstock import Client
from penstock.errors import PenstockError

from tests.checkers.queues import DRAIN
from tests.checkers.streams import complaints_of, from_json
from tests.postgresql import run_cluster
from tests.torture.kills import LONG_RUN_KILLS, kill_under_load
from tests.torture.record import RecordedHistory, Recorder, read
from tests.torture.rig import Rig, check_file, shown
from tests.torture.stage import Task, Verdict
from tests.torture.stream_load import SHARDS, STREAM, Chains, facts


class StreamRig(Rig):
    """A broker with clients of a stream."""

    LOAD = "tests.torture.stream_load"

    def prepare(self) -> None:
        """See Rig."""
        with Client(self.broker.url) as client:
            client.create_stream(STREAM, shards=SHARDS)
        self.world.note("run", healthy=False)

    def take_stock(self) -> None:
        """Reads everything from the beginning, as a fresh client."""
        recorder = Recorder(self.folder / "drain.jsonl", DRAIN)
        with contextlib.closing(recorder), Client(self.broker.url, request_timeout=20) as client:
            try:
                stream = client.stream(STREAM)
                operation = recorder.begin("shards")
                recorder.end(operation, [facts(shard) for shard in stream.shards()])
                operation = recorder.begin("followed")
                chains = Chains(recorder, DRAIN)
                with stream.tail("trim_horizon", idle_seconds=0) as batches:
                    for batch in batches:
                        chains.take(batch)
                recorder.end(operation)
            except PenstockError as error:
                recorder.note("alive", outcome="fail", error=repr(error), what="the last read of everything")

    def judge(self) -> tuple[RecordedHistory, list[str]]:
        """See Rig."""
        self.world.close()
        read_back = read(list(self.folder.glob("*.jsonl")))
        history = RecordedHistory([from_json(one) for one in read_back.operations])
        return history, complaints_of(history) + self.unexpected(history)


def figures(history: RecordedHistory) -> str:
    """What happened in it, in one line."""
    records = sum(len(one.value.records) for one in history.of("read"))
    unknown = sum(one.outcome == "info" for one in history.operations)
    return (
        f"{len(history.operations):,} operations ({unknown:,} of unknown outcome), {len(history.of('put')):,} records "
        f"acknowledged, {records:,} read, {len(history.of('reshard')):,} reshards"
    )


def missing_marks(history: RecordedHistory) -> list[str]:
    """What a long run must have met: what never happened was not tested."""
    shards = [shard for one in history.of("shards") for shard in one.value]
    happened = {
        "a put of unknown outcome": bool(history.of("put", outcomes=("info",))),
        "a reshard of unknown outcome": bool(history.of("reshard", outcomes=("info",))),
        "a split": any(len(shard.parents) == 1 for shard in shards),
        "a merge": any(len(shard.parents) > 1 for shard in shards),
        "a read from within a shard": any(one.arguments["start"] == "at" for one in history.of("open")),
    }
    return [f"rig: {what} never happened" for what, did in happened.items() if not did]


def run(task: Task) -> Verdict:
    """Kills, reads everything, judges."""
    with contextlib.ExitStack() as stack:
        store = ""
        if task.postgresql:
            cluster = stack.enter_context(run_cluster())
            store = cluster.url(cluster.create_database())
        rig = stack.enter_context(contextlib.closing(StreamRig(task.folder, task.seed, task.plant, store)))
        done, starting, down = kill_under_load(task, rig)
        history, complaints = rig.judge()
        if done >= LONG_RUN_KILLS:
            complaints += missing_marks(history)
        if not store:
            complaints += check_file(task.folder / "data" / "penstock.db")
    database = "PostgreSQL" if task.postgresql else "SQLite"
    times = f"{starting} of a starting broker; {down / max(1, done):.2f} s to be back"
    return Verdict(f"{done} kills on {database} ({times}): {figures(history)}", shown(complaints))
