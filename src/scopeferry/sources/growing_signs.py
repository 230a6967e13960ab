"""What is seen of a source that grows beside its files: all that the decision about its end is made from, but walks.

Bounded: of each kind so many paths are named (``limits.MOST_TOLD``), the rest are counted or left out.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection
from typing import Any

from scopeferry.errors import Refused
from scopeferry.kernel.publish import Mark
from scopeferry.sources import growing_limits as limits
from scopeferry.sources.gaps import Gaps
from scopeferry.sources.growing_folders import Folder
from scopeferry.sources.outbox import Version

_KEY = re.compile(r"(?:c\.)?[0-9]+(?:\.[0-9]+)*|c")  # what the last part of any chunk key looks like


class Signs:
    """Told of what is seen. ``steady``: change times of files are evidence."""

    def __init__(self, *, steady: bool) -> None:
        self._steady = steady
        self.gaps, self.key_gaps = Gaps(), Gaps()  # of all files; of those that are named as chunks are
        self.changes = self.failures = 0
        self.changed_s = time.monotonic()
        self.newest_change_ns = self.newest_file_ns = 0
        self.newest = ""
        self.temporary_names: dict[str, float] = {}  # path -> when it was first seen (monotonic)
        self.markers: dict[str, tuple[Version, float]] = {}  # path -> version, when it was seen (monotonic)
        self.marked = 0  # how often `markers` changed
        self.unreadable: dict[str, str] = {}  # path -> why
        self.special: set[str] = set()  # neither file, folder nor link
        self._went: list[str] = []
        self._said: set[str] = set()
        self._notes: list[str] = []

    def change(self) -> None:
        """Something is not as it was."""
        self.changes += 1
        self.changed_s = time.monotonic()

    # -- times ---------------------------------------------------------------------------------------------------------

    def note(self, found: Any) -> int:
        """The change time of something that changed."""
        at: int = found.st_ctime_ns if self._steady else found.st_mtime_ns
        if at > self.newest_change_ns:
            self.newest_change_ns = at
        return at

    def note_file(self, path: str, found: os.stat_result) -> None:
        """The same of a file."""
        at = self.note(found)
        if at > self.newest_file_ns:
            self.newest_file_ns, self.newest = at, path

    def note_pause(self, path: str, mtime_ns: int) -> None:
        """When a file was written; one of the future is no pause."""
        at_ns = min(mtime_ns, time.time_ns())
        self.gaps.add(at_ns)
        if _KEY.fullmatch(path.rpartition("/")[2]):
            self.key_gaps.add(at_ns)

    def note_change(self, path: str, mark: Mark) -> None:
        """Somebody else has seen this version of a file: if it is newer than all that we saw, something has changed."""
        at = mark.ctime_ns if self._steady else mark.mtime_ns
        if at > self.newest_change_ns:
            self.newest_change_ns = self.newest_file_ns = at
            self.newest = path
            self.change()

    # -- names ---------------------------------------------------------------------------------------------------------

    def temporary(self, folder: Folder, path: str) -> None:
        """A temporary name is there."""
        name = path.rpartition("/")[2]
        if folder.temporary is None:
            folder.temporary = set()
        if name not in folder.temporary and len(self.temporary_names) < limits.MOST_TOLD:
            folder.temporary.add(name)
            self.temporary_names[path] = time.monotonic()
            self.change()

    def went_away(self, folder: Folder, names: Collection[str]) -> None:
        """These temporary names are there no more."""
        for name in list(names):
            path = folder.join(name)
            self.temporary_names.pop(path, None)
            if folder.temporary is not None:
                folder.temporary.discard(name)
            if len(self._went) < limits.MOST_TOLD:
                self._went.append(path)
            self.change()
        if not folder.temporary:
            folder.temporary = None

    def marker(self, folder: Folder | None, path: str, version: Version) -> None:
        """A marker is there: it says what it says, copied or not."""
        if folder is not None:
            folder.marker = True
        if path not in self.markers or self.markers[path][0] != version:
            self.markers[path] = (version, time.monotonic())
            self.marked += 1

    def unmark(self, path: str) -> None:
        """A marker that is there no more says nothing."""
        del self.markers[path]
        self.marked += 1

    def add_special(self, path: str) -> None:
        """Neither file, folder nor link."""
        if len(self.special) < limits.MOST_TOLD:
            self.special.add(path)

    def unread(self, path: str, error: OSError | Refused) -> bool:
        """Note what cannot be read; was it so before? What stays so does not make every walk worthless."""
        before = path in self.unreadable
        if before or len(self.unreadable) < limits.MOST_TOLD:
            self.failures += not before
            self.unreadable[path] = str(error)
        return before

    def readable(self, path: str) -> None:
        """It can be read, or is there no more."""
        if self.unreadable:
            self.unreadable.pop(path, None)

    # -- what is told --------------------------------------------------------------------------------------------------

    def say(self, note: str) -> None:
        """Something that a person should know, once."""
        if note not in self._said:
            self._said.add(note)
            self._notes.append(note)

    def take_went(self) -> list[str]:
        """Temporary names that went away since the last call."""
        went, self._went = self._went, []
        return went

    def take_notes(self) -> list[str]:
        """What was said since the last call."""
        notes, self._notes = self._notes, []
        return notes
