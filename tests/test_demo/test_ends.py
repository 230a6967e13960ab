"""However the demo ends, no process of it is left; if it is stopped, nothing else is either."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="person: looks into /proc")

MOMENTS = [
    "1. ",
    "$ scopeferry live",
    "$ scopeferry inspect",
    "ok  it died",
    "3. ",
    "$ scopeferry clean",
    "$ scopeferry verify",
    "7. ",
]
SAMPLE = {"$ scopeferry inspect", "3. "}  # of the quick tests


def follow(process: subprocess.Popen[str], marker: str) -> None:
    """Read what it shows until a line has the marker."""
    for line in process.stdout:
        if marker in line:
            return
    pytest.fail(f"never shown: {marker}: {process.stderr.read()}")


def gone(processes, folder) -> None:
    """No process works in the folder, or soon none does: a killed one needs a moment to vanish."""
    deadline = time.monotonic() + 300
    while left := {number: words for number, words in processes(folder).items() if number != os.getpid()}:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


@pytest.fixture
def started(command, tmp_path):
    """A demo that runs in the folder `demo`."""
    began = []

    def start(*options: object) -> subprocess.Popen[str]:
        words = ("--to", tmp_path / "demo", *options)
        began.append(subprocess.Popen(**command(*words, start_new_session=True)))
        return began[-1]

    yield start
    for process in began:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "moment",
    [moment if moment in SAMPLE else pytest.param(moment, marks=pytest.mark.slow) for moment in MOMENTS],
)
def test_killed_it_leaves_no_process(started, processes, tmp_path, moment):
    process = started()
    follow(process, moment)
    process.kill()
    process.wait()
    gone(processes, tmp_path)


def test_a_child_ends_with_it(started, processes, tmp_path):
    process = started("--speed", "0.01")
    follow(process, "$ scopeferry live")
    while not list((tmp_path / "demo/archive").glob("**/zarr.json")):
        assert process.poll() is None
        time.sleep(0.01)
    assert [" live " in words for words in processes(tmp_path / "demo").values()] == [True]
    assert sum("serve.py" in words for words in processes(tmp_path).values()) == 1
    process.kill()
    process.wait()
    gone(processes, tmp_path)


@pytest.mark.parametrize("made", [True, False], ids=["folder made", "folder given"])
@pytest.mark.parametrize("to_all", [True, False], ids=["ctrl-c", "demo alone"])
@pytest.mark.parametrize("moment", ["$ scopeferry live", pytest.param("$ scopeferry clean", marks=pytest.mark.slow)])
def test_stopped_it_leaves_nothing(started, processes, tmp_path, moment, to_all, made):
    if not made:
        (tmp_path / "demo").mkdir()
    process = started()
    follow(process, moment)
    send = os.killpg if to_all else os.kill
    send(process.pid, signal.SIGINT if to_all else signal.SIGTERM)
    process.stdout.read()
    assert process.wait(300) == 130, process.stderr.read()
    assert "exit 130" in process.stderr.read().splitlines()[-1]
    assert processes(tmp_path) == {} or set(processes(tmp_path)) == {os.getpid()}
    assert [path.name for path in tmp_path.iterdir()] == ([] if made else ["demo"])
    assert made or not any((tmp_path / "demo").iterdir())
