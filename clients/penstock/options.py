"""Where the broker is and how the client behaves: from arguments, the URL and the environment."""

from __future__ import annotations

import dataclasses
import os
import ssl
from urllib.parse import unquote, urlsplit

DEFAULT_PORT = 4567
DEFAULT_URL = f"penstock://127.0.0.1:{DEFAULT_PORT}"


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """See AsyncClient. Times are seconds."""

    addresses: tuple[tuple[str, int], ...]
    key_id: str
    secret: str = dataclasses.field(repr=False)
    tls: ssl.SSLContext | None
    account: str
    region: str
    connect_timeout: float
    request_timeout: float
    first_pause: float = 0.05
    longest_pause: float = 2.0
    request_bytes: int = 4 * 1_048_576


def make_options(
    url: str | None,
    key_id: str | None,
    secret: str | None,
    tls: ssl.SSLContext | None,
    account: str,
    region: str,
    connect_timeout: float,
    request_timeout: float,
) -> Options:
    """Arguments first, then the URL, then PENSTOCK_URL, PENSTOCK_KEY_ID and PENSTOCK_SECRET. ValueError names what is wrong with
    a URL (but never the secret in it): penstock://[key:secret@]host[:port][,host[:port]…], or penstocks:// for TLS."""
    for name, seconds in (("connect_timeout", connect_timeout), ("request_timeout", request_timeout)):
        if not seconds >= 0:
            raise ValueError(f"{name} = {seconds!r}; it must be a number of seconds, 0 or more")
    url = url or os.environ.get("PENSTOCK_URL") or DEFAULT_URL
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("penstock", "penstocks"):
        shown = f"…@{url.rpartition('@')[2]}" if "@" in url else url
        raise ValueError(f"{shown!r} is not a broker's address: penstock://host:port, or penstocks:// for TLS")
    credentials, _, hosts = rest.rstrip("/").rpartition("@")
    addresses = []
    for part in hosts.split(","):
        try:
            split = urlsplit(f"//{part}")
            addresses.append((split.hostname or "127.0.0.1", split.port or DEFAULT_PORT))
        except ValueError as error:
            raise ValueError(f"{part!r} in {scheme}://… is not host:port: {error}") from error
    user, _, password = credentials.partition(":")
    if scheme == "penstocks" and tls is None:
        tls = ssl.create_default_context()
    return Options(
        tuple(addresses),
        key_id or unquote(user) or os.environ.get("PENSTOCK_KEY_ID", ""),
        secret or unquote(password) or os.environ.get("PENSTOCK_SECRET", ""),
        tls,
        account,
        region,
        connect_timeout,
        request_timeout,
    )
