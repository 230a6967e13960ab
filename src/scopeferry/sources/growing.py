"""A folder that is being written, as a source: its files as they become whole. Scanning is the truth, events are hints.

A *pass* every `scan_interval_s` looks at the folders that are due and lists those whose time moved; the longer a folder
has been calm, the rarer it is due. A *walk* lists everything, at the start, now and then, and when asked for. Files not
yet whole and metadata are looked at one by one, since growth in place moves no folder's time. Where the kernel tells of
changes (``_inotify.py``) a name is looked at sooner, and that is all: whatever it tells, forgets or repeats, the same
files come out.

In memory are the folders, and of the files only those that are not settled: what is done is asked of `known`, folder
by folder; what finds no room stays unread in its folder until there is room.

It assumes that the root is there when it begins, decides nothing about the copy, and knows no Zarr: when a file is
whole and what kind of file it is are questions to `whole` and `rank`.
"""

from __future__ import annotations

import errno
import heapq
import os
import stat
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, Self

from scopeferry.errors import Refused, UsageError
from scopeferry.kernel import publish
from scopeferry.kernel.journal import fingerprint
from scopeferry.kernel.publish import Disk, Folders, Mark, system
from scopeferry.sources import _inotify
from scopeferry.sources.gaps import Gaps
from scopeferry.sources.known import Known, NothingKnown
from scopeferry.sources.outbox import CHUNK, MARKER, METADATA, Found, Gone, Outbox, Version
from scopeferry.sources.tree import OURS, TICK_NS, Selection, TreeSource

__all__ = ["CHUNK", "IGNORE", "MARKER", "METADATA", "READY", "WAIT", "Found", "Gone", "GrowingTree", "Version", "Walk"]

READY, WAIT, IGNORE = "ready", "wait", "ignore"

#: File systems whose folders change their time whenever a name in them does, at once and for everybody.
TRUSTED = {"ext4", "xfs", "btrfs", "f2fs", "tmpfs", "ntfs", "ntfs3"}

SLICE_S = 0.02  # of work between two items, or two ticks
FRESH_NS = 10_000_000_000  # written so lately is still in memory
SHARE = 20  # a look is repeated after this many times what it took, at least
CROWDED_S = 1.0  # between two listings of a folder whose files wait for room to be looked at
LONGEST_S = 5.0  # between two looks at a folder, up to FEW_FOLDERS
FEW_FOLDERS = 10_000
WATCHED_S = 60.0  # between two looks at a watched folder where events are relied on
WALK_S = 60.0  # between two walks that nobody asked for
WALK_SHARE = 50
BATCH = 400  # names between two looks at the clock
LARGE = 20_000  # names of one folder beyond which they are not held all at once
ROOM = 20_000  # items that wait to go; twice that with what events tell of and metadata
HELD_ROOM = 100_000  # items that are held off
LOOKS = 50_000  # files that are looked at one by one; metadata take half of it
LOOKS_AT_ONCE = 100
MOST_LOOK_S, MOST_LOOK_NETWORK_S = 0.002, 0.02  # what took longer was no look: we were stopped, or waited for a server
SETTLES_S = 12.0  # a file that is not whole and unchanged for so long does not hold up the end
FIRST_WATCHES = 8192
MOST_TOLD = 100_000


class Whole(Protocol):
    """When is a file whole?"""

    def __call__(self, path: str, found: os.stat_result, now_s: float) -> str:
        """READY, WAIT (asked again) or IGNORE (a temporary name); `now_s` is ``time.time()``."""


class _Folder:
    __slots__ = (
        "changed", "due", "empty", "inode", "listed", "missing", "mtime_ns", "path", "relist", "temporary", "told",
        "unread", "wanted", "watch",
    )  # fmt: skip

    def __init__(self, path: str) -> None:
        self.path = path
        self.mtime_ns = self.inode = 0
        self.watch = -1
        self.changed = self.due = 0.0
        self.listed = -1.0  # when the last good listing began
        self.relist = self.unread = self.wanted = self.empty = False
        self.missing: set[str] | None = None  # lacked by the last listing
        self.told: set[str] | None = None  # said to be gone
        self.temporary: set[str] | None = None


class _Look:
    __slots__ = ("changed", "due", "version", "waits")

    def __init__(self, now: float) -> None:
        self.changed = now
        self.due = 0.0
        self.version: Version | None = None
        self.waits = False  # not whole


@dataclass(frozen=True, slots=True)
class Walk:
    """A listing of everything that has ended. Times are of ``time.monotonic``; `found_new` counts what was new
    meanwhile, however it was found; `failed`: something could not be listed, so it is no evidence.
    """

    begun_s: float
    ended_s: float
    found_new: int
    failed: bool


class _Walking:
    def __init__(self, now: float, folders: list[_Folder], changes: int, failures: int) -> None:
        self.begun_s, self.changes, self.failures = now, changes, failures
        self.left = folders[::-1]


def at_sight(path: str, found: os.stat_result, now_s: float) -> str:
    """Every file is whole as soon as it is seen: for writers that rename."""
    del path, found, now_s
    return READY


def _all_chunks(path: str) -> int:
    del path
    return CHUNK


class GrowingTree:
    """Iterate over `items`; call `settled`, `again` or `failed` for each item that came out. Close it when done.

    ``watch``: ``auto`` (events where there are any, and scans), ``scan``, ``events`` (watched folders are scanned each
    60 s only). ``rank``: METADATA goes first, MARKER after everything else and only when it is to end. ``temporary``:
    is this name a writer's temporary one? All in one thread.

    What the decision about the end needs: ``newest_change_ns`` (change time in the source, of the source's clock),
    ``changed_s`` (when we last saw a change, monotonic), ``newest`` (the file) and ``newest_file_ns``, ``gap_s``,
    ``temporary_names``, ``not_whole``, ``markers``,
    ``walk`` and ``walks``, ``drained``, ``unreadable``, ``absent_since``.
    """

    def __init__(
        self,
        source: TreeSource,
        *,
        watch: str = "auto",
        scan_interval_s: float = 0.5,
        whole: Whole = at_sight,
        rank: Callable[[str], int] = _all_chunks,
        known: Known | None = None,
        temporary: Callable[[str], bool] | None = None,
        selection: Selection | None = None,
    ) -> None:
        if watch not in {"auto", "scan", "events"}:
            raise UsageError(f"--watch is auto, scan or events, not {watch!r}", code="SF-105")
        self.source, self.watch, self.scan_interval_s = source, watch, scan_interval_s
        self._whole, self._rank, self._temporary = whole, rank, temporary
        self._known: Known = known or NothingKnown()
        self._selection = selection if selection is not None and selection.rules else None
        self._steady, self._trusted = source.disk.steady, source.disk.type in TRUSTED
        self._out = Outbox()
        self._root = _Folder("")
        self._nodes: dict[str, _Folder] = {"": self._root}
        self._due: list[tuple[float, int, _Folder]] = []
        self._checks: deque[_Folder] = deque()
        self._wanted: deque[_Folder] = deque([self._root])
        self._root.wanted = True
        self._unread: list[tuple[int, int, _Folder]] = []
        self._active: deque[Iterator[None]] = deque()
        self._backlog: Iterator[None] | None = None
        self._looks: dict[str, _Look] = {}
        self._looks_due: list[tuple[float, int, str]] = []
        self._refused: dict[str, Version] = {}
        self._number = 0
        self._folders: Folders | None = None
        self._moved = False  # a folder is not the one that may be held open
        self._mounted: Disk | None = None
        self._inotify: _inotify.Inotify | None = None
        self._watched: OrderedDict[int, _Folder] = OrderedDict()
        self._most_watches = FIRST_WATCHES
        self._said: set[str] = set()
        self._notes: list[str] = []
        self._ending = self._begun = False
        self._work_at = self._pass_at = self._pass_began = 0.0
        self._look_s = 5e-6
        self._checked_s, self._stretch = 0.0, 1.0
        self._busy_s = 0.0
        self._changes = self._failures = 0
        self._walking: _Walking | None = None
        self._walk_at = 0.0
        self._changes_at_walk = -1
        self._again: set[str] = set()  # somebody asked for a look at them
        self._listing: set[_Folder] = set()
        self._crowded: set[_Folder] = set()  # in which files are not whole that found no room
        self._most_look_s = MOST_LOOK_NETWORK_S if source.disk.network else MOST_LOOK_S
        self._gaps = Gaps()
        self._went: list[str] = []
        self.temporary_names: dict[str, float] = {}  # path -> when it was first seen (monotonic)
        self.markers: dict[str, tuple[Version, float]] = {}  # path -> version, when it was seen (monotonic)
        self.marked = 0  # how often `markers` changed
        self.unreadable: dict[str, str] = {}  # path -> why
        self.special: set[str] = set()  # neither file, folder nor link
        self.newest_change_ns = self.newest_file_ns = 0
        self.newest = ""
        self.changed_s = time.monotonic()
        self.absent_since: float | None = None
        self.walk: Walk | None = None
        self.walks = self.passes = self.listings = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back all descriptors; twice is harmless."""
        self._stop_listings()
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
        self._watched.clear()
        if self._folders is not None:
            self._folders.close()
            self._folders = None

    def _stop_listings(self) -> None:
        for listing in [*self._active, *([self._backlog] if self._backlog is not None else [])]:
            listing.close()  # type: ignore[attr-defined]
        self._active.clear()
        self._listing.clear()
        self._backlog = None

    # -- what comes out ------------------------------------------------------------------------------------------------

    def items(self) -> Iterator[Found | Gone | None]:
        """What is ready, each path once until it is settled; None where nothing is, within 50 ms (it never sleeps).

        It ends after `finish`, when a walk has found nothing and everything is settled. Another call goes on where an
        earlier one was left, after a walk: what waited to go may have been done by others meanwhile.
        """
        if self._begun:
            self._forget_queue()
        self._begun = True
        if self._walking is None:
            self.begin_walk()
        while True:
            now = time.monotonic()
            if now >= self._work_at or not self._out.queued:
                self._work(now + SLICE_S)
                now = time.monotonic()
                self._work_at = now + SLICE_S
            found = self._out.take(now, ending=self._ending) if self.absent_since is None else None
            if found is None and self._ending and self._over(now):
                found = self._out.take_last()
                if found is None and self._out.out == 0:
                    return
            yield found

    def _forget_queue(self) -> None:
        for path in self._out.waiting():
            self._out.withdraw(path)
        self._walking = None

    def finish(self) -> None:
        """It is over: hold nothing off, walk until nothing is found, then let `items` end."""
        self._ending = True
        self._refused.clear()
        self.begin_walk()

    def resume(self) -> None:
        """It is not over after all."""
        self._ending = False

    def _over(self, now: float) -> bool:
        """Is everything found, gone out and settled?"""
        if not self.drained or self._out.out:
            return False
        if any(look.waits and now - look.changed < SETTLES_S for look in self._looks.values()):
            return False
        if self._crowded and now - self.changed_s < SETTLES_S:
            return False
        assert self._walking is None
        walk = self.walk
        if walk is None or walk.found_new or walk.failed or self._changes_at_walk != self._changes:
            self.begin_walk()
            return False
        return True

    def settled(self, path: str) -> None:
        """An item is done (or set aside), and what is known says so from now on."""
        if self._out.settled(path):
            self._look_soon(path, 0.0)

    def again(self, path: str, *, failed: bool = False, after_s: float = 0.0) -> None:
        """An item is to be looked at again after `after_s`, and comes out if it differs from what is known.

        ``failed``: it could not be read; then this version comes out again only in the walks after `finish`.
        """
        latest = self._out.latest(path)
        changed = self._out.settled(path)
        if failed and latest is not None and not changed:
            self._refused[path] = latest
            return
        self._out.changed(path, time.monotonic())
        self._look_soon(path, after_s)

    def failed(self, path: str) -> None:
        """An item could not be read: the same as ``again(path, failed=True)``."""
        self.again(path, failed=True)

    # -- what the end is decided from ----------------------------------------------------------------------------------

    @property
    def gap_s(self) -> float:
        """The longest pause between two modification times of chunks so far, in seconds."""
        return self._gaps.longest_ns / 1e9

    @property
    def in_flight(self) -> int:
        """How many items came out and are not settled."""
        return self._out.out

    @property
    def waiting(self) -> int:
        """How many items are ready but have not come out, held off ones too; at least one for each unread folder."""
        return self._out.queued + self._out.held + len(self._unread) + (self._backlog is not None)

    @property
    def not_whole(self) -> list[str]:
        """Paths of files that are not whole yet."""
        return [path for path, look in self._looks.items() if look.waits]

    @property
    def looked_at(self) -> int:
        """How many files are looked at one by one."""
        return len(self._looks)

    @property
    def folders(self) -> int:
        """How many folders there are."""
        return len(self._nodes)

    @property
    def watches(self) -> int:
        """How many folders are watched."""
        return len(self._watched)

    @property
    def walking(self) -> bool:
        """Does a walk go on?"""
        return self._walking is not None

    @property
    def drained(self) -> bool:
        """Has everything that was found and is whole come out, and is nothing being looked for? (In flight there may
        still be some.)
        """
        busy = self._wanted or self._active or self._checks or self._walking or self._again
        return not (busy or self.waiting)

    def empty_folders(self) -> Iterator[str]:
        """Folders in which the last listing found nothing (but temporary names)."""
        return (node.path for node in list(self._nodes.values()) if node.empty and node is not self._root)

    def take_went(self) -> list[str]:
        """Temporary names that came and went since the last call: a lock that left no chunk behind tells of an empty
        one.
        """
        went, self._went = self._went, []
        return went

    def take_notes(self) -> list[str]:
        """What a person should know, each said once: watches that were lost, a queue that ran over."""
        notes, self._notes = self._notes, []
        return notes

    def begin_walk(self) -> None:
        """List everything; `walk` is a later one when it has ended. One that goes on is begun anew."""
        now = time.monotonic()
        self._walking = _Walking(now, list(self._nodes.values()), self._changes, self._failures)
        self._moved = True  # a way that was found before may lead to a folder that has been moved since
        self._busy_s = 0.0

    # -- work, in slices -----------------------------------------------------------------------------------------------

    def _work(self, until: float) -> None:
        now = time.monotonic()
        if self.absent_since is not None or self._folders is None:
            if now < self._pass_at:
                return
            self._pass_at = now + self.scan_interval_s
            if not self._present(anew=True):
                return
        self._hints()
        if self._out.queued:
            until = min(until, time.monotonic() + SLICE_S / 8)
        while self._step(time.monotonic()) and time.monotonic() < until:
            pass

    def _step(self, now: float) -> bool:
        """A little work; False if there is none."""
        self._find_way_anew()
        if now >= self._pass_at:
            self._begin_pass(now)
            return self.absent_since is None
        busy = False  # each gets its turn: neither looks nor checks can hold up the listings
        if self._looks_due and self._looks_due[0][0] <= now:
            self._take_looks(now)
            self._find_way_anew()
            busy = True
        if self._checks:
            self._check_some(now)
            busy = True
        if len(self._active) < 2:
            node = self._next_to_list()
            if node is not None:
                self._listing.add(node)
                self._active.append(self._list(node))
        if self._active:
            self._advance()
            return True
        if busy:
            return True
        if self._walking is not None and not self._wanted:
            self._end_walk(now)
            return True
        return self._read_backlog()

    def _find_way_anew(self) -> None:
        """Where a folder was moved; never while somebody holds one."""
        if self._moved and self._folders is not None:
            self._folders.forget()
            self._moved = False

    def _next_to_list(self) -> _Folder | None:
        for _ in range(len(self._wanted)):
            node = self._wanted.popleft()
            if node in self._listing:
                self._wanted.append(node)
            elif node.wanted and self._nodes.get(node.path) is node:
                return node
        walking = self._walking
        while walking is not None and walking.left:
            node = walking.left.pop()
            if self._nodes.get(node.path) is not node or node.listed >= walking.begun_s or node.wanted:
                continue
            if node not in self._listing:
                return node
            self._want(node)  # its listing began before the walk: once more
        return None

    def _advance(self) -> None:
        listing = self._active[0]
        began = time.monotonic()
        if next(listing, self) is self:
            self._active.popleft()
        else:
            self._active.rotate(-1)
        self._busy_s += self._spent(began, BATCH)

    def _read_backlog(self) -> bool:
        if not self._room():
            return False
        if self._backlog is None:
            if not self._unread:
                return False
            self._backlog = self._read_unread()
        if next(self._backlog, self) is self:
            self._backlog = None
        return True

    def _end_walk(self, now: float) -> None:
        walking, self._walking = self._walking, None
        assert walking is not None
        failed = self._failures != walking.failures or self.absent_since is not None
        self.walk = Walk(walking.begun_s, now, self._changes - walking.changes, failed)
        self._changes_at_walk = self._changes
        self.walks += 1
        self._walk_at = now + max(WALK_S, WALK_SHARE * self._busy_s)

    def _begin_pass(self, now: float) -> None:
        self._pass_at, self._pass_began = now + self.scan_interval_s, now
        if not self._present(anew=True):
            return
        assert self._folders is not None
        self._folders.forget()
        self.passes += 1
        busy = self._checked_s * SHARE > self.scan_interval_s
        self._stretch = min(16.0, self._stretch * 1.5) if busy else max(1.0, self._stretch / 1.1)
        self._checked_s = 0.0
        self._out.forget_calm(now)
        if self._walking is None and now >= self._walk_at:
            self.begin_walk()
        until = now + self.scan_interval_s / 4  # what is due within this pass
        found = []
        while self._due and self._due[0][0] <= until:
            due, _, node = heapq.heappop(self._due)
            if node.due == due and self._nodes.get(node.path) is node and not node.wanted:
                found.append(node)
        found.sort(key=lambda node: node.path.rpartition("/")[0])  # siblings one after another: one way to them
        self._checks.extend(found)

    # -- the root ------------------------------------------------------------------------------------------------------

    def _present(self, *, anew: bool = False) -> bool:
        """Is the root there, and the one that we hold open? ``anew``: another mount of it will do as well."""
        try:
            if self._folders is None or not self._is_ours():
                if not anew or not self.source.present() or not self._same_disk():
                    raise FileNotFoundError(errno.ENOENT, "not there", self.source.root)
                self._begin_with_root()
        except OSError:
            if self.absent_since is None:
                self.absent_since = time.monotonic()
            return False
        if self.absent_since is not None and anew:
            self.absent_since = None
            self.begin_walk()
        return self.absent_since is None

    def _same_disk(self) -> bool:
        """Is it no bare mount point where a mount was?"""
        return not self._mounted or publish.disk(self.source.root) == self._mounted

    def _is_ours(self) -> bool:
        assert self._folders is not None
        there = system.open_root(self.source.root)
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

    def _begin_with_root(self) -> None:
        folders = self.source.folders()
        self.close()
        self._folders, self._mounted = folders, publish.disk(self.source.root)
        self._wanted.clear()
        for node in self._nodes.values():
            node.watch = -1
            node.missing = None
            node.wanted = False  # also where it was taken for a listing that never began
            self._want(node)
        if self.watch != "scan" and not self.source.disk.network:
            try:
                self._inotify = _inotify.Inotify()
            except OSError as error:
                self._say(f"the system tells of no changes ({error.strerror}): scanning only")

    def _say(self, note: str) -> None:
        if note not in self._said:
            self._said.add(note)
            self._notes.append(note)

    # -- folders -------------------------------------------------------------------------------------------------------

    def _want(self, node: _Folder, *, first: bool = False) -> None:
        """Have a folder listed; ``first``: before those that are listed to see what there is."""
        if not node.wanted:
            node.wanted = True
            if first:
                self._wanted.appendleft(node)
            else:
                self._wanted.append(node)

    def _soon(self, node: _Folder) -> None:
        """Have a folder listed in the next pass."""
        if not node.relist:
            node.relist = True
            self._schedule(node, self._pass_began + self.scan_interval_s)

    def _schedule(self, node: _Folder, due: float) -> None:
        node.due = due
        self._number += 1
        heapq.heappush(self._due, (due, self._number, node))

    def _after(self, age: float, took: float) -> float:
        """How long until something of this age, whose look took so long, is looked at again."""
        count = max(len(self._nodes), len(self._looks))
        longest = max(LONGEST_S * max(1.0, count / FEW_FOLDERS), SHARE * count * self._look_s)
        return max(self.scan_interval_s, min(age / 20 * self._stretch, longest), SHARE * took)

    def _spent(self, began: float, looks: int) -> float:
        """What so many looks took: nothing is put off for hours because this process was stopped meanwhile."""
        return min(time.monotonic() - began, looks * self._most_look_s)

    def _check_some(self, now: float) -> None:
        """Look at the times of folders that are due."""
        assert self._folders is not None
        began = time.monotonic()
        count = min(BATCH, len(self._checks))
        head, look = None, None
        for _ in range(count):
            node = self._checks.popleft()
            above, _, name = node.path.rpartition("/")
            try:
                if node is self._root:
                    found = system.folder_stat(self._folders.root)
                else:
                    if look is None or above != head:
                        head, look = above, system.looker(self._folders.open(above))
                    found = look(name)
            except (OSError, Refused) as error:
                head = look = None
                self._unlisted(node, error)
                continue
            if not stat.S_ISDIR(found.st_mode):
                self._drop(node)
                above_node = self._nodes.get(above)
                if above_node is not None:
                    self._want(above_node)
            elif node.relist or not self._trusted or found.st_mtime_ns != node.mtime_ns or found.st_ino != node.inode:
                self._want(node, first=True)
            else:
                after = self._after(now - node.changed, 0.0)
                if node.watch >= 0 and self.watch == "events":
                    after = max(after, WATCHED_S)
                self._schedule(node, self._pass_began + after)
        spent = self._spent(began, count)
        self._checked_s += spent
        self._look_s += (spent / count - self._look_s) / 8

    def _enter(self, path: str, found: os.stat_result, *, told: bool) -> None:
        """A folder in a folder."""
        node = self._nodes.get(path)
        if node is None:
            if path.rpartition("/")[2] == OURS or not (self._selection is None or self._selection.enters(path)):
                return
            node = self._nodes[path] = _Folder(path)
            self._changed()
            self._want(node, first=told)
        elif found.st_mtime_ns != node.mtime_ns or found.st_ino != node.inode:
            self._want(node, first=True)
            if found.st_ino != node.inode and node.listed >= 0:
                self._moved = True

    def _drop(self, node: _Folder) -> None:
        """A folder that is no more. Its files are not said to be gone: freeing a disk looks just so."""
        if node is self._root or self._nodes.get(node.path) is not node:
            return
        del self._nodes[node.path]
        self._crowded.discard(node)
        self._unwatch(node)
        self._went_away(node, node.temporary or ())
        self.unreadable.pop(node.path, None)
        self._changed()

    def _unlisted(self, node: _Folder, error: OSError | Refused) -> None:
        """It could not be looked at: never the same as empty."""
        node.missing = None
        if isinstance(error, OSError) and error.errno in system.GONE:
            self._pass_at = 0.0  # the root may be gone
        if isinstance(error, FileNotFoundError | NotADirectoryError | Refused) and node is not self._root:
            if self._present():
                self._drop(node)
                above = self._nodes.get(node.path.rpartition("/")[0])
                if above is not None:  # a file may be there instead
                    self._soon(above)
            return
        again = self._unread_path(node.path, error)
        node.relist = True
        self._schedule(node, time.monotonic() + (LONGEST_S if again else self.scan_interval_s))

    def _unread_path(self, path: str, error: OSError | Refused) -> bool:
        """Note what cannot be read; was it so before? What stays so does not make every walk worthless."""
        before = path in self.unreadable
        if before or len(self.unreadable) < MOST_TOLD:
            self._failures += not before
            self.unreadable[path] = str(error)
        return before

    def _list(self, node: _Folder) -> Iterator[None]:
        """Look at every name of a folder; pauses between some of them."""
        assert self._folders is not None
        began, wall = time.monotonic(), time.time_ns()
        first, took, present = node.listed < 0, 0.0, 0
        names: set[str] | None = set()
        nodes, prefix = self._nodes, _join(node.path, "")
        node.relist = node.wanted = False
        self._crowded.discard(node)
        self.listings += 1
        try:
            handle = self._folders.open(node.path)
            facts = system.folder_stat(handle)
            if facts.st_nlink == 0 and node is not self._root:  # held open, and removed meanwhile
                self._folders.forget()
                handle = self._folders.open(node.path)
                facts = system.folder_stat(handle)
            self._watch(node, handle, facts.st_ino)
            with system.scan(handle) as entries:
                known: Mapping[str, Version] | None = None
                count = 0
                some = [entry.name for entry in islice(entries, LARGE)]
                if len(some) < LARGE:
                    known = self._known.folder(node.path)
                else:
                    count = self._known.count(node.path)
                while some:
                    some.sort(key=lambda name: self._rank(prefix + name) == CHUNK)  # metadata tell what chunks are
                    for at in range(0, len(some), BATCH):
                        at_s = time.monotonic()
                        batch = some[at : at + BATCH]
                        rows = self._known.names(node.path, batch) if known is None else known
                        files = [name for name in batch if prefix + name not in nodes]  # those have their own looks
                        self._judge_all(node, files, rows, first=first, since=at > 0)
                        present += len(rows)
                        took += self._spent(at_s, BATCH)
                        yield
                    if known is not None and names is not None:
                        names.update(some)
                        break
                    names = None
                    some = [entry.name for entry in islice(entries, LARGE)]
        except (OSError, Refused) as error:
            self._unlisted(node, error)
            return
        finally:
            self._listing.discard(node)
        if self._nodes.get(node.path) is node and self._folders is not None:
            self._listed(node, facts, names, known, count <= present + len(node.told or ()), began, took, wall)

    def _listed(
        self,
        node: _Folder,
        facts: Any,
        names: set[str] | None,
        known: Mapping[str, Version] | None,
        complete: bool,
        began: float,
        took: float,
        wall: int,
    ) -> None:
        """A listing that has seen everything: what does it lack, and when is the next?

        Of a large folder there are no `names`; `complete`: it lacks nothing that was known when it began.
        """
        first = node.listed < 0
        moved = facts.st_mtime_ns != node.mtime_ns
        if moved or first:
            age = max(0.0, (wall - facts.st_mtime_ns) / 1e9) if first else 0.0
            node.changed = began - age
            self._note_change(facts)
        node.mtime_ns, node.inode, node.listed = facts.st_mtime_ns, facts.st_ino, began
        self.unreadable.pop(node.path, None)
        self._find_unmarked(node, names)
        if names is not None:
            node.empty = not names - (node.temporary or set())
            if node.temporary and not node.temporary <= names:
                self._went_away(node, node.temporary - names)
        else:
            node.empty = False
            self._went_away(node, [name for name in node.temporary or () if self._lacks(node, name)])
        self._find_gone(node, facts, names, known, complete=complete)
        if abs(wall - facts.st_mtime_ns) < TICK_NS or node.missing:
            node.relist = True
        if node in self._crowded:
            node.relist = True
            after = max(self.scan_interval_s, CROWDED_S, SHARE * took)
        else:
            after = max(self.scan_interval_s, SHARE * took) if node.relist else self._after(began - node.changed, took)
        if node.watch >= 0 and self.watch == "events" and not node.relist:
            after = max(after, WATCHED_S)
        self._schedule(node, (self._pass_began if after <= self.scan_interval_s else time.monotonic()) + after)

    def _find_unmarked(self, node: _Folder, names: set[str] | None) -> None:
        """Markers that are there no more say nothing."""
        for path in list(self.markers):
            head, _, name = path.rpartition("/")
            if head == node.path and (self._lacks(node, name) if names is None else name not in names):
                del self.markers[path]
                self.marked += 1

    def look_for_markers(self) -> None:
        """Have those that somebody has taken away say nothing, now."""
        for path in [*self.markers]:
            node = self._nodes.get(path.rpartition("/")[0])
            if self._folders is not None and (node is None or self._lacks(node, path.rpartition("/")[2])):
                del self.markers[path]
                self.marked += 1

    def _find_gone(
        self, node: _Folder, facts: Any, names: set[str] | None, known: Mapping[str, Version] | None, *, complete: bool
    ) -> None:
        told = node.told or set()
        if names is None or known is None:  # a large one: its names are looked up one by one, if any can be missing
            if complete:
                node.missing = None
                return
            known, names = self._known.folder(node.path), set()
        missing = known.keys() - names if known else set()
        for name in told - missing:  # they are back
            self._out.back(_join(node.path, name))
        if not missing:
            node.missing = node.told = None
            return
        told &= missing
        missing -= told
        sure = missing & (node.missing or set())
        later = missing - sure if names else {name for name in missing - sure if self._lacks(node, name)}
        if sure and self._stands(node, facts):
            for name in sure:
                if not self._lacks(node, name):
                    continue
                if self._out.offer_gone(_join(node.path, name)):
                    told.add(name)
                    self._changed()
                else:
                    later.add(name)
        node.told, node.missing = told or None, later or None

    def _stands(self, node: _Folder, facts: Any) -> bool:
        """Is the folder that was listed still the one under its name, below a root that is there?"""
        if not self._present():
            return False
        if node is self._root:
            return True
        try:
            with self.source.folders() as folders:
                there = system.folder_stat(folders.open(node.path))
        except (OSError, Refused):
            return False
        return there.st_ino == facts.st_ino or not self._steady

    def _lacks(self, node: _Folder, name: str) -> bool:
        assert self._folders is not None
        try:
            system.lstat(self._folders.open(node.path), name)
        except FileNotFoundError:
            return True
        except (OSError, Refused):
            return False
        return False

    def _read_unread(self) -> Iterator[None]:
        """What found no room, oldest folders first; pauses where there is no room."""
        _, _, node = heapq.heappop(self._unread)
        if not node.unread or self._nodes.get(node.path) is not node or self._folders is None:
            return
        node.unread = False
        try:
            with system.scan(self._folders.open(node.path)) as entries:
                while batch := [entry.name for entry in islice(entries, BATCH)]:
                    while not self._room():
                        yield
                    self._judge_all(node, batch, self._known.names(node.path, batch), anyway=True)
                    yield
        except (OSError, Refused) as error:
            self._unlisted(node, error)

    def _room(self, times: int = 1) -> bool:
        return self._out.queued < times * ROOM and self._out.held < HELD_ROOM

    # -- files ---------------------------------------------------------------------------------------------------------

    def _judge_all(
        self,
        node: _Folder,
        names: Sequence[str],
        known: Mapping[str, Version],
        *,
        first: bool = False,
        since: bool = False,
        anyway: bool = False,
        told: bool = False,
    ) -> None:
        """Look at names of one folder. ``anyway``: also without room; ``told``: an event named them; ``since``: some
        may be done since `known` was asked for.
        """
        prefix = node.path + "/" if node.path else ""
        changed = []
        for name, found in self._found(node, names, told=told):
            row = known.get(name)
            if row is None or not self._is_version(row, found):
                changed.append((name, found))
            elif first or prefix + name in self._looks:
                self._judge(node, prefix + name, found, row, first=first, anyway=anyway, told=told)
        if since and changed:
            known = self._known.names(node.path, [name for name, _ in changed])
        for name, found in changed:
            self._judge(node, prefix + name, found, known.get(name), first=first, anyway=anyway, told=told)

    def _is_version(self, row: Version, found: os.stat_result) -> bool:
        if row[0] != found.st_size or row[1] != found.st_mtime_ns:
            return False
        return row[2] == (fingerprint(found.st_ino, found.st_ctime_ns) if self._steady else _NO_IDENTITY)

    def _found(self, node: _Folder, names: Sequence[str], *, told: bool) -> Iterator[tuple[str, os.stat_result]]:
        """Those of these names that are there."""
        assert self._folders is not None
        look = system.looker(self._folders.open(node.path))
        for name in names:
            try:
                found = look(name)
            except FileNotFoundError:
                if told:
                    self._soon(node)
                    path = _join(node.path, name)
                    if self._is_temporary(path):
                        self._went_away(node, (name,))
            except OSError as error:
                if not self._unread_path(_join(node.path, name), error):
                    self._soon(node)
            else:
                if self.unreadable:
                    self.unreadable.pop(_join(node.path, name), None)
                yield name, found

    def _judge(
        self,
        node: _Folder,
        path: str,
        found: os.stat_result,
        before: Version | None,
        *,
        first: bool = False,
        anyway: bool = False,
        told: bool = False,
    ) -> str:
        """What is to become of a name that is there: READY, WAIT or IGNORE; else empty."""
        mode = found.st_mode
        if stat.S_ISDIR(mode):
            self._forget_look(path)
            self._enter(path, found, told=told)
            return ""
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            self._forget_look(path)
            if len(self.special) < MOST_TOLD:
                self.special.add(path)
            return ""
        if self._is_temporary(path):
            self._forget_look(path)
            self._note_temporary(node, path)
            return IGNORE
        version = self._version(found)
        rank = self._rank(path)
        if rank >= MARKER and (path not in self.markers or self.markers[path][0] != version):
            self.markers[path] = (version, time.monotonic())  # it says what it says, copied or not
            self.marked += 1
        if self._selection is not None and not self._selection.takes(path):
            return ""
        latest = self._out.latest(path)
        if first or version not in (before, latest):
            self._note_newest(path, found)
            if rank == CHUNK and stat.S_ISREG(mode):
                self._gaps.add(found.st_mtime_ns)
        look = self._looks.get(path)
        moved = look is None or look.version != version
        if rank == METADATA:
            look = self._look_at(path, version, LOOKS // 2)  # those beyond are found by walks
        if version == latest or (latest is None and version == before) or version == self._refused.get(path):
            self._looked(path, look, rank, waits=False)
            return ""
        if not (anyway or self._room(2 if told or rank == METADATA else 1)):
            self._leave_unread(node)
            return ""
        return self._offer(node, path, found, version, rank, before, told=told, moved=moved)

    def _offer(
        self,
        node: _Folder,
        path: str,
        found: os.stat_result,
        version: Version,
        rank: int,
        before: Version | None,
        *,
        told: bool,
        moved: bool,
    ) -> str:
        """A version that has not gone out: is it whole?"""
        look = self._looks.get(path)
        verdict = READY
        if stat.S_ISREG(found.st_mode) and rank < MARKER:
            verdict = self._whole(path, found, time.time())
        if verdict == IGNORE:
            self._note_temporary(node, path)
            self._looked(path, look, rank, waits=False)
            return IGNORE
        if verdict == WAIT:
            self._out.withdraw(path)
            self._wait_for(node, path, version, moved=moved or look is None or not look.waits)
            return WAIT
        self._changed()
        self._looked(path, look, rank, waits=False)
        newest = max(found.st_mtime_ns, found.st_ctime_ns) if self._steady else found.st_mtime_ns
        item = Found(
            path,
            found.st_size,
            found.st_mtime_ns,
            found.st_ino if self._steady else 0,
            found.st_ctime_ns if self._steady else 0,
            found.st_mode,
            found.st_nlink,
            version.fingerprint,
            rank,
            before,
            told or abs(time.time_ns() - newest) < FRESH_NS,
        )
        self._out.offer(item, time.monotonic(), further=before is not None, ending=self._ending)
        return READY

    def _wait_for(self, node: _Folder, path: str, version: Version, *, moved: bool) -> None:
        """It is not whole: look at it again, or at its folder if there is no room for more such files."""
        look = self._look_at(path, version)
        if look is not None:
            look.waits = True
        else:
            moved = time.time() - version.mtime_ns / 1e9 < SETTLES_S
            self._crowded.add(node)
            self._soon(node)
        if moved:
            self._changed()

    def _version(self, found: os.stat_result) -> Version:
        source = fingerprint(found.st_ino, found.st_ctime_ns) if self._steady else _NO_IDENTITY
        return Version(found.st_size, found.st_mtime_ns, source)

    def _leave_unread(self, node: _Folder) -> None:
        if not node.unread:
            node.unread = True
            self._changed()
            self._number += 1
            heapq.heappush(self._unread, (node.mtime_ns, self._number, node))

    def _changed(self) -> None:
        self._changes += 1
        self.changed_s = time.monotonic()

    def note_change(self, path: str, mark: Mark) -> None:
        """Somebody else has seen this version of a file: if it is newer than all that we saw, something has changed."""
        at = mark.ctime_ns if self._steady else mark.mtime_ns
        if at > self.newest_change_ns:
            self.newest_change_ns = self.newest_file_ns = at
            self.newest = path
            self._changed()

    def _note_change(self, found: Any) -> int:
        at: int = found.st_ctime_ns if self._steady else found.st_mtime_ns
        if at > self.newest_change_ns:
            self.newest_change_ns = at
        return at

    def _note_newest(self, path: str, found: os.stat_result) -> None:
        at = self._note_change(found)
        if at > self.newest_file_ns:
            self.newest_file_ns, self.newest = at, path

    def _is_temporary(self, path: str) -> bool:
        if publish.PART_PREFIX in path and publish.part_hash(path.rpartition("/")[2]) is not None:
            return True
        return self._temporary is not None and self._temporary(path)

    def _note_temporary(self, node: _Folder, path: str) -> None:
        name = path.rpartition("/")[2]
        if node.temporary is None:
            node.temporary = set()
        if name not in node.temporary and len(self.temporary_names) < MOST_TOLD:
            node.temporary.add(name)
            self.temporary_names[path] = time.monotonic()
            self._changed()

    def _went_away(self, node: _Folder, names: Collection[str]) -> None:
        for name in list(names):
            path = _join(node.path, name)
            self.temporary_names.pop(path, None)
            if node.temporary is not None:
                node.temporary.discard(name)
            if len(self._went) < MOST_TOLD:
                self._went.append(path)
            self._changed()
        if not node.temporary:
            node.temporary = None

    # -- files that are looked at one by one ---------------------------------------------------------------------------

    def _look_at(self, path: str, version: Version, most: int = 0) -> _Look | None:
        """Have a file looked at now and then; None if there is no room for more."""
        look = self._looks.get(path)
        now = time.monotonic()
        if look is None:
            if len(self._looks) >= (most or LOOKS):
                return None
            look = self._looks[path] = _Look(now)
            age = max(0.0, time.time() - version.mtime_ns / 1e9)
            look.changed, look.version = now - age, version
            self._schedule_look(path, look, now + self._after(age, 0.0))
        elif look.version != version:
            look.changed, look.version = now, version
            self._schedule_look(path, look, now + self.scan_interval_s)
        return look

    def _look_soon(self, path: str, after_s: float) -> None:
        look = self._looks.get(path)
        now = time.monotonic()
        if look is None:
            look = self._looks[path] = _Look(now)
        self._again.add(path)
        self._schedule_look(path, look, now + after_s)

    def _schedule_look(self, path: str, look: _Look, due: float) -> None:
        look.due = due
        self._number += 1
        heapq.heappush(self._looks_due, (due, self._number, path))

    def _looked(self, path: str, look: _Look | None, rank: int, *, waits: bool) -> None:
        """A look has been had; metadata stays on the list."""
        if look is not None:
            look.waits = waits
            if rank != METADATA and not waits and path not in self._again:
                self._looks.pop(path, None)

    def _forget_look(self, path: str) -> None:
        self._looks.pop(path, None)
        self._again.discard(path)

    def _take_looks(self, now: float) -> None:
        for _ in range(LOOKS_AT_ONCE):
            if not self._looks_due or self._looks_due[0][0] > now:
                return
            due, _, path = heapq.heappop(self._looks_due)
            look = self._looks.get(path)
            if look is not None and look.due == due:
                self._take_look(path, look, now)

    def _take_look(self, path: str, look: _Look, now: float) -> None:
        assert self._folders is not None
        head, _, name = path.rpartition("/")
        node = self._nodes.get(head)
        again = path in self._again
        self._again.discard(path)
        try:
            if node is None:
                raise FileNotFoundError
            found = system.lstat(self._folders.open(head), name)
        except (FileNotFoundError, NotADirectoryError, Refused):
            self._lost(path, node)
            return
        except OSError as error:
            self._unread_path(path, error)
            if again:
                self._again.add(path)
            self._schedule_look(path, look, now + self.scan_interval_s)
            return
        self.unreadable.pop(path, None)
        version = self._version(found)
        if again or look.waits or version != look.version:
            changed = version != look.version
            before = self._known.names(head, [name]).get(name)
            self._judge(node, path, found, before, anyway=True)
            if changed:
                look.changed, look.version = now, version
        if self._looks.get(path) is look and look.due <= now:
            self._schedule_look(path, look, now + self._after(now - look.changed, 0.0))

    def _lost(self, path: str, node: _Folder | None) -> None:
        """A file that was to be looked at is not there."""
        if not self._present():
            self._look_soon(path, self.scan_interval_s)
            return
        self._forget_look(path)
        self._out.withdraw(path)
        self.unreadable.pop(path, None)
        self._changed()
        if node is not None:
            self._soon(node)

    # -- events --------------------------------------------------------------------------------------------------------

    def _watch(self, node: _Folder, handle: Any, inode: int) -> None:
        """Have the kernel tell of a folder, before it is listed."""
        if self._inotify is None or (node.watch >= 0 and node.inode == inode):
            return
        self._unwatch(node)
        if len(self._watched) >= self._most_watches and not self._more_watches():
            return
        try:
            node.watch = self._inotify.add(handle)
        except OSError as error:
            self._most_watches = min(self._most_watches, max(1, len(self._watched)))
            self._say(f"no more folders can be watched ({error.strerror}): the others are scanned")
            return
        self._watched[node.watch] = node

    def _more_watches(self) -> bool:
        half = _inotify.limit() // 2
        if self._most_watches < half and self._most_watches >= FIRST_WATCHES:
            self._most_watches = min(half, 2 * self._most_watches)
        if len(self._watched) < self._most_watches:
            return True
        oldest = next(iter(self._watched.values()))
        if time.monotonic() - oldest.changed > WATCHED_S:
            self._unwatch(oldest)
            self._soon(oldest)
            return True
        self._say(f"{len(self._watched)} folders are watched, the most there may be: the others are scanned")
        return False

    def _unwatch(self, node: _Folder) -> None:
        watch, node.watch = node.watch, -1
        if self._inotify is not None and self._watched.get(watch) is node:
            del self._watched[watch]
            self._inotify.remove(watch)

    def _hints(self) -> None:
        """Look at what the kernel tells of, name by name."""
        if self._inotify is None:
            return
        named: dict[_Folder, set[str]] = {}
        until = time.monotonic() + SLICE_S / 2
        while time.monotonic() < until:
            count = 0
            for told in self._inotify.read():
                count += 1
                self._hint(told, named)
            if not count:
                break
        for node, names in named.items():
            if self._nodes.get(node.path) is not node:
                continue
            try:
                some = list(names)
                self._judge_all(node, some, self._known.names(node.path, some), told=True)
            except (OSError, Refused):
                self._soon(node)

    def _hint(self, told: _inotify.Told, named: dict[_Folder, set[str]]) -> None:
        if told.mask & _inotify.OVERFLOW:
            self._say("more changes than the system could tell of: everything is scanned")
            for each in self._watched.values():
                self._want(each)
            return
        node = self._watched.get(told.watch)
        if node is None:
            return
        if told.mask & (_inotify.IGNORED | _inotify.UNMOUNT):
            del self._watched[told.watch]
            node.watch = -1
            self._soon(node)
        elif told.name:
            self._watched.move_to_end(told.watch)
            if told.mask & _inotify.DELETE:
                self._soon(node)
                path = _join(node.path, told.name)
                if not told.mask & _inotify.IS_FOLDER and self._is_temporary(path):
                    self._went_away(node, (told.name,))
            elif told.mask & _inotify.IS_FOLDER or not self._is_temporary(_join(node.path, told.name)):
                named.setdefault(node, set()).add(told.name)


_NO_IDENTITY = fingerprint(0, 0)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
