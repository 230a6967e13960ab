"""What goes wrong beneath a source that grows: lost events, listings that fail, a root that is not there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from scopeferry.sources import _inotify
from scopeferry.sources.growing import READY, WAIT, Found, GrowingTree
from scopeferry.testing.follow import Done, Follower

linux = pytest.mark.skipif(sys.platform != "linux", reason="person: a Linux system")
WRITER = """
import os, sys
root, count = sys.argv[1], int(sys.argv[2])
for number in range(count):
    folder = f"{root}/c/{number // 50}/{number // 5 % 10}"
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/{number}.tmp", "w") as file:
        file.write(str(number))
    os.rename(f"{folder}/{number}.tmp", f"{folder}/{number}")
"""


def put(root, path, data=b"x"):
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_name(target.name + ".tmp").write_bytes(data)
    os.replace(target.with_name(target.name + ".tmp"), target)


def walk(source, follower):
    walks = source.walks
    source.begin_walk()
    follower.until(lambda: source.walks > walks and source.drained)


class Quiet(_inotify.Inotify):
    """Tells nothing unless a test says so."""

    say: list[_inotify.Told]

    def __init__(self):
        super().__init__()
        self.say = []

    def read(self):
        list(super().read())
        say, self.say = self.say, []
        yield from say


@pytest.mark.parametrize("watch", ["scan", "auto", "events"])
def test_a_writer_in_another_process(root, growing, watch):
    done = Done()
    with (
        growing(root, done, watch=watch) as source,
        subprocess.Popen([sys.executable, "-c", WRITER, root, "5000"]) as w,
    ):
        follower = Follower(source, str(root), done, slow=50)
        follower.until(lambda: w.poll() is not None)
        follower.to_the_end()
    assert len(follower.copies) == 5000
    assert len(follower.order) == 5000


@linux
@pytest.mark.slow
def test_the_follower_is_stopped_for_a_while_and_its_queue_runs_over(root, tmp_path):
    """The queue of this system is long: a child with a short one would need the whole system's setting."""
    with open("/proc/sys/fs/inotify/max_queued_events", encoding="ascii") as file:
        queue = int(file.read())
    if queue > 20_000:
        pytest.skip("person: a system with a queue of events short enough to be filled")
    code = (
        "import sys, time; sys.path[:0] = [sys.argv[2]]; from conftest import _growing;"
        "from scopeferry.testing.follow import Done, Follower\n"
        "done = Done()\n"
        "with _growing(sys.argv[1], done, watch='events') as source:\n"
        "    follower = Follower(source, sys.argv[1], done)\n"
        "    follower.until(lambda: 'go' in follower.copies)\n"
        "    print('ready', flush=True)\n"
        "    follower.until(lambda: 'end' in follower.copies)\n"
        "    follower.to_the_end()\n"
        "    print(len(follower.copies), *source.take_notes(), flush=True)\n"
    )
    put(root, "go")
    put(root, "flat/first")
    arguments = [sys.executable, "-c", code, root, os.path.dirname(__file__)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGSTOP)
        for number in range(queue // 2 + 200):  # two events each
            put(root, f"flat/{number % 700}", str(number).encode())
        put(root, "new/sub/file")
        put(root, "end")
        child.send_signal(signal.SIGCONT)
        answer = child.stdout.read()
        assert child.wait() == 0
    assert answer.split()[0] == str(700 + 4)
    assert "more changes than the system could tell of" in answer


@linux
def test_an_overflow_has_everything_scanned_and_is_said_once(root, growing, monkeypatch):
    monkeypatch.setattr(_inotify, "Inotify", Quiet)
    done = Done()
    put(root, "a/b/first")
    with growing(root, done, watch="events") as source:
        follower = Follower(source, str(root), done)
        follower.until(lambda: "a/b/first" in follower.copies and source.drained)
        time.sleep(0.1)  # every folder is older than a tick of the clock: none is due for a minute
        follower.until(lambda: source.passes > 20)
        put(root, "a/b/second")
        passes = source.passes
        follower.until(lambda: source.passes > passes + 5)
        assert "a/b/second" not in follower.copies
        for _ in range(2):
            source._hints._inotify.say.append(_inotify.Told(-1, _inotify.OVERFLOW, ""))
            follower.until(lambda: "a/b/second" in follower.copies)
        assert len([note for note in source.take_notes() if "could tell of" in note]) == 1


@linux
def test_a_lost_watch_has_its_folder_scanned(root, growing, monkeypatch):
    monkeypatch.setattr(_inotify, "Inotify", Quiet)
    done = Done()
    put(root, "a/first")
    with growing(root, done, watch="events") as source:
        follower = Follower(source, str(root), done)
        follower.until(lambda: "a/first" in follower.copies and source.drained)
        time.sleep(0.1)
        follower.until(lambda: source.passes > 20)
        put(root, "a/second")
        watch = source._rounds.by_path["a"].watch
        source._hints._inotify.say.append(_inotify.Told(watch, _inotify.IGNORED, ""))
        follower.until(lambda: "a/second" in follower.copies)
        assert source._rounds.by_path["a"].watch >= 0


@linux
def test_no_watches_left_is_said_once_and_scanned(root, growing, monkeypatch):
    def none_left(self, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_inotify.Inotify, "add", none_left)
    done = Done()
    with growing(root, done, watch="events") as source:
        follower = Follower(source, str(root), done)
        for number in range(20):
            put(root, f"c/{number}/x")
        follower.until(lambda: len(follower.copies) == 20)
        assert len(source.take_notes()) == 1


@linux
def test_a_system_without_events_is_scanned(root, growing, monkeypatch):
    def none(self):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(_inotify.Inotify, "__init__", none)
    done = Done()
    with growing(root, done, watch="auto") as source:
        follower = Follower(source, str(root), done)
        put(root, "a/x")
        follower.until(lambda: "a/x" in follower.copies)
        assert "scanning only" in source.take_notes()[0]


def test_a_listing_that_fails_once_is_not_an_empty_one(root, growing, monkeypatch):
    from scopeferry.kernel.publish import system

    real, failing = system.scan, []

    def scan(folder):
        if failing:
            raise failing.pop()
        return real(folder)

    done = Done()
    for number in range(10):
        put(root, f"c/{number}")
    with growing(root, done) as source:
        follower = Follower(source, str(root), done)
        follower.until(lambda: len(follower.copies) == 10 and source.drained)
        monkeypatch.setattr(system, "scan", scan)
        for error in (OSError(5, "Input/output error"), PermissionError(13, "Permission denied")):
            failing.append(error)
            walk(source, follower)
            assert not failing
            assert source.walk.failed
            follower.until(lambda: not source.unreadable)
        put(root, "c/new")
        follower.until(lambda: "c/new" in follower.copies)
        follower.to_the_end()
        assert follower.gone == []
        assert source.unreadable == {}


def test_folders_that_are_listed_again_while_those_below_still_wait(root, growing, monkeypatch):
    monkeypatch.setattr("scopeferry.sources.growing_limits.SLICE_S", 0.001)
    for number in range(600):
        put(root, f"c/{number}/x")
    done = Done()
    with growing(root, done, scan_interval_s=0.001) as source:
        follower = Follower(source, str(root), done)
        for number in range(600, 800):
            put(root, f"c/{number}/x")
            next(follower)
        follower.to_the_end()
        assert len(follower.copies) == 800
        assert source._signs.failures == 0


@pytest.mark.skipif(sys.platform == "win32", reason="person: a POSIX system")
def test_what_cannot_be_listed_is_named_and_does_not_hold_up_the_end(root, growing, monkeypatch):
    from scopeferry.kernel.publish import system

    put(root, "open/x")
    put(root, "shut/y")
    real = system.scan
    inode = os.stat(root / "shut").st_ino

    def scan(folder):
        if os.fstat(folder).st_ino == inode:
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(system, "scan", scan)
    done = Done()
    with growing(root, done) as source:
        follower = Follower(source, str(root), done)
        follower.until(lambda: "open/x" in follower.copies)
        follower.to_the_end()
        assert list(source.unreadable) == ["shut"]
        assert follower.copies.keys() == {"open/x"}


@pytest.mark.parametrize("watch", ["scan", "auto"])
def test_a_root_that_vanishes_says_so_and_nothing_is_gone(root, growing, watch):
    done = Done()
    for number in range(5):
        put(root, f"c/{number}")
        put(root, f"{number}")
    with growing(root, done, watch=watch) as source:
        follower = Follower(source, str(root), done)
        follower.until(lambda: len(follower.copies) == 10 and source.drained)
        away = root.with_name("away")
        root.rename(away)
        follower.until(lambda: source.absent_since is not None)
        root.mkdir()  # a bare mount point
        (root / "not ours").touch()
        for _ in range(100):
            assert next(follower) is None
        assert source.absent_since is not None
        shutil.rmtree(root)
        put(away, "c/meanwhile")
        away.rename(root)
        follower.until(lambda: "c/meanwhile" in follower.copies)
        assert source.absent_since is None
        follower.to_the_end()
        assert follower.gone == []
        assert "not ours" not in follower.copies


def test_a_link_in_place_of_a_folder_leads_nowhere(root, growing, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").touch()
    done = Done()
    put(root, "c/x")
    with growing(root, done) as source:
        items = [item for item in _until_drained(source) if item]
        assert [item.path for item in items] == ["c/x"]
        shutil.rmtree(root / "c")
        (root / "c").symlink_to(tmp_path / "outside")
        for item in items:
            source.settled(item.path)
        paths = [item.path for item in _until_drained(source, "c") if item]
        assert paths == ["c"]


def _until_drained(source, path="c/x"):
    seen = False
    for item in source.items():
        yield item
        seen = seen or (item is not None and item.path == path)
        if seen and item is None and source.drained:
            return


def test_a_version_that_cannot_be_read_comes_again_when_it_changes_or_at_the_end(root, growing):
    put(root, "a")
    done = Done()
    with growing(root, done) as source:
        items = source.items()

        def take():
            return next(item for item in items if item is not None)

        assert take().path == "a"
        source.failed("a")
        walks = source.walks
        while source.walks < walks + 2 or not source.drained:
            assert next(items) is None
            if source.drained and source.walks < walks + 2:
                source.begin_walk()
        put(root, "a", b"changed")
        found = take()
        assert (found.path, found.size) == ("a", 7)
        source.failed("a")
        source.finish()
        assert take().path == "a"
        source.settled("a")


def test_what_moved_while_it_was_read_comes_again(root, growing):
    put(root, "a", b"first")
    with growing(root, Done()) as source:
        items = source.items()
        found = next(item for item in items if item is not None)
        put(root, "a", b"second, longer")
        source.again(found.path)
        found = next(item for item in items if item is not None)
        assert found.size == len(b"second, longer")
        source.settled(found.path)


def test_what_others_have_done_meanwhile_does_not_come_out(root, growing):
    """The walk that compares both sides at the end copies too; then growing goes on."""
    done = Done()
    for number in range(10):
        put(root, f"{number}")
    with growing(root, done) as source:
        first = next(item for item in source.items() if item is not None)
        follower = Follower(source, str(root), done)
        for number in range(10):
            follower.flight.append(Found(f"{number}", 0, 0, 0, 0, 0, 1, 0))
            follower._settle(follower.flight.pop())
        source.settled(first.path)
        put(root, "new")
        follower.until(lambda: "new" in follower.copies)
        follower.to_the_end()
        assert follower.order == ["new"]


def test_what_the_end_is_decided_from(root, growing):
    done = Done()
    for number in range(3):
        put(root, f"c/{number}")
        os.utime(root / f"c/{number}", ns=(0, number**3 * 10**9))
    (root / "empty").mkdir()
    (root / "lock.tmp").touch()
    (root / "half.slow").touch()
    os.utime(root / "half.slow", ns=(0, 0))
    os.mkfifo(root / "fifo")
    put(root, "complete")
    with growing(root, done) as source:
        follower = Follower(source, str(root), done)
        follower.until(lambda: len(follower.copies) == 3 and source.drained)
        assert source.gap_s == 7.0
        assert abs(source.newest_change_ns - time.time_ns()) < 60 * 10**9
        assert list(source.temporary_names) == ["lock.tmp"]
        assert source.not_whole == ["half.slow"]
        assert list(source.empty_folders()) == ["empty"]
        assert source.special == {"fifo"}
        assert list(source.markers) == ["complete"]
        first = source.walk
        (root / "lock.tmp").unlink()
        put(root, "empty/x")
        follower.until(lambda: "empty/x" in follower.copies and not source.temporary_names)
        assert source.take_went() == ["lock.tmp"]
        assert list(source.empty_folders()) == []
        for _ in range(2):
            walk(source, follower)
        assert source.walk.begun_s >= first.ended_s
        assert (source.walk.found_new, source.walk.failed) == (0, False)
        put(root, "c/new")
        walk(source, follower)
        assert source.walk.found_new > 0


def test_in_place_growth_is_seen_where_it_is_watched_for(root, growing):
    """Not whole, then growing, then whole: no folder's time moves."""
    whole_at = 6

    def by_size(path, found, now_s):
        return READY if found.st_size >= whole_at else WAIT

    (root / "a").touch()
    done = Done()
    with growing(root, done, whole=by_size) as source:
        follower = Follower(source, str(root), done)
        for _ in range(whole_at):
            follower.until(lambda: source.not_whole == ["a"])
            assert follower.order == []
            with open(root / "a", "ab") as file:
                file.write(b"x")
        follower.until(lambda: follower.copies == {"a": b"x" * whole_at})
        follower.to_the_end()


def test_a_wrong_watch_is_refused(root):
    from scopeferry.errors import UsageError
    from scopeferry.kernel.publish import disk
    from scopeferry.sources.tree import TreeSource

    with pytest.raises(UsageError, match="auto, scan or events"):
        GrowingTree(TreeSource(str(root), disk(str(root))), watch="always")


@linux
def test_a_name_that_no_listing_sees_tells_how_its_array_is_written(root, growing):
    asked, done = set(), Done()

    def temporary(path):
        asked.add(path)
        return path.endswith(".__lock")

    with growing(root, done, watch="auto", temporary=temporary) as source:
        follower = Follower(source, str(root), done)
        put(root, "a/x")
        follower.until(lambda: "a/x" in follower.copies)
        with open(root / "a" / "y.__lock", "wb") as file:  # renamed before it is closed, as tensorstore does
            os.rename(root / "a" / "y.__lock", root / "a" / "y")
            file.write(b"y")
        follower.until(lambda: "a/y" in follower.copies)
    assert "a/y.__lock" in asked
