"""Every call to the system that differs by system: Linux and macOS. ``_windows.py`` has the same names.

A *folder* is an open descriptor. Everything below a root is reached name by name through descriptors, with O_NOFOLLOW:
a link that is planted where a folder was cannot lead anywhere, and paths may be longer than PATH_MAX. Nothing here
decides anything: ``publish.py`` does. ``ctypes`` is imported at the first call that needs it, for a rerun with nothing
to do needs none. What is for macOS alone is written from its manual pages and has not run there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

Folder = int

_NOREPLACE, _EXCHANGE = 1, 2  # renameat2(2)
_MAC_SWAP, _MAC_EXCL = 2, 4  # renameatx_np(2)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PART = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_NOATIME = getattr(os, "O_NOATIME", 0)
_ENOUGH_FILES = 4096
_AHEAD = 4 << 20  # bytes of one file that are asked for at once
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
_DARWIN = sys.platform == "darwin"
_LINUX = sys.platform == "linux"
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}

_CASEFOLD = 0x4000_0000  # FS_CASEFOLD_FL of FS_IOC_GETFLAGS
_GETFLAGS = 0x8008_6601
_NO_SUCH_XATTR = {getattr(errno, "ENODATA", 0), getattr(errno, "ENOATTR", 0)}
_NO_XATTR = {*_NO_SUCH_XATTR, errno.EPERM, errno.EACCES, *_UNSUPPORTED}

#: What of ``--keep`` can be kept on this system at all.
CAN_KEEP = frozenset({"times", "mode", "links", "hardlinks", "holes", "xattrs", "owner"})
if not _DARWIN:
    CAN_KEEP |= {"acl"}
#: What of it `xattrs` finds.
ATTRIBUTES = frozenset({"xattrs", "acl"})
#: No name holds these characters, and no name of these is a file's, whatever the destination says when asked.
FORBIDDEN, ENDINGS, RESERVED = "", "", False

NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
GONE = {
    errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
    errno.ETIMEDOUT, errno.ENODEV, errno.ESHUTDOWN, errno.ENXIO,
}  # fmt: skip
BAD_NAME = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL}

_library: Any = None


def _libc() -> Any:
    global _library  # noqa: PLW0603  (loaded once, at first use)
    if _library is None:
        import ctypes

        _library = ctypes.CDLL(None, use_errno=True)
    return _library


def _call(name: str, *arguments: Any) -> None:
    """Call a function of the C library; raises OSError with its errno. EINTR is tried again, as by Python itself."""
    import ctypes

    function = getattr(_libc(), name, None)
    if function is None:
        raise OSError(errno.ENOSYS, name)
    while function(*arguments) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


_near: Any = None


def _quick(name: str, *arguments: Any) -> int:
    """Call a function that takes microseconds on a local disk, and keep the interpreter's lock meanwhile.

    With four workers each giving up of the lock costs 15 us until it is had again, several times what the call takes
    (measured: `flistxattr` 2 us, with its turn at the lock 12). Never for what may wait for a server or a disk.
    """
    global _near  # noqa: PLW0603  (loaded once, at first use)
    import ctypes

    if _near is None:
        _near = ctypes.PyDLL(None, use_errno=True)
        _near.posix_fadvise.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_int)
        _near.futimens.argtypes = (ctypes.c_int, ctypes.c_int64 * 4)
    result: int = getattr(_near, name)(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _times(*at_ns: int) -> Any:
    """A ``timespec`` array."""
    import ctypes

    return (ctypes.c_int64 * 4)(*(part for ns in at_ns for part in divmod(ns, 1_000_000_000)))


# -- folders -----------------------------------------------------------------------------------------------------------


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


class _Listing:
    """An ``os.scandir`` of a folder that was opened anew; its entries are good until it is closed.

    One descriptor lists once: sshfs answers the next listing by it with nothing, and believes that from then on.
    """

    __slots__ = ("_fd", "_found")

    def __init__(self, folder: Folder) -> None:
        try:
            self._fd = os.open(".", _FOLDER, dir_fd=folder)
        except PermissionError:  # it may be listed, and not entered
            self._fd = os.dup(folder)
        try:
            self._found = os.scandir(self._fd)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Iterator[os.DirEntry[str]]:
        return self._found

    def __iter__(self) -> Iterator[os.DirEntry[str]]:
        return self._found

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the listing; twice is harmless."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._found.close()
            os.close(fd)


def scan(folder: Folder) -> Any:
    """A listing of the folder: a context that gives what ``os.scandir`` gives."""
    return _Listing(folder)


def lstat(folder: Folder, name: str) -> os.stat_result:
    """The entry itself, never what a link points at."""
    return os.stat(name, dir_fd=folder, follow_symlinks=False)


def looker(folder: Folder) -> Any:
    """`lstat` in one folder, as a function of the name alone: for loops that do little else."""
    return partial(os.stat, dir_fd=folder, follow_symlinks=False)


def folder_stat(folder: Folder) -> os.stat_result:
    """The open folder."""
    return os.fstat(folder)


fstat = os.fstat


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


# -- files -------------------------------------------------------------------------------------------------------------


def open_source(folder: Folder, name: str) -> int:
    """Open for reading; never a link's target, never blocking on a FIFO; where allowed the access time stays."""
    try:
        return os.open(name, _READ | _NOATIME, dir_fd=folder)
    except PermissionError:
        return os.open(name, _READ, dir_fd=folder)


def create_part(folder: Folder, name: str) -> int:
    """A new file for reading and writing that nobody else may open; FileExistsError if there is one."""
    return os.open(name, _PART | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)


def create_shared(folder: Folder, name: str) -> int:
    """A new file for writing that those may read who may read its folder; FileExistsError if there is one."""
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=folder)


def open_part(folder: Folder, name: str) -> int:
    """Open a temporary file of ours again, for reading and writing."""
    try:
        return os.open(name, _PART, dir_fd=folder)
    except PermissionError:  # a killed run had given it its own mode already
        fd = os.open(name, _READ, dir_fd=folder)
        try:
            os.fchmod(fd, 0o600)
        finally:
            os.close(fd)
        return os.open(name, _PART, dir_fd=folder)


def close(fd: int, *, near: bool = False) -> None:
    """Close a file; `near`: it lies on a local disk."""
    if near and _LINUX:
        _quick("close", fd)
    else:
        os.close(fd)


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
    """The (start, end) of what holds data, in order; all between is zeros.

    Holes are looked for if `blocks`, of 512 bytes, are fewer than the size.
    """
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


def set_attributes(fd: int, mode: int | None, mtime_ns: int | None, atime_ns: int, *, near: bool = False) -> None:
    """Permission bits and modification time of an open file or folder, where asked for.

    `atime_ns` is the access time, which is set beside the other; `near`: the file lies on a local disk.
    """
    if near and _LINUX:
        if mode is not None:
            _quick("fchmod", fd, mode)
        if mtime_ns is not None:
            _quick("futimens", fd, _times(atime_ns, mtime_ns))
        return
    if mode is not None:
        os.fchmod(fd, mode)
    if mtime_ns is not None:
        os.utime(fd, ns=(atime_ns, mtime_ns))


def set_link_time(folder: Folder, name: str, mtime_ns: int) -> None:
    """Modification time of a link itself."""
    os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=folder, follow_symlinks=False)


def set_link_owner(folder: Folder, name: str, uid: int, gid: int) -> None:
    """Owner and group of a link itself."""
    os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)


def set_owner(fd: int, uid: int, gid: int) -> None:
    """Owner and group of an open file."""
    os.fchown(fd, uid, gid)


def xattrs(fd: int, *, near: bool = False) -> dict[str, bytes]:
    """All extended attributes of an open file that we may read; none where the file system has none.

    `near`: the file lies on a local disk.
    """
    try:
        if near and _LINUX and _quick("flistxattr", fd, None, 0) == 0:
            return {}
        names = os.listxattr(fd) if not _DARWIN else _darwin_xattr_names(fd)
    except OSError as error:
        if error.errno in _UNSUPPORTED or (error.errno == errno.EIO and not near):  # rclone knows none, and says EIO
            return {}
        raise
    found = {}
    for name in names:
        try:
            found[name] = os.getxattr(fd, name) if not _DARWIN else _darwin_xattr(fd, name)
        except OSError as error:  # gone meanwhile, or a namespace that is closed to us
            if error.errno not in _NO_XATTR:
                raise
    return found


def set_xattr(fd: int, name: str, value: bytes) -> None:
    """Set one extended attribute."""
    if _DARWIN:
        _call("fsetxattr", fd, _darwin_name(name), value, _size_t(len(value)), 0, 0)
    else:
        os.setxattr(fd, name, value)


def remove_xattr(fd: int, name: str) -> None:
    """Remove one extended attribute; nothing happens if it is not there."""
    try:
        if _DARWIN:
            _call("fremovexattr", fd, _darwin_name(name), 0)
        else:
            os.removexattr(fd, name)
    except OSError as error:
        if error.errno not in _NO_SUCH_XATTR:
            raise


def holds_xattr(folder: Folder, name: str) -> bool:
    """Does the file system of a folder know attributes of this namespace? Nothing is written to learn it."""
    try:
        _darwin_xattr(folder, name) if _DARWIN else os.getxattr(folder, name)
    except OSError as error:
        return error.errno not in {errno.EIO, *_UNSUPPORTED}  # EIO: rclone
    return True


def _darwin_name(name: str) -> bytes:
    """Attributes have no namespaces there; here they stand in ``user.``: one thing has one name on both systems."""
    if not name.startswith("user."):
        raise OSError(errno.ENOTSUP, "no such namespace of attributes", name)
    return os.fsencode(name.removeprefix("user."))


def _size_t(number: int) -> Any:
    import ctypes

    return ctypes.c_size_t(number)


def _darwin_bytes(name: str, *arguments: Any, rest: tuple[int, ...]) -> bytes:
    """What a function of the kind (..., buffer, size, rest) answers, whatever its length."""
    import ctypes

    function = getattr(_libc(), name)
    function.restype = ctypes.c_ssize_t
    size = function(*arguments, None, _size_t(0), *rest)
    buffer = ctypes.create_string_buffer(max(size, 0) + 1024)  # it may have grown meanwhile
    size = function(*arguments, buffer, _size_t(len(buffer)), *rest) if size >= 0 else size
    if size < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return buffer.raw[:size]


def _darwin_xattr_names(fd: int) -> list[str]:
    found = _darwin_bytes("flistxattr", fd, rest=(0,))
    return [f"user.{os.fsdecode(name)}" for name in found.split(b"\0") if name]


def _darwin_xattr(fd: int, name: str) -> bytes:
    return _darwin_bytes("fgetxattr", fd, _darwin_name(name), rest=(0, 0))


# -- flush, drop, look whether it is gone ------------------------------------------------------------------------------


def write_back(fd: int) -> None:
    """Have dirty pages written, so that a later store through a memory map moves the times."""
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError):  # ESPIPE, ENOSYS: there it cannot be had
            _call("sync_file_range", fd, ctypes.c_int64(0), ctypes.c_int64(0), 7)


def flush(fd: int) -> None:
    """Have one file written to its storage."""
    if _DARWIN:
        _full_sync(fd)
    else:
        os.fdatasync(fd)


def _full_sync(fd: int) -> None:
    """There `fsync` leaves the bytes in the disk's own memory; not every mount knows the call that does not."""
    try:
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # type: ignore[attr-defined,unused-ignore]
    except OSError as error:
        if error.errno not in {errno.ENOTTY, *_UNSUPPORTED}:
            raise
        os.fsync(fd)


def flush_all(fd: int) -> None:
    """Have the whole file system of an open file written to its storage."""
    _call("syncfs", fd)


def flush_folder(folder: Folder) -> None:
    """Have the names in a folder written to their storage."""
    try:
        if _DARWIN:
            _full_sync(folder)
        else:
            os.fsync(folder)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:  # some mounts cannot flush a folder
            raise


def drop(fd: int, *, near: bool = False) -> None:
    """Ask for the cached pages of a file to be dropped. On dirty pages this does nothing: flush first."""
    if near and _LINUX:
        _quick("posix_fadvise", fd, 0, 0, os.POSIX_FADV_DONTNEED)
    elif hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    elif _DARWIN:
        fcntl.fcntl(fd, fcntl.F_NOCACHE, 1)  # type: ignore[attr-defined,unused-ignore]  # keeps what is read from now on out
        with contextlib.suppress(OSError):
            _darwin_map(fd, os.fstat(fd).st_size, _darwin_invalidate)  # what is in


def _darwin_map(fd: int, size: int, use: Any) -> Any:
    """Call ``use(address, size)`` while the file is mapped; None for an empty one."""
    import ctypes

    if not size:
        return None
    library = _libc()
    library.mmap.restype = ctypes.c_void_p
    at = library.mmap(None, _size_t(size), 1, 1, fd, ctypes.c_int64(0))  # PROT_READ, MAP_SHARED
    if at is None or at == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        return use(ctypes.c_void_p(at), _size_t(size))
    finally:
        _call("munmap", ctypes.c_void_p(at), _size_t(size))


def _darwin_invalidate(at: Any, size: Any) -> None:
    _call("msync", at, size, 2)  # MS_INVALIDATE


def _darwin_resident(at: Any, size: Any) -> bool:
    import ctypes

    found = ctypes.create_string_buffer(1)
    _call("mincore", at, size, found)
    return bool(found.raw[0] & 1)  # MINCORE_INCORE


def fetch(fd: int, size: int, *, near: bool = False) -> None:
    """Ask for a file to be read ahead: the requests of a batch then wait side by side in the disk's queue."""
    if size and near and _LINUX:
        _quick("posix_fadvise", fd, 0, min(size, _AHEAD), os.POSIX_FADV_WILLNEED)
    elif size and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, min(size, _AHEAD), os.POSIX_FADV_WILLNEED)


def is_cached(fd: int) -> bool:
    """Would the first page be read from memory? (``mincore`` calls everything resident in files one may not write.)"""
    if _DARWIN:
        with contextlib.suppress(OSError):
            return bool(_darwin_map(fd, min(1, os.fstat(fd).st_size), _darwin_resident))
        return True
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


# -- names that appear at once -----------------------------------------------------------------------------------------


def rename(folder: Folder, old: str, new: str) -> None:
    """Rename over whatever is there. Only ``publish.py`` may call it, after it has looked."""
    os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)


def replace(old: str, new: str) -> None:
    """As `rename`, by paths. Only ``publish.py`` may call it."""
    os.replace(old, new)


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
    except OSError as error:  # no hard links either (FAT, some mounts; rclone says EIO): look, then rename
        if error.errno not in {errno.EPERM, errno.EMLINK, errno.EIO, *_UNSUPPORTED}:
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


# -- locks, mounts, room -----------------------------------------------------------------------------------------------


def lock(fd: int, *, shared: bool = False) -> bool:
    """Take the lock of an open file for as long as it stays open; False if another process has it.

    Several may have it `shared`: those that only look whether somebody holds it. OSError where there are no locks.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
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
    """From statfs(2): the names lie behind 72 bytes of numbers (sys/mount.h, 64-bit inodes).

    On Intel the plain name is the older call with 32-bit inodes; on ARM there is only one.
    """
    import ctypes

    buffer = ctypes.create_string_buffer(4096)
    _call("statfs$INODE64" if hasattr(_libc(), "statfs$INODE64") else "statfs", os.fsencode(path), buffer)
    kind, point, device = buffer.raw[72:88], buffer.raw[88:1112], buffer.raw[1112:2136]
    return tuple(os.fsdecode(part.split(b"\0")[0]) for part in (kind, point, device))  # type: ignore[return-value]


def room(folder: Folder) -> tuple[int, int]:
    """(free bytes, free inodes) for us on the file system of a folder.

    Where they are not counted (ramfs, some mounts) bytes are more than any file has, and inodes -1.
    """
    facts = os.statvfs(folder)
    free = facts.f_bavail * facts.f_frsize if facts.f_blocks else sys.maxsize
    return free, facts.f_favail if facts.f_files else -1


def fits(fd: int, size: int) -> bool:
    """May a file of this file system be so large, as far as the system knows before it is written?"""
    try:
        os.lseek(fd, size, os.SEEK_SET)  # beyond the largest size Linux answers EINVAL
    except OSError as error:
        return error.errno not in {errno.EINVAL, errno.EOVERFLOW, errno.EFBIG}
    return True


def folds_names(folder: Folder) -> bool:
    """Does a file system that takes any name take some for the same in this folder (``chattr +F``)?"""
    if _DARWIN:
        return False
    try:
        flags = fcntl.ioctl(folder, _GETFLAGS, bytes(8))
    except OSError:
        return False
    return bool(int.from_bytes(flags[:4], sys.byteorder) & _CASEFOLD)


def file_limit() -> int:
    """How many files this process may hold open; the limit is raised to what batches need, where that is allowed."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(_ENOUGH_FILES, hard)
    if 0 <= soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return soft if soft >= 0 else _ENOUGH_FILES


def is_root() -> bool:
    """May we do what only an administrator may?"""
    return os.geteuid() == 0


# -- what others do with a file ----------------------------------------------------------------------------------------

_FLOCK = "@hhqqi0q"  # struct flock of fcntl(2): type, whence, start, length, process


def is_written(folder: Folder, name: str) -> bool | None:
    """Has anybody this file open for writing, or mapped so? None: it cannot be told.

    Asked by taking a read lease and giving it back at once. A writer that opens the file meanwhile waits, or fails if
    it will not wait: ask only of files that have been calm, and only on file systems where a lease is what it says. The
    signal for a lease that is to be given back is SIGURG, which is ignored by default; SIGIO would kill us (fcntl(2)).
    """
    if not _LINUX:
        return None
    try:
        fd = os.open(name, _READ, dir_fd=folder)
    except BlockingIOError:
        return True
    except OSError:
        return None
    try:
        import signal

        call, take, free = _fcntl(), fcntl.F_RDLCK, fcntl.F_UNLCK
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # the interpreter's lock is fresh after it: no turn is due below
        if call(fd, fcntl.F_SETLEASE, take) == 0:
            call(fd, fcntl.F_SETLEASE, free)
            return False
        import ctypes

        return True if ctypes.get_errno() == errno.EAGAIN else None
    except OSError:
        return None
    finally:
        os.close(fd)


_near_fcntl: Any = None


def _fcntl() -> Any:
    """``fcntl`` that keeps the interpreter's lock: between two calls no other thread may take its turn."""
    global _near_fcntl  # noqa: PLW0603  (loaded once, at first use)
    if _near_fcntl is None:
        import ctypes

        function = ctypes.PyDLL(None, use_errno=True).fcntl
        function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int)
        _near_fcntl = function
    return _near_fcntl


def is_locked(folder: Folder, name: str) -> bool | None:
    """Does another one hold a lock (of the kind of F_SETLK or F_OFD_SETLK) on any byte? None: it cannot be told."""
    if not _LINUX:
        return None
    import struct

    try:
        fd = os.open(name, _READ, dir_fd=folder)
    except OSError:
        return None
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        found: int = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
        return found != fcntl.F_UNLCK
    except (OSError, struct.error):
        return None
    finally:
        os.close(fd)


def process_start(pid: int) -> int | None:
    """When a living process began, in a unit of the system's, so that another one of the same number is told apart;
    0 where that is not known, None if there is none, or it has ended and only its parent does not know yet.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # proc(5): the name may hold anything
        return None if fields[0] in {b"Z", b"X"} else int(fields[19])
    except (OSError, IndexError, ValueError):
        pass
    try:
        os.kill(pid, 0)
    except PermissionError:
        return 0
    except (OSError, OverflowError):
        return None
    return 0


# -- stepping back -----------------------------------------------------------------------------------------------------

_IOPRIO_SET = {
    "x86_64": 251, "amd64": 251, "aarch64": 30, "riscv64": 30, "loongarch64": 30, "i386": 289, "i686": 289,
    "armv6l": 314, "armv7l": 314, "ppc64": 273, "ppc64le": 273, "s390x": 282,
}  # fmt: skip
_IDLE_CLASS = 3 << 13  # ioprio_set(2)
_MAC_THREAD, _MAC_BACKGROUND = 3, 0x1000  # PRIO_DARWIN_THREAD, PRIO_DARWIN_BG of setpriority(2) there


def step_back() -> list[str]:
    """Give the calling thread, and those it starts, the lowest priority for CPU and disk; what could not be had."""
    if _DARWIN:
        return _said("background mode", lambda: _call("setpriority", _MAC_THREAD, 0, _MAC_BACKGROUND))
    import threading

    thread = threading.get_native_id()
    refused = _said("nice 19", lambda: os.setpriority(os.PRIO_PROCESS, thread, 19))
    return refused + (_said("disk class idle", _idle_class) if _LINUX else [])


def _said(what: str, ask: Any) -> list[str]:
    try:
        ask()
    except OSError as error:
        return [f"{what}: {error.strerror}"]
    return []


def _idle_class() -> None:
    number = _IOPRIO_SET.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    import ctypes

    _call("syscall", ctypes.c_long(number), 1, 0, _IDLE_CLASS)
