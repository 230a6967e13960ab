"""What `sources/ready.py` and the rules of the end take for granted about writers, seen in their system calls."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace

import pytest

from scopeferry.testing import orders
from scopeferry.testing.orders import LAYOUTS, PATTERNS

V2 = replace(LAYOUTS["v2-flat"], shape=(2, 1, 64, 64))
V3 = replace(LAYOUTS["v3"], shape=(2, 1, 64, 64))
SHARDS = replace(LAYOUTS["v3-shards"], shape=(2, 2, 64, 64))
FIRST = ((0, 0, 0, 0), (1, 1, 64, 64))
HEX = re.compile(r"\.[0-9a-f]{32}\.partial$")
slow = pytest.mark.slow
TENSORSTORE = ["tensorstore", "tensorstore-lockfile", "tensorstore-none"]
RENAMING_ZARR = ["zarr", *(pytest.param(name, marks=slow) for name in ("zarr-3.4", "zarr-2.18"))]


def renames(calls) -> dict[str, str]:
    """Final name -> the name it had before."""
    return {call.paths[1]: call.paths[0] for call in calls if call.what.startswith("rename")}


def made(calls) -> list[str]:
    """Every name that was opened to write."""
    return [call.makes for call in calls if call.makes]


def full(layout):
    return list(PATTERNS["full"]("0", layout))


# -- tensorstore -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [V2, V3, SHARDS], ids=["v2", "v3", "shards"])
@pytest.mark.parametrize("name", TENSORSTORE)
def test_tensorstore_flushes_a_lock_name_and_renames_it(name, layout, traced):
    calls = traced(name, full(layout))
    found = renames(calls)
    assert len(found) == 3
    for final, before in found.items():
        added = before.removeprefix(final)
        assert re.fullmatch(r"_[0-9a-f]{1,16}\.__lock" if name.endswith("none") else r"\.__lock", added)
        what = [call.what for call in calls if before in call.paths]
        assert what.index("fsync") < what.index("rename")
    assert set(made(calls)) <= set(found.values())


@pytest.mark.parametrize("name", TENSORSTORE)
def test_tensorstore_replaces_a_shard_as_a_whole_at_every_call(name, write, traced):
    parts = [orders.put("0", (0, c, 0, 0), (1, 1, 64, 64), seed=c) for c in (0, 1)]
    calls = traced(name, [orders.array("0", SHARDS), *parts])
    assert [call.paths[1] for call in calls if call.what == "rename"].count("0/c/0/0/0/0") == 2
    assert "0/c/0/0/0/0" not in made(calls)


@pytest.mark.parametrize(("name", "locks"), [(TENSORSTORE[0], True), (TENSORSTORE[1], True), (TENSORSTORE[2], False)])
def test_a_chunk_of_fill_value_takes_a_lock_but_not_without_locks(name, locks, traced):
    """Stored or not before; a store written in mode `none` shows no lock that came and went."""
    calls = traced(name, [orders.array("0", V3), orders.clear("0", *FIRST)])
    assert ("0/c/0/0/0/0.__lock" in made(calls)) == locks
    gone = [call.paths[0] for call in calls if call.what == "unlink"]
    assert gone == (["0/c/0/0/0/0.__lock"] if locks else [])
    calls = traced(name, [*full(V3), orders.clear("0", *FIRST)])
    assert "0/c/0/0/0/0" in [call.paths[0] for call in calls if call.what == "unlink"]


@pytest.mark.parametrize("name", [*TENSORSTORE, "zarr"])
def test_a_cleared_chunk_leaves_its_folder_empty(name, write):
    with write(name) as writer:
        writer.do(*full(V3), orders.clear("0", *FIRST))
    assert os.listdir(f"{writer.root}/0/c/0/0/0") == []


@pytest.mark.parametrize("name", TENSORSTORE)
def test_only_tensorstore_leaves_a_folder_for_what_was_never_stored(name, write):
    with write(name) as writer:
        writer.do(orders.array("0", V3), orders.clear("0", *FIRST))
    assert os.listdir(f"{writer.root}/0/c/0/0/0") == []


@pytest.mark.parametrize(("name", "left"), [("tensorstore", "0.__lock"), ("tensorstore-lockfile", "0.__lock")])
def test_a_writer_killed_before_its_rename_leaves_a_lock(name, left, write, tmp_path):
    if not shutil.which("strace"):
        pytest.skip("needs strace: apt install strace")
    chunk = f"{tmp_path}/a.ome.zarr/0/c/0/0/0/0.__lock"  # calls are counted by thread, and metadata are renamed too
    kill = ("strace", "-f", "-o", "/dev/null", "-P", chunk, "-e", "trace=rename", "-e", "inject=rename:signal=KILL")
    with write(name, before=kill) as writer:
        writer.do(orders.array("0", V3))
        writer.start(orders.put("0", *FIRST))
        writer._process.wait(30)
    found = os.listdir(f"{writer.root}/0/c/0/0/0")
    assert found in ([left], ["0"])  # the signal may come when the rename is done


# -- zarr-python -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RENAMING_ZARR)
def test_zarr_python_renames_partial_names_and_flushes_nothing(name, traced):
    calls = traced(name, full(V2))
    found = renames(calls)
    chunks = {final: before for final, before in found.items() if re.fullmatch(r"0/\d\.0\.0\.0", final)}
    assert len(chunks) == 2
    for final, before in chunks.items():
        stem = final if name == "zarr-2.18" else final.rpartition(".")[0]  # 2.x appends, 3.1 and newer replace
        assert HEX.fullmatch(before.removeprefix(stem))
    assert all(HEX.search(path) for path in made(calls))
    assert not {call.what for call in calls} & {"fsync", "fdatasync"}


def test_zarr_python_links_the_metadata_of_a_group_it_makes_on_the_way(traced):
    """No rename: the final name is created, with two links for a moment, and no event of a move or a close tells it."""
    calls = traced("zarr", [orders.array("0", V3)])
    linked = [call.paths for call in calls if call.what == "link"]
    assert [final for _, final in linked] == ["zarr.json"]
    assert linked[0][0] in [call.paths[0] for call in calls if call.what == "unlink"]


@slow
def test_zarr_python_3_0_truncates_final_names(traced):
    calls = traced("zarr-3.0.8", full(V3))
    assert {"0/c/0/0/0/0", "0/c/1/0/0/0", "0/zarr.json"} <= set(made(calls))
    assert all("O_TRUNC" in call.text for call in calls if call.makes.startswith("0/c/"))
    assert not renames(calls)


@slow
@pytest.mark.parametrize("layout", [V3, SHARDS], ids=["v3", "shards"])
def test_zarrs_truncates_chunks_beside_metadata_that_is_renamed(layout, traced):
    """So a temporary name of metadata says nothing of the chunks of the same array."""
    calls = traced("zarrs", full(layout))
    assert all("O_TRUNC" in call.text for call in calls if call.makes.startswith("0/c/"))
    assert {"0/c/0/0/0/0", "0/c/1/0/0/0"} <= set(made(calls))
    assert list(renames(calls)) == ["0/zarr.json"]
    assert HEX.search(renames(calls)["0/zarr.json"])


# -- acquire-zarr, ome-writers -----------------------------------------------------------------------------------------


@slow
@pytest.mark.parametrize("name", ["acquire-zarr", "ome-writers"])
def test_acquire_zarr_grows_shards_whose_index_is_last(name, traced):
    calls = traced(name, full(SHARDS))
    for shard in ("0/c/0/0/0/0", "0/c/1/0/0/0"):
        mine = [call for call in calls if call.paths and call.paths[-1] == shard]
        assert [call.makes for call in mine].count(shard) == 1
        assert "O_TRUNC" not in mine[0].text
        writes = [call.text for call in mine if call.what == "pwrite64"]
        assert re.search(r"\b68, 16384", writes[-1])  # index and checksum, 16 n + 4 bytes, after all that they speak of
        what = [call.what for call in mine]
        assert what.index("fsync") > max(at for at, one in enumerate(what) if one == "pwrite64")
    assert not any(final.startswith("0/") for final in renames(calls))


@slow
@pytest.mark.parametrize("name", ["acquire-zarr", "ome-writers"])
def test_acquire_zarr_rewrites_metadata_in_place_all_the_time(name, traced):
    calls = traced(name, full(SHARDS))
    mine = [call for call in calls if call.paths and call.paths[-1] == "0/zarr.json"]
    what = [call.what for call in mine]
    assert what.count("pwrite64") >= 3
    assert what.index("pwrite64") < what.index("ftruncate")  # cut to length afterwards: an old end may stand behind it
    assert not any("O_TRUNC" in call.text for call in mine)


@slow
def test_ome_writers_puts_an_empty_group_over_its_metadata_at_the_end(traced):
    """acquire-zarr does, ome-writers puts back what it had: for a moment the store is valid and no image."""
    calls = traced("ome-writers", full(SHARDS))
    root = [call for call in calls if call.paths and call.paths[-1] == "zarr.json" and call.what != "close"]
    assert [call.what for call in root if call.what in {"write", "pwrite64", "rename"}] == [
        "write",
        "pwrite64",
        "write",
        "rename",
    ]
    assert re.search(r"^zarr\.json\.\w+\.tmp$", renames(calls)["zarr.json"])


# -- all of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tensorstore", "zarr", "rename", pytest.param("zarr-3.0.8", marks=slow)])
def test_a_smaller_shape_deletes_chunks(name, write):
    with write(name) as writer:
        writer.do(*PATTERNS["shrink"]("0", V3))
    assert os.path.exists(f"{writer.root}/0/c/0/0/0/0")
    assert not os.path.exists(f"{writer.root}/0/c/1/0/0/0")
