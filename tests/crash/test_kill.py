"""SIGKILL and errors at every call of the real program: the promise holds, and the second run finishes the work."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from scopeferry.testing.trees import random_bytes

MIB = 1 << 20
KILLED = -signal.SIGKILL
#: call -> how many of them a first run makes at least
CALLS = {
    "renameat2": 6,
    "pwrite64": 20,
    "fdatasync": 2,
    "syncfs": 1,
    "fsync": 4,
    "unlinkat": 0,
    "openat": 8,
    "mkdirat": 3,
    "linkat": 1,
    "symlinkat": 1,
    "utimensat": 8,
    "fchmod": 7,
    "ftruncate": 1,
}
SAMPLE = [
    ("renameat2", 1),
    ("renameat2", 4),
    ("pwrite64", 3),
    ("pwrite64", 14),
    ("syncfs", 1),
    ("fsync", 1),
    ("fsync", 2),
    ("linkat", 1),
]
ERRORS = ["EIO", "ENOSPC", "EDQUOT", "EINTR"]


def start_anew(ship):
    """As before the first run."""
    shutil.rmtree(ship.dst, ignore_errors=True)
    shutil.rmtree(ship.records, ignore_errors=True)
    shutil.rmtree(Path(os.environ["XDG_STATE_HOME"]), ignore_errors=True)


@pytest.mark.parametrize(("call", "nth"), SAMPLE)
def test_killed_at_a_call(ship, call, nth):
    assert ship.inject(call, "signal=KILL", nth) == KILLED
    ship.finish(ship.check_after_a_fault())


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_killed_at_every_call(ship, tmp_path, call):
    reached = 0
    for nth in range(1, 400):
        code = ship.inject(call, "signal=KILL", nth)
        if code is None:
            break
        reached = nth
        ship.finish(ship.check_after_a_fault())
        start_anew(ship)
    assert reached >= CALLS[call]


@pytest.mark.parametrize(("call", "nth"), [("renameat2", 1), ("fsync", 2), ("pwrite64", 9), ("syncfs", 1)])
def test_killed_again_and_again(ship, call, nth):
    """Each time at the same call, so each run gets a little further."""
    for _ in range(4):
        if ship.inject(call, "signal=KILL", nth) is None:
            break
        final = ship.check_after_a_fault()
    ship.finish(final)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    ("call", "nth"), [("renameat2", 2), ("pwrite64", 12), ("syncfs", 1), ("fsync", 1), ("openat", 4)]
)
def test_an_error_at_a_call(ship, call, nth, error):
    code = ship.inject(call, f"error={error}", nth, "--patience", "1s")
    assert code is not None
    assert code in {0, 1, 3, 5, 7, 75}
    if code == 0 and not ship.lost:
        ship.check_whole()
    ship.finish(ship.check_after_a_fault())


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    "call", ["renameat2", "pwrite64", "fdatasync", "syncfs", "fsync", "openat", "unlinkat", "fchmod", "mkdirat"]
)
def test_an_error_at_every_call(ship, call, error):
    for nth in range(1, 200):
        code = ship.inject(call, f"error={error}", nth, "--patience", "1s")
        if code is None:
            break
        assert code in {0, 1, 3, 5, 7, 75}, (nth, code)
        if code == 0 and not ship.lost:
            ship.check_whole()
        ship.finish(ship.check_after_a_fault())
        start_anew(ship)
    assert nth > 1 or call in {"unlinkat", "fdatasync"}


@pytest.mark.slow
@pytest.mark.parametrize("call", ["renameat2", "pwrite64", "fsync", "unlinkat", "linkat"])
def test_killed_at_every_call_of_a_run_that_replaces(ship, call):
    """Our earlier versions stand there: at each moment one of the two stands under the name, whole."""
    nth = 1
    while True:
        start_anew(ship)
        for number, name in enumerate(["a", "b", "one/c", "two/f"]):
            (ship.src / name).write_bytes(random_bytes(50 + number, 4000))
        old = {name: (ship.src / name).read_bytes() for name in ("a", "b", "one/c", "one/also a", "two/f")}
        assert ship.run().returncode == 0
        for number, name in enumerate(["a", "b", "one/c", "two/f"]):
            (ship.src / name).write_bytes(random_bytes(90 + number, 5000))
        code = ship.inject(call, "signal=KILL", nth)
        for name, data in old.items():
            assert (ship.dst / name).read_bytes() in {data, (ship.src / name).read_bytes()}
        assert ship.run().returncode == 0
        ship.check_whole()
        if code is None:
            break
        nth += 1
    assert nth > 1


@pytest.mark.parametrize("nth", range(1, 7))
def test_a_group_that_is_replaced_stays_a_group(ship, nth):
    """Killed when some of its names are replaced: equal size, so nothing but reading tells which."""
    group = ["a", "one/also a", "z"]
    os.link(ship.src / "a", ship.src / "z")
    assert ship.run().returncode == 0
    (ship.src / "a").write_bytes(random_bytes(7, (ship.src / "a").stat().st_size))
    code = ship.inject("renameat2", "signal=KILL", nth)
    result = json.loads(ship.run().stdout)
    assert result["exit_code"] == 0
    ship.check_whole()
    assert len({(ship.dst / name).stat().st_ino for name in group}) == 1
    assert result["bytes"] <= (ship.src / "a").stat().st_size
    if code is None:
        assert nth > 3
    files = [path for path in ship.src.rglob("*") if path.is_symlink() or path.is_file()]
    assert sum(result[key] for key in ("copied", "skipped", "adopted", "checked", "replaced")) == len(files)


def test_a_large_file_goes_on_where_it_was_killed(ship):
    (ship.src / "large").write_bytes(random_bytes(99, 64 * MIB))
    have = ship.kill_when(lambda: ship.part_bytes() >= 24 * MIB, "--limit", "100MB") // MIB * MIB
    ship.check_after_a_fault()
    assert have >= 24 * MIB
    done = ship.run(strace=("-y", "-e", "trace=pwrite64"))
    assert done.returncode == 0, done.stdout
    written = sum(
        int(line.rpartition("= ")[2])
        for line in ship.log.read_text(errors="replace").splitlines()
        if ".part>" in line and "/.sf-" in line
    )
    small = sum(path.stat().st_size for path in ship.src.rglob("*") if path.is_file() and path.stat().st_size < MIB)
    assert written <= 64 * MIB - have + small
    ship.check_whole()


def test_the_order_of_the_calls(ship):
    """Write, flush, drop, read back, rename, flush the folder, record, journal: each only after the one before."""
    for path in ship.src.rglob("*"):
        if path.is_file() and path.name != "b":
            path.unlink()
    calls = "openat,pwrite64,write,pread64,preadv,preadv2,fdatasync,syncfs,fsync,fadvise64,renameat2"
    done = ship.run(strace=("-y", "-e", f"trace={calls}"))
    assert done.returncode == 0
    lines = [line.partition(" ")[2].strip() for line in ship.log.read_text(errors="replace").splitlines()]

    def at(call: str, *parts: str, after: int = -1) -> int:
        found = [
            n
            for n, line in enumerate(lines)
            if n > after and line.startswith(call) and all(part in line for part in parts)
        ]
        assert found, f"no {call} of {parts} after line {after}"
        return found[0]

    written = max(n for n, line in enumerate(lines) if line.startswith("pwrite64") and "/.sf-" in line)
    flushed = at("fdatasync", "/.sf-", after=written)
    dropped = at("fadvise64", "/.sf-", "DONTNEED", after=flushed)
    read = at("preadv", "/.sf-", after=dropped)
    renamed = at("renameat2", ".part", "RENAME_NOREPLACE", after=read)
    folder = at("fsync", f"{ship.dst}>", after=renamed)
    noted = at("write", "0001.jsonl>", after=folder)
    record = at("fsync", "0001.jsonl>", after=noted)
    journal = at("pwrite64", ".sqlite-wal>", after=record)
    assert written < flushed < dropped < read < renamed < folder < record < journal


def test_two_files_are_flushed_by_one_syncfs(ship):
    done = ship.run(strace=("-e", "trace=syncfs,fdatasync"))
    assert done.returncode == 0
    assert ship.log.read_text().count("syncfs(") == 1


def test_a_cut_off_generation_is_closed_by_the_next_run(ship):
    assert ship.inject("linkat", "signal=KILL", 1) == KILLED
    ship.finish(ship.check_after_a_fault())
    ends = [json.loads(path.read_text().splitlines()[-1]) for path in sorted(ship.records.glob("0*.jsonl"))]
    assert [end["state"] for end in ends] == ["cut off", "complete"]


def test_killed_before_the_receipt_has_its_name(ship):
    """The copy is complete then; the next run finds nothing to do, but that it must still be told."""
    receipt = str(ship.records / "receipt.json.part")
    ship.run(strace=("-P", receipt, "-e", "trace=rename", "-e", "inject=rename:signal=KILL:when=1"))
    assert list(ship.records.glob("receipt.*.part"))
    ship.finish(ship.check_after_a_fault())
