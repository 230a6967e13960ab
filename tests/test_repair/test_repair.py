"""`repair` sends exactly what is wrong, only from a source that is still what was recorded, and sends nothing else."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from scopeferry import repair, transfer, verify
from scopeferry.copying import record
from scopeferry.copying.place import Lock
from scopeferry.errors import Interrupted, UsageError
from scopeferry.jobs.repair import RepairJob
from scopeferry.jobs.verify import VerifySettings
from scopeferry.kernel.task import Control
from scopeferry.reports.progress import Meter
from scopeferry.testing.copies import NAMES, state_of, swapping, told
from scopeferry.testing.steps import Steps, error, path_of
from scopeferry.testing.trees import differences, flip, parts, random_bytes, random_tree, rewrite


def set_aside(made) -> dict[str, bytes]:
    root = made.records() / "set_aside"
    return {
        str(path.relative_to(root)).partition("/")[2]: path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def test_nothing_to_repair(rich):
    before, records = state_of(rich.dst), state_of(rich.records())
    result = repair(rich.src, rich.dst)
    assert (result.exit_code, result.repaired, result.problems, result.bytes) == (0, 0, [], 0)
    assert "nothing to repair" in result.details["verdict"]
    assert state_of(rich.dst) == before
    after = state_of(rich.records())
    assert {path for path in after if after[path][:2] != records.get(path, (None, None))[:2]} <= {b"lock"}


def test_a_flipped_bit_is_healed_and_what_was_found_set_aside(made):
    flip(made.dst / "sub/c.tif", 500)
    damaged = (made.dst / "sub/c.tif").read_bytes()
    with Steps() as steps:
        sent = steps.watch("create_part")
        result = repair(made.src, made.dst)
    assert (result.exit_code, result.repaired, result.bytes, len(sent)) == (0, 1, NAMES["sub/c.tif"], 1)
    assert told(result) == {"SF-902": {"sub/c.tif"}}
    assert set_aside(made) == {"sub/c.tif": damaged}
    assert differences(made.src, made.dst) == []
    assert verify(made.dst).exit_code == 0


def test_everything_that_can_be_wrong(rich):
    dst = rich.dst
    flip(dst / "sub/c.tif")
    (dst / "sub/deep/d.tif").unlink()
    os.truncate(dst / "sub/deep/e.tif", 5)
    (dst / "a.tif").chmod(0o600)
    os.setxattr(dst / "a.tif", "user.note", b"other")
    os.utime(dst / "b.tif", (5, 5))
    (dst / "link").unlink()
    (dst / "link").symlink_to("/etc/passwd")
    (dst / "empty").rmdir()
    (dst / "sub").chmod(0o700)
    (dst / "extra").write_bytes(b"mine")
    result = repair(rich.src, dst)
    assert result.exit_code == 0, result.problems
    assert result.repaired == 5  # two names of one file, one missing, one cut, one link
    assert differences(rich.src, dst) == []
    assert os.stat(dst / "sub/c.tif").st_ino == os.stat(dst / "sub/hard.tif").st_ino
    assert (dst / "extra").read_bytes() == b"mine"
    assert parts(dst) == []
    assert verify(dst).exit_code == 0
    rich.forget_journals()
    assert verify(dst).exit_code == 0


def test_metadata_is_set_as_recorded_whatever_the_source_says_now(rich):
    before = os.stat(rich.dst / "a.tif")
    flip(rich.dst / "a.tif")
    (rich.dst / "a.tif").chmod(0o600)
    os.utime(rich.src / "a.tif", (5, 5))
    (rich.src / "a.tif").chmod(0o777)
    os.setxattr(rich.src / "a.tif", "user.note", b"newer")
    assert repair(rich.src, rich.dst).exit_code == 0
    after = os.stat(rich.dst / "a.tif")
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert os.getxattr(rich.dst / "a.tif", "user.note") == b"first"
    assert verify(rich.dst).exit_code == 0


def test_only_metadata_sends_nothing(rich):
    (rich.dst / "a.tif").chmod(0o600)
    with Steps() as steps:
        sent = steps.watch("create_part")
        result = repair(rich.src, rich.dst)
    assert (result.exit_code, result.repaired, result.details["metadata_set"], sent) == (0, 0, 1, [])
    assert verify(rich.dst).exit_code == 0


def test_metadata_needs_no_source(rich):
    (rich.dst / "a.tif").chmod(0o600)
    (rich.src / "a.tif").unlink()
    assert repair(rich.src, rich.dst).exit_code == 0
    assert verify(rich.dst).exit_code == 0


@pytest.mark.parametrize("change", ["edited", "longer", "shorter"])
def test_a_source_that_differs_from_the_record_too_is_refused(made, change):
    flip(made.dst / "a.tif")
    flip(made.dst / "sub/c.tif")
    content = {"edited": random_bytes(9, 5000), "longer": random_bytes(9, 6000), "shorter": b"x"}[change]
    rewrite(made.src / "a.tif", content, keep_time=True)
    damaged = (made.dst / "a.tif").read_bytes()
    result = repair(made.src, made.dst)
    assert (result.exit_code, result.repaired) == (5, 1)
    assert told(result) == {"SF-521": {"a.tif"}, "SF-902": {"sub/c.tif"}}
    message = next(problem.message for problem in result.problems if problem.code == "SF-521")
    assert message.count("xxh128:") == 2
    assert (made.dst / "a.tif").read_bytes() == damaged
    assert parts(made.dst) == []
    assert set(set_aside(made)) == {"sub/c.tif"}
    assert made.lines()[-1]["state"] == "partial"


def test_all_that_is_set_aside_is_said(rich):
    flip(rich.dst / "sub/c.tif")
    (rich.dst / "link").unlink()
    (rich.dst / "link").symlink_to("elsewhere")
    (rich.dst / "sub/hard.tif").unlink()
    (rich.dst / "sub/hard.tif").write_bytes(b"somebody's")
    assert repair(rich.src, rich.dst).exit_code == 0
    said = {line["path"]: line for line in rich.lines() if line.get("action") == "set_aside"}
    assert {path: line["kind"] for path, line in said.items()} == {
        "link": "link", "sub/c.tif": "file", "sub/hard.tif": "hardlink",
    }  # fmt: skip
    assert os.readlink(rich.records() / said["link"]["set_aside"]) == "elsewhere"
    assert (rich.records() / said["sub/hard.tif"]["set_aside"]).read_bytes() == b"somebody's"
    rich.forget_journals()
    assert verify(rich.dst).exit_code == 0


def test_a_link_that_differs_at_the_source_too(rich):
    for side, target in ((rich.src, "one"), (rich.dst, "other")):
        (side / "link").unlink()
        (side / "link").symlink_to(target)
    result = repair(rich.src, rich.dst)
    assert told(result)["SF-521"] == {"link"}
    assert os.readlink(rich.dst / "link") == "other"


def test_a_source_that_is_gone_or_unreadable_is_3(made):
    for name in ("a.tif", "sub/c.tif"):
        flip(made.dst / name)
    (made.src / "a.tif").unlink()
    result = repair(made.src, made.dst)
    assert (result.exit_code, told(result)) == (3, {"SF-214": {"a.tif"}, "SF-902": {"sub/c.tif"}})
    assert result.failed == 1


def test_a_link_or_folder_in_the_way_is_refused_and_left(made):
    outside = made.folder / "outside"
    outside.write_bytes(b"canary")
    (made.dst / "a.tif").unlink()
    (made.dst / "a.tif").symlink_to(outside)
    (made.dst / "sub").rename(made.folder / "moved")
    (made.dst / "sub").symlink_to(made.folder / "moved")
    flip(made.folder / "moved/c.tif")
    before = state_of(made.folder / "moved")
    result = repair(made.src, made.dst)
    assert result.exit_code == 5
    assert {"SF-502", "SF-504"} <= set(told(result))
    assert outside.read_bytes() == b"canary"
    assert state_of(made.folder / "moved") == before


def test_a_read_only_folder_is_opened_up_and_set_right(made):
    (made.src / "sub").chmod(0o555)
    transfer(made.src, made.dst)
    flip(made.dst / "sub/c.tif")
    assert repair(made.src, made.dst).exit_code == 0
    assert (made.dst / "sub").stat().st_mode & 0o777 == 0o555
    assert differences(made.src, made.dst) == []


def test_a_new_generation_is_written_and_fits(made):
    flip(made.dst / "a.tif")
    manifest = (made.records() / "manifest.xxh128").read_bytes()
    result = repair(made.src, made.dst)
    header, *entries, end = made.lines()
    assert (header["generation"], header["job"]) == (2, "repair")
    assert [entry["action"] for entry in entries] == ["set_aside", "repaired"]
    assert (made.records() / entries[0]["set_aside"]).stat().st_size == NAMES["a.tif"]
    assert (end["state"], end["counts"]["repaired"], end["finish"]["state"]) == ("complete", 1, "finished")
    assert result.record.endswith("0002.jsonl")
    assert record.check_chain(str(made.records())) == []
    assert (made.records() / "manifest.xxh128").read_bytes() == manifest


def test_a_rerun_of_transfer_has_nothing_to_do_afterwards(rich):
    flip(rich.dst / "sub/c.tif")
    (rich.dst / "sub/deep/d.tif").unlink()
    assert repair(rich.src, rich.dst).exit_code == 0
    with Steps() as steps:
        opened = steps.watch("open_source")
        result = transfer(rich.src, rich.dst)
    assert (result.exit_code, result.copied, result.checked, opened) == (0, 0, 0, [])


def test_a_manifest_that_lost_a_line_is_written_again_when_something_is_healed(made):
    path = made.records() / "manifest.xxh128"
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[1:]))
    flip(made.dst / "a.tif")
    result = repair(made.src, made.dst)
    assert (result.exit_code, result.repaired) == (4, 1)  # the broken chain is still said
    assert path.read_bytes() == whole
    assert verify(made.dst).exit_code == 0


def test_without_a_record(made):
    shutil.rmtree(made.records())
    with pytest.raises(UsageError) as caught:
        repair(made.src, made.dst)
    assert caught.value.exit_code == 2
    assert not made.records().exists()


def test_locked(made):
    lock = Lock(str(made.records() / "lock"), "other")
    lock.acquire()
    try:
        flip(made.dst / "a.tif")
        before = state_of(made.dst)
        result = repair(made.src, made.dst)
        assert (result.exit_code, set(told(result))) == (75, {"SF-321"})
        assert state_of(made.dst) == before
        assert verify(made.dst).exit_code == 75
    finally:
        lock.release()


def test_interrupted_in_the_middle_the_next_goes_on(made):
    for name in ("a.tif", "sub/c.tif", "sub/deep/d.tif"):
        flip(made.dst / name)
    control = Control()
    with Steps() as steps:
        steps.after("create_part", lambda *_: control.stop(Interrupted("stopped")), nth=2)
        result = repair(made.src, made.dst, control=control, workers=1)
    assert result.exit_code == 130
    assert parts(made.dst) == []
    assert repair(made.src, made.dst).exit_code == 0
    assert verify(made.dst).exit_code == 0


@pytest.mark.parametrize("call", ["write_at", "flush", "exchange", "create_part"])
def test_a_write_error_leaves_what_was_there(made, call):
    flip(made.dst / "a.tif")
    damaged = (made.dst / "a.tif").read_bytes()

    def into_the_copy(fd, *_) -> bool:
        return path_of(fd).startswith(str(made.dst) + "/") or path_of(fd) == str(made.dst)

    with Steps() as steps:
        steps.before(call, error(errno.EIO), when=into_the_copy, times=0)
        result = repair(made.src, made.dst)
    assert result.exit_code == 3
    assert (made.dst / "a.tif").read_bytes() == damaged
    assert parts(made.dst) == []
    assert repair(made.src, made.dst).exit_code == 0


def test_what_is_read_back_wrong_is_sent_again(made):
    flip(made.dst / "a.tif")

    def damage(_, fd, data, offset) -> None:
        os.pwrite(fd, bytes([data[0] ^ 1]), offset)

    with Steps() as steps:
        steps.after("write_at", damage, when=lambda fd, *_: "/.sf-" in path_of(fd))
        assert repair(made.src, made.dst).exit_code == 0
    entry = next(line for line in made.lines() if line.get("path") == "a.tif" and line["action"] == "repaired")
    assert entry["attempts"] == 2
    assert verify(made.dst).exit_code == 0


def test_the_source_changes_while_it_is_read_for_the_repair(made):
    """What is published is what was recorded, or nothing."""
    flip(made.dst / "sub/c.tif")
    damaged = (made.dst / "sub/c.tif").read_bytes()

    def edit(*_) -> None:
        rewrite(made.src / "sub/c.tif", random_bytes(77, 70_000), keep_time=True)

    with Steps() as steps:
        steps.after("read_into", edit, when=lambda fd, *_: path_of(fd) == str(made.src / "sub/c.tif"))
        result = repair(made.src, made.dst)
    assert (result.exit_code, told(result)) == (5, {"SF-521": {"sub/c.tif"}})
    assert (made.dst / "sub/c.tif").read_bytes() == damaged


def test_many_files_known_by_different_digests(tmp_path):
    src, dst = tmp_path / "src", tmp_path / "dst"
    random_tree(src, files=6, seed=1)
    transfer(src, dst, digests=["sha256"])
    (src / "later").write_bytes(b"later")
    transfer(src, dst, digests=["md5"])
    for path in dst.rglob("*"):
        if path.is_file() and path.stat().st_size:
            flip(path)
    result = repair(src, dst)
    assert result.exit_code == 0, result.problems
    assert differences(src, dst) == []
    assert verify(dst).exit_code == 0


def test_links_and_folders_of_a_copy_with_several_digests_are_healed_once(rich):
    rich.copy(digests=["xxh128", "sha256", "md5"])
    (rich.dst / "link").unlink()
    (rich.dst / "link").symlink_to("elsewhere")
    (rich.dst / "empty").rmdir()
    (rich.dst / "sub/c.tif").unlink()
    events = []
    result = repair(rich.src, rich.dst, on_event=events.append)
    assert (result.exit_code, result.repaired) == (0, 2), result.problems
    healed = [event.path for event in events if event.kind == "done" and event.data["action"] == "repaired"]
    assert sorted(healed) == sorted(set(healed))
    assert len([line for line in rich.lines() if line.get("action") == "set_aside"]) == 1
    assert verify(rich.dst).exit_code == 0


def test_progress_tells_what_is_healed_from_what_was_read(rich):
    flip(rich.dst / "a.tif")
    job = RepairJob(str(rich.src), str(rich.dst), VerifySettings())
    meter = Meter("dst", job.control, reads_only=True)
    lines = []
    for event in job.run():
        if event is not None:
            meter.tell(event)
            lines.append(meter.line(80, ascii_only=True))
    assert any(line.startswith("dst  checked 99 %  6 of 7 items") for line in lines)
    assert lines[-1].startswith("dst  repaired 100 %  1 item  5.00 kB")


def test_one_file(tmp_path):
    (tmp_path / "one.tif").write_bytes(b"content")
    transfer(tmp_path / "one.tif", tmp_path / "other.tif")
    flip(tmp_path / "other.tif")
    result = repair(tmp_path / "one.tif", tmp_path / "other.tif")
    assert (result.exit_code, result.repaired) == (0, 1)
    assert (tmp_path / "other.tif").read_bytes() == b"content"
    assert verify(tmp_path / "other.tif").exit_code == 0


@pytest.mark.parametrize("times", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_folder_that_becomes_a_link_again_and_again(made, times):
    """Whoever swaps folders with links cannot lead us outside."""
    outside = made.folder / "outside"
    shutil.copytree(made.dst / "sub", outside)
    before = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    with swapping(made.dst / "sub", outside, times) as done:
        while len(done) < times:
            for path in (made.dst / "sub/c.tif", made.dst / "sub/deep/d.tif"):
                with_damage(path)
            result = repair(made.src, made.dst)
            assert result.exit_code in {0, 3, 4, 5}, result.problems
    inside = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file() and not path.is_symlink()}
    flipped = {path for path in inside if inside[path] != before.get(path)}
    assert flipped <= {outside / "c.tif", outside / "deep/d.tif"}  # the test's own damage, through its own link
    for path in flipped:
        assert sum(a != b for a, b in zip(inside[path], before[path], strict=True)) == 1
    assert set(inside) == set(before)
    assert parts(outside) == []


def with_damage(path: Path) -> None:
    """Flip a bit if the file is there, and only below a real folder."""
    try:
        folder = os.open(path.parents[0], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fd = os.open(path.name, os.O_RDWR | os.O_NOFOLLOW, dir_fd=folder)
        (old,) = os.pread(fd, 1, 0)
        os.pwrite(fd, bytes([old ^ 1]), 0)
        os.close(fd)
    except (OSError, ValueError):
        pass
    finally:
        os.close(folder)


def test_a_source_that_is_refused_leaves_the_folder_as_it_was(made):
    folder = (made.dst / "sub").stat().st_mtime_ns
    flip(made.dst / "sub/c.tif", 500)
    flip(made.src / "sub/c.tif", 700)
    result = repair(made.src, made.dst)
    assert (result.exit_code, told(result)) == (5, {"SF-521": {"sub/c.tif"}})
    assert (made.dst / "sub").stat().st_mtime_ns == folder
    assert set(told(verify(made.dst))) == {"SF-401"}
