"""What is to be done: source, destination and journal merged folder by folder (``transfer.md`` 3.4).

Each source folder and its twin are listed once and merged with the journal's rows of that folder. The result goes into
the journal as rows DONE or open; the copy reads the open ones. "Exists" is never evidence: a file is skipped only if
our own row still fits on both sides. Nothing is written to the destination here but the removal of our own left-over
temporary files.

The loop over the files of a folder is written for the rerun with nothing to do: two `stat` calls and one comparison a
file.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from stat import S_ISDIR
from typing import TYPE_CHECKING, Any, NamedTuple

from scopeferry.copying.order import stored_path
from scopeferry.copying.record import GIVEN, names_given
from scopeferry.errors import ItemError, Refused, ScopeferryError
from scopeferry.kernel import journal as states
from scopeferry.kernel import publish
from scopeferry.kernel.events import Event
from scopeferry.kernel.journal import DONE, HALF, INODE, MASK, SIZE, TIME, Journal, Row, fingerprint
from scopeferry.kernel.publish import LARGE, Folders, system
from scopeferry.logs import printable
from scopeferry.sources.tree import OURS, Selection, TreeSource
from scopeferry.stores.local import LocalStore

if TYPE_CHECKING:
    from scopeferry.copying.settled import Settled

NOTHING = fingerprint(0, 0)  # where inode and change time are no evidence
_SYMLINKS = "link:"  # before the inode of a symbolic link, where hard links are noted
CHUNK = 4096  # entries of a folder in memory at a time
SHORT = 40  # bytes of a name that every file system holds
MAYBE_BESIDE = {states.JUDGE, states.CONFLICT, states.CHECK, states.CHECK_STORED}  # a twin of equal size and time, too


@dataclass(slots=True)
class Totals:
    """What a walk found. Bytes are file sizes; ``room`` counts what the copy will allocate at most."""

    files: int = 0
    folders: int = 0
    bytes: int = 0
    done: int = 0
    done_bytes: int = 0
    open: int = 0
    open_bytes: int = 0
    room: int = 0
    new_files: int = 0
    new_folders: int = 0
    extras: int = 0
    kept: int = 0
    links: int = 0
    renamed: int = 0


@dataclass(slots=True)
class Plan:
    """One walk. ``recipe`` is the id of what is kept, how names are mapped and which digests; iterate over `walk`.

    ``only`` is the name of the one file of the root that is wanted; ``again`` marks a second walk of the same run:
    what failed in this run and has not changed since is left alone, and notes are not said twice. ``source_only``: a
    file that is settled and has not changed at the source is not looked at again at the destination. ``tends``: as in
    `Order`. ``relinks``: equal files of ours that are one inode at the source become links, else that is said as a
    loss. ``gone`` is told of each item of ours whose source is not there any more.
    """

    source: TreeSource
    store: LocalStore
    journal: Journal
    recipe: int
    selection: Selection
    policy: str = "refuse"
    everything: bool = False
    names: Any = None
    read_only: bool = False
    only: str | None = None
    again: bool = False
    may_fork: bool = False
    source_only: bool = False
    tends: bool = False
    relinks: bool = True
    gone: Callable[[bytes, Any], None] | None = None
    totals: Totals = field(default_factory=Totals)
    unlisted: int = 0
    at: Folders | None = None
    _visited: int = 0
    _has_links: bool = False

    def walk(self) -> Iterator[Event | None]:
        """List everything, write the plan, and yield what there is to say; ``None`` as a tick within a large folder."""
        scratch = self.journal.scratch()
        scratch.clear()
        stack = [""]
        known = self._settled()
        with self.source.folders() as here, _twin(self.store.root) as there:
            self.at = there
            while stack:
                path = stack.pop()
                quiet = known.pop(os.fsencode(path) + b"/" if path else b"", None) if known else None
                yield from self._folder(path, here, there, stack, scratch, quiet)
            if self._has_links:
                yield from self._group_links(scratch)
                yield from self._lost_links(scratch)
            if self._visited < self.journal.folder_count():
                yield from self._vanished_folders(here)
        self.journal.commit()

    def apart(self) -> Plan:
        """The same plan with counts of its own."""
        return replace(self, totals=Totals())

    def _settled(self) -> dict[bytes, Settled]:
        if not self.may_fork:
            return {}
        from scopeferry.copying.settled import settled

        return settled(self)

    # -- one folder ----------------------------------------------------------------------------------------------------

    def _folder(
        self,
        path: str,
        here: Folders,
        there: Folders | None,
        stack: list[str],
        scratch: Any,
        quiet: Settled | None = None,
    ) -> Iterator[Event | None]:
        try:
            folder = here.open(path)
            facts = publish.noted_facts(system.folder_stat(folder))
            if quiet is not None:
                listing = _Named.of(folder, quiet[4])
            else:
                listing = system.scan(folder) if self.only is None else _Named.one(folder, self.only)
        except (OSError, ScopeferryError) as error:
            if isinstance(error, OSError) and not self.source.answers():
                raise
            self.unlisted += 1
            reason = getattr(error, "strerror", None) or str(error)
            yield _failed(path, "SF-205", f"folder not listed: {printable(path) or '.'}: {reason}", "folder")
            return
        try:
            stored_path = path if self.names is None else self.names.path(path)
            twin = None if there is None else self._twin_folder(there, stored_path, path, facts)
        except (FileNotFoundError, NotADirectoryError):
            twin = None
            if there is not None and (spelt := self._other_spelling(there, stored_path)):
                listing.close()
                message = f"the destination cannot tell this name from {printable(spelt)}: {printable(path)}"
                yield _failed(path, "SF-208", message, "folder")
                return
        except (Refused, ItemError) as error:
            listing.close()
            if isinstance(error, Refused) or self.names.is_news(path):
                yield _failed(path, error.code, str(error), "folder")
            return
        except OSError as error:
            listing.close()
            if not self.stands():
                raise
            message = f"{error.strerror} at the destination: {printable(path)}"
            yield _failed(path, self.store.translated(error, path).code, message, "folder")
            return
        self._visited += 1
        if quiet is not None and twin is None:  # it has gone since it was looked at
            quiet, listing = None, system.scan(folder)
        if quiet is None:
            yield from self._merge(path, folder, facts, listing, twin, stack, scratch)
        else:
            yield from self._rest(path, folder, facts, listing, twin, stack, scratch, quiet)

    def _twin_folder(self, there: Folders, stored_path: str, path: str, facts: os.stat_result) -> Any:
        twin = there.open(stored_path)
        if self.only is None and self.is_same(facts, system.folder_stat(twin)):  # one file may be copied beside itself
            raise Refused(_CONFLICTS["SF-507"].format(printable(path)), code="SF-507", path=path)
        return twin

    def is_same(self, source: os.stat_result, stored: os.stat_result) -> bool:
        """Is what stands at the destination the source itself: another name of its inode, or a mount of it?"""
        steady = self.source.disk.steady and self.store.disk.steady
        return steady and (source.st_dev, source.st_ino) == (stored.st_dev, stored.st_ino)

    def stands(self) -> bool:
        """Is the destination there? (A rehearsal makes nothing there to learn it.)"""
        return self.store.present() if self.read_only else self.store.answers()

    def _other_spelling(self, there: Folders, stored: str) -> str:
        """The name that stands in the way of a folder, where the mount would not find it; empty if there is none."""
        rules = getattr(self.names, "rules", None)
        if rules is None or not rules.hides:
            return ""
        head, _, name = stored.rpartition("/")
        try:
            with system.scan(there.open(head)) as found:
                return next((one.name for one in found if rules.key(one.name) == rules.key(name)), "")
        except OSError:
            return ""

    def _merge(
        self, path: str, folder: Any, facts: os.stat_result, listing: Any, twin: Any, stack: list[str], scratch: Any
    ) -> Iterator[Event | None]:
        head = f"{path}/" if path else ""
        prefix = os.fsencode(head)
        known = self.journal.folder_facts(prefix)
        merge = FolderMerge(self, path, head, folder, twin)
        with listing as found:
            entries = list(islice(found, CHUNK))
            small = len(entries) < CHUNK and (known is None or self.journal.count(prefix) <= 4 * CHUNK)
            rows = self.journal.raw_folder(prefix) if small and known is not None else {}
            if self.names is not None and self.only is None:
                self._twins(merge, prefix, entries if small else None, rows)
            while entries:
                if not small:
                    raw = [os.fsencode(entry.name) for entry in entries]
                    scratch.add_names(raw)
                    rows = self.journal.rows(prefix, raw) if known is not None else {}
                merge.entries(entries, rows, scratch)
                if merge.changed:
                    self.journal.plan(prefix, merge.changed)
                    merge.changed = []
                    known = self.journal.folder_facts(prefix)
                if not small:
                    yield None
                entries = [] if small else list(islice(found, CHUNK))
        yield from (event for event in merge.events if event.kind == "failed" or not self.again)
        names = {entry.name for entry in merge.all} if small else None
        if twin is not None and self.only is None:
            self._extras(prefix, twin, names, rows if small else None, scratch)
        elif twin is not None:
            self._remove_parts(prefix, twin, _parts_in(twin))
        yield from self._vanished(prefix, rows if small else None, scratch)
        if not small:
            scratch.clear_names()
        if self.only is None:
            self._note_folder(prefix, folder, facts, twin, known)
        stack.extend(head + name for name in sorted(merge.folders, reverse=True))
        totals = self.totals
        totals.folders += 1
        totals.new_folders += twin is None
        yield Event("found", path=path, items=merge.count, bytes=merge.bytes)

    def _rest(
        self,
        path: str,
        folder: Any,
        facts: os.stat_result,
        listing: Any,
        twin: Any,
        stack: list[str],
        scratch: Any,
        quiet: Settled,
    ) -> Iterator[Event]:
        """A folder that has been looked at: what is settled is taken as it was found, the rest is judged."""
        head = f"{path}/" if path else ""
        prefix = os.fsencode(head)
        merge = FolderMerge(self, path, head, folder, twin)
        known = self.journal.folder_facts(prefix)
        count, size, extras, folders, left = quiet
        if left:
            rows = self.journal.rows(prefix, map(os.fsencode, left))
            merge.entries(listing.found, rows, scratch)
            if merge.changed:
                self.journal.plan(prefix, merge.changed)
            yield from (event for event in merge.events if event.kind == "failed" or not self.again)
            yield from self._vanished(prefix, rows, scratch)
        self._note_folder(prefix, folder, facts, twin, known)
        totals = self.totals
        totals.folders += 1
        totals.files += count
        totals.done += count
        totals.bytes += size
        totals.done_bytes += size
        totals.extras += extras
        stack.extend(head + name for name in sorted((*folders, *merge.folders), reverse=True))
        yield Event("found", path=path, items=count + merge.count, bytes=size + merge.bytes)

    def _twins(self, merge: FolderMerge, prefix: bytes, entries: list[Any] | None, rows: dict[bytes, Any]) -> None:
        """Let `names` see all names of a folder: those that stand at the destination keep theirs."""
        journal = self.journal
        renamed = journal.renamed(prefix).items()
        held = {os.fsdecode(name): os.fsdecode(stored.rpartition(b"/")[2]) for name, stored in renamed}

        def stands(name: str) -> bool:
            raw = os.fsencode(name)
            row = rows.get(raw) if entries is not None else journal.rows(prefix, [raw]).get(raw)
            return (row is not None and row[8] is not None) or journal.folder_id(prefix + raw + b"/") is not None

        if entries is not None:
            listed = {entry.name for entry in entries if merge.takes(entry)}
            listed.update(os.fsdecode(raw) for raw, row in rows.items() if row[8] is not None)
            found = self.names.enter(merge.path, listed, held, stands)
        else:
            groups = journal.scratch().twins(self._keys(merge, prefix))
            decoded = ([os.fsdecode(raw) for raw in group] for group in groups)
            found = self.names.decide(merge.path, decoded, held, stands)
        for name, stored in found.items():  # a file's is noted when it is copied; a folder has no row
            if name not in held and stat.S_ISDIR(system.lstat(merge.folder, name).st_mode):
                stored_path = f"{self.names.path(merge.path)}/{stored}".lstrip("/")
                journal.plan(prefix, ())
                journal.note("as", [(prefix, os.fsencode(name), os.fsencode(stored_path))])

    def _keys(self, merge: FolderMerge, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(what the destination takes for the same, name) of all names of a folder too large for memory."""
        key = self.names.key
        with (
            self.source.folders() as own,
            system.scan(own.open(merge.path)) as listing,
        ):  # two listings, two descriptors
            for entry in listing:
                if merge.takes(entry) and (found := key(entry.name)) is not None:
                    yield os.fsencode(found), os.fsencode(entry.name)
        for row in self.journal.rows_of(prefix):
            if (found := key(os.fsdecode(row[0]))) is not None:
                yield os.fsencode(found), row[0]

    def _note_folder(self, prefix: bytes, folder: Any, facts: os.stat_result, twin: Any, known: Any) -> None:
        """Folders whose mode, time or extended attributes differ from the source's are set right at the end."""
        touched = self._folder_state(prefix, folder, facts, twin, known)
        if touched is not None:
            self.journal.plan(prefix, (), mode=facts.st_mode & 0o7777, mtime_ns=facts.st_mtime_ns, touched=touched)

    def _folder_state(self, prefix: bytes, folder: Any, facts: os.stat_result, twin: Any, known: Any) -> bool | None:
        """Is a folder to be set right? None if the journal has it as it is on both sides."""
        right = False
        if twin is not None:
            there, keep, store = publish.noted_facts(system.folder_stat(twin)), self.source.keep, self.store
            wanted = self.source.attributes(facts)
            right = ("mode" not in keep or "mode" in store.lacks or there.st_mode & 0o7777 == wanted.mode) and (
                "times" not in keep or abs(there.st_mtime_ns - facts.st_mtime_ns) < store.mtime_step_ns
            )
            right = right and self._has_attributes(prefix, folder, twin)
        noted = known is not None and known[1:3] == (facts.st_mode & 0o7777, facts.st_mtime_ns)
        return None if noted and (right or known[3]) else not right

    def _has_attributes(self, prefix: bytes, folder: Any, twin: Any) -> bool:
        """Has the copy of a folder the extended attributes of its source, and none that it was given and should not
        have any more? Where it could not take them, only new names count.
        """
        if not self.source.keep & system.ATTRIBUTES:
            return True
        wanted, have = self.source.kept_xattrs(folder), system.xattrs(twin, near=not self.store.disk.network)
        if not (wanted or have):
            return True
        given = names_given(self.journal.detail(prefix, b"", GIVEN))
        if self.journal.detail(prefix, b"", "lost"):
            return given == wanted.keys()
        return wanted.items() <= have.items() and not (given - wanted.keys()) & have.keys()

    def _extras(
        self, prefix: bytes, twin: Any, names: set[str] | None, rows: dict[bytes, Any] | None, scratch: Any
    ) -> None:
        """Names only at the destination: counted; our own left-over temporary files are removed."""
        parts: list[str] = []
        with system.scan(twin) as found:
            for entry in found:
                name = entry.name
                if names is not None and name in names:
                    continue
                raw = os.fsencode(name)
                if (names is None and scratch.has_name(raw)) or (not prefix and name == OURS):
                    continue
                if publish.part_hash(name) is not None:
                    parts.append(name)
                    continue
                known = (rows or {}).get(raw) or self.journal.rows(prefix, [raw]).get(raw)
                if known is not None or (self.names is not None and self.names.is_stored(prefix, name)):
                    continue
                self.totals.extras += not self._is_kept_beside(prefix, raw)
        self.totals.extras += self._remove_parts(prefix, twin, parts)

    def _is_kept_beside(self, prefix: bytes, name: bytes) -> bool:
        """Is this our version of a file, that an earlier run put beside somebody's?"""
        return b".scopeferry-" in name and prefix + name in self.journal.details("as", prefix).values()

    def _remove_parts(self, prefix: bytes, twin: Any, names: list[str]) -> int:
        """Remove the temporary files of paths that we know, unless their copy may go on; how many are not ours."""
        if not names:
            return 0
        parts: dict[str | None, list[str]] = {}
        for name in names:
            parts.setdefault(publish.part_hash(name), []).append(name)
        extras = 0
        for row in self.journal.rows_of(prefix):
            for name in parts.pop(self._part_hash(prefix + row[0]), ()):
                resumes = states.DONE < row[2] < states.FAILED and row[3] >= LARGE
                extras += not (resumes or self.read_only or _unlinked(twin, name))
        return extras + sum(map(len, parts.values()))

    def _part_hash(self, key: bytes) -> str:
        """What the temporary names of an item have in common."""
        try:
            return publish.path_hash(key if self.names is None else os.fsencode(self.names.full(os.fsdecode(key))))
        except ItemError:  # the destination cannot hold its name
            return ""

    def _vanished(self, prefix: bytes, rows: dict[bytes, Any] | None, scratch: Any) -> Iterator[Event]:
        """Rows of this folder whose source is gone: what is left of `rows`, or (None) all that were not listed."""
        gone: list[bytes] = []
        never: list[tuple[bytes, Row, dict[str, Any]]] = []
        for row in self.journal.rows_of(prefix) if rows is None else rows.values():
            raw = row[0]
            if rows is None and scratch.has_name(raw):
                continue
            name = os.fsdecode(prefix + raw)
            if not (self.selection.takes(name) if self.selection.rules else True):
                continue
            if row[2] == states.REPLACE and row[8] is not None and self.gone is None:
                never.append((prefix, Row._make(row)._replace(state=states.FAILED), {}))
                yield _failed(name, "SF-202", f"vanished before its new version was copied: {printable(name)}")
            elif row[2] == states.DONE or row[8] is not None:
                yield from self._outlives(prefix + raw, row)
            elif row[2] in {states.FAILED, states.CONFLICT}:
                if not self.again:
                    gone.append(raw)
            else:
                gone.append(raw)
                if row[3] >= LARGE and not self.read_only:
                    self._remove_parts_of(prefix + raw)
                if self.tends:  # it was never copied, and is not wanted
                    continue
                yield _failed(name, "SF-202", f"vanished before it was copied: {printable(name)}")
        if never:
            self.journal.settle(never)
        if gone:
            self.journal.forget(prefix, gone)

    def _outlives(self, path: bytes, row: Any) -> Iterator[Event]:
        """What became of an item of ours whose source is gone."""
        name = os.fsdecode(path)
        if self.gone is None and self._is_nowhere(path):
            yield _failed(name, "SF-215", f"gone at the source, and missing in the copy: {printable(name)}")
            return
        self.totals.kept += 1
        if self.gone is not None:
            self.gone(path, row)
        elif self.totals.kept == 1:
            yield _note(name, "SF-903", f"gone at the source, kept: {printable(name)}")

    def _is_nowhere(self, path: bytes) -> bool:
        """Is the copy of an item, whose source is gone, gone as well?"""
        try:
            head, _, name = stored_path(self.journal, self.names, path).rpartition("/")
            if self.at is not None:
                system.lstat(self.at.open(head), name)
        except (FileNotFoundError, NotADirectoryError, ScopeferryError):  # the last: no folder where its folder was
            return True
        except OSError:
            if not self.stands():
                raise
            return False
        return self.at is None

    def _remove_parts_of(self, key: bytes) -> None:
        """Remove what an earlier run left of a large file that is gone now."""
        path = os.fsdecode(key).rpartition("/")[0]
        try:
            folder = (
                self.at.open(path if self.names is None else self.names.path(path)) if self.at is not None else None
            )
        except (OSError, ScopeferryError):
            return
        if folder is not None:
            wanted = self._part_hash(key)
            for name in _parts_in(folder):
                if publish.part_hash(name) == wanted:
                    _unlinked(folder, name)

    def _vanished_folders(self, here: Folders) -> Iterator[Event]:
        scratch = self.journal.scratch()
        for prefix, _, _ in self.journal.folders():
            path = os.fsdecode(prefix).rstrip("/")
            head, _, name = path.rpartition("/")
            try:
                if path and stat.S_ISDIR(system.lstat(here.open(head), name).st_mode):
                    continue
            except (OSError, ScopeferryError):
                pass
            if path:
                self._sweep(prefix, path)
                yield from self._vanished(prefix, None, scratch)

    def _sweep(self, prefix: bytes, path: str) -> None:
        """Remove what a killed run left in a folder whose source is gone."""
        try:
            stored = path if self.names is None else self.names.path(path)
            twin = self.at.open(stored) if self.at is not None else None
            if twin is not None:
                self._remove_parts(prefix, twin, _parts_in(twin))
        except (OSError, ScopeferryError):
            return

    # -- hard links ----------------------------------------------------------------------------------------------------

    def _group_links(self, scratch: Any) -> Iterator[Event]:
        """One inode with several names is copied once; the other names are linked to it at the end."""
        for group in scratch.link_groups():
            done = [path for path, state in group if state == states.DONE]
            usable = [path for path, state in group if state not in {states.CONFLICT, states.FAILED}]
            if not usable:
                continue
            ours = [path for path, state in group if state in {states.CHECK, *states.CHECK_ONE}]
            leader = (done or ours or usable)[0]
            first = self._inode_of(leader)
            for path, state in group:
                stands = state in {states.CHECK, *states.CHECK_ONE} or (
                    state == states.JUDGE and self.policy != "keep-both"
                )
                checks = stands and first is not None and self._inode_of(path) == first
                apart = state == states.DONE and path != leader and self._is_apart(path, leader, first)
                if apart and not self.relinks:
                    yield _lost_link(path, "stands as a file of its own, a hard link at the source")
                    continue
                wanted = path != leader and (checks or apart or state in {states.COPY, states.REPLACE})
                if wanted and (state == states.COPY or not self._is_beside(path)):
                    counted = self.again and state == states.DONE
                    self._link(path, state, leader, sends=not (checks or apart), counted=counted)

    def regroup(self) -> None:
        """Once all files are there: names of one inode that stand as files of their own (they were there, or a run was
        killed while it replaced them) become links.
        """
        if not (self._has_links and self.relinks):
            return
        with Folders(self.store.root) as self.at:
            for group in self.journal.scratch().link_groups():
                rows = {path: self.journal.row(path) for path, state in group if state != states.DONE}
                ours = [path for path, row in rows.items() if row is not None and row.state == states.DONE]
                done = [path for path, state in group if state == states.DONE]
                if not ours:
                    continue
                leader = (done or ours)[0]
                first = self._inode_of(leader)
                for path in ours:
                    if path != leader and self._is_apart(path, leader, first) and not self._is_beside(path):
                        self._link(path, states.DONE, leader, sends=False, counted=True)

    def _lost_links(self, scratch: Any) -> Iterator[Event]:
        """Symbolic links of one inode are copied as links of their own."""
        for group in [] if self.again else scratch.link_groups(of=_SYMLINKS):
            for path, state in group[1:]:
                if state not in {states.CONFLICT, states.FAILED}:
                    yield _lost_link(path, "hard links of symbolic links are not kept")

    def _link(self, path: bytes, state: int, leader: bytes, *, sends: bool, counted: bool = False) -> None:
        """Plan a hard link; `sends`: as an item of its own it would have been copied; `counted`: it has been, by this
        run.
        """
        row, totals = self.journal.row(path), self.totals
        assert row is not None
        twin = None if state == states.COPY else self._twin_of(path, row)
        stored_mtime_ns = row.noted_mtime_ns
        if state == states.JUDGE and self.policy == "replace" and (there := self._there(path)) is not None:
            twin, stored_mtime_ns = self._twin(there), publish.noted_ns(there.st_mtime_ns)
        details = {"leader": leader, "twin": twin, "counted": 1 if counted else None}
        linked = row._replace(kind=states.HARDLINK, state=states.LINK, stored_mtime_ns=stored_mtime_ns)
        self.journal.settle([(path[: len(path) - len(row.name)], linked, details)])
        totals.open_bytes -= row.size if state not in {states.CHECK_STORED, states.DONE} else 0
        totals.room -= row.size if sends else 0
        totals.links += 1
        if state == states.DONE:
            totals.open += 1
            totals.done -= 1
            totals.done_bytes -= row.size

    def _is_apart(self, path: bytes, leader: bytes, first: int | None) -> bool:
        """Do two names of one inode, both done, stand as two equal files of ours? (The source was linked later.)"""
        inode = self._inode_of(path)
        if first is None or inode is None or inode == first:
            return False
        row, leads = self.journal.row(path), self.journal.row(leader)
        if row is None or leads is None or row.digest is None or self._twin_of(path, row) is None:
            return False
        return (row.digest, row.recipe, leads.state) == (leads.digest, leads.recipe, states.DONE)

    def _there(self, path: bytes) -> os.stat_result | None:
        """What stands where the copy of an item stands."""
        try:
            head, _, name = stored_path(self.journal, self.names, path).rpartition("/")
            return None if self.at is None else system.lstat(self.at.open(head), name)
        except (OSError, ScopeferryError):
            return None

    def _is_beside(self, path: bytes) -> bool:
        """Does the copy of an item stand beside what somebody else put there?"""
        own = os.fsdecode(path) if self.names is None else self.names.full(os.fsdecode(path))
        return bool(stored_path(self.journal, self.names, path) != own)

    def _inode_of(self, path: bytes) -> int | None:
        """The inode at the destination, where inodes mean something."""
        entry = self._there(path) if self.store.disk.steady else None
        return None if entry is None else entry.st_ino

    def _twin_of(self, path: bytes, row: Row) -> int | None:
        """What of ours stands where a link is to be made: inode and size, for its change time will move with the
        leader's.
        """
        head, _, name = os.fsdecode(path).rpartition("/")
        try:
            entry = system.lstat(self.at.open(head), name) if self.at is not None else None
        except (OSError, ScopeferryError):
            return None
        if entry is None or self.fingerprint(entry) != row.stored:
            return None
        return self._twin(entry)

    def _twin(self, entry: os.stat_result) -> int:
        return fingerprint(entry.st_ino if self.store.disk.steady else 0, 0, entry.st_size)

    def fingerprint(self, there: os.stat_result) -> int:
        """What a row notes of a file at the destination."""
        if self.store.disk.steady:
            return fingerprint(there.st_ino, there.st_ctime_ns, there.st_size)
        return fingerprint(0, 0, there.st_size)


class FolderMerge:
    """The merge of one folder: what is in it, and the rows that change."""

    def __init__(self, plan: Plan, path: str, head: str, folder: Any, twin: Any) -> None:
        self.plan, self.path, self.head, self.folder, self.twin = plan, path, head, folder, twin
        self.changed: list[Row] = []
        self.folders: list[str] = []
        self.events: list[Event] = []
        self.all: list[Any] = []
        self.count = self.bytes = 0
        self.largest_bytes = plan.store.disk.largest_bytes
        self.spelt: dict[str, str] | None = None

    def takes(self, entry: Any) -> bool:
        """Is this entry of a listing copied, or entered?"""
        selection = self.plan.selection
        if entry.is_dir(follow_symlinks=False):
            return entry.name != OURS and (not selection.rules or selection.enters(self.head + entry.name))
        return (entry.is_file(follow_symlinks=False) or entry.is_symlink()) and (
            not selection.rules or selection.takes(self.head + entry.name)
        )

    def entries(  # noqa: C901  (the hot loop: in one piece)
        self, entries: list[Any], rows: dict[bytes, Any], scratch: Any
    ) -> None:
        """Look at these entries; rows that fit on both sides are skipped, the others are judged."""
        plan, twin = self.plan, self.twin
        source_steady, stored_steady, recipe = plan.source.disk.steady, plan.store.disk.steady, plan.recipe
        selection = plan.selection if plan.selection.rules else None
        plain = twin is not None and plan.names is None and selection is None and not plan.everything
        look = system.looker(twin) if plain else None
        known, code, errors = rows.pop, sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
        source_only = plan.source_only
        done = done_bytes = count = total = 0
        self.all = entries
        for entry in entries:
            name = entry.name
            try:
                facts = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # vanished between listing and look; its row says so
            except OSError as error:  # a folder that may be listed, and not entered
                if not plan.source.answers():
                    raise
                known(name.encode(code, errors), None)
                problem = plan.source.translated(error, self.head + name)
                self.events.append(_failed(self.head + name, problem.code, str(problem)))
                continue
            raw = name.encode(code, errors)
            row = known(raw, None)
            mode, size = facts.st_mode, facts.st_size
            if row is not None and look is not None and row[3] == size and row[2] == DONE and row[9] == recipe:
                mtime_ns = facts.st_mtime_ns
                source = (facts.st_ino * INODE + facts.st_ctime_ns * TIME & MASK) - HALF if source_steady else NOTHING
                if row[4] == mtime_ns and row[5] == source and facts.st_nlink == 1:
                    if source_only:
                        done += 1
                        done_bytes += size
                        continue
                    try:
                        there = look(name)
                    except OSError:
                        pass
                    else:
                        stored = there.st_size * SIZE
                        if stored_steady:
                            stored += there.st_ino * INODE + there.st_ctime_ns * TIME
                        noted = mtime_ns if row[7] is None else row[7]
                        if (stored & MASK) - HALF == row[6] and there.st_mtime_ns == noted:
                            done += 1
                            done_bytes += size
                            continue
            if S_ISDIR(mode):
                self._enter(name, selection)
            elif (selection is None or selection.takes(self.head + name)) and self._is_item(name, mode):
                count += 1
                total += size
                source = fingerprint(facts.st_ino, facts.st_ctime_ns) if source_steady else NOTHING
                self._judge(name, raw, facts, source, row, scratch)
        count, total = count + done, total + done_bytes
        totals = plan.totals
        totals.files += count
        totals.bytes += total
        totals.done += done
        totals.done_bytes += done_bytes
        self.count += count
        self.bytes += total

    def _enter(self, name: str, selection: Selection | None) -> None:
        if name == OURS:
            message = f"a .scopeferry folder is not copied: {printable(self.head + name)}"
            self.events.append(_note(self.head + name, "SF-905", message, kind="folder"))
        elif selection is None or selection.enters(self.head + name):
            self.folders.append(name)

    def _is_item(self, name: str, mode: int) -> bool:
        """Is it copied at all? What is not is said: what is no file, folder or link, and what a copy into SRC left."""
        path = self.head + name
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            self.events.append(_note(path, "SF-901", f"skipped, {_kind(mode)}: {printable(path)}", kind="other"))
            return False
        if publish.part_hash(name) is not None:
            message = f"a temporary name of ours is not copied: {printable(path)}"
            self.events.append(_note(path, "SF-905", message, kind="file"))
            return False
        return True

    def _judge(  # noqa: C901  (what may be wrong with one entry, in the order in which it is found)
        self, name: str, raw: bytes, facts: os.stat_result, source: int, row: Any, scratch: Any
    ) -> None:
        plan, path = self.plan, self.head + name
        facts = publish.noted_facts(facts)
        mode = facts.st_mode
        if stat.S_ISLNK(mode) and ("links" not in plan.source.keep or "links" in plan.store.lacks):
            self.events.append(
                _note(path, "SF-904", f"links are not kept: {printable(path)}", lost="links", kind="link")
            )
            return
        old = None if row is None else Row._make(row)
        given_up = plan.again and old is not None and old.state in {states.FAILED, states.CONFLICT}
        if given_up and old[3:6] == (facts.st_size, facts.st_mtime_ns, source):  # type: ignore[index]
            return
        try:
            if self.largest_bytes is not None and facts.st_size > self.largest_bytes:
                message = f"larger than the destination's file system allows: {printable(path)}"
                raise ItemError(message, code="SF-209", path=path)
            stored_name = name if plan.names is None else plan.names.name(self.path, name)
            there = self._look(stored_name)
        except ItemError as error:
            self._settle(raw, facts, source, states.FAILED, old, None)
            self.events.append(_failed(path, error.code, str(error), "link" if stat.S_ISLNK(mode) else "file"))
            return
        if plan.tends and there is None and old is not None and old.state == states.DONE:
            text = f"healed: {printable(path)} was gone at the destination"
            self.events.append(_note(path, "SF-902", text))
        kind = states.SYMLINK if stat.S_ISLNK(mode) else states.FILE
        state, code = self._verdict(facts, source, old, there)
        if old is not None and old.digest is not None and state in MAYBE_BESIDE and plan.policy != "replace":
            state, code, there = self._beside(facts, source, old, raw) or (state, code, there)
        if old is not None and old.kind == states.HARDLINK and kind == states.FILE and state == states.DONE:
            kind = states.HARDLINK
        self._settle(raw, facts, source, state, old, there, kind)
        if stored_name != name and state == states.COPY and plan.only is None:
            self._told_as(path, stored_name)
        if state == states.CONFLICT:
            self.events.append(
                _failed(path, code, _CONFLICTS[code].format(printable(path)), "link" if stat.S_ISLNK(mode) else "file")
            )
        if facts.st_nlink == 1 or "hardlinks" not in plan.source.keep:
            return
        inode = f"{facts.st_dev}:{facts.st_ino}"
        if kind == states.SYMLINK:
            plan._has_links = True  # noqa: SLF001
            scratch.add_link(_SYMLINKS + inode, os.fsencode(path), state)
        elif "hardlinks" in plan.store.lacks:
            if state not in {states.CONFLICT, states.FAILED}:
                message = f"hard links are not kept: {printable(path)}"
                self.events.append(_note(path, "SF-904", message, lost="hardlinks", kind="hardlink"))
        else:
            plan._has_links = True  # noqa: SLF001
            scratch.add_link(inode, os.fsencode(path), state)

    def _beside(
        self, facts: os.stat_result, source: int, row: Row, raw: bytes
    ) -> tuple[int, str, os.stat_result] | None:
        """Ours may stand under another name, where an earlier run kept both; None if it is not there, or not this
        version.
        """
        stored = self.plan.journal.detail(os.fsencode(self.head), raw, "as")
        there = None if stored is None else self._look(os.fsdecode(stored).rpartition("/")[2])
        if there is None:
            return None
        state, code = self._verdict(facts, source, row, there)
        return (state, code, there) if state in {states.DONE, states.CHECK, *states.CHECK_ONE} else None

    def _told_as(self, path: str, stored_name: str) -> None:
        self.plan.totals.renamed += 1
        if self.plan.totals.renamed == 1:
            message = f"stored under another name, first {printable(path)} as {printable(stored_name)}"
            self.events.append(_note(path, "SF-908", message))

    def _look(self, name: str) -> os.stat_result | None:
        """What stands at the destination; raises ItemError (SF-207) for a name that cannot stand there."""
        folder = self.twin
        if folder is not None and (spelt := self._spelt(name)) != name:
            path = self.head + name
            message = f"the destination cannot tell this name from {printable(spelt)}: {printable(path)}"
            raise ItemError(message, code="SF-208", path=path)
        if folder is None:
            if len(name) <= SHORT or self.plan.at is None:
                return None
            folder = self.plan.at.root  # no folder yet: only to learn whether the name is too long
        try:
            found = system.lstat(folder, name)
        except OSError as error:
            if error.errno in system.BAD_NAME:
                path = self.head + name
                message = f"the destination cannot hold this name: {printable(path)}: {error.strerror}"
                raise ItemError(message, code="SF-207", path=path) from error
            if not isinstance(error, FileNotFoundError) and not self.plan.stands():
                raise
            return None
        return publish.noted_facts(found) if self.twin is not None else None

    def _spelt(self, name: str) -> str:
        """How a name is spelt that stands at the destination, where the mount would not find it by another spelling."""
        rules = getattr(self.plan.names, "rules", None)
        if rules is None or not rules.hides:
            return name
        if self.spelt is None:
            with system.scan(self.twin) as found:
                names = [entry.name for entry in found]
            self.spelt = {rules.key(one): one for one in names} | {one: one for one in names}
        return self.spelt.get(name) or self.spelt.get(rules.key(name), name)

    def _verdict(  # noqa: C901  (the table of transfer.md 3.4, in one place)
        self, facts: os.stat_result, source: int, row: Row | None, there: os.stat_result | None
    ) -> tuple[int, str]:
        """The state of an item, and the problem code of a conflict."""
        plan = self.plan
        follows = plan.tends or plan.policy == "replace"
        if there is None:
            return states.COPY, ""
        if plan.is_same(facts, there):
            return states.CONFLICT, "SF-507"
        if stat.S_IFMT(there.st_mode) != stat.S_IFMT(facts.st_mode):
            return states.CONFLICT, "SF-502"
        stored = self.plan.fingerprint(there)
        same_source = row is not None and (row.size, row.mtime_ns) == (facts.st_size, facts.st_mtime_ns)
        if row is not None and (row.digest is not None or (row.kind, row.state) == (states.SYMLINK, states.DONE)):
            noted = row.noted_mtime_ns
            if row.state == states.LINK and self._is_twin(there, row):
                shorter = facts.st_size < there.st_size and not follows
                return (states.CONFLICT, "SF-503") if shorter else (states.REPLACE, "")
            fits = there.st_mtime_ns == noted and (
                row.stored == stored or (row.state == states.DONE and there.st_size == row.size)
            )
            if fits:
                if not same_source or (row.state != states.DONE and facts.st_size != there.st_size):
                    if facts.st_size < there.st_size and not follows:
                        return states.CONFLICT, "SF-503"
                    return (states.REPLACE if row.stored == stored else states.CHECK), ""
                if row.state != states.DONE or row.recipe != plan.recipe or plan.everything:
                    same = row.open and row.state != states.LINK and row.recipe == plan.recipe and row.source == source
                    return (row.state if same else states.CHECK), ""
                if row.source == source and row.stored == stored:
                    plan.totals.done += 1
                    plan.totals.done_bytes += facts.st_size
                    return states.DONE, ""
                if row.source == source:
                    return states.CHECK_STORED, ""
                return (states.CHECK_SOURCE if row.stored == stored else states.CHECK), ""
            if plan.tends:
                return states.CHECK, ""
        planned_by_us = row is not None and row.open and row.state != states.JUDGE
        if planned_by_us and row is not None and (there.st_size, there.st_mtime_ns) == (row.size, row.mtime_ns):
            if facts.st_size < there.st_size and not follows:
                return states.CONFLICT, "SF-503"
            return states.CHECK, ""  # in flight when a run was killed
        if facts.st_size != there.st_size and plan.policy == "refuse" and not stat.S_ISLNK(facts.st_mode):
            maybe = row is not None and row.open and row.digest is not None and row.stored_mtime_ns == there.st_mtime_ns
            if not maybe:  # else it may be ours still: our own renames and links move change times
                return states.CONFLICT, "SF-501"
        return states.JUDGE, ""

    def _is_twin(self, there: os.stat_result, row: Row) -> bool:
        """Is this our earlier version, that a killed run was to replace by a link? Its change time moved with its other
        names.
        """
        plan = self.plan
        inode = there.st_ino if plan.store.disk.steady else 0
        twin = plan.journal.detail(os.fsencode(self.head), row.name, "twin")
        return (twin, row.stored_mtime_ns) == (fingerprint(inode, 0, there.st_size), there.st_mtime_ns)

    def _settle(
        self,
        raw: bytes,
        facts: os.stat_result,
        source: int,
        state: int,
        old: Row | None,
        there: os.stat_result | None,
        kind: int = 0,
    ) -> None:
        plan = self.plan
        if state == states.DONE:
            return
        if states.DONE < state < states.FAILED:
            plan.totals.open += 1
            if state in {states.COPY, states.REPLACE}:
                plan.totals.open_bytes += facts.st_size
                plan.totals.room += _room(facts, there, holes="holes" in plan.source.keep)
                plan.totals.new_files += state == states.COPY
            elif state != states.CHECK_STORED:
                plan.totals.open_bytes += facts.st_size
        digest = old.digest if old is not None and there is not None else None
        stored = stored_mtime_ns = None
        if digest is not None and old is not None and state in {states.JUDGE, states.CONFLICT}:
            stored = old.stored  # what stands there is not ours: what we know of ours is kept
            stored_mtime_ns = old.noted_mtime_ns
        elif there is not None:
            stored, stored_mtime_ns = self.plan.fingerprint(there), there.st_mtime_ns
        recipe = old.recipe if old is not None and digest is not None else plan.recipe
        self.changed.append(
            Row(raw, kind, state, facts.st_size, facts.st_mtime_ns, source, stored, stored_mtime_ns, digest, recipe)
        )


_CONFLICTS = {
    "SF-501": "other content stands at the destination: {}",
    "SF-502": "something of another kind stands at the destination: {}",
    "SF-503": "the source has become shorter than our copy: {}",
    "SF-507": "this is the source itself, and no copy of it: {}",
}


def _room(facts: os.stat_result, there: os.stat_result | None, *, holes: bool) -> int:
    """Bytes that a copy will allocate: whole blocks, less holes, less what it replaces."""
    allocated = facts.st_blocks * 512
    size = allocated if holes and allocated < facts.st_size else -(-facts.st_size // 4096) * 4096
    return max(0, size - (there.st_blocks * 512 if there is not None else 0))


def _parts_in(folder: Any) -> list[str]:
    """The temporary names in a folder."""
    with system.scan(folder) as found:
        return [entry.name for entry in found if publish.part_hash(entry.name) is not None]


def _unlinked(folder: Any, name: str) -> bool:
    """Remove a temporary file; False if it cannot be one."""
    try:
        system.unlink(folder, name)
    except FileNotFoundError:
        pass
    except OSError:  # a folder of this name, or no permission
        return False
    return True


class _Named:
    """A listing of chosen names."""

    def __init__(self, found: list[_Looked]) -> None:
        self.found = found

    @classmethod
    def one(cls, folder: Any, name: str) -> _Named:
        """Raises FileNotFoundError."""
        return cls([_Looked(name, system.lstat(folder, name))])

    @classmethod
    def of(cls, folder: Any, names: list[str]) -> _Named:
        """Those of them that are there."""
        found = []
        for name in names:
            try:
                found.append(_Looked(name, system.lstat(folder, name)))
            except FileNotFoundError:
                continue
        return cls(found)

    def __enter__(self) -> Iterator[_Looked]:
        return iter(self.found)

    def __exit__(self, *_: object) -> None:
        return

    def close(self) -> None:
        """Nothing to close."""


class _Looked(NamedTuple):
    """One entry of it, as it was when it was listed."""

    name: str
    facts: os.stat_result

    def stat(self, *, follow_symlinks: bool) -> os.stat_result:
        """What it was when it was listed."""
        del follow_symlinks
        return self.facts


class _Nothing:
    """No destination yet."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return


def _twin(root: str) -> Any:
    return Folders(root) if os.path.isdir(root) else _Nothing()


def _failed(path: str, code: str, message: str, kind: str = "file") -> Event:
    return Event("failed", path=path, data={"code": code, "message": message, "kind": kind})


def _note(path: str, code: str, message: str, **more: Any) -> Event:
    """A note; with a ``kind`` the record says it too."""
    return Event("note", path=path, data={"code": code, "message": message, **more})


def _lost_link(path: bytes, what: str) -> Event:
    name = os.fsdecode(path)
    return _note(name, "SF-904", f"{what}: {printable(name)}", lost="hardlinks", kind="hardlink")


def _kind(mode: int) -> str:
    names = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return names.get(stat.S_IFMT(mode), "a special file")
