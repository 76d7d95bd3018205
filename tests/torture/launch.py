"""Runs a broker with a bug planted: `python -m tests.torture.launch PLANT serve …`. A rig that misses these proves nothing."""

from __future__ import annotations

import sqlite3
import sys

import trio
from penstock_broker import lane
from penstock_broker.cli.main import main as penstock
from penstock_storage import sqlite
from penstock_storage.interface import Commit

SLOW_DISK_SECONDS = 0.005
"""Until the disk begins to write. On a fast one few kills would hit the moment between a reply and its commit."""


def plant_early_ack() -> None:
    """Replies leave before what they say is durable. (Not those that make queues: nothing would go on without them.)"""
    honest = lane.Lane._commit

    async def early(self: lane.Lane, batch: lane._Batch) -> None:
        if batch.rows:
            await honest(self, batch)
            return
        commit = Commit()
        now_ms = self._ports.now_ms()
        publications = [(one, one.collect(commit, now_ms)) for one in batch.participants.values()]
        for participant, publication in publications:
            self._published(participant, participant.publish(publication))
        for callback in batch.callbacks:
            callback(None)
        assert self.incarnation is not None
        await trio.sleep(SLOW_DISK_SECONDS)
        await self._ports.in_thread(self._store.commit, self.incarnation, commit)

    lane.Lane._commit = early  # type: ignore[method-assign]


def plant_weak_sync() -> None:
    """SQLite does not wait for the disk, and the check that it does is gone."""
    configure = sqlite._configure

    def weak(connection: sqlite3.Connection, read_only: bool) -> None:
        configure(connection, read_only)
        connection.execute("PRAGMA synchronous=NORMAL")

    sqlite._configure = weak


PLANTS = {"early-ack": plant_early_ack, "weak-sync": plant_weak_sync}

if __name__ == "__main__":
    PLANTS[sys.argv.pop(1)]()
    sys.argv[0] = "penstock"
    penstock()
