"""The demo holds, twice alike, wherever it is started, and leaves nothing but its folder."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from scopeferry.jobs.demo import COPY, ROOM_BYTES
from scopeferry.testing.microscope import NEEDS_BYTES, CellField, Frame, Microscope, frames, frames_in
from scopeferry.testing.runs import contents, look

MAX_LINES = 55  # `make demo` says a little more, and must fit 60


def test_it_holds_and_says_how_to_fool_it(shown, state, tmp_path):
    done = shown("--to", tmp_path / "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " NO  " not in done.stdout
    assert len(done.stdout.splitlines()) + len(done.stderr.splitlines()) <= MAX_LINES
    assert re.findall(r"^(\d+)\. ", done.stdout, re.MULTILINE) == [str(number) for number in range(1, 11)]
    commands = re.findall(r"^   \$ scopeferry (\w+)", done.stdout, re.MULTILINE)
    assert commands == ["live", "inspect", "live", "inspect", "clean", "verify", "repair", "verify", "clean"]
    assert not (state / "scopeferry").exists()
    last = done.stderr.splitlines()[-1]
    assert last.startswith("exit 0: done   all 24 checks hold")
    folder, words = re.search(r"cd (\S+), change what you like, then scopeferry (.*)$", last).groups()
    target = tmp_path / "demo" / COPY / Frame(0, 0, 0).shard
    target.write_bytes(b"fooled")
    again = [sys.executable, "-m", "scopeferry", *shlex.split(words)]
    assert subprocess.run(again, cwd=folder, check=False, capture_output=True).returncode == 4


@pytest.mark.slow
def test_two_are_equal_but_for_times_rates_and_place(shown, tmp_path):
    told = []
    for number, speed in enumerate((1, 20)):
        folder = tmp_path / f"demo{number}"
        done = shown("--to", folder, "--speed", speed, "--json")
        assert done.returncode == 0, done.stderr
        envelope = json.loads(done.stdout.replace(str(folder), "DIR"))
        assert envelope["measured"].keys() == {"seconds", "shards_at_kill", "sent_twice_bytes", "longest_frame_s"}
        told.append({key: value for key, value in envelope.items() if key not in {"measured", "elapsed_s"}})
    assert told[0] == told[1]
    assert told[0]["tree_digest"].startswith("sha256:")
    assert {check["ok"] for check in told[0]["checks"]} == {True}
    assert contents(look(tmp_path / "demo0/instrument")) == contents(look(tmp_path / "demo1/instrument"))


def test_nothing_is_needed_from_around_it(shown, tmp_path):
    bare = {"PATH": "/usr/bin:/bin", "LANG": "C", "LC_ALL": "C", "TERM": "dumb", "TMPDIR": str(tmp_path)}
    words = [sys.executable, "-m", "scopeferry", "demo", "--speed", "20"]
    offline = [shutil.which("unshare") or "unshare", "-rn"]
    if subprocess.run([*offline, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs unshare -r: install util-linux, and allow user namespaces")
    shell = ["sh", "-c", 'exec "$@" <&-', "sh", *offline, *words]
    done = shown(args=shell, env=bare)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.isascii()
    assert (tmp_path / re.search(r"^in (.*):$", done.stdout, re.MULTILINE)[1] / COPY).is_dir()


@pytest.mark.parametrize("stream", ["<&-", ">&-", "2>&-", ">/dev/full 2>/dev/full"])
@pytest.mark.slow
def test_a_closed_or_full_stream_changes_nothing(shown, stream):
    words = [sys.executable, "-m", "scopeferry", "demo", "--speed", "20"]
    done = shown(args=["sh", "-c", f'exec "$@" {stream}', "sh", *words])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_quiet_says_the_last_line_alone(shown):
    done = shown("--quiet", "--speed", "20")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (0, "", 1)


@pytest.mark.slow
def test_settings_of_the_user_do_not_reach_it(play, monkeypatch, state):
    monkeypatch.setenv("SCOPEFERRY_LIVE_EXCLUDE", "zarr.json")
    user = state.parents[1] / ".config/scopeferry/scopeferry.toml"
    user.parent.mkdir(parents=True)
    user.write_text('[live]\nexclude = ["zarr.json"]\n')
    result = play()
    assert result.ok, result.problems


def test_a_folder_that_is_not_empty_is_left_alone(shown, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/work.txt").write_text("weeks")
    done = shown("--to", tmp_path / "mine", "--json")
    assert done.returncode == 5
    assert [problem["code"] for problem in json.loads(done.stdout)["problems"]] == ["SF-505"]
    assert {path: path.read_text() for path in (tmp_path / "mine").iterdir()} == {tmp_path / "mine/work.txt": "weeks"}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--to", "absent/demo"], "SF-102"),
        (["--to", "file"], "SF-112"),
        (["--to", "file/demo"], "SF-112"),
        (["--speed", "0"], "SF-105"),
        (["--speed", "nan"], "SF-105"),
        (["--speed", "fast"], "SF-105"),
        (["--seed", "x"], "SF-105"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(shown, tmp_path, options, named):
    (tmp_path / "file").write_text("")
    done = shown(*options)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert named in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("room", [f"size={ROOM_BYTES - 100_000}", f"size={2 * ROOM_BYTES},nr_inodes=60"])
def test_too_little_room_is_7_and_nothing_is_left(shown, tmp_path, room):
    mount = f'mount -t tmpfs -o {room} tmpfs "$0" && cd "$0" && "$@"; code=$?; ls -A "$0"; exit $code'
    words = [sys.executable, "-m", "scopeferry", "demo", "--quiet", "--to", "demo"]
    private = [shutil.which("unshare") or "unshare", "-rm"]
    if subprocess.run([*private, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs unshare -r: install util-linux, and allow user namespaces")
    done = shown(args=[*private, "sh", "-c", mount, tmp_path, *words])
    assert (done.returncode, done.stdout) == (7, ""), done.stderr


def test_the_same_seed_is_the_same_plate(tmp_path):
    found = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        with Microscope(tmp_path / name, seed=seed) as microscope:
            microscope.describe()
            for number in range(30):
                microscope.take(drop=number == 12, dark=number == 17)
            microscope.finish()
        found.append(contents(look(tmp_path / name)))
        taken = [frame for number, frame in enumerate(frames()) if number < 30 and number not in {12, 17}]
        assert frames_in(tmp_path / name) == {frame: microscope.field.pixels(frame) for frame in taken}
    assert found[0] == found[1] != found[2]


def test_seed_0_has_these_bytes_on_every_system(tmp_path):
    pixels = CellField().pixels(Frame(2, 3, 1))
    assert hashlib.sha256(pixels).hexdigest() == "938af795eba95605a52590c87435c8b8435f96ed0723b31d4b0838f3048e4854"
    assert len(pixels) * 96 < NEEDS_BYTES


#: In a process of its own: zarr keeps a loop, with its descriptors.
READ = """
import sys, zarr
plate = zarr.open_group(sys.argv[1], mode="r")
assert [well["path"] for well in plate.attrs["ome"]["plate"]["wells"]][:2] == ["A/1", "A/2"]
assert not plate["A/1/0/0"][1].any()
sys.stdout.buffer.write(plate["A/1/0/0"][0, 1].tobytes())
"""


def test_other_programs_read_the_plate(tmp_path):
    pytest.importorskip("zarr")
    with Microscope(tmp_path / "plate.ome.zarr") as microscope:
        microscope.describe()
        microscope.take()
        microscope.take()
        microscope.finish()
    done = subprocess.run([sys.executable, "-c", READ, tmp_path / "plate.ome.zarr"], check=True, capture_output=True)
    assert done.stdout == microscope.field.pixels(Frame(0, 0, 1))


def test_nothing_of_the_tests_is_needed():
    code = "import sys, scopeferry.jobs.demo; print(sorted({'pytest', 'hypothesis', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
