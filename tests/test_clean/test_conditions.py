"""`clean`: each condition alone missing is exit 5 and an untouched source; all are looked at; a plan deletes nothing.

How it frees, and what happens meanwhile: ``test_freeing.py``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scopeferry import clean, transfer, verify
from scopeferry.copying import record
from scopeferry.copying.place import Lock
from scopeferry.errors import UsageError
from scopeferry.testing.copies import NAMES, state_of, told
from scopeferry.testing.trees import flip, rewrite

CONDITIONS = {"complete", "finished", "not pinned", "other disk", "proved", "copies", "source unchanged", "older"}


def failing(result) -> set[str]:
    return {one["condition"] for one in result.details["conditions"] if not one["ok"]}


def test_a_plan_touches_nothing(rich):
    before, records = state_of(rich.src), state_of(rich.dst)
    result = clean(rich.src, [rich.dst])
    assert (result.exit_code, result.state) == (0, "planned")
    assert {one["condition"] for one in result.details["conditions"]} == CONDITIONS
    assert result.details["plan"]["files"] == len(NAMES) + 2
    assert result.details["plan"]["bytes"] == sum(NAMES.values())
    assert (state_of(rich.src), state_of(rich.dst)) == (before, records)
    assert not rich.records("src").exists()
    assert len(list(rich.records().glob("*.jsonl"))) == 1
    assert "add --yes" in result.details["verdict"]


def test_it_is_freed_and_recorded_on_both_sides(rich):
    result = clean(rich.src, [rich.dst], yes=True)
    assert (result.exit_code, result.state, result.details["freed"]) == (0, "complete", len(NAMES) + 2)
    assert list(rich.src.iterdir()) == []
    for name in ("dst", "src"):
        header, *entries, end = rich.lines(name)
        assert header["job"] == "clean"
        assert {entry["path"] for entry in entries} == {*NAMES, "link", "sub/hard.tif"}
        for entry in entries:
            assert (entry["action"], entry["copies"]) == ("freed", [str(rich.dst)])
            assert entry["kind"] == "link" or len(entry["digest"]["xxh128"]) == 32
            assert "size" in entry
        assert (end["state"], end["counts"]) == ("complete", {"freed": len(NAMES) + 2})
        assert record.check_chain(str(rich.records(name))) == []
    assert verify(rich.dst).exit_code == 0
    again = clean(rich.src, [rich.dst], yes=True)
    assert (again.exit_code, again.details["freed"]) == (0, 0)
    assert transfer(rich.src, rich.dst).exit_code == 0
    assert verify(rich.dst).exit_code == 0


# -- each condition alone --------------------------------------------------------------------------------------------


def last_end(made, **change) -> None:
    """Change the end line of the last generation."""
    path = max(made.records().glob("*.jsonl"))
    *lines, end = path.read_text().splitlines()
    path.write_text("\n".join([*lines, json.dumps({**json.loads(end), **change})]) + "\n")


def state(name):
    return lambda made: last_end(made, state=name)


def finish(**facts):
    return lambda made: last_end(made, finish=facts)


def pin(text, name="dst"):
    def write(made) -> None:
        made.records(name).mkdir(exist_ok=True)
        (made.records(name) / "pin.toml").write_text(text)

    return write


def grow(made) -> None:
    with open(made.src / "a.tif", "ab") as file:
        file.write(b"x")


def replace_by_twin(made) -> None:
    path = made.src / "sub/deep/d.tif"
    time_ns = os.stat(path).st_mtime_ns
    (made.folder / "twin").write_bytes(os.urandom(3000))
    (made.folder / "twin").rename(path)
    os.utime(path, ns=(time_ns, time_ns))


def no_end(made) -> None:
    path = max(made.records().glob("*.jsonl"))
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


def add_unreadable(made) -> None:
    shutil.rmtree(made.records())


ALONE = {
    "partial": (state("partial"), {}, "complete", "SF-511"),
    "interrupted": (state("interrupted"), {}, "complete", "SF-511"),
    "quiet": (finish(state="finished", evidence="quiet=10m", by="live"), {}, "finished", "SF-517"),
    "weak": (finish(state="finished", evidence="marker of a profile", weak=True), {}, "finished", "SF-517"),
    "unknown": (finish(state="unknown", evidence="grid"), {}, "finished", "SF-517"),
    "no evidence": (lambda made: last_end(made, finish=None), {}, "finished", "SF-517"),
    "copy damaged": (lambda made: flip(made.dst / "a.tif"), {}, "proved", "SF-512"),
    "copy incomplete": (lambda made: (made.dst / "a.tif").unlink(), {}, "proved", "SF-512"),
    "too few copies": (lambda made: None, {"copies_needed": 2}, "copies", "SF-514"),
    "same disk": (lambda made: None, {"other_disk": True}, "other disk", "SF-518"),
    "too young": (lambda made: None, {"older_than_s": 3600}, "older", "SF-515"),
    "pinned": (pin('pin = "the paper is not out"'), {}, "not pinned", "SF-516"),
    "pinned source": (pin('pin = "mine"', "src"), {}, "not pinned", "SF-516"),
    "pin not understood": (pin("pin = "), {}, "not pinned", "SF-516"),
    "source edited": (lambda made: rewrite(made.src / "a.tif", b"y" * 5000), {}, "source unchanged", "SF-513"),
    "source edited, time back": (lambda made: flip(made.src / "a.tif"), {}, "source unchanged", "SF-513"),
    "source grew": (grow, {}, "source unchanged", "SF-513"),
    "source replaced by a twin": (replace_by_twin, {}, "source unchanged", "SF-513"),
}


@pytest.mark.parametrize("journal", ["journal", "no journal"])
@pytest.mark.parametrize("yes", [False, True])
@pytest.mark.parametrize("case", ALONE)
def test_each_condition_alone_missing(made, case, yes, journal):
    change, options, condition, code = ALONE[case]
    change(made)
    if journal == "no journal":
        made.forget_journals()
    before = state_of(made.src)
    result = clean(made.src, [made.dst], yes=yes, **options)
    assert (result.exit_code, result.state) == (5, "refused")
    assert failing(result) == {condition}
    assert code in told(result)
    assert {one["condition"] for one in result.details["conditions"]} == CONDITIONS
    assert state_of(made.src) == before
    assert not list(made.records("src").glob("*.jsonl"))
    assert "nothing touched" in result.details["verdict"]


def test_a_run_into_the_copy_that_was_cut_off(made):
    no_end(made)
    before = state_of(made.src)
    result = clean(made.src, [made.dst], yes=True)
    assert (result.exit_code, failing(result)) == (5, {"complete", "finished"})
    assert state_of(made.src) == before
    assert transfer(made.src, made.dst).exit_code == 0  # nothing to copy: it declares what the killed run could not
    assert clean(made.src, [made.dst], yes=True).exit_code == 0


def test_several_at_once_are_all_said(made):
    flip(made.dst / "a.tif")
    pin('pin = "x"')(made)
    grow(made)
    state("partial")(made)
    result = clean(made.src, [made.dst], yes=True, copies_needed=3, older_than_s=3600, other_disk=True)
    assert failing(result) == CONDITIONS - {"finished"}
    assert {"SF-511", "SF-512", "SF-513", "SF-514", "SF-515", "SF-516", "SF-518"} <= set(told(result))


def test_a_copy_that_live_made_is_one(made):
    path = made.records() / "0001.jsonl"
    path.write_text(path.read_text().replace('"job": "transfer"', '"job": "live"', 1))
    assert '"job": "live"' in path.read_text()
    assert clean(made.src, [made.dst], yes=True).exit_code == 0


def test_a_copy_without_a_manifest_is_none(made):
    other = made.folder / "by hand"
    shutil.copytree(made.src, other)
    before = state_of(made.src)
    result = clean(made.src, [made.dst, other], yes=True)
    assert result.exit_code == 5
    assert {"SF-511", "SF-514"} <= set(told(result))
    assert state_of(made.src) == before
    assert verify(other, made.src, adopt=True).exit_code == 0
    assert clean(made.src, [made.dst, other], yes=True).exit_code == 0


def test_what_a_person_declares_is_recorded(made):
    finish(state="finished", evidence="quiet=10m")(made)
    result = clean(made.src, [made.dst], yes=True, finish_now=True)
    assert result.exit_code == 0
    for name in ("src", "dst"):
        declared = made.lines(name)[0]["finish"]
        assert declared["evidence"] == "declared: --finish now"
        assert "@" in declared["by"]


def test_evidence_beside_quiet_is_enough(made):
    finish(state="finished", evidence=["quiet=10m", "marker complete.json"])(made)
    assert clean(made.src, [made.dst]).exit_code == 0


def test_a_touched_source_is_not_what_was_proved_but_a_changed_inode_alone_is_read(made):
    """Size and time as recorded and the same bytes: it is. (A chmod or a further link moves only the change time.)"""
    (made.src / "a.tif").chmod(0o600)
    (made.folder / "another name").hardlink_to(made.src / "sub/c.tif")
    result = clean(made.src, [made.dst], yes=True)
    assert result.exit_code == 0, result.problems
    assert (made.folder / "another name").read_bytes() != b""


def test_a_metadata_difference_of_the_copy_does_not_stop_it(made):
    (made.dst / "a.tif").chmod(0o600)
    assert clean(made.src, [made.dst]).exit_code == 0


def test_a_copy_by_hard_links_is_no_copy(made):
    twin = made.folder / "twin"
    subprocess.run(["cp", "-al", made.src, twin], check=True)
    shutil.copytree(made.records(), made.folder / "twin.scopeferry")
    before = state_of(made.src)
    result = clean(made.src, [twin], yes=True)
    assert result.exit_code == 5
    assert "SF-514" in told(result)
    assert {path: found[:2] for path, found in state_of(made.src).items()} == {
        path: found[:2] for path, found in before.items()
    }


def test_a_copy_that_is_the_source_by_a_bind_mount(made):
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare: apt-get install util-linux")
    inner = made.folder / "inner"
    inner.mkdir()
    shutil.copytree(made.records(), made.folder / "inner.scopeferry")
    before = state_of(made.src)
    code = (
        "import scopeferry, sys\n"
        f"result = scopeferry.clean({str(made.src)!r}, [{str(inner)!r}], yes=True)\n"
        "print(result.exit_code)\n"
    )
    mount = f'mount --bind {made.src} {inner} && exec {sys.executable} -c "$CODE"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "CODE": code},
    )
    assert done.stdout.strip() == "5" or "SF-104" in done.stderr or "the same" in done.stderr, done.stdout + done.stderr
    assert state_of(made.src) == before


# -- several copies --------------------------------------------------------------------------------------------------


def test_two_copies(made):
    made.copy("second", digest=("sha256",))
    flip(made.folder / "second/a.tif")
    before = state_of(made.src)
    result = clean(made.src, [made.dst, made.folder / "second"], yes=True, copies_needed=1)
    assert (result.exit_code, failing(result)) == (5, {"proved"})  # every copy named must be right
    assert state_of(made.src) == before
    flip(made.folder / "second/a.tif")
    result = clean(made.src, [made.dst, made.folder / "second"], yes=True)
    assert (result.exit_code, result.details["freed"]) == (0, len(NAMES))
    for name in ("src", "dst", "second"):
        assert len([line for line in made.lines(name) if line.get("action") == "freed"]) == len(NAMES)


def test_a_file_that_only_one_of_two_copies_holds(made):
    made.copy("second", select=(("exclude", "a.tif"),))
    result = clean(made.src, [made.dst, made.folder / "second"], yes=True)
    assert (result.exit_code, told(result)["SF-514"]) == (5, {"a.tif"})
    result = clean(made.src, [made.folder / "second", made.dst], copies_needed=1)
    assert (result.exit_code, result.details["plan"]["files"]) == (0, len(NAMES))


def test_a_copy_on_the_file_system_of_the_source_is_said(made):
    result = clean(made.src, [made.dst])
    assert told(result) == {"SF-910": {str(made.dst)}}
    assert result.exit_code == 0


# -- locks and usage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dst", "src"])
def test_something_runs_on_it(made, name):
    made.records(name).mkdir(exist_ok=True)
    lock = Lock(str(made.records(name) / "lock"), "other")
    lock.acquire()
    before = state_of(made.src)
    try:
        result = clean(made.src, [made.dst], yes=True)
    finally:
        lock.release()
    assert (result.exit_code, set(told(result))) == (75, {"SF-321"})
    assert state_of(made.src) == before


def test_wrong_usage(made):
    cases = {
        "SF-100": ((made.src, []), {}),
        "SF-101": ((made.src, [made.folder / "none"]), {}),
        "SF-104": ((made.src, [made.dst, Path(f"{made.folder}/./dst")]), {}),
        "SF-103": ((made.src, [made.src / "sub"]), {}),
        "SF-105": ((made.src, [made.dst]), {"copies_needed": 0}),
    }
    before = state_of(made.src)
    for code, (arguments, options) in cases.items():
        with pytest.raises(UsageError) as caught:
            clean(*arguments, yes=True, **options)
        assert caught.value.code == code
    with pytest.raises(UsageError):
        clean(made.folder / "none", [made.dst])
    assert state_of(made.src) == before


def test_a_record_that_cannot_be_written_stops_it(made):
    if shutil.which("setpriv") is None or os.geteuid() != 0:
        pytest.skip("needs root and setpriv: apt-get install util-linux")
    made.records().chmod(0o555)
    before = state_of(made.src)
    code = f"import scopeferry; print(scopeferry.clean({str(made.src)!r}, [{str(made.dst)!r}], yes=True).exit_code)"
    powers = "-dac_override,-dac_read_search"
    command = ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}", sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout.strip() == "1", done.stderr
    assert state_of(made.src) == before


def test_older_than_counts_the_newest_file(made):
    old = time.time() - 40 * 86400
    for name in NAMES:
        os.utime(made.src / name, (old, old))
    assert transfer(made.src, made.dst).exit_code == 0
    assert clean(made.src, [made.dst], older_than_s=30 * 86400).exit_code == 0
    future = time.time() + 86400
    os.utime(made.src / "a.tif", (future, future))
    assert transfer(made.src, made.dst).exit_code == 0
    assert "SF-515" in told(clean(made.src, [made.dst], older_than_s=1))


def test_one_file(tmp_path):
    (tmp_path / "one.tif").write_bytes(b"content")
    (tmp_path / "bystander").write_bytes(b"mine")
    transfer(tmp_path / "one.tif", tmp_path / "other.tif")
    result = clean(tmp_path / "one.tif", [tmp_path / "other.tif"], yes=True)
    assert (result.exit_code, result.details["freed"]) == (0, 1), result.problems
    assert not (tmp_path / "one.tif").exists()
    assert (tmp_path / "bystander").exists()
    assert (tmp_path / "other.tif").read_bytes() == b"content"
