"""`penstock key …`: access keys, through a running broker, or directly in the store of one that is not running."""

from __future__ import annotations

import secrets
import time
from typing import Any

import click
from penstock import AccessKeyInfo
from penstock.errors import InvalidRequest, KeyDoesNotExist
from penstock_protocol.operations import ROLES
from penstock_storage.interface import Commit

from penstock_broker.access import Keyring, public_key
from penstock_broker.cli.exits import Exit
from penstock_broker.cli.output import client_options, connected, console, escape, fail, print_json, print_table, text
from penstock_broker.cli.serve import load_or_fail, open_store, sealing_key


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
    """Create an access key. The secret is shown this once. With --data or --store it needs no running broker."""
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
    with_store = open_store(config)
    try:
        ring = Keyring(sealing_key(config), with_store.load_credentials())
        now_ms = int(time.time() * 1000)
        row, secret = ring.make(config.account, role, description, now_ms, secrets.token_bytes(64))
        incarnation = with_store.acquire(config.node, "", now_ms)
        with_store.commit(incarnation, Commit(upsert_credentials=[row]))
    except InvalidRequest as error:
        fail(str(error), Exit.USAGE)
    finally:
        with_store.close()
    return row.key_id, secret


@key.command("list")
@_offline_options
@client_options
def list_keys(data: str | None, store: str | None, key_file: str | None, url: str | None, as_json: bool) -> None:
    """List access keys (never their secrets)."""
    if data or store:
        config = load_or_fail({"data": data, "store": store, "key_file": key_file}, None)
        opened = open_store(config)
        rows = opened.load_credentials()
        opened.close()
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
    """Take an access key out of force for new connections."""
    if data or store:
        config = load_or_fail({"data": data, "store": store, "key_file": key_file}, None)
        opened = open_store(config)
        try:
            if key_id not in {row.key_id for row in opened.load_credentials()}:
                fail(f"there is no access key {key_id}", Exit.FAILED, KeyDoesNotExist.advice)
            incarnation = opened.acquire(config.node, "", int(time.time() * 1000))
            opened.commit(incarnation, Commit(delete_credentials=[key_id]))
        finally:
            opened.close()
    else:
        with connected(url) as client:
            client.delete_key(key_id)
    if as_json:
        print_json({"deleted": key_id})
    else:
        console.print(f"access key {escape(key_id)} deleted")
