"""`verify` years later, on another machine: from the record folder alone; and records that somebody changed."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import scopeferry
from scopeferry import repair, transfer, verify
from scopeferry.errors import Interrupted, UsageError
from scopeferry.kernel.task import Control
from scopeferry.testing.copies import NAMES, make, told
from scopeferry.testing.trees import flip, mutated, random_tree, rewrite


def journal_of(made) -> Path:
    (found,) = (Path(os.environ["XDG_STATE_HOME"]) / "scopeferry/journals").glob("*.sqlite")
    return found


def outcome(made, **options) -> tuple[int, str]:
    """The exit code of `verify`, and what it says of wrong usage."""
    try:
        return verify(made.dst, **options).exit_code, ""
    except UsageError as error:
        return error.exit_code, str(error)


def proved(made) -> dict[str, int]:
    """Path -> when it was proved, as the journal has it."""
    with sqlite3.connect(journal_of(made)) as db:
        sql = "SELECT f.path, d.name, d.value FROM details d JOIN folders f ON f.id=d.folder WHERE d.key='proved'"
        found = {os.fsdecode(path + name): value for path, name, value in db.execute(sql)}
    db.close()
    return found


def test_without_journal_and_source(rich):
    rich.forget_journals()
    shutil.rmtree(rich.src)
    assert verify(rich.dst).exit_code == 0
    rich.forget_journals()
    (rich.dst / "a.tif").chmod(0o600)
    flip(rich.dst / "sub/c.tif")
    found = told(verify(rich.dst))
    assert found == {"SF-404": {"a.tif"}, "SF-401": {"sub/c.tif", "sub/hard.tif"}}


def test_moved_with_its_record(rich):
    moved = rich.folder / "elsewhere/copy"
    moved.parent.mkdir()
    rich.dst.rename(moved)
    rich.records().rename(rich.folder / "elsewhere/copy.scopeferry")
    result = verify(moved)
    assert (result.exit_code, result.verified) == (0, len(NAMES) + 1)


def test_a_record_folder_named_by_hand(made):
    made.records().rename(made.folder / "kept")
    with pytest.raises(UsageError) as caught:
        verify(made.dst)
    assert caught.value.code == "SF-111"
    assert "--adopt" in caught.value.hint
    assert verify(made.dst, records=made.folder / "kept").exit_code == 0


def test_a_disk_that_is_mounted_for_reading_only(made):
    """Neither lock nor record can be written: the record beside the copy is still the record."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare: apt-get install util-linux")
    made.forget_journals()
    flip(made.dst / "a.tif")
    code = (
        f"import scopeferry; result = scopeferry.verify({str(made.dst)!r});"
        "print(result.exit_code, result.verified, [p.path for p in result.problems])"
    )
    mount = (
        f'mount --bind {made.folder} {made.folder} && mount -o remount,bind,ro {made.folder} && exec $PYTHON -c "$CODE"'
    )
    environment = {**os.environ, "CODE": code, "PYTHON": sys.executable}
    command = ["unshare", "-m", "sh", "-c", mount]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == f"4 {len(NAMES) - 1} ['a.tif']", done.stderr


def test_no_manifest_is_wrong_usage(made):
    shutil.rmtree(made.records())
    with pytest.raises(UsageError) as caught:
        verify(made.dst)
    assert (caught.value.code, caught.value.exit_code) == ("SF-111", 2)
    assert not made.records().exists()


def test_manifest_without_records(made):
    for path in made.records().glob("*.jsonl"):
        path.unlink()
    made.forget_journals()
    flip(made.dst / "a.tif")
    assert told(verify(made.dst)) == {"SF-401": {"a.tif"}}


def test_several_generations(made):
    rewrite(made.src / "a.tif", b"n" * 6000)
    (made.src / "later").write_bytes(b"later")
    made.copy()
    made.forget_journals()
    assert verify(made.dst).exit_code == 0
    flip(made.dst / "a.tif")
    assert told(verify(made.dst)) == {"SF-401": {"a.tif"}}


def test_a_manifest_that_a_killed_run_left_behind_does_not_count(made):
    """The record is the history, the manifest its projection: the newer generation wins."""
    old = (made.records() / "manifest.xxh128").read_bytes()
    rewrite(made.src / "a.tif", b"n" * 6000)
    made.copy()
    (made.records() / "manifest.xxh128").write_bytes(old)
    last = max(made.records().glob("*.jsonl"))
    lines = last.read_bytes().splitlines(keepends=True)
    last.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    assert verify(made.dst).exit_code == 0


# -- changed by somebody ---------------------------------------------------------------------------------------------


def test_an_edited_digest_in_the_manifest_is_reported(made):
    path = made.records() / "manifest.xxh128"
    text = path.read_text()
    at = text.index("= ") + 2
    path.write_text(text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :])
    result = verify(made.dst)
    assert result.exit_code == 4
    assert told(result) == {"SF-409": {str(path), "a.tif"}}


def test_a_line_taken_out_of_the_manifest_is_reported_and_its_file_still_checked(made):
    path = made.records() / "manifest.xxh128"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[1:]))
    flip(made.dst / "a.tif")
    assert told(verify(made.dst)) == {"SF-409": {str(path)}, "SF-401": {"a.tif"}}


def test_an_edited_generation_breaks_the_chain(made):
    rewrite(made.src / "a.tif", b"n" * 6000)
    made.copy()
    first = made.records() / "0001.jsonl"
    first.write_text(first.read_text().replace('"size": 70000', '"size": 70001'))
    result = verify(made.dst, quick=True)
    assert result.exit_code == 4
    assert "SF-409" in told(result)
    assert "0002.jsonl" in next(p.message for p in result.problems if p.code == "SF-409")


def test_a_generation_that_is_gone_breaks_the_chain(made):
    rewrite(made.src / "a.tif", b"n" * 6000)
    made.copy()
    (made.records() / "0001.jsonl").unlink()
    assert "SF-409" in told(verify(made.dst))


ESCAPES = [b"/etc/passwd", b"../outside", b"sub/../../outside", b"", b"a//b", b"./", b"sub/./c.tif", b"a\0b"]


@pytest.mark.parametrize("path", ESCAPES)
def test_a_manifest_that_leads_out_is_refused_and_the_line_named(made, path):
    manifest = made.records() / "manifest.xxh128"
    with manifest.open("ab") as file:
        file.write(b"XXH128 (%s) = %s\n" % (path, b"0" * 32))
    for options in ({}, {"manifest": manifest}):
        with pytest.raises(UsageError) as caught:
            verify(made.dst, **options)
        assert (caught.value.code, caught.value.exit_code) == ("SF-110", 2)
        assert f"line {len(NAMES) + 1}" in str(caught.value)


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside", "sub/../../outside", "", "a//b", "a\0b"])
@pytest.mark.parametrize("key", ["path", "stored", "leader"])
def test_a_record_that_leads_out_is_refused_and_the_line_named(made, path, key):
    record = made.records() / "0001.jsonl"
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    lines[3][key] = path
    lines[3].pop("path_b64", None) if key == "path" else None
    record.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for job in (lambda: verify(made.dst), lambda: repair(made.src, made.dst)):
        with pytest.raises(UsageError) as caught:
            job()
        assert caught.value.exit_code == 2
        assert "line 4" in str(caught.value)


WRONG = {
    "size": ["many", -1, 1 << 70, 1.5, None, [], True], "mtime_ns": ["now", 1 << 70, {}], "mode": [-1, 1 << 20, "rw"],
    "digest": ["abc", {"xxh128": "zz" * 16}, {"xxh128": 5}, {"xxh128": "00"}, []], "at": ["x", -5, 1e300, []],
    "xattrs": [[], {"user.x": 1}, {"user.x": "not base64!"}], "lost": [5, "times"], "kind": [5, []],
    "target": [5, "", "a\0"],
    "path": [5, None, "\ud800"], "path_b64": ["!", 5], "action": [5],
}  # fmt: skip


@pytest.mark.parametrize("key", WRONG)
def test_fields_of_the_wrong_kind_are_refused(made, key):
    record = made.records() / "0001.jsonl"
    whole = record.read_text().splitlines()
    for value in WRONG[key]:
        line = json.loads(whole[2])
        line[key] = value
        record.write_text("\n".join([*whole[:2], json.dumps(line), *whole[3:]]) + "\n")
        code, said = outcome(made, quick=True)
        assert code in {0, 4} or (code == 2 and "line 3" in said), (key, value, said)


@pytest.mark.parametrize("name", ["manifest.xxh128", "0001.jsonl"])
@pytest.mark.parametrize("rounds", [150, pytest.param(3_000, marks=pytest.mark.slow)])
def test_mutated_manifests_and_records_end_in_2_or_4_and_touch_nothing(made, name, rounds):
    path = made.records() / name
    whole = path.read_bytes()
    canary = made.folder / "outside"
    canary.write_bytes(b"canary")
    choice = random.Random(rounds)
    for _ in range(rounds):
        path.write_bytes(mutated(whole, choice))
        code, said = outcome(made, quick=rounds > 1000)
        assert code in {0, 4, 5} or (code == 2 and "line" in said), said
        if code == 0 and name.startswith("manifest"):
            assert path.read_bytes() == whole
    assert canary.read_bytes() == b"canary"


def test_planted_links_and_fifos_in_the_record_folder(made):
    outside = made.folder / "outside"
    outside.write_bytes(b"canary")
    (made.records() / "0002.jsonl").symlink_to(outside)
    with pytest.raises(UsageError):
        verify(made.dst)
    (made.records() / "0002.jsonl").unlink()
    os.mkfifo(made.records() / "0002.jsonl")
    with pytest.raises(UsageError):
        verify(made.dst)
    (made.records() / "0002.jsonl").unlink()
    (made.records() / "manifest.sha256.part").symlink_to(outside)
    assert verify(made.dst, digests=["sha256"]).exit_code == 0
    assert outside.read_bytes() == b"canary"


# -- proofs, samples, further digests ----------------------------------------------------------------------------------


def test_a_sample_takes_the_files_that_were_proved_longest_ago(tmp_path):
    src, dst = tmp_path / "src", tmp_path / "dst"
    random_tree(src, files=40, size=1000)
    transfer(src, dst)
    seen: set[str] = set()
    for _ in range(10):
        events = []
        result = verify(dst, sample="10%", on_event=events.append)
        files = {event.path for event in events if event.kind == "done" and event.path.endswith(".tif")}
        assert (result.exit_code, result.state, result.verified, len(files)) == (0, "sampled", 4, 4)
        assert "sampled 10 %" in result.details["verdict"]
        assert not files & seen
        seen |= files
    assert len(seen) == 40


def test_samples_go_on_where_they_were_without_the_first_journal(tmp_path):
    src, dst = tmp_path / "src", tmp_path / "dst"
    random_tree(src, files=20, size=1000)
    transfer(src, dst)
    shutil.rmtree(Path(os.environ["XDG_STATE_HOME"]) / "scopeferry")
    seen: set[str] = set()
    for _ in range(4):
        verify(dst, sample=25, on_event=lambda e: seen.add(e.path) if e.kind == "done" else None)
    assert len({path for path in seen if path.endswith(".tif")}) == 20


def test_the_date_of_each_proof_is_kept(made):
    verify(made.dst)
    assert set(proved(made)) == set(NAMES)
    flip(made.dst / "a.tif")
    before = proved(made)
    with sqlite3.connect(journal_of(made)) as db:
        db.execute("UPDATE details SET value = 5 WHERE key = 'proved'")
    db.close()
    verify(made.dst)
    after = proved(made)
    assert after.pop("a.tif") == 5  # what is wrong is not proved
    assert all(after[path] >= before[path] for path in after)


def test_a_further_digest_is_computed_once_and_recorded(made):
    result = verify(made.dst, digests=["sha256"])
    assert result.exit_code == 0
    lines = (made.records() / "manifest.sha256").read_text().splitlines()
    assert len(lines) == len(NAMES)
    assert os.system(f"cd {made.dst} && sha256sum --quiet --strict -c ../dst.scopeferry/manifest.sha256") == 0
    entry = next(line for line in made.lines() if line.get("path") == "a.tif")
    assert (entry["action"], entry["from_copy"]) == ("checked", ["sha256"])
    end = made.lines()[-1]
    assert set(end["manifest"]) == {"xxh128", "sha256"}
    assert end["state"] == "complete"
    assert verify(made.dst, digests=["sha256"]).exit_code == 0
    assert len(list(made.records().glob("*.jsonl"))) == 2  # nothing new to record
    assert transfer(made.src, made.dst).exit_code == 0
    made.forget_journals()
    assert verify(made.dst, digests=["sha256"]).exit_code == 0


def test_manifests_that_take_long_wait_for_the_next_run_after_an_interrupt(made, monkeypatch):
    monkeypatch.setattr("scopeferry.jobs.verify.AT_ONCE", 1)
    control, named = Control(), made.lines()[-1]["manifest"]

    def stop(event) -> None:
        if event.kind == "done":
            control.stop(Interrupted("stopped"))

    result = verify(made.dst, digests=["sha256"], control=control, on_event=stop)
    assert result.exit_code == 130
    assert not (made.records() / "manifest.sha256").exists()
    assert made.lines()[-1]["manifest"] == named  # still the ones that are there
    digested = {line["path"] for line in made.lines() if line.get("action") == "checked"}
    assert digested == set(NAMES)  # all was settled: nothing new is computed
    assert verify(made.dst).exit_code == 0
    assert verify(made.dst, digests=["sha256"]).exit_code == 0
    assert len((made.records() / "manifest.sha256").read_text().splitlines()) == len(NAMES)
    assert set(made.lines()[-1]["manifest"]) == {"xxh128", "sha256"}
    count = len(list(made.records().glob("*.jsonl")))
    assert verify(made.dst, digests=["sha256"]).exit_code == 0
    assert len(list(made.records().glob("*.jsonl"))) == count


def test_a_colleague_reads_the_record_and_nobody_else_s_lock(tmp_path):
    old = os.umask(0o022)
    try:
        made = make(tmp_path)
        flip(made.dst / "a.tif")
        assert repair(made.src, made.dst).exit_code == 0
        assert verify(made.dst, digests=["sha256"]).exit_code == 0
    finally:
        os.umask(old)
    modes = {path.name: path.stat().st_mode & 0o777 for path in made.records().iterdir()}
    assert modes.pop("lock") == 0o600
    assert modes.pop("set_aside") == 0o700
    assert set(modes.values()) == {0o644}
    assert made.records().stat().st_mode & 0o777 == 0o755


def test_a_further_digest_is_not_taken_of_what_is_wrong(made):
    flip(made.dst / "a.tif")
    assert verify(made.dst, digests=["sha256"]).exit_code == 4
    assert "a.tif" not in (made.records() / "manifest.sha256").read_text()


def test_a_further_digest_goes_with_the_bytes_it_was_taken_of(made):
    """A file replaced later, without that digest, must not keep the old one."""
    verify(made.dst, digests=["sha256"])
    rewrite(made.src / "a.tif", b"n" * 6000)
    assert transfer(made.src, made.dst).exit_code == 0
    assert os.system(f"cd {made.dst} && sha256sum --quiet --strict -c ../dst.scopeferry/manifest.sha256") == 0
    assert verify(made.dst).exit_code == 0
    made.forget_journals()
    result = verify(made.dst, digests=["sha256"])
    assert result.exit_code == 0
    assert os.system(f"cd {made.dst} && sha256sum --quiet --strict -c ../dst.scopeferry/manifest.sha256") == 0


def test_a_copy_that_another_machine_went_on_with(made, monkeypatch, tmp_path):
    """Two state folders stand for two machines: each catches up with what the other has recorded."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    rewrite(made.src / "a.tif", b"n" * 6000)
    made.copy()
    monkeypatch.undo()
    result = scopeferry.transfer(made.src, made.dst)
    assert (result.exit_code, result.copied, result.replaced) == (0, 0, 0)
    assert verify(made.dst).exit_code == 0
