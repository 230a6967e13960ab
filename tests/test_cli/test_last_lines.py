"""Golden last lines for each exit code, by the real command where a real cause can be made."""

import fcntl
import json
import os
import shutil
import sys

import pytest

from scopeferry.reports.evidence import last_line, problem_lines

PAPERS = "record copy.scopeferry/0001.jsonl, receipt.txt"
DAC = "-dac_override,-dac_read_search"


def run(ferry, *words, **more):
    done = ferry(*words, **more)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.splitlines()


def test_done_and_verified(ferry, tree):
    code, lines = run(ferry, "transfer", tree, "copy")
    assert code == 0
    assert lines[-1] == (
        "exit 0: done and verified   5 files, 10.0 kB copied and read back from storage (xxh128)   lost: nothing   "
        + PAPERS
    )
    assert lines[-2].startswith("run7  copied 100 %  verified 100 %  5 files  10.0 kB")


def test_a_rerun_says_that_nothing_was_to_be_done(ferry, tree):
    ferry("transfer", tree, "copy")
    code, lines = run(ferry, "transfer", tree, "copy")
    assert code == 0
    assert lines == [f"exit 0: nothing to do   5 files, 10.0 kB as they were recorded   lost: nothing   {PAPERS}"]


def test_without_read_back_nothing_is_called_verified(ferry, tree):
    code, lines = run(ferry, "transfer", tree, "copy", "--verify", "none")
    assert code == 0
    assert lines[-1] == f"exit 0: done   5 files, 10.0 kB copied, not read back   lost: nothing   {PAPERS}"
    assert "verified" not in "\n".join(lines)


def test_a_sample_says_how_large_it_was(ferry, tree):
    for number in range(60):
        (tree / f"{number}").write_bytes(b"x")
    code, lines = run(ferry, "transfer", tree, "copy", "--verify", "sample:30%", "--json")
    assert code == 0
    assert "verified" not in lines[-1]
    assert ", a sample of " in lines[-1]
    assert " %) read back from storage (xxh128)" in lines[-1]


def test_an_empty_source(ferry, tmp_path):
    (tmp_path / "empty").mkdir()
    code, lines = run(ferry, "transfer", "empty", "copy")
    assert code == 0
    assert lines[-1].startswith("exit 0: nothing to do   0 files   lost: nothing")
    assert (tmp_path / "copy").is_dir()


def test_adopted(ferry, tree, tmp_path):
    shutil.copytree(tree, tmp_path / "copy")
    code, lines = run(ferry, "transfer", tree, "copy")
    assert code == 0
    assert lines[-1].startswith(
        "exit 0: done and verified   5 adopted and read back from storage (xxh128)   lost: nothing"
    )


def test_a_bug_is_one_line(ferry, tree):
    bug = "from scopeferry.copying import place; place.find = 1; "
    code = bug + "import sys; from scopeferry.cli import main; sys.exit(main())"
    for more in ([], ["--verbose"]):
        done = ferry.raw([sys.executable, "-c", code, "transfer", tree, "copy", *more])
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith(
            "exit 1: internal error: TypeError: 'int' object is not callable at scopeferry.jobs.transfer:"
        )
        assert last.endswith(" (SF-302)   next: please report this, with --verbose")
        assert ("Traceback" in done.stderr) == bool(more)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare: run as root")
def test_full_before_the_first_byte(ferry, tree, tmp_path):
    (tmp_path / "small").mkdir()
    (tree / "large").write_bytes(bytes(300_000))
    line = ferry.line("transfer", tree, "small/copy")
    script = f"mount -t tmpfs -o size=128k none small && {line}; code=$?; find small -name '*.tif'; exit $code"
    done = ferry.raw(["unshare", "-m", "sh", "-c", script])
    assert done.returncode == 7, done.stderr
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"exit 7: {tmp_path}/small/copy has ")
    assert " (SF-311)" in last
    assert "next: make room, run the same command again" in last


def test_read_only_destination(ferry, tree, tmp_path):
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare: run as root")
    (tmp_path / "fixed").mkdir()
    line = ferry.line("transfer", tree, "fixed/copy")
    script = f"mount -t tmpfs -o ro none fixed && exec {line}"
    done = ferry.raw(["unshare", "-m", "sh", "-c", script])
    assert done.returncode == 1
    assert done.stderr == (
        f"exit 1: read-only file system: {tmp_path}/fixed (SF-301)   "
        "next: give write permission, or mount it for writing\n"
    )


def test_some_items_failed(ferry, tree):
    (tree / "pos0/0000.tif").chmod(0)
    drop = ["setpriv", f"--bounding-set={DAC}", f"--inh-caps={DAC}"] if os.geteuid() == 0 else []
    if drop and not shutil.which("setpriv"):
        pytest.skip("needs setpriv: util-linux")
    done = ferry.raw([*drop, *ferry.command("transfer", tree, "copy")])
    assert done.returncode == 3
    *_, problem, last = done.stderr.splitlines()
    assert problem.startswith("SF-203 ")
    assert "pos0/0000.tif" in problem
    assert "   next: give read permission" in problem
    assert last == (
        "exit 3: 1 of 5 items failed, first pos0/0000.tif (SF-203 permission denied at the source)   "
        "4 files, 8.00 kB copied and read back from storage (xxh128)   lost: nothing   "
        f"next: give read permission, run the same command again   {PAPERS}"
    )
    assert "verified 100 %" not in done.stderr


def test_other_content_is_refused(ferry, tree, tmp_path):
    (tmp_path / "copy/pos0").mkdir(parents=True)
    (tmp_path / "copy/pos0/0000.tif").write_bytes(b"somebody's")
    code, lines = run(ferry, "transfer", tree, "copy")
    assert code == 5
    assert lines[-1].startswith(
        "exit 5: refused: 1 of 5 items, first pos0/0000.tif (SF-501 other content stands at the destination)   "
        "4 files, "
    )
    assert "   next: --on-conflict replace, or keep-both   " in lines[-1]


def test_another_run_holds_the_destination(ferry, tree, tmp_path):
    ferry("transfer", tree, "copy")
    with open(tmp_path / "copy.scopeferry/lock", "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, lines = run(ferry, "transfer", tree, "copy")
    assert code == 75
    assert lines[-1].startswith("exit 75: another run works on this destination: ")
    assert lines[-1].endswith(" (SF-321)   next: wait until it has ended")


def test_differences(ferry, tree, tmp_path):
    ferry("transfer", tree, "copy")
    damaged = tmp_path / "copy/pos0/0000.tif"
    found = damaged.stat()
    content = bytearray(damaged.read_bytes())
    content[1000] ^= 1
    damaged.write_bytes(content)
    os.utime(damaged, ns=(found.st_atime_ns, found.st_mtime_ns))
    code, lines = run(ferry, "verify", "copy")
    assert code == 4
    assert lines[-1].startswith(
        "exit 4: 1 of 5 items differ, first pos0/0000.tif (SF-401 copy differs from the manifest)   verified "
    )
    assert f"next: scopeferry repair SRC {tmp_path}/copy   record " in lines[-1]
    code, lines = run(ferry, "verify", "copy", tree)
    assert f"next: scopeferry repair {tree} {tmp_path}/copy   record " in lines[-1]


def test_no_differences(ferry, tree, tmp_path):
    ferry("transfer", tree, "copy")
    code, lines = run(ferry, "verify", "copy")
    assert code == 0
    assert lines[-1].startswith("exit 0: no differences   verified 5 ")
    assert "storage" in lines[-1]
    code, lines = run(ferry, "verify", "copy", "--quick")
    assert code == 0
    assert "verified" not in "\n".join(lines)


def test_repair_and_clean(ferry, tree, tmp_path):
    ferry("transfer", tree, "copy")
    code, lines = run(ferry, "repair", tree, "copy")
    assert code == 0
    assert lines[-1].startswith("exit 0: nothing to do   nothing to repair: 5 files read back ")
    (tmp_path / "copy/pos0/0000.tif").unlink()
    done = ferry("clean", tree, "--copy", "copy")
    assert done.returncode == 5
    assert "NO  proved " in done.stdout
    last = done.stderr.splitlines()[-1]
    assert " (SF-512)   nothing touched: proved" in last
    assert f"next: scopeferry verify {tmp_path}/copy, then scopeferry repair {tree} {tmp_path}/copy" in last
    code, lines = run(ferry, "repair", tree, "copy")
    assert code == 0
    assert lines[-1] == (
        "exit 0: done and verified   repaired 2 of 2 wrong entries; 1 sent again   lost: nothing   "
        "record copy.scopeferry/0002.jsonl, receipt.txt"
    )
    done = ferry("clean", tree, "--copy", "copy")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 0
    assert "NO " not in done.stdout
    assert last.startswith("exit 0: this is the plan; nothing was touched   could be freed: 5 files")
    assert len(list(tree.rglob("*.tif"))) == 5
    done = ferry("clean", tree, "--copy", "copy", "--yes", "--json")
    last = done.stderr.splitlines()[-1]
    assert json.loads(done.stdout)["freed"] == 5
    assert last.startswith("exit 0: done   freed 5 of 5 files and links, 10,000 bytes   record run7.")
    assert not list(tree.rglob("*.tif"))


def envelope(code, *problems, **more):
    listed = [{"code": c, "path": path, "message": message, "hint": hint} for c, path, message, hint in problems]
    zero = dict.fromkeys(("items", "bytes", "copied", "skipped", "verified", "failed"), 0)
    return {
        "command": "transfer", "exit_code": code, "problems": listed, "problem_count": len(listed), "state": "partial",
        "source": "/acq/run 7", "destination": "/mnt/archive/run7", "digests": ["xxh128"], **zero, **more,
    }  # fmt: skip


def test_still_being_written():
    line = last_line(envelope(6, ("SF-601", "a/b.zarr", "still being written: a/b.zarr", ""), items=8000, copied=7999,
                              bytes=5, read_back={"server": 7999}))  # fmt: skip
    assert line == (
        "exit 6: the source is still being written: 1 of 8,000 items, first a/b.zarr "
        "(SF-601 source is still being written)   7,999 files, 5 B copied and read back from the server (xxh128)   "
        "lost: nothing   next: scopeferry live '/acq/run 7' /mnt/archive/run7 follows a source that is in use"
    )


def test_losses_and_kinds_of_proof_are_named():
    papers = {"record": "/mnt/archive/run7.scopeferry/0001.jsonl", "receipt": "/elsewhere/receipt.txt"}
    facts = {"items": 3, "copied": 3, "bytes": 49_300_000, "state": "complete", "extras": 2}
    found = {"lost": {"xattrs": 12, "times": 1}, "read_back": {"storage": 2, "memory": 1}}
    line = last_line(envelope(0, **papers, **facts, **found))
    assert line == (
        "exit 0: done and verified   3 files, 49.3 MB copied and read back: 2 from storage, 1 from memory (xxh128), "
        "2 only at the destination   lost: 1 times, 12 xattrs   "
        "record run7.scopeferry/0001.jsonl, /elsewhere/receipt.txt"
    )


def test_many_problems_are_counted():
    many = [("SF-204", f"{number}", f"read error: {number}", "check the disk") for number in range(500)]
    lines = list(problem_lines(envelope(3, ("SF-901", "fifo", "skipped: fifo", ""), *many, items=900)))
    assert len(lines) == 21
    assert lines[0] == "SF-204 read error: 0   next: check the disk"
    assert lines[-1] == "and 481 more: --json and the record list them"


def test_json_is_one_object(ferry, tree):
    done = ferry("transfer", tree, "copy", "--json")
    told = json.loads(done.stdout)
    keys = [
        "schema", "command", "ok", "exit_code", "run", "source", "destination", "items", "bytes", "copied", "skipped",
        "verified", "failed", "elapsed_s", "problems",
    ]  # fmt: skip
    assert list(told)[: len(keys)] == keys
    assert (told["schema"], told["command"], told["ok"], told["exit_code"], told["copied"]) == (
        1,
        "transfer",
        True,
        0,
        5,
    )
    assert done.stdout.count("\n") == 1


def test_names_are_escaped(ferry, tree):
    raw = os.fsencode(tree) + b"/bad\xff\n\x1b[31m"
    with open(raw, "wb"):
        pass
    os.mkfifo(raw + b"fifo")
    done = ferry("transfer", tree, "copy", "--events", "--json")
    assert done.returncode == 0
    assert "\x1b" not in done.stderr
    assert "bad\\xff\\n\\x1b[31mfifo" in done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-1]["schema"] == 1
    b64 = [event["path_b64"] for event in events if event.get("event") == "done" and "path_b64" in event]
    assert b64 == ["YmFk/woTWzMxbQ=="] or len(b64) == 1
    assert all("\\udc" not in line for line in done.stdout.splitlines())
