"""Free a source whose copies are proved: look whether every file is still what was proved, then unlink, one by one.

`SourceItem` is the task that looks: is this file the one whose copies were proved? By its identity as the journal of
each copy noted it, else by size, time and digest. `Freeing` unlinks: identity once more, and that of the copies, then
the name, then the folder is flushed, then the records say so, then the journals. So no record is ever ahead of what
happened.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from scopeferry.copying import record
from scopeferry.copying.expected import CHECK, GOOD, HEALED, KINDS, LEAVES, Expected, Item
from scopeferry.copying.record import FOLDER, Record, path_json, split
from scopeferry.copying.verify import failed
from scopeferry.errors import ItemError, Refused, ScopeferryError
from scopeferry.kernel import journal as states
from scopeferry.kernel import publish
from scopeferry.kernel.events import Event
from scopeferry.kernel.journal import Journal, fingerprint
from scopeferry.kernel.publish import Disk, Folders, Mark, system
from scopeferry.kernel.run import Result
from scopeferry.kernel.task import Control, Failure, Outcome
from scopeferry.logs import printable
from scopeferry.sources.tree import TreeSource

BATCH, BATCH_S = 1000, 0.5  # names unlinked, and seconds gone by, before the records say so
CHANGED, TOO_FEW, UNPROVED = "SF-513", "SF-514", "SF-512"


@dataclass(slots=True)
class Copy:
    """One proved copy: its folder, what it holds, its journal and record. ``device`` is that of its folder."""

    root: str
    disk: Disk
    device: int
    expected: Expected
    journal: Journal | None
    cut_off: bool


@dataclass(frozen=True, slots=True)
class Want:
    """What one copy says of a file of the source. ``noted`` is the source's identity in its journal, or None."""

    item: Item
    device: int
    noted: int | None


@dataclass(frozen=True, slots=True)
class Looked:
    """The payload of an outcome: what the file is now, how many names it has, and what speaks against freeing it."""

    facts: tuple[Mark, int] | None = None
    problems: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class SourceItem:
    """One file or link of the source, and what each copy says of it. ``key`` is its path at the source."""

    source: TreeSource
    key: str
    wants: tuple[Want, ...]
    needed: int

    @property
    def revision(self) -> str:
        """What it must be."""
        return f"{[want.item.digest for want in self.wants]!r}"

    @property
    def size(self) -> int:
        """Bytes of work, at most."""
        return self.wants[0].item.size or 0

    @staticmethod
    def run_batch(tasks: Sequence[SourceItem], control: Control) -> list[Outcome | Failure]:
        """Look at them all; one answer for each."""
        answers: list[Outcome | Failure] = []
        with tasks[0].source.folders() as here:
            for task in tasks:
                try:
                    control.check()
                    answers.append(task.look(here, control))
                except (Refused, ItemError) as error:
                    answers.append(task.refused(str(error)))
                except ScopeferryError as error:
                    answers.append(Failure.of(task.key, error))
                except OSError as error:
                    answers.append(task.refused(f"cannot be read: {printable(task.key)}: {error.strerror}"))
        return answers

    def refused(self, why: str) -> Outcome:
        """It may not be freed."""
        return Outcome(self.key, 0, payload=Looked(None, ((CHANGED, why),)))

    def look(self, here: Folders, control: Control) -> Outcome:
        """Is it what was proved?"""
        head, _, name = self.key.rpartition("/")
        try:
            entry = system.lstat(here.open(head), name)
        except (FileNotFoundError, NotADirectoryError):
            return Outcome(self.key, 0, payload=Looked())
        problems = []
        held = len({(want.device, want.item.inode or -number) for number, want in enumerate(self.wants)})
        if held < self.needed:
            one = ", for two of them are one file, by a link or a mount" if held < len(self.wants) else ""
            say = f"{held} of {self.needed} copies hold it: {printable(self.key)}{one}"
            problems.append((TOO_FEW, say))
        for want in self.wants:
            if want.item.inode and (want.device, want.item.inode) == (entry.st_dev, entry.st_ino):
                say = f"source and copy are one file, by a link or a mount: {printable(self.key)}"
                problems.append((TOO_FEW, say))
                break
        reason = self._changed(here, entry, control)
        if reason:
            problems.append((CHANGED, f"{reason}: {printable(self.key)}"))
        mark = publish.mark(entry, steady=self.source.disk.steady)
        return Outcome(self.key, 0, payload=Looked((mark, entry.st_nlink), tuple(problems)))

    def _changed(self, here: Folders, entry: os.stat_result, control: Control) -> str | None:
        """Why this is not what was proved; None if it is."""
        if self.wants[0].item.kind == states.SYMLINK:
            if not stat.S_ISLNK(entry.st_mode):
                return "no longer a link at the source"
            head, _, name = self.key.rpartition("/")
            target = system.read_link(here.open(head), name)
            return (
                None if all(target == want.item.link for want in self.wants) else "link leads elsewhere at the source"
            )
        if not stat.S_ISREG(entry.st_mode):
            return "no longer a file at the source"
        identity = fingerprint(entry.st_ino, entry.st_ctime_ns) if self.source.disk.steady else None
        unknown = [want for want in self.wants if want.noted is None or want.noted != identity]
        for want in self.wants:
            item = want.item
            if item.size is not None and item.size != entry.st_size:
                return f"size differs from the record, {item.size:,} and {entry.st_size:,} bytes"
            if item.source_mtime_ns is not None and item.source_mtime_ns != publish.noted_ns(entry.st_mtime_ns):
                return "time differs from the record"
        return self._read(here, unknown, control) if unknown else None

    def _read(self, here: Folders, wants: Sequence[Want], control: Control) -> str | None:
        """Nobody noted its identity, or it has moved: its bytes decide."""
        wanted = {want.item.algorithm or "": want.item.digest for want in wants}
        with self.source.open(here, self.key) as reader:
            found = reader.digest(tuple(wanted), control, copied=False)
        for want in wants:
            algorithm, digest = want.item.algorithm or "", want.item.digest or b""
            if found[algorithm] != digest:
                return f"recorded {algorithm}:{digest.hex()}, found {algorithm}:{found[algorithm].hex()}"
        return None


def source_tasks(source: TreeSource, copies: Sequence[Copy], needed: int, control: Control) -> Iterator[SourceItem]:
    """All files and links that some copy holds, each once."""
    for number, copy in enumerate(copies):
        for item in copy.expected.items(kinds=LEAVES):
            if control.stopped:
                return
            path = item.origin
            if any(earlier.expected.of(path) is not None for earlier in copies[:number]):
                continue
            held = [(one, item if one is copy else one.expected.of(path)) for one in copies[number:]]
            wants = [Want(found, one.device, _noted(one.journal, found)) for one, found in held if found is not None]
            yield SourceItem(source, os.fsdecode(path), tuple(wants), needed)


def _noted(journal: Journal | None, item: Item) -> int | None:
    """The identity of the source when this copy was proved, if the journal stands for the same bytes as the record."""
    row = journal.row(item.origin) if journal is not None else None
    if row is None or row.state != states.DONE or row.digest is None or row.digest != item.digest:
        return None
    same = (row.size, row.mtime_ns) == (item.size, item.source_mtime_ns)
    return row.source if same and row.source != 0 else None


@dataclass(slots=True)
class SourceLedger:
    """What is to be freed goes into ``free``; what speaks against it is told. ``gone`` counts what went before."""

    free: Expected
    copies: Sequence[Copy]
    run: str = ""
    files: int = 0
    bytes_freed: int = 0
    problems: int = 0
    newest: tuple[int, str] = (-(1 << 63), "")
    gone: int = 0

    def settle(self, results: Sequence[Result]) -> list[Event]:
        """Write down what was found of these files."""
        events, rows = [], []
        for task, answer in results:
            assert isinstance(task, SourceItem)
            if isinstance(answer, Failure):
                self.problems += 1
                events.append(failed(self.run, task.key, answer.code, answer.message))
                continue
            looked: Looked = answer.payload
            self.problems += len(looked.problems)
            events += [failed(self.run, task.key, code, message) for code, message in looked.problems]
            if looked.facts is not None:
                rows.append(self._to_free(task, *looked.facts))
            elif (
                not looked.problems
                and any(copy.cut_off for copy in self.copies)
                and not all(want.item.freed for want in task.wants)
            ):
                self.gone += 1
                rows.append(_free_item(task, Mark(0, task.size, 0, 0), 1, GOOD))
        self.free.put(rows)
        return events

    def _to_free(self, task: SourceItem, mark: Mark, names: int) -> Item:
        self.files += 1
        item = _free_item(task, mark, names, CHECK)
        self.bytes_freed += _share(item)
        self.newest = max(self.newest, (mark.mtime_ns, task.key))
        return item


def _free_item(task: SourceItem, mark: Mark, names: int, state: int) -> Item:
    item, path = task.wants[0].item, os.fsencode(task.key)
    return Item(
        path, path, item.kind, state, mark.size, mark.mtime_ns, item.algorithm, item.digest, item.further,
        target=item.target, found=False, inode=mark.inode, ctime_ns=mark.ctime_ns, names=names,
    )  # fmt: skip


def _share(item: Item) -> int:
    """The bytes that go with one of the names of a file."""
    return 0 if item.kind == states.SYMLINK else (item.size or 0) // item.names


def add_folders(free: Expected, copies: Sequence[Copy]) -> None:
    """The folders that a record names, and those that hold what is freed: they go when they are empty."""
    for copy in copies:
        free.put(Item(item.origin, item.origin, FOLDER) for item in copy.expected.items(kinds=(FOLDER,)) if item.origin)
    last = b""
    for item in free.items(kinds=LEAVES):
        head = split(item.path)[0]
        if head != last:
            last = head
            free.put(_above(last))


def _above(head: bytes) -> Iterator[Item]:
    while head:
        yield Item(head[:-1], head[:-1], FOLDER)
        head = split(head[:-1])[0]


# -- the only place where a source is touched --------------------------------------------------------------------------


@dataclass(slots=True)
class Freeing:
    """Unlinks what is in ``free``. ``records`` are the sides that are told, the source's own first.

    ``trash``: a folder on the same file system that receives the names instead.
    """

    source: TreeSource
    copies: Sequence[Copy]
    free: Expected
    records: Sequence[Record]
    control: Control
    run: str = ""
    trash: str | None = None
    freed: int = 0
    freed_bytes: int = 0
    folders_removed: int = 0
    _waiting: list[Item] = field(default_factory=list)
    _told_at: float = field(default_factory=time.monotonic)

    def go(self) -> Iterator[Event]:
        """File by file, folder by folder; raises Refused at the first file that is not what was looked at."""
        with self.source.folders() as here:
            there = [Folders(copy.root) for copy in self.copies]
            bin_ = None
            try:
                if self.trash is not None:
                    os.makedirs(self.trash, mode=0o700, exist_ok=True)
                    bin_ = Folders(self.trash)
                yield from self._remember_gone()
                yield from self._files(here, there, bin_)
                yield from self._folders(here)
            finally:
                for folders in there:
                    folders.close()
                if bin_ is not None:
                    bin_.close()

    def _remember_gone(self) -> Iterator[Event]:
        """What an interrupted run unlinked and could not write down any more."""
        for item in self.free.items(GOOD):
            self._waiting.append(item)
            if len(self._waiting) >= BATCH:
                yield from self._tell()
        yield from self._tell()

    def _files(self, here: Folders, there: Sequence[Folders], bin_: Folders | None) -> Iterator[Event]:
        head, folder = None, None
        try:
            for item in self.free.items(CHECK, kinds=LEAVES):
                if split(item.path)[0] != head or self._due():
                    self._flush(folder)
                    if self._due():
                        yield from self._tell()
                    head = split(item.path)[0]
                    folder = here.open(os.fsdecode(head).rstrip("/"))
                self.control.check()
                self._unlink(item, folder, there, bin_)
                self._waiting.append(item)
        finally:
            self._flush(folder)
            events = list(self._tell())
        yield from events

    def _due(self) -> bool:
        return len(self._waiting) >= BATCH or time.monotonic() - self._told_at >= BATCH_S

    @staticmethod
    def _flush(folder: Any) -> None:
        if folder is not None:
            system.flush_folder(folder)

    def _unlink(self, item: Item, folder: Any, there: Sequence[Folders], bin_: Folders | None) -> None:
        path = os.fsdecode(item.path)
        name = path.rpartition("/")[2]
        self._check_copies(item, there)
        wanted = self.free.of(item.path)  # the time of change moves with each other name of the inode that goes
        assert wanted is not None
        try:
            entry = system.lstat(folder, name)
        except FileNotFoundError as error:
            raise Refused(f"vanished at the source meanwhile: {printable(path)}", code=CHANGED, path=path) from error
        found = publish.mark(entry, steady=self.source.disk.steady)
        if found != Mark(wanted.inode, wanted.size or 0, wanted.source_mtime_ns or 0, wanted.ctime_ns):
            raise Refused(f"changed at the source meanwhile: {printable(path)}", code=CHANGED, path=path)
        several = entry.st_nlink > 1 and stat.S_ISREG(entry.st_mode)
        fd = system.open_source(folder, name) if several else -1
        try:
            if bin_ is not None:
                head, _, base = path.rpartition("/")
                system.hard_link(folder, name, bin_.open(head, make=True), base)
            system.unlink(folder, name)
            if several:
                self.free.moved(found.inode, found.ctime_ns, system.fstat(fd).st_ctime_ns)
        finally:
            if fd >= 0:
                os.close(fd)

    def _check_copies(self, item: Item, there: Sequence[Folders]) -> None:
        """Is each copy of it still the file that was read?"""
        for copy, folders in zip(self.copies, there, strict=True):
            held = copy.expected.of(item.path)
            if held is None or held.kind == states.SYMLINK:
                continue
            head, _, name = os.fsdecode(held.path).rpartition("/")
            try:
                entry = system.lstat(folders.open(head), name)
            except OSError as error:
                say = f"{error.strerror} in the copy meanwhile: {printable(held.path)}"
                raise Refused(say, code=UNPROVED, path=os.fsdecode(held.path)) from error
            now = publish.mark(entry, steady=copy.disk.steady)
            if (now.inode, now.ctime_ns) != (held.inode, held.ctime_ns) or now.size != (held.size or now.size):
                say = f"changed in the copy meanwhile: {printable(held.path)}"
                raise Refused(say, code=UNPROVED, path=os.fsdecode(held.path))

    def _tell(self) -> Iterator[Event]:
        """The names are gone for good: their folders were flushed. The records say so, then the journals."""
        items, self._waiting, self._told_at = self._waiting, [], time.monotonic()
        if not items:
            return
        now = time.time()
        for item in items:
            line = self._line(item, now)
            self.records[0].add(line)
            for copy, rec in zip(self.copies, self.records[1:], strict=True):
                held = copy.expected.of(item.path)
                if held is not None and not (held.freed and item.state == GOOD):
                    rec.add(line)
        for rec in self.records:
            rec.flush()
        for copy in self.copies:
            if copy.journal is not None:
                copy.journal.note("freed", [(*split(item.path), int(now)) for item in items])
        self.free.mark((item, HEALED, None) for item in items)
        for item in items:
            size = _share(item)
            if item.state != GOOD:
                self.freed += 1
                self.freed_bytes += size
            yield Event("done", self.run, os.fsdecode(item.path), 1, size, {"action": "freed", "read_back": "no"}, now)

    def _line(self, item: Item, now: float) -> str:
        where = [copy.root for copy in self.copies if copy.expected.of(item.path) is not None]
        facts = {
            "kind": KINDS[item.kind], "size": item.size, "target": item.link, "action": "freed", "copies": where,
            "at": round(now, 3),
            "digest": {name: digest.hex() for name, digest in item.digests.items()} or None,
            "note": "was gone when an interrupted run was resumed" if item.state == GOOD else None,
        }  # fmt: skip
        rest = json.dumps({key: value for key, value in facts.items() if value is not None})
        return f"{{{path_json(os.fsdecode(item.path))}, {rest[1:]}"

    def _folders(self, here: Folders) -> Iterator[Event]:
        """Folders that are empty now, deepest first; the root of the source stays."""
        wanted = [item.path for item in self.free.items(kinds=(FOLDER,))]
        for raw in sorted(wanted, reverse=True):
            path = os.fsdecode(raw)
            head, _, name = path.rpartition("/")
            try:
                system.remove_folder(here.open(head), name)
            except (OSError, ScopeferryError):
                continue  # something is in it that nobody recorded, or it is gone
            self.folders_removed += 1
            yield Event("done", self.run, path, 0, 0, {"action": "freed", "kind": "folder", "read_back": "no"})


# -- what the record folder says ---------------------------------------------------------------------------------------


def pin_of(records: str) -> str | None:
    """Why a copy (or source) is pinned, from ``pin.toml`` of its record folder; None if it is not."""
    import tomllib

    try:
        with record.open_ours(os.path.join(records, "pin.toml")) as file:
            found = tomllib.load(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return f"pin.toml cannot be read: {error}"
    if "pin" not in found:
        return 'pin.toml says something else than pin = "reason"'
    return str(found["pin"]) or "no reason given" if found["pin"] is not False else None


def is_cut_off(headers: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> bool:
    """Did a run of `clean` not come to its end?"""
    ends = [end for head, end in headers if head.get("job") == "clean"]
    return bool(ends) and ends[-1].get("state") in {None, record.CUT_OFF}


def is_declared(end: dict[str, Any]) -> tuple[bool, str]:
    """Is the end of a run evidence that its source was finished, and not only quiet? And what it says."""
    finish = end.get("finish")
    if not isinstance(finish, dict):
        return False, "nothing"
    evidence = finish.get("evidence")
    said = [str(one) for one in evidence] if isinstance(evidence, list) else [str(evidence or "nothing")]
    strong = [one for one in said if not one.lower().startswith(("quiet", "nothing")) and "weak" not in one.lower()]
    return finish.get("state") == "finished" and bool(strong) and not finish.get("weak"), ", ".join(said)
