"""Write with acquire-zarr: a stream that takes frames in order and ends when it is closed. Format 3, shards.

Every array must have been ordered before the first `put`, which opens the stream; a `put` is the next frames.
Settings: ``threads``.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any


class Writer:
    """One stream."""

    def __init__(self, root: str, settings: dict[str, Any]) -> None:
        self.root, self.settings = root, settings
        self.library: Any = importlib.import_module("acquire_zarr")
        self.numpy: Any = importlib.import_module("numpy")
        self.specs: dict[str, dict[str, Any]] = {}
        self.stream: Any = None
        self.next: dict[str, int] = {}

    def array(self, path: str, spec: dict[str, Any]) -> None:
        """An array of the stream."""
        if spec["zarr_format"] != 3 or self.stream is not None:
            raise NotImplementedError("acquire-zarr writes format 3, and arrays that are known at the start")
        self.specs[path] = spec

    def put(self, path: str, start: Sequence[int], shape: Sequence[int], data: bytes | None) -> None:
        """The next frames of an array."""
        if self.stream is None:
            self.stream = self.library.ZarrStream(self._settings())
        if start[0] != self.next.get(path, 0):
            raise NotImplementedError("acquire-zarr takes frames in order")
        self.next[path] = start[0] + shape[0]
        dtype = self.specs[path]["dtype"]
        if data is None:
            frames = self.numpy.zeros(shape, dtype)
        else:
            frames = self.numpy.frombuffer(data, dtype).reshape(shape)
        self.stream.append(frames, key=path or None)

    def close(self) -> None:
        """End the stream: the shards get their indexes."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None

    def _settings(self) -> Any:
        library = self.library
        arrays = []
        for path, spec in self.specs.items():
            how: dict[str, Any] = {"dimensions": self._dimensions(spec), "data_type": self.numpy.dtype(spec["dtype"])}
            if path:
                how["output_key"] = path
            arrays.append(library.ArraySettings(**how))
        threads = self.settings.get("threads", 2)
        return library.StreamSettings(store_path=self.root, arrays=arrays, max_threads=threads)

    def _dimensions(self, spec: dict[str, Any]) -> list[Any]:
        kinds = self.library.DimensionType
        names = "tczyx"[-len(spec["shape"]) :]
        kind = {"t": kinds.TIME, "c": kinds.CHANNEL}
        shards = spec.get("shards") or spec["chunks"]
        found = []
        for axis, name in enumerate(names):
            size, chunk = spec["shape"][axis], spec["chunks"][axis]
            found.append(
                self.library.Dimension(
                    name=name,
                    kind=kind.get(name, kinds.SPACE),
                    array_size_px=0 if axis == 0 else size,  # the first axis grows
                    chunk_size_px=chunk,
                    shard_size_chunks=shards[axis] // chunk,
                )
            )
        return found
