"""Write with zarr-python, whichever version this interpreter has: 2.x, 3.0.x, or 3.1 and newer.

Settings: ``pipeline`` is a codec pipeline (``zarrs.ZarrsCodecPipeline``), which then writes the chunks itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any


class Writer:
    """Arrays and groups of one store."""

    def __init__(self, root: str, settings: dict[str, Any]) -> None:
        self.root = root
        self.library: Any = importlib.import_module("zarr")
        self.numpy: Any = importlib.import_module("numpy")
        self.old = self.library.__version__.startswith("2.")
        if settings.get("pipeline"):
            importlib.import_module(settings["pipeline"].rpartition(".")[0])
            self.library.config.set({"codec_pipeline.path": settings["pipeline"]})
        self.arrays: dict[str, Any] = {}

    def group(self, path: str, zarr_format: int, attributes: dict[str, Any]) -> None:
        """A group with its attributes."""
        if self.old:
            made = self.library.open_group(self._store("."), mode="a", path=path)
        else:
            made = self.library.open_group(self.root, mode="a", path=path, zarr_format=zarr_format)
        if attributes:
            made.attrs.update(attributes)

    def array(self, path: str, spec: dict[str, Any]) -> None:
        """A new array."""
        self.arrays[path] = self._array_v2(path, spec) if self.old else self._array_v3(path, spec)
        if self.old and spec.get("attributes"):
            self.arrays[path].attrs.put(spec["attributes"])

    def put(self, path: str, start: Sequence[int], shape: Sequence[int], data: bytes | None) -> None:
        """Pixels of a region; None is the fill value."""
        array = self.arrays[path]
        region = tuple(slice(begin, begin + size) for begin, size in zip(start, shape, strict=True))
        if data is None:
            value = self.numpy.full(shape, array.fill_value, array.dtype)
        else:
            value = self.numpy.frombuffer(data, array.dtype).reshape(shape)
        array[region or ...] = value

    def resize(self, path: str, shape: Sequence[int]) -> None:
        """Another shape; chunks outside it are deleted."""
        self.arrays[path].resize(tuple(shape))

    def attributes(self, path: str, attributes: dict[str, Any]) -> None:
        """User attributes of an array or a group that is there."""
        if path in self.arrays:
            self.arrays[path].attrs.put(attributes)
        elif self.old:
            self.library.open_group(self._store("."), mode="r+", path=path).attrs.put(attributes)
        else:
            self.library.open_group(self.root, mode="r+", path=path).attrs.put(attributes)

    def close(self) -> None:
        """Nothing is left to do."""
        self.arrays.clear()

    def _store(self, separator: str) -> Any:
        return self.library.DirectoryStore(self.root, dimension_separator=separator)

    def _array_v2(self, path: str, spec: dict[str, Any]) -> Any:
        if spec["zarr_format"] != 2:
            raise NotImplementedError("zarr-python 2 writes format 2")
        separator = spec.get("separator", ".")
        codecs: Any = importlib.import_module("numcodecs")
        return self.library.create(
            shape=tuple(spec["shape"]),
            chunks=tuple(spec["chunks"]) or None,
            dtype=spec["dtype"],
            compressor=codecs.Zlib(level=1) if spec.get("compressor") else None,
            fill_value=spec.get("fill", 0),
            store=self._store(separator),
            path=path,
            dimension_separator=separator,
            write_empty_chunks=False,
        )

    def _array_v3(self, path: str, spec: dict[str, Any]) -> Any:
        version = spec["zarr_format"]
        codecs: Any = importlib.import_module("zarr.codecs" if version == 3 else "numcodecs")
        compressor = codecs.ZstdCodec(level=1) if version == 3 else codecs.Zlib(level=1)
        shards: Any = tuple(spec["shards"]) if spec.get("shards") else None
        if shards and spec.get("index_location", "end") != "end":
            shards = {"shape": shards, "index_location": spec["index_location"]}
        encoding = {"name": spec.get("encoding", "default"), "separator": spec.get("separator", "/")}
        return self.library.create_array(
            self.root,
            name=path or None,
            shape=tuple(spec["shape"]),
            chunks=tuple(spec["chunks"]),
            shards=shards,
            dtype=spec["dtype"],
            compressors=(compressor,) if spec.get("compressor") else None,
            filters=None,
            fill_value=spec.get("fill", 0),
            zarr_format=version,
            attributes=spec.get("attributes") or None,
            chunk_key_encoding=encoding if version == 3 else {"name": "v2", "separator": spec.get("separator", ".")},
        )
