"""What `live` can be told: of one target, and of all of them together. Values only; nothing is touched here.

Values may be written as on the command line; they are held parsed. Overlaps between targets, and what lies where, are
looked at by ``jobs/targets.py``.

>>> target = Target("/acq/a.zarr", "/mnt/a.zarr", finish=["marker=done"], settle_s="1m")
>>> target.name, target.finish, target.settle_s, target.settle_given
('a.zarr', ('marker=done',), 60.0, True)
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any

from scopeferry.config import DEFAULTS, read
from scopeferry.errors import UsageError

_LIVE = DEFAULTS["live"]
_NOT_GIVEN: Any = None
_OPTIONAL = {"writer-pid", "patience", "limit", "journal", "records"}  # None: nobody said


@dataclass(frozen=True, slots=True)
class Target:
    """One dataset to be followed: from where, to where, and how.

    ``destination`` is the copy itself, not its parent; ``name`` is by default its last part. ``finish`` holds rules of
    ``sources/finish.py``. Times are in seconds; ``patience_s`` None means 1 h for a side that is gone, 60 s for room.
    ``expect`` is ``auto``, ``dense``, ``sparse`` or a file of chunk keys. ``settle_given``: was ``settle_s`` asked for?
    ``~`` is expanded in paths. Raises UsageError for a value that is not understood.
    """

    source: str
    destination: str
    name: str = ""
    finish: tuple[str, ...] = _LIVE["finish"]
    settle_s: float = _NOT_GIVEN
    settle_given: bool = _NOT_GIVEN
    expect: str = _LIVE["expect"]
    writer: str = _LIVE["writer"]
    writer_pid: int | None = None
    sleep_time_s: float = _LIVE["sleep-time"]
    wait_for_source: bool = _LIVE["wait-for-source"]
    verify: str = _LIVE["verify"]
    on_conflict: str = _LIVE["on-conflict"]
    stale: str = _LIVE["stale"]
    patience_s: float | None = None
    watch: str = _LIVE["watch"]
    scan_interval_s: float = _LIVE["scan-interval"]

    def __post_init__(self) -> None:
        put = object.__setattr__
        for name in ("source", "destination"):
            put(self, name, _path(name, getattr(self, name)))
        put(self, "name", self.name or _last_part(self.destination))
        if self.settle_given is _NOT_GIVEN:
            put(self, "settle_given", self.settle_s is not _NOT_GIVEN)
        if self.settle_s is _NOT_GIVEN:
            put(self, "settle_s", _LIVE["settle"])
        _normalize(self)
        if self.expect not in {"auto", "dense", "sparse"}:
            put(self, "expect", os.path.expanduser(self.expect))


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """What holds for all targets of a run.

    ``workers`` copies go on at a time, ``limit`` is in bytes/s, both of all targets together; ``select`` holds
    ("include" or "exclude", glob) in the order given. Raises UsageError (SF-105) for a value that is not understood.
    """

    workers: int = _LIVE["workers"]
    limit: float | None = None
    gentle: str = _LIVE["gentle"]
    select: tuple[tuple[str, str], ...] = ()
    dry_run: bool = False
    journal: str | None = None
    records: str | None = None

    def __post_init__(self) -> None:
        _normalize(self)


def option(field: str) -> str:
    """The option that a field is given by.

    >>> option("scan_interval_s")
    'scan-interval'
    """
    return field.removesuffix("_s").replace("_", "-")


def _normalize(settings: Target | LiveSettings) -> None:
    for field in fields(settings):
        key, value = option(field.name), getattr(settings, field.name)
        if key in _LIVE and key != "select" and not (value is None and key in _OPTIONAL):
            object.__setattr__(settings, field.name, read("live", key, value))


def _path(name: str, given: Any) -> str:
    path = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise UsageError(f"{name}: not a path: {given!r}", code="SF-105")
    return os.path.expanduser(path)


def _last_part(path: str) -> str:
    return os.path.basename(os.path.abspath(path)) or path
