"""What a `SlowWriter` can be told, and acquisitions made of that: layouts, patterns, hierarchies.

An order is a small dictionary, so that any interpreter can carry it out (``writers/serve.py``). Regions are `start` and
`shape`, in elements, in the axis order of the array. Pixels come from a seed: what two writers put is equal.

>>> put("0", (0, 0), (2, 2), seed=3)
{'do': 'put', 'path': '0', 'start': (0, 0), 'shape': (2, 2), 'seed': 3}
>>> [order["do"] for order in PATTERNS["rewrite"]("0", LAYOUTS["v3"])][:3]
['array', 'put', 'put']
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

Order = dict[str, Any]
Shape = Sequence[int]


@dataclass(frozen=True, slots=True)
class Layout:
    """How an array is laid out: axis lengths in elements, the inner chunk and (if there are any) the shard too.

    ``between``: a shard is made of shards of this shape. ``index_checksum``: has its index one?
    """

    zarr_format: int
    separator: str
    encoding: str = "default"  # of the chunk keys, format 3 only: `default` or `v2`
    shape: tuple[int, ...] = (4, 2, 64, 64)
    chunks: tuple[int, ...] = (1, 1, 64, 64)
    shards: tuple[int, ...] | None = None
    between: tuple[int, ...] | None = None
    index_location: str = "end"
    index_checksum: bool = True
    dtype: str = "uint16"
    fill: int = 0
    compressor: bool = False

    def spec(self) -> dict[str, Any]:
        """As the writers take it."""
        return asdict(self)


SHARDS = Layout(3, "/", chunks=(1, 1, 32, 64), shards=(1, 2, 64, 64))
LAYOUTS = {
    "v2-flat": Layout(2, "."),
    "v2-nested": Layout(2, "/"),
    "v2-zlib": Layout(2, "/", compressor=True),
    "v3": Layout(3, "/"),
    "v3-dot": Layout(3, "."),
    "v3-v2keys": Layout(3, ".", "v2"),
    "v3-v2keys-nested": Layout(3, "/", "v2"),
    "v3-zstd": Layout(3, "/", compressor=True),
    "v3-shards": SHARDS,
    "v3-shards-start": replace(SHARDS, index_location="start"),
    "v3-shards-unchecked": replace(SHARDS, index_checksum=False),
    "v3-shards-of-shards": replace(SHARDS, chunks=(1, 1, 16, 32), between=(1, 1, 32, 64)),
    "v2-0d": Layout(2, ".", shape=(), chunks=()),
    "v3-0d": Layout(3, "/", shape=(), chunks=()),
}


# -- orders ------------------------------------------------------------------------------------------------------------


def group(path: str, zarr_format: int, attributes: dict[str, Any] | None = None) -> Order:
    """A group; the root is ``""``."""
    return {"do": "group", "path": path, "zarr_format": zarr_format, "attributes": attributes or {}}


def array(path: str, layout: Layout, attributes: dict[str, Any] | None = None) -> Order:
    """An array without a chunk."""
    return {"do": "array", "path": path, **layout.spec(), "attributes": attributes or {}}


def put(path: str, start: Shape, shape: Shape, *, seed: int = 0, data: bytes | None = None) -> Order:
    """Write a region: random pixels, or these bytes."""
    order: Order = {"do": "put", "path": path, "start": start, "shape": shape}
    return {**order, "seed": seed} if data is None else {**order, "data": base64.b64encode(data).decode()}


def clear(path: str, start: Shape, shape: Shape) -> Order:
    """Write the fill value: most writers delete the chunks."""
    return {"do": "put", "path": path, "start": start, "shape": shape, "fill": True}


def shots(path: str, start: Shape, shape: Shape, number: int, *, seed: int = 0, pause_s: float = 0.0) -> Order:
    """Write a region in parts along its first axis that is long enough, with pauses between them."""
    order: Order = {"do": "shots", "path": path, "start": start, "shape": shape}
    return {**order, "shots": number, "seed": seed, "pause_s": pause_s}


def resize(path: str, shape: Shape) -> Order:
    """Give an array another shape."""
    return {"do": "resize", "path": path, "shape": shape}


def attributes(path: str, found: dict[str, Any]) -> Order:
    """Replace the attributes of an array or a group."""
    return {"do": "attributes", "path": path, "attributes": found}


def file(path: str, text: str = "", **how: Any) -> Order:
    """A plain file, by another name first; ``how="in place"``, ``size_bytes``, ``seed``, ``parts``, ``pause_s``."""
    return {"do": "file", "path": path, **({} if "size_bytes" in how else {"text": text}), **how}


def folder(path: str) -> Order:
    """An empty folder."""
    return {"do": "folder", "path": path}


def remove(path: str) -> Order:
    """Delete a file."""
    return {"do": "remove", "path": path}


def pause(seconds: float) -> Order:
    """Do nothing."""
    return {"do": "pause", "seconds": seconds}


def abort() -> Order:
    """Die, as by SIGKILL."""
    return {"do": "abort"}


def series(orders: Sequence[Order], every_s: float = 0.0) -> Order:
    """Orders in turn, one each `every_s` seconds (0: at full speed); answers how late each was and how long it took."""
    return {"do": "series", "orders": list(orders), "every_s": every_s}


# -- patterns: one array each ------------------------------------------------------------------------------------------


def planes(path: str, layout: Layout, *, seed: int = 0) -> Iterator[Order]:
    """A put for each index of the first axis."""
    if not layout.shape:
        yield put(path, (), (), seed=seed)
        return
    size = layout.shards or layout.chunks
    for at in range(0, layout.shape[0], size[0]):
        length = min(size[0], layout.shape[0] - at)
        yield put(path, (at, *(0 for _ in layout.shape[1:])), (length, *layout.shape[1:]), seed=seed + at)


def _first(layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Region of the first chunk or shard."""
    return tuple(0 for _ in layout.shape), layout.shards or layout.chunks


def _full(path: str, layout: Layout) -> Iterator[Order]:
    yield array(path, layout)
    yield from planes(path, layout)


def _shots(path: str, layout: Layout) -> Iterator[Order]:
    yield array(path, layout)
    start, shape = _first(layout)
    for at in range(layout.shape[0]):
        yield shots(path, (at, *start[1:]), shape, 4, seed=10 * at, pause_s=0.05)


def _rewrite(path: str, layout: Layout) -> Iterator[Order]:
    yield from _full(path, layout)
    yield from planes(path, layout, seed=100)
    start, shape = _first(layout)
    for seed in range(200, 204):
        yield put(path, start, shape, seed=seed)


def _clear(path: str, layout: Layout) -> Iterator[Order]:
    yield from _full(path, layout)
    yield clear(path, *_first(layout))


def _dark(path: str, layout: Layout) -> Iterator[Order]:
    """The first frame is all fill value and is never stored."""
    yield array(path, layout)
    first, *others = planes(path, layout)
    yield clear(path, first["start"], first["shape"])
    yield from others


def _grow(path: str, layout: Layout) -> Iterator[Order]:
    """One time point, then the others, each after a resize."""
    rest = layout.shape[1:]
    yield array(path, replace(layout, shape=(1, *rest)))
    for at, order in enumerate(planes(path, layout)):
        if at:
            yield resize(path, (at + 1, *rest))
        yield order


def _shrink(path: str, layout: Layout) -> Iterator[Order]:
    yield from _full(path, layout)
    yield resize(path, (1, *layout.shape[1:]))


def _late_attributes(path: str, layout: Layout) -> Iterator[Order]:
    yield from _full(path, layout)
    yield attributes(path, {"stage": "end", "note": "written after the last chunk"})


def _late_arrays(path: str, layout: Layout) -> Iterator[Order]:
    yield from _full(path, layout)
    yield pause(0.2)
    yield from _full(f"{path}_late", layout)


def _pause(path: str, layout: Layout) -> Iterator[Order]:
    for number, order in enumerate(_full(path, layout)):
        if number == 3:
            yield pause(0.5)
        yield order


def _abort(path: str, layout: Layout) -> Iterator[Order]:
    yield from list(_full(path, layout))[:3]
    yield abort()


PATTERNS: dict[str, Callable[[str, Layout], Iterator[Order]]] = {
    "full": _full,
    "shots": _shots,
    "rewrite": _rewrite,
    "clear": _clear,
    "dark": _dark,
    "grow": _grow,
    "shrink": _shrink,
    "late attributes": _late_attributes,
    "late arrays": _late_arrays,
    "pause": _pause,
    "abort": _abort,
}
STREAMING = ("full", "dark", "pause", "abort")  # what a writer can do that only takes frames in order


# -- hierarchies -------------------------------------------------------------------------------------------------------


def image(path: str, version: str, *, levels: int = 2, seed: int = 0, found: Order | None = None) -> Iterator[Order]:
    """An OME-Zarr image with a pyramid: group, levels, then each time point on all levels. `found`: more metadata."""
    zarr_format, first = _format(version), LAYOUTS["v2-nested" if version == "0.4" else "v3"]
    names = [("t", "time"), ("c", "channel"), ("y", "space"), ("x", "space")]
    scales = [[1.0, 1.0, float(2**level), float(2**level)] for level in range(levels)]
    multiscales: Order = {
        "name": path or "image",
        "axes": [{"name": name, "type": kind} for name, kind in names],
        "datasets": [
            {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
            for level, scale in enumerate(scales)
        ],
    }
    if version == "0.4":
        multiscales["version"] = version
    yield group(path, zarr_format, _ome(version, {"multiscales": [multiscales], **(found or {})}))
    layouts = [_half(first, level) for level in range(levels)]
    below = [_below(path, str(level)) for level in range(levels)]
    yield from (array(one, layout) for one, layout in zip(below, layouts, strict=True))
    every = [
        planes(one, layout, seed=seed + level) for level, (one, layout) in enumerate(zip(below, layouts, strict=True))
    ]
    for orders in zip(*every, strict=True):
        yield from orders


def bioformats2raw(version: str) -> Iterator[Order]:
    """Two series side by side, with the metadata of the original file."""
    yield group("", _format(version), _ome(version, {"bioformats2raw.layout": 3}))
    yield group("OME", _format(version), _ome(version, {"series": ["0", "1"]}))
    yield file("OME/METADATA.ome.xml", '<?xml version="1.0"?><OME><Image ID="Image:0"/><Image ID="Image:1"/></OME>')
    for number in range(2):
        yield from image(str(number), version, seed=50 * number)


def plate(
    version: str, *, rows: Sequence[str] = "AB", columns: Sequence[str] = "12", fields: int = 1, levels: int = 2
) -> Iterator[Order]:
    """A plate whose wells appear one after the other; the first has labels and a table, and files lie about."""
    zarr_format = _format(version)
    wells = [(row, column) for row in rows for column in columns]
    promised: Order = {
        "columns": [{"name": name} for name in columns],
        "rows": [{"name": name} for name in rows],
        "wells": [
            {"path": f"{row}/{column}", "rowIndex": rows.index(row), "columnIndex": columns.index(column)}
            for row, column in wells
        ],
        "field_count": fields,
        "name": "plate",
    }
    if version == "0.4":
        promised["version"] = version
    yield group("", zarr_format, _ome(version, {"plate": promised}))
    yield file("acquisition.log", "started\n", how="in place")
    yield file("tables/layout.csv", "well,drug\n" + "".join(f"{row}{column},none\n" for row, column in wells))
    for number, (row, column) in enumerate(wells):
        if column == columns[0]:
            yield group(row, zarr_format)
        well = f"{row}/{column}"
        yield group(well, zarr_format, _ome(version, {"well": {"images": [{"path": str(n)} for n in range(fields)]}}))
        for at in range(fields):
            yield from image(f"{well}/{at}", version, levels=levels, seed=100 * number + 10 * at)
    yield from _labels(f"{rows[0]}/{columns[0]}/0", version)
    yield from _table(f"{rows[0]}/{columns[0]}/0", version)
    yield file("acquisition.log", "started\nended\n", how="in place")


def _labels(path: str, version: str) -> Iterator[Order]:
    yield group(f"{path}/labels", _format(version), _ome(version, {"labels": ["cells"]}))
    yield from image(f"{path}/labels/cells", version, seed=7, found={"image-label": {"source": {"image": "../../"}}})


def _table(path: str, version: str) -> Iterator[Order]:
    zarr_format = _format(version)
    layout = Layout(zarr_format, "." if zarr_format == 2 else "/", shape=(100,), chunks=(100,), dtype="uint32")
    yield group(f"{path}/tables", zarr_format, {"tables": ["areas"]})
    yield group(f"{path}/tables/areas", zarr_format, {"type": "feature_table"})
    yield array(f"{path}/tables/areas/area", layout)
    yield put(f"{path}/tables/areas/area", (0,), (100,), seed=5)


def _format(version: str) -> int:
    return 2 if version == "0.4" else 3


def _ome(version: str, found: Order) -> Order:
    """Attributes of a group: below ``ome`` since 0.5."""
    return found if version == "0.4" else {"ome": {"version": version, **found}}


def _half(layout: Layout, level: int) -> Layout:
    shape, chunks = (
        (*sizes[:-2], *(max(1, side >> level) for side in sizes[-2:])) for sizes in (layout.shape, layout.chunks)
    )
    return replace(layout, shape=shape, chunks=chunks)


def _below(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


HIERARCHIES: dict[str, Callable[[], Iterator[Order]]] = {
    "image 0.4": lambda: image("", "0.4"),
    "image 0.5": lambda: image("", "0.5"),
    "bioformats2raw 0.4": lambda: bioformats2raw("0.4"),
    "bioformats2raw 0.5": lambda: bioformats2raw("0.5"),
    "plate 0.4": lambda: plate("0.4"),
    "plate 0.5": lambda: plate("0.5"),
}
