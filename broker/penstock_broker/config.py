"""Every option of the broker: one table, from which flags, configuration keys, environment variables and help are derived.

An option's flag is `--name`, its key in the TOML file `name` (with underscores), its variable PENSTOCK_NAME. A flag beats
the environment, which beats the file, which beats the default.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final


class ConfigurationError(Exception):
    """A setting does not fit: the text names the key, the value, where it came from, and what is allowed."""


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("a text")
    return value


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("1", "true", "yes", "on"):
        return True
    if str(value).lower() in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("true or false")


def _number(low: float, high: float) -> Callable[[Any], float]:
    def parse(value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if isinstance(value, bool) or not low <= number <= high:
            raise ValueError(f"a number from {low:g} to {high:g}")
        return number

    return parse


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        try:
            number = int(str(value))
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return number

    return parse


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in allowed:
            raise ValueError(" or ".join(allowed))
        return str(value)

    return parse


def split_address(value: str) -> tuple[str, int]:
    """host:port as two values; an IPv6 host stands in brackets. ValueError says what is allowed."""
    host, _, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or "\0" in host or not (port.isascii() and port.isdigit()) or not 0 <= int(port) <= 65_535:
        raise ValueError("host:port, such as 127.0.0.1:4567 or [::1]:4567")
    return host, int(port)


def _address(value: Any) -> str:
    split_address(str(value))
    return str(value)


def _address_or_nowhere(value: Any) -> str:
    try:
        return "" if value == "" else _address(value)
    except ValueError as error:
        raise ValueError(f"{error}; or empty") from None


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """One row of the table."""

    name: str
    default: Any
    parse: Callable[[Any], Any]
    help: str

    @property
    def flag(self) -> str:
        """The command line's form."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment's form."""
        return "PENSTOCK_" + self.name.upper()


OPTIONS: Final[tuple[Option, ...]] = (
    Option("data", "./data", _text, "Folder of the embedded store (SQLite), made if missing."),
    Option("store", "", _text, "URL of the store instead: sqlite:///FILE or postgresql+psycopg://USER@HOST/DB."),
    Option("listen", "127.0.0.1:4567", _address, "Where clients connect."),
    Option("metrics", "127.0.0.1:4568", _address_or_nowhere, "Where /metrics, /healthz and /readyz are; empty for nowhere."),
    Option("node", "broker", _text, "Name of this broker in its cluster."),
    Option("account", "000000000000", _text, "Account of clients that name none."),
    Option("region", "local", _text, "Region of clients that name none."),
    Option("key_file", "", _text, "File with the key that seals secrets (default: sealing.key in the data folder)."),
    Option("tls_cert", "", _text, "Certificate chain (PEM): clients must use TLS then."),
    Option("tls_key", "", _text, "Private key of the certificate (PEM)."),
    Option("tls_client_ca", "", _text, "Authorities (PEM) that client certificates must come from (mutual TLS)."),
    Option("insecure", False, _flag, "Listen on other addresses than loopback even without access keys."),
    Option("max_connections", 10_500, _whole(1, 1_000_000), "Connections at a time."),
    Option("max_frame_bytes", 16 * 2**20, _whole(2**16, 2**30), "Largest request or reply."),
    Option("memory_bytes", 64 * 2**20, _whole(2**20, 2**40), "Message content kept in memory."),
    Option("metrics_max_queues", 1_000, _whole(0, 100_000), "Queues with metrics of their own; the rest is summed up."),
    Option("drain_seconds", 10.0, _number(0, 3600), "How long a stop waits for requests in flight."),
    Option("log_format", "human", _one_of("human", "json"), "Log lines for people or for machines."),
    Option("log_level", "info", _one_of("debug", "info", "warning", "error"), "Least severe log lines written."),
)
_BY_NAME: Final = {option.name: option for option in OPTIONS}

RELOADABLE: Final = ("log_level", "log_format", "tls_cert", "tls_key", "tls_client_ca")
"""What SIGHUP takes up from the file without a restart."""


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """The options of one broker, checked. `origins` says where each value came from."""

    values: dict[str, Any]
    origins: dict[str, str]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.values[name]
        except KeyError:
            raise AttributeError(name) from None


def load(flags: Mapping[str, Any], environment: Mapping[str, str] | None = None, file: str | None = None) -> Config:
    """The configuration from flags (None: not given), environment and file. ConfigurationError for the first misfit."""
    environment = os.environ if environment is None else environment
    file = file or environment.get("PENSTOCK_CONFIG")
    from_file = _read(Path(file)) if file else {}
    for name in from_file:
        if name not in _BY_NAME:
            raise ConfigurationError(f"{file}: unknown key {name!r}; there are {', '.join(_BY_NAME)}")
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for option in OPTIONS:
        value, origin = option.default, "default"
        if option.name in from_file:
            value, origin = from_file[option.name], str(file)
        if option.variable in environment:
            value, origin = environment[option.variable], option.variable
        if flags.get(option.name) is not None:
            value, origin = flags[option.name], option.flag
        try:
            values[option.name] = option.parse(value)
        except ValueError as error:
            raise ConfigurationError(f"{option.name} = {value!r} (from {origin}): it must be {error}") from None
        origins[option.name] = origin
    if bool(values["tls_cert"]) != bool(values["tls_key"]):
        raise ConfigurationError("tls_cert and tls_key belong together: give both, or neither")
    if values["tls_client_ca"] and not values["tls_cert"]:
        raise ConfigurationError("tls_client_ca needs tls_cert and tls_key")
    return Config(values, origins)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: no valid TOML: {error}") from None
