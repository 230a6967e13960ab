"""How a file gets its final name, and what is evidence that it is still the same file.

A *mark* is (inode, size, mtime_ns, ctime_ns). Where inodes and change times survive a mount they are evidence; on FAT,
FUSE and SMB only size and mtime are, and the others are 0. A rename or link changes ctime, so a mark is taken after it.

This module chooses ``_posix.py`` or ``_windows.py`` and is the only one that renames. It expects nothing of its
callers but folders and names; it knows no journal, no digest and no source.
"""

from __future__ import annotations

import os
import stat
import sys
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple, Self

from scopeferry.errors import ItemError, Refused
from scopeferry.kernel.digest import short

if sys.platform == "win32":
    from scopeferry.kernel import _windows

    system = _windows
else:
    from scopeferry.kernel import _posix

    system = _posix

Folder = system.Folder

LARGE = 16 << 20  # a temporary file of at least this size is continued by the next run
PART_PREFIX, PART_SUFFIX = ".sf-", ".part"
LAST_NS = (1 << 63) - 1  # the latest time that a journal holds
FEW = 16  # folders kept open by one `Folders`

#: The file systems whose inodes, change times and `syncfs` are what they say.
KERNEL_LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"}
#: Local ones where a flush is asked for file by file.
OTHER_LOCAL = {
    "tmpfs",
    "ramfs",
    "zfs",
    "overlay",
    "apfs",
    "hfs",
    "ntfs",
    "ntfs3",
    "refs",
    "bcachefs",
    "ufs",
    "jfs",
    "reiserfs",
}
#: Local ones that make up inode numbers at each mount.
UNSTEADY = {"vfat", "msdos", "exfat", "fat32", "fat"}
NETWORK = {
    "nfs", "nfs4", "cifs", "smb3", "smb2", "smbfs", "9p", "afs", "afpfs", "ceph", "lustre", "gpfs", "beegfs",
    "glusterfs", "orangefs", "ncpfs", "webdav", "virtiofs", "remote",
}  # fmt: skip
#: They take any name of 255 bytes, unless a folder is marked to fold names, and hold times in ns and all modes.
TAKES_ANY = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs", "ramfs"}
#: A file is written there from its first byte to its last: nothing is left out, and nothing that is there is continued.
IN_ORDER = {"fuse.rclone"}
IN_MEMORY = {"tmpfs", "ramfs", "zfs"}
FAT_LARGEST_BYTES = (4 << 30) - 1


class Mark(NamedTuple):
    """What a file was when we looked."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system, as far as it decides anything: ``read_back`` is what a read after a drop can be called."""

    type: str
    point: str
    device: str

    @property
    def network(self) -> bool:
        """Does another machine, or another program, answer for it?"""
        return self.type in NETWORK or "fuse" in self.type

    @property
    def steady(self) -> bool:
        """Are inode and change time evidence beyond one mount?"""
        return self.type in KERNEL_LOCAL or self.type in OTHER_LOCAL

    @property
    def flushes_whole(self) -> bool:
        """May one `syncfs` flush a batch?"""
        return self.type in KERNEL_LOCAL

    @property
    def reopens(self) -> bool:
        """Must a file be closed before its bytes are sent (FUSE)?"""
        return "fuse" in self.type  # also osxfuse, macfuse

    @property
    def in_order(self) -> bool:
        """Are files written there without a gap, and never continued?"""
        return self.type in IN_ORDER

    @property
    def read_back(self) -> str:
        """``storage``, ``server``, ``mount`` or ``memory``."""
        if self.type in NETWORK:
            return "server"
        if self.type in IN_MEMORY or self.type == "unknown":
            return "memory"
        return "storage" if self.type in KERNEL_LOCAL | OTHER_LOCAL | UNSTEADY else "mount"

    @property
    def largest_bytes(self) -> int | None:
        """The largest size of a file, where the type alone says it."""
        return FAT_LARGEST_BYTES if self.type in UNSTEADY - {"exfat"} else None


def disk(path: str) -> Disk:
    """The file system of an existing path."""
    return Disk(*system.mount(path))


def room(folder: Folder, disk: Disk) -> tuple[int, int]:
    """(free bytes, free inodes) for us; -1 inodes where they are not counted, or by a program that may make them up.

    ``rclone mount`` says that none is free, always.
    """
    free, inodes = system.room(folder)
    return free, -1 if disk.network else inodes


def takes_any_name(root: str, disk: Disk) -> bool:
    """Is it known, without asking it, that this destination, which need not exist yet, takes any name?"""
    if disk.type not in TAKES_ANY:
        return False
    try:
        with Folders(root) as folders:
            return not system.folds_names(folders.root)
    except FileNotFoundError:
        return True


def mark(entry: os.stat_result, *, steady: bool = True) -> Mark:
    """The mark of a `stat`; inode and change time are 0 where they are no evidence."""
    if steady:
        return Mark(entry.st_ino, entry.st_size, noted_ns(entry.st_mtime_ns), entry.st_ctime_ns)
    return Mark(0, entry.st_size, noted_ns(entry.st_mtime_ns), 0)


def noted_ns(time_ns: int) -> int:
    """A modification time as journal, record and marks have it: in 64 bits, so of the years 1677 to 2262.

    >>> noted_ns(1), noted_ns(1 << 64) == noted_ns(1 << 63)
    (1, True)
    """
    return max(-LAST_NS, min(time_ns, LAST_NS))


def noted_facts(entry: os.stat_result) -> os.stat_result:
    """A `stat` whose modification time is that of a mark."""
    if -LAST_NS <= entry.st_mtime_ns <= LAST_NS:
        return entry
    all_of_it = {name: getattr(entry, name) for name in dir(entry) if name.startswith("st_")}
    return os.stat_result(tuple(entry), all_of_it | {"st_mtime_ns": noted_ns(entry.st_mtime_ns)})


def move_folder(parent: Folder, old: str, new: str) -> None:
    """Give a folder of ours another name, under which nothing stands."""
    system.rename(parent, old, new)


def part_name(path: bytes, attempt: str) -> str:
    """The temporary name of a path; its length does not depend on the path's, and only one path has its first 16
    digits.
    """
    return f"{PART_PREFIX}{path_hash(path)}-{attempt}{PART_SUFFIX}"


def path_hash(path: bytes) -> str:
    """16 hex digits of the whole relative path."""
    return short(path)


def part_hash(name: str) -> str | None:
    """The path's 16 hex digits, if this is a temporary name of ours."""
    if name.startswith(PART_PREFIX) and name.endswith(PART_SUFFIX):
        middle = name[len(PART_PREFIX) : -len(PART_SUFFIX)]
        first, _, second = middle.partition("-")
        if len(first) == 16 and len(second) == 8 and not set(first + second) - set("0123456789abcdef"):
            return first
    return None


def batch_items(workers: int, most: int) -> int:
    """How many items a batch may have: all workers together hold at most half of the descriptors that this process may.

    An item takes two of them, a batch three sets of folders.
    """
    return max(1, min(most, (system.file_limit() // 2 // workers - 3 * FEW) // 2))


class Folders:
    """Folders below a root, opened name by name and never through a link. The last few stay open; close it when done.

    Paths are POSIX paths relative to the root, ``""`` is the root. Not for use by several threads at once.
    """

    def __init__(self, root: str) -> None:
        self._root = system.open_root(root)
        self._open: OrderedDict[str, Folder] = OrderedDict()  # what was asked for
        self._way: OrderedDict[str, Folder] = OrderedDict()  # what lay on the way to it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all folders; twice is harmless."""
        self.forget()
        if self._root is not None:
            system.close_folder(self._root)
            self._root = None  # type: ignore[assignment]

    def forget(self) -> None:
        """Close all folders but the root: where folders may be moved or made anew, the way to them is found again."""
        for some in (self._open, self._way):
            while some:
                system.close_folder(some.popitem()[1])

    @property
    def root(self) -> Folder:
        """The root."""
        return self._root

    def open(self, path: str, *, make: bool = False) -> Folder:
        """The folder at `path`; with `make`, what is missing of it is made. It stays open for the next few calls only.

        Raises Refused (SF-504) if a link, and (SF-502) if a file stands where a folder should be, else OSError.
        """
        if not path:
            return self._root
        folder = self._open.get(path)
        if folder is not None:
            self._open.move_to_end(path)
            return folder
        folder = self._way.pop(path, None)
        if folder is not None:
            self._keep(self._open, path, folder)
            return folder
        folder, head, at = self._root, path, ""
        while head:  # the nearest folder above that is open
            head = head.rpartition("/")[0]
            found = self._open.get(head, self._way.get(head))
            if found is not None:
                folder, at = found, head
                break
        opened = ""  # the path of `folder`, if it was opened here
        try:
            for name in path[len(at) :].strip("/").split("/"):
                at = f"{at}/{name}" if at else name
                child = self._enter(folder, name, at, make=make)
                if opened:
                    self._keep(self._way, opened, folder)
                folder, opened = child, at
        finally:
            if opened:
                self._keep(self._open if opened == path else self._way, opened, folder)
        return folder

    @staticmethod
    def _keep(some: OrderedDict[str, Folder], path: str, folder: Folder) -> None:
        """Kept apart, so that a long way never closes what was asked for in the last few calls."""
        some[path] = folder
        while len(some) > FEW // 2:
            system.close_folder(some.popitem(last=False)[1])

    def _enter(self, parent: Folder, name: str, path: str, *, make: bool) -> Folder:
        try:
            return self._enter_once(parent, name, path)
        except FileNotFoundError:
            if not make:
                raise
        try:
            system.make_folder(parent, name)
        except FileExistsError:  # another worker was faster
            pass
        except PermissionError:  # a read-only folder of ours
            system.open_up(parent)
            system.make_folder(parent, name)
        return self._enter_once(parent, name, path)

    @staticmethod
    def _enter_once(parent: Folder, name: str, path: str) -> Folder:
        try:
            return system.open_folder(parent, name)
        except OSError as error:
            try:
                entry = system.lstat(parent, name)
            except OSError:
                raise error from None
            if stat.S_ISLNK(entry.st_mode):
                raise Refused(f"a link stands where a folder should be: {path}", code="SF-504", path=path) from error
            if not stat.S_ISDIR(entry.st_mode):
                raise Refused(f"a file stands where a folder should be: {path}", code="SF-502", path=path) from error
            raise


def replace(part: str, path: str) -> None:
    """Give a file of ours outside any copy (manifest, receipt, journal) its name, over what stood there."""
    system.replace(part, path)


def publish(folder: Folder, part: str, name: str, expected: Mark | None, path: str) -> None:
    """Give `part` its final `name`, if what stands there is what the caller expects.

    `expected` None: nothing may stand there. Otherwise the file must still have this mark, and it is replaced. Where
    the system can exchange two names, the file that was replaced is looked at once more afterwards, and put back if it
    was another one. Raises Refused (SF-501 or SF-502) with nothing changed.
    """
    try:
        if expected is None:
            system.rename_new(folder, part, name)
            return
        _expect(folder, name, expected, path)
        if not system.exchange(folder, part, name):
            system.rename(folder, part, name)
            return
        was = system.lstat(folder, part)
        if (was.st_size, noted_ns(was.st_mtime_ns)) != (expected.size, expected.mtime_ns) or expected.inode not in {
            0,
            was.st_ino,
        }:
            system.exchange(folder, part, name)
            raise Refused(f"somebody wrote this at the destination meanwhile: {path}", code="SF-501", path=path)
        system.unlink(folder, part)
    except FileExistsError as error:
        raise Refused(f"somebody put this at the destination meanwhile: {path}", code="SF-501", path=path) from error


def _expect(folder: Folder, name: str, expected: Mark, path: str) -> None:
    try:
        entry = system.lstat(folder, name)
    except FileNotFoundError as error:
        raise ItemError(
            f"vanished at the destination while it was to be replaced: {path}", code="SF-211", path=path
        ) from error
    if stat.S_ISDIR(entry.st_mode):
        raise Refused(f"a folder stands where a file should be: {path}", code="SF-502", path=path)
    if mark(entry, steady=expected.inode != 0) != expected:
        raise Refused(f"somebody wrote this at the destination meanwhile: {path}", code="SF-501", path=path)
