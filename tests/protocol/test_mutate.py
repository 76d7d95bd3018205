"""Random and mutated frames: only typed errors, bounded buffers. `make torture` does the same by the ten million."""

from __future__ import annotations

import random
import tracemalloc

import msgpack
import pytest
from penstock_protocol.connection import FrameReader

from tests.protocol import mutate


def test_twenty_thousand_broken_frames_bring_nothing_but_typed_errors() -> None:
    seen = mutate.run(20_000, 1)
    assert seen["ok"] > 1_000
    assert seen["ProtocolError"] > 1_000
    assert seen["InvalidRequest"] > 1_000
    assert seen["FrameTooLarge"] > 100
    assert seen["UnknownOperation"] > 10


def test_the_same_seed_makes_the_same_frames() -> None:
    assert mutate.run(2_000, 2) == mutate.run(2_000, 2) != mutate.run(2_000, 3)


def test_broken_bodies_are_judged_by_every_message_of_the_protocol() -> None:
    chance = random.Random(4)
    for _ in range(1_000):
        mutate.check_every_message(mutate.random_body(chance))


def test_no_broken_frame_takes_much_memory() -> None:
    tracemalloc.start()
    try:
        mutate.run(5_000, 5)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_an_error_of_another_type_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(body: bytes, max_elements: int = 0) -> list[object]:
        return msgpack.unpackb(body, max_array_len=len(body))  # type: ignore[no-any-return]

    monkeypatch.setattr("penstock_protocol.connection.decode", careless)
    with pytest.raises(mutate.Escaped, match="seed 6"):
        mutate.run(20_000, 6)


def test_a_buffer_that_grows_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(self: FrameReader) -> int:
        return len(self._buffer) + 10**9

    monkeypatch.setattr(FrameReader, "buffered_bytes", property(greedy))
    with pytest.raises(mutate.Escaped, match="holds 1"):
        mutate.run(100, 7)


def test_a_way_past_the_handshake_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock_protocol.connection.ServerConnection._expect_handshake", lambda self, code: None)
    with pytest.raises(mutate.Escaped, match="before hello"):
        mutate.run(20_000, 8)
