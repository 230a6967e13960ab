"""Signals end a run in order; a stream that nobody reads never ends it."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


@pytest.fixture
def slow(tmp_path, make_tree):
    """A tree, and options with which it takes long: a batch is one file, and a file is a second."""
    return make_tree(tmp_path / "run7", files=4, size=9_000_000), ("--limit", "9MB", "--workers", "1")


@pytest.fixture
def begun(tmp_path, wait_for):
    """Wait until the first file has arrived."""
    return lambda: wait_for(lambda: list((tmp_path / "copy").glob("pos*/*.tif")), "the first file")


def parts(folder):
    return [path for path in folder.rglob("*") if path.name.startswith(".sf-")]


def check_resumes(ferry, tree, tmp_path):
    assert len(parts(tmp_path / "copy")) <= 1  # the file in flight goes on where it was
    assert ferry("transfer", tree, "copy").returncode == 0
    assert not parts(tmp_path / "copy")
    assert subprocess.run(["diff", "-r", tree, tmp_path / "copy"], check=False).returncode == 0


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_interrupted(ferry, slow, begun, tmp_path, name):
    tree, options = slow
    started = ferry.start("transfer", tree, "copy", *options, "--json")
    begun()
    started.send_signal(getattr(signal, name))
    out, err = started.communicate(timeout=60)
    assert started.returncode == 130
    last = err.splitlines()[-1]
    assert last.startswith(f"exit 130: interrupted by {name} (SF-130)   ")
    assert "   next: run the same command again: it resumes   record copy.scopeferry/0001.jsonl" in last
    assert [problem["code"] for problem in json.loads(out)["problems"]] == ["SF-130"]
    end = json.loads((tmp_path / "copy.scopeferry/0001.jsonl").read_text().splitlines()[-1])
    assert (end["state"], end["exit_code"]) == ("interrupted", 130)
    check_resumes(ferry, tree, tmp_path)


def test_a_scheduler_asks_for_75(ferry, slow, begun, tmp_path):
    tree, options = slow
    started = ferry.start("transfer", tree, "copy", *options)
    begun()
    started.send_signal(signal.SIGUSR1)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 75
    assert err.splitlines()[-1].startswith("exit 75: stopped by SIGUSR1 (SF-325)   ")
    check_resumes(ferry, tree, tmp_path)


def test_nohup(ferry, slow, begun, tmp_path):
    tree, options = slow
    started = ferry.start(
        "transfer", tree, "copy", *options, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    begun()
    started.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        started.wait(timeout=1)
    started.send_signal(signal.SIGTERM)
    started.communicate(timeout=60)
    assert started.returncode == 130


def test_a_second_interrupt_ends_at_once(ferry):
    """Even a run that does not come to look at its control."""
    code = (
        "import time; from scopeferry.cli.signals import stopping; from scopeferry.kernel.task import Control\n"
        "with stopping(Control()):\n"
        "    print('ready', flush=True)\n"
        "    while True: time.sleep(0.01)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=ferry.environment) as started:
        started.stdout.readline()
        started.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            started.wait(timeout=0.3)
        started.send_signal(signal.SIGINT)
        assert started.wait(timeout=60) == 130


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-", ">/dev/full", "2>/dev/full", "| head -c 1; exit 0"])
@pytest.mark.parametrize("options", [[], ["--json", "--events"]])
def test_closed_streams(ferry, tree, tmp_path, closed, options):
    """Nothing of ours becomes a standard stream either: what is said never lands in a file."""
    line = f"{{ {ferry.line('transfer', tree, 'copy', *options)}; echo $? >code; }} {closed}"
    done = ferry.raw(["bash", "-c", line])
    assert "Traceback" not in done.stderr
    assert (tmp_path / "code").read_text() == "0\n", done.stderr
    assert subprocess.run(["diff", "-r", tree, tmp_path / "copy"], check=False).returncode == 0
    for path in (tmp_path / "copy.scopeferry").iterdir():
        assert b"exit 0" not in path.read_bytes() or path.name.startswith("receipt")


def test_a_reader_that_leaves(ferry, make_tree, tmp_path):
    """EPIPE in mid-run, on both streams."""
    tree = make_tree(tmp_path / "run7", files=300, size=10)
    started = ferry.start("transfer", tree, "copy", "--events", "--interval", "10ms")
    started.stdout.readline()
    started.stdout.close()
    started.stderr.close()
    assert started.wait(timeout=60) == 0
    started.stdout = started.stderr = None
    assert subprocess.run(["diff", "-r", tree, tmp_path / "copy"], check=False).returncode == 0


def test_a_pipe_holds_no_control_characters(ferry, make_tree, tmp_path):
    tree = make_tree(tmp_path / "細胞", files=20, size=100_000)
    done = ferry("transfer", tree, "copy", "--limit", "1MB", "--interval", "200ms")
    assert done.returncode == 0
    assert not CONTROL.search(done.stderr)
    lines = done.stderr.splitlines()
    assert len(lines) >= 4
    assert all(line.startswith(("細胞  copied ", "exit 0")) for line in lines)
    said = [tuple(map(int, re.findall(r"(\d+) %", line))) for line in lines[:-1]]
    assert said == sorted(said)
    assert all(verified <= copied for copied, verified in said)
    assert said[-1] == (100, 100)
    assert all(
        copied < 100
        for (copied, _), line in zip(said, lines, strict=False)
        if "20 of 20" not in line and " of " in line
    )


def test_ascii_where_the_encoding_asks(ferry, make_tree, tmp_path):
    tree = make_tree(tmp_path / "細胞", files=2, size=10)
    done = ferry("transfer", tree, "copy", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert done.stderr.isascii()
    assert "\\u7d30\\u80de  copied 100 %" in done.stderr


def test_quiet(ferry, tree):
    done = ferry("transfer", tree, "copy", "--quiet")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("exit 0: done and verified")


def test_events_to_a_file_and_before_the_paths(ferry, tree, tmp_path):
    assert ferry("transfer", "--events", tree, "copy").stdout.startswith('{"event": "started"')
    done = ferry("transfer", tree, "copy2", "--events", "log.jsonl", "--json")
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    run = json.loads(done.stdout)["run"]
    assert {event["run"] for event in events} == {run}
    assert [event["event"] for event in events].count("done") == 5
    assert events[-1] | {"event": "finished", "exit_code": 0} == events[-1]
    bad = ferry("transfer", tree, "copy3", "--events", "no/where.jsonl")
    assert bad.returncode == 2
    assert bad.stderr.startswith("exit 2: --events: no/where.jsonl: No such file or directory (SF-105)")
    assert not (tmp_path / "copy3").exists()


def test_events_are_never_written_into_what_is_no_log_of_them(ferry, tmp_path):
    """Before a path `--events` takes it for its FILE: of `verify --events DST SRC` that is the copy."""
    (tmp_path / "one.tif").write_bytes(b"precious")
    assert ferry("transfer", "one.tif", "copy.tif").returncode == 0
    done = ferry("verify", "--events", "copy.tif", "one.tif")
    assert done.returncode == 2
    assert done.stderr.startswith("exit 2: --events: something else stands in copy.tif (SF-105)")
    assert (tmp_path / "copy.tif").read_bytes() == b"precious"
    for lines in (3, 6):  # a log of events is gone on with
        assert ferry("verify", "copy.tif", "one.tif", "--events=log").returncode == 0
        assert len((tmp_path / "log").read_text().splitlines()) >= lines


def test_a_full_disk_under_the_log(ferry, tree):
    done = ferry("transfer", tree, "copy", "--events", "/dev/full")
    assert done.returncode == 0
    assert os.path.exists(ferry.cwd / "copy/pos0/0000.tif")


def test_a_walk_of_one_large_folder_is_interrupted_too(tmp_path):
    from scopeferry.config import TransferSettings
    from scopeferry.errors import Interrupted
    from scopeferry.jobs.transfer import TransferJob
    from scopeferry.kernel.task import Control

    (tmp_path / "run7").mkdir()
    for number in range(9000):
        os.close(os.open(tmp_path / f"run7/{number}", os.O_CREAT | os.O_WRONLY))
    control = Control()
    job = TransferJob(str(tmp_path / "run7"), str(tmp_path / "copy"), TransferSettings(), control)
    told = job.run()
    assert next(told).kind == "started"
    assert next(told) is None  # the folder is not through yet
    control.stop(Interrupted("enough"))
    list(told)
    assert (job.result.exit_code, job.result.copied) == (130, 0)
    assert not list((tmp_path / "copy").iterdir())
