"""The instrument's writer comes first: low priorities for our threads, and a rate that gives way when it is held up.

Priorities alone are not enough: what we flush competes with what it flushes. So while a writer is active a sample is
taken every 200 ms: was it held up? If for more than three quarters of that time, the rate falls to 0.6 of what it was;
else it rises by 8 MB/s. The first signal that can be had counts:

1. ``io.pressure`` of the writer's control group, if that is not ours (Linux, process known),
2. chunks that come later than their own rhythm,
3. the pressure of the whole system (``/proc/pressure/io``),
4. how long our own reads take.

When no writer is active (finished, or silent for 30 s) only the limit that was asked for holds.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable

from scopeferry.kernel.publish import system
from scopeferry.kernel.rate import PIECE_BYTES, TokenBucket

SAMPLE_S = 0.2
HELD_UP = 0.75
SLOWER, FASTER = 0.6, 8e6
START, FLOOR = 200e6, 5e6
SILENT_S = 30.0
_ONE_BURST_S = 0.02  # chunks written side by side
_RHYTHM = 32  # pauses that a rhythm is known from
_LATE, _PAUSE = 2.0, 10.0  # times the usual pause: late from here, no lateness but a pause from there
_PAUSE_S = 2.0
_SLOW = 4.0  # times the usual time of a read


def be_gentle(gentle: str = "auto") -> list[str]:
    """Give the calling thread, and those it starts, the lowest priority, unless `gentle` is ``off``.

    Answers notes: what could not be had. It cannot be taken back, so call it in threads of ours only.
    """
    return [] if gentle == "off" else system.step_back()


class Writer:
    """What is known of one writer. ``wrote`` for each chunk that was just written; ``finished`` when it has ended."""

    def __init__(self, pid: int | None = None) -> None:
        self._group = _Stalls(group_pressure(pid)) if pid is not None else None
        self.group_stalls(time.monotonic())
        self._lock = threading.Lock()
        self._at_s = 0.0  # of the last chunk, by the source's clock
        self._pauses: deque[float] = deque(maxlen=_RHYTHM)
        self._late_s = 0.0
        self._bytes: deque[tuple[float, int]] = deque(maxlen=1024)
        self._seen_s = -SILENT_S

    def wrote(self, mtime_ns: int, size_bytes: int) -> None:
        """A chunk was written at this time of the source."""
        at_s = mtime_ns / 1e9
        with self._lock:
            self._seen_s = time.monotonic()
            self._bytes.append((at_s, size_bytes))
            before, self._at_s = self._at_s, max(at_s, self._at_s)
            pause = at_s - before
            if not before or pause <= _ONE_BURST_S:
                return
            usual = self._usual()
            if usual is not None and _LATE * usual < pause < max(_PAUSE * usual, _PAUSE_S):
                self._late_s += pause - usual
            self._pauses.append(pause)

    def finished(self) -> None:
        """It writes no more."""
        self._seen_s = -SILENT_S

    @property
    def active(self) -> bool:
        """Has it written within 30 s?"""
        return time.monotonic() - self._seen_s < SILENT_S

    @property
    def rate(self) -> float | None:
        """Bytes per second of what was seen lately; None where that cannot be said."""
        with self._lock:
            times = sorted(at for at, _ in self._bytes)
            if len(times) < 8 or times[-1] - times[0] < 1.0:
                return None
            return sum(size for _, size in self._bytes) / (times[-1] - times[0])

    def _usual(self) -> float | None:
        """The usual pause between two bursts; None where there is no rhythm."""
        pauses = sorted(self._pauses)
        if len(pauses) < 8:
            return None
        usual = pauses[len(pauses) // 2]
        return usual if pauses[3 * len(pauses) // 4] <= 1.5 * usual <= 3 * pauses[len(pauses) // 4] else None

    def group_stalls(self, now: float) -> float | None:
        """The part of the time since the last call in which its control group was held up; None: not known."""
        return None if self._group is None else self._group.share(now)

    def lateness(self, took_s: float) -> float | None:
        """The part of the last `took_s` seconds by which its chunks came late; None without a rhythm."""
        with self._lock:
            late, self._late_s = self._late_s, 0.0
            return min(1.0, late / took_s) if self._usual() is not None or late else None


class Pace:
    """One rate for all targets: call it with bytes that are to be moved, and wait as many seconds as it says.

    ``limit`` in bytes/s, None for none; ``gentle`` is ``auto`` or ``off``. ``rate`` (bytes/s, None: not held back) and
    ``cause`` (one line, empty if not held back) say how it stands. For all threads.
    """

    def __init__(
        self, limit: float | None = None, *, gentle: str = "auto", pressure: str = "/proc/pressure/io"
    ) -> None:
        self.limit, self.gentle = limit, gentle != "off"
        self.rate: float | None = limit
        self.cause = "limit" if limit else ""
        self._allowed = START
        self._writers: list[Writer] = []
        self._system = _Stalls(pressure)
        self._reads: deque[float] = deque(maxlen=256)
        self._read_s = 0.0
        self._bucket = TokenBucket(limit or START)
        self._lock = threading.Lock()
        self._sampled_s = time.monotonic()
        self._moved = 0

    def writer(self, pid: int | None = None) -> Writer:
        """One more writer that comes before us; its process, if that is known."""
        writer = Writer(pid)
        with self._lock:
            self._writers.append(writer)
        return writer

    def read(self, size_bytes: int, took_s: float) -> None:
        """How long a read of the source took."""
        if size_bytes:
            with self._lock:
                self._read_s = max(self._read_s, took_s / size_bytes)
                self._reads.append(took_s / size_bytes)

    @property
    def piece_bytes(self) -> int:
        """How many bytes may be moved at once."""
        return PIECE_BYTES if self.rate is None else self._bucket.piece_bytes

    def __call__(self, size_bytes: int) -> float:
        """Seconds to wait before so many bytes."""
        with self._lock:
            now = time.monotonic()
            self._moved += size_bytes
            if now - self._sampled_s >= SAMPLE_S:
                self._sample(now)
            rate = self.rate
        if rate is None:
            return 0.0
        self._bucket.bytes_per_s = rate
        return self._bucket(size_bytes)

    def _sample(self, now: float) -> None:
        took, self._sampled_s = now - self._sampled_s, now
        moved, self._moved = self._moved / took, 0
        system_wide = self._system.share(now)
        active = [writer for writer in self._writers if writer.active] if self.gentle else []
        if not active:
            self.rate, self.cause = self.limit, "limit" if self.limit else ""
            return
        stalled, signal = self._stalled(active, system_wide, now, took)
        rates = [writer.rate for writer in active]
        floor = min([FLOOR, *(rate for rate in rates if rate)])
        if stalled > HELD_UP:
            self._allowed = max(floor, SLOWER * self._allowed)
        else:
            self._allowed = max(floor, min(self._allowed + FASTER, max(START, 2 * moved + FASTER)))
        if self.limit is not None and self.limit <= self._allowed:
            self.rate, self.cause = self.limit, "limit"
        else:
            self.rate = self._allowed
            self.cause = f"{signal}: held up {min(1.0, stalled):.0%} of the time" if signal else "writer active"

    def _stalled(self, active: list[Writer], system_wide: float | None, now: float, took: float) -> tuple[float, str]:
        """The part of the last time in which a writer was held up, and what says so: the first that can be had."""
        signals: list[tuple[str, Callable[[], list[float | None]]]] = [
            ("writer's io.pressure", lambda: [writer.group_stalls(now) for writer in active]),
            ("chunks late", lambda: [writer.lateness(took) for writer in active]),
            ("system's io.pressure", lambda: [system_wide]),
            ("slow reads", lambda: [self._slow_reads()]),
        ]
        for name, ask in signals:
            found = [share for share in ask() if share is not None]
            if found:
                return max(found), name
        return 0.0, ""

    def _slow_reads(self) -> float | None:
        if len(self._reads) < 32:
            return None
        usual = sorted(self._reads)[len(self._reads) // 4]
        slowest, self._read_s = self._read_s, 0.0
        return 1.0 if slowest > _SLOW * usual else 0.0


class _Stalls:
    """The ``some`` line of a pressure file (Linux, PSI): microseconds in which something was held up."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._last: tuple[float, int] | None = None

    def share(self, now: float) -> float | None:
        """The part of the time since the last call; None the first time, and where there is no such file."""
        total = self._total()
        before, self._last = self._last, None if total is None else (now, total)
        if total is None or before is None or now <= before[0]:
            return None
        return max(0.0, (total - before[1]) / 1e6 / (now - before[0]))

    def _total(self) -> int | None:
        if not self._path:
            return None
        try:
            with open(self._path, encoding="ascii") as file:
                first = file.readline()
            return int(first.rpartition("total=")[2]) if first.startswith("some") else None
        except (OSError, ValueError):
            return None


def group_pressure(pid: int, proc: str = "/proc") -> str:
    """The pressure file of a process's control group (cgroups(7), version 2), if that is not ours; else empty.

    Version 2 may be mounted anywhere, and only in part: ``mountinfo`` tells.
    """
    group = _group(f"{proc}/{pid}/cgroup")
    if not group or group in {"/", _group(f"{proc}/self/cgroup")}:
        return ""
    try:
        with open(f"{proc}/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                left, _, right = line.partition(" - ")
                root, point = left.split(" ")[3:5]
                inside = group.removeprefix(root.rstrip("/"))
                if right.startswith("cgroup2 ") and (root == "/" or inside != group):
                    path = f"{point}{inside}/io.pressure"
                    return path if os.path.exists(path) else ""
    except (OSError, ValueError):
        pass
    return ""


def _group(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as lines:
            return next((line[3:].rstrip("\n") for line in lines if line.startswith("0::")), "")
    except OSError:
        return ""
