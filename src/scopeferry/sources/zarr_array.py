"""One array while it is written: what happens to its chunk files, as states of its units. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from scopeferry.sources.complete import ArrayEnd
from scopeferry.sources.zarr_layout import ArrayLayout, Index
from scopeferry.sources.zarr_truth import BY_FOLDER, EMPTY, MISSING, WRITTEN, Truth, boxes, ravel, rows

MOST_OUTSIDE = 1 << 22  # bytes kept of chunks outside the grid
OUTSIDE_BYTES = 100  # about what one of these takes
_STRETCH = re.compile(rb"\x00+|\x01+")


class WatchedArray:
    """``truth`` is None where the layout is not `counted`. ``grew``, ``shots``: it grew, or its chunks came in several
    shots, while it was watched. ``noted``: there is evidence that a restart would lose. ``stands``: so do its metadata.
    """

    __slots__ = (
        "_ended",
        "_forgot",
        "_outside",
        "_outside_bytes",
        "grew",
        "layout",
        "noted",
        "shots",
        "stands",
        "truth",
    )

    def __init__(self, layout: ArrayLayout) -> None:
        self.layout = layout
        self.truth = Truth(layout.units) if layout.counted else None
        self.grew = self.shots = self.noted = False
        self.stands = True
        self._outside: dict[Index, bytes] = {}  # chunk files with units outside the grid
        self._outside_bytes = 0
        self._forgot = False
        self._ended = False

    def index(self, key: str) -> Index | None:
        """Which chunk file this is; None if it is none, or the array's metadata went."""
        return self.layout.index(key) if self.stands else None

    # -- the grid ------------------------------------------------------------------------------------------------------

    def resize(self, layout: ArrayLayout) -> bool:
        """A layout with the same chunks; must its files be listed again?"""
        if any(now > before for now, before in zip(layout.shape, self.layout.shape, strict=True)):
            self.grew = self.noted = True
        changed, self.layout = layout.shape != self.layout.shape, layout
        if self.truth is None or not changed:
            return False
        lost, every = self.truth.resize(layout.units, MOST_OUTSIDE // OUTSIDE_BYTES)
        forgot, self._forgot = self._forgot, not every or bool(lost and layout.sharding)
        for index in lost if layout.sharding is None else ():
            self._keep(index, b"")
        outside, self._outside, self._outside_bytes = self._outside, {}, 0
        for index, inner in outside.items():
            self._put(index, inner)
        return forgot

    def _keep(self, index: Index, inner: bytes) -> None:
        self._drop(index)
        if self._outside_bytes > MOST_OUTSIDE:
            self._forgot = True
            return
        self._outside[index] = inner
        self._outside_bytes += OUTSIDE_BYTES + len(inner)

    def _drop(self, index: Index) -> None:
        before = self._outside.pop(index, None)
        if before is not None:
            self._outside_bytes -= OUTSIDE_BYTES + len(before)

    def _put(self, index: Index, inner: bytes) -> None:
        if self.layout.sharding is None:
            self.present(index)
        else:
            self.shard(index, inner)

    # -- what happens --------------------------------------------------------------------------------------------------

    def note_shots(self) -> None:
        """A chunk changed after it had come."""
        self.noted = self.noted or not self.shots
        self.shots = True

    def present(self, index: Index) -> None:
        """A chunk file is there, which is no shard."""
        assert self.truth is not None
        if not self.layout.inside(index):
            self._keep(index, b"")
        elif self.truth.put(index, WRITTEN) in (EMPTY, BY_FOLDER):
            self.noted = True

    def shard(self, index: Index, inner: bytes) -> None:
        """A shard is there with these of its inner chunks; those that it held before were cleared."""
        there = 0
        for at, flags in self._stretches(index, inner):
            there += flags.count(1)
            self._take(at, flags)
        if there < inner.count(1):
            self._keep(index, inner)
        else:
            self._drop(index)

    def _take(self, at: int, flags: bytes) -> None:
        assert self.truth is not None
        states = self.truth.states
        for match in _STRETCH.finditer(flags):
            first, behind = at + match.start(), at + match.end()
            if match[0][0]:
                evidence = states.counts[EMPTY] + states.counts[BY_FOLDER]
                states.fill(first, behind, WRITTEN)
                self.noted = self.noted or evidence != states.counts[EMPTY] + states.counts[BY_FOLDER]
                continue
            for number in range(first, behind):
                if states[number] == WRITTEN:
                    states.put(number, EMPTY)
                    self.noted = True

    def _stretches(self, index: Index, inner: bytes) -> Iterator[tuple[int, bytes]]:
        """(number of a unit in C order of the grid, flags from there on) for all of a shard that is in the grid."""
        grid, many = self.layout.units, self.layout.sharding.units if self.layout.sharding is not None else ()
        start, stop = self._box(index)
        if any(first >= behind for first, behind in zip(start, stop, strict=True)):
            return
        axis, length = len(grid), 1  # the axes from `axis` on are whole in shard and grid alike
        while axis and many[axis - 1] == grid[axis - 1]:
            axis -= 1
            length *= grid[axis]
        if not axis:
            yield 0, inner
            return
        cut, span = axis - 1, (stop[axis - 1] - start[axis - 1]) * length
        for outer in boxes(start[:cut], stop[:cut]):
            local = [i - first for i, first in zip(outer, start, strict=False)]
            place = ravel((*local, 0), many[:axis]) * length
            yield ravel((*outer, start[cut]), grid[:axis]) * length, inner[place : place + span]

    def _box(self, index: Index) -> tuple[Index, Index]:
        """First and behind the last unit of a chunk file along each axis, inside the grid."""
        many = self.layout.sharding.units if self.layout.sharding is not None else (1,) * len(index)
        grid = self.layout.units
        start = tuple(i * size for i, size in zip(index, many, strict=True))
        stop = tuple(min(first + size, end) for first, size, end in zip(start, many, grid, strict=True))
        return start, stop

    def _numbers(self, index: Index) -> Iterator[int]:
        """The units of a chunk file in the grid."""
        for first, behind in rows(*self._box(index), self.layout.units):
            yield from range(first, behind)

    def empty(self, index: Index, *, cleared: bool) -> bool:
        """A chunk file is empty by evidence: it was `cleared`, or locked and never written. Did that tell anything?"""
        assert self.truth is not None
        if cleared:
            self._drop(index)
            self.note_shots()
        elif self._ended:
            return False
        told = False
        for at in self._numbers(index):
            if self.truth.states[at] in ((MISSING, BY_FOLDER, WRITTEN) if cleared else (MISSING, BY_FOLDER)):
                self.truth.states.put(at, EMPTY)
                told = self.noted = True
        return told

    def folder_empty(self, path: str) -> bool:
        """A folder below the array's is there and empty: does it hold exactly one chunk of the grid, empty by it?"""
        layout = self.layout
        if self.truth is None or layout.keys is None or layout.keys.separator != "/" or not layout.rank or self._ended:
            return False
        index = layout.index(f"{path}/0")
        if index is None or not layout.inside(index) or layout.grid[-1] != 1:
            return False
        told = False
        for at in self._numbers(index):
            if self.truth.states[at] == MISSING:
                self.truth.states.put(at, BY_FOLDER)
                told = self.noted = True
        return told

    def end(self, end: ArrayEnd) -> None:
        """What ``complete.json`` says of it: from here on it alone says what is empty."""
        if self.truth is None or self.layout.keys is None:
            return
        self._ended = self.noted = True
        for key in end.empty:
            self._say(key, EMPTY)
        for key in end.missing:
            self._say(key, MISSING)

    def _say(self, key: str, state: int) -> None:
        assert self.truth is not None
        assert self.layout.keys is not None
        for index in self.layout.keys.indices(key, self.truth.grid):
            if self.truth[index] != WRITTEN:
                self.truth.put(index, state)

    # -- how it stands -------------------------------------------------------------------------------------------------

    def is_there(self, index: Index, empty: tuple[int, ...]) -> bool:
        """Is any unit of a chunk file written, or are all of them empty?"""
        assert self.truth is not None
        if not self.layout.inside(index):
            return index in self._outside
        states = {self.truth.states[at] for at in self._numbers(index)}
        return WRITTEN in states or states <= set(empty)

    @property
    def files(self) -> int:
        """How many chunk files of the grid are there; of shards those with any inner chunk."""
        if self.truth is None:
            return 0
        if self.layout.sharding is None:
            return self.truth.count(WRITTEN)
        whole = boxes((0,) * self.layout.rank, self.layout.grid)
        return sum(any(self.truth.states[at] == WRITTEN for at in self._numbers(index)) for index in whole)

    def ranges(self, axis: str, wanted: tuple[int, ...], most: int) -> Iterator[str]:
        """Stretches along the first axis, in elements, in which any unit has one of these states; at most so many."""
        if self.truth is None or not self.layout.shape:
            return
        size, length = self.layout.unit[0], self.layout.shape[0]
        for number, (first, last) in enumerate(self.truth.first_axis(wanted)):
            if number == most:
                yield "..."
                return
            begin, end = first * size, min((last + 1) * size, length) - 1
            yield f"{axis} {begin}" if begin == end else f"{axis} {begin}-{end}"

    # -- across restarts -----------------------------------------------------------------------------------------------

    def evidence(self) -> bytes:
        """What is known and cannot be seen by listing."""
        head = {"chunks": self._identity(), "grew": self.grew, "shots": self.shots}
        return json.dumps(head).encode() + b"\n" + (b"" if self.truth is None else self.truth.evidence())

    def take_evidence(self, raw: bytes) -> None:
        """The reverse. What is damaged, or of other chunks, is left out."""
        head, _, rest = raw.partition(b"\n")
        try:
            found = json.loads(head)
            fits = found["chunks"] == self._identity()
            grew, shots = bool(found["grew"]), bool(found["shots"])
        except (ValueError, TypeError, KeyError):
            return
        if fits:
            self.grew, self.shots = self.grew or grew, self.shots or shots
            if self.truth is not None:
                self.truth.take_evidence(rest)

    def _identity(self) -> str:
        layout = self.layout
        return f"{layout.zarr_format} {layout.dtype} {layout.chunks} {layout.unit} {layout.keys}"
