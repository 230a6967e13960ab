"""One target of `live`: followed while it is written, ended on evidence, proved equal.

The same machinery as `transfer`: a plan in the journal, copies through the four steps, a record, a manifest. What
differs: items come from a tree that grows (`_grow`), each published and proved as soon as it is whole; whether it is
over is decided from evidence (``sources/finish.py``); then the ordinary walk compares all of both sides, until it finds
nothing (`_close_in`); metadata and the finish marker come last (`_last`).

Everything here runs in the coordinator's thread as one generator of tasks: ``None`` means that nothing is ready now.
"""

from __future__ import annotations

import os
import stat
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from scopeferry.config import TransferSettings
from scopeferry.copying import record
from scopeferry.copying.aside import Aside, AsideItem
from scopeferry.copying.copy import Copied, CopyItem, CopyLedger, copy_tasks, link_tasks, orphan_tasks
from scopeferry.copying.finish import refresh_links
from scopeferry.copying.listed import ListedFiles
from scopeferry.copying.order import Order
from scopeferry.copying.target import LiveSettings, Target
from scopeferry.errors import Failed, Refused, ScopeferryError, UsageError
from scopeferry.jobs.result import MAX_PROBLEMS
from scopeferry.jobs.transfer import NOTE_S, TransferJob, system_error
from scopeferry.kernel import journal as states
from scopeferry.kernel.events import Event
from scopeferry.kernel.gentle import SILENT_S, Pace, Writer
from scopeferry.kernel.journal import Journal, Row
from scopeferry.kernel.publish import Folders
from scopeferry.kernel.run import BATCH_ITEMS, Line, Result
from scopeferry.kernel.task import Control, Failure, Outcome
from scopeferry.logs import printable, user
from scopeferry.reports.following import Standing
from scopeferry.reports.units import size
from scopeferry.sources.finish import ABORTED, FINISHED, UNKNOWN, Decision, to_end
from scopeferry.sources.growing import CHUNK, METADATA, Found
from scopeferry.sources.known import KnownByJournal
from scopeferry.sources.watched import Ending, Watched
from scopeferry.sources.zarr import ArrayTruth

WALKS = 5  # that may find something before it is doubted that it is over
EMPTY = "empty:"  # how the facts of the journal begin that say which chunks are empty
MANY = 16  # files that are flushed sooner with all else that is dirty on their disk than one by one
NEARLY_ALL = (100, 0.9)  # so many, and this part of an array: no writer drops that in one walk
OF_STATUS = ("evidence", "arrays", "stale", "healed")  # details that `status` shows, once they are known
TURN_S = 0.05  # of work on one target, while others wait
LOOK_S, LOOK_SHARE = 0.1, 20  # between two questions whether it is over: at least so many times what one took
SOURCE = "source"  # what is waited for where it is away
WRITE_ERROR = "SF-211"
TOUCHED = ("copied", "adopted", "checked", "replaced", "repaired", "failed")
MOVING = {"SF-201", "SF-202", "SF-203", "SF-204", "SF-205"}  # of a source in use: looked at again, not failed
IN_THE_WAY = {"SF-502", "SF-504"}  # a file became a folder, or the reverse: a writer may go back on that, too

Step = Any  # a task, an event, or None


class TargetRun(TransferJob):
    """Iterate over `tasks` as a line of ``kernel.run``, with this as its ledger; `told` receives the events."""

    def __init__(self, aim: Target, settings: LiveSettings, control: Control) -> None:
        super().__init__(aim.source, aim.destination, _as_transfer(aim, settings), control)
        self.aim = aim
        self.result.command = "live"
        self.told: deque[Event] = deque()
        self.flying: dict[str, int] = {}  # bytes of what is in flight, by path
        self.closing = False
        self.state = "running"
        self.lag_s: float | None = None
        self.writer: Writer | None = None
        self.pace: Pace | None = None
        self.backlog: set[str] = set()  # in flight, to be read from the disk
        self.had = 0  # items that earlier runs have done
        self.truth: dict[str, ArrayTruth] = {}
        self.result.details.update(name=aim.name, stale=0, healed=0)
        self.in_the_way: dict[str, Failure] = {}  # what something of another kind kept from being copied, by path
        self.declared = ""  # who said that it is over
        self.growing: Watched | None = None
        self.ledger: CopyLedger | None = None
        self.decision: Decision | None = None
        self._decide_at = self._keep_at = 0.0
        self.unmoved: set[bytes] = set()  # what could not be set aside: tried once

    def line(self) -> Line:
        """It as a target of a run."""
        return Line(self.tasks(), self, control=self.control)

    def is_there(self) -> bool:
        """Is anything of the copy there: its root, or its record folder?"""
        return os.path.lexists(self.dst) or os.path.lexists(self.place.records)

    def has_begun(self) -> bool:
        """Does a journal know files of it that were published?"""
        if not os.path.exists(self.place.journal):
            return False
        try:
            with Journal.reading(self.place.journal) as journal:
                return bool(journal.totals().get(states.DONE))
        except ScopeferryError:
            return False

    def tasks(self) -> Iterator[Any]:
        """Tasks, and None where nothing is ready. Raises nothing: what goes wrong is in the result."""
        try:
            for step in self.run():
                if isinstance(step, Event):
                    self.told.append(step)
                else:
                    yield step
        except UsageError as error:
            self._add(error)
        except Exception as error:  # noqa: BLE001  (a bug in one target: named there, and the others go on)
            import traceback

            self.result.add("SF-302", "", f"internal error: {type(error).__name__}: {error}")
            self.result.details["traceback"] = traceback.format_exc()

    # -- ledger --------------------------------------------------------------------------------------------------------

    def settle(self, results: Sequence[Result]) -> list[Event]:
        """Write down what became of tasks. A journal that cannot be written, or a bug, stops this target alone."""
        for task, _ in results:
            self.flying.pop(task.key, None)
            self.backlog.discard(task.key)
        try:
            copies = [found for found in results if not self._looks_again(*found)]
            asides = [found for found in copies if isinstance(found[0], AsideItem)]
            self._settle_asides(asides)
            copies = [found for found in copies if not isinstance(found[0], AsideItem)]
            if copies and self.ledger is not None:
                for event in self._take(iter(self.ledger.settle(copies))):
                    if event is not None and self.journal is not None:
                        self._tell(event, self.journal)
                        self.told.append(event)
            for task, answer in results:
                if not isinstance(answer, Failure) and self.growing is not None:
                    self.growing.settled(task.key)
                    self._note_lag(answer)
                    if self.closing and isinstance(answer.payload, Copied):
                        self.growing.walked_over(task.key, answer.payload.source)
        except Exception as error:  # noqa: BLE001  (see above)
            self.control.stop(self._of_the_run(error))
        return []

    def _note_lag(self, answer: Outcome) -> None:
        if isinstance(answer.payload, Copied) and not self.closing:
            self.lag_s = max(0.0, time.time() - answer.payload.source.mtime_ns / 1e9)

    def standing(self) -> Standing:
        """How it stands."""
        details, result = self.result.details, self.result
        in_flight = sum(self.flying.values())
        newest, changed_s = "", None
        growing = self.growing
        acquired = growing.acquired if growing is not None else 0
        if growing is not None and growing.tree.newest:
            newest, changed_s = growing.tree.newest, max(0.0, time.time() - growing.tree.newest_file_ns / 1e9)
        copied, _ = self.meter.rates(time.monotonic())
        truth = details.get("arrays", ())
        proved = self.aim.verify == "full"
        return Standing(
            self.aim.name,
            "ending" if self.closing and not result.state else result.state or self.state,
            newest=newest,
            changed_s=changed_s,
            acquired_bytes=acquired,
            copied_bytes=acquired - in_flight,
            verified_bytes=acquired - in_flight if proved else 0,
            rate=copied,
            lag_s=self.lag_s,
            awaited=to_end(self.decision) if self.decision is not None else "",
            waiting=self.control.waiting,
            pace=self._pace(),
            proof=self.aim.verify,
            evidence=[(one["kind"], one["detail"]) for one in details.get("evidence", ())],
            read_back=result.read_back,
            recorded=result.skipped,
            copied=result.copied + result.replaced + result.adopted,
            arrays=bool(truth),
            missing=sum(array["missing"] for array in truth),
            empty=sum(array["empty"] for array in truth),
            failed=result.failed + len(self.in_the_way),
        )

    def _snapshot(self) -> dict[str, Any]:
        now = self.standing()
        kept = {name: self.result.details[name] for name in OF_STATUS if name in self.result.details}
        shown = {"state": now.state, "awaited": [now.awaited] if now.awaited else [], "waiting": now.waiting}
        sums = {"acquired_bytes": now.acquired_bytes, "copied_bytes": now.copied_bytes, "lag_s": now.lag_s}
        return {**super()._snapshot(), "name": now.name, **shown, **sums, **kept}

    def _pace(self) -> str:
        pace = self.pace
        if pace is None or pace.rate is None:
            return ""
        return f"at most {size(pace.rate)}/s ({pace.cause})"

    def _looks_again(self, task: Any, answer: Any) -> bool:
        """A source in use moves, servers come back, what stood in the way goes: such an item is judged at the end."""
        assert self.growing is not None
        if isinstance(answer, Failure):
            self.growing.tree.again(task.key, failed=answer.code != "SF-201")
            if self.closing:
                return False
            if answer.code in IN_THE_WAY and len(self.in_the_way) < MAX_PROBLEMS:
                self.in_the_way[task.key] = answer
            elif not (answer.code in MOVING or (answer.code == WRITE_ERROR and self._is_far())):
                return False
            self._unplan(task)
            return True
        self.in_the_way.pop(task.key, None)
        return False

    def _unplan(self, task: Any) -> None:
        """Forget what was only planned: the walk at the end plans it anew, if it is still there."""
        if self.journal is not None and task.row.state == states.JUDGE:
            self.journal.forget(os.fsencode(task.key)[: -len(task.row.name)], [task.row.name])
            self.journal.commit()

    def _is_far(self) -> bool:
        """Does the copy lie on a server?"""
        return self.order is not None and self.order.store.disk.network

    def _settle_asides(self, results: Sequence[tuple[Any, Any]]) -> None:
        assert self.record is not None
        assert self.journal is not None
        for task, answer in results:
            raw = os.fsencode(task.key)
            head, slash, name = raw.rpartition(b"/")
            if isinstance(answer, Failure):
                data = {"code": answer.code, "message": answer.message, "hint": answer.hint}
                self._count_failed(Event("failed", self.result.run, task.key, 1, 0, data), data)
                self.unmoved.add(raw)
                continue
            found: Aside = answer.payload
            self.record.entry(task.key, "file", "set_aside", size=task.row.size, stored=found.where or None)
            if found.changed:
                self.result.add(
                    "SF-902", task.key, f"gone at the source, and our copy had changed: it is in {found.where}"
                )
            self.record.flush()
            self.journal.forget(head + slash, [name])
            self.result.details["stale"] += 1
            if self.growing is not None:
                self.growing.zarr.gone(task.key)
        if results:
            self.journal.commit()

    def _order(self, journal: Journal) -> Order:
        """As in `transfer`, for a source that moves and a copy in which nobody else works."""
        order = super()._order(journal)
        together = os.stat(self.src).st_dev == os.stat(self.dst).st_dev  # one flush of all would flush the instrument's
        store = replace(order.store, waits_at_moving=False, flush_whole=not together)
        timed = None if self.pace is None else self.pace.read
        source = replace(order.source, in_place=self._in_place, backlog=self.backlog.__contains__, timed=timed)
        return replace(order, source=source, store=store, tends=True, pause_s=self.aim.sleep_time_s)

    def _calm(self, order: Order, count: int) -> Order:
        """The same, with one flush for a batch of so many where nobody writes whom it could hold up.

        Of a few files each is flushed: what else is dirty on that disk may take seconds.
        """
        if order.store.flush_whole or count < MANY or not (self._is_said_finished() or self._is_silent()):
            return order
        return replace(order, store=replace(order.store, flush_whole=True))

    def _is_silent(self) -> bool:
        """Has everything been listed, and nothing of it changed for so long that its pages are written?"""
        assert self.growing is not None
        tree = self.growing.tree
        return tree.walk is not None and time.time() - tree.newest_change_ns / 1e9 >= SILENT_S

    def _in_place(self, path: str) -> bool:
        """May it be written under its final name?"""
        return self.growing is None or self.growing.ready.in_place(path)

    # -- what a target goes through ------------------------------------------------------------------------------------

    def _copy(self, journal: Journal, rec: record.Record, order: Order) -> Iterator[Step]:
        self.ledger = CopyLedger(journal, rec, order, self.result.run, had_losses=bool(journal.losses()))
        aim = self.aim
        ending = Ending(aim.finish, aim.settle_s, aim.settle_given, aim.expect, aim.writer, aim.writer_pid)
        listed = ListedFiles(order.source, self.control)
        self.growing = Watched(
            order.source,
            ending,
            watch=aim.watch,
            scan_interval_s=aim.scan_interval_s,
            selection=self.selection,
            known=KnownByJournal(journal),
            listed=listed,
        )
        self.had, self.growing.acquired = journal.totals().get(states.DONE, (0, 0))
        self.growing.begun = bool(journal.totals())
        for key, raw in journal.facts(EMPTY):
            self.growing.zarr.restore(key.removeprefix(EMPTY), raw)
        try:
            with listed, self.growing:
                while True:
                    yield from self._grow(journal, order)
                    if (yield from self._patiently(lambda: self._close_in(journal, order))):
                        break
                if self.writer is not None:
                    self.writer.finished()
                yield from self._patiently(lambda: self._last(journal, order))
            yield from self._patiently(lambda: _busy(self._set_folders(journal, rec, order)))
            if order.store.disk.network:  # manifest and record go there
                yield from self._answering(order.store)
        except Exception as error:
            self.control.stop(self._of_the_run(error))
            yield from self._land()
            raise

    def _of_the_run(self, error: Exception) -> ScopeferryError:
        return self._system_error(error) if isinstance(error, OSError) else of_the_run(error, self.dst)

    def _land(self) -> Iterator[None]:
        """Wait until nothing is in flight."""
        while self.flying:
            yield None

    def _send(self, tasks: Iterable[Any]) -> Generator[Step, None, int]:
        """Hand out tasks; how many."""
        count = 0
        for task in tasks:
            self.control.check()
            self.flying[task.key] = task.size
            count += 1
            yield task
        return count

    def _say(self, events: Iterator[Event | None]) -> Iterator[Step]:
        """Count what a walk tells, and pass it on."""
        yield from _busy(self._take(self._stoppable(events)))

    # -- while it grows ------------------------------------------------------------------------------------------------

    def _grow(self, journal: Journal, order: Order) -> Iterator[Step]:
        """Send what is ready, until the evidence says that it is over."""
        assert self.growing is not None
        ready: list[Found] = []
        gone: dict[bytes, Row] = {}
        for found in self.growing.items():
            self.control.check()
            if isinstance(found, Found):
                self._met(found)
                ready.append(found)
            elif found is not None:
                row = journal.row(os.fsencode(found.path))
                self.growing.settled(found.path)
                if row is not None:
                    gone[os.fsencode(found.path)] = row
            if ready and (found is None or len(ready) >= BATCH_ITEMS):
                self._is_over()  # if that is said, nobody is to be spared any more
                yield from self._send(self._planned(journal, self._calm(order, len(ready)), ready))
                ready = []
            if found is None:
                self._wait_for_source(order)
                if gone:
                    yield from self._send(self._dropped(gone, set(gone), order)[0])
                    gone = {}
                self._keep_evidence(journal)
                yield None
                if self._is_over():
                    return

    def _wait_for_source(self, order: Order) -> None:
        """A source that is away is named and waited for, as long as patience goes."""
        assert self.growing is not None
        since, control = self.growing.tree.absent_since, self.control
        if since is not None:
            if time.monotonic() - since >= control.patience_gone_s:
                raise order.source.gone()
            control.waiting = SOURCE
        elif control.waiting == SOURCE:
            control.waiting = ""

    def _met(self, found: Found) -> None:
        if not found.fresh:
            self.backlog.add(found.path)
        elif found.rank == CHUNK and self.writer is not None and not self._is_said_finished():
            self.writer.wrote(found.mtime_ns, found.size)

    def _is_said_finished(self) -> bool:
        """Does something say that nobody writes any more? Then nobody is to be spared."""
        evidence = self.decision.evidence if self.decision is not None else ()
        return any(one.verdict == FINISHED and one.kind in {"declared", "marker", "handle"} for one in evidence)

    def _keep_evidence(self, journal: Journal) -> None:
        """What is known of empty chunks cannot be listed again: it is kept for the next run."""
        assert self.growing is not None
        now = time.monotonic()
        if now >= self._keep_at:
            self._keep_at = now + NOTE_S
            found = {f"{EMPTY}{path}": raw for path, raw in self.growing.zarr.take_evidence()}
            if found:
                journal.set(**found)

    def _planned(self, journal: Journal, order: Order, ready: Sequence[Found]) -> Iterator[CopyItem]:
        """Open rows for what is about to be published, and the tasks for them."""
        assert self.growing is not None
        folders: dict[bytes, list[tuple[str, Row]]] = {}
        for found in ready:
            head, slash, raw = os.fsencode(found.path).rpartition(b"/")
            kind = states.SYMLINK if stat.S_ISLNK(found.mode) else states.FILE
            source = found.fingerprint
            row = Row(raw, kind, states.JUDGE, found.size, found.mtime_ns, source, None, None, None, order.recipe)
            folders.setdefault(head + slash, []).append((found.path, row))
        tasks = []
        for prefix, rows in folders.items():
            known = journal.rows(prefix, (row.name for _, row in rows))
            opened = []
            for path, row in rows:
                old = known.get(row.name)
                if old is not None and _is_done(Row._make(old), row):  # metadata are told of in each run
                    self.growing.settled(path)
                else:
                    opened.append((path, _merged(row, old)))
            if opened:
                journal.plan(prefix, (row for _, row in opened))
            tasks += [CopyItem(order, path, row) for path, row in opened]
        journal.commit()
        return iter(tasks)

    def _is_over(self, *, walked_s: float | None = None) -> bool:
        """Does the evidence say so? `walked_s`: since when a walk that found nothing has gone on."""
        assert self.growing is not None
        now = time.monotonic()
        if walked_s is not None:
            self.growing.catch_up()
            self.growing.walked(walked_s)
        elif now < self._decide_at:
            return False
        if self.declared:
            self.growing.declared_by = self.declared
        self.decision = self.growing.decide()
        if self.writer is not None and self._is_said_finished():
            self.writer.finished()
        self._decide_at = time.monotonic() + max(LOOK_S, LOOK_SHARE * (time.monotonic() - now))
        return self.decision.ends

    def _dropped(self, gone: dict[bytes, Row], before: set[bytes], order: Order) -> tuple[list[AsideItem], set[bytes]]:
        """What is set aside of all that a listing lacks, and what only waits for a second listing to lack it too.

        Only chunks of arrays whose metadata stands, in folders that stand; the rest is kept, an extra. Where nearly all
        of an array went at once somebody frees the source: nothing of it is touched.
        """
        growing, dropped = self.growing, dict[str, list[bytes]]()
        assert growing is not None
        if self.aim.stale != "keep":
            with order.source.folders() as here:
                for raw, row in gone.items():
                    tried = row.state != states.DONE or raw in self.unmoved
                    array = None if tried else growing.zarr.chunk_of(os.fsdecode(raw))
                    if array is not None and _stands(here, raw):
                        dropped.setdefault(array, []).append(raw)
        aside: list[AsideItem] = []
        waits: set[bytes] = set()
        for array, paths in dropped.items():
            if len(paths) > NEARLY_ALL[0] and len(paths) > NEARLY_ALL[1] * growing.zarr.chunks_of(array):
                text = f"nearly all chunks of {printable(array) or 'the array'} vanished at the source: kept"
                self._add(Refused(text, code="SF-506", path=array))
                continue
            twice = [raw for raw in paths if raw in before]
            waits.update(paths)
            aside += [AsideItem(order, os.fsdecode(raw), gone[raw], f"stale/{self.result.run}") for raw in twice]
        return aside, waits

    def _end(self, journal: Journal, rec: record.Record) -> None:
        """As in `transfer`, with the verdict and the evidence for it."""
        for path, answer in self.in_the_way.items():  # no walk has come to judge them
            self.result.add(answer.code, path, answer.message, answer.hint)
        decision, growing, details = self.decision, self.growing, self.result.details
        if growing is not None and decision is not None:
            self._keep_at = 0.0
            self._keep_evidence(journal)
            if decision.ends and not self.control.stopped:
                self._add_verdict(decision)
            growing.zarr.aborted = decision.state == ABORTED
            self.truth = growing.zarr.truth()
            details["arrays"] = [array.as_dict() for array in self.truth.values()]
            details["evidence"] = [{"kind": one.kind, "verdict": one.verdict, "detail": one.detail, "at": one.at}
                                   for one in decision.evidence]  # fmt: skip
            details["awaited"] = list(decision.awaited)
            details["acquired_bytes"], details["lag_s"] = growing.acquired, self.lag_s
        details["healed"] = sum(problem.code == "SF-902" for problem in self.result.problems)
        self._count_there(journal)
        try:
            journal.note_run(self.result.run, self._snapshot())
        except ScopeferryError as error:  # only `status` lacks it then
            self._add(error)
        super()._end(journal, rec)
        if decision is not None and decision.ends and self.result.exit_code in {0, 6}:
            self.result.state = decision.state

    def _count_there(self, journal: Journal) -> None:
        """All items that are there; those of them that this run had not to touch."""
        result = self.result
        result.items = result.items or journal.totals().get(states.DONE, (0, 0))[0]
        result.skipped = max(0, min(self.had, result.items - sum(getattr(result, name) for name in TOUCHED)))

    def _add_verdict(self, decision: Decision) -> None:
        why = "; ".join(f"{one.kind}: {one.detail}" for one in decision.evidence)
        if decision.state == ABORTED:
            self.result.add("SF-602", "", f"aborted ({why})")
        elif decision.state == UNKNOWN:
            self.result.add("SF-603", "", f"the end is not proved ({why})")
        for code, notes in (("SF-914", decision.notes), ("SF-916", decision.overruled)):
            for note in notes:
                self.result.add(code, "", printable(note))
        assert self.growing is not None
        zarr = self.growing.zarr
        for path, problem in {**dict.fromkeys(zarr.not_ready, "does not parse"), **zarr.problems}.items():
            self.result.add("SF-915", path, f"{printable(path)}: {problem}")

    def _finish(self) -> dict[str, Any]:
        decision = self.decision
        if decision is None or not decision.ends:
            return {"state": "running", "evidence": ""}
        said = "; ".join(f"{one.kind}: {one.detail}" for one in decision.evidence)
        return {
            "state": decision.state,
            "evidence": said,
            "by": user(),
            **({"weak": True} if decision.weak else {}),
        }

    # -- the end -------------------------------------------------------------------------------------------------------

    def _close_in(self, journal: Journal, order: Order) -> Generator[Step, None, bool]:
        """Walk both sides and do what they lack, until a walk finds nothing; False if it is not over after all."""
        stale: set[bytes] = set()
        yield from self._land()
        self.closing = True
        self.in_the_way.clear()  # the walks will tell
        try:
            for number in range(WALKS):
                yield from self._land()
                gone: dict[bytes, Row] = {}
                plan = replace(self._plan(journal, order, again=number > 0), tends=True, source_only=False)
                begun_s = time.monotonic()
                plan.gone = lambda path, row, gone=gone: gone.__setitem__(path, Row._make(row))
                yield from self._say(plan.walk())
                self._check_source(order)
                self._found(plan, first=number == 0)
                self.result.extras = plan.totals.extras
                if self.left is not None:
                    self.left.flush()
                self._check_room(plan)
                dropped, stale = self._dropped(gone, stale, order)
                sent = yield from self._send(dropped)
                sent += yield from self._send_open(journal, order)
                if not sent and not stale:
                    return self._is_over(walked_s=begun_s)
        finally:
            self.closing = False
        return False

    def _send_open(self, journal: Journal, order: Order) -> Generator[Step, None, int]:
        """What a walk has planned: chunks and files first, then links, then metadata, leaves before the root."""
        assert self.growing is not None
        rank = self.growing.rank
        plain = lambda task: rank(task.key) == CHUNK  # noqa: E731
        sent = yield from self._send(filter(plain, copy_tasks(journal, order, self.control)))
        yield from self._land()
        for tasks in (orphan_tasks, link_tasks):
            sent += yield from self._send(tasks(journal, order, self.control))
            yield from self._land()
        refresh_links(journal, order)
        metadata = [t for t in copy_tasks(journal, order, self.control) if rank(t.key) == METADATA]
        for depth in sorted({task.key.count("/") for task in metadata}, reverse=True):
            sent += yield from self._send(task for task in metadata if task.key.count("/") == depth)
            yield from self._land()
        return sent

    def _last(self, journal: Journal, order: Order) -> Iterator[Step]:
        """The finish marker, after everything else: a second run may be chained on the copy."""
        yield from self._land()
        self.closing = True
        yield from self._send(copy_tasks(journal, order, self.control))
        yield from self._land()


def of_the_run(error: Exception, path: str) -> ScopeferryError:
    """What ends the target at this destination, as an error of ours: what is none of the system's is a bug."""
    if isinstance(error, ScopeferryError):
        return error
    if isinstance(error, OSError):
        return system_error(error, path)
    return Failed(f"internal error: {type(error).__name__}: {error}", code="SF-302")


def _stands(here: Folders, raw: bytes) -> bool:
    """Does the folder of a file still stand?"""
    try:
        here.open(os.fsdecode(raw.rpartition(b"/")[0]))
    except (OSError, ScopeferryError):
        return False
    return True


def _busy(events: Iterator[Event | None]) -> Iterator[Event | None]:
    """Pass events on; its ticks mean work and not that nothing is ready, so the others get their turn now and then."""
    looked = time.monotonic()
    for event in events:
        if event is not None:
            yield event
        if time.monotonic() - looked >= TURN_S:
            yield None
            looked = time.monotonic()


def _is_done(row: Row, wanted: Row) -> bool:
    """Is this version there, made as it is wanted?"""
    same = (row.size, row.mtime_ns, row.source, row.recipe) == (
        wanted.size,
        wanted.mtime_ns,
        wanted.source,
        wanted.recipe,
    )
    return row.state == states.DONE and same


def _merged(new: Row, old: tuple[Any, ...] | None) -> Row:
    """The row of what is to be published, with what stands there according to the journal."""
    if old is None:
        return new
    row = Row._make(old)
    seems_same = (row.size, row.mtime_ns) == (new.size, new.mtime_ns)
    if row.state == states.DONE and row.digest is not None and not seems_same and row.stored is not None:
        return new._replace(
            state=states.REPLACE, stored=row.stored, stored_mtime_ns=row.noted_mtime_ns, digest=row.digest,
            recipe=row.recipe,
        )  # fmt: skip
    if row.digest is not None:  # not known to be done, or done and maybe the same: that is read
        return new._replace(
            state=states.CHECK, stored=row.stored, stored_mtime_ns=row.stored_mtime_ns, digest=row.digest,
            recipe=row.recipe,
        )  # fmt: skip
    if row.open and not seems_same:  # an earlier version was about to be published: that may stand there
        return new._replace(stored_mtime_ns=row.mtime_ns)
    return new._replace(stored_mtime_ns=row.stored_mtime_ns)


def _as_transfer(aim: Target, settings: LiveSettings) -> TransferSettings:
    """What of it is as in `transfer`."""
    return TransferSettings(
        verify=aim.verify,
        on_conflict=aim.on_conflict,
        workers=settings.workers,
        select=settings.select,
        parents=True,
        patience_s=aim.patience_s,
        dry_run=settings.dry_run,
        journal=settings.journal,
        records=settings.records,
    )
