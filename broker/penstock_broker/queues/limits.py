"""Every number a queue is bound by, with its source. Milliseconds and bytes."""

from __future__ import annotations

from typing import Final

SECOND_MS: Final = 1_000
MINUTE_MS: Final = 60 * SECOND_MS
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS

# SQS service model (SEMANTICS 2.1).
MAX_VISIBILITY_TIMEOUT_MS: Final = 12 * HOUR_MS
DEFAULT_VISIBILITY_TIMEOUT_MS: Final = 30 * SECOND_MS
MIN_RETENTION_MS: Final = 60 * SECOND_MS
MAX_RETENTION_MS: Final = 14 * DAY_MS
DEFAULT_RETENTION_MS: Final = 4 * DAY_MS
MIN_MESSAGE_LIMIT_BYTES: Final = 1_024
MAX_MESSAGE_BYTES: Final = 1_048_576
MAX_WAIT_MS: Final = 20 * SECOND_MS
MAX_ATTRIBUTES: Final = 10
MAX_ATTRIBUTE_NAME: Final = 256
MAX_TAGS: Final = 50
MAX_TAG_KEY: Final = 128
MAX_TAG_VALUE: Final = 256
MAX_ID_LENGTH: Final = 128
"""Message group ids and deduplication ids, in characters."""
MAX_NAME_LENGTH: Final = 80
FIFO_SUFFIX: Final = ".fifo"
MAX_RECEIVE_COUNT: Final = 1_000
MAX_REDRIVE_SOURCES: Final = 10
MAX_IN_FLIGHT: Final = 120_000
DEDUPLICATION_WINDOW_MS: Final = 5 * MINUTE_MS
ATTEMPT_WINDOW_MS: Final = 5 * MINUTE_MS
MAX_MOVE_RATE: Final = 500
MAX_QUEUES: Final = 10_000
"""Per account (RELIABILITY 4.18)."""

# Ours: the native protocol goes beyond SQS where that serves the user.
MAX_BATCH: Final = 10_000
"""Messages in one native send or receive."""
MAX_DELAY_MS: Final = 10 * 366 * DAY_MS
"""A native delay may point any time ahead; ten years catches a wrong unit."""
PRODUCER_WINDOW_MS: Final = 15 * MINUTE_MS
"""How long an idle producer's last answers are remembered for a retry."""
MAX_TRACE: Final = 1_024
"""Characters of a trace context."""
MAX_WAITERS: Final = 10_000
"""Waiting receives and consumers of one queue."""

# How messages are kept.
SEGMENT_MESSAGES: Final = 1_000
"""Messages in one segment: its bit masks stay small."""
SEGMENT_BYTES: Final = 1_048_576
"""A segment is closed once it holds this much: paging one in stays cheap."""
REWRITE_BYTES: Final = 64 * 1_024
"""A segment that had at least this much, and of which less than a quarter lives, is rewritten with its living rest."""
REWRITES: Final = 4
"""Segments rewritten with one commit."""
WINDOW_MESSAGES: Final = 20_000
"""Visible messages of one standard queue that wait in memory; the rest waits in the store."""
FIFO_WINDOW_MESSAGES: Final = 100_000
"""A FIFO queue looks this far for a group that is not locked (SQS: 120,000)."""
LOW_WATER_MESSAGES: Final = 10_000
"""With fewer waiting in memory the next page is fetched before it is needed."""
PAGE_SEGMENTS: Final = 4_000
PAGE_BYTES: Final = 2 * 1_048_576
"""What one load brings."""
CONTENT_BYTES: Final = 16 * 1_048_576
"""Content one queue keeps in memory before more of it stays in the store."""
EARLY_SEGMENTS: Final = 2_000
"""Segments of which a quiet tenant's messages are served before the store's backlog, and that their page still has to bring."""
DELAYED_SEGMENTS: Final = 4_000
"""Delayed segments of one queue that are in memory: those due first."""
RESERVE_SEQUENCES: Final = 1 << 20
"""Sequence numbers reserved at a time: a crash skips at most so many."""

# Fair queues (SEMANTICS 2.1).
NOISY_SHARE: Final = 0.1
NOISY_IN_FLIGHT: Final = 30
NOISY_PROCESSING_MS: Final = 30 * MINUTE_MS
"""Processing time below this never makes a tenant noisy: as much as NOISY_IN_FLIGHT messages held for a minute each."""
PROCESSING_HALF_LIFE_MS: Final = MINUTE_MS
NOISE_LASTS_MS: Final = 5 * MINUTE_MS
"""A tenant that has sent nothing for so long is quiet, whatever it has in flight."""
