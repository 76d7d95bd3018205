"""Records: how they are checked, grouped by shard and packed on their way out, and unpacked on their way in. No I/O.

Everything is columns: the data of all records, and beside it their keys. A record costs one MD5 where there are several shards,
and otherwise only what C code does with lists; objects are made of records that an application looks at, when it does.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import repeat
from operator import itemgetter
from typing import Any, Final, NamedTuple, Protocol, cast, overload

import msgpack
from penstock_protocol import stream_messages as wire

from penstock.aggregation import MAGIC, user_records
from penstock.errors import InvalidRequest, PenstockError, RecordsUnreadable, RecordTooLarge
from penstock.types import PutResult

try:  # the interpreter's own is twice as fast for short keys as OpenSSL's, and there where that has MD5 switched off
    from _md5 import md5  # type: ignore[import-not-found, unused-ignore]  # typeshed does not know it
except ImportError:
    from hashlib import md5

MAX_KEY: Final = 256
"""Characters of a partition key (Kinesis: PutRecord). The broker has the same rule; here each record answers for itself."""

HASHES: Final = 1 << 128
"""How many hashes there are; the shards of a stream share them."""

RECORD_OVERHEAD: Final = 8
"""Bytes that a packed record has at most beside its data and its key."""


class OutgoingRecord(NamedTuple):
    """A record to put. `hash_key` (0 to 2**128 - 1) chooses the shard in place of the key's MD5."""

    data: bytes | str
    key: str
    hash_key: int | None = None


class Record(NamedTuple):
    """A record that was read. `sequence` ascends within its shard; `arrived_ms` is Unix time.

    A user record of an aggregated one (KPL) has the `sequence` of that, and its own place in it from 0 on, `sub_sequence`;
    `aggregated` says how many it had. Of an ordinary record both are 0."""

    data: bytes
    key: str
    sequence: int
    shard: int
    arrived_ms: int
    sub_sequence: int = 0
    aggregated: int = 0

    @property
    def end(self) -> int:
        """The sequence number to go on from when this one is processed. Within an aggregated record that is its own: it comes
        again as a whole."""
        return self.sequence + (self.sub_sequence + 1 >= self.aggregated)

    @property
    def text(self) -> str:
        """The data as UTF-8 text; UnicodeDecodeError when it is none."""
        return self.data.decode()

    @property
    def arrived_at(self) -> datetime:
        """When the broker took it."""
        return datetime.fromtimestamp(self.arrived_ms / 1000, UTC)


def record_bytes(data: bytes | str) -> bytes:
    """A record's data as bytes; text becomes UTF-8. TypeError for anything else."""
    if isinstance(data, bytes):
        return data
    if isinstance(data, str):
        return data.encode()
    raise TypeError(f"a record's data is bytes or str, not {type(data).__name__}")


def hash_bytes(hash_key: int | None) -> bytes | None:
    """An explicit hash key as shards compare it. InvalidRequest when it is none."""
    if hash_key is None:
        return None
    if not 0 <= hash_key < HASHES:
        raise InvalidRequest(f"hash_key = {hash_key}; it must be 0 to 2**128 - 1")
    return hash_key.to_bytes(16, "big")


def key_hash(key: str) -> bytes:
    """Where a partition key belongs: its MD5, 16 bytes (Kinesis: PutRecord). A way to spread keys."""
    return cast(bytes, md5(key.encode()).digest())  # noqa: S324  # nothing secret


def text_bytes(texts: Sequence[str]) -> int:
    """The length of all of them in UTF-8."""
    joined = "".join(texts)
    return len(joined) if joined.isascii() else len(joined.encode())


def size_of(data: bytes, key: str) -> int:
    """What a record counts: its data and its key. TypeError when that is none."""
    if not isinstance(key, str):
        raise TypeError(f"a partition key is str, not {type(key).__name__}")
    return len(data) + (len(key) if key.isascii() else len(key.encode()))


def problem_of(data: bytes, key: str, max_record_bytes: int) -> PenstockError | None:
    """Why a record cannot be put, if it cannot."""
    if not 1 <= len(key) <= MAX_KEY:
        return InvalidRequest(f"a partition key has 1 to {MAX_KEY} characters, not {len(key)}")
    if len(data) > max_record_bytes:
        return RecordTooLarge(f"the record has {len(data)} bytes; the stream allows {max_record_bytes}")
    return None


class Columns:
    """Records by column: data, keys, and explicit hash keys if any has one. `size_bytes`: of data and keys."""

    __slots__ = ("data", "hashes", "keys", "size_bytes")

    def __init__(
        self, data: list[bytes], keys: list[str], hashes: list[bytes | None] | None = None, size_bytes: int | None = None
    ) -> None:
        self.data = data
        self.keys = keys
        self.hashes = hashes
        self.size_bytes = sum(map(len, data)) + text_bytes(keys) if size_bytes is None else size_bytes

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def of(cls, data: Sequence[bytes | str], keys: Sequence[str], hash_keys: Sequence[int | None] | None = None) -> Columns:
        """Columns as an application has them, their types checked: TypeError or ValueError before anything is sent."""
        if len(data) != len(keys) or (hash_keys is not None and len(hash_keys) != len(keys)):
            raise ValueError(f"columns of different lengths: {len(data)} data, {len(keys)} keys")
        plain = cast(list[bytes], list(data)) if set(map(type, data)) <= {bytes} else [record_bytes(one) for one in data]
        if not set(map(type, keys)) <= {str}:
            raise TypeError("a partition key is str")
        hashes = None
        if hash_keys is not None and any(one is not None for one in hash_keys):
            hashes = [hash_bytes(one) for one in hash_keys]
        return cls(plain, list(keys), hashes)

    @classmethod
    def of_rows(cls, records: Iterable[tuple[bytes | str, str] | OutgoingRecord]) -> Columns:
        """The same from records."""
        rows: list[tuple[Any, ...]] = list(records)
        if not rows:
            return cls([], [], None, 0)
        widths = set(map(len, rows))
        if widths == {2}:
            data, keys = zip(*rows, strict=True)
            return cls.of(data, keys)
        if not widths <= {2, 3}:
            raise TypeError("a record is (data, key), or an OutgoingRecord")
        data, keys, hash_keys = zip(*(row if len(row) == 3 else (*row, None) for row in rows), strict=True)
        return cls.of(data, keys, hash_keys)

    def row(self, place: int) -> OutgoingRecord:
        """One record, as it can be put again."""
        explicit = self.hashes[place] if self.hashes is not None else None
        return OutgoingRecord(self.data[place], self.keys[place], None if explicit is None else int.from_bytes(explicit, "big"))

    def add(self, data: bytes, key: str, explicit: bytes | None, size_bytes: int) -> int:
        """Adds a record; returns its place."""
        place = len(self.keys)
        self.data.append(data)
        self.keys.append(key)
        self.size_bytes += size_bytes
        if explicit is not None and self.hashes is None:
            self.hashes = [None] * place
        if self.hashes is not None:
            self.hashes.append(explicit)
        return place

    def extend(self, other: Columns) -> None:
        """Adds records."""
        if other.hashes is not None or self.hashes is not None:
            none: list[bytes | None] = [None]
            mine = none * len(self) if self.hashes is None else self.hashes
            self.hashes = mine + (none * len(other) if other.hashes is None else other.hashes)
        self.data += other.data
        self.keys += other.keys
        self.size_bytes += other.size_bytes

    def part(self, start: int, stop: int) -> Columns:
        """The records from `start` to before `stop`."""
        if start == 0 and stop >= len(self):
            return self
        hashes = self.hashes[start:stop] if self.hashes is not None else None
        return Columns(self.data[start:stop], self.keys[start:stop], hashes)

    def pick(self, places: list[int]) -> Columns:
        """The records at these places."""
        hashes = list(map(self.hashes.__getitem__, places)) if self.hashes is not None else None
        return Columns(list(map(self.data.__getitem__, places)), list(map(self.keys.__getitem__, places)), hashes)

    def fits(self, max_bytes: int) -> bool:
        """Whether they are packed into so many bytes for sure."""
        return self.size_bytes + RECORD_OVERHEAD * len(self) <= max_bytes

    def pieces(self, max_records: int, max_bytes: int) -> Iterator[Columns]:
        """Them in order, in as large pieces as are allowed, one record at least."""
        start = 0
        while start < len(self):
            stop = min(len(self), start + max_records)
            piece = self.part(start, stop)
            guess = len(piece) * max_bytes // (piece.size_bytes + RECORD_OVERHEAD * len(piece) + 1)
            while len(piece) > 1 and not piece.fits(max_bytes):
                stop = start + max(1, min(guess, len(piece) - 1))
                piece = self.part(start, stop)
                guess = len(piece) // 2
            yield piece
            start = stop

    def problems(self, max_record_bytes: int) -> dict[int, PenstockError]:
        """Which cannot be put, by place."""
        if not self.keys:
            return {}
        lengths = set(map(len, self.keys))
        if min(lengths) >= 1 and max(lengths) <= MAX_KEY and max(map(len, self.data)) <= max_record_bytes:
            return {}
        found = (problem_of(data, key, max_record_bytes) for data, key in zip(self.data, self.keys, strict=True))
        return {place: problem for place, problem in enumerate(found) if problem is not None}


class Put(Protocol):
    """A batch that was answered."""

    def __len__(self) -> int: ...

    @property
    def has_failures(self) -> bool:
        """Whether any record was refused."""

    def outcomes(self) -> list[PutResult | PenstockError]:
        """What became of each record, in order."""


class PutResults(Sequence[PutResult | PenstockError]):
    """What became of records that were put together, in their order: a PutResult, or the error of each. `failures`: the errors
    alone, by place. Objects are made when they are looked at."""

    def __init__(self, count: int, problems: dict[int, PenstockError], batches: Sequence[tuple[list[int] | None, Put]]) -> None:
        self._count = count
        self._problems = problems
        self._batches = batches
        self._results: list[PutResult | PenstockError] | None = None

    def _made(self) -> list[PutResult | PenstockError]:
        if self._results is None:
            found: dict[int, PutResult | PenstockError] = dict(self._problems)
            for places, batch in self._batches:
                found.update(zip(range(len(batch)) if places is None else places, batch.outcomes(), strict=True))
            self._results = [found[place] for place in range(self._count)]
        return self._results

    @overload
    def __getitem__(self, place: int) -> PutResult | PenstockError: ...
    @overload
    def __getitem__(self, place: slice) -> list[PutResult | PenstockError]: ...
    def __getitem__(self, place: int | slice) -> PutResult | PenstockError | list[PutResult | PenstockError]:
        return self._made()[place]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[PutResult | PenstockError]:
        return iter(self._made())

    @property
    def failures(self) -> dict[int, PenstockError]:
        """The errors, by the place of their record."""
        if not self._problems and not any(batch.has_failures for _, batch in self._batches):
            return {}
        return {place: one for place, one in enumerate(self._made()) if isinstance(one, PenstockError)}

    def __repr__(self) -> str:
        return f"<PutResults of {self._count} records, {len(self.failures)} failed>"


class ShardMap:
    """Which open shard has which hashes, and how large a record may be. Never changed; a new one takes its place."""

    __slots__ = ("_lows", "_shards", "ids", "max_record_bytes")

    def __init__(self, shards: Iterable[wire.Shard], max_record_bytes: int) -> None:
        ordered = sorted(shards, key=lambda one: one.low)
        self._lows = [one.low for one in ordered]
        self._shards = [one.shard for one in ordered]
        self.ids = frozenset(self._shards)
        self.max_record_bytes = max_record_bytes

    @staticmethod
    def is_whole(shards: Iterable[wire.Shard]) -> bool:
        """Whether they have all hashes, each once. (A list that was read in pages while shards were split may not.)"""
        expected = 0
        for shard in sorted(shards, key=lambda one: one.low):
            if int.from_bytes(shard.low, "big") != expected:
                return False
            expected = int.from_bytes(shard.high, "big") + 1
        return expected == HASHES

    def shard_of(self, key: str, explicit: bytes | None = None) -> int:
        """The shard of one record."""
        if len(self._shards) == 1:
            return self._shards[0]
        return self._shards[bisect_right(self._lows, explicit or key_hash(key)) - 1]

    def group(self, columns: Columns) -> list[tuple[int, list[int] | None, Columns]]:
        """Records by shard, in their order: the shard, the places they had (None: all, as they are), and they."""
        if len(self._shards) == 1 or not len(columns):
            return [(self._shards[0], None, columns)] if len(columns) else []
        lows, hashes = self._lows, columns.hashes
        if hashes is None:
            found = [bisect_right(lows, md5(key.encode()).digest()) for key in columns.keys]  # noqa: S324  # nothing secret
        else:
            found = [bisect_right(lows, explicit or key_hash(key)) for key, explicit in zip(columns.keys, hashes, strict=True)]
        places: list[list[int]] = [[] for _ in range(len(lows) + 1)]
        adders = [one.append for one in places]
        for place, shard in enumerate(found):
            adders[shard](place)
        return [
            (self._shards[index - 1], some, columns.pick(some))
            if len(some) < len(columns)
            else (self._shards[index - 1], None, columns)
            for index, some in enumerate(places)
            if some
        ]


# Packing

_own = threading.local()


def zstandard() -> Any:
    """The library for compressed batches. ImportError says how to get it."""
    try:
        import zstandard
    except ImportError as error:
        raise ImportError("compressed batches need the package zstandard: pip install 'penstock[zstd]'") from error
    return zstandard


def pack(columns: Columns, codec: int) -> bytes:
    """The blob of a batch."""
    blob = cast(bytes, msgpack.packb((columns.data, columns.keys)))
    if codec == wire.PLAIN:
        return blob
    compressor = getattr(_own, "compressor", None)
    if compressor is None:  # each thread has one: making one costs more than packing a batch
        compressor = _own.compressor = zstandard().ZstdCompressor()
    return cast(bytes, compressor.compress(blob))


def unpack(batch: wire.Batch) -> tuple[list[bytes], list[str]]:
    """Data and keys of a batch. RecordsUnreadable when it is not what it says: brokers store blobs as they come, so what a broken
    or hostile producer has put shows here. A compressed one is given no more memory than it declared."""
    blob = batch.blob
    if batch.codec == wire.ZSTD:
        blob = _expand(batch)
    elif batch.codec != wire.PLAIN:
        raise RecordsUnreadable(f"codec {batch.codec} is not known to this version")
    count, size = batch.count, len(blob)
    try:
        data, keys = msgpack.unpackb(
            blob, raw=False, max_array_len=max(2, count), max_map_len=0, max_ext_len=0, max_bin_len=size, max_str_len=size
        )
        if not (type(data) is type(keys) is list and len(data) == len(keys) == count):
            raise ValueError(f"not {count} data and {count} keys")
        if not (set(map(type, data)) <= {bytes} and set(map(type, keys)) <= {str}):
            raise ValueError("data must be binaries, keys strings")
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise RecordsUnreadable(f"a batch of {count} records is not packed as it says: {error}") from None
    return data, keys


def _expand(batch: wire.Batch) -> bytes:
    library = zstandard()
    largest = batch.size_bytes + RECORD_OVERHEAD * batch.count + 16
    try:
        declared = library.frame_content_size(batch.blob)
        if declared > largest:
            raise RecordsUnreadable(f"a frame of {declared} bytes, in a batch that says {batch.size_bytes}")
        decompressor = getattr(_own, "decompressor", None)
        if decompressor is None:
            decompressor = _own.decompressor = library.ZstdDecompressor()
        return cast(bytes, decompressor.decompress(batch.blob, max_output_size=largest, allow_extra_data=False))
    except library.ZstdError as error:
        raise RecordsUnreadable(f"a batch of {batch.count} records cannot be expanded: {error}") from None


class ReadColumns(NamedTuple):
    """Records of a batch as a reader gets them, by column."""

    data: list[bytes]
    keys: list[str]
    sequences: Sequence[int]
    sub_sequences: Iterable[int] = repeat(0)
    aggregated: Iterable[int] = repeat(0)


_first_bytes = itemgetter(slice(len(MAGIC)))


def deaggregate(data: list[bytes], keys: list[str], first: int) -> ReadColumns:
    """Records with consecutive sequence numbers, those that are aggregated replaced by their user records."""
    if max(data, default=b"") < MAGIC or MAGIC not in map(_first_bytes, data):  # nearly always, and for sure
        return ReadColumns(data, keys, range(first, first + len(data)))
    sequences: list[int] = []
    sub_sequences: list[int] = []
    aggregated: list[int] = []
    found = ReadColumns([], [], sequences, sub_sequences, aggregated)
    for sequence, (one, key) in enumerate(zip(data, keys, strict=True), first):
        users = user_records(one)
        count = len(users.keys) if users is not None else 1
        found.data.extend([one] if users is None else users.data)
        found.keys.extend([key] if users is None else users.keys)
        sequences += [sequence] * count
        sub_sequences += range(count)
        aggregated += [0 if users is None else count] * count
    return found


class RecordBatch:
    """Records of one shard that were put together. As they were put they are `count`, with consecutive sequence numbers from
    `first` on; those that are aggregated (KPL) come as their user records, unless the reader wants them as they are.

    Iterating makes a Record of each. `data` and `keys` are the same as columns, for who wants them fast. It is unpacked at the
    first look, also for its length; RecordsUnreadable when its producer packed something else than it said."""

    __slots__ = ("_batch", "_columns", "_deaggregate", "_skip", "arrived_ms", "first", "shard")

    def __init__(
        self, shard: int, first: int, arrived_ms: int, batch: wire.Batch, skip: int = 0, deaggregate: bool = True
    ) -> None:
        self.shard = shard
        self.first = first + skip
        self.arrived_ms = arrived_ms
        self._skip = skip
        self._batch = batch
        self._deaggregate = deaggregate
        self._columns: ReadColumns | None = None

    def _unpacked(self) -> ReadColumns:
        columns = self._columns
        if columns is None:
            data, keys = unpack(self._batch)
            if self._skip:
                data, keys = data[self._skip :], keys[self._skip :]
            columns = (
                deaggregate(data, keys, self.first) if self._deaggregate else ReadColumns(data, keys, range(self.first, self.end))
            )
            self._columns = columns
        return columns

    @property
    def data(self) -> list[bytes]:
        """The data of all records."""
        return self._unpacked().data

    @property
    def keys(self) -> list[str]:
        """Their partition keys."""
        return self._unpacked().keys

    @property
    def count(self) -> int:
        """How many records were put: so many sequence numbers it has."""
        return self._batch.count - self._skip

    @property
    def end(self) -> int:
        """The sequence number behind the last record: where reading goes on."""
        return self.first + self.count

    @property
    def arrived_at(self) -> datetime:
        """When the broker took them."""
        return datetime.fromtimestamp(self.arrived_ms / 1000, UTC)

    @property
    def blob_bytes(self) -> int:
        """What it takes in memory before it is unpacked."""
        return len(self._batch.blob)

    def __len__(self) -> int:
        return len(self._unpacked().keys)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Record]:
        data, keys, sequences, sub_sequences, aggregated = self._unpacked()
        rows = zip(data, keys, sequences, repeat(self.shard), repeat(self.arrived_ms), sub_sequences, aggregated)
        return map(tuple.__new__, repeat(Record), rows)

    def __repr__(self) -> str:
        return f"<RecordBatch of {self.count} records of shard {self.shard} from {self.first} on>"
