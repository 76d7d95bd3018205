"""What one process of a crew does: `python -m tests.torture.worker KIND NUMBER OF SEED …`, see crew.py and WORK below."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final

from tests.torture.crew import resident_bytes

SEED_CHUNK: Final = 5
MACHINE_CHUNK: Final = 200
FRAME_CHUNK: Final = 10_000


def _say(**row: Any) -> None:
    print(json.dumps(row), flush=True)


def seeds(number: int, of: int, seed: int) -> None:
    """Seeds of the simulation from the given one on, in chunks that the workers take in turn: of queues and of streams."""
    from tests.simulation import story, stream_story

    chunk = number
    while True:
        operations, complaints = 0, []
        first = seed + chunk * SEED_CHUNK
        for one in range(first, first + SEED_CHUNK):
            if chunk // of % 2:
                world, found = stream_story.run_seed(one)
                say = stream_story.report
            else:
                world, found = story.run_seed(one)
                say = story.report
            operations += len(world.history.operations)
            if found:
                complaints.append(say(world, found, tail=0))
        _say(done=SEED_CHUNK, operations=operations, complaints=complaints)
        chunk += of


def machines(number: int, of: int, seed: int) -> None:
    """Random histories of the state machines of the model: chunks from fixed seeds, standard and FIFO in turn."""
    import hypothesis
    from hypothesis.stateful import run_state_machine_as_test

    from tests.model.test_machines import PROFILE, FifoMachine, StandardMachine

    wanted = hypothesis.settings(PROFILE, max_examples=MACHINE_CHUNK, derandomize=False)
    chunk = number
    while True:
        base = (StandardMachine, FifoMachine)[chunk // of % 2]
        machine = hypothesis.seed(seed + chunk)(type(base.__name__, (base,), {}))
        complaints = []
        try:
            run_state_machine_as_test(machine, settings=wanted)
        except AssertionError:
            complaints.append(f"{base.__name__}, seed {seed + chunk}: {traceback.format_exc()[-3_000:]}")
        _say(done=MACHINE_CHUNK, complaints=complaints)
        chunk += of


def frames(number: int, of: int, seed: int) -> None:
    """Random and mutated frames through the protocol, without sockets."""
    run = importlib.import_module("tests.protocol.mutate").run
    chunk = number
    while True:
        marks = run(FRAME_CHUNK, seed + chunk)
        _say(done=FRAME_CHUNK, worker=number, marks=marks, resident=resident_bytes(os.getpid()))
        chunk += of


def sockets(number: int, of: int, seed: int, port: str, streams: str) -> None:
    """Mutated byte streams at a real broker, while a healthy connection is served."""
    from tests.torture.streams import attack

    attack(int(port), int(streams), seed * of + number, _say)


WORK: Final[dict[str, Callable[..., None]]] = {"seeds": seeds, "machines": machines, "frames": frames, "sockets": sockets}

if __name__ == "__main__":
    WORK[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])
