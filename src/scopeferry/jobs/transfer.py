"""`transfer SRC DST`: plan, copy, list again, set folders right, manifest, receipt.

The only loop: walk and plan; run what is open; if anything was copied, walk again, and copy what is new or changed, in
at most three more passes. Every promise about one file lives in ``stores/local.py``; every promise about what may be
skipped in ``copying/plan.py``; this module decides nothing about either.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from scopeferry.config import TransferSettings, percent
from scopeferry.copying import manifest, place, record, runs
from scopeferry.copying.ends import check_writable, existing, inside, make, resolve
from scopeferry.copying.left import LeftOut
from scopeferry.copying.order import Order
from scopeferry.copying.plan import Plan, Totals
from scopeferry.errors import CODES, Failed, Interrupted, ItemError, NoSpace, ScopeferryError, Temporary, UsageError
from scopeferry.jobs import receipts
from scopeferry.jobs.registered import ended, register
from scopeferry.jobs.result import MAX_PROBLEMS, Result
from scopeferry.kernel import digest as digests
from scopeferry.kernel import journal as states
from scopeferry.kernel import publish
from scopeferry.kernel.events import Event
from scopeferry.kernel.journal import Journal, noted_in
from scopeferry.kernel.publish import Folders, system
from scopeferry.kernel.task import Control
from scopeferry.logs import new_run_id, printable, user
from scopeferry.reports.progress import Meter
from scopeferry.sources.tree import Selection, TreeSource
from scopeferry.stores.local import LocalStore
from scopeferry.stores.store import Prove

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from scopeferry.copying.copy import CopyLedger
    from scopeferry.kernel.rate import Limit

NOTE_S = 1.0  # how often the journal is told how the run stands, for `status`
OF_THE_RUN = {1, 7, 75, 130}  # exit codes of what stops a run, not of one item
MANY = 500  # from so many files on, of less than SMALL_BYTES each, workers are worth a process of their own
SMALL_BYTES = 1 << 20
AT_ONCE = 100_000  # rows whose manifests are written within a second
PASSES = 4  # the first, and at most three more for what changed meanwhile
BACK_WAITS_S = (0.1, 1.0, 5.0)  # between the tries at what a server that is coming back did not give
AWAY = {"SF-322", "SF-323"}  # what is said of a side that is away
MARGIN = 1.02
NOT_FINISHED = 6  # the exit code of a source that is not finished


def transfer(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    digests: Iterable[str] | None = None,
    on_event: Callable[[Event], Any] | None = None,
    control: Control | None = None,
    settings: TransferSettings | None = None,
    **options: Any,
) -> Result:
    """Copy a finished folder (or file), read every byte back from storage, keep a record of it.

    `options` are the fields of ``config.TransferSettings``. Raises UsageError for wrong usage only; whatever else goes
    wrong is in ``result.problems`` and ``result.exit_code``.
    """
    settings = settings or TransferSettings()
    if digests is not None:
        options["digest"] = tuple(digests)
    settings = replace(settings, **options)
    job = TransferJob(os.fspath(src), os.fspath(dst), settings, control)
    for event in job.run():
        if event is not None and on_event is not None:
            on_event(event)
    return job.result


class TransferJob:
    """One run of `transfer`. Iterate over `run`; then `result` holds what became of it."""

    def __init__(self, src: str, dst: str, settings: TransferSettings, control: Control | None = None) -> None:
        self.settings = settings
        if settings.wait_s is not None and not settings.finish:
            message = "--wait waits for what --finish names, and nothing is named"
            raise UsageError(message, code="SF-105", hint="name a rule with --finish, or leave --wait out")
        self.finished: dict[str, Any] | None = None
        self.digests = digests.check_names(settings.digest)
        if impossible := sorted(settings.keep - system.CAN_KEEP):
            message = f"--keep {impossible[0]} is not possible on this system"
            raise UsageError(message, code="SF-105", hint=f"leave {impossible[0]} out of --keep")
        patience = settings.patience_s
        self.control = control or Control(
            patience_gone_s=3600 if patience is None else patience,
            patience_full_s=60 if patience is None else patience,
            limit=_limit(settings.limit),
        )
        self.started = time.monotonic()
        self.result = Result("transfer", run=new_run_id(), source=src, destination=dst)
        self.totals = Totals()
        self.src, self.dst, self.only, self.names = resolve(src, dst, parents=settings.parents)
        self.result.source = os.path.join(self.src, self.only) if self.only else self.src
        self.result.destination = self.target
        self.place = place.find(
            self.target, source=self.result.source, records=settings.records, journal=settings.journal
        )
        if inside(self.src, self.place.records):
            raise UsageError(
                f"the source lies in the record folder of the destination: {self.src}", code="SF-113", path=self.src
            )
        for what, where in (("records", self.place.records), ("journal", self.place.journal)):
            if not self.only and inside(where, self.src):
                say = f"the {what} would lie in the source: {printable(where)}"
                raise UsageError(say, code="SF-105", path=where, hint=f"name another place with --{what}")
        if settings.records:
            self._check_whose("records", self.place.records, record.destination_here(self.place.records))
        if settings.journal:
            noted = noted_in(self.place.journal, "destination") if os.path.isfile(self.place.journal) else None
            self._check_whose("journal", self.place.journal, os.fsdecode(noted) if isinstance(noted, bytes) else "")
        self.selection = Selection(settings.select)
        self.journal: Journal | None = None
        self.record: record.Record | None = None
        self.lock: place.Lock | None = None
        self.left: LeftOut | None = None
        self.named: set[tuple[str, str]] = set()  # (code, path): said once
        self.order: Order | None = None
        self.registration: runs.Registration | None = None
        self.meter = Meter(os.path.basename(self.result.source), self.control, settings.verify)
        self._noted = self.started
        self.may_fork = False
        self._far = False  # is the destination on a network, before there is an order?
        self.result.details.update(digests=list(self.digests), verify=settings.verify, links=0, unproved=0)
        self.result.details.update(retries=0, waived=settings.waived)

    def _check_whose(self, what: str, where: str, other: str) -> None:
        """Each belongs to one copy: what it says of another one would be taken for what this one holds."""
        if os.path.exists(other) and not (os.path.exists(self.target) and os.path.samefile(other, self.target)):
            say = f"--{what}: {printable(where)} is that of another copy: {printable(other)}"
            raise UsageError(say, code="SF-105", path=where, hint=f"name another place with --{what}")

    @property
    def target(self) -> str:
        """The destination itself: a folder, or the one file."""
        return os.path.join(self.dst, self.names.name("", self.only)) if self.only else self.dst

    # -- the run -------------------------------------------------------------------------------------------------------

    def run(self) -> Iterator[Event | None]:
        """Do it; yields events, and None as a tick. Raises UsageError before anything is touched."""
        try:
            check_writable(self.dst)
            for event in self._opened():
                yield replace(event, run=self.result.run) if isinstance(event, Event) and not event.run else event
        except UsageError:
            raise
        except ScopeferryError as error:
            self._add(error)
        except OSError as error:
            self._add(self._system_error(error))
        finally:
            self._close()
        self.result.elapsed_s = time.monotonic() - self.started
        yield Event("finished", self.result.run, self.result.destination, data={"exit_code": self.result.exit_code})

    def _opened(self) -> Iterator[Event | None]:
        if self.settings.finish:
            yield from self._look_whether_finished()
        if self.settings.dry_run:
            from scopeferry.jobs.rehearsal import Rehearsal

            yield from Rehearsal(self).played()
            return
        self._check_mount()
        disk = publish.disk(where := existing(self.dst))
        if disk.network:
            yield from self._answering(LocalStore(where, disk))
        make(self.dst, parents=self.settings.parents)
        self.lock = place.Lock(self.place.lock, self.result.run)
        self._far = disk.network
        yield from self._patiently(partial(_at_once, self.lock.acquire))
        self._register()
        place.make_shared(self.place.records)
        place.make_private(os.path.dirname(self.place.journal))
        if self.place.elsewhere:
            self.result.add("SF-906", self.place.records, self.place.elsewhere)
        record.sweep(self.place.records)
        record.end_cut_off(self.place.records)
        self.journal = Journal(self.place.journal)
        self._rebuild(self.journal)
        self.order = order = self._order(self.journal)
        self._note_mount(self.journal, order)
        self.order = order = yield from self._patiently(partial(_at_once, partial(self._ask, order)))
        journal = self.journal
        self.record = record.Record(self.place.records, self._header(), lambda number: journal.set(generation=number))
        self.left = LeftOut(self.journal, self.record)
        self.result.details["journal"] = self.place.journal
        yield Event("started", self.result.run, self.result.destination, data={"source": self.result.source})
        try:
            for event in self._copy(self.journal, self.record, order):
                self._tell(event, self.journal)
                yield event
        finally:
            self._end(self.journal, self.record)

    def _look_whether_finished(self) -> Iterator[None]:
        """Raise what says that the source is not finished, before the first byte."""
        from scopeferry.copying.target import Target
        from scopeferry.jobs.inspect import InspectJob

        aim = Target(self.src, self.dst, finish=self.settings.finish)
        look = InspectJob(self.src, aim, self.settings.select, self.control, wait_s=self.settings.wait_s or 0.0)
        for _ in look.run():
            yield None
        found = look.result
        said = "; ".join(f"{one['kind']}: {one['detail']}" for one in found.details["evidence"])
        self.finished = {"state": found.state, "evidence": said, "by": user(), "weak": found.details["weak"]}
        not_finished = [problem for problem in found.problems if CODES[problem.code][0] == NOT_FINISHED]
        if not_finished:
            first = not_finished[0]
            raise ItemError(first.message, code=first.code, path=first.path, hint=first.hint)

    def _register(self) -> None:
        self.registration = register(self.result, self.place)

    def _tell(self, event: Event | None, journal: Journal) -> None:
        """Measure progress, and note it in the journal at most once a second."""
        if isinstance(event, Event):
            self.meter.tell(event)
        now = time.monotonic()
        if now - self._noted >= NOTE_S:
            self._noted = now
            journal.note_run(self.result.run, self._snapshot())

    def _snapshot(self) -> dict[str, Any]:
        """How it stands, for `status`."""
        return self.meter.snapshot()

    def _ask(self, order: Order, *, ask: bool = True) -> Order:
        """What the destination can hold: of names, if it is a folder that is copied, and of times."""
        store = order.store
        if publish.takes_any_name(store.root, store.disk):
            return order
        from scopeferry.copying.names import Names, rules_of

        rules = rules_of(store.root, store.disk, self.place.records, ask=ask)
        if self.only is None and not rules.any_name:
            self.names = Names(rules, percent=self.settings.names == "percent")
        return replace(
            order, store=replace(store, mtime_step_ns=rules.mtime_step_ns, lacks=rules.lacks), names=self.names
        )

    def _order(self, journal: Journal) -> Order:
        settings = self.settings
        source_disk, stored_disk = publish.disk(self.src), publish.disk(self.dst)
        found = os.stat(self.src)
        there = os.stat(self.dst)
        recipe = {"keep": sorted(settings.keep), "names": settings.names, "digests": list(self.digests)}
        store = LocalStore(
            self.dst,
            stored_disk,
            self.digests,
            holes="holes" in settings.keep,
            identity=(there.st_dev, there.st_ino),
            records=self.place.records,
            attempt=self.result.run[-6:] + "00",
            lock=self._token(),
            run=self.result.run,
        )
        source = TreeSource(self.src, source_disk, settings.keep, (found.st_dev, found.st_ino))
        return Order(
            source,
            store,
            Prove(percent(settings.verify)),
            settings.on_conflict,
            journal.recipe(recipe),
            f"set_aside/{self.result.run}",
            self.names,
            journal.algorithms(),
        )

    def _token(self) -> str:
        """The file at the destination that names this run, if our lock lies there and not in the state folder."""
        away = (self.place.lock + os.sep).startswith(place.state_folder() + os.sep)
        return "" if self.lock is None or away else self.lock.token

    def _copy(self, journal: Journal, rec: record.Record, order: Order) -> Iterator[Event | None]:
        """Walk, copy, walk again until a walk finds nothing."""
        ledger = None
        for number in range(PASSES + 1):
            plan = yield from self._patiently(partial(self._walk, journal, order, again=number > 0))
            self._found(plan, first=number == 0)
            if self.left is not None:
                self.left.flush()
            if number == 0:
                yield Event("skipped", items=plan.totals.done, bytes=plan.totals.done_bytes)
            if not plan.totals.open or number == PASSES:
                break
            self._check_room(plan)
            if number == 0:
                rec.prepare()
                rec.hold_room()
                journal.set(dirty=1)
            yield Event(
                "found", self.result.run, items=plan.totals.open, bytes=plan.totals.open_bytes, data={"plan": True}
            )
            if ledger is None:
                ledger = _ledger(journal, rec, order, self.result.run)
            yield from self._run(journal, order, ledger, plan)
            if self.control.stopped or ledger.stopped or not (ledger.changed or ledger.moving):
                break
            ledger.moving = 0
        self.control.check()
        if plan.totals.open and not (ledger and ledger.stopped):
            self._still_written(journal, rec)
        yield from self._patiently(partial(self._set_folders, journal, rec, order))
        if ledger is not None or order.store.disk.network:  # manifest and record go there
            yield from self._answering(order.store)

    def _walk(self, journal: Journal, order: Order, *, again: bool) -> Generator[Event | None, None, Plan]:
        self._check_source(order)
        plan = self._plan(journal, order, again=again)
        yield from self._take(self._stoppable(plan.walk()))
        self._check_source(order)
        return plan

    def _answering(self, store: LocalStore) -> Iterator[None]:
        """Wait until the destination answers."""
        if not store.answers():
            yield from self._until_back(store, store.gone())
            self.control.done_waiting("destination")

    def _patiently(self, step: Callable[[], Any]) -> Generator[Event | None, None, Any]:
        """Do a step of the coordinator; where a side goes away, wait until it is back, and do it again.

        A server may be back before it is asked: what it did not give is asked for a few times more.
        """
        pauses = list(BACK_WAITS_S)
        while True:
            try:
                done = yield from step()
            except (OSError, Temporary) as error:
                gone = None if self.control.stopped else self._gone()
                if gone is None and (self.control.stopped or not (pauses and self._may_pass(error))):
                    raise
            else:
                for what in ("source", "destination"):
                    self.control.done_waiting(what)
                return done
            if gone is not None:
                yield from self._until_back(*gone)
            else:
                yield from self._sleep(pauses.pop(0))

    def _may_pass(self, error: Exception) -> bool:
        """Is it what a server says that is going away or coming back?"""
        order, far = self.order, self._far
        if order is not None:
            far = order.source.disk.network or order.store.disk.network
        if isinstance(error, OSError):
            return far and error.errno in {errno.EIO, *system.GONE}
        return far and isinstance(error, Temporary) and error.code in AWAY

    def _sleep(self, seconds: float) -> Iterator[None]:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.control.stopped:
            yield None
            self.control.sleep(0.05)

    def _gone(self) -> tuple[Any, ScopeferryError] | None:
        """The side that is away now, and what is to be said of it."""
        if self.order is not None:
            for side in (self.order.source, self.order.store):
                if not side.answers():
                    return side, side.gone()
        return None

    def _until_back(self, side: Any, error: ScopeferryError) -> Iterator[None]:
        from concurrent.futures import ThreadPoolExecutor, wait

        what = "source" if error.code == "SF-322" else "destination"
        with ThreadPoolExecutor(1) as executor:
            back = executor.submit(self.control.wait_for, what, side.answers, self.control.patience_gone_s, error)
            while not back.done():
                yield None
                wait([back], timeout=0.05)
            back.result()

    def _run(self, journal: Journal, order: Order, ledger: CopyLedger, plan: Plan) -> Iterator[Event | None]:
        from scopeferry.copying.copy import copy_tasks, link_tasks, orphan_tasks
        from scopeferry.copying.finish import refresh_links
        from scopeferry.kernel.run import BATCH_ITEMS, Line, run

        workers = self.settings.workers or (16 if order.source.disk.network or order.store.disk.network else 4)
        items = publish.batch_items(workers, BATCH_ITEMS)
        with self._executor(order, workers, plan.totals) as executor:
            for tasks in (copy_tasks, orphan_tasks, link_tasks):
                if tasks is link_tasks and not self.control.stopped:
                    plan.regroup()
                line = Line(tasks(journal, order, self.control), ledger)
                yield from self._take(run([line], executor, slots=workers, control=self.control, batch_items=items))
        if not self.control.stopped:
            yield from self._answering(order.store)
            refresh_links(journal, order)

    def _executor(self, order: Order, workers: int, totals: Totals) -> Executor:
        """Threads; for many small files on local disks forks of this process, where the caller allows them."""
        from concurrent.futures import ThreadPoolExecutor

        small = totals.open >= MANY and totals.open_bytes < SMALL_BYTES * totals.open
        local = not (order.source.disk.network or order.store.disk.network)
        if self.may_fork and small and local and workers > 1 and self.settings.limit is None:
            from scopeferry.kernel.forks import Forks
            from scopeferry.kernel.spread import can_fork

            if can_fork():
                return Forks(workers, self.control)
        return ThreadPoolExecutor(workers, thread_name_prefix="scopeferry")

    def _stoppable(self, events: Iterator[Event | None]) -> Iterator[Event | None]:
        """Raise the reason to stop between two of them."""
        for event in events:
            self.control.check()
            yield event

    def _take(self, events: Iterator[Event | None]) -> Iterator[Event | None]:
        """Count what happened, and pass it on."""
        for event in events:
            if event is not None:
                self._count(event)
            yield event

    def _count(self, event: Event) -> None:
        count = {"done": self._count_done, "failed": self._count_failed, "note": self._count_note}.get(event.kind)
        if count is not None:
            count(event, event.data)

    def _count_done(self, event: Event, data: dict[str, Any]) -> None:
        result, action = self.result, data["action"]
        if "again" in data:  # a name that is a link now, and was counted as a file
            return
        setattr(result, action, getattr(result, action) + 1)
        result.details["retries"] += data.get("attempts", 1) - 1
        sent = action in {"copied", "replaced", "repaired"}
        if sent:
            result.bytes += event.bytes if data.get("kind") != "hardlink" else 0
        if data["read_back"] != "no":
            result.verified += 1
            result.read_back[data["read_back"]] = result.read_back.get(data["read_back"], 0) + 1
        elif sent:
            result.details["links" if data.get("kind") in {"link", "hardlink"} else "unproved"] += 1
        for kind in data.get("lost", ()):
            self._lost(event.path, kind)
        if "note" in data:
            result.add("SF-911" if data["note"].startswith("kept both") else "SF-902", event.path, data["note"])

    def _count_failed(self, event: Event, data: dict[str, Any]) -> None:
        result, code = self.result, data["code"]
        if code == "SF-201":
            result.details["retries"] += 1
            return  # stays open: the next listing looks at it again
        if CODES[code][0] in OF_THE_RUN:  # said once; such an item stays open
            if code not in result.codes:
                result.add(code, "", data["message"], data.get("hint", ""))
            return
        if (code, event.path) in self.named:  # walked over, or tried, once more
            return
        if len(self.named) < MAX_PROBLEMS:
            self.named.add((code, event.path))
        if not event.run and self.left is not None:
            self.left.note(event)
        result.add(code, event.path, data["message"], data.get("hint", ""))
        result.failed += CODES[code][0] != 0

    def _count_note(self, event: Event, data: dict[str, Any]) -> None:
        if self.left is not None:
            self.left.note(event)
        if "lost" in data:
            self._lost(event.path, data["lost"])
        elif "code" in data and not (data["code"] == "SF-903" and "SF-903" in self.result.codes):  # one is named
            self.result.add(data["code"], event.path, data["message"])

    def _remember_losses(self, journal: Journal) -> None:
        """What items of earlier runs lack is said again, for it is still so."""
        for kind, count in journal.losses().items():
            if count > self.result.lost.get(kind, 0):
                if kind not in self.result.lost:
                    self._lost("", kind)
                self.result.lost[kind] = count

    def _lost(self, path: str, kind: str) -> None:
        """Something could not be kept: counted, and with ``--strict`` a failure."""
        self.result.lost[kind] = self.result.lost.get(kind, 0) + 1
        if self.settings.strict:
            self.result.add("SF-210", path, f"{kind} could not be kept: {printable(path) or 'by an earlier run'}")
        elif self.result.lost[kind] == 1:
            self.result.add("SF-904", path, f"{kind} could not be kept, first at {printable(path) or 'an earlier run'}")

    # -- before the first byte -----------------------------------------------------------------------------------------

    def _plan(self, journal: Journal, order: Order, *, again: bool, read_only: bool = False) -> Plan:
        return Plan(
            order.source,
            order.store,
            journal,
            order.recipe,
            self.selection,
            self.settings.on_conflict,
            self.settings.verify == "all" and not again,
            self.names,
            read_only,
            self.only,
            again,
            self.may_fork,
            source_only=again,
        )

    def _found(self, plan: Plan, *, first: bool) -> None:
        totals, result = plan.totals, self.result
        if first:
            self.totals = totals
            result.skipped = totals.done
            result.extras = totals.extras
            result.details["bytes_total"] = totals.bytes
        result.items = max(result.items, totals.files)

    def _check_source(self, order: Order) -> None:
        """A source that was unmounted leaves an empty folder: what was listed there is not believed."""
        if not order.source.present():
            raise order.source.gone()

    def _check_room(self, plan: Plan) -> None:
        """What will not fit is not begun; both numbers are said."""
        where = existing(self.dst)
        with Folders(where) as folders:
            free, inodes = publish.room(folders.root, publish.disk(where))
        need = int(plan.totals.room * MARGIN)
        if self.settings.dry_run:
            found = {"open": plan.totals.open, "bytes": plan.totals.open_bytes, "need_bytes": need, "free_bytes": free}
            self.result.details["plan"] = found
        if need > free:
            raise NoSpace(f"{where} has {free:,} bytes free, {need:,} are needed", code="SF-311", path=where)
        files = plan.totals.new_files + plan.totals.new_folders
        if 0 <= inodes < files:
            raise NoSpace(f"{where} has {inodes:,} inodes free, {files:,} are needed", code="SF-312", path=where)

    def _check_mount(self) -> None:
        """A destination that has become a bare mount point is not begun anew; nothing is made there."""
        if not os.path.exists(self.place.journal) or record.generations(self.place.records):
            return
        if os.path.isdir(self.dst) and os.listdir(self.dst):
            return
        noted = noted_in(self.place.journal, "mount")
        if noted and noted != publish.disk(existing(self.dst)).point:
            message = f"{self.dst} used to lie on what is mounted at {noted}, which is not there now"
            raise Temporary(message, code="SF-323", path=self.dst)

    def _note_mount(self, journal: Journal, order: Order) -> None:
        found = {"mount": order.store.disk.point, "destination": os.fsencode(self.target)}
        if any(journal.get(key) != value for key, value in found.items()):
            journal.set(**found)

    def _rebuild(self, journal: Journal) -> None:
        """A lost or damaged journal is made again from the records; what they claim is read before it is believed."""
        if journal.rebuilt or journal.fresh:
            if record.generations(self.place.records):
                record.fold(self.place.records, journal)
                what = f"damaged, set aside as {journal.rebuilt}" if journal.rebuilt else "not there"
                self.result.add("SF-907", self.place.journal, f"the journal was {what}: rebuilt from the records")
            elif journal.rebuilt:
                self.result.add(
                    "SF-907", self.place.journal, f"the journal was damaged, set aside as {journal.rebuilt}"
                )
        else:
            record.catch_up(self.place.records, journal)

    # -- at the end ----------------------------------------------------------------------------------------------------

    def _still_written(self, journal: Journal, rec: record.Record) -> None:
        """Whatever is open when all passes are over is named: no item is left undone in silence."""
        for folder, row in journal.open_rows(states.OPEN):
            path = os.fsdecode(folder + row.name)
            message = f"still being written: {printable(path)}"
            self.result.add("SF-601", path, message)
            rec.entry(path, "file", "changed", size=row.size, problem={"code": "SF-601", "message": message})

    def _set_folders(self, journal: Journal, rec: record.Record, order: Order) -> Iterator[Event | None]:
        """Mode and time of folders are set last, deepest first; those that hold no file are made here."""
        if self.only is not None or next(journal.folders(touched=True), None) is None:
            return
        from scopeferry.copying import finish

        done, given, lacks = [], [], []
        with order.source.folders() as here, Folders(order.store.root) as there:
            for prefix, mode, mtime_ns in journal.folders(touched=True):
                path = os.fsdecode(prefix).rstrip("/")
                try:
                    stored = path if self.names is None else self.names.path(path)
                    had = record.names_given(journal.detail(prefix, b"", record.GIVEN))
                    wanted, lost = finish.set_folder(order, here, there, path, stored, had)
                except (OSError, ScopeferryError) as error:
                    if isinstance(error, OSError) and self._gone() is not None:
                        raise
                    self._folder_failed(path, error)
                    continue
                for kind in lost:
                    self._lost(path, kind)
                done.append(prefix)
                given.append((prefix, b"", record.given_names(wanted.xattrs)))
                lacks.append((prefix, b"", ",".join(lost) or None))
                rec.entry(
                    path,
                    "folder",
                    "copied",
                    mode=mode,
                    mtime_ns=mtime_ns,
                    stored=stored if stored != path else None,
                    xattrs=record.xattrs_json(wanted.xattrs),
                    lost=lost or None,
                )
                yield None
        if done:
            rec.flush()
            journal.note(record.GIVEN, given)
            journal.note("lost", lacks)
            journal.touch(done, touched=False)
            journal.commit()

    def _folder_failed(self, path: str, error: OSError | ScopeferryError) -> None:
        if isinstance(error, FileNotFoundError):
            self.result.add("SF-903", path, f"folder gone at the source: {printable(path)}")
        elif isinstance(error, ScopeferryError):
            if error.path not in {problem.path for problem in self.result.problems}:
                self.result.add(error.code, path, str(error))
        else:
            self.result.add(
                "SF-212" if isinstance(error, PermissionError) else "SF-211",
                path,
                f"folder not set right: {printable(path)}: {error.strerror}",
            )

    def _end(self, journal: Journal, rec: record.Record) -> None:
        """Manifest, end of the generation, receipt. What cannot be written is a problem of its own."""
        reason = self.control.reason
        if reason is not None:
            self._add(reason)
        error = sys.exception() if sys.version_info >= (3, 11) else None
        if isinstance(error, ScopeferryError):
            self._add(error)
        elif isinstance(error, OSError):
            self._add(self._system_error(error))
        elif error is not None:  # a bug, or nobody wants the rest
            left = isinstance(error, GeneratorExit | KeyboardInterrupt)
            told = Interrupted("left before its end") if left else Failed(f"{type(error).__name__}: {error}")
            self._add(told)
        self._remember_losses(journal)
        if self._is_destination_gone():  # what is there now is not ours to write to
            self.result.state = _state(self.result)
            rec.leave(**self._end_line())
            return
        rec.give_up_room()
        try:
            if not rec.begun and self.result.ok and not self._is_told():
                rec.begin()  # what an earlier run left undone is done now: that is worth a generation of its own
            journal.commit()
            if reason is not None and journal.has_more_than(AT_ONCE):
                pass  # it would take longer than one who interrupts waits: the next run writes them
            elif rec.begun or journal.get("dirty") or not os.path.exists(self.manifest_path):
                self._write_manifests(journal)
                journal.set(dirty=0)
            else:
                self.result.tree_digest = journal.get("tree_digest", "")
                self.result.manifest = self.manifest_path
        except (OSError, ScopeferryError) as problem:
            self._add(self._system_error(problem) if isinstance(problem, OSError) else problem)
        self.result.state = _state(self.result)
        self.result.elapsed_s = time.monotonic() - self.started
        self.result.record = rec.path or (record.generations(self.place.records) or [""])[-1]
        try:
            if rec.begun:
                rec.end(**self._end_line())
                self.result.record = rec.path
                receipts.write(self.result, self.place.records, rec.header)
        except OSError as problem:
            self._add(self._system_error(problem))
        self.result.receipt = receipts.path_in(self.place.records, there=True)

    def _is_destination_gone(self) -> bool:
        """Is it, as the run has found already, or as it is found now?"""
        if self.order is None:
            return False
        if not self.result.codes & {"SF-303", "SF-323"}:
            if self.order.store.answers():
                return False
            self._add(self.order.store.gone())
        return True

    def _is_told(self) -> bool:
        """Does a generation say that the copy is complete, and a receipt?"""
        records = self.place.records
        return record.last_end(records).get("state") == "complete" and bool(receipts.path_in(records, there=True))

    @property
    def manifest_path(self) -> str:
        """The working manifest."""
        return os.path.join(self.place.records, manifest.PREFIX + self.digests[0])

    def _write_manifests(self, journal: Journal) -> None:
        hashes = {}
        for algorithm in journal.manifest_algorithms():
            path = os.path.join(self.place.records, manifest.PREFIX + algorithm)
            hashes[algorithm], count = manifest.write(path, algorithm, journal.manifest(algorithm))
            if not count and algorithm != self.digests[0]:
                os.unlink(path)
                del hashes[algorithm]
        if self.digests[0] not in hashes:
            hashes[self.digests[0]], _ = manifest.write(self.manifest_path, self.digests[0], ())
        for name, path in manifest.of_folder(self.place.records).items():
            if name not in hashes:  # of an earlier run: no file has such a digest any more
                os.unlink(path)
        self.result.tree_digest = f"sha256:{hashes[self.digests[0]]}"
        self.result.manifest = self.manifest_path
        self.result.details["manifests"] = hashes
        journal.set(tree_digest=self.result.tree_digest)

    def _header(self) -> dict[str, Any]:
        settings, result = self.settings, self.result
        return record.header(
            result.command,
            result.run,
            result.source,
            result.destination,
            self.digests,
            verify=settings.verify,
            keep=settings.keep,
            select=settings.select,
        )

    def _finish(self) -> dict[str, Any]:
        """Why the source is taken for finished: naming it to `transfer` declares it."""
        return self.finished or {"state": "finished", "evidence": "declared: command", "by": user()}

    def _end_line(self) -> dict[str, Any]:
        result = self.result
        return {
            "state": result.state,
            "finish": self._finish(),
            "exit_code": result.exit_code,
            "elapsed_s": round(result.elapsed_s, 3),
            "bytes": result.bytes,
            "counts": {
                "items": result.items,
                "copied": result.copied,
                "adopted": result.adopted,
                "checked": result.checked,
                "replaced": result.replaced,
                "repaired": result.repaired,
                "skipped": result.skipped,
                "verified": result.verified,
                "failed": result.failed,
            },
            "lost": result.lost,
            "read_back": result.read_back,
            "tree_digest": result.tree_digest,
            "manifest": result.details.get("manifests", {}),
        }

    # -- small things --------------------------------------------------------------------------------------------------

    def _add(self, error: ScopeferryError) -> None:
        if error.code not in self.result.codes or error.path:
            known = any((p.code, p.message) == (error.code, str(error)) for p in self.result.problems)
            if not known:
                self.result.add(error.code, error.path, str(error), error.hint)

    def _system_error(self, error: OSError) -> ScopeferryError:
        """What stopped the run: a side that is away, or else what the system says."""
        if error.errno not in system.NO_SPACE and (gone := self._gone()) is not None:
            return gone[1]
        if not os.path.isdir(self.src):
            return Temporary(f"source is gone: {printable(self.src)}", code="SF-322", path=self.src)
        if not os.path.isdir(self.dst):
            return Temporary(f"destination is gone: {printable(self.dst)}", code="SF-323", path=self.dst)
        return system_error(error, self.dst)

    def _close(self) -> None:
        if self.record is not None:
            self.record.close()
        if self.journal is not None:
            self.journal.close()
        if self.lock is not None:
            self.lock.release()
        if self.registration is not None:
            ended(self.registration, self.result)


def _at_once(call: Callable[[], Any]) -> Generator[Event | None, None, Any]:
    """A call as a step."""
    yield from ()
    return call()


def _ledger(journal: Journal, rec: record.Record, order: Order, run_id: str) -> CopyLedger:
    from scopeferry.copying.copy import CopyLedger  # with all that copies: a rerun with nothing to do needs none of it

    return CopyLedger(journal, rec, order, run_id, had_losses=bool(journal.losses()))


def _limit(bytes_per_s: float | None) -> Limit | None:
    if bytes_per_s is None:
        return None
    from scopeferry.kernel.rate import TokenBucket

    return TokenBucket(bytes_per_s)


def system_error(error: OSError, path: str) -> ScopeferryError:
    """What the system says of a destination, as an error of ours."""
    if error.errno in system.NO_SPACE:
        return NoSpace(f"destination is full: {printable(path)}", code="SF-313", path=path)
    if error.errno in system.GONE:
        return Temporary(f"destination is gone: {printable(path)}", code="SF-323", path=path)
    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else path  # it may be a descriptor
    return Failed(f"{error.strerror or error}: {printable(where)}", code="SF-301", path=where)


def _state(result: Result) -> str:
    code = result.exit_code
    if "SF-325" in result.codes:
        return "interrupted"
    return {0: "complete", 130: "interrupted", 3: "partial", 5: "partial", 6: "partial"}.get(code, "failed")


__all__ = ["TransferJob", "system_error", "transfer"]
