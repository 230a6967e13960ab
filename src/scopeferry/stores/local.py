"""A folder on a file system as a store: ``transfer.md`` 3.3, in the order of that page.

A batch goes through four steps: each file is read, hashed and written under a temporary name; all are flushed; each is read back
from storage and compared; each gets its name, and the folders are flushed. Batches of several workers run out of step. An item
that fails leaves the others alone; what may succeed at another try is put through the four steps again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from scopeferry.errors import Failed, ItemError, NoSpace, Refused, ScopeferryError, SourceChanged, Temporary
from scopeferry.kernel import publish
from scopeferry.kernel.digest import Digests
from scopeferry.kernel.publish import Disk, Folders, Mark, system
from scopeferry.kernel.task import Control, Failure
from scopeferry.logs import printable
from scopeferry.stores.store import Attributes, Entry, Prove, Reader, Upload

BLOCK = 1 << 20
SMALL_BYTES = (2 << 30) - 1  # every file system holds a file of this size
LARGE = 16 << 20  # a `.part` of a file at least this large is continued by the next run
TIME_STEPS_NS = {
    100: "100 ns", 1_000: "1 us", 1_000_000: "1 ms", 10_000_000: "10 ms", 1_000_000_000: "1 s", 2_000_000_000: "2 s",
}  # fmt: skip
CHANGED_WAITS_S = (0.1, 1.0, 5.0)  # between the tries at a source that moves
ZEROS = bytes(BLOCK)

MANY = 32
_local = threading.local()
_turns = threading.BoundedSemaphore(int(os.environ.get("TURNS", "2")))


class ProofError(ItemError):
    """What was read back is not what was written."""

    default = "SF-206"


class FlushError(ItemError):
    """A flush failed: the kernel has marked the pages clean, so the next flush would succeed. The whole batch is written again."""

    default = "SF-211"


class FullError(ItemError):
    """No room for this item, now."""

    default = "SF-313"


class GoneError(ItemError):
    """The destination does not answer, now."""

    default = "SF-323"


@dataclass(slots=True)
class _Part:
    """A file on its way through the four steps."""

    upload: Upload
    folder: str
    name: str
    fd: int = -1
    size: int = 0
    working: bytes = b""
    digests: dict[str, bytes] = field(default_factory=dict)
    source: Mark | None = None
    attributes: Attributes | None = None
    read_back: str = "no"
    lost: list[str] = field(default_factory=list)
    inode: int = 0


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A store in the folder `root`; picklable.

    ``digests``: the first is the working digest. ``holes``: leave holes as holes. ``flush_whole``: one flush for a batch is
    allowed (the source is finished, or lies on another file system). ``identity``: (device, inode) that the root must have.
    ``records``: where what is replaced is set aside. ``attempt``: 8 hex digits in the temporary names of this run.
    ``mtime_step_ns``: the step of its times. ``lacks``: kinds of ``--keep`` that the file system does not have.
    """

    root: str
    disk: Disk
    digests: tuple[str, ...] = ("xxh128",)
    holes: bool = True
    flush_whole: bool = True
    identity: tuple[int, int] | None = None
    records: str = ""
    attempt: str = "00000000"
    mtime_step_ns: int = 1
    lacks: frozenset[str] = frozenset()

    # -- Store -----------------------------------------------------------------------------------------------------------

    def put(self, uploads: Sequence[Upload], *, prove: Prove, control: Control) -> list[Entry | Failure]:
        """Publish each upload whole and proved, or not at all. See ``Store``."""
        answers: dict[int, Entry | Failure] = {}
        tries = dict.fromkeys(range(len(uploads)), 0)
        pending = list(tries)
        while pending:
            try:
                self.check_present(control)
                with Folders(self.root) as folders:
                    batch = _Batch(self, folders, prove, control)
                    found = batch.put([uploads[i] for i in pending])
            except ScopeferryError as error:  # stopped, or patience is over
                found = dict.fromkeys(range(len(pending)), error)
            except OSError as error:
                found = dict.fromkeys(range(len(pending)), self.translated(error, self.root))
            again, waits = [], 0.0
            for at, index in enumerate(pending):
                answer = found[at]
                tries[index] += 1
                if isinstance(answer, Entry):
                    answers[index] = _with_attempts(answer, tries[index])
                    control.done_waiting("room")
                    continue
                wait = _another_try(answer, tries[index])
                if wait is None or control.stopped:
                    answers[index] = Failure.of(uploads[index].key, answer, retryable=isinstance(answer, SourceChanged))
                else:
                    again.append(index)
                    waits = max(waits, wait)
            pending = again
            self._wait(
                control,
                [answer for answer in found.values() if isinstance(answer, ItemError)] if pending else [],
                waits,
            )
        return [answers[index] for index in range(len(uploads))]

    def open(self, key: str) -> Reader:
        """What is published under `key`, from storage. See ``Store``."""
        with Folders(self.root) as folders:
            return StoredFile.open(folders, key)

    def entry(self, key: str) -> Mark | None:
        """The mark of what is published under `key`, or None."""
        head, _, name = key.rpartition("/")
        try:
            with Folders(self.root) as folders:
                return publish.mark(system.lstat(folders.open(head), name), steady=self.disk.steady)
        except FileNotFoundError:
            return None

    def entries(self, prefix: str = "") -> Iterator[tuple[str, Mark]]:
        """All files and links below `prefix`."""
        stack = [prefix]
        with Folders(self.root) as folders:
            while stack:
                at = stack.pop()
                with system.scan(folders.open(at)) as found:
                    names = [(entry.name, entry.stat(follow_symlinks=False)) for entry in found]
                for name, entry in names:
                    key = f"{at}/{name}" if at else name
                    if stat.S_ISDIR(entry.st_mode):
                        stack.append(key)
                    elif publish.part_hash(name) is None:
                        yield key, publish.mark(entry, steady=self.disk.steady)

    def delete(self, key: str) -> None:
        """Remove `key`."""
        head, _, name = key.rpartition("/")
        with Folders(self.root) as folders, contextlib.suppress(FileNotFoundError):
            system.unlink(folders.open(head), name)

    # -- beyond the protocol: only a file system has these ------------------------------------------------------------------

    def set_right(self, folders: Folders, key: str, attributes: Attributes) -> tuple[Mark, tuple[str, ...]]:
        """Give a published file or folder these attributes where it has others; its mark afterwards, and what was lost."""
        head, _, name = key.rpartition("/")
        folder = folders.open(head)
        fd = system.open_source(folder, name)
        try:
            lost = apply_attributes(fd, attributes)
            entry = system.fstat(fd)
            lost += [kind for kind in lost_times(entry, attributes, self.mtime_step_ns) if kind not in lost]
            return publish.mark(entry, steady=self.disk.steady), tuple(lost)
        finally:
            os.close(fd)

    def link(self, folders: Folders, leader: str, key: str, expected: Mark | None) -> Mark:
        """Make `key` a hard link of the published file `leader`; raises Refused if something unexpected stands there."""
        from_head, _, from_name = leader.rpartition("/")
        head, _, name = key.rpartition("/")
        source, folder = folders.open(from_head), folders.open(head, make=True)
        wanted = system.lstat(source, from_name)
        if not stat.S_ISREG(wanted.st_mode):
            raise Refused(f"no longer a file at the destination: {leader}", code="SF-502", path=key)
        try:
            system.hard_link(source, from_name, folder, name)
        except FileExistsError:
            there = system.lstat(folder, name)
            if (there.st_dev, there.st_ino) != (wanted.st_dev, wanted.st_ino):
                if expected is None:
                    raise Refused(f"other content stands at the destination: {key}", code="SF-501", path=key) from None
                part = publish.part_name(os.fsencode(key), self.attempt)
                system.hard_link(source, from_name, folder, part)
                try:
                    publish.publish(folder, part, name, expected, key)
                except BaseException:
                    with contextlib.suppress(OSError):
                        system.unlink(folder, part)
                    raise
        system.flush_folder(folder)
        return publish.mark(system.lstat(folder, name), steady=self.disk.steady)

    # -- what can go wrong ---------------------------------------------------------------------------------------------------

    def present(self) -> bool:
        """Is the destination still the folder that the run began with?"""
        try:
            found = os.stat(self.root)
        except OSError:
            return False
        if self.identity is None or (found.st_dev, found.st_ino) == self.identity:
            return True
        if self.disk.steady:
            return False
        return publish.disk(self.root) == self.disk and (not self.records or os.path.exists(self.records))

    def check_present(self, control: Control) -> None:
        """Never write into a bare mount point: wait until the destination is back, then raise 75."""
        if not self.present():
            self._wait_for_root(control)

    def _wait_for_root(self, control: Control) -> None:
        error: ScopeferryError = Temporary(f"destination is gone: {self.root}", code="SF-323", path=self.root)
        if os.path.isdir(self.root) and self.disk.steady and publish.disk(self.root).point == self.disk.point:
            error = Failed(
                f"another folder stands where the destination was: {self.root}", code="SF-303", path=self.root
            )
        control.wait_for("destination", self.present, control.patience_gone_s, error)
        control.done_waiting("destination")

    def _wait(self, control: Control, errors: Sequence[ItemError], seconds: float) -> None:
        """Before another try: what was full or gone is waited for, what was changing gets its pause."""
        with contextlib.suppress(ScopeferryError):  # patience is over: the stop flag is set, and the next round says so
            if any(isinstance(error, GoneError) for error in errors):
                self._wait_for_root(control)
            elif any(isinstance(error, FullError) for error in errors):
                control.sleep(0.5)
                error = NoSpace(f"destination is full: {self.root}", code="SF-313", path=self.root)
                control.wait_for("room", self._has_room, control.patience_full_s, error)
            elif seconds:
                control.sleep(seconds)

    def _has_room(self) -> bool:
        try:
            with Folders(self.root) as folders:
                free, inodes = system.room(folders.root)
        except OSError:
            return False
        return free > BLOCK and inodes != 0

    def translated(self, error: OSError, path: str) -> ItemError:
        """An error of the destination, as one of ours."""
        shown = printable(path)
        code = error.errno or 0
        if code in system.NO_SPACE:
            return FullError(f"destination is full at {shown}", path=path)
        if code in system.GONE or not self.present():
            return GoneError(f"destination is gone at {shown}: {error.strerror}", path=path)
        if code in system.BAD_NAME:
            return ItemError(
                f"the destination cannot hold this name: {shown}: {error.strerror}", code="SF-207", path=path
            )
        if code == errno.EFBIG:
            return ItemError(f"larger than the destination's file system allows: {shown}", code="SF-209", path=path)
        if code == errno.EROFS:
            return ItemError(f"destination is read-only: {shown}", code="SF-301", path=path)
        if code in {errno.EACCES, errno.EPERM}:
            return ItemError(f"no permission to write {shown}", code="SF-212", path=path)
        return ItemError(f"write error at {shown}: {error.strerror or error}", code="SF-211", path=path)


def _another_try(error: ScopeferryError, tries: int) -> float | None:
    """Seconds to wait before the next try; None if there is to be none."""
    if isinstance(error, SourceChanged):
        return CHANGED_WAITS_S[tries - 1] if tries <= len(CHANGED_WAITS_S) else None
    if isinstance(error, FullError | GoneError):
        return 0.0
    if isinstance(error, ProofError | FlushError):
        return 0.0 if tries < 2 else None
    return None


def _with_attempts(entry: Entry, attempts: int) -> Entry:
    if attempts == 1:
        return entry
    return Entry(
        entry.key, entry.mark, entry.digests, entry.source, entry.read_back, attempts, entry.lost, entry.attributes
    )


def buffer() -> memoryview:
    """One block of memory for each thread."""
    found: memoryview | None = getattr(_local, "buffer", None)
    if found is None:
        found = _local.buffer = memoryview(bytearray(BLOCK))
    return found


def other_buffer() -> memoryview:
    """A second block, for reading two files side by side."""
    found: memoryview | None = getattr(_local, "other", None)
    if found is None:
        found = _local.other = memoryview(bytearray(BLOCK))
    return found


class _Batch:
    """One passage of some uploads through the four steps."""

    def __init__(self, store: LocalStore, folders: Folders, prove: Prove, control: Control) -> None:
        self.store, self.folders, self.prove, self.control = store, folders, prove, control
        self.found: dict[int, Entry | ScopeferryError] = {}

    def put(self, uploads: Sequence[Upload]) -> dict[int, Entry | ScopeferryError]:
        parts: dict[int, _Part] = {}
        turn = _turns if len(uploads) >= MANY and not self.store.disk.network else contextlib.nullcontext()
        try:
            with turn:
                for index, upload in enumerate(uploads):
                    try:
                        self.control.check()
                        parts[index] = self._write(upload)
                    except (ScopeferryError, OSError) as error:
                        self._note(index, upload.key, error)
            self._flush(parts)
            with turn:
                self._drop(parts)
                self._each(parts, self._prove)
                self._each(parts, self._publish)
            self._finish(parts)
        finally:
            for part in parts.values():
                self._discard(part)
        return self.found

    def _each(self, parts: dict[int, _Part], step: Any) -> None:
        for index, part in list(parts.items()):
            try:
                step(part)
            except (ScopeferryError, OSError) as error:
                self._note(index, part.upload.key, error)
                self._discard(parts.pop(index))

    def _note(self, index: int, key: str, error: ScopeferryError | OSError) -> None:
        """What goes wrong with one item stays with it."""
        self.found[index] = self.store.translated(error, key) if isinstance(error, OSError) else error

    # -- 1 to 4: read, hash, write -------------------------------------------------------------------------------------------

    def _write(self, upload: Upload) -> _Part:
        folder_path = upload.key.rpartition("/")[0]
        folder = self.folders.open(folder_path, make=True)
        part = _Part(upload, folder_path, publish.part_name(os.fsencode(upload.key), self.store.attempt))
        try:
            if upload.target is not None:
                self._writable(folder, lambda: system.make_link(upload.target or "", folder, part.name), part.name)
                part.attributes = upload.attributes
                if upload.attributes and upload.attributes.mtime_ns is not None:
                    system.set_link_time(folder, part.name, upload.attributes.mtime_ns)
                return part
            assert upload.open is not None
            with upload.open() as reader:
                have = self._begin(folder, part, reader)
                self._pour(reader, part, have)
                part.source = reader.check()
                part.attributes = reader.attributes()
            part.lost = apply_attributes(part.fd, part.attributes)
        except BaseException:
            keep = self.control.stopped and part.size >= LARGE
            self._discard(part, keep=keep)
            raise
        return part

    def _begin(self, folder: Any, part: _Part, reader: Reader) -> int:
        """Open the temporary file; how many bytes an earlier attempt may have left in it."""
        part.size = reader.size
        if reader.size >= LARGE:
            left = self._leftovers(folder, part.name, keep=not reader.sparse)
            if left is not None:
                part.name = left
                part.fd = system.open_part(folder, left)
                entry = system.fstat(part.fd)
                if _is_plain(entry):
                    if entry.st_size > reader.size:
                        system.set_size(part.fd, reader.size)
                    return min(entry.st_size, reader.size)
                raise Refused(f"not a temporary file of ours: {left}", code="SF-502", path=part.upload.key)
        part.fd = self._writable(folder, lambda: system.create_part(folder, part.name), part.name)
        if reader.size > SMALL_BYTES and not system.fits(part.fd, reader.size):
            message = f"larger than the destination's file system allows: {printable(part.upload.key)}"
            raise ItemError(message, code="SF-209", path=part.upload.key)
        return 0

    def _leftovers(self, folder: Any, name: str, *, keep: bool) -> str | None:
        """The largest part that an earlier attempt at this path left, if one is to be kept; the others are removed.

        A link, a folder or a file with several names is nobody's part, whatever it is called: it is left alone.
        """
        wanted = publish.part_hash(name)
        with system.scan(folder) as found:
            names = [entry.name for entry in found if publish.part_hash(entry.name) == wanted]
        facts = [(entry.st_size, one) for one in names if _is_plain(entry := system.lstat(folder, one))]
        facts.sort()
        kept = facts.pop()[1] if keep and facts else None
        for _, one in facts:
            system.unlink(folder, one)
        return kept

    def _writable(self, folder: Any, make: Any, name: str) -> Any:
        """Make a temporary name; a read-only folder of ours is opened up, a name left by a killed run is removed."""
        try:
            return make()
        except FileExistsError:
            system.unlink(folder, name)
        except PermissionError:
            system.open_up(folder)
        return make()

    def _pour(self, reader: Reader, part: _Part, have: int) -> None:
        """Read the source once, hash all of it, write what the part does not have yet."""
        digests = Digests(self.store.digests)
        block, size, at, written = buffer(), reader.size, 0, 0
        ranges = reader.ranges() if self.store.holes else iter([(0, size)])
        for start, end in ranges:
            _hash_zeros(digests, start - at)
            at = start
            while at < end:
                got = reader.read_into(block[: min(BLOCK, end - at)], at)
                if got == 0:
                    break
                data = block[:got]
                digests.update(data)
                if have > at and self._same(part.fd, data, at, have):
                    pass
                else:
                    have = 0
                    system.write_at(part.fd, data, at)
                    written = at + got
                at += got
                self.control.add(copied=got)
                if at < size:
                    self.control.check()
            if at < end:
                break
        if at < size and not (self.store.holes and reader.sparse):
            raise SourceChanged(f"became shorter while it was read: {printable(part.upload.key)}", path=part.upload.key)
        _hash_zeros(digests, size - at)
        if written != size:
            system.set_size(part.fd, size)
        part.digests = digests.result()
        part.working = part.digests[self.store.digests[0]]

    def _same(self, fd: int, data: memoryview, at: int, have: int) -> bool:
        other = other_buffer()[: len(data)]
        return at + len(data) <= have and system.read_into(fd, other, at) == len(data) and other == data

    # -- 5: flush --------------------------------------------------------------------------------------------------------------

    def _flush(self, parts: dict[int, _Part]) -> None:
        files = [part for part in parts.values() if part.fd >= 0]
        if not files:
            return
        whole = self.store.disk.flushes_whole and self.store.flush_whole and len(files) > 1
        try:
            if whole:
                system.flush_all(files[0].fd)
            else:
                for part in files:
                    system.flush(part.fd)
        except OSError as error:
            full = (error.errno or 0) in system.NO_SPACE
            for index, part in list(parts.items()):
                path = part.upload.key
                problem = self.store.translated(error, path) if full else FlushError(
                    f"flush failed at {printable(path)}: {error.strerror}", path=path)  # fmt: skip
                self.found[index] = problem
                self._discard(parts.pop(index))
            return
        if self.store.disk.reopens:
            self._each(parts, self._reopen)

    def _reopen(self, part: _Part) -> None:
        if part.fd >= 0:
            os.close(part.fd)
            part.fd = -1
            part.fd = system.open_part(self.folders.open(part.folder), part.name)
            if system.fstat(part.fd).st_size != part.size:
                raise ProofError(f"arrived with another length: {printable(part.upload.key)}", path=part.upload.key)

    # -- 6: read back ----------------------------------------------------------------------------------------------------------

    def _drop(self, parts: dict[int, _Part]) -> None:
        """Ask for all cached pages to be dropped, look at one file whether they are gone, then have all of them fetched at once."""
        files = [part for part in parts.values() if part.fd >= 0 and self.prove.wants(os.fsencode(part.upload.key))]
        for part in files:
            system.drop(part.fd)
            part.read_back = self.store.disk.read_back
        looked_at = next((part for part in files if part.size > 0), None)
        if looked_at is not None and self.store.disk.read_back == "storage" and system.is_cached(looked_at.fd):
            for part in files:
                part.read_back = "memory"
        for part in files:
            system.fetch(part.fd, part.size)

    def _prove(self, part: _Part) -> None:
        if part.read_back == "no":
            return
        found = hash_file(part.fd, self.store.digests[0], part.size, self.control)
        if found != part.working:
            path = part.upload.key
            raise ProofError(f"what was read back differs from what was written: {printable(path)}", path=path)

    # -- 7: the name -----------------------------------------------------------------------------------------------------------

    def _publish(self, part: _Part) -> None:
        upload = part.upload
        if upload.settled is not None and part.source is not None:
            upload.settled(part.source)
        folder = self.folders.open(part.folder)
        name = upload.key.rpartition("/")[2]
        if upload.named is not None:
            name = upload.named(part.working)
        expected = upload.expected
        if upload.set_aside is not None and expected is not None:
            set_aside(folder, name, self.store.records, upload.set_aside, upload.key)
            now = publish.mark(system.lstat(folder, name), steady=expected.inode != 0)
            if now[:3] == expected[:3]:
                expected = now  # the link to what is set aside changed its ctime
        publish.publish(folder, part.name, name, expected, upload.key)
        part.name = name
        if part.fd < 0:
            part.inode = system.lstat(folder, name).st_ino

    def _finish(self, parts: dict[int, _Part]) -> None:
        """Flush each folder once; then the marks, for renaming changed them."""
        flushed: dict[str, ScopeferryError | None] = {}
        for index, part in parts.items():
            if part.folder not in flushed:
                flushed[part.folder] = None
                try:
                    system.flush_folder(self.folders.open(part.folder))
                except OSError as error:
                    text = f"flush of a folder failed at {printable(part.folder or '.')}: {error.strerror}"
                    flushed[part.folder] = ItemError(text, code="SF-211", path=part.folder)
            problem = flushed[part.folder]
            if problem is not None:
                self.found[index] = problem
                continue
            try:
                self.found[index] = self._entry(part)
            except OSError as error:
                self._note(index, part.upload.key, error)
            part.name = ""

    def _entry(self, part: _Part) -> Entry:
        entry = system.fstat(part.fd) if part.fd >= 0 else system.lstat(self.folders.open(part.folder), part.name)
        key = f"{part.folder}/{part.name}" if part.folder else part.name
        lost = part.lost
        if part.fd >= 0 and part.attributes is not None:
            lost = [
                *lost,
                *(kind for kind in lost_times(entry, part.attributes, self.store.mtime_step_ns) if kind not in lost),
            ]
        mark = publish.mark(entry, steady=self.store.disk.steady)
        return Entry(key, mark, part.digests, part.source, part.read_back, 1, tuple(lost), part.attributes)

    def _discard(self, part: _Part, *, keep: bool = False) -> None:
        """Close the part, and remove what has no final name."""
        if part.fd >= 0:
            os.close(part.fd)
            part.fd = -1
        if not keep and publish.part_hash(part.name) is not None:
            with contextlib.suppress(OSError, ScopeferryError):
                system.unlink(self.folders.open(part.folder), part.name)


def _is_plain(entry: os.stat_result) -> bool:
    return stat.S_ISREG(entry.st_mode) and entry.st_nlink == 1


def _hash_zeros(digests: Digests, count: int) -> None:
    while count > 0:
        digests.update(ZEROS[: min(BLOCK, count)] if count < BLOCK else ZEROS)
        count -= BLOCK


def hash_file(fd: int, algorithm: str, size: int, control: Control) -> bytes | None:
    """The digest of an open file, read in blocks; None if it has another length."""
    digests = Digests((algorithm,))
    block, at = buffer(), 0
    while at <= size:  # one byte more is asked for than should be there
        got = system.read_into(fd, block[: min(BLOCK, size - at + 1)], at)
        if got == 0:
            break
        digests.update(block[:got])
        at += got
        control.add(verified=got)
        if at < size:
            control.check()
        elif got < BLOCK:
            break
    return digests.result()[algorithm] if at == size else None


def apply_attributes(fd: int, wanted: Attributes) -> list[str]:
    """Owner, xattrs, mode, times, in this order (a 0444 file takes no xattr from its owner); the kinds that could not be set."""
    lost = []
    now = system.fstat(fd)
    if wanted.owner is not None and wanted.owner != (now.st_uid, now.st_gid):
        try:
            system.set_owner(fd, *wanted.owner)
        except OSError:
            lost.append("owner")
    if wanted.xattrs:
        have = system.xattrs(fd) if now.st_size or now.st_nlink else {}
        for name, value in wanted.xattrs.items():
            if have.get(name) == value:
                continue
            try:
                system.set_xattr(fd, name, value)
            except OSError:
                lost.append("acl" if name.startswith("system.posix_acl") else "xattrs")
    mode = wanted.mode if wanted.mode is not None and wanted.mode != now.st_mode & 0o7777 else None
    mtime_ns = wanted.mtime_ns if wanted.mtime_ns != now.st_mtime_ns else None
    try:
        system.set_attributes(fd, mode, mtime_ns, now.st_atime_ns)
    except OSError:
        lost.append("mode" if mode is not None else "times")
    return lost


def lost_times(found: os.stat_result, wanted: Attributes, step_ns: int = 1) -> Iterator[str]:
    """The kinds that a file does not have now, though they were set: the file system cannot hold them.

    `step_ns` is the step of its times, as far as it is known.
    """
    if wanted.mtime_ns is not None and found.st_mtime_ns != wanted.mtime_ns:
        yield time_loss(found.st_mtime_ns, wanted.mtime_ns, step_ns)
    if wanted.mode is not None and found.st_mode & 0o7777 != wanted.mode:
        yield "mode"


def time_loss(found_ns: int, wanted_ns: int, step_ns: int = 1) -> str:
    """What was lost of a modification time: the digits below a step, or all of it.

    >>> time_loss(1_000_000_000_000, 1_001_900_000_000), time_loss(1_900, 1_999), time_loss(0, 3 << 40)
    ('mtime below 2 s', 'mtime below 100 ns', 'times')
    """
    off = abs(found_ns - wanted_ns)
    for step, shown in TIME_STEPS_NS.items():
        if step >= step_ns and off < step and found_ns % step == 0:
            return f"mtime below {shown}"
    return "times"


def set_aside(folder: Any, name: str, records: str, below: str, key: str) -> None:
    """Keep what stands under `name` in the record folder: by a hard link, else by a copy."""
    head = f"{below}/{key}".rpartition("/")[0]
    with Folders(records) as keep:
        target = keep.open(head, make=True)
        kept = name
        for number in range(1000):
            kept = name if number == 0 else f"{name[:200]}.{number}"
            try:
                system.hard_link(folder, name, target, kept)
            except FileExistsError:
                continue
            except OSError:  # another file system, or one without hard links
                _copy_aside(folder, name, target, kept)
            break
        system.flush_folder(target)


def _copy_aside(folder: Any, name: str, target: Any, kept: str) -> None:
    source = system.open_source(folder, name)
    try:
        copy = system.create_part(target, kept)
        try:
            at, block = 0, buffer()
            while got := system.read_into(source, block, at):
                system.write_at(copy, block[:got], at)
                at += got
            system.flush(copy)
        finally:
            os.close(copy)
    finally:
        os.close(source)


class StoredFile:
    """A published file, read from storage: flushed if somebody wrote it just now, its cached pages dropped first."""

    def __init__(self, fd: int, key: str) -> None:
        self.fd, self.key = fd, key
        self.stat = system.fstat(fd)
        self.size = self.stat.st_size
        self.memory = False

    @classmethod
    def open(cls, folders: Folders, key: str) -> StoredFile:
        """Open `key`, never through a link. Raises FileNotFoundError, Refused (SF-502) if it is no regular file."""
        head, _, name = key.rpartition("/")
        try:
            fd = system.open_source(folders.open(head), name)
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.EMLINK}:
                raise Refused(
                    f"a link stands where a file should be: {printable(key)}", code="SF-502", path=key
                ) from error
            raise
        file = cls(fd, key)
        if not stat.S_ISREG(file.stat.st_mode):
            file.close()
            raise Refused(f"no regular file: {printable(key)}", code="SF-502", path=key)
        return file

    def __enter__(self) -> StoredFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; twice is harmless."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def sparse(self) -> bool:
        """Has it holes?"""
        return bool(self.stat.st_blocks * 512 < self.size)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """(start, end) of what holds data."""
        return system.data_ranges(self.fd, self.size, self.stat.st_blocks)

    def read_into(self, block: Any, offset: int) -> int:
        """Read at an offset; 0 at the end."""
        return system.read_into(self.fd, block, offset)

    def attributes(self) -> Attributes:
        """Mode, time and xattrs as they are."""
        return Attributes(
            self.stat.st_mode & 0o7777,
            self.stat.st_mtime_ns,
            (self.stat.st_uid, self.stat.st_gid),
            system.xattrs(self.fd),
        )

    def check(self) -> Mark:
        """The mark, if nobody wrote the file since it was opened; raises SourceChanged."""
        now = system.fstat(self.fd)
        if (now.st_size, now.st_mtime_ns, now.st_ctime_ns) != (self.size, self.stat.st_mtime_ns, self.stat.st_ctime_ns):
            raise SourceChanged(f"changed while it was read: {printable(self.key)}", path=self.key)
        return publish.mark(now)

    def digest(
        self, algorithms: Sequence[str], control: Control, *, flushed: bool = False, look: bool = True
    ) -> dict[str, bytes]:
        """The digests of all bytes, from storage.

        `flushed`: it was, with its whole file system, and has not changed since. `look`: is it still cached? Then ``memory``
        says so; without, another file of the same folder was looked at.
        """
        if not flushed:
            self._flush()
        system.drop(self.fd)
        if look and self.size:
            self.memory = system.is_cached(self.fd)
            if flushed and self.memory:
                self._flush()
                system.drop(self.fd)
                self.memory = system.is_cached(self.fd)
        digests = Digests(algorithms)
        block, at = buffer(), 0
        while at < self.size and (got := self.read_into(block, at)):
            digests.update(block[:got])
            at += got
            control.add(verified=got)
            control.check()
        return digests.result()

    def _flush(self) -> None:
        with contextlib.suppress(OSError):  # a read-only file system has nothing to flush
            system.flush(self.fd)
