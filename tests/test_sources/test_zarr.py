"""What `sources/zarr.py` knows of a hierarchy, against real libraries and against a model made of sets."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scopeferry.layouts.shard import encode_index
from scopeferry.sources.complete import ArrayEnd, Complete
from scopeferry.sources.zarr import Keys, Place, ZarrTree, in_order, read_metadata
from scopeferry.sources.zarr_array import MOST_OUTSIDE, OUTSIDE_BYTES
from scopeferry.sources.zarr_truth import (
    BY_FOLDER,
    EMPTY,
    MISSING,
    PAGE,
    WRITTEN,
    Chunks,
    States,
    Truth,
    ravel,
    rows,
    unravel,
)
from scopeferry.testing.orders import HIERARCHIES, LAYOUTS
from scopeferry.testing.slow_writer import SlowWriter

ENCODINGS = [Keys(prefix, separator) for prefix in ("c", "") for separator in "/."]


@pytest.fixture(scope="session", autouse=True)
def _loop_of_zarr():
    """The event loop that zarr keeps for the life of a process is no file that a test left open."""
    zarr.zeros(1, store={})


def v2(shape, chunks, **more):
    return json.dumps({"zarr_format": 2, "shape": shape, "chunks": chunks, "dtype": "<u2", **more}).encode()


def v3(shape, chunks, *, inner=None, separator="/", **more):
    codecs = [{"name": "bytes"}]
    if inner is not None:
        index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {"chunk_shape": inner, "codecs": codecs, "index_codecs": index}
        codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    found = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": "uint16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": separator}},
        "codecs": codecs,
        **more,
    }
    return json.dumps(found).encode()


def tree_of(raw, path="a"):
    tree = ZarrTree()
    assert tree.metadata(f"{path}/{'zarr.json' if b'node_type' in raw else '.zarray'}", raw).ready
    return tree


def counts(tree, path="a"):
    found = tree.truth()[path]
    return found.written, list(found.empty), list(found.missing)


# -- keys --------------------------------------------------------------------------------------------------------------

indices = st.lists(st.integers(0, 10**15), max_size=6).map(tuple)


@given(st.sampled_from(ENCODINGS), indices)
def test_an_index_comes_back_from_its_key(keys, index):
    assert keys.index(keys.key(index), len(index)) == index


@given(st.sampled_from(ENCODINGS), st.text("c0123456789/.-_ x\u0663\n", max_size=12), st.integers(0, 5))
def test_what_is_taken_for_a_key_is_the_key_of_its_index(keys, name, rank):
    index = keys.index(name, rank)
    assert index is None or keys.key(index) == name


@pytest.mark.parametrize(
    "name", ["c/01/2", "c/1", "c/1/2/3", "c/1/-2", "c/1/2/", "/c/1/2", "c.1.2", "1/2", "c/1/\u0662", "c/1/2\n"]
)
def test_what_is_nearly_a_key_is_none(name):
    assert Keys("c", "/").index(name, 2) is None


def test_keys_of_complete_json_may_be_runs_and_never_leave_the_grid():
    keys = Keys("c", "/")
    assert [*keys.indices("c/2-3/0", (9, 2))] == [(2, 0), (3, 0)]
    assert [*keys.indices("c/7-999999999999999/1", (9, 2))] == [(7, 1), (8, 1)]
    assert [*Keys("", ".").indices("1-2.0", (9, 2))] == [(1, 0), (2, 0)]
    for odd in ("c/9/0", "c/3-2/0", "c/0/0-1", "c/1-2", "x", "c/-1/0", "c/12-13/0", ""):
        assert [*keys.indices(odd, (9, 2))] == []


# -- metadata that real libraries write --------------------------------------------------------------------------------

GRIDS = [((5, 7), (2, 3)), ((4,), (4,)), ((), ()), ((1, 3, 9), (1, 2, 4))]


def by_tensorstore(path, shape, chunks, zarr_format, encoding, separator, values):
    if zarr_format == 2:
        metadata = {"shape": shape, "chunks": chunks, "dtype": "<u2", "dimension_separator": separator}
    else:
        metadata = {
            "shape": shape,
            "data_type": "uint16",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
            "chunk_key_encoding": {"name": encoding, "configuration": {"separator": separator}},
        }
    kvstore = {"driver": "file", "path": str(path)}
    spec = {"driver": "zarr" if zarr_format == 2 else "zarr3", "kvstore": kvstore, "metadata": metadata}
    tensorstore.open(spec, create=True).result()[...].write(values).result()


def by_zarr(path, shape, chunks, zarr_format, encoding, separator, values):
    array = zarr.create_array(
        str(path), shape=shape, chunks=chunks, dtype="uint16", zarr_format=zarr_format, fill_value=0,
        chunk_key_encoding={"name": encoding, "separator": separator},
    )  # fmt: skip
    array[...] = values


FORMATS = [(2, "v2", "."), (2, "v2", "/"), (3, "default", "/"), (3, "default", "."), (3, "v2", "."), (3, "v2", "/")]


def feed(tree, root):
    """Tell a tree all that lies below a folder; returns the files that are neither chunks nor metadata."""
    files = sorted(path.relative_to(root).as_posix() for path in Path(root).rglob("*") if path.is_file())
    others = []
    for path in files:
        if tree.place(path).kind == "metadata":
            assert tree.metadata(path, (root / path).read_bytes()).ready
    for path in files:
        if not tree.present(path) and tree.place(path).kind != "metadata":
            others.append(path)
        if tree.is_shard(path):
            assert tree.shard(path, InMemory((root / path).read_bytes()))
    return others


class InMemory:
    def __init__(self, data):
        self.data, self.size = data, len(data)

    def read(self, offset, length):
        return self.data[offset : offset + length]


@pytest.mark.parametrize("write", [by_tensorstore, by_zarr], ids=["tensorstore", "zarr-python"])
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_arrays_of_real_libraries_are_known_chunk_by_chunk(write, layout, grid, tmp_path):
    (shape, chunks), (zarr_format, encoding, separator) = grid, layout
    write(tmp_path / "a", shape, chunks, zarr_format, encoding, separator, np.ones(shape, "uint16"))
    tree = ZarrTree()
    assert feed(tree, tmp_path) == []
    layout = tree.layout("a")
    assert (layout.shape, layout.unit, layout.zarr_format, layout.sharding) == (shape, chunks, zarr_format, None)
    assert counts(tree) == (layout.count, [], [])
    assert tree.full
    assert tree.problems == {}
    index = tuple(size - 1 for size in layout.grid)
    assert (tmp_path / "a" / layout.key(index)).is_file()
    assert tree.place(f"a/{layout.key(index)}") == Place("chunk", "a", index, True, f"a/{layout.key(index)}".count("/"))


def test_format_2_without_separator_means_a_dot():
    tree = tree_of(v2([4, 4], [2, 2]))
    assert tree.present("a/1.1")
    assert not tree.present("a/1/1")


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_a_writer_writes_in_each_layout_is_known(name, tmp_path):
    layout = LAYOUTS[name]
    with SlowWriter(tmp_path / "s", "tensorstore") as writer:
        spec = layout.spec()
        writer.do({"do": "array", "path": "a", **spec, "attributes": {}})
        writer.do({"do": "put", "path": "a", "start": (0,) * len(layout.shape), "shape": layout.shape, "seed": 1})
    tree = ZarrTree()
    assert feed(tree, tmp_path / "s") == []
    assert tree.layout("a").unit == tuple(layout.chunks)
    assert (tree.layout("a").sharding is None) is (layout.shards is None)
    assert tree.full
    assert tree.written == tree.expected > 0


@pytest.mark.parametrize("name", HIERARCHIES)
def test_what_hierarchies_promise_is_there_when_it_is_and_only_then(name, tmp_path):
    with SlowWriter(tmp_path / "s", "zarr") as writer:
        writer.do(*HIERARCHIES[name]())
    tree = ZarrTree()
    others = feed(tree, tmp_path / "s")
    assert all(Path(path).suffix in {".log", ".csv", ".xml"} for path in others)
    assert tree.unkept() == ()
    assert tree.full
    levels = [path for path in tree.arrays() if "tables" not in path]
    assert levels
    assert all(tree.truth()[path].missing_ranges == () for path in levels)
    assert bool(tree.plate_arrays()) == name.startswith("plate")
    for folder in {str(path.parent) for path in (tmp_path / "s").rglob(".zgroup")} | {
        str(path.parent) for path in (tmp_path / "s").rglob("zarr.json")
    }:
        path = Path(folder).relative_to(tmp_path / "s").as_posix().removeprefix(".")
        if path in {"", "OME", "A", "B"} or path.endswith("/labels") or "tables" in path:
            continue
        without = ZarrTree()
        for file in (tmp_path / "s").rglob("*"):
            inside = file.relative_to(tmp_path / "s").as_posix()
            if without.place(inside).kind == "metadata" and not inside.startswith(f"{path}/"):
                without.metadata(inside, file.read_bytes())
        assert path in without.promised()


# -- metadata that are not right ---------------------------------------------------------------------------------------


@given(st.integers(0, 400))
def test_half_written_metadata_are_not_ready_and_change_nothing(size):
    raw = v3([4, 4], [2, 2])
    tree = tree_of(raw)
    tree.present("a/c/0/0")
    change = tree.metadata("a/zarr.json", raw[: min(size, len(raw) - 1)])
    assert not change.ready
    assert change.array == "a"
    assert tree.not_ready == ["a/zarr.json"]
    assert counts(tree)[0] == 1
    assert tree.metadata("a/zarr.json", raw) == (True, "a", False, "")
    assert tree.not_ready == []


ODD = {
    "no object": (b"[1]", None),
    "unknown version": (b'{"zarr_format": 4}', None),
    "unknown node": (b'{"zarr_format": 3, "node_type": "tree"}', None),
    "no shape": (b'{"zarr_format": 3, "node_type": "array"}', None),
    "negative shape": (v3([-1], [1]), None),
    "unknown grid": (v3([9], [1], chunk_grid={"name": "rectilinear"}), 0),
    "no grid": (v3([9], [1], chunk_grid=None), 0),
    "other rank": (v3([9], [1, 1]), 0),
    "empty chunks": (v3([9], [0]), 0),
    "unknown keys": (v3([9], [1], chunk_key_encoding={"name": "hashed"}), 0),
    "unknown separator": (v3([9], [1], chunk_key_encoding={"name": "v2", "configuration": {"separator": "-"}}), 0),
    "unknown shards": (v3([9], [3], codecs=[{"name": "sharding_indexed"}]), 3),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_not_understood_degrades_and_is_named(case):
    raw, units = ODD[case]
    tree = ZarrTree()
    change = tree.metadata("a/zarr.json", raw)
    assert change.ready
    assert change.problem
    assert tree.problems == {"a/zarr.json": change.problem}
    assert (tree.arrays() == ["a"]) is (units is not None)
    assert tree.present("a/c/0") is (case == "unknown shards")
    assert tree.expected == {None: 0, 0: 1, 3: 3}[units]
    assert tree.full is (units is None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(["zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"]),
    st.sampled_from([json.loads(v2([4, 4], [2, 2])), json.loads(v3([4, 4], [2, 2], inner=[1, 1])), {}]),
    st.dictionaries(
        st.sampled_from([
            "zarr_format", "node_type", "shape", "chunks", "chunk_grid", "chunk_key_encoding", "codecs", "attributes",
            "dimension_names", "dimension_separator", "dtype", "data_type", "ome", "multiscales", "plate", "well",
            "labels", "series", "_ARRAY_DIMENSIONS",
        ]),
        json_values,
    ),
)  # fmt: skip
def test_nothing_in_metadata_is_an_error(name, found, more):
    tree = ZarrTree()
    for folder in ("", "labels", "a/OME"):
        path = f"{folder}/{name}" if folder else name
        assert tree.metadata(path, json.dumps({**found, **more}).encode()).ready
        tree.present(f"{folder}/c/0/0")
    assert tree.expected >= tree.written + tree.known_empty
    assert isinstance([tree.unkept(), tree.truth(), tree.plate_arrays(), tree.problems], list)


@given(st.binary(max_size=60))
def test_no_bytes_are_an_error(raw):
    for name in ("zarr.json", ".zarray", ".zattrs"):
        read_metadata(name, raw)


@given(st.lists(st.text("ac0/.\n\udc80", min_size=1, max_size=12)))
def test_folders_that_are_no_zarr_are_other_files(paths):
    tree = ZarrTree()
    for path in paths:
        assert tree.place(path).kind == "other"
        for happens in (tree.present, tree.gone, tree.lock_went, tree.folder_empty):
            assert not happens(path)
    assert (tree.found, tree.expected, tree.truth(), tree.full) == (False, 0, {}, True)


# -- what a path is ----------------------------------------------------------------------------------------------------


def test_places_in_any_hierarchy():
    tree = tree_of(v3([4, 4], [2, 2]), "deep/odd name/a")
    tree.metadata("b/.zarray", v2([4, 4], [2, 2]))
    assert tree.place("deep/odd name/a/c/9/0") == Place("chunk", "deep/odd name/a", (9, 0), False, 5)
    assert tree.place("deep/odd name/a/c/1/0.__lock") == Place("other", "deep/odd name/a", depth=5)
    assert tree.place("deep/odd name/zarr.json") == Place("metadata", None, depth=2)
    assert tree.place("b/.zattrs") == Place("metadata", "b", depth=1)
    assert tree.place("c/0/0") == Place("other", None, depth=2)
    assert tree.place("b") == Place("other", None)
    assert tree.array_of("b/notes.txt") == "b"
    assert tree.chunk_of("b/notes.txt") is None
    assert tree.chunk_of("b/1.1") == "b"


@pytest.mark.parametrize("first", ["", "a"])
def test_an_array_in_the_folder_of_another_has_its_own_chunks(first):
    tree = tree_of(v2([4], [1]), "a/b")
    assert tree.chunk_of("a/b/3") == "a/b"
    tree.metadata(f"{first}/.zarray".lstrip("/"), v2([4], [1]))
    assert tree.chunk_of("a/b/3") == "a/b"
    assert tree.chunk_of(f"{first}/3".lstrip("/")) == first


def test_an_array_at_the_root():
    tree = ZarrTree()
    assert tree.metadata("zarr.json", v3([4], [1])) == (True, "", True, "")
    assert tree.present("c/2")
    assert tree.truth()[""].missing == ((0,), (1,), (3,))


def test_without_its_metadata_an_array_has_no_chunks_but_what_it_had_is_known():
    tree = tree_of(v2([3], [1]))
    tree.present("a/0")
    tree.metadata_gone("a/.zarray")
    assert tree.chunk_of("a/0") is None
    assert not tree.gone("a/0")
    assert counts(tree) == (1, [], [(1,), (2,)])
    assert tree.metadata("a/.zarray", v2([3], [1])).relist
    assert tree.grew() == ["a"]  # what becomes of the chunks of its predecessor is no sign of its end
    assert counts(tree) == (0, [], [(0,), (1,), (2,)])


def test_metadata_are_published_leaves_first_and_the_root_last():
    every = ["zarr.json", "a/zarr.json", "a/0/zarr.json", "b/.zgroup", "b/.zattrs", ".zmetadata", "b/0/.zarray"]
    order = in_order(every)
    assert sorted(order) == sorted(every)
    for path in every:
        folder = path.rpartition("/")[0]
        above = [other for other in every if other != path and (folder + "/").startswith(other.rpartition("/")[0] + "/")
                 and other.rpartition("/")[0] != folder]  # fmt: skip
        assert all(order.index(path) < order.index(other) for other in above)
    assert order[-2:] == ["zarr.json", ".zmetadata"]


# -- what the metadata promise -----------------------------------------------------------------------------------------


def test_promises_are_kept_one_by_one():
    tree = ZarrTree()
    plate = {"plate": {"wells": [{"path": "A/1"}, {"path": "A/2"}]}}
    tree.metadata(".zattrs", json.dumps(plate).encode())
    tree.metadata("A/1/.zattrs", b'{"well": {"images": [{"path": "0"}]}}')
    assert [tuple(promise) for promise in tree.unkept()] == [
        ("well", "A/1"), ("well", "A/2"), ("field", "A/1/0"),
    ]  # fmt: skip
    tree.metadata("A/1/.zgroup", b'{"zarr_format": 2}')
    tree.metadata("A/1/0/.zgroup", b"{")  # there, though not yet whole
    assert tree.promised() == ["A/2"]
    tree.metadata_gone("A/1/.zgroup")
    assert tree.promised() == ["A/1", "A/2"]
    assert not tree.full


def test_promises_outside_and_odd_ones_are_none():
    tree = ZarrTree()
    paths = ["/0", "../0", "a/../../b", 7, None, "", "./1", "2/"]
    found = {"multiscales": [{"datasets": [{"path": path} for path in paths]}], "labels": ["x"], "series": ["y"]}
    tree.metadata("i/zarr.json", json.dumps({"zarr_format": 3, "node_type": "group", "attributes": found}).encode())
    assert tree.promised() == ["i/1", "i/2"]


# -- what becomes of chunks --------------------------------------------------------------------------------------------


def test_absence_alone_is_never_called_empty():
    tree = tree_of(v3([3, 1], [1, 1]))
    assert counts(tree) == (0, [], [(0, 0), (1, 0), (2, 0)])


def test_cleared_chunks_and_chunks_whose_lock_went_are_empty():
    tree = tree_of(v3([5, 1], [1, 1]))
    tree.present("a/c/0/0")
    tree.present("a/c/4/0")
    assert tree.gone("a/c/0/0")
    assert tree.lock_went("a/c/1/0.__lock")
    assert tree.lock_went("a/c/2/0_0123456789abcdef.__lock")
    assert not tree.lock_went("a/c/4/0.__lock")  # it was written
    assert not tree.lock_went("a/c/x.__lock")
    assert counts(tree) == (1, [(0, 0), (1, 0), (2, 0)], [(3, 0)])
    tree.present("a/c/1/0")
    assert counts(tree) == (2, [(0, 0), (2, 0)], [(3, 0)])


def test_an_empty_folder_of_its_own_means_an_empty_chunk_but_not_in_an_aborted_run():
    tree = tree_of(v3([4, 2, 8], [1, 1, 8]))
    assert tree.folder_empty("a/c/0/1")
    for other in ("a", "a/c", "a/c/0", "a/c/0/9", "a/c/9/0", "b/c/0/0", "a/c/0/0/0", "a/x"):
        assert not tree.folder_empty(other)
    assert counts(tree)[1] == [(0, 1, 0)]
    assert tree.known_empty == 1
    tree.aborted = True
    assert counts(tree)[1] == []
    assert (0, 1, 0) in tree.truth()["a"].missing
    assert (tree.known_empty, tree.is_there("a/c/0/1/0")) == (0, False)


def test_a_folder_that_may_hold_several_chunks_tells_nothing():
    tree = tree_of(v3([4, 16], [1, 8]))
    assert not tree.folder_empty("a/c/0")
    assert not tree_of(v2([4, 8], [1, 8])).folder_empty("a/0")  # names with dots lie in no folders


@pytest.mark.parametrize("library", [by_tensorstore, by_zarr], ids=["tensorstore", "zarr-python"])
def test_what_libraries_leave_of_an_empty_chunk_is_understood(library, tmp_path):
    values = np.ones((3, 1, 4), "uint16")
    library(tmp_path / "a", (3, 1, 4), (1, 1, 4), 3, "default", "/", values)
    if library is by_zarr:
        zarr.open_array(str(tmp_path / "a"), mode="r+")[1] = 0
    else:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "a")}}
        tensorstore.open(spec).result()[1].write(0).result()
    tree = ZarrTree()
    feed(tree, tmp_path)
    empty = [path for path in tmp_path.rglob("*") if path.is_dir() and not any(path.iterdir())]
    assert [tree.folder_empty(path.relative_to(tmp_path).as_posix()) for path in empty] == [True]
    assert counts(tree) == (2, [(1, 0, 0)], [])


def test_inner_chunks_of_shards_come_from_the_index():
    tree = tree_of(v3([5, 4], [4, 4], inner=[2, 2]))
    layout = tree.layout("a")
    assert (layout.grid, layout.units) == ((2, 1), (3, 2))
    tree.present("a/c/0/0")
    assert tree.written == 0
    assert tree.shard("a/c/0/0", InMemory(b"abcd" + encode_index([(0, 2), (2, 2), None, (2, 2)])))
    assert counts(tree) == (3, [], [(1, 0), (2, 0), (2, 1)])
    assert tree.shard_is_whole("a/c/0/0", InMemory(b"abcd")) is False
    assert not tree.shard("a/c/0/0", InMemory(b"abcd"))
    assert tree.shard("a/c/0/0", InMemory(b"abcd" + encode_index([(0, 2), None, (0, 2), None])))
    assert counts(tree) == (2, [(0, 1), (1, 1)], [(2, 0), (2, 1)])  # present before, cleared now
    assert tree.lock_went("a/c/1/0.__lock")
    assert counts(tree) == (2, [(0, 1), (1, 1), (2, 0), (2, 1)], [])
    assert tree.full
    assert (tree.chunks_of("a"), tree.is_there("a/c/0/0"), tree.is_there("a/c/1/0")) == (1, True, True)
    assert tree.gone("a/c/0/0")
    assert counts(tree)[0] == 0
    assert tree.truth()["a"].unit == "inner chunk"


def test_shards_ahead_of_the_shape_count_when_it_follows():
    tree = tree_of(v3([1, 4], [4, 4], inner=[1, 4]))
    tree.shard_holds("a/c/0/0", b"\1\1\0\1")
    tree.shard_holds("a/c/1/0", b"\1\1\1\1")
    assert counts(tree) == (1, [], [])
    assert not tree.metadata("a/zarr.json", v3([6, 4], [4, 4], inner=[1, 4])).relist
    assert counts(tree) == (5, [], [(2, 0)])
    tree.metadata("a/zarr.json", v3([8, 4], [4, 4], inner=[1, 4]))
    assert counts(tree) == (7, [], [(2, 0)])


def test_what_complete_json_says():
    tree = tree_of(v3([9, 1], [1, 1]))
    tree.folder_empty("a/c/8")
    tree.present("a/c/0/0")
    end = ArrayEnd(1, empty=("c/1-2/0", "c/0/0"), missing=("c/3-999999999999/0",))
    tree.ended(Complete("finished", {"a": end, "late": ArrayEnd(0, empty=("c/0",))}))
    assert counts(tree) == (1, [(1, 0), (2, 0)], [(i, 0) for i in range(3, 9)])
    assert not tree.lock_went("a/c/4/0")  # it alone says what is empty
    assert not tree.folder_empty("a/c/5")
    assert not tree.aborted
    tree.metadata("late/zarr.json", v3([2], [1]))
    assert counts(tree, "late") == (0, [(0,)], [(1,)])
    tree.ended(Complete("aborted"))
    assert tree.aborted


def test_missing_ranges_are_elements_of_the_first_axis_by_its_name():
    tree = tree_of(v3([10, 4], [2, 4], dimension_names=["frame", "y"]), "i/0")
    for at in (0, 2):
        tree.present(f"i/0/c/{at}/0")
    assert tree.truth()["i/0"].missing_ranges == ("frame 2-3", "frame 6-9")
    ome = {"ome": {"multiscales": [{"axes": [{"name": "t"}, {"name": "y"}], "datasets": [{"path": "0"}]}]}}
    tree.metadata("i/zarr.json", json.dumps({"zarr_format": 3, "node_type": "group", "attributes": ome}).encode())
    assert tree.truth()["i/0"].missing_ranges == ("t 2-3", "t 6-9")
    assert tree_of(v2([3, 4], [1, 2])).truth()["a"].missing_ranges == ("axis 0 0-2",)
    assert tree_of(v2([], [])).truth()["a"].missing_ranges == ()
    xarray = tree_of(v2([3], [1]))
    xarray.metadata("a/.zattrs", b'{"_ARRAY_DIMENSIONS": ["time"]}')
    xarray.present("a/1")
    assert xarray.truth()["a"].missing_ranges == ("time 0", "time 2")


def test_many_missing_ranges_are_cut():
    tree = tree_of(v2([9000], [1]))
    for at in range(0, 9000, 2):
        tree.present(f"a/{at}")
    found = tree.truth()["a"]
    assert len(found.missing_ranges) == 1001
    assert found.missing_ranges[-1] == "..."
    assert len(found.missing) == 4500


def test_growth_and_shots_are_remembered_across_restarts():
    tree = tree_of(v3([1, 4], [1, 4]))
    tree.metadata("b/zarr.json", v3([2], [1]))
    tree.metadata("c/zarr.json", v3([2], [1]))
    assert tree.grew() == []
    tree.metadata("a/zarr.json", v3([2, 4], [1, 4]))
    tree.present("b/c/0", again=True)
    tree.metadata("c/zarr.json", v3([1], [1]))
    assert tree.grew() == ["a", "b"]
    tree.metadata("d/zarr.json", v3([2], [1]))
    tree.gone("d/c/0")  # came, and was cleared: not in one shot
    assert tree.grew() == ["a", "b", "d"]
    later = ZarrTree()
    for path, raw in tree.take_evidence():
        later.restore(path, raw)
    for path in "abcd":
        later.metadata(f"{path}/zarr.json", v3([2, 4], [1, 4]) if path == "a" else v3([2], [1]))
    assert later.grew() == ["a", "b", "d"]
    assert later.truth()["d"].empty == ((0,),)


def test_too_many_chunks_ahead_of_the_shape_have_to_be_listed_again():
    tree = tree_of(v2([1], [1]))
    for at in range(MOST_OUTSIDE // OUTSIDE_BYTES + 10):
        tree.present(f"a/{at}")
    assert tree.metadata("a/.zarray", v2([10], [1])).relist
    assert not tree.metadata("a/.zarray", v2([11], [1])).relist
    assert tree.written == 11


def test_shards_that_lost_a_part_to_a_smaller_shape_have_to_be_listed_again():
    tree = tree_of(v3([4], [4], inner=[1]))
    tree.shard_holds("a/c/0", b"\1\1\1\1")
    assert not tree.metadata("a/zarr.json", v3([2], [4], inner=[1])).relist
    assert tree.metadata("a/zarr.json", v3([4], [4], inner=[1])).relist


def test_evidence_of_an_earlier_run_never_hides_what_is_there():
    tree = tree_of(v2([2], [1]))
    tree.gone("a/0")
    ((path, raw),) = tree.take_evidence()
    later = tree_of(v2([2], [1]))
    later.present("a/0")
    later.restore(path, raw)
    assert counts(later) == (1, [], [(1,)])


def test_other_chunks_make_another_array():
    tree = tree_of(v2([4, 4], [1, 4]))
    tree.present("a/0.0")
    assert tree.metadata("a/.zarray", v2([4, 4], [2, 4])).relist
    assert counts(tree) == (0, [], [(0, 0), (1, 0)])


# -- the truth, against a model made of sets ---------------------------------------------------------------------------

SHAPES = st.tuples(st.integers(0, 7), st.integers(1, 4), st.integers(1, 3))
AT = st.tuples(st.integers(0, 8), st.integers(0, 4), st.integers(0, 3))


class Model(RuleBasedStateMachine):
    """A flat array of chunks (1, 1, 1) that is written, cleared, locked, resized, restarted."""

    @initialize(shape=SHAPES)
    def begin(self, shape):
        self.shape, self.there, self.empty, self.by_folder = shape, set(), set(), set()
        self.tree = tree_of(v3(list(shape), [1, 1, 1]))

    def inside(self, index):
        return all(i < size for i, size in zip(index, self.shape, strict=True))

    def path(self, index):
        return "a/c/" + "/".join(map(str, index))

    @rule(index=AT)
    def write(self, index):
        assert self.tree.present(self.path(index))
        self.there.add(index)
        self.empty.discard(index)
        self.by_folder.discard(index)

    @rule(index=AT)
    def clear(self, index):
        self.tree.gone(self.path(index))
        self.there.discard(index)
        self.by_folder.discard(index)
        self.empty |= {index} if self.inside(index) else set()

    @rule(index=AT)
    def lock(self, index):
        self.tree.lock_went(f"{self.path(index)}.__lock")
        if self.inside(index) and index not in self.there:
            self.empty.add(index)
            self.by_folder.discard(index)

    @rule(index=AT)
    def leave_a_folder(self, index):
        index = (*index[:2], 0)
        told = self.tree.folder_empty(self.path(index).rpartition("/")[0])
        if self.inside(index) and self.shape[2] == 1 and index not in self.there | self.empty:
            assert told is (index not in self.by_folder)
            self.by_folder.add(index)

    @rule(shape=SHAPES)
    def resize(self, shape):
        assert not self.tree.metadata("a/zarr.json", v3(list(shape), [1, 1, 1])).relist
        self.shape = shape
        self.empty = set(filter(self.inside, self.empty))
        self.by_folder = set(filter(self.inside, self.by_folder))

    @rule()
    def grow_by_one(self):
        self.resize((self.shape[0] + 1, *self.shape[1:]))

    @precondition(lambda self: self.shape[0])
    @rule()
    def shrink_by_one(self):
        self.resize((self.shape[0] - 1, *self.shape[1:]))

    @rule(known_first=st.booleans())
    def restart(self, known_first):
        for watched in self.tree._arrays.values():
            watched.noted = True
        kept = dict(self.tree.take_evidence())
        self.tree = ZarrTree()
        if known_first:
            self.tree.metadata("a/zarr.json", v3(list(self.shape), [1, 1, 1]))
        else:
            self.tree.restore("a", kept["a"])
            self.tree.metadata("a/zarr.json", v3(list(self.shape), [1, 1, 1]))
        for index in self.there:
            self.tree.present(self.path(index))
        if known_first:
            self.tree.restore("a", kept["a"])

    @precondition(lambda self: not self.tree.aborted)
    @rule()
    def nothing_is_lost_by_an_abort_that_is_taken_back(self):
        self.tree.aborted = True
        assert set(self.tree.truth()["a"].empty) == self.empty
        self.tree.aborted = False

    @invariant()
    def it_says_what_the_sets_say(self):
        grid = set(itertools.product(*map(range, self.shape)))
        written = self.there & grid
        empty = self.empty | self.by_folder
        found = self.tree.truth()["a"]
        assert found.written == self.tree.written == len(written)
        assert list(found.empty) == sorted(empty)
        assert list(found.missing) == sorted(grid - written - empty)
        assert self.tree.expected == len(grid)
        lacking = sorted({index[0] for index in found.missing})
        ranges = [name.removeprefix("axis 0 ").split("-") for name in found.missing_ranges]
        assert [i for ends in ranges for i in range(int(ends[0]), int(ends[-1]) + 1)] == lacking


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_shards_against_sets(data):
    many = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2)))
    shape = data.draw(st.tuples(st.integers(1, 7), st.integers(1, 5), st.integers(1, 3)))
    tree, written, empty = tree_of(v3(list(shape), list(many), inner=[1, 1, 1])), set(), set()
    for _ in range(data.draw(st.integers(1, 8))):
        shard = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)))
        units = [tuple(i * n + k for i, n, k in zip(shard, many, local, strict=True))
                 for local in itertools.product(*map(range, many))]  # fmt: skip
        if data.draw(st.booleans()):
            flags = data.draw(st.lists(st.booleans(), min_size=len(units), max_size=len(units)))
            tree.shard_holds("a/c/" + "/".join(map(str, shard)), bytes(flags))
            there = {unit for unit, flag in zip(units, flags, strict=True) if flag}
            cleared = (set(units) & written) - there
            written, empty = (written | there) - cleared, (empty | cleared) - there
        else:
            shape = data.draw(st.tuples(st.integers(shape[0], 9), st.integers(shape[1], 6), st.integers(shape[2], 4)))
            tree.metadata("a/zarr.json", v3(list(shape), list(many), inner=[1, 1, 1]))
        grid = set(itertools.product(*map(range, shape)))
        assert tree.written == len(written & grid)
        missing = set(tree.truth()["a"].missing)
        assert missing <= grid - written  # what was cleared outside the grid may be called missing, never the reverse
        assert grid - written - empty <= missing


# -- two bits a chunk --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 3 * PAGE), st.integers(0, PAGE + 9), st.integers(0, 3)), max_size=6))
@settings(max_examples=50, deadline=None)
def test_stretches_against_a_list(fills):
    states, model, size = States(), bytearray(5 * PAGE), 5 * PAGE - 3
    for start, length, state in fills:
        states.fill(start, start + length, state)
        model[start : start + length] = bytes([state]) * length
        states.put(start, state ^ 1)
        model[start] = state ^ 1
    for wanted in ((MISSING,), (WRITTEN,), (MISSING, BY_FOLDER), (EMPTY, BY_FOLDER)):
        found = bytearray(size)
        last = -1
        for first, behind in states.runs(wanted, size):
            assert last < first < behind <= size
            found[first:behind] = b"\1" * (behind - first)
            last = behind
        assert found == bytes(state in wanted for state in model[:size])
    assert [states.counts[state] for state in (1, 2, 3)] == [model.count(state) for state in (1, 2, 3)]
    again = States.of_evidence(*states.evidence())
    assert [*again.runs((EMPTY,), size)] == [*states.runs((EMPTY,), size)]
    assert again.counts[WRITTEN] == 0


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=4))
def test_a_box_is_made_of_its_rows(axes):
    grid = tuple(size for size, _, _ in axes)
    start = tuple(min(first, size) for size, first, _ in axes)
    stop = tuple(min(behind, size) for size, _, behind in axes)
    found = [at for first, behind in rows(start, stop, grid) for at in range(first, behind)]
    wanted = itertools.product(*(range(*ends) for ends in zip(start, stop, strict=True)))
    assert found == [ravel(index, grid) for index in wanted]
    assert [unravel(at, grid) for at in found] == [*itertools.product(*map(range, start, stop))]


def test_exact_sets_are_sequences_of_indices():
    truth = Truth((3, 2))
    truth.put((1, 0), WRITTEN)
    found = truth.chunks((MISSING,))
    truth.put((0, 0), WRITTEN)  # changes nothing in what was taken before
    every = ((0, 0), (0, 1), (1, 1), (2, 0), (2, 1))
    assert found == every
    assert (len(found), found[0], found[-1], found[1:3]) == (5, (0, 0), (2, 1), every[1:3])
    assert [index in found for index in ((1, 1), (1, 0), (9, 9), (1,), "x")] == [True, False, False, False, False]
    assert repr(found) == "((0, 0), (0, 1), (1, 1), (2, 0), ...)"
    assert (repr(Chunks.none()), Chunks.none() == ()) == ("()", True)
    assert found != every[:4]
    with pytest.raises(IndexError):
        found[5]


def test_ten_million_chunks_take_two_bits_each():
    frames, of_shard, rest = 100_000, 1000, 100
    bound = frames * rest * 2 / 8 * 1.02
    raw = v3([frames, rest], [of_shard, rest], inner=[1, 1])
    tree = tree_of(raw)
    watched = tree._arrays["a"]
    for shard in range(frames // of_shard):
        tree.shard_holds(f"a/c/{shard}/0", b"\1" * (of_shard * rest - 1) + b"\0")
    assert (tree.expected, tree.expected - tree.written) == (frames * rest, frames // of_shard)
    assert watched.truth.states.size_bytes <= bound
    assert sys.getsizeof(watched._outside) < 1000
    tree.metadata("a/zarr.json", raw.replace(b"[100000, ", b"[100001, "))  # a resize copies nothing
    tree.metadata("a/zarr.json", raw)
    assert tree.truth()["a"].missing[0] == (999, 99)
    assert watched.truth.states.size_bytes <= bound


def test_a_grid_without_end_costs_nothing():
    tree = tree_of(v3([10**15, 10**3], [1, 1]))
    tree.present(f"a/c/{10**15 - 1}/999")
    assert tree.expected == 10**18
    assert tree.written == 1
    assert tree._arrays["a"].truth.states.size_bytes < 20_000
    assert tree.truth()["a"].missing_ranges == (f"axis 0 0-{10**15 - 1}",)


def test_ill_evidence_of_an_earlier_run_is_left_out():
    tree = tree_of(v2([4], [1]))
    tree.gone("a/1")
    ((path, raw),) = tree.take_evidence()
    assert [*tree.take_evidence()] == []
    for ill in (b"", raw[:-9], raw[:20], b"\0" * 40, raw.replace(b'"schema":1', b'"schema":9'), b"{}\n{}\n"):
        later = tree_of(v2([4], [1]))
        later.restore(path, ill)
        assert later.known_empty == 0
    other = tree_of(v2([4], [2]))
    other.restore(path, raw)
    assert other.known_empty == 0
    grown = tree_of(v2([9], [1]))
    grown.restore(path, raw)
    assert grown.truth()["a"].empty == ((1,),)
