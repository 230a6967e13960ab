"""`verify DST SRC`: which side changed, with a record and without one."""

from __future__ import annotations

import os
import shutil

import pytest

from scopeferry import clean, transfer, verify
from scopeferry.config import KEEP_DEFAULT
from scopeferry.testing.copies import NAMES, told
from scopeferry.testing.trees import flip, rewrite


def test_equal(rich):
    result = verify(rich.dst, rich.src)
    assert (result.exit_code, result.verified) == (0, len(NAMES) + 1)


def test_the_copy_changed(made):
    flip(made.dst / "a.tif")
    result = verify(made.dst, made.src)
    assert told(result) == {"SF-401": {"a.tif"}}
    assert "copy differs from the record" in result.problems[0].message


def test_the_source_changed(made):
    flip(made.src / "a.tif")
    result = verify(made.dst, made.src)
    assert (result.exit_code, told(result)) == (4, {"SF-406": {"a.tif"}})
    assert "source differs from the record" in result.problems[0].message
    assert result.verified == len(NAMES)


def test_both_changed_alike(made):
    for side in (made.src, made.dst):
        flip(side / "a.tif", 3)
    result = verify(made.dst, made.src)
    assert told(result) == {"SF-407": {"a.tif"}}
    assert "equal to each other" in result.problems[0].message


def test_both_changed_each_in_its_own_way(made):
    flip(made.src / "a.tif", 3)
    flip(made.dst / "a.tif", 4)
    result = verify(made.dst, made.src)
    assert told(result) == {"SF-410": {"a.tif"}}
    assert result.problems[0].message.count("xxh128:") == 3


def test_missing_on_one_side(made):
    (made.src / "a.tif").unlink()
    (made.dst / "sub/c.tif").unlink()
    (made.src / "new").write_bytes(b"new")
    found = told(verify(made.dst, made.src))
    assert (found["SF-406"], found["SF-402"]) == ({"a.tif"}, {"sub/c.tif", "new"})
    found = told(verify(made.dst, made.src, one_way=True))
    assert "SF-406" not in found


def test_missing_in_the_copy_and_changed_at_the_source(made):
    flip(made.src / "a.tif")
    (made.dst / "a.tif").unlink()
    found = told(verify(made.dst, made.src))
    assert (found["SF-402"], found["SF-406"]) == ({"a.tif"}, {"a.tif"})


def test_what_was_left_out_on_purpose_is_not_missing(made):
    (made.src / "notes.txt").write_bytes(b"x")
    copy = made.folder / "selected"
    transfer(made.src, copy, select=(("exclude", "*.txt"), ("exclude", "sub/deep/")))
    assert verify(copy, made.src).exit_code == 0


def test_links_that_were_not_to_be_kept_are_not_missing(rich):
    copy = rich.folder / "plain"
    (rich.src / "links").mkdir()
    (rich.src / "links/one").symlink_to("../a.tif")
    transfer(rich.src, copy, keep=frozenset(KEEP_DEFAULT) - {"links"})
    assert not os.path.lexists(copy / "link")
    assert verify(copy, rich.src).exit_code == 0
    (rich.src / "links/later").symlink_to("../a.tif")
    assert told(verify(copy, rich.src)) == {"SF-402": {"links/later"}}


def test_what_was_freed_is_not_gone(made):
    assert clean(made.src, [made.dst], yes=True).exit_code == 0
    assert not (made.src / "a.tif").exists()
    assert verify(made.dst, made.src).exit_code == 0


def test_links_on_both_sides(rich):
    (rich.src / "link").unlink()
    (rich.src / "link").symlink_to("elsewhere")
    assert told(verify(rich.dst, rich.src)) == {"SF-406": {"link"}}


@pytest.fixture
def bare(tmp_path):
    """Two equal folders that nobody has recorded."""
    src, dst = tmp_path / "src", tmp_path / "dst"
    for name in ("a", "sub/b", "sub/c"):
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).write_bytes(name.encode() * 1000)
    (src / "link").symlink_to("a")
    shutil.copytree(src, dst, symlinks=True)
    return src, dst


def test_without_a_record_both_sides_are_compared(bare):
    src, dst = bare
    result = verify(dst, src)
    assert (result.exit_code, result.verified) == (0, 3)
    assert not os.path.exists(f"{dst}.scopeferry")
    rewrite(dst / "a", b"b" * 1000, keep_time=True)
    (dst / "link").unlink()
    (dst / "link").symlink_to("b")
    result = verify(dst, src)
    assert (result.exit_code, told(result)) == (4, {"SF-408": {"a", "link"}})


def test_without_a_record_extras_are_differences_unless_one_way(bare):
    src, dst = bare
    (dst / "extra").write_bytes(b"x")
    (src / "sub/new").write_bytes(b"x")
    (src / "folder").mkdir()
    assert told(verify(dst, src)) == {"SF-408": {"extra"}, "SF-402": {"sub/new", "folder"}}
    assert told(verify(dst, src, one_way=True)) == {"SF-402": {"sub/new", "folder"}}


def test_a_copy_by_name_mapping_is_found_under_its_stored_names(tmp_path):
    src, dst = tmp_path / "src", tmp_path / "dst"
    src.mkdir()
    (src / "a:b").write_bytes(b"content")
    result = transfer(src, dst, names="percent")
    if result.exit_code != 0 or (dst / "a:b").exists():
        pytest.skip("person: a destination that cannot hold the name (FAT, SMB); tests/test_names runs it on exFAT")
    assert verify(dst, src).exit_code == 0
