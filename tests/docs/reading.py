"""Reads documents: tables, links, and names of files and functions."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
OPERATING = ROOT / "docs/OPERATING.md"
ARCHITECTURE = ROOT / "docs/ARCHITECTURE.md"
PROTOCOL = ROOT / "protocol/penstock_protocol"
STORAGE = ROOT / "storage/penstock_storage"
BROKER = ROOT / "broker/penstock_broker"
SDK = ROOT / "clients/penstock"
PACKAGES = (PROTOCOL, STORAGE, BROKER, SDK)


def section(document: Path, title: str) -> str:
    """The text under a heading, up to the next one of the same level."""
    text = document.read_text()
    start = text.index(f"\n## {title}\n") + len(title) + 5
    end = text.find("\n## ", start)
    return text[start : end if end >= 0 else len(text)]


def rows(text: str, first: str) -> list[list[str]]:
    """The cells of the table whose first column is headed `first`, without its head; code marks are dropped from whole cells."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {first} |"):
            break
    else:
        raise AssertionError(f"no table with a first column {first!r}")
    assert set(next(lines)) <= set("| -")
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([re.sub(r"^`([^`]*)`$", r"\1", cell.strip()) for cell in line.strip("|").split(" | ")])
    return found


def code_marks(text: str) -> list[str]:
    """What stands in single backticks outside of indented blocks."""
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    return re.findall(r"`([^`\n]+)`", prose)


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as forges make them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def files_named(name: str) -> list[Path]:
    """The files a document may mean: from the root, in one of the packages, or with its package's name before it."""
    places = (ROOT, *PACKAGES, *(package.parent for package in PACKAGES))
    return [path for place in places if (path := place / name).exists()]


def has_name(file: Path, qualified: str) -> bool:
    """Whether a module defines a class, function, method, field or constant of that name."""
    body: list[ast.stmt] = ast.parse(file.read_text()).body
    for part in qualified.split("."):
        for statement in body:
            if part in _names(statement):
                body = getattr(statement, "body", [])
                break
        else:
            return False
    return True


def _names(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [statement.name]
    targets: list[ast.expr] = []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    elif isinstance(statement, ast.Assign):
        targets = statement.targets
    return [target.id for target in targets if isinstance(target, ast.Name)]


def logged(folder: Path) -> list[str]:
    """What the code logs as warning or worse: each text up to its first parameter."""
    calls = [node for file in sorted(folder.rglob("*.py")) for node in ast.walk(ast.parse(file.read_text()))]
    return [
        str(call.args[0].value).split("%")[0].strip()
        for call in calls
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id in ("log", "logger")
        and call.func.attr in ("warning", "error", "critical", "exception")
        and isinstance(call.args[0], ast.Constant)
    ]
