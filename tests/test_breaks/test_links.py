"""Hard links that are made, undone or planted on either side after the copy."""

import os
import shutil

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


def test_an_inode_is_edited_and_has_new_names_on_both_sides(program, sides):
    src, dst = sides
    write(src / "n")
    os.link(src / "n", src / "o")
    assert program.run("transfer", src, dst, "--verify", "all")["exit_code"] == 0
    os.link(src / "n", src / "a")
    write(src / "n", b"edit" * 1000)
    os.link(dst / "n", dst / "somebodys")
    found = program.run("transfer", src, dst)
    assert (found["exit_code"], found["bytes"]) == (0, 4000)
    assert {(dst / name).stat().st_ino for name in "nao"} == {(dst / "n").stat().st_ino}
    assert (dst / "o").read_bytes() == (src / "o").read_bytes()


def test_two_files_of_the_copy_that_are_one_inode_each_are_edited_at_the_source(program, sides):
    src, dst = sides
    for name in "np":
        write(src / name)
    for name in "oq":
        os.link(src / chr(ord(name) - 1), src / name)
    assert program.run("transfer", src, dst)["exit_code"] == 0
    for name in "opq":
        (src / name).unlink()
        os.link(src / "n", src / name)
    write(src / "n", b"edit" * 1000)
    os.link(dst / "n", dst / "somebodys")
    os.link(dst / "p", dst / "somebodys too")
    assert program.run("transfer", src, dst)["exit_code"] == 0
    assert len({(dst / name).stat().st_ino for name in "nopq"}) == 1
    assert {path.name for path in dst.iterdir() if path.read_bytes() != b"edit" * 1000} == {
        "somebodys",
        "somebodys too",
    }


def test_a_symbolic_link_of_ours_is_checked_and_not_adopted(program, sides):
    src, dst = sides
    (src / "l").symlink_to("nowhere")
    assert program.run("transfer", src, dst)["exit_code"] == 0
    found = program.run("transfer", src, dst, "--verify", "all")
    assert (found["adopted"], found["checked"]) == (0, 1)


@pytest.fixture
def edited(program, sides):
    """The copy of an inode with two names, which somebody has edited since."""
    src, dst = sides
    write(src / "n")
    os.link(src / "n", src / "o")
    assert program.run("transfer", src, dst)["exit_code"] == 0
    write(dst / "o", b"work" * 1000, 1_500_000_000)
    return src, dst


def test_all_names_of_somebodys_work_are_refused(program, edited):
    src, dst = edited
    assert program.run("transfer", src, dst)["exit_code"] == 5
    assert [(dst / name).read_bytes() for name in "no"] == [b"work" * 1000] * 2
    assert len(inodes(dst)) == 1


def test_all_names_of_somebodys_work_are_replaced(program, edited):
    src, dst = edited
    assert program.run("transfer", src, dst, "--on-conflict", "replace")["exit_code"] == 0
    assert [(dst / name).read_bytes() for name in "no"] == [b"same" * 1000] * 2
    assert len(inodes(dst)) == 1


def test_two_names_of_somebodys_inode_are_replaced_by_two_files(program, sides):
    src, dst = sides
    for name in "ab":
        write(src / name, name.encode() * 1000)
    dst.mkdir()
    write(dst / "a", b"work" * 1000)
    os.link(dst / "a", dst / "b")
    assert program.run("transfer", src, dst, "--on-conflict", "replace", "--workers", "1")["exit_code"] == 0
    assert [(dst / name).read_bytes()[:1] for name in "ab"] == [b"a", b"b"]


def test_a_name_that_follows_one_which_follows_another_is_healed(program, sides, state):
    src, dst = sides
    (src / "e").mkdir()
    write(src / "z")
    assert program.run("transfer", src, dst)["exit_code"] == 0
    write(src / "n", b"other")
    for name in ("b", "e/g"):
        os.link(src / "z", src / name)
    shutil.rmtree(state)
    assert program.run("transfer", src, dst)["exit_code"] == 0  # recorded: both follow z
    (dst / "n").rename(dst / "x")
    (dst / "e/g").rename(dst / "n")
    (dst / "x").rename(dst / "e/g")
    assert program.run("transfer", src, dst)["exit_code"] == 5  # recorded: z follows b
    with open(dst / "b", "r+b") as file:
        file.write(b"edit")
    os.utime(dst / "b", (1_000_000_000, 1_000_000_000))
    found = program.run("repair", src, dst)
    assert (found["exit_code"], found["failed"]) == (0, 0)
    assert program.run("verify", dst)["exit_code"] == 0
    (src / "z").chmod(0o600)  # repaired as it was recorded; from here on z has the mode of the name that it follows
    assert program.run("transfer", src, dst, "--digest", "sha256")["exit_code"] == 0
    assert program.run("verify", dst)["exit_code"] == 0


def test_a_name_is_never_linked_to_another_version_than_its_own(program, sides):
    src, dst = sides
    long = "z" * 250  # no room for a name beside it
    write(src / "a")
    os.link(src / "a", src / long)
    assert program.run("transfer", src, dst)["exit_code"] == 0
    write(src / "a", b"newer", 1_100_000_000)
    write(dst / "a", b"edited", 1_050_000_000)
    assert "SF-207" in program.run("transfer", src, dst, "--on-conflict", "keep-both")["codes"]
    found = program.run("repair", src, dst)
    assert (found["exit_code"], found["codes"]) == (5, {"SF-521"})
    assert (dst / long).read_bytes() == b"edited"
