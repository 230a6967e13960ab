"""A Zarr hierarchy while it is written: what each file in it is, and what is known of every chunk. Pure.

Fed with metadata, in every version they come in, and with what happens to files: it says which chunk of which array a
path is, keeps for each chunk whether it is written, empty by evidence, or missing, and knows what the metadata promise.
Absence alone is never called empty. It looks at no file (a shard's index is read through what is passed in), assumes
nothing about names, and takes whatever is no Zarr for other files.

>>> tree = ZarrTree()
>>> array = b'{"zarr_format": 2, "shape": [4, 9], "chunks": [1, 9], "dtype": "<u2", "dimension_separator": "/"}'
>>> tree.metadata("a/.zarray", array)
Change(ready=True, array='a', relist=True, problem='')
>>> for path in ("a/0/0", "a/1/0", "a/notes.txt", "elsewhere"):
...     tree.present(path)
True
True
False
False
>>> tree.gone("a/0/0"), tree.expected, tree.written, tree.known_empty
(True, 4, 1, 1)
>>> tree.truth()["a"].as_dict()
{'path': 'a', 'grid': [4, 1], 'unit': 'chunk', 'written': 1, 'empty': 1, 'missing': 2, 'missing_ranges': ['axis 0 2-3']}
>>> tree.truth()["a"].missing
((2, 0), (3, 0))
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from scopeferry.layouts.shard import Sharding, inner_chunks, is_whole
from scopeferry.sources.complete import Complete
from scopeferry.sources.zarr_array import WatchedArray
from scopeferry.sources.zarr_layout import (
    ATTRIBUTES,
    METADATA,
    ArrayLayout,
    Index,
    Keys,
    Metadata,
    in_order,
    read_metadata,
)
from scopeferry.sources.zarr_promises import Promise, first_axes, is_plate, promises
from scopeferry.sources.zarr_truth import BY_FOLDER, EMPTY, MISSING, WRITTEN, Chunks

__all__ = [
    "LOCK_NAME", "METADATA", "ArrayLayout", "ArrayTruth", "Change", "Chunks", "File", "Index", "Keys", "Metadata",
    "Place", "Promise", "Sharding", "ZarrTree", "in_order", "read_metadata",
]  # fmt: skip

MOST_RANGES = 1000
CHUNK, OTHER = "chunk", "other"
LOCK_NAME = re.compile(r"(.+?)(?:_[0-9a-f]{1,16})?\.__lock", re.DOTALL)


class File(Protocol):
    """A file that is looked into here and there."""

    @property
    def size(self) -> int:
        """In bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes; fewer at the end of the file."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a path is: ``kind`` chunk, metadata or other; the array in whose folder it lies, None if in none; of a
    chunk, its ``index`` among the chunk files and whether it is ``inside`` the grid; ``depth``: folders above it.
    """

    kind: str
    array: str | None
    index: Index = ()
    inside: bool = False
    depth: int = 0


class Change(NamedTuple):
    """What a version of metadata changed. ``ready``: it parses. ``array``: the array there, if there is one.
    ``relist``: files below it that were seen before have to be told again. ``problem``: what is not understood.
    """

    ready: bool
    array: str | None = None
    relist: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ArrayTruth:
    """What became of the chunks of an array, as it was when asked. ``grid`` and all indices are of units: chunks, in
    shards the inner ones (``unit``); the grid is None where it is unknown. ``missing_ranges``: along the first axis.
    """

    path: str
    grid: Index | None
    unit: str
    written: int
    empty: Chunks
    missing: Chunks
    missing_ranges: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it: counts in place of the sets."""
        return {
            "path": self.path,
            "grid": None if self.grid is None else list(self.grid),
            "unit": self.unit,
            "written": self.written,
            "empty": self.empty.total,
            "missing": self.missing.total,
            "missing_ranges": list(self.missing_ranges),
        }


@dataclass(slots=True)
class _Said:
    """What is kept of one metadata file; None of these while it is not ready."""

    layout: ArrayLayout | None = None
    promises: tuple[Promise, ...] = ()
    axes: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str | None, ...] = ()
    plate: bool = False
    ready: bool = False
    problem: str = ""


class ZarrTree:
    """All that is known of the hierarchies below a folder. Paths are relative to it, with ``/``; an array at the root
    has the path ``""``. Set `aborted` when the run was: then a folder that is empty says nothing.
    """

    def __init__(self) -> None:
        self._said: dict[str, dict[str, _Said]] = {}
        self._arrays: dict[str, WatchedArray] = {}
        self._earlier: dict[str, bytes] = {}
        self._above: set[str] = set()  # folders in which arrays lie
        self._nested = False  # does an array lie in the folder of another?
        self._complete: Complete | None = None
        self._aborted = False
        self._version = self._of_metadata = 0
        self._sums: tuple[int, tuple[int, int, int]] = (-1, (0, 0, 0))
        self._unkept: tuple[int, tuple[Promise, ...]] = (-1, ())

    # -- metadata ------------------------------------------------------------------------------------------------------

    def metadata(self, path: str, raw: bytes) -> Change:
        """A version of a metadata file. One that does not parse changes nothing but that it is `not_ready`."""
        folder, _, name = path.rpartition("/")
        found = read_metadata(name, raw)
        said = self._said.setdefault(folder, {})
        self._version += 1
        self._of_metadata += 1
        if found is None:
            said.setdefault(name, _Said()).ready = False
            return Change(ready=False, array=folder if folder in self._arrays else None)
        said[name] = _said(folder, found)
        relist = self._settle(folder)
        return Change(True, folder if folder in self._arrays else None, relist, found.problem)

    def metadata_gone(self, path: str) -> None:
        """A metadata file is not there any more. An array without is one no longer, but what became of it is kept."""
        folder, _, name = path.rpartition("/")
        self._version += 1
        self._of_metadata += 1
        if self._said.get(folder, {}).pop(name, None) is not None:
            if not self._said[folder]:
                del self._said[folder]
            self._settle(folder)

    def _settle(self, folder: str) -> bool:
        """Make the array of a folder what its metadata say now; must its files be listed again?"""
        said = self._said.get(folder, {})
        layouts = (said[name].layout for name in ("zarr.json", ".zarray") if name in said)
        layout = next((layout for layout in layouts if layout is not None), None)
        known = self._arrays.get(folder)
        if layout is None:
            if known is not None:
                known.stands = False
            return False
        if known is not None and known.stands and known.layout.same_chunks(layout):
            return known.resize(layout)
        above = {folder[:at] for at, sign in enumerate(folder) if sign == "/"} | ({""} if folder else set())
        self._above |= above
        self._nested = self._nested or folder in self._above or not above.isdisjoint(self._arrays)
        array = self._arrays[folder] = WatchedArray(layout)
        if known is not None:  # what becomes of the chunks of its predecessor is no sign of its own end
            array.note_shots()
        if folder in self._earlier:
            array.take_evidence(self._earlier.pop(folder))
        if self._complete is not None:
            self._end(folder, array, self._complete)
        return layout.counted

    @property
    def not_ready(self) -> list[str]:
        """Metadata files whose latest version does not parse."""
        return [path for path, said in self._files() if not said.ready]

    @property
    def problems(self) -> dict[str, str]:
        """Metadata file -> what of it is not understood."""
        return {path: said.problem for path, said in self._files() if said.problem}

    def _files(self) -> Iterator[tuple[str, _Said]]:
        for folder, files in self._said.items():
            for name, said in files.items():
                yield f"{folder}/{name}" if folder else name, said

    @property
    def found(self) -> bool:
        """Are there any metadata of groups or arrays?"""
        return any(map(self._is_node, self._said))

    def _is_node(self, folder: str) -> bool:
        return not self._said.get(folder, {}).keys().isdisjoint(("zarr.json", ".zarray", ".zgroup"))

    def unkept(self) -> tuple[Promise, ...]:
        """What the metadata promise and is not there: no group or array has metadata at that path."""
        if self._unkept[0] != self._of_metadata:
            kept = {folder for folder in self._said if self._is_node(folder)}
            every = dict.fromkeys(promise for _, said in self._files() for promise in said.promises)
            self._unkept = self._of_metadata, tuple(promise for promise in every if promise.path not in kept)
        return self._unkept[1]

    def promised(self) -> list[str]:
        """The paths of `unkept`."""
        return list(dict.fromkeys(promise.path for promise in self.unkept()))

    # -- what is it? ---------------------------------------------------------------------------------------------------

    def place(self, path: str) -> Place:
        """What a path is."""
        depth = path.count("/")
        array, watched = self._array(path)
        if path.rpartition("/")[2] in METADATA:
            return Place("metadata", array, depth=depth)
        index = None if watched is None or array is None else watched.index(_inside(path, array))
        if index is None or watched is None:
            return Place(OTHER, array, depth=depth)
        return Place(CHUNK, array, index, watched.layout.inside(index), depth)

    def array_of(self, path: str) -> str | None:
        """The array in whose folder a file lies, chunk or not; None: in none."""
        return self._array(path)[0]

    def chunk_of(self, path: str) -> str | None:
        """The array of which this is the name of a chunk, in its grid or not; None: none, or its metadata went."""
        array, watched = self._array(path)
        if watched is None or array is None or watched.index(_inside(path, array)) is None:
            return None
        return array

    def layout(self, array: str) -> ArrayLayout:
        """The layout of an array. Raises KeyError if there is none at this path."""
        return self._arrays[array].layout

    def arrays(self) -> list[str]:
        """The paths of all arrays, sorted; also of those whose metadata went."""
        return sorted(self._arrays)

    def plate_arrays(self) -> list[str]:
        """The paths of all arrays, if there is a plate at the root; else none."""
        return self.arrays() if any(said.plate for said in self._said.get("", {}).values()) else []

    def _array(self, path: str) -> tuple[str | None, WatchedArray | None]:
        """The array whose folder a path is in; the deepest, should arrays lie in one another."""
        arrays = self._arrays
        name, found = ("", arrays[""]) if "" in arrays else (None, None)
        at = path.find("/")
        while at > 0 and (found is None or self._nested):
            deeper = arrays.get(path[:at])
            if deeper is not None:
                name, found = path[:at], deeper
            at = path.find("/", at + 1)
        return name, found

    def _chunk(self, path: str) -> tuple[WatchedArray, Index] | None:
        array, watched = self._array(path)
        if watched is None or array is None:
            return None
        index = watched.index(_inside(path, array))
        return None if index is None or watched.truth is None else (watched, index)

    # -- shards --------------------------------------------------------------------------------------------------------

    def sharding(self, path: str) -> Sharding | None:
        """How the shard of this name is made; None if it is none, or one whose index cannot be read."""
        found = self._chunk(path)
        return None if found is None else found[0].layout.sharding

    def is_shard(self, path: str) -> bool:
        """Is it the name of a shard whose index can be read?"""
        return self.sharding(path) is not None

    def shard_is_whole(self, path: str, file: File) -> bool | None:
        """Is the index of this shard valid? None: it cannot be told. Raises what `file` raises."""
        sharding = self.sharding(path)
        return None if sharding is None else is_whole(sharding, file.read, file.size)

    # -- what happens to chunks ----------------------------------------------------------------------------------------

    def present(self, path: str, *, again: bool = False) -> bool:
        """A file is there, whole (`again`: in another version than before). Is it a chunk? Of shards see `shard`, too.

        >>> ZarrTree().present("0.0")
        False
        """
        found = self._chunk(path)
        if found is None:
            return False
        array, index = found
        self._version += 1
        if again:
            array.note_shots()
        if array.layout.sharding is None:
            array.present(index)
        return True

    def shard(self, path: str, file: File) -> bool:
        """Note the inner chunks of a shard that is there; False: it is none, or torn. Raises what `file` raises."""
        sharding = self.sharding(path)
        return sharding is not None and self.shard_holds(path, inner_chunks(sharding, file.read, file.size))

    def shard_holds(self, path: str, inner: bytes | None) -> bool:
        """The same, of what ``layouts.shard.inner_chunks`` has read elsewhere."""
        found = self._chunk(path)
        if found is None or inner is None or found[0].layout.sharding is None:
            return False
        self._version += 1
        found[0].shard(found[1], inner)
        return True

    def gone(self, path: str) -> bool:
        """A chunk that was there was cleared by its writer: empty from now on. Not to be said of one that was freed."""
        return self._note_empty(path, cleared=True)

    def lock_went(self, path: str) -> bool:
        """A lock file (``K.__lock``, ``K_<hex>.__lock``) or the lock of the chunk of this name came and went, and the
        chunk is not there: empty, if it was not written before.
        """
        match = LOCK_NAME.fullmatch(path)
        return self._note_empty(path if match is None else match[1], cleared=False)

    def _note_empty(self, path: str, *, cleared: bool) -> bool:
        found = self._chunk(path)
        if found is None:
            return False
        self._version += 1
        return found[0].empty(found[1], cleared=cleared)

    def folder_empty(self, path: str) -> bool:
        """A folder is there with nothing in it. True: it is a chunk's own, and that chunk is empty by it."""
        array, watched = self._array(f"{path}/")
        if watched is None or array is None or path == array:
            return False
        self._version += 1
        return watched.folder_empty(_inside(path, array))

    def ended(self, complete: Complete) -> None:
        """What ``complete.json`` says of empty and missing chunks, also of arrays that are not known yet."""
        self._complete = complete
        self._version += 1
        if complete.state == "aborted":
            self._aborted = True
        for path, array in self._arrays.items():
            self._end(path, array, complete)

    def _end(self, path: str, array: WatchedArray, complete: Complete) -> None:
        end = complete.arrays.get(path) or complete.arrays.get(path or "/") or complete.arrays.get(f"/{path}")
        if end is not None:
            array.end(end)

    @property
    def aborted(self) -> bool:
        """Was the run aborted?"""
        return self._aborted

    @aborted.setter
    def aborted(self, value: bool) -> None:
        self._aborted = value
        self._version += 1

    # -- how it stands -------------------------------------------------------------------------------------------------

    def is_there(self, path: str) -> bool:
        """Is this chunk file written (a shard: any inner chunk of it) or known to be empty (all of it)?"""
        found = self._chunk(path)
        return found is not None and found[0].is_there(found[1], self._empty)

    def chunks_of(self, array: str) -> int:
        """How many chunk files of an array's grid are there."""
        return self._arrays[array].files if array in self._arrays else 0

    @property
    def expected(self) -> int:
        """Units by all grids. An array whose grid is unknown counts as one that is never there."""
        return self._sum()[0]

    @property
    def written(self) -> int:
        """Units that are written, in their grids."""
        return self._sum()[1]

    @property
    def known_empty(self) -> int:
        """Units that are absent with evidence."""
        return self._sum()[2]

    @property
    def full(self) -> bool:
        """Is every chunk of every array there, or known to be empty, and all that the metadata promise?"""
        expected, written, empty = self._sum()
        return expected == written + empty and not self.unkept()

    def _sum(self) -> tuple[int, int, int]:
        if self._sums[0] != self._version:
            expected = written = empty = 0
            for array in self._arrays.values():
                if array.truth is None:
                    expected += 1
                    continue
                expected += array.truth.size
                written += array.truth.count(WRITTEN)
                empty += sum(map(array.truth.count, self._empty))
            self._sums = self._version, (expected, written, empty)
        return self._sums[1]

    @property
    def _empty(self) -> tuple[int, ...]:
        return (EMPTY,) if self._aborted else (EMPTY, BY_FOLDER)

    @property
    def _missing(self) -> tuple[int, ...]:
        return (MISSING, BY_FOLDER) if self._aborted else (MISSING,)

    def grew(self) -> list[str]:
        """Arrays that grew, or whose chunks came in several shots, while they were watched."""
        return [path for path, array in self._arrays.items() if array.grew or array.shots]

    def truth(self) -> dict[str, ArrayTruth]:
        """What became of the chunks of each array, sorted by path; a copy, two bits a chunk."""
        axes = {path: name for _, said in self._files() for path, name in said.axes.items()}
        return {path: self._truth(path, self._arrays[path], axes.get(path)) for path in self.arrays()}

    def _truth(self, path: str, array: WatchedArray, axis: str | None) -> ArrayTruth:
        unit = "chunk" if array.layout.sharding is None else "inner chunk"
        if array.truth is None:
            none = Chunks.none()
            return ArrayTruth(path, None, unit, 0, none, none, ())
        names = (said.names for said in self._said.get(path, {}).values())
        axis = axis or next((some[0] for some in names if some and some[0]), None) or "axis 0"
        return ArrayTruth(
            path,
            array.truth.grid,
            unit,
            array.truth.count(WRITTEN),
            array.truth.chunks(self._empty),
            array.truth.chunks(self._missing),
            tuple(array.ranges(axis, self._missing, MOST_RANGES)),
        )

    # -- across restarts -----------------------------------------------------------------------------------------------

    def take_evidence(self) -> Iterator[tuple[str, bytes]]:
        """(array, what is known of it and cannot be listed) of those where that changed since the last call."""
        for path, array in self._arrays.items():
            if array.noted:
                array.noted = False
                yield path, array.evidence()

    def restore(self, array: str, raw: bytes) -> None:
        """Take back what `take_evidence` gave in an earlier run, before or after the array's metadata are known."""
        self._version += 1
        if array in self._arrays:
            self._arrays[array].take_evidence(raw)
        else:
            self._earlier[array] = raw


def _inside(path: str, array: str) -> str:
    return path[len(array) + 1 :] if array else path


def _said(folder: str, found: Metadata) -> _Said:
    attributes = found.attributes
    names = found.layout.names if found.layout is not None else ()
    if found.kind == ATTRIBUTES and isinstance(attributes.get("_ARRAY_DIMENSIONS"), list):
        names = tuple(name if isinstance(name, str) else None for name in attributes["_ARRAY_DIMENSIONS"])
    return _Said(
        found.layout,
        promises(folder, attributes),
        first_axes(folder, attributes),
        names,
        is_plate(attributes),
        ready=True,
        problem=found.problem,
    )
