"""Access keys over the protocol: create, list, delete. A change is in force once it is durable."""

from __future__ import annotations

from penstock_protocol.errors import KeyDoesNotExist, PenstockError
from penstock_protocol.session_messages import AccessKeys, CreateKey, Empty, KeyId

from penstock_broker.access import Keyring, public_key
from penstock_broker.call import Call
from penstock_broker.lane import Lane
from penstock_broker.ports import Ports


class KeyAdmin:
    """Handlers for access keys."""

    def __init__(self, keyring: Keyring, lane: Lane, ports: Ports) -> None:
        self._keyring = keyring
        self._lane = lane
        self._ports = ports

    def create(self, call: Call, request: CreateKey) -> None:
        """CreateKey: the only reply that ever carries the secret."""
        self._lane.check_adds()
        row, secret = self._keyring.make(
            call.caller.account, request.role, request.description, self._ports.now_ms(), self._ports.random_bytes(64)
        )
        self._lane.write(lambda commit: commit.upsert_credentials.append(row))

        def done(error: PenstockError | None) -> None:
            if error is not None:
                call.fail(error)
                return
            self._keyring.add(row)
            call.reply(public_key(row, secret))

        self._lane.submit(done)

    def list_keys(self, call: Call, _: Empty) -> None:
        """ListKeys."""
        rows = [row for row in self._keyring.rows() if row.account == call.caller.account]
        call.reply(AccessKeys([public_key(row) for row in rows]))

    def delete(self, call: Call, request: KeyId) -> None:
        """DeleteKey. Connections that are open stay open; new ones are refused."""
        row = self._keyring.get(request.key_id)
        if row is None or row.account != call.caller.account:
            raise KeyDoesNotExist(f"there is no access key {request.key_id[:50]!r}")
        self._lane.write(lambda commit: commit.delete_credentials.append(request.key_id))

        def done(error: PenstockError | None) -> None:
            if error is not None:
                call.fail(error)
                return
            self._keyring.remove(request.key_id)
            call.reply(Empty())

        self._lane.submit(done)
