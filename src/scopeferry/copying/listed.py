"""Files that a list names (``--finish manifest=FILE``): which of them are not there yet, or are not what it says.

The list is a manifest of ours, sums as the standard tools write them, or plain paths, one a line. Where it gives
digests each file is read to be compared, in a thread of its own, once for each version of the file and the list.
"""

from __future__ import annotations

import os
import queue
import threading
from typing import Self

from scopeferry.copying import manifest
from scopeferry.errors import ScopeferryError
from scopeferry.kernel import publish
from scopeferry.kernel.task import Control
from scopeferry.sources.finish import Listed
from scopeferry.sources.tree import TreeSource

SHOWN = 100

_Version = tuple[int, int, int]
_Wanted = dict[str, tuple[str, bytes] | None]  # path -> (algorithm, digest), None: it has only to be there


class ListedFiles:
    """Call it with the file of a rule, relative to the source or not. Close it when done."""

    def __init__(self, source: TreeSource, control: Control) -> None:
        self._source, self._control = source, control
        self._lists: dict[str, tuple[_Version, _Wanted]] = {}
        self._equal: dict[tuple[str, bytes], tuple[_Version, bool]] = {}
        self._asked: set[tuple[str, bytes]] = set()
        self._queue: queue.SimpleQueue[tuple[str, str, bytes] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread; a file that is being read is read no further where the run is stopped."""
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __call__(self, file: str) -> Listed:
        """What the list says now."""
        wanted = self._wanted(os.path.join(self._source.root, os.path.expanduser(file)))
        if wanted is None:
            return Listed(file, there=False)
        absent = [path for path, digest in wanted.items() if not self._is_there(path, digest)]
        return Listed(file, total=len(wanted), absent=absent[:SHOWN])

    def _wanted(self, path: str) -> _Wanted | None:
        version = _version(path) if os.path.isfile(path) else None  # who opens a pipe may wait for ever
        if version is None:
            self._lists.pop(path, None)
            return None
        known = self._lists.get(path)
        if known is None or known[0] != version:
            try:
                known = self._lists[path] = version, _read(path)
            except OSError:
                return None
        return known[1]

    def _is_there(self, path: str, digest: tuple[str, bytes] | None) -> bool:
        inside = self._inside(path)
        version = None if inside is None else _version(os.path.join(self._source.root, inside))
        if inside is None or version is None or digest is None:
            return version is not None
        path, key = inside, (inside, digest[1])
        known = self._equal.get(key)
        if known is not None and known[0] == version:
            return known[1]
        if key not in self._asked:
            self._asked.add(key)
            self._queue.put((path, *digest))
            if self._thread is None:
                self._thread = threading.Thread(target=self._read_all, name="scopeferry-listed", daemon=True)
                self._thread.start()
        return False

    def _inside(self, path: str) -> str | None:
        """The path relative to the source; None outside of it: what lies there says nothing of the source."""
        if not os.path.isabs(path) and os.pardir not in path:
            return path
        inside = os.path.relpath(os.path.join(self._source.root, path), self._source.root)
        return None if inside.split(os.sep)[0] == os.pardir else inside

    def _read_all(self) -> None:
        while (wanted := self._queue.get()) is not None and not self._control.stopped:
            path, algorithm, digest = wanted
            try:
                with self._source.folders() as folders, self._source.open(folders, path) as file:
                    found = file.digest((algorithm,), self._control, copied=False)[algorithm]
                    mark = file.check()
                    self._equal[path, digest] = (mark.inode, mark.size, mark.mtime_ns), found == digest
            except (OSError, ScopeferryError):
                pass  # it is asked for again as long as it is awaited
            self._asked.discard((path, digest))


def _version(path: str) -> _Version | None:
    try:
        found = os.stat(path, follow_symlinks=False)
    except (OSError, ValueError):
        return None
    mark = publish.mark(found)
    return mark.inode, mark.size, mark.mtime_ns


def _read(path: str) -> _Wanted:
    """What the list names: sums, where every line is one, else paths."""
    try:
        return {os.fsdecode(name): (algorithm, digest) for algorithm, name, digest in manifest.read(path)}
    except ScopeferryError:
        pass
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        names = (line.rstrip("\r\n") for line in lines)
        return {name.removeprefix("./"): None for name in names if name and not name.startswith("#")}
