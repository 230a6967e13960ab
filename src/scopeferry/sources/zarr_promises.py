"""What the attributes of OME-Zarr groups promise (images, wells, fields, levels, series, labels), and their axes. Pure.

OME-Zarr 0.1 to 0.4 have their keys in the attributes themselves, 0.5 below ``ome``: ``multiscales``, ``plate``,
``well``, ``labels`` (of a group of that name) and ``series`` (of a group ``OME``, counted from the folder it lies in:
the layout of bioformats2raw). What is not as the specifications say promises nothing.

>>> promises("B/3", {"well": {"images": [{"path": "0"}, {"path": "../x"}]}})
(Promise(kind='field', path='B/3/0'),)
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Promise(NamedTuple):
    """A node that has to be there. ``kind``: well, field, level, series or label; ``path`` from the root."""

    kind: str
    path: str


def promises(group: str, attributes: Mapping[str, Any]) -> tuple[Promise, ...]:
    """What the attributes of the group at this path promise, each once."""
    return tuple(dict.fromkeys(_promises(group, attributes)))


def _promises(group: str, attributes: Mapping[str, Any]) -> Iterator[Promise]:
    folder, _, name = group.rpartition("/")
    for found in _places(attributes):
        for scales in _dicts(found.get("multiscales")):
            yield from _below(group, "level", _paths(scales.get("datasets")))
        yield from _below(group, "well", _paths(_dict(found.get("plate")).get("wells")))
        yield from _below(group, "field", _paths(_dict(found.get("well")).get("images")))
        if name == "labels":
            yield from _below(group, "label", _strings(found.get("labels")))
        if name == "OME":
            yield from _below(folder, "series", _strings(found.get("series")))


def first_axes(group: str, attributes: Mapping[str, Any]) -> dict[str, str]:
    """Path of each level of the images of this group -> the name of its first axis.

    >>> first_axes("a", {"multiscales": [{"axes": [{"name": "t"}, {"name": "y"}], "datasets": [{"path": "0"}]}]})
    {'a/0': 't'}
    """
    found: dict[str, str] = {}
    for place in _places(attributes):
        for scales in _dicts(place.get("multiscales")):
            axes = scales.get("axes")
            first = axes[0] if isinstance(axes, list) and axes else None
            name = first.get("name") if isinstance(first, Mapping) else first
            if isinstance(name, str) and name:
                levels = _below(group, "level", _paths(scales.get("datasets")))
                found.update((level.path, name) for level in levels)
    return found


def is_plate(attributes: Mapping[str, Any]) -> bool:
    """Are these the attributes of a plate?"""
    return any(isinstance(found.get("plate"), Mapping) for found in _places(attributes))


def _places(attributes: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield attributes
    yield _dict(attributes.get("ome"))


def _below(group: str, kind: str, paths: Iterator[str]) -> Iterator[Promise]:
    for path in paths:
        inside = posixpath.normpath(path)
        if path and not path.startswith("/") and inside != ".." and not inside.startswith("../"):
            joined = posixpath.normpath(posixpath.join(group, path))
            yield Promise(kind, "" if joined == "." else joined)


def _dict(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}


def _dicts(found: object) -> Iterator[Mapping[str, Any]]:
    for one in found if isinstance(found, list) else ():
        if isinstance(one, Mapping):
            yield one


def _paths(found: object) -> Iterator[str]:
    for one in _dicts(found):
        if isinstance(path := one.get("path"), str):
            yield path


def _strings(found: object) -> Iterator[str]:
    for one in found if isinstance(found, list) else ():
        if isinstance(one, str):
            yield one
