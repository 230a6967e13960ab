"""tests/conftest.py itself: skips that must not be, files left open, the user's state folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
ALONE_AND_IN_WORKERS = pytest.mark.parametrize(
    "args", [pytest.param((), id="alone"), pytest.param(("-n", "2"), id="workers", marks=pytest.mark.slow)]
)

SKIPS = """
import pytest
def test_tool(): pytest.skip("needs rclone: apt install rclone")
@pytest.mark.skipif(True, reason="person: Windows")
def test_system(): ...
def test_samples(samples): ...
@pytest.mark.xfail(reason="known", strict=True)
def test_known(): assert False
"""
LEAVES = """
import socket, sys
def test_closes():
    with open(__file__) as file: file.read()
def test_leaves(): sys.kept = open(__file__)
def test_leaves_socket(): sys.kept_too = socket.socket()
def test_after(): ...
"""
STATE = """
import os, pathlib
def test_state(state):
    assert os.environ["XDG_STATE_HOME"] == str(state)
    assert pathlib.Path.home() in state.parents
    assert not list(pathlib.Path.home().iterdir())
"""


def pytest_of(folder: Path, text: str, *args: str, **env: str) -> tuple[int, str]:
    shutil.copy(CONFTEST, folder)
    (folder / "test_it.py").write_text(text)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "SCOPEFERRY", "COV"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *args, "."]
    ran = subprocess.run(command, cwd=folder, env=kept | env, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout + ran.stderr


@ALONE_AND_IN_WORKERS
def test_skips_are_listed_with_what_would_enable_them(tmp_path, args):
    code, out = pytest_of(tmp_path, SKIPS, *args)
    assert code == 0
    assert "3 skipped, 1 xfailed" in out
    assert "needs rclone: apt install rclone" in out
    assert "samples: set SCOPEFERRY_SAMPLES" in out


@ALONE_AND_IN_WORKERS
def test_a_skip_is_an_error_where_all_is_required(tmp_path, args):
    code, out = pytest_of(tmp_path, SKIPS, *args, SCOPEFERRY_REQUIRE="all")
    assert code == 1
    assert "1 failed, 2 skipped, 1 xfailed" in out
    assert "skipped although SCOPEFERRY_REQUIRE=all: needs rclone" in out


@pytest.mark.parametrize("text", ["pytest.importorskip('no_such_module')", "pytest.skip('x', allow_module_level=True)"])
def test_a_skipped_module_is_an_error_where_all_is_required(tmp_path, text):
    text = f"import pytest\n{text}\ndef test_it(): ..."
    assert pytest_of(tmp_path, text)[0] == 5
    code, out = pytest_of(tmp_path, text, SCOPEFERRY_REQUIRE="all")
    assert code in {1, 2}
    assert "skipped although" in out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="person: Linux has /proc/self/fd")
@ALONE_AND_IN_WORKERS
def test_a_file_left_open_fails_its_test_and_no_other(tmp_path, args):
    code, out = pytest_of(tmp_path, LEAVES, *args)
    assert code == 1
    assert "4 passed, 2 errors" in out
    assert "left open: " in out
    assert "ERROR test_it.py::test_leaves - " in out
    assert "ERROR test_it.py::test_leaves_socket - " in out


def test_tests_have_an_empty_home_of_their_own(tmp_path):
    code, out = pytest_of(tmp_path, STATE)
    assert code == 0, out
