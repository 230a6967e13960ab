"""Targets of one run, looked at together before anything is touched.

Two may not write into one place, none into its own source, and no chain of copies may come back to where it began. A
chain alone is welcome: a second `live` may follow the copy that the first one makes. Places are compared by name and
by device and inode, so links, bind mounts and names that differ in case do not hide that they are one.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import product

from scopeferry.config import EXPECT, nearest
from scopeferry.copying.target import LiveSettings, Target
from scopeferry.errors import UsageError
from scopeferry.logs import printable
from scopeferry.sources.finish import parse

RECORDS = ".scopeferry"
NEVER = {errno.ENAMETOOLONG, errno.ELOOP}  # waiting does not help

_Key = tuple[object, ...]


def check(targets: Sequence[Target], settings: LiveSettings | None = None) -> tuple[Target, ...]:
    """The targets, if they can be followed side by side; raises UsageError naming what is in the way."""
    if not targets:
        raise UsageError("no target", code="SF-100", hint="name at least one source and destination")
    for target in targets:
        _check_source(target)
        _check_destination(target)
        check_evidence(target)
    if settings is not None and len(targets) > 1:
        for what in ("journal", "records"):
            if getattr(settings, what) is not None:
                message = f"--{what} names one place, and there are {len(targets)} targets"
                raise UsageError(message, code="SF-105", hint=f"leave --{what} out")
    places = [_Places(target) for target in targets]
    for place in places:
        _check_own(place)
    _check_apart(places)
    _check_cycles(places)
    return tuple(targets)


class _Places:
    """Where a target reads and writes: the keys of its ends, and those of all that they lie in."""

    def __init__(self, target: Target) -> None:
        self.target = target
        source, destination = os.path.realpath(target.source), os.path.realpath(target.destination)
        self.source, self.above_source = _keys(source)
        self.destination, self.above_destination = _keys(destination)
        self.records, _ = _keys(destination + RECORDS)


def _keys(path: str) -> tuple[set[_Key], set[_Key]]:
    """What names this place, and what names it and every folder above it."""
    own: set[_Key] = set()
    above: set[_Key] = set()
    deepest: _Key = ()  # of the folders that are there
    below: _Key = ()
    for folder in reversed([*_upwards(path)]):
        if (found := _identity(folder)) is not None:
            deepest, below = found, ()
        else:
            below = (*below, os.path.normcase(os.path.basename(folder)))
        own = {("path", os.path.normcase(folder)), ("inode", *deepest, *below)}
        above |= own
    return own, above


def _upwards(path: str) -> Iterator[str]:
    while True:
        yield path
        up = os.path.dirname(path)
        if up == path:
            return
        path = up


def _identity(folder: str) -> _Key | None:
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found.st_ino else None


# -- one target --------------------------------------------------------------------------------------------------------


def _check_source(target: Target) -> None:
    path = target.source
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno in NEVER or not target.wait_for_source:
            message = f"source is not there: {printable(path)}"
            raise UsageError(message, code="SF-101", path=path) from error
        return
    if not stat.S_ISDIR(mode):
        raise UsageError(f"the source is no folder: {printable(path)}", code="SF-118", path=path)


def _check_destination(target: Target) -> None:
    path = target.destination
    if os.path.lexists(path) and not os.path.isdir(path):
        message = f"the source is a folder, the destination is none: {printable(path)}"
        raise UsageError(message, code="SF-112", path=path)


def check_evidence(target: Target) -> None:
    """Raise UsageError (SF-105) if what shall say that it is over can say nothing."""
    _check_expect(target)
    check_rules(target.finish)


def _check_expect(target: Target) -> None:
    if target.expect in EXPECT or os.path.isfile(target.expect):
        return
    near = nearest(target.expect, EXPECT)
    message = f"--expect: {printable(target.expect)} is none of {', '.join(EXPECT)}, and no file"
    raise UsageError(message, code="SF-105", hint=f"did you mean {near}?" if near else "name a file of chunk keys")


def check_rules(texts: Sequence[str]) -> None:
    """Raise UsageError (SF-105) for a finish rule that nobody can evaluate: it would be awaited for ever."""
    for rule in parse(texts).others:
        raise UsageError(
            f"finish rule {rule}: no such profile in this version", code="SF-105", hint="name another rule"
        )


def _check_own(place: _Places) -> None:
    source, destination = printable(place.target.source), printable(place.target.destination)
    if place.source & place.destination:
        raise UsageError(f"source and destination are the same folder: {source}", code="SF-104", path=destination)
    if place.source & place.above_destination:
        raise UsageError(f"the destination lies in the source: {destination}", code="SF-103", path=destination)
    if place.destination & place.above_source:
        raise UsageError(f"the source lies in the destination: {source}", code="SF-103", path=source)
    if place.records & place.above_source:
        message = f"the source lies in the record folder of the destination: {source}"
        raise UsageError(message, code="SF-113", path=source)


# -- all of them -------------------------------------------------------------------------------------------------------


def _check_apart(places: Sequence[_Places]) -> None:
    """No destination may be, or lie in, another one or its records."""
    data: dict[_Key, Target] = {}
    records: dict[_Key, Target] = {}
    for place in places:
        if place.destination & data.keys():
            message = f"two targets have one destination: {printable(place.target.destination)}"
            raise UsageError(message, code="SF-117", path=place.target.destination)
        data.update(dict.fromkeys(place.destination, place.target))
        records.update(dict.fromkeys(place.records, place.target))
    for place in places:
        for key, (what, taken) in product(place.above_destination, (("", data), ("the records of ", records))):
            other = taken.get(key, place.target)
            if other is not place.target:
                inner, outer = printable(place.target.destination), printable(other.destination)
                message = f"one destination lies in another: {inner} in {what}{outer}"
                raise UsageError(message, code="SF-117", path=place.target.destination)


def _check_cycles(places: Sequence[_Places]) -> None:
    """What one target writes, another may read; but not so that it comes back."""
    by_destination: dict[_Key, int] = {key: at for at, place in enumerate(places) for key in place.destination}
    by_source: dict[_Key, list[int]] = {}
    for at, place in enumerate(places):
        for key in place.source:
            by_source.setdefault(key, []).append(at)
    before: dict[int, set[int]] = {at: set() for at in range(len(places))}
    for at, place in enumerate(places):
        before[at].update(by_destination[key] for key in place.above_source if key in by_destination)
        for key in place.above_destination:
            for reader in by_source.get(key, ()):
                before[reader].add(at)
    try:
        TopologicalSorter(before).prepare()
    except CycleError as error:
        names = " -> ".join(printable(places[at].target.destination) for at in error.args[1])
        raise UsageError(f"the targets copy in a circle: {names}", code="SF-117") from None
