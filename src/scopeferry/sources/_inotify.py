"""What the kernel tells of folders while they are written: Linux only, and never more than hints.

A watch is set on an open folder, through its descriptor, so no link can lead it elsewhere. Asked for are names that
were moved in, closed after writing, deleted, and folders that were made (inotify(7)); our own reading causes none of
these.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

CLOSE_WRITE, MOVED_TO, CREATE, DELETE = 0x8, 0x80, 0x100, 0x200
UNMOUNT, OVERFLOW, IGNORED, IS_FOLDER = 0x2000, 0x4000, 0x8000, 0x4000_0000
_ONLY_FOLDERS, _EXCLUDE_UNLINKED = 0x0100_0000, 0x0400_0000
MASK = CLOSE_WRITE | MOVED_TO | CREATE | DELETE | _ONLY_FOLDERS | _EXCLUDE_UNLINKED

_HEAD = struct.Struct("iIII")
_READ_BYTES = 1 << 16
_LIMIT = "/proc/sys/fs/inotify/max_user_watches"
_UNKNOWN_LIMIT = 8192


class Told(NamedTuple):
    """One event: the watch (-1: none), what happened (bits), the name in its folder (empty: the folder itself)."""

    watch: int
    mask: int
    name: str


def limit() -> int:
    """How many folders this user may watch, all programs together."""
    try:
        with open(_LIMIT, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return _UNKNOWN_LIMIT


class Inotify:
    """An open queue of events. Raises OSError where the system has none, or gives none any more; close it when done."""

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise OSError(errno.ENOSYS, "no inotify on this system")
        import ctypes

        self._libc: Any = ctypes.CDLL(None, use_errno=True)
        self.fd = self._call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)

    def _call(self, name: str, *arguments: Any) -> int:
        import ctypes

        result = int(getattr(self._libc, name)(*arguments))
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result

    def add(self, folder: int) -> int:
        """Watch an open folder; the number of the watch, the same again for the same folder. Raises OSError: ENOSPC
        when the user has no watches left.
        """
        return self._call("inotify_add_watch", self.fd, b"/proc/self/fd/%d" % folder, MASK)

    def remove(self, watch: int) -> None:
        """Watch no more; harmless for a watch that is gone."""
        with suppress(OSError):
            self._call("inotify_rm_watch", self.fd, watch)

    def read(self) -> Iterator[Told]:
        """What has happened since the last call; never waits."""
        try:
            block = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return
        at = 0
        while at < len(block):
            watch, mask, _, length = _HEAD.unpack_from(block, at)
            at += _HEAD.size
            name = block[at : at + length].rstrip(b"\0")
            at += length
            yield Told(watch, mask, os.fsdecode(name))

    def close(self) -> None:
        """Give the queue back; twice is harmless."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
