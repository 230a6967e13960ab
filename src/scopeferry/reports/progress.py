"""Progress of one dataset: events and the counters of its control in, one line of text out. Pure: others draw it.

``NAME  copied %  verified %  files  bytes  rate  ETA``. What is shown is the work of this run. *verified* never exceeds
*copied*, and either is 100 % only when nothing is open: percentages are rounded down, a failed file keeps them below.

>>> from scopeferry.kernel.events import Event
>>> meter = Meter("run7", Counters(), clock=iter([0.0, 1.0, 2.0]).__next__)
>>> meter.tell(Event("found", items=2, bytes=2000, data={"plan": True}))
>>> meter.tell(Event("done", path="a", items=1, bytes=1500, data={"action": "copied", "read_back": "storage"}))
>>> meter.line(80, ascii_only=True)
'run7  copied 75 %  verified 75 %  1 of 2 files  1.50 kB'
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from scopeferry.errors import CODES
from scopeferry.kernel.events import Event
from scopeferry.reports.units import count, duration, percent, plain, shorten, size, width

RATE_S = 5.0
MIN_NAME = 8
FAILED = {3, 5}  # exit codes of an item that will not arrive; others are of the run, and the item stays open
_GAP = "  "


class Progressing(Protocol):
    """What counts bytes while files are in flight: ``kernel.task.Control``."""

    copied: int
    verified: int
    waiting: str


@dataclass(slots=True)
class Counters:
    """Counters that stand still: where a job has no control."""

    copied: int = 0
    verified: int = 0
    waiting: str = ""


@dataclass(slots=True)
class Meter:
    """Where one dataset stands. Feed it events with `tell`.

    ``proof`` is how much is read back (a value of ``--verify``).
    ``reads_only`` marks a job that reads what is there (`verify`): it has no *copied*. ``heals``: it has read, and now
    sets right what it found (`repair`).
    """

    name: str
    counters: Progressing
    proof: str = "full"
    reads_only: bool = False
    heals: bool = False
    clock: Callable[[], float] = time.monotonic
    total_items: int = 0
    total_bytes: int | None = None
    items: int = 0
    failed: int = 0
    differing: int = 0
    found_items: int = 0
    found_bytes: int = 0
    state: str = "starting"
    _proved_items: int = 0
    _settled: int = 0
    _proved: int = 0
    _before: int = 0  # bytes, until it began to heal
    _samples: deque[tuple[float, int, int]] = field(default_factory=deque)
    _began: float = 0.0
    _path: str = ""

    def __post_init__(self) -> None:
        self._began = self.clock()

    def tell(self, event: Event) -> None:
        """Take note of what happened."""
        if event.kind == "done":
            self._done(event)
        elif event.kind == "failed":
            again = event.data.get("code") == "SF-201"  # such a file is listed again
            if (
                self.reads_only and not self.heals
            ):  # what differs has been looked at as well; one item may differ in several ways
                self.items += event.items * (event.path != self._path)
                self.differing += event.path != self._path
                self._path = event.path
            else:
                self.failed += CODES.get(event.data.get("code", ""), (3,))[0] in FAILED and not again
        elif event.kind == "found":
            self._found(event)

    def _found(self, event: Event) -> None:
        if event.data.get("heals"):
            self.heals, self.items, self.differing, self._settled = True, 0, 0, 0
            self._before = max(self.counters.copied, self.counters.verified)
            self._samples.clear()
            self._began = self.clock()
        if event.data.get("plan"):
            self.total_items = self.items + self.failed + event.items
            self.total_bytes = self.copied_bytes + event.bytes
            self.state = "repairing" if self.heals else "checking" if self.reads_only else "copying"
            return
        if self.total_bytes is None or self.open_items == 0:
            self.state = "listing again" if self.items or self.failed else "listing"
        self.found_items += event.items
        self.found_bytes += event.bytes

    def _done(self, event: Event) -> None:
        linked = event.data.get("kind") in {"link", "hardlink"}
        moved = 0 if linked else event.bytes
        proved = linked or event.data.get("read_back", "no") != "no" or event.data.get("action") == "checked"
        self.items += event.items
        self._settled += moved
        self._proved_items += event.items * proved
        self._proved += moved if proved else 0

    # -- where it stands -----------------------------------------------------------------------------------------------

    @property
    def open_items(self) -> int:
        """Items that are neither done nor failed."""
        return max(0, self.total_items - self.items - self.failed)

    @property
    def copied_bytes(self) -> int:
        """Bytes copied (or compared), those of files in flight included."""
        moving = max(self.counters.copied, self.counters.verified if self.reads_only else 0)
        return max(self._settled, moving - self._before)

    @property
    def verified_bytes(self) -> int:
        """Bytes read back; never more than were copied."""
        return min(self.copied_bytes, max(self._proved, self.counters.verified))

    @property
    def copied_percent(self) -> int:
        """100 only when every item is done."""
        return self._percent(self.copied_bytes, self.items)

    @property
    def verified_percent(self) -> int:
        """100 only when every item is proved; never more than is copied."""
        return min(self._percent(self.verified_bytes, self._proved_items), self.copied_percent)

    def _percent(self, done_bytes: int, done_items: int) -> int:
        if done_items >= self.total_items and not self.failed:
            return 100
        found = percent(done_bytes, self.total_bytes) if self.total_bytes else percent(done_items, self.total_items)
        return min(found, 99)

    def snapshot(self) -> dict[str, object]:
        """The same as numbers: for `status`."""
        return {
            "state": self.state, "items": self.items, "failed": self.failed, "total_items": self.total_items,
            "copied_bytes": self.copied_bytes, "verified_bytes": self.verified_bytes, "total_bytes": self.total_bytes,
            "copied_percent": self.copied_percent, "verified_percent": self.verified_percent,
        }  # fmt: skip

    # -- as text -------------------------------------------------------------------------------------------------------

    def line(self, columns: int, *, ascii_only: bool = False, ended: bool = False) -> str:
        """At most `columns` wide: the least important parts go first, then the name is shortened in the middle."""
        parts = self._parts(ended=ended)
        name = plain(self.name) if ascii_only else self.name
        while len(parts) > 1 and _wide(parts) + min(width(name), MIN_NAME) > columns:
            parts.remove(max(parts))  # the largest rank is the least important
        text = "".join(_GAP + part for _, part in parts)
        return shorten(shorten(name, columns - len(text), ascii_only=ascii_only) + text, columns, ascii_only=ascii_only)

    def _parts(self, *, ended: bool) -> list[tuple[int, str]]:
        """(rank, text) in the order shown; the part with the largest rank is the first to go when there is no room."""
        if self.counters.waiting and not ended:
            return [(0, f"waiting for the {self.counters.waiting}")]
        if self.total_bytes is None:
            found = [(0, self.state)]
            if self.found_items:
                found += [(1, count(self.found_items)), (2, f"{size(self.found_bytes)} so far")]
            return found
        did = "repaired" if self.heals else "checked" if self.reads_only else "copied"
        parts = [(0, f"{did} {self.copied_percent} %")]
        if self._all_read_back:
            parts.append((1, f"verified {self.verified_percent} %"))
        noun = "item" if self.reads_only else "file"
        some = f"{self.items:,} of {count(self.total_items, noun)}"
        done = some if self.items < self.total_items else count(self.items, noun)
        parts += [(6, done), (4, size(self.copied_bytes)), *self._speed(ended=ended)]
        if self.state == "listing again" and not ended:
            parts.append((7, self.state))
        if self.failed or self.differing:
            parts.append((2, f"{self.differing:,} differ" if self.differing else f"{self.failed:,} failed"))
        return parts

    @property
    def _all_read_back(self) -> bool:
        return self.proof in {"full", "all"} and not self.reads_only

    def _speed(self, *, ended: bool) -> list[tuple[int, str]]:
        now = self.clock()
        copied, verified = self.rates(now)
        if ended:
            copied = self.copied_bytes / (now - self._began) if now > self._began else 0
        if not copied:
            return []
        parts = [(5, f"{size(copied)}/s")]
        left = self._time_left(copied, verified)
        if not ended and left:
            parts.append((3, f"ETA {duration(left)}"))
        return parts

    def rates(self, now: float) -> tuple[float, float]:
        """Bytes/s copied and read back, the mean of the last 5 s."""
        samples = self._samples
        samples.append((now, self.copied_bytes, self.verified_bytes))
        while len(samples) > 2 and now - samples[1][0] >= RATE_S:
            samples.popleft()
        began, copied, verified = samples[0]
        if now <= began:
            return 0.0, 0.0
        return (self.copied_bytes - copied) / (now - began), (self.verified_bytes - verified) / (now - began)

    def _time_left(self, copied: float, verified: float) -> float | None:
        """Seconds until all is copied and, where all is read back, verified."""
        total = self.total_bytes or 0
        left = max(0, total - self.copied_bytes) / copied
        if self._all_read_back:
            if not verified:
                return None
            left = max(left, max(0, total - self.verified_bytes) / verified)
        return left


def _wide(parts: list[tuple[int, str]]) -> int:
    return sum(len(_GAP) + len(text) for _, text in parts)
