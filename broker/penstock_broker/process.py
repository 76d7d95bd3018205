"""What the process is allowed: files private to its user, many descriptors, no core dumps, no new privileges."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource

_PR_SET_NO_NEW_PRIVS = 38


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
