"""Extended attributes of folders that the source changes or loses after the copy."""

import os
import shutil

import pytest


@pytest.fixture
def sides(tmp_path):
    src = tmp_path / "src"
    (src / "d").mkdir(parents=True)
    (src / "d" / "f").write_bytes(b"f")
    for folder in (src, src / "d"):
        os.setxattr(folder, "user.stain", b"DAPI")
    return src, tmp_path / "dst"


def attributes(folder):
    return {name: os.getxattr(folder, name) for name in os.listxattr(folder)}


@pytest.mark.parametrize("journal_is_lost", [False, True])
def test_they_are_changed_and_removed_in_the_copy_too(program, sides, journal_is_lost, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    src, dst = sides
    assert program.run("transfer", src, dst)["exit_code"] == 0
    os.setxattr(dst / "d", "user.somebodys", b"stays")
    os.setxattr(src / "d", "user.stain", b"GFP")
    os.removexattr(src, "user.stain")
    if journal_is_lost:
        shutil.rmtree(tmp_path / "state")
    assert program.run("transfer", src, dst)["exit_code"] == 0
    assert attributes(dst) == {}
    assert attributes(dst / "d") == {"user.stain": b"GFP", "user.somebodys": b"stays"}
    assert program.run("verify", dst)["exit_code"] == 0


def test_what_the_copy_has_lost_is_given_again(program, sides):
    src, dst = sides
    assert program.run("transfer", src, dst)["exit_code"] == 0
    os.removexattr(dst / "d", "user.stain")
    assert program.run("transfer", src, dst)["exit_code"] == 0
    assert attributes(dst / "d") == {"user.stain": b"DAPI"}


def test_a_rerun_with_nothing_to_do_sets_none(program, sides):
    src, dst = sides
    assert program.run("transfer", src, dst)["exit_code"] == 0
    found = program.run("transfer", src, dst)
    assert found["record"].endswith("0001.jsonl")
