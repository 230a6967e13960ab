"""The folders of a source that grows are looked at: first at their times, then, where these moved, at every name.

What could not be looked at is never taken for empty: it is tried again. A file is said to be gone only if two good
listings in turn lacked it, it is certainly not there, and its folder stands under its own name below a root that is
there. Of a folder that is no more nothing is said.
"""

from __future__ import annotations

import stat
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from scopeferry.errors import Refused
from scopeferry.kernel.publish import system
from scopeferry.sources import growing_limits as limits
from scopeferry.sources.growing_files import Files
from scopeferry.sources.growing_folders import Folder, Rounds
from scopeferry.sources.growing_hints import Hints
from scopeferry.sources.growing_signs import Signs
from scopeferry.sources.growing_way import Way
from scopeferry.sources.outbox import CHUNK, Outbox, Version
from scopeferry.sources.tree import TICK_NS


@dataclass(slots=True)
class _Listing:
    """What a listing has seen so far. Of a large folder there are neither `names` nor `known`, only how many rows were
    `known_count` when it began, and how many of its names are known.
    """

    began: float
    wall_ns: int
    facts: Any
    names: set[str] | None = field(default_factory=set)
    known: Mapping[str, Version] | None = None
    known_count: int = 0
    known_present: int = 0
    took: float = 0.0


class Listings:
    """Checks and lists folders, a little with each call: `check_some`, `advance` and `read_backlog`."""

    def __init__(
        self,
        files: Files,
        out: Outbox,
        way: Way,
        rounds: Rounds,
        signs: Signs,
        hints: Hints,
        *,
        trusted: bool,
        steady: bool,
    ) -> None:
        self._files, self._out, self._way, self._rounds = files, out, way, rounds
        self._signs, self._hints, self._trusted, self._steady = signs, hints, trusted, steady
        self._known = files.known
        self.active: deque[Iterator[None]] = deque()
        self.backlog: Iterator[None] | None = None
        self.count = 0  # listings that were begun

    def stop(self) -> None:
        """Let nothing that was begun go on."""
        for listing in [*self.active, *([self.backlog] if self.backlog is not None else [])]:
            listing.close()  # type: ignore[attr-defined]
        self.active.clear()
        self._rounds.listing.clear()
        self.backlog = None

    def begin(self, folder: Folder) -> None:
        """List a folder beside those that are being listed."""
        self._rounds.listing.add(folder)
        self.active.append(self._list(folder))

    def advance(self) -> None:
        """Go on with one of them."""
        if next(self.active[0], self) is self:
            self.active.popleft()
        else:
            self.active.rotate(-1)

    def read_backlog(self) -> bool:
        """Read on in what found no room; False if there is none, or no room."""
        if not self._files.room():
            return False
        if self.backlog is None:
            if not self._rounds.unread:
                return False
            self.backlog = self._read_unread()
        if next(self.backlog, self) is self:
            self.backlog = None
        return True

    # -- times of folders ----------------------------------------------------------------------------------------------

    def check_some(self, now: float) -> None:
        """Look at the times of folders that are due."""
        rounds = self._rounds
        began = time.monotonic()
        count = min(limits.BATCH, len(rounds.checks))
        head, look = None, None
        for _ in range(count):
            folder = rounds.checks.popleft()
            above, _, name = folder.path.rpartition("/")
            try:
                if folder is rounds.root:
                    found = system.folder_stat(self._way.open(""))
                else:
                    if look is None or above != head:
                        head, look = above, system.looker(self._way.open(above))
                    found = look(name)
            except (OSError, Refused) as error:
                head = look = None
                self._unlisted(folder, error)
            else:
                self._check(folder, found, now)
        rounds.checked(began, count)

    def _check(self, folder: Folder, found: Any, now: float) -> None:
        if not stat.S_ISDIR(found.st_mode):
            self._drop(folder)
            above = self._rounds.above(folder.path)
            if above is not None:
                self._rounds.want(above)
        elif folder.relist or not self._trusted or not folder.is_as(found, steady=self._steady):
            self._rounds.want(folder, first=True)
        else:
            self._rounds.schedule_calm(folder, now)

    def _drop(self, folder: Folder) -> None:
        """A folder that is no more. Its files are not said to be gone: freeing a disk looks just so."""
        if folder is self._rounds.root or not self._rounds.there(folder):
            return
        self._rounds.remove(folder)
        self._hints.unwatch(folder)
        if folder.marker:
            self._unmark(folder, set())
        self._signs.went_away(folder, folder.temporary or ())
        self._signs.readable(folder.path)
        self._signs.change()

    def _unlisted(self, folder: Folder, error: OSError | Refused) -> None:
        """It could not be looked at: never the same as empty."""
        rounds = self._rounds
        folder.missing = None
        if isinstance(error, OSError) and error.errno in system.GONE:
            rounds.pass_at = 0.0  # the root may be gone
        if isinstance(error, FileNotFoundError | NotADirectoryError | Refused) and folder is not rounds.root:
            if self._way.present():
                self._drop(folder)
                above = rounds.above(folder.path)
                if above is not None:  # a file may be there instead
                    rounds.soon(above)
            return
        again = self._signs.unread(folder.path, error)
        folder.relist = True
        rounds.schedule(folder, time.monotonic() + (limits.LONGEST_S if again else rounds.scan_interval_s))

    # -- names of a folder ---------------------------------------------------------------------------------------------

    def _list(self, folder: Folder) -> Iterator[None]:
        """Look at every name of a folder; pauses between some of them."""
        began, wall_ns = time.monotonic(), time.time_ns()
        folder.relist = folder.wanted = False
        self._rounds.crowded.discard(folder)
        self.count += 1
        try:
            handle, facts = self._open(folder)
            listing = _Listing(began, wall_ns, facts)
            self._hints.watch(folder, handle, facts.st_ino)
            with system.scan(handle) as entries:
                yield from self._read(folder, listing, entries)
        except (OSError, Refused) as error:
            self._unlisted(folder, error)
            return
        finally:
            self._rounds.listing.discard(folder)
        if self._rounds.there(folder) and self._way.is_open:
            self._listed(folder, listing)

    def _open(self, folder: Folder) -> tuple[Any, Any]:
        handle = self._way.open(folder.path)
        facts = system.folder_stat(handle)
        if facts.st_nlink == 0 and folder is not self._rounds.root:  # held open, and removed meanwhile
            self._way.forget()
            handle = self._way.open(folder.path)
            facts = system.folder_stat(handle)
        return handle, facts

    def _read(self, folder: Folder, listing: _Listing, entries: Iterator[Any]) -> Iterator[None]:
        """All names in portions, those of a large folder never all at once."""
        prefix, rank = folder.join(""), self._files.rank
        some = [entry.name for entry in islice(entries, limits.LARGE)]
        large = len(some) == limits.LARGE
        if large:
            listing.names, listing.known_count = None, self._known.count(folder.path)
        else:
            listing.known = self._known.folder(folder.path)
        while some:
            some.sort(key=lambda name: rank(prefix + name) == CHUNK)  # metadata tell what chunks are
            for at in range(0, len(some), limits.BATCH):
                self._judge(folder, listing, some[at : at + limits.BATCH], since=at > 0)
                yield
            if listing.names is not None:
                listing.names.update(some)
            some = [entry.name for entry in islice(entries, limits.LARGE)] if large else []

    def _judge(self, folder: Folder, listing: _Listing, batch: list[str], *, since: bool) -> None:
        at_s = time.monotonic()
        rows = self._known.names(folder.path, batch) if listing.known is None else listing.known
        there, prefix = self._rounds.by_path, folder.join("")
        files = [name for name in batch if prefix + name not in there]  # folders have their own looks
        self._files.judge(folder, files, rows, first=folder.listed < 0, since=since)
        listing.known_present += len(rows)
        listing.took += self._rounds.spent(at_s, limits.BATCH)

    def _listed(self, folder: Folder, listing: _Listing) -> None:
        """A listing that has seen everything: what does it lack, and when is the next?"""
        facts, names = listing.facts, listing.names
        first = folder.listed < 0
        if first or not folder.is_as(facts, steady=self._steady):
            age = max(0.0, (listing.wall_ns - facts.st_mtime_ns) / 1e9) if first else 0.0
            folder.changed = listing.began - age
            self._signs.note(facts)
        folder.mtime_ns, folder.ctime_ns, folder.inode = facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino
        folder.listed = listing.began
        self._signs.readable(folder.path)
        if names is not None:
            folder.empty = not names - (folder.temporary or set())
            self._signs.went_away(folder, (folder.temporary or set()) - names)
        else:
            folder.empty = False
            self._signs.went_away(folder, [name for name in folder.temporary or () if self._lacks(folder, name)])
        if folder.marker:
            self._unmark(folder, names)
        self._find_gone(folder, listing)
        times = (facts.st_mtime_ns, facts.st_ctime_ns) if self._steady else (facts.st_mtime_ns,)
        if folder.missing or any(abs(listing.wall_ns - at) < TICK_NS for at in times):
            folder.relist = True
        self._rounds.schedule_listed(folder, listing.took)

    def _unmark(self, folder: Folder, names: set[str] | None) -> None:
        """Markers that are there no more say nothing."""
        for path in list(self._signs.markers):
            head, _, name = path.rpartition("/")
            if head == folder.path and (self._lacks(folder, name) if names is None else name not in names):
                self._signs.unmark(path)

    def look_for_markers(self) -> None:
        """Have those that somebody has taken away say nothing, now."""
        for path in list(self._signs.markers):
            folder = self._rounds.above(path)
            if self._way.is_open and (folder is None or self._lacks(folder, path.rpartition("/")[2])):
                self._signs.unmark(path)

    # -- what is gone --------------------------------------------------------------------------------------------------

    def _find_gone(self, folder: Folder, listing: _Listing) -> None:
        told = folder.told or set()
        known, names = listing.known, listing.names
        if names is None or known is None:  # a large one: its names are looked up one by one, if any can be missing
            if listing.known_count <= listing.known_present + len(told):
                folder.missing = None
                return
            known, names = self._known.folder(folder.path), set()
        missing = known.keys() - names if known else set()
        for name in told - missing:  # they are back
            self._out.back(folder.join(name))
        if not missing:
            folder.missing = folder.told = None
            return
        told &= missing
        missing -= told
        sure = missing & (folder.missing or set())
        later = missing - sure if names else {name for name in missing - sure if self._lacks(folder, name)}
        if sure and self._way.stands(folder.path, listing.facts.st_ino):
            for name in sure:
                if not self._lacks(folder, name):
                    continue
                if self._out.offer_gone(folder.join(name)):
                    told.add(name)
                    self._signs.change()
                else:
                    later.add(name)
        folder.told, folder.missing = told or None, later or None

    def _lacks(self, folder: Folder, name: str) -> bool:
        return self._way.lacks(folder.path, name)

    # -- what found no room --------------------------------------------------------------------------------------------

    def _read_unread(self) -> Iterator[None]:
        """What found no room, oldest folders first; pauses where there is no room."""
        folder = self._rounds.take_unread()
        if folder is None or not self._way.is_open:
            return
        try:
            with system.scan(self._way.open(folder.path)) as entries:
                while batch := [entry.name for entry in islice(entries, limits.BATCH)]:
                    while not self._files.room():
                        yield
                    self._files.judge(folder, batch, self._known.names(folder.path, batch), anyway=True)
                    yield
        except (OSError, Refused) as error:
            self._unlisted(folder, error)
