"""A disk of its own whose power can be cut: a file system in a file, mounted through a loop device.

The cut is the file system's own shutdown without flushing its log: from then on nothing reaches the file. What was only
in the page cache is gone after the unmount; mounting replays the journal, as after a real loss of power.

The mounts live in a mount namespace of this process and its children (`seclude`), so that no other process can keep one
busy, and none is left behind even when this process is killed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path
from typing import Final

SIZES_MIB: Final = {"ext4": 384, "xfs": 512}
"""Sparse. More than the store's reserve and what a run stores."""

_MAKE: Final = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f")}
_GOING_DOWN: Final = 0x8004587D
_WITHOUT_LOG_FLUSH: Final = 2
_CLONE_NEWNS: Final = 0x00020000
_BUSY_SECONDS: Final = 10.0


def missing() -> str:
    """Why no disk can be made here; empty when one can."""
    if os.geteuid() != 0:
        return "power cuts need root (loop mounts)"
    if not _tool("mkfs.ext4") or not _tool("mount"):
        return "power cuts need mount and mkfs.ext4"
    if not Path("/dev/loop-control").exists():
        return "power cuts need loop devices (/dev/loop-control)"
    return ""


def kinds() -> list[str]:
    """The file systems that can be made here."""
    return [kind for kind, command in _MAKE.items() if _tool(command[0])]


def _tool(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def seclude() -> None:
    """From now on mounts of this process are its own. OSError when the system refuses."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "no mount namespace of our own")
    _run("mount", "--make-rprivate", "/")


def _run(*command: str) -> None:
    done = subprocess.run([_tool(command[0]) or command[0], *command[1:]], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(errno.EIO, f"{' '.join(command)}: {done.stderr.strip()}")


class Disk:
    """A disk in the file `image`, mounted at `folder` from `mount` to `unmount`."""

    def __init__(self, kind: str, image: Path, folder: Path) -> None:
        self.folder = folder
        self._image = image
        self.is_mounted = False
        with image.open("wb") as file:
            file.truncate(SIZES_MIB[kind] * 2**20)
        _run(*_MAKE[kind], str(image))
        folder.mkdir()

    def mount(self) -> None:
        """Mounts it; after a cut the journal is replayed."""
        _run("mount", "-o", "loop", str(self._image), str(self.folder))
        self.is_mounted = True

    def cut(self) -> None:
        """No byte gets to the disk any more. The file system answers everything with errors until it is mounted anew."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _GOING_DOWN, struct.pack("I", _WITHOUT_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def unmount(self) -> None:
        """Lets go of the mount and the loop device; waits for a process that has just been killed."""
        deadline = time.monotonic() + _BUSY_SECONDS
        while self.is_mounted:
            try:
                _run("umount", str(self.folder))
                self.is_mounted = False
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
