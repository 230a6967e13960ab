"""What is to become of each name that is seen in a source that grows: nothing, wait, or out with it.

Nothing comes out twice in one version: what a listing asked about a folder may be old by the time it gets to a name, so
a name that seems new is asked for once more. Nothing comes out that is not whole by `whole`, nor temporary names.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from scopeferry.errors import Refused
from scopeferry.kernel import publish
from scopeferry.kernel.journal import fingerprint
from scopeferry.kernel.publish import system
from scopeferry.sources import growing_limits as limits
from scopeferry.sources.growing_folders import Folder, Rounds
from scopeferry.sources.growing_looks import Look, Looks
from scopeferry.sources.growing_signs import Signs
from scopeferry.sources.growing_way import Way
from scopeferry.sources.known import Known
from scopeferry.sources.outbox import CHUNK, MARKER, METADATA, Found, Outbox, Version
from scopeferry.sources.tree import OURS, Selection

READY, WAIT, IGNORE = "ready", "wait", "ignore"
_NO_IDENTITY = fingerprint(0, 0)


class Whole(Protocol):
    """When is a file whole? It may bear ``again_s``: in how many seconds a look at the one that was asked for last may
    tell more, if that is to be before the next pass.
    """

    def __call__(self, path: str, found: os.stat_result, now_s: float) -> str:
        """READY, WAIT (asked again) or IGNORE (a temporary name); `now_s` is ``time.time()``."""


def at_sight(path: str, found: os.stat_result, now_s: float) -> str:
    """Every file is whole as soon as it is seen: for writers that rename."""
    del path, found, now_s
    return READY


def all_chunks(path: str) -> int:
    """A rank: every file is a chunk."""
    del path
    return CHUNK


class Rules(NamedTuple):
    """What is asked about files: see ``GrowingTree``."""

    whole: Whole
    rank: Callable[[str], int]
    temporary: Callable[[str], bool] | None
    selection: Selection | None
    known: Known


class Seen(NamedTuple):
    """A file in one version, and how it was come upon. ``first``: with the first listing of its folder; ``anyway``: to
    be taken also without room; ``told``: an event named it.
    """

    path: str
    found: os.stat_result
    version: Version
    before: Version | None
    rank: int
    first: bool
    anyway: bool
    told: bool


class Files:
    """Looks at names, and offers to `out` what is whole and not done. While `ending` nothing is held off."""

    def __init__(self, rules: Rules, out: Outbox, way: Way, rounds: Rounds, signs: Signs, *, steady: bool) -> None:
        self._whole, self.rank, self._temporary, self._selection, self.known = rules
        self._out, self._way, self._rounds, self._signs, self._steady = out, way, rounds, signs, steady
        self.looks = Looks(rounds)
        self.refused: dict[str, Version] = {}
        self.ending = False

    def room(self, times: int = 1) -> bool:
        """Is there room for more that waits to go?"""
        return self._out.queued < times * limits.ROOM and self._out.held < limits.HELD_ROOM

    def is_temporary(self, path: str) -> bool:
        """Is it a temporary name, ours or the writer's?"""
        if publish.PART_PREFIX in path and publish.part_hash(path.rpartition("/")[2]) is not None:
            return True
        return self._temporary is not None and self._temporary(path)

    # -- names of a folder ---------------------------------------------------------------------------------------------

    def judge(
        self,
        folder: Folder,
        names: Sequence[str],
        known: Mapping[str, Version],
        *,
        first: bool = False,
        since: bool = False,
        anyway: bool = False,
        told: bool = False,
    ) -> None:
        """Look at names of one folder; raises OSError or Refused if it cannot be opened.

        ``since``: some may be done since `known` was asked for; the rest as in ``Seen``.
        """
        prefix = folder.join("")
        changed = []
        for name, found in self._found(folder, names, told=told):
            row = known.get(name)
            if row is None or not self._is_version(row, found):
                changed.append((name, found))
            elif first or prefix + name in self.looks.by_path:
                self._judge(folder, prefix + name, found, row, first=first, anyway=anyway, told=told)
        if since and changed:
            known = self.known.names(folder.path, [name for name, _ in changed])
        for name, found in changed:
            self._judge(folder, prefix + name, found, known.get(name), first=first, anyway=anyway, told=told)

    def _found(self, folder: Folder, names: Sequence[str], *, told: bool) -> Iterator[tuple[str, os.stat_result]]:
        """Those of these names that are there."""
        look = system.looker(self._way.open(folder.path))
        for name in names:
            try:
                found = look(name)
            except FileNotFoundError:
                if told:
                    self._rounds.soon(folder)
                    if self.is_temporary(folder.join(name)):
                        self._signs.went_away(folder, (name,))
            except OSError as error:
                if not self._signs.unread(folder.join(name), error):
                    self._rounds.soon(folder)
            else:
                if self._signs.unreadable:
                    self._signs.readable(folder.join(name))
                yield name, publish.noted_facts(found)

    def _is_version(self, row: Version, found: os.stat_result) -> bool:
        if row[0] != found.st_size or row[1] != found.st_mtime_ns:
            return False
        return row[2] == (fingerprint(found.st_ino, found.st_ctime_ns) if self._steady else _NO_IDENTITY)

    def _version(self, found: os.stat_result) -> Version:
        source = fingerprint(found.st_ino, found.st_ctime_ns) if self._steady else _NO_IDENTITY
        return Version(found.st_size, found.st_mtime_ns, source)

    # -- one name ------------------------------------------------------------------------------------------------------

    def _judge(
        self,
        folder: Folder,
        path: str,
        found: os.stat_result,
        before: Version | None,
        *,
        first: bool = False,
        anyway: bool = False,
        told: bool = False,
    ) -> None:
        mode = found.st_mode
        if stat.S_ISDIR(mode):
            self.looks.forget(path)
            self._enter(path, found, told=told)
        elif not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            self.looks.forget(path)
            self._signs.add_special(path)
        elif self.is_temporary(path):
            self.looks.forget(path)
            self._signs.temporary(folder, path)
        else:
            version, rank = self._version(found), self.rank(path)
            if rank >= MARKER:
                self._signs.marker(folder, path, version)
            if self._selection is None or self._selection.takes(path):
                self._judge_file(folder, Seen(path, found, version, before, rank, first, anyway, told))

    def _enter(self, path: str, found: os.stat_result, *, told: bool) -> None:
        """A folder in a folder."""
        folder = self._rounds.by_path.get(path)
        if folder is None:
            if path.rpartition("/")[2] == OURS or not (self._selection is None or self._selection.enters(path)):
                return
            self._signs.change()
            self._rounds.want(self._rounds.add(path), first=told)
        elif not folder.is_as(found, steady=self._steady):
            self._rounds.want(folder, first=True)
            if found.st_ino != folder.inode and folder.listed >= 0:
                self._way.moved = True

    def _judge_file(self, folder: Folder, seen: Seen) -> None:
        path, version, rank = seen.path, seen.version, seen.rank
        latest = self._out.latest(path)
        if seen.first or version not in (seen.before, latest):
            self._signs.note_file(path, seen.found)
            if rank == CHUNK and stat.S_ISREG(seen.found.st_mode):
                self._signs.note_pause(path, seen.found.st_mtime_ns)
        look = self.looks.by_path.get(path)
        moved = look is None or look.version != version
        if rank == METADATA:
            look = self.looks.at(path, version, limits.LOOKS // 2)  # those beyond are found by walks
        if version == latest or (latest is None and version == seen.before) or version == self.refused.get(path):
            self.looks.had(path, look, rank)
        elif seen.anyway or self.room(2 if seen.told or rank == METADATA else 1):
            self._offer(folder, seen, moved=moved)
        elif self._rounds.leave_unread(folder):
            self._signs.change()

    def _offer(self, folder: Folder, seen: Seen, *, moved: bool) -> None:
        """A version that has not gone out: is it whole?"""
        path, found, rank = seen.path, seen.found, seen.rank
        look = self.looks.by_path.get(path)
        verdict = READY
        if stat.S_ISREG(found.st_mode) and rank < MARKER:
            verdict = self._whole(path, found, time.time())
        if verdict == IGNORE:
            self._signs.temporary(folder, path)
            self.looks.had(path, look, rank)
        elif verdict == WAIT:
            self._out.withdraw(path)
            self._wait_for(folder, path, seen.version, moved=moved or look is None or not look.waits)
        else:
            self._signs.change()
            self.looks.had(path, look, rank)
            further = seen.before is not None
            self._out.offer(self._item(seen), time.monotonic(), further=further, ending=self.ending)

    def _item(self, seen: Seen) -> Found:
        found = seen.found
        newest = max(found.st_mtime_ns, found.st_ctime_ns) if self._steady else found.st_mtime_ns
        return Found(
            seen.path,
            found.st_size,
            found.st_mtime_ns,
            found.st_ino if self._steady else 0,
            found.st_ctime_ns if self._steady else 0,
            found.st_mode,
            found.st_nlink,
            seen.version.fingerprint,
            seen.rank,
            seen.before,
            seen.told or abs(time.time_ns() - newest) < limits.FRESH_NS,
        )

    def _wait_for(self, folder: Folder, path: str, version: Version, *, moved: bool) -> None:
        """It is not whole: look at it again, or at its folder if there is no room for more such files."""
        look = self.looks.at(path, version)
        if look is not None:
            look.waits = True
            again_s = getattr(self._whole, "again_s", 0.0)
            if moved and 0 < again_s < self._rounds.scan_interval_s:
                self.looks.schedule(path, look, time.monotonic() + again_s)
        else:
            moved = time.time() - version.mtime_ns / 1e9 < limits.SETTLES_S
            self._rounds.crowded.add(folder)
            self._rounds.soon(folder)
        if moved:
            self._signs.change()

    # -- files that are looked at one by one ---------------------------------------------------------------------------

    def take_looks(self, now: float) -> None:
        """Look at some of those that are due."""
        for path, look in self.looks.due(now):
            self._take_look(path, look, now)

    def _take_look(self, path: str, look: Look, now: float) -> None:
        looks = self.looks
        head, _, name = path.rpartition("/")
        folder = self._rounds.by_path.get(head)
        again = path in looks.again
        looks.again.discard(path)
        try:
            if folder is None:
                raise FileNotFoundError
            found = publish.noted_facts(system.lstat(self._way.open(head), name))
        except (FileNotFoundError, NotADirectoryError, Refused):
            self._lost(path, folder)
            return
        except OSError as error:
            self._signs.unread(path, error)
            if again:
                looks.again.add(path)
            looks.schedule(path, look, now + self._rounds.scan_interval_s)
            return
        self._signs.readable(path)
        version = self._version(found)
        if again or look.waits or version != look.version:
            changed = version != look.version
            self._judge(folder, path, found, self.known.names(head, [name]).get(name), anyway=True)
            if changed:
                look.changed, look.version = now, version
        looks.schedule_next(path, look, now)

    def _lost(self, path: str, folder: Folder | None) -> None:
        """A file that was to be looked at is not there."""
        if not self._way.present():
            self.looks.soon(path, self._rounds.scan_interval_s)
            return
        self.looks.forget(path)
        self._out.withdraw(path)
        self._signs.readable(path)
        self._signs.change()
        if folder is not None:
            self._rounds.soon(folder)
