"""What Zarr metadata say: which files are an array's chunks and what they are called; what they promise. Pure.

Formats 2 and 3, by their specifications (zarr-specs: v2, v3 core 3.1). What is valid JSON and not understood degrades:
an array with an unknown grid or unknown chunk keys has no countable chunks, an unknown version is plain files. Nothing
here raises.

>>> read_metadata(".zarray", b'{"zarr_format": 2, "shape": [90, 9], "chunks": [10, 9], "dtype": "<u2"}').layout.grid
(9, 1)
>>> Keys("c", "/").key((3, 0)), Keys("c", "/").index("c/3/0", 2), Keys("", ".").index("3.0.0", 2)
('c/3/0', (3, 0), None)
>>> read_metadata("zarr.json", b'{"zarr_format": 3,') is None
True
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from scopeferry.layouts.shard import CODEC, Sharding, parse_sharding

Index = tuple[int, ...]

#: The names of metadata files; the last parts of paths.
METADATA = frozenset({"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"})
ARRAY, GROUP, ATTRIBUTES, OTHER = "array", "group", "attributes", "other"
_NUMBER = "(0|[1-9][0-9]{0,17})"
_RUN = re.compile(rf"(c[/.])?{_NUMBER}-{_NUMBER}((?:[/.][0-9]+)*)")


@dataclass(frozen=True, slots=True)
class Keys:
    """A chunk key encoding: ``default`` has the prefix ``c``, ``v2`` has none; the separator is ``/`` or ``.``."""

    prefix: str
    separator: str

    def key(self, index: Index) -> str:
        """The key of a chunk, relative to its array.

        >>> Keys("c", ".").key(()), Keys("", ".").key(()), Keys("", "/").key((1, 2))
        ('c', '0', '1/2')
        """
        if self.prefix:
            return self.separator.join((self.prefix, *map(str, index)))
        return self.separator.join(map(str, index)) if index else "0"

    def index(self, key: str, rank: int) -> Index | None:
        """The index of a chunk of an array with so many axes; None if this is no such key. The reverse of `key`."""
        match = _pattern(self.prefix, self.separator, rank).fullmatch(key)
        return None if match is None else tuple(map(int, match.groups()))

    def indices(self, key: str, grid: Index) -> Iterator[Index]:
        """The chunks of a grid that a KEY of ``complete.json`` names: one, or a run along the first axis.

        >>> [*Keys("c", "/").indices("c/2-900/0", (4, 1))]
        [(2, 0), (3, 0)]
        """
        match = _RUN.fullmatch(key)
        first = self.index(key if match is None else f"{match[1] or ''}{match[2]}{match[4]}", len(grid))
        if first is None or any(i >= size for i, size in zip(first, grid, strict=True)):
            return
        if match is None:
            yield first
            return
        for at in range(first[0], min(int(match[3]) + 1, grid[0])):
            yield (at, *first[1:])


@lru_cache(maxsize=64)
def _pattern(prefix: str, separator: str, rank: int) -> re.Pattern[str]:
    """All keys of one encoding and rank; numbers as they are written by it, never ``01``."""
    if not rank:
        return re.compile(prefix or "0")
    numbers = re.escape(separator).join([_NUMBER] * rank)
    return re.compile(f"{prefix}{re.escape(separator)}{numbers}" if prefix else numbers)


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """An array by its metadata. ``chunks``: elements in a chunk file (in shards: in the shard) along each axis, None if
    the grid is unknown; ``keys``: None if what chunks are called is unknown; ``names``: of the axes, where they say.

    The *unit* is what is counted: the chunk, in shards the (innermost) inner chunk.
    """

    zarr_format: int
    shape: tuple[int, ...]
    chunks: tuple[int, ...] | None
    keys: Keys | None
    sharding: Sharding | None = None
    names: tuple[str | None, ...] = ()
    dtype: str = ""
    grid: Index = field(init=False, default=())
    unit: tuple[int, ...] = field(init=False, default=())
    units: Index = field(init=False, default=())

    def __post_init__(self) -> None:
        if self.chunks is None:
            return
        unit = self.chunks
        if self.sharding is not None:
            unit = tuple(size // many for size, many in zip(unit, self.sharding.units, strict=True))
        set_field = object.__setattr__
        set_field(self, "unit", unit)
        set_field(self, "grid", _grid(self.shape, self.chunks))
        set_field(self, "units", _grid(self.shape, unit))

    @property
    def rank(self) -> int:
        """How many axes."""
        return len(self.shape)

    @property
    def counted(self) -> bool:
        """Is it known which chunk files there can be?"""
        return self.chunks is not None and self.keys is not None

    @property
    def count(self) -> int:
        """Units in the grid; 0 if unknown."""
        return math.prod(self.units) if self.chunks is not None else 0

    def key(self, index: Index) -> str:
        """The name of a chunk file, relative to the array. Raises ValueError if the encoding is unknown."""
        if self.keys is None:
            raise ValueError("the chunk key encoding is not known")
        return self.keys.key(index)

    def index(self, key: str) -> Index | None:
        """Which chunk file this is (outside the grid, too); None if it is none."""
        return None if self.keys is None else self.keys.index(key, len(self.shape))

    def inside(self, index: Index) -> bool:
        """Is this chunk file in the grid?"""
        return self.chunks is not None and all(i < size for i, size in zip(index, self.grid, strict=True))

    def same_chunks(self, other: ArrayLayout) -> bool:
        """May the chunks of both be the same ones, whatever the shapes?"""
        mine = (self.zarr_format, self.rank, self.chunks, self.keys, self.sharding, self.dtype)
        return mine == (other.zarr_format, other.rank, other.chunks, other.keys, other.sharding, other.dtype)


def _grid(shape: Sequence[int], chunks: Sequence[int]) -> Index:
    return tuple(-(-size // max(1, part)) for size, part in zip(shape, chunks, strict=True))


@dataclass(frozen=True, slots=True)
class Metadata:
    """What one metadata file says. ``kind``: ARRAY (with ``layout``), GROUP, ATTRIBUTES or OTHER; ``problem``: why it,
    or a part of it, is not understood.
    """

    kind: str
    layout: ArrayLayout | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def read_metadata(name: str, raw: bytes) -> Metadata | None:
    """What a metadata file of this name says; None: it is not ready, half written or no JSON. Raises nothing."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return Metadata(OTHER, problem="no JSON object")
    if name == ".zattrs":
        return Metadata(ATTRIBUTES, attributes=found)
    if name == ".zmetadata":
        return Metadata(OTHER)
    version = 3 if name == "zarr.json" else 2
    if type(found.get("zarr_format")) is not int or found["zarr_format"] != version:
        return Metadata(OTHER, problem=f"zarr_format {found.get('zarr_format')!r} is not known in {name}")
    if name == ".zgroup":
        return Metadata(GROUP)
    attributes = found.get("attributes") if version == 3 else None
    attributes = attributes if isinstance(attributes, dict) else {}
    if version == 3 and found.get("node_type") != "array":
        problem = "" if found.get("node_type") == "group" else f"node_type {found.get('node_type')!r} is not known"
        return Metadata(OTHER if problem else GROUP, attributes=attributes, problem=problem)
    return _array(found, version, attributes)


def _array(found: dict[str, Any], version: int, attributes: Mapping[str, Any]) -> Metadata:
    shape = _sizes(found.get("shape"))
    if shape is None:
        return Metadata(OTHER, attributes=attributes, problem="the array has no valid shape")
    chunks = _chunks_v2(found) if version == 2 else _chunks_v3(found)
    if chunks is not None and (
        len(chunks) != len(shape) or any(size and not part for size, part in zip(shape, chunks, strict=True))
    ):
        chunks = None
    keys = _keys_v2(found) if version == 2 else _keys_v3(found)
    sharding = None if version == 2 or chunks is None else parse_sharding(found.get("codecs"), chunks)
    names = _names(found.get("dimension_names") or attributes.get("_ARRAY_DIMENSIONS"), len(shape))
    dtype = found.get("dtype" if version == 2 else "data_type")
    dtype = dtype.get("name") if isinstance(dtype, dict) else dtype
    layout = ArrayLayout(version, shape, chunks, keys, sharding, names, dtype if isinstance(dtype, str) else "")
    problem = "" if layout.counted else "an unknown chunk grid" if chunks is None else "unknown chunk keys"
    if not problem and sharding is None and CODEC in _codec_names(found.get("codecs")):
        problem = "shards with an index that cannot be read"
    return Metadata(ARRAY, layout, attributes, problem)


def _codec_names(codecs: object) -> Iterator[object]:
    for codec in codecs if isinstance(codecs, list) else ():
        yield codec.get("name") if isinstance(codec, dict) else codec


def _sizes(found: object) -> tuple[int, ...] | None:
    if not isinstance(found, list) or not all(type(size) is int and size >= 0 for size in found):
        return None
    return tuple(found)


def _chunks_v2(found: dict[str, Any]) -> tuple[int, ...] | None:
    return _sizes(found.get("chunks"))


def _chunks_v3(found: dict[str, Any]) -> tuple[int, ...] | None:
    name, settings = _extension(found.get("chunk_grid"))
    return _sizes(settings.get("chunk_shape")) if name == "regular" else None


def _keys_v2(found: dict[str, Any]) -> Keys | None:
    separator = found.get("dimension_separator") or "."
    return Keys("", separator) if separator in ("/", ".") else None


def _keys_v3(found: dict[str, Any]) -> Keys | None:
    name, settings = _extension(found.get("chunk_key_encoding"))
    if name not in ("default", "v2"):
        return None
    separator = settings.get("separator", "/" if name == "default" else ".")
    return Keys("c" if name == "default" else "", separator) if separator in ("/", ".") else None


def _extension(found: object) -> tuple[object, dict[str, Any]]:
    """Name and configuration of an extension point, which may be its name alone (v3 core, extension definition)."""
    if not isinstance(found, dict):
        return found, {}
    settings = found.get("configuration")
    return found.get("name"), settings if isinstance(settings, dict) else {}


def _names(found: object, rank: int) -> tuple[str | None, ...]:
    if not isinstance(found, list) or len(found) != rank:
        return ()
    return tuple(name if isinstance(name, str) and name else None for name in found)


def in_order(paths: Iterable[str]) -> list[str]:
    """Metadata files in the order in which they may be published: leaves first, the root last; in a folder attributes
    before what makes it a node, and consolidated metadata after that.

    >>> in_order([".zgroup", ".zmetadata", "0/.zarray", ".zattrs", "0/.zattrs"])
    ['0/.zattrs', '0/.zarray', '.zattrs', '.zgroup', '.zmetadata']
    """
    return sorted(paths, key=_place)


_LATER = {".zattrs": 0, ".zmetadata": 2}


def _place(path: str) -> tuple[int, str, int]:
    folder, _, name = path.rpartition("/")
    return -path.count("/"), folder, _LATER.get(name, 1)
