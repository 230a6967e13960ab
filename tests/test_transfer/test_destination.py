"""Faults of the destination: what is read back is not what was written, no room, foreign hands, a folder goes away."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import scopeferry
from scopeferry.errors import Interrupted
from scopeferry.kernel.publish import part_hash, part_name
from scopeferry.kernel.task import Control
from scopeferry.testing.copies import swapping
from scopeferry.testing.steps import Steps, error, path_of
from scopeferry.testing.trees import flip, parts, random_bytes, random_tree, snapshot

MIB = 1 << 20


def is_part(fd, *_):
    return part_hash(os.path.basename(path_of(fd))) is not None


@pytest.fixture
def three(ferry):
    for number, name in enumerate("abc"):
        (ferry.src / name).write_bytes(random_bytes(number, MIB + 100 * number))
    return ferry


# -- the proof -------------------------------------------------------------------------------------------------------


def damage():
    def longer(fd):
        with open(path_of(fd), "ab") as file:
            file.write(b"tail")

    return {
        "a bit at the start": lambda fd: flip(path_of(fd), 0),
        "a bit at the end": lambda fd: flip(path_of(fd), os.fstat(fd).st_size - 1, bit=128),
        "cut": lambda fd: os.truncate(path_of(fd), 1000),
        "longer": longer,
        "zeros": lambda fd: (os.truncate(path_of(fd), 0), os.truncate(path_of(fd), MIB)),
    }


@pytest.mark.parametrize("spoil", damage().values(), ids=damage())
def test_what_is_read_back_differs_once_it_is_copied_again(ferry, spoil):
    (ferry.src / "a").write_bytes(random_bytes(1, MIB))
    with Steps() as steps:
        steps.before("drop", spoil, when=is_part)
        result = ferry.run(0)
    assert (result.copied, result.verified, result.problems) == (1, 1, [])
    assert ferry.entry("a")["attempts"] == 2
    ferry.same()


@pytest.mark.parametrize("spoil", damage().values(), ids=damage())
def test_what_is_read_back_differs_twice_the_item_fails(three, codes, spoil):
    def of_b(fd, *_):
        return is_part(fd) and os.fstat(fd).st_size == MIB + 100

    with Steps() as steps:
        steps.before("drop", spoil, when=of_b, times=0)
        result = three.run(3)
    assert codes(result) == {"SF-206": ["b"]}
    assert sorted(os.listdir(three.dst)) == ["a", "c"]
    assert (result.copied, result.failed) == (2, 1)
    assert three.entry("b")["action"] == "failed"
    three.run(0)
    three.same()


def test_one_damaged_file_does_not_send_the_others_again(three):
    with Steps() as steps:
        steps.before("drop", lambda fd: flip(path_of(fd), 5), when=is_part)
        made = steps.watch("create_part")
        three.run(0)
    assert len(made) == 4


def test_nothing_has_its_name_before_it_is_proved(three):
    with Steps() as steps:
        seen = []
        steps.before("drop", lambda fd: seen.extend(set(os.listdir(three.dst)) & {"a", "b", "c"}), times=0)
        three.run(0)
    assert seen == []


# -- the flush -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "files"), [("flush_all", "abc"), ("flush", "a")])
def test_a_failed_flush_is_not_repeated_the_batch_is_written_again(ferry, call, files):
    for name in files:
        (ferry.src / name).write_bytes(random_bytes(ord(name), 5000))
    with Steps() as steps:
        flushed = []
        steps.before(call, error(errno.EIO))
        steps.before(call, lambda fd: flushed.append(os.fstat(fd).st_ino), times=0)
        made = steps.watch("create_part")
        written = []
        steps.after("create_part", lambda fd, *_: written.append(os.fstat(fd).st_ino), times=0)
        ferry.run(0)
    assert len(made) == 2 * len(files)
    ferry.same()


def test_a_flush_that_fails_twice_fails_the_batch_and_nothing_has_a_name(three, codes):
    with Steps() as steps:
        steps.before("flush_all", error(errno.EIO), times=0)
        result = three.run(3)
    assert codes(result) == {"SF-211": ["a", "b", "c"]}
    assert os.listdir(three.dst) == []
    three.run(0)
    three.same()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_folder_that_cannot_be_flushed_is_not_called_done(three, codes, code):
    with Steps() as steps:
        steps.before("flush_folder", error(code), when=lambda fd: path_of(fd) == str(three.dst))
        result = three.run(patience_s=5)
    assert result.exit_code in {0, 3, 7}, codes(result)
    assert three.run(0).exit_code == 0
    three.same()


# -- no room ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write_at", "create_part", "flush_all", "rename_new", "set_size"])
def test_full_in_mid_run_and_room_again_goes_on(three, code, call):
    with open(three.src / "sparse", "wb") as file:
        file.truncate(MIB)
    with Steps() as steps:
        steps.before(call, error(code), when=None if call != "write_at" else is_part)
        result = three.run(0, patience_s=30)
    assert result.copied == 4
    three.same()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_until_patience_is_over_is_7_and_what_is_published_stays(three, codes, code):
    with Steps() as steps:
        steps.before("write_at", error(code), when=is_part, nth=3, times=0)
        steps.instead("room", lambda *_: (0, 0), nth=2, times=0)
        result = three.run(7, patience_s=0.5, workers=1)
    assert "SF-313" in codes(result)
    assert set(os.listdir(three.dst)) <= {"a", "b"}
    assert three.manifest().keys() == set(os.listdir(three.dst))
    again = three.run(0)
    assert again.copied + again.skipped == 3
    three.same()


def test_room_that_is_never_enough_ends_with_7(three, codes):
    """Some bytes are free after each try, so a question "is there room?" alone would go on for ever."""
    with Steps() as steps:
        steps.before("write_at", error(errno.ENOSPC), when=is_part, times=0)
        began = time.monotonic()
        result = three.run(7, patience_s=1)
    assert time.monotonic() - began < 30
    assert codes(result).keys() == {"SF-313"}
    assert os.listdir(three.dst) == []


@pytest.mark.parametrize(
    ("room", "code", "numbers"), [((1000, -1), "SF-311", ("1,000", "3,2")), ((10**12, 2), "SF-312", ("2", "3"))]
)
def test_what_will_not_fit_is_not_begun_and_both_numbers_are_said(three, room, code, numbers):
    with Steps() as steps:
        steps.instead("room", lambda *_: room, times=0)
        made = steps.watch("create_part")
        result = three.run(7)
    assert made == []
    (problem,) = result.problems
    assert problem.code == code
    assert all(number in problem.message for number in numbers)
    three.run(0)


def test_the_forecast_leaves_out_holes_and_what_is_there_already(ferry):
    random_tree(ferry.src, files=10, size=100_000, seed=1)
    with open(ferry.src / "sparse", "wb") as file:
        file.truncate(10**13)
        file.write(b"x")
    os.truncate(ferry.src / "sparse", 10**9)
    ferry.run(0)
    (ferry.src / "new").write_bytes(b"new")
    with Steps() as steps:
        steps.instead("room", lambda *_: (10_000, 10), times=0)
        ferry.run(0)


REAL_DISK = """
set -e
mount -t tmpfs -o {options} tmpfs "$D"
cd "$W"
run() {{ "{python}" -m scopeferry_run "$S" "$D/copy" "$@"; }}
{script}
"""

RUN = """
import json, sys
import scopeferry
from scopeferry.config import TransferSettings
result = scopeferry.transfer(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]) if len(sys.argv) > 3 else {})
print(json.dumps(result.as_dict()), flush=True)
sys.exit(result.exit_code)
"""


@pytest.fixture
def on_tmpfs(tmp_path):
    """Run a shell script in a mount namespace of its own, a tmpfs with these options on $D; its standard output."""

    def run(options: str, script: str) -> str:
        for name in ("disk", "work"):
            (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / "work/scopeferry_run.py").write_text(RUN)
        text = REAL_DISK.format(options=options, python=sys.executable, script=script)
        env = {**os.environ, "D": str(tmp_path / "disk"), "W": str(tmp_path / "work"), "S": str(tmp_path / "src")}
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", text], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("needs unshare -rm: a Linux that allows user namespaces")
    return run


def test_a_real_full_disk_then_more_room_then_the_same_command(ferry, on_tmpfs):
    random_tree(ferry.src, files=40, folders=3, size=600_000, seed=7)
    out = on_tmpfs(
        "size=16m",
        """
        ( while [ "$(find "$D/copy" -type f 2>/dev/null | wc -l)" -lt 9 ]; do sleep 0.01; done
          head -c $(( $(df --output=avail -k "$D" | tail -n 1) - 300 ))k /dev/zero > "$D/foreign" || true ) &
        run '{"patience_s": 0.3, "limit": 5000000, "workers": 1}' && exit 9 || test $? = 7
        wait
        test -z "$(find "$D/copy" -name '.sf-*')"
        for f in $(cd "$D/copy" && find . -type f); do cmp "$S/$f" "$D/copy/$f"; done
        test "$(wc -l < "$D/copy.scopeferry/manifest.xxh128")" = "$(find "$D/copy" -type f | wc -l)"
        ( cd "$D/copy" && xxhsum -c --quiet ../copy.scopeferry/manifest.xxh128 )
        mount -i -t tmpfs -o remount,size=64m tmpfs "$D"
        run
        rsync -aHAXn --checksum --itemize-changes "$S/" "$D/copy/"
        """,
    )
    assert '"SF-313"' in out
    assert out.strip().endswith("}"), "rsync has nothing to say"


def test_a_disk_so_full_that_the_record_has_no_room_either(ferry, on_tmpfs):
    random_tree(ferry.src, files=40, folders=3, size=600_000, seed=7)
    out = on_tmpfs(
        "size=16m",
        """
        ( while [ "$(find "$D/copy" -type f 2>/dev/null | wc -l)" -lt 9 ]; do sleep 0.01; done
          timeout 3 sh -c 'while :; do head -c 15m /dev/zero >> "$D/foreign"; done' 2>/dev/null ) &
        run '{"patience_s": 0.3, "limit": 5000000, "workers": 1}' && exit 9 || test $? = 7
        wait
        for f in $(cd "$D/copy" && find . -type f); do cmp "$S/$f" "$D/copy/$f"; done
        rm "$D/foreign"
        run
        rsync -aHAXn --checksum --itemize-changes "$S/" "$D/copy/"
        ( cd "$D/copy" && xxhsum -c --quiet ../copy.scopeferry/manifest.xxh128 )
        """,
    )
    assert out.strip().endswith("}"), "rsync has nothing to say"


def test_a_real_forecast_of_bytes(ferry, on_tmpfs):
    (ferry.src / "big").write_bytes(random_bytes(1, 3 * MIB))
    out = on_tmpfs("size=2m", 'run && exit 9 || test $? = 7\n test -z "$(ls $D/copy)"')
    assert '"SF-311"' in out


def test_a_real_forecast_of_inodes(ferry, on_tmpfs):
    random_tree(ferry.src, files=100, size=10)
    out = on_tmpfs("size=16m,nr_inodes=50", 'run && exit 9 || test $? = 7\n test -z "$(ls $D/copy)"')
    assert '"SF-312"' in out


def test_a_real_lack_of_inodes_in_mid_run(ferry, on_tmpfs):
    random_tree(ferry.src, files=100, size=10)
    out = on_tmpfs(
        "size=16m,nr_inodes=150",
        """
        ( while ! [ -d "$D/copy" ]; do :; done; i=0; while touch "$D/foreign$i" 2>/dev/null; do i=$((i+1)); done ) &
        run '{"patience_s": 0.3, "limit": 2000}' && exit 9 || test $? = 7
        wait
        test -z "$(find "$D/copy" -name '.sf-*')"
        rm "$D"/foreign*
        run
        rsync -aHAXn --checksum --itemize-changes "$S/" "$D/copy/"
        """,
    )
    assert out.strip().endswith("}")


def test_a_read_only_file_system_is_1_before_the_first_byte(ferry, on_tmpfs):
    (ferry.src / "a").write_bytes(b"a")
    out = on_tmpfs("size=2m", 'mkdir "$D/copy"; mount -i -o remount,ro "$D"; run && exit 9 || test $? = 1')
    assert '"SF-301"' in out


# -- foreign hands ---------------------------------------------------------------------------------------------------


def test_a_foreign_file_that_appears_right_before_the_rename_is_not_overwritten(three, codes):
    with Steps() as steps:
        steps.before(
            "rename_new", lambda *_: (three.dst / "b").write_bytes(b"theirs"), when=lambda _f, _old, new: new == "b"
        )
        result = three.run(5)
    assert codes(result) == {"SF-501": ["b"]}
    assert (three.dst / "b").read_bytes() == b"theirs"
    assert result.copied == 2


@pytest.mark.parametrize("kind", ["folder", "link", "FIFO"])
def test_a_foreign_thing_that_appears_right_before_the_rename_stays(three, codes, kind):
    plant = {
        "folder": lambda *_: (three.dst / "b").mkdir(),
        "link": lambda *_: (three.dst / "b").symlink_to("/etc/passwd"),
        "FIFO": lambda *_: os.mkfifo(three.dst / "b"),
    }[kind]
    with Steps() as steps:
        steps.before("rename_new", plant, when=lambda _f, _old, new: new == "b")
        result = three.run(5)
    assert set(codes(result)) <= {"SF-501", "SF-502"}
    assert not (three.dst / "b").is_file() or kind == "link"
    assert not Path("/etc/passwd").read_bytes().startswith(random_bytes(1, 10))


@pytest.mark.parametrize("how", ["rename", "in place", "deleted"])
def test_ours_is_changed_by_somebody_right_before_it_is_replaced(three, codes, how):
    three.run(0)
    (three.src / "b").write_bytes(random_bytes(50, 2 * MIB))

    def change(*_):
        if how == "rename":
            (three.dst / "x").write_bytes(b"theirs")
            os.replace(three.dst / "x", three.dst / "b")
        elif how == "in place":
            (three.dst / "b").write_bytes(b"theirs")
        else:
            (three.dst / "b").unlink()

    with Steps() as steps:
        steps.before("exchange", change)
        result = three.run_unchecked(5 if how != "deleted" else 3)
    if how == "deleted":
        three.run(0)
        three.same()
    else:
        assert (three.dst / "b").read_bytes() == b"theirs"
        assert codes(result)["SF-501"] == ["b"]


@pytest.mark.parametrize("exists", [False, True])
def test_where_the_system_cannot_rename_with_an_expectation(three, codes, exists):
    """A link and an unlink instead; FAT knows neither."""
    if exists:
        three.dst.mkdir()
        (three.dst / "b").write_bytes(b"theirs")
    with Steps() as steps:
        steps.before("_rename_with", error(errno.EINVAL), times=0)
        result = three.run(5 if exists else 0)
        (three.src / "a").write_bytes(random_bytes(50, 2 * MIB))
        assert three.run(5 if exists else 0).replaced == 1
    assert result.copied == (2 if exists else 3)
    if not exists:
        three.same()


def test_a_link_of_a_group_is_not_put_over_what_somebody_wrote(ferry, codes):
    (ferry.src / "a").write_bytes(b"one")
    os.link(ferry.src / "a", ferry.src / "b")
    ferry.run(0)
    (ferry.src / "a").write_bytes(b"another version")
    with Steps() as steps:

        def change(*_):
            (ferry.dst / "x").write_bytes(b"theirs, quite different")
            os.replace(ferry.dst / "x", ferry.dst / "b")

        steps.before("exchange", change)
        result = ferry.run_unchecked(5)
    assert (ferry.dst / "b").read_bytes() == b"theirs, quite different"
    assert codes(result)["SF-501"] == ["b"]


# -- links where folders were ----------------------------------------------------------------------------------------


@pytest.fixture
def canary(tmp_path):
    """A folder outside that must never change."""
    folder = tmp_path / "canary"
    folder.mkdir()
    (folder / "f0").write_bytes(b"canary")
    before = snapshot(folder)
    yield folder
    assert snapshot(folder) == before


@pytest.mark.parametrize("call", ["open_source", "create_part", "flush_all", "drop", "rename_new", "flush_folder"])
def test_a_folder_replaced_by_a_link_in_mid_run_is_not_followed(ferry, canary, codes, call):
    for name in ("sub1", "sub2"):
        (ferry.src / name).mkdir()
        for number in range(3):
            (ferry.src / name / f"f{number}").write_bytes(random_bytes(number, 5000))

    def swap(*_):
        if (ferry.dst / "sub2").exists() and not (ferry.dst / "sub2").is_symlink():
            os.rename(ferry.dst / "sub2", ferry.dst / "sub2.moved")
        if not (ferry.dst / "sub2").is_symlink():
            (ferry.dst / "sub2").symlink_to(canary)

    with Steps() as steps:
        steps.before(call, swap)
        result = ferry.run_unchecked(5, workers=1)
    assert set(codes(result)) <= {"SF-504", "SF-501", "SF-502", "SF-211", "SF-212"}
    assert {path.name for path in (ferry.dst / "sub1").iterdir()} == {"f0", "f1", "f2"}


@pytest.mark.parametrize("times", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_thread_that_swaps_a_folder_with_a_link_never_leads_outside(ferry, canary, times):
    """The page's number of swaps, all of them while runs go on: new copies, and copies of what has changed."""
    (ferry.src / "sub").mkdir()
    total = rounds = 0
    while total < times:
        for number in range(20):
            (ferry.src / "sub" / f"f{number}").write_bytes(random_bytes(rounds + number, 2000))
        if rounds % 5 == 0:
            shutil.rmtree(ferry.dst, ignore_errors=True)
            shutil.rmtree(ferry.records, ignore_errors=True)
            (ferry.dst / "sub").mkdir(parents=True)
        with swapping(ferry.dst / "sub", canary, 1) as done:
            before = len(done)
            result = ferry.run_any()
            total += len(done) - before
        rounds += 1
        assert result.exit_code in {0, 1, 3, 5, 6}, result.problems
        assert (ferry.dst / "sub").is_dir()


def test_a_part_is_for_nobody_else(ferry):
    (ferry.src / "a").write_bytes(b"a")
    (ferry.src / "a").chmod(0o666)
    modes = []
    with Steps() as steps:
        steps.after("create_part", lambda fd, *_: modes.append(stat.S_IMODE(os.fstat(fd).st_mode)))
        ferry.run(0)
    assert modes == [0o600]


def test_a_part_planted_as_a_link_is_not_written_through(ferry, tmp_path, codes):
    (ferry.src / "a").write_bytes(random_bytes(1, 17 * MIB))
    ferry.dst.mkdir()
    (tmp_path / "victim").write_bytes(b"victim")
    (ferry.dst / part_name(b"a", "00000000")).symlink_to(tmp_path / "victim")
    ferry.run(0)
    assert (tmp_path / "victim").read_bytes() == b"victim"
    ferry.same()


@pytest.mark.parametrize("size", [100, 17 * MIB])
def test_a_folder_with_the_name_of_a_part_does_not_stop_the_run(ferry, size):
    (ferry.src / "a").write_bytes(random_bytes(1, size))
    (ferry.dst / part_name(b"a", "00000000") / "inside").mkdir(parents=True)
    result = ferry.run_any()
    assert result.exit_code == 0
    assert (ferry.dst / "a").read_bytes() == (ferry.src / "a").read_bytes()


def test_a_part_of_somebody_with_two_names_is_not_written_into(ferry, tmp_path):
    """A hard link to a file outside, planted as a part that the next run would continue."""
    (ferry.src / "a").write_bytes(random_bytes(1, 17 * MIB))
    ferry.dst.mkdir()
    (tmp_path / "victim").write_bytes(b"victim")
    os.link(tmp_path / "victim", ferry.dst / part_name(b"a", "00000000"))
    ferry.run(0)
    assert (tmp_path / "victim").read_bytes() == b"victim"
    ferry.same()


# -- inside a large file ---------------------------------------------------------------------------------------------


DATA = random_bytes(1, 20 * MIB)


@pytest.mark.parametrize(
    ("left", "same"),
    {
        "empty": (b"", 0),
        "a true part": (DATA[: 9 * MIB], 9 * MIB),
        "other content": (random_bytes(2, 9 * MIB), 0),
        "whole": (DATA, 20 * MIB),
        "whole and a tail": (DATA + b"tail", 20 * MIB),
        "a true part and zeros": (DATA[: 9 * MIB] + bytes(MIB), 9 * MIB),
        "last byte differs and a tail": (DATA[:-1] + b"x" + b"tail", 19 * MIB),
    }.values(),
    ids=["empty", "true", "other", "whole", "tail", "zeros", "last byte and tail"],
)
def test_a_part_that_a_killed_run_left_is_continued_and_never_believed(ferry, left, same):
    (ferry.src / "a").write_bytes(DATA)
    ferry.dst.mkdir()
    (ferry.dst / part_name(b"a", "00000000")).write_bytes(left)
    with Steps() as steps:
        wrote = steps.watch("write_at")
        ferry.run(0)
    assert (ferry.dst / "a").read_bytes() == DATA
    assert sum(len(block) for _, _, block, _ in wrote if len(block) > 100_000) == len(DATA) - same


def test_an_interrupted_large_file_goes_on_and_a_small_one_leaves_nothing(ferry):
    data = random_bytes(1, 24 * MIB)
    (ferry.src / "a").write_bytes(data)
    (ferry.src / "b").write_bytes(random_bytes(2, 3 * MIB))
    control = Control()
    with Steps() as steps:
        steps.after("write_at", lambda *_: control.stop(Interrupted("stop")), when=is_part, nth=10)
        assert scopeferry.transfer(ferry.src, ferry.dst, control=control, workers=1).exit_code == 130
    (left,) = parts(ferry.dst)
    assert (ferry.dst / os.fsdecode(left)).stat().st_size == 10 * MIB
    assert ferry.lines()[-1]["state"] == "interrupted" if list(ferry.records.glob("0*.jsonl")) else True
    with Steps() as steps:
        wrote = []
        steps.before("write_at", lambda fd, block, at: wrote.append(len(block)), when=is_part, times=0)
        ferry.run(0)
    assert sum(wrote) == 14 * MIB + 3 * MIB
    ferry.same()


def test_an_interrupted_large_file_whose_source_is_gone_leaves_no_part(ferry):
    (ferry.src / "a").write_bytes(random_bytes(1, 24 * MIB))
    control = Control()
    with Steps() as steps:
        steps.after("write_at", lambda *_: control.stop(Interrupted("stop")), when=is_part, nth=10)
        scopeferry.transfer(ferry.src, ferry.dst, control=control)
    (ferry.src / "a").unlink()
    ferry.run(3)
    assert ferry.run(0).extras == 0


def test_an_interrupted_large_file_that_changed_meanwhile_is_one_version(ferry):
    (ferry.src / "a").write_bytes(random_bytes(1, 24 * MIB))
    control = Control()
    with Steps() as steps:
        steps.after("write_at", lambda *_: control.stop(Interrupted("stop")), when=is_part, nth=10)
        scopeferry.transfer(ferry.src, ferry.dst, control=control)
    with open(ferry.src / "a", "r+b") as file:
        file.seek(3 * MIB)
        file.write(b"edited")
        file.truncate(18 * MIB)
    ferry.run(0)
    ferry.same()


# -- a side goes away ------------------------------------------------------------------------------------------------


def gone_then(ferry, what, *, at=3):
    """A run of 200 files by one worker, in which something happens before the `at`th temporary file is made."""
    random_tree(ferry.src, files=200, folders=0, size=2000, seed=1)
    with Steps() as steps:
        steps.before("create_part", what, nth=at)
        return ferry.run_any(patience_s=0.3, workers=1)


@pytest.mark.parametrize("at", [1, 70])
def test_a_destination_that_is_moved_away_is_75(ferry, tmp_path, codes, at):
    result = gone_then(ferry, lambda *_: os.rename(ferry.dst, tmp_path / "away"), at=at)
    assert result.exit_code in {75, 1}, codes(result)
    assert set(codes(result)) & {"SF-323", "SF-303"}
    assert not ferry.dst.exists()


@pytest.mark.parametrize("at", [1, 70])
def test_a_destination_replaced_by_another_folder_is_never_written_into(ferry, tmp_path, codes, at):
    def replace(*_):
        os.rename(ferry.dst, tmp_path / "away")
        ferry.dst.mkdir()

    result = gone_then(ferry, replace, at=at)
    assert result.exit_code in {75, 1}
    assert set(codes(result)) & {"SF-323", "SF-303"}
    assert os.listdir(ferry.dst) == []


def test_a_destination_that_comes_back_is_gone_on_with(ferry, tmp_path):
    random_tree(ferry.src, files=200, folders=0, size=2000, seed=1)

    def away(*_):
        os.rename(ferry.dst, tmp_path / "away")
        threading.Timer(0.5, os.rename, (tmp_path / "away", ferry.dst)).start()

    with Steps() as steps:
        steps.before("create_part", away, nth=70)
        assert ferry.run(0, patience_s=20, workers=1).copied == 200
    ferry.same()


@pytest.mark.parametrize("at", [1, 70])
def test_a_source_that_is_moved_away_is_75(ferry, tmp_path, codes, at):
    result = gone_then(ferry, lambda *_: os.rename(ferry.src, tmp_path / "away"), at=at)
    assert result.exit_code == 75, codes(result)
    assert "SF-322" in codes(result)
    os.rename(tmp_path / "away", ferry.src)
    ferry.run(0)
    ferry.same()


def test_a_source_replaced_by_an_empty_folder_is_not_called_finished(ferry, tmp_path, codes):
    """An unmounted source leaves its bare mount point: an empty folder, where everything seems to have been deleted."""

    def unmount(*_):
        os.rename(ferry.src, tmp_path / "away")
        ferry.src.mkdir()

    random_tree(ferry.src, files=5, size=2000)
    with Steps() as steps:
        steps.before("rename_new", unmount, nth=5)
        result = ferry.run_any(patience_s=0.3)
    assert result.exit_code == 75, codes(result)
    assert "SF-322" in codes(result)


def test_a_source_that_comes_back_is_gone_on_with(ferry, tmp_path):
    random_tree(ferry.src, files=200, folders=0, size=2000, seed=1)

    def away(*_):
        os.rename(ferry.src, tmp_path / "away")
        threading.Timer(0.5, os.rename, (tmp_path / "away", ferry.src)).start()

    with Steps() as steps:
        steps.before("open_source", away, nth=70)
        assert ferry.run(0, patience_s=20, workers=1).copied == 200
    ferry.same()


def test_a_destination_that_was_a_mount_is_not_begun_anew_on_the_bare_mount_point(ferry, on_tmpfs):
    (ferry.src / "a").write_bytes(b"a")
    out = on_tmpfs(
        "size=2m",
        """
        "{python}" -m scopeferry_run "$S" "$D"
        umount "$D"
        "{python}" -m scopeferry_run "$S" "$D" '{"patience_s": 0.1}' && exit 9 || test $? = 75
        test -z "$(ls -A "$D")"
        """.replace("{python}", sys.executable),
    )
    assert '"SF-323"' in out
