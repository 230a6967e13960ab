"""Look at many things with several processes at once: plain values in, plain values out, nothing is changed.

For the rerun with nothing to do, whose time goes into two `stat` calls a file, half of it under the interpreter's
lock. A fork costs a few milliseconds and imports nothing. What a fork could not answer is simply not in the result.
"""

from __future__ import annotations

import marshal
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

_DEATH_SIGNAL, _KILL = 1, 9  # PR_SET_PDEATHSIG of prctl(2), SIGKILL


def can_fork() -> bool:
    """Is this Linux, and a process without other threads? (A fork copies none of them.)"""
    return sys.platform == "linux" and threading.active_count() == 1


def spread(look: Callable[[Any], dict[Any, Any]], parts: Sequence[Any]) -> dict[Any, Any]:
    """What ``look(part)`` finds for all parts together: the first in this process, each other one in a fork of it."""
    forks = [_fork(look, part) for part in parts[1:]]
    found: dict[Any, Any] = {}
    try:
        if parts:
            found |= look(parts[0])
    finally:
        for pid, end in forks:
            with os.fdopen(end, "rb") as stream, suppress(EOFError, ValueError, TypeError):
                found |= marshal.loads(stream.read())  # noqa: S302  (from a fork of ourselves)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
    return found


def die_with(parent: int) -> None:
    """End this process when its parent does, however that dies."""
    import ctypes

    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, _KILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def _fork(look: Callable[[Any], dict[Any, Any]], part: Any) -> tuple[int, int]:
    reading, writing = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        os.close(reading)
        die_with(parent)
        with os.fdopen(writing, "wb") as stream:
            stream.write(marshal.dumps(look(part)))
    finally:
        os._exit(0)
