"""Arrays that change while they are followed, and hierarchies of every shape."""

from __future__ import annotations

import json
import signal
import time

import pytest

from scopeferry.testing import orders
from scopeferry.testing.orders import LAYOUTS, PATTERNS


def wait_for(copy, *paths):
    while not all((copy.dst / path).exists() for path in paths):
        assert copy.process.poll() is None
        time.sleep(0.01)


@pytest.mark.parametrize("layout", ["v2-0d", "v3-0d"])
def test_an_array_of_no_dimensions_at_the_root(layout, acquire, follow):
    with acquire("zarr") as acquisition:
        acquisition.do(*PATTERNS["full"]("", LAYOUTS[layout]))
        acquisition.writer.finish("complete")
    (array,) = follow().ends()["arrays"]
    assert (array["path"], array["written"], array["missing"]) == ("", 1, 0)


def test_metadata_of_old_writers_name_no_separator(acquire, follow):
    copy = follow()
    with acquire("rename", no_separator=True) as acquisition:
        acquisition.do(orders.group("", 2), *PATTERNS["full"]("0", LAYOUTS["v2-flat"]))
        acquisition.do(orders.attributes("0", {"late": True}))
        acquisition.writer.finish("complete")
    (array,) = copy.ends()["arrays"]
    assert (array["written"], array["missing"]) == (8, 0)


@pytest.mark.parametrize("layout", [pytest.param("v2-nested", marks=pytest.mark.slow), "v3"])
def test_metadata_half_written_are_not_ready(layout, acquire, follow):
    copy = follow()
    with (
        acquire("in place", pieces=2, gap_s=0.7, slow_metadata=True) as acquisition,
        acquisition.watching(copy.dst),
    ):
        acquisition.do(*list(PATTERNS["full"]("0", LAYOUTS[layout]))[:2], orders.attributes("0", {"late": 1}))
        acquisition.writer.finish("complete")
        target = copy.ends()
    assert not target["problems"]


def test_metadata_that_never_become_whole_are_copied_as_they_are(acquire, follow, tmp_path):
    with acquire("zarr") as acquisition:
        acquisition.do(*PATTERNS["full"]("0", LAYOUTS["v3"]), orders.file("1/zarr.json", '{"zarr_form'))
        acquisition.do(orders.file("1/c/0/0", "x"), orders.file("2/zarr.json", '{"zarr_format": 9}'))
        acquisition.writer.close()
    found = follow("--finish", "now").end()
    assert found["exit_code"] == 0
    assert (tmp_path / "copy.zarr/1/zarr.json").read_text() == '{"zarr_form'
    told = {problem["path"] for problem in found["problems"] if problem["code"] == "SF-915"}
    assert told == {"1/zarr.json", "2/zarr.json"}


@pytest.mark.parametrize(("name", "layout"), [("zarr", "v2-flat"), ("tensorstore", "v3-shards"), ("rename", "v3")])
def test_an_array_that_shrinks_leaves_no_stale_chunk(name, layout, acquire, follow, tmp_path):
    copy = follow()
    with acquire(name) as acquisition:
        wanted = list(PATTERNS["full"]("0", LAYOUTS[layout]))
        acquisition.do(*wanted)
        before = {path.relative_to(tmp_path / "a.zarr") for path in (tmp_path / "a.zarr").rglob("*") if path.is_file()}
        wait_for(copy, *before)
        acquisition.do(orders.resize("0", (1, *LAYOUTS[layout].shape[1:])))
        acquisition.writer.finish("complete")
    target = copy.ends()
    lost = {path for path in before if not (tmp_path / "a.zarr" / path).exists()}
    aside = [path for path in (tmp_path / "copy.zarr.scopeferry").rglob("stale/**/*") if path.is_file()]
    assert len(lost) == len(aside) == target["stale"] > 0
    assert all(any(str(found).endswith(str(path)) for found in aside) for path in lost)


def test_an_array_that_shrinks_and_grows_again(acquire, follow):
    copy = follow()
    layout = LAYOUTS["v2-nested"]
    with acquire("zarr") as acquisition, acquisition.watching(copy.dst):
        acquisition.do(*PATTERNS["full"]("0", layout))
        wait_for(copy, "0/3/1/0/0")
        acquisition.do(orders.resize("0", (1, 2, 64, 64)), orders.pause(1.5), orders.resize("0", layout.shape))
        acquisition.do(*orders.planes("0", layout, seed=50))
        acquisition.writer.finish("complete")
    (array,) = copy.ends()["arrays"]
    assert (array["written"], array["missing"]) == (8, 0)


@pytest.mark.parametrize("name", ["shots", "tensorstore"])
def test_four_shots_cost_two_copies(name, acquire, follow):
    copy = follow()
    with acquire(name) as acquisition:
        acquisition.do(orders.array("0", LAYOUTS["v3"]))
        wait_for(copy, "0/zarr.json")
        for at in range(4):
            acquisition.writer.do(orders.shots("0", (at, 0, 0, 0), (1, 1, 64, 64), 4, seed=at))
        acquisition.writer.finish("complete")
    found = copy.ends()
    assert found["copied"] + found["replaced"] <= 2 * 4 + 3


@pytest.mark.parametrize("name", ["tensorstore", pytest.param("in place", marks=pytest.mark.slow)])
def test_a_shard_in_two_calls_is_copied_when_it_is_whole_and_again_when_it_is_replaced(name, acquire, follow):
    copy = follow()
    with acquire(name) as acquisition, acquisition.watching(copy.dst):
        acquisition.do(orders.array("0", LAYOUTS["v3-shards"]), orders.put("0", (0, 0, 0, 0), (1, 1, 64, 64), seed=1))
        if name == "tensorstore":
            wait_for(copy, "0/c/0/0/0/0")
        else:
            time.sleep(2)
            assert not (copy.dst / "0/c/0/0/0/0").exists()
        acquisition.do(orders.put("0", (0, 1, 0, 0), (1, 1, 64, 64), seed=2))
        acquisition.writer.finish("complete")
        target = copy.ends()
    assert target["replaced"] == (name == "tensorstore")


def test_a_well_that_appears_late(acquire, follow):
    wanted = list(orders.plate("0.5", rows="A", columns="12"))
    second = next(number for number, order in enumerate(wanted) if order["path"] == "A/2")
    copy = follow()
    with acquire("zarr") as acquisition:
        acquisition.do(*wanted[:second])
        wait_for(copy, "A/1/0/zarr.json")
        acquisition.do(orders.pause(2), *wanted[second:])
        for order in wanted:
            if order["do"] == "array" and "labels" not in order["path"]:
                acquisition.do(orders.file(f"{order['path']}/complete"))
        acquisition.writer.finish("complete")
    target = copy.ends()
    assert {"A/2/0/0", "A/2/0/1"} <= {array["path"] for array in target["arrays"]}


def test_files_and_folders_that_are_no_zarr(tmp_path, follow):
    source = tmp_path / "a.zarr"
    (source / "logs/empty").mkdir(parents=True)
    (source / "logs/a.txt").write_text("x")
    (source / "notes.tmp").write_text("kept")
    (source / "config.json").write_text(json.dumps({"a": 1}))
    (source / "complete").touch()
    assert follow("--finish", "now").ends()["state"] == "finished"


@pytest.mark.parametrize(
    "name", ["0/c/0/0/0/0.tmp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("notes.part", ".~notes"))]
)
def test_names_that_may_be_temporary_are_files_if_they_are_still_there_at_the_end(name, acquire, follow):
    copy = follow()
    with acquire("rename") as acquisition:
        acquisition.do(*PATTERNS["full"]("0", LAYOUTS["v3"]), orders.file(name, "kept", how="in place"))
        wait_for(copy, "0/c/3/1/0/0")
        assert not (copy.dst / name).exists()
        acquisition.writer.close()
    copy.process.send_signal(signal.SIGINT)
    copy.ends(130)
    follow("--finish", "now").ends()
    assert (copy.dst / name).read_text() == "kept"


def away(root):
    root.rename(root.with_name("elsewhere"))


def back(root):
    root.with_name("elsewhere").rename(root)


@pytest.mark.slow
def test_a_source_that_is_taken_away_for_a_while(acquire, follow, tmp_path):
    copy = follow()
    with acquire("rename") as acquisition:
        first, *others = PATTERNS["full"]("0", LAYOUTS["v3"])
        acquisition.do(first, *others[:2])
        wait_for(copy, "0/c/1/1/0/0")
        away(tmp_path / "a.zarr")
        time.sleep(1.5)
        assert copy.process.poll() is None
        back(tmp_path / "a.zarr")
        acquisition.do(*others[2:])
        acquisition.writer.finish("complete")
    target = copy.ends()
    assert (target["stale"], target["extras"], target["arrays"][0]["written"]) == (0, 0, 8)


def test_a_source_that_is_taken_away_for_longer_than_patience(acquire, follow, tmp_path):
    copy = follow("--patience", "1s")
    with acquire("rename") as acquisition:
        acquisition.do(*PATTERNS["full"]("0", LAYOUTS["v3"]))
        acquisition.writer.close()
    wait_for(copy, "0/c/3/1/0/0")
    away(tmp_path / "a.zarr")
    target = copy.ends(75)
    assert {problem["code"] for problem in target["problems"]} == {"SF-322"}
    assert (copy.dst / "0/c/3/1/0/0").exists()
    back(tmp_path / "a.zarr")
    (tmp_path / "a.zarr/complete").touch()
    target = follow().ends()
    assert (target["copied"], target["stale"]) == (1, 0)
