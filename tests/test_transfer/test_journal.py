"""Journal, records and lock: lost, damaged, older, newer, in use. Nothing that is equal is sent again."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

import scopeferry
from scopeferry.errors import UsageError
from scopeferry.kernel import publish
from scopeferry.logs import host
from scopeferry.testing.steps import Steps
from scopeferry.testing.trees import flip, random_bytes, random_tree, rewrite, snapshot

COMMAND = str(Path(sys.executable).with_name("scopeferry"))


@pytest.fixture
def done(ferry):
    """Thirty files, two of them one inode, and a link, transferred."""
    random_tree(ferry.src, files=28, folders=4, seed=11)
    (ferry.src / "a").write_bytes(random_bytes(1, 5000))
    os.link(ferry.src / "a", ferry.src / "b")
    (ferry.src / "link").symlink_to("a")
    ferry.journal = Path(ferry.run(0).details["journal"])
    return ferry


def nothing_sent(ferry, expect=0, **options):
    """A run in which no temporary file is made: whatever is known or not, what is equal is not sent again."""
    with Steps() as steps:
        made = steps.watch("create_part", "open_part", "make_link", "hard_link")
        result = ferry.run(expect, **options)
    assert made == []
    assert (result.copied, result.replaced, result.repaired, result.bytes) == (0, 0, 0, 0)
    return result


# -- lost, damaged ---------------------------------------------------------------------------------------------------


def spoil():
    def truncate(path):
        os.truncate(path, 5000)

    def garbage(path):
        path.write_bytes(random_bytes(1, 30_000))

    def empty(path):
        path.write_bytes(b"")

    def page(path):
        with open(path, "r+b") as file:
            file.seek(8192)
            file.write(b"\xff" * 30_000)

    return {"deleted": Path.unlink, "truncated": truncate, "garbage": garbage, "empty": empty, "pages": page}


@pytest.mark.parametrize("what", spoil().values(), ids=spoil())
def test_a_journal_that_is_lost_or_damaged_is_rebuilt_from_the_records(done, codes, what):
    digest = done.run(0).tree_digest
    for suffix in ("-wal", "-shm"):
        done.journal.with_name(done.journal.name + suffix).unlink(missing_ok=True)
    what(done.journal)
    result = nothing_sent(done)
    assert codes(result)["SF-907"]
    assert result.tree_digest == digest
    assert nothing_sent(done).skipped == 31
    done.same()


def test_a_damaged_journal_is_set_aside_by_name(done):
    done.journal.write_bytes(random_bytes(1, 30_000))
    done.run(0)
    aside = [path for path in done.journal.parent.iterdir() if "damaged" in path.name]
    assert [path.read_bytes() for path in aside] == [random_bytes(1, 30_000)]


def test_journal_and_records_lost_everything_is_compared_and_adopted(done):
    done.journal.unlink()
    shutil.rmtree(done.records)
    result = nothing_sent(done)
    assert result.adopted == 31
    assert nothing_sent(done).skipped == 31


def test_records_lost_the_journal_alone_serves(done):
    digest = done.run(0).tree_digest
    shutil.rmtree(done.records)
    result = nothing_sent(done)
    assert (result.skipped, result.tree_digest) == (31, digest)


def test_what_a_rebuilt_journal_claims_is_read_before_it_is_believed(done, codes):
    flip(done.dst / "a", 100)
    done.journal.unlink()
    result = done.run(0)
    assert result.repaired >= 1
    assert "SF-902" in codes(result)
    done.same()


def test_a_rebuilt_journal_knows_a_source_that_has_become_shorter(done, codes):
    done.journal.unlink()
    (done.src / "a").write_bytes(b"crashed")
    result = done.run(5)
    assert set(codes(result)["SF-503"]) <= {"a", "b"}
    assert (done.dst / "a").read_bytes() == random_bytes(1, 5000)


def test_a_rebuilt_journal_knows_what_somebody_changed(done, codes):
    done.journal.unlink()
    name = next(path for path in done.dst.iterdir() if path.suffix == ".tif")
    name.write_bytes(b"somebody's work")
    for _ in range(2):
        result = done.run_unchecked(5)
        assert codes(result)["SF-501"] == [name.name]
        assert name.read_bytes() == b"somebody's work"


def test_an_older_journal_put_back_never_hides_a_change(done):
    old = done.journal.with_name("old")
    shutil.copy(done.journal, old)
    for number in range(3):
        rewrite(done.src / "a", random_bytes(50 + number, 5000), keep_time=True)
        (done.src / f"new{number}").write_bytes(b"new")
        done.run(0)
    shutil.copy(old, done.journal)
    for suffix in ("-wal", "-shm"):
        done.journal.with_name(done.journal.name + suffix).unlink(missing_ok=True)
    done.run(0)
    done.same()
    assert done.run(0).skipped == 34


def test_a_journal_of_another_destination_is_not_written_into(done, tmp_path):
    other, before = tmp_path / "other", done.journal.read_bytes()
    with pytest.raises(UsageError) as raised:
        done.run(dst=other, journal=str(done.journal))
    assert raised.value.code == "SF-105"
    assert (done.journal.read_bytes(), other.exists()) == (before, False)


def test_a_journal_of_a_copy_that_was_there_is_not_believed(done, tmp_path):
    other = tmp_path / "other"
    shutil.rmtree(done.dst)
    result = done.run(0, dst=other, journal=str(done.journal))
    assert result.copied + result.adopted + result.checked == 31
    assert {path: found.content for path, found in snapshot(other).items()} == {
        path: found.content for path, found in snapshot(done.src).items()
    }


# -- schema ----------------------------------------------------------------------------------------------------------


def test_a_newer_schema_is_2_and_nothing_is_touched(done):
    with closing(sqlite3.connect(done.journal)) as db:
        db.execute("PRAGMA user_version=99")
    before = done.journal.read_bytes(), snapshot(done.dst)
    with pytest.raises(UsageError) as raised:
        done.run()
    assert raised.value.code == "SF-108"
    assert str(done.journal) in str(raised.value)
    assert (done.journal.read_bytes(), snapshot(done.dst)) == before


def test_a_database_of_somebody_else_is_not_used(ferry, tmp_path):
    (ferry.src / "a").write_bytes(b"a")
    theirs = tmp_path / "theirs.sqlite"
    with closing(sqlite3.connect(theirs)) as db:
        db.execute("CREATE TABLE precious (x)")
    before = theirs.read_bytes()
    with pytest.raises(UsageError):
        ferry.run(journal=str(theirs))
    assert theirs.read_bytes() == before


def test_a_text_file_named_as_journal_is_not_moved_away(ferry, tmp_path):
    """A damaged journal is set aside; a file that never was one belongs to somebody."""
    (ferry.src / "a").write_bytes(b"a")
    theirs = tmp_path / "notes.txt"
    theirs.write_text("not a database at all, but somebody's notes\n" * 100)
    try:
        ferry.run(journal=str(theirs))
    except UsageError:
        pass
    kept = [path for path in tmp_path.iterdir() if path.is_file() and path.read_bytes().startswith(b"not a database")]
    assert kept, "the notes are gone"


# -- in use ----------------------------------------------------------------------------------------------------------


def test_a_reader_never_stops_the_run(done):
    (done.src / "new").write_bytes(b"new")
    with closing(sqlite3.connect(done.journal)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT COUNT(*) FROM items").fetchone()
        assert done.run(0).copied == 1
        reader.execute("COMMIT")


@pytest.mark.slow
def test_a_writer_that_does_not_let_go_is_75(done, codes):
    (done.src / "new").write_bytes(b"new")
    with closing(sqlite3.connect(done.journal, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE items SET state = state")
        result = done.run_any()
        assert (result.exit_code, set(codes(result))) == (75, {"SF-324"})
        writer.execute("ROLLBACK")
    assert done.run(0).copied == 1


def test_the_journal_is_never_on_a_network_file_system(ferry, tmp_path, monkeypatch):
    (ferry.src / "a").write_bytes(b"a")
    real = publish.system.mount
    (tmp_path / "share").mkdir()
    monkeypatch.setattr(
        publish.system, "mount", lambda path: ("nfs4", "/share", "server:/") if "share" in str(path) else real(path)
    )
    with pytest.raises(UsageError) as raised:
        ferry.run(journal=str(tmp_path / "share/journal.sqlite"))
    assert raised.value.code == "SF-107"
    assert not ferry.dst.exists()


# -- the lock --------------------------------------------------------------------------------------------------------


def test_a_second_run_on_the_same_destination_is_75_and_names_the_first(ferry, codes):
    for number in range(5):
        (ferry.src / f"f{number}").write_bytes(random_bytes(number, 400_000))
    command = [COMMAND, "transfer", "--limit", "500kB", "--workers", "1", str(ferry.src), str(ferry.dst)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        try:
            deadline = time.monotonic() + 20
            while not (ferry.records / "lock").exists() or not (ferry.records / "lock").read_bytes():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            result = ferry.run_any()
            assert (result.exit_code, set(codes(result))) == (75, {"SF-321"})
            (problem,) = result.problems
            assert f"pid {first.pid} " in problem.message
            assert os.uname().nodename in problem.message
        finally:
            first.terminate()
            first.wait()
    ferry.run(0)
    ferry.same()


def test_many_runs_at_once_leave_the_tree_right(ferry):
    random_tree(ferry.src, files=40, size=5000, seed=5)
    command = [COMMAND, "transfer", "--quiet", str(ferry.src), str(ferry.dst)]
    runs = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(5)]
    found = {run.wait() for run in runs}
    assert found <= {0, 75}
    assert 0 in found
    ferry.run(0)
    ferry.same()


def test_a_lock_left_by_a_killed_run_is_no_lock(ferry):
    (ferry.src / "a").write_bytes(b"a")
    ferry.records.mkdir()
    (ferry.records / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    ferry.run(0)


def test_the_lock_holds_whatever_records_folder_is_named(ferry, tmp_path, codes):
    (ferry.src / "a").write_bytes(b"a")
    from scopeferry.copying import place

    ferry.dst.mkdir()
    lock = place.Lock(place.find(str(ferry.dst)).lock, "first")
    lock.acquire()
    try:
        result = ferry.run_any(records=str(tmp_path / "elsewhere"))
    finally:
        lock.release()
    assert result.exit_code == 75


@pytest.mark.parametrize("age_s", [0, 5000])
def test_where_locks_do_not_work_a_heartbeat_is_looked_at(ferry, monkeypatch, age_s):
    (ferry.src / "a").write_bytes(b"a")

    def no_locks(fd):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(publish.system, "lock", no_locks)
    ferry.records.mkdir()
    held = ferry.records / "lock.held"
    held.touch()
    os.utime(held, (time.time() - age_s,) * 2)
    result = ferry.run_any()
    assert result.exit_code == (75 if age_s == 0 else 0)
    if age_s:
        assert not held.exists()


# -- where the records lie -------------------------------------------------------------------------------------------


def test_records_beside_the_data_and_nothing_of_ours_inside(done):
    assert done.records.is_dir()
    assert {"manifest.xxh128", "0001.jsonl"} <= set(os.listdir(done.records))
    assert not any(b"scopeferry" in path for path in snapshot(done.dst, skip=()))


def test_records_elsewhere(ferry, tmp_path):
    (ferry.src / "a").write_bytes(b"a")
    elsewhere = tmp_path / "elsewhere"
    result = scopeferry.transfer(ferry.src, ferry.dst, records=str(elsewhere))
    assert result.exit_code == 0
    assert {"manifest.xxh128", "0001.jsonl"} <= set(os.listdir(elsewhere))
    assert scopeferry.transfer(ferry.src, ferry.dst, records=str(elsewhere)).skipped == 1


def test_somebodys_receipt_and_reserve_are_left_alone(ferry, tmp_path):
    (ferry.src / "a").write_bytes(b"a")
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "reserve").write_text("table for two")
    assert scopeferry.transfer(ferry.src, ferry.dst, records=str(notes)).exit_code == 0
    assert (notes / "reserve").read_text() == "table for two"
    other = tmp_path / "other"
    other.mkdir()
    (other / "receipt.txt").write_text("paid")
    with pytest.raises(UsageError) as raised:
        scopeferry.transfer(ferry.src, tmp_path / "dst2", records=str(other))
    assert (raised.value.code, (other / "receipt.txt").read_text()) == ("SF-105", "paid")


def test_records_of_another_copy_are_not_written_into(ferry, tmp_path):
    """As with a ``records`` in the settings, which holds for every destination."""
    (ferry.src / "a").write_bytes(b"a")
    elsewhere, other = tmp_path / "elsewhere", tmp_path / "other"
    assert scopeferry.transfer(ferry.src, ferry.dst, records=str(elsewhere)).exit_code == 0
    before = snapshot(elsewhere)
    with pytest.raises(UsageError) as raised:
        scopeferry.transfer(ferry.src, other, records=str(elsewhere))
    assert raised.value.code == "SF-105"
    assert (snapshot(elsewhere), other.exists()) == (before, False)
    ferry.dst.rename(other)  # a copy that was moved takes its records along
    assert scopeferry.transfer(ferry.src, other, records=str(elsewhere)).exit_code == 0


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare: util-linux")
@pytest.mark.parametrize("zarr", [False, True])
def test_records_of_a_mount_point_lie_inside_but_never_in_a_zarr_hierarchy(ferry, tmp_path, state, zarr):
    (ferry.src / "a").write_bytes(b"a")
    (tmp_path / "disk").mkdir()
    (ferry.src / "zarr.json").write_text("{}") if zarr else None
    script = f"""
set -e
mount -t tmpfs tmpfs "{tmp_path}/disk"
{"touch " + str(tmp_path) + "/disk/zarr.json" if zarr else ":"}
{"cp -p " + str(ferry.src) + "/zarr.json " + str(tmp_path) + "/disk/" if zarr else ":"}
"{COMMAND}" transfer --json "{ferry.src}" "{tmp_path}/disk"
ls -A "{tmp_path}/disk"
"""
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[0])
    inside = set(done.stdout.splitlines()[1:])
    if zarr:
        assert inside == {"a", "zarr.json"}
        assert result["record"].startswith(str(state))
        assert "SF-906" in {problem["code"] for problem in result["problems"]}
    else:
        assert inside == {"a", ".scopeferry"}


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv: util-linux")
@pytest.mark.parametrize("inside", [True, False])
def test_records_of_a_folder_whose_parent_cannot_be_written(ferry, tmp_path, state, inside):
    (ferry.src / "a").write_bytes(b"a")
    parent = tmp_path / "parent"
    (parent / "dst").mkdir(parents=True)
    os.chown(parent, 1234, 1234)
    if not inside:
        (parent / "dst/.scopeferry").write_bytes(b"somebody's file")
    drop = "-dac_override,-dac_read_search"
    command = ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}", COMMAND, "transfer", "--json"]
    done = subprocess.run([*command, str(ferry.src), str(parent / "dst")], capture_output=True, text=True, check=False)
    result = json.loads(done.stdout)
    assert done.returncode == 0, result
    assert os.listdir(parent) == ["dst"]
    assert "SF-906" in {problem["code"] for problem in result["problems"]} or result["record"].startswith(
        str(parent / "dst/.scopeferry")
    )
    if not inside:
        assert result["record"].startswith(str(state))


# -- the chain -------------------------------------------------------------------------------------------------------


def test_each_generation_names_the_one_before(done):
    import hashlib

    for number in range(3):
        (done.src / f"new{number}").write_bytes(b"new")
        done.run(0)
    names = sorted(done.records.glob("0*.jsonl"))
    assert [path.name for path in names] == ["0001.jsonl", "0002.jsonl", "0003.jsonl", "0004.jsonl"]
    for before, path in pairwise(names):
        head = json.loads(path.read_text().splitlines()[0])
        assert head["previous"] == {"name": before.name, "sha256": hashlib.sha256(before.read_bytes()).hexdigest()}


def test_a_run_that_changes_nothing_leaves_no_generation(done):
    for _ in range(2):
        done.run(0)
    assert [path.name for path in sorted(done.records.glob("0*.jsonl"))] == ["0001.jsonl"]


@pytest.mark.parametrize("tail", [b'{"path": "torn', b"\xff\xfe", b'{"path": "torn"}'])
def test_a_torn_last_line_is_ended_and_the_next_run_goes_on(done, tail):
    last = done.records / "0001.jsonl"
    lines = last.read_bytes().splitlines(keepends=True)
    last.write_bytes(b"".join(lines[:-1]) + tail)
    (done.src / "new").write_bytes(b"new")
    assert done.run(0).copied == 1
    assert json.loads(last.read_bytes().splitlines()[-1])["state"] == "cut off"
    done.journal.unlink()
    assert nothing_sent(done).exit_code == 0


def test_a_record_with_an_escaping_path_is_refused_and_nothing_outside_is_touched(done, tmp_path):
    """Records are untrusted: they may come from another machine."""
    (tmp_path / "victim").write_bytes(b"victim")
    last = done.records / "0001.jsonl"
    lines = last.read_text().splitlines()
    lines.insert(
        1, json.dumps({"path": "../victim", "kind": "file", "size": 6, "mtime_ns": 1, "digest": {}, "action": "copied"})
    )
    last.write_text("\n".join(lines) + "\n")
    done.journal.unlink()
    with pytest.raises(UsageError, match="line 2") as raised:
        done.run_any()
    assert raised.value.code == "SF-110"
    assert (tmp_path / "victim").read_bytes() == b"victim"


def silent(path, facts=b"{}"):
    """A lock that somebody left a while ago."""
    path.write_bytes(facts)
    os.utime(path, (time.time() - 5000,) * 2)


def test_of_two_who_take_over_a_silent_lock_the_slower_one_does_not(tmp_path, monkeypatch):
    """The slower one has seen that it is silent; before he goes on, the faster one takes it."""
    from scopeferry.copying import heartbeat

    path = tmp_path / "lock.held"
    silent(path)
    faster, slower = heartbeat.Heartbeat(str(path), "faster"), heartbeat.Heartbeat(str(path), "slower")
    real, won = heartbeat._made, []

    def made(at, facts):
        found = real(at, facts)
        if at == str(path) and not found and not won and b"slower" in facts:  # he finds it there: now the other runs
            won.append(faster.take(json.dumps({"run": "faster", "pid": os.getpid(), "host": host()}).encode()))
        return found

    monkeypatch.setattr(heartbeat, "_made", made)
    assert not slower.take(b'{"run": "slower"}')
    assert won == [True]
    assert heartbeat.holder(str(path))["run"] == "faster"
    slower.release()
    assert path.exists()
    faster.release()
    assert os.listdir(tmp_path) == []


def test_many_processes_take_over_a_silent_lock_and_one_wins(tmp_path):
    code = """
import json, os, sys, time
from scopeferry.copying.heartbeat import Heartbeat
from scopeferry.logs import host
path, run = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
won = 0
for round in range(60):
    at = f"{path}/{round}"
    won_this = Heartbeat(at, run).take(json.dumps({"host": host(), "pid": os.getpid(), "run": run}).encode())
    print(round if won_this else -1, flush=True)
sys.stdin.readline()
"""
    for number in range(60):
        silent(tmp_path / str(number))
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path, f"run{n}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in range(4)
    ]
    try:
        for taker in takers:
            assert taker.stdout.readline() == "ready\n"
        for taker in takers:
            taker.stdin.write("\n")
            taker.stdin.flush()
        won = [int(taker.stdout.readline()) for taker in takers for _ in range(60)]
    finally:
        for taker in takers:
            taker.communicate("\n")
    taken = sorted(number for number in won if number >= 0)
    assert taken == sorted(set(taken)), "a lock was taken by two"
    assert len(taken) > 50


def test_who_died_while_he_took_a_lock_over_is_in_the_way_for_one_try(tmp_path):
    from scopeferry.copying.heartbeat import Heartbeat

    path, taking = tmp_path / "lock.held", tmp_path / "lock.held.taking"
    silent(path)
    silent(taking)
    mine = Heartbeat(str(path), "mine")
    assert not mine.take(b'{"run": "mine"}')
    assert mine.take(b'{"run": "mine"}')
    mine.release()
    assert os.listdir(tmp_path) == []
