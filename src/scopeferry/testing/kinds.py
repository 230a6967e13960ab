"""A tree that holds every row of ``transfer.md`` 3.2, made by system calls alone.

Each function makes one row below a folder, and may be used by itself; `build` makes all that the file system and the
rights of this process allow. What is made is the same each time, but for access and change times.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from scopeferry.testing.trees import random_bytes

OLD_NS, EARLY_NS, LATE_NS = 1_234_567_890_123_456_789, -86_400_000_000_001, 4_102_444_800_987_654_321
BLOCK = 1 << 20
#: What a copy must list as skipped.
SPECIAL = ("FIFO", "socket", "device")


def _write(path: str | bytes, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


@contextmanager
def _inside(root: str) -> Iterator[int]:
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield folder
    finally:
        os.close(folder)


def files(root: str) -> None:
    """Empty ones, one byte, around the sizes of a page and of a block, and some blocks."""
    for size in (0, 1, 4095, 4096, 4097, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK):
        _write(os.path.join(root, f"size {size}"), random_bytes(size, size))
    os.makedirs(os.path.join(root, "empty folder", "and one in it"))


def times(root: str) -> None:
    """Before 1970, with nanoseconds, in the future; also of folders and links."""
    for name, mtime_ns in (("old", OLD_NS), ("before 1970", EARLY_NS), ("in the future", LATE_NS), ("epoch", 0)):
        path = os.path.join(root, name)
        _write(path, name.encode())
        os.mkdir(f"{path} folder")
        os.symlink(name, f"{path} link")
        for one in (path, f"{path} folder", f"{path} link"):
            os.utime(one, ns=(mtime_ns, mtime_ns), follow_symlinks=False)


def modes(root: str) -> None:
    """Modes of files and folders, the sticky bit, read-only files with attributes in read-only folders."""
    for mode in (0o400, 0o444, 0o600, 0o640, 0o644, 0o700, 0o755, 0o777):
        path = os.path.join(root, f"{mode:o}")
        _write(path, b"%o" % mode)
        if mode in {0o400, 0o444}:
            os.chmod(path, 0o600)
            _set_xattr(path, "user.read-only", b"yes")
        os.chmod(path, mode)
    for mode in (0o500, 0o555, 0o700, 0o750, 0o1777):
        folder = os.path.join(root, f"folder {mode:o}")
        os.makedirs(os.path.join(folder, "below"))
        _write(os.path.join(folder, "file"), b"in a folder of mode %o" % mode)
        _write(os.path.join(folder, "below", "file"), b"below")
        os.chmod(os.path.join(folder, "below"), mode)
        os.chmod(folder, mode)


def links(root: str, outside: str) -> None:
    """To a file, a folder, nothing, itself, upwards, absolute, out of the tree; with odd and with long targets."""
    _write(os.path.join(root, "target"), b"target")
    os.mkdir(os.path.join(root, "target folder"))
    targets = {
        "file": "target", "folder": "target folder", "dangling": "not there", "itself": "itself", "up": "../..",
        "absolute": outside, "out": os.path.relpath(outside, root), "odd": "a\nb\\c \udcff", "long": "x/" * 2000 + "x",
    }  # fmt: skip
    for name, target in targets.items():
        os.symlink(target, os.path.join(root, name))


def hard_links(root: str, outside: str) -> None:
    """Three names of one inode in two folders, and a name of an inode that has another one outside of the tree."""
    os.mkdir(os.path.join(root, "sub"))
    _write(os.path.join(root, "one"), random_bytes(5, 50_000))
    os.link(os.path.join(root, "one"), os.path.join(root, "two"))
    os.link(os.path.join(root, "one"), os.path.join(root, "sub", "three"))
    os.link(outside, os.path.join(root, "also outside"))


def holes(root: str) -> None:
    """A hole at the start, at the end, in the middle, nothing but a hole, and zeros that are no hole."""
    pieces: dict[str, tuple[int, list[int]]] = {
        "at the start": (8 * BLOCK, [7 * BLOCK]),
        "at the end": (8 * BLOCK, [0]),
        "in the middle": (8 * BLOCK + 5, [0, 4 * BLOCK, 8 * BLOCK]),
        "nothing but": (64 * BLOCK, []),
        "many": (16 * BLOCK, list(range(0, 16 * BLOCK, 2 * BLOCK))),
        "odd places": (3 * BLOCK, [12_345, BLOCK + 1]),
    }
    for name, (size, data) in pieces.items():
        with open(os.path.join(root, name), "wb") as file:
            file.truncate(size)
            for at in data:
                file.seek(at)
                file.write(random_bytes(at, min(5000, size - at)))
    _write(os.path.join(root, "zeros"), bytes(3 * BLOCK))


def _set_xattr(path: str, name: str, value: bytes) -> None:
    try:
        os.setxattr(path, name, value)
    except OSError:  # a file system without them: the row is left out
        return


def xattrs(root: str) -> None:
    """Attributes of files and folders: text, empty, all bytes, many, and one of some kilobytes."""
    for kind in ("file", "folder"):
        path = os.path.join(root, kind)
        if kind == "file":
            _write(path, b"with attributes")
        else:
            os.mkdir(path)
        _set_xattr(path, "user.text", b"63x oil")
        _set_xattr(path, "user.empty", b"")
        _set_xattr(path, "user.bytes", bytes(range(256)))
        _set_xattr(path, "user.large", bytes(1500))
        for number in range(10):
            _set_xattr(path, f"user.many.{number}", b"%d" % number)


def special(root: str, *, devices: bool) -> list[str]:
    """A FIFO, a socket and, where allowed, a device: never to be opened. Their names."""
    os.mkfifo(os.path.join(root, "FIFO"))
    here = os.getcwd()
    os.chdir(root)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("socket")
    finally:
        os.chdir(here)
    if devices:
        try:
            os.mknod(os.path.join(root, "device"), 0o600 | stat.S_IFCHR, os.makedev(1, 5))
        except PermissionError:
            devices = False
    return ["FIFO", "socket", *(["device"] if devices else [])]


def odd_names() -> list[bytes]:
    """Every byte but / and NUL, spaces, dashes, quotes, invalid UTF-8, 255 bytes, both Unicode forms, names of ours."""
    every = [b"byte %02x " % byte + bytes([byte]) for byte in range(1, 256) if byte != ord("/")]
    plain = [
        b" ", b" leading", b"trailing ", b"-", b"-rf", b"--help", b"*", b"?", b"[a]", b"'", b'"', b"\\", b"\\n",
        b"a\\\nb", b"\n", b"\r\n", b"...", b"..a", b".hidden", b"~", b"$HOME", b"`id`", b"a;b", b"a|b", b"a:b", b"nul",
        b"CON", b"A", b"a", b"(", b")", b") = ", b"# comment", b"; comment", b"\x1b[31mred\x1b[0m", b"manifest.xxh128",
        b".sf-not-ours.part", b"XXH128 (a) = 00", b"x" * 255, b"\xff\xfe", b"\xed\xa0\x80",
    ]  # fmt: skip
    unicode = ["\u00e9", "e\u0301", "\u65e5\u672c"]
    return [*every, *plain, *(name.encode() for name in unicode)]


def names(root: str) -> None:
    """Files and folders with odd names."""
    with _inside(root) as folder:
        for number, name in enumerate(odd_names()):
            fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=folder)
            os.write(fd, b"%d" % number)
            os.close(fd)
        os.mkdir("folders", dir_fd=folder)
        inner = os.open("folders", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
        try:
            for name in odd_names()[250:]:
                os.mkdir(name, dir_fd=inner)
                one = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=inner)
                os.close(os.open(b"in " + name[:240], os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=one))
                os.close(one)
        finally:
            os.close(inner)


def deep(root: str, *, levels: int = 40, length: int = 200) -> None:
    """A path beyond PATH_MAX: `levels` folders with names of `length` bytes, a file in each."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for level in range(levels):
        name = f"{level:03}".ljust(length, "d")
        os.mkdir(name, dir_fd=folder)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
        os.close(folder)
        folder = below
        fd = os.open("file", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=folder)
        os.write(fd, b"level %d" % level)
        os.close(fd)
    os.close(folder)


def many_levels(root: str, *, levels: int = 1100) -> None:
    """More folders in one another than a recursive walk survives."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=folder)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=folder))
    os.close(folder)


def build(root: str | os.PathLike[str], outside: str | os.PathLike[str], *, devices: bool = False) -> list[str]:
    """All rows but the deep ones, each in a folder of its own below `root`; the names of what must be skipped.

    `outside` is a folder beside the tree, for what leads out of it.
    """
    os.makedirs(root, exist_ok=True)
    os.makedirs(outside, exist_ok=True)
    beyond = os.path.join(outside, "beyond")
    _write(beyond, b"outside of the tree")

    def at(name: str) -> str:
        path = os.path.join(root, name)
        os.mkdir(path)
        return path

    files(at("files"))
    times(at("times"))
    links(at("links"), beyond)
    hard_links(at("hard links"), beyond)
    holes(at("holes"))
    xattrs(at("xattrs"))
    names(at("names"))
    skipped = special(at("special"), devices=devices)
    modes(at("modes"))
    _set_xattr(os.fspath(root), "user.root", b"of the root folder")
    os.chmod(root, 0o700)
    os.utime(root, ns=(OLD_NS, OLD_NS))
    return skipped


def unlock(root: str | os.PathLike[str]) -> None:
    """Give all folders below `root` back to their owner, so that they can be removed."""
    for path, folders, _ in os.walk(root):
        for name in folders:
            one = os.path.join(path, name)
            if not os.path.islink(one):
                os.chmod(one, 0o700)
