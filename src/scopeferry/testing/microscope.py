"""A simulated microscope: moving cells in six wells, written as an OME-Zarr plate by a process of its own.

Two channels and eight times of each well are 96 frames of `SIDE` by `SIDE` pixels. A frame is a chunk; the two of a
well and a time share a shard that grows in place, its index last. The same seed makes the same bytes everywhere. Only
the standard library, and nothing of the code under test: what a copy holds is told by reading its shards here.

The layout is that of OME-Zarr 0.5 (https://ngff.openmicroscopy.org/0.5/), its arrays Zarr format 3 with sharding.
"""

from __future__ import annotations

import json
import math
import os
import random
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

from scopeferry.testing.orders import Layout, array, file, group, put
from scopeferry.testing.slow_writer import SlowWriter

ROWS, COLUMNS = "AB", "123"
WELLS = tuple((row, column) for row in ROWS for column in COLUMNS)
CHANNELS = ("nuclei", "membrane")
TIMES = 8
SIDE = 256  # pixels
FRAMES = TIMES * len(WELLS) * len(CHANNELS)
CELLS = 12  # in a well
ABSENT = (1 << 64) - 1  # offset and length of a chunk that a shard does not hold (Zarr sharding codec, version 1.0)
LAYOUT = Layout(
    3,
    "/",
    shape=(TIMES, len(CHANNELS), SIDE, SIDE),
    chunks=(1, 1, SIDE, SIDE),
    shards=(1, len(CHANNELS), SIDE, SIDE),
)
MARKER = "complete.json"
NEEDS_BYTES = FRAMES * SIDE * SIDE * 2 + (2 << 20)  # on any disk, whole blocks counted


class Frame(NamedTuple):
    """Where and when: the number of the well, time and channel, each from 0."""

    well: int
    time: int
    channel: int

    @property
    def array(self) -> str:
        """Path of its array."""
        return f"{'/'.join(WELLS[self.well])}/0/0"

    @property
    def chunk(self) -> str:
        """Key of its chunk below the array."""
        return f"c/{self.time}/{self.channel}/0/0"

    @property
    def shard(self) -> str:
        """Path of its shard."""
        return f"{self.array}/c/{self.time}/0/0/0"

    def __str__(self) -> str:
        return f"well {''.join(WELLS[self.well])}, T {self.time}, C {self.channel}"


def frames() -> Iterator[Frame]:
    """All frames in the order in which they are taken.

    >>> len(list(frames())), str(next(frames()))
    (96, 'well A1, T 0, C 0')
    """
    for time in range(TIMES):
        for well in range(len(WELLS)):
            for channel in range(len(CHANNELS)):
                yield Frame(well, time, channel)


class CellField:
    """Cells that drift through the wells: bright discs over the noise of a camera."""

    def __init__(self, seed: int = 0, side: int = SIDE) -> None:
        self.seed, self.side = seed, side

    def pixels(self, frame: Frame) -> bytes:
        """A frame as (Y, X), uint16, little endian."""
        side = self.side
        found = bytearray(2 * side * side)
        found[0::2] = self._choice(*frame).randbytes(side * side)
        choice = self._choice(frame.well)
        for _ in range(CELLS):
            x, y, along, across = (choice.random() for _ in range(4))
            radius = 5 + int(6 * choice.random()) + 5 * frame.channel
            middle = int((x + (along - 0.5) * frame.time / 12) % 1 * side)
            row = int((y + (across - 0.5) * frame.time / 12) % 1 * side)
            self._disc(found, middle, row, radius, 8 - 4 * frame.channel)
        return bytes(found)

    def _choice(self, *place: int) -> random.Random:
        number = self.seed
        for part in place:
            number = number * 1009 + part + 1
        return random.Random(number)

    def _disc(self, found: bytearray, middle: int, row: int, radius: int, bright: int) -> None:
        for line in range(max(0, row - radius), min(self.side, row + radius + 1)):
            half = math.isqrt(radius**2 - (line - row) ** 2)
            first, last = max(0, middle - half), min(self.side, middle + half + 1)
            start, end = (2 * (line * self.side + at) + 1 for at in (first, last))
            found[start:end:2] = bytes([bright]) * (last - first)


class Microscope:
    """One that takes frames when it is told to; a context. Raises ``slow_writer.WriterFailed``.

    ``taken`` holds what it has taken, ``dropped`` what its camera lost, ``dark`` what was all fill and not stored.
    """

    def __init__(self, root: str | os.PathLike[str], *, seed: int = 0) -> None:
        self.root, self.field = os.fspath(root), CellField(seed)
        self.taken: list[Frame] = []
        self.dropped: list[Frame] = []
        self.dark: list[Frame] = []
        self._left = frames()
        self._writer = SlowWriter(root, "in place")

    @property
    def number(self) -> int:
        """How many frames are over."""
        return len(self.taken) + len(self.dropped) + len(self.dark)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.kill()

    def describe(self) -> None:
        """Write the metadata: plate, wells, images, and arrays without a chunk."""
        orders = [group("", 3, _plate())]
        orders += [group(row, 3) for row in ROWS]
        for row, column in WELLS:
            well = f"{row}/{column}"
            orders += [group(well, 3, _well()), group(f"{well}/0", 3, _image()), array(f"{well}/0/0", LAYOUT)]
        self._writer.do(*orders)

    def take(self, *, drop: bool = False, dark: bool = False) -> Frame:
        """The next frame; or none, since the camera drops it; or one without light, which is not stored."""
        frame = next(self._left)
        if drop:
            self.dropped.append(frame)
        elif dark:
            self.dark.append(frame)
        else:
            start, shape = (frame.time, frame.channel, 0, 0), (1, 1, SIDE, SIDE)
            self._writer.do(put(frame.array, start, shape, data=self.field.pixels(frame)))
            self.taken.append(frame)
        if frame.channel == len(CHANNELS) - 1 and (drop or dark):
            self._writer.do({"do": "index"})  # nothing will come to fill that shard
        return frame

    def finish(self) -> None:
        """Say what was written, and end."""
        arrays: dict[str, Any] = {}
        for name, found in (("written", self.taken), ("empty", self.dark), ("missing", self.dropped)):
            for frame in found:
                one = arrays.setdefault(frame.array, {"written": 0, "empty": [], "missing": []})
                one[name] = one[name] + (1 if name == "written" else [frame.chunk])
        text = json.dumps({"schema": 1, "state": "finished", "arrays": arrays}, indent=2)
        self._writer.do(file(MARKER, text))
        self._writer.close()


def frames_in(root: str | os.PathLike[str]) -> dict[Frame, bytes]:
    """The frames in all shards below a store; of a shard that is torn, or has no index yet, they are empty."""
    found: dict[Frame, bytes] = {}
    for first in frames():
        path = os.path.join(root, *first.shard.split("/"))
        if first.channel or not os.path.isfile(path):
            continue
        with open(path, "rb") as shard:
            data = shard.read()
        index = data[-16 * len(CHANNELS) - 4 : -4].ljust(16 * len(CHANNELS))
        for channel in range(len(CHANNELS)):
            offset, size = struct.unpack_from("<QQ", index, 16 * channel)
            if (offset, size) != (ABSENT, ABSENT):
                frame = first._replace(channel=channel)
                found[frame] = data[offset : offset + size] if size == 2 * SIDE * SIDE else b""
    return found


def _plate() -> dict[str, Any]:
    wells = [
        {"path": f"{row}/{column}", "rowIndex": ROWS.index(row), "columnIndex": COLUMNS.index(column)}
        for row, column in WELLS
    ]
    names = {"columns": [{"name": name} for name in COLUMNS], "rows": [{"name": name} for name in ROWS]}
    return {"ome": {"version": "0.5", "plate": {"name": "demo", "version": "0.5", **names, "wells": wells}}}


def _well() -> dict[str, Any]:
    return {"ome": {"version": "0.5", "well": {"images": [{"path": "0"}]}}}


def _image() -> dict[str, Any]:
    axes = [
        {"name": "t", "type": "time", "unit": "second"},
        {"name": "c", "type": "channel"},
        {"name": "y", "type": "space", "unit": "micrometer"},
        {"name": "x", "type": "space", "unit": "micrometer"},
    ]
    scale = [{"type": "scale", "scale": [300.0, 1.0, 0.65, 0.65]}]
    levels = [{"path": "0", "coordinateTransformations": scale}]
    return {"ome": {"version": "0.5", "multiscales": [{"name": "0", "axes": axes, "datasets": levels}]}}
