"""Trees for tests: random ones, what is in one, how two differ, and damage that leaves no trace in the times.

Everything works on folder descriptors, name by name, so trees may be deeper than PATH_MAX and names may be any bytes.
Nothing here uses the code under test.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import stat
from collections.abc import Iterator
from typing import NamedTuple


class Found(NamedTuple):
    """One entry of a tree: its kind (``file folder link other``), what it holds, and what is kept beside that."""

    kind: str
    content: bytes  # SHA-256 of a file's bytes, the target of a link
    size: int
    mode: int
    mtime_ns: int
    xattrs: tuple[tuple[str, bytes], ...]
    inode: int
    links: int


def walk(root: str | os.PathLike[str]) -> Iterator[tuple[bytes, int, bytes, os.stat_result]]:
    """(path, descriptor of its folder, name, lstat) of all below a root; the descriptor is good until the next step."""
    stack = [(b"", os.open(root, os.O_RDONLY | os.O_DIRECTORY))]
    try:
        while stack:
            head, folder = stack.pop()
            try:
                for entry in sorted(os.listdir(folder)):
                    name = os.fsencode(entry)
                    facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    yield head + name, folder, name, facts
                    if stat.S_ISDIR(facts.st_mode):
                        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                        stack.append((head + name + b"/", os.open(name, flags, dir_fd=folder)))
            finally:
                os.close(folder)
    finally:
        for _, folder in stack:
            os.close(folder)


def _xattrs(fd: int) -> tuple[tuple[str, bytes], ...]:
    try:
        return tuple((name, os.getxattr(fd, name)) for name in sorted(os.listxattr(fd)) if name.startswith("user."))
    except OSError:
        return ()


def _digest(fd: int) -> bytes:
    hasher = hashlib.sha256()
    while block := os.read(fd, 1 << 20):
        hasher.update(block)
    return hasher.digest()


def _look(folder: int, name: bytes, facts: os.stat_result) -> Found:
    kind, content, size = "other", b"", 0
    extra: tuple[tuple[str, bytes], ...] = ()
    if stat.S_ISLNK(facts.st_mode):
        kind, content = "link", os.readlink(name, dir_fd=folder)
    elif stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode):
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
        try:
            extra = _xattrs(fd)
            if stat.S_ISREG(facts.st_mode):
                kind, content, size = "file", _digest(fd), facts.st_size
            else:
                kind = "folder"
        finally:
            os.close(fd)
    return Found(kind, content, size, facts.st_mode & 0o7777, facts.st_mtime_ns, extra, facts.st_ino, facts.st_nlink)


def snapshot(root: str | os.PathLike[str], *, skip: tuple[bytes, ...] = (b".scopeferry",)) -> dict[bytes, Found]:
    """Path -> what is there, of everything below `root` but what lies in folders named as in `skip` at the root."""
    found = ((path, _look(folder, name, facts)) for path, folder, name, facts in walk(root))
    return {path: entry for path, entry in found if path.split(b"/")[0] not in skip}


def differences(source: str | os.PathLike[str], copy: str | os.PathLike[str], *, times: bool = True) -> list[str]:
    """How two trees differ: one sentence each. Neither FIFOs nor what only the copy has count."""
    here, there = snapshot(source), snapshot(copy)
    told = []
    for path, found in here.items():
        if found.kind == "other":
            continue
        twin = there.get(path)
        if twin is None:
            told.append(f"{path!r} is missing")
            continue
        told += [
            f"{path!r}: {field} is {getattr(twin, field)!r}, not {getattr(found, field)!r}"
            for field in ("kind", "content", "size", "mode", *(["mtime_ns"] if times else []), "xattrs")
            if getattr(twin, field) != getattr(found, field)
        ]
    return told


def parts(root: str | os.PathLike[str]) -> list[bytes]:
    """The paths of temporary files of ours below `root`."""
    return [path for path, _, name, _ in walk(root) if re.fullmatch(rb"\.sf-[0-9a-f]{16}-[0-9a-f]{8}\.part", name)]


def random_bytes(seed: int, size: int) -> bytes:
    """The same bytes for the same seed."""
    return random.Random(seed).randbytes(size)


def random_tree(
    root: str | os.PathLike[str], *, files: int = 20, folders: int = 4, size: int = 20_000, seed: int = 1
) -> None:
    """A tree of `files` files of up to `size` bytes in up to `folders` folders, nested; the same for the same seed."""
    choice = random.Random(seed)
    os.makedirs(root, exist_ok=True)
    places = [os.fspath(root)]
    for number in range(folders):
        places.append(os.path.join(choice.choice(places), f"folder{number}"))
        os.makedirs(places[-1], exist_ok=True)
    for number in range(files):
        with open(os.path.join(choice.choice(places), f"file{number:03}.tif"), "wb") as file:
            file.write(choice.randbytes(choice.randint(0, size)))


def flip(path: str | os.PathLike[str], offset: int = 0, *, bit: int = 1) -> None:
    """Flip one bit of a file and put its modification time back: damage that neither size nor time shows."""
    before = os.stat(path)
    with open(path, "r+b", buffering=0) as file:
        file.seek(offset)
        (old,) = file.read(1)
        file.seek(offset)
        file.write(bytes([old ^ bit]))
        os.fsync(file.fileno())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def rewrite(path: str | os.PathLike[str], data: bytes, *, keep_time: bool = False) -> None:
    """Write a file anew in place, in one call; with `keep_time` its modification time is put back."""
    before = os.stat(path)
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, data, 0)
        if before.st_size != len(data):
            os.ftruncate(fd, len(data))
        if keep_time:
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
    finally:
        os.close(fd)


def mutated(data: bytes, choice: random.Random) -> bytes:
    """These bytes after one to four random changes: bits, insertions of what parsers dislike, deletions, cuts."""
    found = bytearray(data)
    dislikes = [b"\n", b"\0", b"..", b"/", b"\\", b'"', b"{", b"\xff", b"9" * 30, b"[" * 50]
    for _ in range(choice.randint(1, 4)):
        at = choice.randrange(len(found)) if found else 0
        what = choice.randrange(5)
        if what == 0 and found:
            found[at] ^= 1 << choice.randrange(8)
        elif what == 1:
            found[at:at] = choice.choice(dislikes)
        elif what == 2:
            del found[at : at + choice.randint(1, 40)]
        elif what == 3:
            found[at : at + 8] = choice.randbytes(8)
        else:
            del found[at:]
    return bytes(found)
