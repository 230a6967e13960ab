"""Workers that are forks of this process: for many small files on local disks.

A file of 64 KiB is some twenty calls of a few microseconds. Threads give up the interpreter's lock for each and wait
for it again, and four of them then finish no sooner than one (measured on two cores: 20,000 files in 8.0 s by one
thread, 8.2 s by four, 5.2 s by two processes; rsync 7.5 s). Forks share no lock. They cost some milliseconds and
import nothing anew, so a program that calls us needs no guard around its main module.

Only for a process without other threads, for a fork copies none of them; ``spread.can_fork`` says whether this is one.
Each worker has one thread here that hands it batches and waits. A worker that dies leaves its batch to that thread,
which does it itself. Workers end with their parent, however it dies.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import socket
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from scopeferry.errors import Interrupted, ScopeferryError
from scopeferry.kernel.spread import die_with
from scopeferry.kernel.task import Control

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # are for the parent, which passes the wish to stop on


class Forks(Executor):
    """An executor for functions of (tasks, control) in forked workers; the control they get is their own, and stops
    with ours.
    """

    def __init__(self, workers: int, control: Control) -> None:
        self._control = control
        self._flag = mmap.mmap(-1, 1)
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._workers = [_Worker(self._flag, control) for _ in range(workers)]
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="scopeferry-fork")
        control.on_stop(self._stop)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Hand ``fn(tasks, control)`` to a worker that is idle."""
        del kwargs
        return self._threads.submit(self._do, fn, args[0])

    def _do(self, fn: Callable[..., Any], tasks: Any) -> Any:
        worker = self._idle.get()
        try:
            answers, reason, copied, verified = worker.ask(fn, tasks)
        except (OSError, EOFError, pickle.UnpicklingError):
            return fn(tasks, self._control)  # it was killed: what it had in hand is done here
        finally:
            self._idle.put(worker)
        if reason is not None:
            self._control.stop(reason)
        self._control.add(copied, verified)
        return answers

    def _stop(self) -> None:
        self._flag[0] = 1

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the workers end."""
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        for worker in self._workers:
            worker.close()


class _Worker:
    """One forked process, and the socket to it."""

    def __init__(self, flag: mmap.mmap, control: Control) -> None:
        ours, theirs = socket.socketpair()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            try:
                _serve(theirs, flag, control, parent)
            finally:
                os._exit(0)
        theirs.close()
        self._socket = ours
        self._stream = ours.makefile("rwb")

    def ask(self, fn: Callable[..., Any], tasks: Any) -> Any:
        """Have ``fn(tasks, control)`` done; its answer, the reason to stop if there is one, bytes copied and
        verified.
        """
        pickle.dump((fn, tasks), self._stream, pickle.HIGHEST_PROTOCOL)
        self._stream.flush()
        return pickle.load(self._stream)  # noqa: S301  (from a fork of ourselves)

    def close(self) -> None:
        """Let it end, and take its exit code. (Workers hold one another's sockets open, so an end of file would not
        reach it.)
        """
        with suppress(OSError, ValueError):
            pickle.dump(None, self._stream)
            self._stream.flush()
        with suppress(OSError):
            self._stream.close()
        self._socket.close()
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


class _TheirControl(Control):
    """The control of a worker: stopped by its own doing, or by the parent's flag."""

    flag: mmap.mmap

    @property
    def reason(self) -> ScopeferryError | None:
        if self._reason is None and self.flag[0]:
            return Interrupted("stopped")
        return self._reason

    @property
    def stopped(self) -> bool:
        return self.reason is not None

    def check(self) -> None:
        reason = self.reason
        if reason is not None:
            raise reason

    def sleep(self, seconds: float) -> None:
        while seconds > 0 and not self.stopped:
            self._stop.wait(min(seconds, 0.1))
            seconds -= 0.1


def _serve(theirs: socket.socket, flag: mmap.mmap, parent_control: Control, parent: int) -> None:
    for name in _SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    die_with(parent)
    control = _TheirControl(
        patience_gone_s=parent_control.patience_gone_s, patience_full_s=parent_control.patience_full_s
    )
    control.flag = flag
    stream = theirs.makefile("rwb")
    while True:
        try:
            asked = pickle.load(stream)  # noqa: S301  (from our parent)
        except (EOFError, OSError):
            return
        if asked is None:
            return
        fn, tasks = asked
        control.copied = control.verified = 0
        answers = fn(tasks, control)
        pickle.dump((answers, control._reason, control.copied, control.verified), stream, pickle.HIGHEST_PROTOCOL)  # noqa: SLF001
        stream.flush()
