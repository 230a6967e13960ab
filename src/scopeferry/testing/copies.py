"""A source and its copies, for the tests of what looks after copies: `verify`, `repair`, `clean`."""

from __future__ import annotations

import base64
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scopeferry
from scopeferry.jobs.result import Result
from scopeferry.testing.trees import Found, random_bytes, snapshot

NAMES = {"a.tif": 5000, "b.tif": 0, "sub/c.tif": 70_000, "sub/deep/d.tif": 3000, "sub/deep/e.tif": 3000}


@dataclass
class Made:
    """A source and one copy of it. ``folder`` holds both; further copies lie beside them."""

    folder: Path

    @property
    def src(self) -> Path:
        """The source."""
        return self.folder / "src"

    @property
    def dst(self) -> Path:
        """The copy."""
        return self.folder / "dst"

    def records(self, name: str = "dst") -> Path:
        """The record folder of a copy, or of the source."""
        return self.folder / f"{name}.scopeferry"

    def copy(self, name: str = "dst", **options: Any) -> Path:
        """Transfer once more, into a copy of this name."""
        result = scopeferry.transfer(self.src, self.folder / name, **options)
        assert result.exit_code == 0, result.problems
        return self.folder / name

    def lines(self, name: str = "dst", generation: int = -1) -> list[dict[str, Any]]:
        """The objects of a record, those of the newest unless told."""
        found = sorted(self.records(name).glob("[0-9]*.jsonl"))
        return [json.loads(line) for line in found[generation].read_text().splitlines()]

    def forget_journals(self) -> None:
        """As on another machine: no journal, no state."""
        shutil.rmtree(Path(os.environ["XDG_STATE_HOME"]) / "scopeferry", ignore_errors=True)


def make(folder: Path, *, links: bool = False) -> Made:
    """A small source and its copy; with `links`, a symbolic link, a hard link, an attribute and a narrow mode too."""
    made = Made(folder)
    for number, (name, size) in enumerate(NAMES.items()):
        path = made.src / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random_bytes(number, size))
    (made.src / "empty").mkdir()
    if links:
        (made.src / "link").symlink_to("sub/c.tif")
        (made.src / "sub/hard.tif").hardlink_to(made.src / "sub/c.tif")
        (made.src / "a.tif").chmod(0o640)
        os.setxattr(made.src / "a.tif", "user.note", b"first")
    made.copy()
    return made


def told(result: Result) -> dict[str, set[str]]:
    """Problem code -> the paths it was said of."""
    found: dict[str, set[str]] = {}
    for problem in result.problems:
        found.setdefault(problem.code, set()).add(problem.path)
    return found


def state_of(root: str | os.PathLike[str]) -> dict[bytes, tuple[Any, ...]]:
    """What is below a root, with inodes, for "nothing was touched"."""
    return {path: _identity(found) for path, found in snapshot(root, skip=()).items()}


def _identity(found: Found) -> tuple[Any, ...]:
    return found.kind, found.content, found.mode, found.mtime_ns, found.inode, found.xattrs


def path_of(entry: dict[str, Any]) -> bytes:
    """The path of a record's line."""
    return base64.b64decode(entry["path_b64"]) if "path_b64" in entry else os.fsencode(entry["path"])


def _put_back(folder: Path, aside: Path) -> None:
    for _ in range(1000):
        with suppress(OSError):  # the job puts something there again
            if folder.is_symlink():
                folder.unlink()
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
            return


@contextmanager
def swapping(folder: Path, outside: Path, times: int) -> Iterator[list[int]]:
    """While the context lasts, a thread puts a link to `outside` in the place of `folder`, and the folder back.

    It goes on until it has done so `times` times; the list it yields grows by one each time.
    """
    aside = folder.with_name(folder.name + ".aside")
    done: list[int] = []
    stop = threading.Event()

    def swap() -> None:
        while len(done) < times or not stop.is_set():
            try:
                folder.rename(aside)
                folder.symlink_to(outside)
                folder.unlink()
                aside.rename(folder)
            except OSError:  # the job made a folder of this name meanwhile, or removed it
                if not aside.exists():
                    return
                _put_back(folder, aside)
            done.append(1)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()
