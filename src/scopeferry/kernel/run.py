"""Do what the lines plan, fairly, in batches, and settle it.

A line is one target of a run: an iterator of tasks and the ledger that remembers their results. Tasks are grouped into
batches (a Dask task costs milliseconds, a chunk copy microseconds), at most ``3 x slots`` batches or 200,000 items are
in flight, and results come back through callbacks into one queue. Only this thread settles: at most every 100 ms, at
least every 2 s.

The executor is ``concurrent.futures.Executor``; a worker gets one module-level function and plain arguments.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from scopeferry.errors import Failed
from scopeferry.kernel.events import Event
from scopeferry.kernel.task import Control, Failure, Outcome, Task

BATCH_BYTES = 16 << 20
BATCH_ITEMS = 64
SOON_BYTES, SOON_ITEMS = 2 << 20, 16  # of a batch while workers are idle, where soon counts more than many
WINDOW_ITEMS = 200_000
SETTLE_S = 0.25
SOONEST_S = 0.1  # between two transactions, where nothing is in flight that could join the next
TICK_S = 0.05

Result = tuple[Task, Outcome | Failure]


class Ledger(Protocol):
    """What remembers results: a record and a journal."""

    def settle(self, results: Sequence[Result]) -> list[Event]:
        """Write down what became of these tasks, in one transaction, and say what there is to tell."""


@dataclass(slots=True)
class Line:
    """One target of a run: its tasks (``None``: nothing ready now), its ledger, and how its keys begin.

    ``control``: its own, where one target may be stopped while the others go on; its tasks then end by themselves.
    """

    tasks: Iterator[Task | None]
    ledger: Ledger
    prefix: str = ""
    control: Control | None = None


def run(
    lines: Sequence[Line],
    executor: Executor,
    *,
    slots: int,
    control: Control,
    batch_bytes: int = BATCH_BYTES,
    batch_items: int = BATCH_ITEMS,
    retries: int = 0,
    tick_s: float = TICK_S,
    soon: bool = False,
) -> Iterator[Event | None]:
    """Run all tasks of all lines; yields what happened, and ``None`` as a tick at least every `tick_s`.

    ``soon``: what little there is to do is shared among workers that are idle; one batch would flush and prove all of
    it before the first bears its name.

    Items that failed as retryable are tried `retries` times more, at the end. When `control` is stopped no new batch
    goes out, what is in flight comes back and is settled. Raises what a ledger raises; never raises for an item.
    """
    runner = _Runner(executor, slots, control, batch_bytes, batch_items, tick_s, soon=soon)
    again: list[tuple[Line, Task]] = []
    for round_ in range(retries + 1):
        active = deque(lines) if round_ == 0 else deque(_lines_of(again))
        again = []
        yield from runner.go(active, again if round_ < retries else None)
        if not again or control.stopped:
            break


def _lines_of(again: list[tuple[Line, Task]]) -> list[Line]:
    by_line: dict[int, tuple[Line, list[Task]]] = {}
    for line, task in again:
        by_line.setdefault(id(line), (line, []))[1].append(task)
    return [Line(iter(tasks), line.ledger, line.prefix, line.control) for line, tasks in by_line.values()]


def run_batch(tasks: Sequence[Task], control: Control) -> list[Outcome | Failure]:
    """What a worker does. A bug in a task becomes a failure of each of its items, never a dead worker."""
    try:
        answers = type(tasks[0]).run_batch(tasks, control)
    except Exception as error:  # noqa: BLE001  (a bug: named, never swallowed)
        import traceback

        message = f"{type(error).__name__}: {error}"
        answers = [
            Failure(task.key, "SF-302", message, payload={"traceback": traceback.format_exc()}) for task in tasks
        ]
        control.stop(Failed(f"internal error at {tasks[0].key}: {message}", code="SF-302", path=tasks[0].key))
    return answers


class _Runner:
    def __init__(
        self,
        executor: Executor,
        slots: int,
        control: Control,
        batch_bytes: int,
        batch_items: int,
        tick_s: float,
        *,
        soon: bool = False,
    ) -> None:
        self.executor, self.slots, self.control = executor, slots, control
        self.batch_bytes, self.batch_items, self.tick_s = batch_bytes, batch_items, tick_s
        self.soon = soon
        self.done: SimpleQueue[tuple[Line, list[Task], Future[Any]]] = SimpleQueue()
        self.batches = self.items = 0
        self.kept: dict[int, Task] = {}  # id(line) -> a task that did not fit into its last batch
        self.unsettled: dict[int, tuple[Line, list[Result]]] = {}
        self.settled_at = time.monotonic()

    def go(self, active: deque[Line], again: list[tuple[Line, Task]] | None) -> Iterator[Event | None]:
        while active or self.batches or self.unsettled:
            idle = self._submit(active)
            answered = self._collect(again)
            due = time.monotonic() - self.settled_at >= (SETTLE_S if self.batches else SOONEST_S)
            if self.unsettled and (due or not (active or self.batches)):
                yield from self._settle()
            if idle or not answered:
                yield None

    def _submit(self, active: deque[Line]) -> bool:
        """Fill the window from the lines in turn; True if nothing was ready."""
        idle = 0
        while active and self.batches < 3 * self.slots and self.items < WINDOW_ITEMS and idle < len(active):
            if self.control.stopped:
                active.clear()
                self.kept.clear()
                return False
            line = active[0]
            active.rotate(-1)
            batch, ended = self._next_batch(line)
            if ended:
                active.remove(line)
            if not batch:
                idle += not ended
                continue
            idle = 0
            self.batches += 1
            self.items += len(batch)
            future = self.executor.submit(run_batch, batch, line.control or self.control)
            future.add_done_callback(lambda f, line=line, batch=batch: self.done.put((line, batch, f)))  # type: ignore[misc]
        return bool(active) and idle >= len(active)

    def _next_batch(self, line: Line) -> tuple[list[Task], bool]:
        batch: list[Task] = []
        size = 0
        most, most_bytes = self.batch_items, self.batch_bytes
        if self.soon and self.batches < self.slots:
            most, most_bytes = min(most, SOON_ITEMS), min(most_bytes, SOON_BYTES)
        kept = self.kept.pop(id(line), None)
        while True:
            task = kept if kept is not None else next(line.tasks, line)
            kept = None
            if task is line:
                return batch, True
            if task is None:
                return batch, False
            assert not isinstance(task, Line)
            work = task.size or 0
            if batch and (size + work > most_bytes or type(task) is not type(batch[0])):
                self.kept[id(line)] = task
                return batch, False
            batch.append(task)
            size += work
            if len(batch) >= most or size >= most_bytes:
                return batch, False

    def _collect(self, again: list[tuple[Line, Task]] | None) -> bool:
        """Take what has come back; wait a tick if nothing has. True if something had."""
        wait = self.tick_s if self.batches else 0
        answered = False
        while self.batches:
            try:
                line, batch, future = self.done.get(timeout=wait)
            except Empty:
                break
            wait = 0
            answered = True
            self.batches -= 1
            self.items -= len(batch)
            for task, answer in zip(batch, future.result(), strict=True):
                if again is not None and isinstance(answer, Failure) and answer.retryable:
                    again.append((line, task))
                else:
                    self.unsettled.setdefault(id(line), (line, []))[1].append((task, answer))
        return answered

    def _settle(self) -> Iterator[Event]:
        for line, results in self.unsettled.values():
            yield from line.ledger.settle(results)
        self.unsettled = {}
        self.settled_at = time.monotonic()
