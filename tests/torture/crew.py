"""Work shared by one process per core: each answers chunk after chunk with one JSON line, until it is stopped."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.torture.stage import Failure

CORES: Final = min(2, os.cpu_count() or 1)
SILENCE_SECONDS: Final = 300.0
"""A worker that says nothing for so long hangs."""


def resident_bytes(pid: int) -> int:
    """How much memory a process has; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


class Crew:
    """`python -m tests.torture.worker KIND NUMBER OF SEED …` for NUMBER in range(OF). A context manager: leaving it ends
    every process."""

    def __init__(self, kind: str, seed: int, *more: str, workers: int = CORES) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the crew
        self._selector = selectors.DefaultSelector()
        self._processes: list[subprocess.Popen[str]] = []
        for number in range(workers):
            command = [sys.executable, "-m", "tests.torture.worker", kind, str(number), str(workers), str(seed), *more]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors, text=True, process_group=0
            )
            self._processes.append(process)
            assert process.stdout is not None
            self._selector.register(process.stdout, selectors.EVENT_READ, process)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        self._selector.close()
        self._errors.close()

    def answers(self, deadline: float) -> Iterator[dict[str, Any]]:
        """What the workers say, as it comes, until all have ended or the time is over. Failure when one fell over or hangs."""
        heard = time.monotonic()
        while self._selector.get_map():
            now = time.monotonic()
            if now >= deadline:
                return
            if now - heard > SILENCE_SECONDS:
                raise Failure(f"a worker has said nothing for {SILENCE_SECONDS:.0f} seconds")
            for key, _ in self._selector.select(min(1.0, deadline - now)):
                line = key.fileobj.readline()  # type: ignore[union-attr]  # a text file
                if line:
                    heard = time.monotonic()
                    yield json.loads(line)
                    continue
                self._selector.unregister(key.fileobj)
                process: subprocess.Popen[str] = key.data
                if process.wait():
                    self._errors.seek(0)
                    text = self._errors.read().decode(errors="replace")[-3_000:]
                    raise Failure(f"a worker ended with {process.returncode}:\n{text}")
