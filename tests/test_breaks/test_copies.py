"""Copies that are one file count as one copy."""

import os
import shutil


def test_two_copies_that_are_hard_links_of_one_another_are_one(program, small_files, tmp_path):
    src, dst, twin = small_files(tmp_path / "src", 3), tmp_path / "dst", tmp_path / "twin"
    program.run("transfer", src, dst)
    shutil.copytree(dst, twin, copy_function=os.link)
    shutil.copytree(f"{dst}.scopeferry", f"{twin}.scopeferry")
    found = program.run("clean", src, "--copy", dst, "--copy", twin, "--yes")
    assert (found["exit_code"], "SF-514" in found["codes"]) == (5, True)
    assert len(list(src.rglob("*.tif"))) == 3
    assert program.run("clean", src, "--copy", dst, "--copy", twin, "--copies", 1)["exit_code"] == 0
