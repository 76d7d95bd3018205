"""Frames are cut out of a byte stream the same way however the bytes arrive."""

from __future__ import annotations

import pytest
from penstock_protocol.connection import ClientConnection, FrameReader, Request, ServerConnection, State
from penstock_protocol.errors import FrameTooLarge, ProtocolError
from penstock_protocol.frames import HEADER, HEADER_BYTES, HELLO_FRAME_BYTES, MAGIC, Kind, pack_frame

from tests.protocol.golden import Vector, vectors

STREAM = b"".join(one.frame for one in vectors())
FRAMES = [(int(one.kind), one.code, one.correlation, one.frame[HEADER_BYTES:]) for one in vectors()]
ANSWERS = [one for one in vectors() if one.kind is not Kind.REQUEST and one.correlation]
REQUESTS = [one for one in vectors() if one.kind is Kind.REQUEST and one.operation not in ("Hello", "Authenticate")]


def cut(stream: bytes, size: int) -> list[bytes]:
    return [stream[start : start + size] for start in range(0, len(stream), size)]


def read(pieces: list[bytes]) -> list[tuple[int, int, int, bytes]]:
    reader = FrameReader(2**20)
    found = []
    for piece in pieces:
        reader.feed(piece)
        found += list(reader.frames())
    assert reader.buffered_bytes == 0
    return found


@pytest.mark.parametrize("size", [len(STREAM), 1, 2, 15, 16, 17, 1000])
def test_all_frames_are_found_whole_byte_by_byte_and_in_pieces(size: int) -> None:
    assert read(cut(STREAM, size)) == FRAMES


def test_a_frame_without_a_body_is_a_frame() -> None:
    assert read([pack_frame(Kind.REQUEST, 3, 1, b"")]) == [(1, 3, 1, b"")]


@pytest.mark.parametrize("trailing", [b"\x00", STREAM[:HEADER_BYTES], STREAM[: HEADER_BYTES + 1]])
def test_what_follows_a_frame_waits_for_its_rest(trailing: bytes) -> None:
    reader = FrameReader(2**20)
    reader.feed(STREAM + trailing)
    assert list(reader.frames()) == FRAMES
    assert reader.buffered_bytes == len(trailing)
    reader.feed(STREAM[len(trailing) :])
    assert list(reader.frames()) == FRAMES


def test_a_reader_that_is_left_early_goes_on_after_the_frame_it_gave() -> None:
    reader = FrameReader(2**20)
    reader.feed(STREAM)
    frames = reader.frames()
    assert next(frames) == FRAMES[0]
    frames.close()
    assert list(reader.frames()) == FRAMES[1:]


def test_a_frame_of_exactly_the_limit_is_taken_and_one_byte_more_is_refused() -> None:
    reader = FrameReader(100)
    reader.feed(pack_frame(Kind.REQUEST, 3, 1, bytes(100)))
    assert [len(body) for *_, body in reader.frames()] == [100]
    reader.feed(pack_frame(Kind.REQUEST, 3, 1, bytes(101)))
    with pytest.raises(FrameTooLarge, match="101 bytes; the limit is 100"):
        list(reader.frames())


@pytest.mark.parametrize("length", [HELLO_FRAME_BYTES + 1, 2**24, 2**31, 2**32 - 1])
def test_cve_2026_67235_a_length_is_judged_before_its_body_is_awaited(length: int) -> None:
    """Frames that pile up unchecked; and lengths that lie."""
    server = ServerConnection()
    with pytest.raises(FrameTooLarge):
        list(server.receive_data(MAGIC + HEADER.pack(length, Kind.REQUEST, 0, 1, 1)))
    assert server.state is State.CLOSED


def test_the_small_limit_of_strangers_ends_with_the_handshake_even_within_one_read() -> None:
    server = ServerConnection(2**20)
    large = pack_frame(Kind.REQUEST, 3, 2, bytes(2**19))
    events = server.receive_data(MAGIC + pack_frame(Kind.REQUEST, 1, 1, b"\x90") + large)
    assert isinstance(next(events), Request)
    server.open()
    (event,) = events
    assert isinstance(event, Request)
    assert len(event.body) == 2**19


def test_a_closed_end_drops_what_arrives_and_keeps_nothing() -> None:
    server, client = ServerConnection(), ClientConnection()
    server.close()
    with pytest.raises(ProtocolError):
        list(client.receive_data(pack_frame(Kind.REQUEST, 1, 1, b"\x90")))
    for end in (server, client):
        for _ in range(100):
            assert list(end.receive_data(bytes(10_000))) == []
        assert end._reader.buffered_bytes < 10_000


def test_a_server_reads_the_same_requests_byte_by_byte() -> None:
    whole, slow = ServerConnection(), ServerConnection()
    stream = b"".join(one.frame for one in REQUESTS)
    for server in (whole, slow):
        list(server.receive_data(MAGIC))
        server.open()
    events = list(whole.receive_data(stream))
    assert [event.message() for event in events if isinstance(event, Request)] == [one.message for one in REQUESTS]
    assert [event for byte in cut(stream, 1) for event in slow.receive_data(byte)] == events


def test_a_client_reads_the_same_answers_byte_by_byte() -> None:
    whole, slow = ClientConnection(), ClientConnection()
    whole.opened(2**20)
    slow.opened(2**20)
    stream = b"".join(one.frame for one in ANSWERS)
    answers = list(whole.receive_data(stream))
    assert [(answer.kind, answer.correlation) for answer in answers] == [(one.kind, one.correlation) for one in ANSWERS]
    assert [answer for byte in cut(stream, 1) for answer in slow.receive_data(byte)] == answers


@pytest.mark.parametrize("one", [vectors()[0], vectors()[-1]], ids=lambda one: one.name)
def test_no_part_of_a_frame_is_a_frame(one: Vector) -> None:
    for size in range(len(one.frame)):
        reader = FrameReader(2**20)
        reader.feed(one.frame[:size])
        assert list(reader.frames()) == []
        assert reader.buffered_bytes == size
