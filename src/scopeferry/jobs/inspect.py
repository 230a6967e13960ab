"""`inspect PATH`: what is this, is it finished, how do we know? As `live` sees it; nothing is copied or changed."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator

from scopeferry.copying.listed import ListedFiles
from scopeferry.copying.target import Target
from scopeferry.errors import UsageError
from scopeferry.jobs.result import Result
from scopeferry.jobs.targets import check_evidence
from scopeferry.kernel import journal as states
from scopeferry.kernel import publish
from scopeferry.kernel.events import Event
from scopeferry.kernel.journal import Journal, Row
from scopeferry.kernel.task import Control
from scopeferry.logs import new_run_id, printable
from scopeferry.reports.units import count, size
from scopeferry.sources.finish import ABORTED, FINISHED, UNKNOWN, to_end
from scopeferry.sources.growing import Found
from scopeferry.sources.known import KnownByJournal
from scopeferry.sources.tree import Selection, TreeSource
from scopeferry.sources.watched import Ending, Watched

SETTLES_S = 3.0  # files written in place are looked at twice
SAID_S = 10.0  # between two words on what is awaited
CODES = {ABORTED: "SF-602", UNKNOWN: "SF-603"}  # else SF-601


class InspectJob:
    """Iterate over `run`; then `result` holds verdict, evidence, and what became of each array's chunks.

    ``wait_s``: so long it waits for the end.
    """

    def __init__(
        self,
        path: str,
        aim: Target | None = None,
        select: tuple[tuple[str, str], ...] = (),
        control: Control | None = None,
        wait_s: float = 0.0,
    ) -> None:
        if not os.path.isdir(path):
            there = os.path.lexists(path)
            message = f"no folder: {printable(path)}" if there else f"not there: {printable(path)}"
            raise UsageError(message, code="SF-112" if there else "SF-101", path=path)
        self.path = os.path.realpath(path)
        aim = aim or Target(self.path, f"{self.path}.copy")
        check_evidence(aim)
        self.ending = Ending(aim.finish, aim.settle_s, aim.settle_given, aim.expect, aim.writer, aim.writer_pid)
        self.selection = Selection(select)
        self.control = control or Control()
        self.wait_s = wait_s
        self._say_at = 0.0
        self.result = Result("inspect", run=new_run_id(), source=self.path)

    def run(self) -> Iterator[Event | None]:
        """Look; yields None as a tick."""
        began = time.monotonic()
        found = os.stat(self.path)
        source = TreeSource(self.path, publish.disk(self.path), identity=(found.st_dev, found.st_ino))
        with (
            tempfile.TemporaryDirectory(prefix="scopeferry-") as folder,
            Journal(os.path.join(folder, "seen.sqlite")) as seen,
            ListedFiles(source, self.control) as listed,
            Watched(
                source, self.ending, watch="scan", selection=self.selection, known=KnownByJournal(seen), listed=listed
            ) as watched,
        ):
            for item in watched.items():
                self.control.check()
                if isinstance(item, Found):
                    self._seen(seen, item)
                    watched.settled(item.path)
                elif item is None:
                    yield None
                    if self._is_seen(watched, began):
                        break
                    time.sleep(0.01)
            self.control.waiting = ""
            self._say(watched)
        self.result.elapsed_s = time.monotonic() - began
        yield Event("finished", self.result.run, self.path, data={"exit_code": self.result.exit_code})

    def _seen(self, seen: Journal, item: Found) -> None:
        head, slash, name = os.fsencode(item.path).rpartition(b"/")
        row = Row(name, states.FILE, states.DONE, item.size, item.mtime_ns, item.fingerprint, None, None, None, None)
        seen.plan(head + slash, [row])
        self.result.items += item.before is None
        self.result.bytes += item.size - (item.before.size if item.before is not None else 0)

    def _is_seen(self, watched: Watched, began: float) -> bool:
        tree = watched.tree
        if tree.walk is None or not tree.drained:
            return False
        if tree.not_whole and time.monotonic() - began <= SETTLES_S:
            return False
        decision, now = watched.decide(), time.monotonic()
        if decision.ends:
            return True
        if now >= self._say_at and now - began < self.wait_s:
            self._say_at = now + SAID_S
            self.control.waiting = f"end of the source: {printable(to_end(decision))}"
        asking = watched.asking and now - began <= 2 * SETTLES_S
        return not (tree.walking or asking or now - began < self.wait_s)

    def _say(self, watched: Watched) -> None:
        decision, result = watched.decide(), self.result
        watched.zarr.aborted = decision.state == ABORTED
        result.state = decision.verdict
        result.details.update(
            verdict=f"{count(result.items)}, {size(result.bytes)}",
            evidence=[
                {"kind": one.kind, "verdict": one.verdict, "detail": one.detail, "at": one.at}
                for one in decision.evidence
            ],
            awaited=list(decision.awaited),
            weak=decision.weak,
            zarr=watched.zarr.found,
            arrays=[array.as_dict() for array in watched.zarr.truth().values()],
        )
        for path in sorted(watched.tree.special):
            result.add("SF-901", path, f"neither file, folder nor link: {printable(path)}")
        for path, problem in watched.zarr.problems.items():
            result.add("SF-915", path, f"{printable(path)}: {problem}")
        for path, why in watched.tree.unreadable.items():
            result.add("SF-204", path, f"cannot be read: {printable(path)}: {why}")
        if result.state != FINISHED:
            why = "; ".join(one.detail for one in decision.evidence) or "nothing says that it is over"
            hint = f"to end: {to_end(decision)}" if decision.awaited else ""
            result.add(CODES.get(result.state, "SF-601"), self.path, f"{result.state}: {printable(why)}", hint)


def inspect(path: str | os.PathLike[str]) -> Result:
    """What a folder or Zarr store is, whether it is finished, and how one knows; moves nothing.

    ``result.state`` is finished, running, aborted or unknown. Raises UsageError if there is no such folder.
    """
    job = InspectJob(os.fspath(path))
    for _ in job.run():
        pass
    return job.result
