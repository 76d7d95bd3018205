"""Batches: what a put brings, and how they lie in a segment. Plain ones are looked through once, when they come; compressed ones
are taken at their word, and whoever reads them checks."""

from __future__ import annotations

import itertools
from typing import Any, Final

import msgpack
from penstock_protocol.errors import BatchEmpty, BatchTooLarge, InvalidRequest, RecordTooLarge
from penstock_protocol.stream_messages import PLAIN, ZSTD, Batch, PutRecords

from penstock_broker.streams import limits

_ARRAYS: Final = 2
_SHORT: Final = 512
"""Arrays up to this length are built in one go: nested as deep as msgpack nests them, they take some megabytes."""


def check(request: PutRecords, max_record_bytes: int) -> None:
    """Raises what is wrong with a batch, naming the record where it is one."""
    count = request.count
    if count == 0:
        raise BatchEmpty()
    if count > limits.MAX_BATCH:
        raise BatchTooLarge(f"{count} records; at most {limits.MAX_BATCH} are allowed")
    if request.size_bytes > limits.MAX_BATCH_BYTES:
        raise BatchTooLarge(f"{request.size_bytes} bytes; at most {limits.MAX_BATCH_BYTES} are allowed")
    if request.codec == ZSTD:
        if not request.blob:
            raise InvalidRequest("an empty blob")
        return
    if request.codec != PLAIN:
        raise InvalidRequest(f"codec = {request.codec}; 0 (plain) and 1 (zstd) are known")
    data, keys = _columns(request.blob, count)
    sizes = list(map(len, data))
    if max(sizes) > max_record_bytes:
        index = next(place for place, size in enumerate(sizes) if size > max_record_bytes)
        raise RecordTooLarge(f"record {index} has {sizes[index]} bytes; the stream allows {max_record_bytes}")
    lengths = list(map(len, keys))
    if min(lengths) < 1 or max(lengths) > limits.MAX_KEY:
        index = next(place for place, length in enumerate(lengths) if not 1 <= length <= limits.MAX_KEY)
        raise InvalidRequest(f"record {index}: a partition key has 1 to {limits.MAX_KEY} characters, not {lengths[index]}")
    key_bytes = sum(lengths) if all(map(str.isascii, keys)) else sum(len(key.encode()) for key in keys)
    if sum(sizes) + key_bytes != request.size_bytes:
        raise InvalidRequest(f"size_bytes = {request.size_bytes}; data and keys have {sum(sizes) + key_bytes}")


def sizes(request: PutRecords) -> list[int]:
    """Data and key of each record of a plain batch that was checked."""
    data, keys = _columns(request.blob, request.count)
    return [len(one) + len(key.encode()) for one, key in zip(data, keys, strict=True)]


def first_of(request: PutRecords, count: int) -> Batch:
    """The first records of a plain batch that was checked; of any batch, if these are all."""
    if count == request.count:
        return Batch(count, request.codec, request.size_bytes, request.blob)
    data, keys = _columns(request.blob, request.count)
    data, keys = data[:count], keys[:count]
    size_bytes = sum(map(len, data)) + sum(len(key.encode()) for key in keys)
    return Batch(count, PLAIN, size_bytes, msgpack.packb((data, keys)))


def _columns(blob: bytes, count: int) -> tuple[list[bytes], list[str]]:
    try:
        columns = _build(blob, count) if count <= _SHORT else _walk(blob, count)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise InvalidRequest(f"the blob is not two arrays of {count} in msgpack: {error}") from None
    if type(columns) is not list or len(columns) != _ARRAYS or any(type(one) is not list for one in columns):
        raise InvalidRequest(f"the blob is not two arrays of {count} in msgpack")
    data, keys = columns
    if len(data) != count or len(keys) != count or set(map(type, data)) != {bytes} or set(map(type, keys)) != {str}:
        raise InvalidRequest(f"the blob must hold {count} binaries, then {count} strings")
    return data, keys


def _build(blob: bytes, count: int) -> Any:
    left = 1 + _ARRAYS

    def hook(values: list[Any]) -> list[Any]:
        # (Without it, arrays of empty arrays would take fifty times the memory of the blob.)
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError("there are more arrays")
        return values

    size = len(blob)
    return msgpack.unpackb(
        blob,
        raw=False,
        list_hook=hook,
        max_array_len=max(count, _ARRAYS),
        max_map_len=0,
        max_ext_len=0,
        max_bin_len=size,
        max_str_len=size,
    )


def _walk(blob: bytes, count: int) -> Any:
    """The same for long arrays, element by element, for none of them may be an array."""
    unpacker = msgpack.Unpacker(None, raw=False, max_array_len=0, max_map_len=0, max_ext_len=0, max_buffer_size=len(blob))
    unpacker.feed(blob)
    columns: list[list[Any]] = []
    if unpacker.read_array_header() == _ARRAYS:
        while len(columns) < _ARRAYS and unpacker.read_array_header() == count:
            columns.append(list(itertools.islice(unpacker, count)))
    if len(columns) == _ARRAYS and unpacker.tell() != len(blob):
        raise ValueError("something follows them")
    return columns


def pack(batches: list[Batch]) -> bytes:
    """The payload of a segment."""
    packed: bytes = msgpack.packb([(one.count, one.codec, one.size_bytes, one.blob) for one in batches])
    return packed


def unpack(payload: bytes) -> list[Batch]:
    """The inverse (of a payload whose checksum the store verified)."""
    rows: Any = msgpack.unpackb(payload, raw=False, max_array_len=len(payload), max_bin_len=len(payload))
    return [Batch(*row) for row in rows]
