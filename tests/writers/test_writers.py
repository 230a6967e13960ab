"""Every writer writes every layout and pattern it says it can, and real libraries read what it says it has written."""

from __future__ import annotations

import itertools
import json
import os
import time

import numpy as np
import pytest
import tensorstore
import zarr

from scopeferry.testing import orders
from scopeferry.testing.orders import HIERARCHIES, LAYOUTS, PATTERNS
from scopeferry.testing.slow_writer import ELSEWHERE, HERE, WRITERS, WriterFailed
from scopeferry.testing.writers.serve import count, item_bytes, pixels
from scopeferry.testing.writers.serve import shots as parts

EVERY = [*HERE, *(pytest.param(name, marks=pytest.mark.slow) for name in ELSEWHERE)]


def expected(wanted) -> dict[str, np.ndarray]:
    """Arrays by path, after these orders."""
    arrays: dict[str, np.ndarray] = {}
    for order in itertools.chain.from_iterable(parts(one) if one["do"] == "shots" else [one] for one in wanted):
        path = order.get("path")
        if order["do"] == "array":
            arrays[path] = np.full(order["shape"], order["fill"], order["dtype"])
        elif order["do"] == "put":
            region = tuple(slice(at, at + size) for at, size in zip(order["start"], order["shape"], strict=True))
            arrays[path][region or ...] = _pixels(order, arrays[path].dtype)
        elif order["do"] == "resize":
            before, arrays[path] = arrays[path], np.zeros(order["shape"], arrays[path].dtype)
            both = tuple(slice(0, min(pair)) for pair in zip(before.shape, order["shape"], strict=True))
            arrays[path][both] = before[both]
    return arrays


def _pixels(order, dtype):
    if order.get("fill"):
        return 0
    data = pixels(order["seed"], count(order["shape"]) * item_bytes(dtype.name))
    return np.frombuffer(data, dtype).reshape(order["shape"])


def by_zarr(root: str, path: str) -> np.ndarray:
    return zarr.open_array(os.path.join(root, path), mode="r")[...]


def by_tensorstore(root: str, path: str) -> np.ndarray:
    folder = os.path.join(root, path)
    driver = "zarr3" if os.path.exists(os.path.join(folder, "zarr.json")) else "zarr"
    return tensorstore.open({"driver": driver, "kvstore": {"driver": "file", "path": folder}}).result().read().result()


def assert_equal(root: str, wanted, *, whole_chunks: bool = True) -> None:
    """Both libraries read what was put; of a raw writer, which gives bytes to chunks in order, the same pixels."""
    for path, array in expected(wanted).items():
        for read in (by_zarr, by_tensorstore):
            found = read(root, path)
            assert found.shape == array.shape
            pair = (found, array) if whole_chunks else (np.sort(found, axis=None), np.sort(array, axis=None))
            assert np.array_equal(*pair), f"{path} {read.__name__}"


def is_plain(name: str) -> bool:
    return WRITERS[name].module == "plain"


@pytest.mark.parametrize("name", EVERY)
def test_every_layout(name, write):
    if WRITERS[name].streams:
        layouts = [layout for layout in LAYOUTS if WRITERS[name].can(layout)][:1]
    else:
        layouts = [layout for layout in LAYOUTS if WRITERS[name].can(layout)]
    paths = {"0" if WRITERS[name].streams else layout.replace("-", "_"): layout for layout in layouts}
    wanted = [order for path, layout in paths.items() for order in PATTERNS["full"](path, LAYOUTS[layout])]
    with write(name) as writer:
        writer.do(*wanted)
        writer.finish("complete")
    assert os.path.exists(f"{writer.root}/complete")
    assert_equal(writer.root, wanted, whole_chunks=not is_plain(name))


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if WRITERS["acquire-zarr"].can(layout)])
@pytest.mark.parametrize("name", [name for name in ELSEWHERE if WRITERS[name].streams])
@pytest.mark.slow
def test_streams_in_every_layout(name, layout, write):
    wanted = list(PATTERNS["full"]("0", LAYOUTS[layout]))
    with write(name) as writer:
        writer.do(*wanted)
        writer.finish()
    assert_equal(writer.root, wanted)


@pytest.mark.parametrize("name", [name for name in EVERY if not WRITERS[getattr(name, "values", [name])[0]].streams])
def test_every_pattern(name, write):
    layouts = [layout for layout in ("v2-nested", "v3-shards") if WRITERS[name].can(layout)]
    wanted = [
        order
        for layout in layouts
        for number, pattern in enumerate(PATTERNS)
        if pattern != "abort" and WRITERS[name].can(layout, pattern)
        for order in PATTERNS[pattern](f"{layout.replace('-', '_')}_{number}", LAYOUTS[layout])
    ]
    with write(name) as writer:
        writer.do(*wanted)
        writer.finish()
    if not is_plain(name):
        assert_equal(writer.root, wanted)


@pytest.mark.parametrize("hierarchy", HIERARCHIES)
@pytest.mark.parametrize("name", ["rename", "tensorstore", "zarr"])
def test_every_hierarchy(name, hierarchy, write):
    wanted = list(HIERARCHIES[hierarchy]())
    with write(name) as writer:
        writer.do(*wanted)
        writer.finish()
    assert_equal(writer.root, wanted, whole_chunks=not is_plain(name))
    groups = {order["path"] for order in wanted if order["do"] == "group"}
    for path in groups:
        assert dict(zarr.open_group(os.path.join(writer.root, path), mode="r").attrs) is not None
    assert all(os.path.exists(os.path.join(writer.root, order["path"])) for order in wanted if order["do"] == "file")


def test_the_first_attributes_are_there(write):
    with write("zarr") as writer:
        writer.do(*orders.image("", "0.5"))
    assert zarr.open_group(writer.root, mode="r").attrs["ome"]["multiscales"][0]["datasets"][1]["path"] == "1"


def test_a_killed_writer_says_nothing_more(write):
    with write("rename") as writer:
        writer.do(orders.array("0", LAYOUTS["v3"]), orders.abort())
        assert not writer.alive
        with pytest.raises(WriterFailed, match="does not run"):
            writer.start(orders.pause(0))


def test_an_order_that_fails_is_told(write):
    with write("rename") as writer:
        with pytest.raises(WriterFailed, match="KeyError"):
            writer.do(orders.put("nowhere", (0,), (1,)))
        writer.do(orders.array("0", LAYOUTS["v3"]))


def test_a_writer_ends_when_its_owner_is_gone(write):
    with write("rename") as writer:
        writer.do(orders.pause(0))
        writer._process.stdin.close()
        assert writer._process.wait(10) == 1


def test_a_series_tells_its_times(write):
    layout = LAYOUTS["v3"]
    with write("rename") as writer:
        writer.do(orders.array("0", layout))
        ((first, *others),) = writer.do(orders.series(list(orders.planes("0", layout)), every_s=0.05))
    assert len(others) == 3
    assert all(late >= 0 and took > 0 for late, took in [first, *others])


@pytest.mark.parametrize(("name", "half"), [("in place", "0"), ("rename", "0.tmp")])
def test_a_chunk_in_pieces_is_seen_half(name, half, write, tmp_path):
    with write(name, root=tmp_path, pieces=2, gap_s=60) as writer:
        writer.do(orders.array("0", LAYOUTS["v3"]))
        writer.start(orders.put("0", (0, 0, 0, 0), (1, 1, 64, 64)))
        path = tmp_path / "0/c/0/0/0" / half
        deadline = time.monotonic() + 20
        while not (path.exists() and path.stat().st_size == 4096):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert os.listdir(path.parent) == [half]
        writer.kill()


def test_a_shard_grows_and_gets_its_index_last(write):
    layout = LAYOUTS["v3-shards"]
    with write("in place") as writer:
        writer.do(orders.array("0", layout))
        shard = f"{writer.root}/0/c/0/0/0/0"
        sizes = []
        for y in (0, 32):
            for c in (0, 1):
                writer.do(orders.put("0", (0, c, y, 0), (1, 1, 32, 64)))
                sizes.append(os.path.getsize(shard))
    assert sizes == [4096, 8192, 12288, 16384 + 16 * 4 + 4]
    assert by_zarr(writer.root, "0")[0].any(axis=(1, 2)).all()


def test_old_metadata_names_no_separator(write):
    with write("rename", no_separator=True) as writer:
        writer.do(*PATTERNS["full"]("0", LAYOUTS["v2-flat"]))
    with open(f"{writer.root}/0/.zarray", encoding="utf-8") as file:
        assert "dimension_separator" not in json.load(file)
    assert by_zarr(writer.root, "0").any()
