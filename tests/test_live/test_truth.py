"""What became of each chunk: written, empty by evidence, or missing. Dark is not missing, dropped is not empty."""

from __future__ import annotations

import json
import math
import time

import pytest

from scopeferry.testing import orders
from scopeferry.testing.orders import LAYOUTS, PATTERNS, Layout

FRAME = (1, 2, 64, 64)


def counted(target, path="0"):
    (array,) = [array for array in target["arrays"] if array["path"] == path]
    assert array["written"] + array["empty"] + array["missing"] == math.prod(array["grid"])
    return array["written"], array["empty"], array["missing"]


@pytest.mark.parametrize("start", ["before", "after"])
@pytest.mark.parametrize(
    "name",
    ["tensorstore-none", *(pytest.param(f"tensorstore{how}", marks=pytest.mark.slow) for how in ("", "-lockfile"))],
)
def test_dark_frames_are_not_missing(name, start, acquire, follow):
    copy = follow() if start == "before" else None
    with acquire(name) as acquisition:
        acquisition.do(*PATTERNS["dark"]("0", LAYOUTS["v3"]))
        acquisition.writer.finish("complete")
    assert counted((copy or follow()).ends()) == (6, 2, 0)


@pytest.mark.parametrize("name", ["tensorstore", pytest.param("tensorstore-lockfile", marks=pytest.mark.slow)])
def test_a_lock_that_came_and_went_left_an_empty_chunk(name, acquire, follow):
    """In one folder for all chunks nothing else tells of it."""
    copy = follow()
    with acquire(name) as acquisition:
        first, dark, *others = PATTERNS["dark"]("0", LAYOUTS["v2-flat"])
        acquisition.do(first)
        wait_for(copy, "0/.zarray")
        acquisition.do(dark, *others)
        acquisition.writer.finish("complete")
    assert counted(copy.ends()) == (6, 2, 0)


def test_an_empty_folder_of_an_aborted_run_tells_nothing(acquire, follow):
    said = {"schema": 1, "state": "aborted", "arrays": {}}
    with acquire("tensorstore-none") as acquisition:
        acquisition.do(*PATTERNS["dark"]("0", LAYOUTS["v3"]), orders.file("complete.json", json.dumps(said)))
        acquisition.writer.close()
    target = follow().ends(6)
    assert (target["state"], counted(target)) == ("aborted", (6, 0, 2))


@pytest.mark.parametrize("name", ["tensorstore", "zarr", "in place"])
@pytest.mark.parametrize("layout", ["v2-flat", pytest.param("v3", marks=pytest.mark.slow)])
def test_dropped_frames_are_not_empty(name, layout, acquire, follow):
    with acquire(name) as acquisition:
        kept = [order for order in PATTERNS["full"]("0", LAYOUTS[layout]) if order.get("start", (0,))[0] not in {1, 2}]
        acquisition.do(*kept)
        acquisition.writer.finish("complete")
    target = follow().ends()
    assert counted(target) == (4, 0, 4)
    assert target["arrays"][0]["missing_ranges"] == ["axis 0 1-2"]
    assert target["state"] == "finished"


def test_what_is_dropped_aborts_where_all_is_expected(acquire, follow):
    with acquire("zarr") as acquisition:
        acquisition.do(*list(PATTERNS["full"]("0", LAYOUTS["v3"]))[:-1])
        acquisition.writer.finish("complete")
    target = follow("--expect", "dense", "--finish", "now").ends(6)
    assert (target["state"], counted(target)) == ("aborted", (6, 0, 2))


def test_a_cleared_chunk_is_empty_and_stays_so_in_the_next_run(acquire, follow, tmp_path):
    copy = follow()
    with acquire("zarr") as acquisition:
        acquisition.do(*PATTERNS["full"]("0", LAYOUTS["v2-flat"]))
        wait_for(copy, "0/0.0.0.0")
        acquisition.do(orders.clear("0", (0, 0, 0, 0), (1, 1, 64, 64)))
        acquisition.writer.finish("complete")
    target = copy.ends()
    assert (counted(target), target["stale"]) == ((7, 1, 0), 1)
    assert len([*(tmp_path / "copy.zarr.scopeferry").rglob("stale/*/0/0.0.0.0")]) == 1
    target = follow().ends()
    assert (counted(target), target["copied"]) == ((7, 1, 0), 0)


def test_an_acquisition_that_says_what_is_empty(acquire, follow):
    said = {"schema": 1, "state": "finished", "arrays": {"0": {"written": 4, "empty": ["c/1-2/0/0/0"], "missing": []}}}
    with acquire("zarr") as acquisition:
        kept = [order for order in PATTERNS["full"]("0", LAYOUTS["v3"]) if order.get("start", (0,))[0] not in {1, 2}]
        acquisition.do(*kept, orders.file("complete.json", json.dumps(said)))
        acquisition.writer.close()
    assert counted(follow().ends()) == (4, 2, 2)


def test_four_of_five_thousand(acquire, follow):
    layout = Layout(2, ".", shape=(5000, 8, 8), chunks=(1, 8, 8))
    with acquire("zarr") as acquisition:
        acquisition.do(
            orders.array("0", layout), *(orders.put("0", (at, 0, 0), (1, 8, 8), seed=at) for at in (0, 7, 8, 4999))
        )
        acquisition.writer.finish("complete")
    target = follow().ends()
    assert (counted(target), target["state"]) == ((4, 0, 4996), "finished")


def test_in_a_shard_the_unit_is_the_inner_chunk(acquire, follow):
    with acquire("zarr") as acquisition:
        acquisition.do(orders.array("0", LAYOUTS["v3-shards"]))
        acquisition.do(*(orders.put("0", (at, 0, 0, 0), (1, 1, 32, 64), seed=at) for at in range(4)))
        acquisition.writer.finish("complete")
    target = follow().ends()
    assert target["arrays"][0]["unit"] != "chunk"
    assert counted(target) == (4, 0, 12)


def wait_for(copy, path):
    while not (copy.dst / path).exists():
        assert copy.process.poll() is None
        time.sleep(0.01)


def test_what_is_missing_is_named_by_its_axis(acquire, follow):
    with acquire("zarr") as acquisition:
        kept = [order for order in orders.image("", "0.5") if order.get("start", (0,))[0] not in {1, 2}]
        acquisition.do(*kept)
        acquisition.writer.finish("complete")
    assert [array["missing_ranges"] for array in follow().ends()["arrays"]] == [["t 1-2"], ["t 1-2"]]
