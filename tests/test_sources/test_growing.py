"""A folder that grows, against the shipped contract and against a model; each with events, without, and with few."""

from __future__ import annotations

import os

from scopeferry.kernel import publish
from scopeferry.sources.growing import CHUNK, MARKER, METADATA, READY, WAIT, GrowingTree
from scopeferry.sources.tree import TreeSource
from scopeferry.testing.contracts import SourceContract


def rank(path: str) -> int:
    if path.endswith(".json"):
        return METADATA
    return MARKER if path == "complete" else CHUNK


def whole(path: str, found: os.stat_result, now_s: float) -> str:
    return WAIT if path.endswith(".slow") and not found.st_size else READY


def growing(root, done, *, watch="scan", **how) -> GrowingTree:
    facts = os.stat(root)
    source = TreeSource(str(root), publish.disk(str(root)), identity=(facts.st_dev, facts.st_ino))
    how = {"scan_interval_s": 0.02, "whole": whole, "rank": rank} | how
    return GrowingTree(source, watch=watch, known=done, temporary=lambda path: path.endswith(".tmp"), **how)


class TestScan(SourceContract):
    watch = "scan"

    def source(self, root, done):
        return growing(root, done, watch=self.watch)


class TestAuto(TestScan):
    watch = "auto"


class TestEvents(TestScan):
    watch = "events"
