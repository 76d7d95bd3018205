"""Access keys: how a client proves who it is, how secrets rest, and what a role may do.

A secret is stored sealed (AES-GCM under a key file beside the store, readable by the broker's user alone), because a
challenge has to be checked against it, and SigV4 will need it too. The secret never crosses the wire again after its
creation: the client signs the broker's challenge.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import tempfile
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from penstock_protocol.errors import AuthenticationFailed, InvalidRequest, NotPermitted
from penstock_protocol.operations import ROLES, Operation
from penstock_protocol.session_messages import AccessKey
from penstock_storage.interface import CredentialRow

PROOF_CONTEXT: Final = b"penstock-hello-1"
_NONCE_BYTES: Final = 12
_DUMMY_SECRET: Final = b"no such key: the same work is done for it"


def load_sealing_key(path: Path) -> bytes:
    """The key that secrets are sealed with: read from the file, or made with mode 0600. 32 bytes.

    It is made under another name first: whenever the process or the machine ends, the file is whole or not there."""
    if not path.exists():
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(os.urandom(32))
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(name, path)
            except FileExistsError:
                pass  # somebody else was quicker
            except OSError:
                Path(name).rename(path)  # a file system without hard links
        finally:
            Path(name).unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    key = path.read_bytes()
    if len(key) != 32:
        raise ValueError(f"{path} is not a key of 32 bytes")
    return key


class Keyring:
    """The access keys of this store. Never any: nobody needs to authenticate."""

    def __init__(self, sealing_key: bytes, rows: list[CredentialRow]) -> None:
        self._cipher = AESGCM(sealing_key)
        self._rows = {row.key_id: row for row in rows}
        self._required = bool(rows)

    @property
    def required(self) -> bool:
        """Whether clients must authenticate. The end of the last key does not open a running broker to everybody: only its
        next start decides anew, and refuses to listen to others then."""
        return self._required

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def sealed_otherwise(self) -> list[str]:
        """The keys whose secrets this sealing key does not open: nobody can prove to have them."""
        return [row.key_id for row in self.rows() if self._open(row) is None]

    def rows(self) -> list[CredentialRow]:
        """All keys, oldest first."""
        return sorted(self._rows.values(), key=lambda row: (row.created_ms, row.key_id))

    def make(self, account: str, role: str, description: str, now_ms: int, random: bytes) -> tuple[CredentialRow, str]:
        """A new key and its secret, not yet in force. `random`: 64 unguessable bytes. InvalidRequest for an unknown role."""
        if role not in ROLES:
            raise InvalidRequest(f"role = {role[:50]!r}; it must be one of {', '.join(ROLES)}")
        if len(description) > 200 or not description.isprintable():
            raise InvalidRequest("a key's description has at most 200 characters, all of them printable")
        key_id = "PSK" + base64.b32encode(random[:10]).decode().rstrip("=")
        secret = base64.urlsafe_b64encode(random[10:40]).decode()
        nonce = random[40 : 40 + _NONCE_BYTES]
        sealed = nonce + self._cipher.encrypt(nonce, secret.encode(), key_id.encode())
        return CredentialRow(key_id, account, role, description, sealed, now_ms), secret

    def add(self, row: CredentialRow) -> None:
        """Puts a key in force."""
        self._rows[row.key_id] = row
        self._required = True

    def replace(self, rows: list[CredentialRow]) -> None:
        """These are all the keys there are."""
        self._rows = {row.key_id: row for row in rows}
        self._required = self._required or bool(rows)

    def remove(self, key_id: str) -> CredentialRow | None:
        """Takes a key out of force."""
        return self._rows.pop(key_id, None)

    def get(self, key_id: str) -> CredentialRow | None:
        """One key."""
        return self._rows.get(key_id)

    def check(self, key_id: str, challenge: bytes, producer: bytes, proof: bytes) -> CredentialRow:
        """The key whose secret signed the challenge. AuthenticationFailed otherwise, after the same work for any cause."""
        row = self._rows.get(key_id)
        secret = _DUMMY_SECRET
        if row is not None:
            secret = self._open(row) or _DUMMY_SECRET
        if not hmac.compare_digest(proof_of(secret, challenge, producer), proof) or row is None or secret is _DUMMY_SECRET:
            raise AuthenticationFailed()
        return row

    def _open(self, row: CredentialRow) -> bytes | None:
        """Its secret; None when it was sealed with another key, or is damaged."""
        nonce, sealed = row.sealed_secret[:_NONCE_BYTES], row.sealed_secret[_NONCE_BYTES:]
        try:
            return self._cipher.decrypt(nonce, sealed, row.key_id.encode())
        except (InvalidTag, ValueError):
            return None


def proof_of(secret: bytes, challenge: bytes, producer: bytes) -> bytes:
    """What Authenticate carries (PROTOCOL.md, authentication)."""
    return hmac.new(secret, PROOF_CONTEXT + challenge + producer, hashlib.sha256).digest()


def authorize(role: str, operation: Operation) -> None:
    """Raises NotPermitted unless the role allows the operation: the one place where this is decided."""
    if operation.permission not in ROLES.get(role, frozenset()):
        raise NotPermitted(f"{operation.name} needs the permission {operation.permission.value!r}; the role {role!r} lacks it")


def public_key(row: CredentialRow, secret: str = "") -> AccessKey:
    """The wire form of a key."""
    return AccessKey(row.key_id, secret, row.role, row.description, row.created_ms)
