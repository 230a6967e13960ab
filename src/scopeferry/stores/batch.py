"""One passage of some uploads through the four steps of ``transfer.md`` 3.3, in the order of that page.

Each file is read, hashed and written under a temporary name; all are flushed; each is read back from storage and
compared; each gets its name, and the folders are flushed. An item that fails leaves the others alone. Batches of
several workers run out of step.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scopeferry.errors import ItemError, Refused, ScopeferryError, SourceChanged
from scopeferry.kernel import publish
from scopeferry.kernel.digest import Digests
from scopeferry.kernel.publish import LARGE, Folders, Mark, system
from scopeferry.kernel.task import Control
from scopeferry.logs import printable
from scopeferry.stores.files import (
    BLOCK,
    apply_attributes,
    apply_to_link,
    buffer,
    give_attributes,
    hash_file,
    lost_times,
    other_buffer,
    set_aside,
)
from scopeferry.stores.store import (
    Attributes,
    Entry,
    FlushError,
    GoneError,
    MountError,
    ProofError,
    Prove,
    Reader,
    SourceGoneError,
    Upload,
)

if TYPE_CHECKING:
    from scopeferry.stores.local import LocalStore

SMALL_BYTES = (2 << 30) - 1  # every file system holds a file of this size
ZEROS = bytes(BLOCK)
#: Two threads that create files in one folder take twice the CPU time and no less wall time (measured): one at a time.
_CREATING = tuple(threading.Lock() for _ in range(64))


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
    aside: str = ""


class Batch:
    """One passage of some uploads through the four steps."""

    def __init__(self, store: LocalStore, folders: Folders, prove: Prove, control: Control) -> None:
        self.store, self.folders, self.prove, self.control = store, folders, prove, control
        self.found: dict[int, Entry | ScopeferryError] = {}
        self.near = not store.disk.network
        self.gone: ItemError | None = None  # a side that does not answer is asked no more: each question takes its time

    def put(self, uploads: Sequence[Upload]) -> dict[int, Entry | ScopeferryError]:
        """What became of each upload, by its place in the sequence."""
        parts: dict[int, _Part] = {}
        try:
            for index, upload in enumerate(uploads):
                try:
                    self.control.check()
                    if self.gone is not None:
                        raise self.gone
                    parts[index] = self._write(upload)
                except (ScopeferryError, OSError) as error:
                    self._note(index, upload.key, error)
            self._flush(parts)
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
                if self.gone is not None:
                    raise self.gone
                step(part)
            except (ScopeferryError, OSError) as error:
                self._note(index, part.upload.key, error)
                self._discard(parts.pop(index))

    def _note(self, index: int, key: str, error: ScopeferryError | OSError) -> None:
        """What goes wrong with one item stays with it."""
        item = self.store.translated(error, key) if isinstance(error, OSError) else error
        if isinstance(item, GoneError | SourceGoneError):
            self.gone = item
        self.found[index] = item

    # -- 1 to 4: read, hash, write -------------------------------------------------------------------------------------

    def _write(self, upload: Upload) -> _Part:
        folder_path = upload.key.rpartition("/")[0]
        folder = self.folders.open(folder_path, make=True)
        part = _Part(upload, folder_path, publish.part_name(os.fsencode(upload.key), self.store.attempt))
        try:
            if upload.target is not None:
                self._writable(folder, lambda: system.make_link(upload.target or "", folder, part.name), part)
                part.attributes = upload.attributes
                if upload.attributes is not None:
                    part.lost = apply_to_link(folder, part.name, upload.attributes, self.store.disk)
                return part
            assert upload.open is not None
            with upload.open() as reader:
                have = self._begin(folder, part, reader)
                self._pour(reader, part, have)
                part.source = reader.check()
                part.attributes = reader.attributes().under(upload.attributes)
                if reader.sparse and self.store.holes and self.store.disk.in_order:
                    part.lost.append("holes")
            part.lost += give_attributes(part.fd, part.attributes, near=self.near)
            if self.store.disk.reopens:  # what is closed is sent; one that is open may be a connection of its own
                self._send(part)
        except BaseException:
            keep = self.control.stopped and part.size >= LARGE
            self._discard(part, keep=keep)
            raise
        return part

    def _begin(self, folder: Any, part: _Part, reader: Reader) -> int:
        """Open the temporary file; how many bytes an earlier attempt may have left in it."""
        part.size = reader.size
        if reader.size >= LARGE:
            left = self._leftovers(folder, part.name, keep=not (reader.sparse or self.store.disk.in_order))
            if left is not None:
                part.name = left
                part.fd = system.open_part(folder, left)
                entry = system.fstat(part.fd)
                if _is_plain(entry):
                    if entry.st_size > reader.size:
                        system.set_size(part.fd, reader.size)
                    return min(entry.st_size, reader.size)
                raise Refused(f"not a temporary file of ours: {left}", code="SF-502", path=part.upload.key)
        part.fd = self._writable(folder, lambda: system.create_part(folder, part.name), part)
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

    def _writable(self, folder: Any, make: Any, part: _Part) -> Any:
        """Make a temporary name; a read-only folder of ours is opened up, a name left by a killed run is removed."""
        with _CREATING[hash(part.folder) % len(_CREATING)]:
            try:
                return make()
            except FileExistsError:
                system.unlink(folder, part.name)
            except PermissionError:
                system.open_up(folder)
            return make()

    def _pour(self, reader: Reader, part: _Part, have: int) -> None:
        """Read the source once, hash all of it, write what the part does not have yet."""
        digests = Digests(self.store.digests)
        block, size, at, written = buffer(), reader.size, 0, 0
        holes = self.store.holes and not self.store.disk.in_order
        ranges = reader.ranges() if holes else iter([(0, size)])
        for start, end in ranges:
            _hash_zeros(digests, start - at)
            at = start
            while at < end:
                got = reader.read_into(block[: min(self.control.piece_bytes, end - at)], at)
                if got == 0:
                    break
                data = block[:got]
                digests.update(data)
                self.control.add(copied=got)
                if have > at and self._same(part.fd, data, at, have):
                    pass
                else:
                    have = 0
                    system.write_at(part.fd, data, at)
                    written = at + got
                at += got
                if at < size:
                    self.control.check()
            if at < end:
                break
        if at < size and not (holes and reader.sparse):
            raise SourceChanged(f"became shorter while it was read: {printable(part.upload.key)}", path=part.upload.key)
        _hash_zeros(digests, size - at)
        if written != size:
            system.set_size(part.fd, size)
        part.digests = digests.result()
        part.working = part.digests[self.store.digests[0]]

    def _same(self, fd: int, data: memoryview, at: int, have: int) -> bool:
        other = other_buffer()[: len(data)]
        return at + len(data) <= have and system.read_into(fd, other, at) == len(data) and other == data

    # -- 5: flush ------------------------------------------------------------------------------------------------------

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
            for index, part in list(parts.items()):
                self._note(index, part.upload.key, self.gone or self._unflushed(error, part.upload.key))
                self._discard(parts.pop(index))

    def _send(self, part: _Part) -> None:
        """Where a file is sent when it is closed: flush and close it."""
        try:
            system.flush(part.fd)
            self._close(part)
        except OSError as error:
            raise self._unflushed(error, part.upload.key) from error

    def _unflushed(self, error: OSError, path: str) -> ItemError:
        """What a flush says that failed: the destination is full or gone, or else it is to be written once more."""
        found = self.store.translated(error, path)
        if type(found) not in {ItemError, MountError}:
            return found
        return FlushError(f"flush failed at {printable(path)}: {error.strerror}", path=path)

    def _reopen(self, part: _Part) -> None:
        """Open what was closed to be sent, for reading."""
        path = part.upload.key
        try:
            part.fd = system.open_source(self.folders.open(part.folder), part.name)
        except FileNotFoundError as error:
            if not self.store.answers():
                raise
            raise ProofError(f"was taken and did not arrive: {printable(path)}", path=path) from error
        found = system.fstat(part.fd)
        if found.st_size != part.size:
            raise ProofError(f"arrived with another length: {printable(path)}", path=path)
        wanted = part.attributes
        if wanted is not None and wanted.mtime_ns not in {None, found.st_mtime_ns}:  # some keep it until it is closed
            part.lost += [kind for kind in apply_attributes(part.fd, wanted) if kind not in part.lost]

    # -- 6: read back --------------------------------------------------------------------------------------------------

    def _drop(self, parts: dict[int, _Part]) -> None:
        """Ask for all cached pages to be dropped, look at one file whether they are gone, then have all of them
        fetched at once.
        """
        files = [part for part in parts.values() if part.fd >= 0 and self.prove.wants(os.fsencode(part.upload.key))]
        for part in files:
            system.drop(part.fd, near=self.near)
            part.read_back = self.store.disk.read_back
        looked_at = next((part for part in files if part.size > 0), None)
        if looked_at is not None and self.store.disk.read_back == "storage" and system.is_cached(looked_at.fd):
            for part in files:
                part.read_back = "memory"
        for part in files:
            system.fetch(part.fd, part.size, near=self.near)

    def _prove(self, part: _Part) -> None:
        if not self.store.disk.reopens or part.upload.target is not None:
            self._read_back(part)
            return
        self._reopen(part)
        if self.prove.wants(os.fsencode(part.upload.key)):
            system.drop(part.fd)
            part.read_back = self.store.disk.read_back
        self._read_back(part)
        self._close(part)  # some servers rename no file that is open

    def _read_back(self, part: _Part) -> None:
        if part.read_back == "no":
            return
        found = hash_file(part.fd, self.store.digests[0], part.size, self.control)
        if found != part.working:
            path = part.upload.key
            raise ProofError(f"what was read back differs from what was written: {printable(path)}", path=path)

    # -- 7: the name ---------------------------------------------------------------------------------------------------

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
            part.aside = set_aside(folder, name, self.store.records, upload.set_aside, upload.key)
            now = publish.mark(system.lstat(folder, name), steady=expected.inode != 0)
            if now[:3] == expected[:3]:
                expected = now  # the link to what is set aside changed its ctime
        publish.publish(folder, part.name, name, expected, upload.key)
        part.name = name

    def _finish(self, parts: dict[int, _Part]) -> None:
        """Flush each folder once; then the marks, for renaming changed them."""
        flushed: dict[str, ScopeferryError | None] = {}
        for index, part in parts.items():
            if part.folder not in flushed:
                flushed[part.folder] = self.gone or self._flush_folder(part.folder)
            problem = flushed[part.folder]
            if problem is not None:
                self._note(index, part.upload.key, problem)
                continue
            try:
                self.found[index] = self._entry(part)
            except OSError as error:
                self._note(index, part.upload.key, error)
            part.name = ""

    def _flush_folder(self, folder: str) -> ItemError | None:
        try:
            system.flush_folder(self.folders.open(folder))
        except OSError as error:
            found = self.store.translated(error, folder)
            if isinstance(found, GoneError):
                return found
            text = f"flush of a folder failed at {printable(folder or '.')}: {error.strerror}"
            return ItemError(text, code="SF-211", path=folder)
        return None

    def _entry(self, part: _Part) -> Entry:
        entry = system.fstat(part.fd) if part.fd >= 0 else system.lstat(self.folders.open(part.folder), part.name)
        key = f"{part.folder}/{part.name}" if part.folder else part.name
        lost = part.lost
        if part.upload.target is None and part.attributes is not None:
            lost = [
                *lost,
                *(kind for kind in lost_times(entry, part.attributes, self.store.mtime_step_ns) if kind not in lost),
            ]
        mark = publish.mark(entry, steady=self.store.disk.steady)
        return Entry(key, mark, part.digests, part.source, part.read_back, 1, tuple(lost), part.attributes, part.aside)

    def _close(self, part: _Part) -> None:
        if part.fd >= 0:
            fd, part.fd = part.fd, -1
            system.close(fd, near=self.near)

    def _discard(self, part: _Part, *, keep: bool = False) -> None:
        """Close the part, and remove what has no final name."""
        with contextlib.suppress(OSError):  # of a mount that is gone; what was to be proved has been closed before
            self._close(part)
        if not keep and publish.part_hash(part.name) is not None and not isinstance(self.gone, GoneError):
            with contextlib.suppress(OSError, ScopeferryError):
                system.unlink(self.folders.open(part.folder), part.name)


def _is_plain(entry: os.stat_result) -> bool:
    return stat.S_ISREG(entry.st_mode) and entry.st_nlink == 1


def _hash_zeros(digests: Digests, count: int) -> None:
    while count > 0:
        digests.update(ZEROS[: min(BLOCK, count)] if count < BLOCK else ZEROS)
        count -= BLOCK
