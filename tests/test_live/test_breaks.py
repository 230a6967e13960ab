"""Attempts to break `live` and `inspect`: careless users, hostile writers, unlucky disks. Each was a fault once."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from scopeferry.cli.main import main
from scopeferry.copying.listed import ListedFiles
from scopeferry.copying.target import Target
from scopeferry.jobs.inspect import inspect
from scopeferry.jobs.live import Live, live
from scopeferry.jobs.target_run import TargetRun
from scopeferry.kernel.publish import disk
from scopeferry.kernel.task import Control
from scopeferry.sources.tree import TreeSource
from scopeferry.sources.watched import Ending, Watched
from scopeferry.testing.accidents import Store, codes, named
from scopeferry.testing.trees import differences


def test_a_marker_that_is_taken_away_during_the_last_walk(store, tmp_path, monkeypatch):
    store.put(0, 1)
    store.finish()
    copy, taken, back = tmp_path / "copy", False, False
    is_over = TargetRun._is_over

    def look(run, *, walked_s=None):
        nonlocal taken
        if walked_s is not None and not taken:
            (store.root / "complete").unlink()
            taken = True
        return is_over(run, walked_s=walked_s)

    monkeypatch.setattr(TargetRun, "_is_over", look)
    with Live([Target(str(store.root), str(copy))]) as job:
        for _ in job:
            if taken and not back:
                store.put(2)
                store.finish()
                back = True
    assert (taken, back, job.result.exit_code) == (True, True, 0)
    assert not differences(store.root, copy)


@pytest.mark.parametrize("glob", ["../done", "./done", "a/../done", "done/"])
def test_a_marker_that_no_file_can_be(glob, capsys, tmp_path):
    assert main(["live", str(tmp_path), str(tmp_path.with_name("copy")), "--finish", f"marker={glob}"]) == 2
    assert glob in capsys.readouterr().err


@pytest.mark.parametrize(("name", "options"), [("done", ["--finish", "marker=done", "--exclude", "done"]),
                                               ("complete", ["--include", "*.0"])])  # fmt: skip
def test_a_marker_that_is_not_copied_is_one_all_the_same(name, options, store, started):
    store.put(0, 1)
    (store.root / name).touch()
    run = started(*options)
    assert run.end()["exit_code"] == 0
    assert not (run.destination / name).exists()


def test_what_is_refused_is_said_once(store, started):
    store.put(0, 1)
    run = started()
    run.wait("0.0", "1.0")
    store.path(1).unlink()
    store.path(1).symlink_to("0.0")
    store.finish()
    found = run.ends(5)
    assert (found["failed"], named(found)) == (1, {("SF-502", "1.0")})
    assert found["problem_count"] == 1


def test_a_group_that_is_moved_away_and_made_again(store, started):
    """A folder that was opened before its move is not the one that bears its name now."""
    inner = Store(store.root / "g" / "a")
    inner.put(0)
    run = started()
    run.wait("g/a/0.0", "g/a/.zarray")
    store.root.joinpath("g").rename(store.root / "old")
    again = Store(store.root / "g" / "a", chunks=4)
    again.put(0, 1)
    run.wait("g/a/1.0")
    again.write(".zarray", again.root.joinpath(".zarray").read_bytes() + b" ")
    store.finish()
    run.ends()


@pytest.mark.parametrize("name", ["file/x", "x" * 300])
def test_a_destination_that_can_never_be_is_not_called_gone(name, store, started, tmp_path):
    """Not 75: no scheduler is to try it again."""
    (tmp_path / "file").touch()
    store.finish()
    found = started(to=tmp_path / name).end()
    assert (found["exit_code"], codes(found)) == (1, {"SF-301"})


@pytest.mark.parametrize("name", ["../beside", "/etc/hostname"])
def test_a_list_that_names_what_lies_elsewhere_declares_nothing(name, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (tmp_path / "beside").touch()
    (source / "own").touch()
    names = tmp_path / "list"
    with ListedFiles(TreeSource(str(source), disk(str(source))), Control()) as listed:
        names.write_text(f"own\n{source}/own\n")
        assert listed(str(names)).satisfied
        names.write_text(f"own\n{name}\n")
        assert listed(str(names)).absent == [name]


def test_a_list_that_is_a_pipe_holds_nothing_up(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ListedFiles(TreeSource(str(tmp_path), disk(str(tmp_path))), Control()) as listed:
        assert not listed(str(tmp_path / "pipe")).there


def test_what_stood_in_the_way_for_a_while_is_no_failure(store, tmp_path):
    store.put(0, 1)
    copy, step = tmp_path / "copy", 0
    with Live([Target(str(store.root), str(copy))]) as job:
        for _ in job:
            [standing] = job.standings()
            if step == 0 and (copy / "1.0").exists():
                store.path(1).unlink()
                store.path(1).mkdir()
                (store.path(1) / "x").touch()
                step = 1
            elif step == 1 and standing.failed:
                (store.path(1) / "x").unlink()
                store.path(1).rmdir()
                store.put(1)
                store.finish()
                step = 2
    assert (step, job.result.exit_code, job.result.failed) == (2, 0, 0), job.result.problems
    assert not differences(store.root, copy)


@pytest.mark.parametrize(("name", "at_s"), [("1", 2**33), ("protocol.pdf", 1_600_000_000)])
def test_a_time_that_is_not_of_the_acquisition_is_no_pause(store, name, at_s):
    """One of the future; that of a file which is no chunk and was made years ago."""
    store.put(0, 1)
    (store.root / name).touch()
    os.utime(store.root / name, (at_s, at_s))
    source = TreeSource(str(store.root), disk(str(store.root)))
    with Watched(source, Ending(), watch="scan") as watched:
        for found in watched.items():
            if found is not None:
                watched.settled(found.path)
            elif watched.tree.walk is not None and watched.tree.drained:
                break
        assert watched.facts().gap_s < 3600


def test_a_source_that_comes_as_a_file_is_no_folder_to_follow(tmp_path):
    """Nor is the folder that it lies in followed in its place."""
    (tmp_path / "beside").touch()
    source = tmp_path / "later"
    with Live([Target(str(source), str(tmp_path / "copies" / "later"))]) as job:
        for _ in job:
            if job.standings()[0].state == "waiting":
                source.touch()
    assert (job.result.exit_code, job.result.targets[0].codes) == (2, {"SF-118"})
    assert not (tmp_path / "copies").exists()


def test_a_grid_of_more_chunks_than_can_be_counted(tmp_path):
    metadata = {
        "zarr_format": 3, "node_type": "array", "shape": [10**11, 10**10], "data_type": "uint8", "fill_value": 0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 1]}},
        "chunk_key_encoding": {"name": "default"}, "codecs": [{"name": "bytes"}],
    }  # fmt: skip
    (tmp_path / "zarr.json").write_text(json.dumps(metadata))
    (tmp_path / "complete").touch()
    [array] = inspect(tmp_path).details["arrays"]
    assert array["missing"] == 10**21


def test_a_folder_that_came_and_went_is_no_failure(store, tmp_path, monkeypatch):
    """Its file was planned, and vanished with it."""
    store.put(0)
    passing, planned = store.root / "passing", TargetRun._planned

    def plan(run, journal, order, ready):
        tasks = list(planned(run, journal, order, ready))
        if any(task.key == "passing/a" for task in tasks):
            shutil.rmtree(passing)
            store.finish()
        return iter(tasks)

    monkeypatch.setattr(TargetRun, "_planned", plan)
    with Live([Target(str(store.root), str(tmp_path / "copy"))]) as job:
        for _ in job:
            if (tmp_path / "copy" / "0.0").exists() and not passing.exists() and not (store.root / "complete").exists():
                passing.mkdir()
                (passing / "a").touch()
    assert (job.result.exit_code, job.result.problems) == (0, [])


def test_a_time_that_no_journal_holds(store, tmp_path, state):
    """It is kept all the same, where the file systems have it, and costs no second copy."""
    store.put(0, 1, 2)
    os.utime(store.path(1), (2**34 - 1, 2**34 - 1))
    store.finish()
    first, again = (live(store.root, tmp_path / "copy") for _ in range(2))
    assert (first.exit_code, again.exit_code, again.copied) == (0, 0, 0), first.problems
    assert not differences(store.root, tmp_path / "copy")
