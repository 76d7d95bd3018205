"""Writes the blocking client (clients/penstock/_sync) from the asynchronous one (clients/penstock/_async), word by word.

    python tools/generate_blocking_client.py            writes
    python tools/generate_blocking_client.py --check    exits with 1 and a difference when what is there is stale

`async` and `await` are dropped, the prefix Async is taken from names, and the words of the table are replaced, in code, in
comments and in docstrings (where examples are). Other texts stay as they are, but for those that are a name in full: a type
in quotes. ruff formats the result, so that it does not depend on how the source is wrapped.
"""

from __future__ import annotations

import argparse
import difflib
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "clients/penstock/_async"
TARGET = ROOT / "clients/penstock/_sync"
HEADER = "# Generated from {source} by tools/generate_blocking_client.py (make sync-client): edit that file.\n"

WORDS = {
    "_backend_async": "_backend_threads",
    "_async": "_sync",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
    "StopAsyncIteration": "StopIteration",
    "aclose": "close",
    "AsyncIterator": "Iterator",
    "AsyncIterable": "Iterable",
}


def word(name: str) -> str:
    """The blocking client's word for one of the asynchronous client's."""
    return WORDS.get(name) or re.sub(r"^Async(?=[A-Z])", "", name)


def prose(text: str) -> str:
    """A docstring or comment: its examples are code, its words are names."""
    text = re.sub(r"\b(async|await) ", "", text)
    text = re.sub(r"\b\w+\b", lambda found: word(found[0]), text)
    return text.replace("asynchronous client", "blocking client")


def translate(source: str) -> str:
    """The blocking twin of a module's text."""
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    lines = source.splitlines(keepends=True)
    edits: list[tuple[tuple[int, int], tuple[int, int], str]] = []
    for place, token in enumerate(tokens):
        if token.type == tokenize.NAME and token.string in ("async", "await"):
            after = tokens[place + 1]
            edits.append((token.start, after.start if after.start[0] == token.start[0] else token.end, ""))
        elif token.type == tokenize.NAME and (new := word(token.string)) != token.string:
            edits.append((token.start, token.end, new))
        elif (token.type == tokenize.STRING and token.string.startswith('"""')) or token.type == tokenize.COMMENT:
            edits.append((token.start, token.end, prose(token.string)))
        elif token.type == tokenize.STRING and re.fullmatch(r'"Async[A-Z]\w*"', token.string):
            edits.append((token.start, token.end, f'"{word(token.string[1:-1])}"'))
    offsets = [0]
    for line in lines:
        offsets.append(offsets[-1] + len(line))
    text = source
    for (row, column), (end_row, end_column), new in reversed(edits):
        text = text[: offsets[row - 1] + column] + new + text[offsets[end_row - 1] + end_column :]
    text = text.replace("Awaitable[Any]", "Any").replace("Awaitable, ", "")
    return re.sub(r"from collections\.abc import (.*)", _unique_imports, text)


def _unique_imports(found: re.Match[str]) -> str:
    return "from collections.abc import " + ", ".join(sorted(set(found[1].split(", "))))


def formatted(text: str, name: str) -> str:
    """The text as ruff lays it out, its imports sorted and unused ones gone."""
    ruff = [sys.executable, "-m", "ruff"]
    sorting = [*ruff, "check", "--quiet", "--fix-only", "--select", "I,F401", "--isolated", "--stdin-filename", name, "-"]
    text = subprocess.run(sorting, input=text, capture_output=True, text=True, check=True).stdout
    layout = [*ruff, "format", "--quiet", "--isolated", "--line-length", "130", "--stdin-filename", name, "-"]
    return subprocess.run(layout, input=text, capture_output=True, text=True, check=True).stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes or checks; the exit code."""
    parser = argparse.ArgumentParser(description="Write the blocking client from the asynchronous one.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 and show what is stale")
    check = parser.parse_args(arguments).check
    wanted = {}
    for path in sorted(SOURCE.glob("*.py")):
        header = HEADER.format(source=path.relative_to(ROOT).as_posix())
        wanted[path.name] = formatted(header + translate(path.read_text()), path.name)
    there = {path.name: path.read_text() for path in TARGET.glob("*.py")}
    stale = sorted(name for name in there.keys() | wanted.keys() if there.get(name) != wanted.get(name))
    if check:
        _complain(stale, there, wanted)
        return int(bool(stale))
    TARGET.mkdir(exist_ok=True)
    for name in stale:
        if name in wanted:
            (TARGET / name).write_text(wanted[name])
        else:
            (TARGET / name).unlink()
    return 0


def _complain(stale: list[str], there: dict[str, str], wanted: dict[str, str]) -> None:
    for name in stale:
        before = there.get(name, "").splitlines(keepends=True)
        after = wanted.get(name, "").splitlines(keepends=True)
        sys.stderr.writelines(difflib.unified_diff(before, after, f"there/{name}", f"wanted/{name}"))
    if stale:
        print(f"the blocking client is stale ({', '.join(stale)}): run `make sync-client`", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
