r"""What a file has beside its bytes on Windows: alternate streams, and its access list. Both appear as attributes.

``stream.NAME`` is the content of the stream NAME, up to `LARGEST` bytes: programs keep notes there, not data. A larger
one is an error, for what is not kept is not to be passed over. ``acl.dacl`` is two bytes, 1 or 0 for whether the list
is protected from the folder's, and the list itself as in the security descriptor, which names accounts by their ids.

Written from the reference of the Win32 API. Wine, where the rest of ``_windows.py`` is tested, knows no streams; access
lists are tested there as far as it maps them to modes.
"""

# ruff: noqa: SLF001  (the second half of one module)
from __future__ import annotations

import errno
import os
import struct
from contextlib import suppress
from typing import Any

from scopeferry.kernel import _windows as base

LARGEST = 1 << 20
STREAM, DACL = "stream.", "acl.dacl"
_DATA, _NAMES_AT, _FOUND = ":$DATA", 8, 600  # WIN32_FIND_STREAM_DATA
_DACL_INFORMATION, _WRITE_DACL = 0x4, 0x0004_0000
_PRESENT, _PROTECTED, _SELF_RELATIVE = 0x4, 0x1000, 0x8000  # SECURITY_DESCRIPTOR_CONTROL
_CREATE_ALWAYS = 2
_NAMED_STREAMS, _PERSISTENT_ACLS = 0x0004_0000, 0x8  # GetVolumeInformation
_MORE_DATA = {122, 234}  # ERROR_INSUFFICIENT_BUFFER, ERROR_MORE_DATA


def read(fd: int | base.Folder) -> dict[str, bytes]:
    """Streams and access list of an open file or folder; none where the file system has none."""
    found = {STREAM + name: _content(f"{_path(fd)}:{name}", size, name) for name, size in _streams(_path(fd))}
    with suppress(OSError):  # FAT, and servers that keep them to themselves
        found[DACL] = dacl_of(_security(fd))
    return found


def write(fd: int | base.Folder, name: str, value: bytes) -> None:
    """Set one of them."""
    if name == DACL:
        handle = base._call(
            "ReOpenFile", base._handle(fd), _WRITE_DACL, base._SHARE_ALL, base._AS_FOLDER | base._AS_LINK
        )
        try:
            base._call("SetKernelObjectSecurity", handle, _DACL_INFORMATION, descriptor_with(value))
        finally:
            base._close(handle)
        return
    path = f"{_path(fd)}:{_stream_name(name)}"
    stream = base._descriptor(base._open(path, base._WRITE, base._NORMAL, disposition=_CREATE_ALWAYS), os.O_WRONLY)
    try:
        base.write_at(stream, value, 0)
        base.flush(stream)
    finally:
        base.close(stream)


def remove(fd: int | base.Folder, name: str) -> None:
    """Remove a stream; an access list cannot be without."""
    if name != DACL:
        path = f"{_path(fd)}:{_stream_name(name)}"
        base._call("DeleteFileW", path, path=path)


def holds(folder: base.Folder, name: str) -> bool:
    """Does the file system of a folder have them?"""
    ctypes = base._ctypes()
    flags = ctypes.c_uint32()
    base._call(
        "GetVolumeInformationByHandleW",
        folder.handle,
        None,
        0,
        None,
        None,
        ctypes.byref(flags),
        None,
        0,
        path=folder.path,
    )
    return bool(flags.value & (_PERSISTENT_ACLS if name == DACL else _NAMED_STREAMS))


def dacl_of(descriptor: bytes) -> bytes:
    """The access list of a self-relative security descriptor.

    >>> dacl_of(descriptor_with(bytes((1, 0, 2, 0, 8, 0, 0, 0, 0, 0)))).hex()
    '01000200080000000000'
    """
    control, at = struct.unpack_from("<H", descriptor, 2)[0], struct.unpack_from("<I", descriptor, 16)[0]
    if not control & _PRESENT or not at:
        raise OSError(errno.ENOTSUP, "no access list")
    (size,) = struct.unpack_from("<H", descriptor, at + 2)
    return struct.pack("<H", bool(control & _PROTECTED)) + descriptor[at : at + size]


def descriptor_with(value: bytes) -> bytes:
    """A self-relative security descriptor with this access list and nothing else."""
    protected, size = struct.unpack_from("<H", value)[0], len(value) - 2
    if size < 8 or struct.unpack_from("<H", value, 4)[0] != size:
        raise OSError(errno.EINVAL, "no access list")
    control = _SELF_RELATIVE | _PRESENT | (_PROTECTED if protected else 0)
    return struct.pack("<BBHIIII", 1, 0, control, 0, 0, 0, 20) + value[2:]


def _path(fd: int | base.Folder) -> str:
    path = base._final_path(base._handle(fd))
    if not path:
        raise OSError(errno.ENOTSUP, "this file system cannot tell where a file is")
    return path


def _stream_name(name: str) -> str:
    plain = name.removeprefix(STREAM)
    if not name.startswith(STREAM) or not plain or set(plain) & set("\\/:\0"):
        raise OSError(errno.ENOTSUP, "no such attribute on this system", name)
    return plain


def _streams(path: str) -> list[tuple[str, int]]:
    """(name, size) of the streams of a file but the one that is its content."""
    ctypes = base._ctypes()
    data = ctypes.create_string_buffer(_FOUND)
    handle = base._function("FindFirstStreamW")(path, 0, data, 0)
    if handle in {None, base._NO_HANDLE}:  # a folder without any, or a file system without them
        return []
    found = []
    try:
        more = True
        while more:
            name = data.raw[_NAMES_AT:].decode("utf-16-le", "surrogatepass").partition("\0")[0]
            if name.startswith(":") and name.endswith(_DATA) and name != ":" + _DATA:
                found.append((name[1 : -len(_DATA)], struct.unpack_from("<q", data.raw)[0]))
            more = bool(base._function("FindNextStreamW")(handle, data))
    finally:
        base._function("FindClose")(handle)
    return found


def _content(path: str, size: int, name: str) -> bytes:
    if size > LARGEST:
        raise OSError(errno.EFBIG, f"the alternate stream {name} is larger than {LARGEST:,} bytes")
    stream = base._descriptor(base._open(path, base._READ, 0), os.O_RDONLY)
    try:
        block, data = memoryview(bytearray(min(size + 1, LARGEST))), b""
        while len(data) <= LARGEST and (got := base.read_into(stream, block, len(data))):
            data += block[:got]
        return data
    finally:
        base.close(stream)


def _security(fd: int | base.Folder) -> bytes:
    ctypes = base._ctypes()
    size, needed = 4096, ctypes.c_uint32()
    while True:
        buffer: Any = ctypes.create_string_buffer(size)
        try:
            base._call(
                "GetKernelObjectSecurity", base._handle(fd), _DACL_INFORMATION, buffer, size, ctypes.byref(needed)
            )
            return bytes(buffer.raw)
        except OSError as error:
            if getattr(error, "winerror", 0) not in _MORE_DATA or size >= needed.value:
                raise
            size = needed.value
