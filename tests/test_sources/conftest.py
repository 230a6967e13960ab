"""Sources that grow, made the way the tests here want them."""

from __future__ import annotations

import os

import pytest

from scopeferry.kernel import publish
from scopeferry.sources.growing import CHUNK, MARKER, METADATA, READY, WAIT, GrowingTree
from scopeferry.sources.tree import TreeSource


def rank(path: str) -> int:
    if path.endswith(".json"):
        return METADATA
    return MARKER if path == "complete" else CHUNK


def whole(path: str, found: os.stat_result, now_s: float) -> str:
    return WAIT if path.endswith(".slow") and not found.st_size else READY


def temporary(path: str) -> bool:
    return path.endswith(".tmp")


def _growing(root, done, *, watch="scan", disk=None, **how) -> GrowingTree:
    facts = os.stat(root)
    source = TreeSource(str(root), disk or publish.disk(str(root)), identity=(facts.st_dev, facts.st_ino))
    how = {"scan_interval_s": 0.02, "whole": whole, "rank": rank, "temporary": temporary} | how
    return GrowingTree(source, watch=watch, known=done, **how)


@pytest.fixture(scope="session")
def growing():
    """Makes one: of a root and what is done."""
    return _growing


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "growing"
    root.mkdir()
    return root
