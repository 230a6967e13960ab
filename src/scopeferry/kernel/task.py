"""What the kernel moves about: one idempotent step, and what became of it.

A task knows how to do a whole batch of its kind. It never raises for an item: an exception that cannot be unpickled
breaks a whole process pool, so what went wrong comes back as plain values. Everything here is frozen and picklable.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from scopeferry.errors import ScopeferryError
from scopeferry.kernel.rate import PIECE_BYTES, Limit


@dataclass(frozen=True, slots=True)
class Failure:
    """An item that was not done: a code of ``errors.CODES``, a message that names it, and whether another try may
    help.
    """

    key: str
    code: str
    message: str
    hint: str = ""
    retryable: bool = False
    payload: Any = None

    @classmethod
    def of(cls, key: str, error: ScopeferryError, *, retryable: bool = False, payload: Any = None) -> Failure:
        """The plain values of `error`, for the item `key`."""
        return cls(key, error.code, str(error), error.hint, retryable, payload)


@dataclass(frozen=True, slots=True)
class Outcome:
    """An item that was done.

    ``size`` is in bytes; ``digests`` maps an algorithm to its raw digest; ``entry`` is the mark of the published file,
    taken after its rename; ``read_back`` says where the proof was read from (``storage server mount memory no``);
    ``payload`` is what only the task and its ledger understand.
    """

    key: str
    size: int
    digests: dict[str, bytes] = field(default_factory=dict)
    entry: Any = None
    read_back: str = "no"
    payload: Any = None


class Task(Protocol):
    """One idempotent, picklable step that publishes its result atomically."""

    @property
    def key(self) -> str:
        """Names the result; unique in its journal."""

    @property
    def revision(self) -> str:
        """Names input and recipe: same revision, same result."""

    @property
    def size(self) -> int | None:
        """Bytes of work, for progress and batching."""

    @staticmethod
    def run_batch(tasks: Sequence[Any], control: Control) -> list[Outcome | Failure]:
        """Do them all; one answer for each, in order. Never raises for an item."""


class Control:
    """The stop flag, looked at between blocks, and the count of bytes done, for progress inside a large item.

    The first reason to stop wins. ``patience_gone_s`` and ``patience_full_s`` say how long a worker may wait for a
    side that is gone and for room at the destination; all workers share one waiting period, so that n of them never
    wait n times.
    """

    def __init__(
        self, *, patience_gone_s: float = 3600, patience_full_s: float = 60, limit: Limit | None = None
    ) -> None:
        self.patience_gone_s = patience_gone_s
        self.patience_full_s = patience_full_s
        self.copied = 0
        self.verified = 0
        self.waiting = ""
        self._limit = limit
        self._stop = threading.Event()
        self._told_of_stop: list[Callable[[], object]] = []
        self._reason: ScopeferryError | None = None
        self._lock = threading.Lock()
        self._waits: dict[str, float] = {}

    @property
    def reason(self) -> ScopeferryError | None:
        """Why the run was stopped, or None."""
        return self._reason

    @property
    def stopped(self) -> bool:
        """Shall no new work be begun?"""
        return self._reason is not None

    def stop(self, reason: ScopeferryError) -> None:
        """Ask everybody to finish or discard what is in flight. Safe in a signal handler."""
        if self._reason is None:
            self._reason = reason
        self._stop.set()
        for tell in self._told_of_stop:
            tell()

    def on_stop(self, tell: Callable[[], object]) -> None:
        """Have `tell` called when the run is stopped; it must be safe in a signal handler."""
        self._told_of_stop.append(tell)
        if self.stopped:
            tell()

    def check(self) -> None:
        """Raise the reason to stop, if there is one."""
        if self._reason is not None:
            raise self._reason

    @property
    def piece_bytes(self) -> int:
        """How many bytes may be moved at once: what comes between two calls of `add`."""
        return PIECE_BYTES if self._limit is None else self._limit.piece_bytes

    def add(self, copied: int = 0, verified: int = 0) -> None:
        """Count bytes; those that are to be copied wait here for their turn, if there is a rate limit."""
        with self._lock:
            self.copied += copied
            self.verified += verified
        if self._limit is not None and copied:
            delay = self._limit(copied)
            if delay > 0:
                self.sleep(delay)

    def sleep(self, seconds: float) -> None:
        """Wait, and wake at once when the run is stopped."""
        self._stop.wait(seconds)

    def wait_for(self, what: str, ready: Callable[[], bool], patience_s: float, error: ScopeferryError) -> None:
        """Wait until `ready`, with back-off, for at most `patience_s` counted from when anybody began to wait for
        `what`.

        Raises `error` (and stops the run with it) when patience is over, also if it is ready then: it has been of no
        use so far. Raises the reason to stop if the run is stopped.
        """
        with self._lock:
            since = self._waits.setdefault(what, time.monotonic())
        pause = 0.2
        while (over := time.monotonic() - since >= patience_s) or not ready():
            self.check()
            if over:
                self.stop(error)
                raise error
            self.waiting = what
            self.sleep(min(pause, max(0.01, since + patience_s - time.monotonic())))
            pause = min(pause * 1.5, 5.0)
        self.waiting = ""

    def done_waiting(self, what: str) -> None:
        """What was waited for is there, and has been of use: the next wait for it has its whole patience again."""
        if what in self._waits:
            with self._lock:
                self._waits.pop(what, None)
