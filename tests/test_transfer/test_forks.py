"""Forked workers and the forked first look: the same results as by threads, also when a worker dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scopeferry.config import TransferSettings
from scopeferry.copying.settled import WORTH
from scopeferry.jobs.transfer import MANY, TransferJob

COMMAND = str(Path(sys.executable).with_name("scopeferry"))
FOLDERS, FILES = WORTH + 6, 10


@pytest.fixture
def tree(tmp_path):
    """More small files than forks are made for, in more folders than are looked at by forks."""
    root = tmp_path / "src"
    for folder in range(FOLDERS):
        (root / f"f{folder:03}").mkdir(parents=True)
        for file in range(FILES):
            (root / f"f{folder:03}" / f"{file}.tif").write_bytes(os.urandom(5000))
    assert FOLDERS * FILES > MANY
    past = time.time() - 3600
    for path in root.rglob("*.tif"):
        os.utime(path, (past, past))
    return root


def ferry(src, dst, *options):
    run = subprocess.run(
        [COMMAND, "transfer", src, dst, "--json", *options], check=False, capture_output=True, text=True, timeout=120
    )
    assert "Traceback" not in run.stderr
    return json.loads(run.stdout) | {"returncode": run.returncode}


def same(src, dst):
    return subprocess.run(["diff", "-r", src, dst], check=False, capture_output=True, text=True).stdout == ""


def children(pid):
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def wait_for_children(run, count):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and run.poll() is None:
        found = children(run.pid)
        if len(found) >= count:
            return found
        time.sleep(0.001)
    pytest.fail("no forked workers were seen")


def test_forks_copy_what_threads_copy(tree, tmp_path):
    by_forks = ferry(tree, tmp_path / "a")
    job = TransferJob(str(tree), str(tmp_path / "b"), TransferSettings())
    list(job.run())
    assert by_forks["exit_code"] == job.result.exit_code == 0
    assert by_forks["tree_digest"] == job.result.tree_digest
    assert by_forks["verified"] == job.result.verified == FOLDERS * FILES
    assert same(tree, tmp_path / "a")


def test_a_killed_worker_leaves_its_batch_to_its_parent(tree, tmp_path):
    run = subprocess.Popen([COMMAND, "transfer", tree, tmp_path / "dst", "--quiet"])
    for child in wait_for_children(run, 4)[:3]:
        os.kill(child, signal.SIGKILL)
    assert run.wait(60) == 0
    assert same(tree, tmp_path / "dst")
    assert not list((tmp_path / "dst").rglob(".sf-*"))


def test_workers_end_with_a_killed_parent_and_the_rerun_finishes(tree, tmp_path):
    run = subprocess.Popen([COMMAND, "transfer", tree, tmp_path / "dst", "--quiet"])
    found = wait_for_children(run, 4)
    run.kill()
    run.wait()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{child}").exists() for child in found):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.01)
    assert ferry(tree, tmp_path / "dst")["exit_code"] == 0
    assert same(tree, tmp_path / "dst")
    assert not list((tmp_path / "dst").rglob(".sf-*"))


def test_an_interrupt_reaches_the_workers(tree, tmp_path):
    run = subprocess.Popen([COMMAND, "transfer", tree, tmp_path / "dst", "--quiet"], start_new_session=True)
    found = wait_for_children(run, 4)
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(10) in {130, 0}  # 0: it had ended already
    assert not any(Path(f"/proc/{child}").exists() for child in found)


def edit_source(tree, dst):
    (tree / "f001" / "3.tif").write_bytes(b"new" * 2000)


def edit_copy_with_time_put_back(tree, dst):
    path = dst / "f002" / "4.tif"
    was = path.stat()
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def remove_at_copy(tree, dst):
    (dst / "f003" / "5.tif").unlink()


def add_at_source(tree, dst):
    (tree / "f004" / "new.tif").write_bytes(b"x")


def new_folder(tree, dst):
    (tree / "f005" / "deeper").mkdir()


def folder_mode(tree, dst):
    (tree / "f006").chmod(0o711)


def folder_time_at_copy(tree, dst):
    os.utime(dst / "f007", (1, 1))


def leftover_part(tree, dst):
    from scopeferry.kernel.publish import part_name

    (dst / "f008" / part_name(b"f008/1.tif", "00000000")).write_bytes(b"left")


@pytest.mark.parametrize(
    "accident",
    [
        edit_source,
        edit_copy_with_time_put_back,
        remove_at_copy,
        add_at_source,
        new_folder,
        folder_mode,
        folder_time_at_copy,
        leftover_part,
    ],
)
def test_a_rerun_that_looks_with_forks_misses_nothing(tree, tmp_path, accident):
    dst = tmp_path / "dst"
    assert ferry(tree, dst)["exit_code"] == 0
    quiet = ferry(tree, dst)
    assert (quiet["exit_code"], quiet["skipped"], quiet["copied"]) == (0, FOLDERS * FILES, 0)
    accident(tree, dst)
    assert ferry(tree, dst)["exit_code"] == 0
    out = subprocess.run(
        ["rsync", "-aHXn", "--checksum", "--itemize-changes", f"{tree}/", f"{dst}/"],
        check=False,
        capture_output=True,
        text=True,
    ).stdout
    assert out == ""
    assert not list(dst.rglob(".sf-*"))


def test_a_rerun_that_looks_with_forks_counts_extras_and_names_what_vanished(tree, tmp_path):
    dst = tmp_path / "dst"
    ferry(tree, dst)
    (dst / "f010" / "theirs.txt").write_text("x")
    (tree / "f011" / "2.tif").unlink()
    found = ferry(tree, dst)
    assert found["exit_code"] == 0
    assert found["extras"] == 1
    assert "SF-903" in {problem["code"] for problem in found["problems"]}
    assert found["skipped"] == FOLDERS * FILES - 1


def test_what_changed_in_looked_at_folders_is_done_like_any_other(tree, state, tmp_path):
    dst = tmp_path / "dst"
    assert ferry(tree, dst)["returncode"] == 0
    folders = sorted(tree.iterdir())
    past = time.time() - 1800
    for folder in folders:
        (folder / "0.tif").write_bytes(os.urandom(6000))
        (folder / "new.tif").write_bytes(os.urandom(100))
        os.utime(folder / "0.tif", (past, past))
        os.utime(folder / "new.tif", (past, past))
    (folders[0] / "1.tif").unlink()
    (folders[1] / "sub").mkdir()
    (folders[1] / "sub" / "deep.tif").write_bytes(b"deep")
    (dst / folders[2].name / "theirs.txt").write_text("an extra")
    flipped = dst / folders[3].name / "2.tif"
    was = flipped.stat()
    flipped.write_bytes(os.urandom(5000))
    os.utime(flipped, ns=(was.st_atime_ns, was.st_mtime_ns))
    (dst / folders[4].name / "3.tif").unlink()
    (folders[5] / "4.tif").chmod(0o600)
    found = ferry(tree, dst)
    assert found["returncode"] == 0
    assert (found["replaced"], found["copied"], found["repaired"]) == (FOLDERS, FOLDERS + 2, 1)
    assert found["extras"] == 1
    assert {problem["code"] for problem in found["problems"]} == {"SF-902", "SF-903"}
    (dst / folders[2].name / "theirs.txt").unlink()
    (dst / folders[0].name / "1.tif").unlink()
    assert same(tree, dst)
    again = ferry(tree, dst)
    assert (again["replaced"], again["copied"], again["repaired"]) == (0, 0, 0)
    assert (again["returncode"], {problem["path"] for problem in again["problems"]}) == (
        3,
        {f"{folders[0].name}/1.tif"},
    )


#: In a process of its own: forks are only made where no thread is.
LOOK = """
import json, sys
from scopeferry.config import TransferSettings
from scopeferry.copying.plan import Plan
from scopeferry.jobs.transfer import TransferJob

looks, look = [], Plan._settled
Plan._settled = lambda plan: looks.append(look(plan)) or dict(looks[-1])  # a walk takes them out
job = TransferJob(*sys.argv[1:], TransferSettings())
job.may_fork = True
for _ in job.run():
    pass
found = {path.decode(): [settled[0], settled[4]] for path, settled in looks[0].items()}
print(json.dumps([job.result.exit_code, found]))
"""


def test_the_look_finds_all_folders_of_a_rerun_settled(tree, state, tmp_path):
    """Else each is walked as if there had been no look, and the rerun takes twice as long."""
    dst = tmp_path / "dst"
    assert ferry(tree, dst)["returncode"] == 0
    done = subprocess.run([sys.executable, "-c", LOOK, tree, dst], check=True, capture_output=True, text=True)
    wanted = {"": [0, []]} | {f"f{number:03}/": [FILES, []] for number in range(FOLDERS)}
    assert json.loads(done.stdout) == [0, wanted]
