"""A folder that grows, against the shipped contract; with events, without, and with few."""

from __future__ import annotations

import pytest

from scopeferry.testing.contracts import SourceContract


class TestScan(SourceContract):
    watch = "scan"

    @pytest.fixture(autouse=True)
    def _made_by(self, growing):
        self.make = growing

    def source(self, root, done):
        return self.make(root, done, watch=self.watch)


class TestAuto(TestScan):
    watch = "auto"


class TestEvents(TestScan):
    watch = "events"


class TestUntrusted(TestScan):
    """A file system whose folders do not say when a name in them changes, nor its inodes anything."""

    def source(self, root, done):
        from scopeferry.kernel.publish import Disk

        return self.make(root, done, watch="auto", disk=Disk("cifs", str(root), "//server/data"))


class TestFewWatches(TestScan):
    """The system lets us watch three folders."""

    watch = "events"

    @pytest.fixture(autouse=True)
    def _few(self, monkeypatch):
        monkeypatch.setattr("scopeferry.sources._inotify.limit", lambda: 6)
        monkeypatch.setattr("scopeferry.sources.growing_limits.FIRST_WATCHES", 3)


class TestCramped(TestScan):
    """Little room for what waits, and folders larger than what is held at once."""

    watch = "auto"

    @pytest.fixture(autouse=True)
    def _cramped(self, monkeypatch):
        for name, value in {"ROOM": 3, "LOOKS": 3, "LARGE": 4, "BATCH": 2}.items():
            monkeypatch.setattr(f"scopeferry.sources.growing_limits.{name}", value)
