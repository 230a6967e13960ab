"""The two standard streams, as a long run needs them: closing one, or a full disk under it, never stops the run.

Data goes to stdout. What is said to a person goes to stderr: lines, and in a terminal one line at the bottom that is
drawn again at most ten times a second and never wraps. In a pipe, with ``TERM=dumb`` or in CI there are no control
characters.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from scopeferry.logs import printable
from scopeferry.reports.units import width

REDRAW_S = 0.1
FLUSH_S = 0.1
COLUMNS = 80
ROWS = 24


def keep_standard_descriptors() -> None:
    """Open what is closed of 0, 1 and 2 on nothing, so that no file of ours ever becomes a standard stream."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


class Stream:
    """A text stream that may be gone."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._flushed = 0.0
        encoding = getattr(stream, "encoding", None) or "utf-8"
        self.encoding = encoding
        self.ascii_only = encoding.lower().replace("_", "-") in {"ascii", "us-ascii", "ansi-x3.4-1968", "646"}

    @property
    def tty(self) -> bool:
        """Is it a terminal?"""
        return self._guarded(lambda stream: stream.isatty()) is True

    def write(self, text: str) -> None:
        """Write; characters that the encoding lacks are escaped."""
        text = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        self._guarded(lambda stream: stream.write(text))

    def flush(self, *, at_least_s: float = 0.0) -> None:
        """Hand over what was written, unless that has been done within the last `at_least_s`."""
        now = time.monotonic()
        if now - self._flushed >= at_least_s:
            self._flushed = now
            self._guarded(lambda stream: stream.flush())

    @property
    def columns(self) -> int:
        """Its width now; terminals change."""
        found = self._guarded(lambda stream: os.get_terminal_size(stream.fileno()).columns)
        return int(found or COLUMNS)

    @property
    def rows(self) -> int:
        """Its height now."""
        found = self._guarded(lambda stream: os.get_terminal_size(stream.fileno()).lines)
        return int(found or ROWS)

    def _guarded(self, act: Callable[[Any], Any]) -> Any:
        if self._stream is None:
            return None
        try:
            return act(self._stream)
        except BlockingIOError:
            return None
        except (OSError, ValueError):
            self._give_up()
            return None

    def _give_up(self) -> None:
        """Nobody reads it any more: let what is left, and the interpreter's own flush at its end, go nowhere."""
        stream, self._stream = self._stream, None
        try:
            fd = stream.fileno()
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, fd)
            os.close(nothing)
            stream.flush()
        except (OSError, ValueError):
            pass


class Console:
    """Both streams of one command."""

    def __init__(self) -> None:
        self.out, self.err = Stream(sys.stdout), Stream(sys.stderr)
        self.args: Any = None  # the options, once they are understood
        self.live = self.err.tty and _can_draw()
        self.color = self.live and not os.environ.get("NO_COLOR")
        self._drawn = 0  # the width of what is drawn, and of the lines above it
        self._above: list[int] = []
        self._drawn_at = 0.0

    def data(self, text: str) -> None:
        """Lines of data to stdout."""
        self.out.write(text + "\n")
        self.out.flush(at_least_s=FLUSH_S)

    def say(self, line: str) -> None:
        """A line for a person, above the line that is drawn."""
        self.erase()
        self.err.write(self._painted(printable(line)) + "\n")
        self.err.flush()

    def tick(self) -> None:
        """Hand over what waits."""
        self.out.flush(at_least_s=FLUSH_S)

    def draw(self, text: Callable[[int], str]) -> None:
        """Draw the line (or lines) at the bottom anew, if it is time; `text` makes it for a number of columns."""
        now = time.monotonic()
        if now - self._drawn_at >= REDRAW_S:
            self._drawn_at = now
            columns = max(1, self.err.columns - 1)
            lines = text(columns).split("\n")
            below = "\x1b[J" if self._above else ""
            self.err.write(self._back(columns) + "\x1b[K\n".join(lines) + "\x1b[K" + below)
            self.err.flush()
            *self._above, self._drawn = map(width, lines)

    def erase(self) -> None:
        """Take what is drawn away."""
        if self._drawn or self._above:
            self.err.write(self._back(max(1, self.err.columns - 1)) + "\x1b[J")
            self._drawn, self._above = 0, []

    def close(self) -> None:
        """Take the drawn line away and hand over everything."""
        self.erase()
        self.out.flush()
        self.err.flush()

    def _back(self, columns: int) -> str:
        """To where drawing began: up over lines, and where a narrowed terminal has wrapped them."""
        rows = len(self._above) + sum(max(0, wide - 1) // (columns + 1) for wide in (*self._above, self._drawn))
        return f"\x1b[{rows}A\r" if rows else "\r"

    def _painted(self, line: str) -> str:
        if self.color and line.startswith("exit "):
            head, colon, rest = line.partition(":")
            return f"\x1b[{32 if head == 'exit 0' else 31}m{head}{colon}\x1b[0m{rest}"
        return line


def _can_draw() -> bool:
    if os.environ.get("TERM") == "dumb" or os.environ.get("CI"):
        return False
    if sys.platform == "win32":
        return _windows_sequences()
    return True


def _windows_sequences() -> bool:
    """Have a Windows console understand escape sequences."""
    import ctypes

    kernel: Any = getattr(ctypes, "windll", None)
    mode = ctypes.c_ulong()
    handle = kernel.kernel32.GetStdHandle(-12)
    return bool(
        kernel.kernel32.GetConsoleMode(handle, ctypes.byref(mode))
        and kernel.kernel32.SetConsoleMode(handle, mode.value | 4)
    )
