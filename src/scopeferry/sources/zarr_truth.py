"""What is known of each chunk of an array: written, empty by evidence, or missing; in two bits. Pure.

``States`` is a vector of two-bit states in pages that exist only where something is known, so that a grid of any size
costs nothing until it is filled. ``Truth`` puts a grid over it: chunks by index in C order, kept when the grid changes.
"""

from __future__ import annotations

import json
import math
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, overload

from scopeferry.sources.zarr_layout import Index

#: BY_FOLDER: empty by a folder of its own that is there and has nothing in it.
MISSING, WRITTEN, EMPTY, BY_FOLDER = range(4)

PAGE = 1 << 15  # units; a quarter of that in bytes
LEAST = 16  # bytes of a page
SCHEMA = 1

_FILLED = bytes(state * 0b01010101 for state in range(4))
_NUMBERS = [bytes(sum(byte >> bits & 3 == state for bits in (0, 2, 4, 6)) for byte in range(256)) for state in range(4)]
_NOT_WRITTEN = bytes(
    sum((byte & 3 << bits) * (byte >> bits & 3 != WRITTEN) for bits in (0, 2, 4, 6)) for byte in range(256)
)


class States:
    """A state for each number from 0 on; MISSING where nothing was put. ``counts``: how many have each of the others.

    >>> states = States()
    >>> states.fill(2, 70_000, WRITTEN)
    >>> states.put(5, EMPTY), states[5], states[9], states.counts[WRITTEN]
    (1, 2, 1, 69997)
    >>> [*states.runs((MISSING, EMPTY), 70_010)]
    [(0, 2), (5, 6), (70000, 70010)]
    """

    __slots__ = ("_pages", "counts")

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self.counts = [0, 0, 0, 0]

    def __getitem__(self, at: int) -> int:
        page = self._pages.get(at // PAGE)
        byte = at % PAGE >> 2
        return 0 if page is None or byte >= len(page) else page[byte] >> 2 * (at & 3) & 3

    def put(self, at: int, state: int) -> int:
        """Set one; returns what it was."""
        byte = at % PAGE >> 2
        page = self._page(at // PAGE, byte + 1)
        bits = 2 * (at & 3)
        before = page[byte] >> bits & 3
        page[byte] ^= (before ^ state) << bits
        self.counts[before] -= 1
        self.counts[state] += 1
        return before

    def fill(self, start: int, stop: int, state: int) -> None:
        """Set all from `start` to before `stop`."""
        while start < stop:
            if start & 3 or stop - start < 4:
                self.put(start, state)
                start += 1
                continue
            end = min(stop & ~3, (start // PAGE + 1) * PAGE)
            first, last = start % PAGE >> 2, (end - 1) % PAGE // 4 + 1
            page = self._page(start // PAGE, last)
            for one, number in enumerate(_counted(page[first:last])):
                self.counts[one] -= number
            self.counts[state] += end - start
            page[first:last] = _FILLED[state : state + 1] * (last - first)
            start = end

    def runs(self, wanted: tuple[int, ...], stop: int) -> Iterator[tuple[int, int]]:
        """(first, behind the last) of all stretches below `stop` whose states are `wanted`, in order."""
        begin = end = -1
        for first, behind in self._pieces(wanted, stop):
            if first != end:
                if end > begin:
                    yield begin, end
                begin = first
            end = min(behind, stop)
        if end > begin:
            yield begin, end

    def _pieces(self, wanted: tuple[int, ...], stop: int) -> Iterator[tuple[int, int]]:
        lacks, at = MISSING in wanted, 0
        for number in sorted(self._pages):
            base = number * PAGE
            if base >= stop:
                break
            if lacks and at < base:
                yield at, base
            page = bytes(self._pages[number])
            for first, behind in _in_page(page, wanted):
                if base + first >= stop:
                    return
                yield base + first, base + behind
            at = base + PAGE
            if lacks and len(page) * 4 < PAGE:
                yield base + len(page) * 4, at
        if lacks and at < stop:
            yield at, stop

    def copy(self) -> States:
        """The same, apart."""
        copied = States()
        copied._pages = {number: bytearray(page) for number, page in self._pages.items()}
        copied.counts = self.counts.copy()
        return copied

    def _page(self, number: int, size: int) -> bytearray:
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = bytearray()
        if len(page) < size:
            more = min(PAGE // 4, max(size, LEAST, 2 * len(page))) - len(page)
            page.extend(bytes(more))
            self.counts[MISSING] += 4 * more
        return page

    def evidence(self) -> tuple[list[int], bytes]:
        """Numbers of the pages in which anything is empty, and these pages, whole, without what is written."""
        pages = {number: page.translate(_NOT_WRITTEN) for number, page in self._pages.items()}
        kept = [number for number in sorted(pages) if any(pages[number])]
        return kept, b"".join(pages[number].ljust(PAGE // 4, b"\0") for number in kept)

    @classmethod
    def of_evidence(cls, numbers: Sequence[int], raw: bytes) -> States:
        """The reverse of `evidence`. Raises ValueError if they do not fit."""
        states = cls()
        for place, number in enumerate(numbers):
            page = bytearray(raw[place * PAGE // 4 : (place + 1) * PAGE // 4])
            if type(number) is not int or number < 0 or len(page) != PAGE // 4:
                raise ValueError(number)
            states._pages[number] = page
            for state, count in enumerate(_counted(page)):
                states.counts[state] += count
        return states

    @property
    def size_bytes(self) -> int:
        """Memory of the pages."""
        return sum(map(sys.getsizeof, self._pages.values()))


def _counted(page: bytes | bytearray) -> list[int]:
    return [sum(page.translate(numbers)) for numbers in _NUMBERS]


@lru_cache(maxsize=16)
def _pattern(wanted: tuple[int, ...]) -> re.Pattern[bytes]:
    """Bytes whose four states are all `wanted`, many at a time; else one byte of which some are."""
    number = [sum(_NUMBERS[state][byte] for state in wanted) for byte in range(256)]
    whole, some = (
        b"".join(b"\\x%02x" % byte for byte in range(256) if number[byte] in size) for size in ([4], [1, 2, 3])
    )
    return re.compile(b"([" + whole + b"]+)|[" + some + b"]")


def _in_page(page: bytes, wanted: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    for match in _pattern(wanted).finditer(page):
        first = 4 * match.start()
        if match[1] is not None:
            yield first, 4 * match.end()
            continue
        byte = page[match.start()]
        for at in range(4):
            if byte >> 2 * at & 3 in wanted:
                yield first + at, first + at + 1


class Chunks(Sequence[Index]):
    """Exact sets of chunks, by their indices in the grid of units, in C order; as they were when it was made.

    Equal to any sequence of the same indices. Held are two bits a chunk, so it may be as large as it likes.
    """

    __slots__ = ("_count", "_grid", "_states", "_wanted")

    def __init__(self, states: States, wanted: tuple[int, ...], grid: Index, count: int) -> None:
        self._states, self._wanted, self._grid, self._count = states, wanted, grid, count

    @classmethod
    def none(cls) -> Chunks:
        """No chunk."""
        return cls(States(), (WRITTEN,), (0,), 0)

    @property
    def total(self) -> int:
        """How many, also where that is more than ``len`` may say."""
        return self._count

    def __len__(self) -> int:
        return self._count

    def __bool__(self) -> bool:
        return self._count > 0

    def __iter__(self) -> Iterator[Index]:
        for first, behind in self.runs():
            for at in range(first, behind):
                yield unravel(at, self._grid)

    @overload
    def __getitem__(self, at: int) -> Index: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Index]: ...
    def __getitem__(self, at: int | slice) -> Index | Sequence[Index]:
        if isinstance(at, slice):
            return tuple(self)[at]
        left = at + self._count if at < 0 else at
        if 0 <= left < self._count:
            for first, behind in self.runs():
                if left < behind - first:
                    return unravel(first + left, self._grid)
                left -= behind - first
        raise IndexError(at)

    def __contains__(self, index: object) -> bool:
        if not isinstance(index, tuple) or len(index) != len(self._grid):
            return False
        inside = all(type(i) is int and 0 <= i < size for i, size in zip(index, self._grid, strict=True))
        return inside and self._states[ravel(index, self._grid)] in self._wanted

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(other) != self._count:
            return False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        some = [*map(repr, islice(self, 4)), "..."][: min(self._count, 5)]
        return f"({', '.join(some)}{',' if self._count == 1 else ''})"

    def runs(self) -> Iterator[tuple[int, int]]:
        """(first, behind the last) of stretches of them, as numbers in C order."""
        return self._states.runs(self._wanted, math.prod(self._grid))


def ravel(index: Sequence[int], grid: Index) -> int:
    """The number of an index in C order."""
    at = 0
    for i, size in zip(index, grid, strict=True):
        at = at * size + i
    return at


def unravel(at: int, grid: Index) -> Index:
    """The reverse of `ravel`.

    >>> unravel(ravel((2, 0, 3), (5, 4, 7)), (5, 4, 7))
    (2, 0, 3)
    """
    index = []
    for size in reversed(grid):
        at, i = divmod(at, size)
        index.append(i)
    return tuple(reversed(index))


def rows(start: Index, stop: Index, grid: Index) -> Iterator[tuple[int, int]]:
    """(first, behind the last) of the stretches that a box is made of, as numbers in C order.

    >>> [*rows((0, 1, 0), (2, 2, 4), (9, 3, 4))], [*rows((2, 0, 0), (5, 3, 4), (9, 3, 4))]
    ([(4, 8), (16, 20)], [(24, 60)])
    """
    if any(first >= behind for first, behind in zip(start, stop, strict=True)):
        return
    axis, length = len(grid), 1  # the axes from `axis` on are whole, and make stretches of `length`
    while axis and (start[axis - 1], stop[axis - 1]) == (0, grid[axis - 1]):
        axis -= 1
        length *= grid[axis]
    if not axis:
        yield 0, length
        return
    span = (stop[axis - 1] - start[axis - 1]) * length
    for outer in boxes(start[: axis - 1], stop[: axis - 1]):
        first = ravel((*outer, start[axis - 1]), grid[:axis]) * length
        yield first, first + span


def boxes(start: Sequence[int], stop: Sequence[int]) -> Iterator[Index]:
    """All indices of a box, in C order, however long its axes."""
    if not start:
        yield ()
        return
    for first in range(start[0], stop[0]):
        for rest in boxes(start[1:], stop[1:]):
            yield (first, *rest)


class Truth:
    """The states of the units of a grid."""

    __slots__ = ("grid", "size", "states")

    def __init__(self, grid: Index, states: States | None = None) -> None:
        self.grid, self.size = grid, math.prod(grid)
        self.states = States() if states is None else states

    def __getitem__(self, index: Sequence[int]) -> int:
        return self.states[ravel(index, self.grid)]

    def put(self, index: Sequence[int], state: int) -> int:
        """Set one unit of the grid; returns what it was."""
        return self.states.put(ravel(index, self.grid), state)

    def resize(self, grid: Index, most: int) -> tuple[list[Index], bool]:
        """Another grid; what is in both keeps its state. Returns written units that are outside now, at most so many,
        and whether these are all.
        """
        lost: list[Index] = []
        old, self.grid, self.size = self.grid, grid, math.prod(grid)
        if old == grid or (old[1:] == grid[1:] and grid[0] >= old[0]):
            return lost, True
        states, self.states = self.states, States()
        every = True
        for state in (WRITTEN, EMPTY, BY_FOLDER):
            for first, behind in states.runs((state,), math.prod(old)):
                for begin, end in self._move(first, behind, old, state):
                    if state == WRITTEN:
                        lost.extend(unravel(at, old) for at in range(begin, min(end, begin + most - len(lost))))
                        every = every and len(lost) < most
        return lost, every

    def _move(self, first: int, behind: int, old: Index, state: int) -> Iterator[tuple[int, int]]:
        """Take over a stretch of the old grid; yields the parts of it that are outside."""
        length, axis = 1, len(old)  # the axes from `axis` on are the same, with `length` units in them
        while axis > 1 and old[axis - 1] == self.grid[axis - 1]:
            axis -= 1
            length *= old[axis]
        row, new_row = old[axis - 1] * length, self.grid[axis - 1] * length
        while first < behind:
            number, at = divmod(first, row)
            end = min(behind, (number + 1) * row)
            outer = unravel(number, old[: axis - 1])
            kept = 0
            if all(i < size for i, size in zip(outer, self.grid, strict=False)):
                kept = max(0, min(new_row - at, end - first))
                base = ravel(outer, self.grid[: axis - 1]) * new_row + at
                self.states.fill(base, base + kept, state)
            if kept < end - first:
                yield first + kept, end
            first = end

    def count(self, state: int) -> int:
        """How many units have this state."""
        if state == MISSING:
            return self.size - sum(self.states.counts[1:])
        return self.states.counts[state]

    def chunks(self, wanted: tuple[int, ...]) -> Chunks:
        """The units in these states, as they are now."""
        return Chunks(self.states.copy(), wanted, self.grid, sum(map(self.count, wanted)))

    def first_axis(self, wanted: tuple[int, ...]) -> Iterator[tuple[int, int]]:
        """(first, last) of the stretches along the first axis in which any unit has one of these states."""
        if not self.grid or not self.size:
            return
        behind = self.size // self.grid[0]
        begin, end = -1, -2
        for first, stop in self.states.runs(wanted, self.size):
            if first // behind > end + 1:
                if end >= begin >= 0:
                    yield begin, end
                begin = first // behind
            end = (stop - 1) // behind
        if end >= begin >= 0:
            yield begin, end

    def evidence(self) -> bytes:
        """What is empty, as bytes; see `take_evidence`."""
        numbers, pages = self.states.evidence()
        head = json.dumps({"schema": SCHEMA, "grid": self.grid, "pages": numbers}, separators=(",", ":"))
        return head.encode() + b"\n" + zlib.compress(pages, 1)

    def take_evidence(self, raw: bytes) -> bool:
        """Add what an earlier run knew to be empty, where nothing is known now. False: damaged, nothing was added."""
        try:
            head, _, packed = raw.partition(b"\n")
            found: dict[str, Any] = json.loads(head)
            grid, numbers = tuple(found["grid"]), found["pages"]
            if found["schema"] != SCHEMA or len(grid) != len(self.grid) or not all(type(size) is int for size in grid):
                return False
            earlier = Truth(grid, States.of_evidence(numbers, zlib.decompress(packed)))
        except (ValueError, TypeError, KeyError, zlib.error):
            return False
        earlier.resize(self.grid, 0)
        for state in (EMPTY, BY_FOLDER):
            for first, behind in earlier.states.runs((state,), self.size):
                for at in range(first, behind):
                    if self.states[at] == MISSING:
                        self.states.put(at, state)
        return True
