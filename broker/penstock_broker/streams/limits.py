"""Every number a stream is bound by, with its source. Milliseconds and bytes."""

from __future__ import annotations

from typing import Final

HOUR_MS: Final = 60 * 60 * 1_000
DAY_MS: Final = 24 * HOUR_MS

# Kinesis service model (SEMANTICS 2.3).
DEFAULT_RETENTION_MS: Final = 24 * HOUR_MS
MAX_RETENTION_MS: Final = 365 * DAY_MS
DEFAULT_RECORD_BYTES: Final = 1_048_576
MAX_RECORD_BYTES: Final = 10 * 1_048_576
MAX_KEY: Final = 256
"""Characters of a partition key; one at least."""
MAX_SHARDS: Final = 10_000
"""Open shards of one stream."""
MAX_RESHARD_FACTOR: Final = 2
ITERATOR_MS: Final = 5 * 60 * 1_000
MAX_READ_RECORDS: Final = 10_000
MAX_NAME_LENGTH: Final = 128
MAX_CONSUMERS: Final = 20
"""Registered with one stream."""
SHARD_RECORDS_IN: Final = 1_000
SHARD_BYTES_IN: Final = 1_048_576
SHARD_READS: Final = 5
SHARD_BYTES_OUT: Final = 2_097_152
"""What a shard lets pass per second, when its stream asks for limits."""

# Ours.
MIN_RETENTION_MS: Final = HOUR_MS
MIN_RECORD_BYTES: Final = 1_024
MAX_STREAMS: Final = 10_000
"""Per account (RELIABILITY 4.18)."""
MAX_BATCH: Final = 10_000
"""Records of one batch."""
MAX_BATCH_BYTES: Final = 12 * 1_048_576
"""Data and keys of one batch: the largest record and some more; it has to fit into a frame."""
MAX_READ_BYTES: Final = 8 * 1_048_576
"""What one read brings, but for one batch at least."""
MAX_WAIT_MS: Final = 20_000
MAX_WAITERS: Final = 10_000
"""Reads that wait at the tip of one shard."""
MAX_CREDIT: Final = 100_000
"""Records that a subscription may be pushed."""
PUSH_RECORDS: Final = 10_000
PUSH_BYTES: Final = 1_048_576
"""What one push brings, but for one batch at least."""

# How records are kept.
SEGMENT_RECORDS: Final = 10_000
SEGMENT_BYTES: Final = 1_048_576
"""A segment is closed once it holds so much, or so many records; a larger batch is one of its own."""
TIP_BYTES: Final = 2 * 1_048_576
"""The newest records of a shard that stay in memory for readers at the tip."""
RESERVE_SEQUENCES: Final = 1 << 20
"""Sequence numbers reserved at a time: a crash skips at most so many."""
TRIM_PAGE: Final = 1_000
"""Segments looked at in one step of a trim."""

# Consumer groups.
MAX_GROUPS: Final = 100
"""Of one stream."""
MAX_MEMBERS: Final = 1_000
"""Of one group."""
MIN_SESSION_MS: Final = 1_000
MAX_SESSION_MS: Final = 10 * 60 * 1_000
"""How long a member may be silent before its shards go to others. (Kinesis Client Library: 10 s.)"""
