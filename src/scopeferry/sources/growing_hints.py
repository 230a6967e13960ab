"""Which folders the kernel tells of, and what it told: hints, never needed for anything to be found.

A folder is watched before it is listed, so that nothing falls between. Watches are few: at most half of what this user
may have. Whatever is lost (a queue that ran over, a watch, the last free one) has its folders listed, and is said once.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from scopeferry.sources import _inotify
from scopeferry.sources import growing_limits as limits
from scopeferry.sources.growing_folders import Folder, Rounds
from scopeferry.sources.growing_signs import Signs


class Hints:
    """Watches folders and reads what is told of them, once it is open. ``temporary``: is this a temporary name?"""

    def __init__(self, rounds: Rounds, signs: Signs, temporary: Callable[[str], bool]) -> None:
        self._rounds, self._signs, self._temporary = rounds, signs, temporary
        self._inotify: _inotify.Inotify | None = None
        self._watched: OrderedDict[int, Folder] = OrderedDict()
        self._most = limits.FIRST_WATCHES

    def __len__(self) -> int:
        """How many folders are watched."""
        return len(self._watched)

    def open(self) -> None:
        """Begin anew, without any watch."""
        self.close()
        try:
            self._inotify = _inotify.Inotify()
        except OSError as error:
            self._signs.say(f"the system tells of no changes ({error.strerror}): scanning only")

    def close(self) -> None:
        """Watch nothing any more; twice is harmless."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
        self._watched.clear()

    # -- watches -------------------------------------------------------------------------------------------------------

    def watch(self, folder: Folder, handle: Any, inode: int) -> None:
        """Have the kernel tell of a folder that is open, before it is listed."""
        if self._inotify is None or (folder.watch >= 0 and folder.inode == inode):
            return
        self.unwatch(folder)
        if len(self._watched) >= self._most and not self._may_have_more():
            return
        try:
            folder.watch = self._inotify.add(handle)
        except OSError as error:
            self._most = min(self._most, max(1, len(self._watched)))
            self._signs.say(f"no more folders can be watched ({error.strerror}): the others are scanned")
            return
        self._watched[folder.watch] = folder

    def _may_have_more(self) -> bool:
        half = _inotify.limit() // 2
        if self._most < half and self._most >= limits.FIRST_WATCHES:
            self._most = min(half, 2 * self._most)
        if len(self._watched) < self._most:
            return True
        oldest = next(iter(self._watched.values()))
        if time.monotonic() - oldest.changed > limits.WATCHED_S:
            self.unwatch(oldest)
            self._rounds.soon(oldest)
            return True
        self._signs.say(f"{len(self._watched)} folders are watched, the most there may be: the others are scanned")
        return False

    def unwatch(self, folder: Folder) -> None:
        """Have it told of no more."""
        watch, folder.watch = folder.watch, -1
        if self._inotify is not None and self._watched.get(watch) is folder:
            del self._watched[watch]
            self._inotify.remove(watch)

    # -- what is told --------------------------------------------------------------------------------------------------

    def read(self) -> dict[Folder, set[str]]:
        """Names to look at, by folder; the rest of what was told is seen to here."""
        named: dict[Folder, set[str]] = {}
        if self._inotify is None:
            return named
        until = time.monotonic() + limits.SLICE_S / 2
        while time.monotonic() < until:
            count = 0
            for told in self._inotify.read():
                count += 1
                self._take(told, named)
            if not count:
                break
        return named

    def _take(self, told: _inotify.Told, named: dict[Folder, set[str]]) -> None:
        if told.mask & _inotify.OVERFLOW:
            self._signs.say("more changes than the system could tell of: everything is scanned")
            for each in self._watched.values():
                self._rounds.want(each)
            return
        folder = self._watched.get(told.watch)
        if folder is None:
            return
        if told.mask & (_inotify.IGNORED | _inotify.UNMOUNT):
            del self._watched[told.watch]
            folder.watch = -1
            self._rounds.soon(folder)
        elif told.name:
            self._watched.move_to_end(told.watch)
            self._take_name(folder, told, named)

    def _take_name(self, folder: Folder, told: _inotify.Told, named: dict[Folder, set[str]]) -> None:
        is_folder = bool(told.mask & _inotify.IS_FOLDER)
        if told.mask & _inotify.CREATE and not is_folder:
            self._temporary(folder.join(told.name))  # only begun: but its name tells how its array is written
        elif told.mask & _inotify.DELETE:
            self._rounds.soon(folder)
            if not is_folder and self._temporary(folder.join(told.name)):
                self._signs.went_away(folder, (told.name,))
        elif is_folder or not self._temporary(folder.join(told.name)):
            named.setdefault(folder, set()).add(told.name)
