"""The examples in the SDK's docstrings are run as they stand, against a real broker, each with a queue of its own."""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import inspect
import io
import pkgutil
from collections.abc import Iterator
from typing import Any

import anyio
import penstock
import pytest

from tests.broker_process import BrokerProcess

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples(package: str) -> Iterator[doctest.DocTest]:
    """All docstrings of a package that have examples."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    root = importlib.import_module(package)
    for info in pkgutil.iter_modules(root.__path__, f"{package}."):
        for test in finder.find(importlib.import_module(info.name), info.name):
            if test.examples:
                yield test


ASYNC = {test.name: test for test in examples("penstock._async")}
BLOCKING = {test.name: test for test in examples("penstock._sync")}


def test_both_clients_have_examples_in_the_same_places() -> None:
    assert len(ASYNC) >= 5
    assert [name.replace("_async.", "_sync.").replace(".Async", ".") for name in ASYNC] == list(BLOCKING)


@pytest.mark.parametrize("name", list(BLOCKING))
def test_blocking_examples_do_what_they_say(name: str, real_broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_URL", real_broker.url)
    test = BLOCKING[name]
    with penstock.Client() as client:
        queue = client.create_queue("example-" + name.replace(".", "-").lower()[-60:])
        queue.purge()
        queue.send("hello")
        test.globs = {**vars(penstock), "client": client, "queue": queue, "url": real_broker.url}
        report = io.StringIO()
        results = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.write, clear_globs=False)
        assert results.attempted and not results.failed, report.getvalue()


@pytest.mark.anyio
@pytest.mark.parametrize("name", list(ASYNC))
async def test_asynchronous_examples_do_what_they_say(
    name: str, real_broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_URL", real_broker.url)
    async with penstock.AsyncClient() as client:
        queue = await client.create_queue("example-" + name.replace(".", "-").lower()[-60:])
        await queue.purge()
        await queue.send("hello")
        scope: dict[str, Any] = {**vars(penstock), "client": client, "queue": queue, "url": real_broker.url, "anyio": anyio}
        checker = doctest.OutputChecker()
        for example in ASYNC[name].examples:
            code = compile(example.source, name, "single", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                running = eval(code, scope)  # the examples are this repository's own
                if inspect.isawaitable(running):
                    await running
            assert checker.check_output(example.want, output.getvalue(), FLAGS), f"{example.source}gave {output.getvalue()}"
