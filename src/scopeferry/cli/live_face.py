"""How a `live` run looks: in a terminal lines that are drawn again, elsewhere one line a target and interval.

Of each target is said how it stands and what its end waits for; a line of its own where its state changes, and one when
it has ended, with the evidence. Data, events and last lines are those of every command (``cli/face.py``).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from scopeferry.cli.console import Console
from scopeferry.cli.face import WIDE, Face
from scopeferry.jobs.result import Result
from scopeferry.reports.following import Standing, block, line
from scopeferry.reports.progress import Meter

LOOK_S = 0.2  # between two looks whether the state of a target has changed
BELOW = 2  # rows of a terminal that stay free


def follow(job: Any, console: Console, args: argparse.Namespace, *, interval_s: float) -> int:
    """Let a ``jobs.live.Live`` run to its end and show how it goes; its exit code."""
    from scopeferry.cli.signals import stopping

    face = LiveFace(console, args, job, interval_s=interval_s)
    with face.shown(), stopping(job.control):
        for event in job:
            face.tell(event)
        if job.settings.dry_run and not (face.as_json or face.events_out):
            from scopeferry.cli.inspect import tell

            for result in job.result.targets:
                tell(console, result)
        return face.end(job.result)


class LiveFace(Face):
    """The face of all targets of a run: `job` has ``standings()``."""

    def __init__(self, console: Console, args: argparse.Namespace, job: Any, *, interval_s: float) -> None:
        super().__init__(console, args, Meter("live", job.control), interval_s=interval_s)
        self.job = job
        self._states: dict[int, str] = {}
        self._looked_at = 0.0

    def _show(self) -> None:
        if self.console.live:
            self.console.draw(self._block)
        now = time.monotonic()
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        due = now - self._said_at >= self.interval_s
        if due:
            self._said_at = now
        self._say(self.job.standings(), due=due)

    def _say(self, standings: Sequence[Standing], *, due: bool) -> None:
        """A line for each that is due, or whose state has changed; those that have ended are named once."""
        columns = self.console.err.columns - 1 if self.console.live else WIDE
        ascii_only = self.console.err.ascii_only
        for at, standing in enumerate(standings):
            state = standing.waiting or standing.state
            changed = self._states.get(at) != state
            self._states[at] = state
            if self.console.live:
                shown = changed and standing.ended
            else:
                shown = changed or (due and not standing.ended)
            if shown:
                self.console.say(line(standing, columns, ascii_only=ascii_only, awaited=True))

    def _block(self, columns: int) -> str:
        rows = max(1, self.console.err.rows - BELOW)
        return "\n".join(block(self.job.standings(), columns, rows, ascii_only=self.console.err.ascii_only))

    def end(self, result: Result) -> int:
        """The line of each target that was not named yet, what went wrong, and the last line."""
        if not self.quiet:
            self._say(self.job.standings(), due=False)
        self.meter.total_bytes = None  # it has no line of its own
        return super().end(result)
