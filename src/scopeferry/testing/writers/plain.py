"""Write Zarr with nothing but system calls: uncompressed chunks and shards, in every way a writer may go about it.

Settings, all optional:

``how``
    ``rename`` (default): another name, then the final one. ``in place``: the final name, truncated. ``shots``: the
    final name, each put where it belongs, never truncated.
``temporary``
    The other name; ``{name}``, ``{stem}`` (without the last extension) and ``{hex}`` (32 digits) are filled in.
``sync``
    Flush each chunk to the disk before it is renamed or closed.
``pieces``, ``gap_s``
    A chunk is written in so many parts with this pause between them; with ``slow_metadata`` the metadata too.
``no_separator``
    Leave ``dimension_separator`` out of ``.zarray``, as old writers do.

A region must be whole chunks, or a part of one chunk whose bytes lie together; the bytes of a put are given to its
chunks in order. A shard grows by its inner chunks in the order of their puts, its index is written when the last of
them is there, or at ``index`` or ``close`` (of what has been put); with `rename` it bears the other name until then.
The fill value deletes a shard as a whole.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import struct
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

ABSENT = (1 << 64) - 1
POLYNOMIAL = 0x82F63B78  # CRC-32C, reversed (RFC 3720, B.4)
Index = tuple[int, ...]


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


TABLE = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


class Shard:
    """A shard that grows."""

    def __init__(self, path: str, final: str, slots: int, *, index_first: bool, checksum: bool) -> None:
        self.path, self.final, self.index_first, self.checksum = path, final, index_first, checksum
        self.slots: list[tuple[int, int]] = [(ABSENT, ABSENT)] * slots
        self.file = open(path, "wb", buffering=0)  # noqa: SIM115  (open until the shard is whole)
        self.file.seek(16 * slots + 4 * checksum if index_first else 0)

    def add(self, slot: int, data: bytes) -> None:
        """One inner chunk, at the end."""
        self.slots[slot] = (self.file.tell(), len(data))
        self.file.write(data)

    def full(self) -> bool:
        """Is every inner chunk there?"""
        return all(offset != ABSENT for offset, _ in self.slots)

    def end(self, *, sync: bool) -> None:
        """Write the index; the shard is whole then, and gets its final name."""
        index = b"".join(struct.pack("<QQ", *slot) for slot in self.slots)
        if self.index_first:
            self.file.seek(0)
        self.file.write(index + struct.pack("<I", crc32c(index)) if self.checksum else index)
        if sync:
            os.fsync(self.file.fileno())
        self.file.close()
        if self.path != self.final:
            os.replace(self.path, self.final)


class Array:
    """The grid of an array, and its names."""

    def __init__(self, folder: str, spec: dict[str, Any]) -> None:
        self.folder, self.spec = folder, spec
        self.inner: list[int] = spec["chunks"]
        self.grid: list[int] = spec.get("shards") or spec["chunks"]
        self.shards: dict[Index, Shard] = {}

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return int("".join(filter(str.isdigit, self.spec["dtype"]))) // 8

    def key(self, index: Index) -> str:
        """Path of a chunk or shard below the array."""
        version, separator = self.spec["zarr_format"], self.spec.get("separator")
        if version == 2 or self.spec.get("encoding") == "v2":
            return (separator or ".").join(map(str, index)) or "0"
        return (separator or "/").join(["c", *map(str, index)])

    def path(self, index: Index) -> str:
        """Path of a chunk or shard."""
        return os.path.join(self.folder, *self.key(index).split("/"))

    def slot(self, chunk: Index) -> tuple[Index, int]:
        """The shard an inner chunk is in, and its place there."""
        per = [whole // inner for whole, inner in zip(self.grid, self.inner, strict=True)]
        number = 0
        for place, many in zip(chunk, per, strict=True):
            number = number * many + place % many
        return tuple(place // many for place, many in zip(chunk, per, strict=True)), number

    def slots(self) -> int:
        """Inner chunks in a shard."""
        return math.prod(whole // inner for whole, inner in zip(self.grid, self.inner, strict=True))

    def pieces(self, start: Sequence[int], shape: Sequence[int]) -> Iterator[tuple[Index, int, int]]:
        """(inner chunk, first byte in it, bytes) of a region."""
        whole = math.prod(self.inner) * self.item
        starts = [begin // side for begin, side in zip(start, self.inner, strict=True)]
        ends = [-(-(begin + size) // side) for begin, size, side in zip(start, shape, self.inner, strict=True)]
        chunks = list(itertools.product(*map(range, starts, ends)))
        size = math.prod(shape) * self.item
        if len(chunks) > 1 or size >= whole:
            if len(chunks) * whole != size:
                raise NotImplementedError("whole chunks, or a part of one")
            yield from ((chunk, 0, whole) for chunk in chunks)
            return
        first = 0
        for begin, side in zip(start, self.inner, strict=True):
            first = first * side + begin % side
        yield chunks[0], first * self.item, size

    def metadata(self) -> dict[str, Any]:
        """Of this array, in its format."""
        return _v2(self.spec) if self.spec["zarr_format"] == 2 else _v3(self.spec)


class Writer:
    """Arrays and groups below one folder."""

    def __init__(self, root: str, settings: dict[str, Any]) -> None:
        self.root = root
        self.how: str = settings.get("how", "rename")
        self.temporary: str = settings.get("temporary", "{name}.tmp")
        self.sync: bool = settings.get("sync", False)
        self.pieces: int = settings.get("pieces", 1)
        self.gap_s: float = settings.get("gap_s", 0.0)
        self.slow_metadata: bool = settings.get("slow_metadata", False)
        self.no_separator: bool = settings.get("no_separator", False)
        self.arrays: dict[str, Array] = {}

    def group(self, path: str, zarr_format: int, attributes: dict[str, Any]) -> None:
        """A group with its attributes."""
        folder = self._folder(path)
        if zarr_format == 3:
            self._json(folder, "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes})
            return
        self._json(folder, ".zgroup", {"zarr_format": 2})
        if attributes:
            self._json(folder, ".zattrs", attributes)

    def array(self, path: str, spec: dict[str, Any]) -> None:
        """A new array; it may stand there already, from another run of this writer."""
        self.arrays[path] = Array(self._folder(path), spec)
        self._describe(path)
        if spec["zarr_format"] == 2 and spec.get("attributes"):
            self._json(self.arrays[path].folder, ".zattrs", spec["attributes"])

    def put(self, path: str, start: Sequence[int], shape: Sequence[int], data: bytes | None) -> None:
        """Pixels of a region; None is the fill value, whose chunks are deleted."""
        array = self.arrays[path]
        at = 0
        for chunk, first, size in array.pieces(start, shape):
            part = None if data is None else data[at : at + size]
            at += size
            if array.spec.get("shards"):
                self._inner(array, chunk, part)
            elif part is None:
                _unlink(array.path(chunk))
            else:
                self._chunk(array, chunk, first, part)

    def resize(self, path: str, shape: Sequence[int]) -> None:
        """Another shape; chunks outside it are deleted, after the metadata changed."""
        array = self.arrays[path]
        before, array.spec = array.spec["shape"], {**array.spec, "shape": list(shape)}
        self._describe(path)
        ends = [-(-size // side) for size, side in zip(shape, array.grid, strict=True)]
        olds = [-(-size // side) for size, side in zip(before, array.grid, strict=True)]
        for index in itertools.product(*map(range, olds)):
            if any(place >= end for place, end in zip(index, ends, strict=True)):
                _unlink(array.path(index))

    def attributes(self, path: str, attributes: dict[str, Any]) -> None:
        """User attributes of an array or a group."""
        folder = self._folder(path)
        if os.path.exists(os.path.join(folder, "zarr.json")):
            with open(os.path.join(folder, "zarr.json"), encoding="utf-8") as file:
                self._json(folder, "zarr.json", {**json.load(file), "attributes": attributes})
        else:
            self._json(folder, ".zattrs", attributes)

    def close(self) -> None:
        """End."""
        self.index()

    def index(self) -> None:
        """Shards that are not full get their index."""
        for array in self.arrays.values():
            for shard in array.shards.values():
                shard.end(sync=self.sync)
            array.shards.clear()

    # -- how -----------------------------------------------------------------------------------------------------------

    def _folder(self, path: str) -> str:
        folder = os.path.join(self.root, *path.split("/")) if path else self.root
        os.makedirs(folder, exist_ok=True)
        return folder

    def _describe(self, path: str) -> None:
        array = self.arrays[path]
        metadata = array.metadata()
        if self.no_separator:
            metadata.pop("dimension_separator", None)
        self._json(array.folder, ".zarray" if array.spec["zarr_format"] == 2 else "zarr.json", metadata)

    def _json(self, folder: str, name: str, content: dict[str, Any]) -> None:
        pieces = self.pieces if self.slow_metadata else 1
        self._write(os.path.join(folder, name), json.dumps(content, indent=2).encode(), pieces)

    def _other(self, path: str) -> str:
        """The name a file bears until it is whole."""
        if self.how != "rename":
            return path
        folder, name = os.path.split(path)
        stem = os.path.splitext(name)[0]
        return os.path.join(folder, self.temporary.format(name=name, stem=stem, hex=uuid.uuid4().hex))

    def _write(self, path: str, data: bytes, pieces: int) -> None:
        """A whole file."""
        other = self._other(path)
        with open(other, "wb", buffering=0) as file:
            for piece in range(pieces):
                if piece:
                    time.sleep(self.gap_s)
                file.write(data[len(data) * piece // pieces : len(data) * (piece + 1) // pieces])
            if self.sync:
                os.fsync(file.fileno())
        if other != path:
            os.replace(other, path)

    def _chunk(self, array: Array, chunk: Index, first: int, data: bytes) -> None:
        path = array.path(chunk)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        whole = math.prod(array.inner) * array.item
        if self.how == "shots":
            _in_its_place(path, first, data)
            return
        if len(data) < whole:
            before = _content(path) or struct.pack("<Q", array.spec.get("fill", 0))[: array.item] * (
                whole // array.item
            )
            data = before[:first] + data + before[first + len(data) :]
        self._write(path, data, self.pieces)

    def _inner(self, array: Array, chunk: Index, data: bytes | None) -> None:
        index, slot = array.slot(chunk)
        if data is None:
            if index not in array.shards:
                _unlink(array.path(index))
            return
        if index not in array.shards:
            path = array.path(index)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            first = array.spec.get("index_location", "end") == "start"
            checksum = array.spec.get("index_checksum", True)
            array.shards[index] = Shard(self._other(path), path, array.slots(), index_first=first, checksum=checksum)
        shard = array.shards[index]
        shard.add(slot, data)
        if shard.full():
            shard.end(sync=self.sync)
            del array.shards[index]


def _in_its_place(path: str, first: int, data: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb", buffering=0) as file:
        file.seek(first)
        file.write(data)


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _unlink(path: str) -> None:
    try:
        os.remove(path)
    except FileNotFoundError:
        pass


def _v2(spec: dict[str, Any]) -> dict[str, Any]:
    bits = "".join(filter(str.isdigit, spec["dtype"]))
    kind = spec["dtype"][0] + str(int(bits) // 8)
    return {
        "zarr_format": 2,
        "shape": spec["shape"],
        "chunks": spec["chunks"],
        "dtype": ("|" if bits == "8" else "<") + kind,
        "compressor": None,
        "filters": None,
        "order": "C",
        "fill_value": spec.get("fill", 0),
        "dimension_separator": spec.get("separator", "."),
    }


def _v3(spec: dict[str, Any]) -> dict[str, Any]:
    codecs: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    if spec.get("shards"):
        sharding = {
            "chunk_shape": spec["chunks"],
            "codecs": codecs,
            "index_codecs": [*codecs, {"name": "crc32c"}] if spec.get("index_checksum", True) else codecs,
            "index_location": spec.get("index_location", "end"),
        }
        codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    separator = {"separator": spec.get("separator", "/")}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": spec["shape"],
        "data_type": spec["dtype"],
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": spec.get("shards") or spec["chunks"]},
        },
        "chunk_key_encoding": {"name": spec.get("encoding", "default"), "configuration": separator},
        "codecs": codecs,
        "fill_value": spec.get("fill", 0),
        "attributes": spec.get("attributes") or {},
    }
