"""Copies that are one file count as one copy."""

import os
import shutil
import subprocess

import pytest


def test_two_copies_that_are_hard_links_of_one_another_are_one(program, small_files, tmp_path):
    src, dst, twin = small_files(tmp_path / "src", 3), tmp_path / "dst", tmp_path / "twin"
    program.run("transfer", src, dst)
    shutil.copytree(dst, twin, copy_function=os.link)
    shutil.copytree(f"{dst}.scopeferry", f"{twin}.scopeferry")
    found = program.run("clean", src, "--copy", dst, "--copy", twin, "--yes")
    assert (found["exit_code"], "SF-514" in found["codes"]) == (5, True)
    assert len(list(src.rglob("*.tif"))) == 3
    assert program.run("clean", src, "--copy", dst, "--copy", twin, "--copies", 1)["exit_code"] == 0


def test_hard_links_to_the_source_are_no_copy(program, small_files, tmp_path):
    src, dst = small_files(tmp_path / "src", 2), tmp_path / "dst"
    shutil.copytree(src, dst, copy_function=os.link)
    found = program.run("transfer", src, dst)
    assert (found["exit_code"], found["codes"], found["adopted"]) == (5, {"SF-507"}, 0)
    (dst / "f0/1.tif").unlink()
    found = program.run("transfer", src, dst)
    assert (found["exit_code"], found["copied"]) == (5, 1)


def test_a_folder_of_the_source_that_is_mounted_in_the_copy_is_no_copy(program, small_files, tmp_path):
    src, dst = small_files(tmp_path / "src", 4, folders=2), tmp_path / "dst"
    (dst / "f1").mkdir(parents=True)
    if subprocess.run(["mount", "--bind", src / "f1", dst / "f1"], check=False, capture_output=True).returncode:
        pytest.skip("needs to mount")
    try:
        found = program.run("transfer", src, dst)
        assert (found["exit_code"], found["codes"], found["copied"]) == (5, {"SF-507"}, 2)
    finally:
        subprocess.run(["umount", dst / "f1"], check=True)
    assert program.run("transfer", src, dst)["exit_code"] == 0
