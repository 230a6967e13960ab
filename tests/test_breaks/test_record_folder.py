"""Nothing is written or removed through a link that stands where a record folder should be."""

import json
import os
import subprocess

import pytest
from tests.test_breaks.conftest import COMMAND


@pytest.mark.parametrize("command", ["transfer", "verify", "repair"])
def test_a_link_for_a_record_folder_is_refused(program, small_files, tmp_path, command):
    src, dst = small_files(tmp_path / "src", 2), tmp_path / "dst"
    program.run("transfer", src, dst)
    (tmp_path / "dst.scopeferry").rename(tmp_path / "theirs")
    (tmp_path / "theirs/manifest.theirs.part").write_text("mine")
    before = {path: path.read_bytes() for path in (tmp_path / "theirs").rglob("*")}
    (tmp_path / "dst.scopeferry").symlink_to("theirs")
    found = program.run(command, *([dst] if command == "verify" else [src, dst]))
    assert (found["exit_code"], found["codes"]) == (5, {"SF-504"})
    assert {path: path.read_bytes() for path in (tmp_path / "theirs").rglob("*")} == before


def test_the_record_of_a_zarr_on_a_drive_never_lies_in_it(program, tmp_path, drive):
    src = tmp_path / "src"
    src.mkdir()
    (src / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group"}))
    first, second = (program.run("transfer", src, drive) for _ in range(2))
    assert (first["exit_code"], second["exit_code"]) == (0, 0)
    assert first["record"] == second["record"]
    assert os.listdir(drive) == ["zarr.json"]


def test_the_record_stays_where_the_first_run_put_it_when_a_file_has_its_name(program, small_files, tmp_path):
    src, dst = small_files(tmp_path / "src", 2), tmp_path / "dst"
    (tmp_path / "dst.scopeferry").write_text("somebody's")
    first, second = (program.run("transfer", src, dst) for _ in range(2))
    assert (first["exit_code"], second["exit_code"]) == (0, 0)
    assert first["record"] == second["record"]


def test_a_state_folder_that_is_relative_is_none(program, small_files, tmp_path, monkeypatch):
    src, dst = small_files(tmp_path / "src", 2), tmp_path / "dst"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    assert program.run("transfer", src, dst)["exit_code"] == 0
    assert (tmp_path / "home/.local/state/scopeferry/journals").is_dir()


@pytest.mark.parametrize("words", [["transfer", "src", "dst"], ["verify", "dst"], ["clean", "src", "--copy", "dst"]])
def test_where_we_are_is_gone(tmp_path, words):
    (tmp_path / "here").mkdir()
    absolute = [f"{tmp_path}/{word}" if word == "src" else word for word in words]
    (tmp_path / "src").mkdir()
    script = f"cd {tmp_path}/here && rmdir {tmp_path}/here && exec {COMMAND} {' '.join(absolute)}"
    done = subprocess.run(["sh", "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "SF-302" not in done.stderr


def test_an_empty_name_is_not_the_current_folder(tmp_path, small_files, monkeypatch):
    src = small_files(tmp_path / "src", 1)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    done = subprocess.run([COMMAND, "transfer", src, ""], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert not os.listdir(tmp_path / "here")
    assert not (tmp_path / "here.scopeferry").exists()


def test_records_at_the_root_of_a_drive_are_no_extra(program, small_files, tmp_path, drive):
    src = small_files(tmp_path / "src", 2)
    first, second = (program.run("transfer", src, drive) for _ in range(2))
    assert (drive / ".scopeferry").is_dir()
    assert [(found["exit_code"], found["extras"]) for found in (first, second)] == [(0, 0), (0, 0)]
