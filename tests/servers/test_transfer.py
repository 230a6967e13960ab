"""`transfer` from and to real servers: what arrives, what is skipped, what is proved, and what is said of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import scopeferry
from scopeferry.copying import place
from scopeferry.kernel import publish
from scopeferry.testing.steps import Steps
from scopeferry.testing.trees import differences, parts, random_bytes, random_tree

COMMAND = Path(sys.executable).with_name("scopeferry")
MIB = 1 << 20


def codes(result) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for problem in result.problems:
        found.setdefault(problem.code, []).append(problem.path)
    return found


def run(src, dst, expect: int = 0, **options):
    result = scopeferry.transfer(src, dst, **options)
    assert result.exit_code == expect, [(one.code, one.path, one.message) for one in result.problems]
    return result


def unlike(src, copy) -> list[str]:
    """How they differ in what such a mount can hold."""
    return [line for line in differences(src, copy, times=False) if "mode is" not in line]


def manifest_is_true(share, name: str = "copy") -> bool:
    """As a standard checker sees it, at the server."""
    command = ["xxhsum", "-c", "--strict", "--quiet", share.data / f"{name}.scopeferry/manifest.xxh128"]
    return subprocess.run(command, cwd=share.data / name, capture_output=True, check=False).returncode == 0


# -- what the system says of them ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "type_"), [("share", "fuse.rclone"), ("sftp", "fuse.sshfs")])
def test_what_a_mount_is(request, kind, type_):
    mounted = request.getfixturevalue(kind)
    disk = publish.disk(str(mounted.point))
    assert (disk.type, disk.point) == (type_, str(mounted.point))
    assert (disk.network, disk.steady, disk.flushes_whole, disk.reopens) == (True, False, False, True)
    assert disk.read_back == "mount"
    assert disk.in_order == (type_ == "fuse.rclone")


@pytest.mark.parametrize("type_", ["cifs", "smb3", "nfs4"])
def test_what_the_kernel_mounts_of_a_server_is(type_):
    disk = publish.Disk(type_, "/mnt", "//server/share")
    assert (disk.network, disk.steady, disk.flushes_whole, disk.reopens) == (True, False, False, False)
    assert disk.read_back == "server"


def test_no_journal_on_a_mount(mounted, src):
    done = subprocess.run(
        [COMMAND, "transfer", src, mounted.point / "copy", "--journal", mounted.point / "journal.sqlite"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "SF-107" in done.stderr
    assert os.listdir(mounted.data) == []


# -- a destination on a mount ----------------------------------------------------------------------------------------


def test_to_a_mount_and_again_and_after_a_remount(mounted, src):
    dst = mounted.point / "copy"
    first = run(src, dst)
    assert (first.copied, first.verified, first.read_back) == (61, 61, {"mount": 61})
    assert unlike(src, mounted.data / "copy") == []
    assert parts(mounted.data) == []
    assert manifest_is_true(mounted)
    for _ in range(2):
        with Steps() as steps:
            made = steps.watch("create_part", "open_source")
            again = run(src, dst)
        assert (again.copied, again.checked, again.skipped, again.bytes) == (0, 0, 61, 0)
        assert not [
            call
            for call in made
            if not Path(os.fsdecode(call[2])).name.startswith(("times", "case", "wide"))
            and call[2] in {path.name for path in src.rglob("*.tif")}
        ]
        mounted.remount()


def test_the_last_line_says_where_it_was_read_back(share, src):
    done = subprocess.run([COMMAND, "transfer", src, share.point / "copy"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "read back from the mount" in done.stderr + done.stdout
    assert "read back: 61 from mount" in done.stdout + done.stderr or "from the mount" in done.stderr + done.stdout
    receipt = json.loads((share.data / "copy.scopeferry/receipt.json").read_text())
    assert "mount" in json.dumps(receipt)


def test_verify_and_repair_over_a_mount(mounted, src):
    dst = mounted.point / "copy"
    run(src, dst)
    assert scopeferry.verify(dst).exit_code == 0
    name = next(str(path.relative_to(src)) for path in sorted(src.rglob("*.tif")) if path.stat().st_size > 100)
    victim = mounted.data / "copy" / name
    before = victim.stat()
    with victim.open("r+b") as file:
        file.seek(50)
        file.write(b"\x01damage")
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    mounted.remount()
    found = scopeferry.verify(dst)
    assert (found.exit_code, codes(found)["SF-401"]) == (4, [name])
    assert scopeferry.repair(src, dst).exit_code == 0
    assert scopeferry.verify(dst, src).exit_code == 0
    assert unlike(src, mounted.data / "copy") == []
    mounted.remount()
    assert run(src, dst).skipped == 61


def test_what_changes_at_the_source_is_replaced_and_what_others_wrote_is_not(mounted, src):
    dst = mounted.point / "copy"
    run(src, dst)
    names = sorted(str(path.relative_to(src)) for path in src.rglob("*.tif"))
    (src / names[0]).write_bytes(random_bytes(5, 9000))
    (mounted.data / "copy" / names[1]).write_bytes(b"theirs")
    mounted.remount()
    result = run(src, dst, 5)
    assert (result.replaced, codes(result)["SF-501"]) == (1, [names[1]])
    assert (mounted.data / "copy" / names[1]).read_bytes() == b"theirs"
    assert run(src, dst, on_conflict="replace").replaced == 1
    mounted.remount()
    assert unlike(src, mounted.data / "copy") == []


def test_a_copy_that_another_program_made_is_adopted(mounted, src):
    subprocess.run(["cp", "-a", src, mounted.data / "copy"], check=True)
    mounted.remount()
    result = run(src, mounted.point / "copy")
    assert (result.copied, result.adopted, result.bytes) == (0, 61, 0)


def test_a_large_file_and_a_sparse_one(mounted, tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/large").write_bytes(random_bytes(1, 20 * MIB))
    with (tmp_path / "src/sparse").open("wb") as file:
        file.seek(3 * MIB)
        file.write(b"end")
        file.truncate(5 * MIB)
    result = run(tmp_path / "src", mounted.point / "copy")
    assert unlike(tmp_path / "src", mounted.data / "copy") == []
    assert ("holes" in result.lost) == publish.disk(str(mounted.point)).in_order


def test_a_part_that_cannot_be_continued_is_begun_anew(share, tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/large").write_bytes(random_bytes(1, 20 * MIB))
    (share.data / "copy").mkdir()
    (share.data / "copy" / publish.part_name(b"large", "00000000")).write_bytes(random_bytes(1, 9 * MIB))
    run(tmp_path / "src", share.point / "copy")
    assert unlike(tmp_path / "src", share.data / "copy") == []
    assert parts(share.data) == []


def test_one_file_to_a_mount(mounted, tmp_path):
    (tmp_path / "one.tif").write_bytes(b"one file")
    run(tmp_path / "one.tif", mounted.point / "two.tif")
    assert (mounted.data / "two.tif").read_bytes() == b"one file"
    mounted.remount()
    assert run(tmp_path / "one.tif", mounted.point / "two.tif").skipped == 1


def test_links_are_kept_where_the_mount_has_them_and_told_where_not(mounted, tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    (src / "a").write_bytes(b"a")
    os.link(src / "a", src / "b")
    (src / "link").symlink_to("a")
    result = run(src, mounted.point / "copy")
    has_links = publish.disk(str(mounted.point)).type == "fuse.sshfs"
    assert (mounted.data / "copy/link").is_symlink() == has_links
    assert (mounted.data / "copy/b").read_bytes() == b"a"
    assert ("links" in result.lost) != has_links
    mounted.remount()
    assert run(src, mounted.point / "copy").copied == 0


# -- names that the server takes for one another, and the mount does not ----------------------------------------------


def test_twins_that_the_mount_tells_apart_and_its_server_does_not(share, tmp_path):
    """Both would be "copied and read back", and one of them be lost."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src/Image.tif").write_bytes(b"first")
    (tmp_path / "src/image.tif").write_bytes(b"other")
    result = run(tmp_path / "src", share.point / "copy", 3)
    assert codes(result)["SF-208"] == ["image.tif"]
    assert {path.name: path.read_bytes() for path in (share.data / "copy").iterdir()} == {"Image.tif": b"first"}
    assert run(tmp_path / "src", share.point / "percent", names="percent").copied == 2
    assert len(list((share.data / "percent").iterdir())) == 2


def test_what_somebody_put_there_under_another_spelling_is_not_written_over(share, tmp_path):
    (tmp_path / "src/Sub").mkdir(parents=True)
    (tmp_path / "src/image.tif").write_bytes(b"ours")
    (tmp_path / "src/Sub/inner.tif").write_bytes(b"ours")
    (share.data / "copy/SUB").mkdir(parents=True)
    (share.data / "copy/IMAGE.TIF").write_bytes(b"theirs")
    (share.data / "copy/SUB/inner.tif").write_bytes(b"theirs")
    result = run(tmp_path / "src", share.point / "copy", 3)
    assert sorted(codes(result)["SF-208"]) == ["Sub", "image.tif"]
    assert (share.data / "copy/IMAGE.TIF").read_bytes() == b"theirs"
    assert (share.data / "copy/SUB/inner.tif").read_bytes() == b"theirs"


# -- a source on a mount ---------------------------------------------------------------------------------------------


def test_from_a_mount_and_again_and_after_a_remount(mounted, tmp_path):
    random_tree(mounted.data / "run", files=40, folders=3, size=4000, seed=3)
    (mounted.data / "run/empty.tif").touch()
    dst = tmp_path / "copy"
    first = run(mounted.point / "run", dst)
    assert (first.copied, first.read_back) == (41, {"storage": 41})
    assert differences(mounted.data / "run", dst, times=False) == [] or unlike(mounted.data / "run", dst) == []
    mounted.remount()
    assert run(mounted.point / "run", dst).skipped == 41
    (mounted.data / "run/file000.tif").unlink(missing_ok=True)
    (mounted.data / "run/new.tif").write_bytes(b"new")
    mounted.remount()
    assert run(mounted.point / "run", dst).copied == 1


def test_from_one_mount_to_another(share, samba, tmp_path):
    random_tree(share.data / "run", files=20, size=4000, seed=4)
    run(share.point / "run", share.point / "copy")
    share.remount()
    assert run(share.point / "run", share.point / "copy").copied == 0
    assert unlike(share.data / "run", share.data / "copy") == []


# -- locks, records --------------------------------------------------------------------------------------------------


def test_a_second_run_is_told_who_works_there(mounted, src):
    held = place.Lock(place.find(str(mounted.point / "copy")).lock, "first")
    held.acquire()
    try:
        result = run(src, mounted.point / "copy", 75)
    finally:
        held.release()
    assert f"pid {os.getpid()}" in codes(result).popitem()[0] or any(
        f"pid {os.getpid()}" in one.message for one in result.problems
    )
    run(src, mounted.point / "copy")
    assert not list(mounted.data.rglob("lock.held"))


def test_killed_in_mid_run_and_the_same_command_again(mounted, src, state):
    """The lock of a dead process is no lock, and what its record has is sent when the next run begins."""
    command = [COMMAND, "transfer", "--workers", "1", "--limit", "100kB", src, mounted.point / "copy"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        left = state / "scopeferry/underway"
        while not (list(left.rglob("*.jsonl")) and len(list((mounted.data / "copy").rglob("*.tif"))) > 5):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    there = {path.relative_to(mounted.data / "copy") for path in (mounted.data / "copy").rglob("*.tif")}
    for path in there:
        assert (mounted.data / "copy" / path).read_bytes() == (src / path).read_bytes()
    result = run(src, mounted.point / "copy")
    assert result.copied <= 61 - len(there) + 1
    records = mounted.data / "copy.scopeferry"
    assert sorted(path.name for path in records.glob("*.jsonl")) == ["0001.jsonl", "0002.jsonl"]
    assert json.loads((records / "0001.jsonl").read_text().splitlines()[-1])["state"] == "cut off"
    assert not list(left.rglob("*.jsonl"))
    assert unlike(src, mounted.data / "copy") == []
    assert parts(mounted.data) == []
    assert scopeferry.verify(mounted.point / "copy").exit_code == 0


def test_what_was_left_underway_follows_what_another_machine_wrote_meanwhile(mounted, src, state, monkeypatch):
    """Its number is taken: it comes after the others, and the chain holds."""
    dst = mounted.point / "copy"
    other = state.with_name("other-machine")
    with Steps() as steps:
        steps.before("create_part", lambda *_: os.kill(os.getpid(), 0), nth=1)
        run(src, dst)
    left = state / "scopeferry/underway" / place.destination_name(str(mounted.point / "copy.scopeferry"))
    left.mkdir(parents=True)
    first = (mounted.data / "copy.scopeferry/0001.jsonl").read_text().splitlines()
    (left / "0001.jsonl").write_text("\n".join(first[:3]) + "\n")
    monkeypatch.setenv("XDG_STATE_HOME", str(other))
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    run(src, dst)
    records = mounted.data / "copy.scopeferry"
    lines = (records / "0002.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["generation"] == 2
    assert json.loads(lines[0])["previous"]["name"] == "0001.jsonl"
    assert json.loads(lines[-1])["state"] == "cut off"
    assert scopeferry.verify(dst).exit_code == 0


def test_a_torn_record_on_the_mount_itself_is_ended(share, src):
    run(src, share.point / "copy")
    record = share.data / "copy.scopeferry/0001.jsonl"
    record.write_bytes(b"\n".join(record.read_bytes().splitlines()[:-1]) + b'\n{"path": "to')
    share.remount()
    run(src, share.point / "copy")
    assert json.loads(record.read_text().splitlines()[-1])["state"] == "cut off"
    assert scopeferry.verify(share.point / "copy").exit_code == 0


def test_interrupted_leaves_nothing_temporary(mounted, src):
    command = [COMMAND, "transfer", "--workers", "2", "--limit", "100kB", src, mounted.point / "copy"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while len(list((mounted.data / "copy").rglob("*.tif"))) < 5:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert parts(mounted.data) == []
    assert not list(mounted.data.rglob("lock.held"))
    run(src, mounted.point / "copy")
    assert unlike(src, mounted.data / "copy") == []
