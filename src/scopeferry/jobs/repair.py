"""`repair SRC DST`: verify the copy, and send again exactly what is wrong in it, where the source is still what was
recorded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from scopeferry.copying import place, record
from scopeferry.copying.expected import BAD, HEALED, OFF, Expected
from scopeferry.copying.finish import refresh_links
from scopeferry.copying.order import Order
from scopeferry.copying.repair import RepairLedger, relink_tasks, repair_tasks, set_folders
from scopeferry.errors import CODES, UsageError
from scopeferry.jobs import receipts
from scopeferry.jobs.job import Job, drive
from scopeferry.jobs.result import Result
from scopeferry.jobs.verify import VerifyJob, VerifySettings, end_line, last_copy, noting
from scopeferry.kernel import publish
from scopeferry.kernel.digest import DEFAULT
from scopeferry.kernel.events import Event
from scopeferry.kernel.run import Line
from scopeferry.kernel.task import Control
from scopeferry.logs import printable
from scopeferry.reports.units import count
from scopeferry.sources.tree import TreeSource
from scopeferry.stores.local import LocalStore
from scopeferry.stores.store import KEEP_DEFAULT, Prove


def repair(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    records: str | os.PathLike[str] | None = None,
    journal: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    on_event: Callable[[Event], Any] | None = None,
    control: Control | None = None,
) -> Result:
    """Read the copy again, and send each wrong or missing file whose source still has the recorded digest.

    What was found goes to ``set_aside`` in the record folder; metadata is set as recorded. A source that differs from
    the record too is refused (SF-521). ``result.repaired`` counts what was sent, ``result.details["metadata_set"]``
    what only had other metadata. Raises UsageError for wrong usage and for a copy without a manifest.
    """
    settings = VerifySettings(
        records=None if records is None else os.fspath(records),
        journal=None if journal is None else os.fspath(journal),
        workers=workers,
    )
    return drive(RepairJob(os.fspath(src), os.fspath(dst), settings, control), on_event)


class RepairJob(Job):
    """One run of `repair`. Iterate over `run`; then `result` holds what became of it."""

    settings: VerifySettings
    broken = "SF-301"

    def __init__(self, src: str, dst: str, settings: VerifySettings, control: Control | None = None) -> None:
        control = control or Control()
        self.check = VerifyJob(dst, src, settings, control, locked=True, compare=False)
        found = self.check.result
        super().__init__("repair", found.run, self.check.target, self.check.place, settings, control)
        self.result.source, self.result.destination = found.source, found.destination
        self.result.details["retries"] = 0
        self.held.callback(self.check.close)

    def _do(self) -> Iterator[Event | None]:
        records = self.place.records
        if not os.path.isdir(records):
            raise UsageError(f"no record of a copy: {printable(records)}", code="SF-111", path=records)
        lock = place.Lock(self.place.lock, self.result.run)
        lock.acquire()
        self.held.callback(lock.release)
        for event in self.check.opened():
            if event is None or event.kind != "failed":
                yield event
        self._take_over()
        expected, source = self.check.expected, self.check.source
        assert source is not None
        if expected is None or self.control.stopped:
            return
        rec = (yield from self._heal(expected, source)) if expected.count_of(OFF, BAD) else None
        self._verdict(expected)
        self.say()
        if rec is not None and rec.path:
            receipts.write(self.result, self.place.records, rec.header)

    def _take_over(self) -> None:
        """What the check counted; its problems count only where they are no item's: those are to be healed."""
        found, result = self.check.result, self.result
        taken = ("items", "checked", "extras", "verified", "read_back", "tree_digest", "manifest", "record")
        for name in taken:
            setattr(result, name, getattr(found, name))
        for problem in found.problems:
            if problem.code == "SF-409" or CODES[problem.code][0] not in {3, 4, 5}:
                result.add(problem.code, problem.path, problem.message, problem.hint)
        result.details["found_wrong"] = found.failed

    def _heal(self, expected: Expected, source: TreeSource) -> Generator[Event | None, None, record.Record]:
        record.end_cut_off(self.place.records)
        working = expected.used_algorithms() or [DEFAULT]
        facts = record.header("repair", self.result.run, self.result.source, self.target, working)
        rec = record.Record(self.place.records, facts, noting(self.check.journal))
        self.held.callback(rec.close)
        order = self._order(source, working[0])
        ledger = RepairLedger(expected, order, rec, self.check.journal, self.result.run)
        wrong, size = expected.count_of(OFF, BAD), expected.totals().get(BAD, (0, 0))[1]
        yield Event("found", self.result.run, self.target, wrong, size, {"plan": True, "heals": True})
        yield from self.guarded(self._healed(expected, order, ledger, working))
        self._end(expected, ledger, rec)
        return rec

    def _order(self, source: TreeSource, working: str) -> Order:
        keep = last_copy(self.check.headers)[0].get("keep")
        kept = frozenset(kind for kind in keep if isinstance(kind, str)) if isinstance(keep, list) else KEEP_DEFAULT
        there = os.stat(self.check.root)
        store = LocalStore(
            self.check.root, publish.disk(self.check.root), (working,), holes="holes" in kept,
            identity=(there.st_dev, there.st_ino), records=self.place.records, attempt=self.result.run[-6:] + "00",
        )  # fmt: skip
        return Order(replace(source, keep=kept), store, Prove(), "refuse", 0, f"set_aside/{self.result.run}")

    def _healed(
        self, expected: Expected, order: Order, ledger: RepairLedger, working: list[str]
    ) -> Iterator[Event | None]:
        """Files by the digest that they are known by, then hard links, then folders."""
        for lines in self._lines(expected, order, ledger, working):
            for event in self.work(lines, order.store.disk, order.source.disk):
                if event is not None and event.kind == "failed":
                    self.result.add(event.data["code"], event.path, event.data["message"], event.data.get("hint", ""))
                elif event is not None and event.data.get("what") == "sent":
                    self.result.details["retries"] += event.data["attempts"] - 1
                    self.result.add("SF-902", event.path, f"healed: {printable(event.path)}")
                yield event
        if self.check.journal is not None:
            refresh_links(self.check.journal, order)
        for path, problem in set_folders(expected, self.check.root, ledger.folders):
            if problem is not None:
                self.result.add("SF-210", path, problem)
            yield None

    def _lines(
        self, expected: Expected, order: Order, ledger: RepairLedger, working: list[str]
    ) -> Iterator[list[Line]]:
        """Files; then hard links, again as long as more become right: the name that one follows may be one itself."""
        yield [Line(repair_tasks(expected, order, name, self.control), ledger) for name in working]
        before, left = -1, expected.count_of(BAD)
        while left not in {0, before} and not self.control.stopped:
            yield [Line(relink_tasks(expected, order, self.control), ledger)]
            before, left = left, expected.count_of(BAD)

    def _end(self, expected: Expected, ledger: RepairLedger, rec: record.Record) -> None:
        result = self.result
        result.repaired, result.bytes = ledger.counts["sent"], ledger.sent_bytes
        result.details["metadata_set"] = ledger.counts["metadata"]
        for kind, number in ledger.read_back.items():
            result.read_back[kind] = result.read_back.get(kind, 0) + number
            result.verified += number
        if rec.begun:
            with suppress(OSError):
                state = "complete" if result.exit_code == 0 else "interrupted" if self.control.stopped else "partial"
                rec.end(**end_line(self, state, expected, self.check.headers))
                result.record = rec.path

    def _verdict(self, expected: Expected) -> None:
        result = self.result
        result.failed = expected.count_of(OFF, BAD)
        if result.failed and result.ok:  # nothing has failed, and yet it is not right: never 0
            for item in expected.items(OFF, BAD):
                path = os.fsdecode(item.path)
                result.add("SF-214", path, f"still wrong: {printable(path)}")
        found = result.details["found_wrong"]
        result.details["verdict"] = (
            f"nothing to repair: {count(result.verified)} read back and equal to the manifest"
            if not found
            else f"repaired {expected.count_of(HEALED):,} of {found:,} wrong entries; {result.repaired:,} sent again"
        )

    def _say(self) -> None:
        if "verdict" in self.result.details:
            self.result.state = "complete" if self.result.exit_code == 0 else "partial"


__all__ = ["RepairJob", "repair"]
