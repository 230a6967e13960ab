"""Read a copy again from storage and compare it with what it must hold, and with its source where that is named.

`CheckItem` is the task: one entry of the copy. It changes nothing and follows no link. What is found comes back as
plain values, a code of ``errors.CODES`` and a sentence each; `CheckLedger` writes them into the listing, the dates of
proof into the journal, and digests that were asked for into the record. `extras` and `walk_source` find what nobody has
recorded.
"""

from __future__ import annotations

import base64
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from scopeferry.copying.listing import BAD, GOOD, Item, Listing, split
from scopeferry.copying.record import FOLDER, Record
from scopeferry.errors import ItemError, Refused, ScopeferryError, Temporary
from scopeferry.kernel import journal as states
from scopeferry.kernel import publish
from scopeferry.kernel.digest import DEFAULT
from scopeferry.kernel.events import Event
from scopeferry.kernel.journal import Journal
from scopeferry.kernel.publish import Disk, Folders, Mark, system
from scopeferry.kernel.run import Result
from scopeferry.kernel.task import Control, Failure, Outcome
from scopeferry.logs import printable
from scopeferry.sources.tree import OURS, Selection, TreeSource
from scopeferry.stores.files import StoredFile

CHUNK = 4096  # names of a folder in memory at a time
COARSE_NS, FINE_NS = 2_000_000_000, 1_000  # how far times may be off on FAT, and on network file systems
MISSING, DIFFERENT, UNREADABLE, METADATA, EXTRA = "SF-402", "SF-401", "SF-403", "SF-404", "SF-405"
KIND = "SF-411"
SOURCE, BOTH, TWO_WAY, ALL_THREE = "SF-406", "SF-407", "SF-408", "SF-410"

Problem = tuple[str, str]  # code, sentence


@dataclass(frozen=True, slots=True)
class Check:
    """What all items of one check have in common; picklable.

    ``source``: the other side, if it is read too. ``digests``: further algorithms to be computed of what is right.
    ``quick``: nothing is read. ``flushed_ns``: when the file system of the copy was flushed as a whole.
    """

    root: str
    disk: Disk
    identity: tuple[int, int]
    source: TreeSource | None = None
    digests: tuple[str, ...] = ()
    quick: bool = False
    one_way: bool = False
    flushed_ns: int = 0

    def present(self) -> bool:
        """Is the copy still the folder that the check began with?"""
        try:
            found = os.stat(self.root)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self.identity or not self.disk.steady

    def same_time(self, found_ns: int, wanted_ns: int) -> bool:
        """Are these the same, as far as the file system of the copy can tell?"""
        slack = COARSE_NS if self.disk.type in publish.UNSTEADY else FINE_NS if self.disk.network else 0
        return abs(found_ns - wanted_ns) <= slack


@dataclass(frozen=True, slots=True)
class Checked:
    """The payload of an outcome: what is wrong, the digests that were found, the mark of what was read."""

    problems: tuple[Problem, ...] = ()
    digests: dict[str, bytes] = field(default_factory=dict)
    mark: Mark | None = None
    folder: str | None = None


@dataclass(frozen=True, slots=True)
class CheckItem:
    """One entry of a copy. ``key`` is its path there, as the system decodes it."""

    check: Check
    key: str
    item: Item

    @property
    def revision(self) -> str:
        """What it must be."""
        return f"{self.item.algorithm}:{self.item.digest!r}:{self.item.size}"

    @property
    def size(self) -> int:
        """Bytes of work."""
        return 0 if self.check.quick else (self.item.size or 0)

    @staticmethod
    def run_batch(tasks: Sequence[CheckItem], control: Control) -> list[Outcome | Failure]:
        """Look at them all; one answer for each."""
        check = tasks[0].check
        answers = _run(tasks, control)
        if not check.present():  # the copy is gone, not its files: wait, and look again
            error = Temporary(f"the copy is gone: {printable(check.root)}", code="SF-323", path=check.root)
            try:
                control.wait_for("destination", check.present, control.patience_gone_s, error)
                control.done_waiting("destination")
                answers = _run(tasks, control)
            except ScopeferryError as reason:
                return [Failure.of(task.key, reason) for task in tasks]
        return answers


def _run(tasks: Sequence[CheckItem], control: Control) -> list[Outcome | Failure]:
    check = tasks[0].check
    answers: list[Outcome | Failure] = []
    batch = _Batch()
    try:
        with Folders(check.root) as there, (check.source or _NoSource()).folders() as here:
            batch.open(tasks, there)
            for task in tasks:
                try:
                    control.check()
                    answers.append(_Look(task, there, here, control, batch).answer())
                except ScopeferryError as error:
                    answers.append(Failure.of(task.key, error))
    except OSError as error:  # a root cannot be opened
        problem = (UNREADABLE, f"cannot be opened: {printable(error.filename or check.root)}: {error.strerror}")
        answers += [Outcome(task.key, 0, payload=Checked((problem,))) for task in tasks[len(answers) :]]
    finally:
        batch.close()
    return answers


class _NoSource:
    """There is no other side."""

    def folders(self) -> Any:
        return self

    def __enter__(self) -> Any:
        return None

    def __exit__(self, *_: object) -> None:
        return


class _Batch:
    """What the files of one batch share.

    All are opened and asked for before the first one is read, so that the disk has them side by side in its queue;
    ``look``: are further ones to be looked at, whether their pages went?
    """

    def __init__(self) -> None:
        self.look = True
        self._open: dict[str, StoredFile] = {}

    def open(self, tasks: Sequence[CheckItem], there: Folders) -> None:
        """Open the files; what cannot be opened is opened, and named, when its turn comes."""
        check = tasks[0].check
        for task in tasks:
            if check.quick or task.item.kind not in {states.FILE, states.HARDLINK}:
                continue
            try:
                file = self._open[task.key] = StoredFile.open(there, task.key)
                flushed = max(file.stat.st_ctime_ns, file.stat.st_mtime_ns) < check.flushed_ns
                file.prepare(flushed=flushed, look=not flushed or self.look, near=not check.disk.network)
            except (OSError, ScopeferryError):
                self._close(task.key)
                continue
            if file.size:
                self.look = file.memory

    def take(self, key: str) -> StoredFile | None:
        """The file that was opened ahead, once."""
        return self._open.pop(key, None)

    def close(self) -> None:
        """Close what nobody took."""
        for key in list(self._open):
            self._close(key)

    def _close(self, key: str) -> None:
        file = self._open.pop(key, None)
        if file is not None:
            file.close()


class _Look:
    """One entry, looked at."""

    def __init__(self, task: CheckItem, there: Folders, here: Any, control: Control, batch: _Batch) -> None:
        self.batch = batch
        self.check, self.item, self.key, self.there, self.here, self.control = (
            task.check,
            task.item,
            task.key,
            there,
            here,
            control,
        )
        self.origin = task.key if task.item.source is None else os.fsdecode(task.item.source)
        self.shown = printable(task.key) or "."
        self.problems: list[Problem] = []
        self.read_back = "no"
        self.digests: dict[str, bytes] = {}
        self.mark: Mark | None = None
        self.bytes = 0

    def answer(self) -> Outcome:
        folder = None
        try:
            self._look()
        except Refused as error:
            self.problems.append((error.code, str(error)))
            folder = error.path
        return Outcome(self.key, self.bytes, {}, self.mark, self.read_back,
                       Checked(tuple(self.problems), self.digests, self.mark, folder))  # fmt: skip

    def _look(self) -> None:
        facts = self._lstat()
        if facts is None:
            return
        kind = self.item.kind
        expected = {FOLDER: stat.S_ISDIR, states.SYMLINK: stat.S_ISLNK}.get(kind, stat.S_ISREG)
        if not expected(facts.st_mode):
            what = "a link" if stat.S_ISLNK(facts.st_mode) else "something of another kind"
            code = "SF-504" if kind == FOLDER and stat.S_ISLNK(facts.st_mode) else KIND
            self.problems.append((code, f"{what} stands where a {_KINDS[kind]} should be: {self.shown}"))
            return
        if kind == states.SYMLINK:
            self._link(facts)
        elif kind == FOLDER:
            self._metadata(facts, None)
        else:
            self._file(facts)

    def _lstat(self) -> os.stat_result | None:
        head, _, name = self.key.rpartition("/")
        try:
            return system.lstat(self.there.open(head), name) if name else system.folder_stat(self.there.root)
        except (FileNotFoundError, NotADirectoryError):
            self._missing()
        except Refused as error:
            if error.code != "SF-502":
                raise
            self._missing()
        except OSError as error:
            self.problems.append((UNREADABLE, f"cannot be looked at: {self.shown}: {error.strerror}"))
        return None

    def _missing(self) -> None:
        item, new = self.item, self.item.digest is None and not self.item.recorded
        why = "; it is at the source only" if new and self.check.source is not None else ""
        self.problems.append((MISSING, f"missing in the copy: {self.shown}{why}"))
        if (
            self.check.source is not None
            and not new
            and item.kind in {states.FILE, states.HARDLINK}
            and not self.check.quick
        ):
            self._read_source([item.algorithm] if item.algorithm else [], None)

    # -- links and metadata --------------------------------------------------------------------------------------------

    def _link(self, facts: os.stat_result) -> None:
        head, _, name = self.key.rpartition("/")
        target = system.read_link(self.there.open(head), name)
        wanted = self.item.link
        if wanted is not None and target != wanted:
            self.problems.append(
                (
                    DIFFERENT,
                    f"link leads elsewhere: {self.shown}: expected {printable(wanted)}, found {printable(target)}",
                )
            )
        else:
            self._time(facts)
        if self.check.source is not None:
            self._source_link(target)

    def _source_link(self, target: str) -> None:
        head, _, name = self.origin.rpartition("/")
        wanted = self.item.link
        try:
            found = system.read_link(self.here.open(head), name)
        except (OSError, ScopeferryError):
            if not (self.check.one_way or self.item.freed):
                self.problems.append((SOURCE, f"gone at the source: {self.shown}"))
            return
        if wanted is not None and found != wanted:
            self.problems.append((SOURCE, f"link leads elsewhere at the source: {self.shown}: {printable(found)}"))
        elif wanted is None and found != target:
            self.problems.append((TWO_WAY, f"links differ: {self.shown}: {printable(found)} and {printable(target)}"))

    def _metadata(self, facts: os.stat_result, fd: int | None) -> None:
        mode = self.item.mode
        if mode is not None and facts.st_mode & 0o7777 != mode:
            self.problems.append(
                (METADATA, f"mode differs: {self.shown}: expected {mode:04o}, found {facts.st_mode & 0o7777:04o}")
            )
        self._time(facts)
        if self.item.xattrs and (fd is not None or self.item.kind == FOLDER):
            try:
                have = system.xattrs(self.there.open(self.key) if fd is None else fd)
            except OSError as error:
                self.problems.append((METADATA, f"attributes cannot be read: {self.shown}: {error.strerror}"))
                return
            for name, value in json.loads(self.item.xattrs).items():
                if have.get(name) != base64.b64decode(value):
                    what = "is missing" if name not in have else "differs"
                    self.problems.append((METADATA, f"attribute {printable(name)} {what}: {self.shown}"))

    def _time(self, facts: os.stat_result) -> None:
        wanted, found = self.item.mtime_ns, facts.st_mtime_ns
        if wanted is not None and not self.check.same_time(found, wanted):
            self.problems.append(
                (METADATA, f"time differs: {self.shown}: expected {_time(wanted)}, found {_time(found)}")
            )

    # -- files ---------------------------------------------------------------------------------------------------------

    def _file(self, facts: os.stat_result) -> None:
        item = self.item
        if self.check.quick:
            if item.size is not None and facts.st_size != item.size:
                self.problems.append(
                    (DIFFERENT, f"size differs: {self.shown}: expected {item.size:,}, found {facts.st_size:,}")
                )
            self._metadata(facts, None)
            return
        known = item.digests
        algorithm = item.algorithm or (*self.check.digests, DEFAULT)[0]
        asked = [algorithm, *(name for name in self.check.digests if name != algorithm)]
        copy = self._read_copy(asked)
        source = None
        if self.check.source is not None:
            source = self._read_source([algorithm], copy[algorithm] if copy else None)
        if copy is not None:
            self._judge(algorithm, known, copy, None if source is None else source[algorithm])

    def _judge(self, algorithm: str, known: dict[str, bytes], copy: dict[str, bytes], source: bytes | None) -> None:
        """The copy against the record; the source has been judged when it was read."""
        wrong = [name for name in copy if name in known and copy[name] != known[name]]
        if wrong:
            name = wrong[0]
            say = f"expected {name}:{known[name].hex()}, found {name}:{copy[name].hex()}"
            if source is not None and source != known.get(algorithm) and algorithm in wrong:
                code, what = (
                    (BOTH, "both differ, and are equal to each other")
                    if source == copy[algorithm]
                    else (ALL_THREE, "both differ")
                )
                self.problems = [problem for problem in self.problems if problem[0] != SOURCE]
                self.problems.append((code, f"{what}: {self.shown}: {say}, at the source {name}:{source.hex()}"))
            else:
                self.problems.append((DIFFERENT, f"copy differs from the record: {self.shown}: {say}"))
        else:
            self.digests = copy

    def _read_copy(self, algorithms: Sequence[str]) -> dict[str, bytes] | None:
        try:
            with self.batch.take(self.key) or StoredFile.open(self.there, self.key) as file:
                flushed = max(file.stat.st_ctime_ns, file.stat.st_mtime_ns) < self.check.flushed_ns
                digests = file.digest(algorithms, self.control, flushed=flushed, look=not flushed or self.batch.look)
                mark = file.check()
                self.mark = mark if self.check.disk.steady else mark._replace(inode=0, ctime_ns=0)
                self.bytes = file.size
                kind = self.check.disk.read_back
                if file.size:
                    self.batch.look = file.memory
                self.read_back = "memory" if kind == "storage" and file.memory else kind
                self._metadata(file.stat, file.fd)
                return digests
        except FileNotFoundError:
            self._missing()
        except OSError as error:
            self.problems.append((UNREADABLE, f"cannot be read: {self.shown}: {error.strerror}"))
        except ItemError as error:
            if error.code == "SF-201":
                self.problems.append((DIFFERENT, f"changed while it was read: {self.shown}"))
            else:
                self.problems.append((UNREADABLE, str(error)))
        return None

    def _read_source(self, algorithms: list[str], copy: bytes | None) -> dict[str, bytes] | None:
        """The digests at the source; says what there is to say of that side."""
        source = self.check.source
        assert source is not None
        try:
            with source.open(self.here, self.origin) as reader:
                found = reader.digest(algorithms, self.control)
        except Refused as error:
            self.problems.append((error.code, f"at the source: {error}"))
            return None
        except ItemError as error:
            if error.code == "SF-202":
                if not (self.check.one_way or self.item.freed):
                    only = self.item.digest is None
                    self.problems.append(
                        (TWO_WAY, f"only in the copy: {self.shown}")
                        if only
                        else (SOURCE, f"gone at the source: {self.shown}")
                    )
            else:
                self.problems.append((UNREADABLE if error.code != "SF-201" else SOURCE, f"at the source: {error}"))
            return None
        if not algorithms:
            return found
        algorithm = algorithms[0]
        wanted = self.item.digests.get(algorithm)
        if wanted is not None and found[algorithm] != wanted:
            say = f"expected {algorithm}:{wanted.hex()}, found {algorithm}:{found[algorithm].hex()}"
            self.problems.append((SOURCE, f"source differs from the record: {self.shown}: {say}"))
        elif wanted is None and copy is not None and found[algorithm] != copy:
            say = f"{algorithm}:{found[algorithm].hex()} and {algorithm}:{copy.hex()}"
            self.problems.append((TWO_WAY, f"source and copy differ: {self.shown}: {say}"))
        return found


_KINDS = {states.FILE: "file", states.HARDLINK: "file", states.SYMLINK: "link", FOLDER: "folder"}


def _time(time_ns: int) -> str:
    try:
        shown = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time_ns // 1_000_000_000))
    except (OverflowError, ValueError, OSError):
        return f"{time_ns} ns"
    return f"{shown}.{time_ns % 1_000_000_000:09}"


def check_tasks(listing: Listing, check: Check, control: Control, *wanted: int) -> Iterator[CheckItem]:
    """The rows that are to be checked as tasks, folder by folder."""
    for item in listing.items(*wanted):
        if control.stopped:
            return
        yield CheckItem(check, os.fsdecode(item.path), item)


# -- what was found ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class CheckLedger:
    """Listing, then record, then journal. ``record`` is written only for digests that were asked for and are new."""

    listing: Listing
    check: Check
    run: str = ""
    journal: Journal | None = None
    record: Record | None = None
    counts: dict[str, int] = field(default_factory=dict)
    read_back: dict[str, int] = field(default_factory=dict)
    bytes_read: int = 0
    refused: set[str] = field(default_factory=set)
    explained: Callable[[bytes], bool] = lambda _: False

    def settle(self, results: Sequence[Result]) -> list[Event]:
        """Write down what was found of these items; the events that tell it."""
        now = time.time()
        events: list[Event] = []
        rows, proved = [], []
        for task, answer in results:
            assert isinstance(task, CheckItem)
            if isinstance(answer, Failure):  # stopped, or a bug: nothing is known of this item
                events.append(_failed(self.run, task.key, answer.code, answer.message))
                continue
            found: Checked = answer.payload
            problems, told = self._told(found, task)
            state = BAD if problems else GOOD
            self._count("bad" if problems else "good")
            if task.item.kind == states.SYMLINK and not problems:
                self._count("links")
            rows.append((state, _worst(problems), found.mark, task.item.head, task.item.name))
            if answer.read_back != "no":
                self._read(answer)
                if not any(code in {DIFFERENT, BOTH, ALL_THREE, TWO_WAY} for code, _ in problems):
                    self._count("proved")
                    proved.append((*split(task.item.origin), round(now, 3)))
            if found.digests and self.record is not None:
                self._further(task.item, found.digests, now)
            counted = int(task.item.kind != FOLDER)  # progress and totals count files and links
            events += [_failed(self.run, task.key, code, message, counted) for code, message in told]
            if not problems:
                events.append(
                    Event(
                        "done",
                        self.run,
                        task.key,
                        counted,
                        answer.size,
                        {"action": "checked", "read_back": answer.read_back},
                        now,
                    )
                )
        self._write(rows, proved)
        return events

    def _told(self, found: Checked, task: CheckItem) -> tuple[list[Problem], list[Problem]]:
        """(what is wrong, what is said of it): of a folder that became a link once, not once for each file below it."""
        problems = list(found.problems)
        if task.item.kind == FOLDER and self.explained(task.item.path):
            problems = [problem for problem in problems if not problem[1].startswith("time differs")]
        if found.folder and problems and problems[-1][0] == "SF-504":
            if found.folder in self.refused:
                return problems, problems[:-1]
            self.refused.add(found.folder)
        return problems, problems

    def _write(self, rows: list[Any], proved: list[Any]) -> None:
        self.listing.begin()
        self.listing.settle(rows)
        self.listing.commit()
        if self.record is not None:
            self.record.flush()
        if self.journal is not None and proved:
            self.journal.note("proved", proved)

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def _read(self, answer: Outcome) -> None:
        self.bytes_read += answer.size
        self.read_back[answer.read_back] = self.read_back.get(answer.read_back, 0) + 1

    def _further(self, item: Item, digests: dict[str, bytes], now: float) -> None:
        """Digests that nobody had yet, computed from the copy after its working digest had proved it: marked so."""
        known = item.digests
        new = {name: digest for name, digest in digests.items() if name not in known}
        if not new or not known or self.record is None:
            return
        self.listing.add_digests(item, new)
        after = item._replace(
            more=json.dumps({name: digest.hex() for name, digest in {**known, **new}.items() if name != item.algorithm})
        )
        self.record.add(after.line("checked", from_copy=list(new), at=round(now, 3)))
        if self.journal is not None:
            for name, digest in new.items():
                self.journal.note(f"digest:{name}", [(*split(item.origin), digest)])


def _worst(problems: list[Problem]) -> str | None:
    """What decides how it is healed: other bytes before other metadata."""
    return next((code for code, _ in problems if code != METADATA), METADATA if problems else None)


def _failed(run: str, path: str, code: str, message: str, items: int = 1) -> Event:
    return Event("failed", run, path, items, 0, {"code": code, "message": message})


# -- what nobody has recorded ------------------------------------------------------------------------------------------


def extras(
    root: str, listing: Listing, skip: Callable[[str, os.stat_result], bool], control: Control, touched: set[bytes]
) -> Iterator[str]:
    """The paths of all files that the copy holds beyond the listing; folders with something more go into `touched`.

    No link is followed. `skip` says of a folder, by its path and what it is, that it is the record folder.
    """
    stack = [""]
    with Folders(root) as there:
        while stack and not control.stopped:
            path = stack.pop()
            try:
                folder = there.open(path)
                with system.scan(folder) as found:
                    yield from _extras_of(path, folder, found, listing, stack, skip, touched)
            except (OSError, ScopeferryError):
                continue  # what is expected in it says so


def _extras_of(
    path: str, folder: Any, found: Any, listing: Listing, stack: list[str], skip: Any, touched: set[bytes]
) -> Iterator[str]:
    head = f"{path}/" if path else ""
    raw_head = os.fsencode(head)
    small = listing.count(raw_head) <= 4 * CHUNK
    expected = listing.names(raw_head) if small else set()
    while entries := list(islice(found, CHUNK)):
        for entry in entries:
            raw = os.fsencode(entry.name)
            known = raw in expected or (not small and listing.has(raw_head, raw))
            if entry.is_dir(follow_symlinks=False):
                if entry.name == OURS and skip(head + entry.name, system.lstat(folder, entry.name)):
                    continue
                stack.append(head + entry.name)
            elif not known:
                yield head + entry.name
            if not known:
                touched.add(os.fsencode(path))


def walk_source(
    source: TreeSource, listing: Listing, selection: Selection, control: Control
) -> Iterator[tuple[str, str | None]]:
    """Put what the source holds beyond the listing into it; yields (path, reason) of folders that cannot be listed."""
    stack = [""]
    with source.folders() as here:
        while stack and not control.stopped:
            path = stack.pop()
            head = f"{path}/" if path else ""
            try:
                with system.scan(here.open(path)) as found:
                    while entries := list(islice(found, CHUNK)):
                        listing.add_source(_unknown(head, entries, listing, selection, stack))
            except (OSError, ScopeferryError) as error:
                yield path, getattr(error, "strerror", None) or str(error)


def _unknown(head: str, entries: list[Any], listing: Listing, selection: Selection, stack: list[str]) -> list[Item]:
    found = []
    raw_head = os.fsencode(head)
    for entry in entries:
        path = head + entry.name
        is_folder = entry.is_dir(follow_symlinks=False)
        if is_folder:
            if entry.name == OURS or not selection.enters(path):
                continue
            stack.append(path)
        elif not selection.takes(path) or publish.part_hash(entry.name) is not None:
            continue
        raw = os.fsencode(entry.name)
        if listing.of_source(raw_head + raw) is not None:
            continue
        try:
            facts = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        if is_folder:
            found.append(Item(raw_head, raw, FOLDER))
        elif stat.S_ISLNK(facts.st_mode):
            found.append(Item(raw_head, raw, states.SYMLINK))
        elif stat.S_ISREG(facts.st_mode):
            found.append(Item(raw_head, raw, states.FILE, facts.st_size))
    return found
