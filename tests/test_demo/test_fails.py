"""Every check fails the demo when what it shows is not so: no accident happens, or a command fails to see it."""

from __future__ import annotations

import json
import os

import pytest

from scopeferry.jobs import demo as job
from scopeferry.kernel.publish import part_name
from scopeferry.testing.microscope import Frame, Microscope
from scopeferry.testing.trees import flip

SHARD = Frame(5, 7, 0).shard  # the last one
OTHER = Frame(0, 0, 0).shard
WRONG = f"""
        for shard in {[Frame(well, 0, 0).shard for well in range(4)]}:
            (copy / shard).parent.mkdir(parents=True)
            (copy / shard).write_bytes(b"x" * 262180)
        os._exit(0)
"""
#: In a thread, once so many shards have arrived.
ONCE = """
        import threading, time
        def later():
            while len(list(copy.rglob("c/*/0/0/0"))) < {number}:
                time.sleep(0.005)
            {then}
        threading.Thread(target=later, daemon=True).start()
"""
#: Before the sixth shard gets its name.
TORN = f"""
        from scopeferry.kernel import _posix
        named = _posix.rename_new
        def torn(*names):
            if len(list(copy.rglob("c/*/0/0/0"))) + len(list(copy.rglob("c/*/1/0/0"))) == 5:
                (copy / {SHARD!r}).parent.mkdir(parents=True)
                (copy / {SHARD!r}).write_bytes(b"x" * 30000)
            named(*names)
        _posix.rename_new = torn
"""


def answers(**envelope: object) -> str:
    """The command does nothing, says this and ends with 0."""
    return f"print({json.dumps(envelope)!r}, flush=True); os._exit(0)"


def ended_on(name: str) -> str:
    """As `answers`: it is over, as this file says."""
    return answers(targets=[{"evidence": [{"verdict": "finished", "detail": name}]}])


#: (a command of the demo, its nth call, what happens there instead or first) -> the check that must notice.
SABOTAGES = {
    "inspect runs": ("inspect", 1, "os._exit(0)"),
    "opens": ("live", 1, WRONG),
    "killed": ("live", 1, ONCE.format(number=4, then="os._exit(0)")),
    "nothing torn": ("live", 1, TORN),
    "finished": ("live", 2, "os._exit(3)"),
    "evidence": ("live", 2, ended_on("complete")),
    "complete": ("live", 2, ended_on("complete.json")),
    "sent once": ("live", 2, "next(copy.rglob('c/0/0/0/0')).unlink()"),
    "missing": ("inspect", 2, "os._exit(0)"),
    "empty": (
        "inspect",
        2,
        answers(arrays=[{"path": "B/3/0/0", "missing": 1, "empty": 0, "missing_ranges": ["t 3"]}]),
    ),
    "clean refuses": ("clean", 1, "os._exit(0)"),
    "clean touches nothing": ("clean", 1, f"(source / {OTHER!r}).unlink(); os._exit(5)"),
    "verify finds": ("verify", 1, "os._exit(0)"),
    "verify names": (
        "verify",
        1,
        f'print(\'{{"problems": [{{"code": "SF-401", "path": "{OTHER}"}}]}}\', flush=True); os._exit(4)',
    ),
    "repair ends": ("repair", 1, "os._exit(3)"),
    "repair heals": ("repair", 1, "os._exit(0)"),
    "repair sends one": (
        "repair",
        1,
        f"import shutil; shutil.copy2(copy / {OTHER!r}, 'x'); os.replace('x', copy / {OTHER!r})",
    ),
    "damage kept": (
        "repair",
        1,
        "import atexit, shutil; atexit.register(shutil.rmtree, 'archive/plate.ome.zarr.scopeferry/set_aside')",
    ),
    "verify agrees": ("verify", 2, "os._exit(4)"),
    "clean plans": ("clean", 2, "os._exit(5)"),
    "clean deletes nothing": ("clean", 2, f"(source / {OTHER!r}).unlink(); print('ok', flush=True); os._exit(0)"),
}


def failed(result) -> str:
    """The check that ended a demo."""
    assert result.exit_code == 1
    assert [problem.code for problem in result.problems] == ["SF-306"]
    checks = result.details["checks"]
    assert [check["ok"] for check in checks] == [True] * (len(checks) - 1) + [False]
    assert checks[-1]["name"] in result.problems[0].message
    return checks[-1]["name"]


SAMPLE = {"opens", "nothing torn"}  # of the quick tests


@pytest.mark.parametrize(
    "check", [pytest.param(name, marks=[] if name in SAMPLE else pytest.mark.slow) for name in SABOTAGES]
)
def test_a_command_that_does_wrong_is_noticed(play, broken, check):
    fired = broken(*SABOTAGES[check])
    result = play()
    assert fired()
    assert failed(result) == check


@pytest.mark.parametrize(
    ("step", "check"),
    [
        pytest.param("kill", "finished", marks=pytest.mark.slow),
        ("flip", "clean refuses"),
        pytest.param("heal", "verify agrees", marks=pytest.mark.slow),
    ],
)
def test_a_step_that_is_left_out_is_noticed(play, step, check):
    assert failed(play(steps=[other for other in job.STEPS if other.name != step])) == check


@pytest.mark.slow
@pytest.mark.parametrize("step", ["begin", "go on"])
def test_a_step_without_which_there_is_nothing_is_noticed(play, step):
    result = play(steps=[other for other in job.STEPS if other.name != step])
    assert (result.exit_code, [problem.code for problem in result.problems]) == (1, ["SF-306"])


@pytest.mark.slow
def test_more_in_flight_than_there_may_be_is_noticed(play):
    def leave_more(stage):
        name = part_name(OTHER.encode(), "00000000")
        folder = stage.at(f"{job.COPY}/{os.path.dirname(OTHER)}")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, name), "wb") as file:
            file.truncate(job.WORKERS * job.BATCH_BYTES + 1)
        stage.at_kill = stage.copy()

    first, second, *rest = job.STEPS
    steps = [first, second, job.Step("leave", "More is left.", leave_more), *rest]
    assert failed(play(steps=steps)) == "sent twice"


@pytest.mark.slow
def test_a_plate_that_is_not_what_it_was_to_be_is_noticed(play, monkeypatch):
    class Spoiled(Microscope):
        def finish(self):
            super().finish()
            flip(os.path.join(self.root, OTHER), 5000)

    monkeypatch.setattr(job, "Microscope", Spoiled)
    assert failed(play()) == "made"


@pytest.mark.slow
def test_a_microscope_that_dies_is_noticed(play, monkeypatch):
    class Dying(Microscope):
        def finish(self):
            self._writer.kill()
            super().finish()

    monkeypatch.setattr(job, "Microscope", Dying)
    result = play()
    assert result.exit_code == 1
    assert "the microscope failed in step 'go on'" in result.problems[0].message


@pytest.mark.slow
@pytest.mark.parametrize("done", [lambda *_, **__: None, lambda path, *_, **__: os.utime(path)])
def test_a_bit_that_does_not_flip_unseen_is_noticed(play, monkeypatch, done):
    monkeypatch.setattr(job, "flip", done)
    assert failed(play()) == "flipped"


def test_each_check_has_been_made_to_fail(play):
    result = play()
    assert result.ok, result.problems
    names = [check["name"] for check in result.details["checks"]]
    assert sorted(names) == sorted([*SABOTAGES, "made", "sent twice", "flipped"])


def test_what_a_failed_demo_leaves_is_kept(play, broken, tmp_path):
    broken("verify", 1, "os._exit(0)")
    result = play()
    assert str(tmp_path / "demo") in result.problems[0].hint
    assert (tmp_path / "demo/archive/plate.ome.zarr").is_dir()
    assert (tmp_path / "demo/output/6-verify.err").is_file()


@pytest.mark.slow
def test_a_command_that_hangs_is_noticed_and_ended(play, broken, monkeypatch, processes, tmp_path):
    monkeypatch.setattr("scopeferry.testing.stage.PATIENCE_S", 5.0)
    broken("verify", 1, "import time; time.sleep(1000)")
    result = play()
    assert "verify has not ended" in result.problems[0].message
    assert processes(tmp_path / "demo") == {}
