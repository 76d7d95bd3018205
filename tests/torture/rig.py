"""A real broker with real client processes on it, and what is done at their end: the census, the drain, the judgement."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from penstock import Client
from penstock.errors import PenstockError

from tests.broker_process import BrokerProcess
from tests.checkers.queues import CENSUS, DRAIN, complaints_of
from tests.torture.load import QUEUES, describe
from tests.torture.record import RecordedHistory, Recorder, read
from tests.torture.stage import Failure

START_SECONDS: Final = 30.0
ANSWER_SECONDS: Final = 30.0
STOP_SECONDS: Final = 75.0
"""A client that was asked to stop ends within its requests' time."""
DRAIN_SECONDS: Final = 60.0
DRAIN_MESSAGES: Final = 500
EXPECTED: Final = {
    *("NotConnected", "ConnectionLost", "RequestTimeout", "OutcomeUnknown"),
    *("MessageNotInFlight", "ReceiptHandleExpired"),
}
"""The errors that a loss of the broker excuses, and those of a client that comes too late."""
LISTED: Final = 3
"""Complaints of one checker that are shown."""


class TorturedBroker(BrokerProcess):
    """A broker that may have a bug planted, and that is waited for without a client."""

    def __init__(self, folder: Path, plant: str, *, store: str = "") -> None:
        super().__init__(folder, store=store)
        self._plant = plant

    def start(self, *, wait: bool = True) -> None:
        """See BrokerProcess."""
        program = ["-m", "tests.torture.launch", self._plant] if self._plant else ["-m", "penstock_broker"]
        command = [sys.executable, *program, "serve", "--data", str(self.folder / "data"), *self._options]
        command += ["--listen", f"127.0.0.1:{self.port}", "--metrics", "", "--log-format", "json"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
        with self.log.open("ab") as log:
            # A group of its own: Ctrl-C is for us.
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, process_group=0)
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Returns when it takes connections. Failure when it ends instead."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if not self.is_running or time.monotonic() > deadline:
                raise Failure(f"the broker does not start again; its log ends:\n{self.end_of_log()}")
            time.sleep(0.02)

    def end_of_log(self) -> str:
        """The last lines that it wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def put_down(self) -> None:
        """Ends it if it runs, however it is."""
        if self.is_running:
            self.kill()

    def complaints(self) -> list[str]:
        """What it logged that should never be logged: errors and tracebacks."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
                level = row.get("level", "")
            except (ValueError, AttributeError):
                row, level = line, "error" if "Traceback" in line or "Error" in line else ""
            if level in ("error", "critical", "exception"):
                found.append(str(row)[:600])
        return found


class Rig:
    """A broker and its clients in `folder`. `seed` makes the clients' choices; `store` is another store than SQLite."""

    LOAD = "tests.torture.load"
    """What its clients are."""

    def __init__(self, folder: Path, seed: int, plant: str = "", store: str = "") -> None:
        self.folder = folder
        self.broker = TorturedBroker(folder, plant, store=store)
        self.chance = random.Random(f"rig {seed}")
        self._seed = seed
        self._clients: list[subprocess.Popen[bytes]] = []
        self._looked_at: dict[int, int] = {}
        self.world = Recorder(folder / "world.jsonl", "world")

    def prepare(self) -> None:
        """Makes what the load works on."""
        with Client(self.broker.url) as client:
            for name in sorted(QUEUES, key=lambda one: not one.startswith("dead")):
                facts = QUEUES[name]
                if facts.dead_letter:
                    client.create_queue(name, dead_letter_queue=facts.dead_letter, max_receive_count=facts.max_receives)
                else:
                    client.create_queue(name)
        self.world.note("run", healthy=False)

    def start_clients(self, count: int, pace: float) -> None:
        """Starts the load: about 10 / `pace` operations a second per client."""
        for number in range(count):
            name = f"c{number}"
            command = [sys.executable, "-m", self.LOAD, self.broker.url, str(self._path_of(number))]
            command += [name, str(self._seed), str(pace)]
            with (self.folder / f"{name}.log").open("wb") as log:
                client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, process_group=0)
            self._clients.append(client)

    def wait_for_load(self) -> None:
        """Returns when every client works."""
        deadline = time.monotonic() + START_SECONDS
        for number, client in enumerate(self._clients):
            path = self._path_of(number)
            while not path.exists() or path.stat().st_size < 1_000:
                if client.poll() is not None or time.monotonic() > deadline:
                    raise Failure(f"client c{number} does not work: {self._log_of(number)}")
                time.sleep(0.02)

    def crashed(self) -> None:
        """Writes down that the broker was lost."""
        self.world.note("crash")
        self._looked_at = {number: self._path_of(number).stat().st_size for number in range(len(self._clients))}

    def wait_for_answers(self, clients: int) -> None:
        """Returns when so many clients have got an answer since the last crash: they find back after a pause."""
        deadline = time.monotonic() + ANSWER_SECONDS
        silent = dict(self._looked_at)
        while len(self._clients) - len(silent) < clients:
            for number, start in list(silent.items()):
                with self._path_of(number).open("rb") as file:
                    file.seek(start)
                    if b'"o":"ok"' in file.read():
                        del silent[number]
            if time.monotonic() > deadline:
                raise Failure(f"clients {sorted(silent)} get no answer {ANSWER_SECONDS:.0f} seconds after a restart")
            time.sleep(0.02)

    def _path_of(self, number: int) -> Path:
        return self.folder / f"c{number}.jsonl"

    def stop_clients(self) -> None:
        """Lets them bring to an end what they have asked."""
        for client in self._clients:
            assert client.stdin is not None
            client.stdin.close()
        deadline = time.monotonic() + STOP_SECONDS
        for number, client in enumerate(self._clients):
            try:
                code = client.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise Failure(f"client c{number} does not come to an end: some request gets no answer") from None
            if code:
                raise Failure(f"client c{number} ended with {code}: {self._log_of(number)}")
        self._clients.clear()

    def _log_of(self, number: int) -> str:
        return (self.folder / f"c{number}.log").read_text(errors="replace")[-2_000:]

    def take_stock(self) -> None:
        """Counts what each queue says it has, then receives and deletes everything, as a fresh client."""
        recorder = Recorder(self.folder / "drain.jsonl", DRAIN)
        with contextlib.closing(recorder), Client(self.broker.url, request_timeout=20) as client:
            try:
                for name in QUEUES:
                    self._count(recorder, client, name, CENSUS)
                self._drain_all(recorder, client)
                for name in QUEUES:
                    self._count(recorder, client, name, DRAIN)
            except PenstockError as error:
                recorder.note("alive", outcome="fail", error=repr(error), what="the census and the drain")

    def _drain_all(self, recorder: Recorder, client: Client) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS
        rest = set(QUEUES)
        while rest and time.monotonic() < deadline:
            for name in QUEUES:
                self._drain(recorder, client, name)
            rest = {name for name in QUEUES if client.queue(name).describe().messages}
            if rest:
                time.sleep(0.1)
        if rest:
            recorder.note("alive", outcome="fail", error=str(rest), what="the drain does not get through")

    @staticmethod
    def _count(recorder: Recorder, client: Client, name: str, process: str) -> None:
        operation = recorder.begin("describe", process, queue=name)
        info = client.queue(name).describe()
        recorder.end(operation, [info.visible, info.in_flight, info.delayed, info.size_bytes])

    @staticmethod
    def _drain(recorder: Recorder, client: Client, name: str) -> None:
        queue = client.queue(name)
        while True:
            started = time.monotonic()
            operation = recorder.begin("receive", queue=name, visibility=600.0, wait=0.0, most=DRAIN_MESSAGES)
            messages = queue.receive(DRAIN_MESSAGES, wait_seconds=0, visibility_timeout=600)
            described = [describe(message) for message in messages]
            recorder.end(operation, described)
            if not messages:
                return
            operation = recorder.begin(
                "delete",
                queue=name,
                bodies=[one[0] for one in described],
                sequences=[one[1] for one in described],
                counts=[one[2] for one in described],
                received=started,
                visible_until=[started + 600] * len(described),
            )
            queue.delete_many(messages)
            recorder.end(operation, [])

    def judge(self) -> tuple[RecordedHistory, list[str]]:
        """The whole history, and what there is to complain about it and about what the broker logged."""
        self.world.close()
        history = read(list(self.folder.glob("*.jsonl")))
        history.queues = dict(QUEUES)
        return history, complaints_of(history) + self.unexpected(history)

    def unexpected(self, history: RecordedHistory) -> list[str]:
        """Errors of clients that a loss of the broker does not excuse, and what the broker logged."""
        complaints = [
            f"load: {one.name} got {one.error}"
            for one in history.operations
            if one.error and one.error.partition("(")[0] not in EXPECTED and one.name != "alive"
        ]
        return complaints + [f"log: {line}" for line in self.broker.complaints()]

    def close(self) -> None:
        """Nothing of it is left running."""
        for client in self._clients:
            client.kill()
            client.wait()
        self.broker.put_down()


@contextlib.contextmanager
def running_rig(folder: Path, seed: int, plant: str = "", store: str = "") -> Iterator[Rig]:
    """A rig for the block; its broker is started by whoever uses it."""
    rig = Rig(folder, seed, plant, store)
    try:
        yield rig
    finally:
        rig.close()


def check_file(path: Path) -> list[str]:
    """What SQLite itself has to say against the file of a stopped broker."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("PRAGMA integrity_check").fetchall()
    return [] if rows == [("ok",)] else [f"integrity_check: {rows[:3]}"]


def figures(history: RecordedHistory) -> str:
    """What happened in it, in one line."""
    sends = history.of("send", outcomes=("ok", "info"))
    received = [message for one in history.of("receive") for message in one.value]
    unknown = sum(one.outcome == "info" for one in history.operations)
    return (
        f"{len(history.operations):,} operations ({unknown:,} of unknown outcome), "
        f"{sum(len(one.value) for one in history.of('send')):,} messages acknowledged in {len(sends):,} sends, "
        f"{len(received):,} received, {sum(message.count > 1 for message in received):,} of them again, "
        f"{len({message.body for message in received if message.source}):,} dead letters"
    )


def missing_marks(history: RecordedHistory) -> list[str]:
    """What a long run must have met: what never happened was not tested."""
    received = [message for one in history.of("receive") for message in one.value]
    identities = [identity for one in history.of("send") for identity in one.arguments.get("ids") or ()]
    happened = {
        "a send retried or given up": bool(history.of("send", outcomes=("info", "fail"))),
        "a receive of unknown outcome": bool(history.of("receive", outcomes=("info",))),
        "a message received again": any(message.count > 1 for message in received),
        "a dead letter": any(message.source for message in received),
        "a deduplication id repeated": len(set(identities)) < len(identities),
        "a delete of a FIFO message": any(one.arguments["queue"].endswith(".fifo") for one in history.of("delete")),
        "a visibility timeout changed": bool(history.of("change")),
    }
    return [f"rig: {what} never happened" for what, did in happened.items() if not did]


def shown(complaints: list[str]) -> list[str]:
    """The first complaints of each checker."""
    seen: dict[str, int] = {}
    lines = []
    for one in complaints:
        name = one.partition(":")[0]
        seen[name] = seen.get(name, 0) + 1
        if seen[name] <= LISTED:
            lines.append(one)
    return lines + [f"{name}: {count} complaints in all" for name, count in seen.items()]
