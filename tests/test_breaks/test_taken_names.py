"""A name that is taken since the plan looked is judged by what stands there: it may be our own work."""

import os
import subprocess
import time
from pathlib import Path


def workers_of(process):
    """The forked workers, as soon as there are some."""
    while process.poll() is None:
        found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if len(found) > 1:
            return [int(one) for one in found]
        time.sleep(0.001)
    raise AssertionError("it ended without workers")


def test_what_a_killed_worker_had_published_is_adopted(program, small_files, tmp_path):
    src, dst = small_files(tmp_path / "src", 4000, folders=20), tmp_path / "dst"
    with program.start("transfer", src, dst) as process:
        killer = program.kill_when_it_calls(workers_of(process)[1], "renameat2", 10)
        process.communicate(timeout=60)
    killer.wait(10)
    assert "killed by SIGKILL" in program.log.read_text()
    assert process.returncode == 0
    assert subprocess.run(["diff", "-r", src, dst], check=False).returncode == 0
    assert program.run("transfer", src, dst)["skipped"] == 4000


def test_a_second_version_that_a_killed_run_had_published_is_adopted(program, small_files, tmp_path):
    src, dst = small_files(tmp_path / "src", 4), small_files(tmp_path / "dst", 4)
    theirs = {path: path.read_bytes() for path in dst.rglob("*.tif")}
    program.killed_at("renameat2", 3, "transfer", src, dst, "--on-conflict", "keep-both")
    found = program.run("transfer", src, dst, "--on-conflict", "keep-both")
    assert (found["exit_code"], found["codes"]) == (0, {"SF-911"})
    assert found["adopted"] >= 2
    assert {path: path.read_bytes() for path in theirs} == theirs
    ours = sorted(path.read_bytes() for path in dst.rglob("*.scopeferry-*.tif"))
    assert ours == sorted(path.read_bytes() for path in src.rglob("*.tif"))
    assert program.run("transfer", src, dst, "--on-conflict", "keep-both")["skipped"] == 4


def test_somebodys_file_under_the_name_of_a_second_version_is_left_alone(program, small_files, tmp_path):
    src, dst = small_files(tmp_path / "src", 1), small_files(tmp_path / "dst", 1)
    program.run("transfer", src, dst, "--on-conflict", "keep-both")
    (beside,) = dst.rglob("*.scopeferry-*.tif")
    beside.write_bytes(b"theirs")
    os.rename(f"{dst}.scopeferry", tmp_path / "lost")
    for journal in Path(os.environ["XDG_STATE_HOME"]).rglob("*.sqlite*"):
        journal.unlink()
    assert program.run("transfer", src, dst, "--on-conflict", "keep-both")["exit_code"] == 5
    assert beside.read_bytes() == b"theirs"
    assert len(list(dst.rglob("*.tif"))) == 2
