"""An item that comes to stand under another name, by keep-both, replace or a removal: every reader knows where."""

import os
import re
from pathlib import Path

import pytest


@pytest.fixture
def sides(small_files, tmp_path):
    return small_files(tmp_path / "src", 1), tmp_path / "dst", "f0/0.tif"


def in_manifest(dst):
    return re.findall(r"\((.*)\)", Path(f"{dst}.scopeferry/manifest.xxh128").read_text())


def forget_journals():
    for path in Path(os.environ["XDG_STATE_HOME"]).rglob("*.sqlite*"):
        path.unlink()


def test_what_is_kept_beside_is_no_longer_expected_under_its_own_name(program, sides):
    src, dst, name = sides
    program.run("transfer", src, dst)
    (dst / name).write_bytes(b"somebody's")
    assert program.run("transfer", src, dst, "--on-conflict", "keep-both")["exit_code"] == 0
    assert [program.run("verify", dst)["exit_code"], program.run("verify", dst, src)["exit_code"]] == [0, 0]
    assert program.run("repair", src, dst)["repaired"] == 0
    assert (dst / name).read_bytes() == b"somebody's"


@pytest.mark.parametrize("content", [b"somebody's", bytes(3000)], ids=["another size", "equal size and time"])
def test_replace_after_keep_both(program, sides, content):
    src, dst, name = sides
    (dst / name).parent.mkdir(parents=True)
    (dst / name).write_bytes(content)
    os.utime(dst / name, ns=(1, (src / name).stat().st_mtime_ns))
    program.run("transfer", src, dst, "--on-conflict", "keep-both")
    assert program.run("transfer", src, dst, "--on-conflict", "replace")["exit_code"] == 0
    assert (dst / name).read_bytes() == (src / name).read_bytes()
    assert in_manifest(dst) == [name]
    assert program.run("transfer", src, dst)["skipped"] == 1
    (src / name).write_bytes(b"a later version " * 999)
    program.run("transfer", src, dst)
    assert program.run("clean", src, "--copy", dst)["exit_code"] == 0
    forget_journals()
    assert program.run("transfer", src, dst)["exit_code"] == 0
    assert in_manifest(dst) == [name]


def test_the_own_name_becomes_free_after_keep_both(program, sides):
    src, dst, name = sides
    (dst / name).parent.mkdir(parents=True)
    (dst / name).write_bytes(b"somebody's")
    program.run("transfer", src, dst, "--on-conflict", "keep-both")
    (dst / name).unlink()
    assert program.run("transfer", src, dst)["exit_code"] == 0
    assert name in in_manifest(dst)
    assert program.run("verify", dst)["exit_code"] == 0
