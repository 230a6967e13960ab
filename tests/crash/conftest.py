"""The real program under strace: killed or failed at a call, then looked at, then run again."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import xxhash

from scopeferry.testing.claims import journal_claims, record_claims
from scopeferry.testing.trees import differences, parts, random_bytes

COMMAND = Path(sys.executable).with_name("scopeferry")
DONE = 0


@dataclass
class Ship:
    """A source, a destination, and the command between them."""

    src: Path
    dst: Path
    log: Path
    options: list[str] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)  # what the last faulty run said it could not keep

    @property
    def records(self) -> Path:
        return self.dst.with_name(self.dst.name + ".scopeferry")

    def run(self, *options: str, strace: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """The command, one worker, under strace if asked for."""
        traced = ["strace", "-f", "-qq", "-o", str(self.log), *strace] if strace else []
        command = [*traced, str(COMMAND), "transfer", "--workers", "1", "--json", *self.options, *options]
        env = {**os.environ, "PYTHONFAULTHANDLER": "1"}
        with subprocess.Popen(
            [*command, str(self.src), str(self.dst)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        ) as process:
            try:
                out, err = process.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGABRT)  # says where each thread stands
                out, err = process.communicate()
                pytest.fail(f"it hangs: {err}")
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def inject(self, call: str, what: str, nth: int, *options: str) -> int | None:
        """The exit code of a run in which the nth call goes wrong, None if it was not reached; a kill is -9."""
        below = (
            str(path).replace(str(self.src), str(self.dst))
            for path in [self.src, *self.src.rglob("*")]
            if path.is_dir()
        )
        only = [word for path in below for word in ("-P", path)] if call == "openat" else []
        done = self.run(*options, strace=(*only, "-e", f"trace={call}", "-e", f"inject={call}:{what}:when={nth}"))
        self.lost = json.loads(done.stdout)["lost"] if done.stdout.startswith("{") else {}
        trace = self.log.read_text(errors="replace")
        if "INJECTED" not in trace and "killed by SIGKILL" not in trace:
            return None
        return -signal.SIGKILL if done.returncode in {-signal.SIGKILL, 128 + signal.SIGKILL} else done.returncode

    def part_bytes(self) -> int:
        """The length of the largest temporary file at the destination."""
        try:
            return max((path.stat().st_size for path in self.dst.glob(".sf-*.part")), default=0)
        except FileNotFoundError:  # it has just got its name
            return 0

    def kill_when(self, ready, *options: str) -> int:
        """Start the command, SIGKILL it as soon as `ready` says so; the length of the largest temporary file then."""
        command = [COMMAND, "transfer", "--workers", "1", *options, self.src, self.dst]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while not ready():
                assert process.poll() is None, "it ended before it could be killed"
                time.sleep(0.005)
            process.kill()
        return self.part_bytes()

    def check_after_a_fault(self) -> set[str]:
        """No wrong file under a final name; neither journal nor record claims what is not there. The final names."""
        final = set()
        for path in self.dst.rglob("*") if self.dst.is_dir() else ():
            if path.is_symlink() or path.is_dir() or re.fullmatch(r"\.sf-[0-9a-f]{16}-[0-9a-f]{8}\.part", path.name):
                continue
            name = str(path.relative_to(self.dst))
            assert path.read_bytes() == (self.src / name).read_bytes(), f"{name} is wrong under its final name"
            final.add(name)
        claims = record_claims(self.records)
        rows = journal_claims(Path(os.environ["XDG_STATE_HOME"]), self.log.with_name("journal-copy"))
        for name, digest in rows.items():
            assert xxhash.xxh3_128_digest((self.dst / name).read_bytes()) == digest
            assert name in claims, "the journal leads the record"
        for name, digest in claims.items():
            assert xxhash.xxh3_128_hexdigest((self.dst / name).read_bytes()) == digest
        return final

    def check_whole(self) -> None:
        """The copy is equal, nothing temporary is left, the manifest passes a standard checker."""
        told = differences(self.src, self.dst)
        assert [line for line in told if not ("mode is" in line and "mode" in self.lost)] == []
        assert parts(self.dst) == []
        assert not list(self.records.glob("*.part"))
        assert (self.records / "receipt.json").exists()
        subprocess.run(
            ["xxhsum", "-c", "--strict", "--quiet", self.records / "manifest.xxh128"],
            cwd=self.dst,
            check=True,
            capture_output=True,
        )

    def finish(self, final: set[str]) -> dict:
        """The same command again: it ends with 0, and sends nothing that is there."""
        done = self.run()
        assert done.returncode == 0, done.stdout + done.stderr
        result = json.loads(done.stdout)
        files = {
            str(path.relative_to(self.src)) for path in self.src.rglob("*") if path.is_file() and not path.is_symlink()
        }
        entries = len(files) + sum(path.is_symlink() for path in self.src.rglob("*"))
        counted = result["copied"] + result["skipped"] + result["adopted"] + result["checked"]
        assert counted == entries
        assert result["bytes"] <= sum((self.src / name).stat().st_size for name in files - final)
        self.check_whole()
        return result


@pytest.fixture
def ship(tmp_path) -> Ship:
    """A small tree of every common kind."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace: apt install strace")
    src = tmp_path / "src"
    for number, name in enumerate(["a", "b", "one/c", "one/d", "one/deep/e", "two/f", "two/empty"]):
        path = src / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random_bytes(number, 3000 * (number + 1)) if "empty" not in name else b"")
    os.link(src / "a", src / "one/also a")
    (src / "two/link").symlink_to("f")
    (src / "nothing").mkdir()
    return Ship(src, tmp_path / "dst", tmp_path / "trace")
