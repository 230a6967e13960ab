"""Where the record, the journal and the lock of a destination lie (``transfer.md`` 3.6, 3.7)."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from scopeferry.errors import Refused, Temporary, UsageError
from scopeferry.kernel import publish
from scopeferry.kernel.publish import system
from scopeferry.logs import host, printable


def state_folder() -> str:
    """The user's state folder, on a local disk: journals, runs, and records that cannot lie beside their data."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser(r"~\AppData\Local")
    else:
        base = os.environ.get("XDG_STATE_HOME", "")
        if not os.path.isabs(base):  # the XDG specification: a relative path is to be ignored
            base = os.path.expanduser("~/.local/state")
    return os.path.join(base, "scopeferry")


def make_private(folder: str) -> None:
    """Make a folder of ours that only we may enter, and what is missing above it; a folder that is there stays."""
    if os.path.isdir(folder):
        return
    make_private(os.path.dirname(folder))
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)


def make_shared(folder: str) -> None:
    """Make a record folder that those may read who may read the data beside it; one in our state folder is private."""
    if (folder + os.sep).startswith(state_folder() + os.sep):
        make_private(folder)
    else:
        os.makedirs(folder, exist_ok=True)


def destination_name(dst: str) -> str:
    """A short name for a destination that no other one has."""
    return f"{os.path.basename(dst)[:40] or 'root'}-{publish.path_hash(os.fsencode(dst))}"


@dataclass(frozen=True, slots=True)
class Place:
    """The folders of one destination. ``elsewhere`` is why the record does not lie beside the data, if it does not."""

    dst: str
    records: str
    lock: str
    journal: str
    elsewhere: str = ""


def find(
    dst: str, *, source: str = "", records: str | None = None, journal: str | None = None, state: str | None = None
) -> Place:
    """Where things lie for a destination, which need not exist yet: then `source` tells what it will be. Nothing is
    made.

    Beside the data: ``<dst>.scopeferry``; inside it where the parent is another file system; else in the state folder.
    Raises UsageError (SF-107) for a journal on a network file system.
    """
    state = state or state_folder()
    home, elsewhere = _beside(dst, source, state)
    name = destination_name(dst)
    journal = os.path.abspath(journal) if journal else os.path.join(state, "journals", f"{name}.sqlite")
    if publish.disk(_existing(journal)).network:
        raise UsageError(f"the journal would lie on a network file system: {journal}", code="SF-107", path=journal)
    if records and os.path.lexists(os.path.join(records, "receipt.txt")) and not _holds_records(records):
        say = f"--records: a receipt lies in {printable(records)}, and it is none of ours"
        raise UsageError(say, code="SF-105", path=records, hint="name an empty folder, or one that is not there yet")
    return Place(
        dst,
        os.path.abspath(records) if records else home,
        os.path.join(home, "lock"),
        journal,
        "" if records else elsewhere,
    )


def _beside(dst: str, source: str, state: str) -> tuple[str, str]:
    parent = os.path.dirname(dst) or os.sep
    beside, inside = dst.rstrip(os.sep) + ".scopeferry", os.path.join(dst, ".scopeferry")
    zarr = _is_zarr(dst) or _is_zarr(source)
    if dst != parent and os.path.isdir(dst):
        other_disk = os.stat(dst).st_dev != os.stat(parent).st_dev
    else:
        other_disk = dst == parent
    if other_disk:
        if (not zarr or _holds_records(inside)) and _writable(inside, dst):
            return inside, ""
    elif _writable(beside, parent):
        return beside, ""
    elif not zarr and _will_be_folder(dst, source) and _writable(inside, dst):
        return inside, ""
    home = os.path.join(state, "records", destination_name(dst))
    return home, f"records lie in {home}, for nothing can be written beside {dst}"


def _will_be_folder(dst: str, source: str) -> bool:
    return os.path.isdir(dst) or (os.path.isdir(source) and not os.path.lexists(dst))


def _writable(folder: str, parent: str) -> bool:
    if os.path.islink(folder):  # whoever planted it would have us write, and remove, wherever it leads
        message = f"a link stands where the record folder should be: {printable(folder)}"
        raise Refused(message, code="SF-504", path=folder)
    if os.path.isdir(folder):  # a record that lies there is the record, also on a disk that is mounted for reading only
        return os.access(folder, os.W_OK | os.X_OK) or _holds_records(folder)
    return not os.path.lexists(folder) and os.access(_existing(parent), os.W_OK | os.X_OK)


def _holds_records(folder: str) -> bool:
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    return any(name.startswith("manifest.") or name.endswith(".jsonl") for name in names)


def _is_zarr(folder: str) -> bool:
    names = (".zgroup", ".zarray", "zarr.json")
    return folder != "" and any(os.path.exists(os.path.join(folder, name)) for name in names)


def _existing(path: str) -> str:
    while not os.path.exists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path


@dataclass(slots=True)
class Lock:
    """One run per destination. Held by the open file; where the mount knows no locks, by a file and a heartbeat.

    A mount in user space (FUSE) may know locks of this machine alone, and says so to nobody: there it is the file.
    """

    path: str
    run: str
    _fd: int = -1
    _beating: Any = None

    def acquire(self) -> None:
        """Take it; raises Temporary (SF-321) naming host, pid and start of the run that holds it."""
        folder = os.path.dirname(self.path)
        make_shared(folder)
        if publish.disk(folder).reopens:
            self._acquire_by_heartbeat()
            return
        self._fd = os.open(
            self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0), 0o600
        )
        try:
            mine = system.lock(self._fd)
        except OSError:
            os.close(self._fd)
            self._fd = -1
            self._acquire_by_heartbeat()
            return
        if not mine:
            holder = self.holder()
            os.close(self._fd)
            self._fd = -1
            raise self._held(holder)
        os.ftruncate(self._fd, 0)
        system.write_at(self._fd, self._facts(), 0)

    @property
    def token(self) -> str:
        """The file that names this run for as long as it has the lock."""
        return self._held_path if self._beating is not None else self.path

    def holder(self) -> dict[str, Any]:
        """What the lock file says of the run that has it, or had it last."""
        from scopeferry.copying.heartbeat import holder

        return holder(self._held_path) or holder(self.path)

    def release(self) -> None:
        """Give it back; twice is harmless, and so is a destination that is gone."""
        if self._beating is not None:
            beating, self._beating = self._beating, None
            beating.release()
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with suppress(OSError):
                os.ftruncate(fd, 0)
            with suppress(OSError):
                os.close(fd)

    @property
    def _held_path(self) -> str:
        return self.path + ".held"

    def _facts(self) -> bytes:
        facts = {"host": host(), "pid": os.getpid(), "run": self.run, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        return json.dumps(facts).encode()

    def _held(self, holder: dict[str, Any]) -> Temporary:
        who = f"pid {holder.get('pid', '?')} on {holder.get('host', '?')}, since {holder.get('started', '?')}"
        return Temporary(
            f"another run works on this destination: {who}", code="SF-321", path=os.path.dirname(self.path)
        )

    def _acquire_by_heartbeat(self) -> None:
        from scopeferry.copying.heartbeat import Heartbeat

        beating = Heartbeat(self._held_path, self.run)
        if not beating.take(self._facts()):
            raise self._held(self.holder())
        self._beating = beating
