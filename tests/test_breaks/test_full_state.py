"""The state folder is full: what a check finds does not hang on what the journal can note."""

import shutil
import subprocess

import pytest


@pytest.fixture
def state(tmp_path, monkeypatch):
    """A state folder on a small file system of its own."""
    (tmp_path / "state").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path / "state"]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs to mount")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield tmp_path / "state"
    subprocess.run(["umount", tmp_path / "state"], check=True)


def fill(folder):
    with open("/dev/zero", "rb") as zeros, open(folder / "fill", "wb", buffering=0) as file:
        assert subprocess.run(["cat"], check=False, stdin=zeros, stdout=file, stderr=subprocess.PIPE).returncode


def test_a_check_goes_on_and_says_that_its_date_is_not_noted(program, small_files, tmp_path, state):
    src, dst = small_files(tmp_path / "src", 60), tmp_path / "dst"
    assert program.run("transfer", src, dst)["exit_code"] == 0
    fill(state)
    found = program.run("verify", dst, "--digest", "sha256")
    assert (found["exit_code"], found["verified"], found["codes"]) == (0, 60, {"SF-917"})
    assert program.run("clean", src, "--copy", dst)["exit_code"] == 0
    (dst / "f0/3.tif").write_bytes(b"damaged")
    found = program.run("verify", dst)
    assert (found["exit_code"], found["verified"]) == (4, 59)


def test_no_journal_can_be_made_for_a_check(program, small_files, tmp_path, state):
    src, dst = small_files(tmp_path / "src", 60), tmp_path / "dst"
    assert program.run("transfer", src, dst)["exit_code"] == 0
    shutil.rmtree(state / "scopeferry")
    fill(state)
    assert program.run("verify", dst)["exit_code"] == 0
