"""What the process is allowed (files private to its user, many descriptors, no core dumps, no new privileges), and how often it
looks for garbage."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource

_PR_SET_NO_NEW_PRIVS = 38
_GARBAGE_THRESHOLDS = (20_000, 20, 50)
"""Segments, deliveries and calls have no cycles: reference counts free them. What a collection costs grows with all that is in
memory, and with a backlog the default thresholds spend 3 % of the processor on looking through it."""


def collect_less() -> None:
    """Makes collections of cyclic garbage rarer."""
    gc.set_threshold(*_GARBAGE_THRESHOLDS)


def harden() -> None:
    """Applies all of it; what the system refuses is left as it is."""
    os.umask(0o077)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
