"""What `live` made is a copy like any other: `verify` proves it, `repair` heals it, `clean` asks for its evidence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scopeferry.testing.trees import differences

AHEAD = """
import sys, time
ahead, real, real_ns = int(sys.argv.pop(1)), time.time, time.time_ns
time.time, time.time_ns = lambda: real() + ahead, lambda: real_ns() + ahead * 10**9
from scopeferry.cli.main import main
sys.exit(main())
"""
HOUR = 3600


def run(*words: object, later: int = 0) -> dict:
    """The envelope of a command whose clock is `later`."""
    words = [sys.executable, "-c", AHEAD, str(later), *map(str, words), "--json"]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr, done.stderr
    found = json.loads(done.stdout)
    assert found["exit_code"] == done.returncode
    return found


def codes(found: dict) -> set[str]:
    return {problem["code"] for problem in found["problems"]}


def v2(root: Path) -> Path:
    facts = {"zarr_format": 2, "shape": [3], "chunks": [1], "dtype": "|u1", "compressor": None, "fill_value": 0,
             "order": "C", "filters": None}  # fmt: skip
    (root / ".zarray").write_text(json.dumps(facts))
    return _chunks(root, "{}")


def v3(root: Path, **sharding: object) -> Path:
    codecs = [{"name": "bytes"}]
    if sharding:
        index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        inner = {"chunk_shape": [1], "codecs": codecs, "index_codecs": index, "index_location": "end"}
        codecs = [{"name": "sharding_indexed", "configuration": inner}]
    facts = {
        "zarr_format": 3, "node_type": "array", "shape": [3], "data_type": "uint8", "fill_value": 0, "attributes": {},
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [3 if sharding else 1]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}}, "codecs": codecs,
    }  # fmt: skip
    (root / "zarr.json").write_text(json.dumps(facts))
    if not sharding:
        return _chunks(root, "c/{}")
    import google_crc32c

    index = b"".join(n.to_bytes(8, "little") for at in range(3) for n in (at, 1))
    (root / "c").mkdir()
    (root / "c/0").write_bytes(b"abc" + index + google_crc32c.value(index).to_bytes(4, "little"))
    return root / "c/0"


def sharded(root: Path) -> Path:
    return v3(root, shards=True)


def plain(root: Path) -> Path:
    return _chunks(root, "raw/image {}.tif")


def _chunks(root: Path, name: str) -> Path:
    for number in range(3):
        path = root / name.format(number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(f"chunk {number}".encode() if "tif" in name else bytes([number + 1]))
    return path


KINDS = {"v2": v2, "v3": v3, "sharded": sharded, "plain": plain}
EACH = [pytest.param(kind, marks=[] if kind == "sharded" else pytest.mark.slow) for kind in KINDS]


@pytest.fixture
def made(tmp_path, state, request):
    """A source that is marked complete, its copy by `live`, and one file below it that holds pixels."""
    source = tmp_path / "acquisition"
    source.mkdir()
    data = KINDS[request.param](source)
    (source / "complete").touch()
    copy = tmp_path / "copy"
    found = run("live", source, copy)
    assert (found["exit_code"], found["state"]) == (0, "finished"), found["problems"]
    return source, copy, data.relative_to(source)


def flip(path: Path) -> None:
    """One bit, and the time put back."""
    before = path.stat()
    raw = bytearray(path.read_bytes())
    raw[0] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("made", EACH, indirect=True)
def test_a_bit_that_flipped_is_found_alone_and_against_the_source_and_healed(made):
    source, copy, data = made
    for words in ([copy], [copy, source]):
        found = run("verify", *words)
        assert (found["exit_code"], found["verified"]) == (0, found["items"])
        assert found["items"] == sum(path.is_file() for path in source.rglob("*"))
    flip(copy / data)
    for words in ([copy], [copy, source]):
        found = run("verify", *words)
        assert (found["exit_code"], {problem["path"] for problem in found["problems"]}) == (4, {str(data)})
    assert run("repair", source, copy)["exit_code"] == 0
    assert not differences(source, copy)
    assert run("verify", copy, source)["exit_code"] == 0
    assert run("live", source, copy)["copied"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("made", KINDS, indirect=True)
def test_a_bit_that_flipped_in_the_source_is_not_put_into_the_copy(made):
    source, copy, data = made
    flip(source / data)
    found = run("verify", copy, source)
    assert (found["exit_code"], run("verify", copy)["exit_code"]) == (4, 0)
    good = (copy / data).read_bytes()
    run("repair", source, copy)
    assert (copy / data).read_bytes() == good
    assert run("clean", source, "--copy", copy, "--yes")["exit_code"] == 5
    assert (source / data).exists()


@pytest.mark.slow
@pytest.mark.parametrize("made", KINDS, indirect=True)
def test_live_again_heals_a_copy_whose_change_time_tells(made):
    source, copy, data = made
    flip(copy / data)
    found = run("live", source, copy)
    assert (found["exit_code"], found["state"], codes(found) & {"SF-902"}) == (0, "finished", {"SF-902"})
    assert not differences(source, copy)


@pytest.mark.slow
@pytest.mark.parametrize("made", KINDS, indirect=True)
def test_clean_frees_what_a_marker_declared(made):
    source, copy, data = made
    plan = run("clean", source, "--copy", copy)
    assert plan["exit_code"] == 0, plan["problems"]
    assert (source / data).exists()
    assert run("clean", source, "--copy", copy, "--yes")["exit_code"] == 0
    assert not (source / data).exists()
    assert run("verify", copy)["exit_code"] == 0


EVIDENCE = {
    "quiet": (["--finish", "quiet=1s", "--settle", "1s"], 60, 0, False),
    "quiet beside a grid that is not asked for": (["--finish", "quiet=1s", "--finish", "marker=x"], 60, 0, False),
    "unknown": ([], 7 * HOUR, 6, False),
    "aborted": (["--expect", "dense"], 7 * HOUR, 6, False),
    "grid": (["--finish", "grid"], 60, 0, True),
    "now": (["--finish", "now"], 0, 0, True),
}
PART_FULL = {"quiet", "unknown", "aborted"}


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=[] if what in {"quiet", "grid"} else pytest.mark.slow) for what in EVIDENCE]
)
def test_clean_accepts_strong_evidence_only(what, tmp_path, state):
    options, later, code, strong = EVIDENCE[what]
    source, copy = tmp_path / "a.zarr", tmp_path / "copy"
    source.mkdir()
    v2(source)
    if what in PART_FULL:
        (source / "2").unlink()
    assert run("live", source, copy, *options, later=later)["exit_code"] == code
    found = run("clean", source, "--copy", copy, "--yes", later=later)
    assert found["exit_code"] == (0 if strong else 5)
    assert (source / "0").exists() is not strong
    if not strong:
        assert "SF-517" in codes(found)
        assert run("verify", copy, source, later=later)["exit_code"] == 0


@pytest.mark.slow
def test_a_person_may_declare_what_was_weak(tmp_path, state):
    source, copy = tmp_path / "a.zarr", tmp_path / "copy"
    source.mkdir()
    v2(source)
    assert run("live", source, copy, "--finish", "quiet=1s", later=60)["exit_code"] == 0
    assert run("clean", source, "--copy", copy, "--yes")["exit_code"] == 5
    assert run("clean", source, "--copy", copy, "--yes", "--finish", "now")["exit_code"] == 0
    assert not source.exists() or not any(path.is_file() for path in source.rglob("*"))


@pytest.mark.slow
def test_the_copy_can_be_proved_where_nothing_is_known_of_it(tmp_path, state):
    source, copy = tmp_path / "a.zarr", tmp_path / "copy"
    source.mkdir()
    data = sharded(source)
    (source / "complete").touch()
    assert run("live", source, copy)["exit_code"] == 0
    shutil.rmtree(state)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    copy.rename(moved / "copy")
    (tmp_path / "copy.scopeferry").rename(moved / "copy.scopeferry")
    assert run("verify", moved / "copy")["exit_code"] == 0
    flip(moved / "copy" / data.relative_to(source))
    assert run("verify", moved / "copy")["exit_code"] == 4
