"""The root of a source that grows, and the way from it to each folder.

Folders that were opened are held for a while, and a folder may be moved meanwhile: then the way leads to the one that
was. So all are forgotten at each pass, at the begin of a walk, and where a folder is seen to be another one; but never
while a caller holds one (`refresh` is called where nobody does).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import Any

from scopeferry.errors import Refused
from scopeferry.kernel import publish
from scopeferry.kernel.publish import Disk, Folders, system
from scopeferry.sources.tree import TreeSource


class Way:
    """Opens folders below the root while it is there. ``opened`` is called for each root that is opened (the first, and
    another mount of it later), ``back`` when one is there that was not.
    """

    def __init__(self, source: TreeSource, *, opened: Callable[[], None], back: Callable[[], None]) -> None:
        self._source, self._opened, self._back = source, opened, back
        self._steady = source.disk.steady
        self._folders: Folders | None = None
        self._mounted: Disk | None = None
        self.moved = False  # a folder is not the one that may be held open
        self.absent_since: float | None = None

    @property
    def is_open(self) -> bool:
        """Is a root held open?"""
        return self._folders is not None

    def close(self) -> None:
        """Give back all descriptors; twice is harmless."""
        if self._folders is not None:
            self._folders.close()
            self._folders = None

    # -- the root ------------------------------------------------------------------------------------------------------

    def present(self, *, anew: bool = False) -> bool:
        """Is the root there, and the one that we hold open? ``anew``: another mount of it will do as well."""
        try:
            if self._folders is None or not self._is_ours():
                if not anew or not self._source.present() or not self._same_disk():
                    raise FileNotFoundError(errno.ENOENT, "not there", self._source.root)
                self._begin()
        except OSError:
            if self.absent_since is None:
                self.absent_since = time.monotonic()
            return False
        if self.absent_since is not None and anew:
            self.absent_since = None
            self._back()
        return self.absent_since is None

    def _begin(self) -> None:
        folders = self._source.folders()
        self.close()
        self._folders, self._mounted = folders, publish.disk(self._source.root)
        self._opened()

    def _same_disk(self) -> bool:
        """Is it no bare mount point where a mount was?"""
        return not self._mounted or publish.disk(self._source.root) == self._mounted

    def _is_ours(self) -> bool:
        there = system.open_root(self._source.root)
        try:
            one, held = system.folder_stat(there), self._held_root()
            return held is not None and (one.st_dev, one.st_ino) == (held.st_dev, held.st_ino)
        finally:
            system.close_folder(there)

    def _held_root(self) -> os.stat_result | None:
        """The root that we hold open; None if nobody answers for it any more: it was unmounted."""
        assert self._folders is not None
        try:
            return system.folder_stat(self._folders.root)
        except OSError:
            return None

    # -- folders -------------------------------------------------------------------------------------------------------

    def open(self, path: str) -> Any:
        """The folder at `path`, for the next few calls. Raises OSError or Refused."""
        assert self._folders is not None
        return self._folders.open(path)

    def forget(self) -> None:
        """Find every way anew."""
        if self._folders is not None:
            self._folders.forget()
            self.moved = False

    def refresh(self) -> None:
        """Find the ways anew if a folder was moved; where nobody holds one."""
        if self.moved:
            self.forget()

    def lacks(self, folder: str, name: str) -> bool:
        """Is there certainly no such name?"""
        try:
            system.lstat(self.open(folder), name)
        except FileNotFoundError:
            return True
        except (OSError, Refused):
            return False
        return False

    def stands(self, path: str, inode: int) -> bool:
        """Is the folder of this inode the one of this path, below a root that is there?"""
        if not self.present():
            return False
        if not path:
            return True
        try:
            with self._source.folders() as folders:
                there = system.folder_stat(folders.open(path))
        except (OSError, Refused):
            return False
        return there.st_ino == inode or not self._steady
