"""When is a file whole? What writers do, as data; what a look at a file tells; what others hold, and who still lives.

A writer that renames publishes whole files: they are whole at sight. One that writes under the final name is known by
a file that grows; its files are whole when nobody has them open for writing and two looks found them the
same, and a shard only if its index is valid. Which of the two an array's writer is, is learnt from what is seen: a
temporary name means the first, growth the second, for good. Until then the careful rules apply.

A writer is never locked out. The one probe that could make it wait (``kernel``: `is_written`) takes microseconds, and
is made only of a file that has been calm, on file systems where it is known to tell the truth.

>>> is_temporary("0/c/1/2.__lock"), is_temporary("0/c/1/2"), is_temporary("notes.tmp")
(True, False, True)
>>> is_temporary("0/c/1/2.__lock", ending=True), is_temporary("notes.tmp", ending=True)
(True, False)
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

from scopeferry.errors import ScopeferryError
from scopeferry.kernel.publish import Disk, Folders, system
from scopeferry.sources.growing import IGNORE, READY, WAIT

RENAME, IN_PLACE, NOT_KNOWN = "rename", "in place", ""

#: Where a lease says whether anybody writes; elsewhere it may be granted blindly (FUSE).
LEASES = {"ext4", "xfs", "btrfs", "f2fs", "tmpfs"}
LOOKS_APART_S = 0.5
SETTLED_S, SETTLED_NETWORK_S = 2.0, 10.0  # of a file whose writer cannot be asked for
#: A file whose own times say that it has been calm for so long needs no second look: by whether it can be probed.
CALM_S, CALM_UNPROBED_S, NETWORK_CLOCK_S = LOOKS_APART_S + 0.05, 60.0, 120.0  # (one clock tick more)
OPEN_S = 3600.0  # who has a file open and did not change it for longer is no writer of this acquisition
METADATA = {"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"}
MOST_METADATA = 256 << 20  # bytes; larger files are not metadata
REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Writer:
    """A way of writing. ``ignored``: its temporary names, as a regular expression of the last part. ``index_last``: a
    shard whose index is valid is whole, though it is still open.
    """

    how: str
    ignored: str = ""
    index_last: bool = False


_LOCK, _PARTIAL = r".+\.__lock", r".+\.partial"
_GENERIC = r".+\.(?:tmp|part)|\.~.+"

#: By the names of ``--writer``; how each goes about it is known from traces of its system calls.
WRITERS: Mapping[str, Writer] = {
    # K.__lock or K_<hex>.__lock, flushed, renamed; a chunk of the fill value: the lock, then no chunk
    "tensorstore": Writer(RENAME, _LOCK),
    # NAME.<32 hex>.partial, the suffix in place of the last extension; renamed, not flushed (zarr-python 2, >= 3.1)
    "zarr-python": Writer(RENAME, _PARTIAL),
    "iohub": Writer(RENAME, _PARTIAL),
    # the final name, truncated, written, closed
    "zarr-python-3.0": Writer(IN_PLACE),
    "zarrs": Writer(IN_PLACE),
    # a shard stays open under its final name until its index is written, last; zarr.json again and again in place
    "acquire-zarr": Writer(IN_PLACE, index_last=True),
    "ome-writers": Writer(IN_PLACE, _LOCK, index_last=True),  # on acquire-zarr; on tensorstore with its locks
    # K.partial, index last, flushed, renamed
    "scopeferry": Writer(RENAME, _PARTIAL),
    "generic": Writer(NOT_KNOWN),
    "auto": Writer(NOT_KNOWN, f"{_LOCK}|{_PARTIAL}"),
}
_IGNORED = {name: re.compile(writer.ignored, re.DOTALL) for name, writer in WRITERS.items() if writer.ignored}
_IGNORED_AT_FIRST = re.compile(_GENERIC, re.DOTALL)
#: Metadata by another name first: zarrs renames them, and writes its chunks in place.
_OF_METADATA = re.compile(r"(?:zarr|\.z(?:array|group|attrs|metadata))[._].*", re.DOTALL)


def is_temporary(path: str, writer: str = "auto", *, ending: bool = False) -> bool:
    """Is this a temporary name? Those of no known writer are one only until the end: then they are copied."""
    name = path.rpartition("/")[2]
    pattern = _IGNORED.get(writer)
    if pattern is not None and pattern.fullmatch(name):
        return True
    return not ending and _IGNORED_AT_FIRST.fullmatch(name) is not None


def is_of_metadata(name: str) -> bool:
    """Is this the name of Zarr metadata, or one like it that becomes it?

    >>> is_of_metadata("zarr.json.tmp"), is_of_metadata(".zattrs"), is_of_metadata("notes.tmp")
    (True, True, False)
    """
    return name in METADATA or _OF_METADATA.fullmatch(name) is not None


class Look(NamedTuple):
    """What a look at a file tells: READY, WAIT or IGNORE; and in how many seconds another look may tell more."""

    verdict: str
    again_s: float = 0.0


class _Calm:
    """One version of a file: since when we see it, what it was found to be."""

    __slots__ = ("inode", "mtime_ns", "opened", "since_s", "size", "torn")

    def __init__(self, found: os.stat_result, since_s: float) -> None:
        self.size, self.mtime_ns, self.inode, self.since_s = found.st_size, found.st_mtime_ns, found.st_ino, since_s
        self.torn = self.opened = False

    def is_of(self, found: os.stat_result, *, steady: bool) -> bool:
        same = (self.size, self.mtime_ns) == (found.st_size, found.st_mtime_ns)
        return same and (self.inode == found.st_ino or not steady)


def _nowhere(path: str) -> str | None:
    del path
    return None


def _no_shard(path: str) -> bool | None:
    del path
    return None


def _is_metadata(path: str) -> bool:
    return path.rpartition("/")[2] in METADATA


class Readiness:
    """Call `look` for files below `root` as they are seen; it serves as `whole` of a ``GrowingTree``, and `temporary`
    as its `temporary`. In one thread, but `in_place`. Close it when done.

    ``array_of``: in which array's folder does a path lie? None: in none. ``whole``: of a shard, is its index valid?
    None: it is no shard, or there is no checksum to tell by. ``metadata``: is it a file of Zarr metadata? ``ending``
    may be set when it is over: then everything is taken as it is.

    ``torn``, ``unparsable`` and ``open_files`` tell what keeps files from being whole (see ``finish.Facts``).
    """

    def __init__(
        self,
        root: str,
        disk: Disk,
        *,
        writer: str = "auto",
        array_of: Callable[[str], str | None] = _nowhere,
        whole: Callable[[str], bool | None] = _no_shard,
        metadata: Callable[[str], bool] = _is_metadata,
        device: int | None = None,
    ) -> None:
        self.root, self.disk, self.name, self.writer = root, disk, writer, WRITERS[writer]
        self._array_of, self._whole, self._is_metadata = array_of, whole, metadata
        self._device = device if device is not None else _device(root)
        self.probes = disk.type in LEASES or (os.name == "nt" and not disk.network)
        self._how: dict[str, str] = {}
        self._waiting: OrderedDict[str, _Calm] = OrderedDict()
        self._done: OrderedDict[str, _Calm] = OrderedDict()
        self._asked: dict[str, _Calm] = {}
        self._strays: dict[str, _Calm] = {}
        self._folders: Folders | None = None
        self._anew_at = 0.0
        self.ending = False
        self.again_s = 0.0
        self.unsure = False  # the last answer of `held` is to be asked for again
        self.probed = 0  # how often a lease was asked for

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back all descriptors; twice is harmless."""
        if self._folders is not None:
            self._folders.close()
            self._folders = None

    # -- names and ways of writing -------------------------------------------------------------------------------------

    def temporary(self, path: str) -> bool:
        """Is it a temporary name? To be asked is to have seen it: one of a chunk tells how its array is written."""
        if not is_temporary(path, self.name, ending=self.ending):
            return False
        array = self._array_of(path)
        if array is not None and not _OF_METADATA.fullmatch(path.rpartition("/")[2]):
            self._how.setdefault(array, RENAME)
        return True

    def how(self, path: str) -> str:
        """How the file of this path is written: RENAME, IN_PLACE, or NOT_KNOWN so far."""
        array = self._array_of(path)
        if array is None:
            return NOT_KNOWN
        return self.writer.how or self._how.get(array, NOT_KNOWN)

    def in_place(self, path: str) -> bool:
        """May it be written under its final name?"""
        return self.how(path) != RENAME

    def _learn(self, path: str, before: _Calm | None, found: os.stat_result) -> None:
        """A file that grows and stays the same one is written in place."""
        if before is None or before.is_of(found, steady=self.disk.steady):
            return
        if self.disk.steady:  # a number of an inode comes back, hardly with another size
            in_place = before.inode == found.st_ino and before.size != found.st_size
        else:  # a new file may well be larger than the one that it replaces: only what waits grows
            in_place = before.size < found.st_size and path in self._waiting
        array = self._array_of(path)
        if in_place and array is not None:
            self._how[array] = IN_PLACE

    # -- a look at a file ----------------------------------------------------------------------------------------------

    def __call__(self, path: str, found: os.stat_result, now_s: float) -> str:
        """The verdict alone; `now_s` is ``time.time()``. `again_s` holds the rest of the answer."""
        verdict, self.again_s = self.look(path, found, now_s)
        return verdict

    def look(self, path: str, found: os.stat_result, now_s: float, clock_s: float | None = None) -> Look:
        """Is it whole? `found` is what was seen at `now_s` (``time.time()``); `clock_s` is ``time.monotonic()``."""
        if self.temporary(path):
            return Look(IGNORE)
        clock_s = time.monotonic() if clock_s is None else clock_s
        before = self._waiting.get(path) or self._done.get(path)
        self._learn(path, before, found)
        if before is None or not before.is_of(found, steady=self.disk.steady):
            before = _Calm(found, clock_s)
        verdict = self._judge(path, found, before, now_s, clock_s)
        self._note(path, before, ready=verdict.verdict == READY)
        return verdict

    def _judge(self, path: str, found: os.stat_result, calm: _Calm, now_s: float, clock_s: float) -> Look:
        calm.torn = calm.opened = False
        if self.ending:
            return Look(READY)
        if self._is_metadata(path):
            calm.torn = not self._parses(path, found)
            return Look(WAIT, LOOKS_APART_S) if calm.torn else Look(READY)
        how = self.how(path)
        if how == RENAME:
            return Look(READY)
        age_s = now_s - (max(found.st_mtime_ns, found.st_ctime_ns) if self.disk.steady else found.st_mtime_ns) / 1e9
        seen_s = clock_s - calm.since_s
        whole = None if self._array_of(path) is None else self._whole(path)
        calm.torn = whole is False
        if whole and self.writer.index_last:
            return Look(READY)
        probes = self._may_probe(found)
        calm_s = self._calm_s(probes=probes)
        if seen_s < LOOKS_APART_S and age_s < calm_s:
            return Look(WAIT, min(LOOKS_APART_S - seen_s, calm_s - age_s))
        if whole is False:
            return Look(WAIT, LOOKS_APART_S)
        if age_s > OPEN_S and not self.disk.network:
            return Look(READY)
        written = self._is_written(path) if probes else None
        if written is None and max(age_s, seen_s) < self._settled_s:
            return Look(WAIT, self._settled_s - max(age_s, seen_s))
        calm.opened = bool(written)
        return Look(WAIT, LOOKS_APART_S) if written and not whole else Look(READY)

    @property
    def _settled_s(self) -> float:
        return SETTLED_NETWORK_S if self.disk.network else SETTLED_S

    def _calm_s(self, *, probes: bool) -> float:
        if self.disk.network:
            return CALM_UNPROBED_S + NETWORK_CLOCK_S
        return CALM_S if probes else CALM_UNPROBED_S

    def _note(self, path: str, calm: _Calm, *, ready: bool) -> None:
        if ready:
            self._waiting.pop(path, None)
            self._done[path] = calm
            self._done.move_to_end(path)
            if len(self._done) > REMEMBERED:
                self._done.popitem(last=False)
        else:
            self._done.pop(path, None)
            self._waiting[path] = calm

    def forget(self, paths: Iterable[str]) -> None:
        """These are not there any more."""
        for path in paths:
            self._waiting.pop(path, None)

    def keep_only(self, paths: Iterable[str]) -> None:
        """Of what waits only these are still there."""
        self.forget(self._waiting.keys() - set(paths))

    def _parses(self, path: str, found: os.stat_result) -> bool:
        """Is it JSON, and did it stay the same while it was read?"""
        if found.st_size > MOST_METADATA:
            return True
        try:
            fd = system.open_source(*self._at(path))
        except (OSError, ScopeferryError):
            self.close()
            return False
        with open(fd, "rb") as file:
            before = system.fstat(fd)
            raw = file.read(before.st_size + 1)
            after = system.fstat(fd)
        try:
            json.loads(raw)
        except (ValueError, RecursionError):
            return False
        states = {(one.st_size, one.st_mtime_ns) for one in (found, before, after)}
        return len(states) == 1

    # -- what keeps files from being whole -----------------------------------------------------------------------------

    @property
    def torn(self) -> list[str]:
        """Shards whose index is not valid."""
        return [path for path, calm in self._waiting.items() if calm.torn and not self._is_metadata(path)]

    @property
    def unparsable(self) -> list[str]:
        """Metadata that are not whole."""
        return [path for path, calm in self._waiting.items() if calm.torn and self._is_metadata(path)]

    def open_files(self, now_s: float) -> dict[str, float]:
        """Files that somebody has open for writing, by the last look at each -> seconds since their last change."""
        return {path: now_s - calm.mtime_ns / 1e9 for path, calm in self._waiting.items() if calm.opened}

    # -- probes --------------------------------------------------------------------------------------------------------

    def held(self, paths: Iterable[str], clock_s: float | None = None) -> set[str]:
        """Which of these (temporary names, torn shards) somebody holds, or may hold: asked before one is called dead.

        One that was not seen twice, unchanged, counts as held; so ask again. Where it cannot be told, nobody does.
        """
        clock_s = time.monotonic() if clock_s is None else clock_s
        before, self._asked = self._asked, {}
        self.unsure = False
        return {path for path in paths if self._is_held(path, before.get(path), clock_s)}

    def _is_held(self, path: str, calm: _Calm | None, clock_s: float) -> bool:
        try:
            folder, name = self._at(path)
            found = system.lstat(folder, name)
        except (OSError, ScopeferryError):
            self.close()
            return False
        if calm is None or not calm.is_of(found, steady=self.disk.steady):
            calm = _Calm(found, clock_s)
        self._asked[path] = calm
        if clock_s - calm.since_s < LOOKS_APART_S:
            self.unsure = True
            return True
        if system.is_locked(folder, name):
            return True
        return self._may_probe(found) and bool(self._is_written(path))

    def in_use(self, paths: Iterable[str], settle_s: float) -> list[str]:
        """Which of these, whose names tell nothing, somebody writes: changed within `settle_s`, or within the hour and
        still open.
        """
        before, self._strays = self._strays, {}
        return [path for path in paths if self._is_in_use(path, before.get(path), settle_s)]

    def _is_in_use(self, path: str, calm: _Calm | None, settle_s: float) -> bool:
        clock_s = time.monotonic()
        try:
            found = system.lstat(*self._at(path))
        except (OSError, ScopeferryError):
            self.close()
            return False
        if calm is None or not calm.is_of(found, steady=self.disk.steady):
            calm = _Calm(found, clock_s)
        self._strays[path] = calm
        changed_ns = max(found.st_mtime_ns, found.st_ctime_ns) if self.disk.steady else found.st_mtime_ns
        age_s = time.time() - changed_ns / 1e9 - (NETWORK_CLOCK_S if self.disk.network else 0.0)
        if max(age_s, clock_s - calm.since_s) < settle_s:
            return True
        return age_s <= OPEN_S and self._may_probe(found) and bool(self._is_written(path))

    def locked(self, path: str) -> bool | None:
        """Does somebody hold a lock on this file? None: it cannot be told, or the file is not there."""
        try:
            return system.is_locked(*self._at(path))
        except (OSError, ScopeferryError):
            self.close()
            return None

    def _may_probe(self, found: os.stat_result) -> bool:
        return self.probes and (os.name == "nt" or found.st_dev == self._device)

    def _is_written(self, path: str) -> bool | None:
        self.probed += 1
        try:
            return system.is_written(*self._at(path))
        except (OSError, ScopeferryError):
            self.close()
            return None

    def _at(self, path: str) -> tuple[system.Folder, str]:
        now = time.monotonic()
        if now >= self._anew_at:  # a way that was found before may lead to a folder that has been moved since
            self.close()
        if self._folders is None:
            self._folders, self._anew_at = Folders(self.root), now + LOOKS_APART_S
        head, _, name = path.rpartition("/")
        return self._folders.open(head), name


def _device(root: str) -> int:
    try:
        return os.stat(root).st_dev
    except OSError:
        return -1


class Process:
    """A process that is to be seen ending. Another one that is given its number later is not taken for it.

    >>> Process(os.getpid()).alive
    True
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._start = system.process_start(pid)
        self.seen = self._start is not None

    @property
    def alive(self) -> bool:
        """Does it live? One that had ended before it was first looked at does not."""
        if self._start is not None and system.process_start(self.pid) != self._start:
            self._start = None
        return self._start is not None
