"""The calls of Linux against real file systems."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from scopeferry.kernel import _posix as system
from scopeferry.kernel import publish


@pytest.fixture
def folder(tmp_path):
    fd = system.open_root(str(tmp_path))
    yield fd
    system.close_folder(fd)


@pytest.fixture
def small_files(tmp_path):
    """An ext2 with blocks of 1 KiB: no file may be larger than 16 GiB and a little."""
    if os.geteuid() != 0 or not shutil.which("mkfs.ext2"):
        pytest.skip("needs root and mkfs.ext2: apt-get install e2fsprogs")
    image, point = tmp_path / "image", tmp_path / "mount"
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext2", "-q", "-b", "1024", image], check=True)
    point.mkdir()
    if subprocess.run(["mount", "-o", "loop", image, point], check=False, capture_output=True).returncode:
        pytest.skip("person: a machine that allows loop mounts")
    yield point
    subprocess.run(["umount", point], check=True)


def test_the_largest_size_is_known_before_the_first_byte(small_files, tmp_path):
    for place, largest in ((small_files, 17_247_252_480), (tmp_path, 1 << 43)):
        with open(place / "f", "wb") as file:
            assert system.fits(file.fileno(), largest)
            assert system.fits(file.fileno(), largest * 4) is False
            assert os.fstat(file.fileno()).st_size == 0


def test_a_file_too_large_fails_alone(small_files, tmp_path):
    from scopeferry import transfer

    source = tmp_path / "src"
    source.mkdir()
    (source / "small").write_bytes(b"small")
    with open(source / "large", "wb") as file:
        file.truncate(20 << 30)
    result = transfer(source, small_files / "dst")
    assert result.exit_code == 3
    assert [problem.path for problem in result.problems if problem.code == "SF-209"] == ["large"]
    assert sorted(path.name for path in (small_files / "dst").iterdir()) == ["small"]


def test_a_part_with_its_final_mode_can_be_continued(folder, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root: the test gives its powers away")
    (tmp_path / "part").write_bytes(b"half")
    (tmp_path / "part").chmod(0o444)
    tmp_path.chmod(0o777)
    os.chown(tmp_path / "part", 65534, 65534)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            fd = system.open_part(folder, "part")
            system.write_at(fd, b"both", 0)
            os.close(fd)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert (tmp_path / "part").read_bytes() == b"both"


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_free_name_is_taken_and_a_taken_one_is_not(folder, tmp_path, monkeypatch, by_hand):
    if by_hand:

        def unknown(*_):
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(system, "_rename_with", unknown)
    (tmp_path / "a").write_bytes(b"a")
    system.rename_new(folder, "a", "b")
    (tmp_path / "a").write_bytes(b"new")
    with pytest.raises(FileExistsError):
        system.rename_new(folder, "a", "b")
    assert (tmp_path / "b").read_bytes() == b"a"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_two_names_change_places(folder, tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    assert system.exchange(folder, "a", "b")
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"b", b"a")


@pytest.mark.parametrize("workers", [1, 4, 16, 64])
@pytest.mark.parametrize("limit", [256, 1024, 1 << 20])
def test_a_batch_leaves_half_of_the_descriptors(monkeypatch, limit, workers):
    monkeypatch.setattr(publish.system, "file_limit", lambda: limit)
    items = publish.batch_items(workers, 64)
    assert items == 1 or (items <= 64 and workers * (2 * items + 3 * publish.FEW) <= limit // 2)
    assert limit < 1 << 20 or items == 64


def test_an_ordinary_folder_folds_no_names(folder):
    assert system.folds_names(folder) is False


def test_mounts_with_spaces_in_their_names(tmp_path):
    point = tmp_path / "a b\tc\\d"
    point.mkdir()
    mounting = subprocess.run(["mount", "-t", "tmpfs", "x y", point], check=False, capture_output=True)
    if mounting.returncode:
        pytest.skip("needs root, and leave to mount")
    try:
        (point / "in").mkdir()
        assert system.mount(str(point / "in")) == ("tmpfs", str(point), "x y")
        assert publish.disk(str(tmp_path)).point != str(point)
    finally:
        subprocess.run(["umount", point], check=True)


@pytest.mark.parametrize(
    ("kind", "read_back", "steady"),
    [
        ("ext4", "storage", True), ("xfs", "storage", True), ("ntfs", "storage", True), ("vfat", "storage", False),
        ("nfs4", "server", False), ("cifs", "server", False), ("remote", "server", False), ("tmpfs", "memory", True),
        ("fuse.sshfs", "mount", False), ("fuseblk", "mount", False), ("macfuse", "mount", False),
        ("unknown", "memory", False),
        ("one that nobody has heard of", "mount", False),
    ],
)  # fmt: skip
def test_what_a_file_system_is_trusted_with(kind, read_back, steady):
    disk = publish.Disk(kind, "/", "")
    assert (disk.read_back, disk.steady) == (read_back, steady)


def test_only_fat_is_known_to_hold_no_large_file():
    assert publish.Disk("vfat", "/", "").largest_bytes == publish.Disk("fat32", "/", "").largest_bytes == (4 << 30) - 1
    assert publish.Disk("exfat", "/", "").largest_bytes is publish.Disk("ext4", "/", "").largest_bytes is None


def test_a_rerun_leaves_nothing_open(tmp_path):
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    for _ in range(3):
        publish.takes_any_name(str(tmp_path), publish.disk(str(tmp_path)))
    assert len(os.listdir("/proc/self/fd")) == before
