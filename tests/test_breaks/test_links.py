"""Hard links that are made, undone or planted on either side after the copy."""

import os

import pytest


@pytest.fixture
def sides(tmp_path):
    (tmp_path / "src").mkdir()
    return tmp_path / "src", tmp_path / "dst"


def write(path, content=b"same" * 1000, mtime_s=1_000_000_000):
    path.write_bytes(content)
    os.utime(path, (mtime_s, mtime_s))


def inodes(root):
    return {path.stat().st_ino for path in root.iterdir()}


def test_equal_files_that_the_source_has_linked_since_are_linked_in_the_copy(program, sides):
    src, dst = sides
    for name in "abc":
        write(src / name)
    assert program.run("transfer", src, dst)["exit_code"] == 0
    for name in "bc":
        (src / name).unlink()
        os.link(src / "a", src / name)
    assert program.run("transfer", src, dst)["exit_code"] == 0
    assert len(inodes(dst)) == 1
    found = program.run("transfer", src, dst)
    assert (found["skipped"], found["copied"]) == (3, 0)
    assert program.run("verify", dst)["exit_code"] == 0
