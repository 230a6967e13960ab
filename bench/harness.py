"""Timing for the benches: tools in turns, cold caches, ratios of the same round, and the table.

A figure of one machine on one day says little, a ratio of two tools that ran within the same minute says much. So the
tools of a case run round-robin in one window, the order is rotated each round, the caches are dropped before each run,
and what is compared is always the same round; the table gives the median of these ratios with their range. A result
counts only when the tree it left is equal to the source.

Only the standard library, and little memory: see `spent`.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import data

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
TOUCH_MEMORY = """
import mmap, sys
size = int(sys.argv[1])
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_HUGEPAGE)
for offset in range(0, size, 1 << 21):
    memory[offset] = 1
"""


class ToolFailed(Exception):
    """A tool ended with another code than 0, or left a tree that is not equal to the source."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a tool; `environment` is laid over ours."""

    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A name for the table, and the commands that copy `source` to `destination`, timed together."""

    name: str
    steps: Callable[[Path, Path], list[Step]]


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run took: `laps_s[i]` is the wall time until the end of step i."""

    laps_s: tuple[float, ...]
    cpu_s: float
    peak_rss_bytes: int

    @property
    def wall_s(self) -> float:
        """Wall time of all steps."""
        return self.laps_s[-1]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: the values (ratios, or in `unit`), and what they must and should not exceed."""

    measure: str
    values: Sequence[float]
    must: float | None = None
    should: float | None = None
    unit: str = ""
    reported: str = "median"  # or "max": the worst of them decides

    @property
    def value(self) -> float:
        """The value that is compared with the bounds."""
        return max(self.values) if self.reported == "max" else statistics.median(self.values)

    def verdict(self) -> str:
        """Which of the bounds is met."""
        if not self.values:
            return "NO FIGURE"
        if self.must is not None and self.value > self.must:
            return "MUST NOT MET"
        if self.should is not None and self.value > self.should:
            return "should not met" if self.must is None else "MUST met, should not"
        return "reported" if self.must is None and self.should is None else "met"


def spent(step: Step, log: Path) -> tuple[float, float, int]:
    """Run one command to its end: wall seconds, CPU seconds, peak RSS in bytes, of it and the children it waited for.

    The kernel carries the peak of the process that starts another one over into it, so a peak below that of this
    program is not seen; hence no numpy and no lists of names here. CPU that the kernel spends on writing back is in
    nobody's account, except where a tool flushes file by file.

    Raises
    ------
    ToolFailed
        The exit code was not 0; the end of its output is in the message.
    """
    started = time.perf_counter()
    with running(step, log) as process:
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    check_exit(step, process.returncode, log)
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


@contextmanager
def running(step: Step, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command, killed if it still runs at the end of the block; it writes to `log`, so no terminal is drawn on."""
    environment = {**os.environ, **step.environment}
    with open(log, "wb") as output:
        try:
            process = subprocess.Popen(
                step.argv, env=environment, cwd=step.cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        except OSError as error:
            raise ToolFailed(f"{step.argv[0]} cannot be started: {error}") from error
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()


def check_exit(step: Step, code: int, log: Path) -> None:
    """Raise `ToolFailed` unless `code` is 0."""
    if code:
        end = log.read_text(errors="replace")[-600:].strip()
        raise ToolFailed(f"exit {code}: {' '.join(step.argv)}\n{end}")


def timed(steps: Sequence[Step], log: Path) -> Sample:
    """Run the steps one after the other."""
    laps: list[float] = []
    cpu, peak = 0.0, 0
    for step in steps:
        wall, used, rss = spent(step, log)
        laps.append(wall + (laps[-1] if laps else 0.0))
        cpu, peak = cpu + used, max(peak, rss)
    return Sample(tuple(laps), cpu, peak)


def may_drop_caches() -> bool:
    """Whether this user can make the caches cold."""
    return os.access(DROP_CACHES, os.W_OK)


def make_cold(next_bytes: int) -> None:
    """Flush everything and forget clean pages, names and inodes (without root: only flush), before a run.

    `next_bytes` is what the run will read and write. In a guest with free page reporting the host takes back memory
    that lies free for some seconds, and whoever touches it next pays: a tool that fills 2 GiB of page cache took 0.4 s
    or 4.1 s, by what had run before it (measured). There this much memory is touched and given back first.
    """
    os.sync()
    if may_drop_caches():
        DROP_CACHES.write_text("3\n")
    if host_takes_memory():
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        size = min(next_bytes, available * 6 // 10)
        subprocess.run([sys.executable, "-c", TOUCH_MEMORY, str(size)], check=True)


def host_takes_memory() -> bool:
    """Whether this is a guest whose free pages are given back to the host."""
    balloons = Path("/sys/bus/virtio/drivers/virtio_balloon").glob("virtio*")
    return Path("/sys/module/page_reporting").is_dir() and any(balloons)


def in_turns(tools: Sequence[Tool], rounds: int) -> Iterator[tuple[int, Tool]]:
    """Every tool once a round, each round beginning with the next one.

    >>> [(turn, tool.name) for turn, tool in in_turns([Tool("a", lambda s, d: []), Tool("b", lambda s, d: [])], 2)]
    [(0, 'a'), (0, 'b'), (1, 'b'), (1, 'a')]
    """
    for turn in range(rounds):
        first = turn % len(tools)
        for tool in [*tools[first:], *tools[:first]]:
            yield turn, tool


class Results:
    """Samples by case, tool and round, and the tools that failed."""

    def __init__(self) -> None:
        self.samples: dict[tuple[str, str], dict[int, Sample]] = {}
        self.failures: dict[tuple[str, str], str] = {}

    def add(self, case: str, tool: str, turn: int, measure: Callable[[], Sample]) -> None:
        """Keep what `measure` returns; a tool that failed once is not run again in this case."""
        if (case, tool) in self.failures:
            return
        try:
            sample = measure()
        except ToolFailed as error:
            self.fail(case, tool, str(error))
            return
        self.samples.setdefault((case, tool), {})[turn] = sample
        say(f"{case:8} round {turn + 1:2}  {tool:24} {sample.wall_s:8.2f} s  {sample.cpu_s:7.2f} s CPU")

    def fail(self, case: str, tool: str, message: str) -> None:
        """Note a failure, told at once and again at the end; what the tool took before does not count any more."""
        self.samples.pop((case, tool), None)
        self.failures[case, tool] = message
        say(f"{case:8} {tool} FAILED: {message}")

    def ratios(self, case: str, ours: str, peer: str, *, lap: int = -1, cpu: bool = False) -> list[float]:
        """Ours divided by the peer's (until the end of its step `lap`), for each round that both have finished."""
        mine, theirs = self.samples.get((case, ours), {}), self.samples.get((case, peer), {})
        turns = sorted(mine.keys() & theirs.keys())
        if cpu:
            return [mine[turn].cpu_s / theirs[turn].cpu_s for turn in turns]
        return [mine[turn].wall_s / theirs[turn].laps_s[lap] for turn in turns]


def check_equal(source: Path, destination: Path, *, whole: bool) -> None:
    """Raise `ToolFailed` unless the trees have equal names and sizes, and equal bytes when `whole`."""
    wanted, found = data.shape(source), data.shape(destination)
    if wanted != found:
        raise ToolFailed(f"{destination}: {found[0]} files, {found[1]} bytes; wanted {wanted[0]}, {wanted[1]}")
    if whole:
        compared = subprocess.run(["diff", "-rq", source, destination], capture_output=True, text=True, check=False)
        if compared.returncode:
            raise ToolFailed(f"diff -r {source} {destination}: {compared.stdout[:300]}{compared.stderr[:300]}")


def print_table(rows: Sequence[Row]) -> None:
    """The table: one line a measure."""
    cells = [("measure", "value", "(min..max)", "MUST", "SHOULD", "verdict"), *map(_cells, rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(6)]
    for number, line in enumerate(cells):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if not number:
            print("  ".join("-" * width for width in widths))


def _cells(row: Row) -> tuple[str, ...]:
    """One row as text."""
    digits = 2 if not row.unit else 1
    bounds = ["-" if bound is None else f"<= {bound:.{digits}f}{row.unit}" for bound in (row.must, row.should)]
    if not row.values:
        return row.measure, "-", "", *bounds, row.verdict()
    value = f"{row.value:.{digits}f}{row.unit}"
    low, high = min(row.values), max(row.values)
    spread = f"({low:.{digits}f}..{high:.{digits}f})" if len(row.values) > 1 else "(once)"
    return row.measure, value, spread, *bounds, row.verdict()


def print_seconds(results: Results) -> None:
    """Below the ratios, what they were made of: medians of each tool."""
    floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 * 1.048576
    print(f"\n{'medians':40} {'wall s':>8} {'CPU s':>8} {'peak MB':>8}   (no peak below {floor:.1f} MB is seen)")
    for (case, tool), samples in results.samples.items():
        wall, cpu, peak = (
            statistics.median(values)
            for values in zip(*((s.wall_s, s.cpu_s, s.peak_rss_bytes / 1e6) for s in samples.values()), strict=True)
        )
        print(f"{case + ' ' + tool:40} {wall:8.2f} {cpu:8.2f} {peak:8.1f}")


def say(text: str) -> None:
    """Progress, to stderr: stdout is for the table."""
    print(text, file=sys.stderr, flush=True)


def print_facts(folder: Path, versions: Mapping[str, Sequence[str]]) -> None:
    """What the figures depend on: machine, file system of `folder`, and the first line each version command prints."""
    cpus = sorted(os.sched_getaffinity(0))
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    print(f"date        {time.strftime('%Y-%m-%d %H:%M %z')}")
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"machine     {len(cpus)} cores ({_cpu_model()}), {memory_gb:.0f} GB, load {load}")
    print(f"system      {os.uname().sysname} {os.uname().release}, Python {sys.version.split()[0]}")
    print(f"storage     {folder} on {_first_line(['findmnt', '-no', 'FSTYPE,SOURCE,OPTIONS', '-T', str(folder)])}")
    print(f"caches      {'dropped before each run' if may_drop_caches() else 'WARM: only root may drop them'}")
    if host_takes_memory():
        print("memory      a guest with free page reporting: touched before each run (bench/harness.py, make_cold)")
    for name, argv in versions.items():
        print(f"{name:11} {_first_line(argv)}")
    print(flush=True)


def _cpu_model() -> str:
    """The processor's name, as Linux tells it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def _first_line(argv: Sequence[str]) -> str:
    """First line a command prints on either stream."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return "not here"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return " ".join(lines[0].split()) if lines else "?"
