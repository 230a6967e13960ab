"""`scopeferry transfer` against cp, rsync, rclone and fpsync, as section 6 of the transfer specification asks.

    python bench/transfer.py                        every case, 5 rounds: less than half an hour, 40 GB of disk
    python bench/transfer.py --only A,D --rounds 9
    python bench/transfer.py --quick                sets of a tenth, for those who write the code; not for quoting

Ours is always the whole command as a user starts it, with a state folder of its own that is empty (but in D, D1 and
VERIFY, which are about having been there before). A peer's time ends after `sync -f` of the destination, since ours
ends with everything flushed. Exit 0 unless a tool failed: whether a bound is met is told, never asserted.

The sets stay in `--dir` for the next time; every copy is removed as soon as it has been compared with its source.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import data
import harness
from data import DataSet
from harness import Row, Sample, Step, Tool, ToolFailed

MIB = 1 << 20
WORKERS = 4  # the default of `--workers` on a local disk
BATCH_BYTES = min(64 * 65_536, 16 * MIB)  # a batch of A: 64 items or 16 MiB
LIMIT_WINDOW_S = 5.0
CHANGED_EVERY = 100  # D1: one file in a hundred
DEFAULT_FOLDER = Path("/var/tmp/scopeferry-bench")


def data_sets(*, quick: bool) -> dict[str, DataSet]:
    """The sets by name; E is `E1` and `E2`, each `small` and `large`: one folder, and ten thousand."""
    part = 10 if quick else 1
    few, many, folders = 100_000 // part, 1_000_000 // part, 10_000 // part
    suffix = "-quick" if quick else ""
    table = {
        "A": (200 // part, 20_000 // part, 64 << 10, 64 << 10),
        "B": (20, 2_000 // part, 2 * MIB, 2 * MIB),
        "C": (1, 2, 512 * MIB if quick else 4096 * MIB, 512 * MIB if quick else 4096 * MIB),
        "E1-small": (1, few, 0, 100),
        "E1-large": (1, many, 0, 100),
        "E2-small": (folders, few, 0, 100),
        "E2-large": (folders, many, 0, 100),
    }
    return {name: DataSet(name + suffix, *numbers) for name, numbers in table.items()}


@dataclass(slots=True)
class Bench:
    """One invocation: where, how often, with which command in our place, and what has been measured."""

    folder: Path
    command: str
    rounds: int
    sets: dict[str, DataSet]
    results: harness.Results = field(default_factory=harness.Results)

    @property
    def log(self) -> Path:
        """Where the output of the running tool goes."""
        return self.folder / "tool.log"

    def source(self, name: str) -> Path:
        """Folder of a data set."""
        return self.folder / "data" / self.sets[name].name

    def destination(self, name: str) -> Path:
        """Folder of a copy."""
        return self.folder / "copies" / name

    def state(self, destination: Path) -> Path:
        """XDG_STATE_HOME of our command for this copy."""
        return self.folder / "state" / destination.name

    def ours(self, destination: Path, *arguments: str | Path, before: Sequence[str] = ()) -> Step:
        """Our command, knowing of nothing but this copy; `before` is what starts it (taskset)."""
        state = str(self.state(destination))
        environment = {"XDG_STATE_HOME": state, "XDG_CONFIG_HOME": state + ".config"}
        return Step([*before, self.command, *map(str, arguments)], environment, self.folder)

    def transfer(self, name: str, *options: str) -> Tool:
        """Our copy with these options, as a tool of a case."""
        return Tool(name, lambda source, copy: [self.ours(copy, "transfer", source, copy, *options)])

    def clear(self, destination: Path) -> None:
        """Remove a copy with all that belongs to it, and wait until the disk has taken note."""
        records = destination.with_name(destination.name + ".scopeferry")
        data.remove(destination, records, self.state(destination), self.folder / "fpsync")
        for parent in (destination.parent, self.folder / "state"):
            parent.mkdir(parents=True, exist_ok=True)
        data.sync(self.folder)

    def copied(self, case: str, tool: Tool, *, whole: bool = False) -> Sample:
        """Copy the set `case` cold by `tool`, compare, remove."""
        source, destination = self.source(case), self.destination(case)
        self.clear(destination)
        harness.make_cold(2 * self.sets[case].size_bytes)
        try:
            sample = harness.timed(tool.steps(source, destination), self.log)
            harness.check_equal(source, destination, whole=whole)
        finally:
            self.clear(destination)
        return sample

    def first_copy(self, case: str, tool: Tool, source: Path, destination: Path) -> bool:
        """Make a copy that stays, with the state of the command that made it; False if that failed."""
        self.clear(destination)
        try:
            harness.timed(tool.steps(source, destination), self.log)
            harness.check_equal(source, destination, whole=False)
        except ToolFailed as error:
            self.results.fail(case, tool.name, str(error))
            return False
        return True


def peers(folder: Path) -> dict[str, Tool]:
    """The peers that are installed; the last lap of `rclone` is its check, the one before it its flushed copy."""

    def flushed(destination: Path, *argv: str) -> list[Step]:
        return [Step(argv), Step(["sync", "-f", str(destination)])]

    def rclone(source: Path, destination: Path) -> list[Step]:
        no_config = {"RCLONE_CONFIG": "/dev/null"}
        copy, check = (Step(["rclone", verb, str(source), str(destination)], no_config) for verb in ("copy", "check"))
        return [copy, Step(["sync", "-f", str(destination)]), check]

    jobs = str(folder / "fpsync")
    table = {
        "cp": Tool("cp", lambda s, d: flushed(d, "cp", "-r", str(s), str(d))),
        "rsync": Tool("rsync", lambda s, d: flushed(d, "rsync", "-a", f"{s}/", f"{d}/")),
        "rclone": Tool("rclone", rclone),
        "fpsync": Tool("fpsync", lambda s, d: flushed(d, "fpsync", "-n", "2", "-t", jobs, f"{s}/", f"{d}/")),
    }
    return {name: tool for name, tool in table.items() if shutil.which(name)}


# Peers of each case. fpsync has nothing to divide in C, and cp has no bound in B.
PEERS = {"A": ("cp", "rsync", "rclone", "fpsync"), "B": ("rsync", "rclone", "fpsync"), "C": ("cp", "rsync", "rclone")}

# Upper bounds (MUST, SHOULD) of each ratio, in the order of the table.
FULL_RSYNC = {"A": (1.0, 0.7), "B": (1.0, 0.7), "C": (1.0, 0.7)}
FULL_RCLONE = {"A": (0.75, 0.4), "B": (0.75, 0.4), "C": (0.75, 0.4)}
NONE_RSYNC = {"A": (0.8, 0.7), "B": (0.8, 0.6), "C": (0.8, 0.5)}
NONE_CP = {"A": (None, 0.9), "C": (None, 1.1)}
VERIFY_XXHSUM = {"A": (1.0, 0.6), "C": (1.1, 0.9)}


def case_copy(bench: Bench, case: str) -> list[Row]:
    """A, B, C: the full guarantee, and `--verify none`, against the peers; on B also two digests."""
    tools = [bench.transfer("full"), bench.transfer("none", "--verify", "none")]
    if case == "B":
        tools.append(bench.transfer("full, 2 digests", "--digest", "xxh128", "--digest", "sha256"))
    tools += [tool for name, tool in peers(bench.folder).items() if name in PEERS[case]]
    for turn, tool in harness.in_turns(tools, bench.rounds):
        bench.results.add(case, tool.name, turn, partial(bench.copied, case, tool, whole=turn == 0))
    return rows_copy(bench, case)


def rows_copy(bench: Bench, case: str) -> list[Row]:
    """What section 6 bounds, and the other peers for the record."""
    ratios = partial(bench.results.ratios, case)
    rows = [
        Row(f"{case}: full / rsync -a", ratios("full", "rsync"), *FULL_RSYNC[case]),
        Row(f"{case}: full / (rclone copy + check)", ratios("full", "rclone"), *FULL_RCLONE[case]),
        Row(f"{case}: full / rclone copy", ratios("full", "rclone", lap=1)),
        Row(f"{case}: --verify none / rsync -a", ratios("none", "rsync"), *NONE_RSYNC[case]),
    ]
    if "fpsync" in PEERS[case]:
        rows.append(Row(f"{case}: full / fpsync -n 2", ratios("full", "fpsync")))
    if "cp" in PEERS[case]:
        rows.append(Row(f"{case}: full / cp -r", ratios("full", "cp")))
        rows.append(Row(f"{case}: --verify none / cp -r", ratios("none", "cp"), *NONE_CP[case]))
    if case == "A":
        rows.append(Row("A: CPU seconds, full / rsync -a", ratios("full", "rsync", cpu=True), 1.4, 1.1))
    if case == "B":
        rows.append(Row("B: xxh128 and sha256 / default", ratios("full, 2 digests", "full"), 1.25, 1.1))
    return rows


def case_rerun(bench: Bench, case: str) -> list[Row]:
    """D: a rerun with nothing to do; D1: with one file in a hundred changed. Warm, and short: at least 11 rounds."""
    tools = [bench.transfer("full"), *(tool for name, tool in peers(bench.folder).items() if name == "rsync")]
    copies = {tool.name: bench.destination(f"{case}-{tool.name}") for tool in tools}
    source, files = bench.source("A"), bench.sets["A"].files

    def again(tool: Tool) -> Sample:
        sample = harness.timed(tool.steps(source, copies[tool.name]), bench.log)
        harness.check_equal(source, copies[tool.name], whole=False)
        return sample

    for tool in tools:
        bench.first_copy(case, tool, source, copies[tool.name])
    rewritten = -1
    for turn, tool in harness.in_turns(tools, max(bench.rounds, 11)):
        if case == "D1" and turn != rewritten:  # other files each round: rsync compares whole seconds only
            data.rewrite(bench.sets["A"], source, range(turn % CHANGED_EVERY, files, CHANGED_EVERY))
            rewritten = turn
        bench.results.add(case, tool.name, turn, partial(again, tool))
    for name, copy in copies.items():
        try:
            harness.check_equal(source, copy, whole=True)
        except ToolFailed as error:
            bench.results.fail(case, name, str(error))
        bench.clear(copy)
    return rows_rerun(bench, case)


def rows_rerun(bench: Bench, case: str) -> list[Row]:
    """Where nothing is written, `sync -f` flushes what others wrote: the bound of D is for rsync without it."""
    alone, flushed = (bench.results.ratios(case, "full", "rsync", lap=lap) for lap in (0, 1))
    if case == "D":
        return [
            Row("D: nothing to do, again / rsync -a again", alone, 1.5, 1.2),
            Row("D: the same, rsync with sync -f", flushed),
        ]
    return [
        Row("D1: 1 % changed / rsync -a", flushed, 1.5, 1.0),
        Row("D1: the same, rsync without sync -f", alone),
    ]


def case_many(bench: Bench, case: str) -> list[Row]:
    """E: memory and journal with 10^5 and 10^6 files, in one folder and in 10^4; once each."""
    rows = []
    for shape in ("E1", "E2"):
        large = bench.sets[f"{shape}-large"]
        few, all_ = many(bench, f"{shape}-small"), many(bench, f"{shape}-large")
        peak, journal = ([all_[0]], [all_[1]]) if all_ else ([], [])
        growth = [all_[0] - few[0]] if few and all_ else []
        files = f"{large.files:,} files, {large.folders} folder{'s' * (large.folders > 1)}"
        bound = 100 + 2 * WORKERS * MIB / 1e6
        rows += [
            Row(f"{case}: peak RSS, {files}", peak, bound, 70, " MB"),
            Row(f"{case}: growth from a tenth to {files}", growth, 10, None, " MB"),
            Row(f"{case}: journal per file less its name, {files}", journal, 70, None, " B"),
        ]
    return rows


def many(bench: Bench, name: str) -> tuple[float, float] | None:
    """Peak RSS in MB and journal bytes per file less its name, of one copy of an E set."""
    source, destination = bench.source(name), bench.destination(name)
    journal_bytes = 0

    def measure() -> Sample:
        nonlocal journal_bytes
        bench.clear(destination)
        try:
            sample = harness.timed([bench.ours(destination, "transfer", source, destination)], bench.log)
            journal_bytes = data.shape(bench.state(destination))[1]
            harness.check_equal(source, destination, whole=name.endswith("small"))
        finally:
            bench.clear(destination)
        return sample

    bench.results.add(name, "full", 0, measure)
    sample = bench.results.samples.get((name, "full"), {}).get(0)
    if sample is None:
        return None
    files = bench.sets[name].files
    return sample.peak_rss_bytes / 1e6, journal_bytes / files - bench.sets[name].name_bytes()


def case_kill(bench: Bench, case: str) -> list[Row]:
    """SIGKILL at 35 % of A, then the same command again: bytes that were sent twice."""
    twice = []
    for turn in range(bench.rounds):
        try:
            twice.append(killed_and_again(bench, bench.destination(case)) / MIB)
            harness.say(f"{case:8} round {turn + 1:2}  {twice[-1]:.2f} MiB sent twice")
        except ToolFailed as error:
            bench.results.fail(case, "full", str(error))
            break
        finally:
            bench.clear(bench.destination(case))
    bound = WORKERS * BATCH_BYTES / MIB
    return [Row("A killed at 35 %, again: sent twice, worst", twice, bound, None, " MiB", "max")]


def killed_and_again(bench: Bench, destination: Path) -> int:
    """Bytes in unfinished files at the kill, and in finished ones that the second run wrote again (another inode)."""
    source = bench.source("A")
    step = bench.ours(destination, "transfer", source, destination)
    bench.clear(destination)
    with harness.running(step, bench.log) as process:  # killed at the end of the block
        while len(finished(destination)) < 0.35 * bench.sets["A"].files:
            if process.poll() is not None:
                raise ToolFailed(f"ended (exit {process.returncode}) before it could be killed")
            time.sleep(0.02)
    inodes = {path: found.st_ino for path, found in finished(destination)}
    lost = sum(found.st_size for path, found in data.walk(destination) if path not in inodes)
    harness.timed([step], bench.log)
    harness.check_equal(source, destination, whole=True)
    rewritten = (found for path, found in finished(destination) if inodes.get(path, found.st_ino) != found.st_ino)
    return lost + sum(found.st_size for found in rewritten)


def finished(destination: Path) -> list[tuple[str, os.stat_result]]:
    """Files that bear a final name; a tree in motion may lack what it had a moment ago."""
    try:
        return [(path, found) for path, found in data.walk(destination) if not path.endswith(".part")]
    except FileNotFoundError:
        return []


def case_limit(bench: Bench, case: str) -> list[Row]:
    """`--limit` on B: the fastest 5 s, by what the kernel counts as written by the process (journal included)."""
    megabytes = max(1, bench.sets["B"].size_bytes // 20_000_000)  # 20 s for the whole set
    destination = bench.destination(case)
    step = bench.ours(destination, "transfer", bench.source("B"), destination, "--limit", f"{megabytes}MB")
    bench.clear(destination)
    try:
        points = written(step, bench.log)
        harness.check_equal(bench.source("B"), destination, whole=False)
    except ToolFailed as error:
        bench.results.fail(case, "full", str(error))
        points = []
    finally:
        bench.clear(destination)
    fastest = [rate / megabytes / 1e6 for rate in rates(points, LIMIT_WINDOW_S)]
    mean = [points[-1][1] / points[-1][0] / megabytes / 1e6] if points else []
    return [
        Row(f"B --limit {megabytes}MB: any 5 s / limit, fastest", fastest, 1.05, reported="max"),
        Row(f"B --limit {megabytes}MB: mean rate / limit", mean),
    ]


def written(step: Step, log: Path) -> list[tuple[float, int]]:
    """Run a command; (seconds, bytes written so far) every 50 ms."""
    points = []
    started = time.perf_counter()
    with harness.running(step, log) as process:
        while process.poll() is None:
            try:
                counters = Path(f"/proc/{process.pid}/io").read_text().split()
            except OSError:  # it has just ended
                counters = []
            if "wchar:" in counters:
                points.append((time.perf_counter() - started, int(counters[counters.index("wchar:") + 1])))
            time.sleep(0.05)
    harness.check_exit(step, process.returncode, log)
    return points


def rates(points: Sequence[tuple[float, int]], window_s: float) -> list[float]:
    """Bytes a second over every stretch of `window_s`.

    >>> rates([(0, 0), (1, 10), (2, 30), (3, 40)], 2)
    [15.0, 15.0]
    """
    found, end = [], 0
    for begun, before in points:
        while end < len(points) and points[end][0] < begun + window_s:
            end += 1
        if end == len(points):
            break
        found.append((points[end][1] - before) / (points[end][0] - begun))
    return found


def case_verify(bench: Bench, case: str) -> list[Row]:
    """`verify` against `xxhsum -c` of our own manifest, cold, both on one core."""
    rows = []
    for name, bounds in VERIFY_XXHSUM.items():
        label = f"{case}-{name}"
        copy = bench.destination(label)
        try:
            if bench.first_copy(label, bench.transfer("full"), bench.source(name), copy):
                verified(bench, label, copy, bench.sets[name].size_bytes)
        finally:
            bench.clear(copy)
        values = bench.results.ratios(label, "verify", "xxhsum")
        rows.append(Row(f"{name}: verify / xxhsum -c, one core", values, *bounds))
    return rows


def verified(bench: Bench, label: str, copy: Path, size_bytes: int) -> None:
    """The rounds of one copy; both programs fail unless every file is right."""
    core = ["taskset", "-c", str(max(os.sched_getaffinity(0)))]
    manifest = copy.with_name(copy.name + ".scopeferry") / "manifest.xxh128"
    tools = [
        Tool("verify", lambda _, copy: [bench.ours(copy, "verify", copy, before=core)]),
        Tool("xxhsum", lambda _, copy: [Step([*core, "xxhsum", "-c", "--strict", str(manifest)], cwd=copy)]),
    ]

    def cold(tool: Tool) -> Sample:
        harness.make_cold(size_bytes)
        return harness.timed(tool.steps(copy, copy), bench.log)

    for turn, tool in harness.in_turns(tools, bench.rounds):
        bench.results.add(label, tool.name, turn, partial(cold, tool))


# Each case, and the sets it needs.
CASES: dict[str, tuple[Callable[[Bench, str], list[Row]], tuple[str, ...]]] = {
    "A": (case_copy, ("A",)),
    "B": (case_copy, ("B",)),
    "C": (case_copy, ("C",)),
    "D": (case_rerun, ("A",)),
    "D1": (case_rerun, ("A",)),
    "VERIFY": (case_verify, ("A", "C")),
    "KILL": (case_kill, ("A",)),
    "E": (case_many, ("E1-small", "E1-large", "E2-small", "E2-large")),
    "LIMIT": (case_limit, ("B",)),
}


def prepare(bench: Bench, cases: Sequence[str]) -> None:
    """Build the sets that are missing, then wait: a file younger than a minute is copied in another way (3.3)."""
    names = dict.fromkeys(name for case in cases for name in CASES[case][1])
    started = time.time()
    (bench.folder / "data").mkdir(parents=True, exist_ok=True)
    for name in names:
        harness.say(f"set {bench.sets[name].name}")
        data.ensure(bench.sets[name], bench.folder / "data")
    youngest = max(bench.source(name).stat().st_mtime for name in names)
    if youngest > started:
        time.sleep(max(0.0, youngest + 61 - time.time()))


def arguments() -> argparse.Namespace:
    """The options; see the module docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", default=",".join(CASES), help=f"cases, by comma (all: {','.join(CASES)})")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each case (5)")
    parser.add_argument("--dir", type=Path, default=DEFAULT_FOLDER, help=f"sets and copies ({DEFAULT_FOLDER})")
    parser.add_argument("--quick", action="store_true", help="sets of a tenth, for development")
    beside = Path(sys.executable).with_name("scopeferry")
    parser.add_argument("--ours", default=str(beside), metavar="COMMAND", help=f"the command ({beside})")
    options = parser.parse_args()
    options.cases = [case.strip().upper() for case in options.only.split(",")]
    if unknown := [case for case in options.cases if case not in CASES]:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if not shutil.which(options.ours):
        parser.error(f"{options.ours} is not there; install the package (pip install -e .) or name it with --ours")
    return options


def main() -> int:
    """Measure, print, and say by the exit code whether every tool worked."""
    options = arguments()
    for name in [name for name in os.environ if name.startswith(("SCOPEFERRY_", "RCLONE_"))]:
        del os.environ[name]
    bench = Bench(options.dir.resolve(), options.ours, options.rounds, data_sets(quick=options.quick))
    prepare(bench, options.cases)
    print_facts(bench, quick=options.quick)
    started = time.monotonic()
    rows: list[Row] = []
    try:
        for case in options.cases:
            rows += CASES[case][0](bench, case)
    finally:
        data.remove(bench.folder / "copies", bench.folder / "state", bench.folder / "fpsync")
    print_results(bench, rows, minutes=(time.monotonic() - started) / 60)
    return 1 if bench.results.failures else 0


def print_facts(bench: Bench, *, quick: bool) -> None:
    """Machine and versions, before anything runs."""
    versions = {
        "scopeferry": [bench.command, "--version"],
        "rsync": ["rsync", "--version"],
        "rclone": ["rclone", "version"],
        "fpsync": ["fpsync", "-h"],
        "cp": ["cp", "--version"],
        "xxhsum": ["xxhsum", "--version"],
    }
    harness.print_facts(bench.folder, versions)
    if quick:
        print("QUICK: sets of a tenth; start-up weighs ten times as much. Not for quoting.\n", flush=True)


def print_results(bench: Bench, rows: Sequence[Row], minutes: float) -> None:
    """Table, seconds, failures."""
    harness.print_table(rows)
    harness.print_seconds(bench.results)
    print(f"\n{minutes:.1f} minutes")
    for (case, tool), message in bench.results.failures.items():
        print(f"FAILED {case} {tool}: {message}")


if __name__ == "__main__":
    sys.exit(main())
