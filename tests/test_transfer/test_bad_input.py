"""Rows of ``transfer.md`` 5 by exit code and problem code; those of another kind are in the other files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scopeferry.errors import CODES, UsageError, exit_code
from scopeferry.testing.steps import Steps, error, path_of
from scopeferry.testing.trees import parts, random_bytes, random_tree, snapshot

COMMAND = str(Path(sys.executable).with_name("scopeferry"))


def refused(ferry, **options):
    """The problem code of wrong usage, after which nothing may have been created."""
    folder = ferry.src.parent
    before = snapshot(folder)
    with pytest.raises(UsageError) as raised:
        ferry.run(**options)
    assert snapshot(folder) == before, "something was created"
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2
    assert raised.value.hint
    return raised.value.code


# -- 2: wrong usage --------------------------------------------------------------------------------------------------


def test_source_absent(ferry):
    assert refused(ferry, src=ferry.src / "not there") == "SF-101"


def test_source_is_a_dangling_link(ferry, tmp_path):
    (tmp_path / "dangling").symlink_to("nowhere")
    assert refused(ferry, src=tmp_path / "dangling") == "SF-101"


def test_parent_of_the_destination_absent(ferry, tmp_path):
    assert refused(ferry, dst=tmp_path / "no/such/dst") == "SF-102"
    ferry.run(0, dst=tmp_path / "no/such/dst", parents=True)
    assert (tmp_path / "no/such/dst").is_dir()


def test_destination_inside_the_source(ferry):
    (ferry.src / "sub").mkdir()
    assert refused(ferry, dst=ferry.src / "sub") == "SF-103"
    assert refused(ferry, dst=ferry.src / "new") == "SF-103"
    assert refused(ferry, dst=ferry.src / "sub/../sub/new") == "SF-103"


def test_source_inside_the_destination(ferry):
    assert refused(ferry, dst=ferry.src.parent) == "SF-103"


def test_source_and_destination_the_same(ferry, tmp_path):
    assert refused(ferry, dst=ferry.src) == "SF-104"
    assert refused(ferry, dst=f"{ferry.src}/") == "SF-104"
    (tmp_path / "link").symlink_to(ferry.src)
    assert refused(ferry, dst=tmp_path / "link") == "SF-104"
    (ferry.src / "a").write_bytes(b"a")
    assert refused(ferry, src=ferry.src / "a", dst=ferry.src / "a") == "SF-104"
    assert refused(ferry, src=ferry.src / "a", dst=ferry.src) == "SF-104"


def test_one_file_onto_a_hard_link_or_a_link_of_itself(ferry, tmp_path):
    (ferry.src / "a").write_bytes(b"a")
    os.link(ferry.src / "a", tmp_path / "hard")
    (tmp_path / "soft").symlink_to(ferry.src / "a")
    assert refused(ferry, src=ferry.src / "a", dst=tmp_path / "hard") == "SF-104"
    assert refused(ferry, src=ferry.src / "a", dst=tmp_path / "soft") == "SF-104"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a bind mount")
def test_the_same_folder_under_two_mounts(ferry, tmp_path):
    (ferry.src / "inner").mkdir()
    (tmp_path / "other").mkdir()
    script = f"""
mount --bind "{ferry.src}" "{tmp_path}/other"
"{COMMAND}" transfer "{ferry.src}" "{tmp_path}/other"; echo $?
"{COMMAND}" transfer "{ferry.src}" "{tmp_path}/other/new"; echo $?
"{COMMAND}" transfer "{tmp_path}/other/inner" "{ferry.src}"; echo $?
find "{ferry.src}" | wc -l
"""
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "2", "2", "2"]


def test_source_in_the_record_folder(ferry):
    ferry.run(0)
    assert refused(ferry, src=ferry.records) in {"SF-113", "SF-103"}
    (ferry.records / "below").mkdir()
    assert refused(ferry, src=ferry.records / "below") == "SF-113"


def test_source_or_destination_of_the_wrong_kind(ferry, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert refused(ferry, src=tmp_path / "fifo") == "SF-112"
    assert refused(ferry, src="/dev/null") == "SF-112"
    (tmp_path / "file").write_bytes(b"file")
    assert refused(ferry, dst=tmp_path / "file") == "SF-112"
    assert (tmp_path / "file").read_bytes() == b"file"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"digests": ["sha257"]}, "SF-106"),
        ({"digests": ["xxh128", "crc"]}, "SF-106"),
        ({"verify": "some"}, "SF-105"),
        ({"verify": "sample:0%"}, "SF-105"),
        ({"verify": "sample:101%"}, "SF-105"),
        ({"verify": "sample:x%"}, "SF-105"),
        ({"on_conflict": "overwrite"}, "SF-105"),
        ({"workers": 0}, "SF-105"),
        ({"workers": 65}, "SF-105"),
        ({"limit": -1}, "SF-105"),
        ({"limit": 0}, "SF-105"),
        ({"executor": "dusk"}, "SF-105"),
        ({"names": "base64"}, "SF-105"),
        ({"keep": frozenset({"smell"})}, "SF-105"),
        ({"select": (("exclude", "/absolute"),)}, "SF-105"),
        ({"select": (("exclude", ""),)}, "SF-105"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_nonsense_option_values(ferry, options, code):
    assert refused(ferry, **options) == code


def test_from_the_command_line_it_is_one_line_and_2(ferry):
    done = subprocess.run(
        [COMMAND, "transfer", "/no/such/folder", str(ferry.dst)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "/no/such/folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2


# -- 3: items --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ten(ferry):
    random_tree(ferry.src, files=10, folders=2, size=9000, seed=3)
    (ferry.src / "bad").write_bytes(random_bytes(1, 3_000_000))
    return ferry


def of(path):
    return lambda fd, *_: path_of(fd) == str(path)


def test_a_read_error_is_named_and_the_others_copied(ten, codes):
    with Steps() as steps:
        steps.before("read_into", error(5), when=of(ten.src / "bad"), nth=2, times=0)
        result = ten.run(3)
    assert codes(result) == {"SF-204": ["bad"]}
    assert (result.copied, result.failed) == (10, 1)
    assert ten.entry("bad")["action"] == "failed"
    ten.run(0)
    ten.same()


@pytest.mark.parametrize("code", [5, 13])
def test_a_folder_that_cannot_be_listed_is_named(ten, codes, code):
    (ten.src / "locked").mkdir()
    (ten.src / "locked/x").write_bytes(b"x")
    with Steps() as steps:
        steps.before("scan", error(code), when=of(ten.src / "locked"), times=0)
        result = ten.run(3)
    assert codes(result) == {"SF-205": ["locked"]}
    assert "not listed" in result.problems[0].message
    assert result.copied == 11


def test_a_listing_that_breaks_off_in_the_middle_is_named(ten, codes):
    """``readdir`` itself may fail: half a listing must not pass for a whole one."""
    real = os.scandir

    class Broken:
        def __init__(self, fd):
            self.inner, self.count = real(fd), 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.inner.close()

        def close(self):
            self.inner.close()

        def __iter__(self):
            return self

        def __next__(self):
            self.count += 1
            if self.count > 2:
                raise OSError(5, "Input/output error")
            return next(self.inner)

    with Steps() as steps:
        steps.instead("scan", lambda function, fd: Broken(fd), when=of(ten.src), times=0)
        result = ten.run_any()
    assert result.exit_code in {3, 75, 1}, codes(result)
    ten.run(0)
    ten.same()


def test_an_entry_that_cannot_be_looked_at_is_named(ten, codes):
    class Entry:
        def __init__(self, inner):
            self.inner, self.name = inner, inner.name

        def stat(self, *, follow_symlinks):
            if self.name == "bad":
                raise PermissionError(13, "Permission denied")
            return self.inner.stat(follow_symlinks=follow_symlinks)

        def is_dir(self, *, follow_symlinks):
            return self.inner.is_dir(follow_symlinks=follow_symlinks)

    class Listing:
        def __init__(self, inner):
            self.inner = inner

        def __enter__(self):
            return (Entry(one) for one in self.inner.__enter__())

        def __exit__(self, *_):
            self.inner.close()

        def close(self):
            self.inner.close()

    with Steps() as steps:
        steps.instead("scan", lambda function, fd: Listing(function(fd)), when=of(ten.src), times=0)
        result = ten.run(3)
    assert [path for paths in codes(result).values() for path in paths] == ["bad"]


def test_attributes_that_cannot_be_read_are_an_error_of_that_item(ten, codes):
    with Steps() as steps:
        steps.before("xattrs", error(5), when=of(ten.src / "bad"), times=0)
        result = ten.run(3)
    assert codes(result) == {"SF-204": ["bad"]}


@pytest.mark.parametrize("strict", [False, True])
def test_what_cannot_be_kept_is_counted_and_with_strict_a_failure(ten, codes, strict):
    os.setxattr(ten.src / "bad", "user.lens", b"63x")
    with Steps() as steps:
        steps.before("set_xattr", error(95), times=0)
        result = ten.run(3 if strict else 0, strict=strict)
    assert result.lost == {"xattrs": 1}
    assert codes(result) == {"SF-210" if strict else "SF-904": ["bad"]}
    assert ten.entry("bad")["lost"] == ["xattrs"]


@pytest.mark.parametrize("strict", [False, True])
def test_a_loss_is_said_again_by_a_run_that_has_nothing_to_do(ten, strict):
    os.setxattr(ten.src / "bad", "user.lens", b"63x")
    with Steps() as steps:
        steps.before("set_xattr", error(95), times=0)
        ten.run(3 if strict else 0, strict=strict)
        result = ten.run(None, strict=strict)
    assert result.exit_code == (3 if strict else 0)
    assert result.lost == {"xattrs": 1}


def test_a_name_that_is_too_long_for_the_destination_is_an_item(ten, codes):
    with Steps() as steps:
        steps.before("rename_new", error(36), when=lambda folder, old, new: new == "bad", times=0)
        result = ten.run(3)
    assert codes(result) == {"SF-207": ["bad"]}
    assert parts(ten.dst) == []


def test_a_file_above_the_limit_of_the_file_system_is_an_item(ten, codes):
    with Steps() as steps:
        steps.before("write_at", error(27), when=lambda fd, block, at: len(block) > 100_000, times=0)
        result = ten.run(3)
    assert codes(result) == {"SF-209": ["bad"]}


# -- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_130_and_nothing_temporary_is_left(ferry, number):
    for one in range(30):
        (ferry.src / f"f{one:02}").write_bytes(random_bytes(one, 300_000))
    command = [COMMAND, "transfer", "--json", "--limit", "2MB", "--workers", "2", str(ferry.src), str(ferry.dst)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        deadline = time.monotonic() + 20
        while not ferry.dst.is_dir() or not parts(ferry.dst):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert json.loads(out)["exit_code"] == 130
    assert parts(ferry.dst) == []
    ferry.check_manifest()
    if list(ferry.records.glob("0*.jsonl")):
        assert ferry.lines()[-1]["state"] == "interrupted"
    ferry.run(0)
    ferry.same()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_stream_does_not_stop_the_run(ferry, stream):
    random_tree(ferry.src, files=10, size=1000)
    shell = f'"{COMMAND}" transfer "{ferry.src}" "{ferry.dst}" {">&-" if stream == "stdout" else "2>&-"}'
    done = subprocess.run(["sh", "-c", shell], capture_output=True, check=False)
    assert done.returncode == 0
    ferry.same()


def test_a_reader_that_goes_away_does_not_stop_the_run(ferry):
    random_tree(ferry.src, files=50, size=1000)
    shell = f'"{COMMAND}" transfer --events "{ferry.src}" "{ferry.dst}" | head -n 1'
    subprocess.run(["sh", "-c", shell], capture_output=True, check=True)
    deadline = time.monotonic() + 20
    while not (ferry.records / "receipt.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ferry.same()


# -- times and the rest ----------------------------------------------------------------------------------------------


def test_a_clock_set_back_makes_no_run_wait(ferry, monkeypatch):
    (ferry.src / "a").write_bytes(b"a")
    os.utime(ferry.src / "a", ns=(4_000_000_000 * 10**9,) * 2)
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() - 10**18)
    monkeypatch.setattr(time, "time", lambda: real() / 1e9 - 10**9)
    began = time.monotonic()
    ferry.run(0)
    ferry.run(0)
    assert time.monotonic() - began < 10
    ferry.same()


def test_every_code_is_stable_and_its_exit_code_valid():
    assert all(code in {0, 1, 2, 3, 4, 5, 6, 7, 75, 130} for code, _, _ in CODES.values())
    assert exit_code({"SF-204", "SF-501", "SF-601"}) == 5
    assert exit_code({"SF-130", "SF-313"}) == 130
    assert exit_code({"SF-313", "SF-301"}) == 7
    assert exit_code({"SF-301", "SF-501"}) == 1
    assert exit_code({"SF-323", "SF-204"}) == 75
    assert exit_code({"SF-204", "SF-601"}) == 3
    assert exit_code({"SF-601", "SF-901"}) == 6
