"""Slots: the unit in which logs are owned.

A log belongs to one slot for ever; a slot belongs to one broker at a time. Their number is fixed when a store is made,
because it is part of every log's address.
"""

from __future__ import annotations

from penstock_storage.interface import LogId

SLOTS = 1024
"""Enough that 100 brokers still differ by only a few slots of ten each, and few enough that the whole map (two bytes a
slot) fits one small frame and one statement changes all of them."""


def slot_of(log_id: LogId) -> int:
    """The slot of a log. Ids are counted up, so the remainder spreads them evenly."""
    return log_id % SLOTS
