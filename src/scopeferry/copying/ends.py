"""The two ends of a copy: resolved once, told apart, and looked at before anything is made."""

from __future__ import annotations

import os
import stat
from typing import Any

from scopeferry.errors import Failed, UsageError
from scopeferry.kernel.publish import system
from scopeferry.logs import printable


def resolve(src: str, dst: str, *, parents: bool) -> tuple[str, str, str | None, Any]:
    """(source root, destination root, name of the one file or None, how names are mapped). Nothing is made."""
    try:
        found = os.stat(src)
    except OSError as error:
        raise UsageError(f"source is not there: {printable(src)}", code="SF-101", path=src) from error
    if not dst:  # a variable that was not set: the current folder is no guess
        raise UsageError("the destination is an empty name", code="SF-105", hint="name a folder; . is the current one")
    src = os.path.realpath(src)
    dst = os.path.realpath(dst)
    if stat.S_ISREG(found.st_mode):
        return _resolve_file(src, dst, parents=parents)
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError(f"neither a folder nor a regular file: {printable(src)}", code="SF-112", path=src)
    if os.path.exists(dst) and not os.path.isdir(dst):
        raise UsageError(
            f"the source is a folder, the destination is a file: {printable(dst)}", code="SF-112", path=dst
        )
    _check_parent(dst, parents=parents)
    _check_apart(src, dst)
    return src, dst, None, None


def _resolve_file(src: str, dst: str, *, parents: bool) -> tuple[str, str, str, Any]:
    name = os.path.basename(src)
    target = os.path.join(dst, name) if os.path.isdir(dst) else dst
    folder = os.path.dirname(target)
    if os.path.exists(target) and os.path.samefile(src, target):
        raise UsageError(f"source and destination are the same file: {printable(src)}", code="SF-104", path=src)
    if not os.path.isdir(folder) and not parents:
        raise UsageError(f"the folder of the destination is not there: {printable(folder)}", code="SF-102", path=folder)
    return os.path.dirname(src), folder, name, OneName(name, os.path.basename(target))


class OneName:
    """The one file of a source, under its name at the destination."""

    def __init__(self, name: str, stored: str) -> None:
        self.one, self.stored = name, stored

    def name(self, _folder: str, name: str) -> str:
        """The stored name of an entry."""
        return self.stored if name == self.one else name

    def path(self, path: str) -> str:
        """The stored path of a folder."""
        return path

    def full(self, key: str) -> str:
        """The stored path of an item."""
        return self.stored if key == self.one else key

    def is_stored(self, _prefix: bytes, name: str) -> bool:
        """Is this a name of ours at the destination?"""
        return name == self.stored


def _check_parent(dst: str, *, parents: bool) -> None:
    parent = os.path.dirname(dst)
    if not os.path.isdir(parent) and not parents:
        raise UsageError(
            f"the parent folder of the destination is not there: {printable(parent)}", code="SF-102", path=parent
        )


def _check_apart(src: str, dst: str) -> None:
    """Neither may lie in the other, by path or by device and inode (bind mounts, links)."""
    here = os.stat(src)
    if os.path.isdir(dst) and os.path.samestat(here, os.stat(dst)):
        raise UsageError(f"source and destination are the same folder: {printable(dst)}", code="SF-104", path=dst)
    if inside(dst, src):
        raise UsageError(f"the destination lies in the source: {printable(dst)}", code="SF-103", path=dst)
    if os.path.isdir(dst) and inside(src, dst):
        raise UsageError(f"the source lies in the destination: {printable(src)}", code="SF-103", path=src)


def inside(path: str, folder: str) -> bool:
    """Is `path` below `folder`, or is it?"""
    if (path + os.sep).startswith(folder.rstrip(os.sep) + os.sep):
        return True
    try:
        wanted = os.stat(folder)
    except OSError:
        return False
    at = path
    while True:
        try:
            if os.path.samestat(os.stat(at), wanted):
                return True
        except OSError:
            pass
        up = os.path.dirname(at)
        if up == at:
            return False
        at = up


def existing(path: str) -> str:
    """The folder itself if it is there, else the nearest one above it that is."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def check_writable(dst: str) -> None:
    """Raise Failed (SF-301) if nothing can be written there, before the first byte."""
    where = existing(dst)
    if not os.access(where, os.W_OK | os.X_OK) and os.stat(where).st_uid != getattr(os, "geteuid", int)():
        raise Failed(f"no permission to write {printable(where)}", code="SF-301", path=where)
    if hasattr(os, "statvfs") and os.statvfs(where).f_flag & getattr(os, "ST_RDONLY", 1):
        raise Failed(f"read-only file system: {printable(where)}", code="SF-301", path=where)


def make(dst: str, *, parents: bool = False) -> None:
    """Make the destination, if it is not there; raises Failed (SF-301) where there can be none."""
    try:
        os.makedirs(dst) if parents else os.mkdir(dst, 0o777)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno in system.NO_SPACE | system.GONE or (isinstance(error, FileNotFoundError) and not parents):
            raise
        message = f"the destination cannot be made: {error.strerror}: {printable(error.filename or dst)}"
        raise Failed(message, code="SF-301", path=dst, hint="name another one, or make it") from error
