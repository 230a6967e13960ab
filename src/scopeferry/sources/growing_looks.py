"""Which single files are looked at again, and when: those not yet whole, metadata, and what somebody asks for.

Growth in place moves no folder's time, so only looks find it soon. Pure: it looks at no file. Bounded: beyond
``limits.LOOKS`` a file is left to its folder, which is then listed again and again until there is room.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator

from scopeferry.sources import growing_limits as limits
from scopeferry.sources.growing_folders import Rounds
from scopeferry.sources.outbox import METADATA, Version


class Look:
    """A file that is looked at: in which version it was seen last."""

    __slots__ = ("changed", "due", "version", "waits")

    def __init__(self, now: float) -> None:
        self.changed = now
        self.due = 0.0
        self.version: Version | None = None
        self.waits = False  # not whole


class Looks:
    """Files by path, each due at a time of ``time.monotonic``, as its age says (`rounds`)."""

    def __init__(self, rounds: Rounds) -> None:
        self._rounds = rounds
        self.by_path: dict[str, Look] = {}
        self.again: set[str] = set()  # somebody asked for a look at them
        self._due: list[tuple[float, int, str]] = []
        self._number = 0
        rounds.files = self.by_path

    @property
    def not_whole(self) -> list[str]:
        """Paths of files that are not whole yet."""
        return [path for path, look in self.by_path.items() if look.waits]

    def any_unsettled(self, now: float) -> bool:
        """Is one not whole that changed a moment ago?"""
        return any(look.waits and now - look.changed < limits.SETTLES_S for look in self.by_path.values())

    def at(self, path: str, version: Version, most: int = 0) -> Look | None:
        """Have a file looked at now and then; None if there is no room for more."""
        look = self.by_path.get(path)
        now = time.monotonic()
        if look is None:
            if len(self.by_path) >= (most or limits.LOOKS):
                return None
            look = self.by_path[path] = Look(now)
            age = max(0.0, time.time() - version.mtime_ns / 1e9)
            look.changed, look.version = now - age, version
            self.schedule(path, look, now + self._rounds.after(age, 0.0))
        elif look.version != version:
            look.changed, look.version = now, version
            self.schedule(path, look, now + self._rounds.scan_interval_s)
        return look

    def soon(self, path: str, after_s: float) -> None:
        """Have a file looked at after so long, whatever is known of it."""
        look = self.by_path.get(path)
        now = time.monotonic()
        if look is None:
            look = self.by_path[path] = Look(now)
        self.again.add(path)
        self.schedule(path, look, now + after_s)

    def schedule(self, path: str, look: Look, due: float) -> None:
        """Have it looked at at this time."""
        look.due = due
        self._number += 1
        heapq.heappush(self._due, (due, self._number, path))

    def schedule_next(self, path: str, look: Look, now: float) -> None:
        """It was looked at; if it is still on the list and nothing else was said: the calmer, the later again."""
        if self.by_path.get(path) is look and look.due <= now:
            self.schedule(path, look, now + self._rounds.after(now - look.changed, 0.0))

    def had(self, path: str, look: Look | None, rank: int) -> None:
        """A look has been had, and it does not wait; metadata stays on the list."""
        if look is not None:
            look.waits = False
            if rank != METADATA and path not in self.again:
                self.by_path.pop(path, None)

    def forget(self, path: str) -> None:
        """No further look."""
        self.by_path.pop(path, None)
        self.again.discard(path)

    def is_due(self, now: float) -> bool:
        """Is any?"""
        return bool(self._due) and self._due[0][0] <= now

    def due(self, now: float) -> Iterator[tuple[str, Look]]:
        """Some that are due; each is to be scheduled again, or forgotten."""
        for _ in range(limits.LOOKS_AT_ONCE):
            if not self.is_due(now):
                return
            due, _, path = heapq.heappop(self._due)
            look = self.by_path.get(path)
            if look is not None and look.due == due:
                yield path, look
