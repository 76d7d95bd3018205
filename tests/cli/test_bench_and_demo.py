"""`penstock bench` and `penstock demo`: the first minute with Penstock."""

from __future__ import annotations

import json

from tests.cli.runner import Penstock

STEPS = ["send, one at a time", "send, 1,000 tasks", "send, batches of 100", "send, batches of 500",
         "receive and delete, batches of 500"]  # fmt: skip


def test_bench_tells_messages_a_second_for_each_step_and_deletes_its_queue(penstock: Penstock) -> None:
    (row,) = penstock.json("bench", "--seconds", "0.1", "--size", "10")
    assert list(row) == STEPS and all(rate > 0 for rate in row.values())
    shown = penstock("bench", "--seconds", "0.05").out
    assert all(step in shown for step in STEPS)
    assert penstock.json("queue", "list", "bench-") == []


def test_the_demo_loses_nothing_and_leaves_nothing() -> None:
    process = Penstock("").process("demo", "--json")
    out, err = process.communicate(timeout=90)
    assert (process.returncode, err) == (0, b"")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["step"] for row in rows] == ["start", "send", "work", "redrive", "fifo"]
    assert rows[1]["acknowledged"] == rows[1]["held"] == 1000 > rows[1]["acknowledged_at_kill"]
    assert (rows[2]["processed"], rows[2]["dead_letters"]) == (980, 20)
    assert (rows[3]["moved"], rows[3]["processed"]) == (20, 1000)
    assert rows[4]["in_order"] is True


def test_the_demo_tells_people_a_story() -> None:
    process = Penstock("").process("demo")
    out, err = process.communicate(timeout=90)
    assert (process.returncode, err) == (0, b"")
    assert "none lost, none twice" in out.decode()
    assert "Processed: 1,000 of 1,000" in out.decode()
