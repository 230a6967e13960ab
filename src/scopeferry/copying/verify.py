"""Read a copy again from storage and compare it with what it must hold, and with its source where that is named.

`CheckItem` is the task: one entry of the copy. It changes nothing and follows no link. What is found comes back as
plain values, a code of ``errors.CODES`` and a sentence each; `CheckLedger` writes them into what is expected, the dates
of proof into the journal, and digests that were asked for into the record. `extras` and `walk_source` find what nobody
has recorded.
"""

from __future__ import annotations

import base64
import json
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from scopeferry.copying.expected import BAD, CHECK, FILES, GOOD, OFF, Expected, Item
from scopeferry.copying.record import FOLDER, SKIPPED, Record, split
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
        """Is the copy still the folder that the check began with, and can it be read?"""
        return TreeSource(self.root, self.disk, identity=self.identity).answers()

    def same_time(self, found_ns: int, wanted_ns: int) -> bool:
        """Are these the same, as far as the file system of the copy can tell?"""
        slack = COARSE_NS if self.disk.type in publish.UNSTEADY else FINE_NS if self.disk.network else 0
        return abs(publish.noted_ns(found_ns) - wanted_ns) <= slack


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
            if check.quick or check.disk.reopens or task.item.kind not in FILES:
                continue  # before a mount in user space each open file may be a connection of its own
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
        self.check, self.item, self.key, self.batch = task.check, task.item, task.key, batch
        self.there, self.here, self.control = there, here, control
        self.origin = os.fsdecode(task.item.origin)
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
            self._say(error.code, str(error))
            folder = error.path
        return Outcome(self.key, self.bytes, {}, self.mark, self.read_back,
                       Checked(tuple(self.problems), self.digests, self.mark, folder))  # fmt: skip

    def _say(self, code: str, text: str) -> None:
        self.problems.append((code, text))

    def _look(self) -> None:
        facts = self._lstat()
        if facts is None:
            return
        kind = self.item.kind
        is_kind, look = {FOLDER: (stat.S_ISDIR, self._metadata), states.SYMLINK: (stat.S_ISLNK, self._link)}.get(
            kind, (stat.S_ISREG, self._file)
        )
        if is_kind(facts.st_mode):
            look(facts)
            return
        what = "a link" if stat.S_ISLNK(facts.st_mode) else "something of another kind"
        code = "SF-504" if kind == FOLDER and stat.S_ISLNK(facts.st_mode) else KIND
        self._say(code, f"{what} stands where a {_KINDS[kind]} should be: {self.shown}")

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
            self._say(UNREADABLE, f"cannot be looked at: {self.shown}: {error.strerror}")
        return None

    def _missing(self) -> None:
        item, source = self.item, self.check.source is not None
        new = item.digest is None and item.found
        why = "; it is at the source only" if new and source else ""
        self._say(MISSING, f"missing in the copy: {self.shown}{why}")
        if source and not new and item.kind in FILES and not self.check.quick:
            self._judge(item.algorithm or DEFAULT, None, self._read_source(item.algorithm or DEFAULT))

    # -- links and metadata --------------------------------------------------------------------------------------------

    def _link(self, facts: os.stat_result) -> None:
        head, _, name = self.key.rpartition("/")
        target = system.read_link(self.there.open(head), name)
        wanted = self.item.link
        if wanted is not None and target != wanted:
            say = f"expected {printable(wanted)}, found {printable(target)}"
            self._say(DIFFERENT, f"link leads elsewhere: {self.shown}: {say}")
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
                self._say(SOURCE, f"gone at the source: {self.shown}")
            return
        if wanted is not None and found != wanted:
            self._say(SOURCE, f"link leads elsewhere at the source: {self.shown}: {printable(found)}")
        elif wanted is None and found != target:
            self._say(TWO_WAY, f"links differ: {self.shown}: {printable(found)} and {printable(target)}")

    def _metadata(self, facts: os.stat_result, fd: int | None = None) -> None:
        mode, found = self.item.mode, facts.st_mode & 0o7777
        if mode is not None and found != mode:
            self._say(METADATA, f"mode differs: {self.shown}: expected {mode:04o}, found {found:04o}")
        self._time(facts)
        if not self.item.xattrs or (fd is None and self.item.kind != FOLDER):
            return
        try:
            have = system.xattrs(self.there.open(self.key) if fd is None else fd)
        except OSError as error:
            self._say(METADATA, f"attributes cannot be read: {self.shown}: {error.strerror}")
            return
        for name, value in json.loads(self.item.xattrs).items():
            if have.get(name) != base64.b64decode(value):
                what = "is missing" if name not in have else "differs"
                self._say(METADATA, f"attribute {printable(name)} {what}: {self.shown}")

    def _time(self, facts: os.stat_result) -> None:
        wanted, found = self.item.mtime_ns, facts.st_mtime_ns
        if wanted is not None and not self.check.same_time(found, wanted):
            self._say(METADATA, f"time differs: {self.shown}: expected {_time(wanted)}, found {_time(found)}")

    # -- files ---------------------------------------------------------------------------------------------------------

    def _file(self, facts: os.stat_result) -> None:
        size = self.item.size
        if self.check.quick:
            if size is not None and facts.st_size != size:
                self._say(DIFFERENT, f"size differs: {self.shown}: expected {size:,}, found {facts.st_size:,}")
            self._metadata(facts)
            return
        algorithm = self.item.algorithm or (*self.check.digests, DEFAULT)[0]
        copy = self._read_copy([algorithm, *(name for name in self.check.digests if name != algorithm)])
        source = self._read_source(algorithm) if self.check.source is not None else None
        self._judge(algorithm, copy, source)

    def _judge(self, algorithm: str, copy: dict[str, bytes] | None, source: bytes | None) -> None:
        """What the record, the copy and the source say of one another; None: not read."""
        known, found = self.item.digests, copy or {}
        wanted = known.get(algorithm)
        wrong = next((name for name in found if known.get(name, found[name]) != found[name]), None)
        moved = source is not None and wanted is not None and source != wanted
        say = "" if wrong is None else f"expected {_hex(wrong, known[wrong])}, found {_hex(wrong, found[wrong])}"
        if moved and wrong == algorithm:
            equal = source == found[algorithm]
            what = "both differ, and are equal to each other" if equal else "both differ"
            at_source = f"at the source {_hex(algorithm, source)}"
            self._say(BOTH if equal else ALL_THREE, f"{what}: {self.shown}: {say}, {at_source}")
            return
        if moved:
            both = f"expected {_hex(algorithm, wanted)}, found {_hex(algorithm, source)}"
            self._say(SOURCE, f"source differs from the record: {self.shown}: {both}")
        elif source is not None and wanted is None and source != found.get(algorithm, source):
            both = f"{_hex(algorithm, source)} and {_hex(algorithm, found[algorithm])}"
            self._say(TWO_WAY, f"source and copy differ: {self.shown}: {both}")
        if wrong is not None:
            self._say(DIFFERENT, f"copy differs from the record: {self.shown}: {say}")
        elif copy is not None:
            self.digests = copy

    def _read_copy(self, algorithms: Sequence[str]) -> dict[str, bytes] | None:
        check = self.check
        try:
            with self.batch.take(self.key) or StoredFile.open(self.there, self.key) as file:
                flushed = max(file.stat.st_ctime_ns, file.stat.st_mtime_ns) < check.flushed_ns
                digests = file.digest(algorithms, self.control, flushed=flushed, look=not flushed or self.batch.look)
                mark = file.check()
                self.mark = mark if check.disk.steady else mark._replace(inode=0, ctime_ns=0)
                self.bytes = file.size
                if file.size:
                    self.batch.look = file.memory
                kind = check.disk.read_back
                self.read_back = "memory" if kind == "storage" and file.memory else kind
                self._metadata(file.stat, file.fd)
                return digests
        except FileNotFoundError:
            self._missing()
        except OSError as error:
            self._say(UNREADABLE, f"cannot be read: {self.shown}: {error.strerror}")
        except ItemError as error:
            moved = error.code == "SF-201"
            self._say(*(DIFFERENT, f"changed while it was read: {self.shown}") if moved else (UNREADABLE, str(error)))
        return None

    def _read_source(self, algorithm: str) -> bytes | None:
        """The digest at the source; None if it cannot be had, and that is said."""
        assert self.check.source is not None
        try:
            with self.check.source.open(self.here, self.origin) as reader:
                return reader.digest([algorithm], self.control)[algorithm]
        except Refused as error:
            self._say(error.code, f"at the source: {error}")
        except ItemError as error:
            if error.code != "SF-202":
                self._say(UNREADABLE if error.code != "SF-201" else SOURCE, f"at the source: {error}")
            elif not (self.check.one_way or self.item.freed):
                only = self.item.digest is None
                gone = (TWO_WAY, "only in the copy") if only else (SOURCE, "gone at the source")
                self._say(gone[0], f"{gone[1]}: {self.shown}")
        return None


def _hex(algorithm: str, digest: bytes | None) -> str:
    return f"{algorithm}:{(digest or b'').hex()}"


_KINDS = {states.FILE: "file", states.HARDLINK: "file", states.SYMLINK: "link", FOLDER: "folder"}


def _time(time_ns: int) -> str:
    try:
        shown = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time_ns // 1_000_000_000))
    except (OverflowError, ValueError, OSError):
        return f"{time_ns} ns"
    return f"{shown}.{time_ns % 1_000_000_000:09}"


def check_tasks(expected: Expected, check: Check, control: Control) -> Iterator[CheckItem]:
    """The rows that are to be checked as tasks, folder by folder."""
    for item in expected.items(CHECK):
        if control.stopped:
            return
        yield CheckItem(check, os.fsdecode(item.path), item)


# -- what was found ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class CheckLedger:
    """What is expected, then record, then journal. ``record`` is written only for digests that were asked for and are
    new.
    """

    expected: Expected
    check: Check
    run: str = ""
    journal: Journal | None = None
    record: Record | None = None
    counts: Counter[str] = field(default_factory=Counter)
    read_back: Counter[str] = field(default_factory=Counter)
    bytes_read: int = 0
    refused: set[str] = field(default_factory=set)
    explained: Callable[[bytes], bool] = lambda _: False
    unnoted: str = ""

    def settle(self, results: Sequence[Result]) -> list[Event]:
        """Write down what was found of these items; the events that tell it."""
        now = time.time()
        events: list[Event] = []
        rows, proved = [], []
        for task, answer in results:
            assert isinstance(task, CheckItem)
            item, counted = task.item, int(task.item.kind != FOLDER)  # progress and totals count files and links
            if isinstance(answer, Failure):  # stopped, or a bug: nothing is known of this item
                events.append(failed(self.run, task.key, answer.code, answer.message))
                continue
            found: Checked = answer.payload
            problems, told = self._told(found, item)
            rows.append((item, _state(problems), found.mark))
            self.counts["bad" if problems else "good"] += 1
            self.counts["links"] += item.kind == states.SYMLINK and not problems
            if answer.read_back != "no":
                self.bytes_read += answer.size
                self.read_back[answer.read_back] += 1
                if not any(code in {DIFFERENT, BOTH, ALL_THREE, TWO_WAY} for code, _ in problems):
                    self.counts["proved"] += 1
                    proved.append((*split(item.origin), round(now, 3)))
            if found.digests:
                self._further(item, found.digests, now)
            events += [failed(self.run, task.key, code, message, counted) for code, message in told]
            if not problems:
                data = {"action": "checked", "read_back": answer.read_back}
                events.append(Event("done", self.run, task.key, counted, answer.size, data, now))
        self.expected.mark(rows)
        if self.record is not None:
            self.record.flush()
        self._note("proved", proved)
        if self.unnoted:
            events.append(Event("note", self.run, "", 0, 0, {"code": "SF-917", "message": self.unnoted}))
            self.unnoted = ""
        return events

    def _note(self, key: str, found: list[tuple[bytes, bytes, Any]]) -> None:
        """Tell the journal, unless it takes nothing any more: what was found does not hang on it."""
        if self.journal is None or not found:
            return
        try:
            self.journal.note(key, found)
        except ScopeferryError as error:
            self.journal = None
            self.unnoted = f"not noted when this was checked: {error}"

    def _told(self, found: Checked, item: Item) -> tuple[list[Problem], list[Problem]]:
        """(what is wrong, what is said of it): of a folder that became a link once, not once for each file below it."""
        problems = list(found.problems)
        if item.kind == FOLDER and self.explained(item.path):
            problems = [problem for problem in problems if not problem[1].startswith("time differs")]
        if found.folder and problems and problems[-1][0] == "SF-504":
            if found.folder in self.refused:
                return problems, problems[:-1]
            self.refused.add(found.folder)
        return problems, problems

    def _further(self, item: Item, digests: dict[str, bytes], now: float) -> None:
        """Digests that nobody had yet, computed from the copy after its working digest had proved it: marked so."""
        new = {name: digest for name, digest in digests.items() if name not in item.digests}
        if self.record is None or not new or not item.digests:
            return
        after = item._replace(further={**item.further, **new})
        self.record.add(after.line("checked", from_copy=list(new), at=round(now, 3)))
        for name, digest in new.items():
            note = f"digest:{name}", [(*split(item.origin), digest)]
            self.expected.note(*note)
            self._note(*note)


def _state(problems: list[Problem]) -> int:
    """How it is to be healed: other bytes, or only other metadata."""
    return GOOD if not problems else OFF if all(code == METADATA for code, _ in problems) else BAD


def failed(run: str, path: str, code: str, message: str, items: int = 1) -> Event:
    """The event of a problem."""
    return Event("failed", run, path, items, 0, {"code": code, "message": message})


# -- what nobody has recorded ------------------------------------------------------------------------------------------


def extras(
    root: str, expected: Expected, skip: Callable[[str, os.stat_result], bool], control: Control, touched: set[bytes]
) -> Iterator[str]:
    """The paths of all files that the copy holds beyond what is expected; folders with something more go into
    `touched`.

    No link is followed. `skip` says of a folder, by its path and what it is, that it is the record folder.
    """
    stack = [""]
    with Folders(root) as there:
        while stack and not control.stopped:
            path = stack.pop()
            head = f"{path}/" if path else ""
            try:
                folder = there.open(path)
                with system.scan(folder) as found:
                    while entries := list(islice(found, CHUNK)):
                        known = expected.known(os.fsencode(head), [os.fsencode(entry.name) for entry in entries])
                        for entry in entries:
                            is_known = os.fsencode(entry.name) in known
                            if not entry.is_dir(follow_symlinks=False):
                                if not is_known:
                                    yield head + entry.name
                            elif entry.name == OURS and skip(head + entry.name, system.lstat(folder, entry.name)):
                                continue
                            else:
                                stack.append(head + entry.name)
                            if not is_known:
                                touched.add(os.fsencode(path))
            except (OSError, ScopeferryError):
                continue  # what is expected in it says so


def walk_source(
    source: TreeSource, expected: Expected, selection: Selection, control: Control
) -> Iterator[tuple[str, str | None]]:
    """Add what the source holds beyond what is expected; yields (path, reason) of folders that cannot be listed."""
    stack = [""]
    with source.folders() as here:
        while stack and not control.stopped:
            path = stack.pop()
            head = f"{path}/" if path else ""
            try:
                with system.scan(here.open(path)) as found:
                    while entries := list(islice(found, CHUNK)):
                        expected.put(_unknown(head, entries, expected, selection, stack))
            except (OSError, ScopeferryError) as error:
                yield path, getattr(error, "strerror", None) or str(error)


def _unknown(head: str, entries: list[Any], expected: Expected, selection: Selection, stack: list[str]) -> list[Item]:
    found = []
    known = expected.rows(os.fsencode(head), [os.fsencode(entry.name) for entry in entries])
    for entry in entries:
        path, raw = head + entry.name, os.fsencode(head + entry.name)
        if entry.is_dir(follow_symlinks=False):
            if entry.name == OURS or not selection.enters(path):
                continue
            stack.append(path)
        elif not selection.takes(path) or publish.part_hash(entry.name) is not None:
            continue
        if os.fsencode(entry.name) in known:
            continue
        try:
            facts = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        kind = {stat.S_IFDIR: FOLDER, stat.S_IFLNK: states.SYMLINK, stat.S_IFREG: states.FILE}.get(
            stat.S_IFMT(facts.st_mode)
        )
        if kind == states.SYMLINK and expected.detail(os.fsencode(head), os.fsencode(entry.name), SKIPPED):
            continue  # the record says why the copy has none
        if kind is not None:
            found.append(Item(raw, raw, kind, size=facts.st_size if kind == states.FILE else None))
    return found
