"""A source that grows in little room, beside writers and disks that misbehave: nothing waits for ever."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter

import pytest

from scopeferry.kernel import publish
from scopeferry.kernel.publish import system
from scopeferry.sources import growing_limits as limits
from scopeferry.sources.tree import TreeSource
from scopeferry.sources.watched import Ending, Watched
from scopeferry.testing.follow import Done, Follower


def put(root, path, data=b"x"):
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_name(target.name + ".tmp").write_bytes(data)
    os.replace(target.with_name(target.name + ".tmp"), target)


def settled(source, root, done, count):
    """Somebody who follows it, and has so many files already."""
    follower = Follower(source, str(root), done)
    follower.until(lambda: len(follower.copies) == count and source.drained)
    return follower


def test_a_folder_chosen_when_the_root_goes_is_listed_when_it_is_back(root, growing):
    done = Done()
    for number in range(4):
        put(root, f"c/{number}/x")
    with growing(root, done) as source:
        follower = settled(source, root, done, 4)
        for number in range(4):
            put(root, f"c/{number}/y")
            source._rounds.want(source._rounds.by_path[f"c/{number}"])
        while len(source._listings.active) < 2:
            source._step(time.monotonic())
        source.close()
        follower.until(lambda: len(follower.copies) == 8, seconds=20)
        follower.to_the_end(seconds=20)


def test_more_metadata_than_are_looked_at_hold_up_nothing(root, growing, monkeypatch):
    monkeypatch.setattr(limits, "LOOKS", 4)
    done = Done()
    for number in range(6):
        put(root, f"{number}/zarr.json", b"{}")
        put(root, f"{number}/c")
    with growing(root, done) as source:
        follower = settled(source, root, done, 12)
        assert source.looked_at <= 2
        put(root, "5/zarr.json", b"[]")
        follower.to_the_end(seconds=20)
        assert follower.copies["5/zarr.json"] == b"[]"


def test_more_files_that_are_not_whole_than_are_looked_at(root, growing, monkeypatch):
    """The others come out meanwhile, and these as soon as they are whole."""
    monkeypatch.setattr(limits, "LOOKS", 2)
    monkeypatch.setattr(limits, "CROWDED_S", 0.01)
    done = Done()
    for number in range(6):
        (root / f"{number}.slow").touch()
        put(root, f"c/{number}")
        (root / f"c/{number}.slow").touch()
    with growing(root, done) as source:
        follower = settled(source, root, done, 6)
        assert source.looked_at == 2
        for path in root.rglob("*.slow"):
            path.write_bytes(b"whole")
        follower.until(lambda: len(follower.copies) == 18, seconds=20)
        follower.to_the_end(seconds=20)


def test_what_never_becomes_whole_does_not_hold_up_the_end(root, growing, monkeypatch):
    monkeypatch.setattr(limits, "LOOKS", 2)
    monkeypatch.setattr(limits, "SETTLES_S", 0.1)
    done = Done()
    for number in range(6):
        (root / f"{number}.slow").touch()
        os.utime(root / f"{number}.slow", ns=(0, 0))
    put(root, "x")
    with growing(root, done) as source:
        settled(source, root, done, 1).to_the_end(seconds=20)


@pytest.mark.parametrize("watch", ["scan", "auto"])
def test_what_is_done_while_its_folder_is_listed_comes_once(root, growing, monkeypatch, watch):
    monkeypatch.setattr(limits, "BATCH", 5)
    monkeypatch.setattr(limits, "SLICE_S", 0.0005)
    done = Done()
    for number in range(300):
        put(root, f"{number}")
    with growing(root, done, watch=watch, scan_interval_s=0.002) as source:
        follower = Follower(source, str(root), done)
        for number in range(300, 500):
            put(root, f"{number}")
            for _ in range(3):
                next(follower)
        follower.to_the_end()
        assert len(follower.copies) == 500
        assert not [path for path, count in Counter(follower.order).items() if count > 1]


def test_what_events_tell_of_is_bounded_too(root, growing, monkeypatch):
    """Nobody takes anything while the destination is away."""
    monkeypatch.setattr(limits, "ROOM", 10)
    done = Done()
    with growing(root, done, watch="auto") as source:
        put(root, "first")
        follower = settled(source, root, done, 1)
        for number in range(200):
            put(root, f"{number}")
        passes = source.passes
        while source.passes < passes + 5:
            source._work(time.monotonic() + 0.01)
        assert len(source._out) <= 2 * limits.ROOM
        follower.to_the_end(seconds=20)
        assert len(follower.copies) == 201


def test_temporary_names_of_a_large_folder_are_forgotten_when_they_go(root, growing, monkeypatch):
    """Else they look dead at the end."""
    monkeypatch.setattr(limits, "LARGE", 3)
    done = Done()
    for number in range(5):
        put(root, f"c/{number}")
    (root / "c/9.tmp").touch()
    with growing(root, done) as source:
        follower = settled(source, root, done, 5)
        assert list(source.temporary_names) == ["c/9.tmp"]
        (root / "c/9.tmp").rename(root / "c/9")
        follower.until(lambda: "c/9" in follower.copies and not source.temporary_names, seconds=20)


def test_a_file_that_could_not_be_looked_at_once_is_no_problem_later(root, growing, monkeypatch):
    done = Done()
    for number in range(3):
        put(root, f"c/{number}")
    real, failing = system.looker, []

    def looker(folder):
        look = real(folder)

        def one(name):
            if name == "new" and failing:
                raise failing.pop()
            return look(name)

        return one

    monkeypatch.setattr(system, "looker", looker)
    with growing(root, done) as source:
        follower = settled(source, root, done, 3)
        source._walks.at = float("inf")
        failing.append(OSError(5, "Input/output error"))
        put(root, "c/new")
        follower.until(lambda: "c/new" in follower.copies, seconds=20)
        assert not failing
        assert not source.unreadable


def test_a_listing_that_fails_in_the_last_walk_has_another_walk(root, growing, monkeypatch):
    real, failing = system.scan, []

    def scan(folder):
        if failing and failing[0][0] == os.fstat(folder).st_ino:
            raise failing.pop()[1]
        return real(folder)

    monkeypatch.setattr(system, "scan", scan)
    done = Done()
    put(root, "c/x")
    with growing(root, done) as source:
        follower = settled(source, root, done, 1)
        put(root, "c/y")
        failing.append((os.stat(root / "c").st_ino, OSError(5, "Input/output error")))
        follower.to_the_end(seconds=20)
        assert not failing
        assert follower.copies.keys() == {"c/x", "c/y"}


def test_a_file_in_place_of_a_folder_that_was_being_listed(root, growing):
    done = Done()
    put(root, "c/x")
    with growing(root, done) as source:
        follower = settled(source, root, done, 1)
        source._walks.at = float("inf")
        time.sleep(0.1)  # older than a tick: only what is seen now has the root listed again
        follower.until(lambda: not source._rounds.root.relist)
        shutil.rmtree(root / "c")
        put(root, "c")
        source._rounds.root.mtime_ns = os.stat(root).st_mtime_ns
        source._rounds.want(source._rounds.by_path["c"])
        follower.until(lambda: "c" in follower.copies, seconds=20)


def test_the_walk_that_ends_it_goes_no_way_found_before(root, growing):
    """Folders change places after they were opened in this pass."""
    done = Done()
    put(root, "a/1", b"one")
    put(root, "b/22", b"other")
    with growing(root, done, scan_interval_s=60) as source:
        follower = settled(source, root, done, 2)
        for path in ("a", "b"):
            source._way.open(path)
        (root / "a").rename(root / "aside")
        (root / "b").rename(root / "a")
        (root / "aside").rename(root / "b")
        follower.to_the_end(seconds=20)
        assert {"a/22", "b/1"} <= follower.copies.keys()


def test_a_process_that_was_stopped_puts_nothing_off_for_hours(root, growing, monkeypatch):
    real, ahead, stopped = time.monotonic, [0.0], []

    def known(folder):
        return Done.folder(done, folder)

    def names(folder, some):
        if not stopped and folder == "c":
            stopped.append(folder)
            ahead[0] += 3600.0
        return Done.names(done, folder, some)

    monkeypatch.setattr(limits, "BATCH", 2)
    done = Done()
    for number in range(4):
        put(root, f"c/{number}")
    with growing(root, done) as source:
        follower = settled(source, root, done, 4)
        time.sleep(0.1)
        monkeypatch.setattr(time, "monotonic", lambda: real() + ahead[0])
        done.folder, done.names = known, names
        for number in range(4, 9):
            put(root, f"c/{number}")
        follower.until(lambda: stopped and source.drained, seconds=10_000)
        now = time.monotonic()
        assert source._rounds.by_path["c"].due <= now + limits.LONGEST_S
        assert source._walks.at <= now + limits.WALK_S


def test_a_marker_that_is_written_again_or_withdrawn(root, growing):
    done = Done()
    put(root, "complete")
    put(root, "x")
    with growing(root, done) as source:
        follower = Follower(source, str(root), done)
        follower.until(lambda: "complete" in source.markers and source.drained)
        put(root, "complete", b"anew")
        follower.until(lambda: source.markers["complete"][0].size == 4, seconds=20)
        (root / "complete").unlink()
        follower.until(lambda: not source.markers, seconds=20)


def test_a_marker_that_was_withdrawn_says_nothing(root):
    (root / "complete").touch()
    (root / "x").touch()
    with Watched(TreeSource(str(root), publish.disk(str(root))), Ending(), scan_interval_s=0.01) as watched:
        items = watched.items()

        def until(over):
            while not over():
                found = next(items)
                if found is not None:
                    watched.settled(found.path)

        until(lambda: watched.facts().markers)
        (root / "complete").unlink()
        until(lambda: not watched.facts().markers)
