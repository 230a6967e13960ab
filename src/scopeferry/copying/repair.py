"""Send again exactly what a check found wrong, where the source still has what was recorded.

`RepairItem` is the task: one entry of the copy. The source is read once, into a temporary file of the copy; only if its
digest is the recorded one does that get the name. What stood there goes to ``set_aside`` below the record folder.
Times, modes, attributes and the targets of links are those of the record, whatever the source says today. Further names
of an inode are made hard links again when all files are right; `set_folders` sets folders right last.
"""

from __future__ import annotations

import base64
import json
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from scopeferry.copying.expected import BAD, HEALED, KINDS, OFF, Expected, Item
from scopeferry.copying.order import Order
from scopeferry.copying.record import FOLDER, Record, split
from scopeferry.errors import ItemError, Refused, ScopeferryError
from scopeferry.kernel import journal as states
from scopeferry.kernel import publish
from scopeferry.kernel.events import Event
from scopeferry.kernel.journal import Journal, Row, fingerprint
from scopeferry.kernel.publish import Folders, Mark, system
from scopeferry.kernel.run import Result
from scopeferry.kernel.task import Control, Failure, Outcome
from scopeferry.logs import printable
from scopeferry.sources.tree import SourceFile
from scopeferry.stores.files import apply_attributes, apply_to_link, set_aside
from scopeferry.stores.store import Attributes, Entry, Upload


@dataclass(frozen=True, slots=True)
class Healed:
    """The payload of an outcome: ``sent`` or only ``metadata``, the mark of the source where it was read, and where,
    below the record folder, what stood there lies now.
    """

    what: str
    source: Mark | None = None
    attempts: int = 1
    aside: str = ""


def recorded(item: Item) -> Attributes:
    """Mode, time and xattrs as the record has them."""
    xattrs = json.loads(item.xattrs) if item.xattrs else {}
    return Attributes(item.mode, item.mtime_ns, None, {name: base64.b64decode(value) for name, value in xattrs.items()})


@dataclass(frozen=True, slots=True)
class RepairItem:
    """One wrong entry of a copy. ``key`` is its path there, as the system decodes it; ``leader`` that of the file it is
    a hard link of, where that is right.
    """

    order: Order
    key: str
    item: Item
    leader: str | None = None

    @property
    def revision(self) -> str:
        """What it must become."""
        return f"{self.item.algorithm}:{self.item.digest!r}:{self.leader}"

    @property
    def size(self) -> int:
        """Bytes of work."""
        return 0 if self.item.state == OFF or self.leader else (self.item.size or 0)

    @staticmethod
    def run_batch(tasks: Sequence[RepairItem], control: Control) -> list[Outcome | Failure]:
        """Heal them all; one answer for each."""
        order = tasks[0].order
        answers: dict[str, Outcome | Failure] = {}
        uploads: list[Upload] = []
        try:
            with order.source.folders() as here, Folders(order.store.root) as there:
                for task in tasks:
                    try:
                        control.check()
                        found = _One(task, here, there, control).answer()
                    except ScopeferryError as error:
                        answers[task.key] = Failure.of(task.key, error)
                    except OSError as error:
                        answers[task.key] = Failure.of(task.key, order.store.translated(error, task.key))
                    else:
                        uploads += [found] if isinstance(found, Upload) else []
                        answers |= {task.key: found} if isinstance(found, Outcome) else {}
                for upload, entry in zip(
                    uploads, order.store.put(uploads, prove=order.prove, control=control), strict=True
                ):
                    answers[upload.key] = entry if isinstance(entry, Failure) else _sent(upload, entry)
        except OSError as error:
            problem = order.store.translated(error, tasks[0].key)
            return [answers.get(task.key, Failure.of(task.key, problem)) for task in tasks]
        return [answers[task.key] for task in tasks]


def _sent(upload: Upload, entry: Entry) -> Outcome:
    size = 0 if upload.target is not None else entry.mark.size
    healed = Healed("sent", entry.source, entry.attempts, entry.aside)
    return Outcome(upload.key, size, entry.digests, entry.mark, entry.read_back, healed)


class _One:
    """One wrong entry: what is to be sent for it, or the outcome of setting its metadata right."""

    def __init__(self, task: RepairItem, here: Folders, there: Folders, control: Control) -> None:
        self.item, self.key, self.order, self.leader = task.item, task.key, task.order, task.leader
        self.here, self.there, self.control = here, there, control
        self.head, _, self.name = task.key.rpartition("/")
        self.origin = os.fsdecode(task.item.origin)

    def answer(self) -> Upload | Outcome:
        if self.item.kind == FOLDER:  # made if it is missing; its mode and time are set at the end
            facts = system.folder_stat(self.there.open(self.key, make=True))
            mark = publish.mark(facts, steady=self.order.store.disk.steady)
            return Outcome(self.key, 0, {}, mark, "no", Healed("metadata"))
        if self.item.state == OFF:
            return self._set_right()
        if self.leader is not None:
            return self._link_again(self.leader)
        return self._symlink() if self.item.kind == states.SYMLINK else self._file()

    def _set_right(self) -> Outcome:
        wanted = recorded(self.item)
        if self.item.kind == states.SYMLINK:
            self._standing(stat.S_ISLNK)
            lost = tuple(apply_to_link(self.there.open(self.head), self.name, wanted, self.order.store.disk))
            mark = self._standing(stat.S_ISLNK)
        else:
            mark, lost = self.order.store.set_right(self.there, self.key, wanted)
        if lost:
            raise ItemError(f"{', '.join(lost)} could not be set: {printable(self.key)}", code="SF-210", path=self.key)
        return Outcome(self.key, 0, {}, mark, "no", Healed("metadata"))

    def _link_again(self, leader: str) -> Outcome:
        order = self.order
        there = self._standing(stat.S_ISREG)
        expected, aside = there, ""
        if there is not None:
            aside = set_aside(self.there.open(self.head), self.name, order.store.records, order.set_aside, self.key)
            now = self._standing(stat.S_ISREG)
            expected = now if now is not None and now[:3] == there[:3] else there  # its change time has moved
        mark = order.store.link(self.there, leader, self.key, expected)
        return Outcome(self.key, 0, {}, mark, "no", Healed("sent", aside=aside))

    def _symlink(self) -> Upload:
        wanted, found = self.item.link, ""
        there = self._standing(stat.S_ISLNK)
        head, _, name = self.origin.rpartition("/")
        try:
            found = system.read_link(self.here.open(head), name)
        except OSError as error:
            raise self._unusable(self.order.source.translated(error, self.origin)) from error
        if wanted is None or found != wanted:
            say = f"recorded {printable(wanted or '?')}, at the source {printable(found)}"
            raise Refused(f"link differs at the source too: {printable(self.key)}: {say}", code="SF-521", path=self.key)
        return Upload(self.key, None, there, wanted, Attributes(mtime_ns=self.item.mtime_ns), self.order.set_aside)

    def _file(self) -> Upload:
        if self.item.digest is None:
            say = f"nobody recorded what it must be: {printable(self.key)}"
            raise ItemError(say, code="SF-214", path=self.key)
        self._open().close()  # a source of another length is not sent first and refused then
        expected = self._standing(stat.S_ISREG)
        return Upload(
            self.key, self._open, expected, None, recorded(self.item), self.order.set_aside, named=self._named
        )

    def _open(self) -> SourceFile:
        try:
            file = self.order.source.open(self.here, self.origin)
            if self.item.size is not None and file.size != self.item.size:
                with file:
                    self._named(file.digest([self.item.algorithm or ""], self.control)[self.item.algorithm or ""])
        except ItemError as error:
            raise self._unusable(error) from error
        return file

    def _unusable(self, error: ItemError) -> ItemError:
        if error.code == "SF-201":
            return error
        return ItemError(f"source could not be used to heal the copy: {error}", code="SF-214", path=self.key)

    def _named(self, digest: bytes) -> str:
        """The name is given only to what was recorded."""
        algorithm, wanted = self.item.algorithm, self.item.digest or b""
        if digest == wanted:
            return self.name
        say = f"recorded {algorithm}:{wanted.hex()}, at the source {algorithm}:{digest.hex()}"
        raise Refused(f"source differs from the record too: {printable(self.key)}: {say}", code="SF-521", path=self.key)

    def _standing(self, kind: Callable[[int], bool]) -> Mark | None:
        try:
            entry = system.lstat(self.there.open(self.head), self.name)
        except FileNotFoundError:
            return None
        if not kind(entry.st_mode):
            say = f"something of another kind stands at the destination: {printable(self.key)}"
            raise Refused(say, code="SF-502", path=self.key)
        return publish.mark(entry, steady=self.order.store.disk.steady)


def repair_tasks(expected: Expected, order: Order, algorithm: str, control: Control) -> Iterator[RepairItem]:
    """What a check found wrong and is known by this digest, but for hard links whose first name is known. What has none
    (links, folders) goes with the first one.
    """
    first = order.store.digests[0]
    order = replace(order, store=replace(order.store, digests=(algorithm,)))
    for item in expected.items(OFF, BAD):
        if control.stopped:
            return
        linked = item.kind == states.HARDLINK and item.state == BAD and _leader(expected, item) is not None
        if (item.algorithm or first) == algorithm and not linked:
            yield RepairItem(order, os.fsdecode(item.path), item)


def relink_tasks(expected: Expected, order: Order, control: Control) -> Iterator[RepairItem]:
    """The hard links among what is wrong still."""
    for item in expected.items(BAD, kinds=(states.HARDLINK,)):
        if control.stopped:
            return
        leader = _leader(expected, item)
        if leader is not None and leader.state != BAD:
            yield RepairItem(order, os.fsdecode(item.path), item, os.fsdecode(leader.path))


def _leader(expected: Expected, item: Item) -> Item | None:
    """The file it is another name of; none where that has become another version since."""
    leader = None if item.leader is None else expected.of(item.leader)
    same = leader is not None and (leader.algorithm, leader.digest) == (item.algorithm, item.digest)
    return leader if same else None


@dataclass(slots=True)
class RepairLedger:
    """Record first, then journal, then what is expected."""

    expected: Expected
    order: Order
    record: Record
    journal: Journal | None
    run: str = ""
    counts: Counter[str] = field(default_factory=Counter)  # "sent" and "metadata"
    sent_bytes: int = 0
    read_back: Counter[str] = field(default_factory=Counter)
    folders: set[bytes] = field(default_factory=set)

    def settle(self, results: Sequence[Result]) -> list[Event]:
        """Write down what became of these items; the events that tell it."""
        now = time.time()
        events, done = [], []
        rows: list[tuple[bytes, Row, dict[str, Any]]] = []
        for task, answer in results:
            assert isinstance(task, RepairItem)
            item, head = task.item, split(task.item.path)[0][:-1]
            if isinstance(answer, Failure):
                data = {"code": answer.code, "message": answer.message, "hint": answer.hint}
                events.append(Event("failed", self.run, task.key, 1, answer.payload or 0, data, now))
                self.folders.add(head)  # a temporary file may have been made in it
                continue
            healed: Healed = answer.payload
            self.counts[healed.what] += 1
            if healed.what == "sent":
                self.sent_bytes += answer.size
                self.folders.add(head)
            if answer.read_back != "no":
                self.read_back[answer.read_back] += 1
            more = {"attempts": healed.attempts} if healed.attempts > 1 else {}
            if healed.aside:
                self.record.entry(task.key, KINDS[item.kind], "set_aside", set_aside=healed.aside, at=round(now, 3))
            self.record.add(item.line("repaired", read_back=answer.read_back, at=round(now, 3), **more))
            rows += self._row(item, answer.entry, healed.source)
            done.append((item, HEALED, answer.entry))
            told: dict[str, Any] = {"action": "repaired", "what": healed.what, "read_back": answer.read_back}
            told["attempts"] = healed.attempts
            events.append(Event("done", self.run, task.key, 1, answer.size, told, now))
        self.record.flush()
        if self.journal is not None and rows:
            self.journal.settle(rows)
        self.expected.mark(done)
        return events

    def _row(self, item: Item, mark: Mark, source: Mark | None) -> list[tuple[bytes, Row, dict[str, Any]]]:
        """The journal's row of an entry as it stands now, if there was one. One that is not done may have seen another
        version of the source than the recorded one, which was healed.
        """
        row = self.journal.row(item.origin) if self.journal is not None and item.kind != FOLDER else None
        if row is None or (row.digest is None and row.kind != states.SYMLINK):
            return []
        if row.state != states.DONE:
            if item.size is None or item.source_mtime_ns is None:
                return []
            row = row._replace(size=item.size, mtime_ns=item.source_mtime_ns, source=fingerprint(0, 0))
        stored_mtime_ns = None if mark.mtime_ns == row.mtime_ns else mark.mtime_ns
        stored = fingerprint(mark.inode, mark.ctime_ns, mark.size)
        row = row._replace(state=states.DONE, stored=stored, stored_mtime_ns=stored_mtime_ns)
        if source is not None and source.mtime_ns == row.mtime_ns and self.order.source.disk.steady:
            row = row._replace(source=fingerprint(source.inode, source.ctime_ns))
        return [(split(item.origin)[0], row, {})]


def set_folders(expected: Expected, root: str, touched: set[bytes]) -> Iterator[tuple[str, str | None]]:
    """Give folders their recorded mode and time, deepest first: those that were wrong or were written into.

    Yields (path, what went wrong or None).
    """
    wrong = {OFF, BAD, HEALED}
    wanted = [item for item in expected.items(kinds=(FOLDER,)) if item.path in touched or item.state in wrong]
    with Folders(root) as there:
        for item in sorted(wanted, key=lambda item: item.path, reverse=True):
            path = os.fsdecode(item.path)
            try:
                lost = apply_attributes(there.open(path), recorded(item))
                yield path, f"{', '.join(lost)} could not be set: {printable(path)}" if lost else None
            except (ScopeferryError, OSError) as error:
                yield path, f"folder not set right: {printable(path) or '.'}: {error}"
