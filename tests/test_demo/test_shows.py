"""The demo holds, twice alike, wherever it is started, and leaves nothing but its folder."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from scopeferry.jobs.demo import ROOM_BYTES
from scopeferry.testing import runs
from scopeferry.testing.runs import contents, look, make_run

MAX_LINES = 55  # `make demo` says a little more, and must fit 60


def test_it_holds_and_says_how_to_fool_it(shown, state, tmp_path):
    done = shown("--to", tmp_path / "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " NO  " not in done.stdout
    assert len(done.stdout.splitlines()) + len(done.stderr.splitlines()) <= MAX_LINES
    assert re.findall(r"^(\d)\. ", done.stdout, re.MULTILINE) == list("123456789")
    assert not (state / "scopeferry").exists()
    last = done.stderr.splitlines()[-1]
    assert last.startswith("exit 0: done   all 19 checks hold")
    folder, words = re.search(r"cd (\S+), change what you like, then scopeferry (.*)$", last).groups()
    target = next((tmp_path / "demo/archive/run7/raw_data").rglob("*.tif"))
    target.write_bytes(b"fooled")
    again = [sys.executable, "-m", "scopeferry", *shlex.split(words)]
    assert subprocess.run(again, cwd=folder, check=False, capture_output=True).returncode == 4


def test_two_are_equal_but_for_times_rates_and_place(shown, tmp_path):
    told = []
    for number, speed in enumerate((1, 20)):
        folder = tmp_path / f"demo{number}"
        done = shown("--to", folder, "--speed", speed, "--json")
        assert done.returncode == 0, done.stderr
        envelope = json.loads(done.stdout.replace(str(folder), "DIR"))
        assert envelope["measured"].keys() == {"seconds", "files_at_kill", "sent_twice_bytes"}
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
    assert (tmp_path / re.search(r"^in (.*):$", done.stdout, re.MULTILINE)[1] / "archive/run7").is_dir()


@pytest.mark.parametrize("stream", ["<&-", ">&-", "2>&-", ">/dev/full 2>/dev/full"])
@pytest.mark.slow
def test_a_closed_or_full_stream_changes_nothing(shown, stream):
    words = [sys.executable, "-m", "scopeferry", "demo", "--speed", "20"]
    done = shown(args=["sh", "-c", f'exec "$@" {stream}', "sh", *words])
    assert done.returncode == 0, done.stdout + done.stderr


def test_quiet_says_the_last_line_alone(shown):
    done = shown("--quiet", "--speed", "20")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (0, "", 1)


def test_settings_of_the_user_do_not_reach_it(play, monkeypatch, state):
    monkeypatch.setenv("SCOPEFERRY_TRANSFER_EXCLUDE", "*.tif")
    user = state.parents[1] / ".config/scopeferry/scopeferry.toml"
    user.parent.mkdir(parents=True)
    user.write_text('[transfer]\nexclude = ["*.tif"]\n')
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


@pytest.mark.parametrize("room", [f"size={ROOM_BYTES - 100_000}", f"size={2 * ROOM_BYTES},nr_inodes=300"])
def test_too_little_room_is_7_and_nothing_is_left(shown, tmp_path, room):
    mount = f'mount -t tmpfs -o {room} tmpfs "$0" && cd "$0" && "$@"; code=$?; ls -A "$0"; exit $code'
    words = [sys.executable, "-m", "scopeferry", "demo", "--quiet", "--to", "demo"]
    private = [shutil.which("unshare") or "unshare", "-rm"]
    if subprocess.run([*private, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs unshare -r: install util-linux, and allow user namespaces")
    done = shown(args=[*private, "sh", "-c", mount, tmp_path, *words])
    assert (done.returncode, done.stdout) == (7, ""), done.stderr


def test_the_same_seed_is_the_same_run(tmp_path):
    first = make_run(tmp_path / "a", seed=3)
    assert make_run(tmp_path / "b", seed=3) == first == contents(look(tmp_path / "b"))
    files = {path: seen[:3] for path, seen in look(tmp_path / "a").items() if seen.is_file}
    assert files == {path: seen[:3] for path, seen in look(tmp_path / "b").items() if seen.is_file}
    assert make_run(tmp_path / "c", seed=4) != first


def test_seed_0_has_these_bytes_on_every_system(tmp_path):
    truth = make_run(tmp_path / "run")
    assert truth["raw_data/A1/DAPI_p0_t0.tif"] == "54effafd8860dbcae5f83c46daab8b9ec33664e63bc1fef4f031bbb66a30c2ad"
    assert truth["analysis/B3/cells_p7.csv"] == "6db8bd035919302bceef1b9bbc922f707be2a6253f073099762864a5f136ba91"
    assert sum(seen.size for seen in look(tmp_path / "run").values() if seen.is_file) < runs.NEEDS_BYTES


def test_nothing_of_the_tests_is_needed():
    code = "import sys, scopeferry.jobs.demo; print(sorted({'pytest', 'hypothesis', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
