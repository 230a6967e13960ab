"""What was broken once, by the real program: a command that is killed at a call, and its envelope."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).with_name("scopeferry"))


class Program:
    """The command: run to its end, killed at a call, or left running."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def run(self, *words) -> dict:
        """Its envelope."""
        done = subprocess.run(
            [COMMAND, *map(str, words), "--json"], check=False, capture_output=True, text=True, timeout=120
        )
        assert "Traceback" not in done.stderr
        found = json.loads(done.stdout)
        assert found["exit_code"] == done.returncode
        return found | {"codes": {problem["code"] for problem in found["problems"]}}

    def start(self, *words) -> subprocess.Popen:
        """The running process; its envelope comes on stdout."""
        return subprocess.Popen([COMMAND, *map(str, words), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def killed_at(self, call: str, nth: int, *words) -> None:
        """Run it with one worker until the nth call of this kind."""
        traced = ["strace", "-f", "-qq", "-o", self.log, "-e", f"trace={call}"]
        inject = ["-e", f"inject={call}:signal=KILL:when={nth}"]
        command = [*traced, *inject, COMMAND, *map(str, words), "--workers", "1"]
        subprocess.run(command, check=False, capture_output=True, timeout=120)
        assert "killed by SIGKILL" in self.log.read_text()

    def kill_when_it_calls(self, pid: int, call: str, nth: int) -> subprocess.Popen:
        """Have a running process killed at its nth call of this kind."""
        inject = f"inject={call}:signal=KILL:when={nth}"
        return subprocess.Popen(["strace", "-qq", "-o", self.log, "-p", str(pid), "-e", f"trace={call}", "-e", inject])


@pytest.fixture
def program(tmp_path) -> Program:
    if shutil.which("strace") is None:
        pytest.skip("needs strace: apt install strace")
    return Program(tmp_path / "trace")


@pytest.fixture
def small_files():
    """Make a folder of small files that nobody has touched for an hour."""

    def make(root: Path, count: int, *, folders: int = 1, size_bytes: int = 3000) -> Path:
        past = time.time() - 3600
        for folder in range(folders):
            (root / f"f{folder}").mkdir(parents=True, exist_ok=True)
            for number in range(count // folders):
                path = root / f"f{folder}" / f"{number}.tif"
                path.write_bytes(os.urandom(size_bytes))
                os.utime(path, (past, past))
        return root

    return make


@pytest.fixture
def drive(tmp_path, request):
    """A file system of its own, of 16 MB or of the size that is an indirect parameter."""
    folder, size = tmp_path / "drive", getattr(request, "param", "16m")
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs to mount")
    yield folder
    subprocess.run(["umount", folder], check=True)
