"""The SDK's types as an application meets them: a project of its own, checked by mypy --strict against the installed package.

What must be refused carries a `type: ignore` with its code; one that nothing needs is an error too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROJECT = """
from __future__ import annotations

from datetime import datetime

from penstock import (
    AsyncClient,
    AsyncMessage,
    AsyncWorker,
    Backoff,
    Client,
    Message,
    OutgoingMessage,
    PenstockError,
    Queue,
    QueueInfo,
    SendFailed,
    SentMessage,
    Worker,
)
from typing_extensions import assert_type


def blocking() -> None:
    with Client("penstock://127.0.0.1", request_timeout=5) as client:
        assert_type(client, Client)
        queue = client.create_queue("jobs", visibility_timeout=30, dead_letter_queue=None, tags={"team": "red"})
        assert_type(queue, Queue)
        assert_type(queue.send("text", attributes={"n": 1, "b": b"x"}, delay_seconds=0.5), SentMessage)
        assert_type(queue.send_many([b"bytes", OutgoingMessage("text", group="g")]), list[SentMessage | PenstockError])
        messages = queue.receive(10, wait_seconds=1)
        assert_type(messages, list[Message])
        for message in messages:
            assert_type(message.body, bytes)
            assert_type(message.text, str)
            assert_type(message.group, str | None)
            assert_type(message.attributes, dict[str, str | bytes | int | float])
            assert_type(message.sent_at, datetime)
            message.release(1.5)
            queue.delete(message.receipt_handle)
        with queue.consume(credit=10) as consumer:
            assert_type(consumer.next(0.5), Message | None)
            for one in consumer:
                assert_type(one, Message)
        assert_type(queue.describe(), QueueInfo)
        assert_type([name for name in client.list_queues()], list[str])
        queue.send(5)  # type: ignore[arg-type]
        queue.set(visibility="30")  # type: ignore[call-arg]
        client.create_queue("jobs", delay="soon")  # type: ignore[arg-type]

        def handle(message: Message) -> None:
            message.delete()

        Worker(queue, handle, concurrency=3, backoff=Backoff(first=0.1)).run(idle_seconds=1)


async def asynchronous() -> None:
    async with AsyncClient() as client:
        queue = await client.create_queue("jobs")
        assert_type(await queue.send("text"), SentMessage)
        async with queue.consume() as messages:
            async for message in messages:
                assert_type(message, AsyncMessage)
                await message.delete()

        async def handle(message: AsyncMessage) -> str:
            return message.text

        def forgot_async(message: AsyncMessage) -> None: ...

        await AsyncWorker(queue, handle).run()
        AsyncWorker(queue, forgot_async)  # type: ignore[arg-type]


def errors(error: PenstockError) -> None:
    assert_type(error.code, int)
    assert_type(error.retryable, bool)
    assert_type(error.advice, str)
    if isinstance(error, SendFailed):
        assert_type(error.failures, dict[int, PenstockError])
        assert_type(error.sent, list[SentMessage])
"""


def test_an_application_that_uses_the_sdk_passes_mypy_strict(tmp_path: Path) -> None:
    (tmp_path / "application.py").write_text(PROJECT)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "application.py"]
    environment = {name: value for name, value in os.environ.items() if name != "MYPYPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
