"""The operator's tables are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import structlog
import trio
from penstock_broker import config
from penstock_broker.broker import BrokerOptions, running
from penstock_broker.cli.exits import MEANING, Exit
from penstock_broker.metrics import BrokerCollector
from penstock_broker.ports import real_ports
from penstock_broker.queues import limits
from penstock_protocol.operations import ROLES
from penstock_storage.memory import MemoryDisk, MemoryStore
from penstock_storage.postgresql import CONNECT_ARGUMENTS, CONNECTIONS
from penstock_storage.sqlite import RESERVE_BYTES, WAL_ALARM_BYTES

from tests.docs.reading import BROKER, OPERATING, STORAGE, logged, rows, section


def test_the_table_of_options_is_that_of_the_broker() -> None:
    written = [tuple(row[:4]) for row in rows(section(OPERATING, "Options"), "Option")]
    assert written == [(one.name, one.flag, one.variable, repr(one.default)) for one in config.OPTIONS]


def test_what_a_signal_reloads_is_named() -> None:
    [hup] = [row[1] for row in rows(section(OPERATING, "Start and stop"), "Signal") if row[0] == "SIGHUP"]
    named = [name for name in re.findall(r"`(\w+)`", hup) if name in {option.name for option in config.OPTIONS}]
    assert set(named) == set(config.RELOADABLE)


def test_the_table_of_exit_codes_is_that_of_the_command_line() -> None:
    written = [tuple(row) for row in rows(section(OPERATING, "Exit codes"), "Code")]
    assert written == [(str(code.value), code.name, MEANING[code]) for code in Exit]


def test_the_table_of_metrics_is_what_a_scrape_shows() -> None:
    exposed: set[tuple[str, str]] = set()

    async def scrape() -> None:
        store = MemoryStore(MemoryDisk(b"s" * 32))
        async with running(store, real_ports(), BrokerOptions(), b"k" * 32) as broker:
            for family in BrokerCollector(broker, store, 1).collect():
                exposed.add((family.name + ("_total" if family.type == "counter" else ""), family.type))

    with structlog.testing.capture_logs():
        trio.run(scrape)
    written = [(row[0], row[1]) for row in rows(section(OPERATING, "Metrics"), "Metric")]
    assert len(written) == len(set(written))
    assert set(written) == exposed


def test_the_table_of_roles_is_that_of_the_protocol() -> None:
    assert [row[0] for row in rows(section(OPERATING, "Access keys and roles"), "Role")] == list(ROLES)


@pytest.mark.parametrize("package", [STORAGE, BROKER], ids=["storage", "broker"])
def test_every_warning_and_error_in_the_log_is_explained(package: Path) -> None:
    cells = [row[0] for row in rows(section(OPERATING, "Logs"), "Event")]
    events = [event for cell in cells for event in (re.findall(r"`([^`]+)`", cell) or [cell])]
    beginnings = tuple(event.split("…")[0].strip() for event in events)
    found = logged(package)
    assert found
    assert [text for text in found if not text.startswith(beginnings)] == []


@pytest.mark.parametrize(
    ("title", "text"),
    [
        ("Sizing", f"{limits.WINDOW_MESSAGES:,} visible messages of a standard queue"),
        ("Sizing", f"{limits.FIFO_WINDOW_MESSAGES:,} of a FIFO queue"),
        ("Sizing", f"{limits.DELAYED_SEGMENTS:,} delayed segments"),
        ("Sizing", f"{limits.MAX_QUEUES:,} queues per account"),
        ("Sizing", f"{limits.MAX_BATCH:,} messages per send"),
        ("Sizing", f"{limits.MAX_WAITERS:,} waiting receives"),
        ("Sizing", f"{limits.MAX_IN_FLIGHT:,} messages in flight"),
        ("What is promised", f"{limits.PRODUCER_WINDOW_MS // limits.MINUTE_MS} minutes on the same client"),
        ("What is promised", f"hold for {limits.DEDUPLICATION_WINDOW_MS // limits.MINUTE_MS} minutes"),
        ("A full disk", f"{RESERVE_BYTES // 2**20} MiB"),
        ("Backup and restore", f"beyond {WAL_ALARM_BYTES // 2**20} MiB of WAL"),
        ("PostgreSQL", f"up to {CONNECTIONS} for writing"),
        ("PostgreSQL", f"`connect_timeout` {CONNECT_ARGUMENTS['connect_timeout']} s"),
    ],
)
def test_numbers_are_those_of_the_code(title: str, text: str) -> None:
    assert text in section(OPERATING, title).replace("\n", " ")
