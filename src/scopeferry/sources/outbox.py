"""What was found and may go: in which order, and how soon again. Pure: it looks at no file and no clock.

Order: metadata, then what was just written (its bytes are still in memory: no read on the instrument's disk), then what
is gone, then the backlog, oldest first, and at the very end what marks the end. A key that goes out stays out until it
is settled: never two versions of one key at once. Its first version goes at once. Each further change holds the next
one off, 0.5 s doubling to 30 s, so that a chunk filled in shots is not copied with every shot; metadata is held off a
second and then goes after what was ready before it. At the end nothing is held off.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import NamedTuple

METADATA, CHUNK, MARKER = 0, 1, 2  # ranks

FIRST_HOLD_S, LONGEST_HOLD_S, METADATA_HOLD_S = 0.5, 30.0, 1.0
CALM_S = 60.0  # a key that did not change for so long (and twice its hold) begins anew


class Version(NamedTuple):
    """What tells one version of a file from another, as a row of the journal says it: ``Row.source`` is the
    fingerprint.
    """

    size: int
    mtime_ns: int
    fingerprint: int


class Found(NamedTuple):
    """A file (or link, see `mode`) that is whole and not done in this version.

    ``inode`` and ``ctime_ns`` are 0 where they are no evidence. ``before``: the version that is done, None if there is
    none. ``fresh``: written a moment ago.
    """

    path: str
    size: int
    mtime_ns: int
    inode: int
    ctime_ns: int
    mode: int
    links: int
    fingerprint: int
    rank: int = CHUNK
    before: Version | None = None
    fresh: bool = True

    @property
    def version(self) -> Version:
        """As the journal keeps it."""
        return Version(self.size, self.mtime_ns, self.fingerprint)


@dataclass(frozen=True, slots=True)
class Gone:
    """A file that is done, and whose name two listings in turn lacked while its folder stands."""

    path: str


_IDLE, _HELD, _QUEUED = range(3)


class _File:
    __slots__ = ("due", "found", "newer", "out", "state")

    def __init__(self) -> None:
        self.found: Found | Gone | None = None
        self.out: Found | Gone | None = None
        self.state = _IDLE
        self.newer = False
        self.due = 0.0


class _Changes:
    __slots__ = ("at", "count", "since")

    def __init__(self, at: float) -> None:
        self.at = self.since = at
        self.count = 0


class Outbox:
    """All that waits to go out and all that is out. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self._changes: OrderedDict[str, _Changes] = OrderedDict()
        self._first: deque[_File] = deque()
        self._fresh: deque[_File] = deque()
        self._gone: deque[_File] = deque()
        self._backlog: list[tuple[int, int, _File]] = []
        self._last: deque[_File] = deque()
        self._held: list[tuple[float, int, _File]] = []
        self._number = 0
        self.queued = self.out = self.held = 0

    def __len__(self) -> int:
        """How many keys wait, are held off or are out."""
        return len(self._files)

    def latest(self, path: str) -> Version | None:
        """The newest version of a path that was offered and is not settled."""
        file = self._files.get(path)
        found = None if file is None else (file.found or file.out)
        return found.version if isinstance(found, Found) else None

    def waiting(self) -> list[str]:
        """What was offered and has not gone."""
        return [path for path, file in self._files.items() if file.state != _IDLE]

    def offer(self, found: Found, now: float, *, further: bool, ending: bool = False) -> None:
        """A version that may go. ``further``: an earlier one went before, also in an earlier run."""
        file = self._files.get(found.path)
        if file is None:
            file = self._files[found.path] = _File()
        if file.out is not None:
            file.newer = True
            return
        if file.state == _QUEUED:
            if isinstance(file.found, Gone):  # the name is back
                self._leave(file)
            else:
                file.found = found
                return
        file.found = found
        delay = 0.0
        if found.rank < MARKER and not ending and (further or found.path in self._changes):
            delay = self._hold(found, now, held=file.state == _HELD)
        self._leave(file)
        if delay > 0:
            file.state, file.due = _HELD, now + delay
            self.held += 1
            self._number += 1
            heapq.heappush(self._held, (file.due, self._number, file))
        else:
            self._enter(file, found, first=not further)

    def _enter(self, file: _File, found: Found, *, first: bool) -> None:
        file.state = _QUEUED
        if found.rank >= MARKER:
            self._last.append(file)
            return
        self.queued += 1
        if found.rank == METADATA and first:
            self._first.append(file)
        elif found.fresh:
            self._fresh.append(file)
        else:
            self._number += 1
            heapq.heappush(self._backlog, (found.mtime_ns, self._number, file))

    def _leave(self, file: _File) -> None:
        if file.state == _HELD:
            self.held -= 1
        elif file.state == _QUEUED and not (isinstance(file.found, Found) and file.found.rank >= MARKER):
            self.queued -= 1
        file.state = _IDLE

    def _hold(self, found: Found, now: float, *, held: bool) -> float:
        """How long this version is held off. While it is held, further changes make it longer, but for 30 s in all."""
        path = found.path
        changes = self._changes.get(path)
        if changes is None:
            changes = self._changes[path] = _Changes(now)
        last, changes.at = changes.at, now
        self._changes.move_to_end(path)
        if found.rank == METADATA:
            if not held:
                changes.since = now
            return max(0.0, changes.since + METADATA_HOLD_S - now)
        if now - last > CALM_S + 2 * self._doubled(changes.count):
            changes.count = 0
        if not held:
            changes.since = now
        changes.count += 1
        return min(self._doubled(changes.count), max(0.0, changes.since + LONGEST_HOLD_S - now))

    @staticmethod
    def _doubled(count: int) -> float:
        return min(LONGEST_HOLD_S, FIRST_HOLD_S * 2.0 ** min(count - 1, 16))

    def offer_gone(self, path: str) -> bool:
        """A name that is no more; False if a version of it is out, then say it again later."""
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = _File()
        if file.out is not None:
            return False
        if not isinstance(file.found, Gone):
            self._leave(file)
            file.found, file.state = Gone(path), _QUEUED
            self.queued += 1
            self._gone.append(file)
        return True

    def back(self, path: str) -> None:
        """A name that was said to be gone is there again."""
        file = self._files.get(path)
        if file is not None and isinstance(file.found, Gone):
            self.withdraw(path)

    def withdraw(self, path: str) -> None:
        """It is not to go after all: not whole any more, or there no more."""
        file = self._files.get(path)
        if file is not None:
            self._leave(file)
            file.found = None
            if file.out is None:
                del self._files[path]

    def take(self, now: float, *, ending: bool = False) -> Found | Gone | None:
        """The next to go. It is out then, until it is settled."""
        held = self._held
        while held and (ending or held[0][0] <= now):
            due, _, file = heapq.heappop(held)
            if file.state == _HELD and file.due == due and isinstance(file.found, Found):
                self._leave(file)
                file.state = _QUEUED
                self.queued += 1
                self._fresh.append(file)
        for queue in (self._first, self._fresh, self._gone):
            while queue:
                found = self._go(queue.popleft())
                if found is not None:
                    return found
        while self._backlog:
            found = self._go(heapq.heappop(self._backlog)[2])
            if found is not None:
                return found
        return None

    def take_last(self) -> Found | Gone | None:
        """A marker, when everything else has gone and is settled."""
        while self._last and self.out == 0:
            found = self._go(self._last.popleft())
            if found is not None:
                return found
        return None

    def _go(self, file: _File) -> Found | Gone | None:
        if file.state != _QUEUED:
            return None
        found = file.found
        self._leave(file)
        file.out, file.found = found, None
        self.out += 1
        return found

    def settled(self, path: str) -> bool:
        """It is out no more. True if its name has changed since, or may have come back."""
        file = self._files.get(path)
        if file is None or file.out is None:
            return False
        self.out -= 1
        del self._files[path]
        return file.newer or isinstance(file.out, Gone)

    def changed(self, path: str, now: float) -> None:
        """What went out was no use, for it changed meanwhile: its next version is a further one."""
        self._changes.setdefault(path, _Changes(now))

    def forget_calm(self, now: float) -> None:
        """Drop what is known of keys that have not changed for long."""
        while self._changes:
            path, changes = next(iter(self._changes.items()))
            if now - changes.at <= CALM_S + 2 * LONGEST_HOLD_S:
                return
            del self._changes[path]
