"""Connections in memory that delay, chop, break, and deliver what was given up long after."""

from __future__ import annotations

import contextlib
import random

import trio

BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, EOFError, trio.TooSlowError)
"""How a broken connection shows at the client."""


class SimulatedStream(trio.abc.Stream):
    """One end of a connection. `lag` is the longest pause in seconds, `chop` how often data is sent in pieces."""

    def __init__(self, inner: trio.abc.Stream, chance: random.Random, lag: float, chop: float) -> None:
        self._inner = inner
        self._chance = chance
        self._lag = lag
        self._chop = chop
        self.is_cut = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Sends, in pieces when the weather is so."""
        data = bytes(data)
        chance = self._chance
        while data:
            size = chance.randint(1, len(data)) if self._chop and chance.random() < self._chop else len(data)
            if self._lag:
                await trio.sleep(chance.random() * self._lag)
            if self.is_cut:
                raise trio.BrokenResourceError
            await self._inner.send_all(data[:size])
            data = data[size:]

    async def wait_send_all_might_not_block(self) -> None:
        """Never blocks."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receives what is there."""
        if self.is_cut:
            raise trio.BrokenResourceError
        data = await self._inner.receive_some(max_bytes)
        if self.is_cut:
            raise trio.BrokenResourceError
        return data

    async def aclose(self) -> None:
        """Closes."""
        await self._inner.aclose()

    def cut(self) -> None:
        """From now on nothing arrives and nothing leaves."""
        self.is_cut = True

    async def deliver_late(self, data: bytes, seconds: float) -> None:
        """The client has given up; the network has not: the data arrives after that time, then the connection ends."""
        await trio.sleep(seconds)
        with contextlib.suppress(*BROKEN):
            if not self.is_cut:
                await self._inner.send_all(data)
                await trio.sleep(0.5)
        with contextlib.suppress(*BROKEN):
            await trio.aclose_forcefully(self._inner)
