"""The Windows module against another implementation of the Win32 API: Wine.

There is no Python for Windows here, so a small program runs in Wine and calls the functions of kernel32 that it is
told to; `Bridge` tells it. What Python itself does on Windows (``os``, ``msvcrt``) is done by the same functions.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import stat
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from scopeferry.kernel import _windows

pytestmark = pytest.mark.slow
COMPILER = "x86_64-w64-mingw32-gcc"
NOTHING = 2**64 - 1
NS = 1_700_000_001_987_654_321
SERVER = r"""
#include <windows.h>
#include <stdio.h>
#include <stdint.h>
#include <io.h>
#include <fcntl.h>
typedef uint64_t u;
typedef u (*call)(u, u, u, u, u, u, u, u, u, u);
static int get(void *at, size_t size) { return size == 0 || fread(at, size, 1, stdin) == 1; }
int main(void) {
    HMODULE library = LoadLibraryA("kernel32.dll"), security = LoadLibraryA("advapi32.dll");
    _setmode(0, _O_BINARY);
    _setmode(1, _O_BINARY);
    for (;;) {
        uint32_t count, error = 127, sizes[10] = {0};
        char name[64] = {0}, kind;
        void *memory[10] = {0};
        u a[10] = {0}, result = 0;
        if (!get(&count, 4) || !get(name, count) || !get(&count, 4)) return 0;
        for (uint32_t i = 0; i < count; i++) {
            get(&kind, 1);
            if (kind == 'i') { get(&a[i], 8); continue; }
            get(&sizes[i], 4);
            memory[i] = VirtualAlloc(0, sizes[i] + 4096, MEM_COMMIT | MEM_RESERVE, PAGE_READWRITE);
            get(memory[i], sizes[i]);
            a[i] = (u)memory[i];
        }
        call function = (call)GetProcAddress(library, name);
        if (!function) function = (call)GetProcAddress(security, name);
        if (function) {
            SetLastError(0);
            result = function(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9]);
            error = GetLastError();
        }
        fwrite(&result, 8, 1, stdout);
        fwrite(&error, 4, 1, stdout);
        for (uint32_t i = 0; i < count; i++)
            if (memory[i]) { fwrite(memory[i], sizes[i], 1, stdout); VirtualFree(memory[i], 0, MEM_RELEASE); }
        fflush(stdout);
    }
}
"""


def text(string: str) -> bytes:
    return string.encode("utf-16-le", "surrogatepass") + b"\0\0"


class Bridge:
    """Calls functions of kernel32 in a process of Wine: numbers by value, memory by a copy there and back."""

    def __init__(self, command: list, env: dict) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        self.error = 0

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()

    def _take(self, size: int) -> bytes:
        data = self.process.stdout.read(size)
        assert len(data) == size, "the program in Wine has ended"
        return data

    def raw(self, name: str, *arguments: int | bytes | str) -> tuple[int, list[bytes]]:
        """(what it returns, what stands in the memory that it was given)."""
        given = [text(one) if isinstance(one, str) else one for one in arguments]
        out = struct.pack("<I", len(name)) + name.encode() + struct.pack("<I", len(given))
        for one in given:
            if isinstance(one, bytes):
                out += b"m" + struct.pack("<I", len(one)) + one
            else:
                out += b"i" + struct.pack("<Q", one & NOTHING)
        self.process.stdin.write(out)
        self.process.stdin.flush()
        result, self.error = struct.unpack("<QI", self._take(12))
        return result, [self._take(len(one)) for one in given if isinstance(one, bytes)]

    def true(self, name: str, *arguments: int | bytes | str, path: str = "") -> list[bytes]:
        """As `raw`, of a function that says whether it has succeeded."""
        result, memory = self.raw(name, *arguments)
        if not result & 0xFFFF_FFFF:
            raise _windows._error(self.error, path)
        return memory

    def function(self, name: str):
        """The function as ctypes would give it."""
        kinds = _windows._FUNCTIONS[name]

        def call(*arguments):
            given, back = [], []
            for kind, one in zip(kinds[1:], arguments, strict=True):
                memory = getattr(one, "_obj", one)
                if one is None or kind in "hd":
                    given.append(int(one or 0))
                elif kind == "w" or isinstance(one, bytes):
                    given.append(one)
                    back.append(None)
                elif isinstance(memory, ctypes.Array) and memory._type_ is ctypes.c_wchar:
                    given.append(bytes(2 * len(memory)))
                    back.append(memory)
                else:
                    given.append(ctypes.string_at(ctypes.addressof(memory), ctypes.sizeof(memory)))
                    back.append(memory)
            result, found = self.raw(name, *given)
            for memory, data in zip(back, found, strict=True):
                if isinstance(memory, ctypes.Array) and memory._type_ is ctypes.c_wchar:
                    memory.value = data.decode("utf-16-le", "surrogatepass").partition("\0")[0]
                elif memory is not None:
                    ctypes.memmove(ctypes.addressof(memory), data, len(data))
            return result & 0xFFFF_FFFF if kinds[0] in "bd" else result

        return call


class Os:
    """What the module takes from ``os``, as it is on Windows."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge, self._handles = bridge, {}

    def __getattr__(self, name: str):
        return getattr(os, name)

    def open_osfhandle(self, handle: int, _flags: int) -> int:
        fd = 1000 + len(self._handles)
        self._handles[fd] = handle
        return fd

    def get_osfhandle(self, fd: int) -> int:
        return self._handles[fd]

    def close(self, fd: int) -> None:
        self._bridge.true("CloseHandle", self._handles[fd])
        self._handles[fd] = 0

    def dup2(self, fd: int, fd2: int, inheritable: bool = True) -> None:
        (copy,) = self._bridge.true("DuplicateHandle", NOTHING, self._handles[fd], NOTHING, bytes(8), 0, inheritable, 2)
        self.close(fd2)
        (self._handles[fd2],) = struct.unpack("<Q", copy)

    def fstat(self, fd: int):
        (size,) = self._bridge.true("GetFileSizeEx", self._handles[fd], bytes(8))
        return SimpleNamespace(st_size=struct.unpack("<q", size)[0])

    def lseek(self, fd: int, offset: int, how: int) -> None:
        self._bridge.true("SetFilePointerEx", self._handles[fd], offset, bytes(8), how)

    def write(self, fd: int, data) -> int:
        _, count = self._bridge.true("WriteFile", self._handles[fd], bytes(data), len(data), bytes(4), 0)
        return struct.unpack("<I", count)[0]

    def read(self, fd: int, block: memoryview, offset: int) -> int:
        self.lseek(fd, offset, os.SEEK_SET)
        data, count = self._bridge.true("ReadFile", self._handles[fd], bytes(len(block)), len(block), bytes(4), 0)
        (got,) = struct.unpack("<I", count)
        block[:got] = data[:got]
        return got

    def ftruncate(self, fd: int, size: int) -> None:
        self.lseek(fd, size, os.SEEK_SET)
        self._bridge.true("SetEndOfFile", self._handles[fd])

    def mkdir(self, path: str) -> None:
        self._bridge.true("CreateDirectoryW", path, 0, path=path)

    def rmdir(self, path: str) -> None:
        self._bridge.true("RemoveDirectoryW", path, path=path)

    def unlink(self, path: str) -> None:
        self._bridge.true("DeleteFileW", path, path=path)

    def scandir(self, path: str):
        handle, (_, data) = self._bridge.raw("FindFirstFileW", path + "\\*", bytes(592))
        found = []
        while data:
            found.append(data[44:564].decode("utf-16-le", "surrogatepass").partition("\0")[0])
            more, (data,) = self._bridge.raw("FindNextFileW", handle, bytes(592))
            data = data if more & 0xFFFF_FFFF else b""
        self._bridge.raw("FindClose", handle)
        return _Names(name for name in found if name not in {".", ".."})


class _Names:
    """A listing as ``os.scandir`` gives it."""

    def __init__(self, names) -> None:
        self._names = names

    def __next__(self):
        return SimpleNamespace(name=next(self._names))

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture(scope="module")
def wine(tmp_path_factory):
    """A prefix of Wine and the program in it: the command and its environment."""
    program = shutil.which("wine64") or "/usr/lib/wine/wine64"
    if not os.access(program, os.X_OK) or not shutil.which(COMPILER):
        pytest.skip("person: Wine and its compiler: apt-get install wine64 gcc-mingw-w64-x86-64-win32")
    place = tmp_path_factory.mktemp("wine")
    (place / "server.c").write_text(SERVER)
    subprocess.run([COMPILER, "-O1", "-o", place / "server.exe", place / "server.c"], check=True)
    env = dict(os.environ, WINEPREFIX=str(place / "prefix"), WINEDEBUG="-all")
    subprocess.run([program, "wineboot", "-i"], env=env, check=True, capture_output=True, timeout=300)
    yield [program, place / "server.exe"], env
    server = shutil.which("wineserver") or "/usr/lib/wine/wineserver64"
    subprocess.run([server, "-k"], env=env, check=False, timeout=60)


@pytest.fixture
def system(wine, monkeypatch):
    """The Windows module, on Wine; ``system.os`` closes descriptors."""
    command, env = wine
    bridge = Bridge(command, env)
    fake = Os(bridge)
    needed = ("create_string_buffer", "create_unicode_buffer", "c_uint32", "c_uint64", "byref")
    library = SimpleNamespace(**{name: getattr(ctypes, name) for name in needed}, get_last_error=lambda: bridge.error)
    monkeypatch.setattr(_windows, "_function", bridge.function)
    monkeypatch.setattr(_windows, "_ctypes", lambda: library)
    monkeypatch.setattr(_windows, "_msvcrt", lambda: fake)
    monkeypatch.setattr(_windows, "_read", fake.read)
    monkeypatch.setattr(_windows, "os", fake)
    try:
        yield _windows
    finally:
        bridge.close()


@pytest.fixture
def folder(system, wine):
    place = Path(wine[1]["WINEPREFIX"], "drive_c", "t")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    root = system.open_root("C:\\t")
    assert root.path == "\\\\?\\C:\\t"
    yield root
    system.close_folder(root)


@pytest.fixture
def put(system):
    """Make a file with this content."""

    def make(folder, name: str, data: bytes) -> None:
        fd = system.create_part(folder, name)
        system.write_at(fd, data, 0)
        system.os.close(fd)

    return make


def read(system, folder, name: str) -> bytes:
    fd = system.open_source(folder, name)
    try:
        return whole(system, fd)
    finally:
        system.os.close(fd)


def whole(system, fd: int) -> bytes:
    block, found = memoryview(bytearray(1 << 20)), b""
    while got := system.read_into(fd, block, len(found)):
        found += block[:got]
    return found


def test_a_part_from_its_first_byte_to_its_name(system, folder):
    data = os.urandom(3_000_001)
    fd = system.create_part(folder, "part")
    system.write_at(fd, data, 0)
    system.set_attributes(fd, 0o444, NS, 0)
    system.flush(fd)
    assert system.is_cached(fd)
    system.drop(fd)
    assert not system.is_cached(fd)
    assert whole(system, fd) == data
    system.rename_new(folder, "part", "final")
    system.flush_folder(folder)
    found, there = system.fstat(fd), system.lstat(folder, "final")
    assert replace(found, st_dev=0) == replace(there, st_dev=0)  # Wine knows no volume of a handle opened anew
    system.os.close(fd)
    assert system.lstat(folder, "final").st_mtime_ns == NS // 100 * 100, "closing the writer moved the time"
    assert (there.st_size, oct(there.st_mode), there.st_nlink) == (len(data), "0o100444", 1)
    assert there.st_ctime_ns > there.st_mtime_ns


def test_a_taken_name_is_not_taken_again(system, folder, put):
    put(folder, "a", b"a")
    put(folder, "b", b"b")
    for name in ("b", "B"):
        with pytest.raises(FileExistsError):
            system.rename_new(folder, "a", name)
    with pytest.raises(FileExistsError):
        system.create_part(folder, "A")
    with pytest.raises(FileExistsError):
        system.hard_link(folder, "a", folder, "b")
    with pytest.raises(FileExistsError):
        system.make_folder(folder, "a")
    assert (read(system, folder, "a"), read(system, folder, "b")) == (b"a", b"b")


def test_what_is_read_only_is_replaced_continued_and_removed(system, folder, put):
    for name in ("a", "b", "c"):
        put(folder, name, name.encode())
        fd = system.open_source(folder, name)
        system.set_attributes(fd, 0o444, None, 0)
        system.os.close(fd)
    put(folder, "new", b"new")
    system.rename(folder, "new", "a")
    assert read(system, folder, "a") == b"new"
    fd = system.open_part(folder, "b")
    system.write_at(fd, b"more", 0)
    system.os.close(fd)
    assert read(system, folder, "b") == b"more"
    system.unlink(folder, "c")
    with pytest.raises(FileNotFoundError):
        system.lstat(folder, "c")


def test_whoever_is_read_from_is_never_blocked(system, folder, put):
    put(folder, "a", b"first")
    fd = system.open_source(folder, "a")
    again = system.open_part(folder, "a")
    system.write_at(again, b"other", 0)
    system.os.close(again)
    system.rename(folder, "a", "b")
    system.unlink(folder, "b")
    system.os.close(fd)


def test_a_folder_in_use_cannot_be_swapped(system, folder):
    system.make_folder(folder, "sub")
    inner = system.open_folder(folder, "sub")
    with pytest.raises(PermissionError):
        system.rename_new(folder, "sub", "elsewhere")
    with pytest.raises(PermissionError):
        system.remove_folder(folder, "sub")
    system.close_folder(inner)
    system.rename_new(folder, "sub", "elsewhere")
    system.remove_folder(folder, "elsewhere")


def test_facts_and_listings(system, folder, put):
    put(folder, "f", b"12345")
    system.make_folder(folder, "d")
    system.hard_link(folder, "f", folder, "g")
    with system.scan(folder) as found:
        entries = {entry.name: (entry.is_dir(), entry.is_file(), entry.stat().st_nlink) for entry in found}
    assert entries == {"f": (False, True, 2), "g": (False, True, 2), "d": (True, False, 1)}
    assert system.lstat(folder, "f") == system.lstat(folder, "g")
    assert system.lstat(folder, "F").st_ino == system.looker(folder)("g").st_ino
    assert stat.S_ISDIR(system.folder_stat(folder).st_mode)
    for name, kind in (("nothing", FileNotFoundError), ("f", NotADirectoryError)):
        with pytest.raises(kind):
            system.open_folder(folder, name)
    with pytest.raises(PermissionError):
        system.open_source(folder, "d")


@pytest.mark.parametrize("mode", [0o666, 0o444, 0o1676, 0o1677, 0o1455])
def test_attributes_and_times_of_files_and_folders(system, folder, put, mode):
    put(folder, "f", b"")
    fd = system.open_source(folder, "f")
    system.set_attributes(fd, mode, NS, 0)
    assert (oct(system.fstat(fd).st_mode & 0o7777), system.fstat(fd).st_mtime_ns) == (oct(mode), NS // 100 * 100)
    system.os.close(fd)
    system.make_folder(folder, "d")
    inner = system.open_folder(folder, "d")
    system.set_attributes(inner, None, NS, 0)
    assert system.folder_stat(inner).st_mtime_ns == NS // 100 * 100
    system.open_up(inner)
    system.close_folder(inner)


@pytest.mark.parametrize("name", ["a?b", "a|b", "a*b", "a<b", 'a"b'])
def test_names_that_cannot_be_are_bad_names(system, folder, name):
    with pytest.raises(OSError, match="error 123") as caught:
        system.create_part(folder, name)
    assert caught.value.errno in system.BAD_NAME


def test_paths_beyond_the_old_limit(system, folder, put):
    inner, opened = folder, []
    for _ in range(4):
        system.make_folder(inner, "d" * 200)
        inner = system.open_folder(inner, "d" * 200)
        opened.append(inner)
    put(inner, "deep", b"deep")
    assert len(inner.path) > 800
    assert read(system, inner, "deep") == b"deep"
    assert system.room(inner)[0] > 0
    for one in opened:
        system.close_folder(one)


def test_gaps_read_as_zeros(system, folder):
    fd = system.create_part(folder, "f")
    system.write_at(fd, b"x", 100_000)
    system.set_size(fd, 300_000)
    assert whole(system, fd) == bytes(100_000) + b"x" + bytes(199_999)
    ranges = list(system.data_ranges(fd, 300_000, system.fstat(fd).st_blocks))
    assert any(start <= 100_000 < end for start, end in ranges)
    system.os.close(fd)


def test_one_lock_and_its_readers(system, folder, put):
    put(folder, "lock", b"who")
    one, other = system.open_part(folder, "lock"), system.open_part(folder, "lock")
    assert system.lock(one)
    assert not system.lock(other)
    assert not system.lock(other, shared=True)
    assert whole(system, other) == b"who"
    system.os.close(one)
    assert system.lock(other, shared=True)
    with contextlib.closing(SimpleNamespace(close=lambda: system.os.close(other))):
        third = system.open_part(folder, "lock")
        assert system.lock(third, shared=True)
        system.os.close(third)


def test_mounts(system, folder):
    kind, point, serial = system.mount("C:\\t")
    assert (kind, point, len(serial)) == ("ntfs", "\\\\?\\C:\\", 8)


def test_an_access_list_goes_from_one_file_to_another(system, folder, put):
    """Wine keeps one only as far as a mode can: everybody may read, or nobody but the owner."""
    put(folder, "a", b"a")
    put(folder, "b", b"b")
    one, other = system.open_source(folder, "a"), system.open_part(folder, "b")
    kept = system.xattrs(one)
    assert set(kept) == {"acl.dacl"}  # Wine knows no streams
    size, count = struct.unpack_from("<xxHH", kept["acl.dacl"], 2)
    assert (size, count >= 1) == (len(kept["acl.dacl"]) - 2, True)
    nobody = kept["acl.dacl"][:2] + struct.pack("<BBHHH", 2, 0, 8, 0, 0)
    system.set_xattr(other, "acl.dacl", nobody)
    assert system.xattrs(other)["acl.dacl"] != kept["acl.dacl"]
    system.set_xattr(other, "acl.dacl", kept["acl.dacl"])
    assert system.xattrs(other) == kept
    system.os.close(one)
    system.os.close(other)


def test_what_a_volume_has(system, folder):
    assert system.holds_xattr(folder, "acl.dacl")
    assert not system.holds_xattr(folder, "user.x")
