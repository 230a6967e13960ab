"""`verify DST SRC --adopt`: a record for a copy that another tool made, without a byte written."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from scopeferry import clean, transfer, verify
from scopeferry.errors import UsageError
from scopeferry.testing.copies import told
from scopeferry.testing.steps import Steps
from scopeferry.testing.trees import random_tree, rewrite, snapshot

TOOLS = {
    "cp": ["cp", "-a", "SRC/.", "DST"],
    "rsync": ["rsync", "-a", "SRC/", "DST/"],
    "rclone": ["rclone", "copy", "--create-empty-src-dirs", "SRC", "DST"],
}


def bytes_of(root) -> dict:
    return {path: (found.kind, found.content, found.inode) for path, found in snapshot(root).items()}


@pytest.fixture
def sides(tmp_path):
    random_tree(tmp_path / "src", files=12)
    (tmp_path / "dst").mkdir()
    return tmp_path / "src", tmp_path / "dst"


@pytest.mark.parametrize("tool", TOOLS)
def test_a_copy_of_another_tool(sides, tool):
    src, dst = sides
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}: apt-get install {tool}")
    subprocess.run([word.replace("SRC", str(src)).replace("DST", str(dst)) for word in TOOLS[tool]], check=True)
    before = bytes_of(dst)
    with Steps() as steps:
        written = steps.watch("create_part", "open_part", "write_at", "rename_new", "exchange", "rename", "make_folder")
        result = verify(dst, src, adopt=True)
    assert (result.exit_code, result.command, result.adopted) == (0, "verify", 12)
    assert [name for name, *_ in written if name != "write_at"] == []  # the lock's owner is written at
    assert bytes_of(dst) == before
    assert verify(dst).verified == 12
    assert verify(dst, src).exit_code == 0
    assert clean(src, [dst]).exit_code == 0
    assert transfer(src, dst).copied == 0


def test_what_differs_or_is_missing_is_named_and_left(sides):
    src, dst = sides
    shutil.copytree(src, dst, dirs_exist_ok=True)
    names = sorted(path.relative_to(src) for path in src.rglob("*.tif") if path.stat().st_size > 10)
    rewrite(dst / names[0], b"other", keep_time=True)
    rewrite(dst / names[1], b"x" + (dst / names[1]).read_bytes()[1:], keep_time=True)
    (dst / names[2]).unlink()
    before = bytes_of(dst)
    result = verify(dst, src, adopt=True)
    assert result.exit_code == 4
    assert told(result) == {"SF-408": {str(names[0]), str(names[1])}, "SF-402": {str(names[2])}}
    assert bytes_of(dst) == before
    assert result.adopted == 9


def test_it_reads_both_sides_each_time(sides):
    src, dst = sides
    shutil.copytree(src, dst, dirs_exist_ok=True)
    assert verify(dst, src, adopt=True).adopted == 12
    with Steps() as steps:
        opened = steps.watch("open_source")
        result = verify(dst, src, adopt=True)
    assert (result.exit_code, result.adopted, result.checked, result.verified) == (0, 0, 12, 12)
    assert len([name for name, *_ in opened]) >= 24
    assert "12 as they were recorded" in result.details["verdict"]


@pytest.mark.parametrize(
    "more",
    [{"quick": True}, {"sample": "5%"}, {"manifest": "SUMS"}, {"one_way": True}],
    ids=lambda more: next(iter(more)),
)
def test_what_would_read_less_does_not_go_with_it(sides, more):
    src, dst = sides
    with pytest.raises(UsageError) as caught:
        verify(dst, src, adopt=True, **more)
    assert caught.value.code == "SF-105"
    assert not os.path.exists(f"{dst}.scopeferry")


def test_a_further_digest_from_the_start(sides):
    src, dst = sides
    shutil.copytree(src, dst, dirs_exist_ok=True)
    assert verify(dst, src, adopt=True, digests=["sha256"]).exit_code == 0
    assert os.path.exists(f"{dst}.scopeferry/manifest.sha256")
    assert verify(dst).exit_code == 0


def test_hard_links_and_links(sides):
    src, dst = sides
    (src / "one").write_bytes(b"content")
    os.link(src / "one", src / "two")
    (src / "link").symlink_to("one")
    subprocess.run(["cp", "-a", f"{src}/.", dst], check=True)
    assert verify(dst, src, adopt=True).exit_code == 0
    assert verify(dst).exit_code == 0


def test_hard_links_that_the_other_tool_made_files_of_are_a_loss(sides):
    src, dst = sides
    (src / "one").write_bytes(b"content")
    os.link(src / "one", src / "two")
    subprocess.run(["cp", "-r", f"{src}/.", dst], check=True)
    for _ in range(2):
        result = verify(dst, src, adopt=True)
        assert (result.exit_code, result.lost) == (0, {"hardlinks": 1}), told(result)
    assert not (dst / "one").samefile(dst / "two")
    assert verify(dst).exit_code == 0


def test_a_copy_that_is_not_there(sides):
    src, dst = sides
    with pytest.raises(UsageError) as caught:
        verify(dst / "no", src, adopt=True)
    assert caught.value.code == "SF-101"
    assert not (dst / "no").exists()
