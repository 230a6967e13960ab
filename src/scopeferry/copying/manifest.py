r"""The manifest: which digest each file of a copy must have, in the tagged form that the standard checkers read.

One line a regular file, sorted by path bytes, LF, no comments: ``XXH128 (raw_data/a b.tif) = b5e9...``. A path with a
backslash, LF or CR takes GNU's escape, a leading backslash before the tag; a file of the root named ``-`` is written
``./-``. The *tree digest* is the SHA-256 of the working manifest, so ``sha256sum manifest.xxh128`` recomputes it.

Reading also understands what others write: plain sums (``HEX  path``, ``HEX *path``), BagIt manifests, rclone's SUM
files. Manifests are untrusted: a path that could lead out of the copy is refused, and the line is named.

>>> parse_line(format_line("xxh128", b"new\nline", bytes(16)))
('xxh128', b'new\nline', b'\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00')
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from scopeferry.errors import UsageError
from scopeferry.kernel import publish
from scopeferry.kernel.digest import ALGORITHMS, BY_HEX_LENGTH, BY_TAG, SEAL, new
from scopeferry.logs import printable

MAX_LINE = 64 << 10
PREFIX = "manifest."

_TAGGED = re.compile(rb"(\\?)([A-Za-z0-9-]+) \((.*)\) = ([0-9a-fA-F]+)", re.DOTALL)
_PLAIN = re.compile(rb"(\\?)([0-9a-fA-F]{32,128}) [ *](.*)", re.DOTALL)
_BAGIT = re.compile(rb"(\\?)([0-9a-fA-F]{32,128})[ \t]+(.*)", re.DOTALL)
_BAGIT_NAME = re.compile(r"(tag)?manifest-[a-z0-9-]+\.txt", re.IGNORECASE)
_BAGIT_ESCAPES = {b"%0a": b"\n", b"%0d": b"\r", b"%25": b"%"}


def format_line(algorithm: str, path: bytes, digest: bytes) -> bytes:
    """One line with its LF."""
    if path == b"-":
        path = b"./-"
    escape = b""
    if b"\\" in path or b"\n" in path or b"\r" in path:
        escape = b"\\"
        path = path.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return b"%s%s (%s) = %s\n" % (escape, ALGORITHMS[algorithm][3].encode(), path, digest.hex().encode())


def parse_line(line: bytes, algorithm: str | None = None, *, bagit: bool = False) -> tuple[str, bytes, bytes]:
    """(algorithm, path, digest) of one line with or without its LF; raises ValueError with the reason.

    `algorithm` names that of a plain line; without it the number of hex digits decides (32 is MD5). In a `bagit` line
    any white space ends the digest, and ``%0A``, ``%0D`` and ``%25`` in the path are what they stand for.
    """
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    if len(line) > MAX_LINE:
        raise ValueError("longer than 64 KiB")
    if tagged := _TAGGED.fullmatch(line):
        escape, tag, path, hexed = tagged.groups()
        name = BY_TAG.get(tag.decode().upper().replace("SHA-", "SHA").replace("XXH3-", "XXH"))
        if name is None:
            raise ValueError(f"unknown algorithm {tag.decode()}")
    elif plain := (None if bagit else _PLAIN.fullmatch(line)) or _BAGIT.fullmatch(line):
        escape, hexed, path = plain.groups()
        path = _bagit_path(path) if bagit else path
        name = algorithm or BY_HEX_LENGTH.get(len(hexed))
        if name is None:
            raise ValueError("no algorithm has so many digits")
    else:
        raise ValueError("neither 'ALGO (path) = hex' nor 'hex  path'")
    if len(hexed) != 2 * ALGORITHMS[name][2]:
        raise ValueError(f"{len(hexed)} hex digits, {name} has {2 * ALGORITHMS[name][2]}")
    return name, check_path(_unescape(path) if escape else path), bytes.fromhex(hexed.decode())


def _unescape(path: bytes) -> bytes:
    parts = {b"\\\\": b"\\", b"\\n": b"\n", b"\\r": b"\r"}

    def one(match: re.Match[bytes]) -> bytes:
        try:
            return parts[match[0]]
        except KeyError:
            raise ValueError("unknown escape in the path") from None

    return re.sub(rb"\\.?", one, path, flags=re.DOTALL)


def check_path(path: bytes) -> bytes:
    """A relative path that stays below its root; raises ValueError with the reason.

    >>> check_path(b"./a/b")
    b'a/b'
    """
    path = path.removeprefix(b"./")
    if not path:
        raise ValueError("empty path")
    if b"\0" in path:
        raise ValueError("NUL in the path")
    if path.startswith(b"/"):
        raise ValueError("absolute path")
    if any(part in {b"", b".", b".."} for part in path.split(b"/")):
        raise ValueError("path with an empty, '.' or '..' part")
    if sys.platform == "win32" and (b"\\" in path or path[1:2] == b":"):
        raise ValueError("path with a drive or a backslash")
    return path


def read(path: str, algorithm: str | None = None, *, ours: bool = False) -> Iterator[tuple[str, bytes, bytes]]:
    """(algorithm, path, digest) of each line of a manifest file; raises UsageError (SF-110) naming the line, or
    (SF-111).

    `algorithm` names that of plain lines. A file of ``ours`` lies in a record folder: it is never opened through a
    link. A BagIt manifest is known by its name.
    """
    plain = algorithm or _named_algorithm(path)
    bagit = not ours and _BAGIT_NAME.fullmatch(os.path.basename(path)) is not None
    number = 0
    try:
        with open(path, "rb", opener=guarded if ours else None) as lines:
            while line := lines.readline(MAX_LINE + 2):
                number += 1
                if line in {b"\n", b"\r\n"} or line.startswith((b"#", b";")):
                    continue
                yield parse_line(line, plain, bagit=bagit)
    except ValueError as error:
        raise UsageError(
            f"{printable(path)} line {number}: {printable(str(error))}", code="SF-110", path=path
        ) from error
    except OSError as error:
        raise UsageError(f"cannot read {printable(path)}: {error.strerror}", code="SF-111", path=path) from error


def guarded(path: str, flags: int) -> int:
    """How `open` opens what is ours: a regular file, never through a link and never waiting for a FIFO."""
    fd = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "no regular file", path)
    return fd


def _bagit_path(path: bytes) -> bytes:
    return re.sub(rb"%0[aAdD]|%25", lambda match: _BAGIT_ESCAPES[match[0].lower()], path)


def of_folder(folder: str) -> dict[str, str]:
    """Algorithm -> path of each manifest of ours in a record folder."""
    try:
        names = set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {name: os.path.join(folder, PREFIX + name) for name in ALGORITHMS if PREFIX + name in names}


def _named_algorithm(path: str) -> str | None:
    """``manifest-sha256.txt`` (BagIt), ``SHA256SUMS``, ``x.md5``: the algorithm that a file's name says."""
    name = os.path.basename(path).lower().replace("sha-", "sha").replace("b3sum", BY_TAG["BLAKE3"])
    return next((algorithm for algorithm in ALGORITHMS if algorithm in name), None)


def write(path: str, algorithm: str, entries: Iterable[tuple[bytes, bytes]]) -> tuple[str, int]:
    """Write a manifest of (path, digest) pairs that come sorted; (its SHA-256, its lines). Whole, flushed, renamed."""
    hasher = new(SEAL)
    count = 0
    with Replacement(path) as file:
        block: list[bytes] = []
        for name, digest in entries:
            block.append(format_line(algorithm, name, digest))
            count += 1
            if len(block) >= 1000:
                data = b"".join(block)
                hasher.update(data)
                file.write(data)
                block = []
        data = b"".join(block)
        hasher.update(data)
        file.write(data)
    return str(hasher.hexdigest()), count


class Replacement:
    """A small file of ours (manifest, receipt) that appears whole or not at all: temporary name, flush, rename, flush
    the folder.
    """

    def __init__(self, path: str, *, durable: bool = True) -> None:
        self.path, self.durable = path, durable
        self.part = f"{path}.part"
        self.file: Any = None

    def __enter__(self) -> Any:
        try:
            self.file = open(self.part, "xb")
        except FileExistsError:  # left by a killed run, or planted: never written through
            os.unlink(self.part)
            self.file = open(self.part, "xb")
        return self.file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        whole = False
        try:
            if kind is None:
                self.file.flush()
                if self.durable:
                    os.fsync(self.file.fileno())
                whole = True
        finally:
            with contextlib.suppress(OSError):  # what a full disk did not take would be written again
                self.file.close()
            if not whole:
                os.unlink(self.part)
        if not whole:
            return
        publish.replace(self.part, self.path)
        if self.durable and os.name == "posix":
            folder = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
