"""Histories on disk: every process writes its own file as it goes, one JSON line when it asks and one when it is told.

What was asked and never answered (its writer may have been killed) is of unknown outcome. Times are seconds of the
monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any, TextIO

from tests.checkers.history import History, Operation, Received


class Recorder:
    """Writes the operations of one process. `process` names it in the history."""

    def __init__(self, path: Path, process: str) -> None:
        self._file: TextIO = path.open("w", buffering=1)
        self._process = process
        self._numbers = itertools.count()

    def begin(self, name: str, process: str = "", **arguments: Any) -> int:
        """It asks. The number is for `end`."""
        number = next(self._numbers)
        self._write({"i": number, "p": process or self._process, "n": name, "a": arguments, "t": time.monotonic()})
        return number

    def end(self, number: int, value: Any = None, *, outcome: str = "ok", error: str = "") -> None:
        """It was told. Info needs no end, but may have an error."""
        self._write({"i": number, "o": outcome, "v": value, "e": error, "t": time.monotonic()})

    def note(self, name: str, value: Any = None, *, outcome: str = "ok", error: str = "", **arguments: Any) -> None:
        """Something that is over at once."""
        self.end(self.begin(name, **arguments), value, outcome=outcome, error=error)

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row, separators=(",", ":")) + "\n")

    def close(self) -> None:
        """Nothing is written any more."""
        self._file.close()


class RecordedHistory(History):
    """A history that is complete: what the checkers ask for again and again is found once."""

    def __init__(self, operations: list[Operation]) -> None:
        super().__init__(operations)
        self._found: dict[tuple[str, str | None, tuple[str, ...]], list[Operation]] = {}
        self._by_name: dict[str, list[Operation]] = {}
        for one in operations:
            self._by_name.setdefault(one.name, []).append(one)
        self._is_certain = bool(super().is_certain)

    def of(self, name: str, queue: str | None = None, outcomes: tuple[str, ...] = ("ok",)) -> list[Operation]:
        """See History."""
        key = (name, queue, outcomes)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = [
                one
                for one in self._by_name.get(name, ())
                if one.outcome in outcomes and (queue is None or one.arguments["queue"] == queue)
            ]
        return found

    @property
    def is_certain(self) -> bool:
        """See History."""
        return self._is_certain


def read(paths: list[Path]) -> RecordedHistory:
    """The history that these files hold, in the order of its invocations. A last line that was cut off is left out."""
    operations: list[Operation] = []
    for path in sorted(paths):
        mine: dict[int, Operation] = {}
        with path.open() as file:
            for line in file:
                if not line.endswith("\n"):
                    break
                row = json.loads(line)
                if "n" in row:
                    mine[row["i"]] = Operation(row["p"], row["n"], row["a"], row["t"])
                else:
                    _end(mine[row["i"]], row)
        operations += mine.values()
    operations.sort(key=lambda one: one.invoked)
    return RecordedHistory(operations)


def _end(operation: Operation, row: dict[str, Any]) -> None:
    operation.outcome, operation.error = row["o"], row["e"]
    if operation.outcome != "info":
        operation.completed = row["t"]
    operation.value = row["v"]
    if operation.name == "receive" and operation.outcome == "ok":
        operation.value = [Received(*message) for message in row["v"]]
