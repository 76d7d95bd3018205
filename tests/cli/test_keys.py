"""`penstock key …`, through a broker and without one; and what keys allow."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from penstock_broker.cli.exits import Exit

from tests.broker_process import BrokerProcess
from tests.cli.runner import Done, Penstock, environment
from tests.clients.certificates import Authority


class Closed:
    """A broker that wants keys, with an admin key made before it was started."""

    def __init__(self, folder: Path) -> None:
        self.data = str(folder / "data")
        offline = Penstock("penstock://127.0.0.1:1")
        self.admin = offline("key", "create", "--role", "admin", "--description", "first", "--data", self.data, "--json").row()
        self.broker = BrokerProcess(folder)

    def __call__(self, key: dict[str, Any] | None, *arguments: str) -> Done:
        """One command with a key."""
        more = {} if key is None else {"PENSTOCK_KEY_ID": key["key_id"], "PENSTOCK_SECRET": key["secret"]}
        return Penstock(self.broker.url)(*arguments, env=environment(self.broker.url, **more))


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    closed = Closed(tmp_path_factory.mktemp("closed"))
    closed.broker.start(wait=False)
    while closed(closed.admin, "ping").code:
        assert closed.broker.is_running
    yield closed
    closed.broker.stop()


def test_a_broker_with_keys_lets_nobody_in_without_one(closed: Closed) -> None:
    done = closed(None, "ping")
    assert done.code == 1 and "AuthenticationRequired" in done.err
    forged = closed({**closed.admin, "secret": "x" * 40}, "ping")
    assert forged.code == 1 and "AuthenticationFailed" in forged.err


def test_keys_are_made_listed_used_and_deleted(closed: Closed) -> None:
    made = closed(closed.admin, "key", "create", "--role", "reader", "--description", "[b]eyes", "--json").row()
    assert list(made) == ["key_id", "secret", "role", "description"]
    listed = closed(closed.admin, "key", "list", "--json").rows()
    assert {"key_id": made["key_id"], "role": "reader", "description": "[b]eyes"} in listed
    assert "secret" not in closed(closed.admin, "key", "list", "--json").out
    assert "[b]eyes" in closed(closed.admin, "key", "list").out
    assert closed(made, "ping").code == 0
    assert closed(closed.admin, "key", "delete", made["key_id"], "--json").row() == {"deleted": made["key_id"]}
    assert "AuthenticationFailed" in closed(made, "ping").err
    again = closed(closed.admin, "key", "delete", made["key_id"])
    assert again.code == 1 and "KeyDoesNotExist" in again.err


def test_for_people_a_new_key_is_two_lines_for_the_environment(closed: Closed) -> None:
    done = closed(closed.admin, "key", "create")
    lines = dict(line.split("=", 1) for line in done.out.splitlines()[:2])
    assert list(lines) == ["PENSTOCK_KEY_ID", "PENSTOCK_SECRET"]
    assert Penstock(closed.broker.url)("ping", env=environment(closed.broker.url, **lines)).code == 0


def test_what_a_role_does_not_allow_is_refused_by_name(closed: Closed) -> None:
    closed(closed.admin, "queue", "create", "jobs")
    reader, producer, consumer = (
        closed(closed.admin, "key", "create", "--role", role, "--json").row() for role in ("reader", "producer", "consumer")
    )
    assert closed(producer, "queue", "send", "jobs", "x").code == 0
    assert closed(consumer, "queue", "receive", "jobs", "--delete").code == 0
    for key, command in (
        (reader, ["queue", "send", "jobs", "x"]),
        (producer, ["queue", "receive", "jobs"]),
        (consumer, ["queue", "send", "jobs", "x"]),
        (consumer, ["key", "list"]),
        (producer, ["queue", "delete", "jobs", "--yes"]),
    ):
        done = closed(key, *command)
        assert done.code == 1 and "NotPermitted" in done.err


def test_keys_can_be_in_the_url(closed: Closed) -> None:
    url = closed.broker.url.replace("://", f"://{closed.admin['key_id']}:{closed.admin['secret']}@")
    assert closed(None, "ping", "--url", url).code == 0


def test_without_a_broker_keys_are_made_listed_and_deleted_in_its_data(tmp_path: Path) -> None:
    offline = Penstock("penstock://127.0.0.1:1")
    where = ["--data", str(tmp_path / "data")]
    assert "everybody" in offline("key", "list", *where).out
    made = offline("key", "create", "--role", "consumer", *where, "--json").row()
    assert offline("key", "list", *where, "--json").row() == {"key_id": made["key_id"], "role": "consumer", "description": ""}
    assert offline("key", "delete", made["key_id"], *where).code == 0
    assert offline("key", "delete", made["key_id"], *where).code == 1
    assert offline("key", "list", *where, "--json").rows() == []


def test_the_command_line_speaks_tls_and_shows_its_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server, server_key = authority.issue("server")
    client, client_key = authority.issue("client")
    tls = ["--tls-cert", str(server), "--tls-key", str(server_key), "--tls-client-ca", str(authority.file)]
    broker = BrokerProcess(tmp_path, *tls)
    broker.start(wait=False)
    url = broker.url.replace("penstock:", "penstocks:")
    penstock = Penstock(url)
    shown = ["--ca", str(authority.file), "--cert", str(client), "--cert-key", str(client_key)]
    try:
        while penstock("ping", *shown).code:
            assert broker.is_running
        in_environment = environment(
            url, PENSTOCK_CA=str(authority.file), PENSTOCK_CERT=str(client), PENSTOCK_CERT_KEY=str(client_key)
        )
        assert penstock("queue", "list", env=in_environment).code == 0
        assert penstock("bench", "--seconds", "0.05", *shown).code == 0
        assert "CERTIFICATE_VERIFY_FAILED" in penstock("ping").err
        assert penstock("ping", "--ca", str(authority.file)).code == 3
    finally:
        broker.stop()


def test_a_store_that_fails_ends_an_offline_command_with_a_sentence(tmp_path: Path) -> None:
    offline = Penstock("penstock://127.0.0.1:1")
    where = ["--data", str(tmp_path)]
    assert offline("key", "create", *where).code == 0
    with sqlite3.connect(tmp_path / "penstock.db") as connection:
        connection.execute("DROP TABLE credentials")
    connection.close()
    for command in (["create"], ["list"], ["delete", "PSK"]):
        done = offline("key", *command, *where)
        assert (done.code, done.out) == (Exit.STORE_UNREACHABLE, "")
        assert "credentials" in done.err


@pytest.mark.postgresql
def test_keys_are_made_and_deleted_in_postgresql_without_disturbing_the_broker_that_runs_on_it(
    tmp_path: Path, postgresql_url: str
) -> None:
    offline = Penstock("penstock://127.0.0.1:1")
    where = ["--store", postgresql_url, "--key-file", str(tmp_path / "sealing.key")]
    broker = BrokerProcess(tmp_path, "--key-file", str(tmp_path / "sealing.key"), store=postgresql_url)

    def call(key: dict[str, Any] | None, *command: str) -> Done:
        names = {"PENSTOCK_KEY_ID": key["key_id"], "PENSTOCK_SECRET": key["secret"]} if key else {}
        return Penstock(broker.url)(*command, env=environment(broker.url, **names))

    first = offline("key", "create", "--role", "admin", *where, "--json").row()
    broker.start(wait=False)
    try:
        while call(first, "queue", "create", "jobs").code:
            assert broker.is_running
        done = offline("key", "create", "--role", "admin", *where, "--json")
        second = done.row()
        assert "next start" in done.err
        assert {row["key_id"] for row in offline("key", "list", *where, "--json").rows()} == {first["key_id"], second["key_id"]}
        assert call(first, "queue", "send", "jobs", "x").code == 0, "it still may commit"
        assert "AuthenticationFailed" in call(second, "ping").err
        assert offline("key", "delete", first["key_id"], *where).code == 0
        assert call(first, "queue", "send", "jobs", "x").code == 0
        assert broker.stop() == Exit.OK
        broker.start(wait=False)
        while call(second, "queue", "send", "jobs", "x").code:
            assert broker.is_running
        assert "AuthenticationFailed" in call(first, "ping").err
    finally:
        broker.stop()
