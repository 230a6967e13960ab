"""Run again, run beside another, be stopped: a copy is taken up where it was left, and it is said how it stands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

import scopeferry
from scopeferry.copying.target import Target
from scopeferry.jobs.live import Live
from scopeferry.jobs.target_run import TargetRun
from scopeferry.testing.accidents import COMMAND, codes
from scopeferry.testing.environments import Unavailable, python_of
from scopeferry.testing.steps import Steps
from scopeferry.testing.trees import differences, parts, rewrite

STOPS = {"SIGINT": 130, "SIGTERM": 130, "SIGHUP": 130, "SIGUSR1": 75}


def last_line(run) -> str:
    return run.said.splitlines()[-1]


def sent(found) -> int:
    return found["copied"] + found["replaced"] + found["repaired"]


def runs_with(started, *options, **how):
    """Begin, and wait until three chunks have arrived."""
    run = started(*options, **how)
    run.store.put(0, 1, 2)
    run.wait("0.0", "1.0", "2.0", ".zarray")
    return run


# -- again -------------------------------------------------------------------------------------------------------------


def test_after_the_end_nothing_is_sent_and_that_is_said(started, store):
    store.put(*range(8))
    store.finish()
    first = started().ends()
    assert sent(first) == 10
    again = started()
    found = again.ends()
    assert (sent(found), found["bytes"], found["skipped"]) == (0, 0, 10)
    assert (found["state"], found["targets"][0]["evidence"][0]["kind"]) == ("finished", "marker")
    assert last_line(again).startswith("exit 0: nothing to do   10 files "), last_line(again)
    assert "   finished on marker: complete   " in last_line(again)
    assert found["tree_digest"] == first["tree_digest"]


def test_what_came_after_the_end_is_all_that_is_sent(started, store):
    store.put(0, 1)
    store.finish()
    started().ends()
    store.put(2, 3)
    found = started().ends()
    assert (sent(found), found["skipped"]) == (2, 4)


def test_what_was_rewritten_meanwhile_is_sent_again(started, store):
    run = runs_with(started)
    run.send(signal.SIGTERM)
    run.ends(130)
    store.put(1)
    store.finish()
    found = started().ends()
    assert (found["replaced"], found["copied"], found["skipped"]) == (1, 1, 3)


@pytest.mark.parametrize("how", ["flipped", "cut", "removed", "its time put back"])
def test_a_copy_that_was_damaged_between_two_runs_is_healed_and_named(started, store, how):
    run = runs_with(started)
    run.send(signal.SIGTERM)
    run.ends(130)
    hurt = run.destination / "1.0"
    wrong = bytes(store.size)
    {
        "flipped": lambda: hurt.write_bytes(wrong),
        "cut": lambda: os.truncate(hurt, 100),
        "removed": hurt.unlink,
        "its time put back": lambda: rewrite(hurt, wrong, keep_time=True),
    }[how]()
    store.finish()
    found = started().ends()
    assert (sent(found), found["skipped"]) == (2, 3)
    if how != "removed":
        assert ("SF-902", "1.0") in {(problem["code"], problem["path"]) for problem in found["problems"]}
        assert found["targets"][0]["healed"] == 1
        assert [path.stat().st_size for path in run.records.rglob("1.0")] == [100 if how == "cut" else store.size]


def test_without_its_journal_nothing_is_sent_again(started, store, state):
    store.put(*range(4))
    store.finish()
    started().ends()
    shutil.rmtree(state / "scopeferry")
    found = started().ends()
    assert sent(found) == 0, found
    assert codes(found) == {"SF-907"}


def test_an_inode_that_moved_is_read_and_not_sent_again(started, store):
    """As after a restore of the source: the same bytes and times in other files."""
    run = runs_with(started)
    run.send(signal.SIGTERM)
    run.ends(130)
    shutil.copytree(store.root, store.root.with_name("b"))
    shutil.rmtree(store.root)
    store.root.with_name("b").rename(store.root)
    inodes = {path.name: path.stat().st_ino for path in run.destination.iterdir()}
    store.finish()
    found = started().ends()
    assert (sent(found), found["checked"], found["problem_count"]) == (1, 4, 0), found["problems"]
    assert inodes.items() <= {path.name: path.stat().st_ino for path in run.destination.iterdir()}.items()


# -- stopped -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STOPS)
def test_a_signal_ends_it_in_order(started, store, name):
    run = runs_with(started)
    run.send(getattr(signal, name))
    found = run.ends(STOPS[name])
    assert (found["state"], found["targets"][0]["state"]) == ("interrupted", "interrupted")
    assert found["targets"][0]["awaited"]
    assert "next: run the same command again" in last_line(run)
    end = json.loads(next(run.records.glob("0001.jsonl")).read_text().splitlines()[-1])
    assert (end["state"], end["exit_code"]) == ("interrupted", STOPS[name])
    store.put(3)
    store.finish()
    again = started().ends()
    assert (sent(again), again["skipped"]) == (2, 4)


def test_a_signal_while_a_source_is_awaited(started, store, tmp_path):
    run = started(source=tmp_path / "later")
    assert f"its source: {tmp_path}/later" in run.process.stderr.readline()
    run.send(signal.SIGINT)
    found = run.end()
    assert (found["exit_code"], [one["state"] for one in found["targets"]]) == (130, ["interrupted"])
    assert not run.destination.exists()


def test_nohup(started, store):
    run = runs_with(started, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    run.send(signal.SIGHUP)
    store.put(3)
    run.wait("3.0")
    store.finish()
    run.ends()


def test_a_second_interrupt_ends_it_at_once(started, store):
    """One whose worker is held by a disk for longer than anybody waits."""
    code = (
        "import sys, time; from scopeferry.cli.main import main; from scopeferry.testing.steps import Steps\n"
        "with Steps() as steps:\n"
        "    steps.before('drop', lambda *_: time.sleep(600)); sys.exit(main())"
    )
    run = started(command=(sys.executable, "-c", code, "live"))
    store.put(0)
    run.wait(until=lambda: run.destination.is_dir() and parts(run.destination))
    run.send(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        run.process.wait(timeout=1)
    run.send(signal.SIGINT)
    assert run.process.wait(timeout=60) == 130
    store.finish()
    started().ends()


@pytest.mark.parametrize("name", STOPS)
def test_a_signal_during_the_start(started, store, tmp_path, name):
    """Nothing is begun yet, and nothing was made; the envelope is whole."""
    os.mkfifo(tmp_path / "list")
    run = started(command=(*COMMAND, "live", "--targets"), source=tmp_path / "list", to=None)
    with open(tmp_path / "list", "wb"):  # it reads now
        run.send(getattr(signal, name))
        found = run.end()
    assert (found["exit_code"], found["targets"], found["command"]) == (STOPS[name], [], "live")


# -- beside another ----------------------------------------------------------------------------------------------------


def test_a_second_run_beside_the_first(started, store):
    first = runs_with(started)
    second = started()
    found = second.end()
    assert (found["exit_code"], codes(found)) == (75, {"SF-321"})
    assert f"pid {first.process.pid} on " in last_line(second)
    assert ", since 20" in last_line(second)
    store.finish()
    first.ends()


def test_a_chain_of_two_runs(started, store, tmp_path):
    """The copy is the source of another copy, which ends after it, by the marker that comes last."""
    first = runs_with(started)
    second = started(source=first.destination, to=tmp_path / "second")
    second.wait("0.0", "1.0", "2.0")
    store.put(0, 3, 4)
    store.finish()
    first.ends()
    found = second.ends()
    assert found["targets"][0]["evidence"][0]["kind"] == "marker"


def test_a_chain_in_one_run_stops_both(store, tmp_path):
    store.put(*range(8))
    targets = [Target(str(store.root), str(tmp_path / "b")), Target(str(tmp_path / "b"), str(tmp_path / "c"))]
    with Live(targets) as run:
        for _ in run:
            if (tmp_path / "c/7.0").exists() and not (store.root / "complete").exists():
                store.finish()
    assert run.result.exit_code == 0, run.result.problems
    assert differences(store.root, tmp_path / "c") == []


# -- copies that others began ------------------------------------------------------------------------------------------


def test_a_copy_that_rsync_began_is_taken_over(started, store, tmp_path):
    if shutil.which("rsync") is None:
        pytest.skip("needs rsync: apt install rsync")
    store.put(0, 1, 2, 3)
    subprocess.run(["rsync", "-a", f"{store.root}/", tmp_path / "copy/"], check=True)
    inodes = {path.name: path.stat().st_ino for path in (tmp_path / "copy").iterdir()}
    store.put(4, 5)
    store.finish()
    found = started().ends()
    assert (found["adopted"], sent(found)) == (5, 3)
    assert {name: (tmp_path / "copy" / name).stat().st_ino for name in inodes} == inodes


def test_a_copy_that_rsync_tore_is_refused_and_can_be_replaced(started, store, tmp_path):
    store.put(0, 1)
    shutil.copytree(store.root, tmp_path / "copy")
    os.truncate(tmp_path / "copy/1.0", 100)
    store.finish()
    found = started().end()
    assert (found["exit_code"], codes(found)) == (5, {"SF-501"})
    assert (tmp_path / "copy/1.0").stat().st_size == 100
    started("--on-conflict", "replace").ends()


@pytest.mark.slow
def test_a_copy_that_softcopy_began_is_taken_over(acquire, follow, tmp_path):
    try:
        python = python_of("softcopy")
    except Unavailable as error:
        pytest.skip(str(error))
    from scopeferry.testing.orders import LAYOUTS, PATTERNS

    with acquire("tensorstore-lockfile") as acquisition:
        acquisition.do(*PATTERNS["full"]("", LAYOUTS["v2-nested"]))
    (tmp_path / "a.zarr/complete").touch()
    command = os.path.join(os.path.dirname(python), "softcopy")
    words = [command, str(tmp_path / "a.zarr"), str(tmp_path / "copy.zarr"), "--nprocs", "1", "--sleep-time", "0"]
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    there = {path: path.stat().st_ino for path in (tmp_path / "copy.zarr").rglob("*") if path.is_file()}
    assert len(there) >= 8
    run = follow()
    found = run.end()
    assert found["exit_code"] == 0, found["problems"]
    assert found["adopted"] == len(there)
    assert {path: path.stat().st_ino for path in there} == there


# -- what must never pass for an end -----------------------------------------------------------------------------------


def test_a_bug_in_a_worker_ends_it_with_the_item_named(store, tmp_path):
    store.put(*range(8))
    store.finish()

    def bug(*_):
        raise ZeroDivisionError("a bug")

    with Steps() as steps:
        steps.before("drop", bug)
        result = scopeferry.live(store.root, tmp_path / "copy")
    assert result.exit_code == 1
    assert "SF-302" in result.codes
    assert any("ZeroDivisionError: a bug" in problem.message for problem in result.problems)
    assert parts(tmp_path / "copy") == []
    assert scopeferry.live(store.root, tmp_path / "copy").exit_code == 0
    assert differences(store.root, tmp_path / "copy") == []


@pytest.mark.parametrize(
    "where", ["_planned", "_is_over", "_send_open", "_end", "_order", "__init__", "_settle_asides"]
)
def test_a_bug_in_one_target_leaves_the_other_alone(store, tmp_path, monkeypatch, where):
    store.put(*range(3))
    store.finish()
    real = getattr(TargetRun, where)

    def bug(self, *arguments, **named):
        if "bad" in (str(arguments[0].destination) if where == "__init__" else self.dst):
            raise ZeroDivisionError("a bug")
        return real(self, *arguments, **named)

    monkeypatch.setattr(TargetRun, where, bug)
    with Live([Target(str(store.root), str(tmp_path / name)) for name in ("bad", "good")]) as run:
        for _ in run:
            pass
    bad, good = run.result.targets
    assert (bad.exit_code, good.exit_code, run.result.exit_code) == (1, 0, 1), (bad.problems, good.problems)
    assert "SF-302" in bad.codes
    assert differences(store.root, tmp_path / "good") == []


def test_clean_refuses_a_copy_that_ended_on_quiet(started, store):
    store.put(*range(8))
    found = started("--finish", "quiet=1s", "--settle", "1s").ends()
    assert found["state"] == "finished"
    done = scopeferry.clean(store.root, copies=[found["destination"]])
    assert done.exit_code == 5
    assert "SF-517" in done.codes, done.codes
    assert scopeferry.clean(store.root, copies=[found["destination"]], finish_now=True).exit_code == 0
    store.finish()
    started().ends()
    assert scopeferry.clean(store.root, copies=[found["destination"]]).exit_code == 0
