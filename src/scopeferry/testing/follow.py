"""Who follows a source that grows, as a job does: takes what comes out, copies it, settles it, and remembers.

The copies lie in memory. Needs neither pytest nor hypothesis.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from scopeferry.kernel.journal import fingerprint
from scopeferry.sources.outbox import Found, Gone, Version


class Done:
    """What is done, in memory: see ``sources.known.Known``."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Version]] = {}

    def __setitem__(self, path: str, version: Version) -> None:
        head, _, name = path.rpartition("/")
        self.rows.setdefault(head, {})[name] = version

    def __delitem__(self, path: str) -> None:
        head, _, name = path.rpartition("/")
        self.rows.get(head, {}).pop(name, None)

    def folder(self, folder: str) -> Mapping[str, Version]:
        """All of a folder."""
        return dict(self.rows.get(folder, {}))

    def names(self, folder: str, names: Collection[str]) -> Mapping[str, Version]:
        """Of these names."""
        rows = self.rows.get(folder, {})
        return {name: rows[name] for name in names if name in rows}

    def count(self, folder: str) -> int:
        """How many."""
        return len(self.rows.get(folder, {}))


class Follower:
    """Iterate over it: one step of the source each, done and settled before the next.

    ``copies`` holds the bytes of each path as they were copied; ``order`` every path in the order in which it came out;
    ``gone`` what was said to be gone. ``slow``: how many items stay in flight.
    """

    def __init__(self, source: Any, root: str, done: Done, *, slow: int = 0) -> None:
        self.source, self.root, self.done, self.slow = source, root, done, slow
        self.copies: dict[str, bytes] = {}
        self.order: list[str] = []
        self.gone: list[str] = []
        self.flight: list[Found | Gone] = []
        self._items = source.items()

    def __iter__(self) -> Iterator[Found | Gone | None]:
        return self

    def __next__(self) -> Found | Gone | None:
        found: Found | Gone | None = next(self._items)
        if found is not None:
            assert found.path not in {item.path for item in self.flight}, f"two versions at once: {found.path}"
            self.order.append(found.path)
            self.flight.append(found)
        while self.flight and (found is None or len(self.flight) > self.slow):
            self._settle(self.flight.pop(0))
        return found

    def until(self, over: Callable[[], bool], *, seconds: float = 300) -> None:
        """Go on until it is so; AssertionError if it never is."""
        end = time.monotonic() + seconds
        while not over():
            assert time.monotonic() < end, f"never: {over}"
            if next(self) is None:
                time.sleep(0.002)

    def to_the_end(self, *, seconds: float = 300) -> None:
        """Declare it finished and go on until it ends."""
        self.source.finish()
        end = time.monotonic() + seconds
        for found in self:
            assert time.monotonic() < end, "it never ends"
            if found is None:
                time.sleep(0.002)

    def _settle(self, found: Found | Gone) -> None:
        if isinstance(found, Gone):
            self.gone.append(found.path)
            self.copies.pop(found.path, None)
            del self.done[found.path]
        else:
            path = os.path.join(self.root, found.path)
            try:
                with open(path, "rb") as file:
                    facts = os.fstat(file.fileno())
                    data = file.read()
                after = os.stat(path)
            except FileNotFoundError:
                self.source.settled(found.path)
                return
            steady = self.source.source.disk.steady
            version = _version(facts, steady)
            if _version(after, steady) != version:
                self.source.again(found.path)
                return
            self.copies[found.path] = data
            self.done[found.path] = version
        self.source.settled(found.path)


def _version(facts: os.stat_result, steady: bool) -> Version:
    source = fingerprint(facts.st_ino, facts.st_ctime_ns) if steady else fingerprint(0, 0)
    return Version(facts.st_size, facts.st_mtime_ns, source)
