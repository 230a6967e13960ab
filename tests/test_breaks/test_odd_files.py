"""What is no file where a file of settings may lie is not waited for."""

import os
import subprocess

import pytest
from tests.test_breaks.conftest import COMMAND


@pytest.fixture
def here(tmp_path, monkeypatch, small_files):
    small_files(tmp_path / "src", 1)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def transfer(folder):
    command = [COMMAND, "transfer", folder / "src", folder / "dst"]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_settings_that_are_no_file_are_refused(here, make):
    make("scopeferry.toml")
    done = transfer(here)
    assert (done.returncode, "no regular file" in done.stderr) == (2, True)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_others_keep_under_the_name_of_variables_is_left_alone(here, make):
    make(".env")
    assert transfer(here).returncode == 0
