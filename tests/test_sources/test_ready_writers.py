"""What real writers in processes of their own write is never taken before it is whole, and always in the end."""

from __future__ import annotations

import os
import time

import pytest

from scopeferry.kernel import publish
from scopeferry.sources.growing import CHUNK, METADATA, Found, GrowingTree
from scopeferry.sources.ready import IN_PLACE, NOT_KNOWN, RENAME, Readiness
from scopeferry.sources.tree import TreeSource
from scopeferry.testing.follow import Done
from scopeferry.testing.orders import LAYOUTS, PATTERNS
from scopeferry.testing.slow_writer import WRITERS, SlowWriter

PIECES = {"pieces": 3, "gap_s": 0.03}
PATIENCE_S = 20.0


def followed(root, writer, layout, *, watch, **settings):
    """Every version of a file that was taken, with its bytes; and how the array is said to be written."""
    taken, done = [], Done()
    root.mkdir()
    array_of = lambda path: "0" if path.startswith("0/") else None  # noqa: E731
    with Readiness(str(root), publish.disk(str(root)), array_of=array_of) as ready:
        facts = os.stat(root)
        source = TreeSource(str(root), publish.disk(str(root)), identity=(facts.st_dev, facts.st_ino))
        tree = GrowingTree(
            source,
            watch=watch,
            scan_interval_s=0.02,
            whole=ready,
            temporary=ready.temporary,
            known=done,
            rank=lambda path: METADATA if path.rpartition("/")[2] in {"zarr.json", ".zarray"} else CHUNK,
        )
        with tree, SlowWriter(root, writer, **settings) as wrote:
            for order in PATTERNS["full"]("0", LAYOUTS[layout]):
                wrote.start(order)
            until, ended = time.monotonic() + PATIENCE_S, False
            for found in tree.items():
                if isinstance(found, Found):
                    taken.append((found.path, (root / found.path).read_bytes()))
                    done[found.path] = found.version
                    tree.settled(found.path)
                elif found is None:
                    time.sleep(0.002)
                    if not ended and wrote._answers.qsize() >= wrote._owed:
                        wrote.close()
                        tree.finish()
                        ended = True
                assert time.monotonic() < until
        return taken, ready.how("0/x")


def final(root):
    return {
        path: (root / path).read_bytes()
        for path in _files(root)
        if not path.endswith((".json", ".zarray", ".zgroup", ".zattrs"))
    }


def _files(root):
    return [os.path.relpath(os.path.join(at, name), root) for at, _, names in os.walk(root) for name in names]


CASES = [
    ("rename", {"temporary": "{name}.__lock"} | PIECES, {RENAME}),
    ("rename", {"temporary": "{stem}.{hex}.partial"} | PIECES, {RENAME}),
    ("in place", PIECES, {IN_PLACE}),
    ("tensorstore", {}, {RENAME, NOT_KNOWN}),
    ("tensorstore-lockfile", {}, {RENAME, NOT_KNOWN}),
    ("tensorstore-none", {}, {RENAME, NOT_KNOWN}),
    ("zarr", {}, {RENAME, NOT_KNOWN}),
    ("zarr-3.0.8", {}, {IN_PLACE, NOT_KNOWN}),
    ("zarr-2.18", {}, {RENAME, NOT_KNOWN}),
    ("zarrs", {}, {IN_PLACE, NOT_KNOWN}),
]


@pytest.mark.parametrize("watch", ["scan", "events"])
@pytest.mark.parametrize(
    ("writer", "settings", "how", "layout"),
    [
        pytest.param(*case, layout, marks=[pytest.mark.slow] if WRITERS[case[0]].environment else [])
        for case in CASES
        for layout in ("v2-flat", "v3")
        if WRITERS[case[0]].can(layout)
    ],
)
def test_what_is_written_in_pieces_is_taken_once_and_whole(tmp_path, writer, settings, how, layout, watch):
    root = tmp_path / "store"
    taken, learnt = followed(root, writer, layout, watch=watch, **settings)
    chunks = final(root)
    found = [(path, raw) for path, raw in taken if path in chunks]
    assert len(chunks) == 8
    assert sorted(found) == sorted(chunks.items())
    assert learnt in how
