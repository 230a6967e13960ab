"""When a file is whole, told of real files that real processes hold, write and rename."""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import struct
import subprocess
import sys
import time

import pytest

from scopeferry.config import WRITERS as NAMED
from scopeferry.kernel import publish
from scopeferry.kernel.publish import Disk, system
from scopeferry.sources.ready import (
    IGNORE,
    IN_PLACE,
    NOT_KNOWN,
    READY,
    RENAME,
    WAIT,
    WRITERS,
    Process,
    Readiness,
    is_temporary,
)

HEX = "0123456789abcdef" * 2
CHILD = """
import fcntl, mmap, os, struct, sys
how, path = sys.argv[1:]
fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
os.ftruncate(fd, 4096)
if how == "map":
    kept = mmap.mmap(fd, 4096)
    os.close(fd)
if how == "lock":
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("@hhqqi0q", fcntl.F_WRLCK, 0, 0, 0, 0))
print("there", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def root(tmp_path):
    """A folder on a file system where leases tell the truth."""
    if publish.disk(str(tmp_path)).type not in {"ext4", "xfs", "btrfs", "f2fs", "tmpfs"}:
        pytest.skip("needs leases: a temporary folder on ext4, xfs, btrfs, f2fs or tmpfs")
    return tmp_path


class Holder:
    """A process that has a file open, mapped or locked until it is let go."""

    def __init__(self, how, path):
        command = [sys.executable, "-c", CHILD, how, str(path)]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        assert self.child.stdout.readline() == "there\n"
        return self

    def __exit__(self, *_):
        self.child.communicate("\n", timeout=30)


class Seen:
    """A Readiness with clocks of its own: `look` says what it says after so many seconds more."""

    def __init__(self, root, *, disk=None, **how):
        self.root, self.clock_s, self.wall_s = root, 100.0, time.time()
        how.setdefault("array_of", lambda path: "0" if path.startswith("0/") else None)
        self.ready = Readiness(str(root), disk or publish.disk(str(root)), **how)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ready.close()

    def look(self, path, after_s=0.0):
        self.clock_s += after_s
        self.wall_s += after_s
        return self.ready.look(path, os.stat(self.root / path), self.wall_s, self.clock_s).verdict


def write(root, path, data=b"x" * 4096):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(data)


class TestTable:
    def test_every_writer_that_can_be_named_has_a_row(self):
        assert set(WRITERS) == set(NAMED)

    @pytest.mark.parametrize(
        ("writer", "name"),
        [
            ("tensorstore", "0.0.__lock"), ("tensorstore", "c/0/0_00ff.__lock"), ("zarr-python", f"0.0.{HEX}.partial"),
            ("iohub", f"zarr.{HEX}.partial"), ("scopeferry", "c/0.partial"), ("ome-writers", "c/0.__lock"),
            ("auto", "0.__lock"), ("auto", f"0.{HEX}.partial"), ("generic", "a.tmp"), ("generic", ".~lock.a"),
            ("zarrs", "b.part"),
        ],
    )  # fmt: skip
    def test_ignored_names(self, writer, name):
        assert is_temporary(f"0/{name}", writer)

    @pytest.mark.parametrize(
        ("writer", "name"),
        [("zarrs", "a.partial"), ("acquire-zarr", "0.__lock"), ("auto", "part"), ("auto", "tmp"), ("auto", "0"),
         ("auto", "0.0.0"), ("auto", ".zarray"), ("auto", "x.__lock2"), ("auto", "~a")],
    )  # fmt: skip
    def test_other_names(self, writer, name):
        assert not is_temporary(f"0/{name}", writer)

    def test_generic_ones_are_files_at_the_end(self):
        assert not is_temporary("a.tmp", ending=True)
        assert is_temporary("0.__lock", ending=True)


class TestRename:
    def test_whole_at_sight(self, root):
        write(root, "0/c/0")
        with Seen(root, writer="tensorstore") as seen:
            assert seen.look("0/c/0") == READY
            assert seen.ready.probed == 0

    def test_temporary_names_are_ignored(self, root):
        write(root, "0/c/0.__lock")
        with Seen(root) as seen:
            assert seen.look("0/c/0.__lock") == IGNORE

    def test_auto_learns_it_from_a_temporary_name_in_the_array(self, root):
        for path in ("0/c/0", "1/c/0", "x.tmp"):
            write(root, path)
        with Seen(root, array_of=lambda path: path[0]) as seen:
            assert seen.look("0/c/0") == WAIT
            assert seen.ready.temporary("0/c/1.__lock")
            assert seen.ready.how("0/c/0") == RENAME
            assert not seen.ready.in_place("0/c/0")
            assert seen.look("0/c/0") == READY
            assert seen.look("1/c/0") == WAIT
            assert seen.ready.how("1/c/0") == NOT_KNOWN

    @pytest.mark.parametrize("name", [f"zarr.{'0' * 32}.partial", "zarr.json.__lock", f".zarray.{'0' * 32}.partial"])
    def test_how_metadata_are_written_tells_nothing_of_chunks(self, root, name):
        with Seen(root, array_of=lambda path: path[0]) as seen:
            assert seen.ready.temporary(f"0/{name}")
            assert seen.ready.how("0/c/0") == NOT_KNOWN

    def test_a_real_writer_that_renames(self, root):
        (root / "0").mkdir()
        with Seen(root) as seen:
            for number in range(3):
                write(root, f"0/{number}.__lock")
                for name in os.listdir(root / "0"):
                    seen.look(f"0/{name}")
                os.rename(root / f"0/{number}.__lock", root / f"0/{number}")
                assert seen.look(f"0/{number}") == READY

    def test_a_chunk_renamed_over_another_does_not_grow(self, root):
        with Seen(root) as seen:
            seen.ready.temporary("0/a.__lock")
            write(root, "0/a")
            assert seen.look("0/a") == READY
            write(root, "0/new", b"x" * 9999)
            os.rename(root / "0/new", root / "0/a")
            assert seen.look("0/a") == READY
            assert seen.ready.how("0/a") == RENAME


class TestInPlace:
    def test_two_looks_half_a_second_apart(self, root):
        write(root, "0/c/0")
        with Seen(root) as seen:
            assert seen.look("0/c/0") == WAIT
            assert seen.look("0/c/0", 0.4) == WAIT
            assert seen.ready.probed == 0
            assert seen.look("0/c/0", 0.1) == READY
            assert seen.ready.probed == 1

    def test_a_change_between_them_begins_anew(self, root):
        write(root, "0/c/0")
        with Seen(root) as seen:
            seen.look("0/c/0")
            os.utime(root / "0/c/0", ns=(1, 1))
            assert seen.look("0/c/0", 0.4) == WAIT
            assert seen.look("0/c/0", 0.6) == READY

    def test_on_a_local_disk_its_own_times_serve_as_the_first_look(self, root):
        write(root, "0/c/0")
        with Seen(root) as seen:
            found = seen.ready.look("0/c/0", os.stat(root / "0/c/0"), seen.wall_s + 0.3)
            assert found.verdict == WAIT
            assert 0 < found.again_s <= 0.3
            write(root, "0/c/1")
            assert seen.look("0/c/1", 0.6) == READY
            assert seen.ready.probed == 1

    def test_a_name_that_grew_makes_it_in_place_for_good(self, root):
        write(root, "0/c/0", b"x")
        with Seen(root) as seen:
            seen.ready.temporary("0/c/1.__lock")
            assert seen.look("0/c/0") == READY
            with open(root / "0/c/0", "ab") as file:
                file.write(b"more")
            assert seen.look("0/c/0") == WAIT
            assert seen.ready.how("0/c/0") == IN_PLACE
            seen.ready.temporary("0/c/1.__lock")
            assert seen.ready.how("0/c/0") == IN_PLACE
            assert seen.ready.in_place("0/c/0")

    @pytest.mark.parametrize("how", ["open", "map"])
    def test_not_while_somebody_has_it_open_or_mapped_for_writing(self, root, how):
        write(root, "0/c/0")
        with Seen(root, writer="zarrs") as seen:
            with Holder(how, root / "0/c/0"):
                for _ in range(4):
                    assert seen.look("0/c/0", 3.0) == WAIT
                assert [*seen.ready.open_files(seen.wall_s)] == ["0/c/0"]
            assert seen.look("0/c/0", 0.5) == READY
            assert not seen.ready.open_files(seen.wall_s)

    def test_a_reader_does_not_count(self, root):
        write(root, "0/c/0")
        with Seen(root) as seen, open(root / "0/c/0", "rb"):
            seen.look("0/c/0")
            assert seen.look("0/c/0", 0.5) == READY

    def test_what_its_times_say_has_been_calm_needs_no_second_look(self, root):
        write(root, "0/c/0")
        with Seen(root) as seen:
            assert seen.look("0/c/0", 11.0) == READY
            assert seen.ready.probed == 1
            with Holder("open", root / "0/c/0"):
                assert seen.look("0/c/0", 11.0) == WAIT
                assert seen.look("0/c/0", 2 * 3600.0) == READY  # open, not changed within the hour

    def test_a_future_time_is_not_waited_for(self, root):
        write(root, "0/c/0")
        os.utime(root / "0/c/0", (time.time() + 1e6,) * 2)
        with Seen(root, disk=Disk("cifs", "/", "")) as seen:
            assert seen.look("0/c/0") == WAIT
            assert seen.look("0/c/0", 9.0) == WAIT
            assert seen.look("0/c/0", 1.5) == READY

    def test_no_probe_where_a_lease_may_be_granted_blindly(self, root):
        write(root, "0/c/0")
        for kind, after_s in (("fuse.sshfs", 10.0), ("cifs", 10.0), ("overlay", 2.0)):
            with Seen(root, disk=Disk(kind, "/", "")) as seen:
                assert seen.look("0/c/0") == WAIT
                assert seen.look("0/c/0", after_s - 0.5) == WAIT
                assert seen.look("0/c/0", 1.0) == READY
                assert seen.ready.probed == 0

    def test_nor_in_another_file_system_below(self, root):
        write(root, "0/c/0")
        with Seen(root, device=1) as seen:
            seen.look("0/c/0")
            assert seen.look("0/c/0", 1.0) == WAIT
            assert seen.look("0/c/0", 1.5) == READY
            assert seen.ready.probed == 0

    def test_where_it_may_not_be_asked_size_and_time_serve(self, root):
        if os.geteuid() != 0:
            pytest.skip("needs root: to be somebody else")
        write(root, "0/c/0")
        for folder in (root, root / "0", root / "0/c", *root.parents[:3]):
            os.chmod(folder, os.stat(folder).st_mode | 0o755)
        code = "from scopeferry.kernel import _posix as p; print(p.is_written(p.open_root('.'), '0'))"
        command = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=-all",
            "--bounding-set=-all",
        ]
        found = subprocess.run(
            [*command, sys.executable, "-c", code], cwd=root / "0/c", capture_output=True, text=True, check=False
        )
        assert found.stdout == "None\n", found.stderr
        with Seen(root) as seen:
            seen.ready._is_written = lambda path: None
            seen.look("0/c/0")
            assert seen.look("0/c/0", 1.0) == WAIT
            assert seen.look("0/c/0", 1.1) == READY


class TestShards:
    def test_not_whole_while_the_index_is_not_valid(self, root):
        write(root, "0/c/0")
        valid = [False]
        with Seen(root, whole=lambda path: valid[0]) as seen:
            for _ in range(3):
                assert seen.look("0/c/0", 20.0) == WAIT
            assert seen.ready.torn == ["0/c/0"]
            assert seen.ready.probed == 0
            valid[0] = True
            assert seen.look("0/c/0") == READY
            assert not seen.ready.torn

    def test_index_last_is_whole_at_sight_though_it_is_open(self, root):
        write(root, "0/c/0")
        with Seen(root, writer="acquire-zarr", whole=lambda path: True) as seen, open(root / "0/c/0", "ab"):
            assert seen.look("0/c/0") == READY

    def test_of_a_writer_not_known_it_must_be_calm_too(self, root):
        write(root, "0/c/0")
        with Seen(root, whole=lambda path: True) as seen, open(root / "0/c/0", "ab"):
            assert seen.look("0/c/0") == WAIT
            assert seen.look("0/c/0", 0.5) == READY

    def test_without_a_checksum_it_must_be_closed(self, root):
        write(root, "0/c/0")
        with Seen(root, writer="acquire-zarr", whole=lambda path: None) as seen:
            with open(root / "0/c/0", "ab"):
                seen.look("0/c/0")
                assert seen.look("0/c/0", 5.0) == WAIT
            assert seen.look("0/c/0", 5.0) == READY


class TestMetadata:
    def test_whole_as_soon_as_it_parses(self, root):
        write(root, "0/zarr.json", b'{"zarr_format": 3, "sh')
        with Seen(root) as seen, open(root / "0/zarr.json", "ab") as file:
            assert seen.look("0/zarr.json", 99.0) == WAIT
            assert seen.ready.unparsable == ["0/zarr.json"]
            file.write(b'ape": []}')
            file.flush()
            assert seen.look("0/zarr.json") == READY
            assert not seen.ready.unparsable

    def test_not_if_it_is_not_what_was_seen(self, root):
        write(root, ".zgroup", b"{}")
        with Seen(root) as seen:
            found = os.stat(root / ".zgroup")
            write(root, ".zgroup", b'{"a": 1}')
            assert seen.ready(".zgroup", found, time.time()) == WAIT

    def test_at_the_end_everything_is_taken_as_it_is(self, root):
        write(root, "0/zarr.json", b"{")
        write(root, "0/c/0")
        write(root, "a.tmp")
        with Seen(root, whole=lambda path: False) as seen:
            seen.ready.ending = True
            assert {seen.look(path) for path in ("0/zarr.json", "0/c/0", "a.tmp")} == {READY}


class TestOtherFiles:
    def test_closed_or_calm(self, root):
        write(root, "notes.txt")
        with Seen(root) as seen:
            with Holder("open", root / "notes.txt"):
                seen.look("notes.txt")
                assert seen.look("notes.txt", 5.0) == WAIT
            assert seen.look("notes.txt", 0.5) == READY


class TestHeld:
    def test_a_temporary_name_is_held_while_it_is_open_or_locked(self, root):
        write(root, "0/a.__lock")
        with Seen(root) as seen:
            assert seen.ready.held(["0/a.__lock"], 1.0) == {"0/a.__lock"}  # seen but once
            assert seen.ready.held(["0/a.__lock"], 1.4) == {"0/a.__lock"}
            assert seen.ready.held(["0/a.__lock", "0/gone"], 1.5) == set()
            for how in ("open", "map", "lock"):
                with Holder(how, root / "0/a.__lock"):
                    seen.ready.held(["0/a.__lock"], 2.0)
                    assert seen.ready.held(["0/a.__lock"], 3.0) == {"0/a.__lock"}
                assert seen.ready.held(["0/a.__lock"], 4.0) == set()

    def test_a_lock_that_is_held(self, root):
        write(root, "journal")
        with Seen(root) as seen:
            assert seen.ready.locked("journal") is False
            assert seen.ready.locked("gone") is None
            with Holder("lock", root / "journal"):
                assert seen.ready.locked("journal") is True
            assert seen.ready.locked("journal") is False

    def test_a_lock_of_this_process_too(self, root):
        write(root, "journal")
        with Seen(root) as seen, open(root / "journal", "ab") as file:
            lock = struct.pack("@hhqqi0q", fcntl.F_WRLCK, 0, 0, 0, 0)
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
            assert seen.ready.locked("journal") is True


class TestProcess:
    def test_lives_until_it_ends(self):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        process = Process(child.pid)
        assert process.alive
        child.stdin.close()
        while process.alive:  # also as a zombie it has ended
            time.sleep(0.01)
        child.wait()
        assert not process.alive

    def test_one_that_has_ended_before(self):
        child = subprocess.Popen([sys.executable, "-c", ""])
        child.wait()
        assert not Process(child.pid).alive
        assert not Process(2**40).alive

    def test_another_of_the_same_number_is_not_taken_for_it(self, monkeypatch):
        process = Process(os.getpid())
        start = system.process_start(os.getpid())
        monkeypatch.setattr(system, "process_start", lambda pid: start + 1)
        assert not process.alive
        monkeypatch.undo()
        assert not process.alive


# -- the writer is never locked out ------------------------------------------------------------------------------------

OPENER = """
import os, sys
path, failed, opened = sys.argv[1], 0, 0
print("there", flush=True)
os.set_blocking(0, False)
while True:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, b"x", 0)
        os.close(fd)
        opened += 1
    except OSError:
        failed += 1
    if opened % 64 == 0:
        try:
            if os.read(0, 1):
                break
        except BlockingIOError:
            pass
print(opened, failed, flush=True)
"""


@pytest.mark.parametrize("times", [1_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_while_a_lease_is_probed_no_open_fails_and_no_signal_kills(root, times):
    """The prober is a process of its own with default signals: if SIGIO came, it would die."""
    write(root, "chunk")
    opener = subprocess.Popen(
        [sys.executable, "-c", OPENER, str(root / "chunk")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    probe = (
        "import sys, threading, collections\n"
        "from scopeferry.kernel import _posix as p\n"
        "folder, found = p.open_root(sys.argv[1]), collections.Counter()\n"
        "stop = threading.Event()\n"
        "def work():\n"
        "    while not stop.wait(0.001): sum(range(2000))\n"
        "other = threading.Thread(target=work); other.start()\n"
        "for _ in range(int(sys.argv[2])): found[p.is_written(folder, 'chunk')] += 1\n"
        "stop.set(); other.join(); print(found[True], found[False], found[None])\n"
    )
    try:
        assert opener.stdout.readline() == "there\n"
        done = subprocess.run(
            [sys.executable, "-c", probe, str(root), str(times)], capture_output=True, text=True, check=False
        )
        opened, failed = map(int, opener.communicate("\n", timeout=60)[0].split())
    finally:
        opener.kill()
        opener.communicate()
    assert done.returncode == 0, (
        done.returncode,
        signal.Signals(-done.returncode) if done.returncode < 0 else done.stderr,
    )
    written, free, unknown = map(int, done.stdout.split())
    assert (failed, unknown) == (0, 0)
    assert written + free == times
    folder = system.open_root(str(root))
    try:
        assert system.is_written(folder, "chunk") is False  # now that nobody has it open
    finally:
        system.close_folder(folder)
    assert opened > times / 100


def test_a_writer_that_maps_and_then_lets_go(root):
    path = root / "chunk"
    write(root, "chunk")
    folder = system.open_root(str(root))
    try:
        with open(path, "r+b") as file:
            mapped = mmap.mmap(file.fileno(), 4096)
        assert system.is_written(folder, "chunk") is True
        mapped.close()
        assert system.is_written(folder, "chunk") is False
        assert system.is_written(folder, "gone") is None
    finally:
        system.close_folder(folder)
