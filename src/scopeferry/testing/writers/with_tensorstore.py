"""Write with tensorstore. Settings: ``lock`` is its ``file_io_locking.mode``: ``os`` (default), ``lockfile``, ``none``.

Where a chunk is written for the second time, tensorstore reads it first; its cache holds nothing here, so each `put` is
on the disk when it returns. It knows no groups: their metadata is written as plain files, which is what its users do.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from typing import Any


class Writer:
    """Arrays of one store."""

    def __init__(self, root: str, settings: dict[str, Any]) -> None:
        self.root = root
        self.library: Any = importlib.import_module("tensorstore")
        self.numpy: Any = importlib.import_module("numpy")
        self.context = self.library.Context(
            {"file_io_locking": {"mode": settings.get("lock", "os")}, "cache_pool": {"total_bytes_limit": 0}}
        )
        self.arrays: dict[str, Any] = {}

    def group(self, path: str, zarr_format: int, attributes: dict[str, Any]) -> None:
        """Group metadata, by rename."""
        if zarr_format == 3:
            self._json(path, "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes})
            return
        self._json(path, ".zgroup", {"zarr_format": 2})
        if attributes:
            self._json(path, ".zattrs", attributes)

    def array(self, path: str, spec: dict[str, Any]) -> None:
        """A new array."""
        version = spec["zarr_format"]
        how = {
            "driver": "zarr3" if version == 3 else "zarr",
            "kvstore": {"driver": "file", "path": os.path.join(self.root, *path.split("/"))},
            "metadata": _metadata_v3(spec) if version == 3 else _metadata_v2(spec, self.numpy),
        }
        self.arrays[path] = self.library.open(how, create=True, delete_existing=False, context=self.context).result()
        if version == 2 and spec.get("attributes"):
            self._json(path, ".zattrs", spec["attributes"])

    def put(self, path: str, start: Sequence[int], shape: Sequence[int], data: bytes | None) -> None:
        """Pixels of a region; None is the fill value."""
        array = self.arrays[path]
        region = tuple(slice(begin, begin + size) for begin, size in zip(start, shape, strict=True))
        dtype = array.dtype.numpy_dtype
        if data is None:
            value = self.numpy.full(shape, array.fill_value if array.fill_value is not None else 0, dtype)
        else:
            value = self.numpy.frombuffer(data, dtype).reshape(shape)
        array[region].write(value).result()

    def resize(self, path: str, shape: Sequence[int]) -> None:
        """Another shape; chunks outside it are deleted."""
        self.arrays[path] = self.arrays[path].resize(exclusive_max=list(shape)).result()

    def attributes(self, path: str, attributes: dict[str, Any]) -> None:
        """User attributes, rewritten by rename beside tensorstore, which does not know them."""
        folder = os.path.join(self.root, *path.split("/"))
        if not os.path.exists(os.path.join(folder, "zarr.json")):
            self._json(path, ".zattrs", attributes)
            return
        with open(os.path.join(folder, "zarr.json"), encoding="utf-8") as file:
            metadata = json.load(file)
        self._json(path, "zarr.json", {**metadata, "attributes": attributes})

    def close(self) -> None:
        """Nothing is left to do."""
        self.arrays.clear()

    def _json(self, path: str, name: str, content: dict[str, Any]) -> None:
        folder = os.path.join(self.root, *path.split("/"))
        os.makedirs(folder, exist_ok=True)
        temporary = os.path.join(folder, f"{name}.tmp")
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(content, file)
        os.replace(temporary, os.path.join(folder, name))


def _metadata_v3(spec: dict[str, Any]) -> dict[str, Any]:
    codecs: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    if spec.get("compressor"):
        codecs.append({"name": "zstd", "configuration": {"level": 1, "checksum": False}})
    grid = spec.get("shards") or spec["chunks"]
    if spec.get("shards"):
        codecs = [_sharding(spec, spec["chunks"], codecs)]
        if spec.get("between"):
            codecs = [_sharding(spec, spec["between"], codecs)]
    return {
        "shape": spec["shape"],
        "data_type": spec["dtype"],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": grid}},
        "chunk_key_encoding": {
            "name": spec.get("encoding", "default"),
            "configuration": {"separator": spec.get("separator", "/")},
        },
        "codecs": codecs,
        "fill_value": spec.get("fill", 0),
        "attributes": spec.get("attributes") or {},
    }


def _sharding(spec: dict[str, Any], chunks: Sequence[int], codecs: list[dict[str, Any]]) -> dict[str, Any]:
    index: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    if spec.get("index_checksum", True):
        index.append({"name": "crc32c"})
    how = {
        "chunk_shape": chunks,
        "codecs": codecs,
        "index_codecs": index,
        "index_location": spec.get("index_location", "end"),
    }
    return {"name": "sharding_indexed", "configuration": how}


def _metadata_v2(spec: dict[str, Any], numpy: Any) -> dict[str, Any]:
    return {
        "shape": spec["shape"],
        "chunks": spec["chunks"],
        "dtype": numpy.dtype(spec["dtype"]).newbyteorder("<").str,
        "compressor": {"id": "zlib", "level": 1} if spec.get("compressor") else None,
        "filters": None,
        "order": "C",
        "fill_value": spec.get("fill", 0),
        "dimension_separator": spec.get("separator", "."),
    }
