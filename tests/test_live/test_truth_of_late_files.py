"""What a walk at the end finds, or an earlier run has copied, counts as there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).with_name("scopeferry"))
ZARRAY = {"zarr_format": 2, "shape": [3], "chunks": [1], "dtype": "|u1", "compressor": None, "fill_value": 0,
          "order": "C", "filters": None}  # fmt: skip


def live(*arguments):
    run = subprocess.run(
        [COMMAND, "live", *map(str, arguments), "--json"], check=False, capture_output=True, timeout=60
    )
    assert b"Traceback" not in run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("options", [(), ("--expect", "dense", "--finish", "now")])
def test_chunks_younger_than_the_marker_are_not_missing(tmp_path, state, options):
    source = tmp_path / "c.zarr"
    source.mkdir()
    (source / ".zarray").write_text(json.dumps(ZARRAY))
    for chunk in range(3):
        (source / str(chunk)).write_bytes(b"x")
    (source / "complete").write_text("")
    for _ in range(2):  # the second finds all done
        found = live(source, tmp_path / "copy", *options)
        array = found["targets"][0]["arrays"][0]
        assert (found["exit_code"], array["written"], array["missing"]) == (0, 3, 0)
    assert found["copied"] == found["replaced"] == 0
