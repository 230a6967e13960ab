r"""Every call to the system that differs by system: Windows. ``_posix.py`` has the same names.

A *folder* is a path and an open handle. The path begins with ``\\?\`` or ``\\?\UNC\``, so it may be long and means what
it says; the handle is open without FILE_SHARE_DELETE, so that neither this folder nor one above it can be renamed,
removed or swapped while it is in use. What redirects to another place (symbolic links, junctions) is a link: never
walked, never opened. Names with ``\``, ``/``, ``:`` or NUL are refused: ``:`` would name a stream of another file.

Files are opened with all sharing, so that no program is ever blocked. Times are those of the file system in 100 ns, and
``st_ctime_ns`` is the change time. The bits of a mode say read-only; with the sticky bit, group and other ``x`` say
hidden and system. To be read from storage, a file is opened anew, by its handle, without buffering.

Written from the reference of the Win32 API; it needs no administrator. Nothing here is called before it is needed, so
the module can be imported, and what is plain in it tested, on any system.
"""

from __future__ import annotations

import errno
import ntpath
import os
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self, cast

_SHARE_ALL, _SHARE_KEEP = 7, 3  # read, write, delete; without delete
_READ, _WRITE = 0x8000_0000, 0x4000_0000  # GENERIC_
_LIST, _READ_ATTRIBUTES, _WRITE_ATTRIBUTES, _SYNCHRONIZE = 0x1, 0x80, 0x100, 0x10_0000
_CREATE_NEW, _OPEN_EXISTING = 1, 3
_AS_LINK, _AS_FOLDER = 0x0020_0000, 0x0200_0000  # FILE_FLAG_OPEN_REPARSE_POINT, FILE_FLAG_BACKUP_SEMANTICS
_SEQUENTIAL, _NO_BUFFERING = 0x0800_0000, 0x2000_0000
_READONLY, _HIDDEN, _SYSTEM, _DIRECTORY, _NORMAL, _REPARSE = 0x1, 0x2, 0x4, 0x10, 0x80, 0x400
_SURROGATE = 0x2000_0000  # a reparse tag with this bit names another place
_REPLACE_EXISTING, _WRITE_THROUGH = 0x1, 0x8
_BASIC, _STANDARD, _TAG, _ID = 0, 1, 9, 18  # FILE_INFO_BY_HANDLE_CLASS
_SET_SPARSE, _QUERY_RANGES = 0x0009_00C4, 0x0009_40CF
_LOCK_NOW, _LOCK_ALONE = 0x1, 0x2  # LOCKFILE_FAIL_IMMEDIATELY, LOCKFILE_EXCLUSIVE_LOCK
_LOCK_AT = 0x4000_0000  # high half of the offset of the locked byte: far beyond what others read
_NO_HANDLE = 0xFFFF_FFFF_FFFF_FFFF
_REMOTE, _RAMDISK = 4, 6  # GetDriveType
_SECTOR = 4096  # a multiple of every sector
_BLOCK = 1 << 20
_EPOCH = 116_444_736_000_000_000  # 1970 in 100 ns since 1601
_RANGES = 512

#: What of ``--keep`` can be kept on this system at all. (There are no extended attributes to be lost.)
CAN_KEEP = frozenset({"times", "mode", "links", "hardlinks", "holes", "xattrs", "acl", "streams"})
#: What of it `xattrs` finds.
ATTRIBUTES = frozenset({"acl", "streams"})
#: Names that can be made by paths like ours, and that no other program could open.
FORBIDDEN, ENDINGS, RESERVED = '<>:"\\|?*\x01\n', " .", True

NO_SPACE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
GONE = {errno.ENOTCONN, errno.ENODEV, errno.ENXIO}
BAD_NAME = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL}

#: Error codes of the system that Python would call by a name that says too little, or another thing.
_ERRNO = {
    1: errno.ENOTSUP, 2: errno.ENOENT, 3: errno.ENOENT, 4: errno.EMFILE, 5: errno.EACCES, 6: errno.EBADF,
    8: errno.ENOMEM, 15: errno.ENOENT, 17: errno.EXDEV, 18: errno.ENOENT, 19: errno.EROFS, 21: errno.ENODEV,
    23: errno.EIO, 32: errno.EACCES, 33: errno.EACCES, 39: errno.ENOSPC, 50: errno.ENOTSUP, 53: errno.ENOTCONN,
    55: errno.ENODEV, 59: errno.ENOTCONN, 64: errno.ENOTCONN, 65: errno.EACCES, 67: errno.ENOTCONN, 80: errno.EEXIST,
    82: errno.EACCES, 87: errno.EINVAL, 112: errno.ENOSPC, 121: errno.ENOTCONN, 123: errno.EILSEQ,
    145: errno.ENOTEMPTY, 161: errno.EILSEQ, 183: errno.EEXIST, 206: errno.ENAMETOOLONG, 223: errno.EFBIG,
    267: errno.ENOTDIR, 1117: errno.EIO, 1142: errno.EMLINK, 1167: errno.ENXIO, 1231: errno.ENOTCONN,
    1232: errno.ENOTCONN, 1295: getattr(errno, "EDQUOT", errno.ENOSPC), 1314: errno.EPERM, 1920: errno.EACCES,
    4390: errno.EINVAL,
}  # fmt: skip

#: Result and arguments: h handle, d 32-bit number, w text, p pointer, b success.
_FUNCTIONS = {
    "CloseHandle": "bh",
    "CreateFileW": "hwddpddh",
    "CreateHardLinkW": "bwwp",
    "DeviceIoControl": "bhdpdpdpp",
    "DeleteFileW": "bw",
    "FindClose": "bh",
    "FindFirstStreamW": "hwdpd",
    "FindNextStreamW": "bhp",
    "FlushFileBuffers": "bh",
    "GetCurrentThread": "h",
    "GetDiskFreeSpaceExW": "bwppp",
    "GetDriveTypeW": "dw",
    "GetFileAttributesW": "dw",
    "GetFileInformationByHandle": "bhp",
    "GetFileInformationByHandleEx": "bhdpd",
    "GetFinalPathNameByHandleW": "dhpdd",
    "GetProcessTimes": "bhpppp",
    "GetKernelObjectSecurity": "bhdpdp",
    "GetVolumeInformationByHandleW": "bhpdppppd",
    "GetVolumeInformationW": "bwpdppppd",
    "GetVolumePathNameW": "bwpd",
    "LockFileEx": "bhddddp",
    "MoveFileExW": "bwwd",
    "OpenProcess": "hddd",
    "ReOpenFile": "hhddd",
    "SetFileAttributesW": "bwd",
    "SetFileInformationByHandle": "bhdpd",
    "SetKernelObjectSecurity": "bhdp",
    "SetThreadPriority": "bhb",
    "WaitForSingleObject": "dhd",
}

_loaded: dict[str, Any] = {}
_unbuffered: dict[int, int] = {}  # descriptor -> its handle, once `drop` has opened it anew
_local = threading.local()


@dataclass(frozen=True, slots=True, eq=False)
class Folder:
    """An open folder: how it is reached, and the handle that keeps it there."""

    path: str
    handle: int


@dataclass(frozen=True, slots=True)
class Stat:
    """What ``os.stat_result`` would say, with the change time as ctime and the size on disk."""

    st_mode: int
    st_ino: int
    st_dev: int
    st_nlink: int
    st_size: int
    st_blocks: int
    st_atime_ns: int
    st_mtime_ns: int
    st_ctime_ns: int
    st_uid: int = 0
    st_gid: int = 0


# -- calls and errors --------------------------------------------------------------------------------------------------


def _ctypes() -> Any:
    import ctypes

    return ctypes


def _msvcrt() -> Any:
    import importlib

    return importlib.import_module("msvcrt")


def _function(name: str) -> Any:
    found = _loaded.get(name)
    if found is None:
        ctypes = _ctypes()
        kinds = {"h": ctypes.c_void_p, "d": ctypes.c_uint32, "w": ctypes.c_wchar_p, "p": ctypes.c_void_p}
        kinds["b"] = ctypes.c_int
        library = "advapi32" if name.endswith("KernelObjectSecurity") else "kernel32"
        found = ctypes.WinDLL(library, use_last_error=True)[name]
        found.restype, *found.argtypes = (kinds[kind] for kind in _FUNCTIONS[name])
        _loaded[name] = found
    return found


def _call(name: str, *arguments: Any, path: str = "") -> int:
    """Call a function of kernel32; what it returns. Raises OSError if it says that it failed."""
    result = _function(name)(*arguments)
    kind = _FUNCTIONS[name][0]
    if (kind == "b" and not result) or (kind == "h" and result in {None, _NO_HANDLE}):
        raise _error(int(_ctypes().get_last_error()), path)
    return int(result)


def _error(code: int, path: str) -> OSError:
    """An error code of the system as OSError, with an errno that says what may be done about it."""
    text = getattr(_ctypes(), "FormatError", lambda number: f"error {number}")(code)
    error = OSError(_ERRNO.get(code, errno.EIO), text.strip(), path)
    error.winerror = code  # type: ignore[attr-defined,unused-ignore]
    return error


class _Native:
    """Gives the errors of Python's own calls the errno that ours have."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        return

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if isinstance(error, OSError) and getattr(error, "winerror", None):
            raise _error(error.winerror, self.path) from error  # type: ignore[attr-defined,unused-ignore]


def _open(path: str, access: int, flags: int, *, share: int = _SHARE_ALL, disposition: int = _OPEN_EXISTING) -> int:
    return _call("CreateFileW", path, access, share, None, disposition, flags, None, path=path)


def _close(handle: int) -> None:
    _function("CloseHandle")(handle)


def _handle(opened: int | Folder) -> int:
    return opened.handle if isinstance(opened, Folder) else int(_msvcrt().get_osfhandle(opened))


def _descriptor(handle: int, flags: int) -> int:
    try:
        return int(_msvcrt().open_osfhandle(handle, flags | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)))
    except BaseException:
        _close(handle)
        raise


def extended(path: str) -> str:
    r"""An absolute path in the form that has no limit of length and no names that mean something else.

    >>> extended(r"C:\a\..\b"), extended(r"\\server\share\x"), extended("\\\\?\\C:\\x")
    ('\\\\?\\C:\\b', '\\\\?\\UNC\\server\\share\\x', '\\\\?\\C:\\x')
    """
    if path.startswith("\\\\?\\"):
        return path
    path = ntpath.abspath(path) if os.name == "nt" else ntpath.normpath(path)
    return "\\\\?\\UNC" + path[1:] if path.startswith("\\\\") else "\\\\?\\" + path


def _child(folder: Folder, name: str) -> str:
    if name in {"", ".", ".."} or any(char in name for char in "\\/:\0"):
        raise OSError(errno.EINVAL, "no name of an entry", name)
    return folder.path + name if folder.path.endswith("\\") else f"{folder.path}\\{name}"


# -- facts -------------------------------------------------------------------------------------------------------------


def _info(handle: int, kind: int, size: int) -> bytes:
    buffer = _ctypes().create_string_buffer(size)
    _call("GetFileInformationByHandleEx", handle, kind, buffer, size)
    return bytes(buffer.raw)


def _facts(handle: int) -> Stat:
    _, accessed, written, changed, attributes = struct.unpack_from("<4qI", _info(handle, _BASIC, 40))
    allocated, size, links = struct.unpack_from("<qqI", _info(handle, _STANDARD, 24))
    device, inode = _identity(handle)
    tag = struct.unpack("<II", _info(handle, _TAG, 8))[1] if attributes & _REPARSE else 0
    times = (_unix_ns(accessed), _unix_ns(written), _unix_ns(changed))
    return Stat(_mode(attributes, tag), inode, device, links, size, -(-allocated // 512), *times)


def _identity(handle: int) -> tuple[int, int]:
    """(serial number of the volume, number of the file): 128 bits where the file system has them."""
    try:
        device, inode = struct.unpack("<Q16s", _info(handle, _ID, 24))
        return device, int.from_bytes(inode, "little")
    except OSError:
        buffer = _ctypes().create_string_buffer(52)
        _call("GetFileInformationByHandle", handle, buffer)
        (serial,) = struct.unpack_from("<I", buffer.raw, 28)
        high, low = struct.unpack_from("<II", buffer.raw, 44)
        return serial, high << 32 | low


def _unix_ns(filetime: int) -> int:
    return (filetime - _EPOCH) * 100 if filetime > 0 else 0


def _filetime(unix_ns: int) -> int:
    filetime = unix_ns // 100 + _EPOCH
    if filetime <= 0:
        raise OSError(errno.EINVAL, "before 1601")
    return filetime


def _mode(attributes: int, tag: int) -> int:
    """A mode from attributes.

    >>> [oct(_mode(attributes, 0)) for attributes in (0x20, 0x21, 0x22, 0x26, 0x10)]
    ['0o100666', '0o100444', '0o101676', '0o101677', '0o40666']
    """
    if tag & _SURROGATE:
        return stat.S_IFLNK | 0o777
    mode = stat.S_IFDIR if attributes & _DIRECTORY else stat.S_IFREG
    mode |= 0o444 if attributes & _READONLY else 0o666
    if attributes & (_HIDDEN | _SYSTEM):
        mode |= stat.S_ISVTX | (0o010 if attributes & _HIDDEN else 0) | (0o001 if attributes & _SYSTEM else 0)
    return mode


def _attributes(mode: int, now: int) -> int:
    """The attributes that a mode asks for; the others stay as they are.

    >>> hex(_attributes(0o444, 0x22)), hex(_attributes(0o1677, 0x80)), hex(_attributes(0o666, 0x1))
    ('0x21', '0x86', '0x80')
    """
    asked = 0 if mode & stat.S_IWUSR else _READONLY
    if mode & stat.S_ISVTX:
        asked |= (_HIDDEN if mode & 0o010 else 0) | (_SYSTEM if mode & 0o001 else 0)
    return now & ~(_READONLY | _HIDDEN | _SYSTEM) | asked or _NORMAL


def _result(found: Stat) -> os.stat_result:
    return cast("os.stat_result", found)


# -- folders -----------------------------------------------------------------------------------------------------------


def open_root(path: str) -> Folder:
    """Open a root; it may be a link."""
    path = extended(path)
    handle = _open(path, _LIST | _READ_ATTRIBUTES | _SYNCHRONIZE, _AS_FOLDER, share=_SHARE_KEEP)
    try:
        if not stat.S_ISDIR(_facts(handle).st_mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return Folder(_final_path(handle) or path, handle)
    except BaseException:
        _close(handle)
        raise


def _final_path(handle: int) -> str:
    """Where a handle really leads; empty where the file system cannot say."""
    buffer = _ctypes().create_unicode_buffer(32768)
    length = _function("GetFinalPathNameByHandleW")(handle, buffer, len(buffer), 0)
    return str(buffer.value) if 0 < length < len(buffer) else ""


def open_folder(parent: Folder, name: str) -> Folder:
    """Open a folder in a folder, never through a link (NotADirectoryError or ELOOP)."""
    path = _child(parent, name)
    handle = _open(path, _LIST | _READ_ATTRIBUTES | _SYNCHRONIZE, _AS_FOLDER | _AS_LINK, share=_SHARE_KEEP)
    try:
        mode = _facts(handle).st_mode
        if not stat.S_ISDIR(mode):
            code = errno.ELOOP if stat.S_ISLNK(mode) else errno.ENOTDIR
            raise OSError(code, os.strerror(code), path)
    except BaseException:
        _close(handle)
        raise
    return Folder(path, handle)


def make_folder(parent: Folder, name: str) -> None:
    """Make a folder, with the rights that its place gives it."""
    path = _child(parent, name)
    with _Native(path):
        os.mkdir(path)


def close_folder(folder: Folder) -> None:
    """Give the folder back."""
    _close(folder.handle)


class _Entry:
    """One entry of a listing; what Python's own says lacks identity and change time."""

    __slots__ = ("_folder", "_stat", "name")

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self.name = folder, name
        self._stat: os.stat_result | None = None

    def stat(self, *, follow_symlinks: bool = False) -> os.stat_result:
        """The entry itself; links are never followed."""
        del follow_symlinks
        if self._stat is None:
            self._stat = lstat(self._folder, self.name)
        return self._stat

    def is_dir(self, *, follow_symlinks: bool = False) -> bool:
        """Is it a folder?"""
        del follow_symlinks
        return stat.S_ISDIR(self.stat().st_mode)

    def is_file(self, *, follow_symlinks: bool = False) -> bool:
        """Is it a regular file?"""
        del follow_symlinks
        return stat.S_ISREG(self.stat().st_mode)

    def is_symlink(self) -> bool:
        """Is it a link, or a junction?"""
        return stat.S_ISLNK(self.stat().st_mode)


class _Listing:
    """As ``os.scandir`` gives it: an iterator and a context manager."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        with _Native(folder.path):
            self._found = os.scandir(folder.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> _Entry:
        with _Native(self._folder.path):
            return _Entry(self._folder, next(self._found).name)

    def close(self) -> None:
        """End the listing; twice is harmless."""
        self._found.close()


def scan(folder: Folder) -> Any:
    """An ``os.scandir`` of the folder."""
    return _Listing(folder)


def lstat(folder: Folder, name: str) -> os.stat_result:
    """The entry itself, never what a link points at."""
    handle = _open(_child(folder, name), _READ_ATTRIBUTES, _AS_FOLDER | _AS_LINK)
    try:
        return _result(_facts(handle))
    finally:
        _close(handle)


def looker(folder: Folder) -> Any:
    """`lstat` in one folder, as a function of the name alone: for loops that do little else."""
    return partial(lstat, folder)


def folder_stat(folder: Folder) -> os.stat_result:
    """The open folder."""
    return _result(_facts(folder.handle))


def close(fd: int, *, near: bool = False) -> None:
    """Close a file."""
    del near
    os.close(fd)


def fstat(fd: int | Folder) -> os.stat_result:
    """The open file or folder."""
    return _result(_facts(_handle(fd)))


def open_up(folder: Folder) -> None:
    """Let the owner write into a folder of ours that is read-only."""
    found = _facts(folder.handle)
    set_attributes(folder, found.st_mode | stat.S_IWUSR, None, 0)


def read_link(folder: Folder, name: str) -> str:
    """The target of a symbolic link or a junction."""
    path = _child(folder, name)
    with _Native(path):
        return os.readlink(path)


def make_link(target: str, folder: Folder, name: str) -> None:
    """Make a symbolic link; to a folder, if a folder is there. It takes the right to do so, or developer mode."""
    path = _child(folder, name)
    plain = folder.path.replace("\\\\?\\UNC\\", "\\\\").removeprefix("\\\\?\\")
    to_folder = os.path.isdir(ntpath.normpath(ntpath.join(plain, target)))
    with _Native(path):
        os.symlink(target, path, target_is_directory=to_folder)


def hard_link(folder: Folder, name: str, to_folder: Folder, to_name: str) -> None:
    """Give a file a second name; FileExistsError if that is taken."""
    path = _child(to_folder, to_name)
    _call("CreateHardLinkW", path, _child(folder, name), None, path=path)


def unlink(folder: Folder, name: str) -> None:
    """Remove a name."""
    path = _child(folder, name)
    with _Native(path):
        try:
            os.unlink(path)
        except PermissionError:
            if not _made_writable(path):
                raise
            os.unlink(path)


def _made_writable(path: str) -> bool:
    """Take the read-only attribute away; False if that was not the obstacle."""
    attributes = _function("GetFileAttributesW")(path)
    if attributes == 0xFFFF_FFFF or not attributes & _READONLY or attributes & _REPARSE:
        return False
    _call("SetFileAttributesW", path, attributes & ~_READONLY or _NORMAL, path=path)
    return True


def remove_folder(folder: Folder, name: str) -> None:
    """Remove an empty folder."""
    path = _child(folder, name)
    with _Native(path):
        os.rmdir(path)


# -- files -------------------------------------------------------------------------------------------------------------


def open_source(folder: Folder, name: str) -> int:
    """Open for reading; never a link's target. Whoever has it open may go on reading, writing, renaming, removing."""
    path = _child(folder, name)
    handle = _open(path, _READ, _AS_LINK | _SEQUENTIAL)
    try:
        if (tag := _tag(handle)) & _SURROGATE:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if tag:  # deduplicated, compressed, in a cloud: not a link, but its bytes come from elsewhere
            looked_at, handle = handle, _open(path, _READ, _SEQUENTIAL)
            same = _identity(looked_at) == _identity(handle)
            _close(looked_at)
            if not same:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    except BaseException:
        _close(handle)
        raise
    return _descriptor(handle, os.O_RDONLY)


def _tag(handle: int) -> int:
    attributes, tag = struct.unpack("<II", _info(handle, _TAG, 8))
    return int(tag) if attributes & _REPARSE else 0


def create_part(folder: Folder, name: str) -> int:
    """A new file for reading and writing; FileExistsError if there is one."""
    handle = _open(_child(folder, name), _READ | _WRITE, _NORMAL, disposition=_CREATE_NEW)
    return _descriptor(handle, os.O_RDWR)


def create_shared(folder: Folder, name: str) -> int:
    """A new file for writing that those may read who may read its folder; FileExistsError if there is one."""
    return create_part(folder, name)


def open_part(folder: Folder, name: str) -> int:
    """Open a temporary file of ours again, for reading and writing."""
    path = _child(folder, name)
    try:
        handle = _open(path, _READ | _WRITE, _AS_LINK)
    except PermissionError:
        if not _made_writable(path):
            raise
        handle = _open(path, _READ | _WRITE, _AS_LINK)
    if _tag(handle):
        _close(handle)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    return _descriptor(handle, os.O_RDWR)


def read_into(fd: int, buffer: Any, offset: int) -> int:
    """Read at an offset; the number of bytes, 0 at the end.

    Without buffering the offset, the length and the place in memory must be multiples of a sector, so all reads go
    through an aligned block of this thread.
    """
    view = memoryview(buffer)
    skip = offset % _SECTOR
    wanted = min(len(view), _BLOCK)
    length = -(-(skip + wanted) // _SECTOR) * _SECTOR
    block = _aligned()[:length]
    got = max(0, min(_read(fd, block, offset - skip) - skip, wanted))
    view[:got] = block[skip : skip + got]
    return got


def _read(fd: int, block: memoryview, offset: int) -> int:
    import io

    with _Native(""), io.FileIO(fd, "rb", closefd=False) as file:
        os.lseek(fd, offset, os.SEEK_SET)
        return file.readinto(block) or 0


def _aligned() -> memoryview:
    found: memoryview | None = getattr(_local, "block", None)
    if found is None:
        import mmap

        found = _local.block = memoryview(mmap.mmap(-1, _BLOCK + 2 * _SECTOR))  # begins with a page
    return found


def write_at(fd: int, data: Any, offset: int) -> None:
    """Write all of it at an offset. What is left out before it is a hole."""
    view = memoryview(data)
    with _Native(""):
        if offset > os.fstat(fd).st_size:
            _make_sparse(fd)
        os.lseek(fd, offset, os.SEEK_SET)
        while view:
            view = view[os.write(fd, view) :]


def _make_sparse(fd: int) -> None:
    """Let a file have holes; where it cannot, zeros are written for them."""
    with suppress(OSError):
        _control(_handle(fd), _SET_SPARSE, b"", 0)


def _control(handle: int, code: int, given: bytes, size: int) -> tuple[bytes, bool]:
    """(what a file system's own call answers, whether there is more of it)."""
    ctypes = _ctypes()
    answer, length = ctypes.create_string_buffer(max(size, 1)), ctypes.c_uint32()
    more = False
    try:
        _call("DeviceIoControl", handle, code, given or None, len(given), answer, size, ctypes.byref(length), None)
    except OSError as error:
        if getattr(error, "winerror", 0) != 234:  # ERROR_MORE_DATA
            raise
        more = True
    return bytes(answer.raw[: length.value]), more


def data_ranges(fd: int, size: int, blocks: int) -> Iterator[tuple[int, int]]:
    """The (start, end) of what holds data, in order; all between is zeros.

    Holes are looked for if `blocks`, of 512 bytes, are fewer than the size.
    """
    if blocks * 512 >= size:
        yield 0, size
        return
    at, more = 0, True
    while more and at < size:
        try:
            found, more = _control(_handle(fd), _QUERY_RANGES, struct.pack("<qq", at, size - at), 16 * _RANGES)
        except OSError:
            yield at, size
            return
        for start, length in struct.iter_unpack("<qq", found):
            end = min(start + length, size)
            if start < end:
                yield start, end
            at = max(at, end)
        more = more and bool(found)


def set_size(fd: int, size: int) -> None:
    """Give the file its length; what was not written is a hole."""
    with _Native(""):
        if size > os.fstat(fd).st_size:
            _make_sparse(fd)
        os.ftruncate(fd, size)


def set_attributes(
    fd: int | Folder, mode: int | None, mtime_ns: int | None, atime_ns: int, *, near: bool = False
) -> None:
    """Permission bits and modification time of an open file or folder, where asked for.

    `atime_ns` is not needed here: the access time stays as it is. The handle that wrote is the one that sets the time,
    for otherwise closing it would set another one.
    """
    del atime_ns, near
    if mode is None and mtime_ns is None:
        return
    handle = _handle(fd)
    attributes = 0
    if mode is not None:
        attributes = _attributes(mode, struct.unpack_from("<I", _info(handle, _BASIC, 40), 32)[0])
    given = struct.pack("<4qI4x", 0, 0, 0 if mtime_ns is None else _filetime(mtime_ns), 0, attributes)
    try:
        _call("SetFileInformationByHandle", handle, _BASIC, given, len(given))
    except PermissionError:  # opened for reading only
        again = _call("ReOpenFile", handle, _READ_ATTRIBUTES | _WRITE_ATTRIBUTES, _SHARE_ALL, _AS_FOLDER | _AS_LINK)
        try:
            _call("SetFileInformationByHandle", again, _BASIC, given, len(given))
        finally:
            _close(again)


def set_link_time(folder: Folder, name: str, mtime_ns: int) -> None:
    """Modification time of a link itself."""
    handle = _open(_child(folder, name), _READ_ATTRIBUTES | _WRITE_ATTRIBUTES, _AS_FOLDER | _AS_LINK)
    try:
        given = struct.pack("<4qI4x", 0, 0, _filetime(mtime_ns), 0, 0)
        _call("SetFileInformationByHandle", handle, _BASIC, given, len(given))
    finally:
        _close(handle)


def set_link_owner(folder: Folder, name: str, uid: int, gid: int) -> None:
    """Owner and group of a link itself: not on this system."""
    raise OSError(errno.ENOTSUP, f"no owner {uid}:{gid} on this system", _child(folder, name))


def set_owner(fd: int | Folder, uid: int, gid: int) -> None:
    """Owner and group of an open file: not on this system."""
    raise OSError(errno.ENOTSUP, f"no owner {uid}:{gid} on this system", str(fd))


def xattrs(fd: int | Folder, *, near: bool = False) -> dict[str, bytes]:
    """Alternate streams and access list of an open file, as attributes: see ``_windows_extras.py``."""
    from scopeferry.kernel import _windows_extras

    del near
    return _windows_extras.read(fd)


def set_xattr(fd: int | Folder, name: str, value: bytes) -> None:
    """Set one of them."""
    from scopeferry.kernel import _windows_extras

    _windows_extras.write(fd, name, value)


def remove_xattr(fd: int | Folder, name: str) -> None:
    """Remove one of them."""
    from scopeferry.kernel import _windows_extras

    _windows_extras.remove(fd, name)


def holds_xattr(folder: Folder, name: str) -> bool:
    """Does the file system of a folder know attributes of this kind?"""
    if not name.startswith(("acl.", "stream.")):
        return False
    from scopeferry.kernel import _windows_extras

    return _windows_extras.holds(folder, name)


# -- flush, drop, look whether it is gone ------------------------------------------------------------------------------


def write_back(fd: int) -> None:
    """Have dirty pages written, so that a later store through a memory map moves the times: not on this system."""
    del fd


def flush(fd: int) -> None:
    """Have one file written to its storage."""
    _call("FlushFileBuffers", _handle(fd))


def flush_all(fd: int) -> None:
    """Have the whole file system of an open file written to its storage: only an administrator may."""
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(fd))


def flush_folder(folder: Folder) -> None:
    """Have the names in a folder written to their storage. The rename has done so already, where it could."""
    with suppress(OSError):
        handle = _open(folder.path, _WRITE, _AS_FOLDER | _AS_LINK, share=_SHARE_ALL)
        try:
            _call("FlushFileBuffers", handle)
        finally:
            _close(handle)


def drop(fd: int, *, near: bool = False) -> None:
    """From now on read this file from storage: it is opened anew, by its handle, without buffering. Flush it first."""
    del near
    _unbuffered.pop(fd, None)
    with suppress(OSError):
        handle = _call("ReOpenFile", _handle(fd), _READ, _SHARE_ALL, _NO_BUFFERING | _SEQUENTIAL)
        again = _descriptor(handle, os.O_RDONLY)
        try:
            os.dup2(again, fd, inheritable=False)
        finally:
            os.close(again)
        _unbuffered[fd] = _handle(fd)


def fetch(fd: int, size: int, *, near: bool = False) -> None:
    """Ask for a file to be read ahead: nothing to gain without buffering."""
    del fd, size, near


def is_cached(fd: int) -> bool:
    """Would the first page be read from memory? Not after a `drop` that could be done."""
    return _unbuffered.get(fd) != _handle(fd)


# -- names that appear at once -----------------------------------------------------------------------------------------


def rename(folder: Folder, old: str, new: str) -> None:
    """Rename over whatever is there. Only ``publish.py`` may call it, after it has looked."""
    source, target = _child(folder, old), _child(folder, new)
    try:
        _call("MoveFileExW", source, target, _REPLACE_EXISTING | _WRITE_THROUGH, path=target)
    except PermissionError:
        if not _made_writable(target):
            raise
        _call("MoveFileExW", source, target, _REPLACE_EXISTING | _WRITE_THROUGH, path=target)


def replace(old: str, new: str) -> None:
    """As `rename`, by paths. Only ``publish.py`` may call it."""
    os.replace(old, new)


def rename_new(folder: Folder, old: str, new: str) -> None:
    """Rename onto a free name; FileExistsError if it is taken."""
    target = _child(folder, new)
    _call("MoveFileExW", _child(folder, old), target, _WRITE_THROUGH, path=target)


def exchange(folder: Folder, one: str, other: str) -> bool:
    """Let two names change places at once; False where that cannot be done: it cannot be done on this system."""
    del folder, one, other
    return False


# -- locks, mounts, room -----------------------------------------------------------------------------------------------


def lock(fd: int, *, shared: bool = False) -> bool:
    """Take the lock of an open file for as long as it stays open; False if another process has it.

    Several may have it `shared`: those that only look whether somebody holds it. OSError where there are no locks.
    One byte far beyond the end is locked, so that others can read who has it.
    """
    overlapped = _ctypes().create_string_buffer(struct.pack("<QQIIQ", 0, 0, 0, _LOCK_AT, 0), 32)
    try:
        _call("LockFileEx", _handle(fd), _LOCK_NOW | (0 if shared else _LOCK_ALONE), 0, 1, 0, overlapped)
    except OSError as error:
        if getattr(error, "winerror", 0) in {33, 997}:  # ERROR_LOCK_VIOLATION, ERROR_IO_PENDING
            return False
        raise
    return True


def mount(path: str) -> tuple[str, str, str]:
    """(file system type, mount point, device) of an existing path. What another machine answers for is ``remote``."""
    ctypes = _ctypes()
    point, kind, serial = ctypes.create_unicode_buffer(32768), ctypes.create_unicode_buffer(261), ctypes.c_uint32()
    _call("GetVolumePathNameW", extended(path), point, len(point), path=path)
    drive = _function("GetDriveTypeW")(point.value)
    pointer = ctypes.byref(serial)
    try:
        _call("GetVolumeInformationW", point.value, None, 0, pointer, None, None, kind, len(kind), path=path)
    except OSError:
        if drive != _REMOTE:
            return "unknown", point.value, ""
    types = {_REMOTE: "remote", _RAMDISK: "ramfs"}
    return types.get(drive, kind.value.lower() or "unknown"), point.value, f"{serial.value:08x}"


def room(folder: Folder) -> tuple[int, int]:
    """(free bytes, free inodes) for us on the file system of a folder; inodes are -1 where they are not counted."""
    ctypes = _ctypes()
    free = ctypes.c_uint64()
    path = folder.path if folder.path.endswith("\\") else folder.path + "\\"
    _call("GetDiskFreeSpaceExW", path, ctypes.byref(free), None, None, path=path)
    return int(free.value), -1


def fits(fd: int, size: int) -> bool:
    """May a file of this file system be so large, as far as the system knows before it is written?"""
    del fd, size
    return True


def folds_names(folder: Folder) -> bool:
    """Does a file system that takes any name take some for the same in this folder? Here none takes any."""
    del folder
    return False


def file_limit() -> int:
    """How many files this process may hold open, as descriptors."""
    return 8192


def is_root() -> bool:
    """May we do what only an administrator may? Nothing here asks for that."""
    return False


# -- what others do with a file ----------------------------------------------------------------------------------------

_SHARE_NO_WRITE, _SHARING_VIOLATION = 5, 32  # read, delete; ERROR_SHARING_VIOLATION
_QUERY_LIMITED, _NOT_SIGNALED, _NO_SUCH_PROCESS = 0x1000, 0x102, 87  # WAIT_TIMEOUT, ERROR_INVALID_PARAMETER


def is_written(folder: Folder, name: str) -> bool | None:
    """Has anybody this file open for writing? None: it cannot be told.

    Asked by opening it so that others may not write, and closing it at once. A writer that opens the file meanwhile
    fails: ask only of files that have been calm.
    """
    try:
        handle = _open(_child(folder, name), _READ, _AS_LINK, share=_SHARE_NO_WRITE)
    except OSError as error:
        return True if getattr(error, "winerror", 0) == _SHARING_VIOLATION else None
    _close(handle)
    return False


def is_locked(folder: Folder, name: str) -> bool | None:
    """Is it held by another one? Here that is the same as being open for writing."""
    return is_written(folder, name)


def process_start(pid: int) -> int | None:
    """When a living process began, in a unit of the system's, so that another one of the same number is told apart;
    0 where that is not known, None if there is none, or it has ended.
    """
    try:
        handle = _call("OpenProcess", _QUERY_LIMITED | _SYNCHRONIZE, 0, pid)
    except OSError as error:
        return None if getattr(error, "winerror", 0) == _NO_SUCH_PROCESS else 0
    try:
        if _function("WaitForSingleObject")(handle, 0) != _NOT_SIGNALED:
            return None
        times = [_ctypes().create_string_buffer(8) for _ in range(4)]
        _call("GetProcessTimes", handle, *times)
        return int.from_bytes(times[0].raw, "little")
    except OSError:
        return 0
    finally:
        _close(handle)


# -- stepping back -----------------------------------------------------------------------------------------------------

_BACKGROUND_BEGIN, _ALREADY = 0x0001_0000, 402  # THREAD_MODE_BACKGROUND_BEGIN, ERROR_THREAD_MODE_ALREADY_BACKGROUND


def step_back() -> list[str]:
    """Give the calling thread the lowest priority for CPU and disk; what could not be had."""
    try:
        _call("SetThreadPriority", _function("GetCurrentThread")(), _BACKGROUND_BEGIN)
    except OSError as error:
        if getattr(error, "winerror", 0) != _ALREADY:
            return [f"background mode: {error.strerror}"]
    return []
