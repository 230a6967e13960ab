"""Every writer, in every layout and pattern it can, is followed by the command; the copy is equal, and always was."""

from __future__ import annotations

import math
import signal
import time

import pytest

from scopeferry.testing import orders
from scopeferry.testing.orders import HIERARCHIES, LAYOUTS, PATTERNS
from scopeferry.testing.slow_writer import ELSEWHERE, HERE, WRITERS

STARTS = ("before", "during", "after")
#: In these each writer is followed from each start; in the other layouts from one start, in turn, so that any two of
#: writer, layout and start come together somewhere.
FROM_EVERY_START = {"v2-nested", "v3-shards"}
QUICK = {
    ("tensorstore", "v3-shards", "before"),
    ("zarr", "v2-nested", "during"),
    ("in place", "v3-shards", "during"),
    ("shots", "v3", "before"),
}
KILLED_QUICKLY = {("tensorstore", "v2-nested"), ("in place", "v3-shards")}


def every():
    for at, name in enumerate([*HERE, *ELSEWHERE]):
        for turn, layout in enumerate(LAYOUTS, at):
            for start in STARTS:
                one = (name, layout, start)
                wanted = layout in FROM_EVERY_START or start == STARTS[turn % len(STARTS)] or one in QUICK
                if wanted and WRITERS[name].can(layout):
                    yield pytest.param(*one, marks=() if one in QUICK else pytest.mark.slow, id="-".join(one))


def stores(name, layout):
    """Each a list of orders: of a writer that streams one store a pattern, of the others all patterns in one."""
    patterns = [pattern for pattern in PATTERNS if pattern != "abort" and WRITERS[name].can(layout, pattern)]
    if WRITERS[name].streams:
        return [list(PATTERNS[pattern]("0", LAYOUTS[layout])) for pattern in patterns]
    wanted = [orders.group("", LAYOUTS[layout].zarr_format)]
    for pattern in patterns:
        wanted += PATTERNS[pattern](pattern.replace(" ", "_"), LAYOUTS[layout])
    return [wanted]


@pytest.mark.parametrize(("name", "layout", "start"), list(every()))
def test_a_writer_in_a_layout(name, layout, start, acquire, follow, tmp_path):
    for number, wanted in enumerate(stores(name, layout)):
        src, dst = tmp_path / f"{number}.zarr", tmp_path / f"copy {number}.zarr"
        copy = follow(src=src, dst=dst) if start == "before" else None
        with acquire(name, root=src) as acquisition, acquisition.watching(dst):
            half = len(wanted) // 2
            acquisition.do(*wanted[:half])
            copy = follow(src=src, dst=dst) if start == "during" else copy
            acquisition.do(*wanted[half:])
            acquisition.writer.finish("complete")
            copy = copy or follow(src=src, dst=dst)
            target = copy.ends()
        assert target["state"] == "finished"
        assert target["evidence"][0]["kind"] == "marker"
        partly = {order["path"] for order in wanted if order["do"] == "shots" or order.get("fill") is True}
        assert not [array for array in target["arrays"] if array["missing"] and array["path"] not in partly]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "name", "how"),
    [
        ("tensorstore", "tensorstore", {}),
        ("tensorstore", "tensorstore-none", {}),
        ("zarr-python", "zarr", {}),
        ("zarr-python", "zarr-2.18", {}),
        ("zarr-python-3.0", "zarr-3.0.8", {}),
        ("zarrs", "zarrs", {}),
        ("acquire-zarr", "acquire-zarr", {}),
        ("ome-writers", "ome-writers", {}),
        ("ome-writers", "ome-writers-tensorstore", {}),
        ("iohub", "rename", {"temporary": "{stem}.{hex}.partial"}),
        ("scopeferry", "rename", {"temporary": "{name}.partial", "sync": True}),
        ("generic", "rename", {"temporary": ".~{name}", "pieces": 2, "gap_s": 0.1}),
        ("generic", "in place", {"pieces": 2, "gap_s": 0.1}),
    ],
)
def test_a_writer_that_is_named(said, name, how, acquire, follow, tmp_path):
    layout = next(one for one in ("v3-shards", "v2-nested") if WRITERS[name].can(one))
    copy = follow("--writer", said)
    with acquire(name, **how) as acquisition, acquisition.watching(tmp_path / "copy.zarr"):
        acquisition.do(*PATTERNS["full"]("0", LAYOUTS[layout]))
        acquisition.writer.finish("complete")
        (array,) = copy.ends()["arrays"]
    assert array["written"] == math.prod(array["grid"])


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param(name, layout, marks=() if (name, layout) in KILLED_QUICKLY else pytest.mark.slow)
        for name in [*HERE, *ELSEWHERE]
        for layout in ("v3-shards", "v2-nested")
    ],
)
def test_a_writer_that_is_killed(name, layout, acquire, follow, tmp_path):
    if not WRITERS[name].can(layout, "abort"):
        layout = next(one for one in LAYOUTS if WRITERS[name].can(one, "abort"))
    copy = follow()
    with acquire(name) as acquisition, acquisition.watching(tmp_path / "copy.zarr"):
        *wanted, death = PATTERNS["abort"]("0", LAYOUTS[layout])
        acquisition.do(*wanted)
        acquisition.writer.start(death)
        while not copy.dst.exists():
            assert copy.process.poll() is None
            time.sleep(0.01)
        copy.process.send_signal(signal.SIGINT)
        copy.ends(130)
        target = follow("--finish", "now").ends()
    assert (target["state"], target["evidence"][0]["kind"]) == ("finished", "declared")


@pytest.mark.parametrize(
    "hierarchy",
    [pytest.param(one, marks=() if one == "plate 0.5" else pytest.mark.slow) for one in HIERARCHIES],
)
@pytest.mark.parametrize(
    "name",
    ["rename", pytest.param("tensorstore", marks=pytest.mark.slow), pytest.param("zarr", marks=pytest.mark.slow)],
)
def test_a_hierarchy(name, hierarchy, acquire, follow, tmp_path):
    wanted = list(HIERARCHIES[hierarchy]())
    copy = follow("--finish", "marker=all.done")
    with acquire(name) as acquisition, acquisition.watching(tmp_path / "copy.zarr"):
        acquisition.do(*wanted[: len(wanted) // 2], orders.pause(0.3), *wanted[len(wanted) // 2 :])
        acquisition.writer.finish("all.done")
        target = copy.ends()
    assert {array["path"] for array in target["arrays"]} == {
        order["path"] for order in wanted if order["do"] == "array"
    }
    assert not any(array["missing"] for array in target["arrays"])
