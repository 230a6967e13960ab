"""`transfer --dry-run`: what a run would do and lose, and whether it would end with 0, 5 or 7. Nothing is written.

The same plan, in a temporary journal outside the destination, and the same comparisons as in a run, with a store that
changes nothing: what stands there and is not ours is read on both sides, for the exit code depends on it. What is ours
and not known to be right any more (CHECK) is not read: a run would heal it, and end with 0.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scopeferry.copying import record
from scopeferry.copying.ends import existing
from scopeferry.copying.order import Order
from scopeferry.errors import ScopeferryError
from scopeferry.jobs.transfer import TransferJob
from scopeferry.kernel import journal as states
from scopeferry.kernel import publish
from scopeferry.kernel.events import Event
from scopeferry.kernel.journal import Journal, Row, copy_journal
from scopeferry.kernel.publish import Folders, Mark, system
from scopeferry.kernel.run import Line, Result, run
from scopeferry.kernel.task import Control, Failure
from scopeferry.logs import printable
from scopeferry.sources.tree import TreeSource
from scopeferry.stores.files import TIME_STEPS_NS, xattr_kind
from scopeferry.stores.local import LocalStore
from scopeferry.stores.store import Attributes, Entry, Prove, Upload

VERBS = {states.COPY: "copy", states.REPLACE: "replace", states.LINK: "link", states.JUDGE: "compare"}
WORKERS = 4


@dataclass(frozen=True, slots=True)
class Unchanging(LocalStore):
    """A store that says what it would have done."""

    def put(self, uploads: Sequence[Upload], *, prove: Prove, control: Control) -> list[Entry | Failure]:
        """What would stand there; a second version is refused where its name is taken."""
        del prove
        return [self._foreseen(upload, control) for upload in uploads]

    def _foreseen(self, upload: Upload, control: Control) -> Entry | Failure:
        key = upload.key
        if upload.named is not None and upload.open is not None:
            try:
                with upload.open() as reader:
                    digest = reader.digest(self.digests[:1], control)  # type: ignore[attr-defined]  # of a tree
            except ScopeferryError as error:
                return Failure.of(key, error)
            head, slash, _ = key.rpartition("/")
            key = head + slash + upload.named(digest[self.digests[0]])
            if self.entry(key) is not None:
                return Failure(key, "SF-501", f"other content stands at the destination: {printable(key)}")
        mark = Mark(0, 0, 0, 0)
        return Entry(key, mark, source=mark)

    def answers(self) -> bool:
        """Is it there? Nothing is made there to learn more."""
        return self.present()

    def set_right(self, folders: Folders, key: str, attributes: Attributes) -> tuple[Mark, tuple[str, ...]]:
        """Its mark as it is."""
        del attributes
        head, _, name = key.rpartition("/")
        return publish.mark(system.lstat(folders.open(head), name), steady=self.disk.steady), ()

    set_link_right = set_right


@dataclass(frozen=True, slots=True)
class Refusals:
    """A ledger that only tells what went wrong."""

    run: str

    def settle(self, results: Sequence[Result]) -> list[Event]:
        """The failures among them."""
        return [
            Event("failed", self.run, answer.key, 1, 0, {"code": answer.code, "message": answer.message})
            for _, answer in results
            if isinstance(answer, Failure)
        ]


class Rehearsal(TransferJob):
    """A run that is only played, into the result of the job it stands for. Iterate over `played`."""

    def __init__(self, job: TransferJob) -> None:
        vars(self).update(vars(job))

    def played(self) -> Iterator[Event | None]:
        """The whole of it; raises NoSpace as the run would."""
        with tempfile.TemporaryDirectory(prefix="scopeferry-") as folder:
            path = os.path.join(folder, "journal.sqlite")
            copy_journal(self.place.journal, path)
            with Journal(path) as journal:
                if journal.fresh and record.generations(self.place.records):
                    record.fold(self.place.records, journal)
                order = self._ask(self._order(journal), ask=False)
                plan = self._plan(journal, order, again=False, read_only=True)
                yield from self._take(self._stoppable(plan.walk()))
                self._found(plan, first=True)
                yield from self._foresee(journal, order)
                self._check_room(plan)
                yield from self._compare(journal, order)
                self._remember_losses(journal)
        self.control.check()
        self.result.state = "planned"

    def _order(self, journal: Journal) -> Order:
        settings = self.settings
        recipe = {"keep": sorted(settings.keep), "names": settings.names, "digests": list(self.digests)}
        found = os.stat(self.src)
        store = Unchanging(self.dst, publish.disk(existing(self.dst)), self.digests)
        source = TreeSource(self.src, publish.disk(self.src), settings.keep, (found.st_dev, found.st_ino))
        algorithms = journal.algorithms()
        return Order(source, store, Prove(), settings.on_conflict, journal.recipe(recipe), "", self.names, algorithms)

    def _foresee(self, journal: Journal, order: Order) -> Iterator[Event | None]:
        """What is open, and what of it the destination is known to lose without being asked."""
        with order.source.folders() as here, Folders(existing(self.dst)) as there:
            losses = _Losses(order, here, there)
            for folder, row in journal.open_rows(states.OPEN):
                path = os.fsdecode(folder + row.name)
                for kind in losses.of(path, row):
                    self._lost(path, kind)
                yield Event("note", self.result.run, path, 1, row.size, {"plan": VERBS.get(row.state, "check")})
            for prefix, mode, mtime_ns in journal.folders(touched=True):
                path = os.fsdecode(prefix).rstrip("/")
                for kind in losses.of_folder(path, mode, mtime_ns):
                    self._lost(path, kind)

    def _compare(self, journal: Journal, order: Order) -> Iterator[Event | None]:
        """Read both sides where something stands that is not ours, as the run would."""
        from concurrent.futures import ThreadPoolExecutor

        from scopeferry.copying.copy import copy_tasks

        if order.policy == "replace" or not os.path.isdir(self.dst):
            return
        tasks = (task for task in copy_tasks(journal, order, self.control) if task.row.state == states.JUDGE)
        workers = self.settings.workers or WORKERS
        with ThreadPoolExecutor(workers, thread_name_prefix="scopeferry") as executor:
            line = Line(tasks, Refusals(self.result.run))
            yield from self._take(run([line], executor, slots=workers, control=self.control))


class _Losses:
    """What a destination will not take, found by looking at the source and reading at the destination."""

    def __init__(self, order: Order, here: Folders, there: Folders) -> None:
        self.order, self.here, self.there = order, here, there
        self.keep, self.step_ns = order.source.keep, order.store.mtime_step_ns
        self._held: dict[str, bool] = {}

    def of(self, path: str, row: Row) -> Iterator[str]:
        """Of a file or link."""
        yield from self._plain(row.mtime_ns, mode=row.kind != states.SYMLINK)
        if row.kind == states.FILE and self._asks():
            head, _, name = path.rpartition("/")
            try:
                fd = system.open_source(self.here.open(head), name)
            except (OSError, ScopeferryError):
                return  # the run will say so
            try:
                yield from self._attributes(fd)
            finally:
                system.close(fd)

    def of_folder(self, path: str, mode: int | None, mtime_ns: int | None) -> Iterator[str]:
        """Of a folder."""
        yield from self._plain(mtime_ns or 0, mode=mode is not None)
        if self._asks():
            try:
                yield from self._attributes(self.here.open(path))
            except (OSError, ScopeferryError):
                return

    def _plain(self, mtime_ns: int, *, mode: bool) -> Iterator[str]:
        if "times" in self.keep and mtime_ns % self.step_ns:
            yield f"mtime below {TIME_STEPS_NS[self.step_ns]}"
        if mode and "mode" in self.keep & self.order.store.lacks:
            yield "mode"

    def _asks(self) -> bool:
        """Is anything kept that the destination does not take?"""
        wanted = {"xattrs": "user.scopeferry", "acl": "system.posix_acl_access"}
        return any(not self._holds(name) for kind, name in wanted.items() if kind in self.keep)

    def _attributes(self, fd: Any) -> Iterator[str]:
        kept = self.order.source.kept_xattrs(fd)
        yield from (xattr_kind(name) for name in kept if not self._holds(name))

    def _holds(self, name: str) -> bool:
        space = name.partition(".")[0]
        if space not in self._held:
            self._held[space] = system.holds_xattr(self.there.root, name)
        return self._held[space]
