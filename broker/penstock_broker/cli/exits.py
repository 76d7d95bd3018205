"""Exit codes: what each means, in one table that the help shows."""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """How a command ended."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_REACHABLE = 3
    NOTHING = 4
    ADDRESS_IN_USE = 10
    STORE_LOCKED = 11
    STORE_UNREACHABLE = 12
    SCHEMA_TOO_NEW = 13
    DISK_FULL = 14
    FENCED = 15
    INTERRUPTED = 130


MEANING = {
    Exit.OK: "done",
    Exit.FAILED: "the broker refused; the text says why and what to do",
    Exit.USAGE: "wrong arguments or configuration",
    Exit.NOT_REACHABLE: "no broker answers at that address",
    Exit.NOTHING: "receive, peek, moves, read: there is none",
    Exit.ADDRESS_IN_USE: "serve: the address cannot be listened on",
    Exit.STORE_LOCKED: "serve: another broker has the data open",
    Exit.STORE_UNREACHABLE: "serve: the store does not answer or cannot be opened",
    Exit.SCHEMA_TOO_NEW: "serve: a newer Penstock wrote the data",
    Exit.DISK_FULL: "serve: no space left",
    Exit.FENCED: "serve: another broker has taken over",
    Exit.INTERRUPTED: "Ctrl-C",
}


def table() -> str:
    """The table as text for the help."""
    return "\n".join(f"  {code.value:>3}  {MEANING[code]}" for code in Exit)
