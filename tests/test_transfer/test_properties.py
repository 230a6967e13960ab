"""Random trees, edits on both sides, kills, lost journals and changed options, against a model of what was promised.

The model knows, for each name, every version that the source ever had, and what somebody else has put at the
destination.
After each run the invariants of ``DESIGN.md`` 3 are looked at; whatever came before, a run that says 0 has made both
equal.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
import xxhash
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import scopeferry
from scopeferry.stores import local
from scopeferry.testing.trees import differences, flip, parts, rewrite, snapshot

COMMAND = str(Path(sys.executable).with_name("scopeferry"))
NAMES = st.sampled_from(["a", "b", "c.tif", "sub/d", "sub/e.tif", "sub/deep/f", "new\nline", "x" * 255])
SIZES = st.sampled_from([0, 1, 100, 4096, 70_000])
SEEDS = st.integers(0, 2**32)
ROOT = ""


def data(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


class Transfers(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=ROOT))
        self.src, self.dst = self.folder / "src", self.folder / "dst"
        self.src.mkdir()
        self.versions: dict[str, set[bytes]] = {}  # every content that a name ever had at the source
        self.theirs: dict[str, bytes] = {}  # what somebody put at the destination, and nobody allowed to replace
        self.flipped: set[str] = set()
        self.planned: set[str] = set()  # what a killed run had planned, and not known to have copied
        self.forgotten: set[str] = set()  # what it had planned, when its journal was lost
        self.clock = itertools.count(1_700_000_000)
        self.digests = ("xxh128",)
        self.ran = False

    def teardown(self):
        shutil.rmtree(self.folder)

    @initialize(seed=SEEDS, links=st.booleans())
    def begin(self, seed, links):
        for number, name in enumerate(["a", "b", "c.tif", "sub/d", "sub/deep/f"]):
            self.write_source(name, seed + number, 3000 * number)
        if links:
            self.link_source("a", "sub/e.tif")

    # -- the source ---------------------------------------------------------------------

    def _note(self, name):
        self.versions.setdefault(name, set()).add((self.src / name).read_bytes())

    @rule(name=NAMES, seed=SEEDS, size=SIZES)
    def write_source(self, name, seed, size):
        path = self.src / name
        if path.is_symlink():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data(seed, size))
        self._note(name)
        for other in self.versions:  # names of one inode change together
            if (self.src / other).is_file() and not (self.src / other).is_symlink():
                self._note(other)

    @rule(name=NAMES, seed=SEEDS)
    def edit_source_with_mtime_back(self, name, seed):
        path = self.src / name
        if path.is_file() and not path.is_symlink():
            rewrite(path, data(seed, path.stat().st_size), keep_time=True)
            for other in self.versions:
                if (self.src / other).is_file() and not (self.src / other).is_symlink():
                    self._note(other)

    @rule(name=NAMES)
    def delete_source(self, name):
        (self.src / name).unlink(missing_ok=True)

    @rule(name=NAMES, other=NAMES)
    def link_source(self, name, other):
        one, two = self.src / name, self.src / other
        if one.is_file() and not one.is_symlink() and not os.path.lexists(two):
            two.parent.mkdir(parents=True, exist_ok=True)
            os.link(one, two)
            self._note(other)

    @rule(name=NAMES, mode=st.sampled_from([0o400, 0o640, 0o755]))
    def chmod_source(self, name, mode):
        if (self.src / name).is_file():
            os.chmod(self.src / name, mode)

    # -- the destination ---------------------------------------------------------------------

    def _there(self, name):
        path = self.dst / name
        return path if path.is_file() and not path.is_symlink() else None

    @rule(name=NAMES, seed=SEEDS, size=SIZES)
    def somebody_writes_at_the_destination(self, name, seed, size):
        path = self.dst / name
        if not path.parent.is_dir():
            return
        (self.dst / "tmp").write_bytes(data(seed, size) + b"theirs")
        os.replace(self.dst / "tmp", path)
        stamp = next(self.clock) * 10**9
        os.utime(path, ns=(stamp, stamp))
        self.theirs[name] = path.read_bytes()
        self.flipped.discard(name)

    @rule(name=NAMES, at=st.integers(0, 100_000))
    def a_bit_flips(self, name, at):
        path = self._there(name)
        if path is not None and name not in self.theirs and path.stat().st_size:
            flip(path, at % path.stat().st_size)
            inode = path.stat().st_ino
            self.flipped |= {
                one for one in self.versions if self._there(one) and self._there(one).stat().st_ino == inode
            }

    @rule(name=NAMES)
    def somebody_deletes_at_the_destination(self, name):
        path = self._there(name)
        if path is not None:
            path.unlink()
            self.theirs.pop(name, None)
            self.flipped.discard(name)

    @rule(name=NAMES)
    def somebody_touches_a_mode(self, name):
        path = self._there(name)
        if path is not None:
            os.chmod(path, 0o600)

    # -- journal and records ---------------------------------------------------------------------

    def _journals(self):
        name = f"dst-{xxhash.xxh3_128_hexdigest(os.fsencode(os.path.realpath(self.dst)))[:16]}"
        return list((Path(os.environ["XDG_STATE_HOME"]) / "scopeferry/journals").glob(f"{name}*"))

    def _open_in_the_journal(self):
        """The names of rows that are open and have no digest, read from a copy of the journal and its log."""
        with tempfile.TemporaryDirectory(dir=ROOT) as folder:
            for path in self._journals():
                shutil.copy(path, folder)
            found = set()
            for path in Path(folder).glob("*.sqlite"):
                with closing(sqlite3.connect(path)) as db, suppress(sqlite3.DatabaseError):  # damaged, or not made yet
                    if db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                        continue
                    found |= {
                        os.fsdecode(head + name)
                        for head, name in db.execute(
                            "SELECT f.path, i.name FROM items i JOIN folders f ON f.id = i.folder "
                            "WHERE i.state BETWEEN 1 AND 7 AND i.digest IS NULL"
                        )
                    }
            return found

    @precondition(lambda self: self.ran)
    @rule(how=st.sampled_from(["delete", "truncate", "garbage"]))
    def lose_the_journal(self, how):
        self.forgotten |= self.planned
        self.planned = set()
        for path in self._journals():
            if how == "delete" or path.suffix != ".sqlite":
                path.unlink()
            elif how == "truncate":
                os.truncate(path, path.stat().st_size // 2)
            else:
                path.write_bytes(data(1, 9000))

    @precondition(lambda self: self.ran)
    @rule()
    def lose_the_records(self):
        shutil.rmtree(self.folder / "dst.scopeferry", ignore_errors=True)

    # -- runs ---------------------------------------------------------------------

    @rule(digests=st.sampled_from([("xxh128",), ("xxh128", "sha256"), ("md5",), ("sha1", "xxh128")]))
    def change_the_digests(self, digests):
        self.digests = digests

    @rule(delay=st.floats(0, 0.25))
    def a_run_is_killed(self, delay):
        command = [
            COMMAND,
            "transfer",
            "--quiet",
            "--limit",
            "2MB",
            *(word for one in self.digests for word in ("--digest", one)),
        ]
        with subprocess.Popen(
            [*command, self.src, self.dst], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            time.sleep(delay)
            process.kill()
        self.ran = True
        self.planned = self._open_in_the_journal()
        self.flipped = {name for name in self.flipped if self._there(name) and not self._is_a_version(name)}
        self._check_theirs()

    def _is_a_version(self, name):
        return self._there(name) is not None and self._there(name).read_bytes() in self.versions.get(name, ())

    @rule(
        policy=st.sampled_from(["refuse", "refuse", "replace"]),
        verify=st.sampled_from(["full", "full", "all", "none"]),
        workers=st.sampled_from([1, 4]),
    )
    def run(self, policy, verify, workers):
        result = scopeferry.transfer(
            self.src, self.dst, digests=self.digests, on_conflict=policy, verify=verify, workers=workers
        )
        self.ran = True
        told = [(problem.code, problem.path) for problem in result.problems]
        vanished = {name for name in self.planned if not (self.src / name).is_file()}
        self.planned = set()
        assert {path for code, path in told if code == "SF-202"} == vanished
        nowhere = {path for code, path in told if code == "SF-215"}
        assert not any(os.path.lexists(side / name) for name in nowhere for side in (self.src, self.dst)), told
        assert nowhere <= self.versions.keys()
        refused = {path for code, path in told if code.startswith("SF-5")}
        assert result.exit_code == (5 if refused else 3 if vanished or nowhere else 0), told
        self._check_parts()
        if policy == "replace":
            self.theirs = {name: found for name, found in self.theirs.items() if not (self.src / name).is_file()}
            assert not refused, told
        self._check_theirs()
        if not refused:
            assert differences(self.src, self.dst) == []
            self.flipped = {name for name in self.flipped if not (self.src / name).is_file()}
            again = scopeferry.transfer(self.src, self.dst, digests=self.digests, on_conflict=policy)
            assert again.exit_code == (3 if nowhere else 0)
            assert (again.copied, again.replaced, again.repaired, again.bytes) == (0, 0, 0, 0)
            assert again.tree_digest == result.tree_digest
        else:
            for name in self.versions:
                if (self.src / name).is_file() and name not in refused:
                    assert (self.dst / name).read_bytes() == (self.src / name).read_bytes(), name
            self.flipped = {name for name in self.flipped if name in refused or not (self.src / name).is_file()}
        self._check_manifest()

    @rule(workers=st.sampled_from([1, 4]))
    def run_plainly(self, workers):
        self.run("refuse", "full", workers)

    @rule()
    def run_once_more(self):
        self.run("refuse", "full", 4)

    @rule()
    def run_and_replace(self):
        self.run("replace", "full", 4)

    def _check_parts(self):
        """None is left but, where the journal was lost, those of names that are nowhere any more: nobody knows them."""
        nobodys = {
            xxhash.xxh3_128_hexdigest(os.fsencode(name))[:16]
            for name in self.forgotten
            if not (self.src / name).is_file()
        }
        assert [part for part in parts(self.dst) if os.fsdecode(part).rpartition(".sf-")[2][:16] not in nobodys] == []

    def _check_theirs(self):
        for name, found in self.theirs.items():
            assert (self.dst / name).read_bytes() == found, f"{name} was somebody's"

    def _check_manifest(self):
        """Each line is true, but of what somebody has changed since."""
        from scopeferry.copying import manifest

        path = self.folder / f"dst.scopeferry/manifest.{self.digests[0]}"
        for algorithm, raw, digest in manifest.read(str(path)):
            name = os.fsdecode(raw)
            if name in self.theirs or name in self.flipped or algorithm != "xxh128" or self._there(name) is None:
                continue
            assert xxhash.xxh3_128_digest(self._there(name).read_bytes()) == digest, name

    @invariant()
    def every_final_name_holds_a_version_or_what_somebody_put_there(self):
        if not self.dst.is_dir():
            return
        for raw, found in snapshot(self.dst).items():
            name = os.fsdecode(raw)
            if (
                found.kind != "file"
                or name in self.theirs
                or name in self.flipped
                or name.startswith((".sf-", "sub/.sf-"))
            ):
                continue
            if os.path.basename(name).startswith(".sf-"):
                continue
            assert (self.dst / name).read_bytes() in self.versions[name], f"{name} is torn"


def play(tmp_path, monkeypatch, examples, steps):
    global ROOT  # noqa: PLW0603  (a machine takes no arguments)
    ROOT = str(tmp_path)
    monkeypatch.setattr(local, "CHANGED_WAITS_S", (0.001, 0.001, 0.001))
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run_state_machine_as_test(
        Transfers,
        settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=slow),
    )


def test_whatever_happens_between_runs(tmp_path, monkeypatch):
    play(tmp_path, monkeypatch, 12, 15)


@pytest.mark.slow
def test_whatever_happens_between_many_runs(tmp_path, monkeypatch):
    play(tmp_path, monkeypatch, 300, 30)


def test_what_was_planned_by_a_killed_run_and_then_deleted(tmp_path, monkeypatch):
    """The sequence that showed it: such a file failed, once."""
    global ROOT  # noqa: PLW0603
    ROOT = str(tmp_path)
    machine = Transfers()
    machine.begin(1, links=False)
    machine.write_source("a", 1, 4_000_000)
    for delay in (0.2, 0.4, 0.8, 1.6):
        machine.a_run_is_killed(delay)
        if machine.planned:
            break
    assert machine.planned
    for name in list(machine.planned):
        machine.delete_source(name)
    machine.run_once_more()
    machine.run_once_more()
    machine.teardown()
