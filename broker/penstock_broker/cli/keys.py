"""`penstock key …`: access keys, through a running broker, or directly in the store.

In the store they are rows like others: nothing here takes slots, so a broker that runs on the same PostgreSQL goes on, and
learns of the change at its next start. (On SQLite the lock makes sure that none runs.)
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from typing import Any

import click
from penstock import AccessKeyInfo
from penstock.errors import InvalidRequest, KeyDoesNotExist
from penstock_protocol.operations import ROLES
from penstock_storage.interface import StoreError, StoreFull
from penstock_storage.sql import SqlStore

from penstock_broker.access import Keyring, public_key
from penstock_broker.cli.exits import Exit
from penstock_broker.cli.output import client_options, connected, console, escape, fail, print_json, print_table, problems, text
from penstock_broker.cli.serve import load_or_fail, open_store, sealing_key, store_url
from penstock_broker.config import Config


def _offline_options(command: Any) -> Any:
    command = click.option("--data", default=None, help="Work in this data folder; its broker must not run.")(command)
    command = click.option("--store", default=None, help="Work in this store.")(command)
    return click.option("--key-file", default=None, help="The store's key file.")(command)


@click.group()
def key() -> None:
    """Access keys: who may use the broker, and for what."""


@key.command()
@click.option("--role", type=click.Choice(list(ROLES)), default="user", show_default=True, help="What it allows.")
@click.option("--description", default="", type=text, help="Who or what it is for.")
@_offline_options
@client_options
def create(
    role: str, description: str, data: str | None, store: str | None, key_file: str | None, url: str | None, as_json: bool
) -> None:
    """Create an access key. The secret is shown this once.

    With --data or --store it needs no running broker; one that runs on that store takes it up at its next start.
    """
    if data or store:
        key_id, secret = _create_offline(role, description, {"data": data, "store": store, "key_file": key_file})
    else:
        with connected(url) as client:
            made = client.create_key(role, description)
            key_id, secret = made.key_id, made.secret
    if as_json:
        print_json({"key_id": key_id, "secret": secret, "role": role, "description": description})
        return
    console.print(f"PENSTOCK_KEY_ID={key_id}")
    console.print(f"PENSTOCK_SECRET={secret}")
    console.print("Clients find them under these names in the environment. The secret is not shown again.", style="dim")


def _create_offline(role: str, description: str, flags: dict[str, Any]) -> tuple[str, str]:
    config = load_or_fail(flags, None)
    with _offline(config) as opened:
        ring = Keyring(sealing_key(config), opened.load_credentials())
        try:
            row, secret = ring.make(config.account, role, description, int(time.time() * 1000), secrets.token_bytes(64))
        except InvalidRequest as error:
            fail(str(error), Exit.USAGE)
        opened.put_credential(row)
    _tell_when(config)
    return row.key_id, secret


@contextlib.contextmanager
def _offline(config: Config) -> Iterator[SqlStore]:
    """The open store. Whatever it raises ends the process with a sentence and an exit code."""
    opened = open_store(config)
    try:
        yield opened
    except StoreFull as error:
        fail(str(error), Exit.DISK_FULL, "Make room, then try again: nothing was changed.")
    except StoreError as error:
        fail(str(error), Exit.STORE_UNREACHABLE, "See with `penstock key list` whether it was changed.")
    finally:
        opened.close()


def _tell_when(config: Config) -> None:
    """Says what only matters where a broker may be running."""
    if not store_url(config).startswith("sqlite"):
        problems.print("[dim]A broker that runs on this store takes it up at its next start.[/]")


@key.command("list")
@_offline_options
@client_options
def list_keys(data: str | None, store: str | None, key_file: str | None, url: str | None, as_json: bool) -> None:
    """List access keys (never their secrets)."""
    if data or store:
        with _offline(load_or_fail({"data": data, "store": store, "key_file": key_file}, None)) as opened:
            rows = opened.load_credentials()
        found = [(public_key(row).key_id, row.role, row.description) for row in rows]
    else:
        with connected(url) as client:
            infos: list[AccessKeyInfo] = client.list_keys()
            found = [(info.key_id, info.role, info.description) for info in infos]
    if as_json:
        for key_id, role, description in found:
            print_json({"key_id": key_id, "role": role, "description": description})
    elif found:
        print_table("", ["key id", "role", "description"], [list(row) for row in found])
    else:
        console.print("no access keys: everybody on this machine may connect")


@key.command()
@click.argument("key_id", type=text)
@_offline_options
@client_options
def delete(key_id: str, data: str | None, store: str | None, key_file: str | None, url: str | None, as_json: bool) -> None:
    """Take an access key out of force for new connections (with --store: from the broker's next start on)."""
    if data or store:
        config = load_or_fail({"data": data, "store": store, "key_file": key_file}, None)
        with _offline(config) as opened:
            if key_id not in {row.key_id for row in opened.load_credentials()}:
                fail(f"there is no access key {key_id}", Exit.FAILED, KeyDoesNotExist.advice)
            opened.drop_credential(key_id)
        _tell_when(config)
    else:
        with connected(url) as client:
            client.delete_key(key_id)
    if as_json:
        print_json({"deleted": key_id})
    else:
        console.print(f"access key {escape(key_id)} deleted")
