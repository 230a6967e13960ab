"""`verify` finds everything that can be wrong with a copy, and says what was expected and what was found."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys

import pytest

from scopeferry import repair, transfer, verify
from scopeferry.errors import Interrupted, UsageError
from scopeferry.kernel.task import Control
from scopeferry.testing.copies import NAMES, state_of, told
from scopeferry.testing.steps import Steps, error
from scopeferry.testing.trees import flip


def test_a_good_copy(rich):
    before = state_of(rich.dst)
    result = verify(rich.dst)
    assert (result.exit_code, result.state, result.problems) == (0, "verified", [])
    assert (result.verified, result.items) == (len(NAMES) + 1, len(NAMES) + 2)
    assert result.read_back == {"storage": len(NAMES) + 1} or result.read_back == {"memory": len(NAMES) + 1}
    assert result.bytes == sum(NAMES.values()) + NAMES["sub/c.tif"]
    expected = hashlib.sha256((rich.records() / "manifest.xxh128").read_bytes()).hexdigest()
    assert result.tree_digest == f"sha256:{expected}"
    assert state_of(rich.dst) == before


@pytest.mark.parametrize("offset", [0, 69_999])
def test_a_flipped_bit_with_size_and_time_put_back(made, offset):
    flip(made.dst / "sub/c.tif", offset)
    result = verify(made.dst)
    assert (result.exit_code, told(result)) == (4, {"SF-401": {"sub/c.tif"}})
    assert result.verified == len(NAMES) - 1
    (problem,) = result.problems
    assert "expected xxh128:" in problem.message
    assert "found xxh128:" in problem.message
    assert "repair" in problem.hint


def test_a_swapped_pair_of_equal_size(made):
    one, other = made.dst / "sub/deep/d.tif", made.dst / "sub/deep/e.tif"
    times = [os.stat(path).st_mtime_ns for path in (one, other)]
    one.rename(made.folder / "kept")
    other.rename(one)
    (made.folder / "kept").rename(other)
    for path, time_ns in zip((one, other), times, strict=True):
        os.utime(path, ns=(time_ns, time_ns))
    os.utime(made.dst / "sub/deep", ns=(0, os.stat(made.src / "sub/deep").st_mtime_ns))
    assert told(verify(made.dst)) == {"SF-401": {"sub/deep/d.tif", "sub/deep/e.tif"}}


def test_missing_files_folders_and_links(rich):
    (rich.dst / "a.tif").unlink()
    (rich.dst / "link").unlink()
    (rich.dst / "empty").rmdir()
    found = told(verify(rich.dst))
    assert found["SF-402"] == {"a.tif", "link", "empty"}
    assert set(found) == {"SF-402", "SF-404"}  # the folder that held them has another time


def test_a_folder_is_gone_with_all_that_is_in_it(made):
    shutil.rmtree(made.dst / "sub")
    assert told(verify(made.dst))["SF-402"] == {"sub", "sub/deep", "sub/c.tif", "sub/deep/d.tif", "sub/deep/e.tif"}


def test_longer_and_shorter(made):
    with open(made.dst / "a.tif", "ab") as file:
        file.write(b"x")
    os.truncate(made.dst / "sub/c.tif", 1)
    assert told(verify(made.dst))["SF-401"] == {"a.tif", "sub/c.tif"}


METADATA = {
    "mode": (lambda dst: (dst / "a.tif").chmod(0o600), "a.tif", "expected 0640, found 0600"),
    "time": (lambda dst: os.utime(dst / "a.tif", (5, 5)), "a.tif", "1970-01-01 00:00:05"),
    "attribute": (lambda dst: os.setxattr(dst / "a.tif", "user.note", b"other"), "a.tif", "user.note differs"),
    "no attribute": (lambda dst: os.removexattr(dst / "a.tif", "user.note"), "a.tif", "user.note is missing"),
    "folder's mode": (lambda dst: (dst / "sub").chmod(0o700), "sub", "mode differs"),
    "folder's time": (lambda dst: os.utime(dst / "sub", (5, 5)), "sub", "time differs"),
    "link's time": (lambda dst: os.utime(dst / "link", (5, 5), follow_symlinks=False), "link", "time differs"),
}


@pytest.mark.parametrize("case", METADATA)
def test_wrong_metadata(rich, case):
    change, path, said = METADATA[case]
    change(rich.dst)
    result = verify(rich.dst)
    assert (result.exit_code, told(result)) == (4, {"SF-404": {path}})
    assert said in result.problems[0].message
    assert result.verified == len(NAMES) + 1  # the bytes are proved all the same


def test_a_link_that_leads_elsewhere(rich):
    (rich.dst / "link").unlink()
    (rich.dst / "link").symlink_to("/etc/passwd")
    os.utime(rich.dst, ns=(0, os.stat(rich.src).st_mtime_ns))
    result = verify(rich.dst)
    assert told(result) == {"SF-401": {"link"}}
    assert "expected sub/c.tif, found /etc/passwd" in result.problems[0].message


def test_extras_are_listed_and_change_nothing_unless_strict(made):
    (made.dst / "sub/extra").write_bytes(b"mine")
    (made.dst / "new folder").mkdir()
    (made.dst / "new folder/other").write_bytes(b"mine")
    result = verify(made.dst)
    assert (result.exit_code, result.extras, result.problems) == (0, 2, [])
    assert sorted(result.details["extras_listed"]) == ["new folder/other", "sub/extra"]
    result = verify(made.dst, strict=True)
    assert (result.exit_code, told(result)) == (4, {"SF-405": {"new folder/other", "sub/extra"}})


def test_a_file_that_cannot_be_read(made):
    with Steps() as steps:
        steps.before("read_into", error(errno.EIO))
        result = verify(made.dst, workers=1)
    assert result.exit_code == 4
    assert list(told(result)) == ["SF-403"]
    assert "Input/output error" in result.problems[0].message
    assert result.verified == len(NAMES) - 1


def test_a_file_without_read_permission(made):
    if shutil.which("setpriv") is None or os.geteuid() != 0:
        pytest.skip("needs root and setpriv: apt-get install util-linux")
    (made.dst / "a.tif").chmod(0)
    code = (
        f"import scopeferry; result = scopeferry.verify({str(made.dst)!r});"
        "print(result.exit_code, sorted((p.code, p.path) for p in result.problems))"
    )
    powers = "-dac_override,-dac_read_search"
    command = ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}", sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout.strip() == "4 [('SF-403', 'a.tif')]", done.stderr


def test_a_fifo_in_the_place_of_a_file_is_never_opened(made):
    (made.dst / "a.tif").unlink()
    os.mkfifo(made.dst / "a.tif")
    result = verify(made.dst)
    assert result.exit_code == 4
    assert told(result)["SF-411"] == {"a.tif"}


def test_a_link_in_the_place_of_a_file_is_not_followed(made):
    (made.dst / "a.tif").rename(made.folder / "same content")
    (made.dst / "a.tif").symlink_to(made.folder / "same content")
    result = verify(made.dst)
    assert result.exit_code == 4
    assert told(result)["SF-411"] == {"a.tif"}


PLANTED = {"link": lambda path: path.symlink_to("/etc/passwd"), "fifo": os.mkfifo, "folder": os.mkdir}


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_is_a_difference_for_who_only_looks_and_refused_by_who_would_write(made, what):
    (made.dst / "a.tif").unlink()
    PLANTED[what](made.dst / "a.tif")
    before = state_of(made.dst)
    result = verify(made.dst)
    assert (result.exit_code, told(result)["SF-411"]) == (4, {"a.tif"})
    for job in (repair, transfer):
        result = job(made.src, made.dst)
        assert (result.exit_code, told(result)["SF-502"]) == (5, {"a.tif"})
        assert state_of(made.dst)[b"a.tif"] == before[b"a.tif"]


def test_a_link_in_the_place_of_a_folder_is_refused_and_named_once(made):
    (made.dst / "sub").rename(made.folder / "moved")
    (made.dst / "sub").symlink_to(made.folder / "moved")
    result = verify(made.dst)
    assert result.exit_code == 5
    said = [problem for problem in result.problems if problem.code == "SF-504"]
    assert 1 <= len(said) <= 2, said
    assert result.verified == 2


def test_a_file_in_the_place_of_a_folder(made):
    shutil.rmtree(made.dst / "sub")
    (made.dst / "sub").write_bytes(b"file")
    found = told(verify(made.dst))
    assert found["SF-411"] == {"sub"}
    assert "sub/c.tif" in found["SF-402"]


def test_quick_compares_and_never_says_verified(made):
    flip(made.dst / "a.tif")
    with Steps() as steps:
        opened = steps.watch("open_source")
        result = verify(made.dst, quick=True)
    assert (result.exit_code, result.state, result.verified, opened) == (0, "compared", 0, [])
    assert "compared" in result.details["verdict"]
    assert "verified" not in result.details["verdict"]
    os.truncate(made.dst / "a.tif", 1)
    found = told(verify(made.dst, quick=True))
    assert found == {"SF-401": {"a.tif"}, "SF-404": {"a.tif"}}


def test_everything_is_read_from_storage(made):
    with Steps() as steps:
        dropped = steps.watch("drop")
        verify(made.dst)
    assert len(dropped) >= len(NAMES)


def test_what_was_written_just_now_is_flushed_before_it_is_dropped(made):
    (made.dst / "a.tif").write_bytes((made.src / "a.tif").read_bytes())
    with Steps() as steps:
        order = steps.watch("flush", "flush_all", "drop", "read_into")
        verify(made.dst, workers=1)
    names = [name for name, *_ in order]
    assert names[0] in {"flush", "flush_all"}
    assert names.index("drop") < names.index("read_into")


def test_interrupted(made):
    control = Control()
    with Steps() as steps:
        steps.before("read_into", lambda *_: control.stop(Interrupted("stopped")))
        result = verify(made.dst, control=control, workers=1)
    assert (result.exit_code, result.state) == (130, "interrupted")
    assert "SF-401" not in told(result)


def test_events_tell_each_file(made):
    seen = []
    flip(made.dst / "a.tif")
    verify(made.dst, on_event=seen.append)
    assert seen[0].kind == "started"
    assert seen[-1].kind == "finished"
    done = {event.path for event in seen if event.kind == "done"}
    failed = {event.path for event in seen if event.kind == "failed"}
    assert failed == {"a.tif"}
    assert done >= set(NAMES) - {"a.tif"}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"sample": 0}, "SF-105"), ({"sample": "120%"}, "SF-105"), ({"sample": "many"}, "SF-105"),
        ({"digests": ["crc"]}, "SF-106"), ({"quick": True, "sample": 5}, "SF-105"), ({"workers": 0}, "SF-105"),
        ({"adopt": True}, "SF-100"),
    ],
)  # fmt: skip
def test_wrong_usage(made, options, code):
    with pytest.raises(UsageError) as caught:
        verify(made.dst, **options)
    assert caught.value.code == code


def test_wrong_paths(made):
    cases = {
        "SF-101": [(made.folder / "no", None), (made.dst, made.folder / "no")],
        "SF-104": [(made.dst, made.dst)],
        "SF-103": [(made.dst, made.dst / "sub"), (made.dst / "sub", made.dst)],
        "SF-112": [(made.dst, made.src / "a.tif")],
    }
    for code, pairs in cases.items():
        for dst, src in pairs:
            with pytest.raises(UsageError) as caught:
                verify(dst, src, records=made.records())
            assert caught.value.code == code, (dst, src)


def test_one_file(tmp_path):
    import scopeferry

    (tmp_path / "one.tif").write_bytes(b"content")
    scopeferry.transfer(tmp_path / "one.tif", tmp_path / "other.tif")
    (tmp_path / "unrelated").write_bytes(b"x")
    result = verify(tmp_path / "other.tif")
    assert (result.exit_code, result.verified, result.extras) == (0, 1, 0)
    assert verify(tmp_path / "other.tif", tmp_path / "one.tif").exit_code == 0
    flip(tmp_path / "other.tif")
    assert told(verify(tmp_path / "other.tif")) == {"SF-401": {"other.tif"}}
    assert told(verify(tmp_path / "other.tif", tmp_path / "one.tif")) == {"SF-401": {"other.tif"}}


def test_attributes_of_a_folder_are_recorded_compared_and_healed(tmp_path):
    src, dst = tmp_path / "src", tmp_path / "dst"
    (src / "sub").mkdir(parents=True)
    (src / "sub/a").write_bytes(b"a")
    os.setxattr(src / "sub", "user.stage", b"7")
    assert transfer(src, dst).exit_code == 0
    assert os.getxattr(dst / "sub", "user.stage") == b"7"
    os.removexattr(dst / "sub", "user.stage")
    assert told(verify(dst)) == {"SF-404": {"sub"}}
    assert repair(src, dst).exit_code == 0
    assert os.getxattr(dst / "sub", "user.stage") == b"7"
    assert verify(dst).exit_code == 0


def test_progress_and_totals_count_the_same(made):
    events = []
    result = verify(made.dst, on_event=events.append)
    planned = sum(event.items for event in events if event.kind == "found")
    assert sum(event.items for event in events if event.kind == "done") == planned == result.items
