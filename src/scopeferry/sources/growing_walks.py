"""Walks: each lists every folder once after it began, and tells what was new meanwhile. They are the evidence of the
end, and find what passes cannot: what grew in place after it was copied.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from scopeferry.sources import growing_limits as limits
from scopeferry.sources.growing_folders import Folder, Rounds
from scopeferry.sources.growing_signs import Signs


@dataclass(frozen=True, slots=True)
class Walk:
    """A listing of everything that has ended. Times are of ``time.monotonic``; `found_new` counts what was new
    meanwhile, however it was found; `failed`: something could not be listed, so it is no evidence.
    """

    begun_s: float
    ended_s: float
    found_new: int
    failed: bool


class Walks:
    """The walk that goes on, and the last one that has ended."""

    def __init__(self, rounds: Rounds, signs: Signs) -> None:
        self._rounds, self._signs = rounds, signs
        self.last: Walk | None = None
        self.count = 0
        self.going = False
        self.at = 0.0  # when the next begins that nobody asked for
        self._begun_s = self._busy_s = 0.0
        self._left: list[Folder] = []
        self._changes = self._failures = 0
        self._changes_at_end = -1

    def begin(self) -> None:
        """List everything. A walk that goes on is begun anew."""
        self.going = True
        self._begun_s, self._busy_s = time.monotonic(), 0.0
        self._left = list(self._rounds.by_path.values())[::-1]
        self._changes, self._failures = self._signs.changes, self._signs.failures

    def stop(self) -> None:
        """It ends without telling anything."""
        self.going, self._left = False, []

    def next_to_list(self) -> Folder | None:
        """A folder that it has not come to. New ones are listed anyway."""
        rounds = self._rounds
        while self._left:
            folder = self._left.pop()
            if not rounds.there(folder) or folder.listed >= self._begun_s or folder.wanted:
                continue
            if folder not in rounds.listing:
                return folder
            rounds.want(folder)  # its listing began before the walk: once more
        return None

    def spend(self, spent_s: float) -> None:
        """So much time went into listings."""
        self._busy_s += spent_s

    def end(self, now: float, *, failed: bool) -> None:
        """Everything has been listed. ``failed``: but it is no evidence."""
        failed = failed or self._signs.failures != self._failures
        self.last = Walk(self._begun_s, now, self._signs.changes - self._changes, failed)
        self._changes_at_end = self._signs.changes
        self.count += 1
        self.at = now + max(limits.WALK_S, limits.WALK_SHARE * self._busy_s)
        self.stop()

    @property
    def found_all(self) -> bool:
        """Did the last one fail nowhere and find nothing, and did nothing change since?"""
        last = self.last
        if last is None or last.found_new or last.failed:
            return False
        return self._changes_at_end == self._signs.changes
