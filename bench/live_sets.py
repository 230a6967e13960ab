"""What the live bench writes: the sets of section 6 as orders of `testing.SlowWriter`, random bytes, no compression.

The one array is the root, since softcopy wants it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scopeferry.testing import orders
from scopeferry.testing.orders import Layout, Order

MIB = 1 << 20
BACKLOG = "backlog"  # array of E that is there before the copier starts
METADATA = (".zarray", ".zgroup", ".zattrs", "zarr.json", "complete")


@dataclass(frozen=True, slots=True)
class Steps:
    """A writer, what is there before the copier starts, and what follows, one order each `every_s` (0: full speed)."""

    writer: str
    before: Sequence[Order]
    orders: Sequence[Order]
    every_s: float = 0.0
    chunks: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def series(self) -> Order:
        """All that follows, as one order."""
        return orders.series(self.orders, self.every_s)

    @staticmethod
    def is_chunk(path: str) -> bool:
        """A path that is neither metadata nor the marker, nor a copier's temporary file."""
        name = path.rpartition("/")[2]
        return name not in METADATA and not name.startswith((".", "~")) and not name.endswith((".part", ".__lock"))


def _grid(count: int, side_bytes: int, **how: Any) -> Layout:
    """`count` chunks of so many bytes along the first axis, 16 bits a pixel."""
    width = 256 if side_bytes < MIB else 512
    rows = side_bytes // 2 // width
    found = {"separator": ".", "zarr_format": 2, **how}
    return Layout(shape=(count, rows, width), chunks=(1, rows, width), **found)


def _chunks(path: str, layout: Layout, numbers: range, at_once: int = 1) -> list[Order]:
    rest = layout.shape[1:]
    return [orders.put(path, (at, 0, 0), (at_once, *rest), seed=at) for at in numbers[::at_once]]


def finished_sets(quick: bool) -> dict[str, Steps]:
    """Sets that are there whole, by name: A, B in format 2 flat; B3 nested in format 3; H."""
    part = 10 if quick else 1
    wanted = {
        "A": _grid(4096 // part, MIB),
        "B": _grid(20_480 // part, 64 << 10),
        "B3": _grid(20_480 // part, 64 << 10, zarr_format=3, separator="/"),
        "H": _grid(1024 // part, MIB),
    }
    return {
        name: Steps(
            "rename", [orders.array("", layout)], _chunks("", layout, range(layout.shape[0])), 0.0, layout.shape[0]
        )
        for name, layout in wanted.items()
    }


def live_sets(quick: bool) -> dict[str, Steps]:
    """Sets that are written while they are copied, by case; C in three layouts."""
    part = 10 if quick else 1
    flat, nested = _grid(800 // part, MIB), _grid(800 // part, MIB, zarr_format=3, separator="/")
    shards = Layout(3, "/", shape=(800 // part, 1024, 512), chunks=(1, 256, 512), shards=(1, 1024, 512))
    found = {
        f"C {name}": _steady("tensorstore-lockfile", layout)
        for name, layout in (("v2", flat), ("v3", nested), ("shards", shards))
    }
    return {
        **found,
        "D": _full_speed(64 // (4 if quick else 1)),
        "E": _beside_backlog(part),
        "F": _shots(24),
        "G": _burst(20_480 // part),
        "I": _folders(10_000 // part),
        "J": _plate(96 // part),
    }


def _steady(writer: str, layout: Layout) -> Steps:
    """8 chunks each 0.1 s; the first eight are there before."""
    puts = _chunks("", layout, range(layout.shape[0]), 8)
    return Steps(writer, [orders.array("", layout), puts[0]], puts[1:], 0.1, layout.shape[0])


def _full_speed(count: int) -> Steps:
    layout = Layout(2, ".", shape=(count, 4096, 2048), chunks=(1, 4096, 2048))
    puts = _chunks("", layout, range(count))
    return Steps("tensorstore-lockfile", [orders.array("", layout), puts[0]], puts[1:], 0.0, count)


def _beside_backlog(part: int) -> Steps:
    """4 MiB each 42 ms, flushed, for 8 s; 2.5 GB are there before."""
    fresh, old = _grid(200 // part, 4 * MIB), _grid(600 // part, 4 * MIB)
    arrays = [orders.array("0", fresh), orders.array(BACKLOG, old)]
    before = [*arrays, orders.series(_chunks(BACKLOG, old, range(old.shape[0])))]
    puts = _chunks("0", fresh, range(fresh.shape[0]))
    return Steps("rename", before, puts, 4 * MIB / 100e6, len(puts), {"sync": True})


def _shots(count: int) -> Steps:
    layout = _grid(count, 4 * MIB)
    whole = (1, *layout.shape[1:])
    shots = [orders.shots("", (at, 0, 0), whole, 4, seed=10 * at) for at in range(count)]
    return Steps("tensorstore-lockfile", [orders.array("", layout), shots[0]], shots[1:], 0.0, count)


def _burst(count: int) -> Steps:
    layout = _grid(count, 64 << 10)
    puts = _chunks("", layout, range(count))
    return Steps("rename", [orders.array("", layout), puts[0]], puts[1:], 0.0, count)


def _folders(count: int) -> Steps:
    """20 files of 1 KiB in each new folder, 2,000 files a second."""
    layout = Layout(2, "/", shape=(count, 20, 512), chunks=(1, 1, 512))
    puts = [orders.put("", (at, 0, 0), (1, 20, 512), seed=at) for at in range(count)]
    return Steps("rename", [orders.array("", layout), puts[0]], puts[1:], 0.01, 20 * count)


def _plate(wells: int) -> Steps:
    """12 columns, 9 fields, 2 levels; the plate's metadata are there before."""
    rows, columns = "ABCDEFGH"[: max(1, wells // 12)], [str(number + 1) for number in range(min(wells, 12))]
    first, *rest = orders.plate("0.5", rows=rows, columns=columns, fields=9, levels=2)
    chunks = sum(order["do"] == "put" for order in rest)
    start = next(at for at, order in enumerate(rest) if order["do"] == "put") + 1
    return Steps("rename", [first, *rest[:start]], rest[start:], 0.0, 2 * chunks)
