"""100,000 flights go through a real broker with failures on the way, and come out equal to the data frame.

All 336,776: `python -m tests.system.real_data`, with `--store postgresql` for the other store.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.broker_process import running_broker
from tests.system.real_data import BROKEN_SHARE, FAIL_ONCE_SHARE, MAX_RECEIVE_COUNT, Report, frame, prove_equal, run

RECORDS = 100_000


def told(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    """Shows the table, and holds its numbers against what was planned."""
    with capsys.disabled():
        print(f"\n{report.table()}")
    broken = int(RECORDS * BROKEN_SHARE)
    once = int(RECORDS * FAIL_ONCE_SHARE)
    assert (report.records_sent, report.processed_at_first) == (RECORDS, RECORDS - broken)
    assert (report.failed_once, report.failures_raised) == (once, once + MAX_RECEIVE_COUNT * broken)
    assert (report.dead_lettered, report.redriven, report.processed_after_redrive) == (broken, broken, broken)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_record_is_worked_off_on_sqlite_the_failing_ones_after_their_redrive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_broker(tmp_path) as broker:
        told(run(broker.url, "sqlite", RECORDS, seed=1), capsys)


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.timeout(400)
def test_every_record_is_worked_off_on_postgresql_the_failing_ones_after_their_redrive(
    tmp_path: Path, postgresql_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_broker(tmp_path, store=postgresql_url) as broker:
        told(run(broker.url, "postgresql", RECORDS, seed=2), capsys)


def test_the_proof_notices_a_missing_a_changed_and_a_foreign_record() -> None:
    rows = frame(100).astype(object).where(lambda values: values.notna(), None).to_dict("records")
    prove_equal(100, rows)
    prove_equal(100, [*rows, rows[7]])  # a duplicate is counted, and proves nothing
    changed = [*rows[:50], {**rows[50], "distance": rows[50]["distance"] + 1}, *rows[51:]]
    for wrong in (rows[1:], changed, [*rows[1:], {**rows[0], "record": 100}]):
        with pytest.raises(AssertionError):
            prove_equal(100, wrong)
