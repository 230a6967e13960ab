"""The index of a Zarr shard (codec ``sharding_indexed``): where its inner chunks lie, and whether it is whole.

A shard is inner chunks in any order and an index at its end or its start: for each inner chunk, in C order, offset and
length as uint64, both 2^64-1 where it is absent; then a CRC32C of that. A shard whose index is valid is whole for
writers that write the index last; one whose index is not is torn. Inner chunks may be shards again, with offsets
counted from their own start. Only the index is read, through a function, so a file of any size that is still being
written can be looked at. (Zarr v3: codecs ``sharding-indexed`` and ``crc32c`` 1.0.)

>>> file = b"pixels" + encode_index([(0, 6), None])
>>> two = Sharding((2, 1))
>>> [*inner_chunks(two, lambda offset, length: file[offset : offset + length], len(file))]
[1, 0]
>>> inner_chunks(two, lambda offset, length: file[offset : offset + length], len(file) - 1) is None
True
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

ABSENT = 2**64 - 1
CODEC = "sharding_indexed"
MOST_UNITS = 1 << 26  # innermost chunks of a shard; an index of more is not looked into

#: ``read(offset, length)``: bytes of the file; fewer where it ends.
Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Sharding:
    """How a shard is made. ``grid``: inner chunks along each axis. ``at_end``: the index is there, not at the start.
    ``checked``: it carries a CRC32C; without one a valid index proves nothing. ``inner``: inner chunks are shards, too.
    """

    grid: tuple[int, ...]
    at_end: bool = True
    checked: bool = True
    big_endian: bool = False
    inner: Sharding | None = None

    @property
    def count(self) -> int:
        """Entries of the index."""
        return math.prod(self.grid)

    @property
    def index_bytes(self) -> int:
        """Size of the index, checksum included."""
        return 16 * self.count + (4 if self.checked else 0)

    @property
    def units(self) -> tuple[int, ...]:
        """The innermost chunks along each axis."""
        if self.inner is None:
            return self.grid
        return tuple(outer * inner for outer, inner in zip(self.grid, self.inner.units, strict=True))


def parse_sharding(codecs: object, shard: Sequence[int]) -> Sharding | None:
    """The sharding of an array whose chunks (shards) have this shape, from the ``codecs`` of its metadata.

    None: it has none, or one whose index cannot be found or read: other codecs before or after it, an unknown codec of
    its index, inner chunks that do not divide a shard. Raises nothing.
    """
    try:
        found = _parse(codecs, shard)
        return found if found is None or math.prod(found.units) <= MOST_UNITS else None
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
        return None


def _parse(codecs: Any, shard: Sequence[int]) -> Sharding | None:
    if len(codecs) != 1 or codecs[0]["name"] != CODEC:
        return None
    found = codecs[0]["configuration"]
    inner = found["chunk_shape"]
    if not all(type(size) is int and size > 0 for size in inner):
        return None
    if any(whole <= 0 or whole % part for whole, part in zip(shard, inner, strict=True)):
        return None
    location = found.get("index_location", "end")
    index = _index_codecs(found["index_codecs"])
    if location not in ("start", "end") or index is None:
        return None
    grid = tuple(whole // part for whole, part in zip(shard, inner, strict=True))
    return Sharding(grid, location == "end", *index, parse_sharding(found["codecs"], inner))


def _index_codecs(codecs: Any) -> tuple[bool, bool] | None:
    """(checked, big endian) of an index; None if it is stored in a way that is not known."""
    names = [codec if isinstance(codec, str) else codec["name"] for codec in codecs]
    if names not in (["bytes"], ["bytes", "crc32c"]):
        return None
    found = {} if isinstance(codecs[0], str) else codecs[0].get("configuration") or {}
    endian = found.get("endian", "little")
    return (len(names) == 2, endian == "big") if endian in ("little", "big") else None


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), as the index ends with it.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    import google_crc32c

    return int(google_crc32c.value(data))


def encode_index(entries: Iterable[tuple[int, int] | None]) -> bytes:
    """An index, little-endian, with its CRC32C: (offset, length) of each inner chunk in C order, None if absent."""
    numbers = array("Q")
    for entry in entries:
        numbers.extend(entry or (ABSENT, ABSENT))
    if sys.byteorder == "big":
        numbers.byteswap()
    raw = numbers.tobytes()
    return raw + struct.pack("<I", crc32c(raw))


def read_index(sharding: Sharding, read: Read, size: int, start: int = 0) -> list[tuple[int, int] | None] | None:
    """(offset, length) of each inner chunk in C order, None for an absent one; or None: there is no valid index.

    The shard is `size` bytes at `start` of the file; offsets are counted from its own start. Without a checksum an
    index is valid that points into the shard. Raises what `read` raises.
    """
    if size < sharding.index_bytes:
        return None
    raw = read(start + size - sharding.index_bytes if sharding.at_end else start, sharding.index_bytes)
    if len(raw) != sharding.index_bytes:
        return None
    if sharding.checked:
        if struct.unpack("<I", raw[-4:])[0] != crc32c(raw[:-4]):
            return None
        raw = raw[:-4]
    numbers = array("Q", raw)
    if sharding.big_endian != (sys.byteorder == "big"):
        numbers.byteswap()
    entries: list[tuple[int, int] | None] = []
    for offset, length in zip(numbers[::2], numbers[1::2], strict=True):
        if offset == length == ABSENT:
            entries.append(None)
        elif offset + length <= size:
            entries.append((offset, length))
        else:
            return None
    return entries


def inner_chunks(sharding: Sharding, read: Read, size: int, start: int = 0) -> bytes | None:
    """One byte for each innermost chunk, in C order of ``sharding.units``: 1 there, 0 absent. None: not valid, torn.

    Of a shard of shards all indices are read. Raises what `read` raises.
    """
    entries = read_index(sharding, read, size, start)
    if entries is None:
        return None
    if sharding.inner is None:
        return bytes(entry is not None for entry in entries)
    below, units = sharding.inner.units, sharding.units
    strides = [math.prod(units[axis + 1 :]) for axis in range(len(units))]
    steps = [sum(i * step for i, step in zip(at, strides, strict=True)) for at in product(*map(range, below))]
    found = bytearray(math.prod(units))
    for entry, at in zip(entries, product(*map(range, sharding.grid)), strict=True):
        if entry is None:
            continue
        inner = inner_chunks(sharding.inner, read, entry[1], start + entry[0])
        if inner is None:
            return None
        base = sum(i * many * step for i, many, step in zip(at, below, strides, strict=True))
        for step, there in zip(steps, inner, strict=True):
            found[base + step] = there
    return bytes(found)


def is_whole(sharding: Sharding | None, read: Read, size: int) -> bool | None:
    """Is the index valid? None: it cannot be told, since there is no index or no checksum: whole when closed."""
    if sharding is None or not sharding.checked:
        return None
    return inner_chunks(sharding, read, size) is not None
