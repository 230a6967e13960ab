"""The end of `live`, through the whole program: each row of what says running and of what says finished.

Every store is real, and so is what happens to it. Where minutes or hours of quiet are needed the command's clock is
ahead of that of the files, which is what a source that was left alone for so long looks like.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import zarr

import scopeferry
from scopeferry.kernel.publish import disk
from scopeferry.sources.ready import LEASES
from scopeferry.testing.trees import differences

COMMAND = [sys.executable, "-m", "scopeferry"]
AHEAD = """
import sys, time
ahead, real, real_ns = int(sys.argv.pop(1)), time.time, time.time_ns
time.time, time.time_ns = lambda: real() + ahead, lambda: real_ns() + ahead * 10**9
from scopeferry.cli.main import main
sys.exit(main())
"""
PATIENCE_S = 60
MIN, HOUR = 60, 3600


def ahead(seconds: int) -> list[str]:
    """The command, with a clock that is so much ahead."""
    return [sys.executable, "-c", AHEAD, str(seconds)] if seconds else COMMAND


def run(*words: object, later: int = 0) -> dict:
    """The envelope of a command that has ended."""
    words = [*ahead(later), *map(str, words), "--json"]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=PATIENCE_S)
    assert "Traceback" not in done.stderr, done.stderr
    found = json.loads(done.stdout)
    assert found["exit_code"] == done.returncode
    return found


class Running:
    """``scopeferry live`` in another process; `says` waits for one of its lines."""

    def __init__(self, *words: object, later: int = 0, command: str = "live") -> None:
        words = [*ahead(later), command, *map(str, words), "--json", "--interval", "0.2"]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.said: list[str] = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.put(line)
        self.lines.put(None)

    def says(self, *words: str) -> str:
        while (line := self.lines.get(timeout=PATIENCE_S)) is not None:
            self.said.append(line)
            if all(word in line for word in words):
                return line
        raise AssertionError(f"{words} was never said: {self.said}")

    def ends(self, code: int) -> dict:
        """The target, after it has ended with this code."""
        found = json.loads(self.process.stdout.read())
        self.process.wait(PATIENCE_S)
        assert (found["exit_code"], self.process.returncode) == (code, code), found["problems"]
        return found["targets"][0] if found.get("targets") else found

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdout.close()
        self.process.stderr.close()


class Store:
    """A Zarr array of one-byte chunks, nested in its root or at it, written by renaming."""

    def __init__(self, root: Path, chunks: int = 3, path: str = "") -> None:
        self.root, self.array = root, root / path
        self.array.mkdir(parents=True, exist_ok=True)
        if path:
            self.write(".zgroup", b'{"zarr_format": 2}')
        self.shape(chunks)

    def shape(self, chunks: int) -> None:
        facts = {"zarr_format": 2, "shape": [chunks], "chunks": [1], "dtype": "|u1", "compressor": None,
                 "fill_value": 0, "order": "C", "filters": None}  # fmt: skip
        self.write(str((self.array / ".zarray").relative_to(self.root)), json.dumps(facts).encode())

    def write(self, name: str, raw: bytes = b"") -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        other = path.with_name(f"{path.name}.__lock")
        other.write_bytes(raw)
        return other.replace(path)

    def put(self, *chunks: int) -> None:
        for chunk in chunks:
            self.write(str((self.array / str(chunk)).relative_to(self.root)), bytes([chunk + 1]))


@pytest.fixture
def store(tmp_path, state):
    """Two of three chunks are there."""
    found = Store(tmp_path / "a.zarr")
    found.put(0, 1)
    return found


@pytest.fixture
def live(store, tmp_path):
    """``live(*options)`` begins to copy the store to `tmp_path/copy`."""
    started: list[Running] = []

    def start(*options, of=store.root, to=tmp_path / "copy", **how):
        started.append(Running(of, to, *options, **how))
        return started[-1]

    yield start
    for each in started:
        each.close()


def kinds(found: dict) -> list[tuple[str, str]]:
    return [(one["kind"], one["verdict"]) for one in found["evidence"]]


def codes(found: dict) -> set[str]:
    return {problem["code"] for problem in found["problems"]}


# -- what says running: how it comes about and goes again, and what is awaited; everywhere a marker stands -------------


def manifest(store):
    store.write("SUMS", b"0\n2\n")
    return lambda: store.put(2)


def lock(store):
    journal = store.root / "frames.journal.partial"
    file = journal.open("wb")
    fcntl.lockf(file, fcntl.LOCK_EX)

    def release():
        journal.rename(store.root / "frames.journal")
        file.close()

    return release


def process(store):
    writer = subprocess.Popen(["sleep", "60"])
    store.pid = writer.pid

    def end():
        writer.kill()
        writer.wait()

    return end


def in_place(store):
    file = (store.root / "2").open("wb")
    file.write(b"x")
    file.flush()
    return file.close


def temporary(store):
    (store.root / "2.__lock").write_bytes(b"x")
    return lambda: (store.root / "2.__lock").replace(store.root / "2")


def temporary_of_nobody(store):
    (store.root / "2.part").write_bytes(b"x")
    return lambda: (store.root / "2.part").replace(store.root / "2")


def stray(store):
    file = (store.root / "notes.tmp").open("wb")
    file.write(b"x")
    file.flush()

    def close():
        file.close()
        (store.root / "notes.tmp").rename(store.root / "notes.txt")

    return close


def half_metadata(store):
    (store.root / ".zattrs").write_text('{"a"')
    return lambda: store.write(".zattrs", b'{"a": 1}')


def promised(store):
    store.write(".zattrs", b'{"multiscales": [{"datasets": [{"path": "lower"}]}]}')
    return lambda: store.write(
        "lower/.zarray", (store.root / ".zarray").read_bytes().replace(b'"shape": [3]', b'"shape": [0]')
    )


def absent(store):
    return lambda: store.put(2)


def absent_of_list(store):
    store.write("../keys", b"# by hand\n0\n2\n")
    return lambda: store.put(2)


RUNS_ON = {
    "manifest": (manifest, ["--finish", "manifest=SUMS"], "1 more files of SUMS", "declared"),
    "lock": (lock, [], "frames.journal.partial to be unlocked", "handle"),
    "process": (process, ["--writer-pid", "PID"], "to end", "handle"),
    "in place": (in_place, [], "2 to be closed", "handle"),
    "temporary": (temporary, [], "2.__lock to go (or 10 min quiet: aborted)", "structural"),
    "temporary of nobody": (temporary_of_nobody, [], "2.part to go (or 10 min quiet: aborted)", "structural"),
    "stray": (stray, [], "notes.tmp to go, or to be left alone for 10 s", "structural"),
    "metadata": (half_metadata, [], ".zattrs to become whole (or 10 min quiet: aborted)", "structural"),
    "promised": (promised, [], "lower to appear (or 6 h quiet: aborted)", "structural"),
    "absent": (absent, ["--expect", "dense"], "1 more chunks (or 6 h quiet: aborted)", "structural"),
    "absent of list": (absent_of_list, ["--expect", "KEYS"], "1 more chunks (or 6 h quiet: aborted)", "structural"),
}
SHOWN_BY_DEFAULT = {"lock", "stray"}


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=[] if what in SHOWN_BY_DEFAULT else pytest.mark.slow) for what in RUNS_ON]
)
def test_what_says_running_wins_over_a_marker_and_is_named_until_it_is_gone(what, store, live, tmp_path):
    begin, options, awaited, kind = RUNS_ON[what]
    if what == "in place" and disk(str(tmp_path)).type not in LEASES:
        pytest.skip("needs a file system with leases: ext4, xfs, btrfs, tmpfs")
    make_right = begin(store)
    store.write("complete")
    names = {"PID": str(getattr(store, "pid", "")), "KEYS": str(tmp_path / "keys")}
    options = ["--finish", "auto", *(names.get(word, word) for word in options)]
    try:
        seen = run("inspect", store.root, *options)
        assert (seen["exit_code"], seen["state"], *kinds(seen)[:1]) == (6, "running", (kind, "running"))
        assert any(awaited in text for text in seen["awaited"]), seen["awaited"]
        copy = live(*options)
        copy.says("running", f"to end: {seen['awaited'][0]}")
    finally:
        make_right()
    found = copy.ends(0)
    assert found["state"] == "finished"
    assert kinds(found)[0] == ("declared" if what == "manifest" else "marker", "finished")
    assert not differences(store.root, tmp_path / "copy")
    assert run("inspect", store.root, *options)["state"] == "finished"


@pytest.mark.slow
@pytest.mark.usefixtures("_loop_of_zarr", "state")
def test_a_shard_without_a_valid_index_is_waited_for(live, tmp_path):
    zarr.create_array(tmp_path / "whole", shape=(4,), chunks=(1,), shards=(4,), dtype="u1")[:] = np.arange(1, 5)
    store = Store(tmp_path / "shards", path="0")
    for path in store.array.iterdir():
        path.unlink()
    whole = (tmp_path / "whole/c/0").read_bytes()
    store.write("0/zarr.json", (tmp_path / "whole/zarr.json").read_bytes())
    torn = store.write("0/c/0", whole[:-3])
    store.write("complete")
    seen = run("inspect", store.root)
    assert (seen["state"], seen["awaited"][0]) == ("running", "0/c/0 to become whole (or 10 min quiet: aborted)")
    late = run("inspect", store.root, later=11 * MIN)
    assert (late["state"], late["arrays"][0]["missing"]) == ("aborted", 4)
    copy = live(of=store.root)
    copy.says("running", "0/c/0 to become whole")
    torn.write_bytes(whole)
    assert copy.ends(0)["arrays"][0]["written"] == 4


@pytest.mark.parametrize(
    ("what", "after_s"),
    [
        pytest.param("temporary", 10 * MIN),
        pytest.param("temporary of nobody", 10 * MIN, marks=pytest.mark.slow),
        pytest.param("metadata", 10 * MIN, marks=pytest.mark.slow),
        pytest.param("promised", 6 * HOUR, marks=pytest.mark.slow),
        pytest.param("absent", 6 * HOUR, marks=pytest.mark.slow),
        pytest.param("absent of list", 6 * HOUR, marks=pytest.mark.slow),
    ],
)
def test_what_is_dead_is_aborted_and_everything_is_copied(what, after_s, store, live, tmp_path):
    begin, options, _, _ = RUNS_ON[what]
    begin(store)
    store.write("complete")
    options = ["--finish", "auto", *(str(tmp_path / "keys") if word == "KEYS" else word for word in options)]
    assert run("inspect", store.root, *options, later=after_s - 30)["state"] == "running"
    seen = run("inspect", store.root, *options, later=after_s + 5)
    assert (seen["exit_code"], seen["state"]) == (6, "aborted")
    found = live(*options, later=after_s + 5).ends(6)
    assert (found["state"], codes(found) & {"SF-602"}) == ("aborted", {"SF-602"})
    assert [one["detail"].partition(";")[0] for one in found["evidence"]] == [
        one["detail"].partition(";")[0] for one in seen["evidence"]
    ]
    assert not differences(store.root, tmp_path / "copy")


@pytest.mark.slow
def test_what_somebody_holds_is_never_dead(store):
    with (store.root / "2.__lock").open("wb"):
        store.write("complete")
        seen = run("inspect", store.root, later=9 * HOUR)
    if disk(str(store.root)).type in LEASES:
        assert (seen["state"], seen["awaited"][0]) == ("running", "2.__lock to go")


def test_a_writer_of_ours_that_was_killed_is_no_end(store):
    """Its journal bears the name of a running one, and nobody has locked it."""
    store.put(2)
    (store.root / "frames.journal.partial").write_bytes(b"{}")
    options = ("--expect", "dense", "--settle", "1s")
    assert run("inspect", store.root, *options, later=MIN)["state"] == "running"
    assert run("inspect", store.root, *options, later=11 * MIN)["state"] == "aborted"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["notes.tmp", ".~lock.notes.odt#", "image_007.tif.part"])
def test_a_stray_name_that_is_left_alone_aborts_nothing_and_is_copied(name, store, tmp_path):
    (store.root / name).write_bytes(b"x")
    store.write("complete")
    assert run("inspect", store.root, later=MIN)["state"] == "finished"
    found = run("live", store.root, tmp_path / "copy", later=11 * MIN)
    assert (found["exit_code"], found["state"]) == (0, "finished")
    assert (tmp_path / "copy" / name).read_bytes() == b"x"


# -- what says finished ------------------------------------------------------------------------------------------------


def test_now_overrules_what_says_running_and_says_so(store, tmp_path):
    temporary(store)
    found = run("live", store.root, tmp_path / "copy", "--finish", "now")
    assert (found["exit_code"], kinds(found["targets"][0])[0]) == (0, ("declared", "finished"))
    assert next(p["message"] for p in found["problems"] if p["code"] == "SF-916") == "temporary name: 2.__lock"
    assert run("live", store.root, tmp_path / "dense", "--finish", "now", "--expect", "dense")["exit_code"] == 6


def test_somebody_declares_it_from_python(store, tmp_path):
    stray(store)()
    with scopeferry.Live([scopeferry.Target(str(store.root), str(tmp_path / "copy"), settle_s=0.2)]) as copy:
        for _ in copy:
            standing = copy.standings()[0]
            if standing.awaited and not standing.ended and (tmp_path / "copy/1").exists():
                copy.declare_finished(store.root)
    assert (copy.result.exit_code, copy.result.state) == (0, "finished")
    assert copy.result.evidence[0]["detail"].startswith("declared by ")
    end = json.loads((tmp_path / "copy.scopeferry/0001.jsonl").read_text().splitlines()[-1])
    assert end["finish"]["evidence"].startswith("declared: declared by ")


@pytest.mark.parametrize("right", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_list_with_digests(right, store, live, tmp_path):
    store.put(2)
    sums = {name: hashlib.sha256((store.root / name).read_bytes()).hexdigest() for name in "012"}
    if not right:
        sums["2"] = sums["1"]
    store.write("SUMS", "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode())
    copy = live("--finish", "manifest=SUMS")
    if not right:
        copy.says("to end: 1 more files of SUMS")
        assert not copy.process.poll()
        store.write("SUMS", "".join(f"{sums[name]}  {name}\n" for name in "01").encode())
    found = copy.ends(0)
    assert (found["state"], found["evidence"][0]["kind"]) == ("finished", "declared")
    assert found["evidence"][0]["detail"] == f"all {3 if right else 2} files of SUMS"


@pytest.mark.parametrize(
    ("said", "code"), [("finished", 0), pytest.param("aborted", 6, marks=pytest.mark.slow)], ids=["finished", "aborted"]
)
def test_complete_json(said, code, store, tmp_path):
    ended = {"schema": 1, "state": said, "arrays": {"": {"written": 2, "empty": ["2"] if code == 0 else []}}}
    store.write("complete.json", json.dumps(ended).encode())
    found = run("live", store.root, tmp_path / "copy")
    assert (found["exit_code"], found["state"]) == (code, said)
    assert found["targets"][0]["evidence"][0]["detail"] == "complete.json"
    assert found["targets"][0]["arrays"][0]["empty"] == (1 if code == 0 else 0)
    assert run("inspect", store.root)["state"] == said


@pytest.mark.parametrize(
    "name", ["complete", *(pytest.param(f"complete.{end}", marks=pytest.mark.slow) for end in ("txt", "json"))]
)
def test_the_default_marker(name, store):
    store.write(name)
    assert run("inspect", store.root)["evidence"][0]["detail"] == name


def test_a_named_marker_forbids_the_grid_and_may_be_left_out_of_the_copy(store, live, tmp_path):
    store.put(2)
    options = ("--finish", "marker=*/done_??.txt", "--exclude", "logs/done_*")
    assert run("inspect", store.root, *options, later=HOUR)["awaited"] == ["file '*/done_??.txt'"]
    copy = live(*options, later=HOUR)
    copy.says("running", "to end: file '*/done_??.txt'")
    store.write("logs/done_07.txt")
    found = copy.ends(0)
    assert [one["detail"] for one in found["evidence"]] == ["logs/done_07.txt", "3 of 3 chunks"]
    assert not (tmp_path / "copy/logs/done_07.txt").exists()


@pytest.mark.slow
def test_a_marker_of_an_earlier_acquisition_says_nothing(store, live, tmp_path):
    marker = store.write("complete")
    os.utime(marker, ns=(10**18, 10**18))
    copy = live()
    copy.says("running", "to end: file 'complete' anew")
    assert run("inspect", store.root)["state"] == "running"
    store.write("complete", b"now")
    assert copy.ends(0)["evidence"][0]["kind"] == "marker"


@pytest.mark.slow
def test_one_in_each_array_of_a_plate(tmp_path, live, state):
    plate = tmp_path / "plate"
    wells = [Store(plate, 1, f"A/{column}/0/0") for column in (1, 2)]
    wells[0].write(".zattrs", json.dumps({"plate": {"wells": [{"path": "A/1"}, {"path": "A/2"}]}}).encode())
    for well in wells:
        well.put(0)
        well.write(str(well.array.relative_to(plate).parent / ".zgroup"), b'{"zarr_format": 2}')
        well.write(str(well.array.relative_to(plate).parent.parent / ".zgroup"), b'{"zarr_format": 2}')
    wells[0].write("A/1/0/0/complete")
    copy = live(of=plate)
    copy.says("running", "to end: file 'complete'")
    wells[1].write("A/2/0/0/complete")
    assert copy.ends(0)["evidence"][0]["detail"] == "complete in each of 2 arrays"


@pytest.mark.slow
@pytest.mark.parametrize("begin", [process, lock])
@pytest.mark.parametrize("how", ["full", "sparse", "part full"])
def test_the_end_of_the_writer(how, begin, store, live, tmp_path):
    end = begin(store)
    if how == "full":
        store.put(2)
    options = ["--settle", "1s"] + (["--expect", "sparse"] if how == "sparse" else [])
    copy = live(*options, *(["--writer-pid", store.pid] if begin is process else []))
    copy.says("running", "to end" if begin is process else "to be unlocked")
    end()
    if how == "part full":
        copy.says("running", "all 3 chunks (2 so far) and 1 s quiet")
        store.put(2)
    found = copy.ends(0)
    assert found["evidence"][0]["kind"] == "handle"
    assert not differences(store.root, tmp_path / "copy")


@pytest.mark.slow
def test_a_process_that_was_never_there_shortens_nothing(store):
    store.put(2)
    options = ("--writer-pid", 2**22 + 7)
    early = run("inspect", store.root, *options, later=2 * MIN)
    assert (early["exit_code"], early["state"], early["awaited"]) == (
        6, "unknown", ["file 'complete', or 10 min quiet, or all 3 chunks (3 so far) and 10 min quiet"])  # fmt: skip
    assert run("inspect", store.root, *options, later=11 * MIN)["state"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--finish", "grid"], ["--expect", "dense"], ["--settle", "1s"]])
def test_a_full_grid_that_was_asked_for(options, store):
    store.put(2)
    found = run("inspect", store.root, *options, later=MIN)
    assert (found["state"], kinds(found)) == ("finished", [("structural", "finished")])
    assert run("inspect", store.root, later=MIN)["exit_code"] == 6


@pytest.mark.slow
def test_a_full_grid_alone_takes_10_minutes(store, tmp_path):
    store.put(2)
    assert run("inspect", store.root, later=9 * MIN)["exit_code"] == 6
    found = run("live", store.root, tmp_path / "copy", later=10 * MIN + 5)
    assert (found["exit_code"], kinds(found["targets"][0])) == (0, [("structural", "finished")])


def test_quiet_that_was_named_is_finished_and_weak(store, tmp_path):
    options = ("--finish", "quiet=2h")
    early = run("inspect", store.root, *options, later=HOUR)
    assert (early["exit_code"], early["awaited"]) == (6, ["2 h quiet"])
    assert run("inspect", store.root, *options, later=2 * HOUR + 5)["weak"]
    found = run("live", store.root, tmp_path / "copy", *options, later=2 * HOUR + 5)
    assert (found["exit_code"], kinds(found["targets"][0])) == (0, [("quiet", "finished")])
    end = json.loads((tmp_path / "copy.scopeferry/0001.jsonl").read_text().splitlines()[-1])
    assert end["finish"]["weak"] is True


@pytest.mark.slow
@pytest.mark.parametrize(("path", "after_s"), [("", 6 * HOUR), ("plain", 30 * MIN)])
def test_the_way_out_of_auto_is_unknown(path, after_s, store, tmp_path):
    source = store.root
    if path:
        source = tmp_path / path
        source.mkdir()
        (source / "x").write_bytes(b"x")
    assert run("inspect", source, later=after_s - 30)["awaited"]
    seen = run("inspect", source, later=after_s + 5)
    assert (seen["exit_code"], seen["state"], seen["awaited"]) == (6, "unknown", [])
    found = run("live", source, tmp_path / "copy", later=after_s + 5)
    assert (found["exit_code"], found["state"], codes(found)) == (6, "unknown", {"SF-603"})
    assert not differences(source, tmp_path / "copy")


@pytest.mark.slow
def test_nothing_has_begun_in_an_empty_folder(tmp_path, live, state):
    (tmp_path / "empty").mkdir()
    copy = live(of=tmp_path / "empty", later=24 * HOUR)
    copy.says("running", "to end: file 'complete', or a first file")


# -- a decision is not yet the end -------------------------------------------------------------------------------------


def test_what_changes_while_both_sides_are_compared_revokes_a_decision(store, tmp_path):
    (store.root / "notes.tmp").write_bytes(b"x")  # copied by the first walk, so there is a second one
    target = scopeferry.Target(str(store.root), str(tmp_path / "copy"), finish=["quiet=1s"], settle_s=0.2)
    states: list[str] = []
    with scopeferry.Live([target]) as copy:
        for _ in copy:
            state = copy.standings()[0].state
            if state != (states or [""])[-1]:
                states.append(state)
                if states.count("ending") == 1 and state == "ending":
                    store.put(2)
    assert states[:3] == ["running", "ending", "running"], copy.result.problems
    assert copy.result.exit_code == 0
    assert not differences(store.root, tmp_path / "copy")


def test_a_run_that_is_stopped_says_what_it_waited_for(store, live):
    copy = live("--finish", "marker=done")
    copy.says("to end: file 'done'")
    copy.process.send_signal(signal.SIGTERM)
    found = copy.ends(130)
    assert (found["state"], found["awaited"]) == ("interrupted", ["file 'done'"])


# -- transfer asks the same --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=[] if what == "temporary" else pytest.mark.slow) for what in sorted(RUNS_ON)]
)
def test_transfer_waits_for_the_same_and_copies_nothing_before(what, store, live, tmp_path):
    begin, options, awaited, _ = RUNS_ON[what]
    if "--expect" in options or "--writer-pid" in options:
        pytest.skip("person: transfer knows no such option")
    make_right = begin(store)
    store.write("complete")
    options = ["--finish", "auto", *options]
    try:
        early = run("transfer", store.root, tmp_path / "copy", *options, "--wait", "1s")
        assert (early["exit_code"], codes(early)) == (6, {"SF-601"})
        assert awaited in early["problems"][0]["hint"]
        assert not (tmp_path / "copy").exists()
        copy = live(*options, "--wait", "1m", command="transfer")
        copy.says("waiting for the end of the source", awaited)
    finally:
        make_right()
    assert copy.ends(0)["exit_code"] == 0
    assert not differences(store.root, tmp_path / "copy")
