"""`repair SRC DST`: verify the copy, and send again exactly what is wrong in it, where the source is still what was
recorded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from scopeferry.copying import place, record
from scopeferry.copying.listing import BAD, HEALED, Listing
from scopeferry.copying.repair import Healing, RepairLedger, relink_tasks, repair_tasks, set_folders
from scopeferry.errors import CODES, Failed, ScopeferryError, UsageError
from scopeferry.jobs import receipts
from scopeferry.jobs.registered import registers
from scopeferry.jobs.result import Result
from scopeferry.jobs.verify import (
    WORKERS,
    WORKERS_NETWORK,
    VerifyJob,
    VerifySettings,
    drive,
    end_line,
    noting,
    write_manifests,
)
from scopeferry.kernel import publish
from scopeferry.kernel.events import Event
from scopeferry.kernel.run import BATCH_ITEMS, Line, run
from scopeferry.kernel.task import Control
from scopeferry.logs import printable
from scopeferry.reports.units import count
from scopeferry.stores.local import LocalStore
from scopeferry.stores.store import KEEP_DEFAULT


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


class RepairJob:
    """One run of `repair`. Iterate over `run`; then `result` holds what became of it."""

    def __init__(self, src: str, dst: str, settings: VerifySettings, control: Control | None = None) -> None:
        self.settings = settings
        self.control = control or Control()
        self.started = time.monotonic()
        self.check = VerifyJob(dst, src, settings, self.control, locked=True, compare=False)
        self.place = self.check.place
        self.result = Result("repair", run=self.check.result.run, source=self.check.result.source)
        self.result.destination = self.check.target
        self.lock = place.Lock(self.place.lock, self.result.run)
        self.record: record.Record | None = None
        self.failures: dict[str, int] = {}

    @registers
    def run(self) -> Iterator[Event | None]:
        """Do it; yields events, and None as a tick. Raises UsageError before anything is touched."""
        try:
            yield from self._opened()
        except UsageError:
            raise
        except ScopeferryError as error:
            self._add(error)
        except OSError as error:
            path = os.fspath(error.filename or self.check.target)
            self._add(Failed(f"{error.strerror or error}: {printable(path)}", code="SF-301", path=path))
        finally:
            self._close()
        self.result.elapsed_s = time.monotonic() - self.started
        yield Event("finished", self.result.run, self.check.target, data={"exit_code": self.result.exit_code})

    def _opened(self) -> Iterator[Event | None]:
        if not os.path.isdir(self.place.records):
            raise UsageError(
                f"no record of a copy: {printable(self.place.records)}", code="SF-111", path=self.place.records
            )
        self.lock.acquire()
        for event in self.check.opened():
            if event is None or event.kind != "failed":
                yield event
        self._take_over()
        listing = self.check.listing
        if listing is None or self.control.stopped:
            return
        if listing.counts().get(BAD):
            yield from self._heal(listing)
        self._say(listing)
        if self.record is not None and self.record.path:
            receipts.write(self.result, self.place.records, self.record.header)

    def _take_over(self) -> None:
        """What the check counted; its problems count only where they are no item's: those are to be healed."""
        found, result = self.check.result, self.result
        for name in (
            "items",
            "checked",
            "extras",
            "verified",
            "bytes",
            "read_back",
            "tree_digest",
            "manifest",
            "record",
        ):
            setattr(result, name, getattr(found, name))
        for problem in found.problems:
            if problem.code == "SF-409" or CODES[problem.code][0] not in {3, 4, 5}:
                result.add(problem.code, problem.path, problem.message, problem.hint)
        result.details["found_wrong"] = found.failed
        result.bytes = 0

    def _heal(self, listing: Listing) -> Iterator[Event | None]:
        from concurrent.futures import ThreadPoolExecutor

        record.end_cut_off(self.place.records)
        working = listing.algorithms() or ["xxh128"]
        facts = record.header("repair", self.result.run, self.result.source, self.check.target, working)
        self.record = record.Record(self.place.records, facts, noting(self.check.journal))
        healing = self._healing(working[0])
        ledger = RepairLedger(listing, healing, self.record, self.check.journal, self.result.run)
        network = healing.store.disk.network or healing.source.disk.network
        workers = self.settings.workers or (WORKERS_NETWORK if network else WORKERS)
        items = publish.batch_items(workers, BATCH_ITEMS)
        try:
            with ThreadPoolExecutor(workers, thread_name_prefix="scopeferry") as executor:
                for tasks in (repair_tasks, relink_tasks):
                    line = Line(tasks(listing, healing, self.control), ledger)
                    for event in run([line], executor, slots=workers, control=self.control, batch_items=items):
                        yield self._counted(event)
            ledger.refresh_links()
            yield from self._set_folders(listing, ledger)
        finally:
            self._end(listing, ledger)

    def _healing(self, working: str) -> Healing:
        source = self.check.source
        assert source is not None
        head: dict[str, Any] = next(
            (head for head, _ in reversed(self.check.headers) if head.get("job", "transfer") == "transfer"), {}
        )
        keep = head.get("keep")
        kept = frozenset(kind for kind in keep if isinstance(kind, str)) if isinstance(keep, list) else KEEP_DEFAULT
        there = os.stat(self.check.root)
        store = LocalStore(
            self.check.root, publish.disk(self.check.root), (working,), holes="holes" in kept,
            identity=(there.st_dev, there.st_ino), records=self.place.records, attempt=self.result.run[-6:] + "00",
        )  # fmt: skip
        return Healing(replace(source, keep=kept), store, f"set_aside/{self.result.run}")

    def _counted(self, event: Event | None) -> Event | None:
        if event is not None and event.kind == "failed":
            self.result.add(event.data["code"], event.path, event.data["message"], event.data.get("hint", ""))
        elif event is not None and event.data.get("what") == "sent":
            self.result.add("SF-902", event.path, f"healed: {printable(event.path)}")
        return event

    def _set_folders(self, listing: Listing, ledger: RepairLedger) -> Iterator[None]:
        for path, problem in set_folders(listing, self.check.root, ledger.folders):
            if problem is not None:
                self.result.add("SF-210", path, problem)
            yield None

    def _end(self, listing: Listing, ledger: RepairLedger) -> None:
        result, rec = self.result, self.record
        assert rec is not None
        result.repaired, result.bytes = ledger.repaired, ledger.sent_bytes
        result.details["metadata_set"] = ledger.metadata
        for kind, number in ledger.read_back.items():
            result.read_back[kind] = result.read_back.get(kind, 0) + number
            result.verified += number
        if self.control.reason is not None:
            self._add(self.control.reason)
        if rec.begun:
            with suppress(OSError):
                hashes = write_manifests(self.place.records, listing)
                state = "complete" if result.exit_code == 0 else "interrupted" if self.control.stopped else "partial"
                rec.end(**end_line(result, state, hashes, self.check.headers, self.started))
                result.record = rec.path

    def _say(self, listing: Listing) -> None:
        result = self.result
        counts = listing.counts()
        healed = counts.get(HEALED, 0)
        result.failed = counts.get(BAD, 0)
        found = result.details["found_wrong"]
        result.details["verdict"] = (
            f"nothing to repair: {count(result.verified)} read back and equal to the manifest"
            if not found
            else f"repaired {healed:,} of {found:,} wrong entries; {result.repaired:,} sent again"
        )
        result.state = "complete" if result.exit_code == 0 else "partial"

    def _add(self, error: ScopeferryError) -> None:
        if not any((problem.code, problem.message) == (error.code, str(error)) for problem in self.result.problems):
            self.result.add(error.code, error.path, str(error), error.hint)

    def _close(self) -> None:
        if self.record is not None:
            self.record.close()
        self.check.close()
        self.lock.release()


__all__ = ["RepairJob", "repair"]
