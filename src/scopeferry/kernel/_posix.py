"""Every call to the system that differs by system: Linux and macOS. ``_windows.py`` has the same names.

A *folder* is an open descriptor. Everything below a root is reached name by name through descriptors, with O_NOFOLLOW: a link
that is planted where a folder was cannot lead anywhere, and paths may be longer than PATH_MAX. Nothing here decides anything:
``publish.py`` does. ``ctypes`` is imported at the first call that needs it, for a rerun with nothing to do needs none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from typing import Any

Folder = int

_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2  # renameat2(2)
_MAC_SWAP, _MAC_EXCL = 2, 4  # renameatx_np(2)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PART = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_NOATIME = getattr(os, "O_NOATIME", 0)
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
_DARWIN = sys.platform == "darwin"
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}

NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
GONE = {errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENODEV, errno.ESHUTDOWN, errno.ENXIO}
BAD_NAME = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL}

_library: Any = None


def _libc() -> Any:
    global _library  # noqa: PLW0603  (loaded once, at first use)
    if _library is None:
        import ctypes  # noqa: PLC0415

        _library = ctypes.CDLL(None, use_errno=True)
    return _library


def _call(name: str, *arguments: Any) -> None:
    """Call a function of the C library; raises OSError with its errno. EINTR is tried again, as Python's own calls do."""
    import ctypes  # noqa: PLC0415

    function = getattr(_libc(), name, None)
    if function is None:
        raise OSError(errno.ENOSYS, name)
    while function(*arguments) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


# -- folders ---------------------------------------------------------------------------------------------------------


def open_root(path: str) -> Folder:
    """Open a root; it may be a link."""
    return os.open(path, _FOLDER)


def open_folder(parent: Folder, name: str) -> Folder:
    """Open a folder in a folder, never through a link (NotADirectoryError or ELOOP)."""
    return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)


def make_folder(parent: Folder, name: str) -> None:
    """Make a folder that only we may enter until its own mode is set."""
    os.mkdir(name, 0o700, dir_fd=parent)


def close_folder(folder: Folder) -> None:
    """Give the folder back."""
    os.close(folder)


def scan(folder: Folder) -> Any:
    """An ``os.scandir`` of the folder."""
    return os.scandir(folder)


def lstat(folder: Folder, name: str) -> os.stat_result:
    """The entry itself, never what a link points at."""
    return os.stat(name, dir_fd=folder, follow_symlinks=False)


def folder_stat(folder: Folder) -> os.stat_result:
    """The open folder."""
    return os.fstat(folder)


def open_up(folder: Folder) -> None:
    """Let the owner write into a folder of ours that is read-only."""
    os.fchmod(folder, os.fstat(folder).st_mode & 0o7777 | 0o700)


def read_link(folder: Folder, name: str) -> str:
    """The target of a symbolic link."""
    return os.readlink(name, dir_fd=folder)


def make_link(target: str, folder: Folder, name: str) -> None:
    """Make a symbolic link."""
    os.symlink(target, name, dir_fd=folder)


def hard_link(folder: Folder, name: str, to_folder: Folder, to_name: str) -> None:
    """Give a file a second name; FileExistsError if that is taken."""
    os.link(name, to_name, src_dir_fd=folder, dst_dir_fd=to_folder, follow_symlinks=False)


def unlink(folder: Folder, name: str) -> None:
    """Remove a name."""
    os.unlink(name, dir_fd=folder)


def remove_folder(folder: Folder, name: str) -> None:
    """Remove an empty folder."""
    os.rmdir(name, dir_fd=folder)


# -- files -----------------------------------------------------------------------------------------------------------


def open_source(folder: Folder, name: str) -> int:
    """Open for reading; never a link's target, never blocking on a FIFO; the access time is left alone where allowed."""
    try:
        return os.open(name, _READ | _NOATIME, dir_fd=folder)
    except PermissionError:
        return os.open(name, _READ, dir_fd=folder)


def create_part(folder: Folder, name: str) -> int:
    """A new file for reading and writing that nobody else may open; FileExistsError if there is one."""
    return os.open(name, _PART | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)


def open_part(folder: Folder, name: str) -> int:
    """Open a temporary file of ours again, for reading and writing."""
    return os.open(name, _PART, dir_fd=folder)


def read_into(fd: int, buffer: Any, offset: int) -> int:
    """Read at an offset; the number of bytes, 0 at the end."""
    return os.preadv(fd, [buffer], offset)


def write_at(fd: int, data: Any, offset: int) -> None:
    """Write all of it at an offset."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def data_ranges(fd: int, size: int, blocks: int) -> Iterator[tuple[int, int]]:
    """The (start, end) of what holds data, in order; all between is zeros. Holes are looked for if blocks are fewer than the size."""
    if blocks * 512 >= size or not hasattr(os, "SEEK_DATA"):
        yield 0, size
        return
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole from here to the end
                return
            yield at, size
            return
        at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start < size:
            yield start, at


def set_size(fd: int, size: int) -> None:
    """Give the file its length; what was not written is a hole."""
    os.ftruncate(fd, size)


def set_attributes(fd: int, mode: int | None, mtime_ns: int | None) -> None:
    """Permission bits and modification time of an open file or folder, where asked for."""
    if mode is not None:
        os.fchmod(fd, mode)
    if mtime_ns is not None:
        os.utime(fd, ns=(os.fstat(fd).st_atime_ns, mtime_ns))


def set_link_time(folder: Folder, name: str, mtime_ns: int) -> None:
    """Modification time of a link itself."""
    os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=folder, follow_symlinks=False)


def set_owner(fd: int, uid: int, gid: int) -> None:
    """Owner and group of an open file."""
    os.fchown(fd, uid, gid)


def xattrs(fd: int) -> dict[str, bytes]:
    """All extended attributes of an open file that we may read; none where the file system has none."""
    if not hasattr(os, "listxattr"):
        return {}
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return {}
        raise
    found = {}
    for name in names:
        try:
            found[name] = os.getxattr(fd, name)
        except OSError as error:  # gone meanwhile, or a namespace that is closed to us
            if error.errno not in {errno.ENODATA, errno.EPERM, errno.EACCES, *_UNSUPPORTED}:
                raise
    return found


def set_xattr(fd: int, name: str, value: bytes) -> None:
    """Set one extended attribute."""
    os.setxattr(fd, name, value)


def remove_xattr(fd: int, name: str) -> None:
    """Remove one extended attribute."""
    os.removexattr(fd, name)


# -- flush, drop, look whether it is gone -----------------------------------------------------------------------------


def write_back(fd: int) -> None:
    """Have dirty pages written, so that a later store through a memory map moves the times (``transfer.md`` 3.3, step 1)."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415

        with contextlib.suppress(OSError):  # ESPIPE, ENOSYS: there it cannot be had, and nothing is lost by the attempt
            _call("sync_file_range", fd, ctypes.c_int64(0), ctypes.c_int64(0), 7)


def flush(fd: int) -> None:
    """Have one file written to its storage."""
    if _DARWIN:
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # type: ignore[attr-defined,unused-ignore]
    else:
        os.fdatasync(fd)


def flush_all(fd: int) -> None:
    """Have the whole file system of an open file written to its storage."""
    _call("syncfs", fd)


def flush_folder(folder: Folder) -> None:
    """Have the names in a folder written to their storage."""
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:  # some mounts cannot flush a folder
            raise


def drop(fd: int) -> None:
    """Ask for the cached pages of a file to be dropped. On dirty pages this does nothing: flush first."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    elif _DARWIN:
        fcntl.fcntl(fd, fcntl.F_NOCACHE, 1)  # type: ignore[attr-defined,unused-ignore]


def is_cached(fd: int) -> bool:
    """Would the first page be read from memory? (``mincore`` calls everything resident in files one may not write.)"""
    if not _NOWAIT:
        return False
    try:
        return os.preadv(fd, [bytearray(1)], 0, _NOWAIT) > 0
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise


# -- names that appear at once ----------------------------------------------------------------------------------------


def rename(folder: Folder, old: str, new: str) -> None:
    """Rename over whatever is there. Only ``publish.py`` may call it, after it has looked."""
    os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)


def rename_new(folder: Folder, old: str, new: str) -> None:
    """Rename onto a free name; FileExistsError if it is taken."""
    try:
        _rename_with(folder, old, new, _MAC_EXCL if _DARWIN else _NOREPLACE)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _rename_new_by_hand(folder, old, new)


def _rename_new_by_hand(folder: Folder, old: str, new: str) -> None:
    """Where the kernel or the mount knows no such rename: a link appears only on a free name."""
    try:
        hard_link(folder, old, folder, new)
    except FileExistsError:
        raise
    except OSError as error:  # no hard links either (FAT, some mounts): look, then rename
        if error.errno not in {errno.EPERM, errno.EMLINK, *_UNSUPPORTED}:
            raise
        try:
            lstat(folder, new)
        except FileNotFoundError:
            rename(folder, old, new)
            return
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new) from None
    unlink(folder, old)


def exchange(folder: Folder, one: str, other: str) -> bool:
    """Let two names change places at once; False where that cannot be done."""
    try:
        _rename_with(folder, one, other, _MAC_SWAP if _DARWIN else _EXCHANGE)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _rename_with(folder: Folder, old: str, new: str, flag: int) -> None:
    name = "renameatx_np" if _DARWIN else "renameat2"
    _call(name, folder, os.fsencode(old), folder, os.fsencode(new), flag)


# -- locks, mounts, room ----------------------------------------------------------------------------------------------


def lock(fd: int) -> bool:
    """Take the lock of an open file for as long as it stays open; False if another process has it. OSError: no locks here."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def mount(path: str) -> tuple[str, str, str]:
    """(file system type, mount point, device) of an existing path: the longest prefix in mountinfo."""
    if _DARWIN:
        return _mount_darwin(path)
    best = ("unknown", "/", "")
    length = -1
    real = os.fsencode(os.path.realpath(path))
    with contextlib.suppress(FileNotFoundError), open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            left, _, right = line.partition(b" - ")
            point = left.split(b" ")[4]
            if b"\\" in point:
                point = _unescape(point)
            prefix = point.rstrip(b"/") + b"/"
            if (real + b"/").startswith(prefix) and len(prefix) >= length:
                kind, device = right.split(b" ")[:2]
                best, length = (kind.decode(), os.fsdecode(point), os.fsdecode(_unescape(device))), len(prefix)
    return best


def _unescape(text: bytes) -> bytes:
    for code, byte in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        text = text.replace(code, byte)
    return text


def _mount_darwin(path: str) -> tuple[str, str, str]:
    """From statfs(2): the names lie behind 72 bytes of numbers (sys/mount.h, 64-bit inodes)."""
    import ctypes  # noqa: PLC0415

    buffer = ctypes.create_string_buffer(4096)
    _call("statfs", os.fsencode(path), buffer)
    kind, point, device = buffer.raw[72:88], buffer.raw[88:1112], buffer.raw[1112:2136]
    return tuple(os.fsdecode(part.split(b"\0")[0]) for part in (kind, point, device))  # type: ignore[return-value]


def room(folder: Folder) -> tuple[int, int]:
    """(free bytes, free inodes) for us on the file system of a folder; inodes are -1 where they are not counted."""
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize, facts.f_favail if facts.f_files else -1


def file_limit() -> int:
    """How many files this process may hold open."""
    import resource  # noqa: PLC0415

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def is_root() -> bool:
    """May we do what only an administrator may?"""
    return os.geteuid() == 0
