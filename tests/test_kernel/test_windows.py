"""What can be said of the Windows module without Windows: paths, facts, errors, reads and writes at offsets."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct

import pytest

from scopeferry.kernel import _windows, _windows_extras
from scopeferry.kernel._windows import Folder
from scopeferry.stores.files import xattr_kind

FILETIME_2024 = 133_485_408_000_000_000  # 2024-01-01T00:00:00Z in 100 ns since 1601
NS_2024 = 1_704_067_200_000_000_000


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (r"C:\acq\run7", r"\\?\C:\acq\run7"),
        (r"C:/acq/run7", r"\\?\C:\acq\run7"),
        (r"C:\acq\..\run7\.", r"\\?\C:\run7"),
        ("C:\\", "\\\\?\\C:\\"),
        (r"\\nas\share\run7", r"\\?\UNC\nas\share\run7"),
        (r"\\?\C:\x", r"\\?\C:\x"),
        (r"\\?\UNC\nas\share", r"\\?\UNC\nas\share"),
    ],
)
def test_paths_have_no_limit(given, wanted):
    assert _windows.extended(given) == wanted


def test_children_of_a_drive_and_of_a_folder():
    assert _windows._child(Folder("\\\\?\\C:\\", 0), "a") == "\\\\?\\C:\\a"
    assert _windows._child(Folder("\\\\?\\C:\\a", 0), "b.") == "\\\\?\\C:\\a\\b."


@pytest.mark.parametrize("name", ["", ".", "..", "a\\b", "..\\x", "a/b", "file:stream", "C:", "a\0b"])
def test_a_name_never_leads_elsewhere(name):
    with pytest.raises(OSError, match="no name of an entry") as caught:
        _windows._child(Folder("\\\\?\\C:\\a", 0), name)
    assert caught.value.errno in _windows.BAD_NAME


@pytest.mark.parametrize("code", [53, 59, 64, 121, 1231])
def test_a_share_that_went_away_is_gone(code):
    error = _windows._error(code, "x")
    assert error.errno in _windows.GONE
    assert error.winerror == code


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (2, FileNotFoundError), (3, FileNotFoundError), (80, FileExistsError), (183, FileExistsError),
        (5, PermissionError), (32, PermissionError), (267, NotADirectoryError),
    ],
)  # fmt: skip
def test_errors_have_their_own_classes(code, kind):
    assert type(_windows._error(code, "x")) is kind


def test_full_and_bad_names():
    assert {_windows._error(code, "").errno for code in (39, 112, 1295)} <= _windows.NO_SPACE
    assert {_windows._error(code, "").errno for code in (123, 206)} <= _windows.BAD_NAME
    assert _windows._error(223, "").errno == errno.EFBIG


def test_pythons_own_errors_get_the_same_numbers():
    error = OSError("gone")
    error.winerror = 64
    with pytest.raises(OSError, match="64") as caught, _windows._Native("x"):
        raise error
    assert caught.value.errno in _windows.GONE


@pytest.fixture
def disk_says(monkeypatch):
    """Let a handle have these facts."""

    def say(*, attributes=0x20, size=10, allocated=4096, links=1, tag=0, identity=True, changed=FILETIME_2024 + 5):
        answers = {
            _windows._BASIC: struct.pack("<4qI4x", 1, FILETIME_2024 + 1, FILETIME_2024 + 3, changed, attributes),
            _windows._STANDARD: struct.pack("<qqI4x", allocated, size, links),
            _windows._TAG: struct.pack("<II", attributes, tag),
            _windows._ID: struct.pack("<Q16s", 7, (1 << 80 | 9).to_bytes(16, "little")),
        }

        def info(_handle, kind, length):
            if kind == _windows._ID and not identity:
                raise _windows._error(87, "")
            assert len(answers[kind]) == length
            return answers[kind]

        def by_handle(name, _handle, buffer):
            assert name == "GetFileInformationByHandle"
            buffer.raw = struct.pack("<I6I6I", attributes, *range(6), 11, 0, size, links, 3, 4)

        monkeypatch.setattr(_windows, "_info", info)
        monkeypatch.setattr(_windows, "_call", by_handle)
        return _windows._facts(1)

    return say


def test_facts_are_those_of_the_file_system(disk_says):
    found = disk_says(size=10, allocated=4096, links=2)
    assert (found.st_size, found.st_blocks, found.st_nlink) == (10, 8, 2)
    assert (found.st_dev, found.st_ino) == (7, 1 << 80 | 9)
    assert found.st_mtime_ns == NS_2024 + 300
    assert found.st_ctime_ns == NS_2024 + 500, "the change time, not the creation time"
    assert stat.S_ISREG(found.st_mode)


def test_where_there_is_no_wide_identity_the_narrow_one_counts(disk_says):
    found = disk_says(identity=False)
    assert (found.st_dev, found.st_ino) == (11, 3 << 32 | 4)


def test_fat_has_no_change_time(disk_says):
    assert disk_says(changed=0).st_ctime_ns == 0


@pytest.mark.parametrize("tag", [0xA000_000C, 0xA000_0003], ids=["symbolic link", "junction"])
def test_what_leads_elsewhere_is_a_link(disk_says, tag):
    assert stat.S_ISLNK(disk_says(attributes=0x410, tag=tag).st_mode)


@pytest.mark.parametrize("tag", [0x8000_0013, 0x9000_001A], ids=["deduplicated", "in a cloud"])
def test_what_only_stores_its_bytes_otherwise_is_a_file(disk_says, tag):
    assert stat.S_ISREG(disk_says(attributes=0x420, tag=tag).st_mode)


@pytest.mark.parametrize("asked", range(8))
def test_attributes_survive_as_a_mode(asked):
    kept = _windows._mode(asked | 0x20, 0) & 0o1777  # what a source keeps without the owner
    assert _windows._attributes(kept, 0x20) == asked | 0x20
    assert _windows._attributes(kept, 0x20 | 0x7) == asked | 0x20


@pytest.mark.parametrize("mode", [0o644, 0o755, 0o600, 0o777, 0o711])
def test_a_mode_of_another_system_hides_nothing(mode):
    assert _windows._attributes(mode, 0x80) == 0x80


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(_windows, "_make_sparse", lambda _fd: None)
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 1 << 20, (1 << 20) + 5, 3_000_001])
def test_reads_at_any_offset(file, size):
    data = os.urandom(size)
    _windows.write_at(file, data, 0)
    block, at, found = memoryview(bytearray(1 << 20)), 0, b""
    while got := _windows.read_into(file, block, at):
        found += block[:got]
        at += got
    assert found == data
    for offset in {0, 1, 511, 4095, 4096, 5000, max(0, size - 1), size}:
        got = _windows.read_into(file, block[:777], offset)
        assert block[:got] == data[offset : offset + 777]


def test_a_gap_is_made_a_hole_first(file, monkeypatch):
    asked = []
    monkeypatch.setattr(_windows, "_make_sparse", asked.append)
    _windows.write_at(file, b"x" * 10, 0)
    assert not asked
    _windows.write_at(file, b"y", 100_000)
    _windows.set_size(file, 200_000)
    _windows.set_size(file, 200_000)
    assert asked == [file, file]
    assert os.pread(file, 2, 99_999) == b"\0y"


def test_ranges_come_in_several_answers(monkeypatch):
    answers = [([(0, 4096), (8192, 4096)], True), ([(1 << 20, 65536)], True), ([(2 << 20, 1 << 20)], False)]
    asked = []

    def control(_handle, code, given, size):
        assert code == _windows._QUERY_RANGES
        assert size == 16 * 512
        asked.append(struct.unpack("<qq", given))
        found, more = answers[len(asked) - 1]
        return b"".join(struct.pack("<qq", *one) for one in found), more

    monkeypatch.setattr(_windows, "_control", control)
    monkeypatch.setattr(_windows, "_handle", lambda fd: fd)
    size = (2 << 20) + 1000
    found = list(_windows.data_ranges(5, size, 8))
    assert found == [(0, 4096), (8192, 12288), (1 << 20, (1 << 20) + 65536), (2 << 20, size)]
    assert asked == [(0, size), (12288, size - 12288), ((1 << 20) + 65536, size - (1 << 20) - 65536)]
    assert list(_windows.data_ranges(5, 100, 8)) == [(0, 100)]


@pytest.mark.parametrize(("shared", "wanted"), [(False, 3), (True, 1)])
def test_the_lock_is_a_byte_that_nobody_reads(monkeypatch, shared, wanted):
    calls = []

    def call(name, *arguments, path=""):
        calls.append((name, *arguments))
        raise _windows._error(33, path)

    monkeypatch.setattr(_windows, "_call", call)
    monkeypatch.setattr(_windows, "_handle", lambda fd: fd)
    assert _windows.lock(3, shared=shared) is False
    name, handle, flags, _, low, high, overlapped = calls[0]
    assert (name, handle, flags, low, high) == ("LockFileEx", 3, wanted, 1, 0)
    assert struct.unpack("<QQIIQ", overlapped.raw) == (0, 0, 0, 0x4000_0000, 0)


def test_times_before_1601_cannot_be_held():
    with pytest.raises(OSError, match="1601"):
        _windows._filetime(-12_000_000_000 * 10**9)
    assert _windows._unix_ns(_windows._filetime(NS_2024 + 1234)) == NS_2024 + 1200


# -- streams and access lists ------------------------------------------------------------------------------------------

ACE = struct.pack("<BBHI", 0, 0, 20, 0x1F01FF) + bytes.fromhex(
    "010100000000000100000000"
)  # everybody may do everything
ACL = struct.pack("<BBHHH", 2, 0, 8 + len(ACE), 1, 0) + ACE


def test_an_access_list_out_of_a_descriptor_and_into_another():
    owner = bytes.fromhex("010100000000000100000000")
    for control, protected in ((0x8004, 0), (0x9004, 1)):
        offsets = (20, 0, 0, 20 + len(owner))
        descriptor = struct.pack("<BBHIIII", 1, 0, control, *offsets) + owner + ACL + b"what follows"
        value = _windows_extras.dacl_of(descriptor)
        assert value == struct.pack("<H", protected) + ACL
        assert _windows_extras.dacl_of(_windows_extras.descriptor_with(value)) == value


@pytest.mark.parametrize("control", [0x8000, 0x8004])
def test_no_access_list_is_none(control):
    with pytest.raises(OSError, match="no access list"):
        _windows_extras.dacl_of(struct.pack("<BBHIIII", 1, 0, control, 0, 0, 0, 0))


@pytest.mark.parametrize("value", [b"\0\0", b"\0\0" + ACL[:-1], b"\0\0" + ACL + b"x"])
def test_what_is_no_access_list_is_not_set(value):
    with pytest.raises(OSError, match="no access list"):
        _windows_extras.descriptor_with(value)


@pytest.mark.parametrize("name", ["stream.", "stream.a:b", "stream.a\\b", "stream.a/b", "user.x", "stream.a\0"])
def test_a_stream_from_a_record_never_names_another_file(name):
    with pytest.raises(OSError, match="no such attribute"):
        _windows_extras._stream_name(name)


def test_streams_are_listed_without_the_content_itself(monkeypatch):
    """As the reference describes the calls; the other system has none."""
    names = [("::$DATA", 5), (":Zone.Identifier:$DATA", 26), (":note\u00e9:$DATA", 0)]

    def found(buffer):
        name, size = names.pop(0)
        raw = struct.pack("<q", size) + name.encode("utf-16-le") + bytes(2)
        ctypes.memmove(buffer, raw, len(raw))

    def function(name):
        def first(_path, _level, buffer, _flags):
            found(buffer)
            return 7

        def following(_handle, buffer):
            if not names:
                return 0
            found(buffer)
            return 1

        return {"FindFirstStreamW": first, "FindNextStreamW": following, "FindClose": lambda handle: handle == 7}[name]

    monkeypatch.setattr(_windows, "_function", function)
    assert _windows_extras._streams("x") == [("Zone.Identifier", 26), ("note\u00e9", 0)]


def test_a_stream_too_large_to_be_kept_is_an_error_and_not_a_silence():
    with pytest.raises(OSError, match=r"alternate stream big is larger") as caught:
        _windows_extras._content("x:big", _windows_extras.LARGEST + 1, "big")
    assert caught.value.errno == errno.EFBIG


def test_what_is_kept_of_them_is_asked_for():
    assert {"acl", "streams"} <= _windows.CAN_KEEP
    assert [xattr_kind(name) for name in ("acl.dacl", "stream.x", "user.x", "system.posix_acl_access")] == [
        "acl", "streams", "xattrs", "acl",
    ]  # fmt: skip
