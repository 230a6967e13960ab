"""A folder on a file system as a store: ``transfer.md`` 3.3, in the order of that page.

A batch goes through four steps: each file is read, hashed and written under a temporary name; all are flushed; each is
read back from storage and compared; each gets its name, and the folders are flushed. Batches of several workers run
out of step. An item that fails leaves the others alone; what may succeed at another try is put through the four steps
again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scopeferry.errors import Failed, ItemError, NoSpace, Refused, ScopeferryError, SourceChanged, Temporary
from scopeferry.kernel import publish
from scopeferry.kernel.asking import ask
from scopeferry.kernel.digest import DEFAULT
from scopeferry.kernel.publish import Disk, Folders, Mark, system
from scopeferry.kernel.task import Control, Failure
from scopeferry.logs import printable
from scopeferry.stores.store import (
    Attributes,
    Entry,
    FlushError,
    FullError,
    GoneError,
    MountError,
    ProofError,
    Prove,
    Reader,
    Upload,
)

ROOM_BYTES = 1 << 20  # less is no room
CHANGED_WAITS_S = (0.1, 1.0, 5.0)  # between the tries at a source that moves, or at a server that was just away


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A store in the folder `root`; picklable.

    ``digests``: the first is the working digest. ``holes``: leave holes as holes. ``flush_whole``: one flush for a
    batch is allowed (the source is finished, or lies on another file system). ``identity``: (device, inode) that the
    root must have.
    ``records``: where what is replaced is set aside. ``attempt``: 8 hex digits in the temporary names of this run.
    ``mtime_step_ns``: the step of its times. ``lacks``: kinds of ``--keep`` that the file system does not have.
    ``lock``: the file that names this ``run``, if that lies beside the data.
    ``waits_at_moving``: is a source that changes tried again here, after a pause? (Else by whoever plans.)
    """

    root: str
    disk: Disk
    digests: tuple[str, ...] = (DEFAULT,)
    holes: bool = True
    flush_whole: bool = True
    identity: tuple[int, int] | None = None
    records: str = ""
    attempt: str = "00000000"
    mtime_step_ns: int = 1
    lacks: frozenset[str] = frozenset()
    waits_at_moving: bool = True
    lock: str = ""
    run: str = ""

    # -- Store ---------------------------------------------------------------------------------------------------------

    def put(self, uploads: Sequence[Upload], *, prove: Prove, control: Control) -> list[Entry | Failure]:
        """Publish each upload whole and proved, or not at all. See ``Store``."""
        from scopeferry.stores.batch import Batch  # a rerun with nothing to do needs none of it

        answers: dict[int, Entry | Failure] = {}
        tries = dict.fromkeys(range(len(uploads)), 0)
        pending = list(tries)
        while pending:
            try:
                self.check_present(control)
                with Folders(self.root) as folders:
                    batch = Batch(self, folders, prove, control)
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
                    answers[index] = answer if tries[index] == 1 else replace(answer, attempts=tries[index])
                    control.done_waiting("room")
                    control.done_waiting("destination")
                    continue
                wait = _another_try(answer, tries[index], moving=self.waits_at_moving)
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
        from scopeferry.stores.files import StoredFile

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

    # -- beyond the protocol: only a file system has these -------------------------------------------------------------

    def set_right(self, folders: Folders, key: str, attributes: Attributes) -> tuple[Mark, tuple[str, ...]]:
        """Give a published file or folder these attributes where it has others; its mark afterwards, and what was
        lost.
        """
        from scopeferry.stores.files import apply_attributes, lost_times

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

    def set_link_right(self, folders: Folders, key: str, attributes: Attributes) -> tuple[Mark, tuple[str, ...]]:
        """As `set_right`, for a published symbolic link."""
        from scopeferry.stores.files import apply_to_link

        head, _, name = key.rpartition("/")
        folder = folders.open(head)
        lost = apply_to_link(folder, name, attributes, self.disk)
        return publish.mark(system.lstat(folder, name), steady=self.disk.steady), tuple(lost)

    def link(self, folders: Folders, leader: str, key: str, expected: Mark | None) -> Mark:
        """Make `key` a hard link of the published file `leader`; raises Refused if something unexpected stands
        there.
        """
        from_head, _, from_name = leader.rpartition("/")
        head, _, name = key.rpartition("/")
        source, folder = folders.open(from_head), folders.open(head, make=True)
        wanted = system.lstat(source, from_name)
        if not stat.S_ISREG(wanted.st_mode):
            raise Refused(f"no longer a file at the destination: {leader}", code="SF-502", path=key)
        try:
            if not _stands(folder, name, wanted):
                _hard_link(source, from_name, folder, name)
        except FileExistsError:
            there = system.lstat(folder, name)
            if (there.st_dev, there.st_ino) != (wanted.st_dev, wanted.st_ino):
                if expected is None:
                    raise Refused(f"other content stands at the destination: {key}", code="SF-501", path=key) from None
                part = publish.part_name(os.fsencode(key), self.attempt)
                _hard_link(source, from_name, folder, part)
                try:
                    publish.publish(folder, part, name, expected, key)
                except BaseException:
                    with contextlib.suppress(OSError):
                        system.unlink(folder, part)
                    raise
        system.flush_folder(folder)
        return publish.mark(system.lstat(folder, name), steady=self.disk.steady)

    # -- what can go wrong ---------------------------------------------------------------------------------------------

    def present(self) -> bool:
        """Is the destination still the folder that the run began with?"""
        try:
            found = os.stat(self.root)
        except OSError:
            return False
        if self.identity is None or (found.st_dev, found.st_ino) == self.identity:
            return True
        if self.disk.steady and (found.st_ino != self.identity[1] or not self.lock):
            return False
        return publish.disk(self.root) == self.disk and self._holds_our_lock()

    def _holds_our_lock(self) -> bool:
        """Is it the very disk that this run began with, mounted again? Others may have a record of the same name."""
        if not self.lock or not self.run:
            return not self.records or os.path.exists(self.records)
        try:
            with open(self.lock, "rb") as file:
                return self.run.encode() in file.read(4096)
        except PermissionError:  # some servers lock the very bytes
            return True
        except OSError:
            return False

    def answers(self) -> bool:
        """Is it there, and does it take what is given to it? Asked where an error may mean that the server is gone."""
        return self.present() and (not self.disk.network or ask(self.root, self._takes_a_folder))

    def _takes_a_folder(self) -> bool:
        name = publish.part_name(b"\0answers", "00000000")
        try:
            with Folders(os.path.dirname(self.lock) or self.root) as folders:
                before = system.folder_stat(folders.root)
                with contextlib.suppress(FileExistsError):  # a killed run left it
                    system.make_folder(folders.root, name)
                system.remove_folder(folders.root, name)
                system.set_attributes(folders.root, None, before.st_mtime_ns, before.st_atime_ns)
        except OSError as error:
            return error.errno not in {errno.EIO, *system.GONE}
        return True

    def check_present(self, control: Control) -> None:
        """Never write into a bare mount point: wait until the destination is back, then raise 75."""
        if not self.present():
            self._wait_for_root(control)

    def _wait_for_root(self, control: Control) -> None:
        control.wait_for("destination", self.answers, control.patience_gone_s, self.gone())

    def gone(self) -> ScopeferryError:
        """What is to be said of a destination that is not present, or does not answer."""
        shown = printable(self.root)
        if os.path.isdir(self.root) and not self.present() and publish.disk(self.root).point == self.disk.point:
            message = f"another disk or folder stands where the destination was: {shown}"
            return Failed(message, code="SF-303", path=self.root)
        return Temporary(f"destination is gone: {shown}", code="SF-323", path=self.root)

    def _wait(self, control: Control, errors: Sequence[ItemError], seconds: float) -> None:
        """Before another try: what was full or gone is waited for, what was changing gets its pause."""
        with contextlib.suppress(ScopeferryError):  # patience is over: the stop flag is set, and the next round says so
            if any(isinstance(error, GoneError | FullError) for error in errors):
                control.sleep(0.5)
            if any(isinstance(error, GoneError) for error in errors):
                self._wait_for_root(control)
            elif any(isinstance(error, FullError) for error in errors):
                error = NoSpace(f"destination is full: {self.root}", code="SF-313", path=self.root)
                control.wait_for("room", self._has_room, control.patience_full_s, error)
            elif seconds:
                control.sleep(seconds)

    def _has_room(self) -> bool:
        try:
            with Folders(self.root) as folders:
                free, inodes = publish.room(folders.root, self.disk)
        except OSError:
            return False
        return free > ROOM_BYTES and inodes != 0

    def translated(self, error: OSError, path: str) -> ItemError:
        """An error of the destination, as one of ours."""
        shown = printable(path)
        code = error.errno or 0
        if code in system.NO_SPACE:
            return FullError(f"destination is full at {shown}", path=path)
        if code in system.GONE or not (self.answers() if self.disk.network else self.present()):
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
        kind = MountError if self.disk.network else ItemError
        return kind(f"write error at {shown}: {error.strerror or error}", code="SF-211", path=path)


def _stands(folder: Any, name: str, wanted: os.stat_result) -> bool:
    try:
        there = system.lstat(folder, name)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino)


def _hard_link(source: Any, from_name: str, folder: Any, name: str) -> None:
    try:
        system.hard_link(source, from_name, folder, name)
    except PermissionError:  # a read-only folder of ours
        system.open_up(folder)
        system.hard_link(source, from_name, folder, name)


def _another_try(error: ScopeferryError, tries: int, *, moving: bool) -> float | None:
    """Seconds to wait before the next try; None if there is to be none."""
    if isinstance(error, SourceChanged):
        return CHANGED_WAITS_S[tries - 1] if moving and tries <= len(CHANGED_WAITS_S) else None
    if isinstance(error, FullError | GoneError):
        return 0.0
    if isinstance(error, MountError):
        return CHANGED_WAITS_S[tries - 1] if tries <= len(CHANGED_WAITS_S) else None
    if isinstance(error, ProofError | FlushError):
        return 0.0 if tries < 2 else None
    return None
