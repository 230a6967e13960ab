"""What `repair` has healed is the recorded version, whatever a transfer has planned since: no later run takes it for
another one.
"""

import os

import pytest


@pytest.fixture
def sides(tmp_path, program):
    src, dst = tmp_path / "src", tmp_path / "dst"
    src.mkdir()
    write(src / "f", b"first version")
    (src / "l").symlink_to("first")
    assert program.run("transfer", src, dst)["exit_code"] == 0
    return src, dst


def write(path, content, mtime_s=1_000_000_000):
    path.write_bytes(content)
    os.utime(path, (mtime_s, mtime_s))


def test_metadata_are_set_right_after_a_conflict(program, sides):
    src, dst = sides
    write(src / "f", b"second version, and longer", 1_100_000_000)
    (dst / "f").write_bytes(b"somebody's")
    assert program.run("transfer", src, dst)["exit_code"] == 5
    write(dst / "f", b"first version", 2)
    assert program.run("repair", src, dst)["exit_code"] == 0
    assert program.run("transfer", src, dst)["exit_code"] == 0
    assert (dst / "f").read_bytes() == b"second version, and longer"


def test_a_link_is_made_again_after_a_run_that_died(program, sides):
    src, dst = sides
    (src / "l").unlink()
    (src / "l").symlink_to("second")
    program.killed_at("symlink,symlinkat", 1, "transfer", src, dst)
    (dst / "l").unlink()
    program.run("repair", src, dst)
    assert program.run("transfer", src, dst)["exit_code"] == 0
    assert os.readlink(dst / "l") == "second"


def test_a_file_is_sent_again_after_a_run_that_died(program, sides):
    src, dst = sides
    write(src / "f", b"second version, and longer", 1_100_000_000)
    program.killed_at("renameat2", 1, "transfer", src, dst)
    (dst / "f").chmod(0o600)
    program.run("repair", src, dst)
    assert program.run("transfer", src, dst)["exit_code"] == 0
    assert (dst / "f").read_bytes() == b"second version, and longer"
