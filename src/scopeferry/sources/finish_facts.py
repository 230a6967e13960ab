"""All that one look at a target can see of whether it is over: values, and how they are told. Pure."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from scopeferry.sources.complete import Complete

RUNNING, FINISHED, ABORTED, UNKNOWN = "running", "finished", "aborted", "unknown"
#: The strongest first.
KINDS = ("declared", "marker", "handle", "structural", "quiet")

NETWORK_CLOCK_S = 120.0  # how far the clock of a server may be off, and what its mount shows late
DEAD_S, DEAD_SETTLES = 600.0, 60
GRID_S, GRID_GAPS = 600.0, 3
WAY_OUT_S, WAY_OUT_GAPS, PART_FULL_S = 1800.0, 10, 6 * 3600.0
OPEN_S = 3600.0  # an open file that was not changed for longer says nothing


@dataclass(frozen=True, slots=True)
class Evidence:
    """One thing that says how it stands: `kind` of KINDS; `verdict` finished, running or aborted; since when, as in
    `Facts`.
    """

    kind: str
    verdict: str
    detail: str
    at: float


class Marker(NamedTuple):
    """A finish marker that is there. `rule`: the glob it was found by, empty for the default rule. `left_over`: it is
    older than every array's metadata, so an earlier acquisition left it.
    """

    path: str
    seen_s: float
    rule: str = ""
    left_over: bool = False


class Listed(NamedTuple):
    """What a list of files (``manifest=FILE``) says. `there`: it is there and could be read; `total` files are in it;
    `absent` are those that are not there, or differ from the digest in the list. `whole`: nobody writes the list.
    """

    file: str
    there: bool = True
    total: int = 0
    absent: Sequence[str] = ()
    whole: bool = True

    @property
    def satisfied(self) -> bool:
        """Is everything there?"""
        return self.there and self.whole and self.total > 0 and not self.absent


@dataclass(frozen=True, slots=True)
class Facts:
    """All that one look at a target saw. Times are in seconds of one clock that does not jump, reckoned to look like
    ``time.time()``; paths are relative to the source; sequences may be cut, but never to nothing.

    ``quiet_s``: how long nothing in the source has changed, see `Quiet`. ``gap_s``: the longest pause between two
    chunks so far. ``listed``: everything has been listed at least once, and the source is there. ``begun``: there is at
    least one file. ``newest``: what changed last.

    ``declared_by``: who said that it is finished. ``complete`` and ``complete_left_over``: ``complete.json``, and
    whether it is older than every array's metadata. ``manifests``: one for each rule ``manifest=FILE``.

    ``walk_begun_s``: when the newest full walk began that found nothing new and could list everything, None if there is
    none; ``in_flight`` counts what is found and not yet copied.

    ``writer_alive``: of the process ``writer_pid``, None if there is none; ``writer_seen``: it was seen alive.
    ``locks``: those held now, of chunks too. ``lock_released``: a lock that stood for the *whole store* (never one of a
    single chunk), was held and is free now. ``open_files``: files of in-place writers that are open for writing ->
    seconds since their last change.

    ``torn``: shards whose index is not valid. ``temporary``: temporary names and lock files. ``unparsable``: metadata
    that are no JSON. ``held``: of all these, those that somebody has open or locked, or may have, as long as it was not
    asked; ``blind``: it cannot be asked here. ``strays``: names that look temporary, of no known writer, no chunk and
    no metadata, and that are in use. ``promised``: images, wells, fields, levels and series that the metadata name and
    that are not there.

    ``hierarchy``: there are Zarr metadata. ``expected`` chunks by all grids, of them ``there`` (in the grid, whole) and
    ``empty`` (absent with positive evidence). ``grew``: arrays that grew, or whose chunks came in several shots, while
    they were watched. ``expect``: ``auto``, ``dense``, ``sparse`` or ``file``; then the file lists ``list_total``
    chunks, of which ``list_absent`` are neither there nor empty.

    ``extra``: what rules of others have found, ``extra_awaited``: what they wait for.
    """

    now_s: float
    quiet_s: float
    gap_s: float = 0.0
    settle_s: float = 10.0
    settle_given: bool = False
    listed: bool = True
    begun: bool = True
    newest: str = ""
    declared_by: str = ""
    complete: Complete | None = None
    complete_left_over: bool = False
    manifests: Sequence[Listed] = ()
    markers: Sequence[Marker] = ()
    walk_begun_s: float | None = None
    in_flight: int = 0
    writer_pid: int | None = None
    writer_alive: bool | None = None
    writer_seen: bool = True
    locks: Sequence[str] = ()
    lock_released: str = ""
    open_files: Mapping[str, float] = field(default_factory=dict)
    torn: Sequence[str] = ()
    temporary: Sequence[str] = ()
    unparsable: Sequence[str] = ()
    held: Collection[str] = ()
    blind: bool = False
    strays: Sequence[str] = ()
    promised: Sequence[str] = ()
    hierarchy: bool = False
    expected: int = 0
    there: int = 0
    empty: int = 0
    grew: Sequence[str] = ()
    expect: str = "auto"
    list_total: int = 0
    list_absent: int = 0
    extra: Sequence[Evidence] = ()
    extra_awaited: Sequence[str] = ()

    @property
    def lacking(self) -> int:
        """Chunks of the grids that are neither there nor known to be empty."""
        return max(0, self.expected - self.there - self.empty)

    @property
    def grid_full(self) -> bool:
        """Is every chunk of every array there, every shard whole, and all that the metadata promise?"""
        return self.expected > 0 and not (self.lacking or self.torn or self.promised)

    @property
    def list_satisfied(self) -> bool:
        """Is every chunk there that the file of ``--expect`` lists?"""
        return self.expect == "file" and self.list_total > 0 and not (self.list_absent or self.torn)

    @property
    def short(self) -> tuple[int, int] | None:
        """(absent, expected) chunks where absence matters and there is some; else None."""
        if self.expect == "dense" and self.lacking:
            return self.lacking, self.expected
        return (self.list_absent, self.list_total) if self.expect == "file" and self.list_absent else None

    @property
    def dead_s(self) -> float:
        """After so much quiet what is not right is dead, if nobody holds it; where nobody can be asked, after
        the time of the way out.
        """
        return max(DEAD_S, DEAD_SETTLES * self.settle_s, self.way_out_s if self.blind else 0.0)

    @property
    def way_out_s(self) -> float:
        """After so much quiet it is over, though nothing says so."""
        return max(WAY_OUT_S, WAY_OUT_GAPS * self.gap_s, PART_FULL_S if self.lacking else 0.0)

    @property
    def grid_s(self) -> float:
        """So much quiet is needed beside a full grid alone, where nobody asked for it."""
        return max(GRID_S, GRID_GAPS * self.gap_s, self.settle_s)


class Quiet:
    """How long nothing in the source has changed: by the newest change time in the source at first sight, by our own
    clock from then on, so that no jump of the clock counts. On network mounts only what exceeds a clock allowance.
    """

    def __init__(self, *, network: bool) -> None:
        self._allowance = NETWORK_CLOCK_S if network else 0.0
        self._change: tuple[int, float] | None = None
        self._age = self._at = 0.0

    def look(self, newest_ns: int, changed_s: float, wall_s: float | None = None, now_s: float | None = None) -> float:
        """Seconds of quiet. `newest_ns` is the newest change in the source, `changed_s` when we saw it
        (``time.monotonic``); `wall_s` and `now_s` are ``time.time()`` and ``time.monotonic()``.

        >>> quiet = Quiet(network=False)
        >>> quiet.look(70 * 10**9, 5.0, wall_s=100.0, now_s=5.0), quiet.look(70 * 10**9, 5.0, wall_s=9e9, now_s=7.0)
        (30.0, 32.0)
        """
        wall_s = time.time() if wall_s is None else wall_s
        now_s = time.monotonic() if now_s is None else now_s
        if self._change != (newest_ns, changed_s):
            self._change = newest_ns, changed_s
            self._age, self._at = max(now_s - changed_s, wall_s - newest_ns / 1e9), now_s
        return max(0.0, self._age + now_s - self._at - self._allowance)


def some(paths: Collection[str]) -> str:
    """The first of some paths, and how many more."""
    first = next(iter(paths))
    return first if len(paths) == 1 else f"{first} and {len(paths) - 1:,} more"


def unchanged(facts: Facts) -> str:
    """How long it has been quiet."""
    return f"nothing changed for {span(facts.quiet_s)}"


def span(seconds: float) -> str:
    """A time in at most two units, rounded down.

    >>> span(0.14), span(10), span(600), span(1350), span(21600), span(200_000)
    ('0.1 s', '10 s', '10 min', '22 min 30 s', '6 h', '2 d 7 h')
    """
    if seconds < 10 and seconds != int(seconds):
        return f"{int(seconds * 10) / 10:g} s"
    whole = int(seconds)
    parts: list[str] = []
    for unit, per in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, whole = divmod(whole, per)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
    return " ".join(filter(None, parts[:2])) or "0 s"
