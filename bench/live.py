"""`scopeferry live` against cp, rsync, rclone, softcopy and the rsync loop: section 6 of the live specification.

    python bench/live.py                        every case, 3 rounds: about two hours, 30 GB of disk
    python bench/live.py --only A,C --rounds 5
    python bench/live.py --quick                a tenth of everything, for those who write the code; not for quoting

A, B and H copy what is finished, so any peer can; in the others a real writer (`testing.SlowWriter`) writes while the
copier runs, and the peers are softcopy (in an environment of its own, made at first use) and the loop: rsync each 0.5 s
until the marker is there, then once more. Tools take turns, what is compared is always the same round, and every ratio
is of *times*, so that less is better. When a file arrived is taken from the change times that rename leaves on both
sides, so nothing watches while it is measured. A peer's time on finished sets ends after `sync -f` of the destination.
Exit 0 unless a tool failed: whether a bound is met is told, never asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import data
import harness
from harness import Row, Sample, Step, Tool, ToolFailed
from live_sets import METADATA, Steps, finished_sets, live_sets
from scopeferry.testing.environments import Unavailable, python_of
from scopeferry.testing.slow_writer import SlowWriter

MIB = 1 << 20
MARKER = "complete"
KEPT_BYTES = 10 << 30  # of old copies that wait for the end of their case
GIVE_UP_S = 120.0  # a copier that has not ended so long after the marker never will
SAMPLE_S = 0.2
DEFAULT_FOLDER = Path("/var/tmp/scopeferry-bench-live")
LOOP = """
while [ ! -e "$1/complete" ]; do rsync -a --exclude='*.__lock' "$1/" "$2/"; sleep 0.5; done
rsync -a --exclude='*.__lock' "$1/" "$2/"
"""


@dataclass(frozen=True, slots=True)
class Followed:
    """What one live run showed; times in seconds."""

    arrivals_s: tuple[float, ...]  # of each chunk, after the rename at the source
    after_end: int  # chunks that arrived after the marker was written
    exit_s: float  # after the marker was written
    first_s: float  # from the copier's start to its first chunk
    late_s: float  # the latest step of the writer
    took_s: tuple[float, ...]  # each step of the writer
    writing_s: float  # all steps
    arrived_bytes: int  # at the destination when the writer's last step ended
    cpu_s: float
    memory_bytes: int  # proportional set size of all processes of the copier, at most
    processes: int  # at most
    log_bytes: int

    def arrival(self, percent: float) -> float:
        """A percentile of the arrivals."""
        return percentile(self.arrivals_s, percent)


@dataclass(slots=True)
class Bench:
    """One invocation: where, how often, with which command in our place, and what has been measured."""

    folder: Path
    command: str
    rounds: int
    quick: bool
    softcopy: str = ""  # its interpreter; empty if it is not to be had
    results: harness.Results = field(default_factory=harness.Results)
    followed: dict[tuple[str, str], dict[int, Followed]] = field(default_factory=dict)
    kept_bytes: int = 0

    @property
    def kept(self) -> Path:
        """Where old copies are kept until their case is over."""
        return self.folder / "kept"

    @property
    def log(self) -> Path:
        """Where the output of the running tool goes."""
        return self.folder / "tool.log"

    @property
    def source(self) -> Path:
        """The store that is being written."""
        return self.folder / "live" / "source.zarr"

    @property
    def copy(self) -> Path:
        """The copy, one at a time."""
        return self.folder / "copies" / "copy.zarr"

    def finished(self, name: str) -> Path:
        """Folder of a finished set."""
        return self.folder / "data" / f"{name}.zarr"

    def clear(self, *, source: bool = True) -> None:
        """Remove the copy with all that belongs to it, and the live source; wait until the disk has taken note.

        ext4 gives out no inode that was freed in the last minutes, and looks at each of them for every new file: a copy
        that is removed just before makes the next one several times as slow, whoever makes it. So what is small is
        kept, out of the way, until its case is over.
        """
        state = self.folder / "state"
        records = self.copy.with_name(self.copy.name + ".scopeferry")
        for old in (self.copy, *([self.source] if source else [])):
            self._put_away(old)
        data.remove(records, state)
        for folder in (self.copy.parent, self.source.parent, state):
            folder.mkdir(parents=True, exist_ok=True)
        data.sync(self.folder)

    def _put_away(self, old: Path) -> None:
        size = data.shape(old)[1] if old.exists() else KEPT_BYTES
        if self.kept_bytes + size >= KEPT_BYTES:
            data.remove(old)
            return
        self.kept_bytes += size
        self.kept.mkdir(parents=True, exist_ok=True)
        old.rename(self.kept / f"{time.time_ns()}")

    def let_go(self) -> None:
        """Remove what was kept."""
        data.remove(self.kept)
        self.kept_bytes = 0

    # -- tools ---------------------------------------------------------------------------------------------------------

    def ours(self, source: Path, copy: Path, *options: str) -> Step:
        """Our command, knowing of nothing."""
        state = str(self.folder / "state")
        environment = {"XDG_STATE_HOME": state, "XDG_CONFIG_HOME": state + "/config"}
        return Step([self.command, "live", str(source), str(copy), *options], environment, self.folder)

    def tool(self, name: str, *options: str) -> Tool:
        """Our copy with these options."""
        return Tool(name, lambda source, copy: [self.ours(source, copy, *options)])

    def peers(self, *names: str) -> list[Tool]:
        """Those of these that are here."""
        table: dict[str, tuple[str, Callable[[Path, Path], list[Step]]]] = {
            "cp": ("cp", lambda s, d: flushed(d, "cp", "-r", str(s), str(d))),
            "rsync": ("rsync", lambda s, d: flushed(d, "rsync", "-a", f"{s}/", f"{d}/")),
            "rsync twice": ("rsync", _rsync_twice),
            "rclone": ("rclone", lambda s, d: flushed(d, "rclone", "copy", str(s), str(d))),
            "loop": ("rsync", lambda s, d: [Step(["sh", "-c", LOOP, "loop", str(s), str(d)])]),
            "softcopy": (self.softcopy, self._softcopy),
        }
        return [Tool(name, table[name][1]) for name in names if table[name][0] and shutil.which(table[name][0])]

    def _softcopy(self, source: Path, copy: Path) -> list[Step]:
        script = "from softcopy.main import main; main()"
        words = [self.softcopy, "-c", script, "--sleep-time", "0", "--nprocs", "2", str(source), str(copy)]
        return [Step(words), Step(["sync", "-f", str(copy.parent)])]

    # -- one run -------------------------------------------------------------------------------------------------------

    def copied(self, name: str, tool: Tool) -> Sample:
        """Copy a finished set that lies in the page cache; compare, remove."""
        source = self.finished(name)
        self.clear()
        warm(source)
        sample = harness.timed(tool.steps(source, self.copy), self.log)
        harness.check_equal(source, self.copy, whole=False)
        return sample

    def follow(self, tool: Tool | None, steps: Steps) -> Followed:
        """Write the set at its pace with this copier beside (None: alone); `harness.ToolFailed` if the trees differ.

        Whether the marker is copied is left to the copier: softcopy does not.
        """
        self.clear()
        with SlowWriter(self.source, steps.writer, **steps.settings) as writer:
            writer.do(*steps.before)
            if tool is None:
                return _alone(writer, steps)
            step = tool.steps(self.source, self.copy)[0]
            with with_children(step, self.log) as copier, watched(copier.pid) as seen:
                began = time.time()
                self._first(copier, began, steps)
                writer.start(steps.series)
                (times,) = writer.wait(timeout_s=1800)
                arrived = sum(found.st_size for _, found in present(self.copy))
                writer.finish(MARKER)
                code, ended = self._ended(copier)
        harness.check_exit(step, code, self.log)
        found = self._measured(began, ended, times, arrived, seen, steps)
        for side in (self.source, self.copy):
            (side / MARKER).unlink(missing_ok=True)
        harness.check_equal(self.source, self.copy, whole=True)
        return found

    def _first(self, copier: subprocess.Popen[bytes], began: float, steps: Steps) -> None:
        """Wait until the copier is at work: what was there before it has arrived (or a backlog has begun to)."""
        while time.time() < began + 30 and copier.poll() is None:
            if any(steps.is_chunk(path) for path, _ in present(self.copy)):
                return
            time.sleep(0.02)

    def _ended(self, copier: subprocess.Popen[bytes]) -> tuple[int, float]:
        patience_s = GIVE_UP_S / (4 if self.quick else 1)
        try:
            code = copier.wait(patience_s)
        except subprocess.TimeoutExpired:
            raise ToolFailed(f"has not ended {patience_s:.0f} s after the marker") from None
        return code, time.time()

    def _measured(
        self, began: float, ended: float, times: list[list[float]], arrived: int, seen: Seen, steps: Steps
    ) -> Followed:
        marked = (self.source / MARKER).stat().st_ctime
        left = {path: found.st_ctime for path, found in data.walk(self.source) if steps.is_chunk(path)}
        came = {path: found.st_ctime for path, found in data.walk(self.copy) if path in left}
        first = min(came.values(), default=ended) - began
        new = {path: at for path, at in came.items() if left[path] > began}
        took = tuple(one for _, one in times)
        return Followed(
            arrivals_s=tuple(max(0.0, at - left[path]) for path, at in new.items()),
            after_end=sum(at > marked for at in came.values()),
            exit_s=ended - marked,
            first_s=first,
            late_s=max((late for late, _ in times), default=0.0),
            took_s=took,
            writing_s=sum(took),
            arrived_bytes=arrived,
            cpu_s=seen.cpu_s,
            memory_bytes=seen.memory_bytes,
            processes=seen.processes,
            log_bytes=self.log.stat().st_size,
        )

    def rounds_of(self, case: str, tools: Sequence[Tool], steps: Steps, *, alone: bool = False) -> None:
        """Every tool in turns, and the writer alone if asked for, kept by round."""
        nobody = [Tool("alone", lambda _source, _copy: [])] if alone else []
        for turn, tool in harness.in_turns([*nobody, *tools], self.rounds):
            self.results.add(case, tool.name, turn, partial(self._round, case, tool, turn, steps))

    def _round(self, case: str, tool: Tool, turn: int, steps: Steps) -> Sample:
        found = self.follow(None if tool.name == "alone" else tool, steps)
        self.followed.setdefault((case, tool.name), {})[turn] = found
        if found.arrivals_s:
            harness.say(
                f"         p50 {found.arrival(50):.3f} s  p99 {found.arrival(99):.3f} s  exit {found.exit_s:.2f} s"
            )
        return Sample((found.writing_s + found.exit_s,), found.cpu_s, found.memory_bytes)

    def values(self, case: str, tool: str, measure: Callable[[Followed], float]) -> list[float]:
        """One figure of each round that ended well."""
        if (case, tool) in self.results.failures:
            return []
        return [measure(found) for _, found in sorted(self.followed.get((case, tool), {}).items())]

    def against(self, case: str, ours: str, peer: str, measure: Callable[[Followed], float]) -> list[float]:
        """The same figure, ours divided by the peer's of the same round."""
        mine, theirs = (self.followed.get((case, name), {}) for name in (ours, peer))
        both = sorted(mine.keys() & theirs.keys())
        return [measure(mine[turn]) / max(1e-4, measure(theirs[turn])) for turn in both]


# -- pieces ------------------------------------------------------------------------------------------------------------


def flushed(destination: Path, *argv: str) -> list[Step]:
    """A command, then the destination's flush."""
    no_config = {"RCLONE_CONFIG": "/dev/null"}
    return [Step(argv, no_config), Step(["sync", "-f", str(destination)])]


def _rsync_twice(source: Path, copy: Path) -> list[Step]:
    """Copy, flush, and compare every byte by reading both sides."""
    return [*flushed(copy, "rsync", "-a", f"{source}/", f"{copy}/"), Step(["rsync", "-anc", f"{source}/", f"{copy}/"])]


def warm(folder: Path) -> None:
    """Read every file, so that it lies in the page cache."""
    for path, _ in data.walk(folder):
        with open(folder / path, "rb", buffering=0) as file:
            while file.read(4 * MIB):
                pass


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many percent do not exceed; nan without values.

    >>> percentile([3, 1, 2], 50), percentile([1, 2, 3, 4], 99)
    (2, 4)
    """
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("nan")


@contextmanager
def with_children(step: Step, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A copier; what still runs of it at the end of the block is killed, its children too (the loop's, softcopy's)."""
    with harness.running(step, log) as process:
        try:
            yield process
        finally:
            for pid in family(process.pid) if process.poll() is None else ():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue


def present(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Files of a tree in motion that bear a final name; what goes while it is listed is left out."""
    found: list[tuple[str, os.stat_result]] = []
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            try:
                found.append((os.path.relpath(path, folder), os.lstat(path)))
            except FileNotFoundError:
                continue
    return [(path, seen) for path, seen in found if not os.path.basename(path).startswith(".") or path in METADATA]


@dataclass(slots=True)
class Seen:
    """What a tree of processes was seen to use."""

    cpu_s: float = 0.0
    memory_bytes: int = 0
    processes: int = 0


@contextmanager
def watched(pid: int) -> Iterator[Seen]:
    """Sample a process and its children until the end of the block."""
    seen, stop = Seen(), threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_S):
            pids = family(pid)
            seen.processes = max(seen.processes, len(pids))
            seen.memory_bytes = max(seen.memory_bytes, sum(map(proportional_bytes, pids)))
            seen.cpu_s = max(seen.cpu_s, sum(map(cpu_seconds, pids)))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def family(pid: int) -> list[int]:
    """A process and all below it that run."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:
                continue
    return found


def proportional_bytes(pid: int) -> int:
    """PSS of a process; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _alone(writer: SlowWriter, steps: Steps) -> Followed:
    (times,) = writer.do(steps.series)
    writer.finish(MARKER)
    took = tuple(one for _, one in times)
    late = max((late for late, _ in times), default=0.0)
    return Followed((), 0, 0.0, 0.0, late, took, sum(took), 0, 0.0, 0, 0, 0)


# -- cases -------------------------------------------------------------------------------------------------------------


def case_finished(bench: Bench, case: str) -> list[Row]:
    """A and B: finished sets in the page cache."""
    none, full = bench.tool("none", "--verify", "none"), bench.tool("full")
    tools = [none, full, *bench.peers("cp", "rsync", "rsync twice", "rclone", "softcopy")]
    for turn, tool in harness.in_turns(tools, bench.rounds):
        bench.results.add(case, tool.name, turn, partial(bench.copied, case, tool))
    bench.clear()
    ratio = partial(bench.results.ratios, case)
    bounds = {"A": {"cp": 1 / 0.85, "rclone": 1 / 1.8, "softcopy": 1 / 1.2}, "B": {"cp": 2.0, "rclone": 1 / 3}}
    bounds["B"] |= {"softcopy": 1 / 4, "rsync": 1 / 2}
    wanted = bounds.get(case[0], {})
    should = {"B": {"cp": 1 / 0.8, "rsync": 1 / 3}}.get(case, {})
    rows = [
        Row(f"{case}: --verify none / {peer}", ratio("none", peer), wanted.get(peer), should.get(peer))
        for peer in ("cp", "rsync", "rclone", "softcopy")
    ]
    bound = (1.0, 1 / 1.5) if case == "A" else (None, None)
    return [
        *rows,
        Row(f"{case}: --verify none / cp without sync", ratio("none", "cp", lap=0), None, 1 / 0.85),
        Row(f"{case}: full / (rsync -a, rsync -anc)", ratio("full", "rsync twice"), *bound),
    ]


def case_steady(bench: Bench, case: str) -> list[Row]:
    """C in each layout: a tensorstore writer of 80 chunks a second."""
    rows: list[Row] = []
    for layout, steps in live_sets(bench.quick).items():
        if not layout.startswith(case):
            continue
        bench.rounds_of(layout, [bench.tool("full"), *bench.peers("loop", "softcopy")], steps)
        value, against = partial(bench.values, layout, "full"), partial(bench.against, layout, "full", "loop")
        chunks = steps.chunks
        rows += [
            Row(f"{layout}: arrival p50", value(lambda f: 1e3 * f.arrival(50)), 50, 20, " ms"),
            Row(f"{layout}: arrival p99", value(lambda f: 1e3 * f.arrival(99)), 250, 100, " ms"),
            Row(f"{layout}: arrival p50 / loop", against(lambda f: f.arrival(50)), 0.25),
            Row(f"{layout}: arrival p99 / loop", against(lambda f: f.arrival(99)), 0.5),
            Row(f"{layout}: chunks left for the end", value(lambda f: f.after_end), 0, None, " ", "max"),
            Row(f"{layout}: latest step of the writer", value(lambda f: f.late_s), 0.1, None, " s", "max"),
            Row(
                f"{layout}: exit after the marker",
                value(lambda f: f.exit_s),
                0.5 + 15e-6 * max(0, chunks - 1000),
                0.3,
                " s",
            ),
            Row(f"{layout}: memory", value(lambda f: f.memory_bytes / 1e6), 150, 90, " MB", "max"),
            Row(f"{layout}: processes", value(lambda f: f.processes), 1, None, " ", "max"),
            Row(f"{layout}: log", value(lambda f: f.log_bytes / 1e3), 20, None, " kB", "max"),
            Row(f"{layout}: start to first chunk", value(lambda f: 1e3 * f.first_s), 700, 400, " ms"),
            Row(
                f"{layout}: arrival p50, softcopy",
                bench.values(layout, "softcopy", lambda f: 1e3 * f.arrival(50)),
                unit=" ms",
            ),
            Row(
                f"{layout}: arrival p50, loop", bench.values(layout, "loop", lambda f: 1e3 * f.arrival(50)), unit=" ms"
            ),
        ]
    return rows


def case_speed(bench: Bench, case: str) -> list[Row]:
    """D: what a copier costs a writer at full speed."""
    steps = live_sets(bench.quick)[case]
    bench.rounds_of(case, [bench.tool("full"), *bench.peers("loop", "softcopy")], steps, alone=True)
    writing = partial(bench.against, case, measure=lambda f: f.writing_s)
    return [
        Row("D: writer's time / alone", writing("full", "alone"), 1 / 0.90, 1 / 0.95),
        *(Row(f"D: the same beside {peer}", writing(peer, "alone")) for peer in ("loop", "softcopy")),
    ]


def case_gentle(bench: Bench, case: str) -> list[Row]:
    """E: a writer of 100 MB/s that flushes, beside a backlog."""
    steps = live_sets(bench.quick)[case]
    free = bench.tool("not gentle", "--gentle", "off")
    bench.rounds_of(case, [bench.tool("full"), free, *bench.peers("loop")], steps, alone=True)
    against = partial(bench.against, case)
    seconds = steps.every_s * len(steps.orders)
    rate = bench.values(case, "full", lambda f: seconds / max(1e-9, f.arrived_bytes / 100e6))
    rows = [
        Row(
            "E: writer's end against its rhythm",
            bench.values(case, "full", lambda f: 1 + f.late_s / seconds),
            1 / 0.985,
        ),
        Row("E: 100 MB/s / copier's rate meanwhile", rate, 1.0),
    ]
    for name in ("full", "not gentle", "loop"):
        bounds = {"full": ((2.0, 1.2), (3.0, 1.2))}.get(name, ((None, None), (None, None)))
        for percent, bound in zip((50, 99), bounds, strict=True):
            measure = partial(lambda f, percent: percentile(f.took_s, percent), percent=percent)
            rows.append(Row(f"E: writer's p{percent} / alone, {name}", against(name, "alone", measure), *bound))
    return rows


def case_shots(bench: Bench, case: str) -> list[Row]:
    """F: chunks in four shots, back to back; a run that ends unequal is a failure of the tool."""
    steps = live_sets(bench.quick)[case]
    runs, equal, sent = (10 if bench.quick else 200), 0, []
    tool = bench.tool("full", "--json")
    for turn in range(runs):
        try:
            bench.follow(tool, steps)
            envelope = json.loads(last_object(bench.log.read_text()))
            sent.append(envelope["bytes"] / data.shape(bench.source)[1])
            equal += 1
        except ToolFailed as error:
            bench.results.fail(case, tool.name, f"run {turn}: {error}")
    harness.say(f"F        {equal} of {runs} equal")
    return [
        Row("F: runs that ended unequal", [runs - equal], 0, None, " ", "max"),
        Row("F: copies of a file, mean", sent, 2.0, None, "", "max"),
    ]


def last_object(text: str) -> str:
    """The last JSON object in a log."""
    return text[text.rindex("\n{") + 1 :] if "\n{" in text else text


def case_burst(bench: Bench, case: str) -> list[Row]:
    """G: as fast as the disk takes them into one folder."""
    steps = live_sets(bench.quick)[case]
    bench.rounds_of(case, [bench.tool("full"), *bench.peers("loop", "softcopy")], steps)
    return [
        Row(f"G: end after the writer's, {name}", bench.values(case, name, lambda f: f.exit_s), *bound, " s")
        for name, bound in (("full", (1.5, 1.0)), ("loop", (None, None)), ("softcopy", (None, None)))
    ]


def case_kill(bench: Bench, case: str) -> list[Row]:
    """H: SIGKILL half way, then the same command: what was written again, beyond what was in flight."""
    again = []
    for turn in range(bench.rounds):
        try:
            again.append(killed_and_again(bench, bench.finished(case)))
            harness.say(f"{case}        round {turn + 1:2}  {again[-1]} files written again")
        except ToolFailed as error:
            bench.results.fail(case, "full", str(error))
            break
    bench.clear()
    return [Row("H: files written again", again, 4 + 2, None, " ", "max")]


def killed_and_again(bench: Bench, source: Path) -> int:
    """Files that had arrived when it was killed and bear another inode at the end."""
    bench.clear()
    step, half = bench.ours(source, bench.copy), data.shape(source)[0] / 2
    with harness.running(step, bench.log) as process:  # killed at the end of the block
        while len(arrived(bench.copy)) < half:
            if process.poll() is not None:
                harness.check_exit(step, process.returncode or 1, bench.log)
            time.sleep(0.01)
    inodes = arrived(bench.copy)
    harness.timed([step], bench.log)
    harness.check_equal(source, bench.copy, whole=True)
    after = arrived(bench.copy)
    return sum(after[path] != inode for path, inode in inodes.items())


def arrived(copy: Path) -> dict[str, int]:
    """Inode of each file that bears a final name."""
    return {path: found.st_ino for path, found in present(copy)}


def case_folders(bench: Bench, case: str) -> list[Row]:
    """I: ten thousand new folders at 2,000 files a second: nothing missed, with events and without."""
    steps = live_sets(bench.quick)[case]
    tools = [bench.tool("full"), bench.tool("scan", "--watch", "scan"), *bench.peers("loop")]
    bench.rounds_of(case, tools, steps)
    left = [bench.values(case, name, lambda f: f.after_end) for name in ("full", "scan")]
    cores = bench.values(case, "full", lambda f: f.cpu_s / max(1e-9, f.writing_s))
    return [
        Row("I: files left for the end", left[0], None, None, " ", "max"),
        Row("I: the same, --watch scan", left[1], None, None, " ", "max"),
        Row(
            "I: arrival p50, --watch scan", bench.values(case, "scan", lambda f: 1e3 * f.arrival(50)), 300, None, " ms"
        ),
        Row("I: arrival p50", bench.values(case, "full", lambda f: 1e3 * f.arrival(50)), unit=" ms"),
        Row("I: cores, watching and copying", cores),
        Row("I: watching alone, cores", watching(bench, steps), 0.05, 0.03),
    ]


def watching(bench: Bench, steps: Steps) -> list[float]:
    """CPU of `GrowingTree` alone, which finds and copies nothing, in cores while the writer writes."""
    found = []
    for _ in range(bench.rounds):
        bench.clear()
        with SlowWriter(bench.source, steps.writer, **steps.settings) as writer:
            writer.do(*steps.before)
            words = [sys.executable, str(Path(__file__).with_name("live_watch.py")), str(bench.source), MARKER]
            with harness.running(Step(words), bench.log) as process:
                writer.do(steps.series)
                writer.finish(MARKER)
                harness.check_exit(Step(words), process.wait(GIVE_UP_S), bench.log)
        told = json.loads(bench.log.read_text())
        harness.say(f"I        found {told['items']} files, {told['cores']:.3f} cores")
        found.append(told["cores"])
    return found


def case_plate(bench: Bench, case: str) -> list[Row]:
    """J: a plate of 864 images that appear one after the other."""
    steps = live_sets(bench.quick)[case]
    bench.rounds_of(case, [bench.tool("full"), *bench.peers("loop")], steps)
    value = partial(bench.values, case, "full")
    return [
        Row("J: memory", value(lambda f: f.memory_bytes / 1e6), 150, 90, " MB", "max"),
        Row("J: processes", value(lambda f: f.processes), 1, None, " ", "max"),
        Row(
            "J: exit after the marker", value(lambda f: f.exit_s), 0.5 + 15e-6 * max(0, steps.chunks - 1000), None, " s"
        ),
        Row("J: the same, loop", bench.values(case, "loop", lambda f: f.exit_s), unit=" s"),
    ]


CASES: dict[str, Callable[[Bench, str], list[Row]]] = {
    "A": case_finished,
    "B": case_finished,
    "B3": case_finished,
    "C": case_steady,
    "D": case_speed,
    "E": case_gentle,
    "F": case_shots,
    "G": case_burst,
    "H": case_kill,
    "I": case_folders,
    "J": case_plate,
}


def arguments() -> argparse.Namespace:
    """The options; see the module docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", default=",".join(CASES), help=f"cases, by comma (all: {','.join(CASES)})")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each case (3)")
    parser.add_argument("--dir", type=Path, default=DEFAULT_FOLDER, help=f"sets and copies ({DEFAULT_FOLDER})")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, for development")
    parser.add_argument("--no-softcopy", action="store_true", help="do not make its environment")
    beside = Path(sys.executable).with_name("scopeferry")
    parser.add_argument("--ours", default=str(beside), metavar="COMMAND", help=f"the command ({beside})")
    options = parser.parse_args()
    options.cases = [case.strip().upper() for case in options.only.split(",")]
    if unknown := [case for case in options.cases if case not in CASES]:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def softcopy_python() -> str:
    """Its interpreter, or nothing."""
    try:
        return python_of("softcopy")
    except Unavailable as error:
        harness.say(str(error))
        return ""


def prepare(bench: Bench, cases: Sequence[str]) -> None:
    """Make the finished sets that are missing."""
    for name, steps in finished_sets(bench.quick).items():
        place = bench.finished(name)
        done = place.with_name(f"{name}.json")
        text = json.dumps([len(steps.orders), steps.chunks, bench.quick])
        if name not in cases or (done.is_file() and done.read_text() == text):
            continue
        harness.say(f"set {name}")
        data.remove(done, place)
        place.parent.mkdir(parents=True, exist_ok=True)
        with SlowWriter(place, steps.writer, **steps.settings) as writer:
            writer.do(*steps.before)
            writer.start(steps.series)
            writer.wait(timeout_s=1800)
            writer.finish(MARKER)
        data.sync(place)
        done.write_text(text)


def main() -> int:
    """Measure, print, and say by the exit code whether every tool worked."""
    options = arguments()
    for name in [name for name in os.environ if name.startswith(("SCOPEFERRY_", "RCLONE_"))]:
        del os.environ[name]
    softcopy = "" if options.no_softcopy else softcopy_python()
    bench = Bench(options.dir.resolve(), options.ours, options.rounds, options.quick, softcopy)
    prepare(bench, options.cases)
    versions = {
        "scopeferry": [options.ours, "--version"],
        "rsync": ["rsync", "--version"],
        "rclone": ["rclone", "version"],
        "softcopy": [softcopy or "softcopy", "-c", "import importlib.metadata as m; print(m.version('softcopy'))"],
    }
    harness.print_facts(bench.folder, versions)
    if options.quick:
        print("QUICK: a tenth of everything; these figures are for development only\n")
    rows: list[Row] = []
    try:
        for case in options.cases:
            rows += CASES[case](bench, case)
            bench.let_go()
    finally:
        bench.clear()
        bench.let_go()
    harness.print_table(rows)
    harness.print_seconds(bench.results)
    for (case, tool), message in bench.results.failures.items():
        print(f"\nFAILED {case} {tool}: {message}")
    return 1 if bench.results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
