"""The files, functions and tables that the architecture names exist, and the links of all documents lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from penstock_broker.queues import limits
from penstock_broker.stream_service import TIP_BUDGET_BYTES
from penstock_broker.streams import limits as stream_limits
from penstock_storage.schema import metadata

from tests.docs.reading import ARCHITECTURE, BROKER, OPERATING, ROOT, anchors, code_marks, files_named, has_name, rows, section

DOCUMENTS = [OPERATING, ARCHITECTURE, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
FOLDERS = ("tests/", "tools/", "docs/", "deploy/", "benchmarks/", "protocol/", "storage/", "broker/", "clients/")


def test_every_function_named_with_its_file_exists() -> None:
    named = [mark for mark in code_marks(ARCHITECTURE.read_text()) if "::" in mark]
    assert len(named) > 50
    wrong = []
    for mark in named:
        file, _, name = mark.partition("::")
        found = files_named(file)
        if len(found) != 1 or not has_name(found[0], name):
            wrong.append(mark)
    assert not wrong


def test_every_file_and_folder_named_exists() -> None:
    marks = [mark for document in (ARCHITECTURE, OPERATING) for mark in code_marks(document.read_text())]
    named = {mark for mark in marks if mark.endswith(".py") or mark.startswith(FOLDERS)}
    assert {"lane.py", "tests/docs/"} <= named
    assert sorted(name for name in named if not files_named(name)) == []


def test_every_module_of_the_broker_has_its_line() -> None:
    written = {name for row in rows(section(ARCHITECTURE, "The house"), "File") for name in re.findall(r"[\w/]+\.py", row[0])}
    modules = {
        str(path.relative_to(BROKER))
        for folder in (BROKER, BROKER / "queues", BROKER / "streams")
        for path in folder.glob("*.py")
    }
    assert {name for name in modules if not name.endswith(("__init__.py", "__main__.py"))} == written


def test_every_table_of_the_store_is_there_with_its_key() -> None:
    written = {name: row[1] for row in rows(section(ARCHITECTURE, "The tables"), "Table") for name in _names(row[0])}
    assert set(written) == set(metadata.tables)
    for name, key in written.items():
        if key:
            assert key.split(", ") == [column.name for column in metadata.tables[name].primary_key], name


def _names(cell: str) -> list[str]:
    return re.findall(r"\w+", cell)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_within_the_repository_leads_somewhere(document: Path) -> None:
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        other = (document.parent / file).resolve() if file else document
        if not other.exists() or (anchor and anchor not in anchors(other)):
            dead.append(target)
    assert not dead


@pytest.mark.parametrize("document", [OPERATING, ARCHITECTURE], ids=lambda path: path.name)
def test_the_list_of_contents_names_every_section(document: Path) -> None:
    text = document.read_text()
    contents = re.findall(r"^- \[(.*)\]\(#", text, re.MULTILINE)
    assert contents == re.findall(r"^## (.*)$", text, re.MULTILINE)


@pytest.mark.parametrize(
    "text",
    [
        f"a window: {limits.WINDOW_MESSAGES:,} messages, or {limits.FIFO_WINDOW_MESSAGES:,} on FIFO queues",
        f"{limits.CONTENT_BYTES // 2**20} MiB per queue",
        f"up to {limits.PAGE_SEGMENTS:,} segments or {limits.PAGE_BYTES // 2**20} MiB",
        f"at least {limits.NOISY_IN_FLIGHT} in flight",
        f"Segments of at most {limits.SEGMENT_MESSAGES:,} messages and {limits.SEGMENT_BYTES // 2**20} MiB",
        f"2^{limits.RESERVE_SEQUENCES.bit_length() - 1} numbers ahead",
        f"The newest {stream_limits.TIP_BYTES // 2**20} MiB of each shard",
        f"{TIP_BUDGET_BYTES // 2**20} MiB for all shards together",
        f"up to {stream_limits.SEGMENT_RECORDS:,} records or {stream_limits.SEGMENT_BYTES // 2**20} MiB",
    ],
)
def test_numbers_are_those_of_the_code(text: str) -> None:
    assert text in re.sub(r"\s+", " ", ARCHITECTURE.read_text())
