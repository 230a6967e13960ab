"""`--dry-run` ends with 0, 5 or 7 as the run would, says what would be lost, and writes nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scopeferry.testing.trees import snapshot

COMMAND = str(Path(sys.executable).with_name("scopeferry"))


def rehearsed(ferry, tmp_path, **options):
    """The result of a rehearsal that changed nothing."""
    before = snapshot(tmp_path)
    told = ferry.run(dry_run=True, **options)
    assert snapshot(tmp_path) == before
    return told


CASES = {
    "equal": (b"content", b"content"),
    "other bytes of the same size": (b"content", b"CONTENT"),
    "another size": (b"content", b"more content"),
}


@pytest.mark.parametrize("policy", ["refuse", "replace", "keep-both"])
@pytest.mark.parametrize("case", CASES)
def test_it_ends_as_the_run_ends(ferry, tmp_path, case, policy):
    ours, theirs = CASES[case]
    (ferry.src / "a").write_bytes(ours)
    ferry.dst.mkdir()
    (ferry.dst / "a").write_bytes(theirs)
    os.utime(ferry.dst / "a", (1, 1))
    told = rehearsed(ferry, tmp_path, on_conflict=policy)
    played = ferry.run(on_conflict=policy)
    assert told.exit_code == played.exit_code == (5 if policy == "refuse" and ours != theirs else 0)
    assert [(one.code, one.path) for one in told.problems if one.code.startswith("SF-5")] == [
        (one.code, one.path) for one in played.problems if one.code.startswith("SF-5")
    ]


def test_the_place_of_a_second_version_may_be_taken(ferry, tmp_path):
    (ferry.src / "a.tif").write_bytes(b"content")
    ferry.dst.mkdir()
    (ferry.dst / "a.tif").write_bytes(b"CONTENT")
    ferry.run(0, on_conflict="keep-both")
    (beside,) = ferry.dst.glob("a.scopeferry-*")
    shutil.rmtree(ferry.records)
    shutil.rmtree(os.environ["XDG_STATE_HOME"])
    assert rehearsed(ferry, tmp_path, on_conflict="keep-both").exit_code == 0
    beside.write_bytes(b"nobody's")
    assert rehearsed(ferry, tmp_path, on_conflict="keep-both").exit_code == 5
    ferry.run_unchecked(5, on_conflict="keep-both")


@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_a_link_that_stands_there(ferry, tmp_path, target):
    (ferry.src / "link").symlink_to("nowhere")
    ferry.dst.mkdir()
    (ferry.dst / "link").symlink_to(target)
    told = rehearsed(ferry, tmp_path)
    assert told.exit_code == ferry.run().exit_code == (5 if target == "elsewhere" else 0)


def test_one_file_of_another_content(ferry, tmp_path):
    (ferry.src / "a").write_bytes(b"content")
    (tmp_path / "b").write_bytes(b"CONTENT")
    before = snapshot(tmp_path)
    assert ferry.run(src=ferry.src / "a", dst=tmp_path / "b", dry_run=True).exit_code == 5
    assert snapshot(tmp_path) == before


def test_what_was_rehearsed_may_be_read_only(ferry, tmp_path):
    """What is equal is only looked at: mode and time stay."""
    (ferry.src / "a").write_bytes(b"content")
    ferry.dst.mkdir()
    (ferry.dst / "a").write_bytes(b"content")
    os.chmod(ferry.dst / "a", 0o400)
    os.setxattr(ferry.dst / "a", "user.theirs", b"1")
    before = os.stat(ferry.dst / "a").st_ctime_ns
    assert rehearsed(ferry, tmp_path).exit_code == 0
    assert os.stat(ferry.dst / "a").st_ctime_ns == before


def test_attributes_that_the_destination_does_not_take(ferry, tmp_path):
    (ferry.src / "below").mkdir()
    for path in (ferry.src / "a", ferry.src / "below"):
        path.touch() if path.name == "a" else None
        os.setxattr(path, "user.lens", b"63x")
        os.setxattr(path, "user.other", b"1")
    (ferry.src / "b").write_bytes(b"none")
    point = tmp_path / "ram"
    point.mkdir()
    script = f'mount -t ramfs ram "$1" && exec "{COMMAND}" transfer --json $2 "$3" "$1/copy"'
    found = {}
    for option in ("--dry-run", ""):
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", script, "sh", point, option, ferry.src],
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found[option] = json.loads(done.stdout)["lost"]
    assert found["--dry-run"] == found[""] == {"xattrs": 4}
