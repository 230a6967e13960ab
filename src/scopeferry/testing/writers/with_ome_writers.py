"""Write with ome-writers: one image of OME-Zarr 0.5, frames in order. Settings: ``backend``, as ome-writers names it.

The array of an order becomes level 0 of the image at the root; a `put` is the next frames.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any


class Writer:
    """One stream."""

    def __init__(self, root: str, settings: dict[str, Any]) -> None:
        self.root, self.settings = root, settings
        self.library: Any = importlib.import_module("ome_writers")
        self.numpy: Any = importlib.import_module("numpy")
        self.stream: Any = None
        self.next = 0

    def array(self, path: str, spec: dict[str, Any]) -> None:
        """The image; opens the stream."""
        if self.stream is not None or path != "0" or spec["zarr_format"] != 3:
            raise NotImplementedError("one image of format 3, whose level 0 is `0`")
        names = "tczyx"[-len(spec["shape"]) :]
        shards = spec.get("shards")
        dimensions = [
            {
                "name": name,
                "count": spec["shape"][axis],
                "chunk_size": spec["chunks"][axis],
                "shard_size_chunks": shards[axis] // spec["chunks"][axis] if shards else None,
            }
            for axis, name in enumerate(names)
        ]
        suffix = ".ome.zarr" if self.root.endswith(".ome.zarr") else ".zarr"
        how = {"name": "ome-zarr", "backend": self.settings.get("backend", "acquire-zarr"), "suffix": suffix}
        settings = self.library.AcquisitionSettings(
            root_path=self.root, dimensions=dimensions, dtype=spec["dtype"], format=how, overwrite=True
        )
        self.dtype = spec["dtype"]
        self.stream = self.library.create_stream(settings)

    def put(self, path: str, start: Sequence[int], shape: Sequence[int], data: bytes | None) -> None:
        """The next frames."""
        if path != "0" or start[0] != self.next:
            raise NotImplementedError("ome-writers takes the frames of `0` in order")
        self.next, frame = start[0] + shape[0], shape[-2:]
        if data is None:
            frames = self.numpy.zeros(shape, self.dtype)
        else:
            frames = self.numpy.frombuffer(data, self.dtype)
        for one in frames.reshape(-1, *frame):
            self.stream.append(one)

    def close(self) -> None:
        """End the stream."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None
