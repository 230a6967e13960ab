"""What is below a folder, as far as a demo asks: names, bytes, times; told without the code under test."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from typing import NamedTuple

FOLDER = "folder"


class Seen(NamedTuple):
    """What bears a name: a file's SHA-256, ``-> TARGET`` of a link, or ``folder``; and what tells it from a twin."""

    content: str
    size: int
    mtime_ns: int
    inode: int

    @property
    def is_file(self) -> bool:
        """Neither a folder nor a link?"""
        return len(self.content) == 64


def look(root: str | os.PathLike[str]) -> dict[str, Seen]:
    """What is below a folder, by path; every file is read. Nothing if the folder is not there."""
    return dict(_look(os.fspath(root), ""))


def contents(found: Mapping[str, Seen]) -> dict[str, str]:
    """Path -> content."""
    return {path: seen.content for path, seen in found.items()}


def _look(folder: str, head: str) -> Iterator[tuple[str, Seen]]:
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    for name in names:
        path, shown = os.path.join(folder, name), head + os.fsencode(name).decode("utf-8", "surrogateescape")
        facts = os.lstat(path)
        if stat.S_ISLNK(facts.st_mode):
            content = "-> " + os.readlink(path).replace("\\", "/")
        elif stat.S_ISDIR(facts.st_mode):
            content = FOLDER
        else:
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        yield shown, Seen(content, facts.st_size, facts.st_mtime_ns, facts.st_ino)
        if content == FOLDER:
            yield from _look(path, f"{shown}/")
