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
from scopeferry.copying import listing as states
from scopeferry.copying import manifest, place, record
from scopeferry.copying.listing import Expected, Listing, of_copy, of_manifest
from scopeferry.copying.verify import EXTRA, TWO_WAY, Check, CheckLedger, check_tasks, extras, walk_source
from scopeferry.errors import Failed, ScopeferryError, UsageError
from scopeferry.jobs.registered import registers
from scopeferry.jobs.result import Result
from scopeferry.kernel import digest as algorithms
from scopeferry.kernel import publish
from scopeferry.kernel.events import Event
from scopeferry.kernel.journal import FILE, Journal
from scopeferry.kernel.publish import Folders, system
from scopeferry.kernel.run import BATCH_ITEMS, Line, run
from scopeferry.kernel.task import Control
from scopeferry.logs import new_run_id, printable
from scopeferry.reports.units import count
from scopeferry.sources.tree import OURS, Selection, TreeSource

SHOWN_EXTRAS = 1000
CLOCK_STEP_NS = 2_000_000_000  # file times may be this far behind the clock
WORKERS, WORKERS_NETWORK = 4, 16


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


def drive(job: Any, on_event: Callable[[Event], Any] | None) -> Result:
    """Let a job run to its end, and pass its events on."""
    for event in job.run():
        if event is not None and on_event is not None:
            on_event(event)
    result: Result = job.result
    return result


class VerifyJob:
    """One run of `verify`. Iterate over `run`; then `result` holds what was found.

    Another job that holds the lock of this copy already says so with ``locked``; without ``compare`` the source is
    named but not read. ``listing`` stays open until `close`.
    """

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
        self.settings, self.locked = settings, locked
        self.control = control or Control()
        self.digests = algorithms.check_names(settings.digest) if settings.digest else ()
        self.started = time.monotonic()
        self.root, self.only = resolve_copy(dst)
        self.target = os.path.join(self.root, self.only) if self.only else self.root
        self.source: TreeSource | None = None
        self.source_name: str | None = None
        if src is not None:
            self.source, self.source_name = resolve_source(src, self.target, self.only)
        self.other = self.source if compare else None
        self.place = place.find(self.target, records=settings.records, journal=settings.journal)
        self.result = Result("verify", run=new_run_id(), destination=self.target)
        if self.source is not None:
            self.result.source = os.path.join(self.source.root, self.source_name or "").rstrip(os.sep)
        self.listing: Listing | None = None
        self.journal: Journal | None = None
        self.record: record.Record | None = None
        self.lock: place.Lock | None = None
        self.headers: list[tuple[dict[str, Any], dict[str, Any]]] = []

    # -- the run -------------------------------------------------------------------------------------------------------

    @registers
    def run(self) -> Iterator[Event | None]:
        """Do it; yields events, and None as a tick."""
        try:
            yield from self.opened()
        finally:
            self.close()
        yield Event("finished", self.result.run, self.target, data={"exit_code": self.result.exit_code})

    def opened(self) -> Iterator[Event | None]:
        """As `run`; the listing stays open."""
        try:
            yield from self._checked()
        except UsageError:
            raise
        except ScopeferryError as error:
            self._add(error)
        except OSError as error:
            self._add(
                Failed(
                    f"{error.strerror or error}: {printable(error.filename or self.target)}",
                    code="SF-305",
                    path=self.target,
                )
            )
        if self.control.reason is not None:
            self._add(self.control.reason)
        self._say()

    def _checked(self) -> Iterator[Event | None]:
        if not self.locked:
            self.lock = lock_if_possible(self.place, self.result.run)
        self.listing = self._expected()
        yield Event("started", self.result.run, self.target, data={"source": self.result.source, "command": "verify"})
        check = self._check()
        if self.other is not None:
            yield from self._list_source()
        self._sample()
        known = bool(self.headers) or self.settings.manifest is not None or bool(manifest.of_folder(self.place.records))
        found = self._extras(known=known)
        totals = self.listing.totals()
        items, size = totals.get(states.CHECK, (0, 0))
        self.result.items = sum(count for count, _ in totals.values())
        self.result.skipped = totals.get(states.LEFT_OUT, (0, 0))[0]
        yield Event("found", self.result.run, self.target, items, 0 if self.settings.quick else size, {"plan": True})
        yield from self._look(check, found)

    def close(self) -> None:
        """Close everything; twice is harmless."""
        for one in (self.record, self.journal, self.listing):
            if one is not None:
                one.close()
        if self.lock is not None:
            self.lock.release()

    # -- what is expected ----------------------------------------------------------------------------------------------

    def _expected(self) -> Listing:
        settings, records = self.settings, self.place.records
        if settings.manifest is not None:
            return of_manifest(settings.manifest, self.digests[0] if self.digests else None)
        if not manifest.of_folder(records) and self.other is None:
            raise no_manifest(self.target, records)
        self.headers = list(record.headers(records))
        expected = of_copy(records, named_manifests(self.headers))
        try:
            self._check_records(expected)
            if self.headers:
                self.journal = open_journal(self.place)
            if self.digests and self.headers:
                self._begin_record(expected.listing)
        except BaseException:
            expected.listing.close()
            raise
        return expected.listing

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

    def _begin_record(self, listing: Listing) -> None:
        working = listing.algorithms() or [algorithms.DEFAULT]
        facts = record.header("verify", self.result.run, None, self.target, [*working, *self.digests])
        with suppress(OSError):
            record.end_cut_off(self.place.records)
        self.record = record.Record(self.place.records, facts, noting(self.journal))

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

    def _list_source(self) -> Iterator[Event | None]:
        assert self.other is not None
        assert self.listing is not None
        if self.only is not None:
            self._list_one()
            return
        head: dict[str, Any] = next(
            (head for head, _ in reversed(self.headers) if head.get("job", "transfer") == "transfer"), {}
        )
        rules = head.get("select") or ()
        selection = Selection(tuple((str(kind), str(glob)) for kind, glob in rules))
        self.listing.begin()
        for path, reason in walk_source(self.other, self.listing, selection, self.control):
            self.result.add("SF-205", path, f"folder not listed at the source: {printable(path) or '.'}: {reason}")
            yield None
        self.listing.commit()

    def _list_one(self) -> None:
        assert self.listing is not None
        if self.listing.get(os.fsencode(self.only or "")) is None:
            name, source = os.fsencode(self.only or ""), os.fsencode(self.source_name or "")
            self.listing.add_source([states.Item(b"", name, FILE, source=source if source != name else None)])

    def _sample(self) -> None:
        if self.settings.sample is None or self.listing is None:
            return
        self.listing.begin()
        self.listing.sample(self.settings.sample, self.journal.noted("proved") if self.journal is not None else ())
        self.listing.commit()

    # -- what is there -------------------------------------------------------------------------------------------------

    def _extras(self, *, known: bool) -> set[bytes]:
        """Files that nobody expects; the folders that hold some."""
        assert self.listing is not None
        if self.only is not None:
            return set()
        folders: set[bytes] = set()
        shown: list[str] = []
        for path in extras(self.root, self.listing, self._is_records, self.control, folders):
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

    def _look(self, check: Check, with_extras: set[bytes]) -> Iterator[Event | None]:
        from concurrent.futures import ThreadPoolExecutor

        assert self.listing is not None
        ledger = CheckLedger(
            self.listing, check, self.result.run, self.journal, self.record, explained=with_extras.__contains__
        )
        network = check.disk.network or (check.source is not None and check.source.disk.network)
        workers = self.settings.workers or (WORKERS_NETWORK if network else WORKERS)
        items = publish.batch_items(workers, BATCH_ITEMS)
        with ThreadPoolExecutor(workers, thread_name_prefix="scopeferry") as executor:
            tasks = check_tasks(self.listing, check, self.control, states.CHECK)
            for event in run([Line(tasks, ledger)], executor, slots=workers, control=self.control, batch_items=items):
                if event is not None and event.kind == "failed":
                    self.result.add(event.data["code"], event.path, event.data["message"])
                yield event
        self.result.failed = ledger.counts.get("bad", 0)
        self.result.verified = 0 if self.settings.quick else ledger.counts.get("proved", 0)
        self.result.checked = ledger.counts.get("good", 0) + self.result.failed
        self.result.details["links_compared"] = ledger.counts.get("links", 0)
        self.result.bytes, self.result.read_back = ledger.bytes_read, ledger.read_back
        if self.record is not None and self.record.begun:
            self._end_record()

    def _end_record(self) -> None:
        assert self.record is not None
        assert self.listing is not None
        hashes = write_manifests(self.place.records, self.listing)
        state = "complete" if self.result.exit_code == 0 and not self.control.stopped else "partial"
        self.record.end(**end_line(self.result, state, hashes, self.headers, self.started))
        self.result.record = self.record.path

    # -- what is said --------------------------------------------------------------------------------------------------

    def _say(self) -> None:
        result = self.result
        result.elapsed_s = time.monotonic() - self.started
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

    def _add(self, error: ScopeferryError) -> None:
        if not any((problem.code, problem.message) == (error.code, str(error)) for problem in self.result.problems):
            self.result.add(error.code, error.path, str(error), error.hint)


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
    except BaseException:
        journal.close()
        raise
    return journal


def named_manifests(headers: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, str]:
    """Algorithm -> SHA-256 of its manifest, as the last generation names them; empty if that one was cut off."""
    ends = [end for head, end in headers if head.get("job") != "clean"]
    found = ends[-1].get("manifest") if ends else None
    return {name: value for name, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def write_manifests(records: str, listing: Listing) -> dict[str, str]:
    """Write the manifest of each algorithm that is used; their SHA-256."""
    hashes = {}
    for algorithm in listing.algorithms():
        path = os.path.join(records, manifest.PREFIX + algorithm)
        hashes[algorithm], _ = manifest.write(path, algorithm, listing.manifest(algorithm))
    return hashes


def end_line(
    result: Result,
    state: str,
    hashes: dict[str, str],
    headers: Sequence[tuple[dict[str, Any], dict[str, Any]]],
    started: float,
) -> dict[str, Any]:
    """The last line of a generation that is no copy. How the source was finished is what the last copy said of it."""
    finish = next((end["finish"] for _, end in reversed(headers) if isinstance(end.get("finish"), dict)), None)
    digest = f"sha256:{next(iter(hashes.values()))}" if hashes else ""
    return {
        "state": state, "finish": finish, "exit_code": result.exit_code,
        "elapsed_s": round(time.monotonic() - started, 3),
        "bytes": result.bytes, "counts": {"items": result.items, "checked": result.checked, "repaired": result.repaired,
                                          "verified": result.verified, "failed": result.failed},
        "tree_digest": digest, "manifest": hashes,
    }  # fmt: skip


def noting(journal: Journal | None) -> Callable[[int], None]:
    """What a record calls when it begins: the journal knows this generation, and need not catch up with it."""

    def note(number: int) -> None:
        if journal is not None:
            with suppress(ScopeferryError):
                journal.set(generation=number)

    return note


__all__ = ["VerifyJob", "VerifySettings", "verify"]
