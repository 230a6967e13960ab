"""What a signal does to a run: an orderly stop, with the exit code that tells who asked for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from scopeferry.errors import Interrupted, ScopeferryError, Temporary
from scopeferry.kernel.task import Control


@contextmanager
def stopping(control: Control) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP (unless ignored, as by nohup) stop the run with 130, SIGUSR1 with 75.

    A second SIGINT ends the process at once. After the run no signal changes what has been said of it.
    """

    def handle(number: int, _frame: Any) -> None:
        if number == signal.SIGINT and control.stopped:
            os._exit(130)
        control.stop(_reason(number))

    before = _handled_by(handle)
    try:
        yield
    finally:
        _restore({number: handler for number, handler in before.items() if not isinstance(handler, _Raise)})


@contextmanager
def raising() -> Iterator[None]:
    """Where no run looks whether it shall stop, the same signals raise `Stop`; once only, so that it can be said."""
    before = _handled_by(_Raise())
    try:
        yield
    finally:
        _restore(before)


class Stop(KeyboardInterrupt):
    """A signal has come, and `reason` is what it means."""

    def __init__(self, reason: ScopeferryError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Raise:
    def __init__(self) -> None:
        self.done = False

    def __call__(self, number: int, _frame: Any) -> None:
        if not self.done:
            self.done = True
            raise Stop(_reason(number))


def _reason(number: int) -> ScopeferryError:
    name = signal.Signals(number).name
    if name == "SIGUSR1":
        return Temporary(f"stopped by {name}", code="SF-325")
    return Interrupted(f"interrupted by {name}")


def _handled_by(handle: Callable[[int, Any], None]) -> dict[int, Any]:
    """Have `handle` called; what was called before."""
    before: dict[int, Any] = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK", "SIGUSR1"):
        number = getattr(signal, name, None)
        if number is None or (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
            continue
        before[number] = signal.signal(number, handle)
    return before


def _restore(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)
