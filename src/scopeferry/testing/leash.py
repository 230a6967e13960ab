"""A command of ours as a child that never outlives its parent, however that dies.

The parent holds the writing end of a pipe and writes nothing. The child reads, in a thread: when the read ends, nobody
holds the other end any more, and it ends at once, as if killed. On Windows it waits for the parent's process instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

KILLED = 137


@contextmanager
def leashed(words: Sequence[str], **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    """``scopeferry WORDS...`` as a child of this process; `how` goes to Popen. What still runs on leaving is killed."""
    end, held = os.pipe()
    windows = sys.platform == "win32"
    leash = os.getpid() if windows else end
    if not windows:
        how["pass_fds"] = (end,)
    try:
        command = [sys.executable, "-m", __name__, str(leash), *words]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, **how) as child:
            try:
                yield child
            finally:
                child.kill()
    finally:
        os.close(end)
        os.close(held)


def _run(leash: int) -> None:
    """Be the command in this process."""
    import runpy

    threading.Thread(target=_end_with_parent, args=(leash,), daemon=True, name="leash").start()
    runpy.run_module("scopeferry", run_name="__main__", alter_sys=True)


def _end_with_parent(leash: int) -> None:
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.windll.kernel32
        kernel.OpenProcess.restype = ctypes.c_void_p
        kernel.WaitForSingleObject(ctypes.c_void_p(kernel.OpenProcess(0x00100000, False, leash)), 0xFFFFFFFF)
    else:
        os.read(leash, 1)
    os._exit(KILLED)


if __name__ == "__main__":
    sys.argv[1:], number = sys.argv[2:], int(sys.argv[1])
    _run(number)
