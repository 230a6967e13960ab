"""`inspect`: the verdict of `live` and how it is known; nothing is copied or changed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import scopeferry

COMMAND = str(Path(sys.executable).with_name("scopeferry"))
ZARRAY = {"zarr_format": 2, "shape": [4, 2], "chunks": [1, 2], "dtype": "<u2", "compressor": None, "fill_value": 0,
          "order": "C", "filters": None, "dimension_separator": "."}  # fmt: skip


@pytest.fixture
def store(tmp_path, state):
    """A flat array of four chunks, of which three are there."""
    root = tmp_path / "a.zarr"
    root.mkdir()
    (root / ".zarray").write_text(json.dumps(ZARRAY))
    for chunk in range(3):
        (root / f"{chunk}.0").write_bytes(bytes(4))
    return root


def inspect(*arguments):
    run = subprocess.run(
        [COMMAND, "inspect", *map(str, arguments), "--json"], check=False, capture_output=True, timeout=60
    )
    assert b"Traceback" not in run.stderr
    found = json.loads(run.stdout)
    assert found["exit_code"] == run.returncode
    return found


def test_a_marker_ends_it_and_missing_chunks_are_named(store):
    (store / "complete").write_text("")
    found = inspect(store)
    assert (found["exit_code"], found["state"]) == (0, "finished")
    assert [one["kind"] for one in found["evidence"]] == ["marker"]
    assert found["arrays"] == [
        {"path": "", "grid": [4, 1], "unit": "chunk", "written": 3, "empty": 0, "missing": 1,
         "missing_ranges": ["axis 0 3"]}]  # fmt: skip


def test_without_evidence_it_is_not_finished_and_what_is_awaited_is_said(store):
    found = inspect(store)
    assert (found["exit_code"], found["state"]) == (6, "running")  # it has just been written
    assert any("complete" in text for text in found["awaited"])


def test_what_is_not_there_is_wrong_usage(tmp_path, state):
    assert inspect(tmp_path / "nothing")["exit_code"] == 2


def test_nothing_is_written(store):
    def seen():
        return {path: path.lstat() for path in store.parent.rglob("*")}

    before = seen()
    result = scopeferry.inspect(store)
    after = seen()
    assert result.items == 4
    assert before.keys() == after.keys()
    for path, found in before.items():
        assert (found.st_mtime_ns, found.st_ctime_ns, found.st_size) == (
            after[path].st_mtime_ns, after[path].st_ctime_ns, after[path].st_size)  # fmt: skip


HOSTILE = [
    b"\xff\xfe",
    b"{",
    b"[]",
    b'{"zarr_format": 2, "shape": [1e400], "chunks": [0]}',
    b'{"zarr_format": 3, "node_type": "array", "shape": "x"}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("raw", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_metadata_are_no_traceback(tmp_path, state, raw):
    root = tmp_path / "h.zarr"
    root.mkdir()
    (root / "zarr.json").write_bytes(raw)
    assert inspect(root)["exit_code"] == 6


def test_a_fifo_named_as_metadata_is_not_opened(tmp_path, state):
    root = tmp_path / "f.zarr"
    root.mkdir()
    os.mkfifo(root / "zarr.json")
    found = inspect(root, "--finish", "now")
    assert found["exit_code"] == 0
    assert {problem["code"] for problem in found["problems"]} == {"SF-901"}


def test_a_rehearsal_of_live_writes_nothing(store, tmp_path):
    run = subprocess.run(
        [COMMAND, "live", store, tmp_path / "sub/copy", "--dry-run", "--json"],
        check=False,
        capture_output=True,
        timeout=60,
    )
    found = json.loads(run.stdout)
    assert (run.returncode, found["state"], found["targets"][0]["arrays"][0]["written"]) == (0, "planned", 3)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == ["a.zarr"]


def test_transfer_asks_first_whether_it_is_finished(store, tmp_path):
    def transfer(*options):
        run = [COMMAND, "transfer", store, tmp_path / "copy", "--json", *options]
        return json.loads(subprocess.run(run, check=False, capture_output=True, timeout=60).stdout)

    assert transfer("--finish", "marker=done", "--wait", "1s")["exit_code"] == 6
    assert not (tmp_path / "copy").exists()
    (store / "done").write_text("")
    assert transfer("--finish", "marker=done")["exit_code"] == 0
    end = json.loads((tmp_path / "copy.scopeferry/0001.jsonl").read_text().splitlines()[-1])
    assert end["finish"]["evidence"] == "marker: done"


@pytest.mark.parametrize(("digest", "code"), [(None, 0), ("right", 0), ("wrong", 6)])
def test_a_list_of_files_declares_the_end_when_all_are_there_and_equal(store, digest, code):
    import hashlib

    names = ["0.0", "1.0", "2.0"]
    right = hashlib.sha256(bytes(4)).hexdigest()
    lines = {
        None: names,
        "right": [f"{right}  {name}" for name in names],
        "wrong": [f"{right[::-1]}  {n}" for n in names],
    }
    (store / "SUMS").write_text("\n".join(lines[digest]) + "\n")
    found = scopeferry.jobs.inspect.InspectJob(
        str(store),
        scopeferry.Target(str(store), "x", finish=["manifest=SUMS"]),
        wait_s=3.0 if digest == "right" else 1.0,
    )
    for _ in found.run():
        pass
    assert found.result.exit_code == code
