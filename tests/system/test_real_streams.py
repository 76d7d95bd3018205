"""30,000 flights go through a stream whose shards are split and merged, to a group whose members come, go and are killed.

All 336,776: `python -m tests.system.real_streams`, with `--store postgresql` for the other store.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from penstock import ShardInfo

from tests.broker_process import running_broker
from tests.system.real_streams import Entry, Pass, Report, prove_order, run

RECORDS = 30_000


def told(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    """Shows the table, and holds its numbers against what was planned."""
    with capsys.disabled():
        print(f"\n{report.table()}")
    assert report.records_put == report.once_in_the_checkpointed_pass == RECORDS
    assert (report.members, report.members_killed) == (5, 1)
    assert min(report.in_the_8_shards, report.in_the_16_shards, report.in_the_4_shards) > 0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_record_is_handled_once_in_the_checkpointed_pass_on_sqlite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "journals").mkdir()
    with running_broker(tmp_path) as broker:
        told(run(broker.url, "sqlite", RECORDS, tmp_path / "journals"), capsys)


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.timeout(400)
def test_every_record_is_handled_once_in_the_checkpointed_pass_on_postgresql(
    tmp_path: Path, postgresql_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "journals").mkdir()
    with running_broker(tmp_path, store=postgresql_url) as broker:
        told(run(broker.url, "postgresql", RECORDS, tmp_path / "journals"), capsys)


# The proof itself: one shard of ten records; `a` is killed, `b` is not

ROWS = [b"k\t{}"] * 10
SHARD = ShardInfo(0, 0, 1, [], datetime.now(UTC), None, 0, 10)


def handled(member: str, first: int, end: int) -> Entry:
    return Entry("P", 0, 0, first, ROWS[first:end], member)


def said(member: str, kind: str, position: int) -> Entry:
    return Entry(kind, 0, 0, position, [], member)


def walk(*entries: Entry) -> Pass:
    """The pass of these entries, to the end of the shard."""
    checkpointed = Pass(["a"])
    for entry in entries:
        checkpointed.feed(entry)
    checkpointed.finish([SHARD])
    return checkpointed


LAST = [said("b", "I", 10), said("b", "C", 10)]
KILLED = [handled("a", 0, 4), said("a", "I", 4), said("a", "C", 4), handled("a", 4, 7)]


def test_the_pass_goes_on_from_the_last_checkpoint_of_who_was_killed() -> None:
    found = walk(*KILLED, handled("b", 4, 10), *LAST)
    assert (found.again_killed, found.again_moved) == (3, 0)
    found = walk(*KILLED, said("a", "I", 7), handled("a", 7, 8), handled("b", 7, 10), *LAST)  # it was noted, but not heard of
    assert (found.again_killed, found.again_moved) == (1, 0)


@pytest.mark.parametrize(
    "entries",
    [
        [handled("b", 0, 4), handled("b", 5, 10), *LAST],
        [handled("b", 0, 9), *LAST],
        [handled("b", 0, 10)],
        [*KILLED, handled("b", 3, 10), *LAST],
        [*KILLED, handled("b", 5, 10), *LAST],
        [*KILLED, handled("b", 7, 10), handled("b", 4, 10), *LAST],
        [handled("b", 0, 8), handled("b", 0, 10), *LAST],
    ],
)
def test_the_pass_notices_gaps_an_early_end_and_repetitions_that_no_checkpoint_explains(entries: list[Entry]) -> None:
    with pytest.raises(AssertionError):
        walk(*entries)


def test_the_proof_of_order_notices_two_records_of_a_key_that_changed_places() -> None:
    rows = [{"record": place, "tailnum": f"N{place % 3}"} for place in range(9)]
    assert prove_order(rows) == 3
    prove_order([rows[1], rows[0], *rows[2:]])  # of other keys
    with pytest.raises(AssertionError):
        prove_order([rows[3], *rows[:3], *rows[4:]])
