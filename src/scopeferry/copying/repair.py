"""Send again exactly what a check found wrong, where the source still has what was recorded.

`RepairItem` is the task: one entry of the copy. The source is read once, into a temporary file of the copy; only if its
digest is the recorded one does that get the name. What stood there goes to ``set_aside`` below the record folder.
Times, modes, attributes and the targets of links are those of the record, whatever the source says today. `RelinkItem`
makes hard links again when all files are right; `set_folders` sets folders right last.
"""

from __future__ import annotations

import base64
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from scopeferry.copying.listing import BAD, HEALED, Item, Listing, split
from scopeferry.copying.record import FOLDER, Record
from scopeferry.copying.verify import METADATA
from scopeferry.errors import ItemError, Refused, ScopeferryError
from scopeferry.kernel import journal as states
from scopeferry.kernel import publish
from scopeferry.kernel.events import Event
from scopeferry.kernel.journal import Journal, fingerprint
from scopeferry.kernel.publish import Folders, Mark, system
from scopeferry.kernel.run import Result
from scopeferry.kernel.task import Control, Failure, Outcome
from scopeferry.logs import printable
from scopeferry.sources.tree import SourceFile, TreeSource
from scopeferry.stores.files import apply_attributes, set_aside
from scopeferry.stores.local import LocalStore
from scopeferry.stores.store import Attributes, Entry, Prove, Upload

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True, slots=True)
class Healing:
    """What all items of a repair have in common; picklable. ``set_aside`` is a folder below the record folder."""

    source: TreeSource
    store: LocalStore
    set_aside: str


@dataclass(frozen=True, slots=True)
class Healed:
    """The payload of an outcome: ``sent`` or only ``metadata``, and the mark of the source where it was read."""

    what: str
    source: Mark | None = None
    attempts: int = 1


class Recorded:
    """An open source file with the attributes of the record. See ``stores.store.Reader``."""

    def __init__(self, file: SourceFile, item: Item) -> None:
        self.file, self.item = file, item
        self.size = file.size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    @property
    def sparse(self) -> bool:
        """Has it holes?"""
        return self.file.sparse

    def ranges(self) -> Iterator[tuple[int, int]]:
        """(start, end) in bytes of what holds data."""
        return self.file.ranges()

    def read_into(self, block: Any, offset: int) -> int:
        """Read at an offset; 0 at the end."""
        return self.file.read_into(block, offset)

    def attributes(self) -> Attributes:
        """What was recorded; what was not is as the source has it."""
        now = self.file.attributes()
        wanted = recorded_attributes(self.item)
        return Attributes(
            now.mode if wanted.mode is None else wanted.mode,
            now.mtime_ns if wanted.mtime_ns is None else wanted.mtime_ns,
            now.owner,
            wanted.xattrs or now.xattrs,
        )

    def check(self) -> Mark:
        """The mark, if the file is unchanged; raises SourceChanged."""
        return self.file.check()


def recorded_attributes(item: Item) -> Attributes:
    """Mode, time and xattrs as the record has them."""
    xattrs = json.loads(item.xattrs) if item.xattrs else {}
    return Attributes(item.mode, item.mtime_ns, None, {name: base64.b64decode(value) for name, value in xattrs.items()})


@dataclass(frozen=True, slots=True)
class RepairItem:
    """One wrong entry of a copy. ``key`` is its path there, as the system decodes it."""

    healing: Healing
    key: str
    item: Item

    @property
    def revision(self) -> str:
        """What it must become."""
        return f"{self.item.algorithm}:{self.item.digest!r}"

    @property
    def size(self) -> int:
        """Bytes of work."""
        return 0 if self.item.code == METADATA else (self.item.size or 0)

    @property
    def origin(self) -> str:
        """Its path at the source."""
        return os.fsdecode(self.item.origin)

    @staticmethod
    def run_batch(tasks: Sequence[RepairItem], control: Control) -> list[Outcome | Failure]:
        """Heal them all; one answer for each."""
        healing = tasks[0].healing
        answers: dict[int, Outcome | Failure] = {}
        uploads: dict[int, Upload] = {}
        try:
            with healing.source.folders() as here, Folders(healing.store.root) as there:
                for index, task in enumerate(tasks):
                    try:
                        control.check()
                        found: Upload | Outcome | Failure = _One(task, here, there, control).answer()
                    except ScopeferryError as error:
                        found = Failure.of(task.key, error)
                    except OSError as error:
                        found = Failure.of(task.key, healing.store.translated(error, task.key))
                    if isinstance(found, Upload):
                        uploads[index] = found
                    else:
                        answers[index] = found
                _put(tasks, uploads, answers, control)
        except OSError as error:
            problem = healing.store.translated(error, tasks[0].key)
            for index, task in enumerate(tasks):
                answers.setdefault(index, Failure.of(task.key, problem))
        return [answers[index] for index in range(len(tasks))]


def _put(
    tasks: Sequence[RepairItem], uploads: dict[int, Upload], answers: dict[int, Outcome | Failure], control: Control
) -> None:
    """Send what is to be sent, in groups of files that are known by the same digest."""
    groups: dict[str, list[int]] = {}
    for index in uploads:
        groups.setdefault(tasks[index].item.algorithm or "", []).append(index)
    for algorithm, indices in groups.items():
        store = tasks[0].healing.store
        if algorithm:
            store = replace(store, digests=(algorithm,))
        found = store.put([uploads[index] for index in indices], prove=Prove(), control=control)
        for index, answer in zip(indices, found, strict=True):
            key = tasks[index].key
            if isinstance(answer, Entry):
                size = 0 if uploads[index].target is not None else answer.mark.size
                payload = Healed("sent", answer.source, answer.attempts)
                answers[index] = Outcome(key, size, answer.digests, answer.mark, answer.read_back, payload)
            else:
                answers[index] = answer


class _One:
    """One wrong entry: what is to be sent for it, or the outcome of setting its metadata right."""

    def __init__(self, task: RepairItem, here: Folders, there: Folders, control: Control) -> None:
        self.task, self.item, self.key, self.healing = task, task.item, task.key, task.healing
        self.here, self.there, self.control = here, there, control
        self.head, _, self.name = task.key.rpartition("/")

    def answer(self) -> Upload | Outcome:
        if self.item.kind == FOLDER:
            return self._folder()
        if self.item.kind == states.SYMLINK:
            return self._link()
        if self.item.code == METADATA:
            mark, lost = self.healing.store.set_right(self.there, self.key, recorded_attributes(self.item))
            if lost:
                what = ", ".join(lost)
                raise ItemError(f"{what} could not be set: {printable(self.key)}", code="SF-210", path=self.key)
            return Outcome(self.key, 0, {}, mark, "no", Healed("metadata"))
        return self._file()

    def _folder(self) -> Outcome:
        """Made if it is missing; its mode and time are set at the end."""
        folder = self.there.open(self.key, make=True)
        facts = system.folder_stat(folder)
        return Outcome(self.key, 0, {}, publish.mark(facts), "no", Healed("metadata"))

    def _link(self) -> Upload | Outcome:
        wanted = self.item.link
        there = self._standing(stat.S_ISLNK)
        if self.item.code == METADATA:
            if self.item.mtime_ns is not None:
                system.set_link_time(self.there.open(self.head), self.name, self.item.mtime_ns)
            entry = system.lstat(self.there.open(self.head), self.name)
            return Outcome(self.key, 0, {}, self._mark(entry), "no", Healed("metadata"))
        found = self._source_target()
        if wanted is None or found != wanted:
            say = f"recorded {printable(wanted or '?')}, at the source {printable(found)}"
            raise Refused(f"link differs at the source too: {printable(self.key)}: {say}", code="SF-521", path=self.key)
        if there is not None:
            there = _set_aside(self.healing, self.there.open(self.head), self.name, self.key, there)
        return Upload(self.key, target=wanted, attributes=Attributes(mtime_ns=self.item.mtime_ns), expected=there)

    def _source_target(self) -> str:
        head, _, name = self.task.origin.rpartition("/")
        try:
            return system.read_link(self.here.open(head), name)
        except OSError as error:
            raise self._unusable(self.healing.source.translated(error, self.task.origin)) from error

    def _file(self) -> Upload:
        item = self.item
        if item.digest is None:
            say = f"nobody recorded what it must be: {printable(self.key)}"
            raise ItemError(say, code="SF-214", path=self.key)
        self._check_source()
        expected = self._standing(stat.S_ISREG)
        keep = self.healing.set_aside if expected is not None else None
        return Upload(self.key, self._open, expected, set_aside=keep, named=self._named)

    def _check_source(self) -> None:
        """A source of another length is not sent first and refused then."""
        head, _, name = self.task.origin.rpartition("/")
        try:
            size = system.lstat(self.here.open(head), name).st_size
        except OSError as error:
            raise self._unusable(self.healing.source.translated(error, self.task.origin)) from error
        if self.item.size is not None and size != self.item.size:
            self._refuse(self._digest_of_source())

    def _digest_of_source(self) -> bytes:
        algorithm = self.item.algorithm or ""
        with self._open() as reader:
            return reader.file.digest((algorithm,), self.control)[algorithm]

    def _open(self) -> Recorded:
        try:
            return Recorded(self.healing.source.open(self.here, self.task.origin), self.item)
        except ItemError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: ItemError) -> ItemError:
        if error.code == "SF-201":
            return error
        return ItemError(f"source could not be used to heal the copy: {error}", code="SF-214", path=self.key)

    def _named(self, digest: bytes) -> str:
        """The name is given only to what was recorded."""
        if digest != self.item.digest:
            self._refuse(digest)
        return self.name

    def _refuse(self, found: bytes) -> None:
        algorithm, wanted = self.item.algorithm, self.item.digest or b""
        say = f"recorded {algorithm}:{wanted.hex()}, at the source {algorithm}:{found.hex()}"
        raise Refused(f"source differs from the record too: {printable(self.key)}: {say}", code="SF-521", path=self.key)

    def _standing(self, kind: Callable[[int], bool]) -> Mark | None:
        try:
            entry = system.lstat(self.there.open(self.head), self.name)
        except FileNotFoundError:
            return None
        if not kind(entry.st_mode):
            say = f"something of another kind stands at the destination: {printable(self.key)}"
            raise Refused(say, code="SF-502", path=self.key)
        return self._mark(entry)

    def _mark(self, entry: os.stat_result) -> Mark:
        return publish.mark(entry, steady=self.healing.store.disk.steady)


def _set_aside(healing: Healing, folder: Any, name: str, key: str, expected: Mark) -> Mark:
    """Keep what stands there; its mark afterwards, for a link to it moves its change time."""
    try:
        set_aside(folder, name, healing.store.records, healing.set_aside, key)
    except OSError:  # a symbolic link that cannot be linked to: only its target is lost
        if not stat.S_ISLNK(system.lstat(folder, name).st_mode):
            raise
    now = publish.mark(system.lstat(folder, name), steady=expected.inode != 0)
    return now if now[:3] == expected[:3] else expected


@dataclass(frozen=True, slots=True)
class RelinkItem:
    """One further name of an inode, whose first name is right: made a hard link of it again."""

    healing: Healing
    key: str
    item: Item
    leader: str

    @property
    def revision(self) -> str:
        """What it must become."""
        return f"link:{self.leader}"

    @property
    def size(self) -> int:
        """Links are no bytes of work."""
        return 0

    @staticmethod
    def run_batch(tasks: Sequence[RelinkItem], control: Control) -> list[Outcome | Failure]:
        """Make the links; one answer for each."""
        answers: list[Outcome | Failure] = []
        store = tasks[0].healing.store
        with Folders(store.root) as there:
            for task in tasks:
                try:
                    control.check()
                    answers.append(task.link(there))
                except ScopeferryError as error:
                    answers.append(Failure.of(task.key, error))
                except OSError as error:
                    answers.append(Failure.of(task.key, store.translated(error, task.key)))
        return answers

    def link(self, there: Folders) -> Outcome:
        """Make it; what stands there goes to ``set_aside`` first."""
        head, _, name = self.key.rpartition("/")
        store = self.healing.store
        folder = there.open(head, make=True)
        try:
            entry = system.lstat(folder, name)
        except FileNotFoundError:
            expected = None
        else:
            if not stat.S_ISREG(entry.st_mode):
                say = f"something of another kind stands at the destination: {printable(self.key)}"
                raise Refused(say, code="SF-502", path=self.key)
            expected = publish.mark(entry, steady=store.disk.steady)
            expected = _set_aside(self.healing, folder, name, self.key, expected)
        mark = store.link(there, self.leader, self.key, expected)
        return Outcome(self.key, 0, {}, mark, "no", Healed("sent"))


def repair_tasks(listing: Listing, healing: Healing, control: Control) -> Iterator[RepairItem]:
    """What a check found wrong, as tasks, but for hard links whose first name is known."""
    for item in listing.items(BAD):
        if control.stopped:
            return
        if item.kind == states.HARDLINK and item.code != METADATA and _leader(listing, item) is not None:
            continue
        yield RepairItem(healing, os.fsdecode(item.path), item)


def relink_tasks(listing: Listing, healing: Healing, control: Control) -> Iterator[RelinkItem]:
    """The hard links among what is wrong still."""
    for item in listing.items(BAD, kinds=(states.HARDLINK,)):
        if control.stopped:
            return
        leader = _leader(listing, item)
        if leader is not None and leader.state != BAD:
            yield RelinkItem(healing, os.fsdecode(item.path), item, os.fsdecode(leader.path))


def _leader(listing: Listing, item: Item) -> Item | None:
    return None if item.leader is None else listing.of_source(item.leader)


@dataclass(slots=True)
class RepairLedger:
    """Record first, then journal, then listing."""

    listing: Listing
    healing: Healing
    record: Record
    journal: Journal | None
    run: str = ""
    repaired: int = 0
    metadata: int = 0
    sent_bytes: int = 0
    read_back: dict[str, int] = field(default_factory=dict)
    folders: set[bytes] = field(default_factory=set)

    def settle(self, results: Sequence[Result]) -> list[Event]:
        """Write down what became of these items; the events that tell it."""
        now = time.time()
        events, done = [], []
        rows: list[tuple[bytes, states.Row, dict[str, Any]]] = []
        for task, answer in results:
            assert isinstance(task, RepairItem | RelinkItem)
            if isinstance(answer, Failure):
                data = {"code": answer.code, "message": answer.message, "hint": answer.hint}
                events.append(Event("failed", self.run, task.key, 1, answer.payload or 0, data, now))
                self.folders.add(task.item.head[:-1])  # a temporary file may have been made in it
                continue
            healed: Healed = answer.payload
            self._count(task, answer, healed)
            done.append((HEALED, None, answer.entry, task.item.head, task.item.name))
            more: dict[str, Any] = {"read_back": answer.read_back, "at": round(now, 3)}
            if healed.attempts > 1:
                more["attempts"] = healed.attempts
            self.record.add(task.item.line("repaired", **more))
            row = self._row(task.item, answer.entry, healed.source)
            rows += [row] if row is not None else []
            events.append(_done(self.run, task.key, answer, healed, now))
        self._write(rows, done)
        return events

    def _count(self, task: RepairItem | RelinkItem, answer: Outcome, healed: Healed) -> None:
        if healed.what == "sent":
            self.repaired += 1
            self.sent_bytes += answer.size
            self.folders.add(task.item.head[:-1])
        else:
            self.metadata += 1
        if answer.read_back != "no":
            self.read_back[answer.read_back] = self.read_back.get(answer.read_back, 0) + 1

    def _write(self, rows: list[Any], done: list[Any]) -> None:
        self.record.flush()
        if self.journal is not None and rows:
            self.journal.settle(rows)
        self.listing.begin()
        self.listing.settle(done)
        self.listing.commit()

    def _row(self, item: Item, mark: Mark, source: Mark | None) -> tuple[bytes, states.Row, dict[str, Any]] | None:
        """The journal's row of an entry as it stands now, if there was one."""
        row = self.journal.row(item.origin) if self.journal is not None and item.kind != FOLDER else None
        if row is None:
            return None
        store, steady = self.healing.store, self.healing.source.disk.steady
        stored = (
            fingerprint(mark.inode, mark.ctime_ns, mark.size) if store.disk.steady else fingerprint(0, 0, mark.size)
        )
        row = row._replace(
            state=states.DONE, stored=stored, stored_mtime_ns=None if mark.mtime_ns == row.mtime_ns else mark.mtime_ns
        )
        if source is not None and source.mtime_ns == row.mtime_ns and steady:
            row = row._replace(source=fingerprint(source.inode, source.ctime_ns))
        return split(item.origin)[0], row, {}

    def refresh_links(self) -> None:
        """A further link moves the change time of an inode: the rows of its other names are written again."""
        if self.journal is None or not self.healing.store.disk.steady:
            return
        with Folders(self.healing.store.root) as there:
            for item in self.listing.items(HEALED, kinds=(states.HARDLINK,)):
                for one in (item, _leader(self.listing, item)):
                    if one is not None:
                        self._refresh(there, one)

    def _refresh(self, there: Folders, item: Item) -> None:
        assert self.journal is not None
        head, _, name = os.fsdecode(item.path).rpartition("/")
        try:
            mark = publish.mark(system.lstat(there.open(head), name))
        except (OSError, ScopeferryError):
            return
        row = self._row(item, mark, None)
        if row is not None:
            self.journal.settle([row])


def _done(run: str, path: str, answer: Outcome, healed: Healed, now: float) -> Event:
    data = {"action": "repaired", "what": healed.what, "read_back": answer.read_back}
    return Event("done", run, path, 1, answer.size, data, now)


def set_folders(listing: Listing, root: str, touched: set[bytes]) -> Iterator[tuple[str, str | None]]:
    """Give folders their recorded mode and time, deepest first: those that were wrong or were written into.

    Yields (path, what went wrong or None).
    """
    wanted = [item for item in listing.items(kinds=(FOLDER,)) if item.path in touched or item.state in {BAD, HEALED}]
    with Folders(root) as there:
        for item in sorted(wanted, key=lambda item: item.path, reverse=True):
            path = os.fsdecode(item.path)
            try:
                lost = apply_attributes(there.open(path), recorded_attributes(item))
                yield path, f"{', '.join(lost)} could not be set: {printable(path)}" if lost else None
            except (ScopeferryError, OSError) as error:
                yield path, f"folder not set right: {printable(path) or '.'}: {error}"
