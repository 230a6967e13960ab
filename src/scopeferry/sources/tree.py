"""A finished folder as a source: its files, read once, by descriptors, and never while they move unnoticed.

It knows nothing of a destination. Names are as the system decodes them (``surrogateescape``), paths are POSIX and
relative.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from scopeferry.errors import ItemError, Refused, ScopeferryError, SourceChanged, Temporary, UsageError
from scopeferry.kernel import publish
from scopeferry.kernel.asking import ask
from scopeferry.kernel.digest import Digests
from scopeferry.kernel.publish import Disk, Folders, Mark, system
from scopeferry.kernel.task import Control
from scopeferry.logs import printable
from scopeferry.stores.store import KEEP_DEFAULT, Attributes, SourceGoneError

RECENT_NS = 60_000_000_000  # a file changed within the last minute is written back before it is read
TICK_NS = 50_000_000  # times move in steps: a change within one step of another does not show
COARSE_TICK_NS = 2_000_000_000
LOOKED_AT, TRIED = 64, 3  # entries of the root, files among them, for one that can be read
OURS = ".scopeferry"  # a folder of exactly this name holds records of an earlier copy


@dataclass(frozen=True, slots=True)
class TreeSource:
    """A finished tree below `root`; picklable.

    ``keep``: what is read beside the bytes. ``identity``: (device, inode) of the root when the run began.
    ``in_place``: is this path written under its final name? Then, or where nobody knows, what is dirty is written back
    first. ``backlog``: has this file to be read from the disk? Then its cached pages are dropped afterwards; fresh ones
    stay for others. ``timed`` is told of each read: bytes, seconds.
    """

    root: str
    disk: Disk
    keep: frozenset[str] = KEEP_DEFAULT
    identity: tuple[int, int] | None = None
    in_place: Callable[[str], bool] | None = None
    backlog: Callable[[str], bool] | None = None
    timed: Callable[[int, float], None] | None = None

    def folders(self) -> Folders:
        """The folders of the tree, opened as they are needed."""
        return Folders(self.root)

    def present(self) -> bool:
        """Is the source still the folder that the run began with?"""
        try:
            found = os.stat(self.root)
        except OSError:
            return False
        if self.identity in {None, (found.st_dev, found.st_ino)}:
            return True
        return not self.disk.steady and publish.disk(self.root) == self.disk

    def answers(self) -> bool:
        """Is it there, and can it be read? Asked where an error may mean that the server is gone."""
        return self.present() and (not self.disk.network or ask(f"read {self.root}", self._gives_something))

    def _gives_something(self) -> bool:
        try:
            with self.folders() as folders:
                _read_something(folders.root)
        except OSError as error:
            return error.errno not in {errno.EIO, *system.GONE}
        return True

    def gone(self) -> ScopeferryError:
        """What is to be said of a source that does not answer."""
        return Temporary(f"source is gone: {printable(self.root)}", code="SF-322", path=self.root)

    def open(self, folders: Folders, path: str) -> SourceFile:
        """Open one regular file. Raises ItemError: vanished (SF-202), not readable (SF-203, SF-204), or
        SourceChanged.
        """
        head, _, name = path.rpartition("/")
        try:
            folder = folders.open(head)
            before = system.lstat(folder, name)
            if not stat.S_ISREG(before.st_mode):
                raise SourceChanged(f"is no longer a regular file: {printable(path)}", path=path)
            fd = system.open_source(folder, name)
        except OSError as error:
            raise self.translated(error, path) from error
        try:
            return SourceFile(self, folders, path, fd, before)
        except BaseException:
            os.close(fd)
            raise

    def attributes(self, entry: os.stat_result, xattrs: dict[str, bytes] | None = None) -> Attributes:
        """What is kept of an entry."""
        keep = self.keep
        return Attributes(
            entry.st_mode & (0o7777 if "owner" in keep else 0o1777) if "mode" in keep else None,
            entry.st_mtime_ns if "times" in keep else None,
            (entry.st_uid, entry.st_gid) if "owner" in keep else None,
            xattrs or {},
        )

    def kept_xattrs(self, fd: int) -> dict[str, bytes]:
        """The extended attributes of an open file that are kept."""
        keep = self.keep
        if not keep & system.ATTRIBUTES:
            return {}
        found = system.xattrs(fd, near=not self.disk.network)
        if not found:
            return found
        every = "owner" in keep and system.is_root()
        return {
            name: value
            for name, value in found.items()
            if (name.startswith(("system.posix_acl", "acl.")) and "acl" in keep)
            or (name.startswith("stream.") and "streams" in keep)
            or ("xattrs" in keep and (name.startswith("user.") or (every and not name.startswith("system."))))
        }

    def translated(self, error: OSError, path: str) -> ItemError:
        """An error of the source, as one of ours."""
        shown = printable(path)
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return ItemError(f"vanished before it was copied: {shown}", code="SF-202", path=path)
        if error.errno in {errno.ELOOP, errno.EMLINK}:
            return SourceChanged(f"became a link while it was to be read: {shown}", path=path)
        if isinstance(error, PermissionError):
            return ItemError(f"permission denied: {shown}", code="SF-203", path=path)
        if self.disk.network and not self.answers():
            return SourceGoneError(f"source is gone at {shown}: {error.strerror}", path=path)
        return ItemError(f"read error at the source: {shown}: {error.strerror or error}", code="SF-204", path=path)


class SourceFile:
    """One open file of a tree. See ``stores.store.Reader``."""

    def __init__(self, source: TreeSource, folders: Folders, path: str, fd: int, before: os.stat_result) -> None:
        self.source, self.folders, self.path, self.fd = source, folders, path, fd
        self.stat = system.fstat(fd)
        self.size = self.stat.st_size
        if _identity(self.stat) != _identity(before):
            raise SourceChanged(f"changed while it was opened: {printable(path)}", path=path)
        recent = time.time_ns() - max(self.stat.st_mtime_ns, self.stat.st_ctime_ns) < RECENT_NS
        if source.disk.steady and recent and (source.in_place is None or source.in_place(path)):
            system.write_back(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; twice is harmless."""
        if self.fd >= 0:
            if self.source.backlog is not None and self.source.backlog(self.path):
                system.drop(self.fd, near=not self.source.disk.network)
            system.close(self.fd, near=not self.source.disk.network)
            self.fd = -1

    @property
    def sparse(self) -> bool:
        """Has it holes?"""
        return bool(self.stat.st_blocks * 512 < self.size)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """(start, end) of what holds data."""
        return system.data_ranges(self.fd, self.size, self.stat.st_blocks)

    def read_into(self, block: Any, offset: int) -> int:
        """Read at an offset; 0 at the end."""
        began = time.monotonic() if self.source.timed is not None else 0.0
        try:
            got = system.read_into(self.fd, block, offset)
        except OSError as error:
            raise self.source.translated(error, self.path) from error
        if self.source.timed is not None:
            self.source.timed(got, time.monotonic() - began)
        return got

    def digest(self, algorithms: Sequence[str], control: Control, *, copied: bool = True) -> dict[str, bytes]:
        """The digests of all bytes, counted as `copied` or else as verified; raises as `read_into` and `check`."""
        from scopeferry.stores.files import buffer  # a rerun with nothing to do reads nothing

        digests, block, at = Digests(algorithms), buffer(), 0
        while got := self.read_into(block[: control.piece_bytes], at):
            digests.update(block[:got])
            at += got
            control.add(got if copied else 0, 0 if copied else got)
            control.check()
        self.check()
        return digests.result()

    def attributes(self) -> Attributes:
        """What is kept beside the bytes."""
        try:
            return self.source.attributes(self.stat, self.source.kept_xattrs(self.fd))
        except OSError as error:
            raise self.source.translated(error, self.path) from error

    def check(self) -> Mark:
        """The mark, if descriptor and path are still the file that was opened; raises SourceChanged."""
        head, _, name = self.path.rpartition("/")
        try:
            there = system.lstat(self.folders.open(head), name)
        except (OSError, Refused) as error:
            if isinstance(error, OSError) and error.errno in {errno.EIO, *system.GONE}:
                raise self.source.translated(error, self.path) from error
            raise SourceChanged(f"vanished while it was read: {printable(self.path)}", path=self.path) from error
        found = [there]  # the same inode: what the path says holds for the descriptor, where inodes mean something
        if not self.source.disk.steady:
            found.append(system.fstat(self.fd))
        if any(_identity(one) != _identity(self.stat) for one in found):
            raise SourceChanged(f"changed while it was read: {printable(self.path)}", path=self.path)
        return publish.mark(there)


class Ahead:
    """The source files of a batch, opened and asked for before the first one is read.

    The disk then works on all of them side by side; read one after another, 64 KiB files cost a third of a millisecond
    each (measured). A file is handed out once; another try at it opens it anew.
    """

    def __init__(self, source: TreeSource, folders: Folders) -> None:
        self._source, self._folders = source, folders
        self._open: dict[str, SourceFile | ItemError] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            if isinstance(file, SourceFile):
                file.close()
        self._open.clear()

    def begin(self, path: str) -> None:
        """Open a file and have its first bytes fetched. What goes wrong is raised by `open`."""
        if self._source.disk.reopens:
            return  # each may be a connection of its own there
        try:
            file = self._open[path] = self._source.open(self._folders, path)
            system.fetch(file.fd, file.size, near=not self._source.disk.network)
        except ItemError as error:
            self._open[path] = error

    def open(self, path: str) -> SourceFile:
        """The file that was begun, or the same anew. Raises as ``TreeSource.open``."""
        file = self._open.pop(path, None)
        if isinstance(file, ItemError):
            raise file
        return file if file is not None else self._source.open(self._folders, path)


def _read_something(folder: Any) -> None:
    """List a folder, and read a byte of one of its files: a listing alone may come from the cache of the mount.

    One that cannot be read may be a bad file: raises OSError if that is so of the first few.
    """
    with system.scan(folder) as found:
        names = [entry.name for entry, _ in zip(found, range(LOOKED_AT), strict=False) if entry.is_file()]
    failed: OSError | None = None
    for name in names[:TRIED]:
        try:
            _read_byte(folder, name)
        except OSError as error:
            failed = error
        else:
            return
    if failed is not None:
        raise failed


def _read_byte(folder: Any, name: str) -> None:
    fd = system.open_source(folder, name)
    try:
        system.drop(fd)
        system.read_into(fd, bytearray(1), 0)
    finally:
        system.close(fd)


def _identity(entry: os.stat_result) -> tuple[int, int, int, int]:
    return entry.st_ino, entry.st_size, entry.st_mtime_ns, entry.st_ctime_ns


def is_recent(found: Mark, read_at_ns: int, *, coarse: bool) -> bool:
    """Could a change just after the read have left the times as they are? Then it is looked at once more."""
    tick = COARSE_TICK_NS if coarse else TICK_NS
    return abs(read_at_ns - max(found.mtime_ns, found.ctime_ns)) < tick


class Selection:
    """Which paths are taken: globs in the order given, the last that matches wins.

    ``*`` and ``?`` stay within a name, ``**`` crosses folders, a trailing ``/`` means folders (and all below). What no
    rule matches is taken, unless the first rule is an include.

    >>> only = Selection([("include", "**/*.tif"), ("exclude", "tmp/")])
    >>> only.takes("a/b.tif"), only.takes("a/b.txt"), only.enters("tmp")
    (True, False, False)
    """

    def __init__(self, rules: Sequence[tuple[str, str]]) -> None:
        self.rules = tuple(rules)
        self.default = not rules or rules[0][0] == "exclude"
        self._rules = [(kind == "include", glob.endswith("/"), glob_regex(glob.rstrip("/"))) for kind, glob in rules]

    def takes(self, path: str) -> bool:
        """Is this file or link taken? A rule that matches a folder above it counts for all below."""
        verdict = self.default
        for include, only_folders, regex in self._rules:
            if (not only_folders and regex.fullmatch(path)) or any(regex.fullmatch(head) for head in _heads(path)):
                verdict = include
        return verdict

    def enters(self, path: str) -> bool:
        """Is this folder walked? Only an exclude that no later include can undo keeps the walk out."""
        matches = [include for include, _, regex in self._rules if regex.fullmatch(path)]
        last_include = max((n for n, (include, _, _) in enumerate(self._rules) if include), default=-1)
        excluded_at = max(
            (n for n, (include, _, regex) in enumerate(self._rules) if not include and regex.fullmatch(path)),
            default=-1,
        )
        return not matches or matches[-1] or excluded_at < last_include


def _heads(path: str) -> Iterator[str]:
    at = path.find("/")
    while at >= 0:
        yield path[:at]
        at = path.find("/", at + 1)


def glob_regex(glob: str) -> re.Pattern[str]:
    """A glob as a regular expression over relative POSIX paths; raises UsageError for one that can match none.

    >>> bool(glob_regex("**/*.tif").fullmatch("a.tif")), bool(glob_regex("*.tif").fullmatch("a/b.tif"))
    (True, False)
    """
    if not glob or glob.startswith("/") or not {".", ".."}.isdisjoint(glob.split("/")):
        raise UsageError(f"a glob is relative to the source, without . and ..: {glob!r}", code="SF-105")
    out, at = "", 0
    while at < len(glob):
        if glob.startswith("**/", at):
            out, at = out + "(?:.*/)?", at + 3
        elif glob.startswith("**", at):
            out, at = out + ".*", at + 2
        elif glob[at] == "*":
            out, at = out + "[^/]*", at + 1
        elif glob[at] == "?":
            out, at = out + "[^/]", at + 1
        elif glob[at] == "[" and "]" in glob[at + 2 :]:
            end = glob.index("]", at + 2)
            inside = glob[at + 1 : end].replace("\\", "\\\\")
            out, at = out + "[" + ("^" + inside[1:] if inside.startswith("!") else inside) + "]", end + 1
        else:
            out, at = out + re.escape(glob[at]), at + 1
    return re.compile(out, re.DOTALL)
