"""Random writers, lost and repeated events, restarts, a disk that fails: at the end everything has come out in its last
version, nothing came out too early, and at every moment each folder is somewhere and everything is bounded.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scopeferry.kernel import publish
from scopeferry.kernel.publish import Disk, system
from scopeferry.sources import _inotify, outbox
from scopeferry.sources import growing_limits as limits
from scopeferry.sources.growing import Found, GrowingTree
from scopeferry.testing.follow import Done, Follower

HOLDS = ("FIRST_HOLD_S", "LONGEST_HOLD_S", "METADATA_HOLD_S")
QUICK = {"WATCHED_S": 0.001, "CROWDED_S": 0.001, "LONGEST_S": 0.02, "MOST_LOOK_S": 1e-6, "MOST_LOOK_NETWORK_S": 1e-6}
SMALL = {"ROOM": 2, "LARGE": 2, "BATCH": 1, "LOOKS": 2}
PASSES = 300  # within so many passes what was renamed into place has come out
PARTS = st.sampled_from(["a", "b", "c/0", "c/1", "c/0/d", "e/f/g"])
NAMES = st.sampled_from(["0", "1", "2.slow", "zarr.json"])


class Odd(_inotify.Inotify):
    """Events that are lost, told twice, and in another order."""

    lose = False
    overflow = False

    def read(self):
        some = list(super().read())
        if self.overflow:
            type(self).overflow = False
            yield _inotify.Told(-1, _inotify.OVERFLOW, "")
        if not self.lose:
            yield from reversed(some)
            yield from some


class Failing:
    """Some listings and looks fail, once each."""

    def __init__(self):
        self.scan, self.looker, self.left = system.scan, system.looker, 0

    def _may_fail(self):
        if self.left:
            self.left -= 1
            raise OSError(5, "Input/output error")

    def scanning(self, folder):
        self._may_fail()
        return self.scan(folder)

    def looking(self, folder):
        look = self.looker(folder)

        def one(name):
            self._may_fail()
            return look(name)

        return one

    def begin(self):
        system.scan, system.looker = self.scanning, self.looking

    def end(self):
        system.scan, system.looker = self.scan, self.looker


class Strict(Follower):
    """What comes out must be ready."""

    def __next__(self):
        found = super().__next__()
        if isinstance(found, Found):
            assert not found.path.endswith(".tmp")
            assert found.size or not found.path.endswith(".slow")
            assert found.version != found.before
        return found


class Writers(RuleBasedStateMachine):
    make = None  # the fixture: a machine takes none

    @initialize(
        watch=st.sampled_from(["scan", "auto", "events"]),
        slow=st.sampled_from([0, 3]),
        small=st.booleans(),
        coarse=st.booleans(),
    )
    def begin(self, watch, slow, small, coarse):
        self.folder = tempfile.mkdtemp(prefix="growing-")
        self.root = Path(self.folder, "root")
        self.root.mkdir()
        quick = QUICK | (SMALL if small else {})
        self.kept = [(limits, name, getattr(limits, name)) for name in quick]
        self.kept += [(outbox, name, getattr(outbox, name)) for name in HOLDS]
        for module, some in ((limits, quick), (outbox, dict.fromkeys(HOLDS, 0.001))):
            for name, value in some.items():
                setattr(module, name, value)
        self.inotify, _inotify.Inotify = _inotify.Inotify, Odd
        Odd.lose = Odd.overflow = False
        self.failing = Failing()
        self.failing.begin()
        self.watch, self.slow, self.coarse, self.done, self.number = watch, slow, coarse, Done(), 0
        self.disk = Disk("vfat", str(self.root), "/dev/sdb1") if coarse else publish.disk(str(self.root))
        self.copies: dict[str, bytes] = {}
        self.in_place: set[str] = set()
        self.source: GrowingTree | None = None
        self.start()

    def start(self):
        self.source = self.make(self.root, self.done, watch=self.watch, scan_interval_s=0.002, disk=self.disk)
        self.follow_anew()

    def follow_anew(self):
        self.follower = Strict(self.source, str(self.root), self.done, slow=self.slow)
        self.follower.copies = self.copies

    def content(self) -> bytes:
        """Never of a length that was before: times may be the same."""
        self.number += 1
        return b"x" * self.number

    def target(self, part, name) -> Path | None:
        folder = self.root / part
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            return None
        target = folder / name
        return None if target.is_dir() else target

    def coarsely(self, *paths):
        """On such a disk times move in steps of two seconds."""
        for path in paths if self.coarse else ():
            if path.exists():
                at = int(path.stat().st_mtime) // 2 * 2
                os.utime(path, (at, at))

    # -- writers -------------------------------------------------------------------------------------------------------

    @rule(part=PARTS, name=NAMES)
    def write(self, part, name):
        target = self.target(part, name)
        if target is not None:
            (self.root / "x.tmp").write_bytes(self.content())
            (self.root / "x.tmp").replace(target)
            self.in_place.discard(f"{part}/{name}")
            self.coarsely(target, target.parent, self.root)

    @rule(part=PARTS, name=NAMES)
    def write_in_place(self, part, name):
        target = self.target(part, name)
        if target is not None:
            target.write_bytes(self.content())
            self.in_place.add(f"{part}/{name}")
            self.coarsely(target, target.parent)

    @rule(part=PARTS, name=NAMES)
    def append(self, part, name):
        target = self.root / part / name
        if target.is_file():
            self.number += target.stat().st_size
            with open(target, "ab") as file:
                file.write(b"x" * (self.number - target.stat().st_size))
            self.in_place.add(f"{part}/{name}")
            self.coarsely(target)

    @rule(part=PARTS)
    def begin_a_slow_one(self, part):
        target = self.target(part, "2.slow")
        if target is not None:
            target.write_bytes(b"")
            self.in_place.add(f"{part}/2.slow")

    @rule(part=PARTS, name=NAMES)
    def put_times_back(self, part, name):
        """Written anew, but neither the file's nor its folder's time says so."""
        target = self.root / part / name
        if target.is_file():
            kept = [(path, path.stat().st_mtime_ns) for path in (target, target.parent)]
            (target.parent / "y.tmp").write_bytes(self.content())
            (target.parent / "y.tmp").replace(target)
            for path, at in kept:
                os.utime(path, ns=(at, at))
            self.in_place.discard(f"{part}/{name}")

    @rule(part=PARTS, name=NAMES)
    def delete(self, part, name):
        if (self.root / part / name).is_file():
            (self.root / part / name).unlink()
            self.coarsely(self.root / part)

    @rule(part=PARTS)
    def delete_folder(self, part):
        shutil.rmtree(self.root / part, ignore_errors=True)

    @rule(part=PARTS)
    def file_for_folder(self, part):
        """And the other way round, with the next that writes there."""
        target = self.root / part
        if target.is_dir() and target.parent.is_dir():
            shutil.rmtree(target)
            target.write_bytes(self.content())

    @rule(part=PARTS)
    def no_file_for_folder(self, part):
        if (self.root / part).is_file():
            (self.root / part).unlink()

    @rule(part=PARTS, other=PARTS)
    def move_folder(self, part, other):
        to = self.root / other
        if (self.root / part).is_dir() and not to.exists() and not other.startswith(part):
            try:
                to.parent.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                return
            (self.root / part).rename(to)

    @rule(part=PARTS, other=PARTS)
    def folders_change_places(self, part, other):
        one, two, aside = self.root / part, self.root / other, self.root / "aside"
        apart = not part.startswith(other) and not other.startswith(part)
        if one.is_dir() and two.is_dir() and apart:
            one.rename(aside)
            two.rename(one)
            aside.rename(two)

    # -- who follows ---------------------------------------------------------------------------------------------------

    @rule(steps=st.integers(1, 30))
    def follow(self, steps):
        for _ in range(steps):
            next(self.follower)

    @rule()
    def a_pass(self):
        passes = self.source.passes
        self.follower.until(lambda: self.source.passes > passes)

    @rule()
    def catch_up(self):
        """What was renamed into place comes without a walk: passes find it. Growth in place may take one."""
        self.failing.left = 0
        self.source._walks.at = float("inf")
        most = self.source.passes + PASSES

        def over():
            assert self.source.passes < most
            return not self.lacking() - self.in_place

        self.follower.until(over)

    def lacking(self) -> set[str]:
        """What is there, whole, and has not come out in this version."""
        there = {
            os.path.relpath(os.path.join(folder, name), self.root)
            for folder, _, names in os.walk(self.root)
            for name in names
        }
        contents = {path: (self.root / path).read_bytes() for path in there}
        lacking = {path for path in there if self.copies.get(path) != contents[path]}
        return {path for path in lacking if contents[path] or not path.endswith(".slow")}

    @rule()
    def one_cannot_be_read(self):
        """Then it comes again when it changes, or at the end."""
        if self.follower.flight:
            self.source.again(self.follower.flight.pop().path, after_s=0.001)

    @rule()
    def restart(self):
        self.source.close()
        self.start()

    @rule()
    def the_root_goes_and_comes(self):
        away = self.root.with_name("away")
        self.root.rename(away)
        self.follower.until(lambda: self.source.absent_since is not None)
        away.rename(self.root)
        self.follower.until(lambda: self.source.absent_since is None)

    @rule()
    def the_root_is_opened_anew(self):
        self.source.close()

    @rule()
    def others_copy_meanwhile(self):
        """The walk at the end of a job: then growing goes on."""
        for item in self.follower.flight:
            self.source.settled(item.path)
        self.follow_anew()

    # -- what fails ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.watch != "scan")
    @rule()
    def lose_or_tell(self):
        Odd.lose = not Odd.lose

    @precondition(lambda self: self.watch != "scan")
    @rule()
    def overflow(self):
        Odd.overflow = True

    @rule(count=st.integers(1, 3))
    def fail(self, count):
        self.failing.left = count

    # -- what always holds ---------------------------------------------------------------------------------------------

    @invariant()
    def every_folder_is_somewhere(self):
        if self.source is None or self.source.absent_since is not None or not self.source._way.is_open:
            return
        rounds = self.source._rounds
        somewhere = {folder for due, _, folder in rounds._due if folder.due == due}
        somewhere |= {*rounds.checks, *rounds.wanted, *rounds.listing, *self.source._walks._left}
        assert set(rounds.by_path.values()) <= somewhere
        assert {folder for folder in rounds.by_path.values() if folder.wanted} <= {*rounds.wanted, *rounds.listing}

    @invariant()
    def it_is_bounded(self):
        if self.source is None:
            return
        out, looks = self.source._out, self.source._files.looks
        spare = limits.LOOKS + self.slow + 10
        assert out.queued <= 2 * limits.ROOM + spare
        assert len(looks.by_path) <= limits.LOOKS + len(looks.again)
        assert len(looks._due) <= 100 * (len(looks.by_path) + 10)

    @invariant()
    def few_descriptors(self):
        if self.source is not None and sys.platform == "linux":
            mine = [fd for fd in os.listdir("/proc/self/fd") if self._is_ours(fd)]
            assert len(mine) <= 64

    def _is_ours(self, fd):
        try:
            return os.readlink(f"/proc/self/fd/{fd}").startswith(self.folder)
        except OSError:
            return False

    def teardown(self):
        if getattr(self, "source", None) is None:
            return
        try:
            if self.source.unreadable:  # what fails twice in turn is named, and does not hold up the end
                self.failing.left = 0
            self.failing.left = min(self.failing.left, 1)
            for path in self.root.rglob("*.slow"):  # the writer ends what it has begun
                if path.is_file() and not path.stat().st_size:
                    path.write_bytes(self.content())
            self.follower.to_the_end()
            assert not self.lacking()
            assert not self.follower.flight
            assert not self.source.unreadable  # each of these failures was one that passes
            assert not self.source.temporary_names
            assert self.source.in_flight == self.source.waiting == 0
        finally:
            self.source.close()
            self.failing.end()
            _inotify.Inotify = self.inotify
            for module, name, value in self.kept:
                setattr(module, name, value)
            shutil.rmtree(self.folder)


@pytest.fixture(autouse=True)
def _made(growing):
    Writers.make = staticmethod(growing)


Writers.TestCase.settings = settings(max_examples=10, stateful_step_count=40, deadline=None)
TestWriters = Writers.TestCase


@pytest.mark.slow
class TestManyWriters(Writers.TestCase):
    settings = settings(max_examples=100, stateful_step_count=80, deadline=None)
