"""The destination is full: what is said of it, and of what was never copied for it."""

import os
import subprocess

import pytest

pytestmark = pytest.mark.parametrize("drive", ["1m"], indirect=True)


def test_a_version_that_did_not_fit_and_has_vanished_is_named(program, small_files, tmp_path, drive):
    src = small_files(tmp_path / "src", 2)
    assert program.run("transfer", src, drive / "copy")["exit_code"] == 0
    (src / "f0/1.tif").write_bytes(os.urandom(1 << 20))
    assert program.run("transfer", src, drive / "copy")["exit_code"] == 7
    (src / "f0/1.tif").unlink()
    foreseen, found = (program.run("transfer", src, drive / "copy", *more) for more in (["--dry-run"], []))
    assert (found["exit_code"], found["codes"]) == (3, {"SF-202"})
    assert foreseen["exit_code"] == 3
    later = program.run("transfer", src, drive / "copy")
    assert (later["exit_code"], later["codes"]) == (0, {"SF-903"})


@pytest.mark.parametrize("command", ["verify", "repair"])
def test_a_record_that_cannot_be_written_is_no_space(program, small_files, tmp_path, drive, command):
    src = small_files(tmp_path / "src", 60)
    assert program.run("transfer", src, drive / "copy")["exit_code"] == 0
    (drive / "copy/f0/1.tif").write_bytes(b"")
    with open("/dev/zero", "rb") as zeros, open(drive / "fill", "wb", buffering=0) as file:
        subprocess.run(["cat"], check=False, stdin=zeros, stdout=file, stderr=subprocess.PIPE)
    words = ["verify", drive / "copy", "--digest", "sha256"] if command == "verify" else ["repair", src, drive / "copy"]
    found = program.run(*words)
    assert (found["exit_code"], "SF-313" in found["codes"]) == (7, True)
