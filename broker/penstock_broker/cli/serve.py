"""`penstock serve`: puts configuration, store, broker and doors together, and turns what can go wrong at the start into
a sentence and an exit code."""

from __future__ import annotations

import errno
import functools
import ipaddress
import json
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import structlog
import trio
from penstock_storage.interface import Fenced, SchemaTooNew, StoreError, StoreFull, StoreLocked
from penstock_storage.sql import SqlStore

from penstock_broker import config as configuration
from penstock_broker import logs
from penstock_broker.access import Keyring, load_sealing_key
from penstock_broker.broker import Broker, BrokerOptions
from penstock_broker.cli.exits import Exit
from penstock_broker.cli.output import fail, print_json
from penstock_broker.config import OPTIONS, Config, ConfigurationError
from penstock_broker.http import serve_endpoint
from penstock_broker.ports import real_ports
from penstock_broker.process import collect_less, harden
from penstock_broker.server import ServerOptions, run_server
from penstock_broker.session import SessionLimits
from penstock_broker.tls import make_context

log = structlog.get_logger()


def broker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A flag for every option of the table."""
    for option in reversed(OPTIONS):
        text = f"{option.help} \\[{option.variable}; default {option.default!r}]".replace("\\[", "[")
        if option.default is False:
            command = click.option(option.flag, option.name, is_flag=True, default=None, help=text)(command)
        else:
            command = click.option(option.flag, option.name, default=None, metavar="…", help=text)(command)
    return click.option("--config", "config_file", default=None, metavar="FILE", help="TOML file. [PENSTOCK_CONFIG]")(command)


def load_or_fail(flags: dict[str, Any], config_file: str | None) -> Config:
    """The configuration, or the end of the process."""
    try:
        return configuration.load(flags, file=config_file)
    except ConfigurationError as error:
        fail(str(error), Exit.USAGE, "penstock serve --help lists every setting")


def store_url(config: Config) -> str:
    """The URL of the store; makes the data folder of the embedded one."""
    if config.store:
        return str(config.store)
    folder = Path(config.data).expanduser().resolve()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        code = Exit.DISK_FULL if error.errno == errno.ENOSPC else Exit.STORE_UNREACHABLE
        fail(f"data folder {folder}: {error.strerror}", code)
    return f"sqlite:///{folder / 'penstock.db'}"


def open_store(config: Config) -> SqlStore:
    """The store, or the end of the process with a sentence and an exit code."""
    url = store_url(config)
    try:
        return SqlStore.open(url)
    except StoreLocked as error:
        fail(str(error), Exit.STORE_LOCKED, "One broker at a time. Use another --data, or stop the other one.")
    except SchemaTooNew as error:
        fail(str(error), Exit.SCHEMA_TOO_NEW, "Start it with the newer Penstock that wrote it.")
    except StoreFull as error:
        fail(str(error), Exit.DISK_FULL, "Make room, then start again. Nothing acknowledged is lost.")
    except StoreError as error:
        fail(str(error), Exit.STORE_UNREACHABLE, "Is the address right, the server running, the login allowed?")
    except ValueError as error:
        fail(f"store = {url.split('@')[-1]!r}: {error}", Exit.USAGE)
    except ModuleNotFoundError as error:
        fail(f"the store needs {error.name}", Exit.USAGE, "pip install 'penstock[postgresql]'")


def sealing_key_file(config: Config) -> Path:
    """Where the key is that secrets at rest are sealed with."""
    return Path(config.key_file) if config.key_file else Path(config.data).expanduser() / "sealing.key"


def sealing_key(config: Config) -> bytes:
    """The key that secrets at rest are sealed with."""
    path = sealing_key_file(config)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return load_sealing_key(path)
    except (OSError, ValueError) as error:
        code = Exit.DISK_FULL if isinstance(error, OSError) and error.errno == errno.ENOSPC else Exit.USAGE
        fail(f"key file {path}: {error}", code)


def is_loopback(host: str) -> bool:
    """Whether every address of the host is this machine's own."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(str(address).split("%")[0]).is_loopback for address in found)


@click.command()
@broker_options
def serve(config_file: str | None, **flags: Any) -> None:
    """Run a broker.

    Without arguments: on this machine's loopback address, with its data in ./data (SQLite). SIGTERM stops it gracefully,
    a second one at once; SIGHUP reads the configuration file again and takes up log settings and TLS certificates.
    """
    config = load_or_fail(flags, config_file)
    logs.set_up(config.log_format, config.log_level)
    harden()
    collect_less()
    host, port = configuration.split_address(config.listen)
    store = open_store(config)
    try:
        key = sealing_key(config)
        keys = Keyring(key, store.load_credentials())
        if keys.sealed_otherwise:
            log.error(
                "access keys cannot be opened: they were sealed with another key file, nobody can log in with them",
                keys=len(keys.sealed_otherwise),
                of=len(keys),
                key_file=str(sealing_key_file(config)),
            )
        if not is_loopback(host) and not keys and not config.insecure:
            where = f"--store {config.store!r}" if config.store else f"--data {config.data!r}"
            fail(
                f"{config.listen} is not a loopback address, and there are no access keys: everybody could do everything",
                Exit.USAGE,
                f"Create one first: penstock key create --role admin {where}   (or accept the risk: --insecure)",
            )
        if not is_loopback(host) and not config.tls_cert:
            log.warning("clients connect without TLS", listen=config.listen)
        tls = _tls(config)
        _run(config, store, key, tls, host, port, flags, config_file)
    finally:
        # A checkpoint may take its time: whoever grows impatient must not cut it short.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        store.close()


def _tls(config: Config) -> ssl.SSLContext | None:
    if not config.tls_cert:
        return None
    try:
        return make_context(config.tls_cert, config.tls_key, config.tls_client_ca)
    except (OSError, ssl.SSLError) as error:
        fail(f"TLS: {config.tls_cert} / {config.tls_key}: {error}", Exit.USAGE)
        raise


def _run(
    config: Config,
    store: SqlStore,
    key: bytes,
    tls: ssl.SSLContext | None,
    host: str,
    port: int,
    flags: dict[str, Any],
    config_file: str | None,
) -> None:
    broker_settings = BrokerOptions(
        node=config.node,
        address=config.listen,
        account=config.account,
        region=config.region,
        content_bytes=config.memory_bytes,
        session=SessionLimits(max_frame_bytes=config.max_frame_bytes),
    )
    door = ServerOptions(host, port, tls, config.max_connections, config.drain_seconds)
    metrics = _listen_for_metrics(config.metrics) if config.metrics else None
    metrics_address = _shown(*metrics.getsockname()[:2]) if metrics is not None else ""

    def started(broker: Broker, actual_port: int) -> None:
        url = f"{'penstock' if tls is None else 'penstocks'}://{_shown(host, actual_port)}"
        log.info("listening", url=url, metrics=metrics_address, store=store_url(config).split("@")[-1])
        if config.log_format == "human":
            _greet(url, metrics_address, actual_port != 4567)

    def reload(broker: Broker) -> None:
        try:
            new = configuration.load(flags, file=config_file)
        except ConfigurationError as error:
            log.error("configuration not reloaded", error=str(error))
            return
        logs.set_up(new.log_format, new.log_level)
        if bool(new.tls_cert) != (tls is not None):
            log.error("certificates not reloaded", error="TLS is turned on or off by a restart only")
            return
        if tls is not None:
            try:
                # A context of its own: files that do not fit each other would spoil the one in use.
                door.tls = make_context(new.tls_cert, new.tls_key, new.tls_client_ca)
            except (OSError, ssl.SSLError) as error:
                log.error("certificates not reloaded", error=str(error))
                return
        log.info("configuration reloaded", taken_up=configuration.RELOADABLE)

    async def beside(broker: Broker) -> None:
        broker.warm_up()
        if metrics is not None:
            await serve_endpoint(broker, store, f"fd://{metrics.detach()}", config.metrics_max_queues)

    run = functools.partial(
        run_server, store, real_ports(), broker_settings, door, key, beside=beside, on_reload=reload, started=started
    )
    try:
        trio.run(run)
    except* Fenced:
        fail(f"another broker has taken over this one's slots: {_owner(store)}", Exit.FENCED, "One broker per database.")
    except* StoreFull as group:
        fail(str(group.exceptions[0]), Exit.DISK_FULL, "Make room, then start again. Nothing acknowledged is lost.")
    except* StoreError as group:
        fail(str(group.exceptions[0]), Exit.STORE_UNREACHABLE)
    except* OSError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        fail(f"cannot listen on {config.listen}: {error}", Exit.ADDRESS_IN_USE)
    finally:
        if metrics is not None:
            metrics.close()


def _listen_for_metrics(address: str) -> socket.socket:
    """The door of the metrics, opened before anything else happens: its failure is one of the start."""
    host, port = configuration.split_address(address)
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(where[:2], family=family)
    except OSError as error:
        fail(f"cannot listen on {address} (metrics): {error}", Exit.ADDRESS_IN_USE)


def _owner(store: SqlStore) -> str:
    try:
        node, address = store.owner() or ("nobody", "nowhere")
    except StoreError as error:
        return f"the store does not tell which ({error})"
    return f"{node} at {address}"


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _greet(url: str, metrics: str, other_port: bool) -> None:
    option = f" --url {url}" if other_port else ""
    lines = [
        "",
        f"  Penstock listens on {url}" + (f", metrics on http://{metrics}/metrics" if metrics else ""),
        "  Try it, in another terminal:",
        "",
        f"    penstock queue create jobs{option}",
        f"    penstock queue send jobs 'hello'{option}",
        f"    penstock queue receive jobs --delete{option}",
        "",
    ]
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()


@click.command("config")
@broker_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line, for scripts.")
def show_config(config_file: str | None, as_json: bool, **flags: Any) -> None:
    """Show the configuration that `serve` would run with, and where each value comes from: a TOML file for --config."""
    config = load_or_fail(flags, config_file)
    for option in OPTIONS:
        value = config.values[option.name]
        if option.name == "store" and "@" in str(value):
            value = "…@" + str(value).rpartition("@")[2]
        if as_json:
            print_json({"name": option.name, "value": value, "origin": config.origins[option.name]})
        else:
            click.echo(f"{option.name} = {json.dumps(value)}  # {config.origins[option.name]}")
