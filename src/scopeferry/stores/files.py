"""One published file: its attributes, its bytes from storage, and keeping what is replaced."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Self

from scopeferry.errors import Refused, SourceChanged
from scopeferry.kernel import publish
from scopeferry.kernel.digest import Digests
from scopeferry.kernel.publish import Disk, Folders, Mark, system
from scopeferry.kernel.task import Control
from scopeferry.logs import printable
from scopeferry.stores.store import Attributes

BLOCK = 1 << 20
TIME_STEPS_NS = {
    100: "100 ns", 1_000: "1 us", 1_000_000: "1 ms", 10_000_000: "10 ms", 1_000_000_000: "1 s", 2_000_000_000: "2 s",
}  # fmt: skip

#: Samba: `store dos attributes` of smb.conf(5), vfs_streams_xattr(8), vfs_acl_xattr(8); Netatalk's `ea` of afp.conf(5);
#: macOS.
SERVERS_OWN = ("user.DOSATTRIB", "user.DosStream.", "user.SAMBA_", "user.org.netatalk.", "user.com.apple.")

_local = threading.local()


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


def give_attributes(fd: int, wanted: Attributes, *, near: bool) -> list[str]:
    """As `apply_attributes`, for a file that was just made: there is nothing to look at if only mode and time are
    wanted.
    """
    if wanted.owner is not None or wanted.xattrs:
        return apply_attributes(fd, wanted)
    try:
        system.set_attributes(fd, wanted.mode, wanted.mtime_ns, wanted.mtime_ns or 0, near=near)
    except OSError:
        return apply_attributes(fd, wanted)
    return []


def apply_attributes(fd: int, wanted: Attributes) -> list[str]:
    """Owner, xattrs, mode, times, in this order (a 0444 file takes no xattr from its owner); what could not be set."""
    lost = []
    now = system.fstat(fd)
    if wanted.owner is not None and wanted.owner != (now.st_uid, now.st_gid):
        try:
            system.set_owner(fd, *wanted.owner)
        except OSError:
            lost.append("owner")
    lost += _apply_xattrs(fd, wanted)
    mode = wanted.mode if wanted.mode is not None and wanted.mode != now.st_mode & 0o7777 else None
    mtime_ns = wanted.mtime_ns if wanted.mtime_ns != now.st_mtime_ns else None
    try:
        system.set_attributes(fd, mode, mtime_ns, now.st_atime_ns)
    except OSError:
        lost.append("mode" if mode is not None else "times")
    return lost


def _apply_xattrs(fd: int, wanted: Attributes) -> Iterator[str]:
    if not (wanted.xattrs or wanted.dropped):
        return
    have = system.xattrs(fd)
    failed = []
    for name, value in wanted.xattrs.items():
        if have.get(name) != value:
            try:
                system.set_xattr(fd, name, value)
            except OSError:
                failed.append(name)
    for name in wanted.dropped & have.keys() - wanted.xattrs.keys():
        try:
            system.remove_xattr(fd, name)
        except OSError:
            failed.append(name)
    yield from map(xattr_kind, failed)


def xattr_kind(name: str) -> str:
    """What of ``--keep`` an extended attribute belongs to."""
    if name.startswith("stream."):
        return "streams"
    return "acl" if name.startswith(("system.posix_acl", "acl.")) else "xattrs"


def is_servers_own(name: str) -> bool:
    """Is this an attribute in which a file server, or the system, keeps what it knows of a file?"""
    return name.startswith(SERVERS_OWN)


def apply_to_link(folder: Any, name: str, wanted: Attributes, disk: Disk | None = None) -> list[str]:
    """Owner and time of a symbolic link, where it has others; the kinds that could not be set.

    They are not tried on a mount in user space: sshfs sets those of what the link points at.
    """
    lost = []
    now = system.lstat(folder, name)
    if wanted.owner is not None and wanted.owner != (now.st_uid, now.st_gid):
        try:
            _not_followed(disk)
            system.set_link_owner(folder, name, *wanted.owner)
        except OSError:
            lost.append("owner")
    if wanted.mtime_ns is not None and wanted.mtime_ns != now.st_mtime_ns:
        try:
            _not_followed(disk)
            system.set_link_time(folder, name, wanted.mtime_ns)
        except OSError:
            lost.append("times")
    return lost


def _not_followed(disk: Disk | None) -> None:
    if disk is not None and disk.reopens:
        raise OSError(errno.ENOTSUP, "the link would be followed")


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


def set_aside(folder: Any, name: str, records: str, below: str, key: str) -> str:
    """Keep what stands under `name` in the record folder, by a hard link, else by a copy: where, below that folder."""
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
    return f"{head}/{kept}"


def _copy_aside(folder: Any, name: str, target: Any, kept: str) -> None:
    if stat.S_ISLNK(system.lstat(folder, name).st_mode):
        system.make_link(system.read_link(folder, name), target, kept)
        return
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
        self._prepared = False

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

    def __enter__(self) -> Self:
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
        """The digests of all bytes, from storage; the arguments are those of `prepare`, if that was not called
        before.
        """
        if not self._prepared:
            self.prepare(flushed=flushed, look=look)
        digests = Digests(algorithms)
        block, at = buffer(), 0
        while at < self.size and (got := self.read_into(block, at)):
            digests.update(block[:got])
            at += got
            control.add(verified=got)
            control.check()
        return digests.result()

    def prepare(self, *, flushed: bool = False, look: bool = True, near: bool = False) -> None:
        """Have the cached pages dropped, and the first bytes fetched from storage while others are read.

        `flushed`: it was, with its whole file system, and has not changed since. `look`: is it still cached? Then
        ``memory`` says so; without, another file of the same folder was looked at. `near`: it lies on a local disk.
        """
        self._prepared = True
        if not flushed:
            self._flush()
        system.drop(self.fd)
        if look and self.size:
            self.memory = system.is_cached(self.fd)
            if flushed and self.memory:
                self._flush()
                system.drop(self.fd)
                self.memory = system.is_cached(self.fd)
        system.fetch(self.fd, self.size, near=near)

    def _flush(self) -> None:
        with contextlib.suppress(OSError):  # a read-only file system has nothing to flush
            system.flush(self.fd)
