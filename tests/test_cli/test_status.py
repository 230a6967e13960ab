"""`status`: running, ended and dead runs, with the command that goes on; nothing it meets stops it or a run."""

import json
import os
import shutil
import signal
import subprocess

import pytest

from scopeferry.copying import runs
from scopeferry.jobs.status import listed, resume


@pytest.fixture
def slow(tmp_path, make_tree):
    return make_tree(tmp_path / "it's run 7", files=4, size=9_000_000), ("--limit", "9MB", "--workers", "1")


def shown(ferry, *words):
    return json.loads(ferry("status", "--json", *words).stdout)["runs"]


def progressing(ferry):
    found = shown(ferry)
    return found if found and found[0]["progress"].get("copied_percent") else None


def test_a_run_from_its_begin_to_a_kill_and_on(ferry, slow, tmp_path, wait_for):
    tree, options = slow
    started = ferry.start("transfer", tree.name, "copy", *options)
    (run,) = wait_for(lambda: progressing(ferry), "progress")
    assert (run["status"], run["job"], run["pid"]) == ("running", "transfer", started.pid)
    assert (run["source"], run["destination"]) == (str(tree), str(tmp_path / "copy"))
    assert run["resume"] == ""
    assert 0 < run["progress"]["copied_percent"] < 100
    assert run["progress"]["verified_percent"] <= run["progress"]["copied_percent"]
    line = ferry("status").stdout
    assert line.startswith(f"{run['run']}  running           transfer  copied ")

    started.send_signal(signal.SIGKILL)
    started.communicate()
    (dead,) = shown(ferry)
    assert dead["status"] == "dead"
    assert dead["progress"]["copied_percent"] >= run["progress"]["copied_percent"]
    assert dead["resume"] == "scopeferry transfer 'it'\"'\"'s run 7' copy --limit 9MB --workers 1"
    assert f"to go on: {dead['resume']}" in ferry("status", run["run"][:15]).stdout

    elsewhere = {"XDG_STATE_HOME": ferry.environment["XDG_STATE_HOME"]}
    os.makedirs(tmp_path / "elsewhere")
    there = json.loads(
        ferry.raw([*ferry.command("status", "--json")], env=elsewhere, cwd=tmp_path / "elsewhere").stdout
    )
    command = (
        there["runs"][0]["resume"].replace("scopeferry transfer", f"{ferry.line('transfer')}").replace("9MB", "9GB")
    )
    done = ferry.raw(["sh", "-c", command], cwd="/")
    assert done.returncode == 0, done.stderr
    assert subprocess.run(["diff", "-r", tree, tmp_path / "copy"], check=False).returncode == 0

    again, dead = shown(ferry)
    assert (again["status"], again["state"], again["exit_code"]) == ("ended", "complete", 0)
    assert (dead["status"], dead["resume"], dead["followed_by"]) == ("dead", "", again["run"])
    assert f"taken up by {again['run']}" in ferry("status").stdout


def test_it_reads_while_another_writes(ferry, tree, tmp_path):
    """A journal held by a writer, damaged or gone costs the progress of that run, nothing else."""
    ferry("transfer", tree, "copy")
    entry = next((tmp_path / ferry.environment["XDG_STATE_HOME"] / "scopeferry/runs").iterdir())
    facts = json.loads(entry.read_text()) | {"state": "running"}
    for damage in (lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(5000)), lambda path: path.unlink()):
        damage(__import__("pathlib").Path(facts["journal"]))
        entry.write_text(json.dumps(facts))
        (run,) = shown(ferry)
        assert (run["status"], run["progress"]) == ("dead", {})


def test_foreign_entries(ferry, tree, state):
    ferry("transfer", tree, "copy")
    folder = state / "scopeferry/runs"
    (folder / "text.json").write_text("hello")
    (folder / "list.json").write_text("[1]")
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "other.json").write_text('{"run": "another", "state": "running"}')
    (folder / "odd.json").write_text('{"run": "odd", "state": "running", "pid": "x", "started": [], "command": 3}')
    (folder / "link.json").symlink_to(__file__)
    (folder / "folder.json").mkdir()
    os.mkfifo(folder / "pipe.json")
    (folder / "closed.json.part").write_text("")
    assert {run["run"][:4] for run in shown(ferry)} == {"odd", listed()[0].run[:4]} or len(shown(ferry)) == 2
    assert ferry("status").returncode == 0
    assert ferry("transfer", tree, "copy").returncode == 0


def test_no_state_folder(ferry, tree, tmp_path):
    (tmp_path / "file").write_text("")
    assert ferry("status", env={"XDG_STATE_HOME": str(tmp_path / "none")}).stdout == "no runs yet\n"
    shutil.rmtree(ferry.environment["XDG_STATE_HOME"], ignore_errors=True)
    journal = ["--journal", tmp_path / "j.sqlite"]
    assert ferry("transfer", tree, "copy", *journal, env={"XDG_STATE_HOME": str(tmp_path / "file")}).returncode == 0


def test_the_newest_thousand_are_kept(state):
    alive = runs.Registration("20200101T000000Z-000000", job="transfer")
    for number in range(1005):
        (state / f"scopeferry/runs/20210101T{number:06}Z-000000.json").write_text("{}")
    runs.prune()
    names = sorted(path.name for path in (state / "scopeferry/runs").iterdir())
    assert names[0] == "20200101T000000Z-000000.json"  # it goes on
    assert len(names) == 1001
    assert names[1] == "20210101T000005Z-000000.json"
    alive.end("complete", 0)
    alive.end("complete", 0)
    runs.prune()
    assert len(list((state / "scopeferry/runs").iterdir())) == 1000


def test_every_job_registers(ferry, tree):
    ferry("transfer", tree, "copy")
    ferry("verify", "copy")
    ferry("repair", tree, "copy")
    ferry("clean", tree, "--copy", "copy")
    ferry("transfer", tree, "copy", "--dry-run")
    assert [run["job"] for run in shown(ferry)] == ["clean", "repair", "verify", "transfer"]
    assert {run["status"] for run in shown(ferry)} == {"ended"}


def test_what_a_program_calls_has_a_command_too(tree, tmp_path):
    import scopeferry

    scopeferry.transfer(tree, tmp_path / "a copy")
    (entry,) = listed()
    assert entry.facts["command"] == ["scopeferry", "transfer", str(tree), str(tmp_path / "a copy")]
    assert resume({**entry.facts, "cwd": ""}) == f"scopeferry transfer {tree} '{tmp_path}/a copy'"
    assert resume({"command": "rm -rf"}) == ""
