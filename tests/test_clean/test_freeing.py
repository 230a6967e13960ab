"""`clean --yes`: how a source is freed; somebody works on it meanwhile; the program is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest

from scopeferry import clean, repair, transfer, verify
from scopeferry.copying import record
from scopeferry.errors import Interrupted
from scopeferry.kernel.task import Control
from scopeferry.testing.copies import NAMES, make, path_of, state_of, swapping, told
from scopeferry.testing.steps import Steps, error
from scopeferry.testing.steps import path_of as path_of_fd
from scopeferry.testing.trees import flip, random_tree, rewrite, snapshot


def freed(made, name="dst") -> set[bytes]:
    """All paths that the record of this side calls freed."""
    paths = record.generations(str(made.records(name)))
    return {path_of(line) for path in paths for line in record.lines(path) if line.get("action") == "freed"}


def left(made) -> set[str]:
    return {str(path.relative_to(made.src)) for path in made.src.rglob("*") if not path.is_dir() or path.is_symlink()}


# -- what goes, what stays -------------------------------------------------------------------------------------------


def test_files_that_nobody_recorded_stay_and_so_do_their_folders(made):
    (made.src / "sub/deep/notes.txt").write_bytes(b"mine")
    (made.src / "unknown/folder").mkdir(parents=True)
    result = clean(made.src, [made.dst], yes=True)
    assert (result.exit_code, result.details["freed"], result.details["folders_removed"]) == (0, len(NAMES), 1)
    assert left(made) == {"sub/deep/notes.txt"}
    assert (made.src / "unknown/folder").is_dir()
    assert not (made.src / "empty").exists()


def test_folders_that_are_empty_now_go_deepest_first_and_the_root_stays(made):
    result = clean(made.src, [made.dst], yes=True)
    assert result.details["folders_removed"] == 3
    assert list(made.src.iterdir()) == []


def test_names_with_any_bytes(tmp_path):
    src, dst = os.fsencode(tmp_path / "src"), os.fsencode(tmp_path / "dst")
    os.mkdir(src)
    names = [b"new\nline", b"\xff\xfe", b" ", b"-rf", b"*", b"\\", b"x" * 255]
    for name in names:
        with open(src + b"/" + name, "wb") as file:
            file.write(name)
    os.symlink(b"\xff/target", src + b"/link")
    assert transfer(os.fsdecode(src), os.fsdecode(dst)).exit_code == 0
    result = clean(os.fsdecode(src), [os.fsdecode(dst)], yes=True)
    assert (result.exit_code, result.details["freed"]) == (0, len(names) + 1), result.problems
    assert os.listdir(src) == []
    lines = list(record.lines(record.generations(str(tmp_path / "src.scopeferry"))[-1]))
    assert {path_of(line) for line in lines if "action" in line} == {*names, b"link"}


def test_all_names_of_a_file_go_though_each_changes_the_others(tmp_path):
    made = make(tmp_path)
    for number in range(70):  # more than one batch
        (made.src / f"sub/name{number:02}").hardlink_to(made.src / "sub/c.tif")
    made.copy()
    result = clean(made.src, [made.dst], yes=True)
    assert (result.exit_code, result.details["freed"]) == (0, len(NAMES) + 70), result.problems
    assert left(made) == set()
    assert result.details["freed_bytes"] <= sum(NAMES.values())


def test_a_read_only_folder_of_the_source_is_named(made):
    if shutil.which("setpriv") is None or os.geteuid() != 0:
        pytest.skip("needs root and setpriv: apt-get install util-linux")
    (made.src / "sub").chmod(0o555)
    made.copy()
    code = (
        f"import scopeferry; result = scopeferry.clean({str(made.src)!r}, [{str(made.dst)!r}], yes=True);"
        "print(result.exit_code, result.details['freed'])"
    )
    powers = "-dac_override,-dac_read_search"
    command = ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}", sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout.strip() == "1 2", done.stdout + done.stderr
    assert freed(made) == freed(made, "src") == {b"a.tif", b"b.tif"}


def test_into_a_trash_folder(rich):
    content = {path: entry.content for path, entry in snapshot(rich.src).items() if entry.kind != "folder"}
    result = clean(rich.src, [rich.dst], yes=True, trash=rich.folder / "trash")
    assert result.exit_code == 0
    assert left(rich) == set()
    (kept,) = (rich.folder / "trash").iterdir()
    assert {path: entry.content for path, entry in snapshot(kept).items() if entry.kind != "folder"} == content


def test_the_order_of_things(made):
    """Name, then folder flushed, then the records; the copies are never written."""
    before = state_of(made.dst)
    with Steps() as steps:
        seen = steps.watch("unlink", "flush_folder")
        steps.before("flush_folder", lambda *_: freed_must_be(made, 0), times=1)
        assert clean(made.src, [made.dst], yes=True).exit_code == 0
    kinds = [name for name, *_ in seen]
    assert kinds[:3] == ["unlink", "unlink", "flush_folder"]
    assert state_of(made.dst) == before


def freed_must_be(made, count) -> None:
    assert len(freed(made)) == count


# -- somebody works on it meanwhile ----------------------------------------------------------------------------------

EDITS = {
    "edited": lambda path: rewrite(path, b"z" * path.stat().st_size),
    "edited, time back": flip,
    "appended": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "replaced": lambda path: (path.with_name("new").write_bytes(path.read_bytes()), path.with_name("new").rename(path)),
    "gone": lambda path: path.unlink(),
    "a link now": lambda path: (path.unlink(), path.symlink_to("/etc/passwd")),
}


@pytest.mark.parametrize("when", ["before the first", "in the middle"])
@pytest.mark.parametrize("case", EDITS)
def test_an_editor_between_plan_and_unlink(made, case, when):
    """What was changed is never unlinked, and nothing after it is touched."""
    edited = made.src / "sub/c.tif"

    def edit(*_) -> None:
        EDITS[case](edited)
        edits.append(case)

    edits: list[str] = []
    with Steps() as steps:
        nth = 1 if when == "before the first" else 2
        steps.before("unlink", edit, when=lambda fd, _: path_of_fd(fd).startswith(str(made.src)), nth=nth)
        result = clean(made.src, [made.dst], yes=True)
    assert (result.exit_code, edits) == (5, [case])
    assert "SF-513" in told(result)
    assert result.state == "refused"
    if case != "gone":
        assert edited.is_symlink() or edited.exists()
    assert "sub/deep/d.tif" in left(made)
    assert freed(made) == freed(made, "src") == {b"a.tif", b"b.tif"}
    assert made.lines()[-1]["state"] == "partial"
    assert verify(made.dst).exit_code == 0


def test_a_copy_that_is_damaged_between_proof_and_unlink(made):
    with Steps() as steps:
        steps.before("unlink", lambda *_: flip(made.dst / "sub/c.tif"))
        result = clean(made.src, [made.dst], yes=True)
    assert result.exit_code == 5
    assert "SF-512" in told(result)
    assert (made.src / "sub/c.tif").exists()
    assert repair(made.src, made.dst).exit_code == 0
    assert clean(made.src, [made.dst], yes=True).exit_code == 0


def test_a_copy_that_vanishes_between_proof_and_unlink(made):
    with Steps() as steps:
        steps.before("unlink", lambda *_: shutil.rmtree(made.dst / "sub"))
        result = clean(made.src, [made.dst], yes=True)
    assert result.exit_code == 5
    assert left(made) == {"sub/c.tif", "sub/deep/d.tif", "sub/deep/e.tif"}


@pytest.mark.parametrize(("code", "exit_code"), [("SF-130", 130), ("SF-325", 75)])
def test_interrupted(made, code, exit_code):
    control = Control()
    with Steps() as steps:
        steps.after("unlink", lambda *_: control.stop(Interrupted("stopped", code=code)), nth=2)
        result = clean(made.src, [made.dst], yes=True, control=control)
    assert (result.exit_code, result.state) == (exit_code, "interrupted")
    assert made.lines()[-1]["state"] == "interrupted"
    assert len(freed(made)) == 2
    assert clean(made.src, [made.dst], yes=True).exit_code == 0
    assert left(made) == set()
    assert freed(made) == freed(made, "src") == {name.encode() for name in NAMES}


def test_an_unlink_that_fails(made):
    with Steps() as steps:
        steps.before("unlink", error(5), nth=3)
        result = clean(made.src, [made.dst], yes=True)
    assert result.exit_code == 1
    assert len(left(made)) == 3
    assert len(freed(made)) == len(freed(made, "src")) == 2
    assert clean(made.src, [made.dst], yes=True).exit_code == 0


# -- SIGKILL ---------------------------------------------------------------------------------------------------------

PROGRAM = "import sys, scopeferry; print(scopeferry.clean(sys.argv[1], sys.argv[2:], yes=True).exit_code)"


def killed(made, call: str, number: int, copies) -> bool:
    """Run `clean` and kill it at the nth call of this kind in the source or a record folder; was it killed?"""
    watched = [made.src, made.src / "sub", made.src / "sub/deep"] if call == "unlinkat" else []
    log = made.folder / "strace.log"
    places = [word for folder in watched for word in ("-P", str(folder))]
    inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
    command = [
        "strace",
        "-f",
        "-qq",
        "-o",
        str(log),
        *places,
        *inject,
        sys.executable,
        "-c",
        PROGRAM,
        str(made.src),
        *map(str, copies),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode in {0, -signal.SIGKILL, 128 + signal.SIGKILL}, done.stderr
    return done.returncode != 0


def never_ahead(made) -> None:
    """What any record calls freed is gone, and the copies are whole."""
    for name in ("src", "dst", "second"):
        for path in freed(made, name):
            assert not os.path.lexists(os.fsencode(made.src) + b"/" + path)
    assert verify(made.dst).exit_code == 0


def sweep(made, call, numbers) -> int:
    """Kill at each of these calls in turn, each time from the beginning; how often it was killed."""
    kept = made.folder / "kept"
    kept.mkdir()
    for name in ("src", "dst", "dst.scopeferry", "second", "second.scopeferry"):
        subprocess.run(["cp", "-a", made.folder / name, kept / name], check=True)
    times = 0
    for number in numbers:
        for name in ("src", "dst", "dst.scopeferry", "second", "second.scopeferry", "src.scopeferry"):
            shutil.rmtree(made.folder / name, ignore_errors=True)
            if (kept / name).exists():
                subprocess.run(["cp", "-a", kept / name, made.folder / name], check=True)
        made.forget_journals()
        copies = [made.dst, made.folder / "second"]
        if not killed(made, call, number, copies):
            return times
        times += 1
        never_ahead(made)
        result = clean(made.src, copies, yes=True)
        assert result.exit_code == 0, (number, result.problems)
        assert left(made) == set()
        everything = {name.encode() for name in NAMES}
        for name in ("dst", "second", "src"):
            told_freed = freed(made, name)
            assert told_freed == everything, (number, name, told_freed)
        assert record.check_chain(str(made.records())) == []
    return times


@pytest.fixture
def traced(made):
    if shutil.which("strace") is None:
        pytest.skip("needs strace: apt-get install strace")
    made.copy("second")
    return made


@pytest.mark.parametrize("number", [1, 3, 5])
def test_killed_at_an_unlink_the_next_goes_on(traced, number):
    assert sweep(traced, "unlinkat", [number]) == 1


@pytest.mark.slow
def test_killed_at_every_unlink(traced):
    assert sweep(traced, "unlinkat", range(1, 100)) >= len(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("call", ["fsync", "fdatasync", "write"])
def test_killed_at_every_flush_and_write(traced, call):
    assert sweep(traced, call, range(1, 400)) >= 3


# -- somebody swaps folders with links -------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_folder_that_becomes_a_link_again_and_again(tmp_path, times):
    """Names below a folder that is a link at this moment are not the source's: nothing outside is ever unlinked."""
    canary = tmp_path / "outside"
    random_tree(canary, files=5)
    for name in NAMES:
        (canary / name).parent.mkdir(parents=True, exist_ok=True)
        (canary / os.path.basename(name)).write_bytes(b"canary")
    (canary / "deep").mkdir(exist_ok=True)
    for name in ("d.tif", "e.tif"):
        (canary / "deep" / name).write_bytes(b"canary")
    before = state_of(canary)
    done_in_all = rounds = 0
    while done_in_all < times:
        rounds += 1
        made = make(tmp_path / f"round{rounds}")
        with swapping(made.src / "sub", canary, 5) as done:
            for _ in range(3):
                result = clean(made.src, [made.dst], yes=True)
                assert result.exit_code in {0, 1, 5}, result.problems
            while len(done) < 5 and (made.src / "sub").exists():
                pass
        done_in_all += max(1, len(done))
        assert state_of(canary) == before
        assert verify(made.dst).exit_code == 0
        shutil.rmtree(made.folder)
