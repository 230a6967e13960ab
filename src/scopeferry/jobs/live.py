"""`live`: targets side by side, each followed while it is written, ended on evidence, proved equal.

What one target goes through stands in ``jobs/target_run.py``; here its tasks become a line of ``kernel.run``, so that
all targets share the workers fairly, and one that fails never stops another.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Self

from scopeferry.copying.target import LiveSettings, Target
from scopeferry.errors import Interrupted, Temporary
from scopeferry.jobs.live_result import LiveResult
from scopeferry.jobs.result import Result
from scopeferry.jobs.target_run import TargetRun, of_the_run
from scopeferry.jobs.targets import check
from scopeferry.kernel.events import Event
from scopeferry.kernel.gentle import Pace, be_gentle
from scopeferry.kernel.run import BATCH_ITEMS, Line, run
from scopeferry.kernel.task import Control
from scopeferry.logs import host, new_run_id, printable, user
from scopeferry.reports.following import Standing

IDLE_S = 0.01  # between two looks where nothing is ready
ABSENT_S = 0.5  # between two looks for a source that is not there yet


def live(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    on_event: Callable[[Event], Any] | None = None,
    control: Control | None = None,
    settings: LiveSettings | None = None,
    **options: Any,
) -> LiveResult:
    """Copy a dataset while it is written; returns when it has ended, on evidence, and is proved equal.

    `options` are the fields of ``config.Target`` and ``config.LiveSettings``. Raises UsageError for wrong usage only.
    """
    of_target = {name: options.pop(name) for name in list(options) if name in Target.__dataclass_fields__}
    settings = replace(settings or LiveSettings(), **options)
    job = Live([Target(os.fspath(src), os.fspath(dst), **of_target)], settings=settings, control=control)
    for event in job:
        if event is not None and on_event is not None:
            on_event(event)
    return job.result


class Live:
    """A run of `live` under control: iterate over it for events (``None`` is a tick); then `result` holds how it ended.

    As a context manager it stops the run where the block is left before its end. Raises UsageError before anything is
    touched.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        *,
        settings: LiveSettings | None = None,
        control: Control | None = None,
        **options: Any,
    ) -> None:
        self.settings = replace(settings or LiveSettings(), **options)
        self.targets = check(targets, self.settings)
        self.pace = Pace(self.settings.limit, gentle=self.settings.gentle)
        self.control = control or Control()
        self.result = LiveResult("live", run=new_run_id())
        self.follows = [_Follow(target, self) for target in self.targets]
        self._running: Iterator[Event | None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._running is not None:
            self.control.stop(Interrupted("the program has left it"))
            for _event in self._running:
                pass

    def __iter__(self) -> Iterator[Event | None]:
        if self._running is None:
            self._running = self.run()
        return self._running

    def declare_finished(self, source: str | os.PathLike[str]) -> None:
        """The acquisition of this source is over: somebody says so."""
        wanted = os.path.realpath(source)
        for follow in self.follows:
            if os.path.realpath(follow.aim.source) == wanted:
                follow.declare(f"declared by {user()} on {host()}")

    def standings(self) -> list[Standing]:
        """How each target stands."""
        return [follow.standing() for follow in self.follows]

    def run(self) -> Iterator[Event | None]:
        """Do it."""
        began = time.monotonic()
        if self.settings.dry_run:
            yield from self._rehearse()
            return
        be_gentle(self.settings.gentle)
        lines = [follow.line() for follow in self.follows]
        self.control.on_stop(self._stop)
        items = 1 if any(target.sleep_time_s for target in self.targets) else BATCH_ITEMS
        workers = self.settings.workers
        with ThreadPoolExecutor(workers, "scopeferry", be_gentle, (self.settings.gentle,)) as executor:
            for event in run(
                lines, executor, slots=workers, control=Control(), batch_items=items, tick_s=IDLE_S, soon=True
            ):
                yield from self._told()
                if event is None:
                    yield None
                    time.sleep(IDLE_S)
        yield from self._told()
        self.result.targets = [follow.result for follow in self.follows]
        self.result.truths = [follow.running.truth if follow.running else {} for follow in self.follows]
        self.result.sum_up()
        self.result.elapsed_s = time.monotonic() - began
        yield Event("finished", self.result.run, self.result.destination, data={"exit_code": self.result.exit_code})

    def _rehearse(self) -> Iterator[Event | None]:
        """What is there and what would be awaited; nothing is written."""
        from scopeferry.jobs.inspect import InspectJob

        for follow in self.follows:
            result = follow.result
            result.state = "planned"
            if os.path.lexists(follow.aim.source):
                look = InspectJob(follow.aim.source, follow.aim, self.settings.select, self.control)
                for _ in look.run():
                    yield None
                result.items, result.bytes = look.result.items, look.result.bytes
                result.details.update(look.result.details, name=follow.aim.name, verdict=look.result.state)
        self.result.targets = [follow.result for follow in self.follows]
        self.result.sum_up()
        self.result.details["plan"] = {"open": self.result.items, "bytes": self.result.bytes}
        yield Event("finished", self.result.run, self.result.destination, data={"exit_code": self.result.exit_code})

    def _stop(self) -> None:
        for follow in self.follows:
            assert self.control.reason is not None
            follow.control.stop(self.control.reason)

    def _told(self) -> Iterator[Event]:
        for follow in self.follows:
            if follow.running is not None:
                while follow.running.told:
                    yield follow.running.told.popleft()


class _Follow:
    """One target, also while its source is not there yet; a ledger for its results."""

    def __init__(self, aim: Target, job: Live) -> None:
        patience = aim.patience_s
        self.aim, self.settings = aim, job.settings
        self.control = Control(
            patience_gone_s=3600 if patience is None else patience,
            patience_full_s=60 if patience is None else patience,
            limit=job.pace,
        )
        self.running: TargetRun | None = None
        self.writer = job.pace.writer(aim.writer_pid)
        self.pace = job.pace
        self._declared = ""
        self._waiting = Result("live", source=aim.source, destination=aim.destination, state="waiting")

    def declare(self, by: str) -> None:
        """It is over: somebody says so."""
        self._declared = by
        if self.running is not None:
            self.running.declared = by

    @property
    def result(self) -> Result:
        """How it stands."""
        return self._waiting if self.running is None else self.running.result

    def standing(self) -> Standing:
        """How it stands, in what is shown."""
        if self.running is None:
            waiting = "" if self._waiting.codes else self.control.waiting or f"its source: {self.aim.source}"
            return Standing(self.aim.name, self._waiting.state, waiting=waiting)
        return self.running.standing()

    def line(self) -> Line:
        """It as a target of a run."""
        return Line(self._tasks(), self, control=self.control)

    def settle(self, results: Any) -> list[Event]:
        """See ``kernel.run.Ledger``."""
        return [] if self.running is None else self.running.settle(results)

    def _tasks(self) -> Iterator[Any]:
        try:
            looked = 0.0
            while not os.path.exists(self.aim.source):
                self.control.check()
                while time.monotonic() - looked < ABSENT_S and not self.control.stopped:
                    yield None
                looked = time.monotonic()
            self.control.check()
            if looked:  # only now is it known what it is, and where
                check([self.aim])
            running = TargetRun(self.aim, self.settings, self.control)
            yield from self._mounted(running)
            running.writer, running.pace, running.declared = self.writer, self.pace, self._declared
            self.running = running
        except Exception as error:  # noqa: BLE001  (also UsageError, and a bug: the others go on)
            told = of_the_run(error, self.aim.destination)
            self._waiting.add(told.code, told.path, str(told), told.hint)
            self._waiting.state = "interrupted" if isinstance(told, Interrupted) else "failed"
            return
        yield from running.tasks()

    def _mounted(self, running: TargetRun) -> Iterator[None]:
        """A copy that we have begun, and of which nothing is there: its share is not mounted. Never begun anew."""
        if running.is_there() or not running.has_begun():
            return
        began, patience_s = time.monotonic(), self.control.patience_gone_s
        while not running.is_there():
            self.control.check()
            if time.monotonic() - began >= patience_s:
                raise Temporary(
                    f"a copy was begun at {printable(running.dst)}, and nothing of it is there",
                    code="SF-323",
                    path=running.dst,
                    hint=f"mount it; to begin anew remove {running.place.journal}",
                )
            self.control.waiting = f"its destination: {running.dst}"
            yield None
        self.control.waiting = ""
