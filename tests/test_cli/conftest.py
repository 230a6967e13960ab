"""The real command, started as a user would."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.fixture
def environment(state, tmp_path) -> dict[str, str]:
    """The environment of the command: the test's own home, no CI, UTF-8."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SCOPEFERRY_")}
    for name in ("CI", "NO_COLOR", "TERM"):
        kept.pop(name, None)
    return {**kept, "PYTHONIOENCODING": "utf-8", "PYTHONWARNINGS": "error"}


class Ferry:
    """The command, its output and its exit code."""

    def __init__(self, environment: dict[str, str], cwd: Path) -> None:
        self.environment, self.cwd = environment, cwd
        self.running: list[subprocess.Popen[str]] = []

    def command(self, *words: object) -> list[str]:
        return [sys.executable, "-m", "scopeferry", *map(os.fspath, map(_text, words))]

    def __call__(self, *words: object, **more: object) -> subprocess.CompletedProcess[str]:
        return self.raw(self.command(*words), **more)

    def raw(self, command: list[object], **more: object) -> subprocess.CompletedProcess[str]:
        """Any command, in the same folder and environment."""
        env = {**self.environment, **more.pop("env", {})}
        more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": self.cwd, **more}
        return subprocess.run(command, env=env, check=False, timeout=120, **more)

    def line(self, *words: object) -> str:
        """The command as a shell takes it."""
        return shlex.join(self.command(*words))

    def start(self, *words: object, **more: object) -> subprocess.Popen[str]:
        env = {**self.environment, **more.pop("env", {})}
        more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        started = subprocess.Popen(self.command(*words), cwd=self.cwd, env=env, text=True, **more)
        self.running.append(started)
        return started


def _text(word: object) -> str | os.PathLike[str]:
    return word if isinstance(word, str | os.PathLike) else str(word)


@pytest.fixture
def ferry(environment, tmp_path):
    started = Ferry(environment, tmp_path)
    yield started
    for process in started.running:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.fixture
def tree(tmp_path) -> Path:
    """A small finished run."""
    return _make_tree(tmp_path / "run7", files=5, size=2000)


@pytest.fixture
def make_tree():
    """Make a tree of so many files."""
    return _make_tree


@pytest.fixture
def wait_for():
    """Wait until something is so."""
    return _wait_for


def _make_tree(root: Path, *, files: int, size: int) -> Path:
    for number in range(files):
        path = root / f"pos{number % 3}" / f"{number:04}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
    return root


def _wait_for(ready, what: str, timeout_s: float = 60.0):
    """Wait until `ready` answers something, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (found := ready()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
    return found
