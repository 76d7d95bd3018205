"""`penstock demo`: a short story with a throw-away broker, every line of it measured or counted, cleaned up afterwards."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from penstock import Backoff, Client, ClientClosed, Message, Queue, Worker

from penstock_broker.cli.exits import Exit
from penstock_broker.cli.output import console, fail, print_json

ORDERS = 1_000
BROKEN = 20
START_SECONDS = 60.0
"""How long the broker may take to start: a busy machine needs more than a client usually waits."""


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class _Broker:
    """A broker in a process of its own, over a folder that outlives its kills."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self.url = f"penstock://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers."""
        log = (self.folder / "log").open("ab")
        command = [sys.executable, "-m", "penstock_broker", "serve", "--data", str(self.folder / "data")]
        options = ["--listen", f"127.0.0.1:{self.port}", "--metrics", "", "--log-format", "json"]
        self.process = subprocess.Popen([*command, *options], stdout=log, stderr=log, env=_environment())
        log.close()
        with Client(self.url, connect_timeout=START_SECONDS, request_timeout=START_SECONDS) as client:
            client.ping()

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM, and the end."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}


@contextlib.contextmanager
def _throw_away() -> Iterator[_Broker]:
    folder = Path(tempfile.mkdtemp(prefix="penstock-demo-"))
    broker = _Broker(folder)
    try:
        yield broker
    finally:
        broker.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _say(text: str, **facts: Any) -> None:
    """A line for people, or the facts in it for scripts."""
    if not click.get_current_context().params["as_json"]:
        console.print(text)
    elif facts:
        print_json(facts)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line, for scripts.")
def demo(as_json: bool) -> None:
    """See it work: orders, failures, a dead-letter queue, a killed broker, FIFO order. Takes some seconds, leaves nothing."""
    del as_json  # _say looks
    with _throw_away() as broker:
        _say("[bold]1.[/] A broker starts on this machine, with its data in a temporary folder.")
        broker.start()
        _say(f"   It listens on {broker.url}; every reply means: it is on disk.\n", step="start", url=broker.url)
        with Client(broker.url, request_timeout=30) as client:
            dead = client.create_queue("orders-dead")
            orders = client.create_queue("orders", dead_letter_queue=dead, max_receive_count=2, visibility_timeout=5)
            acknowledged = _send_orders(broker, orders)
            _work_off(orders, dead, acknowledged)
            _fifo(client)
        _say("[bold]6.[/] The broker stops, the folder goes. `penstock serve` starts one that stays.")


def _send_orders(broker: _Broker, orders: Queue) -> set[bytes]:
    _say(f"[bold]2.[/] Four threads send {ORDERS:,} orders. In the middle the broker is killed (kill -9) and started again.")
    acknowledged: set[bytes] = set()
    lock = threading.Lock()

    def produce(first: int) -> None:
        with contextlib.suppress(ClientClosed):  # Ctrl-C: the story is over
            for number in range(first, ORDERS, 4):
                body = f"order {number}".encode()
                orders.send(body)
                with lock:
                    acknowledged.add(body)

    threads = [threading.Thread(target=produce, args=(first,)) for first in range(4)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    while len(acknowledged) < ORDERS // 3:
        time.sleep(0.001)
    broker.kill()
    at_kill = len(acknowledged)
    broker.start()
    for thread in threads:
        thread.join()
    count = orders.describe().messages
    _say(
        f"   {at_kill} were acknowledged when it died. All {len(acknowledged):,} sends returned after "
        f"{time.monotonic() - started:.1f} s, without an error; the queue holds [bold]{count:,}[/]: none lost, none twice.\n",
        step="send",
        acknowledged_at_kill=at_kill,
        acknowledged=len(acknowledged),
        held=count,
    )
    if count != ORDERS:
        fail(f"the queue should hold {ORDERS}", Exit.FAILED)
    return acknowledged


def _work_off(orders: Queue, dead: Queue, acknowledged: set[bytes]) -> None:
    _say(f"[bold]3.[/] A worker handles them, ten at a time. {BROKEN} orders fail each time; two receives are allowed.")
    done: Counter[bytes] = Counter()
    repaired = threading.Event()
    lock = threading.Lock()

    def handle(message: Message) -> None:
        number = int(message.body.split()[1])
        if number % (ORDERS // BROKEN) == 0 and not repaired.is_set():
            raise RuntimeError("this order cannot be processed")
        with lock:
            done[message.body] += 1

    logging.getLogger("penstock.worker").setLevel(logging.CRITICAL)
    started = time.monotonic()
    worker = Worker(orders, handle, concurrency=10, backoff=Backoff(first=0.1, jitter=False))
    worker.run(idle_seconds=0.8)
    left = dead.describe().messages
    _say(
        f"   {worker.processed} processed, {worker.failed} failures in {time.monotonic() - started:.1f} s; "
        f"[bold]{left}[/] orders wait in the dead-letter queue.\n",
        step="work",
        processed=worker.processed,
        failures=worker.failed,
        dead_letters=left,
    )
    _say("[bold]4.[/] The bug is mended; the dead letters are moved back and worked off.")
    repaired.set()
    moved = dead.redrive().wait()
    Worker(orders, handle, concurrency=10).run(idle_seconds=0.5)
    twice = sum(count > 1 for count in done.values())
    complete = set(done) == acknowledged
    _say(
        f"   {moved} moved back. Processed: [bold]{len(done):,} of {ORDERS:,}[/], {twice} of them more than once.\n",
        step="redrive",
        moved=moved,
        processed=len(done),
        more_than_once=twice,
    )
    if not complete or left != BROKEN or moved != BROKEN:
        fail("not every order was processed", Exit.FAILED)


def _fifo(client: Client) -> None:
    _say("[bold]5.[/] A FIFO queue: three customers, twenty events each, four workers at once; each customer's order is kept.")
    events = client.create_queue("events.fifo", content_based_deduplication=True)
    for number in range(20):
        for customer in ("ann", "bob", "eve"):
            events.send(f"{customer} {number}", group=customer)
    seen: dict[str, list[int]] = {}

    def handle(message: Message) -> None:
        customer, number = message.text.split()
        seen.setdefault(customer, []).append(int(number))

    Worker(events, handle, concurrency=4).run(idle_seconds=0.3)
    in_order = all(numbers == list(range(20)) for numbers in seen.values())
    _say(
        f"   {', '.join(f'{name}: {len(numbers)} events' for name, numbers in sorted(seen.items()))}, in order: {in_order}.\n",
        step="fifo",
        groups=len(seen),
        in_order=in_order,
    )
    if not in_order or len(seen) != 3:
        fail("the order was broken", Exit.FAILED)
