"""The longest pause in a series of times that become known in any order, in bounded memory.

Kept are stretches of time without a pause worth remembering. When there are too many, those with the shortest pauses
between them become one: the longest pause is never among these, unless most of the longer ones are filled later.
"""

from __future__ import annotations

from bisect import bisect_right

MOST = 4096


class Gaps:
    """Times are added one by one; ``longest_ns`` is the longest pause between two neighbours so far.

    >>> gaps = Gaps()
    >>> for at in (10, 90, 20):
    ...     gaps.add(at)
    >>> gaps.longest_ns
    70
    """

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []

    def add(self, at_ns: int) -> None:
        """A time of the series."""
        begins, ends = self._begins, self._ends
        index = bisect_right(begins, at_ns)
        if index and at_ns <= ends[index - 1]:
            return
        begins.insert(index, at_ns)
        ends.insert(index, at_ns)
        if len(begins) > MOST:
            self._thin()

    @property
    def longest_ns(self) -> int:
        """0 while there are fewer than two different times."""
        return max((begin - end for begin, end in zip(self._begins[1:], self._ends, strict=False)), default=0)

    def _thin(self) -> None:
        pauses = sorted(range(1, len(self._begins)), key=lambda n: self._begins[n] - self._ends[n - 1])
        joined = set(pauses[: len(pauses) // 2])
        kept = [n for n in range(len(self._begins)) if n not in joined]
        last = [n - 1 for n in kept[1:]] + [len(self._begins) - 1]
        self._begins, self._ends = [self._begins[n] for n in kept], [self._ends[n] for n in last]
