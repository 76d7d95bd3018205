"""Records that the Kinesis Producer Library has aggregated: taken apart as it packed them, and left alone when they are none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from penstock import Record, RecordBatch
from penstock.aggregation import MAGIC, user_records
from penstock.records import Columns, pack
from penstock_protocol.stream_messages import PLAIN, ZSTD, Batch

from tests.clients.aggregates import FOREIGN, FOREIGN_ROWS, aggregate, field, sealed, user_record

KEY = field(1, b"k")
ROWS = some.lists(some.tuples(some.text("abä", min_size=1, max_size=200), some.binary(max_size=200)), min_size=1, max_size=40)


def rows_of(record: bytes) -> list[tuple[str, bytes]] | None:
    found = user_records(record)
    return None if found is None else list(zip(found.keys, found.data, strict=True))


def batch_of(data: list[bytes], *, codec: int = PLAIN, skip: int = 0, deaggregate: bool = True) -> RecordBatch:
    columns = Columns.of(data, [f"own {place}" for place in range(len(data))])
    return RecordBatch(3, 100, 1_500, Batch(len(columns), codec, columns.size_bytes, pack(columns, codec)), skip, deaggregate)


# Against others


def test_what_aws_has_packed_is_taken_apart_in_its_order() -> None:
    assert rows_of(FOREIGN) == FOREIGN_ROWS
    assert aggregate([("a", b"1"), ("b", b"2"), ("a", b"")]) != FOREIGN
    assert rows_of(aggregate([("a", b"1"), ("b", b"2"), ("a", b"")])) == [("a", b"1"), ("b", b"2"), ("a", b"")]


@given(ROWS, some.booleans())
def test_whatever_awss_own_module_packs_is_taken_apart(rows: list[tuple[str, bytes]], explicit: bool) -> None:
    aggregator = pytest.importorskip("aws_kinesis_agg.aggregator").RecordAggregator()
    for place, (key, data) in enumerate(rows):
        aggregator.add_user_record(key, data, str(place) if explicit else None)
    record = aggregator.clear_and_get().get_contents()[2]
    assert rows_of(record) == rows
    assert explicit or record == aggregate(rows)


@given(some.data())
def test_hostile_messages_are_read_as_protobufs_own_decoder_reads_them_or_not_at_all(data: some.DataObject) -> None:
    messages = pytest.importorskip("aws_kinesis_agg.messages_pb2")
    decode_error = pytest.importorskip("google.protobuf.message").DecodeError
    pieces = [KEY, field(2, b"7"), user_record(0, b"x"), user_record(1, b""), field(5, 3), field(9, b"z"), b"\x1a", b"\x0a\x02k"]
    random = some.one_of(some.sampled_from(pieces), some.binary(max_size=12))
    message = b"".join(data.draw(some.lists(random, max_size=8)))
    found = rows_of(sealed(message))
    try:
        parsed = messages.AggregatedRecord.FromString(message)
        keys, hash_keys, records = parsed.partition_key_table, parsed.explicit_hash_key_table, parsed.records
        expected = [(keys[one.partition_key_index], one.data) for one in records]
        for one in records:
            if one.HasField("explicit_hash_key_index"):
                hash_keys[one.explicit_hash_key_index]
    except (decode_error, IndexError, UnicodeDecodeError):
        return  # broken to others; here it may be taken for what it is up to there, as tags are not looked into
    if found != (expected or None):
        assert found is None and any(tag & 7 in (3, 4) for tag in message)  # groups, which no producer writes


# What is none


@pytest.mark.parametrize(
    "record",
    [
        b"",
        MAGIC,
        MAGIC + bytes(15),
        MAGIC + bytes(16),
        FOREIGN[:-1],
        FOREIGN[:-1] + bytes([FOREIGN[-1] ^ 1]),
        FOREIGN[:20] + b"?" + FOREIGN[21:],
        b"x" + FOREIGN,
        FOREIGN + b"x",
    ],
)
def test_what_only_begins_like_one_is_an_ordinary_record(record: bytes) -> None:
    assert user_records(record) is None


@pytest.mark.parametrize(
    "message",
    [
        b"",
        KEY,
        user_record(0, b"x"),
        KEY + user_record(1, b"x"),
        KEY + user_record((1 << 64) - 1, b"x"),
        KEY + field(3, field(3, b"x")),
        KEY + field(3, field(1, 0)),
        KEY + field(3, b""),
        KEY + field(3, field(1, 0) + field(2, 0) + field(3, b"x")),
        field(1, b"\xff") + user_record(0, b"x"),
        KEY + user_record(0, b"x") + b"\x1a",
        KEY + user_record(0, b"x") + b"\x1a\x05\x08",
        KEY + b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(9),
        KEY + user_record(0, b"x") + b"\x28" + b"\xff" * 10,
        KEY + user_record(0, b"x") + b"\x28" + b"\xff" * 50_000,
        KEY + user_record(0, b"x") + b"\x29" + bytes(7),
        KEY + user_record(0, b"x") + b"\x2b\x2c",
        KEY + user_record(0, b"x") + b"\x00\x00",
        KEY + user_record(0, b"x") + b"\xfa\xff\xff\xff\xff\x01\x00",
        b"\x1a\x80\x80\x80\x80\x08" * 1_000,
    ],
)
def test_a_message_that_is_broken_makes_an_ordinary_record_also_with_a_right_md5(message: bytes) -> None:
    record = sealed(message)
    assert user_records(record) is None
    assert list(batch_of([record])) == [Record(record, "own 0", 100, 3, 1_500)]


def test_tables_may_come_last_and_what_is_not_known_is_skipped() -> None:
    tag = field(4, field(1, b"color") + field(2, b"red"))
    record = field(3, tag + field(3, b"x") + field(1, 1) + field(2, 0) + b"\x39" + bytes(8) + b"\x3d" + bytes(4))
    message = record + field(1, b"a") + field(2, b"5") + field(1, b"b") + field(200, b"more") + field(201, 1 << 63)
    assert rows_of(sealed(message)) == [("b", b"x")]


@given(some.binary(max_size=300))
def test_no_bytes_raise_and_none_make_more_than_a_user_record_for_each_six(message: bytes) -> None:
    found = user_records(sealed(KEY + message))
    assert found is None or len(found.keys) * 6 <= len(message)


def test_the_largest_blow_up_is_a_user_record_for_each_six_bytes_with_keys_that_are_shared() -> None:
    record = sealed(field(1, b"k" * 100_000) + user_record(0, b"") * 150_000)
    found = user_records(record)
    assert found is not None and len(found.keys) == 150_000
    assert len(set(map(id, found.keys))) == 1


# In batches


@pytest.mark.parametrize("codec", [PLAIN, ZSTD])
def test_user_records_come_in_the_place_of_theirs_with_sub_sequence_numbers(codec: int) -> None:
    batch = batch_of([b"before", FOREIGN, b"\xff after", MAGIC], codec=codec)
    assert [(one.key, one.data, one.sequence, one.sub_sequence, one.aggregated) for one in batch] == [
        ("own 0", b"before", 100, 0, 0),
        ("k1", b"one", 101, 0, 3),
        ("k2", b"two", 101, 1, 3),
        ("k1", "drei ä".encode(), 101, 2, 3),
        ("own 2", b"\xff after", 102, 0, 0),
        ("own 3", MAGIC, 103, 0, 0),
    ]
    assert {(one.shard, one.arrived_ms) for one in batch} == {(3, 1_500)}
    assert all(type(one) is Record for one in batch)
    assert (batch.data, batch.keys) == ([one.data for one in batch], [one.key for one in batch])
    assert (len(batch), batch.count, batch.first, batch.end) == (6, 4, 100, 104)
    assert [one.end for one in batch] == [101, 101, 101, 102, 103, 104]


def test_a_reader_may_have_them_as_they_were_put() -> None:
    batch = batch_of([b"before", FOREIGN], deaggregate=False)
    assert (batch.data, batch.keys, len(batch)) == ([b"before", FOREIGN], ["own 0", "own 1"], 2)
    assert list(batch) == [Record(b"before", "own 0", 100, 3, 1_500), Record(FOREIGN, "own 1", 101, 3, 1_500)]


def test_records_before_the_start_are_not_taken_apart() -> None:
    batch = batch_of([FOREIGN, aggregate([("a", b"1"), ("b", b"2")])], skip=1)
    assert [(one.data, one.sequence, one.sub_sequence) for one in batch] == [(b"1", 101, 0), (b"2", 101, 1)]


def test_an_aggregated_record_within_another_is_the_data_of_a_user_record() -> None:
    assert batch_of([aggregate([("a", FOREIGN)])]).data == [FOREIGN]


def test_batches_without_any_are_not_looked_through_record_by_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(record: bytes) -> Any:
        raise AssertionError(record)

    monkeypatch.setattr("penstock.records.user_records", never)
    assert len(batch_of([b"", b"text", b"\xf3\x89\x9a", b"\xff", b"x" + FOREIGN])) == 5
