"""Every check fails the demo when what it shows is not so: no accident happens, or a command fails to see it."""

from __future__ import annotations

import os

import pytest

from scopeferry.jobs import demo as job
from scopeferry.kernel.publish import part_name
from scopeferry.testing.runs import make_run

IMAGE = "raw_data/B3/GFP_p7_t1.tif"
TABLE = "analysis/A1/cells_p0.csv"
TORN = f"""
        (copy / {IMAGE!r}).parent.mkdir(parents=True)
        (copy / {IMAGE!r}).write_bytes((source / {IMAGE!r}).read_bytes()[:30000])
"""

#: (a command of the demo, its nth call, what happens there instead or first) -> the check that must notice.
SABOTAGES = {
    "killed": ("transfer", 1, "os._exit(0)"),
    "nothing torn": ("transfer", 1, TORN),
    "finished": ("transfer", 2, "os._exit(3)"),
    "complete": ("transfer", 2, "print('{\"bytes\": 0}', flush=True); os._exit(0)"),
    "sent once": ("transfer", 2, "next(copy.rglob('*.tif')).unlink()"),
    "clean refuses": ("clean", 1, "os._exit(0)"),
    "clean touches nothing": ("clean", 1, f"(source / {TABLE!r}).unlink(); os._exit(5)"),
    "verify finds": ("verify", 1, "os._exit(0)"),
    "verify names": (
        "verify",
        1,
        f'print(\'{{"problems": [{{"code": "SF-401", "path": "{TABLE}"}}]}}\', flush=True); os._exit(4)',
    ),
    "repair ends": ("repair", 1, "os._exit(3)"),
    "repair heals": ("repair", 1, "os._exit(0)"),
    "repair sends one": (
        "repair",
        1,
        f"import shutil; shutil.copy2(copy / {TABLE!r}, 'x'); os.replace('x', copy / {TABLE!r})",
    ),
    "damage kept": (
        "repair",
        1,
        "import atexit, shutil; atexit.register(shutil.rmtree, 'archive/run7.scopeferry/set_aside')",
    ),
    "verify agrees": ("verify", 2, "os._exit(4)"),
    "clean plans": ("clean", 2, "os._exit(5)"),
    "clean deletes nothing": ("clean", 2, f"(source / {TABLE!r}).unlink(); print('ok', flush=True); os._exit(0)"),
}


def failed(result) -> str:
    """The check that ended a demo."""
    assert result.exit_code == 1
    assert [problem.code for problem in result.problems] == ["SF-306"]
    checks = result.details["checks"]
    assert [check["ok"] for check in checks] == [True] * (len(checks) - 1) + [False]
    assert checks[-1]["name"] in result.problems[0].message
    return checks[-1]["name"]


SAMPLE = {"nothing torn", "sent once", "verify names"}  # of the quick tests


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
        ("make", "killed"),
        pytest.param("kill", "sent once", marks=pytest.mark.slow),
        ("flip", "clean refuses"),
        pytest.param("heal", "verify agrees", marks=pytest.mark.slow),
    ],
)
def test_a_step_that_is_left_out_is_noticed(play, step, check):
    assert failed(play(steps=[other for other in job.STEPS if other.name != step])) == check


@pytest.mark.slow
def test_a_copy_that_was_not_finished_is_noticed(play):
    result = play(steps=[step for step in job.STEPS if step.name != "go on"])
    assert (result.exit_code, [problem.code for problem in result.problems]) == (1, ["SF-306"])


@pytest.mark.slow
def test_more_in_flight_than_there_may_be_is_noticed(play):
    def leave_more(stage):
        name = part_name(TABLE.encode(), "00000000")
        folder = stage.at(f"{job.COPY}/{os.path.dirname(TABLE)}")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, name), "wb") as file:
            file.truncate(job.WORKERS * job.BATCH_BYTES + 1)
        stage.at_kill = stage.copy()

    first, second, *rest = job.STEPS
    steps = [first, second, job.Step("leave", "More is left.", leave_more), *rest]
    assert failed(play(steps=steps)) == "sent twice"


def test_a_run_that_is_not_what_it_was_to_be_is_noticed(play, monkeypatch):
    def spoiled(root, **how):
        truth = make_run(root, **how)
        with open(os.path.join(root, TABLE), "ab") as file:
            file.write(b"x")
        return truth

    monkeypatch.setattr(job, "make_run", spoiled)
    assert failed(play()) == "made"


@pytest.mark.parametrize("flip", [lambda *_, **__: None, lambda path, *_, **__: os.utime(path)])
def test_a_bit_that_does_not_flip_unseen_is_noticed(play, monkeypatch, flip):
    monkeypatch.setattr(job, "flip", flip)
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
    assert (tmp_path / "demo/archive/run7").is_dir()
    assert (tmp_path / "demo/output/4-verify.err").is_file()


@pytest.mark.slow
def test_a_command_that_hangs_is_noticed_and_ended(play, broken, monkeypatch, processes, tmp_path):
    monkeypatch.setattr("scopeferry.testing.stage.PATIENCE_S", 5.0)
    broken("verify", 1, "import time; time.sleep(1000)")
    result = play()
    assert "verify has not ended" in result.problems[0].message
    assert processes(tmp_path / "demo") == {}
