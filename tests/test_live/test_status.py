"""`status` of a target: what it waits for while it runs; why it ended, and what is there, when it has."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).with_name("scopeferry"))

ZARRAY = {"zarr_format": 2, "shape": [3], "chunks": [1], "dtype": "|u1", "compressor": None, "fill_value": 0,
          "order": "C", "filters": None}  # fmt: skip


@pytest.fixture
def store(tmp_path):
    """An array with one chunk of three."""
    folder = tmp_path / "a.zarr"
    folder.mkdir()
    (folder / ".zarray").write_text(json.dumps(ZARRAY))
    (folder / "0").write_bytes(b"a")
    return folder


def status(*words: str) -> str:
    return subprocess.run([COMMAND, "status", *words], check=True, capture_output=True, text=True).stdout


def newest() -> dict:
    return json.loads(status("--json"))["runs"][0]


def test_of_one_that_has_ended(store, tmp_path, state):
    (store / "complete").touch()
    subprocess.run([COMMAND, "live", store, tmp_path / "copy", "--quiet"], check=True, capture_output=True)
    now = newest()["progress"]
    assert [(one["kind"], one["detail"]) for one in now["evidence"]] == [("marker", "complete")]
    assert [(array["written"], array["missing_ranges"]) for array in now["arrays"]] == [(1, ["axis 0 1-2"])]
    shown = status(newest()["run"])
    assert "    marker: complete\n" in shown
    assert "    array .  grid 3 chunks  written 1  empty 0  missing 2 (axis 0 1-2)\n" in shown


def test_of_one_that_runs(store, tmp_path, state):
    words = [COMMAND, "live", store, tmp_path / "copy", "--quiet"]
    with subprocess.Popen(words, stderr=subprocess.PIPE) as running:
        try:
            deadline = time.monotonic() + 60
            while not (tmp_path / "copy/0").exists() or newest()["progress"].get("copied_bytes") != 132:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert newest()["status"] == "running"
            assert "file 'complete'" in newest()["progress"]["awaited"][0]
            assert "acquired 132 B  copied 132 B" in status()
            assert "to end: file 'complete'" in status(newest()["run"])
        finally:
            running.send_signal(signal.SIGTERM)
            assert running.wait(60) == 130
