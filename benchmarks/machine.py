"""What the machine says about a run: memory and processor time of process trees, and how fast its disk makes things durable.

Reads /proc (Linux only). It changes nothing and starts nothing.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """A process and all its descendants, as they are now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        waiting += children.get(one, [])
    return found


def tree_rss_bytes(pid: int) -> int:
    """Resident bytes of a process tree. Memory shared on purpose (PostgreSQL's buffers) counts once, not once a process."""
    private = shared = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            fields = dict(line.split(":", 1) for line in Path(f"/proc/{one}/status").read_text().splitlines())
            sizes = {key: int(fields.get(key, "0 kB").split()[0]) * 1024 for key in ("RssAnon", "RssFile", "RssShmem")}
            private += sizes["RssAnon"] + sizes["RssFile"]
            shared = max(shared, sizes["RssShmem"])
    return private + shared


def cpu_seconds(pids: list[int]) -> float:
    """Processor seconds that these processes have used."""
    total = 0
    for one in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / TICKS_PER_SECOND


def busy_seconds() -> float:
    """Processor seconds that everything on the machine has used (not idle, not waiting for the disk)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS_PER_SECOND


def file_system(folder: Path) -> str:
    """The type of the file system that holds a folder: ext4, tmpfs, …"""
    best, kind = "", "unknown"
    path = str(folder.resolve())
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, found, *_ = line.split()
        inside = path == mount or path.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, found
    return kind


def fsync_ms(folder: Path, times: int = 200) -> float:
    """Median milliseconds of appending 4 KiB and making it durable (fdatasync) there."""
    path = folder / f"fsync-probe-{os.getpid()}"
    found = []
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    try:
        for _ in range(times):
            started = time.perf_counter()
            os.write(descriptor, b"x" * 4096)
            os.fdatasync(descriptor)
            found.append(time.perf_counter() - started)
    finally:
        os.close(descriptor)
        path.unlink()
    return statistics.median(found) * 1000
