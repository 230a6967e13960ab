"""SIGKILL of `live`, at random moments and at the calls that matter: nothing torn, nothing lost, little sent again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import xxhash

from scopeferry.sources.ready import METADATA
from scopeferry.testing.claims import journal_claims, record_claims
from scopeferry.testing.orders import LAYOUTS, PATTERNS, pause
from scopeferry.testing.slow_writer import WRITERS

from .conftest import OURS, assert_same, files  # noqa: TID252  (what its fixtures look with)

KILLED = -signal.SIGKILL
KILLS = 50
WAYS = [("rename", "v2-flat"), ("tensorstore", "v3"), ("in place", "v3-shards"), ("zarr", "v2-nested")]


@dataclass(frozen=True)
class Kill:
    """When: so many seconds after the start, or after the first file has arrived; and of whom."""

    number: int
    writer: str
    layout: str
    pattern: str
    after_first: bool
    seconds: float


def kills() -> list[Kill]:
    """The same in each run."""
    choice = random.Random(20_261)
    found = []
    for number in range(KILLS):
        writer, layout = choice.choice(WAYS)
        patterns = [name for name in ("full", "rewrite", "clear", "grow", "shots") if WRITERS[writer].can(layout, name)]
        pattern = "full" if number % 2 == 0 else choice.choice(patterns)
        after_first = choice.random() < 0.8
        found.append(Kill(number, writer, layout, pattern, after_first, round(choice.uniform(0, 0.8), 3)))
    return found


def published(copy: Path) -> dict[str, str]:
    """Path -> digest of what has its final name."""
    return {path: digest for path, digest in files(copy).items() if not OURS.fullmatch(os.path.basename(path))}


def check_after_a_kill(run, state: Path, scratch: Path) -> dict[str, str]:
    """Neither journal nor record claims what is not there, and the journal lags. What has its final name."""
    told = record_claims(run.records)
    for path, digest in journal_claims(state, scratch).items():
        stands = run.destination / path
        assert path in told or not stands.exists(), f"{path}: the journal leads the record"
        if stands.exists():
            assert xxhash.xxh3_128_digest(stands.read_bytes()) == digest, path
    with pytest.raises(ProcessLookupError):
        os.killpg(run.process.pid, 0)
    return published(run.destination)


# -- at random moments -------------------------------------------------------------------------------------------------


def killed_at_a_moment(kill: Kill, acquire, started, tmp_path, state):
    copy = tmp_path / "copy"
    orders = [
        step
        for order in PATTERNS[kill.pattern]("", LAYOUTS[kill.layout])
        for step in (order, pause(0.05))
        if order["do"] != "pause"
    ]
    with acquire(kill.writer) as acquisition:
        first = started(of=acquisition, start_new_session=True)

        def end_it() -> None:
            while kill.after_first and not (copy.is_dir() and published(copy)):
                time.sleep(0.002)
            time.sleep(kill.seconds)
            first.process.kill()

        killer = threading.Thread(target=end_it)
        with acquisition.watching(copy):
            killer.start()
            acquisition.do(*orders)
            killer.join()
            assert first.process.wait() == KILLED
            there = check_after_a_kill(first, state, tmp_path / "scratch")
            acquisition.writer.close()
            acquisition.remember()
            for path, digest in there.items():
                if not acquisition.kind.streams and os.path.basename(path) not in METADATA:
                    assert digest in acquisition.past[path], f"{path} is torn"
            (acquisition.root / "complete").touch()
            second = started(of=acquisition)
            found = second.ends()
        assert_same(acquisition.root, copy)
    if kill.pattern == "full":
        data = {path for path in files(acquisition.root) if os.path.basename(path) not in METADATA}
        again = found["copied"] + found["replaced"] + found["repaired"] - len(files(acquisition.root)) + len(data)
        assert again <= len(data - there.keys()), found
    assert not list(copy.rglob(".sf-*"))


@pytest.mark.parametrize("kill", [Kill(-1, "rename", "v2-flat", "full", True, 0.05),
                                  Kill(-2, "tensorstore", "v3", "rewrite", True, 0.3)], ids=str)  # fmt: skip
def test_killed_at_a_moment(kill, acquire, started, tmp_path, state):
    killed_at_a_moment(kill, acquire, started, tmp_path, state)


@pytest.mark.slow
@pytest.mark.parametrize("kill", kills(), ids=lambda kill: f"{kill.number}-{kill.writer}-{kill.pattern}")
def test_killed_at_many_moments(kill, acquire, started, tmp_path, state):
    killed_at_a_moment(kill, acquire, started, tmp_path, state)


@pytest.mark.slow
def test_killed_again_and_again_while_it_is_written(acquire, started, tmp_path, state):
    """Each run gets a little further; together they send each file once, but what was in flight."""
    choice = random.Random(3)
    copy = tmp_path / "copy"
    with acquire("tensorstore") as acquisition, acquisition.watching(copy):
        for number in range(12):
            acquisition.do(*[order | {"path": f"{number}"} for order in PATTERNS["full"]("", LAYOUTS["v3"])])
            before = published(copy) if copy.is_dir() else {}
            run = started(of=acquisition, start_new_session=True)
            run.wait(until=lambda before=before: copy.is_dir() and len(published(copy)) > len(before))
            time.sleep(choice.uniform(0, 0.05))
            run.process.kill()
            run.process.wait()
            assert check_after_a_kill(run, state, tmp_path / "scratch").keys() >= before.keys()
        acquisition.writer.close()
        (acquisition.root / "complete").touch()
        started(of=acquisition).ends()
    assert_same(acquisition.root, copy)


def test_killed_before_it_was_noted_and_then_rewritten(store, started, tmp_path):
    """What stands there is an earlier version that no record knows: it is ours, and no conflict."""
    code = (
        "import os, sys; from scopeferry.cli.main import main; from scopeferry.testing.steps import Steps, path_of\n"
        "def kill(fd): os.kill(os.getpid(), 9)\n"
        "with Steps() as steps:\n"
        "    steps.before('flush_folder', kill, when=lambda fd: '0.0' in os.listdir(path_of(fd))); sys.exit(main())"
    )
    store.put(0)
    run = started(command=(sys.executable, "-c", code, "live"))
    assert run.process.wait(timeout=60) == KILLED
    first = store.path(0).read_bytes()
    assert (run.destination / "0.0").read_bytes() == first
    assert "0.0" not in record_claims(run.records)
    store.put(0)
    store.finish()
    started().ends()
    assert [path.read_bytes() for path in run.records.glob("set_aside/*/0.0")] == [first]


# -- at calls ----------------------------------------------------------------------------------------------------------

#: call -> how often a run makes it at least
CALLS = {
    "renameat2": 3, "rename": 1, "unlinkat": 1, "fdatasync": 4, "fsync": 4, "pwrite64": 10, "linkat": 1,
    "utimensat": 3, "mkdirat": 1, "ftruncate": 1,
}  # fmt: skip
SAMPLE = [("unlinkat", 1)]


class Changed:
    """A copy that was begun; then one chunk was rewritten at the source, one removed, one added, and it ended."""

    def __init__(self, store, started, tmp_path, state) -> None:
        self.store, self.started, self.state, self.tmp_path = store, started, state, tmp_path
        store.put(0, 1, 2, 3)
        self.past = [files(store.root)]
        self.gone = store.path(2).read_bytes()
        run = started()
        run.wait(".zarray", "0.0", "1.0", "2.0", "3.0")
        run.send(signal.SIGTERM)
        run.ends(130)
        store.put(1, 4)
        store.path(2).unlink()
        store.finish()
        self.past.append(files(store.root))

    def killed(self, call: str, nth: int) -> bool:
        """Kill a run at the nth such call; False if it made fewer, and then it has ended well."""
        strace = ("strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}", "-e",
                  f"inject={call}:signal=KILL:when={nth}")  # fmt: skip
        run = self.started("--workers", "1", before=strace, start_new_session=True)
        if run.process.wait(timeout=120) == 0:
            run.process.communicate()
            return False
        assert run.process.returncode == KILLED, run.process.communicate()
        for path, digest in check_after_a_kill(run, self.state, self.tmp_path / "scratch").items():
            assert digest in {was.get(path) for was in self.past}, f"{path} is torn"
        self.check_nothing_is_lost(run)
        return True

    def check_nothing_is_lost(self, run) -> None:
        """What was removed at the source stands at the copy, or is set aside."""
        found = [run.destination / "2.0", *run.records.glob("stale/*/2.0")]
        assert self.gone in [path.read_bytes() for path in found if path.exists()]

    def ends(self) -> None:
        run = self.started()
        found = run.ends()
        assert found["bytes"] <= 2 * self.store.size + 1000
        assert not (run.destination / "2.0").exists()
        self.check_nothing_is_lost(run)
        assert published(run.destination) == self.past[1]


@pytest.fixture
def changed(store, started, tmp_path, state):
    """Make one."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace: apt install strace")
    return lambda: Changed(store, started, tmp_path, state)


@pytest.mark.parametrize(("call", "nth"), SAMPLE)
def test_killed_at_a_call(changed, call, nth):
    case = changed()
    assert case.killed(call, nth)
    case.ends()


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_killed_at_every_call(changed, tmp_path, state, call):
    case = changed()
    kept = tmp_path / "kept"
    for name in ("copy", "copy.scopeferry"):
        shutil.copytree(tmp_path / name, kept / name)
    shutil.copytree(state, kept / "state")
    for nth in range(1, 200):
        if not case.killed(call, nth):
            break
        case.ends()
        for name, home in (("copy", tmp_path), ("copy.scopeferry", tmp_path), ("state", state.parent)):
            shutil.rmtree(home / name)
            shutil.copytree(kept / name, home / name)
    assert nth > CALLS[call]


@pytest.mark.slow
@pytest.mark.parametrize(("call", "nth"), [("renameat2", 1), ("fdatasync", 2), ("fsync", 3)])
def test_killed_at_the_same_call_until_it_is_through(changed, call, nth):
    case = changed()
    for _ in range(12):
        if not case.killed(call, nth):
            break
    case.ends()
