"""What a signal does to a run: an orderly stop, with the exit code that tells who asked for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from scopeferry.errors import Interrupted, Temporary
from scopeferry.kernel.task import Control


@contextmanager
def stopping(control: Control) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP (unless ignored, as by nohup) stop the run with 130, SIGUSR1 with 75.

    A second SIGINT ends the process at once.
    """
    before: dict[int, Any] = {}

    def handle(number: int, _frame: Any) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT and control.stopped:
            os._exit(130)
        if name == "SIGUSR1":
            control.stop(Temporary(f"stopped by {name}", code="SF-325"))
        else:
            control.stop(Interrupted(f"interrupted by {name}"))

    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK", "SIGUSR1"):
        number = getattr(signal, name, None)
        if number is None or (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
            continue
        before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
