"""The one loop of all jobs: how often it settles, how much is in flight."""

from __future__ import annotations

import itertools
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace

from scopeferry.kernel import run
from scopeferry.kernel.task import Control, Outcome


@dataclass(frozen=True)
class Nothing:
    """A task that does nothing."""

    key: str
    revision: str = ""
    size: int = 1

    @staticmethod
    def run_batch(tasks, _control):
        return [Outcome(task.key, 1) for task in tasks]


@dataclass
class Settled:
    """A ledger that remembers when it was called, and with how many."""

    clock: SimpleNamespace
    calls: list[tuple[float, int]] = field(default_factory=list)

    def settle(self, results):
        self.calls.append((self.clock.now, len(results)))
        return []


class OneBehind(Executor):
    """Ends a batch when the next one comes, or it was asked for the time often enough: so one is in flight."""

    def __init__(self):
        self.held = []
        self.asked = 0
        self.now = 0.0

    def monotonic(self):
        self.now += 0.02
        self.asked += 1
        if self.asked > 5:
            self.end()
        return self.now

    def submit(self, function, /, *arguments):
        self.end()
        self.asked = 0
        future = Future()
        self.held.append((future, function(*arguments)))
        return future

    def end(self):
        while self.held:
            future, answer = self.held.pop()
            future.set_result(answer)


def test_it_settles_at_most_every_100_ms_and_at_least_every_2_s(monkeypatch):
    executor = OneBehind()
    monkeypatch.setattr(run, "time", executor)
    ledger = Settled(executor)
    tasks = (Nothing(str(number)) for number in range(500))
    list(run.run([run.Line(tasks, ledger)], executor, slots=1, control=Control(), batch_items=1, tick_s=0.001))
    assert sum(count for _, count in ledger.calls) == 500
    pauses = [after - before for (before, _), (after, _) in itertools.pairwise(ledger.calls)]
    assert min(pauses[:-1]) >= 0.1, "the last one need not wait"
    assert max(pauses) <= 2


def test_at_most_three_batches_a_slot_are_in_flight():
    flying, most = [], []

    class Counting(ThreadPoolExecutor):
        def submit(self, *arguments):
            flying.append(1)
            most.append(len(flying))
            future = super().submit(*arguments)
            future.add_done_callback(lambda _: flying.pop())
            return future

    ledger = Settled(SimpleNamespace(now=0.0))
    tasks = (Nothing(str(number)) for number in range(200))
    with Counting(2) as executor:
        list(run.run([run.Line(tasks, ledger)], executor, slots=2, control=Control(), batch_items=1))
    assert max(most) <= 6


def test_what_little_there_is_to_do_is_shared_among_idle_workers_where_soon_counts():
    sizes = []

    class Waiting(Executor):
        """Does nothing before it was given all that fits into the window."""

        def __init__(self):
            self.waits = []

        def submit(self, function, /, *arguments):
            sizes.append(len(arguments[0]))
            future = Future()
            self.waits.append((future, function, arguments))
            if sum(sizes) == 40:
                for one, do, given in self.waits:
                    one.set_result(do(*given))
            return future

    tasks = [Nothing(str(number), size=1 << 20) for number in range(40)]
    ledger = Settled(SimpleNamespace(now=0.0))
    list(run.run([run.Line(iter(tasks), ledger)], Waiting(), slots=4, control=Control(), soon=True))
    assert sizes == [2, 2, 2, 2, 16, 16]
