"""Random writers, lost and repeated events, restarts: at the end everything has come out in its last version."""

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

from scopeferry.sources import _inotify, outbox
from scopeferry.sources import growing_limits as limits
from scopeferry.sources.growing import GrowingTree
from scopeferry.testing.follow import Done, Follower

HOLDS = ("FIRST_HOLD_S", "LONGEST_HOLD_S", "METADATA_HOLD_S")
PARTS = st.sampled_from(["a", "b", "c/0", "c/1", "c/0/d", "e/f/g"])
NAMES = st.sampled_from(["0", "1", "2", "zarr.json"])


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


class Writers(RuleBasedStateMachine):
    make = None  # the fixture: a machine takes none

    @initialize(watch=st.sampled_from(["scan", "auto", "events"]), slow=st.sampled_from([0, 3]), small=st.booleans())
    def begin(self, watch, slow, small):
        self.folder = tempfile.mkdtemp(prefix="growing-")
        self.root = Path(self.folder, "root")
        self.root.mkdir()
        self.kept = [(limits, name, getattr(limits, name)) for name in ("ROOM", "LARGE", "BATCH", "WATCHED_S")]
        self.kept += [(outbox, name, getattr(outbox, name)) for name in HOLDS]
        for name in HOLDS:
            setattr(outbox, name, 0.001)
        limits.WATCHED_S = 0.001
        self.inotify, _inotify.Inotify = _inotify.Inotify, Odd
        Odd.lose = Odd.overflow = False
        if small:
            limits.ROOM, limits.LARGE, limits.BATCH = 2, 2, 1
        self.watch, self.slow, self.done, self.number = watch, slow, Done(), 0
        self.copies: dict[str, bytes] = {}
        self.in_place: set[Path] = set()
        self.source: GrowingTree | None = None
        self.start()

    def start(self):
        self.source = self.make(self.root, self.done, watch=self.watch, scan_interval_s=0.002)
        self.follower = Follower(self.source, str(self.root), self.done, slow=self.slow)
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

    @rule(part=PARTS, name=NAMES)
    def write(self, part, name):
        target = self.target(part, name)
        if target is not None:
            (self.root / "x.tmp").write_bytes(self.content())
            (self.root / "x.tmp").replace(target)
            self.in_place.discard(target)

    @rule(part=PARTS, name=NAMES)
    def write_in_place(self, part, name):
        target = self.target(part, name)
        if target is not None:
            target.write_bytes(self.content())
            self.in_place.add(target)

    @rule(part=PARTS, name=NAMES)
    def delete(self, part, name):
        if (self.root / part / name).is_file():
            (self.root / part / name).unlink()

    @rule(part=PARTS)
    def delete_folder(self, part):
        shutil.rmtree(self.root / part, ignore_errors=True)

    @rule(part=PARTS, other=PARTS)
    def move_folder(self, part, other):
        if (self.root / part).is_dir() and not (self.root / other).exists() and not other.startswith(part):
            (self.root / other).parent.mkdir(parents=True, exist_ok=True)
            (self.root / part).rename(self.root / other)

    @rule(part=PARTS, other=PARTS)
    def folders_change_places(self, part, other):
        one, two, aside = self.root / part, self.root / other, self.root / "aside"
        apart = not part.startswith(other) and not other.startswith(part)
        if one.is_dir() and two.is_dir() and apart:
            one.rename(aside)
            two.rename(one)
            aside.rename(two)

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
        self.source._walks.at = float("inf")
        self.follower.until(lambda: not (self.lacking() - {os.path.relpath(path, self.root) for path in self.in_place}))

    def lacking(self) -> set[str]:
        there = {
            os.path.relpath(os.path.join(folder, name), self.root)
            for folder, _, names in os.walk(self.root)
            for name in names
        }
        return {path for path in there if self.copies.get(path) != (self.root / path).read_bytes()}

    @precondition(lambda self: self.watch != "scan")
    @rule()
    def lose_or_tell(self):
        Odd.lose = not Odd.lose

    @precondition(lambda self: self.watch != "scan")
    @rule()
    def overflow(self):
        Odd.overflow = True

    @rule()
    def restart(self):
        self.source.close()
        self.start()

    @rule()
    def others_copy_meanwhile(self):
        """The walk at the end of a job: then growing goes on."""
        for item in self.follower.flight:
            self.source.settled(item.path)
        follower = Follower(self.source, str(self.root), self.done, slow=self.slow)
        follower.copies, self.follower = self.copies, follower

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
            self.follower.to_the_end()
            assert not self.lacking()
            assert not self.follower.flight
            assert self.source._signs.failures == 0  # nothing here is unreadable
            assert self.source.in_flight == self.source.waiting == 0
        finally:
            self.source.close()
            _inotify.Inotify = self.inotify
            for module, name, value in self.kept:
                setattr(module, name, value)
            shutil.rmtree(self.folder)


@pytest.fixture(autouse=True)
def _made(growing):
    Writers.make = staticmethod(growing)


Writers.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestWriters = Writers.TestCase


@pytest.mark.slow
class TestManyWriters(Writers.TestCase):
    settings = settings(max_examples=400, stateful_step_count=80, deadline=None)
