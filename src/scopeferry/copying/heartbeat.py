"""A lock where the mount knows none: a file made with O_EXCL, touched every 30 s, taken over after 10 min of silence.

What may be taken over is judged and removed only by who holds a second file, made in the same way and held for this
moment alone: of two who find a silent lock the slower one would otherwise remove the lock that the faster one has just
taken. How long it has been silent is asked of the clock that stamps both files, the server's.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from contextlib import suppress
from typing import Any

from scopeferry.logs import host

HEARTBEAT_S = 30
SILENCE_S = 600

_alive: set[str] = set()  # runs of this process that have such a lock, or are about to


class Heartbeat:
    """`take` it, then `release` it."""

    def __init__(self, path: str, run: str) -> None:
        self.path, self.run = path, run
        self._stop = threading.Event()

    def take(self, facts: bytes) -> bool:
        """Is it ours now? Then the file holds `facts`, a JSON object with ``host``, ``pid`` and ``run``."""
        _alive.add(self.run)
        if _made(self.path, facts) or self._taken_over(facts):
            threading.Thread(target=self._beat, daemon=True, name="lock-heartbeat").start()
            return True
        _alive.discard(self.run)
        return False

    def release(self) -> None:
        """Give it back, if it is still ours; twice is harmless."""
        self._stop.set()
        _alive.discard(self.run)
        if holder(self.path).get("run") == self.run:  # where another disk is mounted now, another run may have it
            with suppress(OSError):
                os.unlink(self.path)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with suppress(OSError):
                os.utime(self.path)

    def _taken_over(self, facts: bytes) -> bool:
        taking = f"{self.path}.taking"
        now_s = _stamp(taking) if _made(taking, facts) else None
        if now_s is None:
            _remove_left(taking)
            return False
        try:
            if not self._is_left(now_s):
                return False
            with suppress(FileNotFoundError):
                os.unlink(self.path)
            return _made(self.path, facts)
        finally:
            with suppress(OSError):
                os.unlink(taking)

    def _is_left(self, now_s: float) -> bool:
        at_s = _stamp(self.path)
        return at_s is None or now_s - at_s > SILENCE_S or _has_ended(holder(self.path))


def holder(path: str) -> dict[str, Any]:
    """What a lock file says of the run that has it, or had it last; empty if it says nothing."""
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(4096))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _made(path: str, facts: bytes) -> bool:
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return False
    except PermissionError:  # what rclone says of a file that is there, and that the kernel has just not found
        if os.path.lexists(path):
            return False
        raise
    try:
        try:
            os.write(fd, facts)
        finally:
            os.close(fd)
    except OSError:
        with suppress(OSError):
            os.unlink(path)  # or we would find ourselves at work there
        raise
    return True


def _stamp(path: str) -> float | None:
    try:
        return os.stat(path).st_mtime
    except FileNotFoundError:
        return None


def _remove_left(taking: str) -> None:
    """Remove what somebody left who died while he took a lock over. The next who comes may try."""
    import time

    at_s = _stamp(taking)
    if at_s is not None and (time.time() - at_s > SILENCE_S or _has_ended(holder(taking))):
        with suppress(OSError):
            os.unlink(taking)


def _has_ended(facts: dict[str, Any]) -> bool:
    """Was this taken on this machine, by a process that is no more, or by a run of ours that has ended?"""
    pid = facts.get("pid")
    if facts.get("host") != host() or type(pid) is not int or pid <= 0 or sys.platform == "win32":
        return False
    if pid == os.getpid():
        return facts.get("run") not in _alive
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
