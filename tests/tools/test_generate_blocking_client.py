"""The blocking client is the asynchronous one, word by word."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tools import generate_blocking_client as generator

SOURCE = '''\
"""The asynchronous client.

    >>> async with AsyncClient() as client:
    ...     await client.aclose()
"""

from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

from penstock import _backend_async as backend
from penstock._async.link import AsyncLink

class AsyncQueue(AsyncLink):
    async def __aenter__(self) -> "AsyncQueue":
        return self

    async def __aexit__(self, *args: Any) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[int]:
        return self.numbers()

    async def __anext__(self) -> int:
        raise StopAsyncIteration

    async def numbers(self) -> AsyncIterator[int]:
        async for number in self.source():  # an AsyncIterator
            async with backend.Mutex(), self.lock:
                yield (await number) + await self.next(f"await {number} of AsyncQueue")
        print("please await the answer", [x async for x in self.source()], Iterator)
'''


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A client of one module; the folder that holds `_async`, and later `_sync`."""
    monkeypatch.setattr(generator, "ROOT", tmp_path)
    monkeypatch.setattr(generator, "SOURCE", tmp_path / "_async")
    monkeypatch.setattr(generator, "TARGET", tmp_path / "_sync")
    (tmp_path / "_async").mkdir()
    (tmp_path / "_async/queue.py").write_text(SOURCE)
    return tmp_path


def test_nothing_asynchronous_is_left() -> None:
    text = generator.translate(SOURCE)
    kinds = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)
    nodes = list(ast.walk(ast.parse(text)))
    assert not [node for node in nodes if isinstance(node, kinds)]
    assert not [node for node in nodes if isinstance(node, ast.comprehension) and node.is_async]


@pytest.mark.parametrize(
    "expected",
    [
        "    >>> with Client() as client:\n    ...     client.close()\n",
        "The blocking client.",
        "from collections.abc import Iterator",
        "from penstock import _backend_threads as backend",
        "from penstock._sync.link import Link",
        "class Queue(Link):",
        'def __enter__(self) -> "Queue":',
        "def __exit__(",
        "self.close()",
        "def __iter__(self) -> Iterator[int]:",
        "def __next__(self) -> int:\n        raise StopIteration",
        "for number in self.source():  # an Iterator",
        "with backend.Mutex(), self.lock:",
        "yield (number) + self.next(",
        "[x for x in self.source()]",
    ],
)
def test_each_word_gets_its_twin(expected: str) -> None:
    assert expected in generator.translate(SOURCE)


def test_texts_for_people_stay_as_they_are() -> None:
    text = generator.translate(SOURCE)
    assert 'f"await {number} of AsyncQueue"' in text
    assert '"please await the answer"' in text


def test_a_generated_file_says_so_first_and_is_laid_out(client: Path) -> None:
    assert generator.main([]) == 0
    first, *rest = (client / "_sync/queue.py").read_text().splitlines()
    assert first.startswith("# Generated from _async/queue.py by tools/generate_blocking_client.py")
    text = "\n".join(rest)
    assert "\n\n\nclass Queue(Link):\n" in text
    assert "Awaitable" not in text


def test_writing_twice_changes_nothing_and_check_agrees(client: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator.main([])
    before = (client / "_sync/queue.py").read_bytes()
    assert generator.main([]) == 0
    assert (client / "_sync/queue.py").read_bytes() == before
    assert generator.main(["--check"]) == 0
    assert capsys.readouterr() == ("", "")


def test_check_shows_what_is_stale_and_changes_nothing(client: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator.main([])
    target = client / "_sync/queue.py"
    edited = target.read_text().replace("StopIteration", "RuntimeError")
    target.write_text(edited)
    assert generator.main(["--check"]) == 1
    shown = capsys.readouterr().err
    assert "-        raise RuntimeError\n" in shown
    assert "+        raise StopIteration\n" in shown
    assert target.read_text() == edited


def test_check_misses_a_file_that_was_never_written(client: Path) -> None:
    assert generator.main(["--check"]) == 1
    assert not (client / "_sync").exists()


def test_a_file_whose_source_is_gone_is_stale_and_is_removed(client: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator.main([])
    (client / "_sync/old.py").write_text("")
    assert generator.main(["--check"]) == 1
    assert "old.py" in capsys.readouterr().err
    generator.main([])
    assert sorted(path.name for path in (client / "_sync").iterdir()) == ["queue.py"]


def test_an_unknown_argument_is_refused(client: Path) -> None:
    with pytest.raises(SystemExit) as refused:
        generator.main(["--chekc"])
    assert refused.value.code == 2
    assert not (client / "_sync").exists()


def test_the_repository_is_fresh() -> None:
    assert generator.main(["--check"]) == 0
