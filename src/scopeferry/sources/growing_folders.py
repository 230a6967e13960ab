"""The folders of a source that grows, and which of them is due when. Pure: it looks at no file.

Each folder is always in one of these places, or it would never be looked at again: due at a time (`schedule`), to be
checked in this pass (`checks`), wanted (`want`), or being listed (`listing`). Whoever takes it from one puts it into
another: a check that finds nothing schedules, a listing schedules when it ends, also when it fails.
"""

from __future__ import annotations

import heapq
import os
import time
from collections import deque
from collections.abc import Sized

from scopeferry.sources import growing_limits as limits


class Folder:
    """A folder: when it was listed, and what that told."""

    __slots__ = (
        "changed", "ctime_ns", "due", "empty", "inode", "listed", "marker", "missing", "mtime_ns", "path", "relist",
        "temporary", "told", "unread", "wanted", "watch",
    )  # fmt: skip

    def __init__(self, path: str) -> None:
        self.path = path
        self.mtime_ns = self.ctime_ns = self.inode = 0
        self.watch = -1
        self.changed = self.due = 0.0
        self.listed = -1.0  # when the last good listing began
        self.relist = self.unread = self.wanted = self.empty = self.marker = False
        self.missing: set[str] | None = None  # lacked by the last listing
        self.told: set[str] | None = None  # said to be gone
        self.temporary: set[str] | None = None

    def is_as(self, found: os.stat_result, *, steady: bool) -> bool:
        """Is it as it was listed? Where change times are evidence (`steady`) a time that was put back does not hide."""
        if found.st_mtime_ns != self.mtime_ns or found.st_ino != self.inode:
            return False
        return not steady or found.st_ctime_ns == self.ctime_ns

    def join(self, name: str) -> str:
        """The path of a name in it."""
        return f"{self.path}/{name}" if self.path else name


class Rounds:
    """All folders by path, and when each is due. Times are of ``time.monotonic``.

    ``looks_s`` says how long a look may take at most to be believed; ``files`` is what is looked at one by one.
    """

    def __init__(self, scan_interval_s: float, *, events: bool, most_look_s: float) -> None:
        self.scan_interval_s, self.events, self.most_look_s = scan_interval_s, events, most_look_s
        self.root = Folder("")
        self.by_path: dict[str, Folder] = {"": self.root}
        self.files: Sized = ()
        self.checks: deque[Folder] = deque()
        self.wanted: deque[Folder] = deque()
        self.listing: set[Folder] = set()
        self.crowded: set[Folder] = set()  # in which files are not whole that found no room
        self.unread: list[tuple[int, int, Folder]] = []
        self.pass_at = self.pass_began = 0.0
        self._due: list[tuple[float, int, Folder]] = []
        self._number = 0
        self._look_s = 5e-6
        self._checked_s, self._stretch = 0.0, 1.0
        self.want(self.root)

    def there(self, folder: Folder) -> bool:
        """Is it still the one of its path?"""
        return self.by_path.get(folder.path) is folder

    def above(self, path: str) -> Folder | None:
        """The folder in which a path lies, if it is known."""
        return self.by_path.get(path.rpartition("/")[0])

    def add(self, path: str) -> Folder:
        """A new folder."""
        folder = self.by_path[path] = Folder(path)
        return folder

    def remove(self, folder: Folder) -> None:
        """A folder that is no more."""
        del self.by_path[folder.path]
        self.crowded.discard(folder)

    # -- when ----------------------------------------------------------------------------------------------------------

    def want(self, folder: Folder, *, first: bool = False) -> None:
        """Have a folder listed; ``first``: before those that are listed to see what there is."""
        if not folder.wanted:
            folder.wanted = True
            if first:
                self.wanted.appendleft(folder)
            else:
                self.wanted.append(folder)

    def want_all(self) -> None:
        """Have every folder listed, and nothing of what was begun go on."""
        self.wanted.clear()
        self.listing.clear()
        for folder in self.by_path.values():
            folder.watch = -1
            folder.missing = None
            folder.wanted = False  # also where it was taken for a listing that never began
            self.want(folder)

    def next_wanted(self) -> Folder | None:
        """Whose turn it is to be listed. Never two listings of one folder at once."""
        for _ in range(len(self.wanted)):
            folder = self.wanted.popleft()
            if folder in self.listing:
                self.wanted.append(folder)
            elif folder.wanted and self.there(folder):
                return folder
        return None

    def soon(self, folder: Folder) -> None:
        """Have a folder listed in the next pass."""
        if not folder.relist:
            folder.relist = True
            self.schedule(folder, self.pass_began + self.scan_interval_s)

    def schedule(self, folder: Folder, due: float) -> None:
        """Have a folder checked at this time."""
        folder.due = due
        self._number += 1
        heapq.heappush(self._due, (due, self._number, folder))

    def schedule_calm(self, folder: Folder, now: float) -> None:
        """It was looked at, and did not change: the longer it is calm, the later again."""
        self.schedule(folder, self.pass_began + self._unless_watched(folder, self.after(now - folder.changed, 0.0)))

    def schedule_listed(self, folder: Folder, took: float) -> None:
        """It was listed: the longer that took, the later again."""
        if folder in self.crowded:
            folder.relist = True
            after = max(self.scan_interval_s, limits.CROWDED_S, limits.SHARE * took)
        elif folder.relist:
            after = max(self.scan_interval_s, limits.SHARE * took)
        else:
            after = self._unless_watched(folder, self.after(folder.listed - folder.changed, took))
        since = self.pass_began if after <= self.scan_interval_s else time.monotonic()
        self.schedule(folder, since + after)

    def _unless_watched(self, folder: Folder, after: float) -> float:
        return max(after, limits.WATCHED_S) if folder.watch >= 0 and self.events else after

    def begin_pass(self, now: float) -> None:
        """Have what is due by the end of this pass checked."""
        busy = self._checked_s * limits.SHARE > self.scan_interval_s
        self._stretch = min(limits.MOST_STRETCH, self._stretch * 1.5) if busy else max(1.0, self._stretch / 1.1)
        self._checked_s = 0.0
        until = now + self.scan_interval_s / 4
        found = []
        while self._due and self._due[0][0] <= until:
            due, _, folder = heapq.heappop(self._due)
            if folder.due == due and self.there(folder) and not folder.wanted:
                found.append(folder)
        found.sort(key=lambda folder: folder.path.rpartition("/")[0])  # siblings one after another: one way to them
        self.checks.extend(found)

    # -- what it costs -------------------------------------------------------------------------------------------------

    def after(self, age: float, took: float) -> float:
        """How long until something of this age, whose look took so long, is looked at again."""
        count = max(len(self.by_path), len(self.files))
        longest = max(
            limits.LONGEST_S * max(1.0, count / limits.FEW_FOLDERS),
            limits.SHARE * count * self._look_s,
        )
        return max(self.scan_interval_s, min(age / 20 * self._stretch, longest), limits.SHARE * took)

    def spent(self, began: float, looks: int) -> float:
        """What so many looks took: nothing is put off for hours because this process was stopped meanwhile."""
        return min(time.monotonic() - began, looks * self.most_look_s)

    def checked(self, began: float, looks: int) -> None:
        """So many folders were checked since then."""
        spent = self.spent(began, looks)
        self._checked_s += spent
        self._look_s += (spent / looks - self._look_s) / 8

    # -- what found no room --------------------------------------------------------------------------------------------

    def leave_unread(self, folder: Folder) -> bool:
        """Have it read when there is room; False if it was left already."""
        if folder.unread:
            return False
        folder.unread = True
        self._number += 1
        heapq.heappush(self.unread, (folder.mtime_ns, self._number, folder))
        return True

    def take_unread(self) -> Folder | None:
        """The oldest of them, if it is still there."""
        folder = heapq.heappop(self.unread)[2]
        if not folder.unread or not self.there(folder):
            return None
        folder.unread = False
        return folder
