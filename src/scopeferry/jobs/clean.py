"""`clean SRC --copy DST...`: free the original, after proof, and only if every condition holds for every file.

Without ``yes`` it is a plan: every condition is looked at, also when an earlier one fails, and nothing is touched. With
it the same conditions are looked at again, now, and then the source is freed file by file.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from scopeferry.copying import place, record
from scopeferry.copying.clean import (
    Copy,
    Freeing,
    SourceLedger,
    add_folders,
    is_cut_off,
    is_declared,
    pin_of,
    source_tasks,
)
from scopeferry.copying.expected import Expected
from scopeferry.errors import CODES, Failed, UsageError
from scopeferry.jobs.job import Job, drive
from scopeferry.jobs.result import Result
from scopeferry.jobs.verify import VerifyJob, VerifySettings, last_copy, noting
from scopeferry.kernel import publish
from scopeferry.kernel.events import Event
from scopeferry.kernel.run import Line
from scopeferry.kernel.task import Control
from scopeferry.logs import host, new_run_id, printable, user

NAMED = 100  # files named for one condition
HARMLESS = {"SF-404", "SF-405"}  # metadata can be set again from the record, extras are nobody's


@dataclass(frozen=True, slots=True)
class CleanSettings:
    """What `clean` can be told. ``older_than_s`` is in seconds; ``copies_needed`` None: as many as are named."""

    yes: bool = False
    copies_needed: int | None = None
    older_than_s: float = 0.0
    other_disk: bool = False
    finish_now: bool = False
    trash: str | None = None
    records: str | None = None
    journal: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.copies_needed is not None and self.copies_needed < 1:
            raise UsageError(f"--copies is at least 1, not {self.copies_needed}", code="SF-105")
        if self.older_than_s < 0:
            raise UsageError("--older-than is no negative time", code="SF-105")


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that must hold: of which copy ("" is the source), whether it does, and a sentence."""

    name: str
    copy: str
    ok: bool
    code: str
    message: str

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"condition": self.name, "copy": self.copy, "ok": self.ok, "code": "" if self.ok else self.code,
                "message": self.message}  # fmt: skip


def clean(
    src: str | os.PathLike[str],
    copies: Sequence[str | os.PathLike[str]],
    *,
    yes: bool = False,
    copies_needed: int | None = None,
    older_than_s: float = 0.0,
    other_disk: bool = False,
    finish_now: bool = False,
    trash: str | os.PathLike[str] | None = None,
    records: str | os.PathLike[str] | None = None,
    journal: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    on_event: Callable[[Event], Any] | None = None,
    control: Control | None = None,
) -> Result:
    """Say whether `src` may be freed, and with ``yes`` free it.

    All must hold for every file: each copy's last run was complete and its source declared finished (``finish_now``
    declares it now); each copy, read again now from storage, equals its manifest; at least ``copies_needed`` (default:
    all) hold the file; the source is what was proved; it is older than ``older_than_s`` (the newest file counts);
    nothing is pinned; with ``other_disk``, no copy lies on the file system of the source. ``trash``: a folder on the
    same file system that receives the files. ``records`` and ``journal`` are those of the copy, if only one is named.

    ``result.details["conditions"]`` lists each condition with its outcome, ``result.details["freed"]`` counts what was
    freed.
    """
    settings = CleanSettings(
        yes, copies_needed, older_than_s, other_disk, finish_now, None if trash is None else os.fspath(trash),
        None if records is None else os.fspath(records), None if journal is None else os.fspath(journal), workers,
    )  # fmt: skip
    return drive(CleanJob(os.fspath(src), [os.fspath(copy) for copy in copies], settings, control), on_event)


class CleanJob(Job):
    """One run of `clean`. Iterate over `run`; then `result` holds the conditions, and what was freed."""

    settings: CleanSettings

    def __init__(
        self, src: str, copies: Sequence[str], settings: CleanSettings, control: Control | None = None
    ) -> None:
        if not copies:
            raise UsageError("name at least one copy: clean SRC --copy DST", code="SF-100")
        if len(copies) > 1 and (settings.records or settings.journal):
            raise UsageError("--records and --journal go with one copy only", code="SF-100")
        control = control or Control()
        checks = VerifySettings(records=settings.records, journal=settings.journal, workers=settings.workers)
        self.checks = [VerifyJob(copy, src, checks, control, locked=True, compare=False) for copy in copies]
        source = self.checks[0].source
        assert source is not None
        self.source = source
        target = os.path.join(source.root, self.checks[0].source_name or "").rstrip(os.sep)
        super().__init__("clean", new_run_id(), target, place.find(target), settings, control)
        self._check_different(copies)
        self.result.source = target
        self.result.destination = ", ".join(check.target for check in self.checks)
        self.conditions: list[Condition] = []
        self.records: list[record.Record] = []
        for check in self.checks:
            self.held.callback(check.close)

    def _check_different(self, copies: Sequence[str]) -> None:
        seen: set[tuple[int, int]] = set()
        for path in copies:
            found = os.stat(path)
            if (found.st_dev, found.st_ino) in seen:
                raise UsageError(f"the same copy is named twice: {printable(path)}", code="SF-104", path=path)
            seen.add((found.st_dev, found.st_ino))
        if self.settings.trash is not None:
            self._check_trash(self.settings.trash)

    def _check_trash(self, trash: str) -> None:
        source = self.source
        parent = os.path.realpath(trash)
        while not os.path.isdir(parent):
            parent = os.path.dirname(parent)
        if (os.path.realpath(trash) + os.sep).startswith(source.root + os.sep):
            raise UsageError(f"--trash lies in the source: {printable(trash)}", code="SF-103", path=trash)
        if os.stat(parent).st_dev != os.stat(source.root).st_dev:
            say = f"--trash is on another file system than the source: {printable(trash)}"
            raise UsageError(say, code="SF-105", path=trash)

    # -- the run -------------------------------------------------------------------------------------------------------

    def _do(self) -> Iterator[Event | None]:
        yield Event("started", self.result.run, self.target, data={"command": "clean", "copies": len(self.checks)})
        self._lock()
        copies: list[Copy] = []
        for check in self.checks:
            yield from self._check_copy(check, copies)
        self.control.check()
        self._pinned(self.place.records, "")
        free = Expected()
        self.held.callback(free.close)
        ledger = SourceLedger(free, copies, self.result.run)
        yield from self._check_source(copies, ledger)
        self.control.check()
        self._age(ledger)
        self.result.items, self.result.bytes = ledger.files, ledger.bytes_freed
        self.result.details["plan"] = {"files": ledger.files, "bytes": ledger.bytes_freed}
        self.result.details["conditions"] = [condition.as_dict() for condition in self.conditions]
        if self.settings.yes and self.result.ok:
            yield from self._go(free, copies)

    def _lock(self) -> None:
        """The lock of each copy; raises Temporary (SF-321) if one is held."""
        for where in (*(check.place for check in self.checks), self.place):
            if not self.settings.yes and not os.path.isdir(os.path.dirname(where.lock)):
                continue  # a plan makes nothing
            lock = place.Lock(where.lock, self.result.run)
            try:
                lock.acquire()
            except OSError as error:
                if self.settings.yes:
                    say = f"cannot be written, so what is freed could not be recorded: {printable(where.records)}"
                    raise Failed(say, code="SF-301", path=where.records) from error
                continue
            self.held.callback(lock.release)

    # -- conditions ----------------------------------------------------------------------------------------------------

    def _holds(self, name: str, copy: str, ok: bool, code: str, message: str) -> bool:
        self.conditions.append(Condition(name, copy, ok, code, message))
        if not ok:
            self.result.add(code, copy or self.target, message)
        return ok

    def _check_copy(self, check: VerifyJob, copies: list[Copy]) -> Iterator[Event | None]:
        """All that concerns one copy. It counts as one only if it has a manifest and could be read."""
        try:
            headers = list(record.headers(check.place.records))
        except UsageError as error:
            headers = []
            self._holds("record", check.target, False, "SF-511", str(error))
        else:
            self._complete(check.target, headers)
        self._declared(check.target, headers)
        self._pinned(check.place.records, check.target)
        self._disk(check)
        yield from self._proof(check)
        if check.expected is not None:
            device, disk = os.stat(check.root).st_dev, publish.disk(check.root)
            copies.append(Copy(check.root, disk, device, check.expected, check.journal, is_cut_off(headers)))

    def _complete(self, copy: str, headers: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        _, end = last_copy(headers)
        state = end.get("state") or ("cut off" if headers else "there is none")
        said = f"the last run into {printable(copy)}: {state}"
        self._holds("complete", copy, state == "complete", "SF-511", said)

    def _declared(self, copy: str, headers: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        ok, said = is_declared(last_copy(headers)[1])
        if self.settings.finish_now:
            ok, said = True, f"declared now by {user()}@{host()}"
        self._holds("finished", copy, ok, "SF-517", f"evidence that the source was finished: {printable(said)}")

    def _pinned(self, records: str, copy: str) -> None:
        reason = pin_of(records)
        said = "not pinned" if reason is None else f"pinned: {printable(reason)}"
        self._holds("not pinned", copy, reason is None, "SF-516", said)

    def _disk(self, check: VerifyJob) -> None:
        same = os.stat(check.root).st_dev == os.stat(self.source.root).st_dev
        one = publish.disk(check.root)
        same = same or (not one.network and one.device.startswith("/") and one.device == self.source.disk.device)
        where = "on the file system of the source" if same else "on another file system than the source"
        said = f"{printable(check.target)} lies {where}"
        if same and not self.settings.other_disk:
            self.result.add("SF-910", check.target, said)
        self._holds("other disk", check.target, not (same and self.settings.other_disk), "SF-518", said)

    def _proof(self, check: VerifyJob) -> Iterator[Event | None]:
        try:
            for event in check.opened():
                if event is None or event.kind != "failed":
                    yield event
        except UsageError as error:
            code = "SF-511" if error.code == "SF-111" else "SF-512"
            self._holds("proved", check.target, False, code, str(error))
            return
        found = check.result
        wrong = [one for one in found.problems if one.code not in HARMLESS and CODES[one.code][0] not in {0, 130}]
        for problem in wrong[:NAMED]:
            self.result.add("SF-512", problem.path, problem.message)
        said = found.details.get("verdict", "") if not wrong else f"{len(wrong):,} problems, first: {wrong[0].message}"
        ok = not wrong and not self.control.stopped
        self.conditions.append(Condition("proved", check.target, ok, "SF-512", said))
        self.result.verified += found.verified
        for kind, count in found.read_back.items():
            self.result.read_back[kind] = self.result.read_back.get(kind, 0) + count

    def _check_source(self, copies: Sequence[Copy], ledger: SourceLedger) -> Iterator[Event | None]:
        needed = self.settings.copies_needed or len(self.checks)
        named: Counter[str] = Counter()
        for event in self.work(
            [Line(source_tasks(self.source, copies, needed, self.control), ledger)], self.source.disk
        ):
            if event is not None:
                code = event.data["code"]
                named[code] += 1
                if named[code] <= NAMED:
                    self.result.add(code, event.path, event.data["message"])
            yield event
        few, changed, enough = named["SF-514"], named["SF-513"], len(copies) >= needed
        said = f"{len(copies)} of {needed} copies are there; {few:,} files are in too few of them"
        if not enough:
            self.result.add("SF-514", self.target, said)
        self.conditions.append(Condition("copies", "", enough and not few, "SF-514", said))
        said = f"{changed:,} files of the source are" if changed else "every file is"
        said += " not what was proved" if changed else " what was proved"
        self.conditions.append(Condition("source unchanged", "", not changed, "SF-513", said))

    def _age(self, ledger: SourceLedger) -> None:
        newest_ns, path = ledger.newest
        age_s = time.time() - newest_ns / 1e9
        ok = not ledger.files or not self.settings.older_than_s or age_s >= self.settings.older_than_s
        said = f"nothing is younger than {self.settings.older_than_s:,.0f} s"
        if not ok:
            said = f"{printable(path)} is {age_s:,.0f} s old, {self.settings.older_than_s:,.0f} s are asked for"
        self._holds("older", "", ok, "SF-515", said)

    # -- the source is freed -------------------------------------------------------------------------------------------

    def _go(self, free: Expected, copies: Sequence[Copy]) -> Iterator[Event | None]:
        add_folders(free, copies)
        trash = self.settings.trash
        if trash is not None:
            trash = os.path.join(os.path.realpath(trash), f"{os.path.basename(self.target)}-{self.result.run}")
        freeing = Freeing(self.source, copies, free, self.records, self.control, self.result.run, trash)
        yield from self.guarded(self._freed(freeing, copies))
        self._end_records(freeing)

    def _freed(self, freeing: Freeing, copies: Sequence[Copy]) -> Iterator[Event | None]:
        self._begin_records(copies)
        try:
            yield from freeing.go()
        finally:
            for name in ("freed", "freed_bytes", "folders_removed"):
                self.result.details[name] = getattr(freeing, name)

    def _begin_records(self, copies: Sequence[Copy]) -> None:
        """A generation on each side, before the first file is touched: what cannot be recorded is not freed."""
        finish = (
            {"state": "finished", "evidence": "declared: --finish now", "by": f"{user()}@{host()}"}
            if self.settings.finish_now
            else None
        )
        for where in (self.place, *(check.place for check in self.checks)):
            try:
                place.make_shared(where.records)
                record.end_cut_off(where.records)
                check = next((check for check in self.checks if check.place is where), None)
                expected = (check or self.checks[0]).expected
                names = expected.used_algorithms() if expected is not None else []
                facts = record.header(
                    "clean", self.result.run, self.target, where.dst, names, copies=[copy.root for copy in copies],
                    finish=finish,
                )  # fmt: skip
                rec = record.Record(where.records, facts, noting(None if check is None else check.journal))
                self.records.append(rec)
                self.held.callback(rec.close)
                rec.begin()
            except OSError as error:
                say = f"cannot be written, so what is freed could not be recorded: {printable(where.records)}"
                raise Failed(say, code="SF-301", path=where.records) from error

    # -- at the end ----------------------------------------------------------------------------------------------------

    def _end_records(self, freeing: Freeing) -> None:
        result = self.result
        ended = {"state": self._state(planned="complete", refused="partial"), "exit_code": result.exit_code}
        more = {"bytes": freeing.freed_bytes, "counts": {"freed": freeing.freed}}
        for rec in self.records:
            with suppress(OSError):
                rec.end(**ended, elapsed_s=round(time.monotonic() - self.started, 3), **more)
                result.record = result.record or rec.path

    def _state(self, *, planned: str, refused: str) -> str:
        return "interrupted" if self.control.stopped else planned if self.result.ok else refused

    def _say(self) -> None:
        result = self.result
        result.state = self._state(planned="complete" if self.settings.yes else "planned", refused="refused")
        result.details.setdefault("conditions", [condition.as_dict() for condition in self.conditions])
        result.details["verdict"] = self._verdict()

    def _verdict(self) -> str:
        result = self.result
        plan = result.details.get("plan", {"files": 0, "bytes": 0})
        what = f"{plan['files']:,} files and links, {plan['bytes']:,} bytes"
        if "freed" in result.details:
            return f"freed {result.details['freed']:,} of {what}"
        if result.ok:
            return f"could be freed: {what}; add --yes to free them"
        failing = [condition.name for condition in self.conditions if not condition.ok]
        return f"nothing touched: {', '.join(dict.fromkeys(failing)) or 'see the problems'}"


__all__ = ["CleanJob", "CleanSettings", "Condition", "clean"]
