"""Finds what a sweep removes: rows before their log's trim point, and everything of logs whose resource is gone.

The rows are looked up first and then deleted by key in a commit like any other. Between the two nothing can bring such a row
to life again: trim points only grow, and log ids are never used again.
"""

from __future__ import annotations

from typing import Any

from penstock_storage.database import Reader, Step
from penstock_storage.statements import Statements

_EVERYTHING = 2**63 - 1


def sweep_steps(statements: Statements, reader: Reader, limit: int) -> tuple[list[Step], int]:
    """Steps that remove up to `limit` rows, and how many those are. Fewer than `limit`: nothing is left after them."""
    steps: list[Step] = []
    removed = 0
    for log_id, trimmed, garbage in reader.execute(statements.sweepable_logs, ()).fetchall():
        before = _EVERYTHING if garbage else trimmed
        lookups = [
            (statements.sweepable_segments, statements.delete_segment),
            (statements.sweepable_states, statements.delete_state),
            (statements.sweepable_deliveries, statements.delete_delivery),
        ]
        if garbage:
            lookups.append((statements.sweepable_deduplication, statements.delete_deduplication))
        for find, delete in lookups:
            room = limit - removed
            if room <= 0:
                return steps, removed
            keys: list[Any] = reader.execute(find, (log_id, before, room)).fetchall()
            if keys:
                steps.append((delete, keys))
                removed += len(keys)
        if removed >= limit:
            return steps, removed
        steps.append((statements.forget_log, [(log_id,)]) if garbage else (statements.swept, [(trimmed, log_id)]))
    return steps, removed
