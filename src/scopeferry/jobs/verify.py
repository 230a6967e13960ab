"""`verify DST [SRC]`: is the copy still what was recorded, and is the source?

It needs no journal and no source: the record folder beside the copy says what must be there. It changes nothing in the
copy. It remembers when each file was proved, where there is a journal, and writes digests that were asked for into the
record.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from scopeferry.config import percentage
from scopeferry.copying import manifest, place, record
from scopeferry.copying.expected import CHECK, LEFT_OUT, Expected, Item, of_copy, of_manifest
from scopeferry.copying.verify import EXTRA, TWO_WAY, Check, CheckLedger, check_tasks, extras, walk_source
from scopeferry.errors import ScopeferryError, UsageError
from scopeferry.jobs.job import Job, drive
from scopeferry.jobs.result import Result
from scopeferry.kernel import digest as algorithms
from scopeferry.kernel import publish
from scopeferry.kernel.events import Event
from scopeferry.kernel.journal import FILE, Journal
from scopeferry.kernel.publish import Folders, system
from scopeferry.kernel.run import Line
from scopeferry.kernel.task import Control
from scopeferry.logs import new_run_id, printable
from scopeferry.reports.units import count
from scopeferry.sources.tree import OURS, Selection, TreeSource

SHOWN_EXTRAS = 1000
CLOCK_STEP_NS = 2_000_000_000  # file times may be this far behind the clock
COPIES = {"transfer", "live", "adopt"}  # jobs whose generations say how the source was finished, and what was taken
AT_ONCE = 100_000  # rows whose manifests are written within a second


@dataclass(frozen=True, slots=True)
class VerifySettings:
    """What `verify` can be told. ``sample`` is in percent; ``digest`` are further algorithms, computed and recorded."""

    manifest: str | None = None
    digest: tuple[str, ...] = ()
    sample: float | None = None
    quick: bool = False
    strict: bool = False
    one_way: bool = False
    adopt: bool = False
    records: str | None = None
    journal: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.sample is not None and not 0 < self.sample <= 100:
            raise UsageError(f"--sample is above 0 % and at most 100 %, not {self.sample}", code="SF-105")
        if self.workers is not None and not 1 <= self.workers <= 64:
            raise UsageError(f"--workers is 1 to 64, not {self.workers}", code="SF-105")
        if self.quick and (self.sample or self.digest):
            raise UsageError("--quick reads nothing: it goes neither with --sample nor with --digest", code="SF-105")
        if self.adopt and (self.manifest or self.sample or self.quick or self.one_way):
            say = "--adopt reads both sides in full: it goes with none of --manifest, --sample, --quick, --one-way"
            raise UsageError(say, code="SF-105")


def verify(
    dst: str | os.PathLike[str],
    src: str | os.PathLike[str] | None = None,
    *,
    manifest: str | os.PathLike[str] | None = None,
    digests: Sequence[str] = (),
    sample: float | str | None = None,
    quick: bool = False,
    strict: bool = False,
    one_way: bool = False,
    adopt: bool = False,
    records: str | os.PathLike[str] | None = None,
    journal: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    on_event: Callable[[Event], Any] | None = None,
    control: Control | None = None,
) -> Result:
    """Read a copy again from storage and compare it with its manifest, and with `src` if that is named.

    ``manifest``: a file that others wrote (plain or tagged sums, BagIt, rclone) instead of the copy's own record.
    ``digests``: further algorithms, computed from what is proved and recorded. ``sample``: percent of the files, those
    proved longest ago. ``quick``: compare sizes and times only. ``strict``: extra files are differences. ``one_way``:
    with `src`, files only in the copy are none. ``adopt``: make a record of a copy that has none, if it equals `src`.

    Raises UsageError for wrong usage, no manifest (SF-111), a manifest or record that cannot be (SF-110). Differences
    are in ``result.problems``; ``result.details["verdict"]`` says in words what was done.
    """
    settings = VerifySettings(
        manifest=None if manifest is None else os.fspath(manifest),
        digest=tuple(digests),
        sample=None if sample is None else percentage(str(sample)),
        quick=quick,
        strict=strict,
        one_way=one_way,
        adopt=adopt,
        records=None if records is None else os.fspath(records),
        journal=None if journal is None else os.fspath(journal),
        workers=workers,
    )
    job: Any
    if adopt:
        from scopeferry.jobs.adopt import AdoptJob

        if src is None:
            raise UsageError("--adopt needs the source to compare with: verify DST SRC --adopt", code="SF-100")
        job = AdoptJob(os.fspath(src), os.fspath(dst), settings, control)
    else:
        job = VerifyJob(os.fspath(dst), None if src is None else os.fspath(src), settings, control)
    return drive(job, on_event)


class VerifyJob(Job):
    """One run of `verify`. Iterate over `run`; then `result` holds what was found.

    Another job that holds the lock of this copy already says so with ``locked``; without ``compare`` the source is
    named but not read. ``expected`` stays open until `close`.
    """

    settings: VerifySettings

    def __init__(
        self,
        dst: str,
        src: str | None,
        settings: VerifySettings,
        control: Control | None = None,
        *,
        locked: bool = False,
        compare: bool = True,
    ) -> None:
        self.locked = locked
        self.digests = algorithms.check_names(settings.digest) if settings.digest else ()
        self.root, self.only = resolve_copy(dst)
        target = os.path.join(self.root, self.only) if self.only else self.root
        self.source: TreeSource | None = None
        self.source_name: str | None = None
        if src is not None:
            self.source, self.source_name = resolve_source(src, target, self.only)
        self.other = self.source if compare else None
        where = place.find(target, records=settings.records, journal=settings.journal)
        super().__init__("verify", new_run_id(), target, where, settings, control)
        self.result.destination = target
        if self.source is not None:
            self.result.source = os.path.join(self.source.root, self.source_name or "").rstrip(os.sep)
        self.expected: Expected | None = None
        self.journal: Journal | None = None
        self.record: record.Record | None = None
        self.headers: list[tuple[dict[str, Any], dict[str, Any]]] = []

    # -- the run -------------------------------------------------------------------------------------------------------

    def _do(self) -> Iterator[Event | None]:
        lock = None if self.locked else lock_if_possible(self.place, self.result.run)
        if lock is not None:
            self.held.callback(lock.release)
        expected = self._expect()
        yield Event("started", self.result.run, self.target, data={"source": self.result.source, "command": "verify"})
        check = self._check()
        if self.other is not None:
            yield from self._list_source(self.other, expected)
        if self.settings.sample is not None:
            expected.sample(self.settings.sample, self.journal.noted("proved") if self.journal is not None else ())
        known = bool(self.headers) or self.settings.manifest is not None or bool(manifest.of_folder(self.place.records))
        found = self._extras(expected, known=known)
        totals = expected.totals()
        items, size = totals.get(CHECK, (0, 0))
        self.result.items = sum(count for count, _ in totals.values())
        self.result.skipped = totals.get(LEFT_OUT, (0, 0))[0]
        yield Event("found", self.result.run, self.target, items, 0 if self.settings.quick else size, {"plan": True})
        yield from self._look(expected, check, found)
        if self.record is not None:
            if not self.control.stopped and set(self.digests) & expected.unwritten():
                self.record.begin()  # an earlier run was interrupted before it wrote them
            self._end_record(expected, self.record)

    # -- what is expected ----------------------------------------------------------------------------------------------

    def _expect(self) -> Expected:
        settings, records = self.settings, self.place.records
        if settings.manifest is not None:
            self.expected = of_manifest(settings.manifest, self.digests[0] if self.digests else None)
            self.held.callback(self.expected.close)
            return self.expected
        if not manifest.of_folder(records) and self.other is None:
            raise no_manifest(self.target, records)
        self.headers = list(record.headers(records))
        expected = self.expected = of_copy(records, named_manifests(self.headers), self.control)
        self.held.callback(expected.close)
        self._check_records(expected)
        if self.headers:
            self.journal = open_journal(self.place)
        if self.journal is not None:
            self.held.callback(self.journal.close)
        if self.digests and self.headers:
            working = expected.used_algorithms() or [algorithms.DEFAULT]
            facts = record.header("verify", self.result.run, None, self.target, [*working, *self.digests])
            with suppress(OSError):
                record.end_cut_off(records)
            self.record = record.Record(records, facts, noting(self.journal))
            self.held.callback(self.record.close)
        return expected

    def _check_records(self, expected: Expected) -> None:
        """The chain of generations, and the manifests as the last copy named them."""
        for problem in record.check_chain(self.place.records):
            self.result.add("SF-409", self.place.records, f"chain of records: {problem}")
        named = named_manifests(self.headers)
        for name, found in expected.hashes.items():
            wanted = named.get(name, found)
            if found != wanted:
                path = os.path.join(self.place.records, manifest.PREFIX + name)
                say = f"manifest is not the one that the record names: {printable(path)}"
                self.result.add("SF-409", path, f"{say}: expected sha256:{wanted}, found sha256:{found}")
        for path in map(os.fsdecode, expected.differing if named else ()):
            self.result.add("SF-409", path, f"manifest and record name different digests: {printable(path)}")

    def _check(self) -> Check:
        found = os.stat(self.root)
        disk = publish.disk(self.root)
        flushed_ns = 0
        if disk.flushes_whole and not self.settings.quick:
            with Folders(self.root) as folders, suppress(OSError):
                now = time.time_ns() - CLOCK_STEP_NS
                system.flush_all(folders.root)
                flushed_ns = now
        wanted = self.digests if self.settings.manifest is None else ()
        return Check(self.root, disk, (found.st_dev, found.st_ino), self.other, wanted, self.settings.quick,
                     self.settings.one_way, flushed_ns)  # fmt: skip

    def _list_source(self, source: TreeSource, expected: Expected) -> Iterator[Event | None]:
        if self.only is not None:
            name = os.fsencode(self.only)
            if expected.at(name) is None:
                expected.put([Item(name, os.fsencode(self.source_name or ""), FILE)])
            return
        rules = last_copy(self.headers)[0].get("select") or ()
        selection = Selection(tuple((str(kind), str(glob)) for kind, glob in rules))
        for path, reason in walk_source(source, expected, selection, self.control):
            self.result.add("SF-205", path, f"folder not listed at the source: {printable(path) or '.'}: {reason}")
            yield None

    # -- what is there -------------------------------------------------------------------------------------------------

    def _extras(self, expected: Expected, *, known: bool) -> set[bytes]:
        """Files that nobody expects; the folders that hold some."""
        if self.only is not None:
            return set()
        folders: set[bytes] = set()
        shown: list[str] = []
        for path in extras(self.root, expected, self._is_records, self.control, folders):
            if self.settings.manifest is not None and self._is_manifest(path):
                continue
            self.result.extras += 1
            if len(shown) < SHOWN_EXTRAS:
                shown.append(path)
            if self.other is not None and not known and not self.settings.one_way:
                self.result.add(TWO_WAY, path, f"only in the copy: {printable(path)}")
            elif self.settings.strict:
                self.result.add(EXTRA, path, f"not in the manifest: {printable(path)}")
        self.result.details["extras_listed"] = shown
        return folders

    def _is_records(self, path: str, found: os.stat_result) -> bool:
        if path == OURS:
            return True
        try:
            return os.path.samestat(found, os.stat(self.place.records))
        except OSError:
            return False

    def _is_manifest(self, path: str) -> bool:
        given = self.settings.manifest
        return given is not None and os.path.realpath(given) == os.path.join(self.root, path)

    def _look(self, expected: Expected, check: Check, with_extras: set[bytes]) -> Iterator[Event | None]:
        result = self.result
        ledger = CheckLedger(expected, check, result.run, self.journal, self.record, explained=with_extras.__contains__)
        line = Line(check_tasks(expected, check, self.control), ledger)
        for event in self.work([line], check.disk, *([check.source.disk] if check.source is not None else [])):
            if event is not None and "code" in event.data:
                result.add(event.data["code"], event.path, event.data["message"])
            yield event
        result.failed = ledger.counts["bad"]
        result.verified = 0 if self.settings.quick else ledger.counts["proved"]
        result.checked = ledger.counts["good"] + result.failed
        result.details["links_compared"] = ledger.counts["links"]
        result.bytes, result.read_back = ledger.bytes_read, dict(ledger.read_back)

    def _end_record(self, expected: Expected, rec: record.Record) -> None:
        if rec.begun:
            state = "complete" if self.result.exit_code == 0 and not self.control.stopped else "partial"
            rec.end(**end_line(self, state, expected, self.headers))
            self.result.record = rec.path

    # -- what is said --------------------------------------------------------------------------------------------------

    def _say(self) -> None:
        result = self.result
        manifests = manifest.of_folder(self.place.records)
        result.manifest = self.settings.manifest or next(iter(manifests.values()), "")
        if self.settings.manifest is None and manifests:
            with suppress(OSError):
                result.tree_digest = f"sha256:{record.sha256_of(result.manifest)}"
        result.record = result.record or (record.generations(self.place.records) or [""])[-1]
        result.details["verdict"] = self._verdict()
        if result.exit_code == 130:
            result.state = "interrupted"
        elif result.exit_code:
            result.state = "different" if result.exit_code in {4, 5} else "failed"
        else:
            result.state = "compared" if self.settings.quick else "sampled" if self.settings.sample else "verified"

    def _verdict(self) -> str:
        """What was done, in words: never "verified" for what was not read, and a sample says how large it was."""
        result, settings = self.result, self.settings
        if settings.quick:
            return f"compared {count(result.checked, 'entry')} by kind, size and time; nothing was read"
        links = result.details.get("links_compared", 0)
        files = count(result.verified) + (f", compared {count(links, 'link')}" if links else "")
        where = " and ".join(f"{count:,} from {kind}" for kind, count in sorted(result.read_back.items())) or "nothing"
        against = "the source" if not result.manifest else f"{printable(result.manifest)}"
        text = f"verified {files} against {against}; read back: {where}"
        if settings.sample is not None:
            text = (
                f"sampled {settings.sample:g} % of {result.items:,} files and links: verified {files} against {against}"
            )
            text += f"; read back: {where}"
        return text + (f"; {result.extras:,} extra" if result.extras else "")


# -- shared with `repair` and `clean` ----------------------------------------------------------------------------------


def resolve_copy(dst: str) -> tuple[str, str | None]:
    """(folder, name of the one file or None) of a copy; raises UsageError (SF-101, SF-112)."""
    try:
        found = os.stat(dst)
    except OSError as error:
        raise UsageError(f"the copy is not there: {printable(dst)}", code="SF-101", path=dst) from error
    real = os.path.realpath(dst)
    if stat.S_ISDIR(found.st_mode):
        return real, None
    if stat.S_ISREG(found.st_mode):
        return os.path.dirname(real), os.path.basename(real)
    raise UsageError(f"neither a folder nor a regular file: {printable(dst)}", code="SF-112", path=dst)


def resolve_source(src: str, target: str, only: str | None) -> tuple[TreeSource, str | None]:
    """The source and the name of its one file; raises UsageError (SF-101, SF-103, SF-104, SF-112)."""
    try:
        found = os.stat(src)
    except OSError as error:
        raise UsageError(f"source is not there: {printable(src)}", code="SF-101", path=src) from error
    real = os.path.realpath(src)
    if os.path.samestat(found, os.stat(target)):
        raise UsageError(f"source and copy are the same: {printable(src)}", code="SF-104", path=src)
    if stat.S_ISREG(found.st_mode) != (only is not None):
        raise UsageError(
            f"one is a folder, the other a file: {printable(src)}, {printable(target)}", code="SF-112", path=src
        )
    if (real + os.sep).startswith(target + os.sep) or (target + os.sep).startswith(real + os.sep):
        raise UsageError(f"source and copy lie in one another: {printable(src)}", code="SF-103", path=src)
    root = os.path.dirname(real) if only is not None else real
    there = os.stat(root)
    source = TreeSource(root, publish.disk(root), identity=(there.st_dev, there.st_ino))
    return source, os.path.basename(real) if only is not None else None


def no_manifest(target: str, records: str) -> UsageError:
    """What to say where nothing says what the copy must hold."""
    hint = f"scopeferry verify {printable(target)} SRC --adopt makes one"
    if record.generations(records):
        hint = "scopeferry transfer SRC DST, to the end, writes it"
    return UsageError(f"no manifest in {printable(records)}", code="SF-111", path=records, hint=hint)


def lock_if_possible(where: place.Place, run: str) -> place.Lock | None:
    """The lock of a copy that has a record folder; None where nothing can be written. Raises Temporary (SF-321) if it
    is held.
    """
    if not os.path.isdir(os.path.dirname(where.lock)):
        return None
    lock = place.Lock(where.lock, run)
    try:
        lock.acquire()
    except OSError:
        return None
    return lock


def open_journal(where: place.Place, *, make: bool = True) -> Journal | None:
    """The journal of a copy that has a record, made from it if it is not there; None if none can be had."""
    if not make and not os.path.exists(where.journal):
        return None
    try:
        place.make_private(os.path.dirname(where.journal))
        journal = Journal(where.journal)
    except (ScopeferryError, OSError):
        return None
    try:
        if journal.fresh or journal.rebuilt:
            record.fold(where.records, journal)
        else:
            record.catch_up(where.records, journal)
    except BaseException as error:
        journal.close()
        if getattr(error, "code", "") == "SF-304":  # it takes no more
            return None
        raise
    return journal


def named_manifests(headers: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, str]:
    """Algorithm -> SHA-256 of its manifest, as the last generation names them; empty if that one was cut off."""
    ends = [end for head, end in headers if head.get("job") != "clean"]
    found = ends[-1].get("manifest") if ends else None
    return {name: value for name, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def last_copy(headers: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(first line, end line) of the last generation that copied something or declared the source finished."""
    return next((one for one in reversed(headers) if one[0].get("job", "transfer") in COPIES), ({}, {}))


def write_manifests(records: str, expected: Expected) -> dict[str, str]:
    """Write the manifest of each algorithm that is used; their SHA-256."""
    hashes = {}
    for algorithm in expected.used_algorithms():
        path = os.path.join(records, manifest.PREFIX + algorithm)
        hashes[algorithm], _ = manifest.write(path, algorithm, expected.manifest(algorithm))
    return hashes


def end_line(
    job: Job, state: str, expected: Expected, headers: Sequence[tuple[dict[str, Any], dict[str, Any]]]
) -> dict[str, Any]:
    """Write the manifests; the last line of a generation that is no copy.

    How the source was finished is what the last copy said of it. After an interrupt manifests that would take longer
    than one who interrupts waits stay as they were: the next run writes them.
    """
    result = job.result
    late = job.control.stopped and expected.has_more_than(AT_ONCE)
    hashes = named_manifests(headers) if late else write_manifests(job.place.records, expected)
    finish = next((end["finish"] for _, end in reversed(headers) if isinstance(end.get("finish"), dict)), None)
    counts = ("items", "checked", "repaired", "verified", "failed")
    return {
        "state": state, "finish": finish, "exit_code": result.exit_code,
        "elapsed_s": round(time.monotonic() - job.started, 3), "bytes": result.bytes,
        "counts": {name: getattr(result, name) for name in counts},
        "tree_digest": f"sha256:{next(iter(hashes.values()))}" if hashes else "", "manifest": hashes,
    }  # fmt: skip


def noting(journal: Journal | None) -> Callable[[int], None]:
    """What a record calls when it begins: the journal knows this generation, and need not catch up with it."""

    def note(number: int) -> None:
        if journal is not None:
            with suppress(ScopeferryError):
                journal.set(generation=number)

    return note


__all__ = ["VerifyJob", "VerifySettings", "verify"]
