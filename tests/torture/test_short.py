"""A little torture with every test run, and what the torture itself must be able to do."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.torture import disk
from tests.torture.load import body_of, name_of
from tests.torture.record import Recorder, read
from tests.torture.streams import stream_of

COMMAND = (sys.executable, "-m", "tests.torture", "--minutes", "1.5")


def torture(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs it with its temporary files in `folder`, and sees that nothing is left there."""
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, check=False, env=environment)
    assert list(folder.iterdir()) == []
    return done


@pytest.fixture
def loop_mounts() -> Iterator[None]:
    """Skips where no file system can be mounted."""
    reason = disk.missing()
    if reason and os.environ.get("CI") == "true" and os.geteuid() == 0:
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    yield


def test_nothing_is_lost_or_doubled_by_three_kills_under_load(tmp_path: Path) -> None:
    done = torture(tmp_path, "--only", "kills", "--kills", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills: ok: 3 kills on SQLite" in done.stdout


def test_nothing_is_lost_or_doubled_or_out_of_order_by_two_kills_under_a_load_of_streams(tmp_path: Path) -> None:
    done = torture(tmp_path, "--only", "streams", "--streams", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "streams: ok: 2 kills on SQLite" in done.stdout


@pytest.mark.root
@pytest.mark.usefixtures("loop_mounts")
def test_nothing_is_lost_or_doubled_by_power_cuts_under_load(tmp_path: Path) -> None:
    done = torture(tmp_path, "--only", "cuts", "--cuts", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "power cuts on ext4" in done.stdout


@pytest.mark.root
@pytest.mark.usefixtures("loop_mounts")
def test_a_store_that_does_not_wait_for_the_disk_is_found_out(tmp_path: Path) -> None:
    done = torture(tmp_path, "--only", "cuts", "--cuts", "2", "--plant", "weak-sync")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "q.lost" in done.stdout


def test_an_interrupted_torture_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [*COMMAND, "--only", "kills"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, process_group=0) as process:
        # It works once a client has written down something.
        while not list(tmp_path.glob("*/c0.jsonl")):
            assert process.poll() is None
        group = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _parent(entry) == process.pid}
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    assert group and not [pid for pid in group if Path(f"/proc/{pid}").exists()]
    assert list(tmp_path.iterdir()) == []


def _parent(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def test_a_history_that_was_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.jsonl", "c0")
    first = recorder.begin("send", queue="q", bodies=["x"])
    recorder.end(first, [7])
    recorder.begin("send", queue="q", bodies=["y"])
    recorder.close()
    whole = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(whole + json.dumps({"i": 2, "n": "send"})[:-3])
    history = read([tmp_path / "a.jsonl"])
    assert [(one.outcome, one.value) for one in history.operations] == [("ok", [7]), ("info", None)]
    assert not history.is_certain


def test_a_body_with_one_wrong_bit_is_nobodys() -> None:
    for name in ("c0-1", "c1-77", "c2-500"):
        body = body_of(name)
        assert name_of(body) == name
        for place in range(len(body)):
            assert name_of(body[:place] + bytes((body[place] ^ 1,)) + body[place + 1 :]) != name


def test_a_stream_of_bytes_is_the_same_for_the_same_seed() -> None:
    assert [stream_of(random.Random(seed)) for seed in range(50)] == [stream_of(random.Random(seed)) for seed in range(50)]
