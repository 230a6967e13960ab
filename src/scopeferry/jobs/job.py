"""What `verify`, `repair` and `clean` have in common: how such a run is registered, done, stopped and closed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from scopeferry.copying.place import Place
from scopeferry.errors import Failed, NoSpace, ScopeferryError, UsageError
from scopeferry.jobs.registered import ended, register
from scopeferry.jobs.result import Result
from scopeferry.kernel import publish
from scopeferry.kernel.events import Event
from scopeferry.kernel.publish import Disk, system
from scopeferry.kernel.run import BATCH_ITEMS, Line
from scopeferry.kernel.run import run as run_lines
from scopeferry.kernel.task import Control
from scopeferry.logs import printable

WORKERS, WORKERS_NETWORK = 4, 16


class Job:
    """One run. Iterate over `run`; then ``result`` holds what became of it.

    ``target`` is what it works on, ``held`` closes what it has opened. A job says how it is done with `_do` and what is
    said at its end with `_say`.
    """

    broken = "SF-305"  # what an error of the system is, that is no item's

    def __init__(
        self, command: str, run: str, target: str, place: Place, settings: Any, control: Control | None
    ) -> None:
        self.started = time.monotonic()
        self.target, self.place, self.settings = target, place, settings
        self.control = control or Control()
        self.result = Result(command, run=run)
        self.held = ExitStack()

    def run(self) -> Iterator[Event | None]:
        """Do it; yields events, and None as a tick. Raises UsageError before anything is touched."""
        registration = register(self.result, self.place)
        try:
            yield from self.opened()
            self.close()
            yield Event("finished", self.result.run, self.target, data={"exit_code": self.result.exit_code})
        except BaseException as error:
            registration.end("failed", getattr(error, "exit_code", 1))
            raise
        finally:
            self.close()
        ended(registration, self.result)

    def opened(self) -> Iterator[Event | None]:
        """As `run`; what was opened stays open until `close`."""
        yield from self.guarded(self._do())
        self.say()

    def guarded(self, events: Iterator[Event | None]) -> Iterator[Event | None]:
        """Pass events on; what ends them early becomes a problem."""
        try:
            yield from events
        except UsageError:
            raise
        except ScopeferryError as error:
            self.add(error)
        except OSError as error:
            self.add(self._system_error(error))
        if self.control.reason is not None:
            self.add(self.control.reason)

    def _system_error(self, error: OSError) -> ScopeferryError:
        path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else self.target
        if error.errno in system.NO_SPACE:
            return NoSpace(f"no room for what is to be written: {printable(path)}", code="SF-313", path=path)
        return Failed(f"{error.strerror or error}: {printable(path)}", code=self.broken, path=path)

    def work(self, lines: Sequence[Line], *disks: Disk) -> Iterator[Event | None]:
        """Let workers do the tasks of all lines; more of them where one of the disks is a network's."""
        from concurrent.futures import ThreadPoolExecutor

        workers = self.settings.workers or (WORKERS_NETWORK if any(disk.network for disk in disks) else WORKERS)
        items = publish.batch_items(workers, BATCH_ITEMS)
        with ThreadPoolExecutor(workers, thread_name_prefix="scopeferry") as executor:
            yield from run_lines(lines, executor, slots=workers, control=self.control, batch_items=items)

    def say(self) -> None:
        """Put into the result how it ended, as far as it has."""
        self.result.elapsed_s = time.monotonic() - self.started
        self._say()

    def add(self, error: ScopeferryError) -> None:
        """Note a problem of the run as a whole, once."""
        if not any((problem.code, problem.message) == (error.code, str(error)) for problem in self.result.problems):
            self.result.add(error.code, error.path, str(error), error.hint)

    def close(self) -> None:
        """Close everything; twice is harmless."""
        self.held.close()

    def _do(self) -> Iterator[Event | None]:
        """The work itself."""
        raise NotImplementedError

    def _say(self) -> None:
        """Put verdict and state into the result."""
        raise NotImplementedError


def drive(job: Any, on_event: Callable[[Event], Any] | None) -> Result:
    """Let a job run to its end, and pass its events on."""
    for event in job.run():
        if event is not None and on_event is not None:
            on_event(event)
    result: Result = job.result
    return result
