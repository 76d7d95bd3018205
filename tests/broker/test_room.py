"""Back pressure on real sockets, where an answer may go out without the writer: whoever waits for room is woken all the same."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
import trio
from penstock_broker import session
from penstock_broker.session import SessionLimits

from tests.broker.inside import House, Peer, house, on_jumping_clock


@contextlib.asynccontextmanager
async def _over_a_socket(one: House) -> AsyncIterator[Peer]:
    """An open connection over a pair of sockets: what one side writes is with the other at once, so the clock may jump."""
    near, far = socket.socketpair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.broker.serve, trio.SocketStream(trio.socket.from_stdlib_socket(far)))
        peer = Peer(trio.SocketStream(trio.socket.from_stdlib_socket(near)), "peer")
        try:
            await peer.hello()
            yield peer
        finally:
            await peer.close()


async def _send_one_by_one(one: House) -> None:
    async with _over_a_socket(one) as peer:
        await peer.create("jobs")
        with trio.fail_after(60):
            for number in range(5):
                await peer.send("jobs", b"%d" % number * 2_000)
        assert (await peer.describe("jobs")).visible == 5


@on_jumping_clock
async def test_a_connection_with_as_many_requests_as_it_may_have_is_read_again_once_one_was_answered() -> None:
    async with house(limits=SessionLimits(max_in_flight=1)) as one:
        await _send_one_by_one(one)


@on_jumping_clock
async def test_a_connection_with_as_many_bytes_of_requests_as_it_may_have_is_read_again_once_one_was_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "MAX_IN_FLIGHT_BYTES", 1_000)
    async with house() as one:
        await _send_one_by_one(one)
