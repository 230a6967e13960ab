"""Indices of shards against the bytes that zarr-python and tensorstore write, and against damage of any kind."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import BytesCodec, ShardingCodec

from scopeferry.layouts.shard import (
    ABSENT,
    MOST_UNITS,
    Sharding,
    crc32c,
    encode_index,
    inner_chunks,
    is_whole,
    parse_sharding,
    read_index,
)

BYTES, CRC = {"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}
BIG = {"name": "bytes", "configuration": {"endian": "big"}}


@pytest.fixture(scope="session", autouse=True)
def _loop_of_zarr():
    """The event loop that zarr keeps for the life of a process is no file that a test left open."""
    zarr.zeros(1, store={})


def reader(data):
    return lambda offset, length: data[offset : offset + length]


def codec(shape, *, location="end", index=(BYTES, CRC), inner=(BYTES,)):
    found = {"chunk_shape": shape, "codecs": list(inner), "index_codecs": list(index), "index_location": location}
    return {"name": "sharding_indexed", "configuration": found}


# -- what real libraries write -----------------------------------------------------------------------------------------


def by_tensorstore(path, shape, shard, codecs, values):
    metadata = {
        "shape": shape,
        "data_type": "uint16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
        "codecs": codecs,
        "fill_value": 0,
    }
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}, "metadata": metadata}
    tensorstore.open(spec, create=True).result()[...].write(values).result()


def by_zarr(path, shape, shard, codecs, values):
    def made(found):
        settings = found["configuration"]
        inner = settings["codecs"][0]
        return ShardingCodec(
            chunk_shape=settings["chunk_shape"],
            codecs=[made(inner) if inner["name"] == "sharding_indexed" else BytesCodec()],
            index_location=settings["index_location"],
        )

    array = zarr.create(
        store=str(path),
        shape=shape,
        chunks=shard,
        codecs=[made(codecs[0])],
        dtype="uint16",
        fill_value=0,
        zarr_format=3,
    )
    array[...] = values


WRITERS = {"tensorstore": by_tensorstore, "zarr-python": by_zarr}
LAYOUTS = {
    "at the end": [codec([2, 3])],
    "at the start": [codec([2, 3], location="start")],
    "nested": [codec([4, 3], inner=[codec([2, 3])])],
    "nested, outer at the start": [codec([4, 3], location="start", inner=[codec([2, 3])])],
    "nested, inner at the start": [codec([4, 3], inner=[codec([2, 3], location="start")])],
}


@pytest.fixture(scope="module", params=list(product(WRITERS, LAYOUTS)), ids=" ".join)
def shards(request, tmp_path_factory):
    """(sharding, values of 16 x 9 elements in 4 shards of 8 x 6, files by index) of a writer and a layout."""
    writer, layout = request.param
    path = tmp_path_factory.mktemp("store")
    values = np.arange(1, 145, dtype="uint16").reshape(16, 9)
    values[0:4, 0:3] = values[14:16, 3:6] = values[8:16, 6:9] = 0
    WRITERS[writer](path / "a", [16, 9], [8, 6], LAYOUTS[layout], values)
    files = {tuple(map(int, file.parts[-2:])): file.read_bytes() for file in path.glob("a/c/*/*")}
    sharding = parse_sharding(LAYOUTS[layout], [8, 6])
    assert sharding is not None
    return sharding, values, files


def test_the_index_tells_which_inner_chunks_are_there(shards):
    sharding, values, files = shards
    assert (1, 1) not in files  # all fill value
    assert sharding.units == (4, 2)
    for (row, column), data in files.items():
        found = inner_chunks(sharding, reader(data), len(data))
        assert is_whole(sharding, reader(data), len(data)) is True
        tiles = np.zeros((8, 6), "uint16")
        part = values[8 * row : 8 * row + 8, 6 * column : 6 * column + 6]
        tiles[: part.shape[0], : part.shape[1]] = part
        there = [tiles[2 * i : 2 * i + 2, 3 * j : 3 * j + 3].any() for i in range(4) for j in range(2)]
        assert list(found) == there


def index_places(sharding, data, start, size):
    """Every byte of the index of a shard, and of the shards in it."""
    at = start + size - sharding.index_bytes if sharding.at_end else start
    yield from range(at, at + sharding.index_bytes)
    if sharding.inner is not None:
        for offset, length in filter(None, read_index(sharding, reader(data), size, start)):
            yield from index_places(sharding.inner, data, start + offset, length)


def test_any_flipped_byte_of_an_index_is_noticed(shards):
    sharding, _, files = shards
    data = files[0, 0]
    places = list(index_places(sharding, data, 0, len(data)))
    assert len(places) > sharding.index_bytes or sharding.inner is None
    for place in places:
        for bit in (0, 7):
            ill = bytearray(data)
            ill[place] ^= 1 << bit
            assert is_whole(sharding, reader(bytes(ill)), len(ill)) is False


def test_a_shard_that_is_still_growing_is_torn(shards):
    sharding, _, files = shards
    data = files[0, 0]
    for size in range(len(data)):
        cut = data[:size]
        assert is_whole(sharding, reader(cut), size) is False
    assert is_whole(sharding, reader(data + b"\0"), len(data) + 1) is (not sharding.at_end)


def test_only_the_indices_are_read(shards):
    sharding, _, files = shards
    data = files[0, 0]
    asked = []

    def read(offset, length):
        asked.append(length)
        return data[offset : offset + length]

    inner_chunks(sharding, read, len(data))
    assert sum(asked) <= sharding.index_bytes + (sharding.count * sharding.inner.index_bytes if sharding.inner else 0)


# -- what we write -----------------------------------------------------------------------------------------------------


@given(st.lists(st.none() | st.integers(0, 40), min_size=1, max_size=40), st.booleans())
def test_what_is_encoded_is_read_again(lengths, at_end):
    sharding = Sharding((len(lengths),), at_end)
    entries, body = [], b""
    start = 0 if at_end else sharding.index_bytes
    for length in lengths:
        entries.append(None if length is None else (start + len(body), length))
        body += b"x" * (length or 0)
    index = encode_index(entries)
    data = body + index if at_end else index + body
    assert len(index) == sharding.index_bytes
    assert read_index(sharding, reader(data), len(data)) == entries
    assert list(inner_chunks(sharding, reader(data), len(data))) == [length is not None for length in lengths]


def test_tensorstore_and_zarr_read_what_we_encode(tmp_path):
    by_tensorstore(tmp_path / "a", [4, 3], [4, 3], [codec([2, 3])], np.zeros((4, 3), "uint16"))
    pixels = np.arange(7, 13, dtype="<u2").tobytes()
    (tmp_path / "a/c/0").mkdir(parents=True, exist_ok=True)
    (tmp_path / "a/c/0/0").write_bytes(pixels + encode_index([None, (0, len(pixels))]))
    wanted = [[0, 0, 0], [0, 0, 0], [7, 8, 9], [10, 11, 12]]
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "a")}}
    assert tensorstore.open(spec).result().read().result().tolist() == wanted
    assert zarr.open_array(str(tmp_path / "a"), mode="r")[...].tolist() == wanted


@given(st.binary(max_size=200), st.integers(1, 6), st.booleans())
def test_no_bytes_are_too_odd(data, count, at_end):
    sharding = Sharding((count,), at_end)
    assert is_whole(sharding, reader(data), len(data)) is False


@pytest.mark.parametrize(
    "entry", [(0, 7), (6, 1), (7, 0), (ABSENT, 0), (0, ABSENT), (ABSENT, 1), (ABSENT - 1, 2)], ids=str
)
def test_entries_outside_the_file_are_not_valid(entry):
    body = b"pixels"
    index = encode_index([entry])
    inside = entry[0] + entry[1] <= len(body) + len(index)
    assert is_whole(Sharding((1,)), reader(body + index), len(body + index)) is inside


def test_an_entry_that_is_absent_by_half_is_not_valid():
    index = encode_index([(ABSENT, 3)])
    assert is_whole(Sharding((1,)), reader(index), len(index)) is False


def test_shards_in_shards_in_shards():
    inmost = b"x" + encode_index([(0, 1), None])
    middle = b"...." + inmost + encode_index([None, (4, len(inmost))])
    outer = b"......" + middle + encode_index([None, (6, len(middle))])
    sharding = parse_sharding([codec([4], inner=[codec([2], inner=[codec([1])])])], [8])
    assert sharding.units == (8,)
    assert list(inner_chunks(sharding, reader(outer), len(outer))) == [0, 0, 0, 0, 0, 0, 1, 0]


def test_big_endian_indices_are_read():
    sharding = parse_sharding([codec([1], index=[BIG, CRC])], [2])
    raw = b"".join(n.to_bytes(8, "big") for n in (0, 3, ABSENT, ABSENT))
    data = b"abc" + raw + crc32c(raw).to_bytes(4, "little")
    assert list(inner_chunks(sharding, reader(data), len(data))) == [1, 0]


# -- what is not known degrades ----------------------------------------------------------------------------------------


def test_without_a_checksum_it_cannot_be_told():
    sharding = parse_sharding([codec([1], index=[BYTES])], [2])
    data = b"abc" + encode_index([(0, 3), None])[:-4]
    assert is_whole(sharding, reader(data), len(data)) is None
    assert list(inner_chunks(sharding, reader(data), len(data))) == [1, 0]


UNKNOWN = {
    "no codec": [],
    "no sharding": [BYTES],
    "a name alone": ["sharding_indexed"],
    "a codec before": [{"name": "transpose", "configuration": {"order": [1, 0]}}, codec([1, 1])],
    "a codec after": [codec([1, 1]), {"name": "gzip"}],
    "compressed index": [codec([1, 1], index=[BYTES, {"name": "gzip"}, CRC])],
    "unknown index": [codec([1, 1], index=[{"name": "huffman"}])],
    "unknown byte order": [codec([1, 1], index=[{"name": "bytes", "configuration": {"endian": "middle"}}])],
    "unknown place": [codec([1, 1], location="middle")],
    "other rank": [codec([1])],
    "no divisor": [codec([3, 1])],
    "nothing in a chunk": [codec([0, 1])],
    "no number": [codec(["1", 1])],
    "no configuration": [{"name": "sharding_indexed"}],
    "no list": 7,
}


@pytest.mark.parametrize("codecs", UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_not_known_is_no_sharding_and_no_error(codecs):
    assert parse_sharding(codecs, [2, 2]) is None
    assert is_whole(parse_sharding(codecs, [2, 2]), reader(b""), 0) is None


def test_an_unknown_inner_codec_hides_only_what_is_in_it():
    inner = [codec([1], index=[{"name": "huffman"}])]
    sharding = parse_sharding([codec([2], inner=inner)], [4])
    assert (sharding.units, sharding.inner) == ((2,), None)


def test_shards_of_too_many_chunks_are_not_looked_into():
    many = 1 << 30
    assert math.prod([many]) > MOST_UNITS
    assert parse_sharding([codec([1])], [many]) is None
