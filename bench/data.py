"""Data sets of the benches: random bytes in plain trees, made once and kept.

A set is described by a few numbers, so that two machines compare the same trees: the bytes come from a seeded
generator, the names are made by counting. A set is built under a temporary name and renamed when it is whole; beside it
lies its description, and a set whose description is another one is built again. Random bytes, because a file system or
a tool that compresses or finds zeros would otherwise be measured at something else.

Nothing here holds a list of names: the harness must stay small in memory (see `harness.spent`).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class DataSet:
    """A tree of `files` files in `folders` folders, each of `smallest` to `largest` bytes."""

    name: str
    folders: int
    files: int
    smallest_bytes: int
    largest_bytes: int

    @property
    def size_bytes(self) -> int:
        """Bytes of all files; for sets of one file size only, else the expected total."""
        return self.files * (self.smallest_bytes + self.largest_bytes) // 2

    def file(self, number: int) -> str:
        """Path of file `number` relative to the set."""
        return f"pos_{number * self.folders // self.files:05d}/img_{number:07d}.tif"

    def name_bytes(self) -> int:
        """Bytes of one file name (all are of equal length), without its folder."""
        return len(os.path.basename(self.file(0)))


def ensure(wanted: DataSet, root: Path) -> Path:
    """Folder of the set below `root`, built if it is not there yet."""
    folder, description = root / wanted.name, root / f"{wanted.name}.json"
    text = json.dumps(asdict(wanted))
    if folder.is_dir() and description.is_file() and description.read_text() == text:
        return folder
    unfinished = root / f"{wanted.name}.unfinished"
    for old in (description, folder, unfinished):
        remove(old)
    unfinished.mkdir(parents=True)
    _fill(wanted, unfinished)
    sync(unfinished)
    unfinished.rename(folder)
    description.write_text(text)
    return folder


def _fill(wanted: DataSet, folder: Path) -> None:
    """Write every file of the set."""
    source = random.Random(wanted.name)
    made = ""
    for number in range(wanted.files):
        path = wanted.file(number)
        if (parent := os.path.dirname(path)) != made:
            os.mkdir(folder / parent)
            made = parent
        left = source.randint(wanted.smallest_bytes, wanted.largest_bytes)
        with open(f"{folder}/{path}", "wb", buffering=0) as file:
            while left:
                left -= file.write(source.randbytes(min(left, BLOCK_BYTES)))


def rewrite(wanted: DataSet, folder: Path, numbers: range) -> None:
    """Give the files `numbers` other bytes of the same length, in place, and write them back."""
    for number in numbers:
        with open(folder / wanted.file(number), "r+b", buffering=0) as file:
            file.write(os.urandom(wanted.largest_bytes))
    sync(folder)


def walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Relative path and `lstat` of every file below `folder`, in no order."""
    open_folders = [""]
    while open_folders:
        prefix = open_folders.pop()
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                path = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    open_folders.append(path + "/")
                else:
                    yield path, entry.stat(follow_symlinks=False)


def shape(folder: Path) -> tuple[int, int, int]:
    """Count, bytes, and a sum over (path, size) in any order: equal for trees of equal names and sizes."""
    count = size = mixed = 0
    for path, found in walk(folder):
        count += 1
        size += found.st_size
        mixed = (mixed + hash((path, found.st_size))) & (1 << 64) - 1
    return count, size, mixed


def remove(*paths: Path) -> None:
    """Remove files or trees that may not be there; `rm` is three times as fast as `shutil.rmtree`."""
    subprocess.run([shutil.which("rm") or "rm", "-rf", "--", *map(str, paths)], check=True)


def sync(folder: Path) -> None:
    """Flush the file system of `folder`."""
    subprocess.run(["sync", "-f", str(folder)], check=True)
